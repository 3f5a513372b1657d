"""Methods that remove Gaussian noise of known σ from a picture, and their comparison.

Pictures are (H, W) or (H, W, 3), float in [0, 1]; σ is in the same units. OpenCV and scikit-image do
the work. The functions here choose the parameters from σ.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F

from imagelab.data.quality import psnr, ssim
from imagelab.techniques.denoiser import ResidualDenoiser, restore, trained_denoiser

Restore = Callable[[np.ndarray, float], np.ndarray]


def estimated_sigma(picture: np.ndarray) -> float:
    """σ of the noise, from the finest wavelet coefficients (Donoho and Johnstone 1994).

    The picture may also be uint8; σ is in units of [0, 1] all the same. It comes out too low where the
    noise was clipped to [0, 1], and as 0 in a flat picture. In a large picture it is measured in nine
    places, and the median is returned.
    """
    from skimage.restoration import estimate_sigma

    side = 512
    tops, lefts = (
        sorted({round(k * max(length - side, 0) / 2) for k in range(3)})
        for length in picture.shape[:2]
    )
    found = []
    for top, left in itertools.product(tops, lefts):
        part = picture[top : top + side, left : left + side]
        part = part / 255 if picture.dtype == np.uint8 else part
        axis = 2 if picture.ndim == 3 else None
        with warnings.catch_warnings():  # the median of no coefficients, where all of them are 0
            warnings.simplefilter("ignore", RuntimeWarning)
            sigmas = estimate_sigma(part, channel_axis=axis)
        found.append(np.nan_to_num(sigmas).mean())
    return float(np.median(found))


def gaussian_blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian blur, wider for more noise: 0.4 + 7·σ pixels, 2.15 at σ = 0.25."""
    import cv2

    return cv2.GaussianBlur(picture, (0, 0), 0.4 + 7 * sigma) if sigma > 0 else picture


def median(picture: np.ndarray, sigma: float) -> np.ndarray:
    """The median of 3×3 pixels, or of 5×5 from σ = 0.1 on, in 256 grey levels."""
    import cv2

    grey_levels = np.round(picture.clip(0, 1) * 255).astype(np.uint8)
    return cv2.medianBlur(grey_levels, 3 if sigma < 0.1 else 5) / 255


def bilateral(picture: np.ndarray, sigma: float) -> np.ndarray:
    """A mean of near and similar pixels (Tomasi and Manduchi 1998), 2 pixels and 3·σ wide."""
    import cv2

    return cv2.bilateralFilter(picture.astype(np.float32), 0, max(3 * sigma, 1e-6), 2).astype(float)


def non_local_means(
    picture: np.ndarray, sigma: float, strength: float = 0.8, expected: float = 1.0
) -> np.ndarray:
    """A mean of pixels whose 5×5 surroundings are similar (Buades et al. 2005).

    h = `strength`·σ says how similar. The noise alone is expected to make surroundings differ by
    2·(`expected`·σ)², which does not count.
    """
    from skimage.restoration import denoise_nl_means

    return denoise_nl_means(
        picture, patch_size=5, patch_distance=6, h=max(strength * sigma, 1e-6),
        sigma=expected * sigma, fast_mode=True, channel_axis=2 if picture.ndim == 3 else None,
    )  # fmt: skip


