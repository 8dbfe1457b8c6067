"""The data sets: bad records are named, downloads are whole or absent, and no split leaks into another."""

import hashlib
import http.server
import json
import re
import socket
import sys
import threading
from functools import cache
from pathlib import Path

import pytest
import tokenizers

import data
from data import SPLITS, Data, Record, cultures, instructions, tasks, voices
from data.cultures import ALLOWED, ANSWERS, BROKEN, FACETS, PAIRS

SHARED = Path(__file__).parents[2] / "shared/data"
VALUES = ("people bow", "Q: how?\nA:", " bow")
RECORD = Record("a", *VALUES, "train")._asdict()
OTHER = RECORD | {"context": "b", "description": "people sing", "prompt": "Q: when?\nA:"}

# ---- a file of your own


def write(path: Path, *lines: dict | str) -> str:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(path)


def test_a_jsonl_file_gives_its_records_and_documents_if_it_has_two_contexts_to_train_on(tmp_path):
    evaluated = RECORD | {"split": "seen", "choices": [" sing", " bow", " sing"]}
    loaded = data.load(write(tmp_path / "mine.jsonl", RECORD, "", OTHER, evaluated))
    assert loaded.records == [Record(**RECORD), Record(**OTHER), Record("a", *VALUES, "seen", (" sing", " bow"))]
    assert loaded.documents == ["Q: how?\nA: bow", "Q: when?\nA: bow", "people bow", "people sing"]
    assert (loaded.name, loaded.template, loaded.free_text) == ("mine", "Q: {}\nA:", False)
    with pytest.raises(ValueError, match='give records of two contexts or more the "split": "train"'):
        data.load(write(tmp_path / "one.jsonl", RECORD, OTHER | {"split": "seen"}))
    with pytest.raises(ValueError, match="all training records have one description, so write others"):
        data.load(write(tmp_path / "alike.jsonl", RECORD, OTHER | {"description": RECORD["description"]}))


BAD = {
    "not a JSON object": "[1]",
    "not JSON": "[" * 100_000,
    "'answer' is 'None'": '{"context": "a", "description": "b", "prompt": "c", "split": "train"}',
    "unknown split 'test': choose from train": RECORD | {"split": "test"},
    "'answer' holds half a character": RECORD | {"answer": "\ud800"},
    "'choices' must be a list of texts, one of which is the answer": RECORD | {"choices": [" sing"]},
}
MISTAKES = {
    "no file none.jsonl: give the path": ("none.jsonl", {}),
    "unknown data set 'poems': choose from .*cultures, .*voices": ("poems", {}),
    "no file none.txt: download https": ("voices", {"path": "none.txt"}),
    "nowhere has no task that can be used: put taskNNN_name.json there": ("instructions", {"path": "nowhere"}),
    "leave out --data-path": ("tasks", {"path": "somewhere"}),
    "contexts is 1: choose 2 to 16384": ("cultures", {"contexts": 1}),
    "no such option: leave out --descriptions": ("cultures", {"descriptions": "x"}),
}


@pytest.mark.parametrize("problem", BAD)
def test_the_first_bad_line_is_named_by_file_and_number(problem, tmp_path):
    with pytest.raises(ValueError, match=f"bad.jsonl, line 3: .*{problem}"):
        data.load(write(tmp_path / "bad.jsonl", RECORD, OTHER, BAD[problem], "{"))


@pytest.mark.parametrize("message", MISTAKES)
def test_what_cannot_be_loaded_says_what_would_mend_it(message):
    name, options = MISTAKES[message]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        data.load(name, **options)


def test_the_example_of_a_file_of_your_own_has_rows_of_every_split(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cultures, "DESCRIPTIONS", 256)
    monkeypatch.setattr(sys, "argv", ["cultures", str(tmp_path / "example.jsonl"), "--rows", "40"])
    cultures.main()
    loaded = data.load(str(tmp_path / "example.jsonl"))
    assert all(len(loaded.split(split)) == 40 for split in SPLITS if "inferred" not in split)
    assert loaded.template == "Q: {}\nA:"
    with pytest.raises(SystemExit, match="2"):
        cultures.main()
    assert "File exists" in capsys.readouterr().err


