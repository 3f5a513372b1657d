"""A 50-step diffusion model with a small MLP: why the textbook recipe fails at 50 steps, what mends it.

The recipe that is copied from place to place takes the DDPM of Ho et al. (2020), T = 1000, and
shortens it to T = 50 with the same betas (1e-4 to 0.02) and an MLP 784 → 512 → 256 → 784 that
predicts the noise. To the letter (`--recipe literal`) it draws noise. Three corrections make it draw:

1. **End in noise.** ᾱ_T = Π(1 − β_t) = 0.60: x_T still shows the digit, but sampling starts from
   N(0, I), which training never saw. Betas × 1000/T bring ᾱ_T to 8e-6.
2. **Let the noise pass.** The last layer is linear in 256 units: its outputs span at most 256 of the 784
   directions that noise has. At least 1 − 256/784 = 67 % of the noise cannot be predicted, however long
   one trains. Digits need far fewer directions. So the MLP estimates the clean image x̂₀, and
   ε̂ = (x_t − √ᾱ_t·x̂₀)/√(1 − ᾱ_t) passes beside it.
3. **Spend the loss where the image is decided.** An even loss on ε̂ is a loss on x̂₀ weighted by SNR_t:
   nearly all weight falls on nearly clean images, where x_t shows the digit already. (Min-SNR caps that
   weight at 5.) The weight 1 − ᾱ_t is largest where there is much noise and the digit is chosen.

Two details count as well. A tanh keeps x̂₀ in its range (a clip while sampling fades the strokes). And
some training images are shown dimmer than they are: a network that has only seen bright strokes keeps
dim what it has drawn dim by mistake. `--bound clip` and `--dimmed 0` show what each is worth.

In the comparison the corrections are added in turn. With the first the learning rate rises and falls,
too, and with the second come min-SNR, the tanh and the dimmer images: only the third stands alone.

    python mlp_diffusion.py                       # 24 epochs, a minute on two cores
    python mlp_diffusion.py --compare             # literal, then with the corrections added in turn
    python mlp_diffusion.py --dataset mnist       # the full MNIST
    python mlp_diffusion.py --resume              # go on after Ctrl-C
    python mlp_diffusion.py --sample-only --num-samples 2000 --samples-file samples.npz

The README states the figures to expect.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from imagelab.data.datasets import Dataset, load_for, random_subset, signed, to_uint8
from imagelab.report import figures, samples
from imagelab.report.evaluator import Evaluator
from imagelab.report.results import Result, start_result
from imagelab.setup.runtime import UserError, autocast, generator, prepare
from imagelab.setup.settings import Count, Fraction, Limits, Rate, SamplingSettings, settings_dict
from imagelab.setup.terminal import progress
from imagelab.techniques.diffusion import Schedule, last, linear_schedule
from imagelab.training.checkpoints import checkpoint_errors, load_checkpoint, load_weights
from imagelab.training.loop import Observer, Training, can_resume, no_observer, warmup_and_decay

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "mlp_diffusion"
PICTURES, MODELS = "diffusion_samples", "diffusion_models"
Name = Literal["corrected", "literal", "rescaled", "skip"]


@dataclass(frozen=True)
class Recipe:
    """What the recipes differ in."""

    title: str
    rescaled: bool = True
    """Whether the betas are multiplied by 1000/T, so that the forward process ends in noise."""
    skip: bool = True
    """Whether the network estimates x̂₀, and the noise passes beside it."""
    weight: Literal["noise", "min-snr", "1 − ᾱ"] = "1 − ᾱ"
    """The weight of the loss over t; "noise" weighs the error of ε̂ evenly."""


RECIPES: dict[str, Recipe] = {
    "literal": Recipe("to the letter", rescaled=False, skip=False, weight="noise"),
    "rescaled": Recipe("1: ends in noise", skip=False, weight="noise"),
    "skip": Recipe("1 + 2: noise passes,\nmin-SNR weights", weight="min-snr"),
    "corrected": Recipe("1 + 2 + 3: corrected,\nweights 1 − ᾱ"),
}


@dataclass(frozen=True)
class Config(SamplingSettings):
    """Settings of the MLP diffusion model."""

    recipe: Name = "corrected"
    """corrected: all three corrections; literal: none; rescaled: the forward process ends in noise, but
    the noise is predicted through 256 units; skip: the noise passes beside them as well, but the loss
    is weighted as min-SNR does."""
    compare: bool = False
    """Also train the other recipes and show all side by side, after equal epochs."""
    compare_epochs: Count = 4
    """Epochs of each recipe in the comparison."""
    epochs: Count = 24
    """Passes over the training images."""
    batch_size: Annotated[int, Limits(2)] = 512
    """Images per step, each at its own random t."""
    lr: Rate = 2e-3
    """Adam's learning rate. The literal recipe keeps it; the others rise to twice as much over the first
    twentieth of the training, and fall to 0 from a third on."""
    T: Annotated[int, Limits(21, 10_000)] = 50
    """Steps of the diffusion process."""
    beta_start: Annotated[float, Limits(1e-8, 0.5)] = 1e-4
    """β of the first step, before it is multiplied by 1000/T."""
    beta_end: Annotated[float, Limits(1e-8, 0.5)] = 0.02
    """β of the last step; those between lie on a line."""
    bound: Literal["tanh", "clip", "none"] = "tanh"
    """What keeps x̂₀ in [-1, 1]: a tanh at the end of the network, a clip while sampling, or nothing."""
    dimmed: Fraction = 0.1
    """The part of the images whose x_t is made from a dimmer copy (contrast × 0.4 to 1)."""
    ema_decay: Fraction = 0.999
    """Decay of the moving average of the weights, which draws the samples; 0: none."""


# --- the network ----------------------------------------------------------------------------------


def time_embedding(T: int, size: int = 64) -> torch.Tensor:
    """Sines and cosines of t at `size`/2 frequencies (Vaswani et al. 2017), (T, size)."""
    frequency = torch.exp(-math.log(10 * T) * torch.arange(size // 2) / (size // 2))
    angle = torch.arange(T)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class Denoiser(nn.Module):
    """MLP (x_t, embedding of t) → 512 → 256 → D, which estimates x̂₀ or, without the skip, ε̂.

    It carries its recipe and its schedule: together they say how to sample from it.
    """

    embedding: torch.Tensor  # (T, 64)
    a: torch.Tensor  # √ᾱ, (T,)
    b: torch.Tensor  # √(1 − ᾱ), (T,)

    def __init__(
        self, dimensions: int, schedule: Schedule, recipe: Recipe, bound: str = "tanh"
    ) -> None:
        super().__init__()
        self.schedule, self.recipe, self.bound = schedule, recipe, bound
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
        """x̂₀ (with the skip) or ε̂ (without), (B, D), for x_t (B, D) and t (B,)."""
        # A black background is −√ᾱ_t in x_t: this makes it 0 at every t.
        seen = torch.cat([x_t + self.a[t, None], self.embedding[t]], dim=1)  # (B, D + 64)
        with autocast(x_t.device):
            said = self.mlp(seen).float()
        return said.tanh() if self.recipe.skip and self.bound == "tanh" else said

    def x0_and_eps(self, x_t: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x̂₀ and ε̂, (B, D) each: what the network says, and x_t = √ᾱ_t·x̂₀ + √(1 − ᾱ_t)·ε̂."""
        a, b, said = self.a[t, None], self.b[t, None], self(x_t, t)
        if self.recipe.skip:
            return said, (x_t - a * said) / b
        return (x_t - b * said) / a, said


