from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import complaint, elsewhere, run_here, untaught, with_classifier
from PIL import Image

from imagelab.report.figures import save_figure
from studies import vae

QUICK = ("studies.vae", "--quick", "--dataset", "mnist-5k", "--output-dir")


@pytest.fixture(scope="module")
def quick(quick_classifier, tmp_path_factory) -> Path:
    folder = with_classifier(quick_classifier, tmp_path_factory.mktemp("vae"))
    run_here(*QUICK, folder, "--samples-file", folder / "s.npz", "--export", folder / "d.onnx")
    return folder


def test_a_run_leaves_pictures_and_figures_for_every_size(quick):
    folder = quick / "study_images" / "vae"
    result = json.loads((folder / "results.json").read_text("utf-8"))
    assert untaught("studies.vae", result) == []
    assert all((folder / entry["path"]).is_file() for entry in result["files"])
    assert {p.name for p in (quick / "study_models" / "vae").iterdir()} == {
        "latent_2.pth", "latent_4.pth", "latent_16.pth",
    }  # fmt: skip
    table = result["tables"][0]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    assert [row["model"] for row in rows] == ["2 latents", "4 latents", "16 latents"]
    for row in rows:
        assert row["negative ELBO"] == pytest.approx(row["reconstruction"] + row["KL"], rel=1e-5)
        assert row["reconstruction"] < row["importance-weighted bound"] < row["negative ELBO"]
    for name, better in (("negative ELBO", -1), ("MSE", -1), ("SSIM", 1), ("KL", 1)):
        values = [better * row[name] for row in rows]
        assert values == sorted(values), name  # more latents keep more and cost more
    least = result["metrics"]["entropy of the grey values, the least reconstruction"]["value"]
    assert 0 < least < rows[-1]["reconstruction"]


def test_samples_come_again_from_the_checkpoint(quick):
    run_here(*QUICK, quick, "--sample-only", "--samples-file", quick / "again.npz")
    first, again = (np.load(quick / name)["images"] for name in ("s.npz", "again.npz"))
    assert first.shape == (500, 28, 28) and first.dtype == np.uint8
    assert (first == again).all()
    assert (quick / "study_images" / "vae" / "drawn.png").is_file()


def test_the_checkpoint_says_how_many_latents_it_has(quick):
    drawn = {}
    for size in (2, 4):
        path = quick / f"study_models/vae/latent_{size}.pth"
        assert vae.load_model(vae.Config(checkpoint=path), torch.device("cpu")).latent_size == size
        run_here(*QUICK, quick, "--checkpoint", path, "--samples-file", quick / "k.npz")
        drawn[size] = np.load(quick / "k.npz")["images"]
    assert (drawn[2] != drawn[4]).any()


def test_the_two_parts_are_the_formulas():
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(3, 1, 4, 4, generator=rng)
    logits = torch.randn(3, 1, 4, 4, generator=rng)
    mean, log_var = torch.randn(2, 3, 5, generator=rng)
    reconstruction, kl = vae.elbo_parts(logits, x, mean, log_var)
    p = logits.sigmoid()
    expected = -(x * p.log() + (1 - x) * (1 - p).log()).sum(dim=(1, 2, 3))
    assert torch.allclose(reconstruction, expected, rtol=1e-4)
    q = torch.distributions.Normal(mean, (log_var / 2).exp())
    prior = torch.distributions.Normal(0.0, 1.0)
    assert torch.allclose(kl, torch.distributions.kl_divergence(q, prior).sum(dim=1), rtol=1e-4)
    assert vae.elbo_parts(logits, x, torch.zeros(3, 5), torch.zeros(3, 5))[1].abs().max() == 0


