"""Decoded images in memory that a process shares with the workers it forks.

A plain ``DataLoader`` forks new workers for every pass, and what they decoded would die with them:
a distilled set of a few thousand images would be decoded again in every one of 300 epochs. So the
decoded pixels lie in one anonymous shared mapping, made before any fork. It takes no memory until
it is written to, and no name in ``/dev/shm``, whose size containers limit to 64 MB. Spawned workers
cannot inherit it and keep a mapping of their own, as long as they live.

There is no lock, because a lock held by one thread while another one forks is held in the child for
ever. A place belongs to one row and every process writes the same bytes there, so two writers do
no harm; it remains to ensure that nobody sees the flag before the pixels.
"""

from __future__ import annotations

import mmap
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from hellofmt.loading.images import ArchiveImages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hellofmt.loading.images import UserImages


def fence() -> None:
    """Keep memory accesses before and after in this order, on machines that may reorder them.

    Releasing one lock and acquiring the next is such a barrier; both are local, so nothing waits.
    """
    for _ in range(2):
        with threading.Lock():
            pass


def _sealed(place: NDArray[np.uint8]) -> NDArray[np.uint8]:
    place.flags.writeable = False
    return place


class DecodedImages:
    """Pixels of the first rows of a dataset, as many as fit in a budget.

    Which rows have a place is fixed, so that a cyclic scan, which would always miss in a cache that
    evicts, hits for all of them.
    """

    def __init__(self, heights: NDArray[np.int64], widths: NDArray[np.int64], budget: int) -> None:
        """Plan places of so many bytes, for sizes (N,) in pixels; memory is taken as they fill."""
        self._shapes = np.stack([heights, widths], axis=1)
        sizes = 3 * heights * widths
        ends = np.cumsum(sizes)
        self._starts = ends - sizes
        self.rows = int(np.searchsorted(ends, budget, side="right"))
        pixels = int(ends[self.rows - 1]) if self.rows else 0
        # An empty mapping is an error.
        self._memory = np.frombuffer(mmap.mmap(-1, pixels + self.rows + 1), np.uint8)
        self._pixels, self._is_filled = self._memory[:pixels], self._memory[pixels:]

    def _place(self, row: int) -> NDArray[np.uint8]:
        height, width = (int(n) for n in self._shapes[row])
        start = int(self._starts[row])
        return self._pixels[start : start + 3 * height * width].reshape(height, width, 3)

    def get(self, row: int) -> NDArray[np.uint8] | None:
        """Return the pixels of a row, uint8 (H, W, 3), read-only; None if they are not here."""
        if row >= self.rows or not self._is_filled[row]:
            return None
        fence()
        return _sealed(self._place(row))

    def put(self, row: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Keep the pixels of a row if it has a place, and return them, from there if they have."""
        if row >= self.rows:
            return pixels
        np.copyto(self._place(row), pixels)
        fence()
        self._is_filled[row] = 1
        return _sealed(self._place(row))


class PixelCache:
    """Images of a dataset by row, each decoded once while it fits in a budget."""

    def __init__(self, images: ArchiveImages | UserImages, budget: int) -> None:
        """Plan a cache of so many bytes; it is empty at first, and again in a spawned worker."""
        self._images = images
        self._budget = budget
        self._forget()

    def _forget(self) -> None:
        # Images of the user have no size until they are read, so they get no places to share.
        self._shared: DecodedImages | None = None
        if isinstance(self._images, ArchiveImages):
            sizes = self._images.heights, self._images.widths
            self._shared = DecodedImages(*sizes, self._budget)
        self._own: dict[int, NDArray[np.uint8]] = {}
        self._own_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        """Pickle no pixels: each process decodes its own."""
        return {"_images": self._images, "_budget": self._budget}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore, empty."""
        self.__dict__.update(state)
        self._forget()

    def read(self, rows: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
        """Return images by row; those that are not here are read and decoded at once."""
        pixels: dict[int, NDArray[np.uint8]] = {}
        missing: list[int] = []
        for row in rows:
            known = self._own.get(row) if self._shared is None else self._shared.get(row)
            if known is None:
                missing.append(row)
            else:
                pixels[row] = known
        if missing:
            for row, decoded in zip(missing, self._images.read(missing), strict=True):
                pixels[row] = self._keep(row, decoded)
        return pixels

    def _keep(self, row: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the pixels, from the cache if they have a place in it."""
        if self._shared is not None:
            return self._shared.put(row, pixels)
        if self._own_bytes + pixels.nbytes <= self._budget:
            # A view of a larger buffer would keep all of it.
            self._own[row] = pixels = np.ascontiguousarray(pixels)
            self._own_bytes += pixels.nbytes
        return pixels
