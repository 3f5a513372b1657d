"""MNIST, Fashion-MNIST and CIFAR-10 under `--data-dir`: checked, and downloaded if missing."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from imagelab.data.embedded import EMBEDDED
from imagelab.data.tensors import Dataset
from imagelab.setup.runtime import UserError

print_once = functools.cache(print)  # a run asks for the same data several times


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


def has_mnist(data_dir: Path, name: str = "mnist") -> bool:
    """Whether all files of `name`, mnist or fashion-mnist, lie under `data_dir`: nothing to download."""
    folder = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[name]
    return _all_there(Path(data_dir) / folder / "raw", name)


def mnist(name: str, data_dir: Path) -> Dataset:
    """MNIST or Fashion-MNIST."""
    from torchvision import datasets

    kind = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}[name]
    raw = data_dir / kind.__name__ / "raw"
    archives = {file: md5 for file, md5 in kind.resources}
    by_hand = f"To place the files by hand, put them into {raw}/: " + ", ".join(
        f"{file} (md5 {md5})" for file, md5 in archives.items()
    )
    for file, md5 in {**archives, **IDX_MD5[name]}.items():
        verify(raw / file, md5)
    if not _all_there(raw, name):
        with _download(name, data_dir, by_hand) as scratch:
            if raw.is_dir():  # archives placed by hand spare their download
                shutil.copytree(raw, scratch / kind.__name__ / "raw")
            kind(scratch, download=True)
            raw.mkdir(parents=True, exist_ok=True)
            for file, md5 in IDX_MD5[name].items():
                verify(scratch / kind.__name__ / "raw" / file, md5)
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


def cifar10(data_dir: Path) -> Dataset:
    """CIFAR-10, all of it or those of its five training batches that are there."""
    from torchvision import datasets

    folder = data_dir / datasets.CIFAR10.base_folder
    batches, tests = datasets.CIFAR10.train_list, datasets.CIFAR10.test_list
    needed = [*tests, (datasets.CIFAR10.meta["filename"], datasets.CIFAR10.meta["md5"])]
    for file, md5 in [*batches, *needed]:
        verify(folder / file, md5)
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
        print_once(
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


def verify(path: Path, md5: str) -> None:
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
