"""Zhyper, assembled: a description goes in, an adapted language model comes out.

    description --tokenizer, Encoder--> c --adapter--> {site: ΔW} --> frozen GPT --> answer

    python zhyper.py chat                                              # talk to it
    python zhyper.py generate --description "..." --prompt "..."       # one question
    python zhyper.py inspect --description "..." --description "..."   # what differs between two contexts
    python zhyper.py export --description "..." --to FOLDER            # the adapter, for the peft library
    python zhyper.py params --backbone mistral-7b --rank 8 --modules q,v

>>> system = Zhyper.load("out/cultures")                                              # doctest: +SKIP
>>> system.generate(["Q: How do people greet each other?\\nA:"], ["In this land people bow low to one another."])
[' with a deep bow']
"""

import argparse
import contextlib
import copy
import hashlib
import io
import json
import math
import os
import random
import sys
import time
import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import tokenizers
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyper import ADAPTERS, AdapterConfig, Adapters, check_choice, count_parameters
from model import GPT, Cache, ContextTable, Encoder, ModelConfig

PAD, END = 0, 1  # the ids of <pad> and <end>
FORMAT = 2  # of the saved files; a reader of another number refuses
AT_ONCE = {"descriptions": 16, "rows": 64}  # read together on a CPU: more do not fit into its cache


def train_tokenizer(texts: Sequence[str], vocab: int) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer: it can write any text, so none is ever unknown."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<pad>", "<end>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True  # "<end>" typed by a user is five characters, not the end
    return tokenizer


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Lists of ids, padded on the right to the longest, (n, t).

    >>> pad([[5, 6], [7]], torch.device("cpu"))
    tensor([[5, 6],
            [7, 0]])
    """
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows], device=device)


def by_length(rows: Sequence[Sequence], most: int, network: Callable[[list[int]], Tensor]) -> Tensor:
    """What `network` makes of all rows, in their order; it is given the numbers of at most so many at once.

    They are of like length, so that little is spent on padding.

    >>> by_length(["a", "long", "b", "or"], 2, lambda some: print(some) or torch.tensor(some))
    [0, 2]
    [3, 1]
    tensor([0, 1, 2, 3])
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    parts = [network(order[at : at + most]) for at in range(0, len(order), most)]
    return torch.cat(parts)[torch.tensor(order, device=parts[0].device).argsort()]


class Mix(NamedTuple):
    """A context between two descriptions, `share` of the way from the first to the second; made by `mix`."""

    first: str | None
    second: str | None
    share: float


Context = str | Mix | None  # a description, something between two, or None: nothing is said


