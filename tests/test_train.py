"""The main job: what is trained, what stays frozen, the results, and what is refused."""

import csv
import json
import sys
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from conftest import cli, two_cultures
from hypothesis import given, settings
from hypothesis import strategies as st

import train
from data import Record
from hyper import count_parameters
from train import (
    METHODS,
    Settings,
    batches,
    bootstrap,
    evaluate,
    learning_rate,
    read_results,
    retrieval,
    run,
    score_rows,
    summarise,
    table,
    write_results,
)
from zhyper import Zhyper


def write(data, path) -> str:
    path.write_text("\n".join(json.dumps(record._asdict()) for record in data.records))
    return str(path)


def test_a_tiny_run_learns_two_cultures_apart(trained):
    system, data, _ = trained
    rows = data.split("unseen")
    assert evaluate(system, rows, None)["accuracy"] <= 0.5
    assert evaluate(system, rows, [row.description for row in rows])["accuracy"] == 1.0


def test_swapping_the_description_changes_the_answer(trained):
    system, data, _ = trained
    rows = data.split("unseen")
    other = {row.context: row.description for row in rows}
    told = [other["singers" if row.context == "bowers" else "bowers"] for row in rows]
    swapped = {(row.context, row.prompt): row.answer for row in rows}
    expected = [swapped["singers" if row.context == "bowers" else "bowers", row.prompt] for row in rows]
    assert system.generate([row.prompt for row in rows], told) == expected


def test_the_frozen_tensors_are_bit_identical_after_training_and_every_trainable_one_has_moved(trained):
    system, _, before = trained
    for name, weight in system.state_dict().items():
        assert torch.equal(weight, before[name]) == name.startswith("backbone."), name


def test_every_step_takes_all_questions_of_distinct_descriptions_in_turn():
    rows = [Record(f"c{i}", f"d{i}", f"p{j}", " a", "train") for i in range(6) for j in range(5)]
    stream = batches(rows, 3, 4, train.random.Random(0))
    first, second = next(stream), next(stream)
    assert {row.description for row in first + second} == {f"d{i}" for i in range(6)}
    assert len(first) == 12 and len(set(first)) == 12


def test_the_learning_rate_warms_up_and_falls_to_a_tenth():
    rates = [learning_rate(step, 1000) for step in range(1000)]
    assert (
        rates[49] == 1.0 == max(rates) and rates[:50] == sorted(rates[:50]) and rates[49:] == sorted(rates[49:])[::-1]
    )
    assert 0.1 <= rates[-1] < 0.101


def test_the_main_job_writes_what_it_says(monkeypatch, capsys, tmp_path):
    path, out = write(two_cultures(), tmp_path / "two.jsonl"), tmp_path / "run"
    code, printed, _ = cli(
        train,
        monkeypatch,
        capsys,
        "--data",
        path,
        "--preset",
        "smoke",
        "--methods",
        "all",
        "--steps",
        "3",
        "--out",
        str(out),
    )
    results = json.loads((out / "results.json").read_text())
    assert code == 0 and table(results) in printed
    assert {"data", "measure", "seed", "device", "settings", "rows", "pretrain_seconds"} <= set(results)
    assert [row["method"] for row in results["rows"]] == list(METHODS)
    for row in results["rows"]:
        assert {"trainable", "encoder", "steps", "seconds", "splits", "margin", "controls", "seed"} <= set(row)
        assert set(row["splits"]["unseen"]) == {"accuracy", "nll", "n"} and row["splits"]["unseen"]["n"] == 4
        assert set(row["controls"]) == {"swapped", "random", "none"}
        assert row["margin"] == row["splits"]["unseen"]["accuracy"] - row["controls"]["swapped"]["accuracy"]
        assert row["steps"] == (3 if METHODS[row["method"]].kind else 0)
        loaded = Zhyper.load(out, row["method"])
        if loaded.adapter:
            d_text, config = loaded.encoder.width if loaded.encoder else 0, loaded.backbone.config
            formula = count_parameters(loaded.adapter.config, config.layers, config.shapes, d_text)
            assert row["trainable"] == formula == sum(p.numel() for p in loaded.adapter.parameters())
        else:
            assert row["trainable"] == row["encoder"] == 0
    with open(out / "log.csv", newline="") as file:
        log = list(csv.DictReader(file))
    assert {row["method"] for row in log} == {"pretrain"} | {name for name in METHODS if METHODS[name].kind}
    assert all(float(row["loss"]) > 0 for row in log)


