"""A row index that carries its epoch; nothing else reaches a persistent worker."""

from __future__ import annotations

from typing import Self


class EpochIndex(int):
    """Row of a dataset, together with the epoch in which it is read.

    Attributes:
        epoch: 0 <= epoch < 2**32.
        is_padding: True if the row repeats another one only to make the ranks' batches equally
            long.

    Example:
        >>> row = EpochIndex(7, epoch=3)
        >>> row + 0, row.epoch
        (7, 3)
    """

    epoch: int
    is_padding: bool

    def __new__(cls, row: int, epoch: int, is_padding: bool = False) -> Self:
        """Make the index of ``row`` in ``epoch``."""
        self = super().__new__(cls, row)
        self.epoch = epoch
        self.is_padding = is_padding
        return self

    def __reduce__(self) -> tuple[type[EpochIndex], tuple[int, int, bool]]:
        """Pickle the epoch and the flag along with the row."""
        return EpochIndex, (int(self), self.epoch, self.is_padding)
