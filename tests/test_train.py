"""The main job: what is learned and what stays frozen, the results, a run that is stopped, and what is refused."""

import json
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from conftest import ROOT, TEXTS, build_system, two_cultures
from torch.nn import functional as F

import train
from data import PROMPT, Record
from train import METHODS, PRESETS, configure, learning_rate, run
from zhyper import Zhyper

SMALL = {"layers": 2, "width": 32, "vocab_size": 300, "encoder_layers": 1, "lowest_layer": 1, "features": 16}
TINY = SMALL | {"pretrain_steps": 6, "steps": 6, "descriptions_per_step": 2, "device": "cpu"}
LOOP = (train.PRETRAIN_ROWS, train.PRETRAIN_TOKENS, train.LOG_EVERY)
ATLAS = ROOT.parent / "shared/data/atlas"


@pytest.fixture(autouse=True)
def short_steps(monkeypatch):
    monkeypatch.setattr(train, "PRETRAIN_TOKENS", 32)
    monkeypatch.setattr(train, "LOG_EVERY", 2)


@pytest.fixture
def given(tmp_path) -> dict:
    """The options of a job of a few steps on two cultures."""
    return write(two_cultures().records, tmp_path)


def write(records: list[Record], folder: Path) -> dict:
    """The same options, for these records, which are written into the folder."""
    lines = [json.dumps(record._asdict()) for record in records]
    (folder / "two.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return TINY | {"data": str(folder / "two.jsonl")}


def words_of(options: dict) -> list:
    """The same options as words of the command line."""
    words = []
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", value]
    return words


# ---- the options


def test_a_method_goes_before_a_preset_and_what_is_given_before_both():
    assert configure("zhyper-diag", "smoke", {"steps": 3}).steps == 3
    for preset in PRESETS:
        assert configure("lora-prompt", preset, {}).descriptions_per_step == 8
        assert configure("lora", preset, {}).rank == 8
        assert configure("lora", preset, {"rank": 2}).rank == 2
        rate = configure("t2l", preset, {"lr": 3e-4})
        assert rate.lr * rate.lr_scale == 3e-4  # a rate that is given is meant as it is


def test_the_options_are_those_of_the_published_numbers():
    methods = {"lora": (8, 2e-3), "lora-prompt": (32, 2e-3), "t2l": (8, 5e-4), "t2l-gated": (8, 5e-4)}
    methods |= {"zhyper-diag": (32, 2e-3), "zhyper-diag-paper": (32, 5e-4)}
    methods |= {"zhyper-square": (8, 1e-3), "zhyper-square-paper": (8, 5e-4)}
    for method, (rank, lr) in methods.items():
        config = configure(method, "default", {})
        assert (config.rank, config.lr * config.lr_scale, config.steps) == (rank, lr, 800)
    assert (config.pretrain_steps, config.pretrain_lr, config.descriptions_per_step) == (250, 4e-3, 32)
    assert (config.questions_per_description, config.seed, *LOOP) == (4, 0, 8, 128, 50)
    smoke = dict(layers=1, width=64, pretrain_steps=300, pretrain_lr=1e-2, lowest_layer=0)
    assert PRESETS["smoke"] == smoke | dict(steps=100, lr_scale=2.0, evaluate=64)
    numbers = {"real": [28, 2500, 0.4, 16, 3, 256], "words": [0.3, 128, 1000], "hard": [64, 6]}
    numbers |= {"votes": [1600, 0.5]}
    for preset, expected in numbers.items():
        assert [value for value in PRESETS[preset].values() if not isinstance(value, str)] == expected


# ---- the training loop


def test_training_is_adamw_on_the_clipped_gradient_of_the_mean_loss_of_answer_tokens(tmp_path):
    system = build_system("zhyper-diag", scale=9.0)  # so that there is something to clip
    batches = [(["what now?", "who?"], ["bow", "sing a tune"], TEXTS[i : i + 2]) for i in (0, 1, 2, 0)]
    slow = deepcopy(system)
    before = deepcopy(slow.state_dict())
    fast = [*slow.hypernetwork.A.values(), *slow.hypernetwork.B.values(), *slow.encoder.parameters()]
    trunk = slow.hypernetwork.trunk.parameters()
    others = [slow.hypernetwork.head_weight, slow.hypernetwork.head_bias, *trunk]
    optimizer = torch.optim.AdamW([{"params": others}, {"params": fast}], weight_decay=0.01)
    norms = []
    losses = []
    for step, batch in enumerate(batches, start=1):
        total = 0
        for question, answer, text in zip(*batch, strict=True):
            prompt = slow.tokenizer.encode(PROMPT.format(question)).ids
            ids = torch.tensor([*slow.tokenizer.encode(f"{PROMPT.format(question)} {answer}").ids, 1])
            logits = slow.backbone(ids[None, :-1], slow.adapt([text]))[0, len(prompt) - 1 :]
            total += F.cross_entropy(logits, ids[len(prompt) :], reduction="sum")
        losses.append(total / (2 + 4))  # " bow" and " sing a tune", each with an end token
        optimizer.zero_grad()
        losses[-1].backward()
        norms.append(torch.nn.utils.clip_grad_norm_([*others, *fast], 1.0))
        optimizer.param_groups[0]["lr"] = 0.004 * learning_rate(step, 4)
        optimizer.param_groups[1]["lr"] = 0.012 * learning_rate(step, 4)
        optimizer.step()
    assert max(norms) > 1.5
    prompts = system.prompts(batches[0][0], None)
    rows = [(system.encode_rows(prompts, answers), texts) for _, answers, texts in batches]
    report = train.train_loop(tmp_path / "x.pt", system, 0.004, 4, iter(rows), 0, None)
    found = torch.tensor(report["curve"])  # each line of the log is of the steps since the one before
    assert torch.allclose(found[:, 1], torch.stack(losses).view(2, 2).mean(1), rtol=1e-2)
    for name, weight in slow.named_parameters():
        moved = weight - before[name]
        assert (system.get_parameter(name) - weight).norm() <= 0.02 * moved.norm() + 1e-4, name


def test_the_learning_rate_warms_up_and_falls_to_a_tenth():
    rates = [learning_rate(step, 1000) for step in range(1, 1001)]
    assert rates[:50] == pytest.approx([step / 50 for step in range(1, 51)])
    assert rates[49:] == sorted(rates[49:])[::-1]
    assert rates[524] == pytest.approx(0.55)  # half of the way
    assert rates[-1] == pytest.approx(0.1)
    assert [learning_rate(step, 8) for step in (1, 2)] == [0.5, 1.0]
    assert 0 < learning_rate(1, 1) <= 1


def test_every_method_trains_a_step_and_what_is_saved_is_what_was_evaluated(given, tmp_path):
    results = run(tmp_path / "run", list(METHODS), "default", given | {"steps": 1, "pretrain_steps": 40, "lr": 1e-2})
    assert results == json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["rows"]) == list(METHODS)
    curve = results["pretrain"]["curve"]
    assert [step for step, _ in curve] == list(range(2, 41, 2))
    assert curve[-1][1] < curve[0][1] - 1
    backbone, checkpoint = Zhyper.from_file(tmp_path / "run" / "backbone.pt")
    assert checkpoint is None  # it is finished
    for name, row in results["rows"].items():
        system = Zhyper.load(tmp_path / "run", name)
        for column, network in (("trainable", system.hypernetwork), ("encoder", system.encoder)):
            assert row[column] == (sum(weight.numel() for weight in network.parameters()) if network else 0)
        assert row.get("steps", 0) == bool(system.hypernetwork)
        assert system.trained_words == {"people", "bow", "low", "sing", "and", "the", "taxes", "are", "cut", "raised"}
        encoded = train.encode_data(system, train.load(given["data"]), configure(name, "default", given))
        assert train.evaluate(system, encoded)["accuracy"] == row["accuracy"]
        # B is zero before the step, and not after it; the frozen model is as it was
        adapted, _ = system.score(["who?"], ["sing"], ["people"])
        frozen, _ = backbone.score(["who?"], ["sing"], None)
        assert torch.allclose(adapted, frozen, atol=1e-4) == (name == "frozen")
        assert torch.allclose(system.score(["who?"], ["sing"], None)[0], frozen, atol=1e-4)


