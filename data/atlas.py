"""How societies live: the Ethnographic Atlas. A description states customs, questions ask for them.

    description   Among them all houses were round, and flocks of sheep grazed near the houses.
    prompt        Q: What animals were kept?\\nA:
    answer        sheep or goats

The data are real: George P. Murdock's Ethnographic Atlas (1962-1971) as D-PLACE published it, with
codes for the customs of 1,292 societies. It is ethnography of the middle of the twentieth century,
often of times before it, so all texts are in the past tense: they say what an observer coded, not
how anybody lives today. No text names a society.

The table is downloaded once, to out/atlas/, at a fixed commit; `--data-path FOLDER` takes it from
a folder of yours. Its licence contradicts itself: LICENSE.txt says CC BY 4.0, .zenodo.json says
CC BY-NC 4.0. So this project has no copy of it. Cite Murdock 1967, "Ethnographic Atlas: A Summary",
and Kirby et al. 2016, "D-PLACE" (PLOS ONE 11: e0158391).

atlas.json holds only phrases: for 20 variables (v6 is the atlas' EA006) a group, questions, the
answer that each code stands for, and six clauses for each answer. Codes that a lay reader cannot
tell apart share an answer. Codes of fewer than 4 % of the societies have none, nor has mixed
descent: such a variable counts as unknown. The sixth clause is held out of training.

A context is a society with at least ten known variables. The Pacific and a sixth of all other
societies are never trained. A description states four variables.

- `train`: half of the descriptions state fewer. Rare answers are stated more often; see `RARITY`.
  Half of the questions are about what is not stated, and the answer is what the atlas has.
- `seen`, `validation`: training societies, in new descriptions.
- `new_wording`: training societies, in held-out clauses.
- `unseen`: the sixth, asked what is stated. `ood`: the same for the Pacific.
- `inferred`, `inferred_ood`: the same societies, asked what is not stated. Variables of one group,
  as descent and the inheritance of land, nearly imply each other: no group is stated and asked.
- `minimal_pairs`: two of the sixth that agree in three stated variables and differ in the fourth.
"""

import hashlib
import json
import math
import random
import sys
from collections import Counter
from pathlib import Path

from data import Data, Record, download

NAME = "EA_DATA_6Nov2015.csv"
COMMIT = "8cd4c30dd910945f76baf1c79f756995064c3d0b"
ADDRESS = f"https://raw.githubusercontent.com/D-PLACE/dplace-data/{COMMIT}/csv/{NAME}"
SHA256 = "4eadb4a7bdfaa10343e768cc36c43b75c6514cfc7fffab5c041f636dfc3da725"
LICENCE = "The atlas has two licences: LICENSE.txt says CC BY 4.0, .zenodo.json says CC BY-NC 4.0"

VARIABLES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
FRAMES = ("Among them {}.", "In this society {}.", "In those days {}.", "At that time {}.")
PACIFIC = "I"
KNOWN = 10  # variables that a context has at least
STATED = 4  # variables of a description
TRAIN = slice(0, 5)  # the clauses of an answer that training may use
HELD_OUT = slice(5, 6)
DESCRIPTIONS = 16384  # of training, shared out among its societies
DOCUMENTS = 16000
EVALUATED = 128  # descriptions of each other split

# Training states a variable the more often, the rarer the society's answer to it is: with the
# weight n ** -RARITY, where n training societies have that answer. A common answer can be guessed
# from the question, a rare one must be read. All other splits draw evenly, as training does at 0.
RARITY = 0.5

Society = dict[str, str]  # variable -> answer, for the variables that are known
Table = dict[str, Society]  # the atlas' id of a society -> what is known of it


# ---- the table


def find_file(path: str | None) -> Path:
    """The atlas' file in that folder, or in out/atlas, where it is downloaded once."""
    if path is None:
        file = Path("out", "atlas", NAME)
        is_new = not file.exists()
        download(ADDRESS, file, SHA256)
        if is_new:
            print(LICENCE, file=sys.stderr)
    else:
        file = Path(path, NAME)
    if not file.is_file():
        raise FileNotFoundError(f"no {NAME} in {path}: fetch {ADDRESS} by hand, and put it there")
    return file


