"""VAE, GANs and diffusion models, each trained for the same time: textbook claims, measured.

Every generative model of this collection trains on the same data for the same number of seconds, from
three seeds. The same classifier scores their samples. One table shows what each model costs and reaches.
Below it, the usual claims stand beside what was measured.

    python -m studies.model_comparison                     # about eleven minutes on two CPU cores
    python -m studies.model_comparison --budget 20 --repeats 2
    python -m studies.model_comparison --models vae gan    # some of them
    python -m studies.model_comparison --resume            # go on after Ctrl-C

A budget in seconds measures the machine as well as the model: on another machine the same seconds give
another number of epochs, and perhaps another order. The table says how long an epoch takes.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch

import gan_mnist
import mlp_diffusion
from imagelab.data.datasets import Dataset, load_for, random_subset, to_uint8
from imagelab.report import figures, samples
from imagelab.report.evaluator import Evaluator, Scores
from imagelab.report.results import Result, start_result
from imagelab.setup.runtime import Stopwatch, UserError, generator, prepare
from imagelab.setup.settings import BoardSettings, Count, DataSettings, Limits
from imagelab.techniques import diffusion
from imagelab.training.loop import Training, can_resume
from studies import dcgan, unet_diffusion, vae

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "model_comparison"
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"
EPOCHS = 100_000  # more than any budget allows: the clock ends the training
FAILED = 0.1  # a training has failed if its samples cover less than this share of the real images
STEPS = 10  # columns of inside.png; sampling steps of the U-Net
SLOW = 3.0  # seconds: sampling that takes longer is timed once, not three times

# Names of STEPS states, and their images (STEPS, C, H, W) uint8.
Inside = tuple[list[str], torch.Tensor]

# --- what can be looked at inside a model ---------------------------------------------------------


def latent_path(latent_size: int, seed: int, device: torch.device) -> torch.Tensor:
    """Latents (STEPS, latent_size) from one random point to another, on an arc about the origin."""
    a, b = torch.randn(2, latent_size, generator=generator(seed, "walk")).to(device)
    angle = torch.linspace(0, math.pi / 2, STEPS, device=device)[:, None]
    return angle.cos() * a + angle.sin() * b


def along_path(images: torch.Tensor) -> Inside:
    """What is drawn from a latent path, named by the share of the path."""
    return [f"{k / (STEPS - 1):.0%}" for k in range(STEPS)], images


def mlp_states(model: mlp_diffusion.Denoiser, data: Dataset, seed: int) -> Inside:
    """One sample from x_T to the image, at STEPS of the timesteps."""
    rng = generator(seed, "reverse process")
    x_T = torch.randn(1, math.prod(data.shape), generator=rng).to(data.images.device)
    states = list(mlp_diffusion.reverse_process(model, x_T, rng))
    chosen = [states[round(i)] for i in torch.linspace(0, len(states) - 1, STEPS).tolist()]
    images = torch.cat([x for _, x in chosen]).reshape(-1, *data.shape)
    return [f"t = {t}" for t, _ in chosen], to_uint8(images)


def unet_states(model: unet_diffusion.Model, config: unet_diffusion.Config) -> Inside:
    """One sample of the first class, its last STEPS states."""
    label = torch.zeros(1, dtype=torch.long, device=model.device)
    noise = diffusion.image_noise(config.seed, 0, 1, model.shape, model.device)
    estimate = model.class_estimator(label)
    states = diffusion.reverse_process(
        config.sampler, model.schedule, estimate, STEPS, config.eta, noise
    )
    last = list(states)[-STEPS:]
    return [f"t = {t}" for t, _ in last], to_uint8(torch.cat([x for _, x in last]))


# --- the models, each trained as in its own script ------------------------------------------------


@dataclass(frozen=True)
class Config(BoardSettings, DataSettings):
    """Settings of the comparison."""

    resume: bool = False
    """Go on with a comparison that was stopped: what is trained is not trained again."""
    models: tuple[Literal["vae", "gan", "dcgan", "ddpm", "unet"], ...] = (
        "vae",
        "gan",
        "dcgan",
        "ddpm",
        "unet",
    )
    """The models to compare."""
    budget: Annotated[float, Limits(0.1)] = 40.0
    """Seconds of training of each model and seed."""
    repeats: Count = 3
    """Trainings of each model, from the seeds --seed, --seed + 1, ..."""
    num_samples: Count = 10_000
    """Samples to score of each; at most as many as there are held-out images."""


def shared(config: Config, path: Path) -> dict[str, Any]:
    """The settings of the comparison that every model takes over."""
    return {
        "output_dir": config.output_dir,
        "seed": config.seed,
        "quick": config.quick,
        "time_limit": config.budget,
        "resume": can_resume(config, path),
        "tensorboard": config.tensorboard,
        "keep_every": config.keep_every,
    }


@dataclass
class Trained:
    """A model after its training: how to sample from it, and what can be looked at inside."""

    training: Training
    sample: Callable[[int, int], torch.Tensor]
    """(n, seed) to n images (n, C, H, W) uint8."""
    parameters: int
    """Of the networks that sampling needs."""
    inside: Callable[[], Inside]
    """A path through the latents, or the reverse process."""


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def train_vae(config: Config, data: Dataset, path: Path) -> Trained:
    own = vae.Config(**shared(config, path), latent_sizes=(16,), epochs=EPOCHS)
    training = vae.train(own, 16, data, path)
    model = training.model
    return Trained(
        training,
        lambda n, seed: vae.sample(model, n, seed),
        parameters(model.decoder),
        lambda: along_path(vae.generate(model, latent_path(16, config.seed, data.images.device))),
    )


def train_gan(config: Config, data: Dataset, path: Path, script=gan_mnist) -> Trained:
    """The MLP GAN; or that of another `script`, with its own networks and settings."""
    own = script.Config(**shared(config, path), epochs=EPOCHS, grid_every=0, log_every=10**9)
    G, D = script.build(own, data.shape, data.images.device)
    training = gan_mnist.train(own, data, G, D, path, SCRIPT)
    averaged = gan_mnist.sampling_network(training)
    z = latent_path(own.latent_size, config.seed, data.images.device)
    return Trained(
        training,
        lambda n, seed: gan_mnist.sample(averaged, n, seed),
        parameters(G),
        lambda: along_path(gan_mnist.generate(averaged, z)),
    )


def train_ddpm(config: Config, data: Dataset, path: Path) -> Trained:
    own = mlp_diffusion.Config(**shared(config, path), epochs=EPOCHS)
    training = mlp_diffusion.train(own, data, path)
    model = training.model
    return Trained(
        training,
        lambda n, seed: mlp_diffusion.sample(model, n, data.shape, seed),
        parameters(model),
        lambda: mlp_states(model, data, config.seed),
    )


def train_unet(config: Config, data: Dataset, path: Path) -> Trained:
    own = unet_diffusion.Config(**shared(config, path), epochs=EPOCHS, steps=STEPS, guidance=1.0)
    training, model = unet_diffusion.train(own, data, path)
    return Trained(
        training,
        lambda n, seed: unet_diffusion.sample(model, replace(own, seed=seed), n)[0],
        parameters(model.network),
        lambda: unet_states(model, own),
    )


TRAIN = {
    "vae": train_vae,
    "gan": train_gan,
    "dcgan": partial(train_gan, script=dcgan),
    "ddpm": train_ddpm,
    "unet": train_unet,
}
NAMES = {"vae": "VAE", "gan": "MLP GAN", "dcgan": "DCGAN", "ddpm": "MLP DDPM", "unet": "U-Net DDPM"}
DIFFUSION, GANS = ("ddpm", "unet"), ("gan", "dcgan")


# --- one training measured: the same time, the same classifier ------------------------------------


@dataclass
class Measured:
    """One training of one model."""

    model: str
    seed: int
    scores: Scores
    epochs: float
    milliseconds: float
    """Per image: the median of three draws of 1,000 images, or one draw of all if sampling is slow."""
    parameters: int
    samples: torch.Tensor
    inside: Inside

    @property
    def failed(self) -> bool:
        return not math.isfinite(self.scores.frechet) or self.scores.coverage < FAILED


def measure(name: str, config: Config, data: Dataset, evaluator: Evaluator) -> Measured:
    """Train one model for the budget with the seed of `config`, sample and score."""
    path = config.output_dir / MODELS / f"{name}_seed{config.seed}.pth"
    trained = TRAIN[name](config, data, path)
    with Stopwatch() as stopwatch:
        images = trained.sample(evaluator.n, config.seed)
    seconds_each = [stopwatch.seconds / evaluator.n]
    if stopwatch.seconds < SLOW:  # else it was long enough to be a measurement
        seconds_each = []
        for _ in range(3):
            with Stopwatch() as stopwatch:
                trained.sample(1000, config.seed)
            seconds_each.append(stopwatch.seconds / 1000)
    training = trained.training
    shown = random_subset(len(images), STEPS, "shown")  # the first of the U-Net's are of one class
    return Measured(
        name,
        config.seed,
        evaluator.scores(images),
        epochs=training.epochs_done,
        milliseconds=1000 * statistics.median(seconds_each),
        parameters=trained.parameters,
        samples=images[shown],
        inside=trained.inside(),
    )


def spread(measured: list[Measured]) -> float:
    """The largest distance less the smallest, as a share of the mean."""
    distances = [one.scores.frechet for one in measured]
    return (max(distances) - min(distances)) / statistics.mean(distances)


# --- the claims, and how they are judged ----------------------------------------------------------


# The table of textbooks: property, and what they say of VAEs, GANs and diffusion models.
TEXTBOOK = {
    "training stability": ("stable", "unstable", "stable"),
    "sample quality": ("blurred", "sharp", "best"),
    "mode coverage": ("high", "low: mode collapse", "high"),
    "efficiency": ("lower than GANs", "high: one pass", "low: many steps"),
    "interpretability": ("high: smooth latents", "low", "medium: visible steps"),
}


@dataclass(frozen=True)
class Claim:
    """A sentence behind the table: in `column` the models `lower` have smaller figures than `higher`."""

    property: str
    text: str
    column: str
    form: str
    lower: tuple[str, ...]
    higher: tuple[str, ...]


CLAIMS = (
    Claim(
        "training stability",
        "VAE and diffusion train stably, GANs do not: their results differ more between seeds.",
        *("its spread", "{:.0%}", ("vae", *DIFFUSION), GANS),
    ),
    Claim(
        "sample quality",
        "Diffusion draws better than GANs.",
        *("Fréchet distance", "{:.0f}", DIFFUSION, GANS),
    ),
    Claim(
        "sample quality",
        "GANs draw better than VAEs.",
        *("Fréchet distance", "{:.0f}", GANS, ("vae",)),
    ),
    Claim(
        "mode coverage",
        "GANs cover less of the data than VAEs and diffusion do.",
        *("coverage", "{:.2f}", GANS, ("vae", *DIFFUSION)),
    ),
    Claim(
        "efficiency",
        "Diffusion pays for its samples with time.",
        *("ms per image", "{:.3f}", ("vae", *GANS), DIFFUSION),
    ),
    Claim(
        "efficiency",
        "VAEs are less efficient than GANs: an image takes longer.",
        *("ms per image", "{:.3f}", GANS, ("vae",)),
    ),
)


def compare(claim: Claim, rows: dict[str, dict[str, Any]]) -> list[bool]:
    """Of each pair of models on the two sides of a claim, whether it is as claimed.

    `rows` are the figures of the models that were measured, by column.
    """
    sides = (
        [rows[name][claim.column] for name in names if name in rows]
        for names in (claim.lower, claim.higher)
    )
    return [low < high for low, high in itertools.product(*sides) if "" not in (low, high)]


def verdict(pairs: list[bool]) -> str:
    """Whether all pairs are as claimed, some of them, or none; of no pairs, nothing was measured."""
    if not pairs:
        return "not measured"
    return "agrees" if all(pairs) else "in part" if any(pairs) else "does not agree"


# === the lesson ends here; below: measured, plotted, reported =====================================

TITLE = "VAE, GANs and diffusion, each trained for the same time"
FAMILIES = ("VAE", "GANs", "diffusion")
PATH = (
    "what is drawn from latents on an arc between two random points. The smoother one image changes into "
    "the other, the better the latents can be interpreted."
)
REVERSE = (
    "the reverse process, from noise to the image. One sees when the image is decided; the noise itself "
    "tells nothing to the eye."
)
LOOKED_AT = {"vae": PATH, "gan": PATH, "dcgan": PATH, "ddpm": REVERSE, "unet": REVERSE}


def table_row(name: str, measured: list[Measured], budget: float) -> dict[str, Any]:
    """The figures of one model by column: means over its trainings, and the spread of the distance."""

    def mean(values: Iterable[float]) -> float:
        return statistics.mean(values)

    return {
        "model": NAMES[name],
        "Fréchet distance": mean(one.scores.frechet for one in measured),
        "its spread": spread(measured) if len(measured) > 1 else "",  # one training has none
        "failed runs": sum(one.failed for one in measured),
        "kernel distance": mean(one.scores.kid for one in measured),
        "coverage": mean(one.scores.coverage for one in measured),
        "entropy of classes": mean(one.scores.entropy for one in measured),
        "seconds per epoch": budget / mean(one.epochs for one in measured),
        "ms per image": mean(one.milliseconds for one in measured),
        "parameters": measured[0].parameters,
    }


def real_row(name: str, scores: Scores, columns: Iterable[str]) -> list[Any]:
    """The same row for real images, which have no training."""
    figures_of = {
        "model": name,
        "Fréchet distance": scores.frechet,
        "kernel distance": scores.kid,
        "coverage": scores.coverage,
        "entropy of classes": scores.entropy,
    }
    return [figures_of.get(column, "") for column in columns]


def listed(claims: Sequence[Claim], rows: dict[str, dict[str, Any]]) -> str:
    """The figures that claims about one property are about, the smallest first."""
    column, form = claims[0].column, claims[0].form
    names = {name for claim in claims for name in (*claim.lower, *claim.higher) if name in rows}
    ordered = sorted((rows[name][column], NAMES[name]) for name in names)
    return f"{column}: " + ", ".join(f"{name} {form.format(value)}" for value, name in ordered)


def check_claims(rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The sentences of textbooks, what was measured, and whether the two agree.

    A claim is left out if no model on one of its sides was measured.
    """
    pairs = {claim: compare(claim, rows) for claim in CLAIMS}
    return [[c.text, listed([c], rows), verdict(found)] for c, found in pairs.items() if found]


