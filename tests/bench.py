"""How fast things are, as ratios within one run: what is compared takes turns, so that a slow minute slows both.

python tests/bench.py                      # every section
python tests/bench.py generation           # one of them
python tests/bench.py --json bench.json    # the same figures for a program to read

A section is a function that returns rows of the table; `SECTIONS` names it.
"""

import argparse
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

sys.path.insert(0, str(Path(__file__).parent.parent))

from data import cultures  # noqa: E402
from hyper import AdapterConfig, LowRank  # noqa: E402
from model import GPT, Encoder, ModelConfig  # noqa: E402
from train import PRESETS  # noqa: E402
from zhyper import END, Zhyper, build_adapter, train_tokenizer  # noqa: E402


@dataclass
class Row:
    """One line of the table: a figure, its spread over the repeats, and what it must reach."""

    what: str
    figure: float
    spread: float  # half the distance between the quartiles
    unit: str
    target: str
    met: bool | None  # None if it must reach nothing


def interleaved(cases: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each case, `repeats` times, the cases taking turns; each runs once before, untimed."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for repeat in range(repeats + 1):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
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


def at_most(target: float | None, what: str, figure: tuple[float, float]) -> Row:
    return Row(what, *figure, "×", f"≤ {target}" if target else "–", figure[0] <= target if target else None)


def default_system(texts: list[str]) -> Zhyper:
    """An untrained system of the default size whose updates are not zero and whose backbone never ends an answer."""
    torch.manual_seed(0)
    sizes = PRESETS["default"]
    tokenizer = train_tokenizer(texts, sizes.backbone.vocab)
    encoder, config = Encoder(sizes.encoder), AdapterConfig()
    adapter = build_adapter(config, sizes.backbone, encoder.width)
    for B in adapter.B.values():
        torch.nn.init.normal_(B, std=0.02)
    backbone = GPT(sizes.backbone)
    torch.nn.init.zeros_(backbone.token.weight[END])  # its logit is 0, never the largest
    return Zhyper(tokenizer, backbone, encoder, adapter, template="Q: {}\nA:").eval()


def uncached(model: GPT, ids: torch.Tensor, tokens: int) -> torch.Tensor:
    """Greedy generation that reads everything again for every token: what the cache saves."""
    for _ in range(tokens):
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], dim=1)
    return ids


