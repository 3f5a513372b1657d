"""A convolutional network that reads digits, shown layer by layer (LeCun et al. 1998).

A convolution moves a small filter over the image. It writes down how well the filter fits at each place:
a feature map. Pooling keeps the largest of four neighbours, so a stroke may move by a pixel. The second
convolution finds patterns in the maps of the first. Two dense layers turn these maps into a class.

    python -m studies.cnn_classifier                                 # the embedded digits
    python -m studies.cnn_classifier --dataset mnist                 # 99 % in five epochs
    python -m studies.cnn_classifier --dataset mnist --fast          # 99 % in one, a few seconds
    python -m studies.cnn_classifier --dataset folder:PETS --backbone resnet18    # your own classes

With --backbone only the last layer is new. The other layers were trained on the million photographs of
ImageNet and stay as they are (transfer learning). A few dozen pictures of each class are then enough.

What to look at: `activations.png`, one digit in all layers; `mistakes.png`, errors with high confidence;
`confusion.png`, which classes are mistaken for which.
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

from imagelab.data import datasets
from imagelab.data.datasets import Dataset, load_for, mirrored, unit
from imagelab.report import figures, samples
from imagelab.report.results import Result, start_result
from imagelab.setup import settings
from imagelab.setup.runtime import UserError, autocast, channels_last, prepare
from imagelab.setup.settings import Count, InputFile, Limits, Rate
from imagelab.techniques.classifier import DigitCNN, accuracy, as_unit, predict, usual_epochs
from imagelab.techniques.export import export_network
from imagelab.techniques.pretrained import imagenet_resnet18
from imagelab.training.loop import Observer, Training, can_resume, no_observer, one_cycle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "cnn_classifier"
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"


# --- the networks ---------------------------------------------------------------------------------
# DigitCNN is in imagelab/techniques/classifier.py, because the attacks use it as well:
# Conv 32 3×3, pool, Conv 64 3×3, pool, Dense 128, Dense `classes`, with ReLU between the layers.


class FastCNN(DigitCNN):
    """Conv 24 5×5, pool, Conv 32 3×3, pool, Dense 256, without padding: half of DigitCNN's work."""

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
    """A trained backbone and a new last layer: images (B, 3, H, W) in [0, 1] to logits (B, classes).

    A `frozen` backbone does not change in training; otherwise all layers learn.
    """

    def __init__(self, body: nn.Module, classes: int, frozen: bool) -> None:
        super().__init__()
        self.body, self.frozen = body.requires_grad_(not frozen), frozen
        old = body.get_submodule("network.fc")
        assert isinstance(old, nn.Linear)
        self.last = nn.Linear(old.in_features, classes)
        body.set_submodule("network.fc", nn.Identity())

    def train(self, mode: bool = True) -> Transfer:
        super().train(mode)
        if self.frozen:
            self.body.eval()  # batch normalisation keeps the statistics that it was trained with
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.body(x))


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

    backbone: Literal["cnn", "resnet18"] = "cnn"
    """The network: the small one of this project, or torchvision's ResNet-18 with a new last layer."""
    weights: InputFile | None = None
    """File with the backbone's weights. Default: torchvision's cache, or its download, or none."""
    fast: bool = False
    """The quickest way to 99 % on MNIST: fewer and larger filters, and one epoch at a high rate."""
    runs: Count = 1
    """How many networks to train, each with its own seed: --seed and the numbers after it. The report
    gives their mean accuracy."""
    epochs: Count | None = None
    """Passes over the training images. Default: 5; for the embedded digits and for --fast 1."""
    batch_size: Count = 128
    """Images per step."""
    lr: Rate | None = None
    """Peak of Adam's learning rate. It rises over the first quarter of the steps, then falls to 0.
    Default: 3e-3; for --fast 1e-2; for a backbone 1e-3."""
    image_size: Annotated[int, Limits(4)] | None = None
    """Side in pixels to which the pictures of folder:PATH are scaled. Default: 32; for a backbone 160."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fast and self.backbone != "cnn":
            raise UserError("--fast has a network of its own: leave out --backbone.")


def with_defaults(config: Config) -> Config:
    """The settings, with the default of each that depends on another setting."""
    epochs = 1 if config.fast or config.quick else usual_epochs(config.dataset)
    rate = 1e-2 if config.fast else 3e-3 if config.backbone == "cnn" else 1e-3
    return replace(
        config,
        epochs=config.epochs or epochs,
        lr=config.lr or rate,
        image_size=config.image_size or (32 if config.backbone == "cnn" else 160),
    )


def build(config: Config, data: Dataset) -> nn.Module:
    """The network of --backbone or --fast with its first weights, the same for the same seed.

    Raises UserError where the pictures or other settings do not fit.
    """
    torch.manual_seed(config.seed)
    device, classes = data.images.device, len(data.classes)
    if config.backbone == "cnn":
        if config.weights is not None:
            raise UserError("--weights are those of a backbone: add --backbone resnet18.")
        if config.fast and min(data.shape[1:]) < 12:
            raise UserError("--fast needs pictures of at least 12 pixels a side: --image-size 12.")
        model = (FastCNN if config.fast else DigitCNN)(data.shape, classes)
        return channels_last(model, device)
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
    return channels_last(Transfer(body, classes, frozen), device)


def augment(config: Config, images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Images (B, C, H, W) uint8 as floats in [0, 1]; for a backbone half of them are mirrored.

    A mirrored cat is a cat. A mirrored digit is no digit.
    """
    x = unit(images)
    return x if config.backbone == "cnn" else mirrored(x, rng)


