"""Compute random words as a pure function of their coordinates: Philox4x64-10.

``word(seed, epoch, stream, index, j)`` is lane ``j mod 4`` of Philox4x64-10 with key ``(seed, epoch
* 2**32 + stream)`` and counter ``(j div 4, 0, 0, index)`` (Salmon et al., "Parallel random numbers:
as easy as 1, 2, 3", SC 2011). Nothing is drawn *in sequence*: a word depends on its coordinates
alone, so worker processes, ranks, batch composition and restarts cannot change it. A whole batch is
computed at once in NumPy uint64 (a ``np.random.Philox`` object per sample costs 11 us).
``np.random.Generator`` is not used: its methods may change between NumPy releases (NEP 19), while
raw words cannot.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Stream", "below", "order", "uniform", "words"]


class Stream(IntEnum):
    """The purpose of a word; no two purposes share a stream."""

    ORDER = 1
    VIEWS = 2
    NOISE = 3
    MIXING = 4
    BASE = 5
    PROBES = 6
    SELECTION = 7
    FIT = 8


_MULTIPLIER_0 = 0xD2E7470EE14C6C93
_MULTIPLIER_1 = 0xCA5A826395121157
_WEYL_0 = 0x9E3779B97F4A7C15
_WEYL_1 = 0xBB67AE8584CAA73B
_MASK_64 = 2**64 - 1
_LOW_32 = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_ROUNDS = 10
# Blocks of 4 words per chunk: keeps the working set in cache and bounds memory.
_CHUNK_BLOCKS = 1 << 16


def _multiply(a: NDArray[np.uint64], b: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the high and low 64 bits of ``a * b``, from 32-bit halves: NumPy has no 128 bits."""
    b_low, b_high = np.uint64(b & 0xFFFFFFFF), np.uint64(b >> 32)
    a_low, a_high = a & _LOW_32, a >> _32
    low_low = a_low * b_low
    middle = a_high * b_low + (low_low >> _32)
    carry = a_low * b_high + (middle & _LOW_32)
    return a_high * b_high + (middle >> _32) + (carry >> _32), a * np.uint64(b)


def _blocks(
    seed: int, epoch: int, stream: int, index: NDArray[np.uint64], block: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """Apply Philox4x64-10 to the counters ``(block, 0, 0, index)``: ``(..., 4)`` words."""
    key_0, key_1 = seed, (epoch << 32) | stream
    index, block = np.broadcast_arrays(index, block)
    c0, c3 = block.copy(), index.copy()
    c1, c2 = np.zeros_like(c0), np.zeros_like(c0)
    for _ in range(_ROUNDS):
        high_0, low_0 = _multiply(c0, _MULTIPLIER_0)
        high_1, low_1 = _multiply(c2, _MULTIPLIER_1)
        c0, c1, c2, c3 = (
            high_1 ^ c1 ^ np.uint64(key_0),
            low_1,
            high_0 ^ c3 ^ np.uint64(key_1),
            low_0,
        )
        key_0 = (key_0 + _WEYL_0) & _MASK_64
        key_1 = (key_1 + _WEYL_1) & _MASK_64
    return np.stack([c0, c1, c2, c3], axis=-1)


def words(
    seed: int,
    epoch: int,
    stream: int,
    index: int | NDArray[np.integer],
    count: int,
    start: int = 0,
) -> NDArray[np.uint64]:
    """Compute the words ``j = start .. start + count - 1`` of each index.

    Args:
        seed: 0 <= seed < 2**64.
        epoch: 0 <= epoch < 2**32.
        stream: 0 <= stream < 2**32, usually a ``Stream``.
        index: one index or an integer array (N,), each >= 0.
        count: words per index, >= 0.
        start: first j, >= 0.

    Returns:
        uint64 ``(count,)`` for one index, ``(N, count)`` for an array.

    Raises:
        ValueError: a coordinate is out of range.

    Example:
        >>> from hellofmt.rng import Stream
        >>> words(0, 3, Stream.ORDER, index=7, count=2).shape
        (2,)
    """
    for name, value, bits in (("seed", seed, 64), ("epoch", epoch, 32), ("stream", stream, 32)):
        if not 0 <= value < 1 << bits:
            raise ValueError(f"{name}: expected 0 <= {name} < 2**{bits}, got {value}")
    if count < 0 or start < 0:
        raise ValueError(f"expected count >= 0 and start >= 0, got {count} and {start}")
    rows = np.atleast_1d(np.asarray(index))
    if rows.ndim != 1 or (rows.size and int(rows.min()) < 0):
        raise ValueError("index: expected integers >= 0 in one dimension")
    rows = rows.astype(np.uint64)
    first, last = start // 4, -(-(start + count) // 4)
    out = np.empty((rows.size, 4 * (last - first)), np.uint64)
    # Chunked along both axes, so that neither a long batch nor a large tensor takes gigabytes.
    step = max(1, min(last - first, _CHUNK_BLOCKS))
    row_step = max(1, _CHUNK_BLOCKS // step)
    for r in range(0, rows.size, row_step):
        for b in range(first, last, step):
            end = min(b + step, last)
            block = np.arange(b, end, dtype=np.uint64)[None, :]
            part = _blocks(seed, epoch, stream, rows[r : r + row_step, None], block)
            out[r : r + row_step, 4 * (b - first) : 4 * (end - first)] = part.reshape(
                part.shape[0], -1
            )
    skip = start - 4 * first
    result = out[:, skip : skip + count]
    return result[0] if np.ndim(index) == 0 else result


def uniform(word: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Map words to float64 in [0, 1) by their top 53 bits: ``(w >> 11) * 2**-53``; same shape.

    Example:
        >>> import numpy as np
        >>> uniform(np.array([0, 2**63], np.uint64)).tolist()
        [0.0, 0.5]
    """
    return (word >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(word: NDArray[np.uint64], n: int | NDArray[np.integer]) -> NDArray[np.int64]:
    """Map words to integers in [0, n): the high word of the 128-bit product, without rejection.

    The bias is below 2**-40 for n < 2**24.

    Args:
        word: uint64, any shape.
        n: 1 <= n < 2**32, a number or an array that broadcasts against ``word``.

    Returns:
        int64 of the broadcast shape.

    Example:
        >>> import numpy as np
        >>> below(np.array([0, 2**63, 2**64 - 1], np.uint64), 10).tolist()
        [0, 5, 9]
    """
    bound = np.asarray(n).astype(np.uint64)
    # w * n >> 64 with n < 2**32, from the 32-bit halves of w.
    low = (word & _LOW_32) * bound
    high = (word >> _32) * bound + (low >> _32)
    return (high >> _32).astype(np.int64)


def order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """Shuffle ``n`` ids for an epoch: argsort of one word per id, ties by id.

    Args:
        seed: 0 <= seed < 2**64.
        epoch: 0 <= epoch < 2**32.
        n: number of ids.

    Returns:
        int64 (n,), a permutation.

    Example:
        >>> sorted(order(seed=0, epoch=3, n=5).tolist())
        [0, 1, 2, 3, 4]
    """
    return np.argsort(words(seed, epoch, Stream.ORDER, 0, n), kind="stable").astype(np.int64)
