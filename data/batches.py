"""Batches: rows of token ids, and which records a training step reads."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data import Record


class Rows(NamedTuple):
    """Prompts, each with its answer and an end token behind it, filled up to the same length.

    They are filled up on the right. A causal model needs no mask for that: no token looks ahead.
    What is to be predicted in row i is ids[i, start[i]:end[i]], the answer and the end token.
    """

    ids: Tensor  # (b, t), filled up with 0
    start: Tensor  # (b,)
    end: Tensor  # (b,)
    # (b, t, d): what the lowest adapted layer reads, if it is computed already
    hidden_states: Tensor | None = None

    def take(self, index: Sequence[int]) -> "Rows":
        """The rows at `index`, cut to the length of the longest of them."""
        index = torch.tensor(index)
        end = self.end[index]
        longest = end.max()
        hidden_states = None
        if self.hidden_states is not None:
            hidden_states = self.hidden_states[index, :longest]
        return Rows(self.ids[index, :longest], self.start[index], end, hidden_states)


def pad(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of different lengths as one tensor (b, t), filled up on the right.

    >>> pad([[5, 6, 7], [8]])
    tensor([[5, 6, 7],
            [8, 0, 0]])
    """
    longest = max(len(row) for row in rows)
    array = np.zeros((len(rows), longest), dtype=np.int64)
    for i, row in enumerate(rows):
        array[i, : len(row)] = row
    return torch.from_numpy(array)


def join(pairs: Sequence[tuple[list[int], list[int]]], eos: int) -> Rows:
    """Rows of prompts and their answers, as token ids.

    >>> join([([5, 6], [7])], eos=1)
    Rows(ids=tensor([[5, 6, 7, 1]]), start=tensor([2]), end=tensor([4]), hidden_states=None)
    """
    rows = [prompt + answer + [eos] for prompt, answer in pairs]
    start = torch.tensor([len(prompt) for prompt, _ in pairs])
    end = torch.tensor([len(row) for row in rows])
    return Rows(pad(rows), start, end)


def answer_positions(rows: Rows) -> tuple[Tensor, Tensor]:
    """Where each row predicts its answer and its end: positions and mask, (b, p) each.

    The token at i is predicted at i - 1. The mask is false where an answer has less than p tokens.

    >>> rows = join([([5, 6], [7]), ([5, 6], [7, 8])], eos=1)  # ids 5 6 7 1 0 and 5 6 7 8 1
    >>> answer_positions(rows)
    (tensor([[1, 2, 3],
            [1, 2, 3]]), tensor([[ True,  True, False],
            [ True,  True,  True]]))
    """
    most = (rows.end - rows.start).max()
    positions = rows.start[:, None] - 1 + torch.arange(most)  # (b, p)
    mask = positions < rows.end[:, None] - 1
    # also where the mask is false, position + 1 must be in the row: at most t - 1
    return positions.clamp(max=rows.ids.shape[1] - 2), mask


def pack(
    texts: Sequence[Sequence[int]], eos: int, rows: int, tokens: int, seed: int
) -> Iterator[Rows]:
    """Batches for pretraining: full rows of random texts, one after the other.

    A row has one token more than `tokens`: the first is only read, the last only predicted.
    """
    rng = np.random.default_rng(seed)
    while True:
        ids = []
        for _ in range(rows):
            row = []
            while len(row) <= tokens:
                row += texts[rng.integers(len(texts))]
                row.append(eos)
            ids.append(row[: tokens + 1])
        yield Rows(torch.tensor(ids), torch.full([rows], 1), torch.full([rows], tokens + 1))


def draw(
    records: Sequence[Record], description_count: int, question_count: int, seed: int
) -> Iterator[list[int]]:
    """Which records each step reads, as indices.

    Each step has `description_count` descriptions, and `question_count` questions about each at
    most. Every description has its turn before one of them comes again.
    """
    rng = np.random.default_rng(seed)
    of_description = defaultdict(list)  # {(context, description): indices of its records}
    for i, record in enumerate(records):
        of_description[record.context, record.description].append(i)
    groups = list(of_description.values())
    waiting = []
    while True:
        drawn = []
        for _ in range(description_count):
            if not waiting:
                waiting = list(rng.permutation(len(groups)))
            group = groups[waiting.pop()]
            drawn += list(rng.permutation(group)[:question_count])
        yield drawn
