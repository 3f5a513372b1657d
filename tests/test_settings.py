from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT

from imagelab.setup.runtime import UserError
from imagelab.setup.settings import Count, Rate, SamplingSettings, settings_dict
from studies import adversarial_training, detection


@dataclass(frozen=True)
class Config(SamplingSettings):
    epochs: Count = 10
    lr: Rate = 1e-3
    limit: Count | None = None


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"epochs": 0}, "--epochs must be at least 1, not 0"),
        ({"limit": 0}, "--limit must be at least 1, not 0"),
        ({"lr": float("nan")}, "--lr must be a finite number"),
        ({"lr": float("inf")}, "--lr must be a finite number"),
        ({"lr": -1.0}, "--lr must lie between"),
        ({"seed": -1}, "--seed"),
        ({"resume": True, "sample_only": True}, "--resume"),
        ({"samples_file": Path("a.png")}, "must end in .npz"),
        ({"keep_every": 0}, "--keep-every must be at least 1, not 0"),
        ({"keep_every": -2}, "--keep-every must be at least 1, not -2"),
        ({"checkpoint": Path("none.pth")}, "--checkpoint: there is no file none.pth"),
        (
            {"checkpoint": Path(__file__), "resume": True},
            "--resume trains, --checkpoint does not",
        ),
    ],
)
def test_bad_settings_are_refused(values, sentence):
    with pytest.raises(UserError, match=sentence):
        Config(**values)


def test_every_training_keeps_checkpoints_and_every_sampler_takes_one():
    scripts = [path.stem for path in ROOT.glob("*.py")]
    scripts += [f"studies.{path.stem}" for path in (ROOT / "studies").glob("[a-z]*.py")]
    trainings, samplers = set(), set()
    for script in set(scripts) - {"studies.imagelab"}:
        settings = set(importlib.import_module(script).Config.__dataclass_fields__)
        assert ("keep_every" in settings) == ("resume" in settings), script
        if script != "studies.image_translation":  # it measures several trainings side by side
            assert ("checkpoint" in settings) == ("sample_only" in settings), script
        trainings |= {script} if "resume" in settings else set()
        samplers |= {script} if "sample_only" in settings else set()
    assert len(trainings) >= 15 and len(samplers) >= 9


def test_a_checkpoint_is_sampled_from_and_not_trained():
    assert Config(checkpoint=__file__).sample_only and not Config().sample_only
    assert Config(checkpoint=__file__).checkpoint == Path(__file__)


def test_a_count_may_be_left_out():
    assert Config().limit is None and Config(limit=1).limit == 1
    study = adversarial_training.Config
    assert study().pgd_epochs is study(pgd_epochs=None).pgd_epochs is None
    with pytest.raises(UserError, match="--pgd-epochs must be at least 1, not 0"):
        study(pgd_epochs=0)


def test_a_list_of_values_is_not_empty():
    from studies.vae import Config as Sizes

    with pytest.raises(UserError, match="--latent-sizes must be followed by a value"):
        Sizes(latent_sizes=())


def test_quick_changes_only_what_the_user_left_alone():
    assert Config(quick=True).if_quick(epochs=2, num_samples=5) == Config(
        quick=True, epochs=2, num_samples=5
    )
    assert Config(quick=True, epochs=4).if_quick(epochs=2).epochs == 4
    assert Config().if_quick(epochs=2).epochs == 10


def test_plain_types():
    assert settings_dict(Config(samples_file=Path("a.npz")))["samples_file"] == "a.npz"
    assert all(isinstance(v, str | int | float | None) for v in settings_dict(Config()).values())


def test_a_path_may_be_a_string():
    given = Config(output_dir="a folder/x", data_dir="d", samples_file="s.npz", quick=True)
    assert given == Config(output_dir=Path("a folder/x"), data_dir=Path("d"),
                           samples_file=Path("s.npz"), quick=True)  # fmt: skip
    assert given.if_quick(epochs=1).output_dir == Path("a folder/x")
    with pytest.raises(UserError, match=r"must end in \.npz, not 'a\.png'"):
        Config(samples_file="a.png")
    detector = detection.PredictBoxes(source="film.webm", output="seen.webm", model="m.pth")
    assert detector.source == "film.webm"  # not a path alone: it may be a camera's number
    assert (detector.output, detector.model) == (Path("seen.webm"), Path("m.pth"))
