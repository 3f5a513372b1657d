"""Pictures in which things have boxes: drawn digit scenes, YOLO text files, COCO JSON; drawing boxes."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from imagelab.data import digit_scenes
from imagelab.data.datasets import EMBEDDED, Described, load_dataset, pictures_in
from imagelab.data.pictures import open_picture
from imagelab.report import figures
from imagelab.setup.runtime import UserError
from imagelab.setup.settings import unknown

Boxes = list[torch.Tensor]


@dataclass(frozen=True)
class BoxedPictures(Described):
    """Pictures (N, 3, S, S) uint8 to train on and held out; of each, what is in it.

    `boxes`: (n, 4) float x1 y1 x2 y2 in pixels; `labels`: (n,) int64, indices into `classes`.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    images: torch.Tensor
    boxes: Boxes
    labels: Boxes
    test_images: torch.Tensor
    test_boxes: Boxes
    test_labels: Boxes

    def to(self, device: torch.device) -> BoxedPictures:
        def moved(value):
            if isinstance(value, list):
                return [part.to(device) for part in value]
            return value.to(device) if isinstance(value, torch.Tensor) else value

        return BoxedPictures(*(moved(getattr(self, part.name)) for part in fields(self)))


def load_boxed(name: str, count: int, test: int, size: int) -> BoxedPictures:
    """'digit-scenes' (`count` drawn for training, `test` held out), 'yolo:FOLDER' or
    'coco:IMAGES:FILE.json', fitted into squares of `size` pixels.

    Raises UserError: unknown name, missing files, lines or entries that are no boxes.
    """
    if name == "digit-scenes":
        return _drawn(count, test, size)
    kind, _, rest = name.partition(":")
    if kind == "yolo" and rest:
        return _split(f"yolo:{Path(rest).name}", *_yolo(Path(rest)), size)
    if kind == "coco" and ":" in rest:
        images, _, file = rest.rpartition(":")
        if len(images) == 1 or images.endswith(":"):  # the colon was that of a Windows drive
            raise UserError(f"--dataset {name}: write coco:IMAGES:FILE.json with a relative path.")
        return _split(f"coco:{Path(file).stem}", *_coco(Path(images), Path(file)), size)
    others = "yolo:FOLDER", "coco:IMAGES:FILE.json"
    raise unknown("--dataset", name, ("digit-scenes",), *others)


def _drawn(count: int, test: int, size: int) -> BoxedPictures:
    """Held-out scenes have held-out digits, over other cuts of the same photographs.

    Those to train on hold up to twice as many digits: as much more to learn from each.
    """
    digits = load_dataset(EMBEDDED, Path())
    draw = digit_scenes.draw_scenes
    train = draw(digits.images, digits.labels, count, 0, size, most=2 * digit_scenes.MOST)
    held_out = draw(digits.test_images, digits.test_labels, test, 1, size)
    source = (
        f"{count:,} scenes of MNIST digits over photographs, {test:,} held out, of held-out digits"
    )
    return BoxedPictures("digit-scenes", source, digits.classes, *train, *held_out)


# --- the user's own -------------------------------------------------------------------------------

Entry = tuple[Path, list[list[float]], list[int]]  # a picture, boxes in pixels, labels


def _yolo(root: Path) -> tuple[tuple[str, ...], list[Entry]]:
    """images/NAME.jpg with labels/NAME.txt (or both beside each other), a line for each thing:
    class, centre x, centre y, width, height, as shares of the picture; classes.txt names classes."""
    if not root.is_dir():
        raise UserError(f"--dataset yolo:FOLDER: there is no folder {root}.")
    images = root / "images" if (root / "images").is_dir() else root
    labels = root / "labels" if (root / "labels").is_dir() else root
    entries: list[Entry] = []
    for path in pictures_in(images):
        text = labels / f"{path.stem}.txt"
        lines = _lines(text)
        width, height = open_picture(path).size
        boxes, kinds = [], []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                kind, x, y, w, h = line.split()
                shares = np.array([x, y, w, h], dtype=float)
                kinds.append(int(kind))
                if kinds[-1] < 0 or not ((shares >= 0) & (shares <= 1)).all():
                    raise ValueError
            except ValueError as error:
                raise UserError(f"{text}, line {number}: {line.strip()!r} is not 'class x y width "
                                "height' with shares from 0 to 1.") from error  # fmt: skip
            x, y, w, h = shares * (width, height, width, height)
            boxes.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        entries.append((path, boxes, kinds))
    highest = max((kind for _, _, kinds in entries for kind in kinds), default=-1)
    names = root / "classes.txt"
    named = "\n".join(name.strip() for name in _lines(names)).rstrip().splitlines()
    classes = [name or f"class {k}" for k, name in enumerate(named)]  # a blank line counts too
    classes += [f"class {k}" for k in range(len(classes), highest + 1)]
    return tuple(classes), entries


def _lines(path: Path) -> list[str]:
    """Of a text file, with or without a byte order mark; none if it is not there."""
    try:
        return path.read_text("utf-8-sig").split("\n") if path.is_file() else []
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file in UTF-8.") from error