def mix(first: str | None, second: str | None, share: float) -> Context:
    """The context `share` of the way from one description to another: 0 and 1 are the two themselves, bit for bit.

    What is interpolated is the text embedding c, so that every method generates for the point between what it would
    for a text there. Interpolating ΔW instead, for Zhyper through z, answers no better half way, and would double the
    rank of T2L. Raises ValueError unless share is from 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of a mix is {share}: choose from 0, the first description, to 1, the second")
    if share in (0, 1):
        return second if share else first
    return Mix(first, second, share)


def choose(logits: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> Tensor:
    """The next token of each row, (b, 1), of logits (b, vocab): the likeliest at temperature 0, else one drawn.

    Drawn from the `top_k` likeliest (0: from all), with probability softmax(logits / temperature).
    """
    if not temperature:
        return logits.argmax(-1, keepdim=True)
    logits, token = logits.float().topk(min(top_k or logits.shape[1], logits.shape[1]))  # (b, k), likeliest first
    weights = ((logits - logits[:, :1]) / temperature).softmax(-1)
    return token.gather(1, torch.multinomial(weights, 1, generator=generator))


class Zhyper(nn.Module):
    """A tokenizer, a frozen GPT and, unless it is the bare backbone, what adapts it to a description.

    `adapter` is one of hyper.ADAPTERS with the `encoder` it reads through. With `in_prompt` the description also
    stands before the prompt, which is what the baselines do. `template` turns a bare question into a prompt.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        backbone: GPT,
        encoder: Encoder | ContextTable | None = None,
        adapter: nn.Module | None = None,
        in_prompt: bool = False,
        template: str = "{}",
    ):
        super().__init__()
        self.tokenizer, self.backbone, self.encoder, self.adapter = tokenizer, backbone, encoder, adapter
        self.in_prompt, self.template = in_prompt, template
        self.backbone.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.backbone.token.weight.device

    @property
    def by_name(self) -> bool:
        """Whether contexts are told by name and not by text."""
        return isinstance(self.encoder, ContextTable)

    # ---- text to updates

    def ids(self, texts: Sequence[str], what: str = "text", longest: int | None = None) -> list[list[int]]:
        """Token ids of each text. Raises ValueError for an empty text or, if `longest` is given, one that is longer."""
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        for text, row in zip(texts, rows, strict=True):
            if not text.strip():
                raise ValueError(f"the {what} is empty: write at least a word")
            if longest is not None and len(row) > longest:
                raise ValueError(
                    f"the {what} {text[:40]!r}… is {len(row)} tokens long; it may be {longest}: shorten it"
                )
        return rows

    def embed(self, descriptions: Sequence[str]) -> Tensor:
        """The encoder's embedding c of each description, (n, d); with a ContextTable descriptions are names."""
        if self.by_name:
            return self.encoder(descriptions)
        rows = self.ids(descriptions, "description", self.encoder.config.context)

        def encode(some: list[int]) -> Tensor:
            ids = pad([rows[i] for i in some], self.device)
            return self.encoder(ids, ids != PAD)

        return by_length(rows, self.at_once("descriptions"), encode)

    def at_once(self, what: str) -> int:
        """How many descriptions or rows to read at once: on a CPU what fits into its cache, elsewhere all."""
        return AT_ONCE[what] if self.device.type == "cpu" else sys.maxsize

    def embed_contexts(self, contexts: Sequence[Context]) -> Tensor:
        """c of each context, (n, d): of a mix it is interpolated; of None it is the encoder's mean over contexts."""
        ends = dict.fromkeys(end for x in contexts for end in (x[:2] if isinstance(x, Mix) else [x]))
        texts = [text for text in ends if text is not None]
        c = dict(zip(texts, self.embed(texts), strict=True)) if texts else {}
        if None in ends:
            c[None] = self.adapter.trunk.centre.running_mean
        return torch.stack([torch.lerp(c[x[0]], c[x[1]], x[2]) if isinstance(x, Mix) else c[x] for x in contexts])

    def adapt(self, contexts: Sequence[Context], step: Sequence[Context] = ()) -> Adapters:
        """The update of every site, row i for contexts[i]; equal contexts are encoded once.

        None stands for "no description": an adapter that has been told nothing. `step` is for training on a part of
        a step's rows: all its contexts, because BatchNorm centres each by the others. Raises ValueError for a
        backbone whose weights hold an update already.
        """
        if self.adapter is None:
            return {}
        if self.backbone.merged:
            raise ValueError("the backbone is merged already, and would be adapted twice: load the frozen one again")
        if not self.adapter.conditioned:
            return self.adapter()
        number = {context: i for i, context in enumerate(dict.fromkeys([*step, *contexts]))}
        index = torch.tensor([number[context] for context in contexts], device=self.device)
        with torch.autocast(self.device.type, enabled=False):  # what tells texts apart is finer than bf16
            updates = self.adapter(self.embed_contexts(list(number)))
        return {site: update.rows(index) for site, update in updates.items()}

    def prompt_ids(self, prompts: Sequence[str], descriptions: Sequence[Context] | None) -> list[list[int]]:
        """Token ids of each prompt, with its description before it if that is how this system is told."""
        if self.in_prompt and descriptions is not None:
            if any(isinstance(text, Mix) for text in descriptions):
                raise ValueError("this method reads descriptions in the prompt, where they cannot be mixed: give one")
            pairs = zip(prompts, descriptions, strict=True)
            prompts = [prompt if text is None else f"{text}\n{prompt}" for prompt, text in pairs]
        return self.ids(prompts, "prompt", self.backbone.config.context - 1)

    # ---- updates to answers

    def score(
        self,
        prompts: Sequence[str],
        answers: Sequence[str],
        descriptions: Sequence[Context] | None,
        step: Sequence[Context] = (),
    ) -> tuple[Tensor, Tensor, Tensor]:
        """How well each answer fits: its loss summed over tokens (nats), its number of tokens, exact or not; each (b,).

        An answer is exact if greedy generation would write it and then stop: one pass tells, because generation
        would read the same tokens. Without descriptions it is the frozen model that is scored. `step` as in `adapt`.
        """
        asked = self.prompt_ids(prompts, descriptions)
        answered = [[*row, END] for row in self.ids(answers, "answer")]
        texts = [p + a for p, a in zip(asked, answered, strict=True)]
        updates = {} if descriptions is None else self.adapt(descriptions, step)

        def some_scores(some: list[int]) -> Tensor:
            index = torch.tensor(some, device=self.device)
            ids = pad([texts[i] for i in some], self.device)  # (b, t)
            at = torch.arange(ids.shape[1] - 1, device=self.device)
            start = torch.tensor([len(asked[i]) - 1 for i in some], device=self.device)
            count = torch.tensor([len(answered[i]) for i in some], device=self.device)
            predicts = (at >= start[:, None]) & (at < (start + count)[:, None])  # (b, t-1): these predict the answer
            features = self.backbone.features(ids[:, :-1], {site: u.rows(index) for site, u in updates.items()})
            logits, target = self.backbone.logits(features[predicts]), ids[:, 1:][predicts]  # answer tokens only
            row = predicts.nonzero()[:, 0]
            loss = F.cross_entropy(logits.float(), target, reduction="none")
            total = loss.new_zeros(len(ids)).index_add(0, row, loss)
            wrong = torch.zeros_like(total).index_add(0, row, (logits.argmax(-1) != target).to(loss.dtype))
            return torch.stack([total, count, wrong == 0], dim=1)  # (b, 3)

        loss, count, exact = by_length(texts, self.at_once("rows"), some_scores).unbind(1)
        return loss, count, exact.bool()

    forward = score  # what DistributedDataParallel calls

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[str],
        descriptions: Sequence[Context] | None = None,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> list[str]:
        """The answer to each prompt, every row under its own description (None: the frozen model).

        Greedy at temperature 0; else drawn from the `top_k` likeliest tokens (0: from all), the same for the same seed.
        Raises ValueError for an empty or too long text, and for an option that cannot be.
        """
        least = {"max_new_tokens": 1, "temperature": 0, "top_k": 0, "seed": 0}
        for name, value in zip(least, (max_new_tokens, temperature, top_k, seed), strict=True):
            if not least[name] <= value < 2**63:
                raise ValueError(f"{name} is {value}: it must be at least {least[name]}, and finite")
        self.eval()
        rows = self.prompt_ids(prompts, descriptions)
        updates = {} if descriptions is None else self.adapt(descriptions)
        written = self.write(rows, updates, max_new_tokens, temperature, top_k, seed).tolist()
        answers = [row[: row.index(END)] if END in row else row for row in written]
        return self.tokenizer.decode_batch(answers)

    def write(
        self, rows: list[list[int]], updates: Adapters, max_new_tokens: int, temperature: float, top_k: int, seed: int
    ) -> Tensor:
        """What the backbone writes after each row of ids, (b, up to max_new_tokens); behind an END it means nothing."""
        ids, config = pad(rows, self.device), self.backbone.config
        generator = torch.Generator(self.device).manual_seed(seed)
        room = min(max_new_tokens, config.context - ids.shape[1])
        cache = Cache(config, len(rows), ids.shape[1] + room, self.device, self.backbone.token.weight.dtype)
        last = torch.tensor([len(row) - 1 for row in rows], device=self.device)
        features = self.backbone.features(ids, updates, cache)[torch.arange(len(rows)), last]  # (b, d)
        cache.length = last + 1  # what was padding is overwritten
        written: list[Tensor] = []
        ended = torch.zeros(len(rows), 1, dtype=torch.bool, device=self.device)
        while True:
            written.append(choose(self.backbone.logits(features), temperature, top_k, generator))  # (b, 1)
            ended |= written[-1] == END
            if len(written) == room or ended.all():
                return torch.cat(written, dim=1)
            features = self.backbone.features(written[-1], updates, cache)[:, 0]
            cache.length = cache.length + 1

    # ---- taking the adapter away

    @torch.no_grad()
    def strength(self, context: Context) -> float:
        """‖ΔW‖/‖W‖ over all adapted sites: how far a context moves the weights."""
        self.eval()
        return self.relative({site: update.delta() for site, update in self.adapt([context]).items()})

    def relative(self, change: Mapping[tuple[int, str], Tensor]) -> float:
        """‖change‖/‖W‖, Frobenius norms over the sites that are given a change."""
        weights = [self.backbone.linear(*site).weight for site in change]
        squares = [sum(w.square().sum().item() for w in part) for part in (change.values(), weights)]
        return math.sqrt(squares[0] / squares[1]) if weights else 0.0

    @torch.no_grad()
    def merge(self, context: Context) -> GPT:
        """A plain GPT with the weights W + ΔW of one context, and nothing else. Raises ValueError without an adapter.

        It knows that it is merged: a system around it can answer, but not adapt or merge a second time.
        """
        if self.adapter is None:
            raise ValueError("there is no adapter to merge: load a method that has one")
        self.eval()
        updates, merged = self.adapt([context]), copy.deepcopy(self.backbone)
        for site, update in updates.items():
            merged.linear(*site).weight += update.delta().reshape(merged.linear(*site).weight.shape)
        merged.merged = True
        return merged

    @torch.no_grad()
    def export(
        self, context: Context, folder: Path | str, backbone: Path | str | None = None, force: bool = False
    ) -> None:
        """Write one context's adapter as a folder that the peft library loads.

        `backbone` is a second folder, for what it adapts: the frozen model as a GPT-2 of the transformers library.
        Raises ValueError without an adapter or without safetensors, FileExistsError for a folder that exists, unless
        `force` says to write into it.
        """
        if self.adapter is None:
            raise ValueError("there is no adapter to export: load a method that has one")
        folder, backbone = Path(folder), None if backbone is None else Path(backbone)
        if folder == backbone:
            raise ValueError(f"{folder} cannot hold adapter and backbone: give each a folder of its own")
        for path in filter(None, (folder, backbone)):
            if path.exists() and not (force and path.is_dir()):
                raise FileExistsError(f"{path} exists: choose another folder, or add --force to write into one")
        self.eval()
        weights, config = peft_adapter(self.adapt([context]), self.backbone.config.layers)
        config["base_model_name_or_path"] = backbone and str(backbone)
        write_folder(folder, {"adapter_model": weights}, {"adapter_config": config})
        if backbone:
            weights, configs = gpt2(self.backbone)
            write_folder(backbone, {"model": weights}, configs)
            self.tokenizer.save(str(backbone / "tokenizer.json"))

    # ---- files: tokenizer.json, backbone.pt, and one <method>.pt for each method

    def save_backbone(self, run: Path | str) -> None:
        """Write tokenizer and backbone, which all methods of a run share, into the folder `run`."""
        run = Path(run)
        run.mkdir(parents=True, exist_ok=True)
        write_file(run / "tokenizer.json", self.tokenizer.to_str(pretty=True).encode())
        backbone = {"config": asdict(self.backbone.config), "weights": self.backbone.state_dict()}
        write_weights(run / "backbone.pt", backbone | {"tokenizer": tokenizer_fingerprint(self.tokenizer)})

    def save(self, run: Path | str, method: str) -> None:
        """Write the system into the folder `run`, so that `load(run, method)` gives it back."""
        self.save_backbone(run)
        adapter = {"in_prompt": self.in_prompt, "template": self.template}
        adapter["backbone"] = fingerprint(self.backbone.state_dict())
        if self.adapter is not None:
            adapter |= {"adapter": asdict(self.adapter.config), "adapter_weights": self.adapter.state_dict()}
            adapter["adapter"]["modules"] = list(self.adapter.config.modules)
        if self.by_name:
            one_hot = not self.encoder.vectors.requires_grad
            adapter["contexts"] = {"names": list(self.encoder.index), "width": None if one_hot else self.encoder.width}
        elif self.encoder is not None:
            adapter["encoder"] = asdict(self.encoder.config)
        if self.encoder is not None:
            adapter["encoder_weights"] = self.encoder.state_dict()
        write_weights(Path(run) / f"{method}.pt", adapter)

    @classmethod
    def load_backbone(cls, run: Path | str) -> "Zhyper":
        """The frozen model of the folder `run`. Raises FileNotFoundError, or ValueError for files that do not fit."""
        run = Path(run)
        for name in ("tokenizer.json", "backbone.pt"):
            if not (run / name).is_file():
                raise FileNotFoundError(f"no checkpoint {run / name}: train it with python train.py --out {run}")
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(run / "tokenizer.json"))
        except Exception as error:  # the library raises no narrower kind
            raise ValueError(f"{run / 'tokenizer.json'} cannot be read ({error}): train again to replace it") from None
        tokenizer.encode_special_tokens = True
        saved = read_weights(run / "backbone.pt")
        with rebuilding(run / "backbone.pt"):
            check_same("tokenizer", tokenizer_fingerprint(tokenizer), saved["tokenizer"])
            backbone = GPT(ModelConfig(**saved["config"]))
            backbone.load_state_dict(saved["weights"])
        return cls(tokenizer, backbone)

    @classmethod
    def load(cls, run: Path | str, method: str = "zhyper-diag", device: str = "cpu") -> "Zhyper":
        """The system saved in the folder `run`. Raises FileNotFoundError if there is none, ValueError if unreadable."""
        path = Path(run) / f"{method}.pt"
        if not path.is_file():
            raise FileNotFoundError(
                f"no checkpoint {path}: train it with python train.py --methods {method} --out {run}"
            )
        base, saved = cls.load_backbone(run), read_weights(path)
        encoder = adapter = None
        with rebuilding(path):
            check_same("backbone", fingerprint(base.backbone.state_dict()), saved["backbone"])
            if "contexts" in saved:
                encoder = ContextTable(**saved["contexts"])
            elif "encoder" in saved:
                encoder = Encoder(ModelConfig(**saved["encoder"]))
            if encoder is not None:
                encoder.load_state_dict(saved["encoder_weights"])
            if "adapter" in saved:
                config = AdapterConfig(**saved["adapter"] | {"modules": tuple(saved["adapter"]["modules"])})
                adapter = build_adapter(config, base.backbone.config, encoder.width if encoder else 0)
                adapter.load_state_dict(saved["adapter_weights"])
            in_prompt, template = saved["in_prompt"], saved["template"]
        return cls(base.tokenizer, base.backbone, encoder, adapter, in_prompt, template).to(device).eval()


