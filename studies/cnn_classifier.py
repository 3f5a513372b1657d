"""A convolutional network that reads digits, taken apart layer by layer (LeCun et al. 1998).

A convolution lays one small filter on every place of the image and notes how well it fits there: a
feature map. Pooling keeps the best of four neighbours, so that a stroke may lie a little to the side.
The second convolution looks for patterns in the maps of the first. Two dense layers weigh all of them.

    python -m studies.cnn_classifier                                 # the embedded digits
    python -m studies.cnn_classifier --dataset mnist                 # 99 % in five epochs
    python -m studies.cnn_classifier --dataset mnist --fast          # 99 % in one, a few seconds
    python -m studies.cnn_classifier --dataset folder:PETS --backbone resnet18    # your own classes

With --backbone only the last layer is new. The others keep what they learnt from the million photographs
of ImageNet (transfer learning), so that a few dozen pictures of each class are enough.

What to look at: `journey.png`, one digit in all layers; `mistakes.png`, errors of which the network was
sure; `confusion.png`, which classes are taken for which.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from imagelab.data.datasets import EMBEDDED, Dataset, has_mnist, load_dataset, load_for, mirrored, unit
from imagelab.report import figures, samples
from imagelab.report.results import Result, start_result
from imagelab.setup import settings
from imagelab.setup.runtime import UserError, autocast, prepare
from imagelab.setup.settings import Count, InputFile, Limits, Rate
from imagelab.techniques.classifier import DigitCNN, accuracy, as_unit, predict, usual_epochs
from imagelab.techniques.export import export_network
from imagelab.techniques.pretrained import imagenet_resnet18
from imagelab.training.loop import Observer, Training, goes_on, look_away, one_cycle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "cnn_classifier"
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"


@dataclass(frozen=True)
class Config(settings.ExportSettings, settings.ResumableSettings, settings.DataSettings):
    """Settings of the classifier."""

    backbone: Literal["cnn", "resnet18"] = "cnn"
    """The network: the small one of this project, or torchvision's ResNet-18 with a new last layer."""
    weights: InputFile | None = None
    """The file with the backbone's weights; default: torchvision's cache, else its download, else none."""
    fast: bool = False
    """The quickest way to 99 % on MNIST: fewer and larger filters, and one epoch at a high rate."""
    runs: Count = 1
    """How many networks to train, with this seed and those after it; their mean accuracy is given."""
    epochs: Count | None = None
    """Passes over the training images; default: 5, but 1 for the embedded digits and for --fast."""
    batch_size: Count = 128
    """Images per step."""
    lr: Rate | None = None
    """Peak of Adam's learning rate. It rises over the first quarter of the steps, then falls to 0.
    Default: 3e-3; for --fast 1e-2; for a backbone 1e-3."""
    image_size: Annotated[int, Limits(4)] | None = None
    """Side in pixels to which the pictures of folder:PATH are scaled; default: 32, for a backbone 160."""


# --- the networks ---------------------------------------------------------------------------------
# DigitCNN, of which FastCNN is a smaller one, is in imagelab/techniques/classifier.py: attacks and
# measurements use it as well.