def test_the_frozen_row_does_not_depend_on_any_description(monkeypatch, capsys, tmp_path):
    path = write(two_cultures(), tmp_path / "two.jsonl")
    results = run(train.read_settings(["--data", path, "--preset", "smoke", "--out", str(tmp_path / "run")]))
    frozen = results["rows"][0]
    assert frozen["margin"] == 0 and all(score == frozen["splits"]["unseen"] for score in frozen["controls"].values())


def test_every_setting_is_an_option_with_help(monkeypatch, capsys):
    code, out, _ = cli(train, monkeypatch, capsys, "-h")
    assert code == 0
    for field in fields(Settings):
        assert "--" + field.name.replace("_", "-") in out


def smoke(path: str, out, **changes) -> Settings:
    return replace(Settings(data=path, preset="smoke", steps=3, out=str(out)), **changes)


def strip(row: dict) -> dict:
    return {name: value for name, value in row.items() if name != "seconds"}


def test_a_context_told_by_name_cannot_be_served_when_it_is_unseen(tmp_path):
    data = two_cultures()
    data.records[:] = [
        *(r for r in data.records if r.split == "train"),
        *(r._replace(split="seen") for r in data.split("unseen")),
        *(r._replace(context=r.context + "-2") for r in data.split("unseen")),
    ]
    path = write(data, tmp_path / "two.jsonl")
    results = run(smoke(path, tmp_path / "run", methods="onehot,oracle,zhyper-diag"))
    for row in results["rows"]:
        assert row["splits"]["seen"]["n"] == 4
        assert (row["splits"]["unseen"] is None) == (row["method"] != "zhyper-diag")
        assert (row["margin"] is None) == (row["method"] != "zhyper-diag")
    assert "| – | – | – | – | – |" in table(results)


def test_the_oracle_learns_what_a_context_told_by_name_can_be_told(tmp_path):
    data = two_cultures()
    data.records[:] = [r._replace(split="seen") if r.split == "unseen" else r for r in data.records]
    job = smoke(write(data, tmp_path / "two.jsonl"), tmp_path / "run", methods="lora,oracle,onehot", steps=60)
    accuracy = {row["method"]: row["splits"]["seen"]["accuracy"] for row in run(job)["rows"]}
    assert accuracy["oracle"] == accuracy["onehot"] == 1.0 and accuracy["lora"] <= 0.5


def test_a_stopped_run_goes_on_with_what_is_missing_and_ends_as_one_that_was_not(tmp_path):
    path = write(two_cultures(), tmp_path / "two.jsonl")
    whole = run(smoke(path, tmp_path / "whole", methods="frozen,lora,zhyper-diag"))
    first = run(smoke(path, tmp_path / "parts", methods="frozen,lora"))
    parts = run(smoke(path, tmp_path / "parts", methods="frozen,lora,zhyper-diag"))
    assert parts["rows"][:2] == first["rows"] and parts["pretrain_seconds"] == first["pretrain_seconds"]
    assert list(map(strip, parts["rows"])) == list(map(strip, whole["rows"]))
    assert run(smoke(path, tmp_path / "parts", methods="frozen,lora,zhyper-diag")) == parts


def test_results_of_other_settings_are_refused_unless_forced(tmp_path):
    path, out = write(two_cultures(), tmp_path / "two.jsonl"), tmp_path / "run"
    run(smoke(path, out, methods="frozen"))
    before = (out / "results.json").read_text()
    for changes, message in [({"steps": 4}, "steps 3, now 4"), ({"seeds": 2}, "number of seeds")]:
        with pytest.raises(ValueError, match=f"other settings .*{message}.*--force"):
            run(smoke(path, out, methods="frozen", **changes))
        assert (out / "results.json").read_text() == before
    assert run(smoke(path, out, methods="frozen", steps=4, force=True))["settings"]["steps"] == 4


