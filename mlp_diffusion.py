"""A 50-step diffusion model with a small MLP, and why the textbook recipe fails at 50 steps.

The recipe that is copied from place to place takes the DDPM of Ho et al. (2020), T = 1000, and
shortens it to T = 50 with the same betas (1e-4 to 0.02) and an MLP 784 → 512 → 256 → 784 that
predicts the noise. To the letter (`--recipe literal`) it draws noise, for two reasons:

1. The forward process does not end in noise: ᾱ_T = Π(1 − β_t) = 0.60, so x_T still shows the digit,
   but sampling starts from N(0, I), which training never saw.
2. Noise has 784 independent components and the 256-wide layer passes at most 256 of them: at least
   1 − 256/784 = 67 % of the noise cannot be predicted, however long one trains.

`--recipe corrected`, the default, keeps every number of the recipe and changes two things:

1. Sampling starts where training ended: an image is drawn from Gaussians with the means and
   covariances of the training images, and sent through the forward process to t = T.
2. The noise passes beside the bottleneck: the MLP estimates the clean image x̂₀, and
   ε̂ = (x_t − √ᾱ_t·x̂₀)/√(1 − ᾱ_t) is a skip connection with fixed coefficients.

`--recipe rescaled` takes the other road: betas × 1000/T, after which x_T is noise, with the skip.

    python mlp_diffusion.py                       # 28 epochs, a minute and a half on two cores
    python mlp_diffusion.py --compare             # the three recipes side by side
    python mlp_diffusion.py --dataset mnist       # the full MNIST
    python mlp_diffusion.py --resume              # go on after Ctrl-C
    python mlp_diffusion.py --sample-only --num-samples 2000 --samples-file samples.npz

The README states the figures to expect.
"""

from __future__ import annotations

from imagelab.command import command_line

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from imagelab import figures
from imagelab.checkpoints import as_described, load_checkpoint, load_weights
from imagelab.datasets import Dataset, load_for, signed, to_uint8
from imagelab.diffusion import Schedule, last, linear_schedule
from imagelab.metrics import Judge
from imagelab.mixture import draw_gaussians, fit_gaussians
from imagelab.results import Result, start_result
from imagelab.runtime import autocast, generator, prepare
from imagelab.samples import (
    GRID,
    TRACKED,
    clocked,
    draw_comparison,
    draw_only,
    draw_tracked,
    draw_trajectory,
    judge_for,
    report_samples,
    samples_to_draw,
    track,
    write_grid,
    write_samples,
)
from imagelab.settings import Count, Fraction, Limits, Rate, SamplingSettings, plain
from imagelab.training import Training, goes_on

SCRIPT = "mlp_diffusion"
PICTURES, MODELS = "diffusion_samples", "diffusion_models"
SCORE_EVERY = 7  # epochs
TITLE = "MLP diffusion: 50 steps, to the letter and corrected"
SUMMARY = (
    "A dense network learns to remove noise step by step and so to draw digits. The widely copied "
    "50-step recipe starts from a noise it never trained on and asks for more than its 256 units can "
    "say; two corrections keep all of its numbers and make it draw."
)
LESSONS = (
    "To the letter the recipe ends at a distance of {literal: Fréchet distance|,.0f}; two "
    "corrections, with all its numbers kept, and as many epochs as the picture names bring it to "
    "{Fréchet distance|,.0f}, a share of {Fréchet distance, share of literal's|.2f}.",
    "In the last x_t the image itself still stands at {weight of the image in the last x_t|.0%}: "
    "sampling must start where training ended, and what 256 units cannot carry must pass beside them.",
)
NOISE_ONLY = 0.05  # √ᾱ_T, below which x_T is noise for all purposes


@dataclass(frozen=True)
class Recipe:
    """What the three recipes differ in."""

    skip: bool
    """Whether the network estimates x̂₀ and the noise passes beside it."""
    start: Literal["noise", "data"]
    """Whether sampling starts from N(0, I) or from the data's own Gaussians, noised to t = T."""
    rescaled: bool = False
    """Whether the betas are multiplied by 1000/T."""


