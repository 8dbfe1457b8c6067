"""The evidence for what the paper claims: several seeds, rivals, intervals, fronts, curves and figures.

python tests/evidence/run.py --data hard_cultures --methods all --seeds 3 --steps 200
python tests/evidence/run.py --data votes --methods t2l-gated,zhyper-diag,mean,front --seconds 60   # equal seconds
python tests/evidence/run.py report FOLDER ...          # the tables again; trains nothing
python tests/evidence/run.py overview FOLDER ...        # several data sets beside each other, and a figure
python tests/evidence/run.py curves out/rank_4 out/rank_8      # folders called NAME_VALUE as points of curves
python tests/evidence/run.py strength FOLDER            # accuracy if the updates are made stronger
python tests/evidence/run.py errors FOLDER              # what the wrong answers are made of
python tests/evidence/run.py tune --data hard_cultures --seed 100 --steps 120     # writes trials.json

The first trains each seed in a run folder of train.py's, seedN in --out, and goes on if it was stopped. Beside
results.json there is then evidence.json, with the same rows and more numbers. EVIDENCE.md holds the tables.
"""
# ruff: noqa: E402

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import rivals
from prompts import best_prompt
from rivals import DERIVED, FRONT, Rival, Stronger, changed, derive, reading, trained_as, use_trials

import train
from data import Data, Record, cultures
from train import METHODS, option
from zhyper import Zhyper

UNTRAINED = ["best-prompt", *DERIVED]  # rows that train.py cannot make
ROUNDS, TIMED_STEPS = 3, 5  # of `seconds_a_step`
RATES, SCALES = (5e-4, 1e-3, 2e-3), (1.0, 4.0, 16.0)  # the trials of every method
FACTORS = (0.5, 1.0, 1.5, 2.0, 3.0)  # of `strength`
COMPARED = ("new_wording", "unseen", "ood", "inferred", "inferred_ood")
MAJORITY_SHARE = cultures.MAJORITY_SHARE


@dataclass(frozen=True)
class Settings(train.Settings):
    """The options of train.py, and how many seeds."""

    methods: str = option("all", f"of {', '.join([*METHODS, *UNTRAINED])}, front, all; METHOD@rank=8 changes one")
    out: str | None = option(None, "the folder of the run folders; out/DATA-evidence if left out")
    seeds: int = option(3, "how many, from --seed on")
    seconds: float | None = option(None, "give each method as many steps as fit: some are timed first")
    wording: str | None = option(None, "verbs: descriptions of votes put a verb beside each topic")
    encoder_layers: int | None = option(None, "of the small encoder; the preset's if left out")
    unbalanced: bool = option(False, "draw the countries of training evenly, in place of one vote evenly, in votes")
    bias: float = option(MAJORITY_SHARE, "how often the backbone's answers are the majority's, in cultures")

    def __post_init__(self):
        for name in self.names:
            if "@" in name and name not in METHODS:
                METHODS[name] = changed(name)
        super().__post_init__()

    @property
    def names(self) -> list[str]:
        groups = {"all": [*METHODS, *UNTRAINED], "front": FRONT}
        names = []
        for name in self.methods.split(","):
            names += groups.get(name, [name])
        return list(dict.fromkeys(names))

    @property
    def chosen_methods(self) -> list[str]:
        """What train.py trains."""
        sources = ["zhyper-diag"] if set(self.names) & set(DERIVED) else []
        return list(dict.fromkeys([*(name for name in self.names if name not in UNTRAINED), *sources])) or ["frozen"]

    @property
    def run(self) -> Path:
        return Path(self.out or f"out/{Path(self.data).stem}-evidence")

    def of_seed(self, seed: int, methods: Sequence[str]) -> train.Settings:
        options = {field.name: getattr(self, field.name) for field in fields(train.Settings)}
        own = {"methods": ",".join(methods), "seed": seed, "out": str(self.run / f"seed{seed}")}
        return train.Settings(**options | own)


# ---- training


