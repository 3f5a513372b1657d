"""Gaussian diffusion: schedules, the forward process, its posterior, and the samplers.

Tables are float64. Papers: Ho et al. 2020 (DDPM), Nichol and Dhariwal 2021 (cosine schedule, rescaled
betas), Song et al. 2020 (DDIM), Lu et al. 2022 (DPM-Solver++), Lin et al. 2023 (zero terminal SNR).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F

from imagelab.setup.runtime import UserError
from imagelab.setup.terminal import progress

Estimate = Callable[[torch.Tensor, int], torch.Tensor]  # x_t (B, ...) and t to x̂₀ (B, ...)
Noise = Callable[[], torch.Tensor]  # standard normal numbers, shaped like x
States = Iterator[tuple[int, torch.Tensor]]  # (steps of noise that are left, x)
Prediction = Literal["eps", "x0", "v"]
Sampler = Literal["ddpm", "ddim", "dpm-solver"]
ScheduleName = Literal["cosine", "linear", "zero-terminal-snr"]


class Schedule:
    """A noise schedule: tables over t = 0 … T−1, float64, all (T,).

    `beta` is the variance of the noise that step t adds. `alpha` is 1 − β. `alpha_bar` is the product of
    all α from 0 to t. `alpha_bar_prev` is that product before step t (1 at t = 0). `snr` is ᾱ/(1 − ᾱ).
    Only the last β may be 1: then x_T is pure noise.
    """

    def __init__(self, beta: torch.Tensor) -> None:
        if not (beta > 0).all() or not (beta[:-1] < 1).all() or beta[-1] > 1:
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

    def until(self, sigma: float) -> Schedule:
        """The first steps only, up to the one whose noise on an image is nearest to `sigma`.

        x_t/√ᾱ is an image with noise of σ = √((1 − ᾱ)/ᾱ). So an image with noise of a known σ can enter
        the reverse process there.
        """
        level = ((1 - self.alpha_bar) / self.alpha_bar).sqrt()
        t = int((level.log() - math.log(sigma)).abs().argmin())
        return Schedule(self.beta[: t + 1])

    def signal_and_noise(
        self, t: torch.Tensor, like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """√ᾱ_t and √(1 − ᾱ_t) for t (B,), float32, in a shape that multiplies `like` (B, ...)."""
        alpha_bar = self.alpha_bar.to(t.device, non_blocking=True)[t].reshape(
            -1, *[1] * (like.dim() - 1)
        )
        return alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()

    def q_sample(self, x0: torch.Tensor, t: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """x_t = √ᾱ_t·x₀ + √(1 − ᾱ_t)·ε (eq. 4), for x0 and eps (B, ...) and t (B,)."""
        signal, noise = self.signal_and_noise(t, x0)
        return signal * x0 + noise * eps

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
    beta = beta * (1000 / T) if rescaled else beta
    if beta.max() >= 1:
        raise UserError(
            f"Every β must lie between 0 and 1; with T = {T} they reach {beta.max():.3g}."
        )
    return Schedule(beta)


def cosine_schedule(T: int, s: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """ᾱ_t = cos²((t/T + s)/(1 + s)·π/2) (Nichol and Dhariwal 2021, eq. 17), β at most `max_beta`."""
    t = torch.arange(T + 1, dtype=torch.float64) / T
    alpha_bar = ((t + s) / (1 + s) * math.pi / 2).cos().square()
    return Schedule((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta))


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """`schedule` with √ᾱ shifted and scaled so that its last one is 0 (Lin et al. 2023, alg. 1).

    Sampling from it needs a network that predicts x₀ or v: at t = T−1 ε says nothing about x₀.
    """
    a = schedule.alpha_bar.sqrt()
    alpha_bar = ((a - a[-1]) * a[0] / (a[0] - a[-1])).square()
    return Schedule(1 - alpha_bar / F.pad(alpha_bar[:-1], (1, 0), value=1.0))


def make_schedule(kind: ScheduleName, T: int) -> Schedule:
    """The schedule of that name; the linear one's betas are those of T = 1000, scaled to this T."""
    if kind == "cosine":
        return cosine_schedule(T)
    linear = linear_schedule(T, rescaled=True)
    return linear if kind == "linear" else zero_terminal_snr(linear)


# --- what a network can predict -------------------------------------------------------------------


def target(
    schedule: Schedule, kind: Prediction, x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor
) -> torch.Tensor:
    """What the network learns to estimate: ε, x₀, or v = √ᾱ·ε − √(1 − ᾱ)·x₀ (Salimans and Ho 2022)."""
    if kind == "eps":
        return eps
    if kind == "x0":
        return x0
    signal, noise = schedule.signal_and_noise(t, x0)
    return signal * eps - noise * x0


def to_x0(
    schedule: Schedule, kind: Prediction, out: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor
) -> torch.Tensor:
    """x̂₀ from the network's output `out` for x_t."""
    if kind == "x0":
        return out
    signal, noise = schedule.signal_and_noise(t, x_t)
    if kind == "v":
        return signal * x_t - noise * out
    return (x_t - noise * out) / signal


