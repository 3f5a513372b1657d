from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from imagelab.data.datasets import Dataset
from imagelab.report.evaluator import (
    MIN_SAMPLES,
    Evaluator,
    Scores,
    density_and_coverage,
    features,
    frechet_distance,
    kernel_distance,
    nearest,
    speckle,
)
from imagelab.report.results import Result
from imagelab.setup.runtime import UserError
from imagelab.techniques.classifier import DigitCNN, as_unit, digest, trained_classifier

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
def classifier(bars, tmp_path_factory) -> DigitCNN:
    return trained_classifier(bars, tmp_path_factory.mktemp("evaluator"))


@pytest.fixture(scope="module")
def evaluator(classifier, bars) -> Evaluator:
    return Evaluator(classifier, bars, 10_000)


def noise(n: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 1, 16, 16), generator=rng, dtype=torch.uint8)


def gaussian(n: int, dimensions: int, seed: int) -> torch.Tensor:
    """Draws in float64, so that a slow definition in numpy must agree to many digits."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, dimensions, generator=rng, dtype=torch.float64)


# --- the Fréchet distance -------------------------------------------------------------------------


def formula(a: torch.Tensor, b: torch.Tensor) -> float:
    """Heusel et al. (2017), equation 6."""
    x, y = a.double().numpy(), b.double().numpy()
    covariances = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0))
    means = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum()
    return means + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots.sum()


def test_features_are_those_before_the_last_layer(classifier, bars):
    seen = features(classifier, bars.images)
    assert seen.shape == (2 * N, 128)
    logits = classifier(as_unit(bars.images))
    assert torch.allclose(classifier.dense2(seen), logits, atol=1e-4)


def test_the_distance_is_the_closed_formula(classifier, bars):
    real = features(classifier, bars.images)
    for images in (bars.test_images, noise(N), noise(N + 57)):
        seen = features(classifier, images)
        expected = formula(seen, real)
        assert expected > 0
        assert frechet_distance(seen, real) == pytest.approx(expected, rel=1e-3)


def test_a_set_is_at_no_distance_from_itself(classifier, bars):
    x, y = features(classifier, bars.test_images), features(classifier, bars.images[:N])
    assert abs(frechet_distance(x, x)) < 1e-3 * frechet_distance(x, y)


def test_order_does_not_matter(classifier, bars):
    a, b = features(classifier, bars.test_images), features(classifier, bars.images)
    distance = frechet_distance(a, b)
    assert frechet_distance(a.flip(0), b.roll(100, 0)) == pytest.approx(distance, rel=1e-3)
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-3)


@pytest.mark.parametrize("few", [(MIN_SAMPLES - 1, N), (N, MIN_SAMPLES - 1), (0, 0)])
def test_too_few_images_are_refused(few):
    with pytest.raises(UserError, match=rf"at least 300.*not {min(few)}"):
        frechet_distance(gaussian(few[0], 8, 0), gaussian(few[1], 8, 1))


# --- the kernel distance --------------------------------------------------------------------------


def unbiased_mmd2(a: torch.Tensor, b: torch.Tensor) -> float:
    """Gretton et al. (2012), equation 3, with the kernel of Bińkowski et al. (2018)."""
    x, y = a.double().numpy(), b.double().numpy()
    n, dimensions = x.shape

    def kernel(u, v):
        return (u @ v.T / dimensions + 1) ** 3

    def off_diagonal(k):
        return (k.sum() - np.trace(k)) / (n * (n - 1))

    return off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean()


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_kernel_distance_of_one_subset_is_the_definition(shift):
    """Up to 1,000 features of each kind, every 'subset' is the whole set."""
    x, y = gaussian(500, 16, 0) + shift, gaussian(500, 16, 1)
    mean, spread = kernel_distance(x.float(), y.float())
    assert mean == pytest.approx(unbiased_mmd2(x, y), rel=1e-3, abs=1e-4)
    assert spread < 1e-4


def test_kernel_distance_of_features(classifier, bars):
    x, y = features(classifier, noise(N)), features(classifier, bars.test_images)
    expected = unbiased_mmd2(x, y)
    assert expected > 0
    assert kernel_distance(x, y)[0] == pytest.approx(expected, rel=1e-3)


def test_kernel_distance_of_many_is_the_mean_over_subsets():
    x, y = gaussian(1500, 8, 0) + 0.3, gaussian(1500, 8, 1)
    mean, spread = kernel_distance(x, y)
    assert spread > 0.01 * mean
    assert abs(mean - unbiased_mmd2(x, y)) < spread


class AsTheyAre(torch.nn.Module):
    """What torchmetrics asks for: a 'network' whose features are what it is given."""

    num_features = 16

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_both_distances_are_those_of_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    rng = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(n, 16, generator=rng) @ torch.randn(16, 16, generator=rng) for n in (1500, 1200)
    )
    theirs = (
        FrechetInceptionDistance(feature=AsTheyAre()),
        KernelInceptionDistance(AsTheyAre(), subsets=20, subset_size=1000),
    )
    for distance in theirs:
        distance.update(y, real=True)
        distance.update(x, real=False)
    assert frechet_distance(x, y) == pytest.approx(theirs[0].compute().item(), rel=1e-5)
    torch.manual_seed(0)  # it draws its subsets from the global generator
    expected = [value.item() for value in theirs[1].compute()]
    assert list(kernel_distance(x, y)) == pytest.approx(expected, rel=1e-3)


def test_kernel_distance_is_near_zero_for_one_distribution():
    x = gaussian(1600, 16, 0)
    here, _ = kernel_distance(x[:800], x[800:])
    there, _ = kernel_distance(x[:800] + 0.5, x[800:])
    assert abs(here) < 0.01 * there


def test_kernel_distance_neither_reads_nor_moves_the_global_generator():
    x, y = gaussian(1100, 4, 0), gaussian(1100, 4, 1)
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(kernel_distance(x, y))
        assert torch.equal(torch.get_rng_state(), before)
    assert results[0] == results[1]


# --- density and coverage -------------------------------------------------------------------------


def test_density_and_coverage_of_one_distribution():
    """Naeem et al. (2020), section 3.3: 1, and 1 − 2⁻ᵏ."""
    density, coverage = density_and_coverage(gaussian(2000, 8, 0), gaussian(2000, 8, 1))
    assert density == pytest.approx(1, abs=0.05)
    assert coverage == pytest.approx(1 - 2**-5, abs=0.012)


@pytest.mark.parametrize("k", [1, 5])
def test_density_and_coverage_by_definition(k):
    real, x = gaussian(1100, 3, 0), gaussian(400, 3, 1) * 1.3
    a, b = real.numpy(), x.numpy()
    among = np.linalg.norm(a[:, None] - a[None], axis=2)
    np.fill_diagonal(among, np.inf)
    radius = np.sort(among, axis=1)[:, k - 1]
    inside = np.linalg.norm(a[:, None] - b[None], axis=2) < radius[:, None]
    density, coverage = density_and_coverage(x, real, k)
    assert density == pytest.approx(inside.sum() / (k * len(b)), rel=1e-9)
    assert coverage == pytest.approx(inside.any(axis=1).mean(), rel=1e-6)
    assert 0.1 < coverage < 0.95


def test_a_dropped_mode_lowers_coverage_and_not_density():
    def two_modes(seed: int) -> torch.Tensor:
        x = gaussian(2000, 8, seed)
        x[::2] += 20
        return x

    real, sample = two_modes(0), two_modes(1)
    kept = torch.cat([sample[::2], two_modes(2)[::2]])
    _, both = density_and_coverage(sample, real)
    density, one = density_and_coverage(kept, real)
    assert both > 0.95 and one == pytest.approx(0.5, abs=0.02)
    assert density == pytest.approx(1, abs=0.1)


def test_points_far_away_have_neither():
    assert density_and_coverage(gaussian(500, 8, 0) + 100, gaussian(500, 8, 1)) == (0, 0)


def test_copies_of_one_real_point_are_dense_and_cover_little():
    real = gaussian(1000, 8, 0)
    middle = real[real.norm(dim=1).argmin()]
    density, coverage = density_and_coverage(middle.repeat(1000, 1), real)
    assert density > 1 and coverage < 0.05


def test_order_does_not_matter_to_density_and_coverage():
    x, real = gaussian(1500, 8, 0), gaussian(1500, 8, 1)
    assert density_and_coverage(x.flip(0), real.roll(700, 0)) == density_and_coverage(x, real)


# --- the evaluator ------------------------------------------------------------------------------------


def same(a: Scores, b: Scores) -> bool:
    """Equal up to the last bits of a product of matrices."""
    a, b = (
        [s.frechet, s.kid, s.density, s.coverage, s.surely_read, *s.class_shares] for s in (a, b)
    )
    return a == pytest.approx(b, rel=1e-4)


def test_real_images_score_like_the_floor_and_noise_far_off(evaluator, bars):
    real = evaluator.scores(bars.test_images)
    assert real.n == evaluator.n == N and same(real, evaluator.floor)
    assert real.coverage > 0.9 and real.surely_read > 0.9
    assert all(a <= b for a, b in zip(real.sure_shares, real.class_shares, strict=True))
    bad = evaluator.scores(noise(N))
    assert bad.frechet > 10 * real.frechet and bad.kid > 10 * abs(real.kid)
    assert bad.coverage < 0.1 and bad.density < 0.1


def test_the_first_n_samples_are_scored(classifier, bars):
    evaluator = Evaluator(classifier, bars, N)
    samples = torch.cat([bars.test_images, noise(50)])
    assert same(evaluator.scores(samples), evaluator.scores(bars.test_images))


def test_as_many_are_compared_as_there_are(classifier, bars):
    evaluator = Evaluator(classifier, bars, 10_000)
    assert evaluator.n == len(evaluator.real) == evaluator.memoriser.n == evaluator.floor.n == N
    more = Dataset("bars", "", bars.classes, bars.images, bars.labels, bars.images, bars.labels)
    assert Evaluator(classifier, more, 400).n == 400
    all_of_it = Evaluator(classifier, more, 10_000)
    assert all_of_it.n == 2 * N and all_of_it.memoriser is None  # no others are left


def test_a_memoriser_is_nearer_than_new_images_are(classifier, bars):
    """Held-out images of another kind of noise; the memoriser's are other training images."""
    strange = (255 - bars.test_images.float() / 3).to(torch.uint8)
    data = Dataset("bars", "", bars.classes, bars.images, bars.labels, strange, bars.test_labels)
    evaluator = Evaluator(classifier, data, N)
    assert evaluator.memoriser.frechet < 0.1 * evaluator.floor.frechet
    assert evaluator.memoriser.coverage > 0.9
    assert evaluator.memoriser.frechet > 0.01  # none of them is in the reference


