"""Photographs with MNIST digits painted over them, and the box of each digit.

A seed gives the same scenes each time, as many as you like. In a film the digits move over a photograph.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import torch

from imagelab.data import road_scenes
from imagelab.data.photographs import HELD_OUT, TRAINING, photograph
from imagelab.setup.terminal import progress

LETTERS = {"clock", "page", "text"}  # photographs of signs that could be taken for digits
BACKGROUNDS = tuple(name for name in TRAINING if name not in LETTERS)
MAX_OVERLAP = 0.15  # IoU of two boxes, at most
MOST = 6  # digits in a scene
STREETS = 6  # drawn ones among the backgrounds of varied scenes
GLYPHS = "AEHKMNRTWXhkmrtwx&#"  # none of them looks like a digit


def render_scenes(
    digits: torch.Tensor,
    labels: torch.Tensor,
    count: int,
    seed: int,
    size: int = 256,
    photographs: tuple[str, ...] = BACKGROUNDS,
    most: int = MOST,
    varied: float = 0.0,
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """`count` scenes with one to `most` of `digits` (N, 1, 28, 28) uint8 in each.

    In scenes of 256 pixels the digits are 24 to 90 pixels large. They are turned by up to 30°, and dark
    on light or light on dark. The backgrounds are pieces of `photographs`, mirrored, turned, and with
    their colours exchanged. The share `varied` of the backgrounds are of pieces of two photographs, or
    of a photograph and a pattern, with letters and shapes over them. So a detector learns that not all
    that has an edge is a digit. A few drawn streets are then among the photographs.

    Returns images (count, 3, size, size) uint8, and for each image the boxes around the ink (n, 4), x1
    y1 x2 y2 in pixels, and the labels (n,).
    """
    rng = np.random.default_rng(seed)
    pictures = _photographs(photographs) + (_streets() if varied else [])
    inks, labels = digits[:, 0].cpu().numpy(), labels.cpu()
    images = np.empty((count, size, size, 3), np.uint8)
    all_boxes, all_labels = [], []
    for image in progress(images, "drawing scenes", "scene", keep=count > 50):
        scene = _turned(_background(pictures, rng, size), rng)
        if varied and rng.random() < varied:
            other = _background(pictures, rng, size)
            other = _pattern(rng, size) if rng.random() < 0.5 else other
            scene = _collage(scene, _turned(other, rng), rng)
            _scribble(scene, rng)
        boxes, chosen = [], []
        for _ in range(rng.integers(1, most + 1)):
            k = int(rng.integers(len(inks)))
            ink = turned(inks[k], rng.uniform(24, 90) * size / 256, rng.uniform(-30, 30))
            height, width = ink.shape
            x, y = rng.integers(0, max(size - width, 1)), rng.integers(0, max(size - height, 1))
            box = np.array([x, y, x + width, y + height], np.float32)
            if any(iou(box, other) > MAX_OVERLAP for other in boxes):
                continue
            under = scene[y : y + height, x : x + width].mean(axis=2)
            lay(scene, ink, x, y, _colour(rng, np.average(under, weights=ink)), rng.uniform(0.8, 1))
            boxes.append(box)
            chosen.append(int(labels[k]))
        scene += rng.uniform(0, 8) * rng.standard_normal(scene.shape, dtype=np.float32)
        image[:] = scene.clip(0, 255).round()
        all_boxes.append(torch.from_numpy(np.array(boxes, np.float32)).reshape(-1, 4))
        all_labels.append(torch.tensor(chosen, dtype=torch.long))
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), all_boxes, all_labels


def moving_scene(
    digits: torch.Tensor, frames: int, seed: int, size: int = 256
) -> Iterator[np.ndarray]:
    """Frames (size, size, 3) uint8: five of `digits` move over a held-out photograph."""
    rng = np.random.default_rng(seed)
    still = _background(_photographs(HELD_OUT), rng, size)
    chosen = digits[rng.integers(len(digits), size=5), 0].cpu().numpy()
    sizes, colours = (
        rng.uniform(36, 72, 5) * size / 256,
        [_colour(rng, still.mean()) for _ in chosen],
    )
    middle, reach = rng.uniform(0.3, 0.7, (5, 2)) * size, rng.uniform(0.15, 0.3, (5, 2)) * size
    speed, start = rng.uniform(0.02, 0.06, (5, 2)), rng.uniform(0, 2 * np.pi, (5, 2))
    for t in range(frames):
        scene = still.copy()
        for k, digit in enumerate(chosen):
            ink = turned(digit, sizes[k], 25 * np.sin(speed[k, 0] * t))
            centre = middle[k] + reach[k] * np.sin(speed[k] * t + start[k])
            x, y = (centre - np.array(ink.shape[::-1]) / 2).round().astype(int).clip(0)
            lay(scene, ink, x, y, colours[k], 0.95)
        yield scene.clip(0, 255).round().astype(np.uint8)


def turned(digit: np.ndarray, size: float, angle: float) -> np.ndarray:
    """A digit (28, 28), scaled and turned by `angle` degrees, cut to the box around its ink.

    The 20 pixels that an MNIST digit fills become `size` pixels.
    """
    import cv2

    scale = size / 20
    larger = max(
        scale, 1
    )  # to shrink it, pixels are averaged below; thin strokes would vanish here
    side = int(28 * larger * 1.5)
    matrix = cv2.getRotationMatrix2D((13.5, 13.5), angle, larger)
    matrix[:, 2] += side / 2 - 13.5
    ink = cv2.warpAffine(digit, matrix, (side, side), flags=cv2.INTER_CUBIC)
    if scale < 1:
        ink = cv2.resize(ink, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    rows, columns = np.nonzero(ink > 0.4 * ink.max())
    return ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def lay(
    scene: np.ndarray, ink: np.ndarray, x: int, y: int, colour: np.ndarray, opacity: float
) -> None:
    """Paint a digit's ink (h, w) into the scene (H, W, 3) with its upper left corner at x, y."""
    under = scene[y : y + ink.shape[0], x : x + ink.shape[1]]
    alpha = (ink / 255 * opacity)[: under.shape[0], : under.shape[1], None]
    under[:] = (1 - alpha) * under + alpha * colour


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes x1 y1 x2 y2."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    common = np.prod((high - low).clip(0))
    return common / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common)


