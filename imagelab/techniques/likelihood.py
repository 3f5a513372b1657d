"""The variational bound of a diffusion model: how likely it finds given images.

A DDPM is trained on the terms of this bound, with other weights (Ho et al. 2020, eq. 5):

    −log p(x₀) ≤ L_T + L_{T−1} + … + L_1 + L_0

    L_T   KL(q(x_T|x₀) ‖ N(0, I)), the prior term: what is left of the image in x_T
    L_t   KL(q(x_t|x_{t+1}, x₀) ‖ p(x_t|x_{t+1})): the true posterior against the network's step
    L_0   −log p(x₀|x_1), the reconstruction: the last step as probabilities of the 256 grey levels

The terms are means over x_t, which are estimated with one draw of noise for each image and each t.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from imagelab.setup.terminal import progress
from imagelab.techniques.diffusion import Schedule

Variance = Literal["posterior", "beta"]
FAR = 1e3  # stands for infinity, whose gradients would not be numbers
OfImages = Callable[
    [torch.Tensor, torch.Tensor], torch.Tensor
]  # x_t (B, ...) and t (B,) to (B, ...)


@dataclass(frozen=True)
class Bound:
    """The bound of N images of `dimensions` numbers each, in nats per image."""

    prior: float
    """L_T, the mean over the images."""
    terms: torch.Tensor
    """(T,) float64: the reconstruction L_0 at index 0, then L_1 … L_{T−1}; means over the images."""
    per_image: torch.Tensor
    """(N,) float64: the whole bound of each image, with the prior."""
    dimensions: int

    @property
    def reconstruction(self) -> float:
        """L_0."""
        return self.terms[0].item()

    @property
    def steps(self) -> float:
        """L_1 + … + L_{T−1}."""
        return self.terms[1:].sum().item()

    @property
    def total(self) -> float:
        """The mean bound on −log p(x₀), in nats per image."""
        return self.prior + self.terms.sum().item()

    @property
    def bits_per_dimension(self) -> float:
        """The same in bits per number of the image, as papers state it."""
        return self.total / (self.dimensions * math.log(2))

    def parts(self) -> dict[str, float]:
        """The three parts in nats per image, and their sum in both units, by their names."""
        return {
            "prior": self.prior,
            "steps": self.steps,
            "reconstruction": self.reconstruction,
            "nats per image": self.total,
            "bits per dimension": self.bits_per_dimension,
        }

    @property
    def standard_error(self) -> float:
        """Of `total`, over the images."""
        return (self.per_image.std() / math.sqrt(len(self.per_image))).item()


@torch.no_grad()
def variational_bound(
    predict_x0: OfImages,
    schedule: Schedule,
    x0: torch.Tensor,
    rng: torch.Generator,
    variance: Variance | torch.Tensor | OfImages = "posterior",
    portion: int = 1000,
) -> Bound:
    """The bound for images x0 (N, ...) in [-1, 1] of 256 grey levels.

    `predict_x0` takes x_t (B, ...) and t (B,) and returns x̂₀ (B, ...) as sampling uses it (clipped, if
    it is clipped there), for at most `portion` images at a time. `variance` is that of the sampler's
    steps: the posterior's β̃, or β, or a table (T,), or what a function like `predict_x0` returns (a
    learned variance). Noise comes from `rng`.
    """
    variance_of = variance if callable(variance) else fixed_variance(schedule, variance)
    prior, terms = prior_term(schedule, x0), []
    for step in progress(range(len(schedule)), "likelihood", "step"):
        eps = torch.randn(x0.shape, generator=rng, device=rng.device).to(x0.device)
        term = []
        for x, own_eps in zip(x0.split(portion), eps.split(portion), strict=True):
            t = torch.full((len(x),), step, device=x.device)
            x_t = schedule.q_sample(x, t, own_eps)
            x0_hat, var = predict_x0(x_t, t).double(), variance_of(x_t, t).double()
            if step == 0:
                pixels = -discretised_gaussian(x.double(), x0_hat, var.sqrt())
            else:
                pixels = step_kl(schedule, t, x.double(), x0_hat, var)
            term.append(pixels.flatten(1).sum(dim=1).cpu())
        terms.append(torch.cat(term))
    all_terms = torch.stack(terms)  # (T, N)
    per_image = prior + all_terms.sum(dim=0)
    return Bound(prior.mean().item(), all_terms.mean(dim=1), per_image, x0[0].numel())


def prior_term(schedule: Schedule, x0: torch.Tensor) -> torch.Tensor:
    """L_T = KL(N(√ᾱ_T·x₀, 1 − ᾱ_T) ‖ N(0, 1)), summed over each image of x0 (N, ...): (N,), nats."""
    alpha_bar = schedule.alpha_bar[-1].item()
    signal = alpha_bar * x0.double().square() - alpha_bar
    return (0.5 * (signal - math.log(1 - alpha_bar))).flatten(1).sum(dim=1).cpu()


def step_variances(schedule: Schedule, variance: Variance) -> torch.Tensor:
    """The variance of p(x_{t−1}|x_t) at every t, (T,) float64.

    β̃_0 is 0, which is no decoder: at t = 0 it is β̃_1, for both choices (as in improved-diffusion).
    """
    posterior = schedule.beta * (1 - schedule.alpha_bar_prev) / (1 - schedule.alpha_bar)
    chosen = (posterior if variance == "posterior" else schedule.beta).clone()
    chosen[0] = posterior[1] if len(schedule) > 1 else schedule.beta[0]
    return chosen


def fixed_variance(schedule: Schedule, variance: Variance | torch.Tensor) -> OfImages:
    """`step_variances`, or a table (T,), as a function of x_t (B, ...) and t (B,)."""
    table = step_variances(schedule, variance) if isinstance(variance, str) else variance
    return lambda x_t, t: at(table, t, x_t)


@torch.no_grad()
def fitted_variances(
    predict_x0: OfImages, schedule: Schedule, x0: torch.Tensor, rng: torch.Generator
) -> torch.Tensor:
    """The variances (T,) that give the images x0 (N, ...) the best bound (Bao et al. 2022).

    The best variance is β̃_t plus the mean squared error of the step's mean: β̃_t·(1 + 2·L_t/D). In the
    last step, t = 0, the mean is x̂₀ itself.
    """
    bound = variational_bound(predict_x0, schedule, x0, rng)
    variances = step_variances(schedule, "posterior") * (1 + 2 * bound.terms / bound.dimensions)
    eps = torch.randn(x0.shape, generator=rng, device=rng.device).to(x0.device)
    t = torch.zeros(len(x0), dtype=torch.long, device=x0.device)
    x0_hat = predict_x0(schedule.q_sample(x0, t, eps), t)
    variances[0] = (x0_hat - x0).square().mean().item()
    return variances


def at(table: torch.Tensor, t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The entries of `table` (T,) at t (B,), in a shape that multiplies `like` (B, ...)."""
    return table.to(t.device, non_blocking=True)[t].reshape(-1, *[1] * (like.dim() - 1))


