"""Train Zhyper end to end, beside the baselines that a sceptic would ask for, and print one table.

1. read the data, train a tokenizer on it        4. train each method through the frozen backbone
2. pretrain the backbone on its documents        5. evaluate: every split, and the description swapped,
3. freeze it                                        random and absent

python train.py                                                      # invented cultures
python train.py --data voices --preset voices --lr 1e-3              # a real text
python train.py --data instructions --preset instructions --lr 5e-4  # the paper's own data
python train.py --data file.jsonl --methods zhyper-diag,t2l         # your own records
python train.py --data hard_cultures --methods all --seeds 3 --seconds 100   # the evidence; goes on if stopped
python train.py --report out/hard_cultures                           # its table and figure
python train.py --resume                                             # go on with a run that was stopped
torchrun --nproc-per-node 2 train.py                                 # on several devices, or machines, at once
"""

import argparse
import contextlib
import hashlib
import io
import json
import math
import os
import random
import signal
import statistics
import string
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # Windows has none: there two runs in one folder are not refused
    flock = None

import data as datasets
from data import Data, Record
from hyper import ADAPTERS, TRUNKS, AdapterConfig, check_choice
from model import GPT, MODULES, ContextTable, Encoder, ModelConfig
from zhyper import (
    END,
    Parser,
    Zhyper,
    build_adapter,
    check_same,
    fingerprint,
    one_line_errors,
    read_weights,
    rebuilding,
    tokenizer_fingerprint,
    train_tokenizer,
    write_file,
    write_weights,
)


@dataclass(frozen=True)
class Method:
    """How one method is trained. `kind` is a key of hyper.ADAPTERS, or None where nothing is trained."""

    kind: str | None = None
    rank: int = 8
    trunk: str = "gated"
    lr: float = 2e-3
    contexts: int = 0  # descriptions a step, where the preset's number does not suit
    in_prompt: bool = False  # the description stands before the prompt
    by_name: bool = False  # the context is told by its name, not by a text: cannot serve one it has not trained on


METHODS = {
    "frozen": Method(),
    "prompt": Method(in_prompt=True),
    "lora": Method("lora"),
    "lora-prompt": Method("lora", rank=32, contexts=8, in_prompt=True),  # long rows: a few make a quick step
    "onehot": Method("zhyper-diag", rank=32, by_name=True),
    "oracle": Method("oracle", by_name=True),
    "t2l": Method("t2l", trunk="paper", lr=1e-3),
    "zhyper-diag": Method("zhyper-diag", rank=32),
    "zhyper-diag-paper": Method("zhyper-diag", rank=32, trunk="paper", lr=5e-4),
    "zhyper-square": Method("zhyper-square", lr=1e-3),
    "zhyper-square-paper": Method("zhyper-square", trunk="paper", lr=5e-4),
}
DTYPES = "fp32", "bf16"
ORACLE_CONTEXTS = 32  # a LoRA for each is dear, so the oracle has a sample of them


@dataclass(frozen=True)
class Preset:
    """The sizes of a run. Edit one, or add your own."""

    backbone: ModelConfig = ModelConfig()
    encoder: ModelConfig = ModelConfig(layers=2)
    pretrain_steps: int = 350
    pretrain_lr: float = 4e-3
    steps: int = 560  # of adapter training ...
    seconds: int = 0  # ... or, if not 0, as many as fit into these
    batch: int = 8  # rows a step in pretraining ...
    row: int = 128  # ... and tokens of each
    contexts: int = 32  # descriptions a step in adapter training ...
    questions: int = 4  # ... and rows for each, at most
    evaluate: int = 1 << 30  # rows of a split, at most
    checkpoint: int = 100  # steps between two checkpoints
    accumulate: int = 1  # parts that a step's rows are read in, one after another
    dtype: str = "fp32"


PRESETS = {
    "smoke": Preset(
        ModelConfig(512, 2, 2, 64), ModelConfig(512, 1, 2, 64), pretrain_steps=60, steps=40, evaluate=64, checkpoint=5
    ),
    "default": Preset(),
    "instructions": Preset(pretrain_steps=2500, pretrain_lr=2e-3, batch=16, steps=400, questions=2),
    "voices": Preset(pretrain_steps=500, pretrain_lr=2e-3, batch=16, steps=200, contexts=16),
    "gpu": Preset(
        ModelConfig(4096, 6, 6, 384, 512),
        ModelConfig(4096, 4, 6, 384, 512),
        pretrain_steps=3000,
        pretrain_lr=1e-3,
        batch=16,
        steps=3000,
        contexts=64,
    ),
}


