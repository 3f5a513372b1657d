"""How good a set of samples is.

Samples are measured in the features of this project's own classifier, trained on the data set in use
and named by a hash of its weights. The distances are never called FID or KID without it: Inception's
features, in which the published figures are measured, mean nothing on digits. Each figure stands
beside two others at the same n: its floor, of held-out real images, and the memoriser's line, of
training images, which a model reaches that learns them by heart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from imagelab.data.embedded import varied_as_trained_on
from imagelab.data.tensors import Dataset, random_subset, unit
from imagelab.report.results import Result
from imagelab.setup.runtime import UserError
from imagelab.setup.terminal import tell_if_silent
from imagelab.techniques.classifier import DigitCNN, as_unit, digest

MIN_SAMPLES = 300  # a covariance of 128 features needs more samples than that
NEIGHBOURS = 5  # k of density and coverage
SURE = 0.99  # the confidence from which an image counts as surely read


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
    sure_shares: list[float]
    """The share of each class that the classifier reads with a confidence of at least SURE."""
    speckle: float
    """What a median of 3×3 pixels takes away, in grey levels of 255: specks, and thin strokes."""

    @property
    def surely_read(self) -> float:
        """The share that the classifier reads with a confidence of at least SURE."""
        return sum(self.sure_shares)

    @property
    def entropy(self) -> float:
        """Entropy of the class shares, as a share of the most that there can be, log(classes)."""
        shares = torch.tensor(self.class_shares)
        return (torch.special.entr(shares).sum() / np.log(len(shares))).item()


class Evaluator:
    """The classifier of a data set, and what it sees in `n` training images, the reference.

    `floor` holds the scores of `n` held-out images, varied as the training images are: what new images
    of the same kind reach. `memoriser` holds those of `n` other training images (None where there are not
    as many): what images reach that were learnt by heart.
    """

    def __init__(self, classifier: DigitCNN, data: Dataset, n: int) -> None:
        self.classifier = classifier
        self.n = min(n, len(data.images), len(data.test_images))
        self.name = f"{data.name} CNN {digest(classifier)}"
        device = data.images.device
        rows = random_subset(len(data.images), 2 * self.n, "reference images").to(device)
        self.real = features(classifier, data.images[rows[: self.n]])
        held_out = random_subset(len(data.test_images), self.n, "held-out reference images")
        held_out = data.test_images[held_out.to(device)]
        self.floor = self.scores(varied_as_trained_on(data, held_out))
        others = data.images[rows[self.n :]]
        self.memoriser = self.scores(others) if len(others) == self.n else None

    def scores(self, samples: torch.Tensor) -> Scores:
        """Score the first `n` of uint8 samples (N, C, H, W)."""
        tell_if_silent(f"Scoring {self.n:,} images.")
        seen = features(self.classifier, samples[: self.n].to(self.real.device))
        density, coverage = density_and_coverage(seen, self.real)
        probabilities = self.classifier.dense2(seen).softmax(dim=1)
        confidence, read = probabilities.max(dim=1)
        counts, sure = (
            torch.bincount(classes, minlength=probabilities.shape[1])
            for classes in (read, read[confidence >= SURE])
        )
        return Scores(
            len(seen),
            frechet_distance(seen, self.real),
            *kernel_distance(seen, self.real),
            density,
            coverage,
            (counts / len(seen)).tolist(),
            (sure / len(seen)).tolist(),
            speckle(samples[: self.n]),
        )

    def add_table(
        self,
        result: Result,
        caption: str,
        scored: dict[str, tuple[str, Scores]],
        as_metrics: bool = False,
    ) -> None:
        """Enter a table of recipes by name, each with its epochs and scores; below them real images.

        With `as_metrics` the distance of each also becomes a metric.
        """
        real = {"held-out real images (floor)": self.floor}
        if self.memoriser is not None:
            real["training images (memoriser)"] = self.memoriser
        rows = [
            [name, epochs, s.frechet, s.coverage, min(s.class_shares), s.surely_read, s.speckle]
            for name, (epochs, s) in (scored | {name: ("", s) for name, s in real.items()}).items()
        ]
        columns = [
            "recipe",
            "epochs",
            "Fréchet distance",
            "coverage",
            "rarest class",
            "surely read",
            "speckle",
        ]
        result.add_table(f"{caption}, n = {self.n:,}", columns, rows)
        more = {"better": "lower", "floor": self.floor.frechet}
        for name, (_, scores) in scored.items() if as_metrics else ():
            result.add_metric(f"{name}: Fréchet distance", scores.frechet, self.n, **more)

    def add_to(self, result: Result, scores: Scores, prefix: str = "") -> None:
        """Enter scores into a result, with floor and memoriser and their names led by `prefix`."""
        result.evaluator = self.name
        for name, value, better in (
            ("Fréchet distance", lambda s: s.frechet, "lower"),
            ("kernel distance", lambda s: s.kid, "lower"),
            ("density", lambda s: s.density, "higher"),
            ("coverage", lambda s: s.coverage, "higher"),
            ("rarest class", lambda s: min(s.class_shares), "higher"),
            ("surely read", lambda s: s.surely_read, None),  # noise can be read surely
            ("speckle", lambda s: s.speckle, None),
        ):
            result.add_metric(
                f"{prefix}{name}",
                value(scores),
                scores.n,
                floor=value(self.floor),
                memoriser=self.memoriser and value(self.memoriser),
                better=better,
            )


# --- distances between two sets, in features (N, D) -----------------------------------------------


@torch.no_grad()
def features(classifier: DigitCNN, images: torch.Tensor) -> torch.Tensor:
    """The classifier's 128 features (N, 128) of uint8 images (N, C, H, W)."""
    return torch.cat([classifier.features(as_unit(part)) for part in images.split(250)])


