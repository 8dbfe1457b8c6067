"""One solution for each exercise, and what to ask for where an answer is in words (3, 9, 10).

An instructor deletes this file to hand the rest out.

SOLUTIONS=1 python -m pytest tests/exercises/ex03_dead_start.py    # runs the checks on these
"""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from data._controls import other_descriptions
from hyper import HyperConfig, ZhyperDiag, lora_A
from train import score_rows

# ---- 1: 13 has rank 8 on both sides, like with like; 26 sets T2L at rank 16 against Zhyper at rank 8


def trained(kind, rank, trunk, feature, layers, shapes):
    both = sum(rank * (d_in + d_out) for d_in, d_out in shapes.values())  # A and B of one layer
    if kind == "t2l":
        return trunk + both * (feature + 1)
    return trunk + len(shapes) * rank * (feature + 1) + layers * both


def ranks(ratio):
    return {13: (8, 8), 26: (16, 8)}[ratio]


# ---- 2


def in_rank_space(x, A, B, z, scale):
    a = x @ A.mT  # (b, t, r)
    return scale * (a * z[:, None]) @ B.mT


# ---- 3: B contains the zero; z must differ between texts, or one adapter for all is learned first
# For the board: y = s ((x Aᵀ) ⊙ z) Bᵀ, and G is the gradient of the loss at y, a row for each of x. Then
#   at B: s Gᵀ ((x Aᵀ) ⊙ z)    at z: s (G B) ⊙ (x Aᵀ), summed over rows    at A: s ((G B) ⊙ z)ᵀ x
# With B = 0 only B has one, and the next step moves all three; with z = 0 too all are zero, for ever.


def alive_start(network):
    for head in network.heads.values():
        nn.init.normal_(head.weight, std=network.config.spread / network.trunk.width**0.5)


# ---- 4


def square_head(head):
    r = head.out_features
    square = nn.Linear(head.in_features, r**2, dtype=head.weight.dtype)
    for new, old in ((square.weight, head.weight), (square.bias, head.bias)):
        nn.init.zeros_(new)
        new.data[:: r + 1] = old.data
    return square


def rescaled(update, s):
    z = s * update.z if update.z.dim() == 2 else s[:, None] * update.z
    return replace(update, z=z, B=update.B / s)


# ---- 5


def set_opposite(trunk):
    trunk.gate.data[:, 1] = -trunk.gate.data[:, 0]


def residual(c, y):
    sites = torch.eye(2, dtype=c.dtype).repeat_interleave(len(c), dim=0)  # (2n, 2)
    rows, y = torch.cat([c.repeat(2, 1), sites], dim=1), y.mT.flatten()
    fit = rows @ torch.linalg.lstsq(rows, y[:, None]).solution
    return ((y - fit[:, 0]).norm() / y.norm()).item()


# ---- 6: b is zero and z is not, so b has a gradient at step 0 and z from step 1 on


class Vera(ZhyperDiag):
    def __init__(self, config, layers, shapes, d_text):
        super().__init__(config, layers, shapes, d_text)
        self.b = nn.ParameterDict({m: torch.zeros(layers, shapes[m][1]) for m in config.modules})
        for m in config.modules:
            self.B[m].data = lora_A(*self.B[m].shape)
        self.A.requires_grad_(False)
        self.B.requires_grad_(False)

    def forward(self, c):
        adapter, first = super().forward(c), self.config.first
        return {(l, m): replace(u, B=self.b[m][l - first][:, None] * u.B) for (l, m), u in adapter.items()}


# ---- 7


def scale_outputs(backbone, s):
    def update_of(site):
        return lambda x: F.linear(x, backbone.linear(*site).weight) * s[site][:, None]

    return {site: update_of(site) for site in s}


# ---- 8


def serves(texts, questions):
    return torch.arange(texts).repeat_interleave(questions)


def shows_from(right, wrong, ids, tolerance):
    apart = (right(ids) - wrong(ids)).abs().amax(dim=(0, 2))  # (t,)
    over = (apart > tolerance).nonzero()
    return over[0].item() + 1 if len(over) else None


# ---- 9: the margin is what the text adds to the prompt; here the prompt has all of it already, so no loss is left
# that only the text could lower. Accuracy alone shows that the task is done, not what it was read from: a full answer
# names the two readings (from the description, from the prompt) and that only a swapped description parts them.


def accuracies(system, records):
    descriptions = {"right": [record.description for record in records], **other_descriptions(records, seed=0)}
    return {name: score_rows(system, records, texts)[2].mean().item() for name, texts in descriptions.items()}


def stated(records):
    return [record._replace(prompt=f"{record.description}. {record.prompt}") for record in records]


# ---- 10: a toy in place of an hour's training; contexts are points, updates what a teacher gives
# Ask of a curve: what else changed with the value (the time, the rows a context has)? Is a difference larger than the
# spread over seeds? Does the control fall where unseen rises, so that it is reading, or do both move with the backbone?


def my_curve():
    def accuracies_of(contexts, seed):
        torch.manual_seed(seed)
        config, shapes = HyperConfig(rank=4, alpha=4.0, modules=("q",), hidden=16), {"q": (6, 6)}
        student, texts = ZhyperDiag(config, 1, shapes, 4), torch.randn(contexts + 32, 4)
        A, B, M = torch.randn(4, 6), torch.randn(6, 4), torch.randn(4, 4)
        wanted = B @ torch.diag_embed(texts @ M) @ A  # (n, 6, 6)
        optimizer = torch.optim.Adam(student.parameters(), 0.02)
        for _ in range(40):
            optimizer.zero_grad()
            (student(texts[:contexts])[0, "q"].delta() - wanted[:contexts]).square().mean().backward()
            optimizer.step()
        unseen, right = texts[contexts:], wanted[contexts:].flatten(1)

        def accuracy(described):  # how often an update is nearest to the one wanted
            nearest = torch.cdist(student(described)[0, "q"].delta().flatten(1), right).argmin(1)
            return (nearest == torch.arange(32)).float().mean().item()

        with torch.no_grad():
            return accuracy(unseen), accuracy(unseen.roll(1, 0))

    values, seeds = [2, 8, 32], [0, 1, 2]
    found = [[accuracies_of(value, seed) for seed in seeds] for value in values]
    unseen, swapped = ([[pair[i] for pair in row] for row in found] for i in (0, 1))
    command = "SOLUTIONS=1 python -m pytest tests/exercises/ex10_curve.py"
    about = {"name": "training contexts", "command": command, "values": values, "seeds": seeds}
    return about | {"unseen": unseen, "swapped": swapped}
