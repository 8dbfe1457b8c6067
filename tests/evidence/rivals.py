"""What stands beside the methods of train.py: rivals, and the same methods at other sizes.

Importing this file adds them: train.METHODS and hyper.HYPERNETWORKS then have them, and train.run trains, evaluates
and saves them like its own. Each class says in a line what it is. A name such as "zhyper-diag@rank=12" is a method
with some fields changed, of Rival or of hyper.HyperConfig. trials.json has what `run.py tune` tried.
"""
# ruff: noqa: E402

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))

import train
from data import Data
from data.batches import NO_TARGET, Rows
from hyper import (
    HYPERNETWORKS,
    Adapter,
    GatedTrunk,
    HyperConfig,
    Hypernetwork,
    TextToLoRA,
    ZhyperDiag,
    ZhyperSquare,
    lora_A,
)
from model import GPT, split_heads
from train import METHODS, Method
from zhyper import Zhyper

TRIALS = Path(__file__).with_name("trials.json")


@dataclass(frozen=True)
class Rival(Method):
    """A method, and what no field of train.Method says."""

    changes: tuple[tuple[str, object], ...] = ()  # of its HyperConfig
    steps: int | None = None  # in place of the run's
    own_lr: bool = False  # whether its rate stands where the preset has one for all methods
    reads: str = "description"  # which field of a record it reads as the description


# ---- rivals that have A and B


class VariedT2L(TextToLoRA):
    """Text-to-LoRA with Zhyper's start: A differs between texts as much as diag(z) A does; B is 0."""

    def __init__(self, config, layers, shapes, d_text):
        super().__init__(config, layers, shapes, d_text)
        for module, (d_in, _) in self.shapes.items():
            std = config.spread / (self.trunk.features * 3 * d_in) ** 0.5  # lora_A has 1/√(3 d_in)
            nn.init.normal_(self.heads[module].weight[: config.rank * d_in], std=std)


class RandomAB(ZhyperDiag):
    """ΔW = scale · diag(b) B diag(z) A: A, B random and frozen (VeRA, arXiv 2310.11454), z generated."""

    def __init__(self, config, layers, shapes, d_text):
        super().__init__(config, layers, shapes, d_text)
        self.b = nn.ParameterDict()
        for module, B in self.B.items():
            B.data = lora_A(*B.shape)
            self.b[module] = torch.zeros(B.shape[:2])
        self.A.requires_grad_(False)
        self.B.requires_grad_(False)

    def forward(self, c: Tensor) -> Adapter:
        adapter = super().forward(c)
        for (layer, module), update in adapter.items():
            b = self.b[module][layer - self.config.lowest_layer]  # (d_out,)
            adapter[layer, module] = replace(update, B=b[:, None] * update.B)
        return adapter


class SingularAB(ZhyperSquare):
    """ΔW = scale · U S Z Vᵀ: the largest singular vectors of W (LoRA-XS, arXiv 2405.17604), Z generated."""

    def __init__(self, config, layers, shapes, d_text):
        super().__init__(config, layers, shapes, d_text)
        nn.init.zeros_(self.head_weight)  # A and B are not zero, so Z is at the start

    def take(self, backbone: GPT) -> None:
        for layer, module in self.sites():
            U, S, V = torch.linalg.svd(backbone.linear(layer, module).weight.float())
            l, rank = layer - self.config.lowest_layer, self.config.rank
            self.A[module].data[l] = V[:rank]
            self.B[module].data[l] = U[:, :rank] * S[:rank]
        self.A.requires_grad_(False)
        self.B.requires_grad_(False)


# ---- a rival that has more than one c