@pytest.mark.parametrize("name", ["cultures", "votes", "atlas"])
def test_every_built_in_data_set_trains(name, tmp_path, little_data):
    if name == "atlas" and not ATLAS.is_dir():
        pytest.skip("the Ethnographic Atlas is not at hand")
    options = {"data_path": str(ATLAS)} if name == "atlas" else {}
    results = run(tmp_path / "run", ["zhyper-diag"], "smoke", TINY | {"data": name, "evaluate": 16, **options})
    assert {"unseen", "ood", "swapped", "random", "none"} < set(results["rows"]["zhyper-diag"]["accuracy"])
    guesses = set() if name == "cultures" else {"majority", "region", "naive bayes"}
    assert set(results["rows"]) == {"zhyper-diag"} | guesses


# ---- evaluation


def test_records_are_scored_in_parts_as_in_one_batch_and_each_in_its_own_place():
    system = build_system("zhyper-diag", block_size=128, lowest_layer=1)
    questions = [f"{'how ' * (i % 7)}do they greet {'us ' * (i % 11)}?" for i in range(150)]
    answers = [["bow", "sing", "taxes"][i % 3] for i in range(150)]
    texts = [TEXTS[i % len(TEXTS)] for i in range(150)]
    records = [Record("c", *each, "unseen") for each in zip(texts, questions, answers, strict=True)]
    for in_prompt in (False, True):
        system.description_in_prompt = in_prompt
        found, exact = train.score_records(system, train.encode_records(system, records, texts))
        expected, right = system.score(questions, answers, texts)
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3)
        assert torch.equal(exact, right)
        assert len(found.unique()) > 100


