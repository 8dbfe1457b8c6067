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
    numbers = {"descriptions": ["a </script><b> & it’s \\ over\n"]}
    assert numbers_of(page.render(numbers)) == numbers


@torch.no_grad()
def test_every_number_is_what_the_model_computes_and_every_answer_is_that_of_a_record(written):
    system, text, _ = written
    numbers = numbers_of(text)
    ends = system.embed(numbers["descriptions"])

    def check(shown: list, computed: torch.Tensor, unit: str) -> None:
        size = numbers["units"][unit]
        torch.testing.assert_close(torch.tensor(shown) / size, computed, atol=0.6 / size, rtol=1e-4)

    weights = {"0": 0, "1": 1} | {f"0 1 {step}": step / 8 for step in range(1, 8)}
    assert numbers["points"].keys() == weights.keys()
    for name, weight in weights.items():
        point = numbers["points"][name]
        c = torch.lerp(ends[:1], ends[1:], weight)
        adapter = system.adapt(c)
        assert numbers["sites"] == [f"{layer} {module}" for layer, module in adapter]
        check(point["z"], torch.cat([update.z for update in adapter.values()]), "z")
        check(point["norms"], torch.tensor(list(system.relative_norms(adapter).values())), "norms")
        for i, question in enumerate(numbers["questions"]):
            for shown, descriptions in ((point["probabilities"], c.expand(2, -1)), (numbers["frozen"], None)):
                loss, _ = system.score([question] * 2, numbers["answers"][i], descriptions)
                check(shown[i], torch.exp(-loss), "probabilities")
    for record in two_cultures().split("unseen"):
        question = numbers["questions"].index(record.question)
        stated = numbers["stated"][numbers["descriptions"].index(record.description)][question]
        assert numbers["answers"][question][stated] == record.answer


def test_it_begins_where_two_texts_disagree():
    assert page.choose_start([[0, 1, None], [0, None, 2], [1, 1, 3]]) == (0, 2, 0)


def test_what_the_page_cannot_show_is_refused():
    system = build_system("zhyper-diag")
    with pytest.raises(ValueError, match="no two descriptions whose records have choices"):
        page.collect(system, two_cultures().records)
    alike = [record._replace(choices=("bow", "sing", "cut", "raise")) for record in with_choices()]
    with pytest.raises(ValueError, match="different questions have the same choices"):
        page.collect(system, alike)


DRIVE = """<script>
const seen = [];
for (const value of [0, 5, 8]) {
  const slider = document.getElementById("mix");
  slider.value = value;
  slider.dispatchEvent(new Event("input"));
  const cells = [...document.querySelectorAll("#sites .strip i")].map((cell) => cell.title.replace("−", "-"));
  seen.push({adapted: document.getElementById("adapted-says").textContent, cells});
}
document.body.innerHTML = `<pre id="seen">${JSON.stringify(seen)}</pre>`;
</script></body>"""


def test_the_slider_moves_the_answer_of_the_adapted_model_from_one_text_to_the_other(written, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not browser:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on the path")
    system, text, file = written
    file.write_text(text.replace("</body>", DRIVE), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    command = [browser, *options, file.as_uri()]
    shown = subprocess.run(command, capture_output=True, timeout=120, text=True, encoding="utf-8").stdout
    left, between, right = json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', shown, re.S)[1]))
    numbers = numbers_of(text)
    first, second, question = numbers["start"]
    for each, name in ((left, f"{first}"), (between, f"{first} {second} 5"), (right, f"{second}")):
        z = torch.tensor(numbers["points"][name]["z"]).flatten() / 100
        assert list(map(float, each["cells"])) == pytest.approx(z.tolist())
    for each, text in ((left, numbers["descriptions"][first]), (right, numbers["descriptions"][second])):
        assert each["adapted"].startswith(system.generate([numbers["questions"][question]], [text])[0])