def textbook_table(rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The textbook's table; beside each of its rows, what was measured and whether they agree."""
    table = []
    for name, said in TEXTBOOK.items():
        own = [claim for claim in CLAIMS if claim.property == name]
        pairs = {claim: compare(claim, rows) for claim in own}
        measured = [claim for claim, found in pairs.items() if found]
        if own:
            found = verdict(list(itertools.chain(*pairs.values())))
            table.append([name, *said, listed(measured, rows) if measured else "", found])
        else:
            table.append([name, *said, "no figure: see inside_*.png", "to be looked at"])
    return table


def summary(checked: list[list[str]], config: Config, n: int) -> str:
    """The paragraph under the title: how it was measured, and where the textbook was right."""
    text = (
        f"Every model trained for {config.budget:g} seconds from each of {config.repeats} seeds and "
        f"drew {n:,} images, which the same classifier scored."
    )
    for found, words in (
        ("agrees", "The measurement agrees with the textbook that"),
        ("in part", "It agrees in part that"),
        ("does not agree", "It does not agree that"),
    ):
        sentences = [claim[:-1] for claim, _, its_verdict in checked if its_verdict == found]
        if sentences:
            lowered = [s.replace("Diffusion", "diffusion", 1) for s in sentences]
            text += f" {words} " + "; that ".join(lowered) + "."
    return text


def plot_quality(measured: dict[str, list[Measured]], evaluator: Evaluator) -> Figure:
    """Distance against the time that an image takes, a point per seed."""
    figure, axes = figures.new_figure(6.4, 4.2)
    axis = axes[0, 0]
    for k, (name, own) in enumerate(measured.items()):
        x, y = [one.milliseconds for one in own], [one.scores.frechet for one in own]
        style = {"color": figures.PALETTE[k], "marker": figures.MARKERS[k], "s": 45}
        axis.scatter(x, y, label=NAMES[name], **style)
    style = {"color": "#666666", "linewidth": 1, "linestyle": "--"}
    axis.axhline(evaluator.floor.frechet, label="held-out real images (floor)", **style)
    figures.log_scale(axis, "x")
    axis.set_xlabel("milliseconds per image drawn")
    axis.set_ylabel(f"Fréchet distance (n = {evaluator.n:,})")
    figures.log_scale(axis)
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def report(
    config: Config,
    data: Dataset,
    measured: dict[str, list[Measured]],
    evaluator: Evaluator,
    result: Result,
) -> None:
    """Enter the table, the claims, the metrics and the figures into `result`."""
    n = evaluator.n
    rows = {name: table_row(name, own, config.budget) for name, own in measured.items()}
    columns = list(next(iter(rows.values())))
    table = [list(row.values()) for row in rows.values()]
    table.append(real_row("held-out real images (floor)", evaluator.floor, columns))
    if evaluator.memoriser is not None:
        table.append(real_row("training images (memoriser)", evaluator.memoriser, columns))
    caption = f"Means over {config.repeats} seeds, {config.budget:g} s of training each "
    caption += f"(n = {n:,}); the U-Net is asked for all classes equally often"
    result.evaluator = evaluator.name
    result.add_table(caption, columns, table)
    caption, columns = "The textbook's table, and what was measured", ["property", *FAMILIES]
    result.add_table(caption, [*columns, "measured", "verdict"], textbook_table(rows))
    checked = check_claims(rows)
    result.add_table("Its claims one by one", ["claim", "measured", "verdict"], checked)
    result.summary = summary(checked, config, n)
    floor = evaluator.floor.frechet
    for row in rows.values():
        name, distance = f"{row['model']}: Fréchet distance", row["Fréchet distance"]
        result.add_metric(name, distance, n, floor=floor, better="lower")
    caption = "Quality against the time an image takes."
    result.add_figure("quality_and_time.png", plot_quality(measured, evaluator), caption)
    pictures = {NAMES[name]: own[0].samples for name, own in measured.items()}
    figure = figures.plot_rows({"real": data.test_images[:STEPS]} | pictures)
    result.add_figure("samples.png", figure, "Samples of each model's first seed, not picked.")
    for name, own in measured.items():
        rows_of_seeds = {f"seed {one.seed}": one.inside[1] for one in own}
        figure = figures.plot_rows(rows_of_seeds, own[0].inside[0], NAMES[name])
        result.add_figure(f"inside_{name}.png", figure, f"{NAMES[name]}: {LOOKED_AT[name]}")


def lessons(_result: Result) -> list[str]:
    """What the figures teach."""
    return [
        "A budget in seconds measures the machine as well as the models. On a faster machine the same "
        "seconds give more epochs, and the slowest models gain most by that."
    ]


def run(config: Config) -> Result:
    """Train every model from every seed, measure, compare."""
    device = prepare(config.seed, config.device)
    config = config.if_quick(budget=3.0, repeats=1, num_samples=500)
    data = load_for(config, device)
    result = start_result(SCRIPT, TITLE, "", config, PICTURES, device, data)
    result.add_file("real.png", "Training images: what every model learns to draw.")
    samples.show_training_images(result, data)
    evaluator = samples.evaluator_for(config, data, config.num_samples)
    if evaluator is None:
        raise UserError("The samples cannot be scored, so there is nothing to compare.")
    measured: dict[str, list[Measured]] = {name: [] for name in TRAIN if name in config.models}
    for seed in range(config.seed, config.seed + config.repeats):
        for name, own in measured.items():
            own.append(measure(name, replace(config, seed=seed), data, evaluator))
    report(config, data, measured, evaluator, result)
    return result.save(*lessons(result))


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
