"""FGSM: noise against an attack of the same size (Goodfellow et al. 2015).

First half: Gaussian noise is added to a photograph, and the damage is measured. Second half: a
classifier reads digits almost without error. Noise of ±0.15 in every pixel hardly moves it. Half of
the digits fool it if each pixel moves as far along the sign of the loss's gradient: x + ε·sign(∇ₓL).
Forty smaller steps (PGD, Madry et al. 2017) fool it with nearly all.

    python fgsm.py                                      # twenty seconds on two CPU cores
    python fgsm.py --image photo.jpg --noise-sigma 50   # noise on your picture
    python fgsm.py --image seven.jpg                    # a digit of your own is attacked as well
    python fgsm.py --targeted 3                         # every digit is to be read as a 3
    python fgsm.py --image cat.jpg --victim resnet18    # an ImageNet network on your photograph

The attack works on pixels in [0, 1]. The classifier normalises them itself, and it is in eval mode.
ε = 0 gives exactly the clean accuracy. The README states the figures to expect.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from imagelab.data.datasets import Dataset, load_for, random_subset, unit
from imagelab.data.own_digit import fit_to_frame
from imagelab.data.pictures import as_uint8, open_picture, read_grey, write_png
from imagelab.data.quality import psnr, ssim
from imagelab.report import figures
from imagelab.report.numbers import share_cell
from imagelab.report.results import Result, start_result
from imagelab.setup.runtime import UserError, generator, prepare
from imagelab.setup.settings import Count, DataSettings, InputFile, Limits
from imagelab.setup.terminal import progress
from imagelab.techniques import attacks
from imagelab.techniques.classifier import accuracy, predict, trained_classifier
from imagelab.techniques.pretrained import imagenet_resnet18

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "fgsm"
PICTURES = "adversarial_images"
EPSILONS = [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]  # of the range [0, 1]
PHOTO_EPSILONS = [k / 255 for k in (0.5, 1, 2, 4, 8)]

# --- noise ----------------------------------------------------------------------------------------


def add_noise(picture: np.ndarray, sigma: float, weight: float, rng: np.random.Generator):
    """Gaussian noise and the picture with it; (H, W) in [0, 1], `sigma` in grey levels of 255.

    The sum is taken in floating point and clipped.
    """
    noise = rng.normal(0, sigma / 255, picture.shape)
    return noise, np.clip(picture + weight * noise, 0, 1)


def add_noise_in_bytes(picture: np.ndarray, noise: np.ndarray, weight: float) -> np.ndarray:
    """As it is often written: noise as unsigned bytes, where −3 becomes 253; (H, W) in [0, 1].

    `addWeighted` rounds the sum and cuts it off at 255. Half of the noise is now nearly white, so even a
    small weight makes the picture brighter.
    """
    import cv2

    wrapped = (noise * 255).astype(np.int64).astype(np.uint8)
    return cv2.addWeighted(as_uint8(picture), 1, wrapped, weight, 0) / 255


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
    With `targeted`, the labels are the classes to reach, and the loss is lowered instead of raised.
    """
    gradient = attacks.input_gradient(model, images, labels)  # ∇ₓL, (N, C, H, W)
    direction = -1 if targeted else 1
    return (images + direction * epsilon * gradient.sign()).clamp(0, 1)


def accuracy_curves(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    target: int | None,
    pgd_images: int,
    seed: int,
) -> dict[str, list[float]]:
    """Accuracy at each of EPSILONS under random signs, Gaussian noise, FGSM and PGD.

    PGD attacks the first `pgd_images` only. With a `target` class, the attacks drive the images there.
    """
    aim = labels if target is None else torch.full_like(labels, target)
    curves = {"random sign noise": [], "Gaussian noise": [], "FGSM": []}
    for epsilon in progress(EPSILONS, "noise and FGSM", "size"):
        rng = generator(seed, "noise of the curve")
        changed = {
            "random sign noise": attacks.sign_noise(images, epsilon, rng),
            "Gaussian noise": attacks.gaussian_noise(images, epsilon, rng),
            "FGSM": fgsm(model, images, aim, epsilon, targeted=target is not None),
        }
        for name, x in changed.items():
            curves[name].append(accuracy(model, x, labels))
    few, few_labels, rng = (
        images[:pgd_images],
        labels[:pgd_images],
        generator(seed, "starts of the curve"),
    )
    curves["PGD-40"] = attacks.pgd_accuracies(model, few, few_labels, EPSILONS, rng, target=target)
    return curves


class Fooled(NamedTuple):
    """An image, the same with random signs of size ε, and attacked with that ε: (3, C, H, W) in [0, 1].

    `read` are the probabilities that the model gives each of the three, (3, classes).
    """

    images: torch.Tensor
    epsilon: float
    read: torch.Tensor


