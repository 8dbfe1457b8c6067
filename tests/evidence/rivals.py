"""What stands beside the methods of train.py: rivals, and the same methods at other sizes.

Importing this file adds them: train.METHODS and hyper.HYPERNETWORKS then have them, and train.run
trains, evaluates and saves them like its own. Each class says in a line what it is.

A name such as "zhyper-diag@rank=12@gated_features=96" is a method with some fields changed, of
Rival or of hyper.HyperConfig. trials.json has what `run.py tune` tried.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))

import train  # noqa: E402
from data import Data  # noqa: E402
from data.batches import NO_TARGET, Rows  # noqa: E402
from hyper import HYPERNETWORKS, TRUNKS, Adapter, HyperConfig, Hypernetwork  # noqa: E402
from hyper import TextToLoRA, ZhyperDiag, ZhyperSquare, check_choice, lora_A  # noqa: E402
from model import GPT  # noqa: E402
from train import METHODS, Method  # noqa: E402
from zhyper import Zhyper  # noqa: E402

TRIALS = Path(__file__).with_name("trials.json")


@dataclass(frozen=True)
class Rival(Method):
    """A method, and what no field of train.Method says."""

    changes: tuple[tuple[str, object], ...] = ()  # of its HyperConfig
    steps: int | None = None  # in place of the run's: as many as fit into equal seconds
    own_lr: bool = False  # whether its rate stands where the preset has one for all
    reads: str = "description"  # which field of a record it reads as the description


# ---- rivals that generate A and B, or what is between them


class VariedT2L(TextToLoRA):
    """Text-to-LoRA with Zhyper's start: A differs between texts as much as diag(z) A; B is 0."""

    def __init__(self, config, layers, shapes, d_text):
        super().__init__(config, layers, shapes, d_text)
        for module, (d_in, _) in self.shapes.items():
            std = config.spread / (self.trunk.features * 3 * d_in) ** 0.5  # lora_A: 1/√(3 d_in)
            nn.init.normal_(self.heads[module].weight[: config.rank * d_in], std=std)


class RandomAB(ZhyperDiag):
    """ΔW = scale · diag(b) B diag(z) A: A, B random and frozen (VeRA, arXiv 2310.11454)."""

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
    """ΔW = scale · U S Z Vᵀ: the largest singular vectors of W (LoRA-XS, arXiv 2405.17604)."""

    def __init__(self, config, layers, shapes, d_text):
        super().__init__(config, layers, shapes, d_text)
        nn.init.zeros_(self.head_weight)  # A and B are not zero, so Z is at the start

    def take(self, backbone: GPT) -> None:
        for layer, module in self.sites():
            l = layer - self.config.lowest_layer
            U, S, V = torch.linalg.svd(backbone.linear(layer, module).weight.float())
            rank = self.config.rank
            self.A[module].data[l] = V[:rank]
            self.B[module].data[l] = U[:, :rank] * S[:rank]
        self.A.requires_grad_(False)
        self.B.requires_grad_(False)


# ---- rivals that change outputs


@dataclass
class Gain:
    """An update B ⊙ W x, where B (b, 1, d_out) is generated."""

    B: Tensor
    W: Tensor
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * self.B * F.linear(x, self.W)

    def to(self, dtype: torch.dtype):
        return replace(self, B=self.B.to(dtype), W=self.W.to(dtype))


class Shift(Gain):
    """An update that reads no x: B alone."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * self.B


class Rescaling(Hypernetwork):
    """(IA)³, arXiv 2205.05638, or FiLM: every output of an adapted linear has a factor."""

    update = Gain

    def __init__(self, config, layers, shapes, d_text):
        super().__init__(config, layers, shapes, d_text)
        self.trunk = TRUNKS[config.trunk](config, layers, d_text)
        self.heads = nn.ModuleDict()
        for module in config.modules:
            self.heads[module] = nn.Linear(self.trunk.features, shapes[module][1])
            nn.init.zeros_(self.heads[module].weight)
            nn.init.zeros_(self.heads[module].bias)

    def measure(self, c: Tensor) -> None:
        self.trunk.standardise.measure(c)

    def take(self, backbone: GPT) -> None:
        self.linear_of = backbone.linear  # a method, so that W is not saved with this network

    def forward(self, c: Tensor) -> Adapter:
        features = self.trunk(c)  # (b, l, m, f)
        adapter = {}
        for layer, module in self.sites():
            l = layer - self.config.lowest_layer
            m = self.config.modules.index(module)
            B = self.heads[module](features[:, l, m])[:, None]  # (b, 1, d_out)
            W = self.linear_of(layer, module).weight
            adapter[layer, module] = self.update(B, W, self.config.scale)
        return adapter


class Steering(Rescaling):
    """A vector is added to what `o` writes into the residual stream (arXiv 2308.10248)."""

    update = Shift


# ---- the authors' recipe


class Authors(ZhyperDiag):
    """The authors' start: head weights zero, biases random, so z is the same for all texts."""

    def __init__(self, config, layers, shapes, d_text):
        super().__init__(config, layers, shapes, d_text)
        bound = self.trunk.features**-0.5  # of nn.Linear's own start
        nn.init.zeros_(self.head_weight)
        nn.init.uniform_(self.head_bias, -bound, bound)


