"""The 20 numbers that say what one view is: the row of the parameter table of `views`.

One int32 row of 80 bytes per view, complete in itself: the stored image, its crop and flip, the
partner's own crop and flip, how the two are mixed, and the shuffle of patches. A batch of rows is
one small copy to the device, and a row means the same in any batch: the partner's own mixing is
ignored, so that no row depends on another.

Rows are checked on the host, where they are made: reading them back from a device would stall it.
"""

from __future__ import annotations

import functools
import itertools
from enum import IntEnum
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "MAX_SHUFFLE_FACTOR",
    "VIEW_COLUMNS",
    "WEIGHT_ONE",
    "ViewColumn",
    "is_blended",
    "permutations",
    "validate_view_rows",
]

#: The MixUp weight 1.0: weights are counted in 2**-16.
WEIGHT_ONE = 65536

#: Number of columns of a row, the spare one included.
VIEW_COLUMNS = 20

#: 8! squared is the largest permutation number that fits in 31 bits.
MAX_SHUFFLE_FACTOR = 8


class ViewColumn(IntEnum):
    """Columns of a row of view parameters, int32 [20]; pixels unless said otherwise.

    A crop lies within the stored image *after* its shuffle. The box lies in the finished view,
    half open: rows Y0 to Y1 - 1, columns X0 to X1 - 1; it is empty if ``Y0 >= Y1`` or
    ``X0 >= X1``. The box shows the partner; outside it, a pixel is ``(WEIGHT * self +
    (65536 - WEIGHT) * partner) / 65536``. With an empty box and weight 65536 the partner's columns
    are ignored.

    SHUFFLE splits the stored image in SHUFFLE x SHUFFLE cells (0 or 1: none). PERMUTATION is
    ``column rank * SHUFFLE! + row rank``, each the lexicographic (Lehmer) rank of a permutation p
    that puts old cell p[k] at place k; columns first, then rows. It applies to the partner too.
    """

    IMAGE = 0
    TOP = 1
    LEFT = 2
    HEIGHT = 3
    WIDTH = 4
    FLIP = 5
    PARTNER_IMAGE = 6
    PARTNER_TOP = 7
    PARTNER_LEFT = 8
    PARTNER_HEIGHT = 9
    PARTNER_WIDTH = 10
    PARTNER_FLIP = 11
    Y0 = 12
    X0 = 13
    Y1 = 14
    X1 = 15
    WEIGHT = 16
    SHUFFLE = 17
    PERMUTATION = 18
    SPARE = 19


@functools.cache
def permutations(factor: int) -> Tensor:
    """List every permutation of 1 to 8 cells, in the lexicographic order of the ranks.

    Row r of (factor!, factor) names the old cell at each place.
    """
    return torch.tensor(list(itertools.permutations(range(factor))), dtype=torch.int64)


def is_blended(rows: Tensor) -> Tensor:
    """Whether each row needs its partner, (N,) bool: it has a box, or a weight below one."""
    box = (rows[:, ViewColumn.Y0] < rows[:, ViewColumn.Y1]) & (
        rows[:, ViewColumn.X0] < rows[:, ViewColumn.X1]
    )
    return box | (rows[:, ViewColumn.WEIGHT] != WEIGHT_ONE)


def _crop_problem(
    rows: Tensor, first: ViewColumn, shape: tuple[int, int, int], whose: str
) -> str | None:
    count, height, width = shape
    image, top, left, crop_height, crop_width, flip = rows[:, first : first + 6].unbind(1)
    checks = (
        ((image < 0) | (image >= count), image, f"{whose} image {{}}; expected 0 to {count - 1}"),
        (
            (top < 0) | (crop_height < 1) | (top + crop_height > height),
            torch.stack((top, crop_height), dim=1),
            f"{whose} crop (top, height) {{}}; expected within 0 to {height} px, not empty",
        ),
        (
            (left < 0) | (crop_width < 1) | (left + crop_width > width),
            torch.stack((left, crop_width), dim=1),
            f"{whose} crop (left, width) {{}}; expected within 0 to {width} px, not empty",
        ),
        ((flip < 0) | (flip > 1), flip, f"{whose} flip {{}}; expected 0 or 1"),
    )
    return _first_problem(rows, checks)


def _first_problem(rows: Tensor, checks: tuple[tuple[Tensor, Tensor, str], ...]) -> str | None:
    for is_bad, value, text in checks:
        if bool(is_bad.any()):
            at = int(is_bad.to(torch.uint8).argmax())
            return text.format(value[at].tolist())
    return None


def validate_view_rows(rows: Tensor, shape: tuple[int, int, int]) -> list[str]:
    """List the problems of view parameters for images of a shape.

    Args:
        rows: (N, 20) int32 on the CPU.
        shape: (M, H, W) of the stored images, pixels.

    Returns:
        At most one problem of the views themselves, one of the partners of mixed views, one of
        mixing and one of shuffling: the first row's of each.
    """
    rows = rows.to(torch.int64)
    _, height, width = shape
    problems = [_crop_problem(rows, ViewColumn.IMAGE, shape, "view")]
    mixed = rows[is_blended(rows)]
    problems.append(_crop_problem(mixed, ViewColumn.PARTNER_IMAGE, shape, "partner"))
    weight = rows[:, ViewColumn.WEIGHT]
    is_bad = (weight < 0) | (weight > WEIGHT_ONE)
    text = f"weight {{}}; expected 0 to {WEIGHT_ONE}"
    problems.append(_first_problem(rows, ((is_bad, weight, text),)))
    problems.append(_shuffle_problem(rows, height, width))
    return [problem for problem in problems if problem is not None]


def _shuffle_problem(rows: Tensor, height: int, width: int) -> str | None:
    factor, number = rows[:, ViewColumn.SHUFFLE], rows[:, ViewColumn.PERMUTATION]
    is_shuffled = factor > 1
    if not bool(is_shuffled.any()) and bool((factor >= 0).all()):
        return None
    cells = factor.clamp(1, MAX_SHUFFLE_FACTOR)
    orders = torch.tensor([len(permutations(f)) for f in cells.unique().tolist()])
    orders = orders[cells.unique(return_inverse=True)[1]]
    checks = (
        (
            (factor < 0) | (factor > MAX_SHUFFLE_FACTOR),
            factor,
            f"shuffle factor {{}}; expected 0 to {MAX_SHUFFLE_FACTOR}",
        ),
        (
            is_shuffled & ((height % cells != 0) | (width % cells != 0)),
            factor,
            f"shuffle factor {{}}; expected a divisor of {height} and {width} px",
        ),
        (
            is_shuffled & ((number < 0) | (number >= orders * orders)),
            torch.stack((factor, number), dim=1),
            "(shuffle factor, permutation number) {}; expected a number below factor! squared",
        ),
    )
    return _first_problem(rows, checks)
