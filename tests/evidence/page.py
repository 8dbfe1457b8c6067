"""A page that shows a text becoming a weight: two descriptions, a slider between them, and all that it changes.

    python tests/evidence/page.py    # writes out/page.html: open it in a browser

It is one file, which needs no network and no library. The page itself computes nothing: for every pair of its
descriptions and every step of the slider, this script writes into page.html what a trained zhyper-diag computes.
"""
# ruff: noqa: E402

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import chain, combinations
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor
from tqdm import tqdm

from data import Record, load
from data.batches import Rows
from zhyper import SHIPPED, Zhyper, run_command

MOST = 12  # descriptions, and questions
STEPS = 8  # from one description to the other: 0, 1/8 ... 1
UNITS = {"z": 100, "norms": 1000, "probabilities": 10_000}  # z is written in hundredths, and so on: short integers
Choices = tuple[str, ...]  # all answers of a question; questions that have the same ones ask for the same


def choose_descriptions(records: Sequence[Record]) -> list[str]:
    """The shortest descriptions, each of another context. Raises ValueError if there are not two."""
    shortest = {}
    for record in sorted(records, key=lambda record: len(record.description)):
        shortest.setdefault(record.context, record.description)
    texts = list(dict.fromkeys(shortest.values()))
    if len(texts) < 2:
        raise ValueError("there are no two descriptions whose records have choices: choose another --data")
    return texts[:MOST]


def choose_questions(records: Sequence[Record], texts: Sequence[str]) -> dict[Choices, str]:
    """{choices: question} of what is asked about most of these texts."""
    about = [record for record in records if record.description in texts]
    counts = Counter(record.choices for record in about)
    questions = {record.choices: record.question for record in about}
    return {choices: questions[choices] for choices, _ in counts.most_common(MOST)}


def number_answers(records: Sequence[Record]) -> dict[tuple[str, Choices], int]:
    """{(description, choices): which is right}. Raises ValueError if two questions have the same, as all votes have."""
    right = {}
    for record in records:
        answer = record.choices.index(record.answer)
        if right.setdefault((record.description, record.choices), answer) != answer:
            raise ValueError("different questions have the same choices: choose another --data, such as cultures")
    return right


def choose_start(stated: Sequence[Sequence[int | None]]) -> tuple[int, int, int]:
    """What the page begins with: two descriptions and a question that they answer differently."""
    for first, second in combinations(range(len(stated)), 2):
        for question, answers in enumerate(zip(stated[first], stated[second], strict=True)):
            if None not in answers and answers[0] != answers[1]:
                return first, second, question
    return 0, 1, 0


def points_between(c: Tensor) -> dict[str, Tensor]:
    """{name: c} of each description, "0", and between two, "0 1 3": at 3/8 of the way from 0 to 1."""
    points = {str(i): c[i] for i in range(len(c))}
    for first, second in combinations(range(len(c)), 2):
        for step in range(1, STEPS):
            points[f"{first} {second} {step}"] = torch.lerp(c[first], c[second], step / STEPS)
    return points


def in_units(values: Tensor, what: str) -> list:
    return (values * UNITS[what]).round().int().tolist()


def measure(system: Zhyper, rows: Rows, lengths: Sequence[int], c: Tensor | None) -> dict[str, list]:
    """z and ‖ΔW‖/‖W‖ of every site at one point c (d_c,), and how probable each whole answer is, with its end.

    None: how probable the frozen model finds each answer.
    """
    descriptions = None if c is None else c.expand(len(rows.ids), -1)  # every row is under the same c
    loss, _ = system(rows, descriptions)
    answers = torch.exp(-loss).split(lengths)
    shown = {"probabilities": [in_units(each, "probabilities") for each in answers]}
    if c is not None:
        adapter = system.adapt(c[None])
        z = torch.cat([update.z for update in adapter.values()])  # (sites, r)
        norms = torch.tensor(list(system.relative_norms(adapter).values()))
        shown |= {"z": in_units(z, "z"), "norms": in_units(norms, "norms")}
    return shown


@torch.no_grad()
def collect(system: Zhyper, records: Sequence[Record]) -> dict:
    """All numbers and texts of the page. Raises ValueError for records that it cannot show."""
    records = [record for record in records if len(record.choices) > 1]
    texts = choose_descriptions(records)
    asked = choose_questions(records, texts)
    right = number_answers(records)
    stated = [[right.get((text, choices)) for choices in asked] for text in texts]
    lengths = [len(choices) for choices in asked]
    questions = []  # one for each answer
    for choices, question in asked.items():
        questions += [question] * len(choices)
    answers = list(chain(*asked))
    rows = system.encode_rows(system.prompts(questions, None), answers)
    rows = system.with_hidden_states(rows)  # what is below the adapted layers is computed once
    ends = system.embed(texts)  # (texts, d_c)
    points = {}
    for name, c in tqdm(points_between(ends).items(), "points"):
        points[name] = measure(system, rows, lengths, c)
    sizes = torch.tensor([point["z"] for point in points.values()]).abs().float()
    return {
        "units": UNITS,
        "steps": STEPS,
        "width": ends.shape[1],
        "sites": [f"{layer} {module}" for layer, module in system.hypernetwork.sites()],
        "full_colour": sizes.quantile(0.99).item(),  # a larger z has no stronger colour
        "descriptions": texts,
        "questions": list(asked.values()),
        "answers": list(asked),
        "stated": stated,
        "start": choose_start(stated),
        "frozen": measure(system, rows, lengths, None)["probabilities"],
        "points": points,
    }


def render(numbers: dict) -> str:
    """The page: the template with the numbers in it."""
    text = json.dumps(numbers, ensure_ascii=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c")  # so that no text ends the script element
    template = Path(__file__).with_suffix(".html")
    return template.read_text(encoding="utf-8").replace("NUMBERS", text)


def write_page(args: argparse.Namespace) -> None:
    records = load(args.data, args.seed).split("unseen")
    numbers = collect(Zhyper.load(args.run), records) | {"run": args.run.name}
    args.to.parent.mkdir(parents=True, exist_ok=True)
    args.to.write_text(render(numbers), encoding="utf-8")
    print(f"{args.to}: {args.to.stat().st_size / 1e6:.2f} MB. Open it in a browser.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, default=ROOT / SHIPPED, help="the folder of a trained run")
    parser.add_argument("--data", default="cultures", help="its data set, or a file.jsonl")
    parser.add_argument("--seed", type=int, default=0, help="the run's, from which the data is made")
    parser.add_argument("--to", type=Path, default=ROOT / "out" / "page.html", help="the file to write")
    args = parser.parse_args()
    run_command(parser, lambda: write_page(args))


if __name__ == "__main__":
    main()
