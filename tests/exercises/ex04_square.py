"""Complete two facts about Z: a square contains every diagonal, and only the product B Z has a meaning.

Read in hyper.py: LowRank (`times_z`, `delta`), ZhyperSquare, and `z` of ZhyperDiag.
`square_head` makes of a head of ZhyperDiag, which gives z (r), one of ZhyperSquare, which gives Z (r, r) row after row,
so that Z = diag(z) for every text. `rescaled` gives the same ΔW with other numbers: for factors s (r,) the new Z is
diag(s) Z, A stays, and B makes up for it; z may be (b, r) or (b, r, r). So nobody should read a meaning into ‖z‖.

Hint 1: of the r² numbers of Z, where do those on the diagonal stand when its rows follow each other?
Hint 2: B S⁻¹ S Z = B Z. What does a diagonal matrix do to rows, from the left, and to columns, from the right?
"""

import torch

from hyper import HYPERNETWORKS, HyperConfig, LowRank


def square_head(head: torch.nn.Linear) -> torch.nn.Linear:
    square = torch.nn.Linear(head.in_features, head.out_features**2, dtype=head.weight.dtype)
    raise NotImplementedError(f"{square} starts random: which rows are to be those of {head}, and which zero?")


def rescaled(update: LowRank, s: torch.Tensor) -> LowRank:
    raise NotImplementedError


# ---- checks: do not edit
def test_the_square_does_what_the_diagonal_does_for_every_text():
    arguments = HyperConfig(rank=3, modules=("q",), hidden=8), 2, {"q": (6, 5)}, 4
    diag, square = (HYPERNETWORKS[f"zhyper-{kind}"](*arguments).double() for kind in ("diag", "square"))
    diag.heads["q"].bias.data.normal_(), diag.B["q"].data.normal_()
    square.A, square.B, square.trunk, square.heads["q"] = diag.A, diag.B, diag.trunk, square_head(diag.heads["q"])
    for site, update in diag(c := torch.randn(3, 4).double()).items():
        torch.testing.assert_close(square(c)[site].delta(), update.delta())


def test_rescaling_changes_z_and_B_but_not_the_update():
    A, B, s, diagonal, square = (torch.randn(size).double() for size in [(3, 6), (5, 3), 3, (2, 3), (2, 3, 3)])
    for z, scaled in [(diagonal, s * diagonal), (square, torch.diag(s) @ square)]:
        new = rescaled(old := LowRank(A, B, z, 0.5), s)
        torch.testing.assert_close((new.A, new.z, new.delta()), (A, scaled, old.delta()))
