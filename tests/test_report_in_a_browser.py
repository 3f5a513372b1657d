"""The report of the main job, opened in headless Chromium where one is installed."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from test_page import FACTS

from imagelab.data.video import write_video
from imagelab.report.page import write_report
from imagelab.report.results import Result

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), "")
pytestmark = pytest.mark.skipif(not BROWSER, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        # Root, as in a container, has no sandbox; the page is our own.
        opened = player.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, main_job, request):
    """The page at a width and in a colour scheme, with the complaints of its console."""
    width, scheme = getattr(request, "param", (1200, "light"))
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
    )
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((main_job / "report.html").as_uri())
    yield page, complaints
    context.close()


@pytest.mark.parametrize(
    "opened", [(w, s) for w in (390, 1200) for s in ("light", "dark")], indirect=True, ids=str
)
def test_a_reader_meets_no_fault(opened):
    from axe_playwright_python.sync_playwright import Axe

    page, complaints = opened
    pictures = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.alt.length])")
    assert len(pictures) >= 19 and all(width and words for width, words in pictures)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    found = Axe().run(page)  # contrast, names, roles, headings
    assert found.violations_count == 0, found.generate_report()
    assert not complaints


def test_everything_that_scrolls_or_leads_on_is_reached_by_the_keyboard(opened):
    page, _ = opened
    page.wait_for_selector(".stage[aria-busy=false]")
    page.evaluate("document.body.focus()")
    found = "[...document.querySelectorAll('a[href], [tabindex=\"0\"], .zoom')]"
    count = f"{found}.filter(e => e.offsetParent)"
    stops = page.evaluate(f"{count}.length")
    assert stops >= 25
    reached = set()
    for _ in range(stops + 40):  # the playground's controls lie between
        page.keyboard.press("Tab")
        reached.add(page.evaluate(f"{count}.indexOf(document.activeElement)"))
    assert reached >= set(range(stops))


def test_it_prints(opened):
    page, _ = opened
    paper = page.pdf(format="A4")
    assert paper.startswith(b"%PDF") and paper.count(b"/Type /Page\n") >= 4


@pytest.mark.parametrize("opened", [(390, "light"), (1200, "dark")], indirect=True, ids=str)
def test_pictures_open_large_and_are_paged_through(opened):
    from axe_playwright_python.sync_playwright import Axe

    page, complaints = opened
    zoom = page.locator(".zoom >> nth=2")
    words = zoom.locator("img").get_attribute("alt")
    small = zoom.locator("img").bounding_box()["width"]
    zoom.click()
    large, caption = page.locator("dialog .view img"), page.locator("dialog p")
    assert caption.inner_text() == words and large.get_attribute("alt") == words
    assert large.bounding_box()["width"] >= small - 1
    total = page.locator(".zoom").count()
    assert page.locator("dialog output").inner_text() == f"3 of {total}"
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.keyboard.press("ArrowRight")
    assert page.locator("dialog output").inner_text() == f"4 of {total}"
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    assert page.locator("dialog output").inner_text() == f"{total} of {total}"
    page.click("dialog .next")
    assert page.locator("dialog output").inner_text() == f"1 of {total}"
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    # The dialog tells that it is closed a moment later, and the focus goes back then.
    page.wait_for_function("document.activeElement === document.querySelector('.zoom')")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not complaints


@pytest.mark.parametrize("opened", [(390, "light"), (1200, "light")], indirect=True, ids=str)
def test_the_contents_stay_at_hand(opened):
    page, _ = opened
    page.click(".cards a >> nth=2")
    page.wait_for_function(
        "Math.abs(document.querySelector('#gan-mnist').getBoundingClientRect().top - 51) < 40"
    )
    box = page.locator(".contents").bounding_box()
    assert box["y"] == 0 and box["height"] < 80
    page.wait_for_selector(".contents a[href='#gan-mnist'][aria-current=true]")
    assert page.locator("#gan-mnist h2").bounding_box()["y"] >= box["height"]


def test_cards_stand_before_the_playground_and_that_before_the_pictures(opened):
    page, _ = opened
    page.wait_for_selector(".stage[aria-busy=false]")
    tops = [
        page.locator(one).bounding_box()["y"]
        for one in ("h1", ".cards", "#playground", "#fgsm", "#status")
    ]
    assert tops == sorted(tops)


def test_a_film_plays(browser, tmp_path):
    """What write_video makes by the names that the studies give, embedded in a report."""
    film = Result("good_demo", "A title", "A summary.", tmp_path / "films", {}, 7, "cpu")
    frames = [np.full((96, 128, 3), (10 * k, 255 - 10 * k, 60), np.uint8) for k in range(20)]
    write_video(film.add_file("film.webm", "From green to red."), frames)
    film.save()
    done = {"name": "good_demo", "status": "done", "seconds": 1.0, "error": "", "folder": "films",
            "figure": "", "n": None}  # fmt: skip
    write_report(tmp_path / "report.html", tmp_path, [done], FACTS)
    page = browser.new_page(offline=True)
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_function("document.querySelector('video').readyState >= 2")
    page.evaluate("document.querySelector('video').play()")
    page.wait_for_function("document.querySelector('video').currentTime > 0.3")
    shown = page.evaluate("""() => {
        const film = document.querySelector("video"), seen = document.createElement("canvas");
        film.pause();
        seen.getContext("2d").drawImage(film, 0, 0);
        return [film.videoWidth, film.videoHeight, film.error, film.duration,
                ...seen.getContext("2d").getImageData(64, 48, 1, 1).data];
    }""")
    assert shown[:3] == [128, 96, None] and shown[3] == pytest.approx(20 / 25, abs=0.05)
    red, green = shown[4:6]
    assert red > 40 and red + green == pytest.approx(255, abs=30)
    page.close()
