"""The same networks trained the ordinary way: a Dataset of PIL images with transforms, a DataLoader, an
Adam that is not fused, float32, and the loss as a Python number at every step.

They train on the device on which the data lie. The DataLoader reads from the CPU, as it usually does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

import gan_mnist
import mlp_diffusion
from imagelab.data import datasets
from imagelab.techniques.unet import PixelNorm
from studies import dcgan, unet_diffusion


class Digits(Dataset):
    """As torchvision's MNIST hands out its images: one by one, by way of PIL."""

    def __init__(self, data: datasets.Dataset, signed: bool) -> None:
        from torchvision import transforms

        self.images = data.images[:, 0].cpu().numpy()
        self.labels = data.labels.tolist()
        steps = [transforms.ToTensor()] + [transforms.Normalize((0.5,), (0.5,))] * signed
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(np.asarray(self.images[index]))), self.labels[index]


def batches(data: datasets.Dataset, size: int, signed: bool = True) -> DataLoader:
    return DataLoader(Digits(data, signed), batch_size=size, shuffle=True, drop_last=True)


def in_float32(train: Callable) -> Callable:
    """`train` in float32, also where a network of ours would take bfloat16 by itself."""

    @wraps(train)
    def run(*args, **kwargs):
        with mock.patch("imagelab.setup.runtime.has_fast_bfloat16", lambda _device: False):
            return train(*args, **kwargs)

    return run


Layers = Callable[[torch.Tensor], torch.Tensor]


def play(
    data: datasets.Dataset,
    G: nn.Module,
    D: nn.Module,
    generate: Layers,
    logits: Layers,
    size: int,
    lr: float,
) -> list[float]:
    """One epoch of a GAN: the discriminator on real and on generated images, then the generator."""
    adam_g = torch.optim.Adam(G.parameters(), lr=lr, betas=(0.5, 0.999))
    adam_d = torch.optim.Adam(D.parameters(), lr=lr, betas=(0.5, 0.999))
    loss_of, losses, device = nn.BCELoss(), [], data.images.device
    for real, _ in batches(data, size):
        real = real.to(device)
        ones, zeros = torch.ones(size, device=device), torch.zeros(size, device=device)
        fake = generate(torch.randn(size, 100, device=device))
        adam_d.zero_grad()
        d_loss = (
            loss_of(logits(real).sigmoid(), ones) + loss_of(logits(fake.detach()).sigmoid(), zeros)
        ) / 2
        d_loss.backward()
        adam_d.step()
        adam_g.zero_grad()
        g_loss = loss_of(logits(fake).sigmoid(), ones)
        g_loss.backward()
        adam_g.step()
        losses += [d_loss.item(), g_loss.item()]
    return losses


@in_float32
def mlp_gan(data: datasets.Dataset, config: gan_mnist.Config) -> list[float]:
    G, D = gan_mnist.build(config, data.shape, data.images.device)
    return play(data, G, D, G, D.logits, config.batch_size, config.lr)


def conv_gan(data: datasets.Dataset, config: dcgan.Config) -> list[float]:
    """The layers of dcgan.py without what its networks do for speed: channels_last, autocast."""
    G, D = dcgan.build(config, data.shape, data.images.device)
    for network in (G, D):
        network.to(memory_format=torch.contiguous_format)

    def generate(z: torch.Tensor) -> torch.Tensor:
        return G.grow(G.dense(z).reshape(-1, *G.start))

    def logits(x: torch.Tensor) -> torch.Tensor:
        return D.layers(x).squeeze(1)

    return play(data, G, D, generate, logits, config.batch_size, config.lr)


@in_float32
def mlp_ddpm(data: datasets.Dataset, config: mlp_diffusion.Config) -> list[float]:
    device = data.images.device
    model = mlp_diffusion.build(vars(config), data.shape).to(device)
    weight = mlp_diffusion.weight_on_x0(model.schedule, model.recipe.weight).to(device)
    adam, losses = torch.optim.Adam(model.parameters(), lr=config.lr), []
    rng = torch.Generator(device).manual_seed(config.seed)
    for x0, _ in batches(data, config.batch_size):
        x0 = x0.to(device).flatten(1)
        loss = mlp_diffusion.denoising_loss(model, x0, weight, config.dimmed, rng)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return losses


def small_cnn(classes: int) -> nn.Sequential:
    """The classifier's layers as they are usually written: ReLU before the pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, classes),
    )  # fmt: skip


def classifier(data: datasets.Dataset, size: int, lr: float) -> list[float]:
    device = data.images.device
    model = small_cnn(len(data.classes)).to(device)
    adam, losses = torch.optim.Adam(model.parameters(), lr=lr), []
    for images, labels in batches(data, size, signed=False):
        loss = F.cross_entropy(model(images.to(device)), labels.to(device))
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return losses


def with_group_norm(network: nn.Module) -> nn.Module:
    """The network with the norm of most U-Nets, over 8 groups of channels, in place of our PixelNorm."""
    for module in list(network.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, PixelNorm):
                setattr(module, name, nn.GroupNorm(8, *part.norm.normalized_shape))
    return network


@in_float32
def unet_ddpm(
    data: datasets.Dataset, config: unet_diffusion.Config, group_norm: bool = False
) -> list[float]:
    device = data.images.device
    model = unet_diffusion.build(vars(config), data.shape, classes=len(data.classes))
    network = with_group_norm(model.network) if group_norm else model.network
    network.to(device)
    alpha_bar = model.schedule.alpha_bar.to(device)
    adam, losses = torch.optim.Adam(model.network.parameters(), lr=config.lr), []
    for x0, labels in batches(data, config.batch_size):
        x0, labels, n = x0.to(device), labels.to(device), len(x0)
        t, eps = torch.randint(0, config.T, (n,), device=device), torch.randn_like(x0)
        dropped = torch.rand(n, device=device) < config.drop_class
        labels = torch.where(dropped, len(data.classes), labels)
        at = (slice(None), None, None, None)
        a, b = (
            alpha_bar[t].sqrt().float()[at],
            (1 - alpha_bar[t]).sqrt().float()[at],
        )
        answer = model.network(a * x0 + b * eps, t / config.T, label=labels)
        loss = F.mse_loss(answer, a * eps - b * x0)
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.network.parameters(), 1.0)
        adam.step()
        losses.append(loss.item())
    return losses
