"""Train Zhyper end to end, beside the baselines that a sceptic would ask for, and print one table.

1. read the data, train a tokenizer on it
2. pretrain the backbone on its documents, and freeze it
3. train each method through the frozen backbone
4. evaluate: every split, and one of them with the description swapped, random and absent

python train.py                                                      # invented cultures
python train.py --preset smoke                                       # the same in seconds
python train.py --data voices --preset voices --lr 1e-3              # a real text
python train.py --data instructions --preset instructions --lr 5e-4  # the paper's own data
python train.py --data file.jsonl --methods zhyper-diag,t2l          # your own records
torchrun --nproc-per-node 2 train.py                                 # several devices
A run that was stopped goes on with the same command. Several seeds: tests/evidence.py.
"""

import math
import os
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from data import Data, Record, columns, load  # a Record is one row: see data/__init__.py
from data._cli import markdown, one_line_errors, parse
from data._controls import check, evaluated_splits, other_descriptions
from data._files import fingerprint, only_writer, open_results, read_file, remove_file, write_file
from data._tokenizer import train_tokenizer
from hyper import HYPERNETWORKS, TRUNKS, HyperConfig, check_choice
from model import GPT, MODULES, Encoder, ModelConfig
from zhyper import Zhyper

RANK = int(os.environ.get("RANK", 0))  # which process of torchrun's this is; 0 writes and evaluates
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))  # and how many there are
ROW = 128  # tokens of a row in pretraining
ACCELERATOR = torch.accelerator.current_accelerator(check_available=True)  # cuda, mps or None
DEVICES = [ACCELERATOR.type, "cpu"] if ACCELERATOR else ["cpu"]


@dataclass(frozen=True)
class Method:
    """How one method is trained; `kind` None trains nothing. Alpha is twice the rank."""

    kind: str | None = None  # a key of hyper.HYPERNETWORKS
    rank: int = 8
    trunk: str = "gated"
    lr: float = 2e-3  # three times that for A and B, which serve all contexts
    spread: float = 8.0  # see HyperConfig
    in_prompt: bool = False  # the description also stands before the prompt
    batch: int | None = None  # descriptions a step, where the preset's number does not suit


METHODS = {
    "frozen": Method(),
    "prompt": Method(in_prompt=True),
    "lora": Method("lora"),
    "lora-prompt": Method("lora", rank=32, in_prompt=True, batch=8),  # long rows: few make a step
    "t2l": Method("t2l", trunk="paper", lr=1e-3),
    "t2l-gated": Method("t2l", lr=1e-3),
    "zhyper-diag": Method("zhyper-diag", rank=32, spread=3.0),
    "zhyper-diag-paper": Method("zhyper-diag", rank=32, trunk="paper", lr=5e-4),
    "zhyper-square": Method("zhyper-square", lr=1e-3),
    "zhyper-square-paper": Method("zhyper-square", trunk="paper", lr=5e-4),
}


@dataclass(frozen=True)
class Preset:
    """The sizes of a run. Edit one, or add your own."""

    backbone: ModelConfig = ModelConfig()
    encoder: ModelConfig = ModelConfig(layers=2, inner=512)
    pretrain_steps: int = 350
    pretrain_lr: float = 4e-3
    pretrain_batch: int = 8  # rows a step
    steps: int = 560
    batch: int = 32  # descriptions a step ...
    questions: int = 4  # ... and rows for each, at most
    evaluate: int | None = None  # rows of a split, at most
    checkpoint: int = 100  # steps from one checkpoint to the next


TINY = ModelConfig(512, layers=1, heads=2, kv_heads=2, width=64, inner=256)
LARGE = ModelConfig(4096, 512, layers=4, heads=6, kv_heads=6, width=384, inner=1536)
LONG = {"pretrain_lr": 2e-3, "pretrain_batch": 16}
PRESETS = {
    "default": Preset(),
    "smoke": Preset(replace(TINY, layers=2), TINY, 60, steps=40, evaluate=64, checkpoint=5),
    "instructions": Preset(pretrain_steps=2500, **LONG, steps=400, questions=2),
    "voices": Preset(pretrain_steps=500, **LONG, steps=200, batch=16),
    "gpu": Preset(replace(LARGE, layers=6), LARGE, 3000, 1e-3, 16, steps=3000, batch=64),
}


