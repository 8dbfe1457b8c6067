"""The data sets: no split leaks, bad records are named, every control is what it says."""

import json
import random
import sys
from pathlib import Path

import pytest
from conftest import cli
from hypothesis import given, settings
from hypothesis import strategies as st

import data
import data.__main__ as checker
from data import SPLITS, cultures, tasks, voices
from data.cultures import ALLOWED, ANSWERS, BROKEN, FACETS, NAMES
from train import random_text, swapped

SHAKESPEARE = Path(__file__).parent.parent.parent / "shared/data/tinyshakespeare.txt"
RECORD = {"context": "a", "description": "people bow", "prompt": "Q: how?\nA:", "answer": " bow", "split": "train"}


@pytest.fixture(scope="module", params=["cultures", "hard_cultures"])
def built(request) -> data.Data:
    return data.load(request.param, seed=0)


def stated(description: str) -> dict[str, tuple[int, int]]:
    """What a description says: facet -> (value, which clause)."""
    return {
        facet: (value, number)
        for facet, (_, values) in FACETS.items()
        for value, clauses in enumerate(values.values())
        for number, clause in enumerate(clauses)
        if clause in description
    }


def asked(prompt: str) -> str:
    return next(facet for facet, (questions, _) in FACETS.items() if any(q in prompt for q in questions))


def test_the_facets_are_as_many_and_as_distinct_as_they_say():
    assert len(FACETS) >= 16 and all(len(v) == 4 for _, v in FACETS.values())
    clauses = [clause for _, values in FACETS.values() for five in values.values() for clause in five]
    assert all(len(five) == 5 for _, values in FACETS.values() for five in values.values())
    assert len(set(clauses)) == len(clauses) == 320
    assert not [(a, b) for a in clauses for b in clauses if a != b and a in b]
    questions = [q for qs, _ in FACETS.values() for q in qs]
    answers = [a for values in ANSWERS.values() for a in values]
    assert len(set(questions)) == len(questions) == 48 and len(set(answers)) == 64


def test_every_answer_is_what_the_description_states(built):
    most = {"cultures": 4, "hard_cultures": 6}[built.name]
    for record in built.records:
        facet, said = asked(record.prompt), stated(record.description)
        assert len(said) == most or record.split == "train" and 1 <= len(said) < most
        value = said[facet][0] if facet in said else 0
        assert record.answer == f" {ANSWERS[facet][value]}"
        assert (facet in said) == (record.split != "locality") or record.split == "train"


def test_no_held_out_phrase_culture_or_combination_occurs_in_training(built):
    train = built.split("train")
    trained_texts = {r.description for r in train} | {d for d in built.documents if not d.startswith("Q:")}
    held_out = [five[4] for _, values in FACETS.values() for five in values.values()]
    everything = "\n".join(trained_texts)
    assert not [clause for clause in held_out if clause in everything]
    for record in built.split("new_wording"):
        assert all(number == 4 for _, number in stated(record.description).values())
    contexts = {r.context for r in train}
    assert len(contexts) == {"cultures": 256, "hard_cultures": 64}[built.name]
    for split in ("unseen", "ood", "minimal_pairs", "locality"):
        assert not contexts & {r.context for r in built.split(split)}
    assert {r.context for r in built.split("seen") + built.split("new_wording") + built.split("validation")} <= contexts
    evaluated = {r.description for r in built.records if r.split not in ("train", "validation")}
    chosen_on = {r.description for r in built.split("validation")}
    assert not {r.description for r in train} & (evaluated | chosen_on) and not chosen_on & evaluated

    def pairs(descriptions):
        for said in map(stated, descriptions):
            for first, second in zip(NAMES[::2], NAMES[1::2], strict=True):
                if first in said and second in said:
                    yield said[first][0], said[second][0]

    assert set(pairs(trained_texts)) == set(ALLOWED) and not set(ALLOWED) & set(BROKEN)
    ood = {r.description for r in built.split("ood")}
    assert set(pairs(ood)) == set(BROKEN) and all(len(list(pairs([text]))) == len(stated(text)) / 2 for text in ood)


def test_minimal_pairs_differ_in_one_value_and_nothing_else(built):
    rows = built.split("minimal_pairs")
    n = len(stated(rows[0].description))
    for at in range(0, len(rows), 2 * n):
        first, second = rows[at : at + n], rows[at + n : at + 2 * n]
        assert [r.prompt for r in first] == [r.prompt for r in second]
        assert sum(a.answer != b.answer for a, b in zip(first, second, strict=True)) == 1
        before, after = stated(first[0].description), stated(second[0].description)
        assert sum(before[f] != after[f] for f in before) == 1 and list(before) == list(after)


