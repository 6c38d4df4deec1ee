"""Decoded images on a GPU, and the views drawn from them.

The kernel reads images of one shape, and a distilled set has such. Images of unequal sizes, or more
of them than fit, are drawn on the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

import hellofmt_kernels
from hellofmt.loading.views.table import rows_shown

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from hellofmt.loading.dataset import HelloDataset
    from hellofmt_kernels import ViewForm

RESIDENT_SHARE: Final = 0.5
"""Share of a GPU's free memory that images may take."""


def is_drawable(dataset: HelloDataset, free: int | None = None) -> bool:
    """Return whether ``hellofmt_kernels.views`` can draw these views with ``free`` bytes."""
    heights, widths = dataset.sizes
    height, width = int(heights[0]), int(widths[0])
    is_equal = (heights == height).all() and (widths == width).all()
    if dataset.views.interpolation != "bilinear" or not (is_equal and height):
        return False
    if free is not None and 3 * height * width * len(dataset) > RESIDENT_SHARE * free:
        return False
    return height % dataset.views.shuffle == width % dataset.views.shuffle == 0


class Resident:
    """Decoded images on a device, each at its own row.

    A batch reads and decodes the images that no earlier one showed, so that the first batch of a
    large or remote archive does not wait for all of them.
    """

    def __init__(self, dataset: HelloDataset, device: torch.device) -> None:
        heights, widths = dataset.sizes
        shape = len(dataset), int(heights[0]), int(widths[0]), 3
        self._dataset = dataset
        self._images = torch.zeros(shape, dtype=torch.uint8, device=device)
        self._is_filled = np.zeros(len(dataset), bool)

    def _fill(self, rows: list[int]) -> None:
        """Read and decode those of ``rows`` that no earlier batch showed."""
        missing = [row for row in rows if not self._is_filled[row]]
        if missing:
            decoded = self._dataset.pixels_of(missing)
            pixels = torch.from_numpy(np.stack([decoded[row] for row in missing]))
            self._images[missing] = pixels.to(self._images.device)
            self._is_filled[missing] = True

    def draw(
        self, table: NDArray[np.int32], form: ViewForm, second: ViewForm | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Draw the views of a table, (N, 3, S, S) on the device, in one form or in two at once."""
        self._fill(rows_shown(table))
        rules = self._dataset.views
        shown = self._images, torch.from_numpy(table), rules.size
        antialias = bool(rules.antialias)
        if second is not None:
            return hellofmt_kernels.view_pair(*shown, form, second, antialias=antialias)
        views = hellofmt_kernels.views(
            *shown,
            antialias=antialias,
            mean=form.mean,
            std=form.std,
            out_dtype=form.dtype,
            channels_last=form.is_channels_last,
        )
        return views, None
