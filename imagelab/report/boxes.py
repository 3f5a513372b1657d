"""Draw boxes into a picture, each with its class and score."""

from __future__ import annotations

import functools

import numpy as np
import torch

from imagelab.report import figures


def draw_boxes(
    picture: np.ndarray,
    detections: dict[str, torch.Tensor],
    classes: tuple[str, ...],
    min_score: float,
    scale: float = 1.0,
) -> np.ndarray:
    """A copy of a picture (H, W, 3) uint8 with the boxes, classes and scores of `detections` on it.

    `detections` holds boxes (n, 4) x1 y1 x2 y2, labels (n,) and scores (n,) from 0 to 1. The boxes are
    divided by `scale`. Boxes with a score under `min_score` are not drawn.
    """
    import cv2

    drawn = np.ascontiguousarray(picture).copy()
    side = max(picture.shape)
    thick, size = max(round(side / 400), 1), round(max(side / 24, 11))
    for box, label, score in zip(
        *(detections[name].tolist() for name in ("boxes", "labels", "scores")), strict=True
    ):
        if score < min_score:
            continue
        left, top, right, bottom = (round(at / scale) for at in box)
        colour = figures.rgb(figures.CLASS_COLOURS[label % len(figures.CLASS_COLOURS)])
        cv2.rectangle(drawn, (left, top), (right, bottom), colour, thick, cv2.LINE_AA)
        text = _text_picture(f"{classes[label]} {score:.0%}", size, colour)
        height, width = text.shape[:2]
        left, top = min(left, max(picture.shape[1] - width, 0)), max(top - height, 0)
        place = drawn[top : top + height, max(left, 0) : left + width]
        place[:] = text[: place.shape[0], : place.shape[1]]
    return drawn


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
