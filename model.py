"""The two networks that everything else stands on: a decoder and a sentence encoder.

    ids -> GPT(ids, updates) -> logits            the language model, frozen once it is pretrained
    ids -> Encoder(ids, mask) -> c                one embedding for a whole description

The decoder is built of Llama's and Mistral's blocks, the encoder of BERT's. Therefore each of them
can be small and trained from nothing, or have the weights of a real model (`from_pretrained`).

This file knows only one thing about LoRA: a linear layer may be given an *update*, a function of
its input whose result is added to its output. Updates travel through the model as an argument,
{(layer, module): update}. Nothing is stored on a module, so two calls with different updates cannot
disturb each other.

Letters for shapes, here and in the other files:
    b batch (rows or texts)   t tokens   d width   h heads   s size of a head, d / h   r rank
    l layer   m module   f width of a trunk's features   d_text width of c
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# the linear layers of one block, by their usual names
MODULES = ("q", "k", "v", "o", "gate", "up", "down")
Update = Callable[[Tensor], Tensor]  # (b, t, d_in) -> (b, t, d_out)
Updates = Mapping[tuple[int, str], Update]  # one update for each adapted site: (layer, module)


# ---- the decoder


@dataclass(frozen=True)
class ModelConfig:
    """The size of a GPT."""

    vocab_size: int = 1024
    block_size: int = 256  # the longest text, in tokens
    layers: int = 4
    heads: int = 4  # of queries
    kv_heads: int = 4  # of keys and values: each serves heads / kv_heads of the queries' heads
    width: int = 128
    inner: int = 352  # the width inside the MLP
    eps: float = 1e-5  # of the norms
    theta: float = 10_000.0  # the base of the rotary angles
    tied: bool = True  # whether the output head is the token embedding again
    eos: tuple[int, ...] = (1,)  # tokens that end a text; training appends the first

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(d_in, d_out) of every linear layer of a block: {"q": (128, 128), ...}."""
        d, inner = self.width, self.inner
        d_kv = self.head_size * self.kv_heads
        attention = {"q": (d, d), "k": (d, d_kv), "v": (d, d_kv), "o": (d, d)}
        return attention | {"gate": (d, inner), "up": (d, inner), "down": (inner, d)}


class Linear(nn.Linear):
    """A linear layer that adds an update to its output when it is given one."""

    def forward(self, x: Tensor, update: Update | None = None) -> Tensor:
        y = super().forward(x)
        if update is None:
            return y
        return y + update(x)


def init_weights(module: nn.Module) -> None:
    """GPT-2's and BERT's start: every matrix normal with a std of 0.02, every bias zero."""
    # recurse=False: `apply` calls this for every module, so each looks after its own
    for name, parameter in module.named_parameters(recurse=False):
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02)