def step_kl(
    schedule: Schedule,
    t: torch.Tensor,
    x0: torch.Tensor,
    x0_hat: torch.Tensor,
    variance: torch.Tensor,
) -> torch.Tensor:
    """KL(N(μ̃(x_t, x₀), β̃_t) ‖ N(μ̃(x_t, x̂₀), variance)) for every pixel, like x0 (B, ...); t (B,) ≥ 1.

    Both means have the same share of x_t (Ho et al. eq. 7). So they differ by x₀ − x̂₀ times a factor.
    """
    factor = schedule.alpha_bar_prev.sqrt() * schedule.beta / (1 - schedule.alpha_bar)
    posterior = at(step_variances(schedule, "posterior"), t, x0)
    difference = at(factor, t, x0) * (x0 - x0_hat)
    apart = difference.square() / variance
    return 0.5 * ((variance / posterior).log() + posterior / variance - 1 + apart)


def discretised_gaussian(x0: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """log p of the grey levels x0 in [-1, 1] under N(mean, std²), for every pixel (Ho et al. eq. 13).

    p is the probability of the bin of width 2/255 around the grey level. The bins of black and white
    reach to −∞ and ∞, so that the 256 probabilities add up to 1.
    """
    level = ((x0 + 1) * 127.5).round()
    lower = torch.where(level > 0, (level - 0.5) / 127.5 - 1, -FAR)
    upper = torch.where(level < 255, (level + 0.5) / 127.5 - 1, FAR)
    a, b = (lower - mean) / std, (upper - mean) / std
    mirrored = a + b > 0  # Φ is accurate far below 0; Φ(b) − Φ(a) = Φ(−a) − Φ(−b)
    a, b = torch.where(mirrored, -b, a), torch.where(mirrored, -a, b)
    log_a, log_b = torch.special.log_ndtr(a), torch.special.log_ndtr(b)
    return log_b + torch.log1p(-(log_a - log_b).exp())
