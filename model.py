"""The two networks that everything else stands on: a decoder and a sentence encoder.

    ids -> GPT(ids, updates) -> logits            the language model, frozen once it is pretrained
    ids -> Encoder(ids, mask) -> c                one embedding for a whole description

The decoder has the block of Llama and Mistral, the encoder that of BERT. So either may be small and
trained from nothing, or have the weights of a real model (`from_pretrained`). Then `tokenizer` is
that model's own, and `source` its folder or name, as long as the weights stay as they are; or None,
by which the code tells real from fresh. (A GPT of a run folder has the run's tokenizer.)

This file knows nothing of LoRA but this: a linear layer may be given an *update*, a function of its
input whose result is added to its output. Updates travel as an argument, {(layer, module): update};
nothing is stored on a module, so two calls with different updates cannot disturb each other.

Letters for shapes, here and in the other files:
    b batch, of rows or texts   t tokens   d width   h heads   r rank   l layer   m module
    f width of a feature   d_text width of c
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data import _pretrained as pretrained

# the linears of one block, by their usual names
MODULES = ("q", "k", "v", "o", "gate", "up", "down")
Update = Callable[[Tensor], Tensor]  # (b, t, d_in) -> (b, t, d_out)
Updates = Mapping[tuple[int, str], Update]  # one update for each adapted site: (layer, module)


@dataclass(frozen=True)
class ModelConfig:
    """The size of a GPT or of an Encoder. Raises ValueError for one that cannot be built."""

    vocab_size: int = 1024
    block_size: int = 256  # the longest text, in tokens
    layers: int = 4
    heads: int = 4
    kv_heads: int = 4  # of keys and values, in a GPT: each serves heads / kv_heads query heads
    width: int = 128
    inner: int = 352  # the width inside the MLP
    eps: float = 1e-5  # of the norms
    theta: float = 10_000.0  # the base of a GPT's rotary angles
    tied: bool = True  # whether a GPT's output head is its token embedding again
    eos: int = 1  # the id of the token that ends a text

    def __post_init__(self):
        for name in ("vocab_size", "block_size", "layers", "heads", "kv_heads", "width", "inner"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name, parts in (("width", 2 * self.heads), ("heads", self.kv_heads)):
            if getattr(self, name) % parts:
                raise ValueError(f"{name} is {getattr(self, name)}: choose a multiple of {parts}")

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(d_in, d_out) of every linear of a GPT's block: {"q": (128, 128), ...}."""
        d, inner, kv = self.width, self.inner, self.width // self.heads * self.kv_heads
        attention = {"q": (d, d), "k": (d, kv), "v": (d, kv), "o": (d, d)}
        return attention | {"gate": (d, inner), "up": (d, inner), "down": (inner, d)}


