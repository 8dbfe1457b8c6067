"""The main job: what is learned, what stays frozen, the results, and what is refused."""

import itertools
import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from conftest import cli, smoke, two_cultures

import train
from data import Data, Record
from model import ModelConfig
from train import METHODS, Settings, batches, evaluate, learning_rate, run, table
from zhyper import Zhyper

TINY_CONFIG = ModelConfig(300, layers=1, heads=2, kv_heads=2, width=32, inner=48)
TINY = train.Preset(TINY_CONFIG, TINY_CONFIG, 4, steps=4, batch=2, checkpoint=2)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A run in a fraction of a second."""
    monkeypatch.setitem(train.PRESETS, "smoke", TINY)


def write(data: Data, path: Path) -> str:
    path.write_text("\n".join(json.dumps(record._asdict()) for record in data.records))
    return str(path)


@pytest.fixture
def job(tmp_path) -> Settings:
    """Settings of a run on two cultures."""
    path = write(two_cultures(), tmp_path / "two.jsonl")
    return smoke(path, tmp_path / "run", methods="zhyper-diag", device="cpu")


def changed(job: Settings, change) -> Settings:
    """The same run on other records: what `change` makes of those of two cultures."""
    data = two_cultures()
    data.records[:] = change(data.records)
    write(data, Path(job.data))
    return job


# ---- the method


def test_a_tiny_run_learns_two_cultures_apart(trained):
    system, data, _ = trained
    rows = data.split("unseen")
    assert evaluate(system, rows, [None] * len(rows))["accuracy"] <= 0.5
    assert evaluate(system, rows)["accuracy"] == 1.0


def test_swapping_the_description_changes_the_answer(trained):
    system, data, _ = trained
    rows = data.split("unseen")
    other = {"bowers": "singers", "singers": "bowers"}
    descriptions = {row.context: row.description for row in rows}
    answers = {(row.context, row.prompt): row.answer for row in rows}
    swapped = [descriptions[other[row.context]] for row in rows]
    expected = [answers[other[row.context], row.prompt] for row in rows]
    assert system.generate([row.prompt for row in rows], swapped) == expected


def test_the_frozen_tensors_are_bit_identical_and_every_trainable_one_has_moved(trained):
    system, _, before = trained
    for name, weight in system.state_dict().items():
        assert torch.equal(weight, before[name]) == name.startswith("backbone."), name


def test_every_step_takes_all_questions_of_distinct_descriptions_in_turn():
    rows = [Record(f"c{i}", f"d{i}", f"p{j}", " a", "train") for i in range(6) for j in range(5)]
    stream = batches(rows, 3, 4, 0)
    first, second = next(stream), next(stream)
    assert {row.description for row in first + second} == {f"d{i}" for i in range(6)}
    assert len(first) == 12 and len(set(first)) == 12


def test_the_learning_rate_warms_up_and_falls_to_a_tenth():
    rates = [learning_rate(step, 1000) for step in range(1000)]
    assert rates[49] == 1.0 == max(rates) and 0.1 <= rates[-1] < 0.101
    assert rates[:50] == sorted(rates[:50]) and rates[49:] == sorted(rates[49:])[::-1]


@pytest.mark.parametrize("stalled", [0, 1000])
def test_a_budget_in_seconds_is_counted_at_the_median_step_time(stalled, job, monkeypatch):
    looks, shares = itertools.count(), []

    def clock() -> float:  # every step takes half a second, but for one that stalls
        look = next(looks)
        return look / 2 + (stalled if look > 100 else 0)

    def rate(step: int, steps: int) -> float:
        shares.append(learning_rate(step, steps))
        return shares[-1]

    monkeypatch.setattr(train.time, "perf_counter", clock)
    monkeypatch.setattr(train, "learning_rate", rate)
    (row,) = run(replace(job, methods="lora", seconds=50))["rows"]
    assert row["steps"] == 100 and row["seconds"] == 50 + stalled
    assert max(shares[4:]) > 0.9 and 0.1 <= shares[-1] < 0.11  # the first four are the pretraining


# ---- results


def test_the_main_job_writes_what_it_says(job, monkeypatch, capsys):
    words = f"--data {job.data} --preset smoke --methods all --steps 3 --out {job.out} --device cpu"
    code, printed, err = cli(train, monkeypatch, capsys, *words.split())
    results = json.loads((job.run / "results.json").read_text())
    assert code == 0 and table(results) in printed, err
    assert {"measure", "seed", "pretrain", "backbone"} <= set(results)
    assert job.identity.items() <= results["made_of"].items()
    assert [row["method"] for row in results["rows"]] == list(METHODS)
    for row in results["rows"]:
        method, system = METHODS[row["method"]], Zhyper.load(job.run, row["method"])
        assert row["seconds"] > 0 or not method.kind
        assert row["steps"] == (3 if method.kind else 0)
        assert set(row["splits"]["unseen"]) == {"accuracy", "nll", "n"}
        assert row["splits"]["unseen"]["n"] == 4
        assert set(row["controls"]) == {"swapped", "random", "none"}
        swapped = row["controls"]["swapped"]["accuracy"]
        assert row["margin"] == row["splits"]["unseen"]["accuracy"] - swapped
        for name, part in (("trainable", system.hypernetwork), ("encoder", system.encoder)):
            assert row[name] == (sum(p.numel() for p in part.parameters()) if part else 0)
        again = evaluate(system, two_cultures().split("unseen"))
        assert again["nll"] == pytest.approx(row["splits"]["unseen"]["nll"], abs=1e-4)


def test_the_frozen_row_does_not_depend_on_any_description(job):
    (frozen,) = run(replace(job, methods="frozen"))["rows"]
    assert frozen["margin"] == 0
    assert all(score == frozen["splits"]["unseen"] for score in frozen["controls"].values())


def test_validation_looks_at_its_own_split_and_no_other(job):
    changed(job, lambda rows: [*rows, *(r._replace(split="validation") for r in rows[4:])])
    (row,) = run(replace(job, methods="frozen"))["rows"]
    assert list(row["splits"]) == ["unseen"]
    (row,) = run(replace(job, methods="lora-prompt", validate=True, force=True))["rows"]
    assert list(row["splits"]) == ["validation"] and row["margin"] is not None


def test_choice_is_reported_where_rows_have_choices_and_shown_for_a_pretrained_backbone(job):
    changed(job, lambda rows: [*rows, *(r._replace(split="seen", choices=(" bow", " sing", r.answer)) for r in rows)])
    results = run(replace(job, methods="frozen,zhyper-diag"))
    for row in results["rows"]:
        assert "choice" not in row["splits"]["unseen"] and 0 <= row["splits"]["seen"]["choice"] <= 1
    shown = " | ".join(f"{row['splits']['seen']['choice']:.3f}" for row in results["rows"])
    assert "choice" not in table(results)
    del results["pretrain"]  # as where the backbone is a pretrained one
    assert table(results).splitlines()[-1] == f"| choice, seen | {shown} |"


def test_free_text_is_judged_by_its_loss(job):
    more = " and so on, at such a length that nobody could say it letter by letter"
    changed(job, lambda rows: [row._replace(answer=row.answer + more) for row in rows])
    results = run(replace(job, steps=20, lr=1e-2))
    (row,) = results["rows"]
    right, swapped = row["splits"]["unseen"]["nll"], row["controls"]["swapped"]["nll"]
    assert results["measure"] == "nll" and row["margin"] == swapped - right
    assert f"| unseen | {right:.3f} |" in table(results)


def test_the_table_has_a_column_for_each_method():
    def row(method: str, accuracy: float) -> dict:
        score = {"accuracy": accuracy, "nll": 1.25, "n": 4}
        whole = {"method": method, "trainable": 1234, "encoder": 0, "steps": 3, "seconds": 1.6}
        scores = {"splits": {"seen": score}, "controls": {"swapped": score}, "margin": -0.0001}
        return whole | scores

    results = {"measure": "accuracy", "rows": [row("lora", 0.5), row("t2l", 1.0)]}
    assert table(results) == (
        "| accuracy | lora | t2l |\n"
        "|---|---|---|\n"
        "| trainable | 1,234 | 1,234 |\n"
        "| encoder | 0 | 0 |\n"
        "| steps | 3 | 3 |\n"
        "| seconds | 2 | 2 |\n"
        "| seen | 0.500 | 1.000 |\n"
        "| swapped | 0.500 | 1.000 |\n"
        "| margin | 0.000 | 0.000 |"
    )
    assert "| seen | 1.250 | 1.250 |" in table(results | {"measure": "nll"})


def test_a_method_that_is_named_twice_is_trained_once(job):
    rows = run(replace(job, methods="lora,frozen, lora"))["rows"]
    assert [row["method"] for row in rows] == ["lora", "frozen"]


def test_one_training_description_for_all_contexts_simply_works(job):
    changed(job, lambda rows: [r._replace(description="all") if r.split == "train" else r for r in rows])
    for row in run(replace(job, methods="zhyper-diag,zhyper-diag-paper,t2l", steps=8))["rows"]:
        assert row["splits"]["unseen"]["nll"] < 20  # finite, and not far from that of a guess


def test_a_sample_of_a_split_is_swapped_with_the_rest_of_it(job, monkeypatch):
    monkeypatch.setitem(train.PRESETS, "smoke", replace(TINY, evaluate=2))
    changed(job, lambda rows: [*rows, *(rows[4]._replace(prompt=f"Q: {i}?") for i in range(400))])
    (row,) = run(replace(job, methods="frozen"))["rows"]  # most likely the two are of one context
    assert row["splits"]["unseen"]["n"] == row["controls"]["swapped"]["n"] == 2


# ---- what is refused

BAD = [
    ("--data poems", "unknown data set 'poems'"),
    ("--data none.jsonl", "no file none.jsonl"),
    ("--data tasks --contexts 16", "leave out --contexts"),
    ("--data voices --data-path none.txt", "no file none.txt"),
    ("--descriptions file.json", "leave out --descriptions"),
    ("--methods zhyper", "unknown method 'zhyper'"),
    ("--methods all,frozen", "unknown method 'all'"),
    ("--methods frozen,,lora", "unknown method ''"),
    ("--modules q,x", "unknown module 'x'"),
    ("--modules q,q", "each once"),
    ("--trunk tall", "unknown trunk 'tall'"),
    ("--trunk=", "unknown trunk ''"),
    ("--preset huge", "unknown preset 'huge'"),
    ("--device tpu", "unknown device 'tpu'"),
    ("--dtype fp8", "unknown dtype 'fp8'"),
    ("--rank 0", "rank is 0"),
    ("--rank 0 --methods frozen", "rank is 0"),
    ("--modules x --methods frozen", "unknown module 'x'"),
    ("--steps 0", "steps is 0"),
    ("--seconds 0", "seconds is 0"),
    ("--lr 0", "lr is 0"),
    ("--lr nan", "lr is nan"),
    ("--contexts 0", "contexts is 0"),
    ("--contexts 1", "choose 2 to 16384"),
    ("--seed 99999999999999999999", "seed is 99999999999999999999"),
    ("--resume", "unrecognized arguments: --resume"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[words for words, _ in BAD])
def test_a_bad_option_is_one_line_and_leaves_earlier_results_alone(words, message, monkeypatch, capsys, tmp_path):
    (tmp_path / "results.json").write_text("earlier")
    words = ["--out", str(tmp_path), "--force", *words.split()]
    code, out, err = cli(train, monkeypatch, capsys, *words)
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err
    assert (tmp_path / "results.json").read_text() == "earlier"


def test_every_setting_is_an_option_with_help(monkeypatch, capsys):
    code, out, _ = cli(train, monkeypatch, capsys, "-h")
    assert code == 0 and all(f"--{f.name.replace('_', '-')}" in out for f in fields(Settings))


LONG = [  # more than 256 tokens, or together with a description of any row
    ({"description": "word " * 400}, "zhyper-diag", "over 256 tokens, the rest over 255"),
    ({"prompt": "word " * 400}, "zhyper-diag", "over 256 tokens, the rest over 255"),
    ({"answer": " word" * 400}, "frozen", "over 256 tokens, the rest over 255"),
    ({"choices": (" bow", " word" * 400)}, "frozen", "over 256 tokens, the rest over 255"),
    ({"prompt": "word " * 180}, "prompt", r"over 256 tokens, the rest over 1\d\d"),  # fits without a description
]


def with_long(change: dict, number: int):
    """What makes rows of two cultures of which so many, of twelve in train, do not fit."""
    return lambda rows: [rows[0]._replace(**change)] * number + (rows[:4] * 3)[number:] + rows[4:]


@pytest.mark.parametrize(("change", "methods", "message"), LONG)
def test_few_rows_that_do_not_fit_are_left_out_and_counted_by_split(change, methods, message, job, capsys):
    changed(job, with_long(change, 1))
    (row,) = run(replace(job, methods=methods))["rows"]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert re.fullmatch(rf"left out, rows too long \(description {message}\): 1 of 12 in train", line)
    assert row["splits"]["unseen"]["n"] == 4


@pytest.mark.parametrize(("change", "methods", "message"), LONG)
def test_over_a_tenth_of_a_split_that_does_not_fit_is_refused_before_training(change, methods, message, job):
    changed(job, with_long(change, 2))
    with pytest.raises(ValueError, match=rf"description {message}\): 2 of 12 in train: shorten them, or choose"):
        run(replace(job, methods=methods))
    assert not list(job.run.glob("*.*"))


def test_a_split_of_which_nothing_fits_is_refused_before_training(job):
    changed(job, lambda rows: [r._replace(prompt="word " * 400) if r.split == "unseen" else r for r in rows])
    with pytest.raises(ValueError, match="rows too long .*: 4 of 4 in unseen: shorten them"):
        run(job)
    assert not list(job.run.glob("*.*"))


def test_what_was_found_to_fit_fits_in_every_control(job):
    lengths = iter(range(200, 0, -1))

    def longest(rows: list[Record]) -> list[Record]:
        rows[4] = rows[4]._replace(prompt="é" * next(lengths))  # a token for each of its two bytes
        return [*rows, *(rows[4]._replace(answer=f" {i}") for i in range(40)), *rows[6:]]

    while True:
        try:
            run(replace(changed(job, longest), methods="prompt"))
            break
        except ValueError as error:
            assert "rows too long" in str(error)  # before training; not in an evaluation
            assert not list(job.run.glob("*.*"))
    assert next(lengths) < 100


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (lambda row: row.split == "train", "no rows to evaluate"),
        (lambda row: row.context == "bowers", "trains on one context only"),
        (lambda row: row.split == "train" or row.context == "bowers", "add one to swap"),
    ],
)
def test_data_that_cannot_tell_contexts_apart_is_refused_before_training(keep, message, job):
    changed(job, lambda rows: filter(keep, rows))
    with pytest.raises(ValueError, match=message):
        run(job)
    assert not list(job.run.glob("*.*"))


def test_a_loss_that_is_no_number_stops_training_and_its_advice_helps(job):
    hot = replace(job, methods="lora", steps=40, lr=1e18)
    with pytest.raises(ValueError, match=r"lora: the loss is (nan|inf) at step \d+: lower the rate, 1e"):
        run(hot)
    assert run(replace(hot, lr=1e-3, force=True))["rows"][0]["steps"] == 40


def test_the_same_seed_gives_the_same_results_and_another_gives_others(job, tmp_path):
    def scores(seed: int, name: str) -> dict:
        (row,) = run(replace(job, seed=seed, out=str(tmp_path / name)))["rows"]
        return row["splits"], row["controls"], row["losses"]

    assert scores(0, "first") == scores(0, "second") != scores(1, "third")
