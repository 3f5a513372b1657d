from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagelab.data import digit_scenes
from imagelab.data.boxes import draw_boxes, fit, load_boxed
from imagelab.data.datasets import load_dataset
from imagelab.setup.runtime import UserError

BOX = [40.0, 20.0, 80.0, 40.0]  # x1 y1 x2 y2 in a picture of 160×120


def pictures(folder: Path, count: int = 12) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        pixels = np.full((120, 160, 3), 90, np.uint8)
        pixels[20:40, 40:80] = 220
        Image.fromarray(pixels).save(folder / f"{k:02}.png")


@pytest.fixture
def yolo(tmp_path) -> Path:
    pictures(tmp_path / "own" / "images")
    (tmp_path / "own" / "labels").mkdir()
    for k in range(12):
        line = "1 0.375 0.25 0.25 0.16666667\n" if k % 2 else ""
        (tmp_path / "own" / "labels" / f"{k:02}.txt").write_text(line)
    (tmp_path / "own" / "classes.txt").write_text("cat\ndog\n")
    return tmp_path / "own"


@pytest.fixture
def coco(tmp_path) -> tuple[Path, Path]:
    pictures(tmp_path / "pictures")
    content = {
        "images": [{"id": 100 + k, "file_name": f"{k:02}.png"} for k in range(12)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [{"image_id": 100 + k, "category_id": 7, "bbox": [40, 20, 40, 20]}
                        for k in range(1, 12, 2)],
    }  # fmt: skip
    (tmp_path / "things.json").write_text(json.dumps(content))
    return tmp_path / "pictures", tmp_path / "things.json"


def test_both_formats_say_the_same(yolo, coco):
    ours = [load_boxed(f"yolo:{yolo}", 0, 0, 64), load_boxed(f"coco:{coco[0]}:{coco[1]}", 0, 0, 64)]
    for data in ours:
        assert data.classes == ("cat", "dog") and data.images.shape == (11, 3, 64, 64)
        assert [len(own) for own in data.boxes[:4]] == [0, 1, 0, 1]
        assert torch.allclose(data.boxes[1], torch.tensor([BOX]) * 64 / 160, atol=1e-3)
        assert data.labels[1].tolist() == [1]
        left, top, right, bottom = data.boxes[1][0].round().int().tolist()
        inside = data.images[1, :, top + 1 : bottom - 1, left + 1 : right - 1]
        assert inside.float().mean() > 200  # the box is where the picture is bright
    assert torch.equal(ours[0].images, ours[1].images)


def test_names_that_are_not_given(yolo):
    (yolo / "classes.txt").write_text("cat\n\ndog\n\n")
    assert load_boxed(f"yolo:{yolo}", 0, 0, 64).classes == ("cat", "class 1", "dog")
    (yolo / "classes.txt").unlink()
    assert load_boxed(f"yolo:{yolo}", 0, 0, 64).classes == ("class 0", "class 1")


@pytest.mark.parametrize("line", ["1 0.3 0.2", "x 0.5 0.5 0.1 0.1", "0 1.5 0.5 0.1 0.1", "-1 0 0 0 0",
                                  "0 nan 0.5 0.1 0.1"])  # fmt: skip
def test_lines_that_are_no_boxes(yolo, line):
    (yolo / "labels" / "03.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(UserError, match=r"03\.txt, line 2"):
        load_boxed(f"yolo:{yolo}", 0, 0, 64)


def test_files_as_windows_writes_them(yolo):
    """With a byte order mark and CR LF; other encodings than UTF-8 are refused by name."""
    before = load_boxed(f"yolo:{yolo}", 0, 0, 64)
    for path in (*(yolo / "labels").iterdir(), yolo / "classes.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    data = load_boxed(f"yolo:{yolo}", 0, 0, 64)
    assert data.classes == before.classes == ("cat", "dog")
    assert all(torch.equal(a, b) for a, b in zip(data.boxes, before.boxes, strict=True))
    (yolo / "labels" / "03.txt").write_text("0 0.5 0.5 0.1 0.1", encoding="utf-16")
    with pytest.raises(UserError, match=r"03\.txt is not a text file in UTF-8"):
        load_boxed(f"yolo:{yolo}", 0, 0, 64)


def test_held_out_pictures_without_a_box(yolo):
    (yolo / "labels" / "09.txt").unlink()
    with pytest.raises(UserError, match="none of these has a box"):
        load_boxed(f"yolo:{yolo}", 0, 0, 64)


def test_what_coco_holds_besides_boxes(coco):
    """Regions of a crowd, boxes without a size and boxes outside of the picture are left out."""
    images, file = coco
    content = json.loads(file.read_text())
    thing = content["annotations"][0]
    for more in ({"iscrowd": 1}, {"bbox": [5, 5, 0, 9]}, {"bbox": [500, 20, 30, 30]}):
        content["annotations"].append({**thing, **more})
    file.write_text(json.dumps(content))
    assert [len(own) for own in load_boxed(f"coco:{images}:{file}", 0, 0, 64).boxes[:2]] == [0, 1]
    for box in ([5, 5, -3, 9], [5, float("nan"), 3, 9]):
        content["annotations"][-1]["bbox"] = box
        file.write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"not a COCO file.*bbox"):
            load_boxed(f"coco:{images}:{file}", 0, 0, 64)


def test_files_that_are_not_coco(coco):
    images, file = coco
    for text in ("no json", "[]", '{"images": []}', '{"images": [{"id": 1}]}'):
        file.write_text(text)
        with pytest.raises(UserError, match="not a COCO file"):
            load_boxed(f"coco:{images}:{file}", 0, 0, 64)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("digits", "Unknown --dataset"),
        ("yolo:", "Unknown --dataset"),
        ("yolo:none", "no folder none"),
        ("coco:images", "Unknown --dataset"),
        ("coco:images:none.json", "no file none.json"),
    ],
)
def test_what_is_missing_is_said(name, says):
    with pytest.raises(UserError, match=says):
        load_boxed(name, 1, 1, 64)


