"""Restoring images with a diffusion model: noise, holes, missing resolution.

The network of studies/unet_diffusion.py was only ever asked to draw digits. Without another hour of
training it also takes noise out, because an image with noise of a known σ is a state of its own way
back and can enter there; and it fills holes, because the known pixels can be put into every state
(RePaint, Lugmayr et al. 2022). For super-resolution a second network is trained, which sees the small
picture beside the noise (SR3, Saharia et al. 2021).

    python -m studies.unet_diffusion                    # first: trains the network, ten minutes
    python -m studies.diffusion_restoration             # all three, measured on held-out images
    python -m studies.diffusion_restoration inpaint --image seven.png --mask half --output filled.png
    python -m studies.diffusion_restoration inpaint --image seven.png --mask hole.png --output filled.png

What to look at: `inpainting_half.png`, where the old methods smear what they see into the hole and the
model finishes the digit; `several.png`, where the seen half leaves a choice; in the table of the noise,
that the mean of all possible images (one step) measures better than any one of them (drawn).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F

from imagelab import figures
from imagelab.classifier import DigitCNN, predict, trained_classifier
from imagelab.datasets import Dataset, load_for, random_subset, signed, to_uint8, unit
from imagelab.diffusion import image_noise, last, repaint, way_back
from imagelab.metrics import mean_psnr, mean_ssim
from imagelab.pictures import open_picture, picture_format, write_picture
from imagelab.restoration import methods, restore_images
from imagelab.results import Result, start_result
from imagelab.runtime import UserError, command_line, generator, prepare
from imagelab.samples import write_samples
from imagelab.settings import Checked, Count, Limits
from studies import unet_diffusion
from studies.unet_diffusion import Model, Steps, load_model

SCRIPT = "diffusion_restoration"
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"
TITLE = "Restoring with diffusion: noise, holes, resolution"
SUMMARY = (
    "A model that has learnt what digits look like takes noise out of them, finishes them where a part "
    "is hidden, and, trained once more, draws them large from seven by seven pixels."
)
MASKS = ("box", "half", "strokes")


@dataclass(frozen=True)
class Config(unet_diffusion.NetworkSettings):
    """Settings of the restorations; those of the network are the super-resolution's."""

    epochs: Count = 1
    """Passes over the training images for the super-resolution network."""
    images: Count = 200
    """Held-out images on which each restoration is measured."""
    sigmas: tuple[Annotated[float, Limits(0.01, 5)], ...] = (0.1, 0.25, 0.5)
    """σ of the noise, for pixels in [0, 1]; it is not clipped, and known to every method."""
    steps: Steps = 20
    """Steps of the way back, for noise and super-resolution."""
    repaint_steps: Steps = 50
    """Steps of RePaint's way back."""
    jump: Count = 5
    """Steps that RePaint goes up again at a time."""
    repeats: Count = 5
    """How often RePaint walks each of those."""
    factor: Annotated[int, Limits(2, 8)] = 4
    """By how much super-resolution enlarges each side."""


@dataclass(frozen=True)
class Inpaint(Checked):
    """Fill the hole in a picture of your own, with the network that unet_diffusion has trained."""

    image: Path
    """The picture; it is scaled to the size that the network draws."""
    output: Path
    """Where to write the result; the suffix (.png, .jpg, .webp, ...) decides the format."""
    mask: str = "half"
    """box, half, strokes, or a picture of the hole: white is filled, black is kept."""
    label: int | None = None
    """The class, by number, if it is known."""
    samples: Annotated[int, Limits(1, 100)] = 4
    """How many ways of filling it to draw, side by side."""
    model: Path = Path(unet_diffusion.MODELS) / "unet.pth"
    """The checkpoint of unet_diffusion."""
    seed: Annotated[int, Limits(0, 2**31 - 1)] = 0
    """Seed of the random draws."""
    device: str = "auto"
    """auto (the accelerator if there is one, else the CPU), cpu, cuda, cuda:1, mps, ..."""
    debug: bool = False
    """Show the traceback of an error."""


# --- noise ----------------------------------------------------------------------------------------


