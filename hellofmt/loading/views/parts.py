"""Parts of views, each from one image: cut out of the stored image, and put into the view.

A view is one part, its own image, or two: the partner is pasted into a box or blended over it all.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from hellofmt_kernels import WEIGHT_ONE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

#: Columns of a view table that state one crop: row, top, left, height, width, flip.
CROP = 6


@dataclass(frozen=True)
class Parts:
    """Parts of views, each from one image.

    Attributes:
        targets: (P,) number of the view in the batch.
        crops: (P, 6) row, top, left, height, width, flip.
        shuffles: (P, 2) factor, permutation number.
        boxes: (P, 4) y0, x0, y1, x1, where in the view the part is drawn.
    """

    targets: NDArray[np.int64]
    crops: NDArray[np.int64]
    shuffles: NDArray[np.int64]
    boxes: NDArray[np.int64]

    def __getitem__(self, at: NDArray[np.int64]) -> Parts:
        return Parts(self.targets[at], self.crops[at], self.shuffles[at], self.boxes[at])


def put(
    pixels: NDArray[np.float32],
    target: int,
    box: Sequence[int],
    part: NDArray[np.float32],
    blend: NDArray[np.int64] | None,
) -> None:
    """Paste a part (3, h, w) into its view, or blend it by the share that the view keeps."""
    y0, x0, y1, x1 = box
    here = pixels[target, :, y0:y1, x0:x1]
    if blend is None:
        here[...] = part
    else:
        share = float(blend[target]) / WEIGHT_ONE
        here *= np.float32(share)
        here += part * np.float32(1.0 - share)


@lru_cache(maxsize=8)
def _permutations(factor: int) -> tuple[tuple[int, ...], ...]:
    return tuple(itertools.permutations(range(factor)))


def _spans(
    extent: int, factor: int, rank: int, start: int, length: int
) -> list[tuple[int, int, int]]:
    """Say where the lines start .. start + length - 1 of a shuffled image are stored.

    Of its ``extent`` lines, ``factor`` cells are permuted; a remainder stays at the end. Returns
    (place in the result, stored line, number of lines), without gaps.
    """
    if factor <= 1:
        return [(0, start, length)]
    cell = extent // factor
    order = _permutations(factor)[rank]
    spans: list[tuple[int, int, int]] = []
    at = start
    while at < start + length:
        k = at // cell if cell else factor
        end = min(start + length, (k + 1) * cell if k < factor else extent)
        stored = order[k] * cell + at % cell if k < factor else at
        spans.append((at - start, stored, end - at))
        at = end
    return spans


def spans_of(
    image: NDArray[np.uint8], crop: Sequence[int], shuffle: Sequence[int]
) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    """Say where the rows and columns of a crop of an image (H, W, 3) are stored; see ``_spans``."""
    _, top, left, height, width = crop
    factor, number = shuffle
    column_rank, row_rank = divmod(number, math.factorial(max(factor, 1)))
    rows = _spans(image.shape[0], factor, row_rank, top, height)
    return rows, _spans(image.shape[1], factor, column_rank, left, width)


def cut(
    image: NDArray[np.uint8],
    crop: Sequence[int],
    shuffle: Sequence[int],
    lines: NDArray[np.float32],
) -> None:
    """Write a crop in [0, 1] of uint8 (H, W, 3) into lines (height, at least 3 * width)."""
    flat = image.reshape(image.shape[0], -1)
    rows, columns = spans_of(image, crop, shuffle)
    for place_y, y, count_y in rows:
        for place_x, x, count_x in columns:
            np.divide(
                flat[y : y + count_y, 3 * x : 3 * (x + count_x)],
                np.float32(255.0),
                out=lines[place_y : place_y + count_y, 3 * place_x : 3 * (place_x + count_x)],
                dtype=np.float32,
            )
