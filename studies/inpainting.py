"""Inpainting: a diffusion model fills holes that it was never trained to fill (RePaint).

A diffusion model fills a hole with no further training: at every step of the reverse process, the known
pixels, with as much noise as belongs to that step, replace what the network drew there (Lugmayr et al.
2022). Without a class, the network of studies/unet_diffusion.py finishes half a digit as any digit; given
the class, as the right one. Two ways to find the class are compared: a small classifier that has learnt
to read digits with holes, and the network itself, which tries all ten classes and keeps the one that
explains the seen part best (Li et al. 2023).

    python -m studies.unet_diffusion                    # first: trains the network
    python -m studies.inpainting                        # measured on held-out images
    python -m studies.inpainting inpaint --image seven.png --mask half --output filled.png
    python -m studies.inpainting inpaint --image seven.png --mask hole.png --output filled.png

What to look at: `half.png`, where the classical methods smear what they see into the hole and the model
finishes the digit; `several.png`, where the seen half leaves a choice.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch

from imagelab.data.datasets import random_subset, signed, to_uint8, unit
from imagelab.data.pictures import open_picture, picture_format, write_picture
from imagelab.report import figures
from imagelab.report.results import Result, share_cell, start_result
from imagelab.setup.runtime import UserError, prepare
from imagelab.setup.settings import Checked, Common, Count, DataSettings, Limits
from imagelab.setup.terminal import progress
from imagelab.techniques.classifier import Change, DigitCNN, accuracy, predict, trained_classifier
from imagelab.techniques.diffusion import (
    Estimate,
    Noise,
    Schedule,
    ddim_step,
    image_noise,
    trailing_steps,
)
from studies import unet_diffusion
from studies.unet_diffusion import Model, Steps, load_model, load_with_data

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "inpainting"
PICTURES = f"study_images/{SCRIPT}"
MASKS = ("box", "half", "strokes")


@dataclass(frozen=True)
class RePaint(Checked):
    """How RePaint walks between noise and image."""

    repaint_steps: Steps = 50
    """Steps of the reverse process."""
    jump: Count = 5
    """Steps that RePaint goes up again at a time."""
    repeats: Count = 5
    """How often it walks each of those."""
    guess_steps: Steps = 20
    """Steps of the quick fillings, one per class, from which the class is guessed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.repeats > 1 and 2 * self.jump > self.repaint_steps:
            raise UserError(f"--jump {self.jump} is more than half of --repaint-steps "
                            f"{self.repaint_steps}: there would be no jump.")  # fmt: skip


@dataclass(frozen=True)
class Config(RePaint, DataSettings):
    """Settings of the inpainting on held-out images."""

    images: Count = 200
    """Held-out images that are filled."""


# --- RePaint --------------------------------------------------------------------------------------


def repaint(
    schedule: Schedule,
    estimate: Estimate,
    known: torch.Tensor,
    hole: torch.Tensor,
    noise: Noise,
    steps: int = 50,
    jump: int = 5,
    repeats: int = 5,
) -> torch.Tensor:
    """`known` (B, ...) with its `hole` (broadcastable, bool) drawn by the model (Lugmayr et al. 2022).

    Around the hole, each state is the known image with as much noise as belongs to that step. The walk
    goes `jump` steps up again, `repeats` - 1 times, so that the inside comes to agree with the outside.
    Known pixels come out unchanged.
    """
    times = trailing_steps(len(schedule), steps)[::-1]  # level k has k steps to go, from times[k-1]
    alpha_bar = [1.0] + [schedule.alpha_bar[t].item() for t in times]
    x = noise()
    levels = repaint_levels(steps, jump, repeats)
    for level, following in progress(list(pairwise(levels)), "filling", "step"):
        now, then = alpha_bar[level], alpha_bar[following]
        if following > level:  # up again: with more noise
            x = math.sqrt(then / now) * x + math.sqrt(1 - then / now) * noise()
            continue
        x = ddim_step(estimate(x, times[level - 1]), x, now, then, 1.0, noise)  # η = 1: DDPM
        seen = math.sqrt(then) * known
        seen = seen + math.sqrt(1 - then) * noise() if following else seen
        x = torch.where(hole, x, seen)
    return x


