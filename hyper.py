"""Low-rank updates, and the networks that generate them from a text.

    shared LoRA    ΔW[l,m] = scale · B[l,m] · A[l,m]                      one for everybody: reads no text
    Zhyper         ΔW[l,m] = scale · B[l,m] · Z[l,m](c) · A[l,m]          A and B shared, Z = diag(z) or an r×r square
    Text-to-LoRA   ΔW[l,m] = scale · B[l,m](c) · A[l,m](c)                A and B generated whole
    oracle         ΔW[l,m] = scale · B[c,l,m] · A[c,l,m]                  one LoRA for each context: an upper bound

c is the embedding of the description, (l, m) the *site*: layer and module. A *trunk* gives every site a feature
vector that depends on c; a *head* for each module, shared by all layers, turns it into z (or into A and B).
Source: "Zhyper: Factorized Hypernetworks for Conditioned LLM Fine-Tuning", arXiv 2510.19733.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model import MODULES


@dataclass(frozen=True)
class AdapterConfig:
    """What generates the updates, and how large it is. Raises ValueError for what cannot be built."""

    kind: str = "zhyper-diag"  # a key of ADAPTERS
    rank: int = 32
    alpha: float = 64.0
    modules: tuple[str, ...] = ("q", "k", "v", "o")
    trunk: str = "gated"  # a key of TRUNKS
    hidden: int = 224  # gated trunk: the width h of a feature
    latent: int = 128  # paper trunk: the width of its residual stream
    head: int = 512  # paper trunk: the width of a feature
    dropout: float = 0.05  # paper trunk
    spread: float = 8.0  # how strongly z differs between contexts at the start

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def __post_init__(self):
        check_choice("method", self.kind, ADAPTERS)
        check_choice("trunk", self.trunk, TRUNKS)
        for module in self.modules:
            check_choice("module", module, MODULES)
        if not self.modules or len(set(self.modules)) < len(self.modules):
            raise ValueError(f"modules {','.join(self.modules)!r}: name each at most once, and at least one of them")
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}: it must be at least 1")
        if self.spread <= 0:
            raise ValueError(f"spread is {self.spread}: with z = 0 and B = 0 no gradient ever flows; choose 1 to 16")


def check_choice(what: str, got: str, known) -> None:
    """Raise ValueError, naming what is known, if `got` is not."""
    if got not in known:
        raise ValueError(f"unknown {what} {got!r}: choose from {', '.join(known)}")


@dataclass
class LowRank:
    """The one update of every method, applied in rank space: ΔW is never built to apply it.

    A (r, d_in) or (b, r, d_in)    B (d_out, r) or (b, d_out, r)    z None, (b, r) or (b, r, r)

    >>> update = LowRank(A=torch.ones(1, 2), B=torch.ones(2, 1), z=torch.tensor([[3.0]]), scale=0.5)
    >>> update(torch.tensor([[[1.0, 1.0]]]))  # x (b=1, t=1, d_in=2): 0.5 · 3 · (1 + 1) for each output
    tensor([[[3., 3.]]])
    """

    A: Tensor
    B: Tensor
    z: Tensor | None
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        """ΔW x: (b, t, d_in) -> (b, t, d_out)."""
        return self.scale * self.mix(x @ self.A.mT) @ self.B.mT  # scale · ((x Aᵀ) ⊙ z) Bᵀ

    def mix(self, a: Tensor) -> Tensor:
        """Z a, in rank space: (b, t, r) -> (b, t, r)."""
        if self.z is None:
            return a
        return a * self.z[:, None] if self.z.dim() == 2 else a @ self.z.mT

    def folded(self) -> Tensor:
        """A' = Z A, (b, r, d_in): with B it is a plain LoRA, ΔW = scale · B A'."""
        if self.z is None:
            return self.A
        return self.z[:, :, None] * self.A if self.z.dim() == 2 else self.z @ self.A

    def delta(self) -> Tensor:
        """ΔW itself, (b, d_out, d_in), or (d_out, d_in) for a shared LoRA: for merging and measuring only."""
        return self.scale * self.B @ self.folded()

    def terms(self) -> Tensor:
        """The size of each of the r rank-one terms of ΔW, (b, r), with z's sign if z is a diagonal.

        z alone says little, because what B grows by, z can shrink by; this product does not depend on how they share.
        """
        size = self.scale * self.B.norm(dim=-2) * self.folded().norm(dim=-1)
        return size * self.z.sign() if self.z is not None and self.z.dim() == 2 else size

    def numbers(self) -> int:
        """How many numbers are a context's own: those of z, or of A and B where they are generated whole."""
        own = [w for w in (self.A, self.B) if w.dim() == 3] if self.z is None else [self.z]
        return sum(w[0].numel() for w in own)

    def rows(self, index: Tensor) -> "LowRank":
        """The update whose row i is row index[i] of this one, for batches in which a context serves several rows."""
        A, B = (w if w.dim() == 2 else w[index] for w in (self.A, self.B))
        return LowRank(A, B, None if self.z is None else self.z[index], self.scale)


