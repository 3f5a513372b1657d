"""Denoising by learning: a convolutional autoencoder for digits, a residual network for photographs.

Both are shown noisy pictures and asked for the clean ones (Vincent et al. 2008). The autoencoder draws
the whole picture anew through a narrow middle, which suits digits, all of one kind. The residual
network estimates the noise and takes it away (Zhang et al. 2017, DnCNN), so that what it does not
understand stays as it was: it suits photographs of any content, size and noise.

    python -m studies.denoising_autoencoder                   # digits, and the comparison on photographs
    python -m studies.denoising_autoencoder --dataset mnist
    python -m studies.denoising_autoencoder denoise --image noisy.jpg --output clean.png
    python -m studies.denoising_autoencoder denoise --export denoiser.onnx
    python -m studies.denoising_autoencoder photographs       # trains the residual network: an hour

`denoise` works at once, with weights that come with the project; `photographs` makes them. In
imagelab/techniques/ are the residual network and its weights (denoiser.py, denoiser.pth) and the
classical methods beside it (restoration.py).

What to look at: `digits.png`, strokes redrawn rather than cleaned; `photographs.png`, edges that stay
while flat parts grow smooth; in the table, how far learning is ahead of the best classical method.
"""

from __future__ import annotations

from imagelab.setup.command import command_line

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from imagelab.data.datasets import EMBEDDED, Dataset, load_for, random_subset, unit
from imagelab.data.photographs import HELD_OUT, photograph, random_patches
from imagelab.data.pictures import open_picture, picture_format, write_picture
from imagelab.data.quality import mean_psnr, mean_ssim
from imagelab.report import figures
from imagelab.report.results import Result, start_result
from imagelab.report.samples import draw_loss, write_samples
from imagelab.setup.runtime import UserError, autocast, generator, in_eval_mode, prepare
from imagelab.setup.settings import (
    Common,
    Count,
    ExportSettings,
    Limits,
    Rate,
    ResumableSettings,
    TrainingSettings,
    plain,
)
from imagelab.techniques.denoiser import SCRIPT, WEIGHTS, Denoiser, restore, trained_denoiser
from imagelab.techniques.export import export_network
from imagelab.techniques.restoration import (
    CLASSICAL,
    add_noise,
    by_filters,
    compare,
    estimated_sigma,
    methods,
)
from imagelab.training.checkpoints import (
    check_trained_for,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from imagelab.training.loop import Training, one_cycle

PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"
TITLE = "Denoising autoencoder: learning what a clean picture is"
SUMMARY = (
    "A network that has seen many pairs of noisy and clean images redraws what the noise has hidden; "
    "another, which only takes noise away, does so for photographs that it has never seen, and is "
    "measured beside the classical methods."
)
LESSONS = (
    "Redrawing noisy images reaches {autoencoder: PSNR|.1f} dB: the network has learnt what such "
    "images look like, a filter has not.",
    "On photographs, of which nobody knows all, a network that only takes noise away reaches "
    "{photographs, σ = 25: learned|.1f} dB at σ = 25 of 255.",
)
Sigma = Annotated[float, Limits(0, 1)]


@dataclass(frozen=True)
class Config(ExportSettings, TrainingSettings):
    """Settings of the autoencoder for small images."""

    sigma: Sigma = 0.5
    """Standard deviation of the noise, for pixels in [0, 1]; the sum is clipped to [0, 1]."""
    epochs: Count | None = None
    """Passes over the training images, each with fresh noise; default: 5, on the embedded digits 3."""
    batch_size: Count = 128
    """Images per step."""
    lr: Rate = 4e-3
    """Peak of Adam's learning rate: it climbs over the first quarter of the steps, then falls to 0."""


@dataclass(frozen=True)
class Photographs(ExportSettings, ResumableSettings):
    """Train the residual network on scikit-image's photographs, and compare it on others."""

    patches: Count = 32_000
    """How many patches of 64×64 pixels to train on."""
    epochs: Count = 9
    """Passes over the patches."""
    batch_size: Count = 16
    """Patches per step, each with its own σ."""
    lr: Rate = 2e-3
    """Peak of Adam's learning rate: it climbs over the first quarter of the steps, then falls to 0."""
    max_sigma: Sigma = 0.4
    """σ is drawn as this times a squared uniform number: small ones more often."""
    width: Count = 48
    """Channels of the network at half the size; twice as many at a quarter."""
    blocks: Count = 2
    """Residual blocks in each of its three parts."""
    ema_decay: Annotated[float, Limits(0, 1)] = 0.999
    """Decay of the moving average of the weights, which is what is kept."""


@dataclass(frozen=True, kw_only=True)
class Denoise(ExportSettings, Common):
    """Take the noise out of a picture of your own."""

    image: Path | None = None
    """The noisy picture: any format, size and bit depth; 16 bits are read as 8."""
    output: Path | None = None
    """Where to write the result; the suffix (.png, .jpg, .webp, ...) decides the format."""
    sigma: Sigma | None = None
    """Standard deviation of the noise, for pixels in [0, 1]; measured in the picture if not given."""
    weights: Path = WEIGHTS
    """A checkpoint of `photographs`; default: the one that comes with the project."""

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = (self.image is not None) + (self.output is not None)
        if asked == 1 or (asked == 0 and self.export is None):
            raise UserError("Give both --image and --output, or --export alone.")


# --- small images: the autoencoder ----------------------------------------------------------------


class Autoencoder(nn.Module):
    """Images (B, C, H, W) in [0, 1], H and W divisible by 4, to the same: drawn anew."""

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


def train(config: Config, data: Dataset, path: Path) -> Training:
    """Train the autoencoder, or go on with --resume."""
    torch.manual_seed(config.seed)
    model = Autoencoder(data.shape[0]).to(data.images.device, memory_format=torch.channels_last)
    *hidden, last = (layer for layer in model.layers if isinstance(layer, nn.Conv2d))
    for layer in hidden:
        nn.init.kaiming_normal_(layer.weight)
    # From 0.5 everywhere the first steps drive all pixels to black, where the sigmoid is so flat that
    # no gradient brings them back: start from the mean grey.
    nn.init.constant_(last.bias, unit(data.images).mean().logit().item())
    adam = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    run = Training(path, SCRIPT, config, data, {"autoencoder": model}, {"adam": adam},
                   label="autoencoder")  # fmt: skip
    with run:
        for _ in run.epochs():
            for batch in run.batches():
                adam.param_groups[0]["lr"] = config.lr * one_cycle(run.progress)
                x = unit(data.images[batch])
                loss = F.mse_loss(model(add_noise(x, config.sigma, run.rng)), x)
                adam.zero_grad()
                loss.backward()
                adam.step()
                run.log(loss=loss)
    return run


@torch.no_grad()
def denoised(model: nn.Module, noisy: torch.Tensor) -> torch.Tensor:
    """Images (N, C, H, W) in [0, 1] through the network, in portions."""
    with in_eval_mode(model):
        return torch.cat([model(part) for part in noisy.split(1000)])


def evaluate_digits(
    config: Config, data: Dataset, model: nn.Module, result: Result
) -> torch.Tensor:
    """The table and the picture of held-out images: noisy, by two filters, by learning.

    Returns those that the autoencoder restored, uint8.
    """
    rng = generator(config.seed, "held-out noise", data.images.device)
    clean = unit(data.test_images)
    noisy = add_noise(clean, config.sigma, rng)
    training = unit(data.images[random_subset(len(data.images), 1000, "best blur")])
    ways = by_filters(noisy, config.sigma, training, rng)
    ways["autoencoder"] = denoised(model, noisy)
    rows = [[name, mean_psnr(x, clean), mean_ssim(x, clean)] for name, x in ways.items()]
    n = len(clean)
    result.add_table(f"{data.name}: {n:,} held-out images, σ = {config.sigma}",
                     ["", "PSNR (dB)", "SSIM"], rows)  # fmt: skip
    result.add_metric("autoencoder: PSNR", rows[-1][1], n, unit="dB", better="higher")
    result.add_metric("autoencoder: SSIM", rows[-1][2], n, better="higher")
    path = result.add_file(
        "digits.png", "Held-out images, the same with noise, and three ways back."
    )
    images = {name: (x * 255).round().byte() for name, x in {"clean": clean, **ways}.items()}
    figures.named_rows(path, {name: x[:10] for name, x in images.items()})
    return images["autoencoder"]


# --- photographs: the residual network ------------------------------------------------------------


def noisy_patches(
    x: torch.Tensor, max_sigma: float, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clean and noisy patches (B, 3, H, W) and their σ (B,), from clean colour patches in [0, 1].

    Their colours change places and half of them become negatives: a few photographs hold few colours,
    and without this a picture with others came out 0.3 to 1.2 dB worse. Half become grey, three equal
    channels with the same noise in each; a quarter are clipped to [0, 1], as the noise in a file is.
    """
    draws = torch.rand(5, len(x), 1, 1, 1, generator=rng, device=x.device)
    sigma, grey, clipped = max_sigma * draws[0].square(), draws[1] < 0.5, draws[2] < 0.25
    eps = torch.randn(x.shape, generator=rng, device=x.device)
    order = torch.rand(len(x), 3, 1, 1, generator=rng, device=x.device).argsort(dim=1)
    x = x.gather(1, order.expand_as(x))
    x = torch.where(draws[4] < 0.5, x, 1 - x)
    red, green, share = x[:, :1], x[:, 1:2], draws[3]  # of which a grey is mixed
    x = torch.where(grey, share * red + (1 - share) * green, x)
    noisy = x + sigma * torch.where(grey, eps[:, :1], eps)
    return x, torch.where(clipped, noisy.clamp(0, 1), noisy), sigma.flatten()


def train_photographs(config: Photographs, data: Dataset, path: Path) -> Training:
    """Train the residual network on patches, or go on with --resume; the average is the result."""
    torch.manual_seed(config.seed)
    model = Denoiser(config.width, config.blocks)
    model.to(data.images.device, memory_format=torch.channels_last)
    adam = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    run = Training(path, SCRIPT, config, data, {"denoiser": model}, {"adam": adam},
                   ema="denoiser", ema_decay=config.ema_decay, label="denoiser")  # fmt: skip
    with run:
        for _ in run.epochs():
            for batch in run.batches():
                adam.param_groups[0]["lr"] = config.lr * one_cycle(run.progress)
                clean, noisy, sigma = noisy_patches(
                    unit(data.images[batch]), config.max_sigma, run.rng
                )
                loss = F.l1_loss(model(noisy, sigma), clean)
                adam.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)  # rare large steps undo much
                adam.step()
                run.log(loss=loss)
    return run


def evaluate_photographs(
    names: tuple[str, ...], sigmas: tuple[float, ...], by: dict, seed: int, result: Result
) -> None:
    """Tables of every method on photographs that no network here was trained on, and a picture.

    The noise is not clipped, as in published comparisons, and its σ is told to every method.
    """
    rng = np.random.default_rng(seed)
    shown = {}
    for sigma in sigmas:
        found = {}
        for name in names:
            clean = photograph(name) / 255
            noisy = clean + rng.normal(0, sigma, clean.shape)
            found[name] = compare(clean, noisy, sigma, by)
        ways = list(found[names[0]])
        rows = [
            [way, *[found[name][way].psnr for name in names],
             *[np.mean([getattr(found[name][way], what) for name in names])
               for what in ("psnr", "ssim", "seconds")]]
            for way in ways
        ]  # fmt: skip
        result.add_table(
            f"Photographs, σ = {sigma * 255:.0f} of 255: PSNR (dB) of each, and means",
            ["", *names, "PSNR (dB)", "SSIM", "s per picture"], rows,
        )  # fmt: skip
        means = {row[0]: row[-3] for row in rows}
        best = max(CLASSICAL, key=means.get)
        result.add_metric(f"photographs, σ = {sigma * 255:.0f}: learned", means["learned"],
                          len(names), unit="dB", better="higher")  # fmt: skip
        gain = means["learned"] - means[best]
        result.add_metric(f"σ = {sigma * 255:.0f}: learned less {best}", gain, len(names),
                          unit="dB", better="higher")  # fmt: skip
        shown = shown or found
    draw_photographs(result, shown, f"σ = {sigmas[0] * 255:.0f} of 255")


def draw_photographs(result: Result, found: dict, noise: str) -> None:
    """The middle of each photograph: clean, noisy, by the best classical methods, learned."""
    ways = ("clean", "noisy", "Gaussian blur", "non-local means", "learned")
    figure, axes = figures.new_figure(2.5 * len(ways), 2.65 * len(found), len(found), len(ways))
    for line, (name, restored) in zip(axes, found.items(), strict=True):
        for axis, way in zip(line, ways, strict=True):
            picture = photograph(name) / 255 if way == "clean" else restored[way].picture
            top, left = (side // 2 - 80 for side in picture.shape[:2])
            quality = "" if way == "clean" else f"\n{restored[way].psnr:.1f} dB"
            part = picture[top : top + 160, left : left + 160].clip(0, 1)
            figures.show_image(axis, part, way + quality)
    figures.name_rows(axes, list(found))
    path = result.add_file("photographs.png", f"160×160 pixels of each, {noise}; dB of the whole.")
    figures.save_figure(figure, path)


# --- the runs -------------------------------------------------------------------------------------


def run(config: Config) -> Result:
    """Train the autoencoder and measure it; compare the trained denoiser on photographs."""
    device = prepare(config.seed, config.device)
    config = config.quickened(epochs=1)
    data = load_for(config, device)
    config = replace(config, epochs=config.epochs or (3 if data.name == EMBEDDED else 5))
    if any(side % 4 for side in data.shape[1:]):
        raise UserError(f"The images' sides must be divisible by 4; they are {data.shape[1:]}.")
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    path = config.output_dir / MODELS / "autoencoder.pth"
    if config.sample_only:
        model = Autoencoder(data.shape[0]).to(device, memory_format=torch.channels_last)
        saved = load_checkpoint(path, SCRIPT, device)
        check_trained_for(saved, path, data, config, "sigma")
        load_weights(model, saved["model"].get("autoencoder"), path)
    else:
        training = train(config, data, path)
        model = training.networks["autoencoder"]
        draw_loss(result.add_file("loss.png", "The autoencoder's loss."), training, "MSE")
    images = evaluate_digits(config, data, model, result)
    write_samples(config.samples_file, images)
    export_network(config.export, model, {"noisy": torch.rand(2, *data.shape)}, "clean")
    names = HELD_OUT[3:4] if config.quick else HELD_OUT[3:]  # no choice was made on these
    evaluate_photographs(names, (25 / 255,), methods(device), config.seed, result)
    return result.save(*LESSONS)


def run_photographs(config: Photographs) -> Result:
    """Train the residual network, write it small enough to go with the project, and compare it."""
    device = prepare(config.seed, config.device)
    config = config.quickened(patches=200, epochs=2)
    data = random_patches(config.patches, config.seed).to(device)
    result = start_result(SCRIPT, "Denoising photographs", SUMMARY, config,
                          f"{PICTURES}/photographs", device, data)  # fmt: skip
    folder = config.output_dir / MODELS
    training = train_photographs(config, data, folder / "photographs.pth")
    unused = {"model": {}, "optimizer": {}, "rng": {}, "history": {}, "extra": {}}
    save_checkpoint(folder / WEIGHTS.name, {
        "script": SCRIPT,
        "config": {name: plain(config)[name] for name in ("width", "blocks", "max_sigma", "seed")},
        "dataset": data.describe(),
        "epoch": training.epoch,
        "step": training.step,
        # Half the bytes; 16 bits change the result by less than 0.01 dB.
        "ema": {name: values.half() for name, values in training.averaged.state_dict().items()},
    } | unused)  # fmt: skip
    draw_loss(result.add_file("loss.png", "The residual network's loss."), training, "mean error")
    model = training.averaged.eval()
    by = CLASSICAL | {"learned": lambda picture, sigma: restore(model, picture, sigma)}
    names = HELD_OUT[1:2] if config.quick else HELD_OUT
    sigmas = (25 / 255,) if config.quick else (25 / 255, 15 / 255, 50 / 255)
    evaluate_photographs(names, sigmas, by, config.seed, result)
    export_denoiser(config.export, model)
    return result.save()


def export_denoiser(path: Path | str | None, model: Denoiser) -> None:
    """The residual network as a file: noisy pictures (N, 3, H, W) and σ (N,) to clean ones."""
    inputs = {"noisy": torch.rand(2, 3, 64, 96), "sigma": torch.rand(2)}
    export_network(path, model, inputs, "clean", any_size=True)


def run_denoise(config: Denoise) -> None:
    """Read a picture, restore it tile by tile, write it."""
    device = prepare(0, config.device)
    if config.image is None:
        export_denoiser(config.export, trained_denoiser(device, config.weights))
        return
    picture_format(config.output, config.image)  # before the work, not after it
    picture = np.asarray(open_picture(config.image))
    model = trained_denoiser(device, config.weights)
    export_denoiser(config.export, model)
    sigma = estimated_sigma(picture) if config.sigma is None else config.sigma
    print(f"{picture.shape[1]}×{picture.shape[0]} pixels, "
          f"σ = {sigma:.3f} ({'measured' if config.sigma is None else 'given'}).")  # fmt: skip
    write_picture(config.output, restore(model, picture, sigma, progress=True))
    print(f"Written: {config.output}")


def main() -> None:
    commands = {"photographs": (Photographs, run_photographs), "denoise": (Denoise, run_denoise)}
    command_line(Config, run, __doc__, commands)


if __name__ == "__main__":
    main()
