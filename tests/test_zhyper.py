"""The assembled system: from a description to an answer, files, and the command line."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import KINDS, ROOT, TEXTS, build_system, cli, tiny_config

import zhyper
from data._files import fingerprint
from data._prompting import BARE, PLAIN
from hyper import TRUNKS
from model import GPT
from zhyper import Zhyper

PROMPTS = ["Q: what now?\nA:", "people", "the taxes are cut and"]
READERS = [kind for kind in KINDS if kind != "lora"]  # they make an adapter from a text


@pytest.fixture(params=READERS)
def reader(request) -> Zhyper:
    return build_system(request.param)


def some_ids(rows: int) -> torch.Tensor:
    return torch.randint(2, 200, (rows, 9))


def save(system: Zhyper, run: Path, method: str = "zhyper-diag") -> list[str]:
    """Write a run folder; returns the options of the command line that name it."""
    system.save_backbone(run)
    system.save(run, method)
    return ["--run", str(run), "--method", method]


# ---- from a text to an adapter


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("kind", KINDS)
def test_step_0_is_the_frozen_model_bit_for_bit(kind, trunk):
    system, ids = build_system(kind), some_ids(4)
    system.hypernetwork = system.new_hypernetwork(tiny_config(kind, trunk=trunk), system.encoder).eval()
    assert torch.equal(system.backbone(ids), system.backbone(ids, system.adapt(TEXTS[:4])))


def test_contexts_in_a_batch_are_each_as_alone_and_none_is_the_frozen_model_bit_for_bit(system):
    system.double()
    ids, texts = some_ids(5), [TEXTS[2], TEXTS[0], None, TEXTS[0], TEXTS[3]]
    together, frozen = system.backbone(ids, system.adapt(texts)), system.backbone(ids)
    for row, text in enumerate(texts):
        alone = system.backbone(ids[row : row + 1], system.adapt([text]))[0]
        assert torch.allclose(together[row], alone, atol=1e-10)
        assert torch.equal(together[row], frozen[row]) == (text is None)
    assert system.adapt(None) == system.adapt([None, None]) == {}


def test_embeddings_serve_in_place_of_texts_and_so_does_a_point_between_two(reader):
    c, ids = reader.embed(TEXTS[:2]), some_ids(1).expand(2, -1)
    ends = reader.backbone(ids, reader.adapt(TEXTS[:2]))
    assert torch.equal(reader.backbone(ids, reader.adapt(c)), ends)
    between = reader.adapt(torch.lerp(c[:1], c[1:], 0.1))
    near, far = (reader.backbone(ids[:1], between) - ends).norm(dim=(1, 2))
    assert 0.01 < near < far
    assert reader.generate(PROMPTS[:2], c, 8) == reader.generate(PROMPTS[:2], TEXTS[:2], 8)


def test_a_special_token_typed_by_a_user_is_plain_text():
    assert min(build_system("lora").ids(["the <eos> of <pad>"], "prompt")[0]) > 1


# ---- from an adapter to answers


@torch.no_grad()
def test_many_rows_are_each_scored_as_alone_in_their_order(system):
    prompts = [" ".join(["Q: what"] * (1 + i * 7 % 5)) for i in range(70)]
    answers = [f" bow {'low ' * (i % 3)}" for i in range(70)]
    texts = [[*TEXTS, None][i % 6] for i in range(70)]
    loss, count, exact = system.score(prompts, answers, texts)
    for i in range(70):
        alone = system.score(prompts[i : i + 1], answers[i : i + 1], texts[i : i + 1])
        assert loss[i] == pytest.approx(alone[0].item(), rel=1e-4)
        assert (count[i], exact[i]) == (alone[1], alone[2])
    assert len(set(loss.tolist())) > 5


@torch.no_grad()
def test_the_loss_is_that_of_the_answer_and_its_end_and_of_nothing_else(system):
    (prompt,), (answer,) = system.ids(PROMPTS[:1], "prompt"), system.ids([" bow low"], "answer")
    logits = system.backbone(torch.tensor([prompt + answer]), system.adapt(TEXTS[:1]))[0]
    target = [*answer, system.backbone.config.eos]
    p = logits.log_softmax(-1)[len(prompt) - 1 :][range(len(target)), target]
    loss, count, exact = system.score(PROMPTS[:1], [" bow low"], TEXTS[:1])
    assert loss.item() == pytest.approx(-p.sum().item(), rel=1e-5)
    assert (count.item(), exact.item()) == (len(target), False)


def test_an_answer_is_exact_just_when_generation_writes_it(trained):
    system, data, _ = trained
    rows = data.split("unseen")
    prompts, texts = [row.prompt for row in rows], [row.description for row in rows]
    written, right = system.generate(prompts, texts), [row.answer for row in rows]
    assert written == right
    for answers in (right, right[::-1], [answer + " bow" for answer in right]):
        exact = system.score(prompts, answers, texts)[2].tolist()
        assert exact == [a == w for a, w in zip(answers, written, strict=True)]


def read_again(system: Zhyper, prompt: str, text: str | None, most: int) -> list[int]:
    """Greedy generation without a cache: every token from all that is before it."""
    (row,) = system.ids([prompt], "prompt")
    start, config = len(row), system.backbone.config
    while len(row) < min(start + most, config.block_size):
        token = system.backbone(torch.tensor([row]), system.adapt([text]))[0, -1].argmax().item()
        if token == config.eos:
            break
        row = [*row, token]
    return row[start:]


def test_generation_is_reading_everything_again_row_by_row(system):
    system.double()
    prompts, texts = [*PROMPTS, PROMPTS[0]], [TEXTS[2], TEXTS[0], TEXTS[1], None]
    pairs = list(zip(prompts, texts, strict=True))
    ends = read_again(system, *pairs[0], 12)[3]  # a token that is written, so that a row ends early
    system.backbone.config = replace(system.backbone.config, eos=ends)
    expected = [read_again(system, *pair, 12) for pair in pairs]
    assert system.generate(prompts, texts, 12) == [system.tokenizer.decode(row) for row in expected]
    assert len(expected[0]) <= 3 and max(map(len, expected)) == 12
    assert len(set(map(tuple, expected))) == 4


def test_a_short_prompt_is_not_cut_off_because_a_long_one_stands_beside_it():
    system = build_system("zhyper-diag")
    prompts = ["people", "bow " * 62, "bow " * 60]
    lengths = [len(row) for row in system.ids(prompts, "prompt")]
    expected = [read_again(system, prompt, TEXTS[0], 20) for prompt in prompts]
    assert lengths[1] == 63 and [len(row) for row in expected] == [20, 1, 3]
    written = system.generate(prompts, TEXTS[:1] * 3, 20)
    assert written == [system.tokenizer.decode(row) for row in expected]


def test_the_same_seed_draws_the_same_answers_and_another_seed_others():
    system = build_system("zhyper-diag")
    options = {"descriptions": TEXTS[:3], "max_new_tokens": 12, "temperature": 2.0}
    first, again, other = (system.generate(PROMPTS, **options, seed=s) for s in (1, 1, 2))
    assert first == again != other
    assert system.generate(PROMPTS, **options, top_k=1) == system.generate(PROMPTS, TEXTS[:3], 12)


def test_a_description_in_the_prompt_is_read_there():
    system = build_system("lora")
    system = Zhyper(system.tokenizer, system.backbone, prompting=PLAIN)
    expected = system.ids(["the taxes\npeople", "people"], "prompt")
    assert system.prompt_ids(["people", "people"], ["the taxes", None]) == expected
    assert system.prompt_ids(["people", "people"], None) == [expected[1]] * 2
    with pytest.raises(ValueError, match="give texts"):
        system.prompt_ids(["people"], torch.zeros(1, 32))


@pytest.mark.parametrize("prompts, texts", [([], None), ([], []), (PROMPTS, TEXTS[:2])])
def test_counts_that_differ_and_no_prompt_at_all_are_refused_in_one_line(prompts, texts):
    system, message = build_system("lora"), r"^\d prompts, \d descriptions: give one for each$"
    with pytest.raises(ValueError, match=message):
        system.generate(prompts, texts)
    with pytest.raises(ValueError, match=message):
        system.score(prompts, prompts, texts)


# ---- one description's adapter, taken away


def test_a_merged_model_is_a_plain_gpt_with_the_logits_of_the_adapted_one(reader):
    ids, before = some_ids(1), fingerprint(reader.backbone)
    adapted, merged = reader.backbone(ids, reader.adapt(TEXTS[:1])), reader.merge(TEXTS[0])
    assert type(merged) is GPT
    assert torch.allclose(merged(ids), adapted, atol=1e-5)
    assert not torch.allclose(reader.backbone(ids), adapted, atol=1e-3)
    assert fingerprint(reader.backbone) == before


def test_what_makes_no_adapter_from_a_text_refuses_to_merge_and_to_export(tmp_path):
    whole = build_system("zhyper-diag")
    bare = Zhyper(whole.tokenizer, whole.backbone)
    in_prompt = Zhyper(whole.tokenizer, whole.backbone, whole.encoder, whole.hypernetwork, PLAIN)
    for system in (build_system("lora"), in_prompt, bare):
        for take in (system.merge, lambda text, s=system: s.export(text, str(tmp_path / "x"))):
            with pytest.raises(ValueError, match="generates no adapter from a text: choose one"):
                take(TEXTS[0])
    assert not (tmp_path / "x").exists()


# ---- files


def test_what_is_saved_is_what_is_loaded(system, tmp_path):
    prompting = PLAIN if system.encoder is None else BARE
    system = Zhyper(system.tokenizer, system.backbone, system.encoder, system.hypernetwork, prompting, "Q: {}\nA:")
    save(system, tmp_path, "mine")
    again, ids = Zhyper.load(tmp_path, "mine"), some_ids(3)
    logits, same = (s.backbone(ids, s.adapt(TEXTS[:3])) for s in (system, again))
    assert torch.equal(logits, same) and again.ids(TEXTS, "text") == system.ids(TEXTS, "text")
    assert (again.template, again.prompting, again.in_prompt) == ("Q: {}\nA:", prompting, prompting == PLAIN)
    assert not any(weight.requires_grad for weight in again.backbone.parameters())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backbone.pt", "mine.pt"]


def test_a_hypernetwork_refuses_another_backbone_with_both_hashes(tmp_path):
    system, other = build_system("zhyper-diag"), build_system("zhyper-diag", seed=1)
    save(system, tmp_path)
    other.save_backbone(tmp_path)
    hashes = f"{fingerprint(system.backbone)}.*here is.*{fingerprint(other.backbone)}"
    with pytest.raises(ValueError, match=f"zhyper-diag.pt is of no use .*{hashes}"):
        Zhyper.load(tmp_path)


@pytest.mark.parametrize("name", ["backbone.pt", "zhyper-diag.pt"])
def test_a_missing_or_damaged_file_is_named_with_what_mends_it(name, tmp_path):
    save(build_system("zhyper-diag"), tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-99])
    with pytest.raises(ValueError, match=rf"^.*{name} is of no use .*train\.py.*$"):
        Zhyper.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"^no file .*{name}: .*train\.py.*$"):
        Zhyper.load(tmp_path)


# ---- the command line


def test_generate_prints_the_frozen_and_the_adapted_answer(trained, monkeypatch, capsys, tmp_path):
    system, data, _ = trained
    sing, run = data.split("train")[2], save(system, tmp_path)
    words = ["--description", sing.description, "--prompt"]
    frozen = system.generate([sing.prompt])[0]
    for prompt in ("how do they greet?", sing.prompt.replace("\n", "\\n")):
        code, out, err = cli(zhyper, monkeypatch, capsys, "generate", *run, *words, prompt)
        assert (code, out, err) == (0, f"frozen:  {frozen}\nadapted:  sing\n", "")


@pytest.mark.parametrize("kind", READERS)
def test_explain_names_every_stage_with_the_numbers_of_the_model(kind, monkeypatch, capsys, tmp_path):
    system = build_system(kind)
    words = [*save(system, tmp_path, kind), "--description", TEXTS[0], "--prompt", "people"]
    code, out, _ = cli(zhyper, monkeypatch, capsys, "explain", *words)
    lines, c, adapter = out.splitlines(), system.embed(TEXTS[:1]), system.adapt(TEXTS[:1])
    first, feature = adapter[0, "q"], system.hypernetwork.trunk(c)
    stages = {"tokens": (torch.zeros(1, 3), 1), "c": (c, 1), "feature": (feature, 1)}
    stages |= {name: (getattr(first, name), 8) for name in (("A", "B") if kind == "t2l" else "z")}
    assert code == 0 and "people| bow| low" in lines[0]
    for line, (name, (numbers, sites)) in zip(lines, stages.items(), strict=False):
        shown = re.escape(str(tuple(numbers.shape))), f"{sites * numbers.numel():,}"
        assert re.match(rf"{name} .*{shown[0]} +{shown[1]}  ", line)
        assert sites == 1 or " ".join(f"{x:.2f}" for x in numbers.flatten()[:4].tolist()) in line
    for (layer, module), norm in system.relative_norms(adapter).items():
        delta, weight = adapter[layer, module].delta(), system.backbone.linear(layer, module).weight
        assert norm == pytest.approx((delta.norm() / weight.norm()).item())
        assert re.search(rf"  layer {layer} .*\b{module} {norm:.3f}\b", out)
    prompt = torch.tensor(system.ids(["people"], "prompt"))
    for line, updates in zip(lines[-2:], ({}, adapter), strict=True):
        p, best = system.backbone(prompt, updates)[0, -1].softmax(-1).topk(5)
        assert re.findall(r" (\d\.\d{3})(?= |$)", line) == [f"{x:.3f}" for x in p.tolist()]
        assert repr(system.tokenizer.decode(best[:1].tolist())) in line


ASK = ["generate", "--description", "bow", "--prompt", "how?"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "--description", "", "--prompt", "how?"], "the description is empty: write"),
        (["generate", "--description", "bow", "--prompt", " "], "the prompt is empty: write"),
        (["generate", "--description", "bow " * 99, "--prompt", "how?"], "of at most 64: shorten"),
        (["generate", "--description", "bow", "--prompt", "how " * 99], "of at most 63: shorten"),
        (["generate", "--description", "bow"], "--prompt"),
        ([*ASK, "--method", "t2l"], "no file"),
        ([*ASK, "--max-new-tokens", "0"], "max_new_tokens 0"),
        ([*ASK, "--temperature", "nan"], "temperature nan"),
        ([*ASK, "--top-k", "-1"], "top_k -1"),
        ([*ASK, "--top-k", "1.5"], "invalid int value"),
        ([*ASK, "--seed", str(2**64)], "error"),
        ([*ASK, "--description", "\udcff"], "error"),  # bytes that are not text
        (["explain", "--description", "bow", "--prompt", "how " * 99], "of at most 63"),
        (["explain", *ASK[1:], "--method", "lora"], "generates no adapter from a text"),
        (["export", "--description", "", "--to", "x"], "the description is empty"),
        (["export", "--description", "bow", "--to", "x", "--method", "lora"], "no adapter"),
        (["export", "--description", "bow"], "--to"),
        (["fly"], "fly"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, monkeypatch, capsys, tmp_path):
    save(build_system("lora"), tmp_path, "lora")
    save(build_system("zhyper-diag"), tmp_path)
    code, out, err = cli(zhyper, monkeypatch, capsys, *arguments, "--run", str(tmp_path))
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ValueError, match="pip install safetensors"):
        build_system("zhyper-diag").export("people bow", str(tmp_path / "adapter"))
    assert not (tmp_path / "adapter").exists()


# ---- the conversation, as a child process


def converse(command: list[str], lines: list[bytes], ctrl_c: bool) -> tuple[int, list[str]]:
    """Exit code and replies on a pseudo-terminal, left with Ctrl-C or Ctrl-D."""
    master, slave = os.openpty()
    old = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has none
    child = subprocess.Popen(command, cwd=ROOT, stdin=slave, stdout=slave, stderr=slave)
    signal.signal(signal.SIGINT, old)
    os.close(slave)
    replies = []
    for line in [*lines, None]:
        reply = ""
        while not reply.endswith("> "):
            assert select.select([master], [], [], 60)[0], reply
            reply += os.read(master, 4096).decode(errors="replace").replace("\r", "")
        replies.append(reply)
        if line is None and ctrl_c:
            time.sleep(0.5)  # until it reads: a signal that comes just before is noticed later
            child.send_signal(signal.SIGINT)
        else:
            os.write(master, b"\x04" if line is None else line + b"\n")
    code = child.wait(60)
    replies.append(os.read(master, 4096).decode())
    os.close(master)
    return code, replies


@pytest.mark.parametrize("leave", ["/quit", "Ctrl-D", "Ctrl-C"])
def test_a_conversation_through_a_pipe_and_on_a_terminal(leave, trained, tmp_path):
    system, data, _ = trained
    bow, sing = (data.split("train")[i].description for i in (0, 2))
    frozen = system.generate(["Q: how do they greet?\nA:"])[0]
    most = max(system.relative_norms(system.adapt([bow])).values())
    typed = [  # in turn, and what each line is answered by
        ("how do they greet?", f"frozen:  {frozen}\nadapted: {frozen}\n"),
        (f"/describe {bow}", f"‖ΔW‖/‖W‖ at 8 sites, at most {most:.3f}\n"),
        ("how do they greet?", f"frozen:  {frozen}\nadapted:  bow\n"),
        (f"/describe {sing}", "‖ΔW‖/‖W‖ at 8 sites"),
        ("/describe", "error: the description is empty"),
        ("/describe " + "bow " * 99, "of at most 64: shorten it"),
        ("/describe \udcff", "error: "),  # a byte that is not text
        ("what? " * 99, "error: the prompt"),
        ("/fly", "/help: this"),
        ("how do they greet?", "adapted:  sing\n"),  # a mistake changes nothing
    ]
    command = [sys.executable, "zhyper.py", "chat", *save(system, tmp_path)]
    lines = [line.encode("utf-8", "surrogateescape") for line, _ in typed]
    if leave == "/quit":
        lines = b"\n".join([*lines, b"/quit", b"how do they part?"])
        done = subprocess.run(command, cwd=ROOT, input=lines, capture_output=True, timeout=60)
        code, replies = done.returncode, done.stdout.decode().split("> ")
        assert done.stderr == b""
    else:
        code, replies = converse(command, lines, leave == "Ctrl-C")
    assert code == 0 and "/describe TEXT" in replies[0] and len(replies) == len(typed) + 2
    for reply, (line, expected) in zip(replies[1:], typed, strict=False):
        assert expected in reply, line
    assert "Traceback" not in replies[-1]
