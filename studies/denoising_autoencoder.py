"""Denoising by learning: a convolutional autoencoder for digits, a residual network for photographs.

Both networks see noisy pictures and learn to return the clean ones (Vincent et al. 2008). The autoencoder
draws the whole picture anew from a small middle layer. This suits digits, which are all of one kind. The
residual network estimates the noise and subtracts it (DnCNN, Zhang et al. 2017). What it does not
understand stays as it was. This suits photographs of any content, size and strength of noise.

    python -m studies.denoising_autoencoder                   # digits, and a comparison on photographs
    python -m studies.denoising_autoencoder --dataset mnist
    python -m studies.denoising_autoencoder denoise --image noisy.jpg --output clean.png
    python -m studies.denoising_autoencoder denoise --export denoiser.onnx
    python -m studies.denoising_autoencoder photographs       # trains the residual network: an hour

`denoise` needs no training: the weights of `photographs` come with the project. The residual network is
in imagelab/techniques/denoiser.py, the classical methods are in restoration.py beside it.

What to look at: `digits.png`, strokes that are drawn anew; `photographs.png`, edges that stay while flat
parts become smooth; the table, which says how far learning is ahead of the best classical method.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from imagelab.data.datasets import EMBEDDED, Dataset, load_for, random_subset, unit
from imagelab.data.photographs import HELD_OUT, photograph, random_patches
from imagelab.data.pictures import open_picture, picture_format, write_picture
from imagelab.data.quality import mean_psnr, mean_ssim
from imagelab.report import figures, samples
from imagelab.report.results import Result, start_result
from imagelab.setup import runtime, settings
from imagelab.setup.runtime import UserError, autocast, channels_last, generator, in_eval_mode
from imagelab.setup.settings import Count, ExportSettings, Fraction, Rate
from imagelab.techniques import denoiser, restoration
from imagelab.techniques.denoiser import ResidualDenoiser, restore, trained_denoiser
from imagelab.techniques.export import export_network
from imagelab.techniques.restoration import Restore, Restored, add_noise
from imagelab.training import checkpoints
from imagelab.training.loop import Observer, Training, no_observer, one_cycle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    nn.init.constant_(last.get_parameter("bias"), unit(data.images).mean().logit().item())
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
    return config.output_dir / MODELS / "autoencoder.pth"


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

    The colour channels of each patch are shuffled, and half of the patches become negatives. The few
    photographs hold few colours: without this, pictures with other colours came out 0.3 to 1.2 dB worse.
    Half of the patches become grey: three equal channels with the same noise in each. A quarter of the
    noisy patches are clipped to [0, 1], like the noise in a file.
    """
    draws = torch.rand(5, len(x), 1, 1, 1, generator=rng, device=x.device)
    sigma, grey, clipped = max_sigma * draws[0].square(), draws[1] < 0.5, draws[2] < 0.25
    eps = torch.randn(x.shape, generator=rng, device=x.device)
    order = torch.rand(len(x), 3, 1, 1, generator=rng, device=x.device).argsort(dim=1)
    x = x.gather(1, order.expand_as(x))
    x = torch.where(draws[4] < 0.5, x, 1 - x)
    red, green, share = x[:, :1], x[:, 1:2], draws[3]  # a grey is a mix of the two
    x = torch.where(grey, share * red + (1 - share) * green, x)
    noisy = x + sigma * torch.where(grey, eps[:, :1], eps)
    return x, torch.where(clipped, noisy.clamp(0, 1), noisy), sigma.flatten()


@dataclass(frozen=True)
class Photographs(ExportSettings, settings.ResumableSettings):
    """Train the residual network on photographs, and compare it with classical methods on others."""

    patches: Count = 32_000
    """How many patches of 64×64 pixels to train on."""
    epochs: Count = 9
    """Passes over the patches."""
    batch_size: Count = 16
    """Patches per step, each with its own σ."""
    lr: Rate = 2e-3
    """Peak of Adam's learning rate. It rises over the first quarter of the steps, then falls to 0."""
    max_sigma: Fraction = 0.4
    """The largest σ. Each σ is this times the square of a uniform number: most are small."""
    width: Count = 48
    """Channels of the network at half the size of the picture; twice as many at a quarter."""
    blocks: Count = 2
    """Residual blocks in each of its three parts."""
    ema_decay: Fraction = 0.999
    """Decay of the moving average of the weights. The average is what is kept."""


def train_photographs(
    config: Photographs, data: Dataset, path: Path, after_epoch: Observer = no_observer
) -> Training[ResidualDenoiser]:
    """Train the residual network on patches, or go on with --resume. Its weights are averaged."""
    torch.manual_seed(config.seed)
    model = ResidualDenoiser(config.width, config.blocks)
    channels_last(model, data.images.device)
    adam = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    training = Training(
        path, SCRIPT, config, data, networks={"denoiser": model}, optimizers={"adam": adam},
        ema="denoiser", ema_decay=config.ema_decay, label="denoiser",
    )  # fmt: skip
    if config.resume:
        training.load()
    with training:
        for epoch in training.epochs():
            for batch in training.batches():
                patches = unit(data.images[batch])  # (B, 3, 64, 64) in [0, 1]
                clean, noisy, sigma = noisy_patches(patches, config.max_sigma, training.rng)
                loss = F.l1_loss(model(noisy, sigma), clean)
                adam.param_groups[0]["lr"] = config.lr * one_cycle(training.progress)
                adam.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)  # rare large steps undo much
                adam.step()
                training.log(loss=loss)
            after_epoch(training, epoch)
    return training


