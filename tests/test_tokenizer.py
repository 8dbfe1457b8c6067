"""Texts to token ids and back, with every kind of tokenizer that real models have."""

import json
import os
from functools import cache

import pytest
from conftest import TEXTS
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from data.pretrained import read_tokenizer
from data.tokenizer import decode_answer, encode, encode_answers, tokenizer_from_json, train_tokenizer

PROMPTS = ["Q: what now?\nA:", "the taxes are", "people", "Q: wer grüßt?\nA:"]
ANSWERS = ["bow sing", "cut", "bow low", "niemand 🙂"]


@cache
def trained() -> Tokenizer:
    return train_tokenizer(TEXTS, 300)


def llama_2() -> Tokenizer:
    """As Llama 2 has it: a ▁ before the text and for each space, bytes for what is unknown, BOS in front."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(special_tokens=["<unk>", "<s>", "</s>"]))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    return tokenizer_from_json(json.dumps(content))


def metaspace() -> Tokenizer:
    """As newer files say the same, here with an EOS that the tokenizer appends by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    alphabet = list("".join([*PROMPTS, *ANSWERS, "<|im_end|></s>"]).replace(" ", "▁"))
    trainer = trainers.BpeTrainer(special_tokens=["<unk>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer_from_json(tokenizer.to_str())


def word_piece() -> Tokenizer:
    """As BERT has it: words and their pieces, and what has a letter that it never saw is [UNK]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(special_tokens=["[UNK]", "[CLS]", "[SEP]"]))
    marks = [("[CLS]", 1), ("[SEP]", 2)]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=marks)
    return tokenizer_from_json(tokenizer.to_str())


def smollm2() -> Tokenizer:
    if "SMOLLM2" not in os.environ:
        pytest.skip("SMOLLM2 is not set")
    return read_tokenizer(os.environ["SMOLLM2"], 49_152)


EVERY = pytest.mark.parametrize("build", [trained, llama_2, metaspace, smollm2])


@EVERY
def test_a_prompt_and_its_answer_have_the_ids_of_the_text_of_both_and_the_answer_comes_back(build):
    tokenizer = build()
    texts = [f"{prompt} {answer}" for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    wholes = encode(tokenizer, texts, "text", more_follows=True)
    prompts = encode(tokenizer, PROMPTS, "prompt", more_follows=True)
    pairs = encode_answers(tokenizer, PROMPTS, ANSWERS)
    assert [prompt for prompt, _ in pairs] == prompts
    for (prompt, answer), whole, text in zip(pairs, wholes, ANSWERS, strict=True):
        assert prompt + answer == whole
        assert decode_answer(tokenizer, prompt, answer) == text
        assert decode_answer(tokenizer, prompt, []) == ""


@EVERY
def test_a_mark_that_somebody_types_is_text(build):
    tokenizer = build()
    marks = set(tokenizer.get_added_tokens_decoder())
    assert marks
    for mark in ("<eos>", "</s>", "<|im_end|>"):
        ids = tokenizer.encode(f"people {mark}", add_special_tokens=False).ids
        assert not marks & set(ids) and tokenizer.decode(ids) == f"people {mark}"


def test_what_a_tokenizer_puts_around_a_text_stays_but_its_end_where_the_text_goes_on():
    assert encode(llama_2(), ["people"], "text", more_follows=True)[0][0] == 1  # BOS
    (ids,) = encode(metaspace(), ["people bow"], "text", more_follows=True)
    assert ids == metaspace().encode("people bow", add_special_tokens=False).ids
    assert encode(metaspace(), ["people bow"], "text") == [[*ids, 1]]  # a whole text has its EOS
    assert encode(word_piece(), ["people bow"], "text")[0][::3] == [1, 2]  # [CLS] people bow [SEP]


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip))
def test_a_trained_tokenizer_can_write_any_text_and_its_first_two_ids_are_never_of_a_text(text):
    (ids,) = encode(trained(), [text], "text")
    assert trained().decode(ids) == text and min(ids) > 1
    assert [trained().id_to_token(i) for i in (0, 1)] == ["<pad>", "<eos>"]
    assert trained().get_vocab_size() <= 300


def test_a_text_may_be_as_long_as_is_allowed():
    assert len(encode(trained(), [TEXTS[0]], "text", longest=3)[0]) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" \n", "the description is empty: write at least a word"),
        ("people " * 30, "'people people .* … is 32 tokens long, of at most 10: shorten it"),
        ("people ☃ bow", "holds '☃', which the tokenizer does not know"),
        ("people \udc80", "the description holds bytes that are not text"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        encode(word_piece(), [TEXTS[0], text], "description", longest=10)
    assert "\n" not in str(error.value)


def joins_a_colon_and_a_space() -> Tokenizer:
    return Tokenizer(models.BPE({"A": 0, ":": 1, " ": 2, ": ": 3}, [(":", " ")]))


def knows_two_characters() -> Tokenizer:
    return Tokenizer(models.BPE({"A": 0, ":": 1}, []))


@pytest.mark.parametrize(
    ("build", "answer", "message"),
    [
        (joins_a_colon_and_a_space, "A", "joins a prompt with its answer in 'A: A': begin the answer with"),
        (knows_two_characters, "b", "joins a prompt with its answer in 'A: b'"),  # no token is left of the answer
        (trained, " ", "answer is empty"),
        (trained, "now " * 5, "the prompt with its answer .A: now now .* tokens long, of at most 4: shorten"),
    ],
)
def test_an_answer_that_cannot_be_cut_from_its_prompt_or_is_empty_or_too_long_is_refused(build, answer, message):
    with pytest.raises(ValueError, match=message):
        encode_answers(build(), ["A:"], [answer], longest=4)
