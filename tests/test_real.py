"""A run through pretrained models: small random ones, in folders as the hub keeps them."""

import json
import os
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import TEXTS, build_system, cli, smoke, two_cultures
from test_files import contents, equal, fail_at, words
from test_train import TINY, write

import train
import zhyper
from data import _pretrained as pretrained
from data._files import fingerprint, read_file
from data._prompting import formats
from data._tokenizer import train_tokenizer
from model import GPT, Encoder, ModelConfig
from train import evaluate, run
from zhyper import Zhyper

safetensors = pytest.importorskip("safetensors.torch")

METHOD = "zhyper-diag-paper"  # has dropout: also the random state must be as it was
SMALL = ModelConfig(300, 256, layers=2, heads=2, kv_heads=1, width=40, inner=48)
SAID = "people sing and the taxes are raised"
ASK = ["--description", SAID, "--prompt", "how do they greet?"]


# ---- two models and a run through them


def write_backbone(folder: Path, seed: int) -> None:
    tokenizer = train_tokenizer([*two_cultures().documents, *TEXTS], 298)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    torch.manual_seed(seed)
    gpt = GPT(replace(SMALL, vocab_size=tokenizer.get_vocab_size()))
    pretrained.write_llama(str(folder), gpt, tokenizer)


def write_encoder(folder: Path, seed: int) -> None:
    tokenizer = train_tokenizer(TEXTS, 280)
    torch.manual_seed(seed)
    size = replace(SMALL, vocab_size=tokenizer.get_vocab_size(), block_size=128, width=24)
    encoder = Encoder(size)
    own = ("vocab_size", "max_position_embeddings", "num_hidden_layers", "num_attention_heads")
    own += ("hidden_size", "intermediate_size", "layer_norm_eps")
    config = {theirs: getattr(size, pretrained.SIZES[theirs]) for theirs in own}
    config |= {"model_type": "bert", "hidden_act": "gelu"}
    tensors = {pretrained.hub_name(name, Encoder.HUB_NAMES): w for name, w in encoder.state_dict().items()}
    tensors["embeddings.token_type_embeddings.weight"] = torch.randn(2, size.width)
    files = {"config.json": config, "tokenizer.json": tokenizer.to_str()}
    pretrained.write_folder(str(folder), "model.safetensors", tensors, files)


WRITE = {"backbone": write_backbone, "encoder": write_encoder}


def with_choices() -> list:
    """Two cultures, each answer one of two, and rows to validate on."""
    data = two_cultures()
    answers = {row.prompt: tuple(r.answer for r in data.records[:4] if r.prompt == row.prompt) for row in data.records}
    rows = [row._replace(choices=answers[row.prompt]) for row in data.records]
    return [*rows, *(row._replace(split="validation") for row in rows[4:])]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(train.PRESETS, "smoke", TINY)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> train.Settings:
    """A finished run through both models, of which no test changes anything."""
    folder, data = tmp_path_factory.mktemp("real"), two_cultures()
    for name, write_model in WRITE.items():
        write_model(folder / name, 0)
    data.records[:] = with_choices()
    path, models = write(data, folder / "two.jsonl"), {name: str(folder / name) for name in WRITE}
    job = smoke(path, folder / "run", steps=4, methods=f"prompt,{METHOD}", **models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train.PRESETS, "smoke", TINY)
        run(job)
    return job


@pytest.fixture
def job(whole, tmp_path) -> train.Settings:
    """A run of one method on the same models, that has nothing yet."""
    return replace(whole, out=str(tmp_path / "run"), methods=METHOD)


@pytest.fixture
def moved(whole, tmp_path) -> train.Settings:
    """A finished run through copies of the models, which a test may change."""
    for name in WRITE:
        shutil.copytree(getattr(whole, name), tmp_path / name)
    own = replace(whole, out=str(tmp_path / "run"), **{name: str(tmp_path / name) for name in WRITE})
    run(own)
    return own


def line(job: train.Settings) -> list[str]:
    """The command line of a job."""
    models = [f"--{name}={getattr(job, name)}" for name in WRITE if getattr(job, name)]
    return [*words(job), *models, "--device", "cpu"]


