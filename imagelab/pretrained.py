"""torchvision's trained networks, their weights from a file, torch's cache, or a download."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import nn

from imagelab.runtime import UserError


class Normalised(nn.Module):
    """A network that takes images (B, 3, H, W) in [0, 1] and normalises them itself."""

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network((x - self.mean) / self.std)


def imagenet_resnet18(
    weights: Path | None, device: torch.device
) -> tuple[nn.Module, tuple[str, ...]]:
    """ResNet-18 in eval mode on `device`, for images in [0, 1], and its 1,000 class names.

    Raises UserError, saying how to get the weights, when they are neither in the file `weights`
    nor in torch's cache nor to be downloaded.
    """
    from torchvision.models import ResNet18_Weights, resnet18

    source = ResNet18_Weights.IMAGENET1K_V1
    how = f"get {source.url} on a machine that can, and give the file as --weights FILE"
    network = resnet18()
    try:
        if weights is None:
            state = source.get_state_dict(progress=True, check_hash=True)
        else:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except FileNotFoundError as error:
        raise UserError(f"There is no weights file {weights}: {how}.") from error
    except (
        OSError,
        RuntimeError,
        EOFError,
        TypeError,
        AttributeError,
        pickle.UnpicklingError,
    ) as error:
        problem = (
            f"{weights} does not hold the weights of resnet18"
            if weights
            else "The weights of resnet18 are not in torch's cache and could not be downloaded"
        )
        raise UserError(f"{problem}: {how}.") from error
    model = Normalised(network, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return model.eval().requires_grad_(False).to(device), tuple(source.meta["categories"])
