"""A generative adversarial network of plain dense layers (Goodfellow et al. 2014).

A generator turns 100 random numbers into an image. A discriminator learns to tell these images from real
ones. Each is trained against the other.

    python gan_mnist.py                                    # 28 epochs, a minute on two cores
    python gan_mnist.py --compare                          # beside it, the recipe as often written
    python gan_mnist.py --dataset mnist --epochs 60        # the full MNIST
    python gan_mnist.py --resume                           # go on after Ctrl-C
    python gan_mnist.py --keep-every 7                     # --checkpoint FILE samples from any kept one
    python gan_mnist.py --sample-only --num-samples 2000 --samples-file samples.npz

What to look at: the grids of the epochs, all drawn from the same latents; D(x) and D(G(z)), which show
whether one network is far ahead; the classes that a classifier reads in the samples: if the GAN
collapsed, some of them would be empty.

Five things differ from the recipe as often written: Adam without momentum; a learning rate that is higher
and falls to 0 over the second half; larger batches; averaged weights that draw the samples; and small
random shifts of all images before the discriminator sees them, so that it cannot memorise them.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from torch import nn

from imagelab.data.datasets import Dataset, load_for, signed, to_uint8
from imagelab.report import figures, samples
from imagelab.report.evaluator import Evaluator
from imagelab.report.results import Result, start_result
from imagelab.setup.runtime import autocast, generator, in_eval_mode, prepare
from imagelab.setup.settings import Count, ExportSettings, Fraction, Limits, Rate, SamplingSettings
from imagelab.techniques.export import export_network
from imagelab.training.checkpoints import checkpoint_errors, load_checkpoint, load_weights
from imagelab.training.loop import Observer, Training, can_resume, no_observer, warmup_and_decay

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "gan_mnist"
PICTURES, MODELS = "fake_images", "GAN_models"

# --- the two networks -----------------------------------------------------------------------------


class BaseGenerator(nn.Module):
    """What `train` and `sample` need of a generator: those of other scripts derive from it."""

    latent_size: int


class BaseDiscriminator(nn.Module):
    """What `train` needs of a discriminator: those of other scripts derive from it."""

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to (B,): how real each looks, before the sigmoid."""
        raise NotImplementedError

    def compare(self, real: torch.Tensor, fake: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The logits of real and of generated images, in one pass."""
        return self.logits(torch.cat([real, fake])).chunk(2)


class Generator(BaseGenerator):
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


class Discriminator(BaseDiscriminator):
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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.logits(x))


def build(
    config: Config, shape: tuple[int, int, int], device: torch.device
) -> tuple[Generator, Discriminator]:
    """Both networks with their first random weights, the same for the same seed.

    The hidden layers are initialised as in He et al. (2015). With PyTorch's smaller default weights the
    first images hardly differ, the discriminator wins at once, and training takes longer.
    """
    torch.manual_seed(config.seed)
    G, D = Generator(config.latent_size, shape), Discriminator(shape)
    for network in (G, D):
        for layer in [layer for layer in network.layers if isinstance(layer, nn.Linear)][:-1]:
            nn.init.kaiming_normal_(layer.weight, a=0.2)
            nn.init.zeros_(layer.bias)
    return G.to(device), D.to(device)


# --- the two losses, and the random shifts --------------------------------------------------------


def discriminator_loss(
    real_logits: torch.Tensor, fake_logits: torch.Tensor, smoothing: float = 0.0
) -> torch.Tensor:
    """−½ (E log D(x) + E log(1 − D(G(z)))), both logits (B,); real images count as 1 − smoothing."""
    bce = F.binary_cross_entropy_with_logits
    real = bce(real_logits, torch.full_like(real_logits, 1 - smoothing))
    fake = bce(fake_logits, torch.zeros_like(fake_logits))
    return (real + fake) / 2


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """−E log D(G(z)): the non-saturating form (Goodfellow et al. 2014, section 3)."""
    return F.binary_cross_entropy_with_logits(fake_logits, torch.ones_like(fake_logits))


def random_shift(images: torch.Tensor, limit: int, rng: torch.Generator) -> torch.Tensor:
    """Shift each image (B, C, H, W) by up to `limit` pixels along both axes; black (−1) fills the gap.

    Real and generated images are shifted alike, so that the generator's aim is unchanged (DiffAugment,
    Zhao et al. 2020).
    """
    if limit == 0:
        return images
    B, C, H, W = images.shape
    down, right = torch.randint(0, 2 * limit + 1, (2, B, 1), generator=rng, device=images.device)
    rows, columns = (torch.arange(side, device=images.device) for side in (H, W))
    wide = F.pad(images, (limit,) * 4, value=-1.0).flatten(2)  # (B, C, (H + 2·limit)(W + 2·limit))
    where = (rows + down)[:, :, None] * (W + 2 * limit) + (columns + right)[:, None, :]  # (B, H, W)
    return wide.gather(2, where.flatten(1)[:, None].expand(-1, C, -1)).view_as(images)


# --- settings and training ------------------------------------------------------------------------


@dataclass(frozen=True)
class GANSettings(ExportSettings, SamplingSettings):
    """Settings of a GAN's training, whatever its two networks are."""

    epochs: Count = 28
    """Passes over the training images."""
    batch_size: Annotated[int, Limits(2)] = 256
    """Real images per step; the discriminator sees as many generated ones."""
    lr: Rate = 1.2e-3
    """Adam's learning rate, of both networks."""
    decay_from: Fraction = 0.5
    """The share of the training after which the learning rate falls to 0; 1: it stays."""
    beta1: Annotated[float, Limits(0, 0.999)] = 0.0
    """Adam's first-moment decay (momentum). The opponent changes at every step, so that old gradients
    mislead: 0.5 instead of the usual 0.9 makes training steadier (Radford et al. 2015), 0 more so."""
    beta2: Annotated[float, Limits(0, 0.9999)] = 0.999
    """Adam's second-moment decay. The lower it is, the sooner the steps follow the gradients' size."""
    label_smoothing: Annotated[float, Limits(0, 0.5)] = 0.1
    """Real images are labelled 1 minus this (Salimans et al. 2016). A discriminator that is never certain
    leaves the generator a gradient. 0: as Goodfellow et al. wrote it."""
    max_shift: Annotated[int, Limits(0, 8)] = 2
    """The discriminator sees each image shifted at random by up to this many pixels; 0: as it is."""
    latent_size: Count = 100
    """Random numbers that the generator starts from."""
    ema_decay: Fraction = 0.998
    """Decay of the generator's averaged weights, which draw the samples (Yazıcı et al. 2019); 0: none."""
    log_every: Count = 500
    """Batches between two lines of losses."""
    grid_every: Annotated[float, Limits(0)] = 1.0
    """Epochs between two sample grids (0.1: ten grids in each epoch); 0: none."""


