"""Build student networks by name: a few small ones, and everything in torchvision and timm.

Writing architectures is not our job, so a name is looked up in ``torchvision.models`` and then in
timm; ``torchvision:NAME`` and ``timm:NAME`` ask only one of them. The exceptions are in neither:
``cnn``, small enough to train on a laptop in seconds; ``convnet3``, the network that dataset
distillation has reported on small images since Zhao et al., "Dataset condensation with gradient
matching" (ICLR 2021); and ``resnet10w32`` and ``resnet10w16``, torchvision's basic blocks one per
stage at a half and a quarter of the usual width, which learn a hundred classes of 64 px images on a
processor in minutes.

A name means one network for every image size: ``resnet18`` is torchvision's, and loads its weights.
It shrinks an image by 4 before the first block, which leaves almost nothing of a 32 px image.
``resnet18-cifar``, and likewise every torchvision ResNet, has the usual stem for small images
instead: a 3x3 convolution with stride 1 and no pooling, as in RDED's evaluation (Sun et al., CVPR
2024). timm's networks are built as timm builds them, except that those which need the image size
get it.

To find out whether a network accepts an image size, it runs on torch's meta device, which computes
only shapes: a one-line error now instead of a stack trace at the first step.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from hellofmt.errors import UserInputError, did_you_mean, foreign_text, printable

SMALL_IMAGE_SIZE: Final = 64
"""Largest side of small images in pixels; these are evaluated without a crop."""

_RESNETS: Final = {"resnet10w16": 16, "resnet10w32": 32}

STUDENTS: Final = ("cnn", "convnet3", *_RESNETS)
"""Names of our networks; any other name is looked up in torchvision and timm."""

TIMM: Final = "timm:"
TORCHVISION: Final = "torchvision:"
"""Prefix of a name: look it up in this library only."""

CIFAR: Final = "-cifar"
"""Suffix of a torchvision ResNet's name: use the stem for small images."""

_RESNET_STARTS: Final = ("resnet", "resnext", "wide_resnet")

# Without auxiliary heads, which return a tuple in train mode. Asking for their slow initialisation
# avoids a warning.
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}

# Up to this side, a halving stem would leave the last block of a `SmallResNet` 2 pixels.
_FULL_STEM_SIZE: Final = 32


