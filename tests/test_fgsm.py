from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from conftest import complaint, run_here, untaught
from PIL import Image

import fgsm
from imagelab.data.datasets import load_dataset
from imagelab.data.pictures import write_png
from imagelab.techniques.classifier import new_classifier, predict

# For runs of which the attack on one's own picture is looked at.
FEW = ("--quick", "--dataset", "mnist-5k", "--num-images", 20, "--pgd-images", 10)

# --- the noise ------------------------------------------------------------------------------------


def test_noise_in_bytes_turns_bright():
    """What is corrected: in unsigned bytes negative noise becomes nearly white."""
    picture, noise = np.full((4, 4), 0.2), np.full((4, 4), -5 / 255)
    noise[0] = 5 / 255
    wrong = 255 * fgsm.add_noise_in_bytes(picture, noise, 0.2)  # rounded: 51 + 1 and 51 + 50.2
    assert np.allclose(wrong[0], 52) and np.allclose(wrong[1:], 101)
    white = fgsm.add_noise_in_bytes(picture, noise, 1.0)
    assert np.allclose(white[1:], 1) and np.allclose(white[0], 56 / 255)  # no second wrap


def test_noise_in_bytes_is_what_the_usual_lines_compute():
    """`np.random.normal(...).astype("uint8")` and `cv2.addWeighted(img, 1, noise, 0.1, 0)`."""
    img = np.random.default_rng(0).integers(0, 256, (40, 50)).astype(np.uint8)
    values = np.random.default_rng(1).normal(0, 25, img.shape)
    noise = values.astype(np.int64).astype("uint8")  # the cast in one step is not defined in C
    usual = cv2.addWeighted(img, 1, noise, 0.1, 0)
    ours = fgsm.add_noise_in_bytes(img / 255, values / 255, 0.1)
    off = np.abs(ours * 255 - usual)
    assert (
        off.max() <= 26 and (off < 0.5).mean() > 0.99
    )  # at whole numbers values·255/255 may differ
    assert 10 < (ours - img / 255).mean() * 255 < 13  # half of the pixels by a tenth of 235


def test_noise_is_signed_and_clipped():
    picture = np.full((64, 64), 0.5)
    noise, noisy = fgsm.add_noise(picture, 25, 0.1, np.random.default_rng(0))
    assert noise.min() < -0.2 and noise.max() > 0.2  # nothing has wrapped around
    assert noise.std() == pytest.approx(25 / 255, rel=0.05)
    assert (noisy - picture).std() == pytest.approx(2.5 / 255, rel=0.05)
    _, loud = fgsm.add_noise(picture, 255, 10, np.random.default_rng(0))
    assert loud.min() == 0 and loud.max() == 1


# --- the script -----------------------------------------------------------------------------------


def test_the_lesson(main_job):
    """Noise of the same size is harmless, the attack is not; ε = 0 is the clean accuracy."""
    result = json.loads((main_job / "adversarial_images/results.json").read_text("utf-8"))
    assert untaught("fgsm", result) == []
    rows = result["tables"][0]["rows"]
    assert rows[0][0] == "0" and rows[0][1] == rows[0][2] == rows[0][3]
    assert rows[-1][3] < 0.3 < 0.7 < min(rows[-1][1:3])
    pgd = [float(row[4].split()[0]) for row in rows]  # with its interval, n = 100
    assert pgd == sorted(pgd, reverse=True) and pgd[-1] <= rows[-1][3]
    few = result["metrics"]["accuracy, PGD-40, ε = 0.3"]
    assert few["n"] == 100 and few["interval"][0] <= pgd[-1] <= few["interval"][1] < 0.2
    assert "0 (95 %: 0 to 0.0370)" in {row[4] for row in rows}
    for name in (
        "noise_side_by_side.png",
        "accuracy.png",
        "gallery.png",
        "gallery_pgd.png",
        "noisy.png",
    ):
        assert Image.open(main_job / "adversarial_images" / name).size[0] > 200


def test_a_picture_of_a_digit_is_attacked(judged, tmp_path):
    """Any size, dark on light: here a large seven with a margin."""
    seven = Image.new("L", (300, 420), 240)
    for y in range(60, 360):
        left = 60 if y < 110 else int(200 - (y - 110) * 0.4)
        right = 240 if y < 110 else left + 45
        seven.paste(20, (left, y, right, y + 1))
    seven.save(tmp_path / "seven.png")
    run_here("fgsm", *FEW, "--output-dir", judged, "--image", tmp_path / "seven.png")
    result = json.loads((judged / "adversarial_images/results.json").read_text("utf-8"))
    (own,) = (entry for entry in result["files"] if entry["path"] == "your_picture.png")
    assert "read as 7" in own["caption"]
    assert 0 < result["metrics"]["your picture: smallest ε that fools"]["value"] <= 0.3
    assert (judged / "adversarial_images" / "your_picture.png").is_file()


def test_a_picture_is_not_cut_out_where_the_data_are_in_colour(tmp_path):
    Image.new("RGB", (60, 40), (200, 100, 0)).save(tmp_path / "a.png")
    image = fgsm.read_photo(tmp_path / "a.png", 32, 32)
    assert image.shape == (3, 32, 32)
    assert torch.allclose(image[:, 5, 5] * 255, torch.tensor([200.0, 100, 0]), atol=1)


