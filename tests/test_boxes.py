from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagelab.data import boxes as boxes_module
from imagelab.data import digit_scenes
from imagelab.data.boxes import BoxedPictures, boxes_of_mask, fit, load_boxed
from imagelab.data.datasets import load_dataset
from imagelab.report.boxes import draw_boxes
from imagelab.setup.runtime import UserError
from imagelab.setup.terminal import told

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


def voc_text(size: tuple[int, int], corners: tuple[float, ...], name: str = "dog") -> str:
    """An annotation of one object; without corners of none."""
    sides = "<size><width>{}</width><height>{}</height><depth>3</depth></size>".format(*size)
    box = "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>".format(*corners or [0] * 4)
    thing = f"<object><name>{name}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
    return f"<annotation>{sides}{thing if corners else ''}</annotation>"


CORNERS = (41, 21, 80, 40)  # BOX as Pascal VOC counts: the first and the last pixel, from 1


@pytest.fixture
def voc(tmp_path) -> Path:
    pictures(tmp_path / "voc" / "JPEGImages")
    (tmp_path / "voc" / "Annotations").mkdir()
    for k in range(12):
        text = voc_text((160, 120), CORNERS if k % 2 else (), "cat" if k == 11 else "dog")
        (tmp_path / "voc" / "Annotations" / f"{k:02}.xml").write_text(text)
    return tmp_path / "voc"


def test_all_formats_say_the_same(yolo, coco, voc):
    names = f"yolo:{yolo}", f"coco:{coco[0]}:{coco[1]}", f"voc:{voc}"
    ours = [load_boxed(name, 0, 0, 64) for name in names]
    for data in ours:
        assert data.classes == ("cat", "dog") and data.images.shape == (11, 3, 64, 64)
        assert [len(own) for own in data.boxes[:4]] == [0, 1, 0, 1]
        assert torch.allclose(data.boxes[1], torch.tensor([BOX]) * 64 / 160, atol=1e-3)
        assert data.labels[1].tolist() == [1]
        left, top, right, bottom = data.boxes[1][0].round().int().tolist()
        inside = data.images[1, :, top + 1 : bottom - 1, left + 1 : right - 1]
        assert inside.float().mean() > 200  # the box is where the picture is bright
    assert torch.equal(ours[0].images, ours[1].images)
    assert torch.equal(ours[0].images, ours[2].images)


def test_voc_files_beside_the_pictures(voc):
    whole = load_boxed(f"folder:{voc}", 0, 0, 64)
    assert whole.name == "voc:voc"
    for path in [*(voc / "JPEGImages").iterdir(), *(voc / "Annotations").iterdir()]:
        path.rename(voc / path.name)
    (voc / "JPEGImages").rmdir()
    (voc / "Annotations").rmdir()
    flat = load_boxed(f"folder:{voc}", 0, 0, 64)
    assert torch.equal(flat.images, whole.images) and flat.classes == whole.classes
    assert all(map(torch.equal, flat.boxes, whole.boxes))


def test_a_folder_without_xml_is_yolo(yolo):
    data = load_boxed(f"folder:{yolo}", 0, 0, 64)
    assert data.name == "yolo:own" and data.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<annotation><object>", r"its text cannot be read"),
        ("<picture/>", r"outermost element is 'picture'"),
        (voc_text((160, -120), CORNERS), r"its size"),
        (voc_text((160, 120), (80, 21, 41, 40)), r"object 1 .*xmin ymin xmax ymax 80 21 41 40"),
        (voc_text((160, 120), CORNERS).replace("41", "one"), r"object 1 .*'one'"),
        (voc_text((160, 120), CORNERS).replace("<ymax>40</ymax>", ""), r"object 1 .*nan"),
        (voc_text((160, 120), CORNERS, " "), r"object 1 .*name ''"),
        (voc_text((160, 90), CORNERS), r"is 160×120 pixels.*say 160×90"),
    ],
)
def test_faults_of_voc_name_the_file_and_the_object(voc, text, says):
    (voc / "Annotations" / "03.xml").write_text(text)
    with pytest.raises(UserError, match=rf"03\.(xml|png) .*{says}"):
        load_boxed(f"voc:{voc}", 0, 0, 64)


