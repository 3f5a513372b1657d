from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import complaint, elsewhere, has_headline, run_here, untaught
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from imagelab.data.boxes import load_boxed
from imagelab.data.photographs import HELD_OUT, TRAINING
from imagelab.setup.runtime import UserError, generator, in_float32
from imagelab.training.checkpoints import load_checkpoint
from studies import detection

BOXES = [torch.tensor([[10.0, 12.0, 50.0, 60.0], [70.0, 70.0, 90.0, 120.0]]), torch.zeros(0, 4),
         torch.tensor([[0.0, 0.0, 128.0, 128.0]])]  # fmt: skip
LABELS = [torch.tensor([3, 1]), torch.zeros(0, dtype=torch.long), torch.tensor([0])]
# The same as the loss takes them: two places per picture, −1 where there is no object.
ALL_BOXES = pad_sequence(BOXES, batch_first=True)
ALL_LABELS = pad_sequence(LABELS, batch_first=True, padding_value=-1)


GRID = 128 // detection.CELL  # cells along a side


def responsible(height: int, width: int, boxes=ALL_BOXES, labels=ALL_LABELS) -> list[list[int]]:
    """Picture, row, column and object of each responsible cell."""
    number = detection.responsible_cells(boxes, labels, height, width)
    last = len(boxes) * height * width
    assert number.shape == (len(boxes), 3, labels.shape[1]) and number.max() <= last
    return [
        [*np.unravel_index(int(cell), (len(boxes), height, width)), index[2]]
        for index, cell in np.ndenumerate(number.numpy())
        if cell < last
    ]


def perfect_predictions() -> torch.Tensor:
    """The predictions of a network that knows BOXES and LABELS."""
    predictions = torch.zeros(3, GRID, GRID, 5 + 4)
    predictions[..., 0] = -20
    for k, row, column, index in responsible(GRID, GRID):
        box = BOXES[k][index]
        middle, sides = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
        inside = (middle / detection.CELL - torch.tensor([column, row]) + 0.5) / 2
        predictions[k, row, column, 0] = 20
        predictions[k, row, column, 1:3] = inside.clamp(1e-6, 1 - 1e-6).logit()
        predictions[k, row, column, 3:5] = (sides / 32).log()
        predictions[k, row, column, 5:] = torch.eye(4)[LABELS[k][index]] * 30
    return predictions


def test_the_responsible_cells():
    """The one of the centre and those on its nearer sides, in the right picture, inside the grid."""
    boxes = torch.tensor([[[0.0, 0.0, 9.0, 9.0], [40.0, 40.0, 44.0, 44.0]],
                          [[30.0, 30.0, 50.0, 36.0], [0.0, 0.0, 6.0, 6.0]]])  # fmt: skip
    boxes = boxes * detection.CELL / 16  # said for cells of 16 pixels
    cells = {tuple(c) for c in responsible(4, 4, boxes, torch.tensor([[-1, -1], [0, 2]]))}
    assert cells == {
        (1, 2, 2, 0), (1, 2, 3, 0), (1, 1, 2, 0),  # its centre is at 40, 33: right of the half, above it
        (1, 0, 0, 1),  # in the corner: the neighbours would lie outside
    }  # fmt: skip


def test_generalised_iou_is_torchvisions():
    from torchvision.ops import generalized_box_iou_loss

    corners = torch.rand(2, 500, 2, 2, generator=generator(0, "test")).sort(dim=2).values
    a, b = (100 * corners).flatten(2)
    found = detection.generalised_iou(a, b)
    assert torch.allclose(1 - found, generalized_box_iou_loss(a, b), atol=1e-5)
    assert found.min() < -0.5 and torch.allclose(detection.generalised_iou(a, a), torch.ones(500))


def test_a_grid_of_cells():
    model = detection.Detector(10)
    assert model(torch.rand(2, 3, 64, 96)).shape == (2, 8, 12, 15)
    size = sum(p.numel() for p in model.parameters()) * 4
    assert size < 5e6


