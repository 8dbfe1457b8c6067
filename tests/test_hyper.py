"""Low-rank updates, and the networks that generate them."""

import math

import pytest
import torch
from conftest import KINDS, TEXTS, build_system, smoke, tiny_config, two_cultures
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import train
from hyper import HYPERNETWORKS, TRUNKS, HyperConfig, Hypernetwork, LowRank, lora_A, standardise
from model import MODULES, ModelConfig
from zhyper import Zhyper

SHAPES = ModelConfig(width=32, heads=4, kv_heads=2, inner=40).shapes
GENERATED_Z = ["zhyper-diag", "zhyper-square"]


def build(kind: str, layers: int = 2, d_text: int = 32, **changes) -> Hypernetwork:
    torch.manual_seed(0)
    return HYPERNETWORKS[kind](tiny_config(kind, dropout=0.0, **changes), layers, SHAPES, d_text)


# ---- the update of one site


@pytest.mark.parametrize("A_rows", [(), (3,)], ids=["shared A", "A of each row"])
@pytest.mark.parametrize("B_rows", [(), (3,)], ids=["shared B", "B of each row"])
@pytest.mark.parametrize("z_size", [None, (3, 4), (3, 4, 4)], ids=["no z", "diagonal z", "square z"])
def test_an_update_in_rank_space_is_the_product_with_scale_times_B_times_Z_times_A(A_rows, B_rows, z_size):
    torch.manual_seed(0)
    A = torch.randn(*A_rows, 4, 10).double()
    B = torch.randn(*B_rows, 6, 4).double()
    z = None if z_size is None else torch.randn(z_size).double()
    update = LowRank(A, B, z, scale=0.7)
    x = torch.randn(3, 5, 10).double()
    y = update(x)
    for row in range(3):
        Z = torch.eye(4).double() if z is None else z[row]
        if Z.dim() == 1:
            Z = torch.diag(Z)
        delta = 0.7 * (B[row] if B_rows else B) @ Z @ (A[row] if A_rows else A)
        assert torch.allclose(y[row], x[row] @ delta.T, atol=1e-12)
        assert torch.allclose(update.delta(row), delta)
        plain_A, plain_B = update.as_lora(row)
        assert torch.allclose(0.7 * plain_B @ plain_A, delta)


# ---- how many parameters: the paper's numbers, at the size of real models

MISTRAL = {"layers": 32, "shapes": ModelConfig(width=4096, heads=32, kv_heads=8, inner=14336).shapes}
GEMMA = {"layers": 26, "shapes": {"q": (2304, 2048), "v": (2304, 1024)}}
COUNTS = [
    (MISTRAL, "lora", 8, "qv", 3_407_872),
    (MISTRAL, "t2l", 8, "qv", 55_424_000),
    (MISTRAL, "t2l", 8, "qkvo", 110_056_512),
    (MISTRAL, "t2l", 16, "qv", 110_056_448),
    (MISTRAL, "zhyper-diag", 8, "qv", 4_207_632),
    (MISTRAL, "zhyper-diag", 8, "qkvo", 7_623_776),
    (MISTRAL, "zhyper-diag", 16, "qv", 7_623_712),
    (MISTRAL, "zhyper-square", 8, "qv", 4_265_088),
    (GEMMA, "lora", 8, "qv", 1_597_440),
    (GEMMA, "t2l", 8, "qv", 32_310_080),
    (GEMMA, "zhyper-diag", 8, "qv", 2_397_008),
    (GEMMA, "zhyper-square", 8, "qv", 2_454_464),
]


@pytest.mark.parametrize(("backbone", "kind", "rank", "modules", "count"), COUNTS)
def test_a_hypernetwork_has_as_many_parameters_as_its_authors_has(backbone, kind, rank, modules, count):
    config = HyperConfig(kind, rank=rank, modules=tuple(modules), trunk="paper")
    with torch.device("meta"):  # shapes without memory
        network = HYPERNETWORKS[kind](config, d_text=1024, **backbone)
    assert sum(weight.numel() for weight in network.parameters()) == count


# ---- what is generated


