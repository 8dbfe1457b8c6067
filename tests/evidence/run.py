"""The evidence for what the paper claims: several seeds, rivals, and intervals.

python tests/evidence/run.py --data votes --seeds 3 --methods t2l-gated,zhyper-diag,mean
python tests/evidence/run.py report FOLDER ...        # the tables again; trains nothing
python tests/evidence/run.py overview FOLDER ...      # several data sets beside each other, and a figure

The first takes all options of train.py. Each seed is a run folder of train.py's, seedN in --out, whose results.json
then also holds the rows of what train.py cannot make (rivals.py, prompts.py) and the context of each record. The same
command goes on with what was stopped; with other --methods or more --seeds it adds them to what is there. A name
may change a method: zhyper-diag@rank=12@lr=1e-3.
"""
# ruff: noqa: E402

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import prompts  # noqa: F401 (it adds best-prompt to METHODS and ROWS)
from rivals import DERIVED, ROWS, add_changed

import train
from train import METHODS, PRESETS
from zhyper import Zhyper, run_command

COMPARED = ("new_wording", "unseen", "ood", "own_words", "own_words_four", "inferred", "inferred_ood", "minimal_pairs")

# ---- training


def train_seeds(given: dict, seeds: int) -> None:
    """Train every seed, and print the tables; `given` are options of train.py."""
    if "resume" in given:
        raise ValueError("the same command goes on with what was stopped: leave out --resume")
    data = given.get("data", "cultures")
    preset = given.pop("preset", data if data in PRESETS else "default")
    methods = given.pop("methods", "all")
    methods = list(METHODS) if methods == "all" else methods.split(",")
    folder = Path(given.pop("out", f"out/{Path(data).stem}-evidence"))
    first = given.pop("seed", 0)
    for seed in range(first, first + seeds):
        train_seed(folder / f"seed{seed}", methods, preset, given | {"seed": seed})
    print(tables(results_of(folder)))


def train_seed(folder: Path, methods: Sequence[str], preset: str, given: dict) -> None:
    """Train and evaluate what a run folder does not have yet."""
    results = {"methods": [], "preset": preset, "given": given}
    if folder.exists():
        results = read_results(folder)
        if results["preset"] != preset or results["given"] != given:
            problem = f"{folder} was made with the preset {results['preset']} and {results['given']}"
            raise ValueError(f"{problem}: give the same options, or another --out")
    names = list(dict.fromkeys([*results["methods"], *methods]))
    for name in names:
        if "@" in name:
            add_changed(name, given)
        train.configure(name, preset, given)  # raises for a name or a value that is impossible
    if set(methods) & set(DERIVED) and "zhyper-diag" not in names:
        names.append("zhyper-diag")  # of which they are made
    results["methods"] = [name for name in names if own_name(name) not in ROWS] or ["frozen"]
    if folder.exists():
        train.write_results(folder, results)
        results = train.resume(folder)
    else:
        results = train.run(folder, results["methods"], preset, given)
    missing = [name for name in names if name not in results["rows"]]
    if missing or "contexts" not in results:
        add_rows(folder, results, missing)


def add_rows(folder: Path, results: dict, methods: Sequence[str]) -> None:
    """Add to a folder's results the rows of these methods, and the context of each evaluated record."""
    options = (results["preset"], results["given"])
    config = train.configure("frozen", *options)
    data = train.read_data(config)
    path = folder / "backbone.pt"  # a real model's is not there
    base = Zhyper.from_file(path)[0].to(config.device) if path.exists() else train.build_base(data, config)
    results["contexts"] = {}
    for split, (records, _) in train.evaluation_plan(data, config).items():
        results["contexts"][split] = [record.context for record in records]
    train.write_results(folder, results)
    for name in methods:
        make_row = ROWS[own_name(name)]
        results["rows"][name] = make_row(name, folder, base, data, train.configure(name, *options))
        train.write_results(folder, results)


def own_name(name: str) -> str:  # "zhyper-diag" of "zhyper-diag@rank=12"
    return name.partition("@")[0]


