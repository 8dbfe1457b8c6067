"""The decoder and the encoder, each against its mathematics written out slowly."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from data.batches import pad
from model import GPT, MODULES, Block, Encoder, EncoderConfig, ModelConfig, rotary, rotate, split_heads

TINY = ModelConfig(50, block_size=24, layers=3, heads=4, kv_heads=2, width=16, inner=24, tied=False)
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


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(0))


# ---- the decoder


def test_rotary_positions_turn_pairs_of_numbers_as_complex_numbers():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 500, 8, dtype=torch.float64)
    turned = rotate(x, rotary(500, 8, 100.0, x.device))
    speed = 100.0 ** -(torch.arange(4, dtype=torch.float64) / 4)
    left, right = x.chunk(2, dim=-1)
    expected = torch.complex(left, right) * torch.exp(1j * torch.arange(500)[:, None] * speed)
    assert torch.allclose(turned, torch.cat([expected.real, expected.imag], dim=-1), atol=1e-3)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_a_block_is_llamas_written_out_token_by_token_and_head_by_head(kv_heads):
    block = randomised(Block(replace(TINY, kv_heads=kv_heads), layer=0))
    x = torch.randn(1, 6, 16, dtype=torch.float64)
    rope = rotary(6, 4, 1e4, x.device)

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + TINY.eps).sqrt() * weight

    y = norm(x[0], block.input_layernorm.weight)
    heads = torch.zeros(6, 16, dtype=torch.float64)
    for h in range(4):
        part = slice(4 * h, 4 * h + 4)
        group = h // (4 // kv_heads)  # heads of queries that stand together read one of keys
        shared = slice(4 * group, 4 * group + 4)
        q = rotate(y @ block.q.weight[part].T, rope)
        k = rotate(y @ block.k.weight[shared].T, rope)
        v = y @ block.v.weight[shared].T
        for t in range(6):
            weights = (q[t] @ k[: t + 1].T / 2).softmax(-1)  # 2 is the root of a head's size
            heads[t, part] = weights @ v[: t + 1]
    y = x[0] + heads @ block.o.weight.T
    z = norm(y, block.post_attention_layernorm.weight)
    y = y + (F.silu(z @ block.gate.weight.T) * (z @ block.up.weight.T)) @ block.down.weight.T
    assert torch.allclose(block(x, {}, rope)[0], y, atol=1e-6)


def test_the_numbers_of_a_head_stand_side_by_side_also_in_memory():
    heads = split_heads(torch.arange(12).reshape(1, 2, 6), head_size=3)
    assert heads.tolist() == [[[[0, 1, 2], [6, 7, 8]], [[3, 4, 5], [9, 10, 11]]]]
    assert heads.is_contiguous()  # Apple's GPUs attend wrongly to what is not


def test_logits_are_blocks_in_turn_then_a_norm_and_the_head_that_may_be_the_embedding_again(gpt):
    ids = random_ids(2, 7)
    tied = randomised(GPT(replace(TINY, tied=True)))
    assert not hasattr(tied, "lm_head")
    for network, head in ((gpt, gpt.lm_head), (tied, tied.embed_tokens)):
        rope = rotary(7, 4, 1e4, ids.device)
        x = network.embed_tokens.weight[ids]
        for block in network.layers:
            x = block(x, {}, rope)
        x = x / (x.square().mean(-1, keepdim=True) + TINY.eps).sqrt() * network.norm.weight
        assert torch.allclose(network(ids), x @ head.weight.T, atol=1e-10)


def test_a_later_token_never_changes_an_earlier_logit(gpt):
    ids = random_ids(3, 12)
    changed = ids.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 50
    before = gpt(ids)
    after = gpt(changed)
    assert torch.allclose(before[:, :7], after[:, :7], atol=1e-10)
    assert not torch.allclose(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize("module", MODULES)
def test_an_update_is_added_to_the_output_of_its_own_site(gpt, module):
    ids = random_ids(2, 5)
    d_in, d_out = TINY.shapes[module]
    delta = torch.randn(d_out, d_in, dtype=torch.float64)
    adapted = gpt(ids, {(1, module): lambda x: x @ delta.T})
    changed = copy.deepcopy(gpt)
    changed.linear(1, module).weight += delta
    assert torch.allclose(adapted, changed(ids))
    assert not torch.allclose(adapted, gpt(ids))


def test_a_batch_of_rows_with_an_update_each_has_the_logits_of_each_row_alone(gpt):
    ids = random_ids(3, 9)
    deltas = torch.randn(3, 16, 16, dtype=torch.float64)
    together = gpt(ids, {(1, "q"): lambda x: x @ deltas.mT})
    for row in range(3):
        alone = gpt(ids[row : row + 1, : 5 + row], {(1, "q"): lambda x, delta=deltas[row]: x @ delta.T})
        assert torch.allclose(together[row, : 5 + row], alone[0], atol=1e-10)


def test_the_last_layer_computes_only_the_positions_that_are_asked_for(gpt):
    x = torch.randn(3, 12, 16, dtype=torch.float64)
    positions = torch.tensor([[7, 3], [0, 11], [5, 4]])
    deltas = torch.randn(3, 16, 16, dtype=torch.float64)
    updates = {(2, module): lambda x: x @ deltas.mT for module in ("q", "o")}
    lengths = []
    for block in gpt.layers:
        block.down.register_forward_hook(lambda module, args, y: lengths.append(y.shape[1]))
    whole = gpt.run_layers(x, updates)
    found = gpt.run_layers(x, updates, positions=positions)
    assert torch.allclose(found, whole[torch.arange(3)[:, None], positions], atol=1e-10)
    assert lengths == [12, 12, 12, 12, 12, 2]


def test_layers_can_be_run_in_two_parts(gpt):
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    lower = gpt.run_layers(x, {}, end=2)
    assert torch.allclose(gpt.run_layers(lower, {}, start=2), gpt.run_layers(x, {}), atol=1e-10)
    assert not torch.allclose(lower, gpt.run_layers(x, {}))


# ---- the encoder


@pytest.mark.parametrize("first_token", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_an_embedding_is_berts_written_out_head_by_head(first_token, normalize):
    encoder = randomised(Encoder(replace(TINY_BERT, first_token=first_token, normalize=normalize)))
    ids = random_ids(1, 6)
    block = encoder.blocks[0]

    def norm(x, layer):
        variance = x.var(-1, correction=0, keepdim=True)
        return (x - x.mean(-1, keepdim=True)) / (variance + TINY_BERT.eps).sqrt() * layer.weight + layer.bias

    x = norm(encoder.word.weight[ids[0]] + encoder.position.weight[:6], encoder.norm)
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
    c = c / c.norm() if normalize else c
    mask = torch.ones(1, 6, dtype=torch.bool)
    assert torch.allclose(encoder(ids, mask)[0], c, atol=1e-10)


def test_padding_does_not_change_an_embedding_and_the_order_of_words_does():
    encoder = randomised(Encoder(replace(TINY_BERT, layers=2)))
    rows = [[7, 3, 9, 4], [7, 3, 9, 4, 1, 1, 2], [4, 9, 3, 7]]
    mask = pad([[1] * len(row) for row in rows]).bool()
    together = encoder(pad(rows), mask)
    for c, row in zip(together, rows, strict=True):
        alone = encoder(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.bool))
        assert torch.allclose(c, alone[0], atol=1e-12)
    assert not torch.allclose(together[0], together[2], atol=1e-3)


# ---- the start


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
