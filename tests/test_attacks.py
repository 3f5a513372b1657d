from __future__ import annotations

import contextlib
import itertools

import pytest
import torch
from torch import nn

from fgsm import fgsm
from imagelab.data.datasets import unit
from imagelab.techniques import attacks
from imagelab.techniques import strong_attacks as strong
from imagelab.techniques.classifier import accuracy, new_classifier, predict, trained_classifier

ALL = ["fgsm", "linf", "l2"]
EVERY = [*ALL, "apgd", "apgd dlr", "apgd l2", "square"]


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
        return fgsm(model, images, labels, epsilon, **more)
    if kind == "square":
        return strong.square_attack(model, images, labels, epsilon, rng(), queries=20)
    if kind.startswith("apgd"):
        more = {"dlr": {"loss": "dlr"}, "l2": {"norm": "l2"}, "apgd": {}}[kind.split()[-1]]
        return strong.apgd(model, images, labels, epsilon, rng(), steps=8, **more)
    return attacks.pgd(model, images, labels, epsilon, rng(), steps=8, norm=kind, **more)


def loss(model, images, labels) -> float:
    with torch.no_grad():
        return nn.functional.cross_entropy(model(images), labels).item()


def size_of(change: torch.Tensor, norm: str) -> torch.Tensor:
    change = change.flatten(1)
    return change.norm(dim=1) if norm.endswith("l2") else change.abs().amax(dim=1)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("epsilon", [0.05, 0.3])
def test_inside_the_ball_and_the_range(model, images, labels, kind, epsilon):
    changed = attack(kind, model, images, labels, epsilon)
    size = size_of(changed - images, kind)
    assert size.max() <= epsilon + 1e-6 and size.min() > 0.5 * epsilon
    assert changed.min() >= 0 and changed.max() <= 1


@pytest.mark.parametrize("kind", EVERY)
def test_epsilon_zero_returns_the_input(model, images, labels, kind):
    assert torch.equal(attack(kind, model, images, labels, 0.0), images)
    assert torch.equal(attacks.sign_noise(images, 0.0, rng()), images)
    assert torch.equal(attacks.gaussian_noise(images, 0.0, rng()), images)


def test_gradient_of_a_linear_model(images, labels, float32):
    """∇ₓL = Wᵀ(softmax − one-hot), in closed form."""
    model = linear_model()
    expected = (model(images).softmax(1) - nn.functional.one_hot(labels, 3)) @ model[1].weight
    got = attacks.input_gradient(model, images, labels)
    assert torch.allclose(got.flatten(1), expected, atol=1e-6)


def test_the_best_answer_for_two_classes_of_a_linear_model(float32):
    """With two classes the worst point of a ball inside [0, 1] is known: x ± ε along Δw."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
    grey, label = torch.full((1, 1, 28, 28), 0.5), torch.tensor([0])
    away = (model[1].weight[1] - model[1].weight[0]).reshape(1, 1, 28, 28).detach()
    for norm, best in (("linf", 0.1 * away.sign()), ("l2", 0.1 * away / away.norm())):
        changed = attacks.pgd(model, grey, label, 0.1, rng(), norm=norm, start=grey)
        assert torch.allclose(changed, grey + best, atol=1e-5)
    assert torch.allclose(fgsm(model, grey, label, 0.1), grey + 0.1 * away.sign())


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

    def attacked(restarts: int) -> tuple[torch.Tensor, torch.Tensor]:
        changed = attacks.pgd(model, images, labels, epsilon, rng(), steps=3, restarts=restarts)
        logits = model(changed)
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        return logits.argmax(dim=1) == labels, losses

    (once, loss_once), (often, loss_often) = attacked(1), attacked(6)
    assert 0 < once.sum() < 30
    assert not (often & ~once).any()  # what fell to the first start stays fallen
    assert torch.allclose(loss_often[~once], loss_once[~once], atol=1e-6)  # and is left in peace
    gain = (loss_often - loss_once)[often]
    assert gain.min() > -1e-6 and gain.max() > 0  # of what stands the worst start is kept


@contextlib.contextmanager
def seen_by(model: nn.Module):
    """The batches that the model sees inside the block."""
    batches: list[torch.Tensor] = []
    hook = model.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0].detach()))
    yield batches
    hook.remove()


def sizes(batches: list[torch.Tensor]) -> list[int]:
    """The batches' sizes without repetitions."""
    return [size for size, _ in itertools.groupby(batches, key=len)]


