from __future__ import annotations

import pytest
import torch
from torch import nn

from imagelab import attacks
from imagelab.classifier import new_classifier

ALL = ["fgsm", "linf", "l2"]


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(30, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def labels() -> torch.Tensor:
    return torch.arange(30) % 3


@pytest.fixture
def model() -> nn.Module:
    """A small network that is not linear and has a layer for which the mode matters."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(1152, 3)
    ).eval()


def linear_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 3))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def attack(kind: str, model, images, labels, epsilon: float, **more) -> torch.Tensor:
    if kind == "fgsm":
        return attacks.fgsm(model, images, labels, epsilon, **more)
    return attacks.pgd(model, images, labels, epsilon, rng(), steps=8, norm=kind, **more)


def loss(model, images, labels) -> float:
    with torch.no_grad():
        return nn.functional.cross_entropy(model(images), labels).item()


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("epsilon", [0.05, 0.3])
def test_inside_the_ball_and_the_range(model, images, labels, kind, epsilon):
    changed = attack(kind, model, images, labels, epsilon)
    change = (changed - images).flatten(1)
    size = change.norm(dim=1) if kind == "l2" else change.abs().max(dim=1).values
    assert size.max() <= epsilon + 1e-6 and size.min() > 0.5 * epsilon
    assert changed.min() >= 0 and changed.max() <= 1


@pytest.mark.parametrize("kind", ALL)
def test_epsilon_zero_returns_the_input(model, images, labels, kind):
    assert torch.equal(attack(kind, model, images, labels, 0.0), images)
    assert torch.equal(attacks.sign_noise(images, 0.0, rng()), images)
    assert torch.equal(attacks.gaussian_noise(images, 0.0, rng()), images)


def test_gradient_of_a_linear_model(images, labels):
    """∇ₓL = Wᵀ(softmax − one-hot), in closed form."""
    model = linear_model()
    expected = (model(images).softmax(1) - nn.functional.one_hot(labels, 3)) @ model[1].weight
    got = attacks.input_gradient(model, images, labels)
    assert torch.allclose(got.flatten(1), expected, atol=1e-6)


def test_the_best_answer_for_two_classes_of_a_linear_model():
    """With two classes the worst point of a ball inside [0, 1] is known: x ± ε along Δw."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
    grey, label = torch.full((1, 1, 28, 28), 0.5), torch.tensor([0])
    away = (model[1].weight[1] - model[1].weight[0]).reshape(1, 1, 28, 28).detach()
    for norm, best in (("linf", 0.1 * away.sign()), ("l2", 0.1 * away / away.norm())):
        changed = attacks.pgd(model, grey, label, 0.1, rng(), norm=norm, random_start=False)
        assert torch.allclose(changed, grey + best, atol=1e-5)
    assert torch.allclose(attacks.fgsm(model, grey, label, 0.1), grey + 0.1 * away.sign())


@pytest.mark.parametrize("kind", ALL)
def test_untargeted_raises_and_targeted_lowers_the_loss(model, images, labels, kind):
    untargeted = attack(kind, model, images, labels, 0.1)
    targeted = attack(kind, model, images, labels, 0.1, targeted=True)
    assert (
        loss(model, targeted, labels)
        < loss(model, images, labels)
        < loss(model, untargeted, labels)
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_steps_never_leave_a_higher_accuracy_or_a_lower_loss(model, images, labels, norm):
    losses = [
        loss(model, attacks.pgd(model, images, labels, 0.1, rng(), steps=n, norm=norm), labels)
        for n in (1, 5, 40)
    ]
    assert losses == sorted(losses)


def test_restarts_never_raise_the_accuracy(model, images):
    labels = model(images).argmax(dim=1)
    epsilon = 0.012  # about half of the images stand

    def standing(restarts: int) -> torch.Tensor:
        changed = attacks.pgd(model, images, labels, epsilon, rng(), steps=3, restarts=restarts)
        return model(changed).argmax(dim=1) == labels

    once, often = standing(1), standing(6)
    assert 0 < once.sum() < 30
    assert not (often & ~once).any()  # what fell to the first start stays fallen


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(model, images, labels, kind, training):
    model.train(training)
    model[2].eval()  # a part that is frozen on purpose
    model[0].weight.grad = torch.ones_like(model[0].weight)
    first = attack(kind, model, images, labels, 0.1)
    assert model.training is training and not model[2].training
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[4].weight.grad is None and model[4].weight.requires_grad
    model.eval()
    assert torch.equal(first, attack(kind, model, images, labels, 0.1))


def test_any_number_of_images_and_none(stripes, monkeypatch):
    model = new_classifier(stripes, 0).eval()
    x, y = stripes.images[:25].float() / 255, stripes.labels[:25]
    whole = attacks.fgsm(model, x, y, 0.1)
    monkeypatch.setattr(attacks, "PORTION", 7)
    assert (attacks.fgsm(model, x, y, 0.1) != whole).float().mean() < 1e-3
    assert len(attacks.pgd(model, x, y, 0.1, rng(), steps=2)) == 25
    assert len(attacks.pgd(model, x[:0], y[:0], 0.1, rng(), steps=2)) == 0


def test_a_random_start_fills_the_ball():
    grey = torch.full((400, 1, 8, 8), 0.5)
    start = attacks.random_in_ball(grey, 0.2, "linf", rng())
    assert start.abs().max() <= 0.2 and start.std().item() == pytest.approx(0.2 / 3**0.5, rel=0.02)
    radius = attacks.random_in_ball(grey, 0.2, "l2", rng()).flatten(1).norm(dim=1)
    assert radius.max() <= 0.2 + 1e-6
    # Uniform in 64 dimensions: (radius/ε)^64 is uniform in [0, 1].
    assert (radius / 0.2).pow(64).mean().item() == pytest.approx(0.5, abs=0.05)


def test_noise_is_as_large_as_the_attack():
    grey = torch.full((4, 1, 28, 28), 0.5)
    sign = attacks.sign_noise(grey, 0.2, rng()) - grey
    assert torch.allclose(sign.abs(), torch.tensor(0.2)) and abs(sign.mean()) < 0.02
    gauss = attacks.gaussian_noise(grey, 0.2, rng()) - grey
    assert gauss.norm().item() == pytest.approx(sign.norm().item(), rel=0.05)
