"""The assembled system: from a description to an answer, an adapter of its own, files, and the command line."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from conftest import BACKBONE, KINDS, ROOT, TEXTS, build_system
from test_hyper import GeneratedB
from torch.utils._python_dispatch import TorchDispatchMode

import train
import zhyper
from data import cultures, read_jsonl
from data.tokenizer import encode_without_end, train_tokenizer
from hyper import HYPERNETWORKS
from model import GPT, MODULES, Encoder
from zhyper import Guide, Zhyper, read_torch

PROMPTS = ["Q: what now?\nA:", "people", "the taxes are cut and"]
ANSWERS = [" bow low", " sing", " raised a tune"]
READERS = [kind for kind in KINDS if HYPERNETWORKS[kind].reads_text]  # they make an adapter from a text


class SharedA(GeneratedB):
    """A reader's own hypernetwork: only B is generated, and one A serves all texts and all layers."""

    def forward(self, c):
        adapter = super().forward(c)
        return {site: replace(update, A=self.A[site[1]][0]) for site, update in adapter.items()}


@pytest.fixture(autouse=True)
def shared_a(monkeypatch):
    monkeypatch.setitem(HYPERNETWORKS, "shared-a", SharedA)


@pytest.fixture(params=[*READERS, "shared-a"])
def reader(request) -> Zhyper:
    return build_system(request.param)


def some_ids(rows: int) -> torch.Tensor:
    return torch.randint(2, 200, (rows, 9), generator=torch.Generator().manual_seed(0))


def logits_of(system: Zhyper, ids: torch.Tensor, descriptions) -> torch.Tensor:
    with torch.no_grad():
        return system.backbone(ids, system.adapt(descriptions))


# ---- from a text to an adapter


def test_contexts_in_one_batch_are_each_as_alone_and_none_is_the_frozen_model(system):
    system.double()
    ids, texts = some_ids(5), [TEXTS[2], TEXTS[0], None, TEXTS[0], TEXTS[3]]
    together = logits_of(system, ids, texts)
    frozen = logits_of(system, ids, None)
    for i, text in enumerate(texts):
        alone = logits_of(system, ids[i : i + 1], [text])[0]
        assert torch.allclose(together[i], alone, atol=1e-9)
        assert torch.allclose(together[i], frozen[i], atol=1e-3) == (text is None)
    update = system.adapt(texts)[1, "q"]
    x = torch.randn(5, 3, BACKBONE.width).double()
    assert not update(x)[2].any()  # exactly nothing is added for None
    assert update(x)[[0, 1, 3, 4]].all()
    assert system.adapt(None) == system.adapt([None, None]) == {}


def test_embeddings_serve_in_place_of_texts_and_so_does_a_point_between_two(reader):
    c, ids = reader.embed(TEXTS[:2]), some_ids(1).expand(2, -1)
    ends = logits_of(reader, ids, TEXTS[:2])
    assert torch.allclose(logits_of(reader, ids, c), ends, atol=1e-5)
    between = logits_of(reader, ids[:1], torch.lerp(c[:1], c[1:], 0.01))
    near, far = (between - ends).norm(dim=(1, 2))
    assert 1e-4 < near < far
    assert reader.generate(PROMPTS[:2], c, 8) == reader.generate(PROMPTS[:2], TEXTS[:2], 8)


def test_a_special_token_that_a_user_types_is_mere_text(tmp_path):
    system = build_system("zhyper-diag")
    system.save(tmp_path / "x.pt")
    for one in (system, Zhyper.load(tmp_path, "x")):
        one.description_in_prompt = True
        rows = one.encode_rows(["the <eos> of <pad>"], [" <eos>"], ["people <eos> bow"])
        assert rows.ids.min() > 1
        assert rows.targets[0, -1] == 1 and 1 not in rows.targets[0, :-1]
        assert not torch.allclose(*one.embed(["people bow", "people <eos> bow"]))


def test_what_was_embedded_before_a_move_does_not_stay_behind():
    system = build_system("zhyper-diag")
    system.encoder_frozen = True
    system.embed(TEXTS[:2])
    system.to(torch.bfloat16)
    assert system.embed(TEXTS[:3]).dtype == torch.bfloat16
    assert system.score(PROMPTS, ANSWERS, TEXTS[:3])[0].isfinite().all()
    if torch.accelerator.is_available():
        system.to(torch.accelerator.current_accelerator())
        assert system.embed(TEXTS[:4]).device.type == system.device.type