@dataclass(frozen=True)
class Config(GANSettings):
    """Settings of the MLP GAN."""

    compare: bool = False
    """Also train the recipe as often written, and show both side by side after equally many epochs."""
    compare_epochs: Count = 2
    """Epochs of both recipes in the comparison."""


AS_OFTEN_WRITTEN = {
    "batch_size": 64,
    "lr": 2e-4,
    "decay_from": 1.0,
    "beta1": 0.5,
    "beta2": 0.999,
    "max_shift": 0,
    "ema_decay": 0.0,
}


def train(
    config: GANSettings,
    data: Dataset,
    G: BaseGenerator,
    D: BaseDiscriminator,
    path: Path,
    script: str = SCRIPT,
    label: str = "GAN",
    after_epoch: Observer = no_observer,
) -> Training:
    """Train the pair, or go on with --resume. `after_epoch` observes and changes nothing."""
    betas = float(config.beta1), float(config.beta2)
    adam_g, adam_d = (
        torch.optim.Adam(net.parameters(), config.lr, betas, fused=True) for net in (G, D)
    )
    training = Training(
        path,
        script,
        config,
        data,
        networks={"generator": G, "discriminator": D},
        optimizers={"generator": adam_g, "discriminator": adam_d},
        ema="generator" if config.ema_decay else None,
        ema_decay=config.ema_decay,
        may_change_on_resume=("log_every", "grid_every", "compare", "compare_epochs"),
        label=label,
        log_every=config.log_every,
        parts=round(1 / config.grid_every) if 0 < config.grid_every < 1 else 1,
    )
    if config.resume:
        training.load()
    rng, device = training.rng, data.images.device
    with training:
        for epoch in training.epochs():
            for batch in training.batches():
                lr = config.lr * warmup_and_decay(training.progress, 0, config.decay_from)
                adam_g.param_groups[0]["lr"] = adam_d.param_groups[0]["lr"] = lr
                x = signed(data.images[batch])  # (B, C, H, W) in [-1, 1]
                z = torch.randn(len(x), config.latent_size, generator=rng, device=device)
                x, fake = (random_shift(images, config.max_shift, rng) for images in (x, G(z)))

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

                d_real, d_fake = (p.detach().sigmoid().mean() for p in (real_logits, fake_logits))
                training.log(d_loss=d_loss, g_loss=g_loss, d_real=d_real, d_fake=d_fake)
            after_epoch(training, epoch)
    return training


