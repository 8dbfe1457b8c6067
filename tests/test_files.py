"""What the files of a run promise: killed, damaged, renamed, full or not ours, nothing is lost.

What a hostile user tries is below, each kind with its test. A run writes, in this order: results,
two checkpoints of the pretraining, backbone.pt, results; two checkpoints of a method, METHOD.pt,
results; the next method ...
"""

import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import cli, smoke, two_cultures
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train import TINY, write

import train
import zhyper
from data._cli import one_line_errors
from data._files import only_writer, open_results, read_file, write_file
from train import run
from zhyper import Zhyper

METHOD = "zhyper-diag-paper"  # has dropout: also the random state must be as it was
IN_METHOD = 6  # the write during which a run is in the middle of training its first method


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(train.PRESETS, "smoke", TINY)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> train.Settings:
    """A finished run of which no test changes anything."""
    folder = tmp_path_factory.mktemp("whole")
    path = write(two_cultures(), folder / "two.jsonl")
    job = smoke(path, folder / "run", steps=4, methods=METHOD, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train.PRESETS, "smoke", TINY)
        run(job)
    return job


@pytest.fixture
def job(whole, tmp_path) -> train.Settings:
    """The same run in a folder that has nothing yet."""
    return replace(whole, out=str(tmp_path / "run"))


def words(job: train.Settings) -> list[str]:
    """The command line of a job."""
    given = {name: getattr(job, name) for name in ("data", "preset", "out", "methods", "steps")}
    return [str(word) for name, value in given.items() for word in (f"--{name}", value)]


def fail_at(monkeypatch, number: int, error: BaseException) -> None:
    """Raise `error` in the middle of the number-th write from now on."""
    writes = itertools.count()

    def fsync(_):
        if next(writes) == number:
            raise error

    monkeypatch.setattr("data._files.os.fsync", fsync)


def stop(job: train.Settings, number: int = IN_METHOD) -> None:
    """Run a job, and stop it in the middle of its number-th write."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        fail_at(patch, number, KeyboardInterrupt())
        run(job)


def results_of(folder: Path) -> dict:
    """What results.json has but for the time that it took."""
    results = json.loads((folder / "results.json").read_text())
    for timed in (results["pretrain"], *results["rows"]):
        timed["seconds"] = None
    return results | {"checksum": None}


def same_run(first: Path, second: Path, method: str = METHOD) -> bool:
    """Whether two folders hold the same weights, bit for bit, and the same results."""
    one, other = (Zhyper.load(folder, method).state_dict() for folder in (first, second))
    return equal(one, other) and results_of(first) == results_of(second)


def equal(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- killed, interrupted, or out of room


def command(folder: Path, preset: train.Preset, *words: str) -> None:
    """What a child process runs: train.py, its output in files that cannot hold "±"."""
    train.PRESETS["smoke"] = preset
    sys.argv = ["train.py", *words]
    with (
        open(folder / "stdout", "a", encoding="ascii") as sys.stdout,
        open(folder / "stderr", "a", encoding="ascii") as sys.stderr,
    ):
        one_line_errors(train.main)


def start(folder: Path, preset: train.Preset, *words: str) -> multiprocessing.Process:
    """A child process that has imported torch already, so that it starts at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train", "torch._dynamo"])
    child = context.Process(target=command, args=(folder, preset, *words, "--device", "cpu"))
    child.start()
    return child