def tensors_in(content) -> list[torch.Tensor]:
    if isinstance(content, torch.Tensor):
        return [content]
    parts = content.values() if isinstance(content, dict) else content
    return [t for part in parts for t in tensors_in(part)] if isinstance(content, dict | list | tuple) else []


def results_of(job: train.Settings) -> dict:
    """What results.json has, but for the time that it took."""
    results = json.loads((job.run / "results.json").read_text())
    return results | {"checksum": None, "rows": [row | {"seconds": None} for row in results["rows"]]}


# ---- end to end


def test_the_main_job_through_pretrained_models_prints_its_table(job, whole, monkeypatch, capsys):
    code, out, err = cli(train, monkeypatch, capsys, *line(replace(job, methods=whole.methods)))
    results = json.loads((job.run / "results.json").read_text())
    assert code == 0 and train.table(results) in out and "choice, unseen" in out, err
    assert "pretrain" not in results and results["rows"][1]["encoder"] == 0
    first = results_of(whole)
    assert results["rows"][0]["splits"] == first["rows"][0]["splits"]
    assert f"| prompting | {results['rows'][0]['prompting']} |  |" in out


def test_a_run_that_was_stopped_ends_in_the_same_weights_bit_for_bit(job, whole):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        fail_at(patch, 4, KeyboardInterrupt())  # results, backbone.pt, results, the first checkpoint
        run(job)
    assert read_file(job.run / f"checkpoint-{METHOD}.pt")["steps"] == 4
    assert len(read_file(job.run / f"checkpoint-{METHOD}.pt")["losses"]) == 2
    run(job)
    one, other = (Zhyper.load(folder, METHOD).state_dict() for folder in (job.run, whole.run))
    assert equal(one, other) and results_of(job)["rows"] == results_of(whole)["rows"][1:]


def test_a_run_folder_has_no_copy_of_pretrained_weights_which_stay_as_they_were(job, whole):
    networks = {"backbone": GPT.from_pretrained(whole.backbone), "encoder": Encoder.from_pretrained(whole.encoder)}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        fail_at(patch, 4, KeyboardInterrupt())
        run(job)
    files = [*whole.run.glob("*.pt"), job.run / f"checkpoint-{METHOD}.pt"]
    assert len(files) == 4
    matrices = [p for network in networks.values() for p in network.parameters() if p.dim() == 2]
    for path in files:
        kept = tensors_in(read_file(path))
        assert not any(t.shape == p.shape and torch.equal(t, p) for t in kept for p in matrices), path
    assert (whole.run / "backbone.pt").stat().st_size < 2000 and (whole.run / "prompt.pt").stat().st_size < 3000
    system = Zhyper.load(whole.run, METHOD)
    for name, network in networks.items():
        assert fingerprint(getattr(system, name)) == fingerprint(network)
        assert read_file(whole.run / f"{METHOD}.pt")["encoder"]["source"] == whole.encoder
    moved = system.hypernetwork.B["q"]
    assert moved.abs().max() > 0 and system.backbone.source == whole.backbone


