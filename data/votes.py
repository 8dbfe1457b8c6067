"""How countries vote in the United Nations: a description says where a country stands.

    description   In the assembly it wants executions halted everywhere, and it has faith in open
                  markets.
    prompt        Q: How does it vote on a new international economic order?\\nA:
    answer        against

The votes are real: how each of 193 countries voted most often on resolutions that recur in the
General Assembly, 2001 to 2019. The facts are Erik Voeten's (CC0), by way of the R package unvotes
(MIT). Texts and table stand in votes.json. A topic has three questions, and for each of its three
votes five clauses: what a country that votes so holds, in the words of its own side. The fifth is
held out. With `wording="verbs"` a verb beside a topic takes their place, as in "it rejected nuclear
disarmament"; one averaged embedding hardly says which verb goes with which topic.

No text names a country: where a resolution is about one, its capital or its landscape stands for
it, as in "the heights above Galilee".

Of the 37 resolutions that recurred most, 36 are here; "self-determination of peoples" is not, as
its title does not say what was voted on. Topics on one subject, as the nine on nuclear arms, are
near duplicates, and have the same `group`. Seven of the 108 votes, such as one against transparency
in armaments, are no country's usual vote, so no description states them. A topic on which a country
never voted is neither stated nor asked.

Two votes in three are in favour. So with even draws most of what a training description says could
be guessed from the question. Hence a training description starts from a topic and a vote, both
drawn evenly; then come a country that voted so and its other topics (`balanced`). Half of them
state fewer than four topics. Half of the training questions are about what is not stated, and the
answer is how the country did vote. All other splits draw countries and topics evenly.

The backbone's `documents` are questions without a description, answered as a random training
country would, and for a third, training descriptions on their own.

Europe is never trained, nor is a fifth of the other countries, a different one for each seed.

- `seen`, `validation`: training countries, in new descriptions.
- `new_wording`: training countries, in clauses that are held out of all training text.
- `unseen`: the fifth, asked what the description states. `ood`: the same for Europe.
- `inferred`: the fifth, asked for topics whose whole group is not stated. `inferred_ood`: Europe.
- `minimal_pairs`: two of the fifth that agree on three stated topics and differ in the fourth.
"""

import json
from collections import Counter
from pathlib import Path
from random import Random

from data import Data, Record

TEXTS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
TOPICS = TEXTS["topics"]
VOTES = {"y": "in favour", "a": "abstained", "n": "against"}  # as in the table of votes.json
CHOICES = (" in favour", " abstained", " against")
FRAMES = ("In the assembly {}.", "At the United Nations {}.", "As a state {}.", "Year by year {}.")
TRAIN = range(4)  # the clauses of a vote that training may use
HELD_OUT = range(4, 5)
STATED = 4  # topics of a description
DESCRIPTIONS = 16384  # of training
DOCUMENTS = 16000
EVALUATED = 128  # descriptions of each other split

Votes = dict[str, str]  # topic -> in favour, abstained or against
Table = dict[str, Votes]  # country -> its votes
Evaluated = list[tuple[Record, Votes]]  # records, each with the votes that its description states


def read_table() -> tuple[Table, dict[str, str]]:
    """The votes of each country, without topics on which it never voted; and its continent."""
    table = {}
    continents = {}
    for country, (continent, letters) in TEXTS["countries"].items():
        continents[country] = continent
        table[country] = {}
        for topic, letter in zip(TOPICS, letters, strict=True):
            if letter in VOTES:
                table[country][topic] = VOTES[letter]
    return table, continents


def describe(
    rng: Random, votes: Votes, topics: list[str], wording: str, numbers: range = TRAIN
) -> str:
    """A sentence that states the votes on those topics, in that order.

    >>> describe(Random(3), {"space": "in favour"}, ["space"], "clauses")
    'At the United Nations it wants outer space free of arms.'
    """
    parts = []
    for topic in topics:
        vote = votes[topic]
        number = rng.choice(numbers)
        clause = TOPICS[topic][vote][number]
        if wording == "verbs":
            verb = TEXTS["verbs"][vote][number]
            name = TOPICS[topic]["name"]
            clause = f"it {verb} {name}"
        parts.append(clause)
    if len(parts) > 1:
        parts[-1] = f"and {parts[-1]}"
    frame = rng.choice(FRAMES)
    return frame.format(", ".join(parts))


