"""A generative adversarial network of plain dense layers (Goodfellow et al. 2014).

A generator turns 100 random numbers into an image; a discriminator tries to tell its images from
real ones; each is trained against the other. What to look at: the grids drawn from one fixed set of
latents as the epochs pass, D(x) and D(G(z)) as the two sides gain and lose, and the histogram of the
classes that a classifier reads in the samples, where a collapse onto few classes would be seen.

    python gan_mnist.py                                    # 28 epochs, a minute on two cores
    python gan_mnist.py --compare                          # beside it, the recipe as often written
    python gan_mnist.py --dataset mnist --epochs 60        # the full MNIST
    python gan_mnist.py --resume                           # go on after Ctrl-C
    python gan_mnist.py --sample-only --num-samples 2000 --samples-file samples.npz

What differs from the recipe as it is often written: no momentum in Adam (β₁ = 0 instead of 0.5), a
learning rate that is higher and falls to 0 over the second half, batches twice as large, an average of
the generator's weights that draws the samples, and a discriminator that sees every image moved by up to
two pixels at random (Zhao et al. 2020), so that it cannot learn the training images by heart.

The README states the figures to expect. The discriminator ends in a sigmoid, but the loss is computed
on its logits: log σ(x) is exact there, where log of a rounded sigmoid would be log 0.
"""

from __future__ import annotations

from imagelab.setup.command import command_line

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

from imagelab.data.datasets import Dataset, load_for, signed, to_uint8
from imagelab.data.pictures import read_png, write_gif
from imagelab.report import figures
from imagelab.report.evaluator import Judge
from imagelab.report.results import Result, start_result
from imagelab.report.samples import (
    GRID,
    TRACKED,
    clocked,
    draw_comparison,
    draw_only,
    draw_tracked,
    judge_for,
    report_samples,
    samples_to_draw,
    track,
    write_grid,
    write_samples,
)
from imagelab.setup.runtime import autocast, generator, in_eval_mode, prepare
from imagelab.setup.settings import Count, ExportSettings, Fraction, Limits, Rate, SamplingSettings
from imagelab.techniques.export import export_network
from imagelab.training.checkpoints import as_described, load_checkpoint, load_weights
from imagelab.training.loop import Training, goes_on, rise_and_fall

SCRIPT = "gan_mnist"
PICTURES, MODELS = "fake_images", "GAN_models"
TITLE = "MLP GAN: a forger and a detective"
SUMMARY = (
    "A generator of three dense layers learns to draw digits by fooling a discriminator that learns "
    "to tell its images from real ones. The balance of the two is seen in D(x) and D(G(z)), the "
    "variety in the classes that a classifier reads."
)
LESSONS = (
    "The samples lie at a distance of {Fréchet distance|.0f} from the data and cover "
    "{coverage|.0%} of it; the rarest class has {rarest class|.1%} of them.",
    "In the last epoch D(x) was {D(x), last epoch|.2f} and D(G(z)) {D(G(z)), last epoch|.2f}: "
    "these say how the game stands, not how good the images are, for which it takes a judge.",
)


@dataclass(frozen=True)
class Game(ExportSettings, SamplingSettings):
    """Settings of the game, whatever the two networks are."""

    epochs: Count = 28
    """Passes over the training images."""
    batch_size: Annotated[int, Limits(2)] = 128
    """Real images per step; the discriminator sees as many fakes."""
    lr: Rate = 8e-4
    """Adam's learning rate, of both networks."""
    fall: Fraction = 0.5
    """The part of the training from which the learning rate falls to 0; 1: it stays."""
    beta1: Annotated[float, Limits(0, 0.999)] = 0.0
    """Adam's first-moment decay. Momentum answers an opponent that has moved on: 0.5 instead of the usual
    0.9 calms the game (Radford et al. 2015), 0 more so."""
    label_smoothing: Annotated[float, Limits(0, 0.5)] = 0.1
    """Real images are labelled 1 minus this (Salimans et al. 2016): a discriminator that cannot grow
    certain leaves the generator a gradient. 0: as Goodfellow et al. wrote it."""
    moved: Annotated[int, Limits(0, 8)] = 2
    """Pixels by which the discriminator sees each image moved, at most; 0: as it is."""
    latent_size: Count = 100
    """Random numbers that the generator starts from."""
    ema_decay: Fraction = 0.999
    """Decay of a moving average of the generator's weights, which then draws the samples (Yazıcı et al.
    2019); 0: none."""
    log_every: Count = 500
    """Batches between two lines of losses."""
    grid_every: Annotated[int, Limits(0)] = 5
    """Epochs between two sample grids; 0: none."""