def test_every_command_uses_a_run_through_pretrained_models(whole, monkeypatch, capsys, tmp_path):
    of = ["--run", whole.out, "--method", METHOD]
    system = Zhyper.load(whole.run, METHOD)
    frozen, adapted = system.generate(["how do they greet?"] * 2, [None, SAID])
    code, out, _ = cli(zhyper, monkeypatch, capsys, "generate", *of, *ASK)
    assert code == 0 and out.rstrip("\n") == f"frozen:  {frozen}\nadapted: {adapted}".rstrip("\n")
    typed = iter([f"/describe {SAID}", "how do they greet?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    code, out, _ = cli(zhyper, monkeypatch, capsys, "chat", *of)
    assert code == 0 and "at 8 sites" in out and f"adapted: {adapted}" in out
    code, out, _ = cli(zhyper, monkeypatch, capsys, "explain", *of, *ASK)
    own, other = (tokenizer.encode(SAID).ids for tokenizer in (system.encoder.tokenizer, system.tokenizer))
    assert code == 0 and str((1, len(own))) in out.splitlines()[0] and own != other
    code, _, _ = cli(zhyper, monkeypatch, capsys, "export", *of, *ASK[:2], "--to", str(tmp_path / "to"))
    config = json.loads((tmp_path / "to" / "adapter_config.json").read_text())
    assert code == 0 and config["base_model_name_or_path"] == whole.backbone


@torch.no_grad()
def test_what_is_merged_and_exported_has_the_logits_of_the_adapted_model(whole, tmp_path):
    system, ids = Zhyper.load(whole.run, METHOD), torch.arange(2, 62)[None]
    for B in system.hypernetwork.B.values():
        torch.nn.init.normal_(B, std=0.3)
    frozen, adapted = (system.backbone(ids, system.adapt(text)) for text in (None, [SAID]))
    merged = system.merge(SAID)
    assert (merged(ids) - adapted).abs().max() < 1e-4 and (frozen - adapted).abs().max() > 1e-2
    assert merged.source is None and system.backbone.source == whole.backbone
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    system.export(SAID, str(tmp_path / "to"))
    base = transformers.AutoModelForCausalLM.from_pretrained(whole.backbone)
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "to")).eval()(ids).logits
    assert (theirs - adapted).abs().max() < 1e-4


@pytest.mark.parametrize("name", WRITE)
def test_each_model_serves_alone_beside_a_fresh_one(name, job):
    (other,) = set(WRITE) - {name}
    results = run(replace(job, **{other: None}))
    system = Zhyper.load(job.run, METHOD)
    networks = {"backbone": system.backbone, "encoder": system.encoder}
    assert networks[name].source == getattr(job, name) and networks[other].source is None
    expected = {"backbone": GPT, "encoder": Encoder}[name].from_pretrained(getattr(job, name))
    assert fingerprint(networks[name]) == fingerprint(expected)
    assert ("pretrain" in results) == (name == "encoder")
    assert (results["rows"][0]["encoder"] > 0) == (name == "backbone")
    assert system.generate(["how?"], [SAID], 4) == Zhyper.load(job.run, METHOD).generate(["how?"], [SAID], 4)


def test_an_encoder_changes_and_is_saved_only_where_it_is_to_be_trained(job, whole):
    before = Encoder.from_pretrained(whole.encoder)
    (row,) = run(replace(job, train_encoder=True))["rows"]
    saved, after = read_file(job.run / f"{METHOD}.pt")["encoder"], Zhyper.load(job.run, METHOD).encoder
    assert equal(saved["weights"], dict(after.state_dict())) and after.source is None
    assert row["encoder"] == sum(weight.numel() for weight in after.parameters())
    moved = [name for name, weight in after.named_parameters() if not torch.equal(weight, before.get_parameter(name))]
    assert len(moved) == len(list(after.parameters()))
    assert after.tokenizer.encode(SAID).ids == before.tokenizer.encode(SAID).ids
    assert equal(dict(Zhyper.load(whole.run, METHOD).encoder.state_dict()), dict(before.state_dict()))


# ---- a model folder that is not as it was


def spoil(folder: Path, how: str, name: str) -> None:
    if how == "gone":
        shutil.rmtree(folder)
    elif how == "cut":
        os.truncate(folder / "model.safetensors", 5000)
    else:
        WRITE[name](folder, 1)


MENDS = {
    "gone": "put config.json, tokenizer.json and model.safetensors into a folder",
    "cut": "is damaged",
    "replaced": "holds other weights than those that this run was trained with: put these back",
}


