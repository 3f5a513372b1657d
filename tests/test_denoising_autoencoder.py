from __future__ import annotations

import itertools
import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import complaint, elsewhere, remembered, run_here, untaught
from PIL import Image
from safetensors.torch import load_file

from imagelab.data.photographs import photograph, random_patches
from imagelab.data.quality import psnr
from imagelab.report.results import start_result
from imagelab.setup.runtime import Interrupted
from imagelab.techniques.denoiser import restore, trained_denoiser
from imagelab.techniques.restoration import CLASSICAL, Restored
from imagelab.training.checkpoints import load_checkpoint
from studies import denoising_autoencoder as study

SCRIPT = "studies.denoising_autoencoder"
QUICK = (SCRIPT, "--quick", "--dataset", "mnist-5k", "--output-dir")


@pytest.fixture(scope="module", autouse=True)
def filters_once():
    """The same noisy images are filtered once, though two runs measure them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study.restoration, "by_filters", remembered(study.restoration.by_filters))
        yield


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("denoising")
    run_here(*QUICK, folder, "--export", folder / "autoencoder.safetensors")
    return folder


def results(folder: Path) -> dict:
    text = (folder / "study_images/denoising_autoencoder/results.json").read_text("utf-8")
    return json.loads(text)


def test_the_autoencoder_beats_the_filters(quick):
    result = results(quick)
    assert untaught("studies.denoising_autoencoder", result) == []
    folder = quick / "study_images" / "denoising_autoencoder"
    assert all((folder / entry["path"]).is_file() for entry in result["files"])
    quality = {row[0].split(",")[0]: row[1:] for row in result["tables"][0]["rows"]}
    assert list(quality) == ["noisy", "Gaussian blur", "non-local means", "autoencoder"]
    learned, blur, noisy = (quality[k] for k in ("autoencoder", "Gaussian blur", "noisy"))
    assert learned[0] > blur[0] + 1 > noisy[0] + 1 and learned[1] > blur[1] + 0.03
    gains = [m["value"] for n, m in result["metrics"].items() if n.startswith("σ = 25: learned")]
    assert gains[0] > 0
    assert "Kinds of noise" in result["tables"][2]["caption"]


def test_the_checkpoint_measures_the_same_again(quick, monkeypatch):
    """Looked at here are the digits; the photographs are another network's."""
    for name in ("report_photographs", "report_noises"):
        monkeypatch.setattr(study, name, lambda *_: None)
    before = results(quick)
    run_here(*QUICK, quick, "--sample-only", "--samples-file", quick / "s.npz")
    assert results(quick)["tables"][0] == before["tables"][0]
    images = np.load(quick / "s.npz")["images"]
    assert images.shape == (1000, 28, 28) and images.dtype == np.uint8 and images.std() > 10


def test_the_loss_is_the_mean_squared_error_of_what_the_network_makes_of_noise():
    """Of a network that changes nothing: the noise's own variance, σ²."""
    rng = torch.Generator().manual_seed(0)
    grey = torch.full((4, 1, 200, 200), 0.5)
    loss = study.denoising_loss(torch.nn.Identity(), grey, 0.1, rng)
    assert loss.item() == pytest.approx(0.01, rel=0.02)
    assert study.denoising_loss(lambda x: torch.full_like(x, 0.2), grey, 0.1, rng) == (
        pytest.approx(0.09)
    )


def test_the_autoencoder_starts_from_the_mean_grey(stripes):
    model = study.build(study.Config(), stripes)
    assert model.layers[-2].bias.sigmoid().item() == pytest.approx(
        stripes.images.double().mean().item() / 255
    )
    again = study.build(study.Config(), stripes)
    assert torch.equal(again.layers[0].weight, model.layers[0].weight)


def train_autoencoder(stripes, path, **more):
    config = replace(study.Config(epochs=2, batch_size=60), **more.pop("settings", {}))
    return study.train(config, stripes, path, **more).networks["autoencoder"]


def train_residual(_stripes, path, **more):
    config = study.Photographs(epochs=2, batch_size=4, widths=(4, 4), blocks=(1, 1))
    config = replace(config, **more.pop("settings", {}))
    return study.train_photographs(config, random_patches(12, 0), path, **more).averaged


