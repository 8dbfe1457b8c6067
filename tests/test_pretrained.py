"""Real weights: folders as the hub has them, read as transformers reads them, and an adapter written for peft.

All of it needs safetensors. What needs transformers or peft is skipped where they are absent, and so are two real
models unless the environment variables SMOLLM2 and MINILM name their folders.
"""

import json
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import BACKBONE, ENCODER, TEXTS, two_cultures
from torch import nn
from torch.nn import functional as F

import train
from data.batches import pad
from data.pretrained import BERT_SIZES, LLAMA_SIZES, read_tokenizer, write_adapter
from data.tokenizer import encode, train_tokenizer
from hyper import LowRank
from model import GPT, Encoder
from zhyper import Zhyper

safetensors = pytest.importorskip("safetensors.torch")

IDS = torch.randint(300, (2, 128), generator=torch.Generator().manual_seed(0))
LLAMA_NAMES = {module: f"self_attn.{module}_proj" for module in ("q", "k", "v", "o")}
LLAMA_NAMES |= {module: f"mlp.{module}_proj" for module in ("gate", "up", "down")}
BERT_NAMES = {
    "word": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "norm": "embeddings.LayerNorm",
    "blocks": "encoder.layer",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm2": "output.LayerNorm",
}
TYPES = "embeddings.token_type_embeddings.weight"
POSITIONS = [f"{start}embeddings.position_embeddings.weight" for start in ("", "bert.")]


def randomised(network: nn.Module) -> nn.Module:
    """The network far from its near-zero start, so that every path through it matters."""
    torch.manual_seed(0)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.3)
    return network.requires_grad_(False)


