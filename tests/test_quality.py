from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from imagelab.data.datasets import load_dataset, unit
from imagelab.data.quality import mean_ssim, psnr, ssim
from imagelab.setup.runtime import UserError


def test_psnr():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 16, 20, 3))
    assert psnr(a, b) == pytest.approx(-10 * math.log10(np.mean((a - b) ** 2)))
    assert psnr(np.zeros((32, 32)), np.full((32, 32), 0.1)) == pytest.approx(20)
    assert psnr(a, a.copy()) == math.inf


def test_ssim():
    """Of two flat pictures only the luminance term is left: (2ab + C₁)/(a² + b² + C₁)."""
    flat = np.full((32, 32), 0.2)
    expected = (2 * 0.2 * 0.5 + 1e-4) / (0.2**2 + 0.5**2 + 1e-4)
    assert ssim(flat, flat + 0.3) == pytest.approx(expected)
    rng = np.random.default_rng(0)
    for shape in ((32, 20), (32, 20, 3)):
        picture, other = rng.random((2, *shape))
        assert ssim(picture, picture) == pytest.approx(1) and abs(ssim(picture, other)) < 0.2


def test_ssim_of_a_colour_picture_is_the_mean_of_its_channels():
    a, b = np.random.default_rng(0).random((2, 32, 32, 3)) * np.array([1, 0.5, 0.1])
    channels = [ssim(a[..., i], b[..., i]) for i in range(3)]
    assert max(channels) > min(channels) + 0.05
    assert ssim(a, b) == pytest.approx(np.mean(channels))


@pytest.mark.parametrize("change", ["noise", "clipped noise", "blur", "grey"])
def test_mean_ssim_is_that_of_scikit_image(change):
    """On digits, whose black borders weigh: averaged in as mirrored, they say 0.2 where this says 0.4."""
    clean = unit(load_dataset("mnist-5k", Path()).test_images[:20])
    noisy = clean + 0.5 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    changed = {
        "noise": noisy,
        "clipped noise": noisy.clamp(0, 1),
        "blur": torch.nn.functional.avg_pool2d(clean, 5, 1, 2),
        "grey": torch.full_like(clean, 0.1),
    }[change]
    expected = np.mean([whole_windows(a[0], b[0]) for a, b in zip(changed, clean, strict=True)])
    assert mean_ssim(changed, clean) == pytest.approx(expected, abs=1e-5)
    assert mean_ssim(clean, clean) == pytest.approx(1, abs=1e-5)


def whole_windows(image: torch.Tensor, original: torch.Tensor) -> float:
    from skimage.metrics import structural_similarity

    return structural_similarity(
        image.double().numpy(), original.double().numpy(), data_range=1.0, gaussian_weights=True,
        sigma=1.5, use_sample_covariance=False,
    )  # fmt: skip


def test_mean_ssim_of_many_in_colour_and_of_other_proportions():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 503, 3, 11, 17, generator=rng) * torch.tensor([1, 0.5, 0.1])[:, None, None]
    few = range(0, 503, 20)
    expected = [np.mean([whole_windows(x[i, c], y[i, c]) for c in range(3)]) for i in few]
    assert mean_ssim(x[::20], y[::20]) == pytest.approx(np.mean(expected), abs=1e-5)
    each = [mean_ssim(a[None], b[None]) for a, b in zip(x, y, strict=True)]
    assert mean_ssim(x, y) == pytest.approx(np.mean(each), abs=1e-5)


def test_images_in_which_the_window_of_ssim_does_not_fit_are_refused():
    with pytest.raises(UserError, match="at least 11×11 pixels, not 28×10"):
        mean_ssim(torch.zeros(2, 1, 10, 28), torch.zeros(2, 1, 10, 28))
