from __future__ import annotations

import numpy as np
import pytest

from imagelab.data import road_scenes


def scene(seed: int, height: int = 96, width: int = 144):
    return road_scenes.render_scene(np.random.default_rng(seed), height, width)


def test_one_seed_one_scene():
    picture, mask = scene(3)
    assert picture.shape == (96, 144, 3) and mask.shape == (96, 144)
    assert picture.dtype == mask.dtype == np.uint8
    again = scene(3)
    assert (picture == again[0]).all() and (mask == again[1]).all()
    assert (picture != scene(4)[0]).any()


def test_every_class_occurs_and_things_are_where_they_belong():
    masks = np.stack([scene(seed)[1] for seed in range(20)])
    assert set(np.unique(masks)) == set(range(len(road_scenes.CLASSES)))
    top, bottom = masks[:, :10], masks[:, -10:]
    assert (top == road_scenes.SKY).mean() > 0.3 and (bottom == road_scenes.SKY).mean() == 0
    assert (bottom == road_scenes.ROAD).mean() > 0.4 and (top == road_scenes.ROAD).mean() == 0


def test_the_mask_is_of_the_very_picture():
    """Where the mask says marking, the picture is brighter than where it says road."""
    compared = 0
    for seed in range(5):
        picture, mask = scene(seed)
        lines, road = mask == road_scenes.MARKING, mask == road_scenes.ROAD
        near = lines.copy()
        near[:60] = False  # near ones, which haze does not reach
        if near.any():
            compared += 1
            assert picture[near].mean() > picture[road].mean() + 25
    assert compared >= 3


def test_perspective():
    """What is twice as far is half as large, and its foot is half as far under the horizon."""
    view = road_scenes._Renderer(np.random.default_rng(0), 96, 144)
    view.bend = 0
    for z in (5.0, 12.0):
        heights = [view.point(0, d)[1] - view.point(0, d, up=2)[1] for d in (z, 2 * z)]
        feet = [view.point(0, d)[1] - view.horizon for d in (z, 2 * z)]
        assert heights[0] == pytest.approx(2 * heights[1])
        assert feet[0] == pytest.approx(2 * feet[1])


@pytest.mark.parametrize("size", [(32, 48), (200, 420)])
def test_any_size(size):
    picture, mask = scene(0, *size)
    assert picture.shape[:2] == mask.shape == size


def test_boxes_are_those_of_the_visible_pixels():
    hidden = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        picture, classes, instances, boxes = road_scenes.render_objects(rng, 96, 144)
        same = scene(seed)
        assert (picture == same[0]).all() and (classes == same[1]).all()
        # Every pixel of a car or a pedestrian belongs to one of them, and no other pixel does.
        objects = (classes == road_scenes.CAR) | (classes == road_scenes.PEDESTRIAN)
        assert ((instances > 0) == objects).all()
        assert instances.max() == len(boxes) and boxes.dtype == np.int64
        for k, (x0, y0, x1, y1, label) in enumerate(boxes.tolist(), start=1):
            own = instances == k
            assert (classes[own] == label).all()
            inside = own[y0:y1, x0:x1]
            assert inside.sum() == own.sum() > 0  # nothing is outside,
            for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert side.any()  # and no side is empty
            hidden += inside.all(axis=1).sum() < len(inside) / 2
    assert hidden


def test_an_object_behind_another_has_the_box_of_what_is_left():
    view = road_scenes._Renderer(np.random.default_rng(0), 40, 60)
    labels = [0, road_scenes.CAR, road_scenes.PEDESTRIAN, road_scenes.CAR]
    # Left, top, right, bottom. The third covers the lower half of the first, and all of the second.
    squares = [(10, 10, 30, 30), (12, 22, 16, 28), (5, 20, 40, 35)]
    for view.instance, (left, top, right, bottom) in enumerate(squares, start=1):
        outline = [(left, top), (right, top), (right, bottom), (left, bottom)]
        view.paint(outline, (0.5,) * 3, labels[view.instance], 10)
    instances, boxes = road_scenes._visible(view.instances, labels)
    assert boxes.tolist() == [
        [10, 10, 31, 20, road_scenes.CAR],  # its edges are part of a painted square
        [5, 20, 41, 36, road_scenes.CAR],
    ]
    assert instances[15, 20] == 1 and instances[25, 14] == 2 and instances[0, 0] == 0