def rotary(positions: Tensor, head_size: int, theta: float) -> Tensor:
    """cos and sin, (2, t, s), of the angles by which a head's numbers turn at positions (t,).

    Numbers i and i + s/2 of a query or a key are taken as a point of a plane, which turns by an
    angle that grows with the position. The product of a query and a key then depends on how far
    apart they are (RoFormer, arXiv 2104.09864). The angles are float32 whatever the model computes
    in, since bf16 cannot tell 300 from 301.
    """
    twice_i = torch.arange(0, head_size, 2, device=positions.device)  # (s/2,)
    speed = theta ** (-twice_i.float() / head_size)
    angle = positions[:, None].float() * speed  # (t, s/2)
    angle = torch.cat([angle, angle], dim=-1)  # i turns with i + s/2, as in Hugging Face's files
    return torch.stack([angle.cos(), angle.sin()])


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Turn queries or keys, (b, h, t, s), by the angles that `rotary` made."""
    cos, sin = rope
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


def split_heads(x: Tensor, head_size: int) -> Tensor:
    """(b, t, d) -> (b, h, t, s)"""
    return x.unflatten(-1, (-1, head_size)).transpose(1, 2)


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
        self, x: Tensor, updates: Updates, rope: Tensor, mask=None, cache=None, wanted=None
    ) -> Tensor:
        """(b, t, d) -> (b, t, d). `rope` (2, t, s) is what `rotary` makes.

        `mask` is true where a token may look; None lets it look at itself and all before it. Given
        `wanted` (b, k), only the states at these places of each row are computed: (b, k, d).
        """

        def linear(module: str, x: Tensor) -> Tensor:
            return getattr(self, module)(x, updates.get((self.layer, module)))

        size = self.config.head_size
        y = self.input_layernorm(x)
        q = rotate(split_heads(linear("q", y), size), rope)  # (b, h, t, s)
        k = rotate(split_heads(linear("k", y), size), rope)  # (b, kv_heads, t, s)
        v = split_heads(linear("v", y), size)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # what was read before comes first
        grouped = self.config.kv_heads < self.config.heads
        # Without a mask several tokens are causal: each looks at itself and at what is before it.
        # And a single token looks at everything, since all that the cache holds is before it.
        # (`Cache.advance` gives a mask in every other case.)
        causal = mask is None and x.shape[1] > 1
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped
        )
        y = y.transpose(1, 2).flatten(2)  # (b, t, d)
        if wanted is not None:  # from here on no token looks at another
            row = torch.arange(len(x), device=x.device)[:, None]
            x, y = x[row, wanted], y[row, wanted]  # (b, k, d)
        x = x + linear("o", y)
        y = self.post_attention_layernorm(x)
        y = F.silu(linear("gate", y)) * linear("up", y)  # (b, t, inner)
        return x + linear("down", y)


class Cache:
    """The keys and values that a GPT has computed so far, so that it need not read them again.

    Rows are padded on the left, so that all of them end, and go on, at the same place: row i begins
    with padding[i] tokens that belong to no text. `padding` is (b,).
    """

    def __init__(self, padding: Tensor):
        self.padding = padding
        self.padded = bool(padding.any())
        self.length = 0  # tokens of each row that have been read
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}  # {layer: (keys, values)}

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer, (b, kv_heads, t, s), the new ones at the end."""
        if layer in self.kept:
            old_k, old_v = self.kept[layer]
            k = torch.cat([old_k, k], dim=2)
            v = torch.cat([old_v, v], dim=2)
        self.kept[layer] = (k, v)
        return k, v

    def advance(self, t: int) -> tuple[Tensor, Tensor | None]:
        """Go on by t tokens: their positions (t,), and what each may look at, (b, 1, t, length).

        Positions are counted with the padding, since only their differences matter. A single token
        without padding may look at everything, for which the mask is None.
        """
        self.length += t
        key = torch.arange(self.length, device=self.padding.device)  # (length,)
        positions = key[-t:]
        if t == 1 and not self.padded:
            return positions, None
        query = positions[:, None]  # (t, 1)
        earlier = key <= query  # (t, length)
        text = key >= self.padding[:, None, None, None]  # (b, 1, 1, length)
        itself = key == query  # padding looks at itself: a softmax over nothing is no number
        return positions, (earlier & text) | itself


