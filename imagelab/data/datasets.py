"""Named data sets as tensors: one call, no network unless a download is asked for by name.

Here is the choice by name. Where the data come from: embedded.py (inside packages), downloads.py (under
`--data-dir`), faces.py (both), folders.py (one's own pictures). What they are: tensors.py, whose names
can be imported from here as well.
"""

from __future__ import annotations

from pathlib import Path

import torch

from imagelab.data.downloads import cifar10, has_mnist, mnist, print_once
from imagelab.data.embedded import EMBEDDED, mnist_5k, textures
from imagelab.data.faces import celeba, lfw_faces
from imagelab.data.folders import own_path, picture_folder
from imagelab.data.tensors import (
    Dataset,
    Described,
    batch_indices,
    mean_grey,
    mirrored,
    random_subset,
    signed,
    to_uint8,
    unit,
)
from imagelab.setup.settings import refuse_unknown_dataset

__all__ = [
    "EMBEDDED",
    "Dataset",
    "Described",
    "batch_indices",
    "has_mnist",
    "load_dataset",
    "load_for",
    "mean_grey",
    "mirrored",
    "random_subset",
    "signed",
    "to_uint8",
    "unit",
]


def load_dataset(
    name: str,
    data_dir: Path,
    image_size: int | None = None,
    found_first: tuple[str, ...] = ("mnist",),
) -> Dataset:
    """The data set `name` (one of settings.DATASETS, or 'folder:PATH') on the CPU.

    'auto' takes the first of `found_first` (mnist, fashion-mnist) whose files all lie under `data_dir`,
    else the embedded part of MNIST; it never downloads. A data set asked for by its own name is
    downloaded when it is absent, except CelebA. `image_size` (pixels) applies to 'folder:' (default 32)
    and to 'celeba' (default 64).

    Raises UserError: unknown name, missing or corrupt files, no network.
    """
    refuse_unknown_dataset(name)
    data_dir = Path(data_dir)
    if name == "auto":
        found = next((own for own in found_first if has_mnist(data_dir, own)), None)
        name = found or EMBEDDED
        kinds = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
        if found:
            embedded = "part of it" if found == "mnist" else "digits"
            print_once(
                f"Data: {kinds[found]}, found under {data_dir}/ (--dataset {EMBEDDED} for the embedded "
                f"{embedded})."
            )
        else:
            first = found_first[0]
            all_of = "all 70,000" if first == "mnist" else f"{kinds[first]}, 70,000 images,"
            print_once(
                f"Data: 5,000 embedded MNIST digits (--dataset {first} downloads {all_of} into "
                f"{data_dir}/)."
            )
    if name.startswith("folder:"):
        return picture_folder(own_path(name.removeprefix("folder:")), image_size or 32, data_dir)
    if name == EMBEDDED:
        return mnist_5k()
    if name == "textures":
        return textures()
    if name == "faces":
        return lfw_faces()
    if name == "celeba":
        return celeba(data_dir, image_size or 64)
    if name == "cifar10":
        return cifar10(data_dir)
    return mnist(name, data_dir)


def load_for(
    config,
    device: torch.device,
    image_size: int | None = None,
    found_first: tuple[str, ...] = ("mnist",),
) -> Dataset:
    """The data set that a script's settings ask for, on `device`; a part of it for --quick.

    The pictures of folder:PATH get the side of `image_size`, or of --image-size where there is one.
    """
    size = image_size or getattr(config, "image_size", None)
    data = load_dataset(config.dataset, config.data_dir, size, found_first)
    return (data.shortened() if config.quick else data).to(device)
