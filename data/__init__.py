"""Data sets: one file each, all yielding the same records; no training code in here.

A record is one question asked in one context:

    {"context": "velmora", "description": "...", "prompt": "Q: ...\\nA:", "answer": " ...", "split": "train"}

A data set is a module in this folder with a function `load(path, seed) -> Data`, or any JSONL file of such records.
Where `load` also takes `contexts`, the number of training contexts can be chosen.
"""

import importlib
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

SPLITS = {  # what each split asks of a method; every row but those of "train" is only ever evaluated
    "train": "what methods are trained on",
    "validation": "for choosing settings, with --validate; no table shows it",
    "seen": "contexts of the training set",
    "new_wording": "phrases that never occur in training",
    "unseen": "contexts never trained",
    "ood": "contexts from outside the training distribution",
    "minimal_pairs": "pairs of contexts that differ in one value: that answer changes, the others do not",
    "locality": "questions the description says nothing about: the frozen model's answer must stay",
}


class Record(NamedTuple):
    """One row of a data set. `answer` follows `prompt` directly, so it brings its own leading space."""

    context: str
    description: str
    prompt: str
    answer: str
    split: str


@dataclass(frozen=True)
class Data:
    """A data set: records, and the plain documents on which its backbone is pretrained."""

    name: str
    records: list[Record]
    documents: list[str]
    free_text: bool = False  # answers too long to be right or wrong: judged by loss per token
    template: str = "{}"  # turns a bare question into a prompt

    def split(self, name: str) -> list[Record]:
        return [record for record in self.records if record.split == name]


def names() -> list[str]:
    """The built-in data sets: the modules of this folder."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def load(name: str, path: str | None = None, seed: int = 0, contexts: int = 0) -> Data:
    """The data set of that name, or the JSONL file at that path; `contexts` 0 leaves its own number of them.

    Raises ValueError for an unknown name or a bad record, FileNotFoundError for a missing file.
    """
    own_number = f"{name} has a number of contexts of its own: leave out --contexts"
    if name.endswith(".jsonl"):
        if path is not None:
            raise ValueError(f"{name} is the data itself: leave out --data-path")
        if contexts:
            raise ValueError(own_number)
        return read_jsonl(Path(name))
    if name not in names():
        raise ValueError(f"unknown data set {name!r}: choose from {', '.join(names())}, or give a file.jsonl")
    module = importlib.import_module(f"data.{name}")
    if not contexts:
        return module.load(path, seed)
    if "contexts" not in inspect.signature(module.load).parameters:
        raise ValueError(own_number)
    return module.load(path, seed, contexts=contexts)


def read_jsonl(path: Path) -> Data:
    """A file of records, one JSON object a line; its backbone reads the training rows, descriptions apart.

    Raises FileNotFoundError, or ValueError naming the file, the line and what was wrong with it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: give the path of a JSONL file of records")
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            try:
                records.append(parse(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    train = [record for record in records if record.split == "train"]
    if not train:
        raise ValueError(f'{path}: no record has "split": "train", so there is nothing to train on')
    documents = list(dict.fromkeys([r.prompt + r.answer for r in train] + [r.description for r in train]))
    free_text = sum(len(r.answer) for r in train) / len(train) > 60  # a sentence or more
    return Data(path.stem, records, documents, free_text)


def parse(line: bytes) -> Record:
    """One record from one line of JSONL. Raises ValueError that says what is wrong with it."""
    try:
        fields = json.loads(line.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON in UTF-8 ({error})") from None
    if not isinstance(fields, dict):
        raise ValueError(f'not a JSON object but {type(fields).__name__}: write {{"context": ..., "description": ...}}')
    for name in Record._fields:
        if name not in fields:
            raise ValueError(f"the field {name!r} is missing")
        value = fields[name]
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{name!r} is {value!r}: it must be a text that is not empty")
        if "\x00" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"{name!r} holds a character that is not text")
    if fields["split"] not in SPLITS:
        raise ValueError(f"unknown split {fields['split']!r}: choose from {', '.join(SPLITS)}")
    return Record(*(fields[name] for name in Record._fields))
