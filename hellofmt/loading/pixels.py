"""Pixels of views: the rows of a view table, drawn on a CPU, with the same bits in every batch.

Resizing is separable and every output line is a weighted sum of a few input lines ("taps"), whose
weights follow from integers alone. torch has one operator that does exactly this and nothing else,
``embedding_bag``: it gathers whole lines, multiplies and adds in one pass, line by line, so that a
line's bits depend on its own taps only and not on what else is in the call. A view is that operator
over rows, a transposition, the same operator over columns, and a transposition back. On one core it
takes a third of the time of ``torch.nn.functional.interpolate``, which works pixel by pixel.

Only what is seen is drawn: the partner of a CutMix view is resized inside its box alone, a third of
a whole view on average. Crops are cut out before anything is converted to float, and small views
are drawn many per call, sorted by size, since there calls and not pixels take the time.

Rejected: matrix products (``W_y X W_x^T``), which cost 70 times the arithmetic at 224 pixels and
round differently in every batch; ``hellofmt_kernels.views``, which needs images of one size and is
written for a GPU; resizing in uint8, as Pillow does, which differs by a level in a fifth of all
pixels and would label other views than a GPU draws.
"""

from __future__ import annotations

import itertools
import math
import threading
import weakref
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch.nn import functional

from hellofmt.errors import UserInputError
from hellofmt_kernels import WEIGHT_ONE, ViewColumn, ViewForm

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from hellofmt.archive.format.manifest import Views

__all__ = ["normalise", "normalise_", "render", "student_form"]

_BOX = slice(ViewColumn.Y0, ViewColumn.X1 + 1)
_CROP = 6
# Lengths of lines are rounded up to this many pixels: the operator compiles a loop for each length.
_STEP = 16
# Up to this side every part of a view is drawn at full height, so that more fit in one call.
_SMALL = 32
# Floats of one intermediate, 512 KiB: it stays in a core's own cache.
_CHUNK = 1 << 17
# Views whose taps are held at once.
_VIEWS = 256


def render(
    images: Sequence[NDArray[np.uint8]] | Mapping[int, NDArray[np.uint8]],
    table: NDArray[np.integer],
    views: Views,
) -> Tensor:
    """Pixels of the views that ``table`` describes, as the labeler takes them: not normalised.

    Per view: stored image / 255, patches shuffled (columns, then rows; lines left over by the
    division stay in place), cropped and resized to S x S with float weights, flipped, then
    the partner's view pasted inside the box or blended by the weight. Neighbours clamp to the crop.
    ``nearest`` takes the pixel under each output centre; ``bicubic`` is clamped to [0, 1].
    torchvision's functional transforms give the same to 1e-6.

    Args:
        images: image of each data set row that the table names, uint8 (H, W, 3).
        table: (N, 20) as from ``view_table``.
        views: size, interpolation and antialias are read.

    Returns:
        float32 (N, 3, S, S) in [0, 1], on the CPU. A view has the same bits in every batch.
    """
    out = _batch((len(table), 3, views.size, views.size))
    draw = _draw_bilinear if views.interpolation == "bilinear" else _draw_interpolated
    whole = np.array([0, 0, views.size, views.size])
    for first in range(0, len(table), _VIEWS):
        rows = np.asarray(table[first : first + _VIEWS], np.int64)
        pixels = out[first : first + _VIEWS].numpy()
        shuffles = rows[:, ViewColumn.SHUFFLE : ViewColumn.PERMUTATION + 1]
        targets = np.arange(len(rows))
        own = _Parts(targets, rows[:, :_CROP], shuffles, np.tile(whole, (len(rows), 1)))
        draw(images, own, views, pixels, None)
        box = rows[:, _BOX]
        is_blended = rows[:, ViewColumn.WEIGHT] < WEIGHT_ONE
        is_pasted = (box[:, 0] < box[:, 2]) & (box[:, 1] < box[:, 3])
        # Blended first and everywhere: where both happen, the box shows the partner alone.
        for chosen, blend in ((is_blended, rows[:, ViewColumn.WEIGHT]), (is_pasted, None)):
            if chosen.any():
                boxes = box[chosen] if blend is None else np.tile(whole, (int(chosen.sum()), 1))
                crops = rows[chosen, _CROP : 2 * _CROP]
                partners = _Parts(targets[chosen], crops, shuffles[chosen], boxes)
                draw(images, partners, views, pixels, blend)
    # Bicubic weights are negative in places and overshoot at edges.
    return out.clamp_(0.0, 1.0) if views.interpolation == "bicubic" else out


