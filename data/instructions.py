"""Super-NaturalInstructions, the data the paper trains on.

    description   In this task, you are given a country and you need to return the capital city ...
    prompt        Input: Peru\\nOutput:
    answer        Lima

    python train.py --data instructions --data-path FOLDER --descriptions FILE --preset instructions

FOLDER holds task files as they are published, `taskNNN_name.json`. The Definition of a task is a
description of it; FILE, a JSON file {"taskNNN_name": [text, ...]}, may give more. Where an instance
has several outputs, the first is the answer. Without --data-path the tasks of instructions.json are
downloaded to out/instructions; a broken download continues with the same command. That file has
`families`, {family: tasks}, and `unseen`, the tasks that are held out whole. `--preset
instructions` is for some hundred instances a task; for full files, which have some thousands, take
`--preset gpu`.

What the backbone has read, its `documents`: every input with its output, of all tasks and all
splits, unseen tasks too, and no description. Instances are repeated so that each task has the same
share of the text. So the backbone may know every answer by heart, as a large model knows its facts,
but not which task is meant. The rows ask whether it gives the right one of several known answers,
not whether it can compute a new one. `frozen` and `lora` show how far that goes without a
description.

- `train`, `validation`, `seen`: trained tasks. A hash splits the inputs, for all tasks at once.
- `new_wording`: the inputs of `seen`, in descriptions that are held out by a hash; never the
  Definition.
- `unseen`: whole tasks, those of `UNSEEN`, and one in five of the tasks that are not listed, by a
  hash. Each must have inputs of the same form as a trained task, and there must be two.
- Left out and counted: an input that its task had before, an empty one, and one over `LONGEST`
  bytes with its output. A description over `WORDY` bytes is cut behind its last sentence that fits;
  one that two tasks share is left out. A file that cannot be used is named on stderr.

Results are also shown by family. Many tasks share the inputs of `countries`, `integers` and
`letters`, together "the three", so there only the description says what to do. An input of "other
tasks" often gives its task away. Expect gains on the three; on the others and on `unseen` tasks,
with so few tasks to learn from, adapting may lose against the frozen model. The table's `majority`
row is a task's most frequent answer, which is often right where answers are yes or no.
"""

import json
import math
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from data import Data, Record, check_text, parse_json, percent
from data._download import download

ADDRESS = "https://raw.githubusercontent.com/allenai/natural-instructions/master/tasks/"
CACHE = Path("out/instructions")
PROMPT = "Input: {}\nOutput:"
LONGEST = 200  # bytes of an input with its output, so at most as many tokens
WORDY = 255  # bytes of a description
VALIDATION = 15  # per cent of the inputs
HELD_OUT = 25  # per cent of the inputs
NEW_WORDING = 15  # per cent of the descriptions of a task
UNLISTED = 20  # per cent of the tasks that are not listed
ROWS = 8  # training rows for a description, or as many more as it takes to use every instance
EVALUATED = 100  # rows of a task in a split, at most

TASKS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
FAMILIES = TASKS["families"]
UNSEEN = set(TASKS["unseen"])
LISTED = {task: family for family, tasks in FAMILIES.items() for task in tasks}
OTHER = "other tasks"


class Task(NamedTuple):
    """A task file: its Definition, {input: output}, and {reason: instances left out}."""

    definition: str
    instances: dict[str, str]
    left_out: Counter


def form(text: str) -> str:
    """What an input looks like: quotations empty, numbers and words made alike, lists made one.

    >>> form("[140, 134, 12]"), form("jDZUwk,j"), form("In 'two dogs', how often is the letter 'c'")
    ('[0]', 'a', "a '', a ''")
    """
    text = re.sub(r"'[^']*'", "''", text)
    text = re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", text))
    return re.sub(r"([0a]|'')(?:[ ,]+\1)+", r"\1", text)


# ---- files


def parse_task(content: bytes) -> Task:
    """One task file. Raises ValueError that says what is wrong with it, if anything is."""
    fields = parse_json(content)
    definition = fields.get("Definition")
    for text in definition if isinstance(definition, list) and definition else [definition]:
        check_text("Definition", text)
    if isinstance(definition, list):
        definition = " ".join(definition)
    listed = fields.get("Instances")
    if not isinstance(listed, list):
        raise ValueError("it has no list of Instances")
    instances = {}
    left_out = Counter()
    for number, instance in enumerate(listed, start=1):
        outputs = instance.get("output") if isinstance(instance, dict) else None
        if not isinstance(outputs, list) or not outputs:
            expected = '{"input": a text, "output": [a text, ...]}'
            raise ValueError(f"instance {number} is not {expected}")
        pair = {"input": instance.get("input"), "output": outputs[0]}
        for name, text in pair.items():
            if not isinstance(text, str) or text.strip():  # an empty one is only left out
                check_text(f"{name} of instance {number}", text)
        given, answer = (text.strip() for text in pair.values())
        if not given or not answer:
            left_out["empty"] += 1
        elif given in instances:
            left_out["repeated"] += 1
        elif len((given + answer).encode()) > LONGEST:
            left_out[f"over {LONGEST} bytes"] += 1
        else:
            instances[given] = answer
    return Task(definition, instances, left_out)


