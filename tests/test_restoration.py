from __future__ import annotations

import importlib.machinery
import itertools
import sys
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from skimage.restoration import denoise_wavelet

from imagelab.data.photographs import photograph
from imagelab.data.pictures import read_grey
from imagelab.data.quality import psnr
from imagelab.techniques.restoration import (
    CLASSICAL,
    Restored,
    add_noise,
    best_blur,
    best_non_local_means,
    blur_images,
    by_filters,
    compare,
    compare_noises,
    compare_photographs,
    comparison_table,
    estimated_sigma,
    methods,
    non_local_means,
    restore_images,
)

GREY = photograph("camera")[180:276, 180:276] / 255
COLOUR = photograph("astronaut")[60:156, 180:276] / 255


def with_noise(picture: np.ndarray, sigma: float) -> np.ndarray:
    return picture + np.random.default_rng(0).normal(0, sigma, picture.shape)


@pytest.mark.parametrize("clean", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("name", CLASSICAL)
@pytest.mark.parametrize("sigma", [0.1, 0.3])
def test_every_method_takes_noise_out(name, clean, sigma):
    noisy = with_noise(clean, sigma)
    before = noisy.copy()
    restored = CLASSICAL[name](noisy, sigma)
    assert restored.shape == clean.shape
    assert psnr(clean, restored) > psnr(clean, noisy) + 3
    assert np.array_equal(noisy, before)  # the picture itself is not written into


@pytest.mark.parametrize("clean", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("name", sorted(CLASSICAL.keys() - {"median"}))
def test_without_noise_little_is_done(name, clean):
    assert psnr(clean, CLASSICAL[name](clean, 0.0)) > 40


@pytest.mark.parametrize("name", CLASSICAL)
def test_a_flat_picture_stays_flat(name):
    flat = np.full((40, 40), 0.4)
    assert CLASSICAL[name](flat, 0.1) == pytest.approx(flat, abs=0.5 / 255)


@pytest.mark.parametrize("clean", [GREY, COLOUR], ids=["grey", "colour"])
def test_wavelets_are_averaged_over_nine_shifts(clean):
    noisy, expected = with_noise(clean, 0.2), np.zeros_like(clean)
    for shift in itertools.product((0, 3, 6), repeat=2):
        shifted = denoise_wavelet(
            np.roll(noisy, shift, axis=(0, 1)), 0.2, method="BayesShrink",
            channel_axis=2 if clean.ndim == 3 else None,
        )  # fmt: skip
        expected += np.roll(shifted, [-step for step in shift], axis=(0, 1)) / 9
    assert np.allclose(CLASSICAL["wavelet shrinkage"](noisy, 0.2), expected, rtol=0, atol=1e-12)


def test_total_variation_does_not_stop_too_early():
    """Of a picture full of noise: with scikit-image's own limit it is 0.7 dB worse at this σ."""
    clean = read_grey(None, max_side=256)
    noisy = with_noise(clean, 0.5).clip(0, 1)
    restored = CLASSICAL["total variation"](noisy, np.sqrt(np.mean((noisy - clean) ** 2)))
    assert psnr(clean, restored) > 17.5


def test_sigma_is_measured():
    flat = np.full((200, 300), 0.5)
    for sigma in (0.02, 0.1):
        assert estimated_sigma(with_noise(flat, sigma)) == pytest.approx(sigma, rel=0.05)
    colour = with_noise(np.full((200, 300, 3), 0.5), 0.1)
    assert estimated_sigma(colour) == pytest.approx(0.1, rel=0.05)
    as_bytes = (colour.clip(0, 1) * 255).round().astype(np.uint8)
    assert estimated_sigma(as_bytes) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("picture", [np.zeros((16, 9)), np.zeros((40, 40, 3), np.uint8)])
def test_a_black_picture_has_no_noise(picture):
    assert estimated_sigma(picture) == 0


def test_a_large_picture_is_measured_in_parts():
    """A corner without noise does not decide, and a thin strip is measured as well."""
    large = with_noise(np.full((1800, 1800), 0.5), 0.1)
    large[:600, :600] = 0.5
    assert estimated_sigma(large) == pytest.approx(0.1, rel=0.05)
    assert estimated_sigma(large[:, -20:]) == pytest.approx(0.1, rel=0.1)


def test_a_comparison_holds_every_method_and_the_noise():
    noisy = with_noise(GREY, 0.1)
    found = compare(GREY, noisy, 0.1, CLASSICAL)
    assert list(found) == ["noisy", *CLASSICAL]
    assert found["noisy"].psnr == pytest.approx(20, abs=0.3) and found["noisy"].seconds == 0
    for name, restored in list(found.items())[1:]:
        assert restored.psnr == pytest.approx(psnr(GREY, CLASSICAL[name](noisy, 0.1).clip(0, 1)))
        assert restored.ssim > found["noisy"].ssim and restored.seconds > 0
        assert restored.picture.min() >= 0 and restored.picture.max() <= 1


def test_the_table_of_a_comparison_holds_each_picture_and_the_means():
    picture = np.zeros((9, 9))
    found = {
        "first": {"a": Restored(picture, 20.0, 0.5, 1.0), "b": Restored(picture, 30.0, 0.9, 3.0)},
        "second": {"a": Restored(picture, 24.0, 0.7, 2.0), "b": Restored(picture, 31.0, 0.7, 3.0)},
    }
    columns, rows = comparison_table(found)
    assert columns == ["method", "first", "second", "mean PSNR", "mean SSIM", "s per picture"]
    assert rows == [["a", 20, 24, 22, pytest.approx(0.6), 1.5], ["b", 30, 31, 30.5, 0.8, 3]]


def test_the_learned_method_is_among_them():
    by = methods()
    assert list(by) == [*CLASSICAL, "learned"]
    noisy = with_noise(GREY, 0.1)
    assert psnr(GREY, by["learned"](noisy, 0.1)) > psnr(GREY, noisy) + 5


def test_bm3d_joins_where_its_package_is_installed(monkeypatch):
    """With a stand-in for the package, which says what it was called with."""
    package = ModuleType("bm3d")
    package.__spec__ = importlib.machinery.ModuleSpec("bm3d", None)
    package.bm3d = lambda picture, sigma: np.full_like(picture, sigma)  # pyright: ignore
    package.bm3d_rgb = lambda picture, sigma: np.full_like(picture, sigma / 2)  # pyright: ignore
    monkeypatch.setitem(sys.modules, "bm3d", package)
    assert "BM3D" not in methods()
    by = methods(with_bm3d=True)
    assert list(by) == [*CLASSICAL, "BM3D", "learned"]
    assert (by["BM3D"](GREY, 0.2) == 0.2).all() and (by["BM3D"](COLOUR, 0.2) == 0.1).all()
    assert by["BM3D"](GREY, 0.0) is GREY
    monkeypatch.setitem(sys.modules, "bm3d", None)  # as where it is not installed
    assert list(methods(with_bm3d=True)) == [*CLASSICAL, "learned"]


@pytest.mark.parametrize("clean", [GREY, COLOUR], ids=["grey", "colour"])
def test_bm3d_beats_the_other_classical_methods(clean):
    pytest.importorskip("bm3d", exc_type=ImportError)  # not among the requirements: its licence
    noisy = with_noise(clean, 0.1)
    quality = {
        name: psnr(clean, method(noisy, 0.1).clip(0, 1))
        for name, method in methods(with_bm3d=True).items()
        if name != "learned"
    }
    assert quality.pop("BM3D") > max(quality.values()) + 0.2


def test_non_local_means_are_tuned_on_the_images_given():
    """Small noise on flat images: the more averaging the better; on noise itself: the less."""
    rng = torch.Generator().manual_seed(0)
    flat = torch.full((3, 1, 20, 20), 0.5)
    noisy = flat + 0.1 * torch.randn(flat.shape, generator=rng)
    smoothing = best_non_local_means(noisy, flat, 0.1)
    assert smoothing.keywords == {"strength": 0.8, "expected": 1.0}  # pyright: ignore
    keeping = best_non_local_means(noisy, noisy, 0.1)
    assert keeping.keywords == {"strength": 0.1, "expected": 0.0}  # pyright: ignore
    picture = noisy[0, 0].numpy()
    assert np.abs(smoothing(picture, 0.1) - 0.5).mean() < np.abs(picture - 0.5).mean() / 3
    assert np.allclose(
        non_local_means(picture, 0.1, 0.8, 1.0), CLASSICAL["non-local means"](picture, 0.1)
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_many_images_are_restored_one_by_one(channels):
    images = torch.rand(4, channels, 20, 20, generator=torch.Generator().manual_seed(0))
    together = restore_images(CLASSICAL["total variation"], images, 0.2)
    assert together.shape == images.shape
    alone = images[2].permute(1, 2, 0).double().numpy().squeeze()
    alone = CLASSICAL["total variation"](alone, 0.2)
    assert np.allclose(together[2].permute(1, 2, 0).squeeze().numpy(), alone, atol=1e-6)


def test_blur_is_that_of_opencv():
    images = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    blurred = blur_images(images, 1.0)
    expected = cv2.GaussianBlur(
        images[1, 0].numpy(), (7, 7), 1.0, borderType=cv2.BORDER_REFLECT_101
    )
    assert np.allclose(blurred[1, 0].numpy(), expected, atol=1e-5)


def test_more_noise_wants_a_wider_blur():
    clean = torch.from_numpy(GREY).float()[None, None]
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(clean.shape, generator=rng)
    few, much = (best_blur(clean + sigma * noise, clean) for sigma in (0.05, 0.4))
    assert few < much < 3


def test_noise_is_that_of_a_file():
    rng = torch.Generator().manual_seed(0)
    grey = add_noise(torch.full((1, 1, 300, 300), 0.5), 0.1, rng)
    assert grey.std().item() == pytest.approx(0.1, rel=0.02)
    assert add_noise(torch.zeros(1, 1, 50, 50), 0.5, rng).min() == 0
    assert add_noise(torch.zeros(1, 1, 50, 50), 2.0, rng, low=-1).min() == -1
    assert add_noise(torch.ones(1, 1, 50, 50), 0.5, rng).max() == 1


def test_the_filters_blur_is_chosen_on_other_images():
    clean = torch.from_numpy(GREY[:28, :28]).float()[None, None].repeat(5, 1, 1, 1)
    rng = torch.Generator().manual_seed(0)
    noisy = add_noise(clean, 0.3, rng)
    flat = by_filters(noisy, 0.3, torch.full((5, 1, 28, 28), 0.5), rng)
    assert list(flat) == ["noisy", "Gaussian blur, 3.0 px", "non-local means"]  # the widest
    fitting = by_filters(noisy, 0.3, clean, rng)
    assert list(fitting)[1] != "Gaussian blur, 3.0 px"
    assert (fitting["noisy"] == noisy).all() and fitting["non-local means"].shape == noisy.shape


def test_each_photograph_gets_fresh_noise_of_sigma_and_each_method_is_told():
    told = []

    def keep(noisy, sigma):
        told.append((noisy, sigma))
        return noisy

    clean = {"one": np.full((200, 200), 0.5), "two": np.full((200, 200), 0.5)}
    found = compare_photographs(clean, 0.1, {"keep": keep}, np.random.default_rng(0))
    assert list(found) == ["one", "two"] and [sigma for _, sigma in told] == [0.1, 0.1]
    assert not np.array_equal(told[0][0], told[1][0])
    for name, (noisy, _) in zip(found, told, strict=True):
        assert np.std(noisy) == pytest.approx(0.1, rel=0.02)
        assert found[name]["noisy"].psnr == psnr(clean[name], noisy) == pytest.approx(20, abs=0.1)


def test_each_kind_of_noise_is_told_by_its_root_mean_square():
    """And PSNR and SSIM are means over the pictures."""
    told = []

    def keep(noisy, sigma):
        told.append((noisy, sigma))
        return noisy

    noises = {"a": lambda x, rng: x + rng.normal(0, 0.1, x.shape), "b": lambda x, _rng: x + 0.7}
    pictures = [np.full((200, 200), 0.5), np.full((200, 200), 0.2)]
    found = compare_noises(pictures, noises, {"keep": keep}, np.random.default_rng(0))
    assert list(found) == ["a", "b"] and len(told) == 4
    assert [sigma for _, sigma in told] == pytest.approx([0.1, 0.1, 0.5, 0.7], rel=0.05)
    assert told[2][0].max() == 1.0  # clipped
    each = [psnr(clean, noisy) for clean, (noisy, _) in zip(pictures, told[:2], strict=True)]
    assert found["a"]["keep"].psnr == pytest.approx(np.mean(each))
    assert np.array_equal(found["a"]["keep"].picture, told[1][0])