def total_variation(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Few and sharp edges (Rudin et al. 1992), by Chambolle's algorithm with weight 0.9·σ.

    scikit-image's usual `eps` of 2e-4 can stop after a few iterations, where little is done yet.
    """
    from skimage.restoration import denoise_tv_chambolle

    axis = 2 if picture.ndim == 3 else None
    return denoise_tv_chambolle(picture, weight=max(0.9 * sigma, 1e-6), eps=2e-5, channel_axis=axis)


def wavelet_shrinkage(picture: np.ndarray, sigma: float) -> np.ndarray:
    """BayesShrink (Chang et al. 2000): small wavelet coefficients, mostly noise, become smaller or 0.

    The result is the mean over nine shifts of the picture (Coifman and Donoho 1995). One shift alone
    shows blocks.
    """
    from skimage.restoration import cycle_spin, denoise_wavelet

    if sigma == 0:
        return picture
    axis = 2 if picture.ndim == 3 else None
    settings = {"sigma": sigma, "method": "BayesShrink", "channel_axis": axis}
    return cycle_spin(
        picture, denoise_wavelet, max_shifts=6, shift_steps=3, func_kw=settings, workers=1,
        channel_axis=axis,
    )  # fmt: skip


CLASSICAL: dict[str, Restore] = {
    "Gaussian blur": gaussian_blur,
    "median": median,
    "bilateral": bilateral,
    "non-local means": non_local_means,
    "total variation": total_variation,
    "wavelet shrinkage": wavelet_shrinkage,
}


@dataclass
class Restored:
    """A picture restored by one method; PSNR (dB) and SSIM compare it with the clean picture."""

    picture: np.ndarray
    psnr: float
    ssim: float
    seconds: float


def bm3d(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Block matching and 3D filtering (Dabov et al. 2007), by its authors' package.

    Similar blocks are stacked, and the coefficients of the stack are shrunk. The package `bm3d` is for
    non-commercial use only; it is not among this project's requirements.
    """
    import bm3d  # pyright: ignore[reportMissingImports]

    if sigma == 0:
        return picture
    method = bm3d.bm3d_rgb if picture.ndim == 3 else bm3d.bm3d
    return method(picture, sigma)


def methods(device: torch.device | str = "cpu", with_bm3d: bool = False) -> dict[str, Restore]:
    """The classical methods, and the learned one with the weights that come with the project.

    `with_bm3d`: BM3D as well, where its package is installed.
    """
    more = {"BM3D": bm3d} if with_bm3d and find_spec("bm3d") else {}
    return CLASSICAL | more | {"learned": partial(restore, trained_denoiser(device))}


BLIND, OF_EIGHT = "learned, σ measured", "learned, mean of eight"
WAYS = (BLIND, OF_EIGHT)  # of using the learned method


def learned_ways(model: ResidualDenoiser, ensemble: bool) -> dict[str, Restore]:
    """The learned method where it is not told σ, and with `ensemble` its mean of eight."""
    ways: dict[str, Restore] = {
        BLIND: lambda picture, _sigma: restore(model, picture, estimated_sigma(picture))
    }
    return ways | ({OF_EIGHT: partial(restore, model, ensemble=True)} if ensemble else {})


def compare(
    clean: np.ndarray, noisy: np.ndarray, sigma: float, methods: Mapping[str, Restore]
) -> dict[str, Restored]:
    """The result of each of the `methods` on `noisy`, by name; the first entry is `noisy` itself.

    `clean` and `noisy` are pictures of one shape. Each method is told `sigma`.
    """
    restored = {"noisy": Restored(noisy, psnr(clean, noisy), ssim(clean, noisy), 0.0)}
    for name, method in methods.items():
        started = time.perf_counter()
        picture = method(noisy, sigma).clip(0, 1)
        seconds = time.perf_counter() - started
        restored[name] = Restored(picture, psnr(clean, picture), ssim(clean, picture), seconds)
    return restored


Comparison = dict[str, dict[str, Restored]]  # names of pictures or of noises, then of methods
Noises = Mapping[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]]


def compare_photographs(
    clean: Mapping[str, np.ndarray],
    sigma: float,
    methods: Mapping[str, Restore],
    rng: np.random.Generator,
) -> Comparison:
    """The result of each of the `methods` on photographs with Gaussian noise of `sigma`.

    The noise is not clipped, as in published comparisons. Every method is told σ.
    """
    found = {}
    for name, picture in clean.items():
        noisy = picture + rng.normal(0, sigma, picture.shape)
        found[name] = compare(picture, noisy, sigma, methods)
    return found


def compare_noises(
    pictures: list[np.ndarray],
    noises: Noises,
    methods: Mapping[str, Restore],
    rng: np.random.Generator,
) -> Comparison:
    """The result of each of the `methods` on each of the `noises`, clipped like in a file.

    Every method is told the noise's root mean square. PSNR, SSIM and seconds are means over `pictures`;
    the picture is that of the last one.
    """
    found = {}
    for label, add in noises.items():
        each = []
        for clean in pictures:
            noisy = add(clean, rng).clip(0, 1)
            sigma = float(np.sqrt(np.mean((noisy - clean) ** 2)))
            each.append(compare(clean, noisy, sigma, methods))
        measures = {
            method: np.mean(
                [(r[method].psnr, r[method].ssim, r[method].seconds) for r in each], axis=0
            )
            for method in each[-1]
        }
        found[label] = {
            k: Restored(each[-1][k].picture, *map(float, v)) for k, v in measures.items()
        }
    return found


