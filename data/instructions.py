"""Super-NaturalInstructions, the data the paper trains on.

    description   In this task, you are given a country and you need to return the capital city ...
    prompt        Input: Peru\\nOutput:
    answer        Lima

    python train.py --data instructions --data-path FOLDER --descriptions FILE --preset instructions

FOLDER holds task files as they are published, `taskNNN_name.json`; without --data-path the tasks of
instructions.json are downloaded. The Definition of a task is a description of it; FILE, a JSON file
{"taskNNN_name": [text, ...]}, may give more. The first output of an instance is the answer.

The backbone reads the `documents`: every input with its output, of all tasks and splits, unseen
tasks too, and no description. Instances are repeated so that each task has the same share of the
text. So the backbone may know every answer by heart, as a large model knows its facts, but not
which task is meant. The records ask whether it gives the right one of several known answers.

- `train`, `validation`, `seen`: trained tasks. A hash splits the inputs, for all tasks at once.
- `new_wording`: the inputs of `seen`, in descriptions held out by a hash; never the Definition.
- `unseen`: whole tasks, `unseen` of instructions.json and one in five of those it does not list.
"""

import json
import math
import re
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import NamedTuple

from data import Data, Record, checked_text, download, percent

ADDRESS = "https://raw.githubusercontent.com/allenai/natural-instructions/master/tasks/"
CACHE = Path("out/instructions")
NAMES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
PROMPT = "Input: {}\nOutput:"
LONGEST = 200  # bytes of an input with its output, so at most as many tokens
WORDY = 255  # bytes of a description
VALIDATION = 15  # per cent of the inputs
HELD_OUT = 25  # per cent of the inputs
NEW_WORDING = 15  # per cent of the descriptions of a task
UNLISTED = 20  # per cent of the tasks that are not listed
ROWS = 8  # training records of a description, or as many more as it takes to use every instance
EVALUATED = 100  # records of a task in a split, at most


class Task(NamedTuple):
    definition: str
    instances: dict[str, str]  # {input: output}


def parse_task(content: bytes, left_out: Counter) -> Task:
    """One task file, or a ValueError; `left_out` counts the instances that are not used."""
    match json.loads(content):
        case {"Definition": [str(definition)] | str(definition), "Instances": [*listed]}:
            checked_text("Definition", definition)
        case _:
            raise ValueError('it is not {"Definition": [a text], "Instances": [...]}')
    instances = {}
    for number, instance in enumerate(listed, start=1):
        match instance:
            case {"input": str(text), "output": [str(output), *_]}:
                given = text.strip()
                answer = output.strip()
            case _:
                raise ValueError(f'instance {number} is not {{"input": text, "output": [text]}}')
        if not given or not answer or given in instances:
            left_out["empty or repeated"] += 1
        elif len((given + answer).encode()) > LONGEST:
            left_out[f"over {LONGEST} bytes"] += 1
        else:
            instances[given] = answer
    if len(instances) < 10:
        raise ValueError("fewer than ten instances can be used")
    return Task(definition, instances)


def read_descriptions(file: Path) -> dict[str, list[str]]:
    """{task: texts} of a JSON file. Raises ValueError that names the file."""
    try:
        descriptions = dict(json.loads(file.read_bytes()))
        for name, texts in descriptions.items():
            for text in texts if isinstance(texts, list) else [None]:
                checked_text(name, text)
    except (ValueError, OSError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} must be JSON, {{task: [text, ...]}} ({error})") from None
    return descriptions


def cut(text: str) -> str:
    """The text up to its last sentence that ends within WORDY bytes; up to there if none does."""
    head = text.encode()[:WORDY].decode(errors="ignore")
    if head == text:
        return text
    sentences = re.match(r".*[.!?](?= )", head + text[len(head)])
    return sentences[0] if sentences else head


