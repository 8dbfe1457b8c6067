"""The two networks everything else stands on: a small GPT and a small sentence encoder.

    ids -> GPT(ids, updates) -> logits            the language model, frozen once it is pretrained
    ids -> Encoder(ids, mask) -> c                one vector for a whole description

This file knows nothing of LoRA but this: a linear layer may be handed an *update*, a function of its input whose
result is added to its output. Updates travel as an argument, {(layer, module): update}; nothing is ever stored
on a module, so two calls with different updates cannot disturb each other.

Letters for shapes, here and in the other files:
    b batch   t tokens   d width   h heads   r rank   l layer   m module   n texts
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MODULES = ("q", "k", "v", "o", "up", "down")  # the linears of one block, by their usual names
Update = Callable[[Tensor], Tensor]  # (b, t, d_in) -> (b, t, d_out)
Updates = Mapping[tuple[int, str], Update]  # one update for a site: (layer, module)


@dataclass(frozen=True)
class ModelConfig:
    """The size of a GPT or of an Encoder. Raises ValueError for a size that cannot be built."""

    vocab: int = 1024
    layers: int = 4
    heads: int = 4
    width: int = 128
    context: int = 256  # the longest text, in tokens

    def __post_init__(self):
        for name, value in vars(self).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}: it must be a whole number, at least 1")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be split into {self.heads} heads: choose a multiple")

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(d_in, d_out) of every linear of a block, e.g. {"q": (128, 128), ..., "down": (512, 128)}."""
        d = self.width
        return {"q": (d, d), "k": (d, d), "v": (d, d), "o": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}


class Linear(nn.Linear):
    """A linear layer that adds an update to its output when it is handed one."""

    def forward(self, x: Tensor, update: Update | None = None) -> Tensor:
        y = super().forward(x)
        return y if update is None else y + update(x)