def test_the_pretraining_text_prefers_the_majority(built):
    answered = [d for d in built.documents if d.startswith("Q:")]
    share = sum(d.endswith(f" {ANSWERS[asked(d)][0]}") for d in answered) / len(answered)
    assert 0.68 < share < 0.72
    assert 0.30 < 1 - len(answered) / len(built.documents) < 0.36


def test_the_same_seed_gives_the_same_data_and_another_another(built):
    assert data.load(built.name, seed=0).records == built.records
    assert data.load(built.name, seed=1).records != built.records


def test_the_number_of_training_contexts_can_be_chosen_where_there_is_a_choice():
    loaded = data.load("hard_cultures", seed=0, contexts=16)
    assert len({r.context for r in loaded.split("train")}) == 16
    with pytest.raises(ValueError, match="leave out --contexts"):
        data.load("voices", contexts=16)


def test_a_swapped_description_never_belongs_to_a_context_with_the_same_answer(built):
    rows = built.split("unseen")
    for record, text in zip(rows, swapped(rows, random.Random(0)), strict=True):
        facet = asked(record.prompt)
        assert f" {ANSWERS[facet][stated(text)[facet][0]]}" != record.answer


def test_a_random_description_states_nothing():
    assert not stated(random_text(random.Random(0)))


def write(path: Path, *lines) -> str:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(path)


def test_a_jsonl_file_gives_its_records(tmp_path):
    loaded = data.load(write(tmp_path / "mine.jsonl", RECORD, "", RECORD | {"split": "seen"}))
    assert loaded.records == [data.Record(**RECORD), data.Record(**RECORD | {"split": "seen"})]
    assert loaded.documents == ["Q: how?\nA: bow", "people bow"] and loaded.name == "mine"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "not a JSON object but list"),
        ("{", "not JSON"),
        (json.dumps({k: v for k, v in RECORD.items() if k != "answer"}), "'answer' is missing"),
        (json.dumps(RECORD | {"description": "  "}), "'description' is '  '"),
        (json.dumps(RECORD | {"prompt": ""}), "'prompt' is ''"),
        (json.dumps(RECORD | {"answer": 3}), "'answer' is 3"),
        (json.dumps(RECORD | {"split": "test"}), "unknown split 'test'"),
        (json.dumps(RECORD | {"answer": "\ud800"}), "not text"),
        ('{"context": NaN}', "NaN is no JSON number"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(line, message, tmp_path):
    path = write(tmp_path / "bad.jsonl", RECORD, line)
    with pytest.raises(ValueError, match=r"bad.jsonl, line 2: .*") as error:
        data.load(path)
    assert message in str(error.value)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=30), st.integers(0, 120), st.integers(0, 20))
def test_a_mutated_line_gives_a_record_or_a_value_error(noise, at, cut):
    line = json.dumps(RECORD).encode()
    try:
        record = data.parse(line[:at] + noise + line[at + cut :])
    except ValueError:
        return
    assert all(isinstance(value, str) and value.strip() for value in record) and record.split in SPLITS