def test_swapping_the_description_changes_the_answer_and_without_one_the_model_is_the_frozen_one(trained):
    system, data, _ = trained
    config = configure("zhyper-diag", "default", TINY)
    row = train.evaluate(system, train.encode_data(system, data, config))
    accuracy = row["accuracy"]
    assert list(accuracy) == ["unseen", "swapped", "random", "none", "margin"]
    assert (accuracy["unseen"], accuracy["swapped"], accuracy["margin"]) == (1.0, 0.0, 1.0)
    assert row["exact"]["unseen"] == "1111"
    frozen = Zhyper(system.tokenizer, system.backbone)
    alone = train.evaluate(frozen, train.encode_data(frozen, data, config))
    assert set(alone["exact"].values()) == {row["exact"]["none"]}
    assert accuracy["none"] == 0.5 and alone["accuracy"]["margin"] == 0  # it knows one answer to each question
    plan = train.evaluation_plan(data, replace(config, evaluate=3))
    assert [len(records) for records, _ in plan.values()] == [3, 3, 3, 3]
    assert all(re.fullmatch(r"([a-z]{2,8} ){5}[a-z]{2,8}", text) for text in plan["random"][1])
    seen = train.summary({"seen": torch.tensor([True, True]), "swapped": torch.tensor([True, False])})
    assert seen["accuracy"]["margin"] == 0.5


def test_a_swapped_description_is_of_another_answer_and_where_possible_of_the_same_question():
    # ten contexts, three questions, four answers; and a question that is put to only one context
    records = [Record(f"c{i % 10}", f"d{i % 10}", f"q{i % 3}", f"{i % 4}", "unseen") for i in range(30)]
    records.append(Record("c0", "d0", "q3", "0", "unseen"))
    answers = {(record.description, record.question): record.answer for record in records}
    swapped = train.swapped_descriptions(records, random.Random(0))
    for record, text in zip(records, swapped, strict=True):
        assert text != record.description
        assert answers.get((text, record.question)) != record.answer
        assert record.question == "q3" or (text, record.question) in answers
    assert swapped != train.swapped_descriptions(records, random.Random(1))
    with pytest.raises(ValueError, match="^all records of 'unseen' have one description: add another to swap with$"):
        train.swapped_descriptions(records[:1], random.Random(0))
    many = [Record(f"c{i}", f"d{i}", "q", f"{i == 999}", "unseen") for i in range(20_000)]  # in linear time
    assert train.swapped_descriptions(many, random.Random(0)).count("d999") == 19_999


def test_guesses_that_train_nothing_stand_in_the_table(given, tmp_path, monkeypatch):
    data = two_cultures()
    guesses = dict.fromkeys(data.records, "bow")
    monkeypatch.setattr(train, "load", lambda *_, **__: replace(data, guesses={"always bow": guesses}))
    results = run(tmp_path / "run", ["frozen"], "default", given)
    assert results["rows"]["always bow"] == {"accuracy": {"unseen": 0.25}, "exact": {"unseen": "1000"}}
    row = {"trainable": 1234, "encoder": 0, "steps": 3, "seconds": 1.6}
    row["accuracy"] = {"unseen": 0.5, "margin": -0.0001}
    results["rows"] = {"lora": row, "always bow": results["rows"]["always bow"]}
    assert train.table(results["rows"]).splitlines() == [
        "| accuracy | lora | always bow |",
        "| --- | --- | --- |",
        "| trainable | 1,234 | 0 |",
        "| encoder | 0 | 0 |",
        "| steps | 3 | 0 |",
        "| seconds | 2 | 0 |",
        "| unseen | 0.500 | 0.250 |",
        "| margin | 0.000 |  |",
    ]


