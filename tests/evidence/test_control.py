"""Finer control: which statement of a pair answers what, and whose answers move with it."""

import json
from types import SimpleNamespace

import control
import numpy as np
import pytest
import torch

import train
from data import Record


def pair() -> list[Record]:
    """Two texts that differ in what they say of greeting, each asked about greeting and taxes."""
    records = []
    for context, greeting in (("a", "bow"), ("b", "sing")):
        text = f"In this land people {greeting}, and taxes are low."
        records.append(Record(context, text, "greeting?", greeting, "minimal_pairs"))
        records.append(Record(context, text, "taxes?", "low", "minimal_pairs"))
    return records


def test_the_changed_statement_is_found_and_what_it_answers():
    first, second, third, _ = pair()
    changed = control.changed_texts(pair())
    assert [(record, its_own) for record, its_own, _, _ in changed[:2]] == [(first, True), (second, False)]
    assert changed[0][2:] == ("taxes are low.", third.description)
    one_statement = [record._replace(description=record.answer) for record in pair()[::2]]
    assert control.changed_texts(one_statement) == []  # nothing would be left


def score(questions, answers, descriptions) -> tuple[torch.Tensor, None]:
    """A system that reads: an answer has .8 where the text has its word, .4 where nothing is said of it, else .1."""
    found = []
    for question, answer, text in zip(questions, answers, descriptions, strict=True):
        says_other = question == "greeting?" and ("bow" in text or "sing" in text)
        found.append(0.8 if answer in text else 0.1 if says_other else 0.4)
    return -torch.tensor(found).log(), None


def test_probabilities_fall_where_the_statement_goes_and_nowhere_else():
    changed = control.changed_texts(pair())
    own = np.array([its_own for _, its_own, _, _ in changed])
    reads = control.probabilities(SimpleNamespace(score=score), changed)
    assert control.measures(reads, own) == pytest.approx([0.8, 0.4, 0.1, 0.0, 0.0])
    deaf = np.full((4, 3), 0.4)  # it is always as sure
    contexts = [record.context for record, _, _, _ in changed]
    assert control.drop_difference([reads], [deaf], [own], [contexts], 2) == "0.700 [0.700, 0.700] ahead"
    assert control.drop_difference([deaf], [reads], [own], [contexts], 1) == "-0.400 [-0.400, -0.400] behind"


def test_it_compares_the_methods_of_a_run(run_main, tmp_path):
    records = [*pair(), *(record._replace(split="train") for record in pair())]
    data = tmp_path / "pair.jsonl"
    data.write_text("\n".join(json.dumps(record._asdict()) for record in records))
    given = {"data": str(data), "layers": 1, "width": 16, "vocab_size": 300, "lowest_layer": 0, "device": "cpu"}
    given |= {"pretrain_steps": 1, "steps": 1}
    train.run(tmp_path / "run", ["zhyper-diag", "lora"], "default", given)
    printed = run_main(control.main, tmp_path / "run", "--methods", "zhyper-diag,lora")
    row = next(line.split(" | ") for line in printed.splitlines() if line.startswith("| lora | "))
    assert row[1] == row[2] == row[3]  # it reads no text
    assert "| − zhyper-diag | lost when removed | lost when replaced |" in printed
