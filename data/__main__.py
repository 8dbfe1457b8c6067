"""Check a JSONL file of your own records: python -m data FILE.jsonl

Every bad line is named by its number, contexts and records are counted by split, and leaks are warned of. The exit
code is 2 if a line is bad or there is nothing to train on or to evaluate; a leak is for you to judge.
"""

from collections import Counter
from pathlib import Path

from data import SPLITS, Record, read_lines
from zhyper import Parser, one_line_errors


def leaks(records: list[Record]) -> list[str]:
    """Where an evaluated row asks for less than its split says, one line for each kind; see data.SPLITS.

    The same question in two splits is no leak in itself: a culture is asked it again under a new description. A row
    is one if nothing in it is new, neither its description nor its prompt with that answer, in its context; or if
    settings may have been chosen on that very row, by --validate.
    """
    train = [r for r in records if r.split == "train"]
    texts, contexts = {r.description for r in train}, {r.context for r in train}
    told, asked = {(r.context, r.description) for r in train}, {(r.context, r.prompt, r.answer) for r in train}
    evaluated = [r for r in records if r.split != "train"]
    chosen_on = {r._replace(split="") for r in records if r.split == "validation"}
    found = {
        "have a description of train": [r for r in evaluated if r.split == "new_wording" and r.description in texts],
        "are of a context of train": [r for r in evaluated if r.split in ("unseen", "ood") and r.context in contexts],
        "hold nothing that train does not": [
            r for r in evaluated if (r.context, r.description) in told and (r.context, r.prompt, r.answer) in asked
        ],
        "stand in validation too": [
            r for r in evaluated if r.split != "validation" and r._replace(split="") in chosen_on
        ],
    }
    lines = []
    for what, rows in found.items():
        for split, count in Counter(r.split for r in rows).items():
            example = next(r for r in rows if r.split == split)
            lines.append(f"leak: {count} rows of {split} {what}, as in {example.context!r}: {example.prompt[:40]!r}")
    return lines


def main() -> None:
    parser = Parser(prog="python -m data", description="Check a JSONL file of records.")
    parser.add_argument("file", type=Path, help="one record a line, as README.md says under Your own data")
    path = parser.parse_args().file
    records, bad = read_lines(path)
    for number, what in bad:
        print(f"line {number}: {what}")
    for split in SPLITS:
        rows = [record for record in records if record.split == split]
        if rows:
            print(f"{split}: {len(rows)} records, {len({record.context for record in rows})} contexts")
    for line in leaks(records):
        print(line)
    print(f"{path}: {len(records)} records, {len({r.context for r in records})} contexts, {len(bad)} bad lines")
    if bad:
        raise ValueError(f"{path} cannot be trained on as it is: mend the lines above")
    if len({r.context for r in records if r.split == "train"}) < 2 or all(r.split == "train" for r in records):
        raise ValueError(f"{path} cannot be trained on: it takes two contexts in train, and another split to evaluate")


if __name__ == "__main__":
    one_line_errors(main)
