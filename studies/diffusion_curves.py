"""What steps and guidance buy: one trained network of studies/unet_diffusion.py, sampled in many ways.

    python -m studies.unet_diffusion            # first: trains the network
    python -m studies.diffusion_curves          # half an hour, of which ten minutes train another T

What to look at: `steps.png`, where twenty steps of a second-order solver are as good as a thousand of
DDPM; `guidance_curve.png`, where accuracy rises first and coverage falls after it; the table of T, where
the length of the process in training makes little difference.
"""

from __future__ import annotations

from imagelab.command import command_line

from dataclasses import dataclass, fields, replace
from typing import Annotated

from imagelab import figures
from imagelab.datasets import Dataset
from imagelab.diffusion import Sampler, trailing_steps
from imagelab.metrics import Judge
from imagelab.results import Result, start_result
from imagelab.runtime import Stopwatch, UserError, prepare
from imagelab.samples import judge_for
from imagelab.settings import DataSettings, Limits, ResumableSettings, TrainingSettings
from imagelab.training import goes_on
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
LESSONS = (
    "Twenty steps of DPM-Solver++ come to {dpm-solver in 20 steps, share of ddpm's 1000|.2f} "
    "times the distance of all thousand.",
    "Of the scales of the guidance {scale of the smallest distance|g} has the smallest distance; what "
    "larger ones buy in accuracy on the class, and what they cost in coverage, is in the figure.",
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
    short_t: Annotated[int, Limits(2, 10_000)] = 500
    """T of a second training, with which the checkpoint's is compared."""
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


def measure(model: Model, judge: Judge, config: unet_diffusion.Config) -> dict[str, float]:
    """Distance, coverage, accuracy on the asked class and milliseconds per image of samples."""
    with Stopwatch() as watch:
        images, asked = sample(model, config, judge.n)
    scores = judge.scores(images)
    return {
        "distance": scores.frechet,
        "coverage": scores.coverage,
        "accuracy": asked_accuracy(judge, images, asked),
        "milliseconds": 1000 * watch.seconds / len(images),
    }


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
            rows.append([name, steps, *found[name, steps].values()])
    columns = ["sampler", "steps", "Fréchet distance", "coverage", "accuracy", "ms per image"]
    result.add_table(f"Without guidance (scale 1), n = {n:,}", columns, rows)
    figure, axes = figures.new_figure(9, 3.4, columns=2)
    for axis, column in ((axes[0, 0], 2), (axes[0, 1], 3)):
        for k, name in enumerate(dict.fromkeys(row[0] for row in rows)):
            line = [row for row in rows if row[0] == name]
            axis.plot([r[1] for r in line], [r[column] for r in line], label=name,
                      color=figures.PALETTE[k], marker=figures.MARKERS[k], markersize=5)  # fmt: skip
        axis.set_xscale("log")
        axis.set_xlabel("steps of sampling")
        axis.set_ylabel(columns[column])
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 1].set_ylim(0, 1.02)
    axes[0, 1].legend(loc="lower right")
    path = result.add_file("steps.png", f"Quality by the number of steps, n = {n:,} a point.")
    figures.save_figure(figure, path)
    most = max(steps for name, steps in found if name == "ddpm")
    few = max((k for name, k in found if name != "ddpm" and k <= 20), default=None)
    for name in ("ddim", "dpm-solver"):
        if (name, few) in found:
            share = found[name, few]["distance"] / found["ddpm", most]["distance"]
            result.add_metric(f"{name} in {few} steps, share of ddpm's {most}", share, n)
    return found


def curve_by_guidance(
    result: Result, model: Model, judge: Judge, config: Config, own: unet_diffusion.Config
) -> None:
    found = [measure(model, judge, replace(own, guidance=scale)) for scale in config.scales]
    columns = ["scale", "Fréchet distance", "coverage", "accuracy"]
    rows = [[s, *list(f.values())[:3]] for s, f in zip(config.scales, found, strict=True)]
    caption = f"Guidance, {config.sampler} in {config.steps} steps, n = {judge.n:,}"
    result.add_table(caption, columns, rows)
    best = min(zip(config.scales, found, strict=True), key=lambda pair: pair[1]["distance"])[0]
    result.add_metric("scale of the smallest distance", best, judge.n)
    figure, axes = figures.new_figure(9, 3.4, columns=2)
    lines = {"accuracy on the asked class": "accuracy", "coverage": "coverage"}
    lines = {name: [f[what] for f in found] for name, what in lines.items()}
    figures.draw_lines(axes[0, 0], config.scales, lines, "scale of the guidance", "share")
    axes[0, 0].set_ylim(0, 1.02)
    axes[0, 0].legend(loc="lower right")
    distances = {"distance": [f["distance"] for f in found]}
    figures.draw_lines(axes[0, 1], config.scales, distances, "scale of the guidance",
                       "Fréchet distance")  # fmt: skip
    path = result.add_file("guidance_curve.png", "What guidance buys, and what it costs, "
                           f"n = {judge.n:,} a point.")  # fmt: skip
    figures.save_figure(figure, path)


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
            rows.append([name, sampler, *(known or measure(trained, judge, this)).values()])
            images, _ = sample(trained, this, 50)
            pictures[name.replace(", ", "\n")] = figures.grid(images, columns=5)
    columns = ["", "sampler", "Fréchet distance", "coverage", "accuracy", "ms per image"]
    result.add_table(f"T of the training against steps of sampling, n = {judge.n:,}", columns, rows)
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
    longest = max(own.T, config.short_t)
    if min(config.lengths) > longest:
        raise UserError(f"--lengths must name a number of steps up to {longest}, the longer T.")
    trailing_steps(config.short_t, config.steps)  # a wrong number is refused now
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    judge = judge_for(config, data, config.num_samples)
    if judge is None:
        raise UserError("The curves need a data set with classes and 300 held-out images.")
    curve_by_guidance(result, model, judge, config, own)
    found = curve_by_steps(result, model, judge, config, own)
    compare_lengths(result, model, judge, config, own, data, found)
    return result.save(*LESSONS)


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
