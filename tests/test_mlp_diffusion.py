from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import complaint, run_here, untaught

import mlp_diffusion as ddpm
from imagelab.diffusion import linear_schedule
from imagelab.mixture import fit_gaussians
from imagelab.settings import plain


def network(recipe: str, dimensions: tuple[int, int, int] = (1, 28, 28)) -> ddpm.Denoiser:
    torch.manual_seed(0)
    return ddpm.build(plain(ddpm.Config(recipe=recipe)), dimensions)


# --- the lesson, as mathematics -------------------------------------------------------------------


def test_the_forward_process_of_the_recipe_does_not_end_in_noise():
    literal, rescaled = network("literal").schedule, network("rescaled").schedule
    assert literal.alpha_bar[-1].item() == pytest.approx(0.603, abs=1e-3)
    assert "training never showed" in ddpm.what_the_end_means(literal, "noise")
    assert "data's own" in ddpm.what_the_end_means(literal, "data")
    assert "N(0, I)" in ddpm.what_the_end_means(rescaled, "noise")
    assert "never" not in ddpm.what_the_end_means(rescaled, "noise")


def test_a_bottleneck_of_256_passes_at_most_256_dimensions_of_noise(float32):
    """The literal network's output is an affine image of 256 numbers; the skip lifts the limit."""
    torch.manual_seed(0)
    x, t = torch.randn(600, 784), torch.full((600,), 20)
    with torch.no_grad():
        rank = {
            name: torch.linalg.matrix_rank(out - out.mean(0), rtol=1e-4).item()
            for name, out in ((n, network(n)(x, t).double()) for n in ("literal", "corrected"))
        }
    assert rank["literal"] <= 256 < 500 < rank["corrected"]


@pytest.mark.parametrize("recipe", ["literal", "corrected", "rescaled"])
def test_noise_and_clean_image_make_up_x_t(recipe):
    """√ᾱ·x̂₀ + √(1 − ᾱ)·ε̂ = x_t, whichever of the two the network estimates."""
    model = network(recipe)
    x, t = torch.randn(50, 784), torch.arange(50)
    with torch.no_grad():
        eps_hat, x0_hat = model(x, t), model.estimate(x, t)
    assert torch.allclose(model.schedule.q_sample(x0_hat, t, eps_hat), x, atol=1e-3)


def test_min_snr_weight_bounds_the_weight_on_the_image():
    s = linear_schedule(50)
    on_image = ddpm.loss_weight(s, True, 5.0) * s.snr
    assert on_image.max().item() == pytest.approx(5.0)
    assert torch.allclose(on_image[s.snr < 5], s.snr[s.snr < 5])
    assert torch.equal(ddpm.loss_weight(s, False, 5.0), torch.ones(50))


def test_loss_is_the_weighted_mean_square():
    eps_hat, eps = torch.zeros(2, 4), torch.tensor([[1.0] * 4, [2.0] * 4])
    assert ddpm.noise_loss(eps_hat, eps, torch.tensor([1.0, 0.5])).item() == pytest.approx(1.5)


# --- where sampling starts ------------------------------------------------------------------------


def test_sampling_starts_with_the_moments_of_the_noised_data(stripes):
    """Mean √ᾱ_T·μ and covariance ᾱ_T·Σ + (1 − ᾱ_T)·I, for one Gaussian as for several."""
    model = network("corrected")
    x0 = (stripes.images.float() / 127.5 - 1).flatten(1)
    alpha_bar = model.schedule.alpha_bar[-1].item()
    for clusters in (1, 4):
        gaussians = fit_gaussians(stripes.images, clusters, seed=0, rank=320)
        rng = torch.Generator().manual_seed(0)
        x_T = ddpm.start_of_sampling(model, gaussians, 20_000, rng)
        assert torch.allclose(x_T.mean(0), math.sqrt(alpha_bar) * x0.mean(0), atol=0.05)
        # Along the direction that tells the two classes apart, and along a random one.
        for direction in (x0[0] - x0[1], torch.randn(784, generator=rng)):
            unit = direction / direction.norm()
            expected = alpha_bar * (x0 @ unit).var() + 1 - alpha_bar
            assert (x_T @ unit).var().item() == pytest.approx(expected.item(), rel=0.06)
    noise = ddpm.start_of_sampling(network("literal"), gaussians, 2000, rng)
    assert noise.std().item() == pytest.approx(1, abs=0.01) and abs(noise.mean()) < 0.01


# --- the reverse process --------------------------------------------------------------------------


class Oracle(ddpm.Denoiser):
    """Knows that every image is the constant 0.5, and answers so."""

    def forward(self, x_t, t):
        return (x_t - self.a[t, None] * 0.5) / self.b[t, None]


@pytest.mark.parametrize("recipe", ["literal", "corrected", "rescaled"])
def test_a_perfect_estimate_is_reached_without_noise_at_the_end(recipe):
    model = Oracle(784, network(recipe).schedule, ddpm.RECIPES[recipe])
    rng = torch.Generator().manual_seed(0)
    states = list(ddpm.reverse_process(model, torch.randn(3, 784, generator=rng), rng))
    assert [t for t, _ in states] == list(range(50, -1, -1))
    assert torch.allclose(states[-1][1], torch.tensor(0.5), atol=1e-3)
    assert states[-2][1].std() > 1e-3