def build(config: dict[str, Any], shape: tuple[int, int, int]) -> Denoiser:
    """The untrained network that `config` (its own or a checkpoint's) describes."""
    recipe = RECIPES[config["recipe"]]
    schedule = linear_schedule(
        config["T"], config["beta_start"], config["beta_end"], recipe.rescaled
    )
    return Denoiser(math.prod(shape), schedule, recipe, config["bound"])


# --- the loss -------------------------------------------------------------------------------------


def weight_on_x0(schedule: Schedule, weight: str, gamma: float = 5.0) -> torch.Tensor:
    """The weight at each t of the squared error of x̂₀, (T,).

    An error of x̂₀ is one of ε̂ times √SNR_t: to weigh ε̂ evenly is SNR_t on x̂₀. Min-SNR (Hang et al.
    2023) bounds that by γ; 1 − ᾱ_t grows with the noise instead.
    """
    if weight == "noise":
        return schedule.snr.float()
    if weight == "min-snr":
        return schedule.snr.clamp(max=gamma).float()
    return (1 - schedule.alpha_bar).float()


def dimmed(x0: torch.Tensor, share: float, rng: torch.Generator) -> torch.Tensor:
    """Images (B, D) in [-1, 1] to be noised, about `share` of them with 0.4 to 1 of their brightness.

    The target of the loss stays bright, so that the network learns to brighten strokes that it drew too
    dim. Training on real images never shows such estimates (exposure bias; Ning et al. 2023).
    """
    one, other = torch.rand(2, len(x0), 1, generator=rng, device=x0.device)
    kept = torch.where(one < share, 0.4 + 0.6 * other, 1.0)
    return (x0 + 1) * kept - 1


