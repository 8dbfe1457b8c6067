"""The main job: what is learned and what stays frozen, the results, the run folder, and what is refused."""

import csv
import json
import math
import os
import random
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from conftest import BACKBONE, ENCODER, ROOT, TEXTS, build_system, smoke, two_cultures
from torch.nn import functional as F

import train
from data import Record
from data.tokenizer import train_tokenizer
from train import METHODS, Preset, Settings, evaluate, evaluate_all, learning_rate, run, table
from zhyper import Zhyper, read_torch

SIZES = {"backbone": replace(BACKBONE, block_size=256), "encoder": replace(ENCODER, block_size=256)}
BATCHES = {"pretrain_batch": 2, "descriptions_per_step": 2, "questions": 2, "evaluate": 16}
TINY = Preset(pretrain_steps=4, steps=4, lowest_layer=1, log=2, **SIZES, **BATCHES)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The smoke preset trains in a fraction of a second."""
    monkeypatch.setitem(train.PRESETS, "smoke", TINY)
    monkeypatch.setattr(train, "PRETRAIN_TOKENS", 32)
    precision = torch.get_float32_matmul_precision()  # main lowers it where there is a GPU
    yield
    torch.set_float32_matmul_precision(precision)


def write(records: list[Record], path: Path) -> str:
    lines = [json.dumps(record._asdict()) for record in records]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def job(tmp_path) -> Settings:
    """Settings of a run on two cultures."""
    path = write(two_cultures().records, tmp_path / "two.jsonl")
    return smoke(path, tmp_path / "run", methods="zhyper-diag", steps=4)


def with_records(job: Settings, change) -> Settings:
    """The same run on other records: what `change` makes of those of two cultures."""
    write(change(two_cultures().records), Path(job.data))
    return job


def log_of(job: Settings) -> list[dict]:
    with open(job.run / "log.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ---- the training loop


def test_the_loss_is_the_mean_over_answer_tokens(job):
    data = two_cultures()
    longer = [record._replace(answer=record.answer * (1 + i % 3)) for i, record in enumerate(data.records)]
    data = replace(data, records=longer)
    job.run.mkdir()
    base = train.build_base(data, job)
    total = tokens = 0
    for record in data.split("train"):  # B is zero at first, so the first loss is that of the frozen model
        prompt = base.tokenizer.encode(record.prompt).ids
        whole = base.tokenizer.encode(record.prompt + record.answer).ids + [1]
        logits = base.backbone(torch.tensor([whole[:-1]]))[0]
        answer = torch.tensor(whole[len(prompt) :])
        total += F.cross_entropy(logits[len(prompt) - 1 :], answer, reduction="sum").item()
        tokens += len(answer)
    system = train.build_system("zhyper-diag", base, job)
    first, *_ = train.fit(system, "zhyper-diag", data, replace(job, steps=1))["curve"]
    assert first["loss"] == pytest.approx(total / tokens, abs=1e-3)


def test_gradients_of_two_halves_of_a_batch_average_to_that_of_the_whole():
    """What torchrun's processes count on; exact where both halves have as many answer tokens."""
    system = build_system("zhyper-diag", lowest_layer=1)

    def gradient(half: slice) -> torch.Tensor:
        system.zero_grad()
        loss, tokens, _ = system.score(TEXTS[half], [" bow"] * len(TEXTS[half]), TEXTS[::-1][half])
        (loss.sum() / tokens.sum()).backward()
        weights = [weight for weight in system.parameters() if weight.requires_grad]
        return torch.cat([weight.grad.flatten() for weight in weights])

    average = (gradient(slice(2)) + gradient(slice(2, 4))) / 2
    whole = gradient(slice(4))
    assert (average - whole).norm() < 1e-4 * whole.norm()


def test_only_matrices_decay_and_each_part_has_its_rate():
    system = build_system("zhyper-diag")
    found = {}  # {weight: (its peak rate, its decay)}
    for group in train.parameter_groups(system, lr=1e-3):
        found |= dict.fromkeys(group["params"], (group["peak"], group["weight_decay"]))
    weights = dict(system.named_parameters())
    assert set(found) == {weight for name, weight in weights.items() if not name.startswith("backbone.")}
    assert found[weights["hypernetwork.A.q"]] == found[weights["hypernetwork.B.v"]] == (3e-3, 0.01)
    assert found[weights["hypernetwork.head_weight"]] == (1e-3, 0.01)
    assert found[weights["encoder.blocks.0.up.weight"]] == (1e-3, 0.01)
    for vector in ("hypernetwork.head_bias", "hypernetwork.trunk.gate", "encoder.norm.weight"):
        assert found[weights[vector]] == (1e-3, 0.0)
    system.encoder.pretrained_name = "a real BERT"
    peaks = {group["peak"] for group in train.parameter_groups(system, lr=1e-3)}
    assert peaks == {3e-3, 1e-3, 1e-3 / 20}


