from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import complaint, elsewhere, run_here, untaught
from PIL import Image

from imagelab.data.boxes import load_boxed
from imagelab.setup.runtime import UserError, generator, in_float32
from imagelab.training.checkpoints import load_checkpoint
from studies import detection

BOXES = [torch.tensor([[10.0, 12.0, 50.0, 60.0], [70.0, 70.0, 90.0, 120.0]]), torch.zeros(0, 4),
         torch.tensor([[0.0, 0.0, 128.0, 128.0]])]  # fmt: skip
LABELS = [torch.tensor([3, 1]), torch.zeros(0, dtype=torch.long), torch.tensor([0])]


def perfect_predictions() -> torch.Tensor:
    """The predictions of a network that knows BOXES and LABELS."""
    predictions = torch.zeros(3, 8, 8, 5 + 4)
    predictions[..., 0] = -20
    boxes, labels = torch.cat(BOXES), torch.cat(LABELS)
    for k, row, column, index in zip(
        *detection.responsible_cells(BOXES, predictions.shape), strict=True
    ):
        middle, sides = (
            (boxes[index, :2] + boxes[index, 2:]) / 2,
            boxes[index, 2:] - boxes[index, :2],
        )
        inside = (middle / detection.CELL - torch.stack([column, row]) + 0.5) / 2
        predictions[k, row, column, 0] = 20
        predictions[k, row, column, 1:3] = inside.clamp(1e-6, 1 - 1e-6).logit()
        predictions[k, row, column, 3:5] = (sides / 32).log()
        predictions[k, row, column, 5:] = torch.eye(4)[labels[index]] * 30
    return predictions


def test_the_responsible_cells():
    """The one of the centre and those on its nearer sides, in the right picture, inside the grid."""
    boxes = [torch.zeros(0, 4), torch.tensor([[30.0, 30.0, 50.0, 36.0], [0.0, 0.0, 6.0, 6.0]])]
    cells = set(
        zip(*(part.tolist() for part in detection.responsible_cells(boxes, (2, 4, 4))), strict=True)
    )
    assert cells == {
        (1, 2, 2, 0), (1, 2, 3, 0), (1, 1, 2, 0),  # its centre is at 40, 33: right of the half, above it
        (1, 0, 0, 1),  # in the corner: the neighbours would lie outside
    }  # fmt: skip


def test_a_grid_of_cells():
    model = detection.Detector(10)
    assert model(torch.rand(2, 3, 64, 96)).shape == (2, 4, 6, 15)
    size = sum(p.numel() for p in model.parameters()) * 4
    assert size < 5e6


def test_predictions_and_boxes_are_each_others_inverse():
    predictions = perfect_predictions()
    *cells, index = detection.responsible_cells(BOXES, predictions.shape)
    found = detection.decode_boxes(predictions)[tuple(cells)]
    assert len(index) > len(torch.cat(BOXES))
    assert torch.allclose(found, torch.cat(BOXES)[index], atol=1e-3)


def test_the_loss_is_zero_for_the_truth_alone():
    predictions = perfect_predictions()
    assert detection.detection_loss(predictions, BOXES, LABELS).item() == pytest.approx(0, abs=1e-4)
    shifted = [box + 6 for box in BOXES]
    swapped = [LABELS[0].flip(0), LABELS[1], LABELS[2]]
    assert detection.detection_loss(predictions, shifted, LABELS) > 0.1
    assert detection.detection_loss(predictions, BOXES, swapped) > 1
    blind = predictions.clone()
    blind[..., 0] = -20
    assert detection.detection_loss(blind, BOXES, LABELS) > 10


def test_a_batch_without_objects_has_a_loss():
    predictions = torch.zeros(2, 4, 4, 9, requires_grad=True)
    empty = [torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.long)] * 2
    detection.detection_loss(predictions, *empty).backward()
    assert (predictions.grad[..., 0] > 0).all()  # every cell is pushed towards 'nothing here'


class Predicts(torch.nn.Module):
    def __init__(self, predictions: torch.Tensor) -> None:
        super().__init__()
        self.predictions = predictions

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.predictions


def test_the_truth_is_detected_once_each():
    found = detection.detect(Predicts(perfect_predictions()), torch.zeros(3, 3, 128, 128), 0.5)
    for one, boxes, labels in zip(found, BOXES, LABELS, strict=True):
        assert len(one["boxes"]) == len(boxes)
        order = one["labels"].argsort()
        assert one["labels"][order].tolist() == sorted(labels.tolist())
        assert torch.allclose(one["boxes"][order], boxes[labels.argsort()], atol=1e-2)


