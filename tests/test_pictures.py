from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from imagelab.data.pictures import (
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
    words = "ImageJ=1.53t\nmin=10.0\nmax=60.0\n"
    Image.fromarray(whole).save(tmp_path / "b.tif", description=words)
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
    with pytest.raises(UserError, match=r"a link to .*b.png, which does not exist"):
        picture_format(tmp_path / "lost.png", path)
    with pytest.raises(UserError, match="which does not exist"):
        write_png(tmp_path / "lost.png", noise(16, 16))
    assert (tmp_path / "lost.png").is_symlink()
    assert picture_format(tmp_path / "other.png", path) == "PNG"
