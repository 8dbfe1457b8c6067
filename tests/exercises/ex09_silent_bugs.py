"""Debug two faults that most tests miss: one shows only in a batch of mixed texts, the other more in a long prompt.

Read in zhyper.py: `embed`. In model.py: `rotary`, `rotate`.
1. c has a row for each of some texts, and the batch asks several questions about each: first all those about text 0,
   then those about text 1. c[serves(texts, questions)] is to give each its own text. Mend the line in the comment.
2. `wrong` reads q and k as if rotary pairs were neighbours, 0 1, 2 3, in place of i and i + size/2. `shows_from`: the
   length of the shortest prefix of ids at which some logit of the two models differs by more than the tolerance.

Hint 1: write down, for 2 texts and 3 questions each, which text each of the 6 rows is about.
Hint 2: no logit depends on a later token: one pass of each model is enough. How early it shows depends on tolerance.
Hint 3: torch has `repeat` and `repeat_interleave`. A prefix of one token has its only logits at place 0.
"""

import torch

from hyper import LowRank
from model import GPT, ModelConfig


def serves(texts: int, questions: int) -> torch.Tensor:  # torch.arange(texts).repeat(questions)
    raise NotImplementedError


def shows_from(right: GPT, wrong: GPT, ids: torch.Tensor, tolerance: float) -> int | None:  # None: never
    raise NotImplementedError


# ---- checks: do not edit
def test_a_question_in_a_mixed_batch_is_answered_as_if_its_text_were_alone():
    A, B, z, x = (torch.randn(size).double() for size in [(2, 6), (5, 2), (3, 2), (3, 4, 1, 6)])  # 3 texts, 4 questions
    mixed = LowRank(A, B, z[serves(3, 4)], 0.5)(x.flatten(0, 1)).view(3, 4, 1, 5)
    for text in range(3):
        alone = LowRank(A, B, z[text].expand(4, 2), 0.5)(x[text])
        torch.testing.assert_close(mixed[text], alone, msg=f"a question about text {text} has the z of another text")


def test_the_length_from_which_a_wrong_rotary_layout_shows():
    right, wrong = (GPT(ModelConfig(16, layers=2, heads=2, kv_heads=2, width=16, inner=16)).double() for _ in range(2))
    ids, order = torch.randint(16, (2, 48)), torch.arange(16).view(2, 4, 2).mT.flatten()  # 0 2 4 6 1 3 5 7, 8 10 ...
    for (name, weight), other in zip(right.state_dict().items(), wrong.state_dict().values(), strict=True):
        other.copy_(weight.normal_()[order] if name.endswith((".q.weight", ".k.weight")) else weight)
    apart = [(right(ids[:, :n]) - wrong(ids[:, :n])).abs().max().item() for n in range(1, 49)]
    for limit in [0.01 * apart[-1], 0.5 * apart[-1], 0.9 * apart[-1], 1.1 * apart[-1]]:
        first = next((n for n, difference in enumerate(apart, 1) if difference > limit), None)
        assert shows_from(right, wrong, ids, limit) == first, f"over {limit:.3g} it shows from length {first}"
