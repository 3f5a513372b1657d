"""A convolutional network that reads digits, shown layer by layer (LeCun et al. 1998).

A convolution moves a small filter over the image. It writes down how well the filter fits at each place:
a feature map. Pooling keeps the largest of four neighbours, so a stroke may move by a pixel. The second
convolution finds patterns in the maps of the first. Two dense layers turn these maps into a class.

    python -m studies.cnn_classifier                                   # the embedded digits
    python -m studies.cnn_classifier --dataset mnist                   # 99 % in five epochs
    python -m studies.cnn_classifier --dataset mnist --network fast    # 99 % in one, a few seconds
    python -m studies.cnn_classifier --dataset mnist --network source  # the usual example
    python -m studies.cnn_classifier --dataset folder:PETS --backbone resnet18    # your own classes

With --backbone only the last layer is new. The others were trained on the million photographs of ImageNet
and stay as they are (transfer learning): a few dozen pictures of each class are enough. With more of them
--unfreeze 1 also trains the backbone's last block (fine-tuning).

Look at `examples.png`, what it learns from; `activations.png`, one digit in all layers; `training.png`,
the accuracy along it; `mistakes.png` and `confusion.png`, what it takes for what.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from imagelab.data import datasets
from imagelab.data.datasets import Dataset, load_for, mirrored, random_subset, unit
from imagelab.data.embedded import small_affine
from imagelab.report import confusions, figures, samples
from imagelab.report.results import Result, start_result
from imagelab.setup import runtime, settings
from imagelab.setup.runtime import UserError, autocast, channels_last, in_eval_mode, prepare
from imagelab.setup.settings import Count, InputFile, Limits, Rate
from imagelab.techniques import pretrained
from imagelab.techniques.classifier import DigitCNN, accuracy, as_unit, predict, usual_epochs
from imagelab.techniques.export import export_network
from imagelab.training.loop import Observer, Training, can_resume, no_observer, one_cycle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "cnn_classifier"
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"
BACKBONE_RATE = 0.1  # of the learning rate: blocks that are trained already need small steps


# --- the networks ---------------------------------------------------------------------------------
# DigitCNN is in imagelab/techniques/classifier.py, because the attacks use it as well:
# Conv 32 3×3, pool, Conv 64 3×3, pool, Dense 128, Dense `classes`, with ReLU between the layers.


class UnpaddedCNN(DigitCNN):
    """Two convolutions with pooling and two dense layers, without padding ("valid").

    Each convolution loses a border of its input. Images (B, C, H, W) in [0, 1] to logits (B, classes).
    """

    filters, kernels = (32, 64), (3, 3)
    min_side = 10  # of smaller images nothing would be left

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__(shape, classes)
        channels, *sides = shape
        (f1, f2), (k1, k2) = self.filters, self.kernels
        self.conv1 = nn.Conv2d(channels, f1, k1)  #    (B, 32, 26, 26), pooled to 13×13
        self.conv2 = nn.Conv2d(f1, f2, k2)  #          (B, 64, 11, 11), pooled to 5×5
        height, width = (((side - k1 + 1) // 2 - k2 + 1) // 2 for side in sides)
        self.dense1 = nn.Linear(f2 * height * width, self.num_features)
        self.dense2 = nn.Linear(self.num_features, classes)


class SourceCNN(UnpaddedCNN):
    """The network of the usual MNIST example: Conv 32, pool, Conv 64, pool, Dense 128, Dense 10."""


class FastCNN(UnpaddedCNN):
    """Conv 24 5×5, pool, Conv 32 3×3, pool, Dense 256: half of DigitCNN's work."""

    filters, kernels, num_features = (24, 32), (5, 3), 256
    min_side = 12


