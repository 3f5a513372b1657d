from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from conftest import complaint, elsewhere, run_here, untaught
from PIL import Image
from test_masks import write_pair

from imagelab.data.masks import IGNORE, load_masked
from imagelab.report import predict
from imagelab.setup.runtime import UserError, generator, in_float32
from imagelab.training.checkpoints import load_checkpoint
from studies import segmentation


@pytest.mark.parametrize(("height", "width"), [(64, 96), (37, 51), (8, 8)])
@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_any_size_comes_back(height, width, patch_size):
    model = segmentation.SegmentationUNet(5, (8, 16, 24), patch_size).eval()
    logits = model(torch.rand(2, 3, height, width))
    assert logits.shape == (2, 5, height, width)


def test_skip_connections_carry_detail():
    """Without what was seen on the way down, neighbouring pixels could hardly differ."""
    torch.manual_seed(0)
    model = segmentation.SegmentationUNet(2, (8, 16, 24), 1).eval()
    x = torch.rand(1, 3, 32, 32)
    changed = x.clone()
    changed[0, :, 16, 16] = 1 - changed[0, :, 16, 16]
    with torch.no_grad():
        effect = (model(changed) - model(x)).abs().sum(dim=1)[0]
    rows, columns = effect.flatten().topk(9).indices // 32, effect.flatten().topk(9).indices % 32
    assert (rows - 16).abs().max() <= 4 and (columns - 16).abs().max() <= 4
    near = effect[13:20, 13:20].sum() / effect.sum()
    assert near > 0.2


def test_the_plain_network_is_binary():
    """The cross-entropy of its two logits is the binary cross-entropy of sigmoid(z)."""
    torch.manual_seed(0)
    model = segmentation.PlainUNet()
    assert [m.out_channels for m in model.modules() if isinstance(m, torch.nn.Conv2d)] == [
        64, 128, 256, 128, 64, 1,
    ]  # fmt: skip
    x, target = torch.rand(2, 3, 30, 41), torch.randint(0, 2, (2, 30, 41))
    logits = model(x)
    assert logits.shape == (2, 2, 30, 41)
    two = segmentation.segmentation_loss(logits, target, "cross-entropy")
    p = logits[:, 1].sigmoid()
    assert two.item() == pytest.approx(F.binary_cross_entropy(p, target.float()).item(), rel=1e-5)
    # Only the grey value counts: a red and a green of one brightness look alike.
    grey = (0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]).expand(-1, 3, -1, -1)
    with in_float32(), torch.no_grad():
        assert torch.allclose(model(grey), model(x), atol=1e-5)


def one_hot_logits(mask: torch.Tensor, classes: int, sure: float = 50.0) -> torch.Tensor:
    return sure * F.one_hot(mask, classes).permute(0, 3, 1, 2).float()


def test_dice_loss_against_its_definition():
    torch.manual_seed(0)
    truth, said = torch.randint(0, 3, (2, 2, 8, 8))
    loss = segmentation.dice_loss(one_hot_logits(said, 3), truth).item()
    dice = [2 * ((truth == k) & (said == k)).sum() / ((truth == k).sum() + (said == k).sum())
            for k in range(3)]  # fmt: skip
    assert loss == pytest.approx(1 - float(sum(dice)) / 3, abs=1e-5)
    assert segmentation.dice_loss(one_hot_logits(truth, 3), truth).item() == pytest.approx(
        0, abs=1e-5
    )


@pytest.mark.parametrize("kind", ["cross-entropy", "dice", "both"])
def test_a_batch_without_a_known_pixel_teaches_nothing(kind):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = segmentation.segmentation_loss(logits, torch.full((2, 4, 4), 255), kind)
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


@pytest.mark.parametrize("kind", ["cross-entropy", "dice", "both"])
def test_pixels_of_no_class_count_nowhere(kind):
    torch.manual_seed(0)
    logits, truth = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    truth[:, :4] = IGNORE
    other = logits.clone()
    other[:, :, :4] += 10 * torch.randn(2, 3, 4, 8)
    a, b = (segmentation.segmentation_loss(x, truth, kind) for x in (logits, other))
    assert a.item() == pytest.approx(b.item(), rel=1e-5)
    parts = [segmentation.segmentation_loss(logits, truth, k).item()
             for k in ("cross-entropy", "dice", "both")]  # fmt: skip
    assert parts[2] == pytest.approx(parts[0] + parts[1])


