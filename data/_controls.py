"""What a method is evaluated on: which splits, and other descriptions in place of the right one."""

import random
import string
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain, product
from operator import ne

from data import SPLITS, Data, Record
from data._files import RANK


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


def fitting(data: Data, settings, base, in_prompt: bool) -> Data:
    """The data without rows that are too long for `base`, a zhyper.Zhyper; says on stderr how many.

    `settings` are train.py's; `in_prompt` says whether the backbone also reads descriptions. Raises
    ValueError for data in which nothing tells contexts apart, or a split that loses over a tenth.
    """
    if len({record.context for record in data.split("train")}) < 2:
        raise ValueError(f"{data.name} trains on one context only: add another to tell it from")

    def lengths(texts: Iterable[str], what: str) -> dict[str, int]:
        texts = list(dict.fromkeys(texts))
        return dict(zip(texts, map(len, base.ids(texts, what)), strict=True))

    rng, rows = random.Random(settings.seed), data.records
    described = lengths([row.description for row in rows], "description")
    most = base.encoder.config.block_size, base.backbone.config.block_size - 1
    read = {text for text, length in described.items() if length <= most[0]}
    told = [*(read if in_prompt else []), *(random_text(rng) for _ in range(100))]
    room = most[1] - (1 + max(lengths(told, "prompt").values()) if in_prompt else 0)
    prompts = lengths([row.prompt for row in rows], "prompt")
    answers = lengths(chain(*(row.candidates for row in rows)), "answer")

    def fits(row: Record) -> bool:
        longest = max(answers[answer] for answer in row.candidates)
        return row.description in read and prompts[row.prompt] + longest <= room

    kept = [row for row in rows if fits(row)]
    before, after = (Counter(row.split for row in some) for some in (rows, kept))
    lost = {split: n - after[split] for split, n in before.items() if n > after[split]}
    said = ", ".join(f"{n} of {before[split]} in {split}" for split, n in lost.items())
    if lost:
        said = f"rows too long (description over {most[0]} tokens, the rest over {room}): {said}"
    if any(10 * n > before[split] for split, n in lost.items()):
        raise ValueError(f"{said}: shorten them, or choose models that read more")
    if lost and not RANK:
        print(f"left out, {said}", file=sys.stderr)
    data = replace(data, records=kept)
    split = evaluated_splits(data, settings.validate)[1]
    others = other_descriptions(data.split(split), settings.seed)
    base.ids(others["random"], "description", most[0])  # only a check: these must fit too
    return data