def save_weights(training: Training, path: Path) -> None:
    """The averaged weights alone, for `trained_denoiser`: small enough to come with the project.

    They are stored in 16 bits. This halves the file and changes the result by less than 0.01 dB.
    """
    config = settings.settings_dict(training.config)
    checkpoints.save_checkpoint(path, {
        "script": SCRIPT,
        "config": {name: config[name] for name in ("width", "blocks", "max_sigma", "seed")},
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
    write_picture(config.output, restore(model, picture, sigma, progress=True))
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
    figure = figures.plot_rows({name: x[:10] for name, x in images.items()})
    caption = (
        "Held-out images, the same with noise, and restored by two filters and the autoencoder."
    )
    result.add_figure("digits.png", figure, caption)
    return images["autoencoder"]


Found = dict[str, dict[str, Restored]]  # for each photograph, the result of each method


def restored_photographs(
    names: tuple[str, ...], sigma: float, methods: dict[str, Restore], rng: np.random.Generator
) -> Found:
    """The result of each of the `methods` on photographs with noise of `sigma`.

    The noise is not clipped, as in published comparisons. Every method is told σ.
    """
    found = {}
    for name in names:
        clean = photograph(name) / 255
        noisy = clean + rng.normal(0, sigma, clean.shape)
        found[name] = restoration.compare(clean, noisy, sigma, methods)
    return found


def evaluate_photographs(
    names: tuple[str, ...],
    sigmas: tuple[int, ...],
    methods: dict[str, Restore],
    seed: int,
    result: Result,
) -> None:
    """A table of every method for each of `sigmas` (of 255), and a picture for the first of them.

    No network was trained on any of the photographs `names`.
    """
    rng = np.random.default_rng(seed)
    for sigma in sigmas:
        found = restored_photographs(names, sigma / 255, methods, rng)
        report_photographs(found, sigma, result)
        if sigma == sigmas[0]:
            caption = (
                f"160×160 pixels of each, σ = {sigma} of 255. PSNR is that of the whole picture."
            )
            result.add_figure("photographs.png", plot_photographs(found), caption)


def report_photographs(found: Found, sigma: int, result: Result) -> None:
    """The table of one σ (of 255); the learned method's mean and its lead over the best classical one."""
    n, rows, means = len(found), [], {}
    for method in next(iter(found.values())):
        each = [of[method] for of in found.values()]
        quality = [
            np.mean([getattr(x, name) for x in each]) for name in ("psnr", "ssim", "seconds")
        ]
        rows.append([method, *[x.psnr for x in each], *quality])
        means[method] = quality[0]
    result.add_table(
        f"Photographs, σ = {sigma} of 255: PSNR (dB) of each, and means",
        ["", *found, "PSNR (dB)", "SSIM", "s per picture"], rows,
    )  # fmt: skip
    best = max(restoration.CLASSICAL, key=means.__getitem__)
    learned = means["learned"]
    for name, value in (
        (f"photographs, σ = {sigma}: learned", learned),
        (f"σ = {sigma}: learned less {best}", learned - means[best]),
    ):
        result.add_metric(name, value, n, unit="dB", better="higher")


def plot_photographs(found: Found) -> Figure:
    """The middle of each photograph: clean, noisy, by two classical methods, learned."""
    shown = ("clean", "noisy", "Gaussian blur", "non-local means", "learned")
    figure, axes = figures.new_figure(2.5 * len(shown), 2.65 * len(found), len(found), len(shown))
    for line, (name, restored) in zip(axes, found.items(), strict=True):
        for axis, method in zip(line, shown, strict=True):
            picture = photograph(name) / 255 if method == "clean" else restored[method].picture
            top, left = (side // 2 - 80 for side in picture.shape[:2])
            quality = "" if method == "clean" else f"\n{restored[method].psnr:.1f} dB"
            part = picture[top : top + 160, left : left + 160].clip(0, 1)
            figures.show_image(axis, part, method + quality)
    figures.name_rows(axes, list(found))
    return figure


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
    evaluate_photographs(names, (25,), restoration.methods(device), config.seed, result)
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
    names = HELD_OUT[1:2] if config.quick else HELD_OUT
    sigmas = (25,) if config.quick else (25, 15, 50)
    evaluate_photographs(names, sigmas, methods, config.seed, result)
    export_denoiser(config.export, model)
    return result.save()


def main() -> None:
    commands = {"photographs": (Photographs, run_photographs), "denoise": (Denoise, run_denoise)}
    command_line(Config, run, __doc__, commands)


if __name__ == "__main__":
    main()
