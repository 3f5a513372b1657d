from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import complaint, elsewhere, run_here, untaught
from PIL import Image

from imagelab.data import datasets
from imagelab.data.datasets import load_dataset, unit
from imagelab.data.downloads import IDX_MD5
from imagelab.report.results import start_result
from imagelab.setup.settings import Settings
from imagelab.techniques.classifier import DigitCNN, predict
from studies import cnn_classifier

CPU = torch.device("cpu")


@pytest.mark.parametrize("network", [DigitCNN, cnn_classifier.FastCNN])
def test_the_activations_end_at_what_the_network_says(network):
    """The maps that are drawn are those that the network works with."""
    torch.manual_seed(0)
    model = network((1, 28, 28), 10).eval()
    image = torch.rand(1, 28, 28)
    seen = cnn_classifier.activations(model, image)
    with torch.no_grad():
        assert torch.allclose(seen["scores"], model(image[None]).softmax(dim=1)[0], atol=1e-6)
        assert torch.allclose(seen["features"], model.features(image[None])[0], atol=1e-6)
    assert seen["pooled"].shape[1] == seen["first convolution"].shape[1] // 2
    assert torch.equal(F.max_pool2d(seen["first convolution"], 2), seen["pooled"])


def test_filters_that_are_shown_are_strong_and_unlike():
    """The first varies most. Neither its copy nor weak filters are chosen, unlike as these are."""
    rng = torch.Generator().manual_seed(0)
    maps = torch.rand(8, 6, 6, generator=rng)
    maps[3] *= 5
    maps[5] = 2 * maps[3]  # varies most, and the third is like it
    maps[6:] = 0
    maps[6, 0, 0], maps[7, 5, 5] = 0.01, 0.01
    chosen = cnn_classifier.diverse_filters(maps, 3)
    assert chosen[0] == 5 and 3 not in chosen and len(set(chosen)) == 3
    assert not {6, 7} & set(chosen)


def test_mistakes_are_counted_and_the_surest_of_each_kind_come_first():
    labels = torch.tensor([0, 0, 0, 1, 2])
    read = torch.tensor([0, 1, 1, 1, 0])
    table = cnn_classifier.confusion_matrix(read, labels, 3)
    assert table.tolist() == [[1, 2, 0], [0, 1, 0], [1, 0, 0]]
    sure = torch.tensor([0.9, 0.6, 0.7, 0.9, 0.8])
    probabilities = (1 - sure)[:, None].repeat(1, 3) / 2
    probabilities[range(5), read] = sure
    assert cnn_classifier.most_confident_mistakes(probabilities, labels) == [4, 2]


def test_photographs_are_mirrored_and_digits_are_not():
    images = torch.arange(40 * 3 * 2 * 2, dtype=torch.uint8).reshape(40, 3, 2, 2)
    digits, photographs = (
        cnn_classifier.augment(
            cnn_classifier.Config(backbone=name), images, torch.Generator().manual_seed(0)
        )
        for name in ("cnn", "resnet18")
    )
    assert torch.equal(digits, unit(images))
    turned = (photographs == digits.flip(3)).flatten(1).all(dim=1)
    kept = (photographs == digits).flatten(1).all(dim=1)
    assert (turned ^ kept).all() and 10 < turned.sum() < 30


def test_an_observer_sees_every_epoch_and_changes_nothing(stripes, tmp_path):
    config = cnn_classifier.Config(batch_size=64, epochs=2, lr=1e-3, output_dir=tmp_path)
    seen, weights = [], []
    for observer in (lambda training, epoch: seen.append((epoch, training.step > 0)), None):
        model = cnn_classifier.build(config, stripes)
        more = {"after_epoch": observer} if observer else {}
        cnn_classifier.train(config, stripes, model, tmp_path / f"{len(weights)}.pth", **more)
        weights.append(model.conv2.weight.detach().clone())
    assert seen == [(1, True), (2, True)] and torch.equal(*weights)


def test_the_fast_network_works_less():
    def work(model: DigitCNN) -> int:
        seen = cnn_classifier.activations(model, torch.zeros(1, 28, 28))
        maps = (seen["first convolution"], seen["second convolution"])
        layers = (model.conv1, model.conv2)
        return sum(m[0].numel() * c.weight.numel() for m, c in zip(maps, layers, strict=True))

    fast = cnn_classifier.FastCNN((1, 28, 28), 10)
    assert work(fast) < 0.5 * work(DigitCNN((1, 28, 28), 10))


