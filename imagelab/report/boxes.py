"""Draw boxes into a picture, each with its class and score."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch

from imagelab.report import figures


def draw_boxes(
    picture: np.ndarray,
    detections: dict[str, torch.Tensor],
    classes: tuple[str, ...],
    min_score: float = 0.0,
    scale: float = 1.0,
) -> np.ndarray:
    """A copy of a picture (H, W, 3) uint8 with the boxes, classes and scores of `detections` on it.

    `detections` holds boxes (n, 4) x1 y1 x2 y2, labels (n,) and, for detectors that give them, scores
    (n,) from 0 to 1. The boxes are divided by `scale`. Boxes with a score under `min_score` are not
    drawn.
    """
    import cv2

    drawn = np.ascontiguousarray(picture).copy()
    thick = max(round(max(picture.shape) / 400), 1)
    boxes, labels = detections["boxes"].tolist(), detections["labels"].tolist()
    scores = detections["scores"].tolist() if "scores" in detections else [None] * len(boxes)
    for box, label, score in zip(boxes, labels, scores, strict=True):
        if score is not None and score < min_score:
            continue
        left, top, right, bottom = (round(at / scale) for at in box)
        colour = figures.rgb(figures.CLASS_COLOURS[label % len(figures.CLASS_COLOURS)])
        cv2.rectangle(drawn, (left, top), (right, bottom), colour, thick, cv2.LINE_AA)
        text = classes[label] if score is None else f"{classes[label]} {score:.0%}"
        write_text(drawn, text, left, top, colour)
    return drawn


def write_text(
    picture: np.ndarray, text: str, left: int, bottom: int, colour: tuple[int, int, int]
) -> None:
    """Write a text on a ground of `colour` into a picture (H, W, 3) uint8, as far inside as it fits."""
    written = _text_picture(text, round(max(max(picture.shape) / 24, 11)), colour)
    height, width = written.shape[:2]
    left, top = max(min(left, picture.shape[1] - width), 0), max(bottom - height, 0)
    place = picture[top : top + height, left : left + width]
    place[:] = written[: place.shape[0], : place.shape[1]]


def outline_boxes(
    axis, boxes: torch.Tensor, texts: Sequence[str] | np.ndarray, colour: str, dashed: bool = False
) -> None:
    """Boxes (n, 4) x1 y1 x2 y2 as outlines on an axis that shows a picture, each with its text above.

    Without `texts` there are outlines alone.
    """
    from matplotlib.patches import Rectangle

    for k, (left, top, right, bottom) in enumerate(boxes.tolist()):
        corner, style = (left - 0.5, top - 0.5), "--" if dashed else "-"
        axis.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, edgecolor=colour,
                                 linewidth=1.6, linestyle=style))  # fmt: skip
        if k < len(texts):
            ground = {"facecolor": colour, "edgecolor": "none", "boxstyle": "square,pad=0.1"}
            axis.text(*corner, texts[k], color="white", fontsize=6, va="bottom", bbox=ground,
                      clip_on=True)  # fmt: skip


@functools.lru_cache(maxsize=1000)
def _text_picture(text: str, size: int, colour: tuple[int, int, int]) -> np.ndarray:
    """A text `size` pixels high on a ground of `colour`, (H, W, 3) uint8.

    By Pillow: OpenCV before 5 has no letters beyond ASCII.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(figures.font_file(text), size)
    *_, right, bottom = map(int, font.getbbox(text))  # whole pixels
    picture = Image.new("RGB", (right + 2, max(sum(font.getmetrics()), bottom)), colour)
    ink = (0, 0, 0) if sum(colour) > 380 else (255, 255, 255)
    ImageDraw.Draw(picture).text((1, 0), text, ink, font)
    return np.asarray(picture)