class SmallCnn(nn.Module):
    """Three 3x3 convolutions with batch normalisation, global mean pooling, one linear layer.

    94,986 parameters at 10 classes. Accepts squares of at least 4 pixels.
    """

    def __init__(self, classes: int) -> None:
        """Build the network."""
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in pairwise((3, 32, 64, 128)):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
        # The last convolution is followed by the mean.
        self.features = nn.Sequential(*layers[:-1])
        self.head = nn.Linear(128, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of normalised images (N, 3, S, S)."""
        return self.head(self.features(images).mean((2, 3)))


class ConvNet(nn.Module):
    """The ConvNet of dataset condensation: three blocks of 3x3 convolution, norm, ReLU and pooling.

    128 channels, mean pooling; published by Zhao et al. (ICLR 2021) with instance normalisation.
    With batch normalisation, as here, RDED evaluates it (``ConvNet-3-BN``). Accepts squares of at
    least 8 pixels.
    """

    def __init__(self, classes: int, size: int) -> None:
        """Build the network for images of ``size`` pixels a side."""
        super().__init__()
        if size < 8:
            raise ValueError(f"size: expected at least 8 pixels, got {size}")
        layers: list[nn.Module] = []
        for channels in (3, 128, 128):
            layers += [nn.Conv2d(channels, 128, 3, padding=1), nn.BatchNorm2d(128)]
            layers += [nn.ReLU(), nn.AvgPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(128 * (size // 8) ** 2, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of normalised images (N, 3, S, S)."""
        return self.head(self.features(images).flatten(1))


class SmallResNet(nn.Module):
    """ResNet-10 for small images: a 3x3 stem and four basic blocks (He et al., CVPR 2016).

    Widths are 1, 2, 4 and 8 times the first. Each block but the first halves the side. So does the
    stem for images above 32 px, where a full-size first block would take three quarters of the
    work. 1,252,100 parameters at 100 classes and width 32, 320,436 at width 16.
    """

    def __init__(self, classes: int, size: int, width: int = 32) -> None:
        """Build the network for images of ``size`` pixels a side."""
        from torchvision.models.resnet import BasicBlock

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


def torchvision_names() -> list[str]:
    """List the classification models of torchvision, which is imported only here and below."""
    from torchvision import models

    return models.list_models(module=models)


def _is_of_torchvision(name: str) -> bool:
    return name in torchvision_names()


def _is_resnet(name: str) -> bool:
    return name.startswith(_RESNET_STARTS) and _is_of_torchvision(name)


def _is_of_timm(name: str) -> bool:
    # Takes half a second, so only for names that nothing else knows.
    import timm

    plain = name.removeprefix(TIMM)
    # A tag after the dot names published weights, and with them an input rule.
    return timm.is_model(plain) and ("." not in plain or plain in timm.list_pretrained(plain))


def is_student(name: str) -> bool:
    """Tell whether ``build_student`` knows the name, without building the network."""
    if name.startswith(TORCHVISION):
        return _is_of_torchvision(name.removeprefix(TORCHVISION))
    if name.endswith(CIFAR):
        return _is_resnet(name.removesuffix(CIFAR))
    return name in STUDENTS or _is_of_torchvision(name) or _is_of_timm(name)


def family_of(name: str) -> list[str]:
    """List networks that a checkpoint may hold if it does not fit the ResNet ``name``.

    Every torchvision ResNet with either stem, ``name`` with the other stem first; empty for any
    other network. timm's ResNets of the same names have the same tensors.
    """
    plain = name.rpartition(":")[2].removesuffix(CIFAR)
    if not _is_resnet(plain):
        return []
    others = [other for other in torchvision_names() if _is_resnet(other) and other != plain]
    names = [other + stem for other in (plain, *others) for stem in ("", CIFAR)]
    return [other for other in names if other != name]


def small_image_advice(name: str, size: int) -> str | None:
    """Return one line of advice for training a stock ResNet on small images; else None."""
    plain = name.removeprefix(TORCHVISION)
    if size > SMALL_IMAGE_SIZE or not _is_resnet(plain):
        return None
    return (
        f"{name} shrinks {size} px images by 4 before its first block; {plain}{CIFAR} keeps more"
        " resolution"
    )


def similar_names(name: str) -> str:
    """Suggest a similar name, as ``did you mean `resnet18`?``, or return nothing."""
    import timm

    prefix = next((p for p in (TIMM, TORCHVISION) if name.startswith(p)), "")
    ours = torchvision_names()
    known = {TIMM: timm.list_models(), TORCHVISION: ours}.get(prefix) or [
        *STUDENTS,
        *ours,
        *(other + CIFAR for other in ours if _is_resnet(other)),
        *timm.list_models(),
    ]
    return did_you_mean(name, [prefix + other for other in known])


def _from_torchvision(name: str, classes: int, size: int) -> nn.Module:
    from torchvision import models

    options = dict(_OPTIONS.get(name, {}))
    if name.startswith("vit_"):
        options["image_size"] = size
    return models.get_model(name, weights=None, num_classes=classes, **options)


def _with_small_stem(name: str, classes: int, size: int) -> nn.Module:
    network = _from_torchvision(name, classes, size)
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
    """Build the network as its library builds it."""
    if name == "cnn":
        return SmallCnn(classes)
    if name == "convnet3":
        return ConvNet(classes, size)
    if name in _RESNETS:
        return SmallResNet(classes, size, _RESNETS[name])
    if is_student(name):
        if name.endswith(CIFAR):
            return _with_small_stem(name.removesuffix(CIFAR), classes, size)
        plain = name.removeprefix(TORCHVISION)
        if _is_of_torchvision(plain):
            return _from_torchvision(plain, classes, size)
        return _from_timm(name.removeprefix(TIMM), classes, size)
    text = (
        f"unknown network `{printable(name)}`; expected {', '.join(STUDENTS)} or a"
        " classification model of torchvision or timm"
    )
    raise UserInputError.make("E_OPTION", text, advice=similar_names(name))


def _check_size(network: nn.Module, classes: int, size: int) -> None:
    """Run the network on shapes alone; whatever it raises for images of this size is raised."""
    was_training = network.training
    network.eval()
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    images = torch.empty(2, 3, size, size, device="meta")
    try:
        with torch.no_grad():
            meta = {key: torch.empty_like(t, device="meta") for key, t in tensors.items()}
            logits: Any = functional_call(network, meta, (images,))
    except NotImplementedError:
        # That torch cannot trace an operation says nothing about the size.
        return
    finally:
        network.train(was_training)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (2, classes):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"expected logits (2, {classes}) of two images, got {shape}")


def build_student(name: str, classes: int, size: int, *, seed: int = 0) -> nn.Module:
    """Build a network with fresh weights that depend on the seed alone.

    Args:
        name: one of ``STUDENTS``, a classification model of torchvision (``"resnet18"``,
            ``"mobilenet_v2"``, ...), one of its ResNets with a stem for small images
            (``"resnet18-cifar"``), or a model of timm (``"vit_tiny_patch16_224"``, or
            ``"timm:resnet18"`` if torchvision has the name as well).
        classes: number of logits.
        size: side of the images in pixels.
        seed: seed of the weights; torch's global generator is left as it was.

    Returns:
        The network in train mode, float32, on the CPU.

    Raises:
        UserInputError: the name is unknown, or the network does not accept images of this size
            (E_OPTION).

    Example:
        >>> import torch
        >>> build_student("cnn", classes=3, size=16)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 3])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network = _made(name, classes, size)
            _check_size(network, classes, size)
        except UserInputError:
            raise
        except Exception as error:  # Catches whatever a library's constructor or network raises.
            raise UserInputError.make(
                "E_OPTION",
                f"student `{printable(name)}` cannot take {classes} classes of {size} px images:"
                f" {foreign_text(error)}",
            ) from error
        return network