def own_descriptions(tasks: dict[str, Task], more: dict[str, list[str]]) -> dict[str, list[str]]:
    """The descriptions of each task that no other task has, its Definition first."""
    texts = {}
    for name, task in tasks.items():
        whole = [" ".join(text.split()) for text in [task.definition, *more.get(name, [])]]
        texts[name] = list(dict.fromkeys(map(cut, whole)))
    owners = Counter(text for several in texts.values() for text in several)
    return {name: [text for text in texts[name] if owners[text] == 1] for name in tasks}


def split_of(given: str, seed: int) -> str:
    """The split of an input of a trained task, the same for all tasks."""
    chance = percent(f"{seed}\n{given}")
    if chance < VALIDATION:
        return "validation"
    return "seen" if chance < VALIDATION + HELD_OUT else "train"


def records_of(name: str, task: Task, texts: list[str], unseen: bool, seed: int) -> list[Record]:
    """The records of one task, whose descriptions are `texts`."""
    rng = Random(seed)
    new = []
    if not unseen:
        new = [text for text in texts[1:] if percent(f"{seed}\n{text}") < NEW_WORDING]
    known = [text for text in texts if text not in new]
    inputs = {"train": [], "validation": [], "seen": [], "unseen": []}
    for given in rng.sample(list(task.instances), len(task.instances)):
        split = "unseen" if unseen else split_of(given, seed)
        inputs[split].append(given)
    inputs["new_wording"] = inputs["seen"] if new else []
    chosen = []  # (split, description, input) of each record
    trained = inputs["train"]
    share = min(len(trained), max(ROWS, math.ceil(len(trained) / len(known))))  # of a description
    for number in range(share * len(known)):
        chosen.append(("train", known[number // share], trained[number % len(trained)]))
    for split in ("validation", "seen", "unseen", "new_wording"):
        for given in inputs[split][:EVALUATED]:
            text = rng.choice(new if split == "new_wording" else known)
            chosen.append((split, text, given))
    records = []
    for split, text, given in chosen:
        answer = f" {task.instances[given]}"
        records.append(Record(name, text, PROMPT.format(given), answer, split))
    return records


def pretraining_documents(tasks: dict[str, Task]) -> list[str]:
    """Every input with its output, repeated until each task has as much text as the longest."""
    read = []
    for task in tasks.values():
        read.append([f"{PROMPT.format(x)} {y}" for x, y in task.instances.items()])
    longest = max(sum(map(len, texts)) for texts in read)
    documents = []
    for texts in read:
        count = round(len(texts) * longest / sum(map(len, texts)))
        documents += [texts[number % len(texts)] for number in range(count)]
    return documents


def load(path: str | None, seed: int, descriptions: str | None = None) -> Data:
    """The data set. Says on stderr what is left out. Raises ValueError or FileNotFoundError."""
    more = read_descriptions(Path(descriptions)) if descriptions else {}
    if path is None:
        for name in NAMES["tasks"]:
            download(f"{ADDRESS}{name}.json", CACHE / f"{name}.json")
    folder = Path(path or CACHE)
    left_out = Counter()
    read = {}
    for file in sorted(folder.glob("*.json")):
        try:
            read[file.stem] = parse_task(file.read_bytes(), left_out)
        except (ValueError, OSError, RecursionError) as error:
            left_out["files"] += 1
            print(f"left out {file}: {error}", file=sys.stderr)
    texts = own_descriptions(read, more)
    tasks = {name: task for name, task in read.items() if texts[name]}
    left_out["tasks that are described like another"] = len(read) - len(tasks)
    counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
    print(f"{len(tasks)} tasks; left out: {counts or 'nothing'}", file=sys.stderr)
    if not tasks:
        raise ValueError(f"{folder} has no task that can be used: put taskNNN_name.json there")
    unseen = {name for name in tasks if name in NAMES["unseen"]}
    for name in tasks.keys() - NAMES["tasks"]:
        if percent(name) < UNLISTED:
            unseen.add(name)
    if len(unseen) < 2 or len(unseen) == len(tasks):  # one has no other to be compared with
        unseen = set()
    records = []
    for name, task in tasks.items():
        records += records_of(name, task, texts[name], name in unseen, seed)
    return Data("instructions", records, pretraining_documents(tasks), template=PROMPT)
