"""Low-rank updates, and the networks that generate them."""

import pytest
import torch
from conftest import KINDS, TEXTS, build_system, tiny_config
from torch import nn
from torch.nn import functional as F

from hyper import HYPERNETWORKS, TRUNKS, Hypernetwork, LowRank, ZhyperDiag
from model import ModelConfig
from zhyper import Zhyper

SHAPES = ModelConfig(300, block_size=9, layers=2, heads=4, kv_heads=2, width=32, inner=40).shapes
GENERATED_Z = ["zhyper-diag", "zhyper-square"]
EVERY_TRUNK = pytest.mark.parametrize("trunk", TRUNKS)


def build(kind: str, layers: int = 2, d_text: int = 32, **changes) -> Hypernetwork:
    """A hypernetwork as it is before training. In eval mode nothing is dropped, and c is standardised already."""
    torch.manual_seed(0)
    return HYPERNETWORKS[kind](tiny_config(kind, **changes), layers, SHAPES, d_text).eval()


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
    swapped = update.take(torch.tensor([2, 0, 1]))(x[[2, 0, 1]])
    assert torch.allclose(swapped, y[[2, 0, 1]])
    for row in range(3):
        Z = torch.eye(4).double() if z is None else z[row]
        if Z.dim() == 1:
            Z = torch.diag(Z)
        delta = 0.7 * (B[row] if B_rows else B) @ Z @ (A[row] if A_rows else A)
        assert torch.allclose(y[row], x[row] @ delta.T, atol=1e-12)
        assert torch.allclose(update.delta(row), delta)
        plain_A, plain_B = update.as_lora(row)
        assert torch.allclose(0.7 * plain_B @ plain_A, delta)


# the paper's numbers, at the size of real models
MISTRAL = {"q": (4096, 4096), "k": (4096, 1024), "v": (4096, 1024), "o": (4096, 4096)}
GEMMA = {"q": (2304, 2048), "v": (2304, 1024)}
COUNTS = [  # of lora, t2l, zhyper-diag and zhyper-square
    (32, MISTRAL, "qv", 8, [3_407_872, 55_424_000, 4_207_632, 4_265_088]),
    (32, MISTRAL, "qv", 16, [6_815_744, 110_056_448, 7_623_712, 7_869_952]),
    (32, MISTRAL, "qkvo", 8, [6_815_744, 110_056_512, 7_623_776, 7_738_688]),
    (32, MISTRAL, "qkvo", 16, [13_631_488, 219_321_408, 14_455_936, 14_948_416]),
    (26, GEMMA, "qv", 8, [1_597_440, 32_310_080, 2_397_008, 2_454_464]),
    (26, GEMMA, "qv", 16, [3_194_880, 63_828_800, 4_002_656, 4_248_896]),
]


@pytest.mark.parametrize(("layers", "shapes", "modules", "rank", "counts"), COUNTS)
def test_hypernetworks_have_as_many_parameters_as_their_authors_have(layers, shapes, modules, rank, counts):
    found = []
    for kind in KINDS:
        config = tiny_config(kind, rank=rank, modules=tuple(modules), trunk="paper")
        with torch.device("meta"):  # shapes without memory
            network = HYPERNETWORKS[kind](config, layers, shapes, d_text=1024)
        found.append(sum(weight.numel() for weight in network.parameters()))
    assert found == counts


def test_the_gated_trunk_multiplies_what_the_text_says_by_a_gate_of_each_site():
    trunk = build("zhyper-diag", layers=3, modules=("q", "up"), features=24).trunk
    nn.init.normal_(trunk.standardise.running_mean)
    c = torch.randn(5, 32)
    standardised = (c - trunk.standardise.running_mean) / (trunk.standardise.running_var + 1e-5).sqrt()
    u = F.silu(trunk.text(standardised))
    expected = torch.einsum("lmf,bf->blmf", trunk.gate, u)
    assert expected.shape == (5, 3, 2, 24) and torch.allclose(trunk(c), expected, atol=1e-5)


