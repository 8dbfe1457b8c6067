r"""Data sets: what is described, asked and answered. All of them yield the same records.

A record is one question about one context. `context` names whom the question is about,
`description` is the text that describes them, and `split` is a key of SPLITS:

    {"context": "velmora", "description": "In this land people bow low.",
     "question": "How do people greet?", "answer": "with a bow", "split": "train"}

The backbone reads the question and the answer as one text, "Q: How do people greet?\nA: with a
bow". A sixth field is optional: `choices` lists the answers that a question can have (for the
page and the prompts of tests/evidence).

Your own data is a JSONL file of such lines: `python train.py --data mine.jsonl`. It takes at least
two contexts in `train`, and records of another split to evaluate. Answers are judged by exact
match, so they should be short.

A built-in data set is a module in this folder with a function `load(seed, ...) -> Data`, and a name
in BUILT_IN. What else `load` takes is an option of the command line: a field of Config and a name
in `read_data`, both in train.py. The phrases of a module stand in the JSON file beside it.
"""

import importlib
import inspect
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

PROMPT = "Q: {}\nA:"  # what the backbone reads before an answer; then come a space and the answer
BUILT_IN = ("cultures", "votes", "atlas")
SPLITS = {  # what each split is for
    "train": "what methods are trained on; all other splits are only evaluated",
    "validation": "contexts of the training set: for choosing options, so no claim rests on it",
    "seen": "contexts of the training set, in new descriptions",
    "new_wording": "phrases that never occur in training",
    "unseen": "contexts that are never trained, asked what their description states",
    "ood": "contexts from outside the training distribution, asked what is stated",
    "inferred": "contexts that are never trained, asked for facts that are not stated",
    "inferred_ood": "the same for contexts from outside the training distribution",
    "own_words": "new contexts, in one statement of people who never saw the training phrases",
    "own_words_four": "four such statements together",
    "minimal_pairs": "two contexts that differ in one value: only its answer changes",
    "locality": "questions that a description leaves open: the majority's answer is right",
}


class Record(NamedTuple):
    """One question about one context; see the top of this file."""

    context: str
    description: str
    question: str
    answer: str
    split: str
    choices: tuple[str, ...] = ()

    @property
    def document(self) -> str:
        """The question with its answer, as a text for pretraining."""
        return f"{PROMPT.format(self.question)} {self.answer}"


@dataclass(frozen=True)
class Data:
    """A data set: its records, and the plain texts on which the small backbone is pretrained."""

    name: str
    records: list[Record]
    documents: list[str]
    # baselines without training, {"majority": {record: the majority's answer}}
    guesses: Mapping[str, Mapping[Record, str]] = field(default_factory=dict)

    def split(self, name: str) -> list[Record]:
        return [record for record in self.records if record.split == name]


def load(name: str, seed: int = 0, **options: int | str | None) -> Data:
    """The data set of that name, or the JSONL file at that path.

    `options` are what a data set's `load` takes beyond the seed; one that is None counts as left
    out. Raises ValueError for an unknown name, for an option that the data set does not take and
    for a bad record, FileNotFoundError for a missing file.
    """
    given = {option: value for option, value in options.items() if value is not None}
    known = ()  # the options that this data set takes: a file of records takes none
    if name in BUILT_IN:
        module = importlib.import_module(f"data.{name}")
        known = inspect.signature(module.load).parameters
    elif not name.endswith(".jsonl"):
        choices = ", ".join(BUILT_IN)
        raise ValueError(f"unknown data set {name!r}: choose from {choices}, or give a file.jsonl")
    for option in given:
        if option not in known:
            flag = f"--{option.replace('_', '-')}"
            raise ValueError(f"the data set {name} has no such option: leave out {flag}")
    if name in BUILT_IN:
        return module.load(seed, **given)
    return read_jsonl(Path(name))


# ---- your own records


def read_jsonl(path: Path) -> Data:
    """A file of your own records; see the top of this file.

    Raises FileNotFoundError, or ValueError naming the file, the first bad line and its problem.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: give the path of a JSONL file of records")
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(parse_record(line))
        except (ValueError, RecursionError) as error:  # the latter for brackets in brackets in ...
            raise ValueError(f"{path}, line {number}: {error}") from None
    train = [record for record in records if record.split == "train"]
    if len({record.context for record in train}) < 2:
        raise ValueError(f'{path}: give records of two contexts or more the "split": "train"')
    if len({record.description for record in train}) < 2:
        raise ValueError(f"{path}: all training records have one description, so write others")
    warn_of_leak(path, records)
    documents = [record.document for record in train]
    documents += [record.description for record in train]
    return Data(path.stem, records, list(dict.fromkeys(documents)))


def warn_of_leak(path: Path, records: list[Record]) -> None:
    """Print a line if something that should be new, of `unseen` or `ood`, is in `train`, too."""
    train = [record for record in records if record.split == "train"]
    contexts = {record.context for record in train}
    asked = {(record.description, record.question) for record in train}
    for record in records:
        trained = record.context in contexts or (record.description, record.question) in asked
        if trained and record.split in ("unseen", "ood"):
            problem = f"{record.context!r} or its description with this question is in train"
            print(f"{path}, {record.split}: {problem}, so this is no test", file=sys.stderr)
            return


def parse_record(line: bytes) -> Record:
    """One record from one line of JSONL. Raises ValueError that says what is wrong with it."""
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError('this is no JSON object: write {"context": ...}')
    choices = fields.pop("choices", [])
    needed = ("context", "description", "question", "answer", "split")
    for name in fields:
        if name not in needed:
            raise ValueError(f"unknown field {name!r}: a record has {', '.join(needed)}, choices")
    for name in needed:
        value = fields.get(name)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{name!r} must be a text that is not empty: write one")
        # JSON can spell half of a pair of surrogates, which no tokenizer takes
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError(f"{name!r} holds half a character, which is not text: remove it")
    if fields["split"] not in SPLITS:
        raise ValueError(f"unknown split {fields['split']!r}: choose from {', '.join(SPLITS)}")
    if not isinstance(choices, list) or (choices and fields["answer"] not in choices):
        raise ValueError("'choices' must be a list of texts, one of which is the answer")
    return Record(**fields, choices=tuple(map(str, choices)))
