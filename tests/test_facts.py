"""Votes and the atlas: what a table becomes. What reads the atlas' own table skips without ../shared/data/atlas."""

import csv
import hashlib
import http.server
import re
import threading
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from test_data import WORDINGS, Draw, check_minimal_pairs, check_own_words, read_back

from data import Data, Record, atlas, load, votes
from data.facts import Table, Variable, count_pairs, guess_all, majority, naive_bayes

FOLDER = Path(__file__).parents[2] / "shared/data/atlas"
needs_the_atlas = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs ../shared/data/atlas")


class Made(NamedTuple):
    """A data set, its descriptions read back, and what they were made of."""

    data: Data
    draws: dict[str, list[Draw]]
    table: Table
    region: set[str]  # the contexts of the region that is never trained
    share: int  # how many others are not

    def groups(self, variables) -> set[str]:
        return {self.table.variables[variable].group for variable in variables}


@pytest.fixture(scope="module", params=["mixed", "verbs", "plain", pytest.param("atlas", marks=needs_the_atlas)])
def made(request) -> Made:
    if request.param == "atlas":
        data = load("atlas", seed=1, data_path=str(FOLDER))
        table = atlas.read_table(atlas.read_file(str(FOLDER)))
        region, share = "I", 6
    else:
        data = load("votes", seed=1, wording=request.param)
        table = votes.read_table(request.param)
        region, share = "Europe", 5
    inside = {context for context in table.facts if table.regions[context] == region}
    draws = read_back(data, table.variables, table.frames)
    return Made(data, draws, table, inside, (len(table.facts) - len(inside)) // share)


# ---- the splits


def test_every_text_states_and_every_record_answers_what_the_table_has(made):
    for split, draws in made.draws.items():
        if split == "own_words":  # a clause may be drawn twice for one country, and is then evaluated once
            assert 110 < len(draws) <= 128
        else:
            assert len(draws) == {"train": 16384}.get(split, 128)
        for draw in draws:
            facts = made.table.facts[draw.context]
            assert draw.said.items() <= facts.items()
            for variable, record in draw.asked.items():
                assert record.answer == facts[variable]
                assert record.choices == tuple(made.table.variables[variable].answers)
            assert draw.wordings == {WORDINGS.get(split, "trained")}
            assert len(draw.said) == {"own_words": 1}.get(split, 4) or split == "train"


def test_a_description_is_asked_what_it_states_and_what_it_does_not_is_of_other_groups(made):
    for split, draws in made.draws.items():
        for draw in draws:
            others = [name for name in draw.asked if name not in draw.said]
            assert not made.groups(others) & made.groups(draw.said)
            stated = [name for name in draw.asked if name in draw.said]
            assert stated == ([] if split.startswith("inferred") else list(draw.said))
            if split == "train" or not stated:  # as many, or all there are
                facts = made.table.facts[draw.context]
                left = [name for name in facts if not made.groups([name]) & made.groups(draw.said)]
                assert len(others) == min(len(draw.said), len(left))
            else:
                assert not others


def test_neither_the_region_nor_the_share_is_trained(made):
    contexts = {split: {draw.context for draw in draws} for split, draws in made.draws.items()}
    assert contexts["validation"] | contexts["seen"] | contexts["new_wording"] <= contexts["train"]
    assert contexts["ood"] | contexts["inferred_ood"] <= made.region
    unseen = contexts["unseen"] | contexts["inferred"] | contexts["minimal_pairs"]
    assert not unseen & (contexts["train"] | made.region) and not contexts["train"] & made.region
    assert len(contexts["train"]) == len(made.table.facts) - len(made.region) - made.share
    assert made.share / 2 < len(unseen) <= made.share
    read = {record.description for record in made.data.split("train")}
    assert not [record for record in made.data.records if record.split != "train" and record.description in read]


def test_training_begins_with_facts_that_are_drawn_evenly(made):
    lengths = Counter(len(draw.said) for draw in made.draws["train"])
    assert [lengths[n] / 16384 for n in (1, 2, 3, 4)] == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2], abs=0.02)
    drawn = Counter()  # {fact: how often it alone is stated}
    for draw in made.draws["train"]:
        if len(draw.said) == 1:
            drawn.update(draw.said.items())
    occur = {fact for draw in made.draws["train"] for fact in draw.said.items()}
    possible = Counter(variable for variable, _ in occur)  # how many answers each variable has
    deviation = 0.0
    for fact in occur:
        expected = lengths[1] / len(possible) / possible[fact[0]]
        deviation += (drawn[fact] - expected) ** 2 / expected
    assert deviation < 1.4 * len(occur)  # chi-square: about 1 for each if it is even


def test_minimal_pairs_differ_in_one_clause_and_its_answer(made):
    check_minimal_pairs(made.draws["minimal_pairs"])


