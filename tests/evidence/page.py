"""A page that shows a text becoming a weight: two descriptions, a slider between them, and all that it changes.

    python tests/evidence/page.py    # writes out/page.html: open it in a browser

It is one file, which needs no network and no library. The page itself computes nothing: for every pair of its
descriptions and every step of the slider, this script writes down what a trained model computes. The template is
page.html, beside this script.
"""
# ruff: noqa: E402

import argparse
import itertools
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor
from tqdm import tqdm

import data
from data import Record
from data.batches import Rows
from zhyper import TRAINED, Zhyper

TEMPLATE = Path(__file__).with_suffix(".html")
DESCRIPTIONS = 12
QUESTIONS = 12
STEPS = 8  # from one description to the other: 0, 1/8 ... 1
UNITS = {"z": 100, "norms": 1000, "probabilities": 10_000}  # z is written in hundredths, and so on: short integers
FULL_COLOUR = 0.99  # this share of all z is smaller than the z that has the strongest colour

Choices = tuple[str, ...]  # all answers of a question; questions that have the same ones ask for the same


def choose_descriptions(records: Sequence[Record]) -> list[str]:
    """The shortest descriptions, each of another context. Raises ValueError if there are not two."""
    shortest = {}
    for record in sorted(records, key=lambda record: len(record.description)):
        shortest.setdefault(record.context, record.description)
    texts = list(dict.fromkeys(shortest.values()))
    if len(texts) < 2:
        raise ValueError("there are no two descriptions whose records have choices: choose another --data")
    return texts[:DESCRIPTIONS]


def choose_questions(records: Sequence[Record], texts: Sequence[str]) -> dict[Choices, str]:
    """{choices: prompt} of what is asked about most of these texts."""
    counts = Counter()
    prompts = {}
    for record in records:
        if record.description in texts:
            counts[record.choices] += 1
            prompts[record.choices] = record.prompt
    return {choices: prompts[choices] for choices, _ in counts.most_common(QUESTIONS)}


def stated_answers(records: Sequence[Record], text: str, questions: Sequence[Choices]) -> list[int | None]:
    """Which choice is the text's answer to each question, 0, 1 ...; None for one that it is not asked.

    Raises ValueError where two questions have the same choices, as all votes have: they cannot be told apart.
    """
    stated = dict.fromkeys(questions)
    for record in records:
        if record.description != text or record.choices not in stated:
            continue
        answer = record.choices.index(record.answer)
        if stated[record.choices] not in (None, answer):
            raise ValueError("different questions have the same choices: choose another --data, such as cultures")
        stated[record.choices] = answer
    return list(stated.values())


def choose_start(stated: Sequence[Sequence[int | None]], frozen: Sequence[Sequence[int]]) -> list[int]:
    """What the page begins with: two descriptions and a question that they answer differently.

    Of all such, the two answers are those that the frozen model finds least probable.
    """
    best = [0, 1, 0]
    least = float("inf")
    for first, second in itertools.combinations(range(len(stated)), 2):
        for question, probability in enumerate(frozen):
            one, other = stated[first][question], stated[second][question]
            if one is None or other is None or one == other:
                continue
            both = probability[one] + probability[other]
            if both < least:
                least = both
                best = [first, second, question]
    return best


def points_between(c: Tensor) -> dict[str, Tensor]:
    """{name: embedding} of each description, "0", and between two, "0 1 3": at 3/8 of the way from 0 to 1."""
    points = {str(i): c[i] for i in range(len(c))}
    for first, second in itertools.combinations(range(len(c)), 2):
        for step in range(1, STEPS):
            mixed = torch.lerp(c[first], c[second], step / STEPS)
            points[f"{first} {second} {step}"] = mixed
    return points


def in_units(values: Tensor, what: str) -> list:
    scaled = values * UNITS[what]
    return scaled.round().int().tolist()


def probabilities(system: Zhyper, rows: Rows, c: Tensor | None, lengths: Sequence[int]) -> list[list[int]]:
    """How probable each whole answer is, with its end and not normalised: a list for each question."""
    descriptions = None
    if c is not None:
        descriptions = c.expand(len(rows.ids), -1)  # every row is under the same c
    loss, _, _ = system(rows, descriptions)
    probability = torch.exp(-loss)
    return [in_units(answers, "probabilities") for answers in probability.split(lengths)]


