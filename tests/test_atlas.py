"""The Ethnographic Atlas: no split leaks, the answers are the table's, and a download is whole or absent."""

import csv
import hashlib
import http.server
import re
import threading
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from data import Data, Record, atlas

FOLDER = Path(__file__).parents[2] / "shared/data/atlas"
needs_the_atlas = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs ../shared/data/atlas")
CLAUSES = {
    clause: (variable, answer)
    for variable, phrases in atlas.VARIABLES.items()
    for answer, clauses in phrases["clauses"].items()
    for clause in clauses
}
HELD_OUT = {clauses[-1] for phrases in atlas.VARIABLES.values() for clauses in phrases["clauses"].values()}
ASKED = {question: variable for variable, phrases in atlas.VARIABLES.items() for question in phrases["questions"]}


@cache
def loaded() -> tuple[Data, atlas.Table]:
    return atlas.load(str(FOLDER), seed=0), atlas.read_table(atlas.find_file(str(FOLDER)))


def contexts(*splits: str) -> set[str]:
    return {record.context for record in loaded()[0].records if record.split in splits}


@cache
def clauses_of(description: str) -> tuple[str, ...]:
    """The clauses of a description, found without the code that wrote it."""
    [frame] = [frame for frame in atlas.FRAMES if description.startswith(frame.split("{}")[0])]
    text = description.removeprefix(frame.split("{}")[0]).removesuffix(".")
    found = []
    clause = ""
    for piece in text.split(", "):  # a clause may have a comma of its own
        clause = f"{clause}, {piece}" if clause else piece
        clause = clause.removeprefix("and ") if found else clause
        if clause in CLAUSES:
            found.append(clause)
            clause = ""
    assert found and not clause
    return tuple(found)


def variable_of(record: Record) -> str:
    return ASKED[record.prompt.removeprefix("Q: ").removesuffix("\nA:")]


# ---- the phrases


def test_every_answer_has_six_clauses_of_its_own_in_the_past_tense():
    past = (
        "became began bore brought built came chose cost cut did drank fed fell found "
        "gave got grew had held hung kept knew lay led left made meant met paid "
        "passed ran repaid rose sat sent set spoke stood took upheld was went were won wove"
    ).replace(" ", "|")
    for variable, phrases in atlas.VARIABLES.items():
        assert set(phrases["codes"].values()) == set(phrases["clauses"]), variable
        for clauses in phrases["clauses"].values():
            assert len(clauses) == 6
            for clause in clauses:
                assert clause == clause.lower() and 4 <= len(clause.split()) <= 10, clause
                assert re.search(rf"\b(\w+ed|{past})\b", clause), f"not past: {clause}"
                assert not re.search(r"\b(is|are|has|does|pays|lives|keeps|will|can|may)\b", clause), clause
    answers = sum(len(phrases["clauses"]) for phrases in atlas.VARIABLES.values())
    assert len(CLAUSES) == 6 * answers  # none stands for two answers


@needs_the_atlas
def test_every_answer_stands_for_codes_that_the_atlas_names_and_many_societies_have():
    with (FOLDER / "codes.csv").open(encoding="utf-8") as file:
        named = {(row["var_id"], row["code"]) for row in csv.DictReader(file)}
    _, table = loaded()
    for variable, phrases in atlas.VARIABLES.items():
        counts = Counter(society[variable] for society in table.values() if variable in society)
        assert set(counts) == set(phrases["clauses"])
        assert min(counts.values()) > 0.04 * counts.total(), variable
        for code in phrases["codes"]:
            assert (f"EA{int(variable[1:]):03d}", code) in named


@needs_the_atlas
def test_no_text_names_a_society():
    with (FOLDER / "societies.csv").open(encoding="utf-8") as file:
        names = {row["pref_name_for_society"].lower() for row in csv.DictReader(file)}
    words = set(re.findall(r"[a-z-]+", " ".join([*CLAUSES, *ASKED]).lower()))
    assert words & names <= {"male", "man"}  # two peoples whose names are English words too


# ---- the table


@needs_the_atlas
def test_the_table_has_its_published_size_and_regions():
    _, table = loaded()
    assert len(table) == 1220
    assert Counter(map(atlas.region, table)) == {"A": 406, "N": 270, "C": 176, "I": 149, "E": 121, "S": 98}


@needs_the_atlas
def test_what_a_record_states_and_answers_is_what_the_table_has():
    data, table = loaded()
    for record in data.records:
        variable = variable_of(record)
        assert record.answer == f" {table[record.context][variable]}" and record.answer in record.choices
    for context, description in {(record.context, record.description) for record in data.records}:
        for clause in clauses_of(description):
            variable, answer = CLAUSES[clause]
            assert table[context][variable] == answer


# ---- the splits


