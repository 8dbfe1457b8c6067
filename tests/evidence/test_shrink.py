"""A shrunk run is half as large, and answers the same."""

import shrink
import torch

from zhyper import Zhyper


def test_a_shrunk_run_is_half_as_large_and_has_nearly_the_same_losses(trained, tmp_path):
    system, data, _ = trained
    system.save(tmp_path / "zhyper-diag.pt")
    (tmp_path / "results.json").write_text("{}")
    shrink.shrink(tmp_path, tmp_path / "to")
    assert (tmp_path / "to/zhyper-diag.pt").stat().st_size < 0.6 * (tmp_path / "zhyper-diag.pt").stat().st_size
    record = data.records[0]
    words = ([record.question], [record.answer], [record.description])
    loss, _ = Zhyper.load(tmp_path / "to").score(*words)
    torch.testing.assert_close(loss, system.score(*words)[0], atol=0.02, rtol=0.02)
    assert (tmp_path / "to/results.json").read_text() == "{}"
