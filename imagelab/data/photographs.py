"""The photographs inside scikit-image, scikit-learn, PyWavelets and matplotlib, and patches of them."""

from __future__ import annotations

import numpy as np
import torch

from imagelab.data.tensors import Dataset

TRAINING = (
    "aero", "ascent", "brick", "cell", "chelsea", "clock", "coffee", "grass", "gravel",
    "hubble_deep_field", "immunohistochemistry", "moon", "page", "retina", "rocket",
    "stereo_motorcycle", "text",
)  # fmt: skip
HELD_OUT = ("camera", "coins", "astronaut", "china", "flower", "grace_hopper")
PATCH = 64  # pixels


def photograph(name: str) -> np.ndarray:
    """One of the photographs named in TRAINING and HELD_OUT: (H, W) or (H, W, 3) uint8.

    `china` and `flower` come inside scikit-learn, `grace_hopper` inside matplotlib, `aero` and `ascent`
    inside PyWavelets, all others inside scikit-image.
    """
    if name in ("china", "flower"):
        from sklearn.datasets import load_sample_image

        return load_sample_image(f"{name}.jpg")
    if name == "grace_hopper":
        from matplotlib.cbook import get_sample_data
        from PIL import Image

        with Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)) as picture:
            return np.array(picture)
    if name in ("aero", "ascent"):
        import pywt.data

        return getattr(pywt.data, name)()
    import skimage.data

    picture = getattr(skimage.data, name)()
    return picture[0] if name == "stereo_motorcycle" else picture  # left, right, disparity


def grey(picture: np.ndarray) -> np.ndarray:
    """A photograph's luma (H, W) uint8: 0.299 red + 0.587 green + 0.114 blue."""
    from PIL import Image

    return np.asarray(Image.fromarray(picture).convert("L"))


def random_patches(count: int, seed: int) -> Dataset:
    """`count` patches (3, 64, 64) of the TRAINING photographs at six scales, mirrored and turned.

    Their labels are the numbers of the photographs. Larger photographs are drawn from more often, by the
    square root of their pixels.
    """
    from PIL import Image

    rng = np.random.default_rng(seed)
    scaled, labels = [], []
    for label, name in enumerate(TRAINING):
        picture = Image.fromarray(photograph(name)).convert("RGB")
        for scale in (1, 0.75, 0.55, 0.4, 0.3, 0.2):
            size = round(picture.width * scale), round(picture.height * scale)
            if min(size) >= PATCH:
                scaled.append(np.asarray(picture.resize(size, Image.Resampling.LANCZOS)))
                labels.append(label)
    weight = np.sqrt([picture.shape[0] * picture.shape[1] for picture in scaled])
    chosen = rng.choice(len(scaled), count, p=weight / weight.sum())
    patches = np.empty((count, PATCH, PATCH, 3), np.uint8)
    for patch, picture in zip(patches, (scaled[k] for k in chosen), strict=True):
        top, left = (rng.integers(side - PATCH + 1) for side in picture.shape[:2])
        square = picture[top : top + PATCH, left : left + PATCH]
        square = square[:, ::-1] if rng.random() < 0.5 else square
        patch[:] = np.rot90(square, int(rng.integers(4)))
    images = torch.from_numpy(patches).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(labels)[chosen]
    source = f"{count:,} patches of {len(TRAINING)} photographs inside scikit-image and PyWavelets"
    return Dataset("photographs", source, TRAINING, images, labels, images[:0], labels[:0])
