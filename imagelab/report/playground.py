"""The playground of `report.html`: what its JavaScript needs of the run, packed into the page.

Networks come from the run's own checkpoints and pictures from its folders; no script is imported. A
panel appears where its demo was run and left what the panel needs. `playground.js` does the rest.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imagelab.data.datasets import EMBEDDED, Dataset, load_dataset, unit
from imagelab.data.downloads import IDX_MD5
from imagelab.data.pictures import data_url, read_png, webp
from imagelab.setup.runtime import UserError
from imagelab.techniques.classifier import SCRIPT as CLASSIFIER
from imagelab.techniques.classifier import checkpoint_path
from imagelab.techniques.diffusion import make_schedule, trailing_steps
from imagelab.training.checkpoints import load_checkpoint

SCRIPT = Path(__file__).with_name("playground.js")
STYLE = Path(__file__).with_name("playground.css")
UNET = Path(__file__).with_name("unet.js")  # runs in a Web Worker
SHAPE = [1, 28, 28]  # of the images that the panels are made for
RAW = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw"}  # where under --data-dir
READING, DRAWING = 10, 6  # bits of its fraction that a float16 keeps: logits need more than eyes
UNUSABLE = (UserError, OSError, LookupError, TypeError, ValueError, AttributeError, RuntimeError)
DIGITS_A_CLASS, POINTS, DIRECTIONS, LONGEST, CROP = 3, 300, 4, 1000, 192
STEPS = 20  # of the U-Net's sampling
TITLES = {"literal": "The recipe to the letter", "corrected": "The corrected recipe"}
FILTERS = {
    "Gaussian blur": "blur, width by σ",
    "learned": "learned network",
}  # and others by their names


@dataclass
class Panel:
    """One tab: what it is, in two sentences, what to try first, and the demo that it belongs to."""

    name: str
    title: str
    about: str
    first: str
    demo: str
    data: dict[str, Any]


@dataclass
class Playground:
    """All that the page holds of it: panels, the networks they name, in base64, the worker's script."""

    panels: list[Panel] = field(default_factory=list)
    networks: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, list] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    reader: str | None = None
    worker: str = ""

    def add_network(self, name: str, weights: dict[str, torch.Tensor], bits: int) -> str:
        """Pack a network under that name, which is returned."""
        self.tensors[name] = [[key, list(value.shape)] for key, value in weights.items()]
        self.networks[name] = packed(weights.values(), bits)
        return name

    def json(self) -> str:
        """What stands in a <script> of the page: no '<' can end it."""
        data = {
            "classes": self.classes,
            "reader": self.reader,
            "tensors": self.tensors,
            "panels": {panel.name: panel.data for panel in self.panels},
        }
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")

    def size(self) -> int:
        """Bytes of the page that it takes, its script and style included."""
        files = sum(path.stat().st_size for path in (SCRIPT, STYLE))
        texts = [self.json(), self.worker, *self.networks.values()]
        return files + sum(len(text.encode()) for text in texts)


def collect(root: Path, results: dict[str, tuple[Path, dict]]) -> Playground | None:
    """The playground of the demos in `results`, each with its folder and record; None without panels.

    What is missing, damaged, or of images of another shape than the page can draw leaves its panel out.
    """
    play = Playground()
    for build in (attack, gan, diffusion, ask, vae, noise):
        with contextlib.suppress(*UNUSABLE):
            play.panels.append(build(play, root, results))
    return play if play.panels else None


# --- packing --------------------------------------------------------------------------------------


def rounded(tensor: torch.Tensor, bits: int) -> np.ndarray:
    """Values as float16 with `bits` (1 to 10) of its 10 bits of fraction, to the nearest."""
    half = tensor.detach().float().clamp(-65_504, 65_504).cpu().numpy().astype(np.float16)
    drop = 10 - bits
    if drop == 0:
        return half
    whole = half.view(np.uint16).astype(np.uint32)
    whole = (whole + (1 << (drop - 1))) >> drop << drop  # a carry into the exponent is right
    whole = np.where(whole & 0x7C00 == 0x7C00, half.view(np.uint16), whole)  # not to infinity
    return whole.astype(np.uint16).view(np.float16)


def packed(tensors, bits: int) -> str:
    """One after the other as float16, low bytes before high bytes, deflated, in base64."""
    halves = np.concatenate([rounded(tensor, bits).ravel() for tensor in tensors])
    planes = halves.view(np.uint8).reshape(-1, 2).T
    return base64.b64encode(zlib.compress(planes.tobytes(), 6)).decode()


