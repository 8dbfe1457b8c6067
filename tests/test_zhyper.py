"""The assembled system: step 0, merging, mixed contexts, padding, files, command line."""

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import KINDS, ROOT, TEXTS, build_system, cli, tiny_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zhyper
from hyper import ADAPTERS, LowRank
from model import GPT, ContextTable
from zhyper import Zhyper, build_adapter, choose, gpt2, mix, peft_adapter

PROMPTS = ["Q: what now?\nA:", "people", "the taxes are cut and"]


@pytest.mark.parametrize("trunk", ["gated", "paper"])
@pytest.mark.parametrize("kind", KINDS)
def test_step_0_equals_the_frozen_model_bit_for_bit(kind, trunk):
    system = build_system(kind)
    system.adapter = build_adapter(tiny_config(kind, trunk=trunk), system.backbone.config, 32).eval()
    ids = torch.randint(2, 200, (4, 9))
    assert torch.equal(system.backbone(ids), system.backbone(ids, system.adapt(TEXTS[:4])))


def test_a_merged_model_is_a_plain_gpt_with_the_logits_of_the_adapted_one(system):
    ids = torch.randint(2, 200, (1, 20))
    adapted, merged = system.backbone(ids, system.adapt(TEXTS[:1])), system.merge(TEXTS[0])
    assert type(merged) is GPT
    assert (merged(ids) - adapted).abs().max() < 1e-5
    assert (system.backbone(ids) - adapted).abs().max() > 1e-3
    assert [(n, p.shape) for n, p in merged.named_parameters()] == [
        (n, p.shape) for n, p in system.backbone.named_parameters()
    ]


def test_merging_twice_is_refused(system):
    merged = system.merge(TEXTS[0])
    again = Zhyper(system.tokenizer, merged, system.encoder, system.adapter)
    for adapt in (again.merge, lambda text: again.adapt([text]), lambda text: again.generate(["people"], [text])):
        with pytest.raises(ValueError, match="merged already"):
            adapt(TEXTS[0])
    assert again.generate(["people"], None, 4) == system.generate(["people"], TEXTS[:1], 4)
    with pytest.raises(ValueError, match="no adapter to merge"):
        Zhyper(system.tokenizer, merged).merge(TEXTS[0])


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


def test_generating_with_the_cache_and_mixed_contexts_equals_reading_everything_again_row_by_row(system):
    system.double()
    told, expected = [TEXTS[i] for i in (2, 0, 1)], []
    for prompt, text in zip(PROMPTS, told, strict=True):
        asked = row = system.ids([prompt])[0]
        while len(row) < len(asked) + 12:
            token = system.backbone(torch.tensor([row]), system.adapt([text]))[0, -1].argmax().item()
            if token == zhyper.END:
                break
            row = [*row, token]
        expected.append(system.tokenizer.decode(row[len(asked) :]))
    assert system.generate(PROMPTS, told, 12) == expected
    assert len(set(expected)) == 3


def test_the_same_seed_draws_the_same_answers_and_another_one_others():
    system = build_system("zhyper-diag")
    first, again, other = (system.generate(PROMPTS, TEXTS[:3], 12, temperature=2.0, seed=s) for s in (1, 1, 2))
    assert first == again != other
    assert system.generate(PROMPTS, TEXTS[:3], 12, temperature=2.0, top_k=1) == system.generate(PROMPTS, TEXTS[:3], 12)


def test_tokens_are_drawn_from_the_likeliest_with_the_softmax_of_their_logits_over_the_temperature():
    logits, generator = torch.tensor([0.5, 2.0, 1.0, -1.0]), torch.Generator().manual_seed(0)
    drawn = choose(logits.expand(40_000, -1), 0.7, 3, generator)
    share = torch.bincount(drawn[:, 0], minlength=4) / 40_000
    assert torch.allclose(share, torch.tensor([0.5, 2.0, 1.0, -torch.inf]).div(0.7).softmax(0), atol=0.01)
    assert choose(logits[None], 1e-30, 0, generator).item() == 1  # so cold that dividing alone would overflow