@dataclass(frozen=True)
class _Parts:
    """Parts of views that come from one image each.

    Attributes:
        targets: (P,) which view of the batch.
        crops: (P, 6) row, top, left, height, width, flip.
        shuffles: (P, 2) factor, permutation number.
        boxes: (P, 4) y0, x0, y1, x1, what of the view is drawn.
    """

    targets: NDArray[np.int64]
    crops: NDArray[np.int64]
    shuffles: NDArray[np.int64]
    boxes: NDArray[np.int64]

    def __getitem__(self, at: NDArray[np.int64]) -> _Parts:
        return _Parts(self.targets[at], self.crops[at], self.shuffles[at], self.boxes[at])


def _put(
    pixels: NDArray[np.float32],
    target: int,
    box: Sequence[int],
    part: NDArray[np.float32],
    blend: NDArray[np.int64] | None,
) -> None:
    """Paste a part (3, h, w) into its view, or blend it by the share that the view keeps."""
    y0, x0, y1, x1 = box
    here = pixels[target, :, y0:y1, x0:x1]
    if blend is None:
        here[...] = part
    else:
        share = float(blend[target]) / WEIGHT_ONE
        here *= np.float32(share)
        here += part * np.float32(1.0 - share)


@lru_cache(maxsize=8)
def _permutations(factor: int) -> tuple[tuple[int, ...], ...]:
    return tuple(itertools.permutations(range(factor)))


def _spans(
    extent: int, factor: int, rank: int, start: int, length: int
) -> list[tuple[int, int, int]]:
    """Where the lines start .. start + length - 1 of a shuffled image are stored.

    Args:
        extent: lines of the whole image.
        factor: cells that are permuted; a remainder stays at the end.
        rank: lexicographic rank of the permutation.
        start: first line wanted.
        length: lines wanted.

    Returns:
        (place in the result, stored line, number of lines), without gaps.
    """
    if factor <= 1:
        return [(0, start, length)]
    cell = extent // factor
    order = _permutations(factor)[rank]
    spans: list[tuple[int, int, int]] = []
    at = start
    while at < start + length:
        k = at // cell if cell else factor
        end = min(start + length, (k + 1) * cell if k < factor else extent)
        stored = order[k] * cell + at % cell if k < factor else at
        spans.append((at - start, stored, end - at))
        at = end
    return spans


def _spans_of(
    image: NDArray[np.uint8], crop: Sequence[int], shuffle: Sequence[int]
) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    """Stored rows and columns of a crop."""
    _, top, left, height, width, _ = crop
    factor, number = shuffle
    column_rank, row_rank = divmod(number, math.factorial(max(factor, 1)))
    rows = _spans(image.shape[0], factor, row_rank, top, height)
    return rows, _spans(image.shape[1], factor, column_rank, left, width)


def _cut(
    image: NDArray[np.uint8],
    crop: Sequence[int],
    shuffle: Sequence[int],
    lines: NDArray[np.float32],
) -> None:
    """Write a crop, in [0, 1], into lines (height, at least 3 * width)."""
    flat = image.reshape(image.shape[0], -1)
    rows, columns = _spans_of(image, crop, shuffle)
    for place_y, y, count_y in rows:
        for place_x, x, count_x in columns:
            np.divide(
                flat[y : y + count_y, 3 * x : 3 * (x + count_x)],
                np.float32(255.0),
                out=lines[place_y : place_y + count_y, 3 * place_x : 3 * (place_x + count_x)],
                dtype=np.float32,
            )


