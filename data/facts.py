"""Data sets that are made of a table of facts: votes.py and atlas.py.

A *context* is a country or a society. Of each the table knows the answers to some *variables*: a
resolution or a custom, of which questions ask and which clauses state. A description states four of
them. Whoever reads it well answers what it states; what it does not state can be inferred at best.

A description of training begins with a fact, a variable and an answer, drawn evenly of all that
occur; then comes a context of which it is true, and three more of its variables. If contexts were
drawn first, most of what is stated would be usual, and could be guessed from the question. Half of
these descriptions state fewer than four. They are asked what they state, and as much that they do
not state. All other splits draw contexts and variables evenly.

One region is never trained, nor is a share of all other contexts, a different one for each seed.

- `seen`, `validation`: training contexts, in new descriptions.
- `new_wording`: training contexts, in clauses that are held out.
- `unseen`: the share, asked what the description states. `ood`: the same for the region.
- `own_words`, `own_words_four`: the share, in one or four clauses of other people, who never saw
  those of training; where the table has such clauses.
- `inferred`, `inferred_ood`: the same contexts, asked what is not stated. Variables of one group
  nearly imply each other, so no group is stated and asked.
- `minimal_pairs`: two contexts of the share that agree on three stated variables and differ in one.

The backbone reads the `documents`: questions without a description, answered as a random training
context would, and, for a third, training descriptions on their own.
"""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple

from data import Data, Record

STATED = 4  # variables of a description
DESCRIPTIONS = 16384  # of training
DOCUMENTS = 16000
EVALUATED = 128  # descriptions of each other split

Facts = dict[str, str]  # {variable: the answer of one context}


class Variable(NamedTuple):
    """What is asked of a context, and in which words."""

    group: str  # variables of one group nearly imply each other
    questions: list[str]
    # {answer: {"trained", "held_out" or "own_words": clauses that state it}}
    answers: dict[str, dict[str, list[str]]]


@dataclass(frozen=True)
class Table:
    """All that is known of all contexts."""

    variables: dict[str, Variable]
    facts: dict[str, Facts]  # of each context
    regions: dict[str, str]  # of each context
    frames: tuple[str, ...]  # sentences with a gap: "In the assembly {}."

    def select(self, contexts: list[str]) -> "Table":
        """The table of those contexts alone."""
        return replace(self, facts={context: self.facts[context] for context in contexts})


# ---- texts


def describe(
    rng: Random, table: Table, context: str, stated: list[str], wording: str = "trained"
) -> str:
    """A sentence that states the context's answers to those variables, in that order."""
    said = []
    for variable in stated:
        answer = table.facts[context][variable]
        clauses = table.variables[variable].answers[answer]
        # not rng.choice, which uses up more random numbers for a longer list: see cultures.py
        number = int(rng.random() * len(clauses[wording]))
        said.append(clauses[wording][number])
    if len(said) > 1:
        said[-1] = f"and {said[-1]}"
    frame = rng.choice(table.frames)
    return frame.format(", ".join(said))


def ask(rng: Random, table: Table, context: str, asked: list[str], **about: str) -> list[Record]:
    """A record for each of those variables; `about` are its description and split."""
    records = []
    for name in asked:
        variable = table.variables[name]
        question = rng.choice(variable.questions)
        answer = table.facts[context][name]
        choices = tuple(variable.answers)
        records.append(Record(context, question=question, answer=answer, choices=choices, **about))
    return records


# ---- what is stated, and what is asked


def draw_others(rng: Random, table: Table, context: str, stated: list[str]) -> list[str]:
    """As many variables as are stated, or all there are, of groups that are not stated."""
    groups = {table.variables[variable].group for variable in stated}
    others = [name for name in table.facts[context] if table.variables[name].group not in groups]
    return rng.sample(others, min(len(stated), len(others)))


def draw_pair(rng: Random, table: Table) -> tuple[str, str, list[str]]:
    """Two contexts, and variables on which they agree but for one, on which they differ."""
    while True:
        one, other = rng.sample(list(table.facts), 2)
        agree = []
        differ = []
        for variable, answer in table.facts[one].items():
            if table.facts[other].get(variable) == answer:
                agree.append(variable)
            elif variable in table.facts[other]:
                differ.append(variable)
        if differ and len(agree) >= STATED - 1:
            stated = [rng.choice(differ), *rng.sample(agree, STATED - 1)]
            return one, other, rng.sample(stated, STATED)


# ---- the data set


def make_data(
    name: str,
    table: Table,
    rng: Random,
    region: str,
    share: int,
    contexts: int | None = None,
    own_words: bool = False,
) -> Data:
    """Records of all splits: a `share`-th of the contexts outside `region` is unseen.

    Of the others so many `contexts` are trained; None: all. Raises ValueError if it is impossible.
    """
    inside = [context for context in table.facts if table.regions[context] == region]
    outside = [context for context in table.facts if table.regions[context] != region]
    rng.shuffle(outside)
    count = len(outside) // share
    most = len(outside) - count
    if contexts is None:
        contexts = most
    if not 10 <= contexts <= most:
        raise ValueError(f"contexts is {contexts}: choose 10 to {most}")
    unseen = table.select(outside[:count])
    trained = table.select(outside[count : count + contexts])
    tables = {"validation": trained, "seen": trained, "new_wording": trained}
    tables |= {"unseen": unseen, "ood": table.select(inside)}
    tables |= {"inferred": unseen, "inferred_ood": table.select(inside)}
    if own_words:
        tables |= {"own_words": unseen, "own_words_four": unseen}

    records = training_records(rng, trained)
    documents = pretraining_documents(rng, trained, records)
    stated_of = {}  # {record: the facts that its description states}
    for split, evaluated in tables.items():
        stated_of |= evaluation_records(rng, evaluated, split)
    stated_of |= minimal_pairs(rng, unseen)
    guesses = guess_all(table, trained, inside, stated_of)
    return Data(name, records + list(stated_of), documents, guesses)


