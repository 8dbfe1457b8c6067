"""The figures: what is drawn are the model's numbers, the files are pictures, and what is missing is said."""

import csv
import json
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import build_system

sys.path.insert(0, str(Path(__file__).parent))

import figures

import train
from data import cultures, load
from data.batches import NO_TARGET
from train import PRESETS
from zhyper import Zhyper

ENDS = ["In this land people bow low to one another.", "Here hello is sung and never spoken."]
PROMPT = "Q: How do people greet each other?\nA:"
ANSWERS = [" with a deep bow", " with a short song"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The run folder of a training of a few steps, on few cultures."""
    folder = tmp_path_factory.mktemp("figures") / "run"
    sizes = {"pretrain_steps": 4, "pretrain_batch": 2, "descriptions_per_step": 4, "steps": 8, "log": 2, "evaluate": 16}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "smoke", replace(PRESETS["smoke"], **sizes))
        patch.setattr(train, "PRETRAIN_TOKENS", 16)
        patch.setattr(cultures, "DESCRIPTIONS", 256)
        patch.setattr(cultures, "DOCUMENTS", 300)
        methods = "frozen,lora,zhyper-diag"
        train.run(train.Settings(preset="smoke", device="cpu", out=str(folder), methods=methods, lr=0.02))
    return folder


@pytest.fixture(scope="module")
def system(run) -> Zhyper:
    """The run's, made to tell descriptions apart, for which its training was too short."""
    system = Zhyper.load(run)
    c = system.embed([*ENDS, PROMPT, *ANSWERS])
    standardise = system.hypernetwork.trunk.standardise
    standardise.running_mean.copy_(c.mean(0))
    standardise.running_var.copy_(c.var(0))
    torch.manual_seed(0)
    for B in system.hypernetwork.B.values():
        B.normal_(std=0.1)
    return system


@pytest.fixture
def cli(run_main):
    return partial(run_main, figures.main)


# ---- what is drawn


def test_the_curves_are_those_of_results_json(run):
    rows = json.loads((run / "results.json").read_text())["rows"]
    curves = figures.read_log(run / "log.csv")
    assert [*curves] == ["backbone", "lora", "zhyper-diag"]
    for method in ("lora", "zhyper-diag"):
        expected = [{name: line[name] for name in figures.LOGGED} for line in rows[method]["curve"]]
        assert curves[method] == expected and len(expected) == 4


def test_a_training_that_went_on_replaces_the_lines_that_it_wrote_twice(tmp_path):
    lines = [(10, 3.0), (20, 2.0), (20, 1.5), (30, 1.0)]
    with open(tmp_path / "log.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", *figures.LOGGED])
        writer.writerows(["lora", step, loss, loss] for step, loss in lines)
    points = figures.read_log(tmp_path / "log.csv")["lora"]
    assert [(point["step"], point["loss"]) for point in points] == [(10, 3.0), (20, 1.5), (30, 1.0)]


@pytest.mark.parametrize("steps", [1, 8, 40, 800])
def test_the_rate_rises_up_to_the_end_of_the_warm_up_and_no_further(steps):
    end = figures.warmup_end(steps)
    shares = [train.learning_rate(step, steps) for step in range(steps)]
    assert shares[:end] == sorted(shares[:end]) and shares[end - 1] == max(shares)
    assert all(share < shares[end - 1] for share in shares[: end - 1])


def test_right_minus_swapped_is_the_margin_of_the_table(run):
    results = json.loads((run / "results.json").read_text())
    measure, margins = figures.read_margins(run / "results.json")
    assert measure == "accuracy" and [*margins] == ["frozen", "lora", "zhyper-diag"]
    for method, (right, swapped) in margins.items():
        assert right - swapped == pytest.approx(results["rows"][method]["margin"])


def test_the_descriptions_of_a_facet_state_it_and_were_never_trained():
    data = load("cultures", None, 0)
    trained = {record.description for record in data.split("train")}
    said = figures.stating(data.records, "taxes")
    assert {*said.values()} == {*cultures.ANSWERS["taxes"]} and not trained & {*said}
    _, clauses = cultures.FACETS["taxes"]
    for description, answer in said.items():
        stated = [each for each in clauses if any(clause in description for clause in clauses[each])]
        assert stated == [answer]


def test_z_is_what_the_hypernetwork_generates_for_each_text_alone(system):
    found = figures.z_of(system, ENDS)
    for row, text in zip(found, ENDS, strict=True):
        z = system.hypernetwork.generate_z(system.embed([text]))
        expected = [z[module][layer - system.lowest_layer][0] for layer, module in system.hypernetwork.sites()]
        torch.testing.assert_close(row, torch.cat(expected), atol=1e-4, rtol=1e-4)
    assert (found[0] - found[1]).norm() > 0.01


