"""The small CNN that reads the images: attacks are made against it, samples are scored with it.

It is trained on the data set in use at its first use and cached in `classifier_models/`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from imagelab.data.datasets import EMBEDDED, Dataset, unit
from imagelab.setup.runtime import autocast
from imagelab.training.checkpoints import load_checkpoint, load_weights
from imagelab.training.loop import Training, one_cycle

SCRIPT = "classifier"
FOLDER = "classifier_models"
# What is done to a batch of images (B, C, H, W) in [0, 1] before it is learnt from.
Change = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


class DigitCNN(nn.Module):
    """Conv 32 3×3, pool, Conv 64 3×3, pool, Dense 128, Dense `classes`.

    Takes images (B, C, H, W) in [0, 1]; the normalisation is inside, so that an attack works in
    pixel space.
    """

    num_features = 128

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.dense1 = nn.Linear(64 * (height // 4) * (width // 4), self.num_features)
        self.dense2 = nn.Linear(self.num_features, classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The 128 numbers before the last layer."""
        x = (x - 0.13) / 0.31  # MNIST's mean and spread                             (B, C, 28, 28)
        # ReLU after the pooling is the same as before it, at a quarter of the cost.
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  #                                (B, 32, 14, 14)
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  #                                (B, 64, 7, 7)
        return F.relu(self.dense1(x.flatten(1)))  #                                  (B, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense2(self.features(x))  # logits                               (B, classes)


@dataclass(frozen=True)
class ClassifierConfig:
    """How the classifier is trained. Five epochs of MNIST read its test images at 99 %; its embedded
    part, each digit of it in 14 variations, is learnt in one (a second brings half a point)."""

    seed: int = 0
    epochs: int = 5
    batch_size: int = 128
    lr: float = 3e-3
    """Peak of Adam's learning rate: it climbs over the first quarter of the steps, then falls to 0."""
    resume: bool = False


def usual_epochs(name: str) -> int:
    """Passes over the data set `name` after which more bring little."""
    return 1 if name == EMBEDDED else 5


def checkpoint_path(output_dir: Path, data: Dataset, quick: bool, name: str = "cnn") -> Path:
    return Path(output_dir) / FOLDER / f"{data.file_name}_{name}{'_quick' if quick else ''}.pth"


def trained_classifier(
    data: Dataset,
    output_dir: Path,
    seed: int = 0,
    quick: bool = False,
    name: str = "cnn",
    change: Change | None = None,
    epochs: int | None = None,
) -> DigitCNN:
    """The classifier for `data`, in eval mode on its device: from the cache, else trained now.

    One that learns from changed images needs a `name` of its own in the cache. A training that was
    stopped goes on where it was; a cached one for other data or another seed is trained anew.
    """
    data.needs_two_classes()
    path = checkpoint_path(output_dir, data, quick, name)
    epochs = 1 if quick else epochs or usual_epochs(data.name)
    config = ClassifierConfig(seed=seed, epochs=epochs, batch_size=min(128, len(data.images)))
    model = new_classifier(data, seed)
    state = _cached(path, config, data)
    if state is None or state["epoch"] < config.epochs:
        resume = state is not None
        config = ClassifierConfig(**{**vars(config), "resume": resume})
        train_classifier(model, data, config, path, change=change,
                         go_on="the same command goes on")  # fmt: skip
    else:
        load_weights(model, state["model"]["classifier"], path)
    return model.eval().requires_grad_(False)


def new_classifier(data: Dataset, seed: int) -> DigitCNN:
    """An untrained classifier for `data`, the same for the same seed."""
    torch.manual_seed(seed)
    model = DigitCNN(data.shape, len(data.classes))
    return model.to(data.images.device, memory_format=torch.channels_last)


def train_classifier(
    model: nn.Module,
    data: Dataset,
    config,
    path: Path,
    script: str = SCRIPT,
    optimizer: torch.optim.Optimizer | None = None,
    change: Change | None = None,
    **more,
) -> Training:
    """Cross-entropy under a learning rate that rises to `config.lr` and falls; Adam unless told.

    `change` is done to the images of each batch; `more` goes to Training.
    """
    device = data.images.device
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    model.train()
    run = Training(path, script, config, data, {"classifier": model}, {"adam": optimizer},
                   label="classifier", **more)  # fmt: skip
    with run:
        for _ in run.epochs():
            for batch in run.batches():
                optimizer.param_groups[0]["lr"] = config.lr * one_cycle(run.progress)
                images = unit(data.images[batch])
                if change is not None:
                    images = change(images, run.rng)
                images = images.contiguous(memory_format=torch.channels_last)
                with autocast(device):
                    loss = F.cross_entropy(model(images), data.labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.log(loss=loss)
    return run


def _cached(path: Path, config: ClassifierConfig, data: Dataset) -> dict | None:
    """The checkpoint if it is of this configuration and these data; a damaged one is an error."""
    if not path.is_file():
        return None
    state = load_checkpoint(path, SCRIPT, data.images.device)
    same = {k: v for k, v in state["config"].items() if k != "resume"} == {
        k: v for k, v in vars(config).items() if k != "resume"
    }
    here = data.describe()
    return state if same and {**state["dataset"], "source": here["source"]} == here else None


@torch.no_grad()
def predict(model: DigitCNN, images: torch.Tensor, chunk: int = 250) -> torch.Tensor:
    """Class probabilities (N, classes) for images (N, C, H, W), uint8 or float in [0, 1]."""
    return torch.cat([model(as_unit(part)).softmax(dim=1) for part in images.split(chunk)])


def accuracy(model: DigitCNN, images: torch.Tensor, labels: torch.Tensor) -> float:
    return (predict(model, images).argmax(dim=1) == labels).float().mean().item()


def as_unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 or float images as float in [0, 1], channels last."""
    images = unit(images) if images.dtype == torch.uint8 else images
    return images.contiguous(memory_format=torch.channels_last)


def digest(model: nn.Module) -> str:
    """Eight hexadecimal digits that name these very weights."""
    sha = hashlib.sha256()
    for value in model.state_dict().values():
        sha.update(value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:8]
