"""Rows of token ids, and which records a step reads."""

from itertools import islice

import torch
from conftest import TEXTS
from hypothesis import given
from hypothesis import strategies as st

from data import Record
from data.batches import draw, join, pack, pad

IDS = st.lists(st.integers(2, 999), min_size=1, max_size=9)


@given(pairs=st.lists(st.tuples(IDS, IDS), min_size=1, max_size=6))
def test_of_a_prompt_with_its_answer_the_answer_is_predicted_and_then_the_end(pairs):
    rows = join(pairs, eos=1)
    longest = max(len(prompt) + len(answer) + 1 for prompt, answer in pairs)
    assert rows.ids.shape == (len(pairs), longest)
    for i, (prompt, answer) in enumerate(pairs):
        text = [*prompt, *answer, 1]
        assert rows.ids[i].tolist() == text + [0] * (longest - len(text))
        assert rows.ids[i, rows.start[i] : rows.end[i]].tolist() == [*answer, 1]
    assert rows.hidden_states is None


def test_padding_fills_every_row_up_to_the_longest():
    assert pad([[5], [6, 7, 8], [9, 9]]).tolist() == [[5, 0, 0], [6, 7, 8], [9, 9, 0]]


def test_rows_that_are_taken_are_as_long_as_the_longest_of_them():
    pairs = [([2, 3], [4]), ([5], [6, 7, 8, 9]), ([2], [3])]
    rows = join(pairs, eos=1)
    assert rows.take([1]).hidden_states is None
    rows = rows._replace(hidden_states=torch.arange(15.0).reshape(3, 5, 1))
    taken = rows.take([2, 0, 2])
    expected = join([pairs[2], pairs[0], pairs[2]], eos=1)
    for name in ("ids", "start", "end"):
        assert getattr(taken, name).tolist() == getattr(expected, name).tolist()
    assert taken.hidden_states[:, :, 0].tolist() == [[10, 11, 12, 13], [0, 1, 2, 3], [10, 11, 12, 13]]


def test_pretraining_reads_full_rows_of_random_texts_each_with_its_end():
    texts = [[2, 3, 4], [5], [6, 7]]
    batches = list(islice(pack(texts, eos=1, rows=3, tokens=10, seed=0), 20))
    starts = set()
    for batch in batches:
        assert batch.ids.shape == (3, 11)
        assert batch.start.tolist() == [1] * 3 and batch.end.tolist() == [11] * 3
        for row in batch.ids.tolist():
            starts.add(tuple(row[:4]))
            whole = "".join(map(str, row)).split("1")
            assert set(whole[:-1]) <= {"234", "5", "67"}
            assert any(text.startswith(whole[-1]) for text in ("234", "5", "67"))
    assert len(starts) > 3
    again = next(pack(texts, eos=1, rows=3, tokens=10, seed=0))
    other = next(pack(texts, eos=1, rows=3, tokens=10, seed=1))
    assert torch.equal(again.ids, batches[0].ids) and not torch.equal(other.ids, batches[0].ids)


def test_every_description_has_its_turn_with_some_of_its_questions_before_one_comes_again():
    records = []
    for i, text in enumerate(TEXTS):
        for number in range(i + 1):  # some have fewer questions than a step asks
            records.append(Record(f"context {i}", text, f"question {number}", "yes", "train"))
    steps = draw(records, description_count=1, question_count=3, seed=0)
    asked = set()
    orders = set()
    for _ in range(8):  # each five turns are of all five descriptions
        turns = [[records[i] for i in next(steps)] for _ in TEXTS]
        orders.add(tuple(drawn[0].context for drawn in turns))
        assert {drawn[0].description for drawn in turns} == set(TEXTS)
        for drawn in turns:
            assert len({record.description for record in drawn}) == 1
            assert len(set(drawn)) == len(drawn) == min(3, 1 + TEXTS.index(drawn[0].description))
            asked |= set(drawn)
    assert asked == set(records) and len(orders) > 1  # in the long run every question, in changing order
    assert len(next(draw(records, description_count=5, question_count=1, seed=0))) == 5
    runs = [list(islice(draw(records, 2, 3, seed), 5)) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_two_contexts_with_one_description_are_two_turns():
    records = [Record(context, "people bow", "how?", context, "train") for context in "ab"]
    steps = draw(records, description_count=1, question_count=4, seed=0)
    assert sorted([next(steps), next(steps)]) == [[0], [1]]