def measure(system: Zhyper, rows: Rows, c: Tensor, lengths: Sequence[int]) -> dict[str, list]:
    """What the page shows at one point c (d_text,): z and ‖ΔW‖/‖W‖ of every site, and the answers."""
    adapter = system.adapt(c[None])
    z = torch.cat([update.z for update in adapter.values()])  # (sites, r)
    norms = system.relative_norms(adapter)
    shown = {"z": in_units(z, "z")}
    shown["norms"] = in_units(torch.tensor(list(norms.values())), "norms")
    shown["probabilities"] = probabilities(system, rows, c, lengths)
    return shown


def full_colour(points: dict[str, dict]) -> float:
    """The size of z from which on its colour is the strongest."""
    z = torch.tensor([point["z"] for point in points.values()])
    sizes = z.abs().flatten().sort().values
    place = int(FULL_COLOUR * (len(sizes) - 1))
    return sizes[place].item()


@torch.no_grad()
def collect(system: Zhyper, records: Sequence[Record]) -> dict:
    """All numbers and texts of the page. Raises ValueError for a method or for records that it cannot show."""
    records = [record for record in records if len(record.choices) > 1]
    texts = choose_descriptions(records)
    for update in system.adapter_of(texts[0]).values():
        if update.z is None or update.z.dim() > 2:
            raise ValueError("the page shows one z for each rank: choose --method zhyper-diag")
    questions = choose_questions(records, texts)
    stated = [stated_answers(records, text, list(questions)) for text in texts]
    prompts = []
    answers = []
    for choices, prompt in questions.items():
        prompts += [prompt] * len(choices)
        answers += choices
    lengths = [len(choices) for choices in questions]
    rows = system.encode_rows(prompts, answers, None)
    rows = system.with_states(rows)  # what is below the adapted layers is computed once

    points = {}
    embeddings = points_between(system.embed(texts))
    for name, c in tqdm(embeddings.items(), "points"):
        points[name] = measure(system, rows, c, lengths)
    frozen = probabilities(system, rows, None, lengths)
    return {
        "units": UNITS,
        "steps": STEPS,
        "width": system.encoder.config.width,
        "sites": [f"{layer} {module}" for layer, module in system.hypernetwork.sites()],
        "full_colour": full_colour(points),
        "descriptions": texts,
        "questions": [system.guide.question(prompt) for prompt in questions.values()],
        "answers": [[choice.strip() for choice in choices] for choices in questions],
        "stated": stated,
        "start": choose_start(stated, frozen),
        "frozen": frozen,
        "points": points,
    }


def render(numbers: dict) -> str:
    """The page: the template with the numbers in it."""
    text = json.dumps(numbers, ensure_ascii=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c")  # so that no text ends the script element
    template = TEMPLATE.read_text(encoding="utf-8")
    return template.replace("NUMBERS", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, default=ROOT / TRAINED, help="the folder of a trained run")
    parser.add_argument("--method", default="zhyper-diag", help="one of its methods")
    parser.add_argument("--data", default="cultures", help="its data set, or a file.jsonl")
    parser.add_argument("--seed", type=int, default=0, help="the run's, from which the data is made")
    parser.add_argument("--split", default="unseen", choices=data.SPLITS, help="where descriptions are from")
    parser.add_argument("--to", type=Path, default=ROOT / "out" / "page.html", help="the file to write")
    args = parser.parse_args()
    try:
        records = data.load(args.data, seed=args.seed).split(args.split)
        system = Zhyper.load(args.run, args.method)
        numbers = collect(system, records)
        numbers["method"] = args.method
        numbers["run"] = args.run.resolve().name
        numbers["split"] = args.split
        numbers["about"] = data.SPLITS[args.split]
        args.to.parent.mkdir(parents=True, exist_ok=True)
        args.to.write_text(render(numbers), encoding="utf-8")
    except (ValueError, OSError) as error:
        parser.error(str(error))
    megabytes = args.to.stat().st_size / 1e6
    print(f"{args.to}: {megabytes:.2f} MB. Open it in a browser.")


if __name__ == "__main__":
    main()
