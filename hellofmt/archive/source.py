"""Where the bytes of an archive come from: positioned reads, nothing else.

No memory map: a file cut while it is mapped kills the process with a bus error, and a reader cannot
tell a file it may trust from one it may not. Positioned reads share no file position, so threads
and forked workers may use one source at once.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Protocol

from hellofmt.errors import HelloIOError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LocalSource", "Source"]


class Source(Protocol):
    """Random access to bytes of known length.

    Attributes:
        name: path or URL it can be opened by again.
        size: bytes.
    """

    name: str
    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``offset``.

        Raises:
            HelloIOError: they cannot be had (E_READ, E_SHORT_READ).
        """
        ...

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of several (offset, length) pairs, in as few round trips as possible.

        Raises:
            HelloIOError: they cannot be had (E_READ, E_SHORT_READ).
        """
        ...

    def close(self) -> None:
        """Release what is held; reading afterwards is an error."""
        ...


class LocalSource:
    """A regular file, read by ``pread``."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open ``path`` for reading.

        Args:
            path: a regular file.

        Raises:
            OSError: missing, a directory, not permitted.
            HelloIOError: neither file nor directory, such as a pipe or a device (E_READ).
        """
        self._fd = -1
        self.name = os.fspath(path)
        # Without O_NONBLOCK, opening a pipe would wait for a writer.
        self._fd = os.open(self.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self.size = _regular_size(self._fd, self.name)
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, length: int) -> bytes:
        """See ``Source.read``."""
        if self._fd < 0:
            raise HelloIOError.make("E_READ", f"the archive is closed: {printable(self.name)}")
        parts: list[bytes] = []
        at, end = offset, offset + length
        while at < end:
            try:
                part = os.pread(self._fd, end - at, at)
            except OSError as error:
                raise HelloIOError.make(
                    "E_READ", f"{printable(self.name)}: {error.strerror}", offset=at
                ) from error
            if not part:
                raise HelloIOError.make(
                    "E_SHORT_READ",
                    f"{printable(self.name)} became shorter while it was open; "
                    f"expected {end - at} bytes more",
                    offset=at,
                )
            parts.append(part)
            at += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See ``Source.read_ranges``."""
        return [self.read(offset, length) for offset, length in ranges]

    def close(self) -> None:
        """See ``Source.close``."""
        # Forgotten before it is closed: the number may belong to another file a moment later.
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        """A data set keeps its archive open for as long as it lives, and is never closed."""
        self.close()


def _regular_size(fd: int, name: str) -> int:
    """Bytes of an open regular file.

    Raises:
        OSError: a directory.
        HelloIOError: neither file nor directory (E_READ).
    """
    status = os.fstat(fd)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if not stat.S_ISREG(status.st_mode):
        raise HelloIOError.make(
            "E_READ", f"not a regular file: {printable(name)}; archives are read by position"
        )
    return status.st_size
