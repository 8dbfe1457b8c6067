"""What a method is evaluated on: which splits, and other descriptions in place of the right one."""

import random
import string
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain

from data import SPLITS, Data, Record


def evaluated_splits(data: Data, validate: bool = False) -> tuple[list[str], str]:
    """The splits to evaluate, and that of the controls. Raises ValueError if there is none."""
    wanted = [s for s in SPLITS if s != "train" and (s == "validation") == validate]
    found = [split for split in wanted if data.split(split)]
    if not found:
        raise ValueError(f"{data.name} has no rows to evaluate: add some of {', '.join(wanted)}")
    return found, "unseen" if "unseen" in found else found[0]


def swapped(records: Sequence[Record], rng: random.Random) -> list[str]:
    """For each row the description of another context, one under which its answer is wrong.

    Taken from a row with the same prompt or, if there is none (free text), from any other row.
    """
    same_prompt, chosen = defaultdict(list), []
    for record in records:
        same_prompt[record.prompt].append(record)
    for record in records:
        pool = same_prompt[record.prompt]
        tries = (rng.choice(rows) for rows in (pool, records) for _ in range(64))  # usually enough
        for rival in chain(tries, pool, records):
            if (
                rival.context != record.context
                and rival.answer != record.answer
                and rival.description != record.description
            ):
                chosen.append(rival.description)
                break
        else:
            raise ValueError(
                f"the split {record.split!r} has one context only: add another to swap"
            )
    return chosen


def random_text(rng: random.Random) -> str:
    """Twelve words of random letters, a description that says nothing."""
    letters = string.ascii_lowercase
    return " ".join("".join(rng.choices(letters, k=rng.randint(2, 8))) for _ in range(12))


def other_descriptions(records: Sequence[Record], seed: int) -> dict[str, list[str | None]]:
    """The controls, a description for each row: another context's, random letters, and none."""
    rng = random.Random(seed)
    noise = [random_text(rng) for _ in records]
    return {"swapped": swapped(records, rng), "random": noise, "none": [None] * len(records)}


def check(
    data: Data, validate: bool, ids: Callable, encoder: int, backbone: int, in_prompt: bool
) -> None:
    """Raise ValueError for data in which nothing tells contexts apart, or a text that is too long.

    `ids` are those of texts, `encoder` and `backbone` how many each reads; `in_prompt` says whether
    the backbone also reads descriptions.
    """
    if len({record.context for record in data.split("train")}) < 2:
        raise ValueError(f"{data.name} trains on one context only: add another to tell it from")
    swapped(data.split(evaluated_splits(data, validate)[1]), random.Random(0))
    texts = [random_text(random.Random(0)), *{row.description for row in data.records}]
    longest = max(map(len, ids(texts, "description", encoder)))
    room = backbone - 1 - (longest + 1 if in_prompt else 0)
    prompts, answers = zip(*{(row.prompt, row.answer) for row in data.records}, strict=True)
    for prompt, *parts in zip(prompts, ids(prompts, "prompt"), ids(answers, "answer"), strict=True):
        length = sum(map(len, parts))
        if length > room:
            what = f"the prompt {prompt[:40]!r} … and its answer are {length} tokens long"
            raise ValueError(f"{what}, of at most {room}: shorten them")
