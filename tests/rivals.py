"""What stands beside the methods of train.py: rivals, bounds, and the same methods at other sizes.

Each class is a rival, and says in a line what it is. RIVALS has how each is trained, as METHODS of
train.py does. A name such as "zhyper-diag@rank=12@hidden=96" is a method with some fields changed,
of train.Method or hyper.HyperConfig, or the number of adapted `layers`. tests/trials.json has what
`evidence.py tune` tried; the best of it is what stands in the tables of that data set.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import train
from data import Data, Record
from hyper import HYPERNETWORKS, TRUNKS, HyperConfig, LowRank, TextToLoRA, ZhyperDiag, ZhyperSquare, lora_A
from train import METHODS, Method
from zhyper import Zhyper

ORACLE_CONTEXTS = 32  # at most: a LoRA for each is expensive
TRIALS = Path(__file__).parent / "trials.json"


# ---- rivals that read a text


def zero(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        nn.init.zeros_(parameter)


class VariedT2L(TextToLoRA):
    """Text-to-LoRA with Zhyper's start: A differs between texts as much as diag(z) A does; B is 0."""

    def __init__(self, config: HyperConfig, layers: int, shapes, d_text: int):
        super().__init__(config, layers, shapes, d_text)
        for m, (d_in, _) in self.shapes.items():
            std = config.spread / (self.trunk.width * 3 * d_in) ** 0.5  # lora_A has 1/√(3 d_in)
            nn.init.normal_(self.heads[m].weight[: config.rank * d_in], std=std)


class RandomAB(ZhyperDiag):
    """ΔW = scale · diag(b) B diag(z) A: A, B random and frozen (VeRA, arXiv 2310.11454), z generated."""

    def __init__(self, config: HyperConfig, layers: int, shapes, d_text: int):
        super().__init__(config, layers, shapes, d_text)
        for B in self.B.values():
            B.data = lora_A(*B.shape)
        for weight in (*self.A.values(), *self.B.values()):
            weight.requires_grad_(False)
        self.b = nn.ParameterDict({m: torch.zeros(B.shape[:2]) for m, B in self.B.items()})

    def forward(self, c: Tensor) -> dict:
        first, adapter = self.config.first, super().forward(c)
        return {(l, m): replace(u, B=self.b[m][l - first, :, None] * u.B) for (l, m), u in adapter.items()}


class SingularAB(ZhyperSquare):
    """ΔW = scale · U S Z Vᵀ: the largest singular vectors of W (LoRA-XS, arXiv 2405.17604), Z generated."""

    def __init__(self, config: HyperConfig, layers: int, shapes, d_text: int):
        super().__init__(config, layers, shapes, d_text)
        self.heads.apply(zero)  # A and B are not zero, so Z is at the start

    def take(self, backbone) -> None:
        for m in self.config.modules:
            for l, (A, B) in enumerate(zip(self.A[m], self.B[m], strict=True)):
                U, S, V = torch.linalg.svd(backbone.linear(self.config.first + l, m).weight)
                A.data.copy_(V[: len(A)]), B.data.copy_(U[:, : len(A)] * S[: len(A)])
            self.A[m].requires_grad_(False), self.B[m].requires_grad_(False)


@dataclass
class Gain:
    """An update of outputs, B (b, 1, d_out) ⊙ W x; it is B that is generated."""

    B: Tensor
    W: Tensor
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * self.B * F.linear(x, self.W)

    def select(self, index: Tensor):
        return replace(self, B=self.B[index])


