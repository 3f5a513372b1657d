"""How the time of a training or a sampling grows with what it is given."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

import mlp_diffusion
from benchmarks.training import part, quietly
from imagelab.data.datasets import load_dataset
from imagelab.setup.runtime import Stopwatch
from studies import unet_diffusion

FACTORS = (1, 2, 4)


def growth(device: torch.device, quick: bool) -> list[dict]:
    """For images, epochs, T and width: seconds at 1, 2 and 4 times as much, medians of three."""
    data = load_dataset("mnist-5k", Path("data")).to(device)
    scale = 4 if quick else 1
    config = mlp_diffusion.Config(epochs=1)

    def images(k: int) -> Callable:
        own = part(data, 10_240 // scale * k)
        return quietly(lambda at: mlp_diffusion.train(config, own, at / "model.pth"))

    def epochs(k: int) -> Callable:
        own, longer = part(data, 10_240 // scale), replace(config, epochs=k)
        return quietly(lambda at: mlp_diffusion.train(longer, own, at / "model.pth"))

    def steps(k: int) -> Callable:
        model = mlp_diffusion.build({**vars(config), "T": 25 * k}, data.shape).to(device)
        return lambda: mlp_diffusion.sample(model, 1000 // scale, data.shape, 0)

    def width(k: int) -> Callable:
        unet = unet_diffusion.Config(epochs=1, widths=(24 * k, 48 * k))
        own = part(data, 128 // scale)
        return quietly(lambda at: unet_diffusion.train(unet, own, at / "model.pth"))

    lines = []
    for what, make in (
        ("images, training the MLP DDPM", images),
        ("epochs, training the MLP DDPM", epochs),
        ("T, sampling the MLP DDPM", steps),
        ("width, training the U-Net", width),
    ):
        seconds = [[] for _ in FACTORS]
        runs = [make(k) for k in FACTORS]
        for _ in range(2 if quick else 3):
            for times, run in zip(seconds, runs, strict=True):
                with Stopwatch() as watch:
                    run()
                times.append(watch.seconds)
        medians = [statistics.median(times) for times in seconds]
        lines.append({"what": what, "relative": [m / medians[0] for m in medians]})
    return lines
