"""A denoising GAN: what an adversarial loss and SSIM bring beside L1, and what they cost.

A U-Net (Ronneberger et al. 2015) removes the noise from small images. A discriminator learns to tell its
results from clean images, as in pix2pix (Isola et al. 2017). The U-Net's loss has three terms: look clean
to the discriminator, be close in every pixel (L1), and be close in structure (SSIM). The same U-Net is
trained again with L1 alone, from the same weights, on the same images and noise.

    python -m studies.denoising_gan                                # the embedded digits
    python -m studies.denoising_gan --dataset fashion-mnist        # ten epochs of each
    python -m studies.denoising_gan --adversarial-weight 0.1       # more weight on the discriminator
    python -m studies.denoising_gan --resume
    python -m studies.denoising_gan --sample-only                  # measure the checkpoints again

What to look at: the table, with both U-Nets beside blur and non-local means, which learn nothing. PSNR
and SSIM measure how near an image is to its own clean one. The Fréchet distance measures how much all
the images together look like clean ones. Digits are nearly black and white; clothes, which have texture,
show more of what the terms bring. `curves.png` shows whether one of the two networks wins outright.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.nn.functional as F
from torch import nn

import gan_mnist
from imagelab.data import datasets
from imagelab.data.datasets import Dataset, signed, to_uint8, unit
from imagelab.data.quality import mean_psnr, mean_ssim, ssim_map
from imagelab.report import figures, samples
from imagelab.report.evaluator import Evaluator, features, frechet_distance
from imagelab.report.results import Result, start_result
from imagelab.setup.runtime import UserError, autocast, channels_last, generator, prepare
from imagelab.setup.settings import Count, Limits, Rate, TrainingSettings
from imagelab.techniques.classifier import accuracy
from imagelab.techniques.restoration import add_noise, by_filters
from imagelab.training import checkpoints
from imagelab.training.loop import Observer, Training, can_resume, no_observer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "denoising_gan"
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"

# --- the two networks -----------------------------------------------------------------------------


class RestorationUNet(nn.Module):
    """Noisy images (B, C, H, W) in [-1, 1] to clean ones; H and W divisible by 4."""

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        w, leaky = width, nn.LeakyReLU(0.2)
        self.down1 = nn.Sequential(nn.Conv2d(channels, w, 3, padding=1), leaky)
        self.down2 = nn.Sequential(nn.Conv2d(w, 2 * w, 4, 2, 1), leaky)
        self.down3 = nn.Sequential(
            nn.Conv2d(2 * w, 4 * w, 4, 2, 1), leaky, nn.Conv2d(4 * w, 4 * w, 3, padding=1), leaky
        )
        self.up2 = nn.Sequential(nn.ConvTranspose2d(4 * w, 2 * w, 4, 2, 1), nn.ReLU())
        self.up1 = nn.Sequential(nn.ConvTranspose2d(4 * w, w, 4, 2, 1), nn.ReLU())
        self.out = nn.Sequential(nn.Conv2d(2 * w, channels, 3, padding=1), nn.Tanh())

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        with autocast(noisy.device):
            full = self.down1(noisy.contiguous(memory_format=torch.channels_last))  # (B, w, 28, 28)
            half = self.down2(full)  #                                         (B, 2w, 14, 14)
            up = self.up2(self.down3(half))  #                                 (B, 2w, 14, 14)
            up = self.up1(torch.cat([up, half], dim=1))  #                     (B, w, 28, 28)
            return self.out(torch.cat([up, full], dim=1)).float()


class RestorationDiscriminator(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to logits (B,): how clean each looks."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 32, 4, 2, 1),  # (B, 32, 14, 14)
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 64, 4, 2, 1),  #       (B, 64, 7, 7)
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(64 * (height // 4) * (width // 4), 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with autocast(x.device):
            logits = self.layers(x.contiguous(memory_format=torch.channels_last))
        return logits.squeeze(1).float()


def build(config: Config, shape: tuple[int, int, int], device: torch.device):
    """U-Net and discriminator with their first random weights, the same for the same seed.

    Convolutions are initialised as in He et al. (2015). With PyTorch's smaller default weights the first
    images are flat. L1 then holds them long at the median of all pixels, which is black.
    """
    torch.manual_seed(config.seed)
    G, D = RestorationUNet(shape[0], config.width), RestorationDiscriminator(shape)
    for layer in (layer for network in (G, D) for layer in network.modules()):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, a=0.2)
            nn.init.zeros_(layer.get_parameter("bias"))
    return channels_last(G, device), channels_last(D, device)


# --- the structural loss --------------------------------------------------------------------------


def ssim_loss(x: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """1 − SSIM (Wang et al. 2004, eq. 13) of images (B, C, H, W) in [-1, 1].

    It is computed on [0, 1], because the formula takes the ratio of two means: with negative means the
    ratio has no meaning.
    """
    return 1 - ssim_map((x + 1) / 2, (clean + 1) / 2).mean()


# --- settings and training ------------------------------------------------------------------------

Weight = Annotated[float, Limits(0, 1e6)]


@dataclass(frozen=True)
class Config(TrainingSettings):
    """Settings of the denoising GAN."""

    dataset: str = "auto"
    """auto (Fashion-MNIST or else MNIST, if under --data-dir; else the embedded digits), mnist-5k,
    textures, faces, mnist, fashion-mnist, cifar10, celeba, or folder:PATH for your own pictures."""
    sigma: Annotated[float, Limits(0, 2)] = 0.5
    """Standard deviation of the noise, for pixels in [-1, 1]. Noisy images are clipped to [-1, 1]."""
    epochs: Count | None = None
    """Passes over the training images, for each of the two; default: 10, on the embedded digits 1."""
    batch_size: Annotated[int, Limits(2)] = 32
    """Images per step."""
    lr: Rate = 2e-4
    """Adam's learning rate, of both networks."""
    beta1: Annotated[float, Limits(0, 0.999)] = 0.5
    """Adam's first-moment decay."""
    adversarial_weight: Weight = 0.01
    """Weight of −log D(G(noisy))."""
    l1_weight: Weight = 1.0
    """Weight of the mean absolute error of the pixels in [-1, 1]."""
    ssim_weight: Weight = 0.5
    """Weight of 1 − SSIM."""
    width: Count = 16
    """Channels of the U-Net at full size; twice as many at half, four times at a quarter."""


