"""Keep bytes from the network for as long as a process and its forked workers live.

Without a cache folder each image of a remote archive would be fetched again in every epoch, and
again wherever it is a CutMix partner. So fetched images are written to a temporary file, each row
at a fixed place. The file has no name, so nothing is left behind however the process ends. It is
created before any fork, and the flags of filled places lie in shared memory, so this process and
its forked workers read what any of them fetched; spawned workers cannot.

Keeping them in memory was rejected: many gigabytes may not fit, and workers would not share them.
The file takes no room until it is written to, and never more than half of the free space.
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

SPOOL_BYTES: Final = 16 << 30
"""Largest size of a spool in bytes, if at least twice as much is free."""


class Spool:
    """Stored images by row, in an unnamed temporary file.

    Attributes:
        is_named: whether a copy in a spawned process reaches the same images.
        rows: number of rows, from the first on, that have a place.
        lock_fd: descriptor of the file, which all processes that share it can lock; -1 if none
            could be created.
    """

    is_named = False

    def __init__(self, sizes: NDArray[np.int64], digests: NDArray[np.uint8]) -> None:
        """Assign places to images of these sizes (N,) and SHA-256 (N, 32)."""
        ends = np.cumsum(sizes)
        self.lock_fd = -1
        self._starts = ends - sizes
        self._sizes = sizes
        self._digests = digests
        self.rows = 0
        try:
            with tempfile.TemporaryFile() as stream:
                # Forked processes inherit it.
                self.lock_fd = os.dup(stream.fileno())
            # The unnamed file is deleted when its last descriptor closes.
            close_with(self, self.lock_fd)
            free = free_bytes(tempfile.gettempdir())
            self.rows = int(np.searchsorted(ends, min(SPOOL_BYTES, free // 2), side="right"))
        except OSError:
            # No writable folder: keep nothing.
            self.rows = 0
        # mmap refuses an empty mapping.
        self._is_filled = np.frombuffer(mmap.mmap(-1, self.rows + 1), np.uint8)

    def has(self, row: int) -> bool:
        """Tell whether the bytes of a row are here."""
        return row < self.rows and bool(self._is_filled[row])

    def get(self, row: int) -> bytes | None:
        """Return the verified bytes of a row, or None."""
        if not self.has(row):
            return None
        try:
            data = read_at(self.lock_fd, int(self._sizes[row]), int(self._starts[row]))
        except OSError:
            return None
        # The file may have been damaged, or the flag may have become visible before the bytes.
        if hashlib.sha256(data).digest() != self._digests[row].tobytes():
            return None
        return data

    def put(self, row: int, data: bytes) -> None:
        """Keep the verified bytes of a row, if it has a place and the disk has room."""
        if row >= self.rows:
            return
        at, rest = int(self._starts[row]), memoryview(data)
        try:
            while rest:
                count = write_at(self.lock_fd, rest, at)
                at, rest = at + count, rest[count:]
        except OSError:
            return
        self._is_filled[row] = 1
