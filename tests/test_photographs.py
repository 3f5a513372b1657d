from __future__ import annotations

import cv2
import numpy as np
import pytest

from imagelab.data.photographs import HELD_OUT, PATCH, TRAINING, photograph, random_patches


def test_held_out_photographs_are_not_trained_on():
    assert not set(TRAINING) & set(HELD_OUT)
    pictures = {name: photograph(name) for name in TRAINING + HELD_OUT}
    assert len({picture.tobytes() for picture in pictures.values()}) == len(pictures)
    for picture in pictures.values():
        assert picture.dtype == np.uint8 and picture.ndim in (2, 3) and min(picture.shape[:2]) > 100


def test_patches_are_parts_of_their_photograph():
    data = random_patches(30, seed=0)
    assert data.images.shape == (30, 3, PATCH, PATCH) and len(data.test_images) == 0
    found = 0
    for patch, label in zip(data.images, data.labels.tolist(), strict=True):
        picture = photograph(TRAINING[label])
        picture = picture if picture.ndim == 2 else picture[..., 0].copy()
        square = patch[0].numpy()
        ways = [np.rot90(s, k) for s in (square, square[:, ::-1]) for k in range(4)]
        found += any(
            cv2.matchTemplate(picture, np.ascontiguousarray(way), cv2.TM_SQDIFF_NORMED).min() < 1e-5
            for way in ways
        )
    assert found >= 6  # those at full scale, about a third


def test_the_seed_decides_the_patches():
    first, again, other = (random_patches(20, seed).images for seed in (0, 0, 1))
    assert (first == again).all() and not (first == other).all()


@pytest.mark.parametrize("name", ["camera", "china", "grace_hopper"])
def test_known_sizes(name):
    shapes = {"camera": (512, 512), "china": (427, 640, 3), "grace_hopper": (600, 512, 3)}
    assert photograph(name).shape == shapes[name]
