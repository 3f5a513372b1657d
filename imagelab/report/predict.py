"""What networks see in pictures, folders, films and cameras of one's own.

These are the `predict` commands of the detection and the segmentation. The network is the one that the
script has trained, or a trained one: of torchvision, or scikit-image's cascade for faces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from imagelab.data.masks import IGNORE
from imagelab.data.tensors import unit
from imagelab.data.video import Predictor, open_video, process_media, write_video
from imagelab.report import figures
from imagelab.report.boxes import MIN_SCORE, draw_boxes
from imagelab.report.live import show_live
from imagelab.report.masks import colours, overlay
from imagelab.report.results import Result
from imagelab.setup.runtime import UserError, prepare
from imagelab.setup.settings import Common, Limits
from imagelab.techniques import pretrained

# --- boxes ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PredictBoxes(Common):
    """Find objects in a picture, a folder of pictures, a video, or the pictures of a camera."""

    source: str
    """A picture, a folder, a video file, or the number of a camera."""
    output: Path | None = None
    """Where to write the result: a picture, a folder, or a video (.webm, .mp4, .avi)."""
    live: bool = False
    """Show a video or a camera while it is searched, with the frames a second: in a window, or on a page
    for the browser where there is no display."""
    port: Annotated[int, Limits(0, 65535)] = 8000
    """The port of the page, at http://127.0.0.1:PORT/. 0: any free one."""
    output_dir: Path = Path(".")
    """The --output-dir of the training."""
    model: Path | None = None
    """The checkpoint of a training. Default: study_models/detection/scenes.pth under --output-dir."""
    coco: pretrained.CocoModel | None = None
    """Use a detector of torchvision instead, trained on the 91 classes of COCO."""
    weights: Path | None = None
    """Weights file for --coco. Default: torchvision's cache, else its download."""
    cascade: bool = False
    """Find faces with scikit-image's trained cascade instead; it needs no training and no weights."""
    least: Annotated[float, Limits(0, 1)] = MIN_SCORE
    """Boxes with a lower score are not drawn."""


def box_predictor(
    find: pretrained.Finder, classes: tuple[str, ...], min_score: float = MIN_SCORE
) -> Predictor:
    """Turns a detector into one that draws what it finds into the picture (H, W, 3) uint8."""
    return lambda picture: draw_boxes(picture, find(picture), classes, min_score)


def add_film(result: Result, frames: Iterable[np.ndarray], predictor: Predictor) -> None:
    """Add a film of `frames` (H, W, 3) uint8, and the same film with what the predictor finds in it."""
    film = result.add_file("moving.webm", "A film without the detections.", featured=False)
    write_video(film, frames)
    with open_video(film) as video:
        caption = "The detections in a film (moving.webm), in each frame alone."
        write_video(result.add_file("found.webm", caption), map(predictor, video.frames))


# A trained network on a device: it draws what it sees into a picture.
LoadBoxes = Callable[[PredictBoxes, torch.device], Predictor]


def load_box_predictor(
    config: PredictBoxes, load_own: LoadBoxes, device: torch.device
) -> Predictor:
    """The chosen detector: the cascade, one of torchvision, or the script's own."""
    if config.cascade:
        return box_predictor(pretrained.face_cascade(), ("face",))
    if config.coco is not None:
        find, classes = pretrained.coco_detector(config.coco, config.weights, device)
        return box_predictor(find, classes, config.least)
    return load_own(config, device)


def predict_boxes(config: PredictBoxes, load_own: LoadBoxes) -> None:
    """Read the source, detect, write or show the result, and print the speed."""
    if config.weights is not None and config.coco is None:
        raise UserError("--weights is for torchvision's detectors: add --coco MODEL.")
    if config.cascade and (config.coco or config.model):
        raise UserError("--cascade finds faces without a network: leave out --coco and --model.")
    if (config.output is None) == (not config.live):
        raise UserError("Give either --output, to write the result, or --live, to watch it.")
    load = partial(load_box_predictor, config, load_own, prepare(0, config.device))
    if config.output is None:
        print(show_live(config.source, load, config.port))
    else:
        print(process_media(config.source, config.output, load))


# --- the classes of pixels ------------------------------------------------------------------------

HEIGHTS = {"deeplabv3": 520, "fcn": 520, "maskrcnn": 800}  # pixels, as torchvision trained them
MIN_MASK_SCORE = 0.5  # Mask R-CNN's objects with a lower score are not drawn
BACKGROUND = ("other", "__background__")  # classes that stay uncoloured