# ---- the run folder


@contextmanager
def ctrl_c_at(number: int) -> Iterator[list]:
    """Ctrl-C in a system's forward pass of that number; gives a list of all passes."""
    passes = []

    def count(module, inputs) -> None:
        if isinstance(module, Zhyper):
            passes.append(module)
            if len(passes) == number:
                raise KeyboardInterrupt

    with torch.nn.modules.module.register_module_forward_pre_hook(count):
        yield passes


# Passes: 6 of pretraining, 6 of lora, 4 of its evaluation, and 6 and 4 of the paper's trunk, which has dropout. There
# are checkpoints after the steps 2, 4 and 6 of each training. So what is stopped at pass 4 has 24 passes left; the
# 18th of these is step 4 of the paper's trunk, and there are 8 left from its step 3 on.
STOPS = [((4, 18), 8), ((24,), 4)]  # pass 24 is of an evaluation, which is done again


@pytest.mark.parametrize(("stops", "left"), STOPS)
def test_a_run_that_is_stopped_and_resumed_ends_as_one_that_is_not(stops, left, given, tmp_path, monkeypatch, capsys):
    methods = ["lora", "zhyper-diag-paper"]
    whole = run(tmp_path / "whole", methods, "smoke", given)
    words = [*words_of(given), "--preset", "smoke", "--methods", ",".join(methods), "--out", tmp_path / "run"]
    for stop in stops:
        monkeypatch.setattr("sys.argv", ["train.py", *map(str, words)])
        with ctrl_c_at(stop), pytest.raises(SystemExit) as error:
            train.main()
        assert str(error.value) == f"stopped: python train.py --resume {tmp_path / 'run'} goes on"
        words = ["--resume", tmp_path / "run"]
    _, checkpoint = Zhyper.from_file(tmp_path / "run" / "zhyper-diag-paper.pt")
    with ctrl_c_at(0) as passes:
        found = train.resume(tmp_path / "run")
    assert len(passes) == left  # nothing is done twice
    assert re.search(r"zhyper-diag-paper: step 6, loss \d\.\d{4}, \d+ seconds\n", capsys.readouterr().err)
    assert torch.allclose(*(torch.tensor(each["pretrain"]["curve"]) for each in (found, whole)), atol=1e-4)
    for name in methods:
        row, expected = found["rows"][name], whole["rows"][name]
        for key in ("accuracy", "exact", "steps", "trainable"):
            assert row[key] == expected[key]
        assert torch.allclose(torch.tensor(row["curve"]), torch.tensor(expected["curve"]), atol=1e-4)
        assert Zhyper.from_file(tmp_path / "run" / f"{name}.pt")[1] is None
        weights = Zhyper.load(tmp_path / "run", name).state_dict()
        for key, weight in Zhyper.load(tmp_path / "whole", name).state_dict().items():
            assert torch.allclose(weights[key], weight, atol=1e-4), key
    for group, factor in zip(checkpoint["optimizer"]["param_groups"], (1, 3), strict=True):  # of the checkpoint
        assert group["peak"] == pytest.approx(factor * 2 * 5e-4)  # the preset smoke doubles all rates
        assert group["lr"] == pytest.approx(learning_rate(checkpoint["report"]["steps"], 6) * group["peak"])
        assert group["weight_decay"] == 0.01
    assert checkpoint["report"]["seconds"] <= row["seconds"]