def denoise(model: Model, noisy: torch.Tensor, sigma: float, steps: int, seed: int):
    """Images (N, C, H, W) with noise of `sigma`, pixels in [0, 1], two ways: one step, and drawn.

    One step is the network's own estimate, the mean of all images that may be behind the noise; drawn
    is one of them.
    """
    schedule = model.schedule.until(2 * sigma)  # the network's pixels lie in [-1, 1]
    t = len(schedule) - 1
    x = schedule.alpha_bar[t].sqrt().float() * (2 * noisy - 1)
    estimate = model.of_classes(torch.zeros(len(x), dtype=torch.long, device=x.device), guidance=0)
    noise = image_noise(seed, 0, len(x), model.shape, x.device)
    drawn = last(way_back("ddpm", schedule, estimate, min(steps, t + 1), 1.0, noise, x))
    return (estimate(x, t) + 1) / 2, (drawn + 1) / 2


def compare_denoisers(config: Config, model: Model, clean: torch.Tensor, result: Result) -> None:
    """Tables of every method by σ, and a picture."""
    rng = generator(config.seed, "noise to restore", clean.device)
    n = len(clean)
    for sigma in config.sigmas:
        noisy = clean + sigma * torch.randn(clean.shape, generator=rng, device=clean.device)
        ways = {"noisy": noisy.clamp(0, 1)}
        for name, method in methods(clean.device).items():
            name = "learned on photographs" if name == "learned" else name
            ways[name] = restore_images(method, noisy, sigma).to(clean.device)
        one, drawn = denoise(model, noisy, sigma, config.steps, config.seed)
        ways |= {"diffusion, one step": one, "diffusion, drawn": drawn}
        rows = [[name, mean_psnr(x, clean), mean_ssim(x, clean)] for name, x in ways.items()]
        result.add_table(f"Noise of σ = {sigma:g}, n = {n:,}", ["", "PSNR (dB)", "SSIM"], rows)
        result.add_metric(f"noise, σ = {sigma:g}: diffusion, one step", rows[-2][1], n, unit="dB",
                          better="higher")  # fmt: skip
        classical = max(row[1] for row in rows[1:-3])
        result.add_metric(f"σ = {sigma:g}: one step less the best classical method",
                          rows[-2][1] - classical, n, unit="dB", better="higher")  # fmt: skip
    shown = ("noisy", "non-local means", "learned on photographs", "diffusion, one step",
             "diffusion, drawn")  # fmt: skip
    rows = {"clean": clean} | {name: ways[name] for name in shown}
    path = result.add_file("denoising.png", f"Noise of σ = {sigma:g} and ways out of it.")
    figures.named_rows(path, {name: as_bytes(x[:10]) for name, x in rows.items()})


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
    config: Config,
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


def hole_psnr(filled: torch.Tensor, images: torch.Tensor, holes: torch.Tensor) -> float:
    """PSNR in dB over the hidden pixels of all images, uint8."""
    error = (unit(filled) - unit(images)).square() * holes
    return -10 * (error.sum() / (holes.sum() * images.shape[1])).log10().item()


