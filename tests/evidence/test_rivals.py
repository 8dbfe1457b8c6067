"""Every rival is what it says."""

from dataclasses import replace

import pytest
import rivals
import torch
from conftest import TEXTS, build_system, tiny_config, two_cultures
from torch.nn import functional as F

import train
from zhyper import Zhyper

WORDS = (["what now?", "how?"], ["bow", "sing"])  # questions and answers


def made(kind: str, **changes) -> Zhyper:
    """A rival's untrained system."""
    system = build_system("zhyper-diag")
    system.add_hypernetwork(tiny_config(kind, **changes))
    return system.eval()


@pytest.mark.parametrize("kind", ["rescaling", "authors"])
def test_step_0_is_the_frozen_model_and_then_every_weight_learns(kind):
    system = made(kind).train()
    ids = torch.arange(20).expand(2, -1)
    torch.testing.assert_close(system.backbone(ids, system.adapt(TEXTS[:2])), system.backbone(ids))
    before = {name: weight.clone() for name, weight in system.hypernetwork.named_parameters()}
    optimizer = torch.optim.Adam(system.hypernetwork.parameters(), 1e-2)
    for _ in range(4):
        optimizer.zero_grad()
        system.score(*WORDS, TEXTS[:2])[0].sum().backward()
        optimizer.step()
    for name, weight in system.hypernetwork.named_parameters():
        assert not torch.equal(weight, before[name]), name


def test_rescaling_multiplies_the_outputs_of_the_backbone_that_it_is_loaded_with(tmp_path):
    system = made("rescaling")
    bias = torch.nn.init.normal_(system.hypernetwork.heads["o"].bias)
    system.save(tmp_path / "rescaling.pt")
    update = Zhyper.load(tmp_path, "rescaling").adapt(TEXTS[:2])[0, "o"]
    x = torch.randn(2, 5, 32)
    y = F.linear(x, system.backbone.linear(0, "o").weight)
    torch.testing.assert_close(update(x), update.scale * bias * y)


@torch.no_grad()
def test_what_is_made_of_a_trained_zhyper_has_its_mean_z_or_that_of_the_nearest_text():
    system = build_system("zhyper-diag")
    c = system.embed(TEXTS)
    z = system.hypernetwork(c)[1, "v"].z
    mean = rivals.MeanZ(system.hypernetwork, c)
    torch.testing.assert_close(mean(c[:2])[1, "v"].z, z.mean(0).expand(2, -1))
    nearest = rivals.Nearest(system.hypernetwork, c)
    torch.testing.assert_close(nearest(c[[3, 1]] + 1e-3)[1, "v"].z, z[[3, 1]])


@torch.no_grad()
def test_the_authors_loss_has_noise_label_smoothing_and_an_l2(monkeypatch):
    system = made("authors", trunk="paper")
    adapter = system.adapt(TEXTS[:2])
    torch.testing.assert_close(*adapter[0, "q"].z)  # at first the same for both texts
    torch.nn.init.normal_(system.hypernetwork.B["q"])
    questions, answers = WORDS
    rows = system.encode_rows(system.prompts(questions, None), answers)
    assert rivals.authors_loss(system, rows, TEXTS[:2]) != rivals.authors_loss(system, rows, TEXTS[:2])
    monkeypatch.setattr(rivals, "NOISE", 0.0)
    monkeypatch.setattr(rivals, "DROPOUT", 0.0)
    targets = torch.full_like(rows.ids, -100)
    for i, (start, end) in enumerate(zip(rows.start, rows.end, strict=True)):
        targets[i, start - 1 : end - 1] = rows.ids[i, start:end]
    logits = system.backbone(rows.ids, adapter)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=0.1)
    for update in adapter.values():
        A = torch.stack([update.as_lora(row)[0] for row in range(2)])
        expected += 1e-3 * (A.square().mean() + update.B.square().mean())
    torch.testing.assert_close(rivals.authors_loss(system, rows, TEXTS[:2]), expected)


def test_the_authors_rate_rises_for_a_fifth_of_the_steps_and_falls_to_zero_whatever_the_preset():
    assert [rivals.linear_rate(step, 10) for step in (1, 2, 3, 7, 11)] == [0.5, 1.0, 1.0, 0.5, 0.0]
    config = train.configure("authors", "real", {})
    assert config.lr * config.lr_scale == 2.5e-5


def test_a_control_reads_another_field_as_the_description():
    for record in rivals.reading(two_cultures(), "question").records:
        assert record.description == record.question


def test_a_name_changes_a_method(monkeypatch):
    name = "rescaling@rank=12@lr=0.01"
    monkeypatch.setitem(train.METHODS, name, {})  # which is undone afterwards
    rivals.add_changed(name, {})
    before = train.configure("rescaling", "votes", {})
    assert train.configure(name, "votes", {}) == replace(before, rank=12, lr=0.01, lr_scale=1.0)
