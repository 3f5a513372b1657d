"""Noise against an attack: the same size, the opposite effect (Goodfellow et al. 2015).

First half: Gaussian noise is added to a photograph and measured. Second half: a classifier that reads
digits almost without error is shown random noise, which hardly moves it, and then a perturbation of
the same size along the sign of its own gradient, x + ε·sign(∇ₓL), which fools it; forty smaller steps
(PGD, Madry et al. 2017) fool it completely.

    python fgsm.py                                      # twenty seconds on two CPU cores
    python fgsm.py --image photo.jpg --noise-sigma 50   # noise on your picture
    python fgsm.py --image seven.jpg                    # a digit by your hand: it is attacked as well
    python fgsm.py --targeted 3                         # drive every digit towards a 3
    python fgsm.py --image cat.jpg --victim resnet18    # an ImageNet network on your photograph

The attack works on pixels in [0, 1]; the normalisation is inside the model, and the model is in
eval mode. ε = 0 gives exactly the clean accuracy. The README states the figures to expect.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from torch import nn

from imagelab.data.datasets import Dataset, load_for, random_subset, unit
from imagelab.data.own_digit import fit_to_frame
from imagelab.data.pictures import open_picture, read_grey, write_png
from imagelab.data.quality import psnr, ssim
from imagelab.report import figures
from imagelab.report.results import Result, share_cell, start_result
from imagelab.setup.runtime import UserError, generator, prepare
from imagelab.setup.settings import Count, DataSettings, InputFile, Limits
from imagelab.setup.terminal import progress
from imagelab.techniques.attacks import (
    gaussian_noise,
    input_gradient,
    pgd,
    pgd_accuracies,
    sign_noise,
)
from imagelab.techniques.classifier import accuracy, predict, trained_classifier
from imagelab.techniques.pretrained import imagenet_resnet18

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "fgsm"
PICTURES = "adversarial_images"
EPSILONS = [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]  # of the range [0, 1]
PHOTO_EPSILONS = [k / 255 for k in (0.5, 1, 2, 4, 8)]


@dataclass(frozen=True)
class Config(DataSettings):
    """Settings of the noise and of the attack."""

    image: InputFile | None = None
    """Your own picture: noise is added to it, and it is attacked, as a digit drawn or photographed on a
    page that fills the picture. Default: scikit-image's `camera`, which gets the noise only."""
    noise_sigma: Annotated[float, Limits(0, 255)] = 25.0
    """Standard deviation of the noise, in grey levels of 255."""
    noise_weight: Annotated[float, Limits(0, 10)] = 0.1
    """Factor of the noise when it is added."""
    num_images: Count = 2000
    """Held-out images to attack."""
    pgd_images: Count = 400
    """Of these, images to attack with PGD as well, which costs forty gradients each."""
    targeted: Annotated[int, Limits(0)] | None = None
    """Drive the images towards this class instead of away from their own."""
    victim: Literal["cnn", "resnet18"] = "cnn"
    """What --image is shown to: the CNN of this project, or an ImageNet network of torchvision."""
    weights: InputFile | None = None
    """Weights file of resnet18; default: torchvision's cache, else its download."""


# --- noise ----------------------------------------------------------------------------------------


def add_noise(picture: np.ndarray, sigma: float, weight: float, rng: np.random.Generator):
    """Gaussian noise and the picture with it; (H, W) in [0, 1], `sigma` in grey levels of 255.

    The sum is taken in floating point and clipped.
    """
    noise = rng.normal(0, sigma / 255, picture.shape)
    return noise, np.clip(picture + weight * noise, 0, 1)


def add_noise_in_bytes(picture: np.ndarray, noise: np.ndarray, weight: float) -> np.ndarray:
    """As it is often written: the noise as unsigned bytes, where −3 is 253; (H, W) in [0, 1]."""
    wrapped = (noise * 255).astype(np.int64).astype(np.uint8) / 255
    return np.clip(picture + weight * wrapped, 0, 1)


# --- the attack -----------------------------------------------------------------------------------


def fgsm(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    epsilon: float,
    targeted: bool = False,
) -> torch.Tensor:
    """The fast gradient sign method: x + ε·sign(∇ₓL) (Goodfellow et al. 2015, section 4).

    Images (N, C, H, W) in [0, 1] and labels (N,); the result lies in [0, 1] and within ε of `images`.
    `targeted`: the labels are those to reach, and the loss is lowered instead of raised.
    """
    direction = -1 if targeted else 1
    return (images + direction * epsilon * input_gradient(model, images, labels).sign()).clamp(0, 1)


