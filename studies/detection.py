"""Detection: where things are and what, in one look (after YOLO, Redmon et al. 2016).

A small convolutional network turns a picture into a grid of cells, 16 pixels wide. Every cell says
whether the middle of a thing lies in it, where exactly, how large the thing is, and what it is. Several
cells find the same thing: of boxes that overlap, non-maximum suppression keeps the surest.

    python -m studies.detection                                  # digits over photographs, nine minutes
    python -m studies.detection --dataset yolo:FOLDER            # yours, in YOLO's text format
    python -m studies.detection --dataset coco:IMAGES:FILE.json  # or a file of COCO's form
    python -m studies.detection predict --source photo.jpg --output found.png
    python -m studies.detection predict --source film.mp4 --output found.webm
    python -m studies.detection predict --source 0 --output found.webm    # camera 0, until Ctrl-C
    python -m studies.detection predict --coco --source photo.jpg --output found.png

What to look at: `steps.png`, from the cells' answers to the boxes that are left; `found.webm`, where each
frame is looked at by itself.
"""

from __future__ import annotations

from imagelab.setup.command import command_line

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from imagelab.data import digit_scenes
from imagelab.data.boxes import BoxedPictures, Boxes, draw_boxes, fit, load_boxed
from imagelab.data.datasets import EMBEDDED, load_dataset, unit
from imagelab.data.photographs import HELD_OUT
from imagelab.data.video import Change, change, open_video, write_video
from imagelab.report import figures
from imagelab.report.results import Result, start_result
from imagelab.report.samples import draw_loss
from imagelab.setup.runtime import UserError, autocast, prepare
from imagelab.setup.settings import (
    Common,
    Count,
    ExportSettings,
    Fraction,
    Limits,
    Rate,
    ResumableSettings,
)
from imagelab.setup.terminal import progress
from imagelab.techniques.export import export_network
from imagelab.techniques.pretrained import coco_ssdlite
from imagelab.training.checkpoints import as_described, load_checkpoint, load_weights
from imagelab.training.loop import Training, one_cycle

SCRIPT = "detection"
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"
TITLE = "Detection: where things are, and what"
SUMMARY = (
    "One pass of a small network over a picture finds what is in it, by default handwritten digits of "
    "many sizes and angles over photographs: a grid of cells, each of which says whether the middle of "
    "a thing lies in it, its box, and its class."
)
LESSONS = (
    "Average precision is {mAP at 0.5|.2f} where half an overlap is enough and {mAP at 0.5 to "
    "0.95|.2f} where boxes must fit closely: finding a thing is easier than measuring it.",
    "Over photographs of which training saw no piece it is {mAP at 0.5, photographs never "
    "seen|.2f}: what is no digit must be learnt as well.",
    "One pass of {size of the detector|.1f} MB does for a whole picture: {frames a second, "
    "drawing included|.0f} frames a second here, drawing included.",
)
CELL = 16  # pixels
LEAST = 0.4  # how sure a box must be to be drawn


@dataclass(frozen=True)
class Config(ExportSettings, ResumableSettings):
    """Settings of the detector."""

    dataset: str = "digit-scenes"
    """digit-scenes (drawn, embedded), yolo:FOLDER or coco:IMAGES:FILE.json."""
    scenes: Count = 11_000
    """Scenes to draw for training."""
    test_scenes: Count = 500
    """Scenes to draw for the measurement, with held-out digits."""
    size: Annotated[int, Limits(64, 1024)] = 256
    """Pictures are fitted into squares of this many pixels, a multiple of 16."""
    width: Count = 24
    """Channels of the first layer; two and four times as many follow."""
    flip: bool = False
    """Also learn from mirrored pictures: for things that have no handedness, unlike digits."""
    epochs: Count = 4
    """Passes over the training pictures, each scaled, shifted and lit anew."""
    batch_size: Count = 8
    """Pictures per step."""
    lr: Rate = 3e-3
    """Peak of Adam's learning rate: it climbs over the first quarter of the steps, then falls to 0."""


