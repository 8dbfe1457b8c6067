"""Train Zhyper end to end, beside the baselines that a sceptic would ask for, and print one table.

1. read the data, train a tokenizer on it and pretrain the backbone, or take a real one
2. train each method through the backbone, which is frozen
3. evaluate: every split, and one of them with the description swapped, random and absent

python train.py                                                      # invented cultures
python train.py --preset smoke                                       # the same in seconds
python train.py --data voices --preset voices --lr 1e-3              # a real text
python train.py --data instructions --preset instructions --lr 5e-4  # the paper's own data
python train.py --preset real                                        # real models
torchrun --nproc-per-node 2 train.py                                 # several devices
A run that was stopped goes on with the same command. Several seeds: tests/evidence.py.
"""

import math
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from data import Data, Record, columns, load  # a Record is one row: see data/__init__.py
from data._cli import check_positive, one_line_errors, option, parse, table
from data._controls import evaluated_splits, fitting, other_descriptions
from data._files import fingerprint, only_writer, open_results, read_file, remove_file, write_file
from data._prompting import BARE, PLAIN, choose
from data._rows import batches, of_first
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
    """How one method is trained; `kind` None trains nothing."""

    kind: str | None = None  # a key of hyper.HYPERNETWORKS
    rank: int = 8
    trunk: str = "gated"
    lr: float = 2e-3  # three times that for A and B, which serve all contexts
    scale: float = 2.0  # alpha / rank
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

    backbone: ModelConfig | str = ModelConfig()  # a size, or the name of a real one
    encoder: ModelConfig | str = ModelConfig(layers=2, inner=512)
    pretrain_steps: int = 350
    pretrain_lr: float = 4e-3
    pretrain_batch: int = 8  # rows a step
    steps: int = 560
    batch: int = 32  # descriptions a step ...
    questions: int = 4  # ... and rows for each, at most
    evaluate: int | None = None  # rows of a split, at most
    checkpoint: int = 100  # steps from one checkpoint to the next
    first: int = 0  # the lowest adapted layer; states below it are computed once for each row
    lr: float | None = None  # of every method, in place of its own


TINY = ModelConfig(512, layers=1, heads=2, kv_heads=2, width=64, inner=256)
LARGE = ModelConfig(4096, 512, layers=4, heads=6, kv_heads=6, width=384, inner=1536)
LONG = {"pretrain_lr": 2e-3, "pretrain_batch": 16}
SMOL, MINI = "HuggingFaceTB/SmolLM2-135M-Instruct", "sentence-transformers/all-MiniLM-L6-v2"
PRESETS = {
    "default": Preset(),
    "smoke": Preset(replace(TINY, layers=2), TINY, 60, steps=40, evaluate=64, checkpoint=5),
    "instructions": Preset(pretrain_steps=2500, **LONG, steps=400, questions=2),
    "voices": Preset(pretrain_steps=500, **LONG, steps=200, batch=16),
    "gpu": Preset(replace(LARGE, layers=6), LARGE, 3000, 1e-3, 16, steps=3000, batch=64),
    "real": Preset(SMOL, MINI, steps=1500, batch=16, questions=3, evaluate=256, first=24, lr=1e-3),
}


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
    backbone: str | None = option(None, "a pretrained Llama: its folder, or its name on the hub")
    encoder: str | None = option(None, "a pretrained BERT: likewise")
    train_encoder: bool = option(False, "train a pretrained encoder too")
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
        check_choice("preset", self.preset, PRESETS)
        self.hyper_config(METHODS["zhyper-diag"])  # checks rank, modules and trunk
        check_choice("device", self.device, DEVICES)
        check_choice("dtype", self.dtype, ["fp32", "bf16"])
        check_positive(self, ("seed", "contexts", "rank", "steps", "seconds", "lr"))
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
        where = tuple(self.modules.replace(" ", "").split(",")), PRESETS[self.preset].first, trunk
        return HyperConfig(method.kind, rank, method.scale * rank, *where, spread=method.spread)


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
    cast = torch.autocast(parameters[0].device.type, torch.bfloat16, settings.dtype == "bf16")
    with tqdm(desc=name, total=total, initial=step, disable=RANK > 0) as bar:
        while step < steps:
            start, share = time.perf_counter(), learning_rate(step, steps)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            batch = next(stream)  # 1. read
            with cast:
                loss = loss_of(model, batch)  # 2. forward
            loss.backward()  # 3. backward
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()  # 4. step
            optimizer.zero_grad()
            losses.append(round(loss.item(), 5))  # 5. log
            times.append(time.perf_counter() - start)
            if not math.isfinite(losses[-1]):
                what = f"{name}: the loss is {losses[-1]} at step {step}: lower the rate"
                raise ValueError(f"{what}, {groups[-1]['peak']:.2g} (--lr or pretrain_lr), --force")
            step += 1
            if seconds:
                steps = max(step, round(seconds / statistics.median(times)))
            bar.set_postfix(loss=losses[-1], refresh=False)
            bar.update()
            if step % PRESETS[settings.preset].checkpoint == 0 or step == steps:
                own, weights = network.state_dict(), network.named_parameters()  # 6. checkpoint
                frozen = {name for name, weight in weights if not weight.requires_grad}
                state = {"weights": {n: own[n] for n in own if n not in frozen}}
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


