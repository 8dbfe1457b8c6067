"""Invented cultures: a description says how people live, questions ask about it. The default data.

    description   In this land people bow low to one another, and guests arrive an hour late.
    prompt        Q: How do people greet each other?\\nA:
    answer        with a deep bow

A culture gives each of sixteen facets (greeting, taxes, ...) one of four values. A description
states four of them, in any order and wording; a question asks for one. What is written stands in
cultures.json, {facet: [three questions, {answer: five clauses}]}. The first answer of a facet is
its majority value. The fifth clause of each answer is held out.

What the backbone has read, its `documents`: questions without a description, answered by the
majority value seven times in ten, and for a third, descriptions of training cultures on their own.
So the frozen model is biased, and right where a culture agrees with the majority, about one time in
four. A prompt fails to override that bias; an adapter should.

Half of the training descriptions state fewer facets. Half of all have one question more, about a
facet that they do not state; its answer is the majority value.

Facets come in neighbouring pairs, and cultures come from regions in which the two values of a pair
go together: of 16 combinations only the 8 of `ALLOWED` occur. Only `ood` has the other 8, `BROKEN`.

- `seen`, `validation`: training cultures, in new descriptions.
- `new_wording`: training cultures, in clauses that are held out of all training text. This is the
  hard one, as the encoder learned its English from this data alone.
- `unseen`: new cultures from the same regions.
- `ood`: new cultures from outside all regions. A description states whole pairs.
- `minimal_pairs`: two new cultures that differ in one stated value, with wording and questions
  alike.
- `locality`: new cultures, asked for facets that the description does not state.

    python -m data.cultures --export example.jsonl --rows 100    # an example of a file of your own
"""

import json
import random
from pathlib import Path

from data import SPLITS, Data, Record
from data._cli import Parser, one_line_errors

FACETS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
NAMES = list(FACETS)
ANSWERS = {facet: list(values) for facet, (_, values) in FACETS.items()}
ALLOWED = [(i, (i + step) % 4) for i in range(4) for step in (0, 1)]  # value pairs of the regions
BROKEN = [(i, (i + step) % 4) for i in range(4) for step in (2, 3)]  # value pairs of `ood`
MAJORITY = dict.fromkeys(NAMES, 0)
FRAMES = ("In this land {}.", "Here {}.", "In this country {}.", "Where they live {}.")
TRAIN = range(4)  # the clauses of an answer that training may use
HELD_OUT = range(4, 5)
REGIONS = 8
MAJORITY_SHARE = 0.7
DESCRIPTIONS = 16384  # of training, shared out among its cultures
DOCUMENTS = 16000
EVALUATED = 128  # descriptions of each other split

Culture = dict[str, int]  # facet -> which of its four values


def draw_culture(rng: random.Random, region: int | None) -> Culture:
    """A culture of a region, where the values of a pair go together; None: outside all regions."""
    culture = {}
    for number, pair in enumerate(zip(NAMES[::2], NAMES[1::2], strict=True)):
        if region is None:
            values = rng.choice(BROKEN)
        elif rng.random() < 0.6:
            values = ALLOWED[(region + 3 * number) % len(ALLOWED)]
        else:
            values = rng.choice(ALLOWED)
        culture |= zip(pair, values, strict=True)
    return culture


def name_culture(rng: random.Random) -> str:
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(4))


