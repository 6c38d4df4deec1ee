"""Write the image members in place, each checked and hashed on its way into the file."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np

from hellofmt.archive.format.layout import BLOCK, member_parts, padded
from hellofmt.archive.parallel import cut_windows, map_ordered
from hellofmt.archive.write.whole_file import FLUSH_BYTES, write_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from hellofmt.archive.format.limits import Limits
    from hellofmt.archive.write.measure import Row

Found = tuple["NDArray[np.int64]", "NDArray[np.int64]", "NDArray[np.uint8]"]
"""Height, width and digest of every image: (N,), (N,) and (N, 32)."""


def write_images(
    fd: int,
    rows: Sequence[Row],
    name_of: Callable[[int], str],
    codec: str,
    offset: int,
    limits: Limits,
    progress: Callable[[int, int], None] | None,
) -> tuple[int, Found]:
    """Write all members, the first header at ``offset``; several threads write a window each.

    Returns the byte after the last member, and what was found in the images.
    """
    members = BLOCK + padded(np.array([row.size for row in rows], np.int64))
    end = offset + np.cumsum(members)
    start = end - members
    height, width = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    sha256 = np.zeros((len(rows), 32), np.uint8)

    def windows() -> Iterator[tuple[range, list[bytes | None]]]:
        for numbers in cut_windows(start, end, FLUSH_BYTES):
            # A function of the caller's is called in the caller's thread.
            some = (rows[number] for number in numbers)
            yield numbers, [None if isinstance(row.source, str) else row.read() for row in some]

    def write(window: tuple[range, list[bytes | None]]) -> range:
        numbers, contents = window
        parts: list[bytes] = []
        for number, content in zip(numbers, contents, strict=True):
            data = rows[number].read() if content is None else content
            shape, digest = rows[number].check(data, codec, limits)
            height[number], width[number] = shape.height, shape.width
            sha256[number] = np.frombuffer(digest, np.uint8)
            parts += member_parts(name_of(number), data)
        at = int(start[numbers[0]])
        # A large image is alone, and is not copied.
        for part in parts if len(numbers) == 1 else [b"".join(parts)]:
            write_all(fd, part, at)
            at += len(part)
        return numbers

    def is_large(window: tuple[range, list[bytes | None]]) -> bool:
        return len(window[0]) == 1 and int(members[window[0][0]]) > FLUSH_BYTES

    with contextlib.closing(map_ordered(write, windows(), alone=is_large)) as done:
        for numbers in done:
            if progress is not None:
                for number in numbers:
                    progress(number + 1, len(rows))
    return int(end[-1]), (height, width, sha256)
