"""Inpainting: a diffusion model fills holes that it was never trained to fill (RePaint).

The network of studies/unet_diffusion.py has only learnt to draw digits. It can fill a hole in a digit
with no further training (Lugmayr et al. 2022). In every step of the reverse process, the network draws
the whole image. Then the known pixels, with as much noise as belongs to that step, replace what it drew
outside the hole.

The filling is better if the network knows the class of the digit. Two ways to find the class are
compared: a small classifier that was trained on digits with holes, and the diffusion model itself. The
model fills the hole once for each of the ten classes, and the class wins whose filling explains the
visible pixels best (Li et al. 2023).

    python -m studies.unet_diffusion                    # first: trains the network
    python -m studies.inpainting                        # measured on held-out images
    python -m studies.inpainting inpaint --image seven.png --mask half --output filled.png
    python -m studies.inpainting inpaint --image seven.png --mask hole.png --output filled.png

What to look at: `half.png`: the classical methods smear the edge of the hole into it, the model completes
a digit, and without a class often another one; `several.png`: five fillings of one half digit.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch

from imagelab.data.datasets import random_subset, signed, to_uint8, unit
from imagelab.data.pictures import open_picture, picture_format, write_picture
from imagelab.report import figures
from imagelab.report.numbers import share_cell
from imagelab.report.results import Result, start_result
from imagelab.setup.runtime import UserError, prepare
from imagelab.setup.settings import Checked, Common, Count, DataSettings, Limits
from imagelab.setup.terminal import progress
from imagelab.techniques import diffusion
from imagelab.techniques.classifier import Change, DigitCNN, accuracy, predict, trained_classifier
from studies import unet_diffusion
from studies.unet_diffusion import Model, Steps, load_model, load_with_data

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "inpainting"
PICTURES = f"study_images/{SCRIPT}"
MASKS = ("box", "half", "strokes")

# --- RePaint --------------------------------------------------------------------------------------


def repaint(
    schedule: diffusion.Schedule,
    estimate: diffusion.Estimate,
    known: torch.Tensor,
    hole: torch.Tensor,
    noise: diffusion.Noise,
    steps: int = 50,
    jump: int = 5,
    repeats: int = 5,
) -> torch.Tensor:
    """The image `known` (B, ...) with its `hole` (bool, true inside) filled: RePaint's algorithm 1.

    `estimate` is the network's x̂₀ of a state x_t. After each step down, the pixels outside the hole
    become those of `known`, with as much noise as belongs to the new t. From time to time noise is
    added again, for `jump` steps up, and the same steps down are repeated: the filling comes to fit its
    surroundings. The known pixels come out unchanged.
    """
    times = diffusion.trailing_steps(len(schedule), steps)[::-1]
    # At level k there are k steps to go: t = times[k - 1], and at level 0 the image is finished.
    alpha_bar = [1.0] + [schedule.alpha_bar[t].item() for t in times]
    x = noise()
    levels = repaint_levels(steps, jump, repeats)
    for level, next_level in progress(list(pairwise(levels)), "filling", "step"):
        now, then = alpha_bar[level], alpha_bar[next_level]
        if next_level > level:  # one step up: more noise
            x = math.sqrt(then / now) * x + math.sqrt(1 - then / now) * noise()
            continue
        x0 = estimate(x, times[level - 1])
        x = diffusion.ddim_step(x0, x, now, then, 1.0, noise)  # η = 1: DDPM
        outside = math.sqrt(then) * known  # √ᾱ·x₀ + √(1 − ᾱ)·ε
        outside = outside + math.sqrt(1 - then) * noise() if next_level > 0 else outside
        x = torch.where(hole, x, outside)
    return x


def repaint_levels(steps: int, jump: int, repeats: int) -> list[int]:
    """The levels that RePaint visits, from `steps` (noise) to 0 (image).

    When it first comes to a multiple of `jump`, it goes `jump` levels up and down again, `repeats` - 1
    times. (250, 10, 10) calls the network 2,410 times, (50, 5, 5) 230 times.
    """
    level, levels = steps, [steps]
    jumps_left = {k: repeats - 1 for k in range(jump, steps - jump + 1, jump)}
    while level > 0:
        level -= 1
        levels.append(level)
        if jumps_left.get(level, 0) > 0:
            jumps_left[level] -= 1
            levels += range(level + 1, level + jump + 1)
            level += jump
    return levels


def inpaint(
    model: Model,
    images: torch.Tensor,
    holes: torch.Tensor,
    config: RePaintSettings,
    labels: torch.Tensor | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """Images (N, C, H, W) uint8 with their holes (N, 1, H, W) filled by RePaint.

    `labels` (N,) are their classes; None: the network draws without a class.
    """
    filled = []
    for first in range(0, len(images), unet_diffusion.PORTION):
        rows = slice(first, first + unet_diffusion.PORTION)
        known, hole = signed(images[rows]), holes[rows].to(images.device)
        if labels is None:
            label = torch.zeros(len(known), dtype=torch.long, device=known.device)
            estimate = model.class_estimator(label, guidance=0)
        else:
            estimate = model.class_estimator(labels[rows])
        noise = diffusion.image_noise(seed, first, len(known), model.shape, known.device)
        steps, jump, repeats = config.repaint_steps, config.jump, config.repeats
        x = repaint(model.schedule, estimate, known, hole, noise, steps, jump, repeats)
        filled.append(torch.where(hole, to_uint8(x), images[rows]))
    return torch.cat(filled)


@torch.no_grad()
def guess_class(
    model: Model, images: torch.Tensor, holes: torch.Tensor, steps: int = 20, seed: int = 0
) -> torch.Tensor:
    """The class (N,) that explains the visible part of each image (N, C, H, W) uint8 best.

    A diffusion model used as a classifier (Li et al. 2023). For each class, the hole is filled in a few
    steps, noise is added to the filled image, and the network estimates x̂₀ from it: once for each of
    several t. The class with the smallest error in the visible pixels wins.
    """
    classes, T = model.network.classes, len(model.schedule)
    guessed = []
    for first in range(0, len(images), unet_diffusion.PORTION):
        rows = slice(first, first + unet_diffusion.PORTION)
        known, hole = signed(images[rows]), holes[rows].to(images.device)
        # The same ε for each class; the fillings are drawn from other noise.
        eps = diffusion.image_noise(seed + 1, first, len(known), model.shape, known.device)()
        errors = torch.zeros(classes, len(known), device=known.device)
        for label in range(classes):
            labels = torch.full((len(known),), label, device=known.device)
            estimate = model.class_estimator(labels)
            noise = diffusion.image_noise(seed, first, len(known), model.shape, known.device)
            jump = max(min(5, steps // 2), 1)
            filled = repaint(model.schedule, estimate, known, hole, noise, steps, jump, 2)
            for t in range(T // 10, T * 9 // 10, max(T // 10, 1)):
                x_t = model.schedule.q_sample(filled, torch.full_like(labels, t), eps)
                error = ((estimate(x_t, t) - known).square() * ~hole).flatten(1).sum(1)
                errors[label] += model.schedule.snr[t].sqrt().float() * error
        guessed.append(errors.argmin(dim=0))
    return torch.cat(guessed)


def known_classes(
    config: Config,
    model: Model,
    masked_classifier: DigitCNN,
    images: torch.Tensor,
    holes: torch.Tensor,
    labels: torch.Tensor,
    all_ways: bool,
) -> dict[str, torch.Tensor | None]:
    """The classes (N,) that RePaint is given, by the way they are found; None: no class.

    `masked_classifier` has learnt to read images with holes; `labels` are the true classes. Without
    `all_ways`, the first way alone.
    """
    read = predict(masked_classifier, images * ~holes).argmax(dim=1)
    classes: dict[str, torch.Tensor | None] = {"diffusion, class by classifier": read}
    if not all_ways:
        return classes
    guessed = guess_class(model, images, holes, config.guess_steps, config.seed)
    return classes | {
        "diffusion, class by trial": guessed,
        "diffusion, no class": None,
        "diffusion, told the class": labels,
    }


# --- holes, and the classical fillings ------------------------------------------------------------


def make_holes(kind: str, n: int, shape: tuple[int, int, int], seed: int) -> torch.Tensor:
    """(n, 1, H, W) bool, true where pixels are hidden: the middle, the lower half, or four lines."""
    import cv2

    _, height, width = shape
    holes = np.zeros((n, height, width), np.uint8)
    if kind == "box":
        holes[:, height // 4 : -(height // 4), width // 4 : -(width // 4)] = 1
    elif kind == "half":
        holes[:, height // 2 :] = 1
    else:
        rng = np.random.default_rng(seed)
        for hole in holes:
            for start, end in rng.integers(0, (width, height), (4, 2, 2)):
                cv2.line(hole, start.tolist(), end.tolist(), 1, max(height // 9, 1))
    return torch.from_numpy(holes).bool()[:, None]


def hide_at_random(shape: tuple[int, int, int], seed: int, device: torch.device) -> Change:
    """A function that makes a random hole of any kind black in each image (B, C, H, W)."""
    holes = torch.cat([make_holes(kind, 1000, shape, seed) for kind in MASKS]).to(device)

    def hide(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(holes), (len(images),), generator=rng, device=device)
        return images * ~holes[chosen]

    return hide


def classical_fillings(images: torch.Tensor, holes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Images (N, C, H, W) uint8 with their holes filled by the known pixels' mean, and by OpenCV."""
    import cv2

    known = images.float() * ~holes
    mean = known.sum((2, 3), keepdim=True) / (~holes).sum((2, 3), keepdim=True).clamp(min=1)
    filled = {"mean of the rest": torch.where(holes, mean.round().byte(), images)}
    pictures = images.permute(0, 2, 3, 1).cpu().numpy()
    masks = holes[:, 0].byte().cpu().numpy()
    for name, method in (("Telea", cv2.INPAINT_TELEA), ("Navier-Stokes", cv2.INPAINT_NS)):
        pairs = zip(pictures, masks, strict=True)
        made = np.stack([cv2.inpaint(np.ascontiguousarray(p), m, 3, method) for p, m in pairs])
        made = torch.from_numpy(made).reshape(pictures.shape).permute(0, 3, 1, 2)
        filled[name] = made.to(images.device)
    return filled


