"""Debug two faults that most tests miss: one shows only in a batch of mixed texts, the other more in a long prompt.

Read in zhyper.py: `adapt`. In model.py: `rotary`, `rotate`.
1. c has a row for each of some texts, and the batch asks several questions about each: first all those about text 0,
   then those about text 1. c[serves(texts, questions)] is to give each its own text. Mend the line in the comment.
2. Nothing is to be mended here: find how long a prompt must be before the fault shows. `wrong` reads q and k as if
   rotary pairs were neighbours, 0 1, 2 3, in place of i and i + size/2. `shows_from`: the length of the shortest
   prefix of ids at which some logit of the two models differs by more than the tolerance.

Hint 1: write down, for 2 texts and 3 questions each, which text each of the 6 rows is about.
Hint 2: no logit depends on a later token: one pass of each model is enough. How early it shows depends on tolerance.
Hint 3: torch has `repeat` and `repeat_interleave`. A prefix of one token has its only logits at place 0.
"""

from copy import deepcopy

import torch

from hyper import LowRank
from model import GPT, ModelConfig


def serves(texts: int, questions: int) -> torch.Tensor:  # torch.arange(texts).repeat(questions)
    raise NotImplementedError


def shows_from(right: GPT, wrong: GPT, ids: torch.Tensor, tolerance: float) -> int | None:  # None: never
    raise NotImplementedError


# ---- checks: do not edit
def test_a_question_in_a_mixed_batch_is_answered_as_if_its_text_were_alone():
    torch.manual_seed(0)
    A, B = [torch.randn(shape).double() for shape in [(2, 6), (5, 2)]]
    for texts, questions in [(3, 4), (2, 3)]:
        z = torch.randn(texts, 2).double()
        x = torch.randn(texts, questions, 1, 6).double()  # one token each
        index = serves(texts, questions)
        why = f"{texts} texts with {questions} questions each have not {len(index)} rows: are both arguments used?"
        assert len(index) == texts * questions, why
        mixed = LowRank(A, B, z[index], 0.5)(x.flatten(0, 1)).view(texts, questions, 1, 5)
        for text in range(texts):
            alone = LowRank(A, B, z[text].expand(questions, 2), 0.5)(x[text])
            torch.testing.assert_close(mixed[text], alone, msg=f"a question about text {text} has another text's z")


def test_the_length_from_which_a_wrong_rotary_layout_shows():
    torch.manual_seed(0)
    sizes = ModelConfig(16, 48, layers=2, heads=2, kv_heads=2, width=16, inner=16)
    right = GPT(sizes).double()
    for weight in right.parameters():
        weight.data.normal_()
    wrong = deepcopy(right)
    order = torch.arange(16).view(2, 4, 2).mT.flatten()  # 0 2 4 6 1 3 5 7, 8 10 ...
    for block in wrong.layers:
        for linear in (block.q, block.k):
            linear.weight.data = linear.weight[order]
    ids = torch.randint(16, (2, 48))
    apart = [(right(ids[:, :n]) - wrong(ids[:, :n])).abs().max().item() for n in range(1, 49)]
    for limit in [0.01 * apart[-1], 0.5 * apart[-1], 0.9 * apart[-1], 1.1 * apart[-1]]:
        first = next((n for n, difference in enumerate(apart, 1) if difference > limit), None)
        found = shows_from(right, wrong, ids, limit)
        assert found == first, f"over {limit:.3g} it shows from length {first}, not {found}"
