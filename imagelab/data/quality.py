"""How alike two pictures are: peak signal-to-noise ratio and structural similarity."""

from __future__ import annotations

import numpy as np
import torch

from imagelab.setup.runtime import UserError


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
    found = structural_similarity(original, picture, data_range=1.0, channel_axis=channels)
    return float(found)  # pyright: ignore[reportArgumentType] (a tuple only where more is asked for)


def psnr_of_each(images: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
    """The peak signal-to-noise ratio (N,) of each of the images (N, C, H, W) in [0, 1], in dB."""
    return -10 * (images - originals).square().flatten(1).mean(dim=1).log10()


def mean_psnr(images: torch.Tensor, originals: torch.Tensor) -> float:
    """The mean over images (N, C, H, W) in [0, 1] of each one's peak signal-to-noise ratio, in dB."""
    return psnr_of_each(images, originals).mean().item()


@torch.no_grad()
def mean_ssim(images: torch.Tensor, originals: torch.Tensor) -> float:
    """The mean structural similarity of many small images (N, C, H, W) in [0, 1].

    With the Gaussian window of Wang et al. (2004), over the places where all of it lies in the image, as
    scikit-image takes them with `gaussian_weights`. UserError where a side is below 11 pixels.
    """
    if min(images.shape[-2:]) < 11:
        raise UserError(
            f"SSIM needs images of at least 11×11 pixels, not {images.shape[-1]}×"
            f"{images.shape[-2]}: its window would not fit in."
        )
    parts = zip(images.split(500), originals.split(500), strict=True)
    return torch.cat([ssim_map(x, y).mean((1, 2, 3)) for x, y in parts]).mean().item()


def ssim_map(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Structural similarity at each place of the window (Wang et al. 2004, eq. 13).

    Images (N, C, H, W) in [0, 1] to (N, C, H − 10, W − 10).
    """
    mu_x, mu_y = gaussian_mean(x), gaussian_mean(y)
    var_x, var_y = gaussian_mean(x * x) - mu_x**2, gaussian_mean(y * y) - mu_y**2
    covariance = gaussian_mean(x * y) - mu_x * mu_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
    return luminance * (2 * covariance + c2) / (var_x + var_y + c2)


def gaussian_mean(values: torch.Tensor) -> torch.Tensor:
    """Means under the window of Wang et al. (2004), 11 by 11 pixels with σ = 1.5.

    (..., H, W) to (..., H − 10, W − 10): whole windows only, no border is made up.
    """
    at = values.device
    window = torch.exp(-(torch.arange(-5.0, 6.0, device=at) ** 2) / (2 * 1.5**2))
    window = (window / window.sum()).to(values)
    # The window at each place along a side, (side − 10, side); two products of matrices take the mean.
    height, width = (torch.eye(side, device=at).to(values) for side in values.shape[-2:])
    return height.unfold(0, 11, 1) @ window @ values @ (width.unfold(0, 11, 1) @ window).T
