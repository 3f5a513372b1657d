"""VAE, GANs and diffusion under one clock: what textbooks assert about them, measured.

Every model of this collection that draws trains on the same data for the same number of seconds, three
times from different seeds, and is judged by the same classifier. One table shows what each costs and
reaches; below it, the usual claims stand beside what was measured.

    python -m studies.model_comparison                     # about a quarter of an hour on two CPU cores
    python -m studies.model_comparison --budget 20 --repeats 2
    python -m studies.model_comparison --models vae gan    # some of them
    python -m studies.model_comparison --resume            # go on after Ctrl-C

A budget in seconds measures the machine as well as the model: on another one the same seconds buy
another number of epochs, and the order may be another one too. The table says what an epoch takes.
"""

from __future__ import annotations

from imagelab.setup.command import command_line

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

import gan_mnist
import mlp_diffusion
from imagelab.data.datasets import Dataset, load_for, random_subset, to_uint8
from imagelab.report import figures
from imagelab.report.evaluator import Judge, Scores
from imagelab.report.results import Result, start_result
from imagelab.report.samples import judge_for
from imagelab.setup.runtime import Stopwatch, UserError, generator, prepare
from imagelab.setup.settings import BoardSettings, Count, DataSettings, Limits
from imagelab.techniques.diffusion import image_noise, way_back
from imagelab.training.loop import Training, goes_on
from studies import dcgan, unet_diffusion, vae

SCRIPT = "model_comparison"
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"
TITLE = "VAE, GANs and diffusion under one clock"
EPOCHS = 100_000  # more than any budget allows: the clock ends the training
FAILED = 0.1  # a run whose samples cover less than this part of the real images has failed
STEPS = 10  # columns of the picture of what can be looked at; of the U-Net's sampling
SLOW = 3.0  # seconds: a drawing that lasts longer is not repeated to measure its time


@dataclass(frozen=True)
class Config(BoardSettings, DataSettings):
    """Settings of the comparison."""

    resume: bool = False
    """Go on with a comparison that was stopped: what is trained is not trained again."""
    models: tuple[Literal["vae", "gan", "dcgan", "ddpm", "unet"], ...] = (
        "vae", "gan", "dcgan", "ddpm", "unet",
    )  # fmt: skip
    """The models to compare."""
    budget: Annotated[float, Limits(0.1)] = 40.0
    """Seconds of training of each model and seed."""
    repeats: Count = 3
    """Trainings of each model, from the seeds --seed, --seed + 1, ..."""
    num_samples: Count = 10_000
    """Samples to score of each; at most as many as there are held-out images."""


@dataclass
class Trained:
    """A model after its training: how to draw from it, and what can be looked at inside."""

    run: Training
    draw: Callable[[int, int], torch.Tensor]
    """(n, seed) to n images (n, C, H, W) uint8."""
    parameters: int
    """Of all that drawing takes."""
    inside: Callable[[], torch.Tensor]
    """STEPS images (STEPS, C, H, W) uint8: a walk through the latents, or the reverse process."""


# --- the models, each as its own script trains it -------------------------------------------------


def train_vae(config: Config, data: Dataset, path: Path, result: Result) -> Trained:
    own = vae.Config(**shared(config, path), latent_sizes=(16,), epochs=EPOCHS)
    run = vae.train(own, 16, data, path)
    model = run.networks["vae"]
    return Trained(
        run,
        lambda n, seed: vae.sample(model, n, seed),
        parameters(model.decoder),
        lambda: vae.draw(model, walk(16, config.seed, data.images.device)),
    )


def train_gan(config: Config, data: Dataset, path: Path, result: Result, how=gan_mnist) -> Trained:
    own = how.Config(**shared(config, path), epochs=EPOCHS, grid_every=0, log_every=10**9)
    G, D = how.build(own, data.shape, data.images.device)
    run = gan_mnist.train(own, data, G, D, path, result)
    drawing = gan_mnist.drawing_network(run)
    return Trained(
        run,
        lambda n, seed: gan_mnist.sample(drawing, n, seed),
        parameters(G),
        lambda: gan_mnist.draw(drawing, walk(own.latent_size, config.seed, data.images.device)),
    )


