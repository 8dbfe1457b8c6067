"""The assembled system: from a description to an answer, an adapter of its own, files, and the command line."""

import io
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
from conftest import KINDS, ROOT, TEXTS, build_system
from torch.nn import functional as F

import train
import zhyper
from data import PROMPT, cultures
from data.tokenizer import encode, train_tokenizer
from hyper import HYPERNETWORKS
from zhyper import Zhyper, split_statements

QUESTIONS = ["what now?", "who?", "are the taxes cut or are they raised?"]
ANSWERS = ["bow low", "sing", "raised a tune"]
READERS = [kind for kind in KINDS if HYPERNETWORKS[kind].reads_text]  # they make an adapter from a text
EOS = 1
IDS = torch.randint(2, 200, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=READERS)
def reader(request) -> Zhyper:
    return build_system(request.param)


@torch.no_grad()
def logits_of(system: Zhyper, ids: torch.Tensor, descriptions) -> torch.Tensor:
    return system.backbone(ids, system.adapt(descriptions))


def ids_of(system: Zhyper, text: str) -> list[int]:
    return encode(system.tokenizer, [text], "text", more_follows=True)[0]


# ---- from a text to an adapter


def test_descriptions_in_one_batch_are_each_as_alone_and_none_is_the_frozen_model(system):
    texts = [TEXTS[2], TEXTS[0], TEXTS[0]]
    together = logits_of(system, IDS, texts)
    frozen = logits_of(system, IDS, None)
    assert torch.allclose(frozen, system.backbone(IDS))
    assert not torch.isclose(together, frozen, atol=1e-3).all(-1).any()
    for i, text in enumerate(texts):
        assert torch.allclose(together[i], logits_of(system, IDS[i : i + 1], [text])[0], atol=1e-5)
    other = logits_of(system, IDS[:1], [TEXTS[1]])
    assert torch.allclose(other, together[:1], atol=1e-3) != system.hypernetwork.reads_text


CUT = {  # a text: its statements
    "people bow. tea is cold! who sings?": ["people bow", "tea is cold", "who sings"],
    "people bow; tea is cold; and a queen rules": ["people bow", "tea is cold", "a queen rules"],
    "people bow, tea is cold, and a queen and a king rule.": ["people bow", "tea is cold", "a queen and a king rule"],
    "1,000 people bow": ["1,000 people bow"],
    "it backed the U.S. army, AND then\nit slept": ["it backed the U.S. army", "then", "it slept"],
    "people in the USA. sing, andante": ["people in the USA", "sing", "andante"],
    "people bow": ["people bow"],
    " ?! ": [],
}


@pytest.mark.parametrize("text", CUT)
def test_a_text_is_cut_at_sentence_ends_semicolons_and_commas_and_not_inside_a_number(text):
    assert split_statements(text) == CUT[text]


def test_c_is_the_sum_of_what_is_read_of_each_statement_over_the_root_of_their_number(reader):
    texts = [
        "People bow, and the taxes are cut.",
        "the taxes are cut; People bow",
        "People bow! People bow",
        "People bow",
    ]
    bow, cut = reader.hypernetwork.trunk.read(reader.run_encoder(["People bow", "the taxes are cut"]))
    expected = torch.stack([(bow + cut) / 2**0.5, (bow + cut) / 2**0.5, 2 * bow / 2**0.5, bow])
    assert torch.allclose(reader.embed(texts), expected, atol=1e-5)
    whole = build_system("zhyper-diag", reading="text")
    assert torch.allclose(whole.embed(texts), whole.hypernetwork.trunk.read(whole.run_encoder(texts)), atol=1e-5)


def test_c_serves_in_place_of_a_text_and_so_does_a_point_between_two(reader):
    c = reader.embed(TEXTS[:2])
    ids = IDS[:1].expand(2, -1)
    ends = logits_of(reader, ids, TEXTS[:2])
    assert torch.allclose(logits_of(reader, ids, c), ends, atol=1e-5)
    between = logits_of(reader, ids[:1], torch.lerp(c[:1], c[1:], 0.01))
    near, far = (between - ends).norm(dim=(1, 2))
    assert 1e-4 < near < far
    assert reader.generate(QUESTIONS[:2], c, 8) == reader.generate(QUESTIONS[:2], TEXTS[:2], 8)