def edit(path: Path, content: dict | list | bytes | None) -> None:
    """Write a file of JSON or of weights, an object over what is there; what is None is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, list):
        path.write_text(json.dumps(content))
    else:
        is_json = path.suffix == ".json"
        known = {}
        if path.exists():
            known = json.loads(path.read_text()) if is_json else safetensors.load(path.read_bytes())
        content = {name: value for name, value in (known | content).items() if value is not None}
        path.write_bytes(json.dumps(content).encode() if is_json else safetensors.save(content, {"format": "pt"}))


def tensors_of(network: nn.Module, names: dict[str, str], start: str) -> dict[str, torch.Tensor]:
    """Its weights under the names that they have on the hub."""
    weights = {}
    for name, weight in network.state_dict().items():
        path = [names.get(part, part) for part in name.split(".")]
        weights["lm_head.weight" if "lm_head" in path else start + ".".join(path)] = weight
    return weights


def write_llama(folder: Path, gpt: GPT, shards: int = 1) -> Path:
    sizes = {theirs: getattr(gpt.config, ours) for ours, theirs in LLAMA_SIZES.items()}
    edit(folder / "config.json", sizes | {"model_type": "llama", "hidden_act": "silu", "eos_token_id": 1})
    tensors = tensors_of(gpt, LLAMA_NAMES, "model.")
    for shard in range(shards):
        name = "model.safetensors" if shards == 1 else f"model-0000{shard + 1}-of-0000{shards}.safetensors"
        edit(folder / name, {name: tensors[name] for name in sorted(tensors)[shard::shards]})
    return folder


def write_bert(folder: Path, start: str = "") -> Path:
    """A BERT with what real ones have besides: token types, and a pooler and a head that are of no use."""
    sizes = {theirs: getattr(ENCODER, ours) for ours, theirs in BERT_SIZES.items()}
    edit(folder / "config.json", sizes | {"model_type": "bert", "hidden_act": "gelu"})
    tensors = tensors_of(randomised(Encoder(ENCODER)), BERT_NAMES, start)
    tensors[start + TYPES] = torch.stack([torch.arange(32.0), torch.ones(32)])
    for unused in (f"{start}pooler.dense.weight", f"{start}embeddings.position_ids", "cls.predictions.bias"):
        tensors[unused] = torch.ones(9)
    edit(folder / "model.safetensors", tensors)
    return folder


@pytest.fixture
def llama(tmp_path) -> Path:
    return write_llama(tmp_path / "llama", randomised(GPT(BACKBONE)))


@pytest.fixture(params=["", "bert."])
def bert(request, tmp_path) -> Path:
    return write_bert(tmp_path / "bert", start=request.param)


# ---- a Llama in

IN_PARAMETERS = {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
LEFT_OUT = {"rope_theta": None, "tie_word_embeddings": None, "model_type": "mistral"}


@pytest.mark.parametrize(
    ("sizes", "settings", "shards", "more"),
    [
        ({}, {}, 1, "model.layers.0.self_attn.rotary_emb.inv_freq"),  # of no use
        ({"theta": 5e5}, IN_PARAMETERS, 1, "lm_head.weight"),  # nor is this, where the head is the embedding
        ({"tied": False}, LEFT_OUT, 2, None),
        ({"kv_heads": 2}, {"num_key_value_heads": None, "head_dim": 16}, 3, None),
    ],
)
def test_a_folder_gives_the_model_that_was_written_there(sizes, settings, shards, more, tmp_path):
    gpt = randomised(GPT(replace(BACKBONE, **sizes)))
    write_llama(tmp_path, gpt, shards)
    edit(tmp_path / "config.json", settings)
    if more:
        edit(tmp_path / "model.safetensors", {more: torch.ones(300, 32)})
    again = GPT.from_pretrained(str(tmp_path))
    assert again.config == gpt.config and again.pretrained_name == str(tmp_path.resolve())
    assert torch.allclose(again(IDS), gpt(IDS), atol=1e-5)


@pytest.mark.parametrize(
    ("config", "generation", "eos"),
    [([7, 9], [9, 3], (7, 9, 3)), (None, 3, (3,)), (5, None, (5,)), (0, [2, 0], (0, 2))],
)
def test_every_end_token_of_both_files_ends_a_text(config, generation, eos, llama):
    edit(llama / "config.json", {"eos_token_id": config})
    edit(llama / "generation_config.json", {"eos_token_id": generation})
    assert GPT.from_pretrained(str(llama)).config.eos == eos


UP, NORM, BIAS = "model.layers.0.mlp.up_proj.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.bias"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"model_type": "gpt2"}, "model_type is 'gpt2', and only 'llama' or 'mistral' is built here"),
        ("config.json", {"hidden_act": "gelu"}, "hidden_act is 'gelu', and only 'silu'"),
        ("config.json", {"rope_scaling": {"factor": 2.0}}, "rope_scaling is"),
        ("config.json", {"rope_parameters": {"rope_type": "llama3"}}, "rope_type is 'llama3'"),
        ("config.json", {"sliding_window": 4096}, "sliding_window is 4096"),
        ("config.json", {"attention_bias": True}, "attention_bias is True"),
        ("config.json", {"mlp_bias": True}, "mlp_bias is True"),
        ("config.json", {"head_dim": 32}, "head_dim is 32, and only None or 16 is built here: choose another model"),
        ("config.json", {"hidden_size": None}, "config.json has no hidden_size"),
        ("config.json", {"eos_token_id": None}, "config.json has no eos_token_id: write the id"),
        ("config.json", b"{", "config.json is damaged .*: download it again"),
        ("config.json", None, "config.json"),
        ("generation_config.json", b"{", "generation_config.json is damaged"),
        ("model.safetensors", b"\0" * 99, "model.safetensors is damaged .*: download it again"),
        ("model.safetensors", None, "no model.safetensors in .*: download the model again"),
        ("model.safetensors", {UP: None}, "incomplete or not built here: .*Missing key.*layers.0.up.weight"),
        ("model.safetensors", {BIAS: torch.zeros(32)}, "Unexpected key.*q.bias"),
        ("model.safetensors", {NORM: torch.zeros(33)}, "size mismatch for norm.weight"),
    ],
)
def test_what_is_missing_or_damaged_or_would_be_computed_wrongly_is_refused_by_name(file, change, message, llama):
    edit(llama / file, change)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        GPT.from_pretrained(str(llama))
    assert "\n" not in str(error.value) and str(llama) in str(error.value)


def test_an_unknown_name_and_a_missing_package_are_one_line(llama, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no folder or model nobody/nothing .*: give a folder") as error:
        GPT.from_pretrained("nobody/nothing")
    assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for use in (lambda: GPT.from_pretrained(str(llama)), lambda: write_adapter(llama / "adapter", {}, "base")):
        with pytest.raises(ValueError, match="pip install safetensors"):
            use()


# ---- a BERT in, and how one embedding is made of its states


def embed(encoder: Encoder, rows: list[list[int]]) -> torch.Tensor:
    mask = pad([[1] * len(row) for row in rows])
    return encoder(pad(rows), mask.bool())


@pytest.mark.parametrize("longest", [None, 50])
def test_an_encoder_is_read_with_the_type_of_its_tokens_and_the_longest_text(longest, bert):
    edit(bert / "sentence_bert_config.json", {"max_seq_length": longest})
    encoder = Encoder.from_pretrained(str(bert))
    assert encoder.config == replace(ENCODER, block_size=longest or 128)
    typed = randomised(Encoder(ENCODER))
    typed.position.weight += torch.arange(32.0)  # every token has type 0
    rows = [[7, 3, 9], [4, 1]]
    assert torch.allclose(embed(encoder, rows), embed(typed, rows), atol=1e-5)


CLS, MEAN, MAX = "pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_max_tokens"
MODULES = [{"type": f"sentence_transformers.models.{kind}", "path": f"2_{kind}"} for kind in ("Pooling", "Normalize")]


@pytest.mark.parametrize(
    ("pooling", "first_token"),
    [({CLS: True, MEAN: False}, True), ({"pooling_mode": "cls"}, True), ({CLS: False, MEAN: True}, False)],
)
def test_pooling_is_that_of_the_folder_which_modules_json_names(pooling, first_token, bert):
    edit(bert / "1_Pooling/config.json", {MAX: True})  # nobody names it
    assert Encoder.from_pretrained(str(bert)).config == ENCODER
    edit(bert / "2_Pooling/config.json", pooling | {"include_prompt": True})
    for modules in (MODULES[:1], MODULES):
        edit(bert / "modules.json", modules)
        expected = replace(ENCODER, first_token=first_token, normalize=len(modules) == 2)
        assert Encoder.from_pretrained(str(bert)).config == expected


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"model_type": "roberta"}, "model_type is 'roberta'"),
        ("config.json", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("2_Pooling/config.json", {MAX: True, MEAN: False}, f"pooling is '{MAX}', and only 'mean' or 'cls' is built"),
        ("2_Pooling/config.json", {"pooling_mode": "max"}, "pooling is 'max'"),
        ("2_Pooling/config.json", {CLS: True}, f"pooling is '{MEAN} and {CLS}'"),  # one behind the other
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "module is 'Dense'"),
        ("model.safetensors", {name: None for name in POSITIONS}, "Missing key.*position"),
    ],
)
def test_another_encoder_and_another_pooling_are_refused(file, change, message, bert):
    edit(bert / "modules.json", MODULES)
    edit(bert / "2_Pooling/config.json", {MEAN: True})
    edit(bert / file, change)
    with pytest.raises(ValueError, match=message):
        Encoder.from_pretrained(str(bert))


def test_the_tokenizer_of_a_real_model_neither_cuts_nor_pads_and_must_fit_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*tokenizer.json"):
        read_tokenizer(str(tmp_path), 300)
    tokenizer = train_tokenizer(TEXTS, 300)
    expected = encode(tokenizer, TEXTS, "text")
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    for vocab_size in (size, size + 9):  # a model may have more embeddings than are used
        assert encode(read_tokenizer(str(tmp_path), vocab_size), TEXTS, "text") == expected
    with pytest.raises(ValueError, match=f"has {size} ids, the model {size - 1}"):
        read_tokenizer(str(tmp_path), size - 1)
    edit(tmp_path / "tokenizer.json", b"{")
    with pytest.raises(ValueError, match="tokenizer.json is damaged"):
        read_tokenizer(str(tmp_path), 300)


# ---- against transformers


def real(variable: str) -> str:
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set")
    return os.environ[variable]


def write_random(folder: Path, kind: str, **sizes) -> Path:
    """A model of transformers on random weights, saved by transformers in bf16 and in several files."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes |= {"hidden_size": 72, "intermediate_size": 80, "initializer_range": 0.2, "vocab_size": 300}
    config = getattr(transformers, kind.partition("For")[0].removesuffix("Model") + "Config")
    config = config(**sizes, num_hidden_layers=2, max_position_embeddings=128)
    getattr(transformers, kind)(config).bfloat16().save_pretrained(folder, max_shard_size="100KB")
    return folder