def train_seeds(settings: Settings) -> None:
    """Train every seed, the longest method first, and print the tables."""
    if settings.encoder_layers:
        preset = settings.sizes
        encoder = replace(preset.encoder, layers=settings.encoder_layers)
        train.PRESETS[settings.preset_name] = replace(preset, encoder=encoder)
    use_trials(settings.data)
    METHODS.update({name: changed(name) for name in settings.names if "@" in name})
    first = settings.of_seed(settings.seed, settings.chosen_methods)
    seconds = seconds_a_step(first, settings.run / "plan.json")
    if settings.seconds:
        for name in seconds:
            steps = max(1, round(settings.seconds / seconds[name]))
            METHODS[name] = replace(Rival(**vars(METHODS[name])), steps=steps)
    longest_first = sorted(settings.chosen_methods, key=lambda name: -seconds.get(name, 0))
    train.say(f"seconds a step: {seconds}")
    parts = []
    for seed in range(settings.seed, settings.seed + settings.seeds):
        job = settings.of_seed(seed, longest_first)
        train.run(job)
        parts.append(complete(job, settings.names))
    print(tables(parts))


def seconds_a_step(job: train.Settings, path: Path) -> dict[str, float]:
    """Of each method that trains anything, on few records: the least of `ROUNDS` rounds, each of `TIMED_STEPS`.

    What `path` knows already is not timed again.
    """
    known = json.loads(path.read_text()) if path.exists() else {}
    names = [name for name in job.chosen_methods if METHODS[name].kind]
    if set(names) - set(known):
        data = train.read_data(job)
        base = train.build_base(data, job)
        data = train.leave_out_long(data, base, job)
        texts = sorted({record.description for record in data.split("train")})
        some = set(train.sample_records(texts, 100, 0))  # with all their questions, as in training
        data = replace(data, records=[record for record in data.split("train") if record.description in some])
    fresh = [name for name in names if name not in known]
    for timed in range(ROUNDS + 1):  # all methods round after round: what else the machine does hits none alone
        for name in fresh:
            steps = TIMED_STEPS if timed else 2  # the first two do not count
            with tempfile.TemporaryDirectory() as folder, trained_as(name, data, job) as (own_data, own_job):
                own_job = replace(own_job, steps=steps, out=folder, lr=1e-6)  # no loss diverges
                took = train.fit(train.build_system(name, base, own_job), name, own_data, own_job)["seconds"]
            if timed:
                known[name] = min(known.get(name, math.inf), took / steps)
    if fresh:
        path.parent.mkdir(parents=True, exist_ok=True)
        train.write_json(path, known)
    return {name: known[name] for name in names}


# ---- more numbers


def complete(job: train.Settings, names: Sequence[str]) -> dict:
    """evidence.json of a run folder: the rows of results.json with more numbers, and the `UNTRAINED` of `names`."""
    path = job.run / "evidence.json"
    settings, results = (json.loads((job.run / f"{name}.json").read_text()) for name in ("settings", "results"))
    evidence = json.loads(path.read_text()) if path.exists() else {"contexts": {}, "rows": {}}
    trained, rows = results["rows"], evidence["rows"]
    wanted = {name: row for name, row in trained.items() if rows.get(name, {}).get("from") != row}
    for name in [*names, *rows]:
        source = trained.get("zhyper-diag") if name in DERIVED else {}
        if name in UNTRAINED and rows.get(name, {}).get("from") != source:
            wanted[name] = source
    if wanted:
        data = train.read_data(job)
        train.open_run(replace(job, force=False), data)  # raises for data that has changed
        base = train.build_base(data, job)
        data = train.leave_out_long(data, base, job)
    for name, source in wanted.items():
        if name in UNTRAINED:
            system = derive(name, data, job) if name in DERIVED else best_prompt(base, data, job, judge)
            row = train.evaluate_all(system, data, job) | {"format": getattr(system, "format", None)}
        else:
            row = source
            system = Zhyper.load(job.run, name, job.device) if (job.run / f"{name}.pt").exists() else None
        if system and row["evaluated"]:
            read = reading(getattr(METHODS.get(name), "reads", "description"), data)
            row = row | more_numbers(system, read, job, by_choice=not row.get("trainable"))
        rows[name] = row | {"from": source}
        for split, records in train.evaluated_splits(data, job).items():
            evidence["contexts"][split] = [record.context for record in records]
        train.write_json(path, evidence)
    evidence["rows"] = {name: rows[name] for name in [*METHODS, *UNTRAINED, *rows] if name in rows}
    return evidence | {"settings": settings, "measure": results["measure"]}


