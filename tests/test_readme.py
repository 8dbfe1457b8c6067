"""What the README names is there, its Python runs, and the house is as DESIGN.md says."""

import ast
import doctest
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from conftest import ROOT

from train import PRESETS

README = (ROOT / "README.md").read_text(encoding="utf-8")
OUR_FILES = ["model", "hyper", "zhyper", "train"]  # each imports only from those before it
PRODUCT = [*(ROOT / f"{name}.py" for name in OUR_FILES), *ROOT.glob("data/*.py")]


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def tracked() -> list[str]:
    """The files that git knows and that are there."""
    listed = shutil.which("git") and subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if not listed or listed.returncode:
        pytest.skip("this is no git repository")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


SHOW_HELP = """
import contextlib, runpy, sys
sys.stdout.reconfigure(errors="replace")
for command in sys.argv[1:]:  # in one process, as each would import torch
    sys.argv = [*command.split(), "--help"]
    print(end="\\f")
    with contextlib.suppress(SystemExit):
        runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_commands_have_the_options_that_the_readme_gives_them():
    in_lines = [" ".join(command.split()) for command in re.findall(r"`(python [^`]*)`", README)]
    shell = "".join(blocks("sh")).replace("\\\n", " ") + "\n".join(in_lines)
    options = defaultdict(set)  # of each command that the README has
    for script, job, rest in re.findall(r"python ([\w/]+\.py)( chat| explain| export)?(.*)", shell):
        options[script, *job.split()] |= set(re.findall(r"(?<!\S)--[a-z][\w-]*", rest))
    assert options
    commands = [" ".join(command) for command in options]
    helps = subprocess.run([sys.executable, "-c", SHOW_HELP, *commands], cwd=ROOT, capture_output=True, text=True)
    _, *helps = helps.stdout.split("\f")
    for command, named, shown in zip(commands, options.values(), helps, strict=True):
        for option in named:
            assert re.search(rf"{option}\b", shown), f"{command} has no {option}"
    assert set(re.findall(r"--preset (\w+)", README)) <= set(PRESETS)


CONVERSATIONS = re.findall(r"^```\n\$ python zhyper.py chat(.*)\n([^`]*)^```", README, re.M)


@pytest.mark.parametrize(("options", "shown"), CONVERSATIONS)
def test_a_conversation_of_the_readme_is_what_chat_prints(options, shown):
    typed = re.findall(r"^> (.*)$", shown, re.M)
    environment = os.environ | {"PYTHONUTF8": "1"}
    command = [sys.executable, "zhyper.py", "chat", *options.split()]
    lines = "\n".join([*typed, "/quit"])
    result = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", input=lines, env=environment)
    if "no folder or model" in result.stderr:
        pytest.skip("its pretrained encoder is not on this machine")
    answers = re.sub(r"^> .*\n", "", shown, flags=re.M)  # chat prints its mark, but not what is typed
    printed = result.stdout.replace("> ", "")
    without_digits = [re.sub(r"\d", "", text) for text in (answers, printed)]  # these may differ between machines
    assert without_digits[0] in without_digits[1]


def test_files_that_the_readme_names_exist():
    named = re.findall(r"`((?:data|tests|assets)/[\w./]*|\w+\.py)`|\]\(([\w./]+)\)|src=\"([\w./]+)\"", README)
    assert named
    for path in {"".join(groups) for groups in named}:
        assert (ROOT / path).exists() or (ROOT / "data" / path).exists(), path


def test_the_table_of_files_has_their_lines_and_the_minutes_that_it_explains():
    (each_minute,) = map(int, re.findall(r"(\d+)\s+expression\s+nodes\s+a\s+minute", README))
    rows = re.findall(r"^\| (`[^|]*\.py`[^|]*) \| (\d+) \| (\d+) \|", README, re.M)
    named = []
    for cell, lines, minutes in rows:
        files = re.findall(r"`(\w+\.py)`", cell)
        folder = "data" if "`data/`" in cell else ""
        sources = [(ROOT / folder / name).read_text(encoding="utf-8") for name in files]
        nodes = [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.expr)]
        assert int(lines) == sum(len(source.splitlines()) for source in sources), cell
        assert int(minutes) == round(len(nodes) / each_minute), cell
        named += files
    assert [name for name in named if name[:-3] in OUR_FILES] == [f"{name}.py" for name in OUR_FILES]


def test_the_python_of_the_readme_runs(trained, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    programs = [block for block in blocks("python") if "Zhyper.load" in block]
    assert programs
    for code in programs:
        for run in re.findall(r'Zhyper\.load\("([\w/-]+)"', code):
            Path(run).mkdir(parents=True, exist_ok=True)
            trained[0].save(Path(run, "zhyper-diag.pt"))
        exec(code, {})


def requirements() -> list[str]:
    """The lines of requirements.txt without their comments."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.partition("#")[0].strip() for line in lines]


