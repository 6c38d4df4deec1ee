"""Sources of an archive's bytes: positioned reads, nothing else.

Memory maps were rejected: truncating a mapped file kills the process with a bus error, and a reader
cannot tell which files to trust. Positioned reads share no file position, so threads and forked
workers may use one source at once.
"""

from __future__ import annotations

import bisect
import os
import re
import weakref
from abc import ABC, abstractmethod
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hellofmt.archive.storage.local_files import open_regular, read_at
from hellofmt.errors import HelloIOError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

_URL: Final = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*::)*[A-Za-z][A-Za-z0-9+.-]*://")
# Reading a gap of one page costs less than a system call.
_LOCAL_GAP: Final = 4096
_MERGED_BYTES: Final = 8 << 20


def is_url(path: object) -> bool:
    """Tell whether ``path`` is a string with a scheme, such as ``https://`` or ``tar://``."""
    return isinstance(path, str) and _URL.match(path) is not None


def display_name(name: str) -> str:
    """Make ``name`` safe for messages: a URL without user, password, query and fragment."""
    if not is_url(name):
        return name
    from urllib.parse import urlsplit, urlunsplit

    shown: list[str] = []
    for part in name.split("::"):
        try:
            url = urlsplit(part)
        except ValueError:
            # Not a URL after all; which part of it is secret cannot be told.
            shown.append(part.partition("://")[0] + "://...")
            continue
        host = url.netloc.rpartition("@")[2]
        shown.append(urlunsplit((url.scheme, host, url.path, "", "")) if url.scheme else part)
    return "::".join(shown)


class Source(ABC):
    """Random access to bytes of known length.

    Attributes:
        name: path or URL that opens it again.
        size: length in bytes.
        is_remote: whether wrong bytes may be a transmission error, worth a second request.
    """

    name: str
    size: int
    is_remote: bool

    @abstractmethod
    def read(self, offset: int, length: int) -> bytes:
        """Read exactly ``length`` bytes from ``offset``, or raise E_READ or E_SHORT_READ."""

    @abstractmethod
    def read_ranges(self, ranges: Sequence[tuple[int, int]], *, exact: bool = False) -> list[bytes]:
        """Read several (offset, length) pairs, in any order, in as few round trips as possible.

        ``exact`` fetches no byte between two ranges, even where that would save a round trip.
        """

    def forget(self) -> None:  # noqa: B027 - a file keeps nothing
        """Drop bytes kept in memory, after they turned out to be wrong."""

    def describe_change(self) -> str:
        """Describe evidence that the file was replaced since it was opened; empty if none."""
        return ""

    @abstractmethod
    def close(self) -> None:
        """Release the file; reading afterwards is an error."""


class LocalSource(Source):
    """A regular file, read by position."""

    is_remote = False

    def __init__(self, path: str | os.PathLike[str], *, keeps_open: bool = True) -> None:
        """Open a regular file for reading.

        Unless ``keeps_open``, every read opens the file again, and a file that was replaced
        meanwhile fails at its digests.
        """
        self.name = os.fspath(path)
        self._fd, self.size = open_regular(self.name)
        # A process may change its directory.
        self._path = "" if keeps_open else str(Path(self.name).absolute())
        # A data set keeps its archive open for as long as it lives and never closes it. ``__del__``
        # may run at exit, after ``os`` was emptied, and would then report a spurious error.
        self._closing = close_with(self, self._fd)
        if self._path:
            self._closing()

    def read(self, offset: int, length: int) -> bytes:
        """See ``Source.read``."""
        with self._descriptor() as fd:
            return self._read(fd, offset, length)

    @contextmanager
    def _descriptor(self) -> Generator[int]:
        """The descriptor that is held, or one for as long as this takes."""
        if self._fd < 0:
            raise HelloIOError.make("E_READ", f"the archive is closed: {printable(self.name)}")
        if not self._path:
            yield self._fd
            return
        try:
            fd, _ = open_regular(self._path)
        except OSError as error:
            raise self._fault("E_READ", f": {error.strerror}") from error
        try:
            yield fd
        finally:
            os.close(fd)

    def _read(self, fd: int, offset: int, length: int) -> bytes:
        parts: list[bytes] = []
        at, end = offset, offset + length
        while at < end:
            try:
                part = read_at(fd, end - at, at)
            except OSError as error:
                raise self._fault("E_READ", f": {error.strerror}", at) from error
            if not part:
                text = f" became shorter while it was open; expected {end - at} bytes more"
                raise self._fault("E_SHORT_READ", text, at)
            parts.append(part)
            at += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _fault(self, code: str, text: str, offset: int | None = None) -> HelloIOError:
        return HelloIOError.make(code, f"{printable(self.name)}{text}", offset=offset)

    def read_ranges(self, ranges: Sequence[tuple[int, int]], *, exact: bool = False) -> list[bytes]:
        """See ``Source.read_ranges``."""
        with self._descriptor() as fd:
            return read_merged(ranges, partial(self._read, fd), 0 if exact else _LOCAL_GAP)

    def close(self) -> None:
        """See ``Source.close``."""
        # Cleared before it is closed: the number may belong to another file a moment later.
        self._fd = -1
        self._closing()


def close_with(owner: object, fd: int) -> weakref.finalize[..., object]:
    """Close ``fd`` with its ``owner`` or when the result is called; at exit the system does it."""
    closing = weakref.finalize(owner, os.close, fd)
    # Threads may still read while the interpreter ends.
    closing.atexit = False
    return closing


def merge_ranges(ranges: Sequence[tuple[int, int]], gap: int) -> list[tuple[int, int]]:
    """Merge (offset, length) pairs into fewer, larger ones that cover them, in file order.

    Between two that are merged lie at most ``gap`` unneeded bytes; none becomes longer than 8 MiB
    that was not before.
    """
    merged: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if merged:
            start, size = merged[-1]
            end = max(start + size, offset + length)
            if offset <= start + size + gap and end - start <= max(_MERGED_BYTES, size):
                merged[-1] = start, end - start
                continue
        merged.append((offset, length))
    return merged


def read_merged(
    ranges: Sequence[tuple[int, int]], read: Callable[[int, int], bytes], gap: int
) -> list[bytes]:
    """Read every range, neighbours in one read; see ``merge_ranges``."""
    if len(ranges) < 2:
        return [read(offset, length) for offset, length in ranges]
    merged = merge_ranges(ranges, gap)
    return cut_ranges(ranges, merged, [read(offset, length) for offset, length in merged])


def cut_ranges(
    ranges: Sequence[tuple[int, int]],
    merged: Sequence[tuple[int, int]],
    blocks: Sequence[bytes],
) -> list[bytes]:
    """Cut the bytes of every range out of the merged blocks."""
    starts = [start for start, _ in merged]
    parts: list[bytes] = []
    for offset, length in ranges:
        # Overlapping ranges may be separate because of their size: take the last that starts in
        # time.
        i = bisect.bisect_right(starts, offset) - 1
        while starts[i] + len(blocks[i]) < offset + length:
            i -= 1
        at = offset - starts[i]
        parts.append(blocks[i][at : at + length])
    return parts
