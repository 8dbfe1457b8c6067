"""The decoder and the encoder, each against its mathematics written out slowly; then real weights.

What needs safetensors or transformers is skipped where it is absent. Two real models are read where the environment
variables SMOLLM2 and MINILM name their folders.
"""

import copy
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import BACKBONE, ENCODER, TEXTS
from torch import nn
from torch.nn import functional as F

import model
from data.batches import pad
from data.tokenizer import encode, read_tokenizer
from model import GPT, LLAMA_SIZES, MODULES, Block, Cache, Encoder, EncoderConfig, ModelConfig, rotary, rotate, sample
from zhyper import Zhyper

TINY = ModelConfig(50, block_size=24, layers=2, heads=4, kv_heads=2, width=16, inner=24, tied=False)
TINY_BERT = EncoderConfig(50, block_size=24, layers=1, heads=4, width=16, inner=24)


def randomised(network: nn.Module) -> nn.Module:
    """The network far from its near-zero start, so that every path through it matters, in float64."""
    torch.manual_seed(0)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.3)
    return network.double().requires_grad_(False)


@pytest.fixture
def gpt() -> GPT:
    return randomised(GPT(TINY))


# ---- the decoder


def test_rotary_positions_turn_pairs_of_numbers_as_complex_numbers():
    positions = torch.tensor([0, 1, 2, 30, 400])
    x = torch.randn(1, 2, 5, 8, dtype=torch.float64)
    turned = rotate(x, rotary(positions, 8, theta=100.0))
    speed = 100.0 ** -(torch.arange(4, dtype=torch.float64) / 4)
    left, right = x.chunk(2, dim=-1)
    expected = torch.complex(left, right) * torch.exp(1j * positions[:, None] * speed)
    assert torch.allclose(turned, torch.cat([expected.real, expected.imag], dim=-1), atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):  # in which 300 and 301 are one number
        cos, _ = rotary(torch.tensor([300, 301]), 8, theta=1e4)
    assert torch.allclose(cos[:, 0], torch.tensor([300.0, 301.0]).cos())


