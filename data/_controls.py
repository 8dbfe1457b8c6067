"""What a method is evaluated on: which splits, and other descriptions in place of the right one."""

import random
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, product
from operator import ne

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

    Taken from a row with the same prompt or, if there is none (free text), from any other row. The
    time grows with the rows, not with their square. Raises ValueError if there is no such row.
    """

    def parts(record: Record) -> tuple[str, str, str]:  # a rival differs in each
        return record.context, record.answer, record.description

    def keys(prompt: str | None, record: Record) -> list[tuple]:
        return [(prompt, *key) for key in product(*((part, None) for part in parts(record)))]

    def count_rivals(prompt: str | None, record: Record) -> int:  # by inclusion and exclusion
        return sum((-1) ** sum(map(bool, key[1:])) * count[key] for key in keys(prompt, record))

    def first_rival(record: Record, tries: Iterable[Record]) -> Record | None:
        return next((r for r in tries if all(map(ne, parts(r), parts(record)))), None)

    rows, count, found, chosen = defaultdict(list), Counter(), defaultdict(list), []
    for record in records:
        for prompt in (record.prompt, None):  # None: any
            rows[prompt].append(record)
            count.update(keys(prompt, record))
    for record in records:
        prompt = record.prompt if count_rivals(record.prompt, record) else None
        if not count_rivals(prompt, record):
            what = f"the split {record.split!r} has no context but {record.context!r}"
            raise ValueError(f"{what} that answers otherwise: add one to swap")
        draws = (rng.choice(rows[prompt]) for _ in range(16))
        rival = first_rival(record, chain(draws, found[prompt]))
        if rival is None:  # twenty times at most for a prompt: then `found` serves every row
            rival = first_rival(record, rows[prompt])
            found[prompt].append(rival)
        chosen.append(rival.description)
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


def check(data: Data, settings, ids: Callable, preset, in_prompt: bool) -> None:
    """Raise ValueError for data in which nothing tells contexts apart, or a text that is too long.

    `settings` and `preset` are train.py's, and `ids` gives those of texts; `in_prompt` says whether
    the backbone also reads descriptions.
    """
    if len({record.context for record in data.split("train")}) < 2:
        raise ValueError(f"{data.name} trains on one context only: add another to tell it from")
    others = other_descriptions(
        data.split(evaluated_splits(data, settings.validate)[1]), settings.seed
    )
    texts = {*others["random"], *(row.description for row in data.records)}
    longest = max(map(len, ids(texts, "description", preset.encoder.block_size)))
    room = preset.backbone.block_size - 1 - (longest + 1 if in_prompt else 0)
    prompts, answers = zip(*{(row.prompt, row.answer) for row in data.records}, strict=True)
    for prompt, *parts in zip(prompts, ids(prompts, "prompt"), ids(answers, "answer"), strict=True):
        length = sum(map(len, parts))
        if length > room:
            what = f"the prompt {prompt[:40]!r} … and its answer are {length} tokens long"
            raise ValueError(f"{what}, of at most {room}: shorten them")