def denoising_loss(
    model: Denoiser, x0: torch.Tensor, weight: torch.Tensor, dim_share: float, rng: torch.Generator
) -> torch.Tensor:
    """The mean squared error for images x0 (B, D) in [-1, 1], each at its own random t: a scalar.

    Of x̂₀, weighted by `weight` (T,); without the skip of ε̂, unweighted (Ho et al. eq. 14).
    """
    T, recipe = len(model.schedule), model.recipe
    t = torch.randint(0, T, (len(x0),), generator=rng, device=x0.device)
    eps = torch.randn(x0.shape, generator=rng, device=x0.device)
    if not recipe.skip:
        return F.mse_loss(model(model.schedule.q_sample(x0, t, eps), t), eps)
    x_t = model.schedule.q_sample(dimmed(x0, dim_share, rng), t, eps)
    return (weight[t] * (model(x_t, t) - x0).square().mean(dim=1)).mean()


def learning_rate(config: Config, progress: float) -> float:
    """Adam's rate at `progress` (0 to 1) through the training."""
    if config.recipe == "literal":
        return config.lr
    return 2 * config.lr * warmup_and_decay(progress, 0.05, 1 / 3)


# --- training -------------------------------------------------------------------------------------


def train(
    config: Config, data: Dataset, path: Path, after_epoch: Observer = no_observer
) -> Training[Denoiser]:
    """Train `config.recipe`, or go on with --resume; `after_epoch` looks on.

    The returned training holds the averaged network, which is the one to sample from.
    """
    torch.manual_seed(config.seed)
    model = build(settings_dict(config), data.shape).to(data.images.device)
    weight = weight_on_x0(model.schedule, model.recipe.weight).to(data.images.device)
    adam = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    training = Training(
        path, SCRIPT, config, data, networks={"denoiser": model}, optimizers={"adam": adam},
        ema="denoiser", ema_decay=config.ema_decay,
        may_change_on_resume=("compare", "compare_epochs"), label=f"DDPM, {config.recipe}",
    )  # fmt: skip
    # What sampling elsewhere takes besides the weights (the report's playground).
    training.extra = {"alpha_bar": model.schedule.alpha_bar,
                      "predicts_x0": torch.tensor(model.recipe.skip),
                      "tanh": torch.tensor(config.bound == "tanh")}  # fmt: skip
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


# --- the forward and the reverse process ---------------------------------------------------------


