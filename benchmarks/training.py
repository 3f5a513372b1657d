"""Training of this collection's networks against the ordinary way, and against the bare products."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import gan_mnist
import mlp_diffusion
from benchmarks import ordinary
from imagelab.data.datasets import Dataset, load_dataset
from imagelab.techniques.classifier import ClassifierConfig, new_classifier, train_classifier
from studies import dcgan, unet_diffusion

IMAGES = {"gan": 9_600, "ddpm": 15_360, "classifier": 5_120, "dcgan": 512, "unet": 512}
ON_A_GPU = {"dcgan": 6_400, "unet": 6_400}  # a second's work there too
aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.convolution, aten.convolution_backward}


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


def trainings(
    data: Dataset, images: dict[str, int] | None = None
) -> dict[str, tuple[int, int, Callable, Callable]]:
    """Of each network: batch size, images (those of IMAGES), ours (given a folder), the ordinary way."""
    images = images or IMAGES | (ON_A_GPU if data.images.is_cuda else {})
    # As often written on both sides: without what the ordinary script has not.
    gan = gan_mnist.Config(**gan_mnist.AS_OFTEN_WRITTEN, epochs=1, log_every=10**9)
    conv = dcgan.Config(epochs=1, batch_size=64, log_every=10**9)
    ddpm = mlp_diffusion.Config(epochs=1, batch_size=512)
    cnn = ClassifierConfig(epochs=1, batch_size=256)
    unet = unet_diffusion.Config(epochs=1)
    parts = {name: part(data, n) for name, n in images.items()}

    def play(how, config, own: Dataset, folder: Path) -> object:
        networks = how.build(config, own.shape, own.images.device)
        return gan_mnist.train(config, own, *networks, folder / "model.pth")

    return {
        "MLP GAN": (
            64,
            images["gan"],
            lambda at: play(gan_mnist, gan, parts["gan"], at),
            lambda: ordinary.mlp_gan(parts["gan"], gan),
        ),
        "MLP DDPM": (
            512,
            images["ddpm"],
            lambda at: mlp_diffusion.train(ddpm, parts["ddpm"], at / "model.pth"),
            lambda: ordinary.mlp_ddpm(parts["ddpm"], ddpm),
        ),
        "CNN classifier": (
            256,
            images["classifier"],
            lambda at: train_classifier(
                new_classifier(parts["classifier"], 0), parts["classifier"], cnn, at / "model.pth"
            ),
            lambda: ordinary.classifier(parts["classifier"], 256, cnn.lr),
        ),
        "DCGAN": (
            64,
            images["dcgan"],
            lambda at: play(dcgan, conv, parts["dcgan"], at),
            lambda: ordinary.conv_gan(parts["dcgan"], conv),
        ),
        "U-Net DDPM": (
            64,
            images["unet"],
            lambda at: unet_diffusion.train(unet, parts["unet"], at / "model.pth"),
            lambda: ordinary.unet_ddpm(parts["unet"], unet),
        ),
    }


def training(device: torch.device, quick: bool) -> Iterator[tuple]:
    """Images per second in training: ours against the ordinary way, one epoch each."""
    data = load_dataset("mnist-5k", Path("data")).to(device)
    for name, (size, n, ours, other) in trainings(data).items():
        yield f"{name}, batch {size}", "images trained", n, quietly(ours), other
    # The norm is chosen for its speed. So beside the same network stands one with the usual norm.
    size, n, ours, _ = trainings(data)["U-Net DDPM"]
    unet = unet_diffusion.Config(epochs=1)

    def usual() -> list[float]:
        return ordinary.unet_ddpm(part(data, n), unet, group_norm=True)

    yield f"U-Net DDPM, batch {size}; usual: group norm", "images trained", n, quietly(ours), usual


def limit(device: torch.device, quick: bool) -> Iterator[tuple]:
    """Images per second in training: ours against the products and convolutions of its steps alone."""
    data = load_dataset("mnist-5k", Path("data")).to(device)
    for name, (size, n, ours, _) in trainings(data).items():
        calls = products_of_a_step(name, size, data)

        def alone(calls=calls, count=n // size) -> None:
            for _ in range(count):
                for function, args, kwargs in calls:
                    function(*args, **kwargs)

        yield f"{name}, share of the limit", "images trained", n, quietly(ours), alone


class Products(TorchDispatchMode):
    """Notes the matrix products and convolutions that are computed inside the block, as they are:
    forward, for the weights, and for the inputs where a gradient is asked for, in bfloat16 where the
    training takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.overloadpacket in PRODUCTS:
            self.calls.append((function, args, kwargs))
        return function(*args, **kwargs)


def products_of_a_step(name: str, size: int, data: Dataset) -> list[tuple[Callable, tuple, dict]]:
    """The products of one training step of the network `name`, of batches of `size`: what a second
    batch adds to the first."""
    calls = []
    for batches in (1, 2):
        train = quietly(trainings(data, dict.fromkeys(IMAGES, batches * size))[name][2])
        with Products() as noted:
            train()
        calls.append(noted.calls)
    one, two = calls
    if len(two) <= len(one):
        raise ValueError(f"{len(data.images)} images are no two batches of {size}.")
    return two[: len(two) - len(one)]
