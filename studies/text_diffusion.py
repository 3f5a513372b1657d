"""From words to an image: a small diffusion model that reads captions of digits.

The captions are made by measuring each digit: its width, the thickness of its stroke and its slant. Each
is the lower, middle or upper third of its class. The words reach the U-Net by cross-attention: pixels of
an inner level attend to all words (Rombach et al. 2022). The vectors of the words are learnt with the
rest.

Does it put words together that it never saw together? For each digit one pair of stroke and slant is left
out of the training: thin backward zeros, bold backward twos, and so on. The opposite pair stays in: bold
slanted zeros, thin slanted twos. Both kinds are drawn equally often, for the same digits and the same
widths, and each word stands in both kinds equally often. So the words alone make neither kind harder.
Still, another pair of the same words may be harder for a digit. --crossover trains a second network,
which leaves out the opposite pairs. Then each combination is drawn by a network that saw it and by one
that did not, from the same noise.

    python -m studies.text_diffusion                                  # twelve minutes on two CPU cores
    python -m studies.text_diffusion --crossover                      # twice as long
    python -m studies.text_diffusion --prompt "a thin upright three"  # from the trained network
    python -m studies.text_diffusion --prompt "bold slanted seven" --guidance 5 --num-samples 40

A prompt takes any of: narrow medium wide, thin regular bold, backward upright slanted, zero … nine.

What to look at: `agreement.png`, how often the drawn image is what the prompt says, for combinations that
the training saw and for others; `unseen.png`, words that were never together in the training.
"""

from __future__ import annotations

from imagelab.setup.command import command_line  # first: it hears a Ctrl-C while torch loads

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from imagelab.data.datasets import EMBEDDED, Dataset, load_for, to_uint8
from imagelab.report import figures, samples
from imagelab.report.numbers import mean_and_reach, wilson
from imagelab.report.results import Result, start_result
from imagelab.setup.runtime import UserError, channels_last, prepare
from imagelab.setup.settings import Count, Fraction, Limits
from imagelab.techniques.classifier import DigitCNN, predict, trained_classifier
from imagelab.techniques.diffusion import Estimate, trailing_steps
from imagelab.training.loop import Training, can_resume, one_cycle
from studies import unet_diffusion
from studies.unet_diffusion import Model, Steps, load_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCRIPT = "text_diffusion"
PICTURES, MODELS = f"study_images/{SCRIPT}", f"study_models/{SCRIPT}"
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ATTRIBUTES = {
    "width": ("narrow", "medium", "wide"),
    "stroke": ("thin", "regular", "bold"),
    "slant": ("backward", "upright", "slanted"),
}
# Word 0 is the empty word. It fills up short captions; four of them are no caption.
VOCABULARY = ("", *(word for words in ATTRIBUTES.values() for word in words), *NUMBERS)
LENGTH = 4  # words in a caption
# Thirds of stroke and slant: the pairs that are left out, by class, again and again.
CORNERS = ((0, 0), (2, 2), (2, 0), (0, 2))

# --- captions -------------------------------------------------------------------------------------


def measure_shape(images: torch.Tensor) -> torch.Tensor:
    """Width, stroke and slant (N, 3) of digits (N, 1, H, W) uint8, light on dark.

    Width: four standard deviations of the ink's columns, in pixels, after the slant is taken out. Stroke:
    four times the mean distance of the ink to the background, in pixels. Slant: how many pixels the ink
    leans to the right per pixel upwards, by second moments. The size would say nothing: MNIST scaled the
    longer side of every digit to 20 pixels.
    """
    import cv2

    shapes = []
    for image in images[:, 0].cpu().numpy():
        large = cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
        ink = (large > 127).astype(np.uint8)
        rows, columns = np.nonzero(ink)
        if len(rows) < 16:
            shapes.append((0.0, 0.0, 0.0))
            continue
        inside = cv2.distanceTransform(ink, cv2.DIST_L2, 5)[rows, columns]  # in quarters of a pixel
        up = rows.mean() - rows
        slant = np.mean(up * (columns - columns.mean())) / max(rows.var(), 1.0)
        shapes.append(((columns - slant * up).std(), inside.mean(), slant))
    return torch.tensor(np.array(shapes), dtype=torch.float32)


