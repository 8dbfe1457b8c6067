"""The lab's notebook runs from its first to its last cell, and its committed cells are what a reader needs."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

EXERCISES = ROOT / "tests" / "exercises"
NOTEBOOK = EXERCISES / "lab.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
SOURCES = {cell["id"]: "".join(cell["source"]) for cell in CELLS}
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
STUBS = {2: ["in_rank_space"], 8: ["before", "after", "lost_before", "lost_after"]}  # what each exercise asks for
sys.path.insert(0, str(EXERCISES))

from check import check  # noqa: E402


def function_in(source: str, name: str) -> str:
    (found,) = [node for node in ast.parse(source).body if getattr(node, "name", "") == name]
    return ast.get_source_segment(source, found)


# ---- as committed


def test_the_outputs_are_those_of_one_run_without_an_error_or_a_warning():
    assert [cell["execution_count"] for cell in CODE] == [*range(1, len(CODE) + 1)]
    outputs = [(cell["id"], output) for cell in CODE for output in cell["outputs"]]
    assert [name for name, output in outputs if output["output_type"] == "display_data"] == ["arrows", "curve"]
    streams = [(name, output["name"]) for name, output in outputs if output["output_type"] == "stream"]
    assert len(streams) + 2 == len(outputs)
    assert {name for name, stream in streams if stream == "stderr"} == {"train"}
    assert NOTEBOOK.stat().st_size < 250_000


def test_the_prose_names_files_that_exist():
    prose = "\n".join(SOURCES[cell["id"]] for cell in CELLS if cell["cell_type"] == "markdown")
    named = re.findall(r"`(?:python )?([\w/]+\.(?:py|md))\b", prose) + re.findall(r"`(tests/\w+)`", prose)
    assert len(named) >= 4
    for name in named:
        assert (ROOT / name).exists(), name


@pytest.mark.skipif(not (EXERCISES / "solutions.py").exists(), reason="handed out: there are no solutions")
@pytest.mark.parametrize(("number", "names"), STUBS.items())
def test_a_cell_for_an_answer_is_not_begun_and_takes_a_right_and_a_wrong_one(number, names, tmp_path):
    (exercise,) = EXERCISES.glob(f"ex{number:02}_*.py")
    command, _, source = SOURCES[f"answer-{number}"].partition("\n")
    assert command == f"%%writefile out/lab/answer{number:02}.py"
    right = source
    wrong = source
    for name in names:
        stub = function_in(source, name)
        assert stub == function_in(exercise.read_text(encoding="utf-8"), name)
        right = right.replace(stub, function_in((EXERCISES / "solutions.py").read_text(encoding="utf-8"), name))
        wrong = wrong.replace(stub, stub.partition("\n")[0] + "\n    return None\n")
    for written, row in ((source, f"not begun: {names[0]}"), (right, "passes"), (wrong, "fails: ")):
        answer = tmp_path / f"{row[:4]}.py"
        answer.write_text(written, encoding="utf-8")
        assert check(exercise, answer).startswith(row)


# ---- run


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the code, so that no answer of a reader is overwritten."""
    left_out = shutil.ignore_patterns(".*", "out", "__pycache__")
    return Path(shutil.copytree(ROOT, tmp_path / "copy", ignore=left_out))


def run_setup(folder: Path, address: str = "") -> subprocess.CompletedProcess:
    """Run the set-up cell in a process of its own, and print where the code is that can then be imported."""
    source = SOURCES["setup"].replace('REPOSITORY = ""', f"REPOSITORY = {address!r}")
    code = f"{source}\nimport zhyper, check\nassert root == Path.cwd()\nprint(Path(zhyper.__file__).parent)"
    environment = os.environ | {"PYTHONUTF8": "1", "PYTHONPATH": ""}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_the_set_up_finds_the_code_around_it_or_clones_it_or_says_what_to_write(copy, tmp_path):
    for folder in (copy, copy / "tests" / "exercises"):
        result = run_setup(folder)
        assert result.stdout.splitlines()[1:] == [str(copy)], result.stderr
    result = run_setup(tmp_path)
    assert result.returncode and result.stderr.splitlines()[-1].endswith("write its address into REPOSITORY")
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("this is no git repository")
    result = run_setup(tmp_path, ROOT.as_uri())
    assert result.stdout.splitlines()[1:] == [str(tmp_path / "zhyper")], result.stderr


def test_every_cell_runs_in_a_fresh_kernel(copy):
    pytest.importorskip("matplotlib")
    pytest.importorskip("ipykernel")
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    folder = copy / "tests" / "exercises"
    notebook = nbformat.read(folder / "lab.ipynb", as_version=4)
    where = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where)
    client.execute()  # raises for a cell that fails
    printed = {}
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        printed[cell.id] = "".join(output.text for output in outputs if output.get("name") == "stdout")
    for number, names in STUBS.items():
        assert printed[f"check-{number}"] == f"exercise {number}: not begun: {names[0]}\n"
    assert "adapted: raise the taxes" in printed["ask"]
    assert printed["words"].startswith("skipped: ") or "adapted: a single queen" in printed["words"]
    apart = re.findall(r"^apart by ([\d.]+): ", printed["arrows"], re.M)
    assert len(apart) == 2 and all(float(distance) < 0.001 for distance in apart)  # the arrows end at z of the text
    found = re.findall(r"^(\w+) +([\d.]+) +([\d.]+) +([\d.]+)$", printed["pairs"], re.M)
    (_, _, ood, pairs), (_, _, ood_of_text, pairs_of_text) = found
    assert ood > ood_of_text and pairs > "0.55" > pairs_of_text  # by construction a bag of words has about half