def test_the_learning_rate_warms_up_and_falls_to_a_tenth():
    rates = [learning_rate(step, 1000) for step in range(1000)]
    assert rates[49] == max(rates) == 1.0
    assert rates[:50] == sorted(rates[:50])
    assert rates[49:] == sorted(rates[49:])[::-1]
    assert 0.1 <= rates[-1] < 0.101
    assert 0 < learning_rate(0, 1) <= 1


def test_pretraining_lowers_the_loss_and_freezes_the_backbone(job, monkeypatch):
    monkeypatch.setitem(train.PRESETS, "smoke", replace(TINY, pretrain_steps=30))
    job.run.mkdir()
    base = train.build_base(two_cultures(), job)
    curve = train.pretrain(base, two_cultures().documents, job)["curve"]
    assert curve[-1]["validation_loss"] < curve[0]["validation_loss"] - 0.5
    assert not any(weight.requires_grad for weight in base.parameters())


def test_training_moves_hypernetwork_and_encoder_and_nothing_of_the_backbone(trained):
    system, _, before = trained
    for name, weight in system.state_dict().items():
        assert torch.equal(weight, before[name]) == name.startswith("backbone."), name


def test_every_method_trains_a_step(job):
    rows = run(replace(job, methods="all", steps=1))["rows"]
    assert list(rows) == list(METHODS)
    unseen = two_cultures().split("unseen")
    texts = [record.description for record in unseen]
    for name, row in rows.items():
        system = Zhyper.load(job.run, name)
        for column, network in (("trainable", system.hypernetwork), ("encoder", system.encoder)):
            assert row[column] == (sum(weight.numel() for weight in network.parameters()) if network else 0)
        assert row.get("steps", 0) == bool(METHODS[name].kind)
        found = row["evaluated"]["unseen"]["nll"]
        assert evaluate(system, unseen, texts)["nll"] == pytest.approx(found, abs=1e-3)
        if METHODS[name].kind:  # B is zero before the step, and not after it
            assert found != pytest.approx(row["evaluated"]["none"]["nll"], abs=1e-6)


ATLAS = ROOT.parent / "shared/data/atlas"


@pytest.mark.parametrize("name", ["cultures", "hard_cultures", "tasks", "votes", "atlas"])
def test_every_data_set_without_a_download_trains(name, tmp_path, monkeypatch):
    if name == "atlas" and not ATLAS.is_dir():
        pytest.skip("the Ethnographic Atlas is not at hand")
    data = train.load(name, str(ATLAS) if name == "atlas" else None)
    fewer = replace(data, records=data.records[::50], documents=data.documents[::50])
    monkeypatch.setattr(train, "load", lambda *_, **__: fewer)
    row = run(smoke(name, tmp_path, methods="zhyper-diag", steps=3))["rows"]["zhyper-diag"]
    assert row["steps"] == 3
    assert {"unseen", "swapped", "random", "none"} <= set(row["evaluated"])
    assert all(math.isfinite(found["nll"]) for found in row["evaluated"].values())


# ---- threads


