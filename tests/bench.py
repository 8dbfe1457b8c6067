"""How fast things are, as ratios within one run: what is compared takes turns, so that a slow minute slows both.

python tests/bench.py                      # every section
python tests/bench.py generation           # one of them
python tests/bench.py --json bench.json    # the same figures for a program to read
python tests/bench.py training --width 512 --dtype bf16 --device cuda

A section is a function from the command line's options to the lines of a table; `SECTIONS` names it.
"""

import argparse
import itertools
import json
import math
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent.parent))

from data import cultures  # noqa: E402
from hyper import AdapterConfig, LowRank  # noqa: E402
from model import GPT, Encoder, ModelConfig  # noqa: E402
from train import DTYPES, PRESETS, markdown  # noqa: E402
from zhyper import END, Zhyper, build_adapter, train_tokenizer  # noqa: E402

REACHED = {True: "yes", False: "no", None: "–"}  # None if it must reach nothing


@dataclass
class Row:
    """A figure, its spread over the repeats (half the distance of the quartiles), and what it must reach."""

    what: str
    figure: float
    spread: float
    unit: str
    target: str = "–"
    met: bool | None = None

    HEAD = ["what", "figure", "must reach", "reached"]

    def cells(self) -> list[str]:
        digits = 0 if self.figure >= 100 else 2
        figure = f"{self.figure:,.{digits}f} ±{self.spread:,.{digits}f} {self.unit}"
        return [self.what, figure, self.target, REACHED[self.met]]


@dataclass
class Step:
    """A method's training step as ratios to the frozen backbone's own: its time, and the bytes that autograd keeps."""

    what: str
    time: float
    spread: float
    kept: float
    most_time: float | None = None  # what they may be, if they must reach something
    most_kept: float | None = None

    HEAD = ["training step", "time", "bytes kept", "must reach", "reached"]

    @property
    def met(self) -> bool | None:
        return self.time <= self.most_time and self.kept <= self.most_kept if self.most_time else None

    def cells(self) -> list[str]:
        target = f"≤ {self.most_time:.2f}, ≤ {self.most_kept:.2f}" if self.most_time else "–"
        return [self.what, f"{self.time:.2f} ±{self.spread:.2f} ×", f"{self.kept:.2f} ×", target, REACHED[self.met]]


@dataclass
class Growth:
    """How the time of each part of a step grows with one size: as size to the power of the exponent."""

    what: str
    largest: int
    exponents: dict[str, float]
    shares: dict[str, float]  # of the step at the largest size

    HEAD = ["what grows", *(f"{part}: exponent, share" for part in ("backbone", "generate", "apply")), "most is"]

    def cells(self) -> list[str]:
        parts = [f"{self.exponents[part]:.2f}, {self.shares[part]:.0%}" for part in self.exponents]
        return [f"{self.what}, to {self.largest:,}", *parts, max(self.shares, key=self.shares.get)]