def more_numbers(system: Zhyper, data: Data, job: train.Settings, by_choice: bool) -> dict:
    """Of each split which records are right, as a text "0110...", and if wanted the accuracy by choice.

    That is for what trains nothing: it may know an answer and not its words.
    """
    found, right = {}, {}
    for split, records in train.evaluated_splits(data, job).items():
        exact = train.score_records(system, records, [record.description for record in records])[2]
        right[split] = "".join(str(int(each)) for each in exact)
        if by_choice and all(len(record.choices) > 1 for record in records):
            found[f"choice, {split}"] = {"accuracy": choice_accuracy(system, records)}
    return {"choice": found, "right": right}


def choice_accuracy(system: Zhyper, records: Sequence[Record]) -> float:
    """How often the right one of a record's choices has the least loss per token: a row for each of them."""
    candidates = []
    for record in records:
        candidates += [record._replace(answer=choice) for choice in record.choices]
    loss, tokens, _ = train.score_records(system, candidates, [candidate.description for candidate in candidates])
    per_token = (loss / tokens).split([len(record.choices) for record in records])
    pairs = zip(records, per_token, strict=True)
    return statistics.mean(record.choices[losses.argmin()] == record.answer for record, losses in pairs)


def judge(system: Zhyper, records: Sequence[Record]) -> float:
    """By choice, or else by the loss: more is better."""
    if all(len(record.choices) > 1 for record in records):
        return choice_accuracy(system, records)
    return -train.evaluate(system, records, [record.description for record in records])["nll"]


# ---- tables


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def cell(values: Sequence[float | None], digits: int = 3) -> str:
    """The mean over seeds, ± the sample standard deviation; "–" for what is not there."""
    if not values or None in values:
        return "–"
    spread = f" ±{statistics.stdev(values):.{digits}f}" if len(values) > 1 and digits else ""
    return f"{statistics.mean(values):z,.{digits}f}{spread}"


def by_method(parts: Sequence[dict]) -> dict[str, list[dict]]:
    """{method: its rows, one for each seed that has it}."""
    groups = defaultdict(list)
    for part in parts:
        for name, row in part["rows"].items():
            groups[name].append(row)
    return groups


def scores(rows: Sequence[dict], split: str, measure: str = "accuracy") -> list[float | None]:
    return [(row["evaluated"] | row.get("choice", {})).get(split, {}).get(measure) for row in rows]


def main_table(parts: Sequence[dict]) -> str:
    """A row for each method: its sizes, every split, the controls, the margin, and accuracy by choice."""
    groups, measure = by_method(parts), parts[0]["measure"]
    sizes = ["trainable", "encoder", "steps", "seconds"]
    splits = list(dict.fromkeys(split for rows in groups.values() for split in rows[0]["evaluated"]))
    choices = list(dict.fromkeys(split for rows in groups.values() for split in rows[0].get("choice", {})))
    body = []
    for name, rows in groups.items():
        cells = [name, *(cell([row.get(size, 0) for row in rows], 0) for size in sizes)]
        cells += [cell(scores(rows, split, measure)) for split in splits]
        cells.append(cell([row.get("margin") for row in rows]))
        cells += [cell(scores(rows, split)) for split in choices]
        body.append(cells)
    return markdown([measure, *sizes, *splits, "margin", *choices], body)