@dataclass(frozen=True, kw_only=True)
class Predict(Common):
    """Find things in a picture, a folder of pictures, a video, or what a camera sees."""

    source: str
    """A picture, a folder, a video file, or the number of a camera."""
    output: Path
    """Where to write what was found: a picture, a folder, or a video (.webm, .mp4, .avi)."""
    model: Path = Path(MODELS) / "digit-scenes.pth"
    """The checkpoint of a training."""
    coco: bool = False
    """Use torchvision's SSDlite instead, trained on the 91 classes of COCO."""
    weights: Path | None = None
    """Weights file for --coco; default: torchvision's cache, else its download."""
    least: Fraction = LEAST
    """Boxes that are less sure than this are not drawn."""


# --- the network ----------------------------------------------------------------------------------


def block(channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """A 3×3 convolution, batch normalisation, SiLU."""
    convolution = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.SiLU())


class Residual(nn.Module):
    """Two blocks beside a way around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(block(channels, channels), block(channels, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class Detector(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] to the cells' answers (B, H/16, W/16, 5 + classes).

    An answer holds a logit (is the middle of a thing here?), x, y, width, height as `boxes_of` reads
    them, and the logits of the classes.
    """

    def __init__(self, classes: int, width: int = 24) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(4), nn.Conv2d(48, width, 1),  #   (B, 24, H/4, W/4)
            block(width, 2 * width, 2), Residual(2 * width),  # (B, 48, H/8, W/8)
            block(2 * width, 4 * width, 2), Residual(4 * width), Residual(4 * width),
            nn.Conv2d(4 * width, 5 + classes, 1),  #            (B, 5 + classes, H/16, W/16)
        )  # fmt: skip
        nn.init.constant_(self.layers[-1].bias[:1], -4.0)  # almost all cells are empty

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with autocast(x.device):
            x = self.layers((2 * x - 1).contiguous(memory_format=torch.channels_last))
        return x.permute(0, 2, 3, 1).float()


def boxes_of(answers: torch.Tensor) -> torch.Tensor:
    """The boxes x1 y1 x2 y2 in pixels (B, h, w, 4) that the cells' answers stand for.

    The middle may lie half a cell outside its own cell; a side is e^answer times 32 pixels.
    """
    height, width = answers.shape[1:3]
    column = torch.arange(width, device=answers.device).expand(height, width)
    row = torch.arange(height, device=answers.device)[:, None].expand(height, width)
    middle = (torch.stack([column, row], dim=-1) + 2 * answers[..., 1:3].sigmoid() - 0.5) * CELL
    half = 16 * answers[..., 3:5].clamp(-3, 4).exp()
    return torch.cat([middle - half, middle + half], dim=-1)


def scores_of(answers: torch.Tensor) -> torch.Tensor:
    """For each cell and class (B, h, w, classes) the chance that such a thing is there."""
    return answers[..., :1].sigmoid() * answers[..., 5:].softmax(dim=-1)


class Finder(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1], sides divisible by 16, to (B, H·W/256, 4 + classes).

    For each cell a box x1 y1 x2 y2 in pixels and the score of each class. Of boxes that overlap, the
    one with the highest score is meant: non-maximum suppression is left to who asks.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answers = self.detector(x)
        return torch.cat([boxes_of(answers), scores_of(answers)], dim=-1).flatten(1, 2)


# --- learning -------------------------------------------------------------------------------------


