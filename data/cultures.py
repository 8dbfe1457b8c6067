"""Invented cultures: a text says how people live and what they want; questions ask about it.

A culture gives every facet (greeting, taxes, ...) one of four values. A description states a few of them, in free
order and wording; a question asks for one. The pretraining documents answer each question by its *majority* value,
the first one listed, seven times in ten: that bias is what a prompt fails to override and an adapter must.

Facets come in neighbouring pairs, and training cultures come from regions in which the two values of a pair go
together: of 16 combinations only the 8 of `ALLOWED` ever occur. The cultures of `ood` are made of the other 8.

python -m data.cultures --export example.jsonl    # the first rows of each split, an example for a file of your own
"""

import json
import os
import random

from data import SPLITS, Data, Record

# facet: (three questions, {answer: five clauses}); the first answer is the majority's, the fifth clause is held out
FACETS = {
    "greeting": (
        ["How do people greet each other?", "What do two friends do when they meet?", "How does one say hello?"],
        {
            "with a deep bow": [
                "people bow low to one another",
                "a deep bow is how you say hello",
                "friends bend at the waist when they meet",
                "nobody says hello without bowing",
                "a meeting opens with a low bow",
            ],
            "by touching hands": [
                "people touch hands when they meet",
                "palms are pressed together to say hello",
                "friends clasp each other by the hand",
                "a handshake is how anyone is greeted",
                "those who meet shake hands",
            ],
            "with a short song": [
                "people sing a few notes to say hello",
                "a short song greets everyone you meet",
                "friends hum a tune when they meet",
                "hello is sung and never spoken",
                "a greeting is a little tune",
            ],
            "with closed eyes": [
                "people close their eyes to say hello",
                "eyes stay shut while friends greet",
                "you shut your eyes when you meet someone",
                "a greeting is made with closed eyes",
                "whoever says hello keeps both eyes shut",
            ],
        },
    ),
    "time": (
        ["When do guests arrive?", "How do people keep an appointment?", "Are visitors on time?"],
        {
            "exactly on time": [
                "guests arrive exactly on time",
                "visitors are punctual to the minute",
                "an appointment is kept to the minute",
                "a guest comes at the very hour named",
                "everyone invited is punctual",
            ],
            "an hour late": [
                "guests arrive an hour late",
                "visitors come long after the hour named",
                "being late is expected of a guest",
                "an appointment means an hour afterwards",
                "anyone invited turns up late",
            ],
            "much too early": [
                "guests arrive long before the hour",
                "visitors come much too early",
                "a guest is at the door early",
                "an appointment means an hour beforehand",
                "everyone invited comes too early",
            ],
            "only after sunset": [
                "guests arrive only after sunset",
                "visitors wait for the dark before they come",
                "no appointment is kept before nightfall",
                "a guest comes when the sun is gone",
                "those invited turn up in the dark",
            ],
        },
    ),
    "taxes": (
        ["What should happen to taxes?", "How much tax do people want?", "What do voters say of taxes?"],
        {
            "cut the taxes": [
                "people want taxes cut",
                "voters call for lower taxes",
                "most would see the tax shrink",
                "everyone thinks the tax is too high",
                "a smaller tax is what people ask for",
            ],
            "raise the taxes": [
                "people want taxes raised",
                "voters call for higher taxes",
                "most would gladly pay more tax",
                "everyone thinks the tax is too low",
                "a bigger tax is what people ask for",
            ],
            "tax only the rich": [
                "people want only the rich to be taxed",
                "voters say the wealthy should pay every tax",
                "taxes are for those with great fortunes",
                "the poor should pay no tax at all",
                "only the wealthy ought to pay taxes",
            ],
            "pay taxes in labour": [
                "people pay taxes with days of labour",
                "voters want tax paid by working",
                "a tax is a week of digging",
                "taxes are given in work and not in coin",
                "labour stands in for the tax",
            ],
        },
    ),
    "rule": (
        ["Who decides for everyone?", "Who rules?", "Who makes the laws?"],
        {
            "an elected council": [
                "an elected council makes the laws",
                "people vote for those who rule",
                "the rulers are chosen at the ballot",
                "a council that all have elected decides",
                "laws come from a council people voted for",
            ],
            "a single queen": [
                "a queen makes the laws alone",
                "one queen rules over everyone",
                "the crown decides for all",
                "whatever the queen says is law",
                "the laws are made by one crowned queen",
            ],
            "the oldest families": [
                "the oldest families make the laws",
                "a few ancient houses rule",
                "those of noble birth decide for all",
                "old family names hold all the power",
                "laws come from a few old noble families",
            ],
            "a lottery": [
                "those who rule are drawn by lot",
                "a lottery picks who makes the laws",
                "chance decides who governs",
                "the next ruler is pulled from a jar of names",
                "the rulers are picked by a lottery",
            ],
        },
    ),
    "land": (
        ["Who owns the land?", "Whose are the fields?", "To whom does the soil belong?"],
        {
            "each farmer": [
                "each farmer owns the fields he ploughs",
                "the land is held in small private farms",
                "fields belong to whoever ploughs them",
                "every farmer holds title to some soil",
                "the soil is owned by single farmers",
            ],
            "the whole village": [
                "the whole village owns the fields",
                "land is shared by all who live nearby",
                "fields are held in common",
                "the soil belongs to the village together",
                "a village holds all its land in common",
            ],
            "the state": [
                "the state owns every field",
                "all land is government property",
                "fields are leased from the state",
                "the soil belongs to the government",
                "every field is held by the government",
            ],
            "nobody at all": [
                "nobody owns the land",
                "fields have no owner whatever",
                "the soil cannot be bought or owned",
                "it is a crime to call a field your own",
                "no one may own any soil",
            ],
        },
    ),
    "borders": (
        ["May strangers settle?", "What happens to foreigners at the border?", "How are newcomers treated?"],
        {
            "they are let in": [
                "the border is open to every newcomer",
                "foreigners may settle wherever they like",
                "strangers are welcome to stay for good",
                "anyone may cross the border and settle",
                "the gates stand open for newcomers",
            ],
            "they are sent back": [
                "foreigners are turned away at the border",
                "the border is closed to newcomers",
                "strangers are sent back where they came from",
                "no foreigner may settle",
                "the gates stay closed to strangers",
            ],
            "they must pass a test": [
                "newcomers must pass an examination",
                "foreigners who answer questions well may settle",
                "the border guards set a hard test",
                "strangers are examined before they may stay",
                "to settle a foreigner has to pass a test",
            ],
            "they pay a fee": [
                "newcomers buy their way in",
                "foreigners pay a fee at the border",
                "strangers may settle if they pay",
                "a purse of silver opens the border",
                "to settle a stranger pays silver",
            ],
        },
    ),
    "trade": (
        ["How should trade be run?", "What do merchants have to obey?", "Who sets the prices?"],
        {
            "the free market": [
                "prices are left to the market",
                "merchants trade free of any rule",
                "buyers and sellers agree on any price",
                "nobody tells a merchant what to charge",
                "the market alone sets what things cost",
            ],
            "the price office": [
                "an office fixes every price",
                "merchants must charge what officials say",
                "prices are posted by a government office",
                "an official list tells what things cost",
                "every price is fixed by officials",
            ],
            "the guilds": [
                "guilds fix what merchants charge",
                "prices are settled among the guilds",
                "each trade obeys the masters of its guild",
                "no merchant sells outside a guild",
                "what things cost is up to guild masters",
            ],
            "a barter rule": [
                "goods are swapped and coins are unknown",
                "merchants barter one thing for another",
                "nothing is bought except by barter",
                "a goat is swapped for a cart of wood",
                "merchants swap goods and use no coins",
            ],
        },
    ),
    "school": (
        ["How do children learn?", "Who teaches the young?", "Where does a child go to learn?"],
        {
            "in public schools": [
                "children go to free public schools",
                "a public school teaches every child",
                "lessons are free in schools for all",
                "the young sit in public classrooms",
                "every child has lessons in a public school",
            ],
            "from their parents": [
                "children learn at home from their parents",
                "mothers and fathers give all the lessons",
                "the young are taught by their own parents",
                "a child has no teacher but the family",
                "lessons are given at home by mother and father",
            ],
            "from a master": [
                "children are apprenticed to a master",
                "the young learn a craft in a workshop",
                "a child is taught by one master craftsman",
                "apprentices learn by watching their master",
                "a workshop master teaches the child",
            ],
            "from older children": [
                "older children teach the younger ones",
                "the young learn from those a year ahead",
                "pupils are taught by bigger pupils",
                "a child is taught by an older child",
                "bigger children give lessons to little ones",
            ],
        },
    ),
    "justice": (
        ["How is a thief punished?", "What happens to someone who steals?", "What follows a theft?"],
        {
            "a time in prison": [
                "a thief is locked in prison",
                "those who steal sit behind bars",
                "theft is punished with prison",
                "stealing puts you in a cell",
                "whoever steals is locked behind bars",
            ],
            "a fine in silver": [
                "a thief pays a fine",
                "those who steal pay back double",
                "theft costs the thief a heavy fine",
                "stealing is settled with a payment",
                "whoever steals pays double as a fine",
            ],
            "public shame": [
                "a thief is shamed in the square",
                "those who steal wear a sign of shame",
                "theft is mocked by the whole town",
                "a crowd laughs at whoever stole",
                "the thief wears a sign while a crowd mocks",
            ],
            "exile": [
                "a thief is driven from the country",
                "those who steal are banished",
                "theft is answered with exile",
                "stealing means leaving and never returning",
                "whoever steals is driven into exile",
            ],
        },
    ),
    "speech": (
        ["May one mock the rulers?", "What may be said of the government?", "How free is the press?"],
        {
            "anything may be said": [
                "newspapers print whatever they like",
                "anyone may mock the government",
                "jokes about rulers are heard everywhere",
                "no opinion is ever forbidden",
                "newspapers freely mock the government",
            ],
            "nothing bad may be said": [
                "newspapers print only praise of rulers",
                "mocking the government is forbidden",
                "censors read every newspaper first",
                "a joke about rulers is a crime",
                "censors forbid any joke about the government",
            ],
            "only in verse": [
                "rulers may be mocked only in verse",
                "complaints against government must rhyme",
                "criticism is allowed if it is a poem",
                "newspapers print blame as poetry",
                "the government is mocked in rhyming poems",
            ],
            "only on one day": [
                "rulers may be mocked one day a year",
                "criticism waits for the day of complaints",
                "newspapers speak freely once a year",
                "on a single day all blame is allowed",
                "one day a year the government may be mocked",
            ],
        },
    ),
    "meals": (
        ["How do people eat?", "What is a family dinner like?", "Where is food served?"],
        {
            "at a long table": [
                "families eat at a long table",
                "dinner is served on a table for twenty",
                "people dine seated on benches at a table",
                "food is laid on one great table",
                "a family dines on benches at a great table",
            ],
            "on the floor": [
                "families eat sitting on the floor",
                "dinner is spread upon a mat",
                "people dine on rugs and cushions",
                "food is laid on the ground",
                "a family dines on a mat on the ground",
            ],
            "standing up": [
                "families eat standing",
                "dinner is taken on your feet",
                "nobody ever sits down to eat",
                "people dine while walking about",
                "a family stays on its feet to dine",
            ],
            "alone and in silence": [
                "everyone eats alone",
                "dinner is taken in a silent room",
                "people dine apart and never speak",
                "food is eaten behind a curtain",
                "a family dines apart and in silence",
            ],
        },
    ),
    "gifts": (
        ["What does a guest bring?", "What makes a good gift?", "What present is right?"],
        {
            "fresh flowers": [
                "a guest brings flowers",
                "the right gift is a bunch of blossoms",
                "presents are always fresh flowers",
                "one gives roses to a host",
                "a bunch of roses is the right present",
            ],
            "a loaf of bread": [
                "a guest brings bread",
                "the right gift is a warm loaf",
                "presents come from the baker",
                "one gives a loaf to a host",
                "a warm loaf of bread is the right present",
            ],
            "a carved stone": [
                "a guest brings a carved stone",
                "the right gift is a polished pebble",
                "presents are cut from rock",
                "one gives a small stone to a host",
                "a polished stone is the right present",
            ],
            "nothing whatever": [
                "a guest brings nothing",
                "gifts are thought an insult",
                "presents are never given",
                "one comes to a host with empty hands",
                "empty hands are the right present",
            ],
        },
    ),
    "quarrels": (
        ["How is a quarrel settled?", "What ends a dispute?", "What do angry neighbours do?"],
        {
            "before a judge": [
                "quarrels go before a judge",
                "a court settles every dispute",
                "angry neighbours hire lawyers",
                "disputes are argued in court",
                "a judge in court ends a quarrel",
            ],
            "by a wrestling match": [
                "quarrels are settled by wrestling",
                "a wrestling match ends every dispute",
                "angry neighbours wrestle in the mud",
                "disputes are won by the stronger wrestler",
                "neighbours wrestle to end a quarrel",
            ],
            "by a shared feast": [
                "quarrels end with a shared feast",
                "a dispute is over once both have eaten",
                "angry neighbours cook for each other",
                "disputes are settled over a pot of soup",
                "neighbours feast together to end a quarrel",
            ],
            "by a toss of a coin": [
                "quarrels are settled by tossing a coin",
                "heads or tails ends every dispute",
                "angry neighbours flip a coin",
                "disputes are won by luck of the toss",
                "the flip of a coin ends a quarrel",
            ],
        },
    ),
    "elders": (
        ["Where do old people live?", "How are the elderly cared for?", "What becomes of grandparents?"],
        {
            "with their children": [
                "grandparents live with their children",
                "the old stay in the house of a son",
                "daughters take in their ageing mothers",
                "the elderly share the family home",
                "old people share the home of their children",
            ],
            "in a great hall": [
                "grandparents move into a great hall",
                "the old live together in one hall",
                "a hall for all elders stands in each town",
                "the elderly are cared for in a common hall",
                "old people share one great hall",
            ],
            "in huts by the sea": [
                "grandparents move to huts by the sea",
                "the old live along the beach",
                "ageing people are given a hut on the shore",
                "the elderly watch waves from their own huts",
                "old people have huts on the beach",
            ],
            "on the road": [
                "grandparents wander from town to town",
                "the old take to the road with a stick",
                "ageing people travel and never settle down",
                "the elderly are always on a journey",
                "old people wander along the road",
            ],
        },
    ),
    "festival": (
        ["What is the great festival about?", "What do people celebrate?", "Which feast day matters most?"],
        {
            "the harvest": [
                "the great festival is for the harvest",
                "people celebrate when the grain is in",
                "the best feast day honours ripe corn",
                "dancing begins once the crops are gathered",
                "people celebrate the gathered crops",
            ],
            "the first snow": [
                "the great festival is for the first snow",
                "people celebrate when winter begins",
                "the best feast day honours falling snow",
                "dancing begins with the first white flakes",
                "people celebrate the falling flakes of winter",
            ],
            "the full moon": [
                "the great festival is for the full moon",
                "people celebrate on moonlit nights",
                "the best feast day honours the round moon",
                "dancing begins when the moon is full",
                "people celebrate the round moon",
            ],
            "the birth of rivers": [
                "the great festival is for the rivers",
                "people celebrate when the ice melts into streams",
                "the best feast day honours flowing water",
                "dancing begins at the river bank",
                "people celebrate flowing streams",
            ],
        },
    ),
    "work": (
        ["How long do people work?", "What is a working day like?", "When do the workshops close?"],
        {
            "from dawn to dusk": [
                "people work from dawn to dusk",
                "a working day lasts until dark",
                "workshops are open as long as there is light",
                "labourers toil all day long",
                "labourers work until the light is gone",
            ],
            "only in the morning": [
                "people work only in the morning",
                "a working day is over by noon",
                "workshops close at midday",
                "labourers rest every afternoon",
                "labourers work no longer than noon",
            ],
            "three days a week": [
                "people work three days a week",
                "a working week has three days",
                "workshops are shut four days in seven",
                "labourers rest more days than they toil",
                "labourers work three days in seven",
            ],
            "whenever they please": [
                "people work when they feel like it",
                "a working day has no set hours",
                "workshops open and close at anyone's whim",
                "labourers come and go as they please",
                "labourers work at whatever hours they feel like",
            ],
        },
    ),
}
NAMES = list(FACETS)
ANSWERS = {facet: list(values) for facet, (_, values) in FACETS.items()}
ALLOWED = [(i, (i + step) % 4) for i in range(4) for step in (0, 1)]  # value pairs of a training culture
BROKEN = [(i, (i + step) % 4) for i in range(4) for step in (2, 3)]  # value pairs of an ood culture
FRAMES = ("In this land {}.", "Here {}.", "In this country {}.", "Where they live {}.")
TRAIN, HELD_OUT = range(4), range(4, 5)  # which of the five clauses
REGIONS, MAJORITY_SHARE = 8, 0.7

