"""Investigate what a text is worth: its margin, the accuracy with the right description minus that with a swapped one.

Read README.md: "What you should see"; zhyper.py: `score`; taught.py in this folder: RECORDS.
1. `swapped` gives each record the description of another culture, one under which its answer would be another.
2. `accuracy` returns the share of answers that are exactly right under these descriptions.
3. `stated` returns the records with prompts that hold the description, too. A system that is taught these is right at a
   margin of 0. Before you run it, say why. So what does an accuracy prove alone?

Hint 1: two of the three cultures cut taxes. What is right under the description of the other one of them?
Hint 2: `score` returns three tensors; the third says which answers are exact. A description may be None.
Hint 3: record._replace(prompt=...) copies a record. What does the answer depend on that the prompt does not say?
"""

from taught import OWN, RECORDS, teach

from data import Record


def swapped(records: list[Record]) -> list[str]:
    raise NotImplementedError


def accuracy(system, records: list[Record], descriptions: list[str | None]) -> float:
    raise NotImplementedError


def stated(records: list[Record]) -> list[Record]:
    raise NotImplementedError


# ---- checks: do not edit
def test_the_text_decides_unless_the_prompt_does():
    texts = swapped(list(RECORDS))
    for record, text in zip(RECORDS, texts, strict=True):
        answers = {other.answer for other in RECORDS if (other.description, other.prompt) == (text, record.prompt)}
        assert answers and record.answer not in answers, f"{text!r} is no text of a culture that answers otherwise"
    system = teach(RECORDS + RECORDS[2:4] * 2, RECORDS)  # the backbone has read most of singers
    for name, given, stored in [("right", OWN, 1), ("none", [None] * 6, 1 / 3), ("swapped", texts, 0)]:
        found = accuracy(system, list(RECORDS), given)
        assert abs(found - stored) < 0.01, f"{name}: {stored:.2f}, not {found:.2f}: of whole answers, with these texts?"
    new = stated(list(RECORDS))
    for old, record in zip(RECORDS, new, strict=True):
        assert (record.description in record.prompt, record[3:]) == (True, old[3:]), "is only the prompt another?"
    found = accuracy(teach(tuple(new), tuple(new)), new, texts)
    assert found > 0.8, f"stated, swapped: 1.00, not {found:.2f}: is the answer read off the prompt? Why?"
