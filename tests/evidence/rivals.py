"""What stands beside the methods of train.py: rivals, controls, and the same methods with other options.

Importing this file adds them to train.METHODS and hyper.HYPERNETWORKS. train.py can train `rescaling` like its own
methods. What it cannot train or evaluate has a function that makes its row: see `ROWS`, at the end.
"""
# ruff: noqa: E402

import random
import sys
import time
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))

import train
from data import Data
from data.batches import Rows, draw
from hyper import HYPERNETWORKS, Adapter, Hypernetwork, ZhyperDiag
from train import METHODS, Config
from zhyper import Zhyper


@dataclass
class Gain:
    """An update gain ⊙ W x, where the gain (b, 1, d_out) is generated."""

    gain: Tensor
    W: Tensor
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * self.gain * F.linear(x, self.W)

    def take(self, index: Tensor) -> "Gain":
        return replace(self, gain=self.gain[index])


class Rescaling(Hypernetwork):
    """(IA)³, arXiv 2205.05638, or FiLM: every output of an adapted linear layer has a factor from the text."""

    def __init__(self, config, layers, shapes, d_text):
        super().__init__(config, layers, shapes, d_text)
        self.heads = nn.ModuleDict()
        for module in config.modules:
            self.heads[module] = nn.Linear(self.trunk.features, shapes[module][1])
        for weight in self.heads.parameters():
            nn.init.zeros_(weight)

    def take_backbone(self, backbone: nn.Module) -> None:
        self.linear_of = backbone.linear  # a method, so the backbone is not saved with this network

    def forward(self, c: Tensor) -> Adapter:
        features = self.trunk(c)  # (b, l, m, f)
        adapter = {}
        for layer, module in self.sites():
            site = features[:, layer - self.config.lowest_layer, self.config.modules.index(module)]  # (b, f)
            gain = self.heads[module](site)[:, None]  # (b, 1, d_out)
            adapter[layer, module] = Gain(gain, self.linear_of(layer, module).weight, self.config.scale)
        return adapter


# ---- the authors' recipe

NOISE = 5.0  # on the token embeddings (NEFTune, arXiv 2310.05914)
DROPOUT = 0.05  # of what A reads


class Authors(ZhyperDiag):
    """The authors' start: B = 0, the head's weights zero and its bias random, so that z is equal for all texts."""

    def __init__(self, config, layers, shapes, d_text):
        super().__init__(config, layers, shapes, d_text)
        bound = self.trunk.features**-0.5  # of nn.Linear's own start
        for B in self.B.values():
            nn.init.zeros_(B)
        nn.init.uniform_(self.head_bias, -bound, bound)


def authors_loss(system: Zhyper, rows: Rows, descriptions: list[str]) -> Tensor:
    """Their loss in training, a mean over tokens; with an L2 on A' = Z A and on B."""
    ids = rows.ids.to(system.device)
    x = system.backbone.embed_tokens(ids[:, :-1])  # (b, t - 1, d)
    most = NOISE / (x.shape[1] * x.shape[2]) ** 0.5
    x = x + most * (2 * torch.rand_like(x) - 1)
    updates = {}
    squares = 0.0
    for site, update in system.adapt(descriptions).items():
        updates[site] = lambda x, update=update: update(F.dropout(x, DROPOUT))
        A = update.times_z(update.A.mT)  # (b, d_in, r)
        squares = squares + A.square().mean() + update.B.square().mean()
    x = system.backbone.run_layers(x, updates)
    place = torch.arange(1, ids.shape[1])  # of what is predicted
    there = (place >= rows.start[:, None]) & (place < rows.end[:, None])  # (b, t - 1)
    logits = system.backbone.logits(x[there])  # (n, vocab_size)
    loss = F.cross_entropy(logits, ids[:, 1:][there], label_smoothing=0.1)
    return loss + 1e-3 * squares


def linear_rate(step: int, steps: int) -> float:
    """The share of the peak rate at step 1, 2 ...: a fifth of the steps warms up, then it falls linearly."""
    warmup = max(1, round(0.2 * steps))
    return min(step / warmup, (steps - step + 1) / max(1, steps - warmup))


