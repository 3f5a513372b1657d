from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import complaint, run_here, untaught, with_classifier
from torch import nn

import gan_mnist
from imagelab.data.datasets import Dataset, load_dataset
from imagelab.data.masks import MaskedPictures
from imagelab.setup.runtime import Interrupted
from studies import image_translation as study

QUICK = ("studies.image_translation", "--quick", "--dataset", "mnist-5k", "--output-dir")
PIX2PIX = {"generator", "discriminator"}
CYCLEGAN = {"to_b", "to_a", "d_b", "d_a"}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- the networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("strided", "side"), [(1, 16), (2, 34), (3, 70)])
def test_each_logit_sees_a_patch_of_the_size_that_is_said(strided, side, float32):
    """Pix2Pix names 16×16 and 70×70. The gradient of one logit is 0 outside its patch."""
    discriminator = study.PatchDiscriminator(1, 4, strided)
    assert study.receptive_field(discriminator) == side
    for k, layer in enumerate(discriminator):
        if isinstance(layer, nn.InstanceNorm2d):  # it alone looks at the whole image
            discriminator[k] = nn.Identity()
    x = random(1, 1, 120, 120).requires_grad_()
    logits = discriminator(x)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    rows, columns = x.grad[0, 0].abs().sum(1).nonzero(), x.grad[0, 0].abs().sum(0).nonzero()
    assert rows.max() - rows.min() + 1 == columns.max() - columns.min() + 1 == side


def test_the_generators_keep_the_shape_and_the_range():
    unet = study.TranslationUNet(7, (8, 16, 32, 32, 32))
    assert unet(random(2, 7, 64, 96)).shape == (2, 3, 64, 96)
    images = study.ResidualGenerator(1, 4, 2)(random(2, 1, 28, 28))
    assert images.shape == (2, 1, 28, 28) and images.abs().max() <= 1


def test_the_u_net_hands_the_mask_on_past_its_narrowest_level(float32):
    """Without what comes from below, the picture still changes where the mask does."""
    unet = study.TranslationUNet(2, (8, 8, 8))
    nn.init.zeros_(unet.up[0][0].weight)
    nn.init.zeros_(unet.up[0][0].bias)
    mask = torch.zeros(1, 2, 16, 16)
    changed = mask.clone()
    changed[0, 1, 5, 5] = 1
    torch.manual_seed(0)
    first = unet(mask)
    torch.manual_seed(0)
    assert (unet(changed) - first).abs().max() > 1e-4