@pytest.mark.parametrize("how", MENDS)
@pytest.mark.parametrize("name", WRITE)
def test_a_model_that_is_not_as_it_was_is_one_line_and_nothing_is_lost(name, how, moved, monkeypatch, capsys):
    folder, ask = Path(getattr(moved, name)), ["generate", "--run", moved.out, "--method", METHOD, *ASK]
    before, good = contents(moved.run), cli(zhyper, monkeypatch, capsys, *ask)
    again = line(replace(moved, methods=f"frozen,{moved.methods}"))
    shutil.copytree(folder, folder.with_suffix(".kept"))
    spoil(folder, how, name)
    code, out, err = cli(zhyper, monkeypatch, capsys, *ask)
    assert code == 2 and out == "" and err.count("\n") == 1 and str(folder) in err and MENDS[how] in err
    for command in (line(moved), again):
        code, out, err = cli(train, monkeypatch, capsys, *command)
        assert code == 2 and out == "" and err.count("\n") == 1
        if how == "replaced":
            assert "other settings" in err and f"{name} weights" in err
        else:
            assert str(folder) in err and MENDS[how] in err
    assert contents(moved.run) == before
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".kept").rename(folder)
    assert cli(zhyper, monkeypatch, capsys, *ask) == good and good[0] == 0
    assert cli(train, monkeypatch, capsys, *line(moved))[0] == 0
    assert contents(moved.run) == before
    assert cli(train, monkeypatch, capsys, *again)[0] == 0


# ---- computed once


@pytest.mark.parametrize("trained", [False, True])
def test_a_frozen_encoder_reads_every_description_once(trained, job, monkeypatch):
    read, forward = Counter(), Encoder.forward

    def count(self, ids, mask):
        read.update(tuple(row[own].tolist()) for row, own in zip(ids, mask, strict=True))
        return forward(self, ids, mask)

    monkeypatch.setattr(Encoder, "forward", count)
    run(replace(job, train_encoder=trained))
    assert (max(read.values()) > 1) == trained
    assert len(read) == 2 + 4  # the cultures' own, and random letters for each row that is evaluated


@torch.no_grad()
def test_embeddings_that_were_kept_are_those_that_are_computed(whole):
    system, fresh = (Zhyper.load(whole.run, METHOD) for _ in range(2))
    system.embed(TEXTS[:3])
    kept = system.embed([*TEXTS[::-1], *TEXTS[:2]])
    assert len(system.embeddings) == 5
    for text, c in zip([*TEXTS[::-1], *TEXTS[:2]], kept, strict=True):
        fresh.embeddings.clear()
        assert torch.allclose(fresh.embed([text])[0], c, atol=1e-6)
    assert (kept[0] - kept[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["lora", "t2l", "zhyper-diag", "zhyper-square"])
def test_kept_states_give_the_loss_and_the_gradients_of_computing_them(kind, monkeypatch):
    prompts, texts = ["Q: what now?\nA:", "people", "the taxes are"], TEXTS[:3]
    one, several = [" bow", " sing a tune", " cut"], [[" bow", " cut"], [" sing"], [" cut", " low", " raised"]]
    system = build_system(kind, first=1)
    assert {layer for layer, _ in system.adapt(texts)} == {1}

    def found(answers) -> list[torch.Tensor]:
        system.hypernetwork.zero_grad()
        loss, tokens, exact = system.score(prompts, answers, texts)
        loss.sum().backward()
        return [loss.detach(), tokens, exact.float(), *(p.grad.clone() for p in system.hypernetwork.parameters())]

    def recompute(first, rows, ids, position, mask):
        return system.backbone.through(system.backbone.embed_tokens(ids), {}, position, mask, layers=slice(first))

    below = []
    system.backbone.layers[0].register_forward_hook(lambda *_: below.append(1))
    results = {}
    for key, answers in (("one", one), ("several", several)):
        results[key] = [found(answers), found(answers)]
    assert len(below) == 2 and len(system.states) == 6  # the second time they were there
    system.states |= dict.fromkeys(map(str, range(5000)))  # too many: they are dropped
    results["one"].append(found(one))
    assert len(system.states) == 3
    monkeypatch.setattr(system, "states_below", recompute)
    for key, answers in (("one", one), ("several", several)):
        expected = found(answers)
        assert any(gradient.abs().max() > 1e-4 for gradient in expected[3:])
        for kept in results[key]:
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(kept, expected, strict=True))


