"""Attacks to test a defence with: Auto-PGD chooses its step size itself, Square needs no gradient.

Like those of attacks.py they are pure functions of images (N, C, H, W) in [0, 1] and labels (N,). They
return images in [0, 1] within ε of the given ones, work in batches, and leave the model as it was.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from imagelab.setup.runtime import in_eval_mode
from imagelab.setup.terminal import progress
from imagelab.techniques import attacks
from imagelab.techniques.attacks import (
    Norm,
    best_of_restarts,
    project,
    random_in_ball,
    random_signs,
    steepest_ascent,
)

RHO = 0.75  # APGD: the share of steps of a window that must raise the loss
Loss = Literal["ce", "dlr"]


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
    return best_of_restarts(once, model, images, labels, starts, restarts)


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
    height, gradient, fooled = _loss_and_gradient(model, x, y, loss)  # the loss: a height to climb
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
        for x0, y in zip(images.split(attacks.BATCH), labels.split(attacks.BATCH), strict=True):
            n, c, h, w = x0.shape
            best = (x0 + epsilon * random_signs((n, c, 1, w), rng, x0.device)).clamp(0, 1)
            margin = _margin(model(best), y)
            for k in progress(range(queries - 1), "attack", "query"):
                rows = (margin > 0).nonzero().flatten()  # the images still to attack
                if not len(rows):
                    break
                side = max(round((square_share(k / queries, p) * h * w) ** 0.5), 1)
                mask = _random_squares(len(rows), h, w, min(side, h, w), rng).to(x0.device)
                signs = random_signs((len(rows), c, 1, 1), rng, x0.device)
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


def _random_squares(n: int, h: int, w: int, side: int, rng: torch.Generator) -> torch.Tensor:
    """Masks (n, 1, h, w) of one square with `side` pixels each, at a random place inside the image."""
    top = torch.randint(0, h - side + 1, (n, 1), generator=rng, device=rng.device)
    left = torch.randint(0, w - side + 1, (n, 1), generator=rng, device=rng.device)
    y, x = torch.arange(h, device=rng.device), torch.arange(w, device=rng.device)
    rows, columns = (y >= top) & (y < top + side), (x >= left) & (x < left + side)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


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
