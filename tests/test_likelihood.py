"""The variational bound: its terms by independent formulas, and data whose likelihood is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from imagelab.techniques.diffusion import (
    Schedule,
    cosine_schedule,
    linear_schedule,
    make_schedule,
)
from imagelab.techniques.likelihood import (
    Variance,
    discretised_gaussian,
    prior_term,
    step_kl,
    step_variances,
    variational_bound,
)

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the terms ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (0.3, 0.01), (-1.4, 0.2), (0.999, 3.0)])
def test_grey_levels_have_the_gaussian_s_mass_in_their_bins(mean, std):
    """Against scipy's Φ: 256 bins, of which the outer two are open. The 256 probabilities add up to 1."""
    ours = discretised_gaussian(
        LEVELS, torch.full_like(LEVELS, mean), torch.tensor(std, dtype=torch.float64)
    )
    edges = np.r_[-np.inf, (np.arange(255) + 0.5) / 127.5 - 1, np.inf]
    z = (edges - mean) / std
    upper = norm.sf(z[:-1]) - norm.sf(z[1:])  # scipy's cdf has no digits left there
    expected = np.where(z[:-1] > 0, upper, norm.cdf(z[1:]) - norm.cdf(z[:-1]))
    assert np.allclose(ours.exp(), expected, rtol=1e-9, atol=1e-300)
    assert ours.exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_far_grey_levels_have_a_finite_likelihood():
    """Improved-diffusion stops at a probability of 1e-12; the bound itself does not."""
    far = discretised_gaussian(LEVELS, torch.ones_like(LEVELS), torch.tensor(1e-3))
    assert far.isfinite().all() and far[0] < -1e5 and (far.diff() > 0).all()


def test_the_decoder_is_near_improved_diffusion_s_approximation():
    """Its Φ(z) is ½(1 + tanh(√(2/π)·(z + 0.044715·z³))), which is right to 2e-4."""

    def phi(z: torch.Tensor) -> torch.Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    mean, std, half = 0.1, 0.05, 1 / 255
    ours = discretised_gaussian(
        LEVELS, torch.full_like(LEVELS, mean), torch.tensor(std, dtype=torch.float64)
    ).exp()
    theirs = phi((LEVELS - mean + half) / std) - phi((LEVELS - mean - half) / std)
    assert (ours - theirs)[1:-1].abs().max() < 3e-4 < ours.max() / 50


@pytest.mark.parametrize("kind", ["posterior", "beta"])
@pytest.mark.parametrize("t", [1, 10, 49])
def test_a_step_is_the_divergence_of_two_gaussians(kind, t):
    """Against torch.distributions, with the means at a real x_t."""
    s = linear_schedule(50, rescaled=True)
    x0, x0_hat, x_t = (torch.randn(5, 7, generator=rng(k), dtype=torch.float64) for k in range(3))
    variance = step_variances(s, kind)[t]
    (mean, posterior), (mean_hat, _) = (s.posterior(x, x_t, t) for x in (x0, x0_hat))
    true = torch.distributions.Normal(mean, math.sqrt(posterior))
    model = torch.distributions.Normal(mean_hat, variance.sqrt())
    expected = torch.distributions.kl_divergence(true, model)
    assert torch.allclose(step_kl(s, torch.tensor([t]), x0, x0_hat, variance), expected)


@pytest.mark.parametrize("schedule", [linear_schedule(50), make_schedule("zero-terminal-snr", 50)])
def test_the_prior_term_is_the_divergence_from_pure_noise(schedule):
    x0, last = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4), schedule.alpha_bar[-1]
    left = torch.distributions.Normal(last.sqrt() * x0, (1 - last).sqrt())
    noise = torch.distributions.Normal(torch.zeros_like(x0), torch.ones_like(x0))
    expected = torch.distributions.kl_divergence(left, noise).sum(dim=1)
    assert torch.allclose(prior_term(schedule, x0), expected)
    assert (expected[0] < 1e-12) == (last < 1e-12)  # zero terminal SNR leaves nothing


