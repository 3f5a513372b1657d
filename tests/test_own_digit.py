from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import once
from PIL import Image, ImageDraw
from scipy import ndimage

from imagelab.data.datasets import Dataset, load_dataset
from imagelab.data.own_digit import fit_to_frame
from imagelab.setup.runtime import UserError
from imagelab.techniques.classifier import predict, trained_classifier


def bar(height: int = 30, width: int = 15, top: int = 5, left: int = 20) -> np.ndarray:
    picture = np.full((60, 50), 0.1)
    picture[top : top + height, left : left + width] = 0.9
    return picture


def test_dark_on_light_and_light_on_dark_give_the_same_frame():
    assert np.array_equal(fit_to_frame(bar(), 28), fit_to_frame(1 - bar(), 28))
    assert fit_to_frame(bar(), 28).max() == 1


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [(30, 15, (4, 23), (9, 18)), (10, 20, (9, 18), (4, 23)), (5, 5, (4, 23), (4, 23))],
)
def test_the_box_is_twenty_pixels_long_and_centred(height, width, rows, columns):
    frame = fit_to_frame(bar(height, width), 28)
    assert frame.shape == (28, 28)
    y, x = np.nonzero(frame > 0.5)
    assert (y.min(), y.max()) == rows and (x.min(), x.max()) == columns
    assert not frame[: rows[0]].any() and not frame[:, columns[1] + 1 :].any()


def test_place_and_contrast_do_not_matter():
    frame = fit_to_frame(bar(), 28)
    assert np.array_equal(fit_to_frame(bar(top=25, left=3), 28), frame)
    assert np.array_equal(fit_to_frame(0.3 + bar() / 4, 28), frame)


def test_a_picture_with_nothing_in_it_is_told():
    for value in (0.0, 0.5, 1.0):
        with pytest.raises(UserError, match="empty"):
            fit_to_frame(np.full((40, 40), value), 28)


def corner_stroke(width: int = 6) -> np.ndarray:
    """An L, whose centre of mass is not the middle of its box; dark on light."""
    picture = Image.new("L", (200, 240), 230)
    ImageDraw.Draw(picture).line([(60, 40), (60, 200), (150, 200)], fill=30, width=width)
    return np.asarray(picture) / 255


def test_the_centre_of_mass_lies_in_the_middle():
    frame = fit_to_frame(corner_stroke(20), 28)
    y, x = np.nonzero(frame > 0.5)
    assert y.max() - y.min() == 19
    assert ndimage.center_of_mass(frame) == pytest.approx((13.5, 13.5), abs=0.5)
    assert (y.min() + y.max()) / 2 < 12.5 and (x.min() + x.max()) / 2 > 14.5  # not its box


def test_uneven_light_and_grain_change_little():
    page = corner_stroke()
    y, x = np.mgrid[:1:240j, :1:200j]
    photograph = page * (1 - 0.6 * x - 0.2 * y**2)
    photograph += np.random.default_rng(0).normal(0, 0.03, page.shape)
    difference = fit_to_frame(photograph.clip(0, 1), 28) - fit_to_frame(page, 28)
    assert np.sqrt((difference**2).mean()) < 0.07


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_thin_strokes_are_made_as_thick_as_those_of_mnist(width):
    frame = fit_to_frame(corner_stroke(width), 28)
    assert 2 < frame[8].sum() < 3.5 and frame[8].max() > 0.9  # across the upright stroke
    assert fit_to_frame(corner_stroke(50), 28)[8].sum() > 4.5  # a thick one stays so


def test_specks_do_not_count():
    page = corner_stroke()
    page[10:12, 180:183] = page[225:228, 20:22] = 0
    assert np.array_equal(fit_to_frame(page, 28), fit_to_frame(corner_stroke(), 28))


def arc(x: float, y: float, rx: float, ry: float, start: int, end: int) -> list:
    """Points of an ellipse, angles in degrees, clockwise from the right."""
    angles = np.radians(np.linspace(start, end, 40))
    return [(x + rx * np.cos(a), y + ry * np.sin(a)) for a in angles]


