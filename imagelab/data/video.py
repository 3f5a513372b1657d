"""Read and write the frames of a video file or a camera, one at a time, with OpenCV.

`process_media` reads a picture, a folder, a video or a camera, and writes what a predictor makes of it.
Videos have even sides: where a frame has an odd side, its last row or column is not written.
"""

from __future__ import annotations

from imagelab.setup.command import heard

import contextlib
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imagelab.data.folders import PICTURE_SUFFIXES, pictures_in
from imagelab.data.pictures import open_picture, picture_format, read_colours, write_picture
from imagelab.setup.files import atomic_path, keep_apart
from imagelab.setup.runtime import UserError
from imagelab.setup.terminal import progress, readable, tell_once

# VP8 in WebM plays in every browser, mp4v in none.
SUFFIXES = {".webm": "VP80", ".mp4": "mp4v", ".avi": "MJPG", ".mov": "mp4v", ".mkv": "mp4v"}
FRAMES_PER_SECOND = 25.0  # where the source does not say
MOST_LOST = 1000  # frames in a row that cannot be read, after which no more are expected


@dataclass
class Video:
    """`frames` yields (H, W, 3) uint8 RGB. `length` is the number of frames, 0 if it is not known."""

    frames: Iterator[np.ndarray]
    rate: float
    length: int


@contextlib.contextmanager
def open_video(source: Path | int) -> Iterator[Video]:
    """A video file, or the camera of that number. Raises UserError where it cannot be opened.

    Frames that cannot be read are left out. After the last frame a line says how many.
    """
    import cv2

    is_camera = isinstance(source, int)
    if not is_camera and not Path(source).is_file():
        raise UserError(f"There is no video {readable(source)}.")
    capture = cv2.VideoCapture(source if is_camera else str(source))
    capture.set(
        cv2.CAP_PROP_ORIENTATION_AUTO, 1
    )  # upright; OpenCV 4.11 is alone in another default
    try:
        length = int(max(capture.get(cv2.CAP_PROP_FRAME_COUNT), 0))
        frames = _frames(capture, length, source)
        first = next(frames, None)
        if first is None:
            what = f"Camera {source}" if is_camera else readable(source)
            raise UserError(f"{what} cannot be read as a video.")
        rate = capture.get(cv2.CAP_PROP_FPS)
        yield Video(itertools.chain([first], frames), rate or FRAMES_PER_SECOND, length)
    finally:
        capture.release()


