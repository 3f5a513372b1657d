from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import complaint, run_here, untaught

from imagelab.techniques.diffusion import cosine_schedule
from imagelab.techniques.restoration import CLASSICAL
from studies.diffusion_restoration import enlarge, shrink
from studies.unet_diffusion import Model


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

    monkeypatch.setattr(Model, "class_estimator", perfect)
    noisy = clean + 0.25 * torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    one, drawn = diffusion_restoration.denoise(model, noisy, 0.25, 7, 0)
    assert torch.allclose(one, clean, atol=1e-5) and torch.allclose(drawn, clean, atol=1e-5)
    t, x = entered[0]
    alpha_bar = model.schedule.alpha_bar[t].item()
    # What enters is √ᾱ·x₀ + √(1 − ᾱ)·ε: the noise found in it has the spread that belongs to t.
    spread = (x - alpha_bar**0.5 * (2 * clean - 1)).std().item()
    assert spread == pytest.approx((1 - alpha_bar) ** 0.5, rel=0.2)


@pytest.fixture(scope="module")
def quick(unet_run) -> Path:
    run_here("studies.diffusion_restoration", "--quick", "--dataset", "mnist-5k", "--output-dir",
               unet_run, "--samples-file", unet_run / "large.npz")  # fmt: skip
    return unet_run


def test_a_run_leaves_what_was_promised(quick):
    folder = quick / "study_images" / "diffusion_restoration"
    result = json.loads((folder / "results.json").read_text("utf-8"))
    assert untaught("studies.diffusion_restoration", result) == []  # at the σ of this run
    lead = result["metrics"]["σ = 0.25: one step less the best classical method"]["value"]
    of = {row[0]: row[1] for row in result["tables"][0]["rows"]}
    best = max(of[name] for name in CLASSICAL)
    assert lead == pytest.approx(of["diffusion, one step"] - best, abs=1e-4)
    names = {entry["path"] for entry in result["files"]}
    assert {"denoising.png", "super_resolution.png"} <= names
    assert all((folder / name).is_file() for name in names)
    noise, resolution = result["tables"]
    assert {"non-local means", "diffusion, one step"} < {row[0] for row in noise["rows"]}
    assert all("(95 %: " in row[4] for row in resolution["rows"])  # of twenty images
    assert all(0 < row[2] < 5 for table in (noise, resolution) for row in table["rows"])
    gain = result["metrics"]["super-resolution: PSNR less bicubic's"]
    psnr = {row[0]: row[1] for row in resolution["rows"]}
    assert gain["value"] == pytest.approx(psnr["diffusion, drawn"] - psnr["bicubic"], abs=1e-4)
    low, high = gain["interval"]
    assert low < gain["value"] < high and gain["n"] == 20
    assert result["metrics"]["super-resolution: read as its class"]["interval"]
    assert resolution["rows"][0][5] < 1e-6  # shrinking undoes the repetition of pixels
    assert np.load(quick / "large.npz")["images"].shape == (20, 28, 28)


def test_without_a_network_one_sentence(tmp_path):
    sentence = complaint("studies.diffusion_restoration", "--output-dir", tmp_path)
    assert "train first (unet_diffusion" in sentence


def test_an_enlarger_of_another_factor_is_refused(quick):
    sentence = complaint("studies.diffusion_restoration", "--quick", "--dataset", "mnist-5k",
                         "--output-dir", quick, "--sample-only", "--factor", 2)  # fmt: skip
    assert "trained with --factor 4, not 2" in sentence
