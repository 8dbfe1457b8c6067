"""The backbone and the encoder: causality, padding, the cache, sizes."""

import pytest
import torch

from model import GPT, Cache, Encoder, ModelConfig

TINY = ModelConfig(vocab=50, layers=2, heads=2, width=16, context=12)


@pytest.fixture
def gpt() -> GPT:
    torch.manual_seed(0)
    model = GPT(TINY)
    for weight in model.parameters():  # far from the near-zero start, so that every path matters
        torch.nn.init.normal_(weight, std=0.3)
    return model.double()


def test_a_later_token_never_changes_an_earlier_logit(gpt):
    ids = torch.randint(50, (3, 12))
    changed = ids.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 50
    first, second = gpt(ids), gpt(changed)
    assert torch.equal(first[:, :7], second[:, :7])
    assert not torch.allclose(first[:, 7:], second[:, 7:])


def test_an_update_reaches_its_own_site_and_no_other(gpt):
    ids = torch.randint(50, (2, 5))
    calls = []

    def update(x):
        calls.append(x.shape)
        return torch.ones(2, 5, 64, dtype=x.dtype)

    adapted = gpt(ids, {(1, "up"): update})
    assert calls == [(2, 5, 16)]
    gpt.blocks[1].mlp.up.bias.data += 1
    assert torch.allclose(adapted, gpt(ids))


def test_the_cache_gives_the_logits_of_the_whole_text_for_rows_of_different_length(gpt):
    ids, lengths = torch.randint(50, (3, 9)), torch.tensor([4, 2, 6])
    whole = gpt(ids)
    cache = Cache(TINY, 3, 12, torch.device("cpu"), torch.float64)
    first = gpt(ids[:, :6], cache=cache)
    cache.length = lengths
    for row, length in enumerate(lengths):
        assert torch.allclose(first[row, :length], whole[row, :length])
    for step in range(3):
        token = ids[torch.arange(3), lengths + step][:, None]
        logits = gpt(token, cache=cache)
        cache.length = cache.length + 1
        for row, length in enumerate(lengths):
            assert torch.allclose(logits[row, 0], whole[row, length + step])


def test_padding_does_not_change_an_embedding():
    torch.manual_seed(0)
    encoder = Encoder(TINY).double()
    ids = torch.randint(1, 50, (1, 5))
    padded = torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], dim=1)
    assert torch.allclose(encoder(ids, ids != 0), encoder(padded, padded != 0), atol=1e-12)


def test_the_default_backbone_has_the_parameters_its_sizes_say():
    config = ModelConfig()
    d, block = config.width, 12 * config.width**2 + 9 * config.width + 4 * config.width
    expected = config.layers * block + (config.vocab + config.context + 2) * d
    assert sum(p.numel() for p in GPT(config).parameters()) == expected


@pytest.mark.parametrize("sizes", [{"layers": 0}, {"width": 10, "heads": 3}, {"vocab": -5}, {"context": 1.5}])
def test_an_impossible_size_is_refused_in_one_line(sizes):
    with pytest.raises(ValueError, match="must be|cannot be"):
        ModelConfig(**sizes)


def test_a_text_over_the_context_is_refused_with_both_lengths(gpt):
    with pytest.raises(ValueError, match=r"13 tokens long, the backbone reads 12"):
        gpt(torch.zeros(1, 13, dtype=torch.long))
