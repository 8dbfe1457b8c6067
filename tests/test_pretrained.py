"""Real weights: read as transformers reads them, and written so that transformers and peft do.

What needs safetensors, transformers or peft skips where it is absent; the real models are read
where the environment variables SMOLLM2 and MINILM name their folders.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, TEXTS, build_system, cli

import model
import zhyper
from data import _pretrained as pretrained
from data._files import fingerprint
from data._rows import pad
from data._tokenizer import read_tokenizer, train_tokenizer
from hyper import HyperConfig
from model import GPT, MODULES, Encoder
from zhyper import Zhyper

safetensors = pytest.importorskip("safetensors.torch")
IDS = torch.randint(300, (2, 128), generator=torch.Generator().manual_seed(0))


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# ---- read, as transformers does


def random_model(folder: Path, kind: str, shards: int = 1, **sizes):
    """A model of transformers on random weights, saved by transformers in bf16."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 72, "intermediate_size": 80, "initializer_range": 0.2} | sizes
    sizes |= {"vocab_size": 300, "num_hidden_layers": 2, "max_position_embeddings": 128}
    config = getattr(transformers, kind.partition("For")[0].removesuffix("Model") + "Config")
    built = getattr(transformers, kind)(config(**sizes)).bfloat16()
    built.save_pretrained(folder, max_shard_size="1GB" if shards == 1 else "200KB")
    assert len(list(folder.glob("*.safetensors"))) == shards
    train_tokenizer(TEXTS, 300).save(str(folder / "tokenizer.json"))
    return type(built).from_pretrained(folder, dtype=torch.float32).eval()


GROUPED = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
UNTIED = {"num_attention_heads": 6, "rope_parameters": {"rope_theta": 5e5}, "shards": 2}
MISTRAL = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": None}


@torch.no_grad()
@pytest.mark.parametrize(("kind", "sizes"), [("Llama", GROUPED), ("Llama", UNTIED), ("Mistral", MISTRAL)])
def test_logits_are_those_of_transformers_and_a_wrong_theta_or_layout_would_show(kind, sizes, tmp_path, monkeypatch):
    expected = random_model(tmp_path, f"{kind}ForCausalLM", **sizes)(IDS).logits

    def error() -> float:
        return (GPT.from_pretrained(tmp_path)(IDS) - expected).abs().max().item()

    assert expected.std() > 0.5 and error() < 1e-4
    theta = json.loads((tmp_path / "config.json").read_text())["rope_parameters"]["rope_theta"]
    edit(tmp_path / "config.json", rope_parameters=None, rope_theta=theta)  # as older files do
    assert error() < 1e-4
    edit(tmp_path / "config.json", rope_theta=theta * 1.1)
    assert error() > 0.01
    edit(tmp_path / "config.json", rope_theta=theta)

    def rotate_neighbours(x, rope, rotate=model.rotate):
        return rotate(torch.cat([x[..., ::2], x[..., 1::2]], dim=-1), rope)

    monkeypatch.setattr(model, "rotate", rotate_neighbours)
    assert error() > 0.01


