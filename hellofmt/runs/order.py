"""The order in which endless passes over a set visit its rows.

Training counts steps, not epochs, and a distilled set can be smaller than a batch. So batches are
filled across passes: position p of the endless stream is row ``order(epoch)[p mod N]`` of epoch
``p div N``, and the schedule never depends on N.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from hellofmt import rng

if TYPE_CHECKING:
    from numpy.typing import NDArray

_KEPT: Final = 2


class Order:
    """Endless passes over rows, each shuffled anew.

    The order of an epoch is computed once, when the first of its positions is asked for: 0.2 s and
    4 bytes a row at 1.28 M rows.
    """

    def __init__(self, seed: int, rows: int) -> None:
        """Shuffle ``rows`` >= 1 rows by ``seed``, as ``rng.order`` does."""
        self._seed, self._rows = seed, rows
        self._epochs: dict[int, NDArray[np.uint32]] = {}

    def positions(self, first: int, count: int) -> NDArray[np.int64]:
        """Return rows and epochs of positions ``first .. first + count - 1``: int64 (count, 2)."""
        out = np.empty((count, 2), np.int64)
        at = 0
        while at < count:
            epoch, start = divmod(first + at, self._rows)
            taken = self._order(epoch)[start : start + count - at]
            out[at : at + len(taken), 0] = taken
            out[at : at + len(taken), 1] = epoch
            at += len(taken)
        return out

    def _order(self, epoch: int) -> NDArray[np.uint32]:
        if epoch not in self._epochs:
            # A batch lies in two epochs at most, unless they are so short that nothing matters.
            while len(self._epochs) >= _KEPT:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = rng.order(self._seed, epoch, self._rows).astype(np.uint32)
        return self._epochs[epoch]
