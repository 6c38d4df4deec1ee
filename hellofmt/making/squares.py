"""Squares of real images as workers make them: 8 bits, one size, ready to be mixed or shown."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from hellofmt.errors import UserInputError
from hellofmt.loading.views.crops import CropDraws
from hellofmt.loading.views.parts import spans_of
from hellofmt.sources.crops import decode_centre, decode_crop

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from hellofmt.archive.format.views import Views
    from hellofmt.sources.source import Source


def shown(squares: Tensor, device: torch.device | str) -> Tensor:
    """Show uint8 (N, S, S, 3) to a network: float32 (N, 3, S, S) in [0, 1], channels last."""
    return squares.to(device, non_blocking=True).float().div_(255).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class ViewSquares:
    """The crops of random views, their patches shuffled, mirrored but not mixed; antialiased."""

    source: Source
    views: Views
    seed: int

    def __call__(self, places: NDArray[np.int64]) -> Tensor:
        """Make the squares of (row, epoch) pairs (M, 2): uint8 (M, S, S, 3)."""
        size = self.views.size
        rows, epochs = places[:, 0], places[:, 1]
        draws = CropDraws(self.views, seed=self.seed, epochs=epochs, rows=rows)
        out = np.empty((len(places), size, size, 3), np.uint8)
        for i, row in enumerate(rows.tolist()):
            shuffle = draws.shuffles[i]
            square = decode_crop(
                self.source,
                row,
                partial(draws.box, i),
                size,
                self.views.interpolation,
                arrange=None if shuffle[0] <= 1 else partial(_shuffled, shuffle),
            )
            out[i] = square[:, ::-1] if draws.flips[i] else square
        return torch.from_numpy(out)


@dataclass(frozen=True)
class Square:
    """How the middle of an image is cut; see ``decode_centre``.

    Attributes:
        size: side in pixels.
        share: share of the image's shorter side that is shown, in (0, 1].
        interpolation: ``nearest``, ``bilinear`` or ``bicubic``.
    """

    size: int
    share: float = 1.0
    interpolation: str = "bilinear"


@dataclass(frozen=True)
class CentreSquares:
    """The middle of each image, cut in one or several ways, to be measured on.

    An image that cannot be read and is left out is black, also where its class has no other; see
    ``Source.unreadable``. Whoever measures does not count it.
    """

    source: Source
    ways: tuple[Square, ...]

    def __call__(self, rows: NDArray[np.int64]) -> list[Tensor]:
        """Make the squares of rows (M,): for each way uint8 (M, S, S, 3)."""
        made: list[Tensor] = []
        for way in self.ways:
            squares = [self._square(row, way) for row in rows.tolist()]
            made.append(torch.from_numpy(np.stack(squares)))
        return made

    def _square(self, row: int, way: Square) -> NDArray[np.uint8]:
        source, size = self.source, way.size
        try:
            return decode_centre(
                source, row, size, share=way.share, interpolation=way.interpolation
            )
        except UserInputError:
            if not source.unreadable()[row]:
                raise
            return np.zeros((size, size, 3), np.uint8)


@dataclass(frozen=True)
class CropSquares:
    """Given crops of images, as squares of ``size`` pixels."""

    source: Source
    size: int
    interpolation: str = "bilinear"

    def __call__(self, crops: NDArray[np.int64]) -> Tensor:
        """Make the squares of (row, top, left, height, width) (M, 5): uint8 (M, S, S, 3)."""
        squares = [
            decode_crop(self.source, row, partial(_given, box), self.size, self.interpolation)
            for row, *box in cast("list[tuple[int, int, int, int, int]]", crops.tolist())
        ]
        return torch.from_numpy(np.stack(squares))


def _shuffled(shuffle: tuple[int, int], image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image with its patches shuffled: by factor, and number of the permutation."""
    out = np.empty_like(image)
    rows, columns = spans_of(image, (0, 0, 0, *image.shape[:2]), shuffle)
    for at_y, y, count_y in rows:
        for at_x, x, count_x in columns:
            out[at_y : at_y + count_y, at_x : at_x + count_x] = image[
                y : y + count_y, x : x + count_x
            ]
    return out


def _given(box: list[int], _height: int, _width: int) -> tuple[int, int, int, int]:
    """The crop that was asked for, whatever the image."""
    top, left, height, width = box
    return top, left, height, width
