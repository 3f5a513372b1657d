from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from imagelab.data import digit_scenes
from imagelab.data.datasets import load_dataset


@pytest.fixture(scope="module")
def digits():
    return load_dataset("mnist-5k", Path())


def test_one_seed_one_set_of_scenes(digits):
    first = digit_scenes.render_scenes(digits.images, digits.labels, 8, 5, 128)
    again = digit_scenes.render_scenes(digits.images, digits.labels, 8, 5, 128)
    assert first[0].shape == (8, 3, 128, 128) and first[0].dtype == torch.uint8
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], again[1], strict=True))
    other = digit_scenes.render_scenes(digits.images, digits.labels, 8, 6, 128)
    assert not torch.equal(first[0], other[0])


def test_varied_scenes_show_more_than_their_photographs(digits, monkeypatch):
    """Over a flat photograph only digits and noise are seen; varied scenes have shapes and colours."""
    flat = np.full((300, 300, 3), 150, np.uint8)
    monkeypatch.setattr(digit_scenes, "_photographs", lambda _names: [flat, flat])

    def busy(varied: float) -> torch.Tensor:
        """Of each of 60 scenes, the share of pixels that are not near its commonest colour."""
        images, boxes, labels = digit_scenes.render_scenes(
            digits.images, digits.labels, 60, 5, 128, varied=varied
        )
        assert all(len(own) == len(kinds) >= 1 for own, kinds in zip(boxes, labels, strict=True))
        middle = images.flatten(2).float().median(dim=2).values[..., None, None]
        return ((images - middle).abs() > 40).any(dim=1).float().mean(dim=(1, 2))

    none, half, all_of_them = busy(0), busy(0.5), busy(1)
    assert none.max() < 0.3 and all_of_them.mean() > 2 * none.mean()
    assert none.mean() < half.mean() < all_of_them.mean()


def test_a_collage_shows_parts_of_both_scenes():
    rng = np.random.default_rng(0)
    dark, light = (np.full((64, 64, 3), value, np.float32) for value in (40, 220))
    kinds = set()
    for _ in range(30):
        seen = digit_scenes._collage(dark, light, rng)
        assert seen.shape == (64, 64, 3) and seen.min() >= 0 and np.isfinite(seen).all()
        kinds.add(np.ptp(seen[..., 0]) > 60)
    assert kinds == {True, False}  # with and without the other one


def test_boxes_lie_inside_and_overlap_a_little(digits):
    _, boxes, labels = digit_scenes.render_scenes(digits.images, digits.labels, 60, 0, 256)
    for own, kinds in zip(boxes, labels, strict=True):
        assert 1 <= len(own) == len(kinds) <= digit_scenes.MOST
        assert (own >= 0).all() and (own <= 256).all()
        sides = own[:, 2:] - own[:, :2]
        assert (sides > 3).all() and (sides.amax(dim=1) > 15).all() and (sides < 140).all()
        for i in range(len(own)):
            for j in range(i):
                overlap = digit_scenes.iou(own[i].numpy(), own[j].numpy())
                assert overlap <= digit_scenes.MAX_OVERLAP
    assert set(torch.cat(labels).tolist()) == set(range(10))


def test_the_box_is_that_of_the_ink():
    """A digit that is a full square fills its box, and nothing lies outside it."""
    block = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    block[..., 4:24, 4:24] = 255
    ink = digit_scenes.turned(block[0, 0].numpy(), 40, 0)
    assert ink.shape == pytest.approx((40, 40), abs=1) and (ink > 100).mean() > 0.95
    tilted = digit_scenes.turned(block[0, 0].numpy(), 40, 45)
    assert tilted.shape[0] == pytest.approx(40 * 2**0.5, abs=3)
    scene = np.zeros((100, 100, 3), np.float32)
    digit_scenes.lay(scene, ink, 10, 20, np.array([255, 0, 0]), 1.0)
    rows, columns = np.nonzero(scene[..., 0])
    assert (rows.min(), columns.min()) == (20, 10)
    assert (rows.max() + 1, columns.max() + 1) == (20 + ink.shape[0], 10 + ink.shape[1])
    digit_scenes.lay(scene, ink, 90, 90, np.array([0, 255, 0]), 1.0)  # what sticks out is cut


@pytest.mark.parametrize("size", [6, 12, 24, 90])
def test_a_real_digit_however_small_is_cut_to_its_ink(digits, size):
    """Thin strokes are not lost between the pixels, and no box is empty or wider than its ink."""
    for k, digit in enumerate(digits.test_images[:200, 0].numpy()):
        ink = digit_scenes.turned(digit, size, 60 * (k / 199) - 30)
        assert min(ink.shape) >= 1 and 0.6 * size < max(ink.shape) < 1.6 * size
        dark = ink > 0.4 * ink.max()
        assert dark[0].any() and dark[-1].any() and dark[:, 0].any() and dark[:, -1].any()
        shown = ink.sum() / digit.sum() * (20 / size) ** 2  # of the ink, at its new size
        assert 0.65 < shown < 1.1


def test_digits_move(digits):
    frames = list(digit_scenes.moving_scene(digits.test_images, 4, 0, 128))
    assert len(frames) == 4 and frames[0].shape == (128, 128, 3) and frames[0].dtype == np.uint8
    changed = (frames[0] != frames[3]).any(axis=2).mean()
    assert 0.005 < changed < 0.6  # the digits, not the photograph
    again = list(digit_scenes.moving_scene(digits.test_images, 2, 0, 128))
    assert (again[1] == frames[1]).all()


def test_patterns_have_two_colours_and_letters_are_no_digits():
    rng = np.random.default_rng(0)
    for _ in range(30):
        pattern = digit_scenes._pattern(rng, 64)
        assert pattern.shape == (64, 64, 3) and pattern.min() >= 0 and pattern.max() <= 255
        # All colours lie on the line between the two: one number tells a pixel's colour.
        centred = (pattern - pattern.mean(axis=(0, 1))).reshape(-1, 3)
        values = np.linalg.svd(centred, compute_uv=False)
        assert values[0] > 50 and values[1] < 1e-3 * values[0]
    assert not set(digit_scenes.GLYPHS) & set("0123456789OoIlSsZzBbGgqyD")
    for letter in digit_scenes.GLYPHS:
        ink = digit_scenes._glyph(letter)
        assert ink.shape == (28, 28) and 20 < (ink > 128).sum() < 400
        assert not ink[0].any() and not ink[:, 0].any()  # none is cut


def test_streets_are_backgrounds_of_training_alone(digits, monkeypatch):
    drawn = []
    monkeypatch.setattr(digit_scenes, "_streets", lambda: drawn.append(1) or [])
    digit_scenes.render_scenes(digits.images, digits.labels, 2, 5, 64)
    assert drawn == []
    digit_scenes.render_scenes(digits.images, digits.labels, 2, 5, 64, varied=0.5)
    assert drawn == [1]
