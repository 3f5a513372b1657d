"""A denoising GAN: what an adversarial loss and SSIM buy beside L1, and what they cost.

A U-Net (Ronneberger et al. 2015) takes the noise out of small images; a discriminator is shown its
results beside clean images, as in pix2pix (Isola et al. 2017), and the U-Net is asked for three things
at once: to be taken for clean, to be close in every pixel (L1), and close in structure (SSIM). The same
U-Net is trained a second time with L1 alone, from the same weights, on the same images and noise.

    python -m studies.denoising_gan                                # the embedded digits
    python -m studies.denoising_gan --dataset fashion-mnist        # ten epochs of each
    python -m studies.denoising_gan --adversarial-weight 0.1       # more of the game
    python -m studies.denoising_gan --resume
    python -m studies.denoising_gan --sample-only                  # measure the checkpoints again

What to look at: in the table, the two U-Nets beside each other (PSNR and SSIM say how near an image is
to its own clean one, the distance how like clean images they are as a whole), and both beside blur and
non-local means, which know nothing of the images; in `curves.png`, whether the game stays a game.
"""

from __future__ import annotations

from imagelab.setup.command import command_line

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

from gan_mnist import discriminator_loss, generator_loss
from imagelab.data.datasets import (
    EMBEDDED,
    Dataset,
    load_for,
    random_subset,
    signed,
    to_uint8,
    unit,
)
from imagelab.data.pictures import write_png
from imagelab.data.quality import mean_psnr, mean_ssim, ssim_map
from imagelab.report import figures
from imagelab.report.evaluator import Judge, features, frechet_distance
from imagelab.report.results import Result, start_result
from imagelab.report.samples import judge_for, write_samples
from imagelab.setup.runtime import UserError, autocast, generator, prepare
from imagelab.setup.settings import Count, Limits, Rate, TrainingSettings
from imagelab.techniques.classifier import accuracy
from imagelab.techniques.restoration import add_noise, by_filters
from imagelab.training.checkpoints import (
    as_described,
    check_trained_for,
    load_checkpoint,
    load_weights,
)
from imagelab.training.loop import Training, goes_on

SCRIPT = "denoising_gan"
WEIGHTS = ("adversarial_weight", "l1_weight", "ssim_weight")
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"
TITLE = "Denoising GAN: more than the error of each pixel"
SUMMARY = (
    "A U-Net cleans noisy images under an adversarial loss, L1 and SSIM, and again under L1 alone, so "
    "that what the two other terms buy and cost together is seen, beside filters that know no images."
)
LESSONS = (
    "The U-Net reaches {L1 alone: PSNR|.1f} dB under L1 alone and {GAN: PSNR|.1f} dB under all "
    "three terms; the best blur is {GAN less blur: PSNR|.1f} dB behind.",
)
Weight = Annotated[float, Limits(0, 1e6)]


@dataclass(frozen=True)
class Config(TrainingSettings):
    """Settings of the denoising GAN."""

    sigma: Annotated[float, Limits(0, 2)] = 0.5
    """Standard deviation of the noise, for pixels in [-1, 1]; the sum is clipped to [-1, 1]."""
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


# --- the two networks -----------------------------------------------------------------------------


class UNet(nn.Module):
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