def frechet_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """|μ₁ − μ₂|² + Tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) of features (N, D) (Heusel et al. 2017, eq. 6).

    In float64. It is biased in N: compare only equal numbers of images. UserError below 300.
    """
    if min(len(x), len(y)) < MIN_SAMPLES:
        raise UserError(
            f"A Fréchet distance needs at least {MIN_SAMPLES} images of each kind, not "
            f"{min(len(x), len(y))}: raise --num-samples."
        )
    (mean_x, cov_x), (mean_y, cov_y) = (
        (f.mean(dim=0), f.T.cov()) for f in (x.double(), y.double())
    )
    # The trace of a root is the sum of the roots of the eigenvalues.
    root = torch.linalg.eigvals(cov_x @ cov_y).sqrt().real.sum()
    means = (mean_x - mean_y).square().sum()
    return (means + cov_x.trace() + cov_y.trace() - 2 * root).item()


def kernel_distance(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Mean and spread over random subsets of the squared MMD, kernel (xᵀy/D + 1)³ (KID).

    Unbiased in N (Bińkowski et al. 2018), so that a perfect generator's is 0 on average. 20 subsets of
    1,000; where there are no more than these, all are one, and the spread is 0.
    """
    size, found = min(len(x), len(y), 1000), []
    rng = torch.Generator().manual_seed(0)
    for _ in range(1 if size == len(x) == len(y) else 20):
        b, a = (f[torch.randperm(len(f), generator=rng)[:size].to(f.device)] for f in (y, x))
        aa, bb, ab = ((f @ g.T / x.shape[1] + 1) ** 3 for f, g in ((a, a), (b, b), (a, b)))
        within = aa.sum() - aa.trace() + bb.sum() - bb.trace()  # of pairs of two images
        found.append(within / (size * (size - 1)) - 2 * ab.mean())
    distances = torch.stack(found)
    return distances.mean().item(), distances.std(correction=0).item()


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


# --- what no classifier sees ----------------------------------------------------------------------


def speckle(images: torch.Tensor) -> float:
    """The mean change that a median of 3×3 pixels makes, in grey levels, of uint8 (N, C, H, W).

    Lone bright pixels, which a classifier's features hardly see, vanish in the median. So do thin
    strokes: compare it with that of real images.
    """
    changes = []
    for part in map(torch.Tensor.float, images.split(1000)):
        edged = torch.nn.functional.pad(part, (1, 1, 1, 1), mode="replicate")
        windows = edged.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)  # (N, C, H, W, 9)
        changes.append((part - windows.median(dim=4).values).abs().mean(dim=(1, 2, 3)))
    return torch.cat(changes).mean().item()


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
