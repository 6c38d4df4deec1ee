"""A pool of views: labels that are made once, kept in half precision, and used in later epochs.

A student need not see a new view in every epoch. With K views an image, epoch e shows view e mod K,
and after K epochs every label is known. Which view that is depends on (e mod K, row) alone, so
order, ranks and resuming are those of any run. Every label of a pool is rounded to float16, whether
it was kept or has just been made, so that neither the budget nor a restart changes what a student
sees; only the last bit of a few may differ, which some towers round otherwise in another batch.

The places lie in one mapping without a name in ``/dev/shm``, which containers limit to 64 MB.
Forked and spawned workers of one process share it, in every pass; it takes no memory until it is
written to. As in ``cache.py`` there is no lock: a place belongs to one view, and its flag is set
after the whole label is written. Only Linux can hand the mapping to spawned workers; elsewhere each
keeps labels of its own. So does each rank: which rank serves a row changes from epoch to epoch, and
asking the others for it would cost more than it saves on one machine and be impossible on several.
"""

from __future__ import annotations

import mmap
import os
from multiprocessing import reduction
from multiprocessing.context import get_spawning_popen
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hellofmt.loading.cache import fence

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor


class LabelPool:
    """Labels of the first views of every row, or embeddings, as many as fit in a budget.

    Which views have a place is fixed, as in ``DecodedImages``: all rows of view 0, then of view 1.

    Attributes:
        views: K, views of an image.
        width: numbers kept of a view, C of a label or D of an embedding.
        needed: bytes that all labels take.
        kept: bytes of those that have a place; the others are made every time.
    """

    def __init__(
        self, rows: int, views: int, width: int, *, budget: int, device: torch.device
    ) -> None:
        """Plan the places; memory is taken as they are filled, on a GPU with the first label."""
        self.views, self.width = views, width
        self._rows, self._device = rows, device
        self._places = min(rows * views, budget // (2 * width))
        self.needed, self.kept = 2 * width * rows * views, 2 * width * self._places
        self._map(None)

    def _map(self, handed: int | None) -> None:
        """Map the places: those that a parent process handed on, or new ones."""
        self._file = -1 if handed is None else handed
        self._labels: Tensor | None = None
        if self._device.type != "cpu":
            # Forked ranks, each with labels on a GPU of its own, must not share these.
            self._is_filled = np.zeros(self._places, np.uint8)
            return
        # An empty mapping is an error.
        size = self.kept + self._places + 1
        if handed is None and hasattr(os, "memfd_create"):
            self._file = os.memfd_create("labels")
            os.ftruncate(self._file, size)
        memory = mmap.mmap(self._file, size)
        self._is_filled = np.frombuffer(memory, np.uint8, self._places, self.kept)
        labels = np.frombuffer(memory, np.float16, self._places * self.width)
        self._labels = torch.from_numpy(labels.reshape(self._places, self.width))

    def __getstate__(self) -> dict[str, Any]:
        """Hand the places to a worker that is being spawned; any other copy starts empty."""
        state = {k: v for k, v in self.__dict__.items() if k not in ("_is_filled", "_labels")}
        is_handed = self._file >= 0 and get_spawning_popen()
        return state | {"_file": reduction.DupFd(self._file) if is_handed else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the places that were handed on, or new ones."""
        handed = state.pop("_file")
        self.__dict__.update(state)
        self._map(None if handed is None else handed.detach())

    def __del__(self) -> None:
        """Close the file; its pages live as long as they are mapped."""
        if getattr(self, "_file", -1) >= 0:
            os.close(self._file)

    def _places_of(self, rows: NDArray[np.int64], epochs: NDArray[np.int64]) -> NDArray[np.int64]:
        return epochs % self.views * self._rows + rows

    def has(self, rows: NDArray[np.int64], epochs: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which views have a label already, (N,); the arguments are those of ``labels``."""
        places = self._places_of(rows, epochs)
        known = places < self._places
        known[known] = self._is_filled[places[known]] != 0
        fence()
        return known

    def labels(
        self,
        rows: NDArray[np.int64],
        epochs: NDArray[np.int64],
        make: Callable[[NDArray[np.int64]], Tensor],
    ) -> Tensor:
        """Return the labels of views, (N, width) float16 on the device, and keep those made now.

        ``make`` is called once, with the positions in the batch of the views that nobody has
        labelled, each view once; it returns their labels, (n, width) on the device.
        """
        places = self._places_of(rows, epochs)
        is_known = self.has(rows, epochs)
        if self._labels is not None and is_known.all():
            return self._labels[self._at(places)]
        places, first, back = np.unique(places, return_index=True, return_inverse=True)
        is_known = is_known[first]
        known, new = np.flatnonzero(is_known), np.flatnonzero(~is_known)
        out = torch.empty((places.size, self.width), dtype=torch.float16, device=self._device)
        if self._labels is None:
            self._labels = out.new_empty((self._places, self.width))
        if known.size:
            out[self._at(known)] = self._labels[self._at(places[known])]
        if new.size:
            out[self._at(new)] = make(first[new]).to(torch.float16)
            new = new[places[new] < self._places]
            self._labels[self._at(places[new])] = out[self._at(new)]
            fence()
            self._is_filled[places[new]] = 1
        return out[self._at(back)]

    def _at(self, places: NDArray[np.int64]) -> Tensor:
        """Return indices where the labels are, without waiting for what is queued there."""
        return torch.from_numpy(places).to(self._device, non_blocking=True)