class Shift(Gain):
    """An update that reads no x: B (b, 1, d_out) alone."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * self.B


class Rescaling(nn.Module):
    """(IA)³, arXiv 2205.05638, or FiLM: every output of an adapted linear has a factor from the text."""

    reads_text, update = True, Gain

    def __init__(self, config: HyperConfig, layers: int, shapes, d_text: int):
        super().__init__()
        self.config, self.trunk = config, TRUNKS[config.trunk](config, layers, d_text)
        self.heads = nn.ModuleDict({m: nn.Linear(self.trunk.width, shapes[m][1]) for m in config.modules})
        self.heads.apply(zero)

    def take(self, backbone) -> None:
        self.W = lambda *site: backbone.linear(*site).weight

    def forward(self, c: Tensor) -> dict:
        features, first = self.trunk(c).unbind(2), self.config.first  # of each module, (b, l, f)
        B = {m: self.heads[m](x).unbind(1) for m, x in zip(self.config.modules, features, strict=True)}
        made = {(first + l, m): b[:, None] for m in B for l, b in enumerate(B[m])}  # (b, 1, d_out)
        return {site: self.update(b, self.W(*site), self.config.scale) for site, b in made.items()}


class Steering(Rescaling):
    """A generated vector is added to what `o` writes into the residual stream (arXiv 2308.10248)."""

    update = Shift


class ReadsInput(Zhyper):
    """Its description is the prompt itself (Hyperdecoders, arXiv 2203.08304), whatever it is told."""

    def start(self, records: Sequence[Record]) -> None:
        standardise = self.hypernetwork.trunk.standardise
        with torch.no_grad():
            c = self.embed(sorted({record.prompt for record in records})[:1024])
        standardise.measure = lambda _: type(standardise).measure(standardise, c)

    def score(self, prompts, answers, descriptions):
        texts = [text and prompt for text, prompt in zip(descriptions, prompts, strict=True)]
        return super().score(prompts, answers, texts)

    forward = score


class Nearest(Zhyper):
    """A trained Zhyper that knows only the adapters of its training descriptions: the nearest serves."""

    def start(self, records: Sequence[Record]) -> None:
        with torch.no_grad():
            self.known = super().embed(sorted({record.description for record in records}))

    def embed(self, descriptions: Sequence[str]) -> Tensor:
        standardise = self.hypernetwork.trunk.standardise
        c = super().embed(descriptions)
        return self.known[torch.cdist(standardise(c), standardise(self.known)).argmin(1)]


# ---- bounds: they know a context by its name and read no text


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


# ---- how each is trained


@dataclass(frozen=True)
class Rival:
    """How a rival is made: a method, and what differs from train.py's way."""

    method: Method
    network: type | None = None  # in place of the class that the method's kind has
    system: type = Zhyper
    changes: tuple[tuple[str, object], ...] = ()  # of its HyperConfig
    layers: int | None = None  # how many are adapted, from the lowest on; all if None


def tuned(name: str, method: Method) -> Method:
    """The method with the rate and scale that were best in trials.json, if it was tried."""
    tried = json.loads(TRIALS.read_text())["trials"] if TRIALS.exists() else {}
    own = {key: found for key, found in tried.items() if key.startswith(f"{name}@")}
    if not own:
        return method
    best = max(own, key=lambda key: (own[key]["accuracy"], -own[key]["nll"]))
    lr, scale = (float(part.split("=")[1]) for part in best.split("@")[1:])
    return replace(method, lr=lr, scale=scale)


def use_trials(data: str) -> None:
    """Give METHODS too what was best, if it is this data set that they were tried on."""
    if TRIALS.exists() and json.loads(TRIALS.read_text())["made_of"]["data"] == data:
        METHODS.update({name: tuned(name, method) for name, method in METHODS.items()})


T2L, DIAG, SQUARE = METHODS["t2l-gated"], METHODS["zhyper-diag"], METHODS["zhyper-square"]
RIVALS = {
    "t2l-varied": Rival(replace(T2L, spread=3.0), VariedT2L),
    "t2l-varied-paper": Rival(replace(METHODS["t2l"], spread=3.0), VariedT2L),
    "random-ab": Rival(replace(DIAG, rank=128), RandomAB),
    "singular-ab": Rival(replace(SQUARE, rank=16), SingularAB),
    "rescaling": Rival(DIAG, Rescaling),
    "steering": Rival(DIAG, Steering, changes=(("modules", ("o",)),)),
    "reads-input": Rival(DIAG, system=ReadsInput),
    "nearest": Rival(DIAG, system=Nearest),
    "onehot": Rival(DIAG),
    "oracle": Rival(METHODS["lora"]),
}
AS = {"reads-input": "zhyper-diag", "nearest": "zhyper-diag", "onehot": "zhyper-diag", "oracle": "lora"}  # not tried
RIVALS = {name: replace(own, method=tuned(AS.get(name, name), own.method)) for name, own in RIVALS.items()}
TUNED = [name for name in [*METHODS, *RIVALS] if name not in ("frozen", "prompt", *AS)]
FRONT = [f"t2l-gated@rank={r}@hidden={h}" for r, h in ((4, 224), (4, 112), (2, 112), (1, 112), (1, 28))]
FRONT += [f"zhyper-diag@rank={r}@hidden={h}" for r, h in ((64, 448), (16, 224), (12, 96), (4, 28))]
FRONT += [f"zhyper-square@rank={r}@hidden={h}" for r, h in ((16, 224), (8, 112), (4, 112))]
FRONT += [f"singular-ab@rank=8@hidden={h}" for h in (224, 112)] + ["rescaling@hidden=96"]


