"""Predict how many numbers T2L and Zhyper train at the size of Mistral-7B. Write your guess down first.

Read in hyper.py: the equations at the top, and `__init__` of StaticLoRA, ZhyperDiag and TextToLoRA.
In 32 layers q, 4096 → 4096, and v, 4096 → 1024, are adapted. The paper's trunk has 791,552 parameters and gives every
site a feature of 512 numbers. Each module has one head, a linear layer with bias, for all layers. `trained` is a
formula for all that is trained. `ranks` says where the ratios 13 and 26, rounded down, come from: T2L at which rank
over Zhyper-diag at which, 8 or 16? (In the README's table it is 10, at sizes of its own.) Think about which of the two
compares like with like.

Hint 1: a head turns f numbers into n, so it has n · (f + 1) parameters. What is n for each method?
Hint 2: for Zhyper, A and B are parameters, in every layer; for T2L they are what a head gives.
"""

import pytest
import torch

from hyper import HYPERNETWORKS, HyperConfig
from model import ModelConfig


def trained(kind, rank: int, trunk: int, feature: int, layers: int, shapes: dict[str, tuple[int, int]]) -> int:
    raise NotImplementedError  # kind: "t2l" or "zhyper-diag"; shapes {module: (d_in, d_out)}, of the adapted ones only


def ranks(ratio: int) -> tuple[int, int]:
    raise NotImplementedError  # of T2L, of Zhyper-diag


# ---- checks: do not edit
@pytest.mark.parametrize("ratio", [13, 26])
def test_the_formula_counts_what_is_built_and_the_ranks_give_the_ratio(ratio):
    shapes, counts = ModelConfig(width=4096, heads=32, kv_heads=8, inner=14336).shapes, {}
    for kind, rank in [("t2l", 8), ("t2l", 16), ("zhyper-diag", 8), ("zhyper-diag", 16)]:
        with torch.device("meta"):  # built without memory
            net = HYPERNETWORKS[kind](HyperConfig(kind, rank, modules=("q", "v"), trunk="paper"), 32, shapes, 1024)
        counts[kind, rank], trunk = (sum(p.numel() for p in part.parameters()) for part in (net, net.trunk))
        assert trained(kind, rank, trunk, net.trunk.width, 32, {m: shapes[m] for m in "qv"}) == counts[kind, rank]
    t2l, diag = ranks(ratio)
    assert counts["t2l", t2l] // counts["zhyper-diag", diag] == ratio