def smallest_fooling(
    model: nn.Module,
    image: torch.Tensor,
    label: int,
    target: int | None,
    epsilons: list[float],
    attack: Callable[..., torch.Tensor] = fgsm,
) -> Fooled | None:
    """The attack on one image (C, H, W) at the smallest ε that fools the model; None if none does."""
    x = image[None]
    aim = torch.tensor([label if target is None else target], device=image.device)
    for epsilon in epsilons:
        attacked = attack(model, x, aim, epsilon, targeted=target is not None)
        after = predict(model, attacked)
        reads = int(after.argmax())
        if reads != label if target is None else reads == target:
            noisy = attacks.sign_noise(x, epsilon, generator(label, "noise beside an attack"))
            before = predict(model, torch.cat([x, noisy]))
            return Fooled(torch.cat([x, noisy, attacked]), epsilon, torch.cat([before, after]))
    return None


def fooled_examples(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    target: int | None,
    attack: Callable[..., torch.Tensor],
) -> list[Fooled]:
    """For each of up to ten classes, the first image that is read correctly and can be fooled."""
    read, fooled = predict(model, images).argmax(dim=1), []
    for label in labels.unique().tolist():
        if label == target or len(fooled) == 10:
            continue
        for i in ((labels == label) & (read == label)).nonzero().flatten().tolist():
            item = smallest_fooling(model, images[i], label, target, EPSILONS[1:], attack)
            if item is not None:
                fooled.append(item)
                break
    return fooled


def read_photo(path: Path, height: int, width: int) -> torch.Tensor:
    """The middle of a picture in those proportions, scaled: (3, height, width) in [0, 1]."""
    from PIL import Image, ImageOps

    photo = open_picture(path).convert("RGB")
    photo = ImageOps.fit(photo, (width, height), Image.Resampling.LANCZOS)
    return unit(torch.from_numpy(np.array(photo))).permute(2, 0, 1)


def read_like(path: Path, shape: tuple[int, int, int]) -> torch.Tensor:
    """A picture as a classifier of images (C, H, W) needs it: a grey one is a digit, which is centred."""
    if shape[0] == 3:
        return read_photo(path, *shape[1:])
    digit = fit_to_frame(read_grey(path, max_side=1024), shape[1])
    return torch.from_numpy(digit).float().expand(shape)