def train(
    config: Config, data: Dataset, path: Path, label: str, after_epoch: Observer = no_observer
) -> Training:
    """Train the U-Net under the weights of `config`, or go on with --resume.

    Without an adversarial weight the discriminator is not trained. Images and noise of each step do not
    depend on the weights.
    """
    G, D = build(config, data.shape, data.images.device)
    adam_g, adam_d = (
        torch.optim.Adam(net.parameters(), config.lr, (config.beta1, 0.999), fused=True)
        for net in (G, D)
    )
    training = Training(
        path,
        SCRIPT,
        config,
        data,
        networks={"generator": G, "discriminator": D},
        optimizers={"generator": adam_g, "discriminator": adam_d},
        label=label,
    )
    if config.resume:
        training.load()
    with training:
        for epoch in training.epochs():
            for batch in training.batches():
                clean = signed(data.images[batch])  # (B, C, H, W) in [-1, 1]
                noisy = add_noise(clean, config.sigma, training.rng, low=-1)
                restored = G(noisy)
                l1 = F.l1_loss(restored, clean)
                loss = config.l1_weight * l1
                if config.ssim_weight:
                    loss = loss + config.ssim_weight * ssim_loss(restored, clean)
                if config.adversarial_weight:
                    # The discriminator learns to tell restored from clean.
                    d_loss = gan_mnist.discriminator_loss(D(clean), D(restored.detach()))
                    adam_d.zero_grad()
                    d_loss.backward()
                    adam_d.step()
                    # The U-Net learns to be taken for clean.
                    D.requires_grad_(False)
                    adversarial = gan_mnist.generator_loss(D(restored))  # −log D(G(noisy))
                    D.requires_grad_(True)
                    loss = loss + config.adversarial_weight * adversarial
                    training.log(d_loss=d_loss, adversarial=adversarial)
                adam_g.zero_grad()
                loss.backward()
                adam_g.step()
                training.log(l1=l1)
            after_epoch(training, epoch)
    return training


# --- restoring ------------------------------------------------------------------------------------


@torch.no_grad()
def restore(G: nn.Module, noisy: torch.Tensor) -> torch.Tensor:
    """Noisy images (N, C, H, W) in [-1, 1] through the U-Net, in portions."""
    return torch.cat([G(part) for part in noisy.split(500)])


def both_trainings(config: Config) -> dict[str, Config]:
    """Names and settings of the two trainings; --checkpoint is one of the GAN's."""
    return {
        "L1 alone": replace(
            config, checkpoint=None, adversarial_weight=0.0, l1_weight=1.0, ssim_weight=0.0
        ),
        "GAN": config,
    }


