"""Restoring with a diffusion model: an image out of noise, a large one out of a small one.

The network of studies/unet_diffusion.py takes noise out with no further training: an image with noise
of a known σ is a state of its own way back, and can enter there. For super-resolution a second network
is trained, which sees the small picture beside the noise (SR3, Saharia et al. 2021).

    python -m studies.unet_diffusion                    # first: trains the network
    python -m studies.diffusion_restoration             # both, measured on held-out images
    python -m studies.diffusion_restoration --sample-only    # with the super-resolution already trained

What to look at: in the table of the noise, that the mean of all images that may be behind it (one step)
measures better than any one of them (drawn); `super_resolution.png`, whose strokes are not in the seven
by seven pixels but in what the network knows of digits.
"""

from __future__ import annotations

from imagelab.setup.command import command_line

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F

from imagelab.data.datasets import Dataset, random_subset, to_uint8, unit
from imagelab.data.quality import mean_psnr, mean_ssim
from imagelab.report import figures
from imagelab.report.results import Result, share_cell, start_result
from imagelab.report.samples import write_samples
from imagelab.setup.runtime import UserError, generator, prepare
from imagelab.setup.settings import Count, Limits
from imagelab.techniques.classifier import DigitCNN, accuracy, trained_classifier
from imagelab.techniques.diffusion import image_noise, last, way_back
from imagelab.techniques.restoration import methods, restore_images
from imagelab.training.checkpoints import check_trained_for, load_checkpoint
from studies import unet_diffusion
from studies.unet_diffusion import Model, Steps, load_model, load_with_data

SCRIPT = "diffusion_restoration"
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"
TITLE = "Restoring with diffusion: noise and resolution"
SUMMARY = (
    "A model that has learnt what digits look like takes noise out of them, and, trained once more, "
    "draws them large again from a few pixels."
)
LESSONS = (
    "Restored in one step, heavy noise leaves {σ = 0.5: one step less the best classical "
    "method|.1f} dB more than the best classical method of the table does; BM3D, often a stronger one, "
    "is not among them.",
    "Drawn from their shrunken pictures, images are {super-resolution: PSNR less bicubic's|.1f} dB "
    "nearer to the originals than by bicubic enlargement.",
)


@dataclass(frozen=True)
class Config(unet_diffusion.NetworkSettings):
    """Settings of the restorations; those of the network are the super-resolution's."""

    epochs: Count = 1
    """Passes over the training images for the super-resolution network."""
    images: Count = 200
    """Held-out images on which each restoration is measured."""
    sigmas: tuple[Annotated[float, Limits(0.01, 5)], ...] = (0.1, 0.25, 0.5)
    """σ of the noise, for pixels in [0, 1]; it is not clipped, and known to every method."""
    steps: Steps = 20
    """Steps of the way back, for noise and super-resolution."""
    factor: Annotated[int, Limits(2, 8)] = 4
    """By how much super-resolution enlarges each side."""


# --- noise ----------------------------------------------------------------------------------------


def denoise(model: Model, noisy: torch.Tensor, sigma: float, steps: int, seed: int):
    """Images (N, C, H, W) with noise of `sigma`, pixels in [0, 1], two ways: one step, and drawn.

    One step is the network's own estimate, the mean of all images that may be behind the noise; drawn
    is one of them.
    """
    schedule = model.schedule.until(2 * sigma)  # the network's pixels lie in [-1, 1]
    t = len(schedule) - 1
    x = schedule.alpha_bar[t].sqrt().float() * (2 * noisy - 1)
    estimate = model.of_classes(torch.zeros(len(x), dtype=torch.long, device=x.device), guidance=0)
    noise = image_noise(seed, 0, len(x), model.shape, x.device)
    drawn = last(way_back("ddpm", schedule, estimate, min(steps, t + 1), 1.0, noise, x))
    return (estimate(x, t) + 1) / 2, (drawn + 1) / 2


def compare_denoisers(config: Config, model: Model, clean: torch.Tensor, result: Result) -> None:
    """Tables of every method by σ, and a picture."""
    rng = generator(config.seed, "noise to restore", clean.device)
    n = len(clean)
    for sigma in config.sigmas:
        noisy = clean + sigma * torch.randn(clean.shape, generator=rng, device=clean.device)
        ways = {"noisy": noisy}
        for name, method in methods(clean.device).items():
            name = "learned on photographs" if name == "learned" else name
            ways[name] = restore_images(method, noisy, sigma).to(clean.device)
        one, drawn = denoise(model, noisy, sigma, config.steps, config.seed)
        ways |= {"diffusion, one step": one, "diffusion, drawn": drawn}
        rows = [[name, mean_psnr(x, clean), mean_ssim(x, clean)] for name, x in ways.items()]
        result.add_table(f"Noise of σ = {sigma:g}, n = {n:,}", ["", "PSNR (dB)", "SSIM"], rows)
        result.add_metric(f"noise, σ = {sigma:g}: diffusion, one step", rows[-2][1], n, unit="dB",
                          better="higher")  # fmt: skip
        classical = max(row[1] for row in rows[1:-3])
        result.add_metric(f"σ = {sigma:g}: one step less the best classical method",
                          rows[-2][1] - classical, n, unit="dB", better="higher")  # fmt: skip
    shown = ("noisy", "non-local means", "learned on photographs", "diffusion, one step",
             "diffusion, drawn")  # fmt: skip
    rows = {"clean": clean} | {name: ways[name] for name in shown}
    path = result.add_file("denoising.png", f"Noise of σ = {sigma:g} and ways out of it.")
    figures.named_rows(path, {name: to_uint8(2 * x[:10] - 1) for name, x in rows.items()})


