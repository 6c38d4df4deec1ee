"""Views for images that come without view settings, and changes of views."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from hellofmt.archive.format.canonical import decimal_string
from hellofmt.archive.format.manifest import UNSET, Views
from hellofmt.errors import UserInputError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
LARGEST_DEFAULT_VIEW: Final = 224
"""Largest side of a default view in pixels: what students on ImageNet are trained on."""


def default_views(size: int) -> Views:
    """Return default ``Views`` of ``size`` pixels: ``RandomResizedCrop`` and a flip, nothing mixed.

    Crops of 8 to 100 % of the area and 3/4 to 4/3 in aspect are torchvision's defaults; mean and
    standard deviation are ImageNet's. The literature trains students with them.

    Example:
        >>> views = default_views(224)
        >>> views.size, views.crop_scale, views.mix
        (224, ['0.08', '1.0'], 'none')
    """
    return Views(
        antialias=True,
        crop_ratio=[decimal_string(0.75), decimal_string(4 / 3)],
        crop_scale=["0.08", "1.0"],
        flip="0.5",
        interpolation="bilinear",
        mean=[decimal_string(value) for value in IMAGENET_MEAN],
        mix="none",
        shuffle=1,
        size=size,
        std=[decimal_string(value) for value in IMAGENET_STD],
    )


def changed_views(views: Views, changes: Mapping[str, Any]) -> Views:
    """Change some fields of views, and those that thereby gain or lose an effect.

    Mixing that begins is Beta(1, 1) in every view unless ``changes`` says otherwise.

    Args:
        views: the views to start from; not changed.
        changes: fields of ``Views`` by name.

    Returns:
        The new views.

    Raises:
        UserInputError: there is no such field (E_OPTION).

    Example:
        >>> from hellofmt.archive import default_views
        >>> mixed = changed_views(default_views(32), {"mix": "cutmix"})
        >>> mixed.mix_alpha, mixed.mix_probability
        ('1.0', '1.0')
        >>> changed_views(mixed, {"mix": "none"}) == default_views(32)
        True
    """
    unknown = sorted(set(changes) - set(Views.__struct_fields__))
    if unknown:
        raise UserInputError.make("E_OPTION", f"`views`: no field {printable(', '.join(unknown))}")
    implied: dict[str, Any] = {}
    if changes.get("mix", views.mix) == "none":
        implied |= {"mix_alpha": UNSET, "mix_probability": UNSET}
    elif views.mix == "none":
        implied |= {"mix_alpha": "1.0", "mix_probability": "1.0"}
    if changes.get("interpolation", views.interpolation) == "nearest":
        implied["antialias"] = UNSET
    elif views.antialias is UNSET:
        implied["antialias"] = True
    return msgspec.structs.replace(views, **{**implied, **changes})