def averaged(bert, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean of transformers' hidden states over the tokens that are not padding."""
    hidden = bert(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    return torch.stack([x[m.bool()].mean(0) for x, m in zip(hidden, mask, strict=True)])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM"])
def test_embeddings_are_those_of_transformers_averaged_over_the_tokens(kind, tmp_path):
    bert = random_model(tmp_path, kind, num_attention_heads=4)
    bert = bert.bert if kind == "BertForMaskedLM" else bert
    ids, mask = pad([IDS[0, :n].tolist() for n in (3, 128, 17)])
    expected = averaged(bert, ids, mask)
    assert (Encoder.from_pretrained(tmp_path)(ids, mask) - expected).abs().max() < 1e-5


def real(variable: str) -> Path:
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set")
    return Path(os.environ[variable])


@torch.no_grad()
def test_smollm2_has_the_logits_and_the_answer_that_it_has_in_transformers():
    folder, transformers = real("SMOLLM2"), pytest.importorskip("transformers")
    ours, theirs = Zhyper.from_pretrained(folder), transformers.LlamaForCausalLM
    theirs = theirs.from_pretrained(folder, dtype=torch.float32).eval()
    (row,) = ours.ids([Path(zhyper.__file__).read_text()], "text")
    ids = torch.tensor([row[:200]])
    assert (ours.backbone(ids) - theirs(ids).logits).abs().max() < 1e-3
    asked, expected = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", []
    prompts = [asked.format("What is the capital of France?"), asked.format("How many legs has a spider?")]
    prompts += ["The sun rises in the", "def fibonacci(n):\n", "In this land people greet with a bow. To greet, they"]
    for prompt in prompts:
        ids = torch.tensor(ours.ids([prompt], "prompt"))
        written = theirs.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        expected.append(ours.tokenizer.decode(written.tolist()))
    assert ours.generate(prompts, max_new_tokens=24) == expected
    assert "Paris" in expected[0] and len(set(expected)) == 5


@torch.no_grad()
def test_an_adapter_of_smollm2_gives_in_peft_the_logits_that_it_has_here(tmp_path):
    folder, encoder = real("SMOLLM2"), Encoder.from_pretrained(real("MINILM"))
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    system, to = Zhyper.from_pretrained(folder), str(tmp_path / "adapter")
    system.encoder = encoder
    torch.manual_seed(0)
    system.hypernetwork = system.new_hypernetwork(HyperConfig(rank=8, alpha=16.0, first=20), encoder)
    for B in system.hypernetwork.B.values():
        torch.nn.init.normal_(B, std=0.02)
    system.export(TEXTS[0], to)
    assert json.loads(Path(to, "adapter_config.json").read_text())["base_model_name_or_path"] == str(folder)
    ids = torch.tensor([system.ids([Path(zhyper.__file__).read_text()], "text")[0][:100]])
    frozen, adapted = (system.backbone(ids, system.adapt(text)) for text in (None, TEXTS[:1]))
    base = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, to).eval()(ids).logits
    for ours in (adapted, system.merge(TEXTS[0])(ids)):
        assert (theirs - ours).abs().max() < 1e-3
    assert (adapted - frozen).abs().max() > 0.1


@torch.no_grad()
def test_minilm_has_the_embeddings_that_it_has_in_transformers():
    folder, transformers = real("MINILM"), pytest.importorskip("transformers")
    encoder, bert = Encoder.from_pretrained(folder), transformers.BertModel.from_pretrained(folder)
    tokenizer = read_tokenizer(folder, encoder.config.vocab_size)
    sentences = [f"{text} {' and'.join([' again'] * i)}" for i in range(5) for text in TEXTS[:4]]
    c = Zhyper(tokenizer, build_system("lora").backbone, encoder).embed(sentences)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(sentences, padding=True, return_tensors="pt")
    expected = averaged(bert, tokens["input_ids"], tokens["attention_mask"])
    assert len(c) == 20 and torch.cosine_similarity(c, expected).min() > 0.99999


# ---- a hub


class Hub(SimpleHTTPRequestHandler):
    """As much of the hub as snapshot_download asks for, served from a folder laid out like it."""

    def do_GET(self):
        if "broken" not in self.path:
            super().do_GET()

    def end_headers(self):
        self.send_header("ETag", f'"{Path(self.path).name}"')
        self.send_header("X-Repo-Commit", COMMIT)
        super().end_headers()

    def log_message(self, *_):
        pass


COMMIT = "a" * 40
LOAD = """if True:
    import sys
    from data._files import fingerprint
    from model import GPT
    for name in sys.argv[1:]:
        try:
            print(fingerprint(GPT.from_pretrained(name)))
        except FileNotFoundError as error:
            print(error)"""


def test_a_name_is_looked_up_on_the_hub_once_and_then_read_from_its_copy(tiny, tmp_path):
    api, files = tmp_path / "api/models/tiny/llama", tmp_path / "tiny/llama/resolve" / COMMIT
    shutil.copytree(tiny, files)
    sizes = {path.name: path.stat().st_size for path in tiny.iterdir()}
    tree = [{"type": "file", "path": f, "size": n, "oid": f} for f, n in sizes.items()]
    info = {"id": "tiny/llama", "sha": COMMIT, "siblings": []}
    for name, content in ((f"tree/{COMMIT}", tree), ("revision/main", info)):
        (api / name).parent.mkdir(parents=True)
        (api / name).write_text(json.dumps(content))
    hub = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=tmp_path))
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    place = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "hf")}

    def load(*names: str) -> list[str]:
        command, environ = [sys.executable, "-c", LOAD, *names], os.environ | place
        done = subprocess.run(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True)
        return done.stdout.splitlines()

    found, *others = load("tiny/llama", "tiny/absent", "tiny/broken")
    hub.shutdown()
    hub.server_close()
    again, other = load("tiny/llama", "tiny/other")
    assert found == again == fingerprint(GPT.from_pretrained(tiny))
    for line, name in zip([*others, other], ("absent", "broken", "other"), strict=True):
        assert f"no model tiny/{name}: it is no folder, and the hub does not give it" in line