def ask(rng: Random, topic: str) -> str:
    question = rng.choice(TOPICS[topic]["questions"])
    return f"Q: {question}\nA:"


# ---- what is stated, and what is asked


def open_topics(votes: Votes, stated: list[str]) -> list[str]:
    """The topics that share no group with a stated one, so nothing says them in other words."""
    groups = {TOPICS[topic]["group"] for topic in stated}
    return [topic for topic in votes if TOPICS[topic]["group"] not in groups]


def draw_even(rng: Random, table: Table) -> tuple[str, list[str]]:
    """A country and the topics to state."""
    country = rng.choice(list(table))
    return country, rng.sample(list(table[country]), STATED)


def draw_balanced(rng: Random, table: Table) -> tuple[str, list[str]]:
    """The same, but the first topic and the vote on it are drawn before the country."""
    first = rng.choice(list(TOPICS))
    voters = {vote: [] for vote in VOTES.values()}
    for country, votes in table.items():
        if first in votes:
            voters[votes[first]].append(country)
    vote = rng.choice([vote for vote in voters if voters[vote]])
    country = rng.choice(voters[vote])
    others = [topic for topic in table[country] if topic != first]
    return country, [first] + rng.sample(others, STATED - 1)


def draw_pair(rng: Random, table: Table) -> tuple[str, str, list[str]]:
    """Two countries, and topics on all of which they agree but one."""
    while True:
        one, other = rng.sample(list(table), 2)
        agree = []
        differ = []
        for topic, vote in table[one].items():
            if table[other].get(topic) == vote:
                agree.append(topic)
            elif topic in table[other]:
                differ.append(topic)
        if differ and len(agree) >= STATED - 1:
            topics = [rng.choice(differ)] + rng.sample(agree, STATED - 1)
            return one, other, rng.sample(topics, STATED)


# ---- guesses that train nothing


def majority(table: Table, topic: str) -> str:
    """The vote of most countries of the table on the topic; of equals, the first of VOTES."""
    counts = Counter(votes.get(topic) for votes in table.values())
    return max(VOTES.values(), key=counts.__getitem__)


def neighbours(table: Table, continents: dict[str, str], country: str) -> Table:
    """The other countries of its continent."""
    found = {}
    for name, votes in table.items():
        if continents[name] == continents[country] and name != country:
            found[name] = votes
    return found


def naive_bayes(table: Table, stated: Votes, topic: str) -> str:
    """The vote with the highest p(vote) · Π p(stated vote | vote).

    Each p is a share of the table's countries, with one added to every count.
    """
    scores = {}
    for vote in VOTES.values():
        alike = [votes for votes in table.values() if votes.get(topic) == vote]
        score = len(alike) + 1
        for stated_topic, stated_vote in stated.items():
            count = sum(votes.get(stated_topic) == stated_vote for votes in alike)
            score *= (count + 1) / (len(alike) + 3)
        scores[vote] = score
    return max(scores, key=scores.get)


def guess_all(
    evaluated: Evaluated, trained: Table, europe: Table, continents: dict[str, str]
) -> dict[str, dict[Record, str]]:
    """Three guesses for each record: {"majority": {record: " in favour"}, ...}."""
    topics = {}
    for topic, texts in TOPICS.items():
        for question in texts["questions"]:
            topics[f"Q: {question}\nA:"] = topic
    references = {"majority": {}, "continent": {}, "naive bayes": {}}
    for record, stated in evaluated:
        topic = topics[record.prompt]
        # no method trains on Europe, so this guess knows more: how the rest of Europe voted
        known = europe if record.context in europe else trained
        nearby = neighbours(known, continents, record.context)
        references["majority"][record] = f" {majority(trained, topic)}"
        references["continent"][record] = f" {majority(nearby, topic)}"
        references["naive bayes"][record] = f" {naive_bayes(trained, stated, topic)}"
    return references


# ---- the data set


