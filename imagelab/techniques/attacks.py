"""PGD, the random noise to compare it with, and what attacks are made of: gradients, steps and balls.

fgsm.py has the attack of one step, strong_attacks.py those to test a defence with.

All are pure functions of images (N, C, H, W) in [0, 1] and labels (N,). They return images in [0, 1];
those of attacks and of random signs lie within ε of the given ones. They work in batches, so that any N
fits in memory, and leave the model's mode and its parameters' gradients unchanged. With `targeted`,
`labels` are the classes to reach, and the loss is lowered instead of raised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from imagelab.setup.runtime import autocast, in_eval_mode
from imagelab.setup.terminal import progress

BATCH = 250  # images at a time: these fit into a processor's cache
SUCCESS = 1e6  # added to the score of an attack that succeeds: more than any loss
Norm = Literal["linf", "l2"]


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
    start: torch.Tensor | None = None,
    targeted: bool = False,
) -> torch.Tensor:
    """Projected gradient descent on the ball of radius ε around each image (Madry et al. 2017).

    `step_size` is 2.5·ε/`steps` unless given. The attack starts at random points of the ball, or at the
    images `start`. An image that fools the model is not attacked again by further restarts. The others
    keep the result with the largest loss (with `targeted` the smallest).
    """
    if epsilon == 0:
        return images.clone()
    alpha = 2.5 * epsilon / steps if step_size is None else step_size
    direction = -1 if targeted else 1

    def once(x0: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if start is None:
            x = x + random_in_ball(x, epsilon, norm, rng)
        x = project(x, x0, epsilon, norm)
        for _ in progress(range(steps), "attack", "step"):
            gradient = direction * _gradient(model, x, y)
            x = project(x + alpha * steepest_ascent(gradient, norm), x0, epsilon, norm)
        return x

    starts = images if start is None else start
    return best_of_restarts(once, model, images, labels, starts, restarts, targeted)


def random_signs(shape: tuple[int, ...], rng: torch.Generator, device) -> torch.Tensor:
    return (torch.randint(0, 2, shape, generator=rng, device=rng.device) * 2 - 1).to(device)


def best_of_restarts(
    once: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    starts: torch.Tensor,
    restarts: int,
    targeted: bool = False,
) -> torch.Tensor:
    """The best result of `restarts` calls of `once(x0, y, start)`, in batches.

    An image that fools the model is left out of further calls. The others keep the result with the
    largest `attack_score`.
    """
    attacked = []
    with in_eval_mode(model):
        for x0, y, x_start in zip(*(t.split(BATCH) for t in (images, labels, starts)), strict=True):
            worst, score = x0.clone(), torch.full((len(x0),), -torch.inf, device=x0.device)
            rows = torch.arange(len(x0), device=x0.device)  # the images still to attack
            for left in reversed(range(restarts)):
                x = once(x0[rows], y[rows], x_start[rows])
                new_score = attack_score(model, x, y[rows], targeted)
                better = new_score > score[rows]
                worst[rows] = x.where(better[:, None, None, None], worst[rows])
                score[rows] = new_score.where(better, score[rows])
                if left:  # else nobody asks which these are, and the program waits for no GPU
                    rows = rows[score[rows] < SUCCESS / 2]
                    if not len(rows):
                        break
            attacked.append(worst)
    return torch.cat(attacked)


def pgd_accuracies(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilons: list[float],
    rng: torch.Generator,
    target: int | None = None,
    **attack: Any,
) -> list[float]:
    """Accuracy under PGD at each of the rising `epsilons`; `attack` are settings of `pgd`.

    An image that fools the model within ε fools it within any larger ball. So only images that are still
    read correctly are attacked again. With a `target` class the attack drives them there; the accuracy
    still counts those read as their own label.
    """
    aim = labels if target is None else torch.full_like(labels, target)
    correct, accuracies = torch.ones_like(labels, dtype=torch.bool), []
    for epsilon in epsilons:
        rows = correct.nonzero().flatten()
        changed = pgd(
            model, images[rows], aim[rows], epsilon, rng, targeted=target is not None, **attack
        )
        with torch.no_grad(), in_eval_mode(model):
            for part, x in zip(rows.split(BATCH), changed.split(BATCH), strict=True):
                correct[part] = model(x).argmax(dim=1) == labels[part]
        accuracies.append(correct.float().mean().item())
    return accuracies


def sign_noise(images: torch.Tensor, epsilon: float, rng: torch.Generator) -> torch.Tensor:
    """+ε or −ε at random in every pixel: the size of FGSM's change, without its direction."""
    signs = random_signs(tuple(images.shape), rng, images.device)
    return (images + epsilon * signs).clamp(0, 1)