@pytest.mark.parametrize("kind", [kind for kind in KINDS if ADAPTERS[kind].conditioned and kind != "oracle"])
def test_a_mix_at_0_and_1_is_the_end_itself_and_between_them_lies_between(kind):
    system, (first, second) = build_system(kind), TEXTS[:2]
    ids = torch.randint(2, 200, (1, 9))

    def logits(context):
        return system.backbone(ids, system.adapt([context]))

    assert torch.equal(logits(mix(first, second, 0)), logits(first))
    assert torch.equal(logits(mix(first, second, 1.0)), logits(second))
    near, far = ((logits(mix(first, second, 0.1)) - logits(end)).norm() for end in (first, second))
    assert 0 < near < far
    c = system.embed_contexts([first, second, mix(first, second, 0.3), mix(None, second, 0.5)])
    assert torch.allclose(c[2], 0.7 * c[0] + 0.3 * c[1])
    assert torch.allclose(c[3], (system.adapter.trunk.centre.running_mean + c[1]) / 2)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_mix_beyond_its_ends_is_refused(share):
    with pytest.raises(ValueError, match="choose from 0, the first description, to 1"):
        mix(*TEXTS[:2], share)


def test_what_has_nothing_between_two_contexts_refuses_to_mix():
    with pytest.raises(ValueError, match="none between two"):
        build_system("oracle").adapt([mix(*TEXTS[:2], 0.5)])
    system = build_system("lora")
    system.in_prompt = True
    with pytest.raises(ValueError, match="cannot be mixed"):
        system.generate(["people"], [mix(*TEXTS[:2], 0.5)])


def test_many_descriptions_are_embedded_as_each_alone_is_in_their_own_order():
    system = build_system("zhyper-diag").double()
    texts = [" ".join(["people bow"] * (1 + i * 7 % 5)) + f" {i}" for i in range(zhyper.AT_ONCE["descriptions"] + 30)]
    alone = torch.cat([system.embed([text]) for text in texts])
    assert torch.allclose(system.embed(texts), alone, atol=1e-12)


@torch.no_grad()
def test_many_rows_are_scored_as_each_alone_is_in_their_own_order(system):
    many = zhyper.AT_ONCE["rows"] + 7
    prompts = [" ".join(["Q: what"] * (1 + i * 7 % 5)) for i in range(many)]
    answers = [f" bow {'low ' * (i % 3)}" for i in range(many)]
    told = [TEXTS[i % len(TEXTS)] for i in range(many)]
    loss, count, exact = system.score(prompts, answers, told)
    for i in range(many):
        alone = system.score(prompts[i : i + 1], answers[i : i + 1], told[i : i + 1])
        assert loss[i] == pytest.approx(alone[0].item(), rel=1e-4)
        assert (count[i], exact[i]) == (alone[1], alone[2])
    assert len(set(loss.tolist())) > 5


@pytest.mark.parametrize("modules", [("q", "v"), ("k", "o"), ("q", "k", "v", "o", "up", "down")])
@pytest.mark.parametrize("kind", KINDS)
def test_the_exported_adapter_on_the_exported_backbone_has_the_merged_weights(kind, modules):
    system = build_system(kind, modules=modules)
    adapter, config = peft_adapter(system.adapt(TEXTS[:1]), 2)
    base, expected = gpt2(system.backbone)[0], gpt2(system.merge(TEXTS[0]))[0]
    for name in base:
        at = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{at}.lora_A.weight" in adapter:
            module = name.split(".", 3)[3].removesuffix(".weight")
            assert module in config["target_modules"]
            rank = config["rank_pattern"].get(module, config["r"])
            alpha = config["alpha_pattern"].get(module, config["lora_alpha"])
            A, B = adapter.pop(f"{at}.lora_A.weight"), adapter.pop(f"{at}.lora_B.weight")
            assert len(A) == rank
            base[name] = base[name] + (alpha / rank * B @ A).T  # stored (in, out)
        assert torch.allclose(base[name], expected[name], atol=1e-5)
    assert not adapter


@pytest.mark.parametrize("kind", KINDS)
def test_peft_and_transformers_load_what_is_exported_and_have_the_logits_of_the_adapted_model(kind, tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    pytest.importorskip("safetensors")
    system, ids = build_system(kind, modules=("q", "v", "o", "up", "down")), torch.randint(2, 200, (2, 12))
    system.export(TEXTS[0], tmp_path / "adapter", tmp_path / "backbone")
    base = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "backbone").eval()
    assert (base(ids).logits - system.backbone(ids)).abs().max() < 1e-5
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert (adapted(ids).logits - system.backbone(ids, system.adapt(TEXTS[:1] * 2))).abs().max() < 1e-5
    assert (adapted.merge_and_unload()(ids).logits - system.merge(TEXTS[0])(ids)).abs().max() < 1e-5
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "backbone")
    assert tokenizer("people bow")["input_ids"] == system.ids(["people bow"])[0]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (zhyper.PAD, zhyper.END)