def test_latents_are_drawn_so_that_gradients_pass():
    torch.manual_seed(0)
    model = vae.VAE((1, 8, 8), 3, hidden=16)
    x, eps = torch.rand(5, 1, 8, 8), torch.randn(5, 3)
    logits, mean, log_var = model(x, eps)
    assert logits.shape == x.shape and mean.shape == log_var.shape == (5, 3)
    assert torch.equal(logits, model.decode(mean + (log_var / 2).exp() * eps))
    logits.sum().backward()
    assert all(layer.weight.grad.abs().sum() > 0 for layer in (model.encoder[1], model.encoder[3]))


@pytest.fixture(scope="module")
def toy():
    """x = A·z + 0.5·noise, z ~ N(0, I) in 2 dimensions: both log p(x|z) and log p(x) are known.

    Of q(z|x) each image has a Gaussian of its own, near the true posterior and not equal to it."""
    rng = torch.Generator().manual_seed(0)
    A = torch.randn(5, 2, generator=rng, dtype=torch.double)
    cov = A @ A.T + 0.25 * torch.eye(5, dtype=torch.double)
    x = torch.randn(40, 2, generator=rng, dtype=torch.double) @ A.T
    exact = torch.distributions.MultivariateNormal(torch.zeros(5).double(), cov).log_prob(x)
    precision = torch.eye(2).double() + 4 * A.T @ A
    mean = 4 * torch.linalg.solve(precision, A.T @ x.T).T + 0.1
    log_var = (2 / precision.diagonal()).log().expand(40, 2)

    def bound(K: int) -> torch.Tensor:
        """The mean bound, over many draws."""
        eps = torch.randn(40, K, 2, generator=rng, dtype=torch.double)
        z = mean[:, None] + (log_var / 2).exp()[:, None] * eps
        likelihood = torch.distributions.Normal(z @ A.T, 0.5).log_prob(x[:, None]).sum(dim=2)
        return vae.importance_weighted_bound(likelihood, z, mean, log_var)

    def elbo() -> torch.Tensor:
        """In closed form: E log p(x|z) − KL(q ‖ p)."""
        error = (x - mean @ A.T).square().sum(1) + (log_var.exp() @ A.square().T).sum(1)
        expected = -0.5 * (error / 0.25) - 5 * math.log(0.5 * math.sqrt(2 * math.pi))
        zero = torch.zeros(40, 1, 1, 1)
        return expected - vae.elbo_parts(zero, zero, mean, log_var)[1]

    return exact, bound, elbo


def test_with_one_sample_the_importance_weighted_bound_is_the_elbo(toy):
    _, bound, elbo = toy
    one = torch.stack([bound(1) for _ in range(4000)])
    error = one.std(dim=0) / 4000**0.5
    assert ((one.mean(dim=0) - elbo()).abs() < 5 * error).all()


def test_the_importance_weighted_bound_rises_to_the_exact_likelihood(toy):
    exact, bound, _ = toy
    means = [torch.stack([bound(K) for _ in range(400)]).mean() for K in (1, 4, 16, 64, 256)]
    assert all(a < b for a, b in itertools.pairwise(means))
    assert means[0] < exact.mean() - 0.1
    assert means[-1].item() == pytest.approx(exact.mean().item(), abs=0.01)


def test_the_bound_of_a_network_is_tighter_than_its_elbo(stripes):
    torch.manual_seed(0)
    model, images = vae.VAE(stripes.shape, 3), stripes.test_images[:8]
    rng = torch.Generator().manual_seed(0)
    reconstruction, kl, _ = vae.elbo_of(model, images.repeat(500, 1, 1, 1), rng)
    one, many = (
        vae.log_likelihood_bound(model, images.repeat(500, 1, 1, 1), K, rng) for K in (1, 20)
    )
    assert -one.mean().item() == pytest.approx(reconstruction + kl, rel=1e-3)
    assert many.mean() > one.mean() + 0.1
    portions = [vae.log_likelihood_bound(model, images[:n], 9_000, rng) for n in (2, 3)]
    assert torch.allclose(portions[0], portions[1][:2], atol=0.2)  # more than fit in one portion


