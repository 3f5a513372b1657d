"""How good a set of samples is, and how alike two pictures are.

Samples are measured in the features of this project's own classifier, trained on the data set in use
and named by a hash of its weights. The distances are never called FID or KID without it: Inception's
features, in which the published figures are measured, mean nothing on digits. Each figure stands
beside its floor, the same figure for held-out real images at the same n.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from imagelab.classifier import DigitCNN, as_unit, digest
from imagelab.datasets import Dataset, random_subset, unit
from imagelab.results import Result
from imagelab.runtime import UserError

MIN_SAMPLES = 300  # a covariance of 128 features needs more samples than that
NEIGHBOURS = 5  # k of density and coverage


@dataclass
class Scores:
    """Figures for one set of `n` images."""

    n: int
    frechet: float
    kid: float
    """The kernel distance, the mean over subsets; `kid_spread` is its standard deviation."""
    kid_spread: float
    density: float
    coverage: float
    class_shares: list[float]
    confidence: float

    @property
    def entropy(self) -> float:
        """Entropy of the class shares, as a share of the most that there can be, log(classes)."""
        shares = torch.tensor(self.class_shares)
        return (torch.special.entr(shares).sum() / np.log(len(shares))).item()


class Judge:
    """The classifier of a data set, and what it sees in `n` training and `n` held-out images.

    `floor` holds the scores of the held-out images: what a perfect generator would reach.
    """

    def __init__(self, classifier: DigitCNN, data: Dataset, n: int) -> None:
        self.classifier = classifier
        self.n = min(n, len(data.images), len(data.test_images))
        self.name = f"{data.name} CNN {digest(classifier)}"
        device = data.images.device
        rows = random_subset(len(data.images), self.n, "reference images").to(device)
        self.real = features(classifier, data.images[rows])
        rows = random_subset(len(data.test_images), self.n, "held-out reference images")
        self.held_out = data.test_images[rows.to(device)]
        self.floor = self.scores(self.held_out)

    def scores(self, samples: torch.Tensor) -> Scores:
        """Score the first `n` of uint8 samples (N, C, H, W)."""
        seen = features(self.classifier, samples[: self.n].to(self.real.device))
        density, coverage = density_and_coverage(seen, self.real)
        probabilities = self.classifier.dense2(seen).softmax(dim=1)
        counts = torch.bincount(probabilities.argmax(dim=1), minlength=probabilities.shape[1])
        return Scores(
            len(seen),
            frechet_distance(seen, self.real),
            *kernel_distance(seen, self.real),
            density,
            coverage,
            (counts / len(seen)).tolist(),
            probabilities.max(dim=1).values.mean().item(),
        )

    def add_to(self, result: Result, scores: Scores, prefix: str = "") -> None:
        """Enter scores into a result, with their floors and their names led by `prefix`."""
        result.judge = self.name
        floor = self.floor
        for name, value, least, better in (
            ("Fréchet distance", scores.frechet, floor.frechet, "lower"),
            ("kernel distance", scores.kid, floor.kid, "lower"),
            ("density", scores.density, floor.density, "higher"),
            ("coverage", scores.coverage, floor.coverage, "higher"),
            ("rarest class", min(scores.class_shares), min(floor.class_shares), "higher"),
            ("mean confidence", scores.confidence, floor.confidence, None),
        ):
            result.add_metric(f"{prefix}{name}", value, scores.n, floor=least, better=better)


# --- distances between two sets, in features (N, D) -----------------------------------------------


@torch.no_grad()
def features(classifier: DigitCNN, images: torch.Tensor) -> torch.Tensor:
    """The classifier's 128 features (N, 128) of uint8 images (N, C, H, W)."""
    return torch.cat([classifier.features(as_unit(part)) for part in images.split(250)])


class _AsTheyAre(nn.Module):
    """What torchmetrics asks for: a 'network' whose features are what it is given."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def frechet_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """|μ₁ − μ₂|² + Tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) of features (N, D) (Heusel et al. 2017, eq. 6).

    In float64. It is biased in N: compare only equal numbers of images. UserError below 300.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    if min(len(x), len(y)) < MIN_SAMPLES:
        raise UserError(f"A Fréchet distance needs at least {MIN_SAMPLES} images of each kind, not "
                        f"{min(len(x), len(y))}: raise --num-samples.")  # fmt: skip
    network = _AsTheyAre(x.shape[1])
    # Under torchrun one process scores alone: it must not wait for the others.
    distance = FrechetInceptionDistance(feature=network, sync_on_compute=False).to(x.device)
    distance.update(y, real=True)
    distance.update(x, real=False)
    return distance.compute().item()


