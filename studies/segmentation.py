"""Segmentation: the class of every pixel of a road scene, by a U-Net (Ronneberger et al. 2015).

Patches of 2×2 pixels become channels first, which makes it fast. Then the U-Net halves the picture level
by level, to see far, and doubles it again. At each level it also gets the features from the way down, so
that edges stay sharp. It learns from drawn
scenes with exact masks (imagelab/data/road_scenes.py), or from real pictures.

    python -m studies.segmentation                                  # drawn scenes, five minutes
    python -m studies.segmentation --dataset camvid                 # real ones, of data/CamVid/
    python -m studies.segmentation --dataset camvid --pretrained    # from the network of the drawn ones
    python -m studies.segmentation --dataset folder:IMAGES:MASKS    # yours; masks hold class numbers
    python -m studies.segmentation predict --image street.jpg --output seen.png
    python -m studies.segmentation predict --video drive.mp4 --output seen.webm

What to look at: in `overlays.png`, the edges of thin things; in `iou.png`, how much harder small and rare
classes are. An accuracy over all pixels hides that.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from imagelab.data.datasets import unit
from imagelab.data.masks import IGNORE, TEST_SCENES, MaskedPictures, load_masked
from imagelab.data.video import process_media
from imagelab.report import figures, samples
from imagelab.report.results import Result, start_result
from imagelab.setup.runtime import (
    UserError,
    autocast,
    channels_last,
    generator,
    in_eval_mode,
    prepare,
)
from imagelab.setup.settings import Common, Count, ExportSettings, Limits, Rate, ResumableSettings
from imagelab.setup.terminal import progress
from imagelab.techniques.export import export_network
from imagelab.training.checkpoints import checkpoint_errors, load_checkpoint, load_weights
from imagelab.training.loop import Observer, Training, no_observer, one_cycle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "segmentation"
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"
STEPS = {"scenes": 700, "others": 1300}  # of training, where --epochs is not given


@dataclass(frozen=True)
class Config(ExportSettings, ResumableSettings):
    """Settings of the segmentation."""

    dataset: str = "scenes"
    """scenes (drawn, embedded), camvid or cityscapes (files placed under --data-dir), or
    folder:IMAGES:MASKS for your own. A mask has the name of its picture and holds each pixel's class, 0,
    1, 2, ..., or 255 where it has none; where all masks hold 0 and 255 only, 255 is the object. Every
    tenth picture is held out."""
    ignore_255: bool = False
    """255 means 'no class' in your own masks, whatever other values they hold."""
    data_dir: Path = Path("data")
    """Where CamVid/ and cityscapes/ lie."""
    height: Annotated[int, Limits(16, 4096)] | None = None
    """Pixels to which pictures are scaled, in their own proportions; narrower ones get margins of no
    class. Default: scenes 128, camvid 180."""
    scenes: Count = 1500
    """Scenes to draw for training."""
    test_scenes: Count = TEST_SCENES
    """Scenes to draw for the measurement."""
    pretrained: bool = False
    """Start from the network that was trained on the drawn scenes, all but its last layer."""
    widths: tuple[Count, ...] = (32, 64, 128, 256)
    """Channels of each level, from the top, which has 1/patch_size of the picture's size; each next level
    has half the size."""
    patch_size: Count = 2
    """The network works on squares of so many pixels a side, not on single pixels; larger is faster."""
    loss: Literal["cross-entropy", "dice", "both"] = "both"
    """Cross-entropy of each pixel, dice loss of each class's area, or their sum."""
    unweighted: bool = False
    """All pixels count alike in the cross-entropy; else those of rare classes count more."""
    epochs: Count | None = None
    """Passes over the training pictures, each turned, scaled and lit anew. Default: 700 steps for the
    drawn scenes, 1,300 for real pictures."""
    batch_size: Count = 8
    """Pictures per step."""
    lr: Rate = 1e-3
    """Peak of AdamW's learning rate: it climbs over the first quarter of the steps, then falls to 0."""


