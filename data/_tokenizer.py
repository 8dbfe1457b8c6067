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