def fit(system: Zhyper, name: str, method: Method, records, settings: Settings) -> dict:
    """Train hypernetwork and encoder, unless that is frozen, on the loss of answers alone."""
    preset = PRESETS[settings.preset]
    steps, lr = settings.steps or preset.steps, settings.lr or preset.lr or method.lr

    def loss_of(model: nn.Module, rows: list[Record]) -> Tensor:
        loss, tokens, _ = model(*columns(rows[RANK::WORLD_SIZE]))  # Zhyper.score
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
    tuned = [rest.pop(n) for n in [*rest] if n.startswith("encoder.") and system.encoder.tokenizer]
    peaks = (shared, 3 * lr), (tuned, lr / 20), (rest.values(), lr)  # tuned: a real encoder
    groups = [{"params": [*some], "peak": peak} for some, peak in peaks]
    rows = batches(records, method.batch or preset.batch, preset.questions, settings.seed)
    return optimise(name, system.train(), groups, rows, loss_of, steps, settings.seconds, settings)


# ---- evaluation


@torch.no_grad()
def score_rows(system: Zhyper, records: Sequence[Record], descriptions=None) -> tuple[Tensor, ...]:
    """Loss, tokens and exact match of Zhyper.score, under own or other descriptions; (n,) each.

    And choice: 1 if the right one has the lowest loss per token of the row's choices, else 0.
    """
    prompts, _, own = columns(records)
    descriptions, parts = descriptions or own, []
    for at in range(0, len(records), 256):
        rows = slice(at, at + 256)
        answers = [record.candidates for record in records[rows]]  # the right one is the first
        scored = system.score(prompts[rows], answers, descriptions[rows])
        parts.append(of_first([x.cpu().double() for x in scored], answers))  # with choice
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def evaluate(system: Zhyper, records: Sequence[Record], descriptions=None) -> dict:
    """Exact-match accuracy, choice, loss per answer token (nats) and the number of rows."""
    loss, tokens, exact, choice = score_rows(system, records, descriptions)
    found = {"accuracy": exact.mean().item(), "nll": (loss.sum() / tokens.sum()).item()}
    if any(has := [bool(record.choices) for record in records]):
        found["choice"] = choice[torch.tensor(has)].mean().item()
    return found | {"n": len(records)}


def evaluate_all(system: Zhyper, data: Data, settings: Settings) -> dict:
    """`splits`, `controls` and `margin`, by how much swapped is worse, of a row of results.json."""
    names, controlled = evaluated_splits(data, settings.validate)
    splits, limit = {}, PRESETS[settings.preset].evaluate
    for split in names:
        rows = data.split(split)
        rows = random.Random(settings.seed).sample(rows, len(rows))
        splits[split] = evaluate(system, rows[:limit])
        if split == controlled:  # drawn for all rows: a sample may have one context only
            others = other_descriptions(rows, settings.seed)
            controls = {k: evaluate(system, rows[:limit], v[:limit]) for k, v in others.items()}
    measure, sign = ("nll", -1) if data.free_text else ("accuracy", 1)
    margin = sign * (splits[controlled][measure] - controls["swapped"][measure])
    return {"splits": splits, "controls": controls, "margin": margin}