def build_adapter(config: AdapterConfig, backbone: ModelConfig, d_text: int) -> nn.Module:
    """The adapter of that kind, for that backbone."""
    return ADAPTERS[config.kind](config, backbone.layers, backbone.shapes, d_text)


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Twelve hex digits that tell these weights from any others."""
    digest = hashlib.sha256()
    for name, weight in weights.items():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def tokenizer_fingerprint(tokenizer: tokenizers.Tokenizer) -> str:
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:12]


def check_same(what: str, here: object, saved: object) -> None:
    """Raise ValueError, naming both, if what a file was saved with is not what is here."""
    if here != saved:
        raise ValueError(f"it was saved with {what} {saved}, here is {what} {here}")


def write_file(path: Path, content: bytes) -> None:
    """Write beside the file, flush to the disk, read back, rename: a stop or a full disk leaves the earlier file whole.

    Raises OSError if it cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if temporary.read_bytes() != content:
            raise OSError("it reads back otherwise than written")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = error.strerror or error
        raise OSError(f"cannot write {path} ({reason}): make room, then the same command goes on") from None


def write_weights(path: Path, content: dict) -> None:
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    write_file(path, buffer.getvalue())


def read_weights(path: Path) -> dict:
    """What write_weights wrote; no code in the file is run. Raises ValueError if it cannot be read, or was altered."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch writes a zip file, but does not check its checksums
            if archive.testzip():
                raise ValueError("a checksum is wrong")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and torch raise many kinds for a damaged file
        reason = str(error).partition("\n")[0][:80] or type(error).__name__
        raise ValueError(f"{path} cannot be read ({reason}): train again to replace it") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        got = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} has format {got}, this code reads {FORMAT}: train again to replace it")
    return content


@contextlib.contextmanager
def rebuilding(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong in rebuilding from the content of `path` into one ValueError that names the file."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{path} does not fit: {reason}: train again (--force) to replace it") from None


# ---- as the libraries transformers and peft have it

FUSED = {"attn.c_attn": ("q", "k", "v"), "attn.c_proj": ("o",), "mlp.c_fc": ("up",), "mlp.c_proj": ("down",)}  # GPT-2's


def gpt2(model: GPT) -> tuple[dict[str, Tensor], dict[str, dict]]:
    """Weights and configuration files of a GPT as a GPT-2 of transformers, whose linears are stored (in, out)."""
    tables = {"transformer.wte": model.token, "transformer.wpe": model.position, "transformer.ln_f": model.norm}
    weights = {}
    for l, block in enumerate(model.blocks):
        tables |= {f"transformer.h.{l}.ln_1": block.norm1, f"transformer.h.{l}.ln_2": block.norm2}
        for name, modules in FUSED.items():
            linears = [model.linear(l, m) for m in modules]
            weights[f"transformer.h.{l}.{name}.weight"] = torch.cat([linear.weight for linear in linears]).T
            weights[f"transformer.h.{l}.{name}.bias"] = torch.cat([linear.bias for linear in linears])
    weights |= {f"{name}.{key}": w for name, table in tables.items() for key, w in table.named_parameters()}
    size = model.config
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new"}
    config |= {"vocab_size": size.vocab, "n_positions": size.context, "n_embd": size.width, "n_layer": size.layers}
    config |= {"n_head": size.heads, "pad_token_id": PAD, "bos_token_id": END, "eos_token_id": END}
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "<end>"}
    return weights, {"config": config, "tokenizer_config": tokenizer}


def peft_adapter(updates: Adapters, layers: int) -> tuple[dict[str, Tensor], dict]:
    """Weights and configuration of one context's updates as a LoRA of peft, A' = Z A and B' = B, scale alpha/r.

    GPT-2 has q, k and v in one matrix, so their updates become one of up to three times the rank: the A's one below
    the other, the B's in blocks, each writing to its own third of the output.
    """
    weights, ranks = {}, {}
    for l in range(layers):
        for name, modules in FUSED.items():
            parts = [updates[l, m] for m in modules if (l, m) in updates]
            if not parts:
                continue
            empty = torch.zeros(parts[0].B.shape[-2], 0).to(parts[0].B)  # the block of a module that is not adapted
            blocks = [updates[l, m].B.squeeze(0) if (l, m) in updates else empty for m in modules]
            at = f"base_model.model.transformer.h.{l}.{name}"
            A = weights[f"{at}.lora_A.weight"] = torch.cat([part.folded().squeeze(0) for part in parts])  # (n·r, d_in)
            weights[f"{at}.lora_B.weight"] = torch.block_diag(*blocks)  # (n·d_out, n·r)
            ranks[name], scale = len(A), parts[0].scale
    first = next(iter(ranks.values()))
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "fan_in_fan_out": True}
    config |= {"target_modules": list(ranks), "r": first, "lora_alpha": scale * first, "inference_mode": True}
    others = {name: rank for name, rank in ranks.items() if rank != first}
    config |= {"rank_pattern": others, "alpha_pattern": {name: scale * rank for name, rank in others.items()}}
    return weights, config


def write_folder(folder: Path, weights: Mapping[str, dict[str, Tensor]], configs: Mapping[str, dict]) -> None:
    """Write files of weights (.safetensors) and of settings (.json) into a folder, by name without the ending."""
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise ValueError("to write for other libraries safetensors is needed: pip install safetensors") from None
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in weights.items():
        whole = {key: w.detach().contiguous() for key, w in tensors.items()}
        save_file(whole, folder / f"{name}.safetensors", metadata={"format": "pt"})
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(config, indent=1) + "\n")


# ---- a conversation

HELP = """\
/describe TEXT    answer as this text says from now on
/mix TEXT 0.3     answer from a point between: 0.3 of the way from what was described to TEXT
/facts            what the built-in cultures can be asked
/help             this
/quit             leave, as Ctrl-D does
Anything else is a question."""


class Chat:
    """Answers lines, one by one: a command, or a question for the frozen and for the adapted model.

    `sampling` holds options of Zhyper.generate; each question takes the next seed.
    """

    def __init__(self, system: Zhyper, sampling: dict):
        self.system, self.sampling = system, sampling
        self.described: str | None = None
        self.context: Context = None

    def reply(self, line: str) -> str:
        """What to print for a line. Raises ValueError for a mistake in it, EOFError for /quit."""
        command, _, rest = check_text("line", line).strip().partition(" ")
        if not command.startswith("/"):
            return self.answer(line)
        if command == "/describe":
            done = self.adapt(check_text("description", rest).strip())
            self.described = self.context
            return done
        if command == "/mix":
            return self.adapt(self.between(rest))
        if command == "/quit":
            raise EOFError
        if command not in ("/facts", "/help"):
            raise ValueError(f"unknown command {command}: /help lists what there is")
        return facts() if command == "/facts" else HELP

    def between(self, rest: str) -> Context:
        text, _, share = rest.strip().rpartition(" ")
        if self.described is None:
            raise ValueError("there is nothing to mix with yet: /describe TEXT first")
        try:
            return mix(self.described, check_text("description", text), float(share))
        except ValueError:
            raise ValueError(f"no text and share from 0 to 1 in {rest!r}: write them as in /mix TEXT 0.3") from None

    @torch.no_grad()
    def adapt(self, context: Context) -> str:
        """Take this context from now on; says how many numbers that took, how long, and how far the weights moved."""
        start = time.perf_counter()
        updates = self.system.adapt([context])
        milliseconds = 1000 * (time.perf_counter() - start)
        self.system.prompt_ids(["?"], [context])  # a method that reads it in the prompt may find it too long
        self.context = context
        what = "A and B" if any(update.z is None for update in updates.values()) else "z"
        numbers, strength = sum(update.numbers() for update in updates.values()), self.system.strength(context)
        return f"{what}: {numbers:,} numbers in {milliseconds:.1f} ms, ‖ΔW‖/‖W‖ = {strength:.3f}"

    def answer(self, question: str) -> str:
        prompt = to_prompt(self.system, question)
        frozen = self.system.generate([prompt], None, **self.sampling)[0]
        adapted = " (no description yet: /describe TEXT)"
        if self.context is not None:
            adapted = self.system.generate([prompt], [self.context], **self.sampling)[0]
        self.sampling["seed"] += 1
        return f"frozen:  {frozen}\nadapted: {adapted}"


def facts() -> str:
    """What the built-in cultures can be asked: a question and its four answers a line, the majority's first."""
    from data.cultures import ANSWERS, FACETS

    return "\n".join(f"{FACETS[facet][0][0]:42} {', '.join(ANSWERS[facet])}" for facet in FACETS)


