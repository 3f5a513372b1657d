from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import elsewhere, run_here, untaught, with_classifier
from torch import nn

import gan_mnist
from imagelab.setup.runtime import UserError
from studies import dcgan

CPU = torch.device("cpu")


def test_the_networks_are_those_of_the_recipe():
    G, D = dcgan.build(dcgan.Config(), (1, 28, 28), CPU)
    assert [tuple(p.shape) for p in G.parameters() if p.dim() > 1] == [
        (7 * 7 * 64, 100), (64, 64, 4, 4), (64, 32, 4, 4), (1, 32, 7, 7),
    ]  # fmt: skip
    assert [tuple(p.shape) for p in D.parameters() if p.dim() > 1] == [
        (64, 1, 4, 4), (128, 64, 4, 4), (1, 7 * 7 * 128),
    ]  # fmt: skip
    images = G(torch.randn(5, 100))
    assert images.shape == (5, 1, 28, 28) and images.abs().max() <= 1
    assert D.logits(images).shape == (5,)
    norms = [m for network in (G, D) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.num_features for m in norms] == [64, 64, 32, 128]  # none on D's first layer


def test_weights_start_as_radford_et_al_start_them():
    G, D = dcgan.build(dcgan.Config(), (1, 28, 28), CPU)
    for layer in (G.dense, G.grow[2], D.layers[2]):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
    scales = torch.cat([G.grow[0].weight, G.grow[3].weight, D.layers[3].weight])
    assert scales.mean().item() == pytest.approx(1, abs=0.01)
    assert scales.std().item() == pytest.approx(0.02, rel=0.3)
    again = dcgan.build(dcgan.Config(), (1, 28, 28), CPU)[0]
    assert torch.equal(G.dense.weight, again.dense.weight)


@pytest.mark.parametrize(
    ("shape", "start"),
    [((3, 64, 64), (256, 4, 4)), ((3, 32, 32), (128, 4, 4)), ((1, 28, 28), (64, 7, 7))],
)
def test_other_sizes_get_more_stages(shape, start):
    """64×64 pixels in colour have two stages more than 28×28."""
    G, D = dcgan.build(dcgan.Config(), shape, CPU)
    assert G.start == start
    images = G(torch.randn(2, 100))
    assert images.shape == (2, *shape) and D.logits(images).shape == (2,)


def test_a_step_follows_the_last_gradient_alone_and_the_rate_falls(tmp_path, stripes):
    """As in gan_mnist.py: no momentum, and the learning rate at the end is near 0."""
    config = dcgan.Config(output_dir=tmp_path, epochs=1, grid_every=0)
    G, D = dcgan.build(config, stripes.shape, CPU)
    training = gan_mnist.train(config, stripes, G, D, tmp_path / "a.pth", "dcgan")
    for adam in training.optimizers.values():
        (group,) = adam.param_groups
        assert 0 < group["lr"] < 0.2 * config.lr
        for weight in group["params"]:  # without momentum Adam's mean is the last gradient itself
            assert torch.equal(adam.state[weight]["exp_avg"], weight.grad)


@pytest.fixture(scope="module")
def quick(quick_classifier, tmp_path_factory) -> Path:
    folder = with_classifier(quick_classifier, tmp_path_factory.mktemp("dcgan"))
    run_here(
        "studies.dcgan", "--quick", "--dataset", "mnist-5k", "--output-dir", folder,
        "--samples-file", folder / "s.npz", "--export", folder / "g.onnx",
    )  # fmt: skip
    return folder


def test_a_run_leaves_what_was_promised(quick):
    folder = quick / "study_images" / "dcgan"
    result = json.loads((folder / "results.json").read_text("utf-8"))
    assert untaught("studies.dcgan", result) == []
    names = {entry["path"] for entry in result["files"]}
    assert {"samples.png", "classes.png", "neighbours.png", "curves.png", "training.gif"} <= names
    assert all((folder / name).is_file() for name in names)
    assert result["metrics"]["coverage"]["floor"] > 0.5
    assert (quick / "study_models" / "dcgan" / "dcgan.pth").is_file()


def test_samples_come_again_from_the_checkpoint(quick):
    run_here("studies.dcgan", "--quick", "--sample-only", "--output-dir", quick,
               "--samples-file", quick / "again.npz")  # fmt: skip
    first, again = (np.load(quick / name)["images"] for name in ("s.npz", "again.npz"))
    assert first.shape == (500, 28, 28) and (first == again).all()


def test_the_generator_draws_the_same_elsewhere(quick, float32):
    path = quick / "study_models/dcgan/dcgan.pth"
    G = gan_mnist.load_generator(path, torch.device("cpu"), "dcgan", dcgan.ConvGenerator)
    z = torch.randn(5, 100)
    drawn = elsewhere(quick / "g.onnx", latents=z)
    assert drawn.shape == (5, 1, 28, 28) and drawn.std() > 1e-3  # seconds of training
    with torch.no_grad():
        assert torch.allclose(drawn, G(z), atol=1e-5)


def test_drawing_leaves_the_running_statistics_alone():
    G, _ = dcgan.build(dcgan.Config(), (1, 28, 28), CPU)
    G.train()
    before = G.grow[0].running_mean.clone()
    first = dcgan.gan_mnist.sample(G, 30, 0)
    assert torch.equal(before, G.grow[0].running_mean) and G.training
    # In eval mode an image does not depend on those drawn beside it.
    assert torch.equal(first[:7], dcgan.gan_mnist.generate(G, latents(30)[:7]))


def latents(n: int) -> torch.Tensor:
    return torch.randn(n, 100, generator=dcgan.gan_mnist.generator(0, "samples"))


def test_real_and_generated_images_are_normalised_apart():
    _, D = dcgan.build(dcgan.Config(), (1, 28, 28), CPU)
    real, fake, other = torch.rand(3, 8, 1, 28, 28)
    first, second = D.compare(real, fake)[0], D.compare(real, other * 0)[0]
    assert torch.equal(first, second)
    together = D.logits(torch.cat([real, other * 0]))[:8]
    assert not torch.allclose(first, together)


def test_sides_that_cannot_be_halved():
    for side in (45, 7, 4):
        with pytest.raises(UserError, match="even"):
            dcgan.build(dcgan.Config(), (3, side, side), CPU)