def test_the_reverse_process_has_the_forward_process_marginals():
    """From a true x_T, with a perfect estimate, x_t has variance 1 − ᾱ_t around √ᾱ_t·x₀."""
    model = Oracle(784, network("corrected").schedule, ddpm.RECIPES["corrected"])
    rng = torch.Generator().manual_seed(0)
    a, b = model.a[-1], model.b[-1]
    start = a * 0.5 + b * torch.randn(200, 784, generator=rng)
    for t, x in ddpm.reverse_process(model, start, rng):
        if t in (40, 20, 5):  # x_t here is the state after the step t, at table row t − 1
            alpha_bar = model.schedule.alpha_bar[t - 1].item()
            assert x.mean().item() == pytest.approx(math.sqrt(alpha_bar) * 0.5, abs=0.01)
            assert x.var().item() == pytest.approx(1 - alpha_bar, rel=0.03)


# --- the script -----------------------------------------------------------------------------------


def test_the_main_job_left_what_was_promised(main_job):
    folder = main_job / "diffusion_samples"
    result = json.loads((folder / "results.json").read_text("utf-8"))
    assert untaught("mlp_diffusion", result) == []
    for entry in result["files"]:
        assert (folder / entry["path"]).is_file(), entry
    names = {entry["path"] for entry in result["files"]}
    assert {"recipes.png", "reverse_process.gif", "losses.png", "epoch_001.png"} <= names
    assert {"literal: Fréchet distance", "rescaled: Fréchet distance"} <= result["metrics"].keys()
    assert (main_job / "diffusion_models" / "fast_mlp_diffusion.pth").is_file()


def test_the_caption_says_what_was_done(tmp_path, stripes):
    """Epochs that a time limit cut short, and no distances where nothing was scored."""
    from imagelab.results import start_result

    config = ddpm.Config(output_dir=tmp_path, batch_size=32, clusters=2, epochs=4, compare_epochs=2)
    gaussians = fit_gaussians(stripes.images, 2, 0)
    runs = {"corrected": ddpm.train(config, stripes, gaussians, tmp_path / "a.pth")}
    runs |= ddpm.train_others(replace(config, time_limit=1e-3), stripes, gaussians)
    result = start_result("a", "", "", config, "pictures", torch.device("cpu"), stripes)
    result.folder.mkdir(exist_ok=True)
    ddpm.evaluate(config, stripes, runs, gaussians, None, result)
    caption = next(f["caption"] for f in result.files if f["path"] == "recipes.png")
    assert "the letter (0.1 epochs), corrected (4) and with rescaled betas (0.1)." in caption


def test_sampling_from_the_checkpoint(main_job, tmp_path):
    run_here("mlp_diffusion", "--sample-only", "--num-samples", 1200, "--output-dir", main_job,
             "--samples-file", tmp_path / "s.npz")  # fmt: skip
    images = np.load(tmp_path / "s.npz")["images"]
    assert images.shape == (1200, 28, 28) and images.dtype == np.uint8
    assert len(np.unique(images, axis=0)) == 1200


def test_stopped_and_resumed_ends_at_the_same_weights_and_samples(tmp_path, stripes):
    """What sampling takes besides the weights comes back as well. (test_gan_mnist.py presses Ctrl-C.)"""
    config = ddpm.Config(output_dir=tmp_path, batch_size=32, clusters=2)
    gaussians = fit_gaussians(stripes.images, config.clusters, config.seed)

    def trained(name: str, **settings) -> torch.Tensor:
        run = ddpm.train(replace(config, **settings), stripes, gaussians, tmp_path / name)
        return ddpm.sample(run.averaged, run.extra, 20, stripes.shape, seed=0)

    whole = trained("whole.pth", epochs=3)
    assert not torch.equal(trained("stopped.pth", epochs=1), whole)
    assert torch.equal(trained("stopped.pth", epochs=3, resume=True), whole)
    saved = [torch.load(tmp_path / f"{n}.pth", weights_only=True) for n in ("whole", "stopped")]
    for part in ("model", "ema", "extra"):
        one, other = (_tensors(contents[part]) for contents in saved)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)) and len(one) > 2


def _tensors(tree: dict) -> list[torch.Tensor]:
    leaves = [_tensors(v) if isinstance(v, dict) else [v] for v in tree.values()]
    return [tensor for leaf in leaves for tensor in leaf]


def test_wrong_input(tmp_path):
    shared = ("--quick", "--dataset", "digits", "--output-dir", tmp_path)
    assert "--T" in complaint("mlp_diffusion", *shared, "--T", 5)
    assert "between 0 and 1" in complaint("mlp_diffusion", *shared, "--recipe", "rescaled",
                                          "--beta-end", 0.4)  # fmt: skip
    assert "There is no checkpoint" in complaint("mlp_diffusion", *shared, "--resume")
