"""The two networks that everything else stands on: a decoder and a sentence encoder.

    ids -> GPT(ids, updates) -> logits            the language model, frozen once it is pretrained
    ids -> Encoder(ids, mask) -> e                an embedding of a statement, or of a whole text

The decoder is built of Llama's and Mistral's blocks, the encoder of BERT's. Therefore each of them
can be small and trained from nothing, or have the weights of a real model (`from_pretrained`).

This file knows only one thing about LoRA: a linear layer may be given an *update*, a function of
its input whose result is added to its output. Updates travel through the model as an argument,
{(layer, module): update}. Nothing is stored on a module, so two calls with different updates cannot
disturb each other.

Letters for shapes, here and in the other files:
    b batch (rows or texts)   t tokens   d width   h heads   s size of a head, d / h   r rank
    l layer   m module   f width of a trunk's features   p positions of a row that are computed
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.pretrained import read_bert, read_llama  # a real model's sizes and weights

# the linear layers of one block, by their usual names
MODULES = ("q", "k", "v", "o", "gate", "up", "down")
Update = Callable[[Tensor], Tensor]  # (b, t, d_in) -> (b, t, d_out)
Updates = Mapping[tuple[int, str], Update]  # one update for each adapted site: (layer, module)


def init_weights(module: nn.Module) -> None:
    """GPT-2's and BERT's start: every matrix normal with a std of 0.02, every bias zero."""
    # recurse=False: `apply` calls this for every module, so each looks after its own
    for name, parameter in module.named_parameters(recurse=False):
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02)


def split_heads(x: Tensor, head_size: int) -> Tensor:
    """(b, t, d) -> (b, h, t, s)"""
    x = x.unflatten(-1, (-1, head_size))  # (b, t, h, s)
    # contiguous: on Apple's GPUs some versions of torch attend wrongly to a transposed view
    return x.transpose(1, 2).contiguous()


# ---- the decoder


@dataclass(frozen=True)
class ModelConfig:
    """The size of a GPT."""

    vocab_size: int
    block_size: int  # the longest text, in tokens
    layers: int
    heads: int  # of queries
    kv_heads: int  # of keys and values: each serves heads / kv_heads of the queries' heads
    width: int
    inner: int  # the width inside the MLP
    eps: float = 1e-5  # of the norms
    theta: float = 10_000.0  # the base of the rotary angles
    tied: bool = True  # whether the output head is the token embedding again
    eos: tuple[int, ...] = (1,)  # tokens that end a text; a real model may have several

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(d_in, d_out) of every linear layer of a block: {"q": (128, 128), ...}."""
        d = self.width
        d_kv = self.head_size * self.kv_heads
        return {
            "q": (d, d),
            "k": (d, d_kv),
            "v": (d, d_kv),
            "o": (d, d),
            "gate": (d, self.inner),
            "up": (d, self.inner),
            "down": (self.inner, d),
        }


class Linear(nn.Linear):
    """A linear layer that adds an update to its output when it is given one."""

    def forward(self, x: Tensor, update: Update | None = None) -> Tensor:
        y = super().forward(x)
        if update is None:
            return y
        return y + update(x)


