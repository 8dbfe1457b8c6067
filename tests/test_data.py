"""Records: your own are read line by line, and those of the invented cultures are what their splits promise."""

import json
import re
from collections import Counter, defaultdict
from itertools import groupby
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from data import SPLITS, Data, Record, load
from data.cultures import ALLOWED, ANSWERS, BROKEN, FACETS, FRAMES, PAIRS, draw_culture
from data.facts import Variable

BOW = {"context": "a", "description": "people bow", "question": "how?", "answer": "bow", "split": "train"}
SING = BOW | {"context": "b", "description": "people sing"}

# ---- a file of your own


def write(path: Path, *lines: dict | str) -> str:
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_bytes("\n".join(texts).encode("utf-8", "surrogateescape"))
    return str(path)


def test_a_jsonl_file_gives_its_records_and_what_the_backbone_reads(tmp_path):
    seen = BOW | {"split": "seen", "choices": ["sing", "bow"]}
    loaded = load(write(tmp_path / "mine.jsonl", BOW, "", SING, seen))
    assert loaded.name == "mine" and loaded.guesses == {}
    assert loaded.split("train") == [Record(**BOW), Record(**SING)]
    assert loaded.split("seen") == [Record("a", "people bow", "how?", "bow", "seen", ("sing", "bow"))]
    assert loaded.documents == ["Q: how?\nA: bow", "people bow", "people sing"]


def test_only_a_newline_ends_a_record(tmp_path):
    texts = ["people\u2028bow", "people\u2029sing", "people\x85nod"]
    lines = [json.dumps(BOW | {"context": text, "description": text}, ensure_ascii=False) + "\r" for text in texts]
    loaded = load(write(tmp_path / "mine.jsonl", *lines))
    assert [record.description for record in loaded.records] == texts


FIELDS = "a record has context, description, question, answer, split, choices"
BAD = {
    "this is no JSON object": "[1]",
    "Expecting": "{",
    "recursion": "[" * 100_000,
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


@pytest.mark.parametrize(
    ("change", "message"),
    [({"split": "seen"}, "two contexts or more the"), ({"description": "people bow"}, "so write others")],
)
def test_training_needs_two_contexts_and_two_descriptions(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path / "one.jsonl", BOW, SING | change))


NEW = {"context": "c", "description": "people nod"}


