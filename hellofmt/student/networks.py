"""Student networks by name: two small ones of the field, and everything torchvision has.

Architectures are not ours to write, so a name goes to ``torchvision.models`` first. The two
exceptions are not there: ``cnn``, small enough to train on a laptop in seconds, and ``convnet3``,
the network that dataset distillation has reported on small images since Zhao et al., "Dataset
condensation with gradient matching" (ICLR 2021).

torchvision's ResNets shrink an image by 4 before their first block, which leaves almost nothing of
a 32 px one. Up to 64 px they get the usual stem for small images instead: a 3x3 convolution with
stride 1 and no pooling, as RDED (Sun et al., CVPR 2024) evaluates them.
"""

from __future__ import annotations

from typing import Final

import torch
import torchvision
from torch import Tensor, nn

from hellofmt.errors import UserInputError, printable

__all__ = ["SMALL_IMAGE_SIZE", "STUDENTS", "ConvNet", "SmallCnn", "build_student"]

SMALL_IMAGE_SIZE: Final = 64
"""Largest side in pixels at which a ResNet gets the stem for small images."""

STUDENTS: Final = ("cnn", "convnet3")
"""Names of our own networks; any other name is looked up in torchvision."""


class SmallCnn(nn.Module):
    """Three 3x3 convolutions with batch normalisation, mean over the plane, one linear layer.

    94,986 parameters at 10 classes and the default widths. Takes squares of at least 4 pixels.
    """

    def __init__(self, classes: int, widths: tuple[int, int, int] = (32, 64, 128)) -> None:
        """Build the network.

        Args:
            classes: number of logits.
            widths: channels of the three convolutions.
        """
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for i, width in enumerate(widths):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            if i + 1 < len(widths):
                layers.append(nn.MaxPool2d(2))
            channels = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of normalised images (N, 3, S, S)."""
        return self.head(self.features(images).mean((2, 3)))


class ConvNet(nn.Module):
    """ConvNet of dataset condensation: ``depth`` blocks of 3x3 convolution, norm, ReLU, mean pool.

    Instance normalisation as published by Zhao et al. (ICLR 2021); batch normalisation as RDED
    evaluates it (``ConvNet-3-BN``).
    """

    def __init__(
        self, classes: int, size: int, *, depth: int = 3, width: int = 128, norm: str = "batch"
    ) -> None:
        """Build the network.

        Args:
            classes: number of logits.
            size: side of the images in pixels, at least ``2**depth``.
            depth: blocks; each halves the side.
            width: channels.
            norm: ``"batch"`` or ``"instance"``.

        Raises:
            ValueError: the size is too small for the depth, or the norm is unknown.
        """
        super().__init__()
        if size < 2**depth:
            raise ValueError(f"size: expected at least {2**depth} pixels, got {size}")
        if norm not in {"batch", "instance"}:
            raise ValueError(f"norm: expected `batch` or `instance`, got `{norm}`")
        layers: list[nn.Module] = []
        channels = 3
        for _ in range(depth):
            layers += [
                nn.Conv2d(channels, width, 3, padding=1),
                nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(width, width),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
            channels = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(width * (size >> depth) ** 2, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of normalised images (N, 3, S, S)."""
        return self.head(self.features(images).flatten(1))


def build_student(name: str, classes: int, size: int, *, seed: int = 0) -> nn.Module:
    """A network with fresh weights that depend on the seed alone.

    Args:
        name: ``"cnn"``, ``"convnet3"``, or a classification model of torchvision
            (``"resnet18"``, ``"mobilenet_v2"``, ...).
        classes: number of logits.
        size: side of the images in pixels.
        seed: of the weights; torch's global random state is left as it was.

    Returns:
        The network in train mode, float32, on the CPU.

    Raises:
        UserInputError: unknown name (E_OPTION).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "cnn":
            return SmallCnn(classes)
        if name == "convnet3":
            return ConvNet(classes, size)
        if name not in torchvision.models.list_models(module=torchvision.models):
            raise UserInputError.make(
                "E_OPTION",
                f"unknown student `{printable(name)}`; expected {', '.join(STUDENTS)} or a"
                " classification model of torchvision",
            )
        network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes)
        if isinstance(network, torchvision.models.ResNet) and size <= SMALL_IMAGE_SIZE:
            network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            # By name: torchvision declares this attribute a MaxPool2d.
            network.register_module("maxpool", nn.Identity())
        return network
