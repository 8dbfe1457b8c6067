"""Modify Zhyper: A and B stay random for ever (after VeRA, arXiv 2310.11454, which also shares A and B between layers).

Read in hyper.py: StaticLoRA, ZhyperDiag, LowRank. `dataclasses.replace` copies an update with one field changed.
The update of a site is scale · diag(b) · B · diag(z(c)) · A; b is (layers, d_out) for each module. Trained: trunk,
heads, b. A and B are frozen, not zero: `lora_A` starts both. Step 0 is the frozen model. `__init__` is not enough.

Hint 1: B may not be zero any more. Which factor can be, so that training still leaves the start?
Hint 2: diag(b) B is B with each row times a number, so a LowRank holds it; `forward` may begin with the parent's.
"""

import torch

from hyper import HyperConfig, ZhyperDiag


class Vera(ZhyperDiag):
    def __init__(self, config: HyperConfig, layers: int, shapes: dict[str, tuple[int, int]], d_text: int):
        raise NotImplementedError


# ---- checks: do not edit
SIZES = HyperConfig(rank=4, modules=("q", "v"), first=1, hidden=8), 2, {"q": (6, 6), "v": (6, 4)}, 5


def test_b_is_trained_in_place_of_A_and_B():
    own, parent = (sum(p.numel() for p in kind(*SIZES).parameters() if p.requires_grad) for kind in (Vera, ZhyperDiag))
    assert own == parent - 2 * 4 * (6 + 6) - 2 * 4 * (6 + 4) + 2 * (6 + 4)  # 2 layers, rank 4: no A, no B, but b


def test_it_starts_at_zero_and_learns_opposite_updates_for_two_texts_without_touching_A_and_B():
    torch.manual_seed(0)
    vera, c, x = Vera(*SIZES).double(), torch.randn(2, 5).double(), torch.randn(1, 9, 6).double()
    frozen = {n: w.clone() for n, w in vera.state_dict().items() if n[:2] in ("A.", "B.")}
    assert sum(w.any() for w in frozen.values()) == 4 and not any(update(x).any() for update in vera(c).values())
    optimizer = torch.optim.Adam(vera.parameters(), 0.02)
    for _ in range(150):
        loss = (vera(c)[1, "q"](x) - torch.cat([x, -x])).square().mean()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    assert loss < 0.9 * x.square().mean()  # with one update for both texts, it never gets lower than at step 0
    assert all(torch.equal(vera.state_dict()[n], w) for n, w in frozen.items())