def _coco(images: Path, file: Path) -> tuple[tuple[str, ...], list[Entry]]:
    """A COCO file of instances: images, annotations with bbox x y width height, categories."""
    if not file.is_file():
        raise UserError(f"There is no file {file}.")
    try:
        content = json.loads(file.read_text("utf-8-sig"))
        categories = sorted(content["categories"], key=lambda category: category["id"])
        index = {category["id"]: k for k, category in enumerate(categories)}
        entries = {
            image["id"]: (images / image["file_name"], [], []) for image in content["images"]
        }
        for thing in content["annotations"]:
            if thing.get("iscrowd"):  # a region in which nobody counted
                continue
            x, y, w, h = map(float, thing["bbox"])
            if not (np.isfinite([x, y]).all() and 0 <= w < np.inf and 0 <= h < np.inf):
                raise ValueError(f"bbox {thing['bbox']}")
            _, boxes, kinds = entries[thing["image_id"]]
            boxes.append([x, y, x + w, y + h])
            kinds.append(index[thing["category_id"]])
        classes = tuple(str(category["name"]) for category in categories)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not a COCO file of instances ({error!r}).") from error
    return classes, list(entries.values())


def _split(name: str, classes: tuple[str, ...], entries: list[Entry], size: int) -> BoxedPictures:
    """Fit every picture into its square; every tenth is held out."""
    if len(entries) < 10 or not any(kinds for _, _, kinds in entries):
        raise UserError(f"{name}: {len(entries)} pictures with "
                        f"{sum(len(kinds) for _, _, kinds in entries)} boxes; at least 10 pictures "
                        "and a box are needed.")  # fmt: skip
    images, all_boxes, all_labels = [], [], []
    for path, boxes, kinds in entries:
        image, scale = fit(np.asarray(open_picture(path).convert("RGB")), size)
        images.append(image)
        scaled = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) * scale
        scaled = scaled.clamp(0, size)
        there = (scaled[:, 2:] > scaled[:, :2]).all(dim=1)  # else empty, or outside the picture
        all_boxes.append(scaled[there])
        all_labels.append(torch.tensor(kinds, dtype=torch.long)[there])
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    test = [k for k in range(len(entries)) if k % 10 == 9]
    if not any(entries[k][2] for k in test):
        raise UserError(f"{name}: every tenth picture is held out, and none of these has a box.")
    train = [k for k in range(len(entries)) if k % 10 != 9]

    def part(rows: list[int]) -> tuple[torch.Tensor, Boxes, Boxes]:
        return stacked[rows], [all_boxes[k] for k in rows], [all_labels[k] for k in rows]

    source = f"{len(entries)} pictures of {name}, every tenth held out"
    return BoxedPictures(name, source, classes, *part(train), *part(test))


def fit(picture: np.ndarray, size: int) -> tuple[np.ndarray, float]:
    """A picture (H, W, 3) uint8 in the upper left of a grey square of `size`, and how it was scaled."""
    import cv2

    scale = size / max(picture.shape[:2])
    height, width = (max(round(side * scale), 1) for side in picture.shape[:2])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    square = np.full((size, size, 3), 128, np.uint8)
    square[:height, :width] = cv2.resize(picture, (width, height), interpolation=method)
    return square, scale


# --- drawing --------------------------------------------------------------------------------------


def draw_boxes(
    picture: np.ndarray, found: dict[str, torch.Tensor], classes: tuple[str, ...], least: float,
    scale: float = 1.0,
) -> np.ndarray:  # fmt: skip
    """A copy of (H, W, 3) uint8 with boxes, their classes, and how sure they are.

    `found` holds boxes (n, 4) x1 y1 x2 y2, here divided by `scale`, labels (n,) and scores (n,) from
    0 to 1, of which those under `least` are not drawn.
    """
    import cv2

    drawn = np.ascontiguousarray(picture).copy()
    side, font = max(picture.shape), cv2.FONT_HERSHEY_SIMPLEX
    thick, size = max(round(side / 400), 1), max(side / 640, 0.4)
    for box, label, score in zip(
        *(found[name].tolist() for name in ("boxes", "labels", "scores")), strict=True
    ):
        if score < least:
            continue
        left, top, right, bottom = (round(at / scale) for at in box)
        colour = figures.rgb(figures.CLASS_COLOURS[label % len(figures.CLASS_COLOURS)])
        cv2.rectangle(drawn, (left, top), (right, bottom), colour, thick, cv2.LINE_AA)
        text = f"{classes[label]} {score:.0%}"
        (width, height), base = cv2.getTextSize(text, font, size, thick)
        left, top = min(left, max(picture.shape[1] - width, 0)), max(top - height - base, 0)
        cv2.rectangle(drawn, (left, top), (left + width, top + height + base), colour, -1)
        ink = (0, 0, 0) if sum(colour) > 380 else (255, 255, 255)
        cv2.putText(drawn, text, (left, top + height), font, size, ink, thick, cv2.LINE_AA)
    return drawn
