"""Views of published methods by name, as the manifest states them.

A recipe of views belongs to the archive: its labels were fitted for such views, so whoever reads
the file gets them without being told. Training constants are elsewhere
(``hellofmt.student.recipes``).

What the manifest cannot state is not here: SRe2L's CIFAR views crop a zero-padded image, and a crop
of ours never leaves the stored image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hellofmt.archive.format.canonical import decimal_string
from hellofmt.archive.format.views import Views
from hellofmt.errors import UserInputError, printable
from hellofmt_kernels import MAX_SHUFFLE_FACTOR

if TYPE_CHECKING:
    from collections.abc import Sequence

# torchvision's RandomResizedCrop, which all of these use: bilinear, antialiased, 3/4 to 4/3.
_COMMON: Final[dict[str, Any]] = {
    "antialias": True,
    "crop_ratio": ["0.75", decimal_string(4 / 3)],
    "flip": "0.5",
    "interpolation": "bilinear",
}
_MIXED: Final[dict[str, Any]] = {"mix_alpha": "1.0", "mix_probability": "1.0"}

VIEW_RECIPES: Final[dict[str, dict[str, Any]]] = {
    # HeLlO (arXiv 2408.08201) trains on RDED's images; no code was released. SRe2L's crops with
    # RDED's shuffle is our reading.
    "hello": {"crop_scale": ["0.08", "1.0"], "mix": "cutmix"},
    # RDED (LINs-lab/RDED, validation/main.py): ShufflePatches(factor), crops of 1/factor to all of
    # the image, CutMix Beta(1, 1) of every batch. `crop_scale` depends on the factor.
    "rded": {"mix": "cutmix"},
    # SRe2L and FKD on ImageNet (VILA-Lab/SRe2L): crops of 0.08 to 1, CutMix Beta(1, 1).
    "sre2l": {"crop_scale": ["0.08", "1.0"], "mix": "cutmix"},
    # The same with MixUp Beta(0.8, 0.8), as SRe2L mixes small images.
    "sre2l-mixup": {"crop_scale": ["0.08", "1.0"], "mix": "mixup", "mix_alpha": "0.8"},
    # Crops and flips alone.
    "plain": {"crop_scale": ["0.08", "1.0"], "mix": "none"},
}
"""What each recipe adds to torchvision's random resized crop and flip."""

_SHUFFLED = ("hello", "rded")


def view_recipe(
    name: str,
    size: int,
    factor: int = 1,
    *,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
) -> Views:
    """Return the views of a published method.

    Args:
        name: ``"hello"``, ``"rded"``, ``"sre2l"``, ``"sre2l-mixup"`` or ``"plain"``.
        size: S, side of a view in pixels, >= 1.
        factor: patches per side of a composed image, 1 to 8; RDED takes 2 at 128 and 224 px and 1
            at 32 and 64 px. Patches are shuffled by ``hello`` and ``rded`` only.
        mean: subtracted from the student's images, never from a view that is labelled; by default
            ImageNet's.
        std: divides them, > 0.

    Returns:
        What ``Draft.views`` and a manifest hold.

    Raises:
        UserInputError: E_OPTION, an unknown name, or a number out of range.

    Example:
        >>> view_recipe("rded", 224).shuffle, view_recipe("rded", 224, factor=2).shuffle
        (1, 2)
    """
    chosen = VIEW_RECIPES.get(name)
    if chosen is None:
        text = f"unknown view recipe `{printable(name)}`; expected one of {', '.join(VIEW_RECIPES)}"
        raise UserInputError.make("E_OPTION", text)
    most = MAX_SHUFFLE_FACTOR if name in _SHUFFLED else 1
    if size < 1 or not 1 <= factor <= most:
        text = f"view recipe `{name}`; expected size >= 1 and a factor from 1 to {most}"
        raise UserInputError.make("E_OPTION", f"{text}, got {size} and {factor}")
    values = {**_COMMON, **({} if chosen["mix"] == "none" else _MIXED), **chosen}
    if name == "rded":
        values["crop_scale"] = [decimal_string(1 / factor), "1.0"]
    return Views(
        **values,
        mean=[decimal_string(v) for v in mean],
        shuffle=factor,
        size=size,
        std=[decimal_string(v) for v in std],
    )