# --- the network ----------------------------------------------------------------------------------


class DoubleConv(nn.Sequential):
    """Two 3×3 convolutions, each with batch normalisation and ReLU."""

    def __init__(self, channels: int, out_channels: int) -> None:
        layers = []
        for before in (channels, out_channels):
            layers += [nn.Conv2d(before, out_channels, 3, padding=1, bias=False),
                       nn.BatchNorm2d(out_channels), nn.ReLU()]  # fmt: skip
        super().__init__(*layers)


class SegmentationUNet(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1], of any size, to logits (B, classes, H, W).

    With `widths` (32, 64, 128, 256) and patches of 2×2 pixels the features have these shapes:
    down (B, 32, H/2, W/2), (B, 64, H/4, W/4), (B, 128, H/8, W/8), (B, 256, H/16, W/16), and back up.
    """

    def __init__(self, classes: int, widths: tuple[int, ...], patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        before = [3 * patch_size**2, *widths]
        self.down = nn.ModuleList(DoubleConv(a, b) for a, b in zip(before, widths, strict=False))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # (256, 128), (128, 64), ...
        self.grow = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(DoubleConv(2 * b, b) for _, b in pairs)
        self.last = nn.Conv2d(widths[0], classes * patch_size**2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        step = self.patch_size * 2 ** len(self.grow)  # sides are padded to a multiple of this
        x = F.pad(2 * x - 1, (0, -width % step, 0, -height % step), mode="replicate")
        with autocast(x.device):
            # Each patch of pixels becomes one position with more channels: (B, 12, H/2, W/2).
            h = F.pixel_unshuffle(x, self.patch_size).contiguous(memory_format=torch.channels_last)
            skips = []
            for level, stage in enumerate(self.down):
                h = stage(F.max_pool2d(h, 2) if level else h)
                skips.append(h)
            skips.pop()  # the lowest level is no skip connection: it is h
            for grow, stage in zip(self.grow, self.up, strict=True):
                h = stage(torch.cat([grow(h), skips.pop()], dim=1))
            return F.pixel_shuffle(self.last(h), self.patch_size)[:, :, :height, :width].float()


# --- the loss -------------------------------------------------------------------------------------


def dice_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 − the mean over classes of 2·|A∩B| / (|A| + |B|), soft (Milletari et al. 2016).

    Logits (B, classes, H, W), target (B, H, W) of classes or IGNORE. The mean is over the classes that
    occur in the batch.
    """
    known = target != IGNORE
    p = logits.softmax(dim=1) * known[:, None]
    labels = target[known]
    p_true = p.gather(1, target.where(known, 0)[:, None])[:, 0][known]  # of each pixel's own class
    common = torch.zeros_like(logits[0, :, 0, 0]).index_add(0, labels, p_true)
    count = torch.bincount(labels, minlength=logits.shape[1])
    present = count > 0
    return 1 - (2 * common[present] / (p.sum((0, 2, 3)) + count)[present]).mean()


def class_weights(masks: torch.Tensor, classes: int) -> torch.Tensor:
    """The weight of each class, 1 / ln(1.02 + its share of the pixels) (Paszke et al. 2016): (classes,).

    From masks (N, H, W) uint8. A class that fills the pictures gets 1.4, one that is absent 50.
    """
    counts = torch.bincount(masks[masks != IGNORE].long(), minlength=classes)
    return 1 / (1.02 + counts / counts.sum()).log()


