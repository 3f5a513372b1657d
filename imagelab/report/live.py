"""Watch what a predictor makes of a camera or a video while it runs: in a window, or on a page.

Where there is no display, a small server on this machine sends the frames to a browser, one JPEG after
the other (MJPEG: the content type multipart/x-mixed-replace).
"""

from __future__ import annotations

from imagelab.setup.command import heard

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

from imagelab.data.video import Predictor, open_video
from imagelab.report import figures
from imagelab.report.boxes import write_text
from imagelab.setup.runtime import UserError

BOUNDARY = "next-frame"
PAGE = b"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Live detections</title>
<style>body{margin:0;background:#222;text-align:center}img{width:100%;height:100vh;
object-fit:contain}</style><img src="/stream" alt="frames with the detections in them"></html>"""
WINDOW = 20  # frames over which the rate is measured
LAST_FRAME = 2.0  # seconds that browsers get to take the last frame


def show_live(source: str, make_predictor: Callable[[], Predictor], port: int = 8000) -> str:
    """Show each frame of a video or a camera with the frames a second. Returns how many, and how fast.

    It ends with the video, with Ctrl-C, or when the window is closed. Without a display the frames go
    to http://127.0.0.1:PORT/; they start when a browser opens that page. Raises UserError where the
    source cannot be opened or the port is in use.
    """
    path = Path(source)
    is_camera = source.isdecimal() and not path.exists()
    with open_video(int(source) if is_camera else path) as video:
        frames = RatedFrames(map(make_predictor(), video.frames), None if is_camera else video.rate)
        try:
            if figures.has_display():
                show_in_window(frames)
            else:
                show_on_page(frames, port)
        except KeyboardInterrupt:
            heard()
    return f"{frames.count:,} frames, {frames.count / max(frames.seconds, 1e-9):.1f} a second."


class RatedFrames:
    """Frames (H, W, 3) uint8, with the rate of the last ones written on each.

    `count` is how many there were, `seconds` the time since the first one was asked for. There are no
    more than `limit` a second.
    """

    def __init__(self, frames: Iterable[np.ndarray], limit: float | None = None) -> None:
        self.frames, self.limit = frames, limit
        self.count, self.seconds = 0, 0.0

    def __iter__(self) -> Iterator[np.ndarray]:
        started = time.perf_counter()
        moments = deque([started], maxlen=WINDOW + 1)
        for frame in self.frames:
            if self.limit is not None:
                time.sleep(max(moments[-1] + 1 / self.limit - time.perf_counter(), 0))
            moments.append(time.perf_counter())
            rate = (len(moments) - 1) / max(moments[-1] - moments[0], 1e-9)
            self.count, self.seconds = self.count + 1, moments[-1] - started
            frame = np.ascontiguousarray(frame)
            write_text(frame, f"{rate:.1f} frames a second", 0, 0, (0, 0, 0))
            yield frame


def show_in_window(frames: Iterable[np.ndarray]) -> None:
    """Show frames in a window of matplotlib until they end or the window is closed."""
    from matplotlib import pyplot

    figure = pyplot.figure("Live detections", layout="constrained")
    axis = figure.subplots()
    axis.set_axis_off()
    image = None
    for frame in frames:
        if image is None:
            image = axis.imshow(frame)
        image.set_data(frame)
        pyplot.pause(0.001)
        if not pyplot.fignum_exists(figure.number):
            break
    pyplot.close(figure)


class Stream:
    """The newest frame as JPEG, for any number of browsers; slow ones miss frames."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.opened = threading.Event()  # a browser has asked for the frames
        self.jpeg, self.number, self.ended, self.viewers = b"", 0, False, 0

    def publish(self, jpeg: bytes) -> None:
        with self.changed:
            self.jpeg, self.number = jpeg, self.number + 1
            self.changed.notify_all()

    def end(self) -> None:
        """Tell the browsers that there are no more frames, and let them take the last one."""
        with self.changed:
            self.ended = True
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.viewers == 0, LAST_FRAME)

    def frames(self) -> Generator[bytes, None, None]:
        """The frames from now on, for one browser."""
        last = 0
        with self.changed:
            self.viewers += 1
        self.opened.set()
        try:
            while True:
                with self.changed:
                    while self.number == last and not self.ended:
                        self.changed.wait()
                    if self.number == last:
                        return
                    last, jpeg = self.number, self.jpeg
                yield jpeg
        finally:
            with self.changed:
                self.viewers -= 1
                self.changed.notify_all()


def show_on_page(frames: Iterable[np.ndarray], port: int) -> None:
    """Serve frames at http://127.0.0.1:`port`/ until they end; they start when a browser opens it."""
    import cv2

    stream = Stream()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/stream":
                self.answer(f"multipart/x-mixed-replace; boundary={BOUNDARY}")
                with (
                    contextlib.suppress(ConnectionError),
                    contextlib.closing(stream.frames()) as jpegs,
                ):
                    for jpeg in jpegs:
                        head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\n"
                        head += f"Content-Length: {len(jpeg)}\r\n\r\n"
                        self.wfile.write(head.encode() + jpeg + b"\r\n")
            elif self.path == "/":
                self.answer("text/html; charset=utf-8")
                self.wfile.write(PAGE)
            else:
                self.send_error(404)

        def answer(self, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Cache-Control", "no-store")
            self.end_headers()

        def log_message(self, *_) -> None:
            """A line for each request would only disturb."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise UserError(f"--port: {port} is in use or not allowed ({error.strerror}).") from error
    server.daemon_threads = True
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            print(
                f"Open http://127.0.0.1:{server.server_port}/ in a browser; Ctrl-C ends it.",
                flush=True,
            )
            while not stream.opened.wait(0.2):  # in steps, so that Ctrl-C is heard
                pass
            for frame in frames:
                jpeg = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1]
                stream.publish(jpeg.tobytes())
        finally:
            stream.end()
            server.shutdown()
