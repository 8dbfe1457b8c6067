"""Modify what is generated: no matrix, but a factor for each output (as (IA)³, arXiv 2205.05638, and FiLM do).

Read in model.py: its docstring, Linear, Update, `GPT.linear`. In hyper.py: nothing.
In place of y = W x + ΔW x it is now y = (W x) ⊙ (1 + s(c)), where s has d_out numbers for each site and text. But
Linear adds update(x) to W x, and an update is given x alone. `scale_outputs` turns s, {site: (b, d_out)}, into the
updates of all sites, each row of the batch with its own s. At s = 0 the model is the frozen one, and s has a gradient.

Hint 1: which update(x), added to W x, gives (W x) ⊙ (1 + s)? It needs W, and computes W x a second time.
Hint 2: a function made in a loop sees the loop's last values when it is called: make it in a function of its own.
Hint 3: W x is (b, t, d_out) and s is (b, d_out): s is the same at every token of its row.
"""

import torch

from model import GPT, ModelConfig, Updates


def scale_outputs(backbone: GPT, s: dict[tuple[int, str], torch.Tensor]) -> Updates:
    raise NotImplementedError


# ---- checks: do not edit
def test_step_0_is_the_frozen_model_and_each_row_is_a_model_with_its_own_weights():
    torch.manual_seed(0)
    model = GPT(ModelConfig(16, 8, layers=2, heads=2, kv_heads=1, width=8, inner=12)).double().requires_grad_(False)
    ids = torch.randint(16, (3, 3))
    for size in (0, 1):
        s = {}
        for site in [(0, "k"), (0, "up"), (1, "k"), (1, "up")]:
            d_out = model.config.shapes[site[1]][1]
            s[site] = (size * torch.randn(3, d_out).double()).requires_grad_()
        logits = model(ids, scale_outputs(model, s))
        for row in range(3):
            scaled = {f"layers.{l}.{m}.weight": model.linear(l, m).weight * (1 + s[l, m][row, :, None]) for l, m in s}
            expected = torch.func.functional_call(model, scaled, ids)[row]
            why = f"s of size {size}, row {row}: the outputs are not W x · (1 + s): is it the s of this row and site?"
            torch.testing.assert_close(logits[row], expected, msg=why)
            found = torch.autograd.grad(logits[row].sum(), [*s.values()], retain_graph=True)
            wanted = torch.autograd.grad(expected.sum(), [*s.values()])
            torch.testing.assert_close(found, wanted, msg="s has another gradient: is s detached, or of another row?")
