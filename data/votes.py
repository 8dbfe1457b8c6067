"""How countries vote in the United Nations: a description says where a country stands.

    description   In the assembly it wants executions halted everywhere, and it has faith in open
                  markets.
    question      How does it vote on a new international economic order?
    answer        against

The votes are real: how each of 193 countries voted most often on 36 resolutions that recur in the
General Assembly, 2001 to 2019. The facts are Erik Voeten's (CC0), by way of the R package unvotes
(MIT). Table and texts stand in votes.json. A topic has three questions. A vote on it is stated in
one of two forms, mixed in every description:

- *plain*: a clause that says where the country stands, as "it wants an end to the noose". They were
  written by people who saw the titles of the resolutions alone; so were the "own_words", by others,
  which no training ever sees.
- *verbs*: one of five verbs for the vote beside the topic, as in "it rejected nuclear disarmament".
  The fifth verb is held out.

No text names a country but where a resolution is about one; then its capital or its landscape
stands for it, as in "the heights above Galilee". The region that is never trained is Europe.
data/facts.py makes the records.
"""

import json
from pathlib import Path
from random import Random

from data import Data
from data.facts import Table, Variable, make_data

TEXTS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
VOTES = {"y": "in favour", "a": "abstained", "n": "against"}  # as in the table of votes.json
FRAMES = ("In the assembly {}.", "At the United Nations {}.", "As a state {}.", "Year by year {}.")


def read_table(wording: str = "mixed") -> Table:
    """The votes of each country, without topics on which it never voted."""
    variables = {}
    for topic, texts in TEXTS["topics"].items():
        answers = {}
        for vote, plain in texts["statements"].items():
            verbs = [f"it {verb} {texts['name']}" for verb in TEXTS["verbs"][vote]]
            clauses = {"trained": verbs[:-1], "held_out": verbs[-1:]}
            if wording == "mixed":
                clauses = {name: clauses[name] + plain[name] for name in clauses}
            answers[vote] = plain if wording == "plain" else plain | clauses
        variables[topic] = Variable(texts["group"], texts["questions"], answers)
    facts = {}
    continents = {}
    for country, (continent, letters) in TEXTS["countries"].items():
        continents[country] = continent
        votes = zip(TEXTS["topics"], letters, strict=True)  # a letter for each topic
        facts[country] = {topic: VOTES[letter] for topic, letter in votes if letter in VOTES}
    return Table(variables, facts, continents, FRAMES)


def load(seed: int, contexts: int | None = None, wording: str = "mixed") -> Data:
    """`contexts` training countries; None: all that are not held out.

    Raises ValueError for an impossible number of contexts or an unknown wording.
    """
    if wording not in ("mixed", "plain", "verbs"):
        raise ValueError(f"unknown wording {wording!r}: choose from mixed, plain, verbs")
    table = read_table(wording)
    own = {"own_words": True, "contexts": contexts}
    return make_data("votes", table, Random(seed), region="Europe", share=5, **own)