def forward_states(schedule: Schedule, x0: torch.Tensor, rng: torch.Generator) -> list:
    """The forward process of images x0 (B, D), every step with fresh noise: (t, x_t) from 0 to T.

    Here t counts the steps done, as in Ho et al.: x_t is what the loss has at index t − 1.
    """
    x, states = x0, [(0, x0)]
    for t, beta in enumerate(schedule.beta.tolist(), start=1):
        eps = torch.randn(x.shape, generator=rng).to(x.device)
        x = math.sqrt(1 - beta) * x + math.sqrt(beta) * eps
        states.append((t, x))
    return states


@torch.no_grad()
def reverse_process(
    model: Denoiser, x: torch.Tensor, rng: torch.Generator
) -> Iterator[tuple[int, torch.Tensor]]:
    """Ancestral sampling from x_T (B, D) (Ho et al. algorithm 2); yields t and x_t down to t = 0.

    With few steps the posterior's own variance β̃ is the one to add, not β; none at the last step.
    """
    yield len(model.schedule), x
    for t in reversed(range(len(model.schedule))):
        x0, _ = model.x0_and_eps(x, torch.full((len(x),), t, device=x.device))
        if model.recipe.skip and model.bound == "clip":
            x0 = x0.clamp(-1, 1)
        x, variance = model.schedule.posterior(x0, x, t)
        if t > 0:
            x = x + math.sqrt(variance) * torch.randn(x.shape, generator=rng).to(x.device)
        yield t, x


