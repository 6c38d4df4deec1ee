"""Decoded images on a GPU, or in pinned memory beside it, and the views drawn from them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

import hellofmt_kernels
from hellofmt.loading.views.table import SHOWN_COLUMNS
from hellofmt_kernels import ViewForm

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from hellofmt.loading.dataset import HelloDataset

__all__ = ["RESIDENT_SHARE", "Resident", "is_drawable"]

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
    """Decoded images on a device, or in pinned memory beside it, each in the largest frame.

    A batch reads and decodes the images that no earlier one showed, so that the first batch of a
    large or remote archive does not wait for all of them.
    """

    def __init__(
        self, dataset: HelloDataset, device: torch.device, budget: int | Literal["auto"]
    ) -> None:
        heights, widths = dataset.sizes
        count = len(dataset)
        # A crop lies inside its own image, so what fills up the frame is never read.
        shape = (count, int(heights.max()), int(widths.max()), 3)
        self._views = dataset.views
        self._device = device
        if budget == "auto":
            free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
            budget = int(RESIDENT_SHARE * free)
        self._is_resident = math.prod(shape) <= budget
        if self._is_resident:
            self._images = torch.zeros(shape, dtype=torch.uint8, device=device)
        else:
            is_pinned = device.type == "cuda"
            self._images = torch.zeros(shape, dtype=torch.uint8, pin_memory=is_pinned)
        self._dataset = dataset
        self._is_filled = np.zeros(count, bool)

    def _fill(self, rows: NDArray[np.int64]) -> None:
        """Read and decode those of ``rows`` that no earlier batch showed."""
        missing = rows[~self._is_filled[rows]]
        if not missing.size:
            return
        decoded = self._dataset.pixels_of(missing.tolist())
        shape = (missing.size, *self._images.shape[1:])
        frames = torch.zeros(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        pixels = frames.numpy()
        for frame, row in zip(pixels, missing.tolist(), strict=True):
            height, width = decoded[row].shape[:2]
            frame[:height, :width] = decoded[row]
        where = self._images.device
        places = torch.from_numpy(missing).to(where)
        self._images.index_copy_(0, places, frames.to(where, non_blocking=True))
        self._is_filled[missing] = True

    def draw(
        self, table: NDArray[np.int32], form: ViewForm, second: ViewForm | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Draw the views of a table, (N, 3, S, S) on the device, in one form or in two at once."""
        images = self._images
        used, places = np.unique(table[:, SHOWN_COLUMNS], return_inverse=True)
        self._fill(used.astype(np.int64))
        if not self._is_resident:
            table = table.copy()
            table[:, SHOWN_COLUMNS] = places.reshape(-1, 2)
            staged = images.new_empty(
                (used.size, *images.shape[1:]), pin_memory=self._device.type == "cuda"
            )
            torch.index_select(images, 0, torch.from_numpy(used.astype(np.int64)), out=staged)
            images = staged.to(self._device, non_blocking=True)
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