class AuthorsSystem(Zhyper):
    """Its loss in training: NEFTune's noise (arXiv 2310.05914), dropout, label smoothing, L2."""

    def with_states(self, rows: Rows) -> Rows:
        return rows  # noise changes them at every step

    def states_below(self, rows: Rows) -> Tensor:
        x = self.backbone.embed_tokens(torch.from_numpy(rows.ids).to(self.device))
        if self.training:
            most = 5 / (x.shape[1] * x.shape[2]) ** 0.5
            x = x + torch.empty_like(x).uniform_(-most, most)
        return self.backbone.run_layers(x, {}, end=self.lowest_layer)

    def forward(self, rows: Rows, descriptions) -> tuple:
        if not self.training:
            return super().forward(rows, descriptions)
        adapter = self.adapt(descriptions)
        dropped = {}
        squares = 0.0
        for site, update in adapter.items():
            dropped[site] = lambda x, update=update: update(F.dropout(x, 0.05))
            A = update.times_z(update.A.mT).mT  # (b, r, d_in)
            squares = squares + A.square().mean() + update.B.square().mean()
        x = self.backbone.run_layers(self.states_below(rows), dropped, start=self.lowest_layer)
        logits = self.backbone.logits(x).float().flatten(0, 1)
        targets = torch.from_numpy(rows.targets).to(self.device).flatten()
        loss = F.cross_entropy(logits, targets, ignore_index=NO_TARGET, label_smoothing=0.1)
        return loss + 1e-3 * squares, torch.ones_like(loss), None


def linear_rate(step: int, steps: int) -> float:
    """The share of the peak rate: a fifth of the steps warms up, then linearly down to zero."""
    warmup = max(1, round(0.2 * steps))
    if step < warmup:
        return (step + 1) / warmup
    return (steps - step) / max(1, steps - warmup)


def one_rate(system: Zhyper, lr: float) -> list[dict]:
    weights = [weight for weight in system.parameters() if weight.requires_grad]
    return [{"params": weights, "peak": lr, "weight_decay": 0.01}]


OURS = {"Zhyper": Zhyper}  # {what train.py calls: what it is}
THEIRS = {"Zhyper": AuthorsSystem, "learning_rate": linear_rate, "parameter_groups": one_rate}


# ---- made of a trained zhyper-diag; nothing more is trained


class MeanZ(Hypernetwork):
    """The mean z of the training texts for every text: what is left if no text is read."""

    def __init__(self, trained: Hypernetwork, known: Tensor):
        super().__init__(trained.config, trained.layers, {}, 0)
        self.adapter = {}
        for site, update in trained(known).items():
            self.adapter[site] = replace(update, z=update.z.mean(0, keepdim=True))

    def forward(self, c: Tensor) -> Adapter:
        return {site: replace(u, z=u.z.expand(len(c), -1)) for site, u in self.adapter.items()}


class Nearest(Hypernetwork):
    """The adapter of the nearest training text (known: their c): looking up, not generating."""

    def __init__(self, trained: Hypernetwork, known: Tensor):
        super().__init__(trained.config, trained.layers, {}, 0)
        self.trained = trained
        self.known = known

    def forward(self, c: Tensor) -> Adapter:
        standardise = self.trained.trunk.standardise
        distance = torch.cdist(standardise(c), standardise(self.known))  # (b, n)
        return self.trained(self.known[distance.argmin(1)])


class Stronger(Hypernetwork):
    """The same updates times a factor."""

    def __init__(self, trained: Hypernetwork, factor: float):
        super().__init__(trained.config, trained.layers, {}, 0)
        self.reads_text = trained.reads_text
        self.trained = trained
        self.factor = factor

    def forward(self, c: Tensor | None) -> Adapter:
        adapter = self.trained(c)
        return {site: replace(u, scale=self.factor * u.scale) for site, u in adapter.items()}


DERIVED = {"mean": MeanZ, "nearest": Nearest}


@torch.no_grad()
def derive(name: str, data: Data, settings: train.Settings) -> Zhyper:
    """The run folder's zhyper-diag with one of `DERIVED` in place of its hypernetwork."""
    system = Zhyper.load(settings.run, "zhyper-diag", settings.device)
    texts = train.some(sorted({record.description for record in data.split("train")}), 1024, 0)
    system.hypernetwork = DERIVED[name](system.hypernetwork, system.embed(texts)).eval()
    return system


# ---- names, and how train.py comes to know them