def difference_table(parts: Sequence[dict], against: str) -> str:
    """How far each method is ahead of one of them, on the same records, with 95 % intervals."""
    splits = [split for split in COMPARED if split in parts[0]["contexts"]]
    body = []
    for name in by_method(parts):
        both = [part for part in parts if part["rows"].get(name, {}).get("right") and against in part["rows"]]
        if name == against or not both:
            continue
        cells = [name]
        for split in splits:
            found = []
            for part in both:
                one, two = (part["rows"][method]["right"][split] for method in (name, against))
                found.append(by_context(one, two, part["contexts"][split]))
            cells.append(verdict(*paired_interval(found)))
        body.append(cells)
    return markdown([f"− {against}", *splits], body) if body else ""


def by_context(one: str, two: str, contexts: Sequence[str]) -> np.ndarray:
    """Of each context the number of records, and by how many `one` has more of them right than `two`: (n, 2)."""
    found = defaultdict(lambda: [0, 0])
    for context, a, b in zip(contexts, one, two, strict=True):
        found[context][0] += 1
        found[context][1] += int(a) - int(b)
    return np.array(list(found.values()))


def paired_interval(seeds: Sequence[np.ndarray], draws: int = 2000) -> tuple[float, float, float]:
    """Mean and 95 % interval of differences (`by_context`, an array for each seed), by a bootstrap.

    Seeds are drawn with replacement, and in each of them contexts, since the records of one context go together.
    """
    rng = np.random.default_rng(0)
    sums = np.stack([seed[rng.integers(len(seed), size=(draws, len(seed)))].sum(1) for seed in seeds])  # (s, draws, 2)
    drawn = rng.integers(len(seeds), size=(len(seeds), draws))
    total = sums[drawn, np.arange(draws)].sum(0)  # (draws, 2)
    low, high = np.quantile(total[:, 1] / total[:, 0], [0.025, 0.975])
    records, ahead = np.concatenate(seeds).sum(0)
    return ahead / records, low, high


def verdict(mean: float, low: float, high: float) -> str:
    word = "ahead" if low > 0 else "behind" if high < 0 else "tie"
    return f"{mean:z.3f} [{low:z.3f}, {high:z.3f}] {word}"


def front_table(parts: Sequence[dict], other: str = "t2l-gated") -> str:
    """How many times fewer parameters a method trains than `other` needs for the same accuracy, seed by seed."""
    splits = [split for split in COMPARED[1:] if split in parts[0]["contexts"]]
    body = []
    for name, rows in by_method(parts).items():
        if not rows[0].get("trainable") or None in scores(rows, splits[0]) or name.startswith((other, "lora")):
            continue
        cells = [name, cell([row["trainable"] for row in rows], 0)]
        for split in splits:
            ratios = []
            for part, row in zip(parts, rows, strict=False):
                needs, bound = needed(points_of(part, other, split), row["evaluated"][split]["accuracy"])
                ratios.append(f"{bound}{needs / row['trainable']:.1f}")
            cells += [cell(scores(rows, split)), ", ".join(ratios)]
        body.append(cells)
    head = [title for split in splits for title in (split, "times fewer")]
    return markdown([f"than {other}", "trainable", *head], body)


def points_of(part: dict, method: str, split: str) -> list[tuple[int, float]]:
    """(trained parameters, accuracy) of every size of a method, smallest first."""
    rows = [row for name, row in part["rows"].items() if name.split("@")[0] == method]
    points = [(row["trainable"], row["evaluated"].get(split, {}).get("accuracy")) for row in rows]
    return sorted(point for point in points if point[1] is not None)


def needed(points: Sequence[tuple[int, float]], wanted: float) -> tuple[float, str]:
    """The trained parameters at which sizes reach an accuracy, between them on a log scale; and "≤ ", "> " or ""."""
    small, low = points[0]
    if wanted <= low:
        return small, "≤ "
    for large, high in points[1:]:
        if wanted <= high:
            share = (wanted - low) / (high - low)
            return small * (large / small) ** share, ""
        if high > low:  # a larger size never counts as worse
            low = high
        small = large
    return small, "> "


