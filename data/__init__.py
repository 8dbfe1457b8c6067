"""Data sets: one file each, all yielding the same records. There is no training code in here.

A record is one question about one context. `context` is whom the row is about, `description` the
text that says so, and `answer` follows `prompt` directly, so it brings its own leading space.
`SPLITS` says what each split is for.

A data set is a module in this folder with a function `load(path, seed) -> Data`. Where `load` also
takes `contexts`, the number of training contexts can be chosen; where it takes `descriptions`, they
can come from a file. Each module says what its data is, how it is split and what to expect. The
phrases of a module stand in the JSON file beside it.

Your own data is a JSONL file: one record a line, these five fields, each a text that is not empty.

    {"context": "velmora", "description": "In this land people bow low.",
     "prompt": "Q: How do people greet?\\nA:", "answer": " with a bow", "split": "train"}

A sixth, `choices`, may list the answers to choose from, as [" with a bow", " with a song"]: then it
is also evaluated whether the right one is the likeliest of them.

    python -m data.cultures --export example.jsonl   # an example, with rows of every split
    python -m data example.jsonl                     # every bad line, the splits, and leaks
    python train.py --data example.jsonl

It takes two contexts or more in `train`, and rows of another split to evaluate. The backbone is
pretrained on the prompts and answers of the training rows and, apart from them, on their
descriptions. Answers of more than 60 characters on average are judged by their loss, shorter ones
by exact match.
"""

import hashlib
import importlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

SPLITS = {  # what each split is for
    "train": "what methods are trained on; all other rows are only evaluated",
    "validation": "for choosing settings, with --validate; no table shows it",
    "seen": "contexts of the training set",
    "new_wording": "phrases that never occur in training",
    "unseen": "contexts that are never trained",
    "ood": "contexts from outside the training distribution",
    "minimal_pairs": "two contexts that differ in one value: its answer changes, no other does",
    "locality": "questions that the description leaves open: the frozen model's answer must stay",
}


class Record(NamedTuple):
    """One row of a data set; see the top of this file."""

    context: str
    description: str
    prompt: str
    answer: str
    split: str
    choices: tuple[str, ...] = ()  # the answers to choose from, the right one too

    @property
    def candidates(self) -> list[str]:
        """The answer, and then the others to choose from."""
        return [self.answer, *(choice for choice in self.choices if choice != self.answer)]


@dataclass(frozen=True)
class Data:
    """A data set: its records, and the plain documents on which its backbone is pretrained."""

    name: str
    records: list[Record]
    documents: list[str]
    free_text: bool = False  # answers too long to be right or wrong: judged by loss per token
    template: str = "{}"  # turns a bare question into a prompt
    families: Mapping[str, list[str]] = field(
        default_factory=dict
    )  # contexts also shown as a group

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that tell this data from any other."""
        return hashlib.sha256(repr((self.records, self.documents)).encode()).hexdigest()[:12]

    def split(self, name: str) -> list[Record]:
        return [record for record in self.records if record.split == name]


def columns(records: Sequence[Record]) -> tuple[list[str], list[str], list[str]]:
    """Prompts, answers and descriptions, in the order in which Zhyper.score takes them."""
    prompts, answers = [r.prompt for r in records], [r.answer for r in records]
    return prompts, answers, [r.description for r in records]


def names() -> list[str]:
    """The built-in data sets: the modules of this folder."""
    stems = [path.stem for path in Path(__file__).parent.glob("*.py")]
    return sorted(stem for stem in stems if not stem.startswith("_"))


def load(name: str, path: str | None = None, seed: int = 0, **options: int | str | None) -> Data:
    """The data set of that name, or the JSONL file at that path.

    `options` are what a data set's `load` takes beyond path and seed: `contexts`, `descriptions`.
    One that is None counts as left out. Raises ValueError for an unknown name, an option
    that the data set does not take or a bad record, FileNotFoundError for a missing file.
    """
    own_file = name.endswith(".jsonl")
    if own_file and path is not None:
        raise ValueError(f"{name} is the data itself: leave out --data-path")
    if not own_file and name not in names():
        choices = ", ".join(names())
        raise ValueError(f"unknown data set {name!r}: choose from {choices}, or give a file.jsonl")
    module = None if own_file else importlib.import_module(f"data.{name}")
    options = {option: value for option, value in options.items() if value is not None}
    for option in options:
        if own_file or option not in inspect.signature(module.load).parameters:
            raise ValueError(f"{name} has {option} of its own: leave out --{option}")
    return read_jsonl(Path(name)) if own_file else module.load(path, seed, **options)


def read_jsonl(path: Path) -> Data:
    """A file of your own records; see the top of this file.

    Raises FileNotFoundError, or ValueError naming the file, the line and what is wrong with it.
    """
    records, bad = read_lines(path)
    if bad:
        number, problem = bad[0]
        hint = f"python -m data {path} lists every bad line"
        raise ValueError(f"{path}, line {number}: {problem} ({hint})")
    train = [record for record in records if record.split == "train"]
    if not train:
        raise ValueError(f'{path}: no record has "split": "train", so there is nothing to train on')
    documents = [r.prompt + r.answer for r in train] + [r.description for r in train]
    free_text = sum(len(r.answer) for r in train) / len(train) > 60  # a sentence or more
    return Data(path.stem, records, list(dict.fromkeys(documents)), free_text)


def read_lines(path: Path) -> tuple[list[Record], list[tuple[int, str]]]:
    """The records of a JSONL file, and the number of every bad line with what is wrong with it.

    Raises FileNotFoundError.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: give the path of a JSONL file of records")
    records = []
    bad = []
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
    *texts, _ = Record._fields
    for name in texts:
        if name not in fields:
            raise ValueError(f"the field {name!r} is missing")
        check_text(name, fields[name])
    if fields["split"] not in SPLITS:
        raise ValueError(f"unknown split {fields['split']!r}: choose from {', '.join(SPLITS)}")
    choices = fields.get("choices", [])
    if not isinstance(choices, list) or choices and fields["answer"] not in choices:
        raise ValueError("'choices' must be a list of texts, one of which is the answer")
    for choice in choices:
        check_text("choices", choice)
    return Record(*(fields[name] for name in texts), tuple(dict.fromkeys(choices)))


def parse_json(content: bytes) -> dict:
    """The JSON object in `content`. Raises ValueError if it is none, not UTF-8 or holds a NaN."""

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
    """Raise ValueError, which names the value `name`, if it is not a text or an empty one."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name!r} is {value!r:.60}: it must be a text that is not empty")
    if "\x00" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{name!r} holds a character that is not text")


def percent(text: str) -> int:
    """A number from 0 to 99, a hash of the text: the same in every process."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100