def unpacked(text: str) -> np.ndarray:
    """The numbers that `packed` was given, (N,) float16: what the page's script does."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(2, -1)
    return np.ascontiguousarray(planes.T).view(np.float16).ravel()


def greys(images: torch.Tensor) -> str:
    """uint8 images in base64."""
    return base64.b64encode(images.contiguous().numpy().tobytes()).decode()


# --- what the panels are made of ------------------------------------------------------------------


def held_out(record: dict) -> Dataset | None:
    """The run's data, if they are greys of SHAPE and can be had without a download."""
    described = record["dataset"] or {}
    name, folder = described.get("name", ""), Path(record["config"].get("data_dir", "data"))
    there = name == EMBEDDED or (
        name in RAW and all((folder / RAW[name] / file).is_file() for file in IDX_MD5[name])
    )
    return load_dataset(name, folder) if there and described.get("shape") == SHAPE else None


def run_of(results: dict, demo: str) -> tuple[dict, Dataset]:
    """The record of a demo and its data; raises LookupError where one of them cannot be had."""
    record = results[demo][1]
    data = held_out(record)
    if data is None:
        raise LookupError(f"{demo}: its data")
    return record, data


def add_reader(play: Playground, root: Path, record: dict, data: Dataset) -> str | None:
    """The name of the run's classifier, packed at its first use; None where there is none."""
    if play.reader is None:
        path = checkpoint_path(root, data, bool(record["config"].get("quick")))
        with contextlib.suppress(UserError):
            weights = load_checkpoint(path, CLASSIFIER)["model"]["classifier"]
            play.reader = play.add_network("reader", weights, READING)
            play.classes = data.classes
    return play.reader


def trained_on(saved: dict, record: dict) -> dict:
    """The checkpoint itself; raises KeyError if it is of other data than the record's."""
    if saved["dataset"].get("name") != (record["dataset"] or {}).get("name"):
        raise KeyError("dataset")
    return saved


def noun(data: Dataset) -> str:
    return "digit" if all(name.isdigit() for name in data.classes) else "picture"


# --- the panels -----------------------------------------------------------------------------------


def attack(play: Playground, root: Path, results: dict) -> Panel:
    """Attack a digit: the run's classifier, beside it the one that was trained on attacks."""
    demo = "fgsm" if "fgsm" in results else "adversarial_training"
    record, data = run_of(results, demo)
    readers = []
    if add_reader(play, root, record, data):
        readers.append({"network": play.reader, "name": "Trained as usual"})
    if "adversarial_training" in results:
        record = results["adversarial_training"][1]
        folder = root / "study_models" / "adversarial_training"
        wanted = [] if readers else [("ordinary", "Trained as usual")]
        for method, title in [*wanted, ("pgd", "Trained on attacks")]:
            with contextlib.suppress(UserError):
                saved = load_checkpoint(folder / f"{method}.pth", "adversarial_training")
                weights = trained_on(saved, record)["model"]["classifier"]
                if saved["config"].get("network", "plain") != "plain":
                    continue  # the page computes the plain network's layers only
                name = play.add_network(method, weights, READING)
                readers.append({"network": name, "name": title})
    if not readers:
        raise LookupError("no classifier")
    if len(readers) == 1:  # nothing to tell it from
        readers[0]["name"] = "What the network reads"
    play.reader, play.classes = play.reader or readers[0]["network"], data.classes
    chosen = torch.cat(
        [
            (data.test_labels == label).nonzero().flatten()[:DIGITS_A_CLASS]
            for label in range(len(data.classes))
        ]
    )
    what, labels = noun(data), data.test_labels[chosen].tolist()
    return Panel(
        "attack",
        f"Attack a {what}",
        f"Draw a {what} or choose one: the network that this run trained reads it, and the bars are "
        "its ten probabilities. Then every pixel changes by at most ε, in the direction that the "
        "network's own gradient names, until it reads something else.",
        f"choose a held-out {what} and press “Find an ε that flips it”. At the ε that FGSM needs, noise "
        "leaves nearly every reading as it was, though it changes every pixel by as much.",
        demo,
        {
            "readers": readers,
            "noun": what,
            "digits": {"images": greys(data.test_images[chosen]), "labels": labels},
        },
    )


def gan(play: Playground, root: Path, results: dict) -> Panel:
    """Walk the GAN's latents: its generator, and the directions in which its first layer moves most."""
    record, data = run_of(results, "gan_mnist")
    saved = trained_on(load_checkpoint(root / "GAN_models/mlp_gan.pth", "gan_mnist"), record)
    weights = saved["ema"] or saved["model"]["generator"]
    add_reader(play, root, record, data)
    # The closed form of Shen and Zhou (2021): right singular vectors of the first layer.
    _, _, directions = torch.linalg.svd(weights["layers.0.weight"].float(), full_matrices=False)
    size = directions.shape[1]
    return Panel(
        "gan",
        "Walk the GAN's latents",
        f"Each picture is drawn from {size} random numbers, its latent, by the generator that this run "
        "trained. Under it stands what the classifier reads. A latent between two latents gives a "
        "picture between their two pictures.",
        "choose two samples that differ and drag the blend from A to B.",
        "gan_mnist",
        {
            "network": play.add_network("generator", weights, DRAWING),
            "latent": size,
            "directions": directions[:DIRECTIONS].round(decimals=4).tolist(),
        },
    )


