"""Modify the trunk: add the site to the text in place of multiplying, and find what a sum cannot do.

Read in hyper.py: Trunk, GatedTrunk, `generate_z` of ZhyperDiag.
1. `AddedTrunk` is a GatedTrunk whose features of site (l, m) are gate[l,m] + c, in place of gate[l,m] ⊙ c.
2. `effect` returns what changes in z at one site if the first text is put in place of the second: their difference,
   (r,). `c` has two rows, one for each text.
3. `set_opposite` sets weights of a network with a GatedTrunk, in place: at layer 1 the effect of any text on z is minus
   its effect at layer 0, for every module, and not zero. Before that say why no weights of AddedTrunk can do it.

Hint 1: gate is (l, m, f) and c is (b, f). Which axes of size 1 does c need?
Hint 2: network(c) is {(layer, module): update}, and update.z is (2, r).
Hint 3: one head serves all layers of a module. So only the features can tell the layers apart.
"""

import torch
from taught import small_config
from torch import Tensor

from hyper import GatedTrunk, ZhyperDiag


class AddedTrunk(GatedTrunk):
    def forward(self, c: Tensor) -> Tensor:
        raise NotImplementedError


def effect(network: ZhyperDiag, c: Tensor, site: tuple[int, str]) -> Tensor:
    raise NotImplementedError


def set_opposite(network: ZhyperDiag) -> None:
    raise NotImplementedError


# ---- checks: do not edit
SITES = [(0, "q"), (0, "v"), (1, "q"), (1, "v")]


def build(trunk: type[GatedTrunk]) -> ZhyperDiag:
    network = ZhyperDiag(small_config(), 2, {"q": (6, 6), "v": (6, 4)}, 5)
    network.trunk = trunk(network.config, 2, 5)
    return network.double().eval()


@torch.no_grad()
def test_a_product_with_the_site_can_turn_the_sign_of_a_text_and_a_sum_cannot():
    torch.manual_seed(0)
    for trunk in (AddedTrunk, GatedTrunk):
        network = build(trunk)
        gate = network.trunk.gate
        c = network.trunk.read(torch.randn(2, 5).double())  # of two texts with one statement each
        if trunk is AddedTrunk:
            features = network.trunk(c)
            assert features.shape == (2, 2, 2, 8), f"features are {tuple(features.shape)}: (b, l, m, f) is wanted"
            for text, (layer, module) in ((0, (0, 1)), (1, (1, 0))):
                why = f"text {text}, layer {layer}, module {module}: the features are not gate[l,m] + c"
                torch.testing.assert_close(features[text, layer, module], gate[layer, module] + c[text], msg=why)
        else:
            set_opposite(network)
            assert gate.abs().min() > 0, "a gate is zero: its text has no effect at all there"
        adapter = network(c)
        for site in SITES:
            z = adapter[site].z
            why = f"at {site} the effect is not z of the first text minus z of the second"
            torch.testing.assert_close(effect(network, c, site), z[0] - z[1], msg=why)
            assert effect(network, c, site).abs().max() > 0.01, f"at {site} the text has no effect"
        sign = 1 if trunk is AddedTrunk else -1  # a sum: the same effect at all layers, whatever the weights are
        for module in ("q", "v"):
            why = f"the effect on {module} at layer 1 is not {sign} times that at layer 0"
            layers = [effect(network, c, (layer, module)) for layer in (0, 1)]
            torch.testing.assert_close(layers[1], sign * layers[0], msg=why)
