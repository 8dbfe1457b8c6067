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
STUBS = {2: "in_rank_space", 3: "gradients", 4: "alive_start"}  # the function that each exercise asks for
sys.path.insert(0, str(EXERCISES))

from check import check  # noqa: E402

PARTS = [  # what the code cells must hold, in this order
    r'"git", "clone"',
    r'"pip", "install"',
    r"Zhyper\.load\(TRAINED\)",
    r"system\.generate\(\[prompt, prompt\], \[None, description\]\)",
    r"\.imshow\(",
    r"system\.relative_norms\(",
    r"update\.delta\(0\) - update\.delta\(1\)",
    r"torch\.lerp\(",
    r'train\.Settings\(\s+preset="smoke"',
    r"train\.run\(settings\)",
    r'\["curve"\]',
    r"%%writefile out/lab/answer02\.py",
    r"check_answer\(2\)",
    r"%%writefile out/lab/answer03\.py",
    r"check_answer\(3\)",
    r"%%writefile out/lab/answer04\.py",
    r"check_answer\(4\)",
    r"train\.swapped_descriptions\(",
    r"accuracy\['right'\] - accuracy\['swapped'\]",
]


def exercise(number: int) -> Path:
    (path,) = EXERCISES.glob(f"ex{number:02}_*.py")
    return path


def answer_of(number: int) -> str:
    """What the cell of an exercise writes, without the line that names the file."""
    command, _, answer = SOURCES[f"answer-{number}"].partition("\n")
    assert command == f"%%writefile out/lab/answer{number:02}.py"
    return answer


def function_in(source: str, name: str) -> str:
    (found,) = [node for node in ast.parse(source).body if getattr(node, "name", "") == name]
    return ast.get_source_segment(source, found)


def printed(cell: dict) -> str:
    """What a code cell has printed."""
    texts = []
    for output in cell["outputs"]:
        if output["output_type"] == "stream" and output["name"] == "stdout":
            texts += output["text"]
    return "".join(texts)


# ---- as committed


def test_the_parts_are_there_in_order():
    code = "\n".join("".join(cell["source"]) for cell in CODE)
    place = 0
    for part in PARTS:
        found = re.compile(part).search(code, place)
        assert found, f"{part} is missing, or not behind what is above it in PARTS"
        place = found.end()


def test_the_outputs_are_those_of_one_run_from_the_first_to_the_last_cell():
    assert [cell["execution_count"] for cell in CODE] == [*range(1, len(CODE) + 1)]
    kinds = {output["output_type"] for cell in CODE for output in cell["outputs"]}
    assert kinds == {"stream", "display_data"}  # no error
    assert sum("image/png" in str(cell["outputs"]) for cell in CODE) == 3
    assert NOTEBOOK.stat().st_size < 250_000


def test_the_prose_names_files_that_exist():
    prose = "\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
    named = re.findall(r"`(?:python )?([\w/]+\.(?:py|md))\b", prose) + re.findall(r"`(tests/\w+)`", prose)
    assert len(named) >= 4
    for name in named:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("number", STUBS)
def test_a_cell_for_an_answer_holds_the_stub_of_its_exercise_and_is_not_begun(number, tmp_path):
    answer = tmp_path / f"answer{number:02}.py"
    answer.write_text(answer_of(number), encoding="utf-8")
    name = STUBS[number]
    stub = function_in(exercise(number).read_text(encoding="utf-8"), name)
    assert function_in(answer_of(number), name) == stub
    assert check(exercise(number), answer) == f"not begun: {name}"


@pytest.mark.parametrize("number", STUBS)
def test_a_right_answer_in_its_cell_passes_and_a_wrong_one_fails(number, tmp_path):
    solutions = EXERCISES / "solutions.py"
    if not solutions.exists():
        pytest.skip("handed out: there are no solutions")
    name = STUBS[number]
    stub = function_in(answer_of(number), name)
    solution = function_in(solutions.read_text(encoding="utf-8"), name)
    imports = "from torch import nn\n" if "nn." in solution else ""
    wrong = stub.partition("\n")[0] + "\n    return None\n"
    for written, begins in ((solution, "passes"), (wrong, "fails: ")):
        answer = tmp_path / f"{begins[:4]}.py"
        answer.write_text(imports + answer_of(number).replace(stub, written), encoding="utf-8")
        assert check(exercise(number), answer).startswith(begins)


# ---- the set-up


def run_setup(source: str, folder: Path) -> subprocess.CompletedProcess:
    """Run the set-up cell in a process of its own, and print where it ends up and what can be imported there."""
    code = f"{source}\nimport zhyper, check\nprint(Path.cwd(), Path(zhyper.__file__).parent, sep='\\n')"
    command = [sys.executable, "-c", code]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PYTHONUTF8"] = "1"
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("folder", [".", "tests/exercises"])
def test_in_a_copy_of_the_code_the_set_up_finds_it(folder, copy):
    result = run_setup(SOURCES["setup"], copy / folder)
    assert result.returncode == 0, result.stderr
    found = [Path(line).resolve() for line in result.stdout.splitlines()[1:]]
    assert found == [copy.resolve()] * 2


def test_elsewhere_the_set_up_clones_the_code(tmp_path):
    listed = shutil.which("git") and subprocess.run(["git", "rev-parse", "--git-dir"], cwd=ROOT, capture_output=True)
    if not listed or listed.returncode:
        pytest.skip("this is no git repository")
    source = SOURCES["setup"].replace('REPOSITORY = ""', f"REPOSITORY = {ROOT.as_uri()!r}")
    result = run_setup(source, tmp_path)
    assert result.returncode == 0, result.stderr
    found = [Path(line).resolve() for line in result.stdout.splitlines()[1:]]
    assert found == [(tmp_path / "zhyper").resolve()] * 2


def test_elsewhere_without_an_address_it_says_what_to_write(tmp_path):
    result = run_setup(SOURCES["setup"], tmp_path)
    assert result.returncode and result.stderr.splitlines()[-1].endswith("write its address into REPOSITORY")


# ---- a run


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the code, so that no answer of a reader is overwritten."""
    left_out = shutil.ignore_patterns(".*", "out", "__pycache__")
    return Path(shutil.copytree(ROOT, tmp_path / "copy", ignore=left_out))


def test_every_cell_runs_in_a_fresh_kernel(copy):
    pytest.importorskip("matplotlib")
    pytest.importorskip("ipykernel")
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    folder = copy / "tests" / "exercises"
    notebook = nbformat.read(folder / "lab.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    where = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where)
    client.execute()  # raises for a cell that fails
    outputs = {cell.id: printed(cell) for cell in notebook.cells if cell.cell_type == "code"}
    for number, name in STUBS.items():
        assert outputs[f"check-{number}"] == f"exercise {number}: not begun: {name}\n"
    assert "adapted   raise the taxes" in outputs["ask"]
    differences = re.findall(r"^layer \d \w +([\d.]+)$", outputs["differences"], re.M)
    assert len(differences) == 8 and all(float(ratio) > 0.1 for ratio in differences)  # far apart at every site
    accuracy = dict(re.findall(r"^(\w+) +([\d.]+)$", outputs["margin"], re.M))
    assert {*accuracy} == {"right", "swapped", "random", "none", "margin"}
    assert float(accuracy["right"]) > 0.9 and float(accuracy["margin"]) > 0.8
    assert "| margin |" in outputs["table"]
    pictures = [cell.id for cell in notebook.cells if "image/png" in str(cell.get("outputs", ""))]
    assert pictures == ["z", "way", "curve"]
