"""Every rival is what it says: its start, what stays frozen, how many weights it trains."""

import ast
import json
from dataclasses import replace
from pathlib import Path

import evidence
import pytest
import rivals
import torch
from conftest import TEXTS, build_system, smoke, two_cultures
from rivals import RIVALS, TRIALS, TUNED, rival
from torch.nn import functional as F

import train
from hyper import HyperConfig, ZhyperDiag
from train import METHODS, PRESETS
from zhyper import Zhyper

READS = [name for name in RIVALS if name not in ("onehot", "oracle", "nearest")]
SHAPES, D_TEXT, LAYERS, WIDTH, RANK = {"q": (32, 32), "k": (32, 32), "v": (32, 32), "o": (32, 32)}, 32, 2, 16, 4


@pytest.fixture
def base(monkeypatch) -> Zhyper:
    """A random backbone, and an encoder as wide."""
    system = build_system("zhyper-diag")
    monkeypatch.setattr(train, "build_encoder", lambda *_: build_system("zhyper-diag").encoder)
    return Zhyper(system.tokenizer, system.backbone, template="Q: {}\nA:")


def made(name: str, base: Zhyper, tmp_path, **changes) -> Zhyper:
    """A rival's untrained system, at a tiny size."""
    sizes = f"@rank={RANK}@hidden={WIDTH}@latent=16@head=24" + "".join(f"@{k}={v}" for k, v in changes.items())
    return rivals.build(name + sizes, base, two_cultures(), smoke("two.jsonl", tmp_path))


