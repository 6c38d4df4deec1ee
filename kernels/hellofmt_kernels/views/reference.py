"""Views in plain torch: the definition and the CPU path.

Computed in float64 where one result is float64, else in float32; only the result is rounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hellofmt_kernels.config import view_taps
from hellofmt_kernels.device import accumulation_dtype
from hellofmt_kernels.views.row import WEIGHT_ONE, ViewColumn, is_blended, permutations

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hellofmt_kernels.views.form import ViewForm

__all__ = ["views"]

#: Numbers of one intermediate of `views`: 512 KiB of float32, which stays in a core's own cache.
_CHUNK_NUMBERS = 1 << 17


def _taps(
    start: Tensor,
    length: Tensor,
    flip: Tensor | None,
    size: int,
    antialias: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The source pixels that reach every output pixel along one axis, and their weights.

    With n pixels in the crop, S outputs and m = max(n, S), or m = S without antialias, pixel j of
    the crop counts max(0, 2m - |(2j + 1) S - (2i + 1) n|) towards output i: a triangle filter as
    wide as the larger of the two pixels, cut at the crop's edge and divided by its sum. Until
    that division everything is an exact integer.

    Args:
        start: (P,) first pixel of the crop.
        length: (P,) pixels of the crop.
        flip: (P,) 1 where the outputs run backwards, or None.
        size: S, outputs.
        antialias: widen the filter where the crop is larger than the output.
        dtype: dtype of the weights.

    Returns:
        Weights (P, S, K) that sum to 1 over K, and pixels (P, S, K) int64 within the crop.
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
    """Where the pixels at (P, S, K) positions of an axis of the shuffled image are stored."""
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


def _resize(lines: Tensor, weights: Tensor, at: Tensor) -> Tensor:
    """Weighted sums of whole lines: sum over k of weights[p, i, k] * lines[at[p, i, k]].

    ``embedding_bag`` gathers, multiplies and adds in one pass, each line by itself. A matrix
    product is no faster for two taps, and its last bit depends on the rest of the batch.

    Args:
        lines: (L, B).
        weights: (P, S, K), of the dtype of the lines.
        at: (P, S, K) int64, below L.

    Returns:
        (P, S, B).
    """
    count, size, taps = at.shape
    flat = at.reshape(-1)
    offsets = torch.arange(0, flat.numel(), taps, device=at.device)
    sums = torch.embedding_bag(lines, flat, offsets, False, 0, False, weights.reshape(-1))[0]
    return sums.view(count, size, -1)


def _axes(
    images: Tensor, crops: Tensor, shuffles: Tensor, size: int, antialias: bool, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Image of every crop (P,); weights and stored places of rows, then of columns (P, S, K)."""
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
    return index, weights_y, rows, weights_x, columns


def _render(
    images: Tensor,
    index: Tensor,
    weights_y: Tensor,
    rows: Tensor,
    weights_x: Tensor,
    columns: Tensor,
) -> Tensor:
    """Crops of stored images, resized and flipped: (P, Sx, 3, Sy) with values from 0 to 1."""
    count, tall, _ = rows.shape
    if count == 1:
        # Large views come one by one: of the image only what is seen is converted.
        (y0, y1), (x0, x1) = (torch.stack(torch.aminmax(at)).tolist() for at in (rows, columns))
        stored = images[index[0], y0 : y1 + 1, x0 : x1 + 1][None]
        rows, columns = rows - y0, columns - x0
    else:
        shown, place = index.unique(return_inverse=True)
        stored = images.index_select(0, shown)
        rows = rows + place[:, None, None] * images.shape[1]
    width = stored.shape[2]
    lines = stored.to(weights_y.dtype).view(-1, width * 3)
    half = _resize(lines, weights_y, rows)
    half = half.view(count, tall, width, 3).permute(0, 2, 3, 1).reshape(count * width, 3 * tall)
    each = torch.arange(count, device=images.device)[:, None, None] * width
    return _resize(half, weights_x, columns + each).view(count, -1, 3, tall).div_(255)


def views(
    images: Tensor, rows: Tensor, size: int, antialias: bool, forms: Sequence[ViewForm]
) -> list[Tensor]:
    """Views of stored images: shuffle, crop, resize, flip, mix with a partner, normalise.

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

    def per_channel(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device).view(1, 1, 3, 1)

    affines = [(per_channel(form.mean), per_channel(form.std)) for form in forms]
    _, height, width, _ = images.shape
    chunk = max(1, _CHUNK_NUMBERS // (3 * max(height, size) * max(width, size)))
    shuffles = rows[:, ViewColumn.SHUFFLE : ViewColumn.PERMUTATION + 1]
    mixed = is_blended(rows)
    if not count:
        return outs
    own = other = _axes(images, rows[:, :6], shuffles, size, antialias, dtype)
    if bool(mixed.any()):
        other = _axes(images, rows[mixed, 6:12], shuffles[mixed], size, antialias, dtype)
    at = 0
    for first in range(0, count, chunk):
        here = slice(first, first + chunk)
        view = _render(images, *(part[here] for part in own))
        chosen = mixed[here]
        if partners := int(chosen.sum()):
            parts = [part[at : at + partners] for part in other]
            at += partners
            if chunk == 1 and int(rows[first, ViewColumn.WEIGHT]) == WEIGHT_ONE:
                _paste(view, images, parts, rows[first])
            else:
                view[chosen] = _mix(view[chosen], _render(images, *parts), rows[here][chosen])
        for out, (mean, std) in zip(outs, affines, strict=True):
            # The last form has the memory of the view.
            shifted = view.sub_(mean) if out is outs[-1] else view - mean
            out[here] = shifted.div_(std).permute(0, 2, 3, 1)
    return outs


def _paste(view: Tensor, images: Tensor, parts: Sequence[Tensor], row: Tensor) -> None:
    """Draw of one partner what its box shows, into (1, Sx, 3, Sy)."""
    size = view.shape[1]
    y0, x0, y1, x1 = row[ViewColumn.Y0 : ViewColumn.X1 + 1].clamp(0, size).tolist()
    if y0 < y1 and x0 < x1:
        index, weights_y, rows, weights_x, columns = parts
        tall, wide = (weights_y[:, y0:y1], rows[:, y0:y1]), (weights_x[:, x0:x1], columns[:, x0:x1])
        view[:, x0:x1, :, y0:y1] = _render(images, index, *tall, *wide)


def _mix(own: Tensor, partner: Tensor, rows: Tensor) -> Tensor:
    """(P, Sx, 3, Sy) views with their partners pasted in the box, or blended by the weight."""
    at = torch.arange(own.shape[1], device=own.device)
    y0, x0, y1, x1 = (
        rows[:, column, None]
        for column in (ViewColumn.Y0, ViewColumn.X0, ViewColumn.Y1, ViewColumn.X1)
    )
    is_inside = ((at >= x0) & (at < x1))[:, :, None] & ((at >= y0) & (at < y1))[:, None, :]
    share = rows[:, ViewColumn.WEIGHT].to(own.dtype) / WEIGHT_ONE
    share = share[:, None, None].expand_as(is_inside).masked_fill(is_inside, 0.0)[:, :, None]
    return (own * share).add_(partner.mul_(1 - share))
