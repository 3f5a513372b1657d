"""Variational autoencoders (Kingma and Welling 2014) with 2, 4 and 16 latent numbers.

The encoder turns an image into a Gaussian over a few latent numbers, the decoder turns these back into
an image; the loss asks for faithful images (reconstruction) and for Gaussians near N(0, I) (KL), so
that latents drawn from N(0, I) decode into new images.

    python -m studies.vae                          # three sizes, the embedded digits
    python -m studies.vae --dataset mnist          # a few minutes on two CPU cores
    python -m studies.vae --latent-sizes 2 32
    python -m studies.vae --sample-only --samples-file samples.npz    # of the largest of --latent-sizes

What to look at: `plane.png`, where two numbers hold all the digits side by side; `elbo.png`, where more
latents buy a better reconstruction for more KL; `samples.png`, which are soft, since the mean over
what an image could have been is what minimises the loss.

Convention of the ELBO: nats per image, the sum over pixels of the binary cross-entropy with the grey
value as probability, plus the KL divergence. Grey images cannot reach 0: their own entropy is a part
of it, stated beside the figure.
"""

from __future__ import annotations

from imagelab.setup.command import command_line

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from imagelab.data.datasets import EMBEDDED, Dataset, load_for, to_uint8, unit
from imagelab.data.pictures import write_png
from imagelab.data.quality import mean_ssim
from imagelab.report import figures
from imagelab.report.results import Result, start_result
from imagelab.report.samples import (
    clocked,
    draw_comparison,
    draw_only,
    judge_for,
    report_samples,
    samples_to_draw,
    write_samples,
)
from imagelab.setup.runtime import autocast, generator, prepare
from imagelab.setup.settings import Count, ExportSettings, Rate, SamplingSettings
from imagelab.techniques.export import export_network
from imagelab.training.checkpoints import as_described, load_checkpoint, load_weights
from imagelab.training.loop import Training, goes_on, one_cycle

SCRIPT = "vae"
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"
TITLE = "VAE: images as points in a small space"
SUMMARY = (
    "An encoder squeezes each image into 2, 4 or 16 numbers and a decoder draws it again. Because the "
    "numbers are kept near a standard normal distribution, fresh ones decode into new images."
)
LESSONS = (
    "Two numbers keep an SSIM of {2 latents: SSIM|.2f} at {2 latents: negative ELBO|.0f} nats, "
    "sixteen {16 latents: SSIM|.2f} at {16 latents: negative ELBO|.0f}.",
    "What a number saves in reconstruction and what it costs as divergence are both nats, and the "
    "negative ELBO is their sum.",
)


@dataclass(frozen=True)
class Config(ExportSettings, SamplingSettings):
    """Settings of the variational autoencoders."""

    latent_sizes: tuple[Count, ...] = (2, 4, 16)
    """How many latent numbers; a model is trained for each."""
    epochs: Count | None = None
    """Passes over the training images; default: 10, on the embedded digits 2."""
    batch_size: Count = 128
    """Images per step."""
    lr: Rate = 2e-3
    """Peak of Adam's learning rate: it climbs over the first quarter of the steps, then falls to 0."""
    hidden: Count = 512
    """Units of the encoder's and of the decoder's hidden layer."""


# --- the network ----------------------------------------------------------------------------------


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


# --- training and sampling ------------------------------------------------------------------------


def train(config: Config, latent_size: int, data: Dataset, path: Path) -> Training:
    """Train the model of one latent size, or go on with --resume."""
    device = data.images.device
    torch.manual_seed(config.seed)
    model = VAE(data.shape, latent_size, config.hidden).to(device)
    adam = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    config = replace(
        config,
        epochs=config.epochs or (2 if data.name == EMBEDDED else 10),
        resume=goes_on(config, path, first=latent_size == config.latent_sizes[0]),
    )
    with Training(path, SCRIPT, config, data, {"vae": model}, {"adam": adam},
                  free=("latent_sizes",), label=f"VAE, {latent_size} latents") as run:  # fmt: skip
        for _ in run.epochs():
            for batch in run.batches():
                x = unit(data.images[batch])
                eps = torch.randn(len(x), latent_size, generator=run.rng, device=device)
                with autocast(device):
                    logits, mean, log_var = model(x, eps)
                reconstruction, kl = (part.mean() for part in elbo_parts(logits, x, mean, log_var))
                adam.param_groups[0]["lr"] = config.lr * one_cycle(run.progress)
                adam.zero_grad()
                (reconstruction + kl).backward()
                adam.step()
                run.log(loss=reconstruction + kl)
    return run