def test_fooled_images_are_left_out_of_further_restarts(model, images):
    labels = model(images).argmax(dim=1)

    def attacked(epsilon: float, restarts: int) -> tuple[list[int], int]:
        with seen_by(model) as seen:
            changed = attacks.pgd(model, images, labels, epsilon, rng(), steps=3, restarts=restarts)
        return sizes(seen), (model(changed).argmax(dim=1) == labels).sum().item()

    once, standing = attacked(0.012, restarts=1)
    assert once == [30] and 0 < standing < 30
    often, _ = attacked(0.012, restarts=6)
    assert often[:2] == [30, standing] and often == sorted(often, reverse=True)
    assert attacked(0.5, restarts=6) == ([30], 0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_starts_where_it_is_told(model, images, labels, norm, monkeypatch):
    monkeypatch.setattr(attacks, "BATCH", 7)
    inside = images + attacks.random_in_ball(images, 0.1, norm, rng())
    inside, outside = inside.clamp(0, 1), 1 - images
    generator = rng()

    def attacked(start: torch.Tensor, **more) -> torch.Tensor:
        return attacks.pgd(model, images, labels, 0.1, generator, norm=norm, start=start, **more)

    assert torch.allclose(attacked(inside, steps=1, step_size=0.0), inside, atol=1e-6)
    projected = attacks.project(outside, images, 0.1, norm)
    with seen_by(model) as seen:
        assert torch.allclose(attacked(outside, steps=1, step_size=0.0), projected, atol=1e-6)
    assert torch.allclose(seen[0], projected[:7], atol=1e-6)  # the first gradient is taken there
    one, many = attacked(inside, steps=1, step_size=0.01), attacked(outside, steps=5)
    size = size_of(one - inside, norm)
    assert size.max() < 0.01 + 1e-6 and size.min() > 0.005
    assert loss(model, one, labels) > loss(model, inside, labels)
    assert loss(model, many, labels) > loss(model, projected, labels)
    for changed in (one, many):
        assert size_of(changed - images, norm).max() <= 0.1 + 1e-6
        assert changed.min() >= 0 and changed.max() <= 1
    assert torch.equal(generator.get_state(), rng().get_state())  # nothing is left to chance


# --- the projection -------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("epsilon", [0.2, 0.9, 3.0])
@pytest.mark.parametrize("length", [0.3, 1.0, 20.0])
def test_the_projection_is_the_nearest_point(norm, epsilon, length):
    """Of a convex set z is the point nearest to x if and only if (x − z)·(y − z) ≤ 0 for all y in it."""
    x0 = (torch.rand(50, 1, 4, 5, generator=rng(), dtype=torch.float64) * 2 - 0.5).clamp(0, 1)
    x = x0 + length * torch.randn(x0.shape, generator=rng(1), dtype=torch.float64)
    z = attacks.project(x, x0, epsilon, norm)
    assert z.min() >= 0 and z.max() <= 1 and size_of(z - x0, norm).max() < epsilon + 1e-9
    for t in torch.linspace(0, 1, 60):
        chance = x0 + attacks.random_in_ball(x0, epsilon, norm, rng(round(60 * t.item())))
        towards = (x0 + t * (x - x0)).clamp(0, 1) - x0  # drawn in until it is in the ball
        towards = towards * (epsilon / size_of(towards, norm)).clamp(max=1)[:, None, None, None]
        for y in (chance.clamp(0, 1), x0 + towards):
            assert ((x - z) * (y - z)).flatten(1).sum(dim=1).max() < 1e-9
    assert torch.allclose(attacks.project(z, x0, epsilon, norm), z, atol=1e-9)


def test_the_projection_is_what_a_solver_finds():
    from scipy.optimize import minimize

    x0 = torch.rand(12, 1, 2, 3, generator=rng(), dtype=torch.float64)
    x = x0 + torch.randn(x0.shape, generator=rng(1), dtype=torch.float64)
    z = attacks.project(x, x0, 0.6, "l2")
    scaled = x0 + 0.6 * attacks.steepest_ascent(x - x0, "l2")
    assert (scaled.clamp(0, 1) - z).abs().amax(dim=(1, 2, 3)).median() > 0.02  # is another point
    for start, wanted, found in zip(*(t.flatten(1).numpy() for t in (x0, x, z)), strict=True):
        ball = {"type": "ineq", "fun": lambda y, c=start: 0.36 - ((y - c) ** 2).sum()}
        solved = minimize(lambda y, w=wanted: ((y - w) ** 2).sum(), start, method="SLSQP",
                          bounds=[(0, 1)] * 6, constraints=ball, options={"ftol": 1e-10})  # fmt: skip
        assert solved.success and found == pytest.approx(solved.x, abs=1e-4)


def test_the_projection_is_what_lagrange_multipliers_give():
    """Of |z − x|² + λ·(|z − x0|² − ε²) over [0, 1] the least is at clip((x + λ·x0)/(1 + λ)).

    A root finder looks for the λ at which that point lies on the ball: for images as large as MNIST's,
    many pixels of them at an end of the range.
    """
    from scipy.optimize import brentq

    x0 = (torch.rand(20, 1, 28, 28, generator=rng(), dtype=torch.float64) * 3 - 1).clamp(0, 1)
    x = x0 + torch.randn(x0.shape, generator=rng(1), dtype=torch.float64)
    for epsilon in (0.1, 2.0, 8.0):
        got = attacks.project(x, x0, epsilon, "l2")
        single = attacks.project(x.float(), x0.float(), epsilon, "l2")
        for own, in_float32, c, p in zip(got, single, x0, x, strict=True):

            def nearest(multiplier: float, c=c, p=p) -> torch.Tensor:
                return ((p + multiplier * c) / (1 + multiplier)).clamp(0, 1)

            def outside(multiplier: float, c=c, nearest=nearest, epsilon=epsilon) -> float:
                return (nearest(multiplier) - c).norm().item() - epsilon

            expected = nearest(brentq(outside, 0, 1e5, xtol=1e-12))
            assert torch.allclose(own, expected, atol=1e-8)
            assert torch.allclose(in_float32.double(), expected, atol=1e-5)
            scaled = (c + (p - c) * (epsilon / (p - c).norm())).clamp(
                0, 1
            )  # as it is often written
            assert (own - p).norm() < (scaled - p).norm() - 0.05 * epsilon


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_lies_inside_is_left_alone(images, norm):
    inside = (images + attacks.random_in_ball(images, 0.1, norm, rng())).clamp(0, 1)
    assert torch.allclose(attacks.project(inside, images, 0.1, norm), inside, atol=1e-6)
    assert torch.equal(attacks.project(1 - images, images, 0.0, norm), images)
    beyond = images + 50 * torch.randn(
        images.shape, generator=rng()
    )  # the ball holds all of [0, 1]
    assert torch.equal(attacks.project(beyond, images, 1e3, norm), beyond.clamp(0, 1))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_chance_comes_from_the_generator_alone(model, images, labels, norm):
    before = torch.get_rng_state()
    first, same, other = (
        attacks.pgd(model, images, labels, 0.1, rng(seed), steps=1, norm=norm) for seed in (0, 0, 1)
    )
    assert torch.allclose(first, same, atol=1e-5) and (first - other).abs().mean() > 1e-3
    for noise in (attacks.sign_noise, attacks.gaussian_noise):
        first, same, other = (noise(images, 0.1, rng(seed)) for seed in (0, 0, 1))
        assert torch.equal(first, same) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


# --- accuracies under PGD -------------------------------------------------------------------------


@pytest.fixture
def mostly_right(model, images) -> torch.Tensor:
    """The labels that the model reads, but for every third image."""
    read = model(images).argmax(dim=1)
    read[::3] = (read[::3] + 1) % 3
    return read


def test_accuracy_never_rises_with_epsilon(model, images, mostly_right):
    """Even of an attack that is mere chance: what has fallen is not attacked again."""
    epsilons = [0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5]
    chance = {"steps": 1, "step_size": 0.0}
    with seen_by(model) as seen:
        accuracies = attacks.pgd_accuracies(model, images, mostly_right, epsilons, rng(), **chance)
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] == pytest.approx(20 / 30)  # ε = 0: as read
    assert len(set(accuracies)) >= 3
    standing = [30, *(round(30 * a) for a in accuracies[:-1])]
    assert sizes(seen) == [n for n, _ in itertools.groupby(standing)]


