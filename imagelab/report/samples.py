"""What every generator does with its samples: grids, the .npz file, the scores and their figures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from imagelab.data.embedded import varied_as_trained_on
from imagelab.data.pictures import read_png, write_gif, write_png
from imagelab.data.tensors import Dataset, random_subset
from imagelab.report import figures
from imagelab.report.evaluator import (
    MIN_SAMPLES,
    SURE,
    Evaluator,
    Scores,
    density_and_coverage,
    features,
    frechet_distance,
    nearest,
)
from imagelab.report.results import Result, start_result
from imagelab.setup.files import atomic_path
from imagelab.setup.runtime import Stopwatch
from imagelab.setup.terminal import tell_if_silent
from imagelab.techniques.classifier import trained_classifier
from imagelab.training.loop import Training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRID = 100  # images in a grid, ten by ten
TRACKED = 2000  # samples, at most, that are scored along a training


@contextlib.contextmanager
def timed_samples(result: Result, n: int) -> Iterator[None]:
    """How long each of the `n` samples took that are drawn inside the block, as a metric."""
    tell_if_silent(f"Drawing {n:,} samples.")
    with Stopwatch() as watch:
        yield
    result.add_metric(
        "milliseconds per sample", 1000 * watch.seconds / n, n, unit="ms", better="lower"
    )


def write_grid(
    path: Path, images: torch.Tensor, training: Training | None = None, title: str = ""
) -> None:
    """The first hundred of `images` (N, C, H, W) uint8, ten by ten, under a `title` if there is one.

    The grid is also sent to TensorBoard, if `training` is observed there.
    """
    sheet = figures.grid(images[:GRID], columns=10)
    sheet = figures.titled(sheet, title) if title else sheet
    write_png(path, sheet)
    if training is not None:
        training.show_picture("samples", sheet)


def write_epoch_grid(result: Result, training: Training, images: torch.Tensor) -> None:
    """Write the grid of the running epoch, or of a part of it, and note it in the training's history."""
    done = training.epochs_done
    training.log(grid_epoch=torch.tensor(done))
    write_grid(result.folder / grid_name(done), images, training, f"epoch {round(done, 2):g}")


def grid_name(epochs: float) -> str:
    """The name of the grid after so many epochs: epoch_005.png, or epoch_005.25.png within one."""
    whole = abs(epochs - round(epochs)) < 0.005
    return f"epoch_{epochs:03.0f}.png" if whole else f"epoch_{epochs:06.2f}.png"


def add_epoch_grids(result: Result, training: Training, same: str) -> None:
    """Enter the grids that this training left on disk, also before a --resume, and their animation.

    `same` names what all of them are drawn from.
    """
    epochs = training.curve("grid_epoch").tolist()
    paths = [
        result.note_file(grid_name(k), f"Samples after epoch {round(k, 2):g}.") for k in epochs
    ]
    frames = [read_png(path) for path in paths if path is not None]
    if len(frames) > 1:
        caption = f"Samples in the course of the training, always from the same {same}."
        write_gif(result.add_file("training.gif", caption), frames)


def show_training_images(result: Result, data: Dataset) -> None:
    """Write `real.png`: the first thing of a run to look at, also while it trains."""
    shown = random_subset(len(data.images), GRID, "real grid").to(data.images.device)
    write_grid(result.folder / "real.png", data.images[shown])


def samples_to_draw(config, data: Dataset) -> int:
    """--num-samples for --samples-file; without it, as many as can be scored and drawn."""
    if config.samples_file is not None:
        return config.num_samples
    return min(config.num_samples, max(len(data.test_images), GRID))


def evaluator_for(
    config, data: Dataset, n: int, known: Evaluator | None = None
) -> Evaluator | None:
    """The evaluator of `n` samples; None, with a sentence, where the data cannot carry one.

    That is: one class, too few held-out images, or too few samples. A `known` evaluator of as many
    samples is taken as it is.
    """
    n = min(n, len(data.test_images))
    if known is not None and known.n == n:
        return known
    if n < MIN_SAMPLES or len(data.classes) < 2:
        print(
            f"The samples are not scored: that takes two classes and {MIN_SAMPLES} held-out images "
            f"and samples; here are {len(data.classes)} and {n}."
        )
        return None
    return Evaluator(
        trained_classifier(data, config.output_dir, config.seed, config.quick), data, n
    )


def track(training: Training, evaluator: Evaluator, images: torch.Tensor) -> None:
    """Note the Fréchet distance and the coverage of `images` in the history of the training."""
    seen = features(evaluator.classifier, images[: evaluator.n])
    training.log(
        tracked_epoch=torch.tensor(training.epochs_done),
        tracked_distance=torch.tensor(frechet_distance(seen, evaluator.real)),
        tracked_coverage=torch.tensor(density_and_coverage(seen, evaluator.real)[1]),
    )


