from __future__ import annotations

import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from imagelab.data.video import _without_false_warning, open_video, process_media, write_video
from imagelab.setup.runtime import UserError
from imagelab.setup.terminal import told


def frames(count: int):
    """A bright square that moves to the right over grey."""
    for k in range(count):
        frame = np.full((48, 64, 3), 60, np.uint8)
        frame[16:32, 4 * k : 4 * k + 16] = (250, 200, 40)
        yield frame


@pytest.mark.parametrize("suffix", [".webm", ".mp4", ".avi"])
def test_what_is_written_is_read(tmp_path, suffix, capfd):
    path = tmp_path / f"film{suffix}"
    assert write_video(path, frames(8), rate=10) == 8
    with open_video(path) as video:
        read = list(video.frames)
        assert video.rate == pytest.approx(10) and video.length == 8
    assert len(read) == 8
    for frame, original in zip(read, frames(8), strict=True):
        assert abs(frame.astype(int) - original).mean() < 8  # colours in the right order
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no half of a file is left
    assert capfd.readouterr().err == ""  # OpenCV's untrue line about WebM is left out


def test_what_else_opencv_complains_of_is_heard(capfd):
    with _without_false_warning():
        os.write(
            2, b"OpenCV: FFMPEG: tag 0x30385056/'VP80' is not supported with ... 'webm / WebM'\n"
        )
        os.write(2, b"OpenCV: the disk is full\n")
    os.write(2, b"and after\n")
    assert capfd.readouterr().err == "OpenCV: the disk is full\nand after\n"


