"""Boxes in the report: imagelab/report/boxes.py."""

from __future__ import annotations

import torch

from imagelab.report import boxes as drawn


def test_a_true_box_counts_once_and_for_its_class_only():
    boxes = torch.tensor([[0.0, 0, 40, 40], [50, 50, 90, 90], [0, 100, 20, 120]])
    labels = torch.tensor([1, 2, 0])
    found = {
        "boxes": torch.tensor([
            [1.0, 1, 41, 41],  # right
            [0, 0, 40, 40],  # the same object again
            [50, 50, 90, 90],  # of another class
            [0, 100, 20, 111],  # IoU 0.55
            [30, 0, 70, 40],  # IoU 0.14
        ]),
        "labels": torch.tensor([1, 1, 0, 0, 1]),
        "scores": torch.linspace(0.9, 0.5, 5),
    }  # fmt: skip
    right, taken = drawn.match(found, boxes, labels)
    assert right.tolist() == [True, False, False, True, False]
    assert taken.tolist() == [True, False, True]
    right, taken = drawn.match(found, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    assert right.tolist() == [False] * 5 and taken.shape == (0,)
    nothing = {name: value[:0] for name, value in found.items()}
    right, taken = drawn.match(nothing, boxes, labels)
    assert right.shape == (0,) and taken.tolist() == [False] * 3


def test_the_figure_marks_what_is_right_false_and_missed():
    boxes = [torch.tensor([[0.0, 0, 40, 40], [50, 50, 60, 60]])]
    labels = [torch.tensor([0, 1])]
    found = {"boxes": torch.tensor([[0.0, 0, 40, 40], [10, 50, 20, 60]]),
             "labels": torch.tensor([0, 1]), "scores": torch.tensor([0.9, 0.8])}  # fmt: skip
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    figure = drawn.plot_detections(images, [found], boxes, labels, ("car", "person"))
    above, below = figure.axes
    assert [text.get_text() for text in above.texts if text.get_text() != "true boxes"] == [
        "car", "person"]  # fmt: skip
    marked = [(text.get_text(), box.get_linestyle()) for text, box in
              zip([t for t in below.texts if t.get_text() != "detections"], below.patches,
                  strict=True)]  # fmt: skip
    assert marked == [("car 90%", "-"), ("person 80%", "-"), ("person", "--")]
    colours = [box.get_edgecolor() for box in below.patches]
    assert len(set(colours)) == 3
    assert below.patches[2].get_xy() == (49.5, 49.5)  # the missed one
