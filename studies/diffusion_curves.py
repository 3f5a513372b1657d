"""What steps and guidance buy: one trained network of studies/unet_diffusion.py, sampled in many ways.

    python -m studies.unet_diffusion            # first: trains the network
    python -m studies.diffusion_curves          # half an hour, of which ten minutes train another T

What to look at: `steps.png`, how near twenty steps of a second-order solver come to a thousand of DDPM;
`guidance_curve.png`, where accuracy rises first and coverage falls after it; the table of T. A distance
differs from one set of samples to the next, by a spread that stands beside it: what differs by less than
two of these is not resolved at this n, which --num-samples raises.
"""

from __future__ import annotations

from imagelab.setup.command import command_line

from dataclasses import dataclass, fields, replace
from typing import Annotated

import numpy as np
import torch

from imagelab.data.datasets import Dataset
from imagelab.report import figures
from imagelab.report.evaluator import Judge, features, frechet_distance
from imagelab.report.results import Result, share_cell, start_result
from imagelab.report.samples import judge_for
from imagelab.setup.runtime import Stopwatch, UserError, generator, prepare
from imagelab.setup.settings import DataSettings, Limits, ResumableSettings, TrainingSettings
from imagelab.techniques.diffusion import Sampler, trailing_steps
from imagelab.training.loop import goes_on
from studies import unet_diffusion
from studies.unet_diffusion import (
    MODELS,
    Model,
    Steps,
    asked_accuracy,
    load_with_data,
    sample,
    train,
)

SCRIPT = "diffusion_curves"
PICTURES = f"study_images/{SCRIPT}"
TITLE = "Diffusion: what steps and guidance buy"
SUMMARY = (
    "One trained network, drawn from with few steps and with many, by three samplers, and under more "
    "and more guidance: quality, variety and time of each."
)


@dataclass(frozen=True)
class Config(ResumableSettings, DataSettings):
    """Settings of the curves; the second network is as the checkpoint's, but for its T."""

    sampler: Sampler = "dpm-solver"
    """The sampler of the curve of the guidance, and of up to 20 steps from the two networks."""
    steps: Steps = 20
    """Its steps for the curve of the guidance."""
    num_samples: Annotated[int, Limits(300, 1_000_000)] = 300
    """Samples for each point of the curves."""
    few_steps: tuple[Steps, ...] = (5, 10, 20, 50, 100)
    """Numbers of steps for every sampler."""
    many_steps: tuple[Steps, ...] = (500, 1000)
    """Further ones for DDPM alone."""
    scales: tuple[Annotated[float, Limits(0, 100)], ...] = (0, 1, 1.5, 2, 3, 5, 8)
    """Scales of the guidance."""
    short_t: Annotated[int, Limits(2, 10_000)] | None = 500
    """T of a second training, with which the checkpoint's is compared; None: no second training."""
    lengths: tuple[Steps, ...] = (1000, 500, 20)
    """Steps of sampling from each of the two."""


# --- measuring ------------------------------------------------------------------------------------


def settings_of_network(model: Model, config: Config) -> unet_diffusion.Config:
    """How the checkpoint's network was trained, with what this run says besides."""
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


COLUMNS = ["Fréchet distance", "its spread", "coverage", "accuracy", "ms per image"]


