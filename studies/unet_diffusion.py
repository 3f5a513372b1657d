"""Class-conditional diffusion with a U-Net: guidance, and sampling in few steps.

A U-Net (imagelab/techniques/unet.py) learns to remove noise from images (Ho et al. 2020). It is told the
class of each image. In one of ten images the class is left out, so the same network also learns to draw
without one. Guidance combines the two estimates (Ho and Salimans 2022). DDPM, DDIM and DPM-Solver++ draw
from the trained network in any number of steps (imagelab/techniques/diffusion.py).

    python -m studies.unet_diffusion                      # fourteen minutes; also with --dataset mnist
    python -m studies.unet_diffusion --sample-only --guidance 4 --labels 7 --num-samples 100
    python -m studies.unet_diffusion --sample-only --sampler ddim --steps 50 --samples-file samples.npz
    python -m studies.unet_diffusion --variance learned   # for a better likelihood
    python -m studies.unet_diffusion --dataset cifar10 --epochs 100 --widths 128 256 256 256 --blocks 2 \\
        --attention 1 --patch-size 1 --dropout 0.1 --flip --lr 2e-4    # as in Ho et al.; takes a GPU
    torchrun --nproc-per-node 2 -m studies.unet_diffusion # two processes, one training

What to look at: `samples.png`, a class per row; `guidance.png`, the same noise under growing guidance:
the class becomes clearer, and the images become alike; `reverse_process.gif`. diffusion_curves.py
measures steps and guidance. inpainting.py, diffusion_restoration.py and text_diffusion.py build on this.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from imagelab.data.datasets import Dataset, load_for, mirrored, signed, to_uint8
from imagelab.report import figures, samples
from imagelab.report.evaluator import Evaluator
from imagelab.report.results import Result, start_result
from imagelab.setup import settings
from imagelab.setup.runtime import UserError, channels_last, generator, prepare
from imagelab.setup.settings import Count, Fraction, Limits, Rate
from imagelab.techniques import diffusion, likelihood
from imagelab.techniques.classifier import accuracy
from imagelab.techniques.diffusion import Estimate, Prediction, Sampler, Schedule, ScheduleName
from imagelab.techniques.unet import Pool, UNet
from imagelab.training import distributed
from imagelab.training.checkpoints import checkpoint_errors, load_checkpoint, load_weights
from imagelab.training.loop import Observer, Training, no_observer, one_cycle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "unet_diffusion"
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"
PORTION = 250  # images that are drawn at a time

# --- the mathematics ------------------------------------------------------------------------------


def noisy_pair(
    model: Model, x0: torch.Tensor, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One training step's x_t (B, ...), t (B,) and target (B, ...) for images x0 (B, ...).

    Each image has its own random t. x_t = √ᾱ_t·x₀ + √(1 − ᾱ_t)·ε. The target is ε, x₀ or v, as
    `model.prediction` says. `model.schedule.alpha_bar[t]` is ᾱ_t and `.snr[t]` is ᾱ_t/(1 − ᾱ_t), float64.
    t counts from 0 in code: x_t here is x_{t+1} of the papers.
    """
    t = torch.randint(0, len(model.schedule), (len(x0),), generator=rng, device=x0.device)
    eps = torch.randn(x0.shape, generator=rng, device=x0.device)
    x_t = model.schedule.q_sample(x0, t, eps)
    return x_t, t, diffusion.target(model.schedule, model.prediction, x0, eps, t)


def guided(
    cond: torch.Tensor, uncond: torch.Tensor, scale: float, rescale: float = 0.0
) -> torch.Tensor:
    """Classifier-free guidance (Ho and Salimans 2022) of estimates (B, ...) of ε, x₀ or v.

    uncond + scale·(cond − uncond). A scale of 0 ignores the class, 1 is the conditional model, more
    exaggerates the class. (Their w is scale − 1.) `rescale` from 0 to 1 brings the standard deviation of
    each image towards that of the conditional estimate (Lin et al. 2023).
    """
    result = uncond + scale * (cond - uncond)
    if rescale == 0:
        return result
    dimensions = tuple(range(1, result.dim()))
    shrunk = result * cond.std(dimensions, keepdim=True) / result.std(dimensions, keepdim=True)
    return rescale * shrunk + (1 - rescale) * result


