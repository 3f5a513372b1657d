"""What every generator does with its samples: grids, the .npz file, the scores and their figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from imagelab import figures
from imagelab.datasets import Dataset
from imagelab.files import atomic_path
from imagelab.metrics import SampleScores
from imagelab.pictures import write_png
from imagelab.results import Result, start_result

GRID = 100  # images in a grid, ten by ten


def write_grid(path: Path, images: torch.Tensor) -> None:
    """The first hundred of `images` (N, C, H, W) uint8, ten by ten."""
    write_png(path, figures.grid(images[:GRID], columns=10))


def report_samples(
    result: Result, samples: torch.Tensor, scores: SampleScores, data: Dataset
) -> None:
    """Enter the scores, the grid and the class histogram of a model's samples into its result."""
    scores.add_to(result)
    write_grid(result.add_file("samples.png", "Samples of the trained model, not picked."), samples)
    every = max(len(data.images) // GRID, 1)
    real = result.add_file("real.png", "Training images, to compare with.")
    write_grid(real, data.images[::every])
    figure, axes = figures.new_figure(7, 3)
    shares = {"samples": scores.class_shares, "held-out real images": scores.real_class_shares}
    figures.class_histogram(axes[0, 0], shares, data.classes)
    axes[0, 0].set_title(f"n = {scores.n:,} each")
    path = result.add_file("classes.png", "What the classifier reads in the samples: a collapse "
                           "would empty some classes.")  # fmt: skip
    figures.save_figure(figure, path)


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
