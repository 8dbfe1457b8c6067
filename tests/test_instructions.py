"""Super-NaturalInstructions: what is read, held out, left out and downloaded. The task files are made up here."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from conftest import cli
from hypothesis import given, settings
from hypothesis import strategies as st

import data
import train
from data import instructions
from data._download import download
from data.instructions import LONGEST, WORDY, cut, form, parse_task, read_descriptions

SHARED = Path(__file__).parent.parent.parent / "shared/data"
SNI = pytest.param((SHARED / "sni", SHARED / "sni_descriptions.json"), id="sni")
WORDS = [a + b + c for a in ("Ba", "Du", "Ki", "Mo") for b in ("len", "rat") for c in ("ia", "os", "a", "um", "ey")]
LISTS = [f"[{n}, {3 * n % 17}, {n * n % 29}]" for n in range(40)]
MADE = {  # task: (Definition, inputs, rule)
    "task1146_country_capital": ("Name the capital of the country.", WORDS, lambda x: x[::-1].title()),
    "task1320_country_domain_tld": ("Name the domain of the country.", WORDS, lambda x: "." + x[:2].lower()),
    "task206_collatz_conjecture": (["Halve even numbers.", "Change odd ones."], LISTS, lambda x: x + "0"),
    "task1089_check_monotonic_array": ("Say 1 if the list only rises.", LISTS, lambda x: str(len(x) % 2)),
    "task092_check_prime_classification": ("Is the number prime?", [str(n) for n in range(40)], lambda x: "No"),
    "task1332_check_leap_year": ("Is it a leap year?", [str(n) for n in range(1990, 2030)], lambda x: x[-1]),
}
SAID = {name: [f"Wording {n} of {name}." for n in range(20)] for name in MADE}


def task_file(definition, inputs, rule) -> dict:
    return {"Definition": definition, "Instances": [{"input": x, "output": [rule(x), "another"]} for x in inputs]}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of six tasks as they are published, with a file of descriptions beside it."""
    (tmp_path / "tasks").mkdir()
    for name, made in MADE.items():
        (tmp_path / f"tasks/{name}.json").write_text(json.dumps(task_file(*made)))
    (tmp_path / "said.json").write_text(json.dumps(SAID))
    return tmp_path / "tasks"


@pytest.fixture(params=["made", SNI])
def built(request, folder) -> data.Data:
    path, said = (folder, folder.parent / "said.json") if request.param == "made" else request.param
    if not path.is_dir():
        pytest.skip("the excerpt of Super-NaturalInstructions is not at hand")
    return data.load("instructions", str(path), 0, descriptions=str(said))


def test_a_task_is_read_as_it_is_published(folder):
    loaded = data.load("instructions", str(folder))
    said = {record.context: record.description for record in loaded.records}
    assert said["task206_collatz_conjecture"] == "Halve even numbers. Change odd ones."
    assert said["task1146_country_capital"] == "Name the capital of the country."
    rows = {(r.context, r.prompt, r.answer) for r in loaded.records}
    assert ("task1146_country_capital", "Input: Balenia\nOutput:", " Ainelab") in rows
    assert {r.split for r in loaded.records} == {"train", "validation", "seen", "unseen"}  # one description: no new one
    assert len(rows) == sum(len(inputs) for _, inputs, _ in MADE.values())


def test_nothing_that_is_held_out_occurs_in_training(built):
    train_rows = built.split("train")
    asked, texts = {(r.context, r.prompt) for r in train_rows}, {r.description for r in train_rows}
    prompts = {r.prompt for r in train_rows}
    for record in built.split("validation") + built.split("seen") + built.split("new_wording"):
        assert record.prompt not in prompts  # in no task
        assert (record.description in texts) == (record.split != "new_wording")
    chosen_on = {(r.context, r.prompt) for r in built.split("validation")}
    assert built.split("new_wording") and not chosen_on & {(r.context, r.prompt) for r in built.split("seen")}
    for record in built.split("unseen"):
        assert record.context not in {context for context, _ in asked} and record.description not in texts
    evaluated = [record for record in built.records if record.split != "train"]
    assert len(set(evaluated)) == len(evaluated)


