"""Class-conditional diffusion with a U-Net: guidance, and how few steps will do.

A U-Net (imagelab/techniques/unet.py) learns to take noise out of images of a known class, which one
time in ten it is not told (Ho et al. 2020; Ho and Salimans 2022), and so to draw images of the class
that is asked for. One trained network is sampled by DDPM, DDIM and DPM-Solver++
(imagelab/techniques/diffusion.py), in any number of steps; diffusion_curves.py measures what they and
guidance buy. inpainting.py, diffusion_restoration.py and text_diffusion.py build on this file.

    python -m studies.unet_diffusion                               # the embedded digits: fourteen minutes
    python -m studies.unet_diffusion --dataset mnist
    python -m studies.unet_diffusion --sample-only --guidance 4 --labels 7 --num-samples 100
    python -m studies.unet_diffusion --sample-only --sampler ddim --steps 50 --samples-file samples.npz
    python -m studies.unet_diffusion --dataset cifar10 --epochs 100 --fold 1 --widths 128 256 256 256 \\
        --blocks 2 --attention 1 --dropout 0.1 --flip --lr 2e-4    # of Ho et al.'s kind; takes a GPU
    torchrun --nproc-per-node 2 -m studies.unet_diffusion          # two processes, one run

What to look at: `samples.png`, a class per row; `guidance.png`, the same noise under growing guidance:
the class grows surer and the images grow alike; `reverse_process.gif`.

Guidance: unconditional + scale·(conditional − unconditional); 0 ignores the class, 1 is the conditional
model. The noise of image k comes from (seed, k) alone: any batch size draws the same images.
"""

from __future__ import annotations

from imagelab.setup.command import command_line

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

from imagelab.data.datasets import Dataset, load_for, mirrored, signed, to_uint8
from imagelab.report import figures
from imagelab.report.evaluator import Judge
from imagelab.report.results import Result, start_result
from imagelab.report.samples import (
    clocked,
    draw_loss,
    draw_only,
    draw_tracked,
    draw_trajectory,
    judge_for,
    report_samples,
    samples_to_draw,
    track,
    write_samples,
)
from imagelab.setup.runtime import UserError, prepare
from imagelab.setup.settings import (
    Count,
    Fraction,
    Limits,
    Rate,
    SamplingSettings,
    TrainingSettings,
    plain,
)
from imagelab.techniques.classifier import predict
from imagelab.techniques.diffusion import (
    Estimate,
    Prediction,
    Sampler,
    Schedule,
    ScheduleName,
    estimator,
    image_noise,
    last,
    make_schedule,
    noisy_pair,
    trailing_steps,
    way_back,
)
from imagelab.techniques.unet import UNet
from imagelab.training import distributed
from imagelab.training.checkpoints import as_described, load_checkpoint, load_weights
from imagelab.training.loop import Training, one_cycle

SCRIPT = "unet_diffusion"
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"
TITLE = "U-Net diffusion: the class that is asked for"
SUMMARY = (
    "A convolutional network with skip connections learns to remove noise from digits whose class it "
    "is told, and draws the class that is asked for. Guidance trades variety for certainty; a "
    "second-order solver draws in twenty steps what took a thousand."
)
LESSONS = (
    "{read as the class asked for|.1%} of the samples are read as the class that was asked for,"
    " at a distance of {Fréchet distance|.0f} from the data and with {coverage|.0%} of it "
    "covered.",
)
TRACKED = 300  # samples that are scored along the training
PORTION = 250  # images drawn at a time
Steps = Annotated[int, Limits(1, 10_000)]


@dataclass(frozen=True)
class NetworkSettings(TrainingSettings):
    """A U-Net, its diffusion process and its training."""

    epochs: Count = 3
    """Passes over the training images."""
    batch_size: Count = 64
    """Images per step, each at its own random t."""
    lr: Rate = 2e-3
    """Peak of Adam's learning rate: it climbs over the first quarter of the steps, then falls to 0."""
    T: Annotated[int, Limits(2, 10_000)] = 1000
    """Steps of the diffusion process."""
    schedule: ScheduleName = "cosine"
    """The noise schedule; the last is the linear one, shifted so that x_T is noise and nothing else."""
    prediction: Prediction = "v"
    """What the network estimates: the noise, the clean image, or v = √ᾱ·ε − √(1 − ᾱ)·x₀."""
    ema_decay: Fraction = 0.999
    """Decay of the moving average of the weights, which draws the samples; 0: none."""
    widths: tuple[Count, ...] = (48, 96)
    """Channels of the U-Net from the outside inwards; each next level has half the size."""
    blocks: Count = 1
    """Residual blocks per level on the way down."""
    attention: tuple[int, ...] = ()
    """Levels with attention among their pixels; the outermost is 0."""
    fold: Annotated[int, Limits(1, 4)] = 2
    """So many by so many pixels are folded into channels first: 2 does a quarter of the work of 1."""
    dropout: Fraction = 0.0
    """Share of activations dropped in training."""
    flip: bool = False
    """Mirror half of the training images: for photographs, not for digits."""