class GPT(nn.Module):
    """A decoder-only language model of the Llama architecture.

    >>> GPT(ModelConfig())(torch.zeros(2, 5, dtype=torch.long)).shape
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
            for linear in (block.o, block.down):
                nn.init.normal_(linear.weight, std=0.02 / (2 * config.layers) ** 0.5)

    def linear(self, layer: int, module: str) -> Linear:
        """The linear layer of a site."""
        return getattr(self.layers[layer], module)

    def run_layers(
        self, x, updates: Updates, start=0, end=None, cache: Cache | None = None, wanted=None
    ):
        """The states (b, t, d) after layers[start:end].

        Given a `cache` (used in generation), the call continues where the one before ended. Given
        `wanted` (b, k), the last of the layers computes only the states at these places: (b, k, d).
        """
        if cache is None:
            positions, mask = torch.arange(x.shape[1], device=x.device), None  # None: causal
        else:
            positions, mask = cache.advance(x.shape[1])
        rope = rotary(positions, self.config.head_size, self.config.theta).to(x.dtype)
        *lower, last = self.layers[start:end]
        for block in lower:
            x = block(x, updates, rope, mask, cache)
        return last(x, updates, rope, mask, cache, wanted)

    def logits(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., vocab_size), from the states above the last layer."""
        head = self.embed_tokens if self.config.tied else self.lm_head
        return F.linear(self.norm(x), head.weight)

    def forward(self, ids: Tensor, updates: Updates | None = None) -> Tensor:
        """Logits (b, t, vocab_size) for the token after each of ids (b, t), under the updates."""
        x = self.embed_tokens(ids)  # (b, t, d)
        x = self.run_layers(x, updates or {})
        return self.logits(x)

    @classmethod
    def from_pretrained(cls, name: str, dtype: torch.dtype = torch.float32) -> "GPT":
        """The Llama or Mistral in a folder, or of that name on the hub, its weights in `dtype`.

        Raises FileNotFoundError or ValueError for what is missing, damaged or not built here.
        """
        return read_network(cls, name, llama_config, llama_names, dtype)


def sample(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """The next token of each row, (b, 1), from logits (b, vocab_size).

    It is the likeliest one at temperature 0, otherwise drawn by softmax(logits / temperature).
    """
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    probability = (logits.float() / temperature).softmax(-1)
    return torch.multinomial(probability, 1, generator=generator)


# ---- the sentence encoder


@dataclass(frozen=True)
class EncoderConfig:
    """The size of an Encoder."""

    vocab_size: int = 1024
    block_size: int = 256  # the longest text, in tokens
    layers: int = 2
    heads: int = 4
    width: int = 128
    inner: int = 512  # the width inside the MLP
    eps: float = 1e-5  # of the norms
    first_token: bool = False  # whether c is the state of the first token, not the mean of all
    normalize: bool = False  # whether c is scaled to length 1


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
        x = self.norm1(x + self.out(y.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """BERT, and one embedding made of its states.

    The LayerNorms, on the embeddings and behind each half of a block, are what lets it learn
    quickly from nothing. At first the embeddings of different texts differ little; without the
    LayerNorms they would hardly differ at all.
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
        """c of each text, (b, d), from ids (b, t) and mask (b, t), true where there is a token."""
        x = self.norm(self.word(ids) + self.position.weight[: ids.shape[1]])  # (b, t, d)
        for block in self.blocks:
            x = block(x, mask[:, None, None])
        return self.pool(x, mask)

    def pool(self, x: Tensor, mask: Tensor) -> Tensor:
        """c of each text, (b, d), from the states of its tokens (b, t, d)."""
        if self.config.first_token:
            c = x[:, 0]
        else:
            total = (x * mask[:, :, None]).sum(1)
            c = total / mask.sum(1, keepdim=True)  # the mean; padding does not count
        return F.normalize(c, dim=-1) if self.config.normalize else c

    @classmethod
    def from_pretrained(cls, name: str) -> "Encoder":
        """The BERT in a folder, or of that name on the hub; raises as GPT.from_pretrained does."""
        return read_network(cls, name, bert_config, bert_names, torch.float32)


# ---- real weights: the files in which Hugging Face keeps a model
#
#     config.json -> sizes        model.safetensors, or its shards -> parameters
#
# Every parameter is filled exactly once, and every tensor is used or known to be of no use. A
# setting that is not built above is refused by name, because computing it wrongly would be silent.

LLAMA_SIZES = {  # what ModelConfig has: what config.json calls it
    "vocab_size": "vocab_size",
    "block_size": "max_position_embeddings",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "width": "hidden_size",
    "inner": "intermediate_size",
    "eps": "rms_norm_eps",
    "theta": "rope_theta",
    "tied": "tie_word_embeddings",
}
# parts of the names that Encoder has: what a real BERT calls them; replaced in this order
BERT_NAMES = {
    "word.": "word_embeddings.",
    "position.": "position_embeddings.",
    "blocks.": "encoder.layer.",
    ".query.": ".attention.self.query.",
    ".key.": ".attention.self.key.",
    ".value.": ".attention.self.value.",
    ".out.": ".attention.output.dense.",
    ".up.": ".intermediate.dense.",
    ".down.": ".output.dense.",
    ".norm1.": ".attention.output.LayerNorm.",
    ".norm2.": ".output.LayerNorm.",
    "norm.": "LayerNorm.",
}
POOLING = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
POSITIONS = "embeddings.position_embeddings.weight"
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
# tensors that may remain unused: lm_head is, in a tied model, the token embedding again
UNUSED_TENSORS = ("inv_freq", "position_ids", "pooler.", "cls.", "lm_head")


def find_folder(name: str) -> Path:
    """The folder of that name, else a local copy of the hub's model of that name."""
    if Path(name).is_dir():
        return Path(name).resolve()
    from huggingface_hub import snapshot_download  # the package tokenizers brings it along

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "model*.safetensors"]))
    except Exception as error:  # a broken connection raises many kinds
        reason = str(error).strip().partition("\n")[0]
        hint = "give a folder with config.json, tokenizer.json and model.safetensors"
        raise FileNotFoundError(f"no folder or model {name} ({reason}): {hint}") from None


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def read_json_if_there(path: Path) -> dict:
    return read_json(path) if path.is_file() else {}