def segmentation_loss(
    logits: torch.Tensor, target: torch.Tensor, kind: str, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """The loss that `kind` names (see --loss), a scalar; pixels of no class do not count.

    `weights` (classes,) are those of the cross-entropy.
    """
    if not (target != IGNORE).any():
        return 0 * logits.sum()
    loss = torch.zeros((), device=logits.device)
    if kind != "dice":
        loss = loss + F.cross_entropy(logits, target, weights, ignore_index=IGNORE)
    if kind != "cross-entropy":
        loss = loss + dice_loss(logits, target)
    return loss


# --- training -------------------------------------------------------------------------------------


def augment(
    images: torch.Tensor, masks: torch.Tensor, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each picture flipped or not, turned (±10°), scaled (0.8 to 1.6), shifted, in another light.

    Pictures (B, 3, H, W) in [0, 1] and masks (B, H, W) uint8 go through the same change. What comes
    from outside the picture has no class. Returns the pictures, and the masks as int64.
    """
    n, _, height, width = images.shape

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(n, generator=rng, device=images.device) * (high - low) + low

    angle, scale = uniform(-1, 1) * math.pi / 18, 1 / uniform(0.8, 1.6)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    cos, sin, ratio = angle.cos() * scale, angle.sin() * scale, width / height
    rows = [cos * flip, -sin / ratio, uniform(-0.15, 0.15),
            sin * ratio * flip, cos, uniform(-0.1, 0.1)]  # fmt: skip
    theta = torch.stack(rows, dim=1).reshape(n, 2, 3)
    grid = F.affine_grid(theta, [n, 3, height, width], align_corners=False)
    x = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    # grid_sample fills in 0 from outside: classes go through as class + 1 and IGNORE (255) as 0, and what
    # is 0 afterwards becomes IGNORE again.
    y = F.grid_sample((masks[:, None].float() + 1) % 256, grid, mode="nearest", align_corners=False)
    gamma, gain = uniform(-0.7, 0.7).exp(), uniform(0.75, 1.25)
    tint = 1 + 0.1 * torch.randn(n, 3, generator=rng, device=images.device)
    x = x.clamp(0, 1) ** gamma[:, None, None, None] * (gain[:, None] * tint)[:, :, None, None]
    return x.clamp(0, 1), (y[:, 0].long() - 1) % 256


def checkpoint_path(config: Config, name: str) -> Path:
    return config.output_dir / MODELS / f"{name}.pth"


def new_model(config: Config, data: MaskedPictures) -> SegmentationUNet:
    """A U-Net with its first weights: random, or with --pretrained those learnt from the drawn scenes."""
    torch.manual_seed(config.seed)
    model = SegmentationUNet(len(data.classes), config.widths, config.patch_size)
    if config.pretrained:
        path = checkpoint_path(config, "scenes")
        learnt = load_checkpoint(path, SCRIPT)["model"].get("unet", {})
        fresh = {
            name: value for name, value in model.state_dict().items() if name.startswith("last.")
        }
        load_weights(model, learnt | fresh, path)
    return channels_last(model, data.images.device)


def train(
    config: Config, data: MaskedPictures, after_epoch: Observer = no_observer
) -> Training[SegmentationUNet]:
    """Train the U-Net, or go on with --resume; `after_epoch` looks on."""
    model = new_model(config, data)
    weights = None if config.unweighted else class_weights(data.masks, len(data.classes))
    adam = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=1e-2, fused=True)
    name = data.file_name + ("_pretrained" if config.pretrained else "")
    training = Training(
        checkpoint_path(config, name), SCRIPT, config, data,
        networks={"unet": model}, optimizers={"adam": adam},
    )  # fmt: skip
    training.extra = {"classes": list(data.classes)}
    if config.resume:
        training.load()
    with training:
        for epoch in training.epochs():
            for batch in training.batches():
                x, target = augment(unit(data.images[batch]), data.masks[batch], training.rng)
                loss = segmentation_loss(model(x), target, config.loss, weights)
                adam.param_groups[0]["lr"] = config.lr * one_cycle(training.progress)
                adam.zero_grad()
                loss.backward()
                adam.step()
                training.log(loss=loss)
            after_epoch(training, epoch)
    return training


# --- prediction -----------------------------------------------------------------------------------


@torch.no_grad()
def predict(model: SegmentationUNet, images: torch.Tensor) -> torch.Tensor:
    """The class of every pixel, (N, H, W) uint8, for pictures (N, 3, H, W) uint8."""
    with in_eval_mode(model):
        parts = [model(unit(part)).argmax(dim=1).to(torch.uint8)
                 for part in progress(images.split(8), "predicting", "batch")]  # fmt: skip
    return torch.cat(parts)


@torch.no_grad()
def predict_strips(
    model: SegmentationUNet, picture: np.ndarray, height: int, strip: int = 64
) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows and their classes (rows, W) uint8, strip by strip, for one picture (H, W, 3) uint8.

    The network sees the picture scaled to `height` pixels; its logits are then scaled to the picture's
    own size, bilinearly as F.interpolate does. All logits at that size would take gigabytes; those of
    `strip` rows do not.
    """
    import cv2

    width = max(round(picture.shape[1] * height / picture.shape[0]), 1)
    method = cv2.INTER_AREA if height < picture.shape[0] else cv2.INTER_LINEAR
    small = cv2.resize(picture, (width, height), interpolation=method)
    x = torch.from_numpy(small).permute(2, 0, 1)[None].to(model.last.weight.device)
    logits = model(unit(x))  # (1, classes, height, width)
    for top in range(0, picture.shape[0], strip):
        rows = slice(top, min(top + strip, picture.shape[0]))
        y = torch.arange(rows.start, rows.stop, device=x.device) + 0.5
        y = (y * height / picture.shape[0] - 0.5).clamp(min=0)
        above = y.long().clamp(max=height - 1)
        below, share = (above + 1).clamp(max=height - 1), (y - above)[:, None]
        lines = torch.lerp(logits[:, :, above], logits[:, :, below], share)
        lines = F.interpolate(lines, (len(y), picture.shape[1]), mode="bilinear")
        yield rows, lines.argmax(dim=1)[0].to(torch.uint8).cpu().numpy()


def load_model(
    path: Path, device: torch.device | str = "cpu"
) -> tuple[SegmentationUNet, tuple[str, ...], int]:
    """The U-Net of a checkpoint, the names of its classes, and the height of its pictures in pixels."""
    saved = load_checkpoint(path, SCRIPT, device)
    with checkpoint_errors(path):
        classes, settings = tuple(saved["extra"]["classes"]), saved["config"]
        patch_size = settings.get("patch_size") or settings["fold"]  # its name in older ones
        model = SegmentationUNet(len(classes), tuple(settings["widths"]), patch_size)
        height = saved["dataset"]["shape"][1]
    load_weights(model, saved["model"].get("unet"), path)
    return channels_last(model, device).eval(), classes, height


# === the lesson ends here; below: measured, plotted, reported =====================================

TITLE = "Segmentation: what every pixel is"
SUMMARY = (
    "A U-Net gives every pixel of a picture its class. By default the picture is a street: sky, road, "
    "markings, cars, people. The streets are drawn and their masks are exact, so that no photographs are "
    "needed. The measure is the overlap (IoU) of prediction and truth, class by class, because most "
    "pixels belong to few classes."
)
COLOURS = {
    "sky": "#56B4E9", "road": "#999999", "marking": "#F0E442", "building": "#D55E00",
    "vegetation": "#009E73", "tree": "#009E73", "car": "#0072B2", "pedestrian": "#CC79A7",
    "pole": "#000000", "pavement": "#E69F00", "sign": "#F0E442", "fence": "#882255",
    "bicyclist": "#DDDDDD",
}  # fmt: skip


def scores(
    predicted: torch.Tensor, masks: torch.Tensor, classes: int
) -> tuple[torch.Tensor, float]:
    """IoU of each class (classes,) and the share of pixels that are right.

    Over the pixels of all pictures (N, H, W) together; pixels of no class are left out. The IoU of a
    class that is neither predicted nor there is NaN.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    known = masks != IGNORE
    table = multiclass_confusion_matrix(predicted[known].long(), masks[known].long(), classes)
    table = table.double()
    right = table.diag()
    return right / (table.sum(0) + table.sum(1) - right), (right.sum() / table.sum()).item()


def evaluate(config: Config, data: MaskedPictures, training: Training, result: Result) -> None:
    """Enter the loss, IoU and accuracy on held-out pictures, and some of these, into `result`."""
    result.add_metric("seconds of training", training.seconds_used, training.steps_done, unit="s")
    result.add_figure("loss.png", samples.plot_loss(training, "loss"), f"The loss ({config.loss}).")
    images, masks, n = data.test_images, data.test_masks, len(data.test_images)
    predicted = predict(training.model, images)
    iou, accuracy = scores(predicted, masks, len(data.classes))
    result.add_metric("mean IoU", iou[iou.isfinite()].mean(), n, better="higher")
    result.add_metric("pixel accuracy", accuracy, n, better="higher")
    inside = masks[masks != IGNORE].long()
    share = (torch.bincount(inside, minlength=len(data.classes)) / len(inside)).tolist()
    rows = [[name, f"{part:.1%}", value.item() if value.isfinite() else "absent"]
            for name, part, value in zip(data.classes, share, iou, strict=True)]  # fmt: skip
    result.add_table(f"{n} held-out pictures", ["class", "share of the pixels", "IoU"], rows)
    caption = "Overlap (IoU) of prediction and truth, by class."
    result.add_figure("iou.png", plot_iou(iou, data.classes, n), caption)
    figure = plot_overlays(images[:4], masks[:4], predicted[:4], data.classes)
    caption = "Held-out pictures, not picked; the true classes; the predicted ones."
    result.add_figure("overlays.png", figure, caption)


def colours(classes: tuple[str, ...]) -> np.ndarray:
    """An RGB colour (classes, 3) of 0 to 255 for each class."""
    spare = figures.CLASS_COLOURS
    names = [COLOURS.get(name, spare[k % len(spare)]) for k, name in enumerate(classes)]
    return np.array([figures.rgb(name) for name in names], np.float64)


def overlay(picture: np.ndarray, mask: np.ndarray, palette: np.ndarray, strength: float = 0.5):
    """Picture (H, W, 3) uint8 with the colours of its classes (H, W) laid over it, but for IGNORE."""
    known = (mask != IGNORE)[..., None]
    covered = (1 - strength) * picture + strength * palette[np.where(known[..., 0], mask, 0)]
    return np.where(known, covered, picture).round().astype(np.uint8)


def plot_iou(iou: torch.Tensor, classes: tuple[str, ...], n: int) -> Figure:
    """The IoU (classes,) on `n` pictures, a bar per class."""
    figure, axes = figures.new_figure(6, 0.3 * len(classes) + 1)
    axes[0, 0].barh(classes, iou.nan_to_num().cpu().numpy(), color=colours(classes) / 255,
                    edgecolor="#444444")  # fmt: skip
    axes[0, 0].invert_yaxis()
    axes[0, 0].set_xlim(0, 1)
    axes[0, 0].set_xlabel(f"IoU on {n} held-out pictures")
    return figure


def plot_overlays(images, masks, predicted, classes: tuple[str, ...]) -> Figure:
    """Columns of picture (3, H, W), truth and prediction (H, W), all uint8, with a legend."""
    from matplotlib.patches import Patch

    palette = colours(classes)
    figure, axes = figures.new_figure(3 * len(images), 6.8, 3, len(images))
    for column, image, mask, seen in zip(axes.T, images, masks, predicted, strict=True):
        picture = image.permute(1, 2, 0).cpu().numpy()
        figures.show_image(column[0], picture)
        figures.show_image(column[1], overlay(picture, mask.cpu().numpy(), palette, 0.6))
        figures.show_image(column[2], overlay(picture, seen.cpu().numpy(), palette, 0.6))
    figures.name_rows(axes, ("picture", "what is there", "what was seen"))
    patches = [Patch(facecolor=c / 255, edgecolor="#444444", label=name)
               for c, name in zip(palette, classes, strict=True)]  # fmt: skip
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(classes), 7))
    return figure


def plot_augmented(data: MaskedPictures, seed: int) -> Figure:
    """One training picture and its mask, changed together six times."""
    rng = generator(seed, "augmented", data.images.device)
    x, masks = augment(
        unit(data.images[:1]).expand(6, -1, -1, -1), data.masks[:1].expand(6, -1, -1), rng
    )
    figure, axes = figures.new_figure(13, 3.2, 2, 6)
    for column, image, mask in zip(axes.T, x.cpu(), masks.cpu().numpy(), strict=True):
        figures.show_image(column[0], figures.as_picture(image))
        white = np.full((*mask.shape, 3), 255, np.uint8)
        figures.show_image(column[1], overlay(white, mask, colours(data.classes), 1.0))
    figures.name_rows(axes, ("picture", "mask"))
    return figure


def lessons(result: Result) -> list[str]:
    """What the figures teach, as far as they were measured."""
    if not (measured := result.measured("pixel accuracy", "mean IoU")):
        return []
    accuracy, iou = measured
    return [
        f"{accuracy:.0%} of the pixels get the right class. The mean IoU of the classes is {iou:.2f}: in "
        "it a thin or rare thing counts as much as a large surface."
    ]


def run(config: Config) -> Result:
    """Train on pictures and masks, measure on those held out."""
    device = prepare(config.seed, config.device)
    config = config.if_quick(scenes=96, test_scenes=24, epochs=2, widths=(16, 32))
    data = load_masked(config.dataset, config.data_dir, config.height, config.scenes,
                       config.test_scenes, config.ignore_255).to(device)  # fmt: skip
    if config.epochs is None:
        steps = STEPS.get(data.name, STEPS["others"])
        config = replace(config, epochs=max(round(steps * config.batch_size / len(data.images)), 1))
    folder = PICTURES if data.name == "scenes" else f"{PICTURES}/{data.file_name}"
    result = start_result(SCRIPT, TITLE, SUMMARY, config, folder, device, data)
    caption = "One training picture, changed six times; its mask is turned and shifted with it."
    caption += " White: no class."
    result.add_figure("augmented.png", plot_augmented(data, config.seed), caption)
    training = train(config, data)
    evaluate(config, data, training, result)
    model = training.model.eval()
    export_network(config.export, model, {"pictures": torch.rand(2, *data.shape)}, "logits",
                   any_size=True, classes=data.classes)  # fmt: skip
    return result.save(*lessons(result))


@dataclass(frozen=True, kw_only=True)
class PredictMasks(Common):
    """Lay the predicted classes over a picture or a video of your own, each in its colour."""

    output: Path
    """Where to write: .png, .jpg, ... for a picture, .webm, .mp4 or .avi for a video."""
    image: Path | None = None
    """A picture of any size."""
    video: Path | None = None
    """A video file."""
    model: Path = Path(MODELS) / "scenes.pth"
    """The checkpoint of a training."""
    strength: Annotated[float, Limits(0, 1)] = 0.5
    """How strongly the colours cover the picture."""


def run_predict(config: PredictMasks) -> None:
    """Read, predict, write, and print how much of the picture each class covers."""
    source = config.image or config.video
    if source is None or (config.image and config.video):
        raise UserError("Give either --image or --video.")
    device = prepare(0, config.device)
    model, classes, height = load_model(config.model, device)
    palette, covered = colours(classes), np.zeros(len(classes))

    def coloured(picture: np.ndarray) -> np.ndarray:
        seen = np.empty_like(picture)
        for rows, mask in predict_strips(model, picture, height):
            covered[:] += np.bincount(mask.ravel(), minlength=len(classes))
            seen[rows] = overlay(picture[rows], mask, palette, config.strength)
        return seen

    print(process_media(source, config.output, lambda: coloured))
    for k in np.argsort(-covered):
        red, green, blue = palette[k].astype(int)
        print(f"{covered[k] / covered.sum():6.1%}  {classes[k]}  #{red:02x}{green:02x}{blue:02x}")


def main() -> None:
    command_line(Config, run, __doc__, {"predict": (PredictMasks, run_predict)})


if __name__ == "__main__":
    main()