@pytest.fixture
def four_threads(monkeypatch):
    """A CPU on which torch would use four threads, whatever this machine has."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("several", "alone", "chosen"), [(3.0, 1.0, 4), (1.0, 1.0, 1), (0.1, 1.0, 1)])
def test_one_thread_is_used_where_four_are_no_faster_and_that_is_said(several, alone, chosen, four_threads, capsys):
    train.choose_threads("cpu", lambda threads: several if threads == 4 else alone)
    assert torch.get_num_threads() == chosen
    said = "4 threads are no faster than one here, so one is used\n"
    assert capsys.readouterr().err == (said if chosen == 1 else "")


def test_threads_are_measured_on_the_cpu_only_and_not_where_their_number_is_given(four_threads, monkeypatch):
    def measure(threads: int) -> float:
        pytest.fail("measured")

    train.choose_threads("cuda", measure)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    train.choose_threads("cpu", measure)
    monkeypatch.delenv("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    train.choose_threads("cpu", measure)
    assert torch.get_num_threads() == 1


def test_the_measurement_uses_the_threads_that_it_is_about(four_threads):
    assert train.products_per_second(2) > 0
    assert torch.get_num_threads() == 2


# ---- evaluation


def test_records_are_scored_in_parts_as_in_one_batch_and_each_in_its_own_place():
    system = build_system("zhyper-diag", block_size=128, lowest_layer=1)
    prompts = [f"Q: {'how ' * (i % 7)}do they greet {'us ' * (i % 11)}?\nA:" for i in range(150)]
    answers = [[" bow", " sing", " taxes"][i % 3] for i in range(150)]
    texts = [TEXTS[i % len(TEXTS)] for i in range(150)]
    records = [Record("c", *each, "unseen") for each in zip(texts, prompts, answers, strict=True)]
    found = train.score_records(system, records, texts)
    assert torch.allclose(found, torch.stack(system.score(prompts, answers, texts)).detach(), rtol=1e-3, atol=1e-3)
    assert len(found[0].unique()) > 100


def test_swapping_the_description_changes_the_answer(trained):
    system, data, _ = trained
    records = data.split("unseen")
    answers = {(record.description, record.prompt): record.answer for record in records}
    prompts = [record.prompt for record in records]
    swapped = train.swapped_descriptions(records, random.Random(0))
    assert system.generate(prompts, swapped) == [answers[key] for key in zip(swapped, prompts, strict=True)]
    results = evaluate_all(system, data, smoke("two.jsonl", "unused"))
    assert results["evaluated"]["unseen"]["accuracy"] == 1.0
    assert results["evaluated"]["swapped"]["accuracy"] == 0.0
    assert results["evaluated"]["none"]["accuracy"] <= 0.5
    assert results["margin"] == 1.0
    # the margin of free text is how much higher the loss is
    results = evaluate_all(system, replace(data, free_text=True), smoke("two.jsonl", "unused"))
    right, swapped = (results["evaluated"][name]["nll"] for name in ("unseen", "swapped"))
    assert results["margin"] == pytest.approx(swapped - right)
    assert results["margin"] > 0.3


def test_a_swapped_description_is_of_another_context_that_answers_otherwise():
    # ten contexts, three prompts, four answers; and a prompt that is put to only one context
    records = [Record(f"c{i % 10}", f"d{i % 10}", f"p{i % 3}", f" {i % 4}", "unseen") for i in range(30)]
    records.append(Record("c0", "d0", "p3", " 0", "unseen"))
    answers = {(record.description, record.prompt): record.answer for record in records}
    swapped = train.swapped_descriptions(records, random.Random(0))
    for record, text in zip(records, swapped, strict=True):
        assert text != record.description
        assert answers.get((text, record.prompt)) != record.answer
        assert record.prompt == "p3" or (text, record.prompt) in answers
    with pytest.raises(ValueError, match="answers otherwise than 'c0'"):
        train.swapped_descriptions(records[:1], random.Random(0))


def test_without_a_description_every_method_is_the_frozen_model(job):
    rows = run(replace(job, methods="frozen,zhyper-diag,prompt,t2l", lr=1e-2))["rows"]
    frozen = rows["frozen"]["evaluated"]["unseen"]["nll"]
    assert rows["frozen"]["margin"] == 0
    for row in rows.values():
        assert row["evaluated"]["none"]["nll"] == pytest.approx(frozen, abs=1e-5)
    assert rows["zhyper-diag"]["evaluated"]["random"]["nll"] != pytest.approx(frozen, abs=1e-5)


def test_validation_looks_at_its_own_split_and_no_other(job):
    with_records(job, lambda records: records + [record._replace(split="validation") for record in records[4:]])
    row = run(replace(job, methods="frozen"))["rows"]["frozen"]
    assert list(row["evaluated"]) == ["unseen", "swapped", "random", "none"]
    row = run(replace(job, methods="frozen", validate=True, force=True))["rows"]["frozen"]
    assert list(row["evaluated"]) == ["validation", "swapped", "random", "none"]


def no_space(record: Record) -> Record:
    """The record with its answer's first space at the end of the prompt, which a token cannot span."""
    return record._replace(prompt=record.prompt + " ", answer=record.answer.lstrip())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda records: records[:4], "no records to evaluate"),  # the four of training
        (lambda records: records[:5], "add one to swap with"),
        (lambda records: [*records[:-1], no_space(records[-1])], "the tokenizer joins"),
        (lambda records: [r._replace(prompt=" how" * 222) for r in records], "of at most 256"),  # behind random letters
    ],
)
def test_data_that_cannot_be_read_or_evaluated_is_refused_before_anything_is_trained(job, change, problem):
    with pytest.raises(ValueError, match=problem):
        run(with_records(job, change))
    assert not (job.run / "backbone.pt").exists()