def option(default, text: str):
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """The command line: each field is an option. Raises ValueError for a value that cannot be."""

    data: str = option("cultures", "a built-in data set, or a file.jsonl of records")
    data_path: str = option("", "the file or folder of a data set that is not generated")
    descriptions: str = option(
        "", "a JSON file {context: [text, ...]} of more descriptions, where the data set takes one"
    )
    contexts: int = option(0, "how many to train on, where the data set can choose; 0 for its own number")
    methods: str = option("frozen,prompt,zhyper-diag", f"comma-separated, or all: {', '.join(METHODS)}")
    preset: str = option("default", f"how large: {', '.join(PRESETS)}")
    seed: int = option(0, "of everything random")
    seeds: int = option(1, "how many, one after the other; each has a folder of its own in the run folder")
    out: str = option("", "the run folder; out/<data> if left out")
    resume: bool = option(False, "go on with the run in the run folder, with the options that it was started with")
    force: bool = option(False, "replace what the run folder holds")
    device: str = option("auto", "auto (cuda, mps, cpu in that order), or one of them")
    rank: int = option(0, "of every adapter; 0 leaves each method its own")
    modules: str = option("q,k,v,o", f"which linears are adapted, of {','.join(MODULES)}")
    trunk: str = option("", f"of every hypernetwork, {' or '.join(TRUNKS)}; each method's own if left out")
    steps: int = option(0, "of adapter training; 0 leaves the preset's")
    seconds: int = option(0, "of adapter training in place of steps, the same for every method")
    lr: float = option(0.0, "peak learning rate of every method; 0 leaves each its own")
    accumulate: int = option(1, "parts that a step's rows are read in, one after another: the same, in less memory")
    dtype: str = option("fp32", f"of the products in training, {' or '.join(DTYPES)}; weights and evaluation are fp32")
    compile: bool = option(False, "let torch.compile make code for this machine: pays on a GPU, in long runs")
    validate: bool = option(False, "evaluate on the split kept for choosing settings, and on no other")
    report: str = option("", "train nothing; print the table of these run folders (comma-separated), draw the figure")

    def __post_init__(self):
        for name in self.chosen:
            check_choice("method", name, METHODS)
        check_choice("preset", self.preset, PRESETS)
        check_choice("device", self.device, ["auto", "cuda", "mps", "cpu"])
        check_choice("dtype", self.dtype, DTYPES)
        for name in ("rank", "steps", "seconds", "lr", "seed", "contexts"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: it may not be negative")
        for name in ("seeds", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
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
        how = {"seconds": self.seconds, "accumulate": self.accumulate, "dtype": self.dtype}
        return replace(preset, steps=self.steps or preset.steps, **how)

    @property
    def identity(self) -> dict:
        """What two runs must have in common to stand in one table."""
        where_and_which = ("methods", "seeds", "out", "resume", "force", "device", "report")
        return {name: value for name, value in vars(self).items() if name not in where_and_which}

    def adapter_config(self, method: Method) -> AdapterConfig:
        rank = self.rank or method.rank
        modules, trunk = tuple(self.modules.replace(" ", "").split(",")), self.trunk or method.trunk
        return AdapterConfig(method.kind, rank, alpha=2 * rank, modules=modules, trunk=trunk)

    def pick_device(self) -> torch.device:
        found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        name = next(name for name in found if found[name]) if self.device == "auto" else self.device
        if not found[name]:
            raise ValueError(f"this machine has no {name}: choose --device auto or cpu")
        if self.dtype == "bf16" and not has_bf16(name):
            raise ValueError(f"this machine's {name} has no products in bf16: choose --dtype fp32")
        if self.compile:
            try:
                torch.compile(torch.sin)(torch.zeros(2, device=name))
            except Exception as error:  # of whatever kind: there may be no compiler, or one that fails
                reason = str(error).partition("\n")[0][:80]
                raise ValueError(f"torch.compile does not work here ({reason}): leave out --compile") from None
        return torch.device(name)


def has_bf16(device: str) -> bool:
    """Whether a device multiplies in bf16 faster than in fp32; elsewhere it would only be emulated."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    able = torch.cpu.get_capabilities()
    return device == "cpu" and any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


# ---- several processes, one for each device: torchrun starts this file in each


def rank() -> int:
    """Which of the processes this is; 0 is the one that writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def processes() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def over_all(number: float) -> float:
    """The sum of every process's number."""
    total = torch.tensor(number, dtype=torch.float64)
    if processes() > 1:
        distributed.all_reduce(total)
    return total.item()


@contextlib.contextmanager
def joined(settings: Settings) -> Iterator[Settings]:
    """Under torchrun: have this process and the others do one run together.

    Each does the whole job from the same seed, and of every step's rows takes its own part; gradients are averaged.
    So all have the same weights, those of a single process. Rank 0 alone writes the run folder: the others begin
    with a copy of it, and throw away what they write.
    """
    if not distributed.is_torchelastic_launched():
        yield settings
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group()
    try:
        files = {str(p.relative_to(settings.run)): p.read_bytes() for p in settings.run.rglob("*") if p.is_file()}
        said = [settings, files]
        distributed.broadcast_object_list(said)  # what rank 0 has
        if rank() == 0:
            yield settings
            return
        with tempfile.TemporaryDirectory() as copy, contextlib.redirect_stdout(io.StringIO()):
            for name, content in said[1].items():
                (Path(copy) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(copy) / name).write_bytes(content)
            yield replace(said[0], out=copy)
    finally:
        distributed.destroy_process_group()


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


LOG_HEAD = ["method", "step", "loss", "lr_share", "seconds"]


class RunFolder:
    """What a run leaves behind while it trains: log.csv, and a checkpoint that a stopped run goes on from.

    A checkpoint holds everything that the next step depends on: weights, optimizer, step, random state. The rows of
    a step follow from the seed, so those that were read are read again and passed over. The checkpoint before is
    kept: should the last one be damaged, training goes on from there.
    """

    def __init__(self, path: Path, identity: dict, every: int):
        self.path, self.identity, self.every = path, identity, every
        self.checkpoints = path / "checkpoint.pt", path / "checkpoint.before.pt"
        self.interrupted = False
        log = (path / "log.csv").read_text(errors="replace") if (path / "log.csv").exists() else ""
        lines = [line.split(",") for line in log.splitlines()]
        self.lines = [line for line in lines if len(line) == len(LOG_HEAD) and line[1].isdigit()]

    def log(self, *line) -> None:
        """Add a line to log.csv, which is written with the next checkpoint."""
        self.lines.append(list(map(str, line)))

    def save(self, name: str, state: dict) -> None:
        """Write the checkpoint of the training called `name`; only then the last one becomes the one before."""
        (last, before), new = self.checkpoints, self.path / "checkpoint.new.pt"
        write_weights(new, {"name": name, "identity": self.identity, **state})
        write_file(self.path / "log.csv", "".join(",".join(line) + "\n" for line in [LOG_HEAD, *self.lines]).encode())
        if last.exists():
            last.replace(before)
        new.replace(last)

    def load(self, name: str) -> dict | None:
        """The newest checkpoint of that training that can be read, or None; what was logged later is dropped.

        Raises ValueError if it was written by other settings, or if there are some and none can be read.
        """
        state, damaged = None, []
        for path in self.checkpoints:
            if path.exists() and state is None:
                try:
                    state = read_weights(path)
                except ValueError as error:
                    damaged.append(str(error).partition(": train again")[0])
        if damaged and state is None:
            raise ValueError(f"{'; '.join(damaged)}: start again with --force")
        if damaged:
            print(f"{damaged[0]}: going on from the one before", file=sys.stderr)
        if state is not None:
            with rebuilding(self.checkpoints[0]):
                for what, value in self.identity.items():
                    check_same(what, value, state["identity"].get(what))
                state = state if state["name"] == name else None
        step = state["step"] if state else 0
        self.lines = [line for line in self.lines if line[0] != name or int(line[1]) < step]
        return state

    def clear(self) -> None:
        """Remove the checkpoints of a run that is finished, or is to start again."""
        for path in self.path.glob("checkpoint*"):
            path.unlink()

    @contextlib.contextmanager
    def between_steps(self) -> Iterator[None]:
        """Have Ctrl-C wait for the end of a step, where a checkpoint can be written."""

        def note(*_):
            self.interrupted = rank() == 0  # the others are ended when it has written its checkpoint

        earlier = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, earlier)


def optimise(
    name: str,
    model: nn.Module,
    trained: nn.Module,
    groups: list[dict],
    budget: tuple[int, int],
    stream: Iterator,
    loss_of: Callable[..., Tensor],
    sizes: Preset,
    folder: RunFolder,
) -> tuple[int, float]:
    """AdamW on the loss of one batch of `stream` after another, clipped at norm 1; returns steps and seconds.

    `loss_of(model, rows, part)` is what a part of the rows, a slice, adds to the loss of all. `trained` is what of the
    model is trained; each group brings its peak learning rate. The budget is (steps, seconds): if the second is not 0
    the steps are as many as fit at the median pace so far, so that a moment in which the machine is busy elsewhere
    costs no steps. Goes on from the folder's checkpoint if it holds one of this training, on a CPU to the same bits.
    Raises ValueError if the loss is no number any more.
    """
    optimizer = torch.optim.AdamW(groups, fused=True)
    peaks, parameters = [group["lr"] for group in groups], [p for group in groups for p in group["params"]]
    (steps, seconds), step, pace = budget, 0, []  # pace: how long each step took

    def save() -> None:
        random_state = torch.get_rng_state()
        state = {"weights": trained.state_dict(), "optimizer": optimizer.state_dict(), "random": random_state}
        folder.save(name, state | {"step": step, "steps": steps, "pace": pace})

    if state := folder.load(name):
        with rebuilding(folder.checkpoints[0]):
            trained.load_state_dict(state["weights"])
            optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["random"])
            step, steps, pace = state["step"], state["steps"], state["pace"]
    saved = step
    for _ in range(step):
        next(stream)
    parts = sizes.accumulate * processes()
    mine = [slice(part, None, parts) for part in range(rank(), parts, processes())]
    if processes() > 1:
        model = DistributedDataParallel(model, broadcast_buffers=False)  # averages the gradients in every backward
    autocast = torch.autocast(parameters[0].device.type, torch.bfloat16, enabled=sizes.dtype == "bf16")
    bar = tqdm(total=None if seconds else steps, initial=step, desc=name, mininterval=1, disable=rank() > 0)
    with folder.between_steps(), bar:
        while step < steps:
            start = time.perf_counter()
            share, loss = learning_rate(step, steps), 0.0
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share
            rows = next(stream)  # 1. read
            for part in mine:
                with autocast:
                    added = loss_of(model, rows, part)  # 2. predict
                (processes() * added).backward()  # 3. find out what to change
                loss += added.item()
            loss = over_all(loss)
            if not math.isfinite(loss):
                raise ValueError(
                    f"{name}: the loss is {loss} at step {step}, at a learning rate of {peaks[-1] * share:.2g}; "
                    f"the last good checkpoint is of step {saved}: train with a lower --lr, and --force"
                )
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()  # 4. change it
            optimizer.zero_grad()
            pace.append(over_all((time.perf_counter() - start) / processes()))
            if step % 10 == 0 or step == steps - 1:
                bar.set_postfix(loss=f"{loss:.3f}")
                folder.log(name, step, f"{loss:.5f}", f"{share:.4f}", f"{sum(pace):.2f}")
            step += 1
            bar.update()
            if seconds:
                steps = max(step, round(seconds / statistics.median(pace)))
            if step % folder.every == 0 or step == steps or folder.interrupted:
                save()  # 5. keep it
                saved = step
            if folder.interrupted:
                raise KeyboardInterrupt(f"{name} stopped at step {step}")
    return step, sum(pace)


