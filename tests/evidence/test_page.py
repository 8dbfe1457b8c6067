"""The page: one file, whose numbers are the model's, and which a real browser shows. The last needs a Chromium."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import page
import pytest
import torch
from conftest import build_system, two_cultures

from data import Record
from zhyper import Zhyper

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
NUMBERS = re.compile(r'<script id="numbers" type="application/json">(.*?)</script>', re.S)


def with_choices() -> list[Record]:
    choices = {"how do they greet?": ("bow", "sing"), "what of taxes?": ("cut", "raise")}
    return [record._replace(choices=choices[record.question]) for record in two_cultures().records]


@pytest.fixture
def written(trained, run_main, tmp_path) -> tuple[Zhyper, str, Path]:
    """The tiny trained system, and the page that the command has made of it: its text and its file."""
    trained[0].save(tmp_path / "zhyper-diag.pt")
    lines = [json.dumps(record._asdict()) for record in with_choices()]
    (tmp_path / "two.jsonl").write_text("\n".join(lines))
    file = tmp_path / "new" / "page.html"
    assert " MB" in run_main(page.main, "--run", tmp_path, "--data", tmp_path / "two.jsonl", "--to", file)
    return trained[0], file.read_text(encoding="utf-8"), file


def numbers_of(text: str) -> dict:
    return json.loads(NUMBERS.search(text)[1])


def test_the_page_is_one_file_that_asks_for_no_other_and_no_text_ends_its_script(written):
    _, text, file = written
    assert [path.name for path in file.parent.iterdir()] == ["page.html"]
    assert not re.search(r"://|\bsrc=|\bhref=|\burl\(|@import|\bimport\b|\bfetch\(|XMLHttpRequest", text)
    assert "default-src 'none'" in text  # and the browser would refuse it
    numbers = {"texts": ["a </script><b> & it’s \\ over\n"]}
    assert numbers_of(page.render(numbers)) == numbers


@torch.no_grad()
def test_every_number_is_what_the_model_computes_and_every_answer_is_that_of_a_record(written):
    system, text, _ = written
    numbers = numbers_of(text)

    def check(shown: list, computed: torch.Tensor, unit: str) -> None:
        size = numbers["units"][unit]
        torch.testing.assert_close(torch.tensor(shown) / size, computed, atol=0.6 / size, rtol=1e-4)

    first, second = numbers["texts"]
    statements = first + second
    points = numbers["points"]["0 1"]
    assert len(points) == 2 ** len(statements)
    for number, point in enumerate(points):
        on = [statement for i, statement in enumerate(statements) if number >> i & 1]
        descriptions = ["; ".join(on)] * 2 if on else None
        adapter = system.adapt(descriptions)
        norms = list(system.relative_norms(adapter).values()) or [0.0] * len(numbers["sites"])
        check(point["norms"], torch.tensor(norms), "norms")
        for i, question in enumerate(numbers["questions"]):
            loss, _ = system.score([question] * 2, numbers["answers"][i], descriptions)
            check(point["probabilities"][i], torch.exp(-loss), "probabilities")
    assert numbers["frozen"] == points[0]["probabilities"]
    for text, contributions in zip(numbers["texts"], numbers["contributions"], strict=True):
        for statement, contribution in zip(text, contributions, strict=True):
            adapter = system.adapt([statement])
            computed = torch.cat([update.z for update in adapter.values()])
            assert numbers["sites"] == [f"{layer} {module}" for layer, module in adapter]
            z = torch.tensor(numbers["always"]) + torch.tensor(contribution)
            torch.testing.assert_close(z / 100, computed, atol=0.011, rtol=0)
    for record in two_cultures().split("unseen"):
        question = numbers["questions"].index(record.question)
        stated = numbers["stated"][numbers["texts"].index(system.parts_of(record.description))][question]
        assert numbers["answers"][question][stated] == record.answer


def test_it_begins_where_two_texts_disagree():
    assert page.choose_start([[0, 1, None], [0, None, 2], [1, 1, 3]]) == (0, 2, 0)


def test_what_the_page_cannot_show_is_refused():
    system = build_system("zhyper-diag")
    with pytest.raises(ValueError, match="no two descriptions of 1 to 4 statements whose records have choices"):
        page.collect(system, two_cultures().records)
    alike = [record._replace(choices=("bow", "sing", "cut", "raise")) for record in with_choices()]
    with pytest.raises(ValueError, match="different questions have the same choices"):
        page.collect(system, alike)


DRIVE = """<script>
const seen = [];
function look() {
  const cells = [...document.querySelectorAll("#sites .strip i")].map((cell) => cell.title.replace("−", "-"));
  const bars = [...document.querySelectorAll(".without .number")].map((number) => number.textContent);
  seen.push({adapted: document.getElementById("adapted-says").textContent, cells, bars});
}
look();
for (const id of ["first-0", "first-1", "second-0"]) {
  document.getElementById(id).click();
  look();
}
const slider = document.getElementById("mix");
slider.value = slider.max;
slider.dispatchEvent(new Event("input"));
look();
const wide = document.documentElement.scrollWidth > window.innerWidth;
document.body.innerHTML = `<pre id="seen">${JSON.stringify({seen, wide})}</pre>`;
</script></body>"""


@torch.no_grad()
def test_switches_and_the_slider_move_z_and_the_answer_of_the_adapted_model(written, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not browser:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on the path")
    system, text, file = written
    file.write_text(text.replace("</body>", DRIVE), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    command = [browser, *options, "--window-size=500,900", file.as_uri()]
    dump = subprocess.run(command, capture_output=True, timeout=120, text=True, encoding="utf-8").stdout
    shown = json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', dump, re.S)[1]))
    assert not shown["wide"]  # on the screen of a phone nothing stands out of it
    numbers = numbers_of(text)
    first, second = [numbers["texts"][i] for i in numbers["start"][:2]]
    question = numbers["questions"][numbers["start"][2]]
    choices = [first, first[1:], [], second[:1], second]  # what is on: at first, after each click, and at the end
    for each, on in zip(shown["seen"], choices, strict=True):
        descriptions = ["; ".join(on)] if on else None
        (answer,) = system.generate([question], descriptions)
        assert each["adapted"].startswith(answer)
        sites = system.adapt(descriptions)
        z = torch.cat([update.z for update in sites.values()]).flatten() if on else torch.zeros(len(each["cells"]))
        assert list(map(float, each["cells"])) == pytest.approx(z.tolist(), abs=0.02)
        for bar, statement in zip(each["bars"], on, strict=True):
            others = ["; ".join(other for other in on if other != statement)]
            loss, _ = system.score([question], [answer], others if others[0] else None)
            assert float(bar) == pytest.approx(torch.exp(-loss).item(), abs=0.002)