@pytest.mark.parametrize("suffix", [".webm", ".mp4", ".avi"])
def test_a_film_that_does_not_fit_leaves_the_old_one(tmp_path, suffix):
    """In a process whose files may not grow, as on a full disk; OpenCV itself says nothing of it."""
    path = tmp_path / f"film{suffix}"
    write_video(path, frames(8))
    before = path.read_bytes()
    code = (
        "import resource, signal, sys; import numpy as np; from pathlib import Path\n"
        "from imagelab.data.video import write_video\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "noise = np.random.default_rng(0).integers(0, 256, (20, 96, 96, 3), np.uint8)\n"
        "write_video(Path(sys.argv[1]), noise)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 1 and "could not be written as a whole" in done.stderr
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_damaged_stretch_does_not_end_the_film(tmp_path, capsys):
    """The bytes of three frames in the midst are noise; what follows is read, and it is said."""
    told.clear()
    write_video(tmp_path / "film.avi", list(frames(12)) * 5)
    raw = bytearray((tmp_path / "film.avi").read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + len(raw) // 20] = bytes(len(raw) // 20)
    (tmp_path / "film.avi").write_bytes(raw)
    said = process_media(str(tmp_path / "film.avi"), tmp_path / "dark.avi", lambda: darker)
    read = int(said.split()[0])
    assert 52 <= read < 60
    assert f"film.avi: {60 - read} of 60 frames could not be read" in capsys.readouterr().err
    with open_video(tmp_path / "dark.avi") as video:
        assert len(list(video.frames)) == read
    told.clear()
    (tmp_path / "film.avi").write_bytes(raw[: len(raw) * 2 // 3])  # the end is missing
    with open_video(tmp_path / "film.avi") as video:
        read = len(list(video.frames))
    assert f"{60 - read} of 60 frames" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rate", "held"),
    [
        (120.483, 120.48),
        (23.976, 23.976),
        (999.9994, 1000),
        (90_000, 1000),
        (0.5, 1),
        (float("nan"), 25),
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_frame_rates_are_rounded_to_what_a_film_holds(tmp_path, suffix, rate, held):
    path = tmp_path / f"film{suffix}"
    assert write_video(path, frames(8), rate) == 8
    with open_video(path) as video:
        assert video.rate == pytest.approx(held, rel=1e-4)


@pytest.mark.parametrize("default", [0, 1])
def test_films_of_phones_are_upright(tmp_path, monkeypatch, default):
    """Whatever OpenCV's own default is (4.11 has another one)."""
    import cv2

    film = [np.full((48, 64, 3), 20, np.uint8) for _ in range(5)]
    for frame in film:
        frame[:, :16] = 230  # to be turned clockwise: its left side is the top
    path = tmp_path / "film.mp4"
    write_video(path, film)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"tkhd") + 44
    raw[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(raw)
    capture = cv2.VideoCapture

    def opened(source: str):
        video = capture(source)
        video.set(cv2.CAP_PROP_ORIENTATION_AUTO, default)
        return video

    monkeypatch.setattr(cv2, "VideoCapture", opened)
    with open_video(path) as video:
        frame = next(video.frames)
    assert frame.shape == (64, 48, 3) and frame[:12].mean() > 200 and frame[20:].mean() < 40


def test_a_folder_of_digits_is_no_camera(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("2024", "clips.mp4"):
        (tmp_path / folder).mkdir()
        Image.new("L", (20, 30), 200).save(tmp_path / folder / "0.jpg")
        assert "1 pictures" in process_media(folder, tmp_path / "out", lambda: darker)


def darker(picture: np.ndarray) -> np.ndarray:
    return picture // 2


def test_pictures_folders_and_films(tmp_path):
    write_video(tmp_path / "film.mp4", frames(5))
    said = process_media(str(tmp_path / "film.mp4"), tmp_path / "dark.webm", lambda: darker)
    assert said.startswith("5 frames")
    with open_video(tmp_path / "dark.webm") as video:
        assert max(frame.max() for frame in video.frames) < 150
    for k in range(2):
        Image.new("L", (20, 30), 200).save(tmp_path / f"{k}.jpg")
    assert "1 pictures" in process_media(tmp_path / "0.jpg", tmp_path / "0.png", lambda: darker)
    assert np.asarray(Image.open(tmp_path / "0.png")).max() == 100
    write_video(tmp_path / "film.avi", frames(3))
    (tmp_path / "film.avi").rename(tmp_path / "film.mpg")  # a kind that is read, though not written
    assert process_media(tmp_path / "film.mpg", tmp_path / "mpg.mp4", lambda: darker).startswith(
        "3 frames"
    )
    (tmp_path / "0.png").unlink()
    assert "2 pictures" in process_media(tmp_path, tmp_path / "out", lambda: darker)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0.png", "1.png"]


def test_pictures_are_not_overwritten_by_what_is_found_in_them(tmp_path):
    for suffix in ("jpg", "png"):
        Image.new("L", (20, 30), 200).save(tmp_path / f"a.{suffix}")
    write_video(tmp_path / "film.mp4", frames(2))
    for name in ("", "a.jpg", "film.mp4"):  # a folder of pictures, a picture, a video
        with pytest.raises(UserError, match="choose another --output"):
            process_media(tmp_path / name, tmp_path / "." / name, never)
    process_media(tmp_path, tmp_path / "out", lambda: darker)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.jpg.png", "a.png.png"]


def never():
    raise AssertionError("the work must not begin")


@pytest.mark.parametrize(
    ("source", "output", "says"),
    [
        ("no.mp4", "out.mp4", "There is no video"),
        ("no.png", "out.png", "There is no picture"),
        ("text.png", "out.png", "not a picture"),
        ("empty", "out", "no pictures"),
        ("film.avi", "out.txt", "must end in"),
        ("text.png", "out.mp4", "must end in"),
    ],
)
def test_what_cannot_be_is_said_before_the_work(tmp_path, source, output, says):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    write_video(tmp_path / "film.avi", frames(2))
    with pytest.raises(UserError, match=says):
        process_media(str(tmp_path / source), tmp_path / output, never)


def test_a_film_that_is_none_and_a_camera_that_is_not_there(tmp_path, capfd):
    (tmp_path / "film.mp4").write_bytes(b"no film at all" * 50)
    with pytest.raises(UserError, match="cannot be read as a video"):
        process_media(str(tmp_path / "film.mp4"), tmp_path / "out.mp4", lambda: darker)
    with pytest.raises(UserError, match="Camera 97 cannot be read"):
        process_media("97", tmp_path / "out.mp4", lambda: darker)
    assert not (tmp_path / "out.mp4").exists()


def test_ctrl_c_keeps_the_film_so_far(tmp_path):
    def stopped():
        yield from frames(3)
        raise KeyboardInterrupt

    assert write_video(tmp_path / "film.mp4", stopped()) == 3
    with open_video(tmp_path / "film.mp4") as video:
        assert len(list(video.frames)) == 3
