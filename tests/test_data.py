"""Records: your own are read line by line, and of the data sets that come along each split is what it promises."""

import json
import re
from collections import Counter, defaultdict
from functools import cache
from itertools import groupby
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from data import Data, Record, atlas, load, votes
from data.cultures import ALLOWED, ANSWERS, BROKEN, FACETS, FRAMES, PAIRS, draw_culture
from data.facts import Table, Variable

BOW = {"context": "a", "description": "people bow", "question": "how?", "answer": "bow", "split": "train"}
SING = BOW | {"context": "b", "description": "people sing"}

# ---- a file of your own


def write(path: Path, *lines: dict | str) -> str:
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_bytes("\n".join(texts).encode("utf-8", "surrogateescape"))
    return str(path)


def test_a_jsonl_file_gives_its_records_and_what_the_backbone_reads(tmp_path):
    other = BOW | {"context": "b", "description": "one\u2028record\x85not three"}  # only a newline ends a record
    seen = BOW | {"split": "seen", "choices": ["sing", "bow"]}
    loaded = load(write(tmp_path / "mine.jsonl", BOW, "\r", other, seen))
    assert loaded.name == "mine" and loaded.guesses == {}
    assert loaded.split("train") == [Record(**BOW), Record(**other)]
    assert loaded.split("seen") == [Record("a", "people bow", "how?", "bow", "seen", ("sing", "bow"))]
    assert loaded.documents == ["Q: how?\nA: bow", "people bow", other["description"]]


FIELDS = "a record has context, description, question, answer, split, choices"
BAD = {
    "this is no JSON object": "[1]",
    "Expecting": "{",
    "recursion|overflow": "[" * 100_000,
    "codec can't decode": json.dumps(BOW).replace("bow", "\udcff"),
    f"unknown field 'choises': {FIELDS}": BOW | {"choises": []},
    "'answer' must be a text that is not empty": {name: text for name, text in BOW.items() if name != "answer"},
    "'question' must be a text": BOW | {"question": " "},
    "'context' must be a text": BOW | {"context": 3},
    "unknown split 'test': choose from train, ": BOW | {"split": "test"},
    "'choices' must be a list of texts, one of which is the answer": BOW | {"choices": ["sing"]},
    "'choices' must be a list": BOW | {"choices": "bow"},
}


@pytest.mark.parametrize("problem", BAD)
def test_the_first_bad_line_is_named_by_file_and_number(problem, tmp_path):
    with pytest.raises(ValueError, match=f"bad.jsonl, line 3: .*{problem}") as error:
        load(write(tmp_path / "bad.jsonl", BOW, SING, BAD[problem], "{"))
    assert "\n" not in str(error.value)


