"""The evidence for what the paper claims: more seeds, rivals, intervals, counts and figures.

python tests/evidence.py --data hard_cultures --methods all --seeds 3 --seconds 60
python tests/evidence.py report FOLDER ...           # the same tables and a figure; trains nothing
python tests/evidence.py curves FOLDER ...           # several of them, or sizes in one, as curves
python tests/evidence.py tune --data hard_cultures --seed 100 --steps 200     # what rivals.py reads
python tests/evidence.py params --backbone mistral-7b --rank 8 --modules q,v    # at a real size
python tests/evidence.py figures --run out/cultures  # z of several texts, and how they differ

The first trains several seeds, each in a run folder of train.py's, and goes on if it was stopped.
Beside results.json it writes evidence.json: the same rows with more numbers, and those of the
rivals, which are only here (rivals.py). EVIDENCE.md holds the tables with their commands.
"""

import json
import math
import random
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

from rivals import FRONT, RIVALS, TRIALS, TUNED, ByName, rival, train_rival, use_trials  # noqa: E402

import train  # noqa: E402
from data import Data, Record, cultures  # noqa: E402
from data._cli import Parser, markdown, one_line_errors, parse  # noqa: E402
from data._controls import evaluated_splits, other_descriptions  # noqa: E402
from data._files import checksum, only_writer, open_results, write_file  # noqa: E402
from data.cultures import ANSWERS, NAMES, ask, describe, draw_culture  # noqa: E402
from hyper import HYPERNETWORKS, HyperConfig, LowRank, check_choice  # noqa: E402
from train import METHODS, PRESETS, option  # noqa: E402
from zhyper import Zhyper  # noqa: E402

GROUPS = {"all": [*METHODS, *RIVALS], "front": FRONT}
RATES, SCALES = (5e-4, 1e-3, 2e-3), (1.0, 4.0, 16.0)  # the trials of every method


@dataclass(frozen=True)
class Settings(train.Settings):
    """The options of train.py, and how many seeds."""

    methods: str = option(train.Settings.methods, f"or {', '.join(GROUPS)}; all: {', '.join(GROUPS['all'])}")
    out: str | None = option(None, "the folder of the run folders; out/DATA-evidence if left out")
    seeds: int = option(3, "how many, from --seed on; each has a run folder, seedN in --out")
    bias: float | None = option(None, "how often the backbone's answers are the majority's, in cultures")

    def __post_init__(self):
        super().__post_init__()
        for name in self.rivals:
            self.hyper_config(rival(name).method)
        if self.seeds < 1:
            raise ValueError(f"seeds is {self.seeds}: it must be at least 1")
        if self.bias is not None and not 0 < self.bias < 1:
            raise ValueError(f"bias is {self.bias}: it must be between 0 and 1")

    @property
    def named(self) -> list[str]:
        names = self.methods.replace(" ", "").split(",")
        return list(dict.fromkeys(each for name in names for each in GROUPS.get(name, [name])))

    @property
    def chosen(self) -> list[str]:
        return [name for name in self.named if name in METHODS]

    @property
    def rivals(self) -> list[str]:
        return [name for name in self.named if name not in METHODS]

    @property
    def run(self) -> Path:
        return Path(self.out or f"out/{Path(self.data).stem}-evidence")

    def of_seed(self, seed: int) -> train.Settings:
        """The settings of one seed, for train.run: the frozen model at least."""
        options = {f.name: getattr(self, f.name) for f in fields(train.Settings)}
        options |= {"methods": ",".join(self.chosen) or "frozen"}
        return train.Settings(**options | {"seed": seed, "out": str(self.run / f"seed{seed}")})


# ---- more numbers


def evaluated_rows(data: Data, settings: train.Settings) -> dict[str, list[Record]]:
    """The rows of each split that train.evaluate_all evaluates."""
    found, limit = {}, PRESETS[settings.preset].evaluate
    for split in evaluated_splits(data, settings.validate)[0]:
        rows = data.split(split)
        found[split] = random.Random(settings.seed).sample(rows, len(rows))[:limit]
    return found


def is_majority(records: Sequence[Record]) -> Tensor:
    """Which rows have the most frequent answer of their context, (n,)."""
    answers = defaultdict(Counter)
    for record in records:
        answers[record.context][record.answer] += 1
    majority = {context: counts.most_common(1)[0][0] for context, counts in answers.items()}
    usual = [float(record.answer == majority[record.context]) for record in records]
    return torch.tensor(usual, dtype=torch.float64)


