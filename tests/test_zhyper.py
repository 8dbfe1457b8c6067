"""The assembled system: step 0, merging, mixed contexts, padding, files, command line."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import KINDS, TEXTS, build_system, cli, tiny_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zhyper
from hyper import LowRank
from model import ContextTable
from zhyper import Zhyper, build_adapter

PROMPTS = ["Q: what now?\nA:", "people", "the taxes are cut and"]


@pytest.mark.parametrize("trunk", ["gated", "paper"])
@pytest.mark.parametrize("kind", KINDS)
def test_step_0_equals_the_frozen_model_bit_for_bit(kind, trunk):
    system = build_system(kind)
    system.adapter = build_adapter(tiny_config(kind, trunk=trunk), system.backbone.config, 32).eval()
    ids = torch.randint(2, 200, (4, 9))
    assert torch.equal(system.backbone(ids), system.backbone(ids, system.adapt(TEXTS[:4])))


def test_merged_weights_equal_the_update_in_rank_space(system):
    system.double()
    ids = torch.randint(2, 200, (1, 20))
    adapted = system.backbone(ids, system.adapt(TEXTS[:1]))
    merged = system.merge(TEXTS[0])
    assert (merged(ids) - adapted).abs().max() < 1e-9
    assert (system.backbone(ids) - adapted).abs().max() > 1e-3
    assert [(n, p.shape) for n, p in merged.named_parameters()] == [
        (n, p.shape) for n, p in system.backbone.named_parameters()
    ]


def test_merging_leaves_the_backbone_as_it_was(system):
    before = {name: weight.clone() for name, weight in system.backbone.state_dict().items()}
    system.merge(TEXTS[0])
    assert all(torch.equal(weight, before[name]) for name, weight in system.backbone.state_dict().items())


def test_mixed_contexts_in_a_batch_equal_one_by_one(system):
    system.double()
    ids = torch.randint(2, 200, (5, 12))
    told = [TEXTS[i] for i in (2, 0, 1, 0, 3)]
    together = system.backbone(ids, system.adapt(told))
    for row, text in enumerate(told):
        assert torch.allclose(together[row], system.backbone(ids[row : row + 1], system.adapt([text]))[0], atol=1e-10)


def test_padding_does_not_change_an_answer(system):
    system.double()
    answers, told = [" bow", " sing a tune", " cut"], TEXTS[:3]
    together = system.score(PROMPTS, answers, told)
    for row in range(3):
        alone = system.score(PROMPTS[row : row + 1], answers[row : row + 1], told[row : row + 1])
        assert abs(alone[0].item() - together[0][row].item()) < 1e-5
    batch = system.generate(PROMPTS, told, 8)
    assert batch == [system.generate([p], [t], 8)[0] for p, t in zip(PROMPTS, told, strict=True)]


def test_generating_with_the_cache_equals_reading_everything_again(system):
    system.double()
    prompt, row = "people", system.ids(["people"])[0]
    for _ in range(10):
        token = system.backbone(torch.tensor([row]), system.adapt([TEXTS[1]]))[0, -1].argmax().item()
        row = [*row, token]
        if token == zhyper.END:
            break
    expected = system.tokenizer.decode([i for i in row[len(system.ids([prompt])[0]) :] if i != zhyper.END])
    assert system.generate([prompt], [TEXTS[1]], 10) == [expected]


def test_an_answer_is_exact_just_when_generation_writes_it(trained):
    system, data, _ = trained
    rows = data.split("unseen")
    told = [row.description for row in rows]
    wrong = [row.answer for row in reversed(rows)]
    written = system.generate([row.prompt for row in rows], told)
    for answers in ([row.answer for row in rows], wrong):
        exact = system.score([row.prompt for row in rows], answers, told)[2].tolist()
        assert exact == [a == w for a, w in zip(answers, written, strict=True)]
    assert any(exact) or all(row.answer in written for row in rows)


def test_a_description_in_the_prompt_is_read_there():
    system = build_system("lora")
    system.in_prompt = True
    assert system.prompt_ids(["people"], ["the taxes"]) == system.ids(["the taxes\npeople"])
    assert system.prompt_ids(["people"], [None]) == system.ids(["people"])


def test_what_is_saved_is_what_is_loaded(system, tmp_path):
    system.save(tmp_path, "mine")
    again = Zhyper.load(tmp_path, "mine")
    ids = torch.randint(2, 200, (3, 7))
    assert torch.equal(system.backbone(ids, system.adapt(TEXTS[:3])), again.backbone(ids, again.adapt(TEXTS[:3])))
    assert not list(tmp_path.glob("*.tmp"))


def test_a_damaged_checkpoint_is_named(system, tmp_path):
    system.save(tmp_path, "mine")
    (tmp_path / "mine.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="mine.pt cannot be read"):
        Zhyper.load(tmp_path, "mine")
    torch.save({"format": 99}, tmp_path / "mine.pt")
    with pytest.raises(ValueError, match=f"format 99, this code reads {zhyper.FORMAT}"):
        Zhyper.load(tmp_path, "mine")


def test_a_damaged_tokenizer_is_named(system, tmp_path):
    system.save(tmp_path, "mine")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer.json cannot be read"):
        Zhyper.load(tmp_path, "mine")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    build_system("zhyper-diag").save(folder, "mine")
    return folder


@pytest.mark.parametrize("name", ["mine.pt", "backbone.pt", "tokenizer.json"])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(noise=st.binary(max_size=12), at=st.floats(0, 1), cut=st.integers(0, 3000) | st.just(10**9))
def test_an_altered_file_is_refused_in_one_line_or_loads_as_it_was(saved, name, noise, at, cut):
    whole = (saved / name).read_bytes()
    start = round(at * len(whole))
    try:
        (saved / name).write_bytes(whole[:start] + noise + whole[start + cut :])
        again, expected = Zhyper.load(saved, "mine").state_dict(), build_system("zhyper-diag").state_dict()
        assert list(again) == list(expected) and all(torch.equal(again[key], expected[key]) for key in expected)
        assert Zhyper.load(saved, "mine").ids(TEXTS) == build_system("zhyper-diag").ids(TEXTS)
    except ValueError as error:
        assert name in str(error) and "train again" in str(error) and len(str(error)) < 1000
    finally:
        (saved / name).write_bytes(whole)


def test_no_code_in_a_file_is_run(saved, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    shutil.copytree(saved, tmp_path / "copy")
    torch.save({"format": zhyper.FORMAT, "weights": Trap()}, tmp_path / "copy/mine.pt")
    with pytest.raises(ValueError, match="mine.pt cannot be read"):
        Zhyper.load(tmp_path / "copy", "mine")
    assert not (tmp_path / "run").exists()


def test_files_that_do_not_go_together_are_refused_with_both_values(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    ours = Zhyper.load(saved, "mine")
    build_system("zhyper-diag", seed=1).save_backbone(tmp_path / "copy")
    theirs = Zhyper.load_backbone(tmp_path / "copy")
    mine, other = (zhyper.fingerprint(system.backbone.state_dict()) for system in (ours, theirs))
    with pytest.raises(ValueError, match=rf"mine.pt does not fit: .*saved with backbone {mine}, here is.* {other}"):
        Zhyper.load(tmp_path / "copy", "mine")
    zhyper.train_tokenizer(["another text"], 270).save(str(tmp_path / "copy/tokenizer.json"))
    with pytest.raises(ValueError, match=r"backbone.pt does not fit: .*tokenizer \w{12}, here is tokenizer \w{12}"):
        Zhyper.load(tmp_path / "copy", "mine")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("backbone.pt", lambda saved: saved["config"].update(width=64), r"\[300, 32\].*\[300, 64\]"),
        ("backbone.pt", lambda saved: saved["config"].update(depth=3), "'depth'"),
        ("backbone.pt", lambda saved: saved["config"].update(heads=0), "heads is 0"),
        ("backbone.pt", lambda saved: saved.pop("config"), "'config' is missing"),
        ("mine.pt", lambda saved: saved["adapter"].update(rank=5), r"4.*5"),
        ("mine.pt", lambda saved: saved["adapter"].update(kind="magic"), "unknown method 'magic'"),
        ("mine.pt", lambda saved: saved.pop("template"), "'template' is missing"),
    ],
)
def test_what_does_not_fit_is_named_with_both_values(saved, tmp_path, name, change, message):
    shutil.copytree(saved, tmp_path / "copy")
    content = zhyper.read_weights(tmp_path / "copy" / name)
    change(content)
    zhyper.write_weights(tmp_path / "copy" / name, content)
    with pytest.raises(ValueError, match=f"{name} does not fit: .*{message}") as error:
        Zhyper.load(tmp_path / "copy", "mine")
    assert "\n" not in str(error.value)


def test_a_special_token_typed_by_a_user_is_plain_text(system):
    assert zhyper.END not in system.ids(["the <end> of <pad>"])[0]


def test_params_prints_the_counts_as_one_json_object(monkeypatch, capsys):
    code, out, _ = cli(zhyper, monkeypatch, capsys, "params", "--backbone", "mistral-7b", "--json")
    result = json.loads(out)
    methods = {"lora": 3_407_872, "t2l": 55_424_000, "zhyper-diag": 4_207_632, "zhyper-square": 4_265_088}
    assert code == 0 and result == {"backbone": "mistral-7b", "rank": 8, "modules": ["q", "v"], "methods": methods}


@pytest.mark.parametrize("backbone", zhyper.BACKBONES)
def test_params_prints_the_ratio_to_zhyper_diag_for_every_backbone(backbone, monkeypatch, capsys):
    code, out, _ = cli(zhyper, monkeypatch, capsys, "params", "--backbone", backbone, "--trunk", "gated")
    counts = {line.split()[0]: int(line.split()[1].replace(",", "")) for line in out.splitlines()}
    assert code == 0 and list(counts) == ["lora", "t2l", "zhyper-diag", "zhyper-square"]
    for line in out.splitlines():
        name, _, ratio, *_ = line.split()
        assert ratio == f"{counts[name] / counts['zhyper-diag']:.2f}"


def test_generate_prints_both_answers(monkeypatch, capsys, tmp_path):
    build_system("zhyper-diag").save(tmp_path, "zhyper-diag")
    code, out, _ = cli(
        zhyper,
        monkeypatch,
        capsys,
        "generate",
        "--run",
        str(tmp_path),
        "--description",
        "people bow",
        "--prompt",
        "how?",
    )
    assert code == 0 and out.startswith("frozen: ") and "\nadapted:" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--description", "", "--prompt", "how?"], "the description is empty"),
        (["generate", "--description", "bow", "--prompt", " "], "the prompt is empty"),
        (["generate", "--description", "bow " * 99, "--prompt", "how?"], "tokens long; it may be 64"),
        (["generate", "--description", "bow", "--prompt", "how " * 99], "tokens long; it may be 63"),
        (["generate", "--description", "bow", "--prompt", "how?", "--method", "lora"], "no checkpoint"),
        (["generate", "--description", "bow"], "--prompt"),
        (["generate", "--description", "bow", "--prompt", "how?", "--max-new-tokens", "0"], "at least 1"),
        (["params", "--modules", "q,w"], "unknown module 'w'"),
        (["params", "--rank", "0"], "at least 1"),
        (["params", "--trunk", "x"], "unknown trunk"),
        (["params", "--backbone", "gpt9"], "gpt9"),
        (["fly"], "fly"),
        ([], "command"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, monkeypatch, capsys, tmp_path):
    build_system("zhyper-diag").save(tmp_path, "zhyper-diag")
    run = ["--run", str(tmp_path)] if arguments[:1] == ["generate"] else []
    code, out, err = cli(zhyper, monkeypatch, capsys, *arguments, *run)
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err


@pytest.mark.parametrize("width", [None, 32])
def test_a_context_told_by_name_is_loaded_as_it_was_and_an_unknown_one_refused(width, tmp_path):
    system = build_system("zhyper-diag" if width else "oracle")
    system.encoder = ContextTable(TEXTS, width)
    system.save(tmp_path, "mine")
    again = Zhyper.load(tmp_path, "mine")
    assert again.by_name and torch.equal(system.embed(TEXTS[1:3]), again.embed(TEXTS[1:3]))
    assert again.encoder.vectors.requires_grad == (width is not None)
    with pytest.raises(ValueError, match="unknown context 'people fly'.*trained on, people bow low"):
        again.adapt(["people fly"])


def test_the_oracle_shares_nothing_between_contexts():
    system = build_system("oracle")
    update = system.adapt(TEXTS[:3])[0, "q"]
    update.delta()[1].sum().backward()
    touched = system.adapter.B["q"].grad.flatten(1).abs().sum(1) > 0
    assert touched.tolist() == [False, True, False, False, False]


def test_merging_adds_the_delta_of_every_site():
    system = build_system("zhyper-diag", modules=("q", "up", "down"))
    merged, updates = system.merge(TEXTS[0]), system.adapt(TEXTS[:1])
    assert all(isinstance(update, LowRank) for update in updates.values())
    changed = {n for n, p in merged.named_parameters() if not torch.equal(p, system.backbone.get_parameter(n))}
    sites = ("attention.q", "mlp.up", "mlp.down")
    assert changed == {f"blocks.{layer}.{name}.weight" for layer in range(2) for name in sites}
