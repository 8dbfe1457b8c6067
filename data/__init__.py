"""Data sets: one file each, all yielding the same records; no training code in here.

A record is one question asked in one context:

    {"context": "velmora", "description": "...", "prompt": "Q: ...\\nA:", "answer": " ...", "split": "train"}

A data set is a module in this folder with a function `load(path, seed) -> Data`, or any JSONL file of such records.
Where `load` also takes `contexts`, the number of training contexts can be chosen; where it takes `descriptions`, they
can come from a file. `python -m data FILE.jsonl` checks a file of your own.
"""

import importlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
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
    families: Mapping[str, list[str]] = field(default_factory=dict)  # contexts whose accuracy is also shown together

    def split(self, name: str) -> list[Record]:
        return [record for record in self.records if record.split == name]


def names() -> list[str]:
    """The built-in data sets: the modules of this folder."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def load(name: str, path: str | None = None, seed: int = 0, **options: int | str | None) -> Data:
    """The data set of that name, or the JSONL file at that path.

    `options` are what a data set's `load` takes beyond path and seed, `contexts` and `descriptions`; one that is 0,
    "" or None is as good as left out. Raises ValueError for an unknown name, an option that the data set does not
    take or a bad record, FileNotFoundError for a missing file.
    """
    if name.endswith(".jsonl") and path is not None:
        raise ValueError(f"{name} is the data itself: leave out --data-path")
    if not name.endswith(".jsonl") and name not in names():
        raise ValueError(f"unknown data set {name!r}: choose from {', '.join(names())}, or give a file.jsonl")
    module = importlib.import_module(f"data.{name}") if name in names() else None
    options = {option: value for option, value in options.items() if value}
    for option in options:
        if not module or option not in inspect.signature(module.load).parameters:
            raise ValueError(f"{name} has {option} of its own: leave out --{option}")
    return module.load(path, seed, **options) if module else read_jsonl(Path(name))


def read_jsonl(path: Path) -> Data:
    """A file of records, one JSON object a line; its backbone reads the training rows, descriptions apart.

    Raises FileNotFoundError, or ValueError naming the file, the line and what was wrong with it.
    """
    records, bad = read_lines(path)
    if bad:
        number, what = bad[0]
        raise ValueError(f"{path}, line {number}: {what} (python -m data {path} lists every bad line)")
    train = [record for record in records if record.split == "train"]
    if not train:
        raise ValueError(f'{path}: no record has "split": "train", so there is nothing to train on')
    documents = list(dict.fromkeys([r.prompt + r.answer for r in train] + [r.description for r in train]))
    free_text = sum(len(r.answer) for r in train) / len(train) > 60  # a sentence or more
    return Data(path.stem, records, documents, free_text)


def read_lines(path: Path) -> tuple[list[Record], list[tuple[int, str]]]:
    """The records of a JSONL file, and of every bad line its number and what is wrong. Raises FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: give the path of a JSONL file of records")
    records, bad = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            try:
                records.append(parse(line))
            except ValueError as error:
                bad.append((number, str(error)))
    return records, bad


def parse(line: bytes) -> Record:
    """One record from one line of JSONL. Raises ValueError that says what is wrong with it."""
    fields = parse_json(line)
    for name in Record._fields:
        if name not in fields:
            raise ValueError(f"the field {name!r} is missing")
        check_text(name, fields[name])
    if fields["split"] not in SPLITS:
        raise ValueError(f"unknown split {fields['split']!r}: choose from {', '.join(SPLITS)}")
    return Record(*(fields[name] for name in Record._fields))


def parse_json(content: bytes) -> dict:
    """The JSON object written there. Raises ValueError for what is not one, in UTF-8 and without NaN."""

    def refuse(constant: str):
        raise ValueError(f"{constant} is no JSON number")

    try:
        fields = json.loads(content.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON in UTF-8 ({error})") from None
    if not isinstance(fields, dict):
        raise ValueError(f'not a JSON object but {type(fields).__name__}: write {{"name": ...}}')
    return fields


def check_text(name: str, value: object) -> None:
    """Raise ValueError that calls the value by `name` if it is not a text, or an empty one."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name!r} is {value!r:.60}: it must be a text that is not empty")
    if "\x00" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{name!r} holds a character that is not text")
