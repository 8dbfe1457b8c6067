"""What hypernetworks cost at the size of real models: parameters, ratios, and the memory of a training run.

python tests/evidence/params.py --backbone mistral-7b --rank 8 --modules q,v

Networks are built on torch's meta device, without memory. Memory is a formula, which a test holds to a small run.
"""
# ruff: noqa: E402

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from hyper import HYPERNETWORKS, TRUNKS, HyperConfig, check_choice


@dataclass(frozen=True)
class Sizes:
    """The sizes of a decoder; widths: of the stream, of all queries, of all keys, inside the MLP."""

    layers: int
    width: int
    queries: int
    keys: int
    inner: int
    vocab: int
    tied: bool

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        d, q, kv, inner = self.width, self.queries, self.keys, self.inner
        attention = {"q": (d, q), "k": (d, kv), "v": (d, kv), "o": (q, d)}
        return attention | {"gate": (d, inner), "up": (d, inner), "down": (inner, d)}

    @property
    def parameters(self) -> int:
        matrices = sum(d_in * d_out for d_in, d_out in self.shapes.values())
        embeddings = self.vocab * self.width * (1 if self.tied else 2)
        return embeddings + self.layers * (matrices + 2 * self.width) + self.width  # two norms a layer, one above


BACKBONES = {
    "default": Sizes(4, 128, 128, 128, 352, 1024, True),
    "smollm2-135m": Sizes(30, 576, 576, 192, 1536, 49152, True),
    "gemma-2-2b": Sizes(26, 2304, 2048, 1024, 9216, 256000, True),
    "mistral-7b": Sizes(32, 4096, 4096, 1024, 14336, 32000, False),
    "llama-3.1-8b": Sizes(32, 4096, 4096, 1024, 14336, 128256, False),
}


def count(kind: str, sizes: Sizes, config: HyperConfig, d_text: int = 1024) -> int:
    """How many parameters a hypernetwork has that adapts every layer from config.lowest_layer on."""
    with torch.device("meta"):
        network = HYPERNETWORKS[kind](config, sizes.layers - config.lowest_layer, sizes.shapes, d_text)
    return sum(weight.numel() for weight in network.parameters())


def activations(sizes: Sizes, layers: int, tokens: int, modules: tuple[str, ...], size: int = 2) -> int:
    """Bytes that the adapted layers keep for the backward pass, numbers of `size` bytes, few ranks neglected.

    A frozen linear keeps nothing; an adapted one keeps its input, as the gradient of A needs it. The other terms
    are what the norms, the rotary positions, attention and the SwiGLU keep.
    """
    d, q, kv, inner = sizes.width, sizes.queries, sizes.keys, sizes.inner
    kept = 2 * d + 2 * q + 2 * kv + 3 * inner  # of each token
    kept += d if set(modules) & {"q", "k", "v"} else 0
    kept += d if set(modules) & {"gate", "up"} else 0
    kept += inner if "down" in modules else 0
    return size * layers * tokens * kept


def memory(sizes: Sizes, trained: int, layers: int, tokens: int, modules: tuple[str, ...]) -> dict[str, float]:
    """The parts of a training run's peak, in GB: the frozen model in bf16, what is trained in fp32."""
    parts = {
        "frozen weights": 2 * sizes.parameters,
        "trained weights": 4 * trained,
        "gradients": 4 * trained,
        "AdamW's moments": 8 * trained,
        "activations": activations(sizes, layers, tokens, modules),
    }
    parts["together"] = sum(parts.values())
    return {name: size / 1e9 for name, size in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser("params.py", description="Count what is trained at the size of a real model.")
    parser.add_argument("--backbone", choices=BACKBONES, default="mistral-7b")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--modules", default="q,v", help="the linear layers that are adapted")
    parser.add_argument("--lowest-layer", type=int, default=0, help="the lowest adapted layer")
    parser.add_argument("--trunk", choices=TRUNKS, default="paper")
    parser.add_argument("--d-text", type=int, default=1024, help="the width of c")
    parser.add_argument("--tokens", type=int, default=8 * 512, help="of a batch, all rows together")
    args = parser.parse_args()
    sizes, modules = BACKBONES[args.backbone], tuple(args.modules.split(","))
    counts = {}
    try:
        for kind in ("lora", "t2l", "zhyper-diag", "zhyper-square"):
            options = {"modules": modules, "lowest_layer": args.lowest_layer, "trunk": args.trunk}
            counts[kind] = count(kind, sizes, HyperConfig(kind, args.rank, **options), args.d_text)
        check_choice("lowest layer", args.lowest_layer, range(sizes.layers))
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    print(f"{args.backbone}: {sizes.parameters:,} parameters, frozen")
    for kind, trained in counts.items():
        parts = memory(sizes, trained, sizes.layers - args.lowest_layer, args.tokens, modules)
        ratio = f"{trained / counts['zhyper-diag']:6.2f} × zhyper-diag"
        print(f"{kind:15}{trained:>13,} {ratio}   " + ", ".join(f"{name} {gb:.2f}" for name, gb in parts.items()), "GB")


if __name__ == "__main__":
    main()