@pytest.mark.parametrize("train", [train_autoencoder, train_residual])
def test_a_training_that_was_watched_and_stopped_goes_on_to_the_same_weights(
    train, stripes, tmp_path
):
    seen = []

    def look(_training, epoch):
        seen.append(epoch)

    def look_and_stop(_training, epoch):
        seen.append(epoch)
        signal.raise_signal(signal.SIGINT)

    straight = train(stripes, tmp_path / "straight.pth").state_dict()
    with pytest.raises(Interrupted, match="--resume"):
        train(stripes, tmp_path / "stopped.pth", after_epoch=look_and_stop)
    resumed = train(stripes, tmp_path / "stopped.pth", settings={"resume": True},
                    after_epoch=look).state_dict()  # fmt: skip
    assert seen == [1, 2]  # the first is not done again
    assert all(torch.equal(resumed[name], values) for name, values in straight.items())


def fake_methods(**psnr_of: float):
    """A stand-in for `compare`, whose methods reach these PSNR on every picture, or noise."""
    return lambda clean, noisy, sigma, methods: {
        name: Restored(clean, psnr, 0.5, 1.0) for name, psnr in psnr_of.items()
    }


@pytest.mark.parametrize("with_bm3d", [False, True])
def test_photographs_are_reported_beside_the_best_classical_method(
    with_bm3d, tmp_path, monkeypatch
):
    config = study.Config(output_dir=tmp_path)
    result = start_result(study.SCRIPT, "", "", config, "pictures", torch.device("cpu"))
    psnr_of = {"noisy": 20, **dict.fromkeys(CLASSICAL, 24), "total variation": 26, "learned": 29}
    psnr_of |= {"BM3D": 30} if with_bm3d else {}
    monkeypatch.setattr(study.restoration, "compare", fake_methods(**psnr_of))
    study.report_photographs(study.middles(("camera", "coins"), 40), 25, {}, 0, result)
    (table,) = result.tables
    assert table["columns"][:3] == ["method", "camera", "coins"]
    assert ["learned", 29, 29, 29.0, 0.5, 1.0] in table["rows"]
    values = {name: (metric.value, metric.n) for name, metric in result.metrics.items()}
    expected = {
        "photographs, σ = 25: learned": (29, 2),
        "σ = 25: learned less total variation": (3, 2),
        "σ = 25: learned less non-local means": (5, 2),
    }
    assert values == expected | ({"σ = 25: learned less BM3D": (-1, 2)} if with_bm3d else {})
    assert (tmp_path / "pictures/photographs_25.png").is_file()


def test_neighbours_of_correlated_noise_are_alike():
    """ε is white noise under a Gaussian of 1 pixel: neighbours correlate by exp(−1/4)."""
    rng = np.random.default_rng(0)
    noise = study.correlated(np.full((300, 300), 0.5), 0.1, rng) - 0.5
    assert noise.std() == pytest.approx(0.1, rel=1e-3)
    for one, other in ((noise[:, 1:], noise[:, :-1]), (noise[1:], noise[:-1])):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] == pytest.approx(
            np.exp(-0.25), abs=0.03
        )
    assert abs(np.corrcoef(noise[:, 8:].ravel(), noise[:, :-8].ravel())[0, 1]) < 0.05


def test_a_comparison_of_each_way_of_using_the_network(tmp_path):
    """All in grey; without σ, and as the mean of eight."""
    run_here(SCRIPT, "compare", "--side", 64, "--sigmas", 25, "--no-noises", "--grey", "--ensemble",
             "--output-dir", tmp_path)  # fmt: skip
    folder = tmp_path / "study_images/denoising_autoencoder/compare"
    result = json.loads((folder / "results.json").read_text("utf-8"))
    (table,) = result["tables"]
    rows = {row[0]: row[1:] for row in table["rows"]}
    clean = study.middles(study.HELD_OUT, 64, in_grey=True)
    assert all(picture.shape == (64, 64) for picture in clean.values())
    noisy = {}
    rng = np.random.default_rng(0)
    for name, picture in clean.items():
        noisy[name] = picture + rng.normal(0, 25 / 255, picture.shape)
    model = trained_denoiser()
    expected = {
        "learned": lambda x: restore(model, x, 25 / 255),
        study.restoration.BLIND: lambda x: restore(model, x, study.restoration.estimated_sigma(x)),
        study.restoration.OF_EIGHT: lambda x: restore(model, x, 25 / 255, ensemble=True),
    }
    for row, method in expected.items():
        each = [psnr(clean[name], method(x)) for name, x in noisy.items()]
        assert rows[row][:7] == pytest.approx([*each, np.mean(each)], abs=0.01)
    for way in study.WAYS:
        lead = result["metrics"][f"σ = 25: {way} less learned"]["value"]
        assert lead == pytest.approx(rows[way][6] - rows["learned"][6], abs=1e-6)


