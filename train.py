"""Train Zhyper end to end, beside the baselines that a sceptic would ask for, and print one table.

1. read the data; train a tokenizer on it and pretrain the backbone, or take a real model
2. train each method through the backbone, which is frozen
3. evaluate every split, and one of them with the description swapped, random and absent

python train.py                                    # invented cultures
python train.py --preset smoke                     # the same, smaller, in half a minute
python train.py --data votes                       # real votes of the United Nations
python train.py --data votes --preset real         # with a real backbone and a real encoder
torchrun --nproc-per-node 2 train.py               # on several devices

A run that was stopped goes on with the same command. Several seeds: tests/evidence/run.py.
"""

import argparse
import csv
import hashlib
import json
import math
import os
import random
import string
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from data import SPLITS, Data, Record, load
from data.batches import NO_TARGET, Rows, draw
from data.tokenizer import encode_without_end, read_tokenizer, token_counts, train_tokenizer
from hyper import HYPERNETWORKS, TRUNKS, HyperConfig, check_choice
from model import GPT, MODULES, Encoder, EncoderConfig, ModelConfig, find_folder
from zhyper import ACCELERATOR, DEVICES, Guide, Zhyper, read_torch, write_torch

# torchrun starts several processes: each reads its part of a batch, and the first one alone prints,
# evaluates and writes
DISTRIBUTED = distributed.is_available() and distributed.is_torchelastic_launched()
PROCESS = int(os.environ["RANK"]) if DISTRIBUTED else 0
PROCESSES = int(os.environ["WORLD_SIZE"]) if DISTRIBUTED else 1
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PRETRAIN_TOKENS = 128  # of a row in pretraining


# ---- what can be trained, how large, and with which options


@dataclass(frozen=True)
class Method:
    """How one method is trained. Without a `kind` nothing is trained."""

    kind: str | None = None  # a key of hyper.HYPERNETWORKS
    rank: int = 8
    trunk: str = "gated"
    lr: float = 2e-3  # three times that for A and B: see parameter_groups
    scale: float = 2.0  # alpha / rank
    spread: float = 8.0  # see HyperConfig
    description_in_prompt: bool = False  # the backbone reads the description before the prompt
    descriptions_per_step: int | None = None  # where the preset's number does not suit


METHODS = {
    "frozen": Method(),
    "prompt": Method(description_in_prompt=True),
    "lora": Method(kind="lora"),
    # a description and a prompt make a long row, so a step has fewer of them
    "lora-prompt": Method(
        kind="lora", rank=32, description_in_prompt=True, descriptions_per_step=8
    ),
    "t2l": Method(kind="t2l", trunk="paper", lr=1e-3),
    "t2l-gated": Method(kind="t2l", lr=1e-3),
    "zhyper-diag": Method(kind="zhyper-diag", rank=32),
    "zhyper-diag-paper": Method(kind="zhyper-diag", rank=32, trunk="paper", lr=5e-4),
    "zhyper-square": Method(kind="zhyper-square", lr=1e-3),
    "zhyper-square-paper": Method(kind="zhyper-square", trunk="paper", lr=5e-4),
}


@dataclass(frozen=True)
class Preset:
    """The sizes of a run. Edit one, or add your own."""

    backbone: ModelConfig | str = ModelConfig()  # a size, or the name of a real model
    encoder: EncoderConfig | str = EncoderConfig()
    pretrain_steps: int = 350
    pretrain_lr: float = 4e-3
    pretrain_batch: int = 8  # rows a step
    steps: int = 600
    descriptions_per_step: int = 32
    questions: int = 4  # for each of these descriptions, at most
    lowest_layer: int = 2  # the lowest adapted layer: what is below it is computed only once
    lr: float | None = None  # of every method, in place of its own
    evaluate: int | None = None  # records of a split that are evaluated, at most
    log: int = 100  # steps from one line of the log to the next, and from checkpoint to checkpoint


