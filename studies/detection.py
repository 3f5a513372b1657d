"""Detection: where the objects in a picture are, and what they are (after YOLO, Redmon et al. 2016).

One pass of a small convolutional network divides a picture into a grid of cells, 16 pixels wide. Every
cell predicts whether the centre of an object lies in it, the object's box, and its class. Several cells
often find the same object. Of boxes that overlap, non-maximum suppression keeps the best one.

    python -m studies.detection                                  # digits over photographs, nine minutes
    python -m studies.detection --dataset yolo:FOLDER            # yours, in YOLO's text format
    python -m studies.detection --dataset coco:IMAGES:FILE.json  # or a file in COCO's format
    python -m studies.detection predict --source photo.jpg --output found.png
    python -m studies.detection predict --source 0 --output found.webm    # a camera, until Ctrl-C
    python -m studies.detection predict --coco --source photo.jpg --output found.png

What to look at: `steps.png` shows the scores of the cells, the boxes with a high score, and the boxes
that suppression leaves. `found.webm` is a film; the detector looks at each frame alone.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from imagelab.data import digit_scenes
from imagelab.data.boxes import BoxedPictures, Boxes, fit, load_boxed
from imagelab.data.datasets import EMBEDDED, load_dataset, unit
from imagelab.data.photographs import HELD_OUT
from imagelab.data.video import Predictor, open_video, process_media, write_video
from imagelab.report import figures, samples
from imagelab.report.boxes import draw_boxes
from imagelab.report.results import Result, start_result
from imagelab.setup.runtime import UserError, autocast, channels_last, prepare
from imagelab.setup.settings import Common, Count, ExportSettings, Limits, Rate, ResumableSettings
from imagelab.setup.terminal import progress
from imagelab.techniques.export import export_network
from imagelab.techniques.pretrained import coco_ssdlite
from imagelab.training.checkpoints import checkpoint_errors, load_checkpoint, load_weights
from imagelab.training.loop import Observer, Training, no_observer, one_cycle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "detection"
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"
CELL = 16  # pixels


# --- the network ----------------------------------------------------------------------------------


def block(channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """A 3×3 convolution, batch normalisation, SiLU."""
    convolution = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.SiLU())


class Residual(nn.Module):
    """x plus two blocks of x (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(block(channels, channels), block(channels, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class Detector(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] to predictions (B, H/16, W/16, 5 + classes), one per cell.

    A prediction holds the objectness logit (does an object have its centre here?), the box as four
    numbers that `decode_boxes` reads, and the logits of the classes.
    """

    def __init__(self, classes: int, width: int = 24) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(4), nn.Conv2d(48, width, 1),  #   (B, 24, H/4, W/4)
            block(width, 2 * width, 2), Residual(2 * width),  # (B, 48, H/8, W/8)
            block(2 * width, 4 * width, 2), Residual(4 * width), Residual(4 * width),
            nn.Conv2d(4 * width, 5 + classes, 1),  #            (B, 5 + classes, H/16, W/16)
        )  # fmt: skip
        bias = self.layers[-1].get_parameter("bias")
        nn.init.constant_(bias[:1], -4.0)  # almost all cells are empty

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with autocast(x.device):
            x = self.layers((2 * x - 1).contiguous(memory_format=torch.channels_last))
        return x.permute(0, 2, 3, 1).float()


def decode_boxes(predictions: torch.Tensor) -> torch.Tensor:
    """The boxes x1 y1 x2 y2 in pixels (B, h, w, 4) of predictions (B, h, w, 5 + classes).

    The centre is (cell + 2·sigmoid(p) − 0.5)·16: up to half a cell outside its own cell. A side is
    32·eᵖ.
    """
    height, width = predictions.shape[1:3]
    column = torch.arange(width, device=predictions.device).expand(height, width)
    row = torch.arange(height, device=predictions.device)[:, None].expand(height, width)
    centre = (torch.stack([column, row], dim=-1) + 2 * predictions[..., 1:3].sigmoid() - 0.5) * CELL
    half = 16 * predictions[..., 3:5].clamp(-3, 4).exp()
    return torch.cat([centre - half, centre + half], dim=-1)


def class_scores(predictions: torch.Tensor) -> torch.Tensor:
    """The score of each class in each cell (B, h, w, classes): P(object) · P(class | object)."""
    return predictions[..., :1].sigmoid() * predictions[..., 5:].softmax(dim=-1)


class DecodedDetector(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1], sides divisible by 16, to (B, H·W/256, 4 + classes).

    For each cell a box x1 y1 x2 y2 in pixels and the score of each class. Cells find the same object
    more than once; non-maximum suppression is left to the user of the file.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        predictions = self.detector(x)
        decoded = torch.cat([decode_boxes(predictions), class_scores(predictions)], dim=-1)
        return decoded.flatten(1, 2)


# --- the loss -------------------------------------------------------------------------------------


def responsible_cells(boxes: Boxes, shape: torch.Size) -> tuple[torch.Tensor, ...]:
    """Which cells predict which object: picture, row, column and object, (m,) each.

    Three cells are responsible for an object: the one that holds its centre, and the two neighbours
    that are nearest to this centre, where they exist. So each object gives more to learn from. Objects
    are numbered through all pictures.
    """
    all_boxes = torch.cat(boxes)  # (n, 4)
    device = all_boxes.device
    centre = (all_boxes[:, :2] + all_boxes[:, 2:]) / 2 / CELL
    cell = centre.long()
    nearest = torch.where(centre - cell < 0.5, -1, 1)  # to the left or right, above or below
    offsets = torch.tensor([[[0, 0]], [[1, 0]], [[0, 1]]], device=device) * nearest  # (3, n, 2)
    column, row = (cell + offsets).flatten(0, 1).unbind(dim=1)
    counts = torch.tensor([len(part) for part in boxes], device=device)
    picture = torch.arange(len(boxes), device=device).repeat_interleave(counts).repeat(3)
    index = torch.arange(len(all_boxes), device=device).repeat(3)
    inside = (row >= 0) & (row < shape[1]) & (column >= 0) & (column < shape[2])
    return picture[inside], row[inside], column[inside], index[inside]


def detection_loss(predictions: torch.Tensor, boxes: Boxes, labels: Boxes) -> torch.Tensor:
    """The sum of three losses, divided by the number of responsible cells: a scalar.

    Objectness, for every cell: the focal loss of Lin et al. (2017), a binary cross-entropy in which
    cells count more the more they are wrong. For the responsible cells alone, the box: the loss of
    generalised IoU (Rezatofighi et al. 2019); and the class: cross-entropy.
    """
    from torchvision.ops import generalized_box_iou_loss

    *cells, index = responsible_cells(boxes, predictions.shape)
    target = torch.zeros(predictions.shape[:3], device=predictions.device)
    target[tuple(cells)] = 1
    logit = predictions[..., 0]
    focus = (logit.sigmoid() - target).square()
    bce = F.binary_cross_entropy_with_logits(logit, target, reduction="none")
    objectness = (focus * bce).sum()
    true_boxes, true_classes = torch.cat(boxes)[index], torch.cat(labels)[index]
    predicted_boxes = decode_boxes(predictions)[tuple(cells)]
    box = generalized_box_iou_loss(predicted_boxes, true_boxes, reduction="sum")
    class_logits = predictions[tuple(cells)][:, 5:]
    classification = F.cross_entropy(class_logits, true_classes, reduction="sum")
    return (objectness + 2 * box + 1.5 * classification) / max(len(index), 1)


# --- augmentation ---------------------------------------------------------------------------------


def augment(
    images: torch.Tensor, boxes: Boxes, labels: Boxes, rng: torch.Generator, flip: bool
) -> tuple[torch.Tensor, Boxes, Boxes]:
    """Pictures (B, 3, S, S) in [0, 1] and their boxes, changed at random.

    Scaled (0.8 to 1.25), shifted (±10 %), in another contrast and brightness, with `flip` half of them
    mirrored. Boxes are cut at the border. Objects whose centre leaves the picture are dropped.
    """
    n, _, size, _ = images.shape

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(n, 1, generator=rng, device=images.device) * (high - low) + low

    scale = uniform(0.8, 1.25)
    shift = torch.cat([uniform(-0.1, 0.1), uniform(-0.1, 0.1)], dim=1)  # of the picture's side
    mirror = torch.where((uniform(0, 1) < 0.5) & flip, -1.0, 1.0)
    direction = torch.cat([mirror, torch.ones_like(mirror)], dim=1)  # (B, 2): of x and of y
    # The pixel at p in the new picture (from −1 to 1) comes from direction · (p − 2·shift) / scale.
    offset = -2 * shift * direction / scale
    theta = torch.cat([torch.diag_embed(direction / scale), offset[:, :, None]], dim=2)  # (B, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    x = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    x = (x - 0.5) * uniform(0.75, 1.25)[..., None, None] + 0.5 + uniform(-0.1, 0.1)[..., None, None]
    kept_boxes, kept_labels = [], []
    for k, (old, classes) in enumerate(zip(boxes, labels, strict=True)):
        corners = old.reshape(-1, 2, 2) - size / 2
        corners = corners * (scale[k] * direction[k]) + size * shift[k] + size / 2
        new = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
        centre = (new[:, :2] + new[:, 2:]) / 2
        inside = ((centre > 0) & (centre < size)).all(dim=1)
        kept_boxes.append(new[inside].clamp(0, size))
        kept_labels.append(classes[inside])
    return x.clamp(0, 1), kept_boxes, kept_labels


# --- training -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(ExportSettings, ResumableSettings):
    """Settings of the detector."""

    dataset: str = "digit-scenes"
    """digit-scenes (digits drawn over photographs), or your own pictures with boxes: yolo:FOLDER or
    coco:IMAGES:FILE.json."""
    scenes: Count = 11_000
    """Scenes to draw for training."""
    test_scenes: Count = 500
    """Scenes to draw for the measurement."""
    size: Annotated[int, Limits(64, 1024)] = 256
    """Pictures are scaled to fit into a square of this many pixels a side, a multiple of 16."""
    width: Count = 24
    """Channels of the first layer; the next levels have two and four times as many."""
    flip: bool = False
    """Also train on mirrored pictures. Use it for objects that stay what they are in a mirror; digits
    do not."""
    epochs: Count = 4
    """Passes over the training pictures; each time they are scaled, shifted and lit differently."""
    batch_size: Count = 8
    """Pictures per step."""
    lr: Rate = 3e-3
    """Highest learning rate of AdamW. It rises over the first quarter of the steps, then falls to 0."""


def checkpoint_path(config: Config, data: BoxedPictures) -> Path:
    return config.output_dir / MODELS / f"{data.file_name}.pth"


def train(
    config: Config, data: BoxedPictures, after_epoch: Observer = no_observer
) -> Training[Detector]:
    """Train the detector, or continue with --resume. `after_epoch` is called after every epoch."""
    torch.manual_seed(config.seed)
    model = Detector(len(data.classes), config.width)
    channels_last(model, data.images.device)
    adam = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=1e-2, fused=True)
    path, networks, optimizers = checkpoint_path(config, data), {"detector": model}, {"adam": adam}
    training = Training(path, SCRIPT, config, data, networks=networks, optimizers=optimizers)
    training.extra = {"classes": list(data.classes)}
    if config.resume:
        training.load()
    with training:
        for epoch in training.epochs():
            for batch in training.batches():
                boxes = [data.boxes[k] for k in batch.tolist()]
                labels = [data.labels[k] for k in batch.tolist()]
                x = unit(data.images[batch])  # (B, 3, S, S) in [0, 1]
                x, boxes, labels = augment(x, boxes, labels, training.rng, config.flip)
                loss = detection_loss(model(x), boxes, labels)
                adam.param_groups[0]["lr"] = config.lr * one_cycle(training.progress)
                adam.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 10)
                adam.step()
                training.log(loss=loss)
            after_epoch(training, epoch)
    return training


# --- detection ------------------------------------------------------------------------------------

# Of one picture: boxes (n, 4) x1 y1 x2 y2 in pixels, labels (n,) and scores (n,), the highest first.
Detections = dict[str, torch.Tensor]


@torch.no_grad()
def detect(
    model: nn.Module,
    x: torch.Tensor,
    min_score: float,
    max_iou: float = 0.5,
    every_class: bool = False,
) -> list[Detections]:
    """The detections in each picture (B, 3, H, W) in [0, 1], after non-maximum suppression.

    Of two boxes with an IoU over `max_iou` the one with the lower score is dropped. A box has the class
    with the highest score. With `every_class` each class with a score of `min_score` or more gives a
    box of its own, and boxes are compared only with boxes of the same class.
    """
    from torchvision.ops import batched_nms

    predictions = model(x)
    all_boxes = decode_boxes(predictions).flatten(1, 2)
    all_scores = class_scores(predictions).flatten(1, 2)
    found = []
    for boxes, scores in zip(all_boxes, all_scores, strict=True):
        if not every_class:  # of each cell the class with the highest score alone
            scores = scores.where(scores == scores.amax(dim=1, keepdim=True), -1)
        cell, labels = (scores >= min_score).nonzero(as_tuple=True)
        boxes, scores = boxes[cell], scores[cell, labels]
        groups = labels if every_class else torch.zeros_like(labels)
        keep = batched_nms(boxes, scores, groups, max_iou)
        inside = boxes[keep].clamp(0, x.shape[-1])
        found.append({"boxes": inside, "labels": labels[keep], "scores": scores[keep]})
    return found


def load_detector(
    path: Path, device: torch.device | str = "cpu"
) -> tuple[Detector, tuple[str, ...], int]:
    """The detector of a checkpoint, the names of its classes, and the side of its pictures in pixels."""
    saved = load_checkpoint(path, SCRIPT, device)
    with checkpoint_errors(path):
        classes, size = tuple(saved["extra"]["classes"]), saved["dataset"]["shape"][1]
        model = Detector(len(classes), saved["config"]["width"])
    load_weights(model, saved["model"].get("detector"), path)
    return channels_last(model, device).eval(), classes, size


# === the lesson ends here; below: measured, plotted, reported =====================================

TITLE = "Detection: where things are, and what"
SUMMARY = (
    "A small network finds the objects in a picture in one pass. By default they are handwritten digits "
    "of many sizes and angles over photographs. For each cell of a grid the network predicts whether the "
    "centre of an object lies in it, the object's box, and its class."
)
MIN_SCORE = 0.4  # boxes with a lower score are not drawn


def average_precision(
    model: Detector, images: torch.Tensor, boxes: Boxes, labels: Boxes
) -> dict[str, torch.Tensor]:
    """torchmetrics' mean average precision on pictures (N, 3, S, S) uint8."""
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(class_metrics=True, sync_on_compute=False)
    metric.warn_on_many_detections = False  # it counts the hundred highest scores of a picture
    found = []
    for part in progress(images.split(32), "detecting", "batch"):
        found += detect(model, unit(part), 0.01, every_class=True)
    truth = [{"boxes": b, "labels": k} for b, k in zip(boxes, labels, strict=True)]
    metric.update(found, truth)
    return metric.compute()


def evaluate(data: BoxedPictures, model: Detector, result: Result) -> None:
    """Add to `result` the mean average precision on held-out pictures, and some of the pictures."""
    images, classes = data.test_images, data.classes
    scores = average_precision(model, images, data.test_boxes, data.test_labels)
    for name, value in (("mAP at 0.5", scores["map_50"]), ("mAP at 0.5 to 0.95", scores["map"])):
        if value >= 0:  # torchmetrics gives −1 for what it could not measure
            result.add_metric(name, value, len(images), better="higher")
    counts = torch.bincount(torch.cat(data.test_labels), minlength=len(classes)).tolist()
    by_class = torch.stack([scores["classes"], scores["map_per_class"]]).reshape(2, -1).T.tolist()
    rows = [[classes[int(k)], counts[int(k)], ap if ap >= 0 else "absent"] for k, ap in by_class]
    columns = ["class", "objects", "AP at 0.5 to 0.95"]
    result.add_table(f"{len(images)} held-out pictures", columns, rows)
    size = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6
    result.add_metric("size of the detector", size, 1, unit="MB", better="lower")
    caption = "The first held-out pictures and their detections."
    result.add_figure("detections.png", plot_detections(model, images[:8], classes), caption)
    caption = "The score of each cell: does it hold the centre of an object? All boxes with a high "
    caption += "score. The boxes that non-maximum suppression leaves."
    result.add_figure("steps.png", plot_steps(model, images[:3], classes), caption)


def evaluate_elsewhere(
    config: Config, data: BoxedPictures, model: Detector, result: Result
) -> None:
    """The same measure for the same digits over photographs that training never saw."""
    digits, device = load_dataset(EMBEDDED, Path()), data.images.device
    images, boxes, labels = digit_scenes.render_scenes(
        digits.test_images, digits.test_labels, config.test_scenes, 2, config.size, HELD_OUT
    )
    boxes, labels = [b.to(device) for b in boxes], [k.to(device) for k in labels]
    scores = average_precision(model, images.to(device), boxes, labels)
    name = "mAP at 0.5, photographs never seen"
    result.add_metric(name, scores["map_50"], len(images), better="higher")
    figure = plot_detections(model, images[:8], data.classes)
    result.add_figure("elsewhere.png", figure, "Digits over photographs that training never saw.")


def to_array(image: torch.Tensor) -> np.ndarray:
    """(3, H, W) uint8 to (H, W, 3)."""
    return image.permute(1, 2, 0).cpu().numpy()


def plot_detections(model: Detector, images: torch.Tensor, classes: tuple[str, ...]) -> Figure:
    """Pictures (N, 3, S, S) uint8 with their detections, in two rows."""
    pictures = {}
    for k, found in enumerate(detect(model, unit(images), MIN_SCORE)):
        pictures[f"{k + 1}"] = draw_boxes(to_array(images[k]), found, classes, MIN_SCORE)
    return figures.plot_side_by_side(pictures, rows=2, height=3)


def plot_steps(model: Detector, images: torch.Tensor, classes: tuple[str, ...]) -> Figure:
    """Per picture (3, S, S) uint8 a column: scores of the cells, boxes before and after suppression."""
    with torch.no_grad():
        objectness = model(unit(images))[..., 0].sigmoid()
    before = detect(model, unit(images), MIN_SCORE, max_iou=1.0)
    after = detect(model, unit(images), MIN_SCORE)
    figure, axes = figures.new_figure(3 * len(images), 9, 3, len(images))
    for column, image, cells, many, few in zip(
        axes.T, images, objectness.cpu().numpy(), before, after, strict=True
    ):
        picture = to_array(image)
        figures.show_image(column[0], picture)
        extent = (-0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5)
        column[0].imshow(cells, cmap="magma", vmin=0, vmax=1, alpha=0.7, extent=extent)
        figures.show_image(column[1], draw_boxes(picture, many, classes, MIN_SCORE))
        figures.show_image(column[2], draw_boxes(picture, few, classes, MIN_SCORE))
    figures.name_rows(axes, ("score of each cell", "boxes with a high score", "after suppression"))
    return figure


def box_predictor(
    model: Detector, classes: tuple[str, ...], size: int, min_score: float
) -> Predictor:
    """Draws detections into a picture of any size; the model sees it within `size` × `size` pixels."""
    device = next(model.parameters()).device

    def predictor(picture: np.ndarray) -> np.ndarray:
        square, scale = fit(picture, size)
        x = unit(torch.from_numpy(square)).permute(2, 0, 1)[None].to(device)
        return draw_boxes(picture, detect(model, x, min_score)[0], classes, min_score, scale)

    return predictor


def make_film(config: Config, model: Detector, classes: tuple[str, ...], result: Result) -> None:
    """Make a film of moving digits (held-out ones), and the same film with the detections."""
    digits = load_dataset(EMBEDDED, Path()).test_images
    film = result.add_file("moving.webm", "A film of moving digits.", featured=False)
    write_video(film, digit_scenes.moving_scene(digits, 20 if config.quick else 100, config.seed))
    predictor = box_predictor(model, classes, config.size, MIN_SCORE)
    with open_video(film) as video:
        frames = list(video.frames)
    started = time.perf_counter()
    drawn = [predictor(frame) for frame in frames]
    rate = len(frames) / (time.perf_counter() - started)
    result.add_metric("frames a second, drawing included", rate, len(frames), better="higher")
    caption = "The detections in a film of moving digits (moving.webm), in each frame alone."
    write_video(result.add_file("found.webm", caption), drawn)


def lessons(result: Result) -> list[str]:
    """What the measured figures teach."""
    sentences = []
    if measured := result.measured("mAP at 0.5", "mAP at 0.5 to 0.95"):
        loose, close = measured
        sentences.append(
            f"Average precision is {loose:.2f} where an IoU of 0.5 is enough, and {close:.2f} where "
            "boxes must fit closely. To find an object is easier than to find its exact box."
        )
    if measured := result.measured("mAP at 0.5, photographs never seen"):
        sentences.append(
            f"Over photographs that training never saw it is {measured[0]:.2f}. A detector must also "
            "learn what is not an object."
        )
    if measured := result.measured("size of the detector", "frames a second, drawing included"):
        size, rate = measured
        sentences.append(
            f"A network of {size:.1f} MB sees the whole picture in one pass: {rate:.0f} frames a second "
            "here, drawing included."
        )
    return sentences


def run(config: Config) -> Result:
    """Train on pictures with boxes, measure on held-out pictures, make a film."""
    device = prepare(config.seed, config.device)
    config = config.if_quick(scenes=128, test_scenes=32, epochs=2)
    if config.size % CELL:
        raise UserError(f"--size must be a multiple of {CELL}, not {config.size}.")
    data = load_boxed(config.dataset, config.scenes, config.test_scenes, config.size).to(device)
    folder = PICTURES if data.name == "digit-scenes" else f"{PICTURES}/{data.file_name}"
    result = start_result(SCRIPT, TITLE, SUMMARY, config, folder, device, data)
    training = train(config, data)
    result.add_metric("seconds of training", training.seconds_used, training.steps_done, unit="s")
    model = training.model.eval()
    evaluate(data, model, result)
    if data.name == "digit-scenes":
        evaluate_elsewhere(config, data, model, result)
        make_film(config, model, data.classes, result)
    result.add_figure("loss.png", samples.plot_loss(training, "loss"), "The loss.")
    network, example = DecodedDetector(model), {"pictures": torch.rand(2, *data.shape)}
    export_network(config.export, network, example, "found", any_size=True, classes=data.classes)
    return result.save(*lessons(result))


# --- your own pictures, folders and films ---------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PredictBoxes(Common):
    """Find objects in a picture, a folder of pictures, a video, or the pictures of a camera."""

    source: str
    """A picture, a folder, a video file, or the number of a camera."""
    output: Path
    """Where to write the result: a picture, a folder, or a video (.webm, .mp4, .avi)."""
    model: Path = Path(MODELS) / "digit-scenes.pth"
    """The checkpoint of a training."""
    coco: bool = False
    """Use torchvision's SSDlite instead, trained on the 91 classes of COCO."""
    weights: Path | None = None
    """Weights file for --coco; default: torchvision's cache, else its download."""
    least: Annotated[float, Limits(0, 1)] = MIN_SCORE
    """Boxes with a lower score are not drawn."""


def make_predictor(config: PredictBoxes, device: torch.device) -> Predictor:
    """Load the chosen network. The predictor draws its detections into pictures of any size."""
    if config.weights is not None and not config.coco:
        raise UserError("--weights is for the SSDlite: add --coco.")
    if not config.coco:
        return box_predictor(*load_detector(config.model, device), config.least)
    model, classes = coco_ssdlite(config.weights, device)

    @torch.no_grad()
    def predictor(picture: np.ndarray) -> np.ndarray:
        x = unit(torch.from_numpy(picture.copy())).permute(2, 0, 1).to(device)
        return draw_boxes(picture, model([x])[0], classes, config.least)

    return predictor


def run_predict(config: PredictBoxes) -> None:
    """Read the source, detect, write the result, and print the speed."""
    device = prepare(0, config.device)
    print(process_media(config.source, config.output, lambda: make_predictor(config, device)))


def main() -> None:
    command_line(Config, run, __doc__, {"predict": (PredictBoxes, run_predict)})


if __name__ == "__main__":
    main()
