"""What steps and guidance buy: one trained network of studies/unet_diffusion.py, sampled in many ways.

    python -m studies.unet_diffusion            # first: trains the network
    python -m studies.diffusion_curves          # half an hour, of which ten minutes train another T

What to look at: `steps.png`, how near twenty steps of a second-order solver come to a thousand of DDPM;
`guidance_curve.png`, where accuracy rises first and coverage falls after it; the table of T. A distance
differs from one set of samples to the next, by a spread that stands beside it. Two distances that differ
by less than two spreads are not told apart at this n, which --num-samples raises.
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
from imagelab.setup.settings import DataSettings, Limits, ResumableSettings, TrainingSettings
from imagelab.techniques.classifier import accuracy
from imagelab.techniques.diffusion import Sampler, trailing_steps
from imagelab.training.loop import can_resume
from studies import unet_diffusion
from studies.unet_diffusion import MODELS, Model, Steps, load_with_data, sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "diffusion_curves"
PICTURES = f"study_images/{SCRIPT}"


@dataclass(frozen=True)
class Config(ResumableSettings, DataSettings):
    """Settings of the curves; the second network is as the checkpoint's, but for its T."""

    sampler: Sampler = "dpm-solver"
    """The sampler of the guidance curve, and of up to 20 steps from the two networks."""
    steps: Steps = 20
    """Its steps for the guidance curve."""
    num_samples: Annotated[int, Limits(300, 1_000_000)] = 300
    """Samples for each point of the curves."""
    few_steps: tuple[Steps, ...] = (5, 10, 20, 50, 100)
    """Numbers of steps for every sampler."""
    many_steps: tuple[Steps, ...] = (500, 1000)
    """Further numbers of steps, for DDPM alone."""
    scales: tuple[Annotated[float, Limits(0, 100)], ...] = (0, 1, 1.5, 2, 3, 5, 8)
    """Scales of the guidance."""
    short_t: Annotated[int, Limits(2, 10_000)] | None = 500
    """T of a second training, with which the checkpoint's is compared; None: no second training."""
    lengths: tuple[Steps, ...] = (1000, 500, 20)
    """Steps of sampling from each of the two."""


# --- one set of samples ---------------------------------------------------------------------------


def settings_of_network(model: Model, config: Config) -> unet_diffusion.Config:
    """The settings with which the network was trained, and those of this run where it has them."""
    network = {f.name for f in fields(unet_diffusion.ClassSettings)}
    network -= {f.name for f in fields(TrainingSettings)}
    here = {f.name for f in fields(unet_diffusion.Config)} & {f.name for f in fields(config)}
    return unet_diffusion.Config(
        **{name: model.settings[name] for name in network},
        **{name: getattr(config, name) for name in here},
    )


@dataclass
class Point:
    """What was measured on one set of samples."""

    distance: float
    spread: float
    """By how much the distance differs from one such set to the next."""
    coverage: float
    accuracy: float
    """The share read as the class asked for."""
    milliseconds: float
    """Per image."""

    def cells(self, n: int) -> list:
        """For a table, under COLUMNS."""
        accuracy = share_cell(self.accuracy, n)
        return [self.distance, self.spread, self.coverage, accuracy, self.milliseconds]

    def differs(self, other: Point) -> bool:
        """Whether the two distances are further apart than chance may put them: by two spreads."""
        return abs(self.distance - other.distance) >= 2 * max(self.spread, other.spread)


BySteps = dict[tuple[str, int], Point]  # by sampler and steps
Length = tuple[
    int, int, str, Point, torch.Tensor
]  # T, steps, sampler, and fifty images (50, C, H, W)
COLUMNS = ["Fréchet distance", "its spread", "coverage", "accuracy", "ms per image"]


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


def spread_of_distance(seen: torch.Tensor, real: torch.Tensor, draws: int = 20) -> float:
    """The standard deviation of the Fréchet distance between features (N, D), over sets of samples.

    By the bootstrap (Efron 1979): other sets of N are drawn from these N samples, with replacement. The
    real images stay the same, as they do for all that is compared.
    """
    rng = generator(0, "bootstrap", seen.device)
    chosen = torch.randint(len(seen), (draws, len(seen)), generator=rng, device=seen.device)
    return float(np.std([frechet_distance(seen[rows], real) for rows in chosen], ddof=1))


# --- the curves -----------------------------------------------------------------------------------


