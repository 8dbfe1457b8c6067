"""The main job: what is trained, what stays frozen, the results, and what is refused."""

import csv
import json
from dataclasses import fields

import pytest
import torch
from conftest import cli, two_cultures

import train
from data import Record
from train import METHODS, Settings, batches, evaluate, learning_rate, table
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
    assert code == 0 and table(results, False) in printed
    assert {"data", "seed", "device", "rows"} <= set(results)
    assert [row["method"] for row in results["rows"]] == list(METHODS)
    for row in results["rows"]:
        assert {"trainable", "encoder", "steps", "seconds", "splits", "margin", "controls"} <= set(row)
        assert set(row["splits"]["unseen"]) == {"accuracy", "nll", "n"} and row["splits"]["unseen"]["n"] == 4
        assert set(row["controls"]) == {"swapped", "random", "none"}
        assert row["margin"] == row["splits"]["unseen"]["accuracy"] - row["controls"]["swapped"]["accuracy"]
        assert row["steps"] == (3 if METHODS[row["method"]].kind else 0)
        loaded = Zhyper.load(out, row["method"])
        adapter = list(loaded.adapter.parameters()) if loaded.adapter else []
        assert row["trainable"] == sum(p.numel() for p in adapter)
    with open(out / "log.csv", newline="") as file:
        log = list(csv.DictReader(file))
    assert {row["method"] for row in log} == {"pretrain"} | {name for name in METHODS if METHODS[name].kind}
    assert all(float(row["loss"]) > 0 for row in log)


def test_the_frozen_row_does_not_depend_on_any_description(monkeypatch, capsys, tmp_path):
    path = write(two_cultures(), tmp_path / "two.jsonl")
    results = train.run(train.read_settings(["--data", path, "--preset", "smoke", "--out", str(tmp_path / "run")]))
    frozen = results["rows"][0]
    assert frozen["margin"] == 0 and all(score == frozen["splits"]["unseen"] for score in frozen["controls"].values())


def test_every_setting_is_an_option_with_help(monkeypatch, capsys):
    code, out, _ = cli(train, monkeypatch, capsys, "-h")
    assert code == 0
    for field in fields(Settings):
        assert "--" + field.name.replace("_", "-") in out


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
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_one_line_and_leaves_earlier_results_alone(arguments, message, monkeypatch, capsys, tmp_path):
    (tmp_path / "results.json").write_text("earlier")
    code, out, err = cli(train, monkeypatch, capsys, *arguments, "--out", str(tmp_path))
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
    settings = train.read_settings(["--data", write(data, tmp_path / "two.jsonl"), "--preset", "smoke"])
    settings = train.replace(settings, methods=methods, out=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=rf"two.*tokens long.*{message} \d+: shorten"):
        train.run(settings)
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
        train.run(train.read_settings(["--data", path, "--preset", "smoke", "--out", str(tmp_path / "run")]))
    assert not (tmp_path / "run").exists()


def test_the_table_of_fixed_results_is_fixed():
    score = {"accuracy": 0.5, "nll": 1.25, "n": 4}
    row = {"method": "lora", "trainable": 1234, "encoder": 0, "steps": 3, "seconds": 1.6, "margin": -0.001}
    results = {"rows": [row | {"splits": {"unseen": score}, "controls": {"swapped": score}}]}
    assert table(results, False).splitlines() == [
        "| method | trained | encoder | steps | seconds | unseen | (swapped) | margin |",
        "|---|---|---|---|---|---|---|---|",
        "| lora | 1,234 | 0 | 3 | 2 | 0.50 | 0.50 | 0.00 |",
    ]
    assert "| 1.250 | 1.250 | -0.001 |" in table(results, True)
