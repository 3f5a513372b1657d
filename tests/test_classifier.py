from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from imagelab.data.datasets import unit
from imagelab.setup.runtime import Interrupted, UserError
from imagelab.techniques import classifier
from imagelab.techniques.classifier import (
    DigitCNN,
    accuracy,
    checkpoint_path,
    digest,
    new_classifier,
    predict,
    trained_classifier,
)
from imagelab.training.loop import Training


@pytest.fixture(scope="module")
def trained(stripes, tmp_path_factory) -> tuple[DigitCNN, Path]:
    """A classifier of the stripes and the output folder with its cache."""
    folder = tmp_path_factory.mktemp("classifier")
    return trained_classifier(stripes, folder), folder


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(classifier, "train_classifier", lambda *_, **__: pytest.fail("it trains"))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 30, 41)])
def test_shapes(shape):
    model = DigitCNN(shape, 7)
    x = torch.rand(5, *shape)
    assert model.features(x).shape == (5, 128) and model(x).shape == (5, 7)
    assert torch.equal(model(x), model.dense2(model.features(x)))


def test_relu_after_the_pooling_is_relu_before_it():
    torch.manual_seed(0)
    model, x = DigitCNN((1, 28, 28), 10), torch.rand(4, 1, 28, 28)
    y = F.max_pool2d(F.relu(model.conv1((x - 0.13) / 0.31)), 2)
    y = F.max_pool2d(F.relu(model.conv2(y)), 2)
    y = F.relu(model.dense1(y.flatten(1)))
    assert torch.allclose(model.features(x), y, atol=1e-6) and y.any()


def test_it_learns_and_is_frozen(trained, stripes):
    model, _ = trained
    assert accuracy(model, stripes.test_images, stripes.test_labels) >= 0.95
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_the_second_call_reads_the_cache(trained, stripes, no_training):
    model, folder = trained
    path = checkpoint_path(folder, stripes, quick=False)
    before = path.read_bytes(), path.stat().st_mtime_ns
    again = trained_classifier(stripes, folder)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert digest(again) == digest(model)
    assert not again.training and not any(p.requires_grad for p in again.parameters())


def test_the_same_seed_gives_the_same_weights_and_another_trains_anew(stripes, tmp_path):
    first = digest(trained_classifier(stripes, tmp_path, seed=0, quick=True))
    other = digest(trained_classifier(stripes, tmp_path, seed=1, quick=True))
    torch.manual_seed(99)
    again = digest(trained_classifier(stripes, tmp_path, seed=0, quick=True))
    assert first == again != other


def test_other_data_of_the_same_name_train_anew(trained, stripes, no_training):
    _, folder = trained
    moved = replace(stripes, source="the same from another folder")
    trained_classifier(moved, folder)
    fewer = replace(stripes, images=stripes.images[:300], labels=stripes.labels[:300])
    with pytest.raises(pytest.fail.Exception, match="it trains"):
        trained_classifier(fewer, folder)


def test_what_is_learnt_from_is_changed_and_cached_under_another_name(trained, stripes):
    model, folder = trained
    before = digest(trained_classifier(stripes, folder))
    blind = trained_classifier(stripes, folder, name="blind", change=lambda x, rng: 0 * x)
    shown = accuracy(blind, stripes.test_images, stripes.test_labels)
    assert shown < 0.8 < accuracy(model, stripes.test_images, stripes.test_labels)
    assert checkpoint_path(folder, stripes, False, "blind").is_file()
    assert digest(trained_classifier(stripes, folder)) == before


def test_quick_has_a_file_of_its_own(trained, stripes, tmp_path):
    _, folder = trained
    quick, full = (checkpoint_path(folder, stripes, q) for q in (True, False))
    assert quick != full and full.is_file() and not quick.is_file()
    trained_classifier(stripes, tmp_path, quick=True)
    assert checkpoint_path(tmp_path, stripes, quick=True).is_file()
    assert not checkpoint_path(tmp_path, stripes, quick=False).exists()


