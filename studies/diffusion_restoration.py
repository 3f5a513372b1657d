"""Restoring with a diffusion model: an image out of noise, a large image out of a small one.

Noise: the network of studies/unet_diffusion.py removes it with no further training. An image with noise
of a known σ is, but for a factor, a state x_t of the reverse process. The process can start there instead
of from pure noise.

Super-resolution: a second network is trained. It gets the small picture, enlarged, as further channels
beside the noise (SR3, Saharia et al. 2021).

    python -m studies.unet_diffusion                    # first: trains the network
    python -m studies.diffusion_restoration             # both, measured on held-out images
    python -m studies.diffusion_restoration --sample-only    # with the super-resolution already trained

What to look at: in the tables of the noise, "one step" has the better PSNR: it is the mean of all images
that may be behind the noise. "Drawn" is one of these images, and has the sharper strokes. In
`super_resolution.png` the strokes come from what the network knows of digits: seven by seven pixels don't
hold them.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from torch import nn

from imagelab.data.datasets import Dataset, random_subset, to_uint8, unit
from imagelab.data.quality import mean_ssim, psnr_of_each
from imagelab.report import figures, samples
from imagelab.report.numbers import mean_and_reach, share_cell
from imagelab.report.results import Result, start_result
from imagelab.setup.runtime import UserError, channels_last, generator, prepare
from imagelab.setup.settings import Count, Limits
from imagelab.techniques import diffusion
from imagelab.techniques.classifier import DigitCNN, accuracy, trained_classifier
from imagelab.techniques.restoration import CLASSICAL, methods, restore_images
from imagelab.training.checkpoints import check_trained_for, load_checkpoint
from imagelab.training.loop import Training, one_cycle
from studies import unet_diffusion
from studies.unet_diffusion import Model, Steps, load_model, load_with_data

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "diffusion_restoration"
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"

# --- noise ----------------------------------------------------------------------------------------


def denoise(
    model: Model, noisy: torch.Tensor, sigma: float, steps: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, C, H, W) with noise of `sigma`, pixels in [0, 1], restored in two ways.

    First in one step: the network's own estimate, which is the mean of all images that may be behind
    the noise. Then drawn: one of these images.
    """
    schedule = model.schedule.until(2 * sigma)  # the network's pixels lie in [-1, 1]
    t = len(schedule) - 1
    x = schedule.alpha_bar[t].sqrt().float() * (2 * noisy - 1)  # x_t = √ᾱ_t·x₀ + √(1 − ᾱ_t)·ε
    labels = torch.zeros(len(x), dtype=torch.long, device=x.device)
    estimate = model.class_estimator(labels, guidance=0)  # guidance 0: without a class
    noise = diffusion.image_noise(seed, 0, len(x), model.shape, x.device)
    states = diffusion.reverse_process("ddpm", schedule, estimate, min(steps, t + 1), 1.0, noise, x)
    return (estimate(x, t) + 1) / 2, (diffusion.last(states) + 1) / 2


def denoised_by_method(
    config: Config, model: Model, noisy: torch.Tensor, sigma: float
) -> dict[str, torch.Tensor]:
    """What each method makes of images (N, C, H, W) in [0, 1] with noise of `sigma`, by its name."""
    restored = {"noisy": noisy}
    for name, method in methods(noisy.device).items():
        name = "learned on photographs" if name == "learned" else name
        restored[name] = restore_images(method, noisy, sigma).to(noisy.device)
    one_step, drawn = denoise(model, noisy, sigma, config.steps, config.seed)
    return restored | {"diffusion, one step": one_step, "diffusion, drawn": drawn}


# --- super-resolution -----------------------------------------------------------------------------


def shrink(x: torch.Tensor, factor: int) -> torch.Tensor:
    """(B, C, H, W) to (B, C, H/factor, W/factor): means of squares of pixels."""
    return F.avg_pool2d(x, factor)


def enlarge(small: torch.Tensor, factor: int) -> torch.Tensor:
    """Bicubic, to `factor` times the sides."""
    return F.interpolate(small, scale_factor=factor, mode="bicubic", align_corners=False)


def consistency_error(large: torch.Tensor, small: torch.Tensor, factor: int) -> float:
    """How far `large`, shrunk again, is from `small`, both in [-1, 1]: RMS for pixels in [0, 1]."""
    return (shrink(large, factor) - small).square().mean().sqrt().item() / 2


def super_resolve(
    model: Model, small: torch.Tensor, factor: int, steps: int, seed: int
) -> torch.Tensor:
    """Small pictures (N, C, h, w) in [-1, 1] to large ones (N, C, h·factor, w·factor), drawn."""
    blurred = enlarge(small, factor)
    return unet_diffusion.sample_images(
        model, lambda rows: model.estimator({"beside": blurred[rows]}), len(small), steps, seed
    )