def compare_fillings(
    config: Config,
    model: Model,
    classifier: DigitCNN,
    images: torch.Tensor,
    labels: torch.Tensor,
    result: Result,
) -> None:
    """A table and a picture per kind of hole; several fillings of one."""
    n = len(images)

    def kept(filled: torch.Tensor) -> float:
        return (predict(classifier, filled).argmax(dim=1) == labels).float().mean().item()

    for kind in MASKS:
        holes = make_holes(kind, n, model.shape, config.seed).to(images.device)
        ways = old_fillings(images, holes)
        best_old = max(kept(filled) for filled in ways.values())
        ways["diffusion"] = inpaint(model, images, holes, config, seed=config.seed)
        if kind == "half":
            told = inpaint(model, images, holes, config, labels, config.seed)
            ways["diffusion, told the class"] = told
        rows = [[name, hole_psnr(x, images, holes), kept(x)] for name, x in ways.items()]
        rows.append(["nothing hidden", float("inf"), kept(images)])
        result.add_table(
            f"Hole: {kind}, n = {n:,}", ["", "PSNR of the hole (dB)", "class kept"], rows
        )
        result.add_metric(f"{kind}: class kept by diffusion", kept(ways["diffusion"]), n,
                          better="higher")  # fmt: skip
        result.add_metric(f"{kind}: class kept by the best other", best_old, n)
        holed = torch.where(holes, torch.full_like(images, 128), images)
        path = result.add_file(f"inpainting_{kind}.png", f"Hidden: {kind}. What was there, what is "
                               "left of it, and fillings.")  # fmt: skip
        rows = {"original": images, "seen": holed, **ways}
        figures.named_rows(path, {name: x[:10] for name, x in rows.items()})
        if kind == "half":
            few, hole = images[:10], holes[:10]
            draws = {f"draw {k + 1}": inpaint(model, few, hole, config, seed=config.seed + 1 + k)
                     for k in range(5)}  # fmt: skip
            path = result.add_file("several.png", "Five fillings of each: where the seen half leaves "
                                   "a choice, they differ.")  # fmt: skip
            figures.named_rows(path, {"original": few, "seen": holed[:10], **draws})


# --- resolution -----------------------------------------------------------------------------------


def shrink(x: torch.Tensor, factor: int) -> torch.Tensor:
    """(B, C, H, W) to (B, C, H/factor, W/factor): means of squares of pixels."""
    return F.avg_pool2d(x, factor)


def enlarge(small: torch.Tensor, factor: int) -> torch.Tensor:
    """Bicubic, to `factor` times the sides."""
    return F.interpolate(small, scale_factor=factor, mode="bicubic", align_corners=False)


def train_enlarger(config: Config, data: Dataset) -> Model:
    """A U-Net that sees, beside the noise, the small picture enlarged; or the one of the checkpoint."""
    path = config.output_dir / MODELS / "super_resolution.pth"
    if config.sample_only:
        return load_model(path, data.images.device, SCRIPT, beside=data.shape[0])

    def tell(x0: torch.Tensor, _batch, _rng) -> dict[str, torch.Tensor]:
        return {"beside": enlarge(shrink(x0, config.factor), config.factor)}

    return unet_diffusion.train(config, data, path, tell=tell, script=SCRIPT, beside=data.shape[0])[
        1
    ]


def super_resolve(
    model: Model, small: torch.Tensor, factor: int, steps: int, seed: int
) -> torch.Tensor:
    """Small pictures (N, C, h, w) in [-1, 1] to large ones, drawn."""
    large = []
    for first in range(0, len(small), unet_diffusion.PORTION):
        beside = enlarge(small[first : first + unet_diffusion.PORTION], factor)
        noise = image_noise(seed, first, len(beside), model.shape, small.device)
        estimate = model.given({"beside": beside})
        large.append(last(way_back("dpm-solver", model.schedule, estimate, steps, 0, noise)))
    return torch.cat(large)


def compare_enlargements(
    config: Config,
    model: Model,
    classifier: DigitCNN,
    images: torch.Tensor,
    labels: torch.Tensor,
    result: Result,
) -> torch.Tensor:
    """The table and the picture; returns the drawn images, uint8."""
    clean = unit(images)
    small = shrink(2 * clean - 1, config.factor)
    draws = [
        super_resolve(model, small, config.factor, config.steps, config.seed + k).clamp(-1, 1)
        for k in range(8)
    ]
    ways = {
        "nearest": F.interpolate(small, scale_factor=config.factor),
        "bicubic": enlarge(small, config.factor).clamp(-1, 1),
        "diffusion, drawn": draws[0],
        "diffusion, mean of 8": torch.stack(draws).mean(0),
    }
    rows, n = [], len(images)
    for name, x in ways.items():
        read = predict(classifier, (x + 1) / 2).argmax(dim=1)
        back = (shrink(x, config.factor) - small).square().mean().sqrt().item() / 2
        rows.append([name, mean_psnr((x + 1) / 2, clean), mean_ssim((x + 1) / 2, clean),
                     (read == labels).float().mean().item(), back])  # fmt: skip
    side = model.shape[1]
    caption = f"{side // config.factor}×{side // config.factor} to {side}×{side} pixels, n = {n:,}"
    columns = ["", "PSNR (dB)", "SSIM", "read as its class", "error when shrunk again (RMS)"]
    result.add_table(caption, columns, rows)
    gain, lead = rows[2][1] - rows[1][1], rows[2][3] - rows[1][3]
    result.add_metric("super-resolution: PSNR less bicubic's", gain, n, unit="dB", better="higher")
    result.add_metric("super-resolution: read as its class", rows[2][3], n, better="higher")
    result.add_metric("super-resolution: accuracy less bicubic's", lead, n, better="higher")
    path = result.add_file("super_resolution.png", f"{caption[: caption.index(',')]}: what is given "
                           "(nearest), and ways to enlarge it.")  # fmt: skip
    shown = {"original": images} | {name: as_bytes((x + 1) / 2) for name, x in ways.items()}
    figures.named_rows(path, {name: x[:10] for name, x in shown.items()})
    return as_bytes((draws[0] + 1) / 2)


