"""How many parameters hypernetworks have at the size of real models. They are built without memory.

python tests/evidence/params.py --backbone mistral-7b --rank 8 --modules q,v
"""
# ruff: noqa: E402

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from hyper import HYPERNETWORKS, HyperConfig
from model import MODULES
from train import check_choice
from zhyper import run_command

# layers, then the widths of the stream, of all queries, of all keys, and inside the MLP
BACKBONES = {
    "default": (4, 128, 128, 128, 352),
    "smollm2-135m": (30, 576, 576, 192, 1536),
    "gemma-2-2b": (26, 2304, 2048, 1024, 9216),
    "mistral-7b": (32, 4096, 4096, 1024, 14336),
}
# of the gated trunk, which is not built here
GATED = {"features": 0, "narrow": 0, "reading": "text", "noise": 0.0}


def print_counts(backbone: str, rank: int, modules: tuple[str, ...]) -> None:
    """The parameters of each kind, on the paper's trunk, which adapts every layer and reads 1,024 numbers."""
    for module in modules:
        check_choice("module", module, MODULES)
    layers, d, q, kv, inner = BACKBONES[backbone]
    shapes = {"q": (d, q), "k": (d, kv), "v": (d, kv), "o": (q, d)}
    shapes |= {"gate": (d, inner), "up": (d, inner), "down": (inner, d)}
    counts = {}
    for kind in ("lora", "t2l", "zhyper-diag", "zhyper-square"):
        config = HyperConfig(kind, rank, 1.0, modules, lowest_layer=0, trunk="paper", **GATED)
        with torch.device("meta"):
            network = HYPERNETWORKS[kind](config, layers, shapes, 1024)
        counts[kind] = sum(weight.numel() for weight in network.parameters())
    for kind, count in counts.items():
        print(f"{kind:15}{count:>13,} {count / counts['zhyper-diag']:6.2f} × zhyper-diag")


def main() -> None:
    parser = argparse.ArgumentParser("params.py", description="Count what is trained at the size of a real model.")
    parser.add_argument("--backbone", choices=BACKBONES, default="mistral-7b")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--modules", default="q,v", help="the linear layers that are adapted")
    args = parser.parse_args()
    run_command(parser, lambda: print_counts(args.backbone, args.rank, tuple(args.modules.split(","))))


if __name__ == "__main__":
    main()
