"""What networks see in pictures of one's own: imagelab/report/predict.py, masks.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import complaint, run_here
from PIL import Image

from imagelab.data.masks import IGNORE
from imagelab.report import figures, masks, predict
from imagelab.techniques import pretrained
from studies import segmentation


def untrained(*_):
    pytest.fail("the script's own network was asked for")


def test_overlay_leaves_what_has_no_class():
    picture = np.full((4, 4, 3), 100, np.uint8)
    mask = np.array([[0, 1, IGNORE, 1]] * 4, np.uint8)
    palette = np.array([[0, 0, 0], [200, 100, 0]], float)
    seen = masks.overlay(picture, mask, palette, 0.5)
    assert seen[0].tolist() == [[50] * 3, [150, 100, 50], [100] * 3, [150, 100, 50]]


@pytest.fixture(scope="module")
def deeplab(tmp_path_factory) -> Path:
    """Random weights for torchvision's network, as its file holds them."""
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    torch.manual_seed(0)
    network = deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=21, aux_loss=True
    )
    path = tmp_path_factory.mktemp("weights") / "deeplab.pth"
    torch.save(network.state_dict(), path)
    return path


def test_torchvisions_network_with_weights_from_a_file(deeplab, tmp_path):
    Image.effect_noise((90, 60), 90).convert("RGB").save(tmp_path / "photo.png")
    shared = ("studies.segmentation", "predict", "--image", tmp_path / "photo.png",
              "--output", tmp_path / "seen.png")  # fmt: skip
    shown, _ = run_here(*shared, "--model", "deeplabv3", "--weights", deeplab, "--strength", 1)
    assert Image.open(tmp_path / "seen.png").size == (90, 60)
    assert any(name in shown for name in ("background", "aeroplane", "person", "cat", "sofa"))
    sentence = complaint(*shared, "--model", "fcn", "--weights", deeplab)
    assert "does not hold the weights of fcn" in sentence and "--weights FILE" in sentence
    sentence = complaint(*shared, "--model", "maskrcnn", "--weights", tmp_path / "none.pth")
    assert "no weights file" in sentence and "maskrcnn_resnet50_fpn_coco" in sentence
    assert "--weights belongs to --model" in complaint(*shared, "--weights", deeplab)


def test_torchvisions_logits_are_those_of_its_network(deeplab):
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large
    from torchvision.transforms.functional import normalize

    ours, classes = pretrained.voc_segmentation("deeplabv3", deeplab, torch.device("cpu"))
    theirs = deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=21, aux_loss=True
    )
    theirs.load_state_dict(torch.load(deeplab, weights_only=True))
    x = torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        expected = theirs.eval()(normalize(x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))["out"]
        assert torch.allclose(ours(x), expected, atol=1e-5)
    assert len(classes) == 21 and classes[15] == "person"


