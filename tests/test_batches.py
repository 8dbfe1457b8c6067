"""Rows of token ids, and which records a step reads."""

from collections import Counter
from itertools import islice

import torch
from conftest import TEXTS
from hypothesis import given
from hypothesis import strategies as st

from data import Record
from data.batches import draw, join, pack

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


def test_rows_that_are_taken_are_as_long_as_the_longest_of_them():
    pairs = [([2, 3], [4]), ([5], [6, 7, 8, 9]), ([2], [3])]
    rows = join(pairs, eos=1)
    assert rows.take([1]).hidden_states is None
    rows = rows._replace(hidden_states=torch.arange(15.0).reshape(3, 5, 1))
    taken = rows.take([2, 0, 2])
    expected = join([pairs[2], pairs[0], pairs[2]], eos=1)
    for name in ("ids", "start", "end"):
        assert getattr(taken, name).tolist() == getattr(expected, name).tolist()
    assert taken.hidden_states[:, :, 0].tolist() == [[10, 11, 12], [0, 1, 2], [10, 11, 12]]


def test_pretraining_reads_full_rows_of_random_texts_each_with_its_end():
    first, again, other = [pack([[2, 3, 4], [5], [6, 7]], 1, rows=3, tokens=10, seed=seed) for seed in (0, 0, 1)]
    found = set()
    for batch in islice(first, 20):
        assert batch.ids.shape == (3, 11)
        assert batch.start.tolist() == [1] * 3 and batch.end.tolist() == [11] * 3
        assert torch.equal(batch.ids, next(again).ids) and not torch.equal(batch.ids, next(other).ids)
        for row in batch.ids.tolist():
            *texts, cut = "".join(map(str, row)).split("1")
            assert set(texts) <= {"234", "5", "67"} and cut in ("", "2", "23", "234", "5", "6", "67")
            found.add(tuple(texts))
    assert len(found) > 20


def test_every_description_has_its_turn_with_some_of_its_questions_before_one_comes_again():
    texts = [*TEXTS, TEXTS[0]]  # two contexts have the same description
    records = []
    for i, text in enumerate(texts):
        for number in range(i + 1):  # some have fewer questions than a step asks
            records.append(Record(f"context {i}", text, f"question {number}", "yes", "train"))
    steps = draw(records, descriptions=2, questions=3, seed=0)
    again, other = [draw(records, descriptions=2, questions=3, seed=seed) for seed in (0, 1)]
    asked = set()
    orders = set()
    for _ in range(8):  # each three steps have all six descriptions
        turns = list(islice(steps, 3))
        assert turns == list(islice(again, 3)) != list(islice(other, 3))
        drawn = [records[i] for turn in turns for i in turn]
        counts = Counter(record.context for record in drawn)
        assert counts == {f"context {i}": min(3, 1 + i) for i in range(6)} and len(set(drawn)) == len(drawn)
        assert [len({records[i].context for i in turn}) for turn in turns] == [2, 2, 2]
        asked.update(drawn)
        orders.add(tuple(counts))
    assert asked == set(records) and len(orders) > 1  # in the long run every question, in changing order