def load(
    path: str | None,
    seed: int,
    contexts: int | None = None,
    wording: str = "clauses",
    balanced: bool = True,
) -> Data:
    """`contexts` training countries; if None, all that are not held out.

    Raises ValueError if given a path, an impossible number of contexts or an unknown wording.
    """
    if path is not None:
        raise ValueError("the data set votes is part of the project: leave out --data-path")
    if wording not in ("clauses", "verbs"):
        raise ValueError(f"unknown wording {wording!r}: choose from clauses, verbs")
    rng = Random(seed)
    table, continents = read_table()
    outside = [country for country in table if continents[country] != "Europe"]
    rng.shuffle(outside)
    fifth = len(outside) // 5
    most = len(outside) - fifth
    if contexts is None:
        contexts = most
    if not 10 <= contexts <= most:  # up to nine never voted on a topic
        raise ValueError(f"contexts is {contexts}: choose 10 to {most}")
    unseen = {country: table[country] for country in outside[:fifth]}
    trained = {country: table[country] for country in outside[fifth : fifth + contexts]}
    europe = {country: table[country] for country in table if country not in outside}

    records = training_records(rng, trained, wording, balanced)
    texts = list(dict.fromkeys(record.description for record in records))
    documents = pretraining_documents(rng, trained, texts)
    evaluated = evaluation_records(rng, trained, unseen, europe, wording, set(texts))
    evaluated += minimal_pairs(rng, unseen, wording)
    references = guess_all(evaluated, trained, europe, continents)
    records += [record for record, _ in evaluated]
    return Data("votes", records, documents, template="Q: {}\nA:", references=references)


def ask_each(
    rng: Random, split: str, country: str, votes: Votes, text: str, topics: list[str]
) -> list[Record]:
    """A record for each of those topics; `text` is the description."""
    records = []
    for topic in topics:
        prompt = ask(rng, topic)
        answer = f" {votes[topic]}"
        records.append(Record(country, text, prompt, answer, split, CHOICES))
    return records


def training_records(rng: Random, table: Table, wording: str, balanced: bool) -> list[Record]:
    """As many questions about what a description states as about what it does not."""
    records = []
    draw = draw_balanced if balanced else draw_even
    for _ in range(DESCRIPTIONS):
        country, topics = draw(rng, table)
        if rng.random() < 0.5:
            topics = topics[: rng.randrange(1, STATED)]
        rng.shuffle(topics)
        votes = table[country]
        text = describe(rng, votes, topics, wording)
        unstated = [topic for topic in votes if topic not in topics]
        asked = topics + rng.sample(unstated, len(topics))
        records += ask_each(rng, "train", country, votes, text, asked)
    return records


def evaluation_records(
    rng: Random, trained: Table, unseen: Table, europe: Table, wording: str, known: set[str]
) -> Evaluated:
    """All splits but minimal_pairs; no description is one of the known texts."""
    evaluated = []
    tables = {"validation": trained, "seen": trained, "new_wording": trained}
    tables |= {"unseen": unseen, "ood": europe, "inferred": unseen, "inferred_ood": europe}
    for split, table in tables.items():
        numbers = HELD_OUT if split == "new_wording" else TRAIN
        for _ in range(EVALUATED):
            country, topics = draw_even(rng, table)
            votes = table[country]
            text = describe(rng, votes, topics, wording, numbers)
            if text in known:
                continue
            asked = topics
            if split.startswith("inferred"):
                asked = rng.sample(open_topics(votes, topics), STATED)
            stated = {topic: votes[topic] for topic in topics}
            for record in ask_each(rng, split, country, votes, text, asked):
                evaluated.append((record, stated))
    return evaluated


def minimal_pairs(rng: Random, table: Table, wording: str) -> Evaluated:
    """Real countries, described alike but for one vote."""
    evaluated = []
    for _ in range(EVALUATED // 2):
        one, other, topics = draw_pair(rng, table)
        state = rng.getstate()
        for country in (one, other):
            rng.setstate(state)  # the same wording and questions again: only one vote differs
            votes = table[country]
            text = describe(rng, votes, topics, wording)
            stated = {topic: votes[topic] for topic in topics}
            for record in ask_each(rng, "minimal_pairs", country, votes, text, topics):
                evaluated.append((record, stated))
    return evaluated


def pretraining_documents(rng: Random, table: Table, texts: list[str]) -> list[str]:
    """What the backbone reads: questions with a random country's answer, and bare descriptions."""
    documents = []
    for number in range(DOCUMENTS):
        if number % 3 == 0:
            documents.append(rng.choice(texts))
        else:
            votes = rng.choice(list(table.values()))
            topic = rng.choice(list(votes))
            documents.append(f"{ask(rng, topic)} {votes[topic]}")
    return documents