RECIPES = {
    "literal": Recipe(skip=False, start="noise"),
    "corrected": Recipe(skip=True, start="data"),
    "rescaled": Recipe(skip=True, start="noise", rescaled=True),
}


@dataclass(frozen=True)
class Config(SamplingSettings):
    """Settings of the MLP diffusion model."""

    recipe: Literal["corrected", "literal", "rescaled"] = "corrected"
    """corrected: the recipe's numbers, with the two corrections; literal: to the letter; rescaled:
    betas × 1000/T, with the skip connection."""
    compare: bool = False
    """Also train the two other recipes and show all three side by side."""
    compare_epochs: Count = 4
    """Epochs of the two other recipes."""
    epochs: Count = 28
    """Passes over the training images."""
    batch_size: Annotated[int, Limits(2)] = 512
    """Images per step, each at its own random t."""
    lr: Rate = 2e-3
    """Adam's learning rate."""
    T: Annotated[int, Limits(21, 10_000)] = 50
    """Steps of the diffusion process."""
    beta_start: Annotated[float, Limits(1e-8, 0.5)] = 1e-4
    """β of the first step."""
    beta_end: Annotated[float, Limits(1e-8, 0.5)] = 0.02
    """β of the last step; those between lie on a line."""
    gamma: Rate = 5.0
    """Clamp of the loss weight (min-SNR, Hang et al. 2023); it acts with the skip connection only."""
    clusters: Count = 50
    """Gaussians that stand for the data where sampling starts; 1: a single one."""
    ema_decay: Fraction = 0.999
    """Decay of the moving average of the weights, which draws the samples; 0: none."""


# --- the forward process (imagelab/diffusion.py holds its formulas) -------------------------------


def what_the_end_means(schedule: Schedule, start: str) -> str:
    """What ᾱ_T means for the start of sampling, in a sentence."""
    image = math.sqrt(schedule.alpha_bar[-1].item())
    text = f"ᾱ_T = {schedule.alpha_bar[-1].item():.3g}, SNR_T = {schedule.snr[-1].item():.3g}"
    if image <= NOISE_ONLY:
        return f"{text}: x_T is noise for all purposes, and sampling may start from N(0, I)."
    text += f": x_T still holds {image:.0%} of the image, "
    if start == "noise":
        return text + "but sampling starts from N(0, I), which training never showed the network."
    return text + "so sampling starts from the data's own mean and covariance, not from N(0, I)."


# --- the network ----------------------------------------------------------------------------------