def family_means(records: Sequence[Record], right: Tensor, families: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """The share of right rows (n,) in each family: the mean over its contexts that occur."""
    rows = defaultdict(list)
    for record, is_right in zip(records, right.tolist(), strict=True):
        rows[record.context].append(is_right)
    found = {f: [c for c in contexts if c in rows] for f, contexts in families.items()}
    return {f: statistics.mean(statistics.mean(rows[c]) for c in cs) for f, cs in found.items() if cs}


def by_context(system: Zhyper, found: Mapping[str, Sequence[Record]], data: Data) -> dict:
    """`majority`, the accuracy of the most frequent answers, and `families`, of each split.

    The first where a context has ten rows or more on average. A family has [accuracy, majority].
    """
    more = {"majority": {}, "families": {}}
    for split, records in found.items():
        majority = is_majority(records)
        if records and len(records) >= 10 * len({record.context for record in records}):
            more["majority"][split] = majority.mean().item()
        if records and data.families:
            exact = train.score_rows(system, records)[2]
            means = [family_means(records, right, data.families) for right in (exact, majority)]
            more["families"][split] = {f: [mean[f] for mean in means] for f in means[0]}
    return more


def bootstrap(difference: Tensor, tokens: Tensor, seed: int, draws: int = 1000) -> list[float]:
    """The 95 % interval of a paired difference of losses per token: [low, high].

    `difference` (n,) is that of each row, summed over its `tokens` (n,), so that what is hard in a
    row cancels. Rows are drawn with replacement.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(tokens), (draws, len(tokens)), generator=generator)
    means = difference[rows].sum(1) / tokens[rows].sum(1)
    return means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()


def retrieval(system: Zhyper, records: Sequence[Record], own: Tensor, seed: int) -> list[float]:
    """How often the right description gives an answer the lowest loss, and how often by chance.

    Among those of up to nine other contexts; `own` (n,) is the loss under the right one. A tie
    counts in part, so that a method that reads no text is right as often as chance.
    """
    rng, descriptions = random.Random(seed), defaultdict(list)
    for record in records:
        descriptions[record.context].append(record.description)
    count = min(9, len(descriptions) - 1)
    rivals = [rng.sample([c for c in descriptions if c != r.context], count) for r in records]
    losses = [own]
    for contexts in zip(*rivals, strict=True):
        texts = [rng.choice(descriptions[context]) for context in contexts]
        losses.append(train.score_rows(system, records, texts)[0])
    losses = torch.stack(losses)  # (10, n)
    lowest = losses == losses.min(0).values
    return [(lowest[0] / lowest.sum(0)).mean().item(), 1 / (1 + count)]


def gaps(system: Zhyper, records: Sequence[Record], seed: int) -> dict:
    """What another description or none costs in loss per token, [gap, low, high]; and retrieval."""
    own, tokens, *_ = train.score_rows(system, records)
    found, texts = {}, other_descriptions(records, seed)
    for name in ("swapped", "none"):
        difference = train.score_rows(system, records, texts[name])[0] - own
        gap = (difference.sum() / tokens.sum()).item()
        found[name] = [gap, *bootstrap(difference, tokens, seed)]
    return {"gaps": found, "retrieval": retrieval(system, records, own, seed)}


# ---- run folders


def read_json(path: Path) -> dict:
    """What write_file wrote. Raises FileNotFoundError, or ValueError if it is damaged."""
    try:
        content = json.loads(path.read_bytes())
        if content.pop("checksum") != checksum(content):
            raise ValueError("its checksum is wrong")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        again = "delete it, or train again with --force"
        raise ValueError(f"{path} is of no use ({error}): {again}") from None
    return content


def settings_of(folder: Path) -> train.Settings:
    """The settings of a run folder, whatever its methods."""
    made_of = read_json(folder / "results.json")["made_of"]
    options = {f.name: made_of[f.name] for f in fields(train.Settings) if f.name in made_of}
    return train.Settings(**options, methods="frozen", out=str(folder))


def read_data(settings: train.Settings, records: str) -> Data:
    """The data of a run, of which `records` is the fingerprint. Raises ValueError if it changed."""
    data, _ = train.read_data(settings)
    if data.fingerprint != records:
        changed = f"{settings.data} has changed since {settings.run} was trained"
        raise ValueError(f"{changed}: train again with --force")
    return data


def measured(name: str, row: dict, system: Zhyper, data: Data, settings: train.Settings) -> dict:
    """A row with more numbers; of a rival also with what train.py's rows have.

    What knows contexts by name cannot serve others, nor other descriptions: there it has None.
    """
    found = evaluated_rows(data, settings)
    if isinstance(system, ByName):
        found = {split: system.by_name(rows) for split, rows in found.items()}
        splits = {k: train.evaluate(system, rows) if rows else None for k, rows in found.items()}
        controls = dict.fromkeys(("swapped", "random", "none"))
        row = row | {"splits": splits, "controls": controls, "margin": None}
    elif name not in METHODS:
        row = row | train.evaluate_all(system, data, settings)
    row = row | by_context(system, found, data)
    if data.free_text and not isinstance(system, ByName):
        row |= gaps(system, found[evaluated_splits(data, settings.validate)[1]], settings.seed)
    return row


def complete(settings: train.Settings, more: Sequence[str] = ()) -> dict:
    """The results of a run folder with more numbers, and with rivals, which are trained first.

    evidence.json has all of these rows, so that nothing is computed twice.
    """
    folder, path, data = settings.run, settings.run / "evidence.json", None
    with only_writer(folder):
        results = open_results(folder, (), settings.identity, False)
        finished = {row["method"]: row for row in results["rows"]}
        evidence = read_json(path) if path.exists() else {}
        of = [results["made_of"], results.get("backbone")]
        if evidence.get("of") != of:
            evidence = {"of": of, "rows": {}}
            for checkpoint in folder.glob("checkpoint-*.pt"):  # train.py's own it minds itself
                if checkpoint.stem.removeprefix("checkpoint-") not in ("backbone", *METHODS):
                    checkpoint.unlink()
        rows = evidence["rows"]
        names = [*finished, *dict.fromkeys([*(name for name in rows if name not in METHODS), *more])]
        for name in names:
            same = name not in more or rows.get(name, {}).get("trained_as") == repr(rival(name))
            if name in rows and same and finished.get(name, {}).items() <= rows[name].items():
                continue
            data = data or read_data(settings, results["made_of"]["records"])
            if name in METHODS:
                row, system = finished[name], Zhyper.load(folder, name, settings.device)
            else:
                base = Zhyper.load_backbone(folder).to(settings.device)
                base.template = data.template
                row, system = train_rival(name, base, data, settings)
            rows[name] = measured(name, row, system, data, settings)
            write_file(path, evidence)
            (folder / f"checkpoint-{name}.pt").unlink(missing_ok=True)
    return results | {"rows": [rows[name] for name in names]}


# ---- tables


def check_seeds(parts: Sequence[dict]) -> None:
    """Raise ValueError unless these results differ in nothing but their seed."""
    first, seeds = parts[0]["made_of"], [part["made_of"]["seed"] for part in parts]
    for made_of in (part["made_of"] for part in parts):
        names = [k for k in made_of if made_of[k] != first.get(k) and k not in ("seed", "records")]
        if names:
            what = ", ".join(f"{name} {first.get(name)} and {made_of[name]}" for name in names)
            raise ValueError(f"these results are of different settings ({what}): report each alone")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"one seed twice, in {seeds}: name every run folder once")


def cell(values: Sequence[float | None], digits: int = 3) -> str:
    """The mean over seeds, ± the sample standard deviation; "–" for what a method cannot serve."""
    if None in values:
        return "–"
    spread = f" ±{statistics.stdev(values):.{digits}f}" if len(values) > 1 and digits else ""
    return f"{statistics.mean(values):z,.{digits}f}{spread}"


def by_method(parts: Sequence[dict]) -> dict[str, list[dict]]:
    """{method: its rows, one for each seed}. Raises ValueError if there are none."""
    groups = defaultdict(list)
    for part in parts:
        for row in part["rows"]:
            groups[row["method"]].append(row | {"seed": part["made_of"]["seed"]})
    if not groups:
        raise ValueError("no method is finished: start its training again, which goes on")
    return groups


def main_table(groups: Mapping[str, list[dict]], measure: str) -> str:
    """A row for each method: accuracy in every split, or for free text loss per token.

    The last columns are what it has more than a LoRA without text, and than with another's text.
    """
    whole = ["trainable", "encoder", "steps", "seconds"]
    sign = 1 if measure == "accuracy" else -1

    def scores(row: dict) -> dict:
        return row["splits"] | {f"({name})": score for name, score in row["controls"].items()}

    first, body = next(iter(groups.values())), []
    names = list(scores(first[0]))
    control = "unseen" if "unseen" in names else names[0]
    static = {row["seed"]: row["splits"][control][measure] for row in groups.get("lora", ())}
    majority = [cell([row["majority"].get(name) for row in first]) for name in names]
    if measure == "accuracy" and set(majority) != {"–"}:
        body.append(["majority", *["–"] * len(whole), *majority, *["–"] * (2 if static else 1)])
    for method, rows in groups.items():
        cells = [cell([row[name] for row in rows], 0) for name in whole]
        for name in names:
            found = [scores(row)[name] for row in rows]
            cells.append(cell([score and score[measure] for score in found]))
        if static:
            pairs = [(row["splits"][control], static.get(row["seed"])) for row in rows]
            ahead = [None if None in pair else sign * (pair[0][measure] - pair[1]) for pair in pairs]
            cells.append(cell(ahead))
        body.append([method, *cells, cell([row["margin"] for row in rows])])
    head = ["method", *whole, *names, *(["− lora"] if static else []), "margin"]
    return markdown(head, body)


def families_table(groups: Mapping[str, list[dict]]) -> str:
    """Accuracy in each family of contexts, a row for each split and family, if there are any."""

    def numbers(rows: list[dict], split: str, family: str, which: int) -> str:
        pairs = [row["families"].get(split, {}).get(family) for row in rows]
        return cell([pair and pair[which] for pair in pairs])

    first, body = next(iter(groups.values())), []
    for split, families in first[0]["families"].items():
        for family in families:
            accuracy = [numbers(rows, split, family, 0) for rows in groups.values()]
            body.append([split, family, numbers(first, split, family, 1), *accuracy])
    return markdown(["split", "family", "majority", *groups], body) if body else ""


def gaps_table(groups: Mapping[str, list[dict]]) -> str:
    """For free text what other descriptions cost, with intervals, and retrieval; else ""."""
    body = []
    for row in (row for rows in groups.values() for row in rows if "gaps" in row):
        cells = [f"{gap:z.3f} [{low:z.3f}, {high:z.3f}]" for gap, low, high in row["gaps"].values()]
        accuracy, chance = row["retrieval"]
        body.append([row["method"], str(row["seed"]), *cells, f"{accuracy:.3f} ({chance:.3f})"])
    head = ["method", "seed", "swapped − right", "none − right", "retrieval (chance)"]
    return markdown(head, body) if body else ""


def tables(parts: Sequence[dict]) -> str:
    """All tables of the results of several seeds, and which seeds they are of."""
    check_seeds(parts)
    groups, measure = by_method(parts), parts[0]["measure"]
    sizes = {name: rows for name, rows in groups.items() if "@" in name}
    named = {name: rows for name, rows in groups.items() if name not in sizes}
    found = [main_table(named, measure), families_table(groups), gaps_table(groups)]
    if sizes:  # a table of their own, beside the LoRA that reads no text
        found.append(main_table({k: v for k, v in named.items() if k == "lora"} | sizes, measure))
    seeds = {name: ", ".join(str(row["seed"]) for row in rows) for name, rows in groups.items()}
    every = ", ".join(str(part["made_of"]["seed"]) for part in parts)
    fewer = [f"; {name} only {some}" for name, some in seeds.items() if some != every]
    return "\n\n".join([*filter(None, found), f"seeds {every}{''.join(fewer)}"])


# ---- figures


def save_figure(path: Path, size: tuple[float, float], draw: Callable, *what) -> None:
    """Write what `draw(figure, *what)` draws; without matplotlib, print what would install it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no figure: for that, pip install matplotlib")
        return
    figure = Figure(figsize=size, layout="constrained")
    draw(figure, *what)
    figure.savefig(path, dpi=100)
    print(f"the figure is {path}")


def draw_results(figure, groups: Mapping[str, list[dict]], measure: str) -> None:
    """Accuracy, or loss, against trained parameters; sizes of a method are joined.

    A line goes through what trains nothing.
    """
    found = next(iter(groups.values()))[0]["splits"]
    splits = [split for split in ("new_wording", "unseen", "ood") if split in found] or [*found]
    panels = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for split, panel in zip(splits, panels, strict=True):
        for number, method in enumerate(dict.fromkeys(name.split("@")[0] for name in groups)):
            style = {"color": f"C{number}", "label": method}
            points = points_of(groups, method, split, measure)
            if points and points[0][0]:
                marker = "os^"[number // 10 % 3]  # ten colours, then another marker
                panel.errorbar(*zip(*points, strict=True), fmt=f"{marker}-", capsize=3, **style)
            elif points:
                panel.axhline(points[0][1], linestyle=":", **style)
        panel.set(title=split, xscale="log", xlabel="trained parameters (encoder apart)")
    panels[0].set_ylabel("accuracy" if measure == "accuracy" else "loss per token (nats)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)


def points_of(groups: Mapping[str, list[dict]], method: str, split: str, measure: str) -> list[tuple]:
    """Trained parameters, mean and spread over seeds, of every size of a method, smallest first."""
    points = []
    for name, rows in groups.items():
        values = [row["splits"][split][measure] for row in rows if row["splits"].get(split)]
        if name.split("@")[0] == method and values:
            spread = statistics.stdev(values) if values[1:] else 0
            points.append((rows[0]["trainable"], statistics.mean(values), spread))
    return sorted(points)


def needed(points: Sequence[tuple], wanted: float) -> str:
    """The trained parameters at which a family reaches an accuracy, between its sizes on a log scale."""
    best = [points[0][:2]]
    for size, mean, _ in points[1:]:  # more parameters never count as worse
        best.append((size, max(mean, best[-1][1])))
    if wanted <= best[0][1]:
        return f"at most {best[0][0]:,}"
    for (small, low), (large, high) in zip(best, best[1:], strict=False):
        if wanted <= high:
            share = (wanted - low) / (high - low)
            return f"{round(small * (large / small) ** share):,}"
    return f"more than {best[-1][0]:,}"


def front_table(groups: Mapping[str, list[dict]], other: str, splits: Sequence[str]) -> str:
    """What every size of the other methods reaches, and the parameters that one needs for it."""
    body, points = [], {split: points_of(groups, other, split, "accuracy") for split in splits}
    for method in dict.fromkeys(name.split("@")[0] for name in groups):
        if method == other or len(points_of(groups, method, splits[0], "accuracy")) < 3:
            continue
        for rows in zip(*(points_of(groups, method, split, "accuracy") for split in splits), strict=True):
            cells = [f"{rows[0][0]:,}"]
            for split, (size, mean, _) in zip(splits, rows, strict=True):
                need = needed(points[split], mean)
                ratio = int(need.split()[-1].replace(",", "")) / size
                bound = {"at": "≤ ", "more": "> "}.get(need.split()[0], "")
                cells += [f"{mean:.3f}", need, f"{bound}{ratio:.1f}"]
            body.append([method, *cells])
    columns = [c for split in splits for c in (split, f"{other} needs", "ratio")]
    return markdown(["method", "trainable", *columns], body) if body else ""


def draw_curves(figure, curves: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> None:
    """A panel for each of {NAME: {VALUE: {method: accuracies of its seeds}}}, a line for each method."""
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    methods = dict.fromkeys(method for points in curves.values() for there in points.values() for method in there)
    for (name, points), panel in zip(curves.items(), panels, strict=True):
        for colour, method in enumerate(methods):
            found = [(i, there[method]) for i, there in enumerate(points.values()) if method in there]
            means = [statistics.mean(each) for _, each in found]
            spreads = [statistics.stdev(each) if each[1:] else 0 for _, each in found]
            style = {"color": f"C{colour}", "label": method, "capsize": 3}
            panel.errorbar([i for i, _ in found], means, spreads, fmt="o-", **style)
        panel.set(title=name, ylim=(0, 1))
        panel.set_xticks(range(len(points)), [*points])
    panels[0].set_ylabel("accuracy on unseen")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)


def terms(update: LowRank) -> Tensor:
    """The size of each rank-one term of ΔW, (b, r), with the sign of z if Z is a diagonal.

    z alone says little, as what B grows by, z can shrink by: their product is not changed by that.
    """
    size = update.scale * update.B.norm(dim=-2) * update.folded().norm(dim=-1)
    return size * update.z.sign() if update.z is not None and update.z.dim() == 2 else size


@torch.no_grad()
def draw_z(system: Zhyper, descriptions: Sequence[str], panel) -> None:
    """The size of every rank-one term as a heat map: sites down, ranks across, for each text."""
    adapter = system.adapt(descriptions)
    z = torch.stack([terms(update) for update in adapter.values()], dim=1)  # (n, l·m, r)
    n, sites, r = z.shape
    gap = torch.full((n, sites, 2), math.nan)
    image = torch.cat([z, gap], dim=2).transpose(0, 1).flatten(1)[:, :-2]  # (l·m, n·(r + 2) - 2)
    limit = z.abs().quantile(0.99).item()  # a few go beyond the scale, so that the others show
    colours = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    picture = panel.imshow(image.numpy(), aspect="auto", interpolation="nearest", **colours)
    panel.figure.colorbar(picture, ax=panel, extend="both", label="size of a term, with z's sign")
    panel.set_xticks([i * (r + 2) + r / 2 for i in range(n)], [str(i + 1) for i in range(n)])
    panel.set_yticks(range(sites), [f"layer {l} {m}" for l, m in adapter], fontsize=7)
    panel.set(title="z: sites × ranks", xlabel="description")


@torch.no_grad()
def draw_cultures(system: Zhyper, facet: str, panel, n: int = 512) -> None:
    """z of n cultures on its two principal components, coloured by their value of a facet."""
    rng = random.Random(0)
    cultures = [draw_culture(rng, None) for _ in range(n)]  # of no region: values do not correlate
    others = [name for name in NAMES if name != facet]
    texts = [describe(rng, culture, [facet, rng.choice(others)]) for culture in cultures]
    z = torch.cat([terms(update) for update in system.adapt(texts).values()], dim=1)  # (n, l·m·r)
    U, S, _ = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    share = S.square() / S.square().sum()
    for value, answer in enumerate(ANSWERS[facet]):
        rows = torch.tensor([culture[facet] == value for culture in cultures])
        panel.scatter(*(U[rows, :2] * S[:2]).T.numpy(), s=6, label=answer)
    panel.legend(fontsize=7, title=facet, title_fontsize=7)
    panel.set(title=f"z of {n} descriptions", ylabel=f"component 2 ({share[1]:.0%})")
    panel.set(xlabel=f"component 1 ({share[0]:.0%} of the variance)")


@torch.no_grad()
def draw_way(system: Zhyper, panel, pairs: int = 32) -> None:
    """How often the answer is that of the first culture, and of the second, on the way between."""
    rng, rows = random.Random(0), []
    while len(rows) < 4 * pairs:
        first, second = (draw_culture(rng, rng.randrange(8)) for _ in range(2))
        differ = [facet for facet in NAMES if first[facet] != second[facet]]
        facets = rng.sample(differ, min(4, len(differ)))
        texts = [describe(rng, culture, facets) for culture in (first, second)]
        for facet in facets if len(facets) == 4 else ():
            state = rng.getstate()
            prompt, answer = ask(rng, facet, first[facet])
            rng.setstate(state)  # the same question again
            rows.append((prompt, answer, ask(rng, facet, second[facet])[1], *texts))
    prompts, *answers, texts1, texts2 = zip(*rows, strict=True)
    c1, c2 = system.embed(texts1), system.embed(texts2)
    shares = [i / 10 for i in range(11)]
    for which, several in zip(("first", "second"), answers, strict=True):
        scores = [system.score(prompts, several, torch.lerp(c1, c2, share)) for share in shares]
        accuracy = [exact.float().mean().item() for _, _, exact in scores]
        panel.plot(shares, accuracy, label=f"answers of the {which}")
    panel.legend(fontsize=7, loc="center left")
    panel.set(title=f"between two cultures ({pairs} pairs)", ylabel="accuracy")
    panel.set(xlabel="share of the second")


def draw_inside(figure, system: Zhyper, descriptions: Sequence[str], facet: str) -> None:
    """z of descriptions; for a run on cultures also of many, and the way between two."""
    cultures = system.template == "Q: {}\nA:"  # only they are asked so
    widths = [1.6, 1, 1] if cultures else [1]
    panels = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    draw_z(system, descriptions, panels[0])
    if cultures:
        draw_cultures(system, facet, panels[1])
        draw_way(system, panels[2])


@torch.no_grad()
def compare(system: Zhyper, first: str, second: str, most: int = 6) -> str:
    """Which sites, and which ranks (rank-one terms of ΔW), differ most between two descriptions."""
    sites, ranks, squares = [], [], []
    for (l, m), update in system.adapt([first, second]).items():
        weight = system.backbone.linear(l, m).weight.norm().item()
        one, two = (update.select(torch.tensor([i], device=system.device)) for i in range(2))
        norms = [x.norm().item() for x in (one.delta(), two.delta(), one.delta() - two.delta())]
        squares.append([norm**2 for norm in (*norms, weight)])
        sites.append((norms[2] / weight, f"layer {l} {m}"))
        parts = [u.scale * u.B.mT[..., None] * u.folded()[..., None, :] for u in (one, two)]
        for i, part in enumerate((parts[0] - parts[1])[0]):  # (d_out, d_in)
            diagonal = update.z is not None and update.z.dim() == 2
            z = "   z {:.2f} → {:.2f}".format(*update.z[:, i].tolist()) if diagonal else ""
            ranks.append((part.norm().item() / weight, f"layer {l} {m} rank {i}", z))
    *norms, weights = (math.sqrt(sum(column)) for column in zip(*squares, strict=True))
    lines = [f"1: {first}", f"2: {second}", "", "‖ΔW‖/‖W‖ of 1, of 2, of their difference:"]
    lines += ["   ".join(f"{norm / weights:.3f}" for norm in norms)]
    lines += ["", "the difference by site, the largest first, as a share of ‖W‖ there:"]
    lines += [f"{name:20}{size:.3f}" for size, name in sorted(sites, reverse=True)[:most]]
    lines += ["", "by rank:"]
    lines += [f"{name:20}{size:.3f}{z}" for size, name, z in sorted(ranks, reverse=True)[:most]]
    return "\n".join(lines)


# ---- the commands

EXAMPLES = [
    "In this land people bow low to one another.",
    "In this land people touch hands when they meet.",
    "In this land people sing a few notes to say hello.",
    "In this land people close their eyes to say hello.",
]
BACKBONES = {  # layers; widths: of the stream, of all queries, of all keys, inside the MLP
    "mistral-7b": (32, 4096, 4096, 1024, 14336),
    "llama-3.1-8b": (32, 4096, 4096, 1024, 14336),
    "gemma-2-2b": (26, 2304, 2048, 1024, 9216),
    "gpt2": (12, 768, 768, 768, 3072),  # q, k and v counted apart
}


def run(settings: Settings) -> None:
    """Train every seed, and print the tables."""
    start, parts = time.perf_counter(), []
    if settings.bias is not None:
        cultures.MAJORITY_SHARE = settings.bias
    use_trials(settings.data)
    jobs = [settings.of_seed(settings.seed + i) for i in range(settings.seeds)]
    for job in () if settings.force else jobs:  # refuse other settings now, and not after a seed
        open_results(job.run, (), job.identity, False)
    for job in jobs:
        train.run(job)
        if settings.force:
            (job.run / "evidence.json").unlink(missing_ok=True)
        parts.append(complete(job, settings.rivals))
    print(tables(parts))
    print(f"{time.perf_counter() - start:.0f} seconds; written to {settings.run}")


def tune(settings: Settings) -> None:
    """Try every rate and scale for each method, on the validation split, and write trials.json."""
    own = {"data": settings.data, "seed": settings.seed, "steps": settings.steps, "dtype": settings.dtype}
    job = replace(settings.of_seed(settings.seed), validate=True)
    names = TUNED if settings.methods == Settings.methods else settings.named
    known = json.loads(TRIALS.read_text()) if TRIALS.exists() else {"made_of": own, "trials": {}}
    if known["made_of"] != own:
        raise ValueError(f"{TRIALS} is of {known['made_of']}, now {own}: delete it to start again")
    with only_writer(job.run):
        data, base, _ = train.prepare(job)
        records = data.split("validation")
        for name in names:
            for lr in RATES:
                for scale in SCALES:
                    key = f"{name}@lr={lr:g}@scale={scale:g}"
                    if key in known["trials"]:
                        continue
                    try:
                        row, system = train_rival(key, base, data, job)
                        found = train.evaluate(system, records)
                    except ValueError as error:
                        if "the loss is" not in str(error):
                            raise
                        row, found = {"seconds": 0.0}, {"accuracy": 0.0, "nll": 99.0}  # it diverged
                    kept = {"accuracy": found["accuracy"], "nll": found["nll"], "seconds": row["seconds"]}
                    if TRIALS.exists():  # of another process too
                        known = json.loads(TRIALS.read_text())
                    known["trials"][key] = {k: round(v, 4) for k, v in kept.items()}
                    TRIALS.write_text(json.dumps(known, indent=1) + "\n")
                    (job.run / f"checkpoint-{key}.pt").unlink(missing_ok=True)
    print(trials_table(known["trials"]))


def trials_table(trials: Mapping[str, dict]) -> str:
    """Validation accuracy of every trial, a row for each method, the best in bold."""
    grid = [f"@lr={lr:g}@scale={scale:g}" for lr in RATES for scale in SCALES]
    body = []
    for name in dict.fromkeys(key.split("@")[0] for key in trials):
        scores = [trials.get(name + point, {}).get("accuracy") for point in grid]
        best = max(score for score in scores if score is not None)
        cells = ["" if s is None else f"**{s:.3f}**" if s == best else f"{s:.3f}" for s in scores]
        body.append([name, *cells])
    head = [f"{lr:g} × {scale:g}" for lr in RATES for scale in SCALES]
    return markdown(["rate × scale", *head], body)


def parts_of(folders: Sequence[str]) -> list[dict]:
    """The completed results of run folders, or of the --out of several seeds; they differ in seed only."""
    found = []
    for folder in map(Path, folders):
        own = [*folder.glob("results.json")] or sorted(folder.glob("seed*/results.json"))
        if not own:
            raise FileNotFoundError(f"no results in {folder}: train.py --out {folder} makes them")
        found += [path.parent for path in own]
    check_seeds([open_results(s.run, (), s.identity, False) for s in map(settings_of, found)])
    return [complete(settings_of(folder)) for folder in found]


def report(args) -> None:
    """the tables of run folders again, and accuracy against trained parameters as a figure"""
    parts = parts_of(args.folder)
    groups, measure = by_method(parts), parts[0]["measure"]
    print(tables(parts))
    for other in ("t2l-gated", "t2l-varied"):
        if len(points_of(groups, other, "unseen", measure)) > 3:
            print("", front_table(groups, other, ["unseen", "ood"]), sep="\n")
    save_figure(Path(args.folder[0]) / "figure.png", (12, 4.5), draw_results, groups, measure)


def curves(args) -> None:
    """unseen against what changes: in run folders called NAME_VALUE, or in the rows METHOD@NAME=VALUE of others"""

    def size(value: str) -> float:
        digits = value.partition("@")[0]
        return float(digits) if digits.replace(".", "").isdigit() else math.inf

    found = defaultdict(lambda: defaultdict(dict))  # {NAME: {VALUE: {method: accuracies of its seeds}}}
    for folder in args.folder:
        scores = {m: [row["splits"]["unseen"] for row in rows] for m, rows in by_method(parts_of([folder])).items()}
        unseen = {m: [score["accuracy"] for score in each] for m, each in scores.items() if each[0]}
        name, _, value = Path(folder).name.rpartition("_")
        for method, accuracies in unseen.items():
            base, _, change = method.partition("@")
            field, _, changed = change.partition("=")
            if name:
                found[name][value][method] = accuracies
            elif field and base in unseen:
                own = str(getattr(rival(base).method, field, "all"))
                found[field][own][base], found[field][changed][base] = unseen[base], accuracies
    for name, points in found.items():
        counts = Counter(method for there in points.values() for method in there)
        methods = [method for method in counts if counts[method] > 1]  # one point is no curve
        found[name] = {x: {m: points[x][m] for m in methods if m in points[x]} for x in sorted(points, key=size)}
        body = [[x, *(cell(there.get(m, [None])) for m in methods)] for x, there in found[name].items()]
        print(markdown([name, *methods], body), end="\n\n")
    save_figure(Path(args.to), (3.5 * len(found) + 2, 3.5), draw_curves, found)


def params(args) -> None:
    """how many parameters every hypernetwork would train at the size of a real model"""
    layers, d, q, kv, inner = BACKBONES[args.backbone]
    shapes = {"q": (d, q), "k": (d, kv), "v": (d, kv), "o": (q, d)}
    shapes |= {"gate": (d, inner)} if args.backbone != "gpt2" else {}
    shapes |= {"up": (d, inner), "down": (inner, d)}
    if args.d_text < 1:
        raise ValueError(f"d-text is {args.d_text}: it must be at least 1")
    modules, counts = tuple(args.modules.replace(" ", "").split(",")), {}
    for module in modules:
        check_choice("module", module, shapes)
    for kind, network in HYPERNETWORKS.items():
        config = HyperConfig(kind, args.rank, modules=modules, trunk=args.trunk)
        with torch.device("meta"):  # built without memory
            built = network(config, layers, shapes, args.d_text)
        counts[kind] = sum(p.numel() for p in built.parameters())
    if args.json:
        found = {"backbone": args.backbone, "rank": args.rank, "modules": modules}
        print(json.dumps(found | {"methods": counts}))
        return
    for kind, count in counts.items():
        print(f"{kind:15}{count:>15,}   {count / counts['zhyper-diag']:6.2f} × zhyper-diag")


def figures(args) -> None:
    """how the first two of several descriptions differ, and a figure of z"""
    descriptions = args.description or EXAMPLES
    if len(descriptions) < 2:
        raise ValueError("one description: give two or more, to compare")
    check_choice("facet", args.facet, NAMES)
    system = Zhyper.load(args.run, args.method)
    system.adapter_of(descriptions[0])  # or this method makes no adapter from a text
    print(compare(system, *descriptions[:2]), end="\n\n")
    path = Path(args.to or Path(args.run) / "figures.png")
    save_figure(path, (15, 4.5), draw_inside, system, descriptions, args.facet)


def main() -> None:
    functions = {function.__name__: function for function in (report, curves, params, figures)}
    if sys.argv[1:2] == ["tune"]:
        return tune(parse(Settings, sys.argv[2:], "evidence.py tune", tune.__doc__))
    if not sys.argv[1:] or sys.argv[1] not in functions:
        about = "Train several seeds with the options of train.py, and compare. "
        about += f"Or: evidence.py {', '.join(functions)}; -h behind one of them lists its options."
        return run(parse(Settings, sys.argv[1:], "evidence.py", about))
    name, function = sys.argv[1], functions[sys.argv[1]]
    parser = Parser(prog=f"evidence.py {name}", description=function.__doc__)
    if name == "report":
        parser.add_argument("folder", nargs="+", help="a run folder, or the --out of several seeds")
    if name == "curves":
        parser.add_argument(
            "folder", nargs="+", help="the --out of several seeds, called NAME_VALUE for a curve over them"
        )
        parser.add_argument("--to", default="curves.png", help="the file of the figure")
    if name == "params":
        parser.add_argument("--backbone", choices=BACKBONES, default="mistral-7b")
        parser.add_argument("--rank", type=int, default=8)
        parser.add_argument("--modules", default="q,v", help="the linears that are adapted")
        parser.add_argument("--trunk", default="paper", help="paper (the default) or gated")
        parser.add_argument("--d-text", type=int, default=1024, help="the width of c")
        parser.add_argument("--json", action="store_true", help="print one JSON object")
    if name == "figures":
        parser.add_argument("--run", default="out/cultures", help="a run folder of train.py")
        parser.add_argument("--method", default="zhyper-diag", help="one of its methods")
        parser.add_argument("--facet", default="greeting", help="of cultures, to colour by")
        parser.add_argument("--description", nargs="+", action="extend", help="two texts or more")
        parser.add_argument("--to", help="the file to write; figures.png in the run folder")
    function(parser.parse_args(sys.argv[2:]))


if __name__ == "__main__":
    one_line_errors(main)