# --- resolution -----------------------------------------------------------------------------------


def shrink(x: torch.Tensor, factor: int) -> torch.Tensor:
    """(B, C, H, W) to (B, C, H/factor, W/factor): means of squares of pixels."""
    return F.avg_pool2d(x, factor)


def enlarge(small: torch.Tensor, factor: int) -> torch.Tensor:
    """Bicubic, to `factor` times the sides."""
    return F.interpolate(small, scale_factor=factor, mode="bicubic", align_corners=False)


def train_enlarger(config: Config, data: Dataset) -> Model:
    """A U-Net that sees, beside the noise, the small picture enlarged; or the one of the checkpoint."""
    path = config.output_dir / MODELS / "super_resolution.pth"
    if config.sample_only:
        check_trained_for(load_checkpoint(path, SCRIPT), path, data, config, "factor")
        return load_model(path, data.images.device, SCRIPT, beside=data.shape[0])

    def tell(x0: torch.Tensor, _batch, _rng) -> dict[str, torch.Tensor]:
        return {"beside": enlarge(shrink(x0, config.factor), config.factor)}

    channels = data.shape[0]
    _, model = unet_diffusion.train(config, data, path, tell=tell, script=SCRIPT,
                                    free=("images", "sigmas", "steps"), beside=channels)  # fmt: skip
    return model


def super_resolve(
    model: Model, small: torch.Tensor, factor: int, steps: int, seed: int
) -> torch.Tensor:
    """Small pictures (N, C, h, w) in [-1, 1] to large ones, drawn."""
    beside = enlarge(small, factor)
    return unet_diffusion.draw(
        model, lambda rows: model.given({"beside": beside[rows]}), len(small), steps, seed
    )


def compare_enlargements(
    config: Config,
    model: Model,
    classifier: DigitCNN,
    images: torch.Tensor,
    labels: torch.Tensor,
    result: Result,
) -> torch.Tensor:
    """The table and the picture; returns the drawn images, uint8."""
    clean = unit(images)
    small = shrink(2 * clean - 1, config.factor)
    draws = [
        super_resolve(model, small, config.factor, config.steps, config.seed + k).clamp(-1, 1)
        for k in range(8)
    ]
    ways = {
        "nearest": F.interpolate(small, scale_factor=config.factor),
        "bicubic": enlarge(small, config.factor).clamp(-1, 1),
        "diffusion, drawn": draws[0],
        "diffusion, mean of 8": torch.stack(draws).mean(0),
    }
    rows, shares, n = [], {}, len(images)
    for name, x in ways.items():
        shares[name] = accuracy(classifier, (x + 1) / 2, labels)
        back = (shrink(x, config.factor) - small).square().mean().sqrt().item() / 2
        rows.append([name, mean_psnr((x + 1) / 2, clean), mean_ssim((x + 1) / 2, clean),
                     share_cell(shares[name], n), back])  # fmt: skip
    side = model.shape[1]
    caption = f"{side // config.factor}×{side // config.factor} to {side}×{side} pixels, n = {n:,}"
    columns = ["", "PSNR (dB)", "SSIM", "read as its class", "error when shrunk again (RMS)"]
    result.add_table(caption, columns, rows)
    drawn, gain = shares["diffusion, drawn"], rows[2][1] - rows[1][1]
    lead = drawn - shares["bicubic"]
    result.add_metric("super-resolution: PSNR less bicubic's", gain, n, unit="dB", better="higher")
    result.add_share("super-resolution: read as its class", drawn, n, better="higher")
    result.add_metric("super-resolution: accuracy less bicubic's", lead, n, better="higher")
    path = result.add_file("super_resolution.png", f"{caption[: caption.index(',')]}: what is given "
                           "(nearest), and ways to enlarge it.")  # fmt: skip
    shown = {"original": images} | {name: to_uint8(x) for name, x in ways.items()}
    figures.named_rows(path, {name: x[:10] for name, x in shown.items()})
    return to_uint8(draws[0])


# --- the runs -------------------------------------------------------------------------------------


def run(config: Config) -> Result:
    """Both restorations, on held-out images."""
    device = prepare(config.seed, config.device)
    config = config.quickened(images=20, sigmas=(0.25,), steps=5, widths=(16, 32))
    model, data = load_with_data(config, device)
    if any(side % config.factor for side in data.shape[1:]):
        raise UserError(f"--factor must divide the images' sides, {data.shape[1:]}.")
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    classifier = trained_classifier(data, config.output_dir, config.seed, config.quick)
    rows = random_subset(len(data.test_images), config.images, "images to restore").to(device)
    images, labels = data.test_images[rows], data.test_labels[rows]
    enlarger = train_enlarger(config, data)
    compare_denoisers(config, model, unit(images), result)
    drawn = compare_enlargements(config, enlarger, classifier, images, labels, result)
    write_samples(config.samples_file, drawn)
    return result.save(*LESSONS)


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