def _photographs(names: tuple[str, ...]) -> list[np.ndarray]:
    from PIL import Image

    return [np.asarray(Image.fromarray(photograph(name)).convert("RGB")) for name in names]


def _streets() -> list[np.ndarray]:
    rng = np.random.default_rng(99)
    return [road_scenes.render_scene(rng, 256, 384)[0] for _ in range(STREETS)]


def _background(pictures: list[np.ndarray], rng: np.random.Generator, size: int) -> np.ndarray:
    """A random square of a random photograph, (size, size, 3) float32 from 0 to 255."""
    import cv2

    picture = pictures[rng.integers(len(pictures))]
    side = int(rng.uniform(0.3, 1) * min(picture.shape[:2]))
    top, left = (rng.integers(n - side + 1) for n in picture.shape[:2])
    piece = picture[top : top + side, left : left + side]
    return cv2.resize(piece, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)


def _turned(scene: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The scene mirrored, turned by right angles, with colours exchanged, and sometimes as a negative.

    So a few photographs give many backgrounds.
    """
    scene = scene[:, :: rng.choice([-1, 1])]
    scene = np.rot90(scene, int(rng.integers(4)))[..., rng.permutation(3)]
    return np.ascontiguousarray(255 - scene if rng.random() < 0.3 else scene)


def _collage(scene: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A scene (S, S, 3), mostly with parts of another one over it, each channel in a curve of its own."""
    import cv2

    if rng.random() < 0.6:
        cells = int(rng.integers(2, 7))
        rough = rng.normal(0, 1, (cells, cells)).astype(np.float32)
        rough = cv2.resize(rough, scene.shape[:2], interpolation=cv2.INTER_CUBIC)
        share = (rough * np.exp(rng.uniform(0, 4)) + 0.5).clip(0, 1)[
            ..., None
        ]  # soft or hard edges
        scene = share * other + (1 - share) * scene
    gamma, gain = np.exp(rng.uniform(-0.5, 0.5, 3)), rng.uniform(0.7, 1.2, 3)
    return (255 * gain * (scene / 255).clip(0, 1) ** gamma).astype(np.float32)


def _pattern(rng: np.random.Generator, size: int) -> np.ndarray:
    """Stripes, checks, rings or clouds in two colours, (S, S, 3) float32 from 0 to 255."""
    import cv2

    kind = rng.choice(["stripes", "checks", "rings", "clouds"])
    frequency = np.exp(rng.uniform(np.log(2), np.log(40)))  # waves across the scene
    if kind == "clouds":
        cells = int(frequency) + 1
        wave = rng.normal(0, 1, (cells, cells)).astype(np.float32)
        wave = cv2.resize(wave, (size, size), interpolation=cv2.INTER_CUBIC)
    else:
        y, x = np.mgrid[:size, :size].astype(np.float32) / size
        angle, phase = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
        across, along = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        if kind == "rings":
            centre_x, centre_y = rng.uniform(0, 1, 2)
            across = np.hypot(x - centre_x, y - centre_y)
        wave = np.sin(2 * np.pi * frequency * across + phase)
        if kind == "checks":
            wave = wave * np.sin(2 * np.pi * frequency * rng.uniform(0.3, 3) * along)
    wave = (wave * np.exp(rng.uniform(0, 3))).clip(-1, 1)[..., None] / 2 + 0.5  # soft or hard
    first, second = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    return (first + wave * (second - first)).astype(np.float32)


@functools.cache
def _glyph(letter: str) -> np.ndarray:
    """A letter (28, 28) uint8, as large as a digit of MNIST."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("L", (28, 28))
    ImageDraw.Draw(picture).text((14, 14), letter, 255, ImageFont.load_default(22), "mm")
    return np.asarray(picture)


def _scribble(scene: np.ndarray, rng: np.random.Generator) -> None:
    """Paint up to seven shapes, sometimes sixty, into a scene (S, S, 3).

    They are letters, arcs, ellipses, polygons, lines and scribbles.
    """
    import cv2

    size = len(scene)
    for _ in range(60 if rng.random() < 0.15 else rng.integers(8)):
        colour = tuple(map(float, rng.uniform(0, 255, 3)))
        start, thickness = rng.integers(0, size, 2), int(rng.integers(1, max(size // 32, 2)))
        kinds = ["ellipse", "polygon", "line", "scribble", "letter", "letter", "arc"]
        kind = rng.choice(kinds)
        if kind == "letter":
            glyph = _glyph(str(rng.choice(list(GLYPHS))))
            ink = turned(glyph, rng.uniform(24, 90) * size / 256, rng.uniform(-30, 30))
            x, y = (start - size // 12).clip(0).tolist()
            lay(scene, ink, x, y, np.array(colour), rng.uniform(0.8, 1))
        elif kind == "arc":
            axes, turn = rng.integers(size // 32, size // 4, 2), float(rng.uniform(0, 360))
            end, centre = float(rng.uniform(40, 200)), start.tolist()
            cv2.ellipse(scene, centre, axes.tolist(), turn, 0, end, colour, thickness, cv2.LINE_AA)
        elif kind == "ellipse":
            axes, angle = rng.integers(size // 32, size // 4, 2), float(rng.uniform(0, 180))
            centre = start.tolist()
            cv2.ellipse(scene, centre, axes.tolist(), angle, 0, 360, colour, -1, cv2.LINE_AA)
        elif kind == "polygon":
            corners = start + rng.integers(-size // 6, size // 6, (rng.integers(3, 7), 2))
            cv2.fillPoly(scene, [corners.astype(np.int32)], colour, cv2.LINE_AA)
        elif kind == "line":
            ends = np.stack([[0, size], rng.integers(0, size, 2)])  # from border to border: no 1
            (a, b) = ends.T.tolist() if rng.random() < 0.5 else ends[::-1].T.tolist()
            cv2.line(scene, a, b, colour, thickness, cv2.LINE_AA)
        else:
            walk = start + rng.normal(0, size / 24, (rng.integers(8, 30), 2)).cumsum(axis=0)
            line = [walk.astype(np.int32)]
            cv2.polylines(scene, line, False, colour, thickness, cv2.LINE_AA)


def _colour(rng: np.random.Generator, bright: float) -> np.ndarray:
    """A random dark colour for a bright ground, a light one for a dark ground."""
    return rng.uniform(0, 70, 3) if bright > 128 else rng.uniform(185, 255, 3)
