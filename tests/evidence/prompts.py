"""The `best-prompt` row: the frozen model with the description in its prompt, in the format that suits it best.

Four formats are tried: plain, or the system message of a ChatML chat, each without and with four examples. Only a
format's own marks are special tokens; what is filled in is text, so that no description can close the message.
"""

import random
import statistics
from collections.abc import Sequence
from pathlib import Path

import rivals

import train
from data import Data, Record
from data.batches import Rows, join
from train import METHODS, Config
from zhyper import Zhyper

START, END = "<|im_start|>", "<|im_end|>"
Chat = tuple[tuple[str, str], ...]  # messages: (role, text) of each


class Prompted(Zhyper):
    """A frozen model that reads each description in a format; without one it reads the question alone."""

    chat = False
    examples: Sequence[Record] = ()  # which stand with their answers before the description

    def prompts(self, questions, descriptions) -> list[str] | list[Chat]:
        prompts = super().prompts(questions, descriptions)
        if descriptions is None:
            return prompts
        if self.chat:
            return [self.messages(*each) for each in zip(questions, descriptions, strict=True)]
        shown = "".join(f"{record.description}\n{record.document}\n\n" for record in self.examples)
        return [shown + prompt for prompt in prompts]

    def messages(self, question: str, description: str) -> Chat:
        """All that is said before the assistant's answer."""
        said = []
        for record in self.examples:
            said += [("system", record.description), ("user", record.question), ("assistant", record.answer)]
        return (*said, ("system", description), ("user", question))

    def encode_rows(self, prompts, answers) -> Rows:
        if isinstance(prompts[0], str):
            return super().encode_rows(prompts, answers)
        pairs = [self.chat_pair(*each) for each in zip(prompts, answers, strict=True)]
        return join(pairs, self.backbone.config.eos[0])

    def chat_pair(self, chat: Chat, answer: str) -> tuple[list[int], list[int]]:
        """A chat up to the assistant's answer, and that: a line without a space before it."""
        ids = []
        for role, text in chat:
            ids += self.message(role, text)
        start = self.text_ids("assistant\n")
        whole = self.text_ids(f"assistant\n{answer}")
        return [*ids, self.tokenizer.token_to_id(START), *start], whole[len(start) :]

    def message(self, role: str, text: str) -> list[int]:
        start, end = map(self.tokenizer.token_to_id, (START, END))
        return [start, *self.text_ids(f"{role}\n{text}"), end, *self.text_ids("\n")]

    def text_ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids


def formats(base: Zhyper, data: Data, seed: int) -> dict[str, Prompted]:
    """The formats to try, plain without examples first; examples are records of training contexts.

    There is no chat for a tokenizer without its marks, and there are no examples for a model that reads few tokens.
    """
    rng = random.Random(seed)
    records = data.split("train")
    contexts = sorted({record.context for record in records})
    shown = []
    for context in rng.sample(contexts, min(4, len(contexts))):
        shown.append(rng.choice([record for record in records if record.context == context]))
    found = {}
    for name in ("plain", "chat") if START in base.tokenizer.get_vocab() else ("plain",):
        for examples in ([], shown) if base.backbone.config.block_size > 1000 else ([],):
            system = Prompted(base.tokenizer, base.backbone, description_in_prompt=True).eval()
            system.chat = name == "chat"
            system.examples = examples
            found[f"{name}, {len(examples)} examples"] = system
    return found


def choice_accuracy(system: Zhyper, records: Sequence[Record]) -> float:
    """How often the right one of a record's choices is the likeliest per token of them.

    A frozen model may know an answer and not its words; so this is fairer to it than exact match.
    """
    candidates = []
    for record in records:
        candidates += [record._replace(answer=choice) for choice in record.choices]
    encoded = train.encode_records(system, candidates, [record.description for record in candidates])
    loss, _ = train.score_records(system, encoded)
    rows = encoded.rows.take(encoded.row_of)
    per_token = (loss / (rows.end - rows.start)).split([len(record.choices) for record in records])
    pairs = zip(records, per_token, strict=True)
    return statistics.mean(record.choices[losses.argmin()] == record.answer for record, losses in pairs)


def prompt_row(name: str, folder: Path, base: Zhyper, data: Data, config: Config) -> dict:
    """Choose the format on the validation split, by choice, and evaluate it: exact match, and also by choice."""
    systems = formats(base, data, config.seed)
    records = [record for record in data.split("validation") if record.choices]
    records = random.Random(config.seed).sample(records, min(128, len(records)))
    best = max(systems, key=lambda form: choice_accuracy(systems[form], records) if records else 0)
    system = systems[best]
    row = train.evaluate(system, train.encode_data(system, data, config)) | {"format": best}
    for split, (records, _) in train.evaluation_plan(data, config).items():
        if split in train.SPLITS and all(record.choices for record in records):
            row["accuracy"][f"{split}, by choice"] = choice_accuracy(system, records)
    return row


METHODS["best-prompt"] = {"description_in_prompt": True}
rivals.ROWS["best-prompt"] = prompt_row
