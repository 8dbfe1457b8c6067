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
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
EVERY_TRUNK = pytest.mark.parametrize("trunk", TRUNKS)


def build(kind: str, layers: int = 2, d_text: int = 32, **changes) -> Hypernetwork:
    """A hypernetwork as it is before training, but without dropout."""
    torch.manual_seed(0)
    network = HYPERNETWORKS[kind](tiny_config(kind, **changes), layers, SHAPES, d_text)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


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


def read(network: Hypernetwork, texts: int, d_text: int = 32) -> torch.Tensor | None:
    """c of texts with one random part each, as the network's trunk reads it; None for one that reads none."""
    return network.trunk.read(torch.randn(texts, d_text)) if network.reads_text else None


# ---- how many parameters: the paper's numbers, at the size of real models

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


# ---- trunks


@EVERY_TRUNK
def test_embeddings_are_standardised_by_their_batch_in_training_and_by_what_was_seen_afterwards(trunk):
    layer = build("zhyper-diag", trunk=trunk).trunk.standardise
    c = 5 + torch.randn(40, 32) * torch.arange(1, 33)
    for _ in range(100):  # its running mean and variance become those of the batches
        y = layer(c)
    assert torch.allclose(y.mean(0), torch.zeros(32), atol=1e-5)
    assert torch.allclose(y.std(0, correction=0), torch.ones(32), atol=1e-3)
    layer.eval()
    assert torch.allclose(layer(c[:3]), y[:3], atol=0.1)
    assert not list(layer.parameters())  # nothing in it is trained


def test_the_gated_trunk_multiplies_what_the_text_says_by_a_gate_of_each_site():
    trunk = build("zhyper-diag", layers=3, modules=("q", "up"), features=24).trunk.eval()
    e = torch.randn(5, 32)
    trunk.standardise.running_mean.normal_()
    narrow, norm, wide = trunk.text
    centred = (e - trunk.standardise.running_mean) / (trunk.standardise.running_var + 1e-5).sqrt()
    u = F.silu(wide(norm(narrow(centred))))
    features = trunk(trunk.read(e))
    assert features.shape == (5, 3, 2, trunk.features) == (5, 3, 2, 24)
    for layer in range(3):
        for m in range(2):
            assert torch.allclose(features[:, layer, m], trunk.gate[layer, m] * u, atol=1e-5)


def test_the_papers_trunk_joins_text_depth_and_module_and_adds_two_blocks_to_their_mixture():
    trunk = build("zhyper-diag", layers=3, modules=("q", "up"), trunk="paper").trunk.eval()
    e = torch.randn(5, 32)
    features = trunk(trunk.read(e))
    assert features.shape == (5, 3, 2, trunk.features) == (5, 3, 2, 512)
    for layer in range(3):
        for m in range(2):
            depth = trunk.depth_norm(trunk.depth(torch.tensor(layer))).expand(5, 32)
            module = trunk.module_norm(trunk.module(torch.tensor(m))).expand(5, 32)
            x = trunk.mixer(torch.cat([trunk.text(trunk.standardise(e)), depth, module], dim=1))
            for block in trunk.blocks:
                x = x + block(x)
            assert torch.allclose(features[:, layer, m], trunk.out(x), atol=1e-5)
    layers = [layer for _, layer in trunk.named_modules(remove_duplicate=False)]
    assert sum(isinstance(layer, nn.Dropout) for layer in layers) == 8  # one and the same, in many places
    assert sum(isinstance(layer, nn.SiLU) for layer in layers) == 8


# ---- statements: where the mean is taken

ONE = "it xx the zz, and it yy the ww"  # verbs and topics of as many tokens each
OTHER = "it yy the zz, and it xx the ww"


def bag_of_words(**changes) -> Zhyper:
    """A system whose encoder knows no order: no attention, and no positions."""
    system = build_system("zhyper-diag", **changes)
    system.encoder.blocks = nn.ModuleList()
    nn.init.zeros_(system.encoder.position.weight)
    return system


