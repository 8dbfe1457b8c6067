"""Investigate which statement of a text an answer comes from, and what leaving one out cannot see.

Read in zhyper.py: `split_statements`, `embed`.
1. `without_each` returns {statement: the answer's probability if this statement is left out of the description}. If
   nothing is left, the frozen model answers. The statement that matters most is the one without which least is left.
   `probability` is given: it maps a description, or None for the frozen model, to the probability of ANSWER.
2. `said_twice` returns three statements or more, of which the first two say the answer. Together, and also if any one
   of them is left out, the answer has 0.3 or more; but if the first two are left out, it has 0.1 or less. So what does
   a high probability without a statement mean, and what does it not mean?

Hint 1: a description is made again of statements by "; ".join.
Hint 2: the model knows the words of data/cultures.json. It says the same in many ways.
Hint 3: `python zhyper.py explain` prints these numbers. With n statements each counts for 1/√n of c.
"""

from collections.abc import Callable

import torch

from zhyper import SHIPPED, Zhyper, split_statements, words_of  # noqa: F401 (split_statements is for you)

QUESTION = "How do people greet each other?"
ANSWER = "with a short song"


def without_each(probability: Callable[[str | None], float], description: str) -> dict[str, float]:
    raise NotImplementedError


def said_twice() -> list[str]:
    raise NotImplementedError


# ---- checks: do not edit
TUNE = "In this land friends hum a tune when they meet"
TAXES = "voters call for higher taxes"


@torch.no_grad()
def chance(system: Zhyper, description) -> float:
    """The probability of ANSWER under a text, or under a c (1, d_c)."""
    loss, _ = system.score([QUESTION], [ANSWER], [description] if isinstance(description, str) else description)
    return torch.exp(-loss).item()


@torch.no_grad()
def added_up(system: Zhyper, statements: list[str]) -> float:
    """The same under the sum of what each statement adds to c."""
    c = system.embed(statements).sum(0, keepdim=True) / len(statements) ** 0.5 if statements else None
    return chance(system, c)


def test_it_is_the_probability_of_the_answer_without_each_statement():
    system = Zhyper.load(SHIPPED)
    three = [TUNE, "friends hum a tune", TAXES]
    marks = (", and ", "; and ", ". ", "!\n")
    for statements, mark in [([TUNE], ""), ([TUNE, TAXES], "; "), *((three, mark) for mark in marks)]:
        found = without_each(lambda description: chance(system, description), mark.join(statements) + ".")
        assert list(found) == statements, f"the statements are {statements}, not {list(found)}: see split_statements"
        for statement in statements:
            left = added_up(system, [other for other in statements if other != statement])
            why = f"of {statements} without {statement!r} the answer has {left:.3f}, not {found[statement]:.3f}"
            assert abs(found[statement] - left) < 1e-4, f"{why}: is it left out, and are the others there?"


def test_what_is_said_twice_is_seen_only_if_both_are_left_out():
    system = Zhyper.load(SHIPPED)
    statements = said_twice()
    different = {frozenset(words_of(statement)) for statement in statements}  # in small letters, in any order
    assert len(different) > 2, f"{statements} are not three statements or more that differ in their words"
    for statement in statements:
        assert len(split_statements(statement)) == 1, f"{statement!r} is cut into more than one statement"
    whole = added_up(system, statements)
    assert whole >= 0.3, f"under all of {statements} the answer has only {whole:.2f}: does the model know the words?"
    for statement in statements:
        left = added_up(system, [other for other in statements if other != statement])
        assert left >= 0.3, f"without {statement!r} the answer has only {left:.2f}: which other statement says it?"
    left = added_up(system, statements[2:])
    assert left <= 0.1, f"without the first two the answer still has {left:.2f}: which other statement says it?"
