"""Student networks by name: three small ones, and everything torchvision and timm have.

Architectures are not ours to write, so a name goes to ``torchvision.models`` first and to timm
next; ``timm:NAME`` asks timm alone, for a name that both know. The exceptions are in neither:
``cnn``, small enough to train on a laptop in seconds; ``convnet3``, the network that dataset
distillation has reported on small images since Zhao et al., "Dataset condensation with gradient
matching" (ICLR 2021); and ``resnet10w32`` and ``resnet10w16``, torchvision's basic blocks one per
stage at a half and a quarter of the usual width, which learn a hundred classes of 64 px images on a
processor in minutes.

torchvision's ResNets shrink an image by 4 before their first block, which leaves almost nothing of
a 32 px one. Up to 64 px they get the usual stem for small images instead: a 3x3 convolution with
stride 1 and no pooling, as RDED (Sun et al., CVPR 2024) evaluates them. timm's networks are taken
as timm makes them, but for the side of the images where they ask for it.

Whether a network takes images of a size is found out by running it, on torch's meta device, which
computes shapes and nothing else: a sentence now instead of a stack trace at the first step.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torchvision
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torchvision.models.resnet import BasicBlock

from hellofmt.errors import UserInputError, printable

__all__ = [
    "SMALL_IMAGE_SIZE",
    "STUDENTS",
    "ConvNet",
    "SmallCnn",
    "SmallResNet",
    "build_student",
    "is_student",
]

SMALL_IMAGE_SIZE: Final = 64
"""Largest side in pixels at which a ResNet gets the stem for small images."""

_RESNETS: Final = {"resnet10w16": 16, "resnet10w32": 32}

STUDENTS: Final = ("cnn", "convnet3", *_RESNETS)
"""Names of our own networks; any other name is looked up in torchvision and timm."""

_TIMM: Final = "timm:"

# Auxiliary heads would give a tuple in train mode; both would warn that their own slow
# initialisation is to be asked for.
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}

# Up to here a stem that halves the side would leave the last block of a `SmallResNet` 2 pixels.
_FULL_STEM_SIZE: Final = 32


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


class SmallResNet(nn.Module):
    """ResNet-10 for small images: a 3x3 stem and four basic blocks (He et al., CVPR 2016).

    Widths 1, 2, 4 and 8 times the first; each block but the first halves the side, and so does the
    stem of images above 32 px, where a full-size first block would cost three quarters of the
    network. 1,252,100 parameters at 100 classes and width 32, 320,436 at width 16.
    """

    def __init__(self, classes: int, size: int, width: int = 32) -> None:
        """Build the network.

        Args:
            classes: number of logits.
            size: side of the images in pixels.
            width: channels of the stem and the first block.
        """
        super().__init__()
        stride = 2 if size > _FULL_STEM_SIZE else 1
        self.conv1 = nn.Conv2d(3, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = [BasicBlock(width, width)]
        channels = width
        for _ in range(3):
            down = nn.Sequential(
                nn.Conv2d(channels, 2 * channels, 1, stride=2, bias=False),
                nn.BatchNorm2d(2 * channels),
            )
            blocks.append(BasicBlock(channels, 2 * channels, stride=2, downsample=down))
            channels *= 2
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of normalised images (N, 3, S, S)."""
        features = self.blocks(functional.relu(self.bn1(self.conv1(images))))
        return self.head(features.mean((2, 3)))


def _is_of_torchvision(name: str) -> bool:
    return name in torchvision.models.list_models(module=torchvision.models)


def _is_of_timm(name: str) -> bool:
    # Half a second, so only for names that nothing else knows.
    import timm

    return timm.is_model(name.removeprefix(_TIMM))


def is_student(name: str) -> bool:
    """Whether ``build_student`` knows the name; nothing is built."""
    return name in STUDENTS or _is_of_torchvision(name) or _is_of_timm(name)


def _from_torchvision(name: str, classes: int, size: int) -> nn.Module:
    options = dict(_OPTIONS.get(name, {}))
    if name.startswith("vit_"):
        options["image_size"] = size
    network: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=classes, **options
    )
    if isinstance(network, torchvision.models.ResNet) and size <= SMALL_IMAGE_SIZE:
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        # By name: torchvision declares this attribute a MaxPool2d.
        network.register_module("maxpool", nn.Identity())
    return network


def _from_timm(name: str, classes: int, size: int) -> nn.Module:
    import timm

    try:
        return timm.create_model(name, num_classes=classes, img_size=size)
    except TypeError:
        # Convolutional networks take any side and know no such argument.
        return timm.create_model(name, num_classes=classes)


def _made(name: str, classes: int, size: int) -> nn.Module:
    """The network as its library makes it.

    Raises:
        UserInputError: no library has it (E_OPTION).
    """
    if name == "cnn":
        return SmallCnn(classes)
    if name == "convnet3":
        return ConvNet(classes, size)
    if name in _RESNETS:
        return SmallResNet(classes, size, _RESNETS[name])
    if _is_of_torchvision(name):
        return _from_torchvision(name, classes, size)
    if _is_of_timm(name):
        return _from_timm(name.removeprefix(_TIMM), classes, size)
    raise UserInputError.make(
        "E_OPTION",
        f"unknown student `{printable(name)}`; expected {', '.join(STUDENTS)} or a"
        " classification model of torchvision or timm",
    )


def _check_size(network: nn.Module, classes: int, size: int) -> None:
    """Run the network on shapes alone.

    Raises:
        Exception: whatever it raises for images of this size.
        ValueError: its output is not one logit per class.
    """
    was_training = network.training
    network.eval()
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    images = torch.empty(2, 3, size, size, device="meta")
    try:
        with torch.no_grad():
            meta = {key: torch.empty_like(t, device="meta") for key, t in tensors.items()}
            logits: Any = functional_call(network, meta, (images,))
    except NotImplementedError:
        # An operation that torch cannot trace says nothing about the size.
        return
    finally:
        network.train(was_training)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (2, classes):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"expected logits (2, {classes}) of two images, got {shape}")


def build_student(name: str, classes: int, size: int, *, seed: int = 0) -> nn.Module:
    """A network with fresh weights that depend on the seed alone.

    Args:
        name: one of ``STUDENTS``, a classification model of torchvision (``"resnet18"``,
            ``"mobilenet_v2"``, ...) or of timm (``"vit_tiny_patch16_224"``, or ``"timm:resnet18"``
            where torchvision has the name as well).
        classes: number of logits.
        size: side of the images in pixels.
        seed: of the weights; torch's global random state is left as it was.

    Returns:
        The network in train mode, float32, on the CPU.

    Raises:
        UserInputError: unknown name, or a network that does not take images of this size
            (E_OPTION).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network = _made(name, classes, size)
            _check_size(network, classes, size)
        except UserInputError:
            raise
        except Exception as error:  # Whatever a library's constructor or network raises.
            raise UserInputError.make(
                "E_OPTION",
                f"student `{printable(name)}` cannot take {classes} classes of {size} px images:"
                f" {printable(error)}",
            ) from error
        return network
