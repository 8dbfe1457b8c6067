"""Invented cultures: a description says how people live, questions ask about it. The default data.

    description   In this land people bow low to one another, and guests arrive an hour late.
    question      How do people greet each other?
    answer        with a deep bow

A culture gives each of sixteen facets (greeting, taxes, ...) one of four values. A description
states up to four of them, in any order; a question asks for one. The phrases stand in
cultures.json: three questions for each facet, and for each of its answers the clauses that state
it,

    {facet: {"questions": [...], "answers": {answer: {"trained": [...], "held_out": [...], ...}}}}

The first answer of a facet is its majority value. Most clauses of "trained" were written by people
who saw the questions and the answers alone. The two clauses of "own_words" were written in the same
way by other people, and training never sees them.

Neighbouring facets form pairs, as greeting and time, and their values go together. Of the 16
combinations of values only the 8 of `ALLOWED` occur in training, as a deep bow with guests who are
on time or an hour late. Only `ood` has the other 8, `BROKEN`.

A culture comes from one of eight regions. For each pair of facets a region has a favourite among
`ALLOWED`, which most of its cultures have.

Half of the training descriptions state fewer facets, so that each clause is also read on its own.
Independently of that, half of them are asked one more question, about a facet that they do not
state; its answer is the majority value.

The backbone reads the `documents`. Two thirds of them are questions without a description, which
are answered by the majority value seven times in ten; one third are descriptions of training
cultures. So the frozen model answers with the majority's value, whatever is described, which is
right for one culture in four. A prompt fails to override that bias; an adapter should.

- `seen`, `validation`: training cultures, in new descriptions.
- `new_wording`: training cultures, in a clause of each answer that is held out.
- `unseen`: new cultures from the same regions.
- `own_words`, `own_words_four`: the same, in one statement or four of those other people. These
  splits are the hard ones, as a small encoder learned its English from this data alone.
- `ood`: new cultures from outside all regions. A description states whole pairs.
- `minimal_pairs`: two new cultures that differ in one stated value, in the same words.
- `locality`: new cultures, asked for facets that the description does not state.
"""

import json
from pathlib import Path
from random import Random

from data import Data, Record

FACETS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
NAMES = list(FACETS)
PAIRS = list(zip(NAMES[::2], NAMES[1::2], strict=True))  # [("greeting", "time"), ...]
PAIR_OF = {facet: pair for pair in PAIRS for facet in pair}
ANSWERS = {facet: list(texts["answers"]) for facet, texts in FACETS.items()}
# The combinations of a pair, in training and in `ood`. In both each value of a facet stands twice,
# so that a single value does not tell from which list it is.
ALLOWED = [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (3, 0)]
BROKEN = [(0, 2), (0, 3), (1, 3), (1, 0), (2, 0), (2, 1), (3, 1), (3, 2)]
MAJORITY = dict.fromkeys(NAMES, 0)
FRAMES = ("In this land {}.", "Here {}.", "In this country {}.", "Where they live {}.")
REGIONS = 8
REGION_SHARE = 0.6  # how often a pair has its region's favourite; else it has any of ALLOWED
MAJORITY_SHARE = 0.7
DESCRIPTIONS = 16384  # of training, shared out among its cultures
DOCUMENTS = 16000
EVALUATED = 128  # descriptions of each other split

Culture = dict[str, int]  # {facet: which of its four values}


def draw_culture(rng: Random, region: int | None) -> tuple[str, Culture]:
    """A culture with an invented name: ("velmora", {"greeting": 0, ...}).

    It is of a region, where the values of a pair go together; None: from outside all regions.
    """
    syllables = [rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(4)]
    culture = {}
    for number, (first, second) in enumerate(PAIRS):
        if region is None:
            values = rng.choice(BROKEN)
        elif rng.random() < REGION_SHARE:
            # the favourite: no two regions, and no two pairs of a region, have the same, as 3 and 8
            # have no common divisor
            values = ALLOWED[(region + 3 * number) % len(ALLOWED)]
        else:
            values = rng.choice(ALLOWED)
        culture[first] = values[0]
        culture[second] = values[1]
    return "".join(syllables), culture


def change_one_value(rng: Random, culture: Culture, facets: list[str]) -> Culture:
    """The culture with another value of one of those facets; pairs of values stay in ALLOWED.

    As {"greeting": 0, "time": 0, ...} with "time" changed to 1.
    """
    options = []
    for facet in facets:
        first, second = PAIR_OF[facet]
        for value in range(4):
            changed = {**culture, facet: value}
            if changed != culture and (changed[first], changed[second]) in ALLOWED:
                options.append(changed)
    return rng.choice(options)


def describe(rng: Random, culture: Culture, facets: list[str], wording: str = "trained") -> str:
    """A sentence that states the culture's values of those facets, in that order.

    >>> describe(Random(0), {"work": 1}, ["work"])
    'Where they live labour stops for good when the noon bell rings.'
    """
    stated = []
    for facet in facets:
        answer = ANSWERS[facet][culture[facet]]
        clauses = FACETS[facet]["answers"][answer]
        # Not rng.choice: how often it draws depends on the length of the list. The texts of a
        # minimal pair begin with the same state of rng (see `evaluation_records`), and must differ
        # in one clause alone.
        number = int(rng.random() * len(clauses[wording]))
        stated.append(clauses[wording][number])
    if len(stated) > 1:
        stated[-1] = f"and {stated[-1]}"
    frame = rng.choice(FRAMES)
    return frame.format(", ".join(stated))