class Discriminator(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to logits (B,): how clean each looks."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 32, 4, 2, 1), nn.LeakyReLU(0.2),  # (B, 32, 14, 14)
            nn.Conv2d(32, 64, 4, 2, 1), nn.LeakyReLU(0.2),  #       (B, 64, 7, 7)
            nn.Flatten(), nn.Linear(64 * (height // 4) * (width // 4), 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with autocast(x.device):
            logits = self.layers(x.contiguous(memory_format=torch.channels_last))
        return logits.squeeze(1).float()


# --- the losses and the training ------------------------------------------------------------------


def ssim_loss(x: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """1 − SSIM (Wang et al. 2004, eq. 13) of images (B, C, H, W) in [-1, 1].

    It is computed on [0, 1]: the formula compares means by their ratio, which says nothing where a grey
    is zero.
    """
    return 1 - ssim_map((x + 1) / 2, (clean + 1) / 2).mean()


def build(config: Config, shape: tuple[int, int, int], device: torch.device):
    """U-Net and discriminator with their first random weights, the same for the same seed.

    Initialised as He et al. (2015) do: with PyTorch's smaller default weights the first images are
    flat, and L1 keeps them for long at the median of all pixels, which is black.
    """
    torch.manual_seed(config.seed)
    networks = UNet(shape[0], config.width), Discriminator(shape)
    for layer in (layer for network in networks for layer in network.modules()):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, a=0.2)
            nn.init.zeros_(layer.bias)
    return tuple(net.to(device, memory_format=torch.channels_last) for net in networks)


def train(config: Config, data: Dataset, path: Path, result: Result, label: str) -> Training:
    """Train the U-Net under the weights of `config`, or go on with --resume.

    Without an adversarial weight there is no discriminator's step. The image and noise of every step
    are the same for all weights.
    """
    device = data.images.device
    G, D = build(config, data.shape, device)
    adam = {"lr": config.lr, "betas": (config.beta1, 0.999), "fused": True}
    adam_g = torch.optim.Adam(G.parameters(), **adam)
    adam_d = torch.optim.Adam(D.parameters(), **adam)
    run = Training(path, SCRIPT, config, data, {"generator": G, "discriminator": D},
                   {"generator": adam_g, "discriminator": adam_d}, label=label)  # fmt: skip
    with run:
        for epoch in run.epochs():
            for batch in run.batches():
                clean = signed(data.images[batch])
                noisy = add_noise(clean, config.sigma, run.rng, low=-1)
                restored = G(noisy)
                l1 = F.l1_loss(restored, clean)
                loss = config.l1_weight * l1
                if config.ssim_weight:
                    loss = loss + config.ssim_weight * ssim_loss(restored, clean)
                if config.adversarial_weight:
                    # The discriminator learns to tell restored from clean.
                    d_loss = discriminator_loss(D(clean), D(restored.detach()))
                    adam_d.zero_grad()
                    d_loss.backward()
                    adam_d.step()
                    # The U-Net learns to be taken for clean.
                    D.requires_grad_(False)
                    adversarial = generator_loss(D(restored))
                    D.requires_grad_(True)
                    loss = loss + config.adversarial_weight * adversarial
                    run.log(d_loss=d_loss, adversarial=adversarial)
                adam_g.zero_grad()
                loss.backward()
                adam_g.step()
                run.log(l1=l1)
            draw_progress(result.folder / epoch_picture(label, epoch), G, data, config)
    return run


@torch.no_grad()
def restored(G: nn.Module, noisy: torch.Tensor) -> torch.Tensor:
    """Noisy images (N, C, H, W) in [-1, 1] through the U-Net, in portions."""
    return torch.cat([G(part) for part in noisy.split(500)])


def epoch_picture(label: str, epoch: int) -> str:
    """The name of the picture after an epoch of one of the two trainings."""
    return f"{label.replace(' ', '_')}_epoch_{epoch:03d}.png"


def draw_progress(path: Path, G: nn.Module, data: Dataset, config: Config) -> None:
    """Ten held-out images: clean, noisy, restored."""
    clean = signed(data.test_images[:10])
    noisy = add_noise(clean, config.sigma, generator(config.seed, "progress", clean.device), low=-1)
    write_png(path, figures.grid(to_uint8(torch.cat([clean, noisy, restored(G, noisy)])), 10))


# --- measuring ------------------------------------------------------------------------------------


def evaluate(
    config: Config,
    data: Dataset,
    networks: dict[str, nn.Module],
    judge: Judge | None,
    result: Result,
) -> torch.Tensor:
    """Every way of restoring on all held-out images, in figures and side by side.

    Measured on [0, 1], where σ is half as large. Returns the GAN's images, uint8.
    """
    sigma, device = config.sigma / 2, data.images.device
    rng = generator(config.seed, "held-out noise", device)
    clean = unit(data.test_images)
    noisy = add_noise(clean, sigma, rng)
    training = unit(data.images[random_subset(len(data.images), 1000, "best blur")])
    ways = by_filters(noisy, sigma, training, rng)
    ways |= {name: (restored(G, noisy * 2 - 1) + 1) / 2 for name, G in networks.items()}
    images = {name: (x.clamp(0, 1) * 255).round().to(torch.uint8) for name, x in ways.items()}
    rows, n = {}, len(clean)
    aim = judge and features(judge.classifier, data.test_images)
    for name, x in ways.items():
        rows[name] = {"PSNR (dB)": mean_psnr(x, clean), "SSIM": mean_ssim(x, clean)}
        if judge is not None:
            seen = features(judge.classifier, images[name])
            rows[name]["distance to clean"] = frechet_distance(seen, aim)
            rows[name]["read right"] = accuracy(judge.classifier, images[name], data.test_labels)
    if judge is not None:
        read = accuracy(judge.classifier, data.test_images, data.test_labels)
        rows["clean"] = dict.fromkeys(rows["noisy"], "") | {"read right": read}
    columns = list(rows["noisy"])
    result.add_table(
        f"{data.name}: {n:,} held-out images, σ = {config.sigma} on [-1, 1]"
        + ("; Fréchet distance to the same images without noise" if judge else ""),
        ["", *columns], [[name, *row.values()] for name, row in rows.items()],
    )  # fmt: skip
    blur, learned = list(ways)[1], networks
    for name in learned:
        result.add_metric(f"{name}: PSNR", rows[name]["PSNR (dB)"], n, unit="dB", better="higher")
        result.add_metric(f"{name}: SSIM", rows[name]["SSIM"], n, better="higher")
    for what, decibels in (("PSNR (dB)", "dB"), ("SSIM", "")):
        gain = rows["GAN"][what] - rows[blur][what]
        result.add_metric(f"GAN less blur: {what.split()[0]}", gain, n, unit=decibels,
                          better="higher")  # fmt: skip
    path = result.add_file("restored.png", "Held-out images, the same with noise, and ways back.")
    figures.named_rows(
        path, {"clean": data.test_images[:10]} | {name: x[:10] for name, x in images.items()}
    )
    return images["GAN"]


def draw_curves(path: Path, runs: dict[str, Training]) -> None:
    """L1 of both while training, and the game of the GAN."""
    figure, axes = figures.new_figure(9, 3.2, columns=2)
    for k, (name, run) in enumerate(runs.items()):
        line = run.smoothed("l1", max(run.steps_done // 150, 1))
        axes[0, 0].plot(*line, label=name, color=figures.PALETTE[k])
    gan = runs["GAN"]
    axes[0, 0].set(xlabel="epoch", ylabel="L1", yscale="log")
    axes[0, 0].legend()
    for k, (name, label) in enumerate((("d_loss", "D"), ("adversarial", "G, adversarial"))):
        line = gan.smoothed(name, max(gan.steps_done // 150, 1))
        axes[0, 1].plot(*line, label=label, color=figures.PALETTE[2 + k])
    axes[0, 1].set(xlabel="epoch", ylabel="loss")
    axes[0, 1].legend()
    figures.save_figure(figure, path)


# --- the run --------------------------------------------------------------------------------------


def contenders(config: Config) -> dict[str, Config]:
    """The settings of the two trainings."""
    return {
        "L1 alone": replace(config, adversarial_weight=0.0, l1_weight=1.0, ssim_weight=0.0),
        "GAN": config,
    }


def checkpoint_path(config: Config, name: str) -> Path:
    return config.output_dir / MODELS / f"{name.replace(' ', '_')}.pth"


def load_network(config: Config, name: str, data: Dataset) -> UNet:
    """The U-Net of a checkpoint under --output-dir."""
    path = checkpoint_path(config, name)
    saved = load_checkpoint(path, SCRIPT, data.images.device)
    check_trained_for(saved, path, data, config, "sigma", *WEIGHTS)
    with as_described(path):
        G = UNet(data.shape[0], saved["config"]["width"])
    load_weights(G, saved["model"].get("generator"), path)
    return G.to(data.images.device, memory_format=torch.channels_last)


def run(config: Config) -> Result:
    """Train (or load) both, restore all held-out images, measure."""
    device = prepare(config.seed, config.device)
    config = config.quickened(epochs=1, width=8, lr=1e-3)
    data = load_for(config, device)
    if any(side % 4 for side in data.shape[1:]):
        raise UserError(f"The images' sides must be divisible by 4, not {data.shape[1:]}.")
    config = replace(config, epochs=config.epochs or (1 if data.name == EMBEDDED else 10))
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    networks, runs = {}, {}
    for name, settings in contenders(config).items():
        if config.sample_only:
            networks[name] = load_network(settings, name, data)
            continue
        path = checkpoint_path(config, name)
        settings = replace(settings, resume=goes_on(config, path, first=name == "L1 alone"))
        runs[name] = train(settings, data, path, result, name)
        networks[name] = runs[name].networks["generator"]
    judge = judge_for(config, data, len(data.test_images))
    images = evaluate(config, data, networks, judge, result)
    if runs:
        draw_curves(result.add_file("curves.png", "L1 while training, and the game."), runs)
        for name in runs:
            for epoch in range(1, runs[name].last_epoch + 1):
                caption = f"{name} after epoch {epoch}."
                result.note_file(epoch_picture(name, epoch), caption)
    write_samples(config.samples_file, images)
    return result.save(*LESSONS)


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