def read_results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def results_of(folder: Path) -> list[dict]:
    """The results of every seed of a folder, or of one run folder. Raises FileNotFoundError, ValueError."""
    found = [read_results(each) for each in sorted(folder.glob("seed*")) or [folder]]
    if any("contexts" not in results for results in found):
        raise ValueError(f"{folder} is not finished: give the command again that made it")
    return found


# ---- tables: `seeds` are the results of several seeds


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def label(text: str, count: int, seeds: Sequence[dict]) -> str:
    """The text, with the number of seeds behind it where that is not all of them."""
    return text if count == len(seeds) else f"{text} ({count} of {len(seeds)} seeds)"


def cell(values: Sequence[float | None], digits: int = 3) -> str:
    """The mean over seeds, ± the sample standard deviation; "–" for what is not there."""
    if None in values:
        return "–"
    spread = f" ±{statistics.stdev(values):.{digits}f}" if len(values) > 1 and digits else ""
    return f"{statistics.mean(values):z,.{digits}f}{spread}"


def by_method(seeds: Sequence[dict]) -> dict[str, list[dict]]:
    """{method: its rows, one for each seed that has it}; guesses, which have no margin, are last."""
    names = dict.fromkeys(name for results in seeds for name in results["rows"])
    found = {name: [results["rows"][name] for results in seeds if name in results["rows"]] for name in names}
    return dict(sorted(found.items(), key=lambda item: "margin" not in item[1][0]["accuracy"]))


def accuracies(rows: Sequence[dict], split: str) -> list[float | None]:
    return [row["accuracy"].get(split) for row in rows]


def main_table(seeds: Sequence[dict]) -> str:
    """A row for each method: its sizes, and the accuracy on every split and control."""
    rows_of = by_method(seeds)
    sizes = ["trainable", "encoder", "steps", "seconds"]
    splits = list(dict.fromkeys(split for rows in rows_of.values() for split in rows[0]["accuracy"]))
    body = []
    for name, rows in rows_of.items():
        cells = [label(name, len(rows), seeds)]
        cells += [cell([row.get(size, 0) for row in rows], 0) for size in sizes]
        cells += [cell(accuracies(rows, split)) for split in splits]
        body.append(cells)
    return markdown(["accuracy", *sizes, *splits], body)


def difference_table(seeds: Sequence[dict], against: str) -> str:
    """How far each method is ahead of one of them, on the same records of the seeds that both have."""
    splits = [split for split in COMPARED if split in seeds[0]["contexts"]]
    body = []
    for name in by_method(seeds):
        both = [results for results in seeds if {name, against} <= results["rows"].keys()]
        if name == against or not both:
            continue
        cells = [label(name, len(both), seeds)]
        for split in splits:
            differences = []
            for results in both:
                one, other = (results["rows"][method]["exact"][split] for method in (name, against))
                differences.append(by_context(one, other, results["contexts"][split]))
            cells.append(verdict(*paired_interval(differences)))
        body.append(cells)
    return markdown([f"− {against}", *splits], body)


def by_context(one: str, other: str, contexts: Sequence[str]) -> np.ndarray:
    """Of each context the number of records, and by how many `one` has more of them right: (n, 2)."""
    found = defaultdict(lambda: [0, 0])
    for context, a, b in zip(contexts, one, other, strict=True):
        found[context][0] += 1
        found[context][1] += int(a) - int(b)
    return np.array(list(found.values()))


def paired_interval(seeds: Sequence[np.ndarray], draws: int = 2000) -> tuple[float, float, float]:
    """Mean and 95 % interval of differences (`by_context`, an array for each seed), by a bootstrap.

    Seeds are drawn with replacement, and in each of them contexts, since the records of one context go together.
    """
    rng = np.random.default_rng(0)
    sums = []
    for seed in seeds:
        drawn = rng.integers(len(seed), size=(draws, len(seed)))  # which contexts, for each draw
        sums.append(seed[drawn].sum(1))  # (draws, 2)
    drawn = rng.integers(len(seeds), size=(len(seeds), draws))  # which seeds
    total = np.stack(sums)[drawn, np.arange(draws)].sum(0)  # (draws, 2)
    low, high = np.quantile(total[:, 1] / total[:, 0], [0.025, 0.975])
    records, ahead = np.concatenate(seeds).sum(0)
    return ahead / records, low, high


