"""Super-NaturalInstructions: what is read, held out, left out and downloaded, on made-up tasks."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, cli
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train import TINY

import data
import train
from data import instructions
from data._download import download
from data.instructions import LONGEST, WORDY, cut, form, parse_task, read_descriptions

SHARED = ROOT.parent / "shared/data"
SNI = pytest.param((SHARED / "sni", SHARED / "sni_descriptions.json"), id="sni")
ENDS = [middle + end for middle in ("len", "rat") for end in ("ia", "os", "a", "um", "ey")]
WORDS = [start + end for start in ("Ba", "Du", "Ki", "Mo") for end in ENDS]
LISTS = [f"[{n}, {3 * n % 17}, {n * n % 29}]" for n in range(40)]
NUMBERS = [str(n) for n in range(40)]
CAPITAL, DOMAIN = "task1146_country_capital", "task1320_country_domain_tld"
MADE = {  # task: (Definition, inputs, rule)
    CAPITAL: ("Name the capital of the country.", WORDS, lambda x: x[::-1].title()),
    DOMAIN: ("Name the domain of the country.", WORDS, lambda x: "." + x[:2].lower()),
    "task206_collatz_conjecture": (["Halve even numbers.", "Change odd."], LISTS, lambda x: x + "0"),
    "task1089_check_monotonic_array": ("Does the list rise?", LISTS, lambda x: str(len(x) % 2)),
    "task092_check_prime_classification": ("Is it prime?", NUMBERS, lambda x: "No"),
    "task1332_check_leap_year": ("Is it a leap year?", NUMBERS, lambda x: x[-1]),
}
INSTANCES = sum(len(inputs) for _, inputs, _ in MADE.values())
DESCRIBED = {name: [f"Wording {n} of {name}." for n in range(20)] for name in MADE}


def task_file(definition, inputs, rule) -> dict:
    instances = [{"input": x, "output": [rule(x), "another"]} for x in inputs]
    return {"Definition": definition, "Instances": instances}


def put(folder: Path, name: str, *made) -> None:
    (folder / f"{name}.json").write_text(json.dumps(task_file(*made)))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of six tasks as they are published, with a file of descriptions beside it."""
    (tmp_path / "tasks").mkdir()
    for name, made in MADE.items():
        put(tmp_path / "tasks", name, *made)
    (tmp_path / "said.json").write_text(json.dumps(DESCRIBED))
    return tmp_path / "tasks"


@pytest.fixture(params=["made", SNI])
def built(request, folder) -> data.Data:
    made = folder, folder.parent / "said.json"
    path, descriptions = made if request.param == "made" else request.param
    if not path.is_dir():
        pytest.skip("the excerpt of Super-NaturalInstructions is not at hand")
    return data.load("instructions", str(path), 0, descriptions=str(descriptions))


# ---- what is read and what is held out


def test_a_task_is_read_as_it_is_published(folder):
    loaded = data.load("instructions", str(folder))
    descriptions = {record.context: record.description for record in loaded.records}
    assert descriptions["task206_collatz_conjecture"] == "Halve even numbers. Change odd."
    rows = {(r.context, r.prompt, r.answer) for r in loaded.records}
    assert (CAPITAL, "Input: Balenia\nOutput:", " Ainelab") in rows and len(rows) == INSTANCES
    assert {r.split for r in loaded.records} == {"train", "validation", "seen", "unseen"}


def test_nothing_that_is_held_out_occurs_in_training(built):
    train = built.split("train")
    prompts, texts = {r.prompt for r in train}, {r.description for r in train}
    for record in built.split("validation") + built.split("seen") + built.split("new_wording"):
        assert record.prompt not in prompts  # in no task
        assert (record.description in texts) == (record.split != "new_wording")
    validated = {(r.context, r.prompt) for r in built.split("validation")}
    assert built.split("new_wording")
    assert not validated & {(r.context, r.prompt) for r in built.split("seen")}
    contexts = {r.context for r in train}
    for record in built.split("unseen"):
        assert record.context not in contexts and record.description not in texts
    assert len(set(built.records)) == len(built.records)


