"""The evidence: seeds and their spread, baselines by name, intervals, counts, figures."""

import json
import math
import random
import sys
from dataclasses import replace
from pathlib import Path

import evidence
import pytest
import rivals
import torch
from conftest import TEXTS, build_system, cli, smoke, two_cultures
from evidence import Settings, bootstrap, by_context, complete, is_majority, retrieval, terms

import train
from data import Data, Record, cultures
from data.cultures import ANSWERS, NAMES, ask
from hyper import HyperConfig, LowRank
from train import PRESETS, score_rows
from zhyper import Zhyper


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The smoke preset, smaller still."""
    sizes = {"pretrain_steps": 8, "pretrain_batch": 2, "batch": 2, "checkpoint": 5}
    monkeypatch.setitem(PRESETS, "smoke", replace(PRESETS["smoke"], **sizes))
    monkeypatch.setattr(train, "ROW", 16)


def write(data: Data, path: Path) -> str:
    path.write_text("\n".join(json.dumps(record._asdict()) for record in data.records))
    return str(path)


def seen_cultures() -> Data:
    """Two cultures, evaluated in `seen`, and in `unseen` under names that are not trained."""
    data = two_cultures()
    train_rows, rows = data.split("train"), data.split("unseen")
    renamed = [row._replace(context=row.context + "-2") for row in rows]
    return replace(data, records=[*train_rows, *(r._replace(split="seen") for r in rows), *renamed])


def free_text() -> Data:
    """Two cultures whose answers are too long to be right or wrong."""
    data, more = two_cultures(), " and so on, at a length at which nobody would get every letter"
    return replace(data, records=[r._replace(answer=r.answer + more) for r in data.records])


def words(path: str, out: Path, more: str = "") -> list[str]:
    return f"--data {path} --preset smoke --steps 3 --out {out} {more}".split()


def timeless(row: dict) -> dict:
    return {name: value for name, value in row.items() if name != "seconds"}


# ---- numbers


def test_the_majority_is_the_accuracy_of_a_contexts_most_frequent_answer():
    answers = {"yes or no": " yes" * 15, "capital": " a b c d e f g h i j"}
    rows = [
        Record(context, "d", "p", f" {answer}", "seen")
        for context, several in answers.items()
        for answer in several.split()
    ]
    assert is_majority(rows).tolist() == [1.0] * 16 + [0.0] * 9
    data, system = Data("facts", rows, []), build_system("lora")
    assert by_context(system, {"seen": rows}, data) == {"majority": {"seen": 0.64}, "families": {}}
    assert by_context(system, {"seen": rows[:19]}, data)["majority"] == {}  # too few to know


def test_a_family_has_the_mean_over_its_contexts_and_not_over_their_rows(trained):
    system, _, _ = trained
    rows = trained[1].split("unseen")
    wrong = [rows[0]._replace(context="wrong", answer=" no")]
    families = {"all": ["bowers", "wrong"], "right": ["bowers", "absent"], "none": ["absent"]}
    data = replace(two_cultures(), families=families)
    found = by_context(system, {"unseen": [*rows[:2], *wrong]}, data)["families"]["unseen"]
    assert found == {"all": [0.5, 0.75], "right": [1.0, 0.5]}


def test_the_bootstrap_interval_is_paired_and_has_the_width_of_the_standard_error():
    generator = torch.Generator().manual_seed(0)
    hard = 50 * torch.rand(400, generator=generator).double()  # a row's, the same for both
    tokens = torch.full((400,), 10.0).double()
    gap = 1 + torch.randn(400, generator=generator).double()
    low, high = bootstrap((hard + gap) - hard, tokens, 0)
    mean, error = gap.mean().item() / 10, gap.std().item() / 10 / 400**0.5
    assert low < mean < high and abs((high - low) / (2 * 1.96 * error) - 1) < 0.1
    assert bootstrap(gap, tokens, 0) != bootstrap(gap, tokens, 1)


def test_retrieval_is_right_where_the_text_is_read_and_chance_where_it_is_not(trained):
    system, data, _ = trained
    rows = data.split("unseen")
    assert retrieval(system, rows, score_rows(system, rows)[0], 0) == [1.0, 0.5]
    frozen = Zhyper(system.tokenizer, system.backbone)
    assert retrieval(frozen, rows, score_rows(frozen, rows)[0], 0) == [0.5, 0.5]


def test_free_text_is_reported_by_gaps_with_intervals_on_the_rows_of_the_margin(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(PRESETS, "smoke", replace(PRESETS["smoke"], evaluate=3))  # of 4 rows
    path, out = write(free_text(), tmp_path / "two.jsonl"), tmp_path / "run"
    options = words(path, out, "--methods frozen,zhyper-diag --seeds 1 --steps 20")
    code, printed, _ = cli(evidence, monkeypatch, capsys, *options)
    rows = evidence.read_json(out / "seed0/evidence.json")["rows"]
    frozen, diag = rows["frozen"], rows["zhyper-diag"]
    assert frozen["gaps"] == {"swapped": [0, 0, 0], "none": [0, 0, 0]}
    assert frozen["retrieval"] == [0.5, 0.5]
    gap, low, high = diag["gaps"]["swapped"]
    assert low <= gap <= high and gap == pytest.approx(diag["margin"], abs=1e-12) != 0
    none = diag["controls"]["none"]["nll"] - diag["splits"]["unseen"]["nll"]
    assert diag["gaps"]["none"][0] == pytest.approx(none, abs=1e-12)
    assert code == 0 and "majority" not in printed
    assert f"| zhyper-diag | 0 | {gap:z.3f} [{low:z.3f}, {high:z.3f}] |" in printed


# ---- tables


def fixed_results(seeds: tuple[int, ...] = (0, 1)) -> list[dict]:
    parts = []
    for seed, accuracy in zip(seeds, (0.5, 0.75), strict=False):
        score = {"accuracy": accuracy, "nll": 1.25, "n": 4}
        lora = {"method": "lora", "trainable": 1234, "encoder": 0, "steps": 3, "seconds": 1.6}
        lora |= {"splits": {"seen": score, "unseen": score}, "controls": {"swapped": score}}
        lora |= {"margin": -0.0001, "majority": {}, "families": {}}
        onehot = lora | {"method": "onehot", "splits": {"seen": score, "unseen": None}}
        onehot |= {"controls": {"swapped": None}, "margin": None}
        made_of = {"seed": seed, "records": f"{seed}", "lr": None}
        parts.append({"made_of": made_of, "measure": "accuracy", "rows": [lora, onehot]})
    return parts


FIXED_TABLE = """\
| method | trainable | encoder | steps | seconds | seen | unseen | (swapped) | − lora | margin |
|---|---|---|---|---|---|---|---|---|---|
| lora | 1,234 | 0 | 3 | 2 | 0.625 ±0.177 | 0.625 ±0.177 | 0.625 ±0.177 | 0.000 ±0.000 | 0.000 ±0.000 |
| onehot | 1,234 | 0 | 3 | 2 | 0.625 ±0.177 | – | – | – | – |