def test_dropout_is_drawn_by_the_seed_and_shifts_no_other_draw():
    unet, masks = study.TranslationUNet(2, (8, 8, 8)), random(3, 2, 16, 16)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, same, other = (study.translate(unet, masks, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, same) and not torch.equal(first, other)


# --- the losses -----------------------------------------------------------------------------------


def test_the_losses_of_pix2pix_against_their_formulas():
    """Isola et al. (2017), eq. 1 to 4: E log D(x, y) + E log(1 − D(x, G(x))), halved for D."""
    real, fake = random(2, 1, 5, 7).double(), random(2, 1, 5, 7, seed=1).double()
    d_real, d_fake = (1 / (1 + np.exp(-x.numpy())) for x in (real, fake))
    expected = -(np.log(d_real).mean() + np.log(1 - d_fake).mean()) / 2
    assert gan_mnist.discriminator_loss(real, fake).item() == pytest.approx(expected)
    assert gan_mnist.generator_loss(fake).item() == pytest.approx(-np.log(d_fake).mean())


def test_the_losses_of_cyclegan_against_their_formulas():
    """Zhu et al. (2017), section 4 with their code's ½ for D: (D(y) − 1)², D(G(x))², and L1 twice."""
    real, fake = random(2, 1, 5, 7), random(2, 1, 5, 7, seed=1)
    y, g = real.numpy(), fake.numpy()
    assert study.least_squares(fake, 1).item() == pytest.approx(((g - 1) ** 2).mean())
    assert study.discriminator_loss(real, fake).item() == pytest.approx(
        0.5 * ((y - 1) ** 2).mean() + 0.5 * (g**2).mean()
    )
    a, b = random(3, 1, 4, 4), random(3, 1, 4, 4, seed=1)

    def to_b(x):
        return 2 * x + 1

    def to_a(x):
        return x - 1

    cycle = np.abs((2 * a.numpy() + 1) - 1 - a.numpy()).mean()
    cycle += np.abs(2 * (b.numpy() - 1) + 1 - b.numpy()).mean()
    found = study.cycle_loss(to_b, to_a, a, b, to_b(a), to_a(b))
    assert found.item() == pytest.approx(cycle)
    identity = np.abs(b.numpy() + 1).mean() + 1  # |2b + 1 − b| and |a − 1 − a|
    assert study.identity_loss(to_b, to_a, a, b).item() == pytest.approx(identity)


def test_generators_that_undo_each_other_have_no_cycle_loss():
    a, b = random(3, 1, 4, 4), random(3, 1, 4, 4, seed=1)

    def negative(x):
        return -x

    assert study.cycle_loss(negative, negative, a, b, -a, -b) == 0
    assert study.cycle_loss(negative, lambda x: x, a, b, -a, b) > 1


# --- the pool of earlier images -------------------------------------------------------------------


def test_the_pool_fills_first_and_then_swaps_half_of_the_images():
    """Each image is either shown as it is, or takes the place of an earlier one, which is shown."""
    pool, rng = study.ImagePool([], size=50), torch.Generator().manual_seed(0)
    first = torch.arange(50.0).reshape(50, 1, 1, 1)
    assert torch.equal(pool.query(first, rng), first) and len(pool.images) == 50
    new = torch.arange(50.0, 1050).reshape(1000, 1, 1, 1)
    shown = pool.query(new, rng)
    swapped = (shown != new).sum().item()
    assert 430 < swapped < 570 and len(pool.images) == 50
    stored = torch.stack(pool.images)
    assert sorted(torch.cat([shown, stored]).flatten().tolist()) == list(range(1050))


def test_the_pool_keeps_no_graph():
    pool = study.ImagePool([], size=2)
    shown = pool.query(random(2, 1, 2, 2).requires_grad_() * 2, torch.Generator())
    assert not shown.requires_grad and not any(image.requires_grad for image in pool.images)


# --- the data -------------------------------------------------------------------------------------


def test_no_digit_is_in_both_sets():
    """Nor another variation of it: the embedded digits repeat every 4,000."""
    data = load_dataset("mnist-5k", Path("data"))
    marked = replace(data, labels=torch.arange(len(data.labels)) % 4000)
    a, b = study.two_sets(marked, 3000)
    assert len(a.images) == len(b.images) == 3000
    assert not set(a.labels.tolist()) & set(b.labels.tolist())
    assert a.labels.unique().numel() > 1000  # of 2,000
    assert torch.equal(a.test_images, data.test_images)


def test_ink_is_the_broader_stroke_in_black_on_white():
    image = torch.zeros(1, 1, 7, 7)
    image[0, 0, 3, 3] = 0.8
    ink = study.to_ink(image)
    assert ink[0, 0, 2:5, 2:5].allclose(torch.tensor(0.2)) and ink.sum() == pytest.approx(
        40 + 9 * 0.2
    )


def test_masks_become_one_channel_a_class():
    mask = torch.tensor([[[0, 2], [1, 2]]], dtype=torch.uint8)
    found = study.one_hot(mask, 3)
    assert found.shape == (1, 3, 2, 2) and torch.equal(found.argmax(1), mask.long())
    assert torch.equal(found.sum(1), torch.ones(1, 2, 2))


# --- training -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> study.Config:
    folder = tmp_path_factory.mktemp("translation")
    return study.Config(output_dir=folder, epochs=1, digit_epochs=1, width=4)


@pytest.fixture(scope="module")
def streets() -> MaskedPictures:
    """Masks of two halves; the left one is dark, the right one bright."""
    masks = torch.zeros(24, 32, 32, dtype=torch.uint8)
    masks[:, :, 16:] = 1
    masks[::2] = masks[::2].flip(2)
    images = (40 + 170 * masks[:, None].expand(-1, 3, -1, -1)).to(torch.uint8)
    return MaskedPictures("halves", "made here", ("dark", "bright"), images, masks, images, masks)


@pytest.fixture(scope="module")
def sets(stripes) -> tuple[Dataset, Dataset]:
    return study.two_sets(stripes, 64)  # more than the pool holds


@pytest.fixture(params=["pix2pix", "cyclegan"])
def train(request, streets, sets):
    """The training of one method, as a function of its settings."""
    method = study.train_pix2pix if request.param == "pix2pix" else study.train_cyclegan
    data = streets if request.param == "pix2pix" else sets
    return lambda config, name="x": method(config, data, name)


def weights(training: study.Training) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value for name, network in training.networks.items()
            for key, value in network.state_dict().items()}  # fmt: skip