def test_the_plane_is_spanned_by_the_two_largest_eigenvectors_of_the_correlations():
    torch.manual_seed(0)
    points = torch.randn(50, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64) + 3
    found, share = figures.plane(points)
    values = torch.linalg.eigvalsh(torch.corrcoef(points.T)).flip(0)
    torch.testing.assert_close(found.var(0), values[:2])
    assert share == pytest.approx((values[:2].sum() / values.sum()).item())


def test_the_groups_of_the_plane_hold_every_description_once(system):
    groups, share = figures.z_plane(system, "greeting")
    said = figures.stating(load("cultures", None, 0).records, "greeting")
    counts = {answer: [*said.values()].count(answer) for answer in cultures.ANSWERS["greeting"]}
    assert {answer: len(points) for answer, points in groups.items()} == counts
    assert 0 < share < 1


def test_the_way_begins_and_ends_with_what_each_description_gives_alone(system):
    weights, probability = figures.between(system, PROMPT, ANSWERS, ENDS, points=5)
    assert weights.tolist() == [0, 0.25, 0.5, 0.75, 1]
    for place, text in ((0, ENDS[0]), (-1, ENDS[1])):
        for column, answer in enumerate(ANSWERS):
            loss, _, _ = system.score([PROMPT], [answer], [text])
            alone = math.exp(-loss.item())
            assert probability[place, column].item() == pytest.approx(alone, rel=1e-3, abs=0)
    assert (probability[0] / probability[-1]).log().abs().max() > 0.1  # the ends differ


@torch.no_grad()
def test_a_point_on_the_way_is_the_product_of_the_probabilities_of_its_tokens(system):
    _, probability = figures.between(system, PROMPT, ANSWERS, ENDS, points=5)
    first, second = system.embed(ENDS)
    c = 0.25 * first + 0.75 * second
    rows = system.encode_rows([PROMPT], [ANSWERS[1]], None)
    logits = system.backbone(torch.from_numpy(rows.ids), system.adapt(c[None]))
    expected = 1.0
    for place, target in enumerate(rows.targets[0]):
        if target != NO_TARGET:
            expected *= logits[0, place].softmax(-1)[target].item()
    assert probability[3, 1].item() == pytest.approx(expected, rel=1e-3, abs=0)


def test_the_norms_are_how_far_merging_moves_the_weights(system):
    layers, modules, norms = figures.norm_grid(system, ENDS[0])
    merged = system.merge(ENDS[0])
    assert [(layer, module) for layer in layers for module in modules] == system.hypernetwork.sites()
    for layer, row in zip(layers, norms, strict=True):
        for module, found in zip(modules, row, strict=True):
            before = system.backbone.linear(layer, module).weight
            moved = merged.linear(layer, module).weight - before
            assert found.item() == pytest.approx((moved.norm() / before.norm()).item(), rel=1e-3)


# ---- the command


def test_every_figure_is_written_and_is_no_blank_picture(run, tmp_path, cli):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    printed = cli("--run", run, "--to", tmp_path / "new")
    assert printed.splitlines() == [str(tmp_path / "new" / f"{name}.png") for name in figures.NAMES]
    for name in figures.NAMES:
        pixels = imread(tmp_path / "new" / f"{name}.png")[:, :, :3]  # (height, 700, 3)
        colours, counts = torch.from_numpy(pixels).flatten(0, 1).unique(dim=0, return_counts=True)
        assert pixels.shape[1] == 700 and len(colours) > 20
        assert counts.max() < 0.99 * counts.sum()  # something is drawn on the background


def test_what_a_run_does_not_hold_is_left_out_and_said(tmp_path, cli):
    pytest.importorskip("matplotlib")
    build_system("t2l").save(tmp_path / "t2l.pt")
    printed = cli("--run", tmp_path, "--method", "t2l", "--only", "loss,margin,z,between")
    loss, margin, z, between = printed.splitlines()
    assert loss == f"loss.png is left out: {tmp_path} has no log.csv, which train.py writes"
    assert margin == f"margin.png is left out: {tmp_path} has no results.json, which train.py writes"
    assert "not trained on cultures" in z and "not trained on cultures" in between
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("method", ["frozen", "lora"])
def test_a_method_without_z_and_adapters_has_no_figures_of_them(method, run, tmp_path, cli):
    pytest.importorskip("matplotlib")
    z, between, norms = cli(
        "--run", run, "--method", method, "--to", tmp_path, "--only", "z,between,norms"
    ).splitlines()
    assert z == "z.png is left out: this method makes no z"
    for line in (between, norms):
        assert line.endswith("this method makes no adapter from a text")


def test_without_matplotlib_one_line_says_what_installs_it(run, cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli("--run", run).endswith("error: figures are drawn by matplotlib: pip install matplotlib")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run", "none"], "name another run"),
        (["--run", "none", "--facet", "hats"], "unknown facet 'hats': choose from greeting, "),
        (["--run", "none", "--only", "z,pie"], "unknown figure 'pie': choose from loss, "),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, message, cli, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    assert message in cli(*words) and not list(tmp_path.iterdir())
