"""Two figures of a zhyper-diag that was trained on cultures: z, and the way between two descriptions.

python tests/evidence/figures.py --run assets/cultures-default --to out

    z.png         z of descriptions in two dimensions, coloured by what they say about one facet
    between.png   the probabilities of the answers to one question, on the way between two descriptions
"""
# ruff: noqa: E402

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parents[2])]

from data import Record, load
from data.cultures import ANSWERS, FACETS, describe
from train import check_choice
from zhyper import SHIPPED, Zhyper, run_command

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]  # Okabe and Ito's: all readers can tell them apart
MARKERS = ["o", "s", "^", "D"]
UNTRAINED = ("seen", "unseen", "ood")  # splits whose descriptions were never trained


def stating(records: Sequence[Record], facet: str) -> dict[str, str]:
    """{description: answer} of all that state the facet and were never trained."""
    found = {}
    for record in records:
        if record.split not in UNTRAINED or record.answer not in ANSWERS[facet]:
            continue
        clauses = FACETS[facet]["answers"][record.answer]["trained"]
        if any(clause in record.description for clause in clauses):
            found[record.description] = record.answer
    return found


def plane(points: Tensor) -> tuple[Tensor, float]:
    """The first two principal components (n, 2) of points (n, k), standardised, and their share of the variance."""
    standard = (points - points.mean(0)) / points.std(0)
    _, size, directions = torch.linalg.svd(standard, full_matrices=False)
    variance = size.square()
    return standard @ directions[:2].T, (variance[:2].sum() / variance.sum()).item()


@torch.no_grad()
def between(system: Zhyper, question: str, answers: Sequence[str], ends: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Weights (points,) from 0 to 1, and how probable each answer is at each of them, (points, answers).

    `ends` are two descriptions. At weight w c is (1 - w) times that of the first plus w times that of the second.
    An answer counts with its end, so what is missing to 1 goes to all other texts.
    """
    first, second = system.embed(ends)  # c, (d_c,) each
    weights = torch.linspace(0, 1, 21)
    c = torch.lerp(first, second, weights[:, None])  # (points, d_c)
    c = c.repeat_interleave(len(answers), dim=0)  # a row for each point and answer
    loss, _ = system.score([question] * len(c), list(answers) * len(weights), c)
    return weights, torch.exp(-loss).view(len(weights), len(answers))


# ---- drawing: at 100 dots an inch a figure is 700 wide


def new_figure(height: float):
    """A figure and its axes. Raises ValueError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("figures are drawn by matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(7, height), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


@torch.no_grad()
def draw_z(system: Zhyper, facet: str):
    """A dot for each description, coloured by what it says."""
    said = stating(load("cultures").records, facet)
    updates = system.adapt(list(said)).values()
    points, share = plane(torch.cat([update.z.flatten(1) for update in updates], dim=1))  # of all sites
    figure, axes = new_figure(4.6)
    for answer, colour, marker in zip(ANSWERS[facet], COLOURS, MARKERS, strict=True):
        group = points[[each == answer for each in said.values()]]
        axes.scatter(*group.T.tolist(), color=colour, marker=marker, s=22, label=answer)
    axes.legend()
    axes.set_title(f"z of {len(said)} descriptions that were never trained", fontsize=11)
    axes.set_xlabel(f"the first two principal components, {share:.0%} of the variance")
    axes.set(xticks=[], yticks=[])
    return figure


def draw_between(system: Zhyper, facet: str):
    """A line for each answer that is somewhere likely, labelled at its highest point."""
    question = FACETS[facet]["questions"][0]
    ends = [describe(Random(0), {facet: value}, [facet]) for value in (0, 2)]  # which say nothing else
    weights, probability = between(system, question, ANSWERS[facet], ends)
    figure, axes = new_figure(3.6)
    for answer, values, colour, marker in zip(ANSWERS[facet], probability.T, COLOURS, MARKERS, strict=True):
        top = values.argmax()
        if values[top] < 0.1:
            continue
        axes.plot(weights.tolist(), values.tolist(), color=colour, marker=marker, markersize=4)
        side = "left" if weights[top] < 0.5 else "right"
        axes.text(weights[top], values[top] + 0.04, answer, color=colour, ha=side, weight="bold")
    axes.set(ylim=(0, 1.15), ylabel="probability of the answer", xlabel="weight of the second description")
    for place, side, text in zip((0, 1), ("left", "right"), ends, strict=True):
        wrapped = textwrap.fill(text, 34)
        axes.text(place, -0.21, wrapped, ha=side, va="top", transform=axes.transAxes, fontsize=10)
    axes.set_title(question, fontsize=11)
    return figure


def draw_figures(args: argparse.Namespace) -> None:
    check_choice("facet", args.facet, FACETS)
    system = Zhyper.load(args.run)
    args.to.mkdir(parents=True, exist_ok=True)
    for name, draw in {"z": draw_z, "between": draw_between}.items():
        path = args.to / f"{name}.png"
        draw(system, args.facet).savefig(path)
        print(path)


def main() -> None:
    parser = argparse.ArgumentParser("figures.py", description="Draw what a run folder of train.py's holds.")
    parser.add_argument("--run", type=Path, default=SHIPPED, help="the run folder (default: %(default)s)")
    parser.add_argument("--facet", default="greeting", help=f"one of {', '.join(FACETS)} (default: greeting)")
    parser.add_argument("--to", type=Path, default="out", help="the folder to write into (default: %(default)s)")
    args = parser.parse_args()
    run_command(parser, lambda: draw_figures(args))


if __name__ == "__main__":
    main()
