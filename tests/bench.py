"""How fast things are, as ratios: what is compared takes turns, so that a slow minute slows both.

python tests/bench.py                      # every section, of what stands in SECTIONS
python tests/bench.py operators training   # two of them
python tests/bench.py training --device cuda --dtype bf16
python tests/bench.py real memory          # with the real models in $SMOLLM2 and $MINILM, against transformers and peft

A section is a function from the options to rows of its table: what, and its figure as text. Figures are medians
± half the distance of the quartiles.
"""
# ruff: noqa: E402

import argparse
import importlib
import os
import re
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

import train
from data import cultures
from data.batches import Rows, draw
from train import METHODS, PRESETS
from zhyper import Zhyper

OPERATORS_BEFORE = 2947  # of the same step before the redesign, at commit 575b431
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # operations a second, in dense bf16
Table = list[tuple[str, str]]


# ---- measuring


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


def figure(values: list[float], unit: str = "×") -> str:
    """Median, and half the distance between the quartiles.

    >>> figure([1.0, 2.0, 3.0, 4.0, 5.0])
    '3.00 ±1.00 ×'
    """
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    digits = 0 if middle >= 100 else 2
    return f"{middle:,.{digits}f} ±{(high - low) / 2:,.{digits}f} {unit}"


def ratios(seconds: dict[str, list[float]], over: str, under: str) -> list[float]:
    return [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]


def speed(count: int, seconds: list[float], unit: str = "tokens a second") -> str:
    return figure([count / one for one in seconds], unit)


# ---- the default training step


def settings_of(args: Namespace, **changes) -> train.Settings:
    return train.Settings(device=args.device, dtype=args.dtype, out="out/nothing-is-written", **changes)


def default_base(args: Namespace) -> Zhyper:
    """An untrained backbone of the default size, with its tokenizer."""
    base = train.build_base(cultures.load(None, 0), settings_of(args))
    base.backbone.to(train.DTYPES[args.dtype])
    return base


def training_step(base: Zhyper, name: str, args: Namespace) -> tuple[Zhyper, Rows, list[str]]:
    """An untrained system, and the rows and descriptions of a step."""
    system = train.build_system(name, base, settings_of(args)).train()
    preset = PRESETS["default"]
    records = cultures.load(None, 0).split("train")[:4000]
    drawn = next(draw(records, preset.descriptions_per_step, preset.questions, np.random.default_rng(0)))
    descriptions = [records[i].description for i in drawn]
    rows, place = train.shared_rows(system, [records[i] for i in drawn], descriptions)
    return system, rows.take(place), descriptions


class Count(TorchDispatchMode):
    """Counts the operators that are dispatched, but for views, which compute nothing."""

    def __init__(self):
        super().__init__()
        self.operators = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.operators += not operator.is_view
        return operator(*args, **(kwargs or {}))