@pytest.mark.parametrize(("frozen", "numbers"), [(True, [2, 1]), (False, [2, 2])])
def test_each_statement_is_embedded_once_for_ever_or_once_a_step_where_the_encoder_learns(frozen, numbers):
    system = build_system("zhyper-diag")
    system.encoder_frozen = frozen
    sizes = []
    system.encoder.register_forward_hook(lambda _, inputs, e: sizes.append(len(e)))
    for texts in (["people bow, people sing", "people bow"] * 2, ["people sing", "the taxes are cut"] * 2):
        expected = build_system("zhyper-diag").score(QUESTIONS[:1] * 4, ANSWERS[:1] * 4, texts)
        assert torch.allclose(system.score(QUESTIONS[:1] * 4, ANSWERS[:1] * 4, texts)[0], expected[0], rtol=1e-4)
    assert sizes == numbers


def test_one_text_in_place_of_a_list_is_refused_and_not_read_letter_by_letter():
    system = build_system("zhyper-diag")
    for call in (system.embed, system.adapt, lambda text: system.generate(QUESTIONS, text)):
        with pytest.raises(ValueError, match=r"^descriptions must be a list of texts, not one: write \['bow'\]$"):
            call("bow")
    with pytest.raises(ValueError, match=r"^questions must be a list of texts, not one: write \['who'\]$"):
        system.generate("who", TEXTS[:3])


# ---- from an adapter to a loss and to an answer


def test_the_loss_is_that_of_each_answer_and_of_any_end_token_and_of_nothing_else(system):
    system.backbone.config = replace(system.backbone.config, eos=(EOS, 7, 9))
    losses, exact = system.score(QUESTIONS, ANSWERS, TEXTS[:3])  # rows of different lengths
    for i, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        prompt = PROMPT.format(question)
        start = len(ids_of(system, prompt))
        ids = torch.tensor([*ids_of(system, f"{prompt} {answer}"), EOS])
        p = logits_of(system, ids[None, :-1], TEXTS[i : i + 1])[0, start - 1 :].softmax(-1)
        p[:, EOS] += p[:, 7] + p[:, 9]
        p[:, [7, 9]] = 0
        right = p.gather(1, ids[start:, None])
        assert losses[i].item() == pytest.approx(-right.log().sum().item(), rel=1e-4)
        assert exact[i].item() == torch.equal(p.argmax(-1), ids[start:])
    losses.sum().backward()
    assert all(weight.grad.isfinite().all() for weight in system.hypernetwork.parameters())


def test_an_answer_is_exact_just_when_generation_writes_it_by_whichever_end_token(trained, monkeypatch):
    system, data, _ = trained
    _, texts, questions, right, _, _ = zip(*data.split("unseen"), strict=True)
    # in the second case training and scoring append token 9, and the model goes on ending its answers with token 1
    for eos in ((EOS,), (9, EOS)):
        monkeypatch.setattr(system.backbone, "config", replace(system.backbone.config, eos=eos))
        assert system.generate(questions, texts) == list(right)
        for answers in (right, right[::-1], [f"{answer} bow" for answer in right]):
            _, exact = system.score(questions, answers, texts)
            assert exact.tolist() == [answer == other for answer, other in zip(answers, right, strict=True)]


