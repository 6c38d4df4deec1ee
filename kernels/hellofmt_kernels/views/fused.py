# pyright: basic, reportArgumentType=false, reportGeneralTypeIssues=false
"""Augmented views in Triton: one launch from stored bytes to views, normalised once or twice.

A program makes one tile of output pixels of one view: index arithmetic in one dimension per axis,
then a gather of the taps, and a store of three channels. Weights are the exact integers of
``reference._taps`` until one division, so no float coordinate is ever rounded.

The view itself and its partner are two rounds of the same loop. A tile that lies outside the box
runs the first only, one inside it the second only, so a CutMix row costs what a plain one does
but for the tiles that the box's edge crosses; a MixUp row runs both.

The accumulators hold the view in [0, 1]. What leaves is an affine of it, and a second affine with a
store of its own for the encoder that labels the view, compiled in only where it is asked for.

The kernel is bound by instructions rather than bytes: one thread per output *value* compiles to
twice the instructions of one per output pixel. Rejected: ``grid_sample`` and ``roi_align``, which
read beyond the crop.

Rows of parameters are trusted here; ``views.ops`` checks those that come from the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from hellofmt_kernels import config
from hellofmt_kernels.launch import Launch
from hellofmt_kernels.tiles import ViewTile, table
from hellofmt_kernels.views.row import VIEW_COLUMNS, WEIGHT_ONE, ViewColumn

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from hellofmt_kernels.views.reference import ViewForm

__all__ = ["launch", "plan"]

_ROW = tl.constexpr(VIEW_COLUMNS)
_ONE = tl.constexpr(WEIGHT_ONE)
_PARTNER = tl.constexpr(int(ViewColumn.PARTNER_IMAGE))
_Y0 = tl.constexpr(int(ViewColumn.Y0))
_WEIGHT = tl.constexpr(int(ViewColumn.WEIGHT))
_SHUFFLE = tl.constexpr(int(ViewColumn.SHUFFLE))

#: Cells 0 to 7 in order, four bits each.
_IN_ORDER = tl.constexpr(0x76543210)


@triton.jit
def _factorial(factor):
    product = 1
    for k in tl.static_range(2, 9):
        if k <= factor:
            product *= k
    return product


@triton.jit
def _packed_permutation(rank, factor, orders):
    """Unpack a lexicographic rank into a permutation, four bits a cell, place 0 lowest."""
    left = tl.full((), _IN_ORDER, tl.int64)
    packed = tl.zeros((), tl.int64)
    for k in tl.static_range(8):
        if k < factor:
            orders = orders // (factor - k)
            digit = (4 * (rank // orders)).to(tl.int64)
            rank = rank % orders
            packed += ((left >> digit) & 15) << (4 * k)
            # Take the cell out of the ordered list of those that are left.
            below = left & ((1 << digit) - 1)
            left = below | ((left >> (digit + 4)) << digit)
    return packed


@triton.jit
def _reach(length, SIZE: tl.constexpr, ANTIALIAS: tl.constexpr):
    if ANTIALIAS:
        return tl.maximum(length, SIZE)
    else:
        return SIZE


@triton.jit
def _first_tap(i, length, SIZE: tl.constexpr, ANTIALIAS: tl.constexpr):
    """Find the first pixel j of the crop with (2j + 1) S > (2i + 1) n - 2m."""
    low = (2 * i + 1) * length - 2 * _reach(length, SIZE, ANTIALIAS) - SIZE
    return tl.where(low < 0, 0, low // (2 * SIZE) + 1)


@triton.jit
def _tap_weight(i, j, length, SIZE: tl.constexpr, ANTIALIAS: tl.constexpr):
    distance = tl.abs((2 * j + 1) * SIZE - (2 * i + 1) * length)
    weight = tl.maximum(2 * _reach(length, SIZE, ANTIALIAS) - distance, 0)
    return tl.where(j < length, weight, 0).to(tl.float32)


@triton.jit
def _stored(position, extent, factor, packed):
    """Find where the pixel at a position of the shuffled image is stored."""
    if factor > 1:
        side = extent // factor
        cell = position // side
        old = ((packed >> (4 * cell).to(tl.int64)) & 15).to(tl.int32)
        position = old * side + position % side
    return position


@triton.jit
def _tap(
    i,
    tap,
    start,
    length,
    extent,
    factor,
    packed,
    total,
    SIZE: tl.constexpr,
    ANTIALIAS: tl.constexpr,
    TAPS: tl.constexpr,
):
    """Return the weight of one tap of every output along an axis, and where its pixel is stored."""
    if TAPS == 2:
        # The filter spans two pixels and the weights sum to 2S, but where one is cut off.
        numerator = tl.maximum((2 * i + 1) * length - SIZE, 0)
        first = numerator // (2 * SIZE)
        j = first + tap
        second = (numerator % (2 * SIZE)).to(tl.float32) * (0.5 / SIZE)
        second = tl.where(first + 1 < length, second, 0.0)
        weight = tl.where(tap == 0, 1.0 - second, second)
    else:
        j = _first_tap(i, length, SIZE, ANTIALIAS) + tap
        weight = tl.div_rn(_tap_weight(i, j, length, SIZE, ANTIALIAS), total)
    return weight, _stored(start + tl.minimum(j, length - 1), extent, factor, packed)


@triton.jit
def _total_weight(
    i,
    length,
    SIZE: tl.constexpr,
    ANTIALIAS: tl.constexpr,
    TAPS: tl.constexpr,
):
    """Sum the weights of every output; two taps need no sum."""
    total = tl.zeros_like(i).to(tl.float32)
    if TAPS > 2:
        first = _first_tap(i, length, SIZE, ANTIALIAS)
        for tap in range(TAPS):
            total += _tap_weight(i, first + tap, length, SIZE, ANTIALIAS)
    return total


@triton.jit
def _part(value, share):
    """Return the share of a channel in [0, 1]: share * value / 255."""
    # Reciprocal, then one correction with the exact remainder: the correctly rounded quotient
    # (Markstein 1990) for a third of the cost of a division.
    quotient = value * 0.003921568859368563
    quotient = tl.fma(tl.fma(-255.0, quotient, value), 0.003921568859368563, quotient)
    return share * quotient


@triton.jit
def _store_view(
    view_ptr,
    pixel,
    mask,
    red,
    green,
    blue,
    SIZE: tl.constexpr,
    IS_CHANNELS_LAST: tl.constexpr,
):
    dtype = view_ptr.dtype.element_ty
    if IS_CHANNELS_LAST:
        tl.store(view_ptr + 3 * pixel, red.to(dtype), mask=mask)
        tl.store(view_ptr + 3 * pixel + 1, green.to(dtype), mask=mask)
        tl.store(view_ptr + 3 * pixel + 2, blue.to(dtype), mask=mask)
    else:
        tl.store(view_ptr + pixel, red.to(dtype), mask=mask)
        tl.store(view_ptr + SIZE * SIZE + pixel, green.to(dtype), mask=mask)
        tl.store(view_ptr + 2 * SIZE * SIZE + pixel, blue.to(dtype), mask=mask)


@triton.jit
def _views_kernel(
    images_ptr,  # (M, H, W, 3) uint8
    rows_ptr,  # (N, 20) int32
    out_ptr,  # (N, 3, S, S)
    second_ptr,  # (N, 3, S, S), the same views in another form
    height,
    width,
    scale_0,
    scale_1,
    scale_2,
    shift_0,
    shift_1,
    shift_2,
    second_scale_0,
    second_scale_1,
    second_scale_2,
    second_shift_0,
    second_shift_1,
    second_shift_2,
    SIZE: tl.constexpr,
    ANTIALIAS: tl.constexpr,
    TAPS_Y: tl.constexpr,
    TAPS_X: tl.constexpr,
    UNROLL_Y: tl.constexpr,
    UNROLL_X: tl.constexpr,
    IS_CHANNELS_LAST: tl.constexpr,
    HAS_SECOND: tl.constexpr,
    IS_SECOND_CHANNELS_LAST: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    n = tl.program_id(0)
    tiles_x: tl.constexpr = (SIZE + BLOCK_X - 1) // BLOCK_X
    from_y = (tl.program_id(1) // tiles_x) * BLOCK_Y
    from_x = (tl.program_id(1) % tiles_x) * BLOCK_X
    y = from_y + tl.arange(0, BLOCK_Y)
    x = from_x + tl.arange(0, BLOCK_X)
    # Outputs beyond the edge repeat the last one, so that no load needs a mask.
    y_in = tl.minimum(y, SIZE - 1)
    x_in = tl.minimum(x, SIZE - 1)

    row_ptr = rows_ptr + n * _ROW
    box_y0 = tl.load(row_ptr + _Y0)
    box_x0 = tl.load(row_ptr + _Y0 + 1)
    box_y1 = tl.load(row_ptr + _Y0 + 2)
    box_x1 = tl.load(row_ptr + _Y0 + 3)
    weight = tl.load(row_ptr + _WEIGHT)
    factor = tl.load(row_ptr + _SHUFFLE)
    packed_y = tl.zeros((), tl.int64)
    packed_x = tl.zeros((), tl.int64)
    if factor > 1:
        number = tl.load(row_ptr + _SHUFFLE + 1)
        orders = _factorial(factor)
        packed_x = _packed_permutation(number // orders, factor, orders)
        packed_y = _packed_permutation(number % orders, factor, orders)

    is_inside = ((y >= box_y0) & (y < box_y1))[:, None] & ((x >= box_x0) & (x < box_x1))[None, :]
    to_y = tl.minimum(from_y + BLOCK_Y, SIZE)
    to_x = tl.minimum(from_x + BLOCK_X, SIZE)
    is_covered = (box_y0 <= from_y) & (to_y <= box_y1) & (box_x0 <= from_x) & (to_x <= box_x1)
    is_touched = (tl.maximum(box_y0, from_y) < tl.minimum(box_y1, to_y)) & (
        tl.maximum(box_x0, from_x) < tl.minimum(box_x1, to_x)
    )
    needs_own = (weight > 0) & (is_covered == 0)
    needs_partner = (weight < _ONE) | is_touched
    share = tl.where(is_inside, 0.0, weight.to(tl.float32) / _ONE)

    red = tl.zeros((BLOCK_Y, BLOCK_X), tl.float32)
    green = tl.zeros((BLOCK_Y, BLOCK_X), tl.float32)
    blue = tl.zeros((BLOCK_Y, BLOCK_X), tl.float32)
    for source in range(1 - needs_own.to(tl.int32), 1 + needs_partner.to(tl.int32)):
        crop_ptr = row_ptr + source * _PARTNER
        image = tl.load(crop_ptr).to(tl.int64)
        top = tl.load(crop_ptr + 1)
        left = tl.load(crop_ptr + 2)
        crop_height = tl.load(crop_ptr + 3)
        crop_width = tl.load(crop_ptr + 4)
        flip = tl.load(crop_ptr + 5)
        image_ptr = images_ptr + image * (height * width * 3)
        x_of = tl.where(flip > 0, SIZE - 1 - x_in, x_in)
        total_y = _total_weight(y_in, crop_height, SIZE, ANTIALIAS, TAPS_Y)
        total_x = _total_weight(x_of, crop_width, SIZE, ANTIALIAS, TAPS_X)
        full_red = tl.zeros((BLOCK_Y, BLOCK_X), tl.float32)
        full_green = tl.zeros((BLOCK_Y, BLOCK_X), tl.float32)
        full_blue = tl.zeros((BLOCK_Y, BLOCK_X), tl.float32)
        for tap_y in tl.range(0, TAPS_Y, loop_unroll_factor=UNROLL_Y):
            weight_y, line = _tap(
                y_in,
                tap_y,
                top,
                crop_height,
                height,
                factor,
                packed_y,
                total_y,
                SIZE,
                ANTIALIAS,
                TAPS_Y,
            )
            weight_y = weight_y[:, None]
            line_ptr = image_ptr + (line * (3 * width))[:, None]
            half_red = tl.zeros((BLOCK_Y, BLOCK_X), tl.float32)
            half_green = tl.zeros((BLOCK_Y, BLOCK_X), tl.float32)
            half_blue = tl.zeros((BLOCK_Y, BLOCK_X), tl.float32)
            for tap_x in tl.range(0, TAPS_X, loop_unroll_factor=UNROLL_X):
                weight_x, column = _tap(
                    x_of,
                    tap_x,
                    left,
                    crop_width,
                    width,
                    factor,
                    packed_x,
                    total_x,
                    SIZE,
                    ANTIALIAS,
                    TAPS_X,
                )
                weight_x = weight_x[None, :]
                at = line_ptr + (3 * column)[None, :]
                half_red += weight_x * tl.load(at).to(tl.float32)
                half_green += weight_x * tl.load(at + 1).to(tl.float32)
                half_blue += weight_x * tl.load(at + 2).to(tl.float32)
            full_red += weight_y * half_red
            full_green += weight_y * half_green
            full_blue += weight_y * half_blue
        part = tl.where(source == 0, share, 1.0 - share)
        red += _part(full_red, part)
        green += _part(full_green, part)
        blue += _part(full_blue, part)

    mask = (y[:, None] < SIZE) & (x[None, :] < SIZE)
    pixel = y[:, None] * SIZE + x[None, :]
    at = n.to(tl.int64) * (3 * SIZE * SIZE)
    _store_view(
        out_ptr + at,
        pixel,
        mask,
        red * scale_0 + shift_0,
        green * scale_1 + shift_1,
        blue * scale_2 + shift_2,
        SIZE,
        IS_CHANNELS_LAST,
    )
    if HAS_SECOND:
        _store_view(
            second_ptr + at,
            pixel,
            mask,
            red * second_scale_0 + second_shift_0,
            green * second_scale_1 + second_shift_1,
            blue * second_scale_2 + second_shift_2,
            SIZE,
            IS_SECOND_CHANNELS_LAST,
        )


def _affines(forms: Sequence[ViewForm]) -> dict[str, float]:
    """Write (view - mean) / std per channel as one product and one sum."""
    # Without a second form the kernel has no second store, and reads none of its numbers.
    affines = zip(("", "second_"), (forms[0], forms[-1]), strict=True)
    return {
        f"{prefix}{name}_{c}": value
        for prefix, form in affines
        for c in range(3)
        for name, value in (
            ("scale", 1.0 / form.std[c]),
            ("shift", -form.mean[c] / form.std[c]),
        )
    }


def plan(
    images: torch.Tensor,
    rows: torch.Tensor,
    outs: Sequence[torch.Tensor],
    antialias: bool,
    forms: Sequence[ViewForm],
    tile: ViewTile | None = None,
) -> Launch:
    """Plan the launch that fills ``outs``, one or two (N, 3, S, S), with the same views.

    Images and rows are contiguous and N > 0; ``tile`` replaces the table's choice. The rest is as
    for ``launch``.
    """
    _, height, width, _ = images.shape
    n, _, size, _ = outs[0].shape
    if tile is None:
        tile = table().views(size)
    taps_y = config.view_taps(height, size, antialias)
    taps_x = config.view_taps(width, size, antialias)
    tiles = triton.cdiv(size, tile.block_y) * triton.cdiv(size, tile.block_x)
    return Launch(
        kernel=_views_kernel,
        grid=(n, tiles),
        arguments={
            "images_ptr": images,
            "rows_ptr": rows,
            "out_ptr": outs[0],
            "second_ptr": outs[-1],
            "height": height,
            "width": width,
            **_affines(forms),
        },
        constants={
            "SIZE": size,
            "ANTIALIAS": antialias,
            "TAPS_Y": taps_y,
            "TAPS_X": taps_x,
            # Two taps are the common case and worth straight code; many would not fit a cache.
            "UNROLL_Y": taps_y if taps_y == 2 else 1,
            "UNROLL_X": taps_x if taps_x == 2 else 1,
            "IS_CHANNELS_LAST": forms[0].is_channels_last,
            "HAS_SECOND": len(forms) == 2,
            "IS_SECOND_CHANNELS_LAST": forms[-1].is_channels_last,
            "BLOCK_Y": tile.block_y,
            "BLOCK_X": tile.block_x,
        },
        num_warps=tile.num_warps,
        num_stages=1,
    )


def launch(
    images: torch.Tensor,
    rows: torch.Tensor,
    size: int,
    antialias: bool,
    forms: Sequence[ViewForm],
    tile: ViewTile | None = None,
) -> list[torch.Tensor]:
    """Draw what `hellofmt_kernels.views.reference.views` defines, (N, 3, S, S) of each form.

    Rows are trusted, and N > 0; there are one or two forms, none in float64.
    """
    outs = [form.empty(rows.shape[0], size, images.device) for form in forms]
    plan(images.contiguous(), rows.contiguous(), outs, antialias, forms, tile).run()
    return outs