def accuracy_curves(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, targeted: int | None, seed: int
) -> dict[str, list[float]]:
    """Accuracy at each of EPSILONS under random signs, Gaussian noise and FGSM."""
    aim = labels if targeted is None else torch.full_like(labels, targeted)
    curves = {"random sign noise": [], "Gaussian noise": [], "FGSM": []}
    for epsilon in progress(EPSILONS, "noise and FGSM", "size"):
        rng = generator(seed, "noise of the curve")
        shown = (
            sign_noise(images, epsilon, rng),
            gaussian_noise(images, epsilon, rng),
            fgsm(model, images, aim, epsilon, targeted is not None),
        )
        for curve, changed in zip(curves.values(), shown, strict=True):
            curve.append(accuracy(model, changed, labels))
    return curves


@dataclass
class Fooled:
    """One image on its way to being misread: label and confidence before and after."""

    original: np.ndarray
    perturbation: np.ndarray
    adversarial: np.ndarray
    epsilon: float
    before: str
    after: str


def smallest_fooling(
    model: nn.Module,
    image: torch.Tensor,
    label: int,
    classes: tuple[str, ...],
    target: int | None,
    epsilons: list[float],
    attack: Callable[..., torch.Tensor] = fgsm,
) -> Fooled | None:
    """The attack on one image (C, H, W) in [0, 1] at the smallest ε that fools; None if none does."""
    aim = torch.tensor([label if target is None else target], device=image.device)
    x = image[None]
    for epsilon in epsilons:
        changed = attack(model, x, aim, epsilon, targeted=target is not None)
        before, after = (
            probabilities[0] for probabilities in predict(model, torch.cat([x, changed])).split(1)
        )
        read = int(after.argmax())
        if read != label if target is None else read == target:
            return Fooled(
                figures.as_picture(x[0]),
                figures.as_picture((changed - x)[0] / (2 * epsilon) + 0.5),
                figures.as_picture(changed[0]),
                epsilon,
                reading(before, classes),
                reading(after, classes),
            )
    return None


def reading(probabilities: torch.Tensor, classes: tuple[str, ...]) -> str:
    best = int(probabilities.argmax())
    return f"read as {classes[best]} ({probabilities[best]:.0%})"


def fooled_examples(
    model: nn.Module,
    data: Dataset,
    images: torch.Tensor,
    labels: torch.Tensor,
    target: int | None,
    attack: Callable[..., torch.Tensor],
) -> list[Fooled]:
    """The first image of each of up to six classes that is read rightly and can be fooled."""
    read, fooled = predict(model, images).argmax(dim=1), []
    for label in (label for label in range(len(data.classes)) if label != target):
        for i in ((labels == label) & (read == label)).nonzero().flatten().tolist()[:10]:
            item = smallest_fooling(
                model, images[i], label, data.classes, target, EPSILONS[1:], attack
            )
            if item is not None:
                fooled.append(item)
                break
        if len(fooled) == 6:
            break
    return fooled


def read_photo(path: Path, height: int, width: int) -> torch.Tensor:
    """The middle of a picture in those proportions, scaled: (3, height, width) in [0, 1]."""
    from PIL import Image, ImageOps

    photo = open_picture(path).convert("RGB")
    photo = ImageOps.fit(photo, (width, height), Image.Resampling.LANCZOS)
    return unit(torch.from_numpy(np.array(photo))).permute(2, 0, 1)


# === the lesson ends here; below: measured, plotted, reported =====================================

TITLE = "FGSM: noise against an attack"
SUMMARY = (
    "How far random noise moves a classifier, how far noise of the same size along the sign of its "
    "own gradient, and how far forty smaller steps. A person sees the same picture each time."
)