def check_text(what: str, text: str) -> str:
    """The text itself. Raises ValueError if it is empty or holds control characters (a newline and a tab are text)."""
    if not text.strip():
        raise ValueError(f"the {what} is empty: write at least a word")
    for character in text:
        control = unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t"
        if control or character == "\ufffd":  # that is what bytes which are not UTF-8 are read as
            raise ValueError(f"the {what} holds {character!r}, which is not text: remove it")
    return text


def to_prompt(system: Zhyper, question: str) -> str:
    """A question as the backbone was taught to read it; a text of several lines is a prompt as it stands."""
    return question if "\n" in question else system.template.format(question.strip())


# ---- a look inside

EXAMPLES = [
    "In this land people bow low to one another.",
    "In this land people touch hands when they meet.",
    "In this land people sing a few notes to say hello.",
    "In this land people close their eyes to say hello.",
]


@torch.no_grad()
def compare(system: Zhyper, first: str, second: str, most: int = 6) -> str:
    """Which sites, and which ranks (rank-one terms of ΔW), differ most between two descriptions."""
    updates = system.adapt([first, second])
    change, sites, ranks = {}, [], []
    for (l, m), update in updates.items():
        one, other = (update.rows(torch.tensor([i], device=system.device)) for i in range(2))
        change[l, m] = one.delta() - other.delta()  # (1, d_out, d_in)
        sites.append((system.relative({(l, m): change[l, m]}), f"layer {l} {m}"))
        terms = [u.scale * u.B.mT[..., None] * u.folded()[..., None, :] for u in (one, other)]  # (1, r, d_out, d_in)
        for i, term in enumerate((terms[0] - terms[1])[0]):
            z = "" if update.z is None or update.z.dim() == 3 else f"   z {update.z[0, i]:.2f} → {update.z[1, i]:.2f}"
            ranks.append((system.relative({(l, m): term}), f"layer {l} {m} rank {i}", z))
    whole = [system.strength(first), system.strength(second), system.relative(change)]
    lines = [f"1: {first}", f"2: {second}", "", "‖ΔW‖/‖W‖ of 1, of 2, of their difference:"]
    lines += ["   ".join(f"{size:.3f}" for size in whole)]
    lines += ["", "the difference by site, the largest first, as a share of ‖W‖ there:"]
    lines += [f"{name:20}{size:.3f}" for size, name in sorted(sites, reverse=True)[:most]]
    lines += ["", "by rank:"] + [f"{name:20}{size:.3f}{z}" for size, name, z in sorted(ranks, reverse=True)[:most]]
    return "\n".join(lines)