def train_dcgan(config: Config, data: Dataset, path: Path, result: Result) -> Trained:
    return train_gan(config, data, path, result, how=dcgan)


def train_ddpm(config: Config, data: Dataset, path: Path, result: Result) -> Trained:
    own = mlp_diffusion.Config(**shared(config, path), epochs=EPOCHS)
    run = mlp_diffusion.train(own, data, path)
    model = run.averaged
    return Trained(
        run,
        lambda n, seed: mlp_diffusion.sample(model, n, data.shape, seed),
        parameters(model),
        lambda: reverse_process(model, data, config.seed),
    )


def train_unet(config: Config, data: Dataset, path: Path, result: Result) -> Trained:
    own = unet_diffusion.Config(**shared(config, path), epochs=EPOCHS, steps=STEPS, guidance=1.0)
    run, model = unet_diffusion.train(own, data, path)
    label = torch.zeros(1, dtype=torch.long, device=data.images.device)
    noise = image_noise(config.seed, 0, 1, data.shape, label.device)
    states = way_back(own.sampler, model.schedule, model.of_classes(label), STEPS, own.eta, noise)
    return Trained(
        run,
        lambda n, seed: unet_diffusion.sample(model, replace(own, seed=seed), n)[0],
        parameters(model.network),
        lambda: to_uint8(torch.cat([x for _, x in states][-STEPS:])),
    )


TRAIN = {"vae": train_vae, "gan": train_gan, "dcgan": train_dcgan, "ddpm": train_ddpm,
         "unet": train_unet}  # fmt: skip
NAMES = {"vae": "VAE", "gan": "MLP GAN", "dcgan": "DCGAN", "ddpm": "MLP DDPM", "unet": "U-Net DDPM"}
DIFFUSION, GANS = ("ddpm", "unet"), ("gan", "dcgan")


def shared(config: Config, path: Path) -> dict[str, Any]:
    """What the models' own settings take over from those of the comparison."""
    return {
        "output_dir": config.output_dir,
        "seed": config.seed,
        "quick": config.quick,
        "time_limit": config.budget,
        "resume": goes_on(config, path),
        "tensorboard": config.tensorboard,
    }


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def walk(latent_size: int, seed: int, device: torch.device) -> torch.Tensor:
    """Latents (STEPS, latent_size) from one random point to another along the sphere they lie on."""
    a, b = torch.randn(2, latent_size, generator=generator(seed, "walk")).to(device)
    angle = torch.linspace(0, math.pi / 2, STEPS, device=device)[:, None]
    return angle.cos() * a + angle.sin() * b


def reverse_process(model: mlp_diffusion.Denoiser, data: Dataset, seed: int) -> torch.Tensor:
    """One sample on its way from x_T to the image, at STEPS moments."""
    rng = generator(seed, "reverse process")
    x_T = torch.randn(1, math.prod(data.shape), generator=rng).to(data.images.device)
    states = [x for _, x in mlp_diffusion.reverse_process(model, x_T, rng)]
    chosen = [states[round(i)] for i in torch.linspace(0, len(states) - 1, STEPS).tolist()]
    return to_uint8(torch.cat(chosen).reshape(-1, *data.shape))


# --- measuring ------------------------------------------------------------------------------------


@dataclass
class Measured:
    """One training of one model."""

    model: str
    seed: int
    scores: Scores
    epochs: float
    milliseconds: float
    """Per image: the median of three drawings of a thousand, or of all where those are slow."""
    parameters: int
    samples: torch.Tensor
    inside: torch.Tensor

    @property
    def failed(self) -> bool:
        return not math.isfinite(self.scores.frechet) or self.scores.coverage < FAILED