@dataclass(frozen=True)
class Config(Game):
    """Settings of the MLP GAN."""

    compare: bool = False
    """Also train the recipe as it is often written, and show both side by side, after equal epochs."""
    compare_epochs: Count = 2
    """Epochs of both recipes in the comparison."""


AS_OFTEN_WRITTEN = {"batch_size": 64, "lr": 2e-4, "fall": 1.0, "beta1": 0.5, "moved": 0,
                    "ema_decay": 0.0}  # fmt: skip


# --- the two networks -----------------------------------------------------------------------------


class Generator(nn.Module):
    """Latents (B, latent_size) ~ N(0, I) to images (B, C, H, W) in [-1, 1]."""

    def __init__(self, latent_size: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.latent_size, self.shape = latent_size, shape
        self.layers = nn.Sequential(
            nn.Linear(latent_size, 128),
            nn.ReLU(),
            nn.Linear(128, 256),
            nn.ReLU(),
            nn.Linear(256, math.prod(shape)),
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        with autocast(z.device):
            x = self.layers(z).float()  # (B, C·H·W)
        return x.tanh().reshape(-1, *self.shape)


class Discriminator(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to the probability (B,) that each is real."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(shape), 256),
            nn.LeakyReLU(0.2),
            nn.Linear(256, 128),
            nn.LeakyReLU(0.2),
            nn.Linear(128, 1),
        )

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Before the sigmoid, (B,): what the loss is computed on."""
        with autocast(x.device):
            return self.layers(x).float().squeeze(1)

    def compare(self, real: torch.Tensor, fake: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The logits of real and of generated images, in one pass."""
        return self.logits(torch.cat([real, fake])).chunk(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.logits(x))


def build(
    config: Config, shape: tuple[int, int, int], device: torch.device
) -> tuple[Generator, Discriminator]:
    """Both networks with their first random weights, the same for the same seed.

    The hidden layers are initialised as He et al. (2015) do: with PyTorch's smaller default weights
    the first images hardly differ, the discriminator wins at once, and training takes longer.
    """
    torch.manual_seed(config.seed)
    networks = Generator(config.latent_size, shape), Discriminator(shape)
    for network in networks:
        for layer in [layer for layer in network.layers if isinstance(layer, nn.Linear)][:-1]:
            nn.init.kaiming_normal_(layer.weight, a=0.2)
            nn.init.zeros_(layer.bias)
    return tuple(network.to(device) for network in networks)


# --- the two losses -------------------------------------------------------------------------------


def discriminator_loss(
    real_logits: torch.Tensor, fake_logits: torch.Tensor, smoothing: float = 0.0
) -> torch.Tensor:
    """−½ (E log D(x) + E log(1 − D(G(z)))), both logits (B,); real images count as 1 − smoothing."""
    real = F.binary_cross_entropy_with_logits(
        real_logits, torch.full_like(real_logits, 1 - smoothing)
    )
    fake = F.binary_cross_entropy_with_logits(fake_logits, torch.zeros_like(fake_logits))
    return (real + fake) / 2


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """−E log D(G(z)): the non-saturating form (Goodfellow et al. 2014, section 3)."""
    return F.binary_cross_entropy_with_logits(fake_logits, torch.ones_like(fake_logits))


def moved(images: torch.Tensor, limit: int, rng: torch.Generator) -> torch.Tensor:
    """Each image (B, C, H, W) by up to `limit` pixels in both directions, black (−1) where it left.

    Real and generated images alike, so that the game's aim stays (DiffAugment, Zhao et al. 2020).
    """
    if limit == 0:
        return images
    B, C, H, W = images.shape
    down, right = torch.randint(0, 2 * limit + 1, (2, B, 1), generator=rng, device=images.device)
    rows, columns = (torch.arange(side, device=images.device) for side in (H, W))
    wide = F.pad(images, (limit,) * 4, value=-1.0).flatten(2)  # (B, C, (H + 2·limit)(W + 2·limit))
    where = (rows + down)[:, :, None] * (W + 2 * limit) + (columns + right)[:, None, :]  # (B, H, W)
    return wide.gather(2, where.flatten(1)[:, None].expand(-1, C, -1)).view_as(images)


# --- training -------------------------------------------------------------------------------------


def train(
    config: Game,
    data: Dataset,
    G: nn.Module,
    D: nn.Module,
    path: Path,
    result: Result,
    judge: Judge | None = None,
    label: str = "GAN",
) -> Training:
    """Train the pair, or go on with --resume; sample grids go into the result's folder.

    `judge` watches: it scores samples after every epoch and has no say in the training.
    """
    device = data.images.device
    adam = {"lr": config.lr, "betas": (float(config.beta1), 0.999), "fused": True}
    adam_g = torch.optim.Adam(G.parameters(), **adam)
    adam_d = torch.optim.Adam(D.parameters(), **adam)
    fixed = torch.randn(GRID, config.latent_size, generator=generator(config.seed, "fixed latents"))

    with Training(
        path,
        result.script,
        config,
        data,
        {"generator": G, "discriminator": D},
        {"generator": adam_g, "discriminator": adam_d},
        ema="generator" if config.ema_decay else None,
        ema_decay=config.ema_decay,
        free=("log_every", "grid_every", "compare", "compare_epochs"),
        label=label,
    ) as run:
        drawing = drawing_network(run)
        for epoch in run.epochs():
            for batch in run.batches():
                rate = config.lr * rise_and_fall(run.progress, 0, config.fall)
                adam_g.param_groups[0]["lr"] = adam_d.param_groups[0]["lr"] = rate
                x = signed(data.images[batch])
                z = torch.randn(len(x), config.latent_size, generator=run.rng, device=device)
                x, fake = (moved(images, config.moved, run.rng) for images in (x, G(z)))

                # The discriminator learns to tell the two apart; no gradient reaches the generator.
                real_logits, fake_logits = D.compare(x, fake.detach())
                d_loss = discriminator_loss(real_logits, fake_logits, config.label_smoothing)
                adam_d.zero_grad()
                d_loss.backward()
                adam_d.step()

                # The generator learns to be taken for real; the discriminator only passes gradients.
                D.requires_grad_(False)
                g_loss = generator_loss(D.logits(fake))
                adam_g.zero_grad()
                g_loss.backward()
                adam_g.step()
                D.requires_grad_(True)

                run.log(
                    d_loss=d_loss,
                    g_loss=g_loss,
                    d_real=real_logits.detach().sigmoid().mean(),
                    d_fake=fake_logits.detach().sigmoid().mean(),
                )
                if run.steps_done % config.log_every == 0:
                    run.announce(report_line(run, epoch, config.log_every))
            run.announce(report_line(run, epoch, run.step) + "  (the epoch's mean)")
            if judge is not None:
                track(run, judge, sample(drawing, judge.n, config.seed))
            every = config.grid_every
            if every and (epoch % every == 0 or run.is_last(epoch)):
                write_grid(epoch_grid(result, epoch), draw(drawing, fixed.to(device)), run)
    return run


def drawing_network(run: Training) -> nn.Module:
    """The generator that draws the samples: the averaged one, where there is one."""
    return run.averaged or run.networks["generator"]


def report_line(run: Training, epoch: int, steps: int) -> str:
    """Means over the last `steps` steps."""
    d_loss, g_loss, d_real, d_fake = (
        run.recent(name, steps) for name in ("d_loss", "g_loss", "d_real", "d_fake")
    )
    return (
        f"epoch {epoch} step {run.steps_done}: D loss {d_loss:.3f}  G loss {g_loss:.3f}  "
        f"D(x) {d_real:.3f}  D(G(z)) {d_fake:.3f}"
    )


# --- sampling -------------------------------------------------------------------------------------


@torch.no_grad()
def draw(G: nn.Module, z: torch.Tensor) -> torch.Tensor:
    """Latents (N, latent_size) to images (N, C, H, W) uint8."""
    with in_eval_mode(G):
        return torch.cat([to_uint8(G(part)) for part in z.split(1000)])


def sample(G: nn.Module, n: int, seed: int) -> torch.Tensor:
    """`n` images (n, C, H, W) uint8 from fresh latents."""
    device = next(G.parameters()).device
    z = torch.randn(n, G.latent_size, generator=generator(seed, "samples"))
    return draw(G, z.to(device))


def load_generator(
    path: Path | str,
    device: torch.device | str = "cpu",
    script: str = SCRIPT,
    kind: type[nn.Module] = Generator,
) -> nn.Module:
    """The generator, of that `kind`, of the checkpoint that `script` wrote."""
    saved = load_checkpoint(path, script, device)
    with as_described(path):
        G = kind(saved["config"]["latent_size"], tuple(saved["dataset"]["shape"])).to(device)
    load_weights(G, saved["ema"] or saved["model"].get("generator"), path)
    return G.eval()


def export_generator(path: Path | str | None, G: nn.Module) -> None:
    """The generator as a file: latents (N, latent_size) to images (N, C, H, W) in [-1, 1]."""
    export_network(path, G, {"latents": torch.randn(2, G.latent_size)}, "images")


# --- figures --------------------------------------------------------------------------------------


def train_compared(config: Config, data: Dataset, result: Result) -> dict[str, Training]:
    """The recipe as often written and, where the main training is longer, this one as well."""
    epochs = config.compare_epochs
    recipes = {"as often written": AS_OFTEN_WRITTEN}
    if epochs != config.epochs:
        recipes["here"] = {}
    runs = {}
    for name, changes in recipes.items():
        path = config.output_dir / MODELS / f"compared_{name.replace(' ', '_')}.pth"
        own = replace(config, epochs=epochs, grid_every=0, log_every=10**9,
                      resume=goes_on(config, path), **changes)  # fmt: skip
        networks = build(own, data.shape, data.images.device)
        runs[name] = train(own, data, *networks, path, result, label=f"GAN, {name}")
    return runs


def evaluate(
    config: Game,
    data: Dataset,
    run: Training,
    watch: Judge | None,
    result: Result,
    compared: dict[str, Training] | None = None,
) -> torch.Tensor:
    """Sample, score, and draw the figures of the whole run into `result`; returns the samples."""
    n = samples_to_draw(config, data)
    with clocked(result, n):
        samples = sample(drawing_network(run), n, config.seed)
    judge = watch and judge_for(config, data, n, watch)
    report_samples(result, samples, judge, data)
    if compared:
        report_compared({"here": run, **compared}, n, judge, result)
    draw_tracked(result, run, watch)
    steps = min(run.steps_per_epoch, run.steps_done)
    judged = steps * config.batch_size
    result.add_metric("D(x), last epoch", run.recent("d_real", steps), judged)
    result.add_metric("D(G(z)), last epoch", run.recent("d_fake", steps), judged)
    tie = (1 - config.label_smoothing) / 2  # D's best answer where it cannot tell the two apart
    path = result.add_file(
        "curves.png",
        f"Losses, and how real D takes real and generated images to be; {tie:g} each would be a tie.",
    )
    draw_curves(path, run, tie)
    frames = [read_png(path) for path in epoch_grids(config, run, result)]
    if frames:
        write_gif(result.add_file("training.gif", "The same latents through the training."), frames)
    return samples


def report_compared(runs: dict[str, Training], n: int, judge: Judge | None, result: Result) -> None:
    """Both recipes side by side with their distances, and as a table."""
    pictures, scores, scored = {}, {}, {}
    for name in ("as often written", "here"):
        own = runs[name].config
        weights = "averaged weights" if own.ema_decay else "last weights"
        title = f"{name}, epochs: {own.epochs}\nlr {own.lr:g}, β₁ = {own.beta1:g},\n{weights}"
        pictures[title] = sample(drawing_network(runs[name]), n, own.seed)
        if judge is not None:
            scores[title] = judge.scores(pictures[title])
            scored[name] = (str(own.epochs), scores[title])
    path = result.add_file("compared.png", "The recipe as it is often written, and as it is here, after "
                           "equal epochs.")  # fmt: skip
    draw_comparison(path, pictures, scores)
    if judge is not None:
        judge.add_table(result, "The recipe as often written", scored)


def draw_curves(path: Path, run: Training, tie: float) -> None:
    """Losses on the left, D(x) and D(G(z)) on the right, smoothed to about 150 points."""
    window = max(len(run.curve("d_loss")) // 150, 1)
    figure, axes = figures.new_figure(9, 3.2, columns=2)
    panels = {
        "loss": {"discriminator": "d_loss", "generator": "g_loss"},
        "mean output of D": {"D(x), real": "d_real", "D(G(z)), generated": "d_fake"},
    }
    for axis, (ylabel, names) in zip(axes[0], panels.items(), strict=True):
        lines = {label: run.smoothed(name, window)[1] for label, name in names.items()}
        epochs, _ = run.smoothed("d_loss", window)
        figures.draw_lines(axis, epochs, lines, "epoch", ylabel, markers=False)
    axes[0, 1].set_ylim(0, 1)
    axes[0, 1].axhline(tie, color="#888888", linewidth=1, linestyle="--")
    figures.save_figure(figure, path)


def epoch_grid(result: Result, epoch: int) -> Path:
    return result.folder / f"epoch_{epoch:03d}.png"


def epoch_grids(config: Game, run: Training, result: Result) -> list[Path]:
    """The grids that this run left on disk, also those from before a --resume."""
    last, every = run.last_epoch, config.grid_every
    if not every:
        return []
    paths = [result.note_file(epoch_grid(result, epoch).name, f"Fixed latents after epoch {epoch}.")
             for epoch in sorted({*range(every, last, every), last})]  # fmt: skip
    return list(filter(None, paths))


# --- the run --------------------------------------------------------------------------------------


def checkpoint_path(config: Config) -> Path:
    return config.output_dir / MODELS / "mlp_gan.pth"


def run(config: Config) -> Result:
    """Train (or load), sample, measure; what the driver and the tests call."""
    device = prepare(config.seed, config.device)
    config = config.quickened(epochs=2, compare_epochs=1, num_samples=500, log_every=50)
    if config.sample_only:
        G = load_generator(checkpoint_path(config), device)
        export_generator(config.export, G)
        samples = sample(G, config.num_samples, config.seed)
        return draw_only(SCRIPT, TITLE, PICTURES, config, device, samples)
    data = load_for(config, device)
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    watch = judge_for(config, data, TRACKED)
    G, D = build(config, data.shape, device)
    training = train(config, data, G, D, checkpoint_path(config), result, watch)
    compared = train_compared(config, data, result) if config.compare else None
    samples = evaluate(config, data, training, watch, result, compared)
    write_samples(config.samples_file, samples)
    export_generator(config.export, drawing_network(training))
    return result.save(*LESSONS)


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
