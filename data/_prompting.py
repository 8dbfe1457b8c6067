"""What a backbone reads where the description stands in its prompt: formats, and examples.

A format is a text with {description} and {prompt}, or {question}, a prompt without its template.
"""

import random
import re
from collections.abc import Callable, Sequence

from data import Data

BARE = "{prompt}"  # nothing is told
PLAIN = "{description}\n{prompt}"
CHAT = (  # ChatML, which SmolLM2 and others were tuned on: the description is the system message
    "<|im_start|>system\n{description}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
EXAMPLES = 4
VALIDATED = 128  # rows on which formats are compared


def render(prompting: str, template: str, description: str, prompt: str) -> str:
    """What the backbone reads of a description and a prompt.

    >>> render("{description} {question}", "Q: {}\\\\nA:", "People bow.", "Q: Why?\\\\nA:")
    'People bow. Why?'
    """
    before, _, after = template.partition("{}")
    parts = {"description": description, "prompt": prompt}
    parts["question"] = prompt.removeprefix(before).removesuffix(after)
    parts[None] = "{"  # what is written {{
    return re.sub(r"{{|{(\w+)}", lambda part: parts.get(part[1], part[0]), prompting)


def answer_lists(answers: Sequence, prompting: str, descriptions) -> list[list[str]]:
    """The answers to each prompt, one or a list of several, as lists.

    Where a description is told in a format that ends in a space, they lose their own.
    """
    answers = [[several] if isinstance(several, str) else [*several] for several in answers]
    for i, several in enumerate(answers):
        if prompting[-1].isspace() and descriptions is not None and descriptions[i] is not None:
            answers[i] = [answer.lstrip() for answer in several]
    return answers


def formats(data: Data, tokenizer, longest: int, seed: int) -> dict[str, str]:
    """The fair ways to tell a real model, by name: plain and as a chat, without and with examples.

    Examples are rows of training contexts. There is no chat for a tokenizer without its marks, and
    but for the plain one no format in which a row may take over half of `longest` tokens.
    """
    forms = {"plain": (PLAIN, "\n\n")}  # and what ends an example
    if tokenizer.token_to_id("<|im_start|>") is not None:
        forms["system message"] = CHAT, "<|im_end|>\n"
    rng, rows = random.Random(seed), data.split("train")
    contexts = sorted({row.context for row in rows})
    contexts = rng.sample(contexts, min(EXAMPLES, len(contexts)))
    examples = [rng.choice([row for row in rows if row.context == name]) for name in contexts]
    found = {}
    for name, (form, end) in forms.items():
        told = ""
        for row in examples:
            text = render(form, data.template, row.description, row.prompt)
            told += text + answer_lists([row.answer], form, [text])[0][0] + end
        told = told.replace("{", "{{")
        found |= {name: form, f"{name}, {len(examples)} examples": told + form}
    description, prompt, answer = (max((r[i] for r in data.records), key=len) for i in (1, 2, 3))

    def fits(form: str) -> bool:
        text = render(form, data.template, description, prompt) + answer
        return form == PLAIN or len(tokenizer.encode(text).ids) <= longest // 2

    return {name: form for name, form in found.items() if fits(form)}


def choose(system, data: Data, seed: int, evaluate: Callable) -> str:
    """Give a Zhyper the format with which it does best; returns the name.

    Judged by train.py's `evaluate` on rows of the validation split: by choice, or else by the loss.
    """
    rows, scores, longest = data.split("validation"), {}, system.backbone.config.block_size
    rows = random.Random(seed).sample(rows, min(VALIDATED, len(rows)))
    known = formats(data, system.tokenizer, longest, seed) if rows else {}
    for name, system.prompting in known.items():
        found = evaluate(system, rows)
        scores[name] = found.get("choice", -found["nll"])
    best = max(scores, key=scores.get, default="plain")
    system.prompting = known.get(best, PLAIN)
    return best
