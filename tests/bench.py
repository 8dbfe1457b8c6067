"""How fast things are, as ratios: what is compared takes turns, so that a slow minute slows both.

python tests/bench.py                      # every section
python tests/bench.py generation           # one of them
python tests/bench.py --json bench.json    # the same figures for a program to read
python tests/bench.py training --width 512 --dtype bf16 --device cuda
python tests/bench.py real                 # against transformers and peft, with real models

A section is a function from the options to rows of its table; `SECTIONS` has them by name.
"""

import argparse
import importlib.util
import json
import math
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from data import columns, cultures  # noqa: E402
from data._cli import Parser, markdown, one_line_errors  # noqa: E402
from data._pretrained import find  # noqa: E402
from data._rows import batches, pad  # noqa: E402
from data._tokenizer import train_tokenizer  # noqa: E402
from hyper import HYPERNETWORKS, Adapter, HyperConfig, LowRank  # noqa: E402
from model import GPT, Encoder, ModelConfig, rotary  # noqa: E402
from train import PRESETS  # noqa: E402
from zhyper import Zhyper  # noqa: E402


@dataclass
class Row:
    """A figure, its spread over the repeats (half the distance of the quartiles), its limits."""

    what: str
    figure: float
    spread: float = 0.0
    unit: str = "×"
    least: float | None = None
    most: float | None = None

    def cells(self) -> list[str]:
        digits = 0 if self.figure >= 100 else 2
        spread = f" ±{self.spread:,.{digits}f}" if self.spread else ""
        figure = f"{self.figure:,.{digits}f}{spread} {self.unit}"
        limits = [f"{sign} {x:g}" for sign, x in (("≥", self.least), ("≤", self.most)) if x]
        met = (self.least or 0) <= self.figure <= (self.most or math.inf)
        verdict = {True: "yes", False: "no"}[met] if limits else "–"
        return [self.what, figure, " and ".join(limits) or "–", verdict]


