"""Inpainting: filling holes with a model that was only ever asked to draw (RePaint).

A diffusion model fills a hole without any further training, because the known pixels, with as much
noise as belongs there, can be put into every state on the way back (Lugmayr et al. 2022). Left alone,
the network of studies/unet_diffusion.py finishes half a digit as any digit; told which one it is, as
the right one. Two ways to find out are compared: a small classifier that has learnt to read with holes,
and the network itself, which tries all ten and keeps the one that makes the seen part most plausible
(Li et al. 2023).

    python -m studies.unet_diffusion                    # first: trains the network
    python -m studies.inpainting                        # measured on held-out images
    python -m studies.inpainting inpaint --image seven.png --mask half --output filled.png
    python -m studies.inpainting inpaint --image seven.png --mask hole.png --output filled.png

What to look at: `half.png`, where the old methods smear what they see into the hole and the model
finishes the digit; `several.png`, where the seen half leaves a choice.
"""

from __future__ import annotations

from imagelab.setup.command import command_line

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch

from imagelab.data.datasets import random_subset, signed, to_uint8, unit
from imagelab.data.pictures import open_picture, picture_format, write_picture
from imagelab.report import figures
from imagelab.report.results import Result, share_cell, start_result
from imagelab.setup.runtime import UserError, prepare
from imagelab.setup.settings import Checked, Common, Count, DataSettings, Limits
from imagelab.techniques.classifier import Change, DigitCNN, accuracy, predict, trained_classifier
from imagelab.techniques.diffusion import image_noise, repaint, trailing_steps
from studies import unet_diffusion
from studies.unet_diffusion import Model, Steps, load_model, load_with_data

SCRIPT = "inpainting"
PICTURES = f"study_images/{SCRIPT}"
TITLE = "Inpainting: what is hidden, drawn"
SUMMARY = (
    "A diffusion model that has learnt to draw digits finishes them where a part is hidden, while the "
    "old methods smear the rim of the hole into it."
)
LESSONS = (
    "With half a digit hidden, the fillings are read as their class in {half: class kept by "
    "diffusion|.0%}; the best method that knows no digits keeps {half: class kept by the best "
    "other|.0%}.",
    "Told the class, they are read as it in {half: class kept, told it|.0%}. From the seen half a "
    "classifier reads it in {half: class read from what is seen|.0%}, the network's own trial of all "
    "ten classes finds it in {half: class found by trial|.0%}.",
)
MASKS = ("box", "half", "strokes")