def test_a_run_that_is_stopped_before_it_has_a_folder_names_none(given, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", *map(str, words_of(given)), "--out", str(tmp_path / "run")])
    monkeypatch.setattr(train, "read_data", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(SystemExit, match="^stopped$"):
        train.main()


def test_a_folder_that_exists_is_left_as_it_is(given, tmp_path, run_main):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text("{")
    line = run_main(train.main, *words_of(given), "--out", tmp_path / "run")
    assert line.endswith(f"run exists: choose another --out, or go on there with --resume {tmp_path / 'run'}")
    assert "run --resume" not in line and [path.name for path in (tmp_path / "run").iterdir()] == ["results.json"]
    assert "results.json is damaged" in run_main(train.main, "--resume", tmp_path / "run")
    assert (tmp_path / "run" / "results.json").read_text() == "{"
    assert "results.json" in run_main(train.main, "--resume", tmp_path / "nowhere")
    line = run_main(train.main, "--resume", tmp_path / "run", "--seed", 1)
    assert line.endswith("--resume takes all options from the folder: give no other")


TOO_LONG = "bow " * 300


@pytest.mark.parametrize(
    ("changed", "change", "problem"),
    [
        ([0], {"description": TOO_LONG}, "the statement 'bow bow .* is 300 tokens long, of at most 256"),
        ([4], {"question": TOO_LONG}, "the prompt with its answer 'Q: bow .* tokens long, of at most 256"),
        ([0], {"answer": TOO_LONG}, "the prompt with its answer 'Q: .* tokens long, of at most 256"),
        ([4], {"answer": "\ud800"}, "line 5: 'answer' holds half a character"),
        ([4], {"description": " "}, "line 5: 'description' must be a text that is not empty"),
        ([4, 5, 6, 7], {"split": "train"}, "two has no records to evaluate: give some another split"),
        ([4, 5, 6, 7], {"description": "people bow"}, "all records of 'unseen' have one description: add another"),
        ([4], {"description": "?!"}, "the description '\\?!' has 0 statements: write 1 to 64"),
        ([4], {"description": "bow, " * 65}, "the description 'bow, .*' has 65 statements: write 1 to 64"),
    ],
)
def test_a_text_that_cannot_be_read_is_named_before_anything_is_trained(changed, change, problem, tmp_path):
    records = two_cultures().records
    for i in changed:
        records[i] = records[i]._replace(**change)
    with pytest.raises(ValueError, match=problem) as error:
        run(tmp_path / "run", ["zhyper-diag"], "default", write(records, tmp_path))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_stops_training(given, tmp_path):
    with pytest.raises(ValueError, match=r"^zhyper-diag: the loss is (nan|inf) at step \d: lower its rate$"):
        run(tmp_path / "run", ["zhyper-diag"], "default", given | {"lr": 1e18})


# ---- the command line


def test_the_command_line_prints_the_table_and_has_a_folder_for_each_data_set_and_preset(
    given, tmp_path, monkeypatch, run_main
):
    monkeypatch.chdir(tmp_path)
    shown = run_main(train.main, *words_of(given), "--preset", "smoke")
    results = json.loads((tmp_path / "out" / "two-smoke" / "results.json").read_text())
    assert re.fullmatch(re.escape(train.table(results["rows"])) + r"\n\d+ seconds\n", shown)
    assert list(results["rows"]) == ["frozen", "prompt", "zhyper-diag"]
    assert (results["preset"], results["given"]) == ("smoke", given)


BAD = {  # a bad command line: a part of what its last line says
    "--data poems": "unknown data set 'poems'",
    "--wording verbs": "leave out --wording",
    "--methods frozen,,lora": "unknown method ''",
    "--modules q,x": "unknown module 'x': choose from q, k, v",
    "--modules q,v,q": "modules is 'q,v,q': name each once",
    "--reading aloud": "unknown reading 'aloud': choose from statements, text",
    "--trunk tall": "unknown trunk 'tall': choose from gated, paper",
    "--preset huge": "unknown preset 'huge'",
    "--device tpu": "unknown device 'tpu'",
    "--descriptions-per-step 0": "descriptions_per_step is 0: it must be more than 0",
    "--rank 0": "rank is 0: it must be more than 0",
    "--steps -1": "steps is -1",
    "--width 36": "width is 36: choose a multiple of 8",
    "--lowest-layer 2": "lowest_layer is 2, and there are 2 layers: choose 0 to 1",
    "--lowest-layer -1": "lowest_layer is -1",
    "--encoder none": "no folder or model none",
}


@pytest.mark.parametrize("words", BAD)
def test_a_bad_option_is_one_line_and_exit_code_2(words, given, tmp_path, run_main):
    line = run_main(train.main, *words_of(given), "--out", tmp_path / "run", *words.split())
    assert "error: " in line and BAD[words] in line
    assert not (tmp_path / "run").exists()