def verdict(mean: float, low: float, high: float) -> str:
    word = "ahead" if low > 0 else "behind" if high < 0 else "tie"
    return f"{mean:z.3f} [{low:z.3f}, {high:z.3f}] {word}"


def tables(seeds: Sequence[dict], against: str = "zhyper-diag") -> str:
    """All tables of several seeds. Raises ValueError if they differ in more than the seed."""
    numbers = [results["given"].get("seed", 0) for results in seeds]
    if len(set(numbers)) < len(numbers):
        raise ValueError("one seed twice: name every run folder once")
    first, *others = [results["given"] | {"preset": results["preset"], "seed": None} for results in seeds]
    for other in others:
        if other != first:
            raise ValueError(f"these folders differ, {first} and {other}: report each alone")
    last = f"Seeds behind each number: {len(seeds)} ({', '.join(map(str, numbers))}). A row with fewer says so."
    return "\n\n".join([main_table(seeds), difference_table(seeds, against), last])


# ---- the commands


def report(args: argparse.Namespace) -> None:
    print(tables([results for folder in args.folder for results in results_of(folder)], args.against))


def overview(args: argparse.Namespace) -> None:
    """Put several data sets beside each other, and draw accuracy against trained parameters."""
    trainable = {}  # {method: trained parameters}
    columns = {}  # {title: {method: its cell}}
    panels = {}  # {title: {method: (trained parameters, mean, spread) of each of its sizes}}
    for folder in args.folder:
        seeds = results_of(folder)
        for split in args.split.split(","):
            cells = columns[f"{folder.name}, {split}"] = {}
            points = panels[f"{folder.name}, {split}"] = defaultdict(list)
            for name, rows in by_method(seeds).items():
                trainable[name] = rows[0].get("trainable", 0)
                values = accuracies(rows, split)
                cells[name] = label(cell(values), len(rows), seeds)
                if trainable[name] and None not in values:
                    points[own_name(name)].append((trainable[name], np.mean(values), np.std(values)))
    body = [[name, f"{trainable[name]:,}", *(cells.get(name, "–") for cells in columns.values())] for name in trainable]
    print(markdown(["accuracy", "trainable", *columns], body))
    draw(panels, args.to)


def draw(panels: dict[str, dict[str, list[tuple]]], to: str) -> None:
    """A panel for each title, in it a line for each method. Raises ValueError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("the figure is drawn by matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(4 * len(panels), 3.5), layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False).flat
    for axes, (title, series) in zip(all_axes, panels.items(), strict=True):
        for name, points in series.items():
            axes.errorbar(*zip(*sorted(points), strict=True), fmt="o-", capsize=3, label=name)
            axes.legend(fontsize=7)
        axes.set(title=title, xscale="log", xlabel="trained parameters (encoder apart)", ylabel="accuracy")
    figure.savefig(to, dpi=100)
    print(f"the figure is {to}")


def main() -> None:
    parser = argparse.ArgumentParser("run.py", description=__doc__, allow_abbrev=False)  # --seed is not --seeds
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    if sys.argv[1:2] in (["report"], ["overview"]):
        parser.add_argument("command")
        parser.add_argument("folder", nargs="+", type=Path, help="a run folder, or the --out of several seeds")
        parser.add_argument("--against", default="zhyper-diag", help="report: whom the others are compared with")
        parser.add_argument("--split", default="unseen", help="overview: what is shown, as unseen,ood")
        parser.add_argument("--to", default="overview.png", help="overview: the file of the figure")
        args = parser.parse_args()
        command = report if args.command == "report" else overview
        run_command(parser, lambda: command(args))
    else:
        parser.epilog = "All other options are those of train.py: python train.py --help lists them."
        parser.add_argument("--seeds", type=int, default=3, help="how many, from --seed on")
        args, sys.argv[1:] = parser.parse_known_args()
        _, given = train.parse_options()
        run_command(parser, lambda: train_seeds(given, args.seeds))


if __name__ == "__main__":
    main()
