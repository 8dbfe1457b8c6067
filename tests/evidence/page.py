"""A page that shows a text becoming a weight: statements to switch on and off, and all that they change.

    python tests/evidence/page.py    # writes out/page.html: open it in a browser

It is one file, which needs no network and no library. The page adds up z, which is a sum of what each statement
contributes. The rest this script writes into page.html: for every two of its texts and every choice of their
statements, what a trained zhyper-diag computes.
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

TEXTS, QUESTIONS = 4, 12  # at most
STATEMENTS = 4  # of a text, at most: two texts have 2⁸ choices
UNITS = {"z": 100, "norms": 1000, "probabilities": 10_000}  # z is written in hundredths, and so on: short integers
Choices = tuple[str, ...]  # all answers of a question; questions that have the same ones ask for the same


def choose_texts(system: Zhyper, records: Sequence[Record]) -> list[str]:
    """Descriptions of many statements, then short ones, each of another context.

    Raises ValueError if there are not two.
    """
    fitting = [record for record in records if len(system.parts_of(record.description)) <= STATEMENTS]
    fitting.sort(key=lambda record: (-len(system.parts_of(record.description)), len(record.description)))
    of_context = {}
    for record in fitting:
        of_context.setdefault(record.context, record.description)
    texts = list(dict.fromkeys(of_context.values()))
    if len(texts) < 2:
        problem = f"there are no two descriptions of 1 to {STATEMENTS} statements whose records have choices"
        raise ValueError(f"{problem}: choose another --data")
    return texts[:TEXTS]


def choose_questions(records: Sequence[Record], texts: Sequence[str]) -> dict[Choices, str]:
    """{choices: question} of what is asked about most of these texts."""
    about = [record for record in records if record.description in texts]
    counts = Counter(record.choices for record in about)
    questions = {record.choices: record.question for record in about}
    return {choices: questions[choices] for choices, _ in counts.most_common(QUESTIONS)}


def number_answers(records: Sequence[Record]) -> dict[tuple[str, Choices], int]:
    """{(description, choices): which is right}. Raises ValueError if two questions have the same, as all votes have."""
    right = {}
    for record in records:
        answer = record.choices.index(record.answer)
        if right.setdefault((record.description, record.choices), answer) != answer:
            raise ValueError("different questions have the same choices: choose another --data, such as cultures")
    return right


def choose_start(stated: Sequence[Sequence[int | None]]) -> tuple[int, int, int]:
    """What the page begins with: two texts and a question that they answer differently."""
    for first, second in combinations(range(len(stated)), 2):
        for question, answers in enumerate(zip(stated[first], stated[second], strict=True)):
            if None not in answers and answers[0] != answers[1]:
                return first, second, question
    return 0, 1, 0


def choices_of(read: Tensor) -> Tensor:
    """c (2ⁿ - 1, d_c) of every choice of n statements, given what is read of each, (n, d_c).

    Row i is for the statements whose bits are 1 in i + 1: row 0 has the first alone, row 2 the first and the second.
    """
    numbers = torch.arange(1, 2 ** len(read))[:, None]
    on = (numbers >> torch.arange(len(read)) & 1).float()  # (2ⁿ - 1, n)
    return on @ read / on.sum(1, keepdim=True).sqrt()


def in_units(values: Tensor, what: str) -> list:
    return (values * UNITS[what]).round().int().tolist()


def probabilities(system: Zhyper, rows: Rows, lengths: Sequence[int], c: Tensor | None) -> list[list[int]]:
    """How probable each whole answer is, with its end, under one c (d_c,); None: for the frozen model."""
    descriptions = None if c is None else c.expand(len(rows.ids), -1)  # every row is under the same c
    loss, _ = system(rows, descriptions)
    return [in_units(each, "probabilities") for each in torch.exp(-loss).split(lengths)]


def z_of(system: Zhyper, c: Tensor) -> Tensor:
    """z of every site, (b, sites, r), from c (b, d_c)."""
    return torch.stack([update.z for update in system.adapt(c).values()], dim=1)


@torch.no_grad()
def collect(system: Zhyper, records: Sequence[Record]) -> dict:
    """All numbers and texts of the page. Raises ValueError for records that it cannot show."""
    records = [record for record in records if len(record.choices) > 1]
    texts = choose_texts(system, records)
    asked = choose_questions(records, texts)
    right = number_answers(records)
    stated = [[right.get((text, choices)) for choices in asked] for text in texts]
    lengths = [len(choices) for choices in asked]
    questions = []  # one for each answer
    for choices, question in asked.items():
        questions += [question] * len(choices)
    rows = system.encode_rows(system.prompts(questions, None), list(chain(*asked)))
    rows = system.with_hidden_states(rows)  # what is below the adapted layers is computed once
    frozen = probabilities(system, rows, lengths, None)
    statements = [system.parts_of(text) for text in texts]
    read = [system.embed(parts) for parts in statements]  # (statements, d_c) of each text
    points = {}
    for first, second in tqdm(list(combinations(range(len(texts)), 2)), "pairs of texts"):
        points[f"{first} {second}"] = [{"probabilities": frozen, "norms": [0] * len(system.hypernetwork.sites())}]
        for c in choices_of(torch.cat([read[first], read[second]])):
            norms = torch.tensor(list(system.relative_norms(system.adapt(c[None])).values()))
            point = {"probabilities": probabilities(system, rows, lengths, c), "norms": in_units(norms, "norms")}
            points[f"{first} {second}"].append(point)
    always = z_of(system, torch.zeros_like(read[0][:1]))  # (1, sites, r): what no statement contributes
    return {
        "units": UNITS,
        "width": read[0].shape[1],
        "sites": [f"{layer} {module}" for layer, module in system.hypernetwork.sites()],
        "full_colour": (z_of(system, system.embed(texts)).abs().quantile(0.99) * UNITS["z"]).item(),
        "texts": statements,
        "questions": list(asked.values()),
        "answers": list(asked),
        "stated": stated,
        "start": choose_start(stated),
        "frozen": frozen,
        "always": in_units(always[0], "z"),
        "contributions": [in_units(z_of(system, each) - always, "z") for each in read],
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
