"""Figures of a classifier: which classes it takes for which, and its mistakes with high confidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from imagelab.data.tensors import Dataset
from imagelab.report import figures
from imagelab.techniques.classifier import as_unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def label_classes(axis, classes: tuple[str, ...]) -> None:
    """Class names along the x axis; long names are slanted."""
    axis.set_xticks(range(len(classes)), classes, rotation=60 if max(map(len, classes)) > 2 else 0)


def plot_confusion(table: torch.Tensor, classes: tuple[str, ...]) -> Figure:
    """Counts (classes, classes): rows are true, columns predicted classes; colour is the row's share."""
    side = min(max(0.5 * len(classes), 4), 12)
    figure, axes = figures.new_figure(side + 1, side)
    axis, shares = axes[0, 0], table / table.sum(dim=1, keepdim=True).clamp(min=1)
    texts = [[f"{count:,}" if count else "" for count in row] for row in table.tolist()]
    shown = figures.plot_matrix(axis, shares, classes, texts if len(classes) <= 20 else None)
    label_classes(axis, classes)
    axis.set(xlabel="read as", ylabel="is")
    figure.colorbar(shown, ax=axis, shrink=0.8, label="share of the row")
    return figure


def plot_mistakes(data: Dataset, probabilities: torch.Tensor, rows: list[int]) -> Figure:
    """The held-out images `rows`, each with true class, predicted class and confidence."""
    confidence, predicted = probabilities.max(dim=1)
    pictures = {}
    for k in rows:
        true, wrong = data.classes[data.test_labels[k]], data.classes[predicted[k]]
        title = f"{true}, read as {wrong}\n{confidence[k]:.1%} sure #{k}"
        pictures[title] = figures.as_picture(as_unit(data.test_images[k][None])[0])
    return figures.plot_side_by_side(pictures, rows=-(-len(rows) // 6), height=2.4)