def test_variances_at_the_first_step_are_improved_diffusion_s():
    """Both of its choices have posterior_variance[1] at t = 0."""
    s = cosine_schedule(40)
    tilde = s.beta * (1 - s.alpha_bar_prev) / (1 - s.alpha_bar)
    small, large = step_variances(s, "posterior"), step_variances(s, "beta")
    assert small[0] == large[0] == tilde[1] and tilde[0] == 0
    assert torch.equal(small[1:], tilde[1:]) and torch.equal(large[1:], s.beta[1:])
    assert step_variances(Schedule(torch.tensor([0.3])), "posterior").tolist() == pytest.approx(
        [0.3]
    )


# --- the whole bound ------------------------------------------------------------------------------


def quantised(x: torch.Tensor) -> torch.Tensor:
    return ((x + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


def test_a_perfect_estimate_leaves_the_prior_and_the_last_grey_level():
    s, x0 = linear_schedule(50), quantised(torch.rand(6, 1, 3, 3, generator=rng()) * 1.8 - 0.9)
    bound = variational_bound(lambda x_t, t: x0[: len(x_t)], s, x0, rng())
    assert bound.terms.shape == (50,) and bound.dimensions == 9
    assert bound.terms[1:].abs().max() < 1e-9
    half = 1 / 255 / step_variances(s, "posterior")[0].sqrt().item()
    assert bound.reconstruction == pytest.approx(-9 * math.log(2 * norm.cdf(half) - 1), rel=1e-4)
    assert bound.total == pytest.approx(bound.prior + bound.reconstruction, abs=1e-6)
    assert bound.per_image.mean().item() == pytest.approx(bound.total)
    prior, steps, reconstruction, total, bits = bound.parts().values()
    assert prior + steps + reconstruction == pytest.approx(total) and total == bound.total
    assert bits == bound.bits_per_dimension and steps == bound.terms[1:].sum()
    assert bound.bits_per_dimension == pytest.approx(bound.total / 9 / math.log(2))


MEAN, STD = torch.tensor([-0.3, -0.1, 0.2, 0.35]), 0.12  # of Gaussian data well within [-1, 1]


def optimal_slope(alpha_bar: torch.Tensor) -> torch.Tensor:
    return STD**2 * alpha_bar.sqrt() / (alpha_bar * STD**2 + 1 - alpha_bar)


def optimal(schedule: Schedule):
    """E[x₀|x_t] of data ~ N(MEAN, STD²): linear in x_t."""
    slope = optimal_slope(schedule.alpha_bar).float()

    def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        signal, _ = schedule.signal_and_noise(t, x_t)
        return MEAN + slope[t, None] * (x_t - signal * MEAN)

    return predict


def exact_model_likelihood(schedule: Schedule, x0: torch.Tensor, variance: Variance) -> np.ndarray:
    """−log p(x₀) of the sampler with the optimal network: all its steps are linear, so x̂₀ is Gaussian."""
    mean, var = np.zeros(len(MEAN)), 1.0
    variances = step_variances(schedule, variance)
    for t in reversed(range(len(schedule))):
        a, slope = schedule.alpha_bar[t].sqrt().item(), optimal_slope(schedule.alpha_bar)[t].item()
        from_x0, _ = schedule.posterior(torch.tensor(1.0), torch.tensor(0.0), t)
        from_x_t, _ = schedule.posterior(torch.tensor(0.0), torch.tensor(1.0), t)
        gain = from_x0.item() * slope + from_x_t.item()
        mean = from_x0.item() * (MEAN.numpy() - slope * a * MEAN.numpy()) + gain * mean
        var = gain**2 * var + variances[t].item()
    return bin_surprise(x0, mean, math.sqrt(var))


def bin_surprise(x0: torch.Tensor, mean: np.ndarray, std: float) -> np.ndarray:
    z = [(x0.numpy() + edge / 255 - mean) / std for edge in (-1, 1)]
    return -np.log(norm.cdf(z[1]) - norm.cdf(z[0])).sum(axis=1)


@pytest.mark.parametrize("kind", ["posterior", "beta"])
def test_the_bound_of_gaussian_data_lies_above_the_known_likelihoods(kind):
    """The network is the optimal one, so two likelihoods are known: the sampler's own and the data's.

    On average the bound is no better than the first, and the first no better than the second.
    """
    x0 = quantised(MEAN + STD * torch.randn(20_000, 4, generator=rng(1)))
    s, data = linear_schedule(50, rescaled=True), bin_surprise(x0, MEAN.numpy(), STD).mean()
    bound = variational_bound(optimal(s), s, x0, rng(2), kind, portion=20_000)
    model = exact_model_likelihood(s, x0, kind).mean()
    assert data < model < bound.total - 3 * bound.standard_error
    assert bound.total < 1.25 * data


def test_the_bound_tightens_as_the_steps_get_finer():
    """Grey levels with the masses of a Gaussian, and the optimal network: the gap falls like 1/T.

    Every step lowers the SNR by the same factor, from 1e6 to 1e-4.
    """
    p = discretised_gaussian(LEVELS, torch.full_like(LEVELS, 0.1), torch.tensor(0.1)).exp()
    levels = torch.multinomial(p, 1500, replacement=True, generator=rng(1))[:, None]
    likelihood = -p.log()[levels].mean().item()
    gaps = []
    for T in (60, 240):
        alpha_bar = torch.linspace(math.log(1e6), math.log(1e-4), T, dtype=torch.float64).sigmoid()
        s = Schedule(1 - alpha_bar / torch.cat([torch.ones(1), alpha_bar[:-1]]))

        def predict(x_t: torch.Tensor, t: torch.Tensor, alpha_bar=alpha_bar) -> torch.Tensor:
            """E[x₀|x_t], by Bayes' rule over the 256 grey levels."""
            a = alpha_bar[t, None]
            log_p = p.log() - (x_t - a.sqrt() * LEVELS).square() / (2 * (1 - a))
            return log_p.softmax(dim=1) @ LEVELS[:, None]

        bound = variational_bound(predict, s, LEVELS[levels].float(), rng(2), portion=1500)
        gaps.append(bound.total - likelihood)
    assert 0 < gaps[1] < 0.05 * likelihood
    assert gaps[1] < gaps[0] / 3


@pytest.mark.parametrize("kind", ["posterior", "beta"])
def test_the_terms_of_gaussian_data_are_the_closed_form(kind):
    """E(x₀ − x̂₀)² = σ²(1 − ᾱ)/(ᾱσ² + 1 − ᾱ); for β̃ L_t is half the fall of the SNR times that."""
    s = linear_schedule(50, rescaled=True)
    x0 = MEAN + STD * torch.randn(20_000, 4, generator=rng(1))
    terms = variational_bound(optimal(s), s, x0, rng(2), kind, portion=20_000).terms[1:] / 4
    a, prev, beta = s.alpha_bar[1:], s.alpha_bar[:-1], s.beta[1:]
    error = STD**2 * (1 - a) / (a * STD**2 + 1 - a)
    tilde = beta * (1 - prev) / (1 - a)
    if kind == "posterior":
        expected = 0.5 * (prev / (1 - prev) - a / (1 - a)) * error
    else:
        moved = prev.sqrt() * beta / (1 - a)
        expected = 0.5 * (moved**2 * error / beta + (beta / tilde).log() + tilde / beta - 1)
    assert torch.allclose(terms, expected, rtol=0.03)


def test_a_learned_variance():
    """A function that returns β is the choice "beta"; one of x_t and t is asked for every pixel."""
    s, x0 = linear_schedule(21), quantised(torch.rand(10, 4, generator=rng()) - 0.5)
    table = step_variances(s, "beta")
    of_t = variational_bound(
        optimal(s), s, x0, rng(3), lambda x_t, t: table[t, None].expand_as(x_t), portion=4
    )
    beta = variational_bound(optimal(s), s, x0, rng(3), "beta")
    assert torch.allclose(of_t.terms, beta.terms, rtol=1e-6)
    wider = variational_bound(optimal(s), s, x0, rng(3), lambda x_t, t: x_t.square() + 1e-3)
    assert not torch.allclose(wider.terms, beta.terms)


def test_portions_and_seeds():
    s, x0 = linear_schedule(21), quantised(torch.rand(10, 4, generator=rng()) - 0.5)
    predict = optimal(s)
    whole = variational_bound(predict, s, x0, rng(3))
    parts = variational_bound(predict, s, x0, rng(3), portion=3)
    assert torch.allclose(whole.per_image, parts.per_image)
    assert not torch.allclose(whole.per_image, variational_bound(predict, s, x0, rng(4)).per_image)
    expected = whole.per_image.std().item() / math.sqrt(10)
    assert whole.standard_error == pytest.approx(expected)
