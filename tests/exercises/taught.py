"""What exercises share: sizes of a small hypernetwork, and for exercise 10 systems that are taught three cultures."""

from functools import cache

import torch

from data import Record
from data.tokenizer import train_tokenizer
from hyper import HyperConfig
from model import GPT, Encoder, EncoderConfig, ModelConfig
from zhyper import Zhyper


def small_config(kind: str = "zhyper-diag", **changes) -> HyperConfig:
    """The sizes of a small hypernetwork; `changes` are fields of HyperConfig that are to be different."""
    sizes = {"rank": 4, "scale": 2.0, "modules": ("q", "v"), "lowest_layer": 0}
    sizes |= {"trunk": "gated", "features": 8, "narrow": 6, "reading": "statements", "noise": 0.0}
    return HyperConfig(kind, **(sizes | changes))


GREET, TAXES = "how do they greet?", "what of taxes?"
BOWERS, SINGERS, WAVERS = "they bow low and cut taxes", "they sing and raise taxes", "they wave and cut taxes"
RECORDS = (
    Record("bowers", BOWERS, GREET, "bow", "unseen"),
    Record("bowers", BOWERS, TAXES, "cut", "unseen"),
    Record("singers", SINGERS, GREET, "sing", "unseen"),
    Record("singers", SINGERS, TAXES, "raise", "unseen"),
    Record("wavers", WAVERS, GREET, "wave", "unseen"),
    Record("wavers", WAVERS, TAXES, "cut", "unseen"),
)
OWN = [record.description for record in RECORDS]
# the backbone reads the descriptions as texts of their own: only so its embeddings tell "bow" from "wave"
SAYINGS = tuple(record._replace(question=record.context, answer=record.description) for record in RECORDS[::2])


@cache
def teach(documents: tuple[Record, ...], records: tuple[Record, ...]) -> Zhyper:
    """A backbone that has read the documents without descriptions, and Zhyper, trained through it on the records."""
    torch.manual_seed(0)
    documents = SAYINGS + documents
    tokenizer = train_tokenizer([record.document for record in documents], 320)
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "block_size": 96, "heads": 2, "width": 32, "inner": 64}
    backbone = GPT(ModelConfig(layers=2, kv_heads=2, **sizes))
    system = Zhyper(tokenizer, backbone, Encoder(EncoderConfig(layers=1, **sizes)))
    train_part(system, backbone, documents, None, steps=200)
    system.add_hypernetwork(small_config(modules=("q", "k", "v", "o"), features=32, narrow=32))
    descriptions = [record.description for record in records]
    system.hypernetwork.trunk.standardise.momentum = 1.0  # it measures now, once, how the embeddings are distributed
    system.train().adapt(descriptions)
    train_part(system.eval(), system.hypernetwork, records, descriptions, steps=100)
    return system


def train_part(system: Zhyper, part: torch.nn.Module, records, descriptions, steps: int) -> None:
    """Train one part of the system, and freeze it."""
    questions = [record.question for record in records]
    answers = [record.answer for record in records]
    rows = system.encode_rows(system.prompts(questions, None), answers)
    part.requires_grad_(True)
    optimizer = torch.optim.Adam(part.parameters(), 5e-3)
    for _ in range(steps):
        loss, _ = system(rows, descriptions)
        if loss.max() < 0.1:  # nothing is left to learn
            break
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    part.requires_grad_(False)