def measure_steps(
    model: Model, evaluator: Evaluator, config: Config, own: unet_diffusion.Config
) -> BySteps:
    """Every sampler in few steps, DDPM also in many, without guidance."""
    found = {}
    for name in ("ddpm", "ddim", "dpm-solver"):
        counts = config.few_steps + (config.many_steps if name == "ddpm" else ())
        for steps in sorted({min(steps, len(model.schedule)) for steps in counts}):
            this = replace(own, sampler=name, steps=steps, guidance=1)
            found[name, steps] = measure(model, evaluator, this)
    return found


def measure_guidance(
    model: Model, evaluator: Evaluator, config: Config, own: unet_diffusion.Config
) -> dict[float, Point]:
    """What was measured under each scale of the guidance."""
    return {
        scale: measure(model, evaluator, replace(own, guidance=scale))
        for scale in dict.fromkeys(config.scales)
    }


def trained_with(T: int, config: Config, own: unet_diffusion.Config, data: Dataset) -> Model:
    """A second network, trained like the first but with another T; --resume goes on."""
    path = config.output_dir / MODELS / f"trained_T{T}.pth"
    _, model = unet_diffusion.train(replace(own, T=T, resume=can_resume(config, path)), data, path)
    return model


def measure_lengths(
    config: Config, own: unet_diffusion.Config, models: tuple[Model, Model], evaluator: Evaluator,
    known: BySteps,
) -> list[Length]:  # fmt: skip
    """Networks trained with different T, each sampled in every number of steps, without guidance.

    DDPM takes more than 20 steps. `known` is what was already measured of the first network.
    """
    found = []
    for steps in config.lengths:
        sampler = "ddpm" if steps > 20 else config.sampler
        this = replace(own, sampler=sampler, steps=steps, guidance=1)
        for model in models:
            T = len(model.schedule)
            if steps <= T:
                point = known.get((sampler, steps)) if model is models[0] else None
                point = point or measure(model, evaluator, this)
                found.append((T, steps, sampler, point, sample(model, this, 50)[0]))
    return found


# === the lesson ends here; below: measured, plotted, reported =====================================

TITLE = "Diffusion: what steps and guidance buy"
SUMMARY = (
    "One trained network, drawn from with few steps and with many, by three samplers, and under more "
    "and more guidance: quality, variety and time of each."
)


def report_steps(found: BySteps, n: int, result: Result) -> None:
    """The table and the figure of the steps."""
    rows = [[name, steps, *point.cells(n)] for (name, steps), point in found.items()]
    columns = ["sampler", "steps", *COLUMNS]
    result.add_table(f"Without guidance (scale 1), n = {n:,}", columns, rows)
    result.add_figure("steps.png", plot_steps(found), f"Quality by the number of steps, n = {n:,} a "
                      "point; the bars are the spread of the distance at this n.")  # fmt: skip
    few, most = few_and_most(found)
    for name in ("ddim", "dpm-solver"):
        if (name, few) in found:
            gap = found[name, few].distance - found["ddpm", most].distance
            result.add_metric(f"{name} in {few} steps: distance less ddpm's in {most}", gap, n)
    spread = found["ddpm", most].spread
    result.add_metric("spread of the distance at this n", spread, n)


def plot_steps(found: BySteps) -> Figure:
    """Distance and coverage over the number of steps, a line per sampler."""
    figure, axes = figures.new_figure(9, 3.4, columns=2)
    for k, sampler in enumerate(dict.fromkeys(name for name, _ in found)):
        look = {"color": figures.PALETTE[k], "marker": figures.MARKERS[k], "markersize": 5}
        line = {steps: point for (name, steps), point in found.items() if name == sampler}
        points = line.values()
        axes[0, 0].errorbar(list(line), [point.distance for point in points],
                            [point.spread for point in points], capsize=2, **look)  # fmt: skip
        axes[0, 1].plot(list(line), [point.coverage for point in points], label=sampler, **look)
    for axis, name in ((axes[0, 0], "Fréchet distance"), (axes[0, 1], "coverage")):
        axis.set_xscale("log")
        axis.set_xlabel("steps of sampling")
        axis.set_ylabel(name)
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 1].set_ylim(0, 1.02)
    axes[0, 1].legend(loc="lower right")
    return figure


def few_and_most(found: BySteps) -> tuple[int, int]:
    """The most steps up to 20 of the faster samplers (0: there are none), and the most of DDPM."""
    few = max((steps for name, steps in found if name != "ddpm" and steps <= 20), default=0)
    return few, max(steps for name, steps in found if name == "ddpm")