def training_records(rng: Random, table: Table) -> list[Record]:
    """As many questions about what a description states as about what it does not."""
    holders = defaultdict(lambda: defaultdict(list))  # {variable: {answer: contexts}}
    for context, facts in table.facts.items():
        for variable, answer in facts.items():
            holders[variable][answer].append(context)
    records = []
    for _ in range(DESCRIPTIONS):
        variable = rng.choice(list(holders))
        answer = rng.choice(list(holders[variable]))
        context = rng.choice(holders[variable][answer])
        others = [other for other in table.facts[context] if other != variable]
        stated = [variable, *rng.sample(others, STATED - 1)]
        if rng.random() < 0.5:
            stated = stated[: rng.randrange(1, STATED)]
        rng.shuffle(stated)
        text = describe(rng, table, context, stated)
        asked = stated + draw_others(rng, table, context, stated)
        records += ask(rng, table, context, asked, description=text, split="train")
    return records


def evaluation_records(rng: Random, table: Table, split: str) -> dict[Record, Facts]:
    """The records of a split, each with the facts that its description states."""
    stated_of = {}
    wordings = {"new_wording": "held_out", "own_words": "own_words", "own_words_four": "own_words"}
    for _ in range(EVALUATED):
        context = rng.choice(list(table.facts))
        facts = table.facts[context]
        stated = rng.sample(list(facts), 1 if split == "own_words" else STATED)
        text = describe(rng, table, context, stated, wordings.get(split, "trained"))
        asked = stated
        if split.startswith("inferred"):
            asked = draw_others(rng, table, context, stated)
        for record in ask(rng, table, context, asked, description=text, split=split):
            stated_of[record] = {variable: facts[variable] for variable in stated}
    return stated_of


def minimal_pairs(rng: Random, table: Table) -> dict[Record, Facts]:
    """The same of real contexts that are described alike but for one clause."""
    stated_of = {}
    for _ in range(EVALUATED // 2):
        one, other, stated = draw_pair(rng, table)
        state = rng.getstate()
        for context in (one, other):
            rng.setstate(state)  # the same wording and questions again: only one clause differs
            text = describe(rng, table, context, stated)
            about = {"description": text, "split": "minimal_pairs"}
            for record in ask(rng, table, context, stated, **about):
                stated_of[record] = {
                    variable: table.facts[context][variable] for variable in stated
                }
    return stated_of


def pretraining_documents(rng: Random, table: Table, records: list[Record]) -> list[str]:
    """What the backbone reads: questions without a description, and training descriptions."""
    texts = list(dict.fromkeys(record.description for record in records))
    documents = []
    for number in range(DOCUMENTS):
        if number % 3 == 0:
            documents.append(rng.choice(texts))
        else:
            context = rng.choice(list(table.facts))
            variable = rng.choice(list(table.facts[context]))
            (record,) = ask(rng, table, context, [variable], description="", split="train")
            documents.append(record.document)
    return documents


# ---- guesses that train nothing


def guess_all(
    table: Table, trained: Table, inside: list[str], stated_of: dict[Record, Facts]
) -> dict[str, dict[Record, str]]:
    """Three guesses for each record: {"majority": {record: answer}, ...}.

    They know the trained contexts. Of the region that is never trained `region` knows more than any
    method: what the others there answer.
    """
    variable_of = {}  # {question: variable}
    for name, variable in table.variables.items():
        variable_of |= dict.fromkeys(variable.questions, name)
    pairs = count_pairs(trained)
    usual = {variable: majority(trained, variable) for variable in table.variables}
    neighbours = {}  # {context: the table of the others of its region}
    guesses = {"majority": {}, "region": {}, "naive bayes": {}}
    for record, stated in stated_of.items():
        context = record.context
        variable = variable_of[record.question]
        if context not in neighbours:
            known = table if context in inside else trained
            region = table.regions[context]
            others = [other for other in known.facts if table.regions[other] == region]
            neighbours[context] = known.select([other for other in others if other != context])
        guesses["majority"][record] = usual[variable]
        guesses["region"][record] = majority(neighbours[context], variable)
        guesses["naive bayes"][record] = naive_bayes(table, pairs, stated, variable)
    return guesses


def majority(table: Table, variable: str) -> str:
    """The answer that most contexts of the table have; "" if none of them has one."""
    answers = [facts[variable] for facts in table.facts.values() if variable in facts]
    return max(answers, key=Counter(answers).get, default="")


def count_pairs(table: Table) -> Counter:
    """How many contexts have two answers: {(variable, answer, variable, answer): number}."""
    pairs = Counter()
    for facts in table.facts.values():
        for one in facts.items():
            for other in facts.items():
                pairs[one + other] += 1
    return pairs


def naive_bayes(table: Table, pairs: Counter, stated: Facts, variable: str) -> str:
    """The likeliest answer, given the stated ones as if each were independent of the others.

    p(answer) · Π p(stated answer | answer), in contexts where both are known, smoothed by one.
    """
    scores = {}
    for answer in table.variables[variable].answers:
        score = math.log(pairs[variable, answer, variable, answer] + 1)
        for other, stated_answer in stated.items():
            choices = table.variables[other].answers
            counts = [pairs[variable, answer, other, choice] for choice in choices]
            together = pairs[variable, answer, other, stated_answer]
            score += math.log((together + 1) / (sum(counts) + len(counts)))
        scores[answer] = score
    return max(scores, key=scores.get)