def comparison_table(found: Comparison) -> tuple[list[str], list[list]]:
    """Columns and rows, one per method: PSNR (dB) of each picture; means of PSNR, SSIM and seconds."""
    rows = []
    for method in next(iter(found.values())):
        each = [restored[method] for restored in found.values()]
        means = [np.mean([getattr(x, name) for x in each]) for name in ("psnr", "ssim", "seconds")]
        rows.append([method, *(x.psnr for x in each), *map(float, means)])
    return ["method", *found, "mean PSNR", "mean SSIM", "s per picture"], rows


# --- many small images ----------------------------------------------------------------------------


def add_noise(
    images: torch.Tensor, sigma: float, rng: torch.Generator, low: float = 0.0
) -> torch.Tensor:
    """Images in [low, 1] with Gaussian noise of `sigma`, clipped to [low, 1] like in a file."""
    noise = torch.randn(images.shape, generator=rng, device=images.device)
    return (images + sigma * noise).clamp_(low, 1)


def by_filters(
    noisy: torch.Tensor, sigma: float, training: torch.Tensor, rng: torch.Generator
) -> dict[str, torch.Tensor]:
    """Noisy images (N, C, H, W) in [0, 1] by name: unchanged, blurred, and by non-local means.

    The parameters of both filters are those that are best for images of the `training` part with noise of
    the same σ.
    """
    example = add_noise(training, sigma, rng)
    width = best_blur(example, training)
    filtered = best_non_local_means(example[:100], training[:100], sigma)
    return {
        "noisy": noisy,
        f"Gaussian blur, {width:.1f} px": blur_images(noisy, width),
        "non-local means": restore_images(filtered, noisy, sigma).to(noisy.device),
    }


def restore_images(method: Restore, images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Many small images (N, C, H, W) in [0, 1], each restored by a `method` for pictures."""
    pictures = images.permute(0, 2, 3, 1).cpu().double().numpy()
    pictures = pictures[..., 0] if images.shape[1] == 1 else pictures
    restored = np.stack([method(picture, sigma) for picture in pictures])
    restored = restored[..., None] if images.shape[1] == 1 else restored
    return torch.from_numpy(restored).float().permute(0, 3, 1, 2).clamp(0, 1)


def blur_images(images: torch.Tensor, width: float) -> torch.Tensor:
    """Images (N, C, H, W) under a Gaussian blur of standard deviation `width` in pixels.

    The window ends at three standard deviations. Beyond its border an image goes on as in a mirror.
    """
    reach = math.ceil(3 * width)
    window = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * width**2))
    window = (window / window.sum())[:, None]

    def along(side: int) -> torch.Tensor:
        """The blur of a row of pixels as a matrix, (side, side)."""
        mirrored = F.pad(torch.eye(side), (reach, reach), mode="reflect")  # (side, side + 2·reach)
        return (mirrored.unfold(1, len(window), 1) @ window)[..., 0].T.to(images)

    return along(images.shape[2]) @ images @ along(images.shape[3]).T


def best_blur(noisy: torch.Tensor, clean: torch.Tensor) -> float:
    """The width in pixels, among 0.3, 0.4, … 3.0, whose blur brings `noisy` closest to `clean` (MSE)."""
    widths = [k / 10 for k in range(3, 31)]
    return min(widths, key=lambda width: F.mse_loss(blur_images(noisy, width), clean).item())


def best_non_local_means(noisy: torch.Tensor, clean: torch.Tensor, sigma: float) -> Restore:
    """Non-local means with the parameters, of sixteen pairs, that bring `noisy` closest to `clean`."""
    tried = [
        partial(non_local_means, strength=strength, expected=expected)
        for strength in (0.1, 0.2, 0.4, 0.8)
        for expected in (0.0, 0.3, 0.6, 1.0)
    ]
    errors = [F.mse_loss(restore_images(method, noisy, sigma).to(clean), clean) for method in tried]
    return tried[int(torch.stack(errors).argmin())]