def warn_left_out(what: object, why: object) -> None:
    print(f"left out {what}: {' '.join(str(why).split())}", file=sys.stderr)


def read_folder(folder: Path, seed: int) -> dict[str, Task]:
    """{name: task} of the task files in a folder; a file that cannot be used is named on stderr.

    Raises FileNotFoundError if there is no such folder, ValueError if no file in it can be used.
    """
    if not folder.is_dir():
        hint = "give one of task files, or leave out --data-path to download some"
        raise FileNotFoundError(f"no folder {folder}: {hint}")
    tasks = {}
    for file in sorted(folder.glob("*.json")):
        try:
            task = parse_task(file.read_bytes())
            if not {"train", "seen"} <= {split_of(seed, given) for given in task.instances}:
                few = f"{len(task.instances)} usable instances are too few"
                raise ValueError(f"{few} to train on some and hold out others")
            tasks[file.stem] = task
        except (ValueError, OSError) as error:
            warn_left_out(file, error)
    if not tasks:
        hint = "put taskNNN_name.json files there"
        raise ValueError(f"{folder} holds no task file that can be used: {hint}")
    return tasks


def download_tasks() -> Path:
    """The folder of the listed tasks; those that are missing are downloaded.

    Raises FileNotFoundError if one cannot be.
    """
    files = {task: CACHE / f"{task}.json" for task in LISTED}
    complete = all(file.is_file() for file in files.values())
    for task, file in tqdm(files.items(), desc="tasks", disable=complete):
        download(f"{ADDRESS}{task}.json", file, parse_task)
    return CACHE