def test_stopped_and_resumed_ends_at_the_same_weights(config, train, monkeypatch):
    """Ctrl-C within the second epoch: the earlier images and dropout's random numbers go on as well."""
    own, steps, take = replace(config, epochs=2, digit_epochs=2), [], study.step

    def counted(*arguments):
        take(*arguments)
        steps.append(arguments)
        if len(steps) == 7 * total // 4:
            signal.raise_signal(signal.SIGINT)

    total = 10**6
    monkeypatch.setattr(study, "step", counted)
    once, total = weights(train(own)), len(steps)
    with pytest.raises(Interrupted, match="--resume goes on"):
        train(own)
    torch.randn(7)
    again = weights(train(replace(own, resume=True)))
    assert len(steps) == 2 * total  # none was done twice
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_every_network_learns(config, train):
    training = train(config)
    torch.manual_seed(0)
    before = weights(train(replace(config, lr=1e-12), "y"))
    after = weights(training)
    for name in training.networks:
        keys = [key for key in after if key.startswith(f"{name}.")]
        assert any((after[key] - before[key]).abs().max() > 1e-5 for key in keys), name


@pytest.mark.parametrize(
    ("method", "name"),
    [("pix2pix", "l1_weight"), ("pix2pix", "adversarial_weight"),
     ("cyclegan", "cycle_weight"), ("cyclegan", "identity_weight")],
)  # fmt: skip
def test_every_weight_counts(config, streets, sets, method, name):
    train, data = {
        "pix2pix": (study.train_pix2pix, streets), "cyclegan": (study.train_cyclegan, sets),
    }[method]  # fmt: skip
    full = weights(train(config, data, "x"))
    without = weights(train(replace(config, **{name: 0.0}), data, "y"))
    generator = {"pix2pix": "generator", "cyclegan": "to_b"}[method]
    assert any((full[k] != without[k]).any() for k in full if k.startswith(generator))


def test_l1_alone_leaves_the_discriminator_as_it_was(config, streets):
    alone = study.train_pix2pix(replace(config, adversarial_weight=0.0), streets, "x")
    torch.manual_seed(config.seed)
    again = study.train_pix2pix(replace(config, adversarial_weight=0.0, epochs=2), streets, "y")
    first, second = weights(alone), weights(again)
    assert all(torch.equal(first[k], second[k]) for k in first if k.startswith("discriminator"))
    assert not alone.history.get("d_loss")


def test_pix2pix_learns_which_half_is_bright(config, streets):
    own = replace(config, epochs=40, lr=2e-3)
    training = study.train_pix2pix(own, streets, "x")
    made = study.translate(training.networks["generator"], study.one_hot(streets.test_masks, 2))
    error = (made.float() - streets.test_images).abs().mean() / 255
    assert error < 0.1  # a flat grey: 0.33


# --- measuring ------------------------------------------------------------------------------------


def test_flat_colours_are_the_means_of_the_classes(streets):
    assert torch.equal(study.flat_colours(streets), streets.test_images)


def test_the_shift_of_all_images_is_found():
    images = (random(4, 1, 28, 28) * 80).abs().clamp(0, 255).byte()
    assert study.best_shift(images.roll((2, -1), (2, 3)), images) == (0, 2, -1)
    assert study.best_shift(images, images) == (0, 0, 0)


def test_detail_is_the_mean_difference_of_neighbours():
    flat = torch.full((1, 1, 8, 8), 90, dtype=torch.uint8)
    assert study.detail(flat) == 0
    columns = flat.clone()
    columns[..., ::2] = 70
    assert study.detail(columns) == pytest.approx(10)  # 20 to the side, 0 downwards


@pytest.fixture(scope="module")
def quick(quick_classifier, tmp_path_factory) -> Path:
    folder = with_classifier(quick_classifier, tmp_path_factory.mktemp("image_translation"))
    run_here(*QUICK, folder)
    return folder


