"""A 50-step DDPM with a small MLP: why the textbook recipe fails at 50 steps, and what mends it.

The common recipe shortens the DDPM of Ho et al. (2020) from T = 1000 steps to T = 50. It keeps the
betas (1e-4 to 0.02), and an MLP 784 → 512 → 256 → 784 predicts the noise. Taken to the letter
(`--recipe literal`), it draws only noise. Three corrections make it draw digits:

1. **End in noise.** After 50 steps with these betas ᾱ_T is 0.60, so x_T still shows the digit. But
   sampling starts from pure noise, which the network has never seen. Betas × 1000/T make ᾱ_T 8e-6.
2. **Keep the noise out of the narrow layer.** Noise has 784 independent directions. 256 units express
   256 of them: at least 67 % of its variance cannot be predicted. A digit needs far fewer. So the network
   predicts the clean image x̂₀, and the noise follows from it: ε̂ = (x_t − √ᾱ_t·x̂₀)/√(1 − ᾱ_t).
3. **Train where the digit is decided,** which is in much noise. The squared error of ε̂ is that of x̂₀
   times SNR_t, nearly all of it on nearly clean images. The weight 1 − ᾱ_t is largest on noisy ones.

Look at `recipes.png` and `subtraction.png` (with --compare), `errors.png`, `bound.png`.

    python mlp_diffusion.py                       # 20 epochs, a minute on two cores
    python mlp_diffusion.py --compare             # also the recipes with fewer corrections
    python mlp_diffusion.py --sample-only --num-samples 2000 --samples-file samples.npz
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from imagelab.data.datasets import Dataset, load_for, random_subset, signed, to_uint8
from imagelab.report import bounds, samples
from imagelab.report.evaluator import Evaluator
from imagelab.report.results import Result, start_result
from imagelab.setup.runtime import UserError, autocast, channels_last, generator, prepare
from imagelab.setup.settings import Count, Fraction, Limits, Rate, SamplingSettings, settings_dict
from imagelab.setup.terminal import progress
from imagelab.techniques.diffusion import Schedule, last, linear_schedule
from imagelab.training.checkpoints import checkpoint_errors, load_checkpoint, load_weights
from imagelab.training.loop import Observer, Training, can_resume, no_observer, warmup_and_decay

SCRIPT = "mlp_diffusion"
PICTURES, MODELS = "diffusion_samples", "diffusion_models"


# --- the noise schedule ---------------------------------------------------------------------------


def noise_schedule(T: int, beta_start: float, beta_end: float, rescaled: bool) -> Schedule:
    """β_t on a line from `beta_start` to `beta_end`, for t = 0 … T − 1; `rescaled`: times 1000/T.

    `Schedule(beta)` (imagelab/techniques/diffusion.py) computes tables over t, (T,) each. Their index t
    counts from 0: x_t below is the state after t + 1 steps of noise, and x_{t−1} the one before; for
    t = 0 that is the image x₀.

        beta_t         the variance of the noise that step t adds
        alpha_bar_t    ᾱ_t = (1 − β_0)·(1 − β_1) ⋯ (1 − β_t); before the first step ᾱ is 1
        snr_t          ᾱ_t/(1 − ᾱ_t), signal to noise

    Its methods are the two formulas of a DDPM (Ho et al. 2020, eq. 4, and eq. 6 and 7):

        q_sample       x_t = √ᾱ_t·x₀ + √(1 − ᾱ_t)·ε, with ε ~ N(0, I)
        posterior      the mean and variance of x_{t−1}, for known x_t and x₀:
                       √ᾱ_{t−1}·β_t/(1 − ᾱ_t)·x₀ + √(1 − β_t)·(1 − ᾱ_{t−1})/(1 − ᾱ_t)·x_t
                       and β̃_t = β_t·(1 − ᾱ_{t−1})/(1 − ᾱ_t)
    """
    return linear_schedule(T, beta_start, beta_end, rescaled)


@dataclass(frozen=True)
class Recipe:
    """What the recipes differ in."""

    title: str
    rescaled: bool = True
    """Whether the betas are multiplied by 1000/T, so that the forward process ends in noise."""
    predicts_x0: bool = True
    """Whether the network predicts x̂₀; if not, it predicts ε̂."""
    convolutions: bool = False
    """Whether the network is three convolutions that are not told t; if not, it is the MLP."""
    subtracts: bool = False
    """Whether each step of sampling is x − ε̂, which is a mistake; if not, it is DDPM's step."""
    weight: Literal["snr", "min-snr", "noise-variance"] = "noise-variance"
    """The weight of the squared error of x̂₀ in the loss, see `weight_on_x0`. "snr" is what the unweighted
    loss on ε̂ amounts to: it serves only the plot."""