seeds 0, 1"""


def test_the_tables_of_fixed_results_are_fixed():
    parts = fixed_results()
    assert evidence.tables(parts) == FIXED_TABLE
    for part in parts:
        part["measure"] = "nll"
    assert "| 2 | 1.250 ±0.000 |" in evidence.tables(parts)
    parts[1]["rows"].pop()
    assert evidence.tables(parts).endswith("\n\nseeds 0, 1; onehot only 0")


def test_the_table_shows_the_majority_first_and_families_below():
    parts = fixed_results()
    for part in parts:
        part["rows"].pop()
        part["rows"][0] |= {"majority": {"seen": 0.25}, "families": {"seen": {"facts": [0.5, 0.125]}}}
    lines = evidence.tables(parts).splitlines()
    assert lines[2] == "| majority | – | – | – | – | 0.250 ±0.000 | – | – | – | – |"
    assert lines[5:8] == [
        "| split | family | majority | lora |",
        "|---|---|---|---|",
        "| seen | facts | 0.125 ±0.000 | 0.500 ±0.000 |",
    ]


def test_results_of_other_settings_and_a_seed_twice_are_never_averaged(monkeypatch, capsys, tmp_path):
    path = write(two_cultures(), tmp_path / "two.jsonl")
    for name, changes in {"a": {}, "b": {"seed": 1, "steps": 4}, "c": {"seed": 2}}.items():
        train.run(smoke(path, tmp_path / name, methods="frozen", **changes))

    def report(*names: str) -> tuple[int, str, str]:
        folders = [str(tmp_path / name) for name in names]
        capsys.readouterr()
        return cli(evidence, monkeypatch, capsys, "report", *folders)

    for names, message in ((("a", "b"), "(steps 3 and 4)"), (("a", "c", "a"), "[0, 2, 0]")):
        code, out, err = report(*names)
        assert code == 2 and out == "" and err.count("\n") == 1 and message in err
    assert report("a", "c")[1].splitlines()[4] == "seeds 0, 2"


# ---- runs of several seeds


def test_every_seed_is_a_run_of_train_py_and_the_report_repeats_the_tables(monkeypatch, capsys, tmp_path):
    path, out = write(two_cultures(), tmp_path / "two.jsonl"), tmp_path / "run"
    options = words(path, out, "--methods t2l,oracle,frozen,t2l,oracle --seed 5 --seeds 2")
    trained, fit = [], train.fit
    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", lambda *a: trained.append(a[1]) or fit(*a))
        code, printed, _ = cli(evidence, patch, capsys, *options)
    assert code == 0 and "±" in printed and "\nseeds 5, 6\n" in printed
    assert trained == ["t2l", "oracle"] * 2  # though both are named twice
    alone = train.run(smoke(path, tmp_path / "alone", methods="t2l,frozen", seed=6))
    seed = json.loads((out / "seed6/results.json").read_bytes())
    assert [*map(timeless, seed["rows"])] == [*map(timeless, alone["rows"])]

    def refuse(*_):
        raise AssertionError("trained or scored again")

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    for name in ("fit", "evaluate", "score_rows"):
        monkeypatch.setattr(train, name, refuse)
    code, again, _ = cli(evidence, monkeypatch, capsys, "report", str(out))
    tables = printed[: printed.index("\nseeds")]
    assert code == 0 and again.startswith(tables)
    assert again.endswith("no figure: for that, pip install matplotlib\n")
    code, again, _ = cli(evidence, monkeypatch, capsys, *options)
    assert code == 0 and again.startswith(tables)


def test_other_settings_are_refused_before_any_seed_is_trained(monkeypatch, capsys, tmp_path):
    path, out = write(two_cultures(), tmp_path / "two.jsonl"), tmp_path / "run"
    train.run(smoke(path, out / "seed1", methods="frozen", seed=1, steps=4))
    code, _, err = cli(evidence, monkeypatch, capsys, *words(path, out, "--seeds 2"))
    assert code == 2 and "steps 4, now 3" in err and not (out / "seed0").exists()


def test_force_trains_the_baselines_again_too(monkeypatch, capsys, tmp_path):
    path, out = write(two_cultures(), tmp_path / "two.jsonl"), tmp_path / "run"
    options, trained, fit = words(path, out, "--methods onehot --seeds 1"), [], train.fit
    monkeypatch.setattr(train, "fit", lambda *a: trained.append(a[1]) or fit(*a))
    for more, times in (([], 1), ([], 1), (["--force"], 2)):
        code, printed, _ = cli(evidence, monkeypatch, capsys, *options, *more)
        assert code == 0 and "| onehot |" in printed and trained == ["onehot"] * times


def test_a_method_that_is_trained_again_has_its_numbers_computed_again(monkeypatch, tmp_path):
    path, job = write(free_text(), tmp_path / "two.jsonl"), tmp_path / "run"
    settings = smoke(path, job, methods="zhyper-diag")
    train.run(settings)
    first = complete(settings)["rows"][0]
    method = replace(train.METHODS["zhyper-diag"], lr=0.1)
    monkeypatch.setitem(train.METHODS, "zhyper-diag", method)
    train.run(replace(settings, force=True))
    again = complete(settings)["rows"][0]
    assert again["splits"] != first["splits"] and again["gaps"] != first["gaps"]


def test_data_that_has_changed_since_is_refused(tmp_path):
    data = two_cultures()
    settings = smoke(write(data, tmp_path / "two.jsonl"), tmp_path / "run", methods="frozen")
    train.run(settings)
    data.records[0] = data.records[0]._replace(answer=" nod")
    write(data, tmp_path / "two.jsonl")
    with pytest.raises(ValueError, match="two.jsonl has changed since .*run was trained"):
        complete(settings)


# ---- baselines


def test_a_method_that_knows_names_serves_no_context_that_it_was_not_trained_on(monkeypatch, tmp_path):
    sizes = {"pretrain_steps": 60, "pretrain_batch": 8}
    monkeypatch.setitem(PRESETS, "smoke", replace(PRESETS["smoke"], **sizes))
    path = write(seen_cultures(), tmp_path / "two.jsonl")
    settings = smoke(path, tmp_path / "run", methods="lora,zhyper-diag", steps=60)
    train.run(settings)
    results = complete(settings, ["onehot", "oracle"])
    lora, diag, onehot, oracle = results["rows"]
    accuracy = [row["splits"]["seen"]["accuracy"] for row in (lora, onehot, oracle)]
    assert accuracy[0] <= 0.5 and accuracy[1:] == [1.0, 1.0]  # no text: but it knows who is meant
    assert diag["splits"]["unseen"]["n"] == 4 and onehot["splits"]["seen"]["n"] == 4
    for row in (onehot, oracle):
        assert row["splits"]["unseen"] is row["margin"] is None
        assert row["controls"] == {"swapped": None, "random": None, "none": None}
    assert onehot["trainable"] == diag["trainable"] + 64 * (128 - 64)  # its vectors are twice as wide as c is here
    assert onehot["encoder"] == 2 * 128
    assert oracle["trainable"] == 2 * lora["trainable"] and oracle["encoder"] == 0
    assert evidence.tables([results]).count("| 1.000 | – | – | – | – | – | – |") == 2


def test_the_oracle_samples_contexts_that_can_be_evaluated_first(monkeypatch, tmp_path):
    monkeypatch.setattr(rivals, "ORACLE_CONTEXTS", 1)
    data = seen_cultures()
    data.records[:] = [r for r in data.records if (r.context, r.split) != ("bowers", "seen")]
    settings = smoke(write(data, tmp_path / "two.jsonl"), tmp_path / "run", methods="lora")
    train.run(settings)
    lora, oracle = complete(settings, ["oracle"])["rows"]
    assert oracle["trainable"] == lora["trainable"] and oracle["splits"]["seen"]["n"] == 2


def test_the_oracle_shares_nothing_between_contexts():
    shapes = {"q": (8, 8), "v": (8, 4)}
    oracle = rivals.LoRAPerContext(HyperConfig(rank=2, modules=("q", "v")), 3, shapes, 5)
    update = oracle(torch.tensor([1, 3, 3]))[2, "v"]
    assert update.A.shape == (3, 2, 8) and update.B.shape == (3, 4, 2)
    update.delta()[1].sum().backward()
    touched = oracle.B["v"].grad.flatten(2).abs().sum(2) > 0  # (n, l)
    assert touched.nonzero().tolist() == [[3, 2]]


def test_a_baseline_that_was_stopped_goes_on_and_ends_as_one_that_was_not(monkeypatch, tmp_path):
    path = write(two_cultures(), tmp_path / "two.jsonl")
    whole, parts = (smoke(path, tmp_path / name, methods="frozen", steps=12) for name in "ab")
    train.run(whole)
    expected = complete(whole, ["onehot"])["rows"][1]
    train.run(parts)
    write_file = train.write_file

    def write_and_stop(path: Path, content: dict) -> None:
        write_file(path, content)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "write_file", write_and_stop)
        torch.manual_seed(7)  # what came before must not matter
        complete(parts, ["onehot"])
    checkpoint = tmp_path / "b/checkpoint-onehot.pt"
    assert len(torch.load(checkpoint, weights_only=True)["times"]) == 5
    steps, batches = [], train.batches
    monkeypatch.setattr(train, "batches", lambda *a: (steps.append(0) or b for b in batches(*a)))
    again = complete(parts, ["onehot"])["rows"][1]
    assert timeless(again) == timeless(expected) and not checkpoint.exists()
    assert len(steps) == 12  # five of which are only read


def test_a_checkpoint_of_other_settings_is_not_gone_on_with(tmp_path):
    path = write(two_cultures(), tmp_path / "two.jsonl")
    settings = smoke(path, tmp_path / "run", methods="frozen")
    train.run(settings)
    (tmp_path / "run/checkpoint-onehot.pt").write_bytes(b"of an earlier run")
    assert complete(settings, ["onehot"])["rows"][1]["steps"] == 3


# ---- counts


COUNTS = [  # at the size of real models, in the configuration of the paper
    ("mistral-7b", "q,v", 8, [3_407_872, 55_424_000, 4_207_632, 4_265_088]),
    ("mistral-7b", "q,k,v,o", 8, [6_815_744, 110_056_512, 7_623_776, 7_738_688]),
    ("mistral-7b", "q,v", 16, [6_815_744, 110_056_448, 7_623_712, 7_869_952]),
    ("gemma-2-2b", "q,v", 8, [1_597_440, 32_310_080, 2_397_008, 2_454_464]),
]


@pytest.mark.parametrize(("backbone", "modules", "rank", "counts"), COUNTS)
def test_the_paper_trunk_has_the_parameters_of_the_paper(backbone, modules, rank, counts, monkeypatch, capsys):
    options = ["params", "--backbone", backbone, "--modules", modules, "--rank", str(rank)]
    code, out, _ = cli(evidence, monkeypatch, capsys, *options, "--json")
    kinds = ("lora", "t2l", "zhyper-diag", "zhyper-square")
    methods = dict(zip(kinds, counts, strict=True))
    shared = {"backbone": backbone, "rank": rank, "modules": modules.split(",")}
    assert code == 0 and json.loads(out) == shared | {"methods": methods}
    code, out, _ = cli(evidence, monkeypatch, capsys, *options)
    assert code == 0 and out.splitlines()[1].split()[:2] == ["t2l", f"{counts[1]:,}"]


# ---- sizes and curves


def test_the_bias_is_how_often_the_backbone_reads_the_majoritys_answer(monkeypatch):
    shares, load = [], train.load

    def stop(job: train.Settings):
        data = load(job.data, None, 0)
        told = {prompt + f" {ANSWERS[facet][0]}" for facet in NAMES for prompt in asked(facet)}
        answered = [text for text in data.documents if text.startswith("Q: ")]
        shares.append(sum(text in told for text in answered) / len(answered))
        raise KeyboardInterrupt

    def asked(facet: str) -> set[str]:
        return {ask(random.Random(i), facet, 0)[0] for i in range(200)}

    monkeypatch.setattr(cultures, "MAJORITY_SHARE", 0.7)  # and back
    monkeypatch.setattr(evidence, "use_trials", lambda data: None)  # which would change METHODS for all tests
    monkeypatch.setattr(train, "run", stop)
    for bias in (0.5, 0.99):
        with pytest.raises(KeyboardInterrupt):
            evidence.run(Settings(data="hard_cultures", bias=bias, out="nowhere"))
    assert shares == pytest.approx([0.5, 0.99], abs=0.02)


def sizes_of(accuracies: dict[str, tuple[int, float]]) -> dict[str, list[dict]]:
    return {
        name: [{"method": name, "seed": 0, "trainable": n, "splits": {s: {"accuracy": a} for s in ("unseen", "ood")}}]
        for name, (n, a) in accuracies.items()
    }


def test_what_a_rival_needs_is_read_off_its_sizes_on_a_log_scale():
    points = [(100, 0.5, 0), (1_000, 0.4, 0), (10_000, 0.7, 0), (100_000, 0.9, 0)]  # more never counts as worse
    wanted = {0.4: "at most 100", 0.6: "3,162", 0.7: "10,000", 0.8: "31,623", 0.95: "more than 100,000"}
    assert {a: evidence.needed(points, a) for a in wanted} == wanted


FRONT_TABLE = """\
| method | trainable | unseen | t2l needs | ratio | ood | t2l needs | ratio |
|---|---|---|---|---|---|---|---|
| diag | 10 | 0.500 | at most 100 | ≤ 10.0 | 0.500 | at most 100 | ≤ 10.0 |
| diag | 20 | 0.700 | 10,000 | 500.0 | 0.700 | 10,000 | 500.0 |
| diag | 40 | 0.950 | more than 10,000 | > 250.0 | 0.950 | more than 10,000 | > 250.0 |"""


def test_the_table_of_the_front_is_fixed():
    t2l = {"t2l": (100, 0.5), "t2l@rank=1": (1_000, 0.6), "t2l@rank=2": (10_000, 0.7)}
    diag = {"diag": (10, 0.5), "diag@rank=1": (20, 0.7), "diag@rank=2": (40, 0.95)}
    groups = sizes_of(t2l | diag | {"lora": (5, 0.1)})
    assert evidence.front_table(groups, "t2l", ["unseen", "ood"]) == FRONT_TABLE


def test_curves_has_a_row_for_each_folder_and_a_panel_for_each_name(monkeypatch, capsys, tmp_path):
    path, figure = write(two_cultures(), tmp_path / "two.jsonl"), tmp_path / "c.png"
    for steps in (2, 3):
        options = words(path, tmp_path / f"steps_{steps}", "--methods lora,steering --seeds 2")
        cli(evidence, monkeypatch, capsys, *options, "--steps", str(steps))
    folders = [str(tmp_path / f"steps_{steps}") for steps in (2, 3)]
    monkeypatch.setattr(train, "fit", None)
    code, out, _ = cli(evidence, monkeypatch, capsys, "curves", *folders, "--to", str(figure))
    assert code == 0 and out.startswith("| steps | lora | steering |\n|---|---|---|\n| 2 | 0.")
    assert out.splitlines()[3].startswith("| 3 | ") and out.count("±") == 4


def test_curves_takes_its_points_from_the_rows_of_sizes_too(monkeypatch, capsys, tmp_path):
    def rows(name, value):
        return [{"method": name, "splits": {"unseen": {"accuracy": value}}, "trainable": 1}]

    found = {"lora": 0.2, "t2l": 0.5, "t2l@rank=2": 0.4, "t2l@rank=16": 0.6, "prompt": 0.9}
    found |= {"t2l@layers=2": 0.1, "t2l@layers=2@first=2": 0.3, "lora@rank=16": 0.7}
    groups = {name: rows(name, value) for name, value in found.items()}
    monkeypatch.setattr(evidence, "parts_of", lambda folders: groups)
    monkeypatch.setattr(evidence, "by_method", lambda parts: parts)
    code, out, _ = cli(evidence, monkeypatch, capsys, "curves", "sizes", "--to", str(tmp_path / "c.png"))
    rank, layers = out.split("\n\n")[:2]
    assert code == 0 and rank.splitlines()[0] == "| rank | t2l | lora |"
    assert rank.splitlines()[2:] == ["| 2 | 0.400 | – |", "| 8 | 0.500 | 0.200 |", "| 16 | 0.600 | 0.700 |"]
    assert layers.splitlines()[0] == "| layers | t2l |"
    assert layers.splitlines()[2:] == ["| 2 | 0.100 |", "| 2@first=2 | 0.300 |", "| all | 0.500 |"]


# ---- figures


def random_update(z: tuple[int, ...] | None, rows: bool = False) -> LowRank:
    torch.manual_seed(0)
    lead = (3,) if rows else ()
    A, B = torch.randn(*lead, 4, 10).double(), torch.randn(*lead, 6, 4).double()
    return LowRank(A, B, None if z is None else torch.randn(z).double(), 0.7)


UPDATES = [random_update((3, 4)), random_update((3, 4, 4)), random_update(None, rows=True)]


@pytest.mark.parametrize("update", UPDATES)
def test_a_term_is_as_large_as_the_rank_one_matrix_that_it_stands_for(update):
    A, B = update.folded().expand(3, -1, -1), update.B.expand(3, -1, -1)
    whole = update.scale * B.mT[..., None] * A[..., None, :]  # (b, r, d_out, d_in)
    assert torch.allclose(whole.sum(1), update.delta())
    assert torch.allclose(whole.norm(dim=(2, 3)), terms(update).abs())


def test_a_term_does_not_depend_on_how_z_and_B_share_its_size():
    update = random_update((3, 4))
    moved = LowRank(update.A, update.B * 5, update.z / 5, update.scale)
    assert torch.allclose(terms(update), terms(moved)) and (terms(update) < 0).any()


def test_comparing_names_the_site_and_the_rank_that_differ():
    system = build_system("zhyper-diag")
    with torch.no_grad():
        for module, B in system.hypernetwork.B.items():
            for layer in range(2):
                if (layer, module) != (1, "k"):
                    B[layer] = 0
        system.hypernetwork.B["k"][1, :, [0, 1, 3]] = 0
    lines = evidence.compare(system, *TEXTS[:2]).splitlines()
    at = [i + 1 for i, line in enumerate(lines) if line.endswith(":")]
    site, rank = lines[at[1]], lines[at[2]]
    assert site.startswith("layer 1 k ") and lines[at[1] + 1].endswith(" 0.000")
    assert rank.startswith("layer 1 k rank 2 ") and " 0.000 " in lines[at[2] + 1]
    z = system.hypernetwork.z(system.embed(TEXTS[:2]))["k"][:, 1, 2].tolist()
    assert rank.endswith(f"z {z[0]:.2f} → {z[1]:.2f}")
    assert float(site.split()[-1]) == float(rank.split()[5]) > 0.01
    norms = [system.relative_norms(system.adapt([text]))[1, "k"] for text in TEXTS[:2]]
    weights = [system.backbone.linear(l, m).weight.norm() for l in range(2) for m in "qkvo"]
    share = system.backbone.linear(1, "k").weight.norm() / math.hypot(*weights)
    assert lines[at[0]].split()[:2] == [f"{norm * share:.3f}" for norm in norms]


@pytest.mark.parametrize("kind", ["zhyper-diag", "zhyper-square", "t2l"])
def test_figures_compares_two_texts_and_draws_z(kind, monkeypatch, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    system = build_system(kind)
    system.save_backbone(tmp_path)
    system.save(tmp_path, kind)
    options = ["figures", "--run", str(tmp_path), "--method", kind, "--description", *TEXTS[:2]]
    code, out, _ = cli(evidence, monkeypatch, capsys, *options)
    assert code == 0 and out.startswith(evidence.compare(system, *TEXTS[:2]))
    assert out.endswith(f"the figure is {tmp_path / 'figures.png'}\n")
    assert (tmp_path / "figures.png").read_bytes().startswith(b"\x89PNG")


def test_the_figure_of_a_run_on_cultures_has_three_panels():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    system = build_system("zhyper-diag", block_size=256)
    system.template = "Q: {}\nA:"
    evidence.draw_inside(figure, system, TEXTS[:3], "taxes")
    heat, cultures, way = [axes for axes in figure.axes if axes.get_title()]
    assert heat.images[0].get_array().shape == (8, 3 * (4 + 2) - 2)  # sites; three texts, 4 ranks
    assert sum(len(dots.get_offsets()) for dots in cultures.collections) == 512
    assert [len(line.get_xdata()) for line in way.lines] == [11, 11]


def test_on_the_way_from_one_culture_to_another_the_answers_change_over(trained, monkeypatch):
    panel = pytest.importorskip("matplotlib.figure").Figure().subplots()
    system, data, _ = trained
    rows = data.split("train")  # two of one culture, then two of another
    cultures = {0: rows[:2], 1: rows[2:]}
    facets = {"greet": 0, "salute": 0, "tax": 1, "toll": 1}

    def ask(rng, facet: str, value: int) -> tuple[str, str]:
        row = cultures[value][facets[facet]]
        return row.prompt, row.answer

    monkeypatch.setattr(evidence, "NAMES", list(facets))
    draw = {"draw_culture": lambda rng, region: dict.fromkeys(facets, region % 2), "ask": ask}
    draw["describe"] = lambda rng, culture, facets: cultures[culture["tax"]][0].description
    for name, function in draw.items():
        monkeypatch.setattr(evidence, name, function)
    evidence.draw_way(system, panel)
    first, second = (list(line.get_ydata()) for line in panel.lines)
    assert first[0] == second[-1] == 1.0 and first[-1] == second[0] == 0.0
    assert first == sorted(first, reverse=True) and second == sorted(second)


def test_the_report_draws_accuracy_against_parameters(monkeypatch):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    parts = fixed_results()
    evidence.draw_results(figure, evidence.by_method(parts), "accuracy")
    (panel,) = figure.axes
    lora, *_ = panel.containers  # a name cannot serve unseen contexts
    assert panel.get_title() == "unseen" and panel.get_xscale() == "log"
    assert lora.lines[0].get_xydata().tolist() == [[1234, 0.625]]


# ---- what is refused

BAD = [
    (["--seeds", "0"], "seeds is 0: it must be at least 1"),
    (["--seeds", "two"], "invalid int value"),
    (["--bias", "2"], "bias is 2.0: it must be between 0 and 1"),
    (["--methods", "lora@hats=2"], "cannot change 'hats=2'; write a method@rank=8@lr=1e-3"),
    (["tune", "--methods", "oneshot"], "unknown method 'oneshot'"),
    (["curves"], "folder"),
    (["--methods", "frozen,oneshot"], "unknown method 'oneshot'"),
    (["--methods", "oracle", "--modules", "q,x"], "unknown module 'x'"),
    (["--lr", "nan"], "lr is nan"),
    (["repeat"], "repeat"),
    (["report"], "folder"),
    (["report", "none"], "no results in none"),
    (["params", "--backbone", "gpt9"], "gpt9"),
    (["params", "--backbone", "gpt2", "--modules", "q,gate"], "unknown module 'gate'"),
    (["params", "--modules", ""], "unknown module ''"),
    (["params", "--modules", "q,q"], "each once"),
    (["params", "--rank", "-8"], "rank is -8"),
    (["params", "--trunk", "tall"], "unknown trunk 'tall'"),
    (["params", "--d-text", "0"], "d-text is 0: it must be at least 1"),
    (["figures", "--run", "none"], "no file none/"),
    (["figures", "--facet", "hats"], "unknown facet 'hats'"),
    (["figures", "--description", "people bow"], "give two or more"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_a_bad_option_is_one_line_and_exit_code_2(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(evidence, monkeypatch, capsys, *arguments)
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_named_with_what_mends_it(monkeypatch, capsys, tmp_path):
    path = write(two_cultures(), tmp_path / "two.jsonl")
    train.run(smoke(path, tmp_path / "run", methods="frozen"))
    for name, old, new in (("evidence.json", '"n": 4', '"n": 5'), ("results.json", '"rows"', "'")):
        file = tmp_path / "run" / name
        complete(evidence.settings_of(tmp_path / "run"))
        content = file.read_text()
        assert old in content
        file.write_text(content.replace(old, new))
        capsys.readouterr()
        code, out, err = cli(evidence, monkeypatch, capsys, "report", str(tmp_path / "run"))
        assert code == 2 and out == "" and err.count("\n") == 1
        assert f"run/{name} is of no use" in err and "delete it" in err
        file.write_text(content)


def test_a_method_that_makes_no_adapter_from_a_text_has_no_figure(monkeypatch, capsys, tmp_path):
    system = build_system("lora")
    system.save_backbone(tmp_path)
    system.save(tmp_path, "lora")
    options = ["figures", "--run", str(tmp_path), "--method", "lora"]
    code, out, err = cli(evidence, monkeypatch, capsys, *options)
    assert code == 2 and out == "" and "generates no adapter from a text" in err


def test_all_names_every_method_and_every_rival():
    settings = Settings(methods="all")
    assert settings.named == [*train.METHODS, *rivals.RIVALS]
    assert settings.of_seed(3).methods == ",".join(train.METHODS)
    assert settings.of_seed(3).run == Path("out/cultures-evidence/seed3")
    assert Settings(methods="oracle").of_seed(0).methods == "frozen"  # which trains the backbone
    assert Settings(methods="front,lora").named == [*rivals.FRONT, "lora"]
