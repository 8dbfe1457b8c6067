"""Investigate what a text is worth: accuracy with the right, a swapped, a random and no description; the margin.

Read README.md: "What you should see", below the table; data/_controls.py: `other_descriptions`; train.py: `score_rows`.
`accuracies` measures the four: keys right, swapped, random and none. The margin is right minus swapped. `stated` gives
the records prompts that state the task themselves. A system taught these is right too, but its margin is 0: say why
before you run it. And what does a high accuracy prove without the margin?

Hint 1: other_descriptions(records, 0) has three of the four; exact match is the third that score_rows gives.
Hint 2: record._replace(prompt=...) copies a record. What does the answer depend on that its prompt does not say?
"""

from conftest import two_cultures

import train
from data import Record
from zhyper import Zhyper


def accuracies(system: Zhyper, records: list[Record]) -> dict[str, float]:
    raise NotImplementedError


def stated(records: list[Record]) -> list[Record]:
    raise NotImplementedError


# ---- checks: do not edit
records = two_cultures().split("train")


def test_the_text_decides_where_the_prompt_does_not(teach):  # teach: in tests/exercises/conftest.py
    assert len({*accuracies(teach(records, (0, 0)), records).values()}) == 1  # untrained: B is zero
    system, others = teach(records), {"right": None, **train.other_descriptions(records, 0)}
    found = accuracies(system, records)
    assert found == {name: train.evaluate(system, records, texts)["accuracy"] for name, texts in others.items()}
    assert found["right"] > found["none"] > found["swapped"]


def test_a_prompt_that_states_the_task_leaves_the_text_no_margin(teach):
    new = stated(records)
    assert [r._replace(prompt="") for r in new] == [r._replace(prompt="") for r in records]
    system, swapped = teach(new, (400, 80)), train.other_descriptions(new, 0)["swapped"]
    assert [train.evaluate(system, new, texts)["accuracy"] for texts in (None, swapped)] == [1, 1]