def as_bytes(x: torch.Tensor) -> torch.Tensor:
    """[0, 1] to uint8."""
    return x.clamp(0, 1).mul(255).round().byte()


# --- the runs -------------------------------------------------------------------------------------


def run(config: Config) -> Result:
    """All three restorations, on held-out images."""
    device = prepare(config.seed, config.device)
    config = config.quickened(
        images=20, sigmas=(0.25,), steps=5, repaint_steps=10, jump=5, repeats=2, widths=(16, 32)
    )
    model = load_model(unet_diffusion.checkpoint_path(config), device)
    data = load_for(config, device)
    if model.shape != data.shape or model.network.classes != len(data.classes):
        raise UserError(
            f"The network draws {model.shape} images of {model.network.classes} classes; those of "
            f"{data.name} are {data.shape} of {len(data.classes)}: train studies.unet_diffusion on it."
        )
    if any(side % config.factor for side in data.shape[1:]):
        raise UserError(f"--factor must divide the images' sides, {data.shape[1:]}.")
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    classifier = trained_classifier(data, config.output_dir, config.seed, config.quick)
    rows = random_subset(len(data.test_images), config.images, "images to restore").to(device)
    images, labels = data.test_images[rows], data.test_labels[rows]
    compare_fillings(config, model, classifier, images, labels, result)
    compare_denoisers(config, model, unit(images), result)
    enlarger = train_enlarger(config, data)
    drawn = compare_enlargements(config, enlarger, classifier, images, labels, result)
    write_samples(config.samples_file, drawn)
    return result.save()


def run_inpaint(config: Inpaint) -> None:
    """Read picture and hole, fill, write."""
    from PIL import Image

    device = prepare(config.seed, config.device)
    picture_format(config.output)  # before the work, not after it
    model = load_model(config.model, device)
    channels, height, width = model.shape
    picture = open_picture(config.image).convert("L" if channels == 1 else "RGB")
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    image = torch.from_numpy(np.array(picture)).reshape(height, width, channels).permute(2, 0, 1)
    if config.mask in MASKS:
        hole = make_holes(config.mask, 1, model.shape, config.seed)
    else:
        mask = open_picture(Path(config.mask)).convert("L").resize((width, height))
        hole = torch.from_numpy(np.array(mask) > 127)[None, None]
    if config.label is not None and not 0 <= config.label < model.network.classes:
        raise UserError(f"--label must lie between 0 and {model.network.classes - 1}.")
    images = image[None].to(device).expand(config.samples, -1, -1, -1)
    holes = hole.to(device).expand(config.samples, -1, -1, -1)
    labels = None
    if config.label is not None:
        labels = torch.full((config.samples,), config.label, device=device)
    filled = inpaint(model, images, holes, Config(), labels, config.seed)
    write_picture(config.output, figures.grid(filled, columns=config.samples, scale=4))
    print(f"Written: {config.output}")


def main() -> None:
    command_line(Config, run, __doc__, {"inpaint": (Inpaint, run_inpaint)})


if __name__ == "__main__":
    main()
