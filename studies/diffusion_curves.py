"""What steps and guidance buy: one trained network of studies/unet_diffusion.py, sampled in many ways.

    python -m studies.unet_diffusion            # first: trains the network
    python -m studies.diffusion_curves          # half an hour; ten minutes of it train another T

What to look at: `steps.png`, how near twenty steps of a second-order solver come to a thousand of DDPM;
`guidance_curve.png`, where accuracy rises first and coverage falls after it; the table of T. A distance
varies from one set of samples to the next. Its spread says by how much. Two distances that differ by
less than two spreads cannot be told apart at this n; --num-samples raises n.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch

from imagelab.data.datasets import Dataset
from imagelab.report import figures, samples
from imagelab.report.evaluator import Evaluator, features, frechet_distance
from imagelab.report.numbers import share_cell
from imagelab.report.results import Result, start_result
from imagelab.setup.runtime import Stopwatch, UserError, generator, prepare
from imagelab.setup.settings import DataSettings, Limits, ResumableSettings
from imagelab.techniques.classifier import accuracy
from imagelab.techniques.diffusion import Sampler, trailing_steps
from imagelab.training.loop import can_resume
from studies import unet_diffusion
from studies.unet_diffusion import MODELS, Model, Steps, load_with_data, sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "diffusion_curves"
PICTURES = f"study_images/{SCRIPT}"
FEW = 20  # up to so many steps --sampler draws, DDPM takes more
COLUMNS = ["Fréchet distance", "its spread", "coverage", "accuracy", "ms per image"]

# --- one set of samples ---------------------------------------------------------------------------


def spread_of_distance(samples: torch.Tensor, real: torch.Tensor, draws: int = 20) -> float:
    """The standard deviation of the Fréchet distance from one set of samples to the next.

    `samples` and `real` are features (N, D). By the bootstrap (Efron 1979): N of the N samples are drawn
    with replacement, `draws` times. The real images stay the same, as they do in every comparison here.
    """
    rng = generator(0, "bootstrap", samples.device)
    chosen = torch.randint(
        len(samples), (draws, len(samples)), generator=rng, device=samples.device
    )
    return float(np.std([frechet_distance(samples[rows], real) for rows in chosen], ddof=1))


@dataclass
class Point:
    """A point of a curve: what was measured on one set of samples."""

    distance: float
    spread: float
    """The spread of the distance: see `spread_of_distance`."""
    coverage: float
    accuracy: float
    """The share that the classifier reads as the class asked for."""
    milliseconds: float
    """Per image."""

    def cells(self, n: int) -> list:
        """For a table, under COLUMNS."""
        accuracy = share_cell(self.accuracy, n)
        return [self.distance, self.spread, self.coverage, accuracy, self.milliseconds]

    def differs(self, other: Point) -> bool:
        """Whether the two distances lie at least two spreads apart: chance alone rarely does that."""
        return abs(self.distance - other.distance) >= 2 * max(self.spread, other.spread)


def measure(model: Model, evaluator: Evaluator, config: unet_diffusion.Config) -> Point:
    """Draw as many samples as the evaluator compares, and measure them."""
    with Stopwatch() as watch:
        images, labels = sample(model, config, evaluator.n)
    scores = evaluator.scores(images)
    return Point(
        scores.frechet,
        spread_of_distance(features(evaluator.classifier, images), evaluator.real),
        scores.coverage,
        accuracy(evaluator.classifier, images, labels),
        1000 * watch.seconds / len(images),
    )


# --- settings -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(ResumableSettings, DataSettings):
    """Settings of the curves. The network has the settings of its own training."""

    sampler: Sampler = "dpm-solver"
    """The sampler of the guidance curve. It also draws up to 20 steps where two T are compared."""
    steps: Steps = 20
    """Steps of sampling for the guidance curve."""
    num_samples: Annotated[int, Limits(300, 1_000_000)] = 300
    """Samples for each point of the curves."""
    few_steps: tuple[Steps, ...] = (5, 10, 20, 50, 100)
    """Numbers of steps at which every sampler is measured."""
    many_steps: tuple[Steps, ...] = (500, 1000)
    """Further numbers of steps, for DDPM alone."""
    scales: tuple[Annotated[float, Limits(0, 100)], ...] = (0, 1, 1.5, 2, 3, 5, 8)
    """Scales of the guidance."""
    short_t: Annotated[int, Limits(2, 10_000)] | None = 500
    """T of a second training, which is compared with the first; None: no second training."""
    lengths: tuple[Steps, ...] = (1000, 500, 20)
    """Numbers of steps at which the two trainings are compared."""


def network_config(model: Model, config: Config) -> unet_diffusion.Config:
    """The settings of the network's training, with those of this run in their place where it has them."""
    settings = {**model.settings, **vars(config), "eta": 0.0, "rescale": 0.0}
    left_out = {"sample_only", "samples_file", "checkpoint"}
    known = {f.name for f in fields(unet_diffusion.Config)} - left_out
    return unet_diffusion.Config(**{k: value for k, value in settings.items() if k in known})


