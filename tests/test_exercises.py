"""Of the exercises every stub fails as it should, every solution passes, and each file has its form."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

FOLDER = Path(__file__).parent / "exercises"
EXERCISES, SOLUTIONS = sorted(FOLDER.glob("ex*.py")), FOLDER / "solutions.py"
TABLE = (FOLDER / "README.md").read_text()
KINDS = ["predict", "complete", "debug", "complete", "complete", "modify", "modify", "debug", "investigate", "make"]
pytestmark = pytest.mark.skipif(not SOLUTIONS.exists(), reason="handed out: there are no solutions")


def names(path: Path) -> list[str]:
    """The functions and classes of a file that raise NotImplementedError."""
    found = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return [node.name for node in found if "raise NotImplementedError" in ast.unparse(node)]


def start(folder: Path, **env: str) -> subprocess.Popen:
    """All exercises, run from another folder; report.xml is to say what each check ended in."""
    folder.mkdir()
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--junitxml=report.xml", *map(str, EXERCISES)]
    clean = {name: value for name, value in os.environ.items() if name != "SOLUTIONS"}
    env |= clean | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # starts sooner
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def messages(folder: Path, process: subprocess.Popen) -> dict[str, list[str]]:
    """What went wrong in each check: {"ex02_rank_space.test_it_is ...": []} if nothing."""
    printed = process.communicate(timeout=120)[0].decode()
    assert (folder / "report.xml").exists(), printed
    cases = ElementTree.parse(folder / "report.xml").iter("testcase")
    return {f"{c.get('classname').split('.')[-1]}.{c.get('name')}": [e.get("message") or "" for e in c] for c in cases}


def test_every_check_fails_on_the_stub_for_the_right_reason_and_passes_on_the_solution(tmp_path):
    folders = tmp_path / "stubs", tmp_path / "solutions"
    started = start(folders[0]), start(folders[1], SOLUTIONS="1")  # beside each other
    stubs, solutions = map(messages, folders, started)
    assert {check.split(".")[0] for check in stubs} == {path.stem for path in EXERCISES}
    for check, found in stubs.items():
        assert found and all("NotImplementedError" in message for message in found), (check, found)
    assert solutions == dict.fromkeys(stubs, [])


def test_there_is_one_solution_for_each_stub():
    stubs = [name for path in EXERCISES for name in names(path)]
    found = [node.name for node in ast.parse(SOLUTIONS.read_text()).body if hasattr(node, "name")]
    assert len(EXERCISES) == 10 and stubs == found and len({*stubs}) == len(stubs)


@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
def test_an_exercise_has_its_form(path):
    text, number = path.read_text(), int(path.stem[2:4])
    docstring, kind = ast.get_docstring(ast.parse(text)), KINDS[number - 1]
    task, rest = text.split("\n# ---- checks: do not edit\n")
    assert 30 <= len(text.splitlines()) <= 40
    assert docstring.lower().startswith(f"{kind} ") and "\n\nRead " in docstring
    assert re.findall(r"^Hint (\d): ", docstring, re.M) == ["1", "2"]
    assert names(path) and "raise NotImplementedError" in task and "\ndef test_" in f"\n{rest}"
    (row,) = re.findall(rf"^\| {number} \| {kind} \| \d+[^|]* \|(.*)\| `tests/exercises/{path.name}` \|$", TABLE, re.M)
    for name in re.findall(r"`(\S+\.(?:py|md))`", row):
        assert name in docstring


@pytest.mark.parametrize("path", [*EXERCISES, SOLUTIONS], ids=lambda path: path.stem)
def test_an_exercise_imports_nothing_optional(path):
    known = {"torch", "pytest", "conftest", "model", "hyper", "zhyper", "train", "data"} | sys.stdlib_module_names
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert {module.split(".")[0] for module in modules} <= known


def test_the_main_run_collects_no_exercise_and_the_readme_is_a_table():
    assert not [path for path in FOLDER.iterdir() if path.match("test_*.py") or path.match("*_test.py")]
    around = [line for line in TABLE.splitlines() if not line.startswith("|")]
    assert TABLE.count("\n| ") == len(EXERCISES) + 1 and len(" ".join(around).split()) <= 80