GROUPED = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
UNTIED = {"num_attention_heads": 6, "rope_parameters": {"rope_theta": 5e5}}
MISTRAL = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": None}


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "sizes"), [("Llama", GROUPED), ("Llama", UNTIED), ("Mistral", MISTRAL), ("SMOLLM2", 0)]
)
def test_logits_are_those_of_transformers(kind, sizes, tmp_path):
    folder = write_random(tmp_path, f"{kind}ForCausalLM", **sizes) if sizes else real(kind)
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = theirs(IDS).logits
    assert (GPT.from_pretrained(str(folder))(IDS) - expected).abs().max() < 2e-4 * expected.std()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM", "MINILM"])
def test_embeddings_are_those_of_transformers_averaged_over_the_tokens(kind, tmp_path):
    folder = real(kind) if kind == "MINILM" else write_random(tmp_path, kind, num_attention_heads=4)
    transformers = pytest.importorskip("transformers")
    bert = transformers.BertModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows = [IDS[0, :n].tolist() for n in (3, 128, 17)]
    expected = torch.stack([bert(input_ids=torch.tensor([row])).last_hidden_state[0].mean(0) for row in rows])
    if kind == "MINILM":
        expected = F.normalize(expected, dim=-1)
    assert (embed(Encoder.from_pretrained(str(folder)), rows) - expected).abs().max() < 1e-5


