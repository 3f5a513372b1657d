"""Variational autoencoders (Kingma and Welling 2014) with 2, 4 and 16 latent numbers.

The encoder turns an image into a Gaussian over a few latent numbers. The decoder turns latents back into
an image. The loss has two parts: the error of the decoded image (reconstruction), and the distance of the
Gaussian from N(0, I) (KL). Because of the second part, latents drawn from N(0, I) decode into new images.

    python -m studies.vae                          # three sizes, the embedded digits
    python -m studies.vae --dataset mnist          # a few minutes on two CPU cores
    python -m studies.vae --latent-sizes 2 32
    python -m studies.vae --sample-only --samples-file samples.npz    # of the largest of --latent-sizes

What to look at: `plane.png`, what two numbers can hold, and what they mix up; `elbo.png`, where more
latents give a better reconstruction for more KL; `samples.png`, which are blurred, because the loss is
lowest at the mean of all images that a latent could stand for.

The ELBO is in nats per image: the binary cross-entropy summed over pixels, with the grey value as
probability, plus the KL divergence. Such a cross-entropy is the mean over black-and-white pixels that are
white with that probability. So the negative ELBO is an upper bound on the mean −log p of images binarised
in this way. The importance-weighted bound (Burda et al. 2016) is tighter. Of grey images the
cross-entropy cannot reach 0: its minimum, the entropy of the grey values, is printed beside it.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from imagelab.data.datasets import EMBEDDED, Dataset, load_for, to_uint8, unit
from imagelab.data.embedded import varied_as_trained_on
from imagelab.data.quality import mean_ssim
from imagelab.report import figures, samples
from imagelab.report.results import Result, start_result
from imagelab.setup.runtime import autocast, generator, prepare
from imagelab.setup.settings import Count, ExportSettings, Rate, SamplingSettings
from imagelab.techniques.export import export_network
from imagelab.training.checkpoints import checkpoint_errors, load_checkpoint, load_weights
from imagelab.training.loop import Observer, Training, can_resume, no_observer, one_cycle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "vae"
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"

# --- the network and its loss ---------------------------------------------------------------------


class VAE(nn.Module):
    """Image → 512 → mean and log-variance of the latents; latents → 512 → image."""

    def __init__(self, shape: tuple[int, int, int], latent_size: int, hidden: int = 512) -> None:
        super().__init__()
        self.shape, self.latent_size = shape, latent_size
        pixels = math.prod(shape)
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent_size)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_size, hidden), nn.ReLU(), nn.Linear(hidden, pixels)
        )

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B, C, H, W) in [0, 1] to mean and log-variance (B, latent_size) of q(z|x)."""
        return self.encoder(2 * x - 1).float().chunk(2, dim=1)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Latents (B, latent_size) to the logits (B, C, H, W) of the pixels."""
        return self.decoder(z).reshape(-1, *self.shape)

    def forward(self, x: torch.Tensor, eps: torch.Tensor):
        """Logits, mean and log-variance; z = μ + σ·ε, ε ~ N(0, I), lets gradients through to μ, σ."""
        mean, log_var = self.encode(x)
        return self.decode(mean + (log_var / 2).exp() * eps), mean, log_var


def elbo_parts(
    logits: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, log_var: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reconstruction and KL in nats per image, each (B,); their sum is the negative ELBO.

    −E log p(x|z), x (B, C, H, W) in [0, 1] as probabilities, and KL(N(μ, σ²) ‖ N(0, 1)), in closed
    form (Kingma and Welling 2014, appendix B).
    """
    reconstruction = F.binary_cross_entropy_with_logits(logits.float(), x, reduction="none")
    kl = -0.5 * (1 + log_var - mean.square() - log_var.exp())
    return reconstruction.flatten(1).sum(dim=1), kl.sum(dim=1)