PRESETS = {
    "default": Preset(),
    "atlas": Preset(steps=800),
    # at zhyper-diag's own rate, 2e-3, the loss of votes stays high until the rate falls
    "votes": Preset(steps=800, lr=1e-3),
    # One layer and few tokens a step: what it learns in half a minute tells whether all works.
    # Most of that is pretraining, since only a backbone that can answer can be adapted.
    "smoke": Preset(
        backbone=ModelConfig(vocab_size=2048, layers=1, heads=2, kv_heads=2, width=64, inner=256),
        encoder=EncoderConfig(vocab_size=2048, layers=1, heads=2, width=64, inner=128),
        pretrain_steps=400,
        pretrain_lr=1e-2,
        pretrain_batch=4,
        steps=100,
        lowest_layer=0,
        lr=4e-3,
        evaluate=64,
        log=50,
    ),
    "instructions": Preset(
        pretrain_steps=2500, pretrain_lr=2e-3, pretrain_batch=16, steps=400, questions=2
    ),
    "voices": Preset(
        pretrain_steps=500,
        pretrain_lr=2e-3,
        pretrain_batch=16,
        steps=200,
        descriptions_per_step=16,
        log=20,
    ),
    "real": Preset(
        backbone="HuggingFaceTB/SmolLM2-135M-Instruct",
        encoder="sentence-transformers/all-MiniLM-L6-v2",
        steps=2500,
        descriptions_per_step=16,
        questions=3,
        lowest_layer=28,  # of 30: as good as six layers on the validation split of votes
        lr=4e-4,  # at 1e-3 the validation loss stays high until the rate falls
        evaluate=256,
    ),
}


