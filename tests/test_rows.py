"""Several answers to one prompt, read at once: each as if it stood there alone."""

import pytest
import torch
from conftest import KINDS, TEXTS, build_system, two_cultures

from data import Record
from data._prompting import CHAT, PLAIN
from data._rows import of_first, pack, sees
from train import evaluate, score_rows
from zhyper import Zhyper

ANSWERS = (" bow", " bow low", " sing a tune", " the taxes are cut", " cut")
PROMPTS = ("Q: what now?\nA:", "people", "the taxes are")
FORMATS = {"frozen": "{prompt}", "prompt": PLAIN, "chat": CHAT}


def rows_with_choices() -> list[Record]:
    """Rows whose right answer is now this, now that, and not always the first of the choices."""
    return [
        Record(text, text, prompt, answer, "seen", (*ANSWERS[i % 3 :],) if answer in ANSWERS[i % 3 :] else ANSWERS)
        for i, text in enumerate(TEXTS[:4])
        for prompt in PROMPTS
        for answer in ANSWERS[i::3]
    ]


@pytest.fixture(params=[*KINDS, *FORMATS, "trained"])
def any_system(request) -> Zhyper:
    if request.param == "trained":
        return request.getfixturevalue("trained")[0]
    if request.param in KINDS:
        return build_system(request.param)
    system = build_system("lora", block_size=256)
    return Zhyper(system.tokenizer, system.backbone, prompting=FORMATS[request.param], template="Q: {}\nA:")


@torch.no_grad()
def test_choice_is_the_lowest_loss_per_token_of_answers_scored_one_by_one(any_system):
    data, rows = two_cultures(), rows_with_choices()
    others = tuple({row.answer for row in data.records})
    rows += [row._replace(choices=others) for row in data.split("unseen")]
    loss, tokens, exact, choice = score_rows(any_system, rows)
    for i, row in enumerate(rows):
        alone = [any_system.score([row.prompt], [answer], [row.description]) for answer in row.candidates]
        assert loss[i].item() == pytest.approx(alone[0][0].item(), abs=1e-5, rel=1e-5)
        assert (tokens[i], exact[i]) == (alone[0][1], alone[0][2])
        best = min(range(len(alone)), key=lambda k: alone[k][0] / alone[k][1])
        assert choice[i] == (best == 0), row
    assert 0 < choice.mean() < 1
    assert evaluate(any_system, rows)["choice"] == pytest.approx(choice.mean().item())


@torch.no_grad()
def test_an_answer_does_not_see_another_and_stands_where_it_would_alone(any_system):
    alone, *_ = any_system.score(PROMPTS[:1], [" bow low"], TEXTS[:1])
    for several in ([" bow low", " cut"], [" bow low", " sing a tune the taxes"], [" cut", " sing", " bow low"]):
        loss, tokens, _ = any_system.score(PROMPTS[:1], [several], TEXTS[:1])
        assert len(loss) == len(tokens) == len(several)
        assert loss[several.index(" bow low")].item() == pytest.approx(alone.item(), abs=1e-5, rel=1e-5)


def test_prompts_with_one_answer_and_with_several_are_scored_together_in_their_order(any_system):
    answers = [" bow", [" bow low", " cut", " sing"], [" sing"]]
    loss, tokens, _ = any_system.score(PROMPTS, answers, TEXTS[:3])
    pairs = [(0, " bow"), (1, " bow low"), (1, " cut"), (1, " sing"), (2, " sing")]
    alone = [any_system.score([PROMPTS[i]], [answer], [TEXTS[i]]) for i, answer in pairs]
    assert torch.allclose(loss, torch.cat([found[0] for found in alone]), atol=1e-5)
    assert tokens.tolist() == [found[1].item() for found in alone]


def test_packed_answers_go_on_from_the_prompt_each_in_a_segment_of_its_own():
    ids, position, segment, targets = pack([([5, 6], [[7], [8, 9]]), ([3], [[4]])], 1, 4)
    assert ids.tolist() == [[5, 6, 7, 8, 9], [3, 4, 0, 0, 0]]
    assert position.tolist() == [[0, 1, 2, 2, 3], [0, 1, 0, 0, 0]]
    assert segment.tolist() == [[0, 0, 1, 2, 2], [0, 1, 0, 0, 0]]
    first = [[0, 1, 1, 7], [0, 2, 1, 1], [0, 1, 2, 8], [0, 3, 2, 9], [0, 4, 2, 1]]  # row, at, segment, token
    assert targets.tolist() == [*first, [1, 0, 1, 4], [1, 1, 1, 1]]
    seen = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    assert sees(segment)[0, 0].int().tolist() == seen
    with pytest.raises(ValueError, match="a prompt and its answer are 4 tokens long, the backbone reads 3: shorten"):
        pack([([5, 6], [[7], [8, 9]])], 1, 3)


def test_of_several_answers_those_of_the_first_count_and_a_longer_one_is_not_at_a_disadvantage():
    scored = [torch.tensor([3.0, 2.0, 5.0, 4.0, 1.0]), torch.tensor([3.0, 1.0, 2.0, 1.0, 1.0])]
    loss, tokens, chosen = of_first(scored, [["a b", "c"], ["d e"], ["f", "g"]])
    assert (loss.tolist(), tokens.tolist(), chosen.tolist()) == ([3, 5, 4], [3, 2, 1], [1, 1, 0])


def test_choice_is_reported_only_where_rows_have_choices():
    system, rows = build_system("zhyper-diag"), rows_with_choices()
    assert set(evaluate(system, rows)) == {"accuracy", "nll", "choice", "n"}
    bare = [row._replace(choices=()) for row in rows]
    found, whole = evaluate(system, bare), evaluate(system, rows)
    assert set(found) == {"accuracy", "nll", "n"} and found["nll"] == pytest.approx(whole["nll"], abs=1e-5)


def test_rows_without_choices_do_not_count_in_choice():
    system, rows = build_system("zhyper-diag"), rows_with_choices()
    bare = [row._replace(choices=()) for row in rows]
    assert evaluate(system, [*rows, *bare])["choice"] == evaluate(system, rows)["choice"]