def test_a_block_is_llamas_written_out_token_by_token_and_head_by_head():
    block = randomised(Block(TINY, layer=0))
    x = torch.randn(1, 6, 16, dtype=torch.float64)
    rope = rotary(torch.arange(6), 4, theta=1e4)

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + TINY.eps).sqrt() * weight

    y = norm(x[0], block.input_layernorm.weight)
    heads = torch.zeros(6, 16, dtype=torch.float64)
    for h in range(4):
        part = slice(4 * h, 4 * h + 4)
        shared = slice(4 * (h // 2), 4 * (h // 2) + 4)  # two heads of queries read one of keys
        q = rotate(y @ block.q.weight[part].T, rope)
        k = rotate(y @ block.k.weight[shared].T, rope)
        v = y @ block.v.weight[shared].T
        for t in range(6):
            weights = (q[t] @ k[: t + 1].T / 2).softmax(-1)  # 2 is the root of a head's size
            heads[t, part] = weights @ v[: t + 1]
    y = x[0] + heads @ block.o.weight.T
    z = norm(y, block.post_attention_layernorm.weight)
    y = y + (F.silu(z @ block.gate.weight.T) * (z @ block.up.weight.T)) @ block.down.weight.T
    assert torch.allclose(block(x, {}, rope)[0], y, atol=1e-10)


def test_a_later_token_never_changes_an_earlier_logit(gpt):
    ids = torch.randint(50, (3, 12))
    changed = ids.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 50
    before, after = gpt(ids), gpt(changed)
    assert torch.allclose(before[:, :7], after[:, :7], atol=1e-10)
    assert not torch.allclose(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize("module", MODULES)
def test_an_update_is_added_to_the_output_of_its_own_site(gpt, module):
    ids = torch.randint(50, (2, 5))
    d_in, d_out = TINY.shapes[module]
    delta = torch.randn(d_out, d_in, dtype=torch.float64)
    adapted = gpt(ids, {(1, module): lambda x: x @ delta.T})
    changed = copy.deepcopy(gpt)
    changed.linear(1, module).weight += delta
    assert torch.allclose(adapted, changed(ids))
    assert not torch.allclose(adapted, gpt(ids))


def test_the_cache_gives_the_logits_of_the_whole_text_for_rows_of_different_lengths(gpt):
    ids = torch.randint(50, (3, 12))
    delta = torch.randn(3, 8, 16, dtype=torch.float64)  # each row has an update of its own
    updates = {(0, "k"): lambda x: x @ delta.mT}
    whole = gpt(ids, updates)
    read = torch.tensor([4, 1, 6])
    cache = Cache(padding=6 - read)
    new = torch.from_numpy(pad([row[:n].tolist() for row, n in zip(ids, read, strict=True)], left=True))
    rows = torch.arange(3)
    for more in (1, 2, 3, 0):  # how many tokens are read next
        x = gpt.run_layers(gpt.embed_tokens(new), updates, cache=cache)
        assert torch.allclose(gpt.logits(x)[:, -1], whole[rows, read - 1], atol=1e-5)
        new = ids[rows[:, None], read[:, None] + torch.arange(more)]
        read = read + more


def test_the_last_layer_computes_only_what_is_wanted_of_each_row(gpt):
    x, wanted = torch.randn(3, 12, 16, dtype=torch.float64), torch.tensor([[7, 3], [0, 11], [5, 4]])
    delta, lengths = torch.randn(3, 16, 16, dtype=torch.float64), []  # each row has an update of its own
    updates = {(1, module): lambda x: x @ delta.mT for module in ("q", "o")}
    for block in gpt.layers:
        block.down.register_forward_hook(lambda module, args, y: lengths.append(y.shape[1]))
    whole = gpt.run_layers(x, updates)
    found = gpt.run_layers(x, updates, wanted=wanted)
    assert torch.allclose(found, whole[torch.arange(3)[:, None], wanted], atol=1e-10)
    assert lengths == [12, 12, 12, 2]


def test_tokens_are_drawn_by_the_softmax_of_logits_over_temperature():
    logits = torch.tensor([0.5, 2.0, 1.0, -1.0])
    generator = torch.Generator().manual_seed(0)
    drawn = sample(logits.expand(40_000, -1), 0.7, generator)
    share = torch.bincount(drawn[:, 0], minlength=4) / 40_000
    assert torch.allclose(share, (logits / 0.7).softmax(0), atol=0.02)
    assert sample(logits[None], 0, generator).tolist() == [[1]]


# ---- the encoder


@pytest.mark.parametrize("first_token", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_an_embedding_is_berts_written_out_head_by_head(first_token, normalize):
    encoder = randomised(Encoder(replace(TINY_BERT, first_token=first_token, normalize=normalize)))
    ids = torch.randint(50, (1, 6))
    block = encoder.blocks[0]

    def norm(x, layer):
        variance = x.var(-1, correction=0, keepdim=True)
        return (x - x.mean(-1, keepdim=True)) / (variance + TINY_BERT.eps).sqrt() * layer.weight + layer.bias

    x = norm(encoder.word.weight[ids[0]] + encoder.position.weight[:6], encoder.norm)
    heads = []
    for h in range(4):
        part = slice(4 * h, 4 * h + 4)
        q, k, v = ((linear(x))[:, part] for linear in (block.query, block.key, block.value))
        heads.append((q @ k.T / 2).softmax(-1) @ v)
    x = norm(x + block.out(torch.cat(heads, dim=-1)), block.norm1)
    x = norm(x + block.down(F.gelu(block.up(x))), block.norm2)
    c = x[0] if first_token else x.mean(0)
    c = c / c.norm() if normalize else c
    assert torch.allclose(encoder(ids, torch.ones(1, 6, dtype=torch.bool))[0], c, atol=1e-10)


def embed(encoder: Encoder, rows: list[list[int]]) -> torch.Tensor:
    mask = pad([[True] * len(row) for row in rows])
    return encoder(torch.from_numpy(pad(rows)), torch.from_numpy(mask).bool())


def test_padding_does_not_change_an_embedding_and_the_order_of_words_does():
    encoder = randomised(Encoder(TINY_BERT))
    rows = [[7, 3, 9, 4], [7, 3, 9, 4, 1, 1, 2], [4, 9, 3, 7]]
    together = embed(encoder, rows)
    for c, row in zip(together, rows, strict=True):
        assert torch.allclose(c, embed(encoder, [row])[0], atol=1e-12)
    assert not torch.allclose(together[0], together[2], atol=1e-3)


# ---- real weights: folders as the hub keeps them

IDS = torch.randint(300, (2, 128), generator=torch.Generator().manual_seed(0))
BERT_SIZES = {"vocab_size": 300, "max_position_embeddings": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT_SIZES |= {"hidden_size": 32, "intermediate_size": 64, "layer_norm_eps": 1e-5}


def edit(path: Path, **values) -> None:
    """Write those values into a JSON file, over what it holds."""
    known = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(known | values))


def edit_weights(path: Path, **tensors) -> None:
    """Write those tensors into a file of weights, over what it holds; None removes one."""
    safetensors = pytest.importorskip("safetensors.torch")
    known = safetensors.load(path.read_bytes()) if path.exists() else {}  # bytes: the file is closed again
    known |= tensors
    safetensors.save_file({name: tensor for name, tensor in known.items() if tensor is not None}, path)


def write_llama(folder: Path, gpt: GPT) -> Path:
    sizes = {theirs: getattr(gpt.config, ours) for ours, theirs in LLAMA_SIZES.items()}
    edit(folder / "config.json", model_type="llama", hidden_act="silu", eos_token_id=1, **sizes)
    weights = gpt.state_dict()
    tensors = {theirs: weights[ours] for ours, theirs in model.llama_names(gpt).items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)  # older files have it; it is of no use
    edit_weights(folder / "model.safetensors", **tensors)
    return folder


@pytest.fixture
def llama(tmp_path) -> Path:
    return write_llama(tmp_path / "llama", randomised(GPT(BACKBONE)).float())


@pytest.fixture
def bert(tmp_path) -> Path:
    """A BERT with what real ones have besides: token types, and a pooler that is of no use."""
    encoder = randomised(Encoder(ENCODER)).float()
    folder = tmp_path / "bert"
    edit(folder / "config.json", model_type="bert", hidden_act="gelu", **BERT_SIZES)
    weights = encoder.state_dict()
    tensors = {f"bert.{theirs}": weights[ours] for ours, theirs in model.bert_names(encoder).items()}
    tensors["bert.embeddings.token_type_embeddings.weight"] = torch.zeros(2, 32)
    tensors["bert.pooler.dense.weight"] = torch.ones(32, 32)
    edit_weights(folder / "model.safetensors", **tensors)
    return folder


@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_gives_the_model_that_was_written_there(tied, tmp_path):
    gpt = randomised(GPT(replace(BACKBONE, tied=tied, theta=5e5))).float()
    again = GPT.from_pretrained(str(write_llama(tmp_path, gpt)))
    assert again.config == gpt.config and again.pretrained_name == str(tmp_path.resolve())
    assert torch.allclose(again(IDS), gpt(IDS))


def test_loading_takes_no_memory_but_that_of_the_files_and_none_of_it_stays_unfilled(llama, monkeypatch):
    devices = set()
    normal_ = nn.init.normal_

    def noted(tensor, *args, **options):
        devices.add(tensor.device.type)
        return normal_(tensor, *args, **options)

    monkeypatch.setattr(nn.init, "normal_", noted)
    gpt = GPT.from_pretrained(llama, torch.bfloat16)
    assert devices == {"meta"}  # where a random start costs nothing
    assert {(weight.device.type, weight.dtype) for weight in gpt.parameters()} == {("cpu", torch.bfloat16)}


def test_every_end_token_of_both_files_ends_a_text_and_the_first_is_trained(llama):
    edit(llama / "config.json", eos_token_id=[7, 9])
    edit(llama / "generation_config.json", eos_token_id=[9, 3])
    assert GPT.from_pretrained(llama).config.eos == (7, 9, 3)
    edit(llama / "config.json", eos_token_id=None)  # some files leave it to the other
    edit(llama / "generation_config.json", eos_token_id=3)
    assert GPT.from_pretrained(llama).config.eos == (3,)


UP, BIAS, NORM = "model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias", "model.norm.weight"


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
        ("config.json", {"head_dim": 32}, "head_dim is 32, and only None or 16"),
        ("config.json", {"tie_word_embeddings": False}, "lm_head.weight"),  # which is missing then
        ("config.json", {"hidden_size": "32"}, "damaged"),
        ("model.safetensors.index.json", {"weight_map": {UP: "part.safetensors"}}, "part.safetensors"),
        ("model.safetensors", {UP: None}, UP),
        ("model.safetensors", {BIAS: torch.zeros(32)}, f"nothing here uses the tensor {BIAS}"),
        ("model.safetensors", {NORM: torch.zeros(33)}, "norm.weight"),
    ],
)
def test_what_would_be_computed_wrongly_and_what_has_no_place_is_refused_by_name(file, change, message, llama):
    change_file = edit_weights if file == "model.safetensors" else edit
    change_file(llama / file, **change)
    with pytest.raises(ValueError, match=message):
        GPT.from_pretrained(llama)


def test_a_damaged_folder_or_an_unknown_name_is_one_line(llama):
    for name, content in (("model.safetensors", b"\0" * 99), ("config.json", b"{"), ("config.json", None)):
        (llama / name).unlink() if content is None else (llama / name).write_bytes(content)
        with pytest.raises(ValueError, match="incomplete, damaged or not built here") as error:
            GPT.from_pretrained(llama)
        assert "\n" not in str(error.value) and str(llama) in str(error.value)
    with pytest.raises(FileNotFoundError, match="no folder or model nobody/nothing") as error:
        GPT.from_pretrained("nobody/nothing")
    assert "\n" not in str(error.value)


# ---- a real BERT, and how one embedding is made of its states


def test_an_encoder_is_read_with_the_type_of_its_tokens_and_the_longest_text(bert):
    rows = [[7, 3, 9], [4, 1]]
    plain = embed(Encoder.from_pretrained(bert), rows)
    assert torch.allclose(plain, embed(randomised(Encoder(ENCODER)).float(), rows), atol=1e-5)
    types = torch.stack([torch.arange(32.0), torch.zeros(32)])  # all tokens of one text are of type 0
    edit_weights(bert / "model.safetensors", **{"bert.embeddings.token_type_embeddings.weight": types})
    edit(bert / "sentence_bert_config.json", max_seq_length=50)
    typed = Encoder.from_pretrained(bert)
    assert typed.config.block_size == 50 and not torch.allclose(embed(typed, rows), plain, atol=1e-2)


CLS, MEAN, NORMALIZE = "pooling_mode_cls_token", "pooling_mode_mean_tokens", "sentence_transformers.models.Normalize"


@pytest.mark.parametrize(
    ("pooling", "first_token"),
    [({CLS: True, MEAN: False}, True), ({"pooling_mode": "cls"}, True), ({CLS: False, MEAN: True}, False), ({}, False)],
)
def test_pooling_and_scaling_are_those_of_sentence_transformers(pooling, first_token, bert):
    edit(bert / "1_Pooling" / "config.json", embedding_dimension=32, include_prompt=True, **pooling)
    config = Encoder.from_pretrained(bert).config
    assert config.first_token == first_token and not config.normalize
    (bert / "modules.json").write_text(json.dumps([{"type": NORMALIZE}]))
    assert Encoder.from_pretrained(bert).config.normalize


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"model_type": "roberta"}, "model_type is 'roberta'"),
        ("config.json", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling is 'pooling_mode_max_tokens"),
        ("1_Pooling/config.json", {"pooling_mode": "max"}, "pooling is 'max'"),
        ("1_Pooling/config.json", {CLS: True, MEAN: True}, "pooling is "),  # one behind the other
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "module is 'Dense'"),
    ],
)
def test_another_encoder_and_another_pooling_are_refused(file, change, message, bert):
    if isinstance(change, list):
        (bert / file).write_text(json.dumps(change))
    else:
        edit(bert / file, **change)
    with pytest.raises(ValueError, match=message):
        Encoder.from_pretrained(bert)


