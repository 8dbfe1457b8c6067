"""Figures of a trained run: losses, margins, z, the way between two descriptions, sizes of updates.

python tests/evidence/figures.py --run out/cultures-default        # all five, into that folder
python tests/evidence/figures.py --run assets/cultures-default --only z,between --to assets

    loss.png      the loss and the validation loss of each method against steps; grey: the rate is still rising
    margin.png    the accuracy under the right description beside that under a swapped one, of each method
    z.png         z of descriptions in two dimensions, coloured by what they say about one facet
    between.png   the probabilities of the answers to one question, on the way between two descriptions
    norms.png     how far one description moves each weight, ‖ΔW‖/‖W‖

The folder is a run folder of train.py's, with METHOD.pt, log.csv and results.json. What it does not hold is left out,
and a line says so. Of each figure one function computes what is drawn, and another draws it: `z_plane`, `draw_z`.
"""
# ruff: noqa: E402

import argparse
import csv
import json
import math
import random
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parents[2])]

from data import Record, load
from data.cultures import ANSWERS, FACETS, ask, describe
from hyper import check_choice
from train import controlled_split, learning_rate
from zhyper import Zhyper

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]  # Okabe and Ito's: all readers can tell them apart
MARKERS = ["o", "s", "^", "D"]
QUARTERS = [0, 0.25, 0.5, 0.75, 1]
UNTRAINED = ("seen", "unseen", "ood")  # splits whose descriptions were never trained
LOGGED = ("step", "loss", "validation_loss")  # what is read of log.csv
POINTS = 21  # on the way between two descriptions
SHOWN = 0.1  # an answer that is never more probable than that is not drawn


class LeftOut(Exception):
    """What a run does not hold, so that a figure of it is left out."""


# ---- what is drawn


