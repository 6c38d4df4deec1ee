"""What is chosen, and how: the settings of a choice, and the choice."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Method = Literal["random", "rded", "coverage", "balanced"]
Crop = Literal["none", "easiest"]

METHODS: Final = ("random", "rded", "coverage", "balanced")

CROPS: Final = 5
"""Crops that are tried of each image, as in RDED."""


@dataclass(frozen=True)
class SelectSettings:
    """How images are chosen.

    Attributes:
        ipc: stored images per class.
        factor: cells per side of a stored image; RDED takes 2 from 128 px and 1 at 32 and 64 px.
        method: which images are chosen: ``random``, ``rded``, ``coverage`` or ``balanced``; see
            ``select_images``.
        crop: what is stored of an image: ``none`` stores it whole, ``easiest`` the one of five
            random crops that the teacher is surest of. None takes ``easiest`` for ``rded``, else
            ``none``.
        candidates: images per class that are looked at, drawn at random; RDED's scripts take 300.
        seed: seed of candidates and crops.

    Example:
        >>> SelectSettings(ipc=10, method="rded").is_cropped
        True
    """

    ipc: int
    factor: int = 1
    method: Method = "coverage"
    crop: Crop | None = None
    candidates: int = 300
    seed: int = 0

    @property
    def is_cropped(self) -> bool:
        """Whether crops are stored, and not whole images."""
        return self.method == "rded" if self.crop is None else self.crop == "easiest"

    @property
    def is_embedded(self) -> bool:
        """Whether the label function looks at every candidate."""
        return self.method in {"coverage", "balanced"}

    @property
    def scored(self) -> int:
        """How many squares of each candidate the teacher looks at."""
        return CROPS if self.is_cropped else int(self.method == "rded")


@dataclass(frozen=True)
class Selection:
    """The images that ``select_images`` chose, sorted by class: where their pixels are.

    Attributes:
        labels: int64 (classes * ipc,), ascending.
        rows: int64 (classes * ipc, factor**2), source row of each cell, row-major.
        crops: int32 (classes * ipc, factor**2, 4), the crop of each cell in its source image: top,
            left, height and width in pixels.
    """

    labels: NDArray[np.int64]
    rows: NDArray[np.int64]
    crops: NDArray[np.int32]


def mosaics(cells: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Join cells (N, factor**2, s, s, 3), row-major, to images (N, factor * s, factor * s, 3)."""
    count, size = cells.shape[0], cells.shape[2]
    factor = math.isqrt(cells.shape[1])
    parts = cells.reshape(count, factor, factor, size, size, 3).transpose(0, 1, 3, 2, 4, 5)
    return np.ascontiguousarray(parts.reshape(count, factor * size, factor * size, 3))