def read_table(file: Path) -> Table:
    """The societies with enough known variables. Raises ValueError if the file is another one."""
    content = file.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise ValueError(f"{file} is another version, sha256 {found}: fetch {ADDRESS} in its place")
    lines = content.decode().splitlines()
    columns = lines[0].split(",")
    table = {}
    for line in lines[1:]:
        codes = dict(zip(columns, line.split(","), strict=True))
        society = {}
        for variable, phrases in VARIABLES.items():
            code = codes[variable]
            if code in phrases["codes"]:
                society[variable] = phrases["codes"][code]
        if len(society) >= KNOWN:
            table[codes["soc_id"]] = society
    return table


def region(name: str) -> str:
    """A (Africa), C (Circum-Mediterranean), E (East Eurasia), I (Pacific), N, S (the Americas)."""
    return name[0].upper()  # the ids of societies that were added later are in small letters


# ---- texts


def answers(variable: str) -> list[str]:
    return list(VARIABLES[variable]["clauses"])


def describe(rng: random.Random, society: Society, stated: list[str], wording: slice) -> str:
    """A sentence that states the society's answers to those variables, in that order.

    >>> describe(random.Random(0), {"v40": "cattle", "v79": "round"}, ["v40", "v79"], HELD_OUT)
    'Among them families kept cattle such as cows, and a circular house was round as a ring.'
    """
    clauses = []
    for variable in stated:
        phrases = VARIABLES[variable]["clauses"][society[variable]]
        clauses.append(rng.choice(phrases[wording]))
    if len(clauses) > 1:
        clauses[-1] = f"and {clauses[-1]}"
    frame = rng.choice(FRAMES)
    return frame.format(", ".join(clauses))


def ask(rng: random.Random, variable: str) -> str:
    question = rng.choice(VARIABLES[variable]["questions"])
    return f"Q: {question}\nA:"


def draw_rare(rng: random.Random, society: Society, counts: Counter) -> list[str]:
    """Variables to state, the rarer the society's answer the sooner; see RARITY."""
    left = list(society)
    drawn = []
    while len(drawn) < STATED:
        weights = [counts[variable, society[variable]] ** -RARITY for variable in left]
        variable = rng.choices(left, weights)[0]
        left.remove(variable)
        drawn.append(variable)
    return drawn


def draw_others(rng: random.Random, society: Society, stated: list[str]) -> list[str]:
    """As many variables as are stated, or all there are, of groups that are not stated."""
    groups = {VARIABLES[variable]["group"] for variable in stated}
    others = [variable for variable in society if VARIABLES[variable]["group"] not in groups]
    return rng.sample(others, min(len(stated), len(others)))


def draw_pair(rng: random.Random, table: Table) -> tuple[str, str, list[str]]:
    """Two societies, and variables in which they agree but for one, in which they differ."""
    while True:
        one, other = rng.sample(list(table), 2)
        both = [variable for variable in table[one] if variable in table[other]]
        agree = [variable for variable in both if table[one][variable] == table[other][variable]]
        differ = [variable for variable in both if variable not in agree]
        if differ and len(agree) >= STATED - 1:
            stated = [rng.choice(differ), *rng.sample(agree, STATED - 1)]
            rng.shuffle(stated)
            return one, other, stated


# ---- guesses that train nothing


def majority(table: Table, variable: str) -> str:
    """The answer that most societies of the table have."""
    counts = Counter(society[variable] for society in table.values() if variable in society)
    return counts.most_common(1)[0][0]


def neighbours(table: Table, name: str) -> Table:
    """The other societies of the region."""
    found = {}
    for other, society in table.items():
        if region(other) == region(name) and other != name:
            found[other] = society
    return found


def count_pairs(table: Table) -> Counter:
    """How many societies have two answers: {(variable, answer, variable, answer): number}."""
    pairs = Counter()
    for society in table.values():
        for one in society.items():
            for other in society.items():
                pairs[one + other] += 1
    return pairs


def naive_bayes(pairs: Counter, stated: Society, variable: str) -> str:
    """The likeliest answer, given the stated ones as if each were independent of the others.

    p(answer) · Π p(stated answer | answer), in societies where both are known, smoothed by one.
    """
    scores = {}
    for answer in answers(variable):
        score = math.log(pairs[variable, answer, variable, answer] + 1)
        for other, stated_answer in stated.items():
            counts = [pairs[variable, answer, other, choice] for choice in answers(other)]
            together = pairs[variable, answer, other, stated_answer]
            score += math.log((together + 1) / (sum(counts) + len(counts)))
        scores[answer] = score
    return max(scores, key=scores.get)