def _taps(
    lengths: NDArray[np.int64], outputs: NDArray[np.int64], size: int, is_wide: bool
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Which lines of a crop reach each output line, and with what weight.

    With n lines in the crop, S outputs and m = max(n, S), or m = S without antialias, line j counts
    max(0, 2m - |(2j + 1) S - (2i + 1) n|) towards output i, over the sum: a triangle filter. All of
    it is exact in integers up to that division, in float64, which is rounded once.

    Args:
        lengths: (T,) n of each output line.
        outputs: (T,) i of each output line, 0 to S - 1.
        size: S.
        is_wide: antialias: widen the filter where n > S.

    Returns:
        Weights (T, K) that sum to 1 over K, and lines (T, K) from 0 to n - 1; weight 0 pads.
    """
    reach = np.maximum(lengths, size) if is_wide else np.full_like(lengths, size)
    middle = (2 * outputs + 1) * lengths
    before = middle - 2 * reach - size
    # The first j with (2j + 1) S > (2i + 1) n - 2m.
    first = np.where(before < 0, 0, before // (2 * size) + 1)
    count = -(-2 * int(reach.max()) // size)
    j = first[:, None] + np.arange(count)
    weights = 2 * reach[:, None] - np.abs((2 * j + 1) * size - middle[:, None])
    weights = np.where((weights > 0) & (j < lengths[:, None]), weights, 0)
    shares = weights / weights.sum(axis=1, keepdims=True)
    return shares.astype(np.float32), np.minimum(j, lengths[:, None] - 1)


class _Buffers(threading.local):
    """Memory that a thread uses again: fresh pages cost as much as the arithmetic on them."""

    def __init__(self) -> None:
        super().__init__()
        self.scratch: dict[str, NDArray[np.float32]] = {}
        self.batch = np.empty(0, np.float32)
        self.lent: weakref.ref[NDArray[np.float32]] | None = None


_buffers = _Buffers()


def _batch(shape: tuple[int, ...]) -> Tensor:
    """A new tensor, float32; in the memory of the last one if no tensor uses that any more."""
    size = math.prod(shape)
    if _buffers.lent is not None and _buffers.lent() is not None:
        return torch.empty(shape, dtype=torch.float32)
    if not size <= _buffers.batch.size <= 2 * size:
        _buffers.batch = np.empty(size, np.float32)
    # A new array object each time: the tensor's storage holds it for as long as it lives.
    array = _buffers.batch[:size].reshape(shape)
    _buffers.lent = weakref.ref(array)
    return torch.from_numpy(array)


def _scratch(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Memory of this thread for one step.

    It holds numbers from 0 to 1 of earlier steps: what lies beyond a crop is multiplied too, though
    never read, and denormal numbers would be slow.
    """
    known = _buffers.scratch
    size = math.prod(shape)
    if name not in known or known[name].size < size:
        known[name] = np.zeros(max(size, _CHUNK), np.float32)
    return known[name][:size].reshape(shape)


def _ragged(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Owner and place of each item when owner p has ``counts[p]`` items."""
    owner = np.repeat(np.arange(counts.size), counts)
    starts = np.cumsum(counts) - counts
    return owner, np.arange(owner.size) - starts[owner]


def _sums(
    lines: NDArray[np.float32],
    weights: NDArray[np.float32],
    at: NDArray[np.int64],
    offsets: Tensor,
) -> NDArray[np.float32]:
    """(T, B): sum over k of weights[t, k] * lines[at[t, k]], each line by itself."""
    found = torch.embedding_bag(
        torch.from_numpy(lines),
        torch.from_numpy(at.reshape(-1)),
        offsets[: len(at)],
        False,
        0,
        False,
        torch.from_numpy(weights.reshape(-1)),
    )
    return found[0].numpy()


def _chunks(costs: NDArray[np.int64], classes: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Runs of parts of one class whose costs add up to at most ``_CHUNK``, one part at least."""
    runs: list[tuple[int, int]] = []
    first, total = 0, 0
    for p, cost in enumerate(costs.tolist()):
        if p > first and (total + cost > _CHUNK or (classes[p] != classes[first]).any()):
            runs.append((first, p))
            first, total = p, 0
        total += cost
    return [*runs, (first, costs.size)]


def _draw_bilinear(
    images: Sequence[NDArray[np.uint8]] | Mapping[int, NDArray[np.uint8]],
    parts: _Parts,
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
    row_weights, row_at = _taps(height[owner], i, size, views.antialias)
    drawn = boxes[:, 3] - boxes[:, 1]
    column_owner, i = _ragged(drawn)
    i = boxes[column_owner, 1] + i
    i = np.where(crops[column_owner, 5] > 0, size - 1 - i, i)
    column_weights, column_at = _taps(width[column_owner], i, size, views.antialias)

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
        lines = _scratch("lines", (int(height[first:end].sum()), 3 * w))
        for p in range(first, end):
            base, crop = int(row_base[p]), listed[p]
            _cut(images[crop[0]], crop, shuffles[p], lines[base : base + crop[3]])
        taps = slice(row_ends[first] - h, row_ends[end - 1])
        half = _sums(lines, row_weights[taps], row_at[taps], row_offsets)
        columns = _scratch("columns", (count, 3 * w, h))
        np.copyto(columns, half.reshape(count, h, 3 * w).transpose(0, 2, 1))
        columns = columns.reshape(count * w, 3 * h)
        taps = slice(column_ends[first] - drawn[first], column_ends[end - 1])
        done = _sums(columns, column_weights[taps], column_at[taps], column_offsets)
        at = 0
        for p in range(first, end):
            y0, x0, y1, x1 = area = areas[p]
            part = done[at : at + x1 - x0].reshape(x1 - x0, 3, h).transpose(1, 2, 0)
            _put(pixels, int(parts.targets[p]), area, part[:, : y1 - y0], blend)
            at += x1 - x0


def _draw_interpolated(
    images: Sequence[NDArray[np.uint8]] | Mapping[int, NDArray[np.uint8]],
    parts: _Parts,
    views: Views,
    pixels: NDArray[np.float32],
    blend: NDArray[np.int64] | None,
) -> None:
    """Draw parts into ``pixels`` with torch's own resampling, for the rarer filters."""
    side = (views.size, views.size)
    mode = "nearest-exact" if views.interpolation == "nearest" else views.interpolation
    crops = cast("list[list[int]]", parts.crops.tolist())
    shuffles = cast("list[list[int]]", parts.shuffles.tolist())
    boxes = cast("list[list[int]]", parts.boxes.tolist())
    for target, crop, shuffle, box in zip(
        parts.targets.tolist(), crops, shuffles, boxes, strict=True
    ):
        lines = np.empty((crop[3], 3 * crop[4]), np.float32)
        _cut(images[crop[0]], crop, shuffle, lines)
        image = torch.from_numpy(lines.reshape(crop[3], crop[4], 3)).permute(2, 0, 1)[None]
        antialias = views.antialias and mode != "nearest-exact"
        view = functional.interpolate(image, side, mode=mode, antialias=antialias)[0]
        y0, x0, y1, x1 = box
        part = (view.flip(-1) if crop[5] else view)[:, y0:y1, x0:x1]
        _put(pixels, target, box, part.numpy(), blend)


def normalise(batch: Tensor, views: Views) -> Tensor:
    """(batch - mean) / std of ``views``, per channel: what a student is given.

    Args:
        batch: (..., 3, S, S) floating point in [0, 1], any device.
        views: mean and std are read.

    Returns:
        A new tensor of the same shape, dtype and device.
    """
    mean, std = _affine_on(batch, views)
    return (batch - mean) / std


def normalise_(batch: Tensor, views: Views) -> Tensor:
    """``normalise`` in place: the same bits, without two new tensors of a batch's size.

    Args:
        batch: (..., 3, S, S) floating point in [0, 1], any device; overwritten.
        views: mean and std are read.

    Returns:
        ``batch``.
    """
    mean, std = _affine_on(batch, views)
    return batch.sub_(mean).div_(std)


def student_form(views: Views, *, channels_last: bool = False) -> ViewForm:
    """``normalise`` as a form in which ``hellofmt_kernels`` draws views.

    Args:
        views: mean and std are read.
        channels_last: memory format.

    Returns:
        Of float32.

    Raises:
        UserInputError: E_OPTION, ``views.std`` is out of range.
    """
    mean, std = _affine(tuple(views.mean), tuple(views.std))
    return ViewForm(tuple(mean), tuple(std), is_channels_last=channels_last)


def _affine_on(batch: Tensor, views: Views) -> tuple[Tensor, Tensor]:
    mean, std = _affine(tuple(views.mean), tuple(views.std))
    shape = (3, 1, 1)
    return (
        torch.tensor(mean, dtype=batch.dtype, device=batch.device).view(shape),
        torch.tensor(std, dtype=batch.dtype, device=batch.device).view(shape),
    )


@lru_cache(maxsize=64)
def _affine(mean: tuple[str, ...], std: tuple[str, ...]) -> tuple[list[float], list[float]]:
    values = [float(v) for v in std]
    if not all(v > 0 for v in values):
        text = f"`views.std` is out of range; expected numbers > 0, got {std}"
        raise UserInputError.make("E_OPTION", text)
    return [float(v) for v in mean], values
