"""PGD, and training on it, against the loops that are usually written."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.ordinary import batches, small_cnn
from benchmarks.training import part, quietly
from imagelab.data.datasets import Dataset, load_dataset, unit
from imagelab.setup.runtime import generator
from imagelab.techniques.attacks import pgd
from imagelab.techniques.classifier import new_classifier
from studies import adversarial_training

EPSILON, STEPS = 0.3, 10


def attack(device: torch.device, quick: bool) -> Iterator[tuple]:
    """Images × steps per second of a PGD attack on the CNN, in batches of 250."""
    data = load_dataset("mnist-5k", "data").to(device)
    n = 250 if quick else 500
    model = new_classifier(data, 0).eval()
    images, labels = unit(data.test_images[:n]), data.test_labels[:n]

    def ours() -> None:
        pgd(model, images, labels, EPSILON, generator(0, "attack"), STEPS)

    def ordinary() -> None:
        for x, y in zip(images.split(250), labels.split(250), strict=True):
            ordinary_pgd(model, x, y)

    yield "PGD on the CNN", "images × steps", n * STEPS, ours, ordinary
    few, one = part(data, 512 if quick else 2560), part(data, 1)
    defence = adversarial_training.Defence(
        "PGD", epochs=1, epsilon=EPSILON, pgd_steps=2, batch_size=128, lr=3e-3, seed=0, resume=False
    )
    yield (
        "Training on PGD, 2 steps, batch 128",
        "images trained",
        len(few.images),
        quietly(
            lambda at: adversarial_training.train(
                defence, new_classifier(few, 0), few, one, at / "model.pth"
            )
        ),
        lambda: ordinary_training(few, 128, defence.lr, steps=2),
    )


def ordinary_training(data: Dataset, size: int, lr: float, steps: int) -> list[float]:
    """One epoch of the ordinary classifier's training on images that the ordinary PGD has changed."""
    model = small_cnn(len(data.classes))
    adam, losses = torch.optim.Adam(model.parameters(), lr=lr), []
    for images, labels in batches(data, size, signed=False):
        loss = F.cross_entropy(model(ordinary_pgd(model, images, labels, steps)), labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return losses


def ordinary_pgd(
    model: torch.nn.Module, x0: torch.Tensor, y: torch.Tensor, steps: int = STEPS
) -> torch.Tensor:
    """As it stands in most tutorials: gradients of all parameters, new tensors, float32."""
    x = x0 + torch.empty_like(x0).uniform_(-EPSILON, EPSILON)
    for _ in range(steps):
        x = x.clone().detach().contiguous()
        x.requires_grad = True
        loss = F.cross_entropy(model(x), y)
        model.zero_grad()
        loss.backward()
        x = x + 2.5 * EPSILON / steps * x.grad.data.sign()
        x = torch.clamp(x0 + torch.clamp(x - x0, -EPSILON, EPSILON), 0, 1)
    return x