def test_every_unseen_task_has_inputs_of_the_form_of_a_trained_one(built):
    def forms(split):
        found = {}
        for record in built.split(split):
            found.setdefault(record.context, []).append(form(record.prompt[7:-8]))
        return {context: max(set(several), key=several.count) for context, several in found.items()}

    unseen = forms("unseen")
    assert (
        len(unseen) > 1 and set(unseen) <= instructions.UNSEEN and set(unseen.values()) <= set(forms("train").values())
    )


def test_the_backbone_reads_every_instance_and_no_description(built):
    assert {r.prompt + r.answer for r in built.records} <= set(built.documents)
    assert not [d for d in built.documents if not d.startswith("Input: ")]
    assert not [t for t in {r.description for r in built.records} if any(t in d for d in built.documents)]


def test_every_task_has_the_same_share_of_what_the_backbone_reads(folder):
    path = folder / "task1146_country_capital.json"
    path.write_text(json.dumps(task_file("Name the capital.", WORDS[:20], lambda x: x + " City")))
    documents = data.load("instructions", str(folder)).documents
    read = Counter(d for d in documents if d.endswith(" City"))
    share = sum(map(len, read.elements())) / sum(map(len, documents))
    assert len(read) == 20 and max(read.values()) - min(read.values()) <= 1 and abs(share * len(MADE) - 1) < 0.02


def test_every_training_description_has_rows_and_every_training_input_is_used(folder):
    built = data.load("instructions", str(folder), 0, descriptions=str(folder.parent / "said.json"))
    train_rows = built.split("train")
    assert len(set(train_rows)) == len(train_rows)
    used = {(r.context, r.prompt) for r in train_rows}
    held_out = {(r.context, r.prompt) for r in built.records if r.split != "train"}
    assert len(used | held_out) == sum(len(inputs) for _, inputs, _ in MADE.values())