def rotary(t: int, head_size: int, theta: float, device: torch.device) -> Tensor:
    """cos and sin, (2, t, s), of the angles by which a head's numbers turn at t positions.

    Numbers i and i + s/2 of a query or a key are the two coordinates of a point: with s = 4 the
    pairs are (0, 2) and (1, 3). At position n it is turned by the angle n · theta^(-2i/s). The
    product of a query and a key then depends on how far apart they are (RoFormer, arXiv
    2104.09864).
    """
    n = torch.arange(t, device=device).float()
    i = torch.arange(head_size // 2, device=device).float()
    angle = n[:, None] * theta ** (-2 * i / head_size)  # (t, s/2)
    angle = torch.cat([angle, angle], dim=-1)  # (t, s): number i + s/2 turns as i does
    return torch.stack([angle.cos(), angle.sin()])


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Turn queries or keys, (b, h, t, s), by the angles that `rotary` made."""
    cos, sin = rope
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


class Block(nn.Module):
    """Llama's block: each half reads a normalised copy of the residual stream and adds to it.

    Grouped-query attention with rotary positions, then a SwiGLU MLP. No linear layer has a bias.
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.config = config
        self.layer = layer
        self.input_layernorm = nn.RMSNorm(config.width, config.eps)
        self.post_attention_layernorm = nn.RMSNorm(config.width, config.eps)
        for module, (d_in, d_out) in config.shapes.items():
            self.add_module(module, Linear(d_in, d_out, bias=False))  # self.q, self.k, ...

    def forward(
        self, x: Tensor, updates: Updates, rope: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        """(b, t, d) -> (b, t, d). `rope` (2, t, s) is what `rotary` makes.

        Rows are filled up on the right, and no token looks ahead, so there is no mask for padding.

        The last layer may be given `positions` (b, p), those of each row whose result is wanted:
        then only these are computed, (b, p, d), which saves most of that layer's time.
        """

        def project(module: str, x: Tensor) -> Tensor:  # by one linear layer and its update
            return getattr(self, module)(x, updates.get((self.layer, module)))

        size = self.config.head_size
        y = self.input_layernorm(x)
        q = rotate(split_heads(project("q", y), size), rope)  # (b, h, t, s)
        k = rotate(split_heads(project("k", y), size), rope)  # (b, kv_heads, t, s)
        v = split_heads(project("v", y), size)
        grouped = self.config.kv_heads < self.config.heads
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        y = y.transpose(1, 2).flatten(2)  # (b, t, d)
        # All tokens were needed as keys and values. From here on no token looks at another.
        if positions is not None:
            row = torch.arange(len(x), device=x.device)[:, None]  # (b, 1)
            x = x[row, positions]  # (b, p, d): of row i those at positions[i]
            y = y[row, positions]
        x = x + project("o", y)
        y = self.post_attention_layernorm(x)
        y = F.silu(project("gate", y)) * project("up", y)  # (b, t, inner) or (b, p, inner)
        return x + project("down", y)


class GPT(nn.Module):
    """A decoder-only language model of the Llama architecture.

    >>> sizes = ModelConfig(1024, block_size=9, layers=2, heads=4, kv_heads=2, width=32, inner=64)
    >>> GPT(sizes)(torch.zeros(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 1024])
    """

    pretrained_name: str | None = None  # the folder or hub name, if it has a real model's weights

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = nn.RMSNorm(config.width, config.eps)
        if not config.tied:
            self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.apply(init_weights)
        # A block adds to the stream twice. Smaller weights there keep its variance (GPT-2).
        for block in self.layers:
            for weight in (block.o.weight, block.down.weight):
                nn.init.normal_(weight, std=0.02 / (2 * config.layers) ** 0.5)

    def linear(self, layer: int, module: str) -> Linear:
        """The linear layer of a site."""
        return getattr(self.layers[layer], module)

    def run_layers(
        self,
        x: Tensor,
        updates: Updates,
        start: int = 0,
        end: int | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """x (b, t, d) through layers[start:end], of which there must be one or more.

        Given `positions` (b, p), the last of these layers computes only those: (b, p, d).
        """
        rope = rotary(x.shape[1], self.config.head_size, self.config.theta, x.device)
        *lower, last = self.layers[start:end]
        for block in lower:
            x = block(x, updates, rope)
        return last(x, updates, rope, positions)

    def logits(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., vocab_size), from the hidden states above the last layer."""
        head = self.embed_tokens if self.config.tied else self.lm_head
        return F.linear(self.norm(x), head.weight)

    def forward(self, ids: Tensor, updates: Updates | None = None) -> Tensor:
        """Logits (b, t, vocab_size) for the token after each of ids (b, t), under the updates."""
        x = self.embed_tokens(ids)  # (b, t, d)
        x = self.run_layers(x, updates or {})
        return self.logits(x)

    @classmethod
    def from_pretrained(cls, name: str) -> "GPT":
        """The Llama or Mistral in a folder, or of that name on the hub.

        Raises FileNotFoundError or ValueError for what is missing, damaged or not built here.
        """
        sizes, weights = read_llama(name)
        return with_weights(cls, ModelConfig(**sizes), weights, name)


# ---- the sentence encoder


@dataclass(frozen=True)
class EncoderConfig:
    """The size of an Encoder."""

    vocab_size: int
    block_size: int  # the longest text, in tokens
    layers: int
    heads: int
    width: int
    inner: int  # the width inside the MLP
    eps: float = 1e-5  # of the norms
    first_token: bool = False  # whether the first token's state is taken, not the mean of all
    normalize: bool = False  # whether the embedding is scaled to length 1


class EncoderBlock(nn.Module):
    """BERT's block: attention in both directions, then an MLP; each adds, and is normalised."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        width = config.width
        self.head_size = width // config.heads
        for name in ("query", "key", "value", "out"):
            self.add_module(name, nn.Linear(width, width))
        self.norm1 = nn.LayerNorm(width, config.eps)
        self.up = nn.Linear(width, config.inner)
        self.down = nn.Linear(config.inner, width)
        self.norm2 = nn.LayerNorm(width, config.eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(b, t, d) -> (b, t, d), where mask (b, 1, 1, t) is true at tokens, false at padding."""
        q = split_heads(self.query(x), self.head_size)  # (b, h, t, s)
        k = split_heads(self.key(x), self.head_size)
        v = split_heads(self.value(x), self.head_size)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        y = y.transpose(1, 2).flatten(2)  # (b, t, d)
        x = self.norm1(x + self.out(y))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """BERT, and one embedding of a text made of its hidden states.

    Without a block it is the mean over a text's tokens of LayerNorm(word + position).
    """

    pretrained_name: str | None = None  # the folder or hub name, if it has a real model's weights

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.word = nn.Embedding(config.vocab_size, config.width)
        self.position = nn.Embedding(config.block_size, config.width)
        self.norm = nn.LayerNorm(config.width, config.eps)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.layers))
        self.apply(init_weights)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """One embedding a text, (b, d), from ids (b, t) and mask (b, t), false at padding."""
        x = self.word(ids) + self.position.weight[: ids.shape[1]]  # (b, t, d)
        x = self.norm(x)
        for block in self.blocks:
            x = block(x, mask[:, None, None])  # (b, t) -> (b, 1, 1, t)
        if self.config.first_token:
            e = x[:, 0]  # (b, d)
        else:
            total = (x * mask[:, :, None]).sum(1)
            e = total / mask.sum(1, keepdim=True)  # the mean; padding does not count
        if self.config.normalize:
            e = F.normalize(e, dim=-1)
        return e

    @classmethod
    def from_pretrained(cls, name: str) -> "Encoder":
        """The BERT in a folder, or of that name on the hub; raises as GPT.from_pretrained does."""
        sizes, weights = read_bert(name)
        return with_weights(cls, EncoderConfig(**sizes), weights, name)


def with_weights(
    kind: type[GPT] | type[Encoder],
    config: ModelConfig | EncoderConfig,
    weights: dict[str, Tensor],
    name: str,
):
    """A network with these weights. Raises ValueError if they are not exactly its own."""
    with torch.device("meta"):  # parameters without memory, whose start costs nothing
        network = kind(config)
    try:
        # assign: the tensors become its parameters; all names and shapes are compared
        network.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{name} is incomplete or not built here: {reason}") from None
    folder = Path(name)
    network.pretrained_name = str(folder.resolve()) if folder.is_dir() else name
    return network