KINDS = {
    "t2l-varied": VariedT2L,
    "random-ab": RandomAB,
    "singular-ab": SingularAB,
    "rescaling": Rescaling,
    "steering": Steering,
    "authors": Authors,
}
T2L, DIAG, SQUARE = (vars(METHODS[name]) for name in ("t2l-gated", "zhyper-diag", "zhyper-square"))
VARIED = T2L | {"kind": "t2l-varied", "spread": 3.0}
RIVALS = {
    "t2l-varied": Rival(**VARIED),
    "t2l-varied-paper": Rival(**VARIED | {"trunk": "paper"}),
    "random-ab": Rival(**DIAG | {"kind": "random-ab", "rank": 128}),
    "singular-ab": Rival(**SQUARE | {"kind": "singular-ab", "rank": 16}),
    "rescaling": Rival(**DIAG | {"kind": "rescaling"}),
    "steering": Rival(**DIAG | {"kind": "steering"}, changes=(("modules", ("o",)),)),
    "authors": Rival(kind="authors", trunk="paper", lr=2.5e-5, own_lr=True),
    "reads-input": Rival(**DIAG, reads="prompt"),
    "reads-name": Rival(**DIAG, reads="context"),
}
FRONT = ["t2l-gated@rank=4", "t2l-gated@rank=4@gated_features=112", "t2l-gated@rank=1"]
FRONT += ["t2l-gated@rank=1@gated_features=112", "t2l-gated@rank=1@gated_features=28"]
FRONT += ["zhyper-diag@rank=64@gated_features=448", "zhyper-diag@rank=16"]
FRONT += ["zhyper-diag@rank=12@gated_features=96", "zhyper-diag@rank=4@gated_features=28"]


def changed(name: str) -> Rival:
    """What a name like "zhyper-diag@rank=12" stands for. Raises ValueError."""
    base, *changes = name.split("@")
    check_choice("method", base, METHODS)
    method = Rival(**vars(METHODS[base]))
    for change in changes:
        field, _, text = change.partition("=")
        known = {f.name: f.type for kind in (HyperConfig, Rival) for f in fields(kind)}
        try:
            value = {str: str, int: int, float: float, int | None: int}[known[field]](text)
        except (KeyError, ValueError):
            wanted = "write METHOD@rank=8@lr=1e-3"
            raise ValueError(f"{name!r}: cannot change {change!r}; {wanted}") from None
        if hasattr(method, field):
            method = replace(method, **{field: value})
        else:
            method = replace(method, changes=(*method.changes, (field, value)))
        if field == "lr":
            method = replace(method, own_lr=True)
    return method


def use_trials(data: str) -> None:
    """Give each method the rate and scale that were best in trials.json: the rivals always, those
    of train.py only if it is this data set that they were tried on."""
    tried = json.loads(TRIALS.read_text(encoding="utf-8"))
    for name in list(METHODS):
        own = {key: x for key, x in tried["trials"].items() if key.startswith(f"{name}@")}
        if own and (name in RIVALS or tried["made_of"]["data"] == data):
            best = changed(max(own, key=lambda key: (own[key]["accuracy"], -own[key]["nll"])))
            METHODS[name] = replace(METHODS[name], lr=best.lr, scale=best.scale)


@contextmanager
def trained_as(name: str, data: Data, settings: train.Settings) -> Iterator[tuple]:
    """The data and the settings with which train.py trains a method as it wants to be trained."""
    method = METHODS[name]
    if isinstance(method, Rival):
        settings = replace(settings, steps=method.steps or settings.steps)
        if method.own_lr:
            settings = replace(settings, lr=settings.lr or method.lr)
        data = reading(method.reads, data)
    with patch.multiple(train, **(THEIRS if method.kind == "authors" else OURS)):
        yield data, settings


def reading(field: str, data: Data) -> Data:
    """The data with another field of each record as its description."""
    records = [record._replace(description=getattr(record, field)) for record in data.records]
    return replace(data, records=records)


def add_rivals() -> None:
    """Let train.py know the rivals. Called once, at the end of this file."""
    HYPERNETWORKS.update(KINDS)
    METHODS.update(RIVALS)
    hyper_config = train.Settings.hyper_config
    train_method = train.train_method
    add_hypernetwork = Zhyper.add_hypernetwork

    def config_with_changes(settings: train.Settings, method: Method) -> HyperConfig:
        return replace(hyper_config(settings, method), **dict(getattr(method, "changes", ())))

    def train_as_wanted(name: str, base: Zhyper, data: Data, settings: train.Settings) -> dict:
        with trained_as(name, data, settings) as (data, settings):
            try:
                return train_method(name, base, data, settings)
            except ValueError as error:
                if "the loss is" not in str(error):
                    raise
                train.say(str(error))  # it diverged; the others go on
                return {"method": repr(METHODS[name]), "evaluated": {}, "diverged": True}

    def add_and_take(system: Zhyper, config: HyperConfig) -> None:
        add_hypernetwork(system, config)
        if hasattr(system.hypernetwork, "take"):  # it needs the weights of the backbone
            system.hypernetwork.take(system.backbone)

    train.Settings.hyper_config = config_with_changes
    train.train_method = train_as_wanted
    Zhyper.add_hypernetwork = add_and_take


def add_methods(names: Sequence[str]) -> None:
    """Add methods under names like "zhyper-diag@rank=12". Raises ValueError."""
    for name in names:
        if "@" in name and name not in METHODS:
            METHODS[name] = changed(name)


add_rivals()