def test_a_description_in_the_prompt_is_read_there_beside_an_adapter():
    system = build_system("lora")
    ids = torch.tensor([*ids_of(system, "the taxes\nQ: who?\nA: sing"), EOS])
    expected = F.cross_entropy(logits_of(system, ids[None, :-1], ["the taxes"])[0, -2:], ids[-2:], reduction="sum")
    system.description_in_prompt = True
    loss, _ = system.score(["who?"], ["sing"], ["the taxes"])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    with pytest.raises(ValueError, match="reads descriptions in the prompt: give texts"):
        system.generate(QUESTIONS, torch.zeros(3, 32))
    for questions, texts in ((3, 2), (2, 3), (0, 0)):
        with pytest.raises(ValueError, match=f"^{questions} questions, {texts} descriptions: give one .* for each"):
            system.generate(QUESTIONS[:questions], TEXTS[:texts])


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_that_are_kept_give_the_same_step_in_which_no_lower_layer_is_computed(kind):
    system = build_system(kind, lowest_layer=1)
    computed = []
    for layer, block in enumerate(system.backbone.layers):
        block.register_forward_hook(lambda *_, layer=layer: computed.append(layer))
    rows = system.encode_rows(system.prompts(QUESTIONS * 30, None), ANSWERS * 30)
    steps = []
    for each in (rows, system.with_hidden_states(rows)):
        system.zero_grad()
        computed.clear()
        loss, _ = system(each, TEXTS[:3] * 30)
        loss.sum().backward()
        steps.append([loss, *(weight.grad for weight in system.hypernetwork.parameters())])
    assert computed == [1]
    for computed_again, kept in zip(*steps, strict=True):
        assert torch.allclose(kept, computed_again, rtol=1e-3, atol=1e-3)
    assert build_system(kind).with_hidden_states(rows).hidden_states is None  # nothing is below layer 0


def write_slowly(system: Zhyper, question: str, text: str | None, most: int = 32) -> tuple[list[int], str]:
    """Greedy generation of one row, every token from all that stands before it: the answer's tokens, and its text."""
    config = system.backbone.config
    prompt = ids_of(system, PROMPT.format(question))
    answer = []
    while len(answer) < most and len(prompt + answer) < config.block_size:
        logits = logits_of(system, torch.tensor([prompt + answer]), text and [text])[0, -1]
        if logits[list(config.eos)].logsumexp(0) >= logits.max():
            break
        answer.append(logits.argmax().item())
    before = system.tokenizer.decode(prompt)
    return answer, system.tokenizer.decode(prompt + answer)[len(before) :].strip()


def test_generation_is_reading_all_again_for_each_token_row_by_row_until_an_end_token(system):
    texts = [TEXTS[2], TEXTS[0], TEXTS[1]]
    pairs = list(zip(QUESTIONS, texts, strict=True))
    tokens, _ = write_slowly(system, *pairs[0], 9)
    end = max(tokens, key=tokens.index)  # the last of the tokens that are not written before
    for eos in ((EOS,), (end,), (EOS, end)):
        system.backbone.config = replace(system.backbone.config, eos=eos)
        slow = [write_slowly(system, *pair, 9) for pair in pairs]
        assert system.generate(QUESTIONS, texts, 9) == [text for _, text in slow]
        assert (end in slow[0][0]) == (eos == (EOS,))


def test_a_row_ends_when_it_is_full_and_a_shorter_one_beside_it_goes_on():
    system = build_system("zhyper-diag")
    room = 64 - len(ids_of(system, PROMPT.format("")))  # 64 tokens is all that it reads
    questions = ["who?", " bow" * (room - 1), " bow" * (room - 3)]
    slow = [write_slowly(system, question, TEXTS[0]) for question in questions]
    assert [len(tokens) for tokens, _ in slow] == [32, 1, 3]
    assert system.generate(questions, TEXTS[:1] * 3) == [text for _, text in slow]


# ---- one description's adapter on its own, and files


