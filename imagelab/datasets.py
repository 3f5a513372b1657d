"""Named data sets as tensors: one call, no network unless a download is asked for by name.

`digits` and `textures` come out of installed packages; the others are read from `--data-dir`
through torchvision's classes, after their checksums were verified.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F

from imagelab.runtime import UserError, generator

NAMES = ("auto", "digits", "textures", "mnist", "fashion-mnist", "cifar10")
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif"}

DIGITS_TRAIN, DIGITS_TRAIN_COPIES, DIGITS_TEST_COPIES = 1400, 40, 10
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

# MD5 of the unpacked files; torchvision knows those of the .gz archives only.
IDX_MD5 = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}


class Described:
    """What every data set says of itself: it has a name, source, classes, images and test_images."""

    @property
    def file_name(self) -> str:
        """The name with '_' for what a file's name had better not hold."""
        return "".join(c if c.isalnum() or c in "-_" else "_" for c in self.name)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return tuple(self.images.shape[1:])

    def describe(self) -> dict:
        """Plain facts for results and checkpoints."""
        facts = {
            "name": self.name,
            "source": self.source,
            "shape": list(self.shape),
            "train": len(self.images),
            "test": len(self.test_images),
            "classes": len(self.classes),
        }
        # A name tells the known data sets apart, not one's own pictures.
        return facts | ({"contents": self._contents} if ":" in self.name else {})

    @functools.cached_property
    def _contents(self) -> str:
        """Eight hexadecimal digits that name these very images, labels, boxes or masks."""
        crc = 0
        for value in (getattr(self, part.name) for part in fields(self)):
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, torch.Tensor):
                    crc = zlib.crc32(part.cpu().contiguous().numpy(), crc)
        return f"{crc:08x}"


@dataclass(frozen=True)
class Dataset(Described):
    """Images and labels of one data set, split into a training and a held-out (test) part.

    `images`: (N, C, H, W) uint8; `labels`: (N,) int64, indices into `classes`.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    images: torch.Tensor
    labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor

    def to(self, device: torch.device) -> Dataset:
        tensors = (self.images, self.labels, self.test_images, self.test_labels)
        return Dataset(self.name, self.source, self.classes, *(t.to(device) for t in tensors))

    def needs_two_classes(self) -> None:
        """For what tells classes apart. Raises UserError if there is one only."""
        if len(self.classes) < 2:
            raise UserError(
                f"{self.name} has one class only: a classifier needs at least two subfolders."
            )

    def shortened(self, train: int = 6000, test: int = 1000) -> Dataset:
        """A quick run's part: a random subset of the training images, the first test images."""
        keep = random_subset(len(self.images), train, "quick run").to(self.images.device)
        return Dataset(
            self.name,
            self.source,
            self.classes,
            self.images[keep],
            self.labels[keep],
            self.test_images[:test],
            self.test_labels[:test],
        )


def pictures_in(folder: Path) -> list[Path]:
    """The picture files in `folder` itself, by their suffixes, sorted."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES)


def unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 to float32 in [0, 1]."""
    return images.float().div_(255)


def signed(images: torch.Tensor) -> torch.Tensor:
    """uint8 to float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """float in [-1, 1] to uint8, rounded; values outside the range are clipped."""
    return images.add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def random_subset(n: int, count: int, purpose: str) -> torch.Tensor:
    """`count` of the indices 0 … n − 1 (all if there are fewer), drawn once for each `purpose`.

    The same for every --seed. An even spacing would not do: the embedded digits repeat every 1,400.
    """
    return torch.randperm(n, generator=generator(0, purpose))[:count]


def mirrored(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Each image (N, C, H, W) with even odds left to right: for photographs, not for digits."""
    turned = torch.rand(len(images), 1, 1, 1, generator=rng, device=images.device) < 0.5
    return torch.where(turned, images.flip(3), images)


