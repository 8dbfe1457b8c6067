"""How societies live: the Ethnographic Atlas. A description states customs, questions ask for them.

    description   Among them all houses were round, and flocks of sheep grazed near the houses.
    question      What animals were kept?
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
answer that each code stands for, and six clauses for each answer, the last of which is held out of
training. Codes that a lay reader cannot tell apart share an answer. Codes of fewer than 4 % of the
societies have none, nor has mixed descent: such a variable counts as unknown.

A context is a society with at least ten known variables. The region that is never trained is the
Pacific. data/facts.py makes the records.
"""

import hashlib
import json
import sys
import urllib.request
from pathlib import Path
from random import Random

from data import Data
from data.facts import Table, Variable, make_data

NAME = "EA_DATA_6Nov2015.csv"
COMMIT = "8cd4c30dd910945f76baf1c79f756995064c3d0b"
ADDRESS = f"https://raw.githubusercontent.com/D-PLACE/dplace-data/{COMMIT}/csv/{NAME}"
SHA256 = "4eadb4a7bdfaa10343e768cc36c43b75c6514cfc7fffab5c041f636dfc3da725"
LICENCE = "The atlas has two licences: LICENSE.txt says CC BY 4.0, .zenodo.json says CC BY-NC 4.0"

PHRASES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
FRAMES = ("Among them {}.", "In this society {}.", "In those days {}.", "At that time {}.")
KNOWN = 10  # variables that a context has at least
PACIFIC = "I"  # a region is the first letter of an id: A Africa, C Circum-Mediterranean, ...


def read_file(folder: str | None) -> str:
    """The atlas' file in that folder, or in out/atlas, where it is downloaded once.

    Raises FileNotFoundError, or ValueError if it is another version.
    """
    file = Path(folder or "out/atlas", NAME)
    by_hand = f"fetch {ADDRESS} by hand, put it into a folder, and name that with --data-path"
    if file.is_file():
        content = file.read_bytes()
    elif folder:
        raise FileNotFoundError(f"no {NAME} in {folder}: {by_hand}")
    else:
        print(LICENCE, file=sys.stderr)
        try:
            with urllib.request.urlopen(ADDRESS, timeout=30) as response:
                content = response.read()
        except Exception as error:  # a broken connection raises many kinds
            raise FileNotFoundError(f"cannot download the atlas ({error}): {by_hand}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise ValueError(f"{file} is incomplete or another version, sha256 {found}: {by_hand}")
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return content.decode()


def read_table(text: str) -> Table:
    """The societies with enough known variables."""
    variables = {}
    for name, phrases in PHRASES.items():
        answers = {}
        for answer, clauses in phrases["clauses"].items():
            answers[answer] = {"trained": clauses[:-1], "held_out": clauses[-1:]}
        variables[name] = Variable(phrases["group"], phrases["questions"], answers)
    lines = text.splitlines()
    columns = lines[0].split(",")
    societies = {}
    for line in lines[1:]:
        codes = dict(zip(columns, line.split(","), strict=True))  # {"soc_id": "Aa1", "v6": "1"}
        facts = {}
        for name, phrases in PHRASES.items():
            code = codes[name]
            if code in phrases["codes"]:
                facts[name] = phrases["codes"][code]
        if len(facts) >= KNOWN:
            societies[codes["soc_id"]] = facts
    # the ids of societies that were added later are in small letters
    regions = {society: society[0].upper() for society in societies}
    return Table(variables, societies, regions, FRAMES)


def load(seed: int, contexts: int | None = None, data_path: str | None = None) -> Data:
    """`contexts` training societies; None: all that are not held out.

    Raises FileNotFoundError if the table is neither there nor can be downloaded, and ValueError if
    it is another version.
    """
    table = read_table(read_file(data_path))
    return make_data("atlas", table, Random(seed), region=PACIFIC, share=6, contexts=contexts)