def test_a_comparison_trains_nothing(tmp_path):
    run_here(SCRIPT, "compare", "--quick", "--output-dir", tmp_path)
    folder = tmp_path / "study_images/denoising_autoencoder/compare"
    assert {"noises.png", "photographs_25.png"} <= {path.name for path in folder.iterdir()}
    assert not (tmp_path / "study_models").exists()
    result = json.loads((folder / "results.json").read_text("utf-8"))
    noises = result["tables"][1]
    assert noises["rows"][0][0] == "Gaussian, σ = 0.10"
    assert noises["columns"][1:3] == ["noisy", "Gaussian blur"] and len(noises["rows"]) == 6
    lead = result["metrics"]["gaussian noise: learned less best classical"]["value"]
    row = dict(zip(noises["columns"][1:], noises["rows"][0][1:], strict=True))
    assert lead == pytest.approx(row["learned"] - max(row[name] for name in CLASSICAL), abs=1e-6)


def test_noisy_patches():
    rng = torch.Generator().manual_seed(0)
    colour = 0.4 + 0.2 * torch.rand(400, 3, 32, 32, generator=rng)
    clean, noisy, sigma = study.noisy_patches(colour, 0.5, rng)
    left = (noisy - clean).square().mean((1, 2, 3)).sqrt()
    assert torch.allclose(left, sigma) and 0.45 < sigma.max() < 0.6
    assert sigma.mean().item() == pytest.approx(0.5 / 3, rel=0.15)  # of a squared uniform number
    grey = (clean == clean[:, :1]).flatten(1).all(dim=1)
    assert 150 < grey.sum() < 250
    assert (noisy[grey] == noisy[grey][:, :1]).all()  # one noise for the three equal channels
    assert not (noisy[~grey] == noisy[~grey][:, :1]).flatten(1).all(dim=1).any()
    clipped = ((noisy >= 0) & (noisy <= 1)).flatten(1).all(dim=1) & (sigma > 0.2)
    assert clipped.sum() == pytest.approx(0.25 * (sigma > 0.2).sum().item(), rel=0.3)


def test_a_quarter_of_the_patches_get_more_noise():
    """1.5 times as much; where it is too weak to be clipped, it can be seen."""
    rng = torch.Generator().manual_seed(0)
    *_, sigma = study.noisy_patches(torch.full((2000, 3, 16, 16), 0.5), 0.05, rng)
    assert 0.07 < sigma.max() < 0.08
    share = (sigma > 0.055).float().mean().item()
    assert share == pytest.approx(0.25 * (1 - np.sqrt(1.1 / 1.5)), rel=0.3)


def test_colours_are_shuffled_inverted_and_made_weaker_or_stronger():
    """What differs between the channels is that of the photograph: in some order, times −1.2 to 1.2.

    The other half of the patches with colours has powers of them.
    """
    rng = torch.Generator().manual_seed(0)
    colour = 0.4 + 0.2 * torch.rand(300, 3, 16, 16, generator=rng)
    clean, *_ = study.noisy_patches(colour, 0.5, rng)
    before, after = ((x - x.mean(dim=1, keepdim=True)).flatten(2) for x in (colour, clean))
    coloured = after.square().mean((1, 2)) > 1e-9
    orders, factors = [], []
    for x, y in zip(before[coloured], after[coloured], strict=True):
        tried = {}
        for order in itertools.permutations(range(3)):
            factor = ((x[list(order)] * y).sum() / x.square().sum()).item()
            error = (y - factor * x[list(order)]).abs().max().item()
            tried[error] = (order, factor)
        if min(tried) < 1e-5:
            order, factor = tried[min(tried)]
            orders.append(order), factors.append(factor)
    assert 0.4 < len(orders) / coloured.sum().item() < 0.6
    assert min(orders.count(order) for order in itertools.permutations(range(3))) > 0.08 * len(
        orders
    )
    strength = np.abs(factors)
    assert strength.max() <= 1.2 + 1e-5 and strength.mean() == pytest.approx(0.6, abs=0.08)
    assert 0.35 < np.mean(np.array(factors) < 0) < 0.65  # negatives


