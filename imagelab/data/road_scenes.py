"""Road scenes rendered in perspective, with the class of every pixel and the box of every object.

A random generator decides what a scene holds: the same seed gives the same scene.

A camera above a road looks towards a horizon. Everything stands on the ground. With the focal length f
in pixels, a thing of height h at distance z is f·h/z pixels high. Its foot lies f·c/z pixels below the
horizon, where c is the height of the camera. The grain of surfaces comes from scikit-image's photographs.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

CLASSES = ("sky", "road", "marking", "building", "vegetation", "car", "pedestrian")
SKY, ROAD, MARKING, BUILDING, VEGETATION, CAR, PEDESTRIAN = range(7)
# Each surface's photograph inside scikit-image, and how fine and how strong its grain is.
GRAINS = {
    "road": ("gravel", 4, 0.4),
    "building": ("brick", 1, 1),
    "tree": ("grass", 1, 1),
    "ground": ("grass", 2, 1),
}


class RoadScene(NamedTuple):
    """A picture with all that is known about it."""

    picture: np.ndarray
    """(H, W, 3) uint8."""
    classes: np.ndarray
    """(H, W) uint8, the class of each pixel."""
    instances: np.ndarray
    """(H, W) uint8: k where the pixel belongs to the object of row k − 1 in `boxes`, else 0."""
    boxes: np.ndarray
    """(n, 5) int64: x0, y0, x1, y1 and the class of each car and pedestrian of which a pixel is visible.
    The box just holds the visible pixels. They lie in columns x0 to x1 − 1 and rows y0 to y1 − 1."""


def render_scene(rng: np.random.Generator, height: int = 128, width: int = 192):
    """A picture (H, W, 3) of 0 to 255 and the class of each pixel (H, W), both uint8."""
    return _Renderer(rng, height, width).render()[:2]


def render_objects(rng: np.random.Generator, height: int = 128, width: int = 192) -> RoadScene:
    """The scene that `render_scene` draws, with its cars and pedestrians one by one, far ones first.

    What stands behind something else has the box of what is still visible. Nothing is left out: an object
    of which one pixel is visible has a box of one pixel.
    """
    return _Renderer(rng, height, width).render()


class _Renderer:
    """The camera, and the picture that it paints: far things first, near ones over them."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng, self.height, self.width = rng, height, width
        self.picture = np.zeros((height, width, 3), np.float32)
        self.classes = np.zeros((height, width), np.uint8)
        self.instances = np.zeros((height, width), np.uint8)
        self.instance = 0  # the number of the object that is being painted
        self.horizon = height * rng.uniform(0.38, 0.52)
        self.focal = width * rng.uniform(0.8, 1.1)  # pixels
        self.camera = rng.uniform(1.4, 2.2)  # metres above the road
        self.shift = rng.uniform(-2, 2)  # metres, to the side of the road's middle
        self.bend = rng.uniform(-0.0012, 0.0012)  # of the road, in 1/metre
        self.half_road = rng.uniform(3.5, 6)
        self.light = rng.uniform(0.55, 1.1)
        self.haze = rng.uniform(0.0, 0.012)  # per metre
        self.sky = np.array([rng.uniform(0.55, 0.8), rng.uniform(0.65, 0.85), rng.uniform(0.8, 1)])

    def point(self, x: float, z: float, up: float = 0.0) -> tuple[float, float]:
        """Metres to the side, ahead and above the ground to pixels (column, row)."""
        x = x - self.shift + self.bend * z * z
        below = self.camera - up  # metres under the camera
        return self.width / 2 + self.focal * x / z, self.horizon + self.focal * below / z

    def paint(self, outline, colour, label: int | None, distance: float, grain: str = "") -> None:
        """Fill a polygon (N, 2) of pixels. Far things fade into the sky's colour."""
        import cv2

        outline = np.clip(np.asarray(outline, np.float64), -9_999, 9_999)
        left, top = np.floor(outline.min(axis=0)).astype(int).clip(0)
        right, bottom = np.ceil(outline.max(axis=0)).astype(int) + 1
        box = slice(top, max(bottom, top)), slice(left, max(right, left))
        inside = np.zeros(self.classes[box].shape, np.uint8)  # the part that is in the picture
        if inside.size == 0:
            return
        corners = np.round((outline - (left, top)) * 8).astype(np.int32)  # eighths of a pixel
        inside = cv2.fillPoly(inside, [corners], 1, cv2.LINE_4, 3).astype(bool)
        values = np.asarray(colour, np.float32) * self.light
        if grain:
            values = values * self.grain(grain, distance, inside.shape)[inside][:, None]
        clear = np.exp(-self.haze * distance)
        self.picture[box][inside] = clear * values + (1 - clear) * self.sky
        if label is not None:
            self.classes[box][inside], self.instances[box][inside] = label, self.instance

    def grain(self, kind: str, distance: float, shape: tuple[int, int]) -> np.ndarray:
        """A random piece of a photograph (H, W) with mean 1. Its grain is finer far away."""
        name, finer, strength = GRAINS[kind]
        size = np.clip(
            60 * distance * finer, 400, 2000
        )  # pixels of the photograph across the picture
        source = _photograph(name, float(2 ** np.round(np.log2(size / self.width))))
        rows, columns = (
            (self.rng.integers(n) + np.arange(side)) % n
            for n, side in zip(source.shape, shape, strict=True)
        )
        return 1 + strength * (source[np.ix_(rows, columns)] - 1)

    def render(self) -> RoadScene:
        rng = self.rng
        rows = np.linspace(0, 1, self.height, dtype=np.float32)[:, None, None]
        self.picture[:] = self.sky * (0.75 + 0.35 * rows)
        self.clouds()
        self.classes[:] = SKY
        self.ground()
        things = []
        for side in (-1, 1):
            z = rng.uniform(6, 14)
            while z < 90:
                depth = rng.uniform(5, 16)
                kind = rng.choice(["building", "tree", "gap"], p=[0.5, 0.35, 0.15])
                things.append((z + depth / 2, kind, side, z, depth))
                z += depth
        things += [(z, "car", None, z, 0) for z in rng.uniform(7, 45, rng.integers(0, 5))]
        things += [(z, "pedestrian", None, z, 0) for z in rng.uniform(5, 25, rng.integers(0, 5))]
        labels = [0]  # of instance 0, which is no object
        for _, kind, side, z, depth in sorted(things, key=lambda thing: -thing[0]):
            is_object = kind in ("car", "pedestrian")
            self.instance = len(labels) if is_object else 0
            if is_object:
                labels.append(CLASSES.index(kind))
            getattr(self, kind)(side, z, depth)
        noise = rng.normal(0, rng.uniform(0.005, 0.03), self.picture.shape)
        picture = (self.picture + noise).clip(0, 1) * 255
        instances, boxes = _visible(self.instances, labels)
        return RoadScene(picture.round().astype(np.uint8), self.classes, instances, boxes)

    def clouds(self) -> None:
        import cv2

        rough = self.rng.normal(0, 1, (6, 9)).astype(np.float32)
        rough = cv2.resize(rough, (self.width, self.height), interpolation=cv2.INTER_CUBIC)
        self.picture += 0.06 * rough.clip(0, 2)[:, :, None]

    def ground(self) -> None:
        """Grass, the road through it, and the lines on the road."""
        rng = self.rng
        far, near = 300.0, self.focal * self.camera / (self.height - self.horizon) * 0.9
        zs = np.geomspace(near, far, 24)
        grey = rng.uniform(0.28, 0.5)
        top, bottom, right = self.horizon, self.height, self.width
        corners = [(0, top), (right, top), (right, bottom), (0, bottom)]
        green = rng.uniform(0.4, 0.6) * np.array([0.75, 0.95, 0.55])
        self.paint(corners, green, VEGETATION, 12, "ground")

        def strip(left: float, right: float, zs: np.ndarray) -> list[tuple[float, float]]:
            """The outline of a part of the ground between two lines along the road."""
            return [self.point(left, z) for z in zs] + [self.point(right, z) for z in zs[::-1]]

        half = self.half_road
        self.paint(strip(-half, half, zs), (grey, grey, grey * 1.03), ROAD, 8, "road")
        white = rng.uniform(0.75, 0.95)
        for x in (-half + 0.3, half - 0.3):
            self.paint(strip(x - 0.1, x + 0.1, zs[zs < 60]), (white,) * 3, MARKING, 8)
        start = rng.uniform(0, 6)
        for z in np.arange(near + start, 60, 6):
            self.paint(strip(-0.08, 0.08, np.linspace(z, z + 3, 4)), (white,) * 3, MARKING, z)

    def building(self, side: int, z: float, depth: float) -> None:
        rng = self.rng
        x = side * (self.half_road + rng.uniform(1.5, 4))
        high, deep = rng.uniform(5, 18), z + depth * 0.95
        colour = rng.uniform(0.35, 0.8) * np.array([1, rng.uniform(0.75, 1), rng.uniform(0.6, 1)])
        end = x + side * 12
        wall, front = ((x, z), (x, deep)), ((x, z), (end, z))
        self.paint(self.upright(*wall, 0, high), colour * 0.8, BUILDING, z, "building")
        self.paint(self.upright(*front, 0, high), colour, BUILDING, z, "building")
        dark = rng.uniform(0.15, 0.35) * np.ones(3)
        for up in np.arange(1.2, high - 1.5, 3.0):
            for at in np.arange(z + 1, deep - 1.2, 2.6):
                window = self.upright((x, at), (x, at + 1.2), up, up + 1.5)
                self.paint(window, dark, None, z)

    def tree(self, side: int, z: float, _depth: float) -> None:
        rng = self.rng
        x = side * (self.half_road + rng.uniform(0.8, 3))
        high, radius = rng.uniform(3, 7), rng.uniform(1.0, 2.2)
        brown = rng.uniform(0.2, 0.35)
        self.box(x, z, 0.25, 0, high, (brown, brown * 0.8, brown * 0.6), VEGETATION)
        green = rng.uniform(0.25, 0.55) * np.array(
            [rng.uniform(0.5, 0.9), 1, rng.uniform(0.3, 0.6)]
        )
        for _ in range(rng.integers(3, 7)):
            cx, up = x + rng.uniform(-0.7, 0.7) * radius, high + rng.uniform(-0.5, 0.7) * radius
            angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
            r = radius * rng.uniform(0.5, 0.9) * rng.uniform(0.85, 1.15, 20)
            across, upwards = r * np.cos(angle), r * np.sin(angle)
            blob = [self.point(cx + a, z, up + b) for a, b in zip(across, upwards, strict=True)]
            self.paint(blob, green * rng.uniform(0.8, 1.15), VEGETATION, z, "tree")

    def car(self, _side, z: float, _depth: float) -> None:
        rng = self.rng
        x = rng.choice([-1, 1]) * self.half_road * rng.uniform(0.3, 0.75)
        half, colour = rng.uniform(0.8, 0.95), rng.uniform(0.1, 0.9, 3)
        self.box(x, z, half * 1.02, 0, 0.35, (0.06,) * 3, CAR)
        self.box(x, z, half, 0.25, 0.95, colour, CAR)
        self.tapered(x, z, half * 0.9, half * 0.7, 0.95, 1.45, colour * 0.9, CAR)
        self.tapered(x, z, half * 0.75, half * 0.6, 1.0, 1.35, (0.2, 0.24, 0.28), CAR)
        for lamp in (-0.75, 0.75):
            self.box(x + lamp * half, z, 0.12, 0.6, 0.75, (0.9, 0.15, 0.1), CAR)

    def pedestrian(self, _side, z: float, _depth: float) -> None:
        rng = self.rng
        x = rng.choice([-1, 1]) * rng.uniform(0.55, 1.35) * self.half_road
        high = rng.uniform(1.5, 1.9)
        trousers, coat = rng.uniform(0.08, 0.5, 3), rng.uniform(0.1, 0.9, 3)
        skin = np.array([0.8, 0.62, 0.5]) * rng.uniform(0.45, 1.1)
        step = rng.uniform(0.02, 0.2)
        for leg in (-1, 1):
            self.box(x + leg * step, z, 0.09, 0, high * 0.5, trousers, PEDESTRIAN)
        self.box(x, z, 0.22, high * 0.45, high * 0.84, coat, PEDESTRIAN)
        angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        head = [
            self.point(x + 0.11 * a, z, high * 0.92 + 0.13 * b)
            for a, b in zip(np.cos(angle), np.sin(angle), strict=True)
        ]
        self.paint(head, skin, PEDESTRIAN, z)

    def gap(self, *_) -> None:
        """Nothing stands here."""

    def box(self, x: float, z: float, half: float, low: float, high: float, colour, label) -> None:
        """A rectangle that faces the camera."""
        self.tapered(x, z, half, half, low, high, colour, label)

    def tapered(
        self, x: float, z: float, half: float, top: float, low: float, high: float, colour, label
    ) -> None:
        """As `box`, with another half width at the top."""
        outline = [
            self.point(x - half, z, low),
            self.point(x + half, z, low),
            self.point(x + top, z, high),
            self.point(x - top, z, high),
        ]
        self.paint(outline, colour, label, z)

    def upright(
        self, here: tuple[float, float], there: tuple[float, float], low: float, high: float
    ) -> list[tuple[float, float]]:
        """The outline of an upright rectangle between two places (x, z) on the ground."""
        lower = [self.point(*here, low), self.point(*there, low)]
        return [*lower, self.point(*there, high), self.point(*here, high)]


def _visible(instances: np.ndarray, labels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Instances (H, W), numbered anew without those that nothing is seen of, and their boxes (n, 5)."""
    numbers, boxes = np.zeros(len(labels), np.uint8), []
    for k in range(1, len(labels)):
        rows, columns = np.nonzero(instances == k)
        if len(rows):
            start = columns.min(), rows.min()
            boxes.append((*start, columns.max() + 1, rows.max() + 1, labels[k]))
            numbers[k] = len(boxes)
    return numbers[instances], np.array(boxes, np.int64).reshape(-1, 5)


@functools.cache
def _photograph(name: str, shrunk: float) -> np.ndarray:
    """The grain of a photograph of scikit-image: its greys over their mean, `shrunk` by a factor."""
    import cv2
    import skimage.data

    grey = getattr(skimage.data, name)().astype(np.float32)
    grey = np.tile(grey / grey.mean(), (4, 4))  # stones of a few pixels, not of many
    size = max(round(len(grey) / shrunk), 1)
    return cv2.resize(grey, (size, size), interpolation=cv2.INTER_AREA)
