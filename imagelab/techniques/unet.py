"""The U-Net of diffusion models: residual blocks, skip connections, time and class told to every block.

After Ho et al. (2020), with scales and shifts as Dhariwal and Nichol (2021) apply them, no class as one
more class (Ho and Salimans 2022), a norm over the channels of each pixel, which is several times as
fast as a group norm where channels lie last in memory, and, where pictures are small and processors
slow, 2×2 pixels folded into channels (Luhman and Luhman 2022), a quarter of the work.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from imagelab.setup.runtime import UserError, autocast


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
        _nothing_at_first(self.conv2)
        _nothing_at_first(self.scale_shift)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.scale_shift(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip(x) + self.conv2(self.dropout(F.silu(h)))


class Attention(nn.Module):
    """x + attention (Vaswani et al. 2017) of every pixel to all pixels, or to the words of a text."""

    def __init__(self, channels: int, context: int = 0, heads: int = 4) -> None:
        super().__init__()
        self.norm, self.heads = PixelNorm(channels), heads
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(context or channels, 2 * channels)
        self.out = nn.Linear(channels, channels)
        _nothing_at_first(self.out)

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
    """A residual block, with attention to the other pixels and to the words where asked for."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        embedding: int,
        dropout: float,
        attention: bool,
        reads: bool,
    ) -> None:
        super().__init__()
        self.block = ResidualBlock(channels, out_channels, embedding, dropout)
        self.among_pixels = Attention(out_channels) if attention else None
        self.to_words = Attention(out_channels, embedding) if attention and reads else None

    def forward(
        self, x: torch.Tensor, embedding: torch.Tensor, words: torch.Tensor | None
    ) -> torch.Tensor:
        x = self.block(x, embedding)
        x = x if self.among_pixels is None else self.among_pixels(x)
        return x if self.to_words is None else self.to_words(x, words)


class UNet(nn.Module):
    """Images (B, C, H, W), t and what is asked for to (B, C, H, W).

    `widths` are the channels from the full size inwards, each next level at half the size, with
    `blocks` residual blocks on the way down and one more on the way up; `attention` names the levels
    (0 is the full size) with attention. `fold`×`fold` pixels are one at level 0. What is asked for is
    a class of `classes` (the number `classes` itself stands for none), words out of a `vocabulary`,
    to which the levels with attention attend, or a picture with `beside` channels; each is absent at 0.
    """

    def __init__(
        self,
        channels: int,
        widths: tuple[int, ...] = (64, 128),
        blocks: int = 1,
        attention: tuple[int, ...] = (1,),
        fold: int = 2,
        dropout: float = 0.0,
        classes: int = 0,
        vocabulary: int = 0,
        beside: int = 0,
    ) -> None:
        super().__init__()
        levels = range(len(widths))
        if not set(attention) <= set(levels):
            raise UserError(f"Attention needs levels from 0 to {len(widths) - 1}, not {attention}.")
        if any(width % 4 for width in widths):
            raise UserError(f"The widths of a U-Net must be divisible by 4; they are {widths}.")
        self.classes, self.fold = classes, fold
        self.divisor = fold * 2 ** (len(widths) - 1)  # of the images' sides
        embedding = 4 * widths[0]
        self.frequencies = widths[0]
        self.time = nn.Sequential(
            nn.Linear(2 * widths[0], embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.label = nn.Embedding(classes + 1, embedding) if classes else None
        self.words = nn.Embedding(vocabulary, embedding) if vocabulary else None

        def stage(channels: int, level: int) -> Stage:
            attend = level in attention
            return Stage(channels, widths[level], embedding, dropout, attend, vocabulary > 0)

        self.first = nn.Conv2d((channels + beside) * fold**2, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.grow = nn.ModuleList()  # back to twice the size
        now, skips = widths[0], [widths[0]]
        for level in levels:
            self.down.append(nn.ModuleList())
            for _ in range(blocks):
                self.down[level].append(stage(now, level))
                now = widths[level]
                skips.append(now)
        self.middle = nn.ModuleList([stage(now, levels[-1]), stage(now, levels[-1])])
        for level in reversed(levels):
            self.up.append(nn.ModuleList())
            for _ in range(blocks + (level == 0)):
                self.up[-1].append(stage(now + skips.pop(), level))
                now = widths[level]
            if level:
                self.grow.append(nn.ConvTranspose2d(now, widths[level - 1], 2, stride=2))
                now = widths[level - 1]
        self.norm = PixelNorm(now)
        self.last = nn.Conv2d(now, channels * fold**2, 3, padding=1)
        _nothing_at_first(self.last)

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
        """x (B, C, H, W), t (B,) from 0 to 1, label (B,), words (B, L), beside (B, C', H, W)."""
        if x.shape[2] % self.divisor or x.shape[3] % self.divisor:
            raise UserError(
                f"Images of {x.shape[3]}×{x.shape[2]} pixels cannot be halved as often as this U-Net "
                f"does: their sides must be divisible by {self.divisor}."
            )
        with autocast(x.device):
            e = self.embed(t, label)
            read = None if self.words is None else self.words(words)  # (B, words, embedding)
            x = x if beside is None else torch.cat([x, beside], dim=1)
            x = F.pixel_unshuffle(x, self.fold).contiguous(memory_format=torch.channels_last)
            h = self.first(x)
            skips = [h]
            for level, stages in enumerate(self.down):
                h = F.avg_pool2d(h, 2) if level else h
                for stage in stages:
                    h = stage(h, e, read)
                    skips.append(h)
            for stage in self.middle:
                h = stage(h, e, read)
            for level, stages in enumerate(self.up):
                h = self.grow[level - 1](h) if level else h
                for stage in stages:
                    h = stage(torch.cat([h, skips.pop()], dim=1), e, read)
            return F.pixel_shuffle(self.last(F.silu(self.norm(h))), self.fold).float()


def _nothing_at_first(layer: nn.Module) -> None:
    """A layer that adds nothing until it has learnt to."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
