"""How good a set of samples is, in the features of this project's own classifier.

The distances are never called FID or KID without their feature network: Inception's features, in
which the published figures are measured, mean nothing on digits. Each stands beside its floor, the
same figure for held-out real images at the same n.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from imagelab.classifier import DigitCNN, as_unit, digest, predict
from imagelab.datasets import Dataset, random_subset
from imagelab.results import Result
from imagelab.runtime import UserError

MIN_SAMPLES = 300  # a covariance of 128 features needs more samples than that


@dataclass
class SampleScores:
    """Figures for `n` samples; the floors are those of `n` held-out real images."""

    n: int
    frechet: float
    frechet_floor: float
    class_shares: list[float]
    real_class_shares: list[float]
    confidence: float
    judge: str

    def add_to(self, result: Result, prefix: str = "") -> None:
        """Enter the figures into a result, their names led by `prefix`."""
        result.judge = self.judge
        result.add_metric(
            f"{prefix}Fréchet distance",
            self.frechet,
            self.n,
            better="lower",
            floor=self.frechet_floor,
        )
        result.add_metric(
            f"{prefix}rarest class",
            min(self.class_shares),
            self.n,
            better="higher",
            floor=min(self.real_class_shares),
        )
        result.add_metric(f"{prefix}mean confidence", self.confidence, self.n)


class _Features(nn.Module):
    """The classifier's features of uint8 images, in the form that torchmetrics asks for."""

    def __init__(self, classifier: DigitCNN) -> None:
        super().__init__()
        self.classifier, self.num_features = classifier, classifier.num_features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier.features(as_unit(images))


@torch.no_grad()
def frechet_distance(classifier: DigitCNN, images: torch.Tensor, real: torch.Tensor) -> float:
    """|μ₁ − μ₂|² + Tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) of the features (Heusel et al. 2017, eq. 6), in float64.

    Both sets (N, C, H, W) uint8. It is biased in N: compare only equal numbers of images.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    if min(len(images), len(real)) < MIN_SAMPLES:
        raise UserError(
            f"A Fréchet distance needs at least {MIN_SAMPLES} images of each kind, not "
            f"{min(len(images), len(real))}: raise --num-samples."
        )
    distance = FrechetInceptionDistance(feature=_Features(classifier)).to(images.device)
    for part in real.split(250):
        distance.update(part, real=True)
    for part in images.split(250):
        distance.update(part, real=False)
    return distance.compute().item()


def score_samples(classifier: DigitCNN, samples: torch.Tensor, data: Dataset) -> SampleScores:
    """Score uint8 samples (N, C, H, W) against as many training images of `data`."""
    n = min(len(samples), len(data.images), len(data.test_images))
    device = data.images.device
    real = data.images[random_subset(len(data.images), n, "reference images").to(device)]
    rows = random_subset(len(data.test_images), n, "held-out reference images").to(device)
    held_out = data.test_images[rows]
    probabilities = predict(classifier, samples[:n])
    return SampleScores(
        n=n,
        frechet=frechet_distance(classifier, samples[:n].to(device), real),
        frechet_floor=frechet_distance(classifier, held_out, real),
        class_shares=_shares(probabilities),
        real_class_shares=_shares(predict(classifier, held_out)),
        confidence=probabilities.max(dim=1).values.mean().item(),
        judge=f"{data.name} CNN {digest(classifier)}",
    )


def _shares(probabilities: torch.Tensor) -> list[float]:
    counts = torch.bincount(probabilities.argmax(dim=1), minlength=probabilities.shape[1])
    return (counts / len(probabilities)).tolist()