def test_every_seed_is_a_run_of_its_own_and_the_table_has_their_mean_and_spread(tmp_path):
    path = write(two_cultures(), tmp_path / "two.jsonl")
    both = run(smoke(path, tmp_path / "run", methods="frozen,lora", seeds=2, seed=5))
    assert both["seeds"] == [5, 6] and [row["seed"] for row in both["rows"]] == [5, 6, 5, 6]
    alone = run(smoke(path, tmp_path / "alone", methods="frozen,lora", seed=6))
    assert [strip(row) for row in both["rows"] if row["seed"] == 6] == list(map(strip, alone["rows"]))
    assert read_results(tmp_path / "run") == both and "±" in table(both) and "±" not in table(alone)
    assert len(run(smoke(path, tmp_path / "run", methods="frozen,lora", seeds=3, seed=5))["rows"]) == 6


def test_a_budget_in_seconds_ends_training_in_time_at_the_lowest_rate(tmp_path):
    path = write(two_cultures(), tmp_path / "two.jsonl")
    (row,) = run(smoke(path, tmp_path / "run", methods="zhyper-diag", seconds=1))["rows"]
    assert 1 <= row["seconds"] < 3 and row["steps"] > 10
    with open(tmp_path / "run/log.csv", newline="") as file:
        shares = [float(line["lr_share"]) for line in csv.DictReader(file) if line["method"] == "zhyper-diag"]
    assert max(shares) > 0.8 and shares[-1] < 0.2


def test_validation_looks_at_its_own_split_and_no_other(tmp_path):
    data = two_cultures()
    data.records.extend(record._replace(split="validation") for record in data.split("unseen"))
    path = write(data, tmp_path / "two.jsonl")
    (row,) = run(smoke(path, tmp_path / "run", methods="lora-prompt", validate=True))["rows"]
    assert list(row["splits"]) == ["validation"] and row["margin"] is not None
    (row,) = run(smoke(path, tmp_path / "other", methods="frozen"))["rows"]
    assert list(row["splits"]) == ["unseen"]


BAD = [
    (["--data", "poems"], "unknown data set 'poems'"),
    (["--data", "none.jsonl"], "no file none.jsonl"),
    (["--data", "none.jsonl", "--data-path", "x"], "leave out --data-path"),
    (["--methods", "zhyper"], "unknown method 'zhyper'"),
    (["--methods", ""], "unknown method ''"),
    (["--modules", "q,x"], "unknown module 'x'"),
    (["--modules", "q,q"], "at most once"),
    (["--trunk", "tall"], "unknown trunk 'tall'"),
    (["--preset", "huge"], "unknown preset 'huge'"),
    (["--rank", "-1"], "may not be negative"),
    (["--rank", "two"], "invalid int value"),
    (["--device", "tpu"], "unknown device 'tpu'"),
    (["--data-path", "x"], "leave out --data-path"),
    (["--data", "voices", "--data-path", "none.txt"], "no file none.txt"),
    (["--fast"], "--fast"),
    (["--seeds", "0"], "at least 1"),
    (["--lr", "nan"], "lr is nan"),
    (["--seconds", "-5"], "may not be negative"),
    (["--contexts", "1"], "choose 2 to 16384"),
    (["--data", "voices", "--contexts", "16"], "leave out --contexts"),
    (["--descriptions", "file.json"], "leave out --descriptions"),
    (["--data", "instructions", "--data-path", "none"], "no folder none"),
    (["--report", "none"], "no results in none"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_one_line_and_leaves_earlier_results_alone(arguments, message, monkeypatch, capsys, tmp_path):
    (tmp_path / "results.json").write_text("earlier")
    code, out, err = cli(train, monkeypatch, capsys, *arguments, "--force", "--out", str(tmp_path))
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err
    assert (tmp_path / "results.json").read_text() == "earlier" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "methods", "message"),
    [
        ({"description": "word " * 400}, "zhyper-diag", "the encoder reads"),
        ({"prompt": "word " * 400}, "zhyper-diag", "the backbone reads"),
        ({"description": "word " * 150, "prompt": "word " * 150}, "prompt", "the backbone reads"),
    ],
)
def test_a_text_that_does_not_fit_is_refused_with_both_lengths(change, methods, message, tmp_path):
    data = two_cultures()
    data.records[0] = data.records[0]._replace(**change)
    job = smoke(write(data, tmp_path / "two.jsonl"), tmp_path / "run", methods=methods)
    with pytest.raises(ValueError, match=rf"two.*tokens long.*{message} \d+: shorten"):
        run(job)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (lambda record: record.split == "train", "no rows to evaluate"),
        (lambda record: record.context == "bowers", "trains on one context only"),
        (lambda record: record.split == "train" or record.context == "bowers", "one context only: add another to swap"),
    ],
)
def test_data_that_cannot_tell_contexts_apart_is_refused_before_training(keep, message, tmp_path):
    data = two_cultures()
    data.records[:] = filter(keep, data.records)
    path = write(data, tmp_path / "two.jsonl")
    with pytest.raises(ValueError, match=message):
        run(train.read_settings(["--data", path, "--preset", "smoke", "--out", str(tmp_path / "run")]))
    assert not (tmp_path / "run").exists()