def refuse_others(settings: dict, built: dict[str, tuple]) -> None:
    """Raise ValueError for a setting whose value is not among those that are built here."""
    for key, values in built.items():
        if settings.get(key) not in values:
            known = " or ".join(repr(value) for value in values)
            raise ValueError(f"{key} is {settings.get(key)!r}, and only {known} is built here")


def llama_config(folder: Path) -> ModelConfig:
    """The sizes of a real Llama or Mistral."""
    settings = read_json(folder / "config.json")
    settings |= settings.get("rope_parameters") or {}  # where newer files keep rope_theta
    settings.setdefault("num_key_value_heads", settings["num_attention_heads"])
    settings.setdefault("tie_word_embeddings", False)
    settings.setdefault("rope_theta", 10_000.0)
    built = {
        "model_type": ("llama", "mistral"),
        "hidden_act": ("silu",),
        "rope_scaling": (None,),
        "rope_type": (None, "default"),
        "sliding_window": (None,),
        "attention_bias": (None, False),
        "mlp_bias": (None, False),
        "head_dim": (None, settings["hidden_size"] / settings["num_attention_heads"]),
    }
    refuse_others(settings, built)
    ends = []
    for found in (settings, read_json_if_there(folder / "generation_config.json")):
        end = found.get("eos_token_id")
        ends += end if isinstance(end, list) else [end]
    sizes = {ours: settings[theirs] for ours, theirs in LLAMA_SIZES.items()}
    ends = tuple(dict.fromkeys(end for end in ends if end is not None))
    if not ends:
        raise ValueError("no eos_token_id: write the id of the token that ends a text")
    return ModelConfig(**sizes, eos=ends)