def measure(name: str, config: Config, data: Dataset, judge: Judge, result: Result) -> Measured:
    """Train one model with the seed of `config`, draw and score."""
    path = config.output_dir / MODELS / f"{name}_seed{config.seed}.pth"
    trained = TRAIN[name](config, data, path, result)
    with Stopwatch() as watch:
        samples = trained.draw(judge.n, config.seed)
    each = [watch.seconds / judge.n]
    if watch.seconds < SLOW:  # else it was long enough to be a measurement
        each = []
        for _ in range(3):
            with Stopwatch() as watch:
                trained.draw(1000, config.seed)
            each.append(watch.seconds / 1000)
    run = trained.run
    shown = random_subset(len(samples), STEPS, "shown")  # the first of the U-Net's are of one class
    return Measured(
        name, config.seed, judge.scores(samples), run.steps_done / run.steps_per_epoch,
        1000 * statistics.median(each), trained.parameters, samples[shown], trained.inside(),
    )  # fmt: skip


def table_row(name: str, runs: list[Measured], budget: float) -> list[Any]:
    """What a model's runs come to: means, and the spread of the distance."""
    mean = {
        key: statistics.mean(getattr(run.scores, key) for run in runs)
        for key in ("frechet", "kid", "coverage", "entropy")
    }
    spread_of = spread(runs) if len(runs) > 1 else ""  # one run has none
    return [
        NAMES[name], mean["frechet"], spread_of, sum(run.failed for run in runs), mean["kid"],
        mean["coverage"], mean["entropy"], budget / statistics.mean(run.epochs for run in runs),
        statistics.mean(run.milliseconds for run in runs), runs[0].parameters,
    ]  # fmt: skip


COLUMNS = [
    "model", "Fréchet distance", "its spread", "failed runs", "kernel distance", "coverage",
    "entropy of classes", "seconds per epoch", "ms per image", "parameters",
]  # fmt: skip


def spread(runs: list[Measured]) -> float:
    """The largest distance less the smallest, as a share of the mean."""
    distances = [run.scores.frechet for run in runs]
    return (max(distances) - min(distances)) / statistics.mean(distances)


def claims(rows: dict[str, list[Any]]) -> list[list[str]]:
    """What textbooks say, what was measured, and whether the two agree.

    `rows` are those of the table; a claim is about the models that are there, if both sides are.
    """
    column = {key: COLUMNS.index(key) for key in COLUMNS}

    def values(key: str, names: tuple[str, ...]) -> dict[str, float]:
        return {NAMES[name]: rows[name][column[key]] for name in names if name in rows}

    def listed(figures_of: dict[str, float], form: str) -> str:
        ordered = sorted(figures_of.items(), key=lambda item: item[1])
        return ", ".join(f"{name} {form.format(value)}" for name, value in ordered)

    said = []
    for text, key, form, lower, higher in (
        ("VAE and diffusion train stably, GANs do not: their results differ more between seeds.",
         "its spread", "{:.0%}", ("vae", *DIFFUSION), GANS),
        ("Diffusion draws better than GANs.", "Fréchet distance", "{:.0f}", DIFFUSION, GANS),
        ("GANs draw better than VAEs.", "Fréchet distance", "{:.0f}", GANS, ("vae",)),
        ("GANs cover less of the data than VAEs and diffusion do.", "coverage", "{:.2f}",
         GANS, ("vae", *DIFFUSION)),
        ("Diffusion pays for its samples with time.", "ms per image", "{:.3f}", ("vae", *GANS),
         DIFFUSION),
    ):  # fmt: skip
        low, high = values(key, lower), values(key, higher)
        if low and high and "" not in (*low.values(), *high.values()):
            pairs = [a < b for a in low.values() for b in high.values()]
            verdict = "agrees" if all(pairs) else "does not agree" if not any(pairs) else "in part"
            said.append([text, f"{key}: {listed({**low, **high}, form)}", verdict])
    return said


def summary(rows: dict[str, list[Any]], said: list[list[str]], config: Config, n: int) -> str:
    """The paragraph under the title: how it was measured, and where the textbook was right."""
    text = (
        f"Every model trained for {config.budget:g} seconds from each of {config.repeats} seeds and "
        f"drew {n:,} images for the same judge."
    )
    for verdict, words in (
        ("agrees", "The measurement agrees with the textbook that"),
        ("in part", "It agrees in part that"),
        ("does not agree", "It does not agree that"),
    ):
        found = [claim[0][0].lower() + claim[0][1:-1] for claim in said if claim[2] == verdict]
        found = [text.replace("vAE", "VAE").replace("gANs", "GANs") for text in found]
        if found:
            text += f" {words} " + "; that ".join(found) + "."
    return text


