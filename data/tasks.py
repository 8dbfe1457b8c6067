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
young, home]}. A task without wordings takes those of its opposite, opposite words exchanged.

What the backbone has read, its `documents`: inputs followed by their output under *some* task of
the family, half of the time its first, the majority task. So it may know every function, also those
of `UNSEEN` tasks, and all about the animals, but not which task is meant. A sixth of the documents
are descriptions on their own: the training wordings of the trained tasks.

Of the inputs of each family 15 % are reserved, by a hash. No document and no training row has one,
in any task; all other splits have no others. A third of the reserved inputs is for `validation`
alone. Of two animals the pair is new, each animal is not.

- `validation`, `seen`: trained tasks in training wordings, on reserved inputs.
- `new_wording`: the same in the two wordings that are held out.
- `unseen`: the tasks of `UNSEEN`, in all their wordings.
- `minimal_pairs`: two opposite tasks on one input, in one wording but for the opposite words.
- There is no `ood` and no `locality`: a task has no values to combine, and leaves nothing open.

    python train.py --data tasks --preset instructions --methods frozen,lora,zhyper-diag,t2l

A method that reads the description should mostly be right, except on `unseen`: the trained tasks
are too few to learn from how a new one is described. A method without text cannot do better than to
guess the task. The backbone needs the long pretraining of this preset; after the default one it
cannot do the tasks at all.
"""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from data import Data, Record, percent

PHRASES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
ANIMALS = PHRASES["animals"]
FAMILIES = {  # family: (what inputs are made of, how many of these: no two alike)
    "letters": ("abcdefghijklmnopqrstuvwxy", (4, 5)),
    "digits": ("123456789", (3, 4, 5)),
    "words": (PHRASES["words"], (3, 4)),
    "pair": (list(ANIMALS), (2,)),
}
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


TASKS = [  # the first of each family is its majority task
    Task("letters", "copy", lambda x: x),
    Task("letters", "reverse", lambda x: x[::-1]),
    Task("letters", "first", lambda x: x[:1]),
    Task("letters", "last", lambda x: x[-1:]),
    Task("letters", "second", lambda x: x[1:2]),
    Task("letters", "second_last", lambda x: x[-2:-1]),
    Task("letters", "drop_first", lambda x: x[1:]),
    Task("letters", "drop_last", lambda x: x[:-1]),
    Task("letters", "next_letter", lambda x: [chr(ord(letter) + 1) for letter in x]),
    Task("digits", "sort_up", lambda x: sorted(x)),
    Task("digits", "sort_down", lambda x: sorted(x, reverse=True)),
    Task("digits", "largest", lambda x: [max(x)]),
    Task("digits", "smallest", lambda x: [min(x)]),
    Task("digits", "largest_smallest", lambda x: [max(x), min(x)]),
    Task("digits", "add_one", lambda x: [int(digit) + 1 for digit in x]),
    Task("digits", "double_each", lambda x: [2 * int(digit) for digit in x]),
    Task("digits", "count", lambda x: [len(x)]),
    Task("words", "first_two", lambda x: x[:2]),
    Task("words", "last_two", lambda x: x[-2:]),
    Task("words", "repeat_last", lambda x: [*x, x[-1]]),
    Task("words", "swap_ends", lambda x: [x[-1], *x[1:-1], x[0]]),
    Task("words", "last_to_front", lambda x: [x[-1], *x[:-1]]),
    Task("words", "replace_first", lambda x: ["none", *x[1:]]),
    Task("words", "initials", lambda x: [word[0] for word in x]),
    Task("pair", "sound_first", lambda x: [ANIMALS[x[0]][0]]),
    Task("pair", "sound_last", lambda x: [ANIMALS[x[1]][0]]),
    Task("pair", "sound_both", lambda x: [ANIMALS[animal][0] for animal in x]),
    Task("pair", "young_first", lambda x: [ANIMALS[x[0]][1]]),
    Task("pair", "young_last", lambda x: [ANIMALS[x[1]][1]]),
    Task("pair", "young_both", lambda x: [ANIMALS[animal][1] for animal in x]),
    Task("pair", "home_first", lambda x: [ANIMALS[x[0]][2]]),
    Task("pair", "home_last", lambda x: [ANIMALS[x[1]][2]]),
    Task("pair", "home_both", lambda x: [ANIMALS[animal][2] for animal in x]),
]

UNSEEN = {  # never trained, but trained tasks show each part of what these ask for:
    "second_last",  # second: which letter; last and reverse: how to count from the end
    "drop_last",  # drop_first: all the letters but one; last: which one
    "sort_down",  # sort_up: in order of size; smallest and largest: big and small exchanged
    "last_two",  # first_two: two words of the list; repeat_last: the end of it
    "sound_both",  # sound_first and sound_last: which fact; young_both: of both animals
    "home_last",  # home_first and home_both: which fact; sound_last: of which animal
}

OPPOSITE = {a: b for pair in PHRASES["opposites"] for a, b in (pair, reversed(pair))}


def flip(text: str) -> str:
    """The text with opposite words exchanged.

    >>> flip("drop_first")
    'drop_last'
    """
    return re.sub("[a-z]+", lambda word: OPPOSITE.get(word[0], word[0]), text)


def wordings_of(name: str) -> list[str]:
    """The twelve wordings of a task, its own or those of its opposite, flipped."""
    written = PHRASES["wordings"]
    return written[name] if name in written else [flip(text) for text in written[flip(name)]]


WORDINGS = {task.name: wordings_of(task.name) for task in TASKS}


def use_of(items: list[str], seed: int) -> str:
    """What an input is for: train, validation or evaluation."""
    chance = percent(f"{seed} {' '.join(items)}")
    if chance < VALIDATION:
        return "validation"
    return "evaluation" if chance < RESERVED else "train"


def load(path: str | None, seed: int) -> Data:
    """All splits and the documents. Raises ValueError if given a path."""
    if path is not None:
        raise ValueError("the data set tasks is generated: leave out --data-path")
    rng = random.Random(seed)

    def draw(family: str, use: str) -> list[str]:
        pool, lengths = FAMILIES[family]
        while True:
            items = rng.sample(pool, rng.choice(lengths))
            if use_of(items, seed) == use:
                return items

    def prompt(items: list[str]) -> str:
        return f"In: {' '.join(items)}\nOut:"

    def row(task: Task, wording: str, items: list[str], split: str) -> Record:
        others = (other.answer(items) for other in TASKS if other.family == task.family)
        choices = tuple(dict.fromkeys(others))  # what the tasks of its family make of the input
        return Record(task.name, wording, prompt(items), task.answer(items), split, choices)

    trained = [task for task in TASKS if task.name not in UNSEEN]
    unseen = [task for task in TASKS if task.name in UNSEEN]
    known = [(task, wording) for task in trained for wording in WORDINGS[task.name][:10]]
    records = []
    for task, wording in known:
        for _ in range(DRAWS):
            records.append(row(task, wording, draw(task.family, "train"), "train"))
    for split, tasks, wordings in (
        ("validation", trained, slice(10)),
        ("seen", trained, slice(10)),
        ("new_wording", trained, slice(10, 12)),
        ("unseen", unseen, slice(12)),
    ):
        use = "validation" if split == "validation" else "evaluation"
        for number in range(EVALUATED):
            task = tasks[number % len(tasks)]
            wording = rng.choice(WORDINGS[task.name][wordings])
            records.append(row(task, wording, draw(task.family, use), split))
    opposites = [
        (a, b) for a in trained for b in trained if a.name < b.name and flip(a.name) == b.name
    ]
    for number in range(EVALUATED // 2):
        pair = opposites[number % len(opposites)]
        wording = rng.randrange(10)
        items = draw(pair[0].family, "evaluation")
        for task in pair:
            records.append(row(task, WORDINGS[task.name][wording], items, "minimal_pairs"))

    documents = [wording for _, wording in known] * round(DOCUMENTS / 5 / len(known))
    for _ in range(DOCUMENTS):
        family = rng.choice(list(FAMILIES))
        majority, *others = [task for task in TASKS if task.family == family]
        task = majority if rng.random() < MAJORITY_SHARE else rng.choice(others)
        items = draw(family, "train")
        documents.append(prompt(items) + task.answer(items))
    rng.shuffle(documents)
    return Data("tasks", records, documents, template="In: {}\nOut:")
