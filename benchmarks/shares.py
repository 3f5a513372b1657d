"""What the time of a training's operators goes into, by PyTorch's profiler.

What Python takes between two operators is not seen by it.
"""

from __future__ import annotations

from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from benchmarks.training import quietly, trainings
from imagelab.data.datasets import load_dataset

# Of each kind, what its operators' names contain; an operator is of the first kind that fits.
KINDS = {
    "products": ("mm", "convolution"),
    "Adam": ("adam", "Adam"),
    "pooling": ("pool",),
    "filling": ("fill_", "zero_"),  # with zeros, from which pooling's way back begins
    "activations": ("relu", "clamp_min", "threshold", "tanh", "sigmoid", "silu"),
    "random numbers": ("normal_", "uniform_", "random_"),
}
NAMES = ("MLP GAN", "MLP DDPM", "CNN classifier")


def shares() -> list[dict]:
    """For each of NAMES the part of the operators' time that each of KINDS took, and the rest."""
    chosen, rows = trainings(load_dataset("mnist-5k", Path("data"))), []
    for name in NAMES:
        train = quietly(chosen[name][2])
        train()  # the first run also loads and compiles
        with profile(activities=[ProfilerActivity.CPU]) as watched:
            train()
        seconds = dict.fromkeys([*KINDS, "the rest"], 0.0)
        for event in watched.key_averages():
            kind = (kind for kind, parts in KINDS.items() if any(p in event.key for p in parts))
            seconds[next(kind, "the rest")] += event.self_cpu_time_total
        total = sum(seconds.values())
        rows.append({"what": name, **{kind: part / total for kind, part in seconds.items()}})
    return rows
