"""Real weights: folders as the hub has them, read as transformers reads them, and an adapter written for peft.

What needs safetensors, transformers or peft is skipped without them, and two real models without their folders'
paths in the environment variables SMOLLM2 and MINILM.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import BACKBONE, ENCODER, TEXTS, two_cultures
from torch import nn
from torch.nn import functional as F

import train
from data.pretrained import BERT_SIZES, LLAMA_SIZES, read_tokenizer, write_adapter
from data.tokenizer import encode, train_tokenizer
from hyper import LowRank
from model import GPT, Encoder
from zhyper import Zhyper

safetensors = pytest.importorskip("safetensors.torch")

IDS = torch.randint(300, (2, 128), generator=torch.Generator().manual_seed(0))
LLAMA_NAMES = {module: f"self_attn.{module}_proj" for module in ("q", "k", "v", "o")}
LLAMA_NAMES |= {module: f"mlp.{module}_proj" for module in ("gate", "up", "down")}
BERT_NAMES = {name: f"attention.self.{name}" for name in ("query", "key", "value")} | {
    "word": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "norm": "embeddings.LayerNorm",
    "blocks": "encoder.layer",
    "out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm2": "output.LayerNorm",
}
TYPES = "embeddings.token_type_embeddings.weight"
CLS, MEAN, MAX = "pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_max_tokens"
MODULES = [{"type": f"sentence_transformers.models.{kind}", "path": f"2_{kind}"} for kind in ("Pooling", "Normalize")]
UP, NORM, BIAS = "model.layers.0.mlp.up_proj.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.bias"


def edit(path: Path, content: dict) -> None:
    """Write a file of JSON or of weights over what is there; what is None is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_json = path.suffix == ".json"
    if path.exists():
        content = (json.loads if is_json else safetensors.load)(path.read_bytes()) | content
    content = {name: value for name, value in content.items() if value is not None}
    path.write_bytes(json.dumps(content).encode() if is_json else safetensors.save(content, {"format": "pt"}))


def write_model(folder: Path, network: GPT | Encoder, start: str, shards: int = 1) -> None:
    """A network far from its near-zero start, as the hub would have it; most names of weights have that start."""
    torch.manual_seed(0)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.3).requires_grad_(False)
    settings = {"model_type": "llama", "hidden_act": "silu", "eos_token_id": 1}
    names = LLAMA_NAMES
    sizes = LLAMA_SIZES
    if isinstance(network, Encoder):
        settings = {"model_type": "bert", "hidden_act": "gelu"}
        names = BERT_NAMES
        sizes = BERT_SIZES
    settings |= {theirs: getattr(network.config, ours) for ours, theirs in sizes.items()}
    edit(folder / "config.json", settings)
    for number, (name, weight) in enumerate(network.state_dict().items()):
        theirs = start + ".".join(names.get(part, part) for part in name.split("."))
        shard = f"-0000{number % shards + 1}-of-0000{shards}" if shards > 1 else ""
        edit(folder / f"model{shard}.safetensors", {theirs.replace("model.lm_head", "lm_head"): weight})


@pytest.fixture
def llama(tmp_path) -> Path:
    write_model(tmp_path / "llama", GPT(BACKBONE), "model.")
    return tmp_path / "llama"


@pytest.fixture
def bert(tmp_path) -> Path:
    write_model(tmp_path / "bert", Encoder(ENCODER), "")
    edit(tmp_path / "bert/2_Pooling/config.json", {MEAN: True})
    return tmp_path / "bert"


