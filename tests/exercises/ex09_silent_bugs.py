"""Debug two faults that most tests miss: one shows only in a batch of mixed texts, the other more in a long prompt.

Read in zhyper.py: `embed`. In model.py: `rotary`, `rotate`.
1. c has a row for each of some texts, and the batch asks several questions about each: first all those about text 0,
   then those about text 1. c[serves(texts, questions)] is to give each its own text. Mend the line in the comment.
2. Nothing is to be mended here: find how long a prompt must be before the fault shows. `wrong` reads q and k as if
   rotary pairs were neighbours, 0 1, 2 3, in place of i and i + size/2. `shows_from`: the length of the shortest
   prefix of ids at which some logit of the two models differs by more than the tolerance.

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
    torch.manual_seed(0)
    A, B = torch.randn(2, 6).double(), torch.randn(5, 2).double()
    for texts, questions in [(3, 4), (2, 3)]:
        z = torch.randn(texts, 2).double()
        x = torch.randn(texts, questions, 1, 6).double()  # one token each
        index = serves(texts, questions)
        count = f"{texts} texts with {questions} questions each have not {len(index)} rows"
        assert len(index) == texts * questions, f"{count}: are both arguments used?"
        mixed = LowRank(A, B, z[index], 0.5)(x.flatten(0, 1)).view(texts, questions, 1, 5)
        for text in range(texts):
            alone = LowRank(A, B, z[text].expand(questions, 2), 0.5)(x[text])
            why = f"a question about text {text} has the z of another text"
            torch.testing.assert_close(mixed[text], alone, msg=why)


def test_the_length_from_which_a_wrong_rotary_layout_shows():
    torch.manual_seed(0)
    right, wrong = (GPT(ModelConfig(16, layers=2, heads=2, kv_heads=2, width=16, inner=16)).double() for _ in range(2))
    ids, order = torch.randint(16, (2, 48)), torch.arange(16).view(2, 4, 2).mT.flatten()  # 0 2 4 6 1 3 5 7, 8 10 ...
    for (name, weight), other in zip(right.state_dict().items(), wrong.state_dict().values(), strict=True):
        other.copy_(weight.normal_()[order] if name.endswith((".q.weight", ".k.weight")) else weight)
    apart = [(right(ids[:, :n]) - wrong(ids[:, :n])).abs().max().item() for n in range(1, 49)]
    for limit in [0.01 * apart[-1], 0.5 * apart[-1], 0.9 * apart[-1], 1.1 * apart[-1]]:
        first = next((n for n, difference in enumerate(apart, 1) if difference > limit), None)
        for one, other in [(right, wrong), (wrong, right)]:  # in either order
            found = shows_from(one, other, ids, limit)
            assert found == first, f"over {limit:.3g} it shows from length {first}, not {found}"
