"""The README's commands run as written, what it states is true, and the sitting stays a sitting."""

import ast
import doctest
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

import train
import zhyper

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SETUP = "python3 -m venv .venv && . .venv/bin/activate && pip install -r requirements.txt"
QUICK_START = re.findall(rf"^{re.escape(SETUP)}.*$", README, re.M)
FILES = {"model.py": 310, "hyper.py": 280, "zhyper.py": 410, "train.py": 450}  # most lines of each


def run(command: str, folder: Path) -> subprocess.CompletedProcess:
    """A command of the README, this interpreter as its python, in a folder with the project."""
    for name in (*FILES, "data", "tests"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True)


def block(start: str) -> str:
    """The code block of the README that begins with that line."""
    return re.search(rf"^```\w*\n({re.escape(start)}.*?)^```", README, re.M | re.S)[1]


def test_there_are_two_commands_to_start_with():
    main, tests = QUICK_START
    assert main == f"{SETUP} && python train.py"
    assert tests == f"{SETUP} pytest hypothesis && python -m pytest"
    assert "README.md" in (ROOT / ".ci/run").read_text()


def test_the_main_job_and_explain_run_as_written_in_under_a_minute(tmp_path):
    main = run(QUICK_START[0].rpartition("&& ")[2] + " --preset smoke", tmp_path)
    assert main.returncode == 0, main.stderr
    printed = [line.split("|")[1] for line in main.stdout.splitlines() if line.startswith("|")]
    shown = README[README.index("| accuracy |") :]
    assert [line.split("|")[1] for line in re.findall(r"^\|.*\|$", shown, re.M)][: len(printed)] == printed
    assert int(re.search(r"(\d+) seconds", main.stdout)[1]) < 60
    explained = run(block("python zhyper.py explain"), tmp_path)
    assert explained.returncode == 0, explained.stderr
    stages = [line[:9].strip() for line in block("tokens ").splitlines()]
    assert [line[:9].strip() for line in explained.stdout.splitlines()][:5] == stages[:5]


def test_the_pasted_explanation_is_what_the_default_system_prints(capsys):
    command = shlex.split(block("python zhyper.py explain").replace("\\\n", ""))
    given = dict(zip(command[3::2], command[4::2], strict=True))
    settings = train.Settings(device="cpu")
    data, base = train.read_data(settings)
    system = train.build_system("zhyper-diag", base, settings)  # untrained: all but the values is as after training
    zhyper.explain(system.eval(), SimpleNamespace(prompt=given["--prompt"], description=given["--description"]))

    def without_values(text: str) -> list[str]:
        rows = re.sub(r"'[^']*' 0\.\d{3}", "TOKEN", re.sub(r"-?\d\.\d{2}\b", "z", text))
        return [" ".join(line.split()) for line in re.sub(r"(?<=[qkvo] )\d\.\d{3}", "norm", rows).splitlines()]

    assert without_values(capsys.readouterr().out) == without_values(block("tokens "))


def test_the_picture_is_well_formed_and_described_and_in_both_themes():
    picture = (ROOT / "assets/method.svg").read_text()
    tags = [element.tag.split("}")[1] for element in ElementTree.fromstring(picture)]
    assert {"title", "desc", "style"} <= {*tags} and "prefers-color-scheme: dark" in picture
    assert len(picture) < 8192 and 'src="assets/method.svg"' in README and 'alt="' in README


def test_what_the_readme_quotes_is_in_the_code_and_the_sitting_takes_what_it_says():
    quoted = block("self.scale").strip()
    assert quoted in (ROOT / "hyper.py").read_text()
    minutes = [int(row) for row in re.findall(r"^\| `\w+\.py` \| \d+ \| (\d+) \|", README, re.M)]
    assert len(minutes) == len(FILES) and sum(minutes) <= 200  # an evening
    lines = [len((ROOT / name).read_text().splitlines()) for name in FILES]
    paces = [n / m for n, m in zip(lines, minutes, strict=True)]
    assert min(paces) >= 6 and max(paces) <= 11  # lines a minute, as readers of all four took them


def test_the_lines_of_python_run_as_written(trained, monkeypatch, capsys, tmp_path):
    (tmp_path / "out/cultures").mkdir(parents=True)
    trained[0].save_backbone(tmp_path / "out/cultures")
    trained[0].save(tmp_path / "out/cultures", "zhyper-diag")
    *lines, export = block("import torch\nfrom zhyper import Zhyper").strip().splitlines()
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec("\n".join(lines), names)
    assert capsys.readouterr().out.count("[") == 2
    pytest.importorskip("safetensors")
    exec(export, names)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "adapter", "llama"}


@pytest.mark.parametrize(("name", "most"), FILES.items())
def test_a_file_is_as_long_as_the_readme_says_and_no_longer_than_a_sitting_allows(name, most):
    lines = (ROOT / name).read_text().splitlines()
    assert f"| `{name}` | {len(lines)} |" in README
    assert len(lines) <= most and sum(len(line) > 100 for line in lines) <= 0.05 * len(lines)


def test_the_four_files_and_the_readme_are_one_sitting():
    assert sum(len((ROOT / name).read_text().splitlines()) for name in FILES) <= 1450
    assert len(README.split()) <= 2200


def test_files_links_and_options_that_the_readme_names_exist():
    helps = [run(f"python {command} -h", ROOT).stdout for command in ("train.py", "tests/evidence.py")]
    helps += [run(f"python zhyper.py {name} -h", ROOT).stdout for name in ("chat", "explain", "export")]
    for option in set(re.findall(r"(?<![\w-])--[a-z][\w-]*", README)) - {"--nproc-per-node"}:
        assert any(option in text for text in helps), option
    for path in re.findall(r"`((?:data|tests)/[\w./]*|[a-z]+\.py)`|\]\(([\w./]+)\)|src=\"([\w./]+)\"", README):
        assert (ROOT / next(filter(None, path))).exists(), path


SOURCES = sorted([*ROOT.glob("*.py"), *ROOT.glob("data/*.py")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_but_the_four_packages_is_imported(path):
    allowed = {"torch", "numpy", "tokenizers", "tqdm", "model", "hyper", "zhyper", "train", "data"}
    for node in ast.parse(path.read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name.split(".")[0] in allowed | sys.stdlib_module_names, name


def test_imports_run_one_way():
    for number, name in enumerate(FILES):
        imported = set(re.findall(r"^(?:from|import) (\w+)", (ROOT / name).read_text(), re.M))
        assert not imported & {Path(other).stem for other in list(FILES)[number:]}
    for path in ROOT.glob("data/*.py"):
        imported = re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.M)
        assert not {*imported} & {Path(name).stem for name in FILES}, path


def test_the_requirements_are_the_four_packages():
    lines = (ROOT / "requirements.txt").read_text().split()
    packages = [re.split("[=>]", line)[0] for line in lines]
    assert packages == ["torch", "numpy", "tokenizers", "tqdm"] and lines[0] == "torch==2.13.0"


MODULES = ["model", "hyper", "bench", "data._pretrained"]
MODULES += [f"data.{name}" for name in ("cultures", "instructions", "tasks", "voices")]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_the_docstrings_are_right(name):
    tests = doctest.DocTestFinder().find(importlib.import_module(name))
    examples = [test for test in tests if test.examples]
    runner = doctest.DocTestRunner()
    for example in examples:
        runner.run(example)
    assert examples and not runner.failures
