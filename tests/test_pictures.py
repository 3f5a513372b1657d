from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from conftest import once
from PIL import Image, ImageCms, ImageDraw
from scipy import ndimage

from imagelab.data.datasets import Dataset, load_dataset
from imagelab.data.pictures import (
    fit_to_frame,
    open_picture,
    picture_format,
    read_grey,
    read_png,
    write_gif,
    write_picture,
    write_png,
)
from imagelab.setup.runtime import UserError
from imagelab.setup.terminal import told
from imagelab.techniques.classifier import predict, trained_classifier


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


@pytest.mark.parametrize("white", [1, 255, 65_535])
@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_noise_beyond_the_range_does_not_change_it(tmp_path, white, sigma, capsys):
    """Neither the brightest nor the darkest value says what white is."""
    told.clear()
    clean = np.linspace(0, 1, 9216).reshape(96, 96)
    values = white * (clean + np.random.default_rng(0).normal(0, sigma, clean.shape))
    tifffile.imwrite(tmp_path / "n.tif", values.astype("float32"))
    picture = np.asarray(open_picture(tmp_path / "n.tif")).astype(float)
    assert np.abs(picture - np.clip(values / white, 0, 1) * 255).max() <= 0.5001
    assert abs(picture.mean() - 127.5) < 3
    assert f"n.tif: 0 is read as black and {white:,} as white" in capsys.readouterr().err


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("name", ["a.png", "a.tif", "colours.png", "colours.tif"])
def test_whole_numbers_fill_their_bits(tmp_path, bits, name):
    """As sensors leave them in files of 16 bits; one hot pixel is no reason to take them for 16."""
    ramp = np.linspace(0, 2**bits - 1, 9216).round().astype(np.uint16).reshape(96, 96)
    ramp[50, 60] = 65_535
    expected = (np.minimum(ramp / (2**bits - 1), 1) * 255).round()
    if name.startswith("colours"):
        ramp = np.stack([ramp, ramp // 2, ramp // 4], axis=2)
        cv2.imwrite(str(tmp_path / name), ramp[..., ::-1])
        picture = np.asarray(open_picture(tmp_path / name))[..., 0]
    else:
        picture = np.asarray(open_picture(saved(tmp_path / name, ramp)))
    assert np.abs(picture - expected).max() <= 1 and (picture == expected).mean() > 0.99


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_deep_colours_are_turned_and_laid_on_white(tmp_path, name):
    values = np.full((20, 40, 3), 1000, np.uint16)
    values[:, :10] = (4095, 2000, 0)
    if name == "a.tif":
        tifffile.imwrite(tmp_path / name, values, photometric="rgb", extratags=[(274, "H", 1, 6)])
    else:
        opacity = np.full((20, 40, 1), 65_535, np.uint16)
        opacity[:, 30:] = 0
        cv2.imwrite(str(tmp_path / name), np.concatenate([values[..., ::-1], opacity], axis=2))
    picture = np.asarray(open_picture(tmp_path / name))
    if name == "a.tif":  # to be turned clockwise: its left side is the top
        assert picture.shape == (40, 20, 3)
        picture = picture.transpose(1, 0, 2)
    assert (picture[:, :10] == (255, 125, 0)).all() and (picture[:, 10:30] == 62).all()
    assert (picture[:, 30:] == (255 if name == "a.png" else 62)).all()


def test_a_range_that_tags_state(tmp_path):
    values = np.linspace(0, 3, 100, dtype=np.float32).reshape(10, 10)
    tags = [(340, "f", 1, 1.0), (341, "f", 1, 2.0)]
    tifffile.imwrite(tmp_path / "a.tif", values, extratags=tags)
    picture = np.asarray(open_picture(tmp_path / "a.tif"))
    assert np.abs(picture - np.clip(values - 1, 0, 1) * 255).max() <= 0.5001
    whole = np.arange(100, dtype=np.uint16).reshape(10, 10)
    tifffile.imwrite(tmp_path / "b.tif", whole, description="ImageJ=1.53t\nmin=10.0\nmax=60.0\n")
    picture = np.asarray(open_picture(tmp_path / "b.tif"))
    assert np.abs(picture - np.clip((whole - 10.0) / 50, 0, 1) * 255).max() <= 0.5001


def display_p3() -> tuple[bytes, np.ndarray]:
    """A profile with the primaries of Display P3, and what turns its linear colours into sRGB's."""
    own = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    primaries = {"rXYZ": (0.51512, 0.24120, -0.00105), "gXYZ": (0.29198, 0.69225, 0.04189),
                 "bXYZ": (0.15710, 0.06657, 0.78407)}  # fmt: skip
    srgb = []
    for name, xyz in primaries.items():
        entry = own.index(name.encode(), 128)
        at = struct.unpack(">I", own[entry + 4 : entry + 8])[0] + 8
        srgb.append(np.array(struct.unpack(">3i", own[at : at + 12])) / 65_536)
        own[at : at + 12] = struct.pack(">3i", *(round(value * 65_536) for value in xyz))
    return bytes(own), np.linalg.inv(np.transpose(srgb)) @ np.transpose(list(primaries.values()))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_colours_of_a_profile_become_srgb(tmp_path, suffix):
    profile, matrix = display_p3()
    colour = np.array([190, 120, 100])
    linear = matrix @ (((colour / 255 + 0.055) / 1.055) ** 2.4)
    expected = 255 * (1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(expected - colour).max() > 8  # so much would be wrong
    path = tmp_path / f"a.{suffix}"
    values = np.full((16, 16, 3), colour, np.uint8)
    saved(path, values, icc_profile=profile, **({} if suffix == "tif" else {"quality": 100}))
    picture = np.asarray(open_picture(path)).astype(float)
    assert np.abs(picture - expected).max() < 3


def test_a_profile_that_is_none(tmp_path, capsys):
    told.clear()
    path = saved(tmp_path / "a.png", noise(16, 16, 3), icc_profile=b"no profile")
    assert (np.asarray(open_picture(path)) == noise(16, 16, 3)).all()
    assert "profile does not fit" in capsys.readouterr().err


def test_srgb_stays_as_it_is(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = saved(tmp_path / "a.png", noise(40, 40, 3), icc_profile=profile)
    assert (np.asarray(open_picture(path)) == noise(40, 40, 3)).all()


@pytest.mark.parametrize("suffix", ["tif", "gif"])
def test_of_further_pages_it_is_said(tmp_path, suffix, capsys):
    told.clear()
    pages = [Image.fromarray(noise(16, 16) // k) for k in (1, 2)]
    pages[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=pages[1:])
    assert (np.asarray(open_picture(tmp_path / f"a.{suffix}").convert("L")) == noise(16, 16)).all()
    assert "further pages or frames, which are passed over" in capsys.readouterr().err


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


def corner_stroke(width: int = 6) -> np.ndarray:
    """An L, whose centre of mass is not the middle of its box; dark on light."""
    picture = Image.new("L", (200, 240), 230)
    ImageDraw.Draw(picture).line([(60, 40), (60, 200), (150, 200)], fill=30, width=width)
    return np.asarray(picture) / 255


def test_the_centre_of_mass_lies_in_the_middle():
    frame = fit_to_frame(corner_stroke(20), 28)
    y, x = np.nonzero(frame > 0.5)
    assert y.max() - y.min() == 19
    assert ndimage.center_of_mass(frame) == pytest.approx((13.5, 13.5), abs=0.5)
    assert (y.min() + y.max()) / 2 < 12.5 and (x.min() + x.max()) / 2 > 14.5  # not its box


def test_uneven_light_and_grain_change_little():
    page = corner_stroke()
    y, x = np.mgrid[:1:240j, :1:200j]
    photograph = page * (1 - 0.6 * x - 0.2 * y**2)
    photograph += np.random.default_rng(0).normal(0, 0.03, page.shape)
    difference = fit_to_frame(photograph.clip(0, 1), 28) - fit_to_frame(page, 28)
    assert np.sqrt((difference**2).mean()) < 0.07


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_thin_strokes_are_made_as_thick_as_those_of_mnist(width):
    frame = fit_to_frame(corner_stroke(width), 28)
    assert 2 < frame[8].sum() < 3.5 and frame[8].max() > 0.9  # across the upright stroke
    assert fit_to_frame(corner_stroke(50), 28)[8].sum() > 4.5  # a thick one stays so


def test_specks_do_not_count():
    page = corner_stroke()
    page[10:12, 180:183] = page[225:228, 20:22] = 0
    assert np.array_equal(fit_to_frame(page, 28), fit_to_frame(corner_stroke(), 28))


# --- drawn by hand, read by the classifier --------------------------------------------------------


def arc(x: float, y: float, rx: float, ry: float, start: int, end: int) -> list:
    """Points of an ellipse, angles in degrees, clockwise from the right."""
    angles = np.radians(np.linspace(start, end, 40))
    return [(x + rx * np.cos(a), y + ry * np.sin(a)) for a in angles]


STROKES = {  # of each digit, in a box from 0 to 1
    0: [arc(0.5, 0.5, 0.32, 0.5, -90, 270)],
    1: [[(0.5, 0), (0.5, 1)]],
    2: [[*arc(0.5, 0.28, 0.3, 0.28, 190, 390), (0.2, 1), (0.82, 1)]],
    3: [arc(0.45, 0.25, 0.3, 0.25, 200, 450) + arc(0.45, 0.73, 0.35, 0.27, -90, 150)],
    4: [[(0.45, 0), (0.12, 0.6), (0.88, 0.6)], [(0.68, 0.25), (0.68, 1)]],
    5: [[(0.8, 0), (0.3, 0), (0.25, 0.42), *arc(0.45, 0.69, 0.36, 0.31, -120, 140)]],
    6: [arc(0.75, 0.6, 0.55, 0.6, -100, -180) + arc(0.48, 0.72, 0.28, 0.28, 180, 540)],
    7: [[(0.15, 0), (0.85, 0), (0.4, 1)]],
    8: [arc(0.5, 0.25, 0.25, 0.25, 90, 450) + arc(0.5, 0.75, 0.3, 0.25, -90, 270)],
    9: [arc(0.48, 0.28, 0.28, 0.28, 0, 360), [(0.74, 0.45), (0.6, 1)]],
}


def drawn(digit: int, side: int, height: int, width: int, ink: int, page: int, slant: float):
    """A digit of that height in the midst of a square page, by a pen of that width, (side, side)."""
    picture = Image.new("L", (side, side), page)
    pen = ImageDraw.Draw(picture)
    for stroke in STROKES[digit]:
        line = [(side / 2 + height * (0.75 * (x - 0.5) - slant * (y - 0.5)),
                 side / 2 + height * (y - 0.5)) for x, y in stroke]  # fmt: skip
        pen.line(line, fill=ink, width=width, joint="curve")
    return np.asarray(picture) / 255


def photographed(page: np.ndarray, seed: int) -> np.ndarray:
    """In light that falls off to one side by half, and with the grain of a small sensor."""
    y, x = np.mgrid[: 1 : page.shape[0] * 1j, : 1 : page.shape[1] * 1j]
    light = 1 - 0.4 * x - 0.15 * y - 0.1 * (x - 0.5) ** 2
    grain = np.random.default_rng(seed).normal(0, 0.04, page.shape)
    return (page * light + grain).clip(0, 1)


@pytest.fixture(scope="module")
def mnist() -> Dataset:
    return load_dataset("mnist-5k", Path())


@pytest.fixture(scope="module")
def reader(mnist, tmp_path_factory):
    """What reads pictures (H, W): the classifier as fgsm.py trains it, after fit_to_frame."""
    folder = once(tmp_path_factory, "reader", lambda place: trained_classifier(mnist, place))
    model = trained_classifier(mnist, folder)

    def read(pictures: list[np.ndarray]) -> torch.Tensor:
        frames = np.stack([fit_to_frame(picture, 28) for picture in pictures])
        return predict(model, torch.from_numpy(frames).float()[:, None]).argmax(dim=1)

    return read


DARK, LIGHT, PENCIL = {"ink": 30, "page": 230}, {"ink": 240, "page": 15}, {"ink": 140, "page": 215}


@pytest.mark.parametrize("slant", [0.0, 0.25])
@pytest.mark.parametrize(
    ("side", "height", "width", "colours", "photo"),
    [
        (400, 240, 10, DARK, False), (400, 240, 2, DARK, False), (400, 240, 40, DARK, False),
        (400, 240, 10, LIGHT, False), (400, 240, 2, LIGHT, False), (28, 20, 2, LIGHT, False),
        (1800, 500, 3, DARK, False), (600, 120, 3, PENCIL, False), (400, 240, 8, DARK, True),
        (600, 240, 4, PENCIL, True), (400, 240, 10, LIGHT, True),
    ],
)  # fmt: skip
def test_a_drawn_digit_is_read(reader, side, height, width, colours, photo, slant):
    """By pens of all widths, on small and large pages, dark on light and light on dark."""
    pages = [drawn(digit, side, height, width, **colours, slant=slant) for digit in range(10)]
    if photo:
        pages = [photographed(page, digit) for digit, page in enumerate(pages)]
    assert (reader(pages) == torch.arange(10)).sum() >= 9


def test_real_digits_are_read_as_well_on_a_photographed_page(reader, mnist):
    """MNIST's held-out digits, enlarged and put off the middle of a page."""
    pages = []
    for seed, image in enumerate(mnist.test_images[:100, 0].numpy()):
        page = np.full((400, 500), 0.85)
        ink = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC)) / 255
        page[100:324, 180:404] -= 0.7 * ink
        pages.append(photographed(page, seed))
    labels = mnist.test_labels[:100]
    as_they_are = [image / 255 for image in mnist.test_images[:100, 0].numpy()]
    for pictures in (as_they_are, pages):
        assert (reader(pictures) == labels).float().mean() > 0.95


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


@pytest.mark.parametrize("name", ["a", "a.txt", "a.pdf", "a.xyz", "a.ico", "a.msp"])
def test_other_suffixes_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"must end in \.png"):
        write_picture(tmp_path / name, np.zeros((8, 8), np.uint8))
    assert not (tmp_path / name).exists()


def test_the_only_original_is_not_written_over(tmp_path):
    path = saved(tmp_path / "a.png", noise(16, 16))
    (tmp_path / "link.png").symlink_to(path)
    (tmp_path / "lost.png").symlink_to(tmp_path / "unmounted" / "b.png")
    for name in ("a.png", "link.png", "../" + tmp_path.name + "/a.png"):
        with pytest.raises(UserError, match="choose another --output"):
            picture_format(tmp_path / name, path)
    with pytest.raises(UserError, match=r"a link to .*b.png, which is not there"):
        picture_format(tmp_path / "lost.png", path)
    with pytest.raises(UserError, match="which is not there"):
        write_png(tmp_path / "lost.png", noise(16, 16))
    assert (tmp_path / "lost.png").is_symlink()
    assert picture_format(tmp_path / "other.png", path) == "PNG"