@dataclass(frozen=True)
class ClassSettings(NetworkSettings):
    """A network that is told the class of what it draws."""

    drop_class: Fraction = 0.1
    """How often the network is not told the class in training."""
    image_size: Count = 32
    """Side in pixels to which the pictures of folder:PATH are scaled."""


@dataclass(frozen=True)
class Config(ClassSettings, SamplingSettings):
    """Settings of the class-conditional U-Net."""

    sampler: Sampler = "dpm-solver"
    """ddpm, ddim or dpm-solver (DPM-Solver++, second order)."""
    steps: Steps = 20
    """Steps of sampling, each one call of the network (two with guidance)."""
    eta: Fraction = 0.0
    """Noise that DDIM adds on its way: 0 none, 1 as much as DDPM."""
    guidance: Annotated[float, Limits(0, 100)] = 1.5
    """Scale of the guidance: 0 ignores the class, 1 is the conditional model, more exaggerates."""
    rescale: Fraction = 0.0
    """How far guided estimates are drawn back to the conditional one's contrast."""
    labels: tuple[int, ...] = ()
    """The classes to draw, by number; default: all."""
    num_samples: Annotated[int, Limits(1, 1_000_000)] = 4000
    """How many samples to draw for --samples-file and to score; as many are scored as there are
    held-out images to compare them with."""


# --- the model ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A network with all that sampling from it takes."""

    network: UNet
    schedule: Schedule
    prediction: Prediction
    shape: tuple[int, int, int]
    trained_on: str = ""
    """The name of the data set, if the network comes from a checkpoint."""
    settings: dict = field(default_factory=dict)
    """Those of its training, likewise."""

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def of_classes(self, labels: torch.Tensor, guidance: float = 1, rescale: float = 0) -> Estimate:
        """x̂₀ of x_t and t for images of the classes `labels` (B,)."""
        none = torch.full_like(labels, self.network.classes)
        if guidance == 0:  # half the work of a doubled batch
            labels, guidance = none, 1
        return self.given({"label": labels}, {"label": none}, guidance, rescale)

    def given(
        self,
        asked: dict[str, torch.Tensor],
        nothing: dict[str, torch.Tensor] | None = None,
        guidance: float = 1,
        rescale: float = 0,
    ) -> Estimate:
        """x̂₀ of x_t and t for images of which `asked` is known, in the words of UNet.forward."""
        return estimator(self.network, self.schedule, self.prediction, asked, nothing, guidance,
                         rescale)  # fmt: skip


def build(config: dict, shape: tuple[int, int, int], **told: int) -> Model:
    """The untrained model that `config` (its own or a checkpoint's) describes.

    `told` is what the network is told, as UNet has it: classes, vocabulary or beside.
    """
    if config["prediction"] == "eps" and config["schedule"] == "zero-terminal-snr":
        raise UserError("--prediction eps cannot start from a zero SNR: take v or x0.")
    network = UNet(
        shape[0],
        widths=tuple(config["widths"]),
        blocks=config["blocks"],
        attention=tuple(config["attention"]),
        fold=config["fold"],
        dropout=config["dropout"],
        **told,
    )
    schedule = make_schedule(config["schedule"], config["T"])
    return Model(network, schedule, config["prediction"], tuple(shape))


def load_model(path: Path, device: torch.device, script: str = SCRIPT, **told: int) -> Model:
    """The averaged network of a checkpoint, whatever settings it was trained with."""
    saved = load_checkpoint(path, script, device)
    with as_described(path):
        told = told or {"classes": saved["dataset"]["classes"]}
        model = build(saved["config"], saved["dataset"]["shape"], **told)
        model = replace(model, trained_on=saved["dataset"]["name"], settings=saved["config"])
    load_weights(model.network, saved["ema"], path)
    model.network.to(device, memory_format=torch.channels_last).eval()
    return model