def test_a_merged_model_is_a_plain_gpt_that_answers_as_the_adapted_one(reader):
    frozen = logits_of(reader, IDS, None)
    adapted = logits_of(reader, IDS, TEXTS[:1] * 3)
    reader.backbone.pretrained_name = "somebody/model"
    merged = reader.train().merge(TEXTS[0])
    assert merged.pretrained_name is None and not merged.training
    assert torch.allclose(merged(IDS), adapted, atol=1e-4)
    assert not torch.allclose(frozen, adapted, atol=1e-2)
    assert torch.allclose(reader.backbone(IDS), frozen, atol=1e-5)  # it is as it was
    plain = Zhyper(reader.tokenizer, merged)
    assert plain.generate(QUESTIONS, None, 9) == reader.generate(QUESTIONS, TEXTS[:1] * 3, 9)
    norms = reader.relative_norms(reader.adapter_of(TEXTS[0]))
    assert set(norms) == {(layer, module) for layer in range(2) for module in "qkvo"}
    for site, norm in norms.items():
        weight = reader.backbone.linear(*site).weight
        moved = merged.linear(*site).weight - weight
        assert norm == pytest.approx((moved.norm() / weight.norm()).item(), rel=1e-3)
    for other in (plain, build_system("lora")):
        with pytest.raises(ValueError, match="generates no adapter from a text"):
            other.merge(TEXTS[0])


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_what_is_saved_is_what_is_loaded(kind, tmp_path):
    system = build_system(kind or "lora")
    if kind is None:
        system.hypernetwork = None
    system.encoder_tokenizer = train_tokenizer([*TEXTS, "people greet"], 290)
    system.encoder_frozen = kind == "t2l"
    system.description_in_prompt = kind == "lora"
    system.trained_words = {"bow", "people"}
    system.backbone.config = replace(system.backbone.config, eos=(1, 7))
    system.save(tmp_path / "mine.pt")
    again = Zhyper.load(str(tmp_path), "mine")
    texts = ["people <eos> bow", *TEXTS[:2]]  # a special token that a user types is mere text, also after loading
    assert torch.allclose(again.score(texts, texts, texts)[0], system.score(texts, texts, texts)[0], rtol=1e-4)
    assert again.description_in_prompt == system.description_in_prompt
    assert again.encoder_frozen == system.encoder_frozen
    assert again.trained_words == system.trained_words
    assert again.backbone.config == system.backbone.config
    assert not again.training and not any(weight.requires_grad for weight in again.parameters())
    assert Zhyper.load(tmp_path, "mine", device="meta").device.type == "meta"


def test_of_a_frozen_real_model_a_file_holds_only_the_name(tmp_path):
    system = build_system("zhyper-diag")
    system.backbone.pretrained_name = system.encoder.pretrained_name = "somebody/model"
    system.save(tmp_path / "zhyper-diag.pt")
    saved = torch.load(tmp_path / "zhyper-diag.pt", weights_only=True)
    assert saved["backbone"] == saved["encoder"] == {"pretrained_name": "somebody/model"}


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("mark",)


def test_no_code_of_a_file_is_run_and_a_damaged_an_old_and_a_missing_one_are_named_in_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "zhyper-diag.pt"
    build_system("zhyper-diag").save(path)
    whole = torch.load(path, weights_only=True)
    for changes in ({"tokenizer": None}, {"encoder": whole["encoder"] | {"weights": {}}}, {"backbone": {}}):
        torch.save(whole | changes, path)
        with pytest.raises(ValueError, match=r"zhyper-diag\.pt is damaged or of other code .*: train it again$"):
            Zhyper.load(tmp_path)
    torch.save(whole | {"tokenizer": Bomb()}, path)
    bomb = path.read_bytes()
    for content in (bomb, bomb[:-999], b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"zhyper-diag\.pt is damaged or of other code .*: train it again$"):
            Zhyper.load(tmp_path)
    assert os.listdir(tmp_path) == [path.name]
    with pytest.raises(FileNotFoundError, match=r"^no file .*t2l\.pt: choose another run or method, or train one$"):
        Zhyper.load(tmp_path, "t2l")


def test_a_write_that_fails_leaves_the_old_file_whole_and_nothing_beside_it(tmp_path, monkeypatch):
    def fill_the_disk(path: Path, content: bytes) -> None:
        path.touch()
        raise OSError("no space left")

    zhyper.write_file(tmp_path / "lora.pt", b"before")
    monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
    with pytest.raises(OSError, match="no space left"):
        build_system("lora").save(tmp_path / "lora.pt")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("lora.pt", b"before")]


# ---- the command line