def test_channels_are_raised_to_powers_of_their_own():
    """Seen in grey patches, of which a quarter become colourful."""
    rng = torch.Generator().manual_seed(0)
    grey = 0.1 + 0.8 * torch.rand(400, 1, 16, 16, generator=rng).expand(-1, 3, -1, -1)
    clean, *_ = study.noisy_patches(grey, 0.5, rng)
    coloured = (clean != clean[:, :1]).flatten(1).any(dim=1)
    assert 0.18 < coloured.float().mean() < 0.32
    powers = []
    for x, y in zip(grey[coloured], clean[coloured], strict=True):
        found = [y.log() / base.log() for base in (x, 1 - x)]  # a photograph, or its negative
        power = min(found, key=lambda p: p.flatten(1).std(dim=1).max())
        assert power.flatten(1).std(dim=1).max() < 1e-3
        powers.append(power.mean((1, 2)))
    logs = torch.stack(powers).log()
    assert logs.abs().max() < 0.6 + 1e-3 and logs.std() == pytest.approx(0.6 / 3**0.5, rel=0.15)
    assert logs.std(dim=1).mean() > 0.2  # each channel its own


def tiny(path, **settings):
    config = study.Photographs(epochs=2, batch_size=4, widths=(8, 8), blocks=(1, 1), **settings)
    return study.train_photographs(config, random_patches(24, 0), path)


def test_no_step_is_large_in_any_direction(tmp_path):
    """Muon: the sum of all steps has no singular value above that of so many steps of size lr."""
    training = tiny(tmp_path / "model.pth", lr=0.01)
    torch.manual_seed(0)
    start = dict(study.ResidualDenoiser((8, 8), (1, 1)).named_parameters())
    moved = []
    for name, weights in training.networks["denoiser"].named_parameters():
        if weights.dim() == 4 and not name.startswith(("first", "last")):
            step = study.as_matrix(weights.detach() - start[name].detach())
            shape = max(1, step.shape[0] / step.shape[1]) ** 0.5
            moved.append(torch.linalg.matrix_norm(step, ord=2).item() / shape)
    assert min(moved) > 0.01 and max(moved) < training.steps_done * 0.01 * 1.3


def test_a_rare_huge_gradient_does_not_stay_in_the_momentum(tmp_path, monkeypatch):
    weighted_error = study.weighted_error
    monkeypatch.setattr(study, "weighted_error", lambda *x: 1e6 * weighted_error(*x))
    training = tiny(tmp_path / "model.pth")
    assert training.curve("norm").max() > 100
    states = training.optimizers["muon"].state.values()
    norms = torch.stack([state["momentum_buffer"].norm() for state in states])
    assert 0 < norms.norm() <= 0.1


def test_matrices_share_the_memory_of_the_weights():
    weights = torch.rand(6, 5, 3, 3).to(memory_format=torch.channels_last)
    matrix = study.as_matrix(weights)
    assert matrix.shape == (6, 45) and matrix.data_ptr() == weights.data_ptr()
    assert torch.equal(matrix[2].reshape(3, 3, 5), weights[2].permute(1, 2, 0))


def test_each_strength_of_noise_counts_by_its_own_measure():
    """σ^1.2 in the denominator: an error of σ^0.6 is 1 for each σ."""
    clean = torch.zeros(3, 3, 8, 8)
    sigma = torch.tensor([0.05, 0.1, 0.4])
    made = (sigma + 1 / 255).pow(0.6)[:, None, None, None].expand_as(clean)
    assert study.weighted_error(made, clean, sigma).item() == pytest.approx(1)
    made = made * torch.tensor([1.0, 1.0, 2.0])[:, None, None, None]
    assert study.weighted_error(made, clean, sigma).item() == pytest.approx((1 + 1 + 4) / 3)


def test_the_networks_denoise_the_same_elsewhere_at_any_size(quick, tmp_path, float32):
    saved = load_checkpoint(
        quick / "study_models/denoising_autoencoder/autoencoder.pth", SCRIPT[8:]
    )
    weights = load_file(quick / "autoencoder.safetensors")
    own = saved["model"]["autoencoder"]
    assert weights.keys() == own.keys() and all(torch.equal(weights[k], own[k]) for k in own)
    path = tmp_path / "denoiser.onnx"
    run_here(SCRIPT, "denoise", "--export", path)
    noisy = (photograph("coins")[:72, :104] / 255 + 0.1 * np.random.default_rng(0).normal(
        size=(72, 104))).astype(np.float32)  # fmt: skip
    x = torch.from_numpy(noisy).expand(1, 3, -1, -1)
    clean = elsewhere(path, noisy=x, sigma=torch.tensor([0.1]))[0].mean(dim=0)
    own = restore(trained_denoiser(), noisy.clip(-9, 9), 0.1)
    assert np.allclose(clean.clamp(0, 1), own, atol=1e-4)
    assert np.abs(own - noisy).mean() > 0.05  # it did something


