"""Make the trained run that comes with the repository: one method of a run, in half precision.

python train.py --methods frozen,prompt,zhyper-diag && python tests/evidence/shrink.py

It writes assets/cultures-default: the method's file, and the results of the run that it is from.
"""

import shutil
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def shrink(run: Path, to: Path) -> None:
    """Copy a run with every float in two bytes; loading turns them into four again."""
    content = torch.load(run / "zhyper-diag.pt", map_location="cpu", weights_only=True)
    for part in content.values():
        if isinstance(part, dict) and "weights" in part:
            for name, weight in part["weights"].items():
                if weight.is_floating_point():
                    part["weights"][name] = weight.half()
    to.mkdir(parents=True, exist_ok=True)
    torch.save(content, to / "zhyper-diag.pt")
    shutil.copy(run / "results.json", to)


if __name__ == "__main__":
    shrink(ROOT / "out" / "cultures-default", ROOT / "assets" / "cultures-default")