def test_entities_of_xml_do_not_grow(voc):
    """Ten times ten times ... a text: a file of a kilobyte that would fill the memory."""
    names = "abcdefghij"
    entities = [f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in itertools.pairwise(names)]
    start = f'<!DOCTYPE annotation [<!ENTITY a "{"x" * 100}">{"".join(entities)}]>'
    (voc / "Annotations" / "03.xml").write_text(start + voc_text((160, 120), CORNERS, "&j;"))
    with pytest.raises(UserError, match=r"03\.xml is no annotation"):
        load_boxed(f"voc:{voc}", 0, 0, 64)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_voc_boxes_of_a_picture_that_its_exif_turns(voc, orientation):
    for path in (voc / "JPEGImages").iterdir():
        turned(path, orientation)
    x, y, width, height = stored_box(orientation)
    text = voc_text((120, 160), (x + 1, y + 1, x + width, y + height))
    (voc / "Annotations" / "01.xml").write_text(text)
    boxes = load_boxed(f"voc:{voc}", 0, 0, 160).boxes
    assert is_box(boxes[1]) and is_box(boxes[3])  # drawn on the stored, and on the upright picture


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


def turned(path: Path, orientation: int) -> None:
    """The same picture to see, stored otherwise, with the EXIF that turns it."""
    way = {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
           7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).transpose(way).save(path, exif=exif)


def is_box(boxes: torch.Tensor, tolerance: float = 1e-3) -> bool:
    """Whether there is one box, and it is BOX."""
    return boxes.shape == (1, 4) and torch.allclose(boxes, torch.tensor([BOX]), atol=tolerance)


def stored_box(orientation: int) -> list[float]:
    """BOX in the stored picture, found by looking, as x y width height."""
    marked = np.zeros((120, 160), np.uint8)
    marked[20:40, 40:80] = 1
    way = {5: np.transpose, 6: np.rot90, 7: lambda a: np.rot90(a, 2).T,
           8: lambda a: np.rot90(a, 3)}[orientation]  # fmt: skip
    rows, columns = np.nonzero(way(marked))
    return [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]


def declared(coco, size: tuple[float, float], box: list[float]) -> str:
    """The data set whose file says this of all pictures' size, and of all boxes."""
    content = json.loads(coco[1].read_text())
    for image in content["images"]:
        image["width"], image["height"] = size
    for thing in content["annotations"]:
        thing["bbox"] = box
    coco[1].write_text(json.dumps(content))
    return f"coco:{coco[0]}:{coco[1]}"


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("scale", [1, 2.5])
def test_boxes_of_a_picture_that_its_exif_turns(coco, orientation, scale):
    """Drawn on the picture as it is stored, and at another scale: its sides are exchanged."""
    for path in coco[0].iterdir():
        turned(path, orientation)
    box = [side * scale for side in stored_box(orientation)]
    data = load_boxed(declared(coco, (120 * scale, 160 * scale), box), 0, 0, 160)
    assert is_box(data.boxes[1])
    assert data.images[1, :, 22:38, 42:78].float().mean() > 200
    upright = declared(coco, (160, 120), [40, 20, 40, 20])
    assert is_box(load_boxed(upright, 0, 0, 160).boxes[1])


def test_boxes_of_a_picture_saved_at_another_size(coco):
    name = declared(coco, (640, 481), [160, 80, 160, 80])  # 481: rounded
    assert is_box(load_boxed(name, 0, 0, 160).boxes[1], 0.1)
    for size in ((120, 160), (160, 90), (640, 500)):
        with pytest.raises(UserError, match=rf"01\.png is 160×120 pixels.*say {size[0]}×{size[1]}"):
            load_boxed(declared(coco, size, [40, 20, 40, 20]), 0, 0, 160)


def test_labels_of_a_turned_picture_are_said(yolo, capsys):
    told.clear()
    turned(yolo / "images" / "03.png", 6)
    data = load_boxed(f"yolo:{yolo}", 0, 0, 160)
    assert is_box(data.boxes[3])
    assert "03.png: it is turned by its EXIF" in capsys.readouterr().err


def test_boxes_in_the_margin_of_the_square_are_dropped(coco):
    content = json.loads(coco[1].read_text())
    content["annotations"].append({**content["annotations"][0], "bbox": [20, 130, 30, 20]})
    content["annotations"].append({**content["annotations"][0], "bbox": [20, 100, 30, 50]})
    coco[1].write_text(json.dumps(content))
    boxes = load_boxed(f"coco:{coco[0]}:{coco[1]}", 0, 0, 160).boxes[1]
    assert boxes.tolist() == [BOX, [20, 100, 50, 120]]  # cut at the picture's own border