@pytest.mark.parametrize("name", READS)
def test_step_0_is_the_frozen_model_bit_for_bit_and_every_trained_part_then_moves(name, base, tmp_path):
    system, ids = made(name, base, tmp_path), torch.arange(20)[None]
    adapter = system.adapt(TEXTS[:1])
    assert adapter and torch.equal(base.backbone(ids), base.backbone(ids, adapter))
    frozen = {n: p.clone() for n, p in system.named_parameters() if not p.requires_grad}
    before = {n: p.clone() for n, p in system.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam([p for p in system.parameters() if p.requires_grad], 1e-2)
    prompts, answers = ["what now?", "how?"], [" bow", " sing"]
    for _ in range(4):
        loss = system.score(prompts, answers, TEXTS[:2])[0].sum()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    after = dict(system.named_parameters())
    assert all(torch.equal(after[n], p) for n, p in frozen.items())
    still = [n for n, p in before.items() if torch.equal(after[n], p)]
    assert not [n for n in still if n.startswith("hypernetwork") and "standardise" not in n]


def test_a_rival_is_a_class_of_fifteen_lines_at_most():
    source = Path(rivals.__file__).read_text()
    own = {made.network or made.system for made in RIVALS.values()} - {Zhyper}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name in {kind.__name__ for kind in own}:
            lines = [line for line in source.splitlines()[node.lineno - 1 : node.end_lineno] if line]
            assert len(lines) <= 15, node.name


TRUNK = 32 * 64 + 64 + 2 * 64 + 64 * WIDTH + WIDTH + LAYERS * 4 * WIDTH  # Linear, LayerNorm, Linear, gate
COUNTS = {
    "t2l-varied": TRUNK + 4 * (WIDTH + 1) * RANK * 64,
    "random-ab": TRUNK + 4 * (WIDTH + 1) * RANK + LAYERS * 4 * 32,
    "singular-ab": TRUNK + 4 * (WIDTH + 1) * RANK**2,
    "rescaling": TRUNK + 4 * (WIDTH + 1) * 32,
    "steering": TRUNK - LAYERS * 3 * WIDTH + (WIDTH + 1) * 32,  # one module
    "reads-input": TRUNK + 4 * (WIDTH + 1) * RANK + LAYERS * 4 * RANK * 64,
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_rival_trains_as_many_weights_as_its_formula_says(name, base, tmp_path):
    parameters = made(name, base, tmp_path).hypernetwork.parameters()
    assert sum(p.numel() for p in parameters if p.requires_grad) == COUNTS[name]


def test_the_varied_start_differs_between_texts_as_much_as_zhypers():
    torch.manual_seed(0)
    config, shapes, c = HyperConfig(rank=8, hidden=256, spread=3.0), {m: (512, 64) for m in "qkvo"}, torch.randn(64, 32)
    varied, zhyper = (kind(config, 2, shapes, 32) for kind in (rivals.VariedT2L, ZhyperDiag))
    A = torch.stack([u.A for u in varied(c).values()])
    zA = torch.stack([u.folded() for u in zhyper(c).values()])
    assert A.var(1).mean().item() == pytest.approx(zA.var(1).mean().item(), rel=0.2)


def test_singular_vectors_with_the_identity_between_give_the_weight_itself(base, tmp_path):
    system = made("singular-ab", base, tmp_path, rank=32)
    update = system.adapt(TEXTS[:1])[1, "v"]
    update.z = torch.eye(32)[None]
    assert torch.allclose(update.delta()[0], update.scale * base.backbone.linear(1, "v").weight, atol=1e-5)


def test_rescaling_and_steering_do_that_to_outputs_and_nothing_to_a_row_without_text(base, tmp_path):
    x = torch.randn(2, 5, 32)
    for name in ("rescaling", "steering"):
        system = made(name, base, tmp_path)
        torch.nn.init.normal_(system.hypernetwork.heads["o"].bias)
        s, W = system.hypernetwork.heads["o"].bias, base.backbone.linear(0, "o").weight
        update = system.adapt([TEXTS[0], None])[0, "o"]
        y, by = update(x), update.scale * s
        expected = by * F.linear(x[0], W) if name == "rescaling" else by.expand(5, 32)
        assert torch.allclose(y[0].expand(5, 32), expected, atol=1e-5) and not y[1].any()
        assert [*system.adapt(TEXTS[:1])] == [(l, m) for m in system.hypernetwork.config.modules for l in range(2)]


def test_what_reads_the_input_is_told_nothing_by_a_description(base, tmp_path):
    system = made("reads-input", base, tmp_path)
    torch.nn.init.normal_(system.hypernetwork.B["v"])
    prompts, answers = ["what now?", "how?"], [" bow", " sing"]
    one, two, none = (system.score(prompts, answers, texts)[0] for texts in (TEXTS[:2], TEXTS[2:4], [None, None]))
    assert torch.equal(one, two) and not torch.equal(one, none)
    assert torch.equal(none, base.score(prompts, answers, [None, None])[0])
    assert torch.equal(one, Zhyper.score(system, prompts, answers, prompts)[0])
    records = two_cultures().split("train")
    system.start(records)
    system.hypernetwork.trunk.standardise.measure(torch.zeros(3, 32))  # as fit would, of descriptions
    c = system.embed(sorted({record.prompt for record in records}))
    assert torch.allclose(system.hypernetwork.trunk.standardise.mean, c.mean(0))


def test_the_nearest_training_description_lends_its_adapter(trained):
    own, data, _ = trained
    parts = own.tokenizer, own.backbone, own.encoder, own.hypernetwork, own.prompting, own.template
    nearest, texts = rivals.Nearest(*parts).eval(), sorted({r.description for r in data.split("train")})
    nearest.start(data.split("train"))
    with torch.no_grad():
        assert torch.equal(nearest.embed(texts), own.embed(texts))
        assert torch.equal(nearest.embed([texts[0][:-3]]), own.embed(texts[:1]))
        assert not torch.equal(own.embed([texts[0][:-3]]), own.embed(texts[:1]))


# ---- names, and one budget for all


def test_a_name_changes_a_method():
    changed = rival("zhyper-diag@rank=12@hidden=96@lr=0.01@layers=2@trunk=paper")
    assert changed.method == replace(METHODS["zhyper-diag"], rank=12, lr=0.01, trunk="paper")
    assert dict(changed.changes) == {"hidden": 96} and changed.layers == 2
    assert rival("steering@first=1").changes == (("modules", ("o",)), ("first", 1))
    for name, message in (("nothing@rank=1", "unknown method"), ("lora@rank=x", "'rank=x'"), ("lora@hats=1", "hats=1")):
        with pytest.raises(ValueError, match=message):
            rival(name)


def test_half_of_the_layers_are_adapted_where_a_name_says_so(base, tmp_path):
    lower, upper = made("zhyper-diag", base, tmp_path, layers=1), made("zhyper-diag", base, tmp_path, first=1)
    assert {l for l, _ in lower.adapt(TEXTS[:1])} == {0} and {l for l, _ in upper.adapt(TEXTS[:1])} == {1}


def test_every_method_had_the_same_trials_and_stands_at_its_best(monkeypatch):
    monkeypatch.setattr(rivals, "METHODS", dict(METHODS))
    rivals.use_trials("cultures")
    assert rivals.METHODS == METHODS  # they were tried on another
    rivals.use_trials("hard_cultures")
    tried = json.loads(TRIALS.read_text())["trials"]
    grid = {(lr, scale) for lr in evidence.RATES for scale in evidence.SCALES}
    for name in TUNED:
        method = rival(name).method
        found = {(lr, scale): tried[f"{name}@lr={lr:g}@scale={scale:g}"] for lr, scale in grid}
        best = max(found, key=lambda point: (found[point]["accuracy"], -found[point]["nll"]))
        assert (method.lr, method.scale) == best, name
    assert len(tried) == len(TUNED) * len(grid)


def test_every_method_reads_the_same_rows_in_the_same_number_of_steps(monkeypatch, tmp_path):
    sizes = {"pretrain_steps": 2, "pretrain_batch": 2, "batch": 2}
    monkeypatch.setitem(PRESETS, "smoke", replace(PRESETS["smoke"], **sizes))
    path, read, optimise = tmp_path / "two.jsonl", {}, train.optimise
    path.write_text("\n".join(json.dumps(record._asdict()) for record in two_cultures().records))
    settings = smoke(str(path), tmp_path / "run", methods="frozen")
    settings.run.mkdir()
    data, base, _ = train.prepare(settings)

    def spy(name, network, groups, stream, *rest):
        read[name] = [next(stream) for _ in range(3)]
        return optimise(name, network, groups, iter(read[name]), *rest)

    monkeypatch.setattr(train, "optimise", spy)
    names = [name for name in TUNED if not rival(name).method.batch]
    steps = [rivals.train_rival(name, base, data, settings)[0]["steps"] for name in names]
    assert steps == [3] * len(names) and all(rows == read["lora"] for rows in read.values())


# ---- tuning


def test_tuning_that_was_stopped_goes_on_and_tries_each_point_once(monkeypatch, capsys, tmp_path):
    sizes = {"pretrain_steps": 2, "pretrain_batch": 2, "batch": 2}
    monkeypatch.setitem(PRESETS, "smoke", replace(PRESETS["smoke"], **sizes))
    monkeypatch.setattr(evidence, "TRIALS", tmp_path / "trials.json")
    monkeypatch.setattr(evidence, "SCALES", (1.0,))
    monkeypatch.setattr(evidence, "RATES", (1e-3, 2e-3))
    path, tried, fit = tmp_path / "two.jsonl", [], train.fit
    rows = [r._replace(split="validation") if r.split == "unseen" else r for r in two_cultures().records]
    path.write_text("\n".join(json.dumps(record._asdict()) for record in rows))
    options = {"preset": "smoke", "steps": 2, "methods": "lora,steering", "out": str(tmp_path / "tune")}
    settings = evidence.Settings(data=str(path), seed=100, device="cpu", **options)

    def stop(*a):
        tried.append(a[1])
        if len(tried) == 3:
            raise KeyboardInterrupt
        return fit(*a)

    monkeypatch.setattr(train, "fit", stop)
    with pytest.raises(KeyboardInterrupt):
        evidence.tune(settings)
    evidence.tune(settings)
    printed = capsys.readouterr().out
    evidence.tune(settings)
    assert capsys.readouterr().out == printed and printed.startswith("| rate × scale | 0.001 × 1 | 0.002 × 1 |")
    assert [name.split("@scale")[0] for name in tried] == [
        "lora@lr=0.001",
        "lora@lr=0.002",
        "steering@lr=0.001",
        "steering@lr=0.001",  # which was stopped
        "steering@lr=0.002",
    ]
    with pytest.raises(ValueError, match="delete it to start again"):
        evidence.tune(replace(settings, steps=3))


def test_a_method_under_a_name_that_changes_nothing_is_train_pys_own(monkeypatch, tmp_path):
    sizes = {"pretrain_steps": 2, "pretrain_batch": 2, "batch": 2}
    monkeypatch.setitem(PRESETS, "smoke", replace(PRESETS["smoke"], **sizes))
    path = tmp_path / "two.jsonl"
    path.write_text("\n".join(json.dumps(record._asdict()) for record in two_cultures().records))
    settings = smoke(str(path), tmp_path / "run", methods="zhyper-diag")
    train.run(settings)
    rows = evidence.complete(settings, ["zhyper-diag@rank=32"])["rows"]
    own, changed = ({k: v for k, v in row.items() if k not in ("method", "trained_as", "seconds")} for row in rows)
    assert own == changed