def test_guesses_that_train_nothing_stand_in_the_table(job, monkeypatch):
    data = two_cultures()
    guesses = {record: " bow" for record in data.records}
    monkeypatch.setattr(train, "load", lambda *_, **__: replace(data, references={"always bow": guesses}))
    results = run(job)
    assert results["rows"]["always bow"] == {"evaluated": {"unseen": {"accuracy": 0.25}}}
    lines = table(results).splitlines()
    assert lines[0] == "| accuracy | zhyper-diag | always bow |"
    assert [line for line in lines if line.startswith("| unseen |") and line.endswith("| 0.250 |")]


def test_the_table_has_a_column_for_each_method():
    found = {"accuracy": 0.5, "nll": 1.25}
    lora = {"trainable": 1234, "encoder": 0, "steps": 3, "seconds": 1.6, "margin": -0.0001}
    lora["evaluated"] = {"seen": found, "swapped": found}
    majority = {"evaluated": {"seen": {"accuracy": 0.75}}}
    results = {"measure": "accuracy", "rows": {"lora": lora, "majority": majority}}
    assert table(results) == (
        "| accuracy | lora | majority |\n"
        "|---|---|---|\n"
        "| trainable | 1,234 | 0 |\n"
        "| encoder | 0 | 0 |\n"
        "| steps | 3 | 0 |\n"
        "| seconds | 2 | 0 |\n"
        "| seen | 0.500 | 0.750 |\n"
        "| swapped | 0.500 |  |\n"
        "| margin | 0.000 |  |"
    )
    assert "| seen | 1.250 |" in table({"measure": "nll", "rows": {"lora": lora}})


def test_in_bf16_the_frozen_model_is_halved_and_what_is_trained_is_not(job, tmp_path):
    nll = {}
    for dtype in ("fp32", "bf16"):
        other = replace(job, dtype=dtype, out=str(tmp_path / dtype), steps=8, lr=1e-2)
        nll[dtype] = run(other)["rows"]["zhyper-diag"]["evaluated"]["unseen"]["nll"]
    assert nll["bf16"] == pytest.approx(nll["fp32"], abs=0.1)
    saved = read_torch(other.run / "zhyper-diag.pt")
    for part, dtype in (("backbone", torch.bfloat16), ("encoder", torch.float32), ("hypernetwork", torch.float32)):
        assert {weight.dtype for weight in saved[part]["weights"].values() if weight.is_floating_point()} == {dtype}


# ---- what a run says


def test_a_run_says_what_it_starts_with_and_how_training_goes(job, capsys):
    with_records(job, lambda records: records[:-1])
    run(replace(job, steps=5))
    said = capsys.readouterr().err
    assert said.startswith("two, train: 4 records of 2 contexts\ntwo, unseen: 3 records of 2 contexts\n")
    log = log_of(job)
    assert list(log[0]) == ["method", "step", "loss", "validation_loss", "learning_rate", "tokens_per_second"]
    steps = [f"{line['method']} {line['step']}" for line in log]  # every two, and the last
    assert steps == ["backbone 2", "backbone 4", "zhyper-diag 2", "zhyper-diag 4", "zhyper-diag 5"]
    for line in log:
        assert "  ".join(f"{name} {value}" for name, value in line.items()) in said


def test_records_that_are_too_long_are_left_out_and_counted_up_to_a_tenth(job, capsys):
    def with_too_long(count: int) -> Settings:
        """Twenty records to train on, so many of them with a description that no model here can read."""

        def lengthen(records: list[Record]) -> list[Record]:
            long = [record._replace(description="bow " * 300) for record in records[:count]]
            return long + (records[:4] * 5)[count:] + records[4:]

        return with_records(job, lengthen)

    with pytest.raises(ValueError, match="train loses 3 records that are too long"):
        run(with_too_long(3))
    assert not list(job.run.glob("*.pt"))
    run(replace(with_too_long(2), force=True))
    assert "two, train: 2 records are left out, too long for the models\n" in capsys.readouterr().err


# ---- the run folder

SCRIPT = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
import train
from model import EncoderConfig, ModelConfig
from train import Preset
train.PRESETS["smoke"] = {TINY!r}
train.PRETRAIN_TOKENS = 32
write_log = train.write_log
def write_and_hang(settings, line):
    write_log(settings, line)
    while "--hang" in sys.argv[0] and line["method"] == "zhyper-diag" and line["step"] == 4:
        time.sleep(1)