# From literal on, each recipe adds a correction. But 1 also changes Adam's settings, and 2 also adds
# min-SNR weights, a tanh and dimmer images. Only 3 changes one thing alone.
RECIPES: dict[str, Recipe] = {
    "subtract": Recipe(
        "subtract: as often written,\n3 convolutions, x − ε̂",
        rescaled=False,
        predicts_x0=False,
        weight="snr",
        convolutions=True,
        subtracts=True,
    ),
    "literal": Recipe("literal: to the letter", rescaled=False, predicts_x0=False, weight="snr"),
    "rescaled": Recipe("rescaled: correction 1,\nends in noise", predicts_x0=False, weight="snr"),
    "skip": Recipe("skip: 1 + 2, noise passes,\nmin-SNR weights", weight="min-snr"),
    "corrected": Recipe("corrected: 1 + 2 + 3,\nweights 1 − ᾱ"),
}


# --- the network ----------------------------------------------------------------------------------


def time_embedding(T: int, size: int = 64) -> torch.Tensor:
    """Sines and cosines of t at `size`/2 frequencies (Vaswani et al. 2017), (T, size)."""
    frequency = torch.exp(-math.log(10 * T) * torch.arange(size // 2) / (size // 2))
    angle = torch.arange(T)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class Denoiser(nn.Module):
    """A network that predicts x̂₀ or ε̂, with the schedule and the recipe that sampling needs."""

    sqrt_alpha_bar: torch.Tensor  # √ᾱ_t, (T,)
    sqrt_one_minus_alpha_bar: torch.Tensor  # √(1 − ᾱ_t), (T,)

    def __init__(self, schedule: Schedule, recipe: Recipe, keep_in_range: str) -> None:
        super().__init__()
        self.schedule, self.recipe, self.keep_in_range = schedule, recipe, keep_in_range
        signal, noise = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
        self.register_buffer("sqrt_alpha_bar", signal.float(), persistent=False)
        self.register_buffer("sqrt_one_minus_alpha_bar", noise.float(), persistent=False)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x̂₀ or ε̂, as the recipe says, (B, D), for x_t (B, D) and t (B,)."""
        raise NotImplementedError

    def x0_and_eps(self, x_t: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x̂₀ and ε̂, (B, D) each. The network predicts one of them. The other one follows from
        x_t = √ᾱ_t·x̂₀ + √(1 − ᾱ_t)·ε̂."""
        signal, noise = self.sqrt_alpha_bar[t, None], self.sqrt_one_minus_alpha_bar[t, None]
        output = self(x_t, t)
        if self.recipe.predicts_x0:
            return output, (x_t - signal * output) / noise
        return (x_t - noise * output) / signal, output

    def estimate(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x̂₀ (B, D) as sampling uses it: clipped to [-1, 1] with --keep-in-range clip."""
        if not self.recipe.predicts_x0:
            return self.x0_and_eps(x_t, t)[0]
        x0 = self(x_t, t)
        return x0.clamp(-1, 1) if self.keep_in_range == "clip" else x0


class MLPDenoiser(Denoiser):
    """MLP (x_t, embedding of t) → 512 → 256 → D.

    The last layer is linear in 256 units: what it puts out, before a tanh, spans 256 directions at most.
    """

    embedding: torch.Tensor  # (T, 64)

    def __init__(
        self, dimensions: int, schedule: Schedule, recipe: Recipe, keep_in_range: str = "tanh"
    ) -> None:
        super().__init__(schedule, recipe, keep_in_range)
        self.register_buffer("embedding", time_embedding(len(schedule)), persistent=False)
        first = nn.Linear(dimensions + self.embedding.shape[1], 512)
        second = nn.Linear(512, 256)
        for layer in (first, second):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), nn.Linear(256, dimensions))

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        # A black background (−1) is −√ᾱ_t in x_t. Adding √ᾱ_t makes it 0 at every t.
        inputs = torch.cat([x_t + self.sqrt_alpha_bar[t, None], self.embedding[t]], dim=1)
        with autocast(x_t.device):
            output = self.mlp(inputs).float()  # (B, D + 64) → (B, D)
        limited = self.recipe.predicts_x0 and self.keep_in_range == "tanh"
        return output.tanh() if limited else output


class ConvDenoiser(Denoiser):
    """Three convolutions that predict ε̂, as often written: they see 7×7 pixels, and they ignore t."""

    def __init__(
        self, shape: tuple[int, int, int], schedule: Schedule, recipe: Recipe, width: int
    ) -> None:
        super().__init__(schedule, recipe, "none")
        self.convolutions = nn.Sequential(
            nn.Unflatten(1, shape),  # (B, D) → (B, C, H, W)
            nn.Conv2d(shape[0], width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, shape[0], 3, padding=1),
            nn.Flatten(),  # → (B, D)
        )
        channels_last(self.convolutions, "cpu")

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with autocast(x_t.device):
            return self.convolutions(x_t).float()


def build(config: dict[str, Any], shape: tuple[int, int, int]) -> Denoiser:
    """The untrained network for these settings: a Config's, or those in a checkpoint."""
    recipe = RECIPES[config["recipe"]]
    schedule = noise_schedule(
        config["T"], config["beta_start"], config["beta_end"], recipe.rescaled
    )
    if recipe.convolutions:
        return ConvDenoiser(shape, schedule, recipe, config["conv_width"])
    return MLPDenoiser(math.prod(shape), schedule, recipe, config["keep_in_range"])


# --- the loss -------------------------------------------------------------------------------------


def weight_on_x0(schedule: Schedule, weight: str, gamma: float = 5.0) -> torch.Tensor:
    """The weight of the squared error of x̂₀ at each t, (T,).

    "snr": SNR_t, which weighs the squared error of ε̂ evenly, because ε̂ − ε = −√SNR_t·(x̂₀ − x₀).
    "min-snr": the same, but γ at most (Hang et al. 2023).
    "noise-variance": 1 − ᾱ_t, the variance of the noise in x_t. It is largest where x_t shows least.
    """
    if weight == "snr":
        return schedule.snr.float()
    if weight == "min-snr":
        return schedule.snr.clamp(max=gamma).float()
    return (1 - schedule.alpha_bar).float()


def dimmed(x0: torch.Tensor, share: float, rng: torch.Generator) -> torch.Tensor:
    """Images x0 (B, D) in [-1, 1], of which about `share` keep only 0.4 to 1 of their brightness.

    Noise is added to these, but the target stays bright. So the network learns to brighten strokes that
    it has drawn too dim. Real images alone never show it such strokes (exposure bias, Ning et al. 2023).
    """
    chosen, brightness = torch.rand(2, len(x0), 1, generator=rng, device=x0.device)
    kept = torch.where(chosen < share, 0.4 + 0.6 * brightness, 1.0)
    return (x0 + 1) * kept - 1


def denoising_loss(
    model: Denoiser, x0: torch.Tensor, weight: torch.Tensor, dim_share: float, rng: torch.Generator
) -> torch.Tensor:
    """The loss for images x0 (B, D) in [-1, 1], each at its own random t: a scalar.

    Where the network predicts ε̂: the mean squared error of ε̂ (Ho et al. eq. 14). Where it predicts x̂₀:
    that of x̂₀, times `weight` (T,) at t.
    """
    T, schedule = len(model.schedule), model.schedule
    t = torch.randint(0, T, (len(x0),), generator=rng, device=x0.device)
    eps = torch.randn(x0.shape, generator=rng, device=x0.device)
    if not model.recipe.predicts_x0:
        return F.mse_loss(model(schedule.q_sample(x0, t, eps), t), eps)
    x_t = schedule.q_sample(dimmed(x0, dim_share, rng), t, eps)
    return (weight[t] * (model(x_t, t) - x0).square().mean(dim=1)).mean()


def learning_rate(config: Config, done: float) -> float:
    """Adam's learning rate when a share `done` of the training is done."""
    if not RECIPES[config.recipe].rescaled:  # as often written
        return config.lr
    return 3 * config.lr * warmup_and_decay(done, 0.05, 1 / 3)


# --- training -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(SamplingSettings):
    """Settings of the MLP diffusion model."""

    recipe: Literal["corrected", "literal", "rescaled", "skip", "subtract"] = "corrected"
    """corrected: all three corrections; literal: none; rescaled: the first; skip: the first two, with
    min-SNR weights on the loss (the noise skips the 256 units); subtract: as often written, with three
    convolutions that ignore t, and x − ε̂ as the step of sampling."""
    compare: bool = False
    """Also train every recipe for --compare-epochs and show their samples side by side."""
    compare_epochs: Count = 3
    """Epochs of each recipe in the comparison."""
    epochs: Count = 20
    """Passes over the training images."""
    batch_size: Annotated[int, Limits(2)] = 512
    """Images per step, each at its own random t."""
    lr: Rate = 2e-3
    """Adam's learning rate. literal and subtract keep it. In the others it rises to three times as much
    over the first twentieth of the training, and falls to 0 over the last two thirds."""
    beta2: Annotated[float, Limits(0, 0.9999)] = 0.99
    """Adam's second-moment decay; literal and subtract have the usual 0.999. With a lower one the steps
    follow the size of the gradients sooner: a short training gets further."""
    T: Annotated[int, Limits(21, 10_000)] = 50
    """Steps of the diffusion process."""
    beta_start: Annotated[float, Limits(1e-8, 0.5)] = 1e-4
    """β of the first step, before it is multiplied by 1000/T."""
    beta_end: Annotated[float, Limits(1e-8, 0.5)] = 0.02
    """β of the last step. The others lie on a line between the two."""
    keep_in_range: Literal["tanh", "clip", "none"] = "tanh"
    """What keeps x̂₀ in [-1, 1]: a tanh at the end of the network, a clip in sampling (which makes strokes
    fainter), or nothing. This and `dimmed` matter only where the network predicts x̂₀."""
    dimmed: Fraction = 0.05
    """The share of training images that are shown to the network with 0.4 to 1 of their brightness."""
    conv_width: Count = 8
    """Channels of the convolutions of the recipe subtract."""
    ema_decay: Fraction = 0.999
    """Decay of the moving average of the weights, which draws the samples; 0: no average."""


def train(
    config: Config, data: Dataset, path: Path, after_epoch: Observer = no_observer
) -> Training[Denoiser]:
    """Train `config.recipe`, or go on with --resume. `after_epoch` is called after every epoch.

    Sample from the `model` of the training that is returned: it has the averaged weights.
    """
    torch.manual_seed(config.seed)
    model = build(settings_dict(config), data.shape).to(data.images.device)
    weight = weight_on_x0(model.schedule, model.recipe.weight).to(data.images.device)
    beta2 = float(config.beta2) if model.recipe.rescaled else 0.999
    adam = torch.optim.Adam(model.parameters(), config.lr, (0.9, beta2), fused=True)
    training = Training(
        path, SCRIPT, config, data,
        networks={"denoiser": model}, optimizers={"adam": adam},
        ema="denoiser", ema_decay=config.ema_decay,
        may_change_on_resume=("compare", "compare_epochs"), label=f"DDPM, {config.recipe}",
    )  # fmt: skip
    # The playground in the report also draws samples. Besides the weights it needs these.
    training.extra = {
        "alpha_bar": model.schedule.alpha_bar,
        "predicts_x0": torch.tensor(model.recipe.predicts_x0),
        "tanh": torch.tensor(config.keep_in_range == "tanh"),
    }
    if config.resume:
        training.load()
    with training:
        for epoch in training.epochs():
            for batch in training.batches():
                x0 = signed(data.images[batch]).flatten(1)  # (B, D) in [-1, 1]
                loss = denoising_loss(model, x0, weight, config.dimmed, training.rng)
                adam.param_groups[0]["lr"] = learning_rate(config, training.progress)
                adam.zero_grad()
                loss.backward()
                adam.step()
                training.log(loss=loss)
            after_epoch(training, epoch)
    return training


# --- the forward and the reverse process ----------------------------------------------------------


def forward_process(
    schedule: Schedule, x0: torch.Tensor, rng: torch.Generator
) -> Iterator[tuple[int, torch.Tensor]]:
    """The forward process of images x0 (B, D), with fresh noise at every step (Ho et al. eq. 2).

    Yields t and x_t from 0 to T. Here t counts the steps done, as in Ho et al.: the tables have the
    values of x_t at index t − 1.
    """
    x = x0
    yield 0, x
    for t, beta in enumerate(schedule.beta.tolist(), start=1):
        eps = torch.randn(x.shape, generator=rng).to(x.device)
        x = math.sqrt(1 - beta) * x + math.sqrt(beta) * eps
        yield t, x


@torch.no_grad()
def reverse_process(
    model: Denoiser, x: torch.Tensor, rng: torch.Generator
) -> Iterator[tuple[int, torch.Tensor]]:
    """Ancestral sampling from x_T (B, D) (Ho et al. algorithm 2). Yields t and x_t from T to 0.

    Each step draws x_{t−1} from the posterior for the estimated x̂₀. It adds noise of variance β̃: β, which
    is larger and also usual, is too much when the steps are few. The last step adds none.

    The recipe subtract takes x − ε̂ instead, as often written. But the noise in x_t is √(1 − ᾱ_t)·ε, and a
    step may take only a part of it: x − ε̂ takes more than there is.
    """
    yield len(model.schedule), x
    for t in reversed(range(len(model.schedule))):
        times = torch.full((len(x),), t, device=x.device)
        if model.recipe.subtracts:
            x = x - model.x0_and_eps(x, times)[1]
        else:
            # x is the state after t + 1 steps of noise, and becomes the one after t.
            x, variance = model.schedule.posterior(model.estimate(x, times), x, t)
            if t > 0:
                x = x + math.sqrt(variance) * torch.randn(x.shape, generator=rng).to(x.device)
        yield t, x


def sample(model: Denoiser, n: int, shape: tuple[int, int, int], seed: int) -> torch.Tensor:
    """`n` images (n, C, H, W) uint8 from x_T ~ N(0, I), drawn in portions of 500."""
    rng, device = generator(seed, "samples"), model.sqrt_alpha_bar.device
    parts, sizes = [], [min(500, n - drawn) for drawn in range(0, n, 500)]
    for size in progress(sizes, "sampling", "portion"):
        x_T = torch.randn(size, math.prod(shape), generator=rng).to(device)
        parts.append(to_uint8(last(reverse_process(model, x_T, rng)).reshape(-1, *shape)))
    return torch.cat(parts)


def checkpoint_path(config: Config) -> Path:
    return config.checkpoint or config.output_dir / MODELS / "fast_mlp_diffusion.pth"


def load_denoiser(
    path: Path | str, device: torch.device | str = "cpu"
) -> tuple[Denoiser, tuple[int, int, int]]:
    """The averaged network of a checkpoint, and the shape (C, H, W) of the images it was trained on."""
    saved = load_checkpoint(path, SCRIPT, device)
    with checkpoint_errors(path):
        shape = tuple(saved["dataset"]["shape"])
        model = build(saved["config"], shape).to(device)
        trained_with = saved["extra"]["alpha_bar"].cpu()
    if not torch.allclose(trained_with, model.schedule.alpha_bar):
        raise UserError(f"{path} was trained with another noise schedule than its settings make.")
    load_weights(model, saved["ema"], path)
    return model.eval(), shape


# === the lesson ends here; below: measured, plotted, reported =====================================

SCORE_EVERY = 7  # epochs
Trainings = dict[str, Training[Denoiser]]  # by the names of their recipes
TITLE = "MLP diffusion: 50 steps, to the letter and corrected"
SUMMARY = (
    "A dense network learns to remove noise step by step, and so to draw digits. The common 50-step "
    "recipe fails: it starts from noise that it was not trained on, predicts more than 256 units can "
    "express, and spends its loss where little is decided. Three corrections make it draw."
)


def observer(result: Result, evaluator: Evaluator | None) -> Observer:
    """Draws a grid of samples after each epoch, and scores samples every few epochs."""

    def after_epoch(training: Training[Denoiser], epoch: int) -> None:
        shape, seed = training.data.shape, training.config.seed
        images = sample(training.model, samples.GRID, shape, seed)
        samples.write_epoch_grid(result, training, images)
        if evaluator is not None and (epoch % SCORE_EVERY == 0 or training.is_last(epoch)):
            images = sample(training.model, evaluator.n, shape, seed)
            samples.track(training, evaluator, images)

    return after_epoch


def train_others(config: Config, data: Dataset) -> Trainings:
    """Train every recipe for --compare-epochs; a main training that is as long stands for its own."""
    epochs, others = config.compare_epochs, {}
    for name in RECIPES:
        if name == config.recipe and epochs == config.epochs:
            continue
        path = config.output_dir / MODELS / f"compared_{name}.pth"
        other = replace(config, recipe=name, epochs=epochs, resume=can_resume(config, path))
        others[name] = train(other, data, path)
    return others


def report_likelihood(trainings: list[Training[Denoiser]], result: Result) -> None:
    """Errors and variational bounds on held-out images; with metrics of the last training."""
    estimators, config = {}, trainings[-1].config
    for training in trainings:
        model, title = training.model, training.model.recipe.title.replace("\n", " ")
        weight = weight_on_x0(model.schedule, model.recipe.weight)
        name = f"{title}, epochs: {training.epochs_done:.3g}"
        estimators[name] = bounds.Estimator(model.estimate, model.schedule, weight)
    n = 100 if config.quick else 500
    bounds.report_bounds(result, estimators, trainings[-1].data, n, config.seed)


def with_step(model: Denoiser, subtracts: bool) -> Denoiser:
    """The same network, with x − ε̂ or with DDPM's step as the step of sampling."""
    other = copy.copy(model)
    other.recipe = replace(model.recipe, subtracts=subtracts)
    return other


def report_recipes(trained: Trainings, n: int, evaluator: Evaluator | None, result: Result) -> None:
    """Samples of the recipes side by side, and of two networks with both steps; distances, a table."""
    some, epochs = trained["corrected"], f"{trained['corrected'].epochs_done:.3g}"
    models = {name: trained[name].model for name in RECIPES}
    models |= {
        "subtract, DDPM's step": with_step(models["subtract"], subtracts=False),
        "corrected, x − ε̂": with_step(models["corrected"], subtracts=True),
    }
    drawn = {k: sample(m, n, some.data.shape, some.config.seed) for k, m in models.items()}
    scores = {k: evaluator.scores(images) for k, images in drawn.items()} if evaluator else {}
    titles = {name: f"{recipe.title}\nepochs: {epochs}" for name, recipe in RECIPES.items()}
    caption = "As often written, to the letter, and with the corrections added in turn."
    samples.add_comparison(result, "recipes.png", titles, drawn, scores, caption)
    titles = {
        "subtract": f"3 convolutions,\nx − ε̂\nepochs: {epochs}",
        "subtract, DDPM's step": f"3 convolutions,\nDDPM's step\nepochs: {epochs}",
        "corrected, x − ε̂": f"corrected network,\nx − ε̂\nepochs: {epochs}",
        "corrected": f"corrected network,\nDDPM's step\nepochs: {epochs}",
    }
    caption = (
        "Two networks, each with x − ε̂ and with DDPM's step. x − ε̂ takes away all noise in the first "
        "step and adds none again: the corrected network then draws the same picture each time."
    )
    samples.add_comparison(result, "subtraction.png", titles, drawn, scores, caption)
    if evaluator is not None:
        table = {name: (epochs, score) for name, score in scores.items()}
        evaluator.add_table(result, "The recipes", table, as_metrics=True)
        share = scores["corrected"].frechet / scores["literal"].frechet
        name = "corrected: share of literal's distance"
        result.add_metric(name, share, evaluator.n, better="lower")


def add_processes(model: Denoiser, data: Dataset, seed: int, result: Result) -> None:
    """Enter the forward process of four held-out images and the reverse process of four samples."""
    rng, device = generator(seed, "reverse process"), data.images.device
    x_T = torch.randn(4, math.prod(data.shape), generator=rng).to(device)
    chosen = random_subset(len(data.test_images), 4, "forward process").to(device)
    x0 = signed(data.test_images[chosen]).flatten(1)
    ways = reverse_process(model, x_T, rng), forward_process(model.schedule, x0, rng)
    reverse, forward = ([(t, to_uint8(x.reshape(-1, *data.shape))) for t, x in way] for way in ways)
    samples.add_trajectory(result, reverse, forward)


def evaluate(
    main: Training[Denoiser], compared: Trainings, evaluator: Evaluator | None, result: Result
) -> torch.Tensor:
    """Sample and score, draw the figures; returns the main training's samples."""
    config, data = main.config, main.data
    assert isinstance(data, Dataset)
    n = samples.samples_to_draw(config, data)
    with samples.timed_samples(result, n):
        images = sample(main.model, n, data.shape, config.seed)
    scorer = evaluator and samples.evaluator_for(config, data, n, evaluator)
    samples.report_samples(result, images, scorer, data, main)
    samples.add_quality(result, main, evaluator)
    if compared:
        report_recipes({config.recipe: main, **compared}, n, scorer, result)
    if not main.model.recipe.subtracts:
        ddpms = [t for t in compared.values() if not t.model.recipe.subtracts]
        report_likelihood([*ddpms, main], result)
    figure = samples.plot_loss(main, "weighted loss")
    result.add_figure("loss.png", figure, "The loss while training.")
    add_processes(main.model, data, config.seed, result)
    samples.add_epoch_grids(result, main, "noise")
    remains = main.model.schedule.alpha_bar[-1].sqrt()
    result.add_metric("weight of the image in the last x_t", remains, config.T)
    return images


def lessons(result: Result) -> list[str]:
    """What the figures teach, as far as they were measured."""
    told = []
    if distances := result.measured(*(f"{name}: Fréchet distance" for name in RECIPES)):
        subtract, literal, rescaled, skip, corrected = distances
        told.append(
            f"Trained for as many epochs, the recipe to the letter stands at a distance of "
            f"{literal:,.0f} from real images, with correction 1 at {rescaled:,.0f}, with 1 and 2 at "
            f"{skip:,.0f}, with all three at {corrected:,.0f}. As often written, with three convolutions "
            f"and x − ε̂, it stands at {subtract:,.0f}. Where no digit is seen, the distance does not say "
            "which picture is better."
        )
    if subtracted := result.measured("corrected, x − ε̂: Fréchet distance"):
        told.append(
            f"With x − ε̂ as the step, the corrected network stands at {subtracted[0]:,.0f}: x_t holds "
            "less noise than ε̂, so this step takes away more than there is."
        )
    if distance := result.measured("Fréchet distance"):
        told.append(
            f"After the whole training the distance is {distance[0]:,.0f}: all is drawn from pure noise."
        )
    return told + bounds.lessons(result)


def run(config: Config) -> Result:
    """Train (or load), sample, measure; what the driver and the tests call."""
    device = prepare(config.seed, config.device)
    config = config.if_quick(epochs=2, compare_epochs=1, num_samples=500)
    if config.sample_only:
        model, shape = load_denoiser(checkpoint_path(config), device)
        images = sample(model, config.num_samples, shape, config.seed)
        return samples.sampled_only(SCRIPT, TITLE, PICTURES, config, device, images)
    data = load_for(config, device)
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    samples.show_training_images(result, data)
    for name in RECIPES if config.compare else ():  # refuses unfit settings before the training
        build(settings_dict(replace(config, recipe=name)), data.shape)
    evaluator = samples.evaluator_for(config, data, samples.TRACKED)
    main = train(config, data, checkpoint_path(config), observer(result, evaluator))
    compared = train_others(config, data) if config.compare else {}
    images = evaluate(main, compared, evaluator, result)
    samples.write_samples(config.samples_file, images)
    return result.save(*lessons(result))


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