def authors_row(name: str, folder: Path, base: Zhyper, data: Data, config: Config) -> dict:
    """Train with their loss, rate and schedule, and evaluate. There is one rate for everything."""
    system = train.build_system(base, config).train()
    encoded = train.encode_data(system, data, config)
    weights = [weight for weight in system.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, weight_decay=0.01)
    drawn = draw(data.split("train"), config.descriptions_per_step, config.questions_per_description, config.seed)
    start = time.perf_counter()
    for step, index in enumerate(tqdm(islice(drawn, config.steps), name, config.steps), start=1):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * linear_rate(step, config.steps)
        loss = authors_loss(system, *encoded["train"].take(index))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    row = {"steps": config.steps, "seconds": time.perf_counter() - start}
    system.eval().save(folder / f"{name}.pt")
    row["trainable"] = sum(weight.numel() for weight in system.hypernetwork.parameters())
    row["encoder"] = sum(weight.numel() for weight in weights) - row["trainable"]
    return row | train.evaluate(system, encoded)


class Derived(nn.Module):
    """A hypernetwork that is made of a trained one and the c of training texts, (n, d_c)."""

    reads_text = True

    def __init__(self, trained: Hypernetwork, known: Tensor):
        super().__init__()
        self.config = trained.config
        self.trained = trained
        self.trunk = trained.trunk  # with which the system reads a text
        self.known = known


class MeanZ(Derived):
    """The mean z of the training texts for every text: what is left if none is read."""

    def forward(self, c: Tensor) -> Adapter:
        adapter = self.trained(self.known)
        return {site: replace(update, z=update.z.mean(0).expand(len(c), -1)) for site, update in adapter.items()}


class Nearest(Derived):
    """The adapter of the nearest training text: looking up in place of generating."""

    def forward(self, c: Tensor) -> Adapter:
        distance = torch.cdist(c, self.known)  # (b, n)
        return self.trained(self.known[distance.argmin(1)])


DERIVED = {"mean": MeanZ, "nearest": Nearest}


@torch.no_grad()
def derived_row(name: str, folder: Path, base: Zhyper, data: Data, config: Config) -> dict:
    """Put one of `DERIVED` in the place of the trained hypernetwork of the folder, and evaluate."""
    system = Zhyper.load(folder, "zhyper-diag", config.device)
    texts = sorted({record.description for record in data.split("train")})
    texts = random.Random(0).sample(texts, min(1024, len(texts)))
    system.hypernetwork = DERIVED[name](system.hypernetwork, system.embed(texts)).eval()
    return train.evaluate(system, train.encode_data(system, data, config))


READS = {"reads-question": "question", "reads-name": "context"}  # which field of a record they read instead


def reading(data: Data, field: str) -> Data:
    """The data with another field of each record as its description."""
    records = [record._replace(description=getattr(record, field)) for record in data.records]
    return replace(data, records=records)


def reading_row(name: str, folder: Path, base: Zhyper, data: Data, config: Config) -> dict:
    """Train and evaluate as train.py does."""
    data = reading(data, READS[name.partition("@")[0]])
    system = train.build_system(base, config)
    encoded = train.encode_data(system, data, config)
    return train.train_method(folder / f"{name}.pt", system, data, encoded, config, None)


HYPERNETWORKS |= {"rescaling": Rescaling, "authors": Authors}
METHODS |= {
    "rescaling": METHODS["zhyper-diag"] | {"kind": "rescaling"},
    # lr_scale: the authors' rate stands, whatever the preset
    "authors": {"kind": "authors", "rank": 8, "trunk": "paper", "lr": 2.5e-5, "lr_scale": 1.0},
    "mean": {},
    "nearest": {},
    "reads-question": METHODS["zhyper-diag"],  # Hyperdecoders, arXiv 2203.08304
    "reads-name": METHODS["zhyper-diag"],  # it can only know contexts by heart
}
# of what train.run cannot make: (name, folder, base, data, config) -> its row
ROWS = {"authors": authors_row} | dict.fromkeys(DERIVED, derived_row) | dict.fromkeys(READS, reading_row)


def add_changed(name: str, given: dict) -> None:
    """Add "zhyper-diag@rank=12@lr=1e-3" to METHODS: a method with other options. Raises ValueError."""
    method, *changes = name.split("@")
    train.check_choice("method", method, [name for name in METHODS if METHODS[name].get("kind")])
    types = {field.name: get_args(field.type) or (field.type,) for field in fields(Config) if field.metadata}
    options = dict(METHODS[method])
    for change in changes:
        option, _, text = change.partition("=")
        try:
            options[option] = types[option][0](text)
        except (KeyError, ValueError):
            raise ValueError(f"{name!r}: cannot change {change!r}; write METHOD@rank=8@lr=1e-3") from None
        if option in given:
            raise ValueError(f"{name!r}: --{option} is given for all methods: leave out one of the two")
        if option == "lr":
            options["lr_scale"] = 1.0  # a rate that is given is meant as it is
    METHODS[name] = options