def init_weights(module: nn.Module) -> None:
    """GPT-2's and BERT's start: every matrix normal with std 0.02, every bias zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


# ---- the decoder


class Linear(nn.Linear):
    """A linear layer that adds an update to its output when it is given one."""

    def forward(self, x: Tensor, update: Update | None = None) -> Tensor:
        y = super().forward(x)
        return y if update is None else y + update(x)


def rotary(positions: Tensor, size: int, theta: float) -> Tensor:
    """cos and sin, (2, ..., size), of the angles by which a head turns at positions (...).

    The angles are float32 whatever the model computes in: bf16 cannot tell 300 from 301.
    """
    speed = theta ** (-torch.arange(0, size, 2, device=positions.device).float() / size)
    angle = positions[..., None].float() * speed  # (..., t, size/2)
    angle = torch.cat([angle, angle], dim=-1)  # half-split: i turns with i + size/2 (Hugging Face)
    return torch.stack([angle.cos(), angle.sin()])


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Turn queries or keys (b, h, t, d/h) by their positions (RoFormer, arXiv 2104.09864)."""
    cos, sin = rope.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Block(nn.Module):
    """Llama's block: each half reads a normalised copy of the residual stream and adds to it.

    Grouped-query attention with rotary positions, then a SwiGLU MLP; every linear is separate.
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.head_size = layer, config.width // config.heads
        self.gqa = config.kv_heads < config.heads
        self.input_layernorm = nn.RMSNorm(config.width, config.eps)
        self.post_attention_layernorm = nn.RMSNorm(config.width, config.eps)
        for module, (d_in, d_out) in config.shapes.items():
            self.add_module(module, Linear(d_in, d_out, bias=False))

    def forward(self, x: Tensor, updates: Updates, rope: Tensor, mask=None, cache=None) -> Tensor:
        """(b, t, d) -> (b, t, d); `mask` and `cache` as GPT.features makes them."""

        def apply(module: str, x: Tensor) -> Tensor:
            return getattr(self, module)(x, updates.get((self.layer, module)))

        def heads(module: str, x: Tensor) -> Tensor:
            return apply(module, x).unflatten(-1, (-1, self.head_size)).transpose(1, 2)

        y = self.input_layernorm(x)
        q, k, v = heads("q", y), heads("k", y), heads("v", y)  # (b, h, t, d/h)
        q, k = rotate(q, rope), rotate(k, rope)
        if cache is not None:
            if self.layer in cache:  # what was read before comes first
                k = torch.cat([cache[self.layer][0], k], dim=2)
                v = torch.cat([cache[self.layer][1], v], dim=2)
            cache[self.layer] = k, v
        causal = mask is None
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=self.gqa)
        x = x + apply("o", y.transpose(1, 2).flatten(2))
        y = self.post_attention_layernorm(x)
        return x + apply("down", F.silu(apply("gate", y)) * apply("up", y))


class GPT(nn.Module):
    """A decoder-only language model of the Llama architecture.

    >>> GPT(ModelConfig())(torch.zeros(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 1024])
    """

    source = tokenizer = None  # see the top of this file
    HUB_NAMES = {  # patterns that turn the name of a parameter here into its name in real weights
        r"^(?!lm_head)": "model.",  # all but the output head
        r"\.([qkvo])\b": r".self_attn.\1_proj",
        r"\.(gate|up|down)\b": r".mlp.\1_proj",
    }

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = nn.RMSNorm(config.width, config.eps)
        self.lm_head = None if config.tied else Linear(config.width, config.vocab_size, bias=False)
        self.apply(init_weights)
        for block in self.layers:  # it adds twice to the stream: keep the stream's variance (GPT-2)
            for linear in (block.o, block.down):
                nn.init.normal_(linear.weight, std=0.02 / (2 * config.layers) ** 0.5)

    def linear(self, layer: int, module: str) -> Linear:
        """The linear layer of a site, for who merges or measures."""
        return getattr(self.layers[layer], module)

    def features(self, ids: Tensor, updates: Updates, cache=None, padding=None) -> Tensor:
        """The last hidden states, (b, t, d), of ids (b, t). Raises ValueError if t > block_size.

        Given a `cache`, at first an empty dict, a call continues where the one before ended. Then
        rows are padded on the left: row i of the first call begins with padding[i] ids of no text.
        """
        t, longest, mask = ids.shape[1], self.config.block_size, None
        if t > longest:
            raise ValueError(f"{t} tokens, the backbone reads {longest}: shorten the text")
        position = torch.arange(t, device=ids.device)  # (t,)
        if cache is not None:
            past = cache[0][0].shape[2] if cache else 0  # keys of layer 0
            key = torch.arange(past + t, device=ids.device)
            position = key[past:]  # counted with the padding: only their differences matter
            query = position[:, None]  # (t, 1)
            mask = (key <= query) & (key >= padding[:, None, None, None])  # (b, 1, t, past + t)
            mask = mask | (key == query)  # padding attends to itself: softmax of nothing is NaN
        return self.norm(self.through(self.embed_tokens(ids), updates, position, mask, cache))

    def through(
        self, x: Tensor, updates: Updates, position, mask=None, cache=None, layers=slice(None)
    ):
        """x (b, t, d) after some of the layers, all of them if not told; `position` (t,) or (b, t).

        `mask` (b, 1, t, keys) is true where a query may look; None: at itself and before.
        """
        rope = rotary(position, self.config.width // self.config.heads, self.config.theta)
        rope = rope.unsqueeze(-3)  # for all heads: (2, 1, t, d/h) or (2, b, 1, t, d/h)
        for block in self.layers[layers]:
            x = block(x, updates, rope, mask, cache)
        return x

    def logits(self, features: Tensor) -> Tensor:
        """(..., d) -> (..., vocab_size)."""
        return F.linear(features, (self.lm_head or self.embed_tokens).weight)

    def forward(self, ids: Tensor, updates: Updates | None = None) -> Tensor:
        """Logits (b, t, vocab_size) for the token after each of ids (b, t), under the updates."""
        return self.logits(self.features(ids, updates or {}))

    @classmethod
    def from_pretrained(cls, name: str) -> "GPT":
        """The Llama or Mistral in a folder, or of that name on the hub (data/_pretrained.py).

        Raises FileNotFoundError or ValueError for what is missing, damaged, or not built here.
        """
        return pretrained.read(cls, ModelConfig, name)


def sample(logits: Tensor, temperature: float, top_k: int | None, generator) -> Tensor:
    """The next token of each row, (b, 1), from logits (b, vocab_size).

    The likeliest at temperature 0; else drawn from the `top_k` likeliest, or all, by
    softmax(logits / temperature).
    """
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    logits, token = logits.float().topk(min(top_k or logits.shape[1], logits.shape[1]))  # (b, k)
    logits = logits - logits[:, :1]  # at most 0, so that a tiny temperature makes no inf - inf
    chosen = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
    return token.gather(1, chosen)


# ---- the encoder


class EncoderBlock(nn.Module):
    """BERT's block: each half adds to the stream, and the sum is normalised."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        d, self.heads = config.width, config.heads
        self.query, self.key, self.value, self.out = (nn.Linear(d, d) for _ in range(4))
        self.up, self.down = nn.Linear(d, config.inner), nn.Linear(config.inner, d)
        self.norm1, self.norm2 = (nn.LayerNorm(d, config.eps) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        linears = (self.query, self.key, self.value)
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in linears)
        y = F.scaled_dot_product_attention(q, k, v, mask[:, None, None])  # (b, h, t, d/h)
        x = self.norm1(x + self.out(y.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """BERT, and the mean over tokens. (A real one's vector of token type 0 is added to `position`.)

    Its LayerNorms, on the embeddings and behind each block, are what lets it learn quickly from
    nothing. Embeddings of different texts differ little at first, without them hardly at all.
    """

    source = tokenizer = None  # see the top of this file
    HUB_NAMES = {
        r"^(word|position)": r"embeddings.\1_embeddings",
        r"^norm": "embeddings.LayerNorm",
        r"^blocks": "encoder.layer",
        r"\.(query|key|value)\b": r".attention.self.\1",
        r"\.out\b": ".attention.output.dense",
        r"\.norm1": ".attention.output.LayerNorm",
        r"\.up\b": ".intermediate.dense",
        r"\.down\b": ".output.dense",
        r"\.norm2": ".output.LayerNorm",
    }

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.word = nn.Embedding(config.vocab_size, config.width)
        self.position = nn.Embedding(config.block_size, config.width)
        self.norm = nn.LayerNorm(config.width, config.eps)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.layers))
        self.apply(init_weights)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """c of each text, (b, d), from ids (b, t) and mask (b, t), true where there is a token."""
        at = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(self.word(ids) + self.position(at))  # (b, t, d)
        for block in self.blocks:
            x = block(x, mask)
        return (x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)

    @classmethod
    def from_pretrained(cls, name: str) -> "Encoder":
        """The BERT in a folder, or of that name on the hub; raises as GPT.from_pretrained."""
        return pretrained.read(cls, ModelConfig, name)