@settings(max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    trunk=st.sampled_from(sorted(TRUNKS)),
    rank=st.integers(1, 9),
    scale=st.floats(0.5, 99),
    layers=st.integers(1, 4),
    lowest=st.integers(0, 3),
    modules=st.lists(st.sampled_from(MODULES), min_size=1, unique=True),
)
def test_every_site_gets_an_update_of_its_shape_times_scale(kind, layers, lowest, modules, scale, **sizes):
    network = build(kind, layers, lowest_layer=lowest, modules=tuple(modules), scale=scale, **sizes)
    adapter = network(torch.randn(3, 32))
    assert set(adapter) == {(lowest + layer, module) for layer in range(layers) for module in modules}
    for (_, module), update in adapter.items():
        d_in, d_out = SHAPES[module]
        assert update.scale == scale
        assert update.delta(row=2).shape == (d_out, d_in)
        assert update(torch.randn(3, 5, d_in)).shape == (3, 5, d_out)


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("kind", KINDS)
def test_exactly_one_factor_starts_at_zero_so_that_step_0_is_the_frozen_model(kind, trunk):
    for update in build(kind, trunk=trunk)(torch.randn(3, 32)).values():
        assert update.B.count_nonzero() == 0  # so ΔW is zero
        assert update.A.count_nonzero() == update.A.numel()
        assert update.z is None or update.z.count_nonzero() == update.z.numel()


def gradients_after(network: Hypernetwork, steps: int) -> dict[str, float]:
    """{parameter: the size of its gradient after so many steps}, towards updates that answer 1 to any x."""
    torch.manual_seed(1)
    c, x = torch.randn(8, 32), torch.randn(8, 3, 32)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(steps + 1):
        optimizer.step()  # the first has no gradient yet, and does nothing
        optimizer.zero_grad()
        sum((update(x) - 1).square().mean() for update in network(c).values()).backward()
    return {name: weight.grad.abs().sum().item() for name, weight in network.named_parameters()}


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_reaches_what_makes_B_at_once_and_everything_soon_after(kind, trunk):
    at_once = gradients_after(build(kind, trunk=trunk), steps=0)
    makes_B = [name for name in at_once if name.startswith(("B.", "heads."))]
    assert makes_B and all(at_once[name] > 0 for name in makes_B)
    soon = gradients_after(build(kind, trunk=trunk), steps=2)
    assert not [name for name, size in soon.items() if size == 0]


@pytest.mark.parametrize("kind", GENERATED_Z)
def test_were_z_zero_as_well_as_B_nothing_would_ever_learn_and_were_it_z_alone_A_and_B_would_wait(kind):
    network = build(kind)
    nn.init.zeros_(network.head_weight)  # and the bias of the head is zero already
    assert not any(gradients_after(network, steps=5).values())
    for B in network.B.values():
        nn.init.normal_(B)
    learn_at_once = {name for name, size in gradients_after(network, steps=0).items() if size > 0}
    assert learn_at_once == {"head_weight", "head_bias"}


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("kind", GENERATED_Z)
def test_z_of_all_sites_at_once_is_z_site_by_site_through_a_plain_linear_layer(kind, trunk):
    network = build(kind, trunk=trunk)
    nn.init.normal_(network.head_bias)
    c = torch.randn(5, 32)
    features = network.trunk(c)
    adapter = network(c)
    for layer in range(2):
        for m, module in enumerate(network.config.modules):
            head = nn.Linear(network.trunk.features, math.prod(network.z_size(4)))
            head.weight.data, head.bias.data = network.head_weight[m], network.head_bias[m]
            z = adapter[layer, module].z
            assert torch.allclose(z.flatten(1), head(features[:, layer, m]), atol=1e-4)


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("kind", GENERATED_Z)
def test_z_differs_between_texts_and_between_sites_from_the_start(kind, trunk):
    adapter = build(kind, trunk=trunk)(torch.randn(8, 32))
    z = torch.stack([update.z.flatten(1) for update in adapter.values()])  # (sites, texts, r or r²)
    assert z.std(dim=1).mean() > {"gated": 1.0, "paper": 0.1}[trunk]  # concatenated, a text is heard more faintly
    assert z.std(dim=0).mean() > 0.1


@pytest.mark.parametrize("trunk", TRUNKS)
def test_the_trunk_gives_features_for_every_text_and_site(trunk):
    network = build("zhyper-diag", layers=3, modules=("q", "up"), trunk=trunk)
    features = network.trunk(torch.randn(5, 32))
    assert features.shape == (5, 3, 2, network.trunk.features)
    if trunk == "gated":  # the site multiplies the text: the texts of any two sites have one ratio
        ratio = features / network.trunk.gate
        assert torch.allclose(ratio, ratio[:, :1, :1].expand_as(ratio), atol=1e-5)


