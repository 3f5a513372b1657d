"""Stepwise Gaussian noise, then blur: what a diffusion model's forward process does to a picture,
and what the plainest of all filters can undo of it.

    python diffusion_demo.py                                  # seconds
    python diffusion_demo.py --image photo.jpg --steps 8
    python diffusion_demo.py --process variance-preserving    # the forward process of a DDPM
    python diffusion_demo.py --compare                        # six classical filters and a learned one

Process `additive` adds fresh noise of σ = 0.1·(i + 1) to the clean picture in step i and clips the
sum to [0, 1]. `variance-preserving` is the true forward process of Ho et al. (2020),
x_t = √ᾱ_t·x₀ + √(1 − ᾱ_t)·ε on [-1, 1], with one ε for the whole way and t evenly spaced over the
linear schedule of 1,000 steps: the picture fades as the noise grows, and the variance stays.

What to look at: PSNR falls by about 5 dB each time σ doubles (6 without the clipping); the blur takes
most of the noise and blunts every edge; and σ measured lags behind σ added, because clipping cuts the
noise of dark and bright pixels. With `--compare`: what better filters make of the same noise, each
told the measured σ, and what a network does that has learnt from photographs.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch

from imagelab.data.pictures import read_grey, write_gif, write_png
from imagelab.data.quality import psnr, ssim
from imagelab.report import figures
from imagelab.report.results import Result, start_result
from imagelab.setup.runtime import UserError, prepare
from imagelab.setup.settings import Limits, Settings
from imagelab.techniques.diffusion import linear_schedule
from imagelab.techniques.restoration import compare, estimated_sigma, methods

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "diffusion_demo"
PICTURES = "diffusion_images"


@dataclass(frozen=True)
class Config(Settings):
    """Settings of the noise and of the blur."""

    image: Path | None = None
    """Your own picture, turned grey. Default: scikit-image's `camera`."""
    size: Annotated[int, Limits(16, 4096)] = 256
    """Pixels that the longer side is scaled down to."""
    steps: Annotated[int, Limits(1, 10)] = 5
    """Number of noise steps."""
    process: Literal["additive", "variance-preserving"] = "additive"
    """additive: σ = 0.1·(i + 1), clipped; variance-preserving: the forward process of a DDPM."""
    kernel: Annotated[int, Limits(1, 99)] = 5
    """Width of the Gaussian blur in pixels, an odd number."""
    compare: bool = False
    """Also restore every step by six classical methods and a trained network, and compare them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel % 2 == 0:
            raise UserError(f"--kernel must be odd, not {self.kernel}.")
        if self.compare and self.process != "additive":
            raise UserError("--compare restores pictures with noise on them: those of --process "
                            "variance-preserving also fade.")  # fmt: skip


# --- the two processes ----------------------------------------------------------------------------


def additive(
    picture: np.ndarray, steps: int, rng: np.random.Generator
) -> Iterator[tuple[float, np.ndarray]]:
    """Yields (σ, noisy picture) with σ = 0.1, 0.2, …; (H, W) in [0, 1], clipped."""
    for i in range(steps):
        sigma = 0.1 * (i + 1)
        yield sigma, np.clip(picture + rng.normal(0, sigma, picture.shape), 0, 1)


def variance_preserving(
    picture: np.ndarray, steps: int, rng: np.random.Generator
) -> Iterator[tuple[float, np.ndarray]]:
    """Yields (σ, x_t) for t evenly spaced up to T = 1000 (Ho et al. eq. 4).

    x_t is computed on [-1, 1] and mapped back, so its values leave [0, 1]; σ = √(1 − ᾱ_t)/2 is that
    of the noise after the mapping.
    """
    schedule = linear_schedule(1000)
    x0 = torch.from_numpy(picture * 2 - 1).float()[None]
    eps = torch.from_numpy(rng.normal(size=picture.shape)).float()[None]
    for t in np.linspace(0, 999, steps + 1)[1:].round().astype(int):
        x_t = schedule.q_sample(x0, torch.tensor([t]), eps)[0].double().numpy()
        yield float((1 - schedule.alpha_bar[t]).sqrt()) / 2, (x_t + 1) / 2


PROCESSES = {"additive": additive, "variance-preserving": variance_preserving}


def blur(picture: np.ndarray, kernel: int) -> np.ndarray:
    """Gaussian blur of `kernel` × `kernel` pixels; OpenCV derives σ = 0.3·((kernel − 1)/2 − 1) + 0.8."""
    import cv2

    return cv2.GaussianBlur(picture, (kernel, kernel), 0)


# --- measuring ------------------------------------------------------------------------------------


@dataclass
class Quantities:
    """What is measured at one step, against the clean picture."""

    sigma_added: float
    sigma_measured: float
    mse: float
    psnr: float
    ssim: float
    mse_blurred: float
    psnr_blurred: float
    ssim_blurred: float


def measure(clean: np.ndarray, noisy: np.ndarray, blurred: np.ndarray, sigma: float) -> Quantities:
    """The noise of one step, and how far the picture is from the clean one before and after the blur."""
    errors = [
        float(value)
        for picture in (noisy, blurred)
        for value in (np.mean((clean - picture) ** 2), psnr(clean, picture), ssim(clean, picture))
    ]
    return Quantities(sigma, estimated_sigma(noisy), *errors)


# === the lesson ends here; below: plotted, reported ===============================================

TITLE = "Stepwise noise, then blur"
SUMMARY = (
    "A picture is covered with more and more Gaussian noise, and a Gaussian blur tries to bring it back. "
    "Each step is measured: how much noise, how far from the clean picture, how much the blur repairs."
)
COLUMNS = [
    "step", "σ added", "σ measured", "MSE", "PSNR (dB)", "SSIM",
    "MSE, blurred", "PSNR (dB), blurred", "SSIM, blurred",
]  # fmt: skip


def plot_steps(
    picture: np.ndarray,
    noisy: list[np.ndarray],
    blurred: np.ndarray,
    rows: list[Quantities],
    kernel: int,
) -> Figure:
    """The clean picture, every step, and the last one blurred."""
    shown = {"clean": picture}
    for i, (image, row) in enumerate(zip(noisy, rows, strict=True), start=1):
        shown[f"step {i}: σ = {row.sigma_added:.2f}\nPSNR {row.psnr:.1f} dB"] = np.clip(image, 0, 1)
    name = f"step {len(rows)}, blurred {kernel}×{kernel}\nPSNR {rows[-1].psnr_blurred:.1f} dB"
    shown[name] = np.clip(blurred, 0, 1)
    return figures.plot_side_by_side(shown, rows=-(-len(shown) // 4), height=2.9)


def plot_errors(picture: np.ndarray, noisy: list[np.ndarray], blurred: np.ndarray) -> Figure:
    """The distance from the clean picture, doubled, of every step and of the last one blurred."""
    pictures = {f"step {i}": image for i, image in enumerate(noisy, start=1)}
    pictures[f"step {len(noisy)}, blurred"] = blurred
    errors = {name: np.clip(np.abs(x - picture) * 2, 0, 1) for name, x in pictures.items()}
    return figures.plot_side_by_side(errors, rows=-(-len(errors) // 3), height=2.9)


def plot_quantities(rows: list[Quantities]) -> Figure:
    """σ, PSNR and SSIM over the steps."""
    figure, axes = figures.new_figure(10.5, 3.2, columns=3)
    steps = range(1, len(rows) + 1)
    panels = [
        ("σ", {"added": "sigma_added", "measured": "sigma_measured"}),
        ("PSNR (dB)", {"noisy": "psnr", "blurred": "psnr_blurred"}),
        ("SSIM", {"noisy": "ssim", "blurred": "ssim_blurred"}),
    ]
    for axis, (ylabel, names) in zip(axes[0], panels, strict=True):
        lines = {label: [getattr(row, name) for row in rows] for label, name in names.items()}
        figures.plot_lines(axis, steps, lines, "step", ylabel)
        axis.set_xticks(steps)
    return figure


def plot_restored(pictures: dict[str, list], rows: list[Quantities]) -> Figure:
    """A column per method, a row per step."""
    figure, axes = figures.new_figure(
        1.75 * len(pictures), 1.95 * len(rows), len(rows), len(pictures)
    )
    for column, (name, restored) in zip(axes.T, pictures.items(), strict=True):
        for k, (axis, one) in enumerate(zip(column, restored, strict=True)):
            title = f"{one.psnr:.1f} dB"
            figures.show_image(axis, one.picture, title if k else f"{name}\n{title}")
    figures.name_rows(axes, [f"σ = {row.sigma_added:.2f}" for row in rows])
    return figure


def report_restored(
    picture: np.ndarray, noisy: list, rows: list[Quantities], by: dict, result: Result
) -> None:
    """Every noisy step restored by every method: a picture and two tables."""
    pictures: dict[str, list] = {}
    for i, image in enumerate(noisy, start=1):
        image = np.clip(image, 0, 1)
        found = compare(picture, image, estimated_sigma(image), by)
        for name, restored in found.items():
            pictures.setdefault(name, []).append(restored)
            if name != "noisy":  # that is the step's own picture
                file = f"restored_{i}_{name.replace(' ', '_')}.png"
                write_png(result.add_file(file, f"Step {i}, {name}.", False), restored.picture)
    caption = (
        "The same noise under six classical methods and a network that was trained on other photographs, "
        "each told the measured σ."
    )
    result.add_figure("compared.png", plot_restored(pictures, rows), caption)
    size = f"{picture.shape[1]}×{picture.shape[0]} pixels"
    sigmas = [f"σ = {row.sigma_added:.2g}" for row in rows]
    seconds = {name: np.mean([one.seconds for one in found]) for name, found in pictures.items()}
    result.add_table(
        f"Restored, {size}: PSNR (dB)",
        ["method", *sigmas, "s per picture"],
        [[name, *[one.psnr for one in found], seconds[name]] for name, found in pictures.items()],
    )
    result.add_table(
        f"Restored, {size}: SSIM",
        ["method", *sigmas],
        [[name, *[one.ssim for one in found]] for name, found in pictures.items()],
    )
    for name in ("non-local means", "learned"):
        mean = np.mean([restored.psnr for restored in pictures[name]])
        result.add_metric(f"mean over the steps: {name}", mean, len(noisy), unit="dB",
                          better="higher")  # fmt: skip


def lessons(result: Result) -> list[str]:
    """What the figures teach, as far as they were measured."""
    told = []
    if decibels := result.measured("last step: PSNR", "last step: PSNR after the blur"):
        noisy, blurred = decibels
        told.append(f"Noise left {noisy:.1f} dB of the picture at the last step, and a blur made of that "
                    f"{blurred:.1f} dB: it averages the noise away, and the edges with it.")  # fmt: skip
    methods = ("non-local means", "learned")
    if compared := result.measured(*(f"mean over the steps: {name}" for name in methods)):
        classical, learned = compared
        told.append(
            f"Over all steps non-local means reach {classical:.1f} dB and a trained network "
            f"{learned:.1f} dB; a blur knows nothing of pictures, non-local means that they repeat "
            "themselves, a network what it has seen."
        )
    return told


def run(config: Config) -> Result:
    """Noise, blur, measure; what the driver and the tests call."""
    device = prepare(config.seed, config.device)
    config = config.if_quick(size=128)
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device)
    picture = read_grey(config.image, max_side=config.size)
    rng = np.random.default_rng(config.seed)
    noisy, blurred, rows = [], [], []
    for i, (sigma, image) in enumerate(
        PROCESSES[config.process](picture, config.steps, rng), start=1
    ):
        noisy.append(image)
        blurred.append(blur(image, config.kernel))
        rows.append(measure(picture, image, blurred[-1], sigma))
        path = result.add_file(f"step_{i}.png", f"After step {i}, σ = {sigma:.2f}.", featured=False)
        write_png(path, image)
    write_png(result.add_file("blurred.png", "The noisiest, blurred.", featured=False), blurred[-1])

    last = rows[-1]
    helped = last.psnr_blurred > last.psnr and last.ssim_blurred > last.ssim
    back = "brings part of it back" if helped else "brings nothing of it back"
    result.add_figure("whole_way.png", plot_steps(picture, noisy, blurred[-1], rows, config.kernel),
                      f"The picture drowns step by step; the blur {back}.")  # fmt: skip
    result.add_figure("errors.png", plot_errors(picture, noisy, blurred[-1]),
                      "Distance from the clean picture, doubled: noise lies everywhere, what the blur "
                      "gets wrong lies along the edges.")  # fmt: skip
    result.add_figure("quantities.png", plot_quantities(rows), "What is measured at every step.")
    frames = [picture, *noisy, blurred[-1]]
    write_gif(result.add_file("whole_way.gif", "The whole way as an animation."), frames, 0.5)
    result.add_table(
        f"Quantities per step, {picture.shape[1]}×{picture.shape[0]} pixels",
        COLUMNS,
        [[i, *asdict(row).values()] for i, row in enumerate(rows, start=1)],
    )
    if config.compare:
        report_restored(picture, noisy, rows, methods(device), result)
    for name, value in (("PSNR", last.psnr), ("PSNR after the blur", last.psnr_blurred)):
        result.add_metric(f"last step: {name}", value, 1, unit="dB", better="higher")
    return result.save(*lessons(result))


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
