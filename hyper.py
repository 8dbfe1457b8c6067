"""Low-rank updates, and the hypernetworks that generate them from a text.

    LoRA           ΔW[l,m] = scale · B[l,m] · A[l,m]               one for all: reads no text
    Zhyper         ΔW[l,m] = scale · B[l,m] · Z[l,m](c) · A[l,m]   A and B shared, Z generated
    Text-to-LoRA   ΔW[l,m] = scale · B[l,m](c) · A[l,m](c)         A and B generated whole

c is what is read of a description, and (l, m) is a *site*: the layer and the module of an adapted
weight. Z is diag(z), or a square of r × r. A *trunk* does two things. It reads the embedding of
each part of a text; what it reads is added up to c by Zhyper.embed. And of c it makes a vector of
features for every site. A *head* for each module, shared by all layers, turns these features into
z, or for Text-to-LoRA into A and B.

The paper is "Zhyper: Factorized Hypernetworks for Conditioned LLM Fine-Tuning", arXiv 2510.19733;
its authors' code is machinelearningnuremberg/Zhyper.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class HyperConfig:
    """Which hypernetwork, and how large. train.py makes it from its options."""

    kind: str  # a key of HYPERNETWORKS, at the end of this file
    rank: int
    scale: float  # the update is multiplied by it; in LoRA's words it is alpha / rank
    modules: tuple[str, ...]  # which linear layers of a block are adapted, as ("q", "v")
    lowest_layer: int  # the lowest adapted layer of the backbone
    trunk: str  # a key of TRUNKS
    features: int  # the width f of the gated trunk's features
    narrow: int  # the width of the layer before them
    reading: str  # of the gated trunk: "statements", or "text" for whole descriptions
    noise: float  # added in training to standardised embeddings: its std


# ---- the update of one site


@dataclass
class LowRank:
    """The update of one site, whatever made it, applied in rank space, without building ΔW.

    A (r, d_in) or (b, r, d_in)    B (d_out, r) or (b, d_out, r)    z None, (b, r) or (b, r, r)

    What has a b differs between the rows of a batch; what has none is shared by all of them.
    `.mT` swaps the last two axes.

    >>> update = LowRank(A=torch.ones(1, 2), B=torch.ones(2, 1), z=torch.tensor([[3.0]]), scale=0.5)
    >>> update(torch.tensor([[[1.0, 1.0]]]))  # x (b=1, t=1, d_in=2): 0.5 · 3 · (1 + 1) twice
    tensor([[[3., 3.]]])
    """

    A: Tensor
    B: Tensor
    z: Tensor | None
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        """ΔW x: (b, t, d_in) -> (b, t, d_out)."""
        return self.scale * (self.times_z(x @ self.A.mT) @ self.B.mT)  # scale · ((x Aᵀ) ⊙ z) Bᵀ

    def times_z(self, a: Tensor) -> Tensor:
        """Z times every vector in rank space: (b, t, r) -> (b, t, r)."""
        if self.z is None:
            return a
        if self.z.dim() == 2:  # a diagonal
            return a * self.z[:, None]
        return a @ self.z.mT  # a square

    def as_lora(self, row: int = 0) -> tuple[Tensor, Tensor]:
        """A' = Z A (r, d_in) and B (d_out, r) of one row: a plain LoRA, ΔW = scale · B A'."""
        A = self.A[row] if self.A.dim() == 3 else self.A  # (r, d_in)
        B = self.B[row] if self.B.dim() == 3 else self.B
        if self.z is None:
            return A, B
        z = self.z[row]
        if z.dim() == 1:  # a diagonal: it multiplies the rows of A
            return z[:, None] * A, B
        return z @ A, B  # a square

    def take(self, index: Tensor) -> "LowRank":
        """The update whose row i is row index[i] of this one; what all rows share stays shared.

        Zhyper.adapt generates one update for each distinct text, and repeats it by `take` for every
        row that has this text.
        """
        A = self.A[index] if self.A.dim() == 3 else self.A
        B = self.B[index] if self.B.dim() == 3 else self.B
        z = None if self.z is None else self.z[index]
        return LowRank(A, B, z, self.scale)

    def delta(self, row: int = 0) -> Tensor:
        """ΔW itself, (d_out, d_in), of one row: to merge it and to measure it."""
        A, B = self.as_lora(row)
        return self.scale * B @ A


Adapter = dict[tuple[int, str], LowRank]  # {site: update}: the Updates that a GPT takes


# ---- trunks: from a text to features of every site


class Trunk(nn.Module):
    """What every trunk is: a network from a text's embeddings to features of every site.

    To add one, write a subclass and give it a name in TRUNKS below. Its `__init__` takes what this
    one takes. `reads_statements` says in which parts a text is embedded: statement by statement or
    whole. `read` turns the embeddings of parts, (n, d_text), into (n, d_c). Zhyper.embed adds up
    what was read of a text's n parts, and divides by √n: c, (b, d_c). `forward` turns c into
    features (b, l, m, f) for b texts, l adapted layers and m modules. `features` is the number f,
    for which heads are built.
    """

    features: int
    reads_statements = False

    def __init__(self, config: HyperConfig, layers: int, d_text: int):  # layers: the adapted ones
        super().__init__()
        self.noise = config.noise
        # (e - mean) / std. In training mean and std are those of a step's embeddings, later the
        # averages that training has kept of them.
        # differs from the paper, which takes e as it is: a fresh encoder embeds all texts almost
        # alike.
        self.standardise = nn.BatchNorm1d(d_text, affine=False)

    def standardised(self, e: Tensor) -> Tensor:
        """The embeddings (n, d_text) standardised, in training with noise on them."""
        # a single embedding has no std, so the averages serve it in training, too
        self.standardise.train(self.training and len(e) > 1)
        e = self.standardise(e)
        if self.training:
            e = e + self.noise * torch.randn_like(e)
        return e

    def read(self, e: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, c: Tensor) -> Tensor:
        raise NotImplementedError


class GatedTrunk(Trunk):
    """Ours. `read`: SiLU(Linear(LayerNorm(Linear(e)))) of each statement. `forward`: gate[l,m] ⊙ c.

    differs from the paper, which embeds the text whole. The mean of embeddings says which words a
    text has, and not which belong together: "it backed A, it opposed B" and "it backed B, it
    opposed A" have nearly the same one. Here each statement goes through the nonlinearity alone,
    and Zhyper.embed takes the sum after it (Deep Sets, arXiv 1703.06114; deep averaging network,
    Iyyer 2015).

    differs from the paper, which concatenates site and text and leaves it to an MLP to learn how
    the one changes what is done with the other. Here the site multiplies the text from the start.
    """

    def __init__(self, config: HyperConfig, layers: int, d_text: int):
        super().__init__(config, layers, d_text)
        self.features = config.features
        self.reads_statements = config.reading == "statements"
        narrow = config.narrow  # so that the layers before the gate have few parameters
        self.text = nn.Sequential(
            nn.Linear(d_text, narrow),
            nn.LayerNorm(narrow),
            nn.Linear(narrow, self.features),
        )
        self.gate = nn.Parameter(torch.randn(layers, len(config.modules), self.features))

    def read(self, e: Tensor) -> Tensor:
        """(n, d_text) -> (n, f)"""
        return F.silu(self.text(self.standardised(e)))

    def forward(self, c: Tensor) -> Tensor:
        """(b, f) -> (b, l, m, f)"""
        return self.gate * c[:, None, None]  # (l, m, f) · (b, 1, 1, f): gate[l,m] ⊙ c


class PaperTrunk(Trunk):
    """The paper's (section 3): text, depth and module, embedded, concatenated, through an MLP.

    Its sizes are those of the authors' code; `features`, `narrow` and `reading` of the options are
    for the gated trunk alone.
    """

    latent = 128  # the width of its residual stream
    features = 512
    dropout_rate = 0.05

    def __init__(self, config: HyperConfig, layers: int, d_text: int):
        super().__init__(config, layers, d_text)
        latent = self.latent
        dropout = nn.Dropout(self.dropout_rate)  # one for all places: it has no weights

        def mlp(d_out: int) -> nn.Sequential:  # its last SiLU is as in the authors' code
            up = nn.Linear(latent, 4 * latent)
            down = nn.Linear(4 * latent, d_out)
            return nn.Sequential(up, nn.SiLU(), dropout, down, nn.SiLU())

        def residual_block() -> nn.Sequential:
            return nn.Sequential(nn.LayerNorm(latent), mlp(latent), dropout)

        self.text = nn.Sequential(nn.Linear(d_text, latent // 2), nn.LayerNorm(latent // 2))
        self.depth = nn.Embedding(layers, latent // 4)
        self.depth_norm = nn.LayerNorm(latent // 4)
        self.module = nn.Embedding(len(config.modules), latent // 4)
        self.module_norm = nn.LayerNorm(latent // 4)
        self.mixer = nn.Sequential(dropout, mlp(latent), dropout)
        self.blocks = nn.ModuleList(residual_block() for _ in range(2))
        self.out = nn.Sequential(nn.LayerNorm(latent), mlp(self.features))

    def read(self, e: Tensor) -> Tensor:
        """(n, d_text) -> (n, latent/2)"""
        return self.text(self.standardised(e))

    def forward(self, c: Tensor) -> Tensor:
        """(b, latent/2) -> (b, l, m, f)"""
        depth = self.depth_norm(self.depth.weight)  # (l, latent/4)
        module = self.module_norm(self.module.weight)  # (m, latent/4)
        # every text with every layer and every module; -1 keeps the width of each
        b, l, m = len(c), len(depth), len(module)
        text = c[:, None, None].expand(b, l, m, -1)  # (b, 1, 1, latent/2) -> (b, l, m, latent/2)
        depth = depth[None, :, None].expand(b, l, m, -1)  # from (1, l, 1, latent/4)
        module = module[None, None].expand(b, l, m, -1)  # from (1, 1, m, latent/4)
        x = torch.cat([text, depth, module], dim=-1)  # (b, l, m, latent)
        x = self.mixer(x)
        for block in self.blocks:
            x = x + block(x)
        return self.out(x)


# ---- hypernetworks: from a text to the updates of all sites


class Hypernetwork(nn.Module):
    """What every trained method is: a network from embeddings of texts to an adapter for them.

    To add one, write a subclass with `__init__` and `forward`, give it a name in HYPERNETWORKS
    below and a line in METHODS of train.py. Then it can be trained, evaluated and saved. One that
    reads texts can also be merged and exported for a text. `self.trunk(c)` makes features of each
    site. An A or a B that all texts share is an nn.ParameterDict called `A` or `B`: train.py lets
    these learn at three times the rate of the rest.
    """

    reads_text = True  # False: one adapter for all texts; then it gets no trunk, and c is None

    def __init__(
        self,
        config: HyperConfig,
        layers: int,  # how many are adapted: those from config.lowest_layer to the top
        shapes: Mapping[str, tuple[int, int]],  # {module: (d_in, d_out)}: ModelConfig.shapes
        d_text: int,  # the width of an embedding
    ):
        super().__init__()
        self.config = config
        self.layers = layers
        if self.reads_text:
            self.trunk = TRUNKS[config.trunk](config, layers, d_text)

    def forward(self, c: Tensor | None) -> Adapter:
        """The update of each of `self.sites()`.

        A tensor with a batch axis has in row i what belongs to c[i]; one without is for all texts.
        """
        raise NotImplementedError

    def take_backbone(self, backbone: nn.Module) -> None:
        """Called once with the GPT, for a subclass that uses its weights, as `Rescaling` does.

        (See tests/evidence/rivals.py.) It keeps a method of the GPT, as backbone.linear: the GPT
        itself would be saved once more with this network, and a copy of weights would be of
        untrained ones, since a small backbone is pretrained only later.
        """

    def sites(self) -> list[tuple[int, str]]:
        """(layer, module) of every adapted weight, layer by layer."""
        lowest = self.config.lowest_layer
        layers = range(lowest, lowest + self.layers)
        return [(layer, module) for layer in layers for module in self.config.modules]

    def place_updates(self, A: Mapping, B: Mapping, z: Mapping | None = None) -> Adapter:
        """The adapter in which site (layer, module) has A[module][l], and its B and z likewise.

        l counts the adapted layers: the lowest of them is 0.
        """
        adapter = {}
        for layer, module in self.sites():
            l = layer - self.config.lowest_layer
            z_site = None if z is None else z[module][l]
            adapter[layer, module] = LowRank(A[module][l], B[module][l], z_site, self.config.scale)
        return adapter


def init_A(*shape: int) -> Tensor:
    """Uniform within 1/√d_in: LoRA's usual start for A (..., r, d_in), and ours for B."""
    return (2 * torch.rand(shape) - 1) / shape[-1] ** 0.5


