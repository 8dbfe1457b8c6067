"""The README's commands run as written, and the project needs what it says and no more."""

import ast
import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SETUP = "python3 -m venv .venv && . .venv/bin/activate && pip install -r requirements.txt"
QUICK_START = re.findall(rf"^{re.escape(SETUP)}.*$", README, re.M)


def run(command: str, folder: Path) -> subprocess.CompletedProcess:
    """A README command, with this interpreter as its python, in a folder that sees the project's files."""
    for name in ("model.py", "hyper.py", "zhyper.py", "train.py", "data"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        command, shell=True, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )


def test_there_are_two_commands_to_start_with():
    main, tests = QUICK_START
    assert main == f"{SETUP} && python train.py"
    assert tests == f"{SETUP} pytest hypothesis && python -m pytest"


def test_ci_runs_the_readme_test_command():
    assert "README.md" in (ROOT / ".ci/run").read_text()


def test_the_main_job_and_the_sample_run_as_written_in_under_a_minute(tmp_path):
    main = run(QUICK_START[0].rpartition("&& ")[2] + " --preset smoke", tmp_path)
    assert main.returncode == 0, main.stderr
    printed = [line for line in main.stdout.splitlines() if line.startswith("|")]
    assert printed[0] in README  # the same columns
    seconds = int(re.search(r"(\d+) seconds in all", main.stdout)[1])
    assert seconds < 60
    sample = re.search(r"^python zhyper.py generate .*?[^\\]$", README, re.M | re.S)[0]
    answered = run(sample, tmp_path)
    assert answered.returncode == 0 and answered.stdout.startswith("frozen: "), answered.stderr


def test_the_eight_lines_of_python_run_as_written(trained, monkeypatch, capsys, tmp_path):
    trained[0].save(tmp_path / "out/cultures", "zhyper-diag")
    block = re.search(r"^```python\n(from zhyper import .*?)```", README, re.M | re.S)[1]
    lines = [line for line in block.splitlines() if line]
    assert len(lines) == 8
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec("\n".join(lines[:7]), names)
    assert capsys.readouterr().out.count("[") == 2 and names["model"].merged
    pytest.importorskip("safetensors")
    exec(lines[7], names)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "adapter", "backbone"}


@pytest.mark.parametrize("path", sorted([*ROOT.glob("*.py"), *ROOT.glob("data/*.py")]), ids=lambda path: path.name)
def test_nothing_but_the_four_packages_is_imported(path):
    allowed = {"torch", "numpy", "tokenizers", "tqdm", "model", "hyper", "zhyper", "train", "data"}
    for node in ast.parse(path.read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name.split(".")[0] in allowed | sys.stdlib_module_names, name


def test_imports_run_one_way():
    order = ["model", "hyper", "zhyper", "train"]
    for number, name in enumerate(order):
        imported = set(re.findall(r"^(?:from|import) (\w+)", (ROOT / f"{name}.py").read_text(), re.M))
        assert not imported & set(order[number:])
        assert name == "train" or "data" not in imported


def test_the_requirements_are_the_four_packages():
    lines = (ROOT / "requirements.txt").read_text().split()
    assert [re.split("[=>]", line)[0] for line in lines] == ["torch", "numpy", "tokenizers", "tqdm"]
    assert lines[0] == "torch==2.13.0"


@pytest.mark.parametrize(
    "name", ["model", "hyper", "zhyper", "train", "bench", "data.cultures", "data.instructions", "data.voices"]
)
def test_the_examples_in_the_docstrings_are_right(name):
    examples = [test for test in doctest.DocTestFinder().find(importlib.import_module(name)) if test.examples]
    runner = doctest.DocTestRunner()
    for example in examples:
        if example.name != "zhyper":  # that of the whole file needs a trained system
            runner.run(example)
    assert not runner.failures
