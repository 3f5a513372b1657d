from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import complaint, run_here, untaught
from PIL import Image
from skimage.util import random_noise

import diffusion_demo as demo
from imagelab.data.pictures import read_grey
from imagelab.techniques.restoration import CLASSICAL


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


GREY = np.full((300, 300), 0.5)
BRIGHT, DARK = np.full((300, 300), 0.8), np.full((300, 300), 0.1)


def test_additive_noise_has_the_stated_sigma():
    steps = list(demo.additive(GREY, "gaussian", 5, rng()))
    assert [label for label, _, _ in steps] == [f"σ = {k / 10:.2f}" for k in range(1, 6)]
    assert [sigma for _, sigma, _ in steps] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5], rel=0.01)
    assert all(noisy.min() >= 0 and noisy.max() <= 1 for _, _, noisy in steps)
    assert (steps[0][2] - GREY).std() == pytest.approx(0.1, rel=0.02)
    assert steps[4][2].min() == 0 and steps[4][2].max() == 1  # clipped


@pytest.mark.parametrize("x", [GREY, BRIGHT, DARK], ids=["grey", "bright", "dark"])
@pytest.mark.parametrize(
    "noise, mode, settings, strength",
    [
        (demo.gaussian, "gaussian", {"var": 0.15**2}, 0.15),
        (demo.salt_and_pepper, "s&p", {"amount": 0.2}, 0.2),
        (demo.speckle, "speckle", {"var": 0.3**2}, 0.3),
    ],
    ids=["gaussian", "salt and pepper", "speckle"],
)
def test_noise_has_the_statistics_of_scikit_image(noise, mode, settings, strength, x):
    ours = noise(x, strength, rng())
    theirs = random_noise(x, mode, rng=1, clip=False, **settings)
    for statistic in (np.mean, np.std, lambda y: np.mean(y == 0), lambda y: np.mean(y == 1)):
        assert statistic(ours) == pytest.approx(statistic(theirs), rel=0.03, abs=0.003)


def test_poisson_noise_has_the_statistics_of_scikit_image():
    """It counts as many photons in white as the picture has grey levels, here 256."""
    ramp = np.tile(np.arange(256) / 255, (400, 1))
    ours, theirs = demo.poisson(ramp, 256, rng()), random_noise(ramp, "poisson", rng=1, clip=False)
    for noisy in (ours, theirs):
        assert np.allclose(noisy.mean(axis=0), ramp[0], atol=0.015)
        assert np.polyfit(ramp[0], noisy.var(axis=0), 1) == pytest.approx([1 / 256, 0], abs=1e-4)
    assert not demo.poisson(np.zeros((9, 9)), 100, rng()).any()  # no light, no noise


def test_jpeg_damages_blocks_of_eight_pixels():
    picture = read_grey(None, max_side=128)
    coarse, fine = (demo.jpeg(picture, quality, rng()) for quality in (5, 95))
    assert np.abs(fine - picture).mean() < 0.01 < np.abs(coarse - picture).mean()
    steps = np.abs(np.diff(coarse, axis=1)).mean(axis=0)  # between the columns
    borders = steps[7::8].mean()
    assert borders > 2 * np.delete(steps, np.s_[7::8]).mean()
    assert np.array_equal(coarse, demo.jpeg(picture, 5, np.random.default_rng(1)))
    colour = demo.jpeg(np.stack([picture] * 3, axis=2), 50, rng())
    assert colour.shape == (*picture.shape, 3)


def test_every_noise_grows_from_step_to_step():
    picture = read_grey(None, max_side=96)
    for kind in demo.NOISES:
        labels, sigmas, _ = zip(*demo.additive(picture, kind, 10, rng()), strict=True)
        assert (
            len(set(labels)) == 10
            and list(sigmas) == sorted(sigmas)
            and sigmas[0] < sigmas[9] / 1.5
            and sigmas[0] < 0.2
        )


def test_variance_preserving_keeps_the_variance():
    """For a picture of unit variance on [-1, 1] the variance stays 1; at the end it is noise."""
    picture = (rng().normal(size=(300, 300)) + 1) / 2
    steps = list(demo.variance_preserving(picture, 5, np.random.default_rng(1)))
    for _, _, x in steps:
        assert (x * 2 - 1).var() == pytest.approx(1, rel=0.03)
    _, sigma, x = steps[-1]
    assert sigma == pytest.approx(0.5, abs=1e-4)
    assert abs(np.corrcoef(picture.ravel(), x.ravel())[0, 1]) < 0.02


def test_no_step_is_missing_in_the_picture_of_all():
    """Steps whose strength and PSNR look the same in words have a place each."""
    clean = np.full((16, 24), 0.5)
    measured = {f"PSNR (dB) {which}": 5.0 for which in ("noisy", "blurred")}
    steps = [demo.Step("σ = 0.50", clean, clean, measured)] * 3
    axes = demo.plot_steps(clean, clean, steps).axes
    assert len(axes) == 8 and all(len(axis.images) == 1 for axis in axes)
    assert [axis.get_title().split("\n")[0] for axis in axes[:2]] == ["clean", "step 1, σ = 0.50"]
    assert axes[4].get_title().startswith("clean, blurred")


def test_what_fades_is_not_compared():
    assert "also fade" in complaint(
        "diffusion_demo", "--process", "variance-preserving", "--compare"
    )


def test_only_gaussian_noise_preserves_the_variance():
    process = ("--process", "variance-preserving", "--noise", "jpeg")
    assert "adds Gaussian noise, not jpeg" in complaint("diffusion_demo", *process)


def test_errors_are_measured_against_the_clean_picture():
    clean = np.zeros((32, 32))
    row = demo.measure(clean, clean + 0.1, clean, 0.1)
    assert row["MSE noisy"] == pytest.approx(0.01) and row["PSNR (dB) noisy"] == pytest.approx(20)
    assert row["SSIM noisy"] < 0.1 and row["σ added"] == 0.1
    blurred = [row[f"{name} blurred"] for name in ("MSE", "PSNR (dB)", "SSIM")]
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
        for c in ("PSNR (dB) noisy", "PSNR (dB) blurred")
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
    table = result["tables"][1]
    names = [row[0] for row in table["rows"]]
    assert names[:7] == ["noisy", *CLASSICAL] and names[-1] == "learned"
    for step in (1, 2):
        quality = {row[0]: row[step] for row in table["rows"] if row[0] != "BM3D"}
        assert all(quality[name] > quality["noisy"] + 2 for name in list(quality)[1:])
        assert quality.pop("learned") > max(quality.values())
    assert (folder / "compared.png").is_file()


def test_a_median_suits_salt_and_pepper_and_the_network_does_not(tmp_path):
    run_here("diffusion_demo", "--compare", "--size", 96, "--steps", 2, "--output-dir", tmp_path,
             "--noise", "salt-and-pepper")  # fmt: skip
    result = json.loads((tmp_path / "diffusion_images/results.json").read_text("utf-8"))
    assert result["tables"][1]["columns"][1:3] == ["p = 0.10", "p = 0.20"]
    quality = {row[0]: row[3] for row in result["tables"][1]["rows"]}
    assert max(quality, key=quality.__getitem__) == "median"
    assert quality["median"] > quality["learned"] + 0.5
    figures = result["metrics"]
    assert figures["mean over the steps: median"]["value"] == pytest.approx(quality["median"])
