"""The data sets: no split leaks, bad records are named, every control is what it says."""

import json
import random
import re
import time
from functools import cache
from pathlib import Path

import pytest
from conftest import cli
from hypothesis import given, settings
from hypothesis import strategies as st

import data
import data.__main__ as checker
from data import SPLITS, Record, cultures, tasks, voices
from data._controls import random_text, swapped
from data.cultures import ALLOWED, ANSWERS, BROKEN, FACETS, NAMES

SHAKESPEARE = Path(__file__).parent.parent.parent / "shared/data/tinyshakespeare.txt"
RECORD = Record("a", "people bow", "Q: how?\nA:", " bow", "train")._asdict()

# ---- cultures


@pytest.fixture(scope="module", params=["cultures", "hard_cultures"])
def built(request) -> data.Data:
    return data.load(request.param, seed=0)


@cache
def stated(description: str) -> dict[str, tuple[int, int]]:
    """What a description says: facet -> (value, which clause)."""
    return {
        facet: (value, number)
        for facet, (_, values) in FACETS.items()
        for value, clauses in enumerate(values.values())
        for number, clause in enumerate(clauses)
        if clause in description
    }


@cache
def asked(prompt: str) -> str:
    return next(facet for facet, (questions, _) in FACETS.items() if any(q in prompt for q in questions))


def test_the_facets_are_as_many_and_as_distinct_as_they_say():
    assert len(FACETS) >= 16 and all(len(values) == 4 for _, values in FACETS.values())
    assert all(len(five) == 5 for _, values in FACETS.values() for five in values.values())
    clauses = [clause for _, values in FACETS.values() for five in values.values() for clause in five]
    assert len(set(clauses)) == len(clauses) == 320
    assert not [(a, b) for a in clauses for b in clauses if a != b and a in b]
    questions = [question for several, _ in FACETS.values() for question in several]
    answers = [answer for values in ANSWERS.values() for answer in values]
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
    texts = {r.description for r in train} | {d for d in built.documents if d[:2] != "Q:"}
    everything = "\n".join(texts)
    held_out = [five[4] for _, values in FACETS.values() for five in values.values()]
    assert not [clause for clause in held_out if clause in everything]
    for record in built.split("new_wording"):
        assert all(number == 4 for _, number in stated(record.description).values())
    contexts = {r.context for r in train}
    assert len(contexts) == {"cultures": 256, "hard_cultures": 64}[built.name]
    for split in SPLITS:
        known = split in ("train", "seen", "new_wording", "validation")
        assert all((r.context in contexts) == known for r in built.split(split)), split

    def pairs(descriptions):
        for said in map(stated, descriptions):
            for first, second in zip(NAMES[::2], NAMES[1::2], strict=True):
                if first in said and second in said:
                    yield said[first][0], said[second][0]

    assert set(pairs(texts)) == set(ALLOWED) and not set(ALLOWED) & set(BROKEN)
    ood = {r.description for r in built.split("ood")}
    assert set(pairs(ood)) == set(BROKEN)
    assert all(len(list(pairs([text]))) == len(stated(text)) / 2 for text in ood)


def test_no_description_of_training_or_validation_is_evaluated(built):
    trained, validated = ({r.description for r in built.split(s)} for s in ("train", "validation"))
    evaluated = {r.description for r in built.records if r.split not in ("train", "validation")}
    assert not trained & (evaluated | validated) and not validated & evaluated
    assert not checker.leaks(built.records)


def test_minimal_pairs_differ_in_one_value_and_nothing_else(built):
    rows = built.split("minimal_pairs")
    n = len(stated(rows[0].description))
    for at in range(0, len(rows), 2 * n):
        first, second = rows[at : at + n], rows[at + n : at + 2 * n]
        assert [r.prompt for r in first] == [r.prompt for r in second]
        assert sum(a.answer != b.answer for a, b in zip(first, second, strict=True)) == 1
        before, after = stated(first[0].description), stated(second[0].description)
        assert sum(before[f] != after[f] for f in before) == 1 and list(before) == list(after)


def test_the_choices_of_a_culture_are_the_four_answers_of_its_facet(built):
    for record in built.records:
        assert record.choices == tuple(f" {answer}" for answer in ANSWERS[asked(record.prompt)])
        assert record.answer in record.choices and len(set(record.candidates)) == 4


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


# ---- controls


def test_under_a_swapped_description_the_answer_is_wrong(built):
    rows = built.split("unseen")
    for record, text in zip(rows, swapped(rows, random.Random(0)), strict=True):
        facet = asked(record.prompt)
        assert f" {ANSWERS[facet][stated(text)[facet][0]]}" != record.answer