# ---- from an adapter to a loss


@torch.no_grad()
def test_the_loss_is_that_of_each_answer_and_its_end_and_of_nothing_else(system):
    texts = [TEXTS[0], None, TEXTS[1]]
    losses, counts, _ = system.score(PROMPTS, ANSWERS, texts)  # rows of different lengths
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        start, ids = (encode_without_end(system.tokenizer, [text], "text")[0] for text in (prompt, prompt + answer))
        logits = system.backbone(torch.tensor([ids]), system.adapt(texts[i : i + 1]))[0]
        targets = [*ids, 1][len(start) :]  # 1 is <eos>
        places = torch.arange(len(start) - 1, len(ids))
        assert losses[i].item() == pytest.approx(-logits.log_softmax(-1)[places, targets].sum().item(), rel=1e-4)
        assert counts[i] == len(targets)
    assert len(counts.unique()) > 1


def test_an_answer_is_exact_just_when_generation_writes_it(trained):
    system, data, _ = trained
    records = data.split("unseen")
    prompts = [record.prompt for record in records]
    texts = [record.description for record in records]
    right = [record.answer for record in records]
    written = system.generate(prompts, texts)
    assert written == right
    for answers in (right, right[::-1], [answer + " bow" for answer in right]):
        exact = system.score(prompts, answers, texts)[2].tolist()
        assert exact == [answer == text for answer, text in zip(answers, written, strict=True)]


def test_a_description_in_the_prompt_is_read_there_beside_an_adapter():
    system, texts = build_system("lora"), ["the taxes", None]
    expected = system.score(["the taxes\n" + PROMPTS[0], PROMPTS[1]], ANSWERS[:2], texts)[0]
    system.description_in_prompt = True
    assert torch.allclose(system.score(PROMPTS[:2], ANSWERS[:2], texts)[0], expected, rtol=1e-4)
    with pytest.raises(ValueError, match="^3 prompts, 2 descriptions: give one for each$"):
        system.generate(PROMPTS, texts)


@pytest.mark.parametrize("kind", KINDS)
def test_kept_states_give_the_same_step_and_nothing_below_the_lowest_layer_is_computed_in_it(kind):
    system, texts, computed = build_system(kind, lowest_layer=1), TEXTS[:3], []
    rows = system.encode_rows(PROMPTS, ANSWERS, texts)
    for layer, block in enumerate(system.backbone.layers):
        block.register_forward_hook(lambda *_, layer=layer: computed.append(layer))

    def step(rows, texts) -> list[torch.Tensor]:
        system.zero_grad()
        loss, tokens, _ = system(rows, texts)
        loss.sum().backward()
        return [loss.detach(), tokens, *(weight.grad for weight in system.hypernetwork.parameters())]

    expected = step(rows, texts)
    kept = system.with_states(rows)
    computed.clear()
    for found, right in zip(step(kept, texts), expected, strict=True):
        assert torch.allclose(found, right, rtol=1e-3, atol=1e-4)
    assert computed == [1]
    assert expected[-1].abs().max() > 1e-3
    found = step(kept.take([2, 0, 0]), [texts[2], texts[1], texts[0]])[0]
    assert torch.allclose(found[[0, 2]], expected[0][[2, 0]], rtol=1e-3)
    assert (found[1] - found[2]).abs() > 1e-3 or kind == "lora"  # the same row under another text


def test_a_bf16_backbone_computes_nearly_the_same_and_what_is_trained_stays_fp32(reader, tmp_path):
    for name, weight in reader.hypernetwork.named_parameters():
        if name.startswith(("B.", "heads.")):  # an update of the size that training gives it
            weight.data *= 0.05
    expected, frozen = (logits_of(reader, some_ids(3), texts) for texts in (TEXTS[:3], None))
    reader.backbone.to(torch.bfloat16)
    found = logits_of(reader, some_ids(3), TEXTS[:3])
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().mean() < 0.1 * (frozen - expected).abs().mean()
    optimizer = torch.optim.AdamW(train.parameter_groups(reader, lr=1e-3))
    reader.score(PROMPTS, ANSWERS, TEXTS[:3])[0].sum().backward()
    optimizer.step()
    trained = [*reader.encoder.parameters(), *reader.hypernetwork.parameters()]
    assert {(weight.dtype, weight.grad.dtype) for weight in trained} == {(torch.float32, torch.float32)}
    reader.save(tmp_path / "x.pt")
    again = Zhyper.load(tmp_path, "x")
    assert again.backbone.embed_tokens.weight.dtype == torch.bfloat16
    assert again.encoder.word.weight.dtype == torch.float32


