"""Invented cultures: a description says how people live, questions ask about it. The default data.

    description   In this land people bow low to one another, and guests arrive an hour late.
    prompt        Q: How do people greet each other?\\nA:
    answer        with a deep bow

A culture gives each of sixteen facets (greeting, taxes, ...) one of four values. A description
states up to four of them, in any order; a question asks for one. The phrases stand in
cultures.json, {facet: [three questions, {answer: five clauses}]}. The first answer of a facet is
its majority value. The fifth clause of each answer is held out of training.

Half of the descriptions of training state only one to three facets, so that each clause is also
read on its own. Half of all training descriptions are asked one question more, about a facet that
they do not state; its answer is the majority value.

The backbone reads the `documents`. Two thirds of them are questions without a description, which
are answered by the majority value seven times in ten; one third are descriptions of training
cultures on their own. So the frozen model answers with the majority's value, whatever is described,
which is right for one culture in four. A prompt fails to override that bias; an adapter should.

Neighbouring facets form pairs, and cultures come from regions in which the two values of a pair go
together: of 16 combinations only the 8 of `ALLOWED` occur. Only `ood` has the other 8, `BROKEN`.

- `seen`, `validation`: training cultures, in new descriptions.
- `new_wording`: training cultures, in held-out clauses. This split is the hard one, as the encoder
  learned its English from this data alone.
- `unseen`: new cultures from the same regions.
- `ood`: new cultures from outside all regions. A description states whole pairs.
- `minimal_pairs`: two new cultures that differ in one stated value, in the same words.
- `locality`: new cultures, asked for facets that the description does not state.

    python -m data.cultures example.jsonl    # writes an example of a file of your own
"""

import argparse
import json
from pathlib import Path
from random import Random

from data import SPLITS, Data, Record

FACETS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
NAMES = list(FACETS)
if len(NAMES) % 2:
    raise ValueError(f"cultures.json has {len(NAMES)} facets, but they come in pairs: add one more")
PAIRS = list(zip(NAMES[::2], NAMES[1::2], strict=True))
ANSWERS = {facet: list(clauses) for facet, (_, clauses) in FACETS.items()}
ALLOWED = [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (3, 0)]  # the regions' values
BROKEN = [(0, 2), (0, 3), (1, 3), (1, 0), (2, 0), (2, 1), (3, 1), (3, 2)]  # the values of `ood`
MAJORITY = dict.fromkeys(NAMES, 0)
FRAMES = ("In this land {}.", "Here {}.", "In this country {}.", "Where they live {}.")
TRAIN = range(4)  # the clauses of an answer that training may use
HELD_OUT = range(4, 5)
REGIONS = 8
REGION_SHARE = 0.6  # how often a pair has its region's own values; else it has any of ALLOWED
MAJORITY_SHARE = 0.7
DESCRIPTIONS = 16384  # of training, shared out among its cultures
DOCUMENTS = 16000
EVALUATED = 128  # descriptions of each other split

Culture = dict[str, int]  # facet -> which of its four values
Named = list[tuple[str, Culture]]  # training cultures with their names


def draw_culture(rng: Random, region: int | None) -> Culture:
    """A culture of a region, where the values of a pair go together; None: outside all regions."""
    culture = {}
    for number, (first, second) in enumerate(PAIRS):
        if region is None:
            values = rng.choice(BROKEN)
        elif rng.random() < REGION_SHARE:
            # the pairs of a region take different entries: steps of 3 reach all 8 before any twice
            values = ALLOWED[(region + 3 * number) % len(ALLOWED)]
        else:
            values = rng.choice(ALLOWED)
        culture[first] = values[0]
        culture[second] = values[1]
    return culture


def new_culture(rng: Random, region: int | None) -> tuple[str, Culture]:
    """A culture with an invented name: ("velmora", {"greeting": 0, ...})."""
    syllables = [rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(4)]
    return "".join(syllables), draw_culture(rng, region)