def draw(system: Zhyper, descriptions: Sequence[str], facet: str, figure) -> None:
    """z of those descriptions; for a run on the built-in cultures also z of many contexts, and the way between two."""
    cultures = system.template == "Q: {}\nA:"  # only they are asked so
    panels = figure.subplots(1, 3 if cultures else 1, squeeze=False, width_ratios=[1.6, 1, 1] if cultures else None)[0]
    draw_z(system, descriptions, panels[0])
    if cultures:
        draw_contexts(system, facet, panels[1])
        draw_path(system, panels[2])


@torch.no_grad()
def draw_z(system: Zhyper, descriptions: Sequence[str], panel) -> None:
    """The size of every rank-one term as a heat map: sites down, ranks across, one block for each description."""
    updates = system.adapt(descriptions)
    z = torch.stack([update.terms() for update in updates.values()], dim=1)  # (n, l·m, r)
    gap = torch.full((*z.shape[:2], 2), math.nan)
    image = torch.cat([z, gap], dim=2).transpose(0, 1).flatten(1)[:, :-2]  # (l·m, n·(r + 2) - 2)
    limit = z.abs().quantile(0.99).item()  # the largest are let off the scale, so that the others can be seen
    colours = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    picture = panel.imshow(image.numpy(), aspect="auto", interpolation="nearest", **colours)
    panel.figure.colorbar(picture, ax=panel, extend="both", label="size of a rank-one term, with z's sign")
    starts = [i * (z.shape[2] + 2) for i in range(len(descriptions))]
    panel.set_xticks([start + z.shape[2] / 2 for start in starts], [str(i + 1) for i in range(len(descriptions))])
    panel.set_yticks(range(len(updates)), [f"layer {l} {m}" for l, m in updates], fontsize=7)
    panel.set(title="z: sites × ranks", xlabel="description")


