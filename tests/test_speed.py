"""What is faster, or on several devices, does the same: each is held against the plain way.

Where weights are compared, in float64: AdamW turns the rounding errors of float32 into steps where
a gradient is zero but for them.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import bench
import pytest
import torch
from conftest import ROOT, build_system, cli, smoke, two_cultures
from test_files import stop
from test_train import write

import train
from data import _pretrained as pretrained
from data._files import only_writer
from train import PRESETS, run, table
from zhyper import Zhyper

METHODS = "lora,t2l-gated,zhyper-diag"
PRESET = replace(PRESETS["smoke"], pretrain_steps=6, pretrain_batch=6, batch=6, questions=1, checkpoint=3)
START = f"""  # train.py in float64, with the small preset; the disk may be full after the last step
import os, sys, time, torch
sys.path[:0] = {[str(ROOT), str(ROOT / "tests")]!r}
import test_speed, train
torch.set_default_dtype(torch.float64)
train.PRESETS["smoke"] = test_speed.PRESET
write = train.write_file
def write_file(path, content):
    last = path.name == os.environ["FULL"] and len(content["times"]) == content["steps"]
    if last and os.environ["RANK"] == "0":
        time.sleep(1)  # the other process is ahead
        raise OSError(28, "No space left on device")
    write(path, content)
train.write_file = write_file
train.one_line_errors(train.main)
"""


@pytest.fixture
def job(monkeypatch, tmp_path) -> train.Settings:
    """Three methods in float64, on eight contexts: each process sees others of a step."""
    data = two_cultures()
    data.records[:] = [
        r._replace(context=f"{r.context} {word}", description=f"{r.description} {word}")
        for word in ("now", "here", "today", "indeed")
        for r in data.records
    ]
    path = write(data, tmp_path / "eight.jsonl")
    monkeypatch.setitem(PRESETS, "smoke", PRESET)
    torch.set_default_dtype(torch.float64)
    yield smoke(path, tmp_path / "alone", methods=METHODS, steps=10, device="cpu")
    torch.set_default_dtype(torch.float32)


def torchrun(job: train.Settings, full: str = "") -> subprocess.CompletedProcess:
    """train.py in two processes, as a user would start it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["--no-python", sys.executable, "-c", START, "--device", "cpu"]
    for name in ("data", "preset", "methods", "steps", "out"):
        command += [f"--{name}", str(getattr(job, name))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FULL": full}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def assert_same_weights(one: Path, other: Path, method: str) -> None:
    states = [Zhyper.load(folder, method).state_dict() for folder in (one, other)]
    for name, weight in states[0].items():
        assert weight.dtype == torch.float64
        torch.testing.assert_close(weight, states[1][name], atol=1e-5, rtol=0)


def test_two_processes_train_the_weights_of_one(job, tmp_path):
    results = run(job)
    two = replace(job, out=str(tmp_path / "two"))
    done = torchrun(two)
    assert done.returncode == 0, done.stderr
    for method in METHODS.split(","):
        assert_same_weights(job.run, two.run, method)
    both = json.loads((two.run / "results.json").read_text())
    assert done.stdout.count("| unseen |") == 1 and table(both) in done.stdout
    for row, other in zip(results["rows"], both["rows"], strict=True):
        one, other = row["splits"]["unseen"], other["splits"]["unseen"]
        assert one["accuracy"] == other["accuracy"]
        assert one["nll"] == pytest.approx(other["nll"], abs=1e-5)


def test_two_processes_go_on_with_what_one_began_and_one_with_what_they_did(job, tmp_path):
    alone = replace(job, methods="zhyper-diag")
    run(alone)
    two = replace(alone, out=str(tmp_path / "two"))
    stop(two)
    checkpoint = two.run / "checkpoint-zhyper-diag.pt"
    done = torchrun(two, full=checkpoint.name)
    assert done.returncode != 0 and "No space left on device" in done.stderr
    assert len(torch.load(checkpoint)["times"]) == 9  # the process that was ahead did not remove it
    run(two)
    assert_same_weights(alone.run, two.run, "zhyper-diag")


# ---- bf16 and compile


def loss_and_gradient(system: Zhyper, dtype: str) -> tuple[float, torch.Tensor]:
    rows = two_cultures().split("train")
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        loss = system.score(*train.columns(rows))[0].sum()
    trained = [p for part in (system.encoder, system.hypernetwork) for p in part.parameters()]
    return loss.item(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)])


