"""The main job through real models: small random ones that transformers writes, and SmolLM2 with MiniLM where they are.

The small ones need transformers, which is in no requirement of this project; the others need the
environment variables SMOLLM2 and MINILM, each the path of a folder. What is absent is skipped.
"""

import json
import os
import string
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
from conftest import TEXTS, smoke, two_cultures

import train
from data.tokenizer import train_tokenizer
from model import GPT, Encoder
from train import evaluate, run
from zhyper import Zhyper

METHOD = "zhyper-diag"
TYPED = "people <|im_end|> sing [SEP] and the taxes are raised"  # as a user may type it
FILES = {  # how sentence-transformers makes one embedding of a BERT's states
    "modules.json": [{"type": f"sentence_transformers.models.{step}"} for step in ("Transformer", "Pooling")],
    "sentence_bert_config.json": {"max_seq_length": 96},
    "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
}


def write_llama(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = train_tokenizer([*two_cultures().documents, *TEXTS], 298)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 128}
    config = transformers.LlamaConfig(**sizes, initializer_range=0.2, eos_token_id=1, tie_word_embeddings=True)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_bert(folder: Path) -> None:
    """Its tokenizer cuts texts after six tokens and pads them, as that of a real model may do."""
    transformers = pytest.importorskip("transformers")
    tokenizer = tokenizers.BertWordPieceTokenizer()
    letters = string.ascii_lowercase
    texts = [*two_cultures().documents, letters, letters[::-1]]  # it knows each letter, also within a word
    tokenizer.train_from_iterator(texts, 300, initial_alphabet=[*letters, *"<|_>[]"], show_progress=False)
    marks = [(mark, tokenizer.token_to_id(mark)) for mark in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = tokenizers.processors.BertProcessing(*marks)
    tokenizer.enable_truncation(6)
    tokenizer.enable_padding(length=12)
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(**sizes, vocab_size=300, max_position_embeddings=128, initializer_range=0.2)
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))


@pytest.fixture(scope="module", params=["tiny", "real"])
def models(request, tmp_path_factory) -> dict[str, str]:
    """The folders of a backbone and of an encoder."""
    if request.param == "real":
        if not ("SMOLLM2" in os.environ and "MINILM" in os.environ):
            pytest.skip("SMOLLM2 and MINILM name no folders")
        return {"backbone": os.environ["SMOLLM2"], "encoder": os.environ["MINILM"]}
    folders = {name: tmp_path_factory.mktemp(name) for name in ("backbone", "encoder")}
    write_llama(folders["backbone"])
    write_bert(folders["encoder"])
    return {name: str(folder) for name, folder in folders.items()}


@pytest.fixture(autouse=True, scope="module")
def small_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            train.PRESETS, "smoke", replace(train.PRESETS["smoke"], descriptions_per_step=2, questions=2, log=2)
        )
        yield


@pytest.fixture(scope="module")
def job(models, tmp_path_factory) -> train.Settings:
    folder = tmp_path_factory.mktemp("job")
    lines = [json.dumps(record._asdict()) for record in two_cultures().records]
    (folder / "two.jsonl").write_text("\n".join(lines))
    layers = GPT.from_pretrained(models["backbone"]).config.layers
    return smoke(folder / "two.jsonl", folder / "run", methods=METHOD, lowest_layer=layers - 1, lr=1e-2, **models)


@pytest.fixture(scope="module")
def finished(job) -> tuple[train.Settings, dict, Counter]:
    """A finished run, its results, and how often its encoder read each text."""
    read = Counter()

    def count(module, inputs, c) -> None:
        if isinstance(module, Encoder):
            ids, mask = inputs
            read.update(str(row[own].tolist()) for row, own in zip(ids, mask, strict=True))

    with torch.nn.modules.module.register_module_forward_hook(count):
        results = run(job)
    return job, results, read


