"""Tokenizers: one trained on a data set, or that of a pretrained model."""

from collections.abc import Sequence
from pathlib import Path

import tokenizers

PAD, EOS = "<pad>", "<eos>"  # ids 0 and 1 of a trained one


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer: it can write any text, so no character is unknown."""
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
    return from_json(tokenizer.to_str())


def from_json(text: str) -> tokenizers.Tokenizer:
    """A tokenizer saved by `to_str`; "<eos>" typed by a user is five characters of text."""
    tokenizer = tokenizers.Tokenizer.from_str(text)
    tokenizer.encode_special_tokens = True
    return tokenizer


def read_tokenizer(folder: Path, vocab_size: int) -> tokenizers.Tokenizer:
    """The tokenizer of a pretrained model, set neither to cut nor to pad.

    Raises FileNotFoundError, or ValueError for a damaged file or one of over `vocab_size` ids.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: a model is of no use without its tokenizer")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower kind
        raise ValueError(f"{path} is damaged ({error}): download it again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    size = max(tokenizer.get_vocab().values()) + 1
    if size > vocab_size:
        raise ValueError(f"{path} has {size} ids, the model {vocab_size}: they do not go together")
    return tokenizer


def encode(
    tokenizer: tokenizers.Tokenizer, texts: Sequence[str], what: str, longest: int | None
) -> list[list[int]]:
    """Token ids of each text. Raises ValueError for an empty text, or one over `longest`."""
    try:  # an answer gets no BOS: it goes on
        rows = tokenizer.encode_batch([*texts], add_special_tokens=what != "answer")
    except TypeError:
        raise ValueError(f"the {what} holds bytes that are not text: remove them") from None
    rows = [row.ids for row in rows]
    for text, row in zip(texts, rows, strict=True):
        if not text.strip():
            raise ValueError(f"the {what} is empty: write at least a word")
        if longest is not None and len(row) > longest:
            length = f"{len(row)} tokens long, of at most {longest}"
            raise ValueError(f"the {what} {text[:40]!r} … is {length}: shorten it")
    return rows