# ---- from an adapter to an answer


def read_again(system: Zhyper, prompt: str, text: str | None, most: int) -> list[int]:
    """Greedy generation without a cache: every token from all that stands before it."""
    (row,) = encode_without_end(system.tokenizer, [prompt], "prompt")
    start, config = len(row), system.backbone.config
    while len(row) < min(start + most, config.block_size):
        token = logits_of(system, torch.tensor([row]), [text])[0, -1].argmax().item()
        if token in config.eos:
            break
        row = [*row, token]
    return row[start:]


def test_generation_is_reading_everything_again_row_by_row_until_either_end_token(system):
    system.double()
    prompts, texts = [*PROMPTS, PROMPTS[0]], [TEXTS[2], TEXTS[0], TEXTS[1], None]
    pairs = list(zip(prompts, texts, strict=True))
    endless = [read_again(system, *pair, 9) for pair in pairs]
    ends = (1, endless[0][3], endless[2][5])  # tokens that two rows do write
    system.backbone.config = replace(system.backbone.config, eos=ends)
    expected = [read_again(system, *pair, 9) for pair in pairs]
    assert len(expected[0]) <= 3 and len(expected[2]) <= 5
    assert system.generate(prompts, texts, 9) == system.tokenizer.decode_batch(expected)
    system.backbone.config = replace(system.backbone.config, eos=(1,))
    assert system.generate(prompts, texts, 9) == system.tokenizer.decode_batch(endless)
    assert [system.generate([prompt], [text], 9)[0] for prompt, text in pairs] == system.tokenizer.decode_batch(endless)
    assert len(set(map(tuple, endless))) == 4


def test_a_row_ends_when_it_is_full_and_a_shorter_one_beside_it_goes_on():
    system = build_system("zhyper-diag").double()
    prompts = ["people", " bow" * 63, " bow" * 61]
    expected = [read_again(system, prompt, TEXTS[0], 20) for prompt in prompts]
    assert [len(row) for row in expected] == [20, 1, 3]  # 64 tokens is all that it reads
    assert system.generate(prompts, TEXTS[:1] * 3, 20) == system.tokenizer.decode_batch(expected)


