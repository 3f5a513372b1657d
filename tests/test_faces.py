from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import complaint, run_here
from PIL import Image
from torchvision.datasets import CelebA

from imagelab.data import folders
from imagelab.data.datasets import load_dataset
from imagelab.setup.runtime import UserError

LISTS = [name for *_, name in CelebA.file_list if name.endswith(".txt")]


def test_the_faces_inside_scikit_image(tmp_path):
    data = load_dataset("faces", tmp_path)
    assert data.shape == (1, 24, 24) and data.classes == ("face",) and "100 faces" in data.source
    assert len(data.images) == len(data.labels) == 720
    assert len(data.test_images) == len(data.test_labels) == 10
    assert torch.equal(data.images[360:], data.images[:360].flip(3))
    first, right = (
        data.images[:90],
        data.images[90:180],
    )  # the second crop begins a pixel further on
    assert torch.equal(first[..., 1:], right[..., :-1]) and not torch.equal(first, right)
    everything = {image.numpy().tobytes() for image in torch.cat([data.images, data.test_images])}
    assert len(everything) == 730  # none is held out that is trained on
    assert 90 < data.images.float().mean() < 140 and list(tmp_path.iterdir()) == []


@pytest.fixture
def celeba(tmp_path, monkeypatch) -> Path:
    """CelebA's layout with twelve small pictures: eight to train on, one to validate, three to test."""
    folder = tmp_path / "data" / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{k:06d}.jpg" for k in range(1, 13)]
    for k, name in enumerate(names):
        array = np.full((109, 89, 3), 20 * k, np.uint8)
        array[:10] = 255  # the hair, which the central square leaves out
        Image.fromarray(array).save(folder / "img_align_celeba" / name)
    rows = {
        "list_eval_partition.txt": [0] * 8 + [1] + [2] * 3,
        "identity_CelebA.txt": range(1, 13),
    }
    tables = {"list_attr_celeba.txt": 40, "list_bbox_celeba.txt": 4}
    for file in LISTS:
        if file in rows:
            lines = [f"{name} {value}" for name, value in zip(names, rows[file], strict=True)]
        else:
            values = " ".join(["1"] * tables.get(file, 10))
            lines = ["12", "the names of the columns", *(f"{name} {values}" for name in names)]
        (folder / file).write_text("\n".join(lines) + "\n")
    sums = {file: hashlib.md5((folder / file).read_bytes()).hexdigest() for file in LISTS}
    listed = [("", sums.get(name, md5), name) for _, md5, name in CelebA.file_list]
    monkeypatch.setattr(CelebA, "file_list", listed)
    return folder


def test_celeba_is_read_from_its_layout(celeba):
    data = load_dataset("celeba", celeba.parent)
    assert data.shape == (3, 64, 64) and data.classes == ("face",)
    assert (len(data.images), len(data.test_images)) == (8, 3)  # the one to validate is left out
    levels = data.images.float().mean(dim=(1, 2, 3))
    assert torch.allclose(levels, 20.0 * torch.arange(8), atol=3)  # in order, without the hair
    assert torch.allclose(
        data.test_images.float().mean(dim=(1, 2, 3)), 20.0 * torch.arange(9, 12), atol=3
    )
    assert load_dataset("celeba", celeba.parent, 32).shape == (3, 32, 32)


def test_very_many_faces_are_decoded_once(celeba, monkeypatch):
    """Into one file for both parts, as with folder:PATH."""
    in_memory = load_dataset("celeba", celeba.parent, 32)
    assert not (celeba.parent / "decoded").exists()
    monkeypatch.setattr(folders, "KEPT_FROM", 0)
    for _ in range(2):
        data = load_dataset("celeba", celeba.parent, 32)
        assert torch.equal(data.images, in_memory.images)
        assert torch.equal(data.test_images, in_memory.test_images)
        (path,) = (celeba.parent / "decoded").glob("*.uint8")
        assert path.stat().st_size == 11 * 3 * 32 * 32
        monkeypatch.setattr(folders, "_each_square", None)  # from here on nothing is decoded


@pytest.mark.parametrize("lost", [LISTS[0], "list_eval_partition.txt", "img_align_celeba"])
def test_what_celeba_lacks_is_told_and_nothing_is_fetched(celeba, lost, monkeypatch):
    monkeypatch.setattr(CelebA, "download", None)
    (celeba / lost).rename(celeba.parent / "elsewhere")
    before = sorted(celeba.rglob("*"))
    with pytest.raises(UserError) as error:
        load_dataset("celeba", celeba.parent)
    sentence = str(error.value)
    assert f"{lost}/ not found" in sentence or f"{lost} not found" in sentence
    assert all(md5 in sentence for _, md5, _ in CelebA.file_list) and "\n" not in sentence
    assert sorted(celeba.rglob("*")) == before


def test_a_damaged_part_of_celeba_is_told(celeba):
    path = celeba / "list_eval_partition.txt"
    path.write_text(path.read_text() + "more\n")
    with pytest.raises(UserError, match=r"list_eval_partition\.txt is corrupt"):
        load_dataset("celeba", celeba.parent)


def test_a_picture_that_celeba_lists_and_lacks(celeba):
    (celeba / "img_align_celeba" / "000003.jpg").unlink()
    with pytest.raises(UserError, match=r"000003\.jpg"):
        load_dataset("celeba", celeba.parent)


def test_the_dcgan_draws_faces_of_64_pixels(celeba, tmp_path):
    run_here("studies.dcgan", "--quick", "--dataset", "celeba", "--data-dir", celeba.parent,
             "--epochs", 1, "--batch-size", 4, "--num-samples", 7, "--output-dir", tmp_path / "out",
             "--samples-file", tmp_path / "s.npz")  # fmt: skip
    assert np.load(tmp_path / "s.npz")["images"].shape == (7, 64, 64, 3)


def test_without_celeba_there_is_one_sentence(tmp_path):
    shared = ("--dataset", "celeba", "--data-dir", tmp_path, "--output-dir", tmp_path / "out")
    assert "CelebA is not complete" in complaint("studies.dcgan", *shared)