def test_training_needs_two_contexts_and_two_descriptions(tmp_path):
    with pytest.raises(ValueError, match='give records of two contexts or more the "split": "train"'):
        load(write(tmp_path / "one.jsonl", BOW, SING | {"split": "seen"}))
    with pytest.raises(ValueError, match="all training records have one description, so write others"):
        load(write(tmp_path / "one.jsonl", BOW, SING | {"description": "people bow"}))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("none.jsonl", {}, "no file none.jsonl: give the path"),
        ("poems", {}, "unknown data set 'poems': choose from cultures, votes, atlas, or give a file.jsonl"),
        ("votes", {"stated": 3}, "votes has no such option: leave out --stated"),
        ("mine.jsonl", {"contexts": 3}, "mine.jsonl has no such option: leave out --contexts"),
        ("cultures", {"contexts": 1}, "contexts is 1: choose 2 to 16384"),
        ("cultures", {"stated": 1}, "stated is 1: choose 2 to 12"),
        ("cultures", {"stated": 13, "wording": None}, "stated is 13"),  # None counts as left out
        ("votes", {"contexts": 9}, "contexts is 9: choose 10 to 120"),
        ("votes", {"contexts": 121}, "contexts is 121"),
        ("votes", {"wording": "poems"}, "unknown wording 'poems': choose from clauses, verbs"),
    ],
)
def test_what_cannot_be_loaded_says_what_would_mend_it(name, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(name, **options)


# ---- the splits of every data set, from its texts alone

ATLAS = Path(__file__).parents[2] / "shared/data/atlas"
needs_the_atlas = pytest.mark.skipif(not ATLAS.is_dir(), reason="needs ../shared/data/atlas")
BUILT = ["cultures", "twelve facets", "votes", "verbs", pytest.param("atlas", marks=needs_the_atlas)]
EVERY = pytest.mark.parametrize("name", BUILT)
STATED = {"cultures": 4, "twelve facets": 12}


class Draw(NamedTuple):
    """A description, read without the code that wrote it, and what is asked about it."""

    context: str
    said: dict[str, str]  # {variable: answer}, in its order
    held_out: set[bool]  # whether its clauses are the last of an answer
    asked: dict[str, Record]  # {variable: the record that asks for it}


@cache
def build(name: str) -> tuple[Data, Table, dict[str, list[Draw]]]:
    """A data set, the table of which it is made (cultures have no facts), and the descriptions of each split."""
    table = Table({facet: Variable(facet, *texts) for facet, texts in FACETS.items()}, {}, {}, FRAMES)
    if name in STATED:
        data = load("cultures", contexts=64, stated=STATED[name])
    elif name == "atlas":
        data = load("atlas", seed=1, data_path=str(ATLAS))
        table = atlas.read_table(atlas.read_file(str(ATLAS)))
    else:
        wording = "verbs" if name == "verbs" else "clauses"
        data = load("votes", seed=1, wording=wording)
        table = votes.read_table(wording)
    return data, table, read_back(data.records, table)


def read_back(records: list[Record], table: Table) -> dict[str, list[Draw]]:
    """The descriptions of each split, in turn."""
    meaning = {}  # {clause: (variable, answer, whether it is held out)}
    variable_of = {}  # {question: variable}
    for name, variable in table.variables.items():
        variable_of |= dict.fromkeys(variable.questions, name)
        for answer, clauses in variable.clauses.items():
            meaning |= {clause: (name, answer, clause == clauses[-1]) for clause in clauses}
    draws = defaultdict(list)
    for (split, context, text), about in groupby(records, lambda r: (r.split, r.context, r.description)):
        (frame,) = [frame for frame in table.frames if text.startswith(frame.removesuffix("{}."))]
        clauses = []
        clause = ""
        for part in text.removeprefix(frame.removesuffix("{}.")).removesuffix(".").split(", "):
            clause = f"{clause}, {part}" if clause else part.removeprefix("and ")  # a clause may have a comma
            if clause in meaning:
                clauses.append(clause)
                clause = ""
        said = {meaning[clause][0]: meaning[clause][1] for clause in clauses}
        held_out = {meaning[clause][2] for clause in clauses}
        if len(clauses) > 1:
            clauses[-1] = f"and {clauses[-1]}"
        assert text == frame.format(", ".join(clauses))
        draws[split].append(Draw(context, said, held_out, {variable_of[record.question]: record for record in about}))
    return draws


@EVERY
def test_what_is_stated_is_true_and_asked_for_and_the_last_wording_is_held_out(name):
    _, table, every_draw = build(name)
    most = STATED.get(name, 4)
    majority = {facet: answers[0] for facet, answers in ANSWERS.items()}  # of cultures, where nothing is stated
    for split, draws in every_draw.items():
        for draw in draws:
            facts = table.facts.get(draw.context) or majority | draw.said
            assert draw.said.items() <= facts.items()
            for variable, record in draw.asked.items():
                assert record.answer == facts[variable]
                assert record.choices == tuple(table.variables[variable].clauses)
            asked = [variable for variable in draw.asked if variable in draw.said]
            assert asked == ([] if split in ("locality", "inferred", "inferred_ood") else list(draw.said))
            assert draw.held_out == {split == "new_wording"}
        lengths = Counter(len(draw.said) for draw in draws)
        if split == "train":  # half of the descriptions state less
            expected = [0.5 / (most - 1)] * (most - 1) + [0.5]
            assert [lengths[n + 1] / 16384 for n in range(most)] == pytest.approx(expected, abs=0.02)
        else:
            assert lengths == {most: 256 if name in STATED and split == "minimal_pairs" else 128}


@EVERY
def test_no_context_and_no_description_of_another_split_is_trained(name):
    data, _, draws = build(name)
    trained = {draw.context for draw in draws["train"]}
    described = {record.description for record in data.split("train")}
    for split in draws.keys() - {"train"}:
        contexts = {draw.context for draw in draws[split]}
        known = split in ("validation", "seen", "new_wording")
        assert contexts & trained == (contexts if known else set())
        assert not {record.description for record in data.split(split)} & described


@EVERY
def test_minimal_pairs_differ_in_one_value_asked_in_the_same_words_and_in_nothing_else(name):
    _, _, draws = build(name)
    for one, other in zip(draws["minimal_pairs"][::2], draws["minimal_pairs"][1::2], strict=True):
        assert one.context != other.context and list(one.said) == list(other.said)
        (changed,) = [variable for variable in one.said if one.said[variable] != other.said[variable]]
        for variable, record in one.asked.items():
            again = other.asked[variable]
            assert record.question == again.question and (record.answer != again.answer) == (variable == changed)


@EVERY
def test_the_backbone_reads_biased_answers_and_a_third_of_descriptions_without_what_is_held_out(name):
    data, table, draws = build(name)
    known = Counter()  # {(variable, answer): training contexts}
    for context in table.facts.keys() & {draw.context for draw in draws["train"]}:
        known.update(table.facts[context].items())
    variable_of = {question: name for name, variable in table.variables.items() for question in variable.questions}
    written = Counter()  # {(variable, answer): documents}
    described = []
    for document in data.documents:
        if document.startswith("Q: "):
            question, answer = re.fullmatch(r"Q: (.*)\nA: (.*)", document).groups()
            written[variable_of[question], answer] += 1
        else:
            described.append(Record("", document, next(iter(variable_of)), "", "train"))
    assert (written.total(), len(described)) == (10_666, 5_334)
    assert not any(True in draw.held_out for draw in read_back(described, table)["train"])
    for name, variable in table.variables.items():
        found = [written[name, answer] for answer in variable.clauses]
        expected = [known[name, answer] for answer in variable.clauses] if known else [0.7, 0.1, 0.1, 0.1]
        for number, share in zip(found, expected, strict=True):
            assert number / sum(found) == pytest.approx(share / sum(expected), abs=0.12)


@pytest.mark.parametrize("name", ["cultures", "votes"])
def test_a_seed_gives_the_same_data_and_another_holds_out_others(name):
    first, again, other = [load(name, seed=seed, contexts=100) for seed in (5, 5, 6)]
    assert (first.records, first.documents, first.guesses) == (again.records, again.documents, again.guesses)
    assert {record.context for record in first.split("unseen")} != {record.context for record in other.split("unseen")}
    assert len({record.context for record in first.split("train")}) == 100


# ---- cultures


@pytest.mark.parametrize("name", STATED)
def test_training_asks_half_of_the_time_what_is_open_and_ood_states_whole_pairs_that_nothing_else_has(name):
    found = defaultdict(set)
    _, _, every_draw = build(name)
    for split, draws in every_draw.items():
        left_open = Counter(len(draw.asked.keys() - draw.said) for draw in draws)
        if split == "train":
            assert set(left_open) == {0, 1} and 0.48 < left_open[1] / 16384 < 0.52
        else:
            assert left_open == {4 if split == "locality" else 0: len(draws)}
        for draw in draws:
            values = {facet: ANSWERS[facet].index(answer) for facet, answer in draw.said.items()}
            found[split == "ood"] |= {(values[a], values[b]) for a, b in PAIRS if a in values and b in values}
            assert split != "ood" or all((a in values) == (b in values) for a, b in PAIRS)
    assert found == {False: set(ALLOWED), True: set(BROKEN)} and len({*ALLOWED, *BROKEN}) == 16


def test_the_pairs_of_a_region_take_values_of_their_own_three_times_in_five():
    rng = Random(0)
    own = defaultdict(set)  # {first facet of a pair: what the pair usually is in each region}
    for region in range(8):
        cultures = [draw_culture(rng, region)[1] for _ in range(500)]
        for first, second in PAIRS:
            counts = Counter((culture[first], culture[second]) for culture in cultures)
            ((values, times),) = counts.most_common(1)
            own[first].add(values)
            assert set(counts) == set(ALLOWED) and times / 500 == pytest.approx(0.6 + 0.4 / 8, abs=0.08)
    assert all(values == set(ALLOWED) for values in own.values())
