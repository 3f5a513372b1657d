from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import complaint, remembered, run_here, untaught, with_classifier
from skimage.metrics import structural_similarity

from imagelab.data.pictures import read_png
from imagelab.report.results import start_result
from studies import denoising_gan as study

QUICK = ("studies.denoising_gan", "--quick", "--dataset", "mnist-5k", "--output-dir")


@pytest.fixture(scope="module", autouse=True)
def filters_once():
    """The same noisy images are filtered once, though several runs measure them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "by_filters", remembered(study.by_filters))
        yield


@pytest.fixture(scope="module")
def quick(quick_classifier, tmp_path_factory) -> Path:
    folder = with_classifier(quick_classifier, tmp_path_factory.mktemp("denoising_gan"))
    run_here(*QUICK, folder, "--samples-file", folder / "s.npz")
    return folder


def results(folder: Path) -> dict:
    return json.loads((folder / "study_images/denoising_gan/results.json").read_text("utf-8"))


def test_a_run_leaves_what_was_promised(quick):
    result, folder = results(quick), quick / "study_images" / "denoising_gan"
    assert untaught("studies.denoising_gan", result) == []
    assert all((folder / entry["path"]).is_file() for entry in result["files"])
    assert {"GAN_epoch_001.png", "L1_alone_epoch_001.png", "restored.png"} <= {
        entry["path"] for entry in result["files"]
    }
    assert {p.name for p in (quick / "study_models/denoising_gan").iterdir()} == {
        "GAN.pth", "L1_alone.pth",
    }  # fmt: skip
    columns, rows = result["tables"][0]["columns"], result["tables"][0]["rows"]
    quality = {row[0].split(",")[0]: dict(zip(columns, row, strict=True)) for row in rows}
    assert list(quality) == [
        "noisy", "Gaussian blur", "non-local means", "L1 alone", "GAN", "clean",
    ]  # fmt: skip
    assert quality["clean"]["read right"] > 0.8 and quality["clean"]["PSNR (dB)"] == ""
    for name in ("L1 alone", "GAN"):
        assert quality[name]["PSNR (dB)"] > quality["Gaussian blur"]["PSNR (dB)"] + 2
        assert quality[name]["SSIM"] > quality["Gaussian blur"]["SSIM"] + 0.25
    assert result["metrics"]["GAN less the best filter: PSNR"]["value"] > 2
    images = np.load(quick / "s.npz")["images"]
    assert images.shape == (1000, 28, 28) and images.dtype == np.uint8


def test_the_checkpoints_measure_the_same_again(quick):
    before = results(quick)["tables"][0]
    run_here(*QUICK, quick, "--sample-only")
    assert results(quick)["tables"][0] == before
    for option, value in (("--sigma", 0.25), ("--adversarial-weight", 0.1)):
        sentence = complaint(*QUICK, quick, "--sample-only", option, value)
        assert f"was trained with {option}" in sentence and sentence.endswith(f"not {value}.")


def test_a_kept_checkpoint_is_measured(quick, tmp_path):
    """--checkpoint is the GAN's; L1 alone is the latest one."""
    before = {row[0]: row[1:] for row in results(quick)["tables"][0]["rows"]}
    quick = shutil.copytree(quick, tmp_path / "copy")
    latest = quick / "study_models/denoising_gan/GAN.pth"
    saved = torch.load(latest, weights_only=True)
    for weights in saved["model"]["generator"].values():
        weights.mul_(0.9)
    torch.save(saved, tmp_path / "GAN_epoch_0001.pth")
    run_here(*QUICK, quick, "--checkpoint", tmp_path / "GAN_epoch_0001.pth")
    after = {row[0]: row[1:] for row in results(quick)["tables"][0]["rows"]}
    assert after.pop("GAN") != before.pop("GAN") and after == before
    alone = quick / "study_models/denoising_gan/L1_alone.pth"
    sentence = complaint(*QUICK, quick, "--checkpoint", alone)
    assert "was trained with --adversarial-weight 0.0, not 0.01" in sentence