def test_the_head_sees_near_and_far(float32):
    """One prediction depends on pixels some 30 away by the fine features, 100 by the coarse ones."""

    class Nothing(torch.nn.Module):
        def forward(self, fine: torch.Tensor) -> torch.Tensor:
            return fine.new_zeros(len(fine), 32, fine.shape[2] // 2, fine.shape[3] // 2)

    def seen(model: detection.Detector) -> int:
        x = torch.rand(1, 3, 256, 256).requires_grad_()
        model(x)[0, 16, 16, 0].backward()
        rows = x.grad.abs().sum(dim=(0, 1, 3)).nonzero()
        return int(rows.max() - rows.min()) + 1

    torch.manual_seed(0)
    model = detection.Detector(2, 8).eval()
    assert 190 < seen(model) < 230
    model.coarse = Nothing()
    assert 50 < seen(model) < 70


def test_predictions_and_boxes_are_each_others_inverse():
    predictions = perfect_predictions()
    found, cells = detection.decode_boxes(predictions), responsible(GRID, GRID)
    assert len(cells) > len(torch.cat(BOXES))
    for k, row, column, index in cells:
        assert torch.allclose(found[k, row, column], BOXES[k][index], atol=1e-3)


def test_the_loss_is_zero_for_the_truth_alone():
    predictions = perfect_predictions()

    def loss(predictions=predictions, boxes=ALL_BOXES, labels=ALL_LABELS) -> float:
        return detection.detection_loss(predictions, boxes, labels).item()

    assert loss() == pytest.approx(0, abs=1e-4)
    assert loss(boxes=ALL_BOXES + 6) > 0.1
    assert loss(labels=torch.tensor([[1, 3], [-1, -1], [0, -1]])) > 1
    blind = predictions.clone()
    blind[..., 0] = -20
    assert loss(blind) > 10


def test_what_is_no_object_has_no_part_in_the_loss():
    """More places without an object change nothing, whatever box they hold."""
    predictions = torch.randn(3, 8, 8, 9, generator=generator(0, "test"))
    loss = detection.detection_loss(predictions, ALL_BOXES, ALL_LABELS)
    more_boxes = torch.cat([torch.rand(3, 4, 4) * 100, ALL_BOXES], dim=1)
    more_labels = F.pad(ALL_LABELS, (4, 0), value=-1)
    more = detection.detection_loss(predictions, more_boxes, more_labels)
    assert torch.allclose(more, loss, rtol=1e-5)
    found = detection.detection_loss(predictions, more_boxes, more_labels.clamp(min=0))
    assert not torch.allclose(found, loss, rtol=1e-2)


def test_a_batch_without_objects_has_a_loss():
    predictions = torch.zeros(2, 4, 4, 9, requires_grad=True)
    detection.detection_loss(predictions, torch.zeros(2, 1, 4), torch.full((2, 1), -1)).backward()
    assert predictions.grad.isfinite().all() and not predictions.grad[..., 1:].any()
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
    cells = len(responsible(GRID, GRID, ALL_BOXES[:1], ALL_LABELS[:1]))
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
    boxes, labels = torch.tensor([[[30.0, 20.0, 50.0, 34.0]]] * 16), torch.tensor([[7]] * 16)
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
    corner = torch.tensor([[[0.0, 0.0, 6.0, 6.0], [0.0, 0.0, 0.0, 0.0]]] * 40)
    labels = torch.tensor([[0, -1]] * 40)
    _, moved, kinds = detection.augment(images, corner, labels, generator(0, "test"), False)
    assert 0 < (kinds[:, 0] == 0).sum() < 40 and ((kinds[:, 0] == 0) | (kinds[:, 0] == -1)).all()
    assert (kinds[:, 1] == -1).all()  # what is no object stays none
    assert (moved >= 0).all() and (moved <= 64).all()
    centre = (moved[:, 0, :2] + moved[:, 0, 2:]) / 2
    assert (centre[kinds[:, 0] == 0] > 0).all()


def test_other_colours_leave_every_object_where_it_is():
    """Each channel is changed alike in all pixels; some pictures become negatives."""
    grey = torch.linspace(0.1, 0.9, 64).expand(40, 3, 64, 64).clone()
    x = detection.in_other_colours(grey, generator(0, "test"))
    columns = x.mean(dim=2)  # (40, 3, 64), the noise averaged away
    rising = (columns[..., -8:].mean(dim=2) - columns[..., :8].mean(dim=2)) > 0
    assert (rising == rising[:, :1]).all()  # all three channels of a picture, or none
    assert 4 < (~rising[:, 0]).sum() < 22
    assert (columns - columns[:, :1]).abs().amax() > 0.1 and (
        columns - grey[:, :, 0]
    ).abs().max() > 0.2
    boxes, labels = torch.rand(40, 2, 4), torch.zeros(40, 2, dtype=torch.long)
    changed, same = (detection.augment(grey, boxes, labels, generator(1, "test"), True, recolour)
                     for recolour in (True, False))  # fmt: skip
    assert torch.equal(changed[1], same[1]) and not torch.equal(changed[0], same[0])
    assert changed[0].min() >= 0 and changed[0].max() <= 1


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


def test_boxes_of_a_picture_of_another_size_are_in_its_own_pixels():
    class Middle(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape == (1, 3, 128, 128)
            return perfect_predictions()[:1]

    picture = np.zeros((256, 512, 3), np.uint8)  # four times as wide as the network's square
    found = detection.detect_in(Middle(), picture, 128, 0.5)
    order = found["labels"].argsort(descending=True)
    assert torch.allclose(found["boxes"][order], 4 * BOXES[0], atol=0.1)


def test_boxes_end_at_the_border_of_a_wide_picture():
    predictions = torch.zeros(1, 4, 8, 9)
    predictions[..., 0] = -20
    predictions[0, 3, 7, 0], predictions[0, 3, 7, 3:5], predictions[0, 3, 7, 5] = 20, 3, 30
    (found,) = detection.detect(Predicts(predictions), torch.zeros(1, 3, 64, 128), 0.5)
    assert found["boxes"].tolist() == [[0, 0, 128, 64]]


SMALL = {"epochs": 2, "batch_size": 4, "width": 4, "size": 64}


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    """A checkpoint of a small training on streets, its data, and the settings."""
    folder = tmp_path_factory.mktemp("pretrained")
    data = load_boxed("scenes", 8, 2, 64)
    config = detection.Config(**SMALL, output_dir=folder)
    detection.train(config, data)
    return detection.checkpoint_path(config, data), data


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]["detector"]


def test_pretrained_weights_are_where_the_training_starts(streets):
    """All of them for the same classes; for others the last layer is new."""
    path, data = streets
    saved = weights_of(path)
    config = detection.Config(**SMALL, pretrained=path)
    assert all(torch.equal(value, saved[name])
               for name, value in detection.new_detector(config, data).state_dict().items())  # fmt: skip
    other = replace(data, classes=("dog", "cat"))
    model = detection.new_detector(config, other).state_dict()
    changed = {name for name, value in model.items() if not torch.equal(value, saved[name])}
    last = "head.1"
    assert changed == {f"{last}.weight", f"{last}.bias"}
    random = detection.new_detector(replace(config, pretrained=None), other).state_dict()
    assert torch.equal(random[f"{last}.weight"], model[f"{last}.weight"])
    assert not torch.equal(random["fine.2.0.weight"], model["fine.2.0.weight"])


def test_the_backbone_is_frozen_in_the_first_epochs(streets, tmp_path):
    """Weights and batch statistics, while the last layer learns; afterwards all learn."""
    path, data = streets
    config = detection.Config(**SMALL, pretrained=path, frozen_epochs=1, output_dir=tmp_path)
    saved, states = weights_of(path), []

    def note(training, _epoch: int) -> None:
        states.append({k: v.clone() for k, v in training.model.state_dict().items()})

    detection.train(config, data, note)
    changed = [{name for name in saved if not torch.equal(saved[name], state[name])}
               for state in states]  # fmt: skip
    assert changed[0] == {name for name in saved if name.startswith("head.")}
    assert {"fine.2.0.weight", "fine.2.1.running_mean"} < changed[1]
    assert (tmp_path / "study_models/detection/scenes_pretrained.pth").is_file()


def test_a_frozen_training_that_was_stopped_goes_on_to_the_same_weights(streets, tmp_path):
    path, data = streets
    config = detection.Config(**{**SMALL, "epochs": 3}, pretrained=path, frozen_epochs=2,
                              output_dir=tmp_path)  # fmt: skip
    whole = detection.train(config, data).model.state_dict()
    whole = {name: value.clone() for name, value in whole.items()}

    def stop(_training, epoch: int) -> None:
        if epoch == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        detection.train(config, data, stop)
    again = detection.train(replace(config, resume=True), data).model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_pretrained_files_that_do_not_fit(streets, tmp_path):
    from torchvision.models import resnet18

    path, data = streets

    def refused(**settings) -> str:
        with pytest.raises(UserError) as refusal:
            detection.new_detector(detection.Config(**{**SMALL, **settings}), data)
        return str(refusal.value)

    assert "do not fit" in refused(pretrained=path, width=8)
    assert "do not fit" in refused(pretrained=path, backbone="resnet18")
    torch.manual_seed(0)
    network = resnet18()
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    assert "add --backbone resnet18" in refused(pretrained=tmp_path / "resnet18.pth")
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    said = refused(pretrained=tmp_path / "broken.pth", backbone="resnet18")
    assert "--pretrained FILE" in said and "https://" in said
    assert "There is no file" in refused(pretrained=tmp_path / "missing.pth")
    config = detection.Config(**SMALL, pretrained=tmp_path / "resnet18.pth", backbone="resnet18")
    model = detection.new_detector(config, data).state_dict()
    assert torch.equal(model["fine.network.0.weight"], network.state_dict()["conv1.weight"])


def test_resnet18_sees_pictures_as_torchvision_normalises_them(streets, tmp_path):
    """Its features at 1/16 of the size, of a picture in [0, 1], are those of the whole network."""
    from torchvision.models import resnet18
    from torchvision.transforms.functional import normalize

    torch.manual_seed(0)
    network = resnet18().eval()
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    config = detection.Config(**SMALL, pretrained=tmp_path / "resnet18.pth", backbone="resnet18")
    model = detection.new_detector(config, streets[1]).eval()
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        y = normalize(x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        y = network.maxpool(network.relu(network.bn1(network.conv1(y))))
        y = network.layer3(network.layer2(network.layer1(y)))
        assert torch.allclose(model.coarse(model.fine(2 * x - 1)), y, atol=1e-4)
        assert model(x).shape == (2, 8, 12, 5 + 2)


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("detection")
    run_here("studies.detection", "--quick", "--dataset", "digit-scenes", "--output-dir", folder,
             "--export", folder / "detector.onnx")  # fmt: skip
    return folder


@pytest.mark.parametrize("size", [256, 416])
def test_streets_at_two_sizes(tmp_path, size):
    """The default run, then a prediction in a picture by its checkpoint."""
    run_here("studies.detection", "--quick", "--size", size, "--scenes", 16, "--test-scenes", 6,
             "--output-dir", tmp_path)  # fmt: skip
    folder = tmp_path / "study_images" / "detection"
    result = json.loads((folder / "results.json").read_text("utf-8"))
    assert has_headline("studies.detection", result)
    assert result["dataset"]["shape"] == [3, size, size]
    names = {entry["path"] for entry in result["files"]}
    assert {"detections.png", "steps.png", "faces.png", "loss.png"} <= names
    assert result["metrics"]["objects found"]["n"] > 6
    (faces,) = [t for t in result["tables"] if "faces" in t["caption"]]
    boxes = {name: count for name, _, count in faces["rows"]}
    assert (
        boxes["grace hopper"] == 1
        and boxes["astronaut"] >= 1
        and len(boxes) == len(TRAINING + HELD_OUT)
    )
    model, classes, side = detection.load_detector(tmp_path / "study_models/detection/scenes.pth")
    assert side == size and classes == ("car", "pedestrian")
    with torch.no_grad():
        assert model(torch.rand(1, 3, size, size)).shape == (1, size // 8, size // 8, 5 + 2)
    Image.effect_noise((300, 200), 60).convert("RGB").save(tmp_path / "photo.png")
    run_here("studies.detection", "predict", "--source", tmp_path / "photo.png", "--output",
             tmp_path / "found.png", "--output-dir", tmp_path)  # fmt: skip
    assert Image.open(tmp_path / "found.png").size == (300, 200)


def test_the_network_finds_the_same_elsewhere_at_any_size(quick):
    saved = load_checkpoint(quick / "study_models/detection/digit-scenes.pth", "detection")
    model = detection.Detector(10, saved["config"]["width"])
    model.load_state_dict(saved["model"]["detector"])
    pictures = torch.rand(3, 3, 96, 128)
    found = elsewhere(quick / "detector.onnx", pictures=pictures)
    assert found.shape == (3, 12 * 16, 4 + 10)
    with torch.no_grad(), in_float32():
        predictions = model.eval()(pictures)
    assert torch.allclose(
        found[..., :4], detection.decode_boxes(predictions).flatten(1, 2), atol=1e-2
    )
    with in_float32():
        one = detection.detect(model, pictures, 0.0, max_iou=1.0)[0]
    assert torch.allclose(found[0, :, 4:].amax(dim=1).max(), one["scores"].max(), atol=1e-4)


def test_a_run_leaves_what_was_promised(quick):
    folder = quick / "study_images" / "detection" / "digit-scenes"
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


def test_wrong_input(quick, tmp_path):
    model = quick / "study_models" / "detection" / "digit-scenes.pth"
    plain = ("studies.detection", "predict", "--source", "none.png")
    shared = (*plain, "--model", model)
    output = ("--output", tmp_path / "out.png")
    assert "There is no picture" in complaint(*shared, *output)
    assert "--least" in complaint(*shared, *output, "--least", 2)
    assert "either --output" in complaint(*shared)
    assert "either --output" in complaint(*shared, *output, "--live")
    assert "add --coco MODEL" in complaint(*shared, *output, "--weights", model)
    assert "leave out --coco" in complaint(*shared, *output, "--cascade")
    assert "Unknown --coco" in complaint(*plain, *output, "--coco", "yolo")
    assert "multiple of 16" in complaint(
        "studies.detection", "--size", 100, "--output-dir", tmp_path
    )
    with pytest.raises(UserError, match="does not say"):
        saved = torch.load(model, weights_only=True)
        torch.save(saved | {"extra": {}}, tmp_path / "other.pth")
        detection.load_detector(tmp_path / "other.pth")


@pytest.mark.parametrize("dataset", ["scenes", "digit-scenes"])
def test_a_picture_comes_before_all_scenes_are_drawn(tmp_path, monkeypatch, dataset):
    """The few scenes that it shows are the first ones of the training."""
    asked, load = [], detection.load_boxed

    def stop(name, count, *more, **others):
        asked.append(count)
        if count == 1000:
            assert [path.name for path in tmp_path.rglob("*.png")] == ["training.png"]
            raise InterruptedError
        return load(name, count, *more, **others)

    monkeypatch.setattr(detection, "load_boxed", stop)
    config = detection.Config(dataset=dataset, scenes=1000, size=64, output_dir=tmp_path)
    with pytest.raises(InterruptedError):
        detection.run(config)
    assert asked == [detection.FEW, 1000]
    few, more = (load(dataset, n, 1, 64) for n in (2, 4))
    assert torch.equal(few.images, more.images[:2]) and torch.equal(few.boxes[1], more.boxes[1])
