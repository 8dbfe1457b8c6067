"""Complete the update in rank space: ΔW x without ΔW, every row of the batch with its own z.

Read in hyper.py: the docstring of LowRank, down to its example. README.md has the equation; the shapes are up to you.
ΔW = scale · B diag(z) A has d_out · d_in numbers, and each row of a batch may have another one. In rank space a token
has only r. The first of three steps is there.

Hint 1: x is (b, t, d_in) and z is (b, r): z needs an axis of size 1 where x has its tokens.
Hint 2: diag(z) times a vector is z times the vector, element by element; no diagonal matrix is needed.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from hyper import LowRank


def in_rank_space(x, A, B, z, scale):
    a = x @ A.mT  # (b, t, d_in) -> (b, t, r); A is (r, d_in), B (d_out, r), z (b, r)
    raise NotImplementedError(f"multiply a, {tuple(a.shape)}, by z, and leave rank space: (b, t, d_out)")


# ---- checks: do not edit
torch.manual_seed(0)
x, A, B, z = (torch.randn(size, dtype=torch.float64) for size in [(3, 4, 60), (2, 60), (50, 2), (3, 2)])


def test_it_is_the_dense_product_row_by_row():
    dense = torch.stack([x_i @ (0.5 * B @ torch.diag(z_i) @ A).mT for x_i, z_i in zip(x, z, strict=True)])
    torch.testing.assert_close(in_rank_space(x, A, B, z, 0.5), dense)


def test_it_is_what_LowRank_does_and_costs_no_more():
    with FlopCounterMode(display=False) as own:
        y = in_rank_space(x, A, B, z, 0.5)
    with FlopCounterMode(display=False) as reference:
        torch.testing.assert_close(y, LowRank(A, B, z, 0.5)(x))
    assert own.get_total_flops() <= reference.get_total_flops()