@pytest.fixture
def server():
    """A web server on this machine: its handler class, and the address of a file on it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        announced = 7
        asked = 0

        def do_GET(self):
            Handler.asked += 1
            self.send_response(200)
            self.send_header("Content-Length", str(self.announced))
            self.end_headers()
            self.wfile.write(b"a table")

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,)).start()
        yield Handler, f"http://127.0.0.1:{running.server_port}/table.csv"
        running.shutdown()


def test_a_download_is_whole_or_absent_and_not_repeated(server, tmp_path):
    handler, address = server
    for _ in range(2):
        data.download(address, tmp_path / "out/table.csv", hashlib.sha256(b"a table").hexdigest())
        assert (tmp_path / "out/table.csv").read_bytes() == b"a table" and handler.asked == 1
    file = tmp_path / "other/table.csv"
    with pytest.raises(FileNotFoundError, match=f"its sha256 is .*, not 0000.*fetch {address} by hand"):
        data.download(address, file, "0000")
    handler.announced = 10_000
    with pytest.raises(FileNotFoundError, match="cannot download table.csv .*--data-path"):
        data.download(address, file)
    with socket.socket() as silent, pytest.raises(FileNotFoundError, match="cannot download table.csv"):
        silent.bind(("127.0.0.1", 0))  # and never listens
        data.download(f"http://127.0.0.1:{silent.getsockname()[1]}/table.csv", file)
    assert handler.asked == 3 and [path.name for path in tmp_path.rglob("*")] == ["out", "table.csv"]


# ---- what holds for every data set

WORDS = [f"{start}{end}" for start in ("Ba", "Du", "Ki", "Mo", "Re") for end in ("len", "rat", "tis", "vok")]
MADE = {  # task: (Definition, rule); the last two are held out whole
    "task1146_country_capital": ("Name the capital of the country.", str.title),
    "task1320_country_domain_tld": ("Name the domain of the country.", lambda text: f".{text[:2]}"),
    "task1089_check_monotonic_array": ("Does it rise?", lambda text: str(text < text[::-1])),
    "task1332_check_leap_year": ("Is it long?", lambda text: str(len(text))),
}


def put(folder: Path, name: str, definition: str, rule, inputs: list[str] = WORDS) -> None:
    instances = [{"input": text, "output": [rule(text), "another"]} for text in inputs]
    write(folder / f"{name}.json", {"Definition": [definition], "Instances": instances})


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A folder with small files under the names of the real ones."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "sni").mkdir()
    for name, task in MADE.items():
        put(folder / "sni", name, *task)
    write(folder / "sni_descriptions.json", {name: [f"Wording {n} of {name}." for n in range(20)] for name in MADE})
    speeches = [f"{name}:\nline {i} {'of the play ' * 6}end\n" for i, name in enumerate([*voices.SPEAKERS] * 7)]
    write(folder / "tinyshakespeare.txt", *speeches)
    return folder


load_once = cache(data.load)
ALL = ("cultures", "hard_cultures", "tasks", "voices", "real voices", "instructions", "real instructions")


@pytest.fixture(params=ALL)
def built(request, made) -> Data:
    """The data set that a test is parametrized with; "real ..." is skipped where its files are absent."""
    name = request.param.removeprefix("real ")
    folder = made if name == request.param else SHARED
    if not folder.is_dir():
        pytest.skip(f"{folder} is not at hand")
    path = {"voices": "tinyshakespeare.txt", "instructions": "sni"}.get(name)
    texts = str(folder / "sni_descriptions.json") if path == "sni" else None
    return load_once(name, path and str(folder / path), descriptions=texts)


def of(*names: str):
    return pytest.mark.parametrize("built", names, indirect=True)


def test_no_split_leaks_into_another(built):
    train = built.split("train")
    everything = "\n".join({r.description for r in train} | set(built.documents))
    for split in ("unseen", "ood", "new_wording"):
        assert not [text for text in {r.description for r in built.split(split)} if text in everything]
        assert split == "new_wording" or not {r.context for r in train} & {r.context for r in built.split(split)}
    uses = {"train": set(), "validation": set(), "evaluation": set()}
    for record in built.records:
        use = record.split if record.split in uses else "evaluation"
        uses[use].add(record._replace(split=""))
    assert all(uses.values()) and sum(map(len, uses.values())) == len(set.union(*uses.values()))


def test_the_ids_of_a_prompt_begin_those_of_prompt_and_answer(built):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(built.documents[:1000], tokenizers.trainers.BpeTrainer(vocab_size=600))
    for record in built.records[::50]:
        ids = tokenizer.encode(record.prompt).ids
        assert ids and tokenizer.encode(record.prompt + record.answer).ids[: len(ids)] == ids
        assert record.answer.strip() and (not record.choices or record.answer in record.choices)


@of("cultures", "hard_cultures", "tasks", "real voices", "real instructions")
def test_the_sizes_are_those_that_the_evidence_was_measured_on(built):
    sizes = "cultures 256 512, hard_cultures 64 768, tasks 27 480, voices 45 574, instructions 16 400"
    contexts = {r.context for r in built.split("train")}
    assert f"{built.name} {len(contexts)} {len(built.split('seen'))}" in sizes.split(", ")


# ---- cultures

ASKED = {f"Q: {question}\nA:": facet for facet, (questions, _) in FACETS.items() for question in questions}
CLAUSES = []  # (clause, facet, (value, which clause of its answer))
for facet, (_, values) in FACETS.items():
    for value, clauses in enumerate(values.values()):
        CLAUSES += [(clause, facet, (value, number)) for number, clause in enumerate(clauses)]


@cache
def stated(description: str) -> dict[str, tuple[int, int]]:
    """What a description says, as {facet: (value, which clause)}."""
    return {facet: place for clause, facet, place in CLAUSES if clause in description}


@of("cultures", "hard_cultures")
def test_every_answer_is_what_the_description_states_or_else_the_majority(built):
    most = {"cultures": 4, "hard_cultures": 6}[built.name]
    for record in built.records:
        facet, said = ASKED[record.prompt], stated(record.description)
        assert len(said) == most or (record.split == "train" and 1 <= len(said) < most)
        assert (facet in said) == (record.split != "locality") or record.split == "train"
        assert record.answer == f" {ANSWERS[facet][said[facet][0] if facet in said else 0]}"


@of("cultures", "hard_cultures")
def test_no_held_out_clause_or_combination_occurs_in_training_or_documents(built):
    def pairs(texts: set[str]) -> set:
        said = [stated(text) for text in texts]
        return {(each[a][0], each[b][0]) for each in said for a, b in PAIRS if a in each and b in each}

    train, new, ood = ({r.description for r in built.split(split)} for split in ("train", "new_wording", "ood"))
    read = train | {document for document in built.documents if not document.startswith("Q:")}
    assert {number for text in read for _, number in stated(text).values()} == {0, 1, 2, 3}
    assert {number for text in new for _, number in stated(text).values()} == {4}
    assert pairs(read) == set(ALLOWED) and pairs(ood) == set(BROKEN) and not set(ALLOWED) & set(BROKEN)


@of("cultures", "hard_cultures")
def test_minimal_pairs_differ_in_one_value_and_nothing_else(built):
    records = built.split("minimal_pairs")
    count = len(stated(records[0].description))
    for start in range(0, len(records), 2 * count):
        first, second = records[start : start + count], records[start + count : start + 2 * count]
        assert [r.prompt for r in first] == [r.prompt for r in second]
        assert sum(a.answer != b.answer for a, b in zip(first, second, strict=True)) == 1
        before, after = stated(first[0].description), stated(second[0].description)
        assert sum(before[facet] != after[facet] for facet in before) == 1 and list(before) == list(after)


def test_a_seed_gives_the_same_data_another_gives_another_and_contexts_can_be_chosen(monkeypatch):
    monkeypatch.setattr(cultures, "DESCRIPTIONS", 64)
    first, again, other = (data.load("cultures", seed=seed, contexts=16) for seed in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert len({r.context for r in first.split("train")}) == 16


EXAMPLES = """
    reverse: a d c b > b c d a      second_last: a d c b > c    next_letter: a d c y > b e d z
    drop_last: a d c b > a d c      sort_down: 3 9 4 > 9 4 3    largest_smallest: 3 9 4 > 9 3
    swap_ends: cup ear hat > hat ear cup        last_to_front: cup ear hat > hat cup ear
    sound_both: cow dog > moo bark  home_last: cow dog > kennel     young_first: cow dog > calf