NEWER = {"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "eos_token_id": [7, 9]}
NO_GROUPS = {"num_key_value_heads": None, "head_dim": 16, "eos_token_id": 0}
OLDER = {"rope_theta": None, "tie_word_embeddings": None, "model_type": "mistral", "eos_token_id": None}


@pytest.mark.parametrize(
    ("sizes", "settings", "generation", "shards", "more"),
    [
        ({"eos": (1,)}, {}, None, 1, "model.layers.0.self_attn.rotary_emb.inv_freq"),  # of no use
        ({"eos": (7, 9, 3), "theta": 5e5}, NEWER, [9, 3], 1, "lm_head.weight"),
        ({"eos": (3,), "tied": False}, OLDER, 3, 2, None),
        ({"eos": (0, 2), "kv_heads": 2}, NO_GROUPS, [2, 0], 3, None),
    ],
)
def test_a_folder_gives_the_llama_that_was_written_there(sizes, settings, generation, shards, more, tmp_path):
    gpt = GPT(replace(BACKBONE, **sizes))
    write_model(tmp_path, gpt, "model.", shards)
    edit(tmp_path / "config.json", settings)
    edit(tmp_path / "generation_config.json", {"eos_token_id": generation})  # may name more tokens that end a text
    if more:
        edit(tmp_path / "model.safetensors", {more: torch.ones(300, 32)})
    again = GPT.from_pretrained(str(tmp_path))
    assert again.config == gpt.config and again.pretrained_name == str(tmp_path.resolve())
    assert torch.allclose(again(IDS), gpt(IDS), atol=1e-5)


@pytest.mark.parametrize(("start", "longest"), [("bert.", None), ("", 50)])
def test_a_folder_gives_the_bert_with_the_type_of_its_tokens_and_the_longest_text(start, longest, tmp_path):
    encoder = Encoder(ENCODER)
    write_model(tmp_path, encoder, start)
    unused = (f"{start}pooler.dense.weight", f"{start}embeddings.position_ids", "cls.predictions.bias")
    edit(tmp_path / "model.safetensors", {name: torch.ones(9) for name in unused})
    edit(tmp_path / "model.safetensors", {start + TYPES: torch.stack([torch.arange(32.0), torch.ones(32)])})
    edit(tmp_path / "sentence_bert_config.json", {"max_seq_length": longest})
    again = Encoder.from_pretrained(str(tmp_path))
    assert again.config == replace(ENCODER, block_size=longest or 128)
    encoder.position.weight += torch.arange(32.0)  # every token has type 0
    ids = IDS[:, :30]
    mask = torch.arange(30) < torch.tensor([[30], [20]])
    assert torch.allclose(again(ids, mask), encoder(ids, mask), atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "first_token"),
    [({CLS: True, MEAN: False}, True), ({"pooling_mode": "cls"}, True), ({CLS: False, MEAN: True}, False)],
)
def test_pooling_is_that_of_the_folder_which_modules_json_names(pooling, first_token, bert):
    edit(bert / "1_Pooling/config.json", {MAX: True})  # nobody names it
    assert Encoder.from_pretrained(str(bert)).config == ENCODER
    edit(bert / "2_Pooling/config.json", {MEAN: None, "include_prompt": True} | pooling)
    for modules in (MODULES[:1], MODULES):
        (bert / "modules.json").write_text(json.dumps(modules))
        expected = replace(ENCODER, first_token=first_token, normalize=len(modules) == 2)
        assert Encoder.from_pretrained(str(bert)).config == expected


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("llama/config.json", {"model_type": "gpt2"}, "model_type is 'gpt2', and only 'llama' or 'mistral' is built"),
        ("llama/config.json", {"hidden_act": "gelu"}, "hidden_act is 'gelu', and only 'silu'"),
        ("llama/config.json", {"rope_scaling": {"factor": 2.0}}, "rope_scaling is"),
        ("llama/config.json", {"rope_parameters": {"rope_type": "llama3"}}, "rope_type is 'llama3'"),
        ("llama/config.json", {"sliding_window": 4096}, "sliding_window is 4096"),
        ("llama/config.json", {"attention_bias": True}, "attention_bias is True"),
        ("llama/config.json", {"mlp_bias": True}, "mlp_bias is True"),
        ("llama/config.json", {"head_dim": 32}, "head_dim is 32, and only None or 16 is built here: choose another"),
        ("llama/config.json", {"hidden_size": None}, "config.json has no hidden_size"),
        ("llama/config.json", {"eos_token_id": None}, "config.json has no eos_token_id: write the id"),
        ("llama/config.json", b"{", "config.json is damaged .*: download it again"),
        ("llama/config.json", None, "config.json"),
        ("llama/generation_config.json", b"{", "generation_config.json is damaged"),
        ("llama/model.safetensors", b"\0" * 99, "model.safetensors is damaged .*: download it again"),
        ("llama/model.safetensors", None, "no model.safetensors in .*: download the model again"),
        ("llama/model.safetensors", {UP: None}, "incomplete or not built here: .*Missing key.*layers.0.up.weight"),
        ("llama/model.safetensors", {BIAS: torch.zeros(32)}, "Unexpected key.*q.bias"),
        ("llama/model.safetensors", {NORM: torch.zeros(33)}, "size mismatch for norm.weight"),
        ("bert/config.json", {"model_type": "roberta"}, "model_type is 'roberta'"),
        ("bert/config.json", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("bert/model.safetensors", {"embeddings.position_embeddings.weight": None}, "Missing key.*position"),
        ("bert/modules.json", b'[{"type": "models.Dense"}]', "module is 'Dense'"),
        ("bert/2_Pooling/config.json", {"pooling_mode": "max"}, "pooling is 'max'"),
        ("bert/2_Pooling/config.json", {CLS: True}, f"pooling is '{MEAN} and {CLS}'"),  # one behind the other
        ("bert/2_Pooling/config.json", {MAX: True, MEAN: False}, f"pooling is '{MAX}', and only 'mean' or 'cls'"),
    ],
)
def test_what_is_missing_or_damaged_or_would_be_computed_wrongly_is_refused_by_name(file, change, message, llama, bert):
    (bert / "modules.json").write_text(json.dumps(MODULES))
    path = llama.parent / file
    if isinstance(change, dict):
        edit(path, change)
    elif change:
        path.write_bytes(change)
    else:
        path.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        if file.startswith("llama"):
            GPT.from_pretrained(str(llama))
        Encoder.from_pretrained(str(bert))
    assert "\n" not in str(error.value) and str(llama.parent) in str(error.value)


