"""Faces: 100 small ones inside scikit-image (`faces`), and CelebA under `--data-dir` (`celeba`)."""

from __future__ import annotations

from pathlib import Path

import torch

from imagelab.data.downloads import verify
from imagelab.data.folders import every_tenth, squares
from imagelab.data.tensors import Dataset
from imagelab.setup.runtime import UserError
from imagelab.setup.terminal import tell_if_silent

CELEBA_IMAGES = {"train": 40_000, "test": 2_000}  # of 162,770 and 19,962


def lfw_faces() -> Dataset:
    """The faces of Labeled Faces in the Wild that scikit-image brings along: 100, 24×24, grey.

    They are so few that a generator is bound to learn them by heart.
    """
    import skimage.data

    faces = torch.from_numpy(skimage.data.lfw_subset()[:100])  # 25×25; then 100 that are no faces
    faces = faces.mul(255).round().to(torch.uint8)[:, None]
    held_out = every_tenth(torch.zeros(100))
    crops = [faces[:, :, y : y + 24, x : x + 24] for y in (0, 1) for x in (0, 1)]
    train = torch.cat([crop[~held_out] for crop in crops])
    train = torch.cat([train, train.flip(3)])
    return Dataset(
        "faces",
        "100 faces of Labeled Faces in the Wild inside scikit-image, 24×24 pixels: 90 to train on, each "
        "in four crops and their mirror images, 10 held out",
        ("face",),
        train,
        torch.zeros(len(train), dtype=torch.long),
        crops[0][held_out],
        torch.zeros(10, dtype=torch.long),
    )


def celeba(data_dir: Path, size: int) -> Dataset:
    """CelebA's aligned faces, cut to their central squares and scaled to `size` pixels, in colour.

    torchvision's split; the attributes are ignored. Where they are many, they are decoded once, into a
    file under `data_dir`. Raises UserError where a file is missing.
    """
    from torchvision import datasets

    folder = data_dir / datasets.CelebA.base_folder
    pictures = folder / "img_align_celeba"
    files = {name: md5 for _, md5, name in datasets.CelebA.file_list}
    lists = [name for name in files if name.endswith(".txt")]
    missing = [name for name in lists if not (folder / name).is_file()]
    missing += [] if pictures.is_dir() else [f"{pictures.name}/"]
    if missing:
        archive = f"{pictures.name}.zip"
        raise UserError(
            f"CelebA is not complete under {folder}/: {', '.join(missing)} not found. It is not "
            "downloaded by itself. To place it by hand, get the files from its page "
            f"(mmlab.ie.cuhk.edu.hk/projects/CelebA.html), unpack {archive} (md5 {files[archive]}) "
            f"into {folder}/, so that {pictures}/ holds the pictures, and put beside it "
            + ", ".join(f"{name} (md5 {files[name]})" for name in lists)
            + "."
        )
    for name in lists:
        verify(folder / name, files[name])
    train_files, test_files = (
        [
            pictures / name
            for name in datasets.CelebA(data_dir, split, target_type=[]).filename[:most]
        ]
        for split, most in CELEBA_IMAGES.items()
    )
    tell_if_silent(f"Reading {len(train_files) + len(test_files):,} faces.")
    images = squares([*train_files, *test_files], size, pictures, data_dir)
    train, test = images[: len(train_files)], images[len(train_files) :]
    return Dataset(
        "celeba",
        f"CelebA, the first {len(train):,} of its training images and the first {len(test):,} of its "
        f"test images, read from {folder}/",
        ("face",),
        train,
        torch.zeros(len(train), dtype=torch.long),
        test,
        torch.zeros(len(test), dtype=torch.long),
    )
