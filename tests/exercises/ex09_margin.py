"""Investigate what a text is worth: its margin, the accuracy with the right description minus that with a swapped one.

Read README.md: "What you should see", below the table; data/_controls.py: `other_descriptions`; train.py: `score_rows`.
`accuracies` has four keys: right, swapped, random and none, with seed 0. `stated` gives the records prompts that also
hold the description. Taught these, a system is right at a margin near 0: say why first. What does accuracy prove alone?

Hint 1: other_descriptions has three of the four; exact match is the third that score_rows gives.
Hint 2: record._replace(prompt=...) copies a record. What does the answer depend on that its prompt does not say?
"""

from conftest import two_cultures

from train import Record, Zhyper, evaluate, other_descriptions


def accuracies(system: Zhyper, records: list[Record]) -> dict[str, float]:
    raise NotImplementedError


def stated(records: list[Record]) -> list[Record]:
    raise NotImplementedError


# ---- checks: do not edit
records = two_cultures().split("train")


def test_the_text_decides_where_the_prompt_does_not(teach):  # teach: in tests/exercises/conftest.py
    system, others = teach(records), {"right": None, **other_descriptions(records, 0)}
    found = accuracies(system, records)
    assert found == {name: evaluate(system, records, texts)["accuracy"] for name, texts in others.items()}
    assert found["right"] > found["none"] > found["swapped"]


def test_a_prompt_that_states_the_task_leaves_the_text_no_margin(teach):
    new = stated(records)
    assert new == [old._replace(prompt=r.prompt) for old, r in zip(records, new, strict=True)]
    assert all(r.description in r.prompt and r.answer not in r.prompt.replace(r.description, "") for r in new)
    system, swapped = teach(new, (400, 80)), other_descriptions(new, 0)["swapped"]
    assert evaluate(system, new)["accuracy"] == 1 and evaluate(system, new, swapped)["accuracy"] >= 0.75  # 3 of 4