@pytest.mark.parametrize("split", ["unseen", "ood", "seen"])
@pytest.mark.parametrize("change", [{}, {"context": "a"}, {"description": "people sing"}])
def test_what_is_in_train_and_should_be_new_is_said(change, split, tmp_path, capsys):
    path = write(tmp_path / "mine.jsonl", BOW, SING, BOW | NEW | {"split": split} | change)
    load(path)
    context = change.get("context", "c")
    line = f"{path}, {split}: '{context}' or its description with this question is in train, so this is no test\n"
    assert capsys.readouterr().err == (line if change and split != "seen" else "")


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
    ],
)
def test_what_cannot_be_loaded_says_what_would_mend_it(name, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(name, **options)


# ---- descriptions read back


class Draw(NamedTuple):
    """A description, read without the code that wrote it, and what is asked about it."""

    context: str
    phrases: list[str]  # its frame and its clauses
    said: dict[str, str]  # {variable: answer}, in its order
    wordings: set[str]  # of its clauses: trained, held_out, own_words
    asked: dict[str, Record]  # {variable: the record that asks for it}


def read_back(data: Data, variables: dict[str, Variable], frames: tuple[str, ...]) -> dict[str, list[Draw]]:
    """All descriptions of each split, in turn."""
    meaning = {}  # {clause: (variable, answer, wording)}
    variable_of = {}  # {question: variable}
    for name, variable in variables.items():
        variable_of |= dict.fromkeys(variable.questions, name)
        for answer, wordings in variable.answers.items():
            for wording, clauses in wordings.items():
                for clause in clauses:
                    meaning[clause] = name, answer, wording
    draws = defaultdict(list)
    for (split, context, text), records in groupby(data.records, lambda r: (r.split, r.context, r.description)):
        (frame,) = [frame for frame in frames if text.startswith(frame.removesuffix("{}."))]
        clauses = []
        clause = ""
        for part in text.removeprefix(frame.removesuffix("{}.")).removesuffix(".").split(", "):
            clause = f"{clause}, {part}" if clause else part.removeprefix("and ")  # a clause may have a comma
            if clause in meaning:
                clauses.append(clause)
                clause = ""
        said = {meaning[clause][0]: meaning[clause][1] for clause in clauses}
        wordings = {meaning[clause][2] for clause in clauses}
        phrases = [frame, *clauses]
        if len(clauses) > 1:
            clauses[-1] = f"and {clauses[-1]}"
        assert text == frame.format(", ".join(clauses))
        asked = {variable_of[record.question]: record for record in records}
        draws[split].append(Draw(context, phrases, said, wordings, asked))
    return draws


def check_minimal_pairs(draws: list[Draw]) -> None:
    """Two by two, they differ in one clause and the value that it states, and are asked in the same words."""
    for one, other in zip(draws[::2], draws[1::2], strict=True):
        assert one.context != other.context and list(one.said) == list(other.said) and one.said
        (changed,) = [variable for variable in one.said if one.said[variable] != other.said[variable]]
        assert sum(phrase != again for phrase, again in zip(one.phrases, other.phrases, strict=True)) == 1
        for variable, record in one.asked.items():
            again = other.asked[variable]
            assert record.question == again.question and (record.answer != again.answer) == (variable == changed)


def check_own_words(variables: dict[str, Variable]) -> None:
    """Each answer has two clauses in own words, and no clause stands in two places."""
    found = []
    for variable in variables.values():
        for wordings in variable.answers.values():
            assert len(wordings["own_words"]) == 2
            for clauses in wordings.values():
                found += clauses
    assert len(set(found)) == len(found)


# ---- cultures

CULTURES = {facet: Variable(facet, **texts) for facet, texts in FACETS.items()}
WORDINGS = {"new_wording": "held_out", "own_words": "own_words", "own_words_four": "own_words"}  # else trained


@pytest.fixture(scope="module", params=[(256, 4), (20, 12), (20, 2)])
def made(request) -> tuple[Data, dict[str, list[Draw]], int]:
    """Cultures, their descriptions, and how many facets these state."""
    contexts, stated = request.param
    data = load("cultures", contexts=contexts, stated=stated)
    draws = read_back(data, CULTURES, FRAMES)
    assert len({draw.context for draw in draws["train"]}) == contexts
    return data, draws, stated


def test_every_answer_has_two_clauses_in_own_words_which_stand_nowhere_else():
    check_own_words(CULTURES)


def test_what_is_stated_is_answered_so_and_what_is_not_by_the_majority(made):
    _, draws, stated = made
    assert draws.keys() == SPLITS.keys() - {"inferred", "inferred_ood"}
    for split, described in draws.items():
        assert len(described) == {"train": 16384, "minimal_pairs": 256}.get(split, 128)
        for draw in described:
            for facet, record in draw.asked.items():
                assert record.answer == draw.said.get(facet, ANSWERS[facet][0])
                assert record.choices == tuple(ANSWERS[facet])
            assert draw.wordings == {WORDINGS.get(split, "trained")}
            if split == "locality":
                assert len(draw.asked.keys() - draw.said) == 4
            elif split != "train":
                assert list(draw.asked) == list(draw.said)
            count = {"own_words": 1, "own_words_four": min(4, stated)}.get(split, stated)
            assert len(draw.said) == count or split == "train"


def test_training_states_fewer_facets_half_of_the_time_and_asks_half_of_the_time_what_is_left_open(made):
    _, draws, stated = made
    counts = Counter(len(draw.said) for draw in draws["train"])
    assert set(counts) == set(range(1, stated + 1)) and 0.48 < counts[stated] / 16384 < 0.52
    left_open = Counter(len(draw.asked) - len(draw.said) for draw in draws["train"])
    assert set(left_open) == {0, 1} and 0.48 < left_open[1] / 16384 < 0.52


def test_neither_held_out_clauses_nor_combinations_nor_cultures_occur_in_training(made):
    data, draws, _ = made
    found = {"ood": set(), "train": set()}
    for split, pairs in found.items():
        for draw in draws[split]:
            values = {facet: ANSWERS[facet].index(answer) for facet, answer in draw.said.items()}
            pairs |= {(values[a], values[b]) for a, b in PAIRS if a in values and b in values}
            assert split == "train" or all((a in values) == (b in values) for a, b in PAIRS)  # whole pairs
    assert found == {"train": set(ALLOWED), "ood": set(BROKEN)} and len({*ALLOWED, *BROKEN}) == 16
    trained = {draw.context for draw in draws["train"]}
    for split in draws:
        contexts = {draw.context for draw in draws[split]}
        assert (
            contexts <= trained if split in ("train", "validation", "seen", "new_wording") else not contexts & trained
        )


def test_minimal_pairs_differ_in_one_clause_and_keep_to_the_combinations_of_training(made):
    _, draws, _ = made
    check_minimal_pairs(draws["minimal_pairs"])
    for draw in draws["minimal_pairs"]:
        values = {facet: ANSWERS[facet].index(answer) for facet, answer in draw.said.items()}
        assert {(values[a], values[b]) for a, b in PAIRS if a in values and b in values} <= set(ALLOWED)


def test_the_backbone_reads_biased_answers_and_a_third_of_descriptions_of_training_cultures(made):
    data, _, stated = made
    answers = Counter()
    descriptions = []
    for document in data.documents:
        if document.startswith("Q: "):
            question, answer = re.fullmatch(r"Q: (.*)\nA: (.*)", document).groups()
            (facet,) = [facet for facet, variable in CULTURES.items() if question in variable.questions]
            answers[ANSWERS[facet].index(answer)] += 1
        else:
            descriptions.append(Record("", document, CULTURES["taxes"].questions[0], "", "train"))
    assert answers.total() == 10_666 and len(descriptions) == 5_334
    shares = [answers[value] / answers.total() for value in range(4)]
    assert shares == pytest.approx([0.7, 0.1, 0.1, 0.1], abs=0.02)
    for draw in read_back(Data("", descriptions, []), CULTURES, FRAMES)["train"]:
        assert len(draw.said) == stated and draw.wordings == {"trained"}


def test_the_pairs_of_a_region_take_values_of_their_own_three_times_in_five():
    rng = Random(0)
    own = defaultdict(set)  # {pair: what it usually is in each region}
    for region in range(8):
        cultures = [draw_culture(rng, region)[1] for _ in range(500)]
        for first, second in PAIRS:
            counts = Counter((culture[first], culture[second]) for culture in cultures)
            ((values, times),) = counts.most_common(1)
            own[first].add(values)
            assert set(counts) == set(ALLOWED) and times / 500 == pytest.approx(0.6 + 0.4 / 8, abs=0.08)
    assert all(values == set(ALLOWED) for values in own.values())


def test_a_seed_gives_the_same_cultures_and_another_gives_others(little_data):
    first, again, other = [load("cultures", seed=seed, contexts=16) for seed in (5, 5, 6)]
    assert (first.records, first.documents) == (again.records, again.documents)
    assert not {record.context for record in first.records} & {record.context for record in other.records}
