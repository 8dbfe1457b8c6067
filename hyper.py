"""Low-rank updates, and the hypernetworks that generate them from a text.

    LoRA           ΔW[l,m] = scale · B[l,m] · A[l,m]               one for all: reads no text
    Zhyper         ΔW[l,m] = scale · B[l,m] · Z[l,m](c) · A[l,m]   A and B shared, Z generated
    Text-to-LoRA   ΔW[l,m] = scale · B[l,m](c) · A[l,m](c)         A and B generated whole

c is the embedding of a description, and (l, m) a *site*: layer and module of an adapted weight.
Z is diag(z), or a square of r × r. A *trunk* gives every site a feature that depends on c; a *head*
for each module, shared by all layers, turns the feature into z, or for Text-to-LoRA into A and B.
The paper is "Zhyper: Factorized Hypernetworks for Conditioned LLM Fine-Tuning", arXiv 2510.19733.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model import MODULES


@dataclass(frozen=True)
class HyperConfig:
    """Which hypernetwork, and how large; train.py sets its own. Raises ValueError if impossible."""

    kind: str = "zhyper-diag"  # a key of HYPERNETWORKS
    rank: int = 32
    alpha: float = 64.0
    modules: tuple[str, ...] = ("q", "k", "v", "o")
    first: int = 0  # the lowest layer that is adapted; `layers` and l below count from it
    trunk: str = "gated"  # a key of TRUNKS
    hidden: int = 224  # gated trunk: the width f of a feature
    latent: int = 128  # paper trunk: the width of its residual stream
    head: int = 512  # paper trunk: the width f of a feature, not of a module's head
    dropout: float = 0.05  # paper trunk
    spread: float = 8.0  # how strongly z differs between contexts at the start

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def __post_init__(self):
        check_choice("kind", self.kind, HYPERNETWORKS)
        check_choice("trunk", self.trunk, TRUNKS)
        for module in self.modules:
            check_choice("module", module, MODULES)
        if not self.modules or len(set(self.modules)) < len(self.modules):
            raise ValueError(f"modules {','.join(self.modules)!r}: name at least one, each once")
        for name in ("rank", "alpha", "hidden", "latent", "head", "spread"):  # if 0, none learns
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be more than 0")


def check_choice(what: str, got: str, known) -> None:
    """Raise ValueError, naming what is known, if `got` is not."""
    if got not in known:
        raise ValueError(f"unknown {what} {got!r}: choose from {', '.join(known)}")


@dataclass
class LowRank:
    """The update of one site, whatever made it, applied in rank space, without building ΔW.

    A (r, d_in) or (b, r, d_in)    B (d_out, r) or (b, d_out, r)    z None, (b, r) or (b, r, r)

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
        return self.scale * self.times_z(x @ self.A.mT) @ self.B.mT  # scale · ((x Aᵀ) ⊙ z) Bᵀ

    def times_z(self, a: Tensor) -> Tensor:
        """Z times every row of a, in rank space: (b, t, r) -> (b, t, r)."""
        if self.z is None:
            return a
        if self.z.dim() == 2:  # a diagonal
            return a * self.z[:, None]
        return a @ self.z.mT  # a square

    def folded(self) -> Tensor:
        """A' = Z A, (b, r, d_in): with B it is a plain LoRA, ΔW = scale · B A'."""
        return self.times_z(self.A.mT).mT  # Z times each column of A

    def delta(self) -> Tensor:
        """ΔW itself, (b, d_out, d_in), or (d_out, d_in) without rows: to merge and to measure."""
        return self.scale * self.B @ self.folded()

    def select(self, index: Tensor) -> "LowRank":
        """The update whose row i is row index[i] of this one: a text may serve several rows."""
        A = self.A if self.A.dim() == 2 else self.A[index]
        B = self.B if self.B.dim() == 2 else self.B[index]
        return LowRank(A, B, None if self.z is None else self.z[index], self.scale)


Adapter = dict[tuple[int, str], LowRank]  # {site: update}: what is generated, and what a GPT takes
Shapes = Mapping[str, tuple[int, int]]  # {module: (d_in, d_out)}, as in ModelConfig.shapes


