"""Texts to token ids and back, with every kind of tokenizer that real models have."""

import json
import os
from functools import cache
from pathlib import Path

import pytest
from conftest import TEXTS
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from data.tokenizer import (
    decode_answer,
    encode,
    encode_pairs,
    encode_without_end,
    read_tokenizer,
    token_counts,
    tokenizer_from_json,
    train_tokenizer,
)

PROMPTS = ["Q: what now?\nA:", "the taxes are", "people", "Q: wer grüßt?\nA:"]
ANSWERS = [" bow sing", " cut", " bow low", " niemand 🙂"]
BYTES = [f"<0x{i:02X}>" for i in range(256)]


@cache
def trained() -> Tokenizer:
    return train_tokenizer(TEXTS, 300)


def llama_2() -> Tokenizer:
    """As Llama 2 has it: a ▁ before the text and for each space, bytes for what is unknown, BOS in front."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(special_tokens=["<unk>", "<s>", "</s>"]))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    vocab |= {byte: len(vocab) + i for i, byte in enumerate(BYTES)}
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
    return read_tokenizer(Path(os.environ["SMOLLM2"]), 49_152)


EVERY = pytest.mark.parametrize("build", [trained, llama_2, metaspace, smollm2])


# ---- a prompt and its answer are one text


@EVERY
def test_a_prompt_and_its_answer_have_the_ids_of_the_text_of_both_and_come_back_with_their_space(build):
    tokenizer = build()
    texts = [prompt + answer for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    wholes = encode_without_end(tokenizer, texts, "text")
    pairs = encode_pairs(tokenizer, PROMPTS, ANSWERS)
    for (prompt, answer), whole, text in zip(pairs, wholes, ANSWERS, strict=True):
        assert prompt + answer == whole
        assert decode_answer(tokenizer, prompt, answer) == text
        assert decode_answer(tokenizer, prompt, []) == ""


@EVERY
def test_a_prompt_that_ends_in_a_space_is_refused_and_counted(build):
    prompts = ["the taxes are ", "the taxes are", "people "]
    with pytest.raises(ValueError, match="joins the end of 2 prompts with the answer.*'the taxes are cut low'"):
        encode_pairs(build(), prompts, ["cut low", " cut low", "bow low"])


@EVERY
def test_a_mark_that_somebody_types_is_text(build):
    tokenizer = build()
    marks = set(tokenizer.get_added_tokens_decoder())
    assert marks
    for mark in ("<eos>", "</s>", "<|im_end|>"):
        ids = tokenizer.encode(f"people {mark}", add_special_tokens=False).ids
        assert not marks & set(ids) and tokenizer.decode(ids) == f"people {mark}"


def test_a_first_mark_stays_and_a_last_one_is_dropped_where_a_text_goes_on():
    (ids,) = encode_without_end(llama_2(), ["people bow"], "text")
    assert ids[0] == 1  # BOS
    (ids,) = encode_without_end(metaspace(), ["people bow"], "text")
    assert ids == metaspace().encode("people bow", add_special_tokens=False).ids
    assert encode(metaspace(), ["people bow"], "text") == [[*ids, 1]]  # a whole text has its EOS
    assert encode(word_piece(), ["people bow"], "text")[0][::3] == [1, 2]  # [CLS] people bow [SEP]


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip))
def test_a_trained_tokenizer_can_write_any_text(text):
    tokenizer = trained()
    (ids,) = encode(tokenizer, [text], "text")
    assert tokenizer.decode(ids) == text and min(ids) > 1
    assert token_counts(tokenizer, [text]) == {text: len(ids)}


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
    with pytest.raises(ValueError, match=message):
        encode(word_piece(), [TEXTS[0], text], "description", longest=10)


def test_a_pair_that_is_too_long_or_has_no_answer_is_refused():
    with pytest.raises(ValueError, match="prompt with its answer .* tokens long, of at most 5"):
        encode_pairs(trained(), PROMPTS, ANSWERS, longest=5)
    with pytest.raises(ValueError, match="the answer is empty"):
        encode_pairs(trained(), ["people"], [""])


def test_the_tokenizer_of_a_real_model_neither_cuts_nor_pads_and_must_fit_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*tokenizer.json"):
        read_tokenizer(tmp_path, 300)
    tokenizer = tokenizer_from_json(trained().to_str())
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    again = read_tokenizer(tmp_path, size + 9)  # a model may have more embeddings than are used
    assert encode(again, TEXTS, "text") == encode(trained(), TEXTS, "text")
    with pytest.raises(ValueError, match=f"has {size} ids, the model {size - 1}"):
        read_tokenizer(tmp_path, size - 1)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer.json is damaged"):
        read_tokenizer(tmp_path, 300)
