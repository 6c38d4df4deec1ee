"""Write the image members in place, and hash what the file then holds."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hellofmt.archive.format.layout import BLOCK
from hellofmt.archive.format.rows import cut_windows, image_headers, padded_rows
from hellofmt.archive.parallel import map_ordered
from hellofmt.archive.storage.local_files import read_into_at
from hellofmt.archive.write.measure import Row, read_into
from hellofmt.archive.write.whole_file import FLUSH_BYTES, write_all, writing
from hellofmt.errors import HelloIOError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from hellofmt.archive.format.images import ImageShape
    from hellofmt.archive.format.limits import Limits


@dataclass(frozen=True)
class _Window:
    """Neighbouring images in the file, filled and written at once.

    ``contents`` holds the bytes of images whose source is a function of the caller.
    """

    start: int
    stop: int
    contents: Mapping[int, bytes]


class _Buffers(threading.local):
    """Buffers of one thread, reused for every window: fresh pages cost as much as a copy."""

    def __init__(self) -> None:
        self.filled = memoryview(bytearray(FLUSH_BYTES))
        self.stored = memoryview(bytearray(FLUSH_BYTES))


class ImageWriter:
    """Writes the members of all images in place; several threads may write windows.

    Attributes:
        height, width: int64 (N,), filled while writing.
        sha256: uint8 (N, 32), filled while writing.
    """

    def __init__(
        self, fd: int, rows: Sequence[Row], codec: str, offset: int, limits: Limits
    ) -> None:
        """Prepare to write ``rows`` in order, the first header at ``offset`` of the file ``fd``."""
        self._fd = fd
        self._rows = rows
        self._codec = codec
        self._limits = limits
        self._buffers = _Buffers()
        self._size = np.array([row.size for row in rows], np.int64)
        self._label = np.array([row.label for row in rows], np.int64)
        members = BLOCK + padded_rows(self._size)
        self._end = offset + np.cumsum(members)
        self._start = self._end - members
        self.height, self.width = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        self.sha256 = np.zeros((len(rows), 32), np.uint8)

    def write(
        self, first: int, classes: int, total: int, progress: Callable[[int, int], None] | None
    ) -> int:
        """Write all members; return the byte after the last.

        ``first`` is the number of the first image over the whole data set, which has ``total``.
        """

        def fill(window: _Window) -> _Window:
            span = slice(window.start, window.stop)
            headers = image_headers(
                self._label[span], first + span.start, self._size[span], self._codec, classes, total
            )
            self._fill(window, headers)
            return window

        done = map_ordered(fill, self._windows(), alone=self._is_large)
        with contextlib.closing(done):
            for window in done:
                if progress is not None:
                    for row in range(window.start, window.stop):
                        progress(row + 1, len(self._rows))
        return int(self._end[-1])

    def _windows(self) -> Iterator[_Window]:
        for start, stop in cut_windows(self._start, self._end, FLUSH_BYTES):
            contents = {
                row: self._rows[row].read()
                for row in range(start, stop)
                if not isinstance(self._rows[row].source, str)
            }
            yield _Window(start, stop, contents)

    def _is_large(self, window: _Window) -> bool:
        return int(self._end[window.stop - 1] - self._start[window.start]) > FLUSH_BYTES

    def _fill(self, window: _Window, headers: NDArray[np.uint8]) -> None:
        """Read, check and write the images of a window; hash what the file then holds."""
        span = slice(window.start, window.stop)
        base = int(self._start[span.start])
        length = int(self._end[span.stop - 1]) - base
        large = length > FLUSH_BYTES
        view = memoryview(bytearray(length)) if large else self._buffers.filled[:length]
        blocks = np.frombuffer(view, np.uint8).reshape(-1, BLOCK)
        starts = self._start[span] - base
        blocks[starts // BLOCK] = headers
        # The rest of an image's last block is padding.
        blocks[(self._end[span] - base) // BLOCK - 1] = 0
        places = [
            (at, at + self._rows[row].size)
            for row, at in enumerate((starts + BLOCK).tolist(), span.start)
        ]
        shapes: list[ImageShape] = []
        for row, (at, end) in enumerate(places, span.start):
            image, data = self._rows[row], view[at:end]
            if isinstance(image.source, str):
                if read_into(image.source, data) != image.size:
                    raise image.changed()
            else:
                data[:] = window.contents[row]
            shapes.append(image.parse(data, self._codec, self._limits))
        self.height[span] = [shape.height for shape in shapes]
        self.width[span] = [shape.width for shape in shapes]
        write_all(self._fd, view, base)
        digests = self._hash_written(view, base, places)
        for image, digest in zip(self._rows[span], digests, strict=True):
            if image.sha256 not in (None, digest):
                raise image.changed()
        self.sha256[span] = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)

    def _hash_written(
        self, written: memoryview, base: int, places: Sequence[tuple[int, int]]
    ) -> list[bytes]:
        """Hash images as the file now holds them, at ``base``.

        ``places`` are start and end of each within the ``written`` bytes; a single one if these are
        more than a buffer.
        """
        if len(written) <= FLUSH_BYTES:
            stored = self._read_back(written, base)
            return [hashlib.sha256(stored[start:end]).digest() for start, end in places]
        [(start, end)] = places
        digest = hashlib.sha256()
        for at in range(0, len(written), FLUSH_BYTES):
            stored = self._read_back(written[at : at + FLUSH_BYTES], base + at)
            digest.update(stored[max(0, start - at) : max(0, end - at)])
        return [digest.digest()]

    def _read_back(self, written: memoryview, offset: int) -> memoryview:
        """Read back what the file holds at ``offset`` and check that it is ``written``.

        The result is valid until the thread's next call.

        Raises:
            HelloIOError: E_WRITE, E_NOSPACE.
        """
        stored, count = self._buffers.stored[: len(written)], 0
        with writing():
            while count < len(stored) and (
                more := read_into_at(self._fd, stored[count:], offset + count)
            ):
                count += more
        # As eight-byte numbers: byte views are compared one byte at a time.
        same = np.array_equal(np.frombuffer(stored, np.uint64), np.frombuffer(written, np.uint64))
        if count < len(stored) or not same:
            text = "the file does not hold what was written to it"
            raise HelloIOError.make("E_WRITE", text, offset=offset)
        return stored
