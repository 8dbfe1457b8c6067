"""Super-NaturalInstructions, the data the paper trains on: the description says what to do, the prompt is the input.

    In this task, you are given a country and you need to return the capital city    "Input: Peru\\nOutput:" -> " Lima"

A folder holds task files as they are published, `taskNNN_name.json`: their Definition is a description, and a JSON
file {task: [text, ...]} may give more of them. Where an instance has several outputs, the first is the answer.

What the backbone has read, its `documents`: every input with its output, of all tasks and all splits, unseen tasks too,
and no description; instances are repeated so that each task has the same share of the text, and a short fact is read
often. So it may know every answer by heart, as a large model knows its facts; what it cannot know is which task is
meant. `frozen` and `lora` show how far that knowledge goes without being told.

- Inputs are split by a hash, for all tasks at once: 15 % `validation`, 25 % `seen` and `new_wording`, the rest `train`.
- The Definition is always trained; of the other descriptions of a trained task 15 %, by a hash, are `new_wording`.
- `unseen` tasks are those of `UNSEEN`, and of tasks not listed in `FAMILIES` one in five, by a hash; each only if a
  trained task has inputs of the same form, and none at all unless there are two of them.
- Left out and counted: an input that its task had before, an empty one, and one over `LONGEST` bytes with its output.
  A description over `WORDY` bytes is cut behind its last sentence that fits; one that two tasks share is left out.
"""

import hashlib
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from data import Data, Record, check_text, parse_json
from data._download import download

ADDRESS = "https://raw.githubusercontent.com/allenai/natural-instructions/master/tasks/"
CACHE = Path("out/instructions")
PROMPT = "Input: {}\nOutput:"
LONGEST, WORDY = 200, 255  # bytes, so at most as many tokens: of an input with its output, and of a description
VALIDATION, HELD_OUT, NEW_WORDING, UNLISTED = 15, 25, 15, 20  # per cent
ROWS = 8  # training rows for a description, or as many more as it takes to use every instance
EVALUATED = 100  # rows of a task in a split, at most

OTHER, UNTOLD = "other tasks", ("countries", "integers", "letters")  # whose inputs do not say what to do with them
FAMILIES = {  # the tasks that are downloaded, by what their inputs are
    "countries": """task1146_country_capital task1147_country_currency task1317_country_calling_code
        task1320_country_domain_tld task1321_country_continent""",
    "integers": """task205_remove_even_elements task206_collatz_conjecture task366_synthetic_return_primes
        task1089_check_monotonic_array task1150_delete_max_min task1151_swap_max_min task1444_round_power_of_two""",
    "letters": "task1188_count_max_freq_char task1316_remove_duplicates_string",
    OTHER: """task039_qasc_find_overlapping_words task063_first_i_elements
        task064_all_elements_except_first_i task078_all_elements_except_last_i task079_conala_concat_strings
        task091_all_elements_from_index_i_to_j task092_check_prime_classification
        task161_count_words_containing_letter task162_count_words_starting_with_letter
        task243_count_elements_in_set_intersection task244_count_elements_in_set_union
        task377_remove_words_of_given_length task378_reverse_words_of_given_length
        task1189_check_char_in_string task1332_check_leap_year task1403_check_validity_date_mmddyyyy""",
}
LISTED = {task: family for family, tasks in FAMILIES.items() for task in tasks.split()}
UNSEEN = {
    "task162_count_words_starting_with_letter",
    "task244_count_elements_in_set_union",
    "task378_reverse_words_of_given_length",
    "task1089_check_monotonic_array",
    "task1332_check_leap_year",
}


class Task(NamedTuple):
    """What a task file says: its Definition, and {input: output}, stripped; and how many instances are left out."""

    definition: str
    instances: dict[str, str]
    left_out: Counter


