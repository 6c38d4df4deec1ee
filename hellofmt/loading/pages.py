"""Where images of unequal size lie on pages of one size, many to a page.

A kernel reads images of one shape, and one picture of 4000 x 3000 pixels among ten thousand
thumbnails would give each of them a frame of that size. Here small ones share a page: a view's
crop lies inside its own image, so all that a page changes about a view is where its crop begins.
Images of equal size get a page each, which is the plain case.

Pages are filled by shelves: sorted by height, side by side, the next shelf below the first image's
height. Packing that saves more (skylines, by area) was rejected: it is slower, and images of
similar size, which are the usual ones, gain nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Pages:
    """Places of images.

    Attributes:
        shape: number of pages, and their height and width, pixels.
        places: int64 (N, 3): page, top and left of each image.
    """

    shape: tuple[int, int, int]
    places: NDArray[np.int64]


def pages_of(
    heights: NDArray[np.int64], widths: NDArray[np.int64], height: int, width: int
) -> Pages:
    """Lay images of (N,) ``heights`` and ``widths``, pixels, out on pages, none over another.

    Example:
        >>> import numpy as np
        >>> pages_of(np.array([2, 4, 2]), np.array([3, 6, 3]), 4, 6)
        Pages(shape=(2, 4, 6), places=array([[1, 0, 0],
               [0, 0, 0],
               [1, 0, 3]]))
    """
    places = np.empty((heights.size, 3), np.int64)
    page = top = left = shelf = 0
    order = np.argsort(-heights, kind="stable")
    for row, tall, wide in zip(
        order.tolist(), heights[order].tolist(), widths[order].tolist(), strict=True
    ):
        if left + wide > width:
            top, left = top + shelf, 0
        if left == 0:
            if top + tall > height:
                page, top = page + 1, 0
            shelf = tall
        places[row] = page, top, left
        left += wide
    return Pages((page + 1, height, width), places)
