"""Training of this collection's networks against the ordinary way, and against the bare products."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import gan_mnist
import mlp_diffusion
from benchmarks import ordinary
from imagelab.classifier import ClassifierConfig, new_classifier, train_classifier
from imagelab.datasets import Dataset, load_dataset, signed, unit
from imagelab.mixture import fit_gaussians
from imagelab.results import start_result
from imagelab.runtime import has_fast_bfloat16
from studies import dcgan, unet_diffusion

CPU = torch.device("cpu")
IMAGES = {"gan": 9_600, "ddpm": 15_360, "classifier": 5_120, "dcgan": 512, "unet": 512}


def part(data: Dataset, n: int) -> Dataset:
    return replace(data, images=data.images[:n], labels=data.labels[:n])


def quietly(train: Callable) -> Callable[[], object]:
    """`train(folder)` with its checkpoints in a scratch folder and its progress unseen."""

    def run() -> object:
        unseen = io.StringIO()
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.redirect_stderr(unseen),
            contextlib.redirect_stdout(unseen),
        ):
            return train(Path(folder))

    return run


def trainings(data: Dataset) -> dict[str, tuple[int, int, Callable, Callable]]:
    """Of each network: batch size, images, ours (given a folder), the ordinary way."""
    gan = gan_mnist.Config(epochs=1, batch_size=64, log_every=10**9, grid_every=10**9)
    conv = dcgan.Config(epochs=1, batch_size=64, log_every=10**9, grid_every=10**9)
    ddpm = mlp_diffusion.Config(epochs=1, batch_size=512)
    cnn = ClassifierConfig(epochs=1, batch_size=256)
    unet = unet_diffusion.Config(epochs=1)
    parts = {name: part(data, n) for name, n in IMAGES.items()}

    def play(how, config, own: Dataset, folder: Path) -> object:
        config = replace(config, output_dir=folder)
        result = start_result("gan", "", "", config, "pictures", CPU, own)
        networks = how.build(config, own.shape, CPU)
        return gan_mnist.train(config, own, *networks, folder / "model.pth", result)

    gaussians = fit_gaussians(parts["ddpm"].images, 1, 0)
    return {
        "MLP GAN": (64, IMAGES["gan"], lambda at: play(gan_mnist, gan, parts["gan"], at),
                    lambda: ordinary.mlp_gan(parts["gan"], gan)),
        "MLP DDPM": (512, IMAGES["ddpm"],
                     lambda at: mlp_diffusion.train(ddpm, parts["ddpm"], gaussians, at / "model.pth"),
                     lambda: ordinary.mlp_ddpm(parts["ddpm"], ddpm)),
        "CNN classifier": (256, IMAGES["classifier"],
                           lambda at: train_classifier(new_classifier(parts["classifier"], 0),
                                                       parts["classifier"], cnn, at / "model.pth"),
                           lambda: ordinary.classifier(parts["classifier"], 256, cnn.lr)),
        "DCGAN": (64, IMAGES["dcgan"], lambda at: play(dcgan, conv, parts["dcgan"], at),
                  lambda: ordinary.conv_gan(parts["dcgan"], conv)),
        "U-Net DDPM": (64, IMAGES["unet"],
                       lambda at: unet_diffusion.train(unet, parts["unet"], at / "model.pth"),
                       lambda: ordinary.unet_ddpm(parts["unet"], unet)),
    }  # fmt: skip


def training(device: torch.device, quick: bool) -> Iterator[tuple]:
    """Images per second in training: ours against the ordinary way, one epoch each."""
    data = load_dataset("digits", Path("data"))
    for name, (size, n, ours, other) in trainings(data).items():
        yield f"{name}, batch {size}", "images trained", n, quietly(ours), other


def limit(device: torch.device, quick: bool) -> Iterator[tuple]:
    """Images per second in training: ours against the products and convolutions of its steps alone."""
    data = load_dataset("digits", Path("data"))
    chosen = trainings(data)
    ddpm = mlp_diffusion.build(vars(mlp_diffusion.Config()), data.shape)
    x = signed(data.images[:512]).flatten(1)
    t = torch.zeros(512, dtype=torch.long)
    cnn = new_classifier(data, 0)
    images = unit(data.images[:256]).contiguous(memory_format=torch.channels_last)
    for name, network, inputs in (("MLP DDPM", ddpm, (x, t)), ("CNN classifier", cnn, (images,))):
        size, n, ours, _ = chosen[name]
        step = products(network, *inputs)

        def alone(step=step, count=n // size) -> None:
            for _ in range(count):
                step()

        yield f"{name}, share of the limit", "images trained", n, quietly(ours), alone


def products(network: nn.Module, *inputs: torch.Tensor) -> Callable[[], None]:
    """All matrix products and convolutions of one training step, and nothing else.

    For each dense or convolution layer: its output, the gradient of its weights, and that of its input
    unless that is the image. In bfloat16 where the training takes it.
    """
    dtype = torch.bfloat16 if has_fast_bfloat16(CPU) else torch.float32
    calls: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []
    hooks = [
        layer.register_forward_hook(
            lambda layer, x, y: calls.append(
                (layer, x[0].to(dtype), torch.ones_like(y, dtype=dtype))
            )
        )
        for layer in network.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    with torch.no_grad():
        network(*inputs)
    for hook in hooks:
        hook.remove()
    calls = [(deepcopy(layer).to(dtype), x, g) for layer, x, g in calls]

    @torch.no_grad()
    def step() -> None:
        for k, (layer, x, g) in enumerate(calls):
            if isinstance(layer, nn.Linear):
                F.linear(x, layer.weight, layer.bias)
                g.T @ x
                if k:
                    g @ layer.weight
            else:
                layer(x)
                torch.ops.aten.convolution_backward(
                    g, x, layer.weight, [layer.out_channels], layer.stride, layer.padding,
                    layer.dilation, False, [0, 0], layer.groups, [k > 0, True, True],
                )  # fmt: skip

    return step
