"""Predict how many numbers Text-to-LoRA and Zhyper train at the size of Mistral-7B. Write your guess down first.

Read in hyper.py: the equations at the top, and `__init__` of StaticLoRA, ZhyperDiag and TextToLoRA.
In 32 layers q, 4096 -> 4096, and v, 4096 -> 1024, are adapted. The paper's trunk has 791,552 parameters and gives each
site 512 features. `trained` is a formula for the number of all trained parameters. The paper is cited with two ratios,
13 and 26 (rounded down): what T2L trains, divided by what Zhyper-diag trains. `ranks` says at which ranks: which T2L
rank is divided by which Zhyper-diag rank? Each is 8 or 16. Then think: which ratio compares like with like?

Hint 1: a head turns f numbers into n. With its bias it has n · (f + 1) parameters. What is n for each method?
Hint 2: for Zhyper, A and B are parameters in every layer; for T2L they are what a head emits.
Hint 3: each module has one head for all layers. So the number of layers occurs in only one of the two formulas.
"""

import torch
from taught import small_config

from hyper import HYPERNETWORKS


def trained(kind: str, rank: int, trunk: int, features: int, layers: int, shapes: dict[str, tuple[int, int]]) -> int:
    raise NotImplementedError  # kind: "t2l" or "zhyper-diag"; shapes: {module: (d_in, d_out)} of the adapted modules


def ranks(ratio: int) -> tuple[int, int]:
    raise NotImplementedError  # of T2L, of Zhyper-diag


# ---- checks: do not edit
def test_the_formula_counts_what_is_built_and_the_ranks_give_the_ratios():
    mistral = {"q": (4096, 4096), "v": (4096, 1024)}
    small = {"q": (6, 5), "up": (7, 3), "o": (4, 2)}
    cases = [(8, "paper", 32, mistral), (16, "paper", 32, mistral), (2, "gated", 3, small)]
    counts = {}
    for kind in ("t2l", "zhyper-diag"):
        for rank, trunk, layers, shapes in cases:
            config = small_config(kind, rank=rank, modules=tuple(shapes), trunk=trunk)
            with torch.device("meta"):  # built without memory
                network = HYPERNETWORKS[kind](config, layers, shapes, 1024)
            built, in_trunk = [sum(p.numel() for p in part.parameters()) for part in (network, network.trunk)]
            found = trained(kind, rank, in_trunk, network.trunk.features, layers, shapes)
            why = f"{kind} of rank {rank} in {layers} layers trains {built:,}, not {found:,}"
            assert found == built, f"{why}: what of A, B, head, bias, layer? Is a number of yours to be an argument?"
            counts[kind, rank] = built
    for ratio in (13, 26):
        t2l, diag = ranks(ratio)
        why = f"these ranks do not give {ratio}: what does doubling one rank do to the ratio?"
        assert counts["t2l", t2l] // counts["zhyper-diag", diag] == ratio, why
