"""torchvision's trained networks, their weights from a file, torch's cache, or a download."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from imagelab.setup.runtime import UserError
from imagelab.training.checkpoints import check_finite

ImageNetName = Literal["resnet18", "resnet50", "vgg16", "efficientnet_b0"]


class Normalised(nn.Module):
    """A network that takes images (B, 3, H, W) in [0, 1] and normalises them itself."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network((x - self.mean) / self.std)


def imagenet_network(
    name: ImageNetName, weights: Path | None, device: torch.device, trained_weights: bool = True
) -> tuple[nn.Module, tuple[str, ...]]:
    """An ImageNet network in eval mode on `device`, for images in [0, 1], and its 1,000 class names.

    Without `trained_weights` its weights are random. Raises UserError as `trained` does.
    """
    from torchvision.models import get_model, get_model_weights

    source = get_model_weights(name)["IMAGENET1K_V1"]
    network = get_model(name)
    if trained_weights:
        trained(network, name, source, weights)
    model = Normalised(network, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return model.eval().requires_grad_(False).to(device), tuple(source.meta["categories"])


def imagenet_resnet18(
    weights: Path | None, device: torch.device, trained_weights: bool = True
) -> tuple[nn.Module, tuple[str, ...]]:
    """ResNet-18, as `imagenet_network` gives it."""
    return imagenet_network("resnet18", weights, device, trained_weights)


def remove_last_layer(name: ImageNetName, model: nn.Module) -> int:
    """Take the last layer out of an ImageNet network: it then ends in features; their number."""
    path = {"resnet18": "fc", "resnet50": "fc", "vgg16": "classifier.6"}.get(name, "classifier.1")
    last = model.get_submodule(f"network.{path}")
    assert isinstance(last, nn.Linear)
    model.set_submodule(f"network.{path}", nn.Identity())
    return last.in_features


def blocks(name: ImageNetName, model: nn.Module) -> list[nn.Module]:
    """The blocks of an ImageNet network in order: its stages, each at one resolution or width.

    Five of a ResNet (the first convolution and four stages), six of VGG-16 (five times convolutions and
    pooling, and the dense layers), nine of EfficientNet-B0.
    """
    parts = dict(model.get_submodule("network").named_children())
    if name in ("resnet18", "resnet50"):
        stages = [parts[f"layer{k}"] for k in (1, 2, 3, 4)]
        return [nn.Sequential(parts["conv1"], parts["bn1"]), *stages]
    layers = list(parts["features"].children())
    if name == "efficientnet_b0":
        return layers
    ends = [k + 1 for k, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    stages = [nn.Sequential(*layers[a:b]) for a, b in itertools.pairwise([0, *ends])]
    return [*stages, parts["classifier"]]


def coco_ssdlite(weights: Path | None, device: torch.device) -> tuple[nn.Module, tuple[str, ...]]:
    """SSDlite320 in eval mode on `device` and the names of COCO's classes.

    It takes a list of images (3, H, W) in [0, 1] of any size. For each it gives boxes (n, 4) x1 y1 x2 y2
    in pixels, labels and scores. Raises UserError as `trained` does.
    """
    from torchvision.models.detection import (
        SSDLite320_MobileNet_V3_Large_Weights,
        ssdlite320_mobilenet_v3_large,
    )

    source = SSDLite320_MobileNet_V3_Large_Weights.COCO_V1
    network = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    network = trained(network, "SSDlite", source, weights)
    return network.eval().requires_grad_(False).to(device), tuple(source.meta["categories"])


def trained(network: nn.Module, name: str, source, weights: Path | None) -> nn.Module:
    """`network` with the weights of the file `weights`, or else with those of torchvision's `source`.

    The latter come from torch's cache or are downloaded. Raises UserError where that fails or where the
    file holds other weights; its sentence tells how to get the right ones.
    """
    how = f"get {source.url} on a machine that can, and give the file as --weights FILE"
    try:
        if weights is None:
            state = source.get_state_dict(progress=True, check_hash=True)
        else:
            if not Path(weights).is_file():  # a folder, or a pipe, which would be waited for
                raise UserError(f"There is no weights file {weights}: {how}.")
            state = torch.load(weights, map_location="cpu", weights_only=True)
            check_finite(state, weights)
        network.load_state_dict(state)
    except (
        OSError,
        RuntimeError,
        EOFError,
        TypeError,
        AttributeError,
        pickle.UnpicklingError,
    ) as error:
        problem = (
            f"{weights} does not hold the weights of {name}"
            if weights
            else f"The weights of {name} are not in torch's cache and could not be downloaded"
        )
        raise UserError(f"{problem}: {how}.") from error
    return network
