"""The variational bounds of diffusion models as figures and a table, and the errors behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from imagelab.data.tensors import Described, random_subset, signed
from imagelab.report import figures
from imagelab.report.results import Result
from imagelab.setup.runtime import generator
from imagelab.techniques.diffusion import Schedule
from imagelab.techniques.likelihood import (
    Bound,
    OfImages,
    Variance,
    fitted_variances,
    variational_bound,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

USUAL, FITTED = "bound", "bound, fitted variances"  # how their metrics' names begin


@dataclass
class Estimator:
    """What a bound needs of a diffusion model, and what its training weighed."""

    estimate: OfImages
    """x_t (B, D) and t (B,) to x̂₀ (B, D) as sampling uses it."""
    schedule: Schedule
    weight: torch.Tensor
    """Of the squared error of x̂₀ in the loss, (T,)."""


def report_bounds(
    result: Result, models: Mapping[str, Estimator], data: Described, n: int, seed: int
) -> None:
    """Enter errors and bounds of models by their names, on `n` held-out images.

    The last one is also bounded with fitted variances, and its bounds become metrics.
    """
    images, (name, last) = data.test_images[:n], list(models.items())[-1]
    bounds = {k: bound_of(model, images, seed) for k, model in models.items()}
    some = data.images[random_subset(len(data.images), 5000, "mean image").to(data.images.device)]
    guess = (signed(images) - signed(some).mean(dim=0)).square().mean().item()
    caption = (
        "Left: the error of x̂₀ by the noise in x_t, at every t. Sampling starts in pure noise, at the "
        "right edge. Right: what that error weighs in the loss of each t."
    )
    if len(models) > 1:  # the other recipes are there
        caption += (
            " The line of the recipe to the letter ends before: it never trains on so much noise. The "
            "corrected recipe hardly trains where there is little noise, so its error rises there again."
        )
    result.add_figure("errors.png", plot_errors(models, bounds, guess), caption)
    x0, rng = signed(some[:n]).flatten(1), generator(seed, "variances")
    variances = fitted_variances(last.estimate, last.schedule, x0, rng)
    fitted = bound_of(last, images, seed, variances)
    for prefix, bound in ((USUAL, bounds[name]), (FITTED, fitted)):
        for part, value in bound.parts().items():
            result.add_metric(f"{prefix}: {part}", value, len(images), better="lower")
    bounds[f"{name}, fitted variances"] = fitted
    caption = f"The variational bound on −log p of held-out images, n = {len(images):,}"
    rows = [[name, *bound.parts().values()] for name, bound in bounds.items()]
    result.add_table(caption, ["recipe", *fitted.parts()], rows)
    caption += (
        ", term by term; behind each name its sum in bits per dimension. Small t are the last steps of "
        "sampling. The bound does not rank the pictures: most of it is decided there, in noise that "
        "nobody sees."
    )
    result.add_figure("bound.png", plot_terms(bounds), caption)


def bound_of(
    model: Estimator,
    images: torch.Tensor,
    seed: int,
    variance: Variance | torch.Tensor = "posterior",
) -> Bound:
    """The bound on −log p of images (N, C, H, W) uint8, for DDPM's step with β̃ or another variance."""
    x0, rng = signed(images).flatten(1), generator(seed, "bound")
    return variational_bound(model.estimate, model.schedule, x0, rng, variance)


def plot_errors(
    models: Mapping[str, Estimator], bounds: Mapping[str, Bound], guess: float
) -> Figure:
    """The error of x̂₀ by the noise in x_t, and what it weighs in the loss; t from 1 on.

    It is taken from the bound: with the variance β̃_t the term L_t is the squared error of x̂₀ times
    ½·(SNR_{t−1} − SNR_t). `guess` is the error of answering with the mean image.
    """
    figure, axes = figures.new_figure(9, 4.4, columns=2)
    noise, errors, shares = {}, {}, {}
    for name, model in models.items():
        bound, schedule = bounds[name], model.schedule
        noise[name] = (1 - schedule.alpha_bar[1:]).sqrt()
        errors[name] = 2 * bound.terms[1:] / -schedule.snr.diff() / bound.dimensions
        shares[name] = model.weight[1:] / model.weight[1:].sum()
    n = len(next(iter(bounds.values())).per_image)
    for axis, lines, ylabel, top in (
        (axes[0, 0], errors, f"squared error of x̂₀ (n = {n:,})", 3),  # ε̂/√ᾱ_t leaves every scale
        (axes[0, 1], shares, "share of the loss's weight on this error", 1),
    ):
        xlabel = "noise in x_t, √(1 − ᾱ_t); sampling starts at 1"
        figures.plot_lines(axis, noise, lines, xlabel, ylabel, False, dashes=True, legend=False)
        axis.set_xlim(0, 1.02)
        if axis is axes[0, 0]:
            axis.axhline(
                guess, color="#888888", linewidth=1, linestyle="--", label="the mean image"
            )
        figures.log_scale(axis)
        axis.set_ylim(top=top)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def plot_terms(bounds: Mapping[str, Bound]) -> Figure:
    """The steps of the bounds as lines; the reconstruction at t = 0 and the prior at t = T as dots."""
    figure, axes = figures.new_figure(8.5, 5.6)
    axis, T = axes[0, 0], len(next(iter(bounds.values())).terms)
    xlabel = f"t (dots at 0: reconstruction; lines: steps; dots at {T}: prior)"
    lines = {
        f"{name}, sum: {bound.bits_per_dimension:.1f} bits": bound.terms[1:]
        for name, bound in bounds.items()
    }
    figures.plot_lines(
        axis, range(1, T), lines, xlabel, "term, nats per image", False, dashes=True, legend=False
    )
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper left")
    for line, bound in zip(axis.get_lines(), bounds.values(), strict=True):
        axis.plot([0, T], [bound.reconstruction, bound.prior], "o", color=line.get_color())
    figures.log_scale(axis)
    return figure


def lessons(result: Result) -> list[str]:
    """What the bounds of the last model teach, as far as they were measured."""
    measured = result.measured(*(f"{name}: bits per dimension" for name in (USUAL, FITTED)))
    if measured is None:
        return []
    bound, fitted = measured
    told = (
        f"Its variational bound is {bound:.3g} bits per dimension, with fitted variances {fitted:.3g}. "
        "To guess evenly among 256 grey levels costs 8."
    )
    if bound > 8 > fitted:
        told += (
            " Samples can look right where the likelihood is poor. The last steps are the reason: their "
            "usual variance is too small for the errors of x̂₀."
        )
    return [told]
