"""What --tensorboard writes: the losses of a training and its sample grids, as TensorBoard reads them.

`python gan_mnist.py --tensorboard`, then `tensorboard --logdir GAN_models/tensorboard`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

EVERY = 50  # steps whose numbers are written at once: a GPU is asked for numbers that rarely


class Board:
    """Event files in tensorboard/NAME/ beside a checkpoint NAME.pth.

    `step` is the last one done: what an earlier training wrote of later ones is no longer shown.
    """

    def __init__(self, checkpoint: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = checkpoint.parent / "tensorboard" / checkpoint.stem
        self._writer = SummaryWriter(folder, purge_step=step + 1)
        self._waiting: list[tuple[int, dict[str, torch.Tensor]]] = []

    def add_numbers(self, values: dict[str, torch.Tensor], step: int) -> None:
        """0-dimensional tensors by name; they become numbers when EVERY steps wait, or at `flush`."""
        self._waiting.append((step, {name: value.detach() for name, value in values.items()}))
        if len(self._waiting) >= EVERY:
            self.flush()

    def add_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """(H, W) or (H, W, 3) uint8."""
        form = "HW" if picture.ndim == 2 else "HWC"
        self._writer.add_image(name, picture, step, dataformats=form)
        self.flush()

    def flush(self) -> None:
        """Everything so far is in the file."""
        for step, values in self._waiting:
            for name, value in values.items():
                self._writer.add_scalar(name, value.item(), step)
        self._waiting.clear()
        self._writer.flush()