class FastCNN(DigitCNN):
    """Conv 24 5×5, pool, Conv 32 3×3, pool, Dense 256: half of DigitCNN's work, no padding."""

    num_features = 256

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__(shape, classes)
        channels, *sides = shape
        self.conv1 = nn.Conv2d(channels, 24, 5)  #    (B, 24, 24, 24), pooled to 12×12
        self.conv2 = nn.Conv2d(24, 32, 3)  #          (B, 32, 10, 10), pooled to 5×5
        height, width = (((side - 4) // 2 - 2) // 2 for side in sides)
        self.dense1 = nn.Linear(32 * height * width, self.num_features)
        self.dense2 = nn.Linear(self.num_features, classes)


class Transfer(nn.Module):
    """A trained body that stays as it is, and a new last layer; images (B, 3, H, W) in [0, 1].

    Where the body is not trained (`frozen` is false), all of it learns.
    """

    def __init__(self, body: nn.Module, classes: int, frozen: bool) -> None:
        super().__init__()
        self.body, self.frozen = body.requires_grad_(not frozen), frozen
        self.last = nn.Linear(body.network.fc.in_features, classes)
        body.network.fc = nn.Identity()

    def train(self, mode: bool = True) -> Transfer:
        super().train(mode)
        if self.frozen:
            self.body.eval()  # batch normalisation keeps the statistics that it was trained with
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.body(x))


def new_network(config: Config, data: Dataset) -> nn.Module:
    """The network of --backbone or --fast with its first weights."""
    torch.manual_seed(config.seed)
    device, classes = data.images.device, len(data.classes)
    if config.backbone == "cnn":
        if config.weights is not None:
            raise UserError("--weights are those of a backbone: add --backbone resnet18.")
        if config.fast and min(data.shape[1:]) < 12:
            raise UserError("--fast needs pictures of at least 12 pixels a side: --image-size 12.")
        model = (FastCNN if config.fast else DigitCNN)(data.shape, classes)
        return model.to(device, memory_format=torch.channels_last)
    if data.shape[0] != 3:
        raise UserError(
            f"--backbone {config.backbone} needs pictures in colour; {data.name} is grey."
        )
    try:
        body, frozen = imagenet_resnet18(config.weights, device)[0], True
    except UserError as problem:
        if config.weights is not None:
            raise
        print(f"{problem} Training all layers from scratch instead.")
        body, frozen = imagenet_resnet18(None, device, trained_weights=False)[0], False
    return Transfer(body, classes, frozen).to(device, memory_format=torch.channels_last)


def train(config: Config, data: Dataset, model: nn.Module, path: Path):
    """Train, or go on with --resume: the loop is that of imagelab/techniques/classifier.py."""
    learning = [p for p in model.parameters() if p.requires_grad]
    # A short run wants an optimizer that forgets quickly what it saw under the small rates.
    betas = (0.7, 0.9) if config.fast else (0.9, 0.999)
    adam = torch.optim.Adam(learning, lr=config.lr, betas=betas, fused=True)
    change = None if config.backbone == "cnn" else mirrored
    return train_classifier(model, data, config, path, SCRIPT, adam, change,
                            free=("runs", "weights"))  # fmt: skip


def complete(config: Config) -> Config:
    """The settings with those that depend on others filled in."""
    epochs = 1 if config.fast or config.quick else usual_epochs(config.dataset)
    rate = 1e-2 if config.fast else 3e-3 if config.backbone == "cnn" else 1e-3
    return replace(
        config,
        epochs=config.epochs or epochs,
        lr=config.lr or rate,
        image_size=config.image_size or (32 if config.backbone == "cnn" else 160),
    )


# --- one digit's way ------------------------------------------------------------------------------


@torch.no_grad()
def journey(model: DigitCNN, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each layer makes of `image` (C, H, W) in [0, 1]: maps (channels, h, w), in order."""
    x = (image[None] - 0.13) / 0.31
    fits = model.conv1(x)
    pooled = F.relu(F.max_pool2d(fits, 2))
    fits2 = model.conv2(pooled)
    pooled2 = F.relu(F.max_pool2d(fits2, 2))
    features = F.relu(model.dense1(pooled2.flatten(1)))
    maps = {"first convolution": F.relu(fits), "pooled": pooled,
            "second convolution": F.relu(fits2), "pooled again": pooled2}  # fmt: skip
    scores = model.dense2(features).softmax(dim=1)
    return {name: m[0] for name, m in maps.items()} | {"features": features[0], "scores": scores[0]}


def tiled(maps: torch.Tensor, columns: int) -> np.ndarray:
    """Maps (n, h, w) as one picture, each stretched to its own largest value."""
    most = maps.flatten(1).amax(dim=1).clamp(min=1e-6)[:, None, None]
    grey = (maps / most * 255).round().to(torch.uint8)
    return figures.grid(grey[:, None].cpu(), columns, scale=2, gap=1)


def draw_journey(
    path: Path, model: DigitCNN, image: torch.Tensor, classes: tuple[str, ...]
) -> None:
    """The image, all maps after each layer, the features, and the class scores."""
    seen = journey(model, image)
    features, scores = seen.pop("features"), seen.pop("scores")
    figure, axes = figures.new_figure(14, 5.6, 2, 4, width_ratios=[1, 2, 2, 2])
    figures.show_image(axes[0, 0], figures.as_picture(image), "the image")
    places = (axes[0, 1], axes[0, 2], axes[1, 1], axes[1, 2])
    for axis, (name, maps) in zip(places, seen.items(), strict=True):
        n, height, width = maps.shape
        figures.show_image(axis, tiled(maps, 8), f"{name}: {n} maps of {height}×{width}")
    wide = features.reshape(8, -1).cpu().numpy()
    axes[0, 3].imshow(wide, cmap="gray", vmin=0)
    axes[0, 3].set_axis_off()
    axes[0, 3].set_title(f"first dense layer: {features.numel()} features")
    axes[1, 3].bar(range(len(classes)), scores.cpu().numpy(), color=figures.PALETTE[0])
    axes[1, 3].set_xticks(
        range(len(classes)), classes, rotation=60 if max(map(len, classes)) > 2 else 0
    )
    axes[1, 3].set_ylim(0, 1)
    axes[1, 3].set_xlabel("class")
    axes[1, 3].set_ylabel("probability")
    axes[1, 3].set_title("second dense layer, as probabilities")
    axes[1, 0].set_axis_off()
    figures.save_figure(figure, path)


def draw_convolutions(path: Path, model: DigitCNN, image: torch.Tensor, shown: int = 5) -> None:
    """Filters of the first layer that answer differently, and what each makes of the image."""
    with torch.no_grad():
        fits = model.conv1((image[None] - 0.13) / 0.31)[0]
    maps = F.relu(fits).flatten(1)
    alike = F.normalize(maps, dim=1) @ F.normalize(maps, dim=1).T
    chosen = [int(maps.std(dim=1).argmax())]
    alike[maps.std(dim=1) < maps.std(dim=1).median()] = 2  # hardly any answer
    while len(chosen) < shown:
        chosen.append(int(alike[:, chosen].amax(dim=1).argmin()))
    figure, axes = figures.new_figure(2.2 * shown, 8.4, 4, shown)
    for column, k in zip(axes.T, chosen, strict=True):
        weights = model.conv1.weight[k].detach().mean(dim=0).cpu().numpy()
        for axis, values in ((column[0], weights), (column[1], fits[k].cpu().numpy())):
            most = abs(values).max()
            axis.imshow(values, cmap="PuOr", vmin=-most, vmax=most)
            axis.set_axis_off()
        kept = F.relu(fits[k])
        figures.show_image(column[2], (kept / kept.max().clamp(min=1e-6)).cpu().numpy())
        pooled = F.max_pool2d(kept[None], 2)[0]
        figures.show_image(column[3], (pooled / pooled.max().clamp(min=1e-6)).cpu().numpy())
        column[0].set_title(f"filter {k}")
    figures.name_rows(axes, ("the filter", "how well it fits", "ReLU", "pooled"))
    figures.save_figure(figure, path)


# --- how often it is right ------------------------------------------------------------------------


def evaluate(data: Dataset, model: nn.Module, result: Result) -> None:
    """Accuracy per class, confusion matrix, the mistakes that the network was surest of."""
    probabilities = predict(model, data.test_images)
    sure, read = probabilities.max(dim=1)
    labels, n, classes = data.test_labels, len(data.test_labels), len(data.classes)
    table = torch.bincount(labels * classes + read, minlength=classes**2).reshape(classes, classes)
    rows = [[name, int(line.sum()), line[k] / line.sum() if line.sum() else None]
            for k, (name, line) in enumerate(zip(data.classes, table.double(), strict=True))]  # fmt: skip
    rows = [[name, count, "none" if share is None else share.item()] for name, count, share in rows]
    result.add_table(f"{n:,} held-out images", ["class", "images", "read right"], rows)
    path = result.add_file("confusion.png", "Which class (row) is read as which (column).")
    draw_confusion(path, table.cpu(), data.classes)
    wrong = (read != labels).nonzero().squeeze(1)
    surest = wrong[sure[wrong].argsort(descending=True)].tolist()
    kinds = {(labels[k].item(), read[k].item()): k for k in reversed(surest)}  # the surest of each
    worst = sorted(kinds.values(), key=surest.index)[:12]
    if worst:
        pictures = {
            f"{data.classes[labels[k]]}, read as {data.classes[read[k]]}\n{sure[k]:.1%} sure #{k}":
            figures.as_picture(as_unit(data.test_images[k][None])[0])
            for k in worst
        }  # fmt: skip
        path = result.add_file("mistakes.png", f"Of {len(wrong):,} mistakes in {n:,}, the surest of "
                               "each kind (#: number of the image).")  # fmt: skip
        figures.side_by_side(path, pictures, rows=-(-len(worst) // 6), height=2.4)


def draw_confusion(path: Path, table: torch.Tensor, classes: tuple[str, ...]) -> None:
    """Counts (classes, classes) with the shares of each row as colour."""
    n = len(classes)
    side = min(max(0.5 * n, 4), 12)
    figure, axes = figures.new_figure(side + 1, side)
    axis = axes[0, 0]
    shares = table / table.sum(dim=1, keepdim=True).clamp(min=1)
    shown = axis.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axis.grid(visible=False)
    axis.set_xticks(range(n), classes, rotation=60 if max(map(len, classes)) > 2 else 0)
    axis.set_yticks(range(n), classes)
    axis.set_xlabel("read as")
    axis.set_ylabel("is")
    if n <= 20:
        for (i, j), count in np.ndenumerate(table.numpy()):
            if count:
                ink = "white" if shares[i, j] > 0.5 else "black"
                axis.text(j, i, f"{count:,}", ha="center", va="center", color=ink, fontsize=8)
    figure.colorbar(shown, ax=axis, shrink=0.8, label="share of the row")
    figures.save_figure(figure, path)


def read_mnist(config: Config, data: Dataset, model: nn.Module, result: Result) -> None:
    """How a network that has seen the embedded part of MNIST alone reads its test images, where they
    are at hand."""
    if data.name != EMBEDDED or not has_mnist(config.data_dir):
        return
    try:
        mnist = load_dataset("mnist", config.data_dir).to(data.images.device)
    except UserError as problem:  # corrupt: not what this run was asked for
        print(f"MNIST is left out: {problem}")
        return
    share = accuracy(model, mnist.test_images, mnist.test_labels)
    result.add_metric(
        "accuracy on MNIST's test images", share, len(mnist.test_images), better="higher"
    )


# --- the run --------------------------------------------------------------------------------------


def run(config: Config) -> Result:
    """Train one network or several, measure, and show one image's way through the first."""
    device = prepare(config.seed, config.device)
    data = load_for(complete(config), device)
    data.needs_two_classes()
    if config.fast and config.backbone != "cnn":
        raise UserError("--fast has a network of its own: leave out --backbone.")
    config = complete(
        replace(config, dataset=data.name if config.dataset == "auto" else config.dataset)
    )
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    shares, seconds = [], []
    for k in range(config.runs):
        seed, name = config.seed + k, "fast" if config.fast else config.backbone
        path = config.output_dir / MODELS / f"{name}{f'_seed{seed}' if k else ''}.pth"
        own = replace(config, seed=seed, resume=goes_on(config, path, first=k == 0))
        model = new_network(own, data)
        training = train(own, data, model, path)
        model.eval()
        shares.append(accuracy(model, data.test_images, data.test_labels))
        seconds.append(training.seconds)
        if k == 0:
            first, first_training = model, training
    n = len(data.test_images)
    result.add_metric("accuracy", np.mean(shares), n, better="higher")
    result.add_metric("seconds of training", np.median(seconds), len(seconds), unit="s")
    if config.runs > 1:
        rows = [[config.seed + k, f"{share:.2%}", s]
                for k, (share, s) in enumerate(zip(shares, seconds, strict=True))]  # fmt: skip
        rows.append(["mean", f"{np.mean(shares):.2%}", float(np.mean(seconds))])
        result.add_table("Networks from several seeds", ["seed", "accuracy", "seconds"], rows)
    if config.backbone == "cnn":
        image = as_unit(data.test_images[:1])[0]
        path = result.add_file("convolutions.png", "Five filters of the first layer (purple adds, orange "
                               "takes away), and what each makes of one image.")  # fmt: skip
        draw_convolutions(path, first, image)
        path = result.add_file("journey.png", "One held-out image through all layers; each map is "
                               "stretched to its own brightest value.")  # fmt: skip
        draw_journey(path, first, image, data.classes)
    evaluate(data, first, result)
    read_mnist(config, data, first, result)
    draw_loss(result.add_file("loss.png", "The loss."), first_training, "cross-entropy")
    export_network(config.export, first, {"images": torch.rand(2, *data.shape)}, "logits",
                   classes=data.classes)  # fmt: skip
    return result.save(*LESSONS)


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
