"""A small residual network that removes Gaussian noise of any σ from pictures of any size.

studies/denoising_autoencoder.py trains it. Trained weights lie beside this file: `denoiser.pth`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from imagelab.setup import terminal
from imagelab.setup.runtime import UserError, autocast, channels_last
from imagelab.training.checkpoints import load_checkpoint, load_weights

SCRIPT = "denoising_autoencoder"
WEIGHTS = Path(__file__).with_name("denoiser.pth")
TILE = 256  # pixels: the side of the squares that are restored one by one, divisible by 4


class Block(nn.Module):
    """x (B, width, H, W) plus two 3×3 convolutions of it (He et al. 2016), which start at 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.kaiming_normal_(self.conv1.weight)
        for values in (self.conv1.get_parameter("bias"), *self.conv2.parameters()):
            nn.init.zeros_(values)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class ResidualDenoiser(nn.Module):
    """x̂ = x − σ·f(x, σ), where f is a small U-Net of residual blocks (after DRUNet, Zhang et al. 2021).

    Each square of 2×2 pixels becomes one place with four times the channels (FFDNet, Zhang et al. 2018):
    this is a quarter of the work. The middle part works at half of that size and averages flat areas
    widely. Because of the factor σ, a picture without noise (σ = 0) stays as it is. Grey pictures are
    three equal channels. A plain chain of ten convolutions was 0.8 dB worse after twice the training:
    most of its units were always switched on, so it was little more than a linear filter.
    """

    def __init__(self, width: int = 48, blocks: int = 2) -> None:
        super().__init__()
        self.blocks = blocks

        def chain(channels: int) -> nn.Sequential:
            return nn.Sequential(*[Block(channels) for _ in range(blocks)])

        self.first = nn.Conv2d(13, width, 3, padding=1)  # 3·4 pixels and σ
        self.before, self.after = chain(width), chain(width)
        self.down = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.middle = chain(2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.last = nn.Conv2d(width, 12, 3, padding=1)  # 3·4 pixels of noise
        for layer in (self.first, self.down):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.get_parameter("bias"))
        for values in self.last.parameters():  # training starts from the identity
            nn.init.zeros_(values)

    @property
    def reach(self) -> int:
        """How many pixels to each side an output can depend on; divisible by 4."""
        return 16 * self.blocks + 8

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Noisy pictures (B, 3, H, W) around [0, 1], sides divisible by 4, and their σ (B,) to x̂."""
        with autocast(x.device):
            pixels = F.pixel_unshuffle(x - 0.5, 2)  #               (B, 12, H/2, W/2)
            level = sigma[:, None, None, None].expand(-1, 1, *pixels.shape[2:])
            h = torch.cat([2 * pixels, 5 * level], dim=1)
            h = self.first(h.contiguous(memory_format=torch.channels_last))
            skip = self.before(h)  #                                (B, w, H/2, W/2)
            h = self.middle(self.down(skip))  #                     (B, 2w, H/4, W/4)
            h = self.after(self.up(h) + skip)
            noise = F.pixel_shuffle(self.last(h), 2)  #             (B, 3, H, W), σ = 1
        return x - sigma[:, None, None, None] * noise.float()


def trained_denoiser(device: torch.device | str = "cpu", path: Path = WEIGHTS) -> ResidualDenoiser:
    """The network in eval mode, with the project's own weights or those of another checkpoint.

    Raises UserError where `path` is not a checkpoint of this network.
    """
    saved = load_checkpoint(path, SCRIPT, device)
    if not saved["ema"] or not saved["config"].keys() >= {"width", "blocks"}:
        raise UserError(f"{path} is not a checkpoint of the network for photographs.")
    model = ResidualDenoiser(saved["config"]["width"], saved["config"]["blocks"])
    load_weights(model, saved["ema"], path)
    return channels_last(model, device).eval().requires_grad_(False)


def restore(
    model: ResidualDenoiser, picture: np.ndarray, sigma: float, progress: bool = False
) -> np.ndarray:
    """A picture (H, W) or (H, W, 3), uint8 or float in [0, 1], without its noise of `sigma`.

    `sigma` is in units of [0, 1] for both types. The result has the picture's shape and type. The work
    is done in overlapping tiles, so a large picture needs little extra memory.
    """
    restored = np.empty_like(picture)
    parts = list(tiles(*picture.shape[:2], margin=model.reach))
    for inner, outer in terminal.progress(parts, "denoising", "tile", hidden=not progress):
        top, left = inner[0].start - outer[0].start, inner[1].start - outer[1].start
        tile = _restore_tile(model, picture[outer], sigma)
        height, width = inner[0].stop - inner[0].start, inner[1].stop - inner[1].start
        restored[inner] = tile[top : top + height, left : left + width]
    return restored


def tiles(
    height: int, width: int, margin: int, size: int = TILE
) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Squares that cover a picture, each as (rows, columns), and the same square with a `margin`.

    The margin must be divisible by 4 and at least the network's reach. Then each tile's result equals
    that of the whole picture, and there are no seams.
    """
    for top in range(0, height, size):
        for left in range(0, width, size):
            bottom, right = min(top + size, height), min(left + size, width)
            outer_rows = slice(max(top - margin, 0), min(bottom + margin, height))
            outer_columns = slice(max(left - margin, 0), min(right + margin, width))
            yield (slice(top, bottom), slice(left, right)), (outer_rows, outer_columns)


@torch.no_grad()
def _restore_tile(model: ResidualDenoiser, tile: np.ndarray, sigma: float) -> np.ndarray:
    device = next(model.parameters()).device
    x = torch.from_numpy(tile.copy()).to(device)
    x = x.float() / 255 if tile.dtype == np.uint8 else x.float()
    x = x.permute(2, 0, 1)[None] if x.dim() == 3 else x.expand(1, 3, -1, -1)  # (1, 3, H, W)
    height, width = tile.shape[:2]
    x = F.pad(x, (0, -width % 4, 0, -height % 4), mode="replicate")
    x = model(x, torch.full((1,), sigma, device=device))[0, :, :height, :width].clamp(0, 1)
    x = x.permute(1, 2, 0) if tile.ndim == 3 else x.mean(dim=0)
    x = x.mul(255).round().to(torch.uint8) if tile.dtype == np.uint8 else x
    return x.cpu().numpy()
