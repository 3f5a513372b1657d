"""Images as tensors: a data set, its order in an epoch, and the way from uint8 to floats and back."""

from __future__ import annotations

import functools
import zlib
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar, Self

import torch

from imagelab.setup.runtime import UserError, generator


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


def unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 to float32 in [0, 1]."""
    return images.float().div_(255)


def signed(images: torch.Tensor) -> torch.Tensor:
    """uint8 to float32 in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def mean_grey(images: torch.Tensor) -> torch.Tensor:
    """The mean of uint8 images in [0, 1], a scalar in float64; not all become floats at once."""
    total = torch.stack([part.sum() for part in images.split(1000)]).sum().cpu()
    return total.double() / (images.numel() * 255)


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


def batch_indices(
    n: int, batch_size: int, seed: int, epoch: int, device: torch.device | str = "cpu"
) -> list[torch.Tensor]:
    """The batches of one epoch, on `device`: slices of a permutation drawn from (seed, epoch) alone.

    The incomplete last batch is dropped unless it is the only one.
    """
    order = torch.randperm(n, generator=generator(seed, f"order of epoch {epoch}"))
    full = max(n // batch_size, 1) * batch_size
    return list(order[:full].to(device).split(batch_size))


def shuffled(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """In an order of no meaning, so that the first of them stand for all; always the same one."""
    order = random_subset(len(labels), len(labels), "order of the held-out images")
    return images[order], labels[order]


def to_chw(picture) -> torch.Tensor:
    import numpy as np

    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