def ask(rng: Random, facet: str, culture: Culture, **about: str) -> Record:
    """A record that asks for a facet; `about` are its context, description and split."""
    questions = FACETS[facet]["questions"]
    answers = ANSWERS[facet]
    answer = answers[culture[facet]]
    return Record(question=rng.choice(questions), answer=answer, choices=tuple(answers), **about)


def load(seed: int, contexts: int = 256, stated: int = 4) -> Data:
    """`contexts` training cultures, and descriptions that state `stated` facets.

    Raises ValueError for an impossible number of them.
    """
    if not 2 <= contexts <= DESCRIPTIONS:
        raise ValueError(f"contexts is {contexts}: choose 2 to {DESCRIPTIONS}")
    if not 2 <= stated <= 12:  # four facets must be left for `locality`
        raise ValueError(f"stated is {stated}: choose 2 to 12")
    rng = Random(seed)
    trained = [draw_culture(rng, number % REGIONS) for number in range(contexts)]
    records = training_records(rng, trained, stated)
    for number in range(EVALUATED):
        records += evaluation_records(rng, trained, stated, region=number % REGIONS)
    return Data("cultures", records, pretraining_documents(rng, trained, stated))


def training_records(rng: Random, trained: list, stated: int) -> list[Record]:
    records = []
    for number in range(DESCRIPTIONS):
        context, culture = trained[number % len(trained)]
        facets = rng.sample(NAMES, stated)
        if rng.random() < 0.5:
            facets = facets[: rng.randrange(1, stated)]
        text = describe(rng, culture, facets)
        about = {"context": context, "description": text, "split": "train"}
        records += [ask(rng, facet, culture, **about) for facet in facets]
        if rng.random() < 0.5:
            left_open = [facet for facet in NAMES if facet not in facets]
            records.append(ask(rng, rng.choice(left_open), MAJORITY, **about))
    return records


def evaluation_records(rng: Random, trained: list, stated: int, region: int) -> list[Record]:
    """The records of one description of every split; of `minimal_pairs` they are of two.

    split                        culture                states              is asked
    validation, seen: alike      a training culture     `stated` facets     what is stated
    new_wording                  a training culture     ... held-out        what is stated
    unseen                       a new one              `stated` facets     what is stated
    own_words, own_words_four    a new one              one facet, four     what is stated
    ood                          one of no region       whole pairs         what is stated
    locality                     a new one              `stated` facets     what is left open
    """
    records = []
    wordings = {"new_wording": "held_out", "own_words": "own_words", "own_words_four": "own_words"}
    for split in ("validation", "seen", "unseen", "ood", "locality", *wordings):
        facets = rng.sample(NAMES, stated)
        if split in ("validation", "seen", "new_wording"):
            context, culture = rng.choice(trained)
        elif split == "ood":
            context, culture = draw_culture(rng, None)
            pairs = rng.sample(PAIRS, stated // 2)  # both facets of a pair are stated
            facets = [facet for pair in pairs for facet in pair]
            rng.shuffle(facets)
        else:
            context, culture = draw_culture(rng, region)
        if split == "own_words":
            facets = facets[:1]
        if split == "own_words_four":
            facets = facets[:4]
        text = describe(rng, culture, facets, wordings.get(split, "trained"))
        about = {"context": context, "description": text}
        if split == "locality":  # what is left open has the majority's answer
            left_open = [facet for facet in NAMES if facet not in facets]
            facets = rng.sample(left_open, 4)
            culture = MAJORITY
        records += [ask(rng, facet, culture, split=split, **about) for facet in facets]

    name, culture = draw_culture(rng, region)
    facets = rng.sample(NAMES, stated)
    changed = change_one_value(rng, culture, facets)
    state = rng.getstate()  # so that both get the same wording and questions: one value differs
    for context, values in ((name, culture), (f"{name}-changed", changed)):
        rng.setstate(state)
        about = {"context": context, "description": describe(rng, values, facets)}
        records += [ask(rng, facet, values, split="minimal_pairs", **about) for facet in facets]
    return records


def pretraining_documents(rng: Random, trained: list, stated: int) -> list[str]:
    """What the backbone reads: questions with biased answers, and bare descriptions."""
    documents = []
    for number in range(DOCUMENTS):
        if number % 3 == 0:
            _, culture = rng.choice(trained)
            documents.append(describe(rng, culture, rng.sample(NAMES, stated)))
        else:
            facet = rng.choice(NAMES)
            value = 0 if rng.random() < MAJORITY_SHARE else rng.randrange(1, 4)
            # of this record only question and answer are used
            record = ask(rng, facet, {facet: value}, context="", description="", split="train")
            documents.append(record.document)
    return documents