def answer_lines(system: Zhyper, question: str, text: str | None) -> list[str]:
    """What is printed of the frozen and the adapted answer: whose it is, the answer, and its probability."""
    lines = []
    for name, each in (("frozen: ", None), ("adapted:", text)):
        (answer,) = system.generate([question], each and [each])
        loss, _ = system.score([question], [answer], each and [each])
        lines.append(f"{name} {answer}   ({(-loss).exp().item():.2f})")
    return lines


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt, "/quit"])
def test_in_chat_mistakes_are_said_and_the_description_stays(end, trained, tmp_path, run_main, monkeypatch):
    system, data, _ = trained
    bow, *_, sing = (record.description for record in data.split("train"))
    monkeypatch.setattr(system, "trained_words", {*bow.split(), "raised"})
    system.save(tmp_path / "mine.pt")
    ask = "how do they greet?"
    typed = [ask, f"/describe {bow}", f" {ask} ", f"/describe {sing}"]
    bad = ["?!", "bow, " * 65, "bow " * 999]
    typed += [*(f"/describe {text}" for text in bad), "what? " * 999, "/fly", " ", ask, end]
    monkeypatch.setattr("builtins.input", Mock(side_effect=typed))
    printed = run_main(zhyper.main, "chat", "--run", tmp_path, "--method", "mine").splitlines()
    largest = [max(system.relative_norms(system.adapter_of(text)).values()) for text in (bow, sing)]
    sizes = [f"‖ΔW‖/‖W‖ at 8 sites, at most {number:.3f}" for number in largest]
    usage = zhyper.USAGE.splitlines()
    expected = [*usage, *answer_lines(system, ask, None), sizes[0], *answer_lines(system, ask, bow)]
    expected += ["new words: sing", sizes[1]]
    expected += ["error: the description '?!' has 0 statements: write 1 to 64"]
    expected += ["error: the description 'bow, ", "error: the statement 'bow bow ", "error: the prompt", *usage, *usage]
    expected += [*answer_lines(system, ask, sing), *([] if end == "/quit" else [""])]
    for line, start in zip(printed, expected, strict=True):
        assert line.startswith(start)
    assert "bow" in expected[7] and "sing" in expected[20]


ASK = ["--description", "people bow low, the taxes are cut", "--question", "what now?"]


@pytest.mark.parametrize("kind", READERS)
def test_explain_shows_the_numbers_of_the_model(kind, tmp_path, monkeypatch):
    system = build_system(kind, block_size=128)
    system.trained_words = {"people", "the", "taxes"}
    system.save(tmp_path / "x.pt")
    monkeypatch.setattr(sys, "argv", ["zhyper.py", "explain", *ASK, "--run", str(tmp_path), "--method", "x"])
    monkeypatch.setattr(sys, "stdout", io.StringIO())  # like that of Jupyter it has no method `reconfigure`
    zhyper.main()
    lines = sys.stdout.getvalue().splitlines()
    assert lines[0] == "new words: bow, low, are, cut"
    assert lines[1] == "e  (2, 32) an embedding of each: people bow low | the taxes are cut"
    assert lines[2].startswith("c  (1, 16) ")
    adapter = system.adapter_of(ASK[1])
    for line, (site, norm) in zip(lines[3:11], system.relative_norms(adapter).items(), strict=True):
        assert line.startswith(f"layer {site[0]} {site[1]} (")
        shown = adapter[site].B if kind == "t2l" else adapter[site].z
        numbers = [f"{number:.2f}" for number in shown.flatten()[:6].tolist()]
        assert line[line.index(")") + 1 :].split() == [*numbers, "...", "‖ΔW‖/‖W‖", f"{norm:.3f}"]
    expected = answer_lines(system, "what now?", ASK[1])
    answer = system.generate(["what now?"], ASK[1:2])
    for left_out, other in (("people bow low", "the taxes are cut"), ("the taxes are cut", "people bow low")):
        loss, _ = system.score(["what now?"], answer, [other])
        expected.append(f"  ({(-loss).exp().item():.2f}) without: {left_out}")
    assert sys.stdout.getvalue().endswith("\n".join(["", *expected, ""]))


@pytest.mark.parametrize("frozen", [False, True])
def test_words_that_training_never_had_are_named_unless_the_encoder_is_a_pretrained_one(
    frozen, tmp_path, run_main, monkeypatch
):
    system = build_system("zhyper-diag", block_size=128)
    system.encoder_frozen = frozen
    system.trained_words = {"people", "taxes"}
    system.save(tmp_path / "x.pt")
    monkeypatch.setattr("builtins.input", Mock(side_effect=["/describe People BOW low", "/quit"]))
    for command in (["chat"], ["explain", "--question", "who?", "--description", "People BOW low"]):
        printed = run_main(zhyper.main, *command, "--run", tmp_path, "--method", "x")
        assert re.findall("new words.*", printed) == ([] if frozen else ["new words: bow, low"])
        assert "without:" not in printed  # of a single statement nothing would be left