def add_quality(result: Result, training: Training, evaluator: Evaluator | None) -> None:
    """Enter the curve of what was tracked, if there are two points or more."""
    if evaluator is not None and len(training.curve("tracked_epoch")) > 1:
        caption = (
            f"Quality along the training: distance and coverage of {evaluator.n:,} samples. Fewer "
            "samples have a larger distance, real images too: compare with the two lines only."
        )
        result.add_figure("quality.png", plot_quality(training, evaluator), caption)


def plot_quality(training: Training, evaluator: Evaluator) -> Figure:
    """The tracked distance and coverage over the epochs, beside floor and memoriser."""
    figure, axes = figures.new_figure(9, 3.2, columns=2)
    epochs = training.curve("tracked_epoch")
    for axis, name, key, what in (
        (axes[0, 0], "tracked_distance", "frechet", "Fréchet distance"),
        (axes[0, 1], "tracked_coverage", "coverage", "coverage"),
    ):
        figures.plot_lines(axis, epochs, {"samples": training.curve(name)}, "epoch", what)
        for scores, label, style in (
            (evaluator.floor, "held-out real images", "--"),
            (evaluator.memoriser, "training images", ":"),
        ):
            if scores is not None:
                axis.axhline(
                    getattr(scores, key),
                    color="#666666",
                    linewidth=1.2,
                    linestyle=style,
                    label=label,
                )
        if epochs.max() > 3:
            axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 1].legend(loc="lower right")
    figures.log_scale(axes[0, 0])
    axes[0, 1].set_ylim(0, 1)
    return figure


