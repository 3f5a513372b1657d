from __future__ import annotations

import base64
import html.parser
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagelab import report
from imagelab.pictures import write_png
from imagelab.results import Result

FACTS = {"date": "2030-01-02 03:04", "seed": 7, "dataset": "digits", "quick": False,
         "device": "cpu, 2 threads", "torch": "2.0"}  # fmt: skip
PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)


class Page(html.parser.HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source, self.tags, self.text = text, [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def row(name: str, status: str, folder: str | None, error: str = "") -> dict:
    return {"name": name, "status": status, "seconds": 4.2, "error": error, "folder": folder,
            "figure": f"figure of {name}: 0.25" if status == "done" else "", "n": 1234}  # fmt: skip


def write(root: Path, rows: list[dict], **facts) -> Page:
    report.write_report(root / "report.html", root, rows, {**FACTS, **facts})
    return Page((root / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def root(tmp_path) -> Path:
    """An output folder in which the demo `good_demo` is done."""
    run = Result("good_demo", "The good <i>demo</i>", "It & its summary.", tmp_path / "pictures",
                 {}, 7, "cpu", dataset={"source": "made by the tests"}, judge="CNN 1234")  # fmt: skip
    write_png(run.add_file("a.png", 'A picture of "noise".'), PICTURE)
    write_png(run.add_file("b.png", "A frame.", featured=False), PICTURE)
    run.add_metric("PSNR", 31.25, 1234, unit="dB")
    run.add_metric("broken", float("nan"), 5)
    run.add_table("Accuracy", ["ε", "accuracy", "of"], [[0.1, 0.987, "all"]])
    run.save()
    return tmp_path


GOOD = row("good_demo", "done", "pictures")
BAD = row("bad_demo", "failed", "other", "no <b>bold</b> & no quotes")


def test_one_file_that_needs_nothing_from_outside(root):
    page = write(root, [GOOD, BAD])
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    anchors = {attributes.get("id") for _, attributes in page.tags}
    for _, attributes in page.tags:
        if "href" in attributes:
            assert attributes["href"][0] == "#" and attributes["href"][1:] in anchors
        assert attributes.get("src", "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"https?:|url\(|@import", page.source)
    names = {p.name for p in root.iterdir()}
    assert names == {"report.html", "pictures"}


def test_pictures_are_embedded_with_their_caption(root):
    (image,) = write(root, [GOOD, BAD]).all("img")
    assert image["alt"] == 'A picture of "noise".'
    assert (image["width"], image["height"]) == ("30", "20")
    head, data = image["src"].split(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert (np.asarray(picture) == PICTURE).all()


def test_figures_tables_and_facts_are_shown(root):
    page = write(root, [GOOD])
    assert "figure of good_demo: 0.25" in page.text  # in the list of contents
    for text in ("The good <i>demo</i>", "It & its summary.", "31.2 dB", "1,234", "Accuracy",
                 "0.987", "CNN 1234", "made by the tests", "seed 7", "2030-01-02"):  # fmt: skip
        assert text in page.text
    assert '<td class="num">0.987</td><td>all</td>' in page.source  # numbers to the right
    assert not page.all("i")
    assert "quick run" not in page.text and "quick run" in write(root, [GOOD], quick=True).text


def test_the_error_of_a_failed_demo_is_shown_as_text(root):
    page = write(root, [GOOD, BAD])
    assert "failed: no <b>bold</b> & no quotes" in page.text
    assert not page.all("b") and "&lt;b&gt;" in page.source


@pytest.mark.parametrize("status", ["failed", "skipped"])
def test_results_of_an_earlier_run_are_not_shown(root, status):
    page = write(root, [row("good_demo", status, "pictures", "no time")])
    assert not page.all("img") and f"{status}: no time" in page.text


def test_a_demo_may_be_without_a_folder(root):
    assert "failed: no time" in write(root, [row("x", "failed", None, "no time")]).text


def test_a_picture_beyond_the_limit_is_named(root, monkeypatch):
    size = len(write(root, [GOOD]).all("img")[0]["src"])
    monkeypatch.setattr(report, "MAX_BYTES", size)
    assert len(write(root, [GOOD]).all("img")) == 1
    monkeypatch.setattr(report, "MAX_BYTES", size - 1)
    page = write(root, [GOOD])
    assert not page.all("img") and "pictures/a.png is not embedded" in page.text


def test_the_limit_holds_for_all_pictures_together(root, monkeypatch):
    size = len(write(root, [GOOD]).all("img")[0]["src"])
    monkeypatch.setattr(report, "MAX_BYTES", 2 * size - 1)
    page = write(root, [GOOD, {**GOOD, "name": "again"}])
    assert len(page.all("img")) == 1 and page.text.count("is not embedded") == 1


def test_more_demos_have_more_room(root, monkeypatch):
    """The page of --all has as much for each of the eighteen as the main job's for each of the four."""
    size = len(write(root, [GOOD]).all("img")[0]["src"])
    monkeypatch.setattr(report, "MAX_BYTES", 4 * size)
    rows = [{**GOOD, "name": f"demo {k}"} for k in range(18)]
    assert len(write(root, rows).all("img")) == 18


def test_a_picture_that_is_gone_is_named(root):
    (root / "pictures" / "a.png").unlink()
    page = write(root, [GOOD])
    assert not page.all("img") and "pictures/a.png is not embedded" in page.text


def test_a_large_chart_is_embedded_in_fewer_bytes(root):
    ramp = np.arange(400, dtype=np.uint8)
    rng = np.random.default_rng(0)
    chart = np.stack([ramp[:, None] + rng.integers(0, 3, (400, 400), np.uint8)] * 3, axis=2)
    write_png(root / "pictures" / "a.png", chart)
    assert (root / "pictures" / "a.png").stat().st_size > 60_000
    (image,) = write(root, [GOOD]).all("img")
    raw = base64.b64decode(image["src"].split(",")[1])
    assert len(raw) <= (root / "pictures" / "a.png").stat().st_size
    with Image.open(io.BytesIO(raw)) as picture:
        shown = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(shown - chart).mean() < 2


def drawing(root: Path, name: str, distance: float, judge: str) -> dict:
    """A demo that draws, with its row."""
    run = Result(name, f"{name.upper()}: samples", "", root / name, {}, 7, "cpu", judge=judge)
    run.add_metric("Fréchet distance", distance, 500, floor=20.0, better="lower")
    run.save("The distance is {Fréchet distance|.0f}.")
    return row(name, "done", name)


def test_models_that_draw_share_a_table(tmp_path):
    rows = [drawing(tmp_path, "gan", 71.0, "CNN 1"), drawing(tmp_path, "ddpm", 156.0, "CNN 1"),
            drawing(tmp_path, "other", 9.0, "CNN 2")]  # fmt: skip
    page = write(tmp_path, rows)
    table = page.source.split('id="models"')[1].split("</table>")[0]
    assert "GAN" in table and "DDPM" in table and "71" in table and "156" in table
    assert "OTHER" not in table  # another judge: not comparable
    assert "The distance is 71." in page.text
    assert 'id="models"' not in write(tmp_path, rows[:1]).source