def step_of(loss: Callable[[], Tensor], network: nn.Module) -> Callable[[], None]:
    """Forward, backward, clip and AdamW of what is not frozen."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, fused=True)

    def step() -> None:
        loss().backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def operators(args: Namespace) -> Table:
    """What a default step of zhyper-diag dispatches; on a card also its launches and how busy it is."""
    system, rows, descriptions = training_step(default_base(args), "zhyper-diag", args)

    def loss() -> Tensor:
        loss, tokens, _ = system(rows, descriptions)
        return loss.sum() / tokens.sum()

    step = step_of(loss, system)
    step()  # the optimizer makes its state
    with Count() as whole:
        step()
    with Count() as forward:
        held = loss()
    with Count() as backward:
        held.backward()
    update = whole.operators - forward.operators - backward.operators
    table = [("operators", f"{whole.operators} (before the redesign {OPERATORS_BEFORE:,})")]
    table.append(("forward, backward, update", f"{forward.operators}, {backward.operators}, {update}"))
    seconds = interleaved({"step": step}, args.repeats)["step"]
    table.append(("a step", figure([1000 * one for one in seconds], "ms")))
    table.append(("speed", speed(rows.ids.size, seconds)))
    return table + (on_a_card(step, statistics.median(seconds)) if args.device == "cuda" else [])


def on_a_card(step: Callable[[], None], seconds: float) -> Table:
    with torch.profiler.profile() as profile:
        step()
        torch.cuda.synchronize()
    events = profile.key_averages()
    launches = sum(event.count for event in events if "LaunchKernel" in event.key)
    busy = sum(event.self_device_time_total for event in events) / 1e6
    with FlopCounterMode(display=False) as counter:
        step()
    table = [("launches", str(launches)), ("the card is busy", f"{busy / seconds:.0%} of the step")]
    for card, peak in PEAKS.items():
        if card in torch.cuda.get_device_name():
            table.append(("of the card's peak in bf16", f"{counter.get_total_flops() / seconds / peak:.1%}"))
    return table


def training(args: Namespace) -> Table:
    """A step of each method, c kept, against the frozen model, forward and backward through the same layers."""
    base = default_base(args)
    system, rows, descriptions = training_step(base, "zhyper-diag", args)

    def frozen() -> Tensor:
        states = rows.states.clone().requires_grad_()
        return system(rows._replace(states=states), None)[0].sum()

    losses = {"frozen": frozen}
    for name, method in METHODS.items():
        if method.kind and not method.description_in_prompt:
            each = train.build_system(name, base, settings_of(args)).train()
            each.encoder_frozen = True  # so that each text is embedded once, in the first step, which is not timed
            if each.encoder:
                each.encoder.requires_grad_(False)
            losses[name] = lambda each=each: each(rows, descriptions)[0].sum()
    cases = {name: lambda loss=loss: loss().backward() for name, loss in losses.items()}
    seconds = interleaved(cases, args.repeats)
    table = [(f"{name}: time of the frozen step", figure(ratios(seconds, name, "frozen"))) for name in [*losses][1:]]
    table.append(("zhyper-diag: time of lora's step", figure(ratios(seconds, "zhyper-diag", "lora"))))
    table.append(("zhyper-diag: speed", speed(rows.ids.size, seconds["zhyper-diag"])))
    return table


# ---- the trained system at work


def working_system(args: Namespace) -> Zhyper:
    """An untrained system whose updates are not zero and which never ends an answer."""
    system = train.build_system("zhyper-diag", default_base(args), settings_of(args))
    for B in system.hypernetwork.B.values():
        nn.init.normal_(B, std=0.02)
    never_end(system)
    return system.eval().requires_grad_(False)


def never_end(system: Zhyper) -> None:
    """Give end tokens a logit of 0, which is never the largest, so that every answer has its full length."""
    weight = system.backbone.embed_tokens.weight
    weight.data[list(system.backbone.config.eos)] = 0.0


@torch.inference_mode()
def generation(args: Namespace) -> Table:
    """Contexts in one batch, a merged model, the cache, and what a new text costs."""
    system, few = working_system(args), max(3, args.repeats // 4)
    records = cultures.load(None, 0).split("train")
    texts = list(dict.fromkeys(record.description for record in records))
    prompts = [record.prompt for record in records[: args.contexts]]
    merged = Zhyper(system.tokenizer, system.merge(texts[0])).eval()
    unread = iter(texts[len(prompts) :])
    one_for_all = {
        "one": lambda: system.generate(prompts, texts[:1] * len(prompts), 32),
        "many": lambda: system.generate(prompts, texts[: len(prompts)], 32),
    }
    eight_rows = {
        "frozen": lambda: system.generate(prompts[:8], None, 64),
        "merged": lambda: merged.generate(prompts[:8], None, 64),
        "adapted": lambda: system.generate(prompts[:8], texts[:1] * 8, 64),
    }
    one_row = {
        "without": lambda: read_all_again(merged, prompts[0], 128),
        "with": lambda: merged.generate(prompts[:1], None, 128),
    }
    contexts = interleaved(one_for_all, few)
    merging = interleaved(eight_rows, args.repeats)
    caching = interleaved(one_row, few)
    adapting = interleaved({"adapt": lambda: system.adapt([next(unread)])}, 4 * args.repeats)["adapt"]
    return [
        (f"{len(prompts)} rows, a context each: speed of one for all", figure(ratios(contexts, "one", "many"))),
        (f"{len(prompts)} rows, a context each", speed(32 * len(prompts), contexts["many"])),
        ("merged: speed of the frozen model", figure(ratios(merging, "frozen", "merged"))),
        ("adapted, not merged: the same", figure(ratios(merging, "frozen", "adapted"))),
        ("one row, 128 tokens: speed without the cache", figure(ratios(caching, "without", "with"))),
        ("one row, 128 tokens", speed(128, caching["with"])),
        ("an adapter for a new text", figure([1000 * one for one in adapting], "ms")),
    ]


@torch.inference_mode()
def read_all_again(system: Zhyper, prompt: str, tokens: int) -> Tensor:
    """Greedy generation that reads the whole text for every token."""
    ids = torch.tensor([system.tokenizer.encode(prompt).ids], device=system.device)
    for _ in range(tokens):
        ids = torch.cat([ids, system.backbone(ids)[:, -1:].argmax(-1)], dim=1)
    return ids


@torch.no_grad()
def evaluation(args: Namespace) -> Table:
    """Records a second, scored under their own descriptions and without any."""
    system = working_system(args)
    records = cultures.load(None, 0).split("unseen")
    own = [record.description for record in records]
    cases = {
        "adapted": lambda: train.score_records(system, records, own),
        "frozen": lambda: train.score_records(system, records, [None] * len(records)),
    }
    seconds = interleaved(cases, max(3, args.repeats // 4))
    return [
        ("adapted: time of the frozen model", figure(ratios(seconds, "adapted", "frozen"))),
        ("adapted", speed(len(records), seconds["adapted"], "records a second")),
    ]


# ---- real models, against transformers and peft


def real_folder(variable: str) -> str:
    folder = os.environ.get(variable, "")
    if not Path(folder).is_dir():
        raise ValueError(f"set {variable} to the folder of the real model")
    return folder


def peft_step(rows: Rows, args: Namespace) -> Callable[[], None]:
    """The same rows through peft's LoRA on transformers' SmolLM2, without a cache."""
    peft, transformers = map(importlib.import_module, ("peft", "transformers"))
    dtype = train.DTYPES[args.dtype]
    model = transformers.AutoModelForCausalLM.from_pretrained(real_folder("SMOLLM2"), dtype=dtype)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(model, config).to(args.device).train()
    ids = torch.from_numpy(rows.ids).to(args.device)
    targets = torch.from_numpy(rows.targets).to(args.device).flatten()

    def loss() -> Tensor:
        logits = model(ids, use_cache=False).logits.flatten(0, 1).float()
        return F.cross_entropy(logits, targets)

    return step_of(loss, model)


def real(args: Namespace) -> Table:
    """A step of ours through SmolLM2, q and v of every layer, against one of transformers and peft; and its cache."""
    models = {"backbone": real_folder("SMOLLM2"), "encoder": real_folder("MINILM")}
    settings = settings_of(args, preset="real", modules="q,v", rank=8, lowest_layer=0, **models)
    data = cultures.load(None, 0)
    base = train.build_base(data, settings)
    records = data.split("train")[:4000]
    drawn = [records[i] for i in next(draw(records, args.rows, 2, np.random.default_rng(0)))]
    descriptions = [record.description for record in drawn]
    rows = base.encode_rows([record.prompt for record in drawn], [record.answer for record in drawn], descriptions)
    cases = {"peft": peft_step(rows, args)}
    for name in ("lora", "zhyper-diag", "t2l-gated"):
        system = train.build_system(name, base, settings).train()
        cases[name] = step_of(lambda system=system: system(rows, descriptions)[0].sum(), system)
    few = max(3, args.repeats // 4)
    seconds = interleaved(cases, few)
    table = [(f"{name}: time of peft's LoRA", figure(ratios(seconds, name, "peft"))) for name in [*cases][1:]]
    prompt = records[0].prompt
    never_end(base)
    one_row = {
        "without": lambda: read_all_again(base, prompt, 128),
        "with": lambda: base.generate([prompt], None, 128),
    }
    caching = interleaved(one_row, few)
    table.append(("one row, 128 tokens: speed without the cache", figure(ratios(caching, "without", "with"))))
    return table


def memory(args: Namespace) -> Table:
    """The peak of loading SmolLM2 against the size of its file."""
    file = Path(real_folder("SMOLLM2"), "model.safetensors").stat().st_size
    load = f"model = bench.train.GPT.from_pretrained({real_folder('SMOLLM2')!r}, bench.train.DTYPES[{args.dtype!r}])"
    load += "; [weight.sum() for weight in model.parameters()]"  # a file that is mapped is only read when it is used
    peak = peak_of(load) - peak_of("pass")
    what = f"loading SmolLM2 in {args.dtype}: peak of its file's size"
    return [(what, f"{peak / file:.2f} × ({peak / 2**20:,.0f} and {file / 2**20:,.0f} MiB)")]


def peak_of(code: str) -> int:
    """Bytes that a process of its own takes at most: it imports this file, and then runs the code."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import bench; {code}"
    code += "; print(open('/proc/self/status').read())"
    printed = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", printed)[1])


# ---- the command line

SECTIONS = {section.__name__: section for section in (operators, training, generation, evaluation, real, memory)}


def main() -> None:
    parser = argparse.ArgumentParser("bench.py", description="Measure, and print a table for each section.")
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all if left out")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=train.DTYPES, default="fp32", help="of the frozen model")
    parser.add_argument("--repeats", type=int, default=12, help="turns of each comparison")
    parser.add_argument("--contexts", type=int, default=256, help="of generation")
    parser.add_argument("--rows", type=int, default=16, help="descriptions a step, of real")
    args = parser.parse_args()
    for name in args.sections or SECTIONS:
        if name not in SECTIONS:
            parser.error(f"unknown section {name!r}: choose from {', '.join(SECTIONS)}")
        try:
            table = SECTIONS[name](args)
        except (ValueError, ImportError) as error:
            print(f"without {name}: {error}\n")
            continue
        print(f"| {name} | figure |\n|---|---|")
        for what, found in table:
            print(f"| {what} | {found} |")
        print()
    card = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {card}; medians ± half the distance of the quartiles")


if __name__ == "__main__":
    main()