def test_no_box_is_left_to_measure(coco):
    """Else torchmetrics would say −1.00."""
    content = json.loads(coco[1].read_text())
    for thing in content["annotations"]:
        if thing["image_id"] == 109:
            thing["bbox"] = [500, 500, 30, 30]
    coco[1].write_text(json.dumps(content))
    with pytest.raises(UserError, match="none of these has a box inside"):
        load_boxed(f"coco:{coco[0]}:{coco[1]}", 0, 0, 64)
    content["annotations"] = [thing for thing in content["annotations"] if thing["image_id"] == 109]
    content["annotations"][0]["bbox"] = [40, 20, 40, 20]
    coco[1].write_text(json.dumps(content))
    with pytest.raises(UserError, match="none of the pictures to train on has a box"):
        load_boxed(f"coco:{coco[0]}:{coco[1]}", 0, 0, 64)


def test_a_class_that_is_held_out_only_is_said(yolo, capsys):
    told.clear()
    (yolo / "labels" / "09.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    load_boxed(f"yolo:{yolo}", 0, 0, 64)
    assert "The class cat occurs in held-out pictures only" in capsys.readouterr().err


def test_hidden_entries_of_a_yolo_folder(yolo):
    before = load_boxed(f"yolo:{yolo}", 0, 0, 64)
    for name in ("images", "labels"):
        (yolo / name / ".ipynb_checkpoints").mkdir()
        (yolo / name / "._00.png").write_bytes(b"\0\5\x16\7")
        (yolo / name / "._03.txt").write_bytes(b"\0\5\x16\7")
        (yolo / name / "folder.png").mkdir()
    data = load_boxed(f"yolo:{yolo}", 0, 0, 64)
    assert torch.equal(data.images, before.images) and data.labels[3].tolist() == [1]


@pytest.mark.parametrize("place", ["", "labels"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data.yaml", "nc: 2\nnames: [cat, dog]\n"),
        ("data.yaml", "names:\n  0: cat\n  1: dog\n"),
        ("classes.txt", "cat\ndog\n"),
    ],
)
def test_where_classes_are_named(yolo, place, name, text):
    (yolo / "classes.txt").unlink()
    (yolo / place / name).write_text(text)
    assert load_boxed(f"yolo:{yolo}", 0, 0, 64).classes == ("cat", "dog")


@pytest.mark.parametrize("text", ["names: 3", "a: [", "- 1", "names: {a: b}"])
def test_yaml_files_without_names(yolo, text):
    (yolo / "classes.txt").unlink()
    (yolo / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=r"data\.yaml"):
        load_boxed(f"yolo:{yolo}", 0, 0, 64)


def test_labels_that_differ_by_case(yolo):
    (yolo / "labels" / "03.txt").rename(yolo / "labels" / "03.TXT")
    (yolo / "images" / "05.png").rename(yolo / "images" / "05A.PNG")
    (yolo / "labels" / "05.txt").rename(yolo / "labels" / "05a.txt")
    data = load_boxed(f"yolo:{yolo}", 0, 0, 64)
    assert sum(len(own) for own in data.boxes + data.test_boxes) == 6


def test_labels_that_are_no_files_or_name_no_class(yolo):
    path = yolo / "labels" / "03.txt"
    path.write_text("100000000 0.5 0.5 0.1 0.1\n")
    with pytest.raises(UserError, match=r"03\.txt, line 1, asks for 100,000,001 classes"):
        load_boxed(f"yolo:{yolo}", 0, 0, 64)
    path.unlink()
    os.mkfifo(path)  # to read it would wait for ever
    with pytest.raises(UserError, match=r"03\.txt is no file"):
        load_boxed(f"yolo:{yolo}", 0, 0, 64)


def test_faults_of_coco_name_the_annotation(coco):
    images, file = coco
    good = json.loads(file.read_text())

    def refused(says: str, **changes) -> None:
        content = json.loads(json.dumps(good))
        content["annotations"][2] |= {"id": 77, **changes}
        file.write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"annotation 3 \(id 77\)" + says):
            load_boxed(f"coco:{images}:{file}", 0, 0, 64)

    refused(".*image_id '5' is not among", image_id="5")
    refused(".*category_id 99 is not among", category_id=99)
    refused(".*bbox", bbox=[1, 2, -3, 4])
    refused(".*too large", bbox=[1, 2, 10**400, 4])
    del good["annotations"][2]["bbox"]
    refused(" has no 'bbox'")
    good["images"][3]["id"] = 100
    file.write_text(json.dumps(good))
    with pytest.raises(UserError, match=r"image 4 .*that of another"):
        load_boxed(f"coco:{images}:{file}", 0, 0, 64)
    file.write_text("[" * 100_000)
    with pytest.raises(UserError, match="not a COCO file"):
        load_boxed(f"coco:{images}:{file}", 0, 0, 64)