def test_the_majority_is_what_always_saying_a_contexts_commonest_answer_would_score():
    answers = {"yes or no": " yes" * 15, "capital": " a b c d e f g h i j"}
    rows = [Record(c, "d", "p", f" {answer}", "seen") for c, several in answers.items() for answer in several.split()]
    exact = torch.tensor([1.0] * 12 + [0.0] * 13).double()
    scores = torch.ones(25).double(), torch.full((25,), 2.0).double(), exact
    families = {"all": ["yes or no", "capital"], "facts": ["capital", "absent"], "none": ["absent"]}
    summary = summarise(rows, scores, families)
    assert summary["majority"] == (15 + 1) / 25 and summary["accuracy"] == 12 / 25 and summary["nll"] == 0.5
    assert summary["families"]["facts"] == {"accuracy": 0.0, "majority": 0.1} and "none" not in summary["families"]
    assert summary["families"]["all"] == {"accuracy": 0.4, "majority": 0.55}  # the mean over contexts, not over rows
    assert "majority" not in summarise(rows[:19], tuple(column[:19] for column in scores), {})  # too few to tell


def test_the_bootstrap_interval_is_paired_and_holds_the_mean():
    generator = torch.Generator().manual_seed(0)
    hard = 50 * torch.rand(400, generator=generator).double()  # how hard a row is, the same for both
    tokens = torch.full((400,), 10.0).double()
    gap = 1 + torch.randn(400, generator=generator).double()
    low, high = bootstrap((hard + gap) - hard, tokens, 0)
    mean, error = gap.mean().item() / 10, gap.std().item() / 10 / 400**0.5
    assert low < mean < high and abs((high - low) / (2 * 1.96 * error) - 1) < 0.1
    assert bootstrap(gap, tokens, 0) == [low, high] != bootstrap(gap, tokens, 1)


def test_retrieval_is_right_where_the_text_is_read_and_chance_where_it_is_not(trained):
    system, data, _ = trained
    rows = data.split("unseen")
    scores = score_rows(system, rows, [row.description for row in rows])
    assert retrieval(system, rows, scores[0], train.random.Random(0)) == {"accuracy": 1.0, "chance": 0.5}
    frozen = Zhyper(system.tokenizer, system.backbone)
    scores = score_rows(frozen, rows, [row.description for row in rows])
    assert retrieval(frozen, rows, scores[0], train.random.Random(0)) == {"accuracy": 0.5, "chance": 0.5}