def batch_indices(n: int, batch_size: int, seed: int, epoch: int) -> list[torch.Tensor]:
    """The batches of one epoch: slices of a permutation drawn from (seed, epoch) alone.

    The incomplete last batch is dropped unless it is the only one.
    """
    order = torch.randperm(n, generator=generator(seed, f"order of epoch {epoch}"))
    full = max(n // batch_size, 1) * batch_size
    return list(order[:full].split(batch_size))


def load_dataset(name: str, data_dir: Path, image_size: int | None = None) -> Dataset:
    """The data set `name` (see NAMES, or 'folder:PATH') on the CPU.

    'auto' takes MNIST if all its files lie under `data_dir`, else the embedded digits; it never
    downloads. A data set asked for by its own name is downloaded when it is absent.
    `image_size` (pixels) applies to 'folder:' only; it is 32 unless told.

    Raises UserError: unknown name, missing or corrupt files, no network.
    """
    data_dir = Path(data_dir)
    if name == "auto":
        found = has_mnist(data_dir)
        name = "mnist" if found else "digits"
        print(
            "Data: "
            + (
                f"MNIST, found under {data_dir}/ (--dataset digits for the embedded one)."
                if found
                else "the embedded handwritten digits (--dataset mnist downloads MNIST "
                f"into {data_dir}/)."
            )
        )
    if name.startswith("folder:"):
        return _folder(Path(name.removeprefix("folder:")), image_size or 32)
    loaders = {"digits": _digits, "textures": _textures}
    if name in loaders:
        return loaders[name]()
    if name in IDX_MD5:
        return _idx(name, data_dir)
    if name == "cifar10":
        return _cifar10(data_dir)
    raise UserError(f"Unknown --dataset {name!r}: choose one of {', '.join(NAMES)}, folder:PATH.")


def has_mnist(data_dir: Path) -> bool:
    """Whether all of MNIST's files lie under `data_dir`, so that reading it downloads nothing."""
    return _all_there(Path(data_dir) / "MNIST" / "raw", "mnist")


def load_for(config, device: torch.device, image_size: int | None = None) -> Dataset:
    """The data set that a script's settings ask for, on `device`; a part of it for --quick.

    The pictures of folder:PATH get the side of `image_size`, or of --image-size where there is one.
    """
    size = image_size or getattr(config, "image_size", None)
    data = load_dataset(config.dataset, config.data_dir, size)
    return (data.shortened() if config.quick else data).to(device)


# --- embedded: handwritten digits -----------------------------------------------------------------


@functools.cache  # the driver asks for it several times; nobody writes into it
def _digits() -> Dataset:
    """scikit-learn's 1,797 scans in MNIST's frame; the last 397 are held out.

    Each of thirteen writers filled in a form that begins 0 to 9 three times; one begins at scan 1,415,
    so that all but the first 15 of the held-out scans are by other writers than those to train on.
    """
    from sklearn.datasets import load_digits

    scans = load_digits()
    images = torch.from_numpy(scans.images).float()[:, None] / 16  # (1797, 1, 8, 8) in [0, 1]
    images = F.interpolate(images, size=(20, 20), mode="bicubic", align_corners=False)
    images = F.pad(images.sub(0.25).mul(1.8).clamp(0, 1), (4, 4, 4, 4))  # (1797, 1, 28, 28)
    labels = torch.from_numpy(scans.target).long()
    rng = generator(0, "digits")  # the data are the same for every --seed

    def varied(part: slice, copies: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The scans themselves, then `copies` - 1 small variations of each."""
        x, y = images[part], labels[part]
        parts = [x] + [small_affine(x, rng) for _ in range(copies - 1)]
        return torch.cat([p.mul(255).round_().to(torch.uint8) for p in parts]), y.repeat(copies)

    train = varied(slice(None, DIGITS_TRAIN), DIGITS_TRAIN_COPIES)
    test = varied(slice(DIGITS_TRAIN, None), DIGITS_TEST_COPIES)
    source = (
        f"scikit-learn's handwritten digits: {DIGITS_TRAIN:,} scans in {DIGITS_TRAIN_COPIES} "
        f"variations to train, 397 later scans, all but 15 by other writers, in {DIGITS_TEST_COPIES} "
        "variations held out"
    )
    return Dataset("digits", source, tuple("0123456789"), *train, *test)


def small_affine(images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Each image rotated (±12°), scaled (0.9 to 1.1), sheared (±0.15), shifted (±1.5 pixels)."""
    n, _, _, width = images.shape

    def uniform(limit: float) -> torch.Tensor:
        return (torch.rand(n, generator=rng) * 2 - 1) * limit

    angle, scale, shear = uniform(math.radians(12)), 1 + uniform(0.1), uniform(0.15)
    shift_x, shift_y = uniform(1.5) * 2 / width, uniform(1.5) * 2 / width
    cos, sin = angle.cos() / scale, angle.sin() / scale
    row_x = torch.stack([cos, shear * cos - sin, shift_x], dim=1)
    row_y = torch.stack([sin, shear * sin + cos, shift_y], dim=1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), list(images.shape), False)
    return F.grid_sample(images, grid, align_corners=False)


# --- embedded: texture patches --------------------------------------------------------------------


def _textures(size: int = 32, stride: int = 8) -> Dataset:
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
            part = _to_chw(picture.crop((left, 0, right, picture.height)))
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
        *_mixed(torch.cat(test), torch.cat(y_test)),
    )


def _mixed(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """In an order of no meaning, so that the first of them stand for all; always the same one."""
    order = random_subset(len(labels), len(labels), "order of the held-out images")
    return images[order], labels[order]


def _to_chw(picture) -> torch.Tensor:
    import numpy as np

    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


# --- files under --data-dir -----------------------------------------------------------------------


def _idx(name: str, data_dir: Path) -> Dataset:
    """MNIST or Fashion-MNIST."""
    from torchvision import datasets

    kind = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}[name]
    raw = data_dir / kind.__name__ / "raw"
    archives = {file: md5 for file, md5 in kind.resources}
    by_hand = f"To place the files by hand, put them into {raw}/: " + ", ".join(
        f"{file} (md5 {md5})" for file, md5 in archives.items()
    )
    for file, md5 in {**archives, **IDX_MD5[name]}.items():
        _verify(raw / file, md5)
    if not _all_there(raw, name):
        with _download(name, data_dir, by_hand) as scratch:
            if raw.is_dir():  # archives placed by hand spare their download
                shutil.copytree(raw, scratch / kind.__name__ / "raw")
            kind(scratch, download=True)
            raw.mkdir(parents=True, exist_ok=True)
            for file, md5 in IDX_MD5[name].items():
                _verify(scratch / kind.__name__ / "raw" / file, md5)
                shutil.move(scratch / kind.__name__ / "raw" / file, raw / file)
    train, test = kind(data_dir, train=True), kind(data_dir, train=False)
    return Dataset(
        name,
        f"{kind.__name__}, 60,000 training and 10,000 test images, read from {data_dir}/",
        tuple(name.split(" - ")[0] for name in train.classes),  # MNIST's read '7 - seven'
        train.data[:, None],
        train.targets,
        test.data[:, None],
        test.targets,
    )