@pytest.mark.parametrize("portion", [7, 250])
@pytest.mark.parametrize("target", [None, 1])
def test_accuracy_of_one_epsilon_is_that_of_one_attack(
    model, images, mostly_right, target, portion, monkeypatch
):
    monkeypatch.setattr(attacks, "BATCH", portion)
    aim = mostly_right if target is None else torch.ones_like(mostly_right)
    settings = {"steps": 4, "restarts": 2}
    changed = attacks.pgd(model, images, aim, 0.01, rng(), targeted=target is not None, **settings)
    expected = (model(changed).argmax(dim=1) == mostly_right).float().mean().item()
    got = attacks.pgd_accuracies(model, images, mostly_right, [0.01], rng(), target, **settings)
    assert got == [pytest.approx(expected)] and 0 < expected < 20 / 30


def test_a_target_spares_the_images_of_its_own_class(model, images, mostly_right):
    right = model(images).argmax(dim=1) == mostly_right
    for target in range(3):
        spared = (right & (mostly_right == target)).float().mean().item()
        got = attacks.pgd_accuracies(
            model, images, mostly_right, [0.0, 0.5], rng(), target, steps=9
        )
        assert got == pytest.approx([20 / 30, spared])


def test_where_nothing_stands_nothing_is_attacked(model, images):
    wrong = model(images).argmin(dim=1)
    for epsilons in ([0.0, 0.1, 0.2], [0.0, 0.0]):
        assert attacks.pgd_accuracies(model, images, wrong, epsilons, rng()) == [0] * len(epsilons)