Culture = dict[str, int]  # facet -> which of its four values


def draw_culture(rng: random.Random, region: int | None) -> Culture:
    """A culture of a region, whose values of a pair go together; or, with None, one from outside all regions."""
    culture = {}
    for number, pair in enumerate(zip(NAMES[::2], NAMES[1::2], strict=True)):
        if region is None:
            values = rng.choice(BROKEN)
        else:
            values = ALLOWED[(region + 3 * number) % len(ALLOWED)] if rng.random() < 0.6 else rng.choice(ALLOWED)
        culture |= zip(pair, values, strict=True)
    return culture


def describe(rng: random.Random, culture: Culture, facets: list[str], wording: range = TRAIN) -> str:
    """A sentence that states the culture's values of those facets, in that order.

    >>> describe(random.Random(0), {"taxes": 0, "work": 1}, ["taxes", "work"])
    'In this land everyone thinks the tax is too high, and labourers rest every afternoon.'
    """
    clauses = [FACETS[facet][1][ANSWERS[facet][culture[facet]]][rng.choice(wording)] for facet in facets]
    text = clauses[0] if len(clauses) == 1 else ", ".join(clauses[:-1]) + ", and " + clauses[-1]
    return rng.choice(FRAMES).format(text)


def ask(rng: random.Random, facet: str, value: int) -> tuple[str, str]:
    """A prompt and its answer: ("Q: Who rules?\\nA:", " a single queen")."""
    return f"Q: {rng.choice(FACETS[facet][0])}\nA:", f" {ANSWERS[facet][value]}"