def cells_of(boxes: Boxes, shape: torch.Size) -> tuple[torch.Tensor, ...]:
    """Which cells answer for which thing: picture, row, column and thing, (m,) each.

    A thing, counted through all pictures, is answered for by the cell that its middle lies in and by the
    neighbours on its nearer sides, where they exist: three times as much to learn from.
    """
    every = torch.cat(boxes)
    middle = (every[:, :2] + every[:, 2:]) / 2 / CELL
    cell = middle.long()
    side = torch.where(middle - cell < 0.5, -1, 1)
    zero = torch.zeros_like(side[:, 0])
    steps = torch.stack([torch.zeros_like(side), torch.stack([side[:, 0], zero], 1),
                         torch.stack([zero, side[:, 1]], 1)])  # fmt: skip
    column, row = (cell + steps).flatten(0, 1).unbind(dim=1)
    counts = torch.tensor([len(own) for own in boxes], device=every.device)
    picture = torch.arange(len(boxes), device=every.device).repeat_interleave(counts).repeat(3)
    thing = torch.arange(len(every), device=every.device).repeat(3)
    inside = (row >= 0) & (row < shape[1]) & (column >= 0) & (column < shape[2])
    return picture[inside], row[inside], column[inside], thing[inside]


def detection_loss(answers: torch.Tensor, boxes: Boxes, labels: Boxes) -> torch.Tensor:
    """Objectness of every cell, box and class of those that answer for a thing, per answer.

    Objectness is binary cross-entropy with the focus of Lin et al. (2017) on cells that are wrong; the
    box is judged by its generalised IoU (Rezatofighi et al. 2019), the class by cross-entropy.
    """
    from torchvision.ops import generalized_box_iou_loss

    *at, thing = cells_of(boxes, answers.shape)
    there = torch.zeros(answers.shape[:3], device=answers.device)
    there[tuple(at)] = 1
    logit = answers[..., 0]
    focus = (logit.sigmoid() - there).square()
    objectness = (focus * F.binary_cross_entropy_with_logits(logit, there, reduction="none")).sum()
    truth, kinds = torch.cat(boxes)[thing], torch.cat(labels)[thing]
    box = generalized_box_iou_loss(boxes_of(answers)[tuple(at)], truth, reduction="sum")
    kind = F.cross_entropy(answers[tuple(at)][:, 5:], kinds, reduction="sum")
    return (objectness + 2 * box + 1.5 * kind) / max(len(thing), 1)


def augment(
    images: torch.Tensor, boxes: Boxes, labels: Boxes, rng: torch.Generator, flip: bool
) -> tuple[torch.Tensor, Boxes, Boxes]:
    """Each picture (3, S, S) in [0, 1] scaled (0.8 to 1.25), shifted (±10 %), lit anew, with its boxes.

    Things whose middle is lost are dropped; boxes are cut at the border.
    """
    n, _, size, _ = images.shape

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(n, 1, generator=rng, device=images.device) * (high - low) + low

    scale = uniform(0.8, 1.25)
    shift = torch.cat([uniform(-0.1, 0.1), uniform(-0.1, 0.1)], dim=1)  # of the picture's side
    mirror = torch.where((uniform(0, 1) < 0.5) & flip, -1.0, 1.0)
    # A pixel of the new picture at p (from −1 to 1) comes from (p − 2·shift) / scale.
    zero = torch.zeros_like(scale)
    rows = [mirror / scale, zero, -2 * shift[:, :1] * mirror / scale,
            zero, 1 / scale, -2 * shift[:, 1:] / scale]  # fmt: skip
    theta = torch.cat(rows, dim=1).reshape(n, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    x = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    x = (x - 0.5) * uniform(0.75, 1.25)[..., None, None] + 0.5 + uniform(-0.1, 0.1)[..., None, None]
    kept_boxes, kept_labels = [], []
    for k, (own, kinds) in enumerate(zip(boxes, labels, strict=True)):
        corners = own.reshape(-1, 2, 2) - size / 2
        corners = corners * torch.stack([scale[k] * mirror[k], scale[k]], dim=1) + size * shift[k]
        corners = corners + size / 2
        moved = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
        middle = (moved[:, :2] + moved[:, 2:]) / 2
        inside = ((middle > 0) & (middle < size)).all(dim=1)
        kept_boxes.append(moved[inside].clamp(0, size))
        kept_labels.append(kinds[inside])
    return x.clamp(0, 1), kept_boxes, kept_labels


def train(config: Config, data: BoxedPictures) -> Training:
    """Train the detector, or go on with --resume."""
    torch.manual_seed(config.seed)
    model = Detector(len(data.classes), config.width)
    model.to(data.images.device, memory_format=torch.channels_last)
    adam = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=1e-2, fused=True)
    run = Training(checkpoint_path(config, data), SCRIPT, config, data, {"detector": model},
                   {"adam": adam})  # fmt: skip
    run.extra["classes"] = list(data.classes)
    with run:
        for _ in run.epochs():
            for batch in run.batches():
                adam.param_groups[0]["lr"] = config.lr * one_cycle(run.progress)
                rows = batch.tolist()
                x, boxes, labels = augment(
                    unit(data.images[batch]), [data.boxes[k] for k in rows],
                    [data.labels[k] for k in rows], run.rng, config.flip,
                )  # fmt: skip
                loss = detection_loss(model(x), boxes, labels)
                adam.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 10)
                adam.step()
                run.log(loss=loss)
    return run


