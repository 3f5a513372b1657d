"""--tensorboard: what TensorBoard's own reader finds in the files of a run."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import complaint
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from imagelab.data.pictures import read_png
from imagelab.report.figures import grid
from imagelab.report.samples import write_grid
from imagelab.setup.settings import Count, TrainingSettings
from imagelab.training.loop import Training
from imagelab.training.tensorboard import Board


@dataclass(frozen=True)
class Config(TrainingSettings):
    epochs: Count = 2
    batch_size: Count = 64


def train(stripes, folder, **settings) -> Training:
    """Five steps an epoch, each with its own loss; a grid after each epoch."""
    config = Config(output_dir=folder, **settings)
    model = nn.Linear(1, 1)
    adam = torch.optim.SGD(model.parameters(), lr=0.1)
    path = folder / "models" / "line.pth"
    training = Training(
        path, "line", config, stripes, networks={"line": model}, optimizers={"sgd": adam}
    )
    if config.resume:
        training.load()
    with training:
        for epoch in training.epochs():
            for _ in training.batches():
                training.log(loss=torch.tensor(float(training.steps_done)), other=torch.tensor(0.5))
            write_grid(folder / f"{epoch}.png", stripes.images[epoch * 100 :], training)
    return training


def shown(folder) -> EventAccumulator:
    events = EventAccumulator(str(folder / "models" / "tensorboard" / "line"))
    return events.Reload()


def test_losses_by_step_and_grids(stripes, tmp_path):
    train(stripes, tmp_path, tensorboard=True)
    events = shown(tmp_path)
    assert set(events.Tags()["scalars"]) == {"loss", "other"}
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [(step, float(step)) for step in range(1, 11)]
    assert [event.step for event in events.Images("samples")] == [5, 10]
    picture = np.asarray(Image.open(io.BytesIO(events.Images("samples")[1].encoded_image_string)))
    sheet = read_png(tmp_path / "2.png")
    assert (picture[..., 0] == sheet).all()
    assert (sheet == grid(stripes.images[200:300], columns=10)).all()


def test_a_continued_run_goes_on_and_a_new_one_takes_its_place(stripes, tmp_path):
    train(stripes, tmp_path, tensorboard=True)
    train(stripes, tmp_path, tensorboard=True, resume=True, epochs=3)
    assert [event.step for event in shown(tmp_path).Scalars("loss")] == list(range(1, 16))
    train(stripes, tmp_path, tensorboard=True, epochs=1)
    assert [event.step for event in shown(tmp_path).Scalars("loss")] == list(range(1, 6))


def test_nothing_without_it_and_the_same_weights_with_it(stripes, tmp_path):
    plain, watched = (train(stripes, tmp_path / str(flag), tensorboard=flag) for flag in (0, 1))
    assert not (tmp_path / "0" / "models" / "tensorboard").exists()
    saved = [torch.load(run.path, weights_only=True) for run in (plain, watched)]
    assert torch.equal(saved[0]["history"]["loss"], saved[1]["history"]["loss"])
    assert torch.equal(saved[0]["rng"]["training"], saved[1]["rng"]["training"])


def test_numbers_wait_for_some_steps_but_not_for_the_end(tmp_path):
    board = Board(tmp_path / "models" / "line.pth", 0)
    for step in range(1, 61):
        board.add_numbers({"loss": torch.tensor(float(step))}, step)
    assert len(shown(tmp_path).Scalars("loss")) == 50
    board.flush()
    assert len(shown(tmp_path).Scalars("loss")) == 60


@pytest.mark.parametrize(
    "script", ["gan_mnist", "studies.adversarial_training", "studies.detection"]
)
def test_one_sentence_where_it_is_missing(script, tmp_path, monkeypatch):
    monkeypatch.setattr("imagelab.setup.settings.find_spec", lambda name: None)
    sentence = complaint(script, "--quick", "--tensorboard", "--output-dir", tmp_path)
    assert sentence.endswith("--tensorboard needs more packages: pip install tensorboard")
    assert list(tmp_path.iterdir()) == []