train.write_log = write_and_hang
train.main()
"""


def words_of(job: Settings) -> list[str]:
    words = ["--data", job.data, "--out", job.out, "--preset", "smoke", "--device", "cpu"]
    return [*words, "--methods", job.methods, "--steps", str(job.steps)]


def command(job: Settings, *launcher: str, name: str = "tiny.py") -> list[str]:
    """The job as a command, where the smoke preset is the tiny one in that process too."""
    script = Path(job.out).with_name(name)
    script.write_text(SCRIPT, encoding="utf-8")
    return [sys.executable, *launcher, str(script), *words_of(job)]


def printed(command: list[str], **environment: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"} | environment
    done = subprocess.run(command, env=environment, timeout=200, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_killed_run_goes_on_from_its_checkpoint_with_its_own_tokenizer(job, monkeypatch, capsys):
    job = replace(job, steps=6)
    nothing = subprocess.DEVNULL
    process = subprocess.Popen(command(job, name="tiny--hang.py"), stdout=nothing, stderr=nothing)
    log, deadline = job.run / "log.csv", time.monotonic() + 200
    try:  # it hangs at step 4; its last checkpoint is then that of step 2
        while not log.is_file() or "zhyper-diag,4," not in log.read_text(encoding="utf-8"):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    tokenizer = read_torch(job.run / "backbone.pt")["tokenizer"]
    monkeypatch.setattr(train, "train_tokenizer", lambda *_: train_tokenizer(["other texts"], 280))
    monkeypatch.setattr(train, "pretrain", lambda *_: pytest.fail("pretrained again"))
    row = run(job)["rows"]["zhyper-diag"]
    assert "zhyper-diag: goes on from step 2" in capsys.readouterr().err
    assert [line["step"] for line in row["curve"]] == [2, 4, 6]
    assert Zhyper.load(job.run).tokenizer.to_str() == tokenizer


def test_a_stopped_pretraining_goes_on_too(job, monkeypatch, capsys):
    def stop(path: Path, content: dict) -> None:
        if content.get("pretrain"):
            raise KeyboardInterrupt  # just before it is written that pretraining has ended
        write_json(path, content)

    write_json = train.write_json
    with monkeypatch.context() as patch:
        patch.setattr(train, "write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            run(job)
    run(replace(job, methods="frozen"))
    assert "backbone: goes on from step 4" in capsys.readouterr().err


def test_a_finished_method_is_not_trained_twice_and_that_is_said(job, monkeypatch, capsys):
    first = run(replace(job, methods="lora"))["rows"]["lora"]
    rows = run(replace(job, methods="lora,frozen"))["rows"]
    assert rows["lora"] == first
    assert list(rows) == ["lora", "frozen"]
    assert "lora: was finished by an earlier start" in capsys.readouterr().err
    assert len(log_of(job)) == 4  # two lines of the backbone, two of lora


def test_a_method_that_was_edited_is_trained_anew_and_not_from_the_checkpoint(job, monkeypatch, capsys):
    run(job)
    monkeypatch.setitem(METHODS, "zhyper-diag", replace(METHODS["zhyper-diag"], rank=2))
    run(job)
    assert "goes on" not in capsys.readouterr().err
    assert Zhyper.load(job.run).hypernetwork.config.rank == 2


def test_if_the_code_was_edited_a_method_is_trained_anew(job, monkeypatch, capsys):
    run(job)
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read_bytes(path) + b"#" * (path.name == "hyper.py"))
    run(job)
    assert "finished by an earlier start" not in capsys.readouterr().err
    run(job)
    assert "finished by an earlier start" in capsys.readouterr().err


def test_a_folder_that_holds_another_run_without_its_backbone_is_left_as_it_is(job):
    run(job)
    (job.run / "backbone.pt").unlink()
    before = {path.name: path.read_bytes() for path in job.run.iterdir()}
    with pytest.raises(ValueError, match="holds another run, without its backbone: choose --out"):
        run(replace(job, seed=1))
    assert {path.name: path.read_bytes() for path in job.run.iterdir()} == before
    for name in ("mine.json", "evidence.json"):
        (job.run / name).write_text("{}")
    run(replace(job, seed=1, force=True))
    assert (job.run / "mine.json").read_text() == "{}"
    assert not (job.run / "evidence.json").exists()  # rows of the run that was replaced


def test_results_of_other_settings_are_kept_and_what_differs_is_named(job):
    before = run(job)
    with pytest.raises(ValueError, match="has another seed, another rank: choose --out, or --force"):
        run(replace(job, seed=1, rank=2, methods="frozen"))
    with pytest.raises(ValueError, match="has another records: "):
        run(with_records(job, lambda records: records[:-1]))
    with_records(job, list)
    assert json.loads((job.run / "results.json").read_text(encoding="utf-8")) == before
    after = run(replace(job, seed=1, rank=2, methods="frozen", force=True))
    assert list(after["rows"]) == ["frozen"]
    assert not (job.run / "zhyper-diag.pt").exists()


def test_each_data_set_and_preset_has_a_folder_of_its_own():
    assert Settings().run == Path("out/cultures-default")
    assert Settings(data="folder/mine.jsonl", preset="smoke").run == Path("out/mine-smoke")


# ---- several processes


@pytest.mark.skipif(sys.platform == "win32", reason="torchrun needs Linux or macOS")
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without it")
def test_two_processes_of_torchrun_train_one_system_and_print_one_table(job):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert printed(command(job, *launcher), CUDA_VISIBLE_DEVICES="").count("| unseen |") == 1
    steps = [f"{line['method']} {line['step']}" for line in log_of(job)]  # each is logged once
    assert steps == ["backbone 2", "backbone 4", "zhyper-diag 2", "zhyper-diag 4"]


def test_a_variable_rank_of_a_cluster_does_not_make_it_a_process_among_others(job):
    shown = printed(command(job), RANK="1", WORLD_SIZE="2", LOCAL_RANK="1")
    results = json.loads((job.run / "results.json").read_text(encoding="utf-8"))
    assert shown.startswith(table(results))
    assert list(results["rows"]) == ["zhyper-diag"]


# ---- the command line, and what is refused


def cli(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line, in this process."""
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    code = 0
    try:
        train.main()
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def test_the_help_names_every_option(monkeypatch, capsys):
    code, shown, _ = cli(monkeypatch, capsys, "--help")
    assert code == 0
    for option in fields(Settings):
        assert f"--{option.name.replace('_', '-')}" in shown


