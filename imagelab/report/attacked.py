"""Figures of networks under attack: accuracies, which attack fools which network, input gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from imagelab.data.tensors import Dataset, unit
from imagelab.report import figures
from imagelab.setup.runtime import generator
from imagelab.techniques.attacks import input_gradient, pgd
from imagelab.techniques.classifier import predict

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_accuracies(
    attacks: Sequence[str],
    tables: dict[str, list[list[Any]]],
    strong: dict[str, dict[str, float]],
    clean: dict[str, float],
) -> Figure:
    """A panel per network: accuracy against ε, a line per attack, a star for the strong ones together.

    A network's table has rows of ε, the accuracies under `attacks`, and the restarts.
    """
    figure, axes = figures.new_figure(10, 3.6, columns=len(tables), sharey=True)
    for axis, (name, rows) in zip(axes[0], tables.items(), strict=True):
        epsilons, *accuracies, _ = zip(*rows, strict=True)
        lines = {a: [clean[name], *line] for a, line in zip(attacks, accuracies, strict=True)}
        figures.plot_lines(axis, [0, *epsilons], lines, "ε (pixels are in 0 to 1)", "")
        # Where lines meet, the upper ones let the lower ones be seen.
        axis.lines[3].set(linestyle="--", markersize=8, fillstyle="none", zorder=3)
        star = {"color": "black", "markersize": 11, "zorder": 4, "label": "strong attacks together"}
        axis.plot(epsilons[-1], strong[name]["all together"], "*", **star)
        axis.set_xticks([0, *epsilons], [f"{e:g}" for e in (0, *epsilons)])
        axis.set_title(f"training: {name}")
        axis.get_legend().remove()
    axes[0, 0].set(ylabel="accuracy", ylim=(-0.04, 1.04))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def plot_transfer(names: list[str], rows: list[list[float]]) -> Figure:
    """Accuracy of each network (columns) under the attacks against each network (rows)."""
    figure, axes = figures.new_figure(4.2, 3.6)
    texts = [[f"{value:.1%}" for value in row] for row in rows]
    figures.plot_matrix(axes[0, 0], torch.tensor(rows), names, texts)
    axes[0, 0].set(xlabel="accuracy of", ylabel="attack made against")
    return figure


def plot_gradients(
    epsilon: float, seed: int, models: dict[str, nn.Module], data: Dataset
) -> Figure:
    """A column per class, two rows per network: the image under PGD-40, and the input gradient."""
    labels = data.test_labels.unique()[:10]
    rows = [int((data.test_labels == label).nonzero()[0]) for label in labels]
    x, y = unit(data.test_images[rows]), data.test_labels[rows]
    rng = generator(seed, "gallery")
    figure, axes = figures.new_figure(1.1 * len(rows), 9.6, 1 + 2 * len(models), len(rows))
    for axis, image, label in zip(axes[0], x, labels.tolist(), strict=True):
        figures.show_image(axis, figures.as_picture(image), data.classes[label])
    names = ["held-out\nimage"]
    for k, (name, model) in enumerate(models.items()):
        attacked = pgd(model, x, y, epsilon, rng)
        gradients = input_gradient(model, x, y)
        predicted = predict(model, attacked).argmax(dim=1)
        above, below = axes[1 + 2 * k], axes[2 + 2 * k]
        for i in range(len(rows)):
            title = f"read as {data.classes[predicted[i]]}"
            figures.show_image(above[i], figures.as_picture(attacked[i]), title)
            if predicted[i] != y[i]:
                above[i].title.set(color=figures.PALETTE[1], weight="bold")
            gradient = gradients[i].mean(dim=0).cpu().numpy()
            limit = max(np.quantile(np.abs(gradient), 0.995), 1e-12)
            below[i].imshow(gradient, cmap="RdBu_r", vmin=-limit, vmax=limit)
            below[i].set_axis_off()
        names += [f"{name},\nattacked", f"{name},\ngradient"]
    figures.name_rows(axes, names)
    key = (
        "Images: black is 0, white is 1. Gradients, each with a scale of its own: red, a brighter pixel "
        "raises the loss;\nblue, a darker pixel raises it; pale, the pixel hardly matters."
    )
    figure.supxlabel(key, fontsize=10)
    return figure
