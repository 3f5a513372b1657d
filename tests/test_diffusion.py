"""The forward process and its posterior, by their defining properties."""

from __future__ import annotations

import pytest
import torch

from imagelab.setup.runtime import UserError
from imagelab.techniques.diffusion import (
    Schedule,
    cosine_schedule,
    ddim,
    dpm_solver,
    image_noise,
    last,
    linear_schedule,
    reverse_process,
    target,
    to_x0,
    trailing_steps,
    zero_terminal_snr,
)


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
        Schedule(torch.tensor([1.0, 0.1]))
    with pytest.raises(UserError):
        linear_schedule(21, beta_end=0.5, rescaled=True)


# --- other schedules, what a network predicts -----------------------------------------------------


def test_cosine_schedule():
    assert cosine_schedule(50).alpha_bar[-1].item() == pytest.approx(9.7e-7, rel=0.05)
    s = cosine_schedule(1000)
    t = torch.arange(1, 500, dtype=torch.float64)
    f = ((t / 1000 + 0.008) / 1.008 * torch.pi / 2).cos() ** 2
    start = torch.tensor(0.008 / 1.008 * torch.pi / 2, dtype=torch.float64).cos() ** 2
    assert torch.allclose(s.alpha_bar[:499], f / start)


@pytest.mark.parametrize("before", [linear_schedule(1000), cosine_schedule(200)])
def test_zero_terminal_snr(before):
    after = zero_terminal_snr(before)
    assert after.alpha_bar[-1] == 0 and after.beta[-1] == 1
    assert after.alpha_bar[0].item() == pytest.approx(before.alpha_bar[0].item())
    assert (after.alpha_bar.diff() < 0).all() and (after.beta > 0).all()
    mean, _ = after.posterior(torch.tensor(0.3), torch.tensor(5.0), len(after) - 1)
    assert mean.item() == pytest.approx(0.3 * after.alpha_bar[-2].sqrt().item())


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
def test_every_prediction_leads_back_to_x0(kind):
    s = linear_schedule(100)
    rng = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 100, 3, 4, 4, generator=rng)
    t = torch.arange(100)
    x_t = s.q_sample(x0, t, eps)
    assert torch.allclose(to_x0(s, kind, target(s, kind, x0, eps, t), x_t, t), x0, atol=1e-4)


def test_v_has_unit_variance_and_is_perpendicular():
    s = linear_schedule(1000)
    rng = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 100_000, generator=rng)
    t = torch.full((100_000,), 300)
    v, x_t = target(s, "v", x0, eps, t), s.q_sample(x0, t, eps)
    assert v.var().item() == pytest.approx(1, abs=0.02)
    assert (v * x_t).mean().item() == pytest.approx(0, abs=0.02)


# --- the reverse process --------------------------------------------------------------------------


def test_steps_begin_at_the_last_t_and_end_at_the_first():
    assert trailing_steps(1000, 1000) == list(range(999, -1, -1))
    assert trailing_steps(1000, 5) == [999, 799, 599, 399, 199]
    for T, steps in ((1000, 7), (50, 49), (10, 1)):
        times = trailing_steps(T, steps)
        assert times[0] == T - 1 and len(set(times)) == steps and min(times) >= 0
    for steps in (0, 51):
        with pytest.raises(UserError, match="between 1 and T = 50"):
            trailing_steps(50, steps)


def gaussian_estimate(schedule: Schedule, mean: float, std: float):
    """The exact E[x₀ | x_t] where the data are N(mean, std²)."""

    def estimate(x: torch.Tensor, t: int) -> torch.Tensor:
        alpha_bar = schedule.alpha_bar[t].item()
        gain = std**2 * alpha_bar**0.5 / (std**2 * alpha_bar + 1 - alpha_bar)
        return mean + gain * (x - alpha_bar**0.5 * mean)

    return estimate


@pytest.mark.parametrize("sampler", ["DDPM", "DDIM", "DPM-Solver++"])
def test_a_gaussian_is_drawn_with_its_mean_and_spread(sampler):
    s = linear_schedule(1000)
    rng = torch.Generator().manual_seed(0)
    x_T = torch.randn(20_000, 1, generator=rng, dtype=torch.float64)
    estimate = gaussian_estimate(s, mean=1.5, std=0.4)
    if sampler == "DPM-Solver++":
        x = last(dpm_solver(s, estimate, x_T, 100))
    else:
        eta = 1.0 if sampler == "DDPM" else 0.0
        x = last(ddim(s, estimate, x_T, 1000, eta, lambda: torch.randn(x_T.shape, generator=rng)))
    assert x.mean().item() == pytest.approx(1.5, abs=0.02)
    assert x.std().item() == pytest.approx(0.4, rel=0.05)


@pytest.mark.parametrize("t", [1, 20, 49])
def test_ddim_with_eta_1_is_ddpm(t):
    """One step from t in mean and variance, against the posterior."""
    s = linear_schedule(50)
    x_t, x0 = torch.tensor([[0.7]]), torch.tensor([[-0.2]])
    mean, variance = s.posterior(x0, x_t, t)
    short = Schedule(s.beta[: t + 1])  # begins at t
    states = ddim(short, lambda x, t: x0, x_t, t + 1, 1.0, lambda: torch.zeros(1, 1))
    next(states)
    _, plain = next(states)
    states = ddim(short, lambda x, t: x0, x_t, t + 1, 1.0, lambda: torch.ones(1, 1))
    next(states)
    _, noisy = next(states)
    assert plain.item() == pytest.approx(mean.item(), abs=1e-6)
    assert (noisy - plain).item() ** 2 == pytest.approx(variance, rel=1e-4)


