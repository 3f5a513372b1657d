"""Adversarial attacks beyond fgsm.py's, and the random noise to compare them with.

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
RHO = 0.75  # APGD: the share of steps of a window that must raise the loss
Norm = Literal["linf", "l2"]
Loss = Literal["ce", "dlr"]


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
    return _best_of_restarts(once, model, images, labels, starts, restarts, targeted)


def apgd(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilon: float,
    rng: torch.Generator,
    loss: Loss = "ce",
    steps: int = 100,
    norm: Norm = "linf",
    restarts: int = 1,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """Auto-PGD: PGD with momentum that chooses its step size itself (Croce and Hein 2020, algorithm 1).

    It raises the cross-entropy ("ce") or the difference of logits ratio ("dlr"), which takes three
    classes or more. An image that fools the model is not attacked again by further restarts.
    """
    if epsilon == 0:
        return images.clone()

    def once(x0: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if start is None:
            x = x + random_in_ball(x, epsilon, norm, rng)
        return _apgd_once(model, x0, y, project(x, x0, epsilon, norm), epsilon, loss, steps, norm)

    starts = images if start is None else start
    return _best_of_restarts(once, model, images, labels, starts, restarts)


def _apgd_once(
    model: nn.Module,
    x0: torch.Tensor,
    y: torch.Tensor,
    x: torch.Tensor,
    epsilon: float,
    loss: Loss,
    steps: int,
    norm: Norm,
) -> torch.Tensor:
    """APGD from `x`: for each image a point that fools the model, else the one of the largest loss."""
    height, gradient, fooled = _loss_and_gradient(
        model, x, y, loss
    )  # the loss is a height to climb
    result, previous = x.clone(), x
    top, top_height, top_gradient = x.clone(), height.clone(), gradient.clone()
    step_size = torch.full_like(x[:, :1, :1, :1], 2 * epsilon)
    any_fooled, rises = fooled.clone(), torch.zeros_like(height)
    halved, last_top = torch.ones_like(fooled), height.clone()
    windows = dict(apgd_checkpoints(steps))
    for k in progress(range(1, steps + 1), "attack", "step"):
        z = project(x + step_size * steepest_ascent(gradient, norm), x0, epsilon, norm)
        alpha = 0.75 if k > 1 else 1.0
        z = project(x + alpha * (z - x) + (1 - alpha) * (x - previous), x0, epsilon, norm)
        previous, x, before = x, z, height
        height, gradient, fooled = _loss_and_gradient(model, x, y, loss)
        result[fooled], any_fooled = x[fooled], any_fooled | fooled
        if any_fooled.all():
            break
        rises += height > before
        higher = height > top_height
        top[higher], top_height[higher], top_gradient[higher] = (
            t[higher] for t in (x, height, gradient)
        )
        if k in windows:
            # Too few steps went up, or the top is that of the last checkpoint at the same step size.
            stuck = (rises <= RHO * windows[k]) | (~halved & (top_height <= last_top))
            step_size[stuck] /= 2
            x, gradient = x.clone(), gradient.clone()
            x[stuck], gradient[stuck] = top[stuck], top_gradient[stuck]
            halved, last_top, rises = stuck, top_height.clone(), torch.zeros_like(height)
    return torch.where(any_fooled[:, None, None, None], result, top)


def apgd_checkpoints(steps: int) -> list[tuple[int, int]]:
    """The steps after which APGD checks its step size, each with the steps since the last check.

    The first check comes after 22 % of the steps; the next intervals are 3 % shorter each, but at least
    6 % (Croce and Hein 2020, section 3.2).
    """
    interval, checkpoints, k = max(int(0.22 * steps), 1), [], 0
    while k + interval <= steps:
        k += interval
        checkpoints.append((k, interval))
        interval = max(interval - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return checkpoints


def dlr_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The difference of logits ratio, (N,): −(z_y − max_{i≠y} z_i) / (z_π1 − z_π3), π1, π2, ... sorted.

    Logits z (N, classes) with three classes or more, labels y (N,). Shifting or scaling the logits does
    not change it, so a confident network cannot hide its gradient (Croce and Hein 2020, equation 6).
    """
    ordered = logits.sort(dim=1, descending=True).values
    own = logits.gather(1, labels[:, None])[:, 0]
    other = torch.where(logits.argmax(dim=1) == labels, ordered[:, 1], ordered[:, 0])
    return -(own - other) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