Adapters = dict[tuple[int, str], LowRank]  # {site: update}: what an adapter network returns and a GPT takes


class GatedTrunk(nn.Module):
    """Ours: u = SiLU(Linear(LayerNorm(Linear(c)))), and a site's feature is its gate times u.

    differs from the paper: the site multiplies the context instead of being concatenated to it, so what a
    site does with a text is a product from the first step on, not something that an MLP must learn to compute.
    """

    def __init__(self, config: AdapterConfig, layers: int, d_text: int):
        super().__init__()
        self.centre = nn.BatchNorm1d(d_text, affine=False)
        self.text = nn.Sequential(nn.Linear(d_text, 64), nn.LayerNorm(64), nn.Linear(64, config.hidden), nn.SiLU())
        self.gate = nn.Parameter(torch.randn(layers, len(config.modules), config.hidden))

    def forward(self, c: Tensor) -> Tensor:
        """(b, d_text) -> one feature for each site, (b, l, m, h)."""
        u = self.text(self.centre(c))  # (b, h)
        return self.gate * u[:, None, None]  # g[l,m] ⊙ u


class PaperTrunk(nn.Module):
    """The paper's: embeddings of text, depth and module type, concatenated, through a residual MLP (its section 3).

    differs from the paper: `centre`, because embeddings of a fresh encoder are almost parallel; it has no parameters.
    """

    def __init__(self, config: AdapterConfig, layers: int, d_text: int):
        super().__init__()
        n, dropout = config.latent, config.dropout

        def mlp(d_out: int) -> list[nn.Module]:
            return [nn.Linear(n, 4 * n), nn.SiLU(), nn.Dropout(dropout), nn.Linear(4 * n, d_out), nn.SiLU()]

        self.centre = nn.BatchNorm1d(d_text, affine=False)
        self.text = nn.Sequential(nn.Linear(d_text, n // 2), nn.LayerNorm(n // 2))
        self.depth = nn.Sequential(nn.Embedding(layers, n // 4), nn.LayerNorm(n // 4))
        self.module = nn.Sequential(nn.Embedding(len(config.modules), n // 4), nn.LayerNorm(n // 4))
        self.mixer = nn.Sequential(nn.Dropout(dropout), *mlp(n), nn.Dropout(dropout))
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(n), *mlp(n), nn.Dropout(dropout)) for _ in range(2))
        self.out = nn.Sequential(nn.LayerNorm(n), *mlp(config.head))

    def forward(self, c: Tensor) -> Tensor:
        """(b, d_text) -> one feature for each site, (b, l, m, head)."""
        depth, module = self.depth[0].weight, self.module[0].weight
        size = (len(c), len(depth), len(module), -1)
        text = self.text(self.centre(c))[:, None, None].expand(size)
        depth = self.depth[1](depth)[None, :, None].expand(size)
        module = self.module[1](module)[None, None].expand(size)
        x = self.mixer(torch.cat([text, depth, module], dim=-1))  # (b, l, m, latent)
        for block in self.blocks:
            x = x + block(x)
        return self.out(x)


TRUNKS = {"gated": GatedTrunk, "paper": PaperTrunk}


def lora_A(*shape: int) -> Tensor:
    """LoRA's usual start for A (..., r, d_in): kaiming-uniform, that is uniform within 1/√d_in. B starts at zero."""
    return (2 * torch.rand(shape) - 1) / shape[-1] ** 0.5


class SharedLoRA(nn.Module):
    """One A and one B for every site, for all contexts: LoRA (arXiv 2106.09685), which reads no text."""

    conditioned = False

    def __init__(self, config: AdapterConfig, layers: int, shapes: Mapping[str, tuple[int, int]], d_text: int):
        super().__init__()
        self.config, r = config, config.rank
        self.A = nn.ParameterDict({m: lora_A(layers, r, shapes[m][0]) for m in config.modules})
        self.B = nn.ParameterDict({m: torch.zeros(layers, shapes[m][1], r) for m in config.modules})

    def forward(self, c: Tensor | None = None) -> Adapters:
        """The update of every site; c (b, d_text), one row a context."""
        z = self.z(c)
        return {
            (l, m): LowRank(A, B, None if z is None else z[m][:, l], self.config.scale)
            for m in self.config.modules
            for l, (A, B) in enumerate(zip(self.A[m], self.B[m], strict=True))
        }

    def z(self, c: Tensor | None) -> dict[str, Tensor] | None:
        return None


class ZhyperDiag(SharedLoRA):
    """Zhyper with Z = diag(z): r numbers for each site and context (the paper's section 3)."""

    conditioned = True

    def __init__(self, config: AdapterConfig, layers: int, shapes: Mapping[str, tuple[int, int]], d_text: int):
        super().__init__(config, layers, shapes, d_text)
        self.trunk = TRUNKS[config.trunk](config, layers, d_text)
        self.heads = nn.ModuleDict({m: nn.Linear(feature_width(config), self.numbers()) for m in config.modules})
        self.start()

    def numbers(self) -> int:
        """How many numbers a site's z has."""
        return self.config.rank

    def start(self) -> None:
        """B = 0 makes step 0 the frozen model; z must then differ strongly between contexts from step 0.

        If it does not, training first learns one adapter for everybody and leaves it late, if ever.
        """
        for head in self.heads.values():
            fan_in = head.in_features * self.numbers() / self.config.rank  # a square sums over r numbers, diag over one
            nn.init.normal_(head.weight, std=self.config.spread / fan_in**0.5)
            nn.init.zeros_(head.bias)

    def z(self, c: Tensor) -> dict[str, Tensor]:
        """z of every site by module: {m: (b, l, r)}; for the square {m: (b, l, r, r)}."""
        features = self.trunk(c)  # (b, l, m, h)
        return {m: self.heads[m](features[:, :, i]) for i, m in enumerate(self.config.modules)}


class ZhyperSquare(ZhyperDiag):
    """Zhyper with a full r×r square Z, which also mixes the ranks: r² numbers for each site and context."""

    def numbers(self) -> int:
        return self.config.rank**2

    def z(self, c: Tensor) -> dict[str, Tensor]:
        return {m: z.unflatten(-1, (self.config.rank, -1)) for m, z in super().z(c).items()}


class TextToLoRA(nn.Module):
    """T2L (arXiv 2506.06105): the head emits A and B themselves, r·(d_in + d_out) numbers for each site."""

    conditioned = True

    def __init__(self, config: AdapterConfig, layers: int, shapes: Mapping[str, tuple[int, int]], d_text: int):
        super().__init__()
        self.config, self.shapes = config, {m: shapes[m] for m in config.modules}
        self.trunk = TRUNKS[config.trunk](config, layers, d_text)
        self.heads = nn.ModuleDict()
        for m, (d_in, d_out) in self.shapes.items():
            head = nn.Linear(feature_width(config), config.rank * (d_in + d_out))
            nn.init.zeros_(head.weight)  # every context starts from the same LoRA init, held by the bias
            with torch.no_grad():
                head.bias.copy_(torch.cat([lora_A(config.rank, d_in).flatten(), torch.zeros(d_out * config.rank)]))
            self.heads[m] = head

    def forward(self, c: Tensor) -> Adapters:
        """The update of every site; c (b, d_text), one row a context."""
        features, r = self.trunk(c), self.config.rank
        updates = {}
        for i, (m, (d_in, d_out)) in enumerate(self.shapes.items()):
            A, B = self.heads[m](features[:, :, i]).split([r * d_in, r * d_out], dim=-1)  # (b, l, r·d)
            A, B = A.unflatten(-1, (r, d_in)), B.unflatten(-1, (d_out, r))
            updates |= {(l, m): LowRank(A[:, l], B[:, l], None, self.config.scale) for l in range(A.shape[1])}
        return updates


class LoRAPerContext(nn.Module):
    """A LoRA of its own for each of n contexts, nothing shared: what T2L is without a trunk, when c is one-hot."""

    conditioned = True

    def __init__(self, config: AdapterConfig, layers: int, shapes: Mapping[str, tuple[int, int]], n: int):
        super().__init__()
        self.config, r = config, config.rank
        self.A = nn.ParameterDict({m: lora_A(n, layers, r, shapes[m][0]) for m in config.modules})
        self.B = nn.ParameterDict({m: torch.zeros(n, layers, shapes[m][1], r) for m in config.modules})

    def forward(self, c: Tensor) -> Adapters:
        """The update of every site; c (b, n), one one-hot row a context. Raises ValueError for anything between two."""
        if not (c.amax(-1) == 1).all():
            raise ValueError("each context has a LoRA of its own and there is none between two: give one of them")
        updates, context = {}, c.argmax(-1)
        for m in self.config.modules:
            A, B = self.A[m][context], self.B[m][context]  # (b, l, r, d_in), (b, l, d_out, r)
            updates |= {(l, m): LowRank(A[:, l], B[:, l], None, self.config.scale) for l in range(A.shape[1])}
        return updates


ADAPTERS = {
    "lora": SharedLoRA,
    "oracle": LoRAPerContext,
    "t2l": TextToLoRA,
    "zhyper-diag": ZhyperDiag,
    "zhyper-square": ZhyperSquare,
}


def feature_width(config: AdapterConfig) -> int:
    return config.hidden if config.trunk == "gated" else config.head


def count_parameters(config: AdapterConfig, layers: int, shapes: Mapping[str, tuple[int, int]], d_text: int) -> int:
    """How many parameters the adapter trains, by formula, without building it (tests hold it to built ones).

    d_text is the width of c: of the text embedding, or for the oracle the number of contexts.

    >>> shapes = {"q": (4096, 4096), "v": (4096, 1024)}  # Mistral-7B
    >>> count_parameters(AdapterConfig("zhyper-diag", 8, modules=("q", "v"), trunk="paper"), 32, shapes, 1024)
    4207632
    """
    r, n, h, m = config.rank, config.latent, config.head, len(config.modules)
    lora = layers * sum(r * (d_in + d_out) for d_in, d_out in (shapes[m] for m in config.modules))
    if config.kind in ("lora", "oracle"):
        return lora * (d_text if config.kind == "oracle" else 1)

    def linear(d_in: int, d_out: int) -> int:
        return d_in * d_out + d_out

    if config.trunk == "gated":
        trunk = linear(d_text, 64) + 2 * 64 + linear(64, config.hidden) + layers * m * config.hidden
    else:
        mlp = linear(n, 4 * n) + linear(4 * n, n)
        embeddings = linear(d_text, n // 2) + (layers + m) * (n // 4) + 2 * n  # the last for three LayerNorms
        trunk = embeddings + mlp + 2 * (2 * n + mlp) + 2 * n + linear(n, 4 * n) + linear(4 * n, h)
    outputs = {"zhyper-diag": lambda _: r, "zhyper-square": lambda _: r * r, "t2l": lambda m: r * sum(shapes[m])}
    heads = sum(linear(feature_width(config), outputs[config.kind](m)) for m in config.modules)
    return trunk + heads + (0 if config.kind == "t2l" else lora)
