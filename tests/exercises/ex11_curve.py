"""Make a curve of your own: how does what a text is worth depend on something that you choose?

Read README.md: "What you should see"; data/cultures.py: its docstring; `python train.py -h`.
Vary for example the number of training cultures (--contexts) or the rank (--rank). Take three values or more, three
seeds or more, and the control: the same rows with swapped descriptions. Nine runs take about half an hour on two cores,
and with --preset smoke about five minutes. Each run has its own --out. `my_curve` reads what the run folders hold. Say
in two sentences what the curve shows, and what it would seem to show without the control. Only its form is checked.

    {"name": what varies, "command": what was run, "values": [...], "seeds": [...], both ascending,
     "unseen": accuracies, one list for each value with a number for each seed, "swapped": the same for the control}

Hint 1: OUT/results.json, read by json.loads; ["rows"]["zhyper-diag"]["evaluated"]["unseen"]["accuracy"].
Hint 2: first one value and one seed with --preset smoke, to the end, and my_curve on it; then all of them.
Hint 3: "swapped" stands in "evaluated" beside "unseen". A name like out/contexts-32-seed-1 holds value and seed.
"""


def my_curve() -> dict:
    raise NotImplementedError


# ---- checks: do not edit
def test_there_are_three_values_three_seeds_and_an_accuracy_for_each_and_for_the_control():
    curve = my_curve()
    for key in ("name", "command", "values", "seeds", "unseen", "swapped"):
        assert key in curve, f"my_curve has no {key!r}"
    for key in ("name", "command"):
        assert isinstance(curve[key], str) and curve[key].strip(), f"{key!r} is to say it in words"
    for key in ("values", "seeds"):
        several = list(curve[key])
        assert len(several) >= 3, f"{len(several)} {key} are too few to tell a trend from chance: take three or more"
        assert several == sorted(set(several)), f"the {key} are to ascend, each once"
    for key in ("unseen", "swapped"):
        assert len(curve[key]) == len(curve["values"]), f"{key!r} needs a list for each value"
        for row in curve[key]:
            assert len(row) == len(curve["seeds"]), f"{key!r} needs a number for each seed, in each of its lists"
            assert all(0 <= accuracy <= 1 for accuracy in row), f"{key!r} has {row}: an accuracy is from 0 to 1"