@pytest.mark.parametrize("kind", ["zhyper-diag", "zhyper-square", "t2l"])
def test_bf16_gives_the_loss_and_the_gradient_of_fp32_but_for_its_rounding(kind):
    system = build_system(kind).train()
    for B in system.hypernetwork.B.values() if kind != "t2l" else ():
        B.data *= 0.1  # as small as trained ones
    loss, gradient = loss_and_gradient(system, "fp32")
    rough_loss, rough = loss_and_gradient(system, "bf16")
    assert rough_loss == pytest.approx(loss, rel=0.02) and rough_loss != loss
    assert torch.cosine_similarity(gradient, rough, dim=0) > 0.99


def test_a_run_in_bf16_learns_what_one_in_fp32_does_and_is_no_part_of_it(tmp_path):
    path = write(two_cultures(), tmp_path / "two.jsonl")
    job = smoke(path, tmp_path / "run", methods="zhyper-diag", dtype="bf16", steps=40, device="cpu")
    (rough,) = run(job)["rows"]
    assert rough["splits"]["unseen"]["accuracy"] == 1.0
    assert {w.dtype for w in Zhyper.load(job.run).state_dict().values()} == {torch.float32}
    with pytest.raises(ValueError, match="dtype bf16, now fp32"):
        run(replace(job, dtype="fp32"))
    (plain,) = run(replace(job, dtype="fp32", out=str(tmp_path / "plain")))["rows"]
    assert rough["losses"] == pytest.approx(plain["losses"], abs=0.1)
    assert rough["splits"] != plain["splits"]


def test_compiled_trainings_have_the_losses_of_eager_ones(monkeypatch, tmp_path):
    sizes = replace(PRESET.backbone, layers=1)
    preset = replace(PRESET, backbone=sizes, encoder=sizes, pretrain_steps=11)
    monkeypatch.setitem(PRESETS, "smoke", preset)
    path, compile, compiled = write(two_cultures(), tmp_path / "two.jsonl"), torch.compile, []

    def compile_quickly(function, **options):  # traced as ever, but no C++ is made of it
        compiled.append(function)
        return compile(function, backend="aot_eager", **options)

    def losses(name: str, **options) -> list[float]:  # without evaluation: each mode takes seconds
        job = smoke(path, tmp_path / name, steps=11, device="cpu", modules="q", **options)
        with only_writer(job.run):
            data, base, results = train.prepare(job)
        system, method = train.build_system("lora", base, job), train.METHODS["lora"]
        done = train.fit(system, "lora", method, data.split("train"), job)
        return results["pretrain"]["losses"] + done["losses"]

    monkeypatch.setattr(torch, "compile", compile_quickly)
    eager = losses("eager")
    assert not compiled and len(eager) == 4
    assert losses("compiled", compile=True) == pytest.approx(eager, rel=1e-3)
    assert len(compiled) == 1


# ---- the bench