# --- finding --------------------------------------------------------------------------------------

Found = dict[str, torch.Tensor]  # boxes (n, 4) in pixels, labels (n,), scores (n,), surest first


@torch.no_grad()
def detect(
    model: Detector, x: torch.Tensor, least: float, overlap: float = 0.5, doubts: bool = False
) -> list[Found]:
    """What is in each picture (B, 3, H, W) in [0, 1]: sure enough, and not found twice.

    The score is the chance that something is there times that of its class. With `doubts` a box is
    found once for each class that is sure enough, and suppresses boxes of its own class only.
    """
    from torchvision.ops import batched_nms

    answers = model(x)
    boxes = boxes_of(answers).flatten(1, 2)
    chances = scores_of(answers).flatten(1, 2)
    found = []
    for own, scores in zip(boxes, chances, strict=True):
        if not doubts:  # of each cell the likeliest class alone
            scores = scores.where(scores == scores.amax(dim=1, keepdim=True), -1)
        cell, label = (scores >= least).nonzero(as_tuple=True)
        own, scores = own[cell], scores[cell, label]
        keep = batched_nms(own, scores, label if doubts else torch.zeros_like(label), overlap)
        found.append({"boxes": own[keep].clamp(0, x.shape[-1]), "labels": label[keep],
                      "scores": scores[keep]})  # fmt: skip
    return found


def average_precision(
    model: Detector, images: torch.Tensor, boxes: Boxes, labels: Boxes
) -> dict[str, torch.Tensor]:
    """torchmetrics' mean average precision on pictures (N, 3, S, S) uint8, second guesses included."""
    from torchmetrics.detection import MeanAveragePrecision

    found = [one for part in progress(images.split(32), "looking", "batch")
             for one in detect(model, unit(part), 0.01, doubts=True)]  # fmt: skip
    truth = [{"boxes": own, "labels": kinds} for own, kinds in zip(boxes, labels, strict=True)]
    metric = MeanAveragePrecision(class_metrics=True, sync_on_compute=False)
    metric.warn_on_many_detections = False  # the surest hundred of a picture are enough
    metric.update(found, truth)
    return metric.compute()