@torch.no_grad()
def test_kept_states_give_the_loss_of_the_whole_model_under_its_adapter():
    system = build_system("zhyper-diag", first=1)
    (prompt,), (answer,) = system.ids(["people"], "prompt"), system.ids([" bow low"], "answer")
    logits = system.backbone(torch.tensor([prompt + answer]), system.adapt(TEXTS[:1]))[0, len(prompt) - 1 :]
    target = torch.tensor([*answer, system.backbone.config.eos])
    expected = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
    for text in (TEXTS[1], TEXTS[0]):  # states that another description left behind
        loss = system.score(["people"], [" bow low"], [text])[0]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    frozen = Zhyper(system.tokenizer, system.backbone).score(["people"], [" bow low"], None)[0]
    assert abs(frozen.item() - expected.item()) > 1e-3


# ---- the format of the prompt


def test_the_format_that_the_prompt_method_got_is_the_best_on_validation(whole):
    system, (row, _) = Zhyper.load(whole.run, "prompt"), results_of(whole)["rows"]
    data = two_cultures()
    data.records[:] = with_choices()
    known = formats(data, system.tokenizer, system.backbone.config.block_size, whole.seed)
    assert system.prompting == known[row["prompting"]] and len(known) >= 2
    scores = {}
    for name, system.prompting in known.items():
        scores[name] = evaluate(system, data.split("validation"))["choice"]
    assert scores[row["prompting"]] == max(scores.values())


# ---- bad input


def swap(job: train.Settings) -> train.Settings:
    return replace(job, backbone=job.encoder, encoder=job.backbone)


REFUSED = [
    (swap, "model_type is 'bert', and only 'llama' or 'mistral' is built here"),
    (lambda job: replace(job, encoder=job.backbone), "model_type is 'llama', and only 'bert' is built here"),
    (lambda job: replace(job, preset="real"), "no layer 24 of 2: choose another --preset"),
    (lambda job: replace(job, backbone="nobody/nothing"), "no model nobody/nothing: it is no folder, and the hub"),
    (lambda job: replace(job, encoder="nobody/nothing"), "no model nobody/nothing: it is no folder, and the hub"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_models_that_do_not_serve_are_one_line_and_exit_code_2(change, message, job, monkeypatch, capsys):
    def offline(*_, **__):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    code, out, err = cli(train, monkeypatch, capsys, *line(change(job)))
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err
    assert "nobody" not in message or "(no network): put config.json, tokenizer.json" in err


@pytest.mark.parametrize("name", WRITE)
def test_a_model_without_its_tokenizer_is_one_line_and_exit_code_2(name, moved, monkeypatch, capsys):
    file = Path(getattr(moved, name), "tokenizer.json")
    file.unlink()
    generate = ["generate", "--run", moved.out, "--method", METHOD, *ASK]
    for module, command in ((train, line(moved)), (zhyper, generate)):
        code, out, err = cli(module, monkeypatch, capsys, *command)
        assert code == 2 and out == "" and err.count("\n") == 1 and f"no file {file}: a model is of no use" in err


@pytest.mark.parametrize(
    ("description", "prompt", "message"),
    [
        ("bow " * 300, "how?", "the description 'bow bow .* tokens long, of at most 128: shorten it"),
        ("bow", "how " * 300, "the prompt 'how how .* tokens long, of at most 255: shorten it"),
    ],
)
def test_a_text_that_a_pretrained_model_cannot_read_is_one_line(
    description, prompt, message, whole, monkeypatch, capsys
):
    words = ["--run", whole.out, "--method", METHOD, "--description", description, "--prompt", prompt]
    code, out, err = cli(zhyper, monkeypatch, capsys, "generate", *words)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert re.search(message, err)


def test_a_loaded_system_can_be_trained_on_for_many_steps(whole):
    system = Zhyper.load(whole.run, METHOD)
    for _ in range(2):
        system.score(["people"], [" bow"], [SAID])[0].sum().backward()
    assert all(weight.grad is None for weight in system.encoder.parameters())
