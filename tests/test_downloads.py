from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import pickle
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, MNIST

from imagelab.data import downloads
from imagelab.data.datasets import load_dataset
from imagelab.setup.runtime import UserError


def rows(images: torch.Tensor) -> list[bytes]:
    return [image.tobytes() for image in images.contiguous().numpy()]


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
    monkeypatch.setitem(downloads.IDX_MD5, "mnist", {n: md5(d) for n, d in contents.items()})
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


def test_auto_takes_what_a_script_prefers(tmp_path, monkeypatch, capsys):
    """Fashion-MNIST first where it lies there; else MNIST; else the embedded digits."""
    order = ("fashion-mnist", "mnist")
    assert load_dataset("auto", tmp_path, None, order).name == "mnist-5k"
    assert "--dataset fashion-mnist downloads" in capsys.readouterr().out
    for name, folder in (("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")):
        raw = tmp_path / folder / "raw"
        raw.mkdir(parents=True)
        contents = tiny_mnist()
        for file, data in contents.items():
            (raw / file).write_bytes(data)
        monkeypatch.setitem(downloads.IDX_MD5, name, {n: md5(d) for n, d in contents.items()})
        assert load_dataset("auto", tmp_path, None, order).name == name
        assert load_dataset("auto", tmp_path).name == "mnist"  # what the other scripts take
    assert "Data: Fashion-MNIST, found" in capsys.readouterr().out


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


def test_auto_does_not_download_what_is_missing(tmp_path, offline):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file, content in list(tiny_mnist().items())[:3]:
        (raw / file).write_bytes(content)
    assert load_dataset("auto", tmp_path).name == "mnist-5k"
    assert len(list(raw.iterdir())) == 3