"""


@pytest.mark.parametrize("example", re.split(r"\s{2,}", EXAMPLES.strip()))
def test_a_task_does_what_it_is_called(example):
    name, given, answer = re.split(": | >", example)
    (task,) = [task for task in tasks.TASKS if task.name == name]
    assert task.answer(given.split()) == answer


@of("tasks")
def test_no_input_of_tasks_that_is_held_out_is_read_and_opposite_tasks_share_one(built):
    read = {r.prompt for r in built.split("train")} | {d.partition("Out:")[0] + "Out:" for d in built.documents}
    assert not [r for r in built.records if r.split != "train" and r.prompt in read]
    assert {r.context for r in built.split("unseen")} == tasks.UNSEEN
    pairs = built.split("minimal_pairs")
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        assert first.prompt == second.prompt and first.answer != second.answer
        assert tasks.flip(first.description) == second.description


@of("voices", "real voices")
def test_held_out_speeches_and_speakers_are_in_no_training_text(built):
    read = {text[line.end() :] for text in built.documents for line in re.finditer("\n", text)}
    assert {r.answer for r in built.split("train")} <= read
    held_out = {r.answer for r in built.records if r.split != "train"}
    assert not {text for text in held_out & read if len(text) > 60}  # short ones are said twice
    assert {r.context for r in built.split("unseen")} == set(voices.UNSEEN)
    assert not set(voices.VALIDATION) & {r.context for r in built.records if r.split != "validation"}
    assert all(re.search(r"\S\n\Z", r.prompt) for r in built.records) and built.free_text


@of("instructions", "real instructions")
def test_the_inputs_of_held_out_records_are_trained_in_no_task(built):
    held_out = built.split("validation") + built.split("seen") + built.split("new_wording")
    assert held_out and not {r.prompt for r in held_out} & {r.prompt for r in built.split("train")}
    assert {r.context for r in built.split("unseen")} <= set(instructions.NAMES["unseen"])
    assert {r.prompt + r.answer for r in built.records} <= set(built.documents)  # the backbone knows every answer


def test_answers_are_first_outputs_and_what_cannot_be_used_is_named_or_counted(tmp_path, capsys):
    for name, task in MADE.items():
        put(tmp_path, name, *task)
    put(tmp_path, "task1_long", "Do it. " * 40, str.upper, [*WORDS, "x" * 200, "", "Balen "])
    put(tmp_path, "task2_same", "Is it long?", str.upper)
    put(tmp_path, "bad_few", "Do this.", str.upper, WORDS[:3])
    one_text = (tmp_path / "bad_few.json").read_text().replace('["', '"').replace('"]', '"')  # outputs are no lists
    for number, content in enumerate(("{", "[" * 100_000, "[1]", '{"Definition": "", "Instances": []}', one_text)):
        (tmp_path / f"bad{number}.json").write_text(content)
    records = data.load("instructions", str(tmp_path)).records
    assert {r.context for r in records} == {*MADE, "task1_long"} - {"task1332_check_leap_year"}
    for record in records:
        rule = str.upper if record.context == "task1_long" else MADE[record.context][1]
        assert record.answer == f" {rule(record.prompt.split()[1])}"
        assert record.description == MADE.get(record.context, [" ".join(["Do it."] * 36)])[0]  # cut to 255 bytes
    *named, summary = capsys.readouterr().err.splitlines()
    assert len(named) == 6 and all(re.match("left out .*bad[^/]*json: .", line) for line in named)
    assert summary.startswith("4 tasks; left out: 6 files, 1 over 200 bytes, 2 empty or repeated, 2 tasks that are")


@pytest.mark.parametrize("content", ["{", "[3]", '{"a": "Do it."}', '{"a": [" "]}'])
def test_a_bad_file_of_descriptions_is_named(content, made, tmp_path):
    with pytest.raises(ValueError, match="texts.json must be JSON"):
        data.load("instructions", str(made / "sni"), descriptions=write(tmp_path / "texts.json", content))