class FineTuned(nn.Module):
    """A backbone and a new last layer: images (B, 3, H, W) in [0, 1] to logits (B, classes).

    The last `unfrozen` blocks of the backbone learn as well, at a smaller rate. The other blocks do not
    change. With None all learn from scratch.
    """

    def __init__(
        self, name: pretrained.ImageNetName, backbone: nn.Module, classes: int, unfrozen: int | None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.last = nn.Linear(pretrained.remove_last_layer(name, backbone), classes)
        blocks = pretrained.blocks(name, backbone)
        cut = 0 if unfrozen is None else len(blocks) - unfrozen
        if cut < 0:
            raise UserError(f"--unfreeze {unfrozen}: {name} has {len(blocks)} blocks.")
        self.frozen, self.unfrozen = blocks[:cut], blocks[cut:]
        self.block_rate = 1 if unfrozen is None else BACKBONE_RATE
        for block in self.unfrozen:
            block.requires_grad_(True)

    def train(self, mode: bool = True) -> FineTuned:
        super().train(mode)
        for block in self.frozen:
            block.eval()  # batch normalisation keeps the statistics that it was trained with
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.backbone(x))


# --- what each layer makes of one image -----------------------------------------------------------


@torch.no_grad()
def first_feature_maps(model: DigitCNN, image: torch.Tensor) -> torch.Tensor:
    """How well each filter of the first layer fits at each place of `image` (C, H, W) in [0, 1].

    Feature maps (filters, h, w) before the ReLU: positive where the filter fits, negative where its
    opposite fits.
    """
    return model.conv1((image[None] - 0.13) / 0.31)[0]