# ---- the main job


def build_encoder(base: Zhyper, settings: Settings) -> Encoder:
    """A real one, frozen unless it is to be trained, or a fresh one on base's tokenizer."""
    given = settings.encoder or PRESETS[settings.preset].encoder
    if not isinstance(given, str):
        return Encoder(replace(given, vocab_size=base.backbone.config.vocab_size))
    encoder = Encoder.from_pretrained(given).requires_grad_(settings.train_encoder)
    encoder.source = None if settings.train_encoder else encoder.source  # or c would be kept
    return encoder


def read_data(settings: Settings) -> tuple[Data, Zhyper]:
    """The data, and a system on a real or a random backbone. Rows too long for it are left out."""
    given = settings.backbone or PRESETS[settings.preset].backbone
    options = {"contexts": settings.contexts, "descriptions": settings.descriptions}
    data = load(settings.data, settings.data_path, settings.seed, **options)
    if isinstance(given, str):
        base = Zhyper.from_pretrained(given)
    else:
        descriptions = dict.fromkeys(r.description for r in data.split("train"))
        tokenizer = train_tokenizer([*data.documents, *descriptions], given.vocab_size)
        torch.manual_seed(settings.seed)
        base = Zhyper(tokenizer, GPT(replace(given, vocab_size=tokenizer.get_vocab_size())))
    base.template, base.encoder = data.template, build_encoder(base, settings)  # to fit and to hash
    in_prompt = any(METHODS[name].in_prompt for name in settings.chosen)
    return fitting(data, settings, base, in_prompt), base.to(settings.device)


def prepare(settings: Settings) -> tuple[Data, Zhyper, dict]:
    """The data, the frozen model, real, pretrained now or loaded, and the results there are."""
    (data, base), run = read_data(settings), settings.run
    made_of = settings.identity | {"records": data.fingerprint}
    parts = {"backbone weights": base.backbone, "encoder weights": base.encoder}
    made_of |= {name: fingerprint(part) for name, part in parts.items() if part.tokenizer}
    results = open_results(run, ("backbone", *METHODS), made_of, settings.force)
    if WORLD_SIZE > 1:
        distributed.barrier()  # before any process writes what another may still look for
    there = "backbone" in results and (run / "backbone.pt").exists()
    if there and not base.backbone.source:
        base.backbone = Zhyper.load_backbone(run).backbone.to(settings.device)
        if fingerprint(base.backbone) != results["backbone"]:
            raise ValueError(f"{run / 'backbone.pt'} is of another run: delete it, and start again")
    if settings.compile:
        base.backbone.through = torch.compile(base.backbone.through, dynamic=True)
    if not there:
        results |= {"measure": "nll" if data.free_text else "accuracy", "seed": settings.seed}
        write_file(run / "results.json", results)  # of several processes, the first writes
        if not base.backbone.source:
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
            encoder = build_encoder(base, settings)
        hypernetwork = base.new_hypernetwork(settings.hyper_config(method), encoder)
    parts = base.tokenizer, base.backbone, encoder, hypernetwork
    return Zhyper(*parts, PLAIN if method.in_prompt else BARE, base.template).to(base.device)


def train_method(name: str, system: Zhyper, method: Method, data: Data, settings: Settings) -> dict:
    """Train one method, evaluate it and save it; returns its row of results.json."""
    row = {"method": name, "trained_as": repr(method), "steps": 0, "seconds": 0.0}
    for what, network in (("trainable", system.hypernetwork), ("encoder", system.encoder)):
        weights = network.parameters() if network else ()
        row[what] = sum(weight.numel() for weight in weights if weight.requires_grad)
    if name == "prompt" and system.backbone.source:
        row["prompting"] = choose(system, data, settings.seed, evaluate)  # sets system.prompting
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
            method = METHODS[name]
            if rows.get(name) != repr(method) or not (settings.run / f"{name}.pt").exists():
                system = build_system(name, base, settings)
                row = train_method(name, system, method, data, settings)
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
