"""PGD of `imagelab.techniques.attacks` against the loop that is usually written."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from imagelab.data.datasets import load_dataset, unit
from imagelab.setup.runtime import generator
from imagelab.techniques.attacks import pgd
from imagelab.techniques.classifier import new_classifier

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


def ordinary_pgd(model: torch.nn.Module, x0: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """As it stands in most tutorials: gradients of all parameters, new tensors, float32."""
    x = x0 + torch.empty_like(x0).uniform_(-EPSILON, EPSILON)
    for _ in range(STEPS):
        x = x.clone().detach().contiguous()
        x.requires_grad = True
        loss = F.cross_entropy(model(x), y)
        model.zero_grad()
        loss.backward()
        x = x + 2.5 * EPSILON / STEPS * x.grad.data.sign()
        x = torch.clamp(x0 + torch.clamp(x - x0, -EPSILON, EPSILON), 0, 1)
    return x