def diffusion(play: Playground, root: Path, results: dict) -> Panel:
    """Watch diffusion: the recipe that was run, and the literal one if it was trained beside it."""
    record, data = run_of(results, "mlp_diffusion")
    folder = root / "diffusion_models"
    recipes = [recipe(play, folder / "fast_mlp_diffusion.pth", record)]
    other = "corrected" if recipes[0]["name"] == "literal" else "literal"
    if record["config"].get("compare"):
        with contextlib.suppress(UserError, KeyError):
            recipes.append(recipe(play, folder / f"compared_{other}.pth", record))
    add_reader(play, root, record, data)
    steps = len(recipes[0]["alphaBar"])
    beside = f" {recipes[-1]['title']} starts from the same noise." * (len(recipes) > 1)
    return Panel(
        "diffusion",
        "Watch diffusion",
        f"The network starts from noise and removes a little of it in each of {steps} steps. xₜ is the "
        "picture at that moment, x̂₀ the clean picture that the network expects then." + beside,
        "press play, then look along the row of small pictures. Where the reading below them stops "
        "changing, the picture was decided; choose a small picture to go there.",
        "mlp_diffusion",
        {"recipes": recipes},
    )


def recipe(play: Playground, path: Path, record: dict) -> dict:
    """A recipe by its checkpoint. Raises KeyError where that does not say how to sample from it."""
    saved = trained_on(load_checkpoint(path, "mlp_diffusion"), record)
    facts, config = saved["extra"], saved["config"]
    predicts_x0 = bool(facts["predicts_x0"])
    bound = "tanh" if facts["tanh"] else "clip" if config.get("keep_in_range") == "clip" else ""
    return recipe_of(
        play,
        config["recipe"],
        saved["ema"] or saved["model"]["denoiser"],
        facts["alpha_bar"].tolist(),
        "x0" if predicts_x0 else "eps",
        bound if predicts_x0 else "",
    )


def recipe_of(
    play: Playground, name: str, weights: dict, alpha_bar: list[float], predicts: str, bound: str
) -> dict:
    """A recipe by plain facts: ᾱ_t for t = 0 … T − 1, what the network says ("x0" or "eps"), and what
    keeps x̂₀ in [-1, 1]: "tanh" at the network's end, "clip", or nothing."""
    if len(alpha_bar) > LONGEST:
        raise KeyError("alpha_bar")
    pixels = weights["mlp.4.bias"].numel()
    table = time_embedding(len(alpha_bar), weights["mlp.0.weight"].shape[1] - pixels)
    network = play.add_network(f"denoiser-{name}", {**weights, "embedding": table}, DRAWING)
    return {
        "name": name,
        "title": TITLES.get(name, f"The recipe “{name}”"),
        "network": network,
        "alphaBar": alpha_bar,
        "predicts": predicts,
        "bound": bound,
    }