# ---- against transformers


def random_model(folder: Path, kind: str, shards: int = 1, **sizes):
    """A model of transformers on random weights, saved by transformers in bf16."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes |= {"hidden_size": 72, "intermediate_size": 80, "initializer_range": 0.2}
    sizes |= {"vocab_size": 300, "num_hidden_layers": 2, "max_position_embeddings": 128}
    config = getattr(transformers, kind.partition("For")[0].removesuffix("Model") + "Config")
    built = getattr(transformers, kind)(config(**sizes)).bfloat16()
    built.save_pretrained(folder, max_shard_size="1GB" if shards == 1 else "200KB")
    assert len(list(folder.glob("*.safetensors"))) == shards
    return type(built).from_pretrained(folder, dtype=torch.float32).eval()


GROUPED = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
UNTIED = {"num_attention_heads": 6, "rope_parameters": {"rope_theta": 5e5}, "shards": 2}
MISTRAL = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": None}


@torch.no_grad()
@pytest.mark.parametrize(("kind", "sizes"), [("Llama", GROUPED), ("Llama", UNTIED), ("Mistral", MISTRAL)])
def test_logits_are_those_of_transformers_and_a_wrong_theta_or_layout_would_show(kind, sizes, tmp_path, monkeypatch):
    expected = random_model(tmp_path, f"{kind}ForCausalLM", **sizes)(IDS).logits

    def error() -> float:
        return (GPT.from_pretrained(tmp_path)(IDS) - expected).abs().max().item()

    assert expected.std() > 0.5 and error() < 1e-4
    theta = json.loads((tmp_path / "config.json").read_text())["rope_parameters"]["rope_theta"]
    edit(tmp_path / "config.json", rope_parameters=None, rope_theta=theta)  # as older files do
    assert error() < 1e-4
    edit(tmp_path / "config.json", rope_theta=theta * 1.1)
    assert error() > 0.01
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["rope_theta"]  # the oldest files say nothing where it is 10,000
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert (error() < 1e-4) == (theta == 10_000.0)
    edit(tmp_path / "config.json", rope_theta=theta)

    def rotate_neighbours(x, rope, rotate=model.rotate):
        return rotate(torch.cat([x[..., ::2], x[..., 1::2]], dim=-1), rope)

    monkeypatch.setattr(model, "rotate", rotate_neighbours)
    assert error() > 0.01


def averaged(bert, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of transformers' hidden states over the tokens that are not padding."""
    hidden = bert(input_ids=ids, attention_mask=mask).last_hidden_state
    return torch.stack([x[m.bool()].mean(0) for x, m in zip(hidden, mask, strict=True)])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM"])