def test_pixels_of_rare_classes_count_more():
    masks = torch.full((1, 10, 10), IGNORE, dtype=torch.uint8)
    masks[:, :8], masks[:, 8] = 0, 1  # 80 pixels, 10 pixels, none; 10 of no class
    weights = segmentation.class_weights(masks, 3)
    shares = torch.tensor([8 / 9, 1 / 9, 0])
    assert weights.tolist() == pytest.approx((1 / (1.02 + shares).log()).tolist())
    # Wrong in every pixel of the rare class, right elsewhere: the weights make it the larger fault.
    said = one_hot_logits(torch.zeros(1, 10, 10, dtype=torch.int64), 3, sure=5)
    plain = segmentation.segmentation_loss(said, masks.long(), "cross-entropy")
    weighted = segmentation.segmentation_loss(said, masks.long(), "cross-entropy", weights)
    assert weighted > 3 * plain


def test_picture_and_mask_are_changed_together():
    """A picture that is painted by its mask is still painted by it after every change."""
    mask = torch.zeros(12, 64, 96, dtype=torch.uint8)
    mask[:, 20:50, 10:60], mask[:, 30:40, 30:90] = 1, 2
    images = (mask.float() / 2)[:, None].repeat(1, 3, 1, 1)
    x, y = segmentation.augment(images, mask, generator(0, "test"))
    inside = y != IGNORE
    assert 0.5 < inside.float().mean() < 1  # something came from outside
    assert set(y.unique().tolist()) == {0, 1, 2, IGNORE}
    for k in range(12):
        means = [x[k, 0][y[k] == c].mean().item() for c in range(3)]
        assert means[0] + 0.15 < means[1] and means[1] + 0.15 < means[2]
    assert any(not torch.equal(y[0], y[k]) for k in range(1, 12))
    flipped = [(y[k][:, :48] == 2).sum() > (y[k][:, 48:] == 2).sum() for k in range(12)]
    assert any(flipped) and not all(flipped)


def test_the_strength_of_the_augmentation():
    """At 0 pictures are only flipped and relit; at 1 more comes from outside than at 0.5."""
    mask = torch.randint(0, 3, (40, 32, 48), dtype=torch.uint8, generator=generator(0, "test"))
    images = (mask.float() / 2)[:, None].repeat(1, 3, 1, 1)
    _, y = segmentation.augment(images, mask, generator(1, "test"), 0)
    kept = [torch.equal(a, b.long()) for a, b in zip(y, mask, strict=True)]
    flipped = [torch.equal(a, b.flip(1).long()) for a, b in zip(y, mask, strict=True)]
    assert all(a != b for a, b in zip(kept, flipped, strict=True)) and any(kept) and any(flipped)
    outside = [
        (segmentation.augment(images, mask, generator(1, "test"), k)[1] == IGNORE).float().mean()
        for k in (0.5, 1.0)
    ]
    assert 0 < outside[0] < 0.8 * outside[1]


def test_each_change_does_what_it_says():
    """Of a picture with a bright square at the left, its upper edge in the middle of the picture."""
    mask = torch.zeros(1, 64, 96, dtype=torch.uint8)
    mask[:, 32:44, 20:32] = 1
    images = mask[:, None].float().repeat(1, 3, 1, 1)

    def centre(angle=0.0, scale=1.0, flip=1.0, shift=(0.0, 0.0)) -> tuple[float, float, int]:
        numbers = (torch.tensor([value]) for value in (angle, scale, flip))
        x, y = segmentation.warp(images, mask, *numbers, torch.tensor([shift]))
        rows, columns = (y[0] == 1).nonzero().float().T
        assert ((x[0, 0] > 0.5) == (y[0] == 1)).float().mean() > 0.99
        return rows.mean().item(), columns.mean().item(), len(rows)

    assert centre() == (37.5, 25.5, 144)
    assert centre(flip=-1.0) == (37.5, 69.5, 144)
    row, column, area = centre(scale=1.5)
    assert area == pytest.approx(2.25 * 144, rel=0.1)
    assert (row, column) == pytest.approx((31.5 + 1.5 * 6, 47.5 - 1.5 * 22), abs=0.5)
    # By 10 degrees around the middle: what is 22 to the left moves up or down by 22·sin(10°) = 3.8.
    row, column, area = centre(angle=math.radians(10))
    assert area == pytest.approx(144, rel=0.1) and abs(row - 37.5) == pytest.approx(3.8, abs=0.7)
    row, column, _ = centre(shift=(0.25, 0.0))  # a quarter of 48 pixels
    assert (row, column) == (37.5, 13.5)
    light = segmentation.relight(
        torch.full((1, 3, 2, 2), 0.25), torch.tensor([0.5]), torch.ones(1, 3)
    )
    assert torch.allclose(light, torch.full((1, 3, 2, 2), 0.5))


