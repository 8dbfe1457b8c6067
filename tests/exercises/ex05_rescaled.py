"""Complete a proof that z alone has no meaning: one update can be written with many different z.

Read in hyper.py: LowRank (`times_z`, `delta`).
`rescaled` returns an update with the same ΔW and other numbers: for factors s (r,) the new Z is diag(s) Z, A stays as
it is, and B makes up for it. z may be (b, r), Zhyper's diagonal, or (b, r, r), its square. So only the product B Z has
a meaning. What should one compare between two texts in place of z?

Hint 1: B S⁻¹ S Z = B Z. What does a diagonal matrix do from the left, to rows? And from the right, to columns?
Hint 2: s * Z scales columns. Which axis of size 1 makes it scale rows?
Hint 3: `dataclasses.replace` copies an update with some fields changed.
"""

import torch

from hyper import LowRank


def rescaled(update: LowRank, s: torch.Tensor) -> LowRank:
    raise NotImplementedError


# ---- checks: do not edit
def test_rescaling_changes_z_and_B_but_not_the_update():
    torch.manual_seed(0)
    A, B, s, z, Z = [torch.randn(shape).double() for shape in [(3, 6), (5, 3), (3,), (3, 3), (3, 3, 3)]]
    kept = B.clone()
    for old, scaled in [(LowRank(A, B, z, 0.5), s * z), (LowRank(A, B, Z, 3.0), torch.diag(s) @ Z)]:
        delta = old.delta(1)  # before `rescaled`, which may change `old` itself
        new = rescaled(old, s)
        torch.testing.assert_close((new.A, new.z), (A, scaled), msg="Z is not diag(s) Z: its rows times s? And A stays")
        torch.testing.assert_close(new.delta(1), delta, msg="the update has changed: does B make up for s?")
        assert B.equal(kept), "B was changed in place: it is a parameter that other updates share"