def load_with_data(config, device: torch.device) -> tuple[Model, Dataset]:
    """The network under --output-dir, for other uses, and the data that it was trained for."""
    model = load_model(checkpoint_path(config), device)
    data = load_for(config, device, image_size=model.shape[-1])
    known = (model.trained_on, model.shape, model.network.classes)
    if known != (data.name, data.shape, len(data.classes)):
        raise UserError(
            f"The network draws {known[2]} classes of {known[0]} {known[1]}; the data are {data.name}, "
            f"{len(data.classes)} classes of {data.shape}: train studies.unet_diffusion on them first."
        )
    return model, data


Tell = Callable[[torch.Tensor, torch.Tensor, torch.Generator], dict[str, torch.Tensor]]


def train(
    config: Config,
    data: Dataset,
    path: Path,
    judge: Judge | None = None,
    tell: Tell | None = None,
    script: str = SCRIPT,
    free: tuple[str, ...] = ("sampler", "steps", "eta", "guidance", "rescale", "labels"),
    **told: int,
) -> tuple[Training, Model]:
    """Train, or go on with --resume; the model has the averaged weights, to sample from.

    `judge` watches: it scores samples after every epoch and has no say in the training. `tell` makes
    what the network is told of a batch, from its images x0 (B, C, H, W), their indices (B,) and the
    random generator: the class or, one time in ten, none, if it is not given. `free` settings may be
    others on --resume.
    """
    device = data.images.device
    trailing_steps(config.T, config.steps)  # a wrong number is refused now, not after the training
    torch.manual_seed(config.seed)
    model = build(plain(config), data.shape, **(told or {"classes": len(data.classes)}))
    network = model.network.to(device, memory_format=torch.channels_last)
    adam = torch.optim.Adam(network.parameters(), lr=config.lr, fused=True)
    run = Training(path, script, config, data, {"unet": network}, {"adam": adam}, ema="unet",
                   ema_decay=config.ema_decay, free=free, label="U-Net", shared=True)  # fmt: skip
    averaged = replace(model, network=run.averaged.eval())
    own = distributed.own_rows(min(config.batch_size, len(data.images)))
    replica = distributed.replicated(network)

    def tell_class(_x0, batch, rng) -> dict[str, torch.Tensor]:
        silent = torch.rand(len(batch), generator=rng, device=device) < config.drop_class
        return {"label": torch.where(silent, network.classes, data.labels[batch])}

    tell = tell or tell_class
    with run:
        for _ in run.epochs():
            for batch in run.batches():
                adam.param_groups[0]["lr"] = config.lr * one_cycle(run.progress)
                x0 = signed(data.images[batch])
                if config.flip:
                    x0 = mirrored(x0, run.rng)
                told_of = {name: part[own] for name, part in tell(x0, batch, run.rng).items()}
                x_t, t, wanted = noisy_pair(model.schedule, model.prediction, x0, run.rng)
                answer = replica(x_t[own], t[own] / config.T, **told_of)
                loss = F.mse_loss(answer, wanted[own])
                adam.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                adam.step()
                run.log(loss=distributed.mean(loss))
            if judge is not None:
                tracked = replace(config, labels=(), steps=min(10, config.T))
                track(run, judge, sample(averaged, tracked, TRACKED)[0])
    return run, averaged


# --- sampling -------------------------------------------------------------------------------------