@pytest.mark.parametrize("kind", EVERY)
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
    whole = fgsm(model, x, y, 0.1)
    monkeypatch.setattr(attacks, "BATCH", 7)
    assert (fgsm(model, x, y, 0.1) != whole).float().mean() < 1e-3
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


def test_gaussian_noise_changes_each_image_as_much_as_the_attack(model, images, labels):
    """Also where much is clipped: here most pixels are black or white."""
    images = (images * 3 - 1).clamp(0, 1)
    for epsilon in (0.3, 0.05):
        change = fgsm(model, images, labels, epsilon) - images
        noise = attacks.gaussian_noise_like(images + change, images, rng()) - images
        size, expected = noise.flatten(1).norm(dim=1), change.flatten(1).norm(dim=1)
        assert torch.allclose(size, expected, rtol=1e-3)
        assert (images + noise).min() >= 0 and (images + noise).max() <= 1
    free = (images > 0.4) & (images < 0.6)  # not clipped: Gaussian, and not the attack's way
    x, y = noise[free], change[free]
    assert ((x**4).mean() / (x**2).mean() ** 2).item() == pytest.approx(3, abs=0.5)
    assert abs(torch.corrcoef(torch.stack([x, y]))[0, 1]) < 0.1
    assert torch.equal(attacks.gaussian_noise_like(images, images, rng()), images)