def read_log(path: Path) -> dict[str, list[dict]]:
    """{method: its lines of log.csv, by step}. A training that went on, or began anew, replaces lines."""
    if not path.is_file():
        raise LeftOut(f"{path.parent} has no {path.name}, which train.py writes")
    curves = {}
    with open(path, newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            method = line["method"]
            numbers = {name: float(line[name]) for name in LOGGED}
            earlier = curves.get(method, [])
            kept = [point for point in earlier if point["step"] < numbers["step"]]
            kept.append(numbers)
            curves[method] = kept
    return curves


def warmup_end(steps: int) -> int:
    """The step, counted from 1, at which the learning rate of a training of so many steps is highest."""
    shares = [learning_rate(step, steps) for step in range(steps)]
    return shares.index(max(shares)) + 1


def read_margins(path: Path) -> tuple[str, dict[str, tuple[float, float]]]:
    """What is measured, and {method: (under the right description, under a swapped one)}."""
    if not path.is_file():
        raise LeftOut(f"{path.parent} has no {path.name}, which train.py writes")
    results = json.loads(path.read_text(encoding="utf-8"))
    measure = results["measure"]
    margins = {}
    for method, row in results["rows"].items():
        scores = row["evaluated"]
        if "swapped" in scores:
            right = scores[controlled_split(scores)][measure]
            swapped = scores["swapped"][measure]
            margins[method] = (right, swapped)
    if not margins:
        raise LeftOut(f"no method in {path} is evaluated")
    return measure, margins


def stating(records: Sequence[Record], facet: str) -> dict[str, str]:
    """{description: answer} of all that state the facet and were never trained."""
    _, clauses = FACETS[facet]
    found = {}
    for record in records:
        answer = record.answer.strip()
        if record.split not in UNTRAINED or answer not in clauses:
            continue
        if any(clause in record.description for clause in clauses[answer]):
            found[record.description] = answer
    return found


@torch.no_grad()
def z_of(system: Zhyper, descriptions: Sequence[str]) -> Tensor:
    """z of all sites, one behind the other, of each description: (n, sites · r)."""
    parts = []
    for update in system.eval().adapt(descriptions).values():
        if update.z is not None:
            parts.append(update.z.flatten(1))
    if not parts:
        raise LeftOut("this method makes no z")
    return torch.cat(parts, dim=1)


def plane(points: Tensor) -> tuple[Tensor, float]:
    """The first two principal components (n, 2) of points (n, k), standardised, and their share of the variance."""
    standard = points - points.mean(0)
    standard /= points.std(0)
    _, size, directions = torch.linalg.svd(standard, full_matrices=False)
    variance = size.square()
    share = variance[:2].sum() / variance.sum()
    return standard @ directions[:2].T, share.item()


def z_plane(system: Zhyper, facet: str) -> tuple[dict[str, Tensor], float]:
    """{answer: z in two dimensions (k, 2)} of the descriptions that give it, and the share of the variance."""
    check_question(system, facet)
    said = stating(load("cultures", None, 0).records, facet)
    points, share = plane(z_of(system, list(said)))
    groups = {}
    for answer in ANSWERS[facet]:
        members = [i for i, each in enumerate(said.values()) if each == answer]
        groups[answer] = points[members]
    return groups, share


def check_generates(system: Zhyper) -> None:
    if system.hypernetwork is None or not system.hypernetwork.reads_text:
        raise LeftOut("this method makes no adapter from a text")


def check_question(system: Zhyper, facet: str) -> None:
    questions, _ = FACETS[facet]
    if questions[0] not in system.guide.questions:
        raise LeftOut("this run was not trained on cultures")


def two_descriptions(facet: str, values: Sequence[int]) -> list[str]:
    """A description for each of two values of a facet; they say nothing else."""
    texts = []
    for value in values:
        text = describe(random.Random(0), {facet: value}, [facet])
        texts.append(text)
    return texts


@torch.no_grad()
def between(system: Zhyper, prompt: str, answers: Sequence[str], ends: Sequence[str], points: int = POINTS):
    """Weights (points,) from 0 to 1, and how probable each answer is at each of them, (points, answers).

    `ends` are two descriptions. At weight w the embedding is (1 - w) times the first one's plus w times the second's.
    An answer counts with its end, so what is missing to 1 goes to all other texts.
    """
    check_generates(system)
    first, second = system.eval().embed(ends)  # c, (d_text,) each
    weights = torch.linspace(0, 1, points)
    weight = weights[:, None].to(first)  # (points, 1)
    c = torch.lerp(first, second, weight)  # (points, d_text)
    c = c.repeat_interleave(len(answers), dim=0)  # a row for each point and answer
    prompts = [prompt] * len(c)
    all_answers = list(answers) * points
    loss, _, _ = system.score(prompts, all_answers, c)
    probability = torch.exp(-loss)
    return weights, probability.view(points, len(answers)).cpu()


def between_values(system: Zhyper, facet: str, values: Sequence[int]) -> dict:
    """`between` for two values of a facet, with the texts that it was computed from."""
    check_question(system, facet)
    prompt, _ = ask(random.Random(0), facet, 0)
    answers = [f" {answer}" for answer in ANSWERS[facet]]
    ends = two_descriptions(facet, values)
    weights, probability = between(system, prompt, answers, ends)
    computed = {"weights": weights, "probability": probability}
    return computed | {"answers": answers, "prompt": prompt, "ends": ends}


def norm_grid(system: Zhyper, description: str) -> tuple[list[int], list[str], Tensor]:
    """Layers, modules, and ‖ΔW‖/‖W‖ of each site, (l, m), for one description."""
    check_generates(system)
    adapter = system.adapter_of(description)
    norms = system.relative_norms(adapter)  # layer by layer
    config = system.hypernetwork.config
    modules = list(config.modules)
    layers = [config.lowest_layer + i for i in range(system.hypernetwork.layers)]
    grid = torch.tensor(list(norms.values()))
    return layers, modules, grid.view(len(layers), len(modules))


# ---- drawing: at 100 dots an inch a figure is 700 wide


def new_figure(height: float, rows: int = 1, across: int = 1, **options):
    """A figure and its panels. Raises ValueError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("figures are drawn by matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(7, height), dpi=100, layout="constrained")
    panels = figure.subplots(rows, across, squeeze=False, **options).flatten()
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels


def draw_loss(curves: dict[str, list[dict]]):
    """A panel for each method, with two lines; grey where the rate is still rising."""
    across = min(3, len(curves))
    rows = math.ceil(len(curves) / across)
    figure, panels = new_figure(2.6 * rows, rows, across, sharey=True)
    for panel in panels[len(curves) :]:
        panel.set_visible(False)
    for panel, (method, points) in zip(panels, curves.items(), strict=False):
        steps = [point["step"] for point in points]
        end = warmup_end(int(steps[-1]))
        panel.axvspan(0, end, color="#DDDDDD", linewidth=0)
        top = panel.get_xaxis_transform()  # x as in the data, y from 0 to 1
        panel.text(end, 0.97, " warm-up", color="#666666", fontsize=9, va="top", transform=top)
        lines = [("loss", COLOURS[0], "o-"), ("validation_loss", COLOURS[1], "s--")]
        lines.sort(key=lambda line: points[-1][line[0]])  # at the end the first is below the second
        for (name, colour, style), side in zip(lines, ("top", "bottom"), strict=True):
            values = [point[name] for point in points]
            panel.plot(steps, values, style, color=colour, markersize=4)
            text = name.replace("_", " ")
            last = (steps[-1], values[-1])
            write_beside(panel, text, last, colour, ha="right", va=side)
        panel.set_yscale("log")
        panel.margins(y=0.25)
        panel.set_xlim(left=0)
        panel.set(title=method, xlabel="step")
    panels[0].set_ylabel("loss (nats a token)")
    return figure


def write_beside(panel, text: str, point: tuple[float, float], colour: str, va: str, **style) -> None:
    """Write above a point (va="bottom") or below it (va="top")."""
    distance = 7 if va == "bottom" else -7
    panel.annotate(text, point, (0, distance), textcoords="offset points", color=colour, va=va, **style)


def draw_margins(measure: str, margins: dict[str, tuple[float, float]]):
    """Two bars for each method."""
    figure, (panel,) = new_figure(1.2 + 0.7 * len(margins))
    for place, values in enumerate(margins.values()):
        for name, value, colour in zip(("right", "swapped"), values, COLOURS, strict=False):
            y = place - 0.2 if name == "right" else place + 0.2
            panel.barh(y, value, 0.38, color=colour)
            panel.text(value, y, f" {value:.3f} {name}", color=colour, va="center")
    panel.set_yticks(range(len(margins)), margins)
    panel.invert_yaxis()  # the first method at the top
    panel.margins(x=0.25)
    panel.set_xlabel(f"{measure}, under the right and under a swapped description")
    return figure


def draw_z(groups: dict[str, Tensor], share: float):
    """A dot for each description, and on each group what it says."""
    figure, (panel,) = new_figure(4.6)
    from matplotlib.patheffects import withStroke

    for (answer, points), colour, marker in zip(groups.items(), COLOURS, MARKERS, strict=True):
        x, y = points.T.tolist()
        panel.scatter(x, y, color=colour, marker=marker, s=22)
        middle = points.median(0).values.tolist()
        label = panel.text(*middle, answer, color=colour, ha="center", weight="bold", fontsize=12)
        label.set_path_effects([withStroke(linewidth=4, foreground="white")])  # readable on the dots
    count = sum(len(points) for points in groups.values())
    panel.set_title(f"z of {count} descriptions that were never trained", fontsize=11)
    panel.set_xlabel(f"the first two principal components, {share:.0%} of the variance")
    panel.set(xticks=[], yticks=[])
    return figure


def draw_between(weights: Tensor, probability: Tensor, answers: Sequence[str], prompt: str, ends: Sequence[str]):
    """A line for each answer that is somewhere more probable than SHOWN, labelled at its highest point."""
    figure, (panel,) = new_figure(3.6)
    x = weights.tolist()
    for answer, column, colour, marker in zip(answers, probability.T, COLOURS, MARKERS, strict=False):
        if column.max() < SHOWN:
            continue
        y = column.tolist()
        panel.plot(x, y, color=colour, marker=marker, markersize=4)
        top = int(column.argmax())
        highest = (x[top], y[top])
        side = "center"
        if x[top] < 0.25:
            side = "left"
        elif x[top] > 0.75:
            side = "right"
        write_beside(panel, answer.strip(), highest, colour, ha=side, va="bottom", weight="bold")
    panel.set_ylim(0, 1.15)
    panel.set_yticks(QUARTERS)
    panel.set_ylabel("probability of the answer")
    panel.set_xticks(QUARTERS)
    panel.set_xlabel("weight of the second description")
    for place, side, text in zip((0, 1), ("left", "right"), ends, strict=True):
        wrapped = textwrap.fill(text, 34)
        panel.text(place, -0.21, wrapped, ha=side, va="top", transform=panel.transAxes, fontsize=10)
    panel.set_title(prompt.partition("\n")[0], fontsize=11)
    return figure


def draw_norms(layers: Sequence[int], modules: Sequence[str], norms: Tensor, description: str):
    """A heat map with the numbers in it."""
    figure, (panel,) = new_figure(1.4 + 0.5 * len(layers))
    panel.imshow(norms.tolist(), cmap="cividis", aspect="auto", vmin=0)
    for row, values in enumerate(norms.tolist()):
        for place, value in enumerate(values):
            dark = value < norms.max() / 2
            colour = "white" if dark else "black"
            panel.text(place, row, f"{value:.2f}", color=colour, ha="center", va="center")
    panel.set_xticks(range(len(modules)), modules)
    names = [f"layer {layer}" for layer in layers]
    panel.set_yticks(range(len(layers)), names)
    panel.set_xlabel("‖ΔW‖/‖W‖ of each site")
    panel.set_title(textwrap.fill(description, 90), fontsize=9)
    return figure


# ---- the command


def figure_of(name: str, run: Path, system: Zhyper, facet: str):
    """The figure of that name. Raises LeftOut if the run does not hold what it shows."""
    if name == "loss":
        return draw_loss(read_log(run / "log.csv"))
    if name == "margin":
        return draw_margins(*read_margins(run / "results.json"))
    if name == "z":
        return draw_z(*z_plane(system, facet))
    if name == "between":
        return draw_between(**between_values(system, facet, (0, 2)))
    description = system.guide.description
    return draw_norms(*norm_grid(system, description), description)


NAMES = ("loss", "margin", "z", "between", "norms")


def main() -> None:
    parser = argparse.ArgumentParser("figures.py", description="Draw what a run folder of train.py's holds.")
    parser.add_argument("--run", required=True, help="the run folder")
    parser.add_argument("--method", default="zhyper-diag", help="whose z, way and norms (default: zhyper-diag)")
    parser.add_argument("--facet", default="greeting", help=f"one of {', '.join(FACETS)} (default: greeting)")
    parser.add_argument("--only", default=",".join(NAMES), help="which figures (default: %(default)s)")
    parser.add_argument("--to", help="the folder to write into; the run folder if left out")
    args = parser.parse_args()
    run = Path(args.run)
    to = Path(args.to or run)
    try:
        check_choice("facet", args.facet, FACETS)
        for name in args.only.split(","):
            check_choice("figure", name, NAMES)
        new_figure(1)  # says at once if matplotlib is missing
        system = Zhyper.load(run, args.method)
        to.mkdir(parents=True, exist_ok=True)
        for name in args.only.split(","):
            try:
                figure = figure_of(name, run, system, args.facet)
            except LeftOut as reason:
                print(f"{name}.png is left out: {reason}")
                continue
            figure.savefig(to / f"{name}.png")
            print(f"{to / name}.png")
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
