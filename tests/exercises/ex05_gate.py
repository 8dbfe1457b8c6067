"""Complete the case for the gate: what a text does at one site may be the opposite of what it does at another.

Read in hyper.py: GatedTrunk, and `forward` of PaperTrunk.
`set_opposite` sets weights of a GatedTrunk with two modules, in place: the feature of the second module is minus that
of the first, in every layer and for every text, and not zero. `residual` fits y (n, 2), one number for each text at
each of two sites, by a linear function of the concatenation [c, site], c (n, d), site one-hot, as one regression with
one weight for each number of c. It returns what is left: ‖y - fit‖ / ‖y‖.

Hint 1: a gate has a number for each layer, module and place of u; nothing else in the trunk knows the site.
Hint 2: 2n rows, one for each text at each site, and d + 2 columns; torch.linalg.lstsq(rows, y).solution.
"""

import torch

from hyper import GatedTrunk, HyperConfig


def set_opposite(trunk: GatedTrunk) -> None:
    raise NotImplementedError


def residual(c: torch.Tensor, y: torch.Tensor) -> float:
    raise NotImplementedError


# ---- checks: do not edit
def test_a_product_turns_the_sign_of_a_text_at_another_site():
    trunk = GatedTrunk(HyperConfig(modules=("q", "v"), hidden=4), 2, 3).double()
    set_opposite(trunk)
    feature = trunk(torch.randn(20, 3).double())  # (n, 2 layers, 2 modules, f)
    assert torch.equal(feature[:, :, 1], -feature[:, :, 0]) and feature.std(0).min() > 0


def test_a_linear_function_of_the_concatenation_adds_text_and_site_and_explains_no_opposites():
    c = torch.randn(20, 3).double()
    effect = c @ torch.randn(3).double()
    assert residual(c, torch.stack([effect + 1, effect - 2], dim=1)) < 1e-9
    left = (effect - effect.mean()).norm() / effect.norm()  # the site explains its mean, the text nothing
    assert abs(residual(c, torch.stack([effect, -effect], dim=1)) - left) < 1e-9