def option(default, text: str):
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """The command line: each field is an option. Raises ValueError for a value that cannot be."""

    data: str = option("cultures", "a built-in data set, or a file.jsonl of records")
    data_path: str | None = option(None, "the file or folder of a data set that is not generated")
    descriptions: str | None = option(None, "a JSON file {context: [description, ...]} of more")
    contexts: int | None = option(None, "how many to train on, where the data set can choose")
    methods: str = option("frozen,prompt,zhyper-diag", f"or all: {', '.join(METHODS)}")
    preset: str = option("default", f"how large: {', '.join(PRESETS)}")
    seed: int = option(0, "of everything random")
    out: str | None = option(None, "the run folder; out/DATA if left out")
    force: bool = option(False, "replace what the run folder holds")
    device: str = option(DEVICES[0], f"of this machine's: {', '.join(DEVICES)}")
    rank: int | None = option(None, "of every adapter; each method's own if left out")
    modules: str = option("q,k,v,o", f"which linears are adapted, of {','.join(MODULES)}")
    trunk: str | None = option(None, f"of every hypernetwork, {' or '.join(TRUNKS)}")
    steps: int | None = option(None, "of training a method; the preset's if left out")
    seconds: int | None = option(None, "of training a method, in place of steps")
    lr: float | None = option(None, "peak learning rate of every method")
    dtype: str = option("fp32", "of the products in training, fp32 or bf16")
    compile: bool = option(False, "torch.compile: pays on a GPU, in long runs")
    validate: bool = option(False, "evaluate on the split for choosing settings, and no other")

    def __post_init__(self):
        for name in self.chosen:
            check_choice("method", name, METHODS)
        self.hyper_config(METHODS["zhyper-diag"])  # checks rank, modules and trunk
        check_choice("preset", self.preset, PRESETS)
        check_choice("device", self.device, DEVICES)
        check_choice("dtype", self.dtype, ["fp32", "bf16"])
        for name in ("seed", "contexts", "rank", "steps", "seconds", "lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value + (name == "seed") < 2**63:  # a seed may be 0
                raise ValueError(f"{name} is {value}: it must be more than 0, and finite")
        if self.seconds and WORLD_SIZE > 1:
            raise ValueError("seconds are counted by one process: give --steps to torchrun")

    @property
    def chosen(self) -> list[str]:
        names = dict.fromkeys(self.methods.replace(" ", "").split(","))
        return list(METHODS) if list(names) == ["all"] else list(names)

    @property
    def run(self) -> Path:
        return Path(self.out or Path("out") / Path(self.data).stem)

    @property
    def identity(self) -> dict:
        """What two runs must have in common for their methods to stand in one table."""
        own = vars(self) | {"sizes": repr(PRESETS[self.preset])}  # which may be edited
        return {k: v for k, v in own.items() if k not in ("methods", "out", "force", "device")}

    def hyper_config(self, method: Method) -> HyperConfig:
        rank = method.rank if self.rank is None else self.rank
        trunk = method.trunk if self.trunk is None else self.trunk
        modules = tuple(self.modules.replace(" ", "").split(","))
        return HyperConfig(method.kind, rank, 2 * rank, modules, trunk, spread=method.spread)


# ---- the training loop, and the two trainings


def learning_rate(step: int, steps: int, warmup: int = 50) -> float:
    """The share of the peak rate: up in a straight line, then down a cosine to a tenth."""
    warmup = min(warmup, steps // 4)
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def optimise(name, network, groups, stream, loss_of, steps, seconds, settings) -> dict:
    """Train the parameters in `groups`, each with its peak rate, on the loss of batch after batch.

    Given `seconds`, as many steps as fit into them at the median time so far. Goes on from a
    checkpoint, on a CPU to the same bits. Raises ValueError if the loss is not finite.
    """
    optimizer = torch.optim.AdamW(groups, fused=True)
    parameters = [p for group in groups for p in group["params"]]
    checkpoint, times, losses = settings.run / f"checkpoint-{name}.pt", [], []
    of = [name, fingerprint(getattr(network, "backbone", network)), *(g["peak"] for g in groups)]

    def restore(saved: dict) -> tuple:
        network.load_state_dict(network.state_dict() | saved["weights"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
        return saved["steps"], saved["times"], saved["losses"]

    if checkpoint.exists():
        steps, times, losses = read_file(checkpoint, restore, of)
    step, total = len(times), None if seconds else steps
    for _ in range(step):  # what it read before it was stopped
        next(stream)
    model = DistributedDataParallel(network, broadcast_buffers=False) if WORLD_SIZE > 1 else network
    bf16 = torch.autocast(parameters[0].device.type, torch.bfloat16, settings.dtype == "bf16")
    with tqdm(desc=name, total=total, initial=step, disable=RANK > 0) as bar:
        while step < steps:
            start, share = time.perf_counter(), learning_rate(step, steps)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            batch = next(stream)  # 1. read
            with bf16:
                loss = loss_of(model, batch)  # 2. forward
            loss.backward()  # 3. backward
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()  # 4. step
            optimizer.zero_grad()
            losses.append(round(loss.item(), 5))  # 5. log
            times.append(time.perf_counter() - start)
            if not math.isfinite(losses[-1]):
                rate = (
                    f"lower the rate, {groups[-1]['peak']:.2g} (--lr or pretrain_lr), and --force"
                )
                raise ValueError(f"{name}: the loss is {losses[-1]} at step {step}: {rate}")
            step += 1
            if seconds:
                steps = max(step, round(seconds / statistics.median(times)))
            bar.set_postfix(loss=losses[-1], refresh=False)
            bar.update()
            if step % PRESETS[settings.preset].checkpoint == 0 or step == steps:
                own = network.state_dict()  # 6. checkpoint, without the frozen part
                state = {"weights": {n: own[n] for n in own if not n.startswith("backbone.")}}
                state |= {"optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}
                state |= {"of": of, "steps": steps, "times": times, "losses": losses}
                write_file(checkpoint, state)
    return {"steps": step, "seconds": sum(times), "losses": losses[::10]}


def pretrain(system: Zhyper, documents: Sequence[str], settings: Settings) -> dict:
    """Teach the backbone to write the documents, packed into full rows; then freeze it for good."""
    preset, rng = PRESETS[settings.preset], random.Random(settings.seed)
    texts = [[*ids, system.backbone.config.eos] for ids in system.ids(documents, "document")]

    def read() -> Iterator[Tensor]:  # (b, t+1), rows of whole documents but for the last
        while True:
            drawn = [rng.choices(texts, k=ROW) for _ in range(preset.pretrain_batch)]  # enough
            rows = [[i for text in several for i in text][: ROW + 1] for several in drawn]
            yield torch.tensor(rows, device=system.device)

    def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
        own = ids[RANK::WORLD_SIZE]  # this process's part
        logits = model(own[:, :-1]).flatten(0, 1).float()
        loss = nn.functional.cross_entropy(logits, own[:, 1:].flatten(), reduction="sum")
        return loss * WORLD_SIZE / ids[:, 1:].numel()  # averaged over processes: the mean

    model, steps = system.backbone.requires_grad_(True).train(), preset.pretrain_steps
    groups = [{"params": list(model.parameters()), "peak": preset.pretrain_lr}]
    done = optimise("backbone", model, groups, read(), loss_of, steps, None, settings)
    model.requires_grad_(False).eval()
    return done


def batches(records: Sequence[Record], n: int, questions: int, seed: int) -> Iterator[list[Record]]:
    """Rows for step after step: up to `questions` for each of n descriptions, all in turn."""
    rng, groups, order = random.Random(seed), defaultdict(list), []
    for record in records:
        groups[record.context, record.description].append(record)
    while True:
        rows = []
        for _ in range(n):
            if not order:
                order = rng.sample(list(groups), len(groups))
            group = groups[order.pop()]
            rows += rng.sample(group, min(questions, len(group)))
        yield rows


def fit(system: Zhyper, name: str, method: Method, records, settings: Settings) -> dict:
    """Train encoder and hypernetwork through the frozen backbone, on the loss of answers alone."""
    preset, lr = PRESETS[settings.preset], settings.lr or method.lr

    def loss_of(model: nn.Module, rows: list[Record]) -> Tensor:
        loss, tokens, _ = model(*columns(rows[RANK::WORLD_SIZE]))
        total = tokens.detach().sum()
        if WORLD_SIZE > 1:
            distributed.all_reduce(total)
        return loss.sum() * WORLD_SIZE / total  # averaged over processes: the mean over all rows

    if system.encoder:
        texts = sorted({record.description for record in records})
        texts = random.Random(settings.seed).sample(texts, min(len(texts), 1024))
        with torch.no_grad():
            system.hypernetwork.trunk.standardise.measure(system.embed(texts))
    rest = {n: p for n, p in system.named_parameters() if p.requires_grad}
    shared = [rest.pop(n) for n in [*rest] if n.startswith(("hypernetwork.A.", "hypernetwork.B."))]
    groups = [{"params": shared, "peak": 3 * lr}, {"params": [*rest.values()], "peak": lr}]
    rows = batches(records, method.batch or preset.batch, preset.questions, settings.seed)
    budget = settings.steps or preset.steps, settings.seconds
    return optimise(name, system.train(), groups, rows, loss_of, *budget, settings)


# ---- evaluation


@torch.no_grad()
def score_rows(system: Zhyper, records: Sequence[Record], descriptions=None) -> tuple[Tensor, ...]:
    """Zhyper.score of any number of records, under their own or other descriptions: (n,) each."""
    prompts, answers, own = columns(records)
    descriptions, parts = descriptions or own, []
    for at in range(0, len(records), 256):
        rows = slice(at, at + 256)
        parts.append(system.score(prompts[rows], answers[rows], descriptions[rows]))
    return tuple(torch.cat(part).cpu().double() for part in zip(*parts, strict=True))


def evaluate(system: Zhyper, records: Sequence[Record], descriptions=None) -> dict:
    """Exact-match accuracy, loss per answer token (nats) and the number of rows."""
    loss, tokens, exact = score_rows(system, records, descriptions)
    accuracy, nll = exact.mean().item(), (loss.sum() / tokens.sum()).item()
    return {"accuracy": accuracy, "nll": nll, "n": len(records)}


def evaluate_all(system: Zhyper, data: Data, settings: Settings) -> dict:
    """`splits`, `controls` and `margin`, right minus swapped, of a row of results.json."""
    found, control = evaluated_splits(data, settings.validate)
    splits, limit = {}, PRESETS[settings.preset].evaluate
    for split in found:
        rows = data.split(split)
        rows = random.Random(settings.seed).sample(rows, len(rows))
        splits[split] = evaluate(system, rows[:limit])
        if split == control:  # drawn for all rows: a sample may have one context only
            others = other_descriptions(rows, settings.seed)
            controls = {k: evaluate(system, rows[:limit], v[:limit]) for k, v in others.items()}
    measure, sign = ("nll", -1) if data.free_text else ("accuracy", 1)
    margin = sign * (splits[control][measure] - controls["swapped"][measure])
    return {"splits": splits, "controls": controls, "margin": margin}


def table(results: dict) -> str:
    """Results as Markdown, a column for each method: accuracy, or for free text loss per token."""
    rows, measure = results["rows"], results["measure"]
    whole = ("trainable", "encoder", "steps", "seconds")
    body = [[name, *(f"{row[name]:,.0f}" for row in rows)] for name in whole]
    for kind in ("splits", "controls"):
        for name in rows[0][kind]:
            body.append([name, *(f"{row[kind][name][measure]:.3f}" for row in rows)])
    body.append(["margin", *(f"{row['margin']:z.3f}" for row in rows)])
    return markdown([measure, *(row["method"] for row in rows)], body)


# ---- the main job


def read_data(settings: Settings) -> tuple[Data, Zhyper]:
    """The data, checked, and on its tokenizer a fresh backbone."""
    preset = PRESETS[settings.preset]
    options = {"contexts": settings.contexts, "descriptions": settings.descriptions}
    data = load(settings.data, settings.data_path, settings.seed, **options)
    descriptions = dict.fromkeys(r.description for r in data.split("train"))
    tokenizer = train_tokenizer([*data.documents, *descriptions], preset.backbone.vocab_size)
    config = replace(preset.backbone, vocab_size=tokenizer.get_vocab_size())
    torch.manual_seed(settings.seed)
    base = Zhyper(tokenizer, GPT(config), template=data.template).to(settings.device)
    in_prompt = any(METHODS[name].in_prompt for name in settings.chosen)
    check(data, settings, base.ids, preset, in_prompt)
    return data, base


def prepare(settings: Settings) -> tuple[Data, Zhyper, dict]:
    """The data, the frozen model, pretrained or loaded, and the results that the run folder has."""
    (data, base), run = read_data(settings), settings.run
    made_of = settings.identity | {"records": data.fingerprint}
    results = open_results(run, ("backbone", *METHODS), made_of, settings.force)
    if WORLD_SIZE > 1:
        distributed.barrier()  # before any process writes what another may still look for
    pretrained = "backbone" in results and (run / "backbone.pt").exists()
    if pretrained:
        base.backbone = Zhyper.load_backbone(run).backbone.to(settings.device)
        if fingerprint(base.backbone) != results["backbone"]:
            raise ValueError(f"{run / 'backbone.pt'} is of another run: delete it, and start again")
    if settings.compile:
        base.backbone.features = torch.compile(base.backbone.features, dynamic=True)
    if not pretrained:
        results |= {"measure": "nll" if data.free_text else "accuracy", "seed": settings.seed}
        write_file(run / "results.json", results)  # of several processes, the first writes
        results["pretrain"] = pretrain(base, data.documents, settings)
        base.save_backbone(run)
        if results.get("backbone") != fingerprint(base.backbone):  # rows of another are of no use
            results |= {"backbone": fingerprint(base.backbone), "rows": []}
        write_file(run / "results.json", results)
        remove_file(run / "checkpoint-backbone.pt")
    return data, base, results


def build_system(name: str, base: Zhyper, settings: Settings) -> Zhyper:
    """A method's untrained system, on the backbone of `base`."""
    torch.manual_seed(settings.seed)
    method, encoder, hypernetwork = METHODS[name], None, None
    if method.kind:
        if HYPERNETWORKS[method.kind].reads_text:
            vocab_size = base.backbone.config.vocab_size
            encoder = Encoder(replace(PRESETS[settings.preset].encoder, vocab_size=vocab_size))
        hypernetwork = base.new_hypernetwork(settings.hyper_config(method), encoder)
    parts = base.tokenizer, base.backbone, encoder, hypernetwork
    return Zhyper(*parts, method.in_prompt, base.template).to(base.device)


def train_method(name: str, system: Zhyper, method: Method, data: Data, settings: Settings) -> dict:
    """Train one method, evaluate it and save it; returns its row of results.json."""
    row = {"method": name, "trained_as": repr(method), "steps": 0, "seconds": 0.0}
    for what, network in (("trainable", system.hypernetwork), ("encoder", system.encoder)):
        row[what] = sum(p.numel() for p in network.parameters()) if network else 0
    if system.hypernetwork:
        row |= fit(system, name, method, data.split("train"), settings)
    if RANK == 0:
        row |= evaluate_all(system.eval(), data, settings)
    system.save(settings.run, name)
    return row


def run(settings: Settings) -> dict:
    """The whole job; what an earlier start has finished stays. Returns what results.json has."""
    with only_writer(settings.run):
        data, base, results = prepare(settings)
        for name in settings.chosen:
            rows = {row["method"]: row["trained_as"] for row in results["rows"]}
            if rows.get(name) != repr(METHODS[name]) or not (settings.run / f"{name}.pt").exists():
                system = build_system(name, base, settings)
                row = train_method(name, system, METHODS[name], data, settings)
                results["rows"] = [r for r in results["rows"] if r["method"] != name] + [row]
                write_file(settings.run / "results.json", results)
            remove_file(settings.run / f"checkpoint-{name}.pt")
    return results


def main() -> None:
    start = time.time()
    settings = parse(Settings, sys.argv[1:], "train.py", "Train and compare; every default works.")
    if WORLD_SIZE > 1:
        if ACCELERATOR:
            torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group()
    try:
        results = run(settings)
        if RANK == 0:
            print(table(results), f"{time.time() - start:.0f} seconds: {settings.run}", sep="\n")
    finally:
        if WORLD_SIZE > 1:
            distributed.destroy_process_group()


if __name__ == "__main__":
    one_line_errors(main)
