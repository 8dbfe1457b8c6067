"""How fast things are, as ratios within one run: what is compared takes turns, so that a slow minute slows both.

python tests/bench.py                      # every section
python tests/bench.py generation           # one of them
python tests/bench.py --json bench.json    # the same figures for a program to read

A section is a function that returns rows of the table; `SECTIONS` names it.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from data import cultures  # noqa: E402
from hyper import AdapterConfig  # noqa: E402
from model import GPT, Encoder  # noqa: E402
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
    met: bool


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


SECTIONS = {"generation": generation}


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
        figure, reached = f"{row.figure:.2f} ±{row.spread:.2f} {row.unit}", "yes" if row.met else "no"
        print(f"| {row.what} | {figure} | {row.target} | {reached} |")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; median ± half the distance of the quartiles")
    if args.json:
        content = {name: [asdict(row) for row in part] for name, part in parts.items()}
        Path(args.json).write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
