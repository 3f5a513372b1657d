"""The U-Net of diffusion models: residual blocks, skip connections, an embedding of time and class.

It follows Ho et al. (2020). What differs:
- the embedding scales and shifts the activations of every block (Dhariwal and Nichol 2021);
- "no class" is one more class (Ho and Salimans 2022);
- the norm is over the channels of each pixel: with channels last in memory it is several times as fast
  as a group norm;
- squares of 2×2 pixels become the channels of one pixel (Luhman and Luhman 2022): a quarter of the work.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from imagelab.setup.runtime import UserError, autocast

Pool = Literal["average", "max"]


class PixelNorm(nn.Module):
    """Zero mean and unit variance over the channels of each pixel, then a scale and a shift."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # channels last: no copies


class ResidualBlock(nn.Module):
    """x + two 3×3 convolutions; the embedding scales and shifts between them."""

    def __init__(self, channels: int, out_channels: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = PixelNorm(channels), PixelNorm(out_channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.scale_shift = nn.Linear(embedding, 2 * out_channels)
        self.dropout = nn.Dropout(dropout)
        same = channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)
        _zero_init(self.conv2)
        _zero_init(self.scale_shift)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.scale_shift(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip(x) + self.conv2(self.dropout(F.silu(h)))


class Attention(nn.Module):
    """x + attention (Vaswani et al. 2017) of every pixel to all pixels, or to the words in `context`."""

    def __init__(self, channels: int, context: int = 0, heads: int = 4) -> None:
        super().__init__()
        self.norm, self.heads = PixelNorm(channels), heads
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(context or channels, 2 * channels)
        self.out = nn.Linear(channels, channels)
        _zero_init(self.out)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """x (B, C, H, W), context (B, words, its channels) to (B, C, H, W)."""
        B, C, H, W = x.shape
        pixels = self.norm(x).permute(0, 2, 3, 1).reshape(B, H * W, C)
        source = pixels if context is None else context
        parts = self.query(pixels), *self.key_value(source).chunk(2, dim=2)
        q, k, v = (p.unflatten(2, (self.heads, -1)).transpose(1, 2) for p in parts)
        h = F.scaled_dot_product_attention(q, k, v)  # (B, heads, H·W, C/heads)
        h = self.out(h.transpose(1, 2).reshape(B, H * W, C))
        return x + h.reshape(B, H, W, C).permute(0, 3, 1, 2)


class Stage(nn.Module):
    """A residual block; on some levels also attention among the pixels, and cross-attention to words."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        embedding: int,
        dropout: float,
        attention: bool,
        cross_attention: bool,
    ) -> None:
        super().__init__()
        self.block = ResidualBlock(channels, out_channels, embedding, dropout)
        self.among_pixels = Attention(out_channels) if attention else None
        self.to_words = Attention(out_channels, embedding) if cross_attention else None

    def forward(
        self, x: torch.Tensor, embedding: torch.Tensor, words: torch.Tensor | None
    ) -> torch.Tensor:
        x = self.block(x, embedding)
        x = x if self.among_pixels is None else self.among_pixels(x)
        return x if self.to_words is None else self.to_words(x, words)


class UNet(nn.Module):
    """Images (B, C, H, W), t and a condition to (B, C, H, W).

    `widths` are the channels per level, the outermost first. Each level has half the size of the one
    before, `blocks` residual blocks on the way down, and one more on the way up. `attention` lists the
    levels with attention (0 is the outermost). Squares of `patch_size`×`patch_size` pixels become the
    channels of one pixel at level 0.

    The condition is a class out of `classes` (the number `classes` itself stands for no class), or words
    out of a `vocabulary`, to which the levels with attention attend, or a picture of `beside` channels,
    which is put beside the image's channels. 0 means: not used. UserError where the numbers do not fit.

    `pool` halves the size between two levels: by the average of 2×2 pixels, or by the largest of them.
    With `outputs` = 2 there are twice as many channels at the end: (B, 2·C, H, W).
    """

    def __init__(
        self,
        channels: int,
        widths: tuple[int, ...] = (64, 128),
        blocks: int = 1,
        attention: tuple[int, ...] = (1,),
        patch_size: int = 2,
        dropout: float = 0.0,
        classes: int = 0,
        vocabulary: int = 0,
        beside: int = 0,
        pool: Pool = "average",
        outputs: int = 1,
    ) -> None:
        super().__init__()
        levels = range(len(widths))
        if not set(attention) <= set(levels):
            raise UserError(f"Attention needs levels from 0 to {len(widths) - 1}, not {attention}.")
        if any(width % 4 for width in widths):
            raise UserError(f"The widths of a U-Net must be divisible by 4; they are {widths}.")
        self.classes, self.patch_size = classes, patch_size
        self.halve = F.max_pool2d if pool == "max" else F.avg_pool2d
        self.divisor = patch_size * 2 ** (len(widths) - 1)  # of the images' sides
        embedding = 4 * widths[0]
        self.frequencies = widths[0]
        self.time = nn.Sequential(
            nn.Linear(2 * widths[0], embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.label = nn.Embedding(classes + 1, embedding) if classes else None
        self.words = nn.Embedding(vocabulary, embedding) if vocabulary else None

        def stage(channels: int, level: int) -> Stage:
            attend = level in attention
            to_words = attend and vocabulary > 0
            return Stage(channels, widths[level], embedding, dropout, attend, to_words)

        self.first = nn.Conv2d((channels + beside) * patch_size**2, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.grow = nn.ModuleList()  # back to twice the size
        now, skips = widths[0], [widths[0]]
        for level in levels:
            self.down.append(stages := nn.ModuleList())
            for _ in range(blocks):
                stages.append(stage(now, level))
                now = widths[level]
                skips.append(now)
        self.middle = nn.ModuleList([stage(now, levels[-1]), stage(now, levels[-1])])
        for level in reversed(levels):
            self.up.append(stages := nn.ModuleList())
            for _ in range(blocks + (level == 0)):
                stages.append(stage(now + skips.pop(), level))
                now = widths[level]
            if level:
                self.grow.append(nn.ConvTranspose2d(now, widths[level - 1], 2, stride=2))
                now = widths[level - 1]
        self.norm = PixelNorm(now)
        self.last = nn.Conv2d(now, outputs * channels * patch_size**2, 3, padding=1)
        _zero_init(self.last)

    def embed(self, t: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        """t (B,) from 0 to 1 and classes (B,) as one vector each (B, embedding)."""
        octaves = torch.linspace(0, math.log(1000), self.frequencies, device=t.device)
        angle = t[:, None] * octaves.exp() * (math.pi / 2)
        e = self.time(torch.cat([angle.sin(), angle.cos()], dim=1))
        return F.silu(e if self.label is None else e + self.label(label))

    def forward(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        label: torch.Tensor | None = None,
        words: torch.Tensor | None = None,
        beside: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x (B, C, H, W), t (B,) from 0 to 1, label (B,), words (B, L), beside (B, C', H, W).

        UserError where the images cannot be halved as often as there are levels.
        """
        if x.shape[2] % self.divisor or x.shape[3] % self.divisor:
            raise UserError(
                f"Images of {x.shape[3]}×{x.shape[2]} pixels cannot be halved as often as this U-Net "
                f"does: their sides must be divisible by {self.divisor}."
            )
        with autocast(x.device):
            e = self.embed(t, label)
            text = None if self.words is None else self.words(words)  # (B, L, embedding)
            x = x if beside is None else torch.cat([x, beside], dim=1)
            x = F.pixel_unshuffle(x, self.patch_size).contiguous(memory_format=torch.channels_last)
            h = self.first(x)
            skips = [h]
            for level, stages in enumerate(self.down):
                h = self.halve(h, 2) if level else h
                for stage in stages.children():
                    h = stage(h, e, text)
                    skips.append(h)
            for stage in self.middle:
                h = stage(h, e, text)
            for level, stages in enumerate(self.up):
                h = self.grow[level - 1](h) if level else h
                for stage in stages.children():
                    h = stage(torch.cat([h, skips.pop()], dim=1), e, text)
            return F.pixel_shuffle(self.last(F.silu(self.norm(h))), self.patch_size).float()


def _zero_init(layer: nn.Module) -> None:
    """Weights and biases of 0: the layer adds nothing before it has learnt something."""
    for values in layer.parameters():
        nn.init.zeros_(values)
