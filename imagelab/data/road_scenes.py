"""Road scenes rendered in perspective, with the class of every pixel: seeded, as many as one likes.

A camera above a road looks towards a horizon. Everything stands on the ground plane: a thing of height
h metres at distance z is f·h/z pixels high, and its foot lies f·c/z below the horizon, c the camera's
height. Surfaces take their grain from scikit-image's photographs.
"""

from __future__ import annotations

import functools

import numpy as np

CLASSES = ("sky", "road", "marking", "building", "vegetation", "car", "pedestrian")
SKY, ROAD, MARKING, BUILDING, VEGETATION, CAR, PEDESTRIAN = range(7)
# The grain of each surface: a photograph inside scikit-image, how finely and how strongly it shows.
GRAINS = {
    "road": ("gravel", 4, 0.4),
    "building": ("brick", 1, 1),
    "tree": ("grass", 1, 1),
    "ground": ("grass", 2, 1),
}


def render_scene(rng: np.random.Generator, height: int = 128, width: int = 192):
    """A picture (H, W, 3) of 0 to 255 and the class of each pixel (H, W), both uint8."""
    return _Scene(rng, height, width).render()


class _Scene:
    """The camera, and what is painted: far things first, near ones over them."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng, self.height, self.width = rng, height, width
        self.picture = np.zeros((height, width, 3), np.float32)
        self.classes = np.zeros((height, width), np.uint8)
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
        return self.width / 2 + self.focal * x / z, self.horizon + self.focal * (
            self.camera - up
        ) / z

    def paint(self, outline, colour, label: int | None, distance: float, grain: str = "") -> None:
        """Fill a polygon (N, 2) of pixels; far things fade into the sky's colour."""
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
            self.classes[box][inside] = label

    def grain(self, kind: str, distance: float, shape: tuple[int, int]) -> np.ndarray:
        """A random piece of a photograph, around 1, finer far away, (H, W)."""
        name, finer, strength = GRAINS[kind]
        size = np.clip(60 * distance * finer, 400, 2000)  # its pixels across the picture
        source = _photograph(name, float(2 ** np.round(np.log2(size / self.width))))
        rows, columns = (
            (self.rng.integers(n) + np.arange(side)) % n
            for n, side in zip(source.shape, shape, strict=True)
        )
        return 1 + strength * (source[np.ix_(rows, columns)] - 1)

    def render(self) -> tuple[np.ndarray, np.ndarray]:
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
        for _, kind, side, z, depth in sorted(things, key=lambda thing: -thing[0]):
            getattr(self, kind)(side, z, depth)
        noise = rng.normal(0, rng.uniform(0.005, 0.03), self.picture.shape)
        picture = (self.picture + noise).clip(0, 1) * 255
        return picture.round().astype(np.uint8), self.classes

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
        corners = [(0, self.horizon), (self.width, self.horizon), (self.width, self.height),
                   (0, self.height)]  # fmt: skip
        green = rng.uniform(0.4, 0.6) * np.array([0.75, 0.95, 0.55])
        self.paint(corners, green, VEGETATION, 12, "ground")

        def strip(left: float, right: float, zs: np.ndarray) -> list[tuple[float, float]]:
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
        wall = [
            self.point(x, z),
            self.point(x, deep),
            self.point(x, deep, high),
            self.point(x, z, high),
        ]
        self.paint(wall, colour * 0.8, BUILDING, z, "building")
        end = x + side * 12
        front = [
            self.point(x, z),
            self.point(end, z),
            self.point(end, z, high),
            self.point(x, z, high),
        ]
        self.paint(front, colour, BUILDING, z, "building")
        dark = rng.uniform(0.15, 0.35) * np.ones(3)
        for up in np.arange(1.2, high - 1.5, 3.0):
            for at in np.arange(z + 1, deep - 1.2, 2.6):
                self.paint([self.point(x, at, up), self.point(x, at + 1.2, up),
                            self.point(x, at + 1.2, up + 1.5), self.point(x, at, up + 1.5)],
                           dark, None, z)  # fmt: skip

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
            blob = [self.point(cx + a, z, up + b) for a, b in zip(r * np.cos(angle), r * np.sin(angle),
                    strict=True)]  # fmt: skip
            self.paint(blob, green * rng.uniform(0.8, 1.15), VEGETATION, z, "tree")

    def car(self, _side, z: float, _depth: float) -> None:
        rng = self.rng
        x = rng.choice([-1, 1]) * self.half_road * rng.uniform(0.3, 0.75)
        half, colour = rng.uniform(0.8, 0.95), rng.uniform(0.1, 0.9, 3)
        self.box(x, z, half * 1.02, 0, 0.35, (0.06,) * 3, CAR)
        self.box(x, z, half, 0.25, 0.95, colour, CAR)
        roof = [self.point(x - half * 0.9, z, 0.95), self.point(x + half * 0.9, z, 0.95),
                self.point(x + half * 0.7, z, 1.45), self.point(x - half * 0.7, z, 1.45)]  # fmt: skip
        self.paint(roof, colour * 0.9, CAR, z)
        pane = [self.point(x - half * 0.75, z, 1.0), self.point(x + half * 0.75, z, 1.0),
                self.point(x + half * 0.6, z, 1.35), self.point(x - half * 0.6, z, 1.35)]  # fmt: skip
        self.paint(pane, (0.2, 0.24, 0.28), CAR, z)
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
        head = [self.point(x + 0.11 * a, z, high * 0.92 + 0.13 * b)
                for a, b in zip(np.cos(angle), np.sin(angle), strict=True)]  # fmt: skip
        self.paint(head, skin, PEDESTRIAN, z)

    def gap(self, *_) -> None:
        """Nothing stands here."""

    def box(self, x: float, z: float, half: float, low: float, high: float, colour, label) -> None:
        """A rectangle that faces the camera."""
        self.paint([self.point(x - half, z, low), self.point(x + half, z, low),
                    self.point(x + half, z, high), self.point(x - half, z, high)],
                   colour, label, z)  # fmt: skip


@functools.cache
def _photograph(name: str, shrunk: float) -> np.ndarray:
    """A texture of scikit-image as grain: its greys over their mean, `shrunk` so many times."""
    import cv2
    import skimage.data

    grey = getattr(skimage.data, name)().astype(np.float32)
    grey = np.tile(grey / grey.mean(), (4, 4))  # stones of a few pixels, not of many
    size = max(round(len(grey) / shrunk), 1)
    return cv2.resize(grey, (size, size), interpolation=cv2.INTER_AREA)