def checkpoint_path(config: Config, name: str) -> Path:
    return config.checkpoint or config.output_dir / MODELS / f"{name.replace(' ', '_')}.pth"


def load_network(config: Config, name: str, data: Dataset) -> RestorationUNet:
    """The U-Net of --checkpoint, or of the latest one under --output-dir."""
    path = checkpoint_path(config, name)
    saved = checkpoints.load_checkpoint(path, SCRIPT, data.images.device)
    checkpoints.check_trained_for(
        saved, path, data, config, "sigma", "adversarial_weight", "l1_weight", "ssim_weight"
    )
    with checkpoints.checkpoint_errors(path):
        G = RestorationUNet(data.shape[0], saved["config"]["width"])
    checkpoints.load_weights(G, saved["model"].get("generator"), path)
    return channels_last(G, data.images.device)


# === the lesson ends here; below: measured, plotted, reported =====================================

TITLE = "Denoising GAN: more than the error of each pixel"
SUMMARY = (
    "A U-Net removes noise from images, trained under an adversarial loss, L1 and SSIM, and again under "
    "L1 alone. The difference shows what the two other terms bring and cost together. Classical filters, "
    "which learn nothing, stand beside them."
)


def epoch_picture(label: str, epoch: int) -> str:
    """The name of the picture after an epoch of one of the two trainings."""
    return f"{label.replace(' ', '_')}_epoch_{epoch:03d}.png"


def class_names(data: Dataset, n: int) -> list[str]:
    """The classes of the first held-out images."""
    return [data.classes[label] for label in data.test_labels[:n].tolist()]


def observer(config: Config, data: Dataset, result: Result) -> Observer:
    """After each epoch, a picture of ten held-out images: clean, noisy, restored."""
    clean, classes = signed(data.test_images[:10]), class_names(data, 10)
    noisy = add_noise(clean, config.sigma, generator(config.seed, "progress", clean.device), low=-1)

    def after_epoch(training: Training, epoch: int) -> None:
        restored = restore(training.networks["generator"], noisy)
        rows = {"clean": clean, "noisy": noisy, "restored": restored}
        title = f"{training.label}, epoch {epoch}"
        figure = figures.plot_rows({k: to_uint8(x) for k, x in rows.items()}, classes, title)
        figures.save_figure(figure, result.folder / epoch_picture(training.label, epoch))

    return after_epoch


def quality(x: torch.Tensor, data: Dataset, evaluator: Evaluator | None) -> dict[str, Any]:
    """The figures of restored held-out images x (N, C, H, W) in [0, 1]."""
    clean = unit(data.test_images)
    row = {"PSNR (dB)": mean_psnr(x, clean), "SSIM": mean_ssim(x, clean)}
    if evaluator is not None:
        classifier, images = evaluator.classifier, as_uint8(x)
        seen, real = (features(classifier, part) for part in (images, data.test_images))
        row["distance to clean"] = frechet_distance(seen, real)
        row["read right"] = accuracy(classifier, images, data.test_labels)
    return row