def test_the_splits_are_the_same_in_every_process_and_other_with_another_seed(folder):
    code = "import sys, data; print(data.load('instructions', sys.argv[1]).records)"
    results = [
        subprocess.run(
            [sys.executable, "-c", code, str(folder)],
            cwd=Path(__file__).parent.parent,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert results[0] == results[1]
    first, second = (data.load("instructions", str(folder), seed) for seed in (0, 1))
    assert {r.prompt for r in first.split("seen")} != {r.prompt for r in second.split("seen")}


def test_a_task_that_is_not_listed_is_held_out_by_its_name_if_a_trained_task_has_its_form(tmp_path):
    names = [f"task9{number}_new" for number in range(30)]
    for name in names:
        (tmp_path / f"{name}.json").write_text(json.dumps(task_file(f"Do {name}.", WORDS, str.upper)))
    (tmp_path / "task8_alone.json").write_text(json.dumps(task_file("Alone.", LISTS, str)))
    loaded = data.load("instructions", str(tmp_path))
    unseen = {r.context for r in loaded.split("unseen")}
    assert unseen == {name for name in names if instructions.percent(name) < 20} and 2 < len(unseen) < 15


def test_a_lone_task_is_never_held_out(folder):
    for name in ("task1089_check_monotonic_array", "task092_check_prime_classification"):
        (folder / f"{name}.json").unlink()
    assert not data.load("instructions", str(folder)).split("unseen")


CAPITALS = json.dumps(task_file(*MADE["task1146_country_capital"]))
BAD = {
    "cut_off": (CAPITALS[:500], "not JSON in UTF-8"),
    "no_json": ("Definition: none", "not JSON in UTF-8"),
    "a_list": ("[1, 2]", "not a JSON object but list"),
    "no_instances": ('{"Definition": "Do it."}', "no list of Instances"),
    "no_definition": ('{"Instances": []}', "'Definition' is None"),
    "no_list": (CAPITALS.replace('["Ainelab", "another"]', '"Ainelab"'), "instance 1 is not"),
    "nan": (CAPITALS.replace('"another"', "NaN", 1), "NaN is no JSON number"),
    "a_number": (CAPITALS.replace('"Balenia"', "7"), "'input of instance 1' is 7"),
    "latin": (CAPITALS.replace("Balenia", "Balénia").encode("latin-1"), "not JSON in UTF-8"),
    "utf_16": (CAPITALS.encode("utf-16"), "not JSON in UTF-8"),
    "one": (json.dumps(task_file("Do it.", WORDS[:1], str.upper)), "1 usable instances are too few"),
    "none": (json.dumps(task_file("Do it.", [], str.upper)), "0 usable instances are too few"),
}


def test_every_bad_file_is_named_in_one_line_and_the_others_load(folder, capsys):
    whole = data.load("instructions", str(folder))
    capsys.readouterr()
    for name, (content, _) in BAD.items():
        (folder / f"{name}.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert data.load("instructions", str(folder)).records == whole.records
    *lines, summary = capsys.readouterr().err.splitlines()
    assert len(lines) == len(BAD) and f"left out: {len(BAD)} files" in summary
    for name, (_, message) in BAD.items():
        (line,) = [line for line in lines if f"/{name}.json" in line]
        assert message in line


def test_a_folder_with_nothing_to_load_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no task file that can be used: put taskNNN_name.json files there"):
        data.load("instructions", str(tmp_path))
    (tmp_path / "cut.json").write_text(CAPITALS[:99])
    with pytest.raises(ValueError, match="no task file that can be used"):
        data.load("instructions", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no folder .*none: give one"):
        data.load("instructions", str(tmp_path / "none"))


def test_what_is_too_long_empty_or_repeated_is_left_out_and_counted(folder, capsys):
    path = folder / "task1146_country_capital.json"
    fields = json.loads(path.read_text())
    more = [
        ("x" * LONGEST, "y"),
        ("x" * (LONGEST - 2), "yz"),
        ("é" * LONGEST, "y"),
        (" ", "y"),
        ("w", ""),
        ("Balenia", "y"),
    ]
    fields["Instances"] += [{"input": x, "output": [y]} for x, y in more]
    path.write_text(json.dumps(fields))
    loaded = data.load("instructions", str(folder))
    assert "left out: 0 files, 2 over 200 bytes, 2 empty, 1 repeated;" in capsys.readouterr().err
    assert len(set(loaded.documents)) == sum(len(inputs) for _, inputs, _ in MADE.values()) + 1
    assert max(len(d.encode()) for d in loaded.documents) == LONGEST + len("Input: \nOutput: ")


def test_a_long_description_is_cut_behind_a_sentence():
    assert cut("Do this. " + "Then wait. " * 22 + "No more, please.") == "Do this." + " Then wait." * 22
    assert cut("word " * 100) == "word " * 50 + "word" and len(cut("é" * 300).encode()) <= WORDY
    assert cut("Short.") == "Short."


def test_a_description_that_two_tasks_share_is_left_out(folder, capsys):
    said = {name: [*texts, "Do it."] for name, texts in SAID.items()}
    (folder.parent / "said.json").write_text(json.dumps(said))
    both = data.load("instructions", str(folder), 0, descriptions=str(folder.parent / "said.json"))
    assert "Do it." not in {r.description for r in both.records} and len({r.context for r in both.records}) == len(MADE)
    for name in ("task1146_country_capital", "task1320_country_domain_tld"):
        (folder / f"{name}.json").write_text(json.dumps(task_file("Do it.", *MADE[name][1:])))
    loaded = data.load("instructions", str(folder))
    assert "task1146_country_capital" not in {r.context for r in loaded.records}
    assert "left out task1146_country_capital: another task has its description too" in capsys.readouterr().err
    for name in list(MADE)[2:]:
        (folder / f"{name}.json").unlink()
    with pytest.raises(ValueError, match="all tasks have the same description"):
        data.load("instructions", str(folder))


def mutated(content: bytes, noise: bytes, at: int, cut: int) -> bytes:
    return content[:at] + noise + content[at + cut :]


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=12) | st.sampled_from([b"NaN", b"[[", b"null", b'"\\ud800"', b"1e999"]),
    st.integers(0, 260),
    st.integers(0, 30),
)
def test_a_mutated_task_file_is_read_or_refused(noise, at, cut):
    content = json.dumps(task_file("Do it now.", WORDS[:4], str.upper)).encode()
    try:
        task = parse_task(mutated(content, noise, at, cut))
    except ValueError:
        return
    assert task.definition.strip() and all(x and y and "\x00" not in x + y for x, y in task.instances.items())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=12), st.integers(0, 120), st.integers(0, 30))