def sample(model: Denoiser, n: int, shape: tuple[int, int, int], seed: int) -> torch.Tensor:
    """`n` images (n, C, H, W) uint8 from N(0, I), drawn in portions of 1,000."""
    rng = generator(seed, "samples")
    parts = []
    sizes = [1000] * (n // 1000) + [n % 1000] * (n % 1000 > 0)
    for size in progress(sizes, "sampling", "portion"):
        x_T = torch.randn(size, math.prod(shape), generator=rng).to(model.a.device)
        parts.append(to_uint8(last(reverse_process(model, x_T, rng)).reshape(-1, *shape)))
    return torch.cat(parts)


def checkpoint_path(config: Config) -> Path:
    return config.output_dir / MODELS / "fast_mlp_diffusion.pth"


def load_denoiser(
    path: Path | str, device: torch.device | str = "cpu"
) -> tuple[Denoiser, tuple[int, int, int]]:
    """The averaged network of a checkpoint, with any settings, and the shape (C, H, W) of its images."""
    saved = load_checkpoint(path, SCRIPT, device)
    with checkpoint_errors(path):
        shape = tuple(saved["dataset"]["shape"])
        model = build(saved["config"], shape).to(device)
        trained_with = saved["extra"]["alpha_bar"].cpu()
    if not torch.allclose(trained_with, model.schedule.alpha_bar):
        raise UserError(
            f"{path} was trained with another noise schedule than its settings make here."
        )
    load_weights(model, saved["ema"], path)
    return model.eval(), shape


# === the lesson ends here; below: measured, plotted, reported =====================================

SCORE_EVERY = 7  # epochs
TITLE = "MLP diffusion: 50 steps, to the letter and corrected"
SUMMARY = (
    "A dense network learns to remove noise step by step and so to draw digits. The widely copied "
    "50-step recipe starts from a noise it never trained on, asks for more than its 256 units can say, "
    "and spends its loss where little is decided; three corrections make it draw."
)


def observer(
    config: Config, data: Dataset, result: Result, evaluator: Evaluator | None
) -> Observer:
    """After each epoch a sample grid, every few epochs a score of samples."""

    def after_epoch(training: Training[Denoiser], epoch: int) -> None:
        images = sample(training.model, samples.GRID, data.shape, config.seed)
        samples.write_grid(result.folder / f"epoch_{epoch:03d}.png", images, training)
        if evaluator is not None and (epoch % SCORE_EVERY == 0 or training.is_last(epoch)):
            images = sample(training.model, evaluator.n, data.shape, config.seed)
            samples.track(training, evaluator, images)

    return after_epoch


def train_others(config: Config, data: Dataset) -> dict[str, Training[Denoiser]]:
    """Every recipe for --compare-epochs, each with a checkpoint of its own.

    But for `config.recipe` where the main training is as long: that one is compared then.
    """
    epochs, others = config.compare_epochs, {}
    for name in RECIPES:
        if name == config.recipe and epochs == config.epochs:
            continue
        path = config.output_dir / MODELS / f"compared_{name}.pth"
        other = replace(config, recipe=name, epochs=epochs, resume=can_resume(config, path))
        others[name] = train(other, data, path)
    return others


@torch.no_grad()
def x0_errors(model: Denoiser, images: torch.Tensor, seed: int) -> torch.Tensor:
    """The mean squared error of x̂₀ at every t, (T,), on held-out images (N, C, H, W)."""
    rng = generator(seed, "errors of x0")
    x0 = signed(images).flatten(1)
    errors = []
    for t in progress(range(len(model.schedule)), "errors", "step"):
        eps = torch.randn(x0.shape, generator=rng).to(x0.device)
        at = torch.full((len(x0),), t, device=x0.device)
        x0_hat, _ = model.x0_and_eps(model.schedule.q_sample(x0, at, eps), at)
        errors.append((x0_hat - x0).square().mean())
    return torch.stack(errors).cpu()


def plot_errors(models: dict[str, Denoiser], data: Dataset, seed: int) -> Figure:
    """The error of x̂₀ on held-out images and its share of the loss's weight over t, a line per recipe."""
    images = data.test_images[:1000]
    figure, axes = figures.new_figure(9, 4.2, columns=2)
    errors, weights = {}, {}
    for model in models.values():
        title = model.recipe.title.replace("\n", " ")
        errors[title] = x0_errors(model, images, seed)
        weight = weight_on_x0(model.schedule, model.recipe.weight)
        weights[title] = weight / weight.sum()
    t = range(1, len(weight) + 1)
    figures.plot_lines(axes[0, 0], t, errors, "t", f"error of x̂₀ (n = {len(images):,})", False)
    figures.plot_lines(axes[0, 1], t, weights, "t", "share of the loss's weight on it", False)
    some = data.images[random_subset(len(data.images), 5000, "mean image").to(data.images.device)]
    guess = (signed(images) - signed(some).mean(dim=0)).square().mean().item()
    axes[0, 0].axhline(guess, color="#888888", linewidth=1, linestyle="--", label="the mean image")
    handles = axes[0, 0].get_legend_handles_labels()
    for axis, top in zip(axes[0], (3, 1), strict=True):  # ε̂ divided by √ᾱ_t → 0 leaves every scale
        axis.set_yscale("log")
        axis.set_ylim(top=top)
        if axis.get_legend() is not None:
            axis.get_legend().remove()
    figure.legend(*handles, loc="outside upper center", ncols=2)
    return figure


def report_recipes(
    trained: dict[str, Training],
    images: dict[str, torch.Tensor],
    scores: dict[str, samples.Scores],
    evaluator: Evaluator | None,
    result: Result,
) -> None:
    """The recipes side by side with their distances, and as a table."""
    epochs = {name: f"{t.steps_done / t.steps_per_epoch:.3g}" for name, t in trained.items()}
    titles = {name: f"{RECIPES[name].title}\nepochs: {epochs[name]}" for name in trained}
    caption = "The same network and noise to the letter, and with the corrections added in turn"
    caption += f"; Fréchet distances of {evaluator.n:,} samples." if evaluator else "."
    figure = samples.plot_comparison(
        {titles[name]: images[name] for name in trained},
        {titles[name]: scores[name] for name in scores},
    )
    result.add_figure("recipes.png", figure, caption)
    if evaluator is None:
        return
    rows = {name: (epochs[name], score) for name, score in scores.items()}
    evaluator.add_table(result, "The recipes", rows)
    for name, score in scores.items():
        result.add_metric(f"{name}: Fréchet distance", score.frechet, evaluator.n, better="lower",
                          floor=evaluator.floor.frechet)  # fmt: skip
    share = scores["corrected"].frechet / scores["literal"].frechet
    result.add_metric("corrected: share of literal's distance", share, evaluator.n, better="lower")


def evaluate(
    config: Config,
    data: Dataset,
    main: Training[Denoiser],
    compared: dict[str, Training[Denoiser]],
    evaluator: Evaluator | None,
    result: Result,
) -> torch.Tensor:
    """Sample and score, draw the figures; returns the main training's samples."""
    n, seed = samples.samples_to_draw(config, data), config.seed
    with samples.timed_samples(result, n):
        own = sample(main.model, n, data.shape, seed)
    scorer = evaluator and samples.evaluator_for(config, data, n, evaluator)
    score = samples.report_samples(result, own, scorer, data, main)
    samples.add_quality(result, main, evaluator)
    if compared:
        trained = {name: compared.get(name, main) for name in RECIPES}
        images = {name: own if t is main else sample(t.model, n, data.shape, seed)
                  for name, t in trained.items()}  # fmt: skip
        scores = {name: score if t is main else scorer.scores(images[name])
                  for name, t in trained.items()} if scorer and score else {}  # fmt: skip
        report_recipes(trained, images, scores, scorer, result)
    trained = {config.recipe: main, **compared}
    models = {name: trained[name].model for name in RECIPES if name in trained}
    caption = (
        "Left: the error of x̂₀ at every t; the recipe to the letter never sees more noise than x_T has. "
        "Right: what that error weighs in the loss. Much noise is where a digit is decided."
    )
    result.add_figure("errors.png", plot_errors(models, data, seed), caption)
    loss = samples.plot_loss(main, "weighted loss")
    result.add_figure("loss.png", loss, "The loss while training.")
    rng = generator(seed, "reverse process")
    x_T = torch.randn(4, math.prod(data.shape), generator=rng).to(data.images.device)
    reverse = list(reverse_process(main.model, x_T, rng))
    forward = forward_states(main.model.schedule, reverse[-1][1], rng)
    reverse, forward = (
        [(t, to_uint8(x.reshape(-1, *data.shape))) for t, x in states] for states in (reverse, forward)
    )  # fmt: skip
    samples.add_trajectory(result, reverse, forward)
    for epoch in range(1, main.last_epoch + 1):
        result.note_file(f"epoch_{epoch:03d}.png", f"Samples after epoch {epoch}.")
    result.add_metric("weight of the image in the last x_t",
                      main.model.schedule.alpha_bar[-1].sqrt(), config.T)  # fmt: skip
    return own


def lessons(result: Result) -> list[str]:
    """What the figures teach, as far as they were measured."""
    told = []
    if distances := result.measured(*(f"{name}: Fréchet distance" for name in RECIPES)):
        literal, rescaled, skip, corrected = distances
        told.append(
            f"After as many epochs as the picture names, the recipe to the letter stands at a distance "
            f"of {literal:,.0f}. Ending in noise brings it to {rescaled:,.0f}, letting the noise pass to "
            f"{skip:,.0f}, and the loss weighted by 1 − ᾱ_t to {corrected:,.0f}."
        )
    if distance := result.measured("Fréchet distance"):
        told.append(f"The whole training ends at {distance[0]:,.0f}, from pure noise.")
    return told


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
    for name in RECIPES if config.compare else ():  # what does not fit is said before the training
        build(settings_dict(replace(config, recipe=name)), data.shape)
    evaluator = samples.evaluator_for(config, data, samples.TRACKED)
    watching = observer(config, data, result, evaluator)
    main = train(config, data, checkpoint_path(config), watching)
    compared = train_others(config, data) if config.compare else {}
    images = evaluate(config, data, main, compared, evaluator, result)
    samples.write_samples(config.samples_file, images)
    return result.save(*lessons(result))


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