def test_settings_that_depend_on_others():
    for name, epochs in (("mnist", 5), ("mnist-5k", 1)):
        assert cnn_classifier.with_defaults(cnn_classifier.Config(dataset=name)).epochs == epochs
    fast = cnn_classifier.with_defaults(cnn_classifier.Config(dataset="mnist", fast=True))
    assert (fast.epochs, fast.lr) == (1, 1e-2)
    chosen = cnn_classifier.Config(dataset="mnist", fast=True, epochs=3, lr=1e-4)
    assert (
        cnn_classifier.with_defaults(chosen).epochs,
        cnn_classifier.with_defaults(chosen).lr,
    ) == (3, 1e-4)


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cnn")
    run_here("studies.cnn_classifier", "--quick", "--fast", "--runs", 2, "--dataset", "mnist-5k",
             "--output-dir", folder, "--export", folder / "classifier.onnx")  # fmt: skip
    return folder


def test_a_run_leaves_what_was_promised(quick):
    folder = quick / "study_images" / "cnn_classifier"
    result = json.loads((folder / "results.json").read_text("utf-8"))
    (left_out,) = untaught("studies.cnn_classifier", result)
    assert "MNIST's 10,000 test images" in left_out  # which are not here
    names = {entry["path"] for entry in result["files"]}
    assert {"activations.png", "convolutions.png", "confusion.png", "mistakes.png"} <= names
    assert all((folder / name).is_file() for name in names)
    assert 0.75 < result["metrics"]["accuracy"]["value"] <= 1
    assert result["metrics"]["accuracy"]["n"] == 1000
    several = next(t for t in result["tables"] if "several seeds" in t["caption"])["rows"]
    shares = [float(row[1].rstrip("%")) for row in several]
    assert shares[2] == pytest.approx(np.mean(shares[:2]), abs=0.02)
    assert shares[0] != shares[1]  # two seeds, two networks


def test_the_network_reads_the_same_elsewhere(quick):
    data = load_dataset("mnist-5k", Path())
    images, labels = unit(data.test_images[:500]), data.test_labels[:500]
    read = elsewhere(quick / "classifier.onnx", images=images).argmax(dim=1)
    saved = torch.load(quick / "study_models/cnn_classifier/fast.pth", weights_only=True)
    model = cnn_classifier.FastCNN(data.shape, 10)
    model.load_state_dict(saved["model"]["classifier"])
    assert (read == predict(model, images).argmax(dim=1)).all()
    assert (read == labels).float().mean() > 0.9


def test_resume_goes_on_with_a_longer_training(quick, tmp_path):
    """The third of the runs has no checkpoint yet: it begins."""
    run_here("studies.cnn_classifier", "--quick", "--fast", "--dataset", "mnist-5k", "--resume",
             "--epochs", 2, "--runs", 3, "--output-dir", quick)  # fmt: skip
    result = json.loads((quick / "study_images/cnn_classifier/results.json").read_text("utf-8"))
    assert result["config"]["epochs"] == 2
    sentence = complaint("studies.cnn_classifier", "--quick", "--fast", "--dataset", "mnist-5k",
                         "--resume", "--batch-size", 64, "--output-dir", quick)  # fmt: skip
    assert "--batch-size" in sentence


@pytest.fixture
def pets(tmp_path) -> Path:
    """Two classes of pictures in colour: reddish and bluish ones."""
    rng = np.random.default_rng(0)
    for name, colour in (("cats", (180, 60, 60)), ("dogs", (60, 60, 180))):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for k in range(10):
            pixels = rng.integers(0, 60, (40, 50, 3)) + colour
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "pets" / name / f"{k}.png")
    return tmp_path / "pets"


