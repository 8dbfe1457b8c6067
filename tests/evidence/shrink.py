"""Make the trained run that comes with the repository: one method of a run, in half precision.

python train.py --methods frozen,zhyper-diag && python tests/evidence/shrink.py

It writes assets/cultures-default: the method's file, and the results of the run that it is from.
"""

import argparse
import shutil
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def halve(path: Path, to: Path) -> None:
    """Copy a METHOD.pt with every float in two bytes; loading turns them into four again."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    for part in content.values():
        if isinstance(part, dict) and "weights" in part:
            part["weights"] = {
                name: weight.half() if weight.is_floating_point() else weight
                for name, weight in part["weights"].items()
            }
    to.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, to)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, default=ROOT / "out" / "cultures-default")
    parser.add_argument("--method", default="zhyper-diag")
    parser.add_argument("--to", type=Path, default=ROOT / "assets" / "cultures-default")
    args = parser.parse_args()
    file = args.to / f"{args.method}.pt"
    halve(args.run / file.name, file)
    shutil.copy(args.run / "results.json", args.to)
    print(f"{file}: {file.stat().st_size / 2**20:.1f} MB")


if __name__ == "__main__":
    main()
