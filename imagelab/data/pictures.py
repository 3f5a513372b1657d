"""Reading any picture file into a float array, and writing arrays as PNG, GIF or WebP."""

from __future__ import annotations

import base64
import io
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from imagelab.setup.files import atomic_path
from imagelab.setup.runtime import UserError

MIN_SIDE, MAX_SIDE = 8, 12_000  # pixels


def open_picture(path: Path):
    """An upright PIL image in mode 'L' or 'RGB'; transparency is laid on white.

    Raises UserError: missing, unreadable, not a picture, cut short, or a side outside 8 … 12,000
    pixels (a decompression bomb is refused before it is decoded).
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no picture {path}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", Image.DecompressionBombWarning
            )  # sides are checked below
            picture = Image.open(path)
        if not all(MIN_SIDE <= side <= MAX_SIDE for side in picture.size):
            raise UserError(
                f"{path} is {picture.width}×{picture.height} pixels; both sides must lie "
                f"between {MIN_SIDE} and {MAX_SIDE:,}."
            )
        is_png = picture.format == "PNG"  # some Pillow releases open 16 bits as mode I
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith(("I", "F")):  # 16-bit and floating-point greys
            sixteen_bit = picture.mode.startswith("I;16") or is_png
            values = np.asarray(picture, dtype=np.float64)
            return Image.fromarray(_to_8_bit(values, path, sixteen_bit))
        if "A" in picture.getbands() or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture).convert("RGB")
        grey = picture.mode in ("1", "L")
        return picture.convert("L" if grey else "RGB")
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not a picture that can be read.") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} has far more pixels than {MAX_SIDE:,}×{MAX_SIDE:,}.") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged and cannot be read ({error}).") from error


def _to_8_bit(values: np.ndarray, path: Path, sixteen_bit: bool) -> np.ndarray:
    if not np.isfinite(values).all():
        raise UserError(f"{path} holds values that are no numbers (NaN or infinity).")
    high = values.max()
    full_scale = 65_535.0
    if not sixteen_bit and high <= 255:  # floating point does not say what its white is
        full_scale = 1.0 if high <= 1 else 255.0
    return np.clip(values / full_scale * 255, 0, 255).round().astype(np.uint8)


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


# --- one digit as MNIST has it --------------------------------------------------------------------

SEEN_AT = 500  # pixels of the longer side at which a digit is looked for
STROKE = 2.8 / 20  # the usual width of MNIST's strokes, of the longer side of the digit's box


def fit_to_frame(picture: np.ndarray, size: int) -> np.ndarray:
    """A picture of one digit as MNIST has it: light on dark, its box scaled to 20/28 of the frame.

    Takes (H, W) in [0, 1], dark on light or light on dark, drawn or photographed in uneven light if the
    page fills the picture, and returns (size, size) in [0, 1]. The centre of the ink's mass lies in the
    middle; strokes thinner than MNIST's are made as thick. Raises UserError where nothing is drawn.
    """
    from scipy import ndimage

    ink = find_ink(picture)
    rows, columns = np.nonzero(ink)
    ink = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    digit = scaled(as_thick_as_mnist(ink), round(size * 20 / 28))
    top, left = (
        int(np.clip(round((size - 1) / 2 - centre), 0, size - side))
        for centre, side in zip(ndimage.center_of_mass(digit), digit.shape, strict=True)
    )
    frame = np.zeros((size, size))
    frame[top : top + digit.shape[0], left : left + digit.shape[1]] = digit
    return frame


def find_ink(picture: np.ndarray) -> np.ndarray:
    """How much of the page each pixel hides: (H, W) in [0, 1], 0 off the strokes, 1 within them.

    Strokes are what hides a third of what the darkest spot hides; specks, which are smaller than a
    twentieth of the largest part, do not count.
    """
    from scipy import ndimage

    picture = scaled(picture, min(max(picture.shape), SEEN_AT))
    page = page_behind(picture)
    if ((picture - page) ** 3).sum() > 0:  # light on dark
        picture, page = 1 - picture, 1 - page
    ink = (page - picture) / np.maximum(page, 0.05)  # a share: shade darkens ink and page alike
    grain = max(ink.shape) / SEEN_AT  # a pixel or less
    ink = ndimage.gaussian_filter(ink.clip(0, 1), grain)
    if ink.max() < 0.02:
        raise UserError(
            "The picture is empty: there is nothing in it that stands out from its border."
        )
    parts, count = ndimage.label(ink > ink.max() / 3, np.ones((3, 3)))
    areas = np.bincount(parts.ravel(), minlength=count + 1)
    areas[0] = 0
    strokes = (areas >= areas.max() / 20)[parts]
    return np.where(strokes, (ink / np.median(ink[strokes])).clip(0, 1), 0)


def page_behind(picture: np.ndarray) -> np.ndarray:
    """The page without what is drawn on it, (H, W): a surface of second degree, as light falls on it.

    It is fitted to the border first, then again and again to all that lies near it.
    """
    height, width = picture.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=2)
    rim = max(min(height, width) // 20, 1)
    border = np.ones((height, width), bool)
    border[rim:-rim, rim:-rim] = False
    step = max(max(height, width) // 100, 1)  # fewer points tell as much
    some, grey, paper = (a[::step, ::step] for a in (terms, picture, border))
    for _ in range(10):
        surface = np.linalg.lstsq(some[paper], grey[paper], rcond=None)[0]
        distance = np.abs(grey - some @ surface)
        paper = distance <= max(4 * np.median(distance[paper]), 0.01)
    return terms @ surface


def as_thick_as_mnist(ink: np.ndarray) -> np.ndarray:
    """Strokes (H, W) in [0, 1], grown to STROKE where they are thinner; the picture grows with them."""
    from scipy import ndimage
    from skimage.morphology import skeletonize

    width = ink.sum() / skeletonize(ink > 0).sum()  # area by length
    r = (STROKE * max(ink.shape) - width) / 2
    if r <= 0:
        return ink
    distance = ndimage.distance_transform_edt(np.pad(ink, math.ceil(r)) == 0)
    return np.clip(1 + r - distance, 0, 1)


def scaled(picture: np.ndarray, side: int) -> np.ndarray:
    """(H, W) in [0, 1], scaled so that the longer side has `side` pixels."""
    from PIL import Image

    height, width = (max(round(n * side / max(picture.shape)), 1) for n in picture.shape)
    image = Image.fromarray(picture.astype(np.float32))
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image, dtype=np.float64).clip(0, 1)


# --- writing --------------------------------------------------------------------------------------


def write_png(path: Path, image: np.ndarray) -> None:
    """Write (H, W) or (H, W, 3), uint8 or float in [0, 1] (clipped, rounded), as PNG."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(as_uint8(image)).save(temporary, format="PNG", optimize=True)


def picture_format(path: Path) -> str:
    """The format that the suffix of `path` asks for; UserError if pictures cannot be written so."""
    from PIL import Image

    Image.init()
    name = Image.registered_extensions().get(path.suffix.lower())
    if name not in Image.SAVE or name in ("PDF", "GIF"):
        raise UserError(f"{path} must end in .png, .jpg, .webp, .tif or .bmp.")
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
