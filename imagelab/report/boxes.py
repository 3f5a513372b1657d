"""Boxes around objects: drawn into pictures, and compared with the true ones."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from imagelab.data.boxes import Boxes
from imagelab.data.photographs import HELD_OUT, TRAINING, photograph
from imagelab.report import figures
from imagelab.report.results import Result
from imagelab.techniques.pretrained import Finder, face_cascade

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_SCORE = 0.4  # boxes with a lower score are not drawn
CAPTION = (  # of `plot_detections`
    "The first held-out pictures: the true boxes, and those with a score of "
    f"{MIN_SCORE} or more. Right: a true box of the class overlaps it with an IoU of 0.5 or more."
)
# Of one picture: boxes (n, 4) x1 y1 x2 y2 in pixels, labels (n,), mostly scores (n,), in falling order.
Detections = dict[str, torch.Tensor]


def draw_boxes(
    picture: np.ndarray,
    detections: Detections,
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


def match(found: Detections, boxes: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Which detections are right (n,), and which of the true boxes (m, 4) are found (m,).

    A detection is right where a true box of its class overlaps it with an IoU of 0.5 or more. A true box
    counts once, for the detection with the highest score.
    """
    from torchvision.ops import box_iou

    iou = box_iou(found["boxes"], boxes) * (found["labels"][:, None] == labels)  # (n, m)
    right, taken = iou.new_zeros(len(iou)).bool(), iou.new_zeros(len(boxes)).bool()
    for k in range(len(iou) if len(boxes) else 0):  # the highest score first
        best, j = (iou[k] * ~taken).max(dim=0)
        right[k] = best >= 0.5
        taken[j] |= right[k]
    return right, taken


def plot_boxes(
    rows: Mapping[str, tuple[torch.Tensor, Boxes, Boxes]], classes: tuple[str, ...]
) -> Figure:
    """Per name a row of pictures (N, 3, S, S) in [0, 1] with their boxes. A label of −1 is no object."""
    columns = max(len(images) for images, _, _ in rows.values())
    figure, axes = figures.new_figure(3 * columns, 3.2 * len(rows), len(rows), columns)
    for row, (images, boxes, labels) in zip(axes, rows.values(), strict=True):
        for axis, image, own, kinds in zip(row, images, boxes, labels, strict=True):
            figures.show_image(axis, figures.as_picture(image))
            names = [classes[kind] for kind in kinds[kinds >= 0]]
            outline_boxes(axis, own[kinds >= 0], names, figures.PALETTE[0])
    figures.name_rows(axes, list(rows))
    return figure


def plot_detections(
    images: torch.Tensor,
    found: list[Detections],
    boxes: Boxes,
    labels: Boxes,
    classes: tuple[str, ...],
) -> Figure:
    """Per picture (3, S, S) uint8 a column: the true boxes, and what is right, false and missed."""
    from matplotlib.patches import Patch

    rows = int((images != 128).any(dim=3).flatten(0, 1).nonzero()[:, 1].max()) + 1  # no grey margin
    height = 0.4 + 8 * rows / images.shape[2]
    figure, axes = figures.new_figure(4 * len(images), height, 2, len(images))
    kinds = {"right": figures.PALETTE[2], "false": figures.PALETTE[1], "missed": figures.PALETTE[3]}
    names = np.array(classes)
    for k, of_picture in enumerate(found):
        right, taken = (part.cpu().numpy() for part in match(of_picture, boxes[k], labels[k]))
        truth, true_names = boxes[k].cpu(), names[labels[k].cpu().numpy()]
        scores = np.array([f" {score:.0%}" for score in of_picture["scores"]], dtype=str)
        texts = np.char.add(names[of_picture["labels"].cpu().numpy()], scores)
        above, below = axes[:, k]
        for axis in (above, below):
            figures.show_image(axis, images[k, :, :rows].permute(1, 2, 0).cpu().numpy())
        outline_boxes(above, truth, true_names, figures.PALETTE[0])
        for kind, chosen in (("right", right), ("false", ~right)):
            outline_boxes(below, of_picture["boxes"].cpu()[chosen], texts[chosen], kinds[kind])
        outline_boxes(below, truth[~taken], true_names[~taken], kinds["missed"], dashed=True)
    figures.name_rows(axes, ("true boxes", "detections"))
    handles = [Patch(fill=False, edgecolor=colour, label=kind) for kind, colour in kinds.items()]
    handles[-1].set_linestyle("--")
    figure.legend(handles=handles, loc="outside lower center", ncols=len(kinds))
    return figure