def change_one_value(rng: Random, culture: Culture, facets: list[str]) -> Culture:
    """The culture with another value of one of those facets; pairs of values stay in ALLOWED."""
    options = []
    for facet in facets:
        first, second = PAIRS[NAMES.index(facet) // 2]
        for value in range(4):
            changed = {**culture, facet: value}
            values = (changed[first], changed[second])
            if changed != culture and values in ALLOWED:
                options.append(changed)
    return rng.choice(options)


def describe(rng: Random, culture: Culture, facets: list[str], wording: range = TRAIN) -> str:
    """A sentence that states the culture's values of those facets, in that order.

    >>> describe(Random(0), {"taxes": 0, "work": 1}, ["taxes", "work"])
    'In this land everyone thinks the tax is too high, and labourers rest every afternoon.'
    """
    said = []
    for facet in facets:
        _, clauses = FACETS[facet]
        answer = ANSWERS[facet][culture[facet]]
        said.append(clauses[answer][rng.choice(wording)])
    if len(said) > 1:
        said[-1] = f"and {said[-1]}"
    frame = rng.choice(FRAMES)
    return frame.format(", ".join(said))


def ask(rng: Random, facet: str, value: int) -> tuple[str, str]:
    """A prompt and its answer: ("Q: Who rules?\\nA:", " a single queen")."""
    questions, _ = FACETS[facet]
    question = rng.choice(questions)
    return f"Q: {question}\nA:", f" {ANSWERS[facet][value]}"


def ask_each(
    rng: Random, split: str, context: str, culture: Culture, text: str, facets: list[str]
) -> list[Record]:
    """A record for each of those facets; `text` is the description."""
    records = []
    for facet in facets:
        prompt, answer = ask(rng, facet, culture[facet])
        choices = tuple(f" {choice}" for choice in ANSWERS[facet])
        records.append(Record(context, text, prompt, answer, split, choices))
    return records


def load(
    path: str | None, seed: int, contexts: int = 256, stated: int = 4, name: str = "cultures"
) -> Data:
    """`contexts` training cultures, and descriptions that state `stated` facets.

    hard_cultures.py is the same with other numbers, under another `name`. Raises ValueError if
    given a path, or an impossible number of contexts.
    """
    if path is not None:
        raise ValueError(f"the data set {name} is generated: leave out --data-path")
    if not 2 <= contexts <= DESCRIPTIONS:
        raise ValueError(f"contexts is {contexts}: choose 2 to {DESCRIPTIONS}")
    rng = Random(seed)
    trained = [new_culture(rng, number % REGIONS) for number in range(contexts)]
    records = training_records(rng, trained, stated)
    records += evaluation_records(rng, trained, stated)
    documents = pretraining_documents(rng, trained, stated)
    for _ in range(EVALUATED):  # drawn last, so that the other splits do not depend on it
        context, culture = rng.choice(trained)
        facets = rng.sample(NAMES, stated)
        text = describe(rng, culture, facets)
        records += ask_each(rng, "validation", context, culture, text, facets)
    return Data(name, records, documents, template="Q: {}\nA:")


def training_records(rng: Random, trained: Named, stated: int) -> list[Record]:
    records = []
    for _ in range(DESCRIPTIONS // len(trained)):
        for context, culture in trained:
            facets = rng.sample(NAMES, stated)
            if rng.random() < 0.5:
                facets = facets[: rng.randrange(1, stated)]
            text = describe(rng, culture, facets)
            records += ask_each(rng, "train", context, culture, text, facets)
            if rng.random() < 0.5:
                unstated = [facet for facet in NAMES if facet not in facets]
                asked = rng.sample(unstated, 1)
                records += ask_each(rng, "train", context, MAJORITY, text, asked)
    return records


def evaluation_records(rng: Random, trained: Named, stated: int) -> list[Record]:
    records = []
    for number in range(EVALUATED):
        region = number % REGIONS
        for split in ("seen", "new_wording", "unseen", "ood"):
            if split in ("seen", "new_wording"):
                context, culture = rng.choice(trained)
            else:
                context, culture = new_culture(rng, None if split == "ood" else region)
            if split == "ood":  # whole pairs, or their combination would not be stated
                facets = [facet for pair in rng.sample(PAIRS, stated // 2) for facet in pair]
                facets = rng.sample(facets, len(facets))
            else:
                facets = rng.sample(NAMES, stated)
            wording = HELD_OUT if split == "new_wording" else TRAIN
            text = describe(rng, culture, facets, wording)
            records += ask_each(rng, split, context, culture, text, facets)
        context, culture = new_culture(rng, region)
        facets = rng.sample(NAMES, stated)
        text = describe(rng, culture, facets)
        unstated = [facet for facet in NAMES if facet not in facets]
        asked = rng.sample(unstated, 4)
        # the right answer to what is left open is the majority's
        records += ask_each(rng, "locality", context, MAJORITY, text, asked)
        if number % 2 == 0:
            continue  # minimal pairs have two descriptions each, so half as many are enough
        changed = change_one_value(rng, culture, facets)
        state = rng.getstate()
        for name, values in ((context, culture), (f"{context}-changed", changed)):
            rng.setstate(state)  # the same wording and questions again: only one value differs
            text = describe(rng, values, facets)
            records += ask_each(rng, "minimal_pairs", name, values, text, facets)
    return records


def pretraining_documents(rng: Random, trained: Named, stated: int) -> list[str]:
    """What the backbone reads: questions with biased answers, and bare descriptions."""
    documents = []
    for number in range(DOCUMENTS):
        if number % 3 == 0:
            _, culture = rng.choice(trained)
            facets = rng.sample(NAMES, stated)
            documents.append(describe(rng, culture, facets))
        else:
            facet = rng.choice(NAMES)
            value = 0 if rng.random() < MAJORITY_SHARE else rng.randrange(1, 4)
            prompt, answer = ask(rng, facet, value)
            documents.append(prompt + answer)
    return documents


def main() -> None:
    """Write some of the records to a JSONL file, in the form that `data.read_jsonl` reads."""
    parser = argparse.ArgumentParser("python -m data.cultures", description="Write an example.")
    parser.add_argument("file", help="the JSONL file to write; it may not exist yet")
    parser.add_argument("--rows", type=int, default=100, help="at most so many of each split")
    args = parser.parse_args()
    if args.rows < 10:  # one description has up to five rows, and a file needs two contexts
        parser.error(f"--rows is {args.rows}: give 10 or more")
    data = load(None, seed=0)
    try:
        with open(args.file, "x", encoding="utf-8") as file:  # x: no file is overwritten
            for split in SPLITS:
                for record in data.split(split)[: args.rows]:
                    file.write(json.dumps(record._asdict(), ensure_ascii=False) + "\n")
    except OSError as error:
        parser.error(f"cannot write this file ({error}): choose another name")
    print(f"{args.file} is written: python train.py --data {args.file}")


if __name__ == "__main__":
    main()