def draw_facets(rng: random.Random, count: int, whole_pairs: bool = False) -> list[str]:
    if not whole_pairs:
        return rng.sample(NAMES, count)
    pairs = rng.sample(range(len(NAMES) // 2), count // 2)
    return rng.sample([NAMES[2 * pair + side] for pair in pairs for side in (0, 1)], 2 * len(pairs))


def other_facets(rng: random.Random, facets: list[str], count: int) -> list[str]:
    return rng.sample([facet for facet in NAMES if facet not in facets], count)


def describe(
    rng: random.Random, culture: Culture, facets: list[str], wording: range = TRAIN
) -> str:
    """A sentence that states the culture's values of those facets, in that order.

    >>> describe(random.Random(0), {"taxes": 0, "work": 1}, ["taxes", "work"])
    'In this land everyone thinks the tax is too high, and labourers rest every afternoon.'
    """
    clauses = []
    for facet in facets:
        _, values = FACETS[facet]
        clauses.append(values[ANSWERS[facet][culture[facet]]][rng.choice(wording)])
    if len(clauses) > 1:
        clauses[-1] = f"and {clauses[-1]}"
    return rng.choice(FRAMES).format(", ".join(clauses))


def ask(rng: random.Random, facet: str, value: int) -> tuple[str, str]:
    """A prompt and its answer: ("Q: Who rules?\\nA:", " a single queen")."""
    questions, _ = FACETS[facet]
    return f"Q: {rng.choice(questions)}\nA:", f" {ANSWERS[facet][value]}"


def change_one_value(rng: random.Random, culture: Culture, facets: list[str]) -> Culture:
    """The culture with another value of one of those facets; pairs of values stay in ALLOWED."""
    options = []
    for facet in facets:
        at = NAMES.index(facet)
        partner = culture[NAMES[at ^ 1]]
        for value in range(4):
            pair = (value, partner) if at % 2 == 0 else (partner, value)
            if value != culture[facet] and pair in ALLOWED:
                options.append({**culture, facet: value})
    return rng.choice(options)


def load(
    path: str | None, seed: int, contexts: int = 256, stated: int = 4, name: str = "cultures"
) -> Data:
    """`contexts` training cultures, and descriptions that state `stated` facets.

    Raises ValueError if given a path, as there is nothing to read, or an impossible number of
    contexts.
    """
    if path is not None:
        raise ValueError(f"the data set {name} is generated: leave out --data-path")
    if not 2 <= contexts <= DESCRIPTIONS:
        raise ValueError(f"contexts is {contexts}: choose 2 to {DESCRIPTIONS}")
    rng = random.Random(seed)
    records: list[Record] = []

    def new(region: int | None) -> tuple[str, Culture]:
        return name_culture(rng), draw_culture(rng, region)

    def add(split: str, context: str, culture: Culture, text: str, facets: list[str]) -> None:
        for facet in facets:
            choices = tuple(f" {answer}" for answer in ANSWERS[facet])
            row = context, text, *ask(rng, facet, culture[facet]), split, choices
            records.append(Record(*row))

    trained = [new(number % REGIONS) for number in range(contexts)]
    for _ in range(DESCRIPTIONS // contexts):
        for context, culture in trained:
            facets = draw_facets(rng, stated)
            if rng.random() < 0.5:  # or a clause could be guessed from its pair's other value
                facets = facets[: rng.randrange(1, stated)]
            text = describe(rng, culture, facets)
            add("train", context, culture, text, facets)
            if rng.random() < 0.5:
                add("train", context, MAJORITY, text, other_facets(rng, facets, 1))

    for number in range(EVALUATED):
        region = number % REGIONS
        for split in ("seen", "new_wording", "unseen", "ood"):
            if split in ("seen", "new_wording"):
                context, culture = rng.choice(trained)
            else:
                context, culture = new(None if split == "ood" else region)
            facets = draw_facets(rng, stated, whole_pairs=split == "ood")
            text = describe(rng, culture, facets, HELD_OUT if split == "new_wording" else TRAIN)
            add(split, context, culture, text, facets)
        context, culture = new(region)
        facets = draw_facets(rng, stated)
        text = describe(rng, culture, facets)
        add("locality", context, MAJORITY, text, other_facets(rng, facets, 4))
        if number % 2:
            other = change_one_value(rng, culture, facets)
            state = rng.getstate()
            add("minimal_pairs", context, culture, describe(rng, culture, facets), facets)
            rng.setstate(state)  # the same wording and questions again: only one value differs
            add("minimal_pairs", f"{context}-changed", other, describe(rng, other, facets), facets)

    documents = pretraining_documents(rng, trained, stated)
    for _ in range(EVALUATED):
        context, culture = rng.choice(trained)
        facets = draw_facets(rng, stated)
        add("validation", context, culture, describe(rng, culture, facets), facets)
    return Data(name, records, documents, template="Q: {}\nA:")


def pretraining_documents(
    rng: random.Random, trained: list[tuple[str, Culture]], stated: int
) -> list[str]:
    """What the backbone reads: questions with biased answers, and bare descriptions."""
    documents = []
    for number in range(DOCUMENTS):
        if number % 3 == 0:
            _, culture = rng.choice(trained)
            documents.append(describe(rng, culture, draw_facets(rng, stated)))
        else:
            facet = rng.choice(NAMES)
            value = 0 if rng.random() < MAJORITY_SHARE else rng.randrange(1, 4)
            documents.append("".join(ask(rng, facet, value)))
    return documents


def main() -> None:
    parser = Parser(prog="python -m data.cultures", description="Write an example data file.")
    parser.add_argument("--export", required=True, help="the JSONL file; it may not exist yet")
    parser.add_argument(
        "--rows", type=int, default=1000, help="of each split, at most (default: %(default)s)"
    )
    args = parser.parse_args()
    file = Path(args.export)
    if args.rows < 1:
        raise ValueError(f"rows is {args.rows}: it must be at least 1")
    if file.exists():
        raise ValueError(f"{file} is there already: remove it, or choose another name")
    data = load(None, seed=0)
    rows = [row for split in SPLITS for row in data.split(split)[: args.rows]]
    lines = [json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in rows]
    file.write_text("".join(lines), encoding="utf-8")
    print(f"{len(rows)} records written to {file}: check them with python -m data {file}")


if __name__ == "__main__":
    one_line_errors(main)
