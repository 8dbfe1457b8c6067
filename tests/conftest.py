"""What several tests share: a tiny untrained system and a tiny trained one, on the CPU, offline."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import train  # noqa: E402
from data import Data, Record  # noqa: E402
from data._cli import one_line_errors  # noqa: E402
from data._tokenizer import train_tokenizer  # noqa: E402
from hyper import HyperConfig  # noqa: E402
from model import GPT, Encoder, ModelConfig  # noqa: E402
from zhyper import Zhyper  # noqa: E402

BACKBONE = ModelConfig(300, 64, layers=2, heads=2, kv_heads=2, width=32, inner=64)
TEXTS = [
    "people bow low",
    "people sing a tune",
    "the taxes are cut",
    "the taxes are raised",
    "Q: what now?\nA: bow sing",
]
KINDS = ["lora", "t2l", "zhyper-diag", "zhyper-square"]


def tiny_config(kind: str, **changes) -> HyperConfig:
    sizes = {"rank": 4, "alpha": 8.0, "hidden": 16, "latent": 16, "head": 24}
    return HyperConfig(kind, **sizes | changes)


def cli(module, monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line: `module` is train, zhyper or evidence."""
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *arguments])
    try:
        one_line_errors(module.main)
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, *capsys.readouterr()


def build_system(kind: str, seed: int = 0, block_size: int = 64, **changes) -> Zhyper:
    """A tiny system whose B is not zero, so that its updates do something."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(TEXTS, BACKBONE.vocab_size)
    config = replace(BACKBONE, vocab_size=tokenizer.get_vocab_size(), block_size=block_size)
    system = Zhyper(tokenizer, GPT(config))
    if kind != "lora":
        system.encoder = Encoder(replace(config, layers=1))
    system.hypernetwork = system.new_hypernetwork(tiny_config(kind, **changes), system.encoder)
    for name, weight in system.hypernetwork.named_parameters():
        if name.startswith("B.") or kind == "t2l" and name.startswith("heads"):
            torch.nn.init.normal_(weight, std=0.3)
    return system.eval()


@pytest.fixture(params=KINDS)
def system(request) -> Zhyper:
    return build_system(request.param)


def two_cultures() -> Data:
    """Two contexts that answer the same two questions differently."""
    answers = {"bowers": (" bow", " cut"), "singers": (" sing", " raise")}
    described = {"bowers": "people bow low and the taxes are cut", "singers": "people sing and the taxes are raised"}
    prompts = ("Q: how do they greet?\nA:", "Q: what of taxes?\nA:")
    rows = [
        Record(context, described[context], prompt, answer, split)
        for split in ("train", "unseen")
        for context in answers
        for prompt, answer in zip(prompts, answers[context], strict=True)
    ]
    pairs = [zip(prompts, several, strict=True) for several in answers.values()]
    documents = [prompt + answer for pair in pairs for prompt, answer in pair]
    return Data("two", rows, [*documents, *described.values()], template="Q: {}\nA:")


def smoke(path: str, out: Path, **changes) -> train.Settings:
    """Settings of a run of a few steps."""
    options = {"preset": "smoke", "steps": 3, "device": "cpu", **changes}
    return train.Settings(data=path, out=str(out), **options)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> tuple[Zhyper, Data, dict]:
    """A system trained on two cultures, its data, and its weights before its own training."""
    data, folder = two_cultures(), tmp_path_factory.mktemp("run")
    tokenizer = train_tokenizer(data.documents, BACKBONE.vocab_size)
    config = replace(BACKBONE, vocab_size=tokenizer.get_vocab_size())
    with pytest.MonkeyPatch.context() as patch:
        preset = train.Preset(config, replace(config, layers=1), 60, 5e-3, batch=2, questions=2)
        patch.setitem(train.PRESETS, "smoke", preset)
        patch.setattr(train, "ROW", 32)
        torch.manual_seed(1)
        system = Zhyper(tokenizer, GPT(config), template=data.template)
        settings = smoke("two.jsonl", folder, steps=80)
        train.pretrain(system, data.documents, settings)
        system.encoder = Encoder(preset.encoder)
        system.hypernetwork = system.new_hypernetwork(tiny_config("zhyper-diag"), system.encoder)
        before = {name: weight.clone() for name, weight in system.state_dict().items()}
        method = train.Method("zhyper-diag", lr=5e-3)
        train.fit(system, "tiny", method, data.split("train"), settings)
    return system.eval(), data, before
