"""Make a curve of your own: how does what a text is worth depend on something that you choose?

Read README.md: "What you should see"; data/cultures.py: its docstring; `python train.py -h`.
Vary for example the number of training cultures (--contexts) or the rank (--rank). Take three values or more, three
seeds or more, and the control: the same rows with swapped descriptions. Nine runs take about half an hour on two cores,
and with --preset smoke about five minutes. Each run has its own --out. `my_curve` reads what the run folders hold. Say
in two sentences what the curve shows, and what it would seem to show without the control. Only its form is checked.

    {"name": what varies, "command": what was run, "values": [...], "seeds": [...], both ascending,
     "unseen": accuracies, one list for each value with a number for each seed, "swapped": the same for the control}

Hint 1: OUT/results.json, read by json.loads; ["rows"]["zhyper-diag"]["accuracy"]["unseen"].
Hint 2: first one value and one seed with --preset smoke, to the end, and my_curve on it; then all of them.
Hint 3: "swapped" stands in "accuracy" beside "unseen". A name like out/contexts-32-seed-1 holds value and seed.
"""


def my_curve() -> dict:
    raise NotImplementedError


# ---- checks: do not edit
def test_there_are_three_values_three_seeds_and_an_accuracy_for_each_and_for_the_control():
    curve = my_curve()
    for key in ("name", "command", "values", "seeds", "unseen", "swapped"):
        assert key in curve, f"my_curve has no {key!r}"
    for key in ("values", "seeds"):
        assert len(curve[key]) >= 3, f"{len(curve[key])} {key} are too few to tell a trend from chance: take more"
        assert curve[key] == sorted(set(curve[key])), f"the {key} are to be a list that ascends, each once"
    for key in ("unseen", "swapped"):
        counts = [len(row) for row in curve[key]]
        why = f"{key!r} has lists of {counts} numbers: is there a list for each value, with a number for each seed?"
        assert counts == [len(curve["seeds"])] * len(curve["values"]), why
        numbers = sum(curve[key], [])
        assert 0 <= min(numbers) <= max(numbers) <= 1, f"{key!r} has {numbers}: an accuracy is from 0 to 1"
