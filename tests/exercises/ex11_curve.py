"""Make a curve of your own: how does what a text is worth depend on something that you choose?

Read in README.md: "The evidence". In tests/evidence.py and data/cultures.py: the docstrings.
For example the number of training cultures (--contexts), the backbone's bias (--bias of tests/evidence.py) or the rank
(--rank). Three values or more, three seeds or more (nine runs take about 20 minutes on two cores), and the control: the
same rows with swapped descriptions, which `evidence.py curves` does not print. Let `my_curve` read what the run folders
hold. Say in two sentences what the curve shows, and would seem to show without the control. Only form is checked.

    {"name": what varies, "command": what was run, "values": [...], "seeds": [...], both ascending,
     "unseen": accuracies, one list for each value with a number for each seed, "swapped": the same for the control}

Hint 1: OUT/seedN/results.json, in ["rows"] the one whose row["method"] is yours: row["splits"]["unseen"]["accuracy"],
    row["controls"]["swapped"]["accuracy"].
Hint 2: first one value and one seed with --preset smoke, to the end; then all, each with its own --out.
"""

import pytest


def my_curve() -> dict:
    raise NotImplementedError


# ---- checks: do not edit
@pytest.fixture(scope="module")
def curve():
    return my_curve()


def test_it_says_what_varies_and_what_was_run_for_three_values_and_three_seeds(curve):
    assert all(isinstance(curve[key], str) and curve[key].strip() for key in ("name", "command"))
    for several in (curve["values"], curve["seeds"]):
        assert len(several) >= 3 and list(several) == sorted(set(several))


@pytest.mark.parametrize("kind", ["unseen", "swapped"])
def test_there_is_an_accuracy_for_each_value_and_seed_and_for_the_control(curve, kind):
    assert [len(row) for row in curve[kind]] == [len(curve["seeds"])] * len(curve["values"])
    assert all(0 <= accuracy <= 1 for row in curve[kind] for accuracy in row)  # a NaN is in no range
