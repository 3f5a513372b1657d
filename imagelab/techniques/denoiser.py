"""A small residual network that removes Gaussian noise of any σ from pictures of any size.

studies/denoising_autoencoder.py trains it. Trained weights lie beside this file: `denoiser.pth`.
"""

from __future__ import annotations

import itertools
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
TILE = 512  # pixels: the side of the squares that are restored one by one


class Block(nn.Module):
    """x (B, width, H, W) plus two 3×3 convolutions of it (He et al. 2016); at the start it returns x."""

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
    """x̂ = x − σ·f(x, σ), where f is a U-Net of residual blocks (after DRUNet, Zhang et al. 2021).

    With a `fold` above 1, each square of `fold`×`fold` pixels becomes one place with `fold`² times the
    channels (FFDNet, Zhang et al. 2018): for 2 this is a quarter of the work. `widths` are the channels
    at this size, at half of it, and so on. `blocks` are the residual blocks at each size on the way down,
    and again on the way up; the last is the number in the middle. The smaller sizes see far. Because of
    the factor σ, a picture without noise (σ = 0) stays as it is. Grey pictures are three equal channels.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = (48, 64, 64, 64),
        blocks: tuple[int, ...] = (2, 2, 2, 1),
        fold: int = 1,
    ) -> None:
        super().__init__()
        self.blocks, self.fold = blocks, fold
        *outer, (width, count) = zip(widths, blocks, strict=True)
        steps = list(itertools.pairwise(widths))

        def chain(width: int, count: int) -> nn.Sequential:
            return nn.Sequential(*[Block(width) for _ in range(count)])

        channels = 3 * fold**2  # those of the pixels in one place; σ is one more
        self.first = nn.Conv2d(channels + 1, widths[0], 3, padding=1)
        self.before = nn.ModuleList(chain(*size) for size in outer)
        self.down = nn.ModuleList(nn.Conv2d(w, v, 2, stride=2) for w, v in steps)
        self.middle = chain(width, count)
        self.up = nn.ModuleList(nn.ConvTranspose2d(v, w, 2, stride=2) for w, v in steps)
        self.after = nn.ModuleList(chain(*size) for size in outer)
        self.last = nn.Conv2d(widths[0], channels, 3, padding=1)
        for layer in (self.first, *self.down):
            nn.init.kaiming_normal_(layer.get_parameter("weight"))
        for layer in (self.first, *self.down, *self.up):
            nn.init.zeros_(layer.get_parameter("bias"))
        for values in self.last.parameters():  # training starts from the identity
            nn.init.zeros_(values)

    @property
    def unit(self) -> int:
        """The sides of a picture must be divisible by it: the side of one place at the smallest size."""
        return self.fold << (len(self.blocks) - 1)

    @property
    def reach(self) -> int:
        """How many pixels to each side an output can depend on; divisible by `unit`."""
        *outer, middle = (2 * count for count in self.blocks)  # convolutions in a chain
        places = 2 + sum(2 * count << k for k, count in enumerate(outer)) + (middle << len(outer))
        pixels = self.fold * places + self.unit
        return pixels + -pixels % self.unit

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Noisy pictures (B, 3, H, W) around [0, 1], sides divisible by `unit`, and their σ (B,) to x̂."""
        with autocast(x.device):
            pixels = F.pixel_unshuffle(x - 0.5, self.fold)  #       (B, 3·fold², H/fold, W/fold)
            level = sigma[:, None, None, None].expand(-1, 1, *pixels.shape[2:])
            h = torch.cat([2 * pixels, 5 * level], dim=1)
            h = self.first(h.contiguous(memory_format=torch.channels_last))
            skips = []
            for before, down in zip(self.before, self.down, strict=True):
                # (B, w, H/fold, W/fold), then smaller
                skips.append(before(h))
                h = down(skips[-1])
            h = self.middle(h)
            for after, up in zip(reversed(self.after), reversed(self.up), strict=True):
                h = after(up(h) + skips.pop())
            noise = F.pixel_shuffle(self.last(h), self.fold)  #     (B, 3, H, W), scaled to σ = 1
        return x - sigma[:, None, None, None] * noise.float()


