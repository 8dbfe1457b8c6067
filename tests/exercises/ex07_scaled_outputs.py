"""Modify what is generated: no matrix, but a factor for each output (as (IA)³, arXiv 2205.05638, and FiLM do).

Read in model.py: its docstring, Linear, Update, `GPT.linear`. In hyper.py: nothing.
Instead of y = W x + ΔW x it is now y = (W x) ⊙ (1 + s(c)), where s has d_out numbers for each site and text. But
Linear adds update(x) to W x, and an update is given x alone. `scale_outputs` turns s, {site: (b, d_out)}, into the
updates of all sites, each row of the batch with its own s. At s = 0 the model is the frozen one, and s has a gradient.

Hint 1: which update(x), added to W x, gives (W x) ⊙ (1 + s)? It needs W, and computes W x a second time.
Hint 2: a function made in a loop sees the loop's last values when it is called: make it in a function of its own.
"""

import torch

from model import GPT, ModelConfig, Updates


def scale_outputs(backbone: GPT, s: dict[tuple[int, str], torch.Tensor]) -> Updates:
    raise NotImplementedError


# ---- checks: do not edit
model = GPT(ModelConfig(16, 8, layers=2, heads=2, kv_heads=1, width=8, inner=12)).double().requires_grad_(False)
ids, sites = torch.randint(16, (3, 6)), [(l, m) for l in (0, 1) for m in ("k", "v", "up")]


def test_step_0_is_the_frozen_model_and_has_a_gradient():
    s = {(l, m): torch.zeros(3, model.config.shapes[m][1]).double().requires_grad_() for l, m in sites}
    logits = model(ids, scale_outputs(model, s))
    logits.square().sum().backward()
    assert torch.equal(logits, model(ids)) and all(value.grad.any() for value in s.values())


def test_each_row_is_a_model_with_its_own_weights_and_has_its_gradients():
    s = {(l, m): torch.randn(3, model.config.shapes[m][1]).double().requires_grad_() for l, m in sites}
    for row, logits in enumerate(model(ids, scale_outputs(model, s))):
        own = {f"layers.{l}.{m}.weight": model.linear(l, m).weight * (1 + s[l, m][row, :, None]) for l, m in sites}
        both = logits, torch.func.functional_call(model, own, ids)[row]
        gradients = [torch.autograd.grad(y.square().sum(), [*s.values()], retain_graph=True) for y in both]
        torch.testing.assert_close(*both), torch.testing.assert_close(*gradients)