@pytest.fixture(scope="module")
def long(whole, tmp_path_factory) -> tuple[train.Preset, train.Settings, float]:
    """A preset of more steps, a run that was not disturbed, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("long")
    preset = replace(TINY, pretrain_steps=20, checkpoint=3)
    job = replace(whole, out=str(folder / "run ±"), steps=20)
    start(folder, preset, "-h").join()  # from now on a child starts at once
    since = time.perf_counter()
    child = start(folder, preset, *words(job))
    child.join()
    assert child.exitcode == 0, (folder / "stderr").read_text()
    assert "| unseen | " in (folder / "stdout").read_text()
    return preset, job, time.perf_counter() - since


@pytest.mark.parametrize("number", range(15))
def test_a_run_that_was_killed_ends_in_the_weights_of_one_that_was_not(number, long, tmp_path):
    preset, undisturbed, seconds = long
    job = replace(undisturbed, out=str(tmp_path / "run"))
    how = signal.SIGINT if number < 3 else signal.SIGKILL
    child = start(tmp_path, preset, *words(job), *["--force"][number % 2 :])
    child.join(random.uniform(0, seconds))
    if child.is_alive():
        os.kill(child.pid, how)
        child.join()
        assert child.exitcode in ((0, 1, 130) if number < 3 else (0, -9))  # 1: before main began
    again = start(tmp_path, preset, *words(job))
    again.join()
    assert again.exitcode == 0, (tmp_path / "stderr").read_text()
    assert same_run(job.run, undisturbed.run)
    assert not [name for name in contents(job.run) if "checkpoint" in name or "tmp" in name]


def test_ctrl_c_ends_in_one_line_that_says_how_to_go_on(long, tmp_path):
    preset, undisturbed, _ = long
    job = replace(undisturbed, out=str(tmp_path / "run"), steps=1000)
    child = start(tmp_path, preset, *words(job))
    while child.is_alive() and not (job.run / f"checkpoint-{METHOD}.pt").exists():
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGINT)
    child.join()
    last = (tmp_path / "stderr").read_text().splitlines()[-1]
    assert child.exitcode == 130 and not (tmp_path / "stdout").read_text()
    again = "the same command without --force goes on from the last checkpoint"
    assert last == f"stopped; {again}"


def test_a_disk_that_is_full_at_any_write_loses_nothing(job, whole, monkeypatch, capsys):
    for number in itertools.count():
        here = replace(job, out=f"{job.out}{number}")
        with monkeypatch.context() as patch:
            fail_at(patch, number, OSError(28, "No space left on device"))
            code, _, err = cli(train, patch, capsys, *words(here))
        if code == 0:
            break
        assert code == 2 and "No space left on device" in err and "make room" in err
        assert not list(here.run.glob("*.tmp"))
        assert cli(train, monkeypatch, capsys, *words(here))[0] == 0
        assert same_run(here.run, whole.run)
    assert number == 9


def test_finished_methods_stay_and_what_is_missing_is_trained(job, whole):
    first = run(replace(job, methods="frozen"))
    both = run(replace(job, methods=f"frozen,{METHOD}"))
    assert both["rows"][:1] == first["rows"] and both["pretrain"] == first["pretrain"]
    before = contents(job.run)
    assert run(replace(job, methods=f"frozen,{METHOD}")) == both and contents(job.run) == before
    run(job)
    assert contents(job.run) == before
    assert results_of(job.run)["rows"][1:] == results_of(whole.run)["rows"]


def test_another_command_in_the_folder_leaves_a_stopped_training_where_it_was(job, whole):
    stop(job)
    checkpoint = job.run / f"checkpoint-{METHOD}.pt"
    before = checkpoint.read_bytes()
    run(replace(job, methods="frozen,lora"))
    with pytest.raises(ValueError, match="other settings"):
        run(replace(job, seed=1))
    assert checkpoint.read_bytes() == before
    run(job)
    assert equal(*(Zhyper.load(f, METHOD).state_dict() for f in (job.run, whole.run)))


def test_a_second_process_on_the_folder_is_refused(job):
    with only_writer(job.run), pytest.raises(ValueError, match="another process writes .*--out"):
        run(replace(job, force=True))
    run(job)


# ---- other settings, --force, and files that are not ours


def test_results_of_other_settings_or_data_are_never_overwritten_without_force(job, monkeypatch):
    job = replace(job, data=shutil.copy(job.data, job.run.parent), methods="frozen")
    run(job)
    before = contents(job.run)
    for name, value in {"steps": 3, "seed": 1, "rank": 8, "lr": 1e-3, "validate": True}.items():
        if name != "validate":  # of which these data have no rows
            with pytest.raises(ValueError, match=f"other settings .*{name} .*, now {value}.*--force"):
                run(replace(job, **{name: value}))
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="other settings"):
        patch.setitem(train.PRESETS, "smoke", replace(TINY, pretrain_steps=5))  # an edited preset
        run(job)
    data = two_cultures()
    data.records[0] = data.records[0]._replace(answer=" nod")
    write(data, Path(job.data))
    with pytest.raises(ValueError, match=r"other settings \(records \w{12}, now \w{12}\)"):
        run(job)
    assert contents(job.run) == before
    run(replace(job, force=True))


def test_force_removes_the_adapters_of_earlier_settings_with_their_results(job):
    run(replace(job, methods="lora,zhyper-diag,frozen"))
    stop(replace(job, methods="t2l"), 1)
    (job.run / "notes.pt").write_text("mine")
    run(replace(job, methods="frozen", seed=1, force=True))
    names = {"backbone.pt", "frozen.pt", "results.json", "lock", "notes.pt"}
    assert {name for name in contents(job.run) if not name.endswith(".tmp")} == names


@pytest.mark.parametrize("removed", range(4))
def test_a_force_that_was_killed_half_way_is_begun_again_or_taken_back(removed, job, whole):
    shutil.copytree(whole.run, job.run)
    new, unlink, left = replace(job, seed=1), Path.unlink, iter(range(removed))

    def unlink_some(path, **options):
        if next(left, None) is None:
            raise KeyboardInterrupt
        unlink(path, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", unlink_some)
        run(replace(new, force=True))
    if removed < 3:  # backbone.pt, METHOD.pt, results.json
        with pytest.raises(ValueError, match="other settings .*seed 0, now 1"):
            run(new)
        run(job)
        assert same_run(job.run, whole.run)
    run(replace(new, force=removed < 3))
    assert results_of(job.run)["made_of"]["seed"] == 1


@pytest.mark.parametrize("name", ["lora.pt", "checkpoint-backbone.pt", "results.json"])
@pytest.mark.parametrize("force", [False, True])
def test_a_file_that_the_project_did_not_write_is_neither_removed_nor_overwritten(force, name, job):
    job.run.mkdir()
    for mine in (name, "lock", "notes.txt"):
        (job.run / mine).write_text('{"mine": 1}')
    with pytest.raises(ValueError, match=f"{name}.*choose --out, or move it away"):
        run(replace(job, methods="lora", force=force))
    assert set(contents(job.run).values()) == {b'{"mine": 1}'}
    (job.run / name).unlink()
    run(replace(job, methods="lora", force=force))
    assert contents(job.run)["lock"] == contents(job.run)["notes.txt"] == b'{"mine": 1}'


# ---- a file that is damaged, missing, or another's


@pytest.fixture(scope="module")
def files(whole, tmp_path_factory) -> Path:
    """A folder with one file of every kind."""
    folder = tmp_path_factory.mktemp("files") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train.PRESETS, "smoke", TINY)
        stop(replace(whole, out=str(folder)), IN_METHOD)
    shutil.copy(whole.run / f"{METHOD}.pt", folder)
    return folder


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["backbone.pt", f"{METHOD}.pt", f"checkpoint-{METHOD}.pt"])
@settings(max_examples=60, deadline=None)
@given(noise=st.binary(max_size=12), at=st.floats(0, 1), cut=st.integers(0, 3000) | st.just(10**9))
def test_an_altered_file_is_refused_or_read_as_it_was(name, files, noise, at, cut):
    whole, altered = files / name, files.parent / name
    content = whole.read_bytes()
    begin = round(at * len(content))
    altered.write_bytes(content[:begin] + noise + content[begin + cut :])
    try:
        assert equal(read_file(altered), read_file(whole))
    except ValueError as error:
        assert str(altered) in str(error) and "delete it, and" in str(error)


@settings(max_examples=60, deadline=None)
@given(noise=st.binary(max_size=12), at=st.floats(0, 1), cut=st.integers(0, 300))
def test_altered_results_are_refused_or_read_as_they_were(whole, files, noise, at, cut):
    content = (whole.run / "results.json").read_bytes()
    begin = round(at * len(content))
    altered = files.parent / "results.json"
    altered.write_bytes(content[:begin] + noise + content[begin + cut :])
    try:
        results = open_results(files.parent, (), whole.identity, False)
        assert results | {"checksum": None} == json.loads(content) | {"checksum": None}
    except ValueError as error:
        assert str(altered) in str(error) and "--force" in str(error) or "move it" in str(error)


@pytest.mark.parametrize("damage", ["cut", "gone"])
@pytest.mark.parametrize("name", ["backbone.pt", f"{METHOD}.pt", f"checkpoint-{METHOD}.pt"])
def test_what_is_missing_or_damaged_is_made_again_as_its_error_advises(
    name, damage, files, job, whole, monkeypatch, capsys
):
    shutil.copytree(files if "checkpoint" in name else whole.run, job.run)
    file = job.run / name
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
        module = train if "checkpoint" in name else zhyper
        ask = ["generate", "--run", job.out, "--method", METHOD, "--description", "x"]
        line = words(job) if module is train else [*ask, "--prompt", "y"]
        code, _, err = cli(module, monkeypatch, capsys, *line)
        assert code == 2 and f"{file} is of no use" in err and "delete it, and" in err
    file.unlink()
    assert cli(train, monkeypatch, capsys, *words(job))[0] == 0
    assert same_run(job.run, whole.run)


def test_damaged_results_are_one_line_and_replaced_as_it_advises(job, whole, monkeypatch, capsys):
    for damage in (b'{\n "made_of": {', b'{\n "made_of": {' + b"[" * 200_000, b'{\n "made_of": {}}'):
        shutil.copytree(whole.run, job.run, dirs_exist_ok=True)
        (job.run / "results.json").write_bytes(damage)
        code, _, err = cli(train, monkeypatch, capsys, *words(job))
        assert code == 2 and err.count("\n") == 1 and "start again with --force" in err
        assert cli(train, monkeypatch, capsys, *words(job), "--force")[0] == 0
        assert same_run(job.run, whole.run)


def test_no_code_in_a_file_is_run(job, whole):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(job.run / "code was run"),)

    shutil.copytree(whole.run, job.run)
    for name in (f"{METHOD}.pt", "backbone.pt"):
        torch.save({"weights": Code()}, job.run / name)
        with pytest.raises(ValueError, match=f"{name} is of no use .it holds more than weights"):
            Zhyper.load(job.run, METHOD)
    assert not (job.run / "code was run").exists()


def test_a_hypernetwork_refuses_another_backbone_and_so_do_results_and_checkpoint(job, whole):
    other = replace(job, out=f"{job.out}-other", seed=1)
    stop(other)
    shutil.copytree(whole.run, job.run)
    shutil.copy(other.run / "backbone.pt", job.run)
    hashes = [results_of(folder)["backbone"] for folder in (whole.run, other.run)]
    with pytest.raises(ValueError, match=f"{METHOD}.pt is of no use .*{hashes[0]}.*{hashes[1]}"):
        Zhyper.load(job.run, METHOD)
    with pytest.raises(ValueError, match="backbone.pt is of another run.*: delete it"):
        run(replace(job, methods=f"lora,{METHOD}"))
    (job.run / "backbone.pt").unlink()
    run(job)
    assert same_run(job.run, whole.run)
    stop(fresh := replace(job, out=f"{job.out}-fresh"))
    shutil.copy(other.run / f"checkpoint-{METHOD}.pt", fresh.run)
    with pytest.raises(ValueError, match=f"{METHOD}.pt is of no use .*{hashes[1]}.*{hashes[0]}"):
        run(fresh)


def test_a_file_is_not_taken_for_another_methods(job, whole, files):
    shutil.copytree(files, job.run)
    shutil.copy(job.run / f"{METHOD}.pt", job.run / "lora.pt")
    with pytest.raises(ValueError, match=f"lora.pt is of no use .*{METHOD}"):
        Zhyper.load(job.run, "lora")
    stop(ranks := replace(job, out=f"{job.out}-ranks", rank=8, methods="lora"))
    shutil.copy(ranks.run / "checkpoint-lora.pt", ranks.run / "checkpoint-lora-prompt.pt")
    with pytest.raises(ValueError, match="checkpoint-lora-prompt.pt is of no use .*lora"):
        run(replace(ranks, methods="lora-prompt"))


def test_a_checkpoint_with_a_part_too_few_or_of_another_size_is_one_line(files, job):
    shutil.copytree(files, job.run)
    (job.run / f"{METHOD}.pt").unlink()
    file = job.run / f"checkpoint-{METHOD}.pt"
    saved = read_file(file)
    for change in ({"random": None}, {"optimizer": {}}, {"weights": {"A": torch.zeros(2)}}):
        write_file(file, saved | change)
        with pytest.raises(ValueError, match=f"{file.name} is of no use .*: delete it"):
            run(job)
