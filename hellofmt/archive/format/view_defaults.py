"""Views for images that come without view settings."""

from __future__ import annotations

from typing import Final

from hellofmt.archive.format.canonical import decimal_string
from hellofmt.archive.format.manifest import Views

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "LARGEST_DEFAULT_VIEW", "default_views"]

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
LARGEST_DEFAULT_VIEW: Final = 224
"""Largest side of a default view in pixels: what students on ImageNet are trained on."""


def default_views(size: int) -> Views:
    """Return default views: ``RandomResizedCrop`` and a flip, nothing mixed.

    Crops of 8 to 100 % of the area and 3/4 to 4/3 in aspect are torchvision's defaults; mean and
    standard deviation are ImageNet's. The literature trains students with them.

    Args:
        size: side of a view in pixels, >= 1.

    Returns:
        The views.
    """
    return Views(
        antialias=True,
        crop_ratio=[decimal_string(0.75), decimal_string(4 / 3)],
        crop_scale=["0.08", "1.0"],
        flip="0.5",
        interpolation="bilinear",
        mean=[decimal_string(value) for value in IMAGENET_MEAN],
        mix="none",
        mix_alpha="1.0",
        mix_probability="0.0",
        shuffle=1,
        size=size,
        std=[decimal_string(value) for value in IMAGENET_STD],
    )
