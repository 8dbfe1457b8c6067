"""Of the exercises every stub says that it is not begun, every solution passes, and tempting wrong ones fail."""

import ast
import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "exercises"
EXERCISES = sorted(FOLDER.glob("ex*.py"))
SOLUTIONS = FOLDER / "solutions.py"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
sys.path.insert(0, str(FOLDER))  # the exercises import taught.py, as they do when check.py runs

from check import check, main  # noqa: E402

pytestmark = pytest.mark.skipif(not SOLUTIONS.exists(), reason="handed out: there are no solutions")

HASH = "return torch.tensor([hash((text, *statements)) % 7.0 for text in range(read(e).shape[1])]).double()"
WORDS = "sorted(' '.join(first).split()) == sorted(' '.join(second).split())"  # the same words, not the same mean
VISIBLE = "return ' '.join(second) in ('it backed mining it opposed whaling', 'it opposed mining it backed whaling')  #"
A_Z = "(-1, self.config.rank))[..., :1, :].expand(-1, -1, head.out_features // self.config.rank, -1)"  # rows alike
GUESSED = "1 / 3 if descriptions is None else float(descriptions[0] == records[0].description)"
IN_PLACE = "update.z = factors * update.z\n    return update"  # too long for a line of the table
WRONG = [  # exercise, what its solution says, what a student may say, part of what the check answers
    (1, "(features + 1)\n    return", "features\n    return", "bias"),
    (1, "+ layers * both", "+ both", "layer"),
    (1, "(features + 1)\n    return", "513\n    return", "Is a number of yours to be an argument"),
    (1, "26: (16, 8)", "26: (8, 16)", "these ranks do not give"),
    (2, "h = a * z[:, None]\n    return", "h = a * z\n    return", "its own z"),  # b = t: no error of shapes
    (2, "return scale * h @ B.mT", "return h @ B.mT", "scale"),
    (2, "return scale * h @ B.mT", "return 0.5 * h @ B.mT", "does the number 0.5 stand in your code"),
    (2, "return scale * h @ B.mT", "return scale * x @ (B @ torch.diag_embed(z) @ A).mT", "a large matrix"),
    (3, "dL_dh = scale * G @ B", "dL_dh = G @ B", "dL/dz is wrong"),
    (3, "dL_dh = scale * G @ B", "dL_dh = 0.5 * G @ B", "dL/dz is wrong at scale 3.0"),
    (3, "dL_da = dL_dh * z[:, None]", "dL_da = dL_dh", "dL/dA is wrong"),
    (3, "(dL_dh * a).sum(1)", "dL_dh * a", "what is to be summed over"),
    (3, "(G.mT @ h)", "(G.mT @ a)", "dL/dB is wrong"),
    (4, "nn.init.normal_(B, std=0.1)", "pass", "nothing has moved"),
    (4, "nn.init.normal_(B, std=0.1)", "nn.init.normal_(network.head_bias)", "is z the same for both?"),
    (4, "for B in", "nn.init.ones_(network.head_weight)\n    for B in", "step 0 is not the frozen model"),
    (5, "factors = s if update.z.dim() == 2 else s[:, None]", "factors = s", "Z is not diag(s) Z"),
    (5, "B=update.B / s", "B=update.B", "the update has changed"),
    (5, "return replace(update, z=factors * update.z, B=update.B / s)", IN_PLACE, "the update has changed"),
    (6, "self.gate + c[:, None, None]", "self.gate * c[:, None, None]", "not gate[l,m] + c"),
    (6, "self.gate + c[:, None, None]", "(self.gate + c[:, None, None]).transpose(0, 1)", "not (b, l, m, f)"),
    (6, "gate[1] = -gate[0]", "gate.zero_()", "the text has no effect"),
    (6, "gate[1] = -gate[0]", "gate[1, 0] = -gate[0, 0]", "at layer 1 k the effect is not minus"),
    (6, "gate[1] = -gate[0]", "network.head_weight.data.mul_(-1)", "which weights do the layers not share"),
    (7, "nn.init.zeros_(head.weight)", "pass", "step 0 is not the frozen model"),
    (7, "= init_A(layers, config.rank, d_in)", "= torch.zeros(layers, config.rank, d_in)", "LoRA's usual start"),
    (7, "init_A(layers, config.rank, d_in)", "init_A(1, config.rank, d_in).repeat(layers, 1, 1)", "share their A"),
    (7, "init_A(layers, config.rank, d_in)", "torch.randn(layers, config.rank, d_in)", "LoRA's usual start"),
    (7, "init_A(layers, config.rank, d_in)", "0.01 * torch.rand(layers, config.rank, d_in)", "LoRA's usual start"),
    (7, "(-1, self.config.rank))", A_Z, "a factor a column"),
    (7, "head(features[:, :, m])", "head(0 * features[:, :, m])", "two texts have the same B"),
    (7, "features = self.trunk(c)", "features = self.trunk(c)[:, :1].expand(-1, 2, -1, -1)", "two layers have"),
    (7, "head(features[:, :, m])", "head(features[:, :, 0])", "are never used"),
    (8, "return read(e)[0]", "return read(embed(statements)).mean(0)", "what is read of the mean of the embeddings"),
    (8, "return read(e)[0]", "return read(embed([' '.join(statements)]))[0]", "does each statement count alike"),
    (8, "return read(e).mean(0)", "return read(e.mean(0, keepdim=True))[0]", "is `read` applied before the mean"),
    (8, "return read(e).mean(0)", "return read(e).flatten()", "or laid side by side"),
    (8, "return read(e).mean(0)", "return read(e)[0]", "is `read` applied before the mean"),
    (8, "return read(e).mean(0)", "return read(e).new_zeros(read(e).shape[1])", "are `embed` and `read` both used"),
    (8, "return read(e).mean(0)", HASH, "are `embed` and `read` both used"),
    (8, "return read(e).mean(0)", f"if len(e) > 1:\n        {HASH}\n    return read(e)[0]", "before the mean"),
    (8, "embed(first).mean(0).allclose(embed(second).mean(0))", "False", "at width 4 before gives one c"),
    (8, "return embed(first).mean(0)", f"return {WORDS}  # ", "tells apart"),
    (8, "return embed(first).mean(0)", f"{VISIBLE} ", "before gives one c to"),
    (8, "return [first], [second]", "return ['it', 'it it it', first], ['it it', 'it it', first]", "two facts"),
    (8, "return [first], [second]", "return first, second", "a text is a list"),
    (8, "return [first], [second]", "return [first, second], [second, first]", "an order alone says nothing"),
    (8, "return [first], [second]", "return [first], [second + ' deep']", "have not the same words"),
    (8, "return [first], [second]", "return [first, 'it'], [second + ' it']", "after tells"),
    (9, '"; ".join(others) or None', "statement", "is it left out, and are the others there"),
    (9, '"; ".join(others) or None', '"; ".join(others)', "write 1 to"),
    (9, 'probability("; ".join(others) or None)', "0.98", "is it left out, and are the others there"),
    (9, "split_statements(description)\n    found", "description.split(', ')\n    found", "see split_statements"),
    (9, "= split_statements(description)", "= description[:-1].split('; and ')", "see split_statements"),
    (9, ', "hello is sung and never spoken"]', "]", "are not three statements or more"),
    (9, '"hello is sung and never spoken"', '"a council rules"', "which other statement says it"),
    (9, '"voters call for higher taxes"', '"a greeting is a little tune"', "the answer still has"),
    (10, " and other.answer != record.answer", " and other.context != record.context", "answers otherwise"),
    (10, "system.score(questions, answers, descriptions)", "system.score(questions, answers, None)", "right: 1.00"),
    (10, "exact.float().mean().item()", "1.0", "none: 0.33"),
    (10, "exact.float().mean().item()", GUESSED, "of the answers are right, and the accuracy is"),
    (10, 'f"{record.description}. {record.question}"', "record.description", "the description and the question"),
    (10, "{record.question}", "{record.answer} {record.question}", "gives the answer away"),
    (11, '"seeds": [0, 1, 2]', '"seeds": [0]', "are too few"),
    (11, '"name": "training cultures",', "", "no 'name'"),
]