def test_what_is_found_twice_is_kept_once():
    """The neighbours that are responsible for an object as well predict the same box."""
    predictions, x = perfect_predictions(), torch.zeros(3, 3, 128, 128)
    cells = len(detection.responsible_cells(BOXES[:1], predictions.shape)[0])
    assert (
        len(detection.detect(Predicts(predictions), x, 0.5, max_iou=1.0)[0]["boxes"]) == cells > 2
    )
    assert len(detection.detect(Predicts(predictions), x, 0.5)[0]["boxes"]) == 2


def test_less_likely_classes_are_found_for_the_measurement_only():
    predictions, x = perfect_predictions(), torch.zeros(3, 3, 128, 128)
    sure = detection.detect(Predicts(predictions), x, 0.01, every_class=True)[0]
    assert len(sure["boxes"]) == 2
    kinds = predictions[..., 5:].amax(dim=-1, keepdim=True)
    predictions[..., 5:] = predictions[..., 5:].where(
        predictions[..., 5:] == kinds, kinds - 1
    )  # e times less likely
    doubted = detection.detect(Predicts(predictions), x, 0.01, every_class=True)[0]
    assert len(doubted["boxes"]) == 2 * (predictions.shape[-1] - 5)
    assert doubted["scores"][2:].max() < doubted["scores"][:2].min()
    assert doubted["labels"][:2].sort().values.tolist() == LABELS[0].sort().values.tolist()
    assert len(detection.detect(Predicts(predictions), x, 0.01)[0]["boxes"]) == 2


@pytest.mark.parametrize("flip", [False, True])
def test_pictures_and_boxes_move_together(flip):
    """A bright rectangle is still where its box says after every change."""
    images = torch.full((16, 3, 64, 64), 0.2)
    images[:, :, 20:34, 30:50] = 0.9
    boxes, labels = [torch.tensor([[30.0, 20.0, 50.0, 34.0]])] * 16, [torch.tensor([7])] * 16
    x, moved, kinds = detection.augment(images, boxes, labels, generator(0, "test"), flip)
    for k in range(16):
        middle = (x[k].amin() + x[k].amax()) / 2
        rows, columns = (x[k, 0] > middle).nonzero().float().T
        seen = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert torch.allclose(seen, moved[k][0], atol=1.5)
        assert kinds[k].tolist() == [7]
    left = [float(own[0, 0] + own[0, 2]) < 64 for own in moved]
    assert any(left) == flip


def test_objects_that_leave_the_picture_are_dropped():
    images = torch.rand(40, 3, 64, 64)
    boxes, labels = [torch.tensor([[0.0, 0.0, 6.0, 6.0]])] * 40, [torch.tensor([0])] * 40
    _, moved, kinds = detection.augment(images, boxes, labels, generator(0, "test"), False)
    counts = [len(own) for own in moved]
    assert 0 < sum(counts) < 40 and counts == [len(own) for own in kinds]
    assert all((own >= 0).all() and (own <= 64).all() for own in moved)


def test_a_training_that_was_stopped_goes_on_to_the_same_weights(tmp_path):
    data = load_boxed("digit-scenes", 8, 2, 64)
    config = detection.Config(epochs=3, batch_size=4, width=4, size=64, output_dir=tmp_path)
    seen = []
    whole = detection.train(config, data, lambda _, epoch: seen.append(epoch))

    def stop(_training, epoch: int) -> None:
        if epoch == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        detection.train(config, data, stop)
    resumed = replace(config, resume=True)
    again = detection.train(resumed, data, lambda _, epoch: seen.append(epoch))
    assert seen == [1, 2, 3, 2, 3]
    for name, value in whole.networks["detector"].state_dict().items():
        assert torch.equal(value, again.networks["detector"].state_dict()[name]), name


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("detection")
    run_here("studies.detection", "--quick", "--output-dir", folder, "--export",
             folder / "detector.onnx")  # fmt: skip
    return folder


