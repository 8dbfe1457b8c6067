"""The evidence: tables of fixed results, orders and ties, runs of several seeds that go on, and its commands."""

import json
import re
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import smoke, two_cultures

sys.path.insert(0, str(Path(__file__).parent))

import rivals
import run

import train
from data import cultures
from train import METHODS, PRESETS


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The smoke preset, smaller still; METHODS and the bias are as they were afterwards."""
    sizes = {"pretrain_steps": 4, "pretrain_batch": 2, "descriptions_per_step": 2, "log": 2}
    monkeypatch.setitem(PRESETS, "smoke", replace(PRESETS["smoke"], **sizes))
    monkeypatch.setattr(train, "PRETRAIN_TOKENS", 16)
    monkeypatch.setattr(cultures, "MAJORITY_SHARE", cultures.MAJORITY_SHARE)
    monkeypatch.setattr(run, "TIMED_STEPS", 2)
    methods = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(methods)


@pytest.fixture
def path(tmp_path) -> str:
    """Two cultures with choices, in a file; validation asks what unseen asks."""
    records = []
    for record in two_cultures().records:
        record = record._replace(choices=(" bow", " sing") if "greet" in record.prompt else (" cut", " raise"))
        records += [record] if record.split == "train" else [record, record._replace(split="validation")]
    file = tmp_path / "two.jsonl"
    file.write_text("\n".join(json.dumps(record._asdict()) for record in records))
    return str(file)


@pytest.fixture
def cli(run_main):
    return partial(run_main, run.main)


def options(path: str, out: Path, methods: str, *more: object) -> list:
    words = ["--data", path, "--preset", "smoke", "--steps", 4, "--device", "cpu", "--out", out, "--methods", methods]
    return [*words, *more]


# ---- tables


def part(seed: int, **methods: tuple) -> dict:
    """Results of one seed: of each method its trained parameters, and the rights of 20 contexts of 10 records."""
    rows = {}
    for name, (trainable, right) in methods.items():
        scores = {"unseen": {"accuracy": right.count("1") / len(right)}}
        rows[name.replace("_", "-")] = {"trainable": trainable, "evaluated": scores, "right": {"unseen": right}}
    contexts = {"unseen": [f"context {i // 10}" for i in range(200)]}
    return {"settings": {"seed": seed, "steps": 3}, "measure": "accuracy", "contexts": contexts, "rows": rows}


def rights(rng: np.random.Generator, share: float) -> str:
    return "".join(str(int(one)) for one in rng.random(200) < share)


FIXED = """\
| accuracy | trainable | encoder | steps | seconds | unseen | swapped | margin | choice, unseen |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
| lora | 1,234 | 0 | 3 | 2 | 0.625 ±0.177 | 0.250 ±0.000 | 0.375 ±0.177 | 0.750 ±0.000 |
| diag | 1,234 | 0 | 3 | 2 | 0.625 ±0.177 | 0.250 ±0.000 | 0.375 ±0.177 | 0.750 ±0.000 |
| majority | 0 | 0 | 0 | 0 | 0.250 ±0.000 | – | – | – |

| − lora | unseen |
| --- | --- |
| diag | 0.500 [0.000, 1.000] tie |