@torch.no_grad()
def draw_contexts(system: Zhyper, facet: str, panel, n: int = 512) -> None:
    """z of n cultures' descriptions on their two principal components, coloured by their values of one facet."""
    from data.cultures import ANSWERS, NAMES, describe, draw_culture

    rng = random.Random(0)
    cultures = [draw_culture(rng, None) for _ in range(n)]  # of no region, whose values would go together
    others = [name for name in NAMES if name != facet]
    texts = [describe(rng, culture, [facet, rng.choice(others)]) for culture in cultures]
    z = torch.cat([update.terms() for update in system.adapt(texts).values()], dim=1)  # (n, l·m·r)
    U, S, _ = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    share = S.square() / S.square().sum()
    for value, answer in enumerate(ANSWERS[facet]):
        rows = torch.tensor([culture[facet] == value for culture in cultures])
        panel.scatter(*(U[rows, :2] * S[:2]).T.numpy(), s=6, label=answer)
    panel.legend(fontsize=7, title=facet, title_fontsize=7)
    panel.set(title=f"z of {n} descriptions")
    panel.set(xlabel=f"component 1 ({share[0]:.0%} of the variance)", ylabel=f"component 2 ({share[1]:.0%})")


@torch.no_grad()
def draw_path(system: Zhyper, panel, pairs: int = 32) -> None:
    """How often the answer is the first culture's and how often the second's, on the way from one to the other."""
    from data.cultures import NAMES, ask, describe, draw_culture

    rng, rows = random.Random(0), []
    while len(rows) < 4 * pairs:
        first, second = (draw_culture(rng, rng.randrange(8)) for _ in range(2))
        differing = [facet for facet in NAMES if first[facet] != second[facet]]
        if len(differing) < 4:
            continue
        facets = rng.sample(differing, 4)
        told = [describe(rng, culture, facets) for culture in (first, second)]
        for facet in facets:
            state = rng.getstate()
            prompt, answer = ask(rng, facet, first[facet])
            rng.setstate(state)  # the same question again
            rows.append((prompt, answer, ask(rng, facet, second[facet])[1], told))
    shares, exact = [i / 10 for i in range(11)], ([], [])
    for share in shares:
        contexts = [mix(*told, share) for *_, told in rows]
        for side, curve in enumerate(exact):
            right = system.score([row[0] for row in rows], [row[1 + side] for row in rows], contexts)[2]
            curve.append(right.float().mean().item())
    panel.plot(shares, exact[0], label="answers of the first")
    panel.plot(shares, exact[1], label="answers of the second")
    panel.legend(fontsize=7, loc="center left")
    panel.set(title=f"between two cultures ({pairs} pairs)", xlabel="share of the second", ylabel="accuracy")


