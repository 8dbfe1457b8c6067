"""What several tests share: a tiny untrained system, a tiny trained one, a command line. No network."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so it is set before

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

import train  # noqa: E402
from data import Data, Record, cultures, facts  # noqa: E402
from data.tokenizer import train_tokenizer  # noqa: E402
from hyper import HYPERNETWORKS, HyperConfig  # noqa: E402
from model import GPT, Encoder, EncoderConfig, ModelConfig  # noqa: E402
from zhyper import Zhyper  # noqa: E402

torch.set_num_threads(1)  # so small are the networks here that more threads are slower
hypothesis.settings.register_profile("any machine", max_examples=50, deadline=None, database=None)
hypothesis.settings.load_profile("any machine")

BACKBONE = ModelConfig(vocab_size=300, block_size=128, layers=2, heads=2, kv_heads=1, width=32, inner=64)
ENCODER = EncoderConfig(vocab_size=300, block_size=128, layers=1, heads=2, width=32, inner=64)
TEXTS = [
    "people bow low",
    "people sing a tune",
    "the taxes are cut",
    "the taxes are raised",
    "Q: what now?\nA: bow sing",
]
KINDS = list(HYPERNETWORKS)


def tiny_config(kind: str, **changes) -> HyperConfig:
    options = {"rank": 4, "scale": 2.0, "modules": ("q", "k", "v", "o"), "lowest_layer": 0}
    options |= {"trunk": "gated", "features": 16, "narrow": 64, "reading": "statements", "noise": 0.0}
    return HyperConfig(kind, **options | changes)


def build_system(kind: str, seed: int = 0, block_size: int = 64, **changes) -> Zhyper:
    """A tiny system whose B and z are not zero, so that its updates do something; `changes` of HyperConfig."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(TEXTS, BACKBONE.vocab_size)
    vocab_size = tokenizer.get_vocab_size()
    encoder = None
    if HYPERNETWORKS[kind].reads_text:
        encoder = Encoder(replace(ENCODER, vocab_size=vocab_size, block_size=block_size))
    system = Zhyper(tokenizer, GPT(replace(BACKBONE, vocab_size=vocab_size, block_size=block_size)), encoder)
    system.add_hypernetwork(tiny_config(kind, **changes))
    with torch.no_grad():
        for name, weight in system.hypernetwork.named_parameters():
            if name.startswith(("B.", "head")):
                weight.normal_(std=0.3)
        if system.encoder:  # a fresh encoder embeds all texts almost alike
            e = system.run_encoder(TEXTS)
            system.hypernetwork.trunk.standardise.running_mean.copy_(e.mean(0))
            system.hypernetwork.trunk.standardise.running_var.copy_(e.var(0))
    return system.eval()


@pytest.fixture(params=KINDS)
def system(request) -> Zhyper:
    return build_system(request.param)


def two_cultures() -> Data:
    """Two contexts that answer the same two questions differently; unseen texts have a comma more."""
    questions = ("how do they greet?", "what of taxes?")
    described = {"bowers": "people bow low and the taxes are cut", "singers": "people sing and the taxes are raised"}
    answers = {"bowers": ("bow", "cut"), "singers": ("sing", "raise")}
    records = []
    for split in ("train", "unseen"):
        for context, description in described.items():
            for question, answer in zip(questions, answers[context], strict=True):
                name = context if split == "train" else f"{context}, elsewhere"
                text = description if split == "train" else description.replace(" and", ", and")
                records.append(Record(name, text, question, answer, split))
    documents = [record.document for record in records if record.split == "train"]
    return Data("two", records, [*documents, *described.values()])


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> tuple[Zhyper, Data, dict]:
    """A system that was trained until it answers right, its data, and its weights before that training."""
    data = two_cultures()
    folder = tmp_path_factory.mktemp("trained")
    tokenizer = train_tokenizer(data.documents, BACKBONE.vocab_size)
    vocab_size = tokenizer.get_vocab_size()
    torch.manual_seed(1)
    backbone = GPT(replace(BACKBONE, vocab_size=vocab_size))
    system = Zhyper(tokenizer, backbone, Encoder(replace(ENCODER, vocab_size=vocab_size)))
    config = train.Config(
        pretrain_steps=60, pretrain_lr=1e-2, descriptions_per_step=2, steps=120, lr=1e-2, device="cpu"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "PRETRAIN_TOKENS", 32)
        train.pretrain(folder / "backbone.pt", system, data.documents, config, None)
    system.add_hypernetwork(tiny_config("zhyper-diag"))
    system.encoder.requires_grad_(True)
    before = {name: weight.clone() for name, weight in system.state_dict().items()}
    records = data.split("train")
    encoded = train.encode_records(system, records, [record.description for record in records])
    train.fit(folder / "zhyper-diag.pt", system, data, encoded, config, None)
    return system.requires_grad_(False).eval(), data, before


def run_cli(*arguments: str | Path, cwd: str | Path | None = None, timeout: float = 120):
    """A command line in a process of its own: run_cli("train.py", "--preset", "smoke"). Its output is text."""
    script, *words = map(str, arguments)
    command = [sys.executable, str(ROOT / script), *words]
    environment = os.environ | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=cwd, env=environment, timeout=timeout, capture_output=True, text=True, encoding="utf-8"
    )


@pytest.fixture
def run_main(monkeypatch, capsys):
    """A command line in this process, by its `main`: what it prints, or the last line of its error."""

    def call(main, *words: object) -> str:
        monkeypatch.setattr(sys, "argv", [f"{main.__module__}.py", *map(str, words)])
        try:
            main()
        except SystemExit as stop:
            assert stop.code == 2
            return capsys.readouterr().err.splitlines()[-1]
        return capsys.readouterr().out

    return call


@pytest.fixture
def little_data(monkeypatch):
    """Built-in data sets make a sixteenth of their training descriptions and documents."""
    for module in (cultures, facts):
        for name in ("DESCRIPTIONS", "DOCUMENTS"):
            monkeypatch.setattr(module, name, getattr(module, name) // 16)