def log_variance(schedule: Schedule, v: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The learned variance of step t (B,), as log Σ (B, ...): Nichol and Dhariwal 2021, eq. 15.

    The network's v (B, ...) chooses between the smallest sensible variance, β̃_t at v = −1, and the
    largest, β_t at v = 1.
    """
    smallest, largest = (
        likelihood.at(table.log(), t, v)
        for table in (likelihood.step_variances(schedule, "posterior"), schedule.beta)
    )
    share = (v.double() + 1) / 2
    return share * largest + (1 - share) * smallest


def vlb_terms(
    schedule: Schedule,
    x0: torch.Tensor,
    x0_hat: torch.Tensor,
    log_var: torch.Tensor,
    t: torch.Tensor,
) -> torch.Tensor:
    """The term of the variational bound that belongs to each t (B,), in bits per dimension, (B,).

    L_t = KL(q(x_{t−1}|x_t, x₀) ‖ N(μ̃(x_t, x̂₀), Σ)). At t = 0 it is −log p of the grey levels of x₀.
    Images and `log_var` = log Σ are (B, ...). imagelab/techniques/likelihood.py has the whole bound.
    """
    nats = likelihood.step_kl(schedule, t, x0, x0_hat, log_var.exp()).flatten(1).mean(dim=1)
    first, std = t == 0, (log_var / 2).exp()
    pixels = -likelihood.discretised_gaussian(
        x0[first].double(), x0_hat[first].double(), std[first]
    )
    nats[first] = pixels.flatten(1).mean(dim=1)
    return nats / math.log(2)


def hybrid_loss(
    model: Model,
    out: torch.Tensor,
    target: torch.Tensor,
    x0: torch.Tensor,
    x_t: torch.Tensor,
    t: torch.Tensor,
) -> torch.Tensor:
    """L_simple, the squared error; with a learned variance L_simple + 0.001·L_vlb.

    (Nichol and Dhariwal 2021, eq. 16.) L_vlb is the sum of all terms of the bound; T times the mean at
    random t estimates it. It trains the variance alone: the estimate of the image is detached.
    """
    out, v = model.split(out)
    simple = F.mse_loss(out, target)
    if v is None:
        return simple
    schedule = model.schedule
    x0_hat = diffusion.to_x0(schedule, model.prediction, out.detach(), x_t, t).clamp(-1, 1)
    terms = vlb_terms(schedule, x0, x0_hat, log_variance(schedule, v, t), t)
    return simple + 0.001 * len(schedule) * terms.mean().float()


# --- the model ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A network, and what is needed to sample from it."""

    network: UNet
    schedule: Schedule
    prediction: Prediction
    shape: tuple[int, int, int]
    variance: VarianceKind = "fixed"
    """learned: the network's output has twice the channels, for its estimate and for v."""
    trained_on: str = ""
    """The name of the data set, if the network comes from a checkpoint."""
    settings: dict = field(default_factory=dict)
    """The settings of its training, if it comes from a checkpoint."""

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def split(self, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The network's output as its estimate and v (B, C, H, W); v is None for a fixed variance."""
        estimate, *v = out.chunk(2 if self.variance == "learned" else 1, dim=1)
        return estimate, v[0] if v else None

    def class_estimator(
        self, labels: torch.Tensor, guidance: float = 1, rescale: float = 0
    ) -> Estimate:
        """The function that samplers call in each step: x_t and t to x̂₀, for the classes `labels` (B,).

        `guidance` and `rescale` are the scale and the rescale of `guided`.
        """
        no_class = torch.full_like(labels, self.network.classes)  # the label after the last class
        if guidance == 0:  # one estimate is enough: half the work
            labels, guidance = no_class, 1
        return self.estimator({"label": labels}, {"label": no_class}, guidance, rescale)

    def estimator(
        self,
        cond: dict[str, torch.Tensor],
        uncond: dict[str, torch.Tensor] | None = None,
        guidance: float = 1,
        rescale: float = 0,
    ) -> Estimate:
        """Like `class_estimator`, for any condition: a function of x_t and t to x̂₀, clipped to [-1, 1].

        `cond` holds further arguments of UNet.forward by name. `uncond` holds the same arguments with the
        condition left out. Where it is given and `guidance` is not 1, the network makes both estimates in
        one batch of twice the size, and `guided` combines them.
        """
        network, schedule = self.network, self.schedule

        @torch.no_grad()
        def estimate(x: torch.Tensor, t: int) -> torch.Tensor:
            times = torch.full((len(x),), t, device=x.device)
            if uncond is None or guidance == 1:
                out, _ = self.split(network(x, times / len(schedule), **cond))
            else:
                both = {name: torch.cat([cond[name], uncond[name]]) for name in cond}
                out = network(torch.cat([x, x]), torch.cat([times, times]) / len(schedule), **both)
                with_cond, without = self.split(out)[0].chunk(2)
                out = guided(with_cond, without, guidance, rescale)
            return diffusion.to_x0(schedule, self.prediction, out, x, times).clamp(-1, 1)

        return estimate


def build(config: dict, shape: tuple[int, int, int], **condition: int) -> Model:
    """An untrained model. `config` holds the settings, from the command line or from a checkpoint.

    `condition` is what the network is conditioned on: `classes`, `vocabulary` or `beside` of UNet.
    """
    if config["prediction"] == "eps" and config["schedule"] == "zero-terminal-snr":
        raise UserError("--prediction eps cannot start from a zero SNR: take v or x0.")
    names = ("widths", "blocks", "attention", "patch_size", "dropout", "pool")
    options: dict[str, Any] = {name: config[name] for name in names} | condition
    variance: VarianceKind = config.get("variance", "fixed")
    outputs = 2 if variance == "learned" else 1  # its estimate, and v
    network = UNet(shape[0], **options, outputs=outputs)
    schedule = diffusion.make_schedule(config["schedule"], config["T"])
    return Model(network, schedule, config["prediction"], (shape[0], shape[1], shape[2]), variance)


# --- settings -------------------------------------------------------------------------------------

Steps = Annotated[int, Limits(1, 10_000)]
VarianceKind = Literal["fixed", "learned"]


@dataclass(frozen=True)
class NetworkSettings(settings.TrainingSettings):
    """A U-Net, its diffusion process and its training; text_diffusion.py has the same."""

    epochs: Count = 3
    """Passes over the training images."""
    batch_size: Count = 64
    """Images per step; each has its own random t."""
    lr: Rate = 2e-3
    """Peak of Adam's learning rate. It rises over the first quarter of the steps, then falls to 0."""
    T: Annotated[int, Limits(2, 10_000)] = 1000
    """Steps of the diffusion process."""
    schedule: ScheduleName = "cosine"
    """The noise schedule. zero-terminal-snr is the linear one, shifted until x_T is pure noise."""
    prediction: Prediction = "v"
    """What the network estimates: the noise, the clean image, or v = √ᾱ·ε − √(1 − ᾱ)·x₀."""
    ema_decay: Fraction = 0.999
    """Decay of the moving average of the weights. The averaged network draws the samples. 0: none."""
    widths: tuple[Count, ...] = (48, 96)
    """Channels of the levels of the U-Net, the outermost first; each level halves the size."""
    blocks: Count = 1
    """Residual blocks per level on the way down."""
    attention: tuple[int, ...] = ()
    """Levels whose pixels attend to each other; the outermost level is 0."""
    pool: Pool = "average"
    """What halves the size between levels: the average of 2×2 pixels, or the largest of them (max)."""
    patch_size: Annotated[int, Limits(1, 4)] = 2
    """Side of the square of pixels that the network takes as one; 2 is a quarter of the work of 1."""
    dropout: Fraction = 0.0
    """Share of activations that are set to 0 in training."""
    flip: bool = False
    """Mirror half of the training images: for photographs, not for digits."""


@dataclass(frozen=True)
class Config(NetworkSettings, settings.SamplingSettings):
    """Settings of the class-conditional U-Net."""

    drop_class: Fraction = 0.1
    """How often the class is left out in training."""
    variance: VarianceKind = "fixed"
    """learned: the network also learns the variance of each step (Nichol and Dhariwal 2021). That helps
    the likelihood; sampling does not use it."""
    bound_images: Annotated[int, Limits(0, 1000)] = 50
    """Held-out images whose likelihood is bounded. Each takes T calls of the network. 0: none."""
    image_size: Count = 32
    """Side in pixels to which the pictures of folder:PATH are scaled."""
    sampler: Sampler = "dpm-solver"
    """ddpm, ddim or dpm-solver (DPM-Solver++, second order)."""
    steps: Steps = 20
    """Steps of sampling. Each is one call of the network, or two with guidance."""
    eta: Fraction = 0.0
    """How much noise DDIM adds in each step: 0 none, 1 as much as DDPM."""
    guidance: Annotated[float, Limits(0, 100)] = 1.5
    """Scale of the guidance: 0 ignores the class, 1 is the conditional model, more exaggerates it."""
    rescale: Fraction = 0.0
    """How far to bring the contrast of guided estimates back to that of the conditional estimate."""
    labels: tuple[int, ...] = ()
    """The classes to draw, by number; default: all."""
    num_samples: Annotated[int, Limits(1, 1_000_000)] = 4000
    """How many samples to draw for --samples-file and to score. No more are scored than there are
    held-out images to compare them with."""


# --- training -------------------------------------------------------------------------------------


def batch_images(
    config: NetworkSettings, data: Dataset, batch: torch.Tensor, rng: torch.Generator
) -> torch.Tensor:
    """The training images (B, C, H, W) in [-1, 1] of a batch of indices (B,); --flip mirrors half."""
    x0 = signed(data.images[batch])
    return mirrored(x0, rng) if config.flip else x0


def averaged_model(training: Training[UNet]) -> Model:
    """The model with the averaged weights of a training, to sample from."""
    # training.model is the averaged copy, not the network that trains.
    config, network = training.config, training.model.eval()
    schedule = diffusion.make_schedule(config.schedule, config.T)
    variance = vars(config).get("variance", "fixed")
    return Model(network, schedule, config.prediction, training.data.shape, variance)


def train(
    config: Config, data: Dataset, path: Path, after_epoch: Observer = no_observer
) -> tuple[Training, Model]:
    """Train, or go on with --resume. Returns the training and the model with the averaged weights.

    Under torchrun all processes draw the same batch and the same random numbers. Each process computes
    the loss of some rows of the batch, and `ddp_network` averages the gradients of all processes.
    """
    device = data.images.device
    torch.manual_seed(config.seed)
    model = build(vars(config), data.shape, classes=len(data.classes))
    network = channels_last(model.network, device)
    adam = torch.optim.Adam(network.parameters(), lr=config.lr, fused=True)
    training = Training(
        path,
        SCRIPT,
        config,
        data,
        networks={"unet": network},
        optimizers={"adam": adam},
        ema="unet",
        ema_decay=config.ema_decay,
        label="U-Net",
        shared=True,
        may_change_on_resume=(
            "sampler",
            "steps",
            "eta",
            "guidance",
            "rescale",
            "labels",
            "bound_images",
        ),
    )
    if config.resume:
        training.load()
    rng = training.rng
    no_class = network.classes  # the classes are 0 … classes − 1, and "no class" is one more
    # The rows of each batch that this process computes: all of them without torchrun.
    rows = distributed.own_rows(min(config.batch_size, len(data.images)))
    ddp_network = distributed.replicated(network)  # the network itself, without torchrun
    with training:
        for epoch in training.epochs():
            for batch in training.batches():  # it also updates the averaged weights after each step
                x0 = batch_images(config, data, batch, rng)  # (B, C, H, W)
                dropped = torch.rand(len(batch), generator=rng, device=device) < config.drop_class
                label = torch.where(dropped, no_class, data.labels[batch])  # (B,)
                x_t, t, target = noisy_pair(model, x0, rng)
                out = ddp_network(x_t[rows], t[rows] / config.T, label=label[rows])
                loss = hybrid_loss(model, out, target[rows], x0[rows], x_t[rows], t[rows])
                adam.param_groups[0]["lr"] = config.lr * one_cycle(training.progress)
                adam.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                adam.step()
                training.log(loss=distributed.mean(loss))
            after_epoch(training, epoch)
    return training, averaged_model(training)


# --- likelihood -----------------------------------------------------------------------------------


def bound_likelihood(
    model: Model, images: torch.Tensor, labels: torch.Tensor, rng: torch.Generator
) -> likelihood.Bound:
    """The bound on −log p(image | class) of images (N, C, H, W) uint8 of the classes `labels` (N,)."""
    schedule, latest = model.schedule, {}

    def output(x_t: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if (
            latest.get("x_t") is not x_t
        ):  # else the variance at the x_t whose image was just estimated
            latest["x_t"], latest["out"] = x_t, model.network(x_t, t / len(schedule), label=labels)
        return model.split(latest["out"])

    def predict_x0(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out, _ = output(x_t, t)
        return diffusion.to_x0(schedule, model.prediction, out, x_t, t).clamp(-1, 1)

    def learned(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        _, v = output(x_t, t)
        assert v is not None
        return log_variance(schedule, v, t).exp()

    variance = learned if model.variance == "learned" else "posterior"
    x0 = signed(images)
    # One portion: the labels belong to these rows.
    return likelihood.variational_bound(predict_x0, schedule, x0, rng, variance, portion=len(x0))


# --- sampling -------------------------------------------------------------------------------------


def sample_images(
    model: Model,
    estimate: Callable[[slice], Estimate],
    n: int,
    steps: int,
    seed: int,
    sampler: Sampler = "dpm-solver",
    eta: float = 0.0,
    portion: int = PORTION,
) -> torch.Tensor:
    """`n` images (n, C, H, W) in [-1, 1], drawn `portion` at a time.

    `estimate` takes the numbers of the images, a slice, and gives the function that samplers call. The
    noise of image k comes from (seed, k) alone: portions of any size give the same images.
    """
    images = []
    for first in range(0, n, portion):
        rows = slice(first, min(first + portion, n))
        noise = diffusion.image_noise(seed, first, rows.stop - first, model.shape, model.device)
        states = diffusion.reverse_process(
            sampler, model.schedule, estimate(rows), steps, eta, noise
        )
        images.append(diffusion.last(states))
    return torch.cat(images)


def classes_to_draw(config: Config, classes: int, n: int) -> torch.Tensor:
    """The class of each of `n` images (n,): ten of one class, ten of the next, a row each of the grid."""
    if wrong := [label for label in config.labels if not 0 <= label < classes]:
        raise UserError(f"--labels must lie between 0 and {classes - 1}, not {wrong[0]}.")
    chosen = torch.tensor(config.labels or tuple(range(classes)))
    return chosen[torch.arange(n) // 10 % len(chosen)]


def sample(
    model: Model, config: Config, n: int, portion: int = PORTION
) -> tuple[torch.Tensor, torch.Tensor]:
    """`n` images (n, C, H, W) uint8, and the classes (n,) that were asked for."""
    labels = classes_to_draw(config, model.network.classes, n).to(model.device)

    def estimate(rows: slice) -> Estimate:
        return model.class_estimator(labels[rows], config.guidance, config.rescale)

    images = sample_images(
        model, estimate, n, config.steps, config.seed, config.sampler, config.eta, portion
    )
    return to_uint8(images), labels


def checkpoint_path(config) -> Path:
    """The file of the network under --output-dir; `config` may be another study's."""
    return config.output_dir / MODELS / "unet.pth"


def load_model(path: Path, device: torch.device, script: str = SCRIPT, **condition: int) -> Model:
    """The model with the averaged weights of a checkpoint; the checkpoint holds its settings."""
    saved = load_checkpoint(path, script, device)
    config = saved["config"]
    config.setdefault("patch_size", config.get("fold"))  # its name in older checkpoints
    config.setdefault("pool", "average")  # which older checkpoints do not say
    with checkpoint_errors(path):
        condition = condition or {"classes": saved["dataset"]["classes"]}
        model = build(config, saved["dataset"]["shape"], **condition)
        model = replace(model, trained_on=saved["dataset"]["name"], settings=config)
    load_weights(model.network, saved["ema"], path)
    channels_last(model.network, device).eval()
    return model


def load_with_data(config, device: torch.device) -> tuple[Model, Dataset]:
    """For other studies: the model under --output-dir, and the data that it was trained on."""
    model = load_model(checkpoint_path(config), device)
    data = load_for(config, device, image_size=model.shape[-1])
    known = (model.trained_on, model.shape, model.network.classes)
    if known != (data.name, data.shape, len(data.classes)):
        raise UserError(
            f"The network draws {known[2]} classes of {known[0]} {known[1]}; the data are {data.name}, "
            f"{len(data.classes)} classes of {data.shape}: train studies.unet_diffusion on them first."
        )
    return model, data


# === the lesson ends here; below: measured, plotted, reported =====================================

TRACKED = 300  # samples that are scored after each epoch
TITLE = "U-Net diffusion: the class that is asked for"
SUMMARY = (
    "A convolutional network with skip connections learns to remove noise from images. It is told "
    "their class, so it draws the class that is asked for. Guidance trades variety for a clearer class. "
    "A second-order solver draws in twenty steps."
)


def observer(config: Config, evaluator: Evaluator | None) -> Observer:
    """After each epoch, or about 20 times, it scores a few samples, drawn in ten steps."""
    if evaluator is None:
        return no_observer
    ten_steps = replace(config, labels=(), steps=min(10, config.T))

    def after_epoch(training: Training, epoch: int) -> None:
        if epoch % max(config.epochs // 20, 1) == 0 or training.is_last(epoch):
            images, _ = sample(averaged_model(training), ten_steps, TRACKED)
            samples.track(training, evaluator, images)

    return after_epoch


def states_of(
    model: Model, config: Config, labels: torch.Tensor, guidance: float, first: int
) -> samples.States:
    """The states of the reverse process from pure noise on; the first image has the number `first`."""
    noise = diffusion.image_noise(config.seed, first, len(labels), model.shape, model.device)
    estimate = model.class_estimator(labels, guidance, config.rescale)
    states = diffusion.reverse_process(
        config.sampler, model.schedule, estimate, config.steps, config.eta, noise
    )
    return [(t, to_uint8(x)) for t, x in states]


def plot_guidance(model: Model, config: Config, classes: tuple[str, ...]) -> Figure:
    """The same noise under growing guidance: a row per scale, a column per class."""
    labels = torch.arange(len(classes), device=model.device)
    drawn = {
        f"scale {scale:g}": states_of(model, config, labels, scale, 1_000)[-1][1]
        for scale in sorted({0, 1, 2, 4, 8, config.guidance})
    }
    return figures.plot_rows(drawn, columns=classes)


def report_bound(config: Config, data: Dataset, model: Model, result: Result) -> None:
    """The bound on the likelihood of held-out images: its value, its parts, and a figure."""
    n = min(config.bound_images, len(data.test_images))
    rng = generator(config.seed, "bound", model.device)
    bound = bound_likelihood(model, data.test_images[:n], data.test_labels[:n], rng)
    bits, error = bound.bits_per_dimension, 1.96 * bound.standard_error / bound.total
    interval = bits * (1 - error), bits * (1 + error)
    more = {"unit": "bits", "better": "lower", "interval": interval}
    result.add_metric("bound per dimension", bits, n, **more)
    parts = {"": bound.total, ": prior": bound.prior, ": reconstruction": bound.reconstruction}
    for name, nats in parts.items():
        result.add_metric(f"bound{name}", nats, n, unit="nats per image", better="lower")
    caption = (
        f"The bound on −log p(image | class) of {n} held-out images: {bits:.3g} bits per dimension "
        f"(95 %: {interval[0]:.3g} to {interval[1]:.3g}). Left: its terms. The first is the "
        "reconstruction. Right: the sum of the terms up to each t. It ends at the bound."
    )
    result.add_figure("bound.png", plot_bound(bound), caption)


def plot_bound(bound: likelihood.Bound) -> Figure:
    """The terms of the bound by t, and their sum from t = 0 on, in bits per dimension."""
    figure, axes = figures.new_figure(9, 3.2, columns=2)
    terms = bound.terms / (bound.dimensions * math.log(2))
    t = torch.arange(len(terms)) + 1  # a logarithmic axis has no 0
    axes[0, 0].plot(t, terms.clamp(min=1e-6), color=figures.PALETTE[0], linewidth=1)
    axes[0, 0].set_ylabel("term (bits per dimension)")
    figures.log_scale(axes[0, 0])
    axes[0, 1].plot(t, terms.cumsum(0), color=figures.PALETTE[1])
    axes[0, 1].set(ylabel="sum up to t (bits per dimension)", ylim=(0, None))
    for axis in axes[0]:
        axis.set_xlabel("t + 1")
        figures.log_scale(axis, "x")
    return figure


def evaluate(
    config: Config,
    data: Dataset,
    training: Training,
    model: Model,
    evaluator: Evaluator | None,
    result: Result,
) -> torch.Tensor:
    """Sample, score and draw the figures. Returns the samples (n, C, H, W) uint8."""
    n = samples.samples_to_draw(config, data)
    with samples.timed_samples(result, n):
        images, labels = sample(model, config, n)
    scorer = evaluator and samples.evaluator_for(config, data, n, evaluator)
    samples.report_samples(result, images, scorer, data, training, rows=data.classes[:10])
    if scorer is not None:
        read = accuracy(scorer.classifier, images[:1000], labels[:1000])
        real = accuracy(scorer.classifier, data.test_images[:1000], data.test_labels[:1000])
        result.add_share("read as the class asked for", read, min(n, 1000), better="higher")
        result.add_share(
            "real images read as their own class", real, min(len(data.test_images), 1000)
        )
    result.add_metric("seconds of training", training.seconds_used, training.steps_done, unit="s")
    samples.add_quality(result, training, evaluator)
    if config.bound_images > 0:
        report_bound(config, data, model, result)
    caption = (
        "A class per column, the same noise in each column. A scale of 0 ignores the class, 1 is the "
        "conditional model. A larger scale goes further towards the class and makes the images plainer. "
        f"The samples above have {config.guidance:g}."
    )
    result.add_figure("guidance.png", plot_guidance(model, config, data.classes[:10]), caption)
    labels = torch.arange(8, device=model.device) % model.network.classes
    samples.add_trajectory(result, states_of(model, config, labels, config.guidance, 2_000))
    caption = "The loss along the training."
    result.add_figure("loss.png", samples.plot_loss(training, "MSE"), caption)
    return images


def lessons(result: Result) -> list[str]:
    """What the figures teach, where they were measured."""
    told = []
    asked, own = "read as the class asked for", "real images read as their own class"
    if measured := result.measured(asked, own, "Fréchet distance", "coverage"):
        read, real, distance, coverage = measured
        told.append(
            f"{read:.1%} of the samples are read as the class that was asked for; of real images "
            f"{real:.1%} are read as their own. The samples' distance from the data is {distance:.0f}; "
            f"they cover {coverage:.0%} of it."
        )
    if measured := result.measured("bound per dimension", "bound", "bound: reconstruction"):
        bits, nats, reconstruction = measured
        told.append(
            f"The likelihood of held-out images is bounded by {bits:.3g} bits per dimension, of which "
            f"the reconstruction is {reconstruction / nats:.0%}."
        )
    return told


def run(config: Config) -> Result | None:
    """Train or load, sample, measure. The driver and the tests call it.

    Under torchrun one process returns the result, the others None.
    """
    device = distributed.join(prepare(config.seed, config.device))
    config = config.if_quick(widths=(16, 32), epochs=1, num_samples=300, steps=5, bound_images=4)
    path = config.checkpoint or checkpoint_path(config)
    if config.sample_only:
        images, _ = sample(load_model(path, device), config, config.num_samples)
        return samples.sampled_only(SCRIPT, TITLE, PICTURES, config, device, images)
    if config.labels:
        raise UserError("--labels is for --sample-only: a training is scored on all classes.")
    diffusion.trailing_steps(config.T, config.steps)  # refused now, not after the training
    data = load_for(config, device)
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    if distributed.writes():
        samples.show_training_images(result, data)
    evaluator = samples.evaluator_for(config, data, TRACKED) if distributed.writes() else None
    training, model = train(config, data, path, observer(config, evaluator))
    distributed.leave()
    if not distributed.writes():
        return None
    images = evaluate(config, data, training, model, evaluator, result)
    samples.write_samples(config.samples_file, images)
    return result.save(*lessons(result))


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
