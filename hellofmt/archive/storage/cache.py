"""A folder of bytes that came over the network, each under its own SHA-256.

The cache keeps what the manifest and the index have digests of: stored sections and image files. So
an entry needs neither trust nor expiry: its name says what it must contain, every read checks it,
and an entry that fails is deleted and fetched again. Archives that share images or a base share
entries.

Any number of processes may use one folder. An entry appears by a rename, complete or not at all;
when the folder outgrows its bound, the least recently used entries are removed. The cache never
raises: a full disk or a folder without permission only means that bytes are fetched again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path
from typing import Final

from hellofmt.archive.storage.local_files import open_to_read, temporary_path

CACHE_VARIABLE: Final = "HELLOFMT_CACHE"
"""Environment variable that names the folder if the caller does not."""
CACHE_BYTES: Final = 16 << 30
"""Largest size of a cache folder in bytes."""

# An eviction makes room for a while.
_KEPT_SHARE: Final = 0.9
_RECOUNT_SHARE: Final = 1 / 64


class DigestCache:
    """Bytes by digest, in a folder that the first ``put`` creates; beyond ``limit`` old ones go."""

    def __init__(self, folder: str | os.PathLike[str], limit: int = CACHE_BYTES) -> None:
        """Use ``folder``, which need not exist; other files in it are left alone."""
        self.folder = Path(folder)
        self.limit = limit
        # Unknown until the first `put` counts the folder.
        self._until_count = 0

    def get(self, digest: bytes, size: int) -> bytes | None:
        """Return the ``size`` bytes with this SHA-256, or None."""
        path = self._path(digest)
        try:
            with os.fdopen(open_to_read(path, follow=False), "rb") as stream:
                status = os.fstat(stream.fileno())
                if not stat.S_ISREG(status.st_mode) or status.st_size != size:
                    data = b""
                else:
                    data = stream.read(size)
                    # The time of last use; mounts without access times do not keep it.
                    os.utime(path)
        except OSError:
            return None
        if hashlib.sha256(data).digest() != digest:
            self._remove(path)
            return None
        return data

    def has(self, digest: bytes, size: int) -> bool:
        """Tell whether ``get`` would probably return the bytes, without reading them."""
        try:
            status = self._path(digest).lstat()
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size == size

    def put(self, digest: bytes, data: bytes) -> None:
        """Keep verified bytes, whose SHA-256 is ``digest``."""
        path = self._path(digest)
        temporary = temporary_path(path)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # No fsync: whatever a crash leaves is checked against its digest like everything else.
            with temporary.open("xb") as stream:
                stream.write(data)
            temporary.replace(path)
        except OSError:
            self._remove(temporary)
            return
        self._until_count -= len(data)
        if self._until_count <= 0:
            self._evict()
            self._until_count = max(1, int(self.limit * _RECOUNT_SHARE))

    def _path(self, digest: bytes) -> Path:
        name = digest.hex()
        return self.folder / "sha256" / name[:2] / name

    def _evict(self) -> None:
        """Remove the least recently used entries if the folder is too large."""
        entries: list[tuple[float, int, Path]] = []
        with contextlib.suppress(OSError):
            for folder in (self.folder / "sha256").iterdir():
                with contextlib.suppress(OSError):
                    for path in folder.iterdir():
                        status = path.lstat()
                        entries.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        if total <= self.limit:
            return
        for _, size, path in sorted(entries):
            self._remove(path)
            total -= size
            if total <= self.limit * _KEPT_SHARE:
                return

    @staticmethod
    def _remove(path: Path) -> None:
        with contextlib.suppress(OSError):
            path.unlink()