def test_how_long_it_is_trained(stripes, tmp_path, monkeypatch):
    epochs = []
    monkeypatch.setattr(
        classifier,
        "train_classifier",
        lambda model, data, config, *_, **__: epochs.append(config.epochs),
    )
    for name, more in (("mnist", {}), ("mnist-5k", {}), ("mnist", {"quick": True}),
                       ("mnist-5k", {"epochs": 7})):  # fmt: skip
        trained_classifier(replace(stripes, name=name), tmp_path, **more)
    assert epochs == [5, 1, 1, 7]


def test_the_cache_of_odd_names_stays_in_its_folder(stripes, tmp_path):
    path = checkpoint_path(tmp_path, replace(stripes, name="folder:../a b/ü"), quick=False)
    assert path.parent == tmp_path / classifier.FOLDER and ":" not in path.name


def test_a_stopped_training_goes_on_to_the_same_weights(trained, stripes, tmp_path, monkeypatch):
    log = Training.log

    def log_and_stop(run, **values):
        log(run, **values)
        if run.steps_done == 5:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Training, "log", log_and_stop)
    with pytest.raises(KeyboardInterrupt):
        trained_classifier(stripes, tmp_path)
    monkeypatch.setattr(Training, "log", log)
    assert digest(trained_classifier(stripes, tmp_path)) == digest(trained[0])


def test_one_class_is_refused(stripes, tmp_path):
    single = replace(stripes, classes=("only",), labels=torch.zeros_like(stripes.labels))
    with pytest.raises(UserError, match="one class"):
        trained_classifier(single, tmp_path)


def test_a_damaged_cache_is_told_and_left_alone(trained, stripes, tmp_path):
    whole = checkpoint_path(trained[1], stripes, quick=False).read_bytes()
    path = checkpoint_path(tmp_path, stripes, quick=False)
    path.parent.mkdir()
    for damaged in (b"", b"rubbish", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(UserError):
            trained_classifier(stripes, tmp_path)
        assert path.read_bytes() == damaged


def test_the_digest_names_the_weights(stripes):
    model = new_classifier(stripes, seed=0)
    first = digest(model)
    assert first == digest(new_classifier(stripes, seed=0)) and len(first) == 8
    assert first != digest(new_classifier(stripes, seed=1))
    with torch.no_grad():
        model.conv2.bias[3] += 1e-3
    assert digest(model) != first


@pytest.mark.parametrize("batch_size", [1, 7, 30, 1000])
def test_predictions_do_not_depend_on_the_batch_size(trained, stripes, batch_size):
    model, _ = trained
    images = stripes.test_images[:30]
    whole = predict(model, images)
    assert whole.shape == (30, 2)
    assert torch.allclose(whole.sum(dim=1), torch.ones(30))
    assert torch.allclose(predict(model, images, batch_size), whole, atol=1e-5)


def test_bytes_and_floats_are_read_alike(trained, stripes):
    model, images = trained[0], stripes.test_images
    assert torch.equal(predict(model, images), predict(model, unit(images)))


def test_accuracy_counts_the_right_ones(trained, stripes):
    model, _ = trained
    read = predict(model, stripes.test_images).argmax(dim=1)
    assert accuracy(model, stripes.test_images, read) == 1
    assert accuracy(model, stripes.test_images, 1 - read) == 0
    half = torch.where(torch.arange(80) < 20, read, 1 - read)
    assert accuracy(model, stripes.test_images, half) == pytest.approx(0.25)


def test_a_stopped_training_goes_on_with_the_same_command(stripes, tmp_path, monkeypatch):
    def stop(progress):
        signal.raise_signal(signal.SIGINT)
        return 0.5

    monkeypatch.setattr(classifier, "one_cycle", stop)
    with pytest.raises(Interrupted, match="the same command goes on"):
        trained_classifier(stripes, tmp_path)
    monkeypatch.undo()
    model = trained_classifier(stripes, tmp_path)
    assert accuracy(model, stripes.test_images, stripes.test_labels) > 0.95