def lesson_of_steps(found: BySteps, n: int) -> str:
    """What few steps of the second-order solver cost, as far as n samples tell."""
    few, most = few_and_most(found)
    if ("dpm-solver", few) not in found:
        return ""
    solver, ddpm = found["dpm-solver", few], found["ddpm", most]
    spread = max(solver.spread, ddpm.spread)
    verdict = "tells the two apart" if solver.differs(ddpm) else "does not tell the two apart"
    return (
        f"DPM-Solver++ in {few} steps has a distance of {solver.distance:.0f}, DDPM in {most} of "
        f"{ddpm.distance:.0f}; from one set of {n:,} samples to the next a distance differs by "
        f"{spread:.1f}, so that this n {verdict}."
    )


def report_guidance(found: dict[float, Point], config: Config, n: int, result: Result) -> None:
    """The table and the figure of the guidance."""
    rows = [[scale, *point.cells(n)[:-1]] for scale, point in found.items()]
    caption = f"Guidance, {config.sampler} in {config.steps} steps, n = {n:,}"
    result.add_table(caption, ["scale", *COLUMNS[:-1]], rows)
    best = min(found, key=lambda scale: found[scale].distance)
    result.add_metric("scale of the smallest distance", best, n)
    result.add_figure("guidance_curve.png", plot_guidance(found), "What guidance buys, and what it "
                      f"costs, n = {n:,} a point; the bars are the spread of the distance.")  # fmt: skip


def plot_guidance(found: dict[float, Point]) -> Figure:
    """Accuracy, coverage and distance over the scale of the guidance."""
    scales, points = list(found), list(found.values())
    figure, axes = figures.new_figure(9, 3.4, columns=2)
    lines = {"accuracy on the asked class": [point.accuracy for point in points],
             "coverage": [point.coverage for point in points]}  # fmt: skip
    figures.plot_lines(axes[0, 0], scales, lines, "scale of the guidance", "share")
    axes[0, 0].set_ylim(0, 1.02)
    axes[0, 0].legend(loc="lower right")
    axes[0, 1].errorbar(scales, [point.distance for point in points], [point.spread for point in points],
                        color=figures.PALETTE[0], marker=figures.MARKERS[0], capsize=2)  # fmt: skip
    axes[0, 1].set(xlabel="scale of the guidance", ylabel="Fréchet distance")
    return figure


def lesson_of_guidance(found: dict[float, Point], n: int) -> str:
    """The scale of the smallest distance, and those that n samples do not tell from it."""
    best = min(found, key=lambda scale: found[scale].distance)
    alike = [f"{s:g}" for s in found if s != best and not found[s].differs(found[best])]
    others = f", from which n = {n:,} does not tell {' and '.join(alike)} apart" if alike else ""
    return (
        f"Of the scales of the guidance {best:g} has the smallest distance{others}; what larger ones buy "
        "in accuracy on the class, and what they cost in coverage, is in the figure."
    )


def report_lengths(found: list[Length], n: int, result: Result) -> None:
    """Two trained T, and the steps of sampling from each: the table and the figure."""
    rows, pictures = [], {}
    for T, steps, sampler, point, images in found:
        rows.append([f"T = {T}, {steps} steps", sampler, *point.cells(n)])
        pictures[f"T = {T}\n{steps} steps"] = figures.grid(images, columns=5)
    caption = f"T of the training against steps of sampling, n = {n:,}"
    result.add_table(caption, ["", "sampler", *COLUMNS], rows)
    caption = "The same seeds by two trained T and by the steps of sampling."
    result.add_figure("lengths.png", figures.plot_side_by_side(pictures, height=5), caption)


def run(config: Config) -> Result:
    """The curves, from the checkpoint under --output-dir."""
    device = prepare(config.seed, config.device)
    config = config.if_quick(
        few_steps=(2, 5), many_steps=(10,), scales=(0, 1, 3), lengths=(10,), steps=5,
    )  # fmt: skip
    model, data = load_with_data(config, device)
    own = settings_of_network(model, config)
    longest = max(own.T, config.short_t or 0)
    if min(config.lengths) > longest:
        raise UserError(f"--lengths must name a number of steps up to {longest}, the longer T.")
    trailing_steps(config.short_t or own.T, config.steps)  # a wrong number is refused now
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    evaluator = samples.evaluator_for(config, data, config.num_samples)
    if evaluator is None:
        raise UserError("The curves need a data set with classes and 300 held-out images.")
    n = evaluator.n
    by_guidance = measure_guidance(model, evaluator, config, own)
    report_guidance(by_guidance, config, n, result)
    by_steps = measure_steps(model, evaluator, config, own)
    report_steps(by_steps, n, result)
    if config.short_t is not None:
        short = trained_with(config.short_t, config, own, data)
        lengths = measure_lengths(config, own, (model, short), evaluator, by_steps)
        report_lengths(lengths, n, result)
    return result.save(lesson_of_steps(by_steps, n), lesson_of_guidance(by_guidance, n))


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
