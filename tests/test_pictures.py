from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagelab.pictures import (
    fit_to_frame,
    open_picture,
    read_grey,
    read_png,
    write_gif,
    write_picture,
    write_png,
)
from imagelab.runtime import UserError


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def saved(path: Path, values: np.ndarray, **options) -> Path:
    Image.fromarray(values).save(path, **options)
    return path


# --- reading --------------------------------------------------------------------------------------


def test_what_is_no_picture_is_told(tmp_path):
    text = tmp_path / "a.png"
    text.write_text("not a picture")
    with pytest.raises(UserError, match=r"a\.png is not a picture"):
        open_picture(text)
    with pytest.raises(UserError, match="There is no picture"):
        open_picture(tmp_path / "b.png")
    with pytest.raises(UserError, match="There is no picture"):
        open_picture(tmp_path)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tif"])
def test_a_truncated_picture_is_told(tmp_path, suffix):
    path = saved(tmp_path / f"a.{suffix}", noise(64, 64, 3))
    whole = path.read_bytes()
    for length in (0, 3, 40, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf"a\.{suffix}"):
            open_picture(path)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 100), (20_000, 10)])
def test_sizes_that_are_refused(tmp_path, width, height):
    path = saved(tmp_path / "a.png", np.zeros((height, width), np.uint8))
    with pytest.raises(UserError, match=f"{width}×{height} pixels"):
        open_picture(path)


def test_a_decompression_bomb_is_refused(tmp_path):
    path = saved(tmp_path / "a.png", noise(16, 16))
    raw = path.read_bytes()
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + raw[24:29]
    path.write_bytes(raw[:12] + header + struct.pack(">I", zlib.crc32(header)) + raw[33:])
    with pytest.raises(UserError, match="far more pixels"):
        open_picture(path)


@pytest.mark.parametrize("shape", [(12, 9), (12, 9, 3)])
def test_ordinary_pictures_come_unchanged(tmp_path, shape):
    picture = open_picture(saved(tmp_path / "a.png", noise(*shape)))
    assert picture.mode == ("L" if len(shape) == 2 else "RGB")
    assert (np.asarray(picture) == noise(*shape)).all()


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    ramp = np.linspace(0, 65_535, 160).round().astype(np.uint16).reshape(10, 16)
    picture = open_picture(saved(tmp_path / "a.png", ramp))
    assert picture.mode == "L"
    assert (np.asarray(picture) == (ramp / 257).round()).all()


def test_floats_are_scaled_and_nan_is_told(tmp_path):
    values = np.linspace(-0.5, 1, 100, dtype=np.float32).reshape(10, 10)
    picture = np.asarray(open_picture(saved(tmp_path / "a.tif", values)))
    assert np.abs(picture - np.clip(values, 0, 1) * 255).max() <= 0.5001
    values[3, 4] = np.nan
    with pytest.raises(UserError, match="NaN"):
        open_picture(saved(tmp_path / "b.tif", values))


def test_transparency_is_laid_on_white(tmp_path):
    values = np.zeros((9, 10, 4), np.uint8)
    values[:3] = (10, 20, 30, 255)
    values[3:6, :, 3] = 51
    picture = np.asarray(open_picture(saved(tmp_path / "a.png", values)))
    assert (picture[:3] == (10, 20, 30)).all()
    assert (picture[3:6] == 204).all()
    assert (picture[6:] == 255).all()


def test_a_transparent_grey_picture(tmp_path):
    values = np.zeros((9, 10, 2), np.uint8)
    values[:4, :, 1] = 255
    Image.fromarray(values, "LA").save(tmp_path / "a.png")
    picture = np.asarray(open_picture(tmp_path / "a.png").convert("L"))
    assert (picture[:4] == 0).all() and (picture[4:] == 255).all()


@pytest.mark.parametrize("transparent", [False, True])
def test_a_palette_becomes_its_colours(tmp_path, transparent):
    indices = Image.new("P", (10, 10), 1)
    indices.putpalette([255, 0, 0, 0, 128, 0, 0, 0, 255])
    indices.paste(2, (0, 0, 10, 4))
    indices.save(tmp_path / "a.png", **({"transparency": 2} if transparent else {}))
    picture = open_picture(tmp_path / "a.png")
    assert picture.mode == "RGB"
    assert (np.asarray(picture)[:4] == ((255, 255, 255) if transparent else (0, 0, 255))).all()
    assert (np.asarray(picture)[4:] == (0, 128, 0)).all()