def interleaved(cases: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each case, `repeats` times, in turns; each runs once before, untimed."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for repeat in range(repeats + 1):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(values: list[float]) -> tuple[float, float]:
    """Median, and half the distance between the quartiles.

    >>> summary([1.0, 2.0, 3.0, 4.0, 5.0])
    (3.0, 1.0)
    """
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, (high - low) / 2


def ratio(seconds: dict[str, list[float]], over: str, under: str) -> tuple[float, float]:
    """Median and spread of the ratios between the turns of two cases."""
    return summary([a / b for a, b in zip(seconds[over], seconds[under], strict=True)])


def speed(what: str, tokens: int, seconds: list[float]) -> Row:
    return Row(f"{what}: tokens", *summary([tokens / s for s in seconds]), "a second")


def new_hypernetwork(config: HyperConfig, sizes: ModelConfig, d_text: int) -> nn.Module:
    """One whose updates are not zero."""
    hypernetwork = HYPERNETWORKS[config.kind](config, sizes.layers, sizes.shapes, d_text)
    for name, weight in hypernetwork.named_parameters():
        if name.startswith("B."):
            nn.init.normal_(weight, std=0.02)
    return hypernetwork


# ---- generation


def default_system(texts: list[str], device: str) -> Zhyper:
    """An untrained system of the default sizes, whose backbone never ends an answer."""
    torch.manual_seed(0)
    preset = PRESETS["default"]
    tokenizer = train_tokenizer(texts, preset.backbone.vocab_size)
    backbone, encoder = GPT(preset.backbone), Encoder(preset.encoder)
    nn.init.zeros_(backbone.embed_tokens.weight[preset.backbone.eos])  # its logit: never largest
    hypernetwork = new_hypernetwork(HyperConfig(), preset.backbone, preset.encoder.width)
    return Zhyper(tokenizer, backbone, encoder, hypernetwork).to(device).eval()


def write(model: GPT, rows: list[list[int]], adapter: Adapter, tokens: int, cached=True) -> Tensor:
    """Greedy generation; without the cache everything is read again for every token."""
    device = model.embed_tokens.weight.device
    ids, mask = (x.to(device) for x in pad(rows, left=True))
    padding, cache, read = (~mask).sum(1), {} if cached else None, ids
    for _ in range(tokens):
        features = model.features(read, adapter, cache, padding)[:, -1:]
        new = model.logits(features).argmax(-1)
        ids = torch.cat([ids, new], dim=1)
        read = new if cached else ids
    return ids


@torch.inference_mode()
def generation(args: Namespace) -> list[Row]:
    """Contexts in a batch, a merged model, a new description, the cache; all at default size."""
    records = cultures.load(None, 0).split("train")
    texts = list(dict.fromkeys(record.description for record in records))
    system, rows, few = default_system(texts, args.device), [], max(3, args.repeats // 4)
    model = system.backbone

    count, tokens = args.contexts, 32
    prompts = [record.prompt for record in records[:count]]
    ids, one, many = system.ids(prompts, "prompt"), [texts[0]] * count, texts[:count]
    adapters = system.adapt(texts[:1]), system.adapt(many)
    cases = {
        "one": lambda: write(model, ids, adapters[0], tokens),
        "many": lambda: write(model, ids, adapters[1], tokens),
        "one, read": lambda: system.generate(prompts, one, tokens),
        "many, read": lambda: system.generate(prompts, many, tokens),
    }
    seconds = interleaved(cases, few)
    what = f"{count:,} rows of {tokens} tokens, a context each against one for all"
    rows.append(Row(f"{what}: speed", *ratio(seconds, "one", "many"), least=0.9))
    what += ", descriptions read as well: speed"
    rows.append(Row(what, *ratio(seconds, "one, read", "many, read"), least=0.9))
    for name, whose in (("one", "one context"), ("many", "a context each")):
        rows.append(speed(f"{count:,} rows, {whose}", count * tokens, seconds[name]))

    few_ids, merged = ids[:8], system.merge(texts[0])
    cases = {"frozen": lambda: write(model, few_ids, {}, 64), "merged": lambda: write(merged, few_ids, {}, 64)}
    figure = ratio(interleaved(cases, 2 * args.repeats), "frozen", "merged")
    rows.append(Row("a merged model against the frozen one: speed", *figure, least=0.95, most=1.05))

    unread = iter(texts[count:])
    seconds = interleaved({"adapt": lambda: system.adapt([next(unread)])}, 10 * args.repeats)
    figure = summary([1000 * s for s in seconds["adapt"]])
    rows.append(Row("an adapter for a new description", *figure, "ms", most=10))

    for count, least in ((1, 5), (8, 5)):
        same = system.ids(["Q: Who rules?\nA:"] * count, "prompt")
        cases = {
            "without": lambda same=same: write(model, same, {}, 128, cached=False),
            "with": lambda same=same: write(model, same, {}, 128),
        }
        seconds, what = interleaved(cases, few), f"128 new tokens, {count} at a time"
        figure = ratio(seconds, "without", "with")
        rows.append(Row(f"{what}, with the cache against without: speed", *figure, least=least))
        rows.append(speed(f"{what}, with the cache", 128 * count, seconds["with"]))
    return rows


# ---- the training step


def step_of(model: GPT, ids: Tensor, hypernetwork, c: Tensor, dtype: str = "fp32") -> Callable:
    """The loss of ids (b, t) under the updates for c (b, d).

    Without a hypernetwork it is that of the frozen model, as a function of the embeddings.
    """
    autocast = torch.autocast(ids.device.type, torch.bfloat16, enabled=dtype == "bf16")
    config, at = model.config, torch.arange(ids.shape[1], device=ids.device)

    def loss() -> Tensor:
        x = model.embed_tokens(ids).detach().requires_grad_(hypernetwork is None)
        rope = rotary(at, config.width // config.heads, config.theta)
        updates = hypernetwork(c) if hypernetwork else {}
        with autocast:
            for block in model.layers:
                x = block(x, updates, rope)
            logits = model.logits(model.norm(x))  # (b, t, vocab)
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids.flatten())

    return loss


def kept_bytes(loss: Callable, *modules: nn.Module) -> int:
    """Bytes that autograd keeps between forward and backward, the modules' weights apart."""
    own = {p.untyped_storage().data_ptr() for module in modules for p in module.parameters()}
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = loss()  # while it lives nothing is freed, so no two storages have one address
    del held
    return sum(kept.values())


def new_backbone(*sizes: int) -> GPT:
    """A frozen GPT of that vocabulary, text length, layers, heads and width."""
    torch.manual_seed(0)
    vocab, tokens, layers, heads, width = sizes
    inner = 11 * width // 4
    return GPT(ModelConfig(vocab, tokens, layers, heads, heads, width, inner)).requires_grad_(False)


def training(args: Namespace) -> list[Row]:
    """A step of every method, c given, against one of the frozen backbone, on one CPU thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = new_backbone(args.vocab, args.tokens, args.layers, args.heads, args.width)
    model = model.to(args.device)
    ids = torch.randint(args.vocab, (args.rows, args.tokens), device=args.device)
    c = torch.randn(args.rows, 384, device=args.device)
    networks: dict[str, nn.Module | None] = {"frozen": None}
    for kind in HYPERNETWORKS:
        for trunk in ("gated", "paper") if HYPERNETWORKS[kind].reads_text else ("gated",):
            config = HyperConfig(kind, args.rank, 2 * args.rank, ("q", "v"), trunk=trunk)
            name = f"{kind} {trunk}" if HYPERNETWORKS[kind].reads_text else kind
            networks[name] = new_hypernetwork(config, model.config, 384).to(args.device)
    losses = {name: step_of(model, ids, net, c, args.dtype) for name, net in networks.items()}
    cases = {name: lambda loss=loss: loss().backward() for name, loss in losses.items()}
    seconds = interleaved(cases, args.repeats)
    frozen, rows = kept_bytes(losses["frozen"], model), []
    limits = {"zhyper-diag gated": (1.10, 1.10), "zhyper-square gated": (1.15, 1.10)}
    for name in [name for name, network in networks.items() if network]:
        time_limit, bytes_limit = limits.get(name, (None, None))
        figure = ratio(seconds, name, "frozen")
        rows.append(Row(f"{name}: time of the frozen step", *figure, most=time_limit))
        kept = kept_bytes(losses[name], model, networks[name]) / frozen
        rows.append(Row(f"{name}: bytes kept for backward", kept, most=bytes_limit))
    diag = "zhyper-diag gated"
    rows.append(Row(f"{diag} against lora: time", *ratio(seconds, diag, "lora"), most=1.03))
    rows.append(speed(diag, ids.numel(), seconds[diag]))
    torch.set_num_threads(threads)
    return rows


# ---- growth

GROWTH = {  # what is made larger, one at a time, from `BASE`
    "contexts": (1, 16, 256, 1024, 4096),
    "rank": (4, 8, 16, 32, 64),
    "layers": (1, 2, 4, 8),
    "width": (64, 128, 256, 512),
    "tokens": (32, 64, 128, 256),
}
BASE = {"contexts": 16, "rank": 8, "layers": 2, "width": 128, "tokens": 16}


def parts(contexts: int, rank: int, layers: int, width: int, tokens: int) -> dict[str, Callable]:
    """The three parts of a zhyper-diag step, forward and backward, a row of tokens a context."""
    model = new_backbone(512, tokens, layers, 4, width)
    hypernetwork = new_hypernetwork(HyperConfig("zhyper-diag", rank), model.config, 128)
    c, ids = torch.randn(contexts, 128), torch.randint(512, (contexts, tokens))

    def leaf(weight: Tensor) -> Tensor:
        return weight.detach().requires_grad_()

    made = hypernetwork(c).values()
    updates = [LowRank(leaf(u.A), leaf(u.B), leaf(u.z), u.scale) for u in made]
    x = torch.randn(contexts, tokens, width)
    return {
        "backbone": lambda: step_of(model, ids, None, c)().backward(),
        "generate": lambda: sum(u.z.sum() for u in hypernetwork(c).values()).backward(),
        "apply": lambda: sum(u(x).sum() for u in updates).backward(),
    }


def growth(args: Namespace) -> list[Row]:
    """The time of each part of a step is as size to the power of the figure, in the larger half."""
    rows = []
    for name, sizes in GROWTH.items():
        medians: dict[str, list[float]] = defaultdict(list)
        for size in sizes:
            seconds = interleaved(parts(**BASE | {name: size}), max(3, args.repeats // 4))
            for part, values in seconds.items():
                medians[part].append(statistics.median(values))
        half = len(sizes) // 2
        x, total = list(map(math.log, sizes[half:])), sum(values[-1] for values in medians.values())
        for part, values in medians.items():
            y = list(map(math.log, values[half:]))
            what = f"{part}: time as {name} to the power, {sizes[half]:,} to {sizes[-1]:,}"
            unit = f"and {values[-1] / total:.0%} of the step"
            rows.append(Row(what, statistics.linear_regression(x, y).slope, unit=unit))
    return rows


# ---- real models, against transformers and peft

PEERS = "transformers", "peft", "safetensors"
HEAD = "zhyper-diag, the head on every token"
UPPER = f"zhyper-diag, only from layer {PRESETS['real'].first} on"  # keeps the states below
OURS = {"lora": 1.0, "zhyper-diag": 1.0, HEAD: 1.05, UPPER: None}  # {name: limit of the time}


def real_models() -> tuple[str, str]:
    """The folders of SmolLM2 and MiniLM. Raises ValueError where they or the peers are missing."""
    missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"real needs {' and '.join(missing)}: pip install {' '.join(PEERS)}")
    preset = PRESETS["real"]
    names = os.environ.get("SMOLLM2", preset.backbone), os.environ.get("MINILM", preset.encoder)
    try:
        return tuple(str(find(name)) for name in names)
    except FileNotFoundError as error:
        raise ValueError(f"set SMOLLM2 and MINILM to the folders of these models: {error}") from None


def real_rows(encode: Callable, args: Namespace, eos: int) -> tuple:
    """Two questions on each of `--rows` descriptions: the texts, and ids, mask and labels (b, t).

    Labels are as transformers takes them: -100 is not to be predicted.
    """
    texts = columns(next(batches(cultures.load(None, 0).split("train"), args.rows, 2, 0)))
    pairs = [*zip(encode(texts[0]), encode(texts[1]), strict=True)]
    ids, mask = pad([[*p, *a, eos] for p, a in pairs])
    labels, _ = pad([[-100] * len(p) + [*a, eos] for p, a in pairs])
    return texts, *(x.to(args.device) for x in (ids, mask, labels.masked_fill(~mask, -100)))


def train_step(loss: Callable, network: nn.Module, args: Namespace) -> Callable[[], float]:
    """Forward, backward, clip and AdamW of what is not frozen."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)

    def step() -> float:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bf16"):
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return value.item()

    return step


def peft_step(args: Namespace) -> Callable[[], float]:
    """A step of peft's LoRA on transformers' SmolLM2, as their users take it, but without a cache."""
    peft, transformers = map(importlib.import_module, ("peft", "transformers"))
    transformers.utils.logging.disable_progress_bar()
    folder, _ = real_models()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = peft.LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(model, config).to(args.device).train()
    _, *rows, labels = real_rows(lambda texts: tokenizer(texts).input_ids, args, model.config.eos_token_id)
    return train_step(lambda: model(*rows, labels=labels, use_cache=False).loss, model, args)


def real_system(name: str, args: Namespace, base: Zhyper) -> tuple[Zhyper, Callable[[], float]]:
    """One of `OURS` on the backbone of `base`, and its step, which tokenizes the rows every time."""
    kind, sizes = name.partition(",")[0], base.backbone.config
    encoder = None if kind == "lora" else Encoder.from_pretrained(real_models()[1]).requires_grad_(False)
    first = min(PRESETS["real"].first, sizes.layers - 1) if name == UPPER else 0
    hypernetwork = base.new_hypernetwork(HyperConfig(kind, args.rank, 2 * args.rank, ("q", "v"), first), encoder)
    system = Zhyper(base.tokenizer, base.backbone, encoder, hypernetwork).to(args.device).train()
    texts, ids, _, labels = real_rows(lambda texts: system.ids(texts, "answer"), args, sizes.eos)
    labels = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)  # what follows each token

    def loss() -> Tensor:
        if name == HEAD:
            logits = system.backbone(ids, system.adapt(texts[2])).float()
            return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss, tokens, _ = system(*texts)
        return loss.sum() / tokens.sum()

    return system, train_step(loss, hypernetwork, args)


def peak_memory(args: Namespace) -> float:
    """GiB that this process has taken at most, after three steps of `args.alone` and nothing else."""
    base = None if args.alone == "peft" else Zhyper.from_pretrained(real_models()[0])
    step = real_system(args.alone, args, base)[1] if base else peft_step(args)
    for _ in range(3):
        step()
    if args.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status")  # on Linux ru_maxrss begins with that of who started the process
    high = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.exists() else None
    return (int(high[1]) if high else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 2**20


def real(args: Namespace) -> list[Row]:
    """A step of ours through SmolLM2 against one of transformers and peft, and a new description."""
    base = Zhyper.from_pretrained(real_models()[0])
    systems = {name: real_system(name, args, base) for name in OURS}
    cases = {"peft": peft_step(args)} | {name: step for name, (_, step) in systems.items()}
    seconds, peaks = interleaved(cases, args.repeats), {}
    rows = [Row(f"{k}: time of peft's LoRA", *ratio(seconds, k, "peft"), most=most) for k, most in OURS.items()]
    for name in ("peft", "lora", "zhyper-diag"):
        options = [f"--{k}={getattr(args, k)}" for k in ("device", "dtype", "rows", "rank")]
        command = [sys.executable, __file__, "--alone", name, *options]
        peaks[name] = float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.split()[-1])
    for name, peak in [*peaks.items()][1:]:
        unit = f"× ({peak:.2f} and {peaks['peft']:.2f} GiB)"
        rows.append(Row(f"{name}: peak memory of peft's LoRA", peak / peaks["peft"], 0.0, unit, most=1.0))
    tokens = int(real_rows(lambda texts: base.ids(texts, "answer"), args, 0)[2].sum())  # without padding
    rows += [speed(name, tokens, seconds[name]) for name in cases]
    system, texts = systems["zhyper-diag"][0], columns(cultures.load(None, 0).split("train"))[2]
    unread = iter(sorted({*texts} - {*system.embeddings}))
    with torch.inference_mode():
        seconds = interleaved({"adapt": lambda: system.adapt([next(unread)])}, 10 * args.repeats)
    return [*rows, Row("an adapter for a new description", *summary([1000 * s for s in seconds["adapt"]]), "ms")]


SECTIONS = {"training": training, "growth": growth, "generation": generation, "real": real}


def main() -> None:
    parser = Parser(prog="bench.py", description="Measure, and print a table for each section.")
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all if left out")
    parser.add_argument("--json", help="write the figures into this file too")
    parser.add_argument("--device", default="cpu", help="of generation and training")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="of training")
    parser.add_argument("--repeats", type=int, default=12, help="turns of each comparison")
    parser.add_argument("--contexts", type=int, default=1000, help="of generation")
    sizes = {"layers": 6, "width": 256, "heads": 8, "vocab": 2048, "rows": 16, "tokens": 128}
    for name, default in (sizes | {"rank": 8}).items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"of training: {default}")
    parser.add_argument("--alone", choices=["peft", *OURS], help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in args.sections:
        if name not in SECTIONS:
            parser.error(f"unknown section {name!r}: choose from {', '.join(SECTIONS)}")
    if args.alone:
        return print(peak_memory(args))
    chosen = dict.fromkeys(args.sections or SECTIONS)
    if not args.sections:
        try:
            real_models()
        except ValueError as error:
            print(f"without real: {error}")
            del chosen["real"]
    tables = {name: SECTIONS[name](args) for name in chosen}
    for name, rows in tables.items():
        head = [name, "figure", "must be", "is"]
        print(markdown(head, [row.cells() for row in rows]), end="\n\n")
    card = f"{torch.get_num_threads()} threads"
    if args.device == "cuda":
        card = torch.cuda.get_device_name()
    print(f"torch {torch.__version__}, {card}; medians ± half the distance of the quartiles")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the process: {memory:.2f} GiB")
    if args.json:
        content = {name: [asdict(row) for row in rows] for name, rows in tables.items()}
        Path(args.json).write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    one_line_errors(main)