@torch.inference_mode()
def generation(repeats: int) -> list[Row]:
    """Contexts in a batch, a merged model, a new description, the cache; all at the default size."""
    records = cultures.load(None, 0).split("train")
    texts = list(dict.fromkeys(record.description for record in records))
    system, rows = default_system(texts), []
    few, greedy = max(3, repeats // 4), {"temperature": 0.0, "top_k": 0, "seed": 0}

    prompts, tokens = [record.prompt for record in records[:1000]], 32
    ids, one, many = system.ids(prompts), system.adapt(texts[:1]), system.adapt(texts[:1000])
    cases = {
        "one": lambda: system.write(ids, one, tokens, **greedy),
        "many": lambda: system.write(ids, many, tokens, **greedy),
        "one, read": lambda: system.generate(prompts, texts[:1] * 1000, tokens),
        "many, read": lambda: system.generate(prompts, texts[:1000], tokens),
    }
    seconds = interleaved(cases, few)
    what = f"1,000 contexts in a batch against one, {tokens} tokens a row: speed"
    rows.append(at_least(0.9, what, ratio(seconds, "one", "many")))
    rows.append(at_least(0.9, f"{what}, their descriptions read as well", ratio(seconds, "one, read", "many, read")))

    ids, merged = system.ids(prompts[:8]), Zhyper(system.tokenizer, system.merge(texts[0]))
    cases = {
        "frozen": lambda: system.write(ids, {}, 64, **greedy),
        "merged": lambda: merged.write(ids, {}, 64, **greedy),
    }
    figure, spread = ratio(interleaved(cases, 2 * repeats), "frozen", "merged")
    met = abs(figure - 1) <= 0.05
    rows.append(Row("a merged model against the frozen one: speed", figure, spread, "×", "1 ± 0.05", met))

    unread = iter(texts[1000:])
    seconds = interleaved({"adapt": lambda: system.adapt([next(unread)])}, 10 * repeats)
    figure, spread = summary([1000 * s for s in seconds["adapt"]])
    rows.append(Row("an adapter for a new description", figure, spread, "ms", "< 10", figure < 10))

    for count in (1, 8):
        ids = system.ids(["Q: Who rules?\nA:"] * count)  # of one length, so the slow path pads nothing
        cases = {
            "without": lambda ids=ids: uncached(system.backbone, torch.tensor(ids), 128),
            "with": lambda ids=ids: system.write(ids, {}, 128, **greedy),
        }
        what = f"128 new tokens with the cache against without, {count} at a time: speed"
        rows.append(at_least(5, what, ratio(interleaved(cases, few), "without", "with")))
    return rows


def step_of(model: GPT, ids: torch.Tensor, adapter: torch.nn.Module | None, c: torch.Tensor) -> Callable:
    """The loss of ids (b, t) under the adapter's updates for c (b, d); without one, as a function of the embeddings."""

    def loss() -> torch.Tensor:
        x = (model.token(ids) + model.position(torch.arange(ids.shape[1]))).detach().requires_grad_(adapter is None)
        updates = adapter(c) if adapter else {}
        for block in model.blocks:
            x = block(x, updates, None, None)
        logits = model.logits(model.norm(x))  # (b, t, vocab)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())

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


def moving(config: AdapterConfig, backbone: ModelConfig, d_text: int) -> torch.nn.Module:
    """An adapter whose updates are not zero."""
    adapter = build_adapter(config, backbone, d_text)
    for name, weight in adapter.named_parameters():
        if name.startswith("B."):
            torch.nn.init.normal_(weight, std=0.02)
    return adapter


def training(repeats: int) -> list[Row]:
    """The training step at 6 layers, width 256, 16 × 128 tokens, r = 8, q and v, one thread; c is given."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = ModelConfig(vocab=2048, layers=6, heads=8, width=256, context=128)
    model, ids, c = frozen_gpt(config), torch.randint(2048, (16, 128)), torch.randn(16, 384)
    targets = {"zhyper-diag gated": 1.10, "zhyper-square gated": 1.15}
    kinds = [("lora", "gated"), *((k, t) for k in ("zhyper-diag", "zhyper-square", "t2l") for t in ("gated", "paper"))]
    adapters: dict[str, torch.nn.Module | None] = {"frozen": None}
    for kind, trunk in kinds:
        name = kind if kind == "lora" else f"{kind} {trunk}"
        adapters[name] = moving(AdapterConfig(kind, 8, 16.0, ("q", "v"), trunk), config, 384)
    losses = {name: step_of(model, ids, adapter, c) for name, adapter in adapters.items()}
    seconds = interleaved({name: lambda loss=loss: loss().backward() for name, loss in losses.items()}, repeats)
    kept = {name: kept_bytes(losses[name], model, *filter(None, [adapters[name]])) for name in losses}
    rows = []
    for name in losses:
        time_ratio, target = ratio(seconds, name, "frozen"), targets.get(name)
        rows.append(at_most(target, f"training step, {name} against frozen: time", time_ratio))
        bytes_ratio = kept[name] / kept["frozen"], 0.0
        rows.append(at_most(target and 1.10, f"training step, {name} against frozen: bytes kept", bytes_ratio))
    diag = ratio(seconds, "zhyper-diag gated", "lora")
    rows.append(at_most(1.03, "training step, zhyper-diag gated against lora: time", diag))
    torch.set_num_threads(threads)
    return rows


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
    updates = {
        site: LowRank(
            u.A.detach().requires_grad_(), u.B.detach().requires_grad_(), u.z.detach().requires_grad_(), u.scale
        )
        for site, u in adapter(c).items()
    }
    x = torch.randn(contexts, tokens, width)
    return {
        "backbone": lambda: step_of(model, ids, None, c)().backward(),
        "generate": lambda: sum(u.z.sum() for u in adapter(c).values()).backward(),
        "apply": lambda: sum(u(x).sum() for u in updates.values()).backward(),
    }


def growth(repeats: int) -> list[Row]:
    """How the time of each part of a step grows, as the exponent over the larger half of the sizes, and its share."""
    rows = []
    for name, sizes in GROWTH.items():
        medians: dict[str, list[float]] = defaultdict(list)
        for size in sizes:
            seconds = interleaved(parts(**BASE | {name: size}), max(3, repeats // 4))
            for part, values in seconds.items():
                medians[part].append(statistics.median(values))
        total = sum(values[-1] for values in medians.values())
        half = sizes[len(sizes) // 2 :]
        for part, values in medians.items():
            slope, _ = statistics.linear_regression(*(list(map(math.log, v)) for v in (half, values[-len(half) :])))
            share = f"{values[-1] / total:.0%} of the step at {sizes[-1]}"
            rows.append(Row(f"{name} {half[0]} to {sizes[-1]}, {part} ({share}): exponent", slope, 0.0, "", "–", None))
    return rows


SECTIONS = {"generation": generation, "training": training, "growth": growth}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure, and print one table.")
    parser.add_argument("sections", nargs="*", metavar="section", help=f"of {', '.join(SECTIONS)}; all if left out")
    parser.add_argument("--repeats", type=int, default=12, help="turns of each comparison (default: %(default)s)")
    parser.add_argument("--json", help="write the rows into this file too")
    args = parser.parse_args()
    for name in args.sections:
        if name not in SECTIONS:
            parser.error(f"unknown section {name!r}: choose from {', '.join(SECTIONS)}")
    parts = {name: SECTIONS[name](args.repeats) for name in args.sections or SECTIONS}
    print("| what | figure | must reach | reached |\n|---|---|---|---|")
    for row in (row for part in parts.values() for row in part):
        figure, reached = (
            f"{row.figure:.2f} ±{row.spread:.2f} {row.unit}",
            {True: "yes", False: "no", None: "–"}[row.met],
        )
        print(f"| {row.what} | {figure} | {row.target} | {reached} |")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; median ± half the distance of the quartiles")
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    if args.json:
        content = {name: [asdict(row) for row in part] for name, part in parts.items()}
        Path(args.json).write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