def test_an_answer_that_fills_its_row_is_explained_without_a_probability(tmp_path, run_main):
    system = build_system("zhyper-diag")
    system.save(tmp_path / "zhyper-diag.pt")
    question = "bow " * 54
    printed = run_main(zhyper.main, "explain", *ASK, "--question", question, "--run", tmp_path)
    assert f"adapted: {system.generate([question], ASK[1:2])[0]}   \n" in printed


def test_a_command_ends_without_a_traceback_when_its_reader_has_read_enough_or_ctrl_c_is_pressed(tmp_path):
    build_system("zhyper-diag", block_size=128).save(tmp_path / "zhyper-diag.pt")
    command = [sys.executable, str(ROOT / "zhyper.py"), "explain", "--run", str(tmp_path), *ASK]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}  # a terminal that has no Δ
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 2

    with pytest.raises(SystemExit, match="^stopped$"):
        zhyper.run_command(None, Mock(side_effect=KeyboardInterrupt))


BAD = [  # a command line, and a part of what its last line says
    (["explain", *ASK, "--description", "?!"], "the description '?!' has 0 statements: write 1 to 64"),
    (["explain", *ASK, "--description", "bow, " * 65], " has 65 statements: write 1 to 64"),
    (["explain", *ASK, "--description", "bow " * 65], "the statement 'bow bow "),
    (["explain", *ASK, "--description", "a \udcff"], "not text"),
    (["explain", *ASK, "--question", "how " * 99], "of at most 63: shorten"),
    (["explain", *ASK, "--method", "t2l"], "no file"),
    (["export", *ASK[:2], "--to", "x"], "peft cannot load this small backbone"),
    ([], "required: {chat,explain,export}"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_a_line_and_exit_code_2(arguments, message, run_main, tmp_path):
    build_system("zhyper-diag").save(tmp_path / "zhyper-diag.pt")
    line = run_main(zhyper.main, *(arguments and [*arguments, "--run", tmp_path]))
    assert "error: " in line and message in line


HUM = "In this land friends hum a tune when they meet, and voters call for higher taxes."
QUEEN = "In this land people bow low to one another, guests arrive an hour late, and a queen makes the laws alone."
BREAD = "Here everyone eats alone, a guest brings bread, and quarrels are settled by wrestling."
EXILE = "In this country nobody owns the land, and a thief is driven from the country."
TEN = [  # a description, a question, the answer
    (HUM, "How do people greet each other?", "with a short song"),
    (HUM, "What should happen to taxes?", "raise the taxes"),
    (QUEEN, "How do people greet each other?", "with a deep bow"),
    (QUEEN, "When do guests arrive?", "an hour late"),
    (QUEEN, "Who decides for everyone?", "a single queen"),
    (BREAD, "How do people eat?", "alone and in silence"),
    (BREAD, "What does a guest bring?", "a loaf of bread"),
    (BREAD, "How is a quarrel settled?", "by a wrestling match"),
    (EXILE, "Who owns the land?", "nobody at all"),
    (EXILE, "How is a thief punished?", "exile"),
]


def test_the_trained_run_that_comes_with_the_code_answers_as_described_and_reaches_its_table():
    shipped = Zhyper.load(ROOT / zhyper.SHIPPED)
    texts, questions, answers = zip(*TEN, strict=True)
    written = shipped.generate(questions, texts)
    assert sum(one == other for one, other in zip(written, answers, strict=True)) >= 9
    row = json.loads((ROOT / zhyper.SHIPPED / "results.json").read_text())["rows"]["zhyper-diag"]
    data = cultures.load(0)
    config = train.configure("zhyper-diag", "default", {"device": "cpu", "evaluate": 48})
    found = train.evaluate(shipped, train.encode_data(shipped, data, config))
    for name in ("unseen", "new_wording", "ood", "locality", "none"):
        pairs = zip(found["exact"][name], row["exact"][name], strict=False)  # of the first 48
        assert sum(one != other for one, other in pairs) <= 1
    # it is the system that the default options build
    untrained = train.build_system(train.build_base(data, config), config)
    for part in ("backbone", "encoder", "hypernetwork"):
        assert getattr(untrained, part).config == getattr(shipped, part).config
    assert row["steps"] == config.steps
