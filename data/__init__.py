r"""Data sets: texts on their way to batches. Each is a file of its own; all yield the same records.

A record is one question about one context: `context` names whom the question is about,
`description` is the text that describes them, and `answer` continues `prompt` directly, so it
brings its own leading space. `SPLITS` says what each split is for.

A data set is a module in this folder with a function `load(path, seed) -> Data`. Where `load` also
takes `contexts`, the number of training contexts can be chosen; where it takes `descriptions`, more
descriptions can come from a file. The phrases of a module stand in the JSON file beside it.

Your own data is a JSONL file, which needs no module. Each line has five fields:

    {"context": "velmora", "description": "In this land people bow low.",
     "prompt": "Q: How do people greet?\nA:", "answer": " with a bow", "split": "train"}

A sixth field is optional: `choices` lists the answers that a question can have, as
[" with a bow", " with a song"].

    python -m data.cultures example.jsonl            # writes an example, with rows of every split
    python train.py --data example.jsonl

It takes at least two contexts in `train`, and records of another split to evaluate. The backbone
is pretrained on the prompts with their answers and, as texts of their own, on the descriptions of
the training records. Answers of more than 60 characters on average are judged by their loss,
shorter ones by exact match.
"""

import hashlib
import importlib
import inspect
import json
import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

SPLITS = {  # what each split is for
    "train": "what methods are trained on; all other splits are only evaluated",
    "validation": "for choosing settings, with --validate; no table shows it",
    "seen": "contexts of the training set, in new descriptions",
    "new_wording": "phrases that never occur in training",
    "unseen": "contexts that are never trained, asked what their description states",
    "ood": "contexts from outside the training distribution, asked what is stated",
    "inferred": "contexts that are never trained, asked what their description does not state",
    "inferred_ood": "the same for contexts from outside the training distribution",
    "minimal_pairs": "two contexts that differ in one value: only its answer changes",
    "locality": "questions that a description leaves open: the frozen model's answer must stay",
}


class Record(NamedTuple):
    """One question about one context; see the top of this file."""

    context: str
    description: str
    prompt: str
    answer: str
    split: str
    choices: tuple[str, ...] = ()  # all answers that the question can have; tests/evidence uses it