def enlarged_by_method(
    config: Config, model: Model, small: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Small pictures (N, C, h, w) in [-1, 1] enlarged by each method, by its name."""
    seeds = range(config.seed, config.seed + 8)
    draws = [super_resolve(model, small, config.factor, config.steps, seed) for seed in seeds]
    draws = torch.stack(draws).clamp(-1, 1)
    return {
        "nearest": F.interpolate(small, scale_factor=config.factor),
        "bicubic": enlarge(small, config.factor).clamp(-1, 1),
        "diffusion, drawn": draws[0],
        "diffusion, mean of 8": draws.mean(0),
    }


# --- training -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(unet_diffusion.NetworkSettings):
    """Settings of the restorations; those of the network are the super-resolution's."""

    epochs: Count = 1
    """Passes over the training images for the super-resolution network."""
    images: Annotated[int, Limits(2)] = 200
    """How many held-out images are restored and measured."""
    sigmas: tuple[Annotated[float, Limits(0.01, 5)], ...] = (0.1, 0.25, 0.5)
    """σ of the noise, for pixels in [0, 1]; it is not clipped, and every method knows it."""
    steps: Steps = 20
    """Steps of the reverse process, for noise and super-resolution."""
    factor: Annotated[int, Limits(2, 8)] = 4
    """By how much super-resolution enlarges each side."""


def train(config: Config, data: Dataset, path: Path) -> Model:
    """Train the super-resolution network, or go on with --resume: v̂(x_t, t, small picture enlarged)."""
    torch.manual_seed(config.seed)
    model = unet_diffusion.build(vars(config), data.shape, beside=data.shape[0])
    network = channels_last(model.network, data.images.device)
    adam = torch.optim.Adam(network.parameters(), lr=config.lr, fused=True)
    training = Training(
        path, SCRIPT, config, data, networks={"unet": network}, optimizers={"adam": adam},
        ema="unet", ema_decay=config.ema_decay, label="U-Net",
        may_change_on_resume=("images", "sigmas", "steps"),
    )  # fmt: skip
    if config.resume:
        training.load()
    rng = training.rng
    with training:
        for _ in training.epochs():
            for batch in training.batches():
                x0 = unet_diffusion.batch_images(config, data, batch, rng)  # (B, C, H, W)
                blurred = enlarge(shrink(x0, config.factor), config.factor)
                x_t, t, target = unet_diffusion.noisy_pair(model, x0, rng)
                loss = F.mse_loss(network(x_t, t / config.T, beside=blurred), target)
                adam.param_groups[0]["lr"] = config.lr * one_cycle(training.progress)
                adam.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                adam.step()
                training.log(loss=loss)
    return unet_diffusion.averaged_model(training)


def checkpoint_path(config: Config) -> Path:
    return config.checkpoint or config.output_dir / MODELS / "super_resolution.pth"


def load_trained(config: Config, data: Dataset) -> Model:
    """The trained super-resolution network; UserError if its data or its factor were others."""
    path = checkpoint_path(config)
    check_trained_for(load_checkpoint(path, SCRIPT), path, data, config, "factor")
    return load_model(path, data.images.device, SCRIPT, beside=data.shape[0])


# === the lesson ends here; below: measured, plotted, reported =====================================

TITLE = "Restoring with diffusion: noise and resolution"
SUMMARY = (
    "A model that has learnt what digits look like removes noise from them, and, trained once more, "
    "draws them large again from a few pixels."
)


def add_mean(result: Result, name: str, psnr: torch.Tensor) -> None:
    """A metric: the mean of a PSNR in dB, or of a difference of two, of each image (N,)."""
    mean, to_each_side = mean_and_reach(psnr.tolist())
    interval = mean - to_each_side, mean + to_each_side
    result.add_metric(name, mean, len(psnr), unit="dB", better="higher", interval=interval)


def compare_denoisers(
    config: Config, model: Model, clean: torch.Tensor, classes: list[str], result: Result
) -> None:  # fmt: skip
    """A table of every method for each σ, and a picture for the last, the `classes` above it."""
    rng, n = generator(config.seed, "noise to restore", clean.device), len(clean)
    for sigma in config.sigmas:
        noisy = clean + sigma * torch.randn(clean.shape, generator=rng, device=clean.device)
        restored = denoised_by_method(config, model, noisy, sigma)
        psnr = {name: psnr_of_each(x, clean) for name, x in restored.items()}
        rows = [
            [name, *mean_and_reach(psnr[name].tolist()), mean_ssim(x, clean)]
            for name, x in restored.items()
        ]
        caption = f"Noise of σ = {sigma:g}"
        result.add_table(f"{caption}, n = {n:,}", ["", "PSNR (dB)", "± (95 %)", "SSIM"], rows)
        best = max(CLASSICAL, key=lambda each: psnr[each].mean().item())
        one_step, photographs = psnr["diffusion, one step"], psnr["learned on photographs"]
        add_mean(result, f"noise, σ = {sigma:g}: diffusion, one step", one_step)
        name = f"σ = {sigma:g}: one step less "
        add_mean(result, f"{name}the best classical method", one_step - psnr[best])
        add_mean(result, f"{name}the network of photographs", one_step - photographs)
    shown = ("noisy", best, "learned on photographs", "diffusion, one step", "diffusion, drawn")
    figure = plot_restored(clean, {name: restored[name] for name in shown}, psnr, classes)
    caption = f"Noise of σ = {config.sigmas[-1]:g} for pixels from 0 to 1. {EXPLAINED} "
    caption += f"{best.capitalize()} is the best classical method."
    result.add_figure("denoising.png", figure, caption)


def compare_enlargements(
    config: Config, model: Model, classifier: DigitCNN, images: torch.Tensor, labels: torch.Tensor,
    classes: list[str], result: Result,
) -> torch.Tensor:  # fmt: skip
    """The table and the picture; returns the drawn images, uint8."""
    clean, n = unit(images), len(images)
    small = shrink(2 * clean - 1, config.factor)
    enlarged = enlarged_by_method(config, model, small)
    restored = {name: (x + 1) / 2 for name, x in enlarged.items()}
    psnr = {name: psnr_of_each(x, clean) for name, x in restored.items()}
    read = {name: accuracy(classifier, x, labels) for name, x in restored.items()}
    errors = {name: consistency_error(x, small, config.factor) for name, x in enlarged.items()}
    rows = [
        [
            name,
            *mean_and_reach(psnr[name].tolist()),
            mean_ssim(x, clean),
            share_cell(read[name], n),
            errors[name],
        ]
        for name, x in restored.items()
    ]
    sizes = f"{small.shape[-1]}×{small.shape[-1]} to {clean.shape[-1]}×{clean.shape[-1]} pixels"
    columns = ["", "PSNR (dB)", "± (95 %)", "SSIM", "read as its class"]
    columns += ["error when shrunk again (RMS)"]
    result.add_table(f"{sizes}, n = {n:,}", columns, rows)
    drawn = "diffusion, drawn"
    add_mean(result, "super-resolution: PSNR less bicubic's", psnr[drawn] - psnr["bicubic"])
    lead = read[drawn] - read["bicubic"]
    result.add_share("super-resolution: read as its class", read[drawn], n, better="higher")
    result.add_metric("super-resolution: accuracy less bicubic's", lead, n, better="higher")
    caption = f"{sizes}: the small picture (nearest), and ways to enlarge it. {EXPLAINED}"
    figure = plot_restored(clean, restored, psnr, classes)
    result.add_figure("super_resolution.png", figure, caption)
    return to_uint8(enlarged[drawn])


EXPLAINED = "Drawn: one of the images that it may be, at random. Beside the names, the mean PSNR."


def plot_restored(
    clean: torch.Tensor, images: dict[str, torch.Tensor], psnr: dict[str, torch.Tensor],
    classes: list[str],
) -> Figure:  # fmt: skip
    """Ten images of each name, (N, C, H, W) in [0, 1], below the clean ones and their classes."""
    rows = {f"{name}: {psnr[name].mean().item():.1f}\u00a0dB": x for name, x in images.items()}
    rows = {name: to_uint8(2 * x[:10] - 1) for name, x in {"original": clean, **rows}.items()}
    return figures.plot_rows(rows, classes[:10])


def lessons(result: Result) -> list[str]:
    """What the figures teach, as far as they were measured."""
    taught = []
    for sigma in dict.fromkeys((max(result.config["sigmas"]), min(result.config["sigmas"]))):
        of = f"σ = {sigma:g}: one step less the"
        if gain := result.measured(f"{of} best classical method", f"{of} network of photographs"):
            taught.append(
                f"Under noise of σ = {sigma:g}, the PSNR of restoring in one step less that of the best "
                f"classical method is {gain[0]:+.1f} dB, less that of what was learned on photographs "
                f"{gain[1]:+.1f} dB."
            )
    if taught:
        taught.append("BM3D, often a stronger classical method, is not among them.")
    if gain := result.measured("super-resolution: PSNR less bicubic's"):
        taught.append(
            f"Drawn from their small pictures, images are {gain[0]:.1f} dB nearer to the originals than "
            "by bicubic enlargement."
        )
    return taught


def run(config: Config) -> Result:
    """Both restorations, on held-out images."""
    device = prepare(config.seed, config.device)
    config = config.if_quick(images=20, sigmas=(0.25,), steps=5, widths=(16, 32))
    model, data = load_with_data(config, device)
    if any(side % config.factor for side in data.shape[1:]):
        raise UserError(f"--factor must divide the images' sides, {data.shape[1:]}.")
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    classifier = trained_classifier(data, config.output_dir, config.seed, config.quick)
    rows = random_subset(len(data.test_images), config.images, "images to restore").to(device)
    images, labels = data.test_images[rows], data.test_labels[rows]
    if config.sample_only:
        super_resolution = load_trained(config, data)
    else:
        diffusion.trailing_steps(config.T, config.steps)  # refused now, not after the training
        super_resolution = train(config, data, checkpoint_path(config))
    classes = [data.classes[label] for label in labels[:10].tolist()]
    compare_denoisers(config, model, unit(images), classes, result)
    drawn = compare_enlargements(
        config, super_resolution, classifier, images, labels, classes, result
    )
    samples.write_samples(config.samples_file, drawn)
    return result.save(*lessons(result))


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