def test_the_bench_prints_its_tables_and_writes_the_same_figures(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(PRESETS, "default", PRESETS["smoke"])
    words = "training generation --repeats 2 --layers 1 --width 32 --rows 4 --tokens 16"
    words += f" --contexts 70 --json {tmp_path / 'bench.json'}"
    code, out, err = cli(bench, monkeypatch, capsys, *words.split())
    assert code == 0 and "peak memory" in out, err
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert list(figures) == ["training", "generation"]
    assert len(figures["training"]) == 16 and len(figures["generation"]) == 10
    for row in figures["training"] + figures["generation"]:
        assert row["figure"] > 0 and row["spread"] >= 0
        assert f"| {' | '.join(bench.Row(**row).cells())} |" in out
        assert row["figure"] > 1 or "bytes" not in row["what"]


def test_the_bench_of_growth_finds_the_exponent_of_what_grows(monkeypatch):
    def interleaved(cases, repeats: int) -> dict:
        return {name: [case()] for name, case in cases.items()}

    def parts(rank: int, **_) -> dict:
        return {"backbone": lambda: rank**3, "generate": lambda: rank, "apply": lambda: 7}

    monkeypatch.setattr(bench, "interleaved", interleaved)
    monkeypatch.setattr(bench, "parts", parts)
    monkeypatch.setattr(bench, "GROWTH", {"rank": (4, 8, 16, 32)})
    rows = bench.growth(bench.Namespace(repeats=1))
    assert [row.figure for row in rows] == pytest.approx([3, 1, 0])
    assert rows[0].unit == "and 100% of the step"


@pytest.fixture
def folders(monkeypatch, tmp_path) -> None:
    """A tiny random Llama and BERT, where the bench looks for SmolLM2 and MiniLM."""
    for name in bench.PEERS:
        pytest.importorskip(name)
    system = build_system("zhyper-diag", block_size=1024)
    encoder, llama, bert = system.encoder, str(tmp_path / "llama"), str(tmp_path / "bert")
    pretrained.write_llama(llama, system.backbone, system.tokenizer)
    config = {theirs: getattr(encoder.config, ours) for theirs, ours in pretrained.SIZES.items()}
    config |= {"model_type": "bert", "hidden_act": "gelu"}
    tensors = {pretrained.hub_name(name, encoder.HUB_NAMES): w for name, w in encoder.state_dict().items()}
    files = {"config.json": config, "tokenizer.json": system.tokenizer.to_str()}
    pretrained.write_folder(bert, "model.safetensors", tensors, files)
    monkeypatch.setenv("SMOLLM2", llama)
    monkeypatch.setenv("MINILM", bert)


def test_the_bench_compares_steps_of_the_same_loss_as_peft_takes(folders, monkeypatch, capsys, tmp_path):
    args = bench.Namespace(rows=2, rank=4, device="cpu", dtype="fp32")
    theirs, base = bench.peft_step(args), Zhyper.from_pretrained(os.environ["SMOLLM2"])
    expected = [theirs() for _ in range(20)]
    for name in bench.OURS:
        _, step = bench.real_system(name, args, base)
        losses = [step() for _ in range(20)]
        assert losses[0] == pytest.approx(expected[0], rel=1e-4) and losses[-1] < losses[0]
    words = f"real --rows 2 --rank 4 --repeats 2 --json {tmp_path / 'bench.json'}"
    code, out, err = cli(bench, monkeypatch, capsys, *words.split())
    assert code == 0, err
    rows = json.loads((tmp_path / "bench.json").read_text())["real"]
    assert len(rows) == 12 and all(row["figure"] > 0 for row in rows)
    assert [row["most"] for row in rows[:6]] == [1.0, 1.0, 1.05, None, 1.0, 1.0]


@pytest.mark.parametrize("absent", ["peers", "models"])
def test_without_peers_or_models_the_bench_says_so_in_a_line_and_measures_the_rest(absent, monkeypatch, capsys):
    def find(name: str):
        raise FileNotFoundError(f"no model {name}")

    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None if absent == "peers" else name)
    monkeypatch.setattr(bench, "find", find)
    monkeypatch.setattr(bench, "SECTIONS", {"other": lambda args: [bench.Row("x", 7)], "real": bench.real})
    told = {"peers": "pip install transformers peft", "models": "set SMOLLM2 and MINILM"}[absent]
    code, out, err = cli(bench, monkeypatch, capsys, "real")
    assert code == 2 and told in err and err.count("\n") == 1 and not out
    code, out, err = cli(bench, monkeypatch, capsys)
    assert code == 0 and told in out.splitlines()[0] and "| x | 7.00 × |" in out and "| real" not in out


def test_a_figure_says_whether_it_is_within_its_limits():
    cells = [bench.Row("x", figure, 0.1, least=0.9).cells()[2:] for figure in (0.89, 0.91)]
    assert cells == [["≥ 0.9", "no"], ["≥ 0.9", "yes"]]
    both = [bench.Row("x", figure, least=0.95, most=1.05).cells()[2:] for figure in (1, 1.06)]
    assert both == [["≥ 0.95 and ≤ 1.05", "yes"], ["≥ 0.95 and ≤ 1.05", "no"]]
    assert bench.Row("x", 1234.5, 6.7, "a second").cells() == ["x", "1,234 ±7 a second", "–", "–"]