@dataclass(frozen=True, kw_only=True)
class PredictMasks(Common):
    """Lay the colours of the predicted classes over a picture or a video of your own."""

    output: Path
    """The file to write: .png, .jpg, ... for a picture, .webm, .mp4 or .avi for a video."""
    image: Path | None = None
    """A picture of any size."""
    video: Path | None = None
    """A video file."""
    output_dir: Path = Path(".")
    """The --output-dir of the training."""
    model: Path | None = None
    """The checkpoint of a training. Default: study_models/segmentation/scenes.pth under --output-dir.
    Or a network of torchvision: deeplabv3 or fcn (20 classes of Pascal VOC), or maskrcnn (80 classes of
    COCO, object by object)."""
    weights: Path | None = None
    """Weights file for deeplabv3, fcn or maskrcnn. Default: torch's cache, else a download."""
    strength: Annotated[float, Limits(0, 1)] = 0.5
    """How strongly the colours cover the picture."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is not None and str(self.model) not in HEIGHTS:
            raise UserError("--weights belongs to --model deeplabv3, fcn or maskrcnn.")


def scaled_to(picture: np.ndarray, height: int) -> np.ndarray:
    """A picture (H, W, 3) uint8 scaled to `height` in its own proportions.

    The height is less for a picture that would become wider than 16 times `height`.
    """
    import cv2

    height = max(min(height, 16 * height * picture.shape[0] // picture.shape[1]), 1)
    width = max(round(picture.shape[1] * height / picture.shape[0]), 1)
    method = cv2.INTER_AREA if height < picture.shape[0] else cv2.INTER_LINEAR
    return cv2.resize(picture, (width, height), interpolation=method)


@torch.no_grad()
def predict_strips(
    model: nn.Module, picture: np.ndarray, height: int, strip: int = 64
) -> Iterator[tuple[slice, np.ndarray]]:
    """The classes of one picture (H, W, 3) uint8, as pairs of rows and their classes (rows, W) uint8.

    The network sees the picture scaled to `height` pixels. Its logits are then scaled to the picture's
    own size, bilinearly as F.interpolate does. For a large picture all logits would take gigabytes, so
    that only those of `strip` rows are made at a time.
    """
    small = scaled_to(picture, height)
    height = len(small)
    x = torch.from_numpy(small).permute(2, 0, 1)[None].to(next(model.parameters()).device)
    logits = model(unit(x))  # (1, classes, height, width)
    for top in range(0, picture.shape[0], strip):
        rows = slice(top, min(top + strip, picture.shape[0]))
        # Where the centre of each row lies in the small logits: between their rows above and below.
        y = torch.arange(rows.start, rows.stop, device=x.device) + 0.5
        y = (y * height / picture.shape[0] - 0.5).clamp(min=0)
        above = y.long().clamp(max=height - 1)
        below, share = (above + 1).clamp(max=height - 1), (y - above)[:, None]
        lines = torch.lerp(logits[:, :, above], logits[:, :, below], share)
        lines = F.interpolate(lines, (len(y), picture.shape[1]), mode="bilinear")
        yield rows, lines.argmax(dim=1)[0].to(torch.uint8).cpu().numpy()


def class_predictor(
    model: nn.Module, classes: tuple[str, ...], height: int, strength: float, found: np.ndarray
) -> Predictor:
    """Colours every pixel by its class. Adds the pixels of each class to `found` (classes,)."""
    palette = colours(classes)
    background = 0 if classes[0] in BACKGROUND else IGNORE

    def predictor(picture: np.ndarray) -> np.ndarray:
        result = np.empty_like(picture)
        for rows, mask in predict_strips(model, picture, height):
            found[:] += np.bincount(mask.ravel(), minlength=len(classes))
            mask = np.where(mask == background, IGNORE, mask)
            result[rows] = overlay(picture[rows], mask, palette, strength)
        return result

    return predictor


def object_predictor(
    network: nn.Module, classes: tuple[str, ...], strength: float, found: np.ndarray
) -> Predictor:
    """Colours every object in its own colour, in a box with its class. Counts them in `found`."""
    import cv2

    palette = np.array([figures.rgb(colour) for colour in figures.CLASS_COLOURS], np.float64)
    device = next(network.parameters()).device

    @torch.no_grad()
    def predictor(picture: np.ndarray) -> np.ndarray:
        small = scaled_to(picture, min(len(picture), HEIGHTS["maskrcnn"]))
        seen = network([unit(torch.from_numpy(small)).permute(2, 0, 1).to(device)])[0]
        seen = {
            name: values[seen["scores"] >= MIN_MASK_SCORE].cpu() for name, values in seen.items()
        }
        found[:] += np.bincount(seen["labels"].numpy(), minlength=len(classes))
        numbers = np.full(small.shape[:2], IGNORE, np.uint8)
        for k in reversed(range(len(seen["masks"]))):  # the surest object comes to lie on top
            numbers[seen["masks"][k, 0].numpy() > 0.5] = k % len(palette)
        size = picture.shape[1], picture.shape[0]
        numbers = cv2.resize(numbers, size, interpolation=cv2.INTER_NEAREST)
        result = overlay(picture, numbers, palette, strength)
        return draw_boxes(result, seen, classes, MIN_MASK_SCORE, len(small) / len(picture))

    return predictor


# A trained network on a device, the names of its classes, and the height of the pictures that it knows.
LoadMasks = Callable[[PredictMasks, torch.device], tuple[nn.Module, tuple[str, ...], int]]


def predict_masks(config: PredictMasks, load_own: LoadMasks) -> None:
    """Read, predict, write, and print how much of the picture each class covers."""
    source = config.image or config.video
    if source is None or (config.image and config.video):
        raise UserError("Give either --image or --video.")
    device, name = prepare(0, config.device), str(config.model)
    if name == "maskrcnn":
        model, classes = pretrained.coco_mask_rcnn(config.weights, device)
        found = np.zeros(len(classes))  # objects of each class
        predictor = object_predictor(model, classes, config.strength, found)
    else:
        model, classes, height = (
            (*pretrained.voc_segmentation(name, config.weights, device), HEIGHTS[name])
            if name in HEIGHTS
            else load_own(config, device)
        )
        found = np.zeros(len(classes))  # pixels of each class
        predictor = class_predictor(model, classes, height, config.strength, found)
    print(process_media(source, config.output, lambda: predictor))
    for k in (k for k in np.argsort(-found) if found[k]):
        colour = bytes(colours(classes).astype(np.uint8)[k]).hex()
        share = f"{found[k] / found.sum():6.1%}  {classes[k]}  #{colour}"
        print(f"{found[k]:6.0f}  {classes[k]}" if name == "maskrcnn" else share)