def test_free_text_is_reported_by_gaps_with_intervals_and_by_retrieval(tmp_path):
    data, more = two_cultures(), " and so on, at such a length that nobody could say it letter by letter"
    data.records[:] = [record._replace(answer=record.answer + more) for record in data.records]
    path = write(data, tmp_path / "two.jsonl")
    results = run(smoke(path, tmp_path / "run", methods="frozen,zhyper-diag", steps=20))
    frozen, diag = results["rows"]
    assert frozen["gaps"] == {"swapped": [0, 0, 0], "none": [0, 0, 0]} and frozen["retrieval"]["accuracy"] == 0.5
    gap, low, high = diag["gaps"]["swapped"]
    assert low <= gap <= high and abs(gap - diag["margin"]) < 1e-12
    assert f"| zhyper-diag | 0 | {gap:z.3f} [{low:z.3f}, {high:z.3f}] |" in table(results)
    assert read_results(tmp_path / "run") == results


def fixed_row(method: str, seed: int, accuracy: float) -> dict:
    score = {"accuracy": accuracy, "nll": 1.25, "n": 4}
    row = {"method": method, "seed": seed, "contexts": 2, "trainable": 1234, "encoder": 0, "steps": 3, "seconds": 1.6}
    return row | {"splits": {"seen": score, "unseen": score}, "controls": {"swapped": score}, "margin": -0.0001}


def fixed_results() -> dict:
    rows = [fixed_row("lora", 0, 0.5), fixed_row("lora", 1, 0.75), fixed_row("onehot", 0, 1.0)]
    rows[2] |= {"splits": rows[2]["splits"] | {"unseen": None}, "controls": {"swapped": None}, "margin": None}
    return {"data": "fixed", "measure": "accuracy", "settings": {}, "rows": rows}


FIXED_TABLE = """\
| method | trainable | encoder | contexts | steps | seconds | seen | unseen | (swapped) | margin |
|---|---|---|---|---|---|---|---|---|---|
| lora | 1,234 | 0 | 2 | 3 | 2 | 0.625 ±0.177 | 0.625 ±0.177 | 0.625 ±0.177 | 0.000 ±0.000 |
| onehot | 1,234 | 0 | 2 | 3 | 2 | 1.000 | – | – | – |
"""


def test_the_report_of_fixed_results_is_fixed(monkeypatch, capsys, tmp_path):
    write_results(tmp_path, fixed_results())
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    code, out, _ = cli(train, monkeypatch, capsys, "--report", str(tmp_path))
    assert code == 0 and out == FIXED_TABLE + "no figure: for that, pip install matplotlib\n"
    assert "| 1.250 ±0.000 |" in table(fixed_results() | {"measure": "nll"})


def test_the_table_shows_the_majority_first_and_families_below():
    results = fixed_results()
    results["rows"].pop()
    for row in results["rows"]:
        score = row["splits"]["seen"]
        row["splits"]["seen"] = score | {"majority": 0.25, "families": {"facts": {"accuracy": 0.5, "majority": 0.125}}}
    lines = table(results).splitlines()
    assert lines[2] == "| majority | – | – | – | – | – | 0.250 ±0.000 | – | – | – |"
    assert lines[4:] == [
        "",
        "| split | family | majority | lora |",
        "|---|---|---|---|",
        "| seen | facts | 0.125 ±0.000 | 0.500 ±0.000 |",
    ]


def test_the_report_draws_a_figure_where_matplotlib_is(monkeypatch, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    write_results(tmp_path, fixed_results())
    code, _, _ = cli(train, monkeypatch, capsys, "--report", str(tmp_path))
    assert code == 0 and (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=8), st.integers(0, 1300), st.integers(0, 40))
def test_a_results_file_round_trips_and_an_altered_one_is_read_or_refused(noise, at, cut):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_results(folder, fixed_results())
        assert read_results(folder) == fixed_results()
        content = (folder / "results.json").read_bytes()
        (folder / "results.json").write_bytes(content[:at] + noise + content[at + cut :])
        try:
            table(read_results(folder))
        except ValueError as error:
            assert "--force to replace" in str(error)
