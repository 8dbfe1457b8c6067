"""The main job: what is trained, what stays frozen, the results, and what is refused."""

import csv
import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
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
    RunFolder,
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
from zhyper import Zhyper, one_line_errors


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
    words = f"--data {path} --preset smoke --methods all --steps 3 --out {out}"
    code, printed, _ = cli(train, monkeypatch, capsys, *words.split())
    results = json.loads((out / "results.json").read_text())
    assert code == 0 and table(results) in printed
    assert {"data", "measure", "seed", "device", "settings", "rows", "pretrain_seconds"} <= set(results)
    assert [row["method"] for row in results["rows"]] == list(METHODS)
    for row in results["rows"]:
        assert {"trainable", "encoder", "steps", "seconds", "splits", "margin", "controls", "seed"} <= set(row)
        assert set(row["splits"]["unseen"]) == {"accuracy", "nll", "n"} and row["splits"]["unseen"]["n"] == 4
        assert set(row["controls"]) == {"swapped", "random", "none"}
        if METHODS[row["method"]].by_name:  # a name has no words to swap
            assert row["margin"] is None and set(row["controls"].values()) == {None}
        else:
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


@pytest.mark.parametrize("stalled", [0, 1000])
def test_a_budget_in_seconds_is_counted_at_the_median_pace_and_ends_at_the_lowest_rate(stalled, monkeypatch, tmp_path):
    looks = itertools.count()  # at a clock by which every step takes half a second, but for one that stalls

    def clock() -> float:
        look = next(looks)
        return look / 2 + (stalled if look > 200 else 0)

    monkeypatch.setattr(train.time, "perf_counter", clock)
    path = write(two_cultures(), tmp_path / "two.jsonl")
    (row,) = run(smoke(path, tmp_path / "run", methods="lora", seconds=50))["rows"]
    assert row["steps"] == 100 and row["seconds"] == 50 + stalled
    with open(tmp_path / "run/log.csv", newline="") as file:
        shares = [float(line["lr_share"]) for line in csv.DictReader(file) if line["method"] == "lora"]
    assert max(shares) > 0.9 and shares[-1] < 0.11


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
    (["--report", "none,none"], "no results in none"),
    (["--preset", ""], "unknown preset ''"),
    (["--steps", "-1"], "may not be negative"),
    (["--steps", "1e3"], "invalid int value"),
    (["--seconds", "nan"], "invalid int value"),
    (["--lr", "-1"], "may not be negative"),
    (["--lr", "inf"], "lr is inf"),
    (["--lr", "fast"], "invalid float value"),
    (["--seed", "-3"], "may not be negative"),
    (["--seed", "1.5"], "invalid int value"),
    (["--seeds", "two"], "invalid int value"),
    (["--contexts", "99999"], "choose 2 to 16384"),
    (["--contexts", "-2"], "may not be negative"),
    (["--methods", "frozen,,lora"], "unknown method ''"),
    (["--methods", "all,frozen"], "unknown method 'all'"),
    (["--modules", ""], "unknown module ''"),
    (["--data", ""], "unknown data set ''"),
    (["--data", "../data/cultures"], "unknown data set"),
    (["--data", "tasks", "--data-path", "x"], "leave out --data-path"),
    (["--data", "tasks", "--contexts", "16"], "leave out --contexts"),
    (["--data"], "expected one argument"),
    (["cultures"], "cultures"),
    (["--force=yes"], "--force"),
    (["--accumulate", "0"], "accumulate is 0: it must be at least 1"),
    (["--accumulate", "half"], "invalid int value"),
    (["--dtype", "fp8"], "unknown dtype 'fp8'"),
    (["--device", "mps" if torch.cuda.is_available() else "cuda"], "this machine has no"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_a_bad_option_is_one_line_and_leaves_earlier_results_alone(arguments, message, monkeypatch, capsys, tmp_path):
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


# ---- stopped, starved and fed nonsense


def command(folder: Path, *words: str) -> None:
    """What a child process runs: train.py with these words, its output in files."""
    sys.argv = ["train.py", *words]
    with open(folder / "stdout", "a") as sys.stdout, open(folder / "stderr", "a") as sys.stderr:
        one_line_errors(train.main)


def start(folder: Path, *words: str) -> multiprocessing.Process:
    """A child process that has imported torch already, so that it starts in no time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train", "torch._dynamo"])
    child = context.Process(target=command, args=(folder, *words))
    child.start()
    return child


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[list[str], Path, float]:
    """The words of a smoke run, the folder that it wrote without being disturbed, and the seconds it took."""
    folder = tmp_path_factory.mktemp("whole")
    words = f"--data {write(two_cultures(), folder / 'two.jsonl')} --preset smoke --methods zhyper-diag-paper".split()
    child, since = start(folder, *words, "--out", str(folder / "run")), time.perf_counter()
    child.join()
    assert child.exitcode == 0, (folder / "stderr").read_text()
    return words, folder / "run", time.perf_counter() - since


def same_run(first: Path, second: Path) -> bool:
    """Whether two run folders hold the same weights, bit for bit, and the same results, apart from times."""

    def timeless(path: Path) -> dict:
        results = read_results(path)
        return results | {"pretrain_seconds": 0, "rows": list(map(strip, results["rows"]))}

    states = [Zhyper.load(path, "zhyper-diag-paper").state_dict() for path in (first, second)]
    equal = all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())
    logs = [(path / "log.csv").read_text().splitlines() for path in (first, second)]
    logs = [[line.split(",")[:4] for line in lines] for lines in logs]
    return equal and timeless(first) == timeless(second) and logs[0] == logs[1]


@pytest.mark.parametrize("number", range(25))
def test_a_run_that_is_killed_and_resumed_ends_at_the_weights_of_one_that_was_not(number, whole, tmp_path):
    words, run_folder, seconds = whole
    how = signal.SIGINT if number < 5 else signal.SIGKILL
    child = start(tmp_path, *words, "--out", str(tmp_path / "run"))
    child.join(random.uniform(0, seconds))
    if child.is_alive():
        os.kill(child.pid, how)
        child.join()
        assert child.exitcode in {signal.SIGINT: (0, 1, 130), signal.SIGKILL: (0, -9)}[how]  # 1: before main began
    resumed = start(tmp_path, "--resume", "--out", str(tmp_path / "run"), *(() if started(tmp_path / "run") else words))
    resumed.join()
    assert resumed.exitcode == 0, (tmp_path / "stderr").read_text()
    assert same_run(tmp_path / "run", run_folder)
    assert not list((tmp_path / "run").glob("*.tmp")) and not list((tmp_path / "run").glob("checkpoint*"))


def started(folder: Path) -> bool:
    """Whether a run has got as far as to note its options."""
    return (folder / "options.json").exists()


def test_ctrl_c_ends_in_one_line_that_says_how_to_go_on(whole, tmp_path):
    words, run_folder, _ = whole
    child = start(tmp_path, *words, "--out", str(tmp_path / "run"))
    while not (tmp_path / "run/checkpoint.pt").exists():
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGINT)
    child.join()
    said = (tmp_path / "stderr").read_text().splitlines()[-1]
    assert child.exitcode == 130 and "stopped at step" in said
    assert said.endswith(f"go on with: python train.py --resume --out {tmp_path / 'run'}")
    assert train.read_settings(said.partition("train.py ")[2].split()).methods == "zhyper-diag-paper"


TINY = replace(train.PRESETS["smoke"], pretrain_steps=4, steps=4, checkpoint=2, batch=2, row=16)


def fail_at(monkeypatch, number: int) -> None:
    """Let the disk be full when a file is written for the number-th time."""
    writes = itertools.count()

    def full(_):
        if next(writes) == number:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("zhyper.os.fsync", full)


def test_a_disk_that_is_full_at_any_write_loses_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(train.PRESETS, "smoke", TINY)
    words = f"--data {write(two_cultures(), tmp_path / 'two.jsonl')} --preset smoke --methods zhyper-diag-paper".split()
    assert cli(train, monkeypatch, capsys, *words, "--out", str(tmp_path / "whole"))[0] == 0
    failures = 0
    for number in itertools.count():
        out = tmp_path / str(number)
        with monkeypatch.context() as patch:
            fail_at(patch, number)
            code, _, err = cli(train, patch, capsys, *words, "--out", str(out))
        if code == 0:
            break
        failures += 1
        said = err.splitlines()[-1]
        assert code == 2 and "No space left on device" in said and "make room" in said
        assert not list(out.glob("*.tmp"))
        assert cli(train, monkeypatch, capsys, *words, "--out", str(out))[0] == 0
        assert same_run(out, tmp_path / "whole")
    assert failures >= 11  # options, 2 × 2 checkpoints, twice tokenizer and backbone, the method, twice the results


def stop_at_third_checkpoint(monkeypatch, settings: Settings) -> None:
    """Stop a run as if it were interrupted, when its third checkpoint is written."""
    saves, save = itertools.count(1), RunFolder.save

    def save_and_stop(folder, *state):
        save(folder, *state)
        if next(saves) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "save", save_and_stop)
        run(settings)


def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(monkeypatch, capsys, tmp_path):
    path = write(two_cultures(), tmp_path / "two.jsonl")
    run(smoke(path, tmp_path / "whole", methods="zhyper-diag-paper"))
    job = smoke(path, tmp_path / "run", methods="zhyper-diag-paper")
    stop_at_third_checkpoint(monkeypatch, job)
    last = tmp_path / "run/checkpoint.pt"
    last.write_bytes(last.read_bytes()[:-1000])
    capsys.readouterr()
    run(job)
    assert f"{last} cannot be read" in (said := capsys.readouterr().err) and "going on from the one before" in said
    assert same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # of an altered file
@settings(max_examples=200, deadline=None)
@given(noise=st.binary(max_size=12), at=st.floats(0, 1), cut=st.integers(0, 3000) | st.just(10**9))
def test_an_altered_checkpoint_is_passed_over_or_read_as_it_was(noise, at, cut):
    with tempfile.TemporaryDirectory() as name:
        folder = RunFolder(Path(name), {"seed": 0}, 1)
        for step in (1, 2):
            folder.save("x", {"step": step, "weights": torch.full((50,), float(step))})
        whole = folder.checkpoints[0].read_bytes()
        begin = round(at * len(whole))
        folder.checkpoints[0].write_bytes(whole[:begin] + noise + whole[begin + cut :])
        state = folder.load("x")
        assert torch.equal(state["weights"], torch.full((50,), float(state["step"])))
        folder.checkpoints[1].write_bytes(b"")
        folder.checkpoints[0].write_bytes(b"")
        with pytest.raises(ValueError, match="start again with --force"):
            folder.load("x")


def test_a_checkpoint_of_other_settings_is_refused_with_both_values(monkeypatch, tmp_path):
    job = smoke(write(two_cultures(), tmp_path / "two.jsonl"), tmp_path / "run", methods="lora")
    stop_at_third_checkpoint(monkeypatch, job)
    with pytest.raises(ValueError, match="saved with steps 3, here is steps 4.*--force"):
        run(replace(job, steps=4))
    run(replace(job, steps=4, force=True))


def test_data_that_changed_since_a_run_was_stopped_is_refused(tmp_path):
    data = two_cultures()
    job = smoke(write(data, tmp_path / "two.jsonl"), tmp_path / "run", methods="frozen")
    run(job)
    data.records[0] = data.records[0]._replace(answer=" nod")
    write(data, tmp_path / "two.jsonl")
    with pytest.raises(ValueError, match=r"records '\w{12}', now '\w{12}'"):
        run(replace(job, methods="frozen,lora"))


def test_a_second_process_on_the_same_folder_is_refused(tmp_path):
    job = smoke(write(two_cultures(), tmp_path / "two.jsonl"), tmp_path / "run", methods="frozen")
    with train.only_writer(tmp_path / "run"), pytest.raises(ValueError, match="another process is writing .*--out"):
        run(job)
    run(job)


def test_a_loss_that_is_no_number_stops_training_and_names_step_rate_and_checkpoint(tmp_path):
    path = write(two_cultures(), tmp_path / "two.jsonl")
    job = smoke(path, tmp_path / "run", methods="lora", steps=40, lr=1e30)
    with pytest.raises(ValueError, match=r"lora: the loss is (nan|inf) at step \d+, .*rate of .*e\+.*of step \d+"):
        run(job)


def test_the_same_seed_gives_the_same_results_twice(tmp_path):
    path = write(two_cultures(), tmp_path / "two.jsonl")
    for name in ("first", "second"):
        run(smoke(path, tmp_path / name, methods="zhyper-diag-paper"))
    assert same_run(tmp_path / "first", tmp_path / "second")
