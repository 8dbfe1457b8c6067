"""The evidence for what the paper claims: more seeds, baselines, intervals, counts and figures.

python tests/evidence.py --data hard_cultures --methods all --seeds 3 --seconds 100
python tests/evidence.py report FOLDER ...           # the same tables and a figure; trains nothing
python tests/evidence.py params --backbone mistral-7b --rank 8 --modules q,v    # at a real size
python tests/evidence.py figures --run out/cultures  # z of several texts, and how they differ

The first trains several seeds, each in a run folder of train.py's, and goes on if it was stopped.
Beside results.json it writes evidence.json: the same rows with more numbers, and those of the two
baselines that are only here. EVIDENCE.md holds the tables with their commands.
"""

import json
import math
import random
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

import train  # noqa: E402
from data import Data, Record  # noqa: E402
from data._cli import Parser, markdown, one_line_errors, parse  # noqa: E402
from data._controls import evaluated_splits, other_descriptions  # noqa: E402
from data._files import checksum, only_writer, open_results, write_file  # noqa: E402
from data.cultures import ANSWERS, NAMES, ask, describe, draw_culture  # noqa: E402
from hyper import HYPERNETWORKS, HyperConfig, LowRank, ZhyperDiag, check_choice, lora_A  # noqa: E402
from train import METHODS, PRESETS, option  # noqa: E402
from zhyper import Zhyper  # noqa: E402

BASELINES = {"onehot": METHODS["zhyper-diag"], "oracle": METHODS["lora"]}  # trained like these
ORACLE_CONTEXTS = 32  # at most: a LoRA for each is expensive


@dataclass(frozen=True)
class Settings(train.Settings):
    """The options of train.py, and how many seeds."""

    methods: str = option(train.Settings.methods, f"or all: {', '.join([*METHODS, *BASELINES])}")
    out: str | None = option(None, "the folder of the run folders; out/DATA-evidence if left out")
    seeds: int = option(3, "how many, from --seed on; each has a run folder, seedN in --out")

    def __post_init__(self):
        super().__post_init__()
        for name in set(self.named) & set(BASELINES):
            self.hyper_config(BASELINES[name])
        if self.seeds < 1:
            raise ValueError(f"seeds is {self.seeds}: it must be at least 1")

    @property
    def named(self) -> list[str]:
        names = self.methods.replace(" ", "").split(",")
        return [*METHODS, *BASELINES] if names == ["all"] else names

    @property
    def chosen(self) -> list[str]:
        return [name for name in self.named if name not in BASELINES]

    @property
    def run(self) -> Path:
        return Path(self.out or f"out/{Path(self.data).stem}-evidence")

    def of_seed(self, seed: int) -> train.Settings:
        """The settings of one seed, for train.run: the frozen model at least."""
        options = {f.name: getattr(self, f.name) for f in fields(train.Settings)}
        options |= {"methods": ",".join(self.chosen) or "frozen"}
        return train.Settings(**options | {"seed": seed, "out": str(self.run / f"seed{seed}")})


# ---- the baselines that are only here: they know a context by its name and read no text


class ByName(Zhyper):
    """A Zhyper whose descriptions are the names of contexts: `onehot` learns a vector for each.

    It can serve only the contexts it was trained on. That is what reading a text is for.
    """

    def __init__(self, base: Zhyper, names: Sequence[str], vectors, hypernetwork):
        super().__init__(base.tokenizer, base.backbone, vectors, hypernetwork)
        self.number = {name: i for i, name in enumerate(names)}

    def embed(self, descriptions: Sequence[str]) -> Tensor:
        """The vector of each name, (n, d), or without vectors its number, (n,)."""
        numbers = torch.tensor([self.number[name] for name in descriptions], device=self.device)
        return self.encoder(numbers) if self.encoder else numbers

    def by_name(self, records: Sequence[Record]) -> list[Record]:
        """The records that it can serve, the name of the context in place of the description."""
        known = [record for record in records if record.context in self.number]
        return [record._replace(description=record.context) for record in known]


