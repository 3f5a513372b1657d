"""Pictures with boxes around their objects.

Drawn streets and drawn digit scenes, CamVid's frames, or your own pictures with boxes in YOLO's text
format, Pascal VOC's XML or COCO's JSON.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from imagelab.data import digit_scenes, road_scenes
from imagelab.data.datasets import EMBEDDED, load_dataset
from imagelab.data.folders import by_stem, check_classes, own_path, pictures_in
from imagelab.data.masks import load_masked
from imagelab.data.pictures import exif_orientation, open_picture
from imagelab.data.tensors import Described
from imagelab.setup.runtime import UserError
from imagelab.setup.settings import unknown
from imagelab.setup.terminal import progress, readable, tell_once

Boxes = list[torch.Tensor]
Part = tuple[torch.Tensor, Boxes, Boxes]  # pictures, and the boxes and labels of each

NAMES = ("scenes", "digit-scenes", "camvid")
OWN = ("yolo:FOLDER", "voc:FOLDER", "folder:FOLDER", "coco:IMAGES:FILE.json")
STREET_CLASSES = ("car", "pedestrian")
MIN_PIXELS = 24  # visible pixels of the smallest object in a street of 256×256 pixels


@dataclass(frozen=True)
class BoxedPictures(Described):
    """Training pictures and held-out pictures (N, 3, S, S) uint8, and the objects in each.

    Each picture has `boxes` (n, 4), float, x1 y1 x2 y2 in pixels, and `labels` (n,), int64, which are
    indices into `classes`.
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


def load_boxed(
    name: str, count: int, test: int, size: int, data_dir: Path = Path("data")
) -> BoxedPictures:
    """The data set `name` (see NAMES and OWN), its pictures fitted into squares of `size` pixels.

    Of drawn scenes there are `count` for training and `test` held out. CamVid/ lies under `data_dir`.
    'folder:FOLDER' is read as 'voc:FOLDER' where it holds .xml files, else as 'yolo:FOLDER'. Raises
    UserError for an unknown name, missing files, and lines or entries that are no boxes.
    """
    if name == "scenes":
        return _streets(count, test, size)
    if name == "digit-scenes":
        return _digit_scenes(count, test, size)
    if name == "camvid":
        return _camvid(data_dir, size)
    kind, _, rest = name.partition(":")
    if kind in ("yolo", "voc", "folder") and rest:
        root = own_path(rest)
        if not root.is_dir():
            raise UserError(f"--dataset {kind}:FOLDER: there is no folder {readable(root)}.")
        if kind == "folder":
            kind = "voc" if _files(_annotation_folder(root), ".xml") else "yolo"
        read = _voc if kind == "voc" else _yolo
        return _split(f"{kind}:{root.name}", *read(root), size)
    if kind == "coco" and ":" in rest:
        images, _, file = rest.rpartition(":")
        if len(images) == 1 or images.endswith(":"):  # the colon was that of a Windows drive
            raise UserError(f"--dataset {name}: write coco:IMAGES:FILE.json with a relative path.")
        return _split(f"coco:{Path(file).stem}", *_coco(own_path(images), own_path(file)), size)
    raise unknown("--dataset", name, NAMES, *OWN)


def _streets(count: int, test: int, size: int) -> BoxedPictures:
    """The drawn streets of imagelab/data/road_scenes.py. Held-out ones come from another seed."""

    def draw(n: int, seed: int) -> Part:
        rng = np.random.default_rng([seed, size])
        pictures = np.empty((n, size, size, 3), np.uint8)
        all_boxes, all_labels = [], []
        for k in progress(range(n), "drawing scenes", "scene", keep=n > 50):
            scene = road_scenes.render_objects(rng, size, size)
            pictures[k] = scene.picture
            pixels = np.bincount(scene.instances.ravel(), minlength=len(scene.boxes) + 1)[1:]
            rows = scene.boxes[pixels >= MIN_PIXELS * (size / 256) ** 2]
            labels = [STREET_CLASSES.index(road_scenes.CLASSES[label]) for label in rows[:, 4]]
            all_boxes.append(torch.from_numpy(rows[:, :4]).float())
            all_labels.append(torch.tensor(labels, dtype=torch.long))
        return _channels_first(pictures), all_boxes, all_labels

    source = f"{count:,} street scenes drawn by imagelab/data/road_scenes.py, {test:,} held out"
    return BoxedPictures("scenes", source, STREET_CLASSES, *draw(count, 0), *draw(test, 1))


