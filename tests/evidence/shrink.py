"""Make a trained run that comes with the repository: one method of a run, in half precision.

python train.py && python tests/evidence/shrink.py
python train.py --preset words && python tests/evidence/shrink.py --run out/cultures-words --to assets/cultures-words

It writes the method's file, and the results of the run that it is from. Of a pretrained encoder that file has only the
name. If it was read from a folder, `--encoder sentence-transformers/all-MiniLM-L6-v2` writes this name in its place.
"""
# ruff: noqa: E402

import argparse
import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from zhyper import SHIPPED, run_command


def shrink(run: Path, to: Path, encoder: str | None = None) -> None:
    """Copy a run with every float in two bytes; loading turns them into four again.

    Raises FileNotFoundError, and ValueError for an `encoder` where the run has trained its own.
    """
    content = torch.load(run / "zhyper-diag.pt", map_location="cpu", weights_only=True)
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    if encoder:
        if not content["encoder_frozen"]:
            raise ValueError(f"{run} has trained its own encoder: leave out --encoder")
        content["encoder"]["pretrained_name"] = encoder
        results["given"]["encoder"] = encoder
    for part in content.values():
        if isinstance(part, dict) and "weights" in part:
            for name, weight in part["weights"].items():
                if weight.is_floating_point():
                    part["weights"][name] = weight.half()
    to.mkdir(parents=True, exist_ok=True)
    torch.save(content, to / "zhyper-diag.pt")
    (to / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser("shrink.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, default=ROOT / "out" / "cultures-default", help="the run folder")
    parser.add_argument("--to", type=Path, default=ROOT / SHIPPED, help="the folder to write")
    parser.add_argument("--encoder", help="the name by which its pretrained encoder is found again")
    args = parser.parse_args()
    run_command(parser, lambda: shrink(args.run, args.to, args.encoder))


if __name__ == "__main__":
    main()