def test_speckle_is_what_a_median_takes_away():
    flat = torch.full((3, 1, 12, 12), 90, dtype=torch.uint8)
    assert speckle(flat) == 0
    specked = flat.clone()
    specked[:, :, 2::5, 2::5] = 255  # four lone pixels of 144
    assert speckle(specked) == pytest.approx(4 / 144 * 165)
    thick = torch.zeros(1, 1, 12, 12, dtype=torch.uint8)
    thick[:, :, 4:8] = 255
    assert speckle(thick) == 0


def test_the_evaluator_is_named_by_data_and_weights(evaluator, classifier):
    assert evaluator.name == f"bars CNN {digest(classifier)}"


def test_shares_of_the_classes(evaluator, bars):
    for shares in (evaluator.scores(bars.test_images).class_shares, evaluator.floor.class_shares):
        assert sum(shares) == pytest.approx(1)
        assert shares == pytest.approx([1 / 3] * 3, abs=0.02)


def test_a_dropped_class_has_no_share_and_costs_distance_and_coverage(evaluator, bars):
    scores, floor = evaluator.scores(bars.images[bars.labels != 1]), evaluator.floor
    assert scores.class_shares[1] == 0 and sum(scores.class_shares) == pytest.approx(1)
    assert floor.class_shares[1] > 0.3
    assert scores.frechet > 3 * floor.frechet and scores.kid > 3 * abs(floor.kid)
    assert scores.coverage < floor.coverage - 0.25
    assert scores.entropy == pytest.approx(math.log(2) / math.log(3), abs=0.01)