def test_a_name_of_the_hub_is_kept_and_an_unknown_one_or_a_missing_package_is_one_line(llama, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no folder or model nobody/nothing .*: give a folder") as error:
        GPT.from_pretrained("nobody/nothing")
    assert "\n" not in str(error.value)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(llama))
    assert GPT.from_pretrained("nobody/nothing").pretrained_name == "nobody/nothing"
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for use in (lambda: GPT.from_pretrained(str(llama)), lambda: write_adapter(llama / "adapter", {}, "base")):
        with pytest.raises(ValueError, match="pip install safetensors"):
            use()


def test_the_tokenizer_of_a_real_model_neither_cuts_nor_pads_and_must_fit_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*tokenizer.json"):
        read_tokenizer(str(tmp_path), 300)
    tokenizer = train_tokenizer(TEXTS, 300)
    expected = encode(tokenizer, TEXTS, "text")
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    assert encode(read_tokenizer(str(tmp_path), size), TEXTS, "text") == expected
    with pytest.raises(ValueError, match=f"has {size} ids, the model {size - 1}"):
        read_tokenizer(str(tmp_path), size - 1)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer.json is damaged"):
        read_tokenizer(str(tmp_path), 300)


def real(variable: str) -> str:
    return os.environ.get(variable) or pytest.skip(f"{variable} is not set")


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("LlamaForCausalLM", {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}),
        ("LlamaForCausalLM", {"num_attention_heads": 6, "rope_parameters": {"rope_theta": 5e5}}),
        ("MistralForCausalLM", {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": None}),
        ("BertForMaskedLM", {"num_attention_heads": 4}),
        ("SMOLLM2", None),
        ("MINILM", None),
    ],
)
def test_logits_and_embeddings_are_those_of_transformers(kind, sizes, tmp_path):
    transformers = pytest.importorskip("transformers")
    if sizes:  # a model of random weights, which transformers saves in bf16 and in several files
        sizes |= {"hidden_size": 72, "intermediate_size": 80, "initializer_range": 0.2, "vocab_size": 300}
        config = getattr(transformers, f"{kind.partition('For')[0]}Config")
        config = config(**sizes, num_hidden_layers=2, max_position_embeddings=128)
        getattr(transformers, kind)(config).bfloat16().save_pretrained(tmp_path, max_shard_size="100KB")
    folder = str(tmp_path) if sizes else real(kind)
    if kind in ("BertForMaskedLM", "MINILM"):
        theirs = transformers.BertModel.from_pretrained(folder, dtype=torch.float32).eval()
        expected = theirs(input_ids=IDS).last_hidden_state.mean(1)
        encoder = Encoder.from_pretrained(folder)
        assert encoder.config.normalize == (kind == "MINILM")
        found = encoder(IDS, torch.ones(2, 128, dtype=torch.bool))
        expected = F.normalize(expected, dim=-1) if encoder.config.normalize else expected
    else:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        expected = theirs(IDS).logits
        found = GPT.from_pretrained(folder)(IDS)
    assert (found - expected).abs().max() < 2e-4 * expected.std()