def train(
    config: Config, data: Dataset, model: nn.Module, path: Path, after_epoch: Observer = no_observer
) -> Training:
    """Train `model`, or continue with --resume, and leave it in eval mode.

    `after_epoch` is called after each epoch; it changes nothing.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    # In a short training Adam must soon forget the gradients of the first steps.
    betas = (0.7, 0.9) if config.fast else (0.9, 0.999)
    assert config.lr is not None
    adam = torch.optim.Adam(parameters, lr=config.lr, betas=betas, fused=True)
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
    )
    if config.resume:
        training.load()
    with training:
        for epoch in training.epochs():
            for batch in training.batches():
                x = augment(config, data.images[batch], training.rng)  # (B, C, H, W)
                adam.param_groups[0]["lr"] = config.lr * one_cycle(training.progress)
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
    name, trainings = "fast" if config.fast else config.backbone, []
    for k in range(config.runs):
        seed = config.seed + k
        path = config.output_dir / MODELS / f"{name}{f'_seed{seed}' if k else ''}.pth"
        one = replace(config, seed=seed, resume=can_resume(config, path, first=k == 0))
        trainings.append(train(one, data, build(one, data), path))
    return trainings


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


def label_classes(axis, classes: tuple[str, ...]) -> None:
    """Class names along the x axis; long names are slanted."""
    axis.set_xticks(range(len(classes)), classes, rotation=60 if max(map(len, classes)) > 2 else 0)


def plot_activations(model: DigitCNN, image: torch.Tensor, classes: tuple[str, ...]) -> Figure:
    """The image (C, H, W) in [0, 1], all maps after each layer, the features, the probabilities."""
    maps_by_layer = activations(model, image)
    features, scores = maps_by_layer.pop("features"), maps_by_layer.pop("scores")
    figure, axes = figures.new_figure(14, 5.6, 2, 4, width_ratios=[1, 2, 2, 2])
    figures.show_image(axes[0, 0], figures.as_picture(image), "the image")
    places = (axes[0, 1], axes[0, 2], axes[1, 1], axes[1, 2])
    for axis, (name, maps) in zip(places, maps_by_layer.items(), strict=True):
        n, height, width = maps.shape
        figures.show_image(axis, tile_maps(maps, 8), f"{name}: {n} maps of {height}×{width}")
    wide = features.reshape(8, -1).cpu().numpy()
    axes[0, 3].imshow(wide, cmap="gray", vmin=0)
    axes[0, 3].set_axis_off()
    axes[0, 3].set_title(f"first dense layer: {features.numel()} features")
    axes[1, 3].bar(range(len(classes)), scores.cpu().numpy(), color=figures.PALETTE[0])
    label_classes(axes[1, 3], classes)
    title = "second dense layer, as probabilities"
    axes[1, 3].set(title=title, ylim=(0, 1), xlabel="class", ylabel="probability")
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
        column[0].set_title(f"filter {k}")
    figures.name_rows(axes, ("the filter", "how well it fits", "ReLU", "pooled"))
    return figure


def plot_confusion(table: torch.Tensor, classes: tuple[str, ...]) -> Figure:
    """Counts (classes, classes): rows are true, columns predicted classes; colour is the row's share."""
    side = min(max(0.5 * len(classes), 4), 12)
    figure, axes = figures.new_figure(side + 1, side)
    axis, shares = axes[0, 0], table / table.sum(dim=1, keepdim=True).clamp(min=1)
    texts = [[f"{count:,}" if count else "" for count in row] for row in table.tolist()]
    shown = figures.plot_matrix(axis, shares, classes, texts if len(classes) <= 20 else None)
    label_classes(axis, classes)
    axis.set(xlabel="read as", ylabel="is")
    figure.colorbar(shown, ax=axis, shrink=0.8, label="share of the row")
    return figure


def plot_mistakes(data: Dataset, probabilities: torch.Tensor, rows: list[int]) -> Figure:
    """The held-out images `rows`, each with true class, predicted class and confidence."""
    confidence, predicted = probabilities.max(dim=1)
    pictures = {}
    for k in rows:
        true, wrong = data.classes[data.test_labels[k]], data.classes[predicted[k]]
        title = f"{true}, read as {wrong}\n{confidence[k]:.1%} sure #{k}"
        pictures[title] = figures.as_picture(as_unit(data.test_images[k][None])[0])
    return figures.plot_side_by_side(pictures, rows=-(-len(rows) // 6), height=2.4)


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
    result.add_figure("confusion.png", plot_confusion(table, data.classes), caption)
    if mistakes := most_confident_mistakes(probabilities, labels):
        figure, wrong = plot_mistakes(data, probabilities, mistakes[:12]), n - sum(correct)
        caption = (
            f"The network makes {wrong:,} mistakes in {n:,} images. For each pair of classes: the one "
            "with the highest confidence (#: the image's number)."
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
    """The mean accuracy of all networks and their median time; several networks get a table."""
    models = [training.networks["classifier"] for training in trainings]
    shares = [accuracy(model, data.test_images, data.test_labels) for model in models]
    seconds = [training.seconds_used for training in trainings]
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
    data.needs_two_classes()
    name = data.name if config.dataset == "auto" else config.dataset
    config = with_defaults(replace(config, dataset=name))
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
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
    result.add_figure("loss.png", samples.plot_loss(trainings[0], "cross-entropy"), "The loss.")
    inputs = {"images": torch.rand(2, *data.shape)}
    export_network(config.export, first, inputs, "logits", classes=data.classes)
    return result.save(*lessons(result))


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
