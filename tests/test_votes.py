"""The votes data set: no split leaks into another, every answer is the table's, and no text names a country."""

import functools
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from data import votes

SOURCE = Path(__file__).resolve().parents[2] / "shared/data/votes/un_votes.json"
TABLE, CONTINENTS = votes.read_table()
EUROPE = {country for country in TABLE if CONTINENTS[country] == "Europe"}
ANSWERS = list(votes.VOTES.values())
TOPIC_OF = {f"Q: {q}\nA:": topic for topic, entry in votes.TOPICS.items() for q in entry["questions"]}

MEANING = {}  # clause -> the topic and the vote that it states, and its number
for topic, entry in votes.TOPICS.items():
    for vote in ANSWERS:
        for number, clause in enumerate(entry[vote]):
            MEANING[clause] = topic, vote, number


@functools.cache
def read(description):
    """What a description states: {topic: vote}, and the numbers of its clauses."""
    for frame in votes.FRAMES:
        before, after = frame.split("{}")
        description = description.removeprefix(before).removesuffix(after)
    said, numbers = {}, set()
    for part in description.split(", "):
        topic, vote, number = MEANING[part.removeprefix("and ")]
        said[topic] = vote
        numbers.add(number)
    return said, numbers


@pytest.fixture(scope="module")
def data():
    return votes.load(None, seed=1)


@pytest.fixture
def few(monkeypatch):
    """Little training text, for tests that make the data again."""
    monkeypatch.setattr(votes, "DESCRIPTIONS", 1000)
    monkeypatch.setattr(votes, "DOCUMENTS", 30)
    monkeypatch.setattr(votes, "EVALUATED", 32)


def test_the_table_has_its_published_margins():
    counts = Counter(vote for row in TABLE.values() for vote in row.values())
    assert (len(TABLE), len(votes.TOPICS), len(EUROPE)) == (193, 36, 43)
    assert [counts[vote] for vote in ANSWERS] == [4704, 1264, 931]  # .68, .18, .13


def test_the_table_is_a_part_of_the_source():
    if not SOURCE.is_file():
        pytest.skip("the source table is not on this machine")
    source = json.loads(SOURCE.read_text(encoding="utf-8"))["countries"]
    letters = Counter("".join(row["votes"] for row in source.values()))
    cast = letters.total() - letters["-"]
    assert [round(letters[letter] / cast, 2) for letter in votes.VOTES] == [0.68, 0.18, 0.14]
    columns = list(zip(*(row["votes"] for row in source.values()), strict=True))
    ours = list(zip(*(row[1] for row in votes.TEXTS["countries"].values()), strict=True))
    assert len(columns) == 37
    assert list(source) == list(TABLE)
    assert set(ours) <= set(columns)


def test_each_vote_on_each_topic_has_five_clauses_of_its_own():
    for entry in votes.TOPICS.values():
        assert [len(entry[vote]) for vote in ANSWERS] == [5, 5, 5]
        assert len(entry["questions"]) == 3
    assert len(MEANING) == 36 * 3 * 5  # so no clause has two meanings
    assert len(TOPIC_OF) == 36 * 3
    for clause in MEANING:
        assert clause.startswith("it ") and "," not in clause
        assert 4 <= len(clause.split()) <= 10


def test_no_text_names_a_country():
    names = [entry["name"] for entry in votes.TOPICS.values()]
    text = "\n".join([*MEANING, *TOPIC_OF, *votes.FRAMES, *names]).lower()
    assert [name for name in TABLE if re.search(rf"\b{re.escape(name.lower())}", text)] == []


def test_every_answer_is_how_the_country_voted(data):
    for record in data.records:
        assert record.answer == " " + TABLE[record.context][TOPIC_OF[record.prompt]]
        assert record.choices == (" in favour", " abstained", " against")


def test_every_description_states_how_its_country_voted(data):
    for context, description in {(record.context, record.description) for record in data.records}:
        said, _ = read(description)
        assert said.items() <= TABLE[context].items()


def test_neither_europe_nor_the_held_out_fifth_is_ever_trained(data):
    contexts = {split: {record.context for record in data.split(split)} for split in data_splits(data)}
    trained = contexts["train"]
    assert len(trained) == 120
    for split in ("validation", "seen", "new_wording"):
        assert contexts[split] <= trained
    for split in ("unseen", "inferred", "minimal_pairs"):
        assert not contexts[split] & (trained | EUROPE)
    for split in ("ood", "inferred_ood"):
        assert contexts[split] <= EUROPE
    assert not trained & EUROPE


def data_splits(data):
    return dict.fromkeys(record.split for record in data.records)