@torch.no_grad()
def test_peft_computes_what_merging_does_where_sites_differ_in_scale_and_rank(tmp_path):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    gpt = GPT(replace(BACKBONE, layers=12))  # so that there is a layer 1 and a layer 11
    write_model(tmp_path / "llama", gpt, "model.")
    frozen = gpt(IDS)
    loras = {}
    for layer in (1, 2, 11):
        for module, rank in (("q", 4), ("v", 1 + layer), ("down", 3)):
            d_in, d_out = BACKBONE.shapes[module]
            update = LowRank(torch.randn(rank, d_in), torch.randn(d_out, rank) / 9, None, 0.7 + 0.1 * len(loras))
            loras[layer, module] = update.A, update.B, update.scale
            gpt.linear(layer, module).weight += update.delta()
    write_adapter(tmp_path / "adapter", loras, "base")
    with pytest.raises(ValueError, match="adapter exists: choose another folder"):
        write_adapter(tmp_path / "adapter", loras, "base")
    base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.float32)
    found = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()(IDS).logits
    assert (found - gpt(IDS)).abs().max() < 1e-3 and (found - frozen).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("size", ["small", "real"])
def test_a_run_trains_through_frozen_models_and_peft_has_our_logits_from_an_export(size, llama, bert, tmp_path):
    models = {"backbone": str(llama), "encoder": str(bert)}
    for folder in models.values():
        train_tokenizer([*two_cultures().documents, *TEXTS], 300).save(f"{folder}/tokenizer.json")
    if size == "real":
        models = {"backbone": real("SMOLLM2"), "encoder": real("MINILM")}
    lines = [json.dumps(record._asdict()) for record in two_cultures().records]
    (tmp_path / "two.jsonl").write_text("\n".join(lines))
    backbone = GPT.from_pretrained(models["backbone"])
    encoder = Encoder.from_pretrained(models["encoder"])
    given = {"data": str(tmp_path / "two.jsonl"), "steps": 3, "descriptions_per_step": 2, "device": "cpu", **models}
    given["lowest_layer"] = backbone.config.layers - 1
    with torch.enable_grad():
        results = train.run(tmp_path / "run", ["zhyper-diag"], "default", given)
    assert results["rows"]["zhyper-diag"]["encoder"] == 0 and "pretrain" not in results
    system = Zhyper.load(tmp_path / "run")
    for before, after in ((backbone, system.backbone), (encoder, system.encoder)):
        for name, weight in after.state_dict().items():
            assert torch.equal(weight, before.state_dict()[name])

    peft = pytest.importorskip("peft")
    for B in system.hypernetwork.B.values():
        assert B.any()
        B.normal_(std=0.02)
    system.export(TEXTS[0], str(tmp_path / "adapter"))
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"), dtype=torch.float32).eval()
    adapted = system.backbone(IDS, system.adapt(TEXTS[:1] * 2))
    assert (theirs(IDS).logits - adapted).abs().max() < 0.01 * adapted.std()
    assert (adapted - system.backbone(IDS)).abs().max() > 0.1 * adapted.std()