seeds 0, 1"""


def test_the_tables_of_fixed_results_are_fixed():
    parts = []
    for seed, accuracy in ((0, 0.5), (1, 0.75)):
        lora = {"trainable": 1234, "steps": 3, "seconds": 1.6, "margin": accuracy - 0.25, "right": {"unseen": "0011"}}
        lora["evaluated"] = {"unseen": {"accuracy": accuracy}, "swapped": {"accuracy": 0.25}}
        lora["choice"] = {"choice, unseen": {"accuracy": 0.75}}
        rows = {"lora": lora, "diag": lora | {"right": {"unseen": "1111"}}}
        rows["majority"] = {"evaluated": {"unseen": {"accuracy": 0.25}}}
        contexts = {"unseen": ["a", "a", "b", "b"]}
        parts.append({"settings": {"seed": seed}, "measure": "accuracy", "contexts": contexts, "rows": rows})
    assert run.tables(parts, "lora") == FIXED


def test_a_planted_order_is_found_and_a_planted_tie_is_called_a_tie():
    rng, parts = np.random.default_rng(0), []
    for seed in range(3):
        best, same, worse = rights(rng, 0.9), rights(rng, 0.9), rights(rng, 0.7)
        parts.append(part(seed, best=(1, best), same=(1, same), worse=(1, worse)))
    table = run.difference_table(parts, "best").splitlines()
    assert table[2].startswith("| same ") and table[2].endswith(" tie |")
    assert table[3].startswith("| worse | -0.") and table[3].endswith(" behind |")
    assert run.difference_table(parts, "worse").splitlines()[2].endswith(" ahead |")


def test_an_interval_is_wider_where_seeds_disagree():
    alike, apart = ([np.array([[1, gap]] * 400) for gap in gaps] for gaps in ((0.2, 0.2, 0.2), (0.0, 0.2, 0.4)))
    assert run.verdict(*run.paired_interval(alike)) == "0.200 [0.200, 0.200] ahead"
    assert run.verdict(*run.paired_interval(apart)) == "0.200 [0.000, 0.400] tie"


def test_the_front_says_how_many_times_fewer_parameters_do_the_same_seed_by_seed():
    right = {share: "1" * share + "0" * (200 - share) for share in (100, 120, 140, 160)}
    sizes = {"t2l_gated": (100, right[100]), "t2l_gated@rank=2": (10_000, right[140])}
    parts = [part(0, **sizes, zhyper_diag=(10, right[120])), part(1, **sizes, zhyper_diag=(10, right[160]))]
    lines = run.front_table(parts).splitlines()
    assert lines[0] == "| than t2l-gated | trainable | unseen | times fewer |"
    assert lines[2:] == ["| zhyper-diag | 10 | 0.700 ±0.141 | 100.0, > 1000.0 |"]
    points = [(100, 0.5), (1_000, 0.4), (10_000, 0.7), (100_000, 0.9)]  # a larger one never counts as worse
    for wanted, size, bound in ((0.4, 100, "≤ "), (0.6, 3_162, ""), (0.7, 10_000, ""), (0.95, 100_000, "> ")):
        assert run.needed(points, wanted) == (pytest.approx(size, abs=1), bound)


def test_results_of_other_settings_and_a_seed_twice_are_never_averaged():
    one, two = part(0, lora=(1, "1" * 200)), part(1, lora=(1, "1" * 200))
    with pytest.raises(ValueError, match="one seed twice"):
        run.tables([one, two, one])
    two["settings"]["steps"] = 4
    with pytest.raises(ValueError, match="differ in steps"):
        run.tables([one, two])


def test_the_likeliest_choice_is_that_of_the_least_loss_per_token(trained):
    system, data, _ = trained
    records = [r._replace(choices=(" bow", " sing", " cut", " raise")) for r in data.split("unseen")]
    assert run.choice_accuracy(system, records) == 1.0
    wrong = [r._replace(answer=next(choice for choice in r.choices if choice != r.answer)) for r in records]
    assert run.choice_accuracy(system, wrong) == 0.0


# ---- runs


def test_every_seed_is_a_run_of_train_py_and_the_report_repeats_the_tables(path, tmp_path, cli, monkeypatch):
    methods = "frozen,best-prompt,lora,mean,nearest,rescaling,authors,zhyper-diag@rank=2"
    words = options(path, tmp_path / "run", methods, "--seed", 5, "--seeds", 2)
    printed = cli(*words)
    names = [line.split(" | ")[0] for line in printed.split("\n\n")[0].splitlines()[2:]]
    assert set(names) == {f"| {name}" for name in [*methods.split(","), "zhyper-diag"]}
    head, _, *lines = printed.split("\n\n")[0].splitlines()
    assert head.endswith(" unseen | swapped | random | none | margin | choice, unseen |")
    untrained = {"frozen", "best-prompt", "mean", "nearest"}  # which alone are also judged by choice
    for line in lines:
        assert line.count("±") == (6 if line.split(" | ")[0].strip("| ") in untrained else 5)
    assert printed.splitlines()[-1].startswith("seeds 5, 6; best prompt: plain, ")
    rows = run.complete(run.jobs_of(tmp_path / "run")[0], [])["rows"]
    assert rows["best-prompt"]["format"] == "plain, 0 examples"
    assert rows["mean"]["evaluated"]["unseen"] == rows["mean"]["evaluated"]["swapped"]  # it reads nothing
    monkeypatch.setattr(train, "fit", None)
    monkeypatch.setattr(train, "score_records", None)
    assert cli("report", tmp_path / "run").startswith(printed.rstrip())
    assert cli(*words) == printed


def test_a_run_that_was_stopped_goes_on_and_trains_no_method_twice(path, tmp_path, cli, monkeypatch, capsys):
    words = options(path, tmp_path / "run", "lora,rescaling", "--seeds", 1)
    write_torch, fit, trained = train.write_torch, train.fit, []

    def stop(file: Path, content: dict) -> None:
        write_torch(file, content)
        if len(trained) == 2 and content.get("done") == 2:
            raise KeyboardInterrupt

    def spy(system, name, data, settings):
        if settings.run.parent == tmp_path / "run":  # and not to be timed
            trained.append(name)
        return fit(system, name, data, settings)

    monkeypatch.setattr(train, "fit", spy)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "write_torch", stop)
        cli(*words)
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words)])
    run.main()
    captured = capsys.readouterr()
    assert f"{trained[1]}: goes on from step 2" in captured.err
    assert trained[2:] == trained[1:2] and {*trained} == {"lora", "rescaling"}
    assert captured.out.count("\n| lora ") == captured.out.count("\n| rescaling ") == 1


def test_equal_seconds_are_as_many_steps_as_fit_into_them_and_the_longest_method_is_first(path, tmp_path, cli):
    plan = {"lora": 0.1, "rescaling": 0.5, "zhyper-diag": 1.0}  # seconds a step
    (tmp_path / "run").mkdir()
    (tmp_path / "run/plan.json").write_text(json.dumps(plan))
    cli(*options(path, tmp_path / "run", "lora,rescaling,zhyper-diag", "--seeds", 1, "--seconds", 1))
    rows = json.loads((tmp_path / "run/seed0/results.json").read_text())["rows"]
    assert {name: row["steps"] for name, row in rows.items()} == {"lora": 10, "rescaling": 2, "zhyper-diag": 1}


def test_steps_are_timed_in_rounds_on_descriptions_with_all_their_questions(tmp_path, monkeypatch):
    kind = two_cultures().records[0]
    prompts = [f"Q: {word}?\nA:" for word in ("who", "how", "why")]
    made = [kind._replace(context=f"{i}", description=f"text {i}") for i in range(200)]
    records = [record._replace(prompt=prompt) for record in made for prompt in prompts]
    path = tmp_path / "many.jsonl"
    path.write_text("\n".join(json.dumps(record._asdict()) for record in records))
    timed, seconds = [], iter((0.5, 3.0, 1.0, 2.0))  # the first are a warm-up
    monkeypatch.setattr(train, "fit", lambda system, name, data, job: timed.append(data) or {"seconds": next(seconds)})
    job = smoke(str(path), tmp_path / "run", methods="lora")
    assert run.seconds_a_step(job, tmp_path / "plan.json") == {"lora": 0.5}  # of two steps, in the quickest round
    asked = Counter(record.description for record in timed[-1].records)
    assert len(asked) == 100 and set(asked.values()) == {3}


def test_a_method_that_diverges_has_no_numbers_and_stops_no_other(path, tmp_path, cli):
    printed = cli(*options(path, tmp_path / "run", "lora@lr=1e30,lora", "--seeds", 1))
    (diverged,) = [line for line in printed.splitlines() if line.startswith("| lora@lr=1e30 ")]
    assert "–" in diverged and "| lora | " in printed


# ---- commands


def test_strength_errors_curves_and_the_overview_read_what_was_trained(path, tmp_path, cli):
    pytest.importorskip("matplotlib")
    for steps in (2, 3):
        out = tmp_path / f"steps_{steps}"
        cli(*options(path, out, "zhyper-diag,lora,zhyper-diag@rank=2", "--seeds", 1, "--steps", steps))
    table = cli("strength", tmp_path / "steps_2").splitlines()
    assert table[0] == "| zhyper-diag × | unseen |" and len(table) == 2 + len(run.FACTORS)
    evidence = run.complete(run.jobs_of(tmp_path / "steps_2")[0], [])["rows"]["zhyper-diag"]
    assert table[3] == f"| 1 | {evidence['evaluated']['unseen']['accuracy']:.3f} |"
    shown = cli("errors", tmp_path / "steps_2")
    by_answer = re.findall(r"\| the answer is .* \| (\S+) of (\d+) \|", shown)
    right = sum(float(share) * int(count) for share, count in by_answer)
    records = sum(int(count) for _, count in by_answer)
    assert right / records == pytest.approx(evidence["evaluated"]["unseen"]["accuracy"], abs=1e-3)
    assert "| Q: what of taxes? A: |" in shown
    settings = tmp_path / "steps_2" / "seed0" / "settings.json"
    content = settings.read_text()
    settings.write_text(content.replace('"records": "', '"records": "0'))
    for command in ("errors", "strength"):
        assert "has other records: give the --wording" in cli(command, tmp_path / "steps_2")
    settings.write_text(content)
    shown = cli("curves", tmp_path / "steps_2", tmp_path / "steps_3", "--to", tmp_path / "curves.png")
    assert shown.startswith("| steps | lora | zhyper-diag | zhyper-diag@rank=2 |\n")
    assert [line.split()[1] for line in shown.splitlines()[2:4]] == ["2", "3"]
    shown = cli("overview", tmp_path / "steps_2", "--split", "unseen,swapped", "--to", tmp_path / "sizes.png")
    head, _, *lines = shown.splitlines()
    assert head == "| accuracy | trainable | two, unseen | two, swapped |"
    assert [line.split(" | ")[0] for line in lines[:2]] == ["| lora", "| zhyper-diag"]  # other sizes: in the figure
    rows = run.complete(run.jobs_of(tmp_path / "steps_2")[0], [])["rows"]
    accuracies = [f"{rows['lora']['evaluated'][split]['accuracy']:.3f}" for split in ("unseen", "swapped")]
    assert lines[0] == f"| lora | {rows['lora']['trainable']:,} | {' | '.join(accuracies)} |"
    for figure in ("curves.png", "sizes.png"):
        assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG")


def test_tuning_tries_every_point_on_validation_and_writes_what_use_trials_reads(path, tmp_path, cli, monkeypatch):
    monkeypatch.setattr(rivals, "TRIALS", tmp_path / "trials.json")
    monkeypatch.setattr(run, "RATES", (1e-3, 1e30))
    monkeypatch.setattr(run, "SCALES", (1.0,))
    words = ["tune", *options(path, tmp_path / "run", "frozen,lora,steering,reads-name", "--seed", 100)]
    printed = cli(*words)
    known = json.loads((tmp_path / "trials.json").read_text())
    rates = ("0.001", "1e+30")
    assert [*known["trials"]] == [f"{name}@lr={lr}@scale=1" for name in ("lora", "steering") for lr in rates]
    assert known["trials"]["lora@lr=1e+30@scale=1"] == {"accuracy": 0.0, "nll": 99.0, "seconds": 0.0}
    assert printed.splitlines()[0] == "| validation | @lr=0.001@scale=1 | @lr=1e+30@scale=1 |"
    rivals.use_trials(path)
    assert METHODS["steering"].lr == METHODS["lora"].lr == 1e-3
    assert "delete it to start again" in cli(*words, "--out", tmp_path / "other", "--steps", 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "frozen,oneshot"], "unknown method 'oneshot'"),
        (["--methods", "lora@hats=2"], "cannot change 'hats=2'"),
        (["report", "none"], "No such file or directory: 'none/settings.json'"),
        (["strength", "none"], "No such file or directory: 'none/settings.json'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, message, cli, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert message in cli(*words) and not list(tmp_path.iterdir())


def test_the_depth_of_the_small_encoder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setattr(run.train, "PRESETS", dict(run.train.PRESETS))
    job = run.Settings(data="votes", methods="lora", encoder_layers=4, out=str(tmp_path))
    monkeypatch.setattr(run, "seconds_a_step", lambda *words: sys.exit())
    with pytest.raises(SystemExit):
        run.train_seeds(job)
    assert job.sizes.encoder.layers == 4 and run.train.PRESETS["default"].encoder.layers == 2


def test_the_wording_and_the_balance_of_votes_can_be_chosen(cli, monkeypatch):
    asked = []

    def stop_after_loading(*words):
        run.train.load()
        raise ValueError("stop")

    monkeypatch.setattr(run.train, "load", lambda *words, **options: asked.append(options))
    monkeypatch.setattr(run, "seconds_a_step", stop_after_loading)
    for options in (["--wording", "verbs"], ["--unbalanced"]):
        with monkeypatch.context() as patch:
            patch.setattr(run.train, "load", run.train.load)  # which the command changes
            cli("--data", "votes", "--methods", "lora", *options)
    assert asked == [{"wording": "verbs"}, {"balanced": False}]
