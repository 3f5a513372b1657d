"""The forward process and its posterior, by their defining properties."""

from __future__ import annotations

import pytest
import torch

from imagelab.diffusion import Schedule, linear_schedule
from imagelab.runtime import UserError


@pytest.mark.parametrize(
    ("T", "rescaled", "alpha_bar"),
    [(1000, False, 4.0e-5), (500, False, 6.4e-3), (50, False, 0.603), (50, True, 7.7e-6)],
)
def test_where_the_forward_process_ends(T, rescaled, alpha_bar):
    assert linear_schedule(T, rescaled=rescaled).alpha_bar[-1].item() == pytest.approx(
        alpha_bar, rel=0.02
    )


def test_tables():
    s = linear_schedule(50)
    assert torch.allclose(s.alpha_bar, torch.cumprod(1 - s.beta, 0))
    assert s.alpha_bar_prev[0] == 1 and torch.equal(s.alpha_bar_prev[1:], s.alpha_bar[:-1])
    assert s.snr[-1].item() == pytest.approx(1.52, abs=0.01)
    assert s.beta.dtype == torch.float64


def test_one_jump_is_as_many_small_steps():
    """q(x_t | x_0) has the mean and variance of t + 1 steps √α·x + √β·ε in a row."""
    s = linear_schedule(50)
    mean, variance = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    for t in range(50):
        mean, variance = mean * s.alpha[t].sqrt(), variance * s.alpha[t] + s.beta[t]
        assert torch.isclose(mean, s.alpha_bar[t].sqrt())
        assert torch.isclose(variance, 1 - s.alpha_bar[t])


@pytest.mark.parametrize("t", [1, 7, 25, 49])
def test_posterior_is_bayes_rule(t):
    """q(x_{t−1} | x_t, x_0) ∝ q(x_t | x_{t−1})·q(x_{t−1} | x_0), multiplied out on a fine grid."""
    s = linear_schedule(50)
    x0, x_t = 0.6, -0.3
    x = torch.linspace(-6, 6, 240_001, dtype=torch.float64)
    log = -((x_t - s.alpha[t].sqrt() * x) ** 2) / (2 * s.beta[t])
    log = log - (x - s.alpha_bar_prev[t].sqrt() * x0) ** 2 / (2 * (1 - s.alpha_bar_prev[t]))
    p = (log - log.max()).exp()
    p = p / p.sum()
    mean = (p * x).sum()
    variance = (p * (x - mean) ** 2).sum()
    got_mean, got_variance = s.posterior(torch.tensor(x0), torch.tensor(x_t), t)
    assert got_mean.item() == pytest.approx(mean.item(), abs=1e-5)
    assert got_variance == pytest.approx(variance.item(), rel=1e-4)


def test_the_last_step_adds_no_noise_and_ends_at_the_estimate():
    s = linear_schedule(50)
    mean, variance = s.posterior(torch.tensor(0.25), torch.tensor(-3.0), 0)
    assert variance == 0 and mean.item() == pytest.approx(0.25)


def test_q_sample_statistics():
    s = linear_schedule(50)
    rng = torch.Generator().manual_seed(0)
    x0 = torch.full((200_000, 1), 0.5)
    x_t = s.q_sample(x0, torch.full((200_000,), 30), torch.randn(x0.shape, generator=rng))
    assert x_t.mean().item() == pytest.approx(0.5 * s.alpha_bar[30].sqrt().item(), abs=5e-3)
    assert x_t.var().item() == pytest.approx(1 - s.alpha_bar[30].item(), rel=0.02)


def test_impossible_betas():
    with pytest.raises(UserError, match="between 0 and 1"):
        Schedule(torch.tensor([0.1, 1.0]))
    with pytest.raises(UserError):
        linear_schedule(21, beta_end=0.5, rescaled=True)