def measure(model: Model, judge: Judge, config: unet_diffusion.Config) -> Point:
    """Draw as many samples as the judge compares, and measure them."""
    with Stopwatch() as watch:
        images, asked = sample(model, config, judge.n)
    scores = judge.scores(images)
    return Point(
        scores.frechet,
        spread_of_distance(features(judge.classifier, images), judge.real),
        scores.coverage,
        asked_accuracy(judge, images, asked),
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


def curve_by_steps(
    result: Result, model: Model, judge: Judge, config: Config, own: unet_diffusion.Config
) -> dict:
    """The table and the figure; returns what was measured, by sampler and steps."""
    T, n = len(model.schedule), judge.n
    rows, found = [], {}
    for name in ("ddpm", "ddim", "dpm-solver"):
        counts = config.few_steps + (config.many_steps if name == "ddpm" else ())
        for steps in sorted({min(steps, T) for steps in counts}):
            this = replace(own, sampler=name, steps=steps, guidance=1)
            found[name, steps] = measure(model, judge, this)
            rows.append([name, steps, *found[name, steps].cells(n)])
    columns = ["sampler", "steps", *COLUMNS]
    result.add_table(f"Without guidance (scale 1), n = {n:,}", columns, rows)
    figure, axes = figures.new_figure(9, 3.4, columns=2)
    for k, sampler in enumerate(dict.fromkeys(name for name, _ in found)):
        look = {"color": figures.PALETTE[k], "marker": figures.MARKERS[k], "markersize": 5}
        line = {steps: point for (name, steps), point in found.items() if name == sampler}
        axes[0, 0].errorbar(list(line), [point.distance for point in line.values()],
                            [point.spread for point in line.values()], capsize=2, **look)  # fmt: skip
        axes[0, 1].plot(
            list(line), [point.coverage for point in line.values()], label=sampler, **look
        )
    for axis, name in ((axes[0, 0], "Fréchet distance"), (axes[0, 1], "coverage")):
        axis.set_xscale("log")
        axis.set_xlabel("steps of sampling")
        axis.set_ylabel(name)
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 1].set_ylim(0, 1.02)
    axes[0, 1].legend(loc="lower right")
    path = result.add_file("steps.png", f"Quality by the number of steps, n = {n:,} a point; the bars "
                           "are the spread of the distance at this n.")  # fmt: skip
    figures.save_figure(figure, path)
    few, most = few_and_most(found)
    for name in ("ddim", "dpm-solver"):
        if (name, few) in found:
            gap = found[name, few].distance - found["ddpm", most].distance
            result.add_metric(f"{name} in {few} steps: distance less ddpm's in {most}", gap, n)
    spread = found["ddpm", most].spread
    result.add_metric("spread of the distance at this n", spread, n)
    return found


def few_and_most(found: dict) -> tuple[int | None, int]:
    """The most steps up to 20 of the faster samplers, and the most of DDPM."""
    few = max((steps for name, steps in found if name != "ddpm" and steps <= 20), default=None)
    return few, max(steps for name, steps in found if name == "ddpm")


def lesson_of_steps(found: dict, n: int) -> str:
    """What few steps of the second-order solver cost, as far as n samples tell."""
    few, most = few_and_most(found)
    if ("dpm-solver", few) not in found:
        return ""
    solver, ddpm = found["dpm-solver", few], found["ddpm", most]
    spread = max(solver.spread, ddpm.spread)
    told = "tells the two apart" if solver.differs(ddpm) else "does not tell the two apart"
    return (
        f"DPM-Solver++ in {few} steps has a distance of {solver.distance:.0f}, DDPM in {most} of "
        f"{ddpm.distance:.0f}; from one set of {n:,} samples to the next a distance differs by "
        f"{spread:.1f}, so that this n {told}."
    )


def curve_by_guidance(
    result: Result, model: Model, judge: Judge, config: Config, own: unet_diffusion.Config
) -> dict[float, Point]:
    """The table and the figure; returns what was measured, by scale."""
    n = judge.n
    found = {
        scale: measure(model, judge, replace(own, guidance=scale))
        for scale in dict.fromkeys(config.scales)
    }
    rows = [[scale, *point.cells(n)[:-1]] for scale, point in found.items()]
    caption = f"Guidance, {config.sampler} in {config.steps} steps, n = {n:,}"
    result.add_table(caption, ["scale", *COLUMNS[:-1]], rows)
    best = min(found, key=lambda scale: found[scale].distance)
    result.add_metric("scale of the smallest distance", best, n)
    scales, points = list(found), list(found.values())
    figure, axes = figures.new_figure(9, 3.4, columns=2)
    lines = {"accuracy on the asked class": [point.accuracy for point in points],
             "coverage": [point.coverage for point in points]}  # fmt: skip
    figures.draw_lines(axes[0, 0], scales, lines, "scale of the guidance", "share")
    axes[0, 0].set_ylim(0, 1.02)
    axes[0, 0].legend(loc="lower right")
    axes[0, 1].errorbar(scales, [point.distance for point in points], [point.spread for point in points],
                        color=figures.PALETTE[0], marker=figures.MARKERS[0], capsize=2)  # fmt: skip
    axes[0, 1].set(xlabel="scale of the guidance", ylabel="Fréchet distance")
    path = result.add_file("guidance_curve.png", "What guidance buys, and what it costs, "
                           f"n = {n:,} a point; the bars are the spread of the distance.")  # fmt: skip
    figures.save_figure(figure, path)
    return found


