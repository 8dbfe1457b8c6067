"""The `best-prompt` row: the frozen model with the description in its prompt, in the format that suits it best.

Four formats are tried: plain, or the system message of a ChatML chat, each without and with four examples. Only a
format's own marks are special tokens; what is filled in is text, so that no description can close the message.
"""

import random
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import train
from data import Data, Record
from data.batches import NO_TARGET, Rows, join_pairs
from data.tokenizer import check_length, encode_pairs
from model import Cache
from zhyper import Zhyper

START, END = "<|im_start|>", "<|im_end|>"
CHAT = f"{START}system\n{{description}}{END}\n{START}user\n{{question}}{END}\n{START}"  # then REPLY
REPLY = "assistant\n"
EXAMPLES = 4
VALIDATED = 128  # records on which formats are compared


class Prompted(Zhyper):
    """A frozen model that reads each prompt in a format; without a description it reads the prompt alone."""

    chat = False
    examples: Sequence[Record] = ()  # with their answers, before the prompt

    @property
    def format(self) -> str:
        name = "chat" if self.chat else "plain"
        return f"{name}, {len(self.examples)} examples"

    def forward(self, rows: Rows, descriptions) -> tuple[Tensor, Tensor, Tensor]:
        """As Zhyper.forward, but what all rows begin with, as examples are, is read only once."""
        count = len(rows.ids)
        first_target = (rows.targets != NO_TARGET).any(axis=0).argmax()
        alike = (rows.ids[:, :first_target] == rows.ids[:1, :first_target]).all(axis=0)  # (t,)
        shared = len(alike) if alike.all() else alike.argmin()
        if not shared:
            return super().forward(rows, descriptions)
        x = self.states_below(rows)
        cache = Cache(padding=torch.zeros(1, dtype=torch.long, device=self.device))
        self.backbone.run_layers(x[:1, :shared], {}, cache=cache)
        cache.padding = cache.padding.expand(count)
        for layer, (k, v) in cache.kept.items():
            cache.kept[layer] = (k.expand(count, -1, -1, -1), v.expand(count, -1, -1, -1))
        x = self.backbone.run_layers(x[:, shared:], {}, cache=cache)
        return self.row_losses(x, rows.targets[:, shared:])

    def encode_rows(self, prompts, answers, descriptions) -> Rows:
        pairs = []
        for prompt, answer, description in zip(prompts, answers, descriptions, strict=True):
            if description is None:
                pair = self.plain_pair(prompt, answer)
            elif self.chat:
                pair = self.chat_pair(description, prompt, answer)
            else:
                told = [f"{shown.description}\n{shown.prompt}{shown.answer}\n\n" for shown in self.examples]
                pair = self.plain_pair(f"{''.join(told)}{description}\n{prompt}", answer)
            pairs.append(pair)
        return join_pairs(pairs, self.backbone.config.eos[0])

    def plain_pair(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        return encode_pairs(self.tokenizer, [prompt], [answer], self.backbone.config.block_size)[0]

    def chat_pair(self, description: str, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """Token ids of a chat up to the assistant's answer, and of that: a line without a space before it."""
        start = []
        for shown in self.examples:
            start += self.chat_ids(shown.description, shown.prompt)
            start += self.text_ids(REPLY + shown.answer.lstrip())
            start += [self.tokenizer.token_to_id(END), *self.text_ids("\n")]
        start += self.chat_ids(description, prompt) + self.text_ids(REPLY)
        whole = self.text_ids(REPLY + answer.lstrip())
        answer_ids = whole[len(self.text_ids(REPLY)) :]
        check_length(description, start + answer_ids, "chat about", self.backbone.config.block_size)
        return start, answer_ids

    def chat_ids(self, description: str, prompt: str) -> list[int]:
        """CHAT, cut at its marks: each of them is one token, and what is between them is text."""
        texts = {"{description}": description, "{question}": self.guide.question(prompt)}
        ids = []
        for piece in re.split(f"({re.escape(START)}|{re.escape(END)})", CHAT):
            if piece in (START, END):
                ids.append(self.tokenizer.token_to_id(piece))
            else:
                ids += self.text_ids(re.sub(r"{\w+}", lambda found: texts[found[0]], piece))
        return ids

    def text_ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids


def formats(base: Zhyper, data: Data, seed: int) -> list[Prompted]:
    """The ways to tell this model, the plain one first; examples are records of training contexts.

    There is no chat for a tokenizer without its marks. But for the first, no format is tried in which the longest
    description and question take more than half of what the model can read.
    """
    rng, records = random.Random(seed), data.split("train")
    contexts = sorted({record.context for record in records})
    shown = []
    for context in rng.sample(contexts, min(EXAMPLES, len(contexts))):
        shown.append(rng.choice([record for record in records if record.context == context]))
    chats = [False] if base.tokenizer.token_to_id(START) is None else [False, True]
    found = []
    for chat in chats:
        for examples in ((), tuple(shown)):
            system = Prompted(base.tokenizer, base.backbone, description_in_prompt=True, guide=base.guide).eval()
            system.chat, system.examples = chat, examples
            if not found or fits(system, data):
                found.append(system)
    return found


def fits(system: Prompted, data: Data) -> bool:
    texts = zip(*((record.prompt, record.answer, record.description) for record in data.records), strict=True)
    prompt, answer, description = (max(column, key=len) for column in texts)
    try:
        return system.encode_rows([prompt], [answer], [description]).ids.size <= system.backbone.config.block_size // 2
    except ValueError:
        return False


def best_prompt(base: Zhyper, data: Data, settings: train.Settings, judge: Callable) -> Prompted:
    """The format that does best on records of the validation split, by `judge(system, records)`: more is better."""
    records = train.sample_records(data.split("validation"), VALIDATED, settings.seed)
    known = formats(base, data, settings.seed)
    if not records:
        return known[0]
    return max(known, key=lambda system: judge(system, records))