class StaticLoRA(Hypernetwork):
    """One A and one B for every site, for all texts (LoRA, arXiv 2106.09685): it reads no text.

    ZhyperDiag, below, is the same with a z between A and B.
    """

    reads_text = False

    def __init__(self, config, layers, shapes, d_text):
        super().__init__(config, layers, shapes, d_text)
        self.A = nn.ParameterDict()  # what is put into it becomes a parameter
        self.B = nn.ParameterDict()
        for module in config.modules:
            d_in, d_out = shapes[module]
            self.A[module] = init_A(layers, config.rank, d_in)
            self.B[module] = torch.zeros(layers, d_out, config.rank)

    def forward(self, c: Tensor | None) -> Adapter:
        return self.place_updates(self.A, self.B, self.generate_z(c))

    def generate_z(self, c: Tensor | None) -> Mapping | None:
        """{module: z of each layer}; here None: there is nothing between A and B."""
        return None


class ZhyperDiag(StaticLoRA):
    """Zhyper, Z = diag(z): LoRA's A and B, and r numbers a site and text (paper, section 3)."""

    reads_text = True

    def z_size(self, rank: int) -> tuple[int, ...]:
        """The shape of one text's z at one site."""
        return (rank,)

    def __init__(self, config, layers, shapes, d_text):
        super().__init__(config, layers, shapes, d_text)
        # z = 0 makes step 0 the frozen model, and B must then not be zero, or nothing would learn.
        # In the first step only the heads have a gradient, a product with the text's features: so
        # what differs between texts is learned first.
        # differs from the paper, in whose code B = 0, as in LoRA, and z is the same for all texts.
        for B in self.B.values():
            B.data = init_A(*B.shape)
        modules = len(config.modules)
        outputs = math.prod(self.z_size(config.rank))
        self.head_weight = nn.Parameter(torch.zeros(modules, outputs, self.trunk.features))
        self.head_bias = nn.Parameter(torch.zeros(modules, outputs))

    def generate_z(self, c: Tensor) -> Mapping:
        """{module: z of each layer, (b, r)}; for the square (b, r, r)."""
        features = self.trunk(c)  # (b, l, m, f)
        # a linear layer for each module m, all in one product: weight[m] · features + bias[m];
        # n are the outputs of a head, r or r²
        z = torch.einsum("blmf,mnf->blmn", features, self.head_weight) + self.head_bias
        z = z.unflatten(-1, self.z_size(self.config.rank))
        # z[:, :, i] is (b, l, r) or (b, l, r, r); unbind takes it apart into one for each layer
        return {module: z[:, :, i].unbind(1) for i, module in enumerate(self.config.modules)}