# ---- an adapter out, and a whole job through real models


@torch.no_grad()
def test_peft_computes_what_merging_does_where_sites_differ_in_scale_and_rank(tmp_path):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    gpt = randomised(GPT(replace(BACKBONE, layers=12)))  # so that there is a layer 1 and a layer 11
    folder = write_llama(tmp_path / "llama", gpt)
    adapter = {}
    for layer in (1, 2, 11):
        for module, rank in (("q", 4), ("v", 1 + layer), ("down", 3)):
            d_in, d_out = BACKBONE.shapes[module]
            scale = 0.7 + 0.1 * len(adapter)
            adapter[layer, module] = LowRank(torch.randn(rank, d_in), torch.randn(d_out, rank) / 9, None, scale)
    write_adapter(tmp_path / "adapter", adapter, str(folder))
    with pytest.raises(ValueError, match="adapter exists: choose another folder"):
        write_adapter(tmp_path / "adapter", adapter, str(folder))
    base = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()(IDS).logits
    frozen = gpt(IDS)
    for site, update in adapter.items():
        gpt.linear(*site).weight += update.delta()
    assert (found - gpt(IDS)).abs().max() < 1e-3 and (found - frozen).abs().max() > 0.1


@pytest.fixture(params=["tiny", "real"])
def models(request, llama, tmp_path) -> dict[str, str]:
    """The folders of a backbone and of an encoder."""
    if request.param == "real":
        return {"backbone": real("SMOLLM2"), "encoder": real("MINILM")}
    bert = write_bert(tmp_path / "bert")
    for folder in (llama, bert):
        train_tokenizer([*two_cultures().documents, *TEXTS], 300).save(str(folder / "tokenizer.json"))
    return {"backbone": str(llama), "encoder": str(bert)}


@torch.no_grad()
def test_a_run_trains_through_frozen_models_and_peft_has_our_logits_from_an_export(models, tmp_path):
    lines = [json.dumps(record._asdict()) for record in two_cultures().records]
    (tmp_path / "two.jsonl").write_text("\n".join(lines))
    top = GPT.from_pretrained(models["backbone"]).config.layers - 1
    given = {"data": str(tmp_path / "two.jsonl"), "steps": 3, "lowest_layer": top, "descriptions_per_step": 2}
    read = Counter()

    def count(module, inputs, c) -> None:
        if isinstance(module, Encoder):
            read.update(str(row[mask].tolist()) for row, mask in zip(*inputs, strict=True))

    with torch.enable_grad(), nn.modules.module.register_module_forward_hook(count):
        results = train.run(tmp_path / "run", ["zhyper-diag"], "default", {**given, "device": "cpu", **models})
    assert set(read.values()) == {1}  # each statement once, in however many steps and texts it stands
    assert len(read) == 2 + 4 + 4  # one of each training text, two of each unseen one, and four random texts
    assert results["rows"]["zhyper-diag"]["encoder"] == 0 and "pretrain" not in results
    system = Zhyper.load(tmp_path / "run")
    saved = torch.load(tmp_path / "run/zhyper-diag.pt", weights_only=True)
    for part, kind in (("backbone", GPT), ("encoder", Encoder)):
        before = kind.from_pretrained(models[part]).state_dict()
        assert all(torch.equal(w, before[name]) for name, w in getattr(system, part).state_dict().items())
        assert saved[part] == {"pretrained_name": str(Path(models[part]).resolve())}  # no copy of its weights

    peft = pytest.importorskip("peft")
    assert system.hypernetwork.head_weight.any()
    system.hypernetwork.head_weight.normal_(std=0.1)
    system.export(TEXTS[0], str(tmp_path / "adapter"))
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"), dtype=torch.float32).eval()
    adapted = system.backbone(IDS, system.adapt(TEXTS[:1] * 2))
    assert (theirs(IDS).logits - adapted).abs().max() < 0.01 * adapted.std()
    assert (adapted - system.backbone(IDS)).abs().max() > 0.1 * adapted.std()