def test_a_picture_is_turned_upright(tmp_path):
    values = np.zeros((20, 40), np.uint8)
    values[:, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: its left side is the top
    picture = np.asarray(open_picture(saved(tmp_path / "a.png", values, exif=exif)))
    assert picture.shape == (40, 20)
    assert (picture[:10] == 255).all() and not picture[10:].any()


def test_the_default_grey_picture():
    import skimage.data

    camera = read_grey(None)
    assert camera.shape == (512, 512) and camera.dtype == np.float64
    assert (camera * 255 == skimage.data.camera()).all()


def test_a_grey_picture_is_made_no_larger_than_asked(tmp_path):
    path = saved(tmp_path / "a.png", np.full((60, 120, 3), 51, np.uint8))
    assert read_grey(path, max_side=40).shape == (20, 40)
    assert read_grey(path, max_side=500).shape == (60, 120)
    assert np.allclose(read_grey(path, max_side=40), 0.2)
    with pytest.raises(UserError, match="too narrow"):
        read_grey(path, max_side=10)


# --- one digit in MNIST's frame -------------------------------------------------------------------


def bar(height: int = 30, width: int = 15, top: int = 5, left: int = 20) -> np.ndarray:
    picture = np.full((60, 50), 0.1)
    picture[top : top + height, left : left + width] = 0.9
    return picture


def test_dark_on_light_and_light_on_dark_give_the_same_frame():
    assert np.array_equal(fit_to_frame(bar(), 28), fit_to_frame(1 - bar(), 28))
    assert fit_to_frame(bar(), 28).max() == 1


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [(30, 15, (4, 23), (9, 18)), (10, 20, (9, 18), (4, 23)), (5, 5, (4, 23), (4, 23))],
)
def test_the_box_is_twenty_pixels_long_and_centred(height, width, rows, columns):
    frame = fit_to_frame(bar(height, width), 28)
    assert frame.shape == (28, 28)
    y, x = np.nonzero(frame > 0.5)
    assert (y.min(), y.max()) == rows and (x.min(), x.max()) == columns
    assert not frame[: rows[0]].any() and not frame[:, columns[1] + 1 :].any()


def test_place_and_contrast_do_not_matter():
    frame = fit_to_frame(bar(), 28)
    assert np.array_equal(fit_to_frame(bar(top=25, left=3), 28), frame)
    assert np.array_equal(fit_to_frame(0.3 + bar() / 4, 28), frame)


def test_a_picture_with_nothing_in_it_is_told():
    for value in (0.0, 0.5, 1.0):
        with pytest.raises(UserError, match="empty"):
            fit_to_frame(np.full((40, 40), value), 28)


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(10, 12), (10, 12, 3)])
def test_png_round_trip(tmp_path, shape):
    write_png(tmp_path / "folder" / "a.png", noise(*shape))
    assert (read_png(tmp_path / "folder" / "a.png") == noise(*shape)).all()


def test_floats_are_clipped_and_rounded(tmp_path):
    write_png(tmp_path / "a.png", np.array([[-1, 0, 0.5], [0.999, 1, 2]]))
    assert read_png(tmp_path / "a.png").tolist() == [[0, 0, 128], [255, 255, 255]]


def test_gif_frames_and_durations(tmp_path):
    frames = [np.full((8, 8), 40 * i, np.uint8) for i in range(5)]
    write_gif(tmp_path / "a.gif", frames, seconds_per_frame=0.2)
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 5 and animation.info["loop"] == 0
        for i in range(5):
            animation.seek(i)
            assert animation.info["duration"] == (2000 if i == 4 else 200)
            assert (np.asarray(animation.convert("L")) == 40 * i).all()


def test_the_same_bytes_twice(tmp_path):
    frames = [noise(16, 16), noise(16, 16).T.copy()]
    for name in ("a", "b"):
        write_png(tmp_path / f"{name}.png", noise(16, 16, 3))
        write_gif(tmp_path / f"{name}.gif", frames)
    for suffix in ("png", "gif"):
        a, b = (tmp_path / f"{name}.{suffix}" for name in ("a", "b"))
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("suffix", ["png", "PNG", "jpg", "webp", "tif", "bmp"])
def test_the_suffix_decides_the_format(tmp_path, suffix):
    for shape in ((20, 30), (20, 30, 3)):
        write_picture(tmp_path / f"a.{suffix}", np.full(shape, 128, np.uint8))
        with Image.open(tmp_path / f"a.{suffix}") as picture:
            assert picture.size == (30, 20)
            assert np.abs(np.asarray(picture).astype(int) - 128).max() <= 2


@pytest.mark.parametrize("name", ["a", "a.txt", "a.pdf", "a.xyz"])
def test_other_suffixes_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"must end in \.png"):
        write_picture(tmp_path / name, np.zeros((8, 8), np.uint8))
    assert not (tmp_path / name).exists()
