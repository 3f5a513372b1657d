"""What every generator does with its samples: grids, the .npz file, the scores and their figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from imagelab import figures
from imagelab.classifier import trained_classifier
from imagelab.datasets import Dataset, random_subset
from imagelab.files import atomic_path
from imagelab.metrics import MIN_SAMPLES, SampleScores, score_samples
from imagelab.pictures import write_gif, write_png
from imagelab.results import Result, start_result

GRID = 100  # images in a grid, ten by ten


def write_grid(path: Path, images: torch.Tensor) -> None:
    """The first hundred of `images` (N, C, H, W) uint8, ten by ten."""
    write_png(path, figures.grid(images[:GRID], columns=10))


def score_models(
    config, data: Dataset, samples: dict[str, torch.Tensor]
) -> dict[str, SampleScores]:
    """Scores of each model's samples, judged by the classifier of `data`, by the model's name.

    Empty, with a sentence, where the data cannot carry them: one class, too few held-out images or
    too few samples.
    """
    n = min(len(data.test_images), *(len(images) for images in samples.values()))
    if n < MIN_SAMPLES or len(data.classes) < 2:
        print(f"The samples are not scored: that takes two classes and {MIN_SAMPLES} held-out images "
              f"and samples; here are {len(data.classes)} and {n}.")  # fmt: skip
        return {}
    classifier = trained_classifier(data, config.output_dir, config.seed, config.quick)
    return {name: score_samples(classifier, images, data) for name, images in samples.items()}


def report_samples(
    result: Result, samples: torch.Tensor, scores: SampleScores | None, data: Dataset
) -> None:
    """Enter the scores, the grid and the class histogram of a model's samples into its result."""
    write_grid(result.add_file("samples.png", "Samples of the trained model, not picked."), samples)
    real = result.add_file("real.png", "Training images, to compare with.")
    rows = random_subset(len(data.images), GRID, "real grid").to(data.images.device)
    write_grid(real, data.images[rows])
    if scores is None:
        return
    scores.add_to(result)
    figure, axes = figures.new_figure(7, 3)
    shares = {
        f"samples (n = {scores.n:,})": scores.class_shares,
        f"held-out real images (n = {scores.n:,})": scores.real_class_shares,
    }
    figures.class_histogram(axes[0, 0], shares, data.classes)
    path = result.add_file("classes.png", "What the classifier reads in the samples: a collapse "
                           "would empty some classes.")  # fmt: skip
    figures.save_figure(figure, path)


def draw_comparison(
    path: Path, samples: dict[str, torch.Tensor], scores: dict[str, SampleScores]
) -> None:
    """36 samples of each model side by side, under its name and, where scored, its distance."""
    pictures = {}
    for name, images in samples.items():
        distance = f"\ndistance {scores[name].frechet:,.0f}" if name in scores else ""
        pictures[name + distance] = figures.grid(images[:36], columns=6)
    figures.side_by_side(path, pictures, height=3.6)


def draw_trajectory(result: Result, states: list[tuple[int, torch.Tensor]], shown: int = 9) -> None:
    """Samples on their way: `states` are (t, images (N, C, H, W) uint8) from start to end.

    A strip of `shown` columns, a row per sample, and all states as an animation.
    """
    chosen = [states[round(i)] for i in np.linspace(0, len(states) - 1, shown)]
    columns = {f"t = {t}": figures.grid(images, columns=1, scale=1) for t, images in chosen}
    path = result.add_file(
        "reverse_process.png",
        f"{len(states[0][1])} samples from the start of sampling (left) to the image (right).",
    )
    figures.side_by_side(path, columns, height=5.6)
    frames = [figures.grid(images, columns=len(images), scale=3) for _, images in states]
    path = result.add_file("reverse_process.gif", "The same, step by step.")
    write_gif(path, frames, seconds_per_frame=0.08)


def draw_only(
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
