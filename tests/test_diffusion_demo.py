from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import complaint, run_here, untaught
from PIL import Image

import diffusion_demo as demo


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_additive_noise_has_the_stated_sigma():
    grey = np.full((200, 200), 0.5)
    sigmas = []
    for sigma, noisy in demo.additive(grey, 5, rng()):
        sigmas.append(sigma)
        assert noisy.min() >= 0 and noisy.max() <= 1
        if sigma == 0.1:
            assert (noisy - grey).std() == pytest.approx(0.1, rel=0.02)
    assert sigmas == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_variance_preserving_keeps_the_variance():
    """For a picture of unit variance on [-1, 1] the variance stays 1; at the end it is noise."""
    picture = (rng().normal(size=(300, 300)) + 1) / 2
    steps = list(demo.variance_preserving(picture, 5, np.random.default_rng(1)))
    for _, x in steps:
        assert (x * 2 - 1).var() == pytest.approx(1, rel=0.03)
    sigma, x = steps[-1]
    assert sigma == pytest.approx(0.5, abs=1e-4)
    assert abs(np.corrcoef(picture.ravel(), x.ravel())[0, 1]) < 0.02


def test_what_fades_is_not_compared():
    assert "also fade" in complaint(
        "diffusion_demo", "--process", "variance-preserving", "--compare"
    )


def test_errors_are_measured_against_the_clean_picture():
    clean = np.zeros((32, 32))
    row = demo.measure(clean, clean + 0.1, clean, 0.1)
    assert row["MSE"] == pytest.approx(0.01) and row["PSNR (dB)"] == pytest.approx(20)
    assert row["SSIM"] < 0.1 and row["σ added"] == 0.1
    blurred = [row[f"{name}, blurred"] for name in ("MSE", "PSNR (dB)", "SSIM")]
    assert blurred == [0, float("inf"), pytest.approx(1)]


def test_blur_keeps_a_flat_picture_and_calms_noise():
    flat = np.full((40, 40), 0.3)
    assert np.allclose(demo.blur(flat, 5), flat)
    noise = rng().normal(size=(100, 100))
    assert demo.blur(noise, 5).std() < 0.5 * noise.std()
    assert np.array_equal(demo.blur(noise, 1), noise)


def test_the_lesson(main_job):
    folder = main_job / "diffusion_images"
    result = json.loads((folder / "results.json").read_text("utf-8"))
    table = result["tables"][0]
    psnr, blurred = (
        [row[table["columns"].index(c)] for row in table["rows"]]
        for c in ("PSNR (dB)", "PSNR (dB), blurred")
    )
    assert psnr == sorted(psnr, reverse=True) and len(psnr) == 5
    assert blurred[-1] > psnr[-1] + 3
    with Image.open(folder / "whole_way.gif") as gif:
        assert gif.n_frames == 7
    assert all((folder / f"step_{i}.png").is_file() for i in range(1, 6))


def test_own_picture_and_process(tmp_path):
    Image.effect_noise((500, 300), 50).convert("RGBA").save(tmp_path / "own.png")
    run_here("diffusion_demo", "--image", tmp_path / "own.png", "--size", 64, "--steps", 3,
               "--process", "variance-preserving", "--kernel", 3, "--output-dir", tmp_path)  # fmt: skip
    assert Image.open(tmp_path / "diffusion_images/step_3.png").size == (64, 38)


def test_wrong_input(tmp_path):
    shared = ("--output-dir", tmp_path)
    assert "odd" in complaint("diffusion_demo", *shared, "--kernel", 4)
    assert "--steps" in complaint("diffusion_demo", *shared, "--steps", 0)
    Image.new("L", (1, 1)).save(tmp_path / "one.png")
    assert "1×1" in complaint("diffusion_demo", *shared, "--image", tmp_path / "one.png")


def test_the_comparison(tmp_path):
    run_here("diffusion_demo", "--compare", "--size", 96, "--steps", 2, "--output-dir", tmp_path)
    folder = tmp_path / "diffusion_images"
    result = json.loads((folder / "results.json").read_text("utf-8"))
    assert untaught("diffusion_demo", result) == []
    psnr, ssim = (t for t in result["tables"] if "method" in t["columns"])
    assert len(psnr["rows"]) == len(ssim["rows"]) == 8  # noise, six classical methods, the learned
    for step in (1, 2):
        for table, least in ((psnr, 2), (ssim, 0)):
            quality = {row[0]: row[step] for row in table["rows"]}
            assert all(quality[name] > quality["noisy"] + least for name in list(quality)[1:])
        quality = {row[0]: row[step] for row in psnr["rows"]}
        assert quality.pop("learned") > max(quality.values())
    assert (folder / "compared.png").is_file()