ROWS = st.builds(Record, *map(st.sampled_from, ("abcd", "xyz", "pq", "yn", ["unseen"])))


@settings(max_examples=300, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=9))
def test_a_swapped_description_is_of_a_row_that_differs_if_possible_on_the_same_question(rows):
    def rivals(row: Record, pool: list[Record]) -> set[str]:
        fields = ("context", "description", "answer")
        differ = [all(getattr(row, f) != getattr(other, f) for f in fields) for other in pool]
        return {other.description for other, differs in zip(pool, differ, strict=True) if differs}

    same = [rivals(row, [r for r in rows if r.prompt == row.prompt]) for row in rows]
    expected = [near or rivals(row, rows) for row, near in zip(rows, same, strict=True)]
    if all(expected):
        chosen = swapped(rows, random.Random(0))
        assert all(text in texts for text, texts in zip(chosen, expected, strict=True))
    else:
        with pytest.raises(ValueError, match="add one to swap"):
            swapped(rows, random.Random(0))


@pytest.mark.parametrize(
    ("context", "prompt", "answer"),
    [
        (lambda i: i % 100, lambda i: 0, lambda i: i % 4),
        (lambda i: i == 7999, lambda i: i, lambda i: i),  # free text, one row of another context
        (lambda i: i == 7999, lambda i: 0, lambda i: i),
        (lambda i: i, lambda i: i % 2, lambda i: i % 2),  # a prompt has one answer, whoever is asked
        (lambda i: i, lambda i: 0, lambda i: i == 7999),
    ],
)
def test_eight_thousand_rows_are_swapped_in_well_under_a_second(context, prompt, answer):
    rows = [Record(f"{context(i)}", f"d{i}", f"{prompt(i)}", f"{answer(i)}", "seen") for i in range(8000)]
    start = time.process_time()
    assert len(swapped(rows, random.Random(0))) == 8000
    assert time.process_time() - start < 1


def test_a_random_description_states_nothing():
    assert not stated(random_text(random.Random(0)))


# ---- a file of your own


def write(path: Path, *lines) -> str:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts))
    return str(path)


def test_a_jsonl_file_gives_its_records(tmp_path):
    loaded = data.load(write(tmp_path / "mine.jsonl", RECORD, "", RECORD | {"split": "seen"}))
    assert loaded.records == [Record(**RECORD), Record(**RECORD | {"split": "seen"})]
    assert loaded.documents == ["Q: how?\nA: bow", "people bow"] and loaded.name == "mine"


def test_choices_in_a_file_are_read_once_each_and_the_answer_is_the_first_candidate(tmp_path):
    several = RECORD | {"choices": [" sing", " bow", " nod", " sing"]}
    first, second = data.load(write(tmp_path / "mine.jsonl", several, RECORD)).records
    assert first.choices == (" sing", " bow", " nod") and first.candidates == [" bow", " sing", " nod"]
    assert second.choices == () and second.candidates == [" bow"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "not a JSON object but list"),
        ("{", "not JSON"),
        (json.dumps({k: v for k, v in RECORD.items() if k != "answer"}), "'answer' is missing"),
        (json.dumps(RECORD | {"description": "  "}), "'description' is '  '"),
        (json.dumps(RECORD | {"answer": 3}), "'answer' is 3"),
        (json.dumps(RECORD | {"split": "test"}), "unknown split 'test'"),
        (json.dumps(RECORD | {"answer": "\ud800"}), "not text"),
        ('{"context": NaN}', "NaN is no JSON number"),
        (json.dumps(RECORD | {"choices": " bow"}), "'choices' must be a list of texts, one of which is the answer"),
        (json.dumps(RECORD | {"choices": [" sing"]}), "'choices' must be a list of texts, one of which is the answer"),
        (json.dumps(RECORD | {"choices": [" bow", " "]}), "'choices' is ' '"),
        (json.dumps(RECORD | {"choices": [" bow", 3]}), "'choices' is 3"),
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
    line = json.dumps(RECORD | {"choices": [" bow", " nod"]}).encode()
    try:
        record = data.parse(line[:at] + noise + line[at + cut :])
    except ValueError:
        return
    *texts, choices = record
    assert all(isinstance(value, str) and value.strip() for value in (*texts, *choices))
    assert isinstance(choices, tuple) and (not choices or record.answer in choices)
    assert record.split in SPLITS


