"""The decoder and the encoder, each against its mathematics written out slowly."""

import copy

import pytest
import torch
from torch.nn import functional as F

from data._rows import pad
from model import GPT, MODULES, Block, Encoder, ModelConfig, rotary, rotate, sample

TINY = ModelConfig(50, 24, layers=2, heads=4, kv_heads=2, width=16, inner=24, tied=False)


def build(network, config: ModelConfig = TINY):
    """A network far from its near-zero start, so that every path matters, in float64."""
    torch.manual_seed(0)
    built = network(config)
    for weight in built.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return built.double()


@pytest.fixture
def gpt() -> GPT:
    return build(GPT)


def test_rotary_positions_turn_pairs_of_numbers_as_complex_numbers():
    x, at = torch.randn(1, 2, 5, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 30, 400])
    turned = rotate(x, rotary(at, 8, 100.0))
    speed = 100.0 ** -(torch.arange(4, dtype=torch.float64) / 4)
    first, second = x.chunk(2, dim=-1)
    expected = torch.complex(first, second) * torch.exp(1j * at[:, None] * speed)
    assert torch.allclose(turned, torch.cat([expected.real, expected.imag], -1), atol=1e-4)


def test_positions_stay_exact_where_the_products_are_in_bf16():
    at = torch.tensor([300, 301])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rotary(at, 8, 1e4)[0, :, 0], at.float().cos())


def test_a_block_is_llamas_written_out_token_by_token_and_head_by_head():
    block, x = build(lambda config: Block(config, 0)), torch.randn(1, 6, 16, dtype=torch.float64)
    rope, heads = rotary(torch.arange(6), 4, 1e4), torch.zeros(6, 16, dtype=torch.float64)

    def norm(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + TINY.eps).sqrt() * weight

    y = norm(x[0], block.input_layernorm.weight)
    for h in range(4):
        own, shared = slice(4 * h, 4 * h + 4), slice(4 * (h // 2), 4 * (h // 2) + 4)
        q = rotate(y @ block.q.weight[own].T, rope)
        k, v = rotate(y @ block.k.weight[shared].T, rope), y @ block.v.weight[shared].T
        for t in range(6):
            heads[t, own] = (q[t] @ k[: t + 1].T / 2).softmax(-1) @ v[: t + 1]  # 2 = √(d/h)
    y = x[0] + heads @ block.o.weight.T
    z = norm(y, block.post_attention_layernorm.weight)
    y = y + (F.silu(z @ block.gate.weight.T) * (z @ block.up.weight.T)) @ block.down.weight.T
    assert torch.allclose(block(x, {}, rope)[0], y, atol=1e-10)


def test_a_later_token_never_changes_an_earlier_logit(gpt):
    ids = torch.randint(50, (3, 12))
    changed = ids.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 50
    first, second = gpt(ids), gpt(changed)
    assert torch.equal(first[:, :7], second[:, :7])
    assert not torch.allclose(first[:, 7:], second[:, 7:])


@pytest.mark.parametrize("module", MODULES)
def test_an_update_is_added_to_the_output_of_its_own_site(gpt, module):
    ids, (d_in, d_out) = torch.randint(50, (2, 5)), TINY.shapes[module]
    delta = torch.randn(d_out, d_in, dtype=torch.float64)
    adapted, changed = gpt(ids, {(1, module): lambda x: x @ delta.T}), copy.deepcopy(gpt)
    changed.linear(1, module).weight.data += delta
    assert torch.allclose(adapted, changed(ids))
    assert not torch.allclose(adapted, gpt(ids))


def test_the_cache_gives_the_logits_of_the_whole_text_for_rows_of_different_lengths(gpt):
    ids, at, cache, row = torch.randint(50, (3, 12)), torch.tensor([4, 1, 6]), {}, torch.arange(3)
    whole, padding = gpt(ids), 6 - at
    new, _ = pad([ids[i, :n].tolist() for i, n in enumerate(at)], left=True)
    for more in (1, 2, 3, 0):  # tokens at a time
        logits = gpt.logits(gpt.features(new, {}, cache, padding))
        assert torch.allclose(logits[:, -1], whole[row, at - 1])
        new = ids[row[:, None], at[:, None] + torch.arange(more)]
        at = at + more


def test_a_text_that_is_too_long_is_refused_with_both_lengths(gpt):
    with pytest.raises(ValueError, match="25 tokens, the backbone reads 24"):
        gpt(torch.zeros(1, 25, dtype=torch.long))


def test_tokens_are_drawn_from_the_likeliest_by_the_softmax_of_logits_over_temperature():
    logits, generator = torch.tensor([0.5, 2.0, 1.0, -1.0]), torch.Generator().manual_seed(0)
    drawn = sample(logits.expand(40_000, -1), 0.7, 3, generator)
    share = torch.bincount(drawn[:, 0], minlength=4) / 40_000
    expected = torch.tensor([0.5, 2.0, 1.0, -torch.inf]).div(0.7).softmax(0)
    assert torch.allclose(share, expected, atol=0.01)
    assert sample(logits.expand(999, -1), 2.0, None, generator).unique().tolist() == [0, 1, 2, 3]
    for temperature in (0, 1e-30):  # so cold that dividing alone would overflow
        assert sample(logits[None], temperature, None, generator).tolist() == [[1]]


def test_padding_does_not_change_an_embedding_and_the_order_of_words_does():
    encoder, rows = build(Encoder), [[7, 3, 9, 4], [7, 3, 9, 4, 1, 1, 2], [4, 9, 3, 7]]
    together = encoder(*pad(rows))
    for c, row in zip(together, rows, strict=True):
        assert torch.allclose(c, encoder(*pad([row]))[0], atol=1e-12)
    assert not torch.allclose(together[0], together[2], atol=1e-3)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"layers": 0}, "layers is 0: it must be at least 1"),
        ({"width": 10, "heads": 3}, "width is 10: choose a multiple of 6"),
        ({"heads": 4, "kv_heads": 3}, "heads is 4: choose a multiple of 3"),
    ],
)
def test_a_size_that_cannot_be_built_is_refused_in_one_line(sizes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**sizes)
