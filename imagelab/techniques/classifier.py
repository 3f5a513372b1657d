"""The small CNN that classifies images. Attacks are made on it, and it scores generated samples.

It is trained at its first use, on the data set of the run, and kept in `classifier_models/`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from imagelab.data.embedded import EMBEDDED
from imagelab.data.tensors import Dataset, unit
from imagelab.setup.runtime import autocast, channels_last
from imagelab.training.checkpoints import load_checkpoint, load_weights, resumes_on
from imagelab.training.loop import Observer, Training, no_observer, one_cycle

SCRIPT = "classifier"
FOLDER = "classifier_models"
# Changes a batch of training images (B, C, H, W) in [0, 1]; its random numbers come from the generator.
Change = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


class DigitCNN(nn.Module):
    """Conv 32 3×3, pool, Conv 64 3×3, pool, Dense 128, Dense `classes`.

    Images (B, C, H, W) in [0, 1] to logits (B, classes). The network normalises the images itself, so
    attacks work on pixels.
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
        """The 128 numbers before the last layer, (B, 128), for images (B, C, H, W) in [0, 1]."""
        x = (x - 0.13) / 0.31  # MNIST's mean and spread                             (B, C, 28, 28)
        # ReLU after pooling gives the same as before it, at a quarter of the cost.
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  #                                (B, 32, 14, 14)
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  #                                (B, 64, 7, 7)
        return F.relu(self.dense1(x.flatten(1)))  #                                  (B, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense2(self.features(x))  # logits                               (B, classes)


@dataclass(frozen=True)
class ClassifierConfig:
    """How the classifier is trained.

    After five epochs of MNIST it reads 99 % of the test images. The embedded data hold each digit in 14
    variations. There one epoch is enough; a second one adds half a point.
    """

    seed: int = 0
    epochs: int = 5
    batch_size: int = 128
    lr: float = 3e-3
    """Peak of Adam's learning rate. It rises over the first quarter of the steps, then falls to 0."""
    resume: bool = False


def usual_epochs(name: str) -> int:
    """Epochs on the data set `name`; more bring little."""
    return 1 if name == EMBEDDED else 5


def checkpoint_path(output_dir: Path, data: Dataset, quick: bool, name: str = "cnn") -> Path:
    """The checkpoint file of the classifier of these data. `name` is the variant's."""
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
    """The classifier for `data`, in eval mode on their device: from its checkpoint, or trained now.

    `change` is applied to each batch of training images; then the classifier needs a `name` of its own.
    A training that was stopped continues, or starts anew on another kind of device. A checkpoint of
    other data or of another seed is replaced. Raises UserError where the data have one class only, or
    where the checkpoint is damaged.
    """
    data.needs_two_classes()
    path = checkpoint_path(output_dir, data, quick, name)
    epochs = 1 if quick else epochs or usual_epochs(data.name)
    config = ClassifierConfig(seed=seed, epochs=epochs, batch_size=min(128, len(data.images)))
    model = new_classifier(data, seed)
    state = _matching_checkpoint(path, config, data)
    if state is None or state["epoch"] < config.epochs:
        resume = state is not None and resumes_on(state, data.images.device)
        train_classifier(model, data, replace(config, resume=resume), path, change)
    else:
        load_weights(model, state["model"]["classifier"], path)
    return model.eval().requires_grad_(False)


def new_classifier(data: Dataset, seed: int) -> DigitCNN:
    """An untrained classifier for `data`, the same for the same seed."""
    torch.manual_seed(seed)
    model = DigitCNN(data.shape, len(data.classes))
    return channels_last(model, data.images.device)


def train_classifier(
    model: nn.Module,
    data: Dataset,
    config: ClassifierConfig,
    path: Path,
    change: Change | None = None,
    after_epoch: Observer = no_observer,
) -> Training:
    """Minimise the cross-entropy by Adam, or continue from `path` with `config.resume`.

    `change` is applied to the images of each batch. `after_epoch` is called after each epoch; it changes
    nothing.
    """
    adam = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    model.train()
    training = Training(
        path, SCRIPT, config, data, networks={"classifier": model}, optimizers={"adam": adam},
        label="classifier", go_on="the same command goes on",
    )  # fmt: skip
    if config.resume:
        training.load()
    with training:
        for epoch in training.epochs():
            for batch in training.batches():
                x = unit(data.images[batch])  # (B, C, H, W) in [0, 1]
                if change is not None:
                    x = change(x, training.rng)
                adam.param_groups[0]["lr"] = config.lr * one_cycle(training.progress)
                with autocast(x.device):
                    loss = F.cross_entropy(model(as_unit(x)), data.labels[batch])
                adam.zero_grad()
                loss.backward()
                adam.step()
                training.log(loss=loss)
            after_epoch(training, epoch)
    return training


def _matching_checkpoint(path: Path, config: ClassifierConfig, data: Dataset) -> dict | None:
    """The checkpoint, if its settings and data are these. Raises UserError where it is damaged."""
    if not path.is_file():
        return None
    state = load_checkpoint(path, SCRIPT, data.images.device)
    same = {**state["config"], "resume": False} == {**vars(config), "resume": False}
    here = data.describe()
    return state if same and {**state["dataset"], "source": here["source"]} == here else None


@torch.no_grad()
def predict(model: nn.Module, images: torch.Tensor, batch_size: int = 250) -> torch.Tensor:
    """Class probabilities (N, classes) for images (N, C, H, W), uint8 or float in [0, 1]."""
    batches = images.split(batch_size)
    return torch.cat([model(as_unit(batch)).softmax(dim=1) for batch in batches])


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of images (N, C, H, W), as for `predict`, whose predicted class is their label (N,)."""
    return (predict(model, images).argmax(dim=1) == labels).float().mean().item()


def as_unit(images: torch.Tensor) -> torch.Tensor:
    """Images (N, C, H, W), uint8 or float in [0, 1], as float in [0, 1], channels last in memory."""
    images = unit(images) if images.dtype == torch.uint8 else images
    return images.contiguous(memory_format=torch.channels_last)


def digest(model: nn.Module) -> str:
    """A fingerprint of the weights: eight hexadecimal digits."""
    sha = hashlib.sha256()
    for value in model.state_dict().values():
        sha.update(value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:8]
