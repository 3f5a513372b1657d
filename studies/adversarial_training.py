"""Training on attacks: the defence that holds (Goodfellow et al. 2015, Madry et al. 2017).

One small CNN is trained three ways: on the images as they are; on images moved by one large gradient
step from a random start ("fast", Wong et al. 2020); and on images moved by PGD, whose attack on each
image goes on, epoch after epoch, from where the last one ended (Zheng et al. 2020), so that two steps
an epoch do the work of many. All three then meet noise, FGSM, PGD-40 and PGD-100 with restarts.

    python -m studies.adversarial_training                    # the embedded digits, two minutes
    python -m studies.adversarial_training --dataset mnist    # half an hour on two CPU cores
    python -m studies.adversarial_training --resume           # go on; after the end: measure again

What to look at: `accuracy.png`, where only the trained-in ball holds; `gradients.png`, where a
robust network's gradient looks like strokes and an ordinary one's like noise; `transfer.png`, who
fools whom. A network that looks robust under FGSM and falls to PGD has learnt to hide its gradient
("catastrophic overfitting"); a PGD check on images set aside watches for that after every epoch.
"""

from __future__ import annotations

from imagelab.setup.command import command_line

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from imagelab.data.datasets import EMBEDDED, Dataset, load_for, random_subset, unit
from imagelab.report import figures
from imagelab.report.results import Result, share_cell, start_result
from imagelab.setup.runtime import autocast, generator, prepare
from imagelab.setup.settings import BoardSettings, Count, DataSettings, Limits, Rate
from imagelab.techniques.attacks import (
    fgsm,
    gaussian_noise_like,
    input_gradient,
    pgd,
    pgd_accuracies,
    sign_noise,
)
from imagelab.techniques.classifier import accuracy, new_classifier, predict
from imagelab.training.loop import Training, goes_on, one_cycle

SCRIPT = "adversarial_training"
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"
METHODS = ("ordinary", "fast", "PGD")
TITLE = "Adversarial training: the defence that holds"
SUMMARY = (
    "Training on attacked images is to give back what the attacks took away. How much it does, against "
    "which attacks, and what it does outside the ball that it trained in, stand beside one another, and "
    "so do the gradients of the networks."
)
ATTACKS = ("random signs", "Gaussian, same L2", "FGSM", "PGD-40", "PGD-100 with restarts")
# What fits the data, where a setting is left open. Of the embedded digits there are 14 variations each,
# so that a part of them is enough; as this makes few steps, the batches are smaller.
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
RAMP = 0.25  # ε grows over this part of the training: at full ε from the start, nothing is learnt
# Training images, kept for the check after each epoch; variations of the embedded ones are trained on.
SET_ASIDE = 500


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
    """Restarts of PGD-100 at full ε, a fifth of them at smaller ε: an image stands only if it stands
    after all of them. Default: 10, on the embedded digits 3."""


def fitted(config: Config, data: Dataset) -> Config:
    """The settings with what was left open as it fits the data."""
    fitting = FITTING["embedded" if data.name == EMBEDDED else "others"]
    return replace(config, **{k: v for k, v in fitting.items() if getattr(config, k) is None})


@dataclass(frozen=True)
class Recipe:
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


def recipe(config: Config, method: str) -> Recipe:
    return Recipe(
        method=method,
        epochs=getattr(config, f"{method.lower()}_epochs"),
        epsilon=config.epsilon,
        pgd_steps=config.pgd_steps,
        batch_size=config.batch_size,
        lr=config.lr,
        seed=config.seed,
        resume=goes_on(config, checkpoint_path(config, method), first=method == METHODS[0]),
        quick=config.quick,
        tensorboard=config.tensorboard,
    )


# --- training -------------------------------------------------------------------------------------