def plot_loss(training: Training, ylabel: str) -> Figure:
    """The loss of a training over its epochs, in 150 means."""
    figure, axes = figures.new_figure(5, 3)
    epochs, loss = training.smoothed("loss", max(training.steps_done // 150, 1))
    figures.plot_lines(axes[0, 0], epochs, {"loss": loss}, "epoch", ylabel, markers=False)
    figures.log_scale(axes[0, 0])
    return figure


def plot_logged(
    axis,
    lines: dict[str, tuple[Training, str]],
    ylabel: str,
    points: int = 150,
    first_colour: int = 0,
    **style,
) -> None:
    """Named lines over the epochs: of each a training, and what it logged, in about `points` means."""
    for k, (label, (training, name)) in enumerate(lines.items(), start=first_colour):
        line = training.smoothed(name, max(training.steps_done // points, 1))
        axis.plot(*line, label=label, color=figures.PALETTE[k % len(figures.PALETTE)], **style)
    axis.set(xlabel="epoch", ylabel=ylabel)


def report_samples(
    result: Result,
    samples: torch.Tensor,
    evaluator: Evaluator | None,
    data: Dataset,
    training: Training | None = None,
    rows: Sequence[str] = (),
) -> Scores | None:
    """Enter a model's samples into its result: grid, scores, class histogram, nearest neighbours.

    The grid is also shown where `training`, which ends with it, is watched. `rows` are the names of its
    rows of ten.
    """
    path = result.add_file("samples.png", "Samples of the trained model, not picked.")
    write_grid(path, samples, training)
    if rows:
        named = dict(zip(rows, samples[:GRID].split(10), strict=False))
        figures.save_figure(figures.plot_rows(named), path)
    result.add_file("real.png", "Training images, to compare with.")
    show_training_images(result, data)
    scores = evaluator.scores(samples) if evaluator else None
    if evaluator and scores:
        evaluator.add_to(result, scores)
        caption = (
            "What the classifier reads in the samples, and in as many real images. It reads "
            f"{scores.surely_read:.0%} and {evaluator.floor.surely_read:.0%} of them surely, with a "
            f"confidence of {SURE:.0%} or more."
        )
        if not rows:  # else the classes were asked for
            caption += " A collapse onto few images would empty some classes."
        result.add_figure("classes.png", plot_class_shares(scores, evaluator, data), caption)
    report_neighbours(result, samples, data)
    return scores


def plot_class_shares(scores: Scores, evaluator: Evaluator, data: Dataset) -> Figure:
    """The classes that the classifier reads in the samples, beside those of held-out images."""
    figure, axes = figures.new_figure(7, 3)
    shown = {
        f"samples (n = {scores.n:,})": scores,
        f"held-out real images (n = {scores.n:,})": evaluator.floor,
    }
    shares = {name: own.class_shares for name, own in shown.items()}
    surely = {name: own.sure_shares for name, own in shown.items()}
    figures.class_histogram(axes[0, 0], shares, data.classes, surely)
    return figure


def report_neighbours(result: Result, samples: torch.Tensor, data: Dataset) -> None:
    """Enter the training images nearest to the first samples: the distance says what was memorised."""
    few = samples[:500].to(data.images.device)
    index, distance = nearest(few, data.images)
    rows = random_subset(len(data.test_images), len(few), "nearest").to(data.images.device)
    _, usual = nearest(varied_as_trained_on(data, data.test_images[rows]), data.images)
    usual = usual.median().item()
    name = "distance to the nearest training image"
    result.add_metric(name, distance.median(), len(few), floor=usual)
    # Evenly from all of them: of every class, where they come in order.
    ten = torch.linspace(0, len(few) - 1, min(10, len(few)), device=few.device).long()
    pairs = {"sample": few[ten], "nearest training image": data.images[index[ten]]}
    figure = figures.plot_rows(pairs, [f"{d:.3f}" for d in distance[ten].tolist()])
    caption = (
        "Samples, and the training image nearest to each. Above, the distance between them: root mean "
        "square of pixels from 0 to 1; at 0 a sample would be a copy. The median is "
        f"{distance.median().item():.3f}, of held-out images {usual:.3f}. Blurred samples are nearer to "
        "all images."
    )
    result.add_figure("neighbours.png", figure, caption)


def plot_comparison(samples: Mapping[str, torch.Tensor], scores: Mapping[str, Scores]) -> Figure:
    """36 samples of each model side by side, under its name and, where scored, its distance."""
    pictures = {}
    for name, images in samples.items():
        distance = f"\nFréchet distance {scores[name].frechet:,.0f}" if name in scores else ""
        pictures[name + distance] = figures.grid(images[:36], columns=6)
    return figures.plot_side_by_side(pictures, height=3.6)


def add_comparison(
    result: Result,
    file: str,
    titles: Mapping[str, str],
    drawn: Mapping[str, torch.Tensor],
    scores: Mapping[str, Scores],
    caption: str,
) -> None:
    """Enter `plot_comparison` of those of the `drawn` models, by name, that have a title."""
    pictures = {title: drawn[name] for name, title in titles.items()}
    scored = {title: scores[name] for name, title in titles.items() if name in scores}
    if scored:
        caption += f" Fréchet distances of {next(iter(scored.values())).n:,} samples."
    result.add_figure(file, plot_comparison(pictures, scored), caption)


States = list[tuple[int, torch.Tensor]]  # t and images (N, C, H, W) uint8


def add_trajectory(
    result: Result, reverse: States, forward: States | None = None, shown: int = 9
) -> None:
    """Enter samples on their way from noise to image, below the `forward` process of real images.

    A strip of `shown` columns, a row per image, and all states as an animation. The columns are nearer
    to each other towards t = 0, where the images change more.
    """
    n, shown = len(reverse[0][1]), min(shown, len(reverse))
    last = len(reverse) - 1
    # Numbers of states, counted from the image on. `max` keeps the first ones apart.
    chosen = [max(k, round(last * (k / max(shown - 1, 1)) ** 2)) for k in range(shown)]
    strips = {"forward process": [forward[i] for i in chosen]} if forward else {}
    strips["reverse process"] = [reverse[last - i] for i in reversed(chosen)]
    figure, axes = figures.new_figure(1.1 * shown, 1.05 * n * len(strips), len(strips), shown)
    for line, states in zip(axes, strips.values(), strict=True):
        for axis, (t, images) in zip(line, states, strict=True):
            figures.show_image(axis, figures.grid(images, columns=1), f"t = {t}")
    figures.name_rows(axes, list(strips))
    caption = f"The reverse process: {n} samples from pure noise (left) to the image (right)."
    if forward:
        caption = (
            f"Above, the forward process: {n} held-out images become noise. Below, the reverse process: "
            f"{n} samples begin as pure noise (left) and become images (right)."
        )
    result.add_figure("reverse_process.png", figure, caption)
    if forward:
        pairs = list(zip(forward, reverse, strict=True))
        pairs = [*pairs[:-1:2], pairs[-1]]  # every second one: noise makes large files
        frames = [both_processes(*states) for states in pairs]
    else:
        frames = [figures.grid(images, columns=n, scale=3) for _, images in reverse]
    caption = "The same as an animation" + (": forward beside reverse." if forward else ".")
    write_gif(result.add_file("reverse_process.gif", caption), frames, seconds_per_frame=0.2)


def both_processes(
    forward: tuple[int, torch.Tensor], reverse: tuple[int, torch.Tensor]
) -> np.ndarray:
    """A state (t, images) of the forward process beside one of the reverse process, with their t."""
    sheets = []
    for name, (t, images) in {"forward": forward, "reverse": reverse}.items():
        sheets.append(figures.titled(figures.grid(images, 2, scale=4), f"{name} process, t = {t}"))
    gap = np.full((len(sheets[0]), 24, *sheets[0].shape[2:]), 255, np.uint8)
    return np.concatenate([sheets[0], gap, sheets[1]], axis=1)


def sampled_only(
    script: str, title: str, folder: str, config, device, samples: torch.Tensor
) -> Result:
    """The result of --sample-only: a grid `drawn.png`; the trained run's results.json stays."""
    result = start_result(script, title, "", config, folder, device)
    write_grid(result.add_file("drawn.png", "Drawn from the checkpoint, not picked."), samples)
    write_samples(config.samples_file, samples)
    return result


def write_samples(path: Path | None, images: torch.Tensor) -> None:
    """Samples (N, C, H, W) uint8 into the .npz of --samples-file: `images`, N×H×W or N×H×W×3."""
    if path is None:
        return
    array = images.cpu().permute(0, 2, 3, 1).numpy()
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, images=array[..., 0] if array.shape[3] == 1 else array)
    print(f"{len(array):,} samples are in {path}.")