def test_resnet18_on_a_photograph(judged, tmp_path):
    from torchvision.models import resnet18

    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), tmp_path / "weights.pth")
    Image.effect_noise((300, 200), 60).convert("RGB").save(tmp_path / "photo.jpg")
    shared = (*FEW, "--output-dir", judged, "--victim", "resnet18")
    run_here("fgsm", *shared, "--image", tmp_path / "photo.jpg",
               "--weights", tmp_path / "weights.pth")  # fmt: skip
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    sentence = complaint("fgsm", *shared, "--image", tmp_path / "photo.jpg",
                         "--weights", tmp_path / "broken.pth")  # fmt: skip
    assert "resnet18" in sentence and "--weights FILE" in sentence
    assert "--image" in complaint("fgsm", *shared)


@pytest.mark.parametrize("target", [None, 4])
def test_the_gallery_shows_up_to_ten_classes_once(target):
    """With stand-ins: the model reads the brightest of twelve pixels, the attack brightens another."""

    class Brightest(torch.nn.Module):
        def forward(self, x):
            return 50 * x.flatten(1)

    images = torch.eye(12).repeat(2, 1).reshape(24, 1, 3, 4) * 0.6
    labels = torch.arange(12).repeat(2)
    labels[1] = 0  # the first of class 1 is read wrongly

    def move(model, x, aim, epsilon, targeted):
        reached = torch.nn.functional.one_hot(aim if targeted else (aim + 1) % 12, 12)
        return (x + reached.reshape(x.shape)).clamp(0, 1) if epsilon > 0.1 else x

    fooled = fgsm.fooled_examples(Brightest(), images, labels, target, move)
    shown = [int(item.images[0].argmax()) for item in fooled]
    assert shown == [label for label in range(11) if label != target][:10]
    assert all(item.epsilon == 0.15 for item in fooled)
    read = [item.read.argmax(dim=1).tolist() for item in fooled]  # before, under noise, attacked
    aims = [(label + 1) % 12 if target is None else target for label in shown]
    assert read == [[label, label, aim] for label, aim in zip(shown, aims, strict=True)]
    for item in fooled:
        noise = item.images[1] - item.images[0]
        assert 0 < noise.abs().max() <= 0.15 + 1e-6


def test_wrong_input(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    shared = ("--quick", "--dataset", "mnist-5k", "--output-dir", tmp_path)
    assert "not a picture" in complaint("fgsm", *shared, "--image", tmp_path / "text.png")
    assert "--image: there is no file" in complaint("fgsm", *shared, "--image", tmp_path / "a.png")
    assert "--noise-sigma" in complaint("fgsm", *shared, "--noise-sigma", "nan")
    assert "Unknown --dataset" in complaint("fgsm", *shared, "--dataset", "mnits")
    assert "cannot be used" in complaint("fgsm", *shared, "--device", "gpu")
    assert "--victim resnet18" in complaint("fgsm", *shared, "--weights", tmp_path / "text.png")
    run_here("fgsm", "--epsilon", 1, status=2)


def test_a_target_that_there_is_not(tmp_path):
    for target, sentence in ((-1, "must be at least 0"), (10, "0 to 9")):
        assert sentence in complaint("fgsm", "--quick", "--dataset", "mnist-5k", "--targeted", target,
                                     "--output-dir", tmp_path)  # fmt: skip


def test_a_picture_that_is_read_as_the_target_needs_no_attack(capsys, tmp_path, monkeypatch):
    data = load_dataset("mnist-5k", "data")
    model, path = new_classifier(data, 0).eval(), tmp_path / "mine.png"
    monkeypatch.setattr(fgsm, "trained_classifier", lambda *_: model)
    write_png(path, 1 - data.test_images[0, 0].numpy() / 255)
    read = int(predict(model, fgsm.read_like(path, data.shape)[None]).argmax())
    fgsm.report_own_picture(fgsm.Config(targeted=read), data, path, None)
    assert f"mine.png, read as {read}, which is the target already" in capsys.readouterr().out


def test_the_smallest_epsilon_that_fools(monkeypatch):
    """The first of those asked for at which the reading changes; beside it noise of the same size."""

    class Brightness(torch.nn.Module):
        """Reads a dark image as class 0, a bright one as class 1."""

        def forward(self, images):
            mean = images.mean(dim=(1, 2, 3))
            return torch.stack([0.5 - mean, mean - 0.5], dim=1)

    model, image, sizes, noise = (
        Brightness(),
        torch.full((1, 28, 28), 0.3),
        [],
        fgsm.attacks.sign_noise,
    )

    def drawn(x, epsilon, rng):
        sizes.append(epsilon)
        return noise(x, epsilon, rng)

    def attack(_model, x, _aim, epsilon, targeted):
        assert not targeted
        return torch.ones_like(x) if epsilon >= 0.2 else x

    monkeypatch.setattr(fgsm.attacks, "sign_noise", drawn)
    found = fgsm.smallest_fooling(model, image, 0, None, [0.1, 0.2, 0.3], attack)
    assert found.epsilon == 0.2 and sizes == [0.2]  # noise that is not shown is not drawn
    original, noisy, attacked = found.images
    assert torch.equal(original, image) and (attacked == 1).all()
    assert 0.1 < (noisy - image).abs().max() <= 0.2 + 1e-6
    assert torch.allclose(found.read, predict(model, found.images))
    assert fgsm.smallest_fooling(model, image, 0, None, [0.05, 0.1], attack) is None