def option(default, text: str):
    """A field of Settings, with the help that the command line shows for it."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """The command line: each field is an option. Raises ValueError for a name that is not known."""

    data: str = option("cultures", "a built-in data set, or a file.jsonl of records")
    data_path: str | None = option(None, "the file or folder of a data set that is downloaded")
    descriptions: str | None = option(
        None, "more descriptions: a JSON file {context: [text, ...]}, where the data set takes one"
    )
    contexts: int | None = option(None, "how many to train on, where the data set can choose")
    methods: str = option("frozen,prompt,zhyper-diag", f"or all: {', '.join(METHODS)}")
    preset: str | None = option(None, f"{', '.join(PRESETS)}; left out: the data set's, or default")
    seed: int = option(0, "of everything random")
    backbone: str | None = option(None, "a pretrained Llama: its folder, or its name on the hub")
    encoder: str | None = option(None, "a pretrained BERT: likewise")
    train_encoder: bool = option(False, "train a pretrained encoder too")
    out: str | None = option(
        None, "the run folder; left out: out/DATA-PRESET, or out/DATA-default without --preset"
    )
    force: bool = option(False, "replace what the run folder holds")
    device: str = option(DEVICES[0], f"of this machine's: {', '.join(DEVICES)}")
    rank: int | None = option(None, "of every adapter; each method's own if left out")
    modules: str = option("q,k,v,o", f"which linear layers are adapted, of {','.join(MODULES)}")
    lowest_layer: int | None = option(None, "the lowest adapted layer; the preset's if left out")
    trunk: str | None = option(None, f"of every hypernetwork, {' or '.join(TRUNKS)}")
    steps: int | None = option(None, "of training a method; the preset's if left out")
    lr: float | None = option(None, "peak learning rate of every method")
    dtype: str = option("fp32", "in which the frozen model is kept, fp32 or bf16")
    validate: bool = option(False, "evaluate the split for choosing settings, and no other")

    def __post_init__(self):
        for name in self.chosen_methods:
            check_choice("method", name, METHODS)
        check_choice("preset", self.preset_name, PRESETS)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("device", self.device, DEVICES)
        for name in ("contexts", "rank", "steps", "lr"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}: it must be more than 0")
        self.hyper_config(METHODS["zhyper-diag"])  # raises ValueError for unknown modules

    @property
    def chosen_methods(self) -> list[str]:
        return list(METHODS) if self.methods == "all" else self.methods.split(",")

    @property
    def run(self) -> Path:
        # `--data votes` trains in out/votes-default, even though there is a preset called votes
        chosen = self.preset or "default"
        return Path(self.out or f"out/{Path(self.data).stem}-{chosen}")

    @property
    def preset_name(self) -> str:
        own = self.data if self.data in PRESETS else "default"
        return self.preset or own

    @property
    def sizes(self) -> Preset:
        return PRESETS[self.preset_name]

    def hyper_config(self, method: Method) -> HyperConfig:
        lowest = self.sizes.lowest_layer
        return HyperConfig(
            kind=method.kind,
            rank=self.rank or method.rank,
            scale=method.scale,
            modules=tuple(self.modules.split(",")),
            lowest_layer=lowest if self.lowest_layer is None else self.lowest_layer,
            trunk=self.trunk or method.trunk,
            spread=method.spread,
        )


# ---- the training loop, and the two trainings that use it


def learning_rate(step: int, steps: int, warmup: int = 50) -> float:
    """The share of the peak rate: a linear warm-up, then a cosine down to a tenth."""
    warmup = min(warmup, steps // 4)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def parameter_groups(system: Zhyper, lr: float) -> list[dict]:
    """What is trained, by its peak rate and weight decay. The decay is for matrices only."""
    groups = defaultdict(list)  # {(peak rate, weight decay): weights}
    for name, weight in system.named_parameters():
        if not weight.requires_grad:
            continue
        peak = lr
        if name.startswith(("hypernetwork.A.", "hypernetwork.B.")):
            peak = 3 * lr  # LoRA+ (arXiv 2402.12354) raises the rate of B; here A has it, too
        if name.startswith("encoder.") and system.encoder.pretrained_name:
            peak = lr / 20  # it can read already
        # a head's biases and the gates have several axes, but are no matrices
        matrix = weight.dim() > 1 and not name.endswith(("bias", "trunk.gate"))
        decay = 0.01 if matrix else 0.0
        groups[peak, decay].append(weight)
    return [
        {"params": weights, "peak": peak, "weight_decay": decay}
        for (peak, decay), weights in groups.items()
    ]


def recipe(name: str) -> str:
    """What a method is made of: its line of METHODS, and the code. Edited, it is trained again.

    (The backbone is trained as well, but is no entry of METHODS: for it `get` gives None.)
    """
    here = Path(__file__).parent
    code = [(here / f"{file}.py").read_bytes() for file in ("model", "hyper", "zhyper", "train")]
    return f"{METHODS.get(name)}, code {hashlib.sha256(b''.join(code)).hexdigest()[:8]}"


def optimise(
    name: str,
    system: Zhyper,
    lr: float,
    steps: int,
    batches: Iterator[tuple],
    held_out: tuple,
    settings: Settings,
) -> dict:
    """Train what requires a gradient, on the mean loss of batch after batch.

    Each batch is (rows, descriptions). So is `held_out`, which gives the validation loss; for the
    backbone, and for data without a validation split, it is training text, too. At regular steps a
    line says how training goes, and a checkpoint is written, from which the same command goes on;
    it draws its batches from the beginning again. Of several processes each takes the mean loss of
    its own rows, and their gradients are averaged. Raises ValueError if the loss is no number.
    """
    weights = [weight for weight in system.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(parameter_groups(system, lr), fused=True)
    checkpoint = settings.run / "checkpoint.pt"
    made_of = f"{name}: {recipe(name)}"  # a checkpoint of another method is of no use
    done, seconds, curve = 0, 0.0, []
    if checkpoint.exists():
        saved = read_torch(checkpoint)
        if saved["made_of"] == made_of:
            system.load_state_dict(system.state_dict() | saved["weights"])
            optimizer.load_state_dict(saved["optimizer"])
            done, seconds, curve = saved["done"], saved["seconds"], saved["curve"]
            say(f"{name}: goes on from step {done}")
    model = DistributedDataParallel(system) if DISTRIBUTED else system
    losses, tokens_read, clock = [], 0, time.perf_counter()
    for step in tqdm(range(done, steps), name, steps, initial=done, disable=PROCESS > 0):
        # 1. read
        share = learning_rate(step, steps)
        for group in optimizer.param_groups:
            group["lr"] = share * group["peak"]
        rows, descriptions = next(batches)
        # 2. forward
        loss, tokens, _ = model(rows, descriptions)
        loss = loss.sum() / tokens.sum()
        # 3. backward
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        # 4. step
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())  # fetched from a GPU only when it is needed
        tokens_read += rows.ids.size
        done = step + 1
        if done % settings.sizes.log == 0 or done == steps:
            # 5. log
            mean_loss = torch.stack(losses).mean().item()
            if not math.isfinite(mean_loss):
                raise ValueError(f"{name}: the loss is {mean_loss} before step {done}: lower --lr")
            took = time.perf_counter() - clock
            line = {
                "method": name,
                "step": done,
                "loss": round(mean_loss, 4),
                "validation_loss": round(loss_of(system, held_out), 4),
                "learning_rate": f"{share * lr:.2e}",
                "tokens_per_second": round(tokens_read / took),
            }
            curve.append(line)
            seconds += took
            write_log(settings, line)
            # 6. checkpoint
            state = {"made_of": made_of, "done": done, "seconds": seconds, "curve": curve}
            state["weights"] = trained_weights(system)
            state["optimizer"] = optimizer.state_dict()
            if PROCESS == 0:
                write_torch(checkpoint, state)
            losses, tokens_read, clock = [], 0, time.perf_counter()
    return {"steps": steps, "seconds": seconds, "curve": curve}


@torch.no_grad()
def loss_of(system: Zhyper, batch: tuple) -> float:
    """The mean loss of a batch, without dropout."""
    loss, tokens, _ = system.eval()(*batch)
    system.train()
    return (loss.sum() / tokens.sum()).item()


def trained_weights(system: Zhyper) -> dict[str, Tensor]:
    """What training has changed: parameters that are not frozen, and BatchNorm's statistics."""
    frozen = {name for name, weight in system.named_parameters() if not weight.requires_grad}
    return {name: w for name, w in system.state_dict().items() if name not in frozen}