# ---- the command line

BACKBONES = {  # layers and (d_in, d_out) of the linears, for `params`; q|k|v of GPT-2 counted apart
    "mistral-7b": (32, 4096, {"q": (4096, 4096), "k": (4096, 1024), "v": (4096, 1024), "o": (4096, 4096)}, 14336),
    "llama-3.1-8b": (32, 4096, {"q": (4096, 4096), "k": (4096, 1024), "v": (4096, 1024), "o": (4096, 4096)}, 14336),
    "gemma-2-2b": (26, 2304, {"q": (2304, 2048), "k": (2304, 1024), "v": (2304, 1024), "o": (2048, 2304)}, 9216),
    "gpt2": (12, 768, {m: (768, 768) for m in ("q", "k", "v", "o")}, 3072),
}


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line on stderr and exit code 2."""

    def error(self, message: str) -> None:
        self.exit(2, f"error: {message} ({self.prog} -h lists what there is)\n")


def one_line_errors(main) -> None:
    """Run a main function: an error of the user's is one line on stderr and exit code 2, not a traceback."""
    try:
        main()
    except (ValueError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)


def command_generate(args: argparse.Namespace) -> None:
    system = Zhyper.load(args.run, args.method)
    description = check_text("description", args.description)
    prompt = to_prompt(system, check_text("prompt", args.prompt.replace("\\n", "\n")))
    adapted = system.generate([prompt], [description], **sampling(args))
    print("frozen: ", *system.generate([prompt], None, **sampling(args)))
    print("adapted:", *adapted)