def test_photographs_trains_weights_that_denoise_takes(tmp_path):
    run_here(SCRIPT, "photographs", "--quick", "--output-dir", tmp_path)
    weights = tmp_path / "study_models" / "denoising_autoencoder" / "denoiser.pth"
    whole = load_checkpoint(weights.with_name("photographs.pth"), study.SCRIPT)
    small = load_checkpoint(weights, study.SCRIPT)
    assert not small["optimizer"] and weights.stat().st_size < 2_000_000
    assert all(torch.equal(small["ema"][k], v.half()) for k, v in whole["ema"].items())
    Image.fromarray(photograph("coins")[:50, :60]).save(tmp_path / "in.png")
    run_here(SCRIPT, "denoise", "--image", tmp_path / "in.png", "--output", tmp_path / "out.png",
               "--weights", weights, "--sigma", 0.1)  # fmt: skip
    assert Image.open(tmp_path / "out.png").size == (60, 50)
    before = (tmp_path / "study_images/denoising_autoencoder/photographs/results.json").read_text()
    assert "Photographs, σ = 25 of 255" in json.loads(before)["tables"][0]["caption"]


@pytest.mark.parametrize("name", ["coins", "astronaut"])
def test_your_own_picture(tmp_path, name):
    """Odd sides; grey stays grey and colour colour; σ is measured."""
    clean = photograph(name)[100:261, 50:303]
    noise = np.random.default_rng(0).normal(0, 25, clean.shape)
    noisy = (clean + noise).clip(0, 255).round().astype(np.uint8)
    Image.fromarray(noisy).save(tmp_path / "noisy picture.tif")
    output = tmp_path / "new folder" / "clean.png"
    shown, _ = run_here(
        SCRIPT, "denoise", "--image", tmp_path / "noisy picture.tif", "--output", output
    )
    assert "253×161 pixels" in shown and "measured" in shown
    restored = np.asarray(Image.open(output))
    assert restored.shape == clean.shape
    assert psnr(clean / 255, restored / 255) > psnr(clean / 255, noisy / 255) + 6


def test_noise_beyond_white_is_no_other_range(tmp_path):
    """Floats in [0, 1] with noise of both signs: the picture is neither black nor white."""
    clean = np.linspace(0, 1, 9216).reshape(96, 96)
    noisy = clean + np.random.default_rng(0).normal(0, 0.1, clean.shape)
    Image.fromarray(noisy.astype(np.float32)).save(tmp_path / "n.tif")
    out = tmp_path / "out.png"
    run_here(SCRIPT, "denoise", "--image", tmp_path / "n.tif", "--output", out)
    restored = np.asarray(Image.open(out)) / 255
    assert abs(restored.mean() - 0.5) < 0.02 and psnr(clean, restored) > 26


def test_wrong_input(tmp_path):
    picture, text, out = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "out.png"
    Image.fromarray(photograph("coins")[:40, :40]).save(picture)
    text.write_text("no picture")
    denoise = (SCRIPT, "denoise", "--image")
    assert "is not a picture" in complaint(*denoise, text, "--output", out)
    assert "There is no picture" in complaint(*denoise, tmp_path / "none.png", "--output", out)
    assert ".png, .jpg" in complaint(*denoise, picture, "--output", tmp_path / "out.xyz")
    assert "not a checkpoint" in complaint(*denoise, picture, "--output", out, "--weights", text)
    assert "--sigma" in complaint(*denoise, picture, "--output", out, "--sigma", -1)
    for given in ([], ["--image", picture], ["--output", out, "--export", tmp_path / "d.onnx"]):
        assert "both --image and --output, or --export" in complaint(SCRIPT, "denoise", *given)
    before = picture.read_bytes()
    assert "choose another --output" in complaint(*denoise, picture, "--output", picture)
    assert picture.read_bytes() == before
    assert not out.exists()
    assert "--sigma" in complaint(SCRIPT, "--sigma", "nan", "--output-dir", tmp_path)
    photographs = (SCRIPT, "photographs", "--output-dir", tmp_path, "--widths")
    assert "must have the same length" in complaint(*photographs, 8, 8, "--blocks", 1)
    assert "halved 7 times" in complaint(*photographs, *[8] * 8, "--blocks", *[1] * 8)
