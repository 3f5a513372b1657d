"""Stepwise noise, then blur: a diffusion model's forward process, and the plainest of all filters.

    python diffusion_demo.py                                  # seconds
    python diffusion_demo.py --image photo.jpg --steps 8
    python diffusion_demo.py --process variance-preserving    # the forward process of a DDPM
    python diffusion_demo.py --compare                        # six classical filters and a learned one

Process `additive` adds fresh noise of σ = 0.1·(i + 1) to the clean picture in step i, and clips the sum
to [0, 1]. `variance-preserving` is the forward process of Ho et al. (2020):
x_t = √ᾱ_t·x₀ + √(1 − ᾱ_t)·ε on [-1, 1]. It uses one ε in all steps, and t is evenly spaced over the
linear schedule of 1,000 steps. The picture fades as the noise grows, and the variance stays.

What to look at: PSNR falls by about 5 dB each time σ doubles (6 dB without the clipping). The blur
removes most of the noise and softens every edge. The measured σ is lower than the added σ, because
clipping cuts the noise of dark and bright pixels. With `--compare`, better filters and a network that
was trained on photographs restore the same pictures. Each is told the measured σ.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
import torch

from imagelab.data.pictures import read_grey, write_gif, write_png
from imagelab.data.quality import psnr, ssim
from imagelab.report import figures
from imagelab.report.results import Result, start_result
from imagelab.setup.runtime import UserError, prepare
from imagelab.setup.settings import Limits, Settings
from imagelab.techniques.diffusion import linear_schedule
from imagelab.techniques.restoration import Restored, compare, estimated_sigma, methods

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "diffusion_demo"
PICTURES = "diffusion_images"

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


# --- every step: add noise, blur, measure ---------------------------------------------------------


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
            raise UserError("--compare restores noisy pictures. Those of --process variance-preserving "
                            "also fade.")  # fmt: skip


class Step(NamedTuple):
    """One step: the noisy picture, the same blurred, and what is measured of both."""

    noisy: np.ndarray
    blurred: np.ndarray
    measured: dict[str, float]


def measure(
    clean: np.ndarray, noisy: np.ndarray, blurred: np.ndarray, sigma: float
) -> dict[str, float]:
    """The noise of one step, and the errors against the clean picture before and after the blur."""
    measured = {"σ added": sigma, "σ measured": estimated_sigma(noisy)}
    for which, picture in (("", noisy), (", blurred", blurred)):
        measured["MSE" + which] = float(np.mean((clean - picture) ** 2))
        measured["PSNR (dB)" + which] = psnr(clean, picture)
        measured["SSIM" + which] = ssim(clean, picture)
    return measured


def noise_and_blur(clean: np.ndarray, config: Config) -> list[Step]:
    """Every step of the process, blurred and measured."""
    steps, rng = [], np.random.default_rng(config.seed)
    for sigma, noisy in PROCESSES[config.process](clean, config.steps, rng):
        blurred = blur(noisy, config.kernel)
        steps.append(Step(noisy, blurred, measure(clean, noisy, blurred, sigma)))
    return steps


# === the lesson ends here; below: plotted, reported ===============================================

TITLE = "Stepwise noise, then blur"
SUMMARY = (
    "A picture is covered with more and more Gaussian noise, and a Gaussian blur tries to bring it back. "
    "Each step is measured: how much noise, how far from the clean picture, how much the blur repairs."
)


def plot_steps(clean: np.ndarray, steps: list[Step], kernel: int) -> Figure:
    """The clean picture, every step, and the last one blurred."""
    shown = {"clean": clean}
    for i, (noisy, _, measured) in enumerate(steps, start=1):
        title = f"step {i}: σ = {measured['σ added']:.2f}\nPSNR {measured['PSNR (dB)']:.1f} dB"
        shown[title] = np.clip(noisy, 0, 1)
    title = f"step {len(steps)}, blurred {kernel}×{kernel}"
    title += f"\nPSNR {steps[-1].measured['PSNR (dB), blurred']:.1f} dB"
    shown[title] = np.clip(steps[-1].blurred, 0, 1)
    return figures.plot_side_by_side(shown, rows=-(-len(shown) // 4), height=2.9)


def plot_errors(clean: np.ndarray, steps: list[Step]) -> Figure:
    """The distance from the clean picture, doubled, of every step and of the last one blurred."""
    pictures = {f"step {i}": step.noisy for i, step in enumerate(steps, start=1)}
    pictures[f"step {len(steps)}, blurred"] = steps[-1].blurred
    errors = {name: np.clip(np.abs(x - clean) * 2, 0, 1) for name, x in pictures.items()}
    return figures.plot_side_by_side(errors, rows=-(-len(errors) // 3), height=2.9)


def plot_quantities(steps: list[Step]) -> Figure:
    """σ, PSNR and SSIM over the steps."""
    figure, (axes,) = figures.new_figure(10.5, 3.2, columns=3)
    numbers = range(1, len(steps) + 1)
    for axis, name, kinds in zip(
        axes,
        ("σ", "PSNR (dB)", "SSIM"),
        (
            {"added": " added", "measured": " measured"},
            *[{"noisy": "", "blurred": ", blurred"}] * 2,
        ),
        strict=True,
    ):
        lines = {kind: [step.measured[name + end] for step in steps] for kind, end in kinds.items()}
        figures.plot_lines(axis, numbers, lines, "step", name)
        axis.set_xticks(numbers)
    return figure


def plot_restored(restored: dict[str, list[Restored]], sigmas: list[float]) -> Figure:
    """A column per method, a row per step."""
    rows, columns = len(sigmas), len(restored)
    figure, axes = figures.new_figure(1.75 * columns, 1.95 * rows, rows, columns)
    for column, (name, found) in zip(axes.T, restored.items(), strict=True):
        for k, (axis, one) in enumerate(zip(column, found, strict=True)):
            title = f"{one.psnr:.1f} dB"
            figures.show_image(axis, one.picture, title if k else f"{name}\n{title}")
    figures.name_rows(axes, [f"σ = {sigma:.2f}" for sigma in sigmas])
    return figure


def report_restored(clean: np.ndarray, steps: list[Step], device, result: Result) -> None:
    """Every noisy step restored by every method: pictures and two tables."""
    by, restored = methods(device), {}
    for i, step in enumerate(steps, start=1):
        noisy = np.clip(step.noisy, 0, 1)
        for name, one in compare(clean, noisy, estimated_sigma(noisy), by).items():
            restored.setdefault(name, []).append(one)
            if name in by:  # the noisy one is the step's own picture
                file = f"restored_{i}_{name.replace(' ', '_')}.png"
                write_png(result.add_file(file, f"Step {i}, {name}.", False), one.picture)
    sigmas = [step.measured["σ added"] for step in steps]
    caption = (
        "The same noise under six classical methods and a network that was trained on other photographs. "
        "Each is told the measured σ."
    )
    result.add_figure("compared.png", plot_restored(restored, sigmas), caption)
    columns = ["method", *(f"σ = {sigma:.2g}" for sigma in sigmas), "s per picture"]
    for name, unit in (("psnr", "PSNR (dB)"), ("ssim", "SSIM")):
        rows = [
            [
                method,
                *(getattr(one, name) for one in found),
                np.mean([one.seconds for one in found]),
            ]
            for method, found in restored.items()
        ]
        size = f"{clean.shape[1]}×{clean.shape[0]} pixels"
        result.add_table(f"Restored, {size}: {unit}", columns, rows)
    for method in ("non-local means", "learned"):
        mean = np.mean([one.psnr for one in restored[method]])
        name = f"mean over the steps: {method}"
        result.add_metric(name, mean, len(steps), unit="dB", better="higher")


def lessons(result: Result) -> list[str]:
    """What the figures teach, as far as they were measured."""
    taught = []
    if decibels := result.measured("last step: PSNR", "last step: PSNR after the blur"):
        taught.append(
            "At the last step noise leaves a PSNR of {:.1f} dB, and a blur raises it to {:.1f} dB: it "
            "averages the noise away, and the edges with it.".format(*decibels)
        )
    kinds = ("non-local means", "learned")
    if decibels := result.measured(*(f"mean over the steps: {kind}" for kind in kinds)):
        taught.append(
            "Over all steps non-local means reach {:.1f} dB and a trained network {:.1f} dB. A blur "
            "knows nothing about pictures, non-local means know that pictures repeat themselves, and a "
            "network knows what it has seen.".format(*decibels)
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
        caption = f"After step {i}, σ = {step.measured['σ added']:.2f}."
        write_png(result.add_file(f"step_{i}.png", caption, featured=False), step.noisy)
    blurred, last = steps[-1].blurred, steps[-1].measured
    write_png(result.add_file("blurred.png", "The noisiest, blurred.", featured=False), blurred)
    helped = all(last[name + ", blurred"] > last[name] for name in ("PSNR (dB)", "SSIM"))
    part = "part" if helped else "nothing"
    caption = f"The picture drowns step by step. The blur brings {part} of it back."
    result.add_figure("whole_way.png", plot_steps(clean, steps, config.kernel), caption)
    caption = (
        "Distance from the clean picture, doubled. The error of the noise lies everywhere. The error of "
        "the blur lies along the edges."
    )
    result.add_figure("errors.png", plot_errors(clean, steps), caption)
    result.add_figure("quantities.png", plot_quantities(steps), "What is measured at every step.")
    frames = [clean, *(step.noisy for step in steps), blurred]
    write_gif(result.add_file("whole_way.gif", "All steps as an animation."), frames, 0.5)
    caption = f"Quantities per step, {clean.shape[1]}×{clean.shape[0]} pixels"
    rows = [[i, *step.measured.values()] for i, step in enumerate(steps, start=1)]
    result.add_table(caption, ["step", *last], rows)
    if config.compare:
        report_restored(clean, steps, device, result)
    for name, end in (("PSNR", ""), ("PSNR after the blur", ", blurred")):
        value = last["PSNR (dB)" + end]
        result.add_metric(f"last step: {name}", value, 1, unit="dB", better="higher")
    return result.save(*lessons(result))


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
