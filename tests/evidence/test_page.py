"""The page: one file, whose numbers are the model's, and which a real browser shows. The last needs a Chromium."""

import html
import json
import re
import shutil
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from conftest import ROOT, build_system, two_cultures

sys.path.insert(0, str(Path(__file__).parent))

import page

from data import Record, cultures
from zhyper import TRAINED, Zhyper

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
HALF = 0.501  # rounding to a unit moves a number by half of it


def with_choices(records: list[Record]) -> list[Record]:
    changed = []
    for record in records:
        choices = (" bow", " sing") if "greet" in record.prompt else (" cut", " raise")
        changed.append(record._replace(choices=choices))
    return changed


@pytest.fixture
def cli(run_main):
    return partial(run_main, page.main)


@pytest.fixture
def written(trained, cli, tmp_path) -> tuple[Zhyper, Path]:
    """The tiny trained system, and the page that the command has made of it."""
    trained[0].save(tmp_path / "zhyper-diag.pt")
    lines = [json.dumps(record._asdict()) for record in with_choices(two_cultures().records)]
    (tmp_path / "two.jsonl").write_text("\n".join(lines))
    file = tmp_path / "new" / "page.html"
    cli("--run", tmp_path, "--data", tmp_path / "two.jsonl", "--to", file)
    return trained[0], file


def numbers_of(text: str) -> dict:
    """What a browser would read as the numbers: all text of the first script element."""
    found = []

    class Reader(HTMLParser):
        inside = False

        def handle_starttag(self, tag, attributes):
            self.inside = ("id", "numbers") in attributes

        def handle_endtag(self, tag):
            self.inside = False

        def handle_data(self, content):
            if self.inside:
                found.append(content)

    Reader().feed(text)
    return json.loads("".join(found))


@torch.no_grad()
def check_numbers(system: Zhyper, numbers: dict, prompts: list[str], names: list[str]) -> None:
    """Compare the points of these names with what the system computes for each of them on its own."""
    texts, steps, units = numbers["descriptions"], numbers["steps"], numbers["units"]

    def near(shown: list, computed: torch.Tensor, unit: str) -> None:
        gap = torch.tensor(shown) / units[unit] - computed
        assert gap.abs().max() < HALF / units[unit] + 1e-4

    def check_answers(shown: list, descriptions) -> None:
        for prompt, answers, probabilities in zip(prompts, numbers["answers"], shown, strict=True):
            spaced = [f" {answer}" for answer in answers]
            loss, _, _ = system.score([prompt] * len(answers), spaced, descriptions(len(answers)))
            near(probabilities, (-loss).exp(), "probabilities")

    check_answers(numbers["frozen"], lambda count: None)
    for name in names:
        place = [int(part) for part in name.split()]
        if len(place) == 1:
            c = system.embed([texts[place[0]]])
            check_answers(numbers["points"][name]["probabilities"], lambda count, i=place[0]: [texts[i]] * count)
        else:
            first, second, step = place
            c = torch.lerp(system.embed([texts[first]]), system.embed([texts[second]]), step / steps)
            check_answers(numbers["points"][name]["probabilities"], lambda count, c=c: c.repeat(count, 1))
        adapter = system.adapt(c)
        assert numbers["sites"] == [f"{layer} {module}" for layer, module in adapter]
        near(numbers["points"][name]["z"], torch.cat([update.z for update in adapter.values()]), "z")
        deltas = {site: update.scale * update.B * update.z @ update.A for site, update in adapter.items()}
        norms = [delta.norm() / system.backbone.linear(*site).weight.norm() for site, delta in deltas.items()]
        near(numbers["points"][name]["norms"], torch.stack(norms), "norms")


# ---- what is in the file


def test_the_page_is_one_file_that_asks_for_no_other(written):
    _, file = written
    text = file.read_text(encoding="utf-8")
    assert [path.name for path in file.parent.iterdir()] == ["page.html"]
    assert not re.search(r"://|\bsrc=|\bhref=|\burl\(|@import|\bimport\b|\bfetch\(|XMLHttpRequest", text)
    assert "default-src 'none'" in text  # and the browser would refuse it


def test_every_number_is_what_the_model_computes(written):
    system, file = written
    numbers = numbers_of(file.read_text(encoding="utf-8"))
    assert [*numbers["points"]] == ["0", "1", *(f"0 1 {step}" for step in range(1, page.STEPS))]
    prompts = [system.guide.prompt(question) for question in numbers["questions"]]
    check_numbers(system, numbers, prompts, [*numbers["points"]])