def test_every_unseen_task_has_inputs_of_the_form_of_a_trained_one(built):
    def forms(split: str) -> dict[str, str]:
        found = {}
        for record in built.split(split):
            found.setdefault(record.context, []).append(form(record.prompt[7:-8]))
        return {context: max(set(several), key=several.count) for context, several in found.items()}

    unseen = forms("unseen")
    assert len(unseen) > 1 and set(unseen) <= instructions.UNSEEN
    assert set(unseen.values()) <= set(forms("train").values())


def test_the_backbone_reads_every_instance_and_no_description(built):
    assert {r.prompt + r.answer for r in built.records} <= set(built.documents)
    assert all(document.startswith("Input: ") for document in built.documents)
    everything = "\n".join(set(built.documents))
    assert not [text for text in {r.description for r in built.records} if text in everything]


def test_every_task_has_the_same_share_of_what_the_backbone_reads(folder):
    put(folder, CAPITAL, "Name the capital.", WORDS[:20], lambda x: x + " City")
    documents = data.load("instructions", str(folder)).documents
    read = Counter(d for d in documents if d.endswith(" City"))
    share = sum(map(len, read.elements())) / sum(map(len, documents))
    assert len(read) == 20 and max(read.values()) - min(read.values()) <= 1
    assert abs(share * len(MADE) - 1) < 0.02


def test_every_training_description_has_rows_and_every_training_input_is_used(folder):
    built = data.load("instructions", str(folder), descriptions=str(folder.parent / "said.json"))
    held_out = {(r.context, r.prompt) for r in built.records if r.split != "train"}
    assert len({(r.context, r.prompt) for r in built.split("train")} | held_out) == INSTANCES


def test_the_splits_are_the_same_in_every_process_and_others_with_another_seed(folder):
    code = "import sys, data; print(data.load('instructions', sys.argv[1]).records)"
    command = [sys.executable, "-c", code, str(folder)]
    environments = [os.environ | {"PYTHONHASHSEED": seed} for seed in ("1", "2")]
    first, second = (
        subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=True).stdout for env in environments
    )
    assert first == second
    first, second = (data.load("instructions", str(folder), seed) for seed in (0, 1))
    assert {r.prompt for r in first.split("seen")} != {r.prompt for r in second.split("seen")}


def test_an_unlisted_task_is_held_out_by_its_name_if_a_trained_one_has_its_form(tmp_path):
    names = [f"task9{number}_new" for number in range(30)]
    for name in names:
        put(tmp_path, name, f"Do {name}.", WORDS, str.upper)
    put(tmp_path, "task8_alone", "Alone.", LISTS, str)
    unseen = {r.context for r in data.load("instructions", str(tmp_path)).split("unseen")}
    assert unseen == {name for name in names if data.percent(name) < 20} and 2 < len(unseen) < 15


def test_a_lone_task_is_never_held_out(folder):
    for name in ("task1089_check_monotonic_array", "task092_check_prime_classification"):
        (folder / f"{name}.json").unlink()
    assert not data.load("instructions", str(folder)).split("unseen")


# ---- what is wrong, too long or repeated

CAPITALS = json.dumps(task_file(*MADE[CAPITAL]))
BAD = {
    "cut_off": (CAPITALS[:500], "not JSON in UTF-8"),
    "nested": ("[" * 100_000, "not JSON in UTF-8"),
    "a_list": ("[1, 2]", "not a JSON object but list"),
    "no_instances": ('{"Definition": "Do it."}', "no list of Instances"),
    "no_definition": ('{"Instances": []}', "'Definition' is None"),
    "no_list": (CAPITALS.replace('["Ainelab", "another"]', '"Ainelab"'), "instance 1 is not"),
    "nan": (CAPITALS.replace('"another"', "NaN", 1), "NaN is no JSON number"),
    "a_number": (CAPITALS.replace('"Balenia"', "7"), "'input of instance 1' is 7"),
    "latin": (CAPITALS.replace("Balenia", "Balénia").encode("latin-1"), "not JSON in UTF-8"),
    "one": (json.dumps(task_file("Do it.", WORDS[:1], str.upper)), "1 usable instances are too few"),
}