def gaussian_noise(images: torch.Tensor, epsilon: float, rng: torch.Generator) -> torch.Tensor:
    """Gaussian noise with σ = ε: on average the size of FGSM's change in the Euclidean norm.

    In the maximum norm it leaves the ball of radius ε.
    """
    noise = torch.randn(images.shape, generator=rng, device=rng.device).to(images.device)
    return (images + epsilon * noise).clamp(0, 1)


def gaussian_noise_like(
    changed: torch.Tensor, images: torch.Tensor, rng: torch.Generator
) -> torch.Tensor:
    """Gaussian noise that changes each image as much as `changed` does, in the Euclidean norm.

    Both are compared after clipping to [0, 1]. Bisection finds the σ of each image.
    """
    noise = torch.randn(images.shape, generator=rng, device=rng.device).to(images.device)
    target = (changed - images).flatten(1).norm(dim=1)
    low, high = torch.zeros_like(target), torch.full_like(target, 10.0)
    for _ in range(25):
        sigma = (low + high) / 2
        noisy = (images + sigma[:, None, None, None] * noise).clamp(0, 1)
        too_small = (noisy - images).flatten(1).norm(dim=1) < target
        low, high = torch.where(too_small, sigma, low), torch.where(too_small, high, sigma)
    return (images + low[:, None, None, None] * noise).clamp(0, 1)


# --- gradients, steps and balls -------------------------------------------------------------------


def input_gradient(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """∇ₓ of each image's cross-entropy, like `images`, with the model in eval mode."""
    with in_eval_mode(model):
        batches = zip(images.split(BATCH), labels.split(BATCH), strict=True)
        return torch.cat([_gradient(model, x, y) for x, y in batches])


def _gradient(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x = x.detach().clone(memory_format=torch.channels_last).requires_grad_(True)
    with torch.enable_grad(), autocast(x.device):
        loss = F.cross_entropy(model(x), y, reduction="sum")
    return torch.autograd.grad(loss, x)[0]


def steepest_ascent(gradient: torch.Tensor, norm: Norm) -> torch.Tensor:
    """The step of unit length in `norm` along which the loss grows fastest."""
    if norm == "linf":
        return gradient.sign()
    # Scaled first: a confident network's gradients are so small that float32 cannot hold their squares.
    largest = gradient.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-38)
    gradient = gradient / largest
    return gradient / gradient.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]


def project(x: torch.Tensor, x0: torch.Tensor, epsilon: float, norm: Norm) -> torch.Tensor:
    """The point nearest to `x` that is in the ball around `x0` and in [0, 1], in Euclidean distance.

    For "l2" it is clip(x0 + s·(x − x0)) with the largest s ≤ 1 for which it is in the ball. Pixels that
    reach the end of the range stop there, so that more of ε is left for the others.
    """
    if norm == "linf":
        return torch.minimum(torch.maximum(x, x0 - epsilon), x0 + epsilon).clamp(0, 1)
    change = (x - x0).flatten(1)
    room = torch.where(change > 0, 1 - x0.flatten(1), x0.flatten(1))  # how far each pixel can go
    stopped = torch.zeros_like(change, dtype=torch.bool)
    while True:  # s grows in every round: fewer pixels share ε
        spent = (room * stopped).square().sum(dim=1)
        shared = (change * ~stopped).square().sum(dim=1)
        s = ((epsilon**2 - spent).clamp(min=0) / shared.clamp(min=1e-24)).sqrt().clamp(max=1)
        stopping = (s[:, None] * change.abs() > room) & ~stopped
        if not stopping.any():
            return (x0 + (s[:, None] * change).view_as(x0)).clamp(0, 1)
        stopped |= stopping


def random_in_ball(
    x0: torch.Tensor, epsilon: float, norm: Norm, rng: torch.Generator
) -> torch.Tensor:
    """A point drawn uniformly from the ball of radius ε around zero, like `x0`."""
    if norm == "linf":
        return (
            torch.rand(x0.shape, generator=rng, device=rng.device).to(x0.device) * 2 - 1
        ) * epsilon
    direction = torch.randn(x0.shape, generator=rng, device=rng.device)
    radius = torch.rand(len(x0), generator=rng, device=rng.device) ** (1 / x0[0].numel())
    radius = epsilon * radius / direction.flatten(1).norm(dim=1)
    return (direction * radius[:, None, None, None]).to(x0.device)


@torch.no_grad()
def attack_score(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, targeted: bool
) -> torch.Tensor:
    """How well an attack does, (N,): its loss, with `targeted` minus its loss; success adds SUCCESS."""
    logits = model(x)
    loss = F.cross_entropy(logits, y, reduction="none")
    equal = logits.argmax(dim=1) == y
    success, loss = (equal, -loss) if targeted else (~equal, loss)
    return torch.where(success, SUCCESS + loss, loss)