# --- the curves -----------------------------------------------------------------------------------

Lines = dict[str, dict[float, Point]]  # by the name of a line, and by steps or scale


def measure_steps(
    model: Model, evaluator: Evaluator, config: Config, unet_config: unet_diffusion.Config
) -> Lines:
    """Every sampler in few steps, DDPM also in many, without guidance."""
    found: Lines = {}
    for name in ("ddpm", "ddim", "dpm-solver"):
        counts = config.few_steps + (config.many_steps if name == "ddpm" else ())
        for steps in sorted({min(steps, len(model.schedule)) for steps in counts}):
            setting = replace(unet_config, sampler=name, steps=steps, guidance=1)
            found.setdefault(name, {})[steps] = measure(model, evaluator, setting)
    return found


def measure_guidance(
    model: Model, evaluator: Evaluator, config: Config, unet_config: unet_diffusion.Config
) -> dict[float, Point]:
    """A point for each scale of the guidance."""
    return {
        scale: measure(model, evaluator, replace(unet_config, guidance=scale))
        for scale in dict.fromkeys(config.scales)
    }


def train_with(T: int, config: Config, unet_config: unet_diffusion.Config, data: Dataset) -> Model:
    """A second network, trained like the first but with another T; --resume goes on."""
    path = config.output_dir / MODELS / f"trained_T{T}.pth"
    setting = replace(unet_config, T=T, resume=can_resume(config, path))
    return unet_diffusion.train(setting, data, path)[1]


def compare_lengths(
    models: tuple[Model, Model],
    evaluator: Evaluator,
    config: Config,
    unet_config: unet_diffusion.Config,
    known: Lines,
) -> dict[tuple[str, str], tuple[Point, torch.Tensor]]:
    """Two networks trained with different T, each sampled in every number of steps, without guidance.

    By T and steps in words, and by sampler: the point, and fifty images (50, C, H, W). `known` holds what
    was already measured of the first network.
    """
    found = {}
    for steps in config.lengths:
        sampler = "ddpm" if steps > FEW else config.sampler
        setting = replace(unet_config, sampler=sampler, steps=steps, guidance=1)
        for model in models:
            T = len(model.schedule)
            if steps <= T:
                point = known.get(sampler, {}).get(steps) if model is models[0] else None
                point = point or measure(model, evaluator, setting)
                name = f"T = {T}, {steps} steps"
                found[name, sampler] = point, sample(model, setting, 50)[0]
    return found


# === the lesson ends here; below: measured, plotted, reported =====================================

TITLE = "Diffusion: what steps and guidance buy"
SUMMARY = (
    "One trained network draws with few steps and with many, by three samplers, and under more and "
    "more guidance. Quality, variety and time of each are measured."
)


def plot_curves(lines: Lines, x: str, scale: str) -> Figure:
    """Distance with its spread, coverage and accuracy over `x`: a panel each, a line for each name."""
    figure, axes = figures.new_figure(11, 3.4, columns=3)
    for k, (name, line) in enumerate(lines.items()):
        look = {"color": figures.PALETTE[k], "marker": figures.MARKERS[k], "markersize": 5}
        points, spreads = line.values(), [point.spread for point in line.values()]
        distances = [point.distance for point in points]
        axes[0, 0].errorbar(list(line), distances, spreads, label=name, capsize=2, **look)
        axes[0, 1].plot(list(line), [point.coverage for point in points], **look)
        axes[0, 2].plot(list(line), [point.accuracy for point in points], **look)
    names = "Fréchet distance", "coverage", "read as the class asked for"
    measured = sorted({at for line in lines.values() for at in line})
    for axis, name in zip(axes[0], names, strict=True):
        axis.set(xscale=scale, xlabel=x, ylabel=name)
        axis.set_xticks(measured, [f"{at:g}" for at in measured], rotation=60)
        axis.minorticks_off()
        axis.set_ylim(0, 1.02 if name != names[0] else None)
    figure.legend(loc="outside upper center", ncols=len(lines))  # beside the lines, not on them
    return figure


