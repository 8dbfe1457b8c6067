"""What command lines here share: options, tables, and mistakes in one line with exit code 2."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import field, fields
from typing import get_args


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake in the command line is one line, without the usage."""

    def error(self, message: str) -> None:
        self.exit(2, f"error: {message} ({self.prog} -h lists what there is)\n")


def option(default, text: str):
    """A field of a dataclass that `parse` reads from a command line."""
    return field(default=default, metadata={"help": text})


def parse(settings: type, arguments: Sequence[str], prog: str, description: str):
    """A dataclass from a command line: each field is an option, with its default and its help."""
    parser = Parser(prog=prog, description=description, argument_default=argparse.SUPPRESS)
    for f in fields(settings):
        default = "" if f.default in (None, False) else f" (default: {f.default})"
        kind = {"type": next(iter(get_args(f.type)), f.type)}  # int for int | None
        kind = {"action": "store_true"} if f.type is bool else kind
        parser.add_argument(
            f"--{f.name.replace('_', '-')}", help=f.metadata["help"] + default, **kind
        )
    return settings(**vars(parser.parse_args(arguments)))


def check_positive(settings, names: Sequence[str]) -> None:
    """Raise ValueError for one of these that is given, and is not more than 0 and finite."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not 0 < value + (name == "seed") < 2**63:  # a seed may be 0
            raise ValueError(f"{name} is {value}: it must be more than 0, and finite")


def one_line_errors(main: Callable[[], None]) -> None:
    """Call `main`; a ValueError or OSError, which is the user's to mend, is one line."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without "±" still shows the rest
    try:
        main()
    except KeyboardInterrupt:
        again = "the same command without --force goes on from the last checkpoint"
        print(f"stopped; {again}", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *body)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def table(results: dict) -> str:
    """Results as Markdown, a column for each method: accuracy, or for free text loss per token.

    Choice too if the backbone is pretrained.
    """
    rows, measure = results["rows"], results["measure"]
    whole = ("trainable", "encoder", "steps", "seconds")
    body = [[name, *(f"{row[name]:,.0f}" for row in rows)] for name in whole]
    for kind in ("splits", "controls"):
        for name in rows[0][kind]:
            body.append([name, *(f"{row[kind][name][measure]:.3f}" for row in rows)])
    body.append(["margin", *(f"{row['margin']:z.3f}" for row in rows)])
    for name, found in rows[0]["splits"].items():
        if "choice" in found and "pretrain" not in results:  # it cannot guess our wording
            cells = (f"{row['splits'][name]['choice']:.3f}" for row in rows)
            body.append([f"choice, {name}", *cells])
    if any("prompting" in row for row in rows):
        body.append(["prompting", *(row.get("prompting", "") for row in rows)])
    return markdown([measure, *(row["method"] for row in rows)], body)
