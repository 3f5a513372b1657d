"""Stepwise noise, then blur: a diffusion model's forward process, and the plainest of all filters.

    python diffusion_demo.py                                  # seconds
    python diffusion_demo.py --image photo.jpg --steps 8
    python diffusion_demo.py --noise salt-and-pepper          # or poisson, speckle, jpeg
    python diffusion_demo.py --process variance-preserving    # the forward process of a DDPM
    python diffusion_demo.py --compare                        # six classical filters and a learned one

Process `additive` damages the clean picture anew in each step, more each time, and clips the result to
[0, 1]. Gaussian noise has σ = 0.1·i in step i. `variance-preserving` is the forward process of Ho et al.
(2020): x_t = √ᾱ_t·x₀ + √(1 − ᾱ_t)·ε on [-1, 1]. It uses one ε in all steps, and t is evenly spaced over
the linear schedule of 1,000 steps. The picture fades as the noise grows, and the variance stays.

What to look at: PSNR falls by about 5 dB each time σ doubles (6 dB without the clipping). The blur
removes most of the noise and softens every edge. The measured σ is lower than the added σ, because
clipping cuts the noise of dark and bright pixels. With `--compare`, better filters and a network
restore the same pictures. Each is told how strong the noise is. The network was trained on Gaussian
noise only: compare what it makes of the other kinds.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
import torch

from imagelab.data.pictures import as_uint8, read_grey, write_gif, write_png
from imagelab.data.quality import psnr, ssim
from imagelab.report import figures
from imagelab.report.restored import plot_restored
from imagelab.report.results import Result, start_result
from imagelab.setup.runtime import UserError, prepare
from imagelab.setup.settings import InputFile, Limits, Settings
from imagelab.techniques.diffusion import linear_schedule
from imagelab.techniques.restoration import compare, comparison_table, estimated_sigma
from imagelab.techniques.restoration import methods as restoring_methods

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "diffusion_demo"
PICTURES = "diffusion_images"

# --- noises: pictures (H, W) or (H, W, 3) in [0, 1]; the results are not clipped --------------------


def gaussian(x: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """x + σ·ε with ε ~ N(0, 1): the same noise in every pixel, like that of electronics."""
    return x + rng.normal(0, sigma, x.shape)


def salt_and_pepper(x: np.ndarray, p: float, rng: np.random.Generator) -> np.ndarray:
    """A share p of the values is lost: half of these become 0, half become 1. The others stay."""
    u = rng.random(x.shape)
    return np.where(u < p / 2, 0.0, np.where(u < p, 1.0, x))


def poisson(x: np.ndarray, peak: float, rng: np.random.Generator) -> np.ndarray:
    """n/peak with n ~ Poisson(peak·x): a sensor that counts `peak` photons in white. Variance x/peak."""
    return rng.poisson(peak * x) / peak


def speckle(x: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """x + σ·x·ε with ε ~ N(0, 1): noise in proportion to the brightness, as in radar and ultrasound."""
    return x + sigma * x * rng.normal(size=x.shape)


def jpeg(x: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    """x from a JPEG file: the cosine coefficients of 8×8 pixels, rounded. Nothing about it is random."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(as_uint8(x)).save(file, format="JPEG", quality=round(quality))
    return np.asarray(Image.open(file)) / 255


class Noise(NamedTuple):
    """A kind of noise: name, function, strength in step i = 1, 2, …, and how the strength is written."""

    name: str
    add: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
    strength: Callable[[int], float]
    label: str


NOISES = {
    "gaussian": Noise("Gaussian", gaussian, lambda i: 0.1 * i, "σ = {:.2f}"),
    "salt-and-pepper": Noise("salt and pepper", salt_and_pepper, lambda i: 0.1 * i, "p = {:.2f}"),
    "poisson": Noise("Poisson", poisson, lambda i: 100 / i**2, "peak = {:.3g}"),
    "speckle": Noise("speckle", speckle, lambda i: 0.2 * i, "relative σ = {:.2f}"),
    "jpeg": Noise("JPEG", jpeg, lambda i: round(60 / (i + 1)), "quality = {:.0f}"),
}

# --- the two processes: steps of (strength in words, σ of the noise before clipping, noisy picture) ---