@pytest.mark.parametrize(
    ("name", "path", "options", "message"),
    [
        ("none.jsonl", None, {}, "no file none.jsonl"),
        ("poems", None, {}, r"unknown data set 'poems': choose from cultures, .*voices"),
        ("voices", "none.txt", {}, "download https"),
        ("cultures", "somewhere", {}, "leave out --data-path"),
        ("cultures", None, {"descriptions": "x"}, "has descriptions of its own: leave out"),
        ("voices", None, {"descriptions": "x"}, "has descriptions of its own: leave out"),
        ("none.jsonl", None, {"descriptions": "x"}, "has descriptions of its own: leave out"),
    ],
)
def test_what_cannot_be_loaded_says_what_would_mend_it(name, path, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        data.load(name, path, **options)


def test_the_example_of_a_file_of_your_own_passes_its_check(monkeypatch, capsys, tmp_path):
    path = str(tmp_path / "example.jsonl")
    code, out, err = cli(cultures, monkeypatch, capsys, "--export", path, "--rows", "40")
    assert code == 0 and f"check them with python -m data {path}" in out, err
    assert {record.split for record in data.load(path).records} == set(SPLITS)
    code, out, _ = cli(checker, monkeypatch, capsys, path)
    assert code == 0 and "seen: 40 records, " in out and "leak" not in out
    assert out.splitlines()[-1].startswith(f"{path}: 320 records, ") and "0 bad lines" in out
    code, _, err = cli(cultures, monkeypatch, capsys, "--export", path)
    assert code == 2 and "remove it" in err and err.count("\n") == 1


def test_every_bad_line_of_a_file_of_your_own_is_named(monkeypatch, capsys, tmp_path):
    good = [RECORD, RECORD | {"context": "b"}, RECORD | {"split": "seen", "prompt": "new"}]
    path = write(tmp_path / "bad.jsonl", good[0], "{", "", RECORD | {"answer": 3}, *good[1:], "[]")
    code, out, err = cli(checker, monkeypatch, capsys, path)
    named = [line.partition(":")[0] for line in out.splitlines() if line.startswith("line ")]
    assert named == ["line 2", "line 4", "line 7"] and "'answer' is 3" in out
    assert "train: 2 records, 2 contexts" in out and "3 bad lines" in out
    assert code == 2 and "mend the lines above" in err and err.count("\n") == 1
    for lines in ([RECORD, good[2]], good[:2]):  # one training context; nothing to evaluate
        code, _, err = cli(checker, monkeypatch, capsys, write(tmp_path / "few.jsonl", *lines))
        assert code == 2 and "two contexts in train, and another split" in err


@pytest.mark.parametrize(
    ("changes", "leak"),
    [
        ({"split": "seen"}, "1 rows of seen hold nothing that train does not"),
        ({"split": "seen", "prompt": "new"}, None),
        ({"split": "seen", "description": "new"}, None),  # the same question in new words is fair
        ({"split": "seen", "description": "people sing"}, "1 rows of seen hold nothing"),
        ({"split": "new_wording", "prompt": "new"}, "new_wording have a description of train"),
        ({"split": "new_wording", "description": "new"}, None),
        ({"split": "unseen", "description": "new"}, "1 rows of unseen are of a context of train"),
        ({"split": "ood", "context": "new"}, None),
    ],
)
def test_leaks_are_told_from_what_only_looks_like_one(changes, leak):
    other = RECORD | {"description": "people sing", "prompt": "Q: when?\nA:"}
    lines = checker.leaks([Record(**fields) for fields in (RECORD, other, RECORD | changes)])
    assert leak in lines[0] if leak else not lines


def test_a_row_on_which_settings_are_chosen_is_not_evaluated_too():
    row = Record(**RECORD | {"split": "validation"})
    pair = row._replace(split="minimal_pairs")
    (line,) = checker.leaks([row, pair, row._replace(split="seen", prompt="new")])
    assert line.startswith("leak: 1 rows of minimal_pairs stand in validation too")
    assert not checker.leaks([pair, row._replace(split="seen")])


# ---- voices


def test_held_out_speeches_are_in_no_training_text(tmp_path):
    names = list(voices.SPEAKERS)
    speeches = [f"{names[i % len(names)]}:\nline {i} of the play" for i in range(400)]
    (tmp_path / "play.txt").write_text("\n\n".join(speeches))
    loaded = data.load("voices", str(tmp_path / "play.txt"))
    train, chosen = loaded.split("train"), loaded.split("validation")
    trained = "\n".join([r.prompt + r.answer for r in train] + loaded.documents) + "\n"
    evaluated = loaded.split("seen") + loaded.split("new_wording") + loaded.split("unseen")
    assert not [r for r in evaluated + chosen if r.answer + "\n" in trained]
    assert not {r.answer for r in chosen} & {r.answer for r in evaluated}
    assert set(voices.VALIDATION) < {r.context for r in chosen}
    assert not set(voices.VALIDATION) & {r.context for r in evaluated + train}
    assert {r.context for r in loaded.split("unseen")} == set(voices.UNSEEN)
    assert not {r.context for r in train} & set(voices.UNSEEN)
    assert not {r.description for r in loaded.split("new_wording")} & {r.description for r in train}


def test_every_speaker_has_four_distinct_descriptions():
    texts = [text for four in voices.SPEAKERS.values() for text in four]
    assert len(voices.SPEAKERS) >= 40 and all(len(four) == 4 for four in voices.SPEAKERS.values())
    assert len(set(texts)) == len(texts) and set(voices.UNSEEN) < set(voices.SPEAKERS)


@pytest.mark.skipif(not SHAKESPEARE.is_file(), reason="tiny Shakespeare is not at hand")
def test_the_real_text_has_pieces_of_every_speaker():
    loaded = data.load("voices", str(SHAKESPEARE))
    assert {r.context for r in loaded.records} == set(voices.SPEAKERS)
    assert len(loaded.split("train")) > 10_000 and loaded.free_text


# ---- tasks


@pytest.fixture(scope="module")
def task_data() -> data.Data:
    return data.load("tasks", seed=0)


def test_there_are_tasks_enough_and_each_has_wordings_of_its_own():
    assert len(tasks.TASKS) >= 24 and len(tasks.WORDINGS) == len(tasks.TASKS)
    texts = [text for wordings in tasks.WORDINGS.values() for text in wordings]
    assert len(set(texts)) == len(texts) == 12 * len(tasks.TASKS)
    for family in tasks.FAMILIES:
        unseen = [task.name in tasks.UNSEEN for task in tasks.TASKS if task.family == family]
        assert unseen.count(False) >= 4 and any(unseen)


EXAMPLES = """
    reverse: a d c b > b c d a          second_last: a d c b > c
    next_letter: a d c y > b e d z      drop_last: a d c b > a d c
    sort_down: 3 9 4 > 9 4 3            largest_smallest: 3 9 4 > 9 3
    add_one: 3 9 4 > 4 10 5             count: 3 9 4 > 3
    swap_ends: cup ear hat > hat ear cup
    last_to_front: cup ear hat > hat cup ear
    initials: cup ear hat > c e h       sound_both: cow dog > moo bark
    home_last: cow dog > kennel         young_first: cow dog > calf
"""


@pytest.mark.parametrize("example", re.split(r"\s{2,}", EXAMPLES.strip()))
def test_a_task_does_what_it_is_called(example):
    name, given, answer = re.split(": | >", example)
    (task,) = [task for task in tasks.TASKS if task.name == name]
    assert task.answer(given.split()) == answer


def test_only_the_description_tells_the_tasks_of_a_family_apart(task_data):
    family = {task.name: task.family for task in tasks.TASKS}
    for record in task_data.split("seen"):
        items = record.prompt.split()[1:-1]
        answers = [t.answer(items) for t in tasks.TASKS if t.family == family[record.context]]
        assert answers.count(record.answer) <= 2 and len(set(answers)) > len(answers) / 2
        assert record.choices == tuple(dict.fromkeys(answers))


def test_no_task_wording_or_input_that_is_held_out_occurs_in_training(task_data):
    train, documents = task_data.split("train"), task_data.documents
    inputs = {d.partition("\nOut:")[0] + "\nOut:" for d in documents} | {r.prompt for r in train}
    texts = {r.description for r in train} | {d for d in documents if not d.startswith("In:")}
    assert not {r.context for r in train} & tasks.UNSEEN
    assert {r.context for r in task_data.split("unseen")} == tasks.UNSEEN
    others = [r for r in task_data.records if r.split != "train"]
    assert not [r for r in others if r.prompt in inputs]
    assert not [r for r in others if r.split in ("new_wording", "unseen") and r.description in texts]
    validated = {(r.context, r.prompt) for r in task_data.split("validation")}
    assert not [r for r in others if r.split != "validation" and (r.context, r.prompt) in validated]


def test_opposite_tasks_are_asked_of_one_input_in_opposite_words(task_data):
    rows = task_data.split("minimal_pairs")
    for a, b in zip(rows[::2], rows[1::2], strict=True):
        assert a.prompt == b.prompt and a.answer != b.answer
        assert tasks.flip(a.description) == b.description