@dataclass(frozen=True)
class Captioner:
    """Says in which third of its class each attribute of an image lies."""

    borders: torch.Tensor
    """Where the middle and the upper third begin: (classes, 3 attributes, 2)."""

    @staticmethod
    def fit(images: torch.Tensor, labels: torch.Tensor) -> Captioner:
        measured = measure_shape(images)
        thirds = torch.tensor([1 / 3, 2 / 3])
        return Captioner(
            torch.stack([measured[labels.cpu() == k].quantile(thirds, 0).T for k in range(10)])
        )

    def thirds(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The thirds of width, stroke and slant (N, 3) of images of the classes `labels`: 0, 1 or 2."""
        measured, borders = measure_shape(images), self.borders[labels.cpu()]
        return (measured[:, :, None] > borders).sum(dim=2)


def caption_words(thirds: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Captions (N, 4) of thirds (N, 3) and classes (N,), as numbers of words in VOCABULARY."""
    first = torch.tensor([1, 4, 7])  # each attribute's first word in VOCABULARY
    return torch.cat([first + thirds, 10 + labels.cpu()[:, None]], dim=1)


def encode(prompt: str) -> torch.Tensor:
    """A prompt as numbers of words (1, 4). UserError for a word that is not in VOCABULARY."""
    words = [word for word in prompt.lower().replace(",", " ").split() if word not in ("a", "an")]
    unknown = [word for word in words if word not in VOCABULARY]
    if unknown or not 1 <= len(words) <= LENGTH:
        raise UserError(
            f"--prompt takes up to {LENGTH} of these words: {', '.join(VOCABULARY[1:])}"
            + (f"; not {unknown[0]!r}." if unknown else ".")
        )
    return torch.tensor([[VOCABULARY.index(word) for word in words] + [0] * (LENGTH - len(words))])


def decode(words: torch.Tensor) -> str:
    """Numbers of words (4,) as a prompt: the opposite of `encode`."""
    return "a " + " ".join(VOCABULARY[word] for word in words.tolist() if word)


def left_out_pair(label: int, group: int) -> tuple[int, int]:
    """The thirds of stroke and slant of a class that the training of `group` never sees together.

    Group 1 leaves out the opposite of what group 0 leaves out: thin for bold, backward for slanted. Over
    the ten classes, each pair is as often among the ones as among the others, and so is each word.
    """
    stroke, slant = CORNERS[label % 4]
    return (stroke, slant) if group == 0 else (2 - stroke, 2 - slant)


def may_train_on(labels: torch.Tensor, thirds: torch.Tensor, group: int = 0) -> torch.Tensor:
    """Whether the training of `group` may see each image (N,): its class's pair is another one."""
    pairs = torch.tensor([left_out_pair(label, group) for label in range(10)])[labels.cpu()]
    return ~(thirds[:, 1:] == pairs).all(dim=1)


def prompts_left_out(n: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Thirds (n, 3) and classes (n,) of captions whose pair the training of `group` leaves out.

    Thirty captions in turn: ten classes, three widths.
    """
    k = torch.arange(n)
    labels, width = k % 10, (k + k // 10) % 3
    pairs = torch.tensor([left_out_pair(label, group) for label in range(10)])[labels]
    return torch.cat([width[:, None], pairs], dim=1), labels


def drop_words(words: torch.Tensor, config: Config, rng: torch.Generator) -> torch.Tensor:
    """Captions (B, 4) in which some words are left out at random: single words, or all four.

    The digit's word is the last one. It is left out only with all others.
    """
    draws = torch.rand(len(words), LENGTH + 1, generator=rng, device=words.device)
    left_out = draws[:, :LENGTH] < config.drop_word
    left_out[:, -1] = False
    left_out |= draws[:, -1:] < config.drop_class
    return words.masked_fill(left_out, 0)


# --- settings -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(unet_diffusion.NetworkSettings):
    """Settings of the text-to-image model."""

    prompt: str | None = None
    """Draw images of this prompt from the checkpoint; train nothing."""
    crossover: bool = False
    """Also train a second network, which leaves out the opposite pairs of stroke and slant."""
    epochs: Count = 2
    """Passes over the training images."""
    attention: tuple[int, ...] = (1,)
    """Levels whose pixels attend to each other and to the words; the outermost level is 0."""
    drop_class: Fraction = 0.1
    """How often the whole caption is left out in training."""
    drop_word: Fraction = 0.2
    """How often each word is left out in training; the digit's word stays."""
    steps: Steps = 20
    """Steps of DPM-Solver++."""
    guidance: Annotated[float, Limits(0, 100)] = 3.0
    """Scale of the guidance: 0 ignores the prompt, 1 is the conditional model, more exaggerates it."""
    num_samples: Count = 1200
    """Images to draw for each row of the table and each network, or for the prompt."""


# --- training -------------------------------------------------------------------------------------


def train(config: Config, data: Dataset, words: torch.Tensor, path: Path) -> tuple[Training, Model]:
    """Train on images and their captions `words` (N, 4), or go on with --resume.

    Returns the training and the model with the averaged weights.
    """
    device = data.images.device
    words = words.to(device)
    torch.manual_seed(config.seed)
    model = unet_diffusion.build(vars(config), data.shape, vocabulary=len(VOCABULARY))
    network = channels_last(model.network, device)
    adam = torch.optim.Adam(network.parameters(), lr=config.lr, fused=True)
    training = Training(
        path,
        SCRIPT,
        config,
        data,
        networks={"unet": network},
        optimizers={"adam": adam},
        ema="unet",
        ema_decay=config.ema_decay,
        label="U-Net",
        may_change_on_resume=("steps", "guidance", "crossover"),
    )
    if config.resume:
        training.load()
    rng = training.rng
    with training:
        for _ in training.epochs():
            for batch in training.batches():
                x0 = unet_diffusion.batch_images(config, data, batch, rng)  # (B, 1, H, W)
                caption = drop_words(words[batch], config, rng)  # (B, 4)
                x_t, t, target = unet_diffusion.noisy_pair(model, x0, rng)
                loss = F.mse_loss(network(x_t, t / config.T, words=caption), target)
                adam.param_groups[0]["lr"] = config.lr * one_cycle(training.progress)
                adam.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                adam.step()
                training.log(loss=loss)
    return training, unet_diffusion.averaged_model(training)


def train_without(
    group: int, config: Config, data: Dataset, thirds: torch.Tensor
) -> tuple[Training, Model, float]:
    """Train on the images without the pairs of `group`; the training, the model, the share left out."""
    allowed = may_train_on(data.labels, thirds, group)
    images, labels = (
        values[allowed.to(data.images.device)] for values in (data.images, data.labels)
    )
    words = caption_words(thirds, data.labels)[allowed]
    path = checkpoint_path(config)
    path = path.with_name(f"{path.stem}_opposite{path.suffix}") if group else path
    config = replace(config, resume=can_resume(config, path, first=group == 0))
    training, model = train(config, replace(data, images=images, labels=labels), words, path)
    return training, model, 1 - allowed.float().mean().item()


# --- sampling -------------------------------------------------------------------------------------


def sample(model: Model, words: torch.Tensor, config: Config) -> torch.Tensor:
    """Images (n, C, H, W) uint8 of the captions (n, 4), guided against the empty caption."""
    words = words.to(model.device)

    def estimate(rows: slice) -> Estimate:
        no_words = torch.zeros_like(words[rows])
        return model.estimator({"words": words[rows]}, {"words": no_words}, config.guidance)

    images = unet_diffusion.sample_images(model, estimate, len(words), config.steps, config.seed)
    return to_uint8(images)


def checkpoint_path(config: Config) -> Path:
    return config.checkpoint or config.output_dir / MODELS / "text.pth"


def sample_from_checkpoint(config: Config, device: torch.device) -> torch.Tensor:
    """Images (n, C, H, W) uint8 of --prompt or, without one, of captions as in the table."""
    words = caption_words(*prompts_left_out(config.num_samples, group=1))
    if config.prompt is not None:
        words = encode(config.prompt).expand(config.num_samples, -1)
    model = load_model(checkpoint_path(config), device, SCRIPT, vocabulary=len(VOCABULARY))
    return sample(model, words, config)


# === the lesson ends here; below: measured, plotted, reported =====================================

TITLE = "Text to image: a thin upright three"
SUMMARY = (
    "A diffusion model that reads. Its captions are made by measuring real digits. The drawn digits are "
    "measured in the same way: do they agree with the prompt, also where it never saw the words together?"
)


ASKED = ("digit", "width", "stroke", "slant", "all four")
SEEN, UNSEEN = "seen together in training", "never seen together"


def agreement(
    images: torch.Tensor,
    thirds: torch.Tensor,
    labels: torch.Tensor,
    captioner: Captioner,
    classifier: DigitCNN,
) -> torch.Tensor:
    """Whether digit, width, stroke, slant, and all four are what was asked for: (N, 5) bool."""
    read = (predict(classifier, images).argmax(dim=1).cpu() == labels)[:, None]
    agrees = torch.cat([read, captioner.thirds(images, labels) == thirds], dim=1)
    return torch.cat([agrees, agrees.all(dim=1, keepdim=True)], dim=1)


def draw_both(
    config: Config, models: list[Model], captioner: Captioner, classifier: DigitCNN
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The agreement (N, 5) of images of combinations that were seen in training, and of others.

    `models` has one network for each group. Row k of both is of one digit, one width and one noise. With
    two networks it is also of the same stroke and slant. The images of the last network come as well.
    """
    found, images = {}, torch.empty(0)
    for name, groups in ((SEEN, reversed(range(len(models)))), (UNSEEN, range(len(models)))):
        rows = []
        for group in groups:
            asked = 1 - group if name == SEEN else group
            thirds, labels = prompts_left_out(config.num_samples, asked)
            images = sample(models[group], caption_words(thirds, labels), config)
            rows.append(agreement(images, thirds, labels, captioner, classifier))
        found[name] = torch.cat(rows)
    return found, images


def evaluate(result: Result, found: dict[str, torch.Tensor], networks: int) -> None:
    """The table, the metrics and the figure of the agreement."""
    n, rows = len(found[SEEN]), []
    for name, agrees in found.items():
        cells = []
        for what, share in zip(ASKED, agrees.float().mean(dim=0).tolist(), strict=True):
            low, high = interval = wilson(share, n)
            cells.append(f"{share:.3f} ({low:.3f} to {high:.3f})")
            result.add_metric(f"{name}: {what}", share, n, interval=interval, better="higher")
        rows.append([name, *cells])
    cells = []
    pairs = found[UNSEEN].double() - found[SEEN].double()  # row by row
    for what, differences in zip(ASKED, pairs.T.tolist(), strict=True):
        mean, to_each_side = mean_and_reach(differences)
        interval = mean - to_each_side, mean + to_each_side
        cells.append(f"{mean:+.3f} ({interval[0]:+.3f} to {interval[1]:+.3f})")
        result.add_metric(f"unseen less seen: {what}", mean, n, interval=interval)
    result.add_metric("unseen less seen: all four, ±", to_each_side, n)  # the last one
    rows.append(["difference", *cells])
    kind = "the same words in other pairs" if networks == 1 else "the very same combinations"
    caption = (
        f"How often the drawn image is what the prompt says, n = {n:,} a row (95 %). Both rows ask for "
        f"{kind}. By chance: 0.1 for the digit and 0.33 for each other word"
    )
    result.add_table(caption, ["stroke and slant", *ASKED], rows)
    caption = (
        f"How often the drawn image is what the prompt says (95 % intervals; dashed: by chance). Left, "
        f"word by word, n = {n:,}. Right, all four words, by digit, n = {n // 10:,} each."
    )
    result.add_figure("agreement.png", plot_agreement(found, networks), caption)


def plot_agreement(found: dict[str, torch.Tensor], networks: int) -> Figure:
    """The shares of `found`, (N, 5) by name, with their intervals: by word, and by digit."""
    figure, axes = figures.new_figure(11, 3.6, columns=2)
    labels = prompts_left_out(len(found[SEEN]) // networks, 0)[1].repeat(networks)
    for i, (name, agrees) in enumerate(found.items()):
        by_digit = [agrees[labels == digit, -1] for digit in range(10)]
        for axis, groups in ((axes[0, 0], agrees.T), (axes[0, 1], by_digit)):
            shares = [group.float().mean().item() for group in groups]
            edges = [wilson(share, len(g)) for share, g in zip(shares, groups, strict=True)]
            bars = [
                [share - low for share, (low, _) in zip(shares, edges, strict=True)],
                [high - share for share, (_, high) in zip(shares, edges, strict=True)],
            ]
            look = {"color": figures.PALETTE[i], "marker": figures.MARKERS[i], "label": name}
            places = np.arange(len(shares)) + 0.2 * i - 0.1
            axis.errorbar(places, shares, bars, linestyle="none", capsize=3, **look)
    chance = (0.1, 1 / 3, 1 / 3, 1 / 3, 0.1 / 27)  # of ASKED
    for axis, names, what, by_chance in (
        (axes[0, 0], ASKED, "agrees with the prompt", chance),
        (axes[0, 1], NUMBERS, "all four agree", 10 * chance[-1:]),
    ):
        places = np.arange(len(names))
        axis.hlines(by_chance, places - 0.4, places + 0.4, "#666666", "dashed", linewidth=1.2)
        axis.set_xticks(range(len(names)), names)
        axis.set(ylabel=what, ylim=(-0.02, 1.02))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def plot_unseen(
    model: Model, config: Config, captioner: Captioner, classifier: DigitCNN
) -> Figure:  # fmt: skip
    """Ten captions with an unseen pair, a row of eight images each, and in each what disagrees."""
    thirds, labels = (part.repeat_interleave(8, dim=0) for part in prompts_left_out(10, 0))
    images = sample(model, words := caption_words(thirds, labels), config)
    agrees = agreement(images, thirds, labels, captioner, classifier)[:, :-1].tolist()
    wrong = ["\n".join(np.array(ASKED[:-1])[~np.array(row)]) for row in agrees]
    names = [decode(caption) for caption in words[::8]]
    notes = {name: wrong[8 * k : 8 * k + 8] for k, name in enumerate(names)}
    return figures.plot_rows(dict(zip(names, images.split(8), strict=True)), notes=notes)


def plot_words(model: Model, config: Config) -> Figure:
    """The noise stays: a row of eight images for each word, and one for two words together."""
    rows, single = {}, [word for words in ATTRIBUTES.values() for word in words]
    for prompt in (f"{word} three" for word in [*single, "thin upright"]):
        words = encode(prompt).expand(8, -1)
        rows[prompt] = sample(model, words, replace(config, seed=config.seed + 1))
    return figures.plot_rows(rows)


def plot_samples(model: Model, config: Config) -> Figure:
    """Each digit with each single word: a row per digit, a column per word."""
    columns = [word for words in ATTRIBUTES.values() for word in words]
    words = torch.cat([encode(f"{word} {digit}") for digit in NUMBERS for word in columns])
    images = sample(model, words, config).split(len(columns))
    return figures.plot_rows(dict(zip(NUMBERS, images, strict=True)), columns)


def lessons(result: Result) -> list[str]:
    """What the figures teach, where they were measured."""
    measured = result.measured(
        f"{UNSEEN}: all four", f"{SEEN}: all four",
        "unseen less seen: all four", "unseen less seen: all four, ±",
        *(f"{UNSEEN}: {word}" for word in ATTRIBUTES),
    )  # fmt: skip
    if measured is None:
        return []
    held_out, seen, difference, to_each_side, width, stroke, slant = measured
    return [
        f"All four words agree in {held_out:.1%} of the images whose stroke and slant were never seen "
        f"together with their digit, and in {seen:.1%} of the others. Chance would give 0.4 %. The "
        f"difference is {100 * difference:.1f} points, with an interval of {100 * to_each_side:.1f} "
        f"points to each side (95 %). Word by word, unseen: width agrees in {width:.1%}, "
        f"stroke in {stroke:.1%}, slant in {slant:.1%}."
    ]


def run(config: Config) -> Result:
    """Write captions, train, measure; with --prompt or --sample-only draw from the checkpoint."""
    device = prepare(config.seed, config.device)
    config = config.if_quick(widths=(16, 32), epochs=1, num_samples=60, steps=5)
    if config.prompt is not None or config.sample_only:
        images = sample_from_checkpoint(config, device)
        return samples.sampled_only(SCRIPT, TITLE, PICTURES, config, device, images)
    trailing_steps(config.T, config.steps)  # refused now, not after the training
    data = load_for(config, device)
    if data.name not in (EMBEDDED, "mnist"):
        raise UserError(f"Captions are about digits: take {EMBEDDED} or mnist, not {data.name}.")
    result = start_result(SCRIPT, TITLE, SUMMARY, config, PICTURES, device, data)
    classifier = trained_classifier(data, config.output_dir, config.seed, config.quick)
    captioner = Captioner.fit(data.images, data.labels)
    thirds = captioner.thirds(data.images, data.labels)
    trainings, models = [], []
    for group in range(1 + config.crossover):
        training, model, share = train_without(group, config, data, thirds)
        trainings.append(training)
        models.append(model)
        name = "training images left out" + (", opposite pairs" if group else "")
        result.add_metric(name, share, len(data.images))
    found, images = draw_both(config, models, captioner, classifier)
    evaluate(result, found, len(models))
    seconds = sum(training.seconds_used for training in trainings)
    steps = sum(training.steps_done for training in trainings)
    result.add_metric("seconds of training", seconds, steps, unit="s")
    model = models[0]
    caption = (
        "Stroke and slant never seen together with this digit; not picked. In an image stands "
    )
    caption += "what is not found as asked."
    result.add_figure("unseen.png", plot_unseen(model, config, captioner, classifier), caption)
    caption = (
        "The same noise in each column. In each row another word: width, stroke, slant; then two."
    )
    result.add_figure("words.png", plot_words(model, config), caption)
    caption = "A prompt each, not picked: the word of the column and the digit of the row."
    result.add_figure("samples.png", plot_samples(model, config), caption)
    trainings[0].show_picture("samples", figures.grid(images[-samples.GRID :], columns=10))
    samples.write_samples(config.samples_file, images)
    return result.save(*lessons(result))


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