@needs_the_atlas
def test_no_society_of_the_pacific_and_no_held_out_one_is_trained():
    trained = contexts("train")
    pacific = contexts("ood", "inferred_ood")
    unseen = contexts("unseen", "inferred", "minimal_pairs")
    assert contexts("validation", "seen", "new_wording") <= trained
    assert {name[0] for name in pacific} == {"I"}
    assert "I" not in {atlas.region(name) for name in trained | unseen}
    assert not trained & unseen
    assert len(trained) == 893


@needs_the_atlas
def test_held_out_clauses_stand_in_new_wording_alone():
    data, _ = loaded()
    assert not [document for document in data.documents if any(clause in document for clause in HELD_OUT)]
    for split, description in {(record.split, record.description) for record in data.records}:
        clauses = set(clauses_of(description))
        assert clauses <= HELD_OUT if split == "new_wording" else not clauses & HELD_OUT


@needs_the_atlas
def test_an_inferred_question_shares_no_group_with_what_is_stated():
    data, _ = loaded()
    for record in data.records:
        stated = {CLAUSES[clause][0] for clause in clauses_of(record.description)}
        variable = variable_of(record)
        groups = {atlas.VARIABLES[other]["group"] for other in stated}
        if record.split.startswith("inferred"):
            assert atlas.VARIABLES[variable]["group"] not in groups
        elif record.split != "train":
            assert variable in stated and len(stated) == atlas.STATED


@needs_the_atlas
def test_a_minimal_pair_differs_in_one_clause_and_its_answer():
    data, _ = loaded()
    pairs = data.split("minimal_pairs")
    assert len(pairs) == 4 * atlas.EVALUATED
    for at in range(0, len(pairs), 8):
        one, other = pairs[at : at + 4], pairs[at + 4 : at + 8]
        assert [record.prompt for record in one] == [record.prompt for record in other]
        assert sum(a.answer != b.answer for a, b in zip(one, other, strict=True)) == 1
        assert len(set(clauses_of(one[0].description)) & set(clauses_of(other[0].description))) == 3


# ---- the references


TINY = {
    "Aa1": {"v41": "milk", "v44": "smiths"},
    "Aa2": {"v41": "milk", "v44": "smiths"},
    "Aa3": {"v41": "no dairy", "v44": "nobody"},
    "Na1": {"v41": "no dairy", "v44": "nobody"},
    "Na2": {"v41": "no dairy"},
}


def test_the_references_of_a_tiny_table_are_those_worked_out_by_hand():
    assert atlas.majority(TINY, "v41") == "no dairy"
    assert atlas.majority(atlas.neighbours(TINY, "Aa3"), "v41") == "milk"
    assert list(atlas.neighbours(TINY, "Na1")) == ["Na2"]
    pairs = atlas.count_pairs(TINY)
    # smiths: (2 + 1) · (2 + 1) / (2 + 2) = 2.25, and nobody: (2 + 1) · (0 + 1) / (2 + 2) = 0.75
    assert atlas.naive_bayes(pairs, {"v41": "milk"}, "v44") == "smiths"
    # milk: (2 + 1) · (0 + 1) / (2 + 2) = 0.75, and no dairy: (3 + 1) · (2 + 1) / (2 + 2) = 3
    assert atlas.naive_bayes(pairs, {"v44": "nobody"}, "v41") == "no dairy"


@needs_the_atlas
def test_every_evaluated_record_has_three_guesses_and_what_is_stated_beats_the_majority():
    data, _ = loaded()
    evaluated = [record for record in data.records if record.split != "train"]
    assert set(data.references) == {"majority", "region", "naive bayes"}
    for guesses in data.references.values():
        assert set(guesses) == set(evaluated)
        assert all(guess in record.choices for record, guess in guesses.items())
    rows = data.split("inferred")
    share = {name: sum(g[row] == row.answer for row in rows) / len(rows) for name, g in data.references.items()}
    assert share["naive bayes"] > share["majority"] + 0.05


# ---- getting the file


@pytest.fixture
def server(monkeypatch):
    """A stand-in for GitHub: it serves a small file, or breaks off in the middle of it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"a,b" if "broken" in self.path else b"a,b\n1,")

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_licence_is_said_once_when_the_file_is_downloaded(server, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(atlas, "ADDRESS", f"{server}/whole")
    monkeypatch.setattr(atlas, "SHA256", hashlib.sha256(b"a,b\n1,").hexdigest())
    file = atlas.find_file(None)
    assert file.read_bytes() == b"a,b\n1,"
    assert "CC BY 4.0" in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert atlas.find_file(None) == file and not capsys.readouterr().err


def test_a_folder_without_the_file_is_one_line_with_the_address(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        atlas.load(str(tmp_path), seed=0)
    assert str(tmp_path) in str(error.value) and atlas.ADDRESS in str(error.value) and "\n" not in str(error.value)


def test_another_version_of_the_file_is_one_line_with_the_address(tmp_path):
    (tmp_path / atlas.NAME).write_text("soc_id,v6\nAa1,1\n")
    with pytest.raises(ValueError, match="is another version") as error:
        atlas.load(str(tmp_path), seed=0)
    assert atlas.ADDRESS in str(error.value) and "\n" not in str(error.value)