class LoRAPerContext(nn.Module):
    """`oracle`: a LoRA for each of n contexts, nothing shared. A bound for what reads a text."""

    reads_text = True  # of which ByName.embed makes a number

    def __init__(self, config: HyperConfig, layers: int, shapes, n: int):
        super().__init__()
        self.config, r = config, config.rank
        A = {m: lora_A(n, layers, r, shapes[m][0]) for m in config.modules}
        B = {m: torch.zeros(n, layers, shapes[m][1], r) for m in config.modules}
        self.A, self.B = nn.ParameterDict(A), nn.ParameterDict(B)

    def forward(self, number: Tensor) -> dict:
        """The update of every site, one row for each number of a context, (b,)."""
        return {
            (self.config.first + l, m): LowRank(self.A[m][number, l], self.B[m][number, l], None, self.config.scale)
            for m in self.config.modules
            for l in range(self.A[m].shape[1])
        }


def train_baseline(name: str, data: Data, settings: train.Settings) -> dict:
    """Train a baseline on the backbone of a run folder, and evaluate it; a row as train.py's.

    What it cannot serve is None: contexts that it was not trained on, and other descriptions.
    """
    base = Zhyper.load_backbone(settings.run).to(settings.device)
    if settings.compile:
        base.backbone.through = torch.compile(base.backbone.through, dynamic=True)
    contexts = list(dict.fromkeys(record.context for record in data.split("train")))
    torch.manual_seed(settings.seed)
    config, sizes = settings.hyper_config(BASELINES[name]), base.backbone.config
    layers = sizes.layers - config.first
    if name == "oracle":  # those first that can be evaluated
        evaluated = {row.context for row in data.split("validation") + data.split("seen")}
        contexts = sorted(contexts, key=lambda context: context not in evaluated)[:ORACLE_CONTEXTS]
        vectors = None
        hypernetwork = LoRAPerContext(config, layers, sizes.shapes, len(contexts))
    else:
        vectors = nn.Embedding(len(contexts), 128)
        vectors.source = vectors.tokenizer = None  # as an encoder has
        hypernetwork = ZhyperDiag(config, layers, sizes.shapes, vectors.embedding_dim)
    system = ByName(base, contexts, vectors, hypernetwork).to(base.device)
    row = {"method": name, "trainable": sum(p.numel() for p in hypernetwork.parameters())}
    row["encoder"] = vectors.weight.numel() if vectors else 0
    records = system.by_name(data.split("train"))
    row |= train.fit(system, name, BASELINES[name], records, settings)
    found = {k: system.by_name(rows) for k, rows in evaluated_rows(data, settings).items()}
    row["splits"] = {k: train.evaluate(system.eval(), v) if v else None for k, v in found.items()}
    row |= {"controls": dict.fromkeys(("swapped", "random", "none")), "margin": None}
    return row | by_context(system, found, data)


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