def test_embeddings_are_those_of_transformers_averaged_over_the_tokens(kind, tmp_path):
    bert = random_model(tmp_path, kind, num_attention_heads=4)
    rows = [IDS[0, :n].tolist() for n in (3, 128, 17)]
    mask = torch.from_numpy(pad([[1] * len(row) for row in rows]))
    expected = averaged(getattr(bert, "bert", bert), torch.from_numpy(pad(rows)), mask)
    assert (embed(Encoder.from_pretrained(tmp_path), rows) - expected).abs().max() < 1e-5


def real(variable: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set")
    return Path(os.environ[variable])


@torch.no_grad()
def test_smollm2_has_the_logits_and_the_answers_that_it_has_in_transformers():
    folder = real("SMOLLM2")
    transformers = pytest.importorskip("transformers")
    backbone = GPT.from_pretrained(folder)
    system = Zhyper(read_tokenizer(folder, backbone.config.vocab_size), backbone)
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    (row,) = encode(system.tokenizer, [Path(model.__file__).read_text(encoding="utf-8")], "text")
    ids = torch.tensor([row[:200]])
    assert (backbone(ids) - theirs(ids).logits).abs().max() < 1e-3
    prompts = ["The capital of France is", "def fibonacci(n):\n", "In this land people greet with a bow. So they"]
    expected = []
    for prompt in prompts:
        ids = torch.tensor(encode(system.tokenizer, [prompt], "prompt"))
        written = theirs.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        expected.append(system.tokenizer.decode(written.tolist()))
    assert system.generate(prompts, max_new_tokens=24) == expected and "Paris" in expected[0]


@torch.no_grad()
def test_minilm_has_the_embeddings_that_it_has_in_transformers():
    folder = real("MINILM")
    transformers = pytest.importorskip("transformers")
    encoder = Encoder.from_pretrained(folder)
    assert encoder.config.block_size == 256 and encoder.config.normalize and not encoder.config.first_token
    sentences = [text + " again" * i for i in range(5) for text in TEXTS[:4]]
    c = embed(encoder, encode(read_tokenizer(folder, encoder.config.vocab_size), sentences, "text"))
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
    bert = transformers.BertModel.from_pretrained(folder).eval()
    expected = averaged(bert, tokens["input_ids"], tokens["attention_mask"])
    assert (c - F.normalize(expected, dim=-1)).abs().max() < 1e-5