@dataclass(frozen=True)
class Config(DataSettings):
    """Settings of the noise and of the attack."""

    image: InputFile | None = None
    """Your own picture. Noise is added to it. It is also attacked as a digit: it may be drawn or
    photographed, and the page must fill the picture. Default: scikit-image's `camera`, not attacked."""
    noise_sigma: Annotated[float, Limits(0, 255)] = 25.0
    """Standard deviation of the noise, in grey levels of 255."""
    noise_weight: Annotated[float, Limits(0, 10)] = 0.1
    """Factor of the noise when it is added."""
    num_images: Count = 2000
    """Held-out images to attack."""
    pgd_images: Count = 400
    """How many of these to attack with PGD as well. PGD takes forty gradients for each."""
    targeted: Annotated[int, Limits(0)] | None = None
    """Drive the images towards this class instead of away from their own."""
    victim: Literal["cnn", "resnet18"] = "cnn"
    """The network that reads --image: this project's CNN, or torchvision's ResNet-18 for ImageNet."""
    weights: InputFile | None = None
    """Weights file of resnet18; default: torchvision's cache, else its download."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.victim == "resnet18" and self.image is None:
            raise UserError("--victim resnet18 needs a photograph: --image PATH.")
        if self.victim != "resnet18" and self.weights is not None:
            raise UserError("--weights are those of a ResNet-18: add --victim resnet18.")


# === the lesson ends here; below: measured, plotted, reported =====================================

TITLE = "FGSM: noise against an attack"
SUMMARY = (
    "How much a classifier suffers from random noise, from noise of the same size along the sign of its "
    "own gradient, and from forty smaller steps. A person sees the same digit each time."
)


def report_noise(config: Config, result: Result) -> None:
    """The picture, the noise, and both together; and the noise in bytes beside that in floats."""
    picture = read_grey(config.image, max_side=1024)
    sigma, weight, rng = config.noise_sigma, config.noise_weight, np.random.default_rng(config.seed)
    noise, noisy = add_noise(picture, sigma, weight, rng)
    noisy = np.round(noisy * 255) / 255  # compared as it is saved: in 256 grey levels
    decibels, similarity = psnr(picture, noisy), ssim(picture, noisy)
    result.add_metric("noise: PSNR", decibels, 1, unit="dB", better="higher")
    result.add_metric("noise: SSIM", similarity, 1, better="higher")
    stretched = np.clip(0.5 + noise / max(6 * sigma / 255, 1e-12), 0, 1)  # ±3σ: black and white
    pictures = {"original": picture, "noise": stretched, "noisy": noisy}
    captions = (
        "The picture as it is.",
        "The noise alone: grey is none.",
        f"The picture with {weight:g} times the noise.",
    )
    for (name, image), caption in zip(pictures.items(), captions, strict=True):
        write_png(result.add_file(f"{name}.png", caption, featured=False), image)
    titles = (
        "original",
        f"noise, σ = {sigma:g} of 255\n(±3σ: black to white)",
        f"original + {weight:g} × noise\nPSNR {decibels:.1f} dB, SSIM {similarity:.3f}",
    )
    figure = figures.plot_side_by_side(
        dict(zip(titles, pictures.values(), strict=True)), height=3.8
    )
    caption = (
        f"Noise with a standard deviation of {weight * sigma:.3g} of 255 grey levels on a picture."
    )
    result.add_figure("noise_side_by_side.png", figure, caption)
    pairs, weights = {"original": picture}, tuple(dict.fromkeys((weight, 1.0)))
    for w in weights:
        for name, x in (
            ("as often written:\nbytes", add_noise_in_bytes(picture, noise, w)),
            ("corrected:\nfloats", np.clip(picture + w * noise, 0, 1)),
        ):
            x = np.round(x * 255) / 255
            brighter = round(255 * (x - picture).mean(), 1) + 0.0  # no −0.0
            pairs[
                f"{name}, weight {w:g}\nPSNR {psnr(picture, x):.1f} dB\nmean {brighter:+.1f} of 255"
            ] = x
    figure = figures.plot_side_by_side(pairs, height=2.8)
    caption = (
        "The same noise as unsigned bytes, as many tutorials write it, and as floats. In bytes every "
        "negative value wraps around: −3 becomes 253. So the picture grows brighter. Above each: its "
        "PSNR, and by how much its mean grey level changes."
    )
    result.add_figure("bytes_and_floats.png", figure, caption)


def plot_gallery(fooled: list[Fooled], classes: tuple[str, ...], attack: str) -> Figure:
    """A column per image: original, with noise of the same size, what the attack adds, attacked."""
    figure, axes = figures.new_figure(1.3 * len(fooled) + 1.2, 7.4, 4, len(fooled))
    for column, ((x, noisy, changed), epsilon, probabilities) in zip(axes.T, fooled, strict=True):
        before, under_noise, after = (
            f"read as {classes[p.argmax()]}\n({p.max():.0%} sure)" for p in probabilities
        )
        stretched = (changed - x) / (2 * epsilon) + 0.5
        titles = (before, under_noise, f"ε = {epsilon:.3g}", after)
        for axis, image, title in zip(column, (x, noisy, stretched, changed), titles, strict=True):
            figures.show_image(axis, figures.as_picture(image), title)
    figures.name_rows(
        axes, ("original", "random signs,\nsame ε", "perturbation", f"after {attack}")
    )
    return figure


def plot_accuracies(curves: dict[str, list[float]], classes: int) -> Figure:
    """Accuracy against ε, a line per noise or attack."""
    figure, ((axis,),) = figures.new_figure(6.5, 3.8)
    figures.plot_lines(axis, EPSILONS, curves, "ε (of the range 0 to 1)", "accuracy")
    axis.set_ylim(0, 1.02)
    axis.axhline(1 / classes, color="#888888", linewidth=1, linestyle="--")
    axis.text(0, 1 / classes + 0.015, "guessing", color="#666666", fontsize=8)
    return figure


def report_attacks(config: Config, data: Dataset, target: int | None, result: Result) -> None:
    """Accuracy under noise and attacks, as table and figure; examples at the smallest ε that fools."""
    model = trained_classifier(data, config.output_dir, config.seed, config.quick)
    all_test = accuracy(model, data.test_images, data.test_labels)
    result.add_share("clean accuracy", all_test, len(data.test_images), better="higher")
    # Images of the target's own class cannot be driven there.
    rows = (data.test_labels != (-1 if target is None else target)).nonzero().flatten()
    if len(rows) == 0:
        raise UserError(f"--targeted {target}: every held-out image is of that class.")
    # Not the first ones: the first half of MNIST's test images is easier.
    rows = rows[random_subset(len(rows), config.num_images, "images to attack").to(rows.device)]
    images, labels = unit(data.test_images[rows]), data.test_labels[rows]

    curves = accuracy_curves(model, images, labels, target, config.pgd_images, config.seed)
    n = dict.fromkeys(curves, len(rows)) | {"PGD-40": min(config.pgd_images, len(rows))}
    columns = [f"{name} (n = {n[name]:,})" for name in curves]
    table = [
        [f"{epsilon:g}", *(share_cell(curve[i], n[name]) for name, curve in curves.items())]
        for i, epsilon in enumerate(EPSILONS)
    ]
    result.add_table("Accuracy against ε on held-out images", ["ε", *columns], table)
    for name, curve in curves.items():
        for epsilon in (0.15, 0.3):
            share = curve[EPSILONS.index(epsilon)]
            result.add_share(f"accuracy, {name}, ε = {epsilon}", share, n[name])
    caption = (
        f"How many of {n['FGSM']:,} images are still read correctly under noise and under attacks of the "
        "same size ε."
    )
    if n["PGD-40"] < n["FGSM"]:
        caption += (
            f" PGD attacks {n['PGD-40']:,} of them, so its line starts at the accuracy on these."
        )
    result.add_figure("accuracy.png", plot_accuracies(curves, len(data.classes)), caption)

    pgd = partial(attacks.pgd, rng=generator(config.seed, "starts of the gallery"))
    for name, short, what, attack in (
        ("gallery.png", "FGSM", "one gradient step", fgsm),
        ("gallery_pgd.png", "PGD-40", "forty smaller steps", pgd),
    ):
        if fooled := fooled_examples(model, images[:500], labels[:500], target, attack):
            caption = (
                f"{short}, {what}: of each class the first image that it fools the network with, at the "
                "smallest ε of those in the table. Random signs of the same ε stand above. The "
                "perturbation goes from −ε (black) over 0 (grey) to +ε (white). A black pixel cannot "
                "become darker."
            )
            result.add_figure(name, plot_gallery(fooled, data.classes, short), caption)


def report_own_picture(config: Config, data: Dataset, path: Path, result: Result) -> None:
    """Attack --image as it is read: a photograph for a ResNet-18, else a digit, centred like the data."""
    device, target = data.images.device, config.targeted
    classes, epsilons = data.classes, EPSILONS[1:]
    if config.victim == "resnet18":
        model, classes = imagenet_resnet18(config.weights, device)
        image, epsilons = read_photo(path, 224, 224), PHOTO_EPSILONS
    else:
        model = trained_classifier(data, config.output_dir, config.seed, config.quick)
        image = read_like(path, data.shape)
    image = image.to(device)
    label = int(predict(model, image[None]).argmax())
    read = f"{path.name}, read as {classes[label]}"
    pgd = partial(attacks.pgd, rng=generator(config.seed, "starts of your picture"))
    if label == target:
        print(f"{read}, which is the target already: there is nothing to attack.")
        return
    for kind, attack in (("FGSM", fgsm), ("PGD-40", pgd)):
        if item := smallest_fooling(model, image, label, target, epsilons, attack):
            result.add_metric("your picture: smallest ε that fools", item.epsilon, 1)
            caption = f"{read}: the smallest tested ε at which {kind} fools the network."
            result.add_figure("your_picture.png", plot_gallery([item], classes, kind), caption)
            return
    print(f"{read}: neither FGSM nor PGD-40 changes that up to ε = {epsilons[-1]:.3g}.")


def lessons(result: Result) -> list[str]:
    """What the figures teach."""
    kinds = ("random sign noise", "FGSM", "PGD-40")
    found = result.measured(*(f"accuracy, {kind}, ε = 0.15" for kind in kinds))
    large = result.measured("accuracy, random sign noise, ε = 0.3")
    if found is None or large is None:
        return []
    return [
        "Noise of ±0.15 in every pixel leaves an accuracy of {:.0%}. One gradient step of the same size "
        "leaves {:.0%}, and forty smaller steps {:.0%}.".format(*found),
        "The direction does the harm: at the same size a network may stand noise and fall to an attack. "
        "Noise twice as large leaves {:.0%}.".format(*large),
    ]


def run(config: Config) -> Result:
    """Both halves; what the driver and the tests call."""
    device = prepare(config.seed, config.device)
    config = config.if_quick(num_images=500, pgd_images=100)
    data = load_for(config, device)
    photo = config.victim == "resnet18"  # its --targeted is one of ImageNet's 1,000 classes
    last = (1000 if photo else len(data.classes)) - 1
    if config.targeted is not None and config.targeted > last:
        raise UserError(f"--targeted must be a class from 0 to {last}, not {config.targeted}.")
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    report_noise(config, result)
    if config.image is not None:  # first: an unusable picture or weights file is found at once
        report_own_picture(config, data, config.image, result)
    report_attacks(config, data, None if photo else config.targeted, result)
    return result.save(*lessons(result))


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