def test_no_noise_is_added_at_the_last_step_nor_without_eta():
    s, x = linear_schedule(50), torch.ones(1, 1)
    called = []

    def noise() -> torch.Tensor:
        called.append(1)
        return torch.zeros(1, 1)

    last(ddim(s, lambda x, t: x * 0, x, 10, 1.0, noise))
    assert len(called) == 9
    last(ddim(s, lambda x, t: x * 0, x, 10, 0.0, noise))
    assert len(called) == 9


def test_few_steps_of_second_order_are_closer():
    """DPM-Solver++(2M) at 20 steps is nearer to the exact path of a Gaussian than DDIM at 20."""
    s = linear_schedule(1000)
    estimate, x_T = gaussian_estimate(s, 0.0, 0.5), torch.ones(1, 1, dtype=torch.float64)
    exact = last(ddim(s, estimate, x_T, 1000, 0.0, None)).item()
    first = last(ddim(s, estimate, x_T, 20, 0.0, None)).item()
    second = last(dpm_solver(s, estimate, x_T, 20)).item()
    assert abs(second - exact) < 0.5 * abs(first - exact)
    one = last(ddim(s, estimate, x_T, 1, 0.0, None)), last(dpm_solver(s, estimate, x_T, 1))
    assert one[0].item() == pytest.approx(one[1].item())


@pytest.mark.parametrize("sampler", [lambda *a: ddim(*a, 0.0, None), dpm_solver])
def test_samplers_start_from_a_schedule_that_ends_in_noise(sampler):
    s = zero_terminal_snr(linear_schedule(1000))
    estimate = gaussian_estimate(s, 1.5, 0.4)
    x_T = torch.randn(5000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = last(sampler(s, estimate, x_T, 50))
    assert x.isfinite().all()
    assert x.mean().item() == pytest.approx(1.5, abs=0.03)
    assert x.std().item() == pytest.approx(0.4, rel=0.1)


def test_an_image_has_its_own_noise():
    together, alone = image_noise(3, 0, 5, (2, 4)), image_noise(3, 1, 1, (2, 4))
    for _ in range(3):
        a, b = together(), alone()
        assert a.shape == (5, 2, 4) and torch.equal(a[1], b[0])
    assert len(torch.unique(image_noise(3, 0, 5, (1,))())) == 5
    assert not torch.equal(image_noise(4, 0, 1, (9,))(), image_noise(3, 0, 1, (9,))())


def test_agreement_with_diffusers():
    """Its DDPM and DDIM schedulers, where that package is installed."""
    diffusers = pytest.importorskip("diffusers")
    s = linear_schedule(1000)
    for ours, name in ((s, "linear"), (cosine_schedule(1000), "squaredcos_cap_v2")):
        theirs = diffusers.DDPMScheduler(1000, beta_schedule=name).alphas_cumprod
        assert torch.allclose(ours.alpha_bar.float(), theirs, atol=1e-5)
    scheduler = diffusers.DDIMScheduler(
        1000, beta_schedule="linear", timestep_spacing="trailing", clip_sample=False,
        set_alpha_to_one=True,
    )  # fmt: skip
    scheduler.set_timesteps(20)
    assert scheduler.timesteps.tolist() == trailing_steps(1000, 20)
    rng = torch.Generator().manual_seed(0)
    x = theirs = torch.randn(4, 1, 8, 8, generator=rng)

    def eps(x: torch.Tensor, t: int) -> torch.Tensor:
        return torch.tanh(x) * (0.5 + t / 2000)

    def estimate(x: torch.Tensor, t: int) -> torch.Tensor:
        return to_x0(s, "eps", eps(x, t), x, torch.full((len(x),), t))

    ours = last(ddim(s, estimate, x, 20, 0.0, None))
    for t in scheduler.timesteps.tolist():
        theirs = scheduler.step(eps(theirs, t), t, theirs).prev_sample
    assert torch.allclose(ours, theirs, atol=1e-4)
    mean, variance = s.posterior(torch.tensor(0.3), torch.tensor(-0.4), 500)
    ddpm = diffusers.DDPMScheduler(1000, beta_schedule="linear", prediction_type="sample",
                                   clip_sample=False)  # fmt: skip
    assert ddpm._get_variance(500).item() == pytest.approx(variance, abs=1e-5)
    drawn = [
        ddpm.step(torch.full((1, 1), 0.3), 500, torch.full((1, 1), -0.4),
                  generator=torch.Generator().manual_seed(k)).prev_sample.item()
        for k in range(2000)
    ]  # fmt: skip
    assert sum(drawn) / 2000 == pytest.approx(mean.item(), abs=4 * (variance / 2000) ** 0.5)


def test_an_image_with_noise_enters_where_its_noise_belongs():
    s = cosine_schedule(1000)
    for sigma in (0.05, 0.5, 2.0):
        part = s.until(sigma)
        level = ((1 - part.alpha_bar[-1]) / part.alpha_bar[-1]).sqrt().item()
        assert level == pytest.approx(sigma, rel=0.03)
        assert torch.allclose(part.alpha_bar, s.alpha_bar[: len(part)])


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm-solver"])
def test_samplers_by_name_reach_a_known_image(sampler):
    """With a perfect estimate every sampler ends at the image, and starts from the noise."""
    s = cosine_schedule(100)
    image = torch.linspace(-1, 1, 12).reshape(3, 4)
    noise = image_noise(0, 0, 3, (4,))
    states = list(reverse_process(sampler, s, lambda x, t: image, 10, 0.0, noise))
    assert states[0][0] == 100 and states[-1][0] == 0 and len(states) == 11
    assert torch.equal(states[0][1], image_noise(0, 0, 3, (4,))())
    assert torch.allclose(last(iter(states)), image, atol=1e-5)