def test_no_evaluated_description_was_trained_on(data):
    trained = {record.description for record in data.split("train")}
    for record in data.records:
        assert (record.split == "train") == (record.description in trained)


def test_held_out_clauses_stand_in_new_wording_alone(data):
    for split, description in {(record.split, record.description) for record in data.records}:
        _, numbers = read(description)
        assert numbers == {4} if split == "new_wording" else numbers <= {0, 1, 2, 3}
    held_out = [clause for clause, (*_, number) in MEANING.items() if number == 4]
    assert not any(clause in document for document in data.documents[::10] for clause in held_out)


def test_what_is_inferred_shares_no_group_with_what_is_stated(data):
    for record in data.records:
        said, _ = read(record.description)
        asked = TOPIC_OF[record.prompt]
        if record.split.startswith("inferred"):
            groups = {votes.TOPICS[topic]["group"] for topic in said}
            assert votes.TOPICS[asked]["group"] not in groups
        elif record.split != "train":
            assert asked in said


def test_half_of_the_training_questions_are_about_what_is_not_stated(data):
    asked = [TOPIC_OF[record.prompt] in read(record.description)[0] for record in data.split("train")]
    assert sum(asked) * 2 == len(asked)


def test_a_minimal_pair_differs_in_one_stated_vote_and_nothing_else(data):
    pairs = list(dict.fromkeys((record.context, record.description) for record in data.split("minimal_pairs")))
    for (one, text), (other, changed) in zip(pairs[::2], pairs[1::2], strict=True):
        (said, _), (said_changed, _) = read(text), read(changed)
        assert one != other and said.keys() == said_changed.keys()
        assert len(said.items() - said_changed.items()) == 1


def test_balanced_training_states_rare_votes_more_often(data, few):
    even = votes.load(None, seed=1, balanced=False)
    assert share_in_favour(even, "train") > 0.7 > 0.65 > share_in_favour(data, "train")
    assert share_in_favour(data, "seen") > 0.7  # what is evaluated is drawn evenly


def share_in_favour(data, split):
    answers = [record.answer for record in data.split(split)]
    return answers.count(" in favour") / len(answers)


def test_verbs_take_the_place_of_clauses(few):
    rng = random.Random(0)
    text = votes.describe(rng, {"executions": "against"}, ["executions"], "verbs", votes.HELD_OUT)
    assert "it said no to a halt to executions" in text
    data = votes.load(None, seed=0, contexts=10, wording="verbs")
    for record in data.records:
        assert not any(clause in record.description for clause in list(MEANING)[:15])


@pytest.mark.parametrize(
    "options",
    [{"path": "votes.csv"}, {"contexts": 9}, {"contexts": 121}, {"wording": "poems"}],
)
def test_an_option_that_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match="leave out|choose"):
        votes.load(**{"path": None, "seed": 0} | options)


# ---- guesses that train nothing, on four countries and three topics

YES, ABSTAINED, NO = ANSWERS
SMALL = {
    "north": {"peace": YES, "space": YES, "court": NO},
    "south": {"peace": YES, "space": YES, "court": NO},
    "east": {"peace": NO, "space": NO, "court": YES},
    "west": {"peace": NO, "space": YES},
}


def test_majority_counts_the_votes_that_were_cast():
    assert votes.majority(SMALL, "space") == YES  # three to one
    assert votes.majority(SMALL, "court") == NO  # two to one; west did not vote
    assert votes.majority(SMALL, "peace") == YES  # two to two: the first of the three votes


def test_neighbours_are_the_other_countries_of_the_continent():
    continents = {"north": "A", "south": "A", "east": "B", "west": "A"}
    assert list(votes.neighbours(SMALL, continents, "north")) == ["south", "west"]
    assert votes.neighbours(SMALL, continents, "east") == {}


def test_naive_bayes_weighs_the_stated_votes():
    # yes on court: 2 · (0+1)/(1+3) = 0.5; no: 3 · (2+1)/(2+3) = 1.8; abstained: 1 · 1/3
    assert votes.naive_bayes(SMALL, {"peace": YES}, "court") == NO
    # yes: 2 · 2/4 = 1; no: 3 · 1/5 = 0.6
    assert votes.naive_bayes(SMALL, {"peace": NO}, "court") == YES
    assert votes.naive_bayes(SMALL, {}, "court") == NO


def test_every_evaluated_record_has_its_guesses(data):
    evaluated = {record for record in data.records if record.split != "train"}
    assert set(data.references) == {"majority", "continent", "naive bayes"}
    for guesses in data.references.values():
        assert guesses.keys() == evaluated
        assert all(guess in record.choices for record, guess in guesses.items())