def pretrain(system: Zhyper, documents: list[str], sizes: Preset, seed: int, folder: RunFolder) -> float:
    """Teach the backbone to write its documents, packed into full rows that begin with one; then freeze it for good.

    Returns the seconds it took.
    """
    rows = [[*row, END] for row in system.ids(documents, "document")]
    rng, length = random.Random(seed), min(sizes.row, system.backbone.config.context)

    def packed() -> list[int]:
        row: list[int] = []
        while len(row) <= length:
            row += rng.choice(rows)
        return row[: length + 1]

    def loss_of(model: nn.Module, rows: list[list[int]], part: slice) -> Tensor:
        ids = torch.tensor(rows[part], device=system.device)  # (b, t+1)
        loss = nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1).float(), ids[:, 1:].flatten())
        return loss * (len(ids) / len(rows))

    stream = iter(lambda: [packed() for _ in range(sizes.batch)], None)
    model = system.backbone.requires_grad_(True).train()
    groups = [{"params": list(model.parameters()), "lr": sizes.pretrain_lr}]
    budget = sizes.pretrain_steps, 0
    _, seconds = optimise("pretrain", model, model, groups, budget, stream, loss_of, sizes, folder)
    model.requires_grad_(False).eval()
    return seconds


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


def fit(
    system: Zhyper, records: list[Record], lr: float, sizes: Preset, seed: int, name: str, folder: RunFolder
) -> tuple[int, float]:
    """Train encoder and adapter end to end through the frozen backbone, on the loss of the answers alone.

    Returns the number of steps, and the seconds they took.
    """

    def loss_of(model: nn.Module, rows: list[Record], part: slice) -> Tensor:
        loss, _, _ = model(*columns(rows[part]), told(system, rows[part]), told(system, rows))
        return loss.sum() / (sum(map(len, system.ids(columns(rows)[1]))) + len(rows))  # an <end> behind each answer

    trained = nn.ModuleList(module for module in (system.encoder, system.adapter) if module is not None)
    shared = [p for n, p in system.adapter.named_parameters() if n.startswith(("A.", "B."))]
    rest = [p for n, p in system.adapter.named_parameters() if not n.startswith(("A.", "B."))]
    rest += [p for p in system.encoder.parameters() if p.requires_grad] if system.encoder else []
    groups = [{"params": shared, "lr": 3 * lr}, {"params": rest, "lr": lr}]  # A and B serve all: they may move faster
    groups = [group for group in groups if group["params"]]
    stream = batches(records, sizes.contexts, sizes.questions, random.Random(seed))
    for module in system.adapter.modules():
        if isinstance(module, nn.BatchNorm1d):  # each part of a step shows it the same: together they count once
            module.momentum = 1 - 0.9 ** (1 / sizes.accumulate)
    system.train()
    budget = sizes.steps, sizes.seconds
    spent = optimise(name, system, trained, groups, budget, stream, loss_of, sizes, folder)
    system.eval()
    return spent