# --- sampling -------------------------------------------------------------------------------------


@torch.no_grad()
def generate(G: nn.Module, z: torch.Tensor) -> torch.Tensor:
    """Latents (N, latent_size) to images (N, C, H, W) uint8."""
    with in_eval_mode(G):
        return torch.cat([to_uint8(G(part)) for part in z.split(1000)])


def sample(G: BaseGenerator, n: int, seed: int) -> torch.Tensor:
    """`n` images (n, C, H, W) uint8 from fresh latents."""
    device = next(G.parameters()).device
    z = torch.randn(n, G.latent_size, generator=generator(seed, "samples"))
    return generate(G, z.to(device))


def load_generator(
    path: Path | str,
    device: torch.device | str = "cpu",
    script: str = SCRIPT,
    kind: type[BaseGenerator] = Generator,
) -> BaseGenerator:
    """The generator, of class `kind`, in the checkpoint that `script` wrote."""
    saved = load_checkpoint(path, script, device)
    with checkpoint_errors(path):
        G = kind(saved["config"]["latent_size"], tuple(saved["dataset"]["shape"])).to(device)
    load_weights(G, saved["ema"] or saved["model"].get("generator"), path)
    return G.eval()


def export_generator(path: Path | str | None, G: BaseGenerator) -> None:
    """The generator as a file: latents (N, latent_size) to images (N, C, H, W) in [-1, 1]."""
    export_network(path, G, {"latents": torch.randn(2, G.latent_size)}, "images")


# === the lesson ends here; below: measured, plotted, reported =====================================

TITLE = "MLP GAN: a forger and a detective"
SUMMARY = (
    "A generator of three dense layers learns to draw digits by fooling a discriminator, which learns "
    "to tell its images from real ones. D(x) and D(G(z)) show the balance of the two networks. The "
    "classes that a classifier reads show how varied the samples are."
)


def sampling_network(training: Training) -> BaseGenerator:
    """The generator that draws the samples: the averaged one, where there is one."""
    G = training.model
    assert isinstance(G, BaseGenerator)
    return G


def observer(config: GANSettings, result: Result, evaluator: Evaluator | None) -> Observer:
    """After each epoch: its mean losses, the score of its samples, a grid from fixed latents."""
    rng = generator(config.seed, "fixed latents")
    fixed = torch.randn(50, config.latent_size, generator=rng)

    def after_epoch(training: Training, epoch: int) -> None:
        training.announce_means(training.step)
        G = sampling_network(training)
        if evaluator is not None:
            samples.track(training, evaluator, sample(G, evaluator.n, config.seed))
        every = config.grid_every
        if every and (epoch % max(round(every), 1) == 0 or training.is_last(epoch)):
            z = fixed.to(next(G.parameters()).device)
            samples.write_epoch_grid(result, training, generate(G, z))

    return after_epoch


def train_compared(config: Config, data: Dataset) -> dict[str, Training]:
    """Train the recipe as often written; this one too, if the main training has other epochs."""
    epochs = config.compare_epochs
    recipes = {"as often written": AS_OFTEN_WRITTEN}
    if epochs != config.epochs:
        recipes["here"] = {}
    trained = {}
    for name, changes in recipes.items():
        path = config.output_dir / MODELS / f"compared_{name.replace(' ', '_')}.pth"
        own = replace(
            config, epochs=epochs, log_every=10**9, resume=can_resume(config, path), **changes
        )
        networks = build(own, data.shape, data.images.device)
        trained[name] = train(own, data, *networks, path, label=f"GAN, {name}")
    return trained


def evaluate(
    config: GANSettings,
    data: Dataset,
    training: Training,
    evaluator: Evaluator | None,
    result: Result,
    compared: dict[str, Training] | None = None,
) -> torch.Tensor:
    """Sample, score, and draw the figures of the whole run into `result`; returns the samples."""
    n = samples.samples_to_draw(config, data)
    with samples.timed_samples(result, n):
        images = sample(sampling_network(training), n, config.seed)
    scorer = evaluator and samples.evaluator_for(config, data, n, evaluator)
    samples.report_samples(result, images, scorer, data, training)
    if compared:
        report_compared({"here": training, **compared}, n, scorer, result)
    samples.add_quality(result, training, evaluator)
    steps = min(training.steps_per_epoch, training.steps_done)
    shown = steps * config.batch_size
    result.add_metric("D(x), last epoch", training.recent("d_real", steps), shown)
    result.add_metric("D(G(z)), last epoch", training.recent("d_fake", steps), shown)
    undecided = (1 - config.label_smoothing) / 2  # D's best answer where it cannot tell them apart
    caption = (
        "Left, the losses. Right, the mean output of D for real and for generated images. A D that "
        f"cannot tell them apart does best with {undecided:g} for all"
    )
    if config.label_smoothing:
        caption += f", because real images are labelled {1 - config.label_smoothing:g} instead of 1"
    caption += "."
    result.add_figure("curves.png", plot_curves(training, undecided), caption)
    samples.add_epoch_grids(result, training, "latents")
    return images