def test_a_mutated_file_of_descriptions_is_read_or_refused(tmp_path_factory, noise, at, cut):
    path = tmp_path_factory.getbasetemp() / "said.json"
    path.write_bytes(
        mutated(json.dumps({"task1_a": ["Do it.", "Do this."], "task2_b": ["Go."]}).encode(), noise, at, cut)
    )
    try:
        said = read_descriptions(str(path))
    except ValueError as error:
        assert str(path) in str(error)
        return
    assert all(text.strip() for texts in said.values() for text in texts)


def test_deeply_nested_json_is_refused():
    with pytest.raises(ValueError, match="not JSON"):
        parse_task(b"[" * 100_000)


# ---- the download


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `content`; breaks off after `limit` bytes; with `ranged` it can start in the middle."""

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
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield handler, f"http://127.0.0.1:{running.server_port}/"
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.mark.parametrize("ranged", [True, False])
def test_a_download_that_broke_off_goes_on_where_it_stopped(ranged, server, tmp_path):
    (handler, address), file = server, tmp_path / "out/task.json"
    handler.limit, handler.ranged = 100, ranged
    with pytest.raises(FileNotFoundError, match="the same command goes on where it broke off, or fetch .*task.json"):
        download(address + "task.json", file, parse_task)
    assert not file.exists() and file.with_name("task.json.part").read_bytes() == handler.content[:100]
    handler.limit = None
    download(address + "task.json", file, parse_task)
    assert file.read_bytes() == handler.content and handler.asked == [None, "bytes=100-"]
    download(address + "task.json", file, parse_task)
    assert len(handler.asked) == 2 and [path.name for path in file.parent.iterdir()] == ["task.json"]


def test_a_download_that_was_whole_but_not_yet_named_is_kept(server, tmp_path):
    handler, address = server
    (tmp_path / "task.json.part").write_bytes(handler.content)
    download(address + "task.json", tmp_path / "task.json", parse_task)
    assert (tmp_path / "task.json").read_bytes() == handler.content


def test_content_that_is_not_what_it_should_be_is_not_kept(server, tmp_path):
    handler, address = server
    handler.content = b"<html>please log in</html>"
    with pytest.raises(FileNotFoundError, match="not JSON in UTF-8 .*fetch .*by hand and give it with --data-path"):
        download(address + "task.json", tmp_path / "task.json", parse_task)
    assert not list(tmp_path.iterdir())


def test_the_listed_tasks_are_downloaded_once_and_a_missing_one_says_what_to_do(server, tmp_path, monkeypatch):
    handler, address = server
    monkeypatch.setattr(instructions, "ADDRESS", address)
    monkeypatch.setattr(instructions, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(instructions, "LISTED", dict.fromkeys(["task1_a", "missing"], "other tasks"))
    with pytest.raises(
        FileNotFoundError, match=rf"cannot download missing.json .*404.*fetch {address}missing.json by hand"
    ):
        data.load("instructions")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["task1_a.json"]
    monkeypatch.setattr(instructions, "LISTED", {"task1_a": "other tasks"})
    loaded = data.load("instructions")
    assert {record.context for record in loaded.records} == {"task1_a"} and len(handler.asked) == 2


def test_the_main_job_runs_on_a_folder_and_shows_majority_and_families(folder, monkeypatch, capsys, tmp_path):
    said = str(folder.parent / "said.json")
    code, out, err = cli(
        train, monkeypatch, capsys, "--data", "instructions", "--data-path", str(folder), "--descriptions", said,
        "--preset", "smoke", "--steps", "2", "--methods", "frozen,lora", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == 0, err
    head, _, majority, *_ = out.splitlines()
    assert "| seen | new_wording | unseen |" in head and majority.startswith("| majority | – |")
    assert "| split | family | majority | frozen | lora |" in out and "| seen | the three |" in out
    code, _, err = cli(
        train, monkeypatch, capsys, "--data", "instructions", "--data-path", str(folder), "--descriptions", "no.json"
    )
    assert code == 2 and "no file no.json" in err