def test_embeddings_are_standardised_by_their_batch_in_training_and_by_what_was_seen_afterwards():
    torch.manual_seed(0)
    layer = standardise(6)
    c = 5 + torch.randn(40, 6) * torch.arange(1, 7)
    for _ in range(100):  # its running mean and variance are those of the batches
        y = layer(c)
    assert torch.allclose(y.mean(0), torch.zeros(6), atol=1e-5)
    assert torch.allclose(y.std(0, correction=0), torch.ones(6), atol=1e-3)
    layer.eval()
    assert torch.allclose(layer(c), y, atol=0.1)
    assert torch.allclose(layer(c[:3]), layer(c)[:3])  # others beside it change nothing
    assert not list(layer.parameters())  # nothing in it is trained


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"modules": ()}, "at least one"),
        ({"modules": ("q", "q")}, "each once"),
        ({"modules": ("query",)}, "unknown module 'query': choose from q, k, v, o, gate, up, down"),
        ({"trunk": "concat"}, "unknown trunk 'concat': choose from gated, paper"),
        ({"kind": "magic"}, "unknown kind 'magic': choose from .*zhyper-diag"),
    ],
)
def test_a_hypernetwork_that_cannot_be_is_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message):
        HyperConfig(**changes)


# ---- one more, as a reader would write it


class GeneratedB(Hypernetwork):
    """ΔW = scale · B(c) · A: all texts share A, and a head generates B."""

    def __init__(self, config, layers, shapes, d_text):
        super().__init__(config, layers, shapes, d_text)
        self.A = nn.ParameterDict()
        self.heads = nn.ModuleDict()
        for module in config.modules:
            d_in, d_out = shapes[module]
            self.A[module] = lora_A(layers, config.rank, d_in)
            self.heads[module] = nn.Linear(self.trunk.features, d_out * config.rank)
            nn.init.zeros_(self.heads[module].weight)
            nn.init.zeros_(self.heads[module].bias)

    def forward(self, c):
        features = self.trunk(c)  # (b, l, m, f)
        B = {}
        for i, module in enumerate(self.config.modules):
            emitted = self.heads[module](features[:, :, i])  # (b, l, d_out · r)
            B[module] = emitted.unflatten(-1, (-1, self.config.rank)).unbind(1)
        return self.place_updates(self.A, B)


def test_a_hypernetwork_of_ones_own_trains_merges_and_is_saved_like_any_other(monkeypatch, tmp_path):
    monkeypatch.setitem(HYPERNETWORKS, "generated-b", GeneratedB)
    monkeypatch.setitem(train.METHODS, "generated-b", train.Method("generated-b"))
    system = build_system("generated-b", lowest_layer=1)
    for group in train.parameter_groups(system, lr=1e-3):  # A, which all texts share, learns faster
        shared = any(weight is A for A in system.hypernetwork.A.values() for weight in group["params"])
        assert group["peak"] == pytest.approx(3e-3 if shared else 1e-3)
    before = {name: weight.clone() for name, weight in system.hypernetwork.named_parameters()}
    train.fit(system, "generated-b", two_cultures(), smoke("two.jsonl", tmp_path, steps=1))
    system.requires_grad_(False).eval()
    for name, weight in system.hypernetwork.named_parameters():
        assert not torch.equal(weight, before[name]), name

    ids = torch.randint(50, (2, 7))
    adapter = system.adapt(TEXTS[:2])
    adapted = system.backbone(ids, adapter)
    for row in range(2):
        assert torch.allclose(system.merge(TEXTS[row])(ids)[row], adapted[row], atol=1e-4)
        for update in adapter.values():
            A, B = update.as_lora(row)
            assert torch.allclose(update.scale * B @ A, update.delta(row))
            assert B.shape == update.B.shape[1:] and torch.equal(A, update.A)
    system.save(tmp_path / "generated-b.pt")
    again = Zhyper.load(tmp_path, "generated-b")
    assert torch.allclose(again.backbone(ids, again.adapt(TEXTS[:2])), adapted, atol=1e-5)