def complete(settings: train.Settings, baselines: Sequence[str] = ()) -> dict:
    """The results of a run folder with more numbers, and with baselines, which are trained first.

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
            for name in BASELINES:
                (folder / f"checkpoint-{name}.pt").unlink(missing_ok=True)
        rows = evidence["rows"]
        names = [*finished, *(name for name in BASELINES if name in {*rows, *baselines})]
        for name in names:
            if name in rows and finished.get(name, {}).items() <= rows[name].items():
                continue
            data = data or read_data(settings, results["made_of"]["records"])
            if name in BASELINES:
                rows[name] = train_baseline(name, data, settings)
            else:
                system = Zhyper.load(folder, name, settings.device)
                found = evaluated_rows(data, settings)
                rows[name] = finished[name] | by_context(system, found, data)
                if data.free_text:
                    control = evaluated_splits(data, settings.validate)[1]
                    rows[name] |= gaps(system, found[control], settings.seed)
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
    """A row for each method: accuracy in every split, or for free text loss per token."""
    whole = ["trainable", "encoder", "steps", "seconds"]

    def scores(row: dict) -> dict:
        return row["splits"] | {f"({name})": score for name, score in row["controls"].items()}

    first, body = next(iter(groups.values())), []
    names = list(scores(first[0]))
    majority = [cell([row["majority"].get(name) for row in first]) for name in names]
    if measure == "accuracy" and set(majority) != {"–"}:
        body.append(["majority", *["–"] * len(whole), *majority, "–"])
    for method, rows in groups.items():
        cells = [cell([row[name] for row in rows], 0) for name in whole]
        for name in names:
            found = [scores(row)[name] for row in rows]
            cells.append(cell([score and score[measure] for score in found]))
        body.append([method, *cells, cell([row["margin"] for row in rows])])
    head = ["method", *whole, *names, "margin"]
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
    groups = by_method(parts)
    found = [main_table(groups, parts[0]["measure"]), families_table(groups), gaps_table(groups)]
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
    """Accuracy, or loss, against trained parameters; a line for what trains nothing."""
    found = next(iter(groups.values()))[0]["splits"]
    splits = [split for split in ("new_wording", "unseen", "ood") if split in found] or [*found]
    panels = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for split, panel in zip(splits, panels, strict=True):
        for number, (method, rows) in enumerate(groups.items()):
            values = [row["splits"][split][measure] for row in rows if row["splits"][split]]
            if not values:
                continue
            mean, spread = statistics.mean(values), statistics.stdev(values) if values[1:] else 0
            style = {"color": f"C{number}", "label": method}
            if rows[0]["trainable"]:
                marker = "os^"[number // 10]  # ten colours, then another marker
                panel.errorbar(rows[0]["trainable"], mean, spread, fmt=marker, capsize=3, **style)
            else:
                panel.axhline(mean, linestyle=":", **style)
        panel.set(title=split, xscale="log", xlabel="trained parameters (encoder apart)")
    panels[0].set_ylabel("accuracy" if measure == "accuracy" else "loss per token (nats)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")


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
    jobs = [settings.of_seed(settings.seed + i) for i in range(settings.seeds)]
    for job in () if settings.force else jobs:  # refuse other settings now, and not after a seed
        open_results(job.run, (), job.identity, False)
    for job in jobs:
        train.run(job)
        if settings.force:
            (job.run / "evidence.json").unlink(missing_ok=True)
        parts.append(complete(job, [name for name in settings.named if name in BASELINES]))
    print(tables(parts))
    print(f"{time.perf_counter() - start:.0f} seconds; written to {settings.run}")


def report(args) -> None:
    """the tables of run folders again, and accuracy against trained parameters as a figure"""
    folders = []
    for folder in map(Path, args.folder):
        found = [*folder.glob("results.json")] or sorted(folder.glob("seed*/results.json"))
        if not found:
            raise FileNotFoundError(f"no results in {folder}: train.py --out {folder} makes them")
        folders += [path.parent for path in found]
    check_seeds([open_results(s.run, (), s.identity, False) for s in map(settings_of, folders)])
    parts = [complete(settings_of(folder)) for folder in folders]
    print(tables(parts))
    drawn = by_method(parts), parts[0]["measure"]
    save_figure(Path(args.folder[0]) / "figure.png", (11, 4), draw_results, *drawn)


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
    functions = {function.__name__: function for function in (report, params, figures)}
    if not sys.argv[1:] or sys.argv[1] not in functions:
        about = "Train several seeds with the options of train.py, and compare. "
        about += f"Or: evidence.py {', '.join(functions)}; -h behind one of them lists its options."
        return run(parse(Settings, sys.argv[1:], "evidence.py", about))
    name, function = sys.argv[1], functions[sys.argv[1]]
    parser = Parser(prog=f"evidence.py {name}", description=function.__doc__)
    if name == "report":
        parser.add_argument("folder", nargs="+", help="a run folder, or the --out of several seeds")
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