@torch.no_grad()
def test_who_opposes_what_is_told_apart_by_statements_and_not_by_a_mean_that_is_taken_before():
    system = bag_of_words()
    one, other = system.embed([ONE, OTHER])
    assert (one - other).abs().max() > 1e-3
    before = []  # the mean of embeddings, and then the nonlinearity
    for text in (ONE, OTHER):
        e = system.embed_parts(system.parts_of(text))  # (2, d_text)
        before.append(system.hypernetwork.trunk.read(e.mean(0, keepdim=True)))
    assert torch.allclose(*before, atol=1e-5)


@torch.no_grad()
def test_the_order_of_statements_changes_nothing_and_a_batch_of_texts_is_each_alone():
    system = bag_of_words()
    first, second = "people bow low; the taxes are cut", "the taxes are cut; people bow low"
    together = system.embed([first, ONE, second, "people sing a tune"])
    assert torch.allclose(together[0], together[2], atol=1e-5)
    assert torch.allclose(together[1:2], system.embed([ONE]), atol=1e-5)
    assert torch.allclose(together[3:], system.embed(["people sing a tune"]), atol=1e-5)


@torch.no_grad()
def test_z_of_a_text_is_the_bias_and_what_each_statement_adds_over_the_root_of_their_number():
    system = bag_of_words()
    bias = system.hypernetwork.head_bias  # (m, r)
    nn.init.normal_(bias)
    statements = ["people bow low", "the taxes are cut", "people sing a tune"]
    together = system.adapt([", and ".join(statements)])
    alone = system.adapt(statements)
    for (layer, module), update in together.items():
        own = bias[system.hypernetwork.config.modules.index(module)]
        added = (alone[layer, module].z - own).sum(0) / 3**0.5
        assert torch.allclose(update.z[0], own + added, atol=1e-4)


def test_noise_is_of_training_alone():
    trunk = build("zhyper-diag", noise=0.5).trunk
    e = torch.randn(8, 32)
    assert not torch.allclose(trunk.read(e), trunk.read(e))
    trunk.eval()
    assert torch.equal(trunk.read(e), trunk.read(e))


@torch.no_grad()
@pytest.mark.parametrize("changes", [{"reading": "text"}, {"trunk": "paper"}])
def test_a_trunk_that_reads_no_statements_reads_the_embedding_of_the_whole_text(changes):
    system = build_system("zhyper-diag", **changes)
    whole = system.run_encoder([ONE, OTHER])
    assert torch.allclose(system.embed([ONE, OTHER]), system.hypernetwork.trunk.read(whole), atol=1e-5)


# ---- what is generated


@EVERY_KIND
def test_every_site_from_the_lowest_layer_up_gets_an_update_of_its_shape_and_with_the_scale(kind):
    network = build(kind, layers=3, lowest_layer=2, modules=("v", "down", "q"), rank=5, scale=0.7)
    adapter = network(read(network, 3))
    assert list(adapter) == [(layer, module) for layer in (2, 3, 4) for module in ("v", "down", "q")]
    for (_, module), update in adapter.items():
        d_in, d_out = SHAPES[module]
        assert update.scale == 0.7 and update.A.shape[-2:] == (5, d_in)
        assert update(torch.randn(3, 7, d_in)).shape == (3, 7, d_out)


@EVERY_TRUNK
@pytest.mark.parametrize("kind", GENERATED_Z)
def test_z_of_all_sites_at_once_is_z_site_by_site_through_a_plain_linear_layer(kind, trunk):
    network = build(kind, trunk=trunk)
    nn.init.normal_(network.head_bias)
    c = read(network, 5)
    features = network.trunk(c)
    for (layer, module), update in network(c).items():
        m = network.config.modules.index(module)
        z = F.linear(features[:, layer, m], network.head_weight[m], network.head_bias[m])
        assert torch.allclose(update.z.flatten(1), z, atol=1e-4)
        assert torch.equal(update.A, network.A[module][layer])
        assert torch.equal(update.B, network.B[module][layer])


def test_the_head_of_text_to_lora_emits_A_and_then_B():
    network = build("t2l")
    for head in network.heads.values():
        nn.init.normal_(head.weight)
    c = read(network, 5)
    features = network.trunk(c)
    for (layer, module), update in network(c).items():
        m = network.config.modules.index(module)
        emitted = network.heads[module](features[:, layer, m])
        both = torch.cat([update.A.flatten(1), update.B.flatten(1)], dim=1)
        assert torch.allclose(both, emitted, atol=1e-4)


