"""What steps and guidance buy: one trained network of studies/unet_diffusion.py, sampled in many ways.

    python -m studies.unet_diffusion            # first: trains the network
    python -m studies.diffusion_curves          # 35 minutes on two CPU cores, four on a GPU
    python -m studies.diffusion_curves --short-t None --num-samples 5000 --few-steps 5 10 20 50 100

What to look at: `steps.png`, how near twenty steps of a second-order solver, or of DDPM itself, come to a
thousand of DDPM; `guidance_curve.png`, where accuracy rises first and coverage falls after it; the table
of T.

Another set of samples has another distance. The bars are 95 % intervals for that: of the distance by the
bootstrap, of the coverage by the jackknife. Two points are compared by the interval of their difference.
It is narrower than the bars suggest, because image k starts from the same noise at both points. Where the
interval holds 0, that many samples do not tell the two points apart. That does not make them equal: the
interval says how much they may differ. It says nothing of another training, which gives another network.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated

import torch

from imagelab.data.datasets import EMBEDDED, Dataset
from imagelab.data.embedded import MNIST_5K_VARIATIONS
from imagelab.report import figures, samples
from imagelab.report.evaluator import NEIGHBOURS, Evaluator, features
from imagelab.report.numbers import wilson
from imagelab.report.results import Result, start_result
from imagelab.setup.runtime import Stopwatch, UserError, generator, prepare
from imagelab.setup.settings import DataSettings, Limits, ResumableSettings
from imagelab.techniques.diffusion import Sampler, trailing_steps
from imagelab.training.loop import can_resume
from studies import unet_diffusion
from studies.unet_diffusion import MODELS, PORTION, Model, Steps, load_with_data, sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "diffusion_curves"
PICTURES = f"study_images/{SCRIPT}"
FEW = 20  # up to so many steps --sampler draws, DDPM takes more
DRAWS = 200  # of the bootstrap

# --- one set of samples, and its intervals --------------------------------------------------------


def bootstrap_counts(n: int, draws: int = DRAWS) -> torch.Tensor:
    """How often each of `n` samples counts in each draw (1 + draws, n): the bootstrap (Efron 1979).

    Row 0 is the set as it is. In every other row n of the n samples are drawn with replacement. They are
    the same rows for every set of n samples.
    """
    chosen = torch.randint(n, (draws, n), generator=generator(0, "bootstrap"))
    counts = torch.stack([torch.bincount(row, minlength=n) for row in chosen])
    return torch.cat([torch.ones(1, n, dtype=torch.long), counts])


def frechet_distances(
    samples: torch.Tensor, real: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    """The Fréchet distance of features (N, D) to `real` (M, D), for each row of `counts` (draws, N).

    |μ₁ − μ₂|² + Tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½), in float64. Σ₁Σ₂ has the eigenvalues of Σ₂^½Σ₁Σ₂^½.
    """
    x, y, N = samples.double(), real.double(), len(samples)
    weights = counts.to(x) / N
    mean = weights @ x  # (draws, D)
    moments = torch.stack([(x.T * row) @ x for row in weights])  # (draws, D, D)
    sigma_1 = (moments - mean[:, :, None] * mean[:, None, :]) * N / (N - 1)
    sigma_2 = y.T.cov()
    values, vectors = torch.linalg.eigh(sigma_2)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T  # Σ₂^½
    crossed = torch.linalg.eigvalsh(root @ sigma_1 @ root).clamp(min=0).sqrt().sum(dim=1)
    traces = sigma_1.diagonal(dim1=1, dim2=2).sum(dim=1) + sigma_2.trace()
    return (mean - y.mean(dim=0)).square().sum(dim=1) + traces - 2 * crossed


def coverage_and_reach(
    samples: torch.Tensor, real: torch.Tensor, k: int = NEIGHBOURS
) -> tuple[float, float]:
    """The share of `real` (M, D) that has a sample (N, D) near, and its interval by the jackknife.

    Near: within the ball that reaches the k-th real neighbour (Naeem et al. 2020). The jackknife asks how
    much the share falls without each sample (Quenouille 1949, Tukey 1958). The bootstrap's draws lack a
    third of the samples, and a share of what has any sample near falls by that.
    """
    covered, alone = 0.0, torch.zeros(len(samples), device=samples.device)
    for rows in real.split(1000):
        radius = torch.cdist(rows, real).topk(k + 1, largest=False).values[:, -1:]  # itself is one
        inside = torch.cdist(rows, samples) < radius  # (1000, N)
        near = inside.sum(dim=1)
        covered += (near > 0).sum().item()
        alone += inside[near == 1].sum(
            dim=0
        )  # real images that have this sample near, and no other
    N, M = len(samples), len(real)
    variance = (N - 1) ** 2 / N * (alone / M).var().item()
    return covered / M, 1.96 * variance**0.5


def reach(draws: torch.Tensor) -> float:
    """How far a 95 % interval reaches to each side, from the values of the bootstrap's draws."""
    return 1.96 * draws.std().item()