def test_entropy_of_the_shares():
    def entropy(shares: list[float]) -> float:
        return Scores(1, 0, 0, 0, 0, 0, shares, shares, 0).entropy

    assert entropy([0.1] * 10) == pytest.approx(1) and entropy([0, 1, 0]) == 0
    assert entropy([0.5, 0.5, 0, 0]) == pytest.approx(0.5)


def test_the_references_do_not_depend_on_the_global_seed(classifier, bars):
    judges = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        judges.append(Evaluator(classifier, bars, N))
    first, second = judges
    assert torch.allclose(first.real, second.real, rtol=1e-4, atol=1e-3)
    assert same(first.floor, second.floor) and same(first.scores(noise(N)), second.scores(noise(N)))


def test_scores_enter_a_result_with_their_floors(evaluator, bars):
    scores, floor = evaluator.scores(bars.images[bars.labels != 1]), evaluator.floor
    run = Result("demo", "A demo", "", Path("nowhere"), {}, 0, "cpu")
    evaluator.add_to(run, scores, "GAN: ")
    assert run.evaluator == evaluator.name
    for name, value, least, better in (
        ("Fréchet distance", scores.frechet, floor.frechet, "lower"),
        ("kernel distance", scores.kid, floor.kid, "lower"),
        ("density", scores.density, floor.density, "higher"),
        ("coverage", scores.coverage, floor.coverage, "higher"),
        ("rarest class", 0, min(floor.class_shares), "higher"),
        ("surely read", scores.surely_read, floor.surely_read, None),
        ("speckle", scores.speckle, floor.speckle, None),
    ):
        metric = run.metrics[f"GAN: {name}"]
        assert (metric.value, metric.floor, metric.better) == (value, least, better)
        assert metric.n == N and metric.memoriser is not None
    assert run.metrics["GAN: coverage"].memoriser == evaluator.memoriser.coverage
    assert run.metrics["GAN: rarest class"].floor > 0.3


# --- the nearest training images ------------------------------------------------------------------


def test_copies_of_training_images_are_found_wherever_they_lie():
    training = noise(11_000)
    rows = torch.tensor([10_999, 0, 4_999, 5_000, 9_999, 10_000, 42])
    index, distance = nearest(training[rows], training)
    assert torch.equal(index, rows)
    assert distance.max() < 1e-3  # a quarter of a grey level: what float32 products leave of 0


def test_nearest_agrees_with_brute_force():
    training, images = noise(5_300), noise(5_340)[5_300:]
    every = (images[:, None].double() - training[None].double()).div(255).square()
    expected, row = every.flatten(2).mean(dim=2).sqrt().min(dim=1)
    index, distance = nearest(images, training)
    assert torch.equal(index, row) and len(row.unique()) > 20
    assert torch.allclose(distance.double(), expected, atol=1e-5)


def test_distance_is_the_root_mean_square_of_pixels_in_unit_range():
    black, grey = torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.full((1, 3, 8, 8), 51)
    index, distance = nearest(black, grey.to(torch.uint8))
    assert index.tolist() == [0] and distance.item() == pytest.approx(0.2)
