"""Texts to token ids and back, by a tokenizer that was trained on a data set or is a real model's.

A prompt and its answer are one text. They are encoded together and cut afterwards, so that the ids
are those of the whole text. Where the tokenizer joins the end of the one with the start of the
other, so that there is no place to cut, an error says so.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

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
    return tokenizer_from_json(tokenizer.to_str())  # which sets how special tokens are read


def tokenizer_from_json(text: str) -> tokenizers.Tokenizer:
    """A tokenizer saved by its `to_str`, set so that "<eos>" typed by a user is mere text."""
    tokenizer = tokenizers.Tokenizer.from_str(text)
    # True means, despite its name, that a special token in a text is split like any other text.
    tokenizer.encode_special_tokens = True
    return tokenizer


def read_tokenizer(folder: Path, vocab_size: int) -> tokenizers.Tokenizer:
    """The tokenizer of a real model, from its folder, set neither to cut texts nor to pad them.

    Raises FileNotFoundError, or ValueError for a damaged file or one of over `vocab_size` ids.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: a model is of no use without its tokenizer")
    try:
        tokenizer = tokenizer_from_json(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises no narrower kind
        raise ValueError(f"{path} is damaged ({error}): download it again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    size = max(tokenizer.get_vocab().values()) + 1
    if size > vocab_size:
        raise ValueError(f"{path} has {size} ids, the model {vocab_size}: they do not go together")
    return tokenizer


# ---- encoding


def encode(
    tokenizer: tokenizers.Tokenizer, texts: Sequence[str], what: str, longest: int | None = None
) -> list[list[int]]:
    """Token ids of whole texts, with what the tokenizer puts around them ([CLS] and [SEP]).

    `what` is the word for these texts in errors, as "description". Raises ValueError for a text
    that is empty, that takes more than `longest` tokens, or that holds characters of which the
    tokenizer knows nothing.
    """
    unknown = getattr(tokenizer.model, "unk_token", None)
    rows = []
    for text, encoding in zip(texts, encode_batch(tokenizer, texts, what), strict=True):
        if unknown in encoding.tokens:
            start, end = encoding.offsets[encoding.tokens.index(unknown)]
            problem = f"the {what} {text[:40]!r} holds {text[start:end]!r}"
            raise ValueError(f"{problem}, which the tokenizer does not know: use other words")
        check_length(text, encoding.ids, what, longest)
        rows.append(encoding.ids)
    return rows


def encode_batch(tokenizer: tokenizers.Tokenizer, texts: Sequence[str], what: str) -> list:
    """The encodings of texts. Raises ValueError for one that is empty or damaged."""
    for text in texts:
        if not text.strip():
            raise ValueError(f"the {what} is empty: write at least a word")
    try:
        return tokenizer.encode_batch(list(texts))
    except TypeError:  # half of a surrogate pair, which a damaged file may hold
        raise ValueError(f"the {what} holds bytes that are not text: remove them") from None


def token_counts(tokenizer: tokenizers.Tokenizer, texts: Iterable[str]) -> dict[str, int]:
    """{text: how many tokens it takes}. Raises ValueError as `encode` does."""
    texts = list(texts)
    rows = encode(tokenizer, texts, "text")
    return {text: len(ids) for text, ids in zip(texts, rows, strict=True)}


def check_length(text: str, ids: Sequence[int], what: str, longest: int | None) -> None:
    """Raise ValueError for a text of more than `longest` tokens."""
    if longest is not None and len(ids) > longest:
        problem = f"the {what} {text[:40]!r} … is {len(ids)} tokens long, of at most {longest}"
        raise ValueError(f"{problem}: shorten it")


def encode_without_end(
    tokenizer: tokenizers.Tokenizer, texts: Sequence[str], what: str, longest: int | None = None
) -> list[list[int]]:
    """Token ids of texts that go on: a first token like BOS stays, a last one like EOS is dropped.

    Raises ValueError for a text that is empty or takes more than `longest` tokens.
    """
    rows = []
    for text, encoding in zip(texts, encode_batch(tokenizer, texts, what), strict=True):
        end = len(encoding.ids)
        while end and encoding.special_tokens_mask[end - 1]:
            end -= 1
        check_length(text, encoding.ids[:end], what, longest)
        rows.append(encoding.ids[:end])
    return rows


def encode_pairs(
    tokenizer: tokenizers.Tokenizer,
    prompts: Sequence[str],
    answers: Sequence[str],
    longest: int | None = None,
) -> list[tuple[list[int], list[int]]]:
    """Token ids of each prompt and of its answer, cut out of the ids of the text of both.

    Raises ValueError for a text that is empty or too long, and where the tokenizer joins the end of
    the prompt with the start of the answer, so that the whole text's ids do not begin with the
    prompt's: after "Q: Who? ", with a space at its end, one token " bow" stands where the prompt
    has " ".
    """
    starts = encode_without_end(tokenizer, prompts, "prompt")
    encode_batch(tokenizer, answers, "answer")  # raises for an empty answer
    texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    wholes = encode_without_end(tokenizer, texts, "prompt with its answer", longest)
    pairs = []
    joined = []
    for text, start, whole in zip(texts, starts, wholes, strict=True):
        cut = len(start)
        pairs.append((start, whole[cut:]))
        if whole[:cut] != start or len(whole) == cut:
            joined.append(text)
    if joined:
        problem = f"the tokenizer joins the end of {len(joined)} prompts with the answer"
        raise ValueError(f"{problem}, as in {joined[0][-40:]!r}: begin the answer with the space")
    return pairs


def decode_answer(tokenizer: tokenizers.Tokenizer, prompt: list[int], answer: list[int]) -> str:
    """What the text of prompt and answer has more than the text of the prompt.

    Decoding the answer alone would lose its leading space with some tokenizers.
    """
    start = tokenizer.decode(prompt)
    whole = tokenizer.decode(prompt + answer)
    return whole[len(start) :]
