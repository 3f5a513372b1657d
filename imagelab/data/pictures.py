"""Reading any picture file into a float array, and writing arrays as PNG, GIF or WebP."""

from __future__ import annotations

import base64
import contextlib
import io
import math
import re
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imagelab.setup.files import atomic_path, keep_apart
from imagelab.setup.runtime import UserError
from imagelab.setup.terminal import readable, tell_once

if TYPE_CHECKING:
    from PIL import Image

MIN_SIDE, MAX_SIDE = 8, 12_000  # pixels
# The formats that are written: any size, 8-bit colours.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "AVIF")
ORIENTATION = 0x0112  # the EXIF tag


@contextlib.contextmanager
def opened(path: Path) -> Iterator:
    """The first picture of a file as Pillow opens it, its sides checked, its pixels not yet read.

    Raises UserError, also for what goes wrong inside the block: missing, no file, unreadable, not a
    picture, cut short, or a side outside 8 … 12,000 pixels (a decompression bomb is refused before it
    is decoded). Of further pages or frames it is said that they are passed over.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no picture {readable(path)}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", Image.DecompressionBombWarning
            )  # sides are checked below
            picture = Image.open(path)
        with picture:
            if not all(MIN_SIDE <= side <= MAX_SIDE for side in picture.size):
                raise UserError(
                    f"{readable(path)} is {picture.width}×{picture.height} pixels; both sides must "
                    f"lie between {MIN_SIDE} and {MAX_SIDE:,}."
                )
            _tell_of_more_pages(picture, path)
            yield picture
    except UnidentifiedImageError as error:
        raise UserError(f"{readable(path)} is not a picture that can be read.") from error
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{readable(path)} has far more pixels than {MAX_SIDE:,}×{MAX_SIDE:,}."
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise UserError(
            f"{readable(path)} is damaged and cannot be read ({readable(error)})."
        ) from error


def _tell_of_more_pages(picture, path: Path) -> None:
    """Not of a camera's MPO, whose further pictures are previews and maps of light."""
    if picture.format != "MPO" and getattr(picture, "is_animated", False):
        tell_once("it has further pages or frames, which are passed over.", path)


def exif_orientation(path: Path) -> int:
    """From 1 (upright) to 8: how `open_picture` turns the picture, the sides exchanged from 5 on."""
    with opened(path) as picture:
        number = picture.getexif().get(ORIENTATION, 1)
    return number if number in range(1, 9) else 1


def open_picture(path: Path) -> Image.Image:
    """An upright PIL image in mode 'L' or 'RGB'; transparency is laid on white, and the colours of an
    embedded profile are converted to sRGB.

    Values of more than 8 bits are scaled as `value_range` says, which is told. Raises UserError as
    `opened` does.
    """
    from PIL import Image, ImageOps

    with opened(path) as file:
        deep = file.mode.startswith(("I", "F")) or _has_deep_colours(file)
        profile, grey = file.info.get("icc_profile"), file.mode in ("1", "L")
        file.load()
        ImageOps.exif_transpose(file, in_place=True)  # no second copy of a large picture
        picture = file
        if deep:
            grey = file.mode.startswith(("I", "F"))
            values = np.asarray(picture) if grey else _deep_colours(path)
            picture = Image.fromarray(_to_8_bit(values, path, file))
        if "A" in picture.getbands() or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            colours = _to_srgb(picture.convert("RGB"), profile, path).convert("RGBA")
            colours.putalpha(picture.getchannel("A"))
            white = Image.new("RGBA", picture.size, "white")
            return Image.alpha_composite(white, colours).convert("RGB")
        if picture.mode not in ("L", "RGB", "CMYK"):
            picture = picture.convert("L" if grey else "RGB")
        picture, mode = _to_srgb(picture, profile, path), "L" if grey else "RGB"
        return picture if picture.mode == mode else picture.convert(mode)


def read_colours(path: Path, rows: int = 512) -> np.ndarray:
    """A picture in colour, (H, W, 3) uint8; `open_picture` says what is raised.

    It is handed over so many rows at a time: all at once Pillow needs memory for three pictures.
    """
    picture = open_picture(path)
    width, height = picture.size
    colours = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        part = picture.crop((0, top, width, min(top + rows, height)))
        colours[top : top + rows] = np.asarray(part.convert("RGB"))
    return colours