@pytest.mark.parametrize("enlarged", [1, 8])
def test_objects_are_coloured_one_by_one(enlarged):
    class Finds(torch.nn.Module):
        """Two sure people that overlap, and a dog that is none."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            height, width = images[0].shape[1:]
            assert (height, width) == ((160, 240) if enlarged == 1 else (800, 1200))
            masks = torch.zeros(3, 1, height, width)
            masks[0, :, : height // 2, : width // 2] = 0.9
            masks[1, :, : height // 2, width // 4 : 3 * width // 4] = 0.8
            masks[2, :, height // 2 :] = 0.9
            boxes = torch.tensor([[0, height - 1, 9, height]] * 3)  # out of the way
            labels, scores = torch.tensor([1, 1, 2]), torch.tensor([0.9, 0.7, 0.3])
            return [{"boxes": boxes, "labels": labels, "scores": scores, "masks": masks}]

    found, picture = np.zeros(3), np.full((160 * enlarged, 240 * enlarged, 3), 7, np.uint8)
    classes = ("nothing", "person", "dog")
    seen = predict.object_predictor(Finds(), classes, 1.0, found)(picture)
    assert seen.shape == picture.shape
    seen = seen[::enlarged, ::enlarged]
    first, second = (list(figures.rgb(figures.CLASS_COLOURS[k])) for k in (0, 1))
    assert found.tolist() == [0, 2, 0]
    assert seen[20, 30].tolist() == seen[20, 110].tolist() == first  # the surer one lies on top
    assert seen[20, 150].tolist() == second
    assert seen[100, 230].tolist() == [7] * 3


def test_a_large_picture_is_predicted_in_strips():
    """As of the whole picture at once, which for 12,000×12,000 pixels took 12 GB."""
    torch.manual_seed(0)
    model = segmentation.SegmentationUNet(3, (8, 16), 1).eval()
    picture = np.asarray(Image.effect_noise((150, 203), 90).convert("RGB").resize((150, 203)))
    strips = list(predict.predict_strips(model, picture, 40, strip=64))
    assert [rows.stop - rows.start for rows, _ in strips] == [64, 64, 64, 11]
    assert all(mask.dtype == np.uint8 and mask.shape[1] == 150 for _, mask in strips)
    small = cv2.resize(picture, (30, 40), interpolation=cv2.INTER_AREA)
    with torch.no_grad():
        logits = model(torch.from_numpy(small).permute(2, 0, 1)[None].float() / 255)
        whole = F.interpolate(logits, (203, 150), mode="bilinear").argmax(dim=1)[0].numpy()
    assert (np.concatenate([mask for _, mask in strips]) == whole).mean() > 0.999


def test_a_ribbon_of_a_picture_is_not_blown_up():
    """Of 20,000×15 pixels, scaled to a height of 520, it would be 690,000 pixels wide."""
    torch.manual_seed(0)
    ribbon = np.asarray(Image.effect_noise((20_000, 15), 90).convert("RGB"))
    small = predict.scaled_to(ribbon, 520)
    assert 8000 <= small.shape[1] <= 8400 and small.shape[0] == 16 * 520 * 15 // 20_000
    assert predict.scaled_to(ribbon[:, :30], 40).shape[:2] == (40, 80)
    model = segmentation.SegmentationUNet(3, (4, 8), 1).eval()
    strips = list(predict.predict_strips(model, ribbon, 520))
    assert [mask.shape for _, mask in strips] == [(15, 20_000)]


@pytest.mark.parametrize("name", ["ssdlite", "faster-rcnn", "retinanet"])
def test_torchvisions_detectors_with_weights_from_a_file_or_a_sentence(tmp_path, name):
    from torchvision.models import detection as networks

    build = {"ssdlite": networks.ssdlite320_mobilenet_v3_large,
             "faster-rcnn": networks.fasterrcnn_resnet50_fpn,
             "retinanet": networks.retinanet_resnet50_fpn}[name]  # fmt: skip
    torch.manual_seed(0)
    state = build(weights=None, weights_backbone=None).state_dict()
    # torchvision's files come from frozen batch statistics, which count no batches.
    state = {key: value for key, value in state.items() if "num_batches_tracked" not in key}
    torch.save(state, tmp_path / "weights.pth")
    Image.effect_noise((100, 75), 60).convert("RGB").save(tmp_path / "photo.png")
    shared = ("studies.detection", "predict", "--coco", name, "--source", tmp_path / "photo.png",
              "--output", tmp_path / "found.png")  # fmt: skip
    run_here(*shared, "--weights", tmp_path / "weights.pth")
    assert Image.open(tmp_path / "found.png").size == (100, 75)
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    for weights in ("broken.pth", "missing.pth") if name == "ssdlite" else ():  # the small one
        sentence = complaint(*shared, "--weights", tmp_path / weights)
        assert "--weights FILE" in sentence and "https://" in sentence


def test_torchvisions_detections_are_drawn_with_their_names(monkeypatch):
    """A network that finds one thing, in the pixels of the picture that it gets."""
    seen = []

    def find(picture: np.ndarray) -> dict[str, torch.Tensor]:
        seen.append(picture.shape)
        return {"boxes": torch.tensor([[40.0, 30, 90, 70]]), "labels": torch.tensor([1]),
                "scores": torch.tensor([0.9])}  # fmt: skip

    monkeypatch.setattr(predict.pretrained, "coco_detector", lambda *_: (find, ("no", "cat")))
    config = predict.PredictBoxes(source="a.png", output=Path("b.png"), coco="retinanet")
    picture = np.zeros((100, 120, 3), np.uint8)
    drawn = predict.load_box_predictor(config, untrained, torch.device("cpu"))(picture)
    rows, columns = np.nonzero(drawn.any(axis=2))
    assert seen == [picture.shape] and drawn[30:70, 40].any(axis=1).all()
    assert rows.max() <= 71 and columns.max() <= 100 and not drawn[40:60, 50:80].any()
    config = replace(config, least=0.95)
    assert not predict.load_box_predictor(config, untrained, torch.device("cpu"))(picture).any()


def test_the_cascade_finds_a_face_in_a_real_photograph(tmp_path):
    from imagelab.data.photographs import photograph

    picture = photograph("grace_hopper")
    Image.fromarray(picture).save(tmp_path / "photo.png")
    run_here("studies.detection", "predict", "--cascade", "--source", tmp_path / "photo.png",
             "--output", tmp_path / "found.png")  # fmt: skip
    drawn = np.asarray(Image.open(tmp_path / "found.png")).astype(int)
    rows, columns = np.nonzero((drawn != picture).any(axis=2))
    # Around the face, which lies between the cap and the collar.
    assert 60 < rows.min() < 170 and 300 < rows.max() < 360
    assert 120 < columns.min() < 200 and 330 < columns.max() < 400
    tiny = predict.pretrained.face_cascade()(np.zeros((9, 400, 3), np.uint8))
    assert tiny["boxes"].shape == (0, 4)


def test_a_film_is_watched_live(tmp_path, monkeypatch):
    """The frames with the detections reach the page (what it does with them: tests/test_live.py)."""
    from imagelab.data.video import write_video
    from imagelab.report import figures, live

    photo = np.asarray(Image.effect_noise((96, 64), 60).convert("RGB"))
    write_video(tmp_path / "film.avi", [photo] * 5)
    shown = []
    monkeypatch.setattr(figures, "has_display", lambda: False)
    monkeypatch.setattr(live, "show_on_page", lambda frames, port: shown.extend([port, *frames]))
    said, _ = run_here("studies.detection", "predict", "--cascade", "--live", "--port", 8123,
                       "--source", tmp_path / "film.avi")  # fmt: skip
    assert shown[0] == 8123 and len(shown) == 6 and said.startswith("5 frames")