def repaint_levels(steps: int, jump: int, repeats: int) -> list[int]:
    """The levels that RePaint walks through, from `steps` (noise) to 0 (image).

    At every multiple of `jump` the walk goes `jump` levels up again, `repeats` - 1 times. (250, 10, 10)
    calls the network 2,410 times, (50, 5, 5) 230.
    """
    level, levels = steps, [steps]
    left = {k: repeats - 1 for k in range(jump, steps - jump + 1, jump)}
    while level > 0:
        level -= 1
        levels.append(level)
        if left.get(level, 0) > 0:
            left[level] -= 1
            levels += range(level + 1, level + jump + 1)
            level += jump
    return levels


def inpaint(
    model: Model,
    images: torch.Tensor,
    holes: torch.Tensor,
    config: RePaint,
    labels: torch.Tensor | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """Images (N, C, H, W) uint8 with their holes (N, 1, H, W) drawn anew.

    `labels` (N,) are their classes; None: the network draws without a class.
    """
    filled = []
    for first in range(0, len(images), unet_diffusion.PORTION):
        rows = slice(first, first + unet_diffusion.PORTION)
        known, hole = signed(images[rows]), holes[rows].to(images.device)
        told = torch.zeros(len(known), dtype=torch.long, device=known.device)
        told = told if labels is None else labels[rows]
        estimate = model.class_estimator(told, guidance=0 if labels is None else 1)
        noise = image_noise(seed, first, len(known), model.shape, known.device)
        x = repaint(model.schedule, estimate, known, hole, noise, config.repaint_steps, config.jump,
                    config.repeats)  # fmt: skip
        filled.append(torch.where(hole, to_uint8(x), images[rows]))
    return torch.cat(filled)


@torch.no_grad()
def guess_class(
    model: Model, images: torch.Tensor, holes: torch.Tensor, steps: int = 20, seed: int = 0
) -> torch.Tensor:
    """The class (N,) that makes the seen part of each image (N, C, H, W) uint8 most plausible.

    Each class fills the hole in a few steps. Then noise is added to the filling, and the network removes
    it again, once for each of many amounts of noise. The class wins whose estimates come closest to the
    seen pixels (Li et al. 2023).
    """
    classes, T = model.network.classes, len(model.schedule)
    guessed = []
    for first in range(0, len(images), unet_diffusion.PORTION):
        rows = slice(first, first + unet_diffusion.PORTION)
        known, hole = signed(images[rows]), holes[rows].to(images.device)
        # The same for each class, and not what the filling is drawn from.
        fresh = image_noise(seed + 1, first, len(known), model.shape, known.device)()
        errors = torch.zeros(classes, len(known), device=known.device)
        for label in range(classes):
            estimate = model.class_estimator(torch.full((len(known),), label, device=known.device))
            own = image_noise(seed, first, len(known), model.shape, known.device)
            jump = max(min(5, steps // 2), 1)
            filled = repaint(model.schedule, estimate, known, hole, own, steps, jump, 2)
            for t in range(T // 10, T * 9 // 10, max(T // 10, 1)):
                at = torch.full((len(known),), t, device=known.device)
                found = estimate(model.schedule.q_sample(filled, at, fresh), t)
                error = ((found - known).square() * ~hole).flatten(1).sum(1)
                errors[label] += model.schedule.snr[t].sqrt().float() * error
        guessed.append(errors.argmin(dim=0))
    return torch.cat(guessed)


# --- holes, and the classical fillings ------------------------------------------------------------


def make_holes(kind: str, n: int, shape: tuple[int, int, int], seed: int) -> torch.Tensor:
    """(n, 1, H, W) bool, true where pixels are hidden: the middle, the lower half, or strokes."""
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


def holes_in_all(shape: tuple[int, int, int], seed: int, device: torch.device) -> Change:
    """A change that blackens a hole in each image (B, C, H, W): one out of 1,000 of each kind."""
    holes = torch.cat([make_holes(kind, 1000, shape, seed) for kind in MASKS]).to(device)

    def change(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(holes), (len(images),), generator=rng, device=device)
        return images * ~holes[chosen]

    return change


def classical_fillings(images: torch.Tensor, holes: torch.Tensor) -> dict[str, torch.Tensor]:
    """Images (N, C, H, W) uint8 with their holes filled by the known pixels' mean, and by OpenCV."""
    import cv2

    known = images.float() * ~holes
    mean = known.sum((2, 3), keepdim=True) / (~holes).sum((2, 3), keepdim=True).clamp(min=1)
    filled = {"mean of the rest": torch.where(holes, mean.round().byte(), images)}
    pictures = images.permute(0, 2, 3, 1).cpu().numpy()
    masks = holes[:, 0].byte().cpu().numpy()
    for name, method in (("Telea", cv2.INPAINT_TELEA), ("Navier-Stokes", cv2.INPAINT_NS)):
        made = [cv2.inpaint(np.ascontiguousarray(p), m, 3, method)
                for p, m in zip(pictures, masks, strict=True)]  # fmt: skip
        made = torch.from_numpy(np.stack(made)).reshape(pictures.shape).permute(0, 3, 1, 2)
        filled[name] = made.to(images.device)
    return filled


# --- a picture of one's own -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Inpaint(RePaint, Common):
    """Fill the hole in a picture of your own, with the network that unet_diffusion has trained."""

    image: Path
    """The picture, light on dark as the digits are; it is scaled to the size that the network draws,
    and gets margins where its sides are in another proportion."""
    output: Path
    """Where to write the result; the suffix (.png, .jpg, .webp, ...) decides the format."""
    mask: str = "half"
    """box, half, strokes, or a picture of the hole: white is filled, black is kept."""
    label: int | None = None
    """The class, by number, if it is known; else the model guesses it."""
    samples: Annotated[int, Limits(1, 100)] = 4
    """How many ways of filling it to draw, side by side."""
    model: Path = Path(unet_diffusion.MODELS) / "unet.pth"
    """The checkpoint of unet_diffusion."""
    seed: Annotated[int, Limits(0, 2**31 - 1)] = 0
    """Seed of the random draws."""


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
    drawn_at = picture.size
    picture = ImageOps.pad(picture, (width, height), Image.Resampling.LANCZOS)
    image = torch.from_numpy(np.array(picture)).reshape(height, width, channels).permute(2, 0, 1)
    if config.mask in MASKS:
        hole = make_holes(config.mask, 1, model.shape, config.seed)
    else:
        mask = open_picture(Path(config.mask)).convert("L")
        if mask.size != drawn_at:
            raise UserError(f"{config.mask} has {mask.size[0]}×{mask.size[1]} pixels, {config.image} "
                            f"{drawn_at[0]}×{drawn_at[1]}: they must be equal.")  # fmt: skip
        hole = np.array(ImageOps.pad(mask, (width, height))) > 127
        if hole.all() or not hole.any():
            raise UserError(f"{config.mask} hides {'all' if hole.all() else 'nothing'}: white hides, "
                            "black is kept.")  # fmt: skip
        hole = torch.from_numpy(hole)[None, None]
    if config.label is not None and not 0 <= config.label < model.network.classes:
        raise UserError(f"--label must lie between 0 and {model.network.classes - 1}.")
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


# === the lesson ends here; below: measured, plotted, reported =====================================

TITLE = "Inpainting: what is hidden, drawn"
SUMMARY = (
    "A diffusion model that has learnt to draw digits finishes them where a part is hidden, while the "
    "classical methods smear the rim of the hole into it."
)


def hole_psnr(filled: torch.Tensor, images: torch.Tensor, holes: torch.Tensor) -> float:
    """PSNR in dB over the hidden pixels of all images, uint8."""
    error = (unit(filled) - unit(images)).square() * holes
    return -10 * (error.sum() / (holes.sum() * images.shape[1])).log10().item()


def compare_fillings(
    config: Config,
    model: Model,
    evaluator: DigitCNN,
    reader: DigitCNN,
    images: torch.Tensor,
    labels: torch.Tensor,
    result: Result,
) -> None:
    """A table and a picture per kind of hole, and several fillings of one.

    The `evaluator` is a classifier that reads the filled images, the `reader` one that reads what the
    holes leave to be seen.
    """
    n = len(images)

    def kept(filled: torch.Tensor) -> float:
        return accuracy(evaluator, filled, labels)

    for kind in MASKS:
        holes = make_holes(kind, n, model.shape, config.seed).to(images.device)
        ways = classical_fillings(images, holes)
        best_classical = max(kept(filled) for filled in ways.values())
        read = predict(reader, images * ~holes).argmax(dim=1)
        classes: dict[str, torch.Tensor | None] = {"diffusion": read}
        if kind == "half":
            tried = guess_class(model, images, holes, config.guess_steps, config.seed)
            classes["diffusion, class by trial"] = tried
            classes["diffusion, no class"] = None
            classes["diffusion, told the class"] = labels
            result.add_share("half: class found by trial", (tried == labels).float().mean().item(), n,
                             better="higher")  # fmt: skip
        for name, known in classes.items():
            ways[name] = inpaint(model, images, holes, config, known, config.seed)
        shares = {name: share_cell(kept(x), n) for name, x in ways.items()}
        rows = [[name, hole_psnr(x, images, holes), shares[name]] for name, x in ways.items()]
        rows.append(["nothing hidden", "", share_cell(kept(images), n)])
        columns = ["", "PSNR of the hole (dB)", "class kept"]
        result.add_table(f"Hole: {kind}, n = {n:,}", columns, rows)
        result.add_share(f"{kind}: class kept by diffusion", kept(ways["diffusion"]), n,
                         better="higher")  # fmt: skip
        if kind == "half":
            result.add_share("half: class kept, told it", kept(ways["diffusion, told the class"]), n,
                             better="higher")  # fmt: skip
        result.add_share(f"{kind}: class kept by the best other", best_classical, n)
        right = (read == labels).float().mean().item()
        result.add_share(f"{kind}: class read from what is seen", right, n, better="higher")
        caption = f"Hidden: {kind}. What was there, what is left of it, and fillings."
        result.add_figure(f"{kind}.png", plot_fillings(images, holes, ways), caption)
        if kind == "half":
            few, hole = images[:10], holes[:10]
            draws = {f"draw {k + 1}": inpaint(model, few, hole, config, seed=config.seed + 1 + k)
                     for k in range(5)}  # fmt: skip
            caption = (
                "Five fillings of each, with no class. They differ where the half leaves a choice."
            )
            result.add_figure("several.png", plot_fillings(few, hole, draws), caption)


def plot_fillings(
    images: torch.Tensor, holes: torch.Tensor, ways: dict[str, torch.Tensor]
) -> Figure:
    """Ten images, the same with their holes in grey, and a row of fillings per method."""
    seen = torch.where(holes, torch.full_like(images, 128), images)
    rows = {"original": images, "seen": seen, **ways}
    return figures.plot_rows({name: x[:10] for name, x in rows.items()})


def lessons(result: Result) -> list[str]:
    """What the figures teach, as far as they were measured."""
    taught = []
    if kept := result.measured(
        "half: class kept by diffusion", "half: class kept by the best other"
    ):
        diffusion, other = kept
        taught.append(f"With half a digit hidden, {diffusion:.0%} of the fillings are read as their "
                      f"class; the best method that knows no digits keeps {other:.0%}.")  # fmt: skip
    found = result.measured("half: class kept, told it", "half: class read from what is seen",
                            "half: class found by trial")  # fmt: skip
    if found:
        given, read, tried = found
        taught.append(f"Where the true class is given, {given:.0%} are read as it. A classifier reads "
                      f"the class from the seen half in {read:.0%} of cases; the network's own trial of "
                      f"all ten classes finds it in {tried:.0%}.")  # fmt: skip
    return taught


def run(config: Config) -> Result:
    """Fill three kinds of holes in held-out images."""
    device = prepare(config.seed, config.device)
    config = config.if_quick(images=10, repaint_steps=6, jump=2, repeats=2, guess_steps=10)
    model, data = load_with_data(config, device)
    for steps in (config.repaint_steps, config.guess_steps):  # refused now, not after the trainings
        trailing_steps(len(model.schedule), steps)
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    evaluator = trained_classifier(data, config.output_dir, config.seed, config.quick)
    change = holes_in_all(data.shape, config.seed + 1, device)
    reader = trained_classifier(data, config.output_dir, config.seed, config.quick, "cnn_holes",
                                change, epochs=3)  # fmt: skip
    rows = random_subset(len(data.test_images), config.images, "images to restore").to(device)
    images, labels = data.test_images[rows], data.test_labels[rows]
    compare_fillings(config, model, evaluator, reader, images, labels, result)
    return result.save(*lessons(result))


def main() -> None:
    command_line(Config, run, __doc__, {"inpaint": (Inpaint, run_inpaint)})


if __name__ == "__main__":
    main()