def report_curves(result: Result, file: str, lines: Lines, x: str, scale: str, n: int) -> None:
    """A table and a figure `file` of curves over `x`, on a log or linear `scale`."""
    points = [(name, at, point) for name, line in lines.items() for at, point in line.items()]
    rows = [[name, at, *point.cells(n)] for name, at, point in points]
    result.add_table(f"By {x}, n = {n:,}", ["sampler", x, *COLUMNS], rows)
    caption = f"Quality by {x}, n = {n:,} a point. Bars: the spread of the distance."
    result.add_figure(file, plot_curves(lines, x, scale), caption)


def lesson_of_steps(found: Lines, n: int, result: Result) -> str:
    """Whether few steps of the second-order solver differ from many of DDPM, as far as n samples tell."""
    counts = found["dpm-solver"]
    few = max((steps for steps in counts if steps <= FEW), default=min(counts))
    most = max(found["ddpm"])
    solver, ddpm = counts[few], found["ddpm"][most]
    gap = f"dpm-solver in {few} steps: distance less ddpm's in {most}"
    result.add_metric(gap, solver.distance - ddpm.distance, n)
    result.add_metric("spread of the distance at this n", ddpm.spread, n)
    return (
        f"DPM-Solver++ in {few} steps has a distance of {solver.distance:.0f}, DDPM in {most} of "
        f"{ddpm.distance:.0f}. From one set of {n:,} samples to the next a distance varies by "
        f"{max(solver.spread, ddpm.spread):.1f}, so the two "
        + ("differ." if solver.differs(ddpm) else "cannot be told apart.")
    )


def lesson_of_guidance(found: dict[float, Point], n: int, result: Result) -> str:
    """The scale of the smallest distance, and the scales that n samples do not tell from it."""
    best = min(found, key=lambda scale: found[scale].distance)
    result.add_metric("scale of the smallest distance", best, n)
    alike = [f"{s:g}" for s in found if s != best and not found[s].differs(found[best])]
    others = f"; n = {n:,} does not tell it from {' and '.join(alike)}" if alike else ""
    return f"Of the scales of the guidance {best:g} has the smallest distance{others}."


def run(config: Config) -> Result:
    """The curves, from the checkpoint under --output-dir."""
    device = prepare(config.seed, config.device)
    config = config.if_quick(
        few_steps=(2, 5), many_steps=(10,), scales=(0, 1, 3), lengths=(10,), steps=5
    )
    model, data = load_with_data(config, device)
    unet_config = network_config(model, config)
    longest = max(unet_config.T, config.short_t or 0)
    if min(config.lengths) > longest:
        raise UserError(f"--lengths must name a number of steps up to {longest}, the longer T.")
    trailing_steps(config.short_t or unet_config.T, config.steps)  # a wrong number is refused now
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    evaluator = samples.evaluator_for(config, data, config.num_samples)
    if evaluator is None:
        raise UserError("The curves need a data set with classes and 300 held-out images.")
    n = evaluator.n
    by_scale = measure_guidance(model, evaluator, config, unet_config)
    report_curves(
        result, "guidance_curve.png", {config.sampler: by_scale}, "guidance scale", "linear", n
    )
    by_steps = measure_steps(model, evaluator, config, unet_config)
    report_curves(result, "steps.png", by_steps, "steps", "log", n)
    if config.short_t is not None:
        models = model, train_with(config.short_t, config, unet_config, data)
        found = compare_lengths(models, evaluator, config, unet_config, by_steps)
        rows = [[*names, *point.cells(n)] for names, (point, _) in found.items()]
        result.add_table(f"By T of the training, n = {n:,}", ["", "sampler", *COLUMNS], rows)
        grids = {
            name.replace(", ", "\n"): figures.grid(images, columns=5)
            for (name, _), (_, images) in found.items()
        }
        figure = figures.plot_side_by_side(grids, height=5)
        result.add_figure("lengths.png", figure, "The same seeds: two trained T, in several steps.")
    lessons = lesson_of_steps(by_steps, n, result), lesson_of_guidance(by_scale, n, result)
    return result.save(*lessons)


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
