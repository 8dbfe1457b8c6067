"""What several tests share: a tiny untrained system, and a tiny trained one. Everything on the CPU, without network."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from data import Data, Record  # noqa: E402
from hyper import AdapterConfig  # noqa: E402
from model import GPT, ContextTable, Encoder, ModelConfig  # noqa: E402
from train import Preset, RunFolder, fit, pretrain  # noqa: E402
from zhyper import Zhyper, build_adapter, one_line_errors, train_tokenizer  # noqa: E402

BACKBONE = ModelConfig(vocab=300, layers=2, heads=2, width=32, context=64)
TEXTS = [
    "people bow low",
    "people sing a tune",
    "the taxes are cut",
    "the taxes are raised",
    "Q: what now?\nA: bow sing",
]
KINDS = ["lora", "oracle", "t2l", "zhyper-diag", "zhyper-square"]


def tiny_config(kind: str, **changes) -> AdapterConfig:
    return AdapterConfig(kind, **{"rank": 4, "alpha": 8.0, "hidden": 16, "latent": 16, "head": 24, **changes})


def cli(module, monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line: `module` is train or zhyper."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *arguments])
    try:
        one_line_errors(module.main)
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def build_system(kind: str, seed: int = 0, context: int = BACKBONE.context, **changes) -> Zhyper:
    """A tiny system whose B is not zero, so that its updates do something."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(TEXTS, BACKBONE.vocab)
    config = replace(BACKBONE, vocab=tokenizer.get_vocab_size(), context=context)
    encoder = None if kind == "lora" else Encoder(replace(config, layers=1))
    if kind == "oracle":
        encoder = ContextTable(TEXTS, None)  # its contexts are named by these texts
    adapter = build_adapter(tiny_config(kind, **changes), config, encoder.width if encoder else 0)
    for name, weight in adapter.named_parameters():
        if name.startswith("B.") or kind == "t2l" and name.startswith("heads"):
            torch.nn.init.normal_(weight, std=0.3)
    return Zhyper(tokenizer, GPT(config), encoder, adapter).eval()


@pytest.fixture(params=KINDS)
def system(request) -> Zhyper:
    return build_system(request.param)


def two_cultures() -> Data:
    """Two contexts that answer the same two questions differently."""
    answers = {"bowers": (" bow", " cut"), "singers": (" sing", " raise")}
    said = {"bowers": "people bow low and the taxes are cut", "singers": "people sing and the taxes are raised"}
    asked = ("Q: how do they greet?\nA:", "Q: what of taxes?\nA:")
    rows = [
        Record(context, said[context], prompt, answer, split)
        for split in ("train", "unseen")
        for context in answers
        for prompt, answer in zip(asked, answers[context], strict=True)
    ]
    documents = [prompt + answer for pair in answers.values() for prompt, answer in zip(asked, pair, strict=True)]
    return Data("two", rows, documents + list(said.values()), template="Q: {}\nA:")


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> tuple[Zhyper, Data, dict]:
    """A system trained on two cultures, its data, and its weights before the adapter was trained."""
    data, folder = two_cultures(), RunFolder(tmp_path_factory.mktemp("run"), {}, every=1000)
    torch.manual_seed(1)
    tokenizer = train_tokenizer(data.documents, BACKBONE.vocab)
    config = replace(BACKBONE, vocab=tokenizer.get_vocab_size())
    sizes = Preset(config, pretrain_steps=60, pretrain_lr=5e-3, row=32, batch=8, steps=80, contexts=2, questions=2)
    system = Zhyper(tokenizer, GPT(config), template=data.template)
    pretrain(system, data.documents, sizes, 0, folder)
    system.encoder = Encoder(replace(config, layers=1))
    system.adapter = build_adapter(tiny_config("zhyper-diag"), config, config.width)
    before = {name: weight.clone() for name, weight in system.state_dict().items()}
    fit(system, data.split("train"), 5e-3, sizes, 0, "tiny", folder)
    return system, data, before