def average_precision(
    found: list[Detections], boxes: Boxes, labels: Boxes
) -> dict[str, torch.Tensor]:
    """torchmetrics' mean average precision of what was found in each picture."""
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(class_metrics=True, sync_on_compute=False)
    metric.warn_on_many_detections = False  # it counts the hundred highest scores of a picture
    truth = [{"boxes": b, "labels": k} for b, k in zip(boxes, labels, strict=True)]
    metric.update(found, truth)
    return metric.compute()


def add_scores(
    result: Result,
    every: list[Detections],
    found: list[Detections],
    boxes: Boxes,
    labels: Boxes,
    classes: tuple[str, ...],
) -> None:
    """Add to `result` how well objects are found in held-out pictures, with their true boxes and labels.

    Average precision ranks `every` box, also those with a low score. `found` are those with a high one.
    """
    scores, n = average_precision(every, boxes, labels), len(boxes)
    for name, value in (("mAP at 0.5", scores["map_50"]), ("mAP at 0.5 to 0.95", scores["map"])):
        if value >= 0:  # torchmetrics gives −1 for what it could not measure
            result.add_metric(name, value, n, better="higher")
    matches = map(match, found, boxes, labels)
    right, taken = (torch.cat(part).float() for part in zip(*matches, strict=True))
    result.add_metric("objects found", taken.mean(), len(taken), better="higher")
    result.add_metric("false boxes per picture", (1 - right).sum() / n, n, better="lower")
    counts = torch.bincount(torch.cat(labels), minlength=len(classes)).tolist()
    by_class = torch.stack([scores["classes"], scores["map_per_class"]]).reshape(2, -1).T.tolist()
    rows = [[classes[int(k)], counts[int(k)], ap if ap >= 0 else "absent"] for k, ap in by_class]
    columns = ["class", "objects", "AP at 0.5 to 0.95"]
    result.add_table(f"{n} held-out pictures", columns, rows)


def add_speed(result: Result, find: Finder, images: torch.Tensor, classes: tuple[str, ...]) -> None:
    """Add to `result` how many pictures (N, 3, H, W) uint8 a second are searched and drawn into."""
    pictures, started = list(images.permute(0, 2, 3, 1).cpu().numpy()), time.perf_counter()
    for picture in pictures:
        draw_boxes(picture, find(picture), classes)
    rate = len(pictures) / (time.perf_counter() - started)
    result.add_metric("frames a second, drawing included", rate, len(pictures), better="higher")


def plot_steps(
    images: torch.Tensor,
    objectness: torch.Tensor,
    before: list[Detections],
    after: list[Detections],
    classes: tuple[str, ...],
) -> Figure:
    """Per picture (3, S, S) uint8 a column: scores of the cells, boxes before and after suppression."""
    figure, axes = figures.new_figure(3.6 * len(images), 11, 3, len(images))
    for k, column in enumerate(axes.T):
        picture = images[k].permute(1, 2, 0).cpu().numpy()
        for axis in column:
            figures.show_image(axis, picture)
        extent = (-0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5)
        column[0].imshow(
            objectness[k].cpu().numpy(), cmap="magma", vmin=0, vmax=1, alpha=0.7, extent=extent
        )
        for axis, found in ((column[1], before[k]), (column[2], after[k])):
            texts = [classes[c] for c in found["labels"]] if found is after[k] else []
            outline_boxes(axis, found["boxes"], texts, figures.PALETTE[4])
    figures.name_rows(axes, ("score of each cell", "boxes with a high score", "after suppression"))
    return figure


# How many faces look out of the photographs inside the packages, counted by eye; the others have none.
FACES = {"astronaut": 1, "grace_hopper": 1}


def search_faces(result: Result) -> None:
    """Add to `result` what a trained cascade finds in the photographs inside the packages."""
    find, pictures, rows = face_cascade(), {}, []
    for name in (*TRAINING, *HELD_OUT):
        picture = photograph(name)
        picture = picture if picture.ndim == 3 else np.stack([picture] * 3, axis=-1)
        found, faces = find(picture), FACES.get(name, 0)
        rows.append([name.replace("_", " "), faces, len(found["boxes"])])
        if faces or len(found["boxes"]):
            pictures[f"{rows[-1][0]}: {faces or 'no'} face"] = draw_boxes(picture, found, ("face",))
    result.add_table("A trained cascade looks for faces", ["photograph", "faces", "boxes"], rows)
    caption = f"A trained cascade, which is no neural network, looks for faces in {len(rows)} "
    caption += "photographs inside the packages. Here are those that have a face or a box."
    result.add_figure("faces.png", figures.plot_side_by_side(pictures, rows=2), caption)