def noise_half(config: Config, result: Result) -> None:
    """The picture, the noise, and both together; and the noise in bytes beside that in floats."""
    picture = read_grey(config.image, max_side=1024)
    rng = np.random.default_rng(config.seed)
    noise, noisy = add_noise(picture, config.noise_sigma, config.noise_weight, rng)
    stretched = 0.5 + noise / max(6 * config.noise_sigma / 255, 1e-12)  # ±3σ fill black to white
    # Compared as they are saved: in 256 grey levels.
    noisy = np.round(noisy * 255) / 255
    decibels, similarity = psnr(picture, noisy), ssim(picture, noisy)
    result.add_metric("noise: PSNR", decibels, 1, unit="dB", better="higher")
    result.add_metric("noise: SSIM", similarity, 1, better="higher")
    for name, image, caption in (
        ("original.png", picture, "The picture as it is."),
        ("noise.png", stretched, "The noise, stretched so that it can be seen."),
        ("noisy.png", noisy, "Picture and noise."),
    ):
        write_png(result.add_file(name, caption, featured=False), image)
    side = {
        "original": picture,
        f"noise, σ = {config.noise_sigma:g} of 255\n(stretched)": np.clip(stretched, 0, 1),
        f"original + {config.noise_weight:g} × noise\n"
        f"PSNR {decibels:.1f} dB, SSIM {similarity:.3f}": noisy,
    }
    side = figures.plot_side_by_side(side, height=3.8)
    result.add_figure("noise_side_by_side.png", side, "Random noise leaves the picture what it is.")
    pair = {
        "as often written, noise in unsigned bytes": add_noise_in_bytes(picture, noise, 1.0),
        "corrected, noise in floating point": np.clip(picture + noise, 0, 1),
    }
    pair = {f"{name}\nPSNR {psnr(picture, x):.1f} dB": x for name, x in pair.items()}
    result.add_figure(
        "bytes_and_floats.png", figures.plot_side_by_side(pair, height=3.8),
        "The same noise at its full weight. As unsigned bytes every negative value wraps around to "
        "nearly white.",
    )  # fmt: skip


def plot_gallery(fooled: list[Fooled]) -> Figure:
    """A column per image: original, perturbation, adversarial image."""
    figure, axes = figures.new_figure(1.75 * len(fooled) + 0.6, 6.0, 3, len(fooled))
    for column, item in zip(axes.T, fooled, strict=True):
        figures.show_image(column[0], item.original, item.before)
        figures.show_image(column[1], item.perturbation, f"ε = {item.epsilon:.3g}")
        figures.show_image(column[2], item.adversarial, item.after)
    figures.name_rows(axes, ("original", "perturbation\n(stretched)", "adversarial"))
    return figure


def plot_accuracies(curves: dict[str, list[float]], classes: int) -> Figure:
    """Accuracy against ε, a line per noise or attack."""
    figure, axes = figures.new_figure(6.5, 3.8)
    figures.plot_lines(axes[0, 0], EPSILONS, curves, "ε (of the range 0 to 1)", "accuracy")
    axes[0, 0].set_ylim(0, 1.02)
    axes[0, 0].axhline(1 / classes, color="#888888", linewidth=1, linestyle="--")
    axes[0, 0].text(0, 1 / classes + 0.015, "guessing", color="#666666", fontsize=8)
    return figure


def attack_half(config: Config, data: Dataset, result: Result) -> None:
    """Accuracy under noise and attacks, as table and figure; examples at the smallest ε that fools."""
    target = config.targeted
    model = trained_classifier(data, config.output_dir, config.seed, config.quick)
    rows = torch.arange(len(data.test_labels), device=data.test_labels.device)
    if target is not None:  # what is of the target's class already cannot be driven there
        rows = rows[data.test_labels != target]
        if len(rows) == 0:
            raise UserError(f"--targeted {target}: every held-out image is of that class.")
    # Not the first: the first half of MNIST's test images is the easier one.
    rows = rows[random_subset(len(rows), config.num_images, "images to attack").to(rows.device)]
    images, labels, n = unit(data.test_images[rows]), data.test_labels[rows], len(rows)
    all_test = accuracy(model, data.test_images, data.test_labels)
    result.add_share("clean accuracy", all_test, len(data.test_images), better="higher")

    few = min(config.pgd_images, n)
    sizes = {"random sign noise": n, "Gaussian noise": n, "FGSM": n, "PGD-40": few}
    curves = accuracy_curves(model, images, labels, target, config.seed)
    rng = generator(config.seed, "starts of the curve")
    curves["PGD-40"] = pgd_accuracies(
        model, images[:few], labels[:few], EPSILONS, rng, target=target
    )
    rows = [
        [f"{e:g}", *(share_cell(curve[i], sizes[name]) for name, curve in curves.items())]
        for i, e in enumerate(EPSILONS)
    ]
    columns = [f"{name} (n = {sizes[name]:,})" for name in curves]
    result.add_table("Accuracy against ε on held-out images", ["ε", *columns], rows)
    for name, curve in curves.items():
        result.add_share(f"accuracy, {name}, ε = 0.3", curve[-1], sizes[name])
    caption = (
        f"What is still read rightly at ε = 0.3: {curves['random sign noise'][-1]:.0%} under random "
        f"noise, {curves['FGSM'][-1]:.1%} after one gradient step, {curves['PGD-40'][-1]:.1%} after "
        f"forty (n = {n:,}, PGD {few:,})."
    )
    result.add_figure("accuracy.png", plot_accuracies(curves, len(data.classes)), caption)

    rng = generator(config.seed, "starts of the gallery")
    attacks = {
        "gallery.png": ("FGSM: one gradient step", fgsm),
        "gallery_pgd.png": ("PGD-40: forty smaller steps", partial(pgd, rng=rng)),
    }
    for name, (what, attack) in attacks.items():
        fooled = fooled_examples(model, data, images[:500], labels[:500], target, attack)
        if fooled:
            caption = f"{what}, at the smallest ε that fools the network."
            result.add_figure(name, plot_gallery(fooled), caption)