def test_augmented_shows_the_original_and_a_picture_of_middle_brightness(tmp_path):
    data = load_masked("scenes", tmp_path, height=32, scenes=5, test=1)
    data.images[0], data.images[1] = 0, 255
    figure = segmentation.plot_augmented(data, 0)
    first = figure.axes[0]
    assert first.get_title() == "original"
    shown = torch.from_numpy(np.asarray(first.get_images()[0].get_array())).permute(2, 0, 1)
    assert any(torch.allclose(shown, image / 255) for image in data.images[2:])


def test_a_straight_line_stays_straight():
    """Rotation, not shear: in a picture that is not square, too, right angles stay right."""
    mask = torch.zeros(40, 60, 120, dtype=torch.uint8)
    mask[:, 20:40, 50:70] = 1  # a square
    _, y = segmentation.augment(
        mask[:, None].float().repeat(1, 3, 1, 1), mask, generator(1, "test")
    )
    for k in range(40):
        rows, columns = (y[k] == 1).nonzero().float().T
        if len(rows) < 100 or min(rows.min(), columns.min()) < 1 or rows.max() > 58:
            continue
        # A turned square has the same spread in every direction; a sheared one has not.
        spread = torch.cov(torch.stack([rows, columns]))
        assert spread[0, 0] / spread[1, 1] == pytest.approx(1, abs=0.15)
        assert abs(spread[0, 1]) / spread[0, 0] < 0.12


def test_scores_against_torchmetrics():
    from torchmetrics.functional.classification import multiclass_jaccard_index

    torch.manual_seed(0)
    found = torch.randint(0, 4, (3, 16, 16), dtype=torch.uint8)
    truth = torch.randint(0, 4, (3, 16, 16), dtype=torch.uint8)
    truth[:, :3] = IGNORE
    iou, accuracy = segmentation.scores(found, truth, 5)
    theirs = multiclass_jaccard_index(
        found.long(), truth.long(), 4, average="none", ignore_index=IGNORE
    )
    assert torch.allclose(iou[:4].float(), theirs)
    assert iou[4].isnan()  # neither said nor there
    assert accuracy == pytest.approx((found == truth)[:, 3:].float().mean().item())


def test_a_training_that_was_stopped_goes_on_to_the_same_weights(tmp_path):
    data = load_masked("scenes", tmp_path, height=32, scenes=8, test=2)
    config = segmentation.Config(epochs=3, batch_size=4, widths=(4, 8), output_dir=tmp_path)
    seen = []
    whole = segmentation.train(config, data, lambda _, epoch: seen.append(epoch))

    def stop(_training, epoch: int) -> None:
        if epoch == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        segmentation.train(config, data, stop)
    resumed = replace(config, resume=True)
    again = segmentation.train(resumed, data, lambda _, epoch: seen.append(epoch))
    assert seen == [1, 2, 3, 2, 3]
    for name, value in whole.networks["unet"].state_dict().items():
        assert torch.equal(value, again.networks["unet"].state_dict()[name]), name


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("segmentation")
    run_here("studies.segmentation", "--quick", "--epochs", 6, "--output-dir", folder, "--export",
             folder / "unet.onnx")  # fmt: skip
    return folder


def test_a_run_leaves_what_was_promised(quick):
    folder = quick / "study_images" / "segmentation"
    result = json.loads((folder / "results.json").read_text("utf-8"))
    assert untaught("studies.segmentation", result) == []
    names = {entry["path"] for entry in result["files"]}
    assert {"overlays.png", "iou.png", "augmented.png", "loss.png"} <= names
    assert all((folder / name).is_file() for name in names)
    assert result["metrics"]["mean IoU"]["n"] == 24
    assert result["config"]["augmentation"] == 0.5  # what the drawn scenes get
    # More than always saying 'road', the commonest class, even in a few seconds.
    assert result["metrics"]["pixel accuracy"]["value"] > 0.5


def test_the_network_predicts_the_same_elsewhere_at_any_size(quick):
    saved = load_checkpoint(quick / "study_models/segmentation/scenes.pth", "segmentation")
    model = segmentation.SegmentationUNet(
        len(saved["extra"]["classes"]), saved["config"]["widths"], saved["config"]["patch_size"]
    )
    model.load_state_dict(saved["model"]["unet"])
    pictures = torch.rand(3, 3, 45, 81)
    logits = elsewhere(quick / "unet.onnx", pictures=pictures)
    with torch.no_grad(), in_float32():
        assert torch.allclose(logits, model.eval()(pictures), atol=1e-4)
    words = onnx.load(quick / "unet.onnx").metadata_props
    assert json.loads({w.key: w.value for w in words}["classes"]) == saved["extra"]["classes"]


