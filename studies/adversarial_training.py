"""Training on attacks: the defence that holds (Goodfellow et al. 2015, Madry et al. 2017).

One small CNN is trained three ways: on the images as they are; on images moved by one large gradient
step from a random start ("fast", Wong et al. 2020); and on images moved by PGD. That attack goes on in
every epoch from where it ended in the last one (Zheng et al. 2020), so that two steps an epoch do the
work of many. Then all three meet noise, FGSM, PGD-40 and PGD-100 with restarts.

    python -m studies.adversarial_training                    # the embedded digits, two minutes
    python -m studies.adversarial_training --dataset mnist    # half an hour on two CPU cores
    python -m studies.adversarial_training --resume           # go on; after the end: measure again

What to look at: `accuracy.png`, where only the ball that was trained in holds; `gradients.png`, where a
robust network's gradient looks like strokes and an ordinary one's like noise; `transfer.png`, who
fools whom. A network that looks robust under FGSM and falls to PGD has learnt to hide its gradient
("catastrophic overfitting"). After every epoch, PGD on images that were set aside checks for that.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fgsm import fgsm
from imagelab.data.datasets import EMBEDDED, Dataset, load_for, random_subset, unit
from imagelab.report import figures, samples
from imagelab.report.results import Result, share_cell, start_result
from imagelab.setup.runtime import autocast, generator, prepare
from imagelab.setup.settings import BoardSettings, Count, DataSettings, Limits, Rate
from imagelab.techniques import attacks
from imagelab.techniques.attacks import (
    pgd,
    pgd_accuracies,
)
from imagelab.techniques.classifier import accuracy, new_classifier, predict
from imagelab.training.loop import Observer, Training, can_resume, no_observer, one_cycle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "adversarial_training"
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"
METHODS = ("ordinary", "fast", "PGD")
ATTACKS = ("random signs", "Gaussian, same L2", "FGSM", "PGD-40", "PGD-100 with restarts")
SET_ASIDE = 500  # training images for the check (variations of the embedded ones are trained on)
RAMP = 0.25  # ε grows over this part of the training: at full ε from the start, nothing is learnt


@dataclass(frozen=True)
class Config(BoardSettings, DataSettings):
    """Settings of the three trainings and of the attacks on their results."""

    resume: bool = False
    """Go on from the checkpoints of a run that was stopped."""
    epsilon: Annotated[float, Limits(0.001, 0.5)] = 0.3
    """Radius of the ball to be robust in, in the maximum norm, of the pixels' range [0, 1]."""
    train_images: Annotated[int, Limits(100)] | None = None
    """Images to train on at most; default: 60,000, of the embedded digits 10,000."""
    ordinary_epochs: Count | None = None
    """Passes over the training images without attacks; default: 5, on the embedded digits 3."""
    fast_epochs: Count | None = None
    """Passes with one step of 1.25·ε; default: 6, on the embedded digits 3."""
    pgd_epochs: Count | None = None
    """Passes with PGD; default: 12, on the embedded digits 4."""
    pgd_steps: Count = 2
    """Steps of the PGD training in each epoch, of ε/3 each."""
    batch_size: Count | None = None
    """Images per step; default: 128, on the embedded digits 32."""
    lr: Rate = 3e-3
    """Peak of Adam's learning rate: it climbs over the first quarter of the steps, then falls to 0."""
    pgd_images: Count | None = None
    """Held-out images to attack with PGD (clean, noise and FGSM are measured on all); default: 1,000,
    on the embedded digits 200."""
    restarts: Count | None = None
    """Restarts of PGD-100 at full ε, a fifth of them at smaller ε: an image stands if it stands after all
    of them. Default: 10, on the embedded digits 3."""


