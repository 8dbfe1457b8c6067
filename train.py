"""Train Zhyper end to end, beside the baselines that a sceptic would ask for, and print one table.

1. read the data, train a tokenizer on it        4. train each method through the frozen backbone
2. pretrain the backbone on its documents        5. evaluate: every split, and the description swapped,
3. freeze it                                        random and absent

python train.py                                                      # invented cultures
python train.py --data voices --data-path tinyshakespeare.txt       # a real text
python train.py --data file.jsonl --methods zhyper-diag,t2l         # your own records
"""

import csv
import json
import math
import random
import string
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from tqdm import tqdm

import data as datasets
from data import Data, Record
from hyper import TRUNKS, AdapterConfig, check_choice
from model import GPT, MODULES, Encoder, ModelConfig
from zhyper import END, Parser, Zhyper, build_adapter, one_line_errors, train_tokenizer


@dataclass(frozen=True)
class Method:
    """How one method is trained. `kind` is a key of hyper.ADAPTERS, or None where nothing is trained."""

    kind: str | None = None
    rank: int = 8
    trunk: str = "gated"
    lr: float = 2e-3
    in_prompt: bool = False  # the description stands before the prompt


METHODS = {
    "frozen": Method(),
    "prompt": Method(in_prompt=True),
    "lora": Method("lora"),
    "zhyper-diag": Method("zhyper-diag", rank=32),
    "zhyper-square": Method("zhyper-square"),
    "t2l": Method("t2l", trunk="paper", lr=1e-3),
}


@dataclass(frozen=True)
class Preset:
    """The sizes of a run. Edit one, or add your own."""

    backbone: ModelConfig = ModelConfig()
    encoder: ModelConfig = ModelConfig(layers=2)
    pretrain_steps: int = 400
    pretrain_lr: float = 2e-3
    steps: int = 1000  # of adapter training
    batch: int = 16  # rows a step in pretraining ...
    row: int = 128  # ... and tokens of each
    contexts: int = 32  # descriptions a step in adapter training ...
    questions: int = 4  # ... and rows for each, at most
    evaluate: int = 1 << 30  # rows of a split, at most


PRESETS = {
    "smoke": Preset(ModelConfig(512, 2, 2, 64), ModelConfig(512, 1, 2, 64), pretrain_steps=60, steps=40, evaluate=64),
    "default": Preset(),
    "gpu": Preset(ModelConfig(4096, 6, 6, 384, 512), ModelConfig(4096, 4, 6, 384, 512), 3000, 1e-3, 3000, contexts=64),
}