def bert_config(folder: Path) -> EncoderConfig:
    """The sizes of a real BERT, and how sentence-transformers makes one embedding of its states."""
    settings = read_json(folder / "config.json")
    refuse_others(settings, {"model_type": ("bert",), "hidden_act": ("gelu",)})
    sentence = read_json_if_there(folder / "sentence_bert_config.json")
    pooling = read_json_if_there(folder / "1_Pooling" / "config.json")
    flags = [name for name, value in pooling.items() if "pooling_mode" in name and value is True]
    modes = [POOLING.get(name, name) for name in flags]
    # Older files have a flag for each mode, newer ones a name; without a file it is the mean. Two
    # flags become a name like "cls+mean", which is refused.
    mode = "+".join(modes) or pooling.get("pooling_mode", "mean")
    refuse_others({"pooling": mode}, {"pooling": ("mean", "cls")})
    steps = [
        step["type"].rpartition(".")[2] for step in read_json_if_there(folder / "modules.json")
    ]
    for step in steps:
        refuse_others({"module": step}, {"module": ("Transformer", "Pooling", "Normalize")})
    return EncoderConfig(
        vocab_size=settings["vocab_size"],
        block_size=sentence.get("max_seq_length") or settings["max_position_embeddings"],
        layers=settings["num_hidden_layers"],
        heads=settings["num_attention_heads"],
        width=settings["hidden_size"],
        inner=settings["intermediate_size"],
        eps=settings["layer_norm_eps"],
        first_token=mode == "cls",
        normalize="Normalize" in steps,
    )


def llama_names(network: GPT) -> dict[str, str]:
    """{the name of a parameter here: its name in the files of a real Llama}."""
    names = {}
    for name in network.state_dict():
        theirs = name if name.startswith("lm_head") else f"model.{name}"
        for module in MODULES:
            part = "mlp" if module in ("gate", "up", "down") else "self_attn"
            theirs = theirs.replace(f".{module}.", f".{part}.{module}_proj.")
        names[name] = theirs
    return names


def bert_names(network: Encoder) -> dict[str, str]:
    """{the name of a parameter here: its name in the files of a real BERT}."""
    names = {}
    for name in network.state_dict():
        theirs = name
        for ours, replacement in BERT_NAMES.items():
            theirs = theirs.replace(ours, replacement)
        names[name] = theirs if name.startswith("blocks") else f"embeddings.{theirs}"
    return names


def read_network(
    kind: type, name: str, read_config: Callable, hub_names: Callable, dtype: torch.dtype
):
    """A GPT or an Encoder with the weights of a folder or of the hub, each in `dtype`.

    It is built without memory of its own and takes over the tensors of the files, so that loading
    a model takes hardly more memory than the model.
    """
    folder = find_folder(name)
    try:
        from safetensors import safe_open
    except ImportError:
        raise ValueError("to read real weights, pip install safetensors") from None
    try:
        with torch.device("meta"):
            network = kind(read_config(folder))
        index = read_json_if_there(folder / "model.safetensors.index.json")
        tensors = {}
        files = set(index["weight_map"].values()) if index else {"model.safetensors"}
        for file in files:
            content = safe_open(folder / file, framework="pt")
            for key in content.keys():  # noqa: SIM118 (it is no dictionary)
                tensors[key.removeprefix("bert.")] = content.get_tensor(key).to(dtype)
        token_types = tensors.pop(TOKEN_TYPES, None)
        if token_types is not None:
            # Every token of a description has type 0. And BERT may have more positions than
            # sentence-transformers uses.
            tensors[POSITIONS] = tensors[POSITIONS][: network.config.block_size] + token_types[0]
        weights = {ours: tensors.pop(theirs) for ours, theirs in hub_names(network).items()}
        left = [key for key in tensors if not any(part in key for part in UNUSED_TENSORS)]
        if left:
            raise ValueError(f"nothing here uses the tensor {left[0]} ({len(left)} such)")
        network.load_state_dict(weights, assign=True)  # torch compares names and shapes
    except Exception as error:  # a damaged file raises many kinds
        reason = f"{type(error).__name__} {' '.join(str(error).split())}"
        raise ValueError(f"{folder} is incomplete, damaged or not built here: {reason}") from None
    network.pretrained_name = str(folder) if Path(name).is_dir() else name
    return network