def test_a_text_that_ends_a_script_is_still_a_text():
    numbers = {"descriptions": ["a </script><b> & it’s \\ over\n"]}
    assert numbers_of(page.render(numbers)) == numbers


def test_what_a_text_states_is_what_its_records_answer(written):
    _, file = written
    numbers = numbers_of(file.read_text(encoding="utf-8"))
    for record in with_choices(two_cultures().split("unseen")):
        text = numbers["descriptions"].index(record.description)
        question = numbers["questions"].index(record.prompt.removeprefix("Q: ").removesuffix("\nA:"))
        stated = numbers["stated"][text][question]
        assert numbers["answers"][question][stated] == record.answer.strip()


def test_it_begins_where_two_texts_disagree_and_the_frozen_model_is_most_wrong():
    stated = [[0, 1, None], [0, 2, 2], [1, None, 3]]
    frozen = [[700, 200, 0], [800, 50, 60], [10, 10, 10, 10]]
    assert page.choose_start(stated, frozen) == [1, 2, 2]
    assert page.choose_start(stated[:2], frozen) == [0, 1, 1]
    assert page.choose_start([[None], [0]], [[1000]]) == [0, 1, 0]


@pytest.mark.skipif(not (ROOT / TRAINED).is_dir(), reason="the trained run is not there")
def test_the_page_of_the_run_that_comes_with_the_code_is_small_and_answers_as_the_texts_say(cli, tmp_path, monkeypatch):
    file = tmp_path / "page.html"
    steps = page.STEPS
    monkeypatch.setattr(page, "STEPS", 2)  # a sixth of the points, in a sixth of the time
    assert " MB" in cli("--to", file)
    numbers = numbers_of(file.read_text(encoding="utf-8"))
    pairs = page.DESCRIPTIONS * (page.DESCRIPTIONS - 1) // 2
    assert len(numbers["points"]) == page.DESCRIPTIONS + pairs
    bytes_per_point = file.stat().st_size / len(numbers["points"])
    assert bytes_per_point * (page.DESCRIPTIONS + pairs * (steps - 1)) < 1e6
    assert (len(numbers["descriptions"]), len(numbers["questions"])) == (page.DESCRIPTIONS, page.QUESTIONS)
    system = Zhyper.load(ROOT / TRAINED)
    prompts = [system.guide.prompt(question) for question in numbers["questions"]]
    check_numbers(system, numbers, prompts, ["0", "11", "0 1 1", "3 7 1"])
    records = cultures.load(None, 0).split("unseen")
    contexts = {record.context for record in records if record.description in numbers["descriptions"]}
    assert len(contexts) == page.DESCRIPTIONS
    right = []
    for text, stated in enumerate(numbers["stated"]):
        for question, answer in enumerate(stated):
            if answer is not None:
                shown = numbers["points"][str(text)]["probabilities"][question]
                right.append(shown.index(max(shown)) == answer)
    assert len(right) > page.DESCRIPTIONS and sum(right) / len(right) > 0.9


# ---- mistakes


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("t2l", "choose --method zhyper-diag"),
        ("zhyper-square", "choose --method zhyper-diag"),
        ("lora", "this method generates no adapter from a text"),
    ],
)
def test_a_method_without_a_z_for_each_rank_is_refused(kind, message):
    system = build_system(kind)
    with pytest.raises(ValueError, match=message):
        page.collect(system, with_choices(two_cultures().split("unseen")))


def test_a_mistake_is_one_line_and_exit_code_2(cli, trained, tmp_path):
    file = tmp_path / "page.html"
    assert "name another run" in cli("--run", tmp_path, "--to", file)
    trained[0].save(tmp_path / "zhyper-diag.pt")
    lines = [json.dumps(record._asdict()) for record in two_cultures().records]  # without choices
    (tmp_path / "two.jsonl").write_text("\n".join(lines))
    words = ("--run", tmp_path, "--data", tmp_path / "two.jsonl", "--to", file)
    assert "choose another --data" in cli(*words)
    choices = (" bow", " sing", " cut", " raise")
    lines = [json.dumps(record._replace(choices=choices)._asdict()) for record in two_cultures().records]
    (tmp_path / "two.jsonl").write_text("\n".join(lines))
    assert "different questions have the same choices" in cli(*words)
    assert not file.exists()


