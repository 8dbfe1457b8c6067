"""How fast things are, as ratios: what is compared takes turns, so that a slow minute slows both.

python tests/bench.py                                 # both sections: training and real
python tests/bench.py --only training --device cuda

`real` compares with transformers and peft. It needs these packages, and the folders of SmolLM2-135M and MiniLM in the
environment variables SMOLLM2 and MINILM. Figures are medians ± half the distance of the quartiles.
"""
# ruff: noqa: E402

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import train
from data import cultures
from data.batches import Rows, draw
from zhyper import Zhyper


def compare(cases: dict[str, Callable[[], object]], under: str, repeats: int) -> list[tuple[str, str]]:
    """How long each case takes, against the case `under`: in turns, after each has run once, untimed."""
    seconds = {name: [] for name in cases}
    for repeat in range(repeats + 1):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    base = seconds.pop(under)
    table = [(under, figure([1000 * value for value in base], "ms"))]
    for name, values in seconds.items():
        ratios = [value / other for value, other in zip(values, base, strict=True)]
        table.append((f"{name}: time of {under}", figure(ratios, "×")))
    return table


def figure(values: list[float], unit: str) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:,.2f} ±{(high - low) / 2:,.2f} {unit}"


# ---- the default training step


def training_batch(method: str, preset: str, given: dict) -> tuple[Zhyper, Rows, list[str]]:
    """An untrained system, and what it reads in a step, as train.fit makes it."""
    config = train.configure(method, preset, given)
    data = cultures.load(0)
    system = train.build_system(train.build_base(data, config), config).train()
    records = data.split("train")[:4000]
    encoded = train.encode_records(system, records, [record.description for record in records])
    encoded = encoded._replace(rows=system.with_hidden_states(encoded.rows))
    index = next(draw(records, config.descriptions_per_step, config.questions_per_description, seed=0))
    return system, *encoded.take(index)


def step_of(loss: Callable[[], Tensor], network: nn.Module) -> Callable[[], None]:
    """Forward, backward, clip and AdamW of what is not frozen."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()

    return step


def our_step(system: Zhyper, rows: Rows, descriptions: list[str]) -> Callable[[], None]:
    return step_of(lambda: system(rows, descriptions)[0].sum(), system)


def plain_step(system: Zhyper, rows: Rows, descriptions: list[str]) -> Callable[[], None]:
    """The step as one writes it first: all layers read all tokens, and every position is predicted."""
    ids = rows.ids.to(system.device)
    position = torch.arange(1, ids.shape[1])
    answer = (position >= rows.start[:, None]) & (position < rows.end[:, None])
    answer = answer.to(system.device)  # (b, t - 1)

    def loss() -> Tensor:
        logits = system.backbone(ids[:, :-1], system.adapt(descriptions))
        return F.cross_entropy(logits[answer], ids[:, 1:][answer], reduction="sum")

    return step_of(loss, system)


def training(args: argparse.Namespace) -> list[tuple[str, str]]:
    """A default step of some methods, against a plain loop that trains zhyper-diag."""
    cases = {}
    for name in ("lora", "t2l", "zhyper-square", "zhyper-diag"):
        batch = training_batch(name, "default", {"device": args.device})
        cases[name] = our_step(*batch)
    cases["a plain loop"] = plain_step(*batch)
    return compare(cases, "a plain loop", args.repeats)


# ---- real models, against transformers and peft


def real(args: argparse.Namespace) -> list[tuple[str, str]]:
    """A step through SmolLM2, q and v of every layer at rank 8, against one of transformers with peft's LoRA."""
    import peft
    import transformers

    given = {"backbone": os.environ["SMOLLM2"], "encoder": os.environ["MINILM"], "device": args.device}
    given |= {"modules": "q,v", "rank": 8, "lowest_layer": 0, "questions_per_description": 2}
    cases = {}
    for name in ("lora", "zhyper-diag", "t2l-gated"):
        batch = training_batch(name, "real", given)
        cases[name] = our_step(*batch)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(given["backbone"], dtype=torch.float32)
    lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    theirs = peft.get_peft_model(theirs, lora).to(args.device).train()
    ids = batch[1].ids.to(args.device)

    def loss() -> Tensor:
        logits = theirs(ids[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    return compare(cases | {"peft's LoRA": step_of(loss, theirs)}, "peft's LoRA", max(3, args.repeats // 4))


SECTIONS = {section.__name__: section for section in (training, real)}


def main() -> None:
    parser = argparse.ArgumentParser("bench.py", description="Measure, and print a table for each section.")
    parser.add_argument("--only", choices=SECTIONS, help="one section; both if left out")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, default=12, help="turns of each comparison")
    args = parser.parse_args()
    for name in [args.only] if args.only else SECTIONS:
        try:
            table = SECTIONS[name](args)
        except (KeyError, ImportError) as error:
            print(f"without {name}: {error} is missing\n")
            continue
        lines = [f"| {what} | {found} |" for what, found in [(name, "figure"), ("---", "---"), *table]]
        print("\n".join(lines), end="\n\n")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; medians ± half the distance of the quartiles")


if __name__ == "__main__":
    main()
