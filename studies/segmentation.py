"""Segmentation: the class of every pixel of a road scene, by a U-Net (Ronneberger et al. 2015).

A U-Net halves the picture level by level, so that it sees far, and then doubles it again. On the way up
each level also gets the features of the way down. They keep edges sharp. It learns from drawn scenes
(imagelab/data/road_scenes.py) or from real pictures.

    python -m studies.segmentation                                  # drawn scenes, six minutes
    python -m studies.segmentation --dataset camvid                 # real ones, of data/CamVid/
    python -m studies.segmentation --dataset camvid --pretrained    # from the network of the drawn ones
    python -m studies.segmentation --dataset folder:IMAGES:MASKS    # yours; masks hold class numbers
    python -m studies.segmentation --network plain --classes road   # a simpler U-Net, for one class
    python -m studies.segmentation predict --image street.jpg --output seen.png    # or --video

Look at thin things in `overlays.png` and at rare classes in `iou.png`: they are much harder.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from imagelab.data.masks import IGNORE, TEST_SCENES, MaskedPictures, load_masked
from imagelab.data.tensors import unit
from imagelab.report import figures, samples
from imagelab.report.masks import add_legend, colours, overlay, plot_overlays
from imagelab.report.predict import PredictMasks, predict_masks
from imagelab.report.results import Result, start_result
from imagelab.setup.runtime import (
    UserError,
    autocast,
    channels_last,
    generator,
    in_eval_mode,
    prepare,
)
from imagelab.setup.settings import Count, ExportSettings, Limits, Rate, ResumableSettings
from imagelab.setup.terminal import progress
from imagelab.techniques.export import export_network
from imagelab.training.checkpoints import checkpoint_errors, load_checkpoint, load_weights
from imagelab.training.loop import Observer, Training, no_observer, one_cycle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "segmentation"
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"


class DoubleConv(nn.Sequential):
    """Two 3×3 convolutions, each with batch normalisation and ReLU."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels), nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels), nn.ReLU(),
        )  # fmt: skip