def lesson_of_guidance(found: dict[float, Point], n: int) -> str:
    """The scale of the smallest distance, and those that n samples do not tell from it."""
    best = min(found, key=lambda scale: found[scale].distance)
    alike = [f"{s:g}" for s in found if s != best and not found[s].differs(found[best])]
    others = f", from which n = {n:,} does not tell {' and '.join(alike)} apart" if alike else ""
    return (
        f"Of the scales of the guidance {best:g} has the smallest distance{others}; what larger ones buy "
        "in accuracy on the class, and what they cost in coverage, is in the figure."
    )


def compare_lengths(
    result: Result,
    model: Model,
    judge: Judge,
    config: Config,
    own: unet_diffusion.Config,
    data: Dataset,
    found: dict,
) -> None:
    """The T of two trainings, and the steps of sampling from one: 500 against 1000 as both."""
    path = config.output_dir / MODELS / f"trained_T{config.short_t}.pth"
    _, short = train(replace(own, T=config.short_t, resume=goes_on(config, path)), data, path)
    rows, pictures = [], {}
    for steps in config.lengths:
        for trained in (model, short):
            T = len(trained.schedule)
            if steps > T:
                continue
            sampler = "ddpm" if steps > 20 else config.sampler
            this = replace(own, sampler=sampler, steps=steps, guidance=1)
            name = f"T = {T}, {steps} steps"
            known = found.get((sampler, steps)) if trained is model else None
            rows.append([name, sampler, *(known or measure(trained, judge, this)).cells(judge.n)])
            images, _ = sample(trained, this, 50)
            pictures[name.replace(", ", "\n")] = figures.grid(images, columns=5)
    caption = f"T of the training against steps of sampling, n = {judge.n:,}"
    result.add_table(caption, ["", "sampler", *COLUMNS], rows)
    path = result.add_file("lengths.png", "The same seeds by two trained T and by "
                           "the steps of sampling.")  # fmt: skip
    figures.side_by_side(path, pictures, height=5)


# --- the run --------------------------------------------------------------------------------------


def run(config: Config) -> Result:
    """The curves, from the checkpoint under --output-dir."""
    device = prepare(config.seed, config.device)
    config = config.quickened(
        few_steps=(2, 5), many_steps=(10,), scales=(0, 1, 3), lengths=(10,), steps=5,
    )  # fmt: skip
    model, data = load_with_data(config, device)
    own = settings_of_network(model, config)
    longest = max(own.T, config.short_t or 0)
    if min(config.lengths) > longest:
        raise UserError(f"--lengths must name a number of steps up to {longest}, the longer T.")
    trailing_steps(config.short_t or own.T, config.steps)  # a wrong number is refused now
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    judge = judge_for(config, data, config.num_samples)
    if judge is None:
        raise UserError("The curves need a data set with classes and 300 held-out images.")
    by_guidance = curve_by_guidance(result, model, judge, config, own)
    found = curve_by_steps(result, model, judge, config, own)
    if config.short_t is not None:
        compare_lengths(result, model, judge, config, own, data, found)
    n = judge.n
    return result.save(lesson_of_steps(found, n), lesson_of_guidance(by_guidance, n))


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
