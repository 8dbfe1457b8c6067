"""How countries vote in the United Nations: a description says where a country stands.

    description   In the assembly it wants executions halted everywhere, and it has faith in open
                  markets.
    question      How does it vote on a new international economic order?
    answer        against

The votes are real: how each of 193 countries voted most often on 36 resolutions that recur in the
General Assembly, 2001 to 2019. The facts are Erik Voeten's (CC0), by way of the R package unvotes
(MIT). Table and texts stand in votes.json. A topic has three questions, and for each of its three
votes five clauses: what a country that votes so holds, in the words of its own side. With
`wording="verbs"` a verb beside a topic takes their place, as in "it rejected nuclear disarmament";
one averaged embedding hardly says which verb goes with which topic.

No text names a country. Where a resolution is about one, its capital or its landscape stands for
it, as in "the heights above Galilee". The region that is never trained is Europe. data/facts.py
makes the records.
"""

import json
from pathlib import Path
from random import Random

from data import Data
from data.facts import Table, Variable, make_data

TEXTS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
VOTES = {"y": "in favour", "a": "abstained", "n": "against"}  # as in the table of votes.json
FRAMES = ("In the assembly {}.", "At the United Nations {}.", "As a state {}.", "Year by year {}.")


def read_table(wording: str = "clauses") -> Table:
    """The votes of each country, without topics on which it never voted."""
    variables = {}
    for topic, texts in TEXTS["topics"].items():
        clauses = {vote: texts[vote] for vote in VOTES.values()}
        if wording == "verbs":
            for vote, verbs in TEXTS["verbs"].items():
                clauses[vote] = [f"it {verb} {texts['name']}" for verb in verbs]
        variables[topic] = Variable(texts["group"], texts["questions"], clauses)
    facts = {}
    continents = {}
    for country, (continent, letters) in TEXTS["countries"].items():
        continents[country] = continent
        votes = zip(TEXTS["topics"], letters, strict=True)  # a letter for each topic
        facts[country] = {topic: VOTES[letter] for topic, letter in votes if letter in VOTES}
    return Table(variables, facts, continents, FRAMES)


def load(seed: int, contexts: int | None = None, wording: str = "clauses") -> Data:
    """`contexts` training countries; None: all that are not held out.

    Raises ValueError for an impossible number of contexts or an unknown wording.
    """
    if wording not in ("clauses", "verbs"):
        raise ValueError(f"unknown wording {wording!r}: choose from clauses, verbs")
    table = read_table(wording)
    return make_data("votes", table, Random(seed), region="Europe", share=5, contexts=contexts)
