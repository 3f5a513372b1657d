"""Adversarial attacks and the random noise to compare them with.

All are pure functions of images (N, C, H, W) in [0, 1] and labels (N,); they return images in [0, 1]
that lie within ε of the given ones, work in portions so that any N fits, and leave the model's mode
and its parameters' gradients as they found them. With `targeted`, `labels` are the classes to reach
and the loss is lowered instead of raised.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

PORTION = 250  # images at a time: what fits a processor's cache
Norm = Literal["linf", "l2"]


def fgsm(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilon: float,
    targeted: bool = False,
) -> torch.Tensor:
    """The fast gradient sign method: x + ε·sign(∇ₓL) (Goodfellow et al. 2015, section 4)."""
    direction = -1 if targeted else 1
    return (images + direction * epsilon * input_gradient(model, images, labels).sign()).clamp(0, 1)


def pgd(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilon: float,
    rng: torch.Generator,
    steps: int = 40,
    step_size: float | None = None,
    norm: Norm = "linf",
    restarts: int = 1,
    random_start: bool = True,
    targeted: bool = False,
) -> torch.Tensor:
    """Projected gradient descent on the ball of radius ε around each image (Madry et al. 2017).

    `step_size` is 2.5·ε/`steps` unless told. Of several restarts each image keeps its worst: one
    that succeeds if any does, else the one with the loss furthest in the attack's direction.
    """
    if epsilon == 0:
        return images.clone()
    alpha = 2.5 * epsilon / steps if step_size is None else step_size
    direction = -1 if targeted else 1
    done = []
    with in_eval_mode(model):
        for x0, y in zip(images.split(PORTION), labels.split(PORTION), strict=True):
            worst, worst_score = x0, torch.full((len(x0),), -torch.inf, device=x0.device)
            for _ in range(restarts):
                x = x0
                if random_start:
                    x = project(x0 + random_in_ball(x0, epsilon, norm, rng), x0, epsilon, norm)
                for _ in range(steps):
                    gradient = direction * _gradient(model, x, y)
                    x = project(x + alpha * steepest(gradient, norm), x0, epsilon, norm)
                score = attack_score(model, x, y, targeted)
                better = score > worst_score
                worst = torch.where(better[:, None, None, None], x, worst)
                worst_score = torch.maximum(score, worst_score)
            done.append(worst)
    return torch.cat(done)


def sign_noise(images: torch.Tensor, epsilon: float, rng: torch.Generator) -> torch.Tensor:
    """±ε at random in every pixel: as large as FGSM in every norm, without its direction."""
    signs = torch.randint(0, 2, images.shape, generator=rng) * 2 - 1
    return (images + epsilon * signs.to(images.device)).clamp(0, 1)


def gaussian_noise(images: torch.Tensor, epsilon: float, rng: torch.Generator) -> torch.Tensor:
    """Gaussian noise with σ = ε: as large as FGSM in the Euclidean norm, on average.

    It leaves the ball of radius ε in the maximum norm.
    """
    noise = torch.randn(images.shape, generator=rng).to(images.device)
    return (images + epsilon * noise).clamp(0, 1)


# --- the parts ------------------------------------------------------------------------------------


def input_gradient(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """∇ₓ of each image's cross-entropy, like `images`, with the model in eval mode."""
    with in_eval_mode(model):
        portions = zip(images.split(PORTION), labels.split(PORTION), strict=True)
        return torch.cat([_gradient(model, x, y) for x, y in portions])


def _gradient(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x = x.detach().clone(memory_format=torch.channels_last).requires_grad_(True)
    with torch.enable_grad():
        loss = F.cross_entropy(model(x), y, reduction="sum")
    return torch.autograd.grad(loss, x)[0]


def steepest(gradient: torch.Tensor, norm: Norm) -> torch.Tensor:
    """The step of unit length in `norm` along which the loss grows fastest."""
    if norm == "linf":
        return gradient.sign()
    length = gradient.flatten(1).norm(dim=1).clamp(min=1e-12)
    return gradient / length[:, None, None, None]


def project(x: torch.Tensor, x0: torch.Tensor, epsilon: float, norm: Norm) -> torch.Tensor:
    """The point of the ball of radius ε around `x0`, within [0, 1], that lies near `x`."""
    if norm == "linf":
        return torch.minimum(torch.maximum(x, x0 - epsilon), x0 + epsilon).clamp(0, 1)
    change = x - x0
    length = change.flatten(1).norm(dim=1).clamp(min=1e-12)
    # Clipping to [0, 1] moves every pixel towards x0, which lies in it: the ball is not left again.
    return (x0 + change * (epsilon / length).clamp(max=1)[:, None, None, None]).clamp(0, 1)


def random_in_ball(
    x0: torch.Tensor, epsilon: float, norm: Norm, rng: torch.Generator
) -> torch.Tensor:
    """A point drawn uniformly from the ball of radius ε around zero, like `x0`."""
    if norm == "linf":
        return (torch.rand(x0.shape, generator=rng).to(x0.device) * 2 - 1) * epsilon
    direction = torch.randn(x0.shape, generator=rng)
    radius = torch.rand(len(x0), generator=rng) ** (1 / x0[0].numel())
    radius = epsilon * radius / direction.flatten(1).norm(dim=1)
    return (direction * radius[:, None, None, None]).to(x0.device)


@torch.no_grad()
def attack_score(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, targeted: bool
) -> torch.Tensor:
    """How well an attack does, (N,): its loss in the attack's direction, a success above all."""
    logits = model(x)
    loss = F.cross_entropy(logits, y, reduction="none")
    hit = logits.argmax(dim=1) == y
    return torch.where(hit, 1e6 - loss, -loss) if targeted else torch.where(hit, loss, 1e6 + loss)


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """The model in eval mode inside the block, every part as it was after it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