def test_the_papers_trunk_joins_text_depth_and_module_and_adds_two_blocks_to_their_mixture():
    trunk = build("zhyper-diag", layers=3, modules=("q", "up"), trunk="paper").trunk
    nn.init.normal_(trunk.standardise.running_mean)
    c = torch.randn(5, 32)
    text = trunk.text(trunk.standardise(c))
    assert trunk(c).shape == (5, 3, 2, trunk.features) == (5, 3, 2, 512)
    for layer in range(3):
        for m in range(2):
            depth = trunk.depth_norm(trunk.depth.weight[layer]).expand(5, 32)
            module = trunk.module_norm(trunk.module.weight[m]).expand(5, 32)
            x = trunk.mixer(torch.cat([text, depth, module], dim=1))
            for block in trunk.blocks:
                x = x + block(x)
            assert torch.allclose(trunk(c)[:, layer, m], trunk.out(x), atol=1e-5)
    parts = [type(part) for _, part in trunk.named_modules(remove_duplicate=False)]
    assert parts.count(nn.Dropout) == parts.count(nn.SiLU) == 8
    assert {part.p for part in trunk.modules() if isinstance(part, nn.Dropout)} == {0.05}


@EVERY_TRUNK
@pytest.mark.parametrize("kind", ["t2l", *GENERATED_Z])
def test_what_is_generated_for_all_sites_at_once_is_that_of_each_site_through_a_linear_layer(kind, trunk):
    network = build(kind, trunk=trunk)
    for name, weight in network.named_parameters():
        if name.startswith("head"):
            nn.init.normal_(weight)
    c = torch.randn(5, 32)
    features = network.trunk(c)
    for (layer, module), update in network(c).items():
        m = network.config.modules.index(module)
        if kind == "t2l":
            generated = torch.cat([update.A.flatten(1), update.B.flatten(1)], dim=1)
            expected = network.heads[module](features[:, layer, m])
        else:
            generated = update.z.flatten(1)
            expected = F.linear(features[:, layer, m], network.head_weight[m], network.head_bias[m])
            assert torch.equal(update.A, network.A[module][layer])
            assert torch.equal(update.B, network.B[module][layer])
        assert torch.allclose(generated, expected, atol=1e-4)


@EVERY_TRUNK
@pytest.mark.parametrize("kind", KINDS)
def test_every_site_has_an_update_of_which_exactly_one_factor_is_zero_so_that_step_0_is_the_frozen_model(kind, trunk):
    network = build(kind, layers=3, lowest_layer=2, modules=("v", "down", "q"), rank=5, scale=0.7, trunk=trunk)
    adapter = network(torch.randn(3, 32))
    assert list(adapter) == [(layer, module) for layer in (2, 3, 4) for module in ("v", "down", "q")]
    for (_, module), update in adapter.items():
        d_in, d_out = SHAPES[module]
        assert update.B.count_nonzero() == 0 and update.B.shape[-2:] == (d_out, 5)
        assert update.A.abs().max() <= d_in**-0.5 and update.A.shape[-2:] == (5, d_in)
        assert abs(update.A.std() * (3 * d_in) ** 0.5 - 1) < 0.15  # uniform
        assert update.z is None or update.z.count_nonzero() == update.z.numel()
        assert update.scale == 0.7


@pytest.mark.parametrize(("trunk", "std"), [("gated", 2.4), ("paper", 0.4)])
@pytest.mark.parametrize("kind", GENERATED_Z)
def test_z_differs_between_texts_from_the_start(kind, trunk, std):
    network = build(kind, d_text=128, rank=16, trunk=trunk, features=224)
    for update in network(torch.randn(64, 128)).values():
        a = update.times_z(torch.ones(64, 1, 16)).std(0).mean()  # a square sums 16 numbers here
        assert std / 2 < a < 2 * std


class OfTheBackbone(ZhyperDiag):
    """Zhyper whose A is the first rows of each frozen weight."""

    def take_backbone(self, backbone):
        for layer, module in self.sites():
            A = self.A[module][layer - self.config.lowest_layer]
            A.data.copy_(backbone.linear(layer, module).weight[: self.config.rank])


def test_a_hypernetwork_of_ones_own_is_given_the_backbone_and_what_it_learns_then_is_saved(monkeypatch, tmp_path):
    monkeypatch.setitem(HYPERNETWORKS, "of-the-backbone", OfTheBackbone)
    system = build_system("of-the-backbone", lowest_layer=1)
    A = system.hypernetwork.A["v"]
    assert torch.equal(A[0], system.backbone.linear(1, "v").weight[:4])
    nn.init.normal_(A)
    system.save(tmp_path / "own.pt")
    again = Zhyper.load(tmp_path, "own")
    for site, update in system.adapt(TEXTS[:1]).items():
        assert torch.allclose(again.adapt(TEXTS[:1])[site].delta(), update.delta(), atol=1e-5)
