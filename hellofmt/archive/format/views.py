"""Views: their settings in the manifest, the rules between these, their defaults and changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from hellofmt.archive.format.canonical import decimal_string
from hellofmt.archive.format.fields import (
    Closed,
    DecimalPair,
    DecimalString,
    DecimalTriple,
    Interpolation,
    Positive,
    Problem,
    exactly,
    in_range,
)
from hellofmt.archive.format.limits import IMAGE_SIDE
from hellofmt.errors import UserInputError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
LARGEST_DEFAULT_VIEW: Final = 224
"""Largest side of a default view in pixels: what students on ImageNet are trained on."""


class Views(Closed, frozen=True):
    """How a view is made from a stored image; the label function was fitted to views like these.

    ``size``: side of the square view in pixels. ``crop_scale``: area fraction, ``crop_ratio``:
    width / height, both ``[low, high]``. ``flip``, ``mix_probability``: probabilities.
    ``mix_alpha``: Beta(alpha, alpha); it and the probability are absent where ``mix`` is ``none``,
    ``antialias`` is where the nearest pixel is taken. ``shuffle``: cells per side of the patch
    shuffle, 1 for none. ``mean`` and ``std`` normalise the student's images, never the view that is
    labelled.

    Example:
        ``default_views`` and ``view_recipe`` make them.
    """

    crop_ratio: DecimalPair
    crop_scale: DecimalPair
    flip: DecimalString
    interpolation: Interpolation
    mean: DecimalTriple
    mix: Literal["none", "cutmix", "mixup"]
    shuffle: Positive
    size: Positive
    std: DecimalTriple
    antialias: bool | UnsetType = UNSET
    mix_alpha: DecimalString | UnsetType = UNSET
    mix_probability: DecimalString | UnsetType = UNSET


def view_problems(views: Views) -> Iterator[Problem]:
    """The rules between the settings of views."""
    smooth, mixes = views.interpolation != "nearest", views.mix != "none"
    yield from exactly("views.antialias", views.antialias, smooth, "unless `nearest`")
    yield from exactly("views.mix_alpha", views.mix_alpha, mixes, "with mixing")
    yield from exactly("views.mix_probability", views.mix_probability, mixes, "with mixing")
    for name, pair, high in (
        ("crop_scale", views.crop_scale, 1.0),
        ("crop_ratio", views.crop_ratio, 10000.0),
    ):
        for i, text in enumerate(pair):
            yield from in_range(f"views.{name}.{i}", text, 0.0, high, open_low=True)
        if float(pair[0]) > float(pair[1]):
            yield Problem(f"views.{name}", "value", "expected low <= high")
    yield from in_range("views.flip", views.flip, 0.0, 1.0)
    for name, high in (("mix_probability", 1.0), ("mix_alpha", 1000.0)):
        text = getattr(views, name)
        if text is not UNSET:
            yield from in_range(f"views.{name}", text, 0.0, high, open_low=True)
    for i, text in enumerate(views.std):
        yield from in_range(f"views.std.{i}", text, 0.0, 1e9, open_low=True)
    if views.size > IMAGE_SIDE:
        yield Problem("views.size", "value", f"expected at most {IMAGE_SIDE}")
    if views.shuffle > views.size:
        yield Problem("views.shuffle", "value", "more cells than pixels")
    # 8! squared permutations of columns and rows are the most that an int32 can number.
    if views.shuffle > 8:
        yield Problem("views.shuffle", "value", "expected at most 8")


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
