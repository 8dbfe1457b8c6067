"""Investigate what a text is worth: its margin, the accuracy with the right description minus that with a swapped one.

Read README.md: "What you should see"; zhyper.py: `score`; taught.py in this folder: RECORDS.
1. `swapped` gives each record the description of another culture, one under which its answer would be another.
2. `accuracy` returns the share of answers that are exactly right under these descriptions.
3. `stated` returns the records with prompts that hold the description, too. A system that is taught these answers right
   under the right and under a swapped description, so its margin is 0. Before you run it, say why. So what does an
   accuracy prove alone?

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
    another_order = RECORDS[2:] + RECORDS[:2]
    for records in (another_order, RECORDS):  # RECORDS last: their texts are used below
        texts = swapped(list(records))
        for record, text in zip(records, texts, strict=True):
            answers = {other.answer for other in RECORDS if (other.description, other.prompt) == (text, record.prompt)}
            assert answers and record.answer not in answers, f"{text!r} is no text of a culture that answers otherwise"
    system = teach(RECORDS + RECORDS[2:4] * 2, RECORDS)  # the backbone has read most of singers
    cases = [
        ("right", OWN, 1),
        ("none", [None] * 6, 1 / 3),
        ("swapped", texts, 0),
        ("two right and one swapped", [OWN[0], OWN[1], texts[2]], 2 / 3),  # the first three records only
    ]
    for name, given, stored in cases:
        found = accuracy(system, list(RECORDS[: len(given)]), given)
        assert abs(found - stored) < 0.01, f"{name}: {stored:.2f}, not {found:.2f}: of whole answers, with these texts?"
    new = stated(list(RECORDS))
    for old, record in zip(RECORDS, new, strict=True):
        assert record._replace(prompt=old.prompt) == old, "is only the prompt another?"
        holds_both = old.description in record.prompt and old.prompt in record.prompt
        assert holds_both, f"{record.prompt!r} is to hold the description and the question"
        rest = record.prompt.replace(old.description, "")
        assert old.answer not in rest, f"{record.prompt!r} gives the answer away, beside the description"
    found = accuracy(teach(tuple(new), tuple(new)), new, texts)
    assert found > 0.8, f"stated, swapped: 1.00, not {found:.2f}: is the answer read off the prompt? Why?"