def attack_own_digit(config: Config, data: Dataset, result: Result) -> None:
    """Attack --image as a digit: drawn or photographed, any size, dark on light or light on dark. As a
    whole, if the data are in colour."""
    assert config.image is not None
    model = trained_classifier(data, config.output_dir, config.seed, config.quick)
    if data.shape[0] == 1:
        frame = fit_to_frame(read_grey(config.image, max_side=1024), data.shape[1])
        image = torch.from_numpy(frame).float().expand(data.shape)
        name = f"{config.image.name}, cut out and centred as the data are"
    else:
        image, name = read_photo(config.image, *data.shape[1:]), config.image.name
    image = image.to(data.images.device)
    attack_own(model, image, data.classes, config.targeted, EPSILONS[1:], name, result)


def attack_own_photo(config: Config, device: torch.device, result: Result) -> None:
    """Attack --image as a photograph, with a ResNet-18 trained on ImageNet."""
    assert config.image is not None
    model, classes = imagenet_resnet18(config.weights, device)
    image = read_photo(config.image, 224, 224).to(device)
    attack_own(model, image, classes, config.targeted, PHOTO_EPSILONS, config.image.name, result)


def attack_own(
    model: nn.Module,
    image: torch.Tensor,
    classes: tuple[str, ...],
    target: int | None,
    epsilons: list[float],
    name: str,
    result: Result,
) -> None:
    """Attack one picture (C, H, W) in [0, 1] as it is read, and draw the smallest ε that fools."""
    label = int(predict(model, image[None]).argmax())
    if label == target:
        print(f"{name}: it is read as {classes[label]} as it is.")
        return
    rng = generator(result.seed, "starts of your picture")
    for kind, attack in (("FGSM", fgsm), ("PGD-40", partial(pgd, rng=rng))):
        item = smallest_fooling(model, image, label, classes, target, epsilons, attack)
        if item is not None:
            result.add_metric("your picture: smallest ε that fools", item.epsilon, 1)
            seen = f"{name}, read as {classes[label]}: the smallest ε at which {kind} fools."
            result.add_figure("your_picture.png", plot_gallery([item]), seen)
            return
    print(f"{name}: it is read as {classes[label]}, and neither FGSM nor PGD-40 fools the network up "
          f"to ε = {epsilons[-1]:.3g}.")  # fmt: skip


def lessons(result: Result) -> list[str]:
    """What the figures teach."""
    names = ("random sign noise", "FGSM", "PGD-40")
    found = result.measured(*(f"accuracy, {name}, ε = 0.3" for name in names))
    if found is None:
        return []
    noise, fgsm_, pgd_ = found
    return [
        f"Noise of ±0.3 in every pixel leaves {noise:.0%} of the images read rightly, one gradient step "
        f"of the same size {fgsm_:.0%}, forty smaller steps {pgd_:.0%}.",
        "What harms is the direction and not the size: a network that noise cannot move may be moved by "
        "an attack.",
    ]


def run(config: Config) -> Result:
    """Both halves; what the driver and the tests call."""
    device = prepare(config.seed, config.device)
    config = config.if_quick(num_images=500, pgd_images=100)
    if config.victim == "resnet18" and config.image is None:
        raise UserError("--victim resnet18 needs a photograph: --image PATH.")
    if config.victim != "resnet18" and config.weights is not None:
        raise UserError("--weights are those of a ResNet-18: add --victim resnet18.")
    data = load_for(config, device)
    photo = config.victim == "resnet18"  # whose --targeted is one of ImageNet's 1,000 classes
    classes = 1000 if photo else len(data.classes)
    if config.targeted is not None and not 0 <= config.targeted < classes:
        raise UserError(
            f"--targeted must be a class from 0 to {classes - 1}, not {config.targeted}."
        )
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    noise_half(config, result)
    if photo:  # first, because what is wrong with a picture or its weights is wrong at once
        attack_own_photo(config, device, result)
    elif config.image is not None:
        attack_own_digit(config, data, result)
    # With a photograph the digits are attacked untargeted.
    attack_half(replace(config, targeted=None) if photo else config, data, result)
    return result.save(*lessons(result))


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