# --- APGD and Square ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def five() -> nn.Module:
    """A network for five classes, without kinks at which the last bit of a sum decides a sign."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2), nn.Softplus(), nn.Flatten(), nn.Linear(1152, 5)
    ).eval()


def test_apgd_checks_its_step_size_where_the_paper_says():
    """w_j = ⌈p_j·N⌉ with p_1 = 0.22 and p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06), in 1/100."""
    p = [0, 22]
    while p[-1] < 100:
        p.append(p[-1] + max(p[-1] - p[-2] - 3, 6))
    checkpoints = strong.apgd_checkpoints(100)
    assert [k for k, _ in checkpoints] == [k for k in p[1:] if k <= 100]
    assert [n for _, n in checkpoints] == [b - a for a, b in itertools.pairwise(p) if b <= 100]
    for steps in (1, 2, 7, 1000):
        ends = [0, *(k for k, _ in strong.apgd_checkpoints(steps))]
        assert ends[1] == max(int(0.22 * steps), 1) and ends[-1] <= steps and ends == sorted(ends)


def test_the_dlr_loss():
    """By hand, and unchanged when logits are shifted or scaled: a confident network hides nothing."""
    logits = torch.tensor([[5.0, 1.0, 4.0, 2.0], [5.0, 1.0, 4.0, 2.0]])
    labels = torch.tensor([0, 3])
    loss = strong.dlr_loss(logits, labels)
    assert loss.tolist() == pytest.approx([-(5 - 4) / (5 - 2), -(2 - 5) / (5 - 2)])
    assert torch.allclose(strong.dlr_loss(100 * logits + 7, labels), loss)


def test_apgd_halves_its_steps_where_they_are_too_large(monkeypatch):
    """A hill with its top inside the ball: steps of 2·ε jump over it, halved ones reach it."""
    top = torch.full((1, 1, 8, 8), 0.47)

    def hill(model, x, y, kind):
        return -(x - top).square().flatten(1).sum(dim=1), 2 * (top - x), torch.zeros(1) > 0

    monkeypatch.setattr(strong, "_loss_and_gradient", hill)
    grey, label = torch.full((1, 1, 8, 8), 0.5), torch.tensor([0])
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    start = (grey + attacks.random_in_ball(grey, 0.1, "linf", rng())).clamp(0, 1)
    away = [
        (strong.apgd(flat, grey, label, 0.1, rng(), steps=n, start=start) - top).abs().mean().item()
        for n in (5, 20, 100)
    ]
    assert away == sorted(away, reverse=True) and away[2] < 0.002 < 0.02 < away[0]


def test_apgd_steps_as_the_paper_writes(monkeypatch):
    """Momentum in every step but the first; at a check the step is halved and starts from the top."""
    grey, label, seen = torch.full((1, 1, 28, 28), 0.5), torch.tensor([0]), []

    def gradient(k: int) -> torch.Tensor:
        return torch.randn(grey.shape, generator=rng(k))

    def falling(model, x, y, kind):  # the loss is highest after the third step
        seen.append(x.clone())
        height = torch.tensor([-abs(len(seen) - 4.0)])
        return height, gradient(len(seen) - 1), torch.tensor([False])

    monkeypatch.setattr(strong, "_loss_and_gradient", falling)
    flat, start = nn.Sequential(nn.Flatten(), nn.Linear(784, 2)), grey + 0.03
    got = strong.apgd(flat, grey, label, 0.1, rng(), steps=100, start=start)
    assert len(seen) == 101 and torch.equal(got, seen[3])

    def step(x, previous, k: int, size: float, alpha: float) -> torch.Tensor:
        z = attacks.project(x + size * gradient(k).sign(), grey, 0.1, "linf")
        z = x + alpha * (z - x) + (1 - alpha) * (x - previous)
        return attacks.project(z, grey, 0.1, "linf")

    assert torch.equal(seen[1], step(seen[0], seen[0], 0, 0.2, 1))
    for k in range(1, 22):
        assert torch.allclose(seen[k + 1], step(seen[k], seen[k - 1], k, 0.2, 0.75), atol=1e-6)
    assert torch.allclose(seen[23], step(seen[3], seen[21], 3, 0.1, 0.75), atol=1e-6)


def test_apgd_goes_further_than_pgd(five, images):
    labels = five(images).argmax(dim=1)
    losses = [
        loss(five, attacked, labels)
        for attacked in (
            attacks.pgd(five, images, labels, 0.01, rng(), steps=20),
            strong.apgd(five, images, labels, 0.01, rng(), steps=20),
        )
    ]
    assert losses[1] >= losses[0] - 1e-4
    fooled = five(strong.apgd(five, images, labels, 0.02, rng(), steps=20)).argmax(1) != labels
    assert 0 < fooled.sum() < 30
    dlr = five(strong.apgd(five, images, labels, 0.02, rng(), "dlr", steps=20)).argmax(1) != labels
    assert dlr.sum() >= fooled.sum()  # it raises the margin, which decides


def test_apgd_keeps_what_fooled_even_if_a_later_step_leaves_it(model, images, monkeypatch):
    """For these images that step; for the others the one of the largest loss, which is the start."""
    labels = model(images).argmax(dim=1)
    seen, fooled_at_three = [], torch.arange(30) < 10

    def gradient(own, x, y, kind):
        fooled = fooled_at_three & (len(seen) == 3)
        seen.append(x.clone())
        return -torch.ones(30) * len(seen), torch.randn(x.shape, generator=rng(len(seen))), fooled

    monkeypatch.setattr(strong, "_loss_and_gradient", gradient)
    got = strong.apgd(model, images, labels, 0.1, rng(), steps=8)
    assert len(seen) == 9
    assert torch.equal(got[:10], seen[3][:10]) and torch.equal(got[10:], seen[0][10:])
    fooled_at_three[:] = True  # when every image is fooled nothing is left to do
    seen.clear()
    strong.apgd(model, images, labels, 0.1, rng(), steps=8)
    assert len(seen) == 4


def test_square_needs_no_gradient_and_more_queries_do_more_harm(model, images):
    labels = model(images).argmax(dim=1)
    model.requires_grad_(False)
    standing = []
    for queries in (1, 30, 300):
        changed = strong.square_attack(model, images, labels, 0.05, rng(), queries)
        standing.append((model(changed).argmax(dim=1) == labels).sum().item())
    assert standing == sorted(standing, reverse=True) and standing[2] < standing[0]
    model.requires_grad_(True)


def test_square_asks_no_more_than_it_may_and_spares_what_is_fooled(model, images):
    labels = model(images).argmax(dim=1)
    with seen_by(model) as seen:
        strong.square_attack(model, images, labels, 0.001, rng(), queries=25)
    assert len(seen) == 25
    with seen_by(model) as seen:
        strong.square_attack(model, images, (labels + 1) % 3, 0.001, rng(), queries=25)
    assert [len(x) for x in seen] == [30]


def test_squares_shrink_and_lie_anywhere_inside():
    shares = [strong.square_share(k / 10_000) for k in range(10_000)]
    assert shares[0] == 0.8 and shares[-1] == pytest.approx(0.8 / 512)
    assert shares == sorted(shares, reverse=True)
    assert [k for k in range(1, 10_000) if shares[k] < shares[k - 1]] == [
        11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]  # fmt: skip
    masks = strong._random_squares(500, 6, 9, 4, rng())
    assert masks.shape == (500, 1, 6, 9) and (masks.sum(dim=(1, 2, 3)) == 16).all()
    assert masks.any(dim=0).all()  # every pixel is reached
    rows, columns = masks.any(dim=3).sum(dim=2), masks.any(dim=2).sum(dim=2)
    assert (rows == 4).all() and (columns == 4).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", ["ce", "dlr"])
@pytest.mark.parametrize("steps", [10, 100])
def test_torchattacks_climbs_as_high(five, float32, norm, kind, steps):
    """The same images, fooled or not, from the same start.

    In greys from 0.25 to 0.75, where nothing is clipped: its Euclidean projection scales and then clips.
    """
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not installed")
    epsilon = {"linf": 0.02, "l2": 0.4}[norm]
    images = torch.rand(30, 1, 28, 28, generator=rng()) / 2 + 0.25
    labels = five(images).argmax(dim=1)
    name = {"linf": "Linf", "l2": "L2"}[norm]
    theirs = torchattacks.APGD(five, norm=name, eps=epsilon, steps=steps, loss=kind)
    torch.manual_seed(0)  # its start is drawn first: scaled to the surface of the ball
    noise = torch.rand(images.shape) * 2 - 1 if norm == "linf" else torch.randn(images.shape)
    start = images + epsilon * noise / size_of(noise, norm)[:, None, None, None]
    torch.manual_seed(0)
    top, standing, _, fooling = theirs.attack_single_run(images.clone(), labels.clone())
    expected = torch.where(standing[:, None, None, None], top, fooling)
    got = strong.apgd(five, images, labels, epsilon, rng(), kind, steps, norm, start=start)
    assert torch.equal(five(got).argmax(dim=1) == labels, standing) and 0 < standing.sum() < 30
    if norm == "linf":
        assert ((got - expected).abs() < 1e-5).float().mean() > 0.99
    climbed = [strong._loss_and_gradient(five, x, labels, kind)[0] for x in (got, expected)]
    assert torch.allclose(*climbed, atol=1e-3)


# --- against an independent implementation --------------------------------------------------------


@pytest.fixture(scope="module")
def evasion(tmp_path_factory):
    """The attacks of the Adversarial Robustness Toolbox, which writes into the home on import."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("HOME", "USERPROFILE"):
            patch.setenv(variable, str(tmp_path_factory.mktemp("home")))
        pytest.importorskip("art")
        return pytest.importorskip("art.attacks.evasion")