# --- the reverse process --------------------------------------------------------------------------


def trailing_steps(T: int, steps: int) -> list[int]:
    """The values of t for `steps` network calls, from T−1 downwards, evenly spaced (Lin et al. 2023)."""
    if not 1 <= steps <= T:
        raise UserError(
            f"The number of sampling steps must lie between 1 and T = {T}, not {steps}."
        )
    return [round(T - k * T / steps) - 1 for k in range(steps)]


def ddim(
    schedule: Schedule, estimate: Estimate, x: torch.Tensor, steps: int, eta: float, noise: Noise
) -> States:
    """DDIM (Song et al. 2020, eq. 12 and 16) from x_T (B, ...). With η = 0 no step adds noise.

    With η = 1 it is DDPM's ancestral sampling with the posterior's variance. Yields (T, x_T) first and
    (0, x̂₀) last. `noise` is called only where noise is added. The last step adds none.
    """
    yield len(schedule), x
    times = trailing_steps(len(schedule), steps)
    for t, s in progress(_transitions(times), "sampling", "step"):
        x = ddim_step(estimate(x, t), x, *_alpha_bars(schedule, t, s), eta, noise)
        yield s + 1, x


def _transitions(times: list[int]) -> list[tuple[int, int]]:
    """Pairs of a step t and the next one s; −1 stands for the clean image."""
    return list(zip(times, [*times[1:], -1], strict=True))


def _alpha_bars(schedule: Schedule, t: int, s: int) -> tuple[float, float]:
    """ᾱ at t and at s; 1 at s = −1."""
    return schedule.alpha_bar[t].item(), schedule.alpha_bar[s].item() if s >= 0 else 1.0


def ddim_step(
    x0: torch.Tensor,
    x: torch.Tensor,
    alpha_bar_t: float,
    alpha_bar_s: float,
    eta: float,
    noise: Noise,
) -> torch.Tensor:
    """One step of DDIM, from x = x_t to x_s, with less noise, for the estimate `x0` at t."""
    eps = (x - math.sqrt(alpha_bar_t) * x0) / math.sqrt(1 - alpha_bar_t)
    sigma = eta * math.sqrt((1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s))
    x = math.sqrt(alpha_bar_s) * x0 + math.sqrt(max(1 - alpha_bar_s - sigma**2, 0)) * eps
    return x + sigma * noise() if sigma > 0 else x


def dpm_solver(schedule: Schedule, estimate: Estimate, x: torch.Tensor, steps: int) -> States:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) from x_T (B, ...). No step adds noise.

    Its first and its last step are of first order, like DDIM. Yields like `ddim`.
    """
    yield len(schedule), x
    times = trailing_steps(len(schedule), steps)
    before, h_before = None, 0.0
    for t, s in progress(_transitions(times), "sampling", "step"):
        alpha_bar_t, alpha_bar_s = _alpha_bars(schedule, t, s)
        x0 = estimate(x, t)
        if s < 0:
            x = x0
        else:
            h = _half_log_snr(alpha_bar_s) - _half_log_snr(alpha_bar_t)
            slope = h / (2 * h_before) if before is not None else 0.0  # 1/(2r), r = h_before/h
            data = (1 + slope) * x0 - slope * before if before is not None and slope else x0
            kept = math.sqrt((1 - alpha_bar_s) / (1 - alpha_bar_t))
            x = kept * x - math.sqrt(alpha_bar_s) * math.expm1(-h) * data
            before, h_before = x0, h
        yield s + 1, x


def _half_log_snr(alpha_bar: float) -> float:
    """λ = log(√ᾱ/√(1 − ᾱ)); −∞ for pure noise."""
    return 0.5 * math.log(alpha_bar / (1 - alpha_bar)) if alpha_bar > 0 else -math.inf


def reverse_process(
    sampler: Sampler,
    schedule: Schedule,
    estimate: Estimate,
    steps: int,
    eta: float,
    noise: Noise,
    x: torch.Tensor | None = None,
) -> States:
    """The sampler of that name, from `x` or else from noise; "ddpm" is DDIM with η = 1."""
    x = noise() if x is None else x
    if sampler == "dpm-solver":
        return dpm_solver(schedule, estimate, x, steps)
    return ddim(schedule, estimate, x, steps, 1.0 if sampler == "ddpm" else eta, noise)


def last(states: States) -> torch.Tensor:
    """The image at the end of a reverse process."""
    _, x = deque(states, maxlen=1).pop()
    return x


def image_noise(
    seed: int,
    first: int,
    count: int,
    shape: tuple[int, ...],
    device: torch.device | str = "cpu",
) -> Noise:
    """Noise (count, *shape). Image k has its own generator, with a seed from (seed, first + k).

    So an image does not depend on the others that are drawn with it.
    """
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + first + k) for k in range(count)]

    def noise() -> torch.Tensor:
        numbers = torch.empty(count, *shape)
        for image, own in zip(numbers, generators, strict=True):
            image.normal_(generator=own)
        return numbers.to(device)

    return noise
