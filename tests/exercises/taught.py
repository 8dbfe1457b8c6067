"""For exercise 10: three cultures, and tiny systems that are taught what they answer."""

from functools import cache

import torch

from data import Record
from data.tokenizer import train_tokenizer
from hyper import HyperConfig
from model import GPT, Encoder, EncoderConfig, ModelConfig
from train import columns
from zhyper import Zhyper
SEED=0
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


@cache
def teach(documents: tuple[Record, ...], records: tuple[Record, ...]) -> Zhyper:
    """A backbone that has read the documents without a description; then Zhyper is trained on the records, through it."""
    torch.manual_seed(SEED)
    texts = [part for record in (*RECORDS, *records) for part in record[1:4]]
    tokenizer = train_tokenizer(texts, 320)
    sizes = {"vocab_size": tokenizer.get_vocab_size(), "block_size": 96, "heads": 2, "width": 32, "inner": 64}
    backbone = GPT(ModelConfig(layers=2, kv_heads=2, **sizes))
    system = Zhyper(tokenizer, backbone, Encoder(EncoderConfig(layers=1, **sizes)))
    backbone.requires_grad_(True)
    optimise(system, list(backbone.parameters()), documents, None, 200)
    backbone.requires_grad_(False)
    system.add_hypernetwork(HyperConfig(rank=4, alpha=8.0, gated_features=32))
    descriptions = columns(records)[2]
    with torch.no_grad():
        system.hypernetwork.measure(system.embed(sorted(set(descriptions))))
    trained = [*system.encoder.parameters(), *system.hypernetwork.parameters()]
    optimise(system, trained, records, descriptions, 100)
    return system.requires_grad_(False).eval()


def optimise(system: Zhyper, weights: list, records: tuple[Record, ...], descriptions, most: int) -> None:
    """Take ten steps or more, until the loss is small, but at most so many."""
    prompts, answers, _ = columns(records)
    optimizer = torch.optim.Adam(weights, 5e-3)
    for step in range(most):
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1, (step + 1) / 10)
        loss, tokens, _ = system.score(prompts, answers, descriptions)
        loss = loss.sum() / tokens.sum()
        if loss < 0.01 and step >= 10:
            break
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    print(step, loss.item())
