from __future__ import annotations

import math

import pytest
import torch

from imagelab.datasets import signed
from imagelab.mixture import draw_gaussians, fit_gaussians


@pytest.fixture(scope="module")
def patches(stripes) -> torch.Tensor:
    """Six by six pixels across the middle of each image: 36 numbers, fewer than the images."""
    return stripes.images[:, :, 11:17, 11:17].contiguous()


def sorted_by_share(gaussians: dict) -> dict:
    order = gaussians["share"].argsort()
    return {name: value[order] for name, value in gaussians.items()}


def test_shapes_and_shares(stripes):
    fit = fit_gaussians(stripes.images, clusters=5, seed=0, rank=8)
    assert fit["mean"].shape == (5, 784) and fit["factor"].shape == (5, 784, 8)
    assert fit["share"].shape == (5,) and (fit["share"] > 0).all()
    assert fit["share"].sum().item() == pytest.approx(1)
    whole = (fit["share"][:, None] * fit["mean"]).sum(dim=0)
    assert torch.allclose(whole, signed(stripes.images).flatten(1).mean(dim=0), atol=1e-5)


def test_no_more_clusters_than_images_to_find_them_in(patches, monkeypatch):
    monkeypatch.setattr("imagelab.mixture.random_subset", lambda n, most, _: torch.arange(30))
    assert len(fit_gaussians(patches, clusters=50, seed=0)["mean"]) <= 30


def test_one_cluster_has_the_moments_of_the_data(patches):
    x = signed(patches).flatten(1)
    fit = fit_gaussians(patches, clusters=1, seed=0, rank=36)
    assert torch.allclose(fit["mean"][0], x.mean(dim=0), atol=1e-6)
    covariance = torch.cov(x.T)
    assert torch.allclose(fit["factor"][0] @ fit["factor"][0].T, covariance, atol=1e-5)
    assert covariance.abs().max() > 0.1


def test_a_low_rank_keeps_the_leading_directions(patches):
    leading = torch.linalg.eigvalsh(torch.cov(signed(patches).flatten(1).T)).flip(0)
    factor = fit_gaussians(patches, clusters=1, seed=0, rank=1)["factor"][0]
    assert factor.square().sum().item() == pytest.approx(leading[0].item(), rel=1e-3)


def test_two_clusters_are_the_two_classes(stripes):
    fit = fit_gaussians(stripes.images, clusters=2, seed=0)
    assert fit["share"].tolist() == [0.5, 0.5]
    x = signed(stripes.images).flatten(1)
    for k in range(2):
        nearest = (fit["mean"] - x[stripes.labels == k].mean(dim=0)).norm(dim=1).min()
        assert nearest < 1e-4


def test_fewer_images_than_clusters_or_directions(patches):
    fit = fit_gaussians(patches[:3], clusters=10, seed=0, rank=8)
    assert fit["factor"].shape == (3, 36, 8)
    assert all(value.isfinite().all() for value in fit.values())
    assert torch.allclose(fit["factor"], torch.zeros(()), atol=1e-5)


def test_the_same_seed_gives_the_same_gaussians(stripes):
    torch.manual_seed(1)
    a = fit_gaussians(stripes.images, clusters=3, seed=0, rank=8)
    torch.manual_seed(1)
    b = fit_gaussians(stripes.images, clusters=3, seed=0, rank=8)
    for name in a:
        assert torch.equal(a[name], b[name])


def mixture() -> dict:
    """Two far Gaussians in the plane: one round, one a line."""
    factor = torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [3.0, 0.0]]])
    return {
        "mean": torch.tensor([[-100.0, 0.0], [100.0, 50.0]]),
        "factor": factor,
        "share": torch.tensor([0.25, 0.75]),
    }


def test_draws_have_the_moments_of_the_mixture():
    n, given = 20_000, mixture()
    x = draw_gaussians(given, n, torch.Generator().manual_seed(0))
    assert x.shape == (n, 2)
    for k, part in enumerate((x[x[:, 0] < 0], x[x[:, 0] > 0])):
        share = given["share"][k].item()
        assert len(part) / n == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / n))
        assert torch.allclose(part.mean(dim=0), given["mean"][k], atol=0.2)
        covariance = given["factor"][k] @ given["factor"][k].T
        assert torch.allclose(torch.cov(part.T), covariance, atol=0.4)


def test_draws_leave_the_mixture_alone():
    given = mixture()
    draw_gaussians(given, 100, torch.Generator().manual_seed(0))
    for name, value in mixture().items():
        assert torch.equal(given[name], value)


def test_draws_are_those_of_the_generator_alone():
    torch.manual_seed(1)
    a = draw_gaussians(mixture(), 50, torch.Generator().manual_seed(0))
    torch.manual_seed(2)
    assert torch.equal(a, draw_gaussians(mixture(), 50, torch.Generator().manual_seed(0)))
    assert not torch.equal(a, draw_gaussians(mixture(), 50, torch.Generator().manual_seed(1)))