def _frames(capture, length: int, source: Path | int) -> Iterator[np.ndarray]:
    """The readable frames (H, W, 3) uint8 RGB. `length` is their number as the file gives it, or 0."""
    import cv2

    read = lost = failed = 0  # lost: between frames that were read; failed: since the last one
    while True:
        frame = capture.read()[1] if capture.isOpened() else None
        if frame is not None:
            read, lost, failed = read + 1, lost + failed, 0
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        elif read + lost + failed + 1 < length and failed < MOST_LOST:
            failed += 1
        else:
            break
    short = length - read - lost
    lost += short if short > max(2, length // 50) else 0  # the length in a file is not exact
    if lost and read:
        tell_once(f"{lost} of {read + lost} frames could not be read.", source)


def is_video(path: Path) -> bool:
    return Path(path).suffix.lower() in SUFFIXES


def _may_be_video(path: Path) -> bool:
    """OpenCV reads more kinds of videos than it writes here."""
    return path.is_file() and path.suffix.lower() not in PICTURE_SUFFIXES


def check_video_name(path: Path) -> None:
    """UserError if videos cannot be written under this name."""
    if not is_video(path):
        raise UserError(f"{path} must end in {', '.join(SUFFIXES)}.")


def write_video(path: Path, frames: Iterable[np.ndarray], rate: float = FRAMES_PER_SECOND) -> int:
    """Write frames (H, W, 3) uint8, all of one size. Returns how many there were.

    Ctrl-C ends the video early. The frames written before it are kept.
    """
    import cv2

    path = Path(path)
    check_video_name(path)
    count, writer = 0, None
    with atomic_path(path) as temporary:
        try:
            for frame in frames:
                if writer is None:
                    kind = cv2.VideoWriter.fourcc(*SUFFIXES[path.suffix.lower()])
                    size = frame.shape[1], frame.shape[0]
                    with _without_false_warning():
                        writer = cv2.VideoWriter(str(temporary), kind, _valid_rate(rate), size)
                    if not writer.isOpened():
                        raise UserError(f"{path}: OpenCV cannot write this kind of video here.")
                writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
                count += 1
        except KeyboardInterrupt:
            if count == 0:
                raise
            heard()
        finally:
            if writer is not None:
                writer.release()
        if _length(temporary) < count:  # OpenCV does not report a full disk
            raise UserError(f"{path} could not be written as a whole: the disk may be full.")
    return count


@contextlib.contextmanager
def _without_false_warning() -> Iterator[None]:
    """Hide OpenCV's warning that the tag of a WebM is not supported. It writes the film correctly.

    Other warnings are shown. OpenCV writes to the file descriptor of stderr, not to sys.stderr.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # a process without one
        yield
        return
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            said.seek(0)
            for line in said:
                if not (b"'VP80' is not supported" in line and b"WebM" in line):
                    os.write(2, line)


def _valid_rate(rate: float) -> float:
    """The nearest frame rate that every container can hold: a decimal fraction of 16 bits (MPEG-4), 1 or
    more (AVI)."""
    rate = min(max(rate, 1.0), 1000.0) if rate > 0 else FRAMES_PER_SECOND  # not above 0: also NaN
    digits = next(d for d in (3, 2, 1, 0) if rate * 10**d < 2**16)
    return round(rate, digits)


def _length(path: Path) -> int:
    """How many frames can be read. The number in the file may be wrong."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    try:
        return sum(1 for _ in iter(capture.grab, False))
    finally:
        capture.release()


Predictor = Callable[[np.ndarray], np.ndarray]  # a picture (H, W, 3) uint8 to another of its size


def process_media(source: str | Path, output: Path, make_predictor: Callable[[], Predictor]) -> str:
    """Write what the predictor makes of each picture. Returns a sentence: how many, and how fast.

    `source` is a picture, a folder of pictures, a video, or the number of a camera; `output` is a
    picture, a folder, or a video. Raises UserError where one of them cannot be used. Only then
    `make_predictor` is called, because loading a network takes time.
    """
    source, output = str(source), Path(output)
    path = Path(source)
    keep_apart(output, path)
    is_camera = source.isdecimal() and not path.exists()
    is_film = is_video(path) or (is_video(output) and _may_be_video(path))
    if is_camera or (is_film and not path.is_dir()):
        if not is_camera and not path.is_file():
            raise UserError(f"There is no video {source}.")
        check_video_name(output)
        return _process_video(int(source) if is_camera else path, output, make_predictor())
    if path.is_dir():
        pictures = pictures_in(path)
        if not pictures:
            raise UserError(f"There are no pictures in {path}.")
        alike = len({p.stem for p in pictures}) < len(pictures)
        outputs = [output / f"{p.name if alike else p.stem}.png" for p in pictures]
    else:
        picture_format(output)
        open_picture(path)
        pictures, outputs = [path], [output]
    predictor, seconds = make_predictor(), 0.0
    for picture, to in zip(pictures, outputs, strict=True):
        image = read_colours(picture)
        started = time.perf_counter()
        image = predictor(image)
        seconds += time.perf_counter() - started
        write_picture(to, image)
    rate = len(pictures) / max(seconds, 1e-9)  # some clocks are coarse
    return f"{len(pictures)} pictures, {rate:.1f} a second. Written: {output}"


def _process_video(source: Path | int, output: Path, predictor: Predictor) -> str:
    started = time.perf_counter()
    with open_video(source) as video:
        frames = progress(video.frames, str(output), "frame", video.length or None, keep=True)
        count = write_video(output, map(predictor, frames), video.rate)
    rate = count / (time.perf_counter() - started)
    return f"{count:,} frames, {rate:.1f} a second with reading and writing. Written: {output}"
