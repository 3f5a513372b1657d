"""Folders of the user's own pictures: which files count, which are held out, and `folder:PATH`."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from imagelab.data.tensors import Dataset, shuffled
from imagelab.setup.files import atomic_path
from imagelab.setup.runtime import UserError
from imagelab.setup.terminal import bar, readable, tell_once

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif",
                    ".avif"}  # fmt: skip
MAX_CLASSES = 2000
HELD_OUT_FOLDERS = ("val", "valid", "validation", "test")  # beside train/
# Decoded pictures of so many bytes or more are kept in a file, of which memory holds what is in use.
KEPT_FROM = 2**26


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


def picture_folder(root: Path, size: int, data_dir: Path) -> Dataset:
    """Pictures under `root`, its subfolders as classes; every tenth of each class is held out.

    Where `root` has a folder train/ and one of HELD_OUT_FOLDERS, these are that split, with the classes
    inside them. Each picture is cut to its central square and scaled to `size` pixels, RGB. Very many
    are decoded once, into a file under `data_dir`.
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
    number = {kind: k for k, kind in enumerate(kinds)}
    labels = torch.tensor([number[name] for name in names])
    classes = tuple(map(readable, kinds))
    how = f"{readable(root)}, its own split"
    if held_out is None:
        held_out, how = every_tenth(labels), f"{readable(root)}, every tenth of each class held out"
        if not held_out.any():
            raise UserError(
                f"{readable(root)} holds {len(kinds)} classes of one picture each: none can be held out."
            )
    _tell_of_uneven_classes(classes, labels, held_out)
    train = (~held_out).nonzero().flatten()
    test, test_labels = shuffled(held_out.nonzero().flatten(), labels[held_out])
    ordered = [files[k] for k in torch.cat([train, test]).tolist()]
    images = squares(ordered, size, root, data_dir)
    return Dataset(
        f"folder:{readable(own_name)}",
        f"{len(files)} pictures under {how}",
        classes,
        images[: len(train)],
        labels[train],
        images[len(train) :],
        test_labels,
    )


def squares(files: list[Path], size: int, root: Path, data_dir: Path) -> torch.Tensor:
    """The central squares of the pictures of `root`, (N, 3, size, size) uint8.

    Very many are decoded once, into a file under `data_dir`, which is mapped into memory.
    """
    if len(files) * 3 * size**2 >= KEPT_FROM:
        return _kept_squares(files, size, root, data_dir / "decoded")
    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    for image, square in zip(images, _each_square(files, size), strict=True):
        image.copy_(torch.from_numpy(square))
    return images


def _kept_squares(files: list[Path], size: int, root: Path, folder: Path) -> torch.Tensor:
    """Squares from a file in `folder`, which is written first where there is none of these pictures.

    The file is mapped: memory holds those of its pages that are in use. Its name tells the pictures by
    their paths, sizes and times of change; it takes the place of an earlier one of the folder `root`.
    """
    facts = "".join(
        f"{os.fsencode(p)!r} {(s := p.stat()).st_size} {s.st_mtime_ns}\n" for p in files
    )
    own, contents = (
        hashlib.sha256(text.encode()).hexdigest()[:12] for text in (repr(root.resolve()), facts)
    )
    path, count = folder / f"{own}-{size}-{contents}.uint8", len(files) * 3 * size**2
    with _one_at_a_time(folder):
        if not path.is_file() or path.stat().st_size != count:
            tell_once(f"{len(files):,} pictures are decoded once, into {readable(path)}.")
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                for square in _each_square(files, size):
                    file.write(square.data)
            for other in folder.glob(f"{own}-{size}-*.uint8"):
                if other != path:
                    with contextlib.suppress(OSError):  # another run has it open, on Windows
                        other.unlink()
    flat = torch.from_file(str(path), shared=False, size=count, dtype=torch.uint8)
    return flat.view(len(files), 3, size, size)


def _each_square(files: list[Path], size: int) -> Iterator[np.ndarray]:
    """The central square of each picture, (3, size, size) uint8; several are decoded at a time."""
    from PIL import Image, ImageOps

    from imagelab.data.pictures import open_picture

    def square(path: Path) -> np.ndarray:
        picture = open_picture(path).convert("RGB")
        fitted = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
        return np.ascontiguousarray(np.asarray(fitted).transpose(2, 0, 1))

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool, bar("decoded", "picture", len(files)) as shown:
        for k in range(0, len(files), 100):
            part = files[k : k + 100]
            yield from pool.map(square, part)
            shown.update(len(part))


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Other processes, as those of torchrun, wait here. They do not where there are no file locks."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    with contextlib.suppress(NotImplementedError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


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
        raise UserError(
            f"{readable(root)} is split into train/ and what is held out, and has pictures "
            "outside of these: put them into one of them."
        )
    held_out = torch.tensor([part[0].lower() != "train" for part in parts])
    inside = [set(), set()]
    for part, out in zip(parts, held_out.tolist(), strict=True):
        inside[out].add(part[1] if len(part) > 1 else "")
    if strange := sorted(inside[True] - inside[False]):
        names = ", ".join(readable(name) if name else "pictures of no class" for name in strange)
        raise UserError(
            f"{readable(root)} is split into train/ and what is held out, but the latter "
            f"holds what train/ has not: {names}."
        )
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