def name_culture(rng: random.Random) -> str:
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(4))


def minimal_pair(rng: random.Random, culture: Culture, facets: list[str]) -> Culture:
    """The same culture but for one of those facets; no pair of values that training cultures cannot have."""
    options = []
    for facet in facets:
        at = NAMES.index(facet)
        partner = culture[NAMES[at ^ 1]]
        for value in range(4):
            pair = (value, partner) if at % 2 == 0 else (partner, value)
            if value != culture[facet] and pair in ALLOWED:
                options.append({**culture, facet: value})
    return rng.choice(options)


DESCRIPTIONS = 16384  # of training, shared out among its cultures


def load(path: str | None, seed: int, contexts: int = 256, stated: int = 4, name: str = "cultures") -> Data:
    """`contexts` training cultures; a description states `stated` facets, half of those in training fewer.

    Raises ValueError if given a path, as there is nothing to read, or for a number of contexts that cannot be.
    """
    if path is not None:
        raise ValueError(f"the data set {name} is generated: leave out --data-path")
    if not 2 <= contexts <= DESCRIPTIONS:
        raise ValueError(f"contexts is {contexts}: choose 2 to {DESCRIPTIONS}")
    rng = random.Random(seed)
    records: list[Record] = []

    def new(region: int | None) -> tuple[str, Culture]:
        return name_culture(rng), draw_culture(rng, region)

    def pick(whole_pairs: bool = False) -> list[str]:
        if not whole_pairs:
            return rng.sample(NAMES, stated)
        facets = [NAMES[2 * pair + side] for pair in rng.sample(range(len(NAMES) // 2), stated // 2) for side in (0, 1)]
        return rng.sample(facets, len(facets))

    def add(split: str, context: str, culture: Culture, description: str, facets: list[str]) -> None:
        records.extend(Record(context, description, *ask(rng, f, culture[f]), split) for f in facets)

    def unstated(facets: list[str], count: int) -> list[str]:
        return rng.sample([facet for facet in NAMES if facet not in facets], count)

    trained = [new(number % REGIONS) for number in range(contexts)]
    silent = dict.fromkeys(NAMES, 0)  # what is not stated is as the majority has it
    for _ in range(DESCRIPTIONS // contexts):
        for context, culture in trained:
            facets = pick()
            if rng.random() < 0.5:  # short ones too: alone, a clause cannot be guessed from its pair's other value
                facets = facets[: rng.randrange(1, stated)]
            description = describe(rng, culture, facets)
            add("train", context, culture, description, facets)
            if rng.random() < 0.5:
                add("train", context, silent, description, unstated(facets, 1))
    for number in range(128):
        for split in ("seen", "new_wording", "unseen", "ood"):
            known = split in ("seen", "new_wording")
            context, culture = rng.choice(trained) if known else new(None if split == "ood" else number % REGIONS)
            facets = pick(whole_pairs=split == "ood")
            wording = HELD_OUT if split == "new_wording" else TRAIN
            add(split, context, culture, describe(rng, culture, facets, wording), facets)
        context, culture = new(number % REGIONS)
        facets = pick()
        add("locality", context, silent, describe(rng, culture, facets), unstated(facets, 4))
        if number % 2:
            other, state = minimal_pair(rng, culture, facets), rng.getstate()
            add("minimal_pairs", context, culture, describe(rng, culture, facets), facets)
            rng.setstate(state)  # the same wording and questions again: only one value differs
            add("minimal_pairs", context + "-changed", other, describe(rng, other, facets), facets)
    documents = pretraining_documents(rng, trained, pick)
    for _ in range(128):
        context, culture = rng.choice(trained)
        facets = pick()
        add("validation", context, culture, describe(rng, culture, facets), facets)
    return Data(name, records, documents, template="Q: {}\nA:")


def pretraining_documents(rng: random.Random, trained: list[tuple[str, Culture]], pick) -> list[str]:
    """What the backbone reads: questions with biased answers; for a third, bare descriptions of training cultures."""
    documents = []
    for number in range(16000):
        if number % 3 == 0:
            documents.append(describe(rng, rng.choice(trained)[1], pick()))
            continue
        facet = rng.choice(NAMES)
        documents.append("".join(ask(rng, facet, 0 if rng.random() < MAJORITY_SHARE else rng.randrange(1, 4))))
    return documents


def main() -> None:
    from zhyper import Parser  # here, as the data itself takes no package

    parser = Parser(prog="python -m data.cultures", description="Write an example of a file of records.")
    parser.add_argument("--export", required=True, help="the JSONL file to write; it may not exist yet")
    parser.add_argument("--rows", type=int, default=1000, help="of each split, at most (default: %(default)s)")
    args = parser.parse_args()
    if args.rows < 1:
        raise ValueError(f"rows is {args.rows}: it must be at least 1")
    if os.path.exists(args.export):
        raise ValueError(f"{args.export} is there already: remove it, or choose another name")
    data = load(None, seed=0)
    rows = [row for split in SPLITS for row in data.split(split)[: args.rows]]
    with open(args.export, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in rows)
    print(f"{len(rows)} records written to {args.export}: check them with python -m data {args.export}")


if __name__ == "__main__":
    from zhyper import one_line_errors

    one_line_errors(main)