def test_too_few(tmp_path):
    pictures(tmp_path / "few", 4)
    with pytest.raises(UserError, match="4 pictures with 0 boxes"):
        load_boxed(f"yolo:{tmp_path / 'few'}", 0, 0, 64)


def test_fit_keeps_proportions():
    picture = np.zeros((50, 200, 3), np.uint8)
    square, scale = fit(picture, 64)
    assert square.shape == (64, 64, 3) and scale == 64 / 200
    assert (square[:16] == 0).all() and (square[16:] == 128).all()


def test_held_out_scenes_have_held_out_digits(monkeypatch):
    drawn, draw = [], digit_scenes.draw_scenes

    def watched(digits, *args, **more):
        drawn.append(digits)
        return draw(digits, *args, **more)

    monkeypatch.setattr(digit_scenes, "draw_scenes", watched)
    data = load_boxed("digit-scenes", 6, 4, 64)
    assert data.images.shape == (6, 3, 64, 64) and data.test_images.shape == (4, 3, 64, 64)
    assert "held-out digits" in data.source and data.classes == tuple("0123456789")
    digits = load_dataset("mnist-5k", Path())
    assert torch.equal(drawn[0], digits.images) and torch.equal(drawn[1], digits.test_images)


def test_drawn_boxes():
    picture = np.full((200, 300, 3), 128, np.uint8)
    found = {"boxes": torch.tensor([[20.0, 30.0, 60.0, 70.0], [5.0, 5.0, 10.0, 10.0]]),
             "labels": torch.tensor([0, 1]), "scores": torch.tensor([0.9, 0.2])}  # fmt: skip
    drawn = draw_boxes(picture, found, ("cat", "dog"), least=0.4, scale=0.5)
    assert (picture == 128).all()  # the picture itself is left alone
    changed = (drawn != 128).any(axis=2)
    assert changed[139:142, 60:100].any() and changed[80:120, 39:42].any()  # twice as large
    assert not changed[60 + 10 : 138, 45:115].any()  # nothing inside
    assert not changed[8:22, 8:22].any()  # the unsure one is not drawn
