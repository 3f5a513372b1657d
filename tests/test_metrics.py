from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from imagelab.classifier import DigitCNN, as_unit, digest, trained_classifier
from imagelab.datasets import Dataset
from imagelab.metrics import MIN_SAMPLES, frechet_distance, score_samples
from imagelab.results import Result
from imagelab.runtime import UserError

N = 300


@pytest.fixture(scope="module")
def bars() -> Dataset:
    """Three classes by which third is bright, in varying brightness, plus noise."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(3 * N) % 3
    images = torch.randint(0, 60, (3 * N, 1, 16, 16), generator=rng, dtype=torch.uint8)
    bright = torch.randint(60, 190, (3 * N, 1, 1, 1), generator=rng, dtype=torch.uint8)
    columns = torch.arange(16) * 3 // 16
    images += bright * (columns == labels[:, None, None, None])
    return Dataset("bars", "made by the tests", ("a", "b", "c"),
                   images[: 2 * N], labels[: 2 * N], images[2 * N :], labels[2 * N :])  # fmt: skip


@pytest.fixture(scope="module")
def judge(bars, tmp_path_factory) -> DigitCNN:
    return trained_classifier(bars, tmp_path_factory.mktemp("judge"))


def noise(n: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 1, 16, 16), generator=rng, dtype=torch.uint8)


def formula(judge: DigitCNN, a: torch.Tensor, b: torch.Tensor) -> float:
    """Heusel et al. (2017), equation 6."""
    x, y = (judge.features(as_unit(images)).double().numpy() for images in (a, b))
    covariances = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0))
    means = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum()
    return means + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots.sum()


def test_the_distance_is_the_closed_formula(judge, bars):
    for images in (bars.test_images, noise(N), noise(N + 57)):
        expected = formula(judge, images, bars.images)
        assert expected > 0
        assert frechet_distance(judge, images, bars.images) == pytest.approx(expected, rel=1e-3)


def test_a_set_is_at_no_distance_from_itself(judge, bars):
    other = frechet_distance(judge, bars.test_images, bars.images[:N])
    assert abs(frechet_distance(judge, bars.test_images, bars.test_images)) < 1e-3 * other


def test_order_does_not_matter(judge, bars):
    a, b = bars.test_images, bars.images
    distance = frechet_distance(judge, a, b)
    assert frechet_distance(judge, a.flip(0), b.roll(100, 0)) == pytest.approx(distance, rel=1e-3)
    assert frechet_distance(judge, b, a) == pytest.approx(distance, rel=1e-3)


@pytest.mark.parametrize("few", [(MIN_SAMPLES - 1, N), (N, MIN_SAMPLES - 1), (0, 0)])
def test_too_few_images_are_refused(judge, bars, few):
    with pytest.raises(UserError, match=rf"at least 300.*not {min(few)}"):
        frechet_distance(judge, bars.images[: few[0]], bars.images[: few[1]])


def test_real_images_score_like_the_floor_and_noise_far_above(judge, bars):
    real = score_samples(judge, bars.test_images, bars)
    assert real.n == N and real.judge == f"bars CNN {digest(judge)}"
    assert real.frechet == pytest.approx(real.frechet_floor, rel=1e-3)
    assert real.confidence > 0.9
    bad = score_samples(judge, noise(N), bars)
    assert bad.frechet_floor == real.frechet_floor
    assert bad.frechet > 10 * bad.frechet_floor


def test_shares_of_the_classes(judge, bars):
    scores = score_samples(judge, bars.test_images, bars)
    for shares in (scores.class_shares, scores.real_class_shares):
        assert sum(shares) == pytest.approx(1)
        assert shares == pytest.approx([1 / 3] * 3, abs=0.02)


def test_a_dropped_class_has_no_share_and_costs_distance(judge, bars):
    kept = bars.images[bars.labels != 1]
    scores = score_samples(judge, kept, bars)
    assert scores.class_shares[1] == 0 and sum(scores.class_shares) == pytest.approx(1)
    assert scores.real_class_shares[1] > 0.3
    assert scores.frechet > 3 * scores.frechet_floor


def test_the_references_do_not_depend_on_the_global_seed(judge, bars):
    torch.manual_seed(1)
    first = score_samples(judge, noise(N), bars)
    torch.manual_seed(2)
    assert score_samples(judge, noise(N), bars) == first


def test_scores_enter_a_result_with_their_floors(judge, bars):
    scores = score_samples(judge, bars.images[bars.labels != 1], bars)
    run = Result("demo", "A demo", "", Path("nowhere"), {}, 0, "cpu")
    scores.add_to(run, "GAN: ")
    distance, rarest = run.metrics["GAN: Fréchet distance"], run.metrics["GAN: rarest class"]
    assert (distance.value, distance.floor) == (scores.frechet, scores.frechet_floor)
    assert (distance.n, distance.better) == (N, "lower")
    assert (rarest.value, rarest.better) == (0, "higher") and rarest.floor > 0.3
    assert run.metrics["GAN: mean confidence"].value == scores.confidence
    assert run.judge == scores.judge