def time_embedding(T: int, size: int = 64) -> torch.Tensor:
    """Sines and cosines of t at `size`/2 frequencies (Vaswani et al. 2017), (T, size)."""
    frequency = torch.exp(-math.log(10 * T) * torch.arange(size // 2) / (size // 2))
    angle = torch.arange(T)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class Denoiser(nn.Module):
    """MLP (x_t, embedding of t) → 512 → 256 → D, which estimates the noise in x_t.

    It carries its recipe and its schedule: together they say how to sample from it.
    """

    def __init__(self, dimensions: int, schedule: Schedule, recipe: Recipe) -> None:
        super().__init__()
        self.schedule, self.recipe = schedule, recipe
        self.register_buffer("embedding", time_embedding(len(schedule)), persistent=False)
        self.register_buffer("a", schedule.alpha_bar.sqrt().float(), persistent=False)
        self.register_buffer("b", (1 - schedule.alpha_bar).sqrt().float(), persistent=False)
        first = nn.Linear(dimensions + self.embedding.shape[1], 512)
        second = nn.Linear(512, 256)
        for layer in (first, second):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), nn.Linear(256, dimensions))

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """ε̂ (B, D) for x_t (B, D) and t (B,)."""
        seen = torch.cat([x_t + 1, self.embedding[t]], dim=1)  # a black background is 0
        with autocast(x_t.device):
            out = self.mlp(seen).float()
        if not self.recipe.skip:
            return out
        return (x_t - self.a[t, None] * out) / self.b[t, None]  # out is x̂₀

    def estimate(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x̂₀ (B, D) for x_t (B, D) and t (B,)."""
        return (x_t - self.b[t, None] * self(x_t, t)) / self.a[t, None]


def build(config: dict[str, Any], shape: tuple[int, int, int]) -> Denoiser:
    """The untrained network that `config` (its own or a checkpoint's) describes."""
    recipe = RECIPES[config["recipe"]]
    schedule = linear_schedule(
        config["T"], config["beta_start"], config["beta_end"], recipe.rescaled
    )
    return Denoiser(math.prod(shape), schedule, recipe)


def noise_loss(eps_hat: torch.Tensor, eps: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The mean squared error of the noise, each image's (B, D) weighted by `weight` (B,)."""
    return (weight * (eps_hat - eps).square().mean(dim=1)).mean()


def loss_weight(schedule: Schedule, skip: bool, gamma: float) -> torch.Tensor:
    """Weight of the noise's error at each t, (T,).

    Through the skip connection the error of ε̂ is SNR(t) times that of x̂₀, so t = 0 with its SNR of
    9,999 would drown the rest: min(SNR, γ)/SNR (min-SNR) bounds the weight on x̂₀ by γ.
    """
    if not skip:
        return torch.ones(len(schedule))
    return (schedule.snr.clamp(max=gamma) / schedule.snr).float()


# --- where sampling starts ------------------------------------------------------------------------


def start_of_sampling(
    model: Denoiser, gaussians: dict, n: int, rng: torch.Generator
) -> torch.Tensor:
    """x_T (n, D) to start from: N(0, I), or an image drawn from `gaussians`, noised to t = T."""
    eps = torch.randn(n, gaussians["mean"].shape[1], generator=rng).to(gaussians["mean"].device)
    if model.recipe.start == "noise":
        return eps
    x0 = draw_gaussians(gaussians, n, rng)
    end = torch.full((n,), len(model.schedule) - 1, device=x0.device)
    return model.schedule.q_sample(x0, end, eps)


# --- the reverse process --------------------------------------------------------------------------


@torch.no_grad()
def reverse_process(
    model: Denoiser, x: torch.Tensor, rng: torch.Generator
) -> Iterator[tuple[int, torch.Tensor]]:
    """Ancestral sampling from x_T (B, D) (Ho et al. algorithm 2); yields t and x_t down to t = 0.

    With few steps the posterior's own variance β̃ is the one to add, not β; none at the last step.
    """
    yield len(model.schedule), x
    for t in reversed(range(len(model.schedule))):
        x0 = model.estimate(x, torch.full((len(x),), t, device=x.device))
        if model.recipe.skip:  # the literal recipe does not clip
            x0 = x0.clamp(-1, 1)
        x, variance = model.schedule.posterior(x0, x, t)
        if t > 0:
            x = x + math.sqrt(variance) * torch.randn(x.shape, generator=rng).to(x.device)
        yield t, x


def sample(
    model: Denoiser, gaussians: dict, n: int, shape: tuple[int, int, int], seed: int
) -> torch.Tensor:
    """`n` images (n, C, H, W) uint8, drawn in portions of 1,000."""
    rng = generator(seed, "samples")
    parts = []
    for size in [1000] * (n // 1000) + [n % 1000] * (n % 1000 > 0):
        x_T = start_of_sampling(model, gaussians, size, rng)
        parts.append(to_uint8(last(reverse_process(model, x_T, rng)).reshape(-1, *shape)))
    return torch.cat(parts)


# --- training -------------------------------------------------------------------------------------


def train(
    config: Config,
    data: Dataset,
    gaussians: dict,
    path: Path,
    folder: Path | None = None,
    judge: Judge | None = None,
    spent: float = 0.0,
) -> Training:
    """Train `config.recipe`, or go on with --resume; a sample grid per epoch goes into `folder`.

    `judge` watches: it scores samples every few epochs and has no say in the training. `spent`
    are the seconds that fitting the Gaussians took, where --time-limit is to count them. The returned
    run holds the averaged network, which is the one to sample from.
    """
    device = data.images.device
    torch.manual_seed(config.seed)
    model = build(plain(config), data.shape).to(device)
    print(f"{config.recipe}: {what_the_end_means(model.schedule, model.recipe.start)}")
    adam = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    weight = loss_weight(model.schedule, model.recipe.skip, config.gamma).to(device)
    run = Training(path, SCRIPT, config, data, {"denoiser": model}, {"adam": adam}, ema="denoiser",
                   ema_decay=config.ema_decay, free=("compare", "compare_epochs"),
                   label=f"DDPM, {config.recipe}", spent=spent)  # fmt: skip
    run.extra = gaussians  # a checkpoint holds all that sampling takes
    with run:
        for epoch in run.epochs():
            for batch in run.batches():
                x0 = signed(data.images[batch]).flatten(1)  # (B, D) in [-1, 1]
                t = torch.randint(0, config.T, (len(x0),), generator=run.rng, device=device)
                eps = torch.randn(x0.shape, generator=run.rng, device=device)
                eps_hat = model(model.schedule.q_sample(x0, t, eps), t)
                loss = noise_loss(eps_hat, eps, weight[t])
                adam.zero_grad()
                loss.backward()
                adam.step()
                run.log(loss=loss)
            if folder is not None:
                images = sample(run.averaged, gaussians, GRID, data.shape, config.seed)
                write_grid(folder / f"epoch_{epoch:03d}.png", images)
            if judge is not None and (epoch % SCORE_EVERY == 0 or run.is_last(epoch)):
                images = sample(run.averaged, gaussians, TRACKED, data.shape, config.seed)
                track(run, judge, images)
    return run


def train_others(config: Config, data: Dataset, gaussians: dict) -> dict[str, Training]:
    """The recipes that `config.recipe` is compared with, each with a checkpoint of its own."""
    others = {}
    for name in (n for n in RECIPES if n != config.recipe):
        path = config.output_dir / MODELS / f"compared_{name}.pth"
        resume = goes_on(config, path)
        other = replace(config, recipe=name, epochs=config.compare_epochs, resume=resume)
        others[name] = train(other, data, gaussians, path)
    return others


def sample_from_checkpoint(config: Config, device: torch.device) -> torch.Tensor:
    """Samples of the checkpoint under --output-dir, whatever settings it was trained with."""
    path = checkpoint_path(config)
    saved = load_checkpoint(path, SCRIPT, device)
    with as_described(path):
        shape = tuple(saved["dataset"]["shape"])
        model = build(saved["config"], shape).to(device)
        gaussians = {part: saved["extra"][part] for part in ("mean", "factor", "share")}
    load_weights(model, saved["ema"], path)
    return sample(model, gaussians, config.num_samples, shape, config.seed)


# --- measuring ------------------------------------------------------------------------------------


@torch.no_grad()
def loss_per_timestep(model: Denoiser, images: torch.Tensor, seed: int) -> torch.Tensor:
    """The mean squared error of the noise at every t, (T,), on held-out images (N, C, H, W)."""
    rng = generator(seed, "loss per timestep")
    x0 = signed(images).flatten(1)
    losses = []
    for t in range(len(model.schedule)):
        eps = torch.randn(x0.shape, generator=rng).to(x0.device)
        at = torch.full((len(x0),), t, device=x0.device)
        losses.append(F.mse_loss(model(model.schedule.q_sample(x0, at, eps), at), eps))
    return torch.stack(losses).cpu()


def evaluate(
    config: Config,
    data: Dataset,
    runs: dict[str, Training],
    gaussians: dict,
    watch: Judge | None,
    result: Result,
) -> torch.Tensor:
    """Sample and score every trained recipe, draw the figures; returns the main one's samples."""
    n, seed, main = samples_to_draw(config, data), config.seed, config.recipe

    def drawn(name: str) -> torch.Tensor:
        return sample(runs[name].averaged, gaussians, n, data.shape, seed)

    with clocked(result, n):
        own = drawn(main)
    samples = {name: own if name == main else drawn(name) for name in RECIPES if name in runs}
    judge = watch and judge_for(config, data, n)
    scores = {main: report_samples(result, samples[main], judge, data)}
    draw_tracked(result, runs[main], watch)
    for name in (name for name in samples if judge and name != main):
        scores[name] = judge.scores(samples[name])
        judge.add_to(result, scores[name], prefix=f"{name}: ")
    scores = {name: score for name, score in scores.items() if score is not None}
    if main == "corrected" and "literal" in scores:
        share = scores[main].frechet / scores["literal"].frechet
        result.add_metric("Fréchet distance, share of literal's", share, scores[main].n)
    if len(runs) > 1:
        done = {name: f"{run.steps_done / run.steps_per_epoch:.3g}" for name, run in runs.items()}
        caption = (
            f"The same network to the letter ({done['literal']} epochs), corrected "
            f"({done['corrected']}) and with rescaled betas ({done['rescaled']})"
        )
        caption += f", and their Fréchet distances, n = {judge.n:,}." if judge else "."
        draw_comparison(result.add_file("recipes.png", caption), samples, scores)
    rng = generator(seed, "reverse process")
    x = start_of_sampling(runs[main].averaged, gaussians, 8, rng)
    states = reverse_process(runs[main].averaged, x, rng)
    draw_trajectory(result, [(t, to_uint8(x.reshape(-1, *data.shape))) for t, x in states])
    draw_losses(config, runs, data.test_images[:1000], result)
    for epoch in range(1, runs[main].last_epoch + 1):
        result.note_file(f"epoch_{epoch:03d}.png", f"Samples after epoch {epoch}.")
    return samples[main]


def draw_losses(config: Config, runs: dict, images: torch.Tensor, result: Result) -> None:
    """Training loss over the epochs, and the noise's error at every t on held-out images."""
    figure, axes = figures.new_figure(9, 3.4, columns=2)
    run = runs[config.recipe]
    epochs, loss = run.smoothed("loss", max(run.steps_per_epoch // 8, 1))
    figures.draw_lines(
        axes[0, 0], epochs, {"loss": loss}, "epoch", "training loss (weighted)", False
    )
    lines = {n: loss_per_timestep(r.averaged, images, config.seed) for n, r in runs.items()}
    figures.draw_lines(axes[0, 1], range(1, config.T + 1), lines, "t", "MSE of the noise", False)
    least = 1 - 256 / math.prod(images.shape[1:])
    axes[0, 1].axhline(least, color="#888888", linewidth=1, linestyle="--",
                       label="the least that 256 units allow without the skip")  # fmt: skip
    axes[0, 1].legend(fontsize=8)
    for axis in axes[0]:
        axis.set_yscale("log")
    left = runs[config.recipe].averaged.schedule.alpha_bar[-1].sqrt()
    result.add_metric("weight of the image in the last x_t", left, config.T)
    result.add_metric("MSE of the noise, mean over t", lines[config.recipe].mean(), len(images))
    path = result.add_file(
        "losses.png",
        "Left: the loss while training. Right: the error of the estimated noise at every t on "
        "held-out images; answering zero scores 1.",
    )
    figures.save_figure(figure, path)


# --- the run --------------------------------------------------------------------------------------


def checkpoint_path(config: Config) -> Path:
    return config.output_dir / MODELS / "fast_mlp_diffusion.pth"


def run(config: Config) -> Result:
    """Train (or load), sample, measure; what the driver and the tests call."""
    device = prepare(config.seed, config.device)
    config = config.quickened(epochs=2, compare_epochs=1, clusters=10, num_samples=500)
    if config.sample_only:
        samples = sample_from_checkpoint(config, device)
        return draw_only(SCRIPT, TITLE, PICTURES, config, device, samples)
    data = load_for(config, device)
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    for name in RECIPES if config.compare else ():  # what does not fit is said before the training
        build(plain(replace(config, recipe=name)), data.shape)
    gaussians = fit_gaussians(data.images, config.clusters, config.seed)
    path = checkpoint_path(config)
    watch = judge_for(config, data, TRACKED)
    runs = {config.recipe: train(config, data, gaussians, path, result.folder, watch)}
    if config.compare:
        runs |= train_others(config, data, gaussians)
    samples = evaluate(config, data, runs, gaussians, watch, result)
    write_samples(config.samples_file, samples)
    image_left = result.metrics["weight of the image in the last x_t"].value
    return result.save(*(LESSONS if image_left > NOISE_ONLY else LESSONS[:1]))


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