def option(default, text: str):
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """The command line: each field is an option. Raises ValueError for a value that cannot be."""

    data: str = option("cultures", "a built-in data set, or a file.jsonl of records")
    data_path: str = option("", "the file or folder of a data set that is not generated")
    methods: str = option("frozen,prompt,zhyper-diag", f"comma-separated, or all: {', '.join(METHODS)}")
    preset: str = option("default", f"how large: {', '.join(PRESETS)}")
    seed: int = option(0, "of everything random")
    out: str = option("", "the run folder; out/<data> if left out")
    device: str = option("auto", "auto (cuda, mps, cpu in that order), or one of them")
    rank: int = option(0, "of every adapter; 0 leaves each method its own")
    modules: str = option("q,k,v,o", f"which linears are adapted, of {','.join(MODULES)}")
    trunk: str = option("", f"of every hypernetwork, {' or '.join(TRUNKS)}; each method's own if left out")
    steps: int = option(0, "of adapter training; 0 leaves the preset's")

    def __post_init__(self):
        for name in self.chosen:
            check_choice("method", name, [*METHODS, "all"])
        check_choice("preset", self.preset, PRESETS)
        check_choice("device", self.device, ["auto", "cuda", "mps", "cpu"])
        for name in ("rank", "steps", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it may not be negative")
        for name in self.chosen:
            if METHODS[name].kind:
                self.adapter_config(METHODS[name])

    @property
    def chosen(self) -> list[str]:
        names = self.methods.replace(" ", "").split(",")
        return list(METHODS) if names == ["all"] else names

    @property
    def run(self) -> Path:
        return Path(self.out or Path("out") / Path(self.data).stem)

    @property
    def sizes(self) -> Preset:
        preset = PRESETS[self.preset]
        return replace(preset, steps=self.steps or preset.steps)

    def adapter_config(self, method: Method) -> AdapterConfig:
        rank = self.rank or method.rank
        modules, trunk = tuple(self.modules.replace(" ", "").split(",")), self.trunk or method.trunk
        return AdapterConfig(method.kind, rank, alpha=2 * rank, modules=modules, trunk=trunk)

    def pick_device(self) -> torch.device:
        found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        name = next(name for name in found if found[name]) if self.device == "auto" else self.device
        if not found[name]:
            raise ValueError(f"this machine has no {name}: choose --device auto or cpu")
        return torch.device(name)


# ---- the two training loops


def learning_rate(step: int, steps: int, warmup: int = 50) -> float:
    """The share of the peak rate at a step: up in a straight line, then a cosine down to a tenth.

    >>> [round(learning_rate(step, 1000), 2) for step in (0, 49, 525, 999)]
    [0.02, 1.0, 0.55, 0.1]
    """
    warmup = min(warmup, steps // 4)
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def optimise(groups: list[dict], steps: int, losses: Iterator[torch.Tensor], name: str, log: csv.writer) -> None:
    """AdamW over `losses`, one for each step, clipped at norm 1. Each group brings its peak learning rate."""
    optimizer = torch.optim.AdamW(groups, fused=True)
    peaks = [group["lr"] for group in optimizer.param_groups]
    parameters = [p for group in groups for p in group["params"]]
    bar, start = tqdm(range(steps), desc=name, mininterval=1), time.perf_counter()
    for step in bar:
        share = learning_rate(step, steps)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * share
        loss = next(losses)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == steps - 1:
            bar.set_postfix(loss=f"{loss.item():.3f}")
            log.writerow([name, step, f"{loss.item():.5f}", f"{share:.4f}", f"{time.perf_counter() - start:.2f}"])


def pretrain(system: Zhyper, documents: list[str], sizes: Preset, seed: int, log: csv.writer) -> None:
    """Teach the backbone to write its documents, packed into full rows that begin with one; then freeze it for good."""
    rows = [[*row, END] for row in system.ids(documents, "document")]
    rng, length = random.Random(seed), min(sizes.row, system.backbone.config.context)

    def packed() -> list[int]:
        row: list[int] = []
        while len(row) <= length:
            row += rng.choice(rows)
        return row[: length + 1]

    def losses() -> Iterator[torch.Tensor]:
        while True:
            ids = torch.tensor([packed() for _ in range(sizes.batch)], device=system.device)  # (b, t+1)
            yield torch.nn.functional.cross_entropy(system.backbone(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    system.backbone.requires_grad_(True).train()
    group = {"params": list(system.backbone.parameters()), "lr": sizes.pretrain_lr}
    optimise([group], sizes.pretrain_steps, losses(), "pretrain", log)
    system.backbone.requires_grad_(False).eval()


def batches(records: list[Record], contexts: int, questions: int, rng: random.Random) -> Iterator[list[Record]]:
    """Rows for one step after another: up to `questions` for each of `contexts` descriptions, all of them in turn."""
    groups = defaultdict(list)
    for record in records:
        groups[record.context, record.description].append(record)
    order: list = []
    while True:
        rows = []
        for _ in range(contexts):
            if not order:
                order = rng.sample(list(groups), len(groups))
            group = groups[order.pop()]
            rows += rng.sample(group, min(questions, len(group)))
        yield rows


def fit(system: Zhyper, records: list[Record], lr: float, sizes: Preset, seed: int, name: str, log: csv.writer) -> None:
    """Train encoder and adapter end to end through the frozen backbone, on the loss of the answers alone."""
    stream = batches(records, sizes.contexts, sizes.questions, random.Random(seed))

    def losses() -> Iterator[torch.Tensor]:
        for rows in stream:
            loss, tokens, _ = system.score(*columns(rows), [row.description for row in rows])
            yield loss.sum() / tokens.sum()

    shared = [p for n, p in system.adapter.named_parameters() if n.startswith(("A.", "B."))]
    rest = [p for n, p in system.adapter.named_parameters() if not n.startswith(("A.", "B."))]
    rest += system.encoder.parameters() if system.encoder else []
    groups = [{"params": shared, "lr": 3 * lr}, {"params": rest, "lr": lr}]  # A and B serve all: they may move faster
    system.train()
    optimise([group for group in groups if group["params"]], sizes.steps, losses(), name, log)
    system.eval()


def columns(rows: Sequence[Record]) -> tuple[list[str], list[str]]:
    return [row.prompt for row in rows], [row.answer for row in rows]


# ---- evaluation


@torch.no_grad()
def evaluate(system: Zhyper, records: list[Record], descriptions: Sequence[str | None] | None) -> dict[str, float]:
    """Exact-match accuracy, loss per answer token (nats) and number of rows, under those descriptions, one a row."""
    loss = tokens = exact = 0.0
    for start in range(0, len(records), 256):
        rows = slice(start, start + 256)
        told = None if descriptions is None else descriptions[rows]
        scores = system.score(*columns(records[rows]), told)
        loss, tokens, exact = (total + s.sum().item() for total, s in zip((loss, tokens, exact), scores, strict=True))
    return {"accuracy": exact / len(records), "nll": loss / tokens, "n": len(records)}


def swapped(records: list[Record], rng: random.Random) -> list[str]:
    """For each row the description of another context, one under which the same prompt has another answer.

    Where no other row asks the same prompt (free text), any other context's description.
    """
    chosen = []
    for record in records:
        rivals = [r for r in records if r.context != record.context and r.answer != record.answer]
        rivals = [r for r in rivals if r.description != record.description]
        if not rivals:
            raise ValueError(
                f"the split {record.split!r} has one context only: add another to swap its description with"
            )
        chosen.append(rng.choice([r for r in rivals if r.prompt == record.prompt] or rivals).description)
    return chosen


RANDOM_LENGTH = 12 * 9


def random_text(rng: random.Random) -> str:
    """Twelve words of random letters, a description that says nothing: at most RANDOM_LENGTH characters, so tokens."""
    return " ".join("".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 8))) for _ in range(12))


def evaluated_splits(data: Data) -> tuple[list[str], str]:
    """The splits that have rows, and the one on which the controls are tried. Raises ValueError if there is none."""
    found = [split for split in datasets.SPLITS if split != "train" and data.split(split)]
    if not found:
        raise ValueError(f"{data.name} has no rows to evaluate: add some of the split {', '.join(datasets.SPLITS)}")
    return found, "unseen" if "unseen" in found else found[0]


def evaluate_all(system: Zhyper, data: Data, limit: int, seed: int) -> dict:
    """The `splits`, `controls` and `margin` of a row of results.json."""
    frozen = system.adapter is None and not system.in_prompt
    found, control = evaluated_splits(data)
    splits = {}
    for split in found:
        rows = random.Random(seed).sample(data.split(split), min(limit, len(data.split(split))))
        splits[split] = evaluate(system, rows, None if frozen else [row.description for row in rows])
        if split == control:
            rng = random.Random(seed)
            told = {
                "swapped": swapped(rows, rng),
                "random": [random_text(rng) for _ in rows],
                "none": [None] * len(rows),
            }
            controls = {name: evaluate(system, rows, None if frozen else texts) for name, texts in told.items()}
    right, wrong = splits[control], controls["swapped"]
    margin = wrong["nll"] - right["nll"] if data.free_text else right["accuracy"] - wrong["accuracy"]
    return {"splits": splits, "controls": controls, "margin": margin}


def table(results: dict, free_text: bool) -> str:
    """The results as a Markdown table: accuracy of each split, or loss per token for free text."""
    measure, digits = ("nll", 3) if free_text else ("accuracy", 2)
    first = results["rows"][0]
    names = [*first["splits"], *(f"({name})" for name in first["controls"])]
    head = ["method", "trained", "encoder", "steps", "seconds", *names, "margin"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in results["rows"]:
        scores = [*row["splits"].values(), *row["controls"].values()]
        numbers = [f"{row['trainable']:,}", f"{row['encoder']:,}", row["steps"], f"{row['seconds']:.0f}"]
        numbers += [*(f"{score[measure]:z.{digits}f}" for score in scores), f"{row['margin']:z.{digits}f}"]
        lines.append("| " + " | ".join(map(str, [row["method"], *numbers])) + " |")
    return "\n".join(lines)


# ---- the main job


def check_data(system: Zhyper, data: Data, sizes: Preset, in_prompt: bool) -> None:
    """Refuse a data set that cannot be trained on or compared, or with a text that would not fit.

    Raises ValueError: which text, how long it is and how long it may be; or what is missing.
    """
    if len({record.context for record in data.split("train")}) < 2:
        raise ValueError(f"{data.name} trains on one context only, so there is nothing to tell apart: add another")
    swapped(data.split(evaluated_splits(data)[1]), random.Random(0))

    def lengths(texts: Iterator[str]) -> dict[str, int]:
        distinct = list(dict.fromkeys(texts))
        return dict(zip(distinct, map(len, system.ids(distinct)), strict=True))

    described = lengths(record.description for record in data.records)
    before = max(RANDOM_LENGTH, *described.values()) + 1 if in_prompt else 0  # the controls move descriptions about
    asked, answered = lengths(r.prompt for r in data.records), lengths(r.answer for r in data.records)
    for record in data.records:
        description = described[record.description]
        if description > sizes.encoder.context:
            raise ValueError(
                f"{data.name}: the description {record.description[:40]!r}… is {description} tokens long, "
                f"the encoder reads {sizes.encoder.context}: shorten it"
            )
        total = asked[record.prompt] + answered[record.answer] + 1 + before
        if total > sizes.backbone.context:
            raise ValueError(
                f"{data.name}: the prompt {record.prompt[:40]!r}… and its answer are {total} tokens long together, "
                f"the backbone reads {sizes.backbone.context}: shorten them"
            )


def run_method(name: str, base: Zhyper, data: Data, settings: Settings, log: csv.writer) -> dict:
    """Train one method on the shared frozen backbone, save it, and return its row of results.json."""
    method, sizes = METHODS[name], settings.sizes
    torch.manual_seed(settings.seed)
    encoder = adapter = None
    if method.kind:
        config = settings.adapter_config(method)
        adapter = build_adapter(config, base.backbone.config, sizes.encoder.width)
        encoder = Encoder(replace(sizes.encoder, vocab=base.backbone.config.vocab)) if adapter.reads_text else None
    system = Zhyper(base.tokenizer, base.backbone, encoder, adapter, method.in_prompt, data.template).to(base.device)
    start = time.perf_counter()
    if adapter:
        fit(system, data.split("train"), method.lr, sizes, settings.seed, name, log)
    seconds = time.perf_counter() - start
    system.save(settings.run, name)

    def count(module) -> int:
        return sum(p.numel() for p in module.parameters()) if module else 0

    row = {"method": name, "trainable": count(adapter), "encoder": count(encoder)}
    row |= {"steps": sizes.steps if adapter else 0, "seconds": seconds}
    return row | evaluate_all(system, data, sizes.evaluate, settings.seed)


def run(settings: Settings) -> dict:
    """The whole job; returns what it wrote to results.json."""
    device, sizes = settings.pick_device(), settings.sizes
    data = datasets.load(settings.data, settings.data_path or None, settings.seed)
    texts = [*data.documents, *{r.description for r in data.records if r.split == "train"}]
    tokenizer = train_tokenizer(texts, sizes.backbone.vocab)
    torch.manual_seed(settings.seed)
    backbone = GPT(replace(sizes.backbone, vocab=tokenizer.get_vocab_size()))
    base = Zhyper(tokenizer, backbone, template=data.template).to(device)
    check_data(base, data, sizes, any(METHODS[name].in_prompt for name in settings.chosen))
    settings.run.mkdir(parents=True, exist_ok=True)
    results = {"data": data.name, "seed": settings.seed, "device": str(device), "rows": []}
    with open(settings.run / "log.csv", "w", newline="") as file:
        log = csv.writer(file)
        log.writerow(["method", "step", "loss", "lr_share", "seconds"])
        start = time.perf_counter()
        pretrain(base, data.documents, sizes, settings.seed, log)
        results["pretrain_seconds"] = time.perf_counter() - start
        for name in settings.chosen:
            results["rows"].append(run_method(name, base, data, settings, log))
            file.flush()
            (settings.run / "results.json").write_text(json.dumps(results, indent=1))
    print(table(results, data.free_text))
    return results


def read_settings(arguments: Sequence[str]) -> Settings:
    """Settings from the command line, whose options and defaults are the fields above."""
    parser = Parser(prog="train.py", description="Train and compare. Every option has a default that works.")
    for f in fields(Settings):
        default = f" (default: {f.default})" if f.default not in ("", 0) else ""
        name = "--" + f.name.replace("_", "-")
        parser.add_argument(name, type=f.type, default=f.default, help=f.metadata["help"] + default)
    return Settings(**vars(parser.parse_args(arguments)))


def main() -> None:
    start = time.perf_counter()
    settings = read_settings(sys.argv[1:])
    run(settings)
    print(f"{time.perf_counter() - start:.0f} seconds in all; written to {settings.run}")


if __name__ == "__main__":
    one_line_errors(main)