BAD = {  # a bad command line: a part of what its last line says
    "--data poems": "unknown data set 'poems'",
    "--data none.jsonl": "no file none.jsonl",
    "--data tasks --contexts 16": "leave out --contexts",
    "--data cultures --contexts 1": "choose 2 to",
    "--descriptions file.json": "leave out",
    "--methods frozen,,lora": "unknown method ''",
    "--modules q,x": "unknown module 'x'",
    "--trunk tall": "unknown trunk 'tall'",
    "--preset huge": "unknown preset 'huge'",
    "--dtype fp8": "unknown dtype 'fp8'",
    "--device tpu": "tpu",
    "--rank two": "invalid int value: 'two'",
    "--rank 0": "rank is 0",
    "--steps 0": "steps",
    "--lowest-layer 9": "no layer 9 in 2",
    "--lowest-layer -1": "layer",
    "--encoder none": "no folder or model none",
    "--resume": "unrecognized arguments: --resume",
}


@pytest.mark.parametrize("words", BAD)
def test_a_bad_option_is_one_line_and_exit_code_2(words, job, monkeypatch, capsys):
    code, shown, said = cli(monkeypatch, capsys, *words_of(job), *words.split())
    assert (code, shown) == (2, "")
    last = said.splitlines()[-1]
    assert last.startswith("train.py: error: ")
    assert BAD[words] in last


def test_a_mistake_beside_force_leaves_earlier_results_alone(job, monkeypatch, capsys):
    before = run(job)
    code, *_ = cli(monkeypatch, capsys, *words_of(job), "--force", "--modules", "x")
    assert code == 2
    assert run(job) == before


def test_the_first_bad_line_of_a_jsonl_file_is_named(job, monkeypatch, capsys):
    with open(job.data, "a", encoding="utf-8") as file:
        file.write('\n{"context": "nobody"}\nnor is this JSON\n')
    code, _, said = cli(monkeypatch, capsys, *words_of(job))
    assert code == 2
    assert said.splitlines()[-1].startswith(f"train.py: error: {job.data}, line 9: 'description' is")


def test_a_loss_that_is_no_number_stops_training(job):
    with pytest.raises(ValueError, match=r"zhyper-diag: the loss is (nan|inf) before step \d: lower --lr"):
        run(replace(job, lr=1e18))
