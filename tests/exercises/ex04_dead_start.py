"""Debug a dead start: step 0 is the frozen model, but the loss never falls, at any learning rate.

Read in hyper.py: `__init__` of StaticLoRA and of ZhyperDiag, with its comment. Use your gradients of exercise 3.
`dead_start` means well: ΔW = scale · B diag(z) A should be zero at the start. `alive_start` gets the network after it
and sets weights anew, in place. ΔW is then still zero, exactly, but after one step it differs between texts, at every
site.

Hint 1: dL/dB contains z, and dL/dz contains B. What are both if both are zero?
Hint 2: one of the two zeros is enough: either B or z may be zero. What does each mean for two texts after one step?
Hint 3: z = head_weight · features + head_bias. Only the first of the two depends on the text.
"""

import torch
from taught import small_config

from hyper import ZhyperDiag
from model import GPT, ModelConfig


def dead_start(network: ZhyperDiag) -> None:
    for weight in [network.head_weight, network.head_bias, *network.B.values()]:
        torch.nn.init.zeros_(weight)


def alive_start(network: ZhyperDiag) -> None:
    raise NotImplementedError


# ---- checks: do not edit
def test_it_starts_as_the_frozen_model_and_one_step_gives_two_texts_two_updates():
    torch.manual_seed(0)
    model = GPT(ModelConfig(16, 8, layers=2, heads=1, kv_heads=1, width=8, inner=8)).double().requires_grad_(False)
    network = ZhyperDiag(small_config(modules=("q", "k", "v", "o")), 2, model.config.shapes, 4).double()
    ids = torch.randint(16, (3, 6))
    c = torch.randn(3, network.trunk.features).double()  # of three texts
    dead_start(network)
    alive_start(network)
    zero = not any(update.delta().any() for update in network(c).values())
    assert zero, "step 0 is not the frozen model: neither B nor z is zero, exactly"
    logits = model(ids, network(c))
    torch.nn.functional.cross_entropy(logits[:, :-1].mT, ids[:, 1:]).backward()
    torch.optim.Adam(network.parameters(), 0.1).step()
    for site, update in network(c).items():
        first = update.delta(0)
        assert first.norm() > 1e-4, f"nothing has moved at {site}: which of z, A and B had a gradient at step 0?"
        differs = (first - update.delta(1)).norm() > 0.01 * first.norm()
        assert differs, f"the update does not differ between texts, at {site}: is z the same for both?"
        alive = update.B.norm(dim=0) * (update.z[0] - update.z[1]).abs()  # (r,)
        assert (alive > 0).all(), f"at {site} only {(alive > 0).sum()} of {len(alive)} ranks are alive"
