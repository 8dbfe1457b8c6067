"""Check a JSONL file of your own records: python -m data FILE.jsonl

Every bad line is named by its number, records and contexts are counted by split, and leaks are
warned of. The exit code is 2 if a line is bad, or if there is nothing to train on or to evaluate.
A leak is for you to judge. The format is in data/__init__.py.
"""

from collections import defaultdict
from pathlib import Path

from data import SPLITS, Record, read_lines
from data._cli import Parser, one_line_errors


def leaks(records: list[Record]) -> list[str]:
    """Where an evaluated row tests less than its split promises, one line for each kind and split.

    The same question in two splits is no leak in itself: a culture is asked it again under a new
    description. A row leaks if nothing in it is new in its context, neither its description nor
    its prompt with that answer; or if the same row is in `validation`, where settings are chosen.
    """
    train = [r for r in records if r.split == "train"]
    contexts = {r.context for r in train}
    descriptions = {r.description for r in train}
    described = {(r.context, r.description) for r in train}
    asked = {(r.context, r.prompt, r.answer) for r in train}
    validation = {r._replace(split="") for r in records if r.split == "validation"}

    def problems(r: Record):
        if r.split == "new_wording" and r.description in descriptions:
            yield "have a description of train"
        if r.split in ("unseen", "ood") and r.context in contexts:
            yield "are of a context of train"
        if (r.context, r.description) in described and (r.context, r.prompt, r.answer) in asked:
            yield "hold nothing that train does not"
        if r.split != "validation" and r._replace(split="") in validation:
            yield "stand in validation too"

    found = defaultdict(list)
    for record in records:
        if record.split != "train":
            for problem in problems(record):
                found[record.split, problem].append(record)
    return [
        f"leak: {len(rows)} rows of {split} {problem}, "
        f"as in {rows[0].context!r}: {rows[0].prompt[:40]!r}"
        for (split, problem), rows in found.items()
    ]


def main() -> None:
    parser = Parser(prog="python -m data", description="Check a JSONL file of records.")
    parser.add_argument("file", type=Path, help="one record a line, as in data/__init__.py")
    path = parser.parse_args().file
    records, bad = read_lines(path)
    for number, problem in bad:
        print(f"line {number}: {problem}")
    contexts = {split: [r.context for r in records if r.split == split] for split in SPLITS}
    for split, listed in contexts.items():
        if listed:
            print(f"{split}: {len(listed)} records, {len(set(listed))} contexts")
    for line in leaks(records):
        print(line)
    total = len({record.context for record in records})
    print(f"{path}: {len(records)} records, {total} contexts, {len(bad)} bad lines")
    if bad:
        raise ValueError(f"{path} cannot be trained on as it is: mend the lines above")
    if len(set(contexts["train"])) < 2 or len(contexts["train"]) == len(records):
        need = "it takes two contexts in train, and another split to evaluate"
        raise ValueError(f"{path} cannot be trained on: {need}")


if __name__ == "__main__":
    one_line_errors(main)