class Standardise(nn.Module):
    """(c - mean) / std, both measured once, before the first step, on training descriptions.

    differs from the paper, which takes c as it is: a fresh encoder embeds all texts almost alike.
    """

    def __init__(self, d_text: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(d_text))
        self.register_buffer("std", torch.ones(d_text))

    def measure(self, c: Tensor) -> None:
        self.mean.copy_(c.mean(0))
        self.std.copy_(c.std(0, correction=0) + 1e-5)

    def forward(self, c: Tensor) -> Tensor:
        return (c - self.mean) / self.std


class GatedTrunk(nn.Module):
    """Ours: u = SiLU(Linear(LayerNorm(Linear(c)))), c standardised; a site's feature is gate · u.

    differs from the paper: the site multiplies the text instead of being concatenated to it. So
    what it does with a text is a product from the first step; an MLP would have to learn that.
    """

    def __init__(self, config: HyperConfig, layers: int, d_text: int):
        super().__init__()
        f = self.width = config.hidden
        self.standardise = Standardise(d_text)
        self.text = nn.Sequential(nn.Linear(d_text, 64), nn.LayerNorm(64), nn.Linear(64, f))
        self.gate = nn.Parameter(torch.randn(layers, len(config.modules), f))

    def forward(self, c: Tensor) -> Tensor:
        """(b, d_text) -> the feature of every site, (b, l, m, f)."""
        u = nn.functional.silu(self.text(self.standardise(c)))  # (b, f)
        return self.gate * u[:, None, None]  # g[l,m] ⊙ u


