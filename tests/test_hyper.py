"""Low-rank updates and the networks that generate them."""

import pytest
import torch
from conftest import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from hyper import ADAPTERS, TRUNKS, AdapterConfig, LowRank, count_parameters
from model import MODULES, ModelConfig

SHAPES = ModelConfig(width=32).shapes
MISTRAL = {"q": (4096, 4096), "k": (4096, 1024), "v": (4096, 1024), "o": (4096, 4096)}
GEMMA = {"q": (2304, 2048), "v": (2304, 1024)}


def random_update(z: tuple[int, ...] | None, batched: bool = False) -> LowRank:
    torch.manual_seed(0)
    lead = (3,) if batched else ()
    A, B = torch.randn(*lead, 4, 10, dtype=torch.float64), torch.randn(*lead, 6, 4, dtype=torch.float64)
    return LowRank(A, B, None if z is None else torch.randn(z, dtype=torch.float64), 0.7)


@pytest.mark.parametrize("update", [random_update((3, 4)), random_update((3, 4, 4)), random_update(None, True)])
def test_the_update_in_rank_space_equals_the_product_with_delta(update):
    x = torch.randn(3, 5, 10, dtype=torch.float64)
    assert torch.allclose(update(x), x @ update.delta().mT, atol=1e-12)


def test_diag_equals_square_with_a_diagonal_z():
    update, x = random_update((3, 4)), torch.randn(3, 5, 10, dtype=torch.float64)
    square = LowRank(update.A, update.B, update.z.diag_embed(), update.scale)
    assert torch.allclose(update(x), square(x), atol=1e-12)
    assert torch.allclose(update.delta(), square.delta(), atol=1e-12)


@pytest.mark.parametrize("z", [torch.ones(3, 4), torch.eye(4).expand(3, 4, 4)])
def test_z_of_one_equals_the_shared_lora(z):
    shared, x = random_update(None), torch.randn(3, 5, 10, dtype=torch.float64)
    assert torch.equal(LowRank(shared.A, shared.B, z.double(), shared.scale)(x), shared(x))


@pytest.mark.parametrize("update", [random_update((3, 4)), random_update((3, 4, 4)), random_update(None, True)])
def test_a_term_is_as_large_as_the_rank_one_matrix_it_stands_for(update):
    A, B = update.folded().expand(3, -1, -1), update.B.expand(3, -1, -1)
    whole = update.scale * B.mT[..., None] * A[..., None, :]  # (b, r, d_out, d_in)
    assert torch.allclose(whole.sum(1), update.delta()) and torch.allclose(whole.norm(dim=(2, 3)), update.terms().abs())


def test_a_term_does_not_depend_on_how_z_and_B_share_its_size():
    update = random_update((3, 4))
    moved = LowRank(update.A, update.B * 5, update.z / 5, update.scale)
    assert torch.allclose(update.terms(), moved.terms()) and not torch.allclose(update.z, moved.z)


def test_rows_repeat_contexts_in_any_order():
    update, index = random_update((3, 4)), torch.tensor([2, 0, 0])
    x = torch.randn(3, 5, 10, dtype=torch.float64)
    expected = torch.stack([x[i] @ update.delta()[j].mT for i, j in enumerate(index)])
    assert torch.allclose(update.rows(index)(x), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "shapes", "layers", "modules", "rank", "expected"),
    [  # parameters at the size of real models, from the paper's configuration
        ("lora", MISTRAL, 32, "qv", 8, 3_407_872),
        ("t2l", MISTRAL, 32, "qv", 8, 55_424_000),
        ("zhyper-diag", MISTRAL, 32, "qv", 8, 4_207_632),
        ("zhyper-square", MISTRAL, 32, "qv", 8, 4_265_088),
        ("t2l", MISTRAL, 32, "qkvo", 8, 110_056_512),
        ("zhyper-diag", MISTRAL, 32, "qkvo", 8, 7_623_776),
        ("t2l", MISTRAL, 32, "qv", 16, 110_056_448),
        ("zhyper-diag", MISTRAL, 32, "qv", 16, 7_623_712),
        ("lora", GEMMA, 26, "qv", 8, 1_597_440),
        ("t2l", GEMMA, 26, "qv", 8, 32_310_080),
        ("zhyper-diag", GEMMA, 26, "qv", 8, 2_397_008),
        ("zhyper-square", GEMMA, 26, "qv", 8, 2_454_464),
    ],
)
def test_the_paper_trunk_has_the_parameters_of_the_paper(kind, shapes, layers, modules, rank, expected):
    config = AdapterConfig(kind, rank, modules=tuple(modules), trunk="paper")
    assert count_parameters(config, layers, shapes, 1024) == expected


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(ADAPTERS)),
    trunk=st.sampled_from(sorted(TRUNKS)),
    rank=st.integers(1, 9),
    layers=st.integers(1, 4),
    modules=st.lists(st.sampled_from(MODULES), min_size=1, unique=True),
    d_text=st.integers(2, 40),
)
def test_the_formula_counts_what_a_built_adapter_has(kind, trunk, rank, layers, modules, d_text):
    config = tiny_config(kind, rank=rank, trunk=trunk, modules=tuple(modules))
    built = ADAPTERS[kind](config, layers, SHAPES, d_text)
    assert count_parameters(config, layers, SHAPES, d_text) == sum(p.numel() for p in built.parameters())


@pytest.mark.parametrize("kind", ["zhyper-diag", "zhyper-square"])
@pytest.mark.parametrize("trunk", sorted(TRUNKS))
def test_z_differs_between_contexts_from_step_0_and_every_gradient_is_alive_by_step_2(kind, trunk):
    torch.manual_seed(0)
    adapter = ADAPTERS[kind](tiny_config(kind, trunk=trunk, dropout=0.0), 2, SHAPES, 32)
    c, x = torch.randn(8, 32), torch.randn(8, 3, 32)
    least = {"gated": 1.0, "paper": 0.1}[trunk]  # the concatenating trunk hears the text more faintly
    assert all(z.std(0).mean() > least for z in adapter.z(c).values())
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        sum((update(x) - 1).square().mean() for update in adapter(c).values()).backward()
        optimizer.step()
    dead = [name for name, p in adapter.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead


def test_t2l_starts_as_the_same_lora_for_every_context():
    torch.manual_seed(0)
    adapter = ADAPTERS["t2l"](tiny_config("t2l", trunk="paper"), 2, SHAPES, 32)
    update = adapter(torch.randn(4, 32))[1, "v"]
    assert torch.equal(update.A[0], update.A[3]) and update.A.abs().max() <= 32**-0.5
    assert torch.count_nonzero(update.B) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spread": 0.0}, "z = 0 and B = 0"),
        ({"rank": 0}, "at least 1"),
        ({"modules": ()}, "at least one"),
        ({"modules": ("q", "q")}, "at most once"),
        ({"modules": ("query",)}, "unknown module 'query'"),
        ({"trunk": "concat"}, "unknown trunk"),
        ({"kind": "magic"}, "unknown method"),
    ],
)
def test_an_impossible_adapter_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        AdapterConfig(**changes)
