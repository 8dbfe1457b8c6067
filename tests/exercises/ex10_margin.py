"""Investigate what a text is worth: its margin, the accuracy with the right description minus that with a swapped one.

Read README.md: "What you should see"; zhyper.py: `score`; taught.py in this folder: RECORDS, three cultures.
1. `swapped` gives each record the description of another culture, one under which its answer would be another.
2. `accuracies` returns the share of exactly right answers under three keys: right, swapped, none (no description).
3. `stated` returns the records with prompts that hold the description, too. A system whose backbone was taught these is
   right at a margin near 0. Before you run it, say why. So what does an accuracy prove alone?

Hint 1: two of the three cultures cut taxes. What is the accuracy under the description of the other?
Hint 2: `score` returns three tensors; the third says which answers are exact. A description may be None.
Hint 3: record._replace(prompt=...) copies a record. Keep the question at the end of its prompt, for the answer.
"""

from taught import RECORDS, teach

from data import Record
from zhyper import Zhyper


def swapped(records: list[Record]) -> list[str]:
    raise NotImplementedError


def accuracies(system: Zhyper, records: list[Record]) -> dict[str, float]:
    raise NotImplementedError


def stated(records: list[Record]) -> list[Record]:
    raise NotImplementedError


# ---- checks: do not edit
def compare(found: dict[str, float], stored: dict[str, float], tolerance: float, why: str) -> None:
    for name, accuracy in stored.items():
        assert abs(found[name] - accuracy) < tolerance, f"{name} should be {accuracy:.2f}, not {found[name]:.2f}: {why}"


def test_the_text_decides_where_the_prompt_does_not():
    system = teach(RECORDS[2:4], RECORDS)  # the backbone has read of singers only
    why = "whose descriptions are these, and is the whole answer right?"
    compare(accuracies(system, list(RECORDS)), {"right": 1, "swapped": 0, "none": 1 / 3}, 0.01, why)
    texts, own = swapped(list(RECORDS)), [record.description for record in RECORDS]
    assert set(texts) <= set(own), "a swapped description is one of another record"
    compare(accuracies(system, list(RECORDS[2:4])) if False else {}, {}, 0, why)


def test_a_prompt_that_states_the_task_leaves_the_text_no_margin():
    new = stated(list(RECORDS))
    for old, record in zip(RECORDS, new, strict=True):
        assert record == old._replace(prompt=record.prompt), "something besides the prompt has changed"
        assert record.description in record.prompt, "a prompt does not hold its description"
    system = teach(tuple(new), tuple(new))
    compare(accuracies(system, new), {"right": 1, "swapped": 1, "none": 1}, 0.2, "can the backbone read the prompt?")