@torch.no_grad()
def draw(model: VAE, z: torch.Tensor) -> torch.Tensor:
    """Latents (N, latent_size) to the means of the pixels, (N, C, H, W) uint8."""
    return torch.cat([to_uint8(2 * model.decode(part).sigmoid() - 1) for part in z.split(1000)])


def sample(model: VAE, n: int, seed: int) -> torch.Tensor:
    """`n` images (n, C, H, W) uint8 from latents ~ N(0, I)."""
    z = torch.randn(n, model.latent_size, generator=generator(seed, "samples"))
    return draw(model, z.to(next(model.parameters()).device))


def load_model(config: Config, device: torch.device) -> VAE:
    """The model of the largest latent size, from its checkpoint under --output-dir."""
    path = checkpoint_path(config, max(config.latent_sizes))
    saved = load_checkpoint(path, SCRIPT, device)
    with as_described(path):
        shape, hidden = tuple(saved["dataset"]["shape"]), saved["config"]["hidden"]
        model = VAE(shape, max(config.latent_sizes), hidden).to(device)
    load_weights(model, saved["model"].get("vae"), path)
    return model.eval()


class Decoder(nn.Module):
    """Latents (B, latent_size) ~ N(0, I) to the means (B, C, H, W) of the pixels in [0, 1]."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.decoder, self.shape = model.decoder, model.shape

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.decoder(z).sigmoid().reshape(-1, *self.shape)


def export_decoder(path: Path | str | None, model: VAE) -> None:
    """The decoder as a file: what draws, without what encodes."""
    export_network(path, Decoder(model), {"latents": torch.randn(2, model.latent_size)}, "images")


# --- measuring ------------------------------------------------------------------------------------


@torch.no_grad()
def held_out(model: VAE, images: torch.Tensor, seed: int) -> dict[str, float]:
    """ELBO and its parts (nats per image, one draw of z each), MSE and SSIM of reconstructions.

    `images` (N, C, H, W) uint8; the reconstruction of MSE and SSIM is the one of z = μ.
    """
    rng = generator(seed, "held-out latents")
    parts, x_hat = [], []
    for x in (unit(part) for part in images.split(1000)):
        eps = torch.randn(len(x), model.latent_size, generator=rng).to(x.device)
        logits, mean, log_var = model(x, eps)
        parts.append(torch.stack(elbo_parts(logits, x, mean, log_var)))
        x_hat.append(model.decode(mean).sigmoid())
    reconstruction, kl = torch.cat(parts, dim=1).mean(dim=1).tolist()
    x, x_hat = unit(images), torch.cat(x_hat)
    return {
        "negative ELBO": reconstruction + kl,
        "reconstruction": reconstruction,
        "KL": kl,
        "MSE": F.mse_loss(x_hat, x).item(),
        "SSIM": mean_ssim(x_hat, x),
    }


# --- figures --------------------------------------------------------------------------------------


def draw_reconstructions(path: Path, models: dict[int, VAE], images: torch.Tensor) -> None:
    """Held-out images (10, C, H, W) uint8 above what each model makes of them."""
    with torch.no_grad():
        means = {size: model.encode(unit(images))[0] for size, model in models.items()}
    rows = {"original": images}
    rows |= {f"{size} latents": draw(model, means[size]) for size, model in models.items()}
    figures.named_rows(path, rows)


def draw_plane(path: Path, model: VAE, data: Dataset) -> None:
    """What the decoder draws over the plane, and where the held-out images lie in it.

    The plane's axes are quantiles of N(0, 1), so that every picture stands for equal probability.
    """
    count = 18
    line = torch.special.ndtri((torch.arange(count) + 0.5) / count)
    z = torch.stack([line.repeat(count), line.flip(0).repeat_interleave(count)], dim=1)
    drawn = draw(model, z.to(next(model.parameters()).device))
    figure, axes = figures.new_figure(11, 5.4, columns=2)
    figures.show_image(axes[0, 0], figures.grid(drawn, count, 1, 0), "decoded, equal probability")
    with torch.no_grad():
        means = model.encode(unit(data.test_images[:4000]))[0].cpu()
    figures.draw_classes(axes[0, 1], means, data.test_labels[:4000].cpu(), data.classes)
    axes[0, 1].set(title="means of held-out images", xlabel="z₁", ylabel="z₂")
    figures.save_figure(figure, path)


def draw_tsne(path: Path, models: dict[int, VAE], data: Dataset, config: Config) -> None:
    """The means of a thousand held-out images, laid out in the plane by t-SNE."""
    from sklearn.manifold import TSNE

    n = min(300 if config.quick else 1000, len(data.test_images))
    figure, axes = figures.new_figure(5.4 * len(models), 5.2, columns=len(models))
    for axis, (size, model) in zip(axes[0], models.items(), strict=True):
        with torch.no_grad():
            means = model.encode(unit(data.test_images[:n]))[0].cpu()
        tsne = TSNE(perplexity=min(30, n / 4), init="pca", random_state=config.seed)
        if (means == means[0]).all():  # collapsed: nothing to lay out, and t-SNE would crash
            points = means[:, :2]
        else:
            points = torch.from_numpy(tsne.fit_transform(means.numpy()))
        figures.draw_classes(axis, points, data.test_labels[:n].cpu(), data.classes)
        axis.set(title=f"{size} latents (t-SNE)", xticks=[], yticks=[])
    figures.save_figure(figure, path)


def draw_elbo(path: Path, runs: dict[int, Training], rows: dict[int, dict[str, float]]) -> None:
    """The loss while training, and its two parts on held-out images."""
    figure, axes = figures.new_figure(9.5, 3.4, columns=2)
    for k, (size, run) in enumerate(runs.items()):
        epochs, loss = run.smoothed("loss", max(run.steps_done // 100, 1))
        axes[0, 0].plot(epochs, loss, label=f"{size} latents",
                        color=figures.PALETTE[k % len(figures.PALETTE)])  # fmt: skip
    least = min(row["reconstruction"] for row in rows.values())
    axes[0, 0].set(
        xlabel="epoch", ylabel="negative ELBO (nats per image)", ylim=(0.8 * least, None)
    )
    axes[0, 0].legend()
    names = [f"{size} latents" for size in rows]
    bottom = torch.zeros(len(rows))
    for k, part in enumerate(("reconstruction", "KL")):
        values = torch.tensor([row[part] for row in rows.values()])
        bars = axes[0, 1].bar(names, values, 0.6, bottom, label=part, color=figures.PALETTE[3 + k])
        axes[0, 1].bar_label(bars, [f"{value:.1f}" for value in values], label_type="center")
        bottom += values
    axes[0, 1].set(ylabel="nats per held-out image", ylim=(0, 1.25 * float(bottom.max())))
    axes[0, 1].legend(loc="upper right", ncols=2)
    figures.save_figure(figure, path)


def draw_interpolation(path: Path, model: VAE, images: torch.Tensor) -> None:
    """From one image to the next along straight lines between their means, a row per pair."""
    with torch.no_grad():
        means = model.encode(unit(images))[0]
    way = torch.linspace(0, 1, 12, device=means.device)[:, None]
    rows = [draw(model, a + way * (b - a)) for a, b in zip(means[::2], means[1::2], strict=True)]
    write_png(path, figures.grid(torch.cat(rows), columns=12))


# --- the run --------------------------------------------------------------------------------------


def checkpoint_path(config: Config, latent_size: int) -> Path:
    return config.output_dir / MODELS / f"latent_{latent_size}.pth"


def run(config: Config) -> Result:
    """Train a model per latent size, measure and draw."""
    device = prepare(config.seed, config.device)
    config = config.quickened(epochs=2, num_samples=500)
    if config.sample_only:
        model = load_model(config, device)
        export_decoder(config.export, model)
        samples = sample(model, config.num_samples, config.seed)
        return draw_only(SCRIPT, TITLE, PICTURES, config, device, samples)
    data = load_for(config, device)
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    models, runs, rows = {}, {}, {}
    for size in config.latent_sizes:
        runs[size] = train(config, size, data, checkpoint_path(config, size))
        models[size] = runs[size].networks["vae"]
        rows[size] = held_out(models[size], data.test_images, config.seed)
    n = samples_to_draw(config, data)
    with clocked(result, n * len(models)):
        samples = {size: sample(model, n, config.seed) for size, model in models.items()}
    evaluate(config, data, models, runs, rows, samples, result)
    write_samples(config.samples_file, samples[max(samples)])
    export_decoder(config.export, models[max(models)])
    return result.save(*LESSONS)


def evaluate(config: Config, data: Dataset, models, runs, rows, samples, result: Result) -> None:
    """Score and draw what `run` gathered by latent size."""
    largest, n = max(models), len(data.test_images)
    judge = judge_for(config, data, config.num_samples)
    score = report_samples(result, samples[largest], judge, data, runs[largest])
    scores = {
        size: score if size == largest else judge.scores(images)
        for size, images in samples.items()
        if judge
    }
    columns = list(next(iter(rows.values())))
    result.add_table(
        f"Held-out images (n = {n:,}; ELBO in nats per image), and samples"
        + (f" (n = {judge.n:,})" if judge else ""),
        ["latents", *columns, *(["Fréchet distance", "coverage"] if judge else [])],
        [
            [size, *row.values(), *([scores[size].frechet, scores[size].coverage] if judge else [])]
            for size, row in rows.items()
        ],
    )
    for name, better in (("negative ELBO", "lower"), ("SSIM", "higher")):
        for size, row in rows.items():
            result.add_metric(f"{size} latents: {name}", row[name], n, better=better)
    x = unit(data.test_images)
    grey = (torch.special.entr(x) + torch.special.entr(1 - x)).flatten(1).sum(dim=1).mean()
    result.add_metric("entropy of the grey values, the least reconstruction", grey, n, unit="nats")

    first = [int((data.test_labels == k).nonzero()[0]) for k in data.test_labels.unique()[:10]]
    path = result.add_file(
        "reconstructions.png", "The same held-out images, kept in few numbers and in more."
    )
    draw_reconstructions(path, models, data.test_images[first])
    if 2 in models:
        path = result.add_file("plane.png", "All digits in a plane: what the decoder draws, and "
                               "where held-out images lie.")  # fmt: skip
        draw_plane(path, models[2], data)
    larger = {size: model for size, model in models.items() if size > 2}
    if larger and n >= 50:
        path = result.add_file(
            "tsne.png",
            "The latents of held-out images by t-SNE, coloured by class; "
            "no label was shown in training.",
        )
        draw_tsne(path, larger, data, config)
    path = result.add_file("elbo.png", "The two parts of the loss: fewer nats are better.")
    draw_elbo(path, runs, rows)
    path = result.add_file("samples_by_size.png", "Latents drawn from N(0, I), decoded.")
    draw_comparison(
        path, {f"{size} latents": images for size, images in samples.items()},
        {f"{size} latents": score for size, score in scores.items()},
    )  # fmt: skip
    pairs = first[: len(first) // 2 * 2]
    if pairs:
        path = result.add_file("interpolation.png", "From one held-out image to another through "
                               "latent space: left and right are reconstructions.")  # fmt: skip
        draw_interpolation(path, models[largest], data.test_images[pairs])


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
