"""Zhyper, assembled: a description goes in, an adapted language model comes out.

    description --tokenizer, Encoder--> c --adapter--> {site: ΔW} --> frozen GPT --> answer

    python zhyper.py generate --run out/cultures --description "..." --prompt "..."
    python zhyper.py params --backbone mistral-7b --rank 8 --modules q,v

>>> system = Zhyper.load("out/cultures")                                              # doctest: +SKIP
>>> system.generate(["Q: How do people greet each other?\\nA:"], ["In this land people bow low to one another."])
[' with a deep bow']
"""

import argparse
import copy
import hashlib
import io
import json
import os
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import tokenizers
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hyper import ADAPTERS, AdapterConfig, Adapters, count_parameters
from model import GPT, Cache, ContextTable, Encoder, ModelConfig

PAD, END = 0, 1  # the ids of <pad> and <end>
FORMAT = 2  # of the saved files; a reader of another number refuses


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
        ids = pad(self.ids(descriptions, "description", self.encoder.config.context), self.device)
        return self.encoder(ids, ids != PAD)

    def adapt(self, descriptions: Sequence[str | None]) -> Adapters:
        """The update of every site, row i for descriptions[i]; equal descriptions are encoded once.

        None stands for "no description": the encoder's mean over contexts, so an adapter that has been told nothing.
        """
        if self.adapter is None:
            return {}
        if not self.adapter.conditioned:
            return self.adapter()
        distinct = list(dict.fromkeys(descriptions))
        told = [text for text in distinct if text is not None]
        c = self.embed(told) if told else torch.empty(0, self.encoder.width, device=self.device)
        if None in distinct:
            at = distinct.index(None)
            c = torch.cat([c[:at], self.adapter.trunk.centre.running_mean[None], c[at:]])
        index = torch.tensor([distinct.index(text) for text in descriptions], device=self.device)
        return {site: update.rows(index) for site, update in self.adapter(c).items()}

    def prompt_ids(self, prompts: Sequence[str], descriptions: Sequence[str | None] | None) -> list[list[int]]:
        """Token ids of each prompt, with its description before it if that is how this system is told."""
        if self.in_prompt and descriptions is not None:
            pairs = zip(prompts, descriptions, strict=True)
            prompts = [prompt if text is None else f"{text}\n{prompt}" for prompt, text in pairs]
        return self.ids(prompts, "prompt", self.backbone.config.context - 1)

    # ---- updates to answers

    def score(
        self, prompts: Sequence[str], answers: Sequence[str], descriptions: Sequence[str | None] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """How well each answer fits: its loss summed over tokens (nats), its number of tokens, exact or not; each (b,).

        An answer is exact if greedy generation would write it and then stop: one pass tells, because generation
        would read the same tokens. Without descriptions it is the frozen model that is scored.
        """
        asked = self.prompt_ids(prompts, descriptions)
        answered = [[*row, END] for row in self.ids(answers, "answer")]
        ids = pad([p + a for p, a in zip(asked, answered, strict=True)], self.device)  # (b, t)
        at = torch.arange(ids.shape[1] - 1, device=self.device)
        start = torch.tensor([len(p) - 1 for p in asked], device=self.device)
        count = torch.tensor([len(a) for a in answered], device=self.device)
        predicts = (at >= start[:, None]) & (at < (start + count)[:, None])  # (b, t-1): these predict the answer
        features = self.backbone.features(ids[:, :-1], {} if descriptions is None else self.adapt(descriptions))
        logits, target = self.backbone.logits(features[predicts]), ids[:, 1:][predicts]  # answer tokens only
        row = predicts.nonzero()[:, 0]
        loss = F.cross_entropy(logits.float(), target, reduction="none")
        total = torch.zeros(len(ids), device=self.device).index_add(0, row, loss)
        wrong = torch.zeros_like(total).index_add(0, row, (logits.argmax(-1) != target).float())
        return total, count, wrong == 0

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[str], descriptions: Sequence[str] | None = None, max_new_tokens: int = 32
    ) -> list[str]:
        """The answer to each prompt, greedily, every row under its own description (None: the frozen model).

        Raises ValueError for an empty or too long text, or fewer than one new token.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}: it must be at least 1")
        self.eval()
        rows = self.prompt_ids(prompts, descriptions)
        updates = {} if descriptions is None else self.adapt(descriptions)
        ids, config = pad(rows, self.device), self.backbone.config
        room = min(max_new_tokens, config.context - ids.shape[1])
        cache = Cache(config, len(rows), ids.shape[1] + room, self.device, self.backbone.token.weight.dtype)
        last = torch.tensor([len(row) - 1 for row in rows], device=self.device)
        features = self.backbone.features(ids, updates, cache)[torch.arange(len(rows)), last]  # (b, d)
        cache.length = last + 1  # what was padding is overwritten
        written = torch.empty(len(rows), 0, dtype=torch.long, device=self.device)
        for _ in range(room):
            token = self.backbone.logits(features).argmax(-1, keepdim=True)  # (b, 1)
            written = torch.cat([written, token], dim=1)
            if (written == END).any(1).all():
                break
            features = self.backbone.features(token, updates, cache)[:, 0]
            cache.length = cache.length + 1
        answers = [row[: row.index(END)] if END in row else row for row in written.tolist()]
        return self.tokenizer.decode_batch(answers)

    @torch.no_grad()
    def merge(self, description: str) -> GPT:
        """A plain GPT with the weights W + ΔW of one description, and nothing else."""
        self.eval()
        merged = copy.deepcopy(self.backbone)
        for (layer, module), update in self.adapt([description]).items():
            block, delta = merged.blocks[layer], update.delta()
            part = block.mlp if module in ("up", "down") else block.attention
            getattr(part, module).weight += delta if delta.dim() == 2 else delta[0]
        return merged

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


@contextmanager
def rebuilding(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong in rebuilding from the content of `path` into one ValueError that names the file."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"{path} does not fit: {reason}: train again (--force) to replace it") from None


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
    prompt = args.prompt.replace("\\n", "\n")
    if not prompt.strip():
        raise ValueError("the prompt is empty: write at least a word")
    prompt = prompt if "\n" in prompt else system.template.format(prompt)
    adapted = system.generate([prompt], [args.description], args.max_new_tokens)
    print("frozen: ", *system.generate([prompt], None, args.max_new_tokens))
    print("adapted:", *adapted)


def command_params(args: argparse.Namespace) -> None:
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


def main() -> None:
    parser = Parser(prog="zhyper.py", description="Use a trained system, or count what one would train.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    generate = commands.add_parser("generate", help="the frozen and the adapted answer, side by side")
    generate.add_argument("--run", default="out/cultures", help="a folder that train.py wrote (default: %(default)s)")
    generate.add_argument("--method", default="zhyper-diag", help="which of its methods (default: %(default)s)")
    generate.add_argument("--description", required=True, help="the text to adapt to")
    generate.add_argument("--prompt", required=True, help="a question, or a whole prompt if it holds a \\n")
    generate.add_argument("--max-new-tokens", type=int, default=32, help="(default: %(default)s)")
    generate.set_defaults(run_command=command_generate)
    params = commands.add_parser("params", help="parameters that each method would train at a known model's size")
    params.add_argument("--backbone", choices=BACKBONES, default="mistral-7b", help="(default: %(default)s)")
    params.add_argument("--rank", type=int, default=8, help="(default: %(default)s)")
    params.add_argument("--modules", default="q,v", help="(default: %(default)s)")
    params.add_argument("--trunk", default="paper", help="paper or gated (default: %(default)s)")
    params.add_argument("--d-text", type=int, default=1024, help="width of the text embedding (default: %(default)s)")
    params.add_argument("--json", action="store_true", help="print one JSON object")
    params.set_defaults(run_command=command_params)
    args = parser.parse_args()
    args.run_command(args)


if __name__ == "__main__":
    one_line_errors(main)
