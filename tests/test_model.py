"""The decoder and the encoder, each against its mathematics written out slowly."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from data.batches import pad
from model import GPT, MODULES, Encoder, EncoderConfig, ModelConfig, split_heads

TINY = ModelConfig(50, block_size=24, layers=3, heads=4, kv_heads=2, width=16, inner=24, tied=False)
TINY_BERT = EncoderConfig(50, block_size=24, layers=1, heads=4, width=16, inner=24)
IDS = torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(0))


def randomised(network: nn.Module) -> nn.Module:
    """The network far from its near-zero start, so that every path through it matters, in float64."""
    torch.manual_seed(0)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.3)
    return network.double().requires_grad_(False)


@pytest.fixture
def gpt() -> GPT:
    return randomised(GPT(TINY))


@pytest.mark.parametrize(("kv_heads", "tied"), [(1, False), (2, True), (4, False)])
def test_logits_are_llamas_written_out_token_by_token_and_head_by_head(kv_heads, tied):
    gpt = randomised(GPT(replace(TINY, layers=1, kv_heads=kv_heads, tied=tied, theta=100.0)))
    (block,) = gpt.layers
    angles = torch.arange(12)[:, None] * torch.tensor([1.0, 0.1])  # 100^0 and 100^(-1/2), for a head of 4 numbers

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + TINY.eps).sqrt() * weight

    def turn(x):  # numbers i and i + 2 are a point of a plane, which turns with the position
        left, right = x.chunk(2, dim=-1)
        turned = torch.complex(left, right) * torch.exp(1j * angles)
        return torch.cat([turned.real, turned.imag], dim=-1)

    x = gpt.embed_tokens.weight[IDS[0]]
    y = norm(x, block.input_layernorm.weight)
    heads = torch.zeros(12, 16, dtype=torch.float64)
    for h in range(4):
        part = slice(4 * h, 4 * h + 4)
        group = h // (4 // kv_heads)  # heads of queries that stand together read one of keys
        shared = slice(4 * group, 4 * group + 4)
        q = turn(y @ block.q.weight[part].T)
        k = turn(y @ block.k.weight[shared].T)
        v = y @ block.v.weight[shared].T
        for t in range(12):
            weights = (q[t] @ k[: t + 1].T / 2).softmax(-1)  # 2 is the root of a head's size
            heads[t, part] = weights @ v[: t + 1]
    x = x + heads @ block.o.weight.T
    y = norm(x, block.post_attention_layernorm.weight)
    x = x + (F.silu(y @ block.gate.weight.T) * (y @ block.up.weight.T)) @ block.down.weight.T
    head = gpt.embed_tokens if tied else gpt.lm_head
    assert torch.allclose(gpt(IDS)[0], norm(x, gpt.norm.weight) @ head.weight.T, atol=1e-5)
    assert hasattr(gpt, "lm_head") != tied
    assert split_heads(x[None], 4).is_contiguous()  # Apple's GPUs attend wrongly to what is not


def test_a_row_is_alone_what_it_is_in_a_batch_and_a_later_token_never_changes_an_earlier_logit(gpt):
    deltas = torch.randn(3, 16, 16, dtype=torch.float64)  # each row has an update of its own
    together = gpt(IDS, {(1, "q"): lambda x: x @ deltas.mT})
    changed = torch.cat([IDS[:, :7], (IDS[:, 7:] + 1) % 50], dim=1)
    after = gpt(changed, {(1, "q"): lambda x: x @ deltas.mT})
    assert torch.allclose(together[:, :7], after[:, :7], atol=1e-10)
    assert not torch.allclose(together[:, 7:], after[:, 7:])
    for row in range(3):
        alone = gpt(IDS[row : row + 1, : 5 + row], {(1, "q"): lambda x, delta=deltas[row]: x @ delta.T})
        assert torch.allclose(together[row, : 5 + row], alone[0], atol=1e-10)


@pytest.mark.parametrize("module", MODULES)
def test_an_update_is_added_to_the_output_of_its_own_site(gpt, module):
    d_in, d_out = TINY.shapes[module]
    delta = torch.randn(d_out, d_in, dtype=torch.float64)
    adapted = gpt(IDS, {(1, module): lambda x: x @ delta.T})
    changed = copy.deepcopy(gpt)
    changed.linear(1, module).weight += delta
    assert torch.allclose(adapted, changed(IDS))
    assert not torch.allclose(adapted, gpt(IDS))


def test_layers_can_be_run_in_two_parts_and_the_last_only_at_some_positions(gpt):
    x = torch.randn(3, 12, 16, dtype=torch.float64)
    positions = torch.tensor([[7, 3], [0, 11], [5, 4]])
    deltas = torch.randn(3, 16, 16, dtype=torch.float64)
    updates = {(layer, module): lambda x: x @ deltas.mT for layer in (1, 2) for module in ("q", "o")}
    whole = gpt.run_layers(x, updates)
    lengths = []
    for block in gpt.layers:
        block.down.register_forward_hook(lambda module, args, y: lengths.append(y.shape[1]))
    lower = gpt.run_layers(x, updates, end=2)
    found = gpt.run_layers(lower, updates, start=2, positions=positions)
    assert torch.allclose(found, whole[torch.arange(3)[:, None], positions], atol=1e-10)
    assert lengths == [12, 12, 2]


@pytest.mark.parametrize(("first_token", "normalize"), [(False, False), (False, True), (True, False)])
def test_embeddings_are_berts_written_out_head_by_head_and_padding_changes_none(first_token, normalize):
    encoder = randomised(Encoder(replace(TINY_BERT, first_token=first_token, normalize=normalize)))
    (block,) = encoder.blocks

    def norm(x, layer):
        variance = x.var(-1, correction=0, keepdim=True)
        return (x - x.mean(-1, keepdim=True)) / (variance + TINY_BERT.eps).sqrt() * layer.weight + layer.bias

    rows = [[7, 3, 9, 4], [7, 3, 9, 4, 1, 1, 2], [4, 9, 3, 7]]
    embeddings = encoder(pad(rows), pad([[1] * len(row) for row in rows]).bool())
    for row, embedding in zip(rows, embeddings, strict=True):
        x = norm(encoder.word.weight[row] + encoder.position.weight[: len(row)], encoder.norm)
        heads = []
        for h in range(4):
            part = slice(4 * h, 4 * h + 4)
            q = block.query(x)[:, part]
            k = block.key(x)[:, part]
            v = block.value(x)[:, part]
            heads.append((q @ k.T / 2).softmax(-1) @ v)
        x = norm(x + block.out(torch.cat(heads, dim=-1)), block.norm1)
        x = norm(x + block.down(F.gelu(block.up(x))), block.norm2)
        c = x[0] if first_token else x.mean(0)
        assert torch.allclose(embedding, c / c.norm() if normalize else c, atol=1e-10)


def test_a_fresh_network_starts_as_gpt_2_and_bert_do():
    torch.manual_seed(0)
    gpt = GPT(ModelConfig(400, block_size=9, layers=8, heads=4, kv_heads=4, width=128, inner=256, tied=False))
    encoder = Encoder(EncoderConfig(400, block_size=200, layers=2, heads=4, width=128, inner=256))
    for name, weight in [*gpt.named_parameters(), *encoder.named_parameters()]:
        if name.endswith("bias"):
            assert not weight.any(), name
        elif "norm" in name:
            assert (weight == 1).all(), name
        else:
            adds_to_the_stream = ".o." in name or ("layers" in name and ".down." in name)
            expected = 0.005 if adds_to_the_stream else 0.02  # a fourth: 8 layers add twice each
            assert abs(weight.std() / expected - 1) < 0.05, name
