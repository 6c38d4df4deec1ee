"""What input a teacher expects: size, interpolation, crop, mean and standard deviation.

A teacher labels views of the data set, float32 in [0, 1], and brings its own rule. Views of another
size are resized to the teacher's, squeezed but not cropped: the crop is part of the view, and the
label is of all of it. Whole images, which its accuracy is measured on, are also cropped as the
teacher's publisher does.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
import torch
from torch import Tensor
from torch.nn import functional

from hellofmt.archive.format.canonical import decimal_value
from hellofmt.errors import UserInputError, foreign_text
from hellofmt.making import Square
from hellofmt.student.evaluate import evaluation_square

if TYPE_CHECKING:
    from hellofmt.archive.format.views import Views

INTERPOLATIONS: Final = ("bicubic", "bilinear", "nearest")

_Three = tuple[float, float, float]

_IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
_IMAGENET_STD: Final = (0.229, 0.224, 0.225)
_MOST_PIXELS: Final = 1 << 12


@dataclass(frozen=True)
class InputRule:
    """What a ``Teacher`` does to views in [0, 1] before its network sees them.

    Attributes:
        mean: of each channel, in [0, 1] units.
        std: of each channel, > 0; mean 0 and std 1 leave the views to a network that normalises
            inside.
        size: side in pixels that views are resized to; None takes them as they are.
        interpolation: one of ``INTERPOLATIONS``, antialiased.
        crop: share of a whole image's shorter side that is kept, in (0, 1]; None prepares whole
            images as students are evaluated.
        source: who says so.
    """

    mean: _Three = _IMAGENET_MEAN
    std: _Three = _IMAGENET_STD
    size: int | None = None
    interpolation: str = "bilinear"
    crop: float | None = None
    source: str = "ImageNet's mean and std"

    def __post_init__(self) -> None:
        """Check values, which may come from a file."""
        is_sound = (
            len(self.mean) == len(self.std) == 3
            and all(math.isfinite(value) and abs(value) < 1e9 for value in self.mean)
            # What becomes 0 in float32 would divide by it.
            and all(1e-9 <= value < 1e9 for value in self.std)
            and (self.size is None or 1 <= self.size <= _MOST_PIXELS)
            and self.interpolation in INTERPOLATIONS
            and (self.crop is None or 0 < self.crop <= 1)
        )
        if not is_sound:
            raise UserInputError.make(
                "E_TEACHER",
                f"input rule {self.text()}: expected 3 means, 3 stds > 0, 1 to {_MOST_PIXELS} px"
                " and a crop of at most 1",
            )

    @classmethod
    def of_views(cls, views: Views) -> InputRule:
        """Return the rule of a network that was trained on these very views."""
        mean, std = (
            cast("_Three", tuple(map(decimal_value, each))) for each in (views.mean, views.std)
        )
        return cls(mean, std, views.size, views.interpolation, source="as it was trained")

    @classmethod
    def from_json(cls, document: object) -> InputRule:
        """Return the rule that ``to_json`` gave.

        Raises:
            UserInputError: not such a document (E_TEACHER).
        """
        try:
            return msgspec.convert(document, cls)
        except msgspec.MsgspecError as error:
            raise UserInputError.make(
                "E_TEACHER", f"input rule of the teacher: {foreign_text(error)}"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Return the rule as JSON values."""
        return msgspec.to_builtins(self)

    def text(self) -> str:
        """Say it: ``input 224 px bicubic, mean 0.5 0.5 0.5, std 1 1 1 (timm's data config)``."""
        size = "as the views are" if self.size is None else f"{self.size} px {self.interpolation}"
        mean, std = (" ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std))
        return f"input {size}, mean {mean}, std {std} ({self.source})"

    def resized(self, views: Tensor) -> Tensor:
        """Return views (N, 3, S, S) at the teacher's size, in [0, 1]."""
        if self.size is None or tuple(views.shape[2:]) == (self.size, self.size):
            return views
        return _resize(views, (self.size, self.size), self.interpolation)

    def whole(self, side: int) -> Square:
        """Return how whole images are cut, as the publisher of the network evaluates it.

        Without a crop of its own, as students are evaluated; see ``evaluation_square``.

        Args:
            side: of the views in pixels, for a rule without a size.
        """
        if self.crop is None:
            return evaluation_square(side)
        return Square(self.size or side, self.crop, self.interpolation)


@dataclass(frozen=True)
class RuleChange:
    """What the user says of a teacher's input; None keeps what its rule says."""

    mean: _Three | None = None
    std: _Three | None = None
    size: int | None = None

    def __bool__(self) -> bool:
        """Whether anything is changed."""
        return self != RuleChange()

    def of(self, rule: InputRule) -> InputRule:
        """Return ``rule`` with the changes; a mean above 1, as of images to 255, is refused."""
        changed = {name: value for name, value in asdict(self).items() if value is not None}
        if not changed:
            return rule
        values = (*(self.mean or ()), *(self.std or ()))
        if max(values, default=0.0) > 1.0:
            raise UserInputError.make(
                "E_OPTION",
                f"mean and std of the teacher: expected numbers of images in [0, 1], got"
                f" {max(values):g}; divide those of images from 0 to 255 by 255",
            )
        return replace(
            rule,
            **changed,
            source=f"{rule.source}; {' and '.join(changed)} from the user",
        )


def _resize(images: Tensor, shape: tuple[int, int], interpolation: str) -> Tensor:
    if interpolation == "nearest":
        return functional.interpolate(images, shape, mode="nearest-exact")
    made = functional.interpolate(images, shape, mode=interpolation, antialias=True)
    # Bicubic weights overshoot; a picture does not.
    return torch.clamp(made, 0.0, 1.0)
