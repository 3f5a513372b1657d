"""Denoising by learning: a convolutional autoencoder for digits, a residual network for photographs.

Both networks see noisy pictures and learn to return the clean ones (Vincent et al. 2008). The autoencoder
draws the whole picture anew from a coarse middle layer. This suits digits, which are all of one kind. The
residual network estimates the noise and subtracts it (DnCNN, Zhang et al. 2017). What it does not
understand stays as it was. This suits photographs of any content, size and strength of noise.

    python -m studies.denoising_autoencoder                   # digits, and a comparison on photographs
    python -m studies.denoising_autoencoder --dataset mnist
    python -m studies.denoising_autoencoder denoise --image noisy.jpg --output clean.png
    python -m studies.denoising_autoencoder denoise --export denoiser.onnx
    python -m studies.denoising_autoencoder compare           # six photographs, three σ, no training
    python -m studies.denoising_autoencoder photographs       # trains the residual network: 6 hours

`denoise` and `compare` need no training: the weights of `photographs` come with the project. The residual
network is in imagelab/techniques/denoiser.py, the classical methods are in restoration.py beside it.

What to look at: `digits.png`, strokes that are drawn anew; `photographs_25.png`, edges that stay while
flat parts become smooth; `noises.png`, which method suits which noise.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from diffusion_demo import NOISES, Noise
from imagelab.data.datasets import EMBEDDED, Dataset, load_for, mean_grey, random_subset, unit
from imagelab.data.photographs import HELD_OUT, PATCH, grey, photograph, random_patches
from imagelab.data.pictures import open_picture, picture_format, write_picture
from imagelab.data.quality import mean_psnr, mean_ssim
from imagelab.report import figures, samples
from imagelab.report.restored import middle, plot_restored
from imagelab.report.results import Result, start_result
from imagelab.setup import runtime, settings
from imagelab.setup.runtime import UserError, autocast, channels_last, generator, in_eval_mode
from imagelab.setup.settings import Count, ExportSettings, Fraction, Limits, Rate
from imagelab.techniques import denoiser, restoration
from imagelab.techniques.denoiser import ResidualDenoiser, restore, trained_denoiser, turned
from imagelab.techniques.export import export_network
from imagelab.techniques.restoration import WAYS, Restore, add_noise, learned_ways
from imagelab.training import checkpoints
from imagelab.training.loop import Observer, Training, no_observer, one_cycle, warmup_and_decay

SCRIPT = denoiser.SCRIPT
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"

# --- small images: the autoencoder ----------------------------------------------------------------


class Autoencoder(nn.Module):
    """Noisy images (B, C, H, W) in [0, 1] to clean ones, drawn anew; H and W are divisible by 4."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),  # (B, 32, 14, 14)
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),  #       (B, 64, 7, 7)
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2),
            nn.Conv2d(64, 32, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2),
            nn.Conv2d(32, channels, 3, padding=1), nn.Sigmoid(),  #               (B, C, 28, 28)
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with autocast(x.device):
            return self.layers(x.contiguous(memory_format=torch.channels_last)).float()


def build(config: Config, data: Dataset) -> Autoencoder:
    """The autoencoder with its first weights, the same for the same seed."""
    torch.manual_seed(config.seed)
    model = channels_last(Autoencoder(data.shape[0]), data.images.device)
    *hidden, last = (layer for layer in model.layers if isinstance(layer, nn.Conv2d))
    for layer in hidden:
        nn.init.kaiming_normal_(layer.weight)
    # The last layer starts from the mean grey of the images. From 0.5 everywhere the first steps would
    # drive all pixels to black, where the sigmoid is so flat that no gradient brings them back.
    nn.init.constant_(last.get_parameter("bias"), mean_grey(data.images).logit().item())
    return model


def denoising_loss(
    model: nn.Module, clean: torch.Tensor, sigma: float, rng: torch.Generator
) -> torch.Tensor:
    """The mean squared error of `model` on images `clean` (B, C, H, W) with fresh noise: a scalar.

    E‖f(x + σ·ε) − x‖² per pixel, ε ~ N(0, I), the noisy images clipped to [0, 1] (Vincent et al. 2008).
    """
    return F.mse_loss(model(add_noise(clean, sigma, rng)), clean)


