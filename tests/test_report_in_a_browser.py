"""The report of the main job, opened in headless Chromium where one is installed."""

from __future__ import annotations

import shutil

import pytest

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
    assert len(pictures) >= 15 and all(width and words for width, words in pictures)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    found = Axe().run(page)  # contrast, names, roles, headings
    assert found.violations_count == 0, found.generate_report()
    assert not complaints


def test_everything_that_scrolls_or_leads_on_is_reached_by_the_keyboard(opened):
    page, _ = opened
    count = "document.querySelectorAll('a[href], [tabindex=\"0\"]')"
    stops = page.evaluate(f"{count}.length")
    assert stops >= 8
    reached = set()
    for _ in range(stops):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(f"[...{count}].indexOf(document.activeElement)"))
    assert reached == set(range(stops))


def test_it_prints(opened):
    page, _ = opened
    paper = page.pdf(format="A4")
    assert paper.startswith(b"%PDF") and paper.count(b"/Type /Page\n") >= 4