# --- colours --------------------------------------------------------------------------------------


def _to_srgb(picture: Image.Image, profile: bytes | None, path: Path) -> Image.Image:
    """The picture in sRGB (of a grey one, three channels), from the colours of its profile.

    As it is without a profile, or where this changes no value by more than rounding does.
    """
    from PIL import ImageChops, ImageCms

    if not profile:
        return picture
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(
            picture, own, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        tell_once("its colour profile does not fit; its colours are read as sRGB.", path)
        return picture
    assert converted is not None  # as it is only with inPlace
    change = ImageChops.difference(converted, picture.convert("RGB"))
    # Of three channels these are pairs.
    most = max(high for _, high in change.getextrema())  # pyright: ignore[reportGeneralTypeIssues]
    return converted if most > 2 else picture


def _has_deep_colours(picture) -> bool:
    """Whether the file holds 16 bits per colour, of which Pillow reads the upper 8."""
    return picture.mode in ("RGB", "RGBA", "LA") and any(
        ";16" in str(tile[3]) for tile in picture.tile
    )


def _deep_colours(path: Path) -> np.ndarray:
    """All 16 bits of a file's colours, upright, (H, W, 3), or (H, W, 4) with opacity."""
    import cv2

    values = None
    with contextlib.suppress(cv2.error):
        values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        raise UserError(f"{readable(path)} has colours of 16 bits in a form that cannot be read.")
    return values[..., [2, 1, 0, 3][: values.shape[2]]]


# --- values of more than 8 bits -------------------------------------------------------------------


def _to_8_bit(values: np.ndarray, path: Path, file) -> np.ndarray:
    """Values (H, W) or (H, W, 3 or 4, the last one opacity of 16 bits) to uint8, clipped, rounded."""
    if not np.isfinite(values).all():
        raise UserError(f"{readable(path)} holds values that are not finite (NaN or infinity).")
    colours = values[..., :3] if values.ndim == 3 else values
    black, white, why = value_range(colours, file)
    tell_once(f"{black:,.6g} is read as black and {white:,.6g} as white, {why}.", path)
    scaled = colours.astype(np.float32)
    scaled -= black
    scaled *= 255 / (white - black)
    eight = np.rint(np.clip(scaled, 0, 255, out=scaled), out=scaled).astype(np.uint8)
    if values.ndim == 3 and values.shape[2] == 4:
        eight = np.concatenate([eight, (values[..., 3:] // 257).astype(np.uint8)], axis=2)
    return eight


def value_range(values: np.ndarray, file) -> tuple[float, float, str]:
    """Which values are black and white in a file of more than 8 bits, and in words, why.

    Its format or its tags say so, or the values themselves: whole numbers fill 1, 8, 10, 12, 14, 16, ...
    bits, all but a thousandth of them; other numbers reach to 1, 255, 4,095 or 65,535, whichever is
    nearest, where as much as lies below 0 is taken for noise above.
    """
    if (
        file.format in ("PPM", "JPEG2000") and file.mode != "F"
    ):  # Pillow has scaled these by the header
        return 0, 65_535, "as its format says"
    tagged = _tagged_range(getattr(file, "tag_v2", {}))
    if tagged is not None:
        return *tagged, "as its tags say"
    why = "as its values suggest"
    some = values.ravel()[:: max(values.size // 1_000_000, 1)].astype(np.float64)
    some = some[some != 0]
    if some.size == 0:
        return 0, 1, why
    if (some == np.rint(some)).all():
        most = np.quantile(some, 0.999, method="lower")
        return 0, next((2**b - 1 for b in (1, 8, 10, 12, 14, 16, 24, 32) if most < 2**b), most), why
    low, high = np.quantile(some, (0.01, 0.99))
    level = math.log(max(high + min(low, 0), 1))
    return 0, min((1, 255, 4095, 65_535), key=lambda white: abs(math.log(white) - level)), why


def _tagged_range(tags) -> tuple[float, float] | None:
    """The range that a TIFF's tags state: its smallest and largest sample value, what ImageJ shows as
    black and white, or bits that fill no whole bytes. A type's own range states nothing."""
    stated = [
        (tags.get(low, 0), tags[high]) for low, high in ((340, 341), (280, 281)) if high in tags
    ]
    words = str(tags.get(270, ""))
    if words.startswith("ImageJ="):
        shown = dict(re.findall(r"^(min|max)=(\S+)$", words, re.MULTILINE))
        stated += [(shown["min"], shown["max"])] if len(shown) == 2 else []
    bits = np.max(tags.get(258, 8))
    stated += [(0, 2**bits - 1)] if bits % 8 else []
    for pair in stated:
        with contextlib.suppress(ValueError, TypeError):  # no numbers
            black, white = float(np.min(np.float64(pair[0]))), float(np.max(np.float64(pair[1])))
            if -math.inf < black < white < math.inf and white not in (2**16 - 1, 2**32 - 1):
                return black, white
    return None


def read_grey(path: Path | None, max_side: int | None = None) -> np.ndarray:
    """A grey picture, (H, W) float64 in [0, 1]; `None` is scikit-image's photograph `camera`.

    Scaled down, proportions kept, so that the longer side has at most `max_side` pixels.
    """
    from PIL import Image

    if path is None:
        import skimage.data

        picture = Image.fromarray(skimage.data.camera())
    else:
        picture = open_picture(path).convert("L")
    if max_side is not None:
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    if min(picture.size) < MIN_SIDE:
        raise UserError(
            f"{path} is too narrow: {picture.width}×{picture.height} pixels at this size."
        )
    return np.asarray(picture, dtype=np.float64) / 255


# --- writing --------------------------------------------------------------------------------------


def write_png(path: Path, image: np.ndarray) -> None:
    """Write (H, W) or (H, W, 3), uint8 or float in [0, 1] (clipped, rounded), as PNG."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(as_uint8(image)).save(temporary, format="PNG", optimize=True)


def picture_format(path: Path, *sources: Path | str) -> str:
    """The format that the suffix of `path` asks for.

    Raises UserError if pictures cannot be written so, or if `path` is one of `sources` or a link that
    leads nowhere.
    """
    from PIL import Image

    Image.init()
    name = Image.registered_extensions().get(path.suffix.lower())
    if name not in FORMATS or name not in Image.SAVE:
        raise UserError(f"{readable(path)} must end in .png, .jpg, .webp, .tif or .bmp.")
    keep_apart(path, *sources)
    return name


def write_picture(path: Path, image: np.ndarray) -> None:
    """Write (H, W) or (H, W, 3), uint8 or float in [0, 1], in the format of its suffix."""
    from PIL import Image

    name = picture_format(path)
    with atomic_path(path) as temporary:
        Image.fromarray(as_uint8(image)).save(temporary, format=name, quality=95)


def read_png(path: Path) -> np.ndarray:
    """A picture that `write_png` wrote, uint8."""
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture)


def write_gif(path: Path, frames: list[np.ndarray], seconds_per_frame: float = 0.3) -> None:
    """An endless animation; the last frame stays for two seconds."""
    from PIL import Image

    pages = [Image.fromarray(as_uint8(f)) for f in frames]
    durations = [round(seconds_per_frame * 1000)] * (len(pages) - 1) + [2000]
    with atomic_path(path) as temporary:
        pages[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=pages[1:],
            duration=durations,
            loop=0,
        )


def webp(frames: list[np.ndarray], **how: Any) -> bytes:
    """A picture, or an animation of several, (H, W) or (H, W, 3) uint8 each, as WebP.

    `how` are Pillow's options: lossless, quality, duration, loop.
    """
    from PIL import Image

    first, *others = map(Image.fromarray, frames)
    buffer = io.BytesIO()
    if others:
        how |= {"save_all": True, "append_images": others}
    first.save(buffer, format="WEBP", **how)
    return buffer.getvalue()


def data_url(raw: bytes, kind: str) -> str:
    """A file inside a page; `kind` is its media type, "image/webp"."""
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"


def as_uint8(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    return np.clip(np.asarray(image) * 255, 0, 255).round().astype(np.uint8)