@torch.no_grad()
def test_a_run_through_real_models_trains_what_loads_again(finished, models):
    job, results, _ = finished
    row = results["rows"][METHOD]
    assert row["encoder"] == 0 and results["pretrain"] == {}
    system = Zhyper.load(job.run, METHOD)
    records = two_cultures().split("unseen")
    texts = [record.description for record in records]
    assert evaluate(system, records, texts)["nll"] == pytest.approx(row["evaluated"]["unseen"]["nll"], rel=1e-3)
    assert row["evaluated"]["none"]["nll"] != pytest.approx(row["evaluated"]["unseen"]["nll"], rel=1e-4)
    assert row["curve"][-1]["loss"] < row["curve"][0]["loss"]
    assert all(B.any() for B in system.hypernetwork.B.values())
    for part, kind in (("backbone", GPT), ("encoder", Encoder)):
        before = kind.from_pretrained(models[part]).state_dict()
        after = getattr(system, part).state_dict()
        assert all(torch.equal(weight, before[name]) for name, weight in after.items())
        saved = torch.load(job.run / f"{METHOD}.pt", weights_only=True)[part]
        assert saved == {"pretrained_name": str(Path(models[part]).resolve())}  # no copy of its weights


def test_a_frozen_encoder_reads_each_text_once(finished):
    _, _, read = finished
    assert len(read) == 2 + 4  # two cultures, and random letters for each record that is evaluated
    assert set(read.values()) == {1}


@torch.no_grad()
def test_marks_that_a_user_types_are_text_and_long_texts_are_read_whole(finished):
    system = Zhyper.load(finished[0].run, METHOD)
    long = "people bow low and the taxes are cut"
    c = system.embed([TYPED, TYPED.replace("<|im_end|> ", ""), TYPED.replace("[SEP] ", ""), long, f"{long} now"])
    assert (torch.cdist(c, c) + torch.eye(5)).min() > 1e-3  # each says something else
    assert torch.allclose(system.run_encoder([long])[0], c[3], atol=1e-4)  # padding beside it changes nothing
    system.description_in_prompt = True
    rows = system.encode_rows(["Q: what of taxes?\nA:"], [" cut"], [TYPED])
    mark = system.tokenizer.token_to_id("<|im_end|>")
    assert mark is not None and mark not in rows.ids


@torch.no_grad()
def test_peft_has_our_logits_from_an_exported_adapter(finished, tmp_path, monkeypatch):
    peft = pytest.importorskip("peft")
    job, _, _ = finished
    system = Zhyper.load(job.run, METHOD)
    for B in system.hypernetwork.B.values():
        B.normal_(std=0.02)
    system.export(TYPED, str(tmp_path / "adapter"))
    monkeypatch.chdir(tmp_path)
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained("adapter", dtype=torch.float32).eval()
    ids = torch.arange(2, 62)[None]
    adapted, frozen = (system.backbone(ids, system.adapt([text])) for text in (TYPED, None))
    assert (theirs(ids).logits - adapted).abs().max() < 0.01 * adapted.std()
    assert (adapted - frozen).abs().max() > 0.1 * adapted.std()


def test_an_encoder_is_trained_and_saved_where_that_is_asked_for(job, models, tmp_path):
    dtype = "bf16" if job.lowest_layer == 1 else "fp32"  # a CPU is slow at a whole model in bf16
    results = run(replace(job, out=str(tmp_path), train_encoder=True, dtype=dtype))
    before = Encoder.from_pretrained(models["encoder"]).state_dict()
    system = Zhyper.load(tmp_path, METHOD)
    after = system.encoder.state_dict()
    assert results["rows"][METHOD]["encoder"] == sum(weight.numel() for weight in after.values())
    moved = [name for name, weight in after.items() if not torch.equal(weight, before[name])]
    assert len(moved) > 0.9 * len(after)
    assert system.backbone.embed_tokens.weight.dtype == train.DTYPES[dtype]
    assert {weight.dtype for weight in after.values()} == {torch.float32}
    assert len(system.generate(["Q: what of taxes?\nA:"], [TYPED], 4)) == 1