def pretrain(system: Zhyper, documents: Sequence[str], settings: Settings) -> dict:
    """Teach the backbone to write the documents, packed into full rows; then freeze it for good."""
    preset = settings.sizes
    rng = np.random.default_rng([settings.seed, PROCESS])
    texts = encode_without_end(system.tokenizer, documents, "document")

    def packed_rows() -> Iterator[tuple[Rows, None]]:
        while True:
            rows = []
            for _ in range(max(1, preset.pretrain_batch // PROCESSES)):
                row = []
                while len(row) <= PRETRAIN_TOKENS:
                    row += texts[rng.integers(len(texts))]
                    row.append(system.backbone.config.eos[0])
                rows.append(row[: PRETRAIN_TOKENS + 1])
            rows = np.array(rows)
            yield Rows(ids=rows[:, :-1], targets=rows[:, 1:]), None

    batches = packed_rows()
    held_out = next(batches)
    system.backbone.requires_grad_(True)
    lr = preset.pretrain_lr
    steps = preset.pretrain_steps
    report = optimise("backbone", system.train(), lr, steps, batches, held_out, settings)
    system.requires_grad_(False).eval()
    return report


def shared_rows(
    system: Zhyper, records: Sequence[Record], descriptions: Sequence[str | None]
) -> tuple[Rows, list[int]]:
    """The rows of token ids of records, with their states; and of each record, which row it has.

    Many records have the same prompt and answer. Such a row is encoded only once, and its states
    below the lowest adapted layer are computed only once. (Where the backbone reads the
    description, that is a part of the row.)
    """
    in_prompt = descriptions if system.description_in_prompt else [None] * len(records)
    place = {}  # {(prompt, answer, description): the index of its row}
    row_of = []
    for record, text in zip(records, in_prompt, strict=True):
        texts = (record.prompt, record.answer, text)
        place.setdefault(texts, len(place))
        row_of.append(place[texts])
    prompts, answers, in_prompt = zip(*place, strict=True)  # now one for each row
    rows = system.encode_rows(prompts, answers, in_prompt)
    return system.with_states(rows), row_of


def fit(system: Zhyper, name: str, data: Data, settings: Settings) -> dict:
    """Train hypernetwork and encoder, unless that is frozen, on the loss of answers with EOS."""
    method = METHODS[name]
    preset = settings.sizes
    records = data.split("train")

    rows, row_of = shared_rows(system, records, [record.description for record in records])

    def batches() -> Iterator[tuple[Rows, list[str]]]:
        rng = np.random.default_rng(settings.seed)
        count = method.descriptions_per_step or preset.descriptions_per_step
        for drawn in draw(records, count, preset.questions, rng):  # indices of records
            own = drawn[PROCESS::PROCESSES]
            yield rows.take([row_of[i] for i in own]), [records[i].description for i in own]

    validation = sample_records(data.split("validation") or records, 64, settings.seed)
    descriptions = [record.description for record in validation]
    validation_rows, validation_row_of = shared_rows(system, validation, descriptions)
    held_out = (validation_rows.take(validation_row_of), descriptions)
    lr = settings.lr or preset.lr or method.lr
    steps = settings.steps or preset.steps
    return optimise(name, system.train(), lr, steps, batches(), held_out, settings)


# ---- evaluation


def sample_records(records: Sequence[Record], most: int | None, seed: int) -> list[Record]:
    """At most so many of the records, drawn at random, but the same for every method."""
    count = min(most or len(records), len(records))
    return random.Random(seed).sample(records, count)


@torch.no_grad()
def score_records(system: Zhyper, records: Sequence[Record], descriptions: Sequence) -> Tensor:
    """Loss (nats), tokens and exactness of each record's answer under a description, (3, n)."""
    rows, row_of = shared_rows(system, records, descriptions)
    # Rows of like length are read together, so that little is spent on padding.
    last_targets = [np.flatnonzero(targets != NO_TARGET)[-1] for targets in rows.targets]
    order = sorted(range(len(records)), key=lambda i: last_targets[row_of[i]])
    found = torch.zeros(3, len(records))
    for start in range(0, len(order), 64):
        part = order[start : start + 64]
        scored = system(rows.take([row_of[i] for i in part]), [descriptions[i] for i in part])
        found[:, part] = torch.stack([values.float().cpu() for values in scored])
    return found


def evaluate(system: Zhyper, records: Sequence[Record], descriptions: Sequence) -> dict:
    """Exact-match accuracy, and the loss per answer token (nats)."""
    loss, tokens, exact = score_records(system, records, descriptions)
    return {"accuracy": exact.mean().item(), "nll": (loss.sum() / tokens.sum()).item()}


def swapped_descriptions(records: Sequence[Record], rng: random.Random) -> list[str]:
    """For each record the description of another context.

    It is that of a record which has the same prompt but another answer. Where there is none, as
    for free text, it is that of any record with another answer. Raises ValueError if there is none.
    """
    chosen = []
    for record in records:
        others = [other for other in records if disagree(other, record)]
        if not others:
            problem = f"no other context of {record.split!r} answers otherwise than"
            raise ValueError(f"{problem} {record.context!r}: add one to swap with")
        same_prompt = [other for other in others if other.prompt == record.prompt]
        chosen.append(rng.choice(same_prompt or others).description)
    return chosen


def disagree(a: Record, b: Record) -> bool:
    return a.context != b.context and a.answer != b.answer and a.description != b.description


def random_text(rng: random.Random) -> str:
    """Six words of random letters: a description that says nothing."""
    words = [rng.choices(string.ascii_lowercase, k=rng.randint(2, 8)) for _ in range(6)]
    return " ".join("".join(letters) for letters in words)


def evaluated_splits(data: Data, settings: Settings) -> dict[str, list[Record]]:
    """{split: its evaluated records}. Raises ValueError if there are none."""
    splits = {}
    for name in SPLITS:
        if name == "train" or (name == "validation") != settings.validate:
            continue
        records = sample_records(data.split(name), settings.sizes.evaluate, settings.seed)
        if records:
            splits[name] = records
    if not splits:
        raise ValueError(f"{data.name} has no records to evaluate: give some another split")
    return splits


def controlled_split(splits: dict) -> str:
    """The split on which the controls are evaluated, of {split: ...}."""
    return "unseen" if "unseen" in splits else next(iter(splits))


def evaluation_plan(data: Data, settings: Settings) -> dict[str, tuple[list[Record], list]]:
    """{split or control: its records, and a description for each}.

    Raises ValueError if there is nothing to evaluate, or no description to swap with.
    """
    splits = evaluated_splits(data, settings)
    plan = {}
    for split, records in splits.items():
        plan[split] = (records, [record.description for record in records])
    records = splits[controlled_split(splits)]
    rng = random.Random(settings.seed)
    plan["swapped"] = (records, swapped_descriptions(records, rng))
    plan["random"] = (records, [random_text(rng) for _ in records])
    plan["none"] = (records, [None] * len(records))
    return plan


def evaluate_all(system: Zhyper, data: Data, settings: Settings) -> dict:
    """Every split; the controls, on one of them; and the margin, by how much swapped is worse."""
    results = {}
    for name, (records, descriptions) in evaluation_plan(data, settings).items():
        results[name] = evaluate(system, records, descriptions)
    right = results[controlled_split(results)][data.measure]
    margin = right - results["swapped"][data.measure]
    if data.measure == "nll":
        margin = -margin  # the lower the better
    return {"evaluated": results, "margin": margin}


def evaluate_guesses(guesses: dict[Record, str], data: Data, settings: Settings) -> dict:
    """The accuracy on every split of guesses that train nothing, such as the majority's answer."""
    results = {}
    for split, records in evaluated_splits(data, settings).items():
        right = [guesses[record] == record.answer for record in records]
        results[split] = {"accuracy": sum(right) / len(right)}
    return {"evaluated": results}


def table(results: dict) -> str:
    """Results as Markdown, a column for each method: accuracy, or for free text loss per token."""
    measure = results["measure"]
    rows = results["rows"]
    sizes = ["trainable", "encoder", "steps", "seconds"]
    evaluated = list(next(iter(rows.values()))["evaluated"])
    table_columns = [[measure, *sizes, *evaluated, "margin"]]
    for method, row in rows.items():
        cells = [method]
        cells += [f"{row.get(name, 0):,.0f}" for name in sizes]
        for name in evaluated:
            found = row["evaluated"].get(name)
            cells.append(f"{found[measure]:.3f}" if found else "")
        cells.append(f"{row['margin']:z.3f}" if "margin" in row else "")  # z: no -0.000
        table_columns.append(cells)
    lines = [f"| {' | '.join(cells)} |" for cells in zip(*table_columns, strict=True)]
    lines.insert(1, "|---" * len(table_columns) + "|")
    return "\n".join(lines)


# ---- the run folder: settings.json, backbone.pt, METHOD.pt, results.json, log.csv, checkpoint.pt


def say(text: str) -> None:
    if PROCESS == 0:
        tqdm.write(text, file=sys.stderr)


def write_log(settings: Settings, line: dict) -> None:
    """Say a line, and add it to log.csv."""
    say("  ".join(f"{name} {value}" for name, value in line.items()))
    if PROCESS == 0:
        with open(settings.run / "log.csv", "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, line)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(line)


def write_json(path: Path, content: dict) -> None:
    if PROCESS == 0:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
        os.replace(temporary, path)


def open_run(settings: Settings, data: Data) -> dict:
    """The results that the run folder holds, if these very settings and this data made them.

    Raises ValueError if others did. With `force` the files of a run are deleted first.
    """
    run = settings.run
    changes_nothing = ("methods", "out", "force", "device")
    made_of = {name: value for name, value in vars(settings).items() if name not in changes_nothing}
    made_of |= {"sizes": repr(settings.sizes), "records": data.fingerprint}
    if PROCESS == 0:
        run.mkdir(parents=True, exist_ok=True)
        if settings.force:
            # evidence.json is of tests/evidence/run.py: more numbers on the same methods
            names = ("settings.json", "results.json", "evidence.json", "log.csv")
            for file in [*run.glob("*.pt"), *(run / name for name in names)]:
                file.unlink(missing_ok=True)
        if not (run / "backbone.pt").exists():  # nothing is trained yet
            if any(run.glob("*.pt")):
                raise ValueError(f"{run} holds another run, without its backbone: choose --out")
            write_json(run / "results.json", {"measure": data.measure, "rows": {}})
            write_json(run / "settings.json", made_of)
    if DISTRIBUTED:
        distributed.barrier()  # the other processes wait for the folder
    known = json.loads((run / "settings.json").read_text(encoding="utf-8"))
    others = [name for name in made_of if known.get(name) != made_of[name]]
    if others:
        raise ValueError(f"{run} has another {', another '.join(others)}: choose --out, or --force")
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


# ---- the main job


def read_data(settings: Settings) -> Data:
    """The data, and lines that say what there is of it."""
    options = {"contexts": settings.contexts, "descriptions": settings.descriptions}
    data = load(settings.data, settings.data_path, settings.seed, **options)
    for split in SPLITS:
        records = data.split(split)
        if records:
            contexts = {record.context for record in records}
            say(f"{data.name}, {split}: {len(records)} records of {len(contexts)} contexts")
    return data


def build_base(data: Data, settings: Settings) -> Zhyper:
    """What all methods start from, a tokenizer and a backbone.

    It is what an earlier start of this run has saved, or else a real model, or a fresh one.
    """
    if (settings.run / "backbone.pt").exists():  # a system without a method
        return Zhyper.load(settings.run, "backbone", settings.device)
    torch.manual_seed(settings.seed)
    given = settings.backbone or settings.sizes.backbone
    if isinstance(given, str):
        backbone = GPT.from_pretrained(given, DTYPES[settings.dtype])
        tokenizer = read_tokenizer(find_folder(given), backbone.config.vocab_size)
    else:
        descriptions = dict.fromkeys(record.description for record in data.split("train"))
        tokenizer = train_tokenizer([*data.documents, *descriptions], given.vocab_size)
        backbone = GPT(replace(given, vocab_size=tokenizer.get_vocab_size()))
    return Zhyper(tokenizer, backbone, guide=guide_of(data)).to(settings.device)


def guide_of(data: Data) -> Guide:
    """What chat says of the data: its questions, at most a hundred, and one description."""
    records = data.split("train")
    guide = Guide(data.template)
    questions = list(dict.fromkeys(guide.question(record.prompt) for record in records))
    return replace(guide, questions=tuple(questions[:100]), description=records[0].description)


def add_encoder(system: Zhyper, settings: Settings) -> None:
    """A real encoder, frozen unless it is to be trained, or a fresh one."""
    given = settings.encoder or settings.sizes.encoder
    if isinstance(given, str):
        system.encoder = Encoder.from_pretrained(given).requires_grad_(settings.train_encoder)
        system.encoder_frozen = not settings.train_encoder
        vocab_size = system.encoder.config.vocab_size
        system.encoder_tokenizer = read_tokenizer(find_folder(given), vocab_size)
    else:
        system.encoder = Encoder(replace(given, vocab_size=system.backbone.config.vocab_size))


def build_system(name: str, base: Zhyper, settings: Settings) -> Zhyper:
    """A method's untrained system, on the tokenizer and the backbone of `base`."""
    method = METHODS[name]
    system = Zhyper(base.tokenizer, base.backbone, guide=base.guide)
    system.description_in_prompt = method.description_in_prompt
    torch.manual_seed(settings.seed)
    if method.kind and HYPERNETWORKS[method.kind].reads_text:
        add_encoder(system, settings)
    if method.kind:
        system.add_hypernetwork(settings.hyper_config(method))
    return system.to(settings.device)


def leave_out_long(data: Data, base: Zhyper, settings: Settings) -> Data:
    """The data without records that are too long for some method; lines say how many those are.

    All methods get the same records, so each must be short enough for the method that reads most:
    `lora-prompt` reads description, line break, prompt and answer as one text. And the control
    `swapped` can put any description there. Raises ValueError if a split loses more than a tenth.
    """
    # only its encoder is used here: every method that reads texts has the same
    reader = build_system("zhyper-diag", base, settings)
    descriptions = {record.description for record in data.records}
    questions = {record.prompt + record.answer for record in data.records}
    in_encoder = token_counts(reader.encoder_tokenizer, descriptions)
    room = reader.encoder.config.block_size
    readable = {text for text in descriptions if in_encoder[text] <= room}
    longest = max(token_counts(base.tokenizer, readable).values(), default=0)
    in_backbone = token_counts(base.tokenizer, questions)
    kept = []
    lost = Counter()
    for record in data.records:
        length = longest + 1 + in_backbone[record.prompt + record.answer]
        if record.description in readable and length <= base.backbone.config.block_size:
            kept.append(record)
        else:
            lost[record.split] += 1
    for split, count in lost.items():
        say(f"{data.name}, {split}: {count} records are left out, too long for the models")
        if count > len(data.split(split)) / 10:
            raise ValueError(f"{split} loses {count} records that are too long: shorten them")
    return replace(data, records=kept)


def check_texts(data: Data, base: Zhyper, settings: Settings) -> None:
    """Raise ValueError, before training, for what cannot be read later, or not be evaluated."""
    reader = build_system("prompt", base, settings)  # what it reads is longest
    pairs = {(record.prompt, record.answer) for record in data.split("train")}
    prompts, answers = zip(*pairs, strict=True)
    reader.encode_rows(prompts, answers, None)
    for records, descriptions in evaluation_plan(data, settings).values():
        prompts = [record.prompt for record in records]
        answers = [record.answer for record in records]
        reader.encode_rows(prompts, answers, descriptions)


def train_method(name: str, base: Zhyper, data: Data, settings: Settings) -> dict:
    """Train one method, save and evaluate it; returns its row of results.json."""
    system = build_system(name, base, settings)
    row = {"method": recipe(name)}
    for column, network in (("trainable", system.hypernetwork), ("encoder", system.encoder)):
        weights = network.parameters() if network else []
        row[column] = sum(weight.numel() for weight in weights if weight.requires_grad)
    if system.hypernetwork:
        row |= fit(system, name, data, settings)
    if PROCESS == 0:
        system.eval().save(settings.run / f"{name}.pt")
        row |= evaluate_all(system, data, settings)
    return row


def products_per_second(threads: int) -> float:
    """How fast this machine is, with so many threads, at products as a training step has them."""
    torch.set_num_threads(threads)
    x = torch.ones(2048, 128)
    W = torch.ones(128, 512)
    count = 0
    start = time.perf_counter()
    while time.perf_counter() < start + 0.1:
        (x @ W).relu_()
        count += 1
    return count / (time.perf_counter() - start)


def choose_threads(device: str, speed=products_per_second) -> None:
    """Use one thread where several are not faster, as on a machine that is busy with other work.

    Nothing is measured where OMP_NUM_THREADS is set, or where it is not the CPU that computes.
    """
    threads = torch.get_num_threads()
    if device != "cpu" or "OMP_NUM_THREADS" in os.environ or threads == 1:
        return
    several = 0.0
    alone = 0.0
    for _ in range(4):  # in turn, so that other work slows down both
        several += speed(threads)
        alone += speed(1)
    torch.set_num_threads(threads)
    if alone >= several:
        torch.set_num_threads(1)
        say(f"{threads} threads are no faster than one here, so one is used")


def run(settings: Settings) -> dict:
    """The whole job; what an earlier start has finished stays. Returns what results.json holds."""
    choose_threads(settings.device)
    data = read_data(settings)
    results = open_run(settings, data)
    finished = results["rows"]  # a part of results: what is put into it is written with them
    base = build_base(data, settings)
    data = leave_out_long(data, base, settings)
    check_texts(data, base, settings)
    if "pretrain" not in results:
        # backbone.pt is written twice: before pretraining for its tokenizer, which the checkpoint
        # does not hold and a later start must take over; then with the trained weights.
        if PROCESS == 0:
            base.save(settings.run / "backbone.pt")
        results["pretrain"] = {}
        if not base.backbone.pretrained_name:
            results["pretrain"] = pretrain(base, data.documents, settings)
            base.backbone.to(DTYPES[settings.dtype])
        if PROCESS == 0:
            base.save(settings.run / "backbone.pt")
        write_json(settings.run / "results.json", results)
    for name in settings.chosen_methods:
        if finished.get(name, {}).get("method") == recipe(name):
            say(f"{name}: was finished by an earlier start")
            continue
        finished[name] = train_method(name, base, data, settings)
        write_json(settings.run / "results.json", results)
        if PROCESS == 0:
            (settings.run / "checkpoint.pt").unlink(missing_ok=True)
        if DISTRIBUTED:
            distributed.barrier()  # no other process looks for it meanwhile
    for name, guesses in data.references.items():
        finished[name] = evaluate_guesses(guesses, data, settings)
    write_json(settings.run / "results.json", results)
    return results


def main() -> None:
    start = time.time()
    parser = argparse.ArgumentParser(usage="python train.py [options]", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for setting in fields(Settings):
        flag = f"--{setting.name.replace('_', '-')}"
        text = f"{setting.metadata['help']} (default: {setting.default})"
        if setting.type is bool:
            parser.add_argument(flag, help=text, action="store_true")
        else:
            types = get_args(setting.type) or (setting.type,)  # int | None: int
            parser.add_argument(flag, help=text, type=types[0], default=setting.default)
    arguments = parser.parse_args()
    if DISTRIBUTED:
        if arguments.device != "cpu":
            torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group()
    if ACCELERATOR:
        torch.set_float32_matmul_precision("high")  # tf32: products with 10 bits, sums with 23
    try:
        results = run(Settings(**vars(arguments)))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from the last checkpoint")
    if PROCESS == 0:
        print(table(results))
        print(f"{time.time() - start:.0f} seconds")


if __name__ == "__main__":
    main()
