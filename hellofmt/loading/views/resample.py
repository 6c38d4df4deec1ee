"""Resizing of many parts of views in few calls, each line with bits of its own.

Resizing is separable, and every output line is a weighted sum of a few input lines ("taps") whose
weights follow from integers alone. torch has one operator that does exactly this and nothing else,
``embedding_bag``: it gathers whole lines, multiplies and adds in one pass, line by line, so that a
line's bits depend on its own taps only and not on what else is in the call. A view is that operator
over rows, a transposition, the same operator over columns, and a transposition back. On one core it
takes a third of the time of ``torch.nn.functional.interpolate``, which works pixel by pixel.

Only what is seen is drawn: the partner of a CutMix view is resized inside its box alone, a third of
a whole view on average. Crops are cut out before anything is converted to float, and small views
are drawn many per call, sorted by size, since there calls and not pixels take the time.

Rejected: matrix products (``W_y X W_x^T``), which cost 70 times the arithmetic at 224 pixels and
round differently in every batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from hellofmt.loading.views.buffers import CHUNK, scratch
from hellofmt.loading.views.parts import Parts, cut, put

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from hellofmt.archive.format.views import Views

# Lengths of lines are rounded up to this many pixels: the operator compiles a loop for each length.
_STEP = 16
# Floats of one crop that are in memory at once, 16 MiB. Columns do not reach each other when rows
# are resized, so a larger crop goes through in bands of columns: all of one of 4096 x 4096 pixels
# would be 200 MB.
_BAND = 1 << 22
# Up to this side every part of a view is drawn at full height, so that more fit in one call.
_SMALL = 32


def _cubic(x: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """Keys' convolution kernel (IEEE TASSP 29, 1981) with parameter ``a`` at distances x >= 0."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _taps(
    lengths: NDArray[np.int64], outputs: NDArray[np.int64], views: Views
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Compute which lines of a crop reach each output line, and with what weight: (T, K) each.

    With n lines in the crop, S outputs and m = max(n, S), or m = S without antialias, line j lies
    |(2j + 1) S - (2i + 1) n| / 2m from output i: an integer up to that division. Its weight is the
    filter there, over the sum, in float64 and rounded once; weight 0 pads. ``lengths`` (T,) has n
    of each output line, ``outputs`` (T,) its i.
    """
    size = views.size
    middle = (2 * outputs + 1) * lengths
    if views.interpolation == "nearest":
        # The line that holds the centre. torch's `nearest-exact` rounds its scale to float32 first
        # and takes the line before where a centre lies on a border, as from 62 lines to 7.
        return np.ones((lengths.size, 1), np.float32), (middle // (2 * size))[:, None]
    radius = 2 if views.interpolation == "bicubic" else 1
    repeats_border = radius == 2 and not views.antialias
    reach = np.maximum(lengths, size) if views.antialias else np.full_like(lengths, size)
    # The first j with (2j + 1) S > (2i + 1) n - 2m * radius.
    first = (middle - 2 * radius * reach - size) // (2 * size) + 1
    first = first if repeats_border else np.maximum(first, 0)
    j = first[:, None] + np.arange(-(-2 * radius * int(reach.max()) // size))
    reach, last = reach[:, None], lengths[:, None] - 1
    distance = np.abs((2 * j + 1) * size - middle[:, None])
    if radius == 1:
        weights = np.maximum(2 * reach - distance, 0)
    else:
        weights = _cubic(distance / (2 * reach), -0.5 if views.antialias else -0.75)
    if not repeats_border:
        weights = np.where(j <= last, weights, 0)
    shares = weights / weights.sum(axis=1, keepdims=True)
    return shares.astype(np.float32), np.clip(j, 0, last) if repeats_border else np.minimum(j, last)


def _ragged(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return owner and place of each item if owner p has ``counts[p]`` items."""
    owner = np.repeat(np.arange(counts.size), counts)
    starts = np.cumsum(counts) - counts
    return owner, np.arange(owner.size) - starts[owner]


def _sums(
    lines: NDArray[np.float32],
    weights: NDArray[np.float32],
    at: NDArray[np.int64],
    offsets: Tensor,
) -> NDArray[np.float32]:
    """Sum weights[t, k] * lines[at[t, k]] over k, each line by itself: (T, B)."""
    sums = torch.embedding_bag(
        torch.from_numpy(lines),
        torch.from_numpy(at.reshape(-1)),
        offsets[: len(at)],
        False,
        0,
        False,
        torch.from_numpy(weights.reshape(-1)),
    )
    return sums[0].numpy()