def test_a_missing_file_and_an_unknown_name_say_what_would_mend_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none.jsonl"):
        data.load(str(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match=r"unknown data set 'poems': choose from cultures, .*voices"):
        data.load("poems")
    with pytest.raises(FileNotFoundError, match="download https"):
        data.load("voices", str(tmp_path / "none.txt"))
    with pytest.raises(ValueError, match="leave out --data-path"):
        data.load("cultures", "somewhere")


def test_an_option_that_a_data_set_does_not_take_is_refused(tmp_path):
    for name in ("cultures", "voices", write(tmp_path / "mine.jsonl", RECORD)):
        with pytest.raises(ValueError, match="has descriptions of its own: leave out --descriptions"):
            data.load(name, descriptions="file.json")


def test_the_example_of_a_file_of_your_own_is_written_and_passes_its_check(monkeypatch, capsys, tmp_path):
    path = str(tmp_path / "example.jsonl")
    code, out, err = cli(cultures, monkeypatch, capsys, "--export", path, "--rows", "40")
    assert code == 0 and f"check them with python -m data {path}" in out, err
    assert {record.split for record in data.load(path).records} == set(SPLITS)
    code, out, _ = cli(checker, monkeypatch, capsys, path)
    assert code == 0 and "seen: 40 records, " in out and "280 records" not in out and "leak" not in out
    assert out.splitlines()[-1].startswith(f"{path}: 320 records, ") and out.endswith(" 0 bad lines\n")
    code, _, err = cli(cultures, monkeypatch, capsys, "--export", path)
    assert code == 2 and "is there already: remove it" in err and err.count("\n") == 1


def test_every_bad_line_of_a_file_of_your_own_is_named(monkeypatch, capsys, tmp_path):
    good = [RECORD, RECORD | {"context": "b"}, RECORD | {"split": "seen", "prompt": "new"}]
    path = write(tmp_path / "bad.jsonl", good[0], "{", "", RECORD | {"answer": 3}, *good[1:], "[]")
    code, out, err = cli(checker, monkeypatch, capsys, path)
    named = [line for line in out.splitlines() if line.startswith("line ")]
    assert [line.partition(":")[0] for line in named] == ["line 2", "line 4", "line 7"] and "'answer' is 3" in named[1]
    assert "train: 2 records, 2 contexts" in out and "seen: 1 records, 1 contexts" in out and "3 bad lines" in out
    assert code == 2 and "mend the lines above" in err and err.count("\n") == 1
    for lines in ([RECORD, good[2]], good[:2]):  # one training context; nothing to evaluate
        code, _, err = cli(checker, monkeypatch, capsys, write(tmp_path / "few.jsonl", *lines))
        assert code == 2 and "two contexts in train, and another split" in err


@pytest.mark.parametrize(
    ("changes", "leak"),
    [
        ({"split": "seen"}, "1 rows of seen hold nothing that train does not"),
        ({"split": "seen", "prompt": "new"}, None),
        ({"split": "seen", "description": "new"}, None),  # the same question under new words is what a culture is asked
        ({"split": "seen", "description": "people sing"}, "1 rows of seen hold nothing"),  # known words, another row's
        ({"split": "new_wording", "prompt": "new"}, "1 rows of new_wording have a description of train"),
        ({"split": "new_wording", "description": "new"}, None),
        ({"split": "unseen", "description": "new"}, "1 rows of unseen are of a context of train"),
        ({"split": "ood", "context": "new"}, None),
    ],
)
def test_leaks_are_told_from_what_only_looks_like_one(changes, leak):
    other = RECORD | {"description": "people sing", "prompt": "Q: when?\nA:"}
    records = [data.Record(**fields) for fields in (RECORD, other, RECORD | changes)]
    lines = checker.leaks(records)
    assert leak in lines[0] if leak else not lines


def test_a_row_on_which_settings_are_chosen_is_not_evaluated_too():
    row = data.Record(**RECORD | {"split": "validation"})
    rows = [row, row._replace(split="minimal_pairs"), row._replace(split="seen", prompt="new")]
    assert [line.partition(",")[0] for line in checker.leaks(rows)] == [
        "leak: 1 rows of minimal_pairs stand in validation too"
    ]
    assert not checker.leaks([row._replace(split=split) for split in ("seen", "minimal_pairs")])


def test_the_built_in_cultures_do_not_leak(built):
    assert not checker.leaks(built.records)


def test_speeches_are_cut_between_lines():
    assert voices.pieces("To be,\nor not\nto be", 14) == ["To be,\nor not", "to be"]


def test_held_out_speeches_are_in_no_training_text(tmp_path):
    names = list(voices.SPEAKERS)
    speeches = [f"{names[i % len(names)]}:\nline {i} of the play" for i in range(400)]
    (tmp_path / "play.txt").write_text("\n\n".join(speeches))
    loaded = data.load("voices", str(tmp_path / "play.txt"))
    trained = "\n".join([r.prompt + r.answer for r in loaded.split("train")] + loaded.documents) + "\n"
    evaluated = loaded.split("seen") + loaded.split("new_wording") + loaded.split("unseen")
    for record in evaluated + loaded.split("validation"):
        assert record.answer + "\n" not in trained
    chosen_on = {record.answer for record in loaded.split("validation")}
    assert chosen_on.isdisjoint(record.answer for record in evaluated)
    assert set(voices.VALIDATION) < {record.context for record in loaded.split("validation")}
    assert set(voices.VALIDATION).isdisjoint(record.context for record in evaluated + loaded.split("train"))
    assert {r.context for r in loaded.split("unseen")} == set(voices.UNSEEN)
    assert not {r.context for r in loaded.split("train")} & set(voices.UNSEEN)
    assert {r.description for r in loaded.split("new_wording")}.isdisjoint(r.description for r in loaded.split("train"))


def test_every_speaker_has_four_distinct_descriptions():
    texts = [text for four in voices.SPEAKERS.values() for text in four]
    assert len(voices.SPEAKERS) >= 40 and all(len(four) == 4 for four in voices.SPEAKERS.values())
    assert len(set(texts)) == len(texts) and set(voices.UNSEEN) < set(voices.SPEAKERS)


@pytest.mark.skipif(not SHAKESPEARE.is_file(), reason="tiny Shakespeare is not at hand")
def test_the_real_text_has_pieces_of_every_speaker():
    loaded = data.load("voices", str(SHAKESPEARE))
    assert {r.context for r in loaded.records} == set(voices.SPEAKERS)
    assert len(loaded.split("train")) > 10_000 and loaded.free_text


def test_cultures_can_be_described_without_a_package():
    assert not {"torch", "tokenizers"} & set(vars(cultures)) and "data.cultures" in sys.modules


@pytest.fixture(scope="module")
def asked_of_tasks() -> data.Data:
    return data.load("tasks", seed=0)


def test_there_are_tasks_enough_and_each_has_wordings_of_its_own():
    assert len(tasks.TASKS) >= 24 and len(tasks.WORDINGS) == len(tasks.TASKS)
    texts = [text for wordings in tasks.WORDINGS.values() for text in wordings]
    assert all(len(wordings) == 12 for wordings in tasks.WORDINGS.values()) and len(set(texts)) == len(texts)
    for family in tasks.FAMILIES:
        trained = [t for t in tasks.TASKS if t.family == family and t.name not in tasks.UNSEEN]
        assert len(trained) >= 4 and any(t.family == family and t.name in tasks.UNSEEN for t in tasks.TASKS)


@pytest.mark.parametrize(
    ("name", "given", "answer"),
    [
        ("reverse", "a d c b", " b c d a"),
        ("second_last", "a d c b", " c"),
        ("next_letter", "a d c y", " b e d z"),
        ("drop_last", "a d c b", " a d c"),
        ("sort_down", "3 9 4", " 9 4 3"),
        ("largest_smallest", "3 9 4", " 9 3"),
        ("add_one", "3 9 4", " 4 10 5"),
        ("count", "3 9 4", " 3"),
        ("swap_ends", "cup ear hat", " hat ear cup"),
        ("last_to_front", "cup ear hat", " hat cup ear"),
        ("initials", "cup ear hat", " c e h"),
        ("sound_both", "cow dog", " moo bark"),
        ("home_last", "cow dog", " kennel"),
        ("young_first", "cow dog", " calf"),
    ],
)
def test_a_task_does_what_it_is_called(name, given, answer):
    (task,) = [task for task in tasks.TASKS if task.name == name]
    assert task.answer(given.split()) == answer


def test_only_the_description_tells_the_tasks_of_a_family_apart(asked_of_tasks):
    family = {task.name: task.family for task in tasks.TASKS}
    for record in asked_of_tasks.split("seen"):
        items = record.prompt.split()[1:-1]
        answers = [t.answer(items) for t in tasks.TASKS if t.family == family[record.context]]
        assert answers.count(record.answer) <= 2 and len(set(answers)) > len(answers) / 2


def test_no_task_wording_or_input_that_is_held_out_occurs_in_training(asked_of_tasks):
    train = asked_of_tasks.split("train")
    asked_in_training = {r.prompt for r in train} | {
        d.partition("\nOut:")[0] + "\nOut:" for d in asked_of_tasks.documents
    }
    read_in_training = {r.description for r in train} | {d for d in asked_of_tasks.documents if not d.startswith("In:")}
    assert not {r.context for r in train} & tasks.UNSEEN
    assert {r.context for r in asked_of_tasks.split("unseen")} == tasks.UNSEEN
    for record in asked_of_tasks.records:
        if record.split != "train":
            assert record.prompt not in asked_in_training
        if record.split in ("new_wording", "unseen"):
            assert record.description not in read_in_training


def test_no_input_on_which_settings_are_chosen_is_evaluated_again(asked_of_tasks):
    chosen_on = {(r.context, r.prompt) for r in asked_of_tasks.split("validation")}
    others = [r for r in asked_of_tasks.records if r.split not in ("train", "validation")]
    assert others and not chosen_on & {(r.context, r.prompt) for r in others}


def test_opposite_tasks_are_asked_of_one_input_in_words_that_differ_only_in_the_opposites(asked_of_tasks):
    rows = asked_of_tasks.split("minimal_pairs")
    for a, b in zip(rows[::2], rows[1::2], strict=True):
        assert a.prompt == b.prompt and a.answer != b.answer and tasks.flip(a.description) == b.description
