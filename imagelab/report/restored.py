"""Pictures that compare methods of restoration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from imagelab.report import figures
from imagelab.techniques.restoration import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_restored(
    found: Comparison, clean: dict[str, np.ndarray], side: int | None = None
) -> Figure:
    """A row per picture: clean, noisy, and by each method. The highest PSNR of each row is framed.

    `side`: only the middle `side` × `side` pixels are shown.
    """
    from matplotlib.patches import Rectangle

    names, (first, *_) = ["clean", *next(iter(found.values()))], clean.values()
    height = 1.95 * (1 if side else first.shape[0] / first.shape[1]) + 0.3
    figure, axes = figures.new_figure(
        1.85 * len(names), height * len(found), len(found), len(names)
    )
    for k, (row, (name, restored)) in enumerate(zip(axes, found.items(), strict=True)):
        best = max(restored, key=lambda method: restored[method].psnr)
        for axis, method in zip(row, names, strict=True):
            title = "" if method == "clean" else f"{restored[method].psnr:.1f} dB"
            picture = clean[name] if method == "clean" else restored[method].picture.clip(0, 1)
            title = title if k else f"{method}\n{title}"
            figures.show_image(axis, middle(picture, side) if side else picture, title)
            if method == best:
                box = Rectangle((0, 0), 1, 1, transform=axis.transAxes, fill=False, clip_on=False)
                box.set(linewidth=4, edgecolor=figures.PALETTE[1])
                axis.add_patch(box)
    names = [name.replace(" = ", "\u00a0=\u00a0") for name in found]  # on one line
    figures.name_rows(axes, names)
    return figure


def middle(picture: np.ndarray, side: int) -> np.ndarray:
    """The middle `side` × `side` pixels."""
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    return picture[top : top + side, left : left + side]