Steps = Iterator[tuple[str, float, np.ndarray]]


def additive(picture: np.ndarray, kind: str, steps: int, rng: np.random.Generator) -> Steps:
    """Noise of one kind on the clean picture (H, W) in [0, 1], stronger in each step; clipped."""
    _, add, strength, label = NOISES[kind]
    for i in range(1, steps + 1):
        noisy = add(picture, strength(i), rng)
        rms = float(np.sqrt(np.mean((noisy - picture) ** 2)))
        yield label.format(strength(i)), rms, np.clip(noisy, 0, 1)


def variance_preserving(picture: np.ndarray, steps: int, rng: np.random.Generator) -> Steps:
    """x_t for t evenly spaced up to T = 1000 (Ho et al. eq. 4).

    x_t is computed on [-1, 1] and mapped back, so its values leave [0, 1]; σ = √(1 − ᾱ_t)/2 is that
    of the noise after the mapping.
    """
    schedule = linear_schedule(1000)
    x0 = torch.from_numpy(picture * 2 - 1).float()[None]
    eps = torch.from_numpy(rng.normal(size=picture.shape)).float()[None]
    for t in np.linspace(0, 999, steps + 1)[1:].round().astype(int):
        x_t = schedule.q_sample(x0, torch.tensor([t]), eps)[0].double().numpy()
        sigma = float((1 - schedule.alpha_bar[t]).sqrt()) / 2
        yield f"σ = {sigma:.2f}", sigma, (x_t + 1) / 2


def blur(picture: np.ndarray, kernel: int) -> np.ndarray:
    """Gaussian blur of `kernel` × `kernel` pixels; OpenCV derives σ = 0.3·((kernel − 1)/2 − 1) + 0.8."""
    import cv2

    return cv2.GaussianBlur(picture, (kernel, kernel), 0)


# --- every step: add noise, blur, measure ---------------------------------------------------------


