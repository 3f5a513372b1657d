from __future__ import annotations

import itertools
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from imagelab.data.video import write_video
from imagelab.report import figures, live
from imagelab.setup.runtime import UserError


def film(path: Path, count: int = 12) -> Path:
    """Dark frames with a bright square that moves to the right."""
    frames = np.full((count, 96, 128, 3), 40, np.uint8)
    for k, frame in enumerate(frames):
        frame[60:80, 5 * k : 5 * k + 20] = 220
    write_video(path, frames, 50)
    return path


def red(picture: np.ndarray) -> np.ndarray:
    picture = picture.copy()
    picture[40:] = picture[40:] * [1, 0, 0]
    return picture


@pytest.fixture
def no_display(monkeypatch):
    monkeypatch.setattr(figures, "has_display", lambda: False)


def read_frames(page: str) -> list[np.ndarray]:
    """The pictures of the page's stream, as a browser takes them apart; RGB."""
    import cv2

    html = urllib.request.urlopen(page, timeout=30).read().decode()
    stream = re.search(r'<img src="/([^"]+)"', html)[1]
    with urllib.request.urlopen(page + stream, timeout=30) as answer:
        kind, _, boundary = answer.headers["Content-Type"].partition("; boundary=")
        assert kind == "multipart/x-mixed-replace"
        body = answer.read()  # until the server ends it
    parts = body.split(f"--{boundary}\r\n".encode())[1:]
    pictures = []
    for part in parts:
        head, _, jpeg = part.partition(b"\r\n\r\n")
        length = int(re.search(rb"Content-Length: (\d+)", head)[1])
        assert len(jpeg) == length + 2
        picture = cv2.imdecode(np.frombuffer(jpeg[:length], np.uint8), cv2.IMREAD_COLOR)
        pictures.append(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    return pictures


def page_of(capfd) -> str:
    """The address that was printed, as soon as it is."""
    for _ in range(300):
        if found := re.search(r"http://127\.0\.0\.1:\d+/", shown := capfd.readouterr().out):
            return found[0]
        threading.Event().wait(0.1)
    raise AssertionError(shown)


def test_a_film_on_a_page(tmp_path, no_display, capfd):
    """All the frames, changed by the predictor, each with the rate on it; then it ends by itself."""
    said = []
    path = str(film(tmp_path / "film.avi"))
    watch = threading.Thread(target=lambda: said.append(live.show_live(path, lambda: red, 0)))
    watch.start()
    page = page_of(capfd)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{page}other", timeout=30)
    pictures = read_frames(page)
    watch.join(timeout=30)
    assert not watch.is_alive() and said[0].startswith("12 frames, ")
    assert 4 <= len(pictures) <= 12  # a slow reader misses some
    last = pictures[-1].astype(int)
    assert last.shape == (96, 128, 3)
    assert last[50:, :, 1:].max() < 60 < last[62:78, 58:70, 0].min()  # red, and the last frame
    assert last[:12, :40].max() > 180 and last[:12, :40].min() < 60  # white letters on black
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(page, timeout=5)  # the server is gone


def test_a_browser_that_leaves_does_not_end_it(tmp_path, no_display, capfd):
    said = []
    path = str(film(tmp_path / "film.avi", 40))
    watch = threading.Thread(target=lambda: said.append(live.show_live(path, lambda: red, 0)))
    watch.start()
    page = page_of(capfd)
    with urllib.request.urlopen(f"{page}stream", timeout=30) as answer:
        answer.read(500)
    watch.join(timeout=30)
    assert said and said[0].startswith("40 frames")


def test_the_rate_on_the_frames(monkeypatch):
    """Of the last twenty frames alone; a film is not played faster than it is."""
    clock = iter([0.0, *itertools.accumulate([1.0] * 30 + [0.1] * 30)])
    written = []
    monkeypatch.setattr(live.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(live, "write_text", lambda _, text, *more: written.append(text))
    frames = live.RatedFrames(np.zeros((60, 20, 60, 3), np.uint8))
    assert len(list(frames)) == frames.count == 60
    assert frames.seconds == pytest.approx(33)
    assert (
        written[0] == written[29] == "1.0 frames a second" and written[-1] == "10.0 frames a second"
    )
    monkeypatch.undo()
    limited = live.RatedFrames(np.zeros((10, 20, 60, 3), np.uint8), limit=50)
    assert len(list(limited)) == 10 and limited.seconds >= 0.2


def test_a_window_shows_the_frames_until_it_is_closed(tmp_path, monkeypatch):
    from matplotlib import pyplot

    seen = []

    def pause(_seconds: float) -> None:
        (axis,) = pyplot.gcf().axes
        seen.append(np.array(axis.images[0].get_array()))
        if len(seen) == 5:
            pyplot.close()

    monkeypatch.setattr(figures, "has_display", lambda: True)
    monkeypatch.setattr(pyplot, "pause", pause)
    said = live.show_live(str(film(tmp_path / "film.avi")), lambda: red)
    assert said.startswith("5 frames") and len(seen) == 5
    assert (seen[0][60:80] != seen[4][60:80]).any() and seen[4][50:, :, 1].max() == 0
    assert not pyplot.get_fignums()


def test_what_cannot_be_shown(tmp_path, no_display, capfd):
    with pytest.raises(UserError, match="There is no video"):
        live.show_live("none.mp4", lambda: red)
    with pytest.raises(UserError, match="Camera 97 cannot be read"):
        live.show_live("97", lambda: red)
    path = str(film(tmp_path / "film.avi"))
    with (
        live.ThreadingHTTPServer(("127.0.0.1", 0), live.BaseHTTPRequestHandler) as other,
        pytest.raises(UserError, match=f"--port: {other.server_port} is in use"),
    ):
        live.show_live(path, lambda: red, other.server_port)


def test_ctrl_c_ends_it_in_a_sentence(tmp_path, no_display, monkeypatch):
    def stopped(frames, _port: int) -> None:
        next(iter(frames))
        raise KeyboardInterrupt

    monkeypatch.setattr(live, "show_on_page", stopped)
    assert live.show_live(str(film(tmp_path / "film.avi")), lambda: red).startswith("1 frames")