def percent(*parts: object) -> int:
    """A number from 0 to 99, the same in every process for the same parts."""
    digest = hashlib.sha256("\n".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100


def form(text: str) -> str:
    """What an input looks like: quotations emptied, numbers and words made alike, lists of them made one.

    >>> form("[140, 134, 12]"), form("jDZUwk,j"), form("Sentence: 'two dogs'. How many words contain the letter 'c'")
    ('[0]', 'a', "a: ''. a ''")
    """
    text = re.sub(r"'[^']*'", "''", text)
    text = re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", text))
    return re.sub(r"([0a]|'')(?:[ ,]+\1)+", r"\1", text)


# ---- files


def parse_task(content: bytes) -> Task:
    """One task file. Raises ValueError that says what is wrong with it, if anything is."""
    fields = parse_json(content)
    definition, listed = fields.get("Definition"), fields.get("Instances")
    for text in definition if isinstance(definition, list) and definition else [definition]:
        check_text("Definition", text)
    definition = " ".join(definition) if isinstance(definition, list) else definition
    if not isinstance(listed, list):
        raise ValueError("it has no list of Instances")
    instances, left_out = {}, Counter()
    for number, instance in enumerate(listed, start=1):
        if not isinstance(instance, dict) or not isinstance(instance.get("output"), list) or not instance["output"]:
            raise ValueError(f'instance {number} is not {{"input": a text, "output": [a text, ...]}}')
        pair = [instance.get("input"), instance["output"][0]]
        for name, text in zip(("input", "output"), pair, strict=True):
            if not isinstance(text, str) or text.strip():  # an empty one is only left out
                check_text(f"{name} of instance {number}", text)
        given, answer = (text.strip() for text in pair)
        if not given or not answer:
            left_out["empty"] += 1
        elif given in instances:
            left_out["repeated"] += 1
        elif len((given + answer).encode()) > LONGEST:
            left_out[f"over {LONGEST} bytes"] += 1
        else:
            instances[given] = answer
    return Task(definition, instances, left_out)


def note(what: object, why: object) -> None:
    """One line on stderr: what is left out, and why."""
    print(f"left out {what}: {' '.join(str(why).split())}", file=sys.stderr)


def read_folder(folder: Path, seed: int) -> dict[str, Task]:
    """{name: task} of the task files in a folder; a file that cannot be used is named on stderr.

    Raises FileNotFoundError if there is no such folder, ValueError if no file in it can be used.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder}: give one of task files, or leave out --data-path to download some"
        )
    tasks = {}
    for file in sorted(folder.glob("*.json")):
        try:
            task = parse_task(file.read_bytes())
            if not {"train", "seen"} <= {split_of(seed, given) for given in task.instances}:
                raise ValueError(
                    f"{len(task.instances)} usable instances are too few to train on some and hold out others"
                )
            tasks[file.stem] = task
        except (ValueError, OSError) as error:
            note(file, error)
    if not tasks:
        raise ValueError(f"{folder} holds no task file that can be used: put taskNNN_name.json files there")
    return tasks


def download_tasks() -> Path:
    """The folder of the listed tasks, downloaded where they are missing. Raises FileNotFoundError if one fails."""
    for task in tqdm(LISTED, desc="tasks", disable=all((CACHE / f"{task}.json").is_file() for task in LISTED)):
        download(f"{ADDRESS}{task}.json", CACHE / f"{task}.json", parse_task)
    return CACHE


def read_descriptions(path: str | None) -> dict[str, list[str]]:
    """{task: texts} of a file of descriptions. Raises FileNotFoundError, or ValueError that says what is wrong."""
    if path is None:
        return {}
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}: give a JSON file {{task: [text, ...]}} of descriptions")
    try:
        said = parse_json(Path(path).read_bytes())
        for task, texts in said.items():
            if not isinstance(texts, list):
                raise ValueError(f"{task!r} has {type(texts).__name__}, not a list of texts")
            for text in texts:
                check_text(f"a description of {task}", text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return said


def cut(text: str) -> str:
    """The text up to its last sentence that ends within WORDY bytes; up to a word where none does."""
    if len(text.encode()) <= WORDY:
        return text
    head = text.encode()[: WORDY + 1].decode(errors="ignore")  # one more, to see whether a word ends there
    end = max(head.rfind(mark) + 1 for mark in (". ", "! ", "? ")) or head.rfind(" ")
    return head[: end if end > 0 else -1]


# ---- splits


def unseen_tasks(tasks: dict[str, Task]) -> set[str]:
    """Which tasks are held out whole; see the top of this file."""
    forms = {name: Counter(map(form, task.instances)).most_common(1)[0][0] for name, task in tasks.items()}
    held_out = {name for name in tasks if (name in UNSEEN if name in LISTED else percent(name) < UNLISTED)}
    trained = {forms[name] for name in tasks if name not in held_out}
    unseen = {name for name in held_out if forms[name] in trained}
    return unseen if len(unseen) > 1 else set()


def split_of(seed: int, given: str) -> str:
    """The split of an input, whatever its task, if the task is trained."""
    chance = percent(seed, given)
    return "validation" if chance < VALIDATION else "seen" if chance < VALIDATION + HELD_OUT else "train"


def train_rows(inputs: list[str], descriptions: list[str]) -> Iterator[tuple[str, str]]:
    """(description, input): ROWS distinct inputs for each description, more if it takes that to use every input."""
    share = min(len(inputs), max(ROWS, -(-len(inputs) // len(descriptions))))
    for number, text in enumerate(descriptions):
        yield from ((text, inputs[(number * share + i) % len(inputs)]) for i in range(share))


def told_apart(tasks: dict[str, Task], said: dict[str, list[str]]) -> tuple[dict[str, list[str]], int]:
    """The descriptions of each task, its Definition first, without those of two tasks; and how many had to be cut.

    A task that is left with none is taken out of `tasks` and named on stderr. Raises ValueError if none is left.
    """
    whole = {name: [" ".join(text.split()) for text in [tasks[name].definition, *said.get(name, [])]] for name in tasks}
    texts = {name: list(dict.fromkeys(map(cut, several))) for name, several in whole.items()}
    owners = Counter(text for several in texts.values() for text in several)
    texts = {name: [text for text in several if owners[text] == 1] for name, several in texts.items()}
    for name in [name for name in tasks if not texts[name]]:
        note(name, "another task has its description too: tell them apart with --descriptions")
        del tasks[name]
    if not tasks:
        raise ValueError("all tasks have the same description: tell them apart with --descriptions")
    return texts, sum(len(text.encode()) > WORDY for several in whole.values() for text in several)


def rows_of(task: Task, texts: list[str], unseen: bool, seed: int) -> list[tuple[str, str, str]]:
    """(split, description, input) of every row of one task."""
    rng = random.Random(seed)
    new = [text for text in texts[1:] if not unseen and percent(seed, text) < NEW_WORDING]
    known = [text for text in texts if text not in set(new)]
    inputs: dict[str, list[str]] = {"train": [], "validation": [], "seen": [], "unseen": []}
    for given in rng.sample(list(task.instances), len(task.instances)):
        inputs["unseen" if unseen else split_of(seed, given)].append(given)
    rows = [("train", *pair) for pair in train_rows(inputs["train"], known)]
    for split in ("validation", "seen", "unseen"):
        rows += [(split, rng.choice(known), given) for given in inputs[split][:EVALUATED]]
    return rows + [("new_wording", rng.choice(new), given) for given in inputs["seen"][:EVALUATED] if new]


def load(path: str | None, seed: int, descriptions: str | None = None) -> Data:
    """The data set, from the folder at `path` or downloaded; `descriptions` is a JSON file of more of them.

    Says on stderr what is left out. Raises FileNotFoundError, or ValueError for a file of descriptions that is no
    such file or if no task is left.
    """
    said = read_descriptions(descriptions)
    folder = Path(path) if path else download_tasks()
    tasks = read_folder(folder, seed)
    texts, cuts = told_apart(tasks, said)
    unseen = unseen_tasks(tasks)
    read = {name: [f"{PROMPT.format(x)} {y}" for x, y in task.instances.items()] for name, task in tasks.items()}
    most = max(len("".join(several)) for several in read.values())
    records, documents = [], []
    for name, task in tasks.items():
        for split, text, given in rows_of(task, texts[name], name in unseen, seed):
            records.append(Record(name, text, PROMPT.format(given), f" {task.instances[given]}", split))
        documents += islice(cycle(read[name]), round(len(read[name]) * most / len("".join(read[name]))))
    left_out = Counter(files=len(list(folder.glob("*.json"))) - len(tasks))
    for task in tasks.values():
        left_out.update(task.left_out)
    print(
        f"{len(tasks)} tasks, {len(unseen)} of them unseen, {sum(len(task.instances) for task in tasks.values())} "
        f"instances; left out: {', '.join(f'{count} {what}' for what, count in left_out.items())}; "
        f"descriptions cut to {WORDY} bytes: {cuts}",
        file=sys.stderr,
    )
    families = {family: [name for name in tasks if LISTED.get(name, OTHER) == family] for family in FAMILIES}
    untold = [name for family in UNTOLD for name in families[family] if name not in unseen]
    families = {family: families[family] for family in UNTOLD} | {"the three": untold, OTHER: families[OTHER]}
    return Data("instructions", records, documents, template=PROMPT, families=families)