def read_descriptions(path: str | None) -> dict[str, list[str]]:
    """{task: texts} of a file of descriptions, none without a path.

    Raises FileNotFoundError, or ValueError that says what is wrong.
    """
    if path is None:
        return {}
    if not Path(path).is_file():
        hint = "give a JSON file {task: [text, ...]} of descriptions"
        raise FileNotFoundError(f"no file {path}: {hint}")
    try:
        descriptions = parse_json(Path(path).read_bytes())
        for task, texts in descriptions.items():
            if not isinstance(texts, list):
                raise ValueError(f"{task!r} has {type(texts).__name__}, not a list of texts")
            for text in texts:
                check_text(f"a description of {task}", text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return descriptions


def cut(text: str) -> str:
    """The text up to its last sentence that ends within WORDY bytes; up to a word if none does."""
    if len(text.encode()) <= WORDY:
        return text
    head = text.encode()[: WORDY + 1].decode(errors="ignore")  # one more: may a word end there?
    end = max(head.rfind(mark) + 1 for mark in (". ", "! ", "? ")) or head.rfind(" ")
    return head[: end if end > 0 else -1]


# ---- splits


def unseen_tasks(tasks: dict[str, Task]) -> set[str]:
    """The tasks that are held out whole; see the top of this file."""
    forms = {}
    for name, task in tasks.items():
        forms[name] = Counter(map(form, task.instances)).most_common(1)[0][0]
    unlisted = tasks.keys() - LISTED.keys()
    held_out = UNSEEN | {name for name in unlisted if percent(name) < UNLISTED}
    trained = {forms[name] for name in tasks if name not in held_out}
    unseen = {name for name in tasks if name in held_out and forms[name] in trained}
    return unseen if len(unseen) > 1 else set()


def split_of(seed: int, given: str) -> str:
    """The split of an input of a trained task, the same for all tasks."""
    chance = percent(f"{seed}\n{given}")
    if chance < VALIDATION:
        return "validation"
    return "seen" if chance < VALIDATION + HELD_OUT else "train"


def train_rows(inputs: list[str], descriptions: list[str]) -> Iterator[tuple[str, str]]:
    """(description, input): ROWS inputs for each description, more if needed to use every input."""
    share = min(len(inputs), max(ROWS, math.ceil(len(inputs) / len(descriptions))))
    for number, text in enumerate(descriptions):
        for i in range(number * share, (number + 1) * share):
            yield text, inputs[i % len(inputs)]


def own_descriptions(
    tasks: dict[str, Task], more: dict[str, list[str]]
) -> tuple[dict[str, list[str]], int]:
    """The descriptions of each task that no other has, its Definition first; how many were cut.

    A task that has none is named on stderr and left out. Raises ValueError if all are.
    """
    hint = "tell them apart with --descriptions"
    texts = {}
    cuts = 0
    for name, task in tasks.items():
        whole = [" ".join(text.split()) for text in [task.definition, *more.get(name, [])]]
        texts[name] = list(dict.fromkeys(map(cut, whole)))
        cuts += sum(len(text.encode()) > WORDY for text in whole)
    owners = Counter(text for several in texts.values() for text in several)
    own = {}
    for name, several in texts.items():
        if found := [text for text in several if owners[text] == 1]:
            own[name] = found
        else:
            warn_left_out(name, f"another task has its description too: {hint}")
    if not own:
        raise ValueError(f"all tasks have the same description: {hint}")
    return own, cuts


def rows_of(task: Task, texts: list[str], unseen: bool, seed: int) -> list[tuple[str, str, str]]:
    """(split, description, input) of every row of one task."""
    rng = random.Random(seed)
    known = texts[:1]
    new = []
    for text in texts[1:]:
        held_out = not unseen and percent(f"{seed}\n{text}") < NEW_WORDING
        (new if held_out else known).append(text)
    inputs: dict[str, list[str]] = {"train": [], "validation": [], "seen": [], "unseen": []}
    for given in rng.sample(list(task.instances), len(task.instances)):
        inputs["unseen" if unseen else split_of(seed, given)].append(given)
    rows = [("train", *pair) for pair in train_rows(inputs["train"], known)]
    for split in ("validation", "seen", "unseen"):
        rows += [(split, rng.choice(known), given) for given in inputs[split][:EVALUATED]]
    if new:
        rows += [("new_wording", rng.choice(new), given) for given in inputs["seen"][:EVALUATED]]
    return rows


def pretraining_documents(tasks: dict[str, Task]) -> list[str]:
    """Every input with its output, repeated until each task has as much text as the longest."""
    read = [[f"{PROMPT.format(x)} {y}" for x, y in t.instances.items()] for t in tasks.values()]
    lengths = [sum(map(len, texts)) for texts in read]
    longest = max(lengths)
    documents = []
    for texts, length in zip(read, lengths, strict=True):
        documents += islice(cycle(texts), round(len(texts) * longest / length))
    return documents


def families_of(tasks: dict[str, Task], unseen: set[str]) -> dict[str, list[str]]:
    """{family: tasks}; "the three" are the trained tasks of all families but "other tasks"."""
    families = {family: [] for family in FAMILIES}
    for name in tasks:
        families[LISTED.get(name, OTHER)].append(name)
    others = families.pop(OTHER)
    three = [name for names in families.values() for name in names if name not in unseen]
    return families | {"the three": three, OTHER: others}


def load(path: str | None, seed: int, descriptions: str | None = None) -> Data:
    """The data set, from the folder at `path` or downloaded, with a file of more `descriptions`.

    Says on stderr what is left out. Raises FileNotFoundError, or ValueError for a bad file of
    descriptions or if no task is left.
    """
    more = read_descriptions(descriptions)
    folder = Path(path) if path else download_tasks()
    tasks = read_folder(folder, seed)
    texts, cuts = own_descriptions(tasks, more)
    tasks = {name: tasks[name] for name in texts}
    unseen = unseen_tasks(tasks)

    records = []
    for name, task in tasks.items():
        for split, text, given in rows_of(task, texts[name], name in unseen, seed):
            answer = f" {task.instances[given]}"
            records.append(Record(name, text, PROMPT.format(given), answer, split))
    left_out = Counter(files=len(list(folder.glob("*.json"))) - len(tasks))
    for task in tasks.values():
        left_out.update(task.left_out)
    print(
        f"{len(tasks)} tasks, {len(unseen)} of them unseen, "
        f"{sum(len(task.instances) for task in tasks.values())} instances; "
        f"left out: {', '.join(f'{count} {why}' for why, count in left_out.items())}; "
        f"descriptions cut to {WORDY} bytes: {cuts}",
        file=sys.stderr,
    )
    documents = pretraining_documents(tasks)
    families = families_of(tasks, unseen)
    return Data("instructions", records, documents, template=PROMPT, families=families)
