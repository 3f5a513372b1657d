from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import complaint, run_script
from PIL import Image

from imagelab.diffusion import cosine_schedule
from studies.diffusion_restoration import (
    MASKS,
    enlarge,
    hole_psnr,
    make_holes,
    old_fillings,
    shrink,
)
from studies.unet_diffusion import Model


@pytest.mark.parametrize("kind", MASKS)
def test_holes(kind):
    holes = make_holes(kind, 5, (1, 28, 28), 0)
    assert holes.shape == (5, 1, 28, 28) and holes.dtype == torch.bool
    share = holes.float().mean().item()
    assert {"box": share == 0.25, "half": share == 0.5, "strokes": 0.1 < share < 0.6}[kind]
    assert torch.equal(holes, make_holes(kind, 5, (1, 28, 28), 0))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_old_methods_fill_the_hole_and_nothing_else(channels):
    images = torch.full((2, channels, 28, 28), 200, dtype=torch.uint8)
    images[:, :, 14:] = 40
    holes = make_holes("half", 2, (channels, 28, 28), 0)
    for name, filled in old_fillings(images, holes).items():
        outside = ~holes.expand_as(images)
        assert filled.shape == images.shape, name
        assert torch.equal(filled[outside], images[outside]), name
        assert (filled[~outside].int() - 200).abs().max() < 10, name  # all that is seen is 200


def test_psnr_counts_the_hole_alone():
    images = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    holes = make_holes("half", 1, (1, 28, 28), 0)
    filled = images.clone()
    filled[:, :, 14:] = 51  # 0.2 of 255: 14 dB
    filled[:, :, :14] = 255
    assert hole_psnr(filled, images, holes) == pytest.approx(13.98, abs=0.01)


def test_shrinking_keeps_the_mean_and_undoes_enlarging_flat_parts():
    x = torch.rand(2, 1, 28, 28)
    assert torch.allclose(shrink(x, 4).mean((2, 3)), x.mean((2, 3)), atol=1e-6)
    flat = torch.full((1, 1, 7, 7), 0.3)
    assert torch.allclose(enlarge(flat, 4), torch.full((1, 1, 28, 28), 0.3), atol=1e-6)


def test_denoising_with_a_perfect_estimate_ends_at_the_image(monkeypatch):
    from studies import diffusion_restoration

    clean = torch.rand(2, 1, 8, 8)
    network = torch.nn.Linear(1, 1)
    network.classes = 3
    model = Model(network, cosine_schedule(1000), "v", (1, 8, 8))
    entered = []

    def perfect(self, labels, guidance, rescale=0):
        def estimate(x, t):
            entered.append((t, x))
            return 2 * clean - 1

        return estimate

    monkeypatch.setattr(Model, "of_classes", perfect)
    noisy = clean + 0.25 * torch.randn(2, 1, 8, 8)
    one, drawn = diffusion_restoration.denoise(model, noisy, 0.25, 7, 0)
    assert torch.allclose(one, clean, atol=1e-5) and torch.allclose(drawn, clean, atol=1e-5)
    t, x = entered[0]
    alpha_bar = model.schedule.alpha_bar[t].item()
    # What enters is √ᾱ·x₀ + √(1 − ᾱ)·ε: the noise found in it has the spread that belongs to t.
    spread = (x - alpha_bar**0.5 * (2 * clean - 1)).std().item()
    assert spread == pytest.approx((1 - alpha_bar) ** 0.5, rel=0.2)


@pytest.fixture(scope="module")
def quick(unet_run) -> Path:
    run_script("studies.diffusion_restoration", "--quick", "--dataset", "digits", "--output-dir",
               unet_run, "--samples-file", unet_run / "large.npz")  # fmt: skip
    return unet_run


def test_a_run_leaves_what_was_promised(quick):
    folder = quick / "study_images" / "diffusion_restoration"
    result = json.loads((folder / "results.json").read_text("utf-8"))
    names = {entry["path"] for entry in result["files"]}
    assert {"inpainting_half.png", "several.png", "denoising.png", "super_resolution.png"} <= names
    assert all((folder / name).is_file() for name in names)
    assert {row[0] for row in result["tables"][1]["rows"]} > {"Telea", "Navier-Stokes", "diffusion"}
    assert np.load(quick / "large.npz")["images"].shape == (20, 28, 28)


def test_a_picture_of_one_s_own(quick, tmp_path):
    digit = np.zeros((40, 40), np.uint8)
    digit[5:35, 15:22] = 255
    Image.fromarray(digit).save(tmp_path / "one.png")
    hole = np.zeros((40, 40), np.uint8)
    hole[20:] = 255
    Image.fromarray(hole).save(tmp_path / "hole.png")
    model = quick / "study_models" / "unet_diffusion" / "unet.pth"
    run_script("studies.diffusion_restoration", "inpaint", "--image", tmp_path / "one.png", "--mask",
               tmp_path / "hole.png", "--output", tmp_path / "out.png", "--model", model,
               "--samples", 2, "--label", 1)  # fmt: skip
    out = np.asarray(Image.open(tmp_path / "out.png"))
    assert out.shape == (112, 232)
    seen = np.asarray(Image.fromarray(digit).resize((28, 28), Image.Resampling.LANCZOS))[:14]
    assert (out[: 14 * 4 : 4, : 28 * 4 : 4] == seen).all()  # the known part is as it was


def test_mistakes_are_told_in_a_sentence(quick, tmp_path):
    def said(*arguments):
        model = quick / "study_models" / "unet_diffusion" / "unet.pth"
        return complaint("studies.diffusion_restoration", "inpaint", "--model", model, *arguments)

    assert "no picture" in said("--image", "none.png", "--output", tmp_path / "o.png")
    assert "must end in" in said("--image", "none.png", "--output", tmp_path / "o.txt")
    assert "train first" in complaint("studies.diffusion_restoration", "--output-dir", tmp_path)
