from __future__ import annotations

import base64
import html.parser
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagelab.data.pictures import write_gif, write_png
from imagelab.report import page as report
from imagelab.report import playground
from imagelab.report.results import Result

FACTS = {"date": "2030-01-02 03:04", "seed": 7, "dataset": "mnist-5k", "quick": False,
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
        self.text += data.replace("\u00a0", " ")

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]

    def pictures(self) -> list[dict]:
        """The images of the demos, without the small ones of their cards."""
        return [image for image in self.all("img") if "width" in image]


def row(name: str, status: str, folder: str | None, error: str = "") -> dict:
    return {"name": name, "status": status, "seconds": 4.2, "error": error, "folder": folder,
            "figure": f"figure of {name}: 0.25" if status == "done" else "", "n": 1234}  # fmt: skip


def write(root: Path, rows: list[dict], **facts) -> Page:
    report.write_report(root / "report.html", root, rows, {**FACTS, **facts})
    return Page((root / "report.html").read_text(encoding="utf-8"))


def good(root: Path) -> Result:
    """What the demo `good_demo` has measured and drawn under `root`."""
    run = Result("good_demo", "The good <i>demo</i>", "It & its summary.", root / "pictures",
                 {}, 7, "cpu", dataset={"source": "made by the tests"}, evaluator="CNN 1234")  # fmt: skip
    write_png(run.add_file("a.png", 'A picture of "noise".'), PICTURE)
    write_png(run.add_file("b.png", "A frame.", featured=False), PICTURE)
    run.add_metric("PSNR", 31.25, 1234, unit="dB")
    run.add_metric("broken", float("nan"), 5)
    run.add_table("Accuracy", ["ε", "accuracy", "of"], [[0.1, 0.987, "all"]])
    return run


@pytest.fixture
def root(tmp_path) -> Path:
    """An output folder in which the demo `good_demo` is done."""
    good(tmp_path).save()
    return tmp_path


GOOD = row("good_demo", "done", "pictures")
BAD = row("bad_demo", "failed", "other", "no <b>bold</b> & no quotes")


def test_one_file_that_needs_nothing_from_outside(root):
    page = write(root, [GOOD, BAD])
    assert not page.all("link") and not page.all("iframe")
    assert [script["type"] for script in page.all("script")] == ["module"]  # the large view's
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
    (image,) = write(root, [GOOD, BAD]).pictures()
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
                 "98.7 %", "CNN 1234", "made by the tests", "seed 7", "2030-01-02"):  # fmt: skip
        assert text in page.text
    assert '<td class="num">98.7\u00a0%</td><td>all</td>' in page.source  # numbers to the right
    assert not page.all("i")
    assert "quick run" not in page.text and "quick run" in write(root, [GOOD], quick=True).text


def test_the_error_of_a_failed_demo_is_shown_as_text(root):
    page = write(root, [GOOD, BAD])
    assert "failed: no <b>bold</b> & no quotes" in page.text
    assert not page.all("b") and "&lt;b&gt;" in page.source


@pytest.mark.parametrize("status", ["failed", "skipped"])
def test_results_of_an_earlier_run_are_not_shown(root, status):
    page = write(root, [row("good_demo", status, "pictures", "no time")])
    assert not page.pictures() and f"{status}: no time" in page.text


def test_a_demo_may_be_without_a_folder(root):
    assert "failed: no time" in write(root, [row("x", "failed", None, "no time")]).text


def test_a_picture_beyond_the_limit_is_named(root, monkeypatch):
    size = len(write(root, [GOOD]).pictures()[0]["src"])
    monkeypatch.setattr(report, "MAX_BYTES", size)
    assert len(write(root, [GOOD]).pictures()) == 1
    monkeypatch.setattr(report, "MAX_BYTES", size - 1)
    page = write(root, [GOOD])
    assert not page.pictures()
    assert "pictures/a.png is not embedded here: this page has reached the size" in page.text


def test_the_limit_holds_for_all_pictures_together(root, monkeypatch):
    size = len(write(root, [GOOD]).pictures()[0]["src"])
    monkeypatch.setattr(report, "MAX_BYTES", 2 * size - 1)
    page = write(root, [GOOD, {**GOOD, "name": "again"}])
    assert len(page.pictures()) == 1 and page.text.count("is not embedded") == 1