@torch.no_grad()
def activations(model: DigitCNN, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output of each layer for `image` (C, H, W) in [0, 1], in order.

    Maps (channels, h, w) of the four convolutional stages, then the features and the class probabilities.
    """
    maps1 = first_feature_maps(model, image)  #                            (32, 28, 28)
    pooled1 = F.relu(F.max_pool2d(maps1, 2))  #                            (32, 14, 14)
    maps2 = model.conv2(pooled1[None])[0]  #                               (64, 14, 14)
    pooled2 = F.relu(F.max_pool2d(maps2, 2))  #                            (64, 7, 7)
    features = F.relu(model.dense1(pooled2.flatten()))  #                  (128,)
    return {
        "first convolution": F.relu(maps1),
        "pooled": pooled1,
        "second convolution": F.relu(maps2),
        "pooled again": pooled2,
        "features": features,
        "scores": model.dense2(features).softmax(dim=0),
    }


def diverse_filters(maps: torch.Tensor, count: int) -> list[int]:
    """The numbers of `count` filters whose `maps` (filters, h, w) are strong and differ most.

    The first is the one that varies most. Each next one has the least cosine similarity to those chosen
    before it. The weaker half, by standard deviation, is left out.
    """
    responses = F.relu(maps).flatten(1)  # (filters, h·w)
    spread = responses.std(dim=1)
    similarity = F.normalize(responses, dim=1) @ F.normalize(responses, dim=1).T
    similarity[spread < spread.median()] = 2  # more than any cosine
    chosen = [int(spread.argmax())]
    while len(chosen) < count:
        chosen.append(int(similarity[:, chosen].amax(dim=1).argmin()))
    return chosen


# --- training -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(settings.ExportSettings, settings.ResumableSettings, settings.DataSettings):
    """Settings of the classifier."""

    network: Literal["cnn", "source", "fast"] = "cnn"
    """cnn: the network of this project, with padding. source: the network and the settings of the usual
    MNIST example (no padding, batches of 64, Adam at a constant 1e-3). fast: the quickest way to 99 % on
    MNIST (fewer and larger filters, one epoch at a high rate)."""
    backbone: pretrained.ImageNetName | None = None
    """Instead of --network: a network of torchvision trained on ImageNet, with a new last layer. It takes
    pictures in colour."""
    weights: InputFile | None = None
    """File with the backbone's weights. Default: torchvision's cache, or its download, or none."""
    unfreeze: Annotated[int, Limits(0)] = 0
    """How many of the backbone's last blocks are trained too, at a tenth of the rate. A ResNet has five
    blocks, VGG-16 six, EfficientNet-B0 nine."""
    augment: bool = False
    """Vary each training image in every epoch: rotate it (up to 12°), scale it (0.9 to 1.1), shear it
    (0.15), shift it (1.5 pixels). The embedded digits come in 14 such variations anyway."""
    train_images: Annotated[int, Limits(10)] | None = None
    """Largest number of training images, a random part of all. Default: all."""
    runs: Count = 1
    """How many networks to train, each with its own seed: --seed and the numbers after it. The report
    gives their mean accuracy."""
    epochs: Count | None = None
    """Passes over the training images. Default: 5; for the embedded digits and for fast 1."""
    batch_size: Count | None = None
    """Images per step. Default: 128; for source 64."""
    lr: Rate | None = None
    """Adam's learning rate; with one-cycle its peak. Default: 3e-3; for source and for a backbone 1e-3;
    for fast 1e-2."""
    schedule: Literal["one-cycle", "constant"] | None = None
    """one-cycle: the rate rises over the first quarter of the steps, then falls to 0. constant: it stays.
    Default: one-cycle; for source constant."""
    image_size: Annotated[int, Limits(4)] | None = None
    """Side in pixels to which the pictures of folder:PATH are scaled. Default: 32; for a backbone 160."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone is None and (self.weights is not None or self.unfreeze):
            given = "--weights" if self.weights is not None else "--unfreeze"
            raise UserError(f"{given} is for a backbone: add --backbone resnet18.")
        if self.backbone is not None and self.network != "cnn":
            raise UserError(f"Choose --network {self.network} or --backbone, not both.")


NETWORKS = {"cnn": DigitCNN, "source": SourceCNN, "fast": FastCNN}
DEFAULTS = {
    "cnn": {"batch_size": 128, "lr": 3e-3, "schedule": "one-cycle", "image_size": 32},
    "source": {"batch_size": 64, "lr": 1e-3, "schedule": "constant", "image_size": 32},
    "fast": {"batch_size": 128, "lr": 1e-2, "schedule": "one-cycle", "image_size": 32},
    "backbone": {"batch_size": 128, "lr": 1e-3, "schedule": "one-cycle", "image_size": 160},
}  # fmt: skip


def with_defaults(config: Config) -> Config:
    """The settings, with the default of each that depends on another setting."""
    kind = "backbone" if config.backbone else config.network
    epochs = 1 if config.network == "fast" or config.quick else usual_epochs(config.dataset)
    defaults = {"epochs": epochs, **DEFAULTS[kind]}
    return replace(config, **{k: v for k, v in defaults.items() if getattr(config, k) is None})


def build(config: Config, data: Dataset) -> nn.Module:
    """The network of --backbone or --network with its first weights, the same for the same seed.

    Raises UserError where the pictures or other settings do not fit.
    """
    torch.manual_seed(config.seed)
    device, classes, name = data.images.device, len(data.classes), config.backbone
    if name is None:
        network = NETWORKS[config.network]
        side = getattr(network, "min_side", 4)
        if min(data.shape[1:]) < side:
            raise UserError(
                f"--network {config.network} needs pictures of at least {side} pixels a side: "
                f"--image-size {side}."
            )
        return channels_last(network(data.shape, classes), device)
    if data.shape[0] != 3:
        raise UserError(f"--backbone {name} needs pictures in colour; {data.name} is grey.")
    try:
        backbone, unfrozen = (
            pretrained.imagenet_network(name, config.weights, device)[0],
            config.unfreeze,
        )
    except UserError as problem:
        if config.weights is not None:
            raise
        print(f"{problem} Training all layers from scratch instead.")
        backbone, unfrozen = pretrained.imagenet_network(name, None, device, False)[0], None
    return channels_last(FineTuned(name, backbone, classes, unfrozen), device)


def parameter_groups(config: Config, model: nn.Module) -> list[dict[str, Any]]:
    """The parameters that learn, each with its learning rate: smaller for blocks trained before."""
    assert config.lr is not None  # `with_defaults`
    if not isinstance(model, FineTuned):
        return [{"params": list(model.parameters()), "lr": config.lr}]
    groups = [{"params": list(model.last.parameters()), "lr": config.lr}]
    if model.unfrozen:
        parameters = [p for block in model.unfrozen for p in block.parameters()]
        groups.append({"params": parameters, "lr": model.block_rate * config.lr})
    return groups


def augmented(config: Config, images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Images (B, C, H, W) uint8 as floats in [0, 1], varied with --augment.

    For a backbone half of them are mirrored. A mirrored cat is a cat. A mirrored digit is no digit.
    """
    x = unit(small_affine(images, rng) if config.augment else images)
    return mirrored(x, rng) if config.backbone else x


def train(
    config: Config, data: Dataset, model: nn.Module, path: Path, after_epoch: Observer = no_observer
) -> Training:
    """Train `model`, or continue with --resume, and leave it in eval mode.

    `after_epoch` is called after each epoch, or each fifth of a single one; it changes nothing.
    """
    # In a short training Adam must soon forget the gradients of the first steps.
    betas = (0.7, 0.9) if config.network == "fast" else (0.9, 0.999)
    adam = torch.optim.Adam(parameter_groups(config, model), betas=betas, fused=True)
    rates = [group["lr"] for group in adam.param_groups]
    model.train()
    training = Training(
        path,
        SCRIPT,
        config,
        data,
        networks={"classifier": model},
        optimizers={"adam": adam},
        may_change_on_resume=("runs", "weights"),
        label="classifier",
        parts=5 if config.epochs == 1 else 1,  # for a curve of the accuracy
    )
    if config.resume:
        training.load()
    with training:
        for epoch in training.epochs():
            for batch in training.batches():
                x = augmented(config, data.images[batch], training.rng)  # (B, C, H, W)
                for group, rate in zip(adam.param_groups, rates, strict=True):
                    cycle = one_cycle(training.progress) if config.schedule == "one-cycle" else 1
                    group["lr"] = rate * cycle
                with autocast(x.device):
                    logits = model(x.contiguous(memory_format=torch.channels_last))
                    loss = F.cross_entropy(logits, data.labels[batch])
                adam.zero_grad()
                loss.backward()
                adam.step()
                training.log(loss=loss)
            after_epoch(training, epoch)
    model.eval()
    return training


def train_all(config: Config, data: Dataset) -> list[Training]:
    """Train `config.runs` networks, one from the seed and one from each seed after it.

    The first network's checkpoint has no seed in its name.
    """
    name, trainings = config.backbone or config.network, []
    for k in range(config.runs):
        seed = config.seed + k
        path = config.output_dir / MODELS / f"{name}{f'_seed{seed}' if k else ''}.pth"
        one = replace(config, seed=seed, resume=can_resume(config, path, first=k == 0))
        trainings.append(train(one, data, build(one, data), path, held_out_accuracy(data)))
    return trainings


def held_out_accuracy(data: Dataset) -> Observer:
    """Note the accuracy on the held-out images, when it was so high, and the seconds that this takes."""

    def after_epoch(training: Training, epoch: int) -> None:
        model = training.networks["classifier"]
        with in_eval_mode(model), runtime.Stopwatch() as watch:
            share = accuracy(model, data.test_images, data.test_labels)
        training.log(
            held_out=torch.tensor(share),
            held_out_epoch=torch.tensor(training.epochs_done),
            held_out_seconds=torch.tensor(watch.seconds),
        )

    return after_epoch


# --- where it is wrong ----------------------------------------------------------------------------


def confusion_matrix(predicted: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """How many images of each true class (row) get each predicted class (column): (classes, classes).

    `predicted` and `labels` are class numbers, (N,) each.
    """
    pairs = labels * classes + predicted
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def most_confident_mistakes(probabilities: torch.Tensor, labels: torch.Tensor) -> list[int]:
    """For each pair (true class, predicted class) the mistake with the highest probability.

    Numbers of images, the highest probability first. `probabilities` (N, classes), `labels` (N,).
    """
    confidence, predicted = probabilities.max(dim=1)
    wrong = (predicted != labels).nonzero().squeeze(1)
    ordered = wrong[confidence[wrong].argsort(descending=True)].tolist()
    best_of_pair = {(labels[k].item(), predicted[k].item()): k for k in reversed(ordered)}
    return sorted(best_of_pair.values(), key=ordered.index)


# === the lesson ends here; below: measured, plotted, reported =====================================

TITLE = "The classifier: a digit's way through the layers"
SUMMARY = (
    "What filters, feature maps, pooling and dense layers make of one digit. How often the whole network "
    "is right, and where it is wrong with high confidence."
)


def tile_maps(maps: torch.Tensor, columns: int) -> np.ndarray:
    """Maps (n, h, w) as one picture; each map's largest value is white."""
    largest = maps.flatten(1).amax(dim=1).clamp(min=1e-6)[:, None, None]
    grey = (maps / largest * 255).round().to(torch.uint8)
    return figures.grid(grey[:, None].cpu(), columns, scale=2, gap=1)


def plot_examples(config: Config, data: Dataset) -> Figure:
    """Training images as the network meets them: ten of each class, of the first ten classes."""
    rng, rows = runtime.generator(config.seed, "examples", data.images.device), {}
    for k, name in enumerate(data.classes[:10]):
        own = (data.labels == k).nonzero().flatten()
        if len(own) > 0:
            ten = own[random_subset(len(own), 10, "examples").to(own.device)]
            x = augmented(config, data.images[ten], rng)  # in [0, 1]
            rows[name] = (255 * x).round().to(torch.uint8)
    return figures.plot_rows(rows)


def plot_activations(model: DigitCNN, image: torch.Tensor, classes: tuple[str, ...]) -> Figure:
    """The image (C, H, W) in [0, 1], all maps after each layer, the features, the probabilities."""
    maps_by_layer = activations(model, image)
    features, scores = maps_by_layer.pop("features"), maps_by_layer.pop("scores")
    figure, axes = figures.new_figure(14, 5.6, 2, 4, width_ratios=[1, 2, 2, 2])
    figures.show_image(axes[0, 0], figures.as_picture(image), "1. the image")
    places = (axes[0, 1], axes[0, 2], axes[1, 1], axes[1, 2])
    for k, (axis, name) in enumerate(zip(places, maps_by_layer, strict=True), start=2):
        n, height, width = maps_by_layer[name].shape
        title = f"{k}. {name}: {n} maps of {height}×{width}"
        figures.show_image(axis, tile_maps(maps_by_layer[name], 8), title)
    wide = features.reshape(8, -1).cpu().numpy()
    axes[0, 3].imshow(wide, cmap="gray", vmin=0)
    axes[0, 3].set_axis_off()
    axes[0, 3].set_title(f"6. first dense layer: {features.numel()} features")
    axes[1, 3].bar(range(len(classes)), scores.cpu().numpy(), color=figures.PALETTE[0])
    confusions.label_classes(axes[1, 3], classes)
    title = "7. second dense layer, as probabilities"
    axes[1, 3].set(title=title, ylim=(0, 1), xlabel="class", ylabel="probability")
    key = "Maps and features:\nblack is 0,\nwhite is the largest\nvalue of its map."
    axes[1, 0].text(0, 0.5, key, va="center", transform=axes[1, 0].transAxes)
    axes[1, 0].set_axis_off()
    return figure


def plot_convolutions(model: DigitCNN, image: torch.Tensor, count: int = 5) -> Figure:
    """`count` filters of the first layer, and what each makes of the image (C, H, W) in [0, 1]."""
    maps = first_feature_maps(model, image)
    figure, axes = figures.new_figure(2.2 * count, 8.4, 4, count)
    for column, k in zip(axes.T, diverse_filters(maps, count), strict=True):
        weights = model.conv1.weight[k].detach().mean(dim=0).cpu().numpy()
        for axis, values in ((column[0], weights), (column[1], maps[k].cpu().numpy())):
            limit = abs(values).max()
            axis.imshow(values, cmap="PuOr", vmin=-limit, vmax=limit)
            axis.set_axis_off()
        positive = F.relu(maps[k])
        for axis, values in (
            (column[2], positive),
            (column[3], F.max_pool2d(positive[None], 2)[0]),
        ):
            figures.show_image(axis, (values / values.max().clamp(min=1e-6)).cpu().numpy())
        column[0].set_title(f"filter {k + 1}")
    figures.name_rows(axes, ("the filter", "how well it fits", "ReLU", "pooled"))
    key = (
        "Filter and fit: purple is positive, orange negative, white 0. ReLU and pooled: black is 0, "
        "white the largest value."
    )
    figure.supxlabel(key, fontsize=10)
    return figure


def plot_training(config: Config, trainings: list[Training], n: int) -> Figure:
    """The training loss, and the accuracy on n held-out images along the training; a line per seed."""
    figure, axes = figures.new_figure(9, 3.2, columns=2)
    seeds = [f"seed {config.seed + k}" for k in range(len(trainings))]
    lines = {seed: (t, "loss") for seed, t in zip(seeds, trainings, strict=True)}
    samples.plot_logged(axes[0, 0], lines, "cross-entropy, training images")
    figures.log_scale(axes[0, 0])
    for k, training in enumerate(trainings):
        at, accuracies = training.curve("held_out_epoch"), training.curve("held_out")
        before = (
            torch.arange(len(accuracies) - len(at)) + 1
        )  # checkpoints of before: after each epoch
        at = torch.cat([before, at])
        axes[0, 1].plot(at, accuracies, color=figures.PALETTE[k % 7], marker=figures.MARKERS[k % 7])
    axes[0, 1].set(xlabel="epoch", ylabel=f"accuracy, {n:,} held-out images")
    axes[0, 1].set_xlim(left=0)
    return figure


def evaluate(data: Dataset, model: nn.Module, result: Result) -> None:
    """Accuracy per class, confusion matrix, and the mistakes with the highest confidence."""
    probabilities = predict(model, data.test_images)
    labels, predicted = data.test_labels, probabilities.argmax(dim=1)
    n, table = len(labels), confusion_matrix(predicted, labels, len(data.classes)).cpu()
    counts, correct = table.sum(dim=1).tolist(), table.diagonal().tolist()
    accuracies = [
        hits / count if count else "none" for hits, count in zip(correct, counts, strict=True)
    ]
    rows = [list(row) for row in zip(data.classes, counts, accuracies, strict=True)]
    result.add_table(f"{n:,} held-out images", ["class", "images", "read correctly"], rows)
    caption = "Rows: the true class. Columns: the class that the network reads."
    result.add_figure("confusion.png", confusions.plot_confusion(table, data.classes), caption)
    if mistakes := most_confident_mistakes(probabilities, labels):
        figure, wrong = (
            confusions.plot_mistakes(data, probabilities, mistakes[:12]),
            n - sum(correct),
        )
        caption = (
            f"Mistakes: {wrong:,} in {n:,} images. Pairs of the true class and the one that is read: "
            f"{len(mistakes)}. Of {min(len(mistakes), 12)} of these the mistake with the highest "
            "confidence (#: the image's number)."
        )
        result.add_figure("mistakes.png", figure, caption)


def measure_on_mnist(config: Config, data: Dataset, model: nn.Module, result: Result) -> None:
    """Accuracy on MNIST's test images of a network trained on the embedded digits.

    Only where MNIST is under --data-dir.
    """
    if data.name != datasets.EMBEDDED or not datasets.has_mnist(config.data_dir):
        return
    try:
        mnist = datasets.load_dataset("mnist", config.data_dir).to(data.images.device)
    except UserError as problem:  # corrupt files do not stop a run on other data
        print(f"MNIST is left out: {problem}")
        return
    share, n = accuracy(model, mnist.test_images, mnist.test_labels), len(mnist.test_images)
    result.add_metric("accuracy on MNIST's test images", share, n, better="higher")


def report_runs(config: Config, data: Dataset, trainings: list[Training], result: Result) -> None:
    """The mean accuracy of all networks and their median time; several networks get a table.

    The time does not include the measurement on held-out images after each epoch.
    """
    models = [training.networks["classifier"] for training in trainings]
    shares = [accuracy(model, data.test_images, data.test_labels) for model in models]
    seconds = [t.seconds_used - t.curve("held_out_seconds").sum().item() for t in trainings]
    result.add_metric("accuracy", np.mean(shares), len(data.test_images), better="higher")
    result.add_metric("seconds of training", np.median(seconds), len(seconds), unit="s")
    if config.runs > 1:
        seeds = [str(config.seed + k) for k in range(config.runs)] + ["mean"]
        shares, seconds = [*shares, np.mean(shares)], [*seconds, np.mean(seconds)]
        columns = zip(seeds, shares, seconds, strict=True)
        rows = [[seed, f"{share:.2%}", float(time)] for seed, share, time in columns]
        result.add_table("Networks from several seeds", ["seed", "accuracy", "seconds"], rows)


def lessons(result: Result) -> list[str]:
    """Sentences on what was measured."""
    sentences = []
    if share := result.measured("accuracy"):
        sentences.append(
            f"The network reads {share[0]:.1%} of the held-out images correctly. Look at its mistakes: "
            "would people argue about them, or did training never show such images?"
        )
    if share := result.measured("accuracy on MNIST's test images"):
        sentences.append(
            "It was trained on the embedded digits alone. Of MNIST's 10,000 test images, which are other "
            f"images, it reads {share[0]:.1%} correctly."
        )
    return sentences


def run(config: Config) -> Result:
    """Train one network or several, measure them, and show one image in all layers of the first."""
    device = prepare(config.seed, config.device)
    data = load_for(with_defaults(config), device)
    if config.train_images is not None:
        rows = random_subset(len(data.images), config.train_images, "trained on").to(device)
        data = replace(data, images=data.images[rows], labels=data.labels[rows])
    data.needs_two_classes()
    name = data.name if config.dataset == "auto" else config.dataset
    config = with_defaults(replace(config, dataset=name))
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    varied = ", varied anew in each epoch" if config.augment or config.backbone else ""
    caption = f"Training images, up to ten of each class{varied}."
    result.add_figure("examples.png", plot_examples(config, data), caption)
    trainings = train_all(config, data)
    report_runs(config, data, trainings, result)
    first = trainings[0].networks["classifier"]
    if isinstance(first, DigitCNN):
        image = as_unit(data.test_images[:1])[0]
        caption = "Five filters (purple adds, orange subtracts), and what each makes of one image."
        result.add_figure("convolutions.png", plot_convolutions(first, image), caption)
        caption = "A held-out image in all layers. In each map the largest value is white."
        result.add_figure("activations.png", plot_activations(first, image, data.classes), caption)
    evaluate(data, first, result)
    measure_on_mnist(config, data, first, result)
    n = len(data.test_images)
    caption = f"The training loss, and the accuracy on {n:,} held-out images along it."
    result.add_figure("training.png", plot_training(config, trainings, n), caption)
    inputs = {"images": torch.rand(2, *data.shape)}
    export_network(config.export, first, inputs, "logits", classes=data.classes)
    return result.save(*lessons(result))


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