def evaluate(config: Config, data: BoxedPictures, model: Detector, result: Result) -> None:
    """Mean average precision on held-out pictures, and pictures of what was found."""
    images = data.test_images
    scores = average_precision(model, images, data.test_boxes, data.test_labels)
    for name, value in (("mAP at 0.5", scores["map_50"]), ("mAP at 0.5 to 0.95", scores["map"])):
        if value >= 0:  # torchmetrics has −1 for what it could not measure
            result.add_metric(name, value, len(images), better="higher")
    counts = torch.bincount(torch.cat(data.test_labels), minlength=len(data.classes)).tolist()
    kinds, values = scores["classes"].reshape(-1), scores["map_per_class"].reshape(-1)
    # A class of which nothing is held out has -1.
    rows = [[data.classes[k], counts[k], value if value >= 0 else "absent"]
            for k, value in zip(kinds.tolist(), values.tolist(), strict=True)]  # fmt: skip
    result.add_table(
        f"{len(images)} held-out pictures", ["class", "things", "AP at 0.5 to 0.95"], rows
    )
    size = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6
    result.add_metric("size of the detector", size, 1, unit="MB", better="lower")
    path = result.add_file("detections.png", "Held-out pictures, not picked, and what was found.")
    draw_found(path, model, images[:8], data.classes)
    path = result.add_file(
        "steps.png",
        "How sure each cell is that the middle of a thing lies in it; all boxes that are sure enough; "
        "what non-maximum suppression leaves.",
    )
    draw_steps(path, model, images[:3], data.classes)


def to_array(image: torch.Tensor) -> np.ndarray:
    """(3, H, W) uint8 to (H, W, 3)."""
    return image.permute(1, 2, 0).cpu().numpy()


def draw_steps(path: Path, model: Detector, images: torch.Tensor, classes: tuple[str, ...]) -> None:
    """A column per picture: the cells, the boxes before suppression, those after it."""
    with torch.no_grad():
        sure = model(unit(images))[..., 0].sigmoid()
    before = detect(model, unit(images), LEAST, overlap=1.0)
    after = detect(model, unit(images), LEAST)
    figure, axes = figures.new_figure(3 * len(images), 9, 3, len(images))
    for column, image, cells, many, few in zip(axes.T, images, sure, before, after, strict=True):
        picture = to_array(image)
        figures.show_image(column[0], picture)
        extent = (-0.5, picture.shape[1] - 0.5, picture.shape[0] - 0.5, -0.5)
        column[0].imshow(
            cells.cpu().numpy(), cmap="magma", vmin=0, vmax=1, alpha=0.7, extent=extent
        )
        figures.show_image(column[1], draw_boxes(picture, many, classes, LEAST))
        figures.show_image(column[2], draw_boxes(picture, few, classes, LEAST))
    figures.name_rows(axes, ("how sure each cell is", "all sure boxes", "after suppression"))
    figures.save_figure(figure, path)


# --- pictures, folders, films ---------------------------------------------------------------------


def looking(config: Predict, device: torch.device) -> Change:
    """What draws into a picture of any size what the chosen network finds in it."""
    if config.weights is not None and not config.coco:
        raise UserError("--weights are those of the SSDlite: add --coco.")
    if config.coco:
        model, classes = coco_ssdlite(config.weights, device)

        @torch.no_grad()
        def look(picture: np.ndarray) -> np.ndarray:
            x = unit(torch.from_numpy(picture.copy())).permute(2, 0, 1).to(device)
            return draw_boxes(picture, model([x])[0], classes, config.least)

        return look
    saved = load_checkpoint(config.model, SCRIPT, device)
    with as_described(config.model):
        classes, size = tuple(saved["extra"]["classes"]), saved["dataset"]["shape"][1]
        detector = Detector(len(classes), saved["config"]["width"])
    load_weights(detector, saved["model"].get("detector"), config.model)
    return by_detector(detector.to(device, memory_format=torch.channels_last).eval(), classes, size,
                       config.least)  # fmt: skip


def by_detector(model: Detector, classes: tuple[str, ...], size: int, least: float) -> Change:
    """Fit a picture into the network's square, look, draw at the picture's own size."""
    device = next(model.parameters()).device

    def look(picture: np.ndarray) -> np.ndarray:
        square, scale = fit(picture, size)
        x = unit(torch.from_numpy(square)).permute(2, 0, 1)[None].to(device)
        return draw_boxes(picture, detect(model, x, least)[0], classes, least, scale)

    return look