# ---- folders that are not as they should be


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A tiny Llama of ours, in a folder."""
    system, folder = build_system("lora"), tmp_path / "llama"
    pretrained.write_llama(folder, system.backbone, system.tokenizer)
    return folder


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_written_is_read_again_bit_for_bit(tied, tmp_path):
    system = build_system("lora")
    gpt = GPT(replace(system.backbone.config, theta=5e5, tied=tied))
    system.tokenizer.enable_truncation(2)
    system.tokenizer.enable_padding()
    pretrained.write_llama(tmp_path, gpt, system.tokenizer)
    again = Zhyper.from_pretrained(tmp_path)
    assert again.backbone.config == gpt.config and fingerprint(again.backbone) == fingerprint(gpt)
    assert again.ids(TEXTS, "text") == build_system("lora").ids(TEXTS, "text")  # not cut, not padded
    with pytest.raises(ValueError, match="model_type is 'llama', and only 'bert' is built here"):
        Encoder.from_pretrained(tmp_path)


def damage(path: Path, change: dict | str | int | None) -> None:
    """Replace parts of a file or all of it, cut it off, or remove it."""
    if change is None:
        path.unlink()
    elif isinstance(change, int):
        os.truncate(path, change)
    elif isinstance(change, str):
        path.write_text(change)
    elif path.suffix == ".json":
        edit(path, **change)
    else:
        tensors = safetensors.load_file(path) | change
        safetensors.save_file({k: v for k, v in tensors.items() if v is not None}, path)


CONFIG, WEIGHTS, TOKENS = "config.json", "model.safetensors", "tokenizer.json"
INDEX, NORM = "model.safetensors.index.json", "model.norm.weight"
UP, BIAS = (f"model.layers.0.{name}" for name in ("mlp.up_proj.weight", "self_attn.q_proj.bias"))
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (WEIGHTS, None, "no file {}/model.safetensors"),
        (WEIGHTS, 5000, "{}/model.safetensors is damaged"),
        (WEIGHTS, {UP: None}, f"the tensor {UP} is missing"),
        (WEIGHTS, {BIAS: torch.zeros(32)}, f"nothing here uses the tensor {BIAS}"),
        (WEIGHTS, {NORM: torch.zeros(33)}, f"{NORM} is (33,), and config.json says (32,)"),
        (INDEX, '{"weight_map": {"x": "part.safetensors"}}', "no file {}/part.safetensors"),
        (TOKENS, None, "no file {}/tokenizer.json"),
        (TOKENS, "{", "{}/tokenizer.json is damaged"),
        (TOKENS, {"added_tokens": [FLAGS | {"id": 300, "content": "!!!"}]}, "tokenizer.json has 301"),
        (CONFIG, None, "no file {}/config.json"),
        (CONFIG, "{", "{}/config.json is damaged"),
        (CONFIG, {"model_type": "gpt2"}, "model_type is 'gpt2', and only 'llama' or 'mistral'"),
        (CONFIG, {"rope_scaling": {"factor": 2.0}}, "rope_scaling is {'factor': 2.0}, and only"),
        (CONFIG, {"rope_parameters": {"rope_type": "llama3"}}, "rope_type is 'llama3', and only"),
        (CONFIG, {"sliding_window": 4096}, "sliding_window is 4096, and only None"),
        (CONFIG, {"rope_theta": None}, "rope_theta is None: write the number"),
        (CONFIG, {"rms_norm_eps": None}, "rms_norm_eps is None: write the number"),
        (CONFIG, {"hidden_size": "32"}, "hidden_size is '32': write the number"),
        (CONFIG, {"tie_word_embeddings": False}, "the tensor lm_head.weight is missing"),
    ],
)
def test_a_folder_that_is_not_right_is_one_line_that_names_the_tensor_or_the_file(
    file, change, message, tiny, monkeypatch, capsys
):
    damage(tiny / file, change)
    module = SimpleNamespace(__name__="load", main=lambda: Zhyper.from_pretrained(tiny))
    code, _, err = cli(module, monkeypatch, capsys)
    assert code == 2 and err.count("\n") == 1 and message.replace("{}", str(tiny)) in err


# ---- written, for peft and transformers


@torch.no_grad()
@pytest.mark.parametrize("modules", [("q", "v"), MODULES])
@pytest.mark.parametrize("kind", ["t2l", "zhyper-diag", "zhyper-square"])
def test_peft_and_transformers_load_an_export_and_have_our_logits(kind, modules, tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    system = build_system(kind, modules=modules)
    ids, (to, backbone) = IDS[:, :40] % 200, (str(tmp_path / name) for name in ("a", "b"))
    system.export(TEXTS[0], to, backbone)
    base = transformers.AutoModelForCausalLM.from_pretrained(backbone).eval()
    frozen, adapted = (system.backbone(ids, system.adapt(d)) for d in (None, TEXTS[:1] * 2))
    assert (base(ids).logits - frozen).abs().max() < 1e-5
    loaded = peft.PeftModel.from_pretrained(base, to).eval()
    assert (loaded(ids).logits - adapted).abs().max() < 1e-5
    assert (adapted - frozen).abs().max() > 1e-2
    merged = system.merge(TEXTS[0])(ids)
    assert (loaded.merge_and_unload()(ids).logits - merged).abs().max() < 1e-5
    tokenizer = transformers.AutoTokenizer.from_pretrained(backbone)
    assert tokenizer(TEXTS)["input_ids"] == system.ids(TEXTS, "text")
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, base.config.eos_token_id)


def test_an_export_into_a_folder_that_exists_needs_force_and_else_writes_nothing(monkeypatch, capsys, tmp_path):
    system, old, new = build_system("zhyper-diag"), str(tmp_path / "old"), str(tmp_path / "new")
    system.save_backbone(tmp_path)
    system.save(tmp_path, "zhyper-diag")

    def export(*words: str) -> tuple[int, str, str]:
        words = "--run", str(tmp_path), "--description", "people bow", "--to", *words
        return cli(zhyper, monkeypatch, capsys, "export", *words)

    assert export(old)[0] == 0
    for words in ([old], [old, "--backbone", new], [new, "--backbone", old]):
        code, out, err = export(*words)
        assert code == 2 and out == "" and err.count("\n") == 1
        assert f"{old} exists: choose another folder" in err and not os.path.exists(new)
    assert export(old, "--backbone", new, "--force")[0] == 0
    config = json.loads(Path(old, "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == new


def test_an_export_names_the_layers_that_it_adapts(tmp_path):
    build_system("zhyper-diag", first=1).export(TEXTS[0], str(tmp_path / "to"))
    assert json.loads((tmp_path / "to" / "adapter_config.json").read_text())["layers_to_transform"] == [1]
