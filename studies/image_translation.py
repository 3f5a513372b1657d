"""Image-to-image translation: Pix2Pix learns from pairs, CycleGAN without them.

Pix2Pix (Isola et al. 2017) paints a street from its mask, which says what each pixel is. It learns from
pairs of a mask and a picture. Its loss has two parts: the error of each pixel (L1), and a discriminator
that judges every patch of a picture together with its mask. It is trained again with L1 alone.

CycleGAN (Zhu et al. 2017) learns from two sets of images and no pair: white digits on black (A), and
other digits in broad black ink on white (B). One generator translates A to B, another B to A. An image
that goes there and back must come out unchanged: this is the cycle loss. Both are trained again with the
discriminators alone. The true translations are known, but they only measure the results.

    python -m studies.image_translation
    python -m studies.image_translation --methods cyclegan --identity-weight 0
    python -m studies.image_translation --resume
    python -m studies.image_translation --sample-only           # measure the checkpoints again

What to look at: `streets.png`: L1 alone smears what the mask leaves open, the discriminator asks for
texture; `digits_to_b.png`: each translation beside the true one, and digits that became others.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

import gan_mnist
from imagelab.data import datasets
from imagelab.data.datasets import Dataset, mirrored, signed, to_uint8, unit
from imagelab.data.masks import MaskedPictures, load_masked
from imagelab.report import figures, samples
from imagelab.report.masks import colours
from imagelab.report.results import Result, start_result
from imagelab.setup.runtime import UserError, autocast, channels_last, prepare
from imagelab.setup.settings import Count, DataSettings, Limits, Rate, ResumableSettings
from imagelab.techniques.classifier import accuracy, trained_classifier
from imagelab.training.loop import Training, can_resume, warmup_and_decay
from studies import dcgan, segmentation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "image_translation"
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"
HEIGHT = 64  # pixels of the drawn streets; they are half as wide again
POOL = 50  # generated images that are kept for each discriminator

# --- the networks ---------------------------------------------------------------------------------


class TranslationUNet(nn.Module):
    """Pix2Pix' generator: masks, one-hot (B, classes, H, W), to pictures (B, 3, H, W) in [-1, 1].

    With `widths` (32, 64, 128, 128, 128) a mask of 64×96 pixels is halved five times, to 2×3. Dropout is
    the only source of randomness; it stays on when the network is used.
    """

    def __init__(self, classes: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for k, (a, b) in enumerate(zip([classes, *widths], widths, strict=False)):
            normed = 0 < k < len(widths) - 1  # neither at the input nor where few pixels are left
            norm = nn.InstanceNorm2d(b) if normed else nn.Identity()
            self.down.append(nn.Sequential(nn.Conv2d(a, b, 4, 2, 1), norm))
        for k, b in enumerate(widths[-2::-1]):
            a = widths[-1 - k] * (2 if k else 1)  # what comes from below, and the skip connection
            dropout = nn.Dropout(0.5 if k < 2 else 0)
            grow = nn.ConvTranspose2d(a, b, 4, 2, 1)
            self.up.append(nn.Sequential(grow, nn.InstanceNorm2d(b), dropout))
        self.last = nn.ConvTranspose2d(2 * widths[0], 3, 4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with autocast(x.device):
            h, skips = x.contiguous(memory_format=torch.channels_last), []
            for k, stage in enumerate(self.down):  # (B, 32, 32, 48), …, (B, 128, 2, 3)
                h = stage(F.leaky_relu(h, 0.2) if k else h)
                skips.append(h)
            skips.pop()  # the innermost level is no skip connection: it is h
            for stage in self.up:
                h = torch.cat([stage(F.relu(h)), skips.pop()], dim=1)
            return self.last(F.relu(h)).float().tanh()


class TranslationBlock(nn.Sequential):
    """x plus two 3×3 convolutions of x."""

    def __init__(self, w: int) -> None:
        super().__init__(
            nn.ReflectionPad2d(1), nn.Conv2d(w, w, 3), nn.InstanceNorm2d(w), nn.ReLU(),
            nn.ReflectionPad2d(1), nn.Conv2d(w, w, 3), nn.InstanceNorm2d(w),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


class ResidualGenerator(nn.Sequential):
    """CycleGAN's generator: images (B, C, H, W) in [-1, 1] to images of the other set."""

    def __init__(self, channels: int, w: int, blocks: int) -> None:
        super().__init__(
            nn.ReflectionPad2d(3), nn.Conv2d(channels, w, 7), nn.InstanceNorm2d(w), nn.ReLU(),
            nn.Conv2d(w, 2 * w, 3, 2, 1), nn.InstanceNorm2d(2 * w), nn.ReLU(),
            nn.Conv2d(2 * w, 4 * w, 3, 2, 1), nn.InstanceNorm2d(4 * w), nn.ReLU(),
            *(TranslationBlock(4 * w) for _ in range(blocks)),  # (B, 4w, H/4, W/4)
            nn.ConvTranspose2d(4 * w, 2 * w, 3, 2, 1, 1), nn.InstanceNorm2d(2 * w), nn.ReLU(),
            nn.ConvTranspose2d(2 * w, w, 3, 2, 1, 1), nn.InstanceNorm2d(w), nn.ReLU(),
            nn.ReflectionPad2d(3), nn.Conv2d(w, channels, 7), nn.Tanh(),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with autocast(x.device):
            return super().forward(x.contiguous(memory_format=torch.channels_last)).float()


class PatchDiscriminator(nn.Sequential):
    """Images (B, C, H, W) to logits (B, 1, h, w), one for each patch: how real it looks.

    `strided` layers halve the image; each logit sees 16×16 pixels with one of them, 34×34 with two, and
    70×70 with three, as in Pix2Pix.
    """

    def __init__(self, channels: int, width: int, strided: int) -> None:
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for k in range(1, strided + 1):
            a, b = width * 2 ** (k - 1), width * 2**k
            layers += [nn.Conv2d(a, b, 4, 2 if k < strided else 1, 1), nn.InstanceNorm2d(b),
                       nn.LeakyReLU(0.2)]  # fmt: skip
        super().__init__(*layers, nn.Conv2d(width * 2**strided, 1, 4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with autocast(x.device):
            return super().forward(x.contiguous(memory_format=torch.channels_last)).float()


def receptive_field(discriminator: nn.Module) -> int:
    """The side in pixels of the patch that each logit sees."""
    side = 1
    for layer in reversed(list(discriminator.modules())):
        if isinstance(layer, nn.Conv2d):
            side = (side - 1) * layer.stride[0] + layer.kernel_size[0]
    return side


# --- the losses -----------------------------------------------------------------------------------
# Pix2Pix' are those of gan_mnist.py, a logit for each patch, and L1.


def least_squares(logits: torch.Tensor, target: float) -> torch.Tensor:
    """E (D(x) − target)² (Mao et al. 2017). The generators of CycleGAN want 1 for their images."""
    return (logits - target).square().mean()


def discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """½ (E (D(x) − 1)² + E D(G(z))²): the discriminators want 1 for real images, 0 for generated."""
    return (least_squares(real_logits, 1) + least_squares(fake_logits, 0)) / 2


def cycle_loss(to_b, to_a, a, b, fake_b, fake_a) -> torch.Tensor:
    """E |to_a(to_b(a)) − a| + E |to_b(to_a(b)) − b| (Zhu et al. 2017, eq. 2).

    `fake_b` is to_b(a), `fake_a` is to_a(b).
    """
    return F.l1_loss(to_a(fake_b), a) + F.l1_loss(to_b(fake_a), b)


def identity_loss(to_b, to_a, a, b) -> torch.Tensor:
    """E |to_b(b) − b| + E |to_a(a) − a|: images that look right already stay as they are."""
    return F.l1_loss(to_b(b), b) + F.l1_loss(to_a(a), a)


class ImagePool:
    """Earlier generated images, which a discriminator sees again (Shrivastava et al. 2017)."""

    def __init__(self, images: list[torch.Tensor], size: int = POOL) -> None:
        self.images, self.size = images, size

    def query(self, fakes: torch.Tensor, rng: torch.Generator | None = None) -> torch.Tensor:
        """Generated images (B, C, H, W); each is replaced, with even odds, by one of the pool.

        The new image takes the place of the old one. The first `size` images fill the pool. `rng` is on
        the CPU, so that the program need not wait for a GPU to know which image is replaced.
        """
        shown = []
        for fake in fakes.detach():
            if len(self.images) < self.size:
                self.images.append(fake.clone())
            elif torch.rand((), generator=rng) < 0.5:
                k = int(torch.randint(self.size, (), generator=rng))
                fake, self.images[k] = self.images[k], fake.clone()
            shown.append(fake)
        return torch.stack(shown)


# --- the data -------------------------------------------------------------------------------------


def one_hot(masks: torch.Tensor, classes: int) -> torch.Tensor:
    """Masks (B, H, W) uint8 to (B, classes, H, W) of 0 and 1."""
    return F.one_hot(masks.long(), classes).permute(0, 3, 1, 2).float()


def to_ink(images: torch.Tensor) -> torch.Tensor:
    """The true translation from A to B of images (N, C, H, W) in [0, 1]: broader, and negative."""
    return 1 - F.max_pool2d(images, 3, stride=1, padding=1)


def two_sets(data: Dataset, count: int) -> tuple[Dataset, Dataset]:
    """`count` digits in the look of A, and as many others in that of B. Held out: the same in both.

    Those of A stand at even places in `data`, those of B at odd ones. The embedded digits repeat every
    4,000 in other variations: no digit is in both sets.
    """

    def ink(images: torch.Tensor) -> torch.Tensor:
        return to_uint8(2 * to_ink(unit(images)) - 1)

    rows = datasets.random_subset(len(data.images) // 2, count, "unpaired digits") * 2
    a = replace(data, images=data.images[rows], labels=data.labels[rows])
    b = replace(data, images=ink(data.images[rows + 1]), labels=data.labels[rows + 1])
    return a, replace(b, test_images=ink(data.test_images))


# --- training and translating ---------------------------------------------------------------------


@dataclass(frozen=True)
class Config(ResumableSettings, DataSettings):
    """Settings of the image translation; --dataset names the digits, the streets are always drawn."""

    sample_only: bool = False
    """Load the checkpoints and measure them; train nothing."""
    methods: tuple[Literal["pix2pix", "cyclegan"], ...] = ("pix2pix", "cyclegan")
    """What to train: pix2pix, cyclegan or both."""
    lr: Rate = 2e-4
    """Adam's learning rate, of all networks; in the second half of a training it falls to 0."""
    width: Count = 32
    """Channels of the first layers; half as many in CycleGAN's generators."""
    scenes: Count = 600
    """Pix2Pix: streets to draw for training, with their masks."""
    test_scenes: Count = 200
    """Pix2Pix: streets to draw for the measurement."""
    epochs: Count = 4
    """Pix2Pix: passes over the streets."""
    batch_size: Count = 4
    """Images per step, of each set."""
    l1_weight: Annotated[float, Limits(0, 1e6)] = 100.0
    """Pix2Pix: weight of the mean absolute error of pixels in [-1, 1]."""
    adversarial_weight: Annotated[float, Limits(0, 1e6)] = 1.0
    """Pix2Pix: weight of −log D(mask, G(mask)) in the generator's loss."""
    digits: Count = 1200
    """CycleGAN: digits in each of the two sets."""
    digit_epochs: Count = 2
    """CycleGAN: passes over the digits of A, each with a random digit of B."""
    cycle_weight: Annotated[float, Limits(0, 1e6)] = 10.0
    """CycleGAN: weight of the cycle loss."""
    identity_weight: Annotated[float, Limits(0, 1e6)] = 5.0
    """CycleGAN: weight of the identity loss."""


def new_training(
    config: Config, data: Dataset | MaskedPictures, name: str, networks: dict[str, nn.Module]
) -> Training:
    """Networks with first weights N(0, 0.02²), or those of the checkpoint; one half are generators."""
    for network in networks.values():
        channels_last(network.apply(dcgan.initialise), data.images.device)
    nets, half = list(networks.values()), len(networks) // 2
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for kind, part in (("generators", nets[:half]), ("discriminators", nets[half:])):
        parameters = [p for network in part for p in network.parameters()]
        optimizers[kind] = torch.optim.Adam(parameters, config.lr, (0.5, 0.999), fused=True)
    training = Training(
        checkpoint_path(config, name), SCRIPT, config, data, networks=networks,
        optimizers=optimizers, label=name, may_change_on_resume=("methods", "digit_epochs"),
    )  # fmt: skip
    training.extra = {"pools": [[], []]}  # CycleGAN's, saved with the weights
    if config.resume or config.sample_only:
        training.load()
    if config.sample_only and training.epoch < config.epochs:
        done = f"{training.epoch} of {config.epochs} epochs"
        raise UserError(f"{training.path} has been trained for {done}: --resume goes on.")
    return training


def step(training: Training, kind: str, loss: torch.Tensor) -> None:
    """One step of Adam for the generators or the discriminators."""
    adam = training.optimizers[kind]
    adam.param_groups[0]["lr"] = training.config.lr * warmup_and_decay(training.progress, 0, 0.5)
    adam.zero_grad()
    loss.backward()
    adam.step()


def train_pix2pix(config: Config, data: MaskedPictures, name: str) -> Training:
    """Train Pix2Pix, or go on with --resume; with an adversarial weight of 0, L1 alone."""
    torch.manual_seed(config.seed)
    w, classes = config.width, len(data.classes)
    G = TranslationUNet(classes, (w, 2 * w, 4 * w, 4 * w, 4 * w))
    D = PatchDiscriminator(classes + 3, w, strided=2)
    training = new_training(config, data, name, {"generator": G, "discriminator": D})
    with training:
        for _ in training.epochs():
            for batch in training.batches():
                pair = [one_hot(data.masks[batch], classes), signed(data.images[batch])]
                pair = mirrored(torch.cat(pair, dim=1), training.rng)  # (B, classes + 3, H, W)
                mask, real = pair.split([classes, 3], dim=1)
                fake = G(mask)
                fake_pair = torch.cat([mask, fake], dim=1)
                l1 = F.l1_loss(fake, real)
                loss = config.l1_weight * l1
                if config.adversarial_weight:
                    d_loss = gan_mnist.discriminator_loss(D(pair), D(fake_pair.detach()))
                    step(training, "discriminators", d_loss)
                    D.requires_grad_(False)
                    g_loss = gan_mnist.generator_loss(D(fake_pair))  # −log D(mask, G(mask))
                    D.requires_grad_(True)
                    loss = loss + config.adversarial_weight * g_loss
                    training.log(d_loss=d_loss, g_loss=g_loss)
                step(training, "generators", loss)
                training.log(l1=l1)
    return training


def train_cyclegan(config: Config, sets: tuple[Dataset, Dataset], name: str) -> Training:
    """Train the generators A to B and B to A, and a discriminator for each set, or go on."""
    torch.manual_seed(config.seed)
    set_a, images_b, device = sets[0], sets[1].images, sets[0].images.device
    w, channels = config.width, set_a.shape[0]
    to_b, to_a = (ResidualGenerator(channels, w // 2, blocks=3) for _ in range(2))
    d_b, d_a = (PatchDiscriminator(channels, w, strided=1) for _ in range(2))
    networks = {"to_b": to_b, "to_a": to_a, "d_b": d_b, "d_a": d_a}
    training = new_training(replace(config, epochs=config.digit_epochs), set_a, name, networks)
    pool_b, pool_a = map(ImagePool, training.extra["pools"])
    rng = training.rng
    chooser = rng if device.type == "cpu" else None  # None: torch's own, which is saved as well
    with training:
        for _ in training.epochs():
            for batch in training.batches():
                other = torch.randint(len(images_b), batch.shape, generator=rng, device=device)
                a, b = signed(set_a.images[batch]), signed(images_b[other])  # no pairs
                fake_b, fake_a = to_b(a), to_a(b)
                for D in (d_b, d_a):
                    D.requires_grad_(False)
                g_loss = least_squares(d_b(fake_b), 1) + least_squares(d_a(fake_a), 1)
                for D in (d_b, d_a):
                    D.requires_grad_(True)
                loss = g_loss
                if config.cycle_weight:
                    cycle = cycle_loss(to_b, to_a, a, b, fake_b, fake_a)
                    loss = loss + config.cycle_weight * cycle
                    training.log(cycle=cycle)
                if config.identity_weight:
                    loss = loss + config.identity_weight * identity_loss(to_b, to_a, a, b)
                step(training, "generators", loss)
                old_b, old_a = pool_b.query(fake_b, chooser), pool_a.query(fake_a, chooser)
                d_loss = discriminator_loss(d_b(b), d_b(old_b))
                d_loss = d_loss + discriminator_loss(d_a(a), d_a(old_a))
                step(training, "discriminators", d_loss)
                training.log(g_loss=g_loss, d_loss=d_loss)
    return training


# The two trainings of each method: without the loss that it is known for, and with it.
CONTENDERS = {
    "pix2pix": {"L1 alone": {"adversarial_weight": 0.0}, "Pix2Pix": {}},
    "cyclegan": {"GAN alone": {"cycle_weight": 0.0, "identity_weight": 0.0}, "CycleGAN": {}},
}


@torch.no_grad()
def translate(network: nn.Module, x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Inputs (N, C, H, W) through a generator, to uint8. `seed` is that of Pix2Pix' dropout."""
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(seed)
        return torch.cat([to_uint8(network(part)) for part in x.split(50)])


def checkpoint_path(config: Config, name: str) -> Path:
    return config.output_dir / MODELS / f"{name.replace(' ', '_')}.pth"


# === the lesson ends here; below: measured, plotted, reported =====================================

TITLE = "Image translation: with pairs and without"
SUMMARY = (
    "Pix2Pix paints streets from masks; it has seen pairs. CycleGAN gives digits another look; it has "
    "seen none. A segmentation network and the true translations measure both."
)
Trained = dict[str, dict[str, nn.Module]]  # by the name of the training, its networks


def street_reader(config: Config, data: MaskedPictures) -> nn.Module:
    """A segmentation network, trained on the real pictures, which reads the painted ones."""
    folder = config.output_dir / MODELS / ("reader_quick" if config.quick else "reader")
    path = folder / segmentation.MODELS / "scenes.pth"
    if not config.sample_only:
        settings = segmentation.Config(
            output_dir=folder, seed=config.seed, quick=config.quick, height=HEIGHT, epochs=3,
            scenes=config.scenes, test_scenes=config.test_scenes, widths=(32, 64, 128),
            patch_size=2, lr=1e-3, resume=can_resume(config, path),
        )  # fmt: skip
        segmentation.train(settings, data)
    return segmentation.load_model(path, data.images.device)[0]


def flat_colours(data: MaskedPictures) -> torch.Tensor:
    """The held-out masks painted in the mean colour of each class in training, (N, 3, H, W) uint8."""
    pixels = data.images.permute(0, 2, 3, 1).float()  # (N, H, W, 3)
    means = torch.stack([pixels[data.masks == k].mean(0) for k in range(len(data.classes))])
    return means.nan_to_num()[data.test_masks.long()].permute(0, 3, 1, 2).round().byte()


def l1(images: torch.Tensor, others: torch.Tensor) -> float:
    """The mean absolute error of uint8 images, for pixels in [0, 1]."""
    return (unit(images) - unit(others)).abs().mean().item()


def best_shift(images: torch.Tensor, truth: torch.Tensor, limit: int = 3) -> tuple[float, int, int]:
    """The smallest L1 of `truth`, moved as a whole, to the images; by how many rows and columns."""
    reach = range(-limit, limit + 1)
    moves = [(down, right) for down in reach for right in reach]
    return min((l1(images, truth.roll(move, (2, 3))), *move) for move in moves)


def detail(images: torch.Tensor) -> float:
    """By how many grey levels neighbouring pixels differ on average; (N, C, H, W) uint8."""
    x = images.float()
    return (x.diff(dim=2).abs().mean() + x.diff(dim=3).abs().mean()).item() / 2


def add_scores(result: Result, what: str, scores: dict[str, dict[str, float]], n: int) -> None:
    """A table with a row for each name, and the same figures as metrics."""
    rows = [[name, *row.values()] for name, row in scores.items()]
    result.add_table(f"{what}, n = {n:,}", ["", *next(iter(scores.values()))], rows)
    for name, row in scores.items():
        for figure, value in row.items():
            add = result.add_share if figure == "class kept" else result.add_metric
            add(f"{what}, {name}: {figure}", value, n)


def plot_eight(images: dict[str, torch.Tensor]) -> Figure:
    """The first eight images (N, C, H, W) uint8 of each name, in a row."""
    return figures.plot_rows({name: x[:8] for name, x in images.items()})


def in_colours(masks: torch.Tensor, classes: tuple[str, ...]) -> torch.Tensor:
    """Masks (N, H, W) as pictures (N, 3, H, W) uint8 in the colours of their classes."""
    palette = torch.from_numpy(colours(classes)).byte()
    return palette[masks.long().cpu()].permute(0, 3, 1, 2)


def evaluate_streets(
    config: Config, data: MaskedPictures, networks: Trained, result: Result
) -> None:
    """What the segmentation network reads in the painted streets."""
    reader, n, real = street_reader(config, data), len(data.test_images), data.test_images
    masks = one_hot(data.test_masks, len(data.classes))
    painted = {"another street": real.roll(1, 0), "flat colours": flat_colours(data)}
    for name, trained in networks.items():
        painted[name] = translate(trained["generator"], masks, config.seed)
    painted["real"], scores = real, {}
    for name, images in painted.items():
        read = segmentation.predict(reader, images)
        iou, right = segmentation.scores(read, data.test_masks, len(data.classes))
        car = iou[data.classes.index("car")].item()
        scores[name] = {
            "pixel accuracy": right, "mean IoU": iou.nanmean().item(), "IoU of cars": car,
            "L1 to the real picture": l1(images, real), "detail": detail(images),
        }  # fmt: skip
    add_scores(result, "streets", scores, n)
    once, G = painted["Pix2Pix"], networks["Pix2Pix"]["generator"]
    again = translate(G, masks, config.seed + 1)
    result.add_metric("Pix2Pix: L1 between two pictures of a mask", l1(again, once), n)
    del painted["another street"]
    shown = {"mask": in_colours(data.test_masks, data.classes), **painted}
    caption = "Held-out masks, painted in each way, and the real pictures."
    result.add_figure("streets.png", plot_eight(shown), caption)


def evaluate_digits(
    config: Config, sets: tuple[Dataset, Dataset], networks: Trained, result: Result
) -> None:
    """Held-out digits in both directions, beside the truth."""
    set_a, set_b = sets
    digits = datasets.load_for(config, set_a.images.device)
    classifier = partial(trained_classifier, digits, config.output_dir, config.seed, config.quick)
    reads_a = classifier()
    reads_b = classifier("cnn_ink", lambda images, _rng: to_ink(images))
    a, b = set_a.test_images, set_b.test_images
    b_to_a, a_to_b = ("B to A", b, a, "to_a", reads_a), ("A to B", a, b, "to_b", reads_b)
    n = len(set_a.test_images)
    for way, x, truth, key, reader in (b_to_a, a_to_b):
        made = {name: translate(nets[key], signed(x)) for name, nets in networks.items()}
        made, scores = {"untranslated": x} | made | {"true translation": truth}, {}
        for name, images in made.items():
            kept = accuracy(reader, images, set_a.test_labels)
            moved, down, right = best_shift(images, truth)
            scores[name] = {
                "L1 to the truth": l1(images, truth), "class kept": kept, "rows down": down,
                "columns right": right, "L1 to the truth moved so": moved,
            }  # fmt: skip
        add_scores(result, f"digits, {way}", scores, n)
        for name, nets in networks.items():
            back = "to_b" if key == "to_a" else "to_a"
            error = l1(translate(nets[back], signed(made[name])), x)
            result.add_metric(f"digits, {way}, {name}: L1, there and back", error, n)
        caption = (
            f"Held-out digits, translated from {way}, above the true translation. A is white on black, B "
            "broad black ink on white."
        )
        result.add_figure(f"digits_{key}.png", plot_eight(made), caption)


def plot_losses(trainings: dict[str, Training], shared: str) -> Figure:
    """The loss `shared` of a method's trainings, and the game of the last one."""
    figure, axes = figures.new_figure(9, 3.2, columns=2)
    lines = {k: (t, shared) for k, t in trainings.items() if shared in t.history}
    samples.plot_logged(axes[0, 0], lines, "L1" if shared == "l1" else "cycle loss")
    last = list(trainings.values())[-1]
    game = {"discriminator": (last, "d_loss"), "generator": (last, "g_loss")}
    samples.plot_logged(axes[0, 1], game, f"adversarial losses, {last.label}", first_colour=2)
    for axis in axes[0]:
        axis.legend()
    return figure


def lessons(result: Result) -> list[str]:
    """What the figures teach, as far as they were measured."""
    taught, ways = [], ("Pix2Pix", "L1 alone", "flat colours", "real")
    accuracies = [f"streets, {way}: pixel accuracy" for way in ways]
    if found := result.measured(*accuracies, *(f"streets, {way}: IoU of cars" for way in ways)):
        gan, l1, flat, real, gan_car, l1_car, flat_car, real_car = found
        taught.append(
            f"The segmentation network reads {gan:.1%} of the pixels of Pix2Pix' streets rightly, "
            f"{l1:.1%} with L1 alone, {flat:.1%} in flat colours and {real:.1%} in real streets. Cars "
            f"show the difference: their IoU is {gan_car:.2f}, {l1_car:.2f}, {flat_car:.2f} and "
            f"{real_car:.2f}."
        )
        if gan_car > real_car:
            taught[-1] += (
                " More than in real streets: the network takes a patch of colour for a car."
            )
    figure_names = ("L1 to the truth", "class kept")
    for way in ("A to B", "B to A"):
        names = [f"digits, {way}, {name}" for name in ("CycleGAN", "GAN alone", "untranslated")]
        wanted = [f"{name}: {figure}" for name in names for figure in figure_names]
        wanted += [f"{names[0]}: {figure}" for figure in
                   ("rows down", "columns right", "L1 to the truth moved so")]  # fmt: skip
        if not (found := result.measured(*wanted)):
            continue
        after, kept, alone, alone_kept, before, before_kept, down, right, moved = found
        taught.append(
            f"From {way}, CycleGAN comes within {after:.2f} of the true translation without one pair, "
            f"and {kept:.0%} of the digits keep their class. With the discriminators alone it is "
            f"{alone:.2f} and {alone_kept:.0%}, untranslated {before:.2f} and {before_kept:.0%}."
        )
        if moved < after / 2:
            taught[-1] += (
                f" Most of CycleGAN's error is a move of the whole by {math.hypot(down, right):.1f} "
                "pixels: the way back undoes that, and the cycle loss cannot see it."
            )
        elif kept < max(before_kept, alone_kept):
            taught[-1] += (
                " The digits change: the cycle loss only asks that the way back finds them again."
            )
    return taught


def run(config: Config) -> Result:
    """Train (or load) what --methods names, translate what is held out, measure."""
    device = prepare(config.seed, config.device)
    config = config.if_quick(scenes=32, test_scenes=16, epochs=1, digits=100, width=8)
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device)
    data: dict[str, Any] = {}
    if "cyclegan" in config.methods:
        digits = datasets.load_dataset(config.dataset, config.data_dir).to(device)
        a, b = data["cyclegan"] = two_sets(digits, config.digits)
        rows = {"A": a.images, "B": b.images}
        result.add_figure("sets.png", plot_eight(rows), "What CycleGAN learns from: no pairs.")
    if "pix2pix" in config.methods:
        load = partial(load_masked, "scenes", config.data_dir, HEIGHT)
        few = load(min(config.scenes, 8), 1)  # to draw all of them takes a while
        rows = {"mask": in_colours(few.masks, few.classes), "picture": few.images}
        result.add_figure("pairs.png", plot_eight(rows), "What Pix2Pix learns from: pairs.")
        data = {"pix2pix": load(config.scenes, config.test_scenes).to(device), **data}
    result.describe(config, data["pix2pix"] if "pix2pix" in data else data["cyclegan"][0])
    for method, own in data.items():
        train, evaluate, shared = METHODS[method]
        trainings = {}
        for name, changes in CONTENDERS[method].items():
            resume = can_resume(config, checkpoint_path(config, name), first=name == "L1 alone")
            trainings[name] = train(replace(config, resume=resume, **changes), own, name)
        result.add_figure(f"{method}_losses.png", plot_losses(trainings, shared), "The losses.")
        evaluate(config, own, {name: t.networks for name, t in trainings.items()}, result)
    return result.save(*lessons(result))


METHODS = {
    "pix2pix": (train_pix2pix, evaluate_streets, "l1"),
    "cyclegan": (train_cyclegan, evaluate_digits, "cycle"),
}


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
