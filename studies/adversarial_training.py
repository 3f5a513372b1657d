"""Training on attacks: the defence that holds (Goodfellow et al. 2015, Madry et al. 2017).

One CNN is trained in three ways: on the images as they are ("ordinary"); on images changed by one
large gradient step from a random start ("fast", Wong et al. 2020); and on images changed by PGD. In every
epoch the attack on an image continues where it ended in the last epoch (Zheng et al. 2020). So two steps
an epoch do the work of many. Then noise, FGSM and PGD attack all three, and so do two stronger attacks:
Auto-PGD, which chooses its step size itself (Croce and Hein 2020), and Square, which needs no gradient.

    python -m studies.adversarial_training                  # embedded digits, five minutes on one core
    python -m studies.adversarial_training --dataset mnist  # more than half an hour on two cores
    python -m studies.adversarial_training --resume         # continue; after the end: measure again

Look at `ball.png`: how much an attack may change; `accuracy.png`: a network is robust only in the ball
that it was trained in; `gradients.png`: a robust network's gradient looks like strokes, an ordinary one's
like noise; `transfer.png`: which attack fools which network. A network may be robust under FGSM and fail
under PGD ("catastrophic overfitting"). PGD on validation images checks for that after every epoch.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fgsm import fgsm
from imagelab.data.datasets import EMBEDDED, Dataset, load_for, random_subset, unit
from imagelab.report import figures, samples
from imagelab.report.attacked import plot_accuracies, plot_gradients, plot_transfer
from imagelab.report.numbers import share_cell
from imagelab.report.results import Result, start_result
from imagelab.setup.runtime import autocast, channels_last, generator, prepare
from imagelab.setup.settings import BoardSettings, Count, DataSettings, Limits, Rate
from imagelab.techniques import attacks, strong_attacks
from imagelab.techniques.attacks import pgd, pgd_accuracies
from imagelab.techniques.classifier import accuracy, new_classifier, predict
from imagelab.training.loop import Observer, Training, can_resume, no_observer, one_cycle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "adversarial_training"
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"
METHODS = ("ordinary", "fast", "PGD")
ATTACKS = ("random signs", "Gaussian, same L2", "FGSM", "PGD-40", "PGD-100 with restarts")
STRONG = ("PGD-100 with restarts", "APGD-CE", "APGD-DLR", "Square", "all together")


# --- the network ----------------------------------------------------------------------------------


class StridedCNN(nn.Module):
    """Conv 64 5×5 and 3×3, conv 128 3×3 twice, dense 256, dense `classes`; strides in place of pooling.

    Images (B, C, H, W) in [0, 1] to logits (B, classes). Trained on attacks, it withstands more than
    DigitCNN (the README has the figures).
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, *sides = shape
        self.conv1 = nn.Conv2d(channels, 64, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(64, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 128, 3, stride=2, padding=1)
        self.conv4 = nn.Conv2d(128, 128, 3, padding=1)
        height, width = (-(-side // 4) for side in sides)
        self.dense1 = nn.Linear(128 * height * width, 256)
        self.dense2 = nn.Linear(256, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (
            x - 0.13
        ) / 0.31  # MNIST's mean and spread                                (B, C, 28, 28)
        x = F.relu(
            self.conv2(F.relu(self.conv1(x)))
        )  #                                (B, 64, 14, 14)
        x = F.relu(
            self.conv4(F.relu(self.conv3(x)))
        )  #                                (B, 128, 7, 7)
        return self.dense2(F.relu(self.dense1(x.flatten(1))))  #                        (B, classes)


def new_network(config: Config, data: Dataset) -> nn.Module:
    """An untrained network for `data`, the same for the same seed."""
    if config.network == "plain":
        return new_classifier(data, config.seed)
    torch.manual_seed(config.seed)
    return channels_last(StridedCNN(data.shape, len(data.classes)), data.images.device)


# --- the attacks that are trained on --------------------------------------------------------------


def fast_attack(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, epsilon: float, rng: torch.Generator
) -> torch.Tensor:
    """One step of 1.25·ε from a random start, projected into the ball ("fast", Wong et al. 2020)."""
    return pgd(model, x, y, epsilon, rng, steps=1, step_size=1.25 * epsilon)


def continued_pgd(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    epsilon: float,
    rng: torch.Generator,
    steps: int,
    start: torch.Tensor | None,
) -> torch.Tensor:
    """Steps of ε/3 from `start`, where the last epoch's attack on x ended (Zheng et al. 2020).

    In the first epoch `start` is None: the attack starts at a random point.
    """
    return pgd(model, x, y, epsilon, rng, steps, step_size=epsilon / 3, start=start)


def random_shifts(defence: Defence, epoch: int, steps: int) -> list[list[int]]:
    """For each step of an epoch, rows down and columns to the right; on the CPU, so no GPU waits."""
    limit, rng = defence.shift, generator(defence.seed, f"shifts of epoch {epoch}")
    return torch.randint(-limit, limit + 1, (steps, 2), generator=rng).tolist()


def shifted(images: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """Images (N, C, H, W) moved by pixels; what leaves on one side comes in on the other."""
    return images.roll((down, right), dims=(2, 3))


def loss_surface(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, signs: torch.Tensor, steps: torch.Tensor
) -> torch.Tensor:
    """The cross-entropy of one image x (1, C, H, W) with label y (1,) on a plane around it.

    `steps` (K,) go along the gradient's sign (columns) and along random `signs` like x (rows): (K, K).
    """
    along = attacks.input_gradient(model, x, y).sign()
    k = len(steps)
    plane = steps.view(1, k, 1, 1, 1) * along + steps.view(k, 1, 1, 1, 1) * signs
    points = (x + plane.flatten(0, 1)).clamp(0, 1)  # (K·K, C, H, W)
    return -predict(model, points)[:, y[0]].clamp(min=1e-12).log().reshape(k, k)


# --- training -------------------------------------------------------------------------------------

VALIDATION = 500  # training images for the check (variations of the embedded ones are trained on)
RAMP = 0.25  # ε grows over this part of the training: at full ε from the start nothing is learnt


@dataclass(frozen=True)
class Config(BoardSettings, DataSettings):
    """Settings of the three trainings and of the attacks on their results."""

    resume: bool = False
    """Continue from the checkpoints of a run that was stopped."""
    epsilon: Annotated[float, Limits(0.001, 0.5)] = 0.3
    """Radius ε of the ball to be robust in, in the maximum norm. Pixels are in [0, 1]."""
    train_images: Annotated[int, Limits(100)] | None = None
    """Largest number of training images. Default: 60,000; on the embedded digits 10,000."""
    ordinary_epochs: Count | None = None
    """Epochs of the training without attacks. Default: 5; on the embedded digits 3."""
    fast_epochs: Count | None = None
    """Epochs of the training with one step of 1.25·ε. Default: 6; on the embedded digits 3."""
    pgd_epochs: Count | None = None
    """Epochs of the training with PGD. Default: 9 on MNIST, 4 on the embedded digits,
    else 12."""
    network: Literal["plain", "strided"] | None = None
    """All three networks' layers: "plain" as in the other scripts, "strided" with four convolutions and
    no pooling. Default: strided on MNIST, else plain."""
    shift: Annotated[int, Limits(0, 4)] | None = None
    """Images and their attacks are moved by up to this many pixels, at random, in the training with PGD.
    Default: 1 on MNIST, else 0."""
    pgd_steps: Count = 2
    """Steps of the PGD training in each epoch, of ε/3 each."""
    batch_size: Count | None = None
    """Images per step. Default: 128; on the embedded digits 32."""
    lr: Rate = 3e-3
    """Peak of Adam's learning rate. It rises over the first quarter of the steps, then falls to 0."""
    pgd_images: Count | None = None
    """Held-out images that PGD attacks. All held-out images are used for clean accuracy, noise and FGSM.
    Default: 1,000; on the embedded digits 200."""
    restarts: Count | None = None
    """Restarts of PGD-100 at full ε; at smaller ε a fifth of them. An image counts as correct only if no
    restart fools the network. Default: 10; on the embedded digits 3."""
    square_queries: Count | None = None
    """Queries of the Square attack per image: how often it may ask the network. Default: 5,000; on the
    embedded digits 1,000."""


# Defaults that depend on the data. Of each embedded digit there are 14 variations, so a part of them is
# enough. Fewer images make fewer steps, so the batches are smaller.
DEFAULTS = {
    EMBEDDED: {
        "train_images": 10_000, "batch_size": 32, "ordinary_epochs": 3, "fast_epochs": 3,
        "pgd_epochs": 4, "pgd_images": 200, "restarts": 3, "square_queries": 1000,
    },
    "mnist": {"network": "strided", "shift": 1, "pgd_epochs": 9},
    "others": {
        "network": "plain", "shift": 0, "train_images": 60_000, "batch_size": 128, "ordinary_epochs": 5,
        "fast_epochs": 6, "pgd_epochs": 12, "pgd_images": 1000, "restarts": 10, "square_queries": 5000,
    },
}  # fmt: skip


def with_defaults(config: Config, data: Dataset) -> Config:
    """The settings, with the defaults that depend on the data."""
    defaults = {**DEFAULTS["others"], **DEFAULTS.get(data.name, {})}
    return replace(config, **{k: v for k, v in defaults.items() if getattr(config, k) is None})


@dataclass(frozen=True)
class Defence:
    """The settings of one of the three trainings: all that its weights depend on."""

    method: str
    epochs: int
    epsilon: float
    pgd_steps: int
    batch_size: int
    lr: float
    seed: int
    resume: bool
    network: str = "plain"
    shift: int = 0
    quick: bool = False
    tensorboard: bool = False


def checkpoint_path(config: Config, method: str) -> Path:
    return config.output_dir / MODELS / f"{method.lower()}.pth"


def defence(config: Config, method: str) -> Defence:
    """The settings in `config` of one method."""
    shared = (
        "epsilon", "pgd_steps", "batch_size", "lr", "seed", "network", "shift", "quick", "tensorboard"
    )  # fmt: skip
    return Defence(
        method=method,
        epochs=getattr(config, f"{method.lower()}_epochs"),
        resume=can_resume(config, checkpoint_path(config, method), first=method == METHODS[0]),
        **{name: getattr(config, name) for name in shared},
    )


def split(config: Config, data: Dataset) -> tuple[Dataset, Dataset]:
    """Training and validation images, both from the training part of `data`."""
    assert config.train_images is not None  # `with_defaults`
    rows = random_subset(len(data.images), config.train_images, "trained on").to(data.images.device)
    n = max(min(VALIDATION, len(rows) // 10), len(rows) // 30, 1)
    validation, training = (
        replace(data, images=data.images[part], labels=data.labels[part])
        for part in (rows[:n], rows[n:])
    )
    return training, validation


def robust_accuracy(defence: Defence, model: nn.Module, validation: Dataset) -> float:
    """Accuracy under PGD-10 on the validation images, from the same random starts at every call."""
    rng = generator(defence.seed, "check")
    x, y = unit(validation.images), validation.labels
    return pgd_accuracies(model, x, y, [defence.epsilon], rng, steps=10)[0]


def has_collapsed(checks: torch.Tensor) -> bool:
    """Whether the last robust accuracy is 20 points below the best: catastrophic overfitting."""
    return len(checks) > 0 and bool(checks.max() - checks[-1] > 0.2)


def train(
    defence: Defence,
    model: nn.Module,
    data: Dataset,
    validation: Dataset,
    path: Path,
    after_epoch: Observer = no_observer,
) -> Training:
    """Train `model` with one defence, or continue with --resume; the network `best` is the one to keep.

    `best` holds the moving average of the weights after the epoch with the best robust accuracy on the
    validation images. In ordinary training it holds the last epoch: robustness is no aim there, and
    an early epoch, which has learnt little, might have more of it.
    """
    best = copy.deepcopy(model).eval().requires_grad_(False)
    adam = torch.optim.Adam(model.parameters(), lr=defence.lr, fused=True)
    training = Training(
        path,
        SCRIPT,
        defence,
        data,
        networks={"classifier": model, "best": best},
        optimizers={"adam": adam},
        ema="classifier",
        label=f"{defence.method} training",
    )
    if defence.resume:
        training.load()
    if defence.method == "PGD":  # the last perturbation of each image, in grey levels of 255
        found = training.extra.setdefault("found", torch.zeros_like(data.images, dtype=torch.int8))
    rng = training.rng
    with training:
        for epoch in training.epochs():
            if defence.method != "ordinary" and has_collapsed(training.curve("check")):
                break
            shifts = random_shifts(defence, epoch, training.steps_per_epoch)
            for batch in training.batches():
                epsilon = defence.epsilon * min(training.progress / RAMP, 1)
                x, y = unit(data.images[batch]), data.labels[batch]  # (B, C, H, W) in [0, 1], (B,)
                if defence.method == "fast":
                    x = fast_attack(model, x, y, epsilon, rng)
                elif defence.method == "PGD":
                    # The attack is kept in the image's own frame and moves with it.
                    down, right = shifts[training.step - 1]
                    x, last = (shifted(t, down, right) for t in (x, found[batch].float() / 255))
                    start = x + last if epoch > 1 else None
                    attacked = continued_pgd(model, x, y, epsilon, rng, defence.pgd_steps, start)
                    change = shifted(attacked - x, -down, -right)
                    found[batch] = (change * 255).round().clamp(-127, 127).to(torch.int8)
                    x = attacked
                adam.param_groups[0]["lr"] = defence.lr * one_cycle(training.progress)
                with autocast(x.device):
                    logits = model(x.contiguous(memory_format=torch.channels_last))
                    loss = F.cross_entropy(logits, y)
                adam.zero_grad()
                loss.backward()
                adam.step()
                training.log(loss=loss)
            check = robust_accuracy(defence, training.model, validation)
            best_so_far = max(training.curve("check").tolist(), default=0)
            if defence.method == "ordinary" or check >= best_so_far:
                best.load_state_dict(training.model.state_dict())
            training.log(check=torch.tensor(check))
            after_epoch(training, epoch)
    return training


# --- the attacks that the networks are tested with ------------------------------------------------


def read_correctly(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Which of the images (N, C, H, W) get their own label (N,): (N,) bool."""
    return predict(model, images).argmax(dim=1) == labels


def correct_under_strong_attacks(
    config: Config, model: nn.Module, x: torch.Tensor, y: torch.Tensor, rng: torch.Generator
) -> dict[str, torch.Tensor]:
    """Which of the images x (N, C, H, W) are still read as y (N,) after each strong attack at full ε."""
    epsilon, restarts, queries = config.epsilon, config.restarts, config.square_queries
    assert restarts is not None and queries is not None  # `with_defaults`
    attacked = {
        STRONG[0]: pgd(model, x, y, epsilon, rng, steps=100, restarts=restarts),
        "APGD-CE": strong_attacks.apgd(model, x, y, epsilon, rng),
        "Square": strong_attacks.square_attack(model, x, y, epsilon, rng, queries),
    }
    if predict(model, x[:1]).shape[1] > 2:  # the DLR loss takes three classes
        attacked["APGD-DLR"] = strong_attacks.apgd(model, x, y, epsilon, rng, loss="dlr")
    correct = {name: read_correctly(model, images, y) for name, images in attacked.items()}
    return {**correct, "all together": torch.stack(list(correct.values())).all(dim=0)}


def accuracies_under_attack(
    config: Config, model: nn.Module, data: Dataset
) -> tuple[list[list[Any]], dict[str, float]]:
    """For each of three ε a row: ε, accuracy under each of ATTACKS, restarts of PGD-100.

    And for the largest ε the accuracy under each of STRONG.
    """
    images, labels = unit(data.test_images), data.test_labels
    assert config.pgd_images is not None and config.restarts is not None  # `with_defaults`
    subset = random_subset(len(images), config.pgd_images, "PGD").to(images.device)
    x, y = images[subset], labels[subset]
    rng = generator(config.seed, "attacks")
    rows, strong = [], {}
    for epsilon in (config.epsilon / 3, config.epsilon * 2 / 3, config.epsilon):
        attacked = fgsm(model, images, labels, epsilon)
        changed = (
            attacks.sign_noise(images, epsilon, rng),
            attacks.gaussian_noise_like(attacked, images, rng),
            attacked,
        )
        accuracies = [accuracy(model, images, labels) for images in changed]
        accuracies += pgd_accuracies(model, x, y, [epsilon], rng)
        if epsilon < config.epsilon:
            restarts = max(config.restarts // 5, 1)
            accuracies += pgd_accuracies(model, x, y, [epsilon], rng, steps=100, restarts=restarts)
        else:
            restarts = config.restarts
            correct = correct_under_strong_attacks(config, model, x, y, rng)
            strong = {name: which.float().mean().item() for name, which in correct.items()}
            accuracies.append(strong[STRONG[0]])
        rows.append([epsilon, *accuracies, restarts])
    return rows, strong


def transfer(config: Config, models: dict[str, nn.Module], data: Dataset) -> list[list[float]]:
    """Accuracy of each network (columns) on the images of PGD-40 against each network (rows)."""
    assert config.pgd_images is not None  # `with_defaults`
    subset = random_subset(len(data.test_images), config.pgd_images, "PGD")
    subset = subset.to(data.test_images.device)
    images, labels = unit(data.test_images[subset]), data.test_labels[subset]
    rng = generator(config.seed, "transfer")
    rows = []
    for source in models.values():
        attacked = pgd(source, images, labels, config.epsilon, rng)
        rows.append([accuracy(model, attacked, labels) for model in models.values()])
    return rows


# === the lesson ends here; below: measured, plotted, reported =====================================

TITLE = "Adversarial training: the defence that holds"
SUMMARY = (
    "Training on attacked images makes a network robust against attacks. How robust, against which "
    "attacks, and how robust outside the ball that it was trained in? Three networks and their gradients "
    "are compared."
)


def announce_checks(validation: Dataset) -> Observer:
    """After each epoch: print the robust accuracy, and whether it has collapsed."""

    def after_epoch(training: Training, epoch: int) -> None:
        checks, n = training.curve("check"), len(validation.images)
        training.announce(f"epoch {epoch}: {checks[-1]:.1%} of {n} are right under PGD-10")
        if training.config.method != "ordinary" and has_collapsed(checks):
            training.announce("The robust accuracy has collapsed: the best epoch so far is kept.")

    return after_epoch


def plot_ball(config: Config, data: Dataset) -> Figure:
    """Ten training images; below, the same with random signs of ε/3 and of ε in every pixel."""
    ten = random_subset(len(data.images), 10, "examples").to(data.images.device)
    x, rng, rows = unit(data.images[ten]), generator(config.seed, "examples"), {}
    for epsilon in (0, config.epsilon / 3, config.epsilon):
        name = f"±{epsilon:.2g}" if epsilon else "image"
        rows[name] = (255 * attacks.sign_noise(x, epsilon, rng)).round().to(torch.uint8)
    return figures.plot_rows(rows)


def plot_checks(trainings: dict[str, Training]) -> Figure:
    """The loss on the attacked images, and after each epoch the accuracy under PGD-10."""
    figure, axes = figures.new_figure(9, 3.2, columns=2)
    losses = {name: (training, "loss") for name, training in trainings.items()}
    samples.plot_logged(axes[0, 0], losses, "training loss", marker=".")
    figures.log_scale(axes[0, 0])
    for k, (name, training) in enumerate(trainings.items()):
        epochs, checks = zip(*enumerate(training.curve("check").tolist(), start=1), strict=True)
        axes[0, 1].plot(epochs, checks, label=name, color=figures.PALETTE[k], marker=".")
    epsilon = next(iter(trainings.values())).config.epsilon
    label = f"accuracy, PGD-10, ε = {epsilon:g}"
    axes[0, 1].set(xlabel="epoch", ylabel=label, ylim=(-0.02, 1.02))
    axes[0, 1].xaxis.get_major_locator().set_params(integer=True)
    axes[0, 1].legend()
    return figure


def plot_surfaces(config: Config, models: dict[str, nn.Module], data: Dataset) -> Figure:
    """The loss around one image in the ball, along its gradient's sign and along random signs.

    It is the first held-out image that FGSM makes the ordinary network misread with half of ε.
    """
    x, y = unit(data.test_images[:1000]), data.test_labels[:1000]
    ordinary = models[METHODS[0]]
    right = torch.stack([read_correctly(model, x, y) for model in models.values()]).all(dim=0)
    fooled = right & ~read_correctly(ordinary, fgsm(ordinary, x, y, config.epsilon / 2), y)
    first = int(fooled.int().argmax())  # 0 where it fools none
    x, y = x[first, None], y[first, None]
    signs = torch.randint(0, 2, x.shape, generator=generator(config.seed, "surface")) * 2.0 - 1
    steps = torch.linspace(-config.epsilon, config.epsilon, 41, device=x.device)
    sides, ball = steps.cpu().numpy(), steps.abs()[:, None] + steps.abs() < 1.001 * config.epsilon
    surfaces = {
        name: loss_surface(model, x, y, signs.to(x.device), steps).where(ball, float("nan")).cpu()
        for name, model in models.items()
    }
    highest = max(float(height.nan_to_num().max()) for height in surfaces.values())
    levels = np.linspace(0, max(highest, 1e-6), 13)
    figure, axes = figures.new_figure(10.5, 3.6, columns=len(models), sharey=True)
    for axis, (name, height) in zip(axes[0], surfaces.items(), strict=True):
        drawn = axis.contourf(sides, sides, height.numpy(), levels, cmap="cividis")
        axis.set(title=f"training: {name}", xlabel="along the gradient's sign", aspect="equal")
    figure.colorbar(drawn, ax=axes[0].tolist(), label="loss", format="%.1f")
    axes[0, 0].set_ylabel("along random signs")
    return figure


def evaluate(config: Config, data: Dataset, trainings: dict[str, Training], result: Result) -> None:
    """Attack the three networks, and enter accuracies and figures into `result`."""
    models = {method: training.networks["best"] for method, training in trainings.items()}
    n = len(data.test_images)
    assert config.pgd_images is not None  # `with_defaults`
    n_pgd = min(config.pgd_images, n)
    sizes = (n, n, n, n_pgd, n_pgd)
    clean = {k: accuracy(m, data.test_images, data.test_labels) for k, m in models.items()}
    tables, strong = {}, {}
    for name, model in models.items():
        tables[name], strong[name] = accuracies_under_attack(config, model, data)
    cells = []
    for name, rows in tables.items():
        seconds, share = round(trainings[name].seconds_used), share_cell(clean[name], n)
        for epsilon, *shares, restarts in rows:
            cells.append([name, seconds, share, epsilon, *map(share_cell, shares, sizes), restarts])
    result.add_table(
        f"Accuracy on held-out images: clean, noise, FGSM n = {n:,}; PGD n = {n_pgd:,}",
        ["training", "seconds", "clean", "ε", *ATTACKS, "restarts"],
        cells,
    )
    at = f"ε = {config.epsilon:g}"
    shown = [name for name in STRONG if name in strong[METHODS[0]]]
    result.add_table(
        f"Accuracy on {n_pgd:,} held-out images under strong attacks, {at}. All together: no attack "
        "fools the network",
        ["training", *shown],
        [[m, *(share_cell(shares[a], n_pgd) for a in shown)] for m, shares in strong.items()],
    )
    for name, rows in tables.items():
        result.add_share(f"{name}: clean", clean[name], n, better="higher")
        for attack, value, size in zip(ATTACKS, rows[-1][1:-1], sizes, strict=True):
            result.add_share(f"{name}: {attack}, {at}", value, size, better="higher")
        for attack in shown[1:]:
            result.add_share(
                f"{name}: {attack}, {at}", strong[name][attack], n_pgd, better="higher"
            )
    result.add_figure(
        "accuracy.png",
        plot_accuracies(ATTACKS, tables, strong, clean),
        f"Accuracy against the size of the attack: n = {n:,}; PGD and the strong attacks n = {n_pgd:,}.",
    )
    caption = (
        f"PGD-40 at {at} against each network; what it misreads then is in bold. Its gradient looks like "
        "noise, or like strokes."
    )
    result.add_figure(
        "gradients.png", plot_gradients(config.epsilon, config.seed, models, data), caption
    )
    matrix = transfer(config, models, data)
    caption = (
        f"Which attack fools which network: PGD-40 at {at} (n = {n_pgd:,}). The images are those of the "
        "tables, the random starts are others."
    )
    result.add_figure("transfer.png", plot_transfer(list(models), matrix), caption)
    caption = (
        "The loss around one held-out image, in the whole ball: each step is the change of each pixel. "
        "It is an image that half of ε is enough to make the ordinary network misread, if there is one."
    )
    result.add_figure("loss_surface.png", plot_surfaces(config, models, data), caption)
    caption = (
        "Left: the loss on the training images as each method attacks them; for the ordinary training as "
        "they are. Right: accuracy on images held out of the training part, after each epoch."
    )
    if data.name == EMBEDDED:
        caption += (
            " They are variations, and harder to read than the held-out images of the tables."
        )
    result.add_figure("training.png", plot_checks(trainings), caption)


def lessons(result: Result) -> list[str]:
    """Sentences on what was measured."""
    at, sentences = f"ε = {result.config['epsilon']:g}", []
    if measured := result.measured(*(f"{method}: PGD-40, {at}" for method in METHODS)):
        ordinary, fast, robust = measured
        sentences.append(
            f"Under PGD-40 at {at} the ordinary network reads {ordinary:.1%} correctly, the fast one "
            f"{fast:.1%}, the one trained on PGD {robust:.1%}."
        )
    if measured := result.measured(f"PGD: PGD-40, {at}", f"PGD: all together, {at}"):
        forty, worst = measured
        sentences.append(
            f"Stronger attacks find more: PGD-40 leaves the one trained on PGD {forty:.1%}; PGD-100, "
            f"Auto-PGD and Square together leave it {worst:.1%}."
        )
    if measured := result.measured(f"fast: FGSM, {at}"):
        sentences.append(
            f"Under FGSM alone the fast one reads {measured[0]:.0%} correctly. That proves nothing: the "
            "attack may be too weak."
        )
    if measured := result.measured(*(f"{m}: Gaussian, same L2, {at}" for m in ("PGD", "ordinary"))):
        sentences.append(
            "Outside the ball of the training nothing is certain: under Gaussian noise of the same L2 "
            f"norm as FGSM's change the network trained on PGD reads {measured[0]:.0%} correctly, the "
            f"ordinary one {measured[1]:.0%}."
        )
    return sentences


def run(config: Config) -> Result:
    """Train three networks, attack them, draw the results."""
    device = prepare(config.seed, config.device)
    config = config.if_quick(
        train_images=1500,
        ordinary_epochs=1,
        fast_epochs=1,
        pgd_epochs=2,
        pgd_images=10,
        restarts=2,
        square_queries=20,
    )
    data = load_for(config, device)
    data.needs_two_classes()
    config = with_defaults(config, data)
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    training_images, validation = split(config, data)
    caption = (
        "Training images, and the same with random signs in every pixel. An attack of "
        f"ε = {config.epsilon:g} may change each pixel as much as in the last row. It chooses the signs."
    )
    result.add_figure("ball.png", plot_ball(config, training_images), caption)
    observer, trainings = announce_checks(validation), {}
    for method in METHODS:
        model, path = new_network(config, data), checkpoint_path(config, method)
        settings = defence(config, method)
        trainings[method] = train(settings, model, training_images, validation, path, observer)
    evaluate(config, data, trainings, result)
    return result.save(*lessons(result))


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
