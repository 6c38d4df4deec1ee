"""The members of many images at once: their headers, and cuts into windows of the file.

Computing and comparing one header takes three microseconds, as long as hashing an image of four
kilobytes; for a window of rows NumPy takes a fraction of that. The bytes are those of
``layout.header``, which stays the definition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from hellofmt.archive.format.layout import BLOCK, EXTENSIONS, header, image_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

# Row u has the bits of all bytes from u on, as eight-byte numbers.
_AFTER: Final = np.where(np.arange(BLOCK) < np.arange(BLOCK + 1)[:, None], 0, 255).astype(np.uint8)
_AFTER_WORDS: Final = _AFTER.view(np.uint64)


def image_headers(
    label: NDArray[np.int64],
    first: int,
    size: NDArray[np.int64],
    codec: str,
    classes: int,
    total: int,
) -> NDArray[np.uint8]:
    """Build ``header(image_name(...), size)`` for N consecutive images: uint8 (N, 512).

    ``first`` is the number of the first over the whole data set, which has ``total`` images;
    labels, numbers and classes are below 2**32, sizes below 2**33.
    """
    name = image_name(0, 0, codec, classes, total)
    blank = np.frombuffer(header(name, 0), np.uint8)
    headers = np.tile(blank, (len(label), 1))
    number_end = len(name) - len(EXTENSIONS[codec]) - 1
    number_start = name.rindex("/") + 1
    label_start = name.index("/") + 1
    number = np.arange(first, first + len(label), dtype=np.int64)
    # A blank header has the digit 0 in every numeric field, so its sum grows by the digits' values.
    checksum = np.full(len(label), int(blank[148:154].tobytes(), 8), np.int64)
    checksum += _write_digits(headers[:, label_start : number_start - 1], label, 10)
    checksum += _write_digits(headers[:, number_start:number_end], number, 10)
    checksum += _write_digits(headers[:, 124:135], size, 8)
    _write_digits(headers[:, 148:154], checksum, 8)
    return headers


def _write_digits(
    field: NDArray[np.uint8], value: NDArray[np.int64], radix: int
) -> NDArray[np.int64]:
    """Write zero-padded digits into (N, width) and return their sums, (N,).

    Octal digits of 64-bit numbers; decimal ones of 32-bit numbers, since they need a division,
    which costs twice as much at 64.
    """
    places = np.arange(field.shape[1] - 1, -1, -1)
    if radix == 8:
        digits = value[:, None] >> 3 * places & 7
    else:
        digits = value.astype(np.uint32)[:, None] // (10**places).astype(np.uint32) % 10
    field[:] = digits + ord("0")
    total: NDArray[np.int64] = digits.sum(axis=1, dtype=np.int64)
    return total


def padding_faults(last: NDArray[np.uint8], size: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell of which payloads (N,) anything but zeros follows within the last block, (N, 512)."""
    used = size - (padded_rows(size) - BLOCK)
    after = last.view(np.uint64) & _AFTER_WORDS[used]
    faults: NDArray[np.bool_] = (after != 0).any(axis=1)
    return faults


def padded_rows(size: NDArray[np.int64]) -> NDArray[np.int64]:
    """Apply ``padded`` to every size."""
    return -(-size // BLOCK) * BLOCK


def cut_windows(
    start: NDArray[np.int64], end: NDArray[np.int64], most: int
) -> Iterator[tuple[int, int]]:
    """Cut consecutive rows into windows of at most ``most`` bytes, or of a single row.

    Row i takes the bytes from ``start[i]`` to ``end[i]``, where the next begins. Yields the first
    row of each window and the row after its last.
    """
    row = 0
    while row < len(start):
        after = int(np.searchsorted(end, start[row] + most, side="right"))
        after = max(after, row + 1)
        yield row, after
        row = after
