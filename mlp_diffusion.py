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

    python mlp_diffusion.py                       # 28 epochs, a minute on two CPU cores
    python mlp_diffusion.py --compare             # the three recipes side by side
    python mlp_diffusion.py --dataset mnist       # the full MNIST
    python mlp_diffusion.py --resume              # go on after Ctrl-C
    python mlp_diffusion.py --sample-only --num-samples 2000 --samples-file samples.npz

The README states the figures to expect.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from imagelab import figures
from imagelab.checkpoints import load_checkpoint, load_weights
from imagelab.classifier import trained_classifier
from imagelab.datasets import Dataset, load_for, signed, to_uint8
from imagelab.diffusion import Schedule, linear_schedule
from imagelab.metrics import score_samples
from imagelab.pictures import write_gif
from imagelab.results import Result, start_result
from imagelab.runtime import command_line, generator, prepare
from imagelab.samples import GRID, draw_only, report_samples, write_grid, write_samples
from imagelab.settings import Count, Fraction, Limits, Rate, TrainingSettings
from imagelab.training import Training

SCRIPT = "mlp_diffusion"
PICTURES, MODELS = "diffusion_samples", "diffusion_models"
TITLE = "MLP diffusion: 50 steps, to the letter and corrected"
SUMMARY = (
    "A dense network learns to remove noise step by step and so to draw digits. The widely copied "
    "50-step recipe starts from a noise it never trained on and asks for more than its 256 units can "
    "say; two corrections keep all of its numbers and make it draw."
)


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
class Config(TrainingSettings):
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
    if image <= 0.05:
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
    """MLP (x_t, embedding of t) → 512 → 256 → D. Estimates the noise in x_t."""

    def __init__(self, dimensions: int, schedule: Schedule, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        self.register_buffer("embedding", time_embedding(len(schedule)), persistent=False)
        self.register_buffer("a", schedule.alpha_bar.sqrt().float(), persistent=False)
        self.register_buffer("b", (1 - schedule.alpha_bar).sqrt().float(), persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(dimensions + self.embedding.shape[1], 512),
            nn.SiLU(),
            nn.Linear(512, 256),
            nn.SiLU(),
            nn.Linear(256, dimensions),
        )
        for layer in (self.mlp[0], self.mlp[2]):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """ε̂ (B, D) for x_t (B, D) and t (B,)."""
        out = self.mlp(torch.cat([x_t + 1, self.embedding[t]], dim=1))  # a black background is 0
        if not self.skip:
            return out
        return (x_t - self.a[t, None] * out) / self.b[t, None]  # out is x̂₀

    def estimate(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x̂₀ (B, D) for x_t (B, D) and t (B,)."""
        return (x_t - self.b[t, None] * self(x_t, t)) / self.a[t, None]


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


def fit_gaussians(images: torch.Tensor, clusters: int, seed: int, rank: int = 32) -> dict:
    """A mixture of Gaussians with the moments of `images` (N, C, H, W) uint8, on [-1, 1].

    k-means groups the images; each group has its mean and its covariance F·Fᵀ, of which the `rank`
    leading directions are kept. Returns `mean` (K, D), `factor` F (K, D, rank), `share` (K,).
    """
    from sklearn.cluster import KMeans

    x = signed(images).flatten(1)
    k_means = KMeans(clusters, n_init=1, random_state=seed)
    k_means.fit(x[:: max(len(x) // 8000, 1)].cpu().numpy())
    group = torch.from_numpy(k_means.predict(x.cpu().numpy())).to(x.device)
    means, factors, shares = [], [], []
    for k in group.unique().tolist():
        members = x[group == k]
        _, s, v = torch.pca_lowrank(members, q=min(rank, *members.shape))
        means.append(members.mean(dim=0))
        factors.append(F.pad(v * s / math.sqrt(max(len(members) - 1, 1)), (0, rank - len(s))))
        shares.append(len(members) / len(x))
    tables = torch.stack(means), torch.stack(factors), torch.tensor(shares)
    return dict(zip(("mean", "factor", "share"), tables, strict=True))


def start_of_sampling(
    n: int, schedule: Schedule, gaussians: dict, recipe: Recipe, rng: torch.Generator
) -> torch.Tensor:
    """x_T (n, D) to start from: N(0, I), or an image drawn from `gaussians`, noised to t = T."""
    mean, factor, share = (gaussians[key] for key in ("mean", "factor", "share"))
    eps = torch.randn(n, mean.shape[1], generator=rng)
    if recipe.start == "noise":
        return eps.to(mean.device)
    k = torch.multinomial(share.cpu(), n, replacement=True, generator=rng)
    z = torch.randn(n, factor.shape[2], generator=rng).to(mean.device)
    x0 = torch.empty(n, mean.shape[1], device=mean.device)
    for label in k.unique().tolist():
        rows = (k == label).to(mean.device)
        x0[rows] = mean[label] + z[rows] @ factor[label].T
    last = torch.full((n,), len(schedule) - 1, device=mean.device)
    return schedule.q_sample(x0, last, eps.to(mean.device))


# --- the reverse process --------------------------------------------------------------------------


@torch.no_grad()
def reverse_process(
    model: Denoiser, schedule: Schedule, x: torch.Tensor, rng: torch.Generator
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Ancestral sampling from x_T (B, D) (Ho et al. algorithm 2); yields t, x_{t−1} and x̂₀.

    With few steps the posterior's own variance β̃ is the one to add, not β; none at the last step.
    """
    for t in reversed(range(len(schedule))):
        x0 = model.estimate(x, torch.full((len(x),), t, device=x.device))
        if model.skip:  # the literal recipe does not clip
            x0 = x0.clamp(-1, 1)
        x, variance = schedule.posterior(x0, x, t)
        if t > 0:
            z = torch.randn(x.shape, generator=rng).to(x.device)
            x = x + math.sqrt(variance) * z
        yield t, x, x0


def sample(
    model: Denoiser,
    schedule: Schedule,
    gaussians: dict,
    recipe: Recipe,
    n: int,
    shape: tuple[int, int, int],
    seed: int,
) -> torch.Tensor:
    """`n` images (n, C, H, W) uint8, drawn in portions of 1,000."""
    rng = generator(seed, "samples")
    parts = []
    for start in range(0, n, 1000):
        x = start_of_sampling(min(1000, n - start), schedule, gaussians, recipe, rng)
        for _, x, _ in reverse_process(model, schedule, x, rng):  # noqa: B007, B020
            pass
        parts.append(to_uint8(x.reshape(-1, *shape)))
    return torch.cat(parts)


# --- training -------------------------------------------------------------------------------------


@dataclass
class Trained:
    """A recipe with what sampling from it takes."""

    recipe: Recipe
    schedule: Schedule
    model: Denoiser
    gaussians: dict
    shape: tuple[int, int, int]
    run: Training | None = None

    def sample(self, n: int, seed: int) -> torch.Tensor:
        return sample(self.model, self.schedule, self.gaussians, self.recipe, n, self.shape, seed)


def train(
    config: Config, data: Dataset, gaussians: dict, path: Path, folder: Path | None = None
) -> Trained:
    """Train `config.recipe`, or go on with --resume; a sample grid per epoch goes into `folder`."""
    device, recipe = data.images.device, RECIPES[config.recipe]
    schedule = linear_schedule(config.T, config.beta_start, config.beta_end, recipe.rescaled)
    print(f"{config.recipe}: {what_the_end_means(schedule, recipe.start)}")
    torch.manual_seed(config.seed)
    model = Denoiser(math.prod(data.shape), schedule, recipe.skip).to(device)
    adam = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    weight = loss_weight(schedule, recipe.skip, config.gamma).to(device)

    with Training(
        path,
        SCRIPT,
        config,
        data,
        {"denoiser": model},
        {"adam": adam},
        ema="denoiser",
        ema_decay=config.ema_decay,
        free=("compare", "compare_epochs"),
        label=f"DDPM, {config.recipe}",
    ) as run:
        run.extra = gaussians  # a checkpoint holds all that sampling needs
        trained = Trained(recipe, schedule, run.averaged, gaussians, data.shape, run)
        for epoch in run.epochs():
            for batch in run.batches():
                x0 = signed(data.images[batch]).flatten(1)  # (B, D) in [-1, 1]
                t = torch.randint(0, config.T, (len(x0),), generator=run.rng, device=device)
                eps = torch.randn(x0.shape, generator=run.rng, device=device)
                eps_hat = model(schedule.q_sample(x0, t, eps), t)
                loss = noise_loss(eps_hat, eps, weight[t])
                adam.zero_grad()
                loss.backward()
                adam.step()
                run.log(loss=loss)
            if folder is not None:
                write_grid(folder / f"epoch_{epoch:03d}.png", trained.sample(GRID, config.seed))
    return trained


def load(config: Config, device: torch.device) -> Trained:
    """The recipe in the checkpoint under --output-dir, its own settings with it."""
    path = checkpoint_path(config)
    saved = load_checkpoint(path, SCRIPT, device)
    used, shape = saved["config"], tuple(saved["dataset"]["shape"])
    recipe = RECIPES[used["recipe"]]
    schedule = linear_schedule(used["T"], used["beta_start"], used["beta_end"], recipe.rescaled)
    model = Denoiser(math.prod(shape), schedule, recipe.skip).to(device)
    load_weights(model, saved["ema"], path)
    return Trained(recipe, schedule, model, saved["extra"], shape)


@torch.no_grad()
def loss_per_timestep(trained: Trained, images: torch.Tensor, seed: int) -> torch.Tensor:
    """The mean squared error of the noise at every t, (T,), on held-out images (N, C, H, W)."""
    rng = generator(seed, "loss per timestep")
    x0 = signed(images).flatten(1)
    losses = []
    for t in range(len(trained.schedule)):
        eps = torch.randn(x0.shape, generator=rng).to(x0.device)
        at = torch.full((len(x0),), t, device=x0.device)
        x_t = trained.schedule.q_sample(x0, at, eps)
        losses.append(F.mse_loss(trained.model(x_t, at), eps))
    return torch.stack(losses).cpu()


# --- figures --------------------------------------------------------------------------------------


def evaluate(
    config: Config, data: Dataset, trained: dict[str, Trained], result: Result
) -> torch.Tensor:
    """Sample and score every trained recipe, draw the figures; returns the main one's samples."""
    classifier = trained_classifier(data, config.output_dir, config.seed, config.quick)
    samples = {name: t.sample(config.num_samples, config.seed) for name, t in trained.items()}
    scores = {name: score_samples(classifier, s, data) for name, s in samples.items()}
    main, name = config.recipe, "Fréchet distance"
    report_samples(result, samples[main], scores[main], data)
    for other in trained.keys() - {main}:
        scores[other].add_to(result, prefix=f"{other}: ")
    if main == "corrected" and "literal" in scores:
        share = scores[main].frechet / scores["literal"].frechet
        result.add_metric(f"{name}, share of the literal recipe's", share, scores[main].n)
    if len(trained) > 1:
        draw_comparison(trained, samples, scores, result)
    draw_reverse_process(config, trained[main], result)
    draw_losses(config, trained, data.test_images[:1000], result)
    for path in sorted(result.folder.glob("epoch_*.png"))[: config.epochs]:
        result.add_file(path.name, f"Samples after epoch {int(path.stem[6:])}.", featured=False)
    return samples[main]


def draw_comparison(trained: dict, samples: dict, scores: dict, result: Result) -> None:
    """The recipes side by side: 36 samples each under the name, the epochs and the distance."""
    pictures = {}
    for name in (n for n in ("literal", "corrected", "rescaled") if n in trained):
        title = f"{name}, {trained[name].run.config.epochs} epochs\ndistance {scores[name].frechet:,.0f}"
        pictures[title] = figures.grid(samples[name][:36], columns=6)
    path = result.add_file(
        "recipes.png",
        "The same network to the letter, corrected, and with rescaled betas. The distance (Fréchet, "
        f"in the classifier's features, n = {scores[name].n:,}) has a floor of "
        f"{scores[name].frechet_floor:.0f}.",
    )
    figures.side_by_side(path, pictures, height=3.6)


def draw_reverse_process(config: Config, trained: Trained, result: Result, n: int = 8) -> None:
    """Eight samples on their way from x_T to x_0, as a strip and as an animation."""
    rng = generator(config.seed, "reverse process")
    x = start_of_sampling(n, trained.schedule, trained.gaussians, trained.recipe, rng)
    states = [(len(trained.schedule), x)]
    states += [(t, x) for t, x, _ in reverse_process(trained.model, trained.schedule, x, rng)]
    shown = [states[round(i)] for i in np.linspace(0, len(states) - 1, 9)]
    columns = {
        f"t = {t}": figures.grid(to_uint8(x.reshape(-1, *trained.shape)), columns=1, scale=1)
        for t, x in shown
    }
    path = result.add_file(
        "reverse_process.png",
        "Eight samples from the start of sampling (left) to the image (right).",
    )
    figures.side_by_side(path, columns, height=5.6)
    frames = [
        figures.grid(to_uint8(x.reshape(-1, *trained.shape)), columns=n, scale=3) for _, x in states
    ]
    write_gif(result.add_file("reverse_process.gif", "The same, step by step."), frames, 0.08)


def draw_losses(config: Config, trained: dict, images: torch.Tensor, result: Result) -> None:
    """Training loss over the epochs, and the noise's error at every t on held-out images."""
    figure, axes = figures.new_figure(9, 3.4, columns=2)
    run = trained[config.recipe].run
    window = max(run.steps_per_epoch // 8, 1)
    loss = figures.smooth(run.curve("loss"), window)
    epochs = (torch.arange(len(loss)) + 1) * window / run.steps_per_epoch
    figures.draw_lines(
        axes[0, 0], epochs, {"loss": loss}, "epoch", "training loss (weighted)", False
    )
    axes[0, 0].set_yscale("log")
    lines = {name: loss_per_timestep(t, images, config.seed) for name, t in trained.items()}
    figures.draw_lines(axes[0, 1], range(1, config.T + 1), lines, "t", "MSE of the noise", False)
    axes[0, 1].set_yscale("log")
    axes[0, 1].axhline(
        1 - 256 / math.prod(images.shape[1:]),
        color="#888888",
        linewidth=1,
        linestyle="--",
        label="the least that 256 units allow without the skip",
    )
    axes[0, 1].legend(fontsize=8)
    result.add_metric("MSE of the noise, mean over t", lines[config.recipe].mean(), len(images))
    figures.save_figure(
        figure,
        result.add_file(
            "losses.png",
            "Left: the loss while training. Right: "
            "the error of the estimated noise at every t; 1 is what an answer of zero "
            "scores.",
        ),
    )


# --- the run --------------------------------------------------------------------------------------


def checkpoint_path(config: Config) -> Path:
    return config.output_dir / MODELS / "fast_mlp_diffusion.pth"


def train_others(config: Config, data: Dataset, gaussians: dict) -> dict[str, Trained]:
    """The recipes that `config.recipe` is compared with, each with a checkpoint of its own."""
    others = {}
    for name in (n for n in RECIPES if n != config.recipe):
        path = config.output_dir / MODELS / f"compared_{name}.pth"
        other = replace(
            config,
            recipe=name,
            epochs=config.compare_epochs,
            resume=config.resume and path.is_file(),
        )
        others[name] = train(other, data, gaussians, path)
    return others


def run(config: Config) -> Result:
    """Train (or load), sample, measure; what the driver and the tests call."""
    device = prepare(config.seed, config.device)
    config = config.quickened(epochs=2, compare_epochs=1, num_samples=500)
    if config.sample_only:
        samples = load(config, device).sample(config.num_samples, config.seed)
        return draw_only(SCRIPT, TITLE, PICTURES, config, device, samples)
    data = load_for(config, device)
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    clusters = min(config.clusters, len(data.images))
    gaussians = fit_gaussians(data.images, clusters, config.seed)
    path = checkpoint_path(config)
    trained = {config.recipe: train(config, data, gaussians, path, result.folder)}
    if config.compare:
        trained |= train_others(config, data, gaussians)
    samples = evaluate(config, data, trained, result)
    write_samples(config.samples_file, samples)
    return result.save()


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