def columns(rows: Sequence[Record]) -> tuple[list[str], list[str]]:
    return [row.prompt for row in rows], [row.answer for row in rows]


def told(system: Zhyper, rows: Sequence[Record]) -> list[str]:
    """What each row tells the system of its context."""
    return [row.context if system.by_name else row.description for row in rows]


# ---- evaluation


@torch.no_grad()
def score_rows(
    system: Zhyper, records: Sequence[Record], descriptions: Sequence[str | None] | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Zhyper.score of any number of records, under those descriptions, one a row: three of (n,), float64 on the CPU."""
    parts = []
    for start in range(0, len(records), 256):
        rows = slice(start, start + 256)
        parts.append(system.score(*columns(records[rows]), None if descriptions is None else descriptions[rows]))
    loss, tokens, exact = (torch.cat(column).double().cpu() for column in zip(*parts, strict=True))
    return loss, tokens, exact


def evaluate(system: Zhyper, records: Sequence[Record], descriptions: Sequence[str | None] | None) -> dict:
    """`summarise` the scores of those records under those descriptions, one a row."""
    return summarise(records, score_rows(system, records, descriptions), {})


def summarise(
    records: Sequence[Record], scores: tuple[torch.Tensor, ...], families: Mapping[str, Sequence[str]]
) -> dict:
    """Exact-match accuracy, loss per answer token (nats) and number of rows n, from what `score_rows` returned.

    `majority` is the accuracy of always giving a context's most frequent answer, where a context has ten rows or
    more on average. For each family of contexts that is there, both again: the mean over its contexts.
    """
    loss, tokens, exact = scores
    summary = {"accuracy": exact.mean().item(), "nll": (loss.sum() / tokens.sum()).item(), "n": len(records)}
    answers, right = defaultdict(Counter), defaultdict(list)
    for record, is_right in zip(records, exact.tolist(), strict=True):
        answers[record.context][record.answer] += 1
        right[record.context].append(is_right)
    commonest = {context: counts.most_common(1)[0][1] for context, counts in answers.items()}
    if len(records) >= 10 * len(answers):
        summary["majority"] = sum(commonest.values()) / len(records)
    present = {family: [c for c in contexts if c in answers] for family, contexts in families.items()}
    if any(present.values()):
        summary["families"] = {
            family: {
                "accuracy": statistics.mean(statistics.mean(right[c]) for c in contexts),
                "majority": statistics.mean(commonest[c] / len(right[c]) for c in contexts),
            }
            for family, contexts in present.items()
            if contexts
        }
    return summary


def bootstrap(difference: torch.Tensor, tokens: torch.Tensor, seed: int, draws: int = 1000) -> list[float]:
    """The 95 % interval of a paired difference of losses per token, drawing rows with replacement: [low, high].

    `difference` (n,) is each row's, summed over its `tokens` (n,), so what is hard in a row cancels.
    """
    rows = torch.randint(len(tokens), (draws, len(tokens)), generator=torch.Generator().manual_seed(seed))
    means = difference[rows].sum(1) / tokens[rows].sum(1)
    return means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()


def retrieval(system: Zhyper, records: Sequence[Record], own: torch.Tensor, rng: random.Random) -> dict[str, float]:
    """How often the right description gives an answer the lowest loss, among those of up to nine other contexts.

    `own` (n,) is the loss under the right one. A tie counts in part, so `accuracy` is `chance` if no text is read.
    """
    said = defaultdict(list)
    for record in records:
        said[record.context].append(record.description)
    others = min(9, len(said) - 1)
    rivals = [rng.sample([c for c in said if c != record.context], others) for record in records]
    losses = [own]
    for column in zip(*rivals, strict=True):
        losses.append(score_rows(system, records, [rng.choice(said[context]) for context in column])[0])
    losses = torch.stack(losses)  # (10, n)
    lowest = losses == losses.min(0).values
    return {"accuracy": (lowest[0] / lowest.sum(0)).mean().item(), "chance": 1 / (1 + others)}


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


def evaluated_splits(data: Data, validate: bool = False) -> tuple[list[str], str]:
    """The splits to evaluate, and the one on which the controls are tried. Raises ValueError if there is none."""
    wanted = ["validation"] if validate else [s for s in datasets.SPLITS if s not in ("train", "validation")]
    found = [split for split in wanted if data.split(split)]
    if not found:
        raise ValueError(f"{data.name} has no rows to evaluate: add some of the split {', '.join(wanted)}")
    return found, "unseen" if "unseen" in found else found[0]


def evaluate_all(system: Zhyper, data: Data, limit: int, seed: int, validate: bool = False) -> dict:
    """The `splits`, `controls` and `margin` of a row of results.json; None for what the system cannot serve.

    For free text also `gaps`, loss per token under another's description and under none minus that under the right
    one, each with its 95 % interval [gap, low, high]; and `retrieval`.
    """
    frozen = system.adapter is None and not system.in_prompt
    found, control = evaluated_splits(data, validate)
    splits, controls, row = {}, dict.fromkeys(("swapped", "random", "none")), {"margin": None}
    for split in found:
        rows = random.Random(seed).sample(data.split(split), min(limit, len(data.split(split))))
        if system.by_name:
            rows = [row for row in rows if row.context in system.encoder.index]
        right = score_rows(system, rows, None if frozen else told(system, rows)) if rows else None
        splits[split] = summarise(rows, right, data.families) if rows else None
        if split == control and not system.by_name:
            rng = random.Random(seed)
            texts = {
                "swapped": swapped(rows, rng),
                "random": [random_text(rng) for _ in rows],
                "none": [None] * len(rows),
            }
            scores = {name: score_rows(system, rows, None if frozen else texts[name]) for name in controls}
            controls = {name: summarise(rows, scores[name], {}) for name in controls}
            worse = {name: controls[name]["nll"] - splits[split]["nll"] for name in ("swapped", "none")}
            row["margin"] = splits[split]["accuracy"] - controls["swapped"]["accuracy"]
            if data.free_text:
                row["margin"] = worse["swapped"]
                row["gaps"] = {
                    name: [gap, *bootstrap(scores[name][0] - right[0], right[1], seed)] for name, gap in worse.items()
                }
                row["retrieval"] = retrieval(system, rows, right[0], rng)
    return {"splits": splits, "controls": controls, **row}


# ---- results: one JSON file, one table, one figure


def grouped(rows: list[dict]) -> list[list[dict]]:
    """The rows of one method and number of contexts together: one for each seed."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["method"], row["contexts"]].append(row)
    return list(groups.values())


def cell(values: list[float | None], digits: int = 3) -> str:
    """Over several seeds the mean, and ± the sample standard deviation. A dash is what the method cannot serve."""
    if None in values:
        return "–"
    spread = f" ±{statistics.stdev(values):.{digits}f}" if len(values) > 1 and digits else ""
    return f"{statistics.mean(values):z,.{digits}f}{spread}"


def markdown(head: list[str], body: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *body)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def table(results: dict) -> str:
    """The results as a Markdown table: accuracy of each split, or loss per token for free text.

    A first row for `majority`, if a split has one. Below it a table by families of contexts, or of gaps, if there are.
    """
    measure = results["measure"]
    first = results["rows"][0]
    kinds = [(kind, name) for kind in ("splits", "controls") for name in first[kind]]
    whole = ["trainable", "encoder", "contexts", "steps", "seconds"]
    named = [f"({name})" if kind == "controls" else name for kind, name in kinds]
    head = ["method", *whole, *named, "margin"]
    body, groups = [], grouped(results["rows"])
    majority = [[(row["splits"].get(name) or {}).get("majority") for row in groups[0]] for name in first["splits"]]
    if measure == "accuracy" and any(None not in values for values in majority):
        dashes = len(first["controls"]) + 1
        body.append(["majority", *["–"] * len(whole), *map(cell, majority), *["–"] * dashes])
    for rows in groups:
        cells = [cell([row[name] for row in rows], 0) for name in whole]
        for kind, name in kinds:
            scores = [row[kind].get(name) for row in rows]
            cells.append(cell([score and score[measure] for score in scores]))
        cells.append(cell([row["margin"] for row in rows]))
        body.append([rows[0]["method"], *cells])
    tables = [markdown(head, body), families_table(groups), gaps_table(results["rows"])]
    return "\n\n".join(filter(None, tables))


def families_table(groups: list[list[dict]]) -> str:
    """Accuracy for each family of contexts, one line for a family and split, or "" if there are none."""

    def scores(rows: list[dict], split: str, family: str) -> list[dict | None]:
        return [(row["splits"].get(split) or {}).get("families", {}).get(family) for row in rows]

    body = []
    for split, score in groups[0][0]["splits"].items():
        for family in (score or {}).get("families", ()):
            majority = [score and score["majority"] for score in scores(groups[0], split, family)]
            methods = [[score and score["accuracy"] for score in scores(rows, split, family)] for rows in groups]
            body.append([split, family, *map(cell, [majority, *methods])])
    head = ["split", "family", "majority", *(rows[0]["method"] for rows in groups)]
    return markdown(head, body) if body else ""


def gaps_table(rows: list[dict]) -> str:
    """For free text, how much worse the controls are, each with its interval, and the retrieval score; or ""."""
    body = []
    for row in rows:
        if "gaps" in row:
            gaps = [f"{gap:z.3f} [{low:z.3f}, {high:z.3f}]" for gap, low, high in row["gaps"].values()]
            found = row["retrieval"]
            body.append([row["method"], str(row["seed"]), *gaps, f"{found['accuracy']:.3f} ({found['chance']:.3f})"])
    return markdown(["method", "seed", "swapped − right", "none − right", "retrieval (chance)"], body) if body else ""


def write_results(folder: Path, results: dict) -> None:
    write_file(folder / "results.json", json.dumps(results, indent=1).encode())


def read_results(folder: Path) -> dict:
    """The results.json of a run folder. Raises FileNotFoundError, or ValueError if it holds no results."""
    path = folder / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"no results in {folder}: write them with python train.py --out {folder}")
    try:
        results = json.loads(path.read_text())
        for row in results["rows"]:
            missing = {"method", "contexts", "trainable", "encoder", "steps", "seconds", "margin"} - set(row)
            scores = [score for kind in ("splits", "controls") for score in row[kind].values() if score is not None]
            numbers = [score[name] for score in scores for name in ("accuracy", "nll")]
            numbers += [score["majority"] for score in scores if "majority" in score]
            families = [family for score in scores for family in score.get("families", {}).values()]
            numbers += [family[name] for family in families for name in ("accuracy", "majority")]
            numbers += [number for gap in row.get("gaps", {}).values() for number in gap]
            numbers += [row["retrieval"][name] for name in ("accuracy", "chance") if "gaps" in row]
            if missing or not all(isinstance(number, float) for number in numbers):
                raise ValueError("a row is not complete")
        if results["measure"] not in ("accuracy", "nll") or not isinstance(results["settings"], dict):
            raise ValueError("no measure or settings")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} holds no results ({error}): run again with --force to replace it") from None
    return results