def test_an_older_checkpoint_is_still_read(quick, tmp_path):
    """It calls the patch size "fold", and two parts of the network by other names."""
    path = quick / "study_models/segmentation/scenes.pth"
    saved = torch.load(path, weights_only=True)
    saved["config"]["fold"] = saved["config"].pop("patch_size")
    saved["model"]["unet"] = {
        name.replace("upsample.", "grow.").replace("head.", "last."): value
        for name, value in saved["model"]["unet"].items()
    }
    assert {"grow.0.weight", "last.weight"} <= saved["model"]["unet"].keys()
    torch.save(saved, tmp_path / "old.pth")
    (old, classes, height), (new, *_) = map(segmentation.load_model, (tmp_path / "old.pth", path))
    assert old.patch_size == 1 and height == 128 and "pedestrian" in classes
    x = torch.rand(1, 3, 32, 48)
    assert torch.equal(old(x), new(x))


def test_pretraining_and_resuming_and_predicting_on_real_folders(quick, tmp_path):
    for k in range(20):
        write_pair(tmp_path / "images", tmp_path / "masks", f"{k:02}", size=(96, 64))
    data = f"folder:{tmp_path / 'images'}:{tmp_path / 'masks'}"
    shared = (
        "studies.segmentation",
        "--quick",
        "--dataset",
        data,
        "--height",
        64,
        "--output-dir",
        quick,
    )
    run_here(*shared, "--pretrained", "--epochs", 20, "--batch-size", 6)
    path = quick / "study_models/segmentation/folder_images_pretrained.pth"
    saved = torch.load(path, weights_only=True)
    assert saved["extra"]["classes"] == ["class 0", "class 1", "class 2"]
    run_here(*shared, "--pretrained", "--epochs", 21, "--batch-size", 6, "--resume")
    image = tmp_path / "images" / "00.jpg"
    shown, _ = run_here("studies.segmentation", "predict", "--image", image, "--model", path,
                        "--output", tmp_path / "seen.png", "--strength", 1)  # fmt: skip
    seen = np.asarray(Image.open(tmp_path / "seen.png")).astype(int)
    assert seen.shape == (64, 96, 3) and "class 2" in shown
    # The two halves have their own colours.
    left, right = seen[20:44, 8:40].reshape(-1, 3), seen[20:44, 56:88].reshape(-1, 3)
    assert abs(np.median(left, axis=0) - np.median(right, axis=0)).sum() > 100


def test_predict_finds_the_network_under_the_output_dir(quick, tmp_path):
    Image.new("RGB", (48, 32)).save(tmp_path / "street.png")
    shown, _ = run_here("studies.segmentation", "predict", "--image", tmp_path / "street.png",
                        "--output", tmp_path / "seen.png", "--output-dir", quick)  # fmt: skip
    assert "%" in shown and (tmp_path / "seen.png").is_file()


def test_the_plain_network_for_one_class(tmp_path):
    shared = ("studies.segmentation", "--quick", "--network", "plain", "--output-dir", tmp_path)
    sizes = ("--height", 32, "--width", 32, "--scenes", 16, "--test-scenes", 4, "--epochs", 1)
    run_here(*shared, *sizes, "--classes", "road", "--unweighted", "--loss", "cross-entropy")
    folder = tmp_path / "study_images/segmentation/scenes_road_plain"
    result = json.loads((folder / "results.json").read_text("utf-8"))
    assert [row[0] for row in result["tables"][0]["rows"]] == ["other", "road"]
    path = tmp_path / "study_models/segmentation/scenes_road_plain.pth"
    model, classes, height = segmentation.load_model(path)
    assert isinstance(model, segmentation.PlainUNet) and height == 32
    assert classes == ("other", "road")
    # What is not the road keeps its colours.
    picture = np.asarray(Image.effect_noise((40, 30), 90).convert("RGB"))
    found = np.zeros(2)
    seen = predict.class_predictor(model, classes, 32, 1.0, found)(picture)
    ((_, mask),) = predict.predict_strips(model, picture, 32)
    assert found.tolist() == np.bincount(mask.ravel(), minlength=2).tolist()
    assert (seen[mask == 0] == picture[mask == 0]).all()
    assert "--classes" in complaint(*shared, *sizes)
    assert "Unknown class 'rode'" in complaint(*shared, *sizes, "--classes", "rode")