def importance_weighted_bound(
    log_likelihood: torch.Tensor, z: torch.Tensor, mean: torch.Tensor, log_var: torch.Tensor
) -> torch.Tensor:
    """log 1/K Σ_k p(x|z_k)·p(z_k)/q(z_k|x), (B,): in the mean at most log p(x) (Burda et al. 2016).

    `log_likelihood` (B, K) is log p(x|z_k) of `z` (B, K, latent_size), drawn from q(z|x) = N(μ, σ²); p(z)
    is N(0, I). With K = 1 it is the ELBO. In the mean it rises with K, towards log p(x).
    """
    squares = (z - mean[:, None]).square() / log_var.exp()[:, None]
    log_prior_over_q = 0.5 * (log_var[:, None] + squares - z.square()).sum(dim=2)  # (B, K)
    return (log_likelihood + log_prior_over_q).logsumexp(dim=1) - math.log(z.shape[1])


def least_reconstruction(x: torch.Tensor) -> torch.Tensor:
    """The entropy of the grey values of images (N, C, H, W) in [0, 1]: nats, (N,).

    The binary cross-entropy −x·log p − (1 − x)·log(1 − p) is least at p = x, where it is this.
    """
    return (torch.special.entr(x) + torch.special.entr(1 - x)).flatten(1).sum(dim=1)


# --- settings and training ------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(ExportSettings, SamplingSettings):
    """Settings of the variational autoencoders."""

    latent_sizes: tuple[Count, ...] = (2, 4, 16)
    """Numbers of latents; one model is trained for each."""
    epochs: Count | None = None
    """Passes over the training images; default: 10, on the embedded digits 2."""
    batch_size: Count = 128
    """Images per step."""
    lr: Rate = 2e-3
    """Peak of Adam's learning rate: it rises over the first quarter of the steps, then falls to 0."""
    hidden: Count = 512
    """Units of the encoder's and of the decoder's hidden layer."""
    importance_samples: Count = 100
    """K of the importance-weighted bound on held-out images: the larger, the tighter."""


def train(
    config: Config, latent_size: int, data: Dataset, path: Path, after_epoch: Observer = no_observer
) -> Training[VAE]:
    """Train the model of one latent size for `config.epochs`, or go on with --resume."""
    device = data.images.device
    torch.manual_seed(config.seed)
    model = VAE(data.shape, latent_size, config.hidden).to(device)
    adam = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    training = Training(
        path,
        SCRIPT,
        config,
        data,
        networks={"vae": model},
        optimizers={"adam": adam},
        may_change_on_resume=("latent_sizes", "importance_samples"),
        label=f"VAE, {latent_size} latents",
    )
    if config.resume:
        training.load()
    with training:
        for epoch in training.epochs():
            for batch in training.batches():
                x = unit(data.images[batch])  # (B, C, H, W) in [0, 1]
                eps = torch.randn(len(x), latent_size, generator=training.rng, device=device)
                with autocast(device):
                    logits, mean, log_var = model(x, eps)
                reconstruction, kl = (part.mean() for part in elbo_parts(logits, x, mean, log_var))
                loss = reconstruction + kl
                adam.param_groups[0]["lr"] = config.lr * one_cycle(training.progress)
                adam.zero_grad()
                loss.backward()
                adam.step()
                training.log(loss=loss)
            after_epoch(training, epoch)
    return training


# --- sampling, held-out images, and paths through the latent space --------------------------------


@torch.no_grad()
def generate(model: VAE, z: torch.Tensor) -> torch.Tensor:
    """Latents (N, latent_size) to the means of the pixels, (N, C, H, W) uint8."""
    return torch.cat([to_uint8(2 * model.decode(part).sigmoid() - 1) for part in z.split(1000)])


def sample(model: VAE, n: int, seed: int) -> torch.Tensor:
    """`n` images (n, C, H, W) uint8 from latents ~ N(0, I)."""
    z = torch.randn(n, model.latent_size, generator=generator(seed, "samples"))
    return generate(model, z.to(next(model.parameters()).device))


