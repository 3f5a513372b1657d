"""A film of the playground in use, made from a report: `.github/playground.gif` is one.

    python tests/playground_gif.py report.html .github/playground.gif

A digit is drawn with the mouse, ε is dragged until the reading flips, two samples of the GAN are
blended, and diffusion is stepped through. The report is opened as a reader opens it; only the sentences
that explain each panel are left out. It needs Chromium and requirements-dev.txt.
"""

from __future__ import annotations

import argparse
import io
import math
import re
import shutil
from itertools import pairwise
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
WIDTH, HEIGHT = 900, 800  # of the page, in CSS pixels
SCALE = 0.8  # how large they are in the GIF
FRAME = 70  # milliseconds
COLOURS = 64
ORANGE = ("#d55e00", "#a33a00")  # "after the change", and the words of what was flipped
STYLE = """
.contents, [role=tabpanel] > p { display: none !important; }
#pointer { position: fixed; z-index: 9; width: 0; height: 0; pointer-events: none; }
#pointer::after { content: "➤"; position: absolute; left: -9px; top: -14px; rotate: -125deg;
  font-size: 30px; color: #fff; -webkit-text-stroke: 1.5px #000; }
"""
EPSILON, BLEND = "#play-attack .slider input", "#play-gan .blend + .slider input"
STEPS = "#play-diffusion .slider input"
SEVEN = [(0.28, 0.27), (0.5, 0.25), (0.72, 0.26), (0.6, 0.46), (0.5, 0.65), (0.44, 0.82)]


class Film:
    """Screenshots of a page with how long each is shown, and the mouse that moves on them."""

    def __init__(self, page: Page) -> None:
        self.page, self.frames, self.durations = page, [], []
        self.at = (WIDTH / 2, HEIGHT / 2)
        page.add_style_tag(content=STYLE)
        pointer = "Object.assign(document.createElement('b'), { id: 'pointer' })"
        page.evaluate(f"document.body.append({pointer})")
        page.evaluate("document.querySelector('#playground [role=tablist]').scrollIntoView()")

    def shoot(self, milliseconds: int = FRAME) -> None:
        """A frame of what the page shows once it has computed."""
        self.page.wait_for_selector("[role=tabpanel]:not([hidden]) .stage[aria-busy=false]")
        self.frames.append(Image.open(io.BytesIO(self.page.screenshot())).convert("RGB"))
        self.durations.append(milliseconds)

    def move(self, to: tuple[float, float], frames: int = 3) -> None:
        """The mouse to a point, which takes so many frames."""
        (x, y), (u, v) = self.at, to
        for k in range(1, frames + 1):
            share = k / frames
            self.at = (x + share * (u - x), y + share * (v - y))
            self.page.mouse.move(*self.at)
            self.page.evaluate("([x, y]) => Object.assign(document.getElementById('pointer').style, "
                               "{left: `${x}px`, top: `${y}px`})", self.at)  # fmt: skip
            self.shoot()

    def place(self, selector: str, x: float = 0.5, y: float = 0.5) -> tuple[float, float]:
        box = self.page.locator(selector).bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def click(self, selector: str, pause: int = 400) -> None:
        self.move(self.place(selector))
        self.page.mouse.click(*self.at)
        self.shoot(pause)

    def thumb(self, selector: str, share: float) -> tuple[float, float]:
        """Where a slider's thumb is at a share of its way."""
        box = self.page.locator(selector).bounding_box()
        return box["x"] + 8 + share * (box["width"] - 16), box["y"] + box["height"] / 2

    def drag(self, selector: str, shares: list[float], until: str | None = None) -> None:
        """The slider along these shares of its way, a frame each, to where `until` is seen."""
        self.move(self.thumb(selector, shares[0]))
        self.page.mouse.down()
        for share in shares[1:]:
            self.move(self.thumb(selector, share), 1)
            if until and self.page.locator(until).count():
                break
        self.page.mouse.up()

    def save(self, path: Path) -> None:
        """One palette for all frames; of frames that are alike, one that stays as long."""
        sheet = Image.new(
            "RGB", (self.frames[0].width, self.frames[0].height * len(self.frames[::6]))
        )
        for k, frame in enumerate(self.frames[::6]):
            sheet.paste(frame, (0, k * frame.height))
        for k, colour in enumerate(ORANGE):  # of small things, which the palette would leave out
            sheet.paste(colour, (0, 40 * k, sheet.width, 40 * k + 40))
        palette = sheet.quantize(COLOURS)
        pages = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in self.frames]
        pages[0].save(path, save_all=True, append_images=pages[1:], duration=self.durations, loop=0,
                      optimize=False)  # fmt: skip


def attack(film: Film) -> None:
    board = "#play-attack .board"
    film.click("#play-attack .left button:has-text('Clear')", 300)
    film.move(film.place(board, *SEVEN[0]))
    film.page.mouse.down()
    for start, end in pairwise(SEVEN):
        film.move(film.place(board, *end), max(round(9 * math.dist(start, end)), 1))
    film.page.mouse.up()
    film.shoot(700)
    film.drag(EPSILON, [k / 40 for k in range(41)], until="#play-attack .reader.flipped")
    film.shoot(1400)


def gan(film: Film) -> None:
    film.click("#tab-gan", 400)
    samples = "#play-gan .sheet .sample"
    read = [
        re.match(r"(\w+), (\d+) %", text) for text in film.page.locator(samples).all_inner_texts()
    ]
    sure = {found[1]: k for k, found in enumerate(read) if found and int(found[2]) >= 99}
    for k in list(sure.values())[:2]:  # two classes that the classifier is sure of
        film.click(f"{samples} >> nth={k}", 300)
    film.drag(BLEND, [k / 10 for k in range(11)])
    film.shoot(700)


def diffusion(film: Film) -> None:
    film.click("#tab-diffusion", 400)
    step = "#play-diffusion button:has-text('Step ▶')"
    film.move(film.place(step))
    for _ in range(3):
        film.page.mouse.click(*film.at)
        film.shoot(200)
    film.drag(STEPS, [k / 12 for k in range(1, 13)])
    film.shoot(1800)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="report.html of a main job")
    parser.add_argument("output", type=Path, help="where to write the GIF")
    asked = parser.parse_args()
    with sync_playwright() as player:
        flags = ["--no-sandbox", "--disable-gpu"]  # root, as in a container, has no sandbox
        browser = player.chromium.launch(executable_path=BROWSER, args=flags)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, offline=True,
                                device_scale_factor=SCALE)  # fmt: skip
        page.goto(asked.report.resolve().as_uri())
        page.wait_for_selector("#play-attack .stage[aria-busy=false]")
        film = Film(page)
        for part in (attack, gan, diffusion):
            part(film)
        film.save(asked.output)
        browser.close()
    size, seconds = asked.output.stat().st_size, sum(film.durations) / 1000
    print(
        f"{len(film.frames)} frames, {seconds:.1f} s, {size / 1e6:.2f} MB. Written: {asked.output}"
    )


if __name__ == "__main__":
    main()