def as_uint8(x: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1] as they are written into files."""
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def evaluate(
    config: Config,
    data: Dataset,
    networks: dict[str, nn.Module],
    evaluator: Evaluator | None,
    result: Result,
) -> torch.Tensor:
    """Restore all held-out images by each method; enter the figures. Returns the GAN's images, uint8.

    PSNR and SSIM are measured on [0, 1], where σ is half as large.
    """
    sigma, n = config.sigma / 2, len(data.test_images)
    rng = generator(config.seed, "held-out noise", data.images.device)
    noisy = add_noise(unit(data.test_images), sigma, rng)
    some = unit(data.images[datasets.random_subset(len(data.images), 1000, "best blur")])
    restored = by_filters(noisy, sigma, some, rng)
    filters = list(restored)[1:]  # without the noisy images
    restored |= {name: (restore(G, noisy * 2 - 1) + 1) / 2 for name, G in networks.items()}
    rows = {name: quality(x, data, evaluator) for name, x in restored.items()}
    table = [[name, *row.values()] for name, row in rows.items()]
    if evaluator is not None:
        read = accuracy(evaluator.classifier, data.test_images, data.test_labels)
        table.append(["clean", "", "", "", read])
    caption = f"{data.name}: {n:,} held-out images, σ = {config.sigma} on [-1, 1]"
    caption += "; Fréchet distance to the same images without noise" if evaluator else ""
    result.add_table(caption, ["", *rows["noisy"]], table)
    for name in networks:
        result.add_metric(f"{name}: PSNR", rows[name]["PSNR (dB)"], n, unit="dB", better="higher")
        result.add_metric(f"{name}: SSIM", rows[name]["SSIM"], n, better="higher")
        if distance := rows[name].get("distance to clean"):
            result.add_metric(f"{name}: distance to clean", distance, n, better="lower")
    gain = rows["GAN"]["PSNR (dB)"] - max(rows[name]["PSNR (dB)"] for name in filters)
    result.add_metric("GAN less the best filter: PSNR", gain, n, unit="dB", better="higher")
    psnr = {name: f"{name}: {row['PSNR (dB)']:.1f}\u00a0dB" for name, row in rows.items()}
    shown = {"clean": data.test_images[:10]}
    shown |= {psnr[name]: as_uint8(x[:10]) for name, x in restored.items()}
    gap = 0.5 + 4 * (restored["GAN"] - restored["L1 alone"])[:10]
    shown["GAN less L1 alone, four times"] = as_uint8(gap)
    caption = (
        f"Held-out images, not picked, under their class. Noise of σ = {sigma:g} for pixels from 0 to 1; "
        f"beside the names the PSNR of all {n:,}."
    )
    result.add_figure("restored.png", figures.plot_rows(shown, class_names(data, 10)), caption)
    return as_uint8(restored["GAN"])


def plot_curves(trainings: dict[str, Training]) -> Figure:
    """L1 of both trainings, and the two adversarial losses of the GAN."""
    figure, axes = figures.new_figure(9, 3.2, columns=2)
    samples.plot_logged(axes[0, 0], {name: (t, "l1") for name, t in trainings.items()}, "L1")
    figures.log_scale(axes[0, 0])
    gan = trainings["GAN"]
    adversarial = {"discriminator": (gan, "d_loss"), "generator": (gan, "adversarial")}
    samples.plot_logged(axes[0, 1], adversarial, "cross-entropy", first_colour=2)
    cannot_tell = {"color": "#666666", "linestyle": "--", "label": "ln 2: D cannot tell"}
    axes[0, 1].axhline(math.log(2), linewidth=1.2, **cannot_tell)
    axes[0, 1].set_ylim(0)
    for axis in axes[0]:
        axis.legend()
    return figure


def lessons(result: Result) -> list[str]:
    """What the figures teach, as far as they were measured."""
    sentences = []
    if measured := result.measured("L1 alone: PSNR", "GAN: PSNR", "GAN less the best filter: PSNR"):
        alone, gan, gain = measured
        sentences.append(
            f"The U-Net reaches {alone:.1f} dB under L1 alone and {gan:.1f} dB in the GAN, under all "
            f"three terms. The latter is {gain:.1f} dB more than the best filter, which learns nothing."
        )
    if measured := result.measured("L1 alone: distance to clean", "GAN: distance to clean"):
        alone, gan = measured
        sentences.append(
            f"The Fréchet distance to clean images is {alone:.1f} under L1 alone, {gan:.1f} in the GAN."
        )
    return sentences


def run(config: Config) -> Result:
    """Train (or load) both, restore all held-out images, measure."""
    device = prepare(config.seed, config.device)
    config = config.if_quick(epochs=1, width=8, lr=1e-3)
    data = datasets.load_for(config, device, found_first=("fashion-mnist", "mnist"))
    if any(side % 4 for side in data.shape[1:]):
        raise UserError(f"The images' sides must be divisible by 4, not {data.shape[1:]}.")
    config = replace(config, epochs=config.epochs or (1 if data.name == datasets.EMBEDDED else 10))
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    after_epoch = observer(config, data, result)
    networks, trainings = {}, {}
    for name, settings in both_trainings(config).items():
        if config.sample_only:
            networks[name] = load_network(settings, name, data)
            continue
        path = checkpoint_path(config, name)
        settings = replace(settings, resume=can_resume(config, path, first=name == "L1 alone"))
        trainings[name] = train(settings, data, path, name, after_epoch)
        networks[name] = trainings[name].networks["generator"]
    evaluator = samples.evaluator_for(config, data, len(data.test_images))
    images = evaluate(config, data, networks, evaluator, result)
    if trainings:
        caption = "Left, L1 of both trainings. Right, the adversarial losses of the GAN."
        result.add_figure("curves.png", plot_curves(trainings), caption)
    for name, training in trainings.items():
        for epoch in range(1, training.last_epoch + 1):
            result.note_file(epoch_picture(name, epoch), f"{name} after epoch {epoch}.")
    samples.write_samples(config.samples_file, images)
    return result.save(*lessons(result))


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