# ---- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """browse(file): the document that a real browser makes of a file, after its scripts have run."""
    found = [path for name in BROWSERS if (path := shutil.which(name))]
    if not found:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on the path")
    profile = tmp_path_factory.mktemp("profile")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--dump-dom"]

    def browse(file: Path) -> str:
        command = [found[0], *options, file.as_uri()]
        return subprocess.run(command, capture_output=True, timeout=120, text=True, encoding="utf-8").stdout

    trial = profile / "trial.html"
    trial.write_text("<script>document.write(6 * 7)</script>")
    if "42" not in browse(trial):
        pytest.skip(f"{found[0]} does not run here")
    return browse


LISTEN = """<script>
const errors = [];
window.addEventListener("error", (event) => errors.push(event.message));
document.addEventListener("securitypolicyviolation", (event) => errors.push(event.blockedURI));
console.error = (...words) => errors.push(words.join(" "));
</script>"""
DRIVE = """<script>
const seen = [];
function look(id, value) {
  const input = document.getElementById(id);
  input.value = value;
  input.dispatchEvent(new Event("input"));
  const text = (part) => document.getElementById(part).textContent;
  const cells = [...document.querySelectorAll("#sites .strip i")].map((cell) => cell.title);
  const named = [...document.querySelectorAll("select, input")].every((field) => field.labels.length === 1);
  seen.push({frozen: text("frozen-says"), adapted: text("adapted-says"), answers: text("answers"), cells, named,
             norms: [...document.querySelectorAll("#sites .number")].map((norm) => norm.textContent),
             text: text("first-text"), spoken: document.getElementById("mix").getAttribute("aria-valuetext")});
}
MOVES
const shown = document.createElement("pre");
shown.id = "seen";
shown.textContent = JSON.stringify({seen, errors});
document.body.append(shown);
</script>"""


def drive(browser, file: Path, *moves: tuple[str, int]) -> dict:
    """What the page shows after each move, (the id of an input, its new value), and its errors."""
    text = file.read_text(encoding="utf-8").replace("<head>", f"<head>{LISTEN}", 1)
    calls = "\n".join(f'look("{name}", {value});' for name, value in moves)
    driven = file.with_name("driven.html")
    driven.write_text(text.replace("</body>", f"{DRIVE.replace('MOVES', calls)}</body>"), encoding="utf-8")
    (seen,) = re.findall(r'<pre id="seen">(.*?)</pre>', browser(driven), re.S)
    return json.loads(html.unescape(seen))


def test_the_slider_moves_the_answer_of_the_adapted_model_from_one_text_to_the_other(browser, written):
    system, file = written
    numbers = numbers_of(file.read_text(encoding="utf-8"))
    texts, question = numbers["descriptions"], numbers["questions"][0]
    moves = [("question", 0), ("mix", 0), ("mix", 5), ("mix", numbers["steps"])]
    moves += [("second", 0), ("first", 1), ("mix", 3)]  # the two change places
    result = drive(browser, file, *moves)
    assert result["errors"] == []
    _, left, between, right, _, turned, mirrored = result["seen"]
    for shown, text in ((left, texts[0]), (right, texts[1]), (turned, texts[0])):
        (answer,) = system.generate([system.guide.prompt(question)], [text])
        assert shown["adapted"].startswith(f"{answer.strip()} (")
        assert shown["frozen"] == left["frozen"]
    assert left["adapted"] != right["adapted"]
    assert left["cells"] != between["cells"] != right["cells"]
    for shown, name in ((left, "0"), (between, "0 1 5"), (right, "1"), (mirrored, "0 1 5")):
        point = numbers["points"][name]
        z = [number / 100 for site in point["z"] for number in site]
        assert [float(cell.replace("−", "-")) for cell in shown["cells"]] == pytest.approx(z)
        assert [float(norm) for norm in shown["norms"]] == pytest.approx([norm / 1000 for norm in point["norms"]])
        assert f"{max(point['probabilities'][0]) / 10_000:.3f}" in shown["adapted"]
    assert turned["text"] == texts[1] and between["spoken"] == "3/8 of text 1, 5/8 of text 2"
    assert all(shown["named"] for shown in result["seen"])


def test_an_error_of_the_page_would_be_seen(browser, written):
    _, file = written
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("showSites(point);", "showSights(point);"), encoding="utf-8")
    assert "showSights is not defined" in drive(browser, file, ("mix", 1))["errors"][0]