@pytest.fixture(scope="module")
def faint(stripes) -> torch.Tensor:
    """The held-out images in contrasts from a tenth to the whole, so that each ε fools a part."""
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    return 0.5 + torch.linspace(0.1, 1, 80)[order, None, None, None] * (
        unit(stripes.test_images) - 0.5
    )


@pytest.fixture(scope="module")
def smooth(stripes) -> nn.Module:
    """A network without kinks, at which the last bit of a sum would decide an attack's way."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2), nn.Softplus(), nn.Flatten(), nn.Linear(1152, 2)
    )
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(unit(stripes.images) / 2 + 0.25), stripes.labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return model.eval()


def theirs(evasion, model, images, labels, epsilon, norm="linf", targeted=False, **pgd):
    """Their fast gradient method, or with `pgd` (steps, step_size) PGD from the image itself."""
    from art.estimators.classification import PyTorchClassifier

    victim = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), tuple(images.shape[1:]), 2, clip_values=(0, 1),
        device_type="cpu",
    )  # fmt: skip
    shared = {"eps": epsilon, "norm": {"linf": "inf", "l2": 2}[norm], "targeted": targeted}
    if pgd:
        attack = evasion.ProjectedGradientDescentPyTorch(
            victim, max_iter=pgd["steps"], eps_step=pgd["step_size"], verbose=False, **shared
        )
    else:
        attack = evasion.FastGradientMethod(victim, **shared)
    return torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))


def ours(model, images, labels, epsilon, norm="linf", targeted=False, **pgd):
    """The same attack of this project; in the L2 norm theirs is one step of PGD."""
    if norm == "linf" and not pgd:
        return fgsm(model, images, labels, epsilon, targeted)
    pgd = pgd or {"steps": 1, "step_size": epsilon}
    return attacks.pgd(
        model, images, labels, epsilon, rng(), norm=norm, start=images, targeted=targeted, **pgd
    )


def settings(epsilon: float, steps: int) -> dict:
    return {"steps": steps, "step_size": 2.5 * epsilon / steps} if steps else {}


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(
    ("norm", "epsilon", "steps"),
    [("linf", 0.2, 0), ("linf", 0.1, 10), ("linf", 0.2, 40),
     ("l2", 1, 0), ("l2", 1.3, 10), ("l2", 1.3, 40)],
)  # fmt: skip
def test_the_toolbox_finds_the_same(
    evasion, smooth, faint, stripes, float32, norm, epsilon, steps, targeted
):
    """`steps` 0 is the fast gradient method.

    Around the Euclidean ball the toolbox clips to [0, 1] and then projects, this project does both at
    once: the same as long as nothing is clipped, as in images of a third of the contrast.
    """
    labels = stripes.test_labels
    images, aim = faint if norm == "linf" else 0.5 + (faint - 0.5) / 3, labels
    if targeted:
        aim = 1 - labels
    setting = (images, aim, epsilon, norm, targeted)
    expected = theirs(evasion, smooth, *setting, **settings(epsilon, steps))
    got = ours(smooth, *setting, **settings(epsilon, steps))
    assert (got - images).abs().max() > 0.02
    if norm == "l2":
        assert torch.allclose(got, expected, atol=1e-5)
    else:  # a sign may turn where a derivative is zero but for rounding
        assert ((got - expected).abs() < 1e-5).float().mean() > 0.999
    standing = accuracy(smooth, got, labels)
    assert standing == accuracy(smooth, expected, labels) and 0.1 < standing < 0.9


@pytest.mark.parametrize("steps", [10, 40])
def test_the_toolbox_does_the_same_harm_where_pixels_are_clipped(
    evasion, smooth, faint, stripes, float32, steps
):
    """Clipped before the projection or with it: other pixels, no further away, and as harmful."""
    setting = (faint, stripes.test_labels, 4, "l2")
    expected = theirs(evasion, smooth, *setting, **settings(4, steps))
    got = ours(smooth, *setting, **settings(4, steps))
    assert (got - expected).abs().max() > 1e-3
    assert (got - faint).flatten(1).norm(dim=1).max() < 4 + 1e-5
    assert torch.allclose(predict(smooth, got), predict(smooth, expected), atol=2e-3)


def test_the_toolbox_fools_the_projects_network_as_often(
    evasion, faint, stripes, float32, tmp_path
):
    model, labels = trained_classifier(stripes, tmp_path), stripes.test_labels
    for epsilon, steps in ((0.2, 0), (0.1, 10), (0.2, 40)):
        expected = theirs(evasion, model, faint, labels, epsilon, **settings(epsilon, steps))
        got = ours(model, faint, labels, epsilon, **settings(epsilon, steps))
        same = ((got - expected).abs() < 1e-5).float().mean(dim=(1, 2, 3)) > 0.999
        assert same.float().mean() > 0.9  # at a kink of the network the last bit decides the way
        standing = accuracy(model, got, labels)
        assert standing == pytest.approx(accuracy(model, expected, labels), abs=1.5 / 80)
        assert 0.1 < standing < 0.9