class AttendingTrunk(GatedTrunk):
    """GatedTrunk, but every site attends to the tokens of the description, in place of one c for all sites."""

    HEADS = 4

    def __init__(self, config, layers, d_text):
        super().__init__(config, layers, d_text)
        self.query = nn.Parameter(torch.randn(layers * len(config.modules), d_text))
        self.key, self.value = nn.Linear(d_text, d_text), nn.Linear(d_text, d_text)

    def forward(self, states: Tensor) -> Tensor:
        """States of tokens (b, t, d_text) -> (b, l, m, f)."""
        there = (states != 0).any(-1)[:, None, None]  # (b, 1, 1, t), false at padding
        vectors = (self.query[None].expand(len(states), -1, -1), self.key(states), self.value(states))
        q, k, v = (split_heads(each, each.shape[-1] // self.HEADS) for each in vectors)
        c = F.scaled_dot_product_attention(q, k, v, attn_mask=there).transpose(1, 2).flatten(2)  # (b, l·m, d_text)
        u = F.silu(self.text(self.standardise(c.flatten(0, 1))))  # (b·l·m, f)
        return self.gate * u.view(len(states), *self.gate.shape)


class Attending(ZhyperDiag):
    """zhyper-diag on AttendingTrunk: more than one embedding of the description."""

    def __init__(self, config, layers, shapes, d_text):
        super().__init__(config, layers, shapes, d_text)
        self.trunk = AttendingTrunk(config, layers, d_text)

    @staticmethod
    def pool(x: Tensor, mask: Tensor) -> Tensor:
        """What the encoder makes then in place of c: the states of all tokens (b, t, d_text), zero at padding."""
        return x * mask[:, :, None]


# ---- rivals that change outputs


@dataclass
class Gain:
    """An update B ⊙ W x, where B (b, 1, d_out) is generated; without a W it is B alone."""

    B: Tensor
    W: Tensor | None
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * self.B * (1 if self.W is None else F.linear(x, self.W))

    def take(self, index: Tensor) -> "Gain":
        return replace(self, B=self.B[index])

    def to(self, dtype: torch.dtype) -> "Gain":
        return replace(self, B=self.B.to(dtype))  # W has the backbone's


class Rescaling(Hypernetwork):
    """(IA)³, arXiv 2205.05638, or FiLM: every output of an adapted linear has a factor from the text."""

    def __init__(self, config, layers, shapes, d_text):
        super().__init__(config, layers, shapes, d_text)
        heads = {module: nn.Linear(self.trunk.features, shapes[module][1]) for module in config.modules}
        self.heads = nn.ModuleDict(heads)
        for weight in self.heads.parameters():
            nn.init.zeros_(weight)

    def take(self, backbone: GPT) -> None:
        self.weight_of = lambda *site: backbone.linear(*site).weight  # a function: it is not saved with this network

    def forward(self, c: Tensor) -> Adapter:
        features = self.trunk(c)  # (b, l, m, f)
        adapter = {}
        for layer, module in self.sites():
            site = features[:, layer - self.config.lowest_layer, self.config.modules.index(module)]
            B = self.heads[module](site)[:, None]  # (b, 1, d_out)
            adapter[layer, module] = Gain(B, self.weight_of(layer, module), self.config.scale)
        return adapter


class Steering(Rescaling):
    """A vector from the text is added to what `o` writes into the residual stream (arXiv 2308.10248)."""

    def take(self, backbone: GPT) -> None:
        self.weight_of = lambda *site: None


# ---- the authors' recipe


class Authors(ZhyperDiag):
    """The authors' start: the head's weights zero and its bias random, so that z is equal for all texts."""

    def __init__(self, config, layers, shapes, d_text):
        super().__init__(config, layers, shapes, d_text)
        bound = self.trunk.features**-0.5  # of nn.Linear's own start
        nn.init.zeros_(self.head_weight)
        nn.init.uniform_(self.head_bias, -bound, bound)


class AuthorsSystem(Zhyper):
    """Their loss in training: noise (NEFTune, arXiv 2310.05914), dropout, label smoothing, L2 on A' and B."""

    def with_states(self, rows: Rows) -> Rows:
        return rows  # noise changes the states at every step

    def forward(self, rows: Rows, descriptions) -> tuple:
        if not self.training:
            return super().forward(rows, descriptions)
        x = self.backbone.embed_tokens(torch.from_numpy(rows.ids).to(self.device))  # (b, t, d)
        most = 5 / (x.shape[1] * x.shape[2]) ** 0.5
        x = x + torch.empty_like(x).uniform_(-most, most)
        adapter, squares = {}, 0.0
        for site, update in self.adapt(descriptions).items():
            adapter[site] = lambda x, update=update: update(F.dropout(x, 0.05))
            A = update.times_z(update.A.mT)  # (b, d_in, r)
            squares = squares + A.square().mean() + update.B.square().mean()
        logits = self.backbone.logits(self.backbone.run_layers(x, adapter)).float().flatten(0, 1)
        targets = torch.from_numpy(rows.targets).to(self.device).flatten()
        loss = F.cross_entropy(logits, targets, ignore_index=NO_TARGET, label_smoothing=0.1)
        return loss + 1e-3 * squares, torch.ones_like(loss), None


def linear_rate(step: int, steps: int) -> float:
    """The share of the peak rate: a fifth of the steps warms up, then it falls linearly to zero."""
    warmup = max(1, round(0.2 * steps))
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def one_rate(system: Zhyper, lr: float) -> list[dict]:
    weights = [weight for weight in system.parameters() if weight.requires_grad]
    return [{"params": weights, "peak": lr, "weight_decay": 0.01}]


OURS = {"Zhyper": Zhyper}  # under these names train.py finds what it trains with
THEIRS = {"Zhyper": AuthorsSystem, "learning_rate": linear_rate, "parameter_groups": one_rate}


# ---- what is made of a trained zhyper-diag, without training


class Derived(Hypernetwork):
    """A trained hypernetwork, of which another is made with `more`: embeddings of training texts, or a number."""

    reads_text = False  # so that it gets no trunk of its own

    def __init__(self, trained: Hypernetwork, more):
        super().__init__(trained.config, trained.layers, {}, 0)
        self.reads_text, self.trained, self.more = trained.reads_text, trained, more


class MeanZ(Derived):
    """The mean z of the training texts for every text: what is left if none is read."""

    def forward(self, c: Tensor) -> Adapter:
        adapter = self.trained(self.more)
        return {site: replace(u, z=u.z.mean(0).expand(len(c), -1)) for site, u in adapter.items()}


class Nearest(Derived):
    """The adapter of the nearest training text: looking up in place of generating."""

    def forward(self, c: Tensor) -> Adapter:
        standardise = self.trained.trunk.standardise
        distance = torch.cdist(standardise(c), standardise(self.more))  # (b, n)
        return self.trained(self.more[distance.argmin(1)])


class Stronger(Derived):
    """The same updates times a factor."""

    def forward(self, c: Tensor | None) -> Adapter:
        return {site: replace(u, scale=self.more * u.scale) for site, u in self.trained(c).items()}


DERIVED = {"mean": MeanZ, "nearest": Nearest}


@torch.no_grad()
def derive(name: str, data: Data, settings: train.Settings) -> Zhyper:
    """The run folder's zhyper-diag with one of `DERIVED` in place of its hypernetwork."""
    system = Zhyper.load(settings.run, "zhyper-diag", settings.device)
    texts = train.sample_records(sorted({record.description for record in data.split("train")}), 1024, 0)
    system.hypernetwork = DERIVED[name](system.hypernetwork, system.embed(texts)).eval()
    return system


# ---- their names, and how train.py comes to know them

T2L, DIAG, SQUARE = (vars(METHODS[name]) for name in ("t2l-gated", "zhyper-diag", "zhyper-square"))
RIVALS = {
    "t2l-varied": Rival(**T2L | {"kind": "t2l-varied", "spread": 3.0}),
    "random-ab": Rival(**DIAG | {"kind": "random-ab", "rank": 128}),
    "singular-ab": Rival(**SQUARE | {"kind": "singular-ab", "rank": 16}),
    "rescaling": Rival(**DIAG | {"kind": "rescaling"}),
    "steering": Rival(**DIAG | {"kind": "steering"}, changes=(("modules", ("o",)),)),
    "attending": Rival(**DIAG | {"kind": "attending"}),
    "authors": Rival(kind="authors", trunk="paper", lr=2.5e-5, own_lr=True),
    "reads-input": Rival(**DIAG, reads="prompt"),  # Hyperdecoders, arXiv 2203.08304
    "reads-name": Rival(**DIAG, reads="context"),  # it can only know contexts by heart
}
KINDS = [VariedT2L, RandomAB, SingularAB, Rescaling, Steering, Attending, Authors]  # of the first of them, in order
FRONT = ["t2l-gated", "zhyper-diag"]  # and these at other sizes
FRONT += [f"t2l-gated@rank={r}@gated_features={f}" for r, f in ((4, 112), (2, 112), (1, 112), (1, 28))]
FRONT += [f"zhyper-diag@rank={r}@gated_features={f}" for r, f in ((64, 448), (16, 224), (12, 96), (4, 28))]


def changed(name: str) -> Rival:
    """What a name like "zhyper-diag@rank=12@lr=1e-3" stands for. Raises ValueError."""
    base, *changes = name.split("@")
    train.check_choice("method", base, METHODS)
    method = Rival(**vars(METHODS[base]))
    types = {field.name: field.type for kind in (HyperConfig, Rival) for field in fields(kind)}
    for change in changes:
        field, _, text = change.partition("=")
        try:
            value = {str: str, int: int, float: float}[types[field]](text)
        except (KeyError, ValueError):
            raise ValueError(f"{name!r}: cannot change {change!r}; write METHOD@rank=8@lr=1e-3") from None
        if hasattr(method, field):
            method = replace(method, **{field: value}, own_lr=method.own_lr or field == "lr")
        else:
            method = replace(method, changes=(*method.changes, (field, value)))
    return method


def use_trials(data: str) -> None:
    """Give methods the rate and scale that were best in trials.json: train.py's own only on the data tried there."""
    tried = json.loads(TRIALS.read_text(encoding="utf-8"))
    for name in list(METHODS):
        trials = {key: found for key, found in tried["trials"].items() if key.startswith(f"{name}@")}
        if trials and (name in RIVALS or tried["made_of"]["data"] == data):
            best = changed(max(trials, key=lambda key: (trials[key]["accuracy"], -trials[key]["nll"])))
            own = {"own_lr": True} if name in RIVALS else {}
            METHODS[name] = replace(METHODS[name], lr=best.lr, scale=best.scale, **own)


@contextmanager
def trained_as(name: str, data: Data, settings: train.Settings) -> Iterator[tuple[Data, train.Settings]]:
    """The data and the settings as this method wants them, and train.py as it wants that."""
    method = METHODS[name]
    if isinstance(method, Rival):
        lr = settings.lr or (method.lr if method.own_lr else None)
        settings = replace(settings, lr=lr, steps=method.steps or settings.steps)
        data = reading(method.reads, data)
    with patch.multiple(train, **THEIRS if method.kind == "authors" else OURS):
        yield data, settings


def reading(field: str, data: Data) -> Data:
    """The data with another field of each record as its description."""
    return replace(data, records=[r._replace(description=getattr(r, field)) for r in data.records])


def add_rivals() -> None:
    """Let train.py know the rivals; called once, at the end of this file."""
    HYPERNETWORKS.update(zip(RIVALS, KINDS, strict=False))
    METHODS.update(RIVALS)
    hyper_config, train_method = train.Settings.hyper_config, train.train_method
    add_hypernetwork = Zhyper.add_hypernetwork

    def config_with_changes(settings: train.Settings, method: Method) -> HyperConfig:
        return replace(hyper_config(settings, method), **dict(getattr(method, "changes", ())))

    def train_as_wanted(name: str, base: Zhyper, data: Data, settings: train.Settings) -> dict:
        try:
            with trained_as(name, data, settings) as (data, settings):
                return train_method(name, base, data, settings)
        except ValueError as error:
            if "the loss is" not in str(error):
                raise
            train.say(str(error))  # this one diverged; the others go on
            return {"method": train.recipe(name), "evaluated": {}}

    def add_and_take(system: Zhyper, config: HyperConfig) -> None:
        add_hypernetwork(system, config)
        if hasattr(system.hypernetwork, "take"):  # it needs the weights of the backbone
            system.hypernetwork.take(system.backbone)
        if hasattr(system.hypernetwork, "pool"):
            if system.encoder_frozen:  # of each text then only one c would be kept
                raise ValueError(f"{config.kind} needs an encoder that is trained: --train-encoder")
            system.encoder.pool = system.hypernetwork.pool

    train.Settings.hyper_config, train.train_method = config_with_changes, train_as_wanted
    Zhyper.add_hypernetwork = add_and_take


add_rivals()