class ZhyperSquare(ZhyperDiag):
    """Zhyper with a square Z, which also mixes the ranks: r² numbers for each site and text."""

    def z_size(self, rank: int) -> tuple[int, ...]:
        return (rank, rank)


class TextToLoRA(Hypernetwork):
    """T2L (arXiv 2506.06105): a head emits A and B whole, r·(d_in + d_out) numbers a site."""

    def __init__(self, config, layers, shapes, d_text):
        super().__init__(config, layers, shapes, d_text)
        self.shapes = {module: shapes[module] for module in config.modules}
        self.heads = nn.ModuleDict()
        for module, (d_in, d_out) in self.shapes.items():
            head = nn.Linear(self.trunk.features, config.rank * (d_in + d_out))
            A = init_A(config.rank, d_in)
            B = torch.zeros(d_out, config.rank)
            # Its authors' start: whatever the text, the head emits its bias, a LoRA with B = 0. A
            # step later B differs between texts, since the gradient of the head's weight contains
            # the features.
            nn.init.zeros_(head.weight)
            head.bias.data.copy_(torch.cat([A.flatten(), B.flatten()]))
            self.heads[module] = head

    def forward(self, c: Tensor) -> Adapter:
        features = self.trunk(c)  # (b, l, m, f)
        rank = self.config.rank
        A = {}
        B = {}
        for i, (module, (d_in, d_out)) in enumerate(self.shapes.items()):
            emitted = self.heads[module](features[:, :, i])  # (b, l, r·(d_in + d_out))
            flat_A, flat_B = emitted.split([rank * d_in, rank * d_out], dim=-1)
            A[module] = flat_A.unflatten(-1, (rank, d_in)).unbind(1)  # (b, r, d_in) for each layer
            B[module] = flat_B.unflatten(-1, (d_out, rank)).unbind(1)  # (b, d_out, r)
        return self.place_updates(A, B)


TRUNKS = {"gated": GatedTrunk, "paper": PaperTrunk}
HYPERNETWORKS = {
    "lora": StaticLoRA,
    "t2l": TextToLoRA,
    "zhyper-diag": ZhyperDiag,
    "zhyper-square": ZhyperSquare,
}