def command_chat(args: argparse.Namespace) -> None:
    """Until /quit, Ctrl-D or Ctrl-C. Piped, it writes each line that it reads, so that what comes out can be read."""
    chat, typed = Chat(Zhyper.load(args.run, args.method), sampling(args)), sys.stdin.isatty()
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(errors="replace")
    if typed:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  arrow keys and history, where the system has them
        print("/describe TEXT says who answers; then ask. /help lists the other commands.")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            line = input("> ")
            if not typed:
                print(line if line.isprintable() else ascii(line))
            try:
                if line.strip():
                    print(chat.reply(line), flush=True)
            except ValueError as error:
                print("error:", " ".join(str(error).split()), flush=True)
    print()


def command_inspect(args: argparse.Namespace) -> None:
    import data.cultures

    descriptions = [check_text("description", text) for text in args.description or EXAMPLES]
    if len(descriptions) < 2:
        raise ValueError("there is one description: give another --description to compare it with")
    check_choice("facet", args.facet, data.cultures.NAMES)
    system = Zhyper.load(args.run, args.method)
    if system.adapter is None or not system.adapter.conditioned or system.by_name:
        raise ValueError(f"{args.method} makes no adapter from a text: look into another --method")
    print(compare(system, *descriptions[:2]))
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no figure: for that, pip install matplotlib")
        return
    figure, path = Figure(figsize=(15, 4.5), layout="constrained"), args.to or Path(args.run) / "inspect.png"
    draw(system, descriptions, args.facet, figure)
    figure.savefig(path, dpi=90, format="png")
    print(f"\nthe figure is {path}")


def command_export(args: argparse.Namespace) -> None:
    system = Zhyper.load(args.run, args.method)
    system.export(check_text("description", args.description), args.to, args.backbone, args.force)
    print(f"the adapter is {args.to}" + (f", the backbone {args.backbone}" if args.backbone else ""))


def command_params(args: argparse.Namespace) -> None:
    if args.d_text < 1:
        raise ValueError(f"d-text is {args.d_text}: it must be at least 1")
    layers, width, shapes, inner = BACKBONES[args.backbone]
    shapes = {**shapes, "up": (width, inner), "down": (inner, width)}
    modules = args.modules.replace(" ", "").split(",")
    counts = {}
    for kind in ("lora", "t2l", "zhyper-diag", "zhyper-square"):
        config = AdapterConfig(kind, args.rank, modules=tuple(modules), trunk=args.trunk)
        counts[kind] = count_parameters(config, layers, shapes, args.d_text)
    if args.json:
        print(json.dumps({"backbone": args.backbone, "rank": args.rank, "modules": modules, "methods": counts}))
        return
    for kind, count in counts.items():
        print(f"{kind:15}{count:>15,}   {count / counts['zhyper-diag']:6.2f} × zhyper-diag")


def sampling(args: argparse.Namespace) -> dict:
    return {name: getattr(args, name) for name in ("max_new_tokens", "temperature", "top_k", "seed")}


def main() -> None:
    parser = Parser(prog="zhyper.py", description="Use a trained system, or count what one would train.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)

    def command(function, text: str) -> Parser:
        added = commands.add_parser(function.__name__.removeprefix("command_"), help=text)
        added.set_defaults(run_command=function)
        return added

    chat = command(command_chat, "describe somebody, then ask: the frozen and the adapted answer, side by side")
    generate = command(command_generate, "the same for one question")
    inspect = command(command_inspect, "what differs between descriptions; with matplotlib also a figure of z")
    export = command(command_export, "write the adapter of one description as a folder for the peft library")
    params = command(command_params, "parameters that each method would train at a known model's size")
    for added in (chat, generate, inspect, export):
        added.add_argument("--run", default="out/cultures", help="a folder that train.py wrote (default: %(default)s)")
        added.add_argument("--method", default="zhyper-diag", help="which of its methods (default: %(default)s)")
    for added in (chat, generate):
        added.add_argument("--max-new-tokens", type=int, default=32, help="(default: %(default)s)")
        added.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default)")
        added.add_argument("--top-k", type=int, default=0, help="draw from so many likeliest tokens (0, default: all)")
        added.add_argument("--seed", type=int, default=0, help="of what is drawn (default: %(default)s)")
    generate.add_argument("--description", required=True, help="the text to adapt to")
    generate.add_argument("--prompt", required=True, help="a question, or a whole prompt if it holds a \\n")
    inspect.add_argument("--description", action="append", help="give it twice or more often (default: four greetings)")
    inspect.add_argument("--facet", default="greeting", help="of the cultures, to colour by (default: %(default)s)")
    inspect.add_argument("--to", help="the figure's file (default: inspect.png in the run folder)")
    export.add_argument("--description", required=True, help="the text to adapt to")
    export.add_argument("--to", required=True, help="the folder to write")
    export.add_argument("--backbone", help="write the frozen model into this folder too, as a GPT-2 for transformers")
    export.add_argument("--force", action="store_true", help="write into folders that exist")
    params.add_argument("--backbone", choices=BACKBONES, default="mistral-7b", help="(default: %(default)s)")
    params.add_argument("--rank", type=int, default=8, help="(default: %(default)s)")
    params.add_argument("--modules", default="q,v", help="(default: %(default)s)")
    params.add_argument("--trunk", default="paper", help="paper or gated (default: %(default)s)")
    params.add_argument("--d-text", type=int, default=1024, help="width of the text embedding (default: %(default)s)")
    params.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    args.run_command(args)


if __name__ == "__main__":
    one_line_errors(main)
