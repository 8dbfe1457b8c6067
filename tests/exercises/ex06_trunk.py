"""Modify the trunk: add the site to the text in place of multiplying, and find what a sum cannot do.

Read in hyper.py: Trunk, GatedTrunk, `generate_z` of ZhyperDiag.
1. `AddedTrunk` is a GatedTrunk whose features of site (l, m) are gate[l,m] + c, in place of gate[l,m] ⊙ c. (To train
   it with train.py, one would add its name to TRUNKS.)
2. The effect of a text at a site is what changes in z if it stands in the place of another text: z of the one minus z
   of the other. `set_opposite` sets weights of a network with a GatedTrunk, in place: for every module, the effect of
   any text at layer 1 is minus its effect at layer 0, and not zero. Why can no weights of AddedTrunk do it?

Hint 1: gate is (l, m, f) and c is (b, f). Which axes of size 1 does c need?
Hint 2: one head serves all layers of a module. So only the features can tell the layers apart.
Hint 3: write down gate[1,m] + c minus gate[1,m] + c' for two texts c and c'. What is left of the site?
"""

import torch
from taught import small_config
from torch import Tensor

from hyper import GatedTrunk, ZhyperDiag


class AddedTrunk(GatedTrunk):
    def forward(self, c: Tensor) -> Tensor:
        raise NotImplementedError


def set_opposite(network: ZhyperDiag) -> None:
    raise NotImplementedError


# ---- checks: do not edit
def effects(trunk: type[GatedTrunk], change) -> tuple[ZhyperDiag, Tensor, dict[tuple[int, str], Tensor]]:
    """A network with this trunk, after `change`; c of four texts; {site: effect of the first against the second}."""
    torch.manual_seed(0)
    network = ZhyperDiag(small_config(modules=("q", "k", "v")), 2, {"q": (6, 6), "k": (6, 4), "v": (6, 4)}, 5)
    network.trunk = trunk(network.config, 2, 5)
    torch.nn.init.normal_(network.head_weight)  # as training would leave it; it starts at zero
    network.double().eval()
    change(network)
    c = network.trunk.read(torch.randn(4, 5).double())
    size = tuple(network.trunk(c).shape)
    assert size == (4, 2, 3, 8), f"features are {size}, not (b, l, m, f): does c have an axis for layers and modules?"
    return network, c, {site: update.z[0] - update.z[1] for site, update in network(c).items()}


@torch.no_grad()
def test_the_features_are_a_sum_and_so_a_text_has_the_same_effect_at_all_layers():
    network, c, effect = effects(AddedTrunk, lambda network: None)
    features = network.trunk(c)
    for text, layer, module in ((0, 0, 1), (1, 1, 0)):
        wanted = network.trunk.gate[layer, module] + c[text]
        why = f"text {text}, layer {layer}, module {module}: the features are not gate[l,m] + c"
        torch.testing.assert_close(features[text, layer, module], wanted, msg=why)
    for module in ("q", "k", "v"):
        torch.testing.assert_close(effect[1, module], effect[0, module], msg=f"at {module} the layers differ")


@torch.no_grad()
def test_a_product_can_turn_the_sign():
    _, _, effect = effects(GatedTrunk, set_opposite)
    for module in ("q", "k", "v"):
        assert effect[0, module].abs().max() > 0.01, f"at layer 0 {module} the text has no effect"
        why = f"at layer 1 {module} the effect is not minus that at layer 0: which weights do the layers not share?"
        torch.testing.assert_close(effect[1, module], -effect[0, module], msg=why)
