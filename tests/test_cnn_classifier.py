from __future__ import annotations

import contextlib
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
from imagelab.setup.runtime import UserError
from imagelab.setup.settings import Settings
from imagelab.techniques import pretrained
from imagelab.techniques.classifier import DigitCNN, predict
from studies import cnn_classifier

CPU = torch.device("cpu")
FAST = ("studies.cnn_classifier", "--quick", "--network", "fast", "--dataset", "mnist-5k")


@pytest.mark.parametrize("network", cnn_classifier.NETWORKS.values())
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
        cnn_classifier.augmented(
            cnn_classifier.Config(backbone=name), images, torch.Generator().manual_seed(0)
        )
        for name in (None, "resnet18")
    )
    assert torch.equal(digits, unit(images))
    turned = (photographs == digits.flip(3)).flatten(1).all(dim=1)
    kept = (photographs == digits).flatten(1).all(dim=1)
    assert (turned ^ kept).all() and 10 < turned.sum() < 30


def test_augmented_images_vary_from_epoch_to_epoch(stripes):
    config, rng = cnn_classifier.Config(augment=True), torch.Generator().manual_seed(0)
    first, second = (cnn_classifier.augmented(config, stripes.images[:50], rng) for _ in range(2))
    original = unit(stripes.images[:50])
    for a, b in ((first, original), (second, original), (first, second)):
        assert (a != b).flatten(1).any(dim=1).all() and 0.001 < (a - b).abs().mean() < 0.5
    again = cnn_classifier.augmented(config, stripes.images[:50], torch.Generator().manual_seed(0))
    assert torch.equal(first, again)