def _camvid(data_dir: Path, size: int) -> BoxedPictures:
    """CamVid's frames. A box holds a connected part of a class's mask: cars that touch share one."""
    data = load_masked("camvid", data_dir, 360)  # the height of its files
    values = {data.classes.index(name): k for k, name in enumerate(STREET_CLASSES)}

    def part(images: torch.Tensor, masks: torch.Tensor) -> Part:
        squares, all_boxes, all_labels = [], [], []
        for image, mask in zip(images, masks, strict=True):
            square, scale = fit(image.permute(1, 2, 0).numpy(), size)
            min_pixels = MIN_PIXELS * (size / 256 / scale) ** 2
            boxes, labels = boxes_of_mask(mask.numpy(), values, min_pixels)
            squares.append(square)
            all_boxes.append(boxes * scale)
            all_labels.append(labels)
        return _channels_first(np.stack(squares)), all_boxes, all_labels

    train, held_out = part(data.images, data.masks), part(data.test_images, data.test_masks)
    return BoxedPictures("camvid", data.source, STREET_CLASSES, *train, *held_out)


def boxes_of_mask(
    mask: np.ndarray, values: Mapping[int, int], min_pixels: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (n, 4) and labels (n,) of the connected parts of a mask (H, W) uint8.

    `values` maps values in the mask to labels. Parts of fewer than `min_pixels` pixels are left out.
    """
    import cv2

    boxes, labels = [], []
    for value, label in values.items():
        *_, parts, _ = cv2.connectedComponentsWithStats((mask == value).astype(np.uint8))
        for left, top, width, height, pixels in parts[1:]:  # part 0 is the rest of the picture
            if pixels >= min_pixels:
                boxes.append([left, top, left + width, top + height])
                labels.append(label)
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(labels).long()


def _channels_first(pictures: np.ndarray) -> torch.Tensor:
    """(N, H, W, 3) to (N, 3, H, W)."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def _digit_scenes(count: int, test: int, size: int) -> BoxedPictures:
    """Held-out scenes show held-out digits, over other parts of the same photographs.

    Training scenes hold up to twice as many digits, so that each scene teaches more. Three quarters of
    their backgrounds are more varied than the photographs are.
    """
    digits = load_dataset(EMBEDDED, Path())
    render = digit_scenes.render_scenes
    most = 2 * digit_scenes.MOST
    train = render(digits.images, digits.labels, count, 0, size, most=most, varied=0.75)
    held_out = render(digits.test_images, digits.test_labels, test, 1, size)
    source = (
        f"{count:,} scenes of MNIST digits over photographs, {test:,} held out, of held-out digits"
    )
    return BoxedPictures("digit-scenes", source, digits.classes, *train, *held_out)


# --- the user's own pictures ----------------------------------------------------------------------


@dataclass
class Entry:
    """A picture and its annotations.

    `size` is the width and height that the annotation file gives the picture, (0, 0) where it gives
    none. `boxes` are in pixels of a picture of that size. Where `size` is None, they are shares of the
    picture's sides.
    """

    picture: Path
    size: tuple[float, float] | None = None
    boxes: list[list[float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


def _yolo(root: Path) -> tuple[tuple[str, ...], list[Entry]]:
    """YOLO's text format: images/NAME.jpg and labels/NAME.txt, or both in one folder.

    A line is an object: class, centre x, centre y, width, height, as shares of the picture. classes.txt
    or `names` in data.yaml names the classes; these files may lie in the folder or beside the labels.
    """
    images = root / "images" if (root / "images").is_dir() else root
    labels = root / "labels" if (root / "labels").is_dir() else root
    texts = _files(labels, ".txt")
    by_name = by_stem([path for path in texts if path.stem.lower() != "classes"])
    entries = []
    for path in pictures_in(images):
        entry, text = Entry(path), by_name(path)
        entries.append(entry)
        if text is None:
            continue
        for number, line in enumerate(_lines(text), start=1):
            if not line.strip():
                continue
            try:
                label, x, y, w, h = line.split()
                x, y, w, h = shares = np.array([x, y, w, h], dtype=float)
                entry.labels.append(int(label))
                if entry.labels[-1] < 0 or not ((shares >= 0) & (shares <= 1)).all():
                    raise ValueError
            except ValueError as error:
                raise UserError(
                    f"{readable(text)}, line {number}: {readable(line)!r} is not 'class x y width "
                    "height' with shares from 0 to 1."
                ) from error
            check_classes(entry.labels[-1] + 1, f"{readable(text)}, line {number},")
            entry.boxes.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
        if entry.labels:
            _warn_of_rotation(path)
    if not any(entry.labels for entry in entries):
        raise UserError(
            f"There are {len(entries)} pictures in {readable(images)} and {len(texts)} label files in "
            f"{readable(labels)}, but no picture has a box in a label file of its name."
        )
    named = _yolo_names(root, labels)
    highest = max(label for entry in entries for label in entry.labels)
    classes = [named.get(k) or f"class {k}" for k in range(max(highest, *named, -1) + 1)]
    return tuple(classes), entries


def _yolo_names(root: Path, labels: Path) -> dict[int, str]:
    """The names of the classes by their numbers, where classes.txt or data.yaml gives them."""
    import yaml

    names = "classes.txt", "data.yaml", "data.yml"
    places = [folder / name for name in names for folder in (root, labels)]
    path = next((place for place in places if place.exists()), None)
    if path is None:
        return {}
    lines = _lines(path)
    if path.suffix == ".txt":  # a blank line counts, but not at the end
        names = "\n".join(line.strip() for line in lines).rstrip().splitlines()
    else:
        try:
            content = yaml.safe_load("\n".join(lines))
            names = content.get("names", {}) if isinstance(content, dict) else None
        except (yaml.YAMLError, RecursionError) as error:
            raise UserError(f"{readable(path)} is no YAML file.") from error
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(isinstance(k, int) and k >= 0 for k in names):
        raise UserError(
            f"`names` in {readable(path)} is neither a list nor a table of class numbers."
        )
    check_classes(max(names, default=-1) + 1, path)
    return {k: readable(name) for k, name in names.items() if name not in (None, "")}


def _lines(path: Path) -> list[str]:
    """The lines of a text file."""
    return _text(path).split("\n")


def _text(path: Path) -> str:
    """The content of a text file, without a byte order mark.

    Raises UserError where `path` is no text file, also for a folder, a pipe or a device.
    """
    if not path.is_file():
        raise UserError(
            f"{readable(path)} is no file."
            if path.exists()
            else f"There is no file {readable(path)}."
        )
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{readable(path)} is not a text file in UTF-8.") from error


def _files(folder: Path, suffix: str) -> list[Path]:
    """The files of `folder` that end in `suffix`, without hidden ones."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() == suffix and p.name[0] != ".")


def _annotation_folder(root: Path) -> Path:
    """Where the XML files lie: in Annotations/, or beside the pictures."""
    return root / "Annotations" if (root / "Annotations").is_dir() else root


def _voc(root: Path) -> tuple[tuple[str, ...], list[Entry]]:
    """Pascal VOC's format: JPEGImages/NAME.jpg and Annotations/NAME.xml, or both in one folder.

    Corners are pixels, counted from 1, and belong to the box. Objects marked as difficult are kept.
    The classes are sorted by name. Pictures without a file of their name have no object.
    """
    images = root / "JPEGImages" if (root / "JPEGImages").is_dir() else root
    annotations = _annotation_folder(root)
    files = _files(annotations, ".xml")
    by_name, entries, names = by_stem(files), [], []
    for path in pictures_in(images):
        file = by_name(path)
        size, boxes, own = _voc_file(file) if file else ((0, 0), [], [])
        entries.append(Entry(path, size, boxes))
        names.append(own)
    if not any(names):
        raise UserError(
            f"There are {len(entries)} pictures in {readable(images)} and {len(files)} XML files in "
            f"{readable(annotations)}, but no picture has a box in an XML file of its name."
        )
    classes = sorted(set().union(*names))
    check_classes(len(classes), annotations)
    for entry, own in zip(entries, names, strict=True):
        entry.labels = [classes.index(name) for name in own]
    return tuple(classes), entries


def _voc_file(path: Path) -> tuple[tuple[float, float], list[list[float]], list[str]]:
    """The picture's size (0, 0 if it is not given), boxes and names of classes in an XML file."""
    text, at = _text(path), "its text"
    try:
        root = ElementTree.fromstring(text)
        if root.tag != "annotation":
            raise ValueError(f"the outermost element is {root.tag!r}, not 'annotation'")
        at = "its size"
        width, height = (float(root.findtext(f"size/{side}") or 0) for side in ("width", "height"))
        if not (0 <= width < np.inf and 0 <= height < np.inf):
            raise ValueError(f"{width:g} × {height:g}")
        boxes, names = [], []
        for k, element in enumerate(root.findall("object"), start=1):
            at = f"object {k}"
            name = (element.findtext("name") or "").strip()
            x1, y1, x2, y2 = corners = [
                float(element.findtext(f"bndbox/{corner}") or "nan")
                for corner in ("xmin", "ymin", "xmax", "ymax")
            ]
            if not name or not np.isfinite(corners).all() or x2 < x1 or y2 < y1:
                raise ValueError(f"name {name!r}, xmin ymin xmax ymax {x1:g} {y1:g} {x2:g} {y2:g}")
            boxes.append([x1 - 1, y1 - 1, x2, y2])
            names.append(readable(name))
    except (ElementTree.ParseError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{readable(path)} is no annotation in Pascal VOC's XML: {at} cannot be read "
            f"({readable(error)})."
        ) from error
    size = (width, height) if width and height else (0.0, 0.0)
    return size, boxes, names


def _coco(images: Path, file: Path) -> tuple[tuple[str, ...], list[Entry]]:
    """A COCO file of instances: images, annotations with bbox x y width height, categories."""
    text, at = _text(file), "its outermost level"
    try:
        content = json.loads(text)
        categories = {}
        for k, category in enumerate(content["categories"]):
            at = f"category {k + 1}"
            categories[category["id"]] = readable(category["name"])
        at = "its categories"
        order = sorted(categories)
        check_classes(len(order), file)
        entries = {}
        for k, image in enumerate(content["images"]):
            at = f"image {k + 1}"
            size = image.get("width"), image.get("height")
            if not all(
                side is None or (isinstance(side, int | float) and side > 0) for side in size
            ):
                raise ValueError(f"width and height {size}")
            if image["id"] in entries:
                raise ValueError(f"its id {image['id']!r} is that of another image")
            size = (0, 0) if None in size else size
            entries[image["id"]] = Entry(images / image["file_name"], size)
        for k, annotation in enumerate(content["annotations"]):
            at = f"annotation {k + 1} (id {annotation.get('id')!r})"
            if annotation.get("iscrowd"):  # many objects in one box
                continue
            x, y, w, h = map(float, annotation["bbox"])
            if not (np.isfinite([x, y]).all() and 0 <= w < np.inf and 0 <= h < np.inf):
                raise ValueError(f"bbox {annotation['bbox']}")
            for key, known in (("image_id", entries), ("category_id", categories)):
                if annotation[key] not in known:
                    raise ValueError(f"{key} {annotation[key]!r} is not among the file's own")
            entry = entries[annotation["image_id"]]
            entry.boxes.append([x, y, x + w, y + h])
            entry.labels.append(order.index(annotation["category_id"]))
    except KeyError as error:
        raise UserError(
            f"{readable(file)} is not a COCO file of instances: {at} has no {error}."
        ) from error
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{readable(file)} is not a COCO file of instances: {at} cannot be read ({readable(error)})."
        ) from error
    return tuple(categories[k] for k in order), list(entries.values())


def _in_pixels(entry: Entry, width: int, height: int) -> torch.Tensor:
    """The boxes (n, 4) of an entry, x1 y1 x2 y2 in pixels of its upright picture of `width` × `height`.

    The size in the annotation file shows whether the boxes were drawn at another scale, or on the
    picture as it is stored, before its EXIF rotates it. Raises UserError where neither explains it.
    """
    boxes = torch.tensor(entry.boxes, dtype=torch.float64).reshape(-1, 4)
    if entry.size is None:
        return boxes * torch.tensor([width, height, width, height])
    w, h = entry.size
    if not entry.boxes or (w, h) in ((0, 0), (width, height)):  # 0: the file does not say
        if entry.boxes and (w == h or exif_orientation(entry.picture) < 5):
            _warn_of_rotation(entry.picture)
        return boxes
    if _same_shape((w, h), (width, height)):
        return boxes * torch.tensor([width / w, height / h] * 2)
    turn = exif_orientation(entry.picture)
    if turn < 5 or not _same_shape((h, w), (width, height)):
        raise UserError(
            f"{readable(entry.picture)} is {width}×{height} pixels, but its annotations say {w:g}×{h:g}."
        )
    x, y = boxes[:, 0::2] / w, boxes[:, 1::2] / h  # shares of the stored picture
    x, y = (1 - y if turn in (6, 7) else y), (1 - x if turn in (7, 8) else x)
    x, y = x.sort(dim=1).values * width, y.sort(dim=1).values * height
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1)


def _warn_of_rotation(path: Path) -> None:
    """Say what is assumed where nothing tells on which picture the boxes were drawn."""
    if exif_orientation(path) != 1:
        tell_once(
            "it is turned by its EXIF; its boxes are taken for those of the upright picture.", path
        )


def _same_shape(size: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether one is the other scaled, but for the rounding to whole pixels of the smaller one."""
    small, large = sorted((size, other))
    scale = large[0] / small[0]
    return abs(small[1] * scale - large[1]) <= max(scale, 1)


def _split(name: str, classes: tuple[str, ...], entries: list[Entry], size: int) -> BoxedPictures:
    """The data set of these entries: pictures scaled to fit into squares, every tenth held out."""
    name = readable(name)
    count = sum(len(entry.labels) for entry in entries)
    if len(entries) < 10 or count == 0:
        raise UserError(
            f"{name}: {len(entries)} pictures with {count} boxes; at least 10 pictures and a box are "
            "needed."
        )
    images, all_boxes, all_labels = [], [], []
    for entry in entries:
        picture = np.asarray(open_picture(entry.picture).convert("RGB"))
        height, width = picture.shape[:2]
        image, scale = fit(picture, size)
        images.append(image)
        boxes = _in_pixels(entry, width, height)
        boxes = boxes.clamp(min=0).minimum(torch.tensor([width, height] * 2)) * scale
        visible = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)  # else empty, or outside the picture
        all_boxes.append(boxes[visible].float())
        all_labels.append(torch.tensor(entry.labels, dtype=torch.long)[visible])
    stacked = _channels_first(np.stack(images))
    test = [k for k in range(len(entries)) if k % 10 == 9]
    train = [k for k in range(len(entries)) if k % 10 != 9]
    seen, held_out = (
        set(torch.cat([all_labels[k] for k in part]).tolist()) for part in (train, test)
    )
    if not held_out:
        raise UserError(
            f"{name}: every tenth picture is held out, and none of these has a box inside it."
        )
    if not seen:
        raise UserError(f"{name}: none of the pictures to train on has a box inside it.")
    for k in sorted(held_out - seen):
        tell_once(
            f"The class {classes[k]} occurs in held-out pictures only: it is measured, never learnt."
        )

    def part(rows: list[int]) -> Part:
        return stacked[rows], [all_boxes[k] for k in rows], [all_labels[k] for k in rows]

    source = f"{len(entries)} pictures of {name}, every tenth held out"
    return BoxedPictures(name, source, classes, *part(train), *part(test))


def fit(picture: np.ndarray, size: int) -> tuple[np.ndarray, float]:
    """A picture (H, W, 3) uint8 scaled into the upper left of a grey square of `size`, and the scale."""
    import cv2

    scale = size / max(picture.shape[:2])
    height, width = (max(round(side * scale), 1) for side in picture.shape[:2])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    square = np.full((size, size, 3), 128, np.uint8)
    square[:height, :width] = cv2.resize(picture, (width, height), interpolation=method)
    return square, scale