def report_compared(
    trained: dict[str, Training], n: int, evaluator: Evaluator | None, result: Result
) -> None:
    """Both recipes side by side with their distances, and as a table."""
    titles, drawn = {}, {}
    for name in ("as often written", "here"):
        own = trained[name].config
        weights = "averaged weights" if own.ema_decay else "last weights"
        titles[name] = (
            f"{name}, epochs: {own.epochs}\nbatch {own.batch_size}, lr {own.lr:g}, β₁ = {own.beta1:g},\n"
            f"shifts up to {own.max_shift} pixels, {weights}"
        )
        drawn[name] = sample(sampling_network(trained[name]), n, own.seed)
    scores = {k: evaluator.scores(images) for k, images in drawn.items()} if evaluator else {}
    caption = (
        "The recipe as often written, and this one, each trained for these few epochs alone. Neither is "
        "done after so few. Above stands what differs."
    )
    samples.add_comparison(result, "compared.png", titles, drawn, scores, caption)
    if evaluator is not None:
        scored = {name: (str(trained[name].config.epochs), s) for name, s in scores.items()}
        evaluator.add_table(result, "The recipe as often written", scored)


def plot_curves(training: Training, undecided: float) -> Figure:
    """Losses on the left, D(x) and D(G(z)) on the right, smoothed to about 150 points."""
    window = max(len(training.curve("d_loss")) // 150, 1)
    figure, axes = figures.new_figure(9, 3.2, columns=2)
    panels = {
        "loss": {"discriminator": "d_loss", "generator": "g_loss"},
        "mean output of D": {"D(x), real": "d_real", "D(G(z)), generated": "d_fake"},
    }
    for axis, (ylabel, names) in zip(axes[0], panels.items(), strict=True):
        lines = {label: training.smoothed(name, window)[1] for label, name in names.items()}
        epochs, _ = training.smoothed("d_loss", window)
        figures.plot_lines(axis, epochs, lines, "epoch", ylabel, markers=False)
    style = {"color": "#888888", "linewidth": 1, "linestyle": "--"}
    axes[0, 1].axhline(undecided, label=f"a D that cannot tell: {undecided:g}", **style)
    axes[0, 1].set_ylim(0, 1)
    axes[0, 1].legend()
    return figure


def lessons(result: Result) -> list[str]:
    """What the figures teach, as far as they were measured."""
    sentences = []
    if quality := result.measured("Fréchet distance", "coverage", "rarest class"):
        distance, coverage, rarest = quality
        sentences.append(
            f"The samples lie at a Fréchet distance of {distance:.0f} from the data and cover "
            f"{coverage:.0%} of it; {rarest:.1%} of them are of the rarest class."
        )
    if balance := result.measured("D(x), last epoch", "D(G(z)), last epoch"):
        real, fake = balance
        sentences.append(
            f"In the last epoch D(x) was {real:.2f} and D(G(z)) {fake:.2f}. They show the balance of the "
            "two networks, not how good the images are."
        )
    return sentences


def checkpoint_path(config: Config) -> Path:
    return config.checkpoint or config.output_dir / MODELS / "mlp_gan.pth"


def run(config: Config) -> Result:
    """Train (or load), sample, measure; what the driver and the tests call."""
    device = prepare(config.seed, config.device)
    config = config.if_quick(epochs=2, compare_epochs=1, num_samples=500, log_every=50)
    if config.sample_only:
        G = load_generator(checkpoint_path(config), device)
        export_generator(config.export, G)
        images = sample(G, config.num_samples, config.seed)
        return samples.sampled_only(SCRIPT, TITLE, PICTURES, config, device, images)
    data = load_for(config, device)
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    samples.show_training_images(result, data)
    evaluator = samples.evaluator_for(config, data, samples.TRACKED)
    G, D = build(config, data.shape, device)
    after_epoch = observer(config, result, evaluator)
    training = train(config, data, G, D, checkpoint_path(config), after_epoch=after_epoch)
    compared = train_compared(config, data) if config.compare else None
    images = evaluate(config, data, training, evaluator, result, compared)
    samples.write_samples(config.samples_file, images)
    export_generator(config.export, sampling_network(training))
    return result.save(*lessons(result))


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
