"""Detection: where the objects in a picture are, and what they are (after YOLO, Redmon et al. 2016).

One pass of a small convolutional network divides a picture into a grid of cells of 8×8 pixels. Every
cell predicts whether the centre of an object lies in it, the object's box, and its class. Several cells
often find the same object. Of boxes that overlap, non-maximum suppression keeps the best one.

    python -m studies.detection                            # drawn streets, three minutes
    python -m studies.detection --dataset digit-scenes --recolour --width 32 --batch-size 32 --lr 4e-3
    python -m studies.detection --dataset folder:FOLDER    # your own pictures and boxes (see --help)
    python -m studies.detection predict --source photo.jpg --output found.png
    python -m studies.detection predict --source 0 --live  # a camera, in a window or on a page

What to look at: `detections.png` marks what is right, false and missed. `steps.png` shows the scores of
the cells, all boxes, and those that are kept.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from imagelab.data import digit_scenes
from imagelab.data.boxes import BoxedPictures, Boxes, fit, load_boxed
from imagelab.data.datasets import EMBEDDED, load_dataset, unit
from imagelab.data.photographs import HELD_OUT
from imagelab.data.video import Predictor
from imagelab.report import boxes as boxes_report
from imagelab.report import samples
from imagelab.report.boxes import MIN_SCORE, Detections
from imagelab.report.predict import PredictBoxes, add_film, box_predictor, predict_boxes
from imagelab.report.results import Result, start_result
from imagelab.setup.runtime import UserError, autocast, channels_last, generator, prepare
from imagelab.setup.settings import Count, ExportSettings, Limits, Rate, ResumableSettings
from imagelab.setup.terminal import progress
from imagelab.techniques import pretrained
from imagelab.techniques.export import export_network
from imagelab.training import checkpoints
from imagelab.training.loop import Observer, Training, no_observer, one_cycle

SCRIPT = "detection"
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"
CELL = 8  # pixels


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


def small_backbone(width: int) -> tuple[nn.Module, nn.Module]:
    """Layers from pictures in [−1, 1] to features at 1/8 of the size, and from these to 1/16."""
    fine = nn.Sequential(
        nn.PixelUnshuffle(2), nn.Conv2d(12, width, 1),  #   (B, 24, H/2, W/2)
        block(width, width, 2),  #                          (B, 24, H/4, W/4)
        block(width, 2 * width, 2), Residual(2 * width),  # (B, 48, H/8, W/8)
    )  # fmt: skip
    layers = block(2 * width, 4 * width, 2), Residual(4 * width), Residual(4 * width)
    return fine, nn.Sequential(*layers)  # (B, 96, H/16, W/16)


class Detector(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] to predictions (B, H/8, W/8, 5 + classes), one per cell.

    A prediction holds the objectness logit (does an object have its centre here?), the box as four
    numbers that `decode_boxes` reads, and the logits of the classes. The head computes it from fine
    features (1/8 of the size), which say where an edge is, and coarse ones (1/16, each repeated 2×2
    times), which see far (after Lin et al. 2017).
    """

    def __init__(self, classes: int, width: int = 24, backbone: str = "small") -> None:
        super().__init__()
        small = backbone == "small"
        self.fine, self.coarse = small_backbone(width) if small else pretrained.resnet18_backbone()
        channels = (2 * width, 4 * width) if small else (128, 256)
        merge, last = block(sum(channels), channels[0]), nn.Conv2d(channels[0], 5 + classes, 1)
        nn.init.constant_(last.get_parameter("bias")[:1], -4.0)  # almost all cells are empty
        self.head = nn.Sequential(merge, last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with autocast(x.device):
            fine = self.fine((2 * x - 1).contiguous(memory_format=torch.channels_last))
            coarse = F.interpolate(self.coarse(fine), scale_factor=2.0)  # back to 1/8 of the size
            x = self.head(torch.cat([fine, coarse], dim=1))
        return x.permute(0, 2, 3, 1).float()

    def freeze_backbone(self, frozen: bool) -> None:
        """Keep the backbone as it is, its batch statistics as well, or let it learn."""
        for part in (self.fine, self.coarse):
            part.requires_grad_(not frozen).train(not frozen)


def decode_boxes(predictions: torch.Tensor) -> torch.Tensor:
    """The boxes x1 y1 x2 y2 in pixels (B, h, w, 4) of predictions (B, h, w, 5 + classes).

    The centre is (cell + 2·sigmoid(p) − 0.5)·8: up to half a cell outside its own cell. A side is 32·eᵖ
    with p from −3 to 4: 1.6 to 1,747 pixels.
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
    """Pictures (B, 3, H, W) in [0, 1], sides divisible by 16, to (B, H·W/64, 4 + classes).

    For each cell a box x1 y1 x2 y2 in pixels and the score of each class. Cells find the same object
    more than once; non-maximum suppression is left to the user of the exported file.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        predictions = self.detector(x)
        decoded = torch.cat([decode_boxes(predictions), class_scores(predictions)], dim=-1)
        return decoded.flatten(1, 2)


# --- the loss -------------------------------------------------------------------------------------


def responsible_cells(
    boxes: torch.Tensor, labels: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    """The numbers of the cells that predict each object, (B, 3, M); a batch has B·height·width cells.

    Boxes (B, M, 4) and labels (B, M). A label of −1 means that there is no object. Three cells are
    responsible for an object: the one that holds its centre, and the two neighbours that are nearest to
    this centre. So each object gives more to learn from. Where there is no object or no neighbour, the
    number is B·height·width, which is no cell.
    """
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2 / CELL
    cell = centre.long()
    column, row = cell.unbind(dim=-1)  # (B, M) each
    # To the left or right, and above or below.
    side_x, side_y = torch.where(centre - cell < 0.5, -1, 1).unbind(dim=-1)
    columns = torch.stack([column, column + side_x, column], dim=1)  # (B, 3, M)
    rows = torch.stack([row, row, row + side_y], dim=1)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    picture = torch.arange(len(boxes), device=boxes.device)[:, None, None]
    number = (picture * height + rows) * width + columns
    return number.where(inside & (labels >= 0)[:, None], len(boxes) * height * width)


def generalised_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The generalised IoU of pairs of boxes (..., 4), from −1 to 1 (Rezatofighi et al. 2019).

    It is the IoU, minus the share of the smallest common frame that neither box covers. So boxes that
    do not touch have a gradient as well.
    """

    def area(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        width, height = (high - low).clamp(min=0).unbind(dim=-1)
        return width * height  # the gradient of prod would ask the GPU for zeros, and wait

    (a_low, a_high), (b_low, b_high) = a.split(2, dim=-1), b.split(2, dim=-1)
    common = area(torch.maximum(a_low, b_low), torch.minimum(a_high, b_high))
    union = area(a_low, a_high) + area(b_low, b_high) - common
    frame = area(torch.minimum(a_low, b_low), torch.maximum(a_high, b_high))
    return common / union.clamp(min=1e-7) - (frame - union) / frame.clamp(min=1e-7)


def detection_loss(
    predictions: torch.Tensor, boxes: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """(objectness + 2·box + 1.5·class)/(number of pairs of an object and a responsible cell): a scalar.

    Boxes (B, M, 4) and labels (B, M); −1 is no object. Objectness, for every cell: the focal loss of
    Lin et al. (2017), a binary cross-entropy in which cells count more the more they are wrong. For the
    responsible cells alone, the box: 1 − generalised IoU; and the class: cross-entropy.

    All shapes are fixed by M. If they depended on the number of objects, a GPU would have to report this
    number at every step, and the program would wait for it.
    """
    flat = predictions.flatten(0, 2)  # (cells, 5 + classes)
    number = responsible_cells(boxes, labels, *predictions.shape[1:3])  # (B, 3, M)
    responsible = number < len(flat)
    target = flat.new_zeros(len(flat) + 1).index_fill(0, number.flatten(), 1)[:-1]
    focus = (flat[:, 0].sigmoid() - target).square()
    bce = F.binary_cross_entropy_with_logits(flat[:, 0], target, reduction="none")
    objectness = (focus * bce).sum()
    number = number.clamp(max=len(flat) - 1)
    predicted_boxes = decode_boxes(predictions).flatten(0, 2)[number]  # (B, 3, M, 4)
    box = ((1 - generalised_iou(predicted_boxes, boxes[:, None])) * responsible).sum()
    true_classes = labels[:, None].where(responsible, -1)
    logits, target = flat[number.flatten(), 5:], true_classes.flatten()
    classification = F.cross_entropy(logits, target, ignore_index=-1, reduction="sum")
    return (objectness + 2 * box + 1.5 * classification) / responsible.sum().clamp(min=1)


# --- augmentation ---------------------------------------------------------------------------------


def augment(
    images: torch.Tensor,
    boxes: torch.Tensor,
    labels: torch.Tensor,
    rng: torch.Generator,
    flip: bool,
    recolour: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures (B, 3, S, S) in [0, 1], boxes (B, M, 4) and labels (B, M), changed at random.

    Scaled (0.8 to 1.25), shifted (±10 %), in another contrast and brightness, with `flip` half of them
    mirrored, with `recolour` in other colours. Boxes are cut at the border. Objects whose centre leaves
    the picture get the label −1.
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
    x = in_other_colours(x.clamp(0, 1), rng) if recolour else x
    corners = boxes.unflatten(2, (2, 2)) - size / 2  # (B, M, 2, 2): two corners, x and y
    corners = (
        corners * (scale * direction)[:, None, None] + (shift * size)[:, None, None] + size / 2
    )
    new = torch.cat([corners.amin(dim=2), corners.amax(dim=2)], dim=2)
    centre = (new[..., :2] + new[..., 2:]) / 2
    inside = ((centre > 0) & (centre < size)).all(dim=2)
    return x.clamp(0, 1), new.clamp(0, size), labels.where(inside, -1)


def in_other_colours(x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Pictures (B, 3, H, W) in [0, 1], each channel in a curve of its own, some negative, with noise."""

    def uniform(low: float, high: float, channels: int = 1) -> torch.Tensor:
        drawn = torch.rand(len(x), channels, 1, 1, generator=rng, device=x.device)
        return drawn * (high - low) + low

    x = x.clamp(min=1e-3) ** uniform(-0.4, 0.4, 3).exp()
    x = (x - 0.5) * uniform(0.7, 1.3, 3) + 0.5 + uniform(-0.1, 0.1, 3)
    x = torch.where(uniform(0, 1) < 0.3, 1 - x, x)
    return x + uniform(0, 0.06) * torch.randn(x.shape, generator=rng, device=x.device)


# --- training -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(ExportSettings, ResumableSettings):
    """Settings of the detector."""

    dataset: str = "scenes"
    """scenes (cars and pedestrians in drawn streets), digit-scenes (digits over photographs), camvid
    (real streets, placed under --data-dir), or your own pictures with boxes: yolo:FOLDER (text files),
    voc:FOLDER (XML files of Pascal VOC), folder:FOLDER (one of these two), coco:IMAGES:FILE.json."""
    data_dir: Path = Path("data")
    """The folder that holds CamVid/."""
    scenes: Count | None = None
    """Scenes to draw for training. Default: 1,500 streets, or 11,000 digit scenes."""
    test_scenes: Count = 500
    """Scenes to draw for the measurement."""
    size: Annotated[int, Limits(64, 1024)] = 256
    """Pictures are scaled to fit into a square of this many pixels a side, a multiple of 16."""
    backbone: Literal["small", "resnet18"] = "small"
    """The layers below the head: a small network, or the first three quarters of ResNet-18."""
    width: Count = 24
    """Channels of the small backbone's first layer. The next levels have two and four times as many."""
    pretrained: Path | None = None
    """Start from this file: a checkpoint of this script, or torchvision's weights of ResNet-18 for the
    backbone. Of a checkpoint with other classes all is taken but the last layer."""
    frozen_epochs: Annotated[int, Limits(0)] = 2
    """With --pretrained, the backbone does not change in the first epochs; only the head learns."""
    flip: bool = False
    """Also train on mirrored pictures. Use it for objects that stay what they are in a mirror; digits
    do not."""
    recolour: bool = False
    """Train on the pictures in other colours, some as negatives. Use it for objects whose colours mean
    nothing, such as digits."""
    epochs: Count | None = None
    """Passes over the training pictures; each time they are scaled, shifted and lit differently. Default:
    8 for the digit scenes, else as many as show 9,000 pictures."""
    batch_size: Count = 8
    """Pictures per step."""
    lr: Rate = 3e-3
    """Highest learning rate of AdamW. It rises over the first quarter of the steps, then falls to 0."""


def padded(boxes: Boxes, labels: Boxes) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (N, M, 4) and labels (N, M) of N pictures with different numbers of objects, M at most.

    What is missing to M has the label −1.
    """
    return pad_sequence(boxes, batch_first=True), pad_sequence(labels, True, -1)


def checkpoint_path(config: Config, data: BoxedPictures) -> Path:
    name = data.file_name + ("_pretrained" if config.pretrained else "")
    return config.output_dir / MODELS / f"{name}.pth"


def new_detector(config: Config, data: BoxedPictures) -> Detector:
    """A detector with random weights, or with those of --pretrained as far as they fit."""
    torch.manual_seed(config.seed)
    model, path = Detector(len(data.classes), config.width, config.backbone), config.pretrained
    if path is not None and checkpoints.is_checkpoint(path):
        saved = checkpoints.load_checkpoint(path, SCRIPT)
        weights = saved["model"].get("detector", {})
        if saved["extra"].get("classes") != list(data.classes):  # then the last layer stays random
            fresh = model.state_dict()
            weights = weights | {k: fresh[k] for k in fresh if k.startswith("head.1.")}
        checkpoints.load_weights(model, weights, path)
    elif path is not None:
        if config.backbone != "resnet18":
            raise UserError(
                f"--pretrained: {path} is not a checkpoint of this project. If it holds torchvision's "
                "weights of ResNet-18, add --backbone resnet18."
            )
        model.fine, model.coarse = pretrained.resnet18_backbone(path)
    return channels_last(model, data.images.device)


def train(
    config: Config, data: BoxedPictures, after_epoch: Observer = no_observer
) -> Training[Detector]:
    """Train the detector, or continue with --resume. `after_epoch` is called after every epoch."""
    model = new_detector(config, data)
    adam = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=1e-2, fused=True)
    path, networks = checkpoint_path(config, data), {"detector": model}
    training = Training(path, SCRIPT, config, data, networks=networks, optimizers={"adam": adam})
    training.extra = {"classes": list(data.classes)}
    all_boxes, all_labels = padded(data.boxes, data.labels)
    if config.resume:
        training.load()
    with training:
        for epoch in training.epochs():
            model.freeze_backbone(config.pretrained is not None and epoch <= config.frozen_epochs)
            for batch in training.batches():
                x, boxes, labels = unit(data.images[batch]), all_boxes[batch], all_labels[batch]
                changes = training.rng, config.flip, config.recolour
                x, boxes, labels = augment(x, boxes, labels, *changes)
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
    height, width = x.shape[2:]
    corner = torch.tensor([width, height, width, height], device=x.device)
    found = []
    for boxes, scores in zip(all_boxes, all_scores, strict=True):
        if not every_class:  # of each cell the class with the highest score alone
            scores = scores.where(scores == scores.amax(dim=1, keepdim=True), -1)
        cell, labels = (scores >= min_score).nonzero(as_tuple=True)
        boxes, scores = boxes[cell], scores[cell, labels]
        groups = labels if every_class else torch.zeros_like(labels)
        keep = batched_nms(boxes, scores, groups, max_iou)
        inside = boxes[keep].clamp(min=0).minimum(corner)
        found.append({"boxes": inside, "labels": labels[keep], "scores": scores[keep]})
    return found


def detect_in(
    model: Detector, picture: np.ndarray, size: int, min_score: float = MIN_SCORE
) -> Detections:
    """The detections in one picture (H, W, 3) uint8 of any size, in its own pixels.

    The network sees the picture scaled to fit into a square of `size` pixels.
    """
    square, scale = fit(picture, size)
    x = unit(torch.from_numpy(square)).permute(2, 0, 1)[None]  # (1, 3, S, S)
    (found,) = detect(model, x.to(next(model.parameters()).device), min_score)
    return found | {"boxes": found["boxes"] / scale}


def load_detector(
    path: Path, device: torch.device | str = "cpu"
) -> tuple[Detector, tuple[str, ...], int]:
    """The detector of a checkpoint, the names of its classes, and the side of its pictures in pixels."""
    saved = checkpoints.load_checkpoint(path, SCRIPT, device)
    with checkpoints.checkpoint_errors(path):
        classes, size = tuple(saved["extra"]["classes"]), saved["dataset"]["shape"][1]
        backbone = saved["config"].get("backbone", "small")  # older checkpoints do not name it
        model = Detector(len(classes), saved["config"]["width"], backbone)
    checkpoints.load_weights(model, saved["model"].get("detector"), path)
    return channels_last(model, device).eval(), classes, size


# === the lesson ends here; below: measured, plotted, reported =====================================

FEW = 4  # scenes, from which the first picture is made
EVERY = {"min_score": 0.01, "every_class": True}  # boxes that average precision ranks
TITLE = "Detection: where things are, and what"
SUMMARY = (
    "A small network finds the objects in a picture in one pass. By default they are the cars and "
    "pedestrians of drawn streets. For each cell of a grid the network predicts whether the centre of an "
    "object lies in it, the object's box, and its class."
)


def detect_all(model: Detector, images: torch.Tensor, **more) -> list[Detections]:
    """`detect` for pictures (N, 3, S, S) uint8, in batches."""
    parts = progress(images.split(32), "detecting", "batch")
    return [found for part in parts for found in detect(model, unit(part), **more)]


def show_training(config: Config, data: BoxedPictures, result: Result) -> None:
    """Add the first training pictures with their boxes, as they are and as a step sees them."""
    images, few = unit(data.images[:4]), (data.boxes[:4], data.labels[:4])
    rng = generator(config.seed, "augmented")
    changed = augment(images, *padded(*few), rng, config.flip, config.recolour)
    rows = {"pictures": (images, *few), "as a step sees them": changed}
    caption = (
        "Training pictures with their boxes, and the same changed at random, as a step sees them."
    )
    result.add_figure("training.png", boxes_report.plot_boxes(rows, data.classes), caption)


def evaluate(data: BoxedPictures, model: Detector, result: Result) -> None:
    """Add to `result` how well and how fast objects of held-out pictures are found, with examples."""
    images, classes = data.test_images, data.classes
    found, truth = (
        detect_all(model, images, min_score=MIN_SCORE),
        (data.test_boxes, data.test_labels),
    )
    boxes_report.add_scores(result, detect_all(model, images, **EVERY), found, *truth, classes)
    size = sum(p.nbytes for p in model.parameters()) / 1e6
    result.add_metric("size of the detector", size, 1, unit="MB", better="lower")
    boxes_report.add_speed(
        result, partial(detect_in, model, size=data.shape[1]), images[:100], classes
    )
    figure = boxes_report.plot_detections(images[:4], found[:4], *truth, classes)
    result.add_figure("detections.png", figure, boxes_report.CAPTION)
    with torch.no_grad():
        objectness = model(unit(images[:3]))[..., 0].sigmoid()
    before = detect(model, unit(images[:3]), MIN_SCORE, max_iou=1.0)
    figure = boxes_report.plot_steps(images[:3], objectness, before, found[:3], classes)
    caption = "The score of each cell: does it hold the centre of an object? All boxes with a high "
    caption += "score. The boxes that non-maximum suppression leaves."
    result.add_figure("steps.png", figure, caption)


def evaluate_digits(config: Config, data: BoxedPictures, model: Detector, result: Result) -> None:
    """Add the same measure over photographs that training never saw, and a film of moving digits."""
    digits, device = load_dataset(EMBEDDED, Path()), data.images.device
    images, boxes, labels = digit_scenes.render_scenes(
        digits.test_images, digits.test_labels, config.test_scenes, 2, config.size, HELD_OUT
    )
    images = images.to(device)
    boxes, labels = [b.to(device) for b in boxes], [k.to(device) for k in labels]
    scores = boxes_report.average_precision(detect_all(model, images, **EVERY), boxes, labels)
    name = "mAP at 0.5, photographs never seen"
    result.add_metric(name, scores["map_50"], len(images), better="higher")
    found = detect_all(model, images[:4], min_score=MIN_SCORE)
    figure = boxes_report.plot_detections(images[:4], found, boxes, labels, data.classes)
    result.add_figure("elsewhere.png", figure, "Digits over photographs that training never saw.")
    frames = digit_scenes.moving_scene(digits.test_images, 20 if config.quick else 100, config.seed)
    find = partial(detect_in, model, size=config.size)
    add_film(result, frames, box_predictor(find, data.classes))


def lessons(result: Result) -> list[str]:
    """What the measured figures teach."""
    taught = {
        ("mAP at 0.5", "mAP at 0.5 to 0.95"):
            "Average precision is {:.2f} where an IoU of 0.5 is enough, and {:.2f} where boxes must fit "
            "closely. To find an object is easier than to find its exact box.",
        ("objects found", "false boxes per picture"):
            f"With a score of {MIN_SCORE} or more, " "{:.0%} of the objects are found, and {:.2f} boxes "
            "per picture are false. A higher limit gives fewer false boxes and misses more objects.",
        ("mAP at 0.5, photographs never seen",):
            "Over photographs that training never saw it is {:.2f}. A detector must also learn what is "
            "not an object.",
        ("size of the detector", "frames a second, drawing included"):
            "A network of {:.1f} MB sees the whole picture in one pass: {:.0f} frames a second here, "
            "drawing included.",
    }  # fmt: skip
    measured = {text: result.measured(*names) for names, text in taught.items()}
    return [text.format(*values) for text, values in measured.items() if values]


def run(config: Config) -> Result:
    """Train on pictures with boxes, and measure on held-out pictures."""
    device = prepare(config.seed, config.device)
    config = config.if_quick(scenes=128, test_scenes=32, epochs=2)
    if config.size % 16:
        raise UserError(f"--size must be a multiple of 16, not {config.size}.")
    digits, drawn = config.dataset == "digit-scenes", config.dataset in ("scenes", "digit-scenes")
    count = config.scenes or (11_000 if digits else 1_500)
    load = partial(load_boxed, config.dataset, size=config.size, data_dir=config.data_dir)
    # To draw all scenes takes a while: the first few are enough for a picture at once.
    data = load(min(count, FEW), 1)
    name = checkpoint_path(config, data).stem
    folder = PICTURES if name == "scenes" else f"{PICTURES}/{name}"
    result = start_result(SCRIPT, TITLE, SUMMARY, config, folder, device)
    show_training(config, data, result)
    if drawn:
        data = load(count, config.test_scenes)
    data = data.to(device)
    epochs = config.epochs or (8 if digits else max(round(9_000 / len(data.images)), 1))
    config = replace(config, scenes=count, epochs=epochs)
    result.describe(config, data)
    training = train(config, data)
    result.add_metric("seconds of training", training.seconds_used, training.steps_done, unit="s")
    model = training.model.eval()
    evaluate(data, model, result)
    if data.name == "scenes":
        boxes_report.search_faces(result)
    elif digits:
        evaluate_digits(config, data, model, result)
    result.add_figure("loss.png", samples.plot_loss(training, "loss"), "The loss.")
    network, example = DecodedDetector(model), {"pictures": torch.rand(2, *data.shape)}
    export_network(config.export, network, example, "found", any_size=True, classes=data.classes)
    return result.save(*lessons(result))


def load_own(config: PredictBoxes, device: torch.device) -> Predictor:
    """The detector of a training, which draws its detections into pictures of any size."""
    path = config.model or config.output_dir / MODELS / "scenes.pth"
    model, classes, size = load_detector(path, device)
    find = partial(detect_in, model, size=size, min_score=config.least)
    return box_predictor(find, classes, config.least)


def main() -> None:
    predict = partial(predict_boxes, load_own=load_own)
    command_line(Config, run, __doc__, {"predict": (PredictBoxes, predict)})


if __name__ == "__main__":
    main()