def rival(name: str) -> Rival:
    """The rival of that name; "METHOD@FIELD=VALUE" is a method changed. Raises ValueError."""
    base, *given = name.split("@")
    if base not in METHODS and base not in RIVALS:
        raise ValueError(f"unknown method {name!r}: choose from {', '.join([*METHODS, *RIVALS])}")
    found = RIVALS.get(base) or Rival(METHODS[base])
    types = {f.name: f.type for kind in (HyperConfig, Method) for f in fields(kind)} | {"layers": int}
    for change in given:
        field, _, value = change.partition("=")
        try:
            value = {str: str, int: int, float: float, int | None: int}[types[field]](value)
        except (KeyError, ValueError):
            raise ValueError(f"{name!r}: cannot change {change!r}; write a method@rank=8@lr=1e-3") from None
        if field == "layers":
            found = replace(found, layers=value)
        elif field in {f.name for f in fields(Method)}:
            found = replace(found, method=replace(found.method, **{field: value}))
        else:
            found = replace(found, changes=(*found.changes, (field, value)))
    return found


def build(name: str, base: Zhyper, data: Data, settings: train.Settings) -> Zhyper:
    """The untrained system of a rival, on the backbone of `base`."""
    made, sizes = rival(name), base.backbone.config
    torch.manual_seed(settings.seed)
    config = replace(settings.hyper_config(made.method), **dict(made.changes))
    layers = made.layers or sizes.layers - config.first
    if name in ("onehot", "oracle"):
        contexts = list(dict.fromkeys(record.context for record in data.split("train")))
        if name == "onehot":
            vectors = nn.Embedding(len(contexts), 128)
            vectors.source = vectors.tokenizer = None  # as an encoder has
            network = ZhyperDiag(config, layers, sizes.shapes, vectors.embedding_dim)
            return ByName(base, contexts, vectors, network).to(base.device)
        evaluated = {row.context for row in data.split("validation") + data.split("seen")}
        contexts = sorted(contexts, key=lambda context: context not in evaluated)[:ORACLE_CONTEXTS]
        network = LoRAPerContext(config, layers, sizes.shapes, len(contexts))
        return ByName(base, contexts, None, network).to(base.device)
    network, encoder = made.network or HYPERNETWORKS[config.kind], None
    if network.reads_text:
        encoder = train.build_encoder(base, settings)
    hypernetwork = network(config, layers, sizes.shapes, encoder.config.width if encoder else 0)
    if hasattr(hypernetwork, "take"):
        hypernetwork.take(base.backbone)
    prompting = train.PLAIN if made.method.in_prompt else train.BARE
    parts = base.tokenizer, base.backbone, encoder, hypernetwork, prompting, base.template
    return made.system(*parts).to(base.device)


def train_rival(name: str, base: Zhyper, data: Data, settings: train.Settings) -> tuple[dict, Zhyper]:
    """Train a rival on the backbone of a run folder; a row as train.py's, not evaluated, and the system."""
    records, method = data.split("train"), rival(name).method
    if name == "nearest":  # of a method that the folder has
        own = Zhyper.load(settings.run, "zhyper-diag", settings.device)
        parts = own.tokenizer, own.backbone, own.encoder, own.hypernetwork, own.prompting, own.template
        system = Nearest(*parts).to(own.device).eval()
    else:
        system = build(name, base, data, settings)
    row = {"method": name, "trained_as": repr(rival(name)), "steps": 0, "seconds": 0.0}
    for what, network in (("trainable", system.hypernetwork), ("encoder", system.encoder)):
        weights = network.parameters() if network else ()
        row[what] = sum(weight.numel() for weight in weights if weight.requires_grad)
    if hasattr(system, "start"):
        system.start(records)
    if isinstance(system, ByName):
        records = system.by_name(records)
    if name != "nearest":
        row |= train.fit(system, name, method, records, settings)
    return row, system.eval()