class SegmentationUNet(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1], of any size, to logits (B, classes, H, W).

    With `widths` (16, 32, 64, 128, 256) the features on the way down are (B, 16, H, W),
    (B, 32, H/2, W/2), and so on to (B, 256, H/16, W/16). The way up has the same shapes in reverse. With
    `patch_size` 2 it works on patches of 2×2 pixels, and all heights and widths are halved: this is
    faster, but thin things suffer. In training, `dropout` is the share of the lowest level's features
    that each step leaves out (Srivastava et al. 2014).
    """

    def __init__(
        self, classes: int, widths: tuple[int, ...], patch_size: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.patch_size = patch_size
        inputs = [3 * patch_size**2, *widths[:-1]]  # channels that enter each level
        self.down = nn.ModuleList(DoubleConv(a, b) for a, b in zip(inputs, widths, strict=True))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # (256, 128), (128, 64), ...
        self.upsample = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(DoubleConv(2 * b, b) for _, b in pairs)
        self.head = nn.Conv2d(widths[0], classes * patch_size**2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        x = pad_to_multiple(2 * x - 1, self.patch_size * 2 ** len(self.upsample))
        with autocast(x.device):
            # A patch of 2×2 pixels becomes one position with more channels: (B, 12, H/2, W/2).
            h = F.pixel_unshuffle(x, self.patch_size).contiguous(memory_format=torch.channels_last)
            skips = []
            for level, convolutions in enumerate(self.down):
                h = convolutions(F.max_pool2d(h, 2) if level else h)
                skips.append(h)
            h = self.dropout(skips.pop())  # the lowest level has no skip connection
            for upsample, convolutions in zip(self.upsample, self.up, strict=True):
                h = convolutions(torch.cat([upsample(h), skips.pop()], dim=1))
            return F.pixel_shuffle(self.head(h), self.patch_size)[:, :, :height, :width].float()


def pad_to_multiple(x: torch.Tensor, n: int) -> torch.Tensor:
    """Pictures (B, C, H, W) with repeated last rows and columns, so that n divides both sides."""
    # −side % n is what is missing to the next multiple of n. F.pad takes the width first.
    return F.pad(x, (0, -x.shape[3] % n, 0, -x.shape[2] % n), mode="replicate")


class PlainUNet(nn.Module):
    """The U-Net of many tutorials: grey pictures, one class, one convolution a level.

    Pictures (B, 3, H, W) in [0, 1], of any size, to logits (B, 2, H, W). The network computes one number
    z per pixel. The logits are 0 for "other" and z for the class. Their softmax is sigmoid(z), and their
    cross-entropy is the binary cross-entropy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.down_1 = nn.Conv2d(1, 64, 3, padding=1)
        self.down_2 = nn.Conv2d(64, 128, 3, padding=1)
        self.down_3 = nn.Conv2d(128, 256, 3, padding=1)
        self.up_2 = nn.Conv2d(256 + 128, 128, 3, padding=1)
        self.up_1 = nn.Conv2d(128 + 64, 64, 3, padding=1)
        self.head = nn.Conv2d(64, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        x = pad_to_multiple(x, 4)
        grey = 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
        with autocast(x.device):
            h_1 = F.relu(self.down_1(grey))  #                              (B, 64, H, W)
            h_2 = F.relu(self.down_2(F.max_pool2d(h_1, 2)))  #              (B, 128, H/2, W/2)
            h = F.relu(self.down_3(F.max_pool2d(h_2, 2)))  #                (B, 256, H/4, W/4)
            h = torch.cat([F.interpolate(h, scale_factor=2.0), h_2], dim=1)
            h = F.relu(self.up_2(h))  #                                     (B, 128, H/2, W/2)
            h = torch.cat([F.interpolate(h, scale_factor=2.0), h_1], dim=1)
            h = F.relu(self.up_1(h))  #                                     (B, 64, H, W)
            z = self.head(h)[:, :, :height, :width].float()
        return torch.cat([torch.zeros_like(z), z], dim=1)


# --- the loss -------------------------------------------------------------------------------------


def dice_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 − the mean over classes of 2·|A∩B| / (|A| + |B|) (Milletari et al. 2016).

    A are the pixels predicted as the class, each counted by its probability. B are the pixels that
    belong to it. Logits (B, classes, H, W), target (B, H, W) of classes or IGNORE. Classes that do not
    occur in the batch are left out of the mean.
    """
    known = target != IGNORE
    p = logits.softmax(dim=1) * known[:, None]
    labels = target.where(known, 0)
    p_true = p.gather(1, labels[:, None])  # of each pixel's own class; 0 where that is not known
    none = torch.zeros_like(p[0, :, 0, 0])  # (classes,)
    both = none.index_add(0, labels.flatten(), p_true.flatten())  # |A∩B|
    count = none.index_add(0, labels.flatten(), known.flatten().to(p.dtype))  # |B|
    score = 2 * both / (p.sum((0, 2, 3)) + count).clamp(min=1e-12)  # 0 for absent classes
    present = count > 0
    return (present.to(p.dtype) - score).sum() / present.sum().clamp(min=1)


def class_weights(masks: torch.Tensor, classes: int) -> torch.Tensor:
    """The weight of each class, 1 / ln(1.02 + its share of the pixels) (Paszke et al. 2016).

    Masks (N, H, W) uint8 to weights (classes,). A class that fills the pictures gets 1.4, one that is
    absent gets 50.
    """
    counts = torch.bincount(masks[masks != IGNORE].long(), minlength=classes)
    return 1 / (1.02 + counts / counts.sum()).log()


def segmentation_loss(
    logits: torch.Tensor, target: torch.Tensor, kind: str, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy, dice loss, or both added (`kind`, see --loss). Pixels of no class do not count.

    Logits (B, classes, H, W), target (B, H, W). `weights` (classes,) are those of the cross-entropy.
    """
    loss = torch.zeros((), device=logits.device)
    known = target != IGNORE
    if kind != "dice":
        # The weighted mean, as reduction="mean", but 0 and not NaN where no pixel is known.
        weights = logits.new_ones(logits.shape[1]) if weights is None else weights
        of_pixels = weights[target.where(known, 0)] * known
        total = F.cross_entropy(logits, target, weights, ignore_index=IGNORE, reduction="sum")
        loss = loss + total / of_pixels.sum().clamp(min=1e-12)
    if kind != "cross-entropy":
        loss = loss + dice_loss(logits, target)
    return loss


# --- augmentation ---------------------------------------------------------------------------------


def warp(
    images: torch.Tensor,
    masks: torch.Tensor,
    angle: torch.Tensor,
    scale: torch.Tensor,
    flip: torch.Tensor,
    shift: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate, scale, flip and shift pictures (B, 3, H, W) and their masks (B, H, W) uint8 alike.

    `angle` (B,) is in radians, `scale` (B,) above 1 enlarges, `flip` (B,) is −1 to mirror and else 1,
    `shift` (B, 2) is in half widths and half heights. Pixels from outside the picture get no class.
    Returns the pictures, and the masks as int64.
    """
    n, _, height, width = images.shape
    # theta maps a position in the new picture to one in the old, both from −1 to 1. `step`: how far it
    # is in the old picture from one pixel to the next. `ratio`: x and y have different units.
    step, ratio = 1 / scale, width / height
    cos, sin = angle.cos() * step, angle.sin() * step
    rows = [cos * flip, -sin / ratio, shift[:, 0],
            sin * ratio * flip, cos, shift[:, 1]]  # fmt: skip
    theta = torch.stack(rows, dim=1).reshape(n, 2, 3)
    grid = F.affine_grid(theta, [n, 3, height, width], align_corners=False)
    x = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    # Outside, grid_sample gives 0. So 0 must mean IGNORE: add 1 modulo 256 (255 becomes 0), sample, and
    # subtract 1.
    y = F.grid_sample((masks[:, None].float() + 1) % 256, grid, mode="nearest", align_corners=False)
    return x.clamp(0, 1), (y[:, 0].long() - 1) % 256


def relight(images: torch.Tensor, gamma: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """Pictures (B, 3, H, W) in [0, 1] in another light: x^gamma · gain; gamma (B,), gain (B, 3)."""
    return (images ** gamma[:, None, None, None] * gain[:, :, None, None]).clamp(0, 1)


def augment(
    images: torch.Tensor, masks: torch.Tensor, rng: torch.Generator, strength: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flip half of the pictures; rotate (±10°), scale (0.8 to 1.6), shift and relight all of them.

    Pictures (B, 3, H, W) in [0, 1] and masks (B, H, W) uint8 to the same, masks as int64. Rotations,
    scales and shifts are `strength` times as far from no change as said.
    """
    n = len(images)

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(n, generator=rng, device=images.device) * (high - low) + low

    angle = strength * uniform(-1, 1) * math.pi / 18
    scale = uniform(1 - 0.2 * strength, 1 + 0.6 * strength)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    shift = strength * torch.stack([uniform(-0.15, 0.15), uniform(-0.1, 0.1)], dim=1)
    x, y = warp(images, masks, angle, scale, flip, shift)
    gamma, brightness = uniform(-0.7, 0.7).exp(), uniform(0.75, 1.25)
    tint = 1 + 0.1 * torch.randn(n, 3, generator=rng, device=images.device)
    return relight(x, gamma, brightness[:, None] * tint), y


# --- training -------------------------------------------------------------------------------------


# By data set, where the settings name none: the steps of a training, --augmentation, --dropout.
STEPS, AUGMENTATION, DROPOUT = {"scenes": 700, "camvid": 2600}, {"scenes": 0.5}, {"camvid": 0.3}


@dataclass(frozen=True)
class Config(ExportSettings, ResumableSettings):
    """Settings of the segmentation."""

    dataset: str = "scenes"
    """scenes (drawn, embedded), camvid or cityscapes (files placed under --data-dir), or
    folder:IMAGES:MASKS for your own. A mask has the name of its picture. It holds the class of each
    pixel: 0, 1, 2, ...; 255 means no class. Exception: if all masks hold only 0 and 255, then 255 is
    the object. Every tenth picture is held out."""
    classes: tuple[str, ...] = ()
    """Learn only these classes, such as road. All pixels of other classes become 'other'."""
    network: Literal["unet", "plain"] = "unet"
    """unet, or plain: the simpler one of many tutorials, for grey pictures and one class (--classes)."""
    ignore_255: bool = False
    """255 always means 'no class' in your own masks."""
    data_dir: Path = Path("data")
    """The folder that holds CamVid/ and cityscapes/."""
    height: Annotated[int, Limits(16, 4096)] | None = None
    """Pictures are scaled to this height in pixels and keep their proportions. Narrower ones get margins
    of no class. Default: 128 for scenes and cityscapes, 180 for camvid."""
    width: Annotated[int, Limits(16, 4096)] | None = None
    """Training pictures get exactly this width in pixels, whatever their proportions."""
    scenes: Count = 1500
    """Scenes to draw for training."""
    test_scenes: Count = TEST_SCENES
    """Scenes to draw for the measurement."""
    pretrained: bool = False
    """Start from the network of an earlier run on the drawn scenes. Only its last layer is new."""
    widths: tuple[Count, ...] = (16, 32, 64, 128, 256)
    """Channels of each level, from the top. The top level is patch_size times smaller than the
    picture in height and width, each next level half as high and wide as the one before."""
    patch_size: Count = 1
    """The network works on squares with this many pixels a side. Larger is faster, but sees thin things
    less well. Half of the time: --patch-size 2 --widths 32 64 128 256."""
    loss: Literal["cross-entropy", "dice", "both"] = "both"
    """Cross-entropy of each pixel, dice loss of each class's area, or their sum."""
    augmentation: Annotated[float, Limits(0, 2)] | None = None
    """How far the training pictures are rotated, scaled and shifted: 1 means up to 10° and 0.8 to 1.6
    times as large, 0.5 half of that. Default: 0.5 for drawn scenes, else 1."""
    dropout: Annotated[float, Limits(0, 0.9)] | None = None
    """The share of the lowest level's features that each step of training leaves out. Default: 0.3 for
    camvid, else 0."""
    mirror: bool = False
    """Measure the mean of what is predicted for a picture and for its mirror image. It takes twice as
    long."""
    unweighted: bool = False
    """All pixels count alike in the cross-entropy. Without this, pixels of rare classes count more."""
    epochs: Count | None = None
    """Passes over the training pictures, which are augmented anew each time. Default: 4 for 1,500 drawn
    scenes, 433 for 50 frames of camvid, and fewer the more pictures there are."""
    batch_size: Count = 8
    """Pictures per step."""
    lr: Rate = 2e-3
    """Peak of AdamW's learning rate. It rises over the first quarter of the steps, then falls to 0."""


def checkpoint_path(config: Config, name: str) -> Path:
    return config.output_dir / MODELS / f"{name}.pth"


def run_name(config: Config, data: MaskedPictures) -> str:
    """The name of the training's checkpoint and folder: 'scenes', 'camvid_pretrained', ..."""
    plain = "_plain" if config.network == "plain" else ""
    return data.file_name + plain + ("_pretrained" if config.pretrained else "")


def unet_weights(saved: dict) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint. Older ones call two of the U-Net's parts by other names."""
    weights = saved["model"].get("unet", {})
    names = {name: name.replace("grow.", "upsample.").replace("last.", "head.") for name in weights}
    return {names[name]: value for name, value in weights.items()}


def build_network(
    network: str, classes: int, widths: tuple[int, ...], patch_size: int, dropout: float = 0.0
) -> SegmentationUNet | PlainUNet:
    """The U-Net, or the plain one (`network`, see --network), with random weights."""
    plain = network == "plain"
    return PlainUNet() if plain else SegmentationUNet(classes, widths, patch_size, dropout)


def new_model(config: Config, data: MaskedPictures) -> SegmentationUNet | PlainUNet:
    """The network with random weights, or with --pretrained those learnt from the drawn scenes."""
    torch.manual_seed(config.seed)
    shape = config.widths, config.patch_size, config.dropout or 0.0
    model = build_network(config.network, len(data.classes), *shape)
    if config.pretrained:
        path = checkpoint_path(config, "scenes")
        learnt = unet_weights(load_checkpoint(path, SCRIPT))
        head = {f"head.{name}": value for name, value in model.head.state_dict().items()}
        load_weights(model, learnt | head, path)
    return channels_last(model, data.images.device)


def train(
    config: Config, data: MaskedPictures, after_epoch: Observer = no_observer
) -> Training[SegmentationUNet | PlainUNet]:
    """Train the network, or go on with --resume. `after_epoch` is called after every epoch."""
    model = new_model(config, data)
    weights = None if config.unweighted else class_weights(data.masks, len(data.classes))
    strength = 1.0 if config.augmentation is None else config.augmentation
    adamw = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=1e-2, fused=True)
    path = checkpoint_path(config, run_name(config, data))
    training = Training(
        path, SCRIPT, config, data, networks={"unet": model}, optimizers={"adamw": adamw},
        may_change_on_resume=("mirror",),
    )  # fmt: skip
    training.extra = {"classes": list(data.classes)}
    if config.resume:
        training.load()
    with training:
        for epoch in training.epochs():
            for batch in training.batches():
                images, masks = unit(data.images[batch]), data.masks[batch]
                x, target = augment(images, masks, training.rng, strength)
                loss = segmentation_loss(model(x), target, config.loss, weights)
                adamw.param_groups[0]["lr"] = config.lr * one_cycle(training.progress)
                adamw.zero_grad()
                loss.backward()
                adamw.step()
                training.log(loss=loss)
            after_epoch(training, epoch)
    return training


# --- prediction -----------------------------------------------------------------------------------


@torch.no_grad()
def predict(model: nn.Module, images: torch.Tensor, mirror: bool = False) -> torch.Tensor:
    """The class of every pixel, (N, H, W) uint8, for pictures (N, 3, H, W) uint8.

    With `mirror` its probability is the mean of those in the picture and in its mirror image.
    """
    found = []
    with in_eval_mode(model):
        for batch in progress(images.split(8), "predicting", "batch"):
            x = unit(batch)
            p = model(x).softmax(dim=1)
            if mirror:
                p = p + model(x.flip(3)).softmax(dim=1).flip(3)
            found.append(p.argmax(dim=1).to(torch.uint8))
    return torch.cat(found)


def load_model(
    path: Path, device: torch.device | str = "cpu"
) -> tuple[nn.Module, tuple[str, ...], int]:
    """The network of a checkpoint, the names of its classes, and the height of its training pictures."""
    saved = load_checkpoint(path, SCRIPT, device)
    with checkpoint_errors(path):
        classes, settings = tuple(saved["extra"]["classes"]), saved["config"]
        patch_size = settings.get("patch_size") or settings["fold"]  # its name in older checkpoints
        network, widths = settings.get("network", "unet"), tuple(settings["widths"])
        model = build_network(network, len(classes), widths, patch_size)
        height, weights = saved["dataset"]["shape"][1], unet_weights(saved)
    load_weights(model, weights, path)
    return channels_last(model, device).eval(), classes, height


# === the lesson ends here; below: measured, plotted, reported =====================================

FEW = 24  # scenes, from which the first picture is made
TITLE = "Segmentation: what every pixel is"
SUMMARY = (
    "A U-Net predicts the class of every pixel. By default the pictures are streets with sky, road, "
    "cars and people. They are drawn, so that their masks are exact and no photographs are needed. "
    "The measure is the overlap (IoU) of prediction and truth for each class. A share of right pixels "
    "would say little, because most pixels belong to few classes."
)


def scores(
    predicted: torch.Tensor, masks: torch.Tensor, classes: int
) -> tuple[torch.Tensor, float]:
    """IoU of each class (classes,) and the share of pixels that are right.

    Both are taken over the pixels of all pictures (N, H, W) together, without pixels of no class. The
    IoU of a class that is neither predicted nor present is NaN.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    known = masks != IGNORE
    table = multiclass_confusion_matrix(predicted[known].long(), masks[known].long(), classes)
    table = table.double()
    right = table.diag()
    return right / (table.sum(0) + table.sum(1) - right), (right.sum() / table.sum()).item()


def evaluate(config: Config, data: MaskedPictures, training: Training, result: Result) -> None:
    """Enter the loss, and IoU and accuracy on held-out pictures, into `result`; show four of them."""
    result.add_metric("seconds of training", training.seconds_used, training.steps_done, unit="s")
    result.add_figure("loss.png", samples.plot_loss(training, "loss"), f"The loss ({config.loss}).")
    images, masks, n = data.test_images, data.test_masks, len(data.test_images)
    predicted = predict(training.model, images, config.mirror)
    iou, accuracy = scores(predicted, masks, len(data.classes))
    result.add_metric("mean IoU", iou[iou.isfinite()].mean(), n, better="higher")
    result.add_metric("pixel accuracy", accuracy, n, better="higher")
    known = masks[masks != IGNORE].long()
    share = (torch.bincount(known, minlength=len(data.classes)) / len(known)).tolist()
    rows = [
        [name, f"{part:.1%}", value.item() if value.isfinite() else "absent"]
        for name, part, value in zip(data.classes, share, iou, strict=True)
    ]
    result.add_table(f"{n} held-out pictures", ["class", "share of the pixels", "IoU"], rows)
    caption = "Overlap (IoU) of prediction and truth, by class."
    result.add_figure("iou.png", plot_iou(iou, data.classes, n), caption)
    figure = plot_overlays(images[:4], masks[:4], predicted[:4], data.classes)
    caption = "Held-out pictures, not picked, with their true and their predicted classes."
    result.add_figure("overlays.png", figure, caption)


def plot_iou(iou: torch.Tensor, classes: tuple[str, ...], n: int) -> Figure:
    """The IoU (classes,) on `n` pictures, a bar per class."""
    figure, axes = figures.new_figure(6, 0.3 * len(classes) + 1)
    bars, edge = iou.nan_to_num().cpu().numpy(), "#444444"
    axes[0, 0].barh(classes, bars, color=colours(classes) / 255, edgecolor=edge)
    axes[0, 0].invert_yaxis()
    axes[0, 0].set_xlim(0, 1)
    axes[0, 0].set_xlabel(f"IoU on {n} held-out pictures")
    return figure


def plot_augmented(data: MaskedPictures, seed: int) -> Figure:
    """A training picture of middle brightness: as it is, with one change each, and with all of them."""
    brightness = data.images.flatten(1).float().mean(dim=1)
    k = int(brightness.argsort()[len(brightness) // 2])
    image, mask = unit(data.images[k : k + 1]).cpu(), data.masks[k : k + 1].cpu()

    def warped(angle: float = 0.0, scale: float = 1.0, flip: float = 1.0, shift: float = 0.0):
        a, s, f = torch.tensor([[angle], [scale], [flip]])
        return warp(image, mask, a, s, f, torch.full((1, 2), shift))

    rng = generator(seed, "augmented")
    changed = {
        "original": (image, mask),
        "rotated by 10°": warped(angle=math.radians(10)),
        "enlarged 1.6 times": warped(scale=1.6),
        "flipped": warped(flip=-1.0),
        "shifted": warped(shift=0.15),
        "in another light": (relight(image, torch.tensor([0.6]), torch.full((1, 3), 0.9)), mask),
        "all at once (a)": augment(image, mask, rng),
        "all at once (b)": augment(image, mask, rng),
    }
    figure, axes = figures.new_figure(1.9 * len(changed), 3.5, 2, len(changed))
    for column, (name, (x, y)) in zip(axes.T, changed.items(), strict=True):
        figures.show_image(column[0], figures.as_picture(x[0]), name)
        white = np.full((*y.shape[1:], 3), 255, np.uint8)
        figures.show_image(column[1], overlay(white, y[0].numpy(), colours(data.classes), 1.0))
    figures.name_rows(axes, ("picture", "mask"))
    add_legend(figure, data.classes)
    return figure


def lessons(result: Result) -> list[str]:
    """What the figures teach, as far as they were measured."""
    if not (measured := result.measured("pixel accuracy", "mean IoU")):
        return []
    accuracy, iou = measured
    return [
        f"{accuracy:.0%} of the pixels get the right class. The mean IoU of the classes is {iou:.2f}. In "
        "this mean a thin or rare thing counts as much as a large surface."
    ]


def run(config: Config) -> Result:
    """Train on pictures and masks, measure on those held out."""
    device = prepare(config.seed, config.device)
    config = config.if_quick(scenes=96, test_scenes=24, epochs=2, widths=(16, 32))

    def load(scenes: int, test_scenes: int) -> MaskedPictures:
        data = load_masked(
            config.dataset,
            config.data_dir,
            config.height,
            scenes,
            test_scenes,
            config.ignore_255,
            config.width,
        )
        return data.only(config.classes)

    # To draw all scenes takes a while: the first few are enough for a picture at once.
    data = load(min(config.scenes, FEW), 1)
    if config.network == "plain" and len(data.classes) != 2:
        raise UserError("--network plain needs one class: add --classes road, for example.")
    name = run_name(config, data)
    folder = PICTURES if name == "scenes" else f"{PICTURES}/{name}"
    result = start_result(SCRIPT, TITLE, SUMMARY, config, folder, device)
    caption = (
        "A training picture and its mask: each change alone, and all at once. White: no class."
    )
    result.add_figure("augmented.png", plot_augmented(data, config.seed), caption)
    if config.dataset == "scenes":
        data = load(config.scenes, config.test_scenes)
    data = data.to(device)
    own, per_epoch = config.dataset, max(len(data.images) // config.batch_size, 1)
    chosen = {
        "epochs": max(round(STEPS.get(own, 1300) / per_epoch), 1),
        "augmentation": AUGMENTATION.get(own, 1.0),
        "dropout": DROPOUT.get(own, 0.0),
    }
    missing = {name: value for name, value in chosen.items() if getattr(config, name) is None}
    config = replace(config, **missing)
    result.describe(config, data)
    training = train(config, data)
    evaluate(config, data, training, result)
    model = training.model.eval()
    pictures = {"pictures": torch.rand(2, *data.shape)}
    export_network(config.export, model, pictures, "logits", any_size=True, classes=data.classes)
    return result.save(*lessons(result))


def load_own(config: PredictMasks, device: torch.device) -> tuple[nn.Module, tuple[str, ...], int]:
    """As `load_model`: the checkpoint of --model, or the one of the drawn scenes."""
    path = config.model or config.output_dir / MODELS / "scenes.pth"
    if not path.is_file():
        raise UserError(
            f"There is no checkpoint {path}. Train one (python -m studies.{SCRIPT}), or "
            "say where it is with --model or --output-dir."
        )
    return load_model(path, device)


def main() -> None:
    predict = partial(predict_masks, load_own=load_own)
    command_line(Config, run, __doc__, {"predict": (PredictMasks, predict)})


if __name__ == "__main__":
    main()