def kernel_distance(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Mean and spread over random subsets of the squared MMD, kernel (xᵀy/D + 1)³ (KID).

    Unbiased in N (Bińkowski et al. 2018), so that a perfect generator's is 0 on average.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(len(x), len(y), 1000)
    with warnings.catch_warnings():  # it announces that it keeps the features: a few megabytes here
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save")
        distance = KernelInceptionDistance(
            _AsTheyAre(x.shape[1]), subsets=20, subset_size=size, sync_on_compute=False
        )
    distance = distance.to(x.device)
    distance.update(y, real=True)
    distance.update(x, real=False)
    with torch.random.fork_rng():  # torchmetrics draws the subsets from the global generator
        torch.manual_seed(0)
        mean, spread = distance.compute()
    return mean.item(), spread.item()


def density_and_coverage(x: torch.Tensor, real: torch.Tensor, k: int = NEIGHBOURS):
    """How thickly samples lie among real images, and how many of these have one near (floats).

    'Near' is within the ball of a real image that reaches its k-th real neighbour. Identical
    distributions have a density of 1 and a coverage of about 1 − 2⁻ᵏ (Naeem et al. 2020).
    """
    near = torch.zeros(len(real), device=real.device)
    total = 0.0
    for rows in torch.arange(len(real), device=real.device).split(1000):
        # The nearest of the real images is the image itself.
        radius = torch.cdist(real[rows], real).topk(k + 1, largest=False).values[:, -1:]
        inside = torch.cdist(real[rows], x) < radius
        near[rows] = inside.any(dim=1).float()
        total += inside.sum().item()
    return total / (k * len(x)), near.mean().item()


# --- the nearest training images ------------------------------------------------------------------


def nearest(images: torch.Tensor, training: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each image the index of the nearest training image and the distance to it, (N,) each.

    Both uint8 (N, C, H, W); the distance is the root mean square over pixels in [0, 1]. A
    generator that has learnt images by heart draws some at a distance near 0.
    """
    x = unit(images).flatten(1)
    best = torch.full((len(x),), torch.inf, device=x.device)
    index = torch.zeros(len(x), dtype=torch.long, device=x.device)
    for start in range(0, len(training), 5000):
        y = unit(training[start : start + 5000]).flatten(1)
        distance, row = torch.cdist(x, y).min(dim=1)
        index = torch.where(distance < best, row + start, index)
        best = torch.minimum(distance, best)
    return index, best / x.shape[1] ** 0.5


# --- pairs of pictures ----------------------------------------------------------------------------


def psnr(original: np.ndarray, picture: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1]; infinite where they are equal."""
    from skimage.metrics import peak_signal_noise_ratio

    if np.array_equal(original, picture):
        return float("inf")
    return float(peak_signal_noise_ratio(original, picture, data_range=1.0))


def ssim(original: np.ndarray, picture: np.ndarray) -> float:
    """Structural similarity of pictures (H, W) or (H, W, 3) in [0, 1].

    That of Wang et al. (2004) with scikit-image's window, 7 by 7 pixels that count alike.
    """
    from skimage.metrics import structural_similarity

    channels = 2 if original.ndim == 3 else None
    return float(structural_similarity(original, picture, data_range=1.0, channel_axis=channels))


def mean_psnr(images: torch.Tensor, originals: torch.Tensor) -> float:
    """The mean over images (N, C, H, W) in [0, 1] of each one's peak signal-to-noise ratio, in dB."""
    mse = (images - originals).square().flatten(1).mean(dim=1)
    return (-10 * mse.log10()).mean().item()


@torch.no_grad()
def mean_ssim(images: torch.Tensor, originals: torch.Tensor) -> float:
    """The mean structural similarity of many small images (N, C, H, W) in [0, 1].

    With the Gaussian window of Wang et al. (2004), 11 pixels wide.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    parts = [
        structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
        for a, b in zip(images.split(500), originals.split(500), strict=True)
    ]
    return torch.cat([part.reshape(-1) for part in parts]).mean().item()