def _all_there(raw: Path, name: str) -> bool:
    return all((raw / file).is_file() for file in IDX_MD5[name])


def _cifar10(data_dir: Path) -> Dataset:
    """CIFAR-10, all of it or those of its five training batches that are there."""
    from torchvision import datasets

    folder = data_dir / datasets.CIFAR10.base_folder
    batches, tests = datasets.CIFAR10.train_list, datasets.CIFAR10.test_list
    needed = [*tests, (datasets.CIFAR10.meta["filename"], datasets.CIFAR10.meta["md5"])]
    for file, md5 in [*batches, *needed]:
        _verify(folder / file, md5)
    present = [(file, md5) for file, md5 in batches if (folder / file).is_file()]
    if not present or not all((folder / file).is_file() for file, _ in needed):
        by_hand = (
            f"To place it by hand, unpack {datasets.CIFAR10.filename} (md5 "
            f"{datasets.CIFAR10.tgz_md5}) into {data_dir}/"
        )
        print(
            "CIFAR-10 is 170 MB from a slow host (50 to 85 kB/s in 2026: half an hour to an hour)."
        )
        with _download("cifar10", data_dir, by_hand) as scratch:
            datasets.CIFAR10(scratch, download=True)
            folder.mkdir(parents=True, exist_ok=True)
            for file in (scratch / folder.name).iterdir():
                shutil.move(file, folder / file.name)
        present = batches
    if len(present) < len(batches):
        print(f"CIFAR-10: {len(present)} of 5 training batches are under {folder}/; using those.")

    class Cifar10(datasets.CIFAR10):
        train_list = present

    train, test = Cifar10(data_dir, train=True), Cifar10(data_dir, train=False)

    def tensors(part) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        return images, torch.tensor(part.targets)

    return Dataset(
        "cifar10",
        f"CIFAR-10, {len(train.data):,} training and 10,000 test images, read from {data_dir}/",
        tuple(train.classes),
        *tensors(train),
        *tensors(test),
    )


def _verify(path: Path, md5: str) -> None:
    """A file may be absent, but what is there must be whole. It is neither used nor deleted else."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise UserError(
            f"{path} is corrupt or cut short (md5 {found}, expected {md5}); move it away "
            "and run again, or use --dataset digits."
        )


@contextlib.contextmanager
def _download(name: str, data_dir: Path, by_hand: str) -> Iterator[Path]:
    """A scratch folder under `data_dir` for a download; what comes whole is moved out of it."""
    print(f"{name} is not under {data_dir}/: downloading it.")
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=data_dir) as scratch:
        try:
            yield Path(scratch)
        except (RuntimeError, OSError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(":. ")
            raise UserError(
                f"{name} is not under {data_dir}/ and could not be downloaded ({reason}). "
                f"{by_hand}; or use --dataset digits, which needs no download."
            ) from error


# --- the user's own pictures ----------------------------------------------------------------------


def _folder(root: Path, size: int) -> Dataset:
    """Pictures under `root`, its subfolders as classes; every tenth picture is held out.

    Each is cut to its central square and scaled to `size` pixels, RGB.
    """
    from PIL import Image, ImageOps

    from imagelab.pictures import open_picture

    if not root.is_dir():
        raise UserError(f"--dataset folder:{root}: there is no such folder.")
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
    if len(files) < 10:
        raise UserError(
            f"{root} holds {len(files)} pictures ({', '.join(sorted(PICTURE_SUFFIXES))}); "
            "at least 10 are needed."
        )
    names = [p.relative_to(root).parts[0] if p.parent != root else root.name for p in files]
    classes = tuple(sorted(set(names)))
    images = torch.stack(
        [
            _to_chw(
                ImageOps.fit(open_picture(p).convert("RGB"), (size, size), Image.Resampling.LANCZOS)
            )
            for p in files
        ]
    )
    labels = torch.tensor([classes.index(n) for n in names])
    held_out = torch.arange(len(files)) % 10 == 9
    test_images, test_labels = _mixed(images[held_out], labels[held_out])
    return Dataset(
        f"folder:{root.name}",
        f"{len(files)} pictures under {root}, every tenth held out",
        classes,
        images[~held_out],
        labels[~held_out],
        test_images,
        test_labels,
    )