def train(
    recipe: Recipe, path: Path, data: Dataset, watched: Dataset
) -> tuple[nn.Module, Training]:
    """The network of one recipe, in eval mode, and its run.

    What is kept is the moving average of the weights after the epoch that stood best against PGD-10
    on the images of `watched` (of the ordinary training: the last).
    """
    model = new_classifier(data, recipe.seed)
    best = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, fused=True)
    with Training(
        path, SCRIPT, recipe, data, {"classifier": model, "best": best}, {"adam": optimizer},
        ema="classifier", label=f"{recipe.method} training",
    ) as run:  # fmt: skip
        if recipe.method == "PGD":  # what it found for each image, in grey levels of 255
            found = run.extra.setdefault("found", torch.zeros_like(data.images, dtype=torch.int8))
        for epoch in run.epochs():
            if recipe.method != "ordinary" and has_collapsed(run.curve("check")):
                run.announce("The PGD check has collapsed: the best epoch before is kept.")
                break
            for batch in run.batches():
                epsilon = recipe.epsilon * min(run.progress / RAMP, 1)
                x, y = unit(data.images[batch]), data.labels[batch]
                if recipe.method == "fast":  # one step, which may leave the ball and is put back
                    x = pgd(model, x, y, epsilon, run.rng, 1, 1.25 * epsilon)
                elif recipe.method == "PGD":
                    start = x + found[batch].float() / 255 if epoch > 1 else None
                    worst = pgd(
                        model, x, y, epsilon, run.rng, recipe.pgd_steps, epsilon / 3, start=start
                    )
                    found[batch] = ((worst - x) * 255).round().clamp(-127, 127).to(torch.int8)
                    x = worst
                optimizer.param_groups[0]["lr"] = recipe.lr * one_cycle(run.progress)
                with autocast(x.device):
                    logits = model(x.contiguous(memory_format=torch.channels_last))
                    loss = F.cross_entropy(logits, y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.log(loss=loss)
            rng = generator(recipe.seed, "check")
            stands = pgd_accuracies(
                run.averaged, unit(watched.images), watched.labels, [recipe.epsilon], rng, steps=10
            )
            # Of an ordinary training the last epoch is kept: it seeks no robustness, and the check
            # would favour a network that has learnt little.
            best_so_far = max(run.curve("check").tolist(), default=0)
            if recipe.method == "ordinary" or stands[0] >= best_so_far:
                best.load_state_dict(run.averaged.state_dict())
            run.log(check=torch.tensor(stands[0]))
            run.announce(
                f"epoch {epoch}: {stands[0]:.1%} of {len(watched.images)} stand against PGD-10"
            )
    return best.eval(), run


def has_collapsed(checks: torch.Tensor) -> bool:
    """Whether the last check lies 20 points below the best: catastrophic overfitting."""
    return len(checks) > 0 and bool(checks.max() - checks[-1] > 0.2)


# --- measuring ------------------------------------------------------------------------------------


def measure(config: Config, model: nn.Module, data: Dataset) -> list[list[Any]]:
    """A row for each of three ε: accuracies under noise and attacks, and the restarts of the last."""
    images, labels = unit(data.test_images), data.test_labels
    few = random_subset(len(images), config.pgd_images, "PGD").to(images.device)
    rng = generator(config.seed, "attacks")
    rows = []
    for epsilon in radii(config):
        restarts = config.restarts if epsilon == config.epsilon else max(config.restarts // 5, 1)
        attacked = fgsm(model, images, labels, epsilon)
        shown = (
            sign_noise(images, epsilon, rng), gaussian_noise_like(attacked, images, rng), attacked
        )  # fmt: skip
        accuracies = [accuracy(model, x, labels) for x in shown]
        x, y = images[few], labels[few]
        accuracies += pgd_accuracies(model, x, y, [epsilon], rng)
        accuracies += pgd_accuracies(model, x, y, [epsilon], rng, steps=100, restarts=restarts)
        rows.append([epsilon, *accuracies, restarts])
    return rows


def transfer(config: Config, models: dict[str, nn.Module], data: Dataset) -> list[list[float]]:
    """Accuracies of every network (columns) under PGD-40 made against every other (rows)."""
    few = random_subset(len(data.test_images), config.pgd_images, "transfer")
    few = few.to(data.test_images.device)
    images, labels = unit(data.test_images[few]), data.test_labels[few]
    rng = generator(config.seed, "transfer")
    rows = []
    for source in models.values():
        attacked = pgd(source, images, labels, config.epsilon, rng)
        rows.append([accuracy(model, attacked, labels) for model in models.values()])
    return rows


def radii(config: Config) -> list[float]:
    return [config.epsilon / 3, config.epsilon * 2 / 3, config.epsilon]


# --- figures --------------------------------------------------------------------------------------


def draw_checks(path: Path, runs: dict[str, Training]) -> None:
    """The PGD check after each epoch, and the loss on the attacked images."""
    figure, axes = figures.new_figure(9, 3.2, columns=2)
    for k, (name, run) in enumerate(runs.items()):
        checks = run.curve("check")
        loss = run.smoothed("loss", max(run.steps_done // 150, 1))
        for axis, line in zip(axes[0], (loss, (range(1, len(checks) + 1), checks)), strict=True):
            axis.plot(*line, label=name, color=figures.PALETTE[k], marker=".")
    axes[0, 0].set(xlabel="epoch", ylabel="training loss", yscale="log")
    axes[0, 1].set(xlabel="epoch", ylabel="accuracy, PGD-10", ylim=(-0.02, 1.02))
    axes[0, 1].legend()
    figures.save_figure(figure, path)


def draw_accuracies(
    path: Path, tables: dict[str, list[list[Any]]], clean: dict[str, float]
) -> None:
    """A panel per network: accuracy against ε, a line per attack."""
    figure, axes = figures.new_figure(10, 3.4, columns=len(tables), sharey=True)
    for axis, (name, rows) in zip(axes[0], tables.items(), strict=True):
        columns = list(zip(*rows, strict=True))
        lines = {a: [clean[name], *c] for a, c in zip(ATTACKS, columns[1:-1], strict=True)}
        figures.draw_lines(axis, [0, *columns[0]], lines, "ε (of the range 0 to 1)", "")
        axis.set_title(f"training: {name}")
        axis.get_legend().remove()
    axes[0, 0].set(ylabel="accuracy", ylim=(-0.02, 1.02))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figures.save_figure(figure, path)


def draw_transfer(path: Path, names: list[str], rows: list[list[float]]) -> None:
    figure, axes = figures.new_figure(4.2, 3.6)
    axis = axes[0, 0]
    axis.imshow(rows, cmap="cividis", vmin=0, vmax=1)
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            axis.text(j, i, f"{value:.1%}", ha="center", va="center",
                      color="white" if value < 0.6 else "black")  # fmt: skip
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="accuracy of", ylabel="attack made against")
    axis.grid(False)
    figures.save_figure(figure, path)


def draw_gallery(path: Path, config: Config, models: dict[str, nn.Module], data: Dataset) -> None:
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
        attacked, gradients = pgd(model, x, y, config.epsilon, rng), input_gradient(model, x, y)
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
    figures.save_figure(figure, path)


def draw_surfaces(path: Path, config: Config, models: dict[str, nn.Module], data: Dataset) -> None:
    """The loss of one image over the plane of its gradient's sign and of random signs."""
    x, y = unit(data.test_images[:1]), data.test_labels[:1]
    random = torch.randint(0, 2, x.shape, generator=generator(config.seed, "surface")) * 2.0 - 1
    steps = torch.linspace(-config.epsilon, config.epsilon, 31, device=x.device)
    figure, axes = figures.new_figure(10.5, 3.4, columns=len(models), sharey=True)
    for axis, (name, model) in zip(axes[0], models.items(), strict=True):
        along = input_gradient(model, x, y).sign()
        plane = steps[None, :, None, None, None] * along + (
            steps[:, None, None, None, None] * random.to(x.device)
        )
        points = (x + plane.flatten(0, 1)).clamp(0, 1)
        loss = -predict(model, points)[:, y[0]].clamp(min=1e-12).log()
        height, sides = loss.reshape(31, 31).cpu().numpy(), steps.cpu().numpy()
        drawn = axis.pcolormesh(sides, sides, height, cmap="cividis", shading="gouraud")
        figure.colorbar(drawn, ax=axis, label="loss" if axis is axes[0, -1] else None)
        levels = np.linspace(0, max(height.max(), 1e-6), 7)[1:-1]
        axis.contour(sides, sides, height, levels, colors="white", linewidths=0.6)
        axis.set(title=f"training: {name}", xlabel="along the gradient's sign")
    axes[0, 0].set_ylabel("along random signs")
    figures.save_figure(figure, path)


# --- the run --------------------------------------------------------------------------------------


def checkpoint_path(config: Config, method: str) -> Path:
    return config.output_dir / MODELS / f"{method.lower()}.pth"


def run(config: Config) -> Result:
    """Train three networks, attack them, draw what came out."""
    device = prepare(config.seed, config.device)
    config = config.quickened(
        train_images=1500, ordinary_epochs=1, fast_epochs=1, pgd_epochs=2, pgd_images=10,
        restarts=2,
    )  # fmt: skip
    data = load_for(config, device)
    data.needs_two_classes()
    config = fitted(config, data)
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    used = random_subset(len(data.images), config.train_images, "trained on").to(device)
    aside = max(min(SET_ASIDE, len(used) // 10), 1)
    watched, used = used[:aside], used[aside:]
    watched, used = (
        replace(data, images=data.images[i], labels=data.labels[i]) for i in (watched, used)
    )

    models, runs = {}, {}
    for method in METHODS:
        models[method], runs[method] = train(
            recipe(config, method), checkpoint_path(config, method), used, watched
        )

    n = len(data.test_images)
    clean = {k: accuracy(m, data.test_images, data.test_labels) for k, m in models.items()}
    tables = {name: measure(config, model, data) for name, model in models.items()}
    few = min(config.pgd_images, n)
    sizes = (n, n, n, few, few)
    result.add_table(
        f"Accuracy on held-out images: clean, noise, FGSM n = {n:,}; PGD n = {few:,}",
        ["training", "seconds", "clean", "ε", *ATTACKS, "restarts"],
        [
            [name, round(runs[name].seconds), share_cell(clean[name], n), epsilon,
             *map(share_cell, shares, sizes), restarts]
            for name, rows in tables.items() for epsilon, *shares, restarts in rows
        ],
    )  # fmt: skip
    for name, rows in tables.items():
        result.add_share(f"{name}: clean", clean[name], n, better="higher")
        for attack, value, size in zip(ATTACKS, rows[-1][1:-1], sizes, strict=True):
            result.add_share(
                f"{name}: {attack}, ε = {config.epsilon:g}", value, size, better="higher"
            )

    matrix = transfer(config, models, data)
    for name, caption, draw, *what in (
        ("accuracy.png", f"Accuracy against the size of the attack: n = {n:,}, PGD {few:,}.",
         draw_accuracies, tables, clean),
        ("gradients.png", "What fools each network, and its gradient: noise, or strokes.",
         draw_gallery, config, models, data),
        ("transfer.png", f"Who fools whom: PGD-40 at ε = {config.epsilon:g} (n = {few:,}).",
         draw_transfer, list(models), matrix),
        ("loss_surface.png",
         "One image's loss around it: a cliff, or a plain. The corners lie outside the ball.",
         draw_surfaces, config, models, data),
        ("training.png", "Loss on the images trained on, and after each epoch a check on training images "
         "set aside.",
         draw_checks, runs),
    ):  # fmt: skip
        draw(result.add_file(name, caption), *what)
    at = f"ε = {config.epsilon:g}"
    return result.save(
        f"Under PGD-40 at {at} the ordinary network keeps {{ordinary: PGD-40, {at}|.0%}}, the fast one "
        f"{{fast: PGD-40, {at}|.0%}}, the one trained on PGD {{PGD: PGD-40, {at}|.0%}}.",
        f"FGSM alone, under which the fast one keeps {{fast: FGSM, {at}|.0%}}, proves nothing: an "
        "attack that fails may only be a weak attack.",
        "Outside the ball that was trained in nothing is promised: under Gaussian noise of FGSM's length "
        f"the network trained on PGD keeps {{PGD: Gaussian, same L2, {at}|.0%}}.",
    )


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