@dataclass
class Point:
    """A point of a curve: what was measured on one set of n samples."""

    distances: torch.Tensor
    """Fréchet distances: of the set, then of the bootstrap's draws."""
    coverage: float
    coverage_reach: float
    """How far its 95 % interval reaches to each side."""
    accuracy: float
    """The share that the classifier reads as the class asked for."""
    milliseconds: float
    """Per image."""
    n: int

    @property
    def distance(self) -> float:
        return self.distances[0].item()

    @property
    def distance_reach(self) -> float:
        """How far its 95 % interval reaches to each side."""
        return reach(self.distances[1:])

    def less(self, other: Point) -> tuple[float, float]:
        """This distance less the other's, and how far the 95 % interval reaches to each side.

        Every draw takes the same rows of both sets. Image k of both has the same class and the same
        first noise, so what the two sets have in common cancels.
        """
        difference = self.distances - other.distances
        return difference[0].item(), reach(difference[1:])

    def differs(self, other: Point) -> bool:
        """Whether the interval of the difference leaves 0 out."""
        difference, to_each_side = self.less(other)
        return abs(difference) > to_each_side

    def cells(self, other: Point) -> list:
        """For a table, under COLUMNS and the distance less that of `other`."""
        low, high = wilson(self.accuracy, self.n)
        coverage, accuracy = (
            (self.coverage, self.coverage_reach),
            (self.accuracy, f"{low:.3f} to {high:.3f}"),
        )
        difference, to_each_side = self.less(other)
        edges = difference - to_each_side, difference + to_each_side
        less = "" if other is self else f"{difference:+.1f} ({edges[0]:+.1f} to {edges[1]:+.1f})"
        shares = *coverage, *accuracy, self.milliseconds, less
        return [self.distance, self.distance_reach, *shares]


# A last column says how much larger the distance is than another, with the interval of the difference.
COLUMNS = [
    "Fréchet distance",
    "distance ± (95 %)",
    "coverage",
    "coverage ± (95 %)",
    "accuracy",
    "95 %",
    "ms per image",
]


def measure(model: Model, evaluator: Evaluator, config: unet_diffusion.Config) -> Point:
    """Draw as many samples as the evaluator compares, and measure them."""
    portion = PORTION if model.device.type == "cpu" else 10 * PORTION  # a GPU works on many at once
    with Stopwatch() as watch:
        images, labels = sample(model, config, evaluator.n, portion)
    seen = features(evaluator.classifier, images)
    read = evaluator.classifier.dense2(seen).argmax(dim=1)
    return Point(
        frechet_distances(seen, evaluator.real, bootstrap_counts(evaluator.n)).cpu(),
        *coverage_and_reach(seen, evaluator.real),
        (read == labels).float().mean().item(),
        1000 * watch.seconds / len(images),
        evaluator.n,
    )


# --- settings -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(ResumableSettings, DataSettings):
    """Settings of the curves. The network has the settings of its own training."""

    sampler: Sampler = "dpm-solver"
    """The sampler of the guidance curve. It also draws up to 20 steps where two T are compared."""
    steps: Steps = 20
    """Steps of sampling for the guidance curve."""
    num_samples: Annotated[int, Limits(300, 1_000_000)] = 2_000
    """Samples for each point of the curves. No more are drawn than there are held-out images; mnist-5k
    has 14,000, in variations."""
    few_steps: tuple[Steps, ...] = (5, 10, 20, 50)
    """Numbers of steps at which every sampler is measured."""
    many_steps: tuple[Steps, ...] = (1000,)
    """Further numbers of steps, for DDPM alone."""
    scales: tuple[Annotated[float, Limits(0, 100)], ...] = (0, 1, 1.5, 2, 3, 5, 8)
    """Scales of the guidance."""
    short_t: Annotated[int, Limits(2, 10_000)] | None = 500
    """T of a second training, which is compared with the first; None: no second training."""
    lengths: tuple[Steps, ...] = (1000, 20)
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


