"""Modify Zhyper: A and B stay random for ever (as in VeRA, arXiv 2310.11454), and a text still generates z.

Read in hyper.py: StaticLoRA, ZhyperDiag, LowRank. `dataclasses.replace` copies an update with one field changed.
The update of a site is scale · diag(b) · B · diag(z(c)) · A, with a vector b (d_out) of its own. Trained are the trunk,
the heads and b. A and B are parameters that are frozen, and not zero: `lora_A` starts both. Step 0 is the frozen model.
The class needs more than `__init__`.

Hint 1: B may not be zero any more. Which factor can be, so that training still leaves the start?
Hint 2: diag(b) B is B with each row times a number, so a LowRank holds it; `forward` may begin with the parent's.
"""

import torch

from hyper import HyperConfig, ZhyperDiag


class Vera(ZhyperDiag):
    def __init__(self, config: HyperConfig, layers: int, shapes: dict[str, tuple[int, int]], d_text: int):
        raise NotImplementedError


# ---- checks: do not edit
CONFIG, SHAPES = HyperConfig(rank=4, modules=("q", "v"), hidden=8), {"q": (6, 6), "v": (6, 4)}


def test_b_is_trained_in_place_of_A_and_B():
    own, parent = (kind(CONFIG, 3, SHAPES, 5).parameters() for kind in (Vera, ZhyperDiag))
    fewer = 3 * sum(4 * (d_in + d_out) - d_out for d_in, d_out in SHAPES.values())  # 3 layers, rank 4
    assert sum(p.numel() for p in own if p.requires_grad) == sum(p.numel() for p in parent) - fewer


def test_it_starts_at_zero_and_learns_opposite_updates_for_two_texts_without_touching_A_and_B():
    torch.manual_seed(0)
    vera, c, x = Vera(CONFIG, 1, SHAPES, 5).double(), torch.randn(2, 5).double(), torch.randn(2, 9, 6).double()
    frozen = {n: w.clone() for n, w in vera.state_dict().items() if n[:2] in ("A.", "B.")}
    assert sum(w.any() for w in frozen.values()) == 4 and not any(update(x).any() for update in vera(c).values())
    y, losses = torch.stack([x[0], -x[1]]) @ torch.randn(6, 6).double(), []
    optimizer = torch.optim.Adam([p for p in vera.parameters() if p.requires_grad], 0.02)
    for _ in range(150):
        losses.append((vera(c)[0, "q"](x) - y).square().mean())
        optimizer.zero_grad(), losses[-1].backward(), optimizer.step()
    assert losses[-1] < 0.6 * losses[0] and all(torch.equal(vera.state_dict()[n], w) for n, w in frozen.items())