# --- settings -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RePaintSettings(Checked):
    """The steps of RePaint."""

    repaint_steps: Steps = 50
    """Steps of the reverse process."""
    jump: Count = 5
    """How many steps RePaint goes up again at a time."""
    repeats: Count = 5
    """How often it goes down each of these steps in all; 1: without jumps."""
    guess_steps: Steps = 20
    """Steps of the quick fillings, one per class, from which the class is guessed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.repeats > 1 and 2 * self.jump > self.repaint_steps:
            raise UserError(
                f"--jump {self.jump} is more than half of --repaint-steps {self.repaint_steps}: "
                "there would be no jump."
            )


@dataclass(frozen=True)
class Config(RePaintSettings, DataSettings):
    """Settings of the inpainting of held-out images."""

    images: Annotated[int, Limits(2)] = 200
    """How many held-out images are filled."""


# === the lesson ends here; below: measured, plotted, reported =====================================

TITLE = "Inpainting: what is hidden, drawn"
SUMMARY = (
    "A diffusion model that has learnt to draw digits finishes them where a part is hidden, while the "
    "classical methods smear the edge of the hole into it."
)
NOTES = "A number stands where a classifier reads another class: that class's number, from 0."


def hole_psnr(
    filled: torch.Tensor, images: torch.Tensor, holes: torch.Tensor
) -> tuple[float, float]:
    """PSNR in dB over the hidden pixels of all images (N, C, H, W) uint8, and how far its 95 % interval
    over images reaches to each side."""
    errors = ((unit(filled) - unit(images)).square() * holes).flatten(1).sum(dim=1)
    pixels = holes.flatten(1).sum(dim=1) * images.shape[1]
    mse = errors.sum() / pixels.sum()
    # The error of a ratio of sums; 10·log₁₀ changes it by a factor.
    standard_error = (errors - mse * pixels).std() * len(errors) ** 0.5 / pixels.sum()
    to_each_side = 1.96 * 10 / math.log(10) * (standard_error / mse).item()
    return -10 * mse.log10().item(), to_each_side


def compare_fillings(
    config: Config,
    model: Model,
    evaluator: DigitCNN,
    masked_classifier: DigitCNN,
    images: torch.Tensor,
    labels: torch.Tensor,
    result: Result,
) -> None:
    """A table and a picture per kind of hole, and several fillings of one.

    The `evaluator` reads the filled images. The `masked_classifier` reads images with a hole, and gives
    RePaint the class.
    """
    n, by_classifier = len(images), "diffusion, class by classifier"

    def add_share(name: str, share: float) -> None:
        result.add_share(name, share, n, better="higher")

    for kind in MASKS:
        holes = make_holes(kind, n, model.shape, config.seed).to(images.device)
        fillings = classical_fillings(images, holes)
        best = max(accuracy(evaluator, x, labels) for x in fillings.values())
        classes = known_classes(
            config, model, masked_classifier, images, holes, labels, all_ways=kind == "half"
        )
        for name, known in classes.items():
            fillings[name] = inpaint(model, images, holes, config, known, config.seed)
        kept = {name: accuracy(evaluator, x, labels) for name, x in fillings.items()}
        rows = [
            [name, *hole_psnr(x, images, holes), share_cell(kept[name], n)]
            for name, x in fillings.items()
        ]
        rows.append(["nothing hidden", "", "", share_cell(accuracy(evaluator, images, labels), n)])
        columns = ["", "PSNR of the hole (dB)", "± (95 %)", "class kept"]
        result.add_table(f"Hole: {kind}, n = {n:,}", columns, rows)
        add_share(f"{kind}: class kept by diffusion", kept[by_classifier])
        result.add_share(f"{kind}: class kept by the best other", best, n)
        right = {
            name: (known == labels).float().mean().item()
            for name, known in classes.items()
            if known is not None
        }
        add_share(f"{kind}: class read from what is seen", right[by_classifier])
        caption = f"Hidden: {kind}, in blue. How many of {n:,} fillings keep their class. {NOTES}"
        names = {f"{name}: {kept[name]:.0%}": x for name, x in fillings.items()}
        figure = plot_fillings(images, holes, names, evaluator, labels)
        result.add_figure(f"{kind}.png", figure, caption)
        if kind == "half":
            add_share("half: class found by trial", right["diffusion, class by trial"])
            add_share("half: class kept, told it", kept["diffusion, told the class"])
            add_share("half: class kept without a class", kept["diffusion, no class"])
            few = images[:10], holes[:10], config
            draws = {f"draw {k}": inpaint(model, *few, seed=config.seed + k) for k in range(1, 6)}
            caption = f"Five fillings without a class: half a digit may be several digits. {NOTES}"
            figure = plot_fillings(images, holes, draws, evaluator, labels)
            result.add_figure("several.png", figure, caption)


def plot_fillings(
    images: torch.Tensor, holes: torch.Tensor, fillings: dict[str, torch.Tensor],
    evaluator: DigitCNN, labels: torch.Tensor,
) -> Figure:  # fmt: skip
    """Ten images, the same with their holes in blue, and a row of fillings per method.

    Where the `evaluator` reads another class than that of `labels`, its number stands there.
    """
    blue = torch.tensor(figures.rgb(figures.PALETTE[5]), dtype=torch.uint8, device=images.device)
    seen = torch.where(holes, blue[:, None, None], images)  # (N, 3, H, W)
    rows, wrong = {"original": images, "seen": seen, **fillings}, {}
    for name, x in fillings.items():
        read = predict(evaluator, x[:10]).argmax(dim=1)
        pairs = zip(read.tolist(), labels[:10].tolist(), strict=True)
        wrong[name] = [str(k) if k != label else "" for k, label in pairs]
    return figures.plot_rows({name: x[:10] for name, x in rows.items()}, notes=wrong)


def lessons(result: Result) -> list[str]:
    """What the figures teach, as far as they were measured."""
    found = result.measured(
        "half: class kept by diffusion", "half: class kept by the best other",
        "half: class kept, told it", "half: class read from what is seen",
        "half: class found by trial", "half: class kept without a class",
    )  # fmt: skip
    if found is None:
        return []
    kept, classical, given, read, tried, without = found
    return [
        f"With half a digit hidden, {kept:.0%} of the fillings are read as the right class, with a class "
        f"that a classifier finds from the visible half (rightly in {read:.0%} of cases). If the true "
        f"class is given, it is {given:.0%}, without a class {without:.0%}. The best classical method, "
        f"which knows no digits, keeps {classical:.0%}. The diffusion model, which tries all ten "
        f"classes, finds the right one in {tried:.0%} of cases."
    ]


def run(config: Config) -> Result:
    """Fill three kinds of holes in held-out images."""
    device = prepare(config.seed, config.device)
    config = config.if_quick(images=10, repaint_steps=6, jump=2, repeats=2, guess_steps=10)
    model, data = load_with_data(config, device)
    for steps in (config.repaint_steps, config.guess_steps):  # refused now, not after the trainings
        diffusion.trailing_steps(len(model.schedule), steps)
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    train_classifier = partial(
        trained_classifier, data, config.output_dir, config.seed, config.quick
    )
    evaluator = train_classifier()
    hide = hide_at_random(data.shape, config.seed + 1, device)
    masked_classifier = train_classifier("cnn_holes", hide, epochs=3)
    rows = random_subset(len(data.test_images), config.images, "images to restore").to(device)
    images, labels = data.test_images[rows], data.test_labels[rows]
    compare_fillings(config, model, evaluator, masked_classifier, images, labels, result)
    return result.save(*lessons(result))


# --- a picture of your own ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Inpaint(RePaintSettings, Common):
    """Fill the hole in a picture of your own, with the network that unet_diffusion has trained."""

    image: Path
    """The picture, light on dark like the digits. It is scaled to the size that the network draws;
    if its sides have another proportion, it gets margins."""
    output: Path
    """Where to write the result; the suffix (.png, .jpg, .webp, ...) decides the format."""
    mask: str = "half"
    """box, half, strokes, or a picture of the hole: white is filled, black is kept."""
    label: int | None = None
    """The class, by number, if you know it; else the model guesses it."""
    samples: Annotated[int, Limits(1, 100)] = 4
    """How many fillings to draw, side by side."""
    model: Path = Path(unet_diffusion.MODELS) / "unet.pth"
    """The checkpoint of unet_diffusion."""
    seed: Annotated[int, Limits(0, 2**31 - 1)] = 0
    """Seed of the random draws."""


def read_hole(
    config: Inpaint, drawn_at: tuple[int, int], shape: tuple[int, int, int]
) -> torch.Tensor:
    """(1, 1, H, W) bool from --mask; a picture must have the size `drawn_at` of --image."""
    from PIL import ImageOps

    if config.mask in MASKS:
        return make_holes(config.mask, 1, shape, config.seed)
    mask = open_picture(Path(config.mask)).convert("L")
    if mask.size != drawn_at:
        raise UserError(
            f"{config.mask} has {mask.size[0]}×{mask.size[1]} pixels, {config.image} "
            f"{drawn_at[0]}×{drawn_at[1]}: they must be equal."
        )
    hole = np.array(ImageOps.pad(mask, (shape[2], shape[1]))) > 127
    if hole.all() or not hole.any():
        raise UserError(
            f"{config.mask} hides {'all' if hole.all() else 'nothing'}: white hides, black is kept."
        )
    return torch.from_numpy(hole)[None, None]


def run_inpaint(config: Inpaint) -> None:
    """Read picture and hole, fill, write."""
    from PIL import Image, ImageOps

    device = prepare(config.seed, config.device)
    if config.mask not in MASKS and not Path(config.mask).is_file():
        raise UserError(f"--mask must be {', '.join(MASKS)} or a picture, not {config.mask!r}.")
    picture_format(config.output, config.image, config.mask)  # before the work, not after it
    model = load_model(config.model, device)
    channels, height, width = model.shape
    picture = open_picture(config.image).convert("L" if channels == 1 else "RGB")
    hole = read_hole(config, picture.size, model.shape)
    if config.label is not None and not 0 <= config.label < model.network.classes:
        raise UserError(f"--label must lie between 0 and {model.network.classes - 1}.")
    picture = ImageOps.pad(picture, (width, height), Image.Resampling.LANCZOS)
    image = torch.from_numpy(np.array(picture)).reshape(height, width, channels).permute(2, 0, 1)
    images = image[None].to(device).expand(config.samples, -1, -1, -1)
    holes = hole.to(device).expand(config.samples, -1, -1, -1)
    label = config.label
    if label is None:
        label = int(guess_class(model, images[:1], holes[:1], config.guess_steps, config.seed))
        print(f"Read as class {label}; --label says otherwise.")
    labels = torch.full((len(images),), label, device=device)
    filled = inpaint(model, images, holes, config, labels, config.seed)
    write_picture(config.output, figures.grid(filled, columns=config.samples, scale=4))
    print(f"Written: {config.output}")


def main() -> None:
    command_line(Config, run, __doc__, {"inpaint": (Inpaint, run_inpaint)})


if __name__ == "__main__":
    main()
