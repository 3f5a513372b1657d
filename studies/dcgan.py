"""The deep convolutional GAN (Radford et al. 2015): the GAN of gan_mnist.py with convolutional networks.

Losses, training and figures are those of gan_mnist.py; only the networks are new. The generator enlarges
7×7 feature maps to an image by transposed convolutions. The discriminator shrinks an image by strided
convolutions. Batch normalisation keeps each layer's values in range. All weights start from N(0, 0.02²).

    python -m studies.dcgan                                   # the embedded digits, five minutes
    python -m studies.dcgan --dataset mnist --epochs 27 --batch-size 128 --grid-every 1    # half an hour
    python -m studies.dcgan --dataset folder:pictures         # your pictures, 64×64 in colour
    python -m studies.dcgan --dataset celeba                  # faces that you have placed by hand
    python -m studies.dcgan --time-limit 90                   # what 90 seconds of training give
    python -m studies.dcgan --sample-only --samples-file samples.npz

What to look at: whole strokes, where the dense GAN draws specks; `classes.png` and `quality.png`, which
would show a collapse onto few images: empty classes, and a coverage that falls.

Three things differ from the paper. Adam has no momentum, as in gan_mnist.py. The learning rate is five
times the paper's, and falls to 0 over the second half. The generator has half the discriminator's
channels, because its maps are larger: a step then takes about half the time.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import nn

import gan_mnist
from imagelab.data.datasets import load_for
from imagelab.report import samples
from imagelab.report.results import Result, start_result
from imagelab.setup.runtime import UserError, autocast, channels_last, prepare
from imagelab.setup.settings import Count, Fraction, Limits, Rate

SCRIPT = "dcgan"
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"

# --- the two networks -----------------------------------------------------------------------------


def stages(side: int) -> list[int]:
    """Channels of the discriminator's stages, from the largest image to the smallest.

    Each stage halves the side, as long as it is even and over 7. 28 pixels: [64, 128], down to 7×7.
    64 pixels: [64, 128, 256, 512], down to 4×4.
    """
    count = 0
    while side % 2 == 0 and side > 7:
        side, count = side // 2, count + 1
    if count == 0:
        raise UserError(
            f"A DCGAN halves the images: their sides must be even and over 7, not {side}."
        )
    return [min(64 * 2**k, 512) for k in range(count)]


class ConvGenerator(gan_mnist.BaseGenerator):
    """Latents (B, latent_size) ~ N(0, I) to images (B, C, H, W) in [-1, 1]."""

    def __init__(self, latent_size: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.latent_size = latent_size
        channels, height, width = shape
        # Half as many as the discriminator's, because the maps are larger: [64, 32] for 28×28.
        widths = [c // 2 for c in stages(min(height, width))[::-1]]
        self.start = (widths[0], height >> len(widths), width >> len(widths))
        self.dense = nn.Linear(latent_size, self.start[0] * self.start[1] * self.start[2])
        grow = [nn.BatchNorm2d(widths[0]), nn.ReLU()]  #              (B, 64, 7, 7)
        for before, after in zip([widths[0], *widths], widths, strict=False):
            grow += [
                nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]  #                                                      (B, 64, 14, 14), (B, 32, 28, 28)
        self.grow = nn.Sequential(*grow, nn.Conv2d(widths[-1], channels, 7, padding=3), nn.Tanh())

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        with autocast(z.device):
            x = self.dense(z).reshape(-1, *self.start)
            return self.grow(x.contiguous(memory_format=torch.channels_last)).float()


class ConvDiscriminator(gan_mnist.BaseDiscriminator):
    """Images (B, C, H, W) in [-1, 1] to logits (B,): how real each looks."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape
        widths = stages(min(height, width))  # [64, 128] for 28×28
        layers: list[nn.Module] = []
        for k, (before, after) in enumerate(zip([channels, *widths], widths, strict=False)):
            layers.append(nn.Conv2d(before, after, 4, stride=2, padding=1, bias=k == 0))
            layers += [nn.BatchNorm2d(after)] if k else []  # none on the image itself
            layers.append(nn.LeakyReLU(0.2))  #      (B, 64, 14, 14), (B, 128, 7, 7)
        last = widths[-1] * (height >> len(widths)) * (width >> len(widths))
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(last, 1))

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        with autocast(x.device):
            x = self.layers(x.contiguous(memory_format=torch.channels_last))
        return x.squeeze(1).float()

    def compare(self, real: torch.Tensor, fake: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The logits of both, in separate batches: batch normalisation must not mix them."""
        return self.logits(real), self.logits(fake)


def initialise(module: nn.Module) -> None:
    """Weights ~ N(0, 0.02²), those of batch normalisation ~ N(1, 0.02²) (Radford et al. section 4)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1, 0.02)