def test_the_backbone_reads_answers_of_training_contexts_and_a_third_of_descriptions(made):
    described = {record.description for record in made.data.split("train")}
    questions = [document for document in made.data.documents if document not in described]
    assert (len(made.data.documents), len(questions)) == (16_000, 10_666)
    trained = {draw.context for draw in made.draws["train"]}
    for name, variable in made.table.variables.items():
        starts = tuple(f"Q: {question}\nA: " for question in variable.questions)
        asked = Counter(text.partition("\nA: ")[2] for text in questions if text.startswith(starts))
        known = Counter(made.table.facts[context].get(name) for context in trained)
        del known[None]
        for answer in variable.answers:
            assert asked[answer] / asked.total() == pytest.approx(known[answer] / known.total(), abs=0.12)


def test_a_seed_gives_the_same_data_and_another_holds_out_others(little_data):
    first, again, other = [load("votes", seed=seed, contexts=100) for seed in (5, 5, 6)]
    assert (first.records, first.documents, first.guesses) == (again.records, again.documents, again.guesses)
    assert {record.context for record in first.split("unseen")} != {record.context for record in other.split("unseen")}
    assert len({record.context for record in first.split("train")}) == 100


@pytest.mark.parametrize("options", [{"contexts": 0}, {"contexts": 9}, {"contexts": 121}, {"wording": "poems"}])
def test_an_option_that_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match="choose 10 to 120|choose from mixed, plain, verbs"):
        load("votes", **options)


def test_ten_contexts_are_enough(little_data):
    assert len({record.context for record in load("votes", contexts=10).split("train")}) == 10


# ---- guesses that train nothing

YES_NO = Variable("g", ["how?"], {"yes": [], "no": []})
SMALL = Table(
    variables={"peace": YES_NO._replace(questions=["peace?"]), "court": YES_NO},
    facts={
        "north": {"peace": "yes", "court": "no"},
        "south": {"peace": "yes", "court": "no"},
        "east": {"peace": "no", "court": "yes"},
        "west": {"court": "no"},
        "out 1": {"peace": "no", "court": "no"},
        "out 2": {"peace": "no", "court": "no"},
        "out 3": {"peace": "yes", "court": "yes"},
    },
    regions={"north": "A", "south": "A", "east": "A", "west": "B", "out 1": "C", "out 2": "C", "out 3": "C"},
    frames=(),
)
TRAINED = SMALL.select(["north", "south", "east", "west"])


def test_naive_bayes_weighs_what_is_stated():
    pairs = count_pairs(TRAINED)
    # yes on court: (1 + 1) · (0 + 1) / (1 + 2) = 0.67; no: (3 + 1) · (2 + 1) / (2 + 2) = 3
    assert naive_bayes(SMALL, pairs, {"peace": "yes"}, "court") == "no"
    # yes: (1 + 1) · (1 + 1) / (1 + 2) = 1.33; no: (3 + 1) · (0 + 1) / (2 + 2) = 1
    assert naive_bayes(SMALL, pairs, {"peace": "no"}, "court") == "yes"
    assert naive_bayes(SMALL, pairs, {}, "court") == "no"
    assert majority(TRAINED, "peace") == "yes"


def test_a_region_knows_the_others_there_but_of_the_rest_only_those_that_are_trained():
    def ask(context: str) -> Record:
        return Record(context, "", "peace?", "yes", "ood")

    stated_of = {ask("north"): {}, ask("out 1"): {"court": "yes"}, ask("out 3"): {"court": "no"}}
    guesses = guess_all(SMALL, TRAINED, ["out 1", "out 2", "out 3"], stated_of)
    found = {name: list(of_record.values()) for name, of_record in guesses.items()}
    assert found["majority"] == ["yes", "yes", "yes"]
    assert found["region"] == ["yes", "no", "no"]
    assert found["naive bayes"] == ["yes", "no", "yes"]


def test_every_evaluated_record_has_three_guesses_of_which_one_is_better_than_the_majority(made):
    evaluated = {record for record in made.data.records if record.split != "train"}
    inferred = made.data.split("inferred")
    right = {}
    for name, guesses in made.data.guesses.items():
        assert guesses.keys() == evaluated and all(guesses[record] in record.choices for record in evaluated)
        right[name] = sum(guesses[record] == record.answer for record in inferred)
    assert right.keys() == {"majority", "region", "naive bayes"} and right["naive bayes"] > right["majority"]


# ---- the tables


def phrases(table: Table) -> list[str]:
    """All clauses and all questions: none of them stands for two answers or two variables."""
    found = []
    for variable in table.variables.values():
        found += variable.questions
        for wordings in variable.answers.values():
            for clauses in wordings.values():
                found += clauses
    assert len(set(found)) == len(found)
    return found


@pytest.mark.parametrize("wording", ["mixed", "verbs", "plain"])
def test_every_vote_has_two_clauses_in_own_words_which_stand_nowhere_else(wording):
    check_own_words(votes.read_table(wording).variables)


