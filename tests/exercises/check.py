"""Check the exercises: one row for each says whether it is begun, passes, or fails and why.

python tests/exercises/check.py                  # all of them
python tests/exercises/check.py 3 4              # exercises 3 and 4
python tests/exercises/check.py --solutions      # solutions.py in place of what you wrote
"""

import argparse
import importlib.util
import sys
import traceback
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parents[1])]


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(path: Path, answers: Path | None = None) -> str:
    """What the row of an exercise says. Given `answers`, their functions stand in place of its own."""
    try:
        exercise = load(path)
        found = vars(load(answers)) if answers else {}
        for name in found.keys() & vars(exercise).keys():
            if getattr(found[name], "__module__", "") == answers.stem:
                setattr(exercise, name, found[name])
        for name, run in list(vars(exercise).items()):
            if name.startswith("test_"):
                run()
        return "passes"
    except NotImplementedError as error:
        return f"not begun: {traceback.extract_tb(error.__traceback__)[-1].name}"
    except AssertionError as error:
        return f"fails: {error}"
    except Exception as error:  # any mistake that a student can make
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        place = f" at line {lines[-1]}" if lines else ""
        return f"fails: {type(error).__name__}{place}: " + str(error).strip().partition("\n")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="A row for each exercise: not begun, fails and why, or passes.")
    parser.add_argument("numbers", nargs="*", type=int, help="which exercises; all of them if left out")
    parser.add_argument("--solutions", action="store_true", help="check solutions.py in place of what you wrote")
    args = parser.parse_args()
    paths = {int(path.stem[2:4]): path for path in sorted(FOLDER.glob("ex*.py"))}
    for number in args.numbers:
        if number not in paths:
            parser.error(f"there is no exercise {number}: choose {min(paths)} to {max(paths)}")
    answers = FOLDER / "solutions.py" if args.solutions else None
    if answers and not answers.exists():
        sys.exit("there is no solutions.py in this folder")
    failed = False
    sys.stdout.reconfigure(errors="replace")  # a terminal that has no letter Δ
    for number in args.numbers or paths:
        row = check(paths[number], answers)
        failed = failed or row.startswith("fails")
        print(f"{paths[number].stem:26} {row}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
