"""The evidence: tables of fixed results, orders and ties, and runs of several seeds that go on."""

import json
from functools import partial

import numpy as np
import pytest
import run
from conftest import two_cultures

from train import METHODS

TINY = "--layers 1 --width 16 --vocab-size 300 --pretrain-steps 2 --encoder-layers 1 --lowest-layer 0 --steps 4"


@pytest.fixture
def cli(run_main):
    methods = dict(METHODS)
    yield partial(run_main, run.main)
    METHODS.clear()
    METHODS.update(methods)


@pytest.fixture
def options(tmp_path) -> list:
    """Of a tiny job on two cultures."""
    lines = [json.dumps(record._asdict()) for record in two_cultures().records]
    (tmp_path / "two.jsonl").write_text("\n".join(lines))
    return ["--data", tmp_path / "two.jsonl", "--device", "cpu", "--out", tmp_path / "run", *TINY.split()]


def results(seed: int, **exact: str) -> dict:
    """Results of one seed: of each method which records are right, of contexts of ten records."""
    rows = {}
    for name, right in exact.items():
        accuracy = {"unseen": right.count("1") / len(right), "margin": 0.5}
        rows[name] = {"trainable": 1234, "seconds": 1.6, "accuracy": accuracy, "exact": {"unseen": right}}
    contexts = [f"context {i // 10}" for i in range(len(right))]
    return {"preset": "default", "given": {"seed": seed}, "rows": rows, "contexts": {"unseen": contexts}}


FIXED = """\
| accuracy | trainable | encoder | steps | seconds | unseen | margin |
| --- | --- | --- | --- | --- | --- | --- |
| lora | 1,234 | 0 | 0 | 2 | 0.625 ±0.177 | 0.500 ±0.000 |
| diag | 1,234 | 0 | 0 | 2 | 1.000 ±0.000 | 0.500 ±0.000 |
| mean (1 of 2 seeds) | 1,234 | 0 | 0 | 2 | 0.750 | 0.500 |
| majority | 0 | 0 | 0 | 0 | 0.250 ±0.000 | – |

| − lora | unseen |
| --- | --- |
| diag | 0.375 [0.250, 0.500] ahead |
| mean (1 of 2 seeds) | 0.250 [0.250, 0.250] ahead |
| majority | -0.375 [-0.500, -0.250] behind |

Seeds behind each number: 2 (0, 1). A row with fewer says so."""


def test_a_table_says_how_many_seeds_are_behind_a_row_and_compares_only_seeds_that_both_have():
    seeds = [results(0, lora="0011", diag="1111", mean="0111"), results(1, lora="0111", diag="1111")]
    for part in seeds:
        part["rows"]["majority"] = {"accuracy": {"unseen": 0.25}, "exact": {"unseen": "0001"}}
    assert run.tables(seeds, "lora") == FIXED


def test_a_planted_order_is_found_a_tie_is_called_a_tie_and_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(0)

    def rights(share: float) -> str:
        return "".join(str(int(number < share)) for number in rng.random(200))

    seeds = [results(seed, best=rights(0.9), same=rights(0.9), worse=rights(0.7)) for seed in range(3)]
    _, _, same, worse = run.difference_table(seeds, "best").splitlines()
    assert same.endswith(" tie |") and worse.startswith("| worse | -0.") and worse.endswith(" behind |")
    apart = [np.array([[1, gap]] * 400) for gap in (0.0, 0.2, 0.4)]
    assert run.verdict(*run.paired_interval(apart)) == "0.200 [0.000, 0.400] tie"


def test_results_of_other_options_and_a_seed_twice_are_never_averaged():
    one, two = results(0, lora="01"), results(1, lora="01")
    with pytest.raises(ValueError, match="one seed twice"):
        run.tables([one, two, one])
    two["given"]["steps"] = 4
    with pytest.raises(ValueError, match="'steps': 4.*report each alone"):
        run.tables([one, two])


def test_seeds_are_trained_go_on_and_are_reported(options, tmp_path, cli):
    methods = "frozen,best-prompt,mean,nearest,rescaling,authors,reads-name,reads-question,zhyper-diag@rank=2"
    printed = cli(*options, "--seed", 5, "--seeds", 2, "--methods", methods)
    names = {line.split(" | ")[0].strip("| ") for line in printed.split("\n\n")[0].splitlines()[2:]}
    assert names == {*methods.split(","), "zhyper-diag"}  # of which mean and nearest are made
    assert "2 (5, 6)" in printed
    first = run.read_results(tmp_path / "run" / "seed5")
    rows = first["rows"]
    assert rows["zhyper-diag@rank=2"]["trainable"] < rows["zhyper-diag"]["trainable"]
    assert rows["mean"]["accuracy"]["margin"] == 0  # it reads nothing
    assert rows["best-prompt"]["format"] == "plain, 0 examples"
    assert first["contexts"]["unseen"] == ["bowers, elsewhere"] * 2 + ["singers, elsewhere"] * 2

    cli(*options, "--seed", 5, "--seeds", 1, "--methods", "lora")  # one seed gets a method more
    again = run.read_results(tmp_path / "run" / "seed5")
    assert again["rows"].pop("lora") and again["rows"] == rows  # the others are not trained again
    report = cli("report", tmp_path / "run", "--against", "mean")
    assert "| lora (1 of 2 seeds) | " in report and "| − mean | unseen |" in report
    pytest.importorskip("matplotlib")
    overview = cli("overview", tmp_path / "run", "--split", "unseen,swapped", "--to", tmp_path / "sizes.png")
    assert overview.startswith("| accuracy | trainable | run, unseen | run, swapped |\n")
    assert (tmp_path / "sizes.png").read_bytes().startswith(b"\x89PNG")
    assert "give the same options" in cli(*options, "--seed", 5, "--rank", 3)


def test_a_mistake_is_one_line_and_exit_code_2(cli, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "unknown method 'oneshot'" in cli("--methods", "frozen,oneshot")
    assert "cannot change 'hats=2'" in cli("--methods", "lora@hats=2")
    assert "leave out one of the two" in cli("--methods", "lora@rank=2", "--rank", 3)
    assert "leave out --resume" in cli("--resume", "out")
    assert not list(tmp_path.iterdir())