def test_wrong_input(quick, tmp_path):
    model = quick / "study_models" / "segmentation" / "scenes.pth"
    shared = ("studies.segmentation", "predict", "--output", tmp_path / "seen.png")
    assert "either --image or --video" in complaint(*shared, "--model", model)
    sentence = complaint(*shared, "--image", "none.png", "--model", model)
    assert "no picture none.png" in sentence
    assert "no checkpoint none.pth" in complaint(*shared, "--image", "a.png", "--model", "none.pth")
    sentence = complaint(*shared, "--image", "a.png", "--output-dir", tmp_path)
    assert f"no checkpoint {tmp_path}/study_models/segmentation/scenes.pth" in sentence
    assert "--resume" not in sentence  # which predict does not have
    (tmp_path / "bad.pth").write_bytes(b"no checkpoint")
    assert "checkpoint" in complaint(*shared, "--image", "a.png", "--model", tmp_path / "bad.pth")
    run = ("studies.segmentation", "--quick", "--output-dir", tmp_path)
    assert "no checkpoint" in complaint(*run, "--pretrained")
    assert "Unknown --dataset" in complaint(*run, "--dataset", "mnist-5k")


def test_a_picture_comes_before_all_scenes_are_drawn(tmp_path, monkeypatch):
    """The few scenes that it shows are the first ones of the training."""
    asked, load = [], segmentation.load_masked

    def stop(name, data_dir, height, scenes, *more):
        asked.append(scenes)
        if scenes == 1000:
            assert [path.name for path in tmp_path.rglob("*.png")] == ["augmented.png"]
            raise InterruptedError
        return load(name, data_dir, height, scenes, *more)

    monkeypatch.setattr(segmentation, "load_masked", stop)
    with pytest.raises(InterruptedError):
        segmentation.run(segmentation.Config(scenes=1000, height=32, output_dir=tmp_path))
    assert asked == [segmentation.FEW, 1000]
    few, more = (load("scenes", tmp_path, 32, n, 1).images for n in (4, 8))
    assert torch.equal(few, more[:4])


def test_the_mirrored_prediction_is_that_of_the_mirrored_picture():
    """With it, a picture and its mirror image get mirrored classes; without it they do not."""
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 5, 3, padding=1)
    images = torch.randint(0, 256, (3, 3, 32, 48), dtype=torch.uint8)
    for mirror in (True, False):
        one = segmentation.predict(model, images, mirror)
        other = segmentation.predict(model, images.flip(3), mirror).flip(2)
        assert ((one == other).float().mean() > 0.999) == mirror


def test_dropout_is_of_the_lowest_level_and_of_training_alone():
    torch.manual_seed(0)
    model = segmentation.SegmentationUNet(3, (4, 8), 1, dropout=0.5).eval()
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        model.dropout.train()
        assert not torch.equal(model(x), model(x))
        for weight in model.upsample.parameters():  # then nothing comes from the lowest level
            weight.zero_()
        assert torch.equal(model(x), model(x))


def test_settings_that_the_data_set_chooses(tmp_path, monkeypatch):
    """CamVid gets 2,600 steps and dropout, drawn scenes neither; what the user names stays."""
    seen = []

    def stop(config, data):
        seen.append((config.epochs, config.augmentation, config.dropout))
        raise InterruptedError

    monkeypatch.setattr(segmentation, "train", stop)
    frames = replace(load_masked("scenes", tmp_path, 32, 50, 2), name="camvid")
    load = segmentation.load_masked

    def loaded(name, *more):
        return frames if name == "camvid" else load(name, *more)

    monkeypatch.setattr(segmentation, "load_masked", loaded)
    config = segmentation.Config(height=32, scenes=50, test_scenes=2, output_dir=tmp_path)
    for more in ({}, {"dataset": "camvid"}, {"dataset": "camvid", "epochs": 3, "dropout": 0.0}):
        with pytest.raises(InterruptedError):
            segmentation.run(replace(config, **more))
    assert seen == [(117, 0.5, 0.0), (433, 1.0, 0.3), (3, 1.0, 0.0)]


def test_a_finished_training_is_measured_again_in_the_mirror(tmp_path):
    data = load_masked("scenes", tmp_path, height=32, scenes=8, test=2)
    config = segmentation.Config(epochs=1, batch_size=4, widths=(4, 8), output_dir=tmp_path)
    weights = segmentation.train(config, data).model.state_dict()
    again = segmentation.train(replace(config, resume=True, mirror=True), data).model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    with pytest.raises(UserError, match="--dropout"):
        segmentation.train(replace(config, resume=True, dropout=0.5), data)