# What fits the data, where a setting is left open. Of each embedded digit there are 14 variations: a part
# of them is enough. As these make few steps, the batches are smaller.
FITTING = {
    "embedded": {
        "train_images": 10_000, "batch_size": 32, "ordinary_epochs": 3, "fast_epochs": 3,
        "pgd_epochs": 4, "pgd_images": 200, "restarts": 3,
    },
    "others": {
        "train_images": 60_000, "batch_size": 128, "ordinary_epochs": 5, "fast_epochs": 6,
        "pgd_epochs": 12, "pgd_images": 1000, "restarts": 10,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Defence:
    """What decides the weights of one training."""

    method: str
    epochs: int
    epsilon: float
    pgd_steps: int
    batch_size: int
    lr: float
    seed: int
    resume: bool
    quick: bool = False
    tensorboard: bool = False


# --- the attacks that are trained on --------------------------------------------------------------


def one_large_step(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, epsilon: float, rng: torch.Generator
) -> torch.Tensor:
    """One step of 1.25·ε from a random start, put back into the ball ("fast", Wong et al. 2020)."""
    return pgd(model, x, y, epsilon, rng, steps=1, step_size=1.25 * epsilon)


def few_steps(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    epsilon: float,
    rng: torch.Generator,
    steps: int,
    start: torch.Tensor | None,
) -> torch.Tensor:
    """Steps of ε/3 from `start`, where the last epoch's attack on x ended (Zheng et al. 2020).

    From a random start where it is None.
    """
    return pgd(model, x, y, epsilon, rng, steps, step_size=epsilon / 3, start=start)


def check(defence: Defence, model: nn.Module, aside: Dataset) -> float:
    """The accuracy under PGD-10 on the images `aside`, from the same random starts at every call."""
    rng = generator(defence.seed, "check")
    x, y = unit(aside.images), aside.labels
    return pgd_accuracies(model, x, y, [defence.epsilon], rng, steps=10)[0]


def has_collapsed(checks: torch.Tensor) -> bool:
    """Whether the last check lies 20 points below the best: catastrophic overfitting."""
    return len(checks) > 0 and bool(checks.max() - checks[-1] > 0.2)


# --- training -------------------------------------------------------------------------------------


def split(config: Config, data: Dataset) -> tuple[Dataset, Dataset]:
    """The images to train on, and those set aside for the check."""
    assert config.train_images is not None  # `fitted`
    rows = random_subset(len(data.images), config.train_images, "trained on").to(data.images.device)
    aside = max(min(SET_ASIDE, len(rows) // 10), 1)
    trained_on, set_aside = (
        replace(data, images=data.images[i], labels=data.labels[i])
        for i in (rows[aside:], rows[:aside])
    )
    return trained_on, set_aside


def train(
    defence: Defence,
    model: nn.Module,
    data: Dataset,
    aside: Dataset,
    path: Path,
    after_epoch: Observer = no_observer,
) -> Training:
    """Train `model` with one defence, or go on with --resume; the network `best` is the one to keep.

    It has the moving average of the weights after the epoch that stood best against PGD-10 on the images
    `aside`; of the ordinary training, after the last epoch. That one seeks no robustness, and the check
    would favour a network that has learnt little.
    """
    best = copy.deepcopy(model).eval().requires_grad_(False)
    adam = torch.optim.Adam(model.parameters(), lr=defence.lr, fused=True)
    training = Training(
        path, SCRIPT, defence, data,
        networks={"classifier": model, "best": best}, optimizers={"adam": adam},
        ema="classifier", label=f"{defence.method} training",
    )  # fmt: skip
    if defence.resume:
        training.load()
    if defence.method == "PGD":  # what it found for each image, in grey levels of 255
        found = training.extra.setdefault("found", torch.zeros_like(data.images, dtype=torch.int8))
    rng = training.rng
    with training:
        for epoch in training.epochs():
            if defence.method != "ordinary" and has_collapsed(training.curve("check")):
                break
            for batch in training.batches():
                epsilon = defence.epsilon * min(training.progress / RAMP, 1)
                x, y = unit(data.images[batch]), data.labels[batch]  # (B, C, H, W) in [0, 1], (B,)
                if defence.method == "fast":
                    x = one_large_step(model, x, y, epsilon, rng)
                elif defence.method == "PGD":
                    start = x + found[batch].float() / 255 if epoch > 1 else None
                    worst = few_steps(model, x, y, epsilon, rng, defence.pgd_steps, start)
                    found[batch] = ((worst - x) * 255).round().clamp(-127, 127).to(torch.int8)
                    x = worst
                adam.param_groups[0]["lr"] = defence.lr * one_cycle(training.progress)
                with autocast(x.device):
                    logits = model(x.contiguous(memory_format=torch.channels_last))
                    loss = F.cross_entropy(logits, y)
                adam.zero_grad()
                loss.backward()
                adam.step()
                training.log(loss=loss)
            stands = check(defence, training.model, aside)
            best_so_far = max(training.curve("check").tolist(), default=0)
            if defence.method == "ordinary" or stands >= best_so_far:
                best.load_state_dict(training.model.state_dict())
            training.log(check=torch.tensor(stands))
            after_epoch(training, epoch)
    return training


# --- the attacks that it must stand ---------------------------------------------------------------


def radii(config: Config) -> list[float]:
    return [config.epsilon / 3, config.epsilon * 2 / 3, config.epsilon]


def under_attack(config: Config, model: nn.Module, data: Dataset) -> list[list[Any]]:
    """A row for each of three ε: accuracies under noise and attacks, and the restarts of the last."""
    images, labels = unit(data.test_images), data.test_labels
    assert config.pgd_images is not None and config.restarts is not None  # `fitted`
    few = random_subset(len(images), config.pgd_images, "PGD").to(images.device)
    x, y = images[few], labels[few]
    rng = generator(config.seed, "attacks")
    rows = []
    for epsilon in radii(config):
        restarts = config.restarts if epsilon == config.epsilon else max(config.restarts // 5, 1)
        attacked = fgsm(model, images, labels, epsilon)
        shown = (
            attacks.sign_noise(images, epsilon, rng),
            attacks.gaussian_noise_like(attacked, images, rng),
            attacked,
        )
        accuracies = [accuracy(model, images, labels) for images in shown]
        accuracies += pgd_accuracies(model, x, y, [epsilon], rng)
        accuracies += pgd_accuracies(model, x, y, [epsilon], rng, steps=100, restarts=restarts)
        rows.append([epsilon, *accuracies, restarts])
    return rows


def transfer(config: Config, models: dict[str, nn.Module], data: Dataset) -> list[list[float]]:
    """Accuracies of every network (columns) under PGD-40 made against every other (rows)."""
    assert config.pgd_images is not None  # `fitted`
    few = random_subset(len(data.test_images), config.pgd_images, "transfer")
    few = few.to(data.test_images.device)
    images, labels = unit(data.test_images[few]), data.test_labels[few]
    rng = generator(config.seed, "transfer")
    rows = []
    for source in models.values():
        attacked = pgd(source, images, labels, config.epsilon, rng)
        rows.append([accuracy(model, attacked, labels) for model in models.values()])
    return rows


def loss_around(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, signs: torch.Tensor, steps: torch.Tensor
) -> torch.Tensor:
    """The cross-entropy of one image x (1, C, H, W) and label y (1,) on a plane around it.

    `steps` (K,) go along the gradient's sign (columns) and along random `signs` like x (rows): (K, K).
    """
    along = attacks.input_gradient(model, x, y).sign()
    k = len(steps)
    plane = steps.view(1, k, 1, 1, 1) * along + steps.view(k, 1, 1, 1, 1) * signs
    points = (x + plane.flatten(0, 1)).clamp(0, 1)  # (K·K, C, H, W)
    return -predict(model, points)[:, y[0]].clamp(min=1e-12).log().reshape(k, k)


# === the lesson ends here; below: measured, plotted, reported =====================================

TITLE = "Adversarial training: the defence that holds"
SUMMARY = (
    "Training on attacked images is to give back what the attacks took away. How much it does, against "
    "which attacks, and what it does outside the ball that it trained in, stand beside one another, and "
    "so do the gradients of the networks."
)


def observer(aside: Dataset) -> Observer:
    """After each epoch: how many images stand, and whether that ends the training."""

    def after_epoch(training: Training, epoch: int) -> None:
        checks, n = training.curve("check"), len(aside.images)
        training.announce(f"epoch {epoch}: {checks[-1]:.1%} of {n} stand against PGD-10")
        if training.config.method != "ordinary" and has_collapsed(checks):
            training.announce("The PGD check has collapsed: the best epoch before is kept.")

    return after_epoch


def plot_checks(trainings: dict[str, Training]) -> Figure:
    """The PGD check after each epoch, and the loss on the attacked images."""
    figure, axes = figures.new_figure(9, 3.2, columns=2)
    losses = {name: (training, "loss") for name, training in trainings.items()}
    samples.plot_logged(axes[0, 0], losses, "training loss", marker=".")
    axes[0, 0].set_yscale("log")
    for k, (name, training) in enumerate(trainings.items()):
        checks = training.curve("check")
        epochs = range(1, len(checks) + 1)
        axes[0, 1].plot(epochs, checks, label=name, color=figures.PALETTE[k], marker=".")
    axes[0, 1].set(xlabel="epoch", ylabel="accuracy, PGD-10", ylim=(-0.02, 1.02))
    axes[0, 1].legend()
    return figure


def plot_accuracies(tables: dict[str, list[list[Any]]], clean: dict[str, float]) -> Figure:
    """A panel per network: accuracy against ε, a line per attack."""
    figure, axes = figures.new_figure(10, 3.4, columns=len(tables), sharey=True)
    for axis, (name, rows) in zip(axes[0], tables.items(), strict=True):
        columns = list(zip(*rows, strict=True))
        lines = {a: [clean[name], *c] for a, c in zip(ATTACKS, columns[1:-1], strict=True)}
        figures.plot_lines(axis, [0, *columns[0]], lines, "ε (of the range 0 to 1)", "")
        axis.set_title(f"training: {name}")
        axis.get_legend().remove()
    axes[0, 0].set(ylabel="accuracy", ylim=(-0.02, 1.02))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def plot_transfer(names: list[str], rows: list[list[float]]) -> Figure:
    """Accuracies of every network (columns) under the attacks made against every other (rows)."""
    figure, axes = figures.new_figure(4.2, 3.6)
    axis = axes[0, 0]
    axis.imshow(rows, cmap="cividis", vmin=0, vmax=1)
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            colour = "white" if value < 0.6 else "black"
            axis.text(j, i, f"{value:.1%}", ha="center", va="center", color=colour)
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="accuracy of", ylabel="attack made against")
    axis.grid(False)
    return figure


def plot_gallery(config: Config, models: dict[str, nn.Module], data: Dataset) -> Figure:
    """Two rows per network, a column per class: PGD-40's image as read, and the input gradient."""
    labels = data.test_labels.unique()[:8]
    first = [int((data.test_labels == label).nonzero()[0]) for label in labels]
    x, y = unit(data.test_images[first]), data.test_labels[first]
    rng = generator(config.seed, "gallery")
    figure, axes = figures.new_figure(9.2, 9.6, 1 + 2 * len(models), len(first))
    for axis, image in zip(axes[0], x, strict=True):
        figures.show_image(axis, figures.as_picture(image))
    names = ["held-out image"]
    for k, (name, model) in enumerate(models.items()):
        attacked = pgd(model, x, y, config.epsilon, rng)
        gradients = attacks.input_gradient(model, x, y)
        read = predict(model, attacked).argmax(dim=1)
        above, below = axes[1 + 2 * k], axes[2 + 2 * k]
        for i in range(len(first)):
            title = f"read as {data.classes[read[i]]}"
            figures.show_image(above[i], figures.as_picture(attacked[i]), title)
            gradient = gradients[i].mean(dim=0).cpu().numpy()
            limit = max(np.quantile(np.abs(gradient), 0.995), 1e-12)
            below[i].imshow(gradient, cmap="RdBu_r", vmin=-limit, vmax=limit)
            below[i].set_axis_off()
        names += [f"{name}:\nPGD-40", f"{name}:\ngradient"]
    figures.name_rows(axes, names)
    return figure


def plot_surfaces(config: Config, models: dict[str, nn.Module], data: Dataset) -> Figure:
    """The loss of one image over the plane of its gradient's sign and of random signs."""
    x, y = unit(data.test_images[:1]), data.test_labels[:1]
    signs = torch.randint(0, 2, x.shape, generator=generator(config.seed, "surface")) * 2.0 - 1
    steps = torch.linspace(-config.epsilon, config.epsilon, 31, device=x.device)
    sides = steps.cpu().numpy()
    figure, axes = figures.new_figure(10.5, 3.4, columns=len(models), sharey=True)
    for axis, (name, model) in zip(axes[0], models.items(), strict=True):
        height = loss_around(model, x, y, signs.to(x.device), steps).cpu().numpy()
        drawn = axis.pcolormesh(sides, sides, height, cmap="cividis", shading="gouraud")
        figure.colorbar(drawn, ax=axis, label="loss" if axis is axes[0, -1] else None)
        levels = np.linspace(0, max(height.max(), 1e-6), 7)[1:-1]
        axis.contour(sides, sides, height, levels, colors="white", linewidths=0.6)
        axis.set(title=f"training: {name}", xlabel="along the gradient's sign")
    axes[0, 0].set_ylabel("along random signs")
    return figure


def evaluate(config: Config, data: Dataset, trainings: dict[str, Training], result: Result) -> None:
    """Attack the three networks, and enter their accuracies and the figures into `result`."""
    models = {method: training.networks["best"] for method, training in trainings.items()}
    n = len(data.test_images)
    assert config.pgd_images is not None  # `fitted`
    few = min(config.pgd_images, n)
    sizes = (n, n, n, few, few)
    clean = {k: accuracy(m, data.test_images, data.test_labels) for k, m in models.items()}
    tables = {name: under_attack(config, model, data) for name, model in models.items()}
    result.add_table(
        f"Accuracy on held-out images: clean, noise, FGSM n = {n:,}; PGD n = {few:,}",
        ["training", "seconds", "clean", "ε", *ATTACKS, "restarts"],
        [
            [name, round(trainings[name].seconds_used), share_cell(clean[name], n), epsilon,
             *map(share_cell, shares, sizes), restarts]
            for name, rows in tables.items() for epsilon, *shares, restarts in rows
        ],
    )  # fmt: skip
    at = f"ε = {config.epsilon:g}"
    for name, rows in tables.items():
        result.add_share(f"{name}: clean", clean[name], n, better="higher")
        for attack, value, size in zip(ATTACKS, rows[-1][1:-1], sizes, strict=True):
            result.add_share(f"{name}: {attack}, {at}", value, size, better="higher")
    matrix = transfer(config, models, data)
    for name, figure, caption in (
        ("accuracy.png", plot_accuracies(tables, clean),
         f"Accuracy against the size of the attack: n = {n:,}, PGD {few:,}."),
        ("gradients.png", plot_gallery(config, models, data),
         "What fools each network, and its gradient: noise, or strokes."),
        ("transfer.png", plot_transfer(list(models), matrix),
         f"Who fools whom: PGD-40 at {at} (n = {few:,})."),
        ("loss_surface.png", plot_surfaces(config, models, data),
         "One image's loss around it: a cliff, or a plain. The corners lie outside the ball."),
        ("training.png", plot_checks(trainings),
         "Loss on the images trained on, and after each epoch a check on training images set aside."),
    ):  # fmt: skip
        result.add_figure(name, figure, caption)


def lessons(result: Result) -> list[str]:
    """What the figures teach, as far as they were measured."""
    at, told = f"ε = {result.config['epsilon']:g}", []
    if measured := result.measured(*(f"{method}: PGD-40, {at}" for method in METHODS)):
        ordinary, fast, robust = measured
        told.append(
            f"Under PGD-40 at {at} the ordinary network keeps {ordinary:.0%}, the fast one {fast:.0%}, "
            f"the one trained on PGD {robust:.0%}."
        )
    if measured := result.measured(f"fast: FGSM, {at}"):
        told.append(
            f"FGSM alone, under which the fast one keeps {measured[0]:.0%}, proves nothing: an attack "
            "that fails may only be a weak attack."
        )
    if measured := result.measured(f"PGD: Gaussian, same L2, {at}"):
        told.append(
            "Outside the ball that was trained in nothing is promised: under Gaussian noise of FGSM's "
            f"length the network trained on PGD keeps {measured[0]:.0%}."
        )
    return told


def fitted(config: Config, data: Dataset) -> Config:
    """The settings with what was left open as it fits the data."""
    fitting = FITTING["embedded" if data.name == EMBEDDED else "others"]
    return replace(config, **{k: v for k, v in fitting.items() if getattr(config, k) is None})


def checkpoint_path(config: Config, method: str) -> Path:
    return config.output_dir / MODELS / f"{method.lower()}.pth"


def defence(config: Config, method: str) -> Defence:
    """The part of `config` that is one method's."""
    shared = ("epsilon", "pgd_steps", "batch_size", "lr", "seed", "quick", "tensorboard")
    return Defence(
        method=method,
        epochs=getattr(config, f"{method.lower()}_epochs"),
        resume=can_resume(config, checkpoint_path(config, method), first=method == METHODS[0]),
        **{name: getattr(config, name) for name in shared},
    )


def run(config: Config) -> Result:
    """Train three networks, attack them, draw what came out."""
    device = prepare(config.seed, config.device)
    config = config.if_quick(
        train_images=1500, ordinary_epochs=1, fast_epochs=1, pgd_epochs=2, pgd_images=10, restarts=2
    )
    data = load_for(config, device)
    data.needs_two_classes()
    config = fitted(config, data)
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    used, aside = split(config, data)
    trainings = {}
    for method in METHODS:
        model, path = new_classifier(data, config.seed), checkpoint_path(config, method)
        own = defence(config, method)
        trainings[method] = train(own, model, used, aside, path, observer(aside))
    evaluate(config, data, trainings, result)
    return result.save(*lessons(result))


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
