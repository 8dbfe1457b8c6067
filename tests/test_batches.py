"""Rows of token ids as arrays, and which records a step reads."""

import numpy as np
import torch
from conftest import TEXTS
from hypothesis import given
from hypothesis import strategies as st

from data import Record
from data.batches import NO_TARGET, Rows, draw, join_pairs, pad

IDS = st.integers(0, 999)
ROWS = st.lists(st.lists(IDS, min_size=1, max_size=9), min_size=1, max_size=6)


@given(rows=ROWS, fill=st.integers(-100, 5), left=st.booleans())
def test_padding_fills_every_row_up_to_the_longest(rows, fill, left):
    longest = max(map(len, rows))
    expected = []
    for row in rows:
        filling = [fill] * (longest - len(row))
        expected.append(filling + row if left else row + filling)
    assert pad(rows, fill, left).tolist() == expected


@given(pairs=st.lists(st.tuples(*[st.lists(IDS, min_size=1, max_size=9)] * 2), min_size=1, max_size=6))
def test_of_a_prompt_with_its_answer_the_answer_is_predicted_and_then_the_end(pairs):
    rows = join_pairs(pairs, eos=1)
    for i, (prompt, answer) in enumerate(pairs):
        text = prompt + answer
        assert rows.ids[i, : len(text)].tolist() == text
        following = [*text[1:], 1]
        for place, target in enumerate(rows.targets[i]):
            predicted = len(prompt) - 1 <= place < len(text)
            assert target == (following[place] if predicted else NO_TARGET)


def test_rows_that_are_taken_are_as_long_as_the_longest_of_them():
    pairs = [([2, 3], [4]), ([5], [6, 7, 8, 9]), ([2], [3])]
    rows = join_pairs(pairs, eos=1)
    rows = rows._replace(states=torch.arange(15.0).reshape(3, 5, 1))
    taken = rows.take([2, 0, 2])
    expected = join_pairs([pairs[2], pairs[0], pairs[2]], eos=1)
    assert taken.ids.tolist() == expected.ids.tolist() and taken.targets.tolist() == expected.targets.tolist()
    assert taken.states[:, :, 0].tolist() == [[10, 11, 12], [0, 1, 2], [10, 11, 12]]
    assert Rows(rows.ids, rows.targets).take([1]).states is None


def test_every_description_has_its_turn_with_some_of_its_questions_before_one_comes_again():
    records = []
    for i, text in enumerate(TEXTS):
        for number in range(i + 1):  # some have fewer questions than a step asks
            records.append(Record(f"context {i}", text, f"question {number}", " yes", "train"))
    steps = draw(records, descriptions=1, questions=3, rng=np.random.default_rng(0))
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
    assert len(next(draw(records, descriptions=5, questions=1, rng=np.random.default_rng(0)))) == 5
