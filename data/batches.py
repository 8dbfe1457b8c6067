"""Batches: which records a training step reads, and rows of token ids as arrays.

Arrays are numpy's; the networks turn them into tensors on their own device.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from data import Record

NO_TARGET = -100  # marks a place where nothing is to be predicted (torch's own convention)


class Rows(NamedTuple):
    """Texts as arrays of token ids, each filled up to the same length.

    They are filled up on the right. A causal model needs no mask for that: no token looks ahead.
    """

    ids: np.ndarray  # (b, t), filled up with 0
    targets: np.ndarray  # (b, t), the id to be predicted after each of ids, or NO_TARGET
    # (b, t, d): what the lowest adapted layer reads, if it is kept (with_states in zhyper.py)
    states: Tensor | None = None

    def take(self, index: Sequence[int]) -> "Rows":
        """The rows at `index`, cut to the length of the longest of them."""
        ids = self.ids[index]
        targets = self.targets[index]
        # A row ends with its last target. Its ids do not tell, since 0 may also be a token's id.
        predicted = (targets != NO_TARGET).any(axis=0)
        longest = np.flatnonzero(predicted)[-1] + 1
        states = None
        if self.states is not None:
            states = self.states[index, :longest]
        return Rows(ids[:, :longest], targets[:, :longest], states)


def pad(rows: Sequence[Sequence[int]], fill: int = 0, left: bool = False) -> np.ndarray:
    """Rows of different lengths as one array (b, t), filled up on the right or on the left.

    >>> pad([[5, 6, 7], [8]])
    array([[5, 6, 7],
           [8, 0, 0]])
    """
    longest = max(len(row) for row in rows)
    array = np.full((len(rows), longest), fill)
    for i, row in enumerate(rows):
        start = longest - len(row) if left else 0
        array[i, start : start + len(row)] = row
    return array


def join_pairs(pairs: Sequence[tuple[list[int], list[int]]], eos: int) -> Rows:
    """Prompts with their answers behind them; what is predicted is the answer, and then EOS.

    >>> join_pairs([([5, 6], [7])], eos=1)
    Rows(ids=array([[5, 6, 7]]), targets=array([[-100,    7,    1]]), states=None)
    """
    ids = []
    targets = []
    for prompt, answer in pairs:
        ids.append(prompt + answer)
        # only the last token of the prompt predicts something: the first token of the answer
        nothing = [NO_TARGET] * (len(prompt) - 1)
        targets.append(nothing + answer + [eos])
    return Rows(pad(ids), pad(targets, NO_TARGET))


def draw(
    records: Sequence[Record], descriptions: int, questions: int, rng: np.random.Generator
) -> Iterator[list[int]]:
    """Which records each step reads: at most `questions` for each of so many `descriptions`.

    Every description has its turn before one of them comes again.
    """
    groups = defaultdict(list)
    for i, record in enumerate(records):
        groups[record.context, record.description].append(i)
    groups = list(groups.values())
    waiting = []
    while True:
        drawn = []
        for _ in range(descriptions):
            if not waiting:
                waiting = list(rng.permutation(len(groups)))
            group = groups[waiting.pop()]
            drawn += list(rng.permutation(group)[:questions])
        yield drawn
