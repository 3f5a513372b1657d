"""Trained networks of torchvision, and the trained face detector of scikit-image.

Weights of networks come from a file, torch's cache, or a download. The face detector is in the package.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from imagelab.setup.runtime import UserError, is_of_the_machine
from imagelab.training.checkpoints import check_finite

ImageNetName = Literal["resnet18", "resnet50", "vgg16", "efficientnet_b0"]
CocoModel = Literal["faster-rcnn", "retinanet", "ssdlite"]
# A picture (H, W, 3) uint8 to boxes (n, 4) x1 y1 x2 y2 in pixels, labels (n,), and perhaps scores (n,).
Finder = Callable[[np.ndarray], dict[str, torch.Tensor]]
# Of ImageNet's pictures in [0, 1], red, green and blue.
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


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


class Logits(nn.Module):
    """A segmentation network of torchvision that gives its logits alone, not a dictionary."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)["out"]


def voc_segmentation(
    name: str, weights: Path | None, device: torch.device
) -> tuple[nn.Module, tuple[str, ...]]:
    """torchvision's "deeplabv3" (with a MobileNet) or "fcn" (with a ResNet-50) and its class names.

    In eval mode on `device`. Images (B, 3, H, W) in [0, 1] to logits (B, 21, H, W) of the background and
    Pascal VOC's classes. Raises UserError as `trained` does.
    """
    from torchvision.models import segmentation

    source, build = {
        "deeplabv3": (
            segmentation.DeepLabV3_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1,
            segmentation.deeplabv3_mobilenet_v3_large,
        ),
        "fcn": (
            segmentation.FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1,
            segmentation.fcn_resnet50,
        ),
    }[name]
    network = build(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    network = trained(network, name, source, weights)
    network.register_module("aux_classifier", None)  # it helps in training only
    model = Normalised(Logits(network), IMAGENET_MEAN, IMAGENET_STD)
    return model.eval().requires_grad_(False).to(device), tuple(source.meta["categories"])


def coco_mask_rcnn(weights: Path | None, device: torch.device) -> tuple[nn.Module, tuple[str, ...]]:
    """torchvision's Mask R-CNN with a ResNet-50, in eval mode on `device`, and COCO's class names.

    It takes a list of images (3, H, W) in [0, 1] of any size. For each it gives boxes (n, 4) x1 y1 x2 y2
    in pixels, labels (n,), scores (n,) in falling order, and masks (n, 1, H, W) in [0, 1]. Raises
    UserError as `trained` does.
    """
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights, maskrcnn_resnet50_fpn

    source = MaskRCNN_ResNet50_FPN_Weights.COCO_V1
    network = trained(
        maskrcnn_resnet50_fpn(weights=None, weights_backbone=None), "maskrcnn", source, weights
    )
    without_eps(network)
    return network.eval().requires_grad_(False).to(device), tuple(source.meta["categories"])


def without_eps(network: nn.Module) -> None:
    """Batch statistics without eps, as torchvision froze them while it trained its detectors."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = torch.finfo(torch.float32).tiny  # 0 is refused by torch 2.11


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
    model = Normalised(network, IMAGENET_MEAN, IMAGENET_STD)
    return model.eval().requires_grad_(False).to(device), tuple(source.meta["categories"])


def imagenet_resnet18(
    weights: Path | None, device: torch.device, trained_weights: bool = True
) -> tuple[nn.Module, tuple[str, ...]]:
    """ResNet-18, as `imagenet_network` gives it."""
    return imagenet_network("resnet18", weights, device, trained_weights)


def resnet18_backbone(weights: Path | None = None) -> tuple[nn.Module, nn.Module]:
    """torchvision's ResNet-18 without its last block, in two parts.

    One makes features (B, 128, H/8, W/8) of pictures in [−1, 1], one of these (B, 256, H/16, W/16).
    Its weights are random, or come from a file of torchvision's weights.
    """
    from torchvision.models import ResNet18_Weights, resnet18

    network = resnet18()
    if weights is not None:
        source = ResNet18_Weights.IMAGENET1K_V1
        trained(network, "ResNet-18", source, weights, option="--pretrained")
    layers = list(network.children())  # the eighth halves the size again
    mean, std = [2 * m - 1 for m in IMAGENET_MEAN], [2 * s for s in IMAGENET_STD]
    return Normalised(nn.Sequential(*layers[:6]), mean, std), layers[6]


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


def coco_detector(
    name: CocoModel, weights: Path | None, device: torch.device
) -> tuple[Finder, tuple[str, ...]]:
    """A detector of torchvision on `device`, for pictures of any size, and the names of COCO's classes.

    Faster R-CNN and RetinaNet have a ResNet-50 with a feature pyramid, SSDlite has a MobileNet. Raises
    UserError as `trained` does.
    """
    from torchvision.models import detection

    source, build = {
        "faster-rcnn": (
            detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1,
            detection.fasterrcnn_resnet50_fpn,
        ),
        "retinanet": (
            detection.RetinaNet_ResNet50_FPN_Weights.COCO_V1,
            detection.retinanet_resnet50_fpn,
        ),
        "ssdlite": (
            detection.SSDLite320_MobileNet_V3_Large_Weights.COCO_V1,
            detection.ssdlite320_mobilenet_v3_large,
        ),
    }[name]
    network = trained(build(weights=None, weights_backbone=None), name, source, weights)
    if name != "ssdlite":
        without_eps(network)
    network.eval().requires_grad_(False).to(device)

    def find(picture: np.ndarray) -> dict[str, torch.Tensor]:
        x = torch.from_numpy(picture.copy()).permute(2, 0, 1).to(device)
        return network([x.float() / 255])[0]

    return find, tuple(source.meta["categories"])


def face_cascade() -> Finder:
    """scikit-image's trained cascade for faces that look into the camera. It gives no scores.

    It slides windows of many sizes over the picture. In each, a few local binary patterns are tested in
    stages (after Viola and Jones 2001). It is fast because most windows fail in the first stages. The
    smallest window has a twelfth of the picture's shorter side.
    """
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade

    cascade = Cascade(lbp_frontal_face_cascade_filename())

    def find(picture: np.ndarray) -> dict[str, torch.Tensor]:
        side = min(picture.shape[:2])
        low = max(side // 12, 24)  # 24: the window of the training
        faces = []
        if side >= low:
            faces = cascade.detect_multi_scale(
                picture, scale_factor=1.2, step_ratio=1, min_size=(low, low), max_size=(side, side)
            )
        boxes = [[f["c"], f["r"], f["c"] + f["width"], f["r"] + f["height"]] for f in faces]
        return {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.zeros(len(boxes), dtype=torch.long),
        }

    return find


def trained(
    network: nn.Module, name: str, source, weights: Path | None, option: str = "--weights"
) -> nn.Module:
    """`network` with the weights of the file `weights`, or else with those of torchvision's `source`.

    The latter come from torch's cache or are downloaded. Raises UserError where that fails or where the
    file holds other weights; its sentence tells how to get the right ones, and to name them with the
    command's `option`.
    """
    how = f"get {source.url} on a machine that can, and give the file as {option} FILE"
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
        if is_of_the_machine(error):  # then no file is wrong
            raise
        problem = (
            f"{weights} does not hold the weights of {name}"
            if weights
            else f"The weights of {name} are not in torch's cache and could not be downloaded"
        )
        raise UserError(f"{problem}: {how}.") from error
    return network