@dataclass(frozen=True)
class RePaint(Checked):
    """How RePaint walks."""

    repaint_steps: Steps = 50
    """Steps of the way back."""
    jump: Count = 5
    """Steps that RePaint goes up again at a time."""
    repeats: Count = 5
    """How often it walks each of those."""
    guess_steps: Steps = 20
    """Steps of the hurried fillings, one per class, from which the class is guessed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.repeats > 1 and 2 * self.jump > self.repaint_steps:
            raise UserError(f"--jump {self.jump} is more than half of --repaint-steps "
                            f"{self.repaint_steps}: there would be no jump.")  # fmt: skip


@dataclass(frozen=True)
class Config(RePaint, DataSettings):
    """Settings of the inpainting, for which two classifiers are trained: judge and reader."""

    images: Count = 200
    """Held-out images that are filled."""


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


# --- holes ----------------------------------------------------------------------------------------


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
    """What blackens a hole in each image (B, C, H, W), one of 1,000 of each kind."""
    holes = torch.cat([make_holes(kind, 1000, shape, seed) for kind in MASKS]).to(device)

    def change(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(holes), (len(images),), generator=rng, device=device)
        return images * ~holes[chosen]

    return change


def old_fillings(images: torch.Tensor, holes: torch.Tensor) -> dict[str, torch.Tensor]:
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


def inpaint(
    model: Model,
    images: torch.Tensor,
    holes: torch.Tensor,
    config: RePaint,
    labels: torch.Tensor | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """Images (N, C, H, W) uint8 with their holes drawn anew; `labels` (N,) tell the class."""
    filled = []
    for first in range(0, len(images), unet_diffusion.PORTION):
        rows = slice(first, first + unet_diffusion.PORTION)
        known, hole = signed(images[rows]), holes[rows].to(images.device)
        told = torch.zeros(len(known), dtype=torch.long, device=known.device)
        told = told if labels is None else labels[rows]
        estimate = model.of_classes(told, guidance=0 if labels is None else 1)
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

    Each class fills the hole in a hurry; then noise is laid on the result, and the class counts whose
    estimate finds the seen pixels again best, over many amounts of noise (Li et al. 2023).
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
            estimate = model.of_classes(torch.full((len(known),), label, device=known.device))
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


def hole_psnr(filled: torch.Tensor, images: torch.Tensor, holes: torch.Tensor) -> float:
    """PSNR in dB over the hidden pixels of all images, uint8."""
    error = (unit(filled) - unit(images)).square() * holes
    return -10 * (error.sum() / (holes.sum() * images.shape[1])).log10().item()


def compare_fillings(
    config: Config,
    model: Model,
    judge: DigitCNN,
    reader: DigitCNN,
    images: torch.Tensor,
    labels: torch.Tensor,
    result: Result,
) -> None:
    """A table and a picture per kind of hole; several fillings of one.

    The `judge` reads what was filled, the `reader` what the holes leave to be seen.
    """
    n = len(images)

    def kept(filled: torch.Tensor) -> float:
        return accuracy(judge, filled, labels)

    for kind in MASKS:
        holes = make_holes(kind, n, model.shape, config.seed).to(images.device)
        ways = old_fillings(images, holes)
        best_old = max(kept(filled) for filled in ways.values())
        read = predict(reader, images * ~holes).argmax(dim=1)
        classes = {"diffusion": read}
        if kind == "half":
            tried = guess_class(model, images, holes, config.guess_steps, config.seed)
            classes["diffusion, class by trial"] = tried
            classes["diffusion, no class"] = None
            classes["diffusion, told the class"] = labels
            result.add_share("half: class found by trial", (tried == labels).float().mean(), n,
                             better="higher")  # fmt: skip
        for name, told in classes.items():
            ways[name] = inpaint(model, images, holes, config, told, config.seed)
        shares = {name: share_cell(kept(x), n) for name, x in ways.items()}
        rows = [[name, hole_psnr(x, images, holes), shares[name]] for name, x in ways.items()]
        rows.append(["nothing hidden", "", share_cell(kept(images), n)])
        result.add_table(
            f"Hole: {kind}, n = {n:,}", ["", "PSNR of the hole (dB)", "class kept"], rows
        )
        result.add_share(f"{kind}: class kept by diffusion", kept(ways["diffusion"]), n,
                         better="higher")  # fmt: skip
        if kind == "half":
            result.add_share("half: class kept, told it", kept(ways["diffusion, told the class"]), n,
                             better="higher")  # fmt: skip
        result.add_share(f"{kind}: class kept by the best other", best_old, n)
        right = (read == labels).float().mean()
        result.add_share(f"{kind}: class read from what is seen", right, n, better="higher")
        holed = torch.where(holes, torch.full_like(images, 128), images)
        path = result.add_file(f"{kind}.png", f"Hidden: {kind}. What was there, what is "
                               "left of it, and fillings.")  # fmt: skip
        rows = {"original": images, "seen": holed, **ways}
        figures.named_rows(path, {name: x[:10] for name, x in rows.items()})
        if kind == "half":
            few, hole = images[:10], holes[:10]
            draws = {f"draw {k + 1}": inpaint(model, few, hole, config, seed=config.seed + 1 + k)
                     for k in range(5)}  # fmt: skip
            path = result.add_file("several.png", "Five fillings of each with no class: where the "
                                   "seen half leaves a choice, they differ.")  # fmt: skip
            figures.named_rows(path, {"original": few, "seen": holed[:10], **draws})


# --- the runs -------------------------------------------------------------------------------------


def run(config: Config) -> Result:
    """Fill three kinds of holes in held-out images."""
    device = prepare(config.seed, config.device)
    config = config.quickened(images=10, repaint_steps=6, jump=2, repeats=2, guess_steps=10)
    model, data = load_with_data(config, device)
    for steps in (config.repaint_steps, config.guess_steps):  # refused now, not after the trainings
        trailing_steps(len(model.schedule), steps)
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    judge = trained_classifier(data, config.output_dir, config.seed, config.quick)
    change = holes_in_all(data.shape, config.seed + 1, device)
    reader = trained_classifier(data, config.output_dir, config.seed, config.quick, "cnn_holes",
                                change, epochs=3)  # fmt: skip
    rows = random_subset(len(data.test_images), config.images, "images to restore").to(device)
    images, labels = data.test_images[rows], data.test_labels[rows]
    compare_fillings(config, model, judge, reader, images, labels, result)
    return result.save(*LESSONS)


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


def main() -> None:
    command_line(Config, run, __doc__, {"inpaint": (Inpaint, run_inpaint)})


if __name__ == "__main__":
    main()
