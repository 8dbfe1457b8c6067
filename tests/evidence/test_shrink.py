"""A shrunk run is half as large, answers the same, and names no folder of the machine that trained it."""

import json

import shrink
import torch

from zhyper import Zhyper


def test_a_shrunk_run_is_half_as_large_and_has_nearly_the_same_losses(trained, tmp_path, run_main):
    system, data, _ = trained
    system.save(tmp_path / "zhyper-diag.pt")
    (tmp_path / "results.json").write_text('{"given": {}}')
    words = (shrink.main, "--run", tmp_path, "--to", tmp_path / "to")
    run_main(*words)
    assert (tmp_path / "to/zhyper-diag.pt").stat().st_size < 0.6 * (tmp_path / "zhyper-diag.pt").stat().st_size
    record = data.records[0]
    asked = ([record.question], [record.answer], [record.description])
    loss, _ = Zhyper.load(tmp_path / "to").score(*asked)
    torch.testing.assert_close(loss, system.score(*asked)[0], atol=0.02, rtol=0.02)
    assert json.loads((tmp_path / "to/results.json").read_text()) == {"given": {}}
    assert "has trained its own encoder: leave out --encoder" in run_main(*words, "--encoder", "a/b")


def test_a_pretrained_encoder_gets_the_name_that_is_asked_for(trained, tmp_path, monkeypatch):
    system, _, _ = trained
    folder = str(tmp_path / "encoder")
    monkeypatch.setattr(system, "encoder_frozen", True)
    monkeypatch.setattr(system.encoder, "pretrained_name", folder)
    system.save(tmp_path / "zhyper-diag.pt")
    (tmp_path / "results.json").write_text(json.dumps({"preset": "words", "given": {"encoder": folder}}))
    shrink.shrink(tmp_path, tmp_path / "to", "a/b")
    content = torch.load(tmp_path / "to/zhyper-diag.pt", weights_only=True)
    assert content["encoder"] == {"pretrained_name": "a/b"}
    assert json.loads((tmp_path / "to/results.json").read_text()) == {"preset": "words", "given": {"encoder": "a/b"}}
