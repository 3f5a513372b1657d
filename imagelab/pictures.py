"""Reading any picture file into a float array, and writing arrays as PNG or GIF."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from imagelab.files import atomic_path
from imagelab.runtime import UserError

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


def fit_to_frame(picture: np.ndarray, size: int) -> np.ndarray:
    """A picture of one digit as MNIST has it: light on dark, its box scaled to 20/28 of the frame.

    Takes (H, W) in [0, 1], dark on light or light on dark, and returns (size, size) in [0, 1]. The
    background is the median of the border; ink is what differs from it by a third of the range.
    """
    from PIL import Image

    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    ink = picture - np.median(border)
    ink = ink if ink.max() >= -ink.min() else -ink
    ink = np.clip(ink, 0, None) / max(ink.max(), 1e-6)
    rows, columns = np.nonzero(ink > 1 / 3)
    if len(rows) == 0:
        raise UserError(
            "The picture is empty: there is nothing in it that stands out from its border."
        )
    box = Image.fromarray(as_uint8(ink)).crop(
        (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    )
    inner = round(size * 20 / 28)
    scale = inner / max(box.size)
    box = box.resize(
        (max(round(box.width * scale), 1), max(round(box.height * scale), 1)),
        Image.Resampling.LANCZOS,
    )
    frame = Image.new("L", (size, size))
    frame.paste(box, ((size - box.width) // 2, (size - box.height) // 2))
    return np.asarray(frame, dtype=np.float64) / 255


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


def as_uint8(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    return np.clip(np.asarray(image) * 255, 0, 255).round().astype(np.uint8)