def results(folder: Path) -> dict:
    return json.loads((folder / "study_images/image_translation/results.json").read_text("utf-8"))


def test_a_run_leaves_what_was_promised(quick):
    result, folder = results(quick), quick / "study_images" / "image_translation"
    assert untaught("studies.image_translation", result) == []
    names = {entry["path"] for entry in result["files"]}
    assert {"sets.png", "pairs.png", "streets.png", "digits_to_b.png", "digits_to_a.png",
            "pix2pix_losses.png", "cyclegan_losses.png"} == names  # fmt: skip
    assert all((folder / name).is_file() for name in names)
    assert {p.name for p in (quick / "study_models/image_translation").glob("*.pth")} == {
        "L1_alone.pth", "Pix2Pix.pth", "GAN_alone.pth", "CycleGAN.pth",
    }  # fmt: skip
    streets, to_a, to_b = (
        {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["rows"]}
        for table in result["tables"]
    )
    assert list(streets) == ["another street", "flat colours", "L1 alone", "Pix2Pix", "real"]
    assert streets["real"]["L1 to the real picture"] == 0
    assert streets["flat colours"]["detail"] < streets["real"]["detail"]
    for table in (to_a, to_b):
        assert list(table) == ["untranslated", "GAN alone", "CycleGAN", "true translation"]
        truth = table["true translation"]
        assert truth["L1 to the truth"] == truth["rows down"] == 0 and truth["class kept"] > 0.8


def test_the_checkpoints_measure_the_same_again(quick):
    before = results(quick)["tables"]
    run_here(*QUICK, quick, "--sample-only")
    assert results(quick)["tables"] == before
    sentence = complaint(
        *QUICK, quick, "--sample-only", "--methods", "cyclegan", "--cycle-weight", 3
    )
    assert "was trained with --cycle-weight" in sentence and sentence.endswith("not 3.0.")
    sentence = complaint(*QUICK, quick, "--sample-only", "--epochs", 2)
    assert "1 of 2 epochs" in sentence


def test_wrong_input(tmp_path):
    shared = ("studies.image_translation", "--output-dir", tmp_path)
    assert "--l1-weight" in complaint(*shared, "--l1-weight", "nan")
    assert "no checkpoint" in complaint(*shared, *QUICK[1:4], "--sample-only")


def test_pictures_come_before_all_streets_are_drawn(tmp_path, monkeypatch):
    load = study.load_masked

    def stop(name, data_dir, height, scenes, test):
        if scenes == 1000:
            shown = {path.name for path in tmp_path.rglob("*.png")}
            assert shown == {"sets.png", "pairs.png"}
            raise InterruptedError
        return load(name, data_dir, height, scenes, test)

    monkeypatch.setattr(study, "load_masked", stop)
    with pytest.raises(InterruptedError):
        study.run(study.Config(scenes=1000, digits=20, dataset="mnist-5k", output_dir=tmp_path))


def told(after: float, moved: float, kept: float) -> str:
    """What is said of CycleGAN from A to B with these figures; the others are as in a real run."""
    names = ("CycleGAN", "GAN alone", "untranslated")
    values = dict(zip(names, [(after, kept), (0.15, 0.32), (0.87, 0.52)], strict=True))
    figures = {f"digits, A to B, {n}: L1 to the truth": v[0] for n, v in values.items()}
    figures |= {f"digits, A to B, {n}: class kept": v[1] for n, v in values.items()}
    figures |= {
        "digits, A to B, CycleGAN: rows down": 2,
        "digits, A to B, CycleGAN: columns right": 1,
    }
    figures["digits, A to B, CycleGAN: L1 to the truth moved so"] = moved

    def measured(*wanted: str) -> list[float] | None:
        return [figures[n] for n in wanted] if all(n in figures for n in wanted) else None

    return " ".join(study.lessons(SimpleNamespace(measured=measured)))


def test_a_move_is_blamed_only_where_it_explains_the_error():
    assert "a move of the whole by 2.2 pixels" in told(0.17, 0.07, 0.85)
    assert "a move" not in told(0.30, 0.22, 0.23) and "The digits change" in told(0.30, 0.22, 0.23)
    assert "The digits change" not in told(0.10, 0.09, 0.90)
