"""Low-rank updates, and the networks that generate them."""

import pytest
import torch
from conftest import KINDS, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from hyper import HYPERNETWORKS, TRUNKS, HyperConfig, LowRank, Standardise
from model import MODULES, ModelConfig

SHAPES = ModelConfig(width=32, heads=4, kv_heads=2, inner=40).shapes


def build(kind: str, layers: int = 2, d_text: int = 32, **changes) -> torch.nn.Module:
    torch.manual_seed(0)
    return HYPERNETWORKS[kind](tiny_config(kind, **changes), layers, SHAPES, d_text)


def random_update(z: tuple[int, ...] | None, rows: tuple[int, ...] = ()) -> LowRank:
    torch.manual_seed(0)
    A, B = (torch.randn(*rows, *shape, dtype=torch.float64) for shape in ((4, 10), (6, 4)))
    return LowRank(A, B, z and torch.randn(z, dtype=torch.float64), 0.7)


def random_x() -> torch.Tensor:
    return torch.randn(3, 5, 10, dtype=torch.float64)


UPDATES = [random_update((3, 4)), random_update((3, 4, 4)), random_update(None, (3,))]


@pytest.mark.parametrize("update", UPDATES)
def test_the_update_in_rank_space_is_the_product_with_scale_times_B_times_Z_times_A(update):
    x, Z = random_x(), torch.eye(4).double() if update.z is None else update.z
    delta = 0.7 * update.B @ (Z.diag_embed() if Z.shape == (3, 4) else Z) @ update.A
    assert torch.allclose(update.delta(), delta)
    assert torch.allclose(update(x), x @ delta.mT, atol=1e-12)


@pytest.mark.parametrize("z", [torch.ones(3, 4), torch.eye(4).expand(3, 4, 4)])
def test_z_of_one_is_the_shared_lora(z):
    shared, x = random_update(None), random_x()
    assert torch.equal(LowRank(shared.A, shared.B, z.double(), shared.scale)(x), shared(x))


@pytest.mark.parametrize("update", UPDATES)
def test_rows_select_their_contexts_in_any_order_and_repeatedly(update):
    x, index = random_x(), torch.tensor([2, 0, 0])
    expected = torch.stack([x[i] @ update.delta()[j].mT for i, j in enumerate(index)])
    assert torch.allclose(update.select(index)(x), expected, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    trunk=st.sampled_from(sorted(TRUNKS)),
    rank=st.integers(1, 9),
    alpha=st.floats(0.5, 99),
    layers=st.integers(1, 4),
    modules=st.lists(st.sampled_from(MODULES), min_size=1, unique=True),
    d_text=st.integers(2, 40),
)
def test_every_site_gets_an_update_of_its_shape_times_alpha_over_rank(
    kind, trunk, rank, alpha, layers, modules, d_text
):
    sizes = {"rank": rank, "alpha": alpha, "trunk": trunk, "modules": tuple(modules)}
    adapter = build(kind, layers, d_text, **sizes)(torch.randn(3, d_text))
    assert set(adapter) == {(layer, module) for layer in range(layers) for module in modules}
    for (_, module), update in adapter.items():
        (d_in, d_out), B = SHAPES[module], torch.randn_like(update.B)
        update, once = (LowRank(update.A, B, update.z, s) for s in (update.scale, 1.0))
        rows = (3,) if HYPERNETWORKS[kind].reads_text else ()
        assert update.delta().shape == (*rows, d_out, d_in)
        assert update(torch.randn(3, 5, d_in)).shape == (3, 5, d_out)
        assert torch.allclose(update.delta(), alpha / rank * once.delta(), atol=1e-4)


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("kind", ["zhyper-diag", "zhyper-square"])
def test_z_differs_between_contexts_from_step_0_and_every_gradient_is_alive_by_step_2(kind, trunk):
    network = build(kind, trunk=trunk, dropout=0.0)
    c, x = torch.randn(8, 32), torch.randn(8, 3, 32)
    least = {"gated": 1.0, "paper": 0.1}[trunk]  # concatenated, the text is heard more faintly
    assert all(z.std(0).mean() > least for z in network.z(c).values())
    z = torch.stack([z[:, layer] for z in network.z(c).values() for layer in range(2)])
    assert torch.cdist(z.flatten(1), z.flatten(1)).fill_diagonal_(1).min() > 0.1  # sites differ too
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        sum((update(x) - 1).square().mean() for update in network(c).values()).backward()
        optimizer.step()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    assert not [name for name, g in gradients.items() if g is None or not g.abs().sum() > 0]


def test_a_square_z_starts_as_strong_as_a_diagonal_one():
    a, c, size = torch.randn(16, 1, 16), torch.randn(16, 32), {}
    for kind in ("zhyper-diag", "zhyper-square"):
        adapter = build(kind, rank=16, hidden=64)(c)
        size[kind] = sum(update.times_z(a).square().sum().item() for update in adapter.values())
    assert size["zhyper-diag"] == pytest.approx(size["zhyper-square"], rel=0.3)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_text_to_lora_starts_as_one_lora_for_every_context(trunk):
    for (_, module), update in build("t2l", trunk=trunk)(torch.randn(4, 32)).items():
        assert torch.equal(update.A[0], update.A[3])
        assert torch.count_nonzero(update.B) == 0
        most = SHAPES[module][0] ** -0.5  # kaiming-uniform
        assert 0.8 * most < update.A.abs().max() <= most


def test_embeddings_are_standardised_by_what_was_measured_once():
    standardise, c = Standardise(6), 5 + torch.randn(40, 6) * torch.arange(1, 7)
    standardise.measure(c)
    y = standardise(c)
    assert torch.allclose(y.mean(0), torch.zeros(6), atol=1e-5)
    assert torch.allclose(y.std(0, correction=0), torch.ones(6), atol=1e-3)
    assert torch.equal(standardise(c[:3]), y[:3])  # others beside it change nothing
    standardise.measure(c[:1])
    assert torch.equal(standardise(c[:1]), torch.zeros(1, 6))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spread": 0.0}, "spread is 0"),
        ({"rank": 0}, "rank is 0"),
        ({"modules": ()}, "at least one"),
        ({"modules": ("q", "q")}, "each once"),
        ({"modules": ("query",)}, "unknown module 'query': choose from q, k, v, o, gate, up, down"),
        ({"trunk": "concat"}, "unknown trunk 'concat': choose from gated, paper"),
        ({"kind": "magic"}, "unknown kind 'magic': choose from lora, t2l, zhyper-diag"),
    ],
)
def test_a_hypernetwork_that_cannot_be_is_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message):
        HyperConfig(**changes)