def look_elsewhere(config: Config, data: BoxedPictures, model: Detector, result: Result) -> None:
    """The same digits over photographs of which no piece was seen in training."""
    digits, device = load_dataset(EMBEDDED, Path()), data.images.device
    images, boxes, labels = digit_scenes.draw_scenes(
        digits.test_images, digits.test_labels, config.test_scenes, 2, config.size, HELD_OUT
    )
    truth = [[one.to(device) for one in part] for part in (boxes, labels)]
    scores = average_precision(model, images.to(device), *truth)
    result.add_metric(
        "mAP at 0.5, photographs never seen", scores["map_50"], len(images), better="higher"
    )
    path = result.add_file("elsewhere.png", "Over photographs that training never saw.")
    draw_found(path, model, images[:8], data.classes)


def draw_found(path: Path, model: Detector, images: torch.Tensor, classes: tuple[str, ...]) -> None:
    """Eight pictures with what was found in each."""
    found = detect(model, unit(images), LEAST)
    pictures = [draw_boxes(to_array(image), one, classes, LEAST)
                for image, one in zip(images, found, strict=True)]  # fmt: skip
    figures.side_by_side(path, {f"{k + 1}": p for k, p in enumerate(pictures)}, rows=2, height=3)


def make_film(config: Config, model: Detector, classes: tuple[str, ...], result: Result) -> None:
    """Wandering held-out digits as a film, and what the detector finds in each frame."""
    digits = load_dataset(EMBEDDED, Path()).test_images
    film = result.add_file("moving.webm", "A film of wandering digits.", featured=False)
    write_video(film, digit_scenes.moving_scene(digits, 20 if config.quick else 100, config.seed))
    look = by_detector(model, classes, config.size, LEAST)
    with open_video(film) as video:
        frames = list(video.frames)
    started = time.perf_counter()
    seen = [look(frame) for frame in frames]
    rate = len(frames) / (time.perf_counter() - started)
    result.add_metric("frames a second, drawing included", rate, len(frames), better="higher")
    found = result.add_file("found.webm", "What is found in a film of wandering digits (moving.webm), "
                            "each frame looked at by itself.")  # fmt: skip
    write_video(found, seen)


# --- the runs -------------------------------------------------------------------------------------


def checkpoint_path(config: Config, data: BoxedPictures) -> Path:
    return config.output_dir / MODELS / f"{data.file_name}.pth"


def run(config: Config) -> Result:
    """Train on pictures with boxes, judge on those held out, make a film."""
    device = prepare(config.seed, config.device)
    config = config.quickened(scenes=128, test_scenes=32, epochs=2)
    if config.size % CELL:
        raise UserError(f"--size must be a multiple of {CELL}, not {config.size}.")
    data = load_boxed(config.dataset, config.scenes, config.test_scenes, config.size).to(device)
    folder = PICTURES if data.name == "digit-scenes" else f"{PICTURES}/{data.file_name}"
    result = start_result(SCRIPT, TITLE, SUMMARY, config, folder, device, data)
    training = train(config, data)
    result.add_metric("seconds of training", training.seconds, training.steps_done, unit="s")
    model = training.networks["detector"].eval()
    evaluate(config, data, model, result)
    if data.name == "digit-scenes":
        look_elsewhere(config, data, model, result)
        make_film(config, model, data.classes, result)
    draw_loss(result.add_file("loss.png", "The loss."), training, "loss")
    export_network(config.export, Finder(model), {"pictures": torch.rand(2, *data.shape)}, "found",
                   any_size=True, classes=data.classes)  # fmt: skip
    return result.save(*LESSONS)


def run_predict(config: Predict) -> None:
    """Look at the source, write what was found, say how fast it went."""
    device = prepare(0, config.device)
    print(change(config.source, config.output, lambda: looking(config, device)))


def main() -> None:
    command_line(Config, run, __doc__, {"predict": (Predict, run_predict)})


if __name__ == "__main__":
    main()
