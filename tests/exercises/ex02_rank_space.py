"""Complete the update in rank space: ΔW x without ΔW, every row of the batch with its own z.

Read in hyper.py: the equations at the top, no further. When it passes, compare with `LowRank.__call__`.
For one row, ΔW = scale · B diag(z) A. ΔW has d_out · d_in numbers, and each row of a batch has another one. In rank
space a token has only r numbers, so ΔW is never needed. The first of three steps is there.

    x (b, t, d_in)    A (r, d_in)    B (d_out, r)    z (b, r)    result (b, t, d_out)

Hint 1: diag(z) times a vector is z times the vector, element by element; no diagonal matrix is needed.
Hint 2: a is (b, t, r) and z is (b, r): z needs an axis of size 1 where a has its tokens.
Hint 3: A, with rows of d_in numbers, was applied as a product with A.mT. Apply B, with rows of r numbers, alike.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode


def in_rank_space(x, A, B, z, scale):
    a = x @ A.mT  # (b, t, d_in) -> (b, t, r)
    raise NotImplementedError(f"multiply a, {tuple(a.shape)}, by z, and leave rank space: (b, t, d_out)")


# ---- checks: do not edit
def test_it_is_the_dense_product_row_by_row_at_the_cost_of_two_thin_matrices():
    torch.manual_seed(0)
    x, A, B, z = [torch.randn(shape).double() for shape in [(4, 4, 60), (2, 60), (50, 2), (4, 2)]]
    with FlopCounterMode(display=False) as counter:
        y = in_rank_space(x, A, B, z, 0.5)
    assert tuple(y.shape) == (4, 4, 50), f"the result is {tuple(y.shape)}, not (b, t, d_out): which step comes last?"
    for row in range(4):
        delta = 0.5 * B @ torch.diag(z[row]) @ A  # ΔW
        why = f"row {row} is not ΔW x: has it its own z, the same at all tokens? Does scale occur once?"
        torch.testing.assert_close(y[row], x[row] @ delta.mT, msg=why)
    why = "with scale 3 the result is not 6 times that with scale 0.5: does the number 0.5 stand in your code?"
    torch.testing.assert_close(in_rank_space(x[:3], A, B, z[:3], 3.0), 6 * y[:3], msg=why)
    flops = counter.get_total_flops()
    why = f"it takes {flops:,} operations, not 2·b·t·r·(d_in + d_out): is a large matrix built, or @ avoided?"
    assert flops == 2 * 4 * 4 * 2 * (60 + 50), why