@dataclass(frozen=True)
class Data:
    """A data set: its records, and the plain documents on which its backbone is pretrained."""

    name: str
    records: list[Record]
    documents: list[str]
    free_text: bool = False  # answers too long to be right or wrong are judged by loss per token
    template: str = "{}"  # turns a bare question into a prompt
    # guesses that train nothing, {"majority": {record: its guessed answer}}, for the table
    references: Mapping[str, Mapping[Record, str]] = field(default_factory=dict)

    @property
    def measure(self) -> str:
        """What this data is judged by: the loss per token (nats), or the share of exact answers."""
        return "nll" if self.free_text else "accuracy"

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that tell this data from any other."""
        content = repr((self.records, self.documents))
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def split(self, name: str) -> list[Record]:
        return [record for record in self.records if record.split == name]


def names() -> list[str]:
    """The built-in data sets: the modules of this folder."""
    stems = [path.stem for path in Path(__file__).parent.glob("*.py")]
    return sorted(set(stems) - {"__init__", "tokenizer", "batches"})


def load(name: str, path: str | None = None, seed: int = 0, **options: int | str | None) -> Data:
    """The data set of that name, or the JSONL file at that path.

    `options` are what a data set's `load` takes beyond path and seed: `contexts`, `descriptions`.
    An option that is None counts as left out. Raises ValueError for an unknown name, for an option
    that the data set does not take and for a bad record, FileNotFoundError for a missing file.
    """
    options = {option: value for option, value in options.items() if value is not None}
    if name.endswith(".jsonl"):
        if path is not None or options:
            raise ValueError(f"{name} is the whole data: leave out --data-path and other options")
        return read_jsonl(Path(name))
    if name not in names():
        known = ", ".join(names())
        raise ValueError(f"unknown data set {name!r}: choose from {known}, or give a file.jsonl")
    module = importlib.import_module(f"data.{name}")
    for option in options:
        if option not in inspect.signature(module.load).parameters:
            raise ValueError(f"the data set {name} has no such option: leave out --{option}")
    return module.load(path, seed, **options)


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
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    train = [record for record in records if record.split == "train"]
    if len({record.context for record in train}) < 2:
        raise ValueError(f'{path}: give records of two contexts or more the "split": "train"')
    if len({record.description for record in train}) < 2:
        raise ValueError(f"{path}: all training records have one description, so write others")
    documents = [record.prompt + record.answer for record in train]
    documents += [record.description for record in train]
    mean_length = sum(len(record.answer) for record in train) / len(train)
    template = common_template([record.prompt for record in train])
    return Data(path.stem, records, list(dict.fromkeys(documents)), mean_length > 60, template)


def parse_record(line: bytes) -> Record:
    """One record from one line of JSONL. Raises ValueError that says what is wrong with it."""
    try:
        fields = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON in UTF-8 ({error})") from None
    if not isinstance(fields, dict):
        raise ValueError('not a JSON object: write {"context": ...}')
    texts = []
    for name in ("context", "description", "prompt", "answer", "split"):
        texts.append(checked_text(name, fields.get(name)))
    if fields["split"] not in SPLITS:
        raise ValueError(f"unknown split {fields['split']!r}: choose from {', '.join(SPLITS)}")
    choices = fields.get("choices", [])
    if not isinstance(choices, list) or (choices and fields["answer"] not in choices):
        raise ValueError("'choices' must be a list of texts, one of which is the answer")
    for choice in choices:
        checked_text("choices", choice)
    return Record(*texts, choices=tuple(dict.fromkeys(choices)))


def checked_text(name: str, value: object) -> str:
    """The value, if it is a text that says something. Raises ValueError, which names it `name`."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name!r} is {str(value)[:60]!r}: it must be a text that is not empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{name!r} holds half a character, which is not text") from None
    return value


def common_template(prompts: list[str]) -> str:
    """What all prompts have around their question: before it up to a colon, after it a line break.

    Where that would leave nothing of a prompt, or has a brace itself, there is no template.

    >>> common_template(["Q: Who rules?\\nA:", "Q: Who sings?\\nA:"])
    'Q: {}\\nA:'
    """
    # what all begin with, but no further than to its last colon and space
    start = os.path.commonprefix(prompts)
    before = start[: start.rfind(": ") + 2] if ": " in start else ""
    # what all end with, but only from its first line break on
    reversed_prompts = [prompt[::-1] for prompt in prompts]
    end = os.path.commonprefix(reversed_prompts)[::-1]
    after = end[end.find("\n") :] if "\n" in end else ""
    if "{" in before + after or len(before + after) >= min(map(len, prompts)):
        return "{}"
    return f"{before}{{}}{after}"


# ---- what several data sets need


def percent(text: str) -> int:
    """A number from 0 to 99, a hash of the text: the same in every process."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100


def download(address: str, file: Path, sha256: str | None = None) -> None:
    """Download `address` to `file`, unless the file is there already.

    No incomplete or wrong file ever stands under that name: the content is compared with what the
    server announced, and with its sha256 if that is given. Raises FileNotFoundError, which says
    what to do by hand.
    """
    if file.is_file():
        return
    try:
        with urllib.request.urlopen(address, timeout=30) as response:
            content = response.read()
            if response.length:  # bytes that were announced and did not come
                raise OSError(f"the connection broke, {response.length} bytes are missing")
    except (OSError, ValueError) as error:
        problem = str(error)
    except Exception as error:  # http.client has errors of its own kind
        problem = repr(error)
    else:
        found = hashlib.sha256(content).hexdigest()
        problem = f"its sha256 is {found}, not {sha256}" if sha256 not in (None, found) else ""
    if problem:
        raise FileNotFoundError(
            f"cannot download {file.name} ({problem}): fetch {address} by hand, put it into a "
            f"folder, and name it with --data-path"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.part")
    temporary.write_bytes(content)
    os.replace(temporary, file)