def time_embedding(T: int, size: int) -> torch.Tensor:
    """Sines and cosines of t, (T, size), as mlp_diffusion.py has them."""
    frequency = torch.exp(-math.log(10 * T) * torch.arange(size // 2) / (size // 2))
    angle = torch.arange(T)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def ask(play: Playground, root: Path, results: dict) -> Panel:
    """Ask for a digit: the U-Net that is told the class, and ᾱ at the steps of its sampling."""
    record, data = run_of(results, "unet_diffusion")
    path = root / "study_models/unet_diffusion/unet.pth"
    saved = trained_on(load_checkpoint(path, "unet_diffusion"), record)
    config, weights = saved["config"], saved["ema"] or saved["model"]["unet"]
    if config["attention"]:
        raise LookupError("unet.js has no attention")
    if config.get("pool") == "max" or config.get("variance") == "learned":
        raise LookupError("unet.js has neither max-pooling nor a learned variance")
    schedule = make_schedule(config["schedule"], config["T"])
    times = trailing_steps(config["T"], min(STEPS, config["T"]))
    add_reader(play, root, record, data)
    play.classes, play.worker = data.classes, UNET.read_text(encoding="utf-8")
    what, millions = noun(data), sum(value.numel() for value in weights.values()) / 1e6
    return Panel(
        "ask",
        f"Ask for a {what}",
        f"The U-Net that this run trained ({millions:.1f} million weights) draws the class that you "
        f"choose, from noise, in {len(times)} steps. Guidance strengthens the effect of the class. "
        "Brush over a part of the picture, and the U-Net draws that part again.",
        "draw a class with a guidance of 0, which ignores the class, and again with 1.5 from the same "
        "noise.",
        "unet_diffusion",
        {
            "network": play.add_network("unet", weights, DRAWING),
            "noun": what,
            "facts": {
                "levels": len(config["widths"]),
                "blocks": config["blocks"],
                "patchSize": config["patch_size"],
                "side": SHAPE[1],
            },
            "predicts": config["prediction"],
            "steps": [
                {"t": t / config["T"], "alphaBar": schedule.alpha_bar[t].item()} for t in times
            ],
        },
    )


def vae(play: Playground, root: Path, results: dict) -> Panel:
    """The VAE's plane: the decoder of two latent numbers, and where held-out images lie."""
    record, data = run_of(results, "vae")
    saved = trained_on(load_checkpoint(root / "study_models/vae/latent_2.pth", "vae"), record)
    weights = saved["model"]["vae"]
    add_reader(play, root, record, data)
    x, labels = data.test_images[:POINTS].flatten(1), data.test_labels[:POINTS]
    hidden = (2 * unit(x) - 1) @ weights["encoder.1.weight"].T + weights["encoder.1.bias"]
    encoded = hidden.relu() @ weights["encoder.3.weight"].T + weights["encoder.3.bias"]
    decoder = {k: value for k, value in weights.items() if k.startswith("decoder.")}
    play.classes = data.classes
    return Panel(
        "vae",
        "The VAE's plane",
        "Every point of this plane is a pair of numbers. The decoder that this run trained draws a "
        f"picture from it. The small marks show where the encoder puts held-out {noun(data)}s.",
        "move slowly from one class to another and watch one become the other.",
        "vae",
        {
            "network": play.add_network("decoder", decoder, DRAWING),
            "points": encoded[:, :2].round(decimals=2).tolist(),
            "labels": labels.tolist(),
        },
    )


def noise(play: Playground, root: Path, results: dict) -> Panel:
    """A noisy picture: the steps of diffusion_demo.py, and every step restored where it left that."""
    folder, record = results["diffusion_demo"]
    captions = {entry["path"]: entry["caption"] for entry in record["files"]}
    steps = [name for name in captions if re.fullmatch(r"step_\d+\.png", name)]
    if not steps:
        raise LookupError("no steps")
    pictures: dict[str, str | list[str]] = {}
    pictures["clean"] = shown(first_frame(folder / "whole_way.gif"), lossless=True)
    pictures["steps"] = [shown(read_png(folder / name), lossless=True) for name in steps]
    sigmas = [float(re.findall(r"σ = (\d+(?:\.\d+)?)", captions[name])[0]) for name in steps]
    restored: dict[str, list[str]] = {}
    for name in captions:
        found = re.fullmatch(r"restored_\d+_(.+)\.png", name)
        if found:
            picture = shown(read_png(folder / name), quality=80)
            method = found[1].replace("_", " ")
            restored.setdefault(FILTERS.get(method, method), []).append(picture)
    restored = {name: made for name, made in restored.items() if len(made) == len(steps)}
    whole = read_png(folder / steps[0])
    cropped = middle(whole).shape != whole.shape
    crop = (
        " Only the middle of the report's picture is shown, so its decibels differ a little."
        * cropped
    )
    return Panel(
        "noise",
        "A noisy picture",
        "Left: the picture with more and more Gaussian noise of σ. Right: the same after a filter. "
        f"PSNR, in decibels, says how close each is to the clean picture: higher is closer.{crop}",
        "at the last step, find the width of the blur with the highest PSNR; then go to the first step, "
        "where a smaller width is best." + " Then try the other filters." * bool(restored),
        "diffusion_demo",
        {**pictures, "sigmas": sigmas, "restored": restored},
    )


def shown(picture: np.ndarray, **how: Any) -> str:
    """The middle of a grey picture as a data URL."""
    return data_url(webp([middle(picture)], **how), "image/webp")


def middle(picture: np.ndarray) -> np.ndarray:
    """The middle of a grey picture, CROP pixels high and wide at most."""
    top, left = (max(length - CROP, 0) // 2 for length in picture.shape[:2])
    return picture[top : top + CROP, left : left + CROP]


def first_frame(path: Path) -> np.ndarray:
    """The first picture of an animation, (H, W) uint8."""
    from PIL import Image

    with Image.open(path) as animation:
        return np.asarray(animation.convert("L"))