@dataclass(frozen=True)
class Config(Settings):
    """Settings of the noise and of the blur."""

    image: InputFile | None = None
    """Your own picture, turned grey. Default: scikit-image's `camera`."""
    size: Annotated[int, Limits(16, 4096)] = 256
    """Pixels that the longer side is scaled down to."""
    steps: Annotated[int, Limits(1, 10)] = 5
    """Number of noise steps."""
    process: Literal["additive", "variance-preserving"] = "additive"
    """additive: noise on the clean picture, clipped; variance-preserving: a DDPM's forward process."""
    noise: Literal["gaussian", "salt-and-pepper", "poisson", "speckle", "jpeg"] = "gaussian"
    """The noise of process additive. Its strength in step i = 1, 2, …: Gaussian, σ = 0.1·i; salt and
    pepper, in a share 0.1·i of the pixels; Poisson, 100/i² photons in white; speckle, a relative σ of
    0.2·i; JPEG, quality 60/(i + 1)."""
    kernel: Annotated[int, Limits(1, 99)] = 5
    """Width of the Gaussian blur in pixels, an odd number."""
    compare: bool = False
    """Also restore every step by six classical methods and a trained network, and compare them; by BM3D
    as well where the package bm3d is installed (for non-commercial use only)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel % 2 == 0:
            raise UserError(f"--kernel must be odd, not {self.kernel}.")
        if self.noise != "gaussian" and self.process != "additive":
            raise UserError(f"--process variance-preserving adds Gaussian noise, not {self.noise}.")
        if self.compare and self.process != "additive":
            raise UserError("--compare restores noisy pictures. Those of --process variance-preserving "
                            "also fade.")  # fmt: skip


class Step(NamedTuple):
    """One step: the strength of its noise, the noisy picture, the same blurred, and what is measured."""

    label: str
    noisy: np.ndarray
    blurred: np.ndarray
    measured: dict[str, float]


def measure(
    clean: np.ndarray, noisy: np.ndarray, blurred: np.ndarray, sigma: float
) -> dict[str, float]:
    """The noise of one step, and the errors against the clean picture before and after the blur."""
    measured = {"σ added": sigma, "σ measured": estimated_sigma(noisy)}
    for which, picture in (("noisy", noisy), ("blurred", blurred)):
        measured[f"MSE {which}"] = float(np.mean((clean - picture) ** 2))
        measured[f"PSNR (dB) {which}"] = psnr(clean, picture)
        measured[f"SSIM {which}"] = ssim(clean, picture)
    return measured


def noise_and_blur(clean: np.ndarray, config: Config) -> list[Step]:
    """Every step of the process, blurred and measured."""
    steps, rng = [], np.random.default_rng(config.seed)
    if config.process == "additive":
        process = additive(clean, config.noise, config.steps, rng)
    else:
        process = variance_preserving(clean, config.steps, rng)
    for label, sigma, noisy in process:
        blurred = blur(noisy, config.kernel)
        steps.append(Step(label, noisy, blurred, measure(clean, noisy, blurred, sigma)))
    return steps


# === the lesson ends here; below: plotted, reported ===============================================

TITLE = "Stepwise noise, then blur"
SUMMARY = (
    "A picture is covered with more and more noise, and a Gaussian blur tries to bring it back. Each "
    "step is measured: how much noise, how far from the clean picture, how much the blur repairs."
)
REPORTED = ("median", "non-local means", "learned")


def plot_steps(clean: np.ndarray, clean_blurred: np.ndarray, steps: list[Step]) -> Figure:
    """The clean picture and every step; below each, the same blurred."""
    cost = f"clean, blurred\nPSNR {psnr(clean, clean_blurred):.1f} dB"
    rows = [{"clean": clean}, {cost: clean_blurred}]
    for i, (label, noisy, blurred, measured) in enumerate(steps, start=1):
        title = f"step {i}, {label}\nPSNR {measured['PSNR (dB) noisy']:.1f} dB"
        rows[0][title] = np.clip(noisy, 0, 1)
        title = f"step {i}, blurred\nPSNR {measured['PSNR (dB) blurred']:.1f} dB"
        rows[1][title] = np.clip(blurred, 0, 1)
    return figures.plot_side_by_side(rows[0] | rows[1], rows=2, height=2.3)


def plot_errors(clean: np.ndarray, steps: list[Step]) -> Figure:
    """Where each step differs from the clean picture, noisy above and blurred below, on one scale."""
    from matplotlib.colors import PowerNorm

    errors = np.abs([[step.noisy - clean, step.blurred - clean] for step in steps])
    height = 1.6 * clean.shape[0] / clean.shape[1] + 0.5
    figure, axes = figures.new_figure(1.6 * len(steps) + 1, 2 * height, 2, len(steps))
    scale = PowerNorm(0.5, 0, max(float(errors.max()), 1e-9))  # √ of the distance: small ones show
    for column, pair, step in zip(axes.T, errors, steps, strict=True):
        titles = (f"noisy, {step.label}", "the same, blurred")
        for axis, error, title in zip(column, pair, titles, strict=True):
            shown = axis.imshow(error, cmap="magma", norm=scale)
            axis.set_axis_off()
            axis.set_title(f"{title}\nmean {error.mean():.3f}")
    figure.colorbar(
        shown, ax=axes, label="distance from the clean picture\n(square-root scale)", shrink=0.9
    )
    return figure


def plot_quantities(steps: list[Step]) -> Figure:
    """σ, PSNR and SSIM over the steps."""
    figure, (axes,) = figures.new_figure(10.5, 3.2, columns=3)
    numbers = range(1, len(steps) + 1)
    for axis, name in zip(axes, ("σ", "PSNR (dB)", "SSIM"), strict=True):
        keys = [key for key in steps[0].measured if key.startswith(name)]
        lines = {key.split()[-1]: [step.measured[key] for step in steps] for key in keys}
        figures.plot_lines(axis, numbers, lines, "step", name)
        axis.set_xticks(numbers)
    return figure


def report_restored(
    clean: np.ndarray, steps: list[Step], kind: str, device, result: Result
) -> None:
    """Every noisy step restored by every method: pictures and a table."""
    by, found = restoring_methods(device, with_bm3d=True), {}
    for i, step in enumerate(steps, start=1):
        noisy = np.clip(step.noisy, 0, 1)
        sigma = float(np.sqrt(np.mean((noisy - clean) ** 2)))
        found[step.label] = compare(clean, noisy, sigma, by)
        for name in by:
            file = f"restored_{i}_{name.replace(' ', '_')}.png"
            file = result.add_file(file, f"Step {i}, {step.label}, restored: {name}.", False)
            write_png(file, found[step.label][name].picture)
    caption = (
        f"{NOISES[kind].name} noise under {len(by) - 1} classical methods and a trained network "
        "(learned). Each is told how strong the noise is; so the Gaussian blur has another width in each "
        "row. Below each: its PSNR, the highest of the row framed. Noise clipped at black and white "
        "makes dark areas lighter, and bright ones darker; the classical methods keep that. The network "
        "was trained on other photographs, with Gaussian noise only."
    )
    figure = plot_restored(found, dict.fromkeys(found, clean))
    result.add_figure("compared.png", figure, caption)
    caption = f"Restored, {clean.shape[1]}×{clean.shape[0]} pixels: PSNR (dB), and means"
    result.add_table(caption, *comparison_table(found))
    for method in REPORTED:
        mean = np.mean([restored[method].psnr for restored in found.values()])
        name = f"mean over the steps: {method}"
        result.add_metric(name, mean, len(steps), unit="dB", better="higher")


def lessons(result: Result) -> list[str]:
    """What the figures teach, as far as they were measured."""
    taught = []
    if decibels := result.measured("last step: PSNR", "last step: PSNR after the blur"):
        taught.append(
            "At the last step noise leaves a PSNR of {:.1f} dB, and after the blur it is {:.1f} dB. The "
            "blur averages much of the noise away, and softens every edge.".format(*decibels)
        )
    if decibels := result.measured(*(f"mean over the steps: {method}" for method in REPORTED)):
        taught.append(
            "On this picture the median reaches {:.1f} dB in the mean of all steps, non-local means "
            "{:.1f} dB and the network {:.1f} dB. The network has learnt from other photographs with "
            "Gaussian noise; --noise tries other kinds on it.".format(*decibels)
        )
    return taught


def run(config: Config) -> Result:
    """Noise, blur, measure; what the driver and the tests call."""
    device = prepare(config.seed, config.device)
    config = config.if_quick(size=128)
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device)
    clean = read_grey(config.image, max_side=config.size)
    steps = noise_and_blur(clean, config)
    for i, step in enumerate(steps, start=1):
        file = result.add_file(f"step_{i}.png", f"After step {i}, {step.label}.", featured=False)
        write_png(file, step.noisy)
    blurred, last = steps[-1].blurred, steps[-1].measured
    write_png(result.add_file("blurred.png", "The last step, blurred.", featured=False), blurred)
    caption = (
        f"More noise in each step; below, the same after a blur of {config.kernel}×{config.kernel}."
    )
    figure = plot_steps(clean, blur(clean, config.kernel), steps)
    result.add_figure("whole_way.png", figure, caption)
    caption = (
        "Distance of each pixel from the clean picture. The blur makes the noise's errors smaller, and "
        "makes new ones along the edges."
    )
    result.add_figure("errors.png", plot_errors(clean, steps), caption)
    caption = "Left, the noise: added, and as measured in the noisy picture alone. "
    if config.process == "additive" and config.noise == "gaussian":
        caption += "Less is measured, because values below black and above white are cut off. "
    caption += "Then how near the noisy and the blurred pictures are to the clean one."
    result.add_figure("quantities.png", plot_quantities(steps), caption)
    frames = [clean, *(step.noisy for step in steps), blurred]
    write_gif(result.add_file("whole_way.gif", "All steps as an animation."), frames, 0.5)
    caption = f"{NOISES[config.noise].name} noise, {clean.shape[1]}×{clean.shape[0]} pixels"
    rows = [[i, step.label, *step.measured.values()] for i, step in enumerate(steps, start=1)]
    result.add_table(caption, ["step", "strength", *last], rows)
    if config.compare:
        report_restored(clean, steps, config.noise, device, result)
    for name, which in (("PSNR", "noisy"), ("PSNR after the blur", "blurred")):
        value = last[f"PSNR (dB) {which}"]
        result.add_metric(f"last step: {name}", value, 1, unit="dB", better="higher")
    return result.save(*lessons(result))


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