def turned(x: torch.Tensor, way: int) -> torch.Tensor:
    """Pictures (..., H, W) in one of eight ways: by quarter turns, and mirrored from `way` = 4 on."""
    x = torch.rot90(x, way % 4, (-2, -1))
    return x.flip(-1) if way >= 4 else x


def turned_back(x: torch.Tensor, way: int) -> torch.Tensor:
    """What undoes `turned`."""
    return torch.rot90(x.flip(-1) if way >= 4 else x, -(way % 4), (-2, -1))


def mean_of_eight(model: ResidualDenoiser, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The mean of x̂ over eight turned and mirrored copies of x (self-ensemble, Timofte et al. 2016)."""
    each = [turned_back(model(turned(x, way), sigma), way) for way in range(8)]
    return torch.stack(each).mean(dim=0)


def trained_denoiser(device: torch.device | str = "cpu", path: Path = WEIGHTS) -> ResidualDenoiser:
    """The network in eval mode, with the project's own weights or those of another checkpoint.

    Raises UserError where `path` is not a checkpoint of this network.
    """
    saved = load_checkpoint(path, SCRIPT, device)
    form = {name: saved["config"].get(name) for name in ("widths", "blocks", "fold")}
    try:
        model = ResidualDenoiser(**form)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is not a checkpoint of the network for photographs.") from error
    load_weights(model, saved["ema"], path)
    return channels_last(model, device).eval().requires_grad_(False)


def restore(
    model: ResidualDenoiser,
    picture: np.ndarray,
    sigma: float,
    progress: bool = False,
    ensemble: bool = False,
) -> np.ndarray:
    """A picture (H, W) or (H, W, 3), uint8 or float in [0, 1], without its noise of `sigma`.

    `sigma` is in units of [0, 1] for both types. The result has the picture's shape and type. The work
    is done in overlapping tiles, so a large picture needs little extra memory. `ensemble`: the mean over
    eight turned and mirrored copies, in eight times the time.
    """
    restored = np.empty_like(picture)
    parts = list(tiles(*picture.shape[:2], margin=model.reach))
    for inner, outer in terminal.progress(parts, "denoising", "tile", hidden=not progress):
        top, left = inner[0].start - outer[0].start, inner[1].start - outer[1].start
        tile = _restore_tile(model, picture[outer], sigma, ensemble)
        height, width = inner[0].stop - inner[0].start, inner[1].stop - inner[1].start
        restored[inner] = tile[top : top + height, left : left + width]
    return restored


def tiles(
    height: int, width: int, margin: int, size: int = TILE
) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Squares that cover a picture, each as (rows, columns), and the same square with a `margin`.

    The margin must be at least the network's reach, and both it and `size` divisible by the network's
    unit. Then each tile's result equals that of the whole picture, and there are no seams.
    """
    for top in range(0, height, size):
        for left in range(0, width, size):
            bottom, right = min(top + size, height), min(left + size, width)
            outer_rows = slice(max(top - margin, 0), min(bottom + margin, height))
            outer_columns = slice(max(left - margin, 0), min(right + margin, width))
            yield (slice(top, bottom), slice(left, right)), (outer_rows, outer_columns)


@torch.no_grad()
def _restore_tile(
    model: ResidualDenoiser, tile: np.ndarray, sigma: float, ensemble: bool
) -> np.ndarray:
    device = next(model.parameters()).device
    x = torch.from_numpy(tile.copy()).to(device)
    x = x.float() / 255 if tile.dtype == np.uint8 else x.float()
    x = x.permute(2, 0, 1)[None] if x.dim() == 3 else x.expand(1, 3, -1, -1)  # (1, 3, H, W)
    height, width = tile.shape[:2]
    x = F.pad(x, (0, -width % model.unit, 0, -height % model.unit), mode="replicate")
    sigmas = torch.full((1,), sigma, device=device)
    x = mean_of_eight(model, x, sigmas) if ensemble else model(x, sigmas)
    x = x[0, :, :height, :width].clamp(0, 1)
    x = x.permute(1, 2, 0) if tile.ndim == 3 else x.mean(dim=0)
    x = x.mul(255).round().to(torch.uint8) if tile.dtype == np.uint8 else x
    return x.cpu().numpy()