def test_transfer_learning_changes_the_last_layer_only(pets, tmp_path):
    from torchvision.models import resnet18

    torch.manual_seed(1)
    trained = resnet18().state_dict()
    torch.save(trained, tmp_path / "weights.pth")
    run_here("studies.cnn_classifier", "--dataset", f"folder:{pets}", "--backbone", "resnet18",
             "--weights", tmp_path / "weights.pth", "--image-size", 64, "--batch-size", 6,
             "--epochs", 2, "--output-dir", tmp_path)  # fmt: skip
    saved = torch.load(tmp_path / "study_models/cnn_classifier/resnet18.pth", weights_only=True)
    learnt = saved["model"]["classifier"]
    for name in ("conv1.weight", "bn1.running_mean", "layer4.1.conv2.weight"):
        assert torch.equal(learnt[f"body.network.{name}"], trained[name])
    assert learnt["last.weight"].shape == (2, 512)


def test_without_weights_a_sentence_and_all_layers_learn(pets, tmp_path, monkeypatch):
    from imagelab.setup.runtime import UserError
    from imagelab.techniques import pretrained

    def unreachable(*_):
        raise UserError("The weights of resnet18 could not be downloaded.")

    monkeypatch.setattr(pretrained, "trained", unreachable)
    shown, _ = run_here(
        "studies.cnn_classifier", "--dataset", f"folder:{pets}", "--backbone", "resnet18",
        "--image-size", 32, "--batch-size", 6, "--epochs", 1, "--output-dir", tmp_path,
    )  # fmt: skip
    assert "from scratch" in shown
    saved = torch.load(tmp_path / "study_models/cnn_classifier/resnet18.pth", weights_only=True)
    assert saved["model"]["classifier"]["body.network.bn1.running_mean"].abs().sum() > 0


def test_wrong_input(tmp_path):
    shared = ("studies.cnn_classifier", "--quick", "--dataset", "mnist-5k", "--output-dir",
              tmp_path)  # fmt: skip
    assert "colour" in complaint(*shared, "--backbone", "resnet18")
    assert "--runs" in complaint(*shared, "--runs", 0)
    assert "--backbone resnet18" in complaint(*shared, "--weights", __file__)
    assert "there is no file none.pth" in complaint(*shared, "--weights", "none.pth")
    for k in range(30):
        (tmp_path / "own" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 20), 8 * k).save(tmp_path / "own" / "ab"[k % 2] / f"{k}.png")
    own = ("--dataset", f"folder:{tmp_path / 'own'}", "--fast", "--image-size", 11)
    assert "at least 12 pixels" in complaint(*shared, *own)


def test_a_corrupt_mnist_does_not_spoil_a_run_on_the_digits(tmp_path, stripes, capsys):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in IDX_MD5["mnist"]:
        (raw / file).write_bytes(b"cut short")
    config = cnn_classifier.Config(data_dir=tmp_path)
    cnn_classifier.measure_on_mnist(config, replace(stripes, name="mnist-5k"), None, None)
    assert "left out" in capsys.readouterr().out


def test_what_the_embedded_part_taught_is_measured_on_mnists_test_images(
    tmp_path, stripes, monkeypatch
):
    """Where its files are, of a network that learnt from the embedded part, and of no other."""
    read = []

    def mnist(name, data_dir):
        read.append((name, data_dir))
        return stripes

    monkeypatch.setattr(datasets, "has_mnist", lambda data_dir: data_dir == tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", mnist)
    monkeypatch.setattr(cnn_classifier, "accuracy", lambda model, x, y: (y == 1).double().mean())
    result = start_result("cnn_classifier", "", "", Settings(output_dir=tmp_path), "pictures", CPU)
    for name, folder in (("mnist-5k", tmp_path / "none"), ("mnist", tmp_path)):
        config, own = cnn_classifier.Config(data_dir=folder), replace(stripes, name=name)
        cnn_classifier.measure_on_mnist(config, own, None, result)
    assert not read and not result.metrics
    config, own = cnn_classifier.Config(data_dir=tmp_path), replace(stripes, name="mnist-5k")
    cnn_classifier.measure_on_mnist(config, own, None, result)
    assert read == [("mnist", tmp_path)]
    metric = result.metrics["accuracy on MNIST's test images"]
    assert (metric.value, metric.n) == (0.5, len(stripes.test_images))


def test_fast_and_a_backbone_do_not_go_together():
    assert "--fast" in complaint("studies.cnn_classifier", "--fast", "--backbone", "resnet18",
                                 "--dataset", "mnist-5k")  # fmt: skip
