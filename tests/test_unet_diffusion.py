from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import complaint, run_here, untaught

from imagelab.setup.runtime import Interrupted, prepare
from studies import unet_diffusion
from studies.unet_diffusion import Config, asked_classes, build, make_schedule, sample, train

TINY = Config(widths=(8, 16), epochs=12, batch_size=32, lr=5e-3, ema_decay=0.9, steps=3, seed=3)


@pytest.fixture(scope="module")
def tiny(stripes, tmp_path_factory):
    """A tiny network, trained on stripes."""
    prepare(3, "cpu")
    return train(TINY, stripes, tmp_path_factory.mktemp("tiny") / "unet.pth")


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text("utf-8"))


def test_it_learns(tiny):
    """Over zero, which an untrained network answers, it gains, and goes on gaining."""
    loss = tiny[0].curve("loss")
    assert loss[:3].mean() > 0.7 and loss[-5:].mean() < 0.6 * loss[:3].mean()


def test_an_image_does_not_depend_on_its_batch(tiny):
    _, model = tiny
    for sampler in ("ddpm", "ddim", "dpm-solver"):
        config = replace(TINY, sampler=sampler)
        together, asked = sample(model, config, 24)
        apart, _ = sample(model, config, 24, portion=5)
        assert (together.int() - apart.int()).abs().max() <= 1  # a rounding, not another image
        assert asked.tolist() == [0] * 10 + [1] * 10 + [0] * 4
    assert not torch.equal(together, sample(model, replace(config, seed=4), 24)[0])


def test_labels_can_be_asked_for():
    assert asked_classes(replace(TINY, labels=(7, 2)), 10, 25).tolist() == (
        [7] * 10 + [2] * 10 + [7] * 5
    )


def test_the_class_is_drawn_that_is_asked_for(tiny):
    """Class 0 is bright on the left, class 1 on the right."""
    images, asked = sample(tiny[1], replace(TINY, steps=10, guidance=2), 60)
    left, right = (half.float().mean(dim=(1, 2, 3)) for half in images.split(14, dim=3))
    assert ((left > right) == (asked == 0)).float().mean() > 0.9


def test_resume_ends_at_the_same_weights(stripes, tmp_path):
    """Ctrl-C in the middle of an epoch, then --resume: bit for bit what an unbroken run ends at. With
    dropout, which draws from a generator of torch's own, and other draws in between."""
    config = replace(TINY, epochs=2, dropout=0.3)
    whole, _ = train(config, stripes, tmp_path / "whole.pth")
    drawn = []

    def stop(x0, batch, rng):
        drawn.append(1)
        if len(drawn) == 13:
            signal.raise_signal(signal.SIGINT)
        silent = torch.rand(len(batch), generator=rng) < config.drop_class
        return {"label": torch.where(silent, 2, stripes.labels[batch])}

    with pytest.raises(Interrupted, match="--resume goes on"):
        train(config, stripes, tmp_path / "part.pth", tell=stop, classes=2)
    torch.randn(7)
    part, _ = train(replace(config, resume=True), stripes, tmp_path / "part.pth")
    assert part.steps_done == whole.steps_done == 20
    for a, b in zip(part.averaged.parameters(), whole.averaged.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["cosine", "linear", "zero-terminal-snr"])
@pytest.mark.parametrize("T", [50, 500, 1000])
def test_every_schedule_ends_in_noise(kind, T):
    schedule = make_schedule(kind, T)
    assert len(schedule) == T and schedule.alpha_bar[-1] < 1e-3


def test_epsilon_says_nothing_about_the_image_at_zero_snr():
    config = {**vars(Config()), "prediction": "eps", "schedule": "zero-terminal-snr"}
    with pytest.raises(unet_diffusion.UserError, match="--prediction eps"):
        build(config, (1, 28, 28), classes=10)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_each_prediction_learns(prediction, stripes, tmp_path):
    config = replace(TINY, epochs=1, prediction=prediction)
    loss = train(config, stripes, tmp_path / "unet.pth")[0].curve("loss")
    assert loss[-1] < 0.9 * loss[0]


def test_a_run_leaves_what_was_promised(unet_run):
    folder = unet_run / "study_images" / "unet_diffusion"
    result = results(folder)
    assert untaught("studies.unet_diffusion", result) == []
    names = {entry["path"] for entry in result["files"]}
    assert {"samples.png", "guidance.png", "reverse_process.gif", "quality.png"} <= names
    assert all((folder / name).is_file() for name in names)
    assert 0 <= result["metrics"]["read as the class asked for"]["value"] <= 1
    assert result["metrics"]["coverage"]["floor"] > 0.5


def test_samples_come_again_from_the_checkpoint(unet_run, tmp_path):
    for name, extra in (("a.npz", ()), ("b.npz", ()), ("c.npz", ("--labels", 7))):
        run_here("studies.unet_diffusion", "--sample-only", "--quick", "--num-samples", 12,
                   "--output-dir", unet_run, "--samples-file", tmp_path / name, *extra)  # fmt: skip
    a, b, c = (np.load(tmp_path / f"{name}.npz")["images"] for name in "abc")
    assert a.shape == (12, 28, 28) and (a == b).all() and (a != c).any()


def test_mistakes_are_told_in_a_sentence(unet_run, tmp_path):
    def said(*arguments):
        return complaint("studies.unet_diffusion", *arguments, "--output-dir", unet_run)

    assert "between 0 and 9" in said("--sample-only", "--labels", 12)
    assert "between 1 and T = 1000" in said("--sample-only", "--steps", 1001)
    path = unet_run / "study_models" / "unet_diffusion" / "unet.pth"
    before, training = path.read_bytes(), ("--dataset", "mnist-5k", "--quick")
    assert "what --sample-only draws" in said(*training, "--labels", 7)
    assert "between 1 and T = 8" in said(*training, "--T", 8, "--steps", 9)
    assert "divisible by" in said(*training, "--widths", 8, 8, 8, 8)
    assert path.read_bytes() == before  # refused before the training, not after it
    assert "unet_diffusion train first" in complaint(
        "studies.unet_diffusion", "--sample-only", "--output-dir", tmp_path
    )