def test_four_packages_are_required():
    names = [re.split("[=>]", line)[0] for line in requirements()]
    assert names == ["torch", "numpy", "tokenizers", "tqdm"]


@pytest.mark.parametrize("script", [".github/workflows/tests.yml", ".ci/run"])
@pytest.mark.parametrize("system", ["Linux", "macOS", "Windows"])
def test_what_tests_each_system_takes_its_lines_from_the_readme(script, system):
    """Each pattern that the script looks for finds one line, and in this order: set up, install, test."""
    text = (ROOT / script).read_text(encoding="utf-8")
    (wanted,) = re.findall(r"^ *lines=\$\(grep (.*) README.md\)$", text, re.M)
    found = []
    for pattern in re.findall(r"-e ['\"](.*?)['\"]", wanted.replace("$RUNNER_OS", system)):
        found += re.findall(f"^.*{pattern.removeprefix('^')}", README, re.M)
    setup = f"# {system if '$RUNNER_OS' in wanted else 'Linux'}"
    assert len(found) == 3
    assert "-m venv .venv" in found[0] and found[0].endswith(setup)
    assert "pip install -r requirements.txt" in found[0]
    assert [README.index(line) for line in found] == sorted(README.index(line) for line in found)
    assert found[1:] == ["pip install pytest hypothesis", "python -m pytest"]


def test_the_torch_that_linux_gets_is_the_tested_one_and_new_enough():
    """It is named with its number, so that pip takes the build for CPUs; a range may bring another."""
    (pinned,) = re.findall(r"pip install torch==([\d.]+) --index-url", README)
    comment = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()[0]
    assert f"tested with {pinned};" in comment
    least = requirements()[0].removeprefix("torch>=")
    assert [int(part) for part in least.split(".")] <= [int(part) for part in pinned.split(".")]


def test_nothing_lies_at_the_top_but_what_was_agreed():
    agreed = "README.md LICENSE requirements.txt pyproject.toml .gitignore .ci .github assets data tests"
    agreed = {*agreed.split(), *(f"{name}.py" for name in OUR_FILES)}
    others = {name.split("/")[0] for name in tracked()} - agreed
    assert not others, f"put {others} into data/ or tests/, leave it out of git, or name it in this test"


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: path.stem)
def test_imports_run_one_way_and_no_file_hides(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    ours = imported & {*OUR_FILES, "data"}
    allowed = {"model": {"data"}, "hyper": {"model"}, "zhyper": {"data", "hyper", "model"}}
    allowed["train"] = {"data", "hyper", "model", "zhyper"}
    assert ours <= allowed.get(path.stem, {"data"})
    assert not path.name.startswith("_") or path.name == "__init__.py"


def test_no_tracked_file_names_a_folder_of_some_machine():
    for name in tracked():
        text = (ROOT / name).read_bytes().decode(errors="ignore")
        found = re.search(r"(?<![\w.*~/])/(?:work|home|root|Users|tmp)/\w+", text)
        assert name.endswith(".png") or not found, f"{name}: {found}"


@pytest.mark.parametrize("path", [path for path in PRODUCT if ">>>" in path.read_text(encoding="utf-8")], ids=str)
def test_the_examples_in_the_docstrings_are_right(path):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    found = doctest.testmod(module)
    assert found.attempted and not found.failed