@dataclass(frozen=True)
class Config(ExportSettings, settings.TrainingSettings):
    """Settings of the autoencoder for small images."""

    sigma: Fraction = 0.5
    """Standard deviation of the noise, for pixels in [0, 1]; the sum is clipped to [0, 1]."""
    epochs: Count | None = None
    """Passes over the training images, each with fresh noise; default: 5, on the embedded digits 3."""
    batch_size: Count = 128
    """Images per step."""
    lr: Rate = 4e-3
    """Peak of Adam's learning rate. It rises over the first quarter of the steps, then falls to 0."""


def train(
    config: Config, data: Dataset, path: Path, after_epoch: Observer = no_observer
) -> Training:
    """Train the autoencoder, or go on with --resume. `after_epoch` is called after each epoch."""
    model = build(config, data)
    adam = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    training = Training(
        path, SCRIPT, config, data, networks={"autoencoder": model}, optimizers={"adam": adam},
        label="autoencoder",
    )  # fmt: skip
    if config.resume:
        training.load()
    with training:
        for epoch in training.epochs():
            for batch in training.batches():
                x = unit(data.images[batch])  # (B, C, H, W) in [0, 1]
                loss = denoising_loss(model, x, config.sigma, training.rng)
                adam.param_groups[0]["lr"] = config.lr * one_cycle(training.progress)
                adam.zero_grad()
                loss.backward()
                adam.step()
                training.log(loss=loss)
            after_epoch(training, epoch)
    return training


@torch.no_grad()
def denoised(model: nn.Module, noisy: torch.Tensor) -> torch.Tensor:
    """Noisy images (N, C, H, W) in [0, 1] to clean ones, 1,000 at a time."""
    with in_eval_mode(model):
        return torch.cat([model(part) for part in noisy.split(1000)])


def checkpoint_path(config: Config) -> Path:
    return config.checkpoint or config.output_dir / MODELS / "autoencoder.pth"


def load_autoencoder(config: Config, data: Dataset) -> Autoencoder:
    """The autoencoder of the checkpoint. UserError where it was trained for other images or another σ."""
    path, device = checkpoint_path(config), data.images.device
    saved = checkpoints.load_checkpoint(path, SCRIPT, device)
    checkpoints.check_trained_for(saved, path, data, config, "sigma")
    model = channels_last(Autoencoder(data.shape[0]), device)
    checkpoints.load_weights(model, saved["model"].get("autoencoder"), path)
    return model


# --- photographs: the residual network ------------------------------------------------------------