def test_the_same_seed_draws_the_same_answers_and_another_seed_others():
    system = build_system("zhyper-diag")
    drawn = [system.generate(PROMPTS, TEXTS[:3], temperature=2.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert system.generate(PROMPTS, TEXTS[:3]) not in drawn


# ---- one description's adapter, taken away


def test_a_merged_model_is_a_plain_gpt_with_the_logits_of_the_adapted_one(reader):
    ids = some_ids(2)
    frozen, adapted = logits_of(reader, ids, None), logits_of(reader, ids, TEXTS[:1] * 2)
    merged = reader.merge(TEXTS[0])
    assert type(merged) is GPT
    assert torch.allclose(merged(ids), adapted, atol=1e-4)
    assert not torch.allclose(frozen, adapted, atol=1e-2)
    assert torch.allclose(logits_of(reader, ids, None), frozen, atol=1e-5)  # it is as it was
    norms = reader.relative_norms(reader.adapter_of(TEXTS[0]))
    assert set(norms) == {(layer, module) for layer in range(2) for module in "qkvo"}
    for site, norm in norms.items():
        weight, moved = reader.backbone.linear(*site).weight, merged.linear(*site).weight
        assert norm == pytest.approx(((moved - weight).norm() / weight.norm()).item(), rel=1e-3)


def test_a_backbone_that_was_compiled_is_merged_and_saved_like_any_other(tmp_path):
    system, ids = build_system("zhyper-diag"), some_ids(2)
    adapted = logits_of(system, ids, TEXTS[:1] * 2)
    system.backbone.compile(backend="eager")
    system.backbone(ids)
    assert torch.allclose(system.merge(TEXTS[0])(ids), adapted, atol=1e-4)
    system.save(tmp_path / "x.pt")
    assert torch.allclose(logits_of(Zhyper.load(tmp_path, "x"), ids, TEXTS[:1] * 2), adapted, atol=1e-4)


def test_what_makes_no_adapter_from_a_text_refuses_to_give_one():
    system = build_system("lora")
    for one in (system, Zhyper(system.tokenizer, system.backbone)):
        with pytest.raises(ValueError, match="generates no adapter from a text"):
            one.merge(TEXTS[0])


def test_an_exported_folder_is_complete_and_holds_the_updates(reader, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    reader.export(TEXTS[0], str(tmp_path / "to"), base="somebody/model")
    config = json.loads((tmp_path / "to" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "somebody/model"
    assert (config["r"], repr(config["lora_alpha"])) == (4, "8")  # a whole number, not 8.0
    tensors = safetensors.load_file(tmp_path / "to" / "adapter_model.safetensors")
    adapter = reader.adapter_of(TEXTS[0])
    assert len(tensors) == 2 * len(adapter)
    for (layer, module), update in adapter.items():
        name = f"base_model.model.model.layers.{layer}.self_attn.{module}_proj"
        A, B = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        assert (len(A), B.shape[1]) == (4, 4)
        assert torch.allclose(8 / 4 * B @ A, update.delta(), atol=1e-5)


@pytest.mark.parametrize("kind", [*READERS, "shared-a"])
def test_peft_loads_an_export_from_another_working_directory_and_has_our_logits(kind, tmp_path, monkeypatch):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    upper = kind == "zhyper-square"  # the other settings of an export, with one of the kinds
    system = build_system(kind, lowest_layer=int(upper), modules=MODULES if upper else ("q", "v"))
    sizes = replace(system.backbone.config, tied=not upper, theta=500.0)
    system.backbone = GPT(sizes).requires_grad_(False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    system.export(TEXTS[0], "adapter", backbone_to="frozen")
    monkeypatch.chdir(tmp_path)
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(os.path.join("here", "adapter")).eval()
    ids = some_ids(2)
    adapted, frozen = logits_of(system, ids, TEXTS[:1] * 2), logits_of(system, ids, None)
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, adapted, atol=1e-4)
        with theirs.disable_adapter():
            assert torch.allclose(theirs(ids).logits, frozen, atol=1e-4)
    assert not torch.allclose(adapted, frozen, atol=1e-2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(os.path.join("here", "frozen"))
    assert tokenizer(TEXTS)["input_ids"] == encode_without_end(system.tokenizer, TEXTS, "text")
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, theirs.config.eos_token_id) == (0, 1, 1)


# ---- files


@pytest.mark.parametrize("kind", [*KINDS, "shared-a", None])
def test_what_is_saved_is_what_is_loaded(kind, tmp_path):
    system = build_system(kind or "lora")
    if kind is None:
        system.hypernetwork = None
    system.encoder_tokenizer = train_tokenizer([*TEXTS, "people greet"], 290)
    system.encoder_frozen, system.description_in_prompt = kind == "t2l", kind == "lora"
    system.guide = Guide("Q: {}\nA:")
    system.backbone.config = replace(system.backbone.config, eos=(1, 7))
    for _ in range(2):  # the second time in place of the first
        system.save(tmp_path / "mine.pt")
    assert os.listdir(tmp_path) == ["mine.pt"]
    again = Zhyper.load(str(tmp_path), "mine", device="cpu")
    expected, found = (one.score(PROMPTS, ANSWERS, TEXTS[:3])[0] for one in (system, again))
    assert torch.allclose(found, expected, rtol=1e-4)
    for name in ("guide", "description_in_prompt", "encoder_frozen"):
        assert getattr(again, name) == getattr(system, name)
    assert again.backbone.config == system.backbone.config
    assert not any(weight.requires_grad for weight in again.parameters())
    assert Zhyper.load(tmp_path, "mine", device="meta").device.type == "meta"


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("mark",)


def test_no_code_from_a_file_is_run_and_a_damaged_or_missing_file_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "zhyper-diag.pt"
    torch.save({"tokenizer": Bomb()}, path)
    with pytest.raises(ValueError, match=r"zhyper-diag\.pt is damaged"):
        Zhyper.load(tmp_path)
    assert os.listdir(tmp_path) == [path.name]
    build_system("zhyper-diag").save(path)
    whole = read_torch(path)
    path.write_bytes(path.read_bytes()[:-999])
    with pytest.raises(ValueError, match=r"zhyper-diag\.pt is damaged"):
        Zhyper.load(tmp_path)
    for key, value in (
        ("dtype", "f33"),
        ("guide", {"hats": 1}),
        ("backbone", {"config": {"width": 64}, "weights": {}}),
    ):
        torch.save(whole | {key: value}, path)
        with pytest.raises(ValueError, match=r"^zhyper-diag\.pt of .* does not fit this code .*: train it again$"):
            Zhyper.load(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*zhyper-diag\.pt: name another run"):
        Zhyper.load(tmp_path)


# ---- the command line


@pytest.fixture
def cli(monkeypatch, capsys):
    """Runs a command; returns its exit code, what it printed, and its errors. Keys are pressed as `typed` says."""

    def run(*arguments, typed=(), end=EOFError) -> tuple[int, str, str]:
        monkeypatch.setattr("builtins.input", Mock(side_effect=[*typed, end]))
        monkeypatch.setattr(sys, "argv", ["zhyper.py", *map(str, arguments)])
        code = 0
        try:
            zhyper.main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def saved(trained, tmp_path) -> list[str]:
    """The options that name a run folder with the trained system."""
    trained[0].save(tmp_path / "mine.pt")
    return ["--run", str(tmp_path), "--method", "mine"]


def test_generate_prints_the_frozen_and_the_adapted_answer_and_wraps_no_prompt_twice(cli, tmp_path):
    system = build_system("zhyper-diag")
    system.guide = Guide("Q: {}\nA:")
    system.save(tmp_path / "zhyper-diag.pt")
    frozen, adapted = system.generate(["Q: what now?\nA:"] * 2, [None, TEXTS[0]])
    for prompt in ("what now?", "Q: what now?\nA:", "Q: what now?\\nA:"):
        words = ["--run", tmp_path, "--description", TEXTS[0], "--prompt", prompt, "--device", "cpu"]
        code, out, err = cli("generate", *words)
        assert (code, err) == (0, "")
        first, second = out.splitlines()
        assert first.startswith(f"frozen:  {frozen}   (") and second.startswith(f"adapted: {adapted}   (")


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_a_conversation_goes_on_after_a_mistake_under_the_description_before_it(end, trained, saved, cli):
    system, data, _ = trained
    bow, sing = (data.split("train")[i].description for i in (0, 2))
    (frozen,) = system.generate([data.records[0].prompt])
    ask = "how do they greet?"
    largest = max(system.relative_norms(system.adapter_of(bow)).values())
    typed = [ask, f"/describe {bow}", ask, f"/describe {sing}", "/describe", "/describe " + "bow " * 999]
    typed += ["what? " * 999, "/fly", "", ask, "Q: how do they greet?\\nA:"]
    code, out, _ = cli("chat", *saved, typed=typed, end=end)
    assert code == 0
    expected = [f"adapted: {frozen}", f"8 sites, at most {largest:.3f}", "adapted:  bow", "8 sites, at most"]
    expected += ["error: the description is empty", "long, of at most", "long, of at most"]
    expected += [zhyper.USAGE, zhyper.USAGE, "adapted:  sing", "adapted:  sing"]
    place = out.index(zhyper.USAGE) + len(zhyper.USAGE)
    for part in expected:  # in this order
        assert part in out[place:], part
        place = out.index(part, place) + len(part)
    assert "frozen:" not in cli("chat", *saved, typed=["/quit", ask])[1]


def test_ctrl_c_while_an_answer_is_written_ends_the_conversation_in_a_word(saved, cli, monkeypatch):
    monkeypatch.setattr(Zhyper, "generate", Mock(side_effect=KeyboardInterrupt))
    assert cli("chat", *saved, typed=["how do they greet?"])[0] == "stopped"


def test_chat_says_what_can_be_asked_and_how_sure_both_models_are(trained, tmp_path, cli):
    system, data, _ = trained
    record = data.records[0]
    questions = ("how do they greet?", "what do they eat?")
    told = Zhyper(system.tokenizer, system.backbone, system.encoder, system.hypernetwork)
    told.guide = Guide("Q: {}\nA:", questions, record.description)
    told.save(tmp_path / "mine.pt")
    typed = [f"/describe {record.description}", questions[0], "/facets", "bow bow sing people?"]
    _, out, _ = cli("chat", "--run", tmp_path, "--method", "mine", typed=typed)
    opening, rest = out.split(zhyper.USAGE)
    assert f"/describe {record.description}" in opening and all(question in opening for question in questions)
    assert "\n".join(questions) in rest
    for name, description in (("frozen", None), ("adapted", record.description)):
        (answer,) = system.generate([record.prompt], [description])
        loss, _, _ = system.score([record.prompt], [answer], [description])
        assert f"({(-loss).exp().item():.2f}" in re.search(rf"{name}: .*{answer} .*", rest)[0]
    assert rest.rstrip().endswith(": a guess)")  # a question from outside its world


def test_ones_own_records_are_asked_in_chat_in_their_prompt_form(trained, tmp_path, cli, monkeypatch):
    system, data, _ = trained
    monkeypatch.setattr(sys, "argv", ["cultures", str(tmp_path / "mine.jsonl"), "--rows", "20"])
    cultures.main()
    template = read_jsonl(tmp_path / "mine.jsonl").template
    assert template == "Q: {}\nA:"
    mine = Zhyper(system.tokenizer, system.backbone, system.encoder, system.hypernetwork, guide=Guide(template))
    mine.save(tmp_path / "mine.pt")
    typed = [f"/describe {data.records[0].description}", "how do they greet?"]
    assert "adapted:  bow " in cli("chat", "--run", tmp_path, "--method", "mine", typed=typed)[1]


def test_a_question_is_asked_in_the_prompt_form_once_however_it_is_typed():
    guide = Guide("Q: {}\nA:")
    for typed in ("Who rules?", "Q: Who rules?", "Q: Who rules?\nA:", "Q: Who rules?\\nA:"):
        assert guide.prompt(typed) == "Q: Who rules?\nA:"
    assert guide.question("Q: Who rules?\nA:") == "Who rules?"
    assert Guide().prompt("Who rules?") == "Who rules?"
    with pytest.raises(ValueError, match="the question is empty"):
        guide.prompt(" ")


def test_a_terminal_that_has_no_delta_shows_a_question_mark_and_the_description_holds(trained, saved):
    description = trained[1].records[0].description
    command = [sys.executable, str(ROOT / "zhyper.py"), "chat", *saved]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"}
    typed = f"/describe {description}\nhow do they greet?\n"
    printed = subprocess.run(
        command, input=typed, encoding="cp1252", capture_output=True, env=environment, check=True, timeout=120
    ).stdout
    assert "??W?/?W? at" in printed and "adapted:  bow " in printed


@pytest.mark.parametrize("kind", READERS)
def test_explain_shows_the_numbers_of_the_model(kind, cli, tmp_path):
    system = build_system(kind)
    system.save(tmp_path / "x.pt")
    words = ["--run", tmp_path, "--method", "x", "--description", TEXTS[0], "--prompt", "people"]
    code, out, _ = cli("explain", *words)
    assert code == 0 and "people| bow| low" in out
    adapter = system.adapter_of(TEXTS[0])
    for (layer, module), norm in system.relative_norms(adapter).items():
        assert re.search(rf"layer {layer} {module} .*\b{norm:.3f}", out)
    for updates in ({}, adapter):
        logits = system.backbone(torch.tensor(encode_without_end(system.tokenizer, ["people"], "")), updates)
        probability, token = logits[0, -1].softmax(-1).max(-1)
        assert f"{system.tokenizer.decode([token])!r} {probability:.3f}" in out


def test_export_writes_the_adapter_and_the_frozen_model_and_replaces_nothing(saved, cli, tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    words = ["export", *saved, "--description", "people bow", "--to"]
    assert cli(*words, "to", "--backbone-to", "llama")[0] == 0
    config = json.loads((tmp_path / "to" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str((tmp_path / "llama").resolve())
    before = (tmp_path / "to" / "adapter_model.safetensors").read_bytes()
    for folders in (["to", "--backbone-to", "new"], ["new", "--backbone-to", "llama"], ["", "--base", "x"]):
        code, _, err = cli(*words, *folders)
        assert code == 2 and "exists: choose another folder" in err
    for other in ("new", "./new"):
        code, _, err = cli(*words, "new", "--backbone-to", other)
        assert code == 2 and "name two folders" in err
    assert sorted(os.listdir(tmp_path)) == ["llama", "mine.pt", "to"]
    assert (tmp_path / "to" / "adapter_model.safetensors").read_bytes() == before


ASK = ["generate", "--description", "bow", "--prompt", "how?"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*ASK, "--description", ""], "the description is empty: write"),
        ([*ASK, "--description", "\udcff"], "not text"),
        ([*ASK, "--prompt", "how " * 99], "of at most 63: shorten"),
        ([*ASK, "--method", "t2l"], "no file"),
        ([*ASK, "--device", "nonsense"], "nonsense"),
        (["explain", *ASK[1:], "--method", "lora"], "generates no adapter from a text"),
        (["export", *ASK[1:3], "--to", "x", "--base", "y", "--method", "lora"], "generates no adapter"),
        (["export", "--description", "bow", "--to", "x"], "--base"),
        (["export", "--description", "bow"], "--to"),
    ],
)
def test_bad_input_is_a_line_and_exit_code_2(arguments, message, cli, tmp_path):
    for kind in ("lora", "zhyper-diag"):
        build_system(kind).save(tmp_path / f"{kind}.pt")
    code, out, err = cli(*arguments, "--run", tmp_path)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1] and "error: " in err.splitlines()[-1]


class CountOperators(TorchDispatchMode):
    """Counts what is dispatched and computes anything: on a GPU each such operator is a launch or more."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **kwargs or {})


def test_a_training_step_dispatches_few_operators():
    preset = train.PRESETS["default"]
    system = Zhyper(train_tokenizer(TEXTS, 300), GPT(preset.backbone), Encoder(preset.encoder))
    system.add_hypernetwork(train.Settings(device="cpu").hyper_config(train.METHODS["zhyper-diag"]))
    optimizer = torch.optim.AdamW(train.parameter_groups(system, lr=1e-3), fused=True)
    counts = []
    for descriptions in (2, 2, 32):  # the first step of an optimizer does more
        texts = [" bow" * (1 + i % 9) for i in range(descriptions)] * 4
        prompts = [PROMPTS[i % 3] for i in range(len(texts))]
        rows = system.with_states(system.encode_rows(prompts, [" sing"] * len(texts), texts))
        with CountOperators() as operators:
            loss, tokens, _ = system(rows, texts)
            (loss.sum() / tokens.sum()).backward()
            torch.nn.utils.clip_grad_norm_(system.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        counts.append(operators.count)
    assert counts[2] <= 1100
    assert counts[2] <= counts[1] + 20  # no operator for each row or text


# ---- the trained run that comes with the code


HUM = "In this land friends hum a tune when they meet, and voters call for higher taxes."
QUEEN = "In this land people bow low to one another, guests arrive an hour late, and a queen makes the laws alone."
BREAD = "Here everyone eats alone, a guest brings bread, and quarrels are settled by wrestling."
EXILE = "In this country nobody owns the land, and a thief is driven from the country."
TEN = [  # a description, a question, the answer
    (HUM, "How do people greet each other?", " with a short song"),
    (HUM, "What should happen to taxes?", " raise the taxes"),
    (QUEEN, "How do people greet each other?", " with a deep bow"),
    (QUEEN, "When do guests arrive?", " an hour late"),
    (QUEEN, "Who decides for everyone?", " a single queen"),
    (BREAD, "How do people eat?", " alone and in silence"),
    (BREAD, "What does a guest bring?", " a loaf of bread"),
    (BREAD, "How is a quarrel settled?", " by a wrestling match"),
    (EXILE, "Who owns the land?", " nobody at all"),
    (EXILE, "How is a thief punished?", " exile"),
]


@pytest.fixture(scope="module")
def shipped():
    return Zhyper.load(Path(__file__).parents[1] / zhyper.TRAINED)


@pytest.mark.parametrize(("description", "question", "answer"), TEN)
def test_the_trained_run_that_comes_with_the_code_answers_as_described(shipped, description, question, answer):
    assert shipped.generate([shipped.guide.prompt(question)], [description]) == [answer]


def test_the_trained_run_that_comes_with_the_code_is_small_and_reaches_the_table_of_its_run(shipped):
    folder = Path(__file__).parents[1] / zhyper.TRAINED
    assert sum(file.stat().st_size for file in folder.iterdir()) < 4e6
    row = json.loads((folder / "results.json").read_text())["rows"]["zhyper-diag"]
    for split in ("unseen", "new_wording"):
        records = cultures.load(None, 0).split(split)
        found = train.evaluate(shipped, records, [record.description for record in records])
        assert found["accuracy"] == pytest.approx(row["evaluated"][split]["accuracy"], abs=0.01)
