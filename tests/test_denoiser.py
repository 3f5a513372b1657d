from __future__ import annotations

import numpy as np
import pytest
import torch

from imagelab.data.photographs import photograph
from imagelab.data.quality import psnr
from imagelab.setup.runtime import UserError
from imagelab.techniques import denoiser
from imagelab.techniques.denoiser import (
    WEIGHTS,
    ResidualDenoiser,
    restore,
    tiles,
    trained_denoiser,
    turned,
    turned_back,
)
from imagelab.techniques.restoration import CLASSICAL
from imagelab.training.checkpoints import load_checkpoint

SIZES = {  # widths, blocks, and the pixels folded into one place
    "one": ((8,), (1,), 2),
    "two": ((8, 8), (1, 1), 2),
    "three": ((8, 12, 8), (2, 1, 1), 2),
    "unfolded": ((8, 8, 8), (1, 1, 1), 1),
}


@pytest.fixture(params=["two", "three", "unfolded"])
def random_network(request) -> ResidualDenoiser:
    return random_network_of(*SIZES[request.param])


def random_network_of(*form) -> ResidualDenoiser:
    """A small network whose layers all do something, also those that are at zero to begin with."""
    torch.manual_seed(0)
    model = ResidualDenoiser(*form).eval().requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.normal_(layer.weight, 0, 0.1)
    return model


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape).astype(np.float32)


def test_an_untrained_network_changes_nothing():
    picture = noise(30, 21, 3)
    assert np.array_equal(restore(ResidualDenoiser((8, 8), (1, 1)), picture, 0.3), picture)


def test_without_noise_the_picture_is_left_alone(random_network):
    picture = noise(30, 21, 3)
    assert np.array_equal(restore(random_network, picture, 0.0), picture)
    assert not np.allclose(restore(random_network, picture, 0.1), picture, atol=0.01)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_network_looks_as_far_as_it_says(sizes, float32):
    model = random_network_of(*SIZES[sizes])
    assert model.unit == {"one": 2, "two": 4, "three": 8, "unfolded": 4}[sizes]
    assert model.reach % model.unit == 0
    x = torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1])
    distances = []
    for place in range(80, 80 + model.unit):  # those that end in one place of the smallest size
        changed = x.clone()
        changed[..., place, place] += 5
        difference = model(changed, sigma) != model(x, sigma)
        rows = difference[0].any(dim=0).any(dim=1).nonzero().flatten()
        distances.append((rows - place).abs().max().item())
    assert model.reach - 2 * model.unit <= max(distances) <= model.reach


def test_every_pixel_is_in_one_tile():
    count = np.zeros((70, 130), int)
    for inner, outer in tiles(70, 130, margin=8, size=32):
        count[inner] += 1
        assert all(
            o.start <= i.start and i.stop <= o.stop for i, o in zip(inner, outer, strict=True)
        )
        assert all(o.start % 8 == 0 for o in outer)
    assert (count == 1).all()


@pytest.mark.parametrize("shape", [(70, 130), (71, 99, 3), (8, 8)])
def test_tiles_leave_no_seams(random_network, shape, monkeypatch):
    picture = noise(*shape)
    whole = restore(random_network, picture, 0.2)
    in_tiles = tiles
    monkeypatch.setattr(denoiser, "tiles", lambda *a, margin: in_tiles(*a, margin, size=32))
    tiled = restore(random_network, picture, 0.2)
    assert whole.shape == shape and np.abs(whole - picture).max() > 0.01
    assert np.allclose(tiled, whole, atol=1e-6)


def test_eight_ways_are_different_and_undone():
    x = torch.arange(24.0).reshape(1, 1, 4, 6)
    ways = [turned(x, way) for way in range(8)]
    assert len({tuple(way.flatten().tolist()) for way in ways}) == 8
    assert all(torch.equal(turned_back(way, k), x) for k, way in enumerate(ways))


def test_the_mean_of_eight_turns_with_the_picture(random_network, float32):
    """Its result for a turned picture is the turned result, which holds for no single one."""
    picture = noise(40, 56, 3)

    def of(picture: np.ndarray, ensemble: bool) -> np.ndarray:
        return restore(random_network, picture, 0.2, ensemble=ensemble)

    for turn in (np.rot90, np.fliplr):
        assert np.allclose(of(turn(picture), True), turn(of(picture, True)), atol=1e-5)
        assert not np.allclose(of(turn(picture), False), turn(of(picture, False)), atol=1e-3)
    assert not np.allclose(of(picture, True), picture, atol=0.01)


def test_bytes_and_floats_are_restored_alike(random_network):
    picture = (noise(40, 50, 3) * 255).round().astype(np.uint8)
    restored = restore(random_network, picture, 0.1)
    assert restored.dtype == np.uint8
    assert (
        np.abs(restored / 255 - restore(random_network, picture / 255, 0.1)).max()
        <= 0.5 / 255 + 1e-6
    )


def test_grey_is_three_equal_channels(random_network):
    grey = noise(40, 50)
    colour = restore(random_network, np.stack([grey] * 3, axis=2), 0.1)
    assert np.allclose(restore(random_network, grey, 0.1), colour.mean(axis=2), atol=0.02)


def test_weights_of_another_script_are_refused(tmp_path):
    with pytest.raises(UserError, match="There is no checkpoint"):
        trained_denoiser(path=tmp_path / "none.pth")
    saved = load_checkpoint(WEIGHTS, denoiser.SCRIPT)
    torch.save({**saved, "script": "vae"}, tmp_path / "vae.pth")
    with pytest.raises(UserError, match="'vae'"):
        trained_denoiser(path=tmp_path / "vae.pth")
    wider = {**saved["config"], "widths": (7, 7, 7, 7)}
    torch.save({**saved, "config": wider}, tmp_path / "width.pth")
    with pytest.raises(UserError, match="do not fit"):
        trained_denoiser(path=tmp_path / "width.pth")
    for config in ({"sigma": 0.5}, {**wider, "blocks": (1,)}):  # the autoencoder's; no network's
        torch.save({**saved, "config": config}, tmp_path / "width.pth")
        with pytest.raises(UserError, match="not a checkpoint of the network for photographs"):
            trained_denoiser(path=tmp_path / "width.pth")


# --- the weights that come with the project -------------------------------------------------------


def test_the_trained_weights_are_small():
    assert WEIGHTS.stat().st_size <= 2_000_000


@pytest.mark.parametrize("name", ["camera", "coins", "astronaut"])
def test_learning_beats_the_best_classical_method(name):
    """On parts of photographs that it was not trained on, in grey and in colour."""
    clean = photograph(name)[100:260, 100:260] / 255
    noisy = clean + np.random.default_rng(0).normal(0, 25 / 255, clean.shape)
    learned = psnr(clean, restore(trained_denoiser(), noisy, 25 / 255))
    best = max(psnr(clean, method(noisy, 25 / 255).clip(0, 1)) for method in CLASSICAL.values())
    assert learned > best + 0.8


def test_a_clean_picture_stays_as_it_is():
    clean = photograph("camera")[100:260, 100:260] / 255
    assert np.allclose(restore(trained_denoiser(), clean, 0), clean, atol=1e-6)
    assert psnr(clean, restore(trained_denoiser(), clean, 1 / 255)) > 40