def interleaved(cases: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each case, `repeats` times, the cases taking turns; each runs once before, untimed."""
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


def at_least(target: float, what: str, figure: tuple[float, float]) -> Row:
    return Row(what, *figure, "×", f"≥ {target}", figure[0] >= target)


def at_most(target: float, what: str, figure: tuple[float, float]) -> Row:
    return Row(what, *figure, "×", f"≤ {target}", figure[0] <= target)


# ---- generation


def default_system(texts: list[str], device: str) -> Zhyper:
    """An untrained system of the default size whose updates are not zero and whose backbone never ends an answer."""
    torch.manual_seed(0)
    sizes = PRESETS["default"]
    tokenizer = train_tokenizer(texts, sizes.backbone.vocab)
    encoder, adapter = Encoder(sizes.encoder), moving(AdapterConfig(), sizes.backbone, sizes.encoder.width)
    backbone = GPT(sizes.backbone)
    torch.nn.init.zeros_(backbone.token.weight[END])  # its logit is 0, never the largest
    return Zhyper(tokenizer, backbone, encoder, adapter, template="Q: {}\nA:").to(device).eval()


def moving(config: AdapterConfig, backbone: ModelConfig, d_text: int) -> torch.nn.Module:
    """An adapter whose updates are not zero."""
    adapter = build_adapter(config, backbone, d_text)
    for name, weight in adapter.named_parameters():
        if name.startswith("B."):
            torch.nn.init.normal_(weight, std=0.02)
    return adapter


def uncached(model: GPT, ids: torch.Tensor, tokens: int) -> torch.Tensor:
    """Greedy generation that reads everything again for every token: what the cache saves."""
    for _ in range(tokens):
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], dim=1)
    return ids


@torch.inference_mode()
def generation(args: argparse.Namespace) -> list[Row]:
    """Contexts in a batch, a merged model, a new description, the cache; all at the default size."""
    records = cultures.load(None, 0).split("train")
    texts = list(dict.fromkeys(record.description for record in records))
    system, rows = default_system(texts, args.device), []
    few, greedy = max(3, args.repeats // 4), {"temperature": 0.0, "top_k": 0, "seed": 0}

    def speed(what: str, tokens: int, seconds: list[float]) -> None:
        rows.append(Row(f"{what}: tokens", *summary([tokens / s for s in seconds]), "a second"))

    count, tokens = args.contexts, 32
    prompts = [record.prompt for record in records[:count]]
    ids, one, many = system.ids(prompts), system.adapt(texts[:1]), system.adapt(texts[:count])
    cases = {
        "one": lambda: system.write(ids, one, tokens, **greedy),
        "many": lambda: system.write(ids, many, tokens, **greedy),
        "one, read": lambda: system.generate(prompts, texts[:1] * count, tokens),
        "many, read": lambda: system.generate(prompts, texts[:count], tokens),
    }
    seconds = interleaved(cases, few)
    what = f"{count:,} rows of {tokens} tokens, a context each against one for all"
    rows.append(at_least(0.9, f"{what}: speed", ratio(seconds, "one", "many")))
    rows.append(at_least(0.9, f"{what}, descriptions read as well: speed", ratio(seconds, "one, read", "many, read")))
    speed(f"{count:,} rows, one context", count * tokens, seconds["one"])
    speed(f"{count:,} rows, a context each", count * tokens, seconds["many"])

    ids, merged = system.ids(prompts[:8]), Zhyper(system.tokenizer, system.merge(texts[0]))
    cases = {
        "frozen": lambda: system.write(ids, {}, 64, **greedy),
        "merged": lambda: merged.write(ids, {}, 64, **greedy),
    }
    figure, spread = ratio(interleaved(cases, 2 * args.repeats), "frozen", "merged")
    met = abs(figure - 1) <= 0.05
    rows.append(Row("a merged model against the frozen one: speed", figure, spread, "×", "1 ± 0.05", met))

    unread = iter(texts[count:])
    seconds = interleaved({"adapt": lambda: system.adapt([next(unread)])}, 10 * args.repeats)
    figure, spread = summary([1000 * s for s in seconds["adapt"]])
    rows.append(Row("an adapter for a new description", figure, spread, "ms", "< 10", figure < 10))

    for count in (1, 8):
        ids = system.ids(["Q: Who rules?\nA:"] * count)  # of one length, so the slow path pads nothing
        cases = {
            "without": lambda ids=ids: uncached(system.backbone, torch.tensor(ids, device=args.device), 128),
            "with": lambda ids=ids: system.write(ids, {}, 128, **greedy),
        }
        seconds, what = interleaved(cases, few), f"128 new tokens, {count} at a time"
        rows.append(at_least(5, f"{what}, with the cache against without: speed", ratio(seconds, "without", "with")))
        for name in cases:
            speed(f"{what}, {name} cache", 128 * count, seconds[name])
    return rows


# ---- the training step


def step_of(
    model: GPT, ids: torch.Tensor, adapter: torch.nn.Module | None, c: torch.Tensor, dtype: str = "fp32"
) -> Callable:
    """The loss of ids (b, t) under the adapter's updates for c (b, d); without one, as a function of the embeddings."""
    autocast = torch.autocast(ids.device.type, torch.bfloat16, enabled=dtype == "bf16")

    def loss() -> torch.Tensor:
        x = model.token(ids) + model.position(torch.arange(ids.shape[1], device=ids.device))
        x = x.detach().requires_grad_(adapter is None)
        updates = adapter(c) if adapter else {}
        with autocast:
            for block in model.blocks:
                x = block(x, updates, None, None)
            logits = model.logits(model.norm(x))  # (b, t, vocab)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids.flatten())

    return loss


def kept_bytes(loss: Callable, *modules: torch.nn.Module) -> int:
    """Bytes that autograd keeps between forward and backward, the weights of the modules apart."""
    own, kept = {p.untyped_storage().data_ptr() for module in modules for p in module.parameters()}, {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = loss()  # while it lives nothing is freed, so no two storages have one address
    del held
    return sum(kept.values())


def frozen_gpt(config: ModelConfig) -> GPT:
    torch.manual_seed(0)
    return GPT(config).requires_grad_(False)


def training(args: argparse.Namespace) -> list[Step | Row]:
    """The training step of every method against the frozen backbone's, on one thread of a CPU; c is given."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = ModelConfig(args.vocab, args.layers, args.heads, args.width, args.tokens)
    model = frozen_gpt(config).to(args.device)
    ids = torch.randint(args.vocab, (args.rows, args.tokens), device=args.device)
    c = torch.randn(args.rows, 384, device=args.device)
    targets = {"zhyper-diag gated": 1.10, "zhyper-square gated": 1.15}
    kinds = [("lora", "gated"), *((k, t) for k in ("zhyper-diag", "zhyper-square", "t2l") for t in ("gated", "paper"))]
    adapters: dict[str, torch.nn.Module | None] = {"frozen": None}
    for kind, trunk in kinds:
        name = kind if kind == "lora" else f"{kind} {trunk}"
        adapter = AdapterConfig(kind, args.rank, 2 * args.rank, ("q", "v"), trunk)
        adapters[name] = moving(adapter, config, 384).to(args.device)
    losses = {name: step_of(model, ids, adapter, c, args.dtype) for name, adapter in adapters.items()}
    square = torch.randn(2048, 2048, device=args.device, dtype=torch.bfloat16 if args.dtype == "bf16" else None)
    cases = {name: lambda loss=loss: loss().backward() for name, loss in losses.items()}
    seconds = interleaved(cases | {"product": lambda: square @ square}, args.repeats)
    kept = {name: kept_bytes(losses[name], model, *filter(None, [adapters[name]])) for name in losses}
    rows: list[Step | Row] = []
    for name in adapters:
        if adapters[name]:
            limits = (targets[name], 1.10) if name in targets else ()
            rows.append(Step(name, *ratio(seconds, name, "frozen"), kept[name] / kept["frozen"], *limits))
    diag = "zhyper-diag gated"
    rows.append(at_most(1.03, f"{diag} against lora: time", ratio(seconds, diag, "lora")))
    with FlopCounterMode(display=False) as counter:
        cases[diag]()
    rates = [counter.get_total_flops() / s for s in seconds[diag]]
    peaks = [2 * len(square) ** 3 / s for s in seconds["product"]]
    share = summary([100 * rate / peak for rate, peak in zip(rates, peaks, strict=True)])
    rows.append(Row(f"{diag}: speed, of that of one product of 2048²", *share, "%"))
    rows.append(Row(f"{diag}: tokens", *summary([ids.numel() / s for s in seconds[diag]]), "a second"))
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
    """The three parts of a Zhyper-diag step, forward and backward, for one row of `tokens` tokens a context."""
    config = ModelConfig(512, layers, 4, width, max(tokens, 64))
    model, adapter = frozen_gpt(config), moving(AdapterConfig("zhyper-diag", rank), config, 128)
    c, ids = torch.randn(max(contexts, 2), 128)[:contexts], torch.randint(512, (contexts, tokens))
    if contexts == 1:
        adapter.eval()  # one row has no statistics of its own

    def leaf(weight: torch.Tensor) -> torch.Tensor:
        return weight.detach().requires_grad_()

    updates = {site: LowRank(leaf(u.A), leaf(u.B), leaf(u.z), u.scale) for site, u in adapter(c).items()}
    x = torch.randn(contexts, tokens, width)
    return {
        "backbone": lambda: step_of(model, ids, None, c)().backward(),
        "generate": lambda: sum(u.z.sum() for u in adapter(c).values()).backward(),
        "apply": lambda: sum(u(x).sum() for u in updates.values()).backward(),
    }


def growth(args: argparse.Namespace) -> list[Growth]:
    """How the time of each part of a step grows, as the exponent over the larger half of the sizes, and its share."""
    rows = []
    for name, sizes in GROWTH.items():
        medians: dict[str, list[float]] = defaultdict(list)
        for size in sizes:
            seconds = interleaved(parts(**BASE | {name: size}), max(3, args.repeats // 4))
            for part, values in seconds.items():
                medians[part].append(statistics.median(values))
        half = len(sizes) // 2
        logs = {part: list(map(math.log, values[half:])) for part, values in medians.items()}
        sizes_log = list(map(math.log, sizes[half:]))
        exponents = {part: statistics.linear_regression(sizes_log, values).slope for part, values in logs.items()}
        total = sum(values[-1] for values in medians.values())
        shares = {part: values[-1] / total for part, values in medians.items()}
        rows.append(Growth(f"{name} from {sizes[half]:,}", sizes[-1], exponents, shares))
    return rows


SECTIONS = {"training": training, "growth": growth, "generation": generation}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure, and print a table for each section.")
    parser.add_argument("sections", nargs="*", metavar="section", help=f"of {', '.join(SECTIONS)}; all if left out")
    parser.add_argument("--repeats", type=int, default=12, help="turns of each comparison (default: %(default)s)")
    parser.add_argument("--json", help="write the figures into this file too")
    parser.add_argument("--device", default="cpu", help="of generation and training (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of training (default: %(default)s)")
    parser.add_argument("--contexts", type=int, default=1000, help="of generation (default: %(default)s)")
    sizes = {"layers": 6, "width": 256, "heads": 8, "vocab": 2048, "rows": 16, "tokens": 128, "rank": 8}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="of training (default: %(default)s)")
    args = parser.parse_args()
    for name in args.sections:
        if name not in SECTIONS:
            parser.error(f"unknown section {name!r}: choose from {', '.join(SECTIONS)}")
    tables = {name: SECTIONS[name](args) for name in args.sections or SECTIONS}
    for _, rows in itertools.groupby(itertools.chain(*tables.values()), type):
        rows = list(rows)
        print(markdown(rows[0].HEAD, [row.cells() for row in rows]), end="\n\n")
    card = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {card}; medians ± half the distance of the quartiles")
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    if args.json:
        content = {name: [asdict(row) for row in rows] for name, rows in tables.items()}
        Path(args.json).write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
