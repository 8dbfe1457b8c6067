"""Small tasks in words: the description says what to do, the prompt is only the input.

    description   Write only the largest number of the list.
    prompt        In: 7 3 9\\nOut:
    answer        9

This is the form of Super-NaturalInstructions, but short enough for a small GPT to learn. A family
is a set of tasks on inputs of one form, drawn from one distribution: only the description says
which task is meant, and two tasks nearly always give different answers. Opposite tasks (first and
last, sort up and down) have the same wordings but for the opposite words.

tasks.json holds `wordings`, {task: twelve sentences}, the last two of which are held out;
`opposites`, pairs of words; `words`, of which inputs are made; and `animals`, {animal: [sound,
young, home]}.

The backbone reads the `documents`: inputs followed by their output under *some* task of the family,
half of the time its first, the majority task. So it may know every function, also those of `UNSEEN`
tasks, but not which task is meant. A sixth of the documents are training wordings on their own.

Of the inputs of each family 15 % are reserved, by a hash: no document and no training record has
one, in any task. A third of them is for `validation` alone, the others are for all other splits.

- `validation`, `seen`: trained tasks in training wordings, on reserved inputs.
- `new_wording`: the same in the two wordings that are held out.
- `unseen`: the tasks of `UNSEEN`, in all their wordings.
- `minimal_pairs`: two opposite tasks on one input, in one wording but for the opposite words.

    python train.py --data tasks --preset instructions --methods frozen,lora,zhyper-diag,t2l

Expect a method that reads the description to be right mostly, except on `unseen`: the trained tasks
are too few. The backbone needs the long pretraining of this preset.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

from data import Data, Record, percent

PHRASES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
ANIMALS = PHRASES["animals"]
SOUND = {animal: facts[0] for animal, facts in ANIMALS.items()}
YOUNG = {animal: facts[1] for animal, facts in ANIMALS.items()}
HOME = {animal: facts[2] for animal, facts in ANIMALS.items()}
FAMILIES = {  # family: (what inputs are made of, how many of these: no two alike)
    "letters": ("abcdefghijklmnopqrstuvwxy", (4, 5)),
    "digits": ("123456789", (3, 4, 5)),
    "words": (PHRASES["words"], (3, 4)),
    "pair": (list(ANIMALS), (2,)),
}
PROMPT = "In: {}\nOut:"
KNOWN = slice(10)  # the wordings of a task that training may use
HELD_OUT = slice(10, 12)
DRAWS = 150  # training rows of a wording
DOCUMENTS = 10_000  # with an input
MAJORITY_SHARE = 0.5
EVALUATED = 480  # rows of each other split
RESERVED = 15  # per cent of inputs that training never has
VALIDATION = 5  # per cent of inputs, of those, that only validation has


class Task(NamedTuple):
    """A function from a list of items to the items of the answer."""

    family: str
    name: str
    rule: Callable[[list[str]], list]

    def answer(self, items: list[str]) -> str:
        """The answer to a list of items: " 9" to ["7", "3", "9"] for the task largest."""
        return "".join(f" {item}" for item in self.rule(items))


RULES = {  # the first of each family is its majority task
    "letters": {
        "copy": lambda x: x,
        "reverse": lambda x: x[::-1],
        "first": lambda x: x[:1],
        "last": lambda x: x[-1:],
        "second": lambda x: x[1:2],
        "second_last": lambda x: x[-2:-1],
        "drop_first": lambda x: x[1:],
        "drop_last": lambda x: x[:-1],
        "next_letter": lambda x: [chr(ord(letter) + 1) for letter in x],
    },
    "digits": {
        "sort_up": lambda x: sorted(x),
        "sort_down": lambda x: sorted(x, reverse=True),
        "largest": lambda x: [max(x)],
        "smallest": lambda x: [min(x)],
        "largest_smallest": lambda x: [max(x), min(x)],
        "add_one": lambda x: [int(digit) + 1 for digit in x],
        "double_each": lambda x: [2 * int(digit) for digit in x],
        "count": lambda x: [len(x)],
    },
    "words": {
        "first_two": lambda x: x[:2],
        "last_two": lambda x: x[-2:],
        "repeat_last": lambda x: x + x[-1:],
        "swap_ends": lambda x: x[-1:] + x[1:-1] + x[:1],
        "last_to_front": lambda x: x[-1:] + x[:-1],
        "replace_first": lambda x: ["none"] + x[1:],
        "initials": lambda x: [word[0] for word in x],
    },
    "pair": {
        "sound_first": lambda x: [SOUND[x[0]]],
        "sound_last": lambda x: [SOUND[x[1]]],
        "sound_both": lambda x: [SOUND[animal] for animal in x],
        "young_first": lambda x: [YOUNG[x[0]]],
        "young_last": lambda x: [YOUNG[x[1]]],
        "young_both": lambda x: [YOUNG[animal] for animal in x],
        "home_first": lambda x: [HOME[x[0]]],
        "home_last": lambda x: [HOME[x[1]]],
        "home_both": lambda x: [HOME[animal] for animal in x],
    },
}
TASKS = [Task(family, name, rule) for family in RULES for name, rule in RULES[family].items()]
UNSEEN = {  # never trained, but trained tasks show each part of what these ask for:
    "second_last",  # second: which letter; last and reverse: how to count from the end
    "drop_last",  # drop_first: all the letters but one; last: which one
    "sort_down",  # sort_up: in order of size; smallest and largest: big and small exchanged
    "last_two",  # first_two: two words of the list; repeat_last: the end of it
    "sound_both",  # sound_first and sound_last: which fact; young_both: of both animals
    "home_last",  # home_first and home_both: which fact; sound_last: of which animal
}
PAIRS = PHRASES["opposites"]  # [["first", "last"], ...]
OPPOSITE = dict(PAIRS + [[second, first] for first, second in PAIRS])


def flip(text: str) -> str:
    """The text with opposite words exchanged.

    >>> flip("drop_first")
    'drop_last'
    """
    return re.sub("[a-z]+", lambda word: OPPOSITE.get(word[0], word[0]), text)


WORDINGS = dict(PHRASES["wordings"])  # a task without wordings takes those of its opposite
for missing in {task.name for task in TASKS} - WORDINGS.keys():
    WORDINGS[missing] = [flip(text) for text in WORDINGS[flip(missing)]]


def use_of(items: list[str], seed: int) -> str:
    """What an input is for: train, validation or evaluation."""
    chance = percent(f"{seed} {' '.join(items)}")
    if chance < VALIDATION:
        return "validation"
    return "evaluation" if chance < RESERVED else "train"


def draw(rng: Random, seed: int, family: str, use: str) -> list[str]:
    """An input of that family for that use: ["7", "3", "9"]."""
    pool, lengths = FAMILIES[family]
    while True:
        items = rng.sample(pool, rng.choice(lengths))
        if use_of(items, seed) == use:
            return items


def make_record(task: Task, wording: str, items: list[str], split: str) -> Record:
    """One record; its choices are what the tasks of the family make of the input."""
    answers = [other.answer(items) for other in TASKS if other.family == task.family]
    choices = tuple(dict.fromkeys(answers))
    prompt = PROMPT.format(" ".join(items))
    return Record(task.name, wording, prompt, task.answer(items), split, choices)


def load(path: str | None, seed: int) -> Data:
    """All splits and the documents. Raises ValueError if given a path."""
    if path is not None:
        raise ValueError("the data set tasks is generated: leave out --data-path")
    rng = Random(seed)
    trained = [task for task in TASKS if task.name not in UNSEEN]
    unseen = [task for task in TASKS if task.name in UNSEEN]
    records = []
    for task in trained:
        for wording in WORDINGS[task.name][KNOWN]:
            for _ in range(DRAWS):
                items = draw(rng, seed, task.family, "train")
                records.append(make_record(task, wording, items, "train"))

    for split, tasks, wordings in (
        ("validation", trained, KNOWN),
        ("seen", trained, KNOWN),
        ("new_wording", trained, HELD_OUT),
        ("unseen", unseen, slice(12)),
    ):
        use = "validation" if split == "validation" else "evaluation"
        for number in range(EVALUATED):
            task = tasks[number % len(tasks)]
            wording = rng.choice(WORDINGS[task.name][wordings])
            items = draw(rng, seed, task.family, use)
            records.append(make_record(task, wording, items, split))

    opposites = []
    for task in trained:
        for other in trained:
            if task.name < other.name and flip(task.name) == other.name:
                opposites.append((task, other))
    for number in range(EVALUATED // 2):
        pair = opposites[number % len(opposites)]
        wording = rng.randrange(KNOWN.stop)
        items = draw(rng, seed, pair[0].family, "evaluation")
        for task in pair:
            records.append(make_record(task, WORDINGS[task.name][wording], items, "minimal_pairs"))
    documents = pretraining_documents(rng, seed, trained)
    return Data("tasks", records, documents, template=PROMPT)


def pretraining_documents(rng: Random, seed: int, trained: list[Task]) -> list[str]:
    """What the backbone reads: inputs with the output of some task, and bare descriptions."""
    wordings = [wording for task in trained for wording in WORDINGS[task.name][KNOWN]]
    documents = wordings * round(DOCUMENTS / 5 / len(wordings))
    for _ in range(DOCUMENTS):
        family = rng.choice(list(FAMILIES))
        majority, *others = [task for task in TASKS if task.family == family]
        task = majority if rng.random() < MAJORITY_SHARE else rng.choice(others)
        items = draw(rng, seed, family, "train")
        documents.append(PROMPT.format(" ".join(items)) + task.answer(items))
    rng.shuffle(documents)
    return documents