def test_more_demos_have_more_room(root, monkeypatch):
    """The page of --all has as much for each of the eighteen as the main job's for each of the four."""
    size = len(write(root, [GOOD]).pictures()[0]["src"])
    monkeypatch.setattr(report, "MAX_BYTES", 4 * size)
    rows = [{**GOOD, "name": f"demo {k}"} for k in range(18)]
    assert len(write(root, rows).pictures()) == 18


def test_a_picture_that_is_gone_is_named(root):
    (root / "pictures" / "a.png").unlink()
    page = write(root, [GOOD])
    assert not page.pictures()
    assert "pictures/a.png is not embedded here: the file is gone." in page.text


def with_pictures(root: Path, name: str, **sizes: int) -> dict:
    """A demo with pictures of noise, so many thousand pixels each; its row. `_gif` is an animation."""
    rng = np.random.default_rng(len(name))
    run = Result(name, f"{name}: a demo", "A summary.", root / name, {}, 7, "cpu")
    for one, thousands in sizes.items():
        noise = rng.integers(0, 256, (thousands, 1000), dtype=np.uint8)
        path = run.add_file(one.replace("_", "."), f"{name} {one}.")
        if path.suffix == ".gif":
            write_gif(path, [noise, noise // 2])
        else:
            write_png(path, noise)
    run.save()
    return row(name, "done", name)


def test_no_picture_is_lost_for_an_animation(tmp_path, monkeypatch):
    """Whatever the order of the demos: pictures first, then animations, the smallest first."""
    rows = [with_pictures(tmp_path, "first", a_gif=90, b_png=60),
            with_pictures(tmp_path, "second", a_gif=60, b_png=90)]  # fmt: skip
    whole = {image["alt"]: len(image["src"]) for image in write(tmp_path, rows).pictures()}
    assert len(whole) == 4
    monkeypatch.setattr(report, "MAX_BYTES", sum(whole.values()) - 1)
    page = write(tmp_path, rows)
    assert {i["alt"] for i in page.pictures()} == whole.keys() - {"first a_gif."}
    assert "first/a.gif is not embedded here: this page has reached the size" in page.text
    monkeypatch.setattr(report, "MAX_BYTES", whole["first b_png."] + whole["second b_png."])
    assert {i["alt"] for i in write(tmp_path, rows).pictures()} == {"first b_png.", "second b_png."}


# About what a full main job leaves: the pixels of its pictures, and of its animations the frames as well.
FULL = {
    "fgsm": [(1632, 482), (1232, 482), (896, 574), (1710, 656), (1710, 656)],
    "diffusion_demo": [(1632, 662), (1650, 750), (1650, 510), (2400, 1500)],
    "gan_mnist": [(596, 596), (596, 596), (1212, 616), (1650, 566)],
    "mlp_diffusion": [(596, 596), (3012, 616), (2412, 616), (1200, 1060)],
}  # fmt: skip
FILMS = {"diffusion_demo": [(256, 256, 7)], "gan_mnist": [(596, 318, 28)],
         "mlp_diffusion": [(488, 254, 26), (596, 618, 24)]}  # fmt: skip
NETWORKS = 4_600_000  # bytes of its playground


def test_a_page_of_a_full_run_has_every_picture(tmp_path, monkeypatch):
    """At the sizes of a full run, playground included, and with animations three times as large."""
    rng = np.random.default_rng(0)

    def made(width: int, height: int) -> np.ndarray:
        """Coarse noise: of so many pixels it takes a fifth more bytes than the run's pictures."""
        small = rng.integers(0, 256, (height // 3 + 1, width // 3 + 1), dtype=np.uint8)
        return small.repeat(3, 0).repeat(3, 1)[:height, :width]

    rows, pictures = [], 0
    for name, stills in FULL.items():
        run = Result(name, f"{name}: a demo", "A summary.", tmp_path / name, {}, 7, "cpu")
        for k, (width, height, frames) in enumerate(FILMS.get(name, [])):
            write_gif(
                run.add_file(f"{k}.gif", "A film."), [made(width, height) for _ in range(frames)]
            )
        for k, size in enumerate(stills):
            write_png(run.add_file(f"{k}.png", "A picture."), made(*size))
            pictures += 1
        run.save()
        rows.append(row(name, "done", name))
    play = playground.Playground(networks={"reader": "A" * NETWORKS})
    monkeypatch.setattr(playground, "collect", lambda *_: play)
    page = write(tmp_path, rows)
    stills = [image for image in page.pictures() if image["alt"] == "A picture."]
    assert len(stills) == pictures and "png is not embedded" not in page.text
    assert len(page.source) < 10_000_000


def test_small_figures_stand_in_pairs_and_a_single_one_takes_its_row(root):
    """So no row is half empty."""

    def wide(*widths: int) -> list[bool]:
        entries = [{"width": width} for width in widths]
        report._lay_out(entries)
        return [entry["wide"] for entry in entries]

    assert wide(500, 500) == [False, False]
    assert wide(500) == [True] and wide(500, 900, 500, 500) == [True, True, False, False]
    assert wide(500, 500, 500, 900) == [False, False, True, True]


def test_a_large_chart_is_embedded_in_fewer_bytes(root):
    ramp = np.arange(400, dtype=np.uint8)
    rng = np.random.default_rng(0)
    chart = np.stack([ramp[:, None] + rng.integers(0, 3, (400, 400), np.uint8)] * 3, axis=2)
    write_png(root / "pictures" / "a.png", chart)
    assert (root / "pictures" / "a.png").stat().st_size > 60_000
    (image,) = write(root, [GOOD]).pictures()
    raw = base64.b64decode(image["src"].split(",")[1])
    assert len(raw) <= (root / "pictures" / "a.png").stat().st_size
    with Image.open(io.BytesIO(raw)) as picture:
        shown = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(shown - chart).mean() < 2


def drawing(root: Path, name: str, distance: float, evaluator: str) -> dict:
    """A demo that draws, with its row."""
    run = Result(
        name, f"{name.upper()}: samples", "", root / name, {}, 7, "cpu", evaluator=evaluator
    )
    run.add_metric("Fréchet distance", distance, 500, floor=20.0, better="lower")
    run.save(f"The distance is {distance:.0f}.")
    return row(name, "done", name)


def test_models_that_draw_share_a_table(tmp_path):
    rows = [drawing(tmp_path, "gan", 71.0, "CNN 1"), drawing(tmp_path, "ddpm", 156.0, "CNN 1"),
            drawing(tmp_path, "other", 9.0, "CNN 2")]  # fmt: skip
    page = write(tmp_path, rows)
    table = page.source.split('id="models"')[1].split("</table>")[0]
    assert "GAN" in table and "DDPM" in table and "71" in table and "156" in table
    assert "OTHER" not in table  # another evaluator: not comparable
    assert "The distance is 71." in page.text
    assert 'id="models"' not in write(tmp_path, rows[:1]).source


# --- figures as text ------------------------------------------------------------------------------


def metric(value, **more) -> dict:
    return {"value": value, "n": 100, "unit": "", "floor": None, "better": None, **more}


@pytest.mark.parametrize(("name", "entry", "expected"), [
    ("accuracy, FGSM, ε = 0.3", metric(0.041), "4.1 %"),
    ("coverage", metric(0.5, floor=0.912, better="higher"), "50.0 % (floor 91.2 %, higher is better)"),
    ("coverage", metric(0.5, floor=0.912, memoriser=0.97),
     "50.0 % (floor 91.2 %, memoriser 97.0 %)"),
    ("PGD: PGD-40, ε = 0.15", metric(0.885, interval=[0.8331, 0.922]), "88.5 % (95 %: 83.3 to 92.2)"),
    ("rarest class", metric(0.0), "0.0 %"),
    ("surely read", metric(0.443, floor=0.831), "44.3 % (floor 83.1 %)"),
    ("Fréchet distance", metric(71.25, floor=20.0), "71.2 (floor 20.0)"),
    ("SSIM", metric(0.871), "0.871"),  # no share of anything
    ("coverage", metric(0.5, unit="s"), "0.500 s"),
    ("accuracy", metric(None), "not defined"),
    ("super-resolution: accuracy less bicubic's", metric(0.25), "0.250"),  # a difference
])  # fmt: skip
def test_shares_are_in_percent(name, entry, expected):
    assert report.named_metric(entry, name) == expected


def test_a_column_of_shares_is_in_percent_and_others_are_not():
    table = {
        "caption": "Accuracy on held-out images", "columns": ["ε", "FGSM", "clean", "seconds", "SSIM"],
        "rows": [[0.05, "0.885 (0.833 to 0.922)", 0.9, 3.5, 0.5], ["0", 1, 1.0, 12.0, 0.25]],
    }  # fmt: skip
    shown = [[report.cell(value, table, k) for k, value in enumerate(row)] for row in table["rows"]]
    assert shown == [["0.0500", "88.5 % (83.3 to 92.2)", "90.0 %", "3.50", "50.0 %"],
                     ["0", "1", "100.0 %", "12.0", "25.0 %"]]  # fmt: skip
    table["caption"] = "Restored"
    assert report.cell(0.5, table, 4) == "0.500"
    table["columns"][4] = "FGSM gain"
    table["rows"][0][4] = 1.5  # not all of them lie between 0 and 1
    assert report.cell(0.25, table, 4) == "0.250"


# --- the first screen -----------------------------------------------------------------------------


def test_a_card_leads_to_each_demo_that_was_done(root):
    page = write(root, [GOOD, BAD])
    cards = page.source.split('class="cards"')[1].split("</ul>")[0]
    assert cards.count("<li>") == 1 and 'href="#good-demo"' in cards
    assert "It &amp; its summary." in cards
    small = [image for image in page.all("img") if "width" not in image]
    assert len(small) == 1 and small[0]["alt"] == 'A picture of "noise".'
    with Image.open(io.BytesIO(base64.b64decode(small[0]["src"].split(",")[1]))) as picture:
        assert picture.width <= report.THUMBNAIL[0] and picture.height <= report.THUMBNAIL[1]


def card_of(tmp_path, name: str, figure: str, value: float, **more) -> str:
    run = Result(name, "A title", "It does this. And that.", tmp_path / name, {}, 7, "cpu")
    run.add_metric(figure, value, 2000, **more)
    run.add_metric(f"{figure}, share of literal's", 0.5, 10)  # the longer name is not the one meant
    run.save()
    demo = {**row(name, "done", name), "figure": f"{figure}: {value}"}
    source = write(tmp_path, [demo]).source.replace("\u00a0", " ")
    return source.split('class="cards"')[1].split("</ul>")[0]


def test_a_card_s_figure_is_a_sentence_with_n_and_floor(tmp_path):
    text = card_of(tmp_path, "fgsm", "accuracy, FGSM, ε = 0.3", 0.041)
    assert "After one gradient step of ε = 0.3, 4.1 % are still read rightly (n = 2,000)." in text
    assert "It does this." in text and "And that" not in text
    text = card_of(tmp_path, "gan_mnist", "Fréchet distance", 71.0, floor=20.0)
    assert "a Fréchet distance of 71.0 apart, two sets of real pictures 20.0 (n = 2,000)." in text
    text = card_of(tmp_path, "diffusion_demo", "last step: PSNR after the blur", 16.8, unit="dB")
    assert "last step: PSNR after the blur: 16.8 dB" in text  # the other one was not measured
    text = card_of(tmp_path, "another", "coverage", 0.5)
    assert "coverage: 50.0 %" in text


def test_a_card_s_sentence_may_name_a_second_number(tmp_path):
    run = Result("diffusion_demo", "A title", "It does this.", tmp_path / "d", {}, 7, "cpu")
    run.add_metric("last step: PSNR", 9.17, 1, unit="dB")
    run.add_metric("last step: PSNR after the blur", 16.8, 1, unit="dB")
    run.save()
    done = {
        **row("diffusion_demo", "done", "d"),
        "figure": "last step: PSNR after the blur: 16.8 dB",
    }
    assert "from a PSNR of 9.17 dB to 16.8 dB (n = 1)." in write(tmp_path, [done]).text


def test_a_card_s_picture_is_cut_between_rows_and_columns(tmp_path):
    """Not through a digit: where a row of pixels, or a column, has one colour."""
    grid = np.zeros((300, 600), np.uint8)
    for y in range(4, 300, 30):
        for x in range(4, 600, 30):
            grid[y : y + 26, x : x + 26] = 200
    write_png(tmp_path / "tall.png", grid[:, :300])
    write_png(tmp_path / "wide.png", grid[:60])
    for name, size in (("tall.png", (300, 150 + 4)), ("wide.png", (90 + 4, 60))):
        data = base64.b64decode(report.thumbnail(tmp_path / name).split(",")[1])
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.size == size
            assert (
                np.asarray(picture.convert("L"))[-1 if name[0] == "t" else slice(None), -1].max()
                < 60
            )


def test_every_demo_s_words_have_a_place_for_its_figure():
    import advanced_image_processing as driver

    assert report.WORDS.keys() <= driver.EVERYTHING.keys()
    assert all("{value}" in words for words in report.WORDS.values())


def test_the_table_of_times_stands_at_the_end_and_the_contents_lead_everywhere(root):
    page = write(root, [GOOD, BAD])
    assert page.source.index('id="status"') > page.source.index('id="good-demo"')
    contents = page.source.split('class="contents"')[1].split("</nav>")[0]
    assert re.findall('href="#([^"]+)"', contents) == ["good-demo", "bad-demo", "status"]


@pytest.mark.parametrize(("written", "set_as"), [
    ("58% and 31.2 dB in 3 ms", "58_% and 31.2_dB in 3_ms"),
    ("ε = 0.3, n = 1,000", "ε_=_0.3, n_=_1,000"),
    ("-1.52 (from -3 to 4)", "−1.52 (from −3 to 4)"),
    ("PGD-40, 2026-11-26, 1e-05, 5,000-fold", "PGD-40, 2026-11-26, 1e-05, 5,000-fold"),
    ("12 samples of 3 seeds", "12 samples of 3 seeds"),
])  # fmt: skip
def test_numbers_stay_with_their_units(written, set_as):
    assert report.tidy(written) == set_as.replace("_", "\u00a0")


def test_what_all_demos_share_is_said_once(tmp_path):
    source = "5,000 images of digits"
    rows = []
    for name in ("one", "two"):
        run = Result(name, f"{name}: a demo", "A summary.", tmp_path / name, {}, 7,
                     FACTS["device"], dataset={"source": source})  # fmt: skip
        run.save()
        rows.append(row(name, "done", name))
    page = write(tmp_path, rows)
    assert page.text.count(source) == page.text.count(FACTS["device"]) == 1
    assert "one.py" in page.text and "two.py" in page.text


def test_the_words_of_the_numbers_are_explained_where_they_occur(root):
    text = write(root, [GOOD]).source.split("<details>")[1].split("</details>")[0]
    assert re.findall("<dt>(.*?)</dt>", text) == ["PSNR"]
    run = good(root)
    run.metrics.clear()
    run.save()
    assert "<details>" not in write(root, [GOOD]).source


def test_what_stands_beside_a_value_has_its_own_column():
    metrics = {
        "coverage": metric(0.5, floor=0.9, interval=[0.4, 0.6]),
        "PSNR": metric(31.25, unit="dB"),
    }
    table = report.measures(metrics)
    assert table["columns"] == ["measure", "value", "95 % interval", "floor", "n"]
    assert table["rows"] == [["coverage", "50.0 %", "40.0 to 60.0", "90.0 %", "100"],
                             ["PSNR", "31.2 dB", "", "", "100"]]  # fmt: skip


# --- pictures in fewer bytes ----------------------------------------------------------------------


def embedded(root: Path, name: str) -> tuple[dict, bytes]:
    run = Result("good_demo", "A title", "A summary.", root / "pictures", {}, 7, "cpu")
    run.add_file(name, "A picture.")
    run.save()
    (image,) = write(root, [GOOD]).pictures()
    return image, base64.b64decode(image["src"].split(",")[1])


@pytest.mark.parametrize("times", [2, 3, 4])
def test_an_enlarged_grid_is_embedded_without_loss_at_its_own_size(root, times):
    small = np.random.default_rng(1).integers(0, 256, (180, 240), dtype=np.uint8)
    write_png(root / "pictures" / "grid.png", small.repeat(times, 0).repeat(times, 1))
    image, raw = embedded(root, "grid.png")
    assert (image["width"], image["height"]) == (str(240 * times), str(180 * times))
    assert image["class"] == "pixelated" and "webp" in image["src"][:20]
    with Image.open(io.BytesIO(raw)) as picture:
        assert (np.asarray(picture.convert("L")) == small).all()


def test_an_animation_still_plays_every_frame_as_long(root):
    rng = np.random.default_rng(2)
    frames = [rng.integers(0, 256, (90, 120), dtype=np.uint8).repeat(3, 0).repeat(3, 1)
              for _ in range(5)]  # fmt: skip
    write_gif(root / "pictures" / "way.gif", frames, 0.2)
    _, raw = embedded(root, "way.gif")
    assert len(raw) < (root / "pictures" / "way.gif").stat().st_size
    with Image.open(io.BytesIO(raw)) as animation:
        assert animation.n_frames == 5 and animation.info["loop"] == 0
        durations = []
        for k, frame in enumerate(frames):
            animation.seek(k)
            shown = np.asarray(animation.convert("L"))
            durations.append(animation.info["duration"])
            assert (shown == frame[::3, ::3]).all()
    assert durations == [200] * 4 + [2000]


def test_a_long_animation_shows_some_of_its_frames_and_lasts_as_long(root):
    frames = [np.full((90, 120), 5 * k, np.uint8) for k in range(40)]
    for k, frame in enumerate(frames):  # so that it takes more than a short file
        frame[::2, ::2] = np.random.default_rng(k).integers(0, 200, (45, 60))
    write_gif(root / "pictures" / "way.gif", frames, 0.1)
    _, raw = embedded(root, "way.gif")
    with Image.open(io.BytesIO(raw)) as animation:
        durations = []
        for k in range(animation.n_frames):
            animation.seek(k)
            animation.load()
            durations.append(animation.info["duration"])
            if k in (0, report.FRAMES - 1):
                shown = np.asarray(animation.convert("L"))[1::2, 1::2].mean()
                assert abs(shown - 5 * (0 if k == 0 else 39)) < 25
    assert len(durations) == report.FRAMES and sum(durations) == 39 * 100 + 2000
    assert f"({report.FRAMES} of its 40 frames; all are in" in write(root, [GOOD]).text


def test_how_often_pixels_are_repeated():
    rng = np.random.default_rng(3)
    small = rng.integers(0, 256, (12, 24, 3), dtype=np.uint8)
    for times in (1, 2, 3, 4):
        large = small.repeat(times, 0).repeat(times, 1)
        assert report.enlargement(large) == times
        large[-1, -1] ^= 1
        assert report.enlargement(large) == 1
    assert report.enlargement(small.repeat(2, 0)) == 1  # downwards only


def test_a_film_is_played(root):
    run = Result("good_demo", "A title", "A summary.", root / "pictures", {}, 7, "cpu")
    run.add_file("film.webm", "A film.").write_bytes(b"film")
    run.save()
    page = write(root, [GOOD])
    (film,) = page.all("video")
    assert film["src"] == "data:video/webm;base64,ZmlsbQ==" and film["aria-label"] == "A film."


def test_a_notebook_shows_a_result_as_its_pictures_and_figures(tmp_path):
    run = good(tmp_path)
    run.add_file("gone.png", "A picture that is gone.")
    run.learned = "A <lesson>."
    page = Page(run._repr_html_())
    (picture,) = page.pictures()
    raw = base64.b64decode(picture["src"].partition("base64,")[2])
    assert (np.asarray(Image.open(io.BytesIO(raw))) == PICTURE).all()
    assert picture["alt"] == 'A picture of "noise".'
    for words in ("The good <i>demo</i>", "It & its summary.", "A <lesson>.", "31.2 dB", "1,234",
                  "not defined", "98.7 %", "pictures/gone.png is not embedded"):  # fmt: skip
        assert words in page.text
    assert "A frame." not in page.text and not page.all("html") and not page.all("script")
    assert repr(run) == f"<Result of good_demo: 2 figures, 2 pictures in {run.folder}>"
    assert run.files[0].keys() == {"path", "caption", "featured"}  # the pictures are not kept


def test_a_notebook_shows_what_the_page_shows(root):
    """Word for word, but for the page around it."""
    part = good(root)._repr_html_().partition('<div class="imagelab">')[2].removesuffix("</div>")
    assert len(part) > 1500 and part.strip() in write(root, [GOOD, BAD]).source