def test_the_votes_have_their_published_margins_and_no_text_names_a_country():
    table = votes.read_table()
    counts = Counter(vote for facts in table.facts.values() for vote in facts.values())
    assert counts == {"in favour": 4704, "abstained": 1264, "against": 931}
    assert (len(table.facts), Counter(table.regions.values())["Europe"]) == (193, 43)
    text = "\n".join([*phrases(table), *table.frames]).lower()
    assert [name for name in table.facts if re.search(rf"\b{re.escape(name.lower())}\b", text)] == []


def csv_of(*rows: dict[str, str]) -> str:
    columns = ["soc_id", *atlas.PHRASES]
    lines = [columns, *([row.get(column, "0") for column in columns] for row in rows)]
    return "\n".join(",".join(cells) for cells in lines)


def test_a_society_is_in_the_table_if_ten_of_its_codes_have_an_answer():
    codes = {name: next(iter(texts["codes"])) for name, texts in atlas.PHRASES.items()}
    ten = dict(list(codes.items())[:10])
    nine = dict(list(codes.items())[:9])
    table = atlas.read_table(csv_of({"soc_id": "aa1"} | ten, {"soc_id": "Ib2"} | codes, {"soc_id": "Cc3"} | nine))
    assert table.regions == {"aa1": "A", "Ib2": "I"}
    assert table.facts["aa1"] == {name: atlas.PHRASES[name]["codes"][code] for name, code in ten.items()}
    for text in phrases(table):
        assert not re.search(r"\b(is|are|has|does|pays|lives|keeps|will|can|may)\b", text)  # in the past tense


@needs_the_atlas
def test_the_atlas_has_its_published_size_and_answers_that_stand_for_codes_of_many_societies():
    table = atlas.read_table(atlas.read_file(str(FOLDER)))
    assert Counter(table.regions.values()) == {"A": 406, "N": 270, "C": 176, "I": 149, "E": 121, "S": 98}
    with (FOLDER / "codes.csv").open(encoding="utf-8") as file:
        named = {(row["var_id"], row["code"]) for row in csv.DictReader(file)}
    for name, texts in atlas.PHRASES.items():
        assert {(f"EA{int(name[1:]):03d}", code) for code in texts["codes"]} <= named
        assert set(texts["codes"].values()) == set(texts["clauses"])
        counts = Counter(facts[name] for facts in table.facts.values() if name in facts)
        assert set(counts) == set(texts["clauses"]) and min(counts.values()) > 0.04 * counts.total()
    with (FOLDER / "societies.csv").open(encoding="utf-8") as file:
        names = {row["pref_name_for_society"].lower() for row in csv.DictReader(file)}
    words = set(re.findall(r"[a-z-]+", " ".join(phrases(table)).lower()))
    assert words & names <= {"male", "man"}  # two peoples whose names are English words too


# ---- getting the atlas


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A stand-in for GitHub, which serves a small table."""

    class Handler(http.server.BaseHTTPRequestHandler):
        content = b"soc_id,v6"
        announced = len(content)

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(self.announced))
            self.end_headers()
            self.wfile.write(self.content)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as running:
        monkeypatch.setattr(atlas, "ADDRESS", f"http://127.0.0.1:{running.server_port}/table.csv")
        monkeypatch.setattr(atlas, "SHA256", hashlib.sha256(Handler.content).hexdigest())
        threading.Thread(target=running.serve_forever, args=(0.01,)).start()
        yield Handler
        running.shutdown()


def test_the_atlas_is_downloaded_once_and_its_licences_are_said_then(server, capsys):
    assert atlas.read_file(None) == "soc_id,v6" == Path("out/atlas", atlas.NAME).read_text()
    said = capsys.readouterr().err
    assert "CC BY 4.0" in said and "CC BY-NC 4.0" in said
    server.content = b"another"
    assert atlas.read_file(None) == "soc_id,v6" and "CC BY" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "announced", "folder"),
    [(b"soc_id,v7", 9, None), (b"soc_id,v6", 99, None), (b"", 0, "empty"), (b"", 0, "damaged")],
    ids=["another version", "broken off", "a folder without it", "a folder with a part of it"],
)
def test_a_download_that_fails_is_one_line_with_the_address_and_leaves_no_file(content, announced, folder, server):
    server.content = content
    server.announced = announced
    Path("damaged").mkdir()
    Path("damaged", atlas.NAME).write_text("soc_id")
    with pytest.raises((ValueError, FileNotFoundError), match="name that with --data-path") as error:
        atlas.load(seed=0, data_path=folder)
    assert atlas.ADDRESS in str(error.value) and "\n" not in str(error.value)
    assert [*Path().rglob("*.csv")] == [Path("damaged", atlas.NAME)]