def test_an_export_into_a_folder_that_exists_needs_force(monkeypatch, capsys, tmp_path):
    pytest.importorskip("safetensors")
    build_system("zhyper-diag").save(tmp_path, "zhyper-diag")
    to, backbone = tmp_path / "adapter", tmp_path / "backbone"
    words = ["export", "--run", str(tmp_path), "--description", "people bow", "--to", str(to)]
    assert cli(zhyper, monkeypatch, capsys, *words)[0] == 0
    assert sorted(path.name for path in to.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert json.loads((to / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    code, out, err = cli(zhyper, monkeypatch, capsys, *words)
    assert code == 2 and out == "" and err.count("\n") == 1 and "adapter exists: choose another folder" in err
    assert cli(zhyper, monkeypatch, capsys, *words, "--force", "--backbone", str(backbone))[0] == 0
    assert json.loads((to / "adapter_config.json").read_text())["base_model_name_or_path"] == str(backbone)
    code, _, err = cli(zhyper, monkeypatch, capsys, *words[:-1], str(tmp_path / "tokenizer.json"), "--force")
    assert code == 2 and "tokenizer.json exists" in err


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, capsys, tmp_path):
    build_system("zhyper-diag").save(tmp_path, "zhyper-diag")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    words, to = ["--run", str(tmp_path), "--description", "people bow"], tmp_path / "adapter"
    code, out, err = cli(zhyper, monkeypatch, capsys, "export", *words, "--to", str(to))
    assert code == 2 and out == "" and err.count("\n") == 1 and "pip install safetensors" in err and not to.exists()
    code, out, _ = cli(zhyper, monkeypatch, capsys, "inspect", *words, "--description", "people sing")
    assert (
        code == 0 and out.startswith("1: people bow") and out.endswith("no figure: for that, pip install matplotlib\n")
    )


def test_inspect_names_the_site_and_the_rank_that_differ():
    system = build_system("zhyper-diag")
    for module, B in system.adapter.B.items():
        for layer in range(2):
            if (layer, module) != (1, "k"):
                torch.nn.init.zeros_(B[layer])
    with torch.no_grad():
        system.adapter.B["k"][1, :, [0, 1, 3]] = 0
    lines = zhyper.compare(system, *TEXTS[:2]).splitlines()
    at = [i + 1 for i, line in enumerate(lines) if line.endswith(":")]
    site, rank = lines[at[1]], lines[at[2]]
    assert site.startswith("layer 1 k ") and lines[at[1] + 1].endswith(" 0.000")
    assert rank.startswith("layer 1 k rank 2 ") and " 0.000 " in lines[at[2] + 1]
    z = system.adapter.z(system.embed(TEXTS[:2]))["k"][:, 1, 2].tolist()
    assert rank.endswith(f"z {z[0]:.2f} → {z[1]:.2f}")
    assert float(site.split()[-1]) == float(rank.split()[5]) > 0.01


@pytest.mark.parametrize("kind", ["zhyper-diag", "zhyper-square", "t2l"])
def test_inspect_draws_z_as_a_png(kind, monkeypatch, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    build_system(kind).save(tmp_path, kind)
    words = ["--run", str(tmp_path), "--method", kind, "--description", TEXTS[0], "--description", TEXTS[1]]
    code, out, _ = cli(zhyper, monkeypatch, capsys, "inspect", *words)
    assert code == 0 and out.endswith(f"the figure is {tmp_path / 'inspect.png'}\n")
    assert (tmp_path / "inspect.png").read_bytes().startswith(b"\x89PNG")


def test_the_figure_of_a_run_on_the_cultures_has_three_panels():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    system = build_system("zhyper-diag", context=256)
    system.template = "Q: {}\nA:"
    zhyper.draw(system, TEXTS[:3], "taxes", figure)
    heat, contexts, path = [axes for axes in figure.axes if axes.get_title()]
    assert heat.images[0].get_array().shape == (8, 3 * (4 + 2) - 2)  # sites, three blocks of four ranks
    assert sum(len(dots.get_offsets()) for dots in contexts.collections) == 512
    assert [len(line.get_xdata()) for line in path.lines] == [11, 11]


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
        assert Path(name).stem in str(error) and "train again" in str(error) and len(str(error)) < 1000
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
        (["generate", "--description", " ", "--prompt", "how?", "--method", "lora"], "the description is empty"),
        (["generate", "--description", "bow", "--prompt", "how?", "--temperature", "nan"], "temperature is nan"),
        (["generate", "--description", "bow", "--prompt", "how?", "--temperature", "-1"], "at least 0"),
        (["generate", "--description", "bow", "--prompt", "how?", "--top-k", "-1"], "top_k is -1"),
        (["generate", "--description", "bow", "--prompt", "how?", "--seed", str(2**63)], "and finite"),
        (["generate", "--description", "bow\x1b[2J", "--prompt", "how?"], "the description holds '\\x1b'"),
        (["generate", "--description", "bow", "--prompt", "how\x07?"], "the prompt holds '\\x07'"),
        (["inspect", "--description", "bow"], "another --description"),
        (["inspect", "--facet", "hats"], "unknown facet 'hats': choose from greeting"),
        (["inspect", "--description", "bow", "--description", " "], "the description is empty"),
        (["inspect", "--description", "bow", "--description", "bow " * 99], "tokens long; it may be 64"),
        (["inspect", "--method", "lora"], "lora makes no adapter from a text"),
        (["export", "--description", "", "--to", "x"], "the description is empty"),
        (["export", "--description", "bow\x00", "--to", "x"], "the description holds '\\x00'"),
        (["export", "--description", "bow", "--to", "x", "--method", "frozen"], "no adapter to export"),
        (["export", "--description", "bow", "--to", "x", "--backbone", "x"], "a folder of its own"),
        (["chat", "--method", "magic"], "no checkpoint"),
        (["params", "--modules", "q,w"], "unknown module 'w'"),
        (["params", "--rank", "0"], "at least 1"),
        (["params", "--trunk", "x"], "unknown trunk"),
        (["params", "--backbone", "gpt9"], "gpt9"),
        (["params", "--rank", "-8"], "at least 1"),
        (["params", "--rank", "eight"], "invalid int value"),
        (["params", "--modules", ""], "unknown module ''"),
        (["params", "--modules", "q,q"], "at most once"),
        (["params", "--d-text", "0"], "d-text is 0: it must be at least 1"),
        (["params", "q,v"], "q,v"),
        (["generate", "--prompt", "how?"], "--description"),
        (["generate", "--description", "bow", "--prompt", "how?", "--seed", "-1"], "seed is -1"),
        (["generate", "--description", "bow", "--prompt", "how?", "--top-k", "1.5"], "invalid int value"),
        (["generate", "--description", "bow", "--prompt", "how?", "--method", "../x"], "no checkpoint"),
        (["export", "--description", "bow"], "--to"),
        (["export", "--to", "x"], "--description"),
        (["chat", "--seed", "x"], "invalid int value"),
        (["chat", "--temperature", "hot"], "invalid float value"),
        (["fly"], "fly"),
        ([], "command"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, monkeypatch, capsys, tmp_path):
    build_system("zhyper-diag").save(tmp_path, "zhyper-diag")
    if "--method" in arguments and message != "no checkpoint":
        system = build_system("lora")
        system.save(tmp_path, "lora")
        Zhyper(system.tokenizer, system.backbone).save(tmp_path, "frozen")
    run = [] if arguments[:1] in ([], ["params"], ["fly"]) else ["--run", str(tmp_path)]
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


# ---- the conversation, as a child process


class Terminal:
    """zhyper.py chat on a pseudo-terminal."""

    def __init__(self, run):
        self.master, slave = os.openpty()
        command = [sys.executable, "zhyper.py", "chat", "--run", str(run)]
        earlier = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores Ctrl-C
        self.child = subprocess.Popen(command, cwd=ROOT, stdin=slave, stdout=slave, stderr=slave)
        signal.signal(signal.SIGINT, earlier)
        os.close(slave)

    def read(self, end: str = "> ") -> str:
        """What is written up to `end`, without the codes that move a cursor; fails after a minute."""
        text, limit = "", time.monotonic() + 60
        while not text.endswith(end):
            assert select.select([self.master], [], [], limit - time.monotonic())[0], text
            text = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]|\r", "", text + os.read(self.master, 4096).decode())
        return text

    def say(self, line: str) -> str:
        os.write(self.master, line.encode() + b"\n")
        return self.read()

    def leave(self) -> int:
        code = self.child.wait(60)
        os.close(self.master)
        return code


def test_a_conversation_on_a_terminal(trained, tmp_path):
    system, data, _ = trained
    bow, sing = (record.description for record in (data.split("train")[i] for i in (0, 2)))
    system.save(tmp_path, "zhyper-diag")
    chat = Terminal(tmp_path)
    assert "/help lists" in chat.read()
    assert "adapted:  (no description yet: /describe TEXT)" in chat.say("how do they greet?")
    told = chat.say(f"/describe {bow}")
    numbers, ratio = re.search(r"z: (\d+) numbers in \d+\.\d ms, ‖ΔW‖/‖W‖ = (\d+\.\d{3})", told).groups()
    assert int(numbers) == 2 * 4 * 4 and abs(float(ratio) - system.strength(bow)) < 1e-3 and float(ratio) > 0
    frozen = system.generate(["Q: how do they greet?\nA:"])[0]
    assert f"frozen:  {frozen}\nadapted:  bow\n> " in chat.say("how do they greet?")
    assert "z: 32 numbers" in chat.say(f"/mix {sing} 0.95")
    assert "adapted:  sing\n" in chat.say("how do they greet?")
    assert "error: unknown command /fly: /help lists what there is\n" in chat.say("/fly")
    assert "adapted:  sing\n" in chat.say("how do they greet?")  # a mistake changes nothing
    os.write(chat.master, b"\x04")  # Ctrl-D
    assert chat.leave() == 0


def test_ctrl_c_leaves_a_conversation_without_a_traceback(tmp_path):
    build_system("zhyper-diag").save(tmp_path, "zhyper-diag")
    chat = Terminal(tmp_path)
    chat.read()
    chat.child.send_signal(signal.SIGINT)
    assert "Traceback" not in chat.read("\n")
    assert chat.leave() == 0


def test_a_piped_conversation_answers_every_line_and_ends_with_its_input(trained, tmp_path):
    system, data, _ = trained
    bow = data.split("train")[0].description
    system.save(tmp_path, "zhyper-diag")
    said = {  # in turn, and what each line is answered by
        "": "",
        "/mix people 0.3": "error: there is nothing to mix with yet",
        f"/describe {bow}": "z: 32 numbers in",
        "/describe": "error: the description is empty",
        "/describe " + "bow " * 99: "tokens long; it may be 64: shorten it",
        "/describe a\x1b[2Jb": "error: the line holds '\\x1b', which is not text: remove it",
        "/describe \udcff": "error: the line holds '\ufffd'",
        "/mix people": "error: no text and share from 0 to 1 in 'people'",
        "/mix people 2": "error: no text and share from 0 to 1 in 'people 2'",
        "/mix people bow 0.2": "z: 32 numbers in",
        "/facts": "What should happen to taxes?               cut the taxes, raise the taxes",
        "/help": "/mix TEXT 0.3",
        "what? " * 99: "error: the prompt",
        "how do they greet?": "adapted:  bow",
    }
    command = [sys.executable, "zhyper.py", "chat", "--run", str(tmp_path)]
    typed = "\n".join(said).encode("utf-8", "surrogateescape")
    done = subprocess.run(command, cwd=ROOT, input=typed, capture_output=True, timeout=60)
    assert done.returncode == 0 and done.stderr == b""
    replies = done.stdout.decode().split("\n> ")
    assert replies[0] == "> " and replies[-1] == "\n" and len(replies) == len(said) + 1
    for (line, reply), text in zip(said.items(), replies[:-1], strict=True):
        assert reply in text, line
        assert "error" not in reply or text.count("\n") == 1
    quit = subprocess.run(command, cwd=ROOT, input=b"/quit\nhow?\n", capture_output=True, timeout=60)
    assert quit.returncode == 0 and quit.stdout == b"> /quit\n\n"