def square_attack(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilon: float,
    rng: torch.Generator,
    queries: int = 5000,
    p: float = 0.8,
) -> torch.Tensor:
    """Random search with squares, without gradients (Andriushchenko et al. 2020, algorithms 1 and 2).

    Each query sets a random square of each image to x ± ε, one sign per channel. The square stays if it
    lowers the margin z_y − max_{i≠y} z_i. `p` is the share of pixels in the first squares.
    """
    if epsilon == 0:
        return images.clone()
    attacked = []
    with torch.no_grad(), in_eval_mode(model):
        for x0, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            n, c, h, w = x0.shape
            best = (x0 + epsilon * _random_signs((n, c, 1, w), rng, x0.device)).clamp(0, 1)
            margin = _margin(model(best), y)
            for k in progress(range(queries - 1), "attack", "query"):
                rows = (margin > 0).nonzero().flatten()  # the images still to attack
                if not len(rows):
                    break
                side = max(round((square_share(k / queries, p) * h * w) ** 0.5), 1)
                mask = _random_squares(len(rows), h, w, min(side, h, w), rng).to(x0.device)
                signs = _random_signs((len(rows), c, 1, 1), rng, x0.device)
                new = torch.where(mask, (x0[rows] + epsilon * signs).clamp(0, 1), best[rows])
                new_margin = _margin(model(new), y[rows])
                lower = new_margin < margin[rows]
                best[rows[lower]], margin[rows[lower]] = new[lower], new_margin[lower]
            attacked.append(best)
    return torch.cat(attacked)


def square_share(done: float, p: float = 0.8) -> float:
    """The share of pixels in a square after the share `done` of the queries: `p`, halved nine times."""
    halvings = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
    return p / 2 ** sum(done > at for at in halvings)


def _margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """z_y − max_{i≠y} z_i, (N,): negative where the model is fooled."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return own[:, 0] - others.amax(dim=1)


def _random_signs(shape: tuple[int, ...], rng: torch.Generator, device) -> torch.Tensor:
    return (torch.randint(0, 2, shape, generator=rng, device=rng.device) * 2 - 1).to(device)


def _random_squares(n: int, h: int, w: int, side: int, rng: torch.Generator) -> torch.Tensor:
    """Masks (n, 1, h, w) of one square with `side` pixels each, at a random place inside the image."""
    top = torch.randint(0, h - side + 1, (n, 1), generator=rng, device=rng.device)
    left = torch.randint(0, w - side + 1, (n, 1), generator=rng, device=rng.device)
    y, x = torch.arange(h, device=rng.device), torch.arange(w, device=rng.device)
    rows, columns = (y >= top) & (y < top + side), (x >= left) & (x < left + side)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _best_of_restarts(
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
    signs = _random_signs(tuple(images.shape), rng, images.device)
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


def _loss_and_gradient(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, kind: Loss
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss of each image (N,), its gradient (N, C, H, W), and whether the model is fooled (N,).

    In float32: bfloat16 would not resolve whether a step raised the loss.
    """
    x = x.detach().clone(memory_format=torch.channels_last).requires_grad_(True)
    with torch.enable_grad():
        logits = model(x)
        cross_entropy = kind == "ce"
        loss = (
            F.cross_entropy(logits, y, reduction="none") if cross_entropy else dlr_loss(logits, y)
        )
    gradient = torch.autograd.grad(loss.sum(), x)[0]
    return loss.detach(), gradient, logits.argmax(dim=1) != y


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
