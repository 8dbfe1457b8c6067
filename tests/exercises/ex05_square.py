"""Complete two facts about Z: a square can be any diagonal, and one update can be written with many different Z.

Read in hyper.py: LowRank (`times_z`, `delta`), `generate_z` of ZhyperDiag, and ZhyperSquare.
1. `square_head` gets the head_weight (m, r, f) and the head_bias (m, r) of a ZhyperDiag. It returns those of a
   ZhyperSquare, (m, r², f) and (m, r²), that make Z = diag(z) for every text. The r² outputs are the rows of Z, one
   after the other.
2. `rescaled` returns an update with the same ΔW and other numbers: for factors s (r,) the new Z is diag(s) Z, A stays
   as it is, and B makes up for it. z may be (b, r) or (b, r, r).
So only the product B Z has a meaning: nobody should read one into the length of z.

Hint 1: of the r² numbers of Z, where do those on the diagonal stand when its rows follow each other?
Hint 2: B S⁻¹ S Z = B Z. What does a diagonal matrix do from the left, to rows? And from the right, to columns?
Hint 3: for r = 3 the places are 0, 4 and 8. `dataclasses.replace` copies an update with some fields changed.
"""

import torch
from taught import small_config

from hyper import LowRank, ZhyperDiag, ZhyperSquare


def square_head(weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    raise NotImplementedError


def rescaled(update: LowRank, s: torch.Tensor) -> LowRank:
    raise NotImplementedError


# ---- checks: do not edit
def test_the_square_does_what_the_diagonal_does_for_every_text():
    torch.manual_seed(0)
    for rank in (3, 2):
        sizes = (small_config(rank=rank), 2, {"q": (6, 5), "v": (6, 4)}, 4)
        diagonal = ZhyperDiag(*sizes).double()
        torch.nn.init.normal_(diagonal.head_bias)
        square = ZhyperSquare(*sizes).double()
        square.trunk = diagonal.trunk
        both = square_head(diagonal.head_weight.data, diagonal.head_bias.data)
        square.head_weight.data, square.head_bias.data = both
        c = torch.randn(3, diagonal.trunk.features).double()  # of three texts
        for site, update in square(c).items():
            why = f"at rank {rank} Z is not diag(z): is the diagonal in its places, the bias too, and all else zero?"
            torch.testing.assert_close(update.z, torch.diag_embed(diagonal(c)[site].z), msg=why)


def test_rescaling_changes_z_and_B_but_not_the_update():
    torch.manual_seed(0)
    A, B, s, z, Z = [torch.randn(shape).double() for shape in [(3, 6), (5, 3), (3,), (2, 3), (2, 3, 3)]]
    for old, scaled in [(LowRank(A, B, z, 0.5), s * z), (LowRank(A, B, Z, 3.0), torch.diag(s) @ Z)]:
        delta = old.delta(1)  # before `rescaled`, which may change `old` itself
        new = rescaled(old, s)
        torch.testing.assert_close((new.A, new.z), (A, scaled), msg="Z is not diag(s) Z: its rows times s? And A stays")
        torch.testing.assert_close(new.delta(1), delta, msg="the update has changed: does B make up for s?")