@torch.no_grad()
def elbo_of(
    model: VAE, images: torch.Tensor, rng: torch.Generator
) -> tuple[float, float, torch.Tensor]:
    """Images (N, C, H, W) uint8 through the model: both parts of the loss, and x̂ (N, C, H, W).

    The parts are means over the images, with one draw of z each; x̂ in [0, 1] is decoded from z = μ.
    """
    parts, x_hat = [], []
    for x in (unit(part) for part in images.split(1000)):
        eps = torch.randn(len(x), model.latent_size, generator=rng).to(x.device)
        logits, mean, log_var = model(x, eps)
        parts.append(torch.stack(elbo_parts(logits, x, mean, log_var)))  # (2, 1000)
        x_hat.append(model.decode(mean).sigmoid())
    reconstruction, kl = torch.cat(parts, dim=1).mean(dim=1).tolist()
    return reconstruction, kl, torch.cat(x_hat)


@torch.no_grad()
def log_likelihood_bound(
    model: VAE, images: torch.Tensor, samples: int, rng: torch.Generator
) -> torch.Tensor:
    """The importance-weighted bound with K = `samples` for images (N, C, H, W) uint8: nats, (N,)."""
    bounds = []
    for x in (unit(part) for part in images.split(max(20_000 // samples, 1))):
        mean, log_var = model.encode(x)
        eps = torch.randn(len(x), samples, model.latent_size, generator=rng).to(x.device)
        z = mean[:, None] + (log_var / 2).exp()[:, None] * eps  # (B, K, latent_size)
        logits = model.decode(z.flatten(0, 1)).reshape(len(x), samples, -1)
        target = x.reshape(len(x), 1, -1).expand_as(logits)
        error = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        bounds.append(importance_weighted_bound(-error.sum(dim=2), z, mean, log_var))
    return torch.cat(bounds)


@torch.no_grad()
def encoded(model: VAE, images: torch.Tensor) -> torch.Tensor:
    """Images (N, C, H, W) uint8 to the means (N, latent_size) of their latents."""
    return model.encode(unit(images))[0]


def latent_grid(side: int) -> torch.Tensor:
    """`side` by `side` latents (side², 2), from the upper left to the lower right of the plane.

    The axes are quantiles of N(0, 1), so that each latent stands for equal probability (Kingma and
    Welling 2014, figure 4).
    """
    line = torch.special.ndtri((torch.arange(side) + 0.5) / side)
    return torch.stack([line.repeat(side), line.flip(0).repeat_interleave(side)], dim=1)


def interpolate(model: VAE, pairs: torch.Tensor, steps: int) -> torch.Tensor:
    """From image 0 to 1, 2 to 3, … of `pairs` (2K, C, H, W), on straight lines between their latents.

    Returns (K·steps, C, H, W) uint8.
    """
    means = encoded(model, pairs)
    part = torch.linspace(0, 1, steps, device=means.device)[:, None]
    lines = [a + part * (b - a) for a, b in zip(means[::2], means[1::2], strict=True)]
    return torch.cat([generate(model, z) for z in lines])


def checkpoint_path(config: Config, latent_size: int) -> Path:
    return config.output_dir / MODELS / f"latent_{latent_size}.pth"


def load_model(config: Config, device: torch.device) -> VAE:
    """The model of --checkpoint, or the latest one of the largest latent size under --output-dir."""
    path = config.checkpoint or checkpoint_path(config, max(config.latent_sizes))
    saved = load_checkpoint(path, SCRIPT, device)
    with checkpoint_errors(path):
        weights = saved["model"]["vae"]
        latent_size = weights["decoder.0.weight"].shape[1]
        shape, hidden = tuple(saved["dataset"]["shape"]), saved["config"]["hidden"]
        model = VAE(shape, latent_size, hidden).to(device)
    load_weights(model, weights, path)
    return model.eval()


class Decoder(nn.Module):
    """Latents (B, latent_size) ~ N(0, I) to the means (B, C, H, W) of the pixels in [0, 1]."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.decoder, self.shape = model.decoder, model.shape

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.decoder(z).sigmoid().reshape(-1, *self.shape)


def export_decoder(path: Path | str | None, model: VAE) -> None:
    """The decoder alone, as a file."""
    export_network(path, Decoder(model), {"latents": torch.randn(2, model.latent_size)}, "images")


# === the lesson ends here; below: measured, plotted, reported =====================================

TITLE = "VAE: images as points in a small space"
SUMMARY = (
    "An encoder compresses each image into 2, 4 or 16 numbers, and a decoder draws it again from them. "
    "The numbers are kept near a standard normal distribution. So random ones decode, but are blurred."
)


def held_out(model: VAE, images: torch.Tensor, config: Config) -> dict[str, float]:
    """Both bounds, the parts of the ELBO (nats per image), MSE and SSIM, of uint8 (N, C, H, W)."""
    reconstruction, kl, x_hat = elbo_of(model, images, generator(config.seed, "held-out latents"))
    rng = generator(config.seed, "importance samples")
    bound = log_likelihood_bound(model, images, config.importance_samples, rng)
    return {
        "negative ELBO": reconstruction + kl,
        "reconstruction": reconstruction,
        "KL": kl,
        "importance-weighted bound": -bound.mean().item(),
        "MSE": F.mse_loss(x_hat, unit(images)).item(),
        "SSIM": mean_ssim(x_hat, unit(images)),
    }


def plot_reconstructions(models: dict[str, VAE], images: torch.Tensor) -> Figure:
    """Held-out images (10, C, H, W) uint8 above what each model makes of them."""
    rows = {name: generate(model, encoded(model, images)) for name, model in models.items()}
    return figures.plot_rows({"original": images} | rows)


def plot_interpolation(model: VAE, data: Dataset, pairs: list[int], steps: int = 10) -> Figure:
    """Pairs of held-out images, and between them what is decoded from the line between their latents."""
    lines = interpolate(model, data.test_images[pairs], steps).split(steps)
    rows = {}
    for a, b, line in zip(pairs[::2], pairs[1::2], lines, strict=True):
        first, last = (data.classes[label] for label in data.test_labels[[a, b]].tolist())
        ends = data.test_images[[a, b]].split(1)
        rows[f"{first} to {last}"] = torch.cat([ends[0], line, ends[1]])
    shares = [f"{k / (steps - 1):.0%}" for k in range(steps)]
    return figures.plot_rows(rows, ["original", *shares, "original"])


def plot_plane(model: VAE, data: Dataset, side: int = 18) -> Figure:
    """What the decoder draws over the plane, and where the held-out images lie in it."""
    drawn = generate(model, latent_grid(side).to(next(model.parameters()).device))
    means = encoded(model, data.test_images[:4000]).cpu()
    figure, axes = figures.new_figure(11, 5.4, columns=2)
    left, right = axes[0]
    figures.show_plane(left, figures.grid(drawn, side, 1, 0), latent_grid(side)[:side, 0])
    figures.plot_classes(right, means, data.test_labels[:4000].cpu(), data.classes)
    frame = latent_grid(2).sign() * latent_grid(side).max()  # its corners
    right.plot(*frame[[0, 1, 3, 2, 0]].T, "k--", linewidth=1, label="drawn at the left")
    right.legend(loc="upper left")
    for axis, title in ((left, "decoded, equal probability"), (right, "means of held-out images")):
        axis.set(title=title, xlabel="z₁", ylabel="z₂")
    return figure


def plot_tsne(models: dict[str, VAE], data: Dataset, config: Config) -> Figure:
    """The means of a thousand held-out images, laid out in the plane by t-SNE."""
    from sklearn.manifold import TSNE

    n = min(300 if config.quick else 1000, len(data.test_images))
    figure, axes = figures.new_figure(5.4 * len(models), 5.2, columns=len(models))
    for axis, (name, model) in zip(axes[0], models.items(), strict=True):
        means = encoded(model, data.test_images[:n]).cpu()
        tsne = TSNE(perplexity=min(30, n / 4), init="pca", random_state=config.seed)
        if (means == means[0]).all():  # collapsed: nothing to lay out, and t-SNE would crash
            points = means[:, :2]
        else:
            points = torch.from_numpy(tsne.fit_transform(means.numpy()))
        figures.plot_classes(axis, points, data.test_labels[:n].cpu(), data.classes)
        axis.set(title=f"{name} (t-SNE)", xticks=[], yticks=[])
    return figure


def plot_elbo(trainings: dict[str, Training[VAE]], rows: dict[str, dict[str, float]]) -> Figure:
    """The loss while training, and its two parts on held-out images."""
    figure, axes = figures.new_figure(9.5, 3.4, columns=2)
    lines = {name: (training, "loss") for name, training in trainings.items()}
    samples.plot_logged(axes[0, 0], lines, "negative ELBO (nats per image)", points=100)
    axes[0, 0].set_ylim(0.8 * min(row["reconstruction"] for row in rows.values()))
    axes[0, 0].legend()
    names, bottom = list(lines), torch.zeros(len(rows))
    for k, part in enumerate(("reconstruction", "KL")):
        values = torch.tensor([row[part] for row in rows.values()])
        bars = axes[0, 1].bar(names, values, 0.6, bottom, label=part, color=figures.PALETTE[3 + k])
        # The KL part may be too thin for its number, which then stands above it.
        form, place = ("KL {:.1f}", "edge") if part == "KL" else ("{:.1f}", "center")
        axes[0, 1].bar_label(bars, [form.format(v) for v in values.tolist()], label_type=place)
        bottom += values
    axes[0, 1].set(ylabel="nats per held-out image", ylim=(0, 1.25 * float(bottom.max())))
    axes[0, 1].legend(loc="upper right", ncols=2)
    return figure


def evaluate(
    config: Config, data: Dataset, trainings: dict[str, Training[VAE]], result: Result
) -> torch.Tensor:
    """Measure, sample and score each model, draw the figures; returns the largest one's samples."""
    models = {name: training.model for name, training in trainings.items()}
    largest = max(models, key=lambda name: models[name].latent_size)
    n, count = len(data.test_images), samples.samples_to_draw(config, data)
    with samples.timed_samples(result, count * len(models)):
        drawn = {name: sample(model, count, config.seed) for name, model in models.items()}
    evaluator = samples.evaluator_for(config, data, config.num_samples)
    samples.report_samples(result, drawn[largest], evaluator, data, trainings[largest])
    rows, scores = {}, {}
    for name, model in models.items():
        rows[name] = held_out(model, data.test_images, config)
        for bound in ("negative ELBO", "importance-weighted bound"):
            result.add_metric(f"{name}: {bound}", rows[name][bound], n, unit="nats", better="lower")
        result.add_metric(f"{name}: SSIM", rows[name]["SSIM"], n, better="higher")
        if evaluator is not None:
            scores[name] = own = evaluator.scores(drawn[name])
            rows[name] |= {"Fréchet distance": own.frechet, "coverage": own.coverage}
    grey = least_reconstruction(unit(data.test_images)).mean()
    result.add_metric("entropy of the grey values, the least reconstruction", grey, n, unit="nats")
    caption = f"Held-out images (n = {n:,}; both bounds in nats per image, K = "
    caption += f"{config.importance_samples}), and samples"
    caption += f" (n = {evaluator.n:,})" if evaluator else ""
    table = [[name, *row.values()] for name, row in rows.items()]
    result.add_table(caption, ["model", *rows[largest]], table)
    caption = f"Latents drawn from N(0, I), decoded; samples.png shows more of the {largest}."
    result.add_figure("samples_by_size.png", samples.plot_comparison(drawn, scores), caption)
    caption = "Left, the loss on training images; right, its parts on held-out images."
    if data.name == EMBEDDED:  # else the held-out ones would seem to be the easier ones
        alike, rng = varied_as_trained_on(data, data.test_images), generator(config.seed, "alike")
        nats = [f"{sum(elbo_of(model, alike, rng)[:2]):.0f}" for model in models.values()]
        caption += f" Varied as those to train on, these would have {', '.join(nats)} nats in all."
    result.add_figure("elbo.png", plot_elbo(trainings, rows), caption)
    add_latent_figures(config, data, models, result)
    return drawn[largest]


def add_latent_figures(config, data: Dataset, models: dict[str, VAE], result: Result) -> None:
    """Pictures of what the latents hold: reconstructions, the plane, t-SNE, interpolation."""
    first = [int((data.test_labels == k).nonzero()[0]) for k in data.test_labels.unique()[:10]]
    figure = plot_reconstructions(models, data.test_images[first])
    caption = "The same held-out images, reconstructed from few latents and from more."
    result.add_figure("reconstructions.png", figure, caption)
    for model in (model for model in models.values() if model.latent_size == 2):
        caption = (
            "Left, what is decoded from two numbers. Right, where held-out images lie: classes "
        )
        caption += "outside of the frame, and mixed ones, may be missing at the left."
        result.add_figure("plane.png", plot_plane(model, data), caption)
    larger = {name: model for name, model in models.items() if model.latent_size > 2}
    if larger and len(data.test_images) >= 50:
        caption = "Latents of held-out images by t-SNE, coloured by class; training saw no labels. "
        caption += "Distances between groups mean nothing."
        result.add_figure("tsne.png", plot_tsne(larger, data, config), caption)
    if pairs := first[: len(first) // 2 * 2]:
        largest = max(models.values(), key=lambda model: model.latent_size)
        caption = f"From one held-out image to another, on a line in {largest.latent_size} latents."
        result.add_figure("interpolation.png", plot_interpolation(largest, data, pairs), caption)


def lessons(result: Result) -> list[str]:
    """What the figures teach, as far as they were measured."""
    sentences = []
    names = [f"{size} latents: {name}" for name in ("SSIM", "negative ELBO") for size in (2, 16)]
    if measured := result.measured(*names):
        ssim_of_2, ssim_of_16, nats_of_2, nats_of_16 = measured
        sentences.append(
            f"Two latents reach an SSIM of {ssim_of_2:.2f} at {nats_of_2:.0f} nats, sixteen an SSIM of "
            f"{ssim_of_16:.2f} at {nats_of_16:.0f}."
        )
    if sure := result.measured("surely read"):
        sentences.append(f"Of the decoded random latents, a classifier is sure of {sure[0]:.0%}.")
    return [*sentences, "Reconstruction and KL are both in nats: their sum is the negative ELBO."]


def run(config: Config) -> Result:
    """Train a model per latent size, measure and draw."""
    device = prepare(config.seed, config.device)
    config = config.if_quick(epochs=2, num_samples=500, importance_samples=10)
    if config.sample_only:
        model = load_model(config, device)
        export_decoder(config.export, model)
        images = sample(model, config.num_samples, config.seed)
        return samples.sampled_only(SCRIPT, TITLE, PICTURES, config, device, images)
    data = load_for(config, device)
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    samples.show_training_images(result, data)
    epochs, trainings = config.epochs or (2 if data.name == EMBEDDED else 10), {}
    for size in config.latent_sizes:
        path = checkpoint_path(config, size)
        resume = can_resume(config, path, first=size == config.latent_sizes[0])
        own = replace(config, epochs=epochs, resume=resume)
        trainings[f"{size} latents"] = train(own, size, data, path)
    images = evaluate(config, data, trainings, result)
    samples.write_samples(config.samples_file, images)
    export_decoder(config.export, trainings[f"{max(config.latent_sizes)} latents"].model)
    return result.save(*lessons(result))


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
