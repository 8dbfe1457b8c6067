"""Texts to token ids and back, by a tokenizer that was trained on a data set or is a real model's.

A prompt and its answer are one text. They are encoded together and cut afterwards, so that the ids
are those of the whole text.
"""

from collections.abc import Sequence

import tokenizers

PAD, EOS = "<pad>", "<eos>"  # ids 0 and 1 of a trained tokenizer


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer: it can write any text, so no character is unknown to it."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer_from_json(tokenizer.to_str())  # so that it is set like a saved one


def tokenizer_from_json(text: str) -> tokenizers.Tokenizer:
    """A tokenizer saved by its `to_str`, set so that "<eos>" typed by a user is mere text."""
    tokenizer = tokenizers.Tokenizer.from_str(text)
    # True: "<eos>" in a text is split like any other text. (The name suggests the contrary.)
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode(
    tokenizer: tokenizers.Tokenizer,
    texts: Sequence[str],
    what: str,
    longest: int | None = None,
    more_follows: bool = False,
) -> list[list[int]]:
    """The token ids of texts, with what the tokenizer puts around them, as [CLS] and [SEP].

    With `more_follows` what ends a text is left out, as in a prompt. `what` is the word for these
    texts in errors, as "description". Raises ValueError for a text that is empty, that takes more
    than `longest` tokens, or that holds characters unknown to the tokenizer.
    """
    for text in texts:
        if not text.strip():
            raise ValueError(f"the {what} is empty: write at least a word")
    try:
        encodings = tokenizer.encode_batch(list(texts))
    except TypeError:  # half of a surrogate pair, which a damaged file may hold
        raise ValueError(f"the {what} holds bytes that are not text: remove them") from None
    unknown = getattr(tokenizer.model, "unk_token", None)  # a byte-level tokenizer has none
    rows = []
    for text, encoding in zip(texts, encodings, strict=True):
        ids = encoding.ids
        if more_follows:
            special = encoding.special_tokens_mask  # of [CLS] how ##dy [SEP] it is [1, 0, 0, 1]
            while ids and special[len(ids) - 1]:
                ids.pop()  # [SEP], and what else stands at the end
        if unknown is not None and unknown in encoding.tokens:
            start, end = encoding.offsets[encoding.tokens.index(unknown)]
            problem = f"the {what} {text[:40]!r} holds {text[start:end]!r}"
            raise ValueError(f"{problem}, which the tokenizer does not know: use other words")
        if longest is not None and len(ids) > longest:
            problem = f"the {what} {text[:40]!r} … is {len(ids)} tokens long, of at most {longest}"
            raise ValueError(f"{problem}: shorten it")
        rows.append(ids)
    return rows


def encode_answers(
    tokenizer: tokenizers.Tokenizer,
    prompts: Sequence[str],
    answers: Sequence[str],
    longest: int | None = None,
) -> list[tuple[list[int], list[int]]]:
    """The token ids of each prompt, and those of a space and the answer behind it.

    Raises ValueError for a text that is empty or too long, and where the tokenizer makes one token
    of the prompt's end and the answer's start, so that there is no place to cut.
    """
    prompt_rows = encode(tokenizer, prompts, "prompt", more_follows=True)
    encode(tokenizer, answers, "answer")  # raises for an empty answer
    texts = [f"{prompt} {answer}" for prompt, answer in zip(prompts, answers, strict=True)]
    text_rows = encode(tokenizer, texts, "prompt with its answer", longest, more_follows=True)
    pairs = []
    for text, prompt_ids, ids in zip(texts, prompt_rows, text_rows, strict=True):
        cut = len(prompt_ids)
        if ids[:cut] != prompt_ids or len(ids) == cut:
            problem = f"the tokenizer joins a prompt with its answer in {text[-40:]!r}"
            raise ValueError(f"{problem}: begin the answer with another character")
        pairs.append((prompt_ids, ids[cut:]))
    return pairs


def decode_answer(tokenizer: tokenizers.Tokenizer, prompt: list[int], answer: list[int]) -> str:
    """The answer's text: what the text of both has more than that of the prompt.

    (Decoding the answer alone would change its beginning with some tokenizers.)
    """
    before = tokenizer.decode(prompt)
    text = tokenizer.decode(prompt + answer)
    return text[len(before) :].strip()