class Cache:
    """Keys and values of the positions read so far, so that a new token costs one position and not all of them.

    Rows may have different lengths: row i has `length[i]` positions, and what is read next lands behind them.
    """

    def __init__(self, config: ModelConfig, rows: int, size: int, device: torch.device, dtype: torch.dtype):
        shape = (config.layers, rows, config.heads, size, config.width // config.heads)
        self.k, self.v = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        self.length = torch.zeros(rows, dtype=torch.long, device=device)
        self.slots = torch.arange(size, device=device)

    def positions(self, t: int) -> Tensor:
        """Where the next t tokens of every row go, (b, t); `store` will put them there."""
        self.at = self.length[:, None] + self.slots[:t]
        return self.at

    def mask(self) -> Tensor:
        """What is added to the scores of those tokens, (b, 1, t, size): 0 for slots up to a token's own, else -∞."""
        hidden = self.slots > self.at[:, :, None]
        return torch.zeros_like(hidden, dtype=self.k.dtype).masked_fill_(hidden, -torch.inf)[:, None]

    def store(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put k and v (b, h, t, d/h) at `positions`; return all keys and values, (b, h, size, d/h)."""
        at = self.at[:, None, :, None].expand_as(k)
        return self.k[layer].scatter_(2, at, k), self.v[layer].scatter_(2, at, v)


class Attention(nn.Module):
    """Multi-head self-attention with separate q, k, v and o; causal unless a mask is given."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        d = config.width
        self.layer, self.n_heads = layer, config.heads
        self.q, self.k, self.v, self.o = Linear(d, d), Linear(d, d), Linear(d, d), Linear(d, d)

    def forward(self, x: Tensor, updates: Updates, mask: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        b, t, d = x.shape

        def heads(name: str) -> Tensor:
            y = getattr(self, name)(x, updates.get((self.layer, name)))  # (b, t, d)
            return y.view(b, t, self.n_heads, -1).transpose(1, 2)  # (b, h, t, d/h)

        q, k, v = heads("q"), heads("k"), heads("v")
        if cache is not None:
            k, v = cache.store(self.layer, k, v)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o(y.transpose(1, 2).reshape(b, t, d), updates.get((self.layer, "o")))


class MLP(nn.Module):
    """up, GELU, down. GPT-2 uses the tanh form of GELU, BERT the exact one."""

    def __init__(self, config: ModelConfig, layer: int, gelu: str):
        super().__init__()
        self.layer, self.gelu = layer, gelu
        self.up, self.down = Linear(config.width, 4 * config.width), Linear(4 * config.width, config.width)

    def forward(self, x: Tensor, updates: Updates) -> Tensor:
        x = F.gelu(self.up(x, updates.get((self.layer, "up"))), approximate=self.gelu)
        return self.down(x, updates.get((self.layer, "down")))


class GPTBlock(nn.Module):
    """Pre-LayerNorm, as in GPT-2: each half reads a normalised copy and adds to the stream."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attention, self.mlp = Attention(config, layer), MLP(config, layer, "tanh")

    def forward(self, x: Tensor, updates: Updates, mask: Tensor | None, cache: Cache | None) -> Tensor:
        x = x + self.attention(self.norm1(x), updates, mask, cache)
        return x + self.mlp(self.norm2(x), updates)


class EncoderBlock(nn.Module):
    """Post-LayerNorm, as in BERT: each half adds to the stream, and the sum is normalised."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attention, self.mlp = Attention(config, layer), MLP(config, layer, "none")

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, {}, mask))
        return self.norm2(x + self.mlp(x, {}))


class GPT(nn.Module):
    """A decoder-only language model with GPT-2's block, learned positions and an output head tied to the input.

    >>> GPT(ModelConfig())(torch.zeros(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 1024])
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.merged = False  # whether its weights hold an update already: then it takes no second one
        self.token, self.position = nn.Embedding(config.vocab, config.width), nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(GPTBlock(config, layer) for layer in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.apply(init_weights)
        for name, weight in self.named_parameters():  # each block adds twice to the stream: keep its variance (GPT-2)
            if name.endswith(("o.weight", "down.weight")):
                nn.init.normal_(weight, std=0.02 / (2 * config.layers) ** 0.5)

    def linear(self, layer: int, module: str) -> Linear:
        """The linear layer of a site."""
        block = self.blocks[layer]
        return getattr(block.mlp if module in ("up", "down") else block.attention, module)

    def features(self, ids: Tensor, updates: Updates | None = None, cache: Cache | None = None) -> Tensor:
        """The last hidden states, (b, t, d), of ids (b, t). Raises ValueError if t is over the context."""
        t = ids.shape[1]
        if t > self.config.context:
            raise ValueError(f"the text is {t} tokens long, the backbone reads {self.config.context}: shorten it")
        if cache is None:
            mask, at = None, torch.arange(t, device=ids.device)
        else:
            at, mask = cache.positions(t), cache.mask()
        x = self.token(ids) + self.position(at)  # (b, t, d)
        for block in self.blocks:
            x = block(x, updates or {}, mask, cache)
        return self.norm(x)

    def logits(self, features: Tensor) -> Tensor:
        """(..., d) -> (..., vocab): the head is the token embedding again."""
        return F.linear(features, self.token.weight)

    def forward(self, ids: Tensor, updates: Updates | None = None, cache: Cache | None = None) -> Tensor:
        """Logits (b, t, vocab) for the token after each of ids (b, t), with `updates` on the weights they name."""
        return self.logits(self.features(ids, updates, cache))


class Encoder(nn.Module):
    """A sentence encoder: BERT's block, LayerNorm on the embeddings, the mean over the tokens that are not padding.

    The LayerNorm on the embeddings and behind each block is what makes it learn quickly from nothing: without
    it fresh embeddings are so small that texts hardly differ.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config, self.width = config, config.width
        self.token, self.position = nn.Embedding(config.vocab, config.width), nn.Embedding(config.context, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(EncoderBlock(config, layer) for layer in range(config.layers))
        self.apply(init_weights)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """One vector c for each text, (n, d), from ids (n, t) and mask (n, t), true where a token is not padding."""
        x = self.norm(self.token(ids) + self.position(torch.arange(ids.shape[1], device=ids.device)))  # (n, t, d)
        for block in self.blocks:
            x = block(x, mask[:, None, None])
        weight = mask[:, :, None].to(x.dtype)
        return (x * weight).sum(1) / weight.sum(1)


def init_weights(module: nn.Module) -> None:
    """GPT-2's and BERT's start: every matrix N(0, 0.02), every bias zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


class ContextTable(nn.Module):
    """What stands in an Encoder's place where a context is told by its name: one vector for each, learned or one-hot.

    It cannot serve a context that it was not made with; that is what reading a text is for.
    """

    def __init__(self, names: Sequence[str], width: int | None):
        """`width` of a learned vector; None for one-hot vectors, as wide as there are names."""
        super().__init__()
        self.index, self.width = {name: i for i, name in enumerate(names)}, width or len(names)
        vectors = torch.eye(len(names)) if width is None else torch.randn(len(names), width)
        self.vectors = nn.Parameter(vectors, requires_grad=width is not None)

    def forward(self, names: Sequence[str]) -> Tensor:
        """n names -> (n, d). Raises ValueError for a name that is not in the table."""
        for name in names:
            if name not in self.index:
                raise ValueError(
                    f"unknown context {name!r}: this method reads no text and serves only what it was trained on, "
                    f"{', '.join(list(self.index)[:4])}, …"
                )
        return self.vectors[[self.index[name] for name in names]]