STROKES = {  # of each digit, in a box from 0 to 1
    0: [arc(0.5, 0.5, 0.32, 0.5, -90, 270)],
    1: [[(0.5, 0), (0.5, 1)]],
    2: [[*arc(0.5, 0.28, 0.3, 0.28, 190, 390), (0.2, 1), (0.82, 1)]],
    3: [arc(0.45, 0.25, 0.3, 0.25, 200, 450) + arc(0.45, 0.73, 0.35, 0.27, -90, 150)],
    4: [[(0.45, 0), (0.12, 0.6), (0.88, 0.6)], [(0.68, 0.25), (0.68, 1)]],
    5: [[(0.8, 0), (0.3, 0), (0.25, 0.42), *arc(0.45, 0.69, 0.36, 0.31, -120, 140)]],
    6: [arc(0.75, 0.6, 0.55, 0.6, -100, -180) + arc(0.48, 0.72, 0.28, 0.28, 180, 540)],
    7: [[(0.15, 0), (0.85, 0), (0.4, 1)]],
    8: [arc(0.5, 0.25, 0.25, 0.25, 90, 450) + arc(0.5, 0.75, 0.3, 0.25, -90, 270)],
    9: [arc(0.48, 0.28, 0.28, 0.28, 0, 360), [(0.74, 0.45), (0.6, 1)]],
}


def drawn(digit: int, side: int, height: int, width: int, ink: int, page: int, slant: float):
    """A digit of that height in the midst of a square page, by a pen of that width, (side, side)."""
    picture = Image.new("L", (side, side), page)
    pen = ImageDraw.Draw(picture)
    for stroke in STROKES[digit]:
        line = [(side / 2 + height * (0.75 * (x - 0.5) - slant * (y - 0.5)),
                 side / 2 + height * (y - 0.5)) for x, y in stroke]  # fmt: skip
        pen.line(line, fill=ink, width=width, joint="curve")
    return np.asarray(picture) / 255


def photographed(page: np.ndarray, seed: int) -> np.ndarray:
    """In light that falls off to one side by half, and with the grain of a small sensor."""
    y, x = np.mgrid[: 1 : page.shape[0] * 1j, : 1 : page.shape[1] * 1j]
    light = 1 - 0.4 * x - 0.15 * y - 0.1 * (x - 0.5) ** 2
    grain = np.random.default_rng(seed).normal(0, 0.04, page.shape)
    return (page * light + grain).clip(0, 1)


@pytest.fixture(scope="module")
def mnist() -> Dataset:
    return load_dataset("mnist-5k", Path())


@pytest.fixture(scope="module")
def reader(mnist, tmp_path_factory):
    """What reads pictures (H, W): the classifier as fgsm.py trains it, after fit_to_frame."""
    folder = once(tmp_path_factory, "reader", lambda place: trained_classifier(mnist, place))
    model = trained_classifier(mnist, folder)

    def read(pictures: list[np.ndarray]) -> torch.Tensor:
        frames = np.stack([fit_to_frame(picture, 28) for picture in pictures])
        return predict(model, torch.from_numpy(frames).float()[:, None]).argmax(dim=1)

    return read


DARK, LIGHT, PENCIL = {"ink": 30, "page": 230}, {"ink": 240, "page": 15}, {"ink": 140, "page": 215}


@pytest.mark.parametrize("slant", [0.0, 0.25])
@pytest.mark.parametrize(
    ("side", "height", "width", "colours", "photo"),
    [
        (400, 240, 10, DARK, False), (400, 240, 2, DARK, False), (400, 240, 40, DARK, False),
        (400, 240, 10, LIGHT, False), (400, 240, 2, LIGHT, False), (28, 20, 2, LIGHT, False),
        (1800, 500, 3, DARK, False), (600, 120, 3, PENCIL, False), (400, 240, 8, DARK, True),
        (600, 240, 4, PENCIL, True), (400, 240, 10, LIGHT, True),
    ],
)  # fmt: skip
def test_a_drawn_digit_is_read(reader, side, height, width, colours, photo, slant):
    """By pens of all widths, on small and large pages, dark on light and light on dark."""
    pages = [drawn(digit, side, height, width, **colours, slant=slant) for digit in range(10)]
    if photo:
        pages = [photographed(page, digit) for digit, page in enumerate(pages)]
    assert (reader(pages) == torch.arange(10)).sum() >= 9


def test_real_digits_are_read_as_well_on_a_photographed_page(reader, mnist):
    """MNIST's held-out digits, enlarged and put off the middle of a page."""
    pages = []
    for seed, image in enumerate(mnist.test_images[:100, 0].numpy()):
        page = np.full((400, 500), 0.85)
        ink = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC)) / 255
        page[100:324, 180:404] -= 0.7 * ink
        pages.append(photographed(page, seed))
    labels = mnist.test_labels[:100]
    as_they_are = [image / 255 for image in mnist.test_images[:100, 0].numpy()]
    for pictures in (as_they_are, pages):
        assert (reader(pictures) == labels).float().mean() > 0.95
