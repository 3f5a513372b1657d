"""How many images each generator draws in a second, and how many are scored (untrained: the work is
the same)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

import gan_mnist
import mlp_diffusion
from imagelab.data.datasets import load_dataset
from imagelab.report.evaluator import MIN_SAMPLES, Evaluator
from imagelab.techniques.classifier import new_classifier
from studies import dcgan, unet_diffusion, vae


def sampling(device: torch.device, quick: bool) -> Iterator[tuple]:
    """Images per second, drawn and scored as the scripts do it."""
    data = load_dataset("mnist-5k", Path("data")).to(device)
    shape = data.shape
    gan = gan_mnist.build(gan_mnist.Config(), shape, device)[0]
    conv = dcgan.build(dcgan.Config(), shape, device)[0]
    coder = vae.VAE(shape, 16).to(device)
    ddpm = mlp_diffusion.build(vars(mlp_diffusion.Config()), shape).to(device)
    unet = unet_diffusion.build(vars(unet_diffusion.Config()), shape, classes=10)
    unet.network.to(device, memory_format=torch.channels_last).eval()
    config = unet_diffusion.Config()
    for name, n, sample in (
        ("MLP GAN", 10_000, lambda n: gan_mnist.sample(gan, n, 0)),
        ("VAE, 16 latents", 10_000, lambda n: vae.sample(coder, n, 0)),
        ("DCGAN", 1_000, lambda n: gan_mnist.sample(conv, n, 0)),
        ("MLP DDPM, 50 steps", 1_000, lambda n: mlp_diffusion.sample(ddpm, n, shape, 0)),
        ("U-Net DDPM, 20 guided steps", 25, lambda n: unet_diffusion.sample(unet, config, n)),
    ):
        n = max(n // 10, 10) if quick else n
        yield f"{name}: sampling", "images drawn", n, lambda f=sample, n=n: f(n), None
    n = MIN_SAMPLES if quick else 10_000
    held_out = {"test_images": data.images[:n], "test_labels": data.labels[:n]}
    evaluator = Evaluator(new_classifier(data, 0).eval(), replace(data, **held_out), n)
    images = data.images[-n:]
    yield f"scoring, n = {n:,}", "images scored", n, lambda: evaluator.scores(images), None