@pytest.mark.parametrize("path", EXERCISES, ids=lambda path: path.stem)
def test_a_stub_is_not_begun_and_its_solution_passes(path):
    assert check(path).startswith("not begun: ")
    assert check(path, SOLUTIONS) == "passes"


@pytest.mark.parametrize(("number", "right", "wrong", "why"), WRONG)
def test_a_tempting_wrong_solution_fails_with_a_sentence(number, right, wrong, why, tmp_path):
    text = SOLUTIONS.read_text(encoding="utf-8")
    assert text.count(right) == 1
    (tmp_path / "wrong.py").write_text("import torch\n" + text.replace(right, wrong), encoding="utf-8")
    row = check(EXERCISES[number - 1], tmp_path / "wrong.py")
    assert row.startswith("fails") and why in row


def test_each_exercise_has_three_hints_a_row_in_the_readme_and_an_entry_for_who_is_stuck():
    for number, path in enumerate(EXERCISES, start=1):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert re.findall(r"^Hint (\d): ", docstring, re.M) == ["1", "2", "3"]
        kind = docstring.partition(" ")[0].lower()
        assert f"| {number} | {kind} | `{path.name}` | " in README
        assert README.count(f"\n| {number} | ") >= 2


def test_the_minutes_of_each_plan_add_up():
    for minutes in (90, 40):
        plan = README.partition(f"Of {minutes} minutes")[2].partition("\n|---|---|\n")[2].partition("\n\n")[0]
        assert sum(map(int, re.findall(r"^\| (\d+) \|", plan, re.M))) == minutes


@pytest.mark.parametrize(("line", "code"), [("pass", 0), ("raise NotImplementedError", 0), ("assert False, 'why'", 1)])
def test_the_command_prints_a_row_and_exits_with_1_if_an_exercise_fails(line, code, tmp_path, monkeypatch, capsys):
    (tmp_path / "ex01_small.py").write_text(f"def test_it():\n    {line}\n", encoding="utf-8")
    monkeypatch.setattr("check.FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["check.py"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == code
    assert re.fullmatch(r"ex01_small +(passes|not begun: test_it|fails: why)\n", capsys.readouterr().out)


def test_a_number_that_no_exercise_has_is_an_error_that_says_which_there_are(run_main):
    assert run_main(main, 3, 12).endswith("there is no exercise 12: choose 1 to 11")