def tables(parts: Sequence[dict], against: str = "zhyper-diag") -> str:
    """All tables of several seeds. Raises ValueError if they differ in more than the seed."""
    made_of = [part["settings"] for part in parts]
    seeds = [other["seed"] for other in made_of]
    names = {name for other in made_of for name in other if other[name] != made_of[0].get(name)}
    if names - {"seed", "records"}:
        raise ValueError(f"these folders differ in {', '.join(names - {'seed', 'records'})}: report each alone")
    if len(set(seeds)) < len(seeds):
        raise ValueError("one seed twice: name every run folder once")
    found = [main_table(parts)]
    if parts[0]["measure"] == "accuracy":
        found.append(difference_table(parts, against))
        if min(len(points_of(part, "t2l-gated", "unseen")) for part in parts) > 1:
            found.append(front_table(parts))
    formats = dict.fromkeys(row["format"] for part in parts for row in part["rows"].values() if row.get("format"))
    found.append("; best prompt: ".join([f"seeds {', '.join(map(str, seeds))}", *formats]))
    return "\n\n".join(filter(None, found))


# ---- figures


def draw(path: Path, panels: Mapping[str, Mapping[str, list[tuple]]], xlabel: str = "") -> None:
    """A panel for each title, in it the first seven series of (x, mean, spread), labelled at their ends.

    x is a number on a log scale, or else a text. Without matplotlib a line says what would install it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no figure: for that, pip install matplotlib")
        return
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe and Ito's
    down, across = math.ceil(len(panels) / 3), min(len(panels), 3)
    figure = Figure(figsize=(4 * across, 3.5 * down), layout="constrained")
    all_axes = figure.subplots(down, across, sharey=True, squeeze=False).flat
    for panel, (title, series) in zip(all_axes, panels.items(), strict=False):
        for number, (name, points) in enumerate(list(series.items())[: len(colours)]):
            x, y, spread = zip(*points, strict=True)
            panel.errorbar(x, y, spread, fmt="o-", capsize=3, color=colours[number])
            label = {"xytext": (4, (-12, 5)[number % 2]), "textcoords": "offset points"}  # below, above, below
            panel.annotate(name, (x[-1], y[-1]), color=colours[number], fontsize=9, **label)
            if not isinstance(x[0], str):
                panel.set_xscale("log")
        panel.margins(x=0.3)
        panel.set(title=title, xlabel=xlabel, ylabel="accuracy")
    figure.savefig(path, dpi=100)
    print(f"the figure is {path}")


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


# ---- the commands


def jobs_of(folder: str) -> list[train.Settings]:
    """The settings of one run folder, or of each in the --out of several seeds, whatever its methods."""
    jobs = []
    for path in sorted(Path(folder).glob("seed*/settings.json")) or [Path(folder) / "settings.json"]:
        made_of = json.loads(path.read_text())
        options = {field.name: made_of[field.name] for field in fields(train.Settings) if field.name in made_of}
        jobs.append(train.Settings(**options, methods="frozen", out=str(path.parent)))
    return jobs


def report(args: argparse.Namespace) -> None:
    """the tables of folders again"""
    parts = [complete(job, []) for folder in args.folder for job in jobs_of(folder)]
    print(tables(parts, args.against))


def overview(args: argparse.Namespace) -> None:
    """several data sets beside each other, and accuracy against trained parameters as a figure"""
    columns, trained, panels = {}, {}, {}
    for folder in args.folder:
        parts = [complete(job, []) for job in jobs_of(folder)]
        data = Path(parts[0]["settings"]["data"]).stem
        for split in args.split.split(","):
            rows_of = {name: rows for name, rows in by_method(parts).items() if None not in scores(rows, split)}
            trained |= {name: rows[0].get("trainable", 0) for name, rows in rows_of.items()}
            columns[f"{data}, {split}"] = {name: cell(scores(rows, split)) for name, rows in rows_of.items()}
            series = defaultdict(list)  # {method: (trained parameters, accuracy, spread) of each of its sizes}
            for name, rows in rows_of.items():
                series[name.split("@")[0]].append((trained[name], *mean_and_spread(scores(rows, split))))
            several = {name for name, points in series.items() if len(points) > 1}
            if several:
                drawn = {name: sorted(points) for name, points in series.items() if name in several | {"lora"}}
                panels[f"{data}, {split}"] = drawn
    names = [name for name in trained if "@" not in name]  # other sizes are in the figure alone
    body = [[name, f"{trained[name]:,}", *(cells.get(name, "–") for cells in columns.values())] for name in names]
    print(markdown(["accuracy", "trainable", *columns], body))
    if panels:
        draw(Path(args.to), panels, "trained parameters (encoder apart)")


def curves(args: argparse.Namespace) -> None:
    """accuracy against what changes between folders called NAME_VALUE"""
    found = defaultdict(lambda: defaultdict(dict))  # {NAME: {method: {VALUE: accuracies of its seeds}}}
    for folder in args.folder:
        title, _, value = Path(folder).name.rpartition("_")
        for name, rows in by_method([complete(job, []) for job in jobs_of(folder)]).items():
            accuracies = scores(rows, args.split)
            if None not in accuracies:
                found[title][name][value] = accuracies
    panels = defaultdict(dict)
    for title, series in found.items():
        values = sorted({x for points in series.values() for x in points}, key=lambda x: (len(x.split(".")[0]), x))
        body = [[x, *(cell(points.get(x, [])) for points in series.values())] for x in values]
        print(markdown([title, *series], body), end="\n\n")
        for name, points in series.items():
            panels[title][name] = [(x, *mean_and_spread(points[x])) for x in values if x in points]
    draw(Path(args.to), panels)


def data_of(job: train.Settings) -> Data:
    """The data of a run folder. Raises ValueError if it was made with other options."""
    data = train.read_data(job)
    if json.loads((job.run / "settings.json").read_text())["records"] != data.fingerprint:
        options = "--wording, --unbalanced or --bias"
        raise ValueError(f"{job.run} has other records: give the {options} with which it was made")
    return train.leave_out_long(data, train.build_base(data, job), job)


def strength(args: argparse.Namespace) -> None:
    """accuracy if the updates of a trained method are multiplied by a factor at use"""
    found = defaultdict(lambda: defaultdict(list))
    for job in jobs_of(args.folder[0]):
        data = data_of(job)
        system = Zhyper.load(job.run, args.method, job.device)
        trained = system.hypernetwork
        for factor in FACTORS:
            system.hypernetwork = Stronger(trained, factor)
            for split, records in train.evaluated_splits(data, job).items():
                score = train.evaluate(system, records, [record.description for record in records])
                found[factor][split].append(score[data.measure])
    body = [[f"{factor:g}", *map(cell, splits.values())] for factor, splits in found.items()]
    print(markdown([f"{args.method} ×", *found[FACTORS[0]]], body))


def errors(args: argparse.Namespace) -> None:
    """what the wrong answers of a method are made of: accuracy by right answer, by what is guessed, by question"""
    found = defaultdict(lambda: defaultdict(list))  # {which records: {split: 1 for each that is right, else 0}}
    questions = set()
    for job in jobs_of(args.folder[0]):
        data = data_of(job)
        row = complete(job, [])["rows"][args.method]
        for split, records in train.evaluated_splits(data, job).items():
            for record, right in zip(records, row["right"][split], strict=True):
                question = record.prompt.replace("\n", " ")
                questions.add(question)
                kinds = [f"the answer is{record.answer}", question]
                for name, guesses in data.references.items():
                    word = "right" if guesses[record] == record.answer else "wrong"
                    kinds.append(f"{name} is {word}")
                for kind in kinds:
                    found[kind][split].append(int(right))
    splits = [split for split in COMPARED if split in row["right"]]
    wrong = {question: sum(found[question][split].count(0) for split in splits) for question in questions}
    worst = sorted(sorted(questions), key=wrong.get, reverse=True)[:5]
    body = []
    for kind in sorted(found.keys() - questions) + worst:
        cells = []
        for split in splits:
            rights = found[kind][split]
            cells.append(f"{statistics.mean(rights):.3f} of {len(rights)}" if rights else "–")
        body.append([kind, *cells])
    print(markdown([args.method, *splits], body))


def tune(settings: Settings) -> None:
    """Try every rate and scale for each method, on the validation split, and write trials.json."""
    keys = []
    for name in settings.chosen_methods:
        if METHODS[name].kind and getattr(METHODS[name], "reads", "description") == "description":
            keys += [f"{name}@lr={lr:g}@scale={scale:g}" for lr in RATES for scale in SCALES]
    METHODS.update({key: changed(key) for key in keys})
    results = train.run(replace(settings.of_seed(settings.seed, keys), validate=True))
    made_of = {"data": settings.data, "seed": settings.seed, "steps": settings.steps, "dtype": settings.dtype}
    known = json.loads(rivals.TRIALS.read_text()) if rivals.TRIALS.exists() else {"made_of": made_of, "trials": {}}
    if known["made_of"] != made_of:
        raise ValueError(f"{rivals.TRIALS} is of {known['made_of']}, not {made_of}: delete it to start again")
    for key in keys:
        row = results["rows"][key]
        diverged = {"accuracy": 0.0, "nll": 99.0}
        trial = row["evaluated"].get("validation", diverged) | {"seconds": row.get("seconds", 0.0)}
        known["trials"][key] = {name: round(value, 4) for name, value in trial.items()}
    rivals.TRIALS.write_text(json.dumps(known, indent=1) + "\n")
    points = [f"@lr={lr:g}@scale={scale:g}" for lr in RATES for scale in SCALES]
    body = []
    for name in dict.fromkeys(key.split("@")[0] for key in known["trials"]):
        body.append([name, *(cell([known["trials"].get(name + point, {}).get("accuracy")]) for point in points)])
    print(markdown(["validation", *points], body))


def main() -> None:
    commands = {function.__name__: function for function in (report, overview, curves, strength, errors, tune)}
    name = sys.argv[1] if sys.argv[1:] and sys.argv[1] in commands else ""
    function = commands.get(name, train_seeds)
    trains = function in (train_seeds, tune)
    parser = argparse.ArgumentParser(f"run.py {name}".strip(), description=function.__doc__)
    of_data = ("wording", "unbalanced", "bias")  # options that change the data, also of an earlier run
    for setting in fields(Settings):
        if not trains and setting.name not in of_data:
            continue
        how = {"action": "store_true"}
        if setting.type is not bool:
            types = get_args(setting.type) or (setting.type,)  # int | None: int
            how = {"type": types[0], "default": setting.default}
        text = f"{setting.metadata['help']} (default: {setting.default})"
        parser.add_argument(f"--{setting.name.replace('_', '-')}", help=text, **how)
    if not trains:
        parser.add_argument("folder", nargs="+", help="a run folder, or the --out of several seeds")
        parser.add_argument("--against", default="zhyper-diag", help="report: whom the others are compared with")
        parser.add_argument("--split", default="unseen", help="curves, overview (several: unseen,ood): what is shown")
        parser.add_argument("--to", default="figure.png", help="curves, overview: the file of the figure")
        parser.add_argument("--method", default="zhyper-diag", help="strength, errors: of which method")
    args = parser.parse_args(sys.argv[2:] if name else None)
    cultures.MAJORITY_SHARE = args.bias
    if args.wording:
        train.load = partial(train.load, wording=args.wording)
    if args.unbalanced:
        train.load = partial(train.load, balanced=False)
    try:
        function(Settings(**vars(args)) if trains else args)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