def test_ssim_is_that_of_scikit_image():
    """On [0, 1], whatever range the images come in."""
    rng = torch.Generator().manual_seed(0)
    clean = torch.rand(3, 1, 28, 28, generator=rng) * 2 - 1
    other = (clean + 0.4 * torch.randn(clean.shape, generator=rng)).clamp(-1, 1)
    expected = [
        structural_similarity((a[0].double().numpy() + 1) / 2, (b[0].double().numpy() + 1) / 2,
                              data_range=1.0, gaussian_weights=True, sigma=1.5,
                              use_sample_covariance=False)
        for a, b in zip(other, clean, strict=True)
    ]  # fmt: skip
    assert study.ssim_loss(other, clean).item() == pytest.approx(1 - np.mean(expected), abs=1e-5)
    assert study.ssim_loss(clean, clean).item() == pytest.approx(0, abs=1e-5)


def test_nearly_the_same_grey_costs_next_to_nothing():
    """The formula on [-1, 1] would say 1.85 of 0.525 beside 0.475, whose means have two signs there."""
    grey = torch.full((1, 1, 28, 28), 0.525)
    assert 0 < study.ssim_loss(2 * grey - 1, 1 - 2 * grey).item() < 0.02


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> study.Config:
    folder = tmp_path_factory.mktemp("stripes")
    return study.Config(output_dir=folder, epochs=1, batch_size=32, width=4)


@pytest.fixture(scope="module")
def gan(config, stripes) -> study.Training:
    """Trained under all three weights."""
    return trained(config, stripes)


def trained(config, data, weights=None, **more):
    own = replace(config, **(weights or {}), **more)
    return study.train(own, data, config.output_dir / "x.pth", "x")


def test_the_discriminator_learns_only_in_the_game(config, stripes, gan):
    first = study.build(config, stripes.shape, torch.device("cpu"))[1].state_dict()
    assert any((gan.networks["discriminator"].state_dict()[k] != v).any() for k, v in first.items())
    assert len(gan.curve("d_loss")) == len(gan.curve("l1")) == 10
    alone = study.both_trainings(config)["L1 alone"]
    alone = trained(alone, stripes)
    assert all(
        (alone.networks["discriminator"].state_dict()[k] == v).all() for k, v in first.items()
    )
    assert len(alone.curve("d_loss")) == 0


def test_both_see_the_same_images_under_the_same_noise(config, stripes, gan):
    """Then the first step's L1, before any update, is the same."""
    alone = trained(study.both_trainings(config)["L1 alone"], stripes)
    assert gan.curve("l1")[0] == alone.curve("l1")[0]
    assert gan.curve("l1")[-1] != alone.curve("l1")[-1]


@pytest.mark.parametrize("name", ["adversarial_weight", "l1_weight", "ssim_weight"])
def test_every_weight_counts(config, stripes, gan, name):
    full = gan.networks["generator"].state_dict()
    without = trained(config, stripes, {name: 0.0}).networks["generator"].state_dict()
    assert any((full[k] != without[k]).any() for k in full)


def test_stopped_and_resumed_ends_at_the_same_weights(config, stripes):
    once = trained(config, stripes, epochs=2).networks["generator"].state_dict()
    trained(config, stripes)
    again = trained(config, stripes, epochs=2, resume=True).networks["generator"].state_dict()
    assert all((once[k] == again[k]).all() for k in once)


def test_the_observer_leaves_a_picture_of_every_epoch(config, stripes):
    """Rows of clean, noisy and restored images under a title, the noise the same in every epoch."""
    result = start_result(study.SCRIPT, "", "", config, "pictures", torch.device("cpu"), stripes)
    own, path = replace(config, epochs=2), config.output_dir / "x.pth"
    watching = study.observer(own, stripes, result)
    study.train(own, stripes, path, "L1 alone", watching)
    names = [study.epoch_picture("L1 alone", epoch) for epoch in (1, 2)]
    first, second = (read_png(result.folder / name) for name in names)
    different = (first != second).any(axis=(1, 2)).nonzero()[0] / len(first)  # where, downwards
    title, restored = different[different < 0.15], different[different > 0.15]
    assert len(title) and restored.min() > 0.6  # the number in the title, and the last row


def test_wrong_input(tmp_path):
    shared = ("studies.denoising_gan", "--output-dir", tmp_path)
    assert "--sigma" in complaint(*shared, "--sigma", -1)
    assert "--l1-weight" in complaint(*shared, "--l1-weight", "nan")
    assert "no checkpoint" in complaint(*shared, "--sample-only", "--dataset", "mnist-5k")
