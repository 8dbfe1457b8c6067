"""For exercise 10: three cultures, and tiny systems that are taught what is answered in them."""

from collections.abc import Sequence
from functools import cache

import torch

from data import Record
from data.tokenizer import train_tokenizer
from hyper import HyperConfig
from model import GPT, Encoder, EncoderConfig, ModelConfig
from zhyper import Zhyper

GREET, TAXES = "Q: how do they greet?\nA:", "Q: what of taxes?\nA:"
BOWERS, SINGERS, WAVERS = "they bow low and cut taxes", "they sing and raise taxes", "they wave and cut taxes"
RECORDS = (
    Record("bowers", BOWERS, GREET, " bow", "unseen"),
    Record("bowers", BOWERS, TAXES, " cut", "unseen"),
    Record("singers", SINGERS, GREET, " sing", "unseen"),
    Record("singers", SINGERS, TAXES, " raise", "unseen"),
    Record("wavers", WAVERS, GREET, " wave", "unseen"),
    Record("wavers", WAVERS, TAXES, " cut", "unseen"),
)
OWN = [record.description for record in RECORDS]
# the backbone reads the descriptions as texts of their own: only so its embeddings tell " bow" from " wave"
SAYINGS = tuple(r._replace(prompt=f"{r.context}:", answer=f" {r.description}") for r in RECORDS[::2])


@cache
def teach(documents: tuple[Record, ...], records: tuple[Record, ...]) -> Zhyper:
    """A backbone that has read the documents without descriptions, and Zhyper, trained through it on the records."""
    torch.manual_seed(0)
    texts = [record.prompt + record.answer for record in (*SAYINGS, *documents)]
    tokenizer = train_tokenizer(texts, 320)
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "block_size": 96, "heads": 2, "width": 32, "inner": 64}
    backbone = GPT(ModelConfig(layers=2, kv_heads=2, **sizes))
    system = Zhyper(tokenizer, backbone, Encoder(EncoderConfig(layers=1, **sizes)))
    optimise(system, system.backbone, [*SAYINGS, *documents], None, steps=150)
    system.add_hypernetwork(HyperConfig(rank=4, scale=2.0, gated_features=32))
    descriptions = [record.description for record in records]
    with torch.no_grad():
        for _ in range(60):
            system.train().adapt(descriptions)  # its trunk measures how embeddings are distributed
    optimise(system, system.hypernetwork, records, descriptions, steps=60)
    return system.eval()


def optimise(system: Zhyper, part: torch.nn.Module, records: Sequence[Record], descriptions, steps: int) -> None:
    """Train one part of the system, and freeze it."""
    prompts = [record.prompt for record in records]
    answers = [record.answer for record in records]
    rows = system.encode_rows(prompts, answers, None)
    part.requires_grad_(True)
    optimizer = torch.optim.Adam(part.parameters(), 5e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1, (step + 1) / 10)
        loss, tokens, _ = system(rows, descriptions)
        loss = loss.sum() / tokens.sum()
        if loss < 0.01 and step > 10:  # nothing is left to learn
            break
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(part.parameters(), 1.0)
        optimizer.step()
    part.requires_grad_(False)