def asked_classes(config: Config, classes: int, n: int) -> torch.Tensor:
    """The class of each of `n` images: ten of one, ten of the next, so that a grid has a row each."""
    wrong = [label for label in config.labels if not 0 <= label < classes]
    if wrong:
        raise UserError(f"--labels must lie between 0 and {classes - 1}, not {wrong[0]}.")
    chosen = torch.tensor(config.labels or tuple(range(classes)))
    return chosen[torch.arange(n) // 10 % len(chosen)]


def draw(
    model: Model,
    estimate: Callable[[slice], Estimate],
    n: int,
    steps: int,
    seed: int,
    sampler: Sampler = "dpm-solver",
    eta: float = 0.0,
    portion: int = PORTION,
) -> torch.Tensor:
    """`n` images (n, C, H, W) in [-1, 1], drawn in portions; `estimate` gives that of their rows."""
    images = []
    for first in range(0, n, portion):
        rows = slice(first, min(first + portion, n))
        noise = image_noise(seed, first, rows.stop - first, model.shape, model.device)
        images.append(last(way_back(sampler, model.schedule, estimate(rows), steps, eta, noise)))
    return torch.cat(images)


def sample(
    model: Model, config: Config, n: int, portion: int = PORTION
) -> tuple[torch.Tensor, torch.Tensor]:
    """`n` images (n, C, H, W) uint8 and the classes (n,) that were asked for, as `config` says."""
    asked = asked_classes(config, model.network.classes, n).to(model.device)

    def estimate(rows: slice) -> Estimate:
        return model.of_classes(asked[rows], config.guidance, config.rescale)

    images = draw(
        model, estimate, n, config.steps, config.seed, config.sampler, config.eta, portion
    )
    return to_uint8(images), asked


def draw_guidance(result: Result, model: Model, config: Config, scales: tuple[float, ...]) -> None:
    """The same noise under growing guidance, a row per scale, a column per class."""
    rows = {}
    labels = torch.arange(min(model.network.classes, 10), device=model.device)
    for scale in scales:
        noise = image_noise(config.seed, 1_000, len(labels), model.shape, labels.device)
        states = way_back(config.sampler, model.schedule, model.of_classes(labels, scale, config.rescale),
                          config.steps, config.eta, noise)  # fmt: skip
        rows[f"scale {scale:g}"] = to_uint8(last(states))
    path = result.add_file(
        "guidance.png",
        "A class per column, the same noise in each row: a scale of 0 ignores the class, 1 is the "
        "conditional model, more makes the class surer and the images plainer.",
    )
    figures.named_rows(path, rows)


def draw_way(result: Result, model: Model, config: Config) -> None:
    """Eight images on their way from noise."""
    device = model.device
    labels = torch.arange(8, device=device) % model.network.classes
    noise = image_noise(config.seed, 2_000, 8, model.shape, device)
    estimate = model.of_classes(labels, config.guidance, config.rescale)
    states = way_back(config.sampler, model.schedule, estimate, config.steps, config.eta, noise)
    draw_trajectory(result, [(t, to_uint8(x)) for t, x in states])


def asked_accuracy(judge: Judge, images: torch.Tensor, asked: torch.Tensor) -> float:
    """The share of images that the classifier reads as the class that was asked for."""
    return (predict(judge.classifier, images).argmax(dim=1) == asked).float().mean().item()


# --- the run --------------------------------------------------------------------------------------


def checkpoint_path(config: Config) -> Path:
    return config.output_dir / MODELS / "unet.pth"


def run(config: Config) -> Result | None:
    """Train (or load), sample, measure; what the driver and the tests call."""
    device = distributed.join(prepare(config.seed, config.device))
    config = config.quickened(widths=(16, 32), epochs=1, num_samples=300, steps=5)
    path = checkpoint_path(config)
    if config.sample_only:
        samples, _ = sample(load_model(path, device), config, config.num_samples)
        return draw_only(SCRIPT, TITLE, PICTURES, config, device, samples)
    if config.labels:
        raise UserError(
            "--labels chooses what --sample-only draws; a training is scored on all classes."
        )
    data = load_for(config, device)
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    watch = judge_for(config, data, TRACKED) if distributed.writes() else None
    training, model = train(config, data, path, watch)
    distributed.leave()
    if not distributed.writes():
        return None
    evaluate(config, data, training, model, watch, result)
    return result.save(*LESSONS)


def evaluate(
    config: Config, data: Dataset, training: Training, model: Model, watch: Judge | None,
    result: Result,
) -> None:  # fmt: skip
    """Sample and score, draw the figures, write --samples-file."""
    n = samples_to_draw(config, data)
    with clocked(result, n):
        samples, asked = sample(model, config, n)
    judge = watch and judge_for(config, data, n, watch)
    report_samples(result, samples, judge, data, training)
    if judge is not None:
        accuracy = asked_accuracy(judge, samples[:1000], asked[:1000])
        result.add_metric("read as the class asked for", accuracy, min(n, 1000), better="higher")
    result.add_metric("seconds of training", training.seconds, training.steps_done, unit="s")
    draw_tracked(result, training, watch)
    draw_guidance(result, model, config, (0, 1, 2, 4, 8))
    draw_way(result, model, config)
    draw_loss(result.add_file("loss.png", "The loss along the training."), training, "MSE")
    write_samples(config.samples_file, samples)


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
