"""The page of a run: all of it in one file, and nothing of it is markup that was not meant to be."""

import re
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from sam_jax.images.plot import NO_PLOTS
from sam_jax.train.commands.run_report import ROWS, write_report

TOLD = {"data": "<b>cells</b>", "checkpoint": "small", "config": {"train": "lora", "loop": {"steps": 90}, "drops": [1]}}
LINES = [{"step": float(step), "loss": 1 / step} for step in range(1, 91)]


class Page(HTMLParser):
    """The tags of a page with what they name, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def report(folder: Path, curves: Image.Image | None) -> Page:
    looks = [{"step": 0.0, "class": 0.25}]
    samples = Image.new("RGB", (30, 20), "white")
    write_report(folder, TOLD, {"trained": "12 parameters"}, LINES, looks, curves, samples)
    return Page(folder / "report.html")


def test_everything_is_in_the_page_itself(tmp_path: Path) -> None:
    page = report(tmp_path, Image.new("RGB", (30, 20), "blue"))
    sources = [named["src"] for tag, named in page.tags if tag == "img"]
    assert [source[:22] for source in sources] == ["data:image/png;base64,"] * 2
    assert not {"script", "link", "iframe", "b"} & {tag for tag, _ in page.tags}
    text = (tmp_path / "report.html").read_text("utf-8")
    assert not re.search(r"https?:|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text


def test_settings_and_tables_are_told(tmp_path: Path) -> None:
    texts = report(tmp_path, Image.new("RGB", (30, 20))).texts
    for name, value in {"data": "<b>cells</b>", "train": "lora", "loop.steps": "90", "drops": "[1]"}.items():
        assert texts[texts.index(name) + 1] == value
    assert texts[texts.index("trained") + 1] == "12 parameters"
    assert texts[texts.index("class") + 1 : texts.index("class") + 3] == ["0", "0.25"]
    steps = texts[texts.index("loss") + 1 : texts.index("Settings") : 2]
    assert (steps[0], steps[-1], len(steps)) == ("1", "90", ROWS)


def test_without_curves_it_says_how_to_get_them(tmp_path: Path) -> None:
    page = report(tmp_path, None)
    assert NO_PLOTS in page.texts
    assert 'pip install "sam-jax[report]"' in NO_PLOTS
    assert sum(tag == "img" for tag, _ in page.tags) == 1
