from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import complaint, run_script
from PIL import Image
from torch import nn

import fgsm
from imagelab.classifier import new_classifier


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def linear_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 3))


# --- the noise ------------------------------------------------------------------------------------


def test_noise_is_signed_and_clipped():
    picture = np.full((64, 64), 0.5)
    noise, noisy = fgsm.add_noise(picture, 25, 0.1, np.random.default_rng(0))
    assert noise.min() < -0.2 and noise.max() > 0.2  # nothing has wrapped around
    assert noise.std() == pytest.approx(25 / 255, rel=0.05)
    assert (noisy - picture).std() == pytest.approx(2.5 / 255, rel=0.05)
    _, loud = fgsm.add_noise(picture, 255, 10, np.random.default_rng(0))
    assert loud.min() == 0 and loud.max() == 1


# --- the attack -----------------------------------------------------------------------------------


def test_the_attack_stays_in_its_ball_and_range(images):
    changed = fgsm.fgsm(linear_model(), images, torch.zeros(8, dtype=torch.long), 0.1)
    assert (changed - images).abs().max() <= 0.1 + 1e-6
    assert changed.min() >= 0 and changed.max() <= 1
    inner = (images > 0.1) & (images < 0.9)
    assert torch.allclose((changed - images).abs()[inner], torch.tensor(0.1), atol=1e-6)


def test_epsilon_zero_changes_nothing(images):
    labels = torch.zeros(8, dtype=torch.long)
    assert torch.equal(fgsm.fgsm(linear_model(), images, labels, 0.0), images)
    rng = torch.Generator().manual_seed(0)
    assert torch.equal(fgsm.sign_noise(images, 0.0, rng), images)
    assert torch.equal(fgsm.gaussian_noise(images, 0.0, rng), images)


def test_gradient_of_a_linear_model(images):
    """∇ₓL = Wᵀ(softmax − one-hot), in closed form."""
    model = linear_model()
    labels = torch.arange(8) % 3
    expected = (model(images).softmax(1) - nn.functional.one_hot(labels, 3)) @ model[1].weight
    got = fgsm.input_gradient(model, images, labels)
    assert torch.allclose(got.flatten(1), expected, atol=1e-6)


def test_untargeted_raises_and_targeted_lowers_the_loss(images):
    model, labels = linear_model(), torch.ones(8, dtype=torch.long)
    loss = [
        nn.functional.cross_entropy(model(x), labels).item()
        for x in (
            fgsm.fgsm(model, images, labels, 0.05, targeted=True),
            images,
            fgsm.fgsm(model, images, labels, 0.05),
        )
    ]
    assert loss[0] < loss[1] < loss[2]


def test_the_model_is_left_as_it_was(images, stripes):
    model = new_classifier(stripes, 0).train()
    before = [p.clone() for p in model.parameters()]
    fgsm.fgsm(model, images, torch.zeros(8, dtype=torch.long), 0.1)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_noise_is_as_large_as_the_attack():
    grey = torch.full((4, 1, 28, 28), 0.5)
    rng = torch.Generator().manual_seed(0)
    sign = fgsm.sign_noise(grey, 0.2, rng) - grey
    assert torch.allclose(sign.abs(), torch.tensor(0.2)) and abs(sign.mean()) < 0.02
    gauss = fgsm.gaussian_noise(grey, 0.2, rng) - grey
    assert gauss.norm().item() == pytest.approx(sign.norm().item(), rel=0.05)


# --- the script -----------------------------------------------------------------------------------


def test_the_lesson(main_job):
    """Noise of the same size is harmless, the attack is not; ε = 0 is the clean accuracy."""
    result = json.loads((main_job / "adversarial_images/results.json").read_text("utf-8"))
    rows = result["tables"][0]["rows"]
    assert rows[0][0] == "0" and rows[0][1] == rows[0][2] == rows[0][3]
    assert rows[-1][3] < 0.3 < 0.7 < min(rows[-1][1:3])
    for name in ("noise_side_by_side.png", "accuracy.png", "gallery.png", "noisy.png"):
        assert Image.open(main_job / "adversarial_images" / name).size[0] > 200


def test_a_picture_of_a_digit_is_attacked(main_job, tmp_path):
    """Any size, dark on light: here a large seven with a margin."""
    seven = Image.new("L", (300, 420), 240)
    for y in range(60, 360):
        left = 60 if y < 110 else int(200 - (y - 110) * 0.4)
        right = 240 if y < 110 else left + 45
        seven.paste(20, (left, y, right, y + 1))
    seven.save(tmp_path / "seven.png")
    done = run_script("fgsm", "--quick", "--dataset", "digits", "--output-dir", main_job,
                      "--image", tmp_path / "seven.png", "--targeted", 3)  # fmt: skip
    assert "your_picture.png" in done.stdout or "does not fool" in done.stdout


def test_resnet18_on_a_photograph(main_job, tmp_path):
    from torchvision.models import resnet18

    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), tmp_path / "weights.pth")
    Image.effect_noise((300, 200), 60).convert("RGB").save(tmp_path / "photo.jpg")
    shared = ("--quick", "--dataset", "digits", "--output-dir", main_job, "--victim", "resnet18")
    run_script("fgsm", *shared, "--image", tmp_path / "photo.jpg",
               "--weights", tmp_path / "weights.pth")  # fmt: skip
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    for weights in ("broken.pth", "missing.pth"):
        sentence = complaint("fgsm", *shared, "--image", tmp_path / "photo.jpg",
                             "--weights", tmp_path / weights)  # fmt: skip
        assert "resnet18" in sentence and "--weights FILE" in sentence
    assert "--image" in complaint("fgsm", *shared)


def test_wrong_input(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    shared = ("--quick", "--dataset", "digits", "--output-dir", tmp_path)
    assert "not a picture" in complaint("fgsm", *shared, "--image", tmp_path / "text.png")
    assert "There is no picture" in complaint("fgsm", *shared, "--image", tmp_path / "a.png")
    assert "--noise-sigma" in complaint("fgsm", *shared, "--noise-sigma", "nan")
    assert "Unknown --dataset" in complaint("fgsm", *shared, "--dataset", "mnits")
    assert "cannot be used" in complaint("fgsm", *shared, "--device", "gpu")
    run_script("fgsm", "--epsilon", 1, status=2)
