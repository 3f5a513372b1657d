from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from imagelab.data import folders, pictures
from imagelab.data.datasets import load_dataset, load_for
from imagelab.data.folders import pictures_in
from imagelab.data.tensors import Dataset
from imagelab.setup.runtime import UserError
from imagelab.setup.settings import DataSettings
from imagelab.setup.terminal import told


def rows(images: torch.Tensor) -> list[bytes]:
    return [image.tobytes() for image in images.contiguous().numpy()]


@pytest.fixture(scope="module")
def textures() -> Dataset:
    return load_dataset("textures", Path("nowhere"))


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
    monkeypatch.setattr("imagelab.data.folders.MAX_CLASSES", 2)
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


# --- very many pictures ---------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    """A folder of pictures that count as very many, and what is decoded of them goes to data/."""
    monkeypatch.setattr(folders, "KEPT_FROM", 0)
    write_pictures(tmp_path / "pictures", 12)
    return tmp_path / "pictures"


def decoded(root: Path, size: int = 8) -> tuple[Dataset, list[Path]]:
    """The data set, and the files in which it is kept."""
    data = load_dataset(f"folder:{root}", root.parent / "data", size)
    return data, sorted((root.parent / "data" / "decoded").glob("*.uint8"))


def same(a: Dataset, b: Dataset) -> bool:
    parts = ("images", "labels", "test_images", "test_labels")
    return all(torch.equal(getattr(a, part), getattr(b, part)) for part in parts)


def test_very_many_pictures_are_the_same_from_a_file(kept, monkeypatch):
    data, (path,) = decoded(kept)
    assert path.stat().st_size == 24 * 3 * 8 * 8 and data.images.dtype == torch.uint8
    monkeypatch.setattr(folders, "KEPT_FROM", 2**40)
    in_memory, _ = decoded(kept)
    assert same(data, in_memory) and data.describe() == in_memory.describe()


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells of memory")
def test_memory_need_not_hold_very_many_pictures(kept):
    """Both parts are views of the file, not copies."""
    data, (path,) = decoded(kept)
    (mapped,) = {
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(path))
    }
    for part in (data.images, data.test_images):
        assert mapped[0] <= part.data_ptr() < mapped[1]


def test_very_many_pictures_are_decoded_once(kept, monkeypatch):
    first, (path,) = decoded(kept)
    second_size, both = decoded(kept, 4)
    assert len(both) == 2 and second_size.shape == (3, 4, 4)
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "open_picture", lambda path: pytest.fail(f"decodes {path}"))
        assert same(decoded(kept)[0], first)
    Image.new("RGB", (30, 30), "white").save(kept / "blue" / "00.png")  # changed: a new file
    changed, files = decoded(kept)
    assert len(files) == 2 and path not in files
    assert (changed.images[0] == 255).all() and not same(changed, first)


def test_a_file_cut_short_is_not_used(kept):
    first, (path,) = decoded(kept)
    expected, whole = first.images.clone(), path.read_bytes()
    del first
    path.write_bytes(whole[:100])
    again, _ = decoded(kept)
    assert torch.equal(again.images, expected) and path.read_bytes() == whole


def test_a_broken_picture_leaves_no_file(kept):
    broken = kept / "red" / "03.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(UserError, match=r"03\.png"):
        decoded(kept)
    assert [p.name for p in (kept.parent / "data" / "decoded").iterdir()] in ([".lock"], [])


def test_training_does_not_change_the_file(kept):
    data, (path,) = decoded(kept)
    before = path.read_bytes()
    data.images.zero_()
    assert path.read_bytes() == before
