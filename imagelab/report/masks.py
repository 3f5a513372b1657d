"""Pictures under the colours of the classes of their pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from imagelab.data.masks import IGNORE
from imagelab.report import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "sky": "#56B4E9", "road": "#999999", "marking": "#F0E442", "building": "#D55E00",
    "vegetation": "#009E73", "tree": "#009E73", "car": "#0072B2", "pedestrian": "#CC79A7",
    "pole": "#000000", "pavement": "#E69F00", "sign": "#F0E442", "fence": "#882255",
    "bicyclist": "#DDDDDD", "other": "#000000",
}  # fmt: skip


def colours(classes: tuple[str, ...]) -> np.ndarray:
    """An RGB colour (classes, 3) of 0 to 255 for each class."""
    spare = figures.CLASS_COLOURS
    names = [COLOURS.get(name, spare[k % len(spare)]) for k, name in enumerate(classes)]
    return np.array([figures.rgb(name) for name in names], np.float64)


def overlay(picture: np.ndarray, mask: np.ndarray, palette: np.ndarray, strength: float = 0.5):
    """Picture (H, W, 3) uint8 under the colours of its classes (H, W). No class, no colour."""
    import cv2

    known = mask != IGNORE
    flat = palette.astype(np.uint8)[np.where(known, mask, 0)]
    covered = cv2.addWeighted(picture, 1 - strength, flat, strength, 0)
    return np.where(known[..., None], covered, picture)


def add_legend(figure: Figure, classes: tuple[str, ...]) -> None:
    """The colours of the classes, below the pictures."""
    from matplotlib.patches import Patch

    named = zip(colours(classes) / 255, classes, strict=True)
    patches = [Patch(facecolor=rgb, edgecolor="#444444", label=name) for rgb, name in named]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(classes), 7))


def plot_overlays(images, masks, predicted, classes: tuple[str, ...]) -> Figure:
    """Pictures (N, 3, H, W) above their true and predicted classes (N, H, W), all uint8."""
    palette = colours(classes)
    figure, axes = figures.new_figure(3 * len(images), 6.8, 3, len(images))
    for column, image, *masks_of_it in zip(axes.T, images, masks, predicted, strict=True):
        picture = image.permute(1, 2, 0).cpu().numpy()
        figures.show_image(column[0], picture)
        for axis, mask in zip(column[1:], masks_of_it, strict=True):
            figures.show_image(axis, overlay(picture, mask.cpu().numpy(), palette, 0.6))
    figures.name_rows(axes, ("picture", "true classes", "predicted"))
    add_legend(figure, classes)
    return figure
