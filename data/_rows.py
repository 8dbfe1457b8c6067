"""Rows of a data set for step after step, and rows of token ids made into tensors."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from data import Record

Row = tuple[list[int], list[list[int]]]  # the ids of a prompt, and of one answer or several to it


def batches(records: Sequence[Record], n: int, questions: int, seed: int) -> Iterator[list[Record]]:
    """Rows for step after step: up to `questions` for each of n descriptions, all in turn."""
    rng, groups, order = random.Random(seed), defaultdict(list), []
    for record in records:
        groups[record.context, record.description].append(record)
    while True:
        rows = []
        for _ in range(n):
            if not order:
                order = rng.sample(list(groups), len(groups))
            group = groups[order.pop()]
            rows += rng.sample(group, min(questions, len(group)))
        yield rows


def pad(rows: Sequence[Sequence[int]], left: bool = False) -> tuple[Tensor, Tensor]:
    """Two tensors (b, t): the ids, filled up with 0, and a mask that is true where there is one."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        at = slice(ids.shape[1] - len(row), None) if left else slice(len(row))
        ids[i, at], mask[i, at] = torch.tensor(row), True
    return ids, mask


def by_length(lengths: Sequence[int], size: int, call: Callable[[list[int]], Tensor]) -> Tensor:
    """Call `call` with the indices of `size` rows at a time; return what it makes of all, in order.

    Rows of like length go together, so little is spent on padding, and few, to fit a CPU's cache.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    parts = [call(order[at : at + size]) for at in range(0, len(order), size)]
    original = torch.tensor(order, device=parts[0].device).argsort()  # the inverse permutation
    return torch.cat(parts)[original]


def length(row: Row) -> int:
    """How many ids `pack` makes of it."""
    prompt, answers = row
    return len(prompt) + sum(map(len, answers))


def pack(rows: Sequence[Row], eos: int, longest: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each prompt with its answers behind it, each of which goes on from the prompt: read at once.

    Returns ids (b, t); their positions (b, t); segments (b, t), 0 in the prompt and 1, 2, ... in
    the answers; and what is to be predicted, EOS too, (n, 4): in which row, from where in it, of
    which segment, which token. Raises ValueError for an answer that ends at a position > `longest`.
    """
    packed, targets = ([], [], []), []
    for i, (prompt, answers) in enumerate(rows):
        size = len(prompt)
        ids, position, segment = [*prompt], [*range(size)], [0] * size
        for k, answer in enumerate(answers, start=1):
            if size + len(answer) > longest:
                what = f"a prompt and its answer are {size + len(answer)} tokens long"
                raise ValueError(f"{what}, the backbone reads {longest}: shorten them")
            at = [size - 1, *range(len(ids), len(ids) + len(answer))]
            targets += [(i, j, k, token) for j, token in zip(at, [*answer, eos], strict=True)]
            ids += answer
            position += range(size, size + len(answer))
            segment += [k] * len(answer)
        for several, one in zip(packed, (ids, position, segment), strict=True):
            several.append(one)
    return *(pad(several)[0] for several in packed), torch.tensor(targets)


def sees(segment: Tensor) -> Tensor:
    """Which tokens each token of packed rows looks at, (b, 1, t, t): its prompt and its answer."""
    look, at = segment[:, None, :, None], segment[:, None, None]
    return ((at == 0) | (at == look)).tril()


def of_first(scored: Sequence[Tensor], answers: Sequence[Sequence[str]]) -> list[Tensor]:
    """Of results for several answers to each row, those of its first, the right one; (b,) each.

    `scored` are losses, tokens and what else there is. The last of what is returned is 1 where no
    other answer has a lower loss per token, else 0.
    """
    counts = [*map(len, answers)]
    per_token = (scored[0] / scored[1]).split(counts)
    first = torch.tensor(counts).cumsum(0) - torch.tensor(counts)
    chosen = torch.tensor([float(loss[0] <= loss.min()) for loss in per_token])
    return [*(x[first] for x in scored), chosen]
