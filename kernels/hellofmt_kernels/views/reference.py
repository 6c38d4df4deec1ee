"""Views in plain torch: the definition and the CPU path.

Computed in float64 where one result is float64, else in float32; only the result is rounded.
Resizing is separable, and each pass sums whole lines of memory: the columns come first, of an image
that was transposed while it was converted, then the rows, whose sums are the finished planes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hellofmt_kernels.config import view_taps
from hellofmt_kernels.device import accumulation_dtype
from hellofmt_kernels.views.row import WEIGHT_ONE, ViewColumn, is_blended, permutations

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ViewForm", "views"]

#: Numbers of one intermediate of `views`: 512 KiB of float32, which stays in a core's own cache.
_CHUNK_NUMBERS = 1 << 17


@dataclass(frozen=True)
class ViewForm:
    """One output of `views`: (view - mean) / std per channel, rounded to a dtype.

    A view is made once and read by two networks that normalise it differently, the student and the
    encoder that labels it. The resampling is the work; a form is one more multiplication, addition
    and store per value, so both leave in the one pass over the pixels.

    Attributes:
        mean: three finite numbers, subtracted from values in [0, 1].
        std: three finite numbers > 0; divide the difference.
        dtype: float16, bfloat16 or float32; float64 on the CPU.
        is_channels_last: memory format, contiguous if false.
    """

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    dtype: torch.dtype = torch.float32
    is_channels_last: bool = False

    def empty(self, n: int, size: int, device: torch.device | str) -> Tensor:
        """Allocate n views of this form, (n, 3, size, size), not written."""
        memory_format = torch.channels_last if self.is_channels_last else torch.contiguous_format
        shape = (n, 3, size, size)
        return torch.empty(shape, dtype=self.dtype, device=device, memory_format=memory_format)


def _taps(
    start: Tensor,
    length: Tensor,
    flip: Tensor | None,
    size: int,
    antialias: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Find the source pixels that reach every output pixel along one axis, and their weights.

    With n pixels in the crop, S outputs and m = max(n, S), or m = S without antialias, pixel j of
    the crop counts max(0, 2m - |(2j + 1) S - (2i + 1) n|) towards output i: a triangle filter as
    wide as the larger of the two pixels, cut at the crop's edge and divided by its sum. Until that
    division everything is an exact integer. Returns weights (P, S, K) that sum to 1 over K, and
    pixels (P, S, K) int64 within the crop.
    """
    start, length = start[:, None, None], length[:, None, None]
    outputs = torch.arange(size, device=start.device)[None, :, None]
    if flip is not None:
        outputs = torch.where(flip[:, None, None] > 0, size - 1 - outputs, outputs)
    reach = length.clamp(min=size) if antialias else torch.full_like(length, size)
    middle = (2 * outputs + 1) * length
    # The first j with (2j + 1) S > (2i + 1) n - 2m.
    before = middle - 2 * reach - size
    first = torch.where(before < 0, 0, before // (2 * size) + 1)
    count = view_taps(int(length.max()), size, antialias)
    j = first + torch.arange(count, device=start.device)
    weights = (2 * reach - ((2 * j + 1) * size - middle).abs_()).clamp_(min=0) * (j < length)
    weights = weights.to(dtype) / weights.sum(dim=2, keepdim=True).to(dtype)
    return weights, torch.minimum(j, length - 1) + start


def _stored(positions: Tensor, factor: Tensor, rank: Tensor, extent: int) -> Tensor:
    """Find where the pixels at (P, S, K) positions of an axis of the shuffled image are stored."""
    places = positions.clone()
    for cells in factor.unique().tolist():
        if cells > 1:
            chosen = factor == cells
            side = extent // cells
            old_cells = permutations(cells).to(positions.device)[rank[chosen]]
            at = positions[chosen]
            old = old_cells.gather(1, (at // side).flatten(1)).view_as(at)
            places[chosen] = old * side + at % side
    return places


def _axes(
    images: Tensor, crops: Tensor, shuffles: Tensor, size: int, antialias: bool, dtype: torch.dtype
) -> list[Tensor]:
    """Return image (P,), weights and stored places of rows, then of columns (P, S, K), per crop."""
    _, height, width, _ = images.shape
    index, top, left, crop_height, crop_width, flip = crops.unbind(1)
    weights_y, rows = _taps(top, crop_height, None, size, antialias, dtype)
    weights_x, columns = _taps(left, crop_width, flip, size, antialias, dtype)
    factor, number = shuffles.unbind(1)
    if bool((factor > 1).any()):
        orders = torch.tensor([len(permutations(max(f, 1))) for f in factor.tolist()])
        orders = orders.to(number.device)
        rows = _stored(rows, factor, number % orders, height)
        columns = _stored(columns, factor, number // orders, width)
    return [index, weights_y, rows, weights_x, columns]


def _sums(lines: Tensor, weights: Tensor, at: Tensor) -> Tensor:
    """Sum weights[..., k] * lines[at[..., k]] over k: (T, B), each line by itself.

    ``embedding_bag`` does it in one pass. A matrix product is no faster for two taps, and its last
    bit depends on the rest of the batch.
    """
    offsets = torch.arange(0, at.numel(), at.shape[-1], device=at.device)
    bags = torch.embedding_bag(lines, at.reshape(-1), offsets, False, 0, False, weights.reshape(-1))
    return bags[0]


def _render(
    images: Tensor,
    index: Tensor,
    weights_y: Tensor,
    rows: Tensor,
    weights_x: Tensor,
    columns: Tensor,
) -> Tensor:
    """Resize and flip crops of stored images: (P, Sy, 3, Sx) with values from 0 to 255."""
    count, tall, _ = rows.shape
    if count == 1:
        # Large views come one by one: of the image only what is seen is converted.
        y0, y1, x0, x1 = (int(end) for at in (rows, columns) for end in torch.aminmax(at))
        stored = images[int(index)][None, y0 : y1 + 1, x0 : x1 + 1]
        rows, columns = rows - y0, columns - x0
    else:
        shown, place = index.unique(return_inverse=True)
        stored = images.index_select(0, shown)
        columns = columns + place[:, None, None] * images.shape[2]
    height = stored.shape[1]
    lines = stored.permute(0, 2, 3, 1).to(weights_y.dtype, memory_format=torch.contiguous_format)
    half = _sums(lines.view(-1, 3 * height), weights_x, columns).view(count, -1, 3, height)
    lines = half.permute(0, 3, 2, 1).contiguous().view(count * height, -1)
    each = torch.arange(0, len(lines), height, device=images.device)[:, None, None]
    return _sums(lines, weights_y, rows + each).view(count, tall, 3, -1)


def views(
    images: Tensor, rows: Tensor, size: int, antialias: bool, forms: Sequence[ViewForm]
) -> list[Tensor]:
    """Draw views of stored images: shuffle, crop, resize, flip, mix with a partner, normalise.

    What torchvision's functional transforms compute one sample at a time, in float from the
    start: ``to_dtype(float32, scale=True)``, shuffle of patches, ``resized_crop`` (bilinear),
    ``horizontal_flip``, the partner's finished view pasted in the box or blended by its weight,
    ``normalize`` by each form. Neighbours outside the crop are never read. A view has the same
    bits in every batch.

    Args:
        images: (M, H, W, 3) uint8.
        rows: (N, 20) integers on the same device, see `hellofmt_kernels.views.row.ViewColumn`.
        size: S, pixels.
        antialias: widen the filter where a crop is larger than S, as Pillow does; without effect
            on images of at most S x S.
        forms: forms of the finished views; each gives one result.

    Returns:
        (N, 3, S, S) of each form; computed in float64 if one of them is float64, else in float32.
    """
    rows = rows.to(torch.int64)
    dtype = torch.float32
    for form in forms:
        dtype = torch.promote_types(dtype, accumulation_dtype(form.dtype))
    count, device = rows.shape[0], images.device
    outs = [form.empty(count, size, device) for form in forms]
    if not count:
        return outs
    # ((v / 255) - mean) / std of the values v from 0 to 255.
    affines = [
        255 * torch.tensor((form.mean, form.std), dtype=dtype, device=device)[:, :, None]
        for form in forms
    ]
    _, height, width, _ = images.shape
    chunk = max(1, _CHUNK_NUMBERS // (3 * max(height, size) * max(width, size)))
    shuffles = rows[:, ViewColumn.SHUFFLE : ViewColumn.PERMUTATION + 1]
    mixed = is_blended(rows)
    is_mixed = mixed.tolist()
    own = other = _axes(images, rows[:, :6], shuffles, size, antialias, dtype)
    if any(is_mixed):
        other = _axes(images, rows[mixed, 6:12], shuffles[mixed], size, antialias, dtype)
    at = 0
    for first in range(0, count, chunk):
        here = slice(first, first + chunk)
        view = _render(images, *(part[here] for part in own))
        if partners := sum(is_mixed[here]):
            chosen = mixed[here]
            parts = [part[at : at + partners] for part in other]
            at += partners
            if chunk == 1 and int(rows[first, ViewColumn.WEIGHT]) == WEIGHT_ONE:
                _paste(view, images, parts, rows[first])
            else:
                view[chosen] = _mix(view[chosen], _render(images, *parts), rows[here][chosen])
        for out, (mean, std) in zip(outs, affines, strict=True):
            # The last form has the memory of the view.
            shifted = view.sub_(mean) if out is outs[-1] else view - mean
            planes = shifted.permute(0, 2, 1, 3)
            if out.dtype == dtype:
                torch.div(planes, std[:, None], out=out[here])
            else:
                out[here] = shifted.div_(std).permute(0, 2, 1, 3)
    return outs


def _paste(view: Tensor, images: Tensor, parts: Sequence[Tensor], row: Tensor) -> None:
    """Draw of one partner what its box shows, into (1, Sy, 3, Sx)."""
    size = view.shape[-1]
    y0, x0, y1, x1 = row[ViewColumn.Y0 : ViewColumn.X1 + 1].clamp(0, size).tolist()
    if y0 < y1 and x0 < x1:
        index, weights_y, rows, weights_x, columns = parts
        tall, wide = (weights_y[:, y0:y1], rows[:, y0:y1]), (weights_x[:, x0:x1], columns[:, x0:x1])
        view[:, y0:y1, :, x0:x1] = _render(images, index, *tall, *wide)


def _mix(own: Tensor, partner: Tensor, rows: Tensor) -> Tensor:
    """Paste partners into the box of (P, Sy, 3, Sx) views, or blend them by the weight."""
    at = torch.arange(own.shape[-1], device=own.device)
    y0, x0, y1, x1 = rows[:, ViewColumn.Y0 : ViewColumn.X1 + 1, None].unbind(1)
    is_inside = ((at >= y0) & (at < y1))[:, :, None] & ((at >= x0) & (at < x1))[:, None, :]
    share = rows[:, ViewColumn.WEIGHT].to(own.dtype) / WEIGHT_ONE
    share = share[:, None, None].expand_as(is_inside).masked_fill(is_inside, 0.0)[:, :, None]
    return (own * share).add_(partner.mul_(1 - share))