def test_names_with_strange_letters(coco):
    content = json.loads(coco[1].read_text())
    content["categories"][0]["name"] = "caf\udce9\n$x$"
    coco[1].write_text(json.dumps(content))
    data = load_boxed(f"coco:{coco[0]}:{coco[1]}", 0, 0, 64)
    assert data.classes == ("cat", "caf\\xe9 $x$")


def test_letters_beyond_ascii_are_drawn():
    """OpenCV before 5 draws the same '?' for each of them."""
    picture = np.full((100, 300, 3), 128, np.uint8)
    found = {"boxes": torch.tensor([[20.0, 50, 60, 70]]), "labels": torch.tensor([0]),
             "scores": torch.tensor([0.9])}  # fmt: skip
    drawn = [draw_boxes(picture, found, (name,), 0.4) for name in ("ü", "Ж", "?", "Δ")]
    for k, one in enumerate(drawn):
        assert all((one != other).any() for other in drawn[:k])


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
        ("voc:none", "no folder none"),
        ("folder:none", "no folder none"),
        ("coco:images", "Unknown --dataset"),
        ("coco:images:none.json", "no file none.json"),
    ],
)
def test_what_is_missing_is_said(name, says):
    with pytest.raises(UserError, match=says):
        load_boxed(name, 1, 1, 64)


def test_too_few(tmp_path):
    pictures(tmp_path / "few", 4)
    with pytest.raises(UserError, match=r"4 pictures in .*few and 0 label files in .*few"):
        load_boxed(f"yolo:{tmp_path / 'few'}", 0, 0, 64)


def test_no_picture_has_a_voc_file_of_its_name(voc):
    for path in (voc / "Annotations").iterdir():
        path.rename(path.with_stem(f"other{path.stem}"))
    with pytest.raises(UserError, match=r"12 pictures in .*JPEGImages and 12 XML files in"):
        load_boxed(f"voc:{voc}", 0, 0, 64)


@pytest.mark.parametrize("size", [64, 416])
def test_streets_have_the_boxes_of_their_cars_and_pedestrians(monkeypatch, size):
    """Every object is found again in its mask, but for those of which very little is visible."""
    scenes, render = [], boxes_module.road_scenes.render_objects

    def watched(*args):
        scenes.append(render(*args))
        return scenes[-1]

    monkeypatch.setattr(boxes_module.road_scenes, "render_objects", watched)
    data = load_boxed("scenes", 6, 4, size)
    assert data.images.shape == (6, 3, size, size) and data.classes == ("car", "pedestrian")
    assert len(scenes) == 10 and len(data.test_boxes) == 4
    kept = left_out = 0
    for k, scene in enumerate(scenes):
        boxes, labels = (data.boxes + data.test_boxes)[k], (data.labels + data.test_labels)[k]
        pixels = [(scene.instances == i + 1).sum() for i in range(len(scene.boxes))]
        large = [count >= 24 * (size / 256) ** 2 for count in pixels]
        assert boxes.tolist() == scene.boxes[large, :4].tolist()
        for box, label in zip(boxes.int().tolist(), labels.tolist(), strict=True):
            inside = scene.classes[box[1] : box[3], box[0] : box[2]]
            assert (inside == boxes_module.road_scenes.CLASSES.index(data.classes[label])).any()
        kept, left_out = kept + sum(large), left_out + len(large) - sum(large)
    assert kept > 10 and (left_out or size == 64)
    again = load_boxed("scenes", 3, 1, size)  # more scenes leave the first as they are
    assert torch.equal(again.images, data.images[:3])
    assert torch.equal(again.test_images, data.test_images[:1])
    assert not torch.equal(data.images[:1], data.test_images[:1])


