"""How many images each generator draws in a second, beside the usual way, and how many are scored.

The usual way: float32, weights as they are stored by default, all images in one batch, every step of the
process, and with guidance two calls of the network in each. Of its many steps a few are timed. (The
networks are untrained: the work is the same.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

import gan_mnist
import mlp_diffusion
from imagelab.data.datasets import load_dataset
from imagelab.data.tensors import to_uint8
from imagelab.report.evaluator import MIN_SAMPLES, Evaluator
from imagelab.setup.runtime import channels_last, in_float32
from imagelab.techniques.classifier import new_classifier
from imagelab.techniques.diffusion import Schedule
from studies import dcgan, unet_diffusion, vae


def plainly(network: torch.nn.Module) -> torch.nn.Module:
    """A copy of the network with weights in PyTorch's usual order."""
    plain = copy.deepcopy(network).eval()
    return plain.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]


@torch.no_grad()
def usual_gan(G: gan_mnist.BaseGenerator, n: int) -> torch.Tensor:
    """All images in one call."""
    device = next(G.parameters()).device
    with in_float32():
        return to_uint8(G(torch.randn(n, G.latent_size, device=device)))


@torch.no_grad()
def usual_vae(model: vae.VAE, n: int) -> torch.Tensor:
    device = next(model.parameters()).device
    with in_float32():
        return to_uint8(model.decode(torch.randn(n, model.latent_size, device=device)).tanh())


@torch.no_grad()
def usual_ddpm(
    predict_x0: Callable, schedule: Schedule, x: torch.Tensor, steps: int
) -> torch.Tensor:
    """The first `steps` steps of the process, as tutorials write the loop: tables indexed by t."""
    beta, alpha_bar, prev = (
        table.float().to(x.device)
        for table in (schedule.beta, schedule.alpha_bar, schedule.alpha_bar_prev)
    )
    with in_float32():
        for step in list(reversed(range(len(schedule))))[:steps]:
            t = torch.full((len(x),), step, device=x.device, dtype=torch.long)
            at = (slice(None), *[None] * (x.dim() - 1))
            x0 = predict_x0(x, t).clamp(-1, 1)
            b, a, p = beta[t][at], alpha_bar[t][at], prev[t][at]
            mean = p.sqrt() * b / (1 - a) * x0 + (1 - b).sqrt() * (1 - p) / (1 - a) * x
            noise = torch.randn_like(x) if step > 0 else torch.zeros_like(x)
            x = mean + (b * (1 - p) / (1 - a)).sqrt() * noise
    return to_uint8(x)


def sampling(device: torch.device, quick: bool) -> Iterator[tuple]:
    """Images per second, drawn and scored as the scripts do it, and drawn the usual way."""
    data = load_dataset("mnist-5k", Path("data")).to(device)
    shape, config = data.shape, unet_diffusion.Config()
    gan = gan_mnist.build(gan_mnist.Config(), shape, device)[0]
    conv = dcgan.build(dcgan.Config(), shape, device)[0]
    coder = vae.VAE(shape, 16).to(device)
    ddpm = mlp_diffusion.build(vars(mlp_diffusion.Config()), shape).to(device)
    unet = unet_diffusion.build(vars(config), shape, classes=10)
    channels_last(unet.network, device).eval()
    plain_conv, plain_unet = plainly(conv), replace(unet, network=plainly(unet.network))

    def noise(n: int, *of: int) -> torch.Tensor:
        return torch.randn(n, *of, device=device)

    def usual_mlp(n: int) -> torch.Tensor:
        def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return ddpm.x0_and_eps(x, t)[0]

        return usual_ddpm(predict, ddpm.schedule, noise(n, 784), len(ddpm.schedule))

    def usual_unet(n: int) -> torch.Tensor:
        labels = torch.arange(n, device=device) % 10
        cond, uncond = (plain_unet.class_estimator(labels, scale) for scale in (1, 0))

        def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            step = int(t[0])
            return unet_diffusion.guided(cond(x, step), uncond(x, step), config.guidance)

        return usual_ddpm(predict, unet.schedule, noise(n, *shape), timed)

    timed = 2 if quick else 20  # of the config.T steps of the usual way
    for name, n, sample, usual, share in (
        ("MLP GAN", 10_000, lambda n: gan_mnist.sample(gan, n, 0), lambda n: usual_gan(gan, n), 1),
        ("VAE, 16 latents", 10_000, lambda n: vae.sample(coder, n, 0), lambda n: usual_vae(coder, n), 1),
        ("DCGAN", 1_000, lambda n: gan_mnist.sample(conv, n, 0), lambda n: usual_gan(plain_conv, n), 1),
        ("MLP DDPM, 50 steps", 1_000, lambda n: mlp_diffusion.sample(ddpm, n, shape, 0), usual_mlp, 1),
        (
            f"U-Net DDPM, {config.steps} guided steps against {config.T:,}",
            25,
            lambda n: unet_diffusion.sample(unet, config, n),
            usual_unet,
            timed / config.T,
        ),
        (
            f"U-Net DDPM, {config.steps} guided steps on both sides",
            25,
            lambda n: unet_diffusion.sample(unet, config, n),
            usual_unet,
            timed / config.steps,
        ),
    ):  # fmt: skip
        n = max(n // 10, 5) if quick else n
        ours, other = (lambda f=f, n=n: f(n) for f in (sample, usual))
        yield f"{name}: sampling", "images drawn", n, ours, other, n * share
    n = MIN_SAMPLES if quick else 10_000
    held_out = {"test_images": data.images[:n], "test_labels": data.labels[:n]}
    evaluator = Evaluator(new_classifier(data, 0).eval(), replace(data, **held_out), n)
    images = data.images[-n:]
    yield f"scoring, n = {n:,}", "images scored", n, lambda: evaluator.scores(images), None