# --- figures --------------------------------------------------------------------------------------


def draw_quality(path: Path, measured: dict[str, list[Measured]], judge: Judge) -> None:
    """Distance against the time that an image takes, a point per seed."""
    figure, axes = figures.new_figure(6.4, 4.2)
    axis = axes[0, 0]
    for k, (name, runs) in enumerate(measured.items()):
        axis.scatter(
            [run.milliseconds for run in runs], [run.scores.frechet for run in runs],
            label=NAMES[name], color=figures.PALETTE[k], marker=figures.MARKERS[k], s=45,
        )  # fmt: skip
    axis.axhline(judge.floor.frechet, color="#666666", linewidth=1, linestyle="--",
                 label="held-out real images (floor)")  # fmt: skip
    axis.set(xscale="log", xlabel="milliseconds per image drawn",
             ylabel=f"Fréchet distance (n = {judge.n:,})")  # fmt: skip
    figures.log_scale(axis)
    figure.legend(loc="outside upper center", ncols=3)
    figures.save_figure(figure, path)


# --- the run --------------------------------------------------------------------------------------


def run(config: Config) -> Result:
    """Train every model from every seed, measure, compare."""
    device = prepare(config.seed, config.device)
    config = config.quickened(budget=3.0, repeats=1, num_samples=500)
    data = load_for(config, device)
    result = start_result(SCRIPT, TITLE, "", config, PICTURES, device, data)
    judge = judge_for(config, data, config.num_samples)
    if judge is None:
        raise UserError("Without a judge there is nothing to compare.")
    measured: dict[str, list[Measured]] = {name: [] for name in TRAIN if name in config.models}
    for seed in range(config.seed, config.seed + config.repeats):
        for name, runs in measured.items():
            runs.append(measure(name, replace(config, seed=seed), data, judge, result))

    rows = {name: table_row(name, runs, config.budget) for name, runs in measured.items()}
    real = {"held-out real images (floor)": judge.floor,
            "training images (memoriser)": judge.memoriser}  # fmt: skip
    real_rows = [[name, s.frechet, "", "", s.kid, s.coverage, s.entropy, "", "", ""]
                 for name, s in real.items() if s is not None]  # fmt: skip
    result.judge = judge.name
    result.add_table(
        f"Means over {config.repeats} seeds, {config.budget:g} s of training each (n = {judge.n:,}); the "
        "U-Net is told the classes evenly",
        COLUMNS, [*rows.values(), *real_rows],
    )  # fmt: skip
    said = claims(rows)
    result.add_table("The textbook's claims", ["claim", "measured", "verdict"], said)
    result.summary = summary(rows, said, config, judge.n)
    for name, runs in measured.items():
        distance = statistics.mean(run.scores.frechet for run in runs)
        result.add_metric(f"{NAMES[name]}: Fréchet distance", distance, judge.n,
                          floor=judge.floor.frechet, better="lower")  # fmt: skip
    path = result.add_file("quality_and_time.png", "Quality against the time an image takes.")
    draw_quality(path, measured, judge)
    path = result.add_file("samples.png", "Samples of each model's first seed, not picked.")
    pictures = {NAMES[name]: runs[0].samples for name, runs in measured.items()}
    figures.named_rows(path, {"real": data.test_images[:STEPS]} | pictures)
    path = result.add_file("inside.png", "What can be looked at: a walk through the latents of VAE "
                           "and GANs, the reverse process of the diffusion model.")  # fmt: skip
    figures.named_rows(path, {NAMES[name]: runs[0].inside for name, runs in measured.items()})
    return result.save(
        "A budget in seconds measures the machine as well as the models: on a faster one the same "
        "seconds buy more epochs, of which the slowest models gain most."
    )


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
