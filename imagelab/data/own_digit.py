"""A digit that somebody drew or photographed, brought into MNIST's frame."""

from __future__ import annotations

import math

import numpy as np

from imagelab.setup.runtime import UserError

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
        int(np.clip(round((size - 1) / 2 - float(centre)), 0, size - side))
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
    # Without an array to write into, these are two.
    parts, count = ndimage.label(  # pyright: ignore[reportGeneralTypeIssues]
        ink > ink.max() / 3, np.ones((3, 3))
    )
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
