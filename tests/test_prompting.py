"""How a description is told in a prompt: the formats, and which of them is chosen."""

import pytest
import tokenizers
import torch
from conftest import TEXTS, build_system, two_cultures

from data import Data, Record
from data._prompting import CHAT, PLAIN, choose, formats, render
from data._tokenizer import train_tokenizer
from train import evaluate
from zhyper import Zhyper

TEMPLATE = "Q: {}\nA:"
NAMES = ["plain", "plain, 4 examples", "system message", "system message, 4 examples"]
CHATTED = "<|im_start|>system\nD<|im_end|>\n<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def data() -> Data:
    """Six training contexts, and two that are only validated."""
    words = ["bow", "sing", "cut", "raise", "nod", "wave", "stare", "kneel"]
    rows = [
        Record(word, f"people {word}", f"Q: {q}\nA:", f" {word}", "train" if i < 6 else "validation")
        for i, word in enumerate(words)
        for q in ("how?", "why?")
    ]
    return Data("words", rows, [row.prompt + row.answer for row in rows], template=TEMPLATE)


def chat_tokenizer(data: Data) -> tokenizers.Tokenizer:
    tokenizer = train_tokenizer(data.documents, 300)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return tokenizer


def test_a_description_is_told_plainly_or_as_the_system_message(data):
    found = formats(data, chat_tokenizer(data), 10_000, 0)
    assert list(found) == NAMES
    assert render(found["plain"], TEMPLATE, "D", "Q: why?\nA:") == "D\nQ: why?\nA:"
    assert render(found["system message"], TEMPLATE, "D", "Q: why?\nA:") == CHATTED


def test_the_examples_are_rows_of_four_training_contexts_told_as_the_question_is(data):
    found, contexts = formats(data, chat_tokenizer(data), 10_000, 0), []
    for name, end in zip(NAMES[::2], ("\n\n", "<|im_end|>\n"), strict=True):
        *told, rest = found[f"{name}, 4 examples"].partition(found[name])
        rest, told = "".join(told).removesuffix(found[name]), []
        for row in data.split("train"):
            text = render(found[name], TEMPLATE, row.description, row.prompt)
            told += [(row.context, text + (row.answer if name == "plain" else row.answer.lstrip()) + end)]
        within = [(context, text) for context, text in told if text in rest]
        assert sum(len(text) for _, text in within) == len(rest)  # nothing else stands there
        contexts.append({context for context, _ in within})
        assert len(within) == len(contexts[-1]) == 4
    assert contexts[0] == contexts[1]
    assert formats(data, chat_tokenizer(data), 10_000, 1) != found == formats(data, chat_tokenizer(data), 10_000, 0)


def test_there_is_no_chat_without_its_marks_and_no_example_over_half_of_what_is_read(data):
    tokenizer = train_tokenizer(data.documents, 300)
    assert list(formats(data, tokenizer, 10_000, 0)) == ["plain", "plain, 4 examples"]
    told = formats(data, tokenizer, 10_000, 0)["plain, 4 examples"].removesuffix(PLAIN)
    longest = [max((row[i] for row in data.records), key=len) for i in (1, 2, 3)]
    half = len(tokenizer.encode(told + "{}\n{}{}".format(*longest)).ids)
    assert list(formats(data, tokenizer, 2 * half, 0)) == ["plain", "plain, 4 examples"]
    assert list(formats(data, tokenizer, 2 * half - 1, 0)) == ["plain"]


def test_a_description_that_holds_the_marks_of_a_format_is_told_as_it_stands():
    for text in ("about {prompt}", "{description}{question}", r"\1 {0} {}"):
        assert render(PLAIN, TEMPLATE, text, "Q: why?\nA:") == f"{text}\nQ: why?\nA:"
        assert render(CHAT, TEMPLATE, text, "Q: why?\nA:") == CHATTED.replace("\nD<", f"\n{text}<")
    assert render(PLAIN, TEMPLATE, "D", "why {description}?") == "D\nwhy {description}?"


def chat_system(data: Data, prompting: str = PLAIN) -> Zhyper:
    system = build_system("lora", block_size=2048)
    return Zhyper(chat_tokenizer(data), system.backbone, prompting=prompting, template=TEMPLATE)


@pytest.mark.parametrize("best", NAMES)
@pytest.mark.parametrize("measure", ["choice", "nll"])
def test_the_format_is_chosen_that_does_best_on_validation(best, measure, data):
    system, seen = chat_system(data), []
    known = formats(data, system.tokenizer, 2048, 0)
    assert list(known) == NAMES

    def evaluate(system: Zhyper, rows: list[Record]) -> dict:
        seen.append(rows)
        right = system.prompting == known[best]
        return {"choice": float(right), "nll": float(right)} if measure == "choice" else {"nll": float(not right)}

    assert choose(system, data, 0, evaluate) == best and system.prompting == known[best]
    assert len(seen) == 4 and all(sorted(rows) == sorted(data.split("validation")) for rows in seen)
    train = Data("words", data.split("train"), [], template=TEMPLATE)
    assert choose(system, train, 0, evaluate) == "plain" and system.prompting == PLAIN and len(seen) == 4


@torch.no_grad()
def test_an_answer_loses_its_leading_space_where_the_format_ends_in_a_newline():
    system = build_system("lora", block_size=256)
    prompts, told = ["people"], [TEXTS[0]]
    for form, lost in ((PLAIN, False), (CHAT, True)):
        system = Zhyper(system.tokenizer, system.backbone, prompting=form)
        with_space, without = (system.score(prompts, [answer], told)[0] for answer in (" bow", "bow"))
        assert torch.equal(with_space, without) == lost
        undescribed = [system.score(prompts, [answer], [None])[0] for answer in (" bow", "bow")]
        assert not torch.equal(*undescribed)  # the bare prompt, after which a space belongs


def test_an_example_that_holds_the_marks_of_a_format_is_told_as_it_stands():
    data = two_cultures()
    data.records[:] = [row._replace(description=row.description + " {prompt} {description}") for row in data.records]
    form = formats(data, build_system("lora").tokenizer, 10_000, 0)["plain, 2 examples"]
    told = render(form, data.template, "D", "P")
    assert told.count(" {prompt} {description}\n") == 2 and told.endswith("\n\nD\nP")


def test_a_format_in_which_a_row_would_not_fit_is_not_chosen():
    data, system = two_cultures(), build_system("lora", block_size=160)
    long = "people bow low " * 25
    data.records[4:] = [
        row._replace(split="validation", description=long + row.description) for row in data.records[4:]
    ]
    system = Zhyper(system.tokenizer, system.backbone, prompting=PLAIN, template=data.template)
    assert choose(system, data, 0, evaluate) == "plain"
