from __future__ import annotations

import json
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
def quick(main_job, tmp_path_factory) -> Path:
    folder = with_classifier(main_job, tmp_path_factory.mktemp("vae"))
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
    assert [row["latents"] for row in rows] == [2, 4, 16]
    for row in rows:
        assert row["negative ELBO"] == pytest.approx(row["reconstruction"] + row["KL"], rel=1e-5)
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


def test_grey_pixels_cannot_be_reconstructed_below_their_entropy():
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    least, zero = vae.least_reconstruction(x), torch.zeros(3, 5)
    for shift, at_most in ((0.0, 1e-4), (0.1, 0.1), (-0.1, 0.1)):
        above = vae.elbo_parts(x.logit() + shift, x, zero, zero)[0] - least
        assert (above > (shift != 0) * 1e-3 - 1e-4).all() and (above < at_most).all()


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
    save_figure(vae.plot_tsne({4: model}, stripes, vae.Config()), tmp_path / "tsne.png")
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