def build(config: Config, shape: tuple[int, int, int], device: torch.device):
    """Both networks with their first random weights, the same for the same seed."""
    torch.manual_seed(config.seed)
    networks = ConvGenerator(config.latent_size, shape), ConvDiscriminator(shape)
    for network in networks:
        channels_last(network.apply(initialise), device)
    return networks


# --- settings; training and sampling are those of gan_mnist.py ------------------------------------


@dataclass(frozen=True)
class Config(gan_mnist.GANSettings):
    """Settings of the DCGAN."""

    epochs: Count = 2
    """Passes over the training images."""
    batch_size: Annotated[int, Limits(2)] = 32
    """Real images per step; the discriminator sees as many generated ones. In a short training small
    batches, which make many steps, draw better."""
    lr: Rate = 1e-3
    """Adam's learning rate, of both networks: five times the paper's, because the training is short."""
    max_shift: Annotated[int, Limits(0, 8)] = 0
    """The discriminator sees each image shifted at random by up to this many pixels; 0: as it is."""
    ema_decay: Fraction = 0.0
    """Decay of the generator's averaged weights, which then draw the samples; 0: none. Where the learning
    rate falls to 0 they bring nothing (measured)."""
    grid_every: Annotated[float, Limits(0)] = 0.2
    """Epochs between two sample grids (0.2: five grids in each epoch); 0: none."""
    log_every: Count = 100
    """Batches between two lines of losses."""
    image_size: Count = 64
    """Side in pixels to which the pictures of folder:PATH are scaled."""


def checkpoint_path(config: Config) -> Path:
    return config.checkpoint or config.output_dir / MODELS / "dcgan.pth"


def load_generator(config: Config, device: torch.device) -> gan_mnist.BaseGenerator:
    """The generator of --checkpoint, or of the latest one under --output-dir."""
    G = gan_mnist.load_generator(checkpoint_path(config), device, SCRIPT, ConvGenerator)
    return channels_last(G, device)


# === the lesson ends here; below: measured, plotted, reported =====================================

TITLE = "DCGAN: a GAN of convolutions"
SUMMARY = (
    "The generator and the discriminator of the GAN, rebuilt from convolutions. Neighbouring pixels are "
    "drawn together. The figures say whether the GAN draws all classes."
)


def lessons(result: Result) -> list[str]:
    """What the figures teach, as far as they were measured."""
    together = (
        "Convolutions draw neighbouring pixels together. They do not make sure that all classes "
    )
    together += "are drawn: coverage measures that."
    return [*gan_mnist.lessons(result), together]


def run(config: Config) -> Result:
    """Train (or load), sample, measure, with the functions of gan_mnist.py."""
    device = prepare(config.seed, config.device)
    config = config.if_quick(time_limit=6.0, num_samples=500, log_every=20)
    if config.sample_only:
        G = load_generator(config, device)
        gan_mnist.export_generator(config.export, G)
        images = gan_mnist.sample(G, config.num_samples, config.seed)
        return samples.sampled_only(SCRIPT, TITLE, PICTURES, config, device, images)
    data = load_for(config, device)
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    samples.show_training_images(result, data)
    evaluator = samples.evaluator_for(config, data, samples.TRACKED)
    G, D = build(config, data.shape, device)
    after_epoch = gan_mnist.observer(config, result, evaluator)
    path = checkpoint_path(config)
    training = gan_mnist.train(config, data, G, D, path, SCRIPT, "DCGAN", after_epoch)
    images = gan_mnist.evaluate(config, data, training, evaluator, result)
    samples.write_samples(config.samples_file, images)
    gan_mnist.export_generator(config.export, gan_mnist.sampling_network(training))
    return result.save(*lessons(result))


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