def test_grey_pixels_cannot_be_reconstructed_below_their_entropy():
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    least, zero = vae.least_reconstruction(x), torch.zeros(3, 5)
    for shift, at_most in ((0.0, 1e-4), (0.1, 0.1), (-0.1, 0.1)):
        above = vae.elbo_parts(x.logit() + shift, x, zero, zero)[0] - least
        assert (above > (shift != 0) * 1e-3 - 1e-4).all() and (above < at_most).all()


def test_the_bounds_are_those_of_binarised_images():
    """The cross-entropy with grey values is the mean over binary images drawn with them."""
    torch.manual_seed(0)
    x, logits = torch.rand(1, 1, 4, 4), torch.randn(1, 1, 4, 4)
    zero = torch.zeros(1, 3)
    binary = torch.bernoulli(x.expand(40_000, -1, -1, -1))
    of_binary = vae.elbo_parts(logits.expand_as(binary), binary, zero, zero)[0]
    grey = vae.elbo_parts(logits, x, zero, zero)[0]
    assert of_binary.mean().item() == pytest.approx(grey.item(), rel=0.01)


def test_the_plane_is_cut_into_cells_of_equal_probability():
    z = vae.latent_grid(10)
    share = torch.distributions.Normal(0.0, 1.0).cdf(z)
    expected = (torch.arange(10) + 0.5) / 10
    assert torch.allclose(share[:10, 0], expected, atol=1e-5)  # a row: z₁ grows to the right
    assert torch.allclose(share[::10, 1], expected.flip(0), atol=1e-5)  # z₂ grows upwards


def test_a_line_begins_and_ends_at_the_reconstructions(stripes):
    torch.manual_seed(0)
    model, pairs = vae.VAE(stripes.shape, 3), stripes.test_images[:4]
    lines = vae.interpolate(model, pairs, steps=5)
    assert lines.shape == (10, 1, 28, 28)
    ends = vae.generate(model, vae.encoded(model, pairs))
    assert torch.equal(lines[[0, 4, 5, 9]], ends)
    middle = vae.encoded(model, pairs)[2:].mean(dim=0, keepdim=True)
    assert (lines[7].int() - vae.generate(model, middle)[0].int()).abs().max() <= 1


def test_bad_settings_are_refused(tmp_path):
    where = ("--output-dir", tmp_path)
    assert "--latent-sizes must be at least 1" in complaint(
        "studies.vae", "--latent-sizes", 2, 0, *where
    )
    assert "There is no checkpoint" in complaint("studies.vae", "--sample-only", *where)


def test_a_collapsed_encoder_is_drawn(tmp_path, stripes):
    """All images in one point of the latent space, as after --hidden 3: t-SNE would divide by 0."""
    model = vae.VAE(stripes.shape, 4)
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)
    save_figure(vae.plot_tsne({"4 latents": model}, stripes, vae.Config()), tmp_path / "tsne.png")
    assert (tmp_path / "tsne.png").is_file()


def test_the_decoder_draws_the_same_elsewhere(quick):
    model = vae.load_model(vae.Config(output_dir=quick), torch.device("cpu"))
    z = torch.randn(5, model.latent_size)
    means = elsewhere(quick / "d.onnx", latents=z)
    assert means.shape == (5, 1, 28, 28) and means.std() > 0.1
    assert (means * 255 - vae.generate(model, z)).abs().max() < 1.01


def test_a_folder_of_one_class(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "own").mkdir()
    for i in range(20):
        picture = Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8))
        picture.save(tmp_path / "own" / f"{i}.png")
    run_here("studies.vae", "--quick", "--dataset", f"folder:{tmp_path / 'own'}", "--latent-sizes", 2,
             "--output-dir", tmp_path)  # fmt: skip
    assert (tmp_path / "study_images" / "vae" / "results.json").is_file()
