"""The Gaussian forward process and its posterior (Ho, Jain and Abbeel 2020), tables in float64."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from imagelab.runtime import UserError


class Schedule:
    """A noise schedule: tables over t = 0 … T−1, float64, all (T,).

    `beta` is the variance added by step t, `alpha` = 1 − β, `alpha_bar` = Π α up to and with t,
    `alpha_bar_prev` the same before step t (1 at t = 0), `snr` = ᾱ/(1 − ᾱ).
    """

    def __init__(self, beta: torch.Tensor) -> None:
        if not (beta > 0).all() or not (beta < 1).all():
            raise UserError(
                f"Every β must lie between 0 and 1; these reach from {beta.min():.3g} to "
                f"{beta.max():.3g}."
            )
        self.beta = beta.double()
        self.alpha = 1 - self.beta
        self.alpha_bar = self.alpha.cumprod(0)
        self.alpha_bar_prev = F.pad(self.alpha_bar[:-1], (1, 0), value=1.0)
        self.snr = self.alpha_bar / (1 - self.alpha_bar)

    def __len__(self) -> int:
        return len(self.beta)

    def q_sample(self, x0: torch.Tensor, t: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """x_t = √ᾱ_t·x₀ + √(1 − ᾱ_t)·ε (eq. 4), for x0 and eps (B, ...) and t (B,)."""
        alpha_bar = self.alpha_bar.to(t.device)[t].reshape(-1, *[1] * (x0.dim() - 1))
        return alpha_bar.sqrt().float() * x0 + (1 - alpha_bar).sqrt().float() * eps

    def posterior(self, x0: torch.Tensor, x_t: torch.Tensor, t: int) -> tuple[torch.Tensor, float]:
        """Mean (like x_t) and variance of q(x_{t−1} | x_t, x₀) (eq. 6 and 7); variance 0 at t = 0."""
        beta, alpha, alpha_bar, prev = (
            table[t].item()
            for table in (self.beta, self.alpha, self.alpha_bar, self.alpha_bar_prev)
        )
        from_x0 = math.sqrt(prev) * beta / (1 - alpha_bar)
        from_x_t = math.sqrt(alpha) * (1 - prev) / (1 - alpha_bar)
        return from_x0 * x0 + from_x_t * x_t, beta * (1 - prev) / (1 - alpha_bar)


def linear_schedule(
    T: int, beta_start: float = 1e-4, beta_end: float = 0.02, rescaled: bool = False
) -> Schedule:
    """β on a line. `rescaled` multiplies it by 1000/T, which keeps ᾱ_T of T = 1000 with few steps
    (Nichol and Dhariwal 2021, improved-diffusion); raises UserError if a β then reaches 1."""
    beta = torch.linspace(beta_start, beta_end, T, dtype=torch.float64)
    return Schedule(beta * (1000 / T) if rescaled else beta)