# ---- the data set


def load(path: str | None, seed: int) -> Data:
    """Records of all splits.

    Raises FileNotFoundError if the table is neither there nor can be downloaded, and ValueError if
    it is another version.
    """
    table = read_table(find_file(path))
    rng = random.Random(seed)
    pacific = [name for name in table if region(name) == PACIFIC]
    others = [name for name in table if region(name) != PACIFIC]
    rng.shuffle(others)
    sixth = len(others) // 6
    unseen = others[:sixth]
    trained = others[sixth:]
    trained_table = {name: table[name] for name in trained}
    usual = {variable: majority(trained_table, variable) for variable in VARIABLES}
    pairs = count_pairs(trained_table)
    records: list[Record] = []
    references = {"majority": {}, "region": {}, "naive bayes": {}}

    def add(split: str, name: str, text: str, stated: list[str], asked: list[str]) -> None:
        """One record for each variable that is asked, with the guesses for it."""
        society = table[name]
        new = []
        for variable in asked:
            choices = tuple(f" {answer}" for answer in answers(variable))
            answer = f" {society[variable]}"
            new.append(Record(name, text, ask(rng, variable), answer, split, choices))
        records.extend(new)
        if split == "train":
            return
        # Training has no society of the Pacific: there, the guess is of the rest of it.
        known = table if name in pacific else trained_table
        nearby = neighbours(known, name)
        said = {variable: society[variable] for variable in stated}
        for variable, record in zip(asked, new, strict=True):
            references["majority"][record] = f" {usual[variable]}"
            references["region"][record] = f" {majority(nearby, variable)}"
            references["naive bayes"][record] = f" {naive_bayes(pairs, said, variable)}"

    counts = Counter()
    for society in trained_table.values():
        counts.update(society.items())
    for _ in range(DESCRIPTIONS // len(trained)):
        for name in trained:
            society = table[name]
            stated = draw_rare(rng, society, counts)
            if rng.random() < 0.5:
                stated = stated[: rng.randrange(1, STATED)]
            text = describe(rng, society, stated, TRAIN)
            asked = stated + draw_others(rng, society, stated)
            add("train", name, text, stated, asked)

    societies = {
        "validation": trained,
        "seen": trained,
        "new_wording": trained,
        "unseen": unseen,
        "ood": pacific,
        "inferred": unseen,
        "inferred_ood": pacific,
    }
    for split, candidates in societies.items():
        wording = HELD_OUT if split == "new_wording" else TRAIN
        for _ in range(EVALUATED):
            name = rng.choice(candidates)
            society = table[name]
            stated = rng.sample(list(society), STATED)
            text = describe(rng, society, stated, wording)
            asked = stated
            if split.startswith("inferred"):
                asked = draw_others(rng, society, stated)
            add(split, name, text, stated, asked)

    unseen_table = {name: table[name] for name in unseen}
    for _ in range(EVALUATED // 2):
        one, other, stated = draw_pair(rng, unseen_table)
        state = rng.getstate()
        text = describe(rng, table[one], stated, TRAIN)
        add("minimal_pairs", one, text, stated, stated)
        rng.setstate(state)  # the same wording and questions again: only one clause differs
        text = describe(rng, table[other], stated, TRAIN)
        add("minimal_pairs", other, text, stated, stated)

    documents = pretraining_documents(rng, trained_table)
    return Data("atlas", records, documents, template="Q: {}\nA:", references=references)


def pretraining_documents(rng: random.Random, table: Table) -> list[str]:
    """What the backbone reads: questions without a description, and bare descriptions."""
    documents = []
    societies = list(table.values())
    for number in range(DOCUMENTS):
        society = rng.choice(societies)
        if number % 3 == 0:
            stated = rng.sample(list(society), STATED)
            text = describe(rng, society, stated, TRAIN)
        else:
            variable = rng.choice(list(society))
            text = f"{ask(rng, variable)} {society[variable]}"
        documents.append(text)
    return documents