def noisy_patches(
    x: torch.Tensor, max_sigma: float, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clean and noisy patches (B, 3, H, W) and their σ (B,), from colour patches `x` in [0, 1].

    The few photographs hold few colours. So the channels of each patch are shuffled, half of the
    patches become negatives, and colours are made weaker, or up to 1.2 times as strong. Each channel of
    half of them is raised to a power of its own. Half of all patches become grey: three equal channels
    with the same noise in each. A quarter get 1.5 times the noise and are clipped to [0, 1], like the
    noise in a file. What is returned as σ is the root mean square of what is left of the noise.
    """
    draws = torch.rand(7, len(x), 1, 1, 1, generator=rng, device=x.device)
    grey, clipped, tinted = draws[1] < 0.5, draws[2] < 0.25, draws[6] < 0.5
    sigma = max_sigma * draws[0].square() * torch.where(clipped, 1.5, 1.0)
    eps = torch.randn(x.shape, generator=rng, device=x.device)
    order, powers = torch.rand(2, len(x), 3, 1, 1, generator=rng, device=x.device)
    x = x.gather(1, order.argsort(dim=1).expand_as(x))
    x = torch.where(draws[4] < 0.5, x, 1 - x)
    one, other, share = x[:, :1], x[:, 1:2], draws[3]  # a grey is a mix of two channels
    luma = share * one + (1 - share) * other
    colour = (luma + 1.2 * draws[5] * (x - luma)).clamp(0, 1)
    colour = torch.where(tinted, colour.clamp(min=1e-3) ** (1.2 * powers - 0.6).exp(), colour)
    x = torch.where(grey, luma, colour)
    noisy = x + sigma * torch.where(grey, eps[:, :1], eps)
    noisy = torch.where(clipped, noisy.clamp(0, 1), noisy)
    return x, noisy, (noisy - x).square().mean((1, 2, 3)).sqrt()


def correlated(x: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """x + σ·ε, where ε is alike in neighbouring pixels: white noise blurred by 1 pixel, of variance 1.

    A camera's file holds such noise: two thirds of its colours are interpolated from neighbours.
    """
    import cv2

    blurred = cv2.GaussianBlur(rng.normal(size=x.shape), (0, 0), 1)
    return x + sigma * blurred / blurred.std()


KINDS = {**NOISES, "correlated": Noise("correlated", correlated, lambda i: 0.1 * i, "σ = {:.2f}")}
STRENGTHS = {
    "gaussian": 0.1, "salt-and-pepper": 0.2, "poisson": 100, "speckle": 0.2, "jpeg": 10,
    "correlated": 0.1,
}  # fmt: skip


def weighted_error(made: torch.Tensor, clean: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The mean squared error of each picture (B, 3, H, W), by (σ + 1/255)^1.2; its mean: a scalar.

    The squared error that is left grows about like σ^1.2. So each strength of noise counts about alike.
    """
    mse = (made - clean).square().mean((1, 2, 3))
    return (mse / (sigma + 1 / 255) ** 1.2).mean()


def as_matrix(weights: torch.Tensor) -> torch.Tensor:
    """Weights (M, N, H, W) as a matrix (M, H·W·N); in the same memory where they are `channels_last`."""
    return weights.permute(0, 2, 3, 1).flatten(1)


@dataclass(frozen=True)
class Photographs(ExportSettings, settings.ResumableSettings):
    """Train the residual network on photographs, and compare it with classical methods on others."""

    patches: Count = 40_000
    """How many patches of 64×64 pixels to train on."""
    epochs: Count = 25
    """Passes over the patches."""
    batch_size: Count = 64
    """Patches per step, each with its own σ."""
    lr: Rate = 0.005
    """Peak of Muon's learning rate. It rises over 5 % of the steps, and falls to 0 from 30 % on."""
    adam_lr: Rate = 1e-3
    """The same of Adam, for the first and the last layer and all biases."""
    max_sigma: Fraction = 0.4
    """The largest σ. Each σ is this times the square of a uniform number: most are small. A quarter of
    the patches get 1.5 times as much and are clipped."""
    widths: tuple[Count, ...] = (48, 64, 64, 64)
    """Channels of the network at the size of the picture by --fold, at half of that, and so on."""
    blocks: tuple[Count, ...] = (2, 2, 2, 1)
    """Residual blocks at each of these sizes, on the way down and again on the way up. The last number is
    that of the middle."""
    fold: Annotated[int, Limits(1, 8)] = 1
    """Squares with this many pixels a side become one place of the network: coarser and faster."""
    ema_decay: Fraction = 0.999
    """Decay of the moving average of the weights. The average is what is kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.widths) != len(self.blocks):
            raise UserError(
                "--widths and --blocks must have the same length: a number for each size."
            )
        halved = len(self.widths) - 1
        if PATCH % (self.fold << halved):
            raise UserError(
                f"--widths, --fold: {PATCH} pixels cannot be divided by {self.fold} and then "
                f"halved {halved} times."
            )


def train_photographs(
    config: Photographs, data: Dataset, path: Path, after_epoch: Observer = no_observer
) -> Training[ResidualDenoiser]:
    """Train the residual network on patches, or go on with --resume. Its weights are averaged.

    Muon (Jordan 2024) turns the momentum of each weight matrix into the nearest matrix whose singular
    values are all about 1. So a step has about the same size in each direction, and what is rare is
    learnt as well. `matrices` are views of the weights: what Muon changes there changes the network.
    """
    torch.manual_seed(config.seed)
    model = ResidualDenoiser(config.widths, config.blocks, config.fold)
    channels_last(model, data.images.device)
    ends = {*model.first.parameters(), *model.last.parameters()}
    inner = [p for p in model.parameters() if p.dim() == 4 and p not in ends]
    matrices = [nn.Parameter(as_matrix(weights.detach())) for weights in inner]
    muon = torch.optim.Muon(matrices, lr=config.lr, weight_decay=0)
    rest = [p for p in model.parameters() if p.dim() == 1 or p in ends]
    adam = torch.optim.Adam(rest, lr=config.adam_lr, fused=True)
    training = Training(
        path, SCRIPT, config, data, networks={"denoiser": model},
        optimizers={"muon": muon, "adam": adam},
        ema="denoiser", ema_decay=config.ema_decay, label="denoiser",
    )  # fmt: skip
    if config.resume:
        training.load()
    with training:
        for epoch in training.epochs():
            for batch in training.batches():
                way = training.steps_done % 8  # each step turns or mirrors its patches another way
                x = turned(unit(data.images[batch]), way)  # (B, 3, 64, 64) in [0, 1]
                clean, noisy, sigma = noisy_patches(x, config.max_sigma, training.rng)
                loss = weighted_error(model(noisy, sigma), clean, sigma)
                rate = warmup_and_decay(training.progress, 0.05, 0.3)
                muon.param_groups[0]["lr"] = config.lr * rate
                adam.param_groups[0]["lr"] = config.adam_lr * rate
                model.zero_grad()
                loss.backward()
                # The norm is about 0.02, but for a rare batch thousands: that would fill the momentum.
                norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                for matrix, weights in zip(matrices, inner, strict=True):
                    if weights.grad is not None:
                        matrix.grad = as_matrix(weights.grad)
                muon.step()
                adam.step()
                training.log(loss=loss, norm=norm)
            after_epoch(training, epoch)
    return training


def save_weights(training: Training, path: Path) -> None:
    """The averaged weights alone, for `trained_denoiser`: small enough to come with the project.

    They are stored in 16 bits. This halves the file and changes the result by less than 0.01 dB.
    """
    config = settings.settings_dict(training.config)
    checkpoints.save_checkpoint(path, {
        "script": SCRIPT,
        "config": {name: config[name] for name in ("widths", "blocks", "fold", "max_sigma", "seed")},
        "dataset": training.data.describe(),
        "epoch": training.epoch,
        "step": training.step,
        "ema": {name: values.half() for name, values in training.model.state_dict().items()},
        "model": {}, "optimizer": {}, "rng": {}, "history": {}, "extra": {},
    })  # fmt: skip


def export_denoiser(path: Path | str | None, model: ResidualDenoiser) -> None:
    """The residual network as a file: noisy pictures (N, 3, H, W) and σ (N,) to clean ones."""
    inputs = {"noisy": torch.rand(2, 3, 64, 96), "sigma": torch.rand(2)}
    export_network(path, model, inputs, "clean", any_size=True)


@dataclass(frozen=True)
class Compare(settings.Settings):
    """Compare the trained denoiser with classical methods, on six photographs and six kinds of noise.

    BM3D takes part where the package bm3d is installed (for non-commercial use only). It takes most of
    the time.
    """

    sigmas: tuple[Annotated[int, Limits(1, 255)], ...] = (25, 15, 50)
    """σ of the Gaussian noise, of 255: a table and a picture for each."""
    side: Annotated[int, Limits(32, 300)] | None = None
    """Take the middle squares of so many pixels; default: the whole photographs."""
    grey: bool = False
    """Turn all photographs grey first."""
    ensemble: bool = False
    """Also take the mean of the learned method's results for eight turned and mirrored copies."""
    noises: bool = True
    """Also compare six kinds of noise, on the middle squares of --side or of 256 pixels."""


# --- a picture of your own ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Denoise(ExportSettings, settings.Common):
    """Remove the noise from a picture of your own."""

    image: Path | None = None
    """The noisy picture, of any format, size and bit depth; 16 bits are read as 8."""
    output: Path | None = None
    """Where to write the result; the suffix (.png, .jpg, .webp, ...) decides the format."""
    sigma: Fraction | None = None
    """Standard deviation of the noise, for pixels in [0, 1]; default: as measured in the picture."""
    ensemble: bool = False
    """Write the mean of the results for eight turned and mirrored copies: a little better, 8 times as
    slow."""
    weights: Path = denoiser.WEIGHTS
    """A checkpoint of `photographs`; default: the one that comes with the project."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = (self.image is not None) + (self.output is not None)
        if given == 1 or (given == 0 and self.export is None):
            raise UserError("Give both --image and --output, or --export alone.")


def run_denoise(config: Denoise) -> None:
    """Read a picture, restore it tile by tile, write it."""
    device = runtime.prepare(0, config.device)
    if config.image is None or config.output is None:  # both are None: see __post_init__
        export_denoiser(config.export, trained_denoiser(device, config.weights))
        return
    picture_format(config.output, config.image)  # refuses a wrong suffix before the work
    picture = np.asarray(open_picture(config.image))
    model = trained_denoiser(device, config.weights)
    export_denoiser(config.export, model)
    sigma = restoration.estimated_sigma(picture) if config.sigma is None else config.sigma
    print(f"{picture.shape[1]}×{picture.shape[0]} pixels, "
          f"σ = {sigma:.3f} ({'measured' if config.sigma is None else 'given'}).")  # fmt: skip
    restored = restore(model, picture, sigma, progress=True, ensemble=config.ensemble)
    write_picture(config.output, restored)
    print(f"Written: {config.output}")


# === the lesson ends here; below: measured, plotted, reported =====================================

TITLE = "Denoising autoencoder: learning what a clean picture is"
SUMMARY = (
    "One network learns from noisy and clean digits to draw the whole digit anew. Another one only "
    "removes noise. It is compared with classical methods, on photographs that it has never seen."
)


def evaluate_digits(
    config: Config, data: Dataset, model: nn.Module, result: Result
) -> torch.Tensor:
    """The table and the picture of held-out images: noisy, filtered twice, and autoencoded.

    Returns the autoencoder's images, uint8 (N, C, H, W).
    """
    rng = generator(config.seed, "held-out noise", data.images.device)
    clean = unit(data.test_images)
    noisy = add_noise(clean, config.sigma, rng)
    some = unit(data.images[random_subset(len(data.images), 1000, "best blur")])
    restored = restoration.by_filters(noisy, config.sigma, some, rng)
    restored["autoencoder"] = denoised(model, noisy)
    rows = [[name, mean_psnr(x, clean), mean_ssim(x, clean)] for name, x in restored.items()]
    n = len(clean)
    result.add_table(f"{data.name}: {n:,} held-out images, σ = {config.sigma}",
                     ["", "PSNR (dB)", "SSIM"], rows)  # fmt: skip
    result.add_metric("autoencoder: PSNR", rows[-1][1], n, unit="dB", better="higher")
    result.add_metric("autoencoder: SSIM", rows[-1][2], n, better="higher")
    images = {k: (x * 255).round().byte() for k, x in {"clean": clean, **restored}.items()}
    shown = {"clean": images["clean"][:10]}
    shown |= {f"{name}: {quality:.1f} dB": images[name][:10] for name, quality, _ in rows}
    figure = figures.plot_rows(shown)
    caption = (
        f"Held-out images, the same with noise, and restored. PSNR is the mean of all {n:,}. Both "
        "filters are tuned on training images."
    )
    result.add_figure("digits.png", figure, caption)
    return images["autoencoder"]


def report_photographs(
    clean: dict[str, np.ndarray], sigma: int, methods: dict[str, Restore], seed: int, result: Result
) -> None:
    """A table, figures and a picture of every method at Gaussian noise of `sigma` (of 255).

    No network was trained on any of the photographs `clean`.
    """
    rng = np.random.default_rng(seed)
    found = restoration.compare_photographs(clean, sigma / 255, methods, rng)
    columns, rows = restoration.comparison_table(found)
    caption = f"Photographs, σ = {sigma} of 255: PSNR (dB) of each, and means"
    result.add_table(caption, columns, rows)
    means = {row[0]: row[1 + len(clean)] for row in rows}
    best = max(restoration.CLASSICAL, key=means.__getitem__)
    found_by = {f"photographs, σ = {sigma}: learned": means["learned"]}
    for first, second in [("learned", name) for name in (best, "non-local means", "BM3D")] + [
        (way, "learned") for way in WAYS
    ]:
        if first in means and second in means:
            found_by[f"σ = {sigma}: {first} less {second}"] = means[first] - means[second]
    for name, value in found_by.items():
        result.add_metric(name, value, len(clean), unit="dB", better="higher")
    caption = (
        f"The middle of each, σ = {sigma} of 255. PSNR is that of the whole picture. The highest of each "
        "row is framed."
    )
    side = min(160, *(min(picture.shape[:2]) for picture in clean.values()))
    shown = {name: {k: v for k, v in by.items() if k not in WAYS} for name, by in found.items()}
    result.add_figure(f"photographs_{sigma}.png", plot_restored(shown, clean, side), caption)


def report_noises(
    clean: dict[str, np.ndarray], methods: dict[str, Restore], seed: int, result: Result
) -> None:
    """Which method suits which noise: a table and a picture."""
    names, pictures = list(clean), list(clean.values())
    noises = {
        f"{KINDS[kind].name}, {KINDS[kind].label.format(i)}": lambda x, rng, kind=kind, i=i: KINDS[
            kind
        ].add(x, i, rng)
        for kind, i in STRENGTHS.items()
    }
    found = restoration.compare_noises(pictures, noises, methods, np.random.default_rng(seed))
    side = len(pictures[-1])
    where = f"the middle {side}×{side} pixels of {', '.join(names)}"
    table = [[noise, *(one.psnr for one in by.values())] for noise, by in found.items()]
    columns = ["noise", *next(iter(found.values()))]
    result.add_table(f"Kinds of noise, PSNR (dB): means over {where}", columns, table)
    for kind, by in zip(STRENGTHS, found.values(), strict=True):
        lead = by["learned"].psnr - max(by[name].psnr for name in restoration.CLASSICAL)
        result.add_metric(f"{kind} noise: learned less best classical", lead, len(names), unit="dB")
    figure = plot_restored(found, dict.fromkeys(found, pictures[-1]), side // 2)
    caption = (
        f"Each kind of noise under each method, on {where} (shown: {names[-1]}). PSNR is the mean; the "
        "highest of each row is framed. The learned method was trained on Gaussian noise only, "
        "independent from pixel to pixel."
    )
    result.add_figure("noises.png", figure, caption)


def middles(
    names: tuple[str, ...], side: int | None, in_grey: bool = False
) -> dict[str, np.ndarray]:
    """The middle `side` × `side` pixels of photographs, or all of them, in [0, 1]."""
    pictures = {name: photograph(name) for name in names}
    pictures = {name: (grey(x) if in_grey else x) / 255 for name, x in pictures.items()}
    return {name: middle(x, side) if side else x for name, x in pictures.items()}


def lessons(result: Result) -> list[str]:
    """What the figures teach, as far as they were measured."""
    taught = []
    if psnr := result.measured("autoencoder: PSNR"):
        taught.append(
            f"The autoencoder reaches {psnr[0]:.1f} dB. It has learnt what such images look like, and a "
            "filter has not."
        )
    if psnr := result.measured("photographs, σ = 25: learned"):
        taught.append(
            "No network has seen all photographs. One that only removes noise reaches "
            f"{psnr[0]:.1f} dB on new ones at σ = 25 of 255."
        )
    names = (
        f"{kind} noise: learned less best classical" for kind in ("gaussian", "salt-and-pepper")
    )
    if leads := result.measured(*names):
        taught.append(
            "Compared with the best classical method, it reaches {:+.1f} dB on Gaussian noise, which it "
            "was trained on, and {:+.1f} dB where a fifth of the values is lost. A method must suit the "
            "noise.".format(*leads)
        )
    return taught


def run(config: Config) -> Result:
    """Train the autoencoder and measure it; compare the trained denoiser on photographs."""
    device = runtime.prepare(config.seed, config.device)
    config = config.if_quick(epochs=1)
    data = load_for(config, device)
    config = replace(config, epochs=config.epochs or (3 if data.name == EMBEDDED else 5))
    if any(side % 4 for side in data.shape[1:]):
        raise UserError(f"The images' sides must be divisible by 4; they are {data.shape[1:]}.")
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    if config.sample_only:
        model = load_autoencoder(config, data)
    else:
        training = train(config, data, checkpoint_path(config))
        model = training.networks["autoencoder"]
        loss = samples.plot_loss(training, "MSE")
        result.add_figure("loss.png", loss, "The autoencoder's loss.")
    images = evaluate_digits(config, data, model, result)
    samples.write_samples(config.samples_file, images)
    export_network(config.export, model, {"noisy": torch.rand(2, *data.shape)}, "clean")
    names = HELD_OUT[3:4] if config.quick else HELD_OUT[3:]  # never used for choices
    methods = restoration.methods(device, with_bm3d=True)
    report_photographs(middles(names, None), 25, methods, config.seed, result)
    report_noises(middles(names, 96 if config.quick else 256), methods, config.seed, result)
    return result.save(*lessons(result))


def run_photographs(config: Photographs) -> Result:
    """Train the residual network, write its weights into a small file, and compare it."""
    device = runtime.prepare(config.seed, config.device)
    config = config.if_quick(patches=200, epochs=2)
    data = random_patches(config.patches, config.seed).to(device)
    result = start_result(SCRIPT, "Denoising photographs", SUMMARY, config,
                          f"{PICTURES}/photographs", device, data)  # fmt: skip
    folder = config.output_dir / MODELS
    training = train_photographs(config, data, folder / "photographs.pth")
    save_weights(training, folder / denoiser.WEIGHTS.name)
    loss = samples.plot_loss(training, "mean error")
    result.add_figure("loss.png", loss, "The residual network's loss.")
    model = training.model.eval()
    methods = restoration.CLASSICAL | {"learned": partial(restore, model)}
    methods |= learned_ways(model, ensemble=False)
    names = HELD_OUT[1:2] if config.quick else HELD_OUT
    for sigma in (25,) if config.quick else (25, 15, 50):
        report_photographs(middles(names, None), sigma, methods, config.seed, result)
    export_denoiser(config.export, model)
    return result.save()


def run_compare(config: Compare) -> Result:
    """Compare the trained denoiser with classical methods."""
    device = runtime.prepare(config.seed, config.device)
    config = config.if_quick(side=96, sigmas=(25,))
    result = start_result(
        SCRIPT, "Denoisers compared", SUMMARY, config, f"{PICTURES}/compare", device
    )
    methods = restoration.methods(device, with_bm3d=True)
    ways = learned_ways(trained_denoiser(device), config.ensemble)
    photographs = middles(HELD_OUT, config.side, config.grey)
    for sigma in config.sigmas:
        report_photographs(photographs, sigma, methods | ways, config.seed, result)
    if config.noises:
        squares = middles(HELD_OUT, config.side or 256, config.grey)
        report_noises(squares, methods, config.seed, result)
    return result.save(*lessons(result))


def main() -> None:
    commands = {
        "photographs": (Photographs, run_photographs),
        "compare": (Compare, run_compare),
        "denoise": (Denoise, run_denoise),
    }
    command_line(Config, run, __doc__, commands)


if __name__ == "__main__":
    main()
