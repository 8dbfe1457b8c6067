"""Finer control: how probable an answer is with its statement, without it, and with another in its place.

python tests/evidence/control.py FOLDER ... --methods zhyper-diag,t2l-gated

The texts are the minimal pairs of a run: two descriptions that differ in one statement. The first three columns are the
mean probability of the right answer to the question that this statement answers. The last two are by how much, up or
down, the answers to the other questions move, which should not. A second table compares the methods.
"""
# ruff: noqa: E402

import argparse
import sys
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from run import cell, markdown, paired_interval, read_results, verdict

import train
from data import Record
from zhyper import Zhyper, run_command, split_statements

MEASURES = ("stated", "removed", "replaced", "others move if removed", "others move if replaced")


def changed_texts(records: Sequence[Record]) -> list[tuple[Record, bool, str, str]]:
    """Of each record of `minimal_pairs`: it, if the changed statement answers it, its text without that, the other's.

    The records of a pair stand in a row, with the same questions. A pair whose texts do not differ in exactly one of
    several statements is left out.
    """
    texts = [list(group) for _, group in groupby(records, attrgetter("context", "description"))]
    found = []
    for first, second in zip(texts[::2], texts[1::2], strict=True):
        for ours, theirs in ((first, second), (second, first)):
            parts = split_statements(ours[0].description)
            kept = [part for part in parts if part in split_statements(theirs[0].description)]
            if len(parts) - len(kept) != 1 or not kept:
                continue
            for record, other in zip(ours, theirs, strict=True):
                its_own = record.answer != other.answer
                found.append((record, its_own, ". ".join(kept) + ".", other.description))
    return found


@torch.no_grad()
def probabilities(system: Zhyper, changed: Sequence[tuple[Record, bool, str, str]]) -> np.ndarray:
    """How probable each answer is: under the whole text, without the statement, under the other text, (n, 3)."""
    found = []
    for start in range(0, len(changed), 64):
        records, _, removed, replaced = zip(*changed[start : start + 64], strict=True)
        questions = [record.question for record in records]
        answers = [record.answer for record in records]
        whole = [record.description for record in records]
        losses = [system.score(questions, answers, list(texts))[0] for texts in (whole, removed, replaced)]
        found.append((-torch.stack(losses, dim=1)).exp().cpu())
    return torch.cat(found).numpy()


def compare(folders: Sequence[Path], methods: Sequence[str]) -> str:
    """The tables of several seeds; each method is compared with the first."""
    runs = [run for folder in folders for run in sorted(folder.glob("seed*")) or [folder]]
    values = {name: [] for name in methods}  # of each method an array of every seed
    own = []  # of every seed which records the changed statement answers
    contexts = []
    for run in runs:
        results = read_results(run)
        data = train.read_data(train.configure("frozen", results["preset"], results["given"]))
        changed = changed_texts(data.split("minimal_pairs"))
        own.append(np.array([its_own for _, its_own, _, _ in changed]))
        contexts.append([record.context for record, _, _, _ in changed])
        for name in methods:
            values[name].append(probabilities(Zhyper.load(run, name), changed))
    body = []
    for name in methods:
        rows = [measures(seed, mask) for seed, mask in zip(values[name], own, strict=True)]
        body.append([name, *map(cell, zip(*rows, strict=True))])
    first_table = markdown([f"probability, {len(runs)} seeds", *MEASURES], body)
    first, *others = methods
    body = []
    for name in others:
        differences = [drop_difference(values[name], values[first], own, contexts, text) for text in (1, 2)]
        body.append([name, *differences])
    return "\n\n".join([first_table, markdown([f"− {first}", "lost when removed", "lost when replaced"], body)])


def measures(probability: np.ndarray, own: np.ndarray) -> list[float]:
    """MEASURES, of the probabilities (n, 3) of one seed."""
    moved = np.abs(probability[~own, 1:] - probability[~own, :1])
    return [*probability[own].mean(0), *moved.mean(0)]


def drop_difference(ours: list, theirs: list, own: list, contexts: list, column: int) -> str:
    """By how much more `ours` falls than `theirs` where the answer's own statement goes, with its interval."""
    seeds = []
    for one, other, mask, names in zip(ours, theirs, own, contexts, strict=True):
        more = (one[:, 0] - one[:, column]) - (other[:, 0] - other[:, column])
        by_name = {}
        for name, difference in zip(np.array(names)[mask], more[mask], strict=True):
            count, total = by_name.get(name, (0, 0.0))
            by_name[name] = (count + 1, total + difference)
        seeds.append(np.array(list(by_name.values())))
    return verdict(*paired_interval(seeds))


def main() -> None:
    parser = argparse.ArgumentParser("control.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", nargs="+", type=Path, help="a run folder, or the --out of run.py")
    parser.add_argument("--methods", default="zhyper-diag,t2l-gated", help="of the folders; the first is compared with")
    args = parser.parse_args()
    run_command(parser, lambda: print(compare(args.folder, args.methods.split(","))))


if __name__ == "__main__":
    main()