def test_every_bad_file_is_named_in_one_line_and_the_others_load(folder, capsys):
    whole = data.load("instructions", str(folder))
    capsys.readouterr()
    for name, (content, _) in BAD.items():
        content = content if isinstance(content, bytes) else content.encode()
        (folder / f"{name}.json").write_bytes(content)
    assert data.load("instructions", str(folder)).records == whole.records
    *lines, summary = capsys.readouterr().err.splitlines()
    assert len(lines) == len(BAD) and f"left out: {len(BAD)} files" in summary
    for name, (_, message) in BAD.items():
        (line,) = [line for line in lines if f"/{name}.json" in line]
        assert message in line


def test_a_folder_with_nothing_to_load_is_refused(tmp_path):
    (tmp_path / "cut.json").write_text(CAPITALS[:99])
    with pytest.raises(ValueError, match="no task file that can be used: put taskNNN_name.json"):
        data.load("instructions", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no folder .*none: give one"):
        data.load("instructions", str(tmp_path / "none"))


def test_what_is_too_long_empty_or_repeated_is_left_out_and_counted(folder, capsys):
    fields = json.loads(CAPITALS)
    long = [("x" * LONGEST, "y"), ("x" * (LONGEST - 2), "yz"), ("é" * LONGEST, "y")]
    for text, output in [*long, (" ", "y"), ("w", ""), ("Balenia", "y")]:
        fields["Instances"].append({"input": text, "output": [output]})
    (folder / f"{CAPITAL}.json").write_text(json.dumps(fields))
    documents = data.load("instructions", str(folder)).documents
    left_out = "left out: 0 files, 2 over 200 bytes, 2 empty, 1 repeated;"
    assert left_out in capsys.readouterr().err and len(set(documents)) == INSTANCES + 1
    assert max(len(d.encode()) for d in documents) == LONGEST + len("Input: \nOutput: ")


def test_a_long_description_is_cut_behind_a_sentence():
    assert cut("Do this. " + "Then wait. " * 22 + "No more.") == "Do this." + " Then wait." * 22
    assert cut("word " * 100) == "word " * 50 + "word"
    assert cut("Short.") == "Short." and len(cut("é" * 300).encode()) <= WORDY


def test_a_description_that_two_tasks_share_is_left_out(folder, capsys):
    path = folder.parent / "said.json"
    path.write_text(json.dumps({name: [*texts, "Do it."] for name, texts in DESCRIBED.items()}))
    both = data.load("instructions", str(folder), 0, descriptions=str(path))
    assert "Do it." not in {r.description for r in both.records}
    assert {r.context for r in both.records} == set(MADE)
    for name in (CAPITAL, DOMAIN):
        put(folder, name, "Do it.", *MADE[name][1:])
    assert CAPITAL not in {r.context for r in data.load("instructions", str(folder)).records}
    assert f"left out {CAPITAL}: another task has its description" in capsys.readouterr().err
    for name in list(MADE)[2:]:
        (folder / f"{name}.json").unlink()
    with pytest.raises(ValueError, match="all tasks have the same description"):
        data.load("instructions", str(folder))


NOISE = st.binary(max_size=12) | st.sampled_from([b"NaN", b"[[", b"null", b'"\\ud800"', b"1e999"])


@settings(max_examples=300, deadline=None)
@given(NOISE, st.integers(0, 260), st.integers(0, 30))
def test_a_mutated_task_file_is_read_or_refused(noise, at, cut):
    content = json.dumps(task_file("Do it now.", WORDS[:4], str.upper)).encode()
    try:
        task = parse_task(content[:at] + noise + content[at + cut :])
    except ValueError:
        return
    assert task.definition.strip()
    assert all(x and y and "\x00" not in x + y for x, y in task.instances.items())


@settings(max_examples=200, deadline=None)
@given(NOISE, st.integers(0, 120), st.integers(0, 30))
def test_a_mutated_file_of_descriptions_is_read_or_refused(tmp_path_factory, noise, at, cut):
    path = tmp_path_factory.getbasetemp() / "said.json"
    content = json.dumps({"task1_a": ["Do it.", "Do this."], "task2_b": ["Go."]}).encode()
    path.write_bytes(content[:at] + noise + content[at + cut :])
    try:
        descriptions = read_descriptions(str(path))
    except ValueError as error:
        assert str(path) in str(error)
        return
    assert all(text.strip() for texts in descriptions.values() for text in texts)


def test_the_main_job_runs_on_a_folder(folder, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(train.PRESETS, "smoke", TINY)
    words = f"--data instructions --data-path {folder} --preset smoke --steps 2 --methods lora"
    words = [*words.split(), "--out", str(tmp_path / "run"), "--descriptions"]
    code, _, err = cli(train, monkeypatch, capsys, *words, "none.json")
    assert code == 2 and "no file none.json" in err
    code, out, err = cli(train, monkeypatch, capsys, *words, str(folder.parent / "said.json"))
    rows = [line.split(" | ")[0] for line in out.splitlines()]
    assert code == 0 and {"| seen", "| new_wording", "| unseen"} <= set(rows), err


# ---- the download


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `content`; breaks off after `limit` bytes; if `ranged` it can start in the middle."""

    content, limit, ranged, asked = b"", None, True, []

    def do_GET(self):
        given = self.headers["Range"]
        self.asked.append(given)
        if self.path.endswith("missing.json"):
            return self.send_error(404)
        start = int(given[6:-1]) if given and self.ranged else 0
        if start >= len(self.content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start:][: self.limit])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A web server on this machine, as (its handler class, its address)."""
    handler = type("Handler", (Server,), {"content": CAPITALS.encode(), "asked": []})
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    yield handler, f"http://127.0.0.1:{running.server_port}/"
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.mark.parametrize("ranged", [True, False])
def test_a_download_that_broke_off_goes_on_where_it_stopped(ranged, server, tmp_path):
    (handler, address), file = server, tmp_path / "out/task.json"
    handler.limit, handler.ranged = 100, ranged
    with pytest.raises(FileNotFoundError, match="the same command goes on where .*task.json"):
        download(address + "task.json", file, parse_task)
    assert not file.exists()
    assert file.with_name("task.json.part").read_bytes() == handler.content[:100]
    handler.limit = None
    for _ in range(2):
        download(address + "task.json", file, parse_task)
        assert file.read_bytes() == handler.content and handler.asked == [None, "bytes=100-"]
    assert [path.name for path in file.parent.iterdir()] == ["task.json"]


def test_a_download_that_was_complete_but_not_yet_renamed_is_used(server, tmp_path):
    handler, address = server
    (tmp_path / "task.json.part").write_bytes(handler.content)
    download(address + "task.json", tmp_path / "task.json", parse_task)
    assert (tmp_path / "task.json").read_bytes() == handler.content


def test_content_that_is_not_what_it_should_be_is_refused(server, tmp_path):
    handler, address = server
    handler.content = b"<html>please log in</html>"
    with pytest.raises(FileNotFoundError, match="not JSON .*fetch .*and give it with --data-path"):
        download(address + "task.json", tmp_path / "task.json", parse_task)
    assert not list(tmp_path.iterdir())


def test_the_listed_tasks_are_downloaded_once(server, tmp_path, monkeypatch):
    handler, address = server
    monkeypatch.setattr(instructions, "ADDRESS", address)
    monkeypatch.setattr(instructions, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(instructions, "LISTED", dict.fromkeys(["task1_a", "missing"], "other tasks"))
    missing = rf"cannot download missing.json .*404.*fetch {address}missing.json by hand"
    with pytest.raises(FileNotFoundError, match=missing):
        data.load("instructions")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["task1_a.json"]
    monkeypatch.setattr(instructions, "LISTED", {"task1_a": "other tasks"})
    loaded = data.load("instructions")
    assert {record.context for record in loaded.records} == {"task1_a"} and len(handler.asked) == 2
