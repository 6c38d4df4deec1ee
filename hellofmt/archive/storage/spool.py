"""Bytes that came over the network, for as long as a process and the workers it forks live.

Without a cache folder each image of a remote archive would be fetched again in every epoch, and
once more wherever it is a CutMix partner. So what was fetched is written to a temporary file, each
row at its own place. The file has no name: nothing is left behind, however the process ends. It is
made before any fork, and the flags that say which places are filled lie in memory that is shared,
so forked workers read what this process fetched and the other way round; spawned ones cannot.

Memory was rejected as the place: a set of many gigabytes need not fit, and workers would not share
it. The file takes no room until it is written to, and never more than half of what is free.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from typing import TYPE_CHECKING, Final

import numpy as np

from hellofmt.archive.storage.local_files import free_bytes, read_at, write_at
from hellofmt.archive.storage.source import close_with

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SPOOL_BYTES", "Spool"]

SPOOL_BYTES: Final = 16 << 30
"""Most bytes of one spool, where more than twice as many are free."""


class Spool:
    """Stored images by row, in an unnamed temporary file.

    Attributes:
        rows: that many rows, the first ones, have a place.
        fd: the file; -1 if none could be made.
    """

    def __init__(self, sizes: NDArray[np.int64], digests: NDArray[np.uint8]) -> None:
        """Plan the places.

        Args:
            sizes: (N,) bytes of each image.
            digests: (N, 32) SHA-256 of each image.
        """
        ends = np.cumsum(sizes)
        self.fd = -1
        self._starts = ends - sizes
        self._sizes = sizes
        self._digests = digests
        self.rows = 0
        try:
            with tempfile.TemporaryFile() as stream:
                # A fork inherits it.
                self.fd = os.dup(stream.fileno())
            # The file goes with its last descriptor.
            close_with(self, self.fd)
            free = free_bytes(tempfile.gettempdir()) or 0
            self.rows = int(np.searchsorted(ends, min(SPOOL_BYTES, free // 2), side="right"))
        except OSError:
            # No folder to write to: nothing is kept.
            self.rows = 0
        # An empty mapping is an error.
        self._is_filled = np.frombuffer(mmap.mmap(-1, self.rows + 1), np.uint8)

    def has(self, row: int) -> bool:
        """Whether the bytes of a row are here."""
        return row < self.rows and bool(self._is_filled[row])

    def get(self, row: int) -> bytes | None:
        """The verified bytes of a row, or None."""
        if not self.has(row):
            return None
        try:
            data = read_at(self.fd, int(self._sizes[row]), int(self._starts[row]))
        except OSError:
            return None
        # Whatever happened to the file, and on machines where the flag was seen before the bytes.
        if hashlib.sha256(data).digest() != self._digests[row].tobytes():
            return None
        return data

    def put(self, row: int, data: bytes) -> None:
        """Keep the verified bytes of a row, if it has a place; a full disk keeps nothing."""
        if row >= self.rows:
            return
        at, rest = int(self._starts[row]), memoryview(data)
        try:
            while rest:
                count = write_at(self.fd, rest, at)
                at, rest = at + count, rest[count:]
        except OSError:
            return
        self._is_filled[row] = 1