def report(folders: list[Path]) -> None:
    """Print the table of the results in those folders, and draw figure.png in the first, if matplotlib is there."""
    parts = [read_results(folder) for folder in folders]
    rows = [row for part in parts for row in part["rows"]]
    if not rows or len({(part["measure"], *rows[0]["splits"]) for part in parts}) > 1:
        raise ValueError(f"{', '.join(map(str, folders))}: no finished method, or tables that do not go together")
    results = parts[0] | {"rows": rows}
    print(table(results))
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no figure: for that, pip install matplotlib")
        return
    figure = Figure(figsize=(11, 4), layout="constrained")
    draw(results, figure)
    figure.savefig(folders[0] / "figure.png", dpi=110)
    print(f"the figure is {folders[0] / 'figure.png'}")


def draw(results: dict, figure) -> None:
    """Accuracy, or loss, against trained parameters, one panel a split; a line for what trains nothing."""
    measure = results["measure"]
    splits = [s for s in ("new_wording", "unseen", "ood") if s in results["rows"][0]["splits"]]
    for panel, split in zip(figure.subplots(1, len(splits), sharey=True, squeeze=False)[0], splits, strict=True):
        for number, rows in enumerate(grouped(results["rows"])):
            scores = [row["splits"][split][measure] for row in rows if row["splits"][split]]
            if not scores:
                continue
            name, colour, marker = rows[0]["method"], f"C{number}", "os^"[number // 10]  # ten colours, then another
            mean, spread = statistics.mean(scores), statistics.stdev(scores) if len(scores) > 1 else 0
            if rows[0]["trainable"]:
                panel.errorbar(rows[0]["trainable"], mean, spread, fmt=marker, capsize=3, color=colour, label=name)
            else:
                panel.axhline(mean, linestyle=":", color=colour, label=name)
        panel.set(title=split, xscale="log", xlabel="trained parameters (encoder apart)")
    panel.figure.axes[0].set_ylabel("accuracy" if measure == "accuracy" else "loss per token (nats)")
    named = {
        name: handle for panel in figure.axes for handle, name in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(named.values(), named, loc="outside right center", frameon=False)


# ---- the main job


def check_data(system: Zhyper, data: Data, settings: Settings) -> None:
    """Refuse a data set that cannot be trained on or compared, or with a text that would not fit.

    Raises ValueError: which text, how long it is and how long it may be; or what is missing.
    """
    sizes, in_prompt = settings.sizes, any(METHODS[name].in_prompt for name in settings.chosen)
    if len({record.context for record in data.split("train")}) < 2:
        raise ValueError(f"{data.name} trains on one context only, so there is nothing to tell apart: add another")
    swapped(data.split(evaluated_splits(data, settings.validate)[1]), random.Random(0))

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


def run_method(name: str, base: Zhyper, data: Data, settings: Settings, folder: RunFolder) -> dict:
    """Train one method on the shared frozen backbone, save it, and return its row of results.json."""
    method, sizes = METHODS[name], settings.sizes
    sizes = replace(sizes, contexts=method.contexts or sizes.contexts)
    train = data.split("train")
    torch.manual_seed(settings.seed)
    encoder = adapter = None
    if method.kind == "oracle":  # those first that can be evaluated
        trained = {row.context for row in train}
        order = dict.fromkeys(r.context for r in [*data.split("validation"), *data.split("seen"), *train])
        sample = [context for context in order if context in trained][:ORACLE_CONTEXTS]
        train = [row for row in train if row.context in sample]
    if method.kind:
        config = settings.adapter_config(method)
        if method.by_name:
            names = list(dict.fromkeys(row.context for row in train))
            encoder = ContextTable(names, None if method.kind == "oracle" else sizes.encoder.width)
        elif ADAPTERS[method.kind].conditioned:
            encoder = Encoder(replace(sizes.encoder, vocab=base.backbone.config.vocab))
        adapter = build_adapter(config, base.backbone.config, encoder.width if encoder else 0)
    if encoder and settings.compile:
        encoder.compile(dynamic=True)
    system = Zhyper(base.tokenizer, base.backbone, encoder, adapter, method.in_prompt, data.template).to(base.device)
    steps, seconds = 0, 0.0
    if adapter:
        steps, seconds = fit(system, train, settings.lr or method.lr, sizes, settings.seed, name, folder)
    system.save(settings.run, name)

    def count(module) -> int:
        return sum(p.numel() for p in module.parameters() if p.requires_grad) if module else 0

    contexts = len({row.context for row in train}) if adapter else 0
    row = {"method": name, "seed": settings.seed, "contexts": contexts}
    row |= {"trainable": count(adapter), "encoder": count(encoder), "steps": steps, "seconds": seconds}
    return row | evaluate_all(system, data, sizes.evaluate, settings.seed, settings.validate)


def kept_results(settings: Settings, made_of: dict | None = None) -> dict | None:
    """What the run folder holds of this very run; its finished methods need no training again.

    `made_of` are the fingerprints of records and tokenizer, if they are known yet. Raises ValueError if the folder
    holds results of other settings, or of other data.
    """
    if settings.force or not (settings.run / "results.json").exists():
        return None
    results = read_results(settings.run)
    earlier, now = results["settings"] | results.get("made_of", {}), settings.identity | (made_of or {})
    differing = [name for name in now if earlier.get(name) != now[name]]
    if differing or ("seeds" in results) != (settings.seeds > 1):
        what = ", ".join(f"{name} {earlier.get(name)!r}, now {now[name]!r}" for name in differing) or "number of seeds"
        raise ValueError(
            f"{settings.run} holds results of other settings ({what}): choose --out, or --force to replace"
        )
    return results


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the run folder for this process; the system lets go of it however the process ends.

    Raises ValueError if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        try:
            if flock:
                flock(file, LOCK_EX | LOCK_NB)
        except OSError:
            raise ValueError(f"another process is writing {folder}: wait for it, or choose another --out") from None
        yield


def write_options(settings: Settings) -> None:
    """Note in the run folder what --resume goes on with."""
    options = {name: value for name, value in vars(settings).items() if name not in ("out", "resume", "force")}
    write_file(settings.run / "options.json", json.dumps(options, indent=1).encode())


def run_seed(settings: Settings) -> dict:
    """Backbone and methods of one seed; what an earlier start has finished is kept."""
    device, sizes = settings.pick_device(), settings.sizes
    fewest = min(sizes.batch, *(METHODS[name].contexts or sizes.contexts for name in settings.chosen))  # rows a step
    if sizes.accumulate * processes() > fewest:
        raise ValueError(
            f"{processes()} processes, accumulate {sizes.accumulate}: a step may have only {fewest} rows: choose fewer"
        )
    kept_results(settings)  # refuse now, not after reading the data
    options = {"contexts": settings.contexts, "descriptions": settings.descriptions}
    data = datasets.load(settings.data, settings.data_path or None, settings.seed, **options)
    texts = [*data.documents, *dict.fromkeys(r.description for r in data.split("train"))]
    tokenizer = train_tokenizer(texts, sizes.backbone.vocab)
    torch.manual_seed(settings.seed)
    base = Zhyper(tokenizer, GPT(replace(sizes.backbone, vocab=tokenizer.get_vocab_size()))).to(device)
    if settings.compile:
        base.backbone.features = torch.compile(base.backbone.features, dynamic=True)
    check_data(base, data, settings)
    records = hashlib.sha256(repr((data.records, data.documents)).encode()).hexdigest()[:12]
    made_of = {"records": records, "tokenizer": tokenizer_fingerprint(tokenizer)}
    with only_writer(settings.run):
        folder = RunFolder(settings.run, settings.identity | made_of, sizes.checkpoint)
        results = kept_results(settings, made_of)
        if results:
            base.backbone.load_state_dict(Zhyper.load_backbone(settings.run).backbone.state_dict())
            check_same("backbone", fingerprint(base.backbone.state_dict()), results["backbone"])
        else:
            if settings.force:
                folder.clear()
                (settings.run / "results.json").unlink(missing_ok=True)
            write_options(settings)
            results = {"data": data.name, "measure": "nll" if data.free_text else "accuracy", "device": str(device)}
            results |= {"seed": settings.seed, "settings": settings.identity, "made_of": made_of, "rows": []}
            results["pretrain_seconds"] = pretrain(base, data.documents, sizes, settings.seed, folder)
            results["backbone"] = fingerprint(base.backbone.state_dict())
            base.save_backbone(settings.run)
            write_results(settings.run, results)
        finished = {row["method"] for row in results["rows"]}
        for name in settings.chosen:
            if name not in finished:
                results["rows"].append(run_method(name, base, data, settings, folder))
                write_results(settings.run, results)
        folder.clear()
    return results


def run(settings: Settings) -> dict:
    """The whole job, seed after seed; returns what it wrote to results.json."""
    if settings.seeds == 1:
        return run_seed(settings)
    seeds = range(settings.seed, settings.seed + settings.seeds)
    jobs = [replace(settings, seed=seed, seeds=1, out=str(settings.run / f"seed{seed}")) for seed in seeds]
    for job in (settings, *jobs):
        kept_results(job)  # refuse now, not after hours
    with only_writer(settings.run):
        write_options(settings)
        parts = [run_seed(job) for job in jobs]
        results = parts[0] | {"settings": settings.identity, "seeds": list(seeds)}
        results["pretrain_seconds"] = [part["pretrain_seconds"] for part in parts]
        order = list(METHODS)
        results["rows"] = sorted(
            (row for part in parts for row in part["rows"]), key=lambda row: order.index(row["method"])
        )
        write_results(settings.run, results)
    return results


def read_settings(arguments: Sequence[str]) -> Settings:
    """Settings from the command line, whose options and defaults are the fields above."""
    parser = Parser(
        prog="train.py",
        description="Train and compare. Every option has a default that works.",
        argument_default=argparse.SUPPRESS,
    )
    for f in fields(Settings):
        default = f" (default: {f.default})" if f.default not in ("", 0) else ""
        name = "--" + f.name.replace("_", "-")
        kind = {"action": "store_true"} if f.type is bool else {"type": f.type}
        parser.add_argument(name, help=f.metadata["help"] + default, **kind)
    given = vars(parser.parse_args(arguments))
    settings = Settings(**given)
    if settings.resume and (settings.run / "options.json").exists():
        with rebuilding(settings.run / "options.json"):
            settings = Settings(**json.loads((settings.run / "options.json").read_text()) | given)
    return settings


def main() -> None:
    start = time.perf_counter()
    settings = read_settings(sys.argv[1:])
    if settings.report:
        return report([Path(folder) for folder in settings.report.split(",")])
    try:
        with joined(settings) as own:
            print(table(run(own)))
            print(f"{time.perf_counter() - start:.0f} seconds in all; written to {settings.run}")
    except KeyboardInterrupt as stop:
        print(f"{stop or 'stopped'}; go on with: python train.py --resume --out {settings.run}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    one_line_errors(main)