# ---- the start


@EVERY_TRUNK
@EVERY_KIND
def test_exactly_one_factor_starts_at_zero_so_that_step_0_is_the_frozen_model(kind, trunk):
    network = build(kind, trunk=trunk)
    for (_, module), update in network(read(network, 3)).items():
        started = {SHAPES[module][0] ** -0.5: update.A}  # {what it is within: a factor that is not zero}
        if kind in GENERATED_Z:
            assert update.z.count_nonzero() == 0
            started[network.config.rank**-0.5] = update.B
        else:
            assert update.z is None and update.B.count_nonzero() == 0
        for bound, factor in started.items():
            assert factor.abs().max() <= bound and abs(factor.std() - bound / 3**0.5) < 0.15 * bound


@EVERY_TRUNK
@pytest.mark.parametrize("kind", GENERATED_Z)
def test_the_first_step_moves_the_heads_alone_and_tells_texts_apart(kind, trunk):
    network = build(kind, trunk=trunk)
    c = read(network, 4)
    x = torch.randn(4, 3, 32)
    sum((update(x) - torch.randn(4, 3, 1)).square().mean() for update in network(c).values()).backward()
    moved = {name for name, weight in network.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert moved == {"head_weight", "head_bias"}
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    for update in network(c).values():
        assert (update.z - update.z[:1]).flatten(1).norm(dim=1)[1:].min() > 1e-4


@EVERY_TRUNK
@EVERY_KIND
def test_a_gradient_reaches_every_parameter_within_three_steps(kind, trunk):
    network = build(kind, trunk=trunk)
    e = torch.randn(8, 32)
    x = torch.randn(8, 3, 32)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        c = network.trunk.read(e) if network.reads_text else None
        sum((update(x) - 1).square().mean() for update in network(c).values()).backward()
        optimizer.step()
    assert all(weight.grad.any() for weight in network.parameters())


def test_a_step_may_have_a_single_statement_which_has_no_spread_to_be_standardised_by():
    system = build_system("zhyper-diag").train()
    loss, _ = system.score(["who?"] * 2, ["bow", "sing"], TEXTS[:1] * 2)
    loss.sum().backward()
    assert loss.isfinite().all() and system.encoder.word.weight.grad.any()
    assert system.hypernetwork.trunk.standardise.num_batches_tracked == 0
    system.score(["who?"] * 2, ["bow", "sing"], TEXTS[:2])
    assert system.hypernetwork.trunk.standardise.num_batches_tracked == 1


# ---- one more, as a reader would write it


class OfTheBackbone(ZhyperDiag):
    """Zhyper whose A is the first rows of each frozen weight, as they are when it is called."""

    def take_backbone(self, backbone):
        self.linear_of = backbone.linear

    def forward(self, c):
        adapter = super().forward(c)
        for site, update in adapter.items():
            update.A = self.linear_of(*site).weight[: self.config.rank]
        return adapter


def test_a_hypernetwork_of_ones_own_is_given_the_backbone_once_and_is_saved(monkeypatch, tmp_path):
    monkeypatch.setitem(HYPERNETWORKS, "of-the-backbone", OfTheBackbone)
    system = build_system("of-the-backbone", lowest_layer=1)
    nn.init.normal_(system.backbone.linear(1, "v").weight)  # as pretraining would change it
    updates = system.adapt(TEXTS[:2])
    assert torch.equal(updates[1, "v"].A, system.backbone.linear(1, "v").weight[:4])
    system.save(tmp_path / "own.pt")
    again = Zhyper.load(tmp_path, "own")
    ids = torch.randint(50, (2, 7))
    adapted = system.backbone(ids, system.adapt(TEXTS[:2]))
    assert torch.allclose(again.backbone(ids, again.adapt(TEXTS[:2])), adapted, atol=1e-5)
    for row in range(2):
        assert torch.allclose(again.merge(TEXTS[row])(ids)[row], adapted[row], atol=1e-4)