class PaperTrunk(nn.Module):
    """The paper's (section 3): text, depth and module, embedded, concatenated, through an MLP."""

    def __init__(self, config: HyperConfig, layers: int, d_text: int):
        super().__init__()
        w, drop, self.width = config.latent, nn.Dropout(config.dropout), config.head

        def mlp(d_out: int) -> nn.Sequential:
            up, down = nn.Linear(w, 4 * w), nn.Linear(4 * w, d_out)
            return nn.Sequential(up, nn.SiLU(), drop, down, nn.SiLU())

        self.standardise = Standardise(d_text)
        self.text = nn.Sequential(nn.Linear(d_text, w // 2), nn.LayerNorm(w // 2))
        self.depth, self.depth_norm = nn.Embedding(layers, w // 4), nn.LayerNorm(w // 4)
        self.module = nn.Embedding(len(config.modules), w // 4)
        self.module_norm = nn.LayerNorm(w // 4)
        self.mixer = nn.Sequential(drop, mlp(w), drop)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(w), mlp(w), drop) for _ in range(2))
        self.out = nn.Sequential(nn.LayerNorm(w), mlp(config.head))

    def forward(self, c: Tensor) -> Tensor:
        """(b, d_text) -> the feature of every site, (b, l, m, f)."""
        text = self.text(self.standardise(c))  # (b, latent/2)
        depth, module = self.depth_norm(self.depth.weight), self.module_norm(self.module.weight)
        size = (len(c), len(depth), len(module), -1)
        parts = text[:, None, None], depth[None, :, None], module[None, None]
        x = torch.cat([part.expand(size) for part in parts], dim=-1)  # (b, l, m, latent)
        x = self.mixer(x)
        for block in self.blocks:
            x = x + block(x)
        return self.out(x)


def lora_A(*shape: int) -> Tensor:
    """LoRA's usual start for A (..., r, d_in), kaiming-uniform: within 1/√d_in. B starts at 0."""
    return (2 * torch.rand(shape) - 1) / shape[-1] ** 0.5


class StaticLoRA(nn.Module):
    """One A and one B for every site, for all contexts (LoRA, arXiv 2106.09685): reads no text."""

    reads_text = False

    def __init__(self, config: HyperConfig, layers: int, shapes: Shapes, d_text: int):
        super().__init__()
        self.config, r = config, config.rank
        self.A = nn.ParameterDict({m: lora_A(layers, r, shapes[m][0]) for m in config.modules})
        self.B = nn.ParameterDict({m: torch.zeros(layers, shapes[m][1], r) for m in config.modules})

    def forward(self, c: Tensor | None) -> Adapter:
        """The update of every site: a row for each of c (b, d_text), or without z one for all."""
        z, adapter, first = self.z(c), {}, self.config.first
        for m in self.config.modules:
            for l, (A, B) in enumerate(zip(self.A[m], self.B[m], strict=True)):
                z_l = None if z is None else z[m][:, l]
                adapter[first + l, m] = LowRank(A, B, z_l, self.config.scale)
        return adapter

    def z(self, c: Tensor | None) -> dict[str, Tensor] | None:
        """None, nothing between A and B; ZhyperDiag generates it."""


class ZhyperDiag(StaticLoRA):
    """Zhyper, Z = diag(z): LoRA's A and B, and r numbers a site and text (paper, section 3)."""

    reads_text = True

    def __init__(self, config: HyperConfig, layers: int, shapes: Shapes, d_text: int):
        super().__init__(config, layers, shapes, d_text)
        self.trunk = TRUNKS[config.trunk](config, layers, d_text)
        outputs, width = self.outputs(config.rank), self.trunk.width
        self.heads = nn.ModuleDict({m: nn.Linear(width, outputs) for m in config.modules})
        # B = 0 makes step 0 the frozen model. z must then differ strongly between texts: if not,
        # training first learns one adapter for all of them and rarely escapes that solution.
        for head in self.heads.values():
            # Each number in Z a is a sum of products: `width` of them, for a square r times more.
            terms = width * outputs / config.rank
            nn.init.normal_(head.weight, std=config.spread / terms**0.5)
            nn.init.zeros_(head.bias)

    def outputs(self, rank: int) -> int:
        return rank

    def z(self, c: Tensor) -> dict[str, Tensor]:
        """z of every site by module: {m: (b, l, r)}; for the square {m: (b, l, r, r)}."""
        features = self.trunk(c)  # (b, l, m, f)
        return {m: self.heads[m](features[:, :, i]) for i, m in enumerate(self.config.modules)}


class ZhyperSquare(ZhyperDiag):
    """Zhyper with a square Z, which also mixes the ranks: r² numbers for each site and text."""

    def outputs(self, rank: int) -> int:
        return rank**2

    def z(self, c: Tensor) -> dict[str, Tensor]:
        return {m: z.unflatten(-1, (self.config.rank, -1)) for m, z in super().z(c).items()}


class TextToLoRA(nn.Module):
    """T2L (arXiv 2506.06105): a head emits A and B whole, r·(d_in + d_out) numbers a site."""

    reads_text = True

    def __init__(self, config: HyperConfig, layers: int, shapes: Shapes, d_text: int):
        super().__init__()
        self.config, self.shapes = config, {m: shapes[m] for m in config.modules}
        self.trunk = TRUNKS[config.trunk](config, layers, d_text)
        self.heads = nn.ModuleDict()
        for m, (d_in, d_out) in self.shapes.items():
            head = self.heads[m] = nn.Linear(self.trunk.width, config.rank * (d_in + d_out))
            A, B = lora_A(config.rank, d_in), torch.zeros(d_out, config.rank)
            nn.init.zeros_(head.weight)  # its authors' start: every text has the LoRA of the bias
            head.bias.data.copy_(torch.cat([A.flatten(), B.flatten()]))

    def forward(self, c: Tensor) -> Adapter:
        """The update of every site, a row for each of c (b, d_text)."""
        features, r, adapter = self.trunk(c), self.config.rank, {}
        for i, (m, (d_in, d_out)) in enumerate(self.shapes.items()):
            sizes = [r * d_in, r * d_out]
            A, B = self.heads[m](features[:, :, i]).split(sizes, dim=-1)  # (b, l, size)
            for l in range(A.shape[1]):
                A_l, B_l = A[:, l].unflatten(-1, (r, d_in)), B[:, l].unflatten(-1, (d_out, r))
                adapter[self.config.first + l, m] = LowRank(A_l, B_l, None, self.config.scale)
        return adapter


TRUNKS = {"gated": GatedTrunk, "paper": PaperTrunk}
HYPERNETWORKS = {
    "lora": StaticLoRA,
    "t2l": TextToLoRA,
    "zhyper-diag": ZhyperDiag,
    "zhyper-square": ZhyperSquare,
}