def test_the_source_network_is_the_usual_example():
    """Layer by layer in torch's own words, with the same weights."""
    torch.manual_seed(0)
    ours = cnn_classifier.SourceCNN((1, 28, 28), 10)
    usual = torch.nn.Sequential(
        torch.nn.Conv2d(1, 32, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(32, 64, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Flatten(), torch.nn.Linear(1600, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10),
    )  # fmt: skip
    usual.load_state_dict(dict(zip(usual.state_dict(), ours.state_dict().values(), strict=True)))
    x = torch.rand(3, 1, 28, 28)
    assert torch.allclose(ours(x), usual((x - 0.13) / 0.31), atol=1e-5)


def rates(config: cnn_classifier.Config, data, path) -> list[float]:
    """The learning rate after each epoch."""
    seen = []

    def look(training, epoch):
        seen.append(training.optimizers["adam"].param_groups[0]["lr"])

    cnn_classifier.train(config, data, cnn_classifier.build(config, data), path, look)
    return seen


def test_the_rate_is_constant_for_source_and_falls_for_the_others(stripes, tmp_path):
    for network, lr in (("source", 1e-3), ("cnn", 3e-3)):
        config = cnn_classifier.Config(network=network, epochs=3, output_dir=tmp_path)
        seen = rates(cnn_classifier.with_defaults(config), stripes, tmp_path / f"{network}.pth")
        if network == "source":
            assert seen == [lr] * 3
        else:
            assert lr > seen[0] > seen[1] > seen[2] > 0


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
    def completed(**given) -> cnn_classifier.Config:
        return cnn_classifier.with_defaults(cnn_classifier.Config(**given))

    for name, epochs in (("mnist", 5), ("mnist-5k", 1)):
        assert completed(dataset=name).epochs == epochs
    fast = completed(dataset="mnist", network="fast")
    assert (fast.epochs, fast.lr, fast.batch_size) == (1, 1e-2, 128)
    source = completed(dataset="mnist", network="source")
    assert (source.epochs, source.lr, source.batch_size) == (5, 1e-3, 64)
    chosen = completed(dataset="mnist", network="fast", epochs=3, lr=1e-4)
    assert (chosen.epochs, chosen.lr, chosen.schedule) == (3, 1e-4, "one-cycle")
    assert completed(backbone="vgg16").image_size == 160


def test_the_accuracy_after_each_epoch_is_kept(stripes, tmp_path, monkeypatch):
    """Of the network as it is then, in eval mode; measuring changes nothing."""
    config = cnn_classifier.Config(batch_size=64, epochs=3, lr=1e-3, schedule="constant",
                                   output_dir=tmp_path)  # fmt: skip
    weights, shares = [], iter([0.5, 0.7, 0.9])

    def accuracy(model, images, labels):
        assert images is stripes.test_images and labels is stripes.test_labels
        assert not model.training
        weights.append(model.conv2.weight.detach().clone())
        return next(shares)

    monkeypatch.setattr(cnn_classifier, "accuracy", accuracy)
    (training,) = cnn_classifier.train_all(config, stripes)
    assert training.curve("held_out").tolist() == pytest.approx([0.5, 0.7, 0.9])
    model = training.networks["classifier"]
    assert torch.equal(weights[2], model.conv2.weight)
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    unseen = cnn_classifier.build(config, stripes)
    cnn_classifier.train(config, stripes, unseen, tmp_path / "unseen.pth")
    assert torch.equal(unseen.conv2.weight, model.conv2.weight)


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cnn")
    run_here(*FAST, "--runs", 2, "--output-dir", folder, "--export", folder / "classifier.onnx")
    return folder


def test_a_run_leaves_what_was_promised(quick):
    folder = quick / "study_images" / "cnn_classifier"
    result = json.loads((folder / "results.json").read_text("utf-8"))
    (left_out,) = untaught("studies.cnn_classifier", result)
    assert "MNIST's 10,000 test images" in left_out  # which are not here
    names = {entry["path"] for entry in result["files"]}
    assert {
        "activations.png",
        "convolutions.png",
        "confusion.png",
        "mistakes.png",
        "training.png",
    } <= names
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
    run_here(*FAST, "--resume", "--epochs", 2, "--runs", 3, "--output-dir", quick)
    result = json.loads((quick / "study_images/cnn_classifier/results.json").read_text("utf-8"))
    assert result["config"]["epochs"] == 2
    sentence = complaint(*FAST, "--resume", "--batch-size", 64, "--output-dir", quick)
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
        assert torch.equal(learnt[f"backbone.network.{name}"], trained[name])
    assert learnt["last.weight"].shape == (2, 512)


@pytest.mark.parametrize(
    ("name", "features", "stages"),
    [("resnet18", 512, 5), ("resnet50", 2048, 5), ("vgg16", 4096, 6), ("efficientnet_b0", 1280, 9)],
)
def test_every_backbone_and_its_blocks(name, features, stages, photographs, tmp_path):
    """All weights but the last layer's are in the blocks, each once. The last blocks learn."""
    config = cnn_classifier.with_defaults(cnn_classifier.Config(backbone=name, unfreeze=2))
    with untrained():
        model = cnn_classifier.build(config, photographs)
    model.train()
    assert model.last.in_features == features
    assert len(model.frozen) == stages - 2 and len(model.unfrozen) == 2
    inside = [id(p) for block in (*model.frozen, *model.unfrozen) for p in block.parameters()]
    assert sorted(inside) == sorted(id(p) for p in model.backbone.parameters())
    assert not any(p.requires_grad for block in model.frozen for p in block.parameters())
    assert not any(m.training for block in model.frozen for m in block.modules())
    assert all(p.requires_grad for block in model.unfrozen for p in block.parameters())
    assert all(m.training for block in model.unfrozen for m in block.modules())
    last, blocks = cnn_classifier.parameter_groups(config, model)
    assert (last["lr"], blocks["lr"]) == pytest.approx((1e-3, 1e-4))
    learning = [p for group in (last, blocks) for p in group["params"]]
    assert {id(p) for p in learning} == {id(p) for p in model.parameters() if p.requires_grad}
    assert model.eval()(unit(photographs.images[:2])).shape == (2, 2)


@contextlib.contextmanager
def untrained():
    """Every pretrained network with the random weights that it has before any are loaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "trained", lambda network, *_: network)
        yield


@pytest.fixture
def photographs(stripes) -> datasets.Dataset:
    """The stripes in colour, 64 pixels a side: two classes."""
    large = torch.nn.functional.interpolate(stripes.images[:24].float(), size=64)
    images = large.to(torch.uint8).repeat(1, 3, 1, 1)
    labels = stripes.labels[:24]
    return replace(stripes, images=images, labels=labels, test_images=images, test_labels=labels)


def test_more_blocks_than_there_are(photographs):
    config = cnn_classifier.with_defaults(cnn_classifier.Config(backbone="resnet18", unfreeze=6))
    with untrained(), pytest.raises(UserError, match="--unfreeze 6: resnet18 has 5 blocks"):
        cnn_classifier.build(config, photographs)


def test_fine_tuning_changes_the_last_blocks_and_no_other(photographs, tmp_path):
    config = cnn_classifier.with_defaults(
        cnn_classifier.Config(
            backbone="resnet18", unfreeze=1, batch_size=8, epochs=1, output_dir=tmp_path
        )
    )
    with untrained():
        before = cnn_classifier.build(config, photographs).state_dict()
        model = cnn_classifier.build(config, photographs)
    cnn_classifier.train(config, photographs, model, tmp_path / "a.pth")
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(k.startswith(("backbone.network.layer4", "last")) for k in changed)
    assert {"last.weight", "backbone.network.layer4.1.bn2.running_mean"} <= changed


def test_without_weights_a_sentence_and_all_layers_learn(pets, tmp_path, monkeypatch):
    def unreachable(*_):
        raise UserError("The weights of resnet18 could not be downloaded.")

    monkeypatch.setattr(pretrained, "trained", unreachable)
    shown, _ = run_here(
        "studies.cnn_classifier", "--dataset", f"folder:{pets}", "--backbone", "resnet18",
        "--image-size", 32, "--batch-size", 6, "--epochs", 1, "--output-dir", tmp_path,
    )  # fmt: skip
    assert "from scratch" in shown
    saved = torch.load(tmp_path / "study_models/cnn_classifier/resnet18.pth", weights_only=True)
    means = saved["model"]["classifier"]["backbone.network.bn1.running_mean"]
    assert means.abs().sum() > 0
    last, blocks = saved["optimizer"]["adam"]["param_groups"]
    assert last["lr"] == blocks["lr"] and len(last["params"]) + len(blocks["params"]) == 62


def test_wrong_input(tmp_path):
    shared = ("studies.cnn_classifier", "--quick", "--dataset", "mnist-5k", "--output-dir",
              tmp_path)  # fmt: skip
    assert "colour" in complaint(*shared, "--backbone", "resnet18")
    assert "--runs" in complaint(*shared, "--runs", 0)
    assert "--backbone resnet18" in complaint(*shared, "--weights", __file__)
    assert "--backbone resnet18" in complaint(*shared, "--unfreeze", 1)
    assert "there is no file none.pth" in complaint(*shared, "--weights", "none.pth")
    (tmp_path / "other.pth").write_bytes(b"no weights")
    colour = ("studies.cnn_classifier", "--dataset", "textures", "--output-dir", tmp_path)
    for name in ("vgg16", "efficientnet_b0"):
        told = complaint(*colour, "--backbone", name, "--weights", tmp_path / "other.pth")
        assert f"does not hold the weights of {name}: get https://download.pytorch.org" in told
    for k in range(30):
        (tmp_path / "own" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 20), 8 * k).save(tmp_path / "own" / "ab"[k % 2] / f"{k}.png")
    own = ("--dataset", f"folder:{tmp_path / 'own'}", "--network", "fast", "--image-size", 11)
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


def test_a_network_and_a_backbone_do_not_go_together():
    told = complaint("studies.cnn_classifier", "--network", "fast", "--backbone", "resnet18",
                     "--dataset", "mnist-5k")  # fmt: skip
    assert "--network fast or --backbone" in told


def test_a_part_of_the_training_images(tmp_path):
    run_here("studies.cnn_classifier", "--quick", "--dataset", "mnist-5k", "--train-images", 500,
             "--output-dir", tmp_path)  # fmt: skip
    folder = tmp_path / "study_images" / "cnn_classifier"
    assert json.loads((folder / "results.json").read_text("utf-8"))["dataset"]["train"] == 500
