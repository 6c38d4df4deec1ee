"""Decoded images on a GPU, or in memory beside it, and the views drawn from them.

The kernel's loops over a crop's pixels are as long as the largest image of the set needs: one far
larger than the rest costs every view time, though no longer memory.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

import hellofmt_kernels
from hellofmt.loading.pages import Pages, pages_of
from hellofmt.loading.views.table import SHOWN_COLUMNS
from hellofmt_kernels import ViewColumn, ViewForm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from hellofmt.loading.dataset import HelloDataset

#: Share of a GPU's free memory that resident images may take by default.
RESIDENT_SHARE = 0.5


def is_drawable(dataset: HelloDataset) -> bool:
    """Return whether ``hellofmt_kernels.views`` can draw these views."""
    heights, widths = dataset.sizes
    views = dataset.views
    if views.interpolation != "bilinear" or not heights.all():
        return False
    if views.shuffle <= 1:
        return True
    sides = np.concatenate([heights, widths])
    is_equal = (heights == heights[0]).all() and (widths == widths[0]).all()
    return bool(is_equal and (sides % views.shuffle == 0).all())


class Resident:
    """Decoded images on a device, or in memory beside it: unequal ones side by side on pages.

    A batch reads and decodes the images that no earlier one showed, so that the first batch of a
    large or remote archive does not wait for all of them.
    """

    def __init__(
        self, dataset: HelloDataset, device: torch.device, budget: int | Literal["auto"]
    ) -> None:
        self._heights, self._widths = dataset.sizes
        # One size of page for all batches: a kernel is compiled for it.
        self._page = int(self._heights.max()), int(self._widths.max())
        layout = pages_of(self._heights, self._widths, *self._page)
        self._views = dataset.views
        self._device = device
        if budget == "auto":
            free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
            budget = int(RESIDENT_SHARE * free)
        self._dataset = dataset
        self._is_filled = np.zeros(len(dataset), bool)
        self._layout: Pages | None = None
        #: Images beside the device, each at its own size.
        self._beside: dict[int, NDArray[np.uint8]] = {}
        if 3 * math.prod(layout.shape) <= budget:
            self._layout = layout
            self._pages = torch.zeros((*layout.shape, 3), dtype=torch.uint8, device=device)

    def _fill(self, rows: NDArray[np.int64]) -> None:
        """Read and decode those of ``rows`` that no earlier batch showed."""
        missing = rows[~self._is_filled[rows]]
        if not missing.size:
            return
        decoded = self._dataset.pixels_of(missing.tolist())
        if self._layout is None:
            self._beside.update(decoded)
        else:
            _put(self._pages, self._layout.places[missing], [decoded[r] for r in missing.tolist()])
        self._is_filled[missing] = True

    def _shown(self, used: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int64]]:
        """Pages on the device that hold the images used, and the place of each."""
        self._fill(used)
        if self._layout is not None:
            return self._pages, self._layout.places[used]
        layout = pages_of(self._heights[used], self._widths[used], *self._page)
        staged = torch.empty(
            (*layout.shape, 3), dtype=torch.uint8, pin_memory=self._device.type == "cuda"
        )
        _put(staged, layout.places, [self._beside[row] for row in used.tolist()])
        return staged.to(self._device, non_blocking=True), layout.places

    def draw(
        self, table: NDArray[np.int32], form: ViewForm, second: ViewForm | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Draw the views of a table, (N, 3, S, S) on the device, in one form or in two at once."""
        used, positions = np.unique(table[:, SHOWN_COLUMNS], return_inverse=True)
        images, places = self._shown(used.astype(np.int64))
        page, top, left = places[positions.reshape(-1, 2)].transpose(2, 0, 1)
        table = table.copy()
        table[:, SHOWN_COLUMNS] = page
        table[:, [ViewColumn.TOP, ViewColumn.PARTNER_TOP]] += top.astype(np.int32)
        table[:, [ViewColumn.LEFT, ViewColumn.PARTNER_LEFT]] += left.astype(np.int32)
        rows, size = torch.from_numpy(table), self._views.size
        antialias = bool(self._views.antialias)
        if second is not None:
            return hellofmt_kernels.view_pair(images, rows, size, form, second, antialias=antialias)
        views = hellofmt_kernels.views(
            images,
            rows,
            size,
            antialias=antialias,
            mean=form.mean,
            std=form.std,
            out_dtype=form.dtype,
            channels_last=form.is_channels_last,
        )
        return views, None


def _put(pages: Tensor, places: NDArray[np.int64], images: Sequence[NDArray[np.uint8]]) -> None:
    """Copy images to their places on pages."""
    for (page, top, left), image in zip(places.tolist(), images, strict=True):
        height, width = image.shape[:2]
        # A copy: torch refuses to promise that it will not write to what is read-only.
        pixels = torch.from_numpy(image.copy())
        pages[page, top : top + height, left : left + width] = pixels.to(pages.device)
