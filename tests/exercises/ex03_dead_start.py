"""Debug a dead start: step 0 is the frozen model, but the loss never falls, at any learning rate.

Read in hyper.py: `__init__` of StaticLoRA and of ZhyperDiag. README.md: the end of "The idea".
`dead_start` means well: ΔW = scale · B diag(z) A should be zero at the start. `alive_start` gets the network after it
and sets weights anew, in place: ΔW is still zero, exactly, but after one step it differs between texts, at every site.

Hint 1: write down the gradient of a product B · z with respect to B, and with respect to z.
Hint 2: one of the two zeros is enough, and either may go. What does each mean for the texts at step 0?
"""

import torch

from hyper import HyperConfig, ZhyperDiag
from model import GPT, ModelConfig


def dead_start(network: ZhyperDiag) -> None:
    for weight in [*network.heads.parameters(), *network.B.parameters()]:
        torch.nn.init.zeros_(weight)


def alive_start(network: ZhyperDiag) -> None:
    raise NotImplementedError


# ---- checks: do not edit
def test_it_starts_as_the_frozen_model_and_one_step_gives_two_texts_two_updates():
    torch.manual_seed(0)
    model = GPT(ModelConfig(16, 8, layers=1, heads=1, kv_heads=1, width=8, inner=8)).double().requires_grad_(False)
    network = ZhyperDiag(HyperConfig(rank=2, alpha=4.0, hidden=8), 1, model.config.shapes, 4).double()
    ids, c = torch.randint(16, (3, 6)), torch.randn(3, 4, dtype=torch.float64)
    dead_start(network)
    alive_start(network)
    assert torch.equal(model(ids, network(c)), model(ids))  # step 0, bit for bit
    optimizer = torch.optim.Adam(network.parameters(), 0.1)
    torch.nn.functional.cross_entropy(model(ids, network(c))[:, :-1].mT, ids[:, 1:]).backward()
    optimizer.step()
    for site, update in network(c).items():
        delta = update.delta()
        assert (delta[0] - delta[1]).norm() > 1e-4 + 0.01 * delta.norm(), site
