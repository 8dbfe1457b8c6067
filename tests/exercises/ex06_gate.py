"""Complete the case for the gate: what a text does at one site may be the opposite of what it does at another.

Read in hyper.py: GatedTrunk, and `forward` of PaperTrunk.
1. `set_opposite` sets weights of a GatedTrunk with two modules, in place: the features of the second module are minus
   those of the first, in every layer and for every text, and not zero.
2. `residual`: y (n, 2) has a number for each text at each of two sites. Stack them to 2n rows and fit all of them by
   one linear function of [c, site]; return ‖y - fit‖ / ‖y‖. c is (n, d), site is one-hot.
3. With `product` it does the same on [c ⊗ site, site]: c stands in the columns of its own site, zeros in the others.

Hint 1: the gate has a number for each layer, module and place of c. Nothing else in the trunk depends on the site.
Hint 2: there are 2n rows, one for each text at each site, and d + 2 columns, or 2d + 2 with `product`.
Hint 3: torch.linalg.lstsq(rows, y).solution, with y as (2n, 1); torch.block_diag(c, c) is c ⊗ site.
"""

import torch
from taught import small_config

from hyper import GatedTrunk


def set_opposite(trunk: GatedTrunk) -> None:
    raise NotImplementedError


def residual(c: torch.Tensor, y: torch.Tensor, product: bool) -> float:
    raise NotImplementedError


# ---- checks: do not edit
def test_a_gate_turns_the_sign_of_a_text_at_another_site():
    trunk = GatedTrunk(small_config(modules=("q", "v")), 2, 3).double()
    set_opposite(trunk)
    c = trunk.read(torch.randn(20, 3).double())  # of 20 texts with one statement each
    first, second = trunk(c).unbind(2)  # (n, 2 layers, f) each
    torch.testing.assert_close(second, -first, msg="the features are no opposites: in every layer?")
    assert first.std(0).min() > 0, "a feature is the same for all texts: its opposite says nothing"


def test_a_sum_of_text_and_site_explains_no_opposites_but_a_product_does():
    torch.manual_seed(0)
    c = torch.randn(10, 3).double()
    c = torch.cat([c, -c])  # so a linear function of c explains nothing of |c|² but its mean
    line = c.sum(1)
    bend = c.square().sum(1) - c.square().sum(1).mean()
    cases = [  # y at the first site and at the second; then what sum and product leave of it, at both sites alike
        (line, line, 0 * line, 0 * line),
        (line, -line, line, 0 * line),  # left is then -line at the second site, which is as long
        (line + bend + 1, line + bend - 2, bend, bend),  # each site has a mean of its own: its column explains it
    ]
    for first, second, *unexplained in cases:
        y = torch.stack([first, second], dim=1)
        left = [(torch.stack([rest, rest]).norm() / y.norm()).item() for rest in unexplained]
        found = [residual(c, y, product) for product in (False, True)]
        why = f"sum and product leave {left}, not {found}: is it a regression on these columns, one for all 2n rows?"
        assert all(abs(x - expected) < 1e-9 for x, expected in zip(found, left, strict=True)), why