def _chunks(costs: NDArray[np.int64], classes: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Runs of parts of one class whose costs add up to at most ``CHUNK``, one part at least."""
    runs: list[tuple[int, int]] = []
    first, total = 0, 0
    for p, cost in enumerate(costs.tolist()):
        if p > first and (total + cost > CHUNK or (classes[p] != classes[first]).any()):
            runs.append((first, p))
            first, total = p, 0
        total += cost
    return [*runs, (first, costs.size)]


def draw(
    images: Sequence[NDArray[np.uint8]] | Mapping[int, NDArray[np.uint8]],
    parts: Parts,
    views: Views,
    pixels: NDArray[np.float32],
    blend: NDArray[np.int64] | None,
) -> None:
    """Draw parts into ``pixels`` (N, 3, S, S)."""
    size = views.size
    wide = -(-parts.crops[:, 4] // _STEP) * _STEP
    tall = parts.boxes[:, 2] - parts.boxes[:, 0]
    tall = np.full_like(tall, size) if size <= _SMALL else -(-tall // _STEP) * _STEP
    sort = np.lexsort((tall, wide))
    parts, wide, tall = parts[sort], wide[sort], tall[sort]
    crops, boxes = parts.crops, parts.boxes
    height, width = crops[:, 3], crops[:, 4]
    costs = 3 * np.maximum(wide * np.maximum(height, tall), size * tall)
    runs = _chunks(costs, np.stack([wide, tall], axis=1))

    owner, i = _ragged(tall)
    # Lines beyond the box fill up the block; they repeat its last one and are never read.
    i = np.minimum(boxes[owner, 0] + i, boxes[owner, 2] - 1)
    row_weights, row_at = _taps(height[owner], i, views)
    drawn = boxes[:, 3] - boxes[:, 1]
    column_owner, i = _ragged(drawn)
    i = boxes[column_owner, 1] + i
    i = np.where(crops[column_owner, 5] > 0, size - 1 - i, i)
    column_weights, column_at = _taps(width[column_owner], i, views)

    # Where each part begins within its run, and each run within the flat taps.
    row_base, column_base = np.zeros_like(height), np.zeros_like(height)
    for first, end in runs:
        row_base[first:end] = np.cumsum(height[first:end]) - height[first:end]
        column_base[first:end] = wide[first] * np.arange(end - first)
    row_at += row_base[owner, None]
    column_at += column_base[column_owner, None]
    row_ends, column_ends = np.cumsum(tall), np.cumsum(drawn)
    row_offsets = torch.arange(0, row_at.size, row_at.shape[1])
    column_offsets = torch.arange(0, column_at.size, column_at.shape[1])

    listed = cast("list[list[int]]", crops.tolist())
    shuffles = cast("list[list[int]]", parts.shuffles.tolist())
    areas = cast("list[list[int]]", boxes.tolist())
    for first, end in runs:
        count, w, h = end - first, int(wide[first]), int(tall[first])
        total = int(height[first:end].sum())
        taps = slice(row_ends[first] - h, row_ends[end - 1])
        columns = scratch("columns", (count, 3 * w, h))
        band = max(_BAND // (3 * total) // _STEP, 1) * _STEP
        for left in range(0, w, band):
            right = min(left + band, w)
            lines = scratch("lines", (total, 3 * (right - left)))
            for p in range(first, end):
                base, crop = int(row_base[p]), listed[p]
                part = [*crop[:2], crop[2] + left, crop[3], min(right, crop[4]) - left]
                cut(images[crop[0]], part, shuffles[p], lines[base : base + crop[3]])
            half = _sums(lines, row_weights[taps], row_at[taps], row_offsets)
            half = half.reshape(count, h, 3 * (right - left))
            np.copyto(columns[:, 3 * left : 3 * right], half.transpose(0, 2, 1))
        columns = columns.reshape(count * w, 3 * h)
        taps = slice(column_ends[first] - drawn[first], column_ends[end - 1])
        done = _sums(columns, column_weights[taps], column_at[taps], column_offsets)
        at = 0
        for p in range(first, end):
            y0, x0, y1, x1 = area = areas[p]
            part = done[at : at + x1 - x0].reshape(x1 - x0, 3, h).transpose(1, 2, 0)
            put(pixels, int(parts.targets[p]), area, part[:, : y1 - y0], blend)
            at += x1 - x0