def test_boxes_of_a_mask():
    mask = np.full((60, 80), 3, np.uint8)
    mask[10:20, 10:30] = 8  # a car
    mask[20:25, 29:31] = 8  # part of the same, at a corner
    mask[40:50, 60:64] = 9  # a pedestrian
    mask[1, 1] = 9  # a speck
    boxes, labels = boxes_of_mask(mask, {8: 0, 9: 1}, 10)
    assert boxes.tolist() == [[10, 10, 31, 25], [60, 40, 64, 50]] and labels.tolist() == [0, 1]
    boxes, labels = boxes_of_mask(np.zeros((9, 9), np.uint8), {8: 0}, 1)
    assert boxes.shape == (0, 4) and labels.shape == (0,)


def test_camvid_frames_have_boxes_in_the_scaled_picture(tmp_path):
    for part in ("train", "test"):
        for folder in (part, f"{part}annot"):
            (tmp_path / "CamVid" / folder).mkdir(parents=True)
        picture, mask = np.full((360, 480, 3), 90, np.uint8), np.full((360, 480), 3, np.uint8)
        picture[100:200, 120:240], mask[100:200, 120:240] = 250, 8
        mask[:4, :4] = 9  # too small to count
        Image.fromarray(picture).save(tmp_path / "CamVid" / part / "0.png")
        Image.fromarray(mask).save(tmp_path / "CamVid" / f"{part}annot" / "0.png")
    data = load_boxed("camvid", 0, 0, 240, tmp_path)
    assert data.images.shape == data.test_images.shape == (1, 3, 240, 240)
    assert data.boxes[0].tolist() == data.test_boxes[0].tolist() == [[60, 50, 120, 100]]
    assert data.labels[0].tolist() == [data.classes.index("car")]
    assert (data.images[0, :, 52:98, 62:118] > 240).all()
    with pytest.raises(UserError, match="CamVid is incomplete"):
        load_boxed("camvid", 0, 0, 240, tmp_path / "nowhere")


def test_fit_keeps_proportions():
    picture = np.zeros((50, 200, 3), np.uint8)
    square, scale = fit(picture, 64)
    assert square.shape == (64, 64, 3) and scale == 64 / 200
    assert (square[:16] == 0).all() and (square[16:] == 128).all()


def test_held_out_scenes_have_held_out_digits(monkeypatch):
    rendered, render = [], digit_scenes.render_scenes

    def watched(digits, *args, **more):
        rendered.append(digits)
        return render(digits, *args, **more)

    monkeypatch.setattr(digit_scenes, "render_scenes", watched)
    data = load_boxed("digit-scenes", 6, 4, 64)
    assert data.images.shape == (6, 3, 64, 64) and data.test_images.shape == (4, 3, 64, 64)
    assert "held-out digits" in data.source and data.classes == tuple("0123456789")
    digits = load_dataset("mnist-5k", Path())
    assert torch.equal(rendered[0], digits.images) and torch.equal(rendered[1], digits.test_images)


def test_drawn_boxes():
    picture = np.full((200, 300, 3), 128, np.uint8)
    found = {"boxes": torch.tensor([[20.0, 30.0, 60.0, 70.0], [5.0, 5.0, 10.0, 10.0]]),
             "labels": torch.tensor([0, 1]), "scores": torch.tensor([0.9, 0.2])}  # fmt: skip
    drawn = draw_boxes(picture, found, ("cat", "dog"), min_score=0.4, scale=0.5)
    assert (picture == 128).all()  # the picture itself is left alone
    changed = (drawn != 128).any(axis=2)
    assert changed[139:142, 60:100].any() and changed[80:120, 39:42].any()  # twice as large
    assert not changed[60 + 10 : 138, 45:115].any()  # nothing inside
    assert not changed[8:22, 8:22].any()  # the unsure one is not drawn


def test_all_tensors_move_also_those_in_lists():
    x, boxes, labels = torch.zeros(2, 3, 8, 8), [torch.zeros(1, 4)] * 2, [torch.zeros(1)] * 2
    pictures = BoxedPictures("a", "made", ("b",), x, boxes, labels, x, boxes, labels)
    moved = pictures.to(torch.device("meta"))
    assert type(moved) is BoxedPictures and (moved.name, moved.classes) == ("a", ("b",))
    for name in ("images", "boxes", "labels", "test_images", "test_boxes", "test_labels"):
        parts = getattr(moved, name)
        assert {part.device.type for part in (parts if isinstance(parts, list) else [parts])} == {
            "meta"
        }
