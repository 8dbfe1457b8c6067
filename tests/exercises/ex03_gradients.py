"""Derive the gradients of the update by hand: with respect to z, to A and to B.

Read in hyper.py: LowRank, down to `times_z`.
y = scale · ((x Aᵀ) ⊙ z) Bᵀ is what LowRank adds to W x. L is the loss. G = dL/dy is given: it has the shape of y and
says how L changes with each number of y. `gradients` returns dL/dz, dL/dA, dL/dB by products of matrices, without
autograd; on paper first. Then read off for exercise 4: which of the three are zero when z is zero? Which are when B is
zero as well?

    x (b, t, d_in)    A (r, d_in)    B (d_out, r)    z (b, r)    G (b, t, d_out)

Hint 1: in steps a = x Aᵀ, h = a ⊙ z, y = scale · h Bᵀ. Go back from the last: what is dL/dh, from G and B?
Hint 2: a gradient has the shape of what it is the gradient of. That says what is transposed and what is summed.
Hint 3: z serves all tokens of its row: its gradient is a sum over tokens. A and B serve all rows: over rows as well.
"""

import torch

from hyper import LowRank


def gradients(x, A, B, z, scale, G):
    raise NotImplementedError


# ---- checks: do not edit
def test_they_are_those_of_autograd():
    torch.manual_seed(0)
    x, A, B, z, G = [torch.randn(shape).double() for shape in [(3, 4, 6), (2, 6), (5, 2), (3, 2), (3, 4, 5)]]
    weights = [weight.requires_grad_() for weight in (z, A, B)]
    for scale in (0.5, 3.0):
        with torch.inference_mode():  # no autograd in here
            found = gradients(x.clone(), A.clone(), B.clone(), z.clone(), scale, G.clone())
        expected = torch.autograd.grad(LowRank(A, B, z, scale)(x), weights, G)
        assert len(found) == 3, "three gradients are asked for, in the order z, A, B"
        for name, own, autograd in zip("zAB", found, expected, strict=True):
            assert own.shape == autograd.shape, f"dL/d{name} is {tuple(own.shape)}: what is to be summed over?"
            ratio = own.norm() / autograd.norm()
            why = f"dL/d{name} is wrong at scale {scale}, its length {ratio:.2f} of autograd's: are all factors in it?"
            torch.testing.assert_close(own.clone(), autograd, msg=why)
