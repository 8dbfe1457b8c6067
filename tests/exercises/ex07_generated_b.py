"""Modify the hypernetwork: add one that generates only B, while all texts share A.

Read in hyper.py: Hypernetwork, `init_A`, StaticLoRA, TextToLoRA.
ΔW = scale · B(c) · A. A is a parameter for each layer and module, with LoRA's usual start. B comes from the trunk and a
head for each module. Step 0 is the frozen model, and one step later two texts have two updates, at every site. Write
only the class. (To train it with train.py, one would add its name to HYPERNETWORKS and a line to METHODS.)

Hint 1: TextToLoRA is near: what does its head emit that yours does not, and where does A go instead?
Hint 2: B is zero at the start, for every text. Which numbers of the head must be zero for that? Do they get a gradient?
Hint 3: `place_updates` takes {module: one A for each layer}, and B likewise. B of one layer is (b, d_out, r).
"""

import torch
from taught import small_config

from hyper import Adapter, HyperConfig, Hypernetwork, init_A  # noqa: F401 (init_A is for you)


class GeneratedB(Hypernetwork):
    def __init__(self, config: HyperConfig, layers: int, shapes: dict[str, tuple[int, int]], d_text: int):
        super().__init__(config, layers, shapes, d_text)
        raise NotImplementedError

    def forward(self, c: torch.Tensor) -> Adapter:
        raise NotImplementedError


# ---- checks: do not edit
def test_it_starts_as_the_frozen_model_and_gives_each_text_its_own_B_at_every_site():
    torch.manual_seed(0)
    config = small_config("t2l", rank=2, scale=3.0, lowest_layer=1)
    network = GeneratedB(config, 2, {"q": (6, 6), "v": (8, 4)}, 5)
    c = torch.randn(3, network.trunk.features)  # of three texts
    x = {"q": torch.randn(3, 7, 6), "v": torch.randn(3, 7, 8)}
    A = [weight for name, weight in network.named_parameters() if name.startswith("A")]
    count = sum(weight.numel() for weight in A)
    assert count == 2 * 2 * (6 + 8), f"A has {count} numbers: is there one of (r, d_in) for each layer and module?"
    numbers = torch.cat([weight.flatten() * weight.shape[-1] ** 0.5 for weight in A])
    heads = sum(weight.numel() for weight in network.parameters()) - count
    heads -= sum(weight.numel() for weight in network.trunk.parameters())
    n = 2 * (6 + 4)  # numbers that the heads emit
    f = network.trunk.features
    why = f"the heads have {heads} numbers, not {n * f + n}: is there one for each module, which emits B alone?"
    assert heads in (n * f, n * f + n), why
    usual = -1 <= numbers.min() < -0.5 and 0.5 < numbers.max() <= 1
    assert usual, "A has not LoRA's usual start: see `init_A`"
    assert sorted(network(c)) == sorted(network.sites()), "the adapter has other sites: see `sites`"
    zero = not any(update(x[m]).any() for (_, m), update in network(c).items())
    assert zero, "step 0 is not the frozen model: is B(c) zero?"
    sum((u(x[m]) - x[m][..., : len(u.B[0])]).square().mean() for (_, m), u in network(c).items()).backward()
    torch.optim.Adam(network.parameters(), 0.1).step()
    alone = network(c[1:2])
    for site, update in network(c).items():
        same = update.B[1].allclose(alone[site].B[0], atol=1e-6)
        assert same, f"at {site}, B of a text is another when the text is alone: which axis is b, and which l?"
        own_x = x[site[1]]
        whole = update.scale == 3 and update.A.shape == (2, own_x.shape[-1])
        assert whole, f"at {site}, scale is config.scale, and A has no axis b"
        assert (update(own_x) != 0).any(), f"nothing has moved at {site}: is A zero as well?"
        assert update.B.dim() == 3 and not update.B[0].allclose(update.B[1]), f"at {site}, two texts have the same B"
        factors = update.B[0] / update.B[1]  # (d_out, r)
        assert not factors.allclose(factors[:1]), f"at {site}, two texts' B differ by a factor a column: that is a z"
    assert not network(c)[1, "q"].A.equal(network(c)[2, "q"].A), "two layers share their A"
    assert not network(c)[1, "q"].B.equal(network(c)[2, "q"].B), "two layers have the same B: whose features make it?"
    network.zero_grad()
    sum((u(x[m]) - 1).square().mean() for (_, m), u in network(c).items()).backward()
    reached = network.trunk.gate.grad.any(-1)  # (l, m): the gate makes the features of each site
    assert reached.all(), "the features of some layer or module are never used: which of them does each head get?"
