"""What is faster, or smaller, does the same: each fast path of training is held against the plain one.

In float64, because AdamW turns rounding errors of float32 into steps where a gradient is zero but for them.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import bench
import pytest
import torch
from conftest import ROOT, build_system, cli, two_cultures
from test_train import smoke, stop_at_third_checkpoint, write

import train
from train import read_results, run, table
from zhyper import Zhyper, read_weights

METHODS = "lora,onehot,t2l,zhyper-diag,zhyper-diag-paper"
SMALL = replace(train.PRESETS["smoke"], pretrain_steps=6, batch=6, row=24, checkpoint=3, contexts=6, questions=1)
START = f"""  # train.py in float64, with the small preset; only rank 0 is told what to do, and has the run folder
import os, sys, torch
sys.path[:0] = {[str(ROOT), str(ROOT / "tests")]!r}
import test_speed, train
torch.set_default_dtype(torch.float64)
train.PRESETS["smoke"] = test_speed.SMALL
sys.argv = ["train.py", *(sys.argv[1:] if os.environ["RANK"] == "0" else [])]
train.one_line_errors(train.main)
"""


@pytest.fixture
def double(monkeypatch):
    monkeypatch.setitem(train.PRESETS, "smoke", SMALL)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def write_eight(path: Path) -> str:
    """Eight contexts in a file: a part of a step sees others than the rest of it does."""
    data = two_cultures()
    data.records[:] = [
        record._replace(context=f"{record.context} {i}", description=f"{record.description} {word}")
        for i, word in enumerate(("now", "here", "today", "indeed"))
        for record in data.records
    ]
    return write(data, path)


def weights(folder, method: str) -> dict[str, torch.Tensor]:
    """All weights and statistics of a run's method and its backbone, by name."""
    files = {"backbone": read_weights(folder / "backbone.pt"), "method": read_weights(folder / f"{method}.pt")}
    return {
        f"{file} {part} {name}": weight
        for file, content in files.items()
        for part in content
        if part.endswith("weights")
        for name, weight in content[part].items()
    }


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, weight in one.items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(weight, other[name], atol=1e-5, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


def torchrun(processes: int, *arguments: str) -> subprocess.CompletedProcess:
    """train.py in several processes, as a user would start it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["--no-python", sys.executable, "-c", START, *arguments]
    return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


def test_two_processes_train_the_weights_of_one(double, tmp_path):
    path = write_eight(tmp_path / "eight.jsonl")
    alone = smoke(path, tmp_path / "alone", methods=METHODS, steps=10)
    results = run(alone)
    done = torchrun(
        2, "--data", path, "--preset", "smoke", "--methods", METHODS, "--steps", "10", "--out", str(tmp_path / "two")
    )
    assert done.returncode == 0, done.stderr
    for method in METHODS.split(","):
        assert_same_weights(weights(tmp_path / "alone", method), weights(tmp_path / "two", method))
    both = read_results(tmp_path / "two")
    assert done.stdout.count("| method |") == 1 and table(both) in done.stdout
    for row, other in zip(results["rows"], both["rows"], strict=True):
        assert row["splits"]["unseen"]["accuracy"] == other["splits"]["unseen"]["accuracy"]
        assert row["splits"]["unseen"]["nll"] == pytest.approx(other["splits"]["unseen"]["nll"], abs=1e-5)


def test_two_processes_go_on_with_what_one_has_begun(double, monkeypatch, tmp_path):
    path = write_eight(tmp_path / "eight.jsonl")
    alone = smoke(path, tmp_path / "alone", methods="zhyper-diag", steps=10)
    run(alone)
    stop_at_third_checkpoint(monkeypatch, replace(alone, out=str(tmp_path / "two")))
    done = torchrun(2, "--resume", "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert_same_weights(weights(tmp_path / "alone", "zhyper-diag"), weights(tmp_path / "two", "zhyper-diag"))


def test_more_parts_than_rows_are_refused(double, tmp_path):
    path = write_eight(tmp_path / "eight.jsonl")
    with pytest.raises(ValueError, match="1 processes, accumulate 7: a step may have only 6 rows: choose fewer"):
        run(smoke(path, tmp_path / "run", accumulate=7))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["lora", "onehot", "t2l", "zhyper-diag", "zhyper-square"])
def test_a_step_read_in_parts_is_the_same_step(method, double, tmp_path):
    path = write_eight(tmp_path / "eight.jsonl")
    for name, parts in (("whole", 1), ("parts", 3)):
        run(smoke(path, tmp_path / name, methods=method, trunk="gated", steps=10, accumulate=parts))
    assert_same_weights(weights(tmp_path / "whole", method), weights(tmp_path / "parts", method))


def losses(folder: Path) -> list[float]:
    """What log.csv has of them."""
    return [float(line.split(",")[2]) for line in (folder / "log.csv").read_text().splitlines()[1:]]


def gradients(system: Zhyper, dtype: str) -> tuple[float, torch.Tensor]:
    """The loss of a few rows, and its gradient."""
    rows = two_cultures().split("train")
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        loss = system.score(*train.columns(rows), train.told(system, rows))[0].sum()
    trained = [p for module in (system.encoder, system.adapter) for p in module.parameters()]
    return loss.item(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)])


@pytest.mark.parametrize("kind", ["zhyper-diag", "zhyper-square", "t2l"])
def test_bf16_gives_the_loss_and_the_gradient_of_fp32_but_for_its_rounding(kind):
    system = build_system(kind).train()
    for B in system.adapter.B.values() if kind != "t2l" else ():
        B.data *= 0.1  # as small as trained ones
    (loss, gradient), (rough_loss, rough) = gradients(system, "fp32"), gradients(system, "bf16")
    assert rough_loss == pytest.approx(loss, rel=0.02) and rough_loss != loss
    assert torch.cosine_similarity(gradient, rough, dim=0) > 0.99


def test_compile_is_refused_where_nothing_can_be_compiled(monkeypatch, capsys, tmp_path):
    def no_compiler(function):
        raise RuntimeError("no C++ compiler\n  File ...")

    monkeypatch.setattr(torch, "compile", no_compiler)
    code, _, err = cli(train, monkeypatch, capsys, "--preset", "smoke", "--compile", "--out", str(tmp_path / "run"))
    assert code == 2 and err == "error: torch.compile does not work here (no C++ compiler): leave out --compile\n"


def test_a_run_in_bf16_learns_what_one_in_fp32_does_and_says_what_it_is(monkeypatch, tmp_path):
    monkeypatch.setattr(train, "has_bf16", lambda device: True)  # elsewhere it is emulated
    path = write(two_cultures(), tmp_path / "two.jsonl")
    job = smoke(path, tmp_path / "run", methods="zhyper-diag", dtype="bf16", steps=40)
    results = run(job)
    assert results["rows"][0]["splits"]["unseen"]["accuracy"] == 1.0 and results["settings"]["dtype"] == "bf16"
    assert {weight.dtype for weight in weights(tmp_path / "run", "zhyper-diag").values()} == {
        torch.float32,
        torch.int64,
    }
    with pytest.raises(ValueError, match="dtype 'bf16', now 'fp32'"):
        run(replace(job, dtype="fp32"))
    run(replace(job, dtype="fp32", out=str(tmp_path / "plain")))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "plain"), abs=0.1)
    assert losses(tmp_path / "run") != losses(tmp_path / "plain")


COMPILER = (
    any(map(shutil.which, ("c++", "g++", "clang++"))) and Path(sysconfig.get_path("include"), "Python.h").exists()
)


@pytest.mark.skipif(not COMPILER, reason="torch.compile needs a C++ compiler, and Python's headers")
def test_a_compiled_run_has_the_losses_of_an_eager_one(monkeypatch, tmp_path):
    one_layer = replace(SMALL.backbone, layers=1)
    monkeypatch.setitem(train.PRESETS, "smoke", replace(SMALL, backbone=one_layer, encoder=one_layer))
    path, compile, compiled = write(two_cultures(), tmp_path / "two.jsonl"), torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiled.append(f) or compile(f, **options))
    run(smoke(path, tmp_path / "eager", methods="zhyper-diag"))
    assert not compiled
    run(smoke(path, tmp_path / "compiled", methods="zhyper-diag", compile=True))
    assert len(compiled) == 3  # a small function to see whether it works, the backbone, the encoder
    eager, compiled = (read_results(tmp_path / name)["rows"][0]["splits"]["unseen"] for name in ("eager", "compiled"))
    assert compiled["nll"] == pytest.approx(eager["nll"], rel=1e-3)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-3)


def test_bf16_is_refused_where_it_would_only_be_emulated(monkeypatch, capsys, tmp_path):
    path = write(two_cultures(), tmp_path / "two.jsonl")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    words = "--preset", "smoke", "--dtype", "bf16", "--device", "cpu", "--out", str(tmp_path / "run")
    code, _, err = cli(train, monkeypatch, capsys, "--data", path, *words)
    assert code == 2 and err.count("\n") == 1 and "no products in bf16: choose --dtype fp32" in err


def test_the_bench_prints_its_tables_and_writes_the_same_figures(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(train.PRESETS, "default", train.PRESETS["smoke"])
    words = "training generation --repeats 2 --layers 1 --width 32 --rows 4 --tokens 16 --contexts 70 --json"
    code, out, _ = cli(bench, monkeypatch, capsys, *words.split(), str(tmp_path / "bench.json"))
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert code == 0 and list(figures) == ["training", "generation"]
    for row in figures["training"] + figures["generation"]:
        assert row.get("figure", row.get("time")) > 0 and row["spread"] >= 0 and f"| {row['what']} |" in out
    assert len(figures["training"]) == 10 and all(row["kept"] > 1 for row in figures["training"] if "kept" in row)
    assert "peak memory" in out


def test_the_bench_of_growth_finds_the_exponent_of_what_grows(monkeypatch):
    monkeypatch.setattr(bench, "interleaved", lambda cases, repeats: {name: [case()] for name, case in cases.items()})

    def parts(rank: int, **_) -> dict:
        return {"backbone": lambda: rank**3, "generate": lambda: rank, "apply": lambda: 7}

    monkeypatch.setattr(bench, "parts", parts)
    monkeypatch.setattr(bench, "GROWTH", {"rank": (4, 8, 16, 32)})
    (row,) = bench.growth(type("Args", (), {"repeats": 1}))
    assert row.exponents == pytest.approx({"backbone": 3, "generate": 1, "apply": 0}) and row.largest == 32
    assert row.shares["backbone"] > 0.99 and row.cells()[-1] == "backbone"