def test_the_network_finds_the_same_elsewhere_at_any_size(quick):
    saved = load_checkpoint(quick / "study_models/detection/digit-scenes.pth", "detection")
    model = detection.Detector(10, saved["config"]["width"])
    model.load_state_dict(saved["model"]["detector"])
    pictures = torch.rand(3, 3, 96, 128)
    found = elsewhere(quick / "detector.onnx", pictures=pictures)
    assert found.shape == (3, 6 * 8, 4 + 10)
    with torch.no_grad(), in_float32():
        predictions = model.eval()(pictures)
    assert torch.allclose(
        found[..., :4], detection.decode_boxes(predictions).flatten(1, 2), atol=1e-2
    )
    with in_float32():
        one = detection.detect(model, pictures, 0.0, max_iou=1.0)[0]
    assert torch.allclose(found[0, :, 4:].amax(dim=1).max(), one["scores"].max(), atol=1e-4)


def test_a_run_leaves_what_was_promised(quick):
    folder = quick / "study_images" / "detection"
    result = json.loads((folder / "results.json").read_text("utf-8"))
    assert untaught("studies.detection", result) == []
    names = {entry["path"] for entry in result["files"]}
    assert {"detections.png", "steps.png", "moving.webm", "found.webm"} <= names
    assert all((folder / name).is_file() for name in names)
    assert result["metrics"]["mAP at 0.5"]["n"] == 32
    assert result["metrics"]["size of the detector"]["value"] < 5


def test_a_small_training_finds_squares(tmp_path):
    """The whole way, on the user's own files: bright squares over grey, learnt in seconds."""
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (tmp_path / "own" / folder).mkdir(parents=True)
    for k in range(40):
        pixels = rng.integers(60, 90, (64, 64, 3)).astype(np.uint8)
        x, y = rng.integers(0, 40, 2)
        pixels[y : y + 24, x : x + 24] = 240
        Image.fromarray(pixels).save(tmp_path / "own" / "images" / f"{k:02}.png")
        line = f"0 {(x + 12) / 64} {(y + 12) / 64} {24 / 64} {24 / 64}\n"
        (tmp_path / "own" / "labels" / f"{k:02}.txt").write_text(line)
    run_here("studies.detection", "--dataset", f"yolo:{tmp_path / 'own'}", "--size", 64,
             "--epochs", 40, "--batch-size", 12, "--width", 8, "--output-dir", tmp_path)  # fmt: skip
    result = json.loads(
        (tmp_path / "study_images/detection/yolo_own/results.json").read_text("utf-8")
    )
    assert result["metrics"]["mAP at 0.5"]["value"] > 0.9
    model = tmp_path / "study_models" / "detection" / "yolo_own.pth"
    shown, _ = run_here(
        "studies.detection", "predict", "--source", tmp_path / "own" / "images",
        "--output", tmp_path / "out", "--model", model,
    )  # fmt: skip
    assert "40 pictures" in shown
    drawn = np.asarray(Image.open(tmp_path / "out" / "00.png")).astype(int)
    original = np.asarray(Image.open(tmp_path / "own" / "images" / "00.png")).astype(int)
    assert (drawn != original).any(axis=2).sum() > 60  # a box


def test_ssdlite_with_weights_from_a_file_or_a_sentence(tmp_path):
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    torch.manual_seed(0)
    network = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    Image.effect_noise((200, 150), 60).convert("RGB").save(tmp_path / "photo.png")
    shared = ("studies.detection", "predict", "--coco", "--source", tmp_path / "photo.png",
              "--output", tmp_path / "found.png")  # fmt: skip
    run_here(*shared, "--weights", tmp_path / "weights.pth")
    assert Image.open(tmp_path / "found.png").size == (200, 150)
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    for weights in ("broken.pth", "missing.pth"):
        sentence = complaint(*shared, "--weights", tmp_path / weights)
        assert "--weights FILE" in sentence


def test_wrong_input(quick, tmp_path):
    model = quick / "study_models" / "detection" / "digit-scenes.pth"
    shared = ("studies.detection", "predict", "--model", model, "--output", tmp_path / "out.png")
    assert "There is no picture" in complaint(*shared, "--source", "none.png")
    assert "--least" in complaint(*shared, "--source", "none.png", "--least", 2)
    assert "multiple of 16" in complaint(
        "studies.detection", "--size", 100, "--output-dir", tmp_path
    )
    with pytest.raises(UserError, match="does not say"):
        saved = torch.load(model, weights_only=True)
        torch.save(saved | {"extra": {}}, tmp_path / "other.pth")
        asked = detection.PredictBoxes(
            source="a.png", output=tmp_path, model=tmp_path / "other.pth"
        )
        detection.make_predictor(asked, torch.device("cpu"))
