"""The figures: what is drawn are the model's numbers, the files are pictures, and what is missing is said."""

import figures
import pytest
import torch
from conftest import ROOT, build_system

from data import cultures, load
from zhyper import SHIPPED


def test_the_descriptions_of_a_facet_state_it_and_were_never_trained():
    data = load("cultures")
    said = figures.stating(data.records, "taxes")
    assert {*said.values()} == {*cultures.ANSWERS["taxes"]}
    assert not {record.description for record in data.split("train")} & {*said}
    answers = cultures.FACETS["taxes"]["answers"].items()
    for description, answer in said.items():
        stated = [each for each, texts in answers if any(clause in description for clause in texts["trained"])]
        assert stated == [answer]


def test_the_plane_is_spanned_by_the_two_largest_eigenvectors_of_the_correlations():
    torch.manual_seed(0)
    points = torch.randn(50, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64) + 3
    found, share = figures.plane(points)
    values = torch.linalg.eigvalsh(torch.corrcoef(points.T)).flip(0)
    torch.testing.assert_close(found.var(0), values[:2])
    assert share == pytest.approx((values[:2].sum() / values.sum()).item())


@torch.no_grad()
def test_the_way_begins_and_ends_with_what_each_description_gives_alone():
    system = build_system("zhyper-diag")
    ends = ["people bow low", "people sing a tune"]
    _, probability = figures.between(system, "what now?", ["bow", "sing"], ends)
    for place, text in zip((0, -1), ends, strict=True):
        loss, _ = system.score(["what now?"] * 2, ["bow", "sing"], [text] * 2)
        torch.testing.assert_close(probability[place], torch.exp(-loss), rtol=1e-3, atol=0)
    assert (probability[0] / probability[-1]).log().abs().max() > 0.1  # the ends differ


def test_every_figure_is_written_and_is_no_blank_picture(tmp_path, run_main):
    image = pytest.importorskip("matplotlib.image")
    words = (figures.main, "--run", ROOT / SHIPPED, "--to", tmp_path / "new")
    run_main(*words)
    for name in ("z.png", "between.png"):
        pixels = torch.from_numpy(image.imread(tmp_path / "new" / name)[:, :, :3])  # (height, 700, 3)
        _, counts = pixels.flatten(0, 1).unique(dim=0, return_counts=True)
        assert len(counts) > 20 and counts.max() < 0.99 * counts.sum()  # something is drawn on the background
    assert "unknown facet 'hats': choose from greeting, " in run_main(*words, "--facet", "hats")