def evaluator_of(config: Config, data: Dataset) -> Evaluator:
    """The evaluator of --num-samples images. Each held-out digit of mnist-5k comes in 14 variations, as
    each training digit does."""
    if data.name == EMBEDDED:
        again = data.test_images.repeat(MNIST_5K_VARIATIONS, 1, 1, 1)
        data = replace(
            data, test_images=again, test_labels=data.test_labels.repeat(MNIST_5K_VARIATIONS)
        )
    evaluator = samples.evaluator_for(config, data, config.num_samples)
    if evaluator is None:
        raise UserError("The curves need a data set with classes and 300 held-out images.")
    return evaluator


def plot_curves(lines: Lines, x: str, scale: str, evaluator: Evaluator) -> Figure:
    """Distance, coverage and accuracy over `x` with their intervals: a panel each, a line per name."""
    figure, axes = figures.new_figure(11, 3.4, columns=3)
    for k, (name, line) in enumerate(lines.items()):
        look = {"color": figures.PALETTE[k], "marker": figures.MARKERS[k], "markersize": 5}
        look |= {"capsize": 3, "label": name}
        points = list(line.values())
        accuracy = [point.accuracy for point in points]
        edges = [wilson(point.accuracy, point.n) for point in points]
        below_above = [
            [a - low for a, (low, _) in zip(accuracy, edges, strict=True)],
            [high - a for a, (_, high) in zip(accuracy, edges, strict=True)],
        ]
        bars = [point.distance_reach for point in points]
        axes[0, 0].errorbar(list(line), [point.distance for point in points], bars, **look)
        bars = [point.coverage_reach for point in points]
        axes[0, 1].errorbar(list(line), [point.coverage for point in points], bars, **look)
        axes[0, 2].errorbar(list(line), accuracy, below_above, **look)
    names = "Fréchet distance", "coverage", "read as the class asked for"
    measured = sorted({at for line in lines.values() for at in line})
    for axis, name in zip(axes[0], names, strict=True):
        axis.set(xscale=scale, xlabel=x, ylabel=name)
        axis.set_xticks(measured, [f"{at:g}" for at in measured], rotation=60)
        axis.minorticks_off()
    axes[0, 0].set_ylim(0)
    floor = {"color": "#666666", "linewidth": 1.2, "linestyle": "--"}
    axes[0, 0].axhline(evaluator.floor.frechet, label="held-out images (floor)", **floor)
    axes[0, 1].axhline(evaluator.floor.coverage, **floor)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=len(lines) + 1)  # not on the lines
    return figure


def report_curves(
    result: Result, file: str, lines: Lines, x: str, scale: str, evaluator: Evaluator,
    against: tuple[str, Point],
) -> None:  # fmt: skip
    """A table and a figure `file` of curves over `x`, on a log or linear `scale`.

    The table compares each point with the point `against`, which has a name.
    """
    n, floor = evaluator.n, evaluator.floor
    name_of_other, other = against
    rows = [
        [name, at, *point.cells(other)]
        for name, line in lines.items()
        for at, point in line.items()
    ]
    rows.append(["held-out images (floor)", "", floor.frechet, "", floor.coverage, *[""] * 5])
    columns = ["sampler", x, *COLUMNS, f"distance less {name_of_other} (95 %)"]
    result.add_table(f"By {x}, n = {n:,}", columns, rows)
    caption = f"Quality by {x}, n = {n:,} a point. Bars: 95 % intervals over sets of samples."
    result.add_figure(file, plot_curves(lines, x, scale, evaluator), caption)


