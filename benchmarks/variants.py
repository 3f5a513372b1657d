"""Training steps of the two convolutional networks in other forms, beside the step as it is.

`variants` is what was tried for speed, or what ours replaces. `compiled` is --compile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import gan_mnist
import mlp_diffusion
from benchmarks.ordinary import with_group_norm
from benchmarks.training import part, quietly
from imagelab.data.datasets import load_dataset
from imagelab.setup.runtime import channels_last, in_float32
from studies import dcgan, unet_diffusion

SHAPE = 1, 28, 28
Step = Callable[[], None]


def unet_step(
    device: torch.device,
    size: int = 64,
    group_norm: bool = False,
    contiguous: bool = False,
    float32: bool = False,
    **adam: bool,
) -> Step:
    """One step of the U-Net on a batch of `size`, with Adam in the form that `adam` names."""
    config = unet_diffusion.Config()
    model = unet_diffusion.build(vars(config), SHAPE, classes=10)
    if group_norm:
        with_group_norm(model.network)
    network = model.network.to(device) if contiguous else channels_last(model.network, device)
    optimizer = torch.optim.Adam(network.parameters(), config.lr, **(adam or {"fused": True}))
    x0, rng = torch.rand(size, *SHAPE, device=device) * 2 - 1, torch.Generator(device)
    labels = torch.arange(size, device=device) % 10

    def step() -> None:
        with in_float32() if float32 else contextlib.nullcontext():
            x_t, t, target = unet_diffusion.noisy_pair(model, x0, rng)
            loss = F.mse_loss(network(x_t, t / config.T, label=labels), target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    return step


def dcgan_step(
    device: torch.device,
    size: int = 64,
    in_place: bool = False,
    contiguous: bool = False,
    float32: bool = False,
    **adam: bool,
) -> Step:
    """One step of the DCGAN's discriminator and generator, as `gan_mnist.train` does it."""
    config = dcgan.Config(batch_size=size)
    G, D = dcgan.build(config, SHAPE, device)
    for network in (G, D):
        if contiguous:  # torch's types leave this argument out
            network.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        for module in network.modules():
            if isinstance(module, nn.ReLU | nn.LeakyReLU):
                module.inplace = in_place
    adam_g, adam_d = (
        torch.optim.Adam(network.parameters(), config.lr, (0.5, 0.999), **(adam or {"fused": True}))
        for network in (G, D)
    )
    real = torch.rand(size, *SHAPE, device=device) * 2 - 1

    def step() -> None:
        with in_float32() if float32 else contextlib.nullcontext():
            fake = G(torch.randn(size, config.latent_size, device=device))
            d_loss = gan_mnist.discriminator_loss(*D.compare(real, fake.detach()), 0.1)
            adam_d.zero_grad()
            d_loss.backward()
            adam_d.step()
            D.requires_grad_(False)
            g_loss = gan_mnist.generator_loss(D.logits(fake))
            adam_g.zero_grad()
            g_loss.backward()
            adam_g.step()
            D.requires_grad_(True)

    return step


def variants(device: torch.device, quick: bool) -> Iterator[tuple]:
    """Images per second: a step in another form against the step as it is, by turns."""
    count = 1 if quick else 10
    for name, make, others in (
        (
            "U-Net",
            unet_step,
            {
                "float32": {"float32": True},
                "group norm": {"group_norm": True},
                "group norm, contiguous, float32": {
                    "group_norm": True, "contiguous": True, "float32": True,
                },
                "a batch of 128": {"size": 128},
                "Adam foreach": {"foreach": True},
                "Adam plain": {"foreach": False},
            },
        ),
        (
            "DCGAN",
            dcgan_step,
            {
                "float32": {"float32": True},
                "contiguous": {"contiguous": True},
                "activations in place": {"in_place": True},
                "a batch of 128": {"size": 128},
                "Adam foreach": {"foreach": True},
            },
        ),
    ):  # fmt: skip
        base = make(device)
        for what, change in others.items():
            size, other = change.get("size", 64), make(device, **change)
            ours, as_it_is = (lambda f=f: [f() for _ in range(count)] for f in (other, base))
            yield f"{name}, {what}", "images trained", size * count, ours, as_it_is, 64 * count


def compiled(device: torch.device, quick: bool) -> Iterator[tuple]:
    """Images per second of whole trainings: with --compile against without."""
    data = load_dataset("mnist-5k", Path("data")).to(device)
    scale = 10 if quick else 1 if device.type == "cpu" else 0.1

    def gan(how, config, own, folder: Path) -> None:
        networks = how.build(config, own.shape, device)
        gan_mnist.train(config, own, *networks, folder / "model.pth")

    for name, n, train, config in (
        ("U-Net DDPM", 2_560, lambda c, own, at: unet_diffusion.train(c, own, at / "unet.pth"),
         unet_diffusion.Config(epochs=1)),
        ("DCGAN", 2_560, lambda c, own, at: gan(dcgan, c, own, at),
         dcgan.Config(epochs=1, log_every=10**9)),
        ("MLP GAN", 5_120, lambda c, own, at: gan(gan_mnist, c, own, at),
         gan_mnist.Config(epochs=1, log_every=10**9)),
        ("MLP DDPM", 5_120, lambda c, own, at: mlp_diffusion.train(c, own, at / "ddpm.pth"),
         mlp_diffusion.Config(epochs=1)),
    ):  # fmt: skip
        own = part(data, round(n / scale))
        with_it, without = (
            quietly(partial(train, replace(config, compile=on), own)) for on in (True, False)
        )
        yield f"{name}, --compile", "images trained", len(own.images), with_it, without