def lesson_of_steps(found: Lines, n: int, result: Result) -> str:
    """Whether few steps differ from many of DDPM, as far as n samples tell: the solver's, and DDPM's."""
    most = max(found["ddpm"])
    many, told = found["ddpm"][most], []
    for name, in_words in (("dpm-solver", "DPM-Solver++"), ("ddpm", "DDPM")):
        few = max((steps for steps in found[name] if steps <= FEW), default=min(found[name]))
        point = found[name][few]
        if point is many:
            continue
        difference, to_each_side = point.less(many)
        low, high = difference - to_each_side, difference + to_each_side
        gap = f"{name} in {few} steps: distance less ddpm's in {most}"
        result.add_metric(gap, difference, n, interval=(low, high))
        told.append(
            f"{in_words} in {few} steps has a distance of {point.distance:.1f}, DDPM in {most:,} of "
            f"{many.distance:.1f}. The difference is {difference:.1f} (95 %: {low:.1f} to {high:.1f}): "
        )
        if point.differs(many):
            told[-1] += (
                f"{'the few' if difference < 0 else 'the many'} steps come nearer to the data."
            )
        else:
            told[-1] += (
                f"{n:,} samples do not tell them apart, and they differ by less than "
                f"{max(-low, high):.1f}."
            )
    return " ".join(told)


def lesson_of_guidance(found: dict[float, Point], n: int, result: Result) -> str:
    """The scale of the smallest distance, and the scales that n samples do not tell from it."""
    best = min(found, key=lambda scale: found[scale].distance)
    result.add_metric("scale of the smallest distance", best, n)
    alike = [f"{s:g}" for s in found if s != best and not found[s].differs(found[best])]
    others = f"; n = {n:,} does not tell it from {' and '.join(alike)}" if alike else ""
    return f"Of the scales of the guidance {best:g} has the smallest distance{others}."


def report_lengths(
    result: Result, found: dict[tuple[str, str], tuple[Point, torch.Tensor]], n: int
) -> None:
    """The table of two trainings with different T, and fifty images of each row."""
    fewest = min(found, key=lambda names: int(names[0].split()[-2]))  # of the first training
    rows = [[*names, *point.cells(found[fewest][0])] for names, (point, _) in found.items()]
    caption = f"By T of the training, n = {n:,}; one training of each T"
    columns = ["", "sampler", *COLUMNS, f"distance less that of {fewest[0]} (95 %)"]
    result.add_table(caption, columns, rows)
    grids = {
        name.replace(", ", "\n"): figures.grid(images, columns=5)
        for (name, _), (_, images) in found.items()
    }
    figure = figures.plot_side_by_side(grids, height=5)
    result.add_figure("lengths.png", figure, "The same seeds: two trained T, in several steps.")


def run(config: Config) -> Result:
    """The curves, from the checkpoint under --output-dir."""
    device = prepare(config.seed, config.device)
    config = config.if_quick(
        few_steps=(2, 5),
        many_steps=(10,),
        scales=(0, 1, 3),
        lengths=(10,),
        steps=5,
        num_samples=300,
    )
    model, data = load_with_data(config, device)
    unet_config = network_config(model, config)
    longest = max(unet_config.T, config.short_t or 0)
    if min(config.lengths) > longest:
        raise UserError(f"--lengths must name a number of steps up to {longest}, the longer T.")
    trailing_steps(config.short_t or unet_config.T, config.steps)  # a wrong number is refused now
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    evaluator = evaluator_of(config, data)
    n = evaluator.n
    by_scale = measure_guidance(model, evaluator, config, unet_config)
    curve = {config.sampler: by_scale}
    best = min(by_scale, key=lambda scale: by_scale[scale].distance)
    against = f"that of scale {best:g}", by_scale[best]
    report_curves(
        result, "guidance_curve.png", curve, "guidance scale", "linear", evaluator, against
    )
    by_steps = measure_steps(model, evaluator, config, unet_config)
    most = max(by_steps["ddpm"])
    against = f"ddpm's in {most}", by_steps["ddpm"][most]
    report_curves(result, "steps.png", by_steps, "steps", "log", evaluator, against)
    if config.short_t is not None:
        models = model, train_with(config.short_t, config, unet_config, data)
        report_lengths(result, compare_lengths(models, evaluator, config, unet_config, by_steps), n)
    return result.save(
        lesson_of_steps(by_steps, n, result), lesson_of_guidance(by_scale, n, result)
    )


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
