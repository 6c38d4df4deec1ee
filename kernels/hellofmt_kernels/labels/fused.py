# pyright: basic, reportArgumentType=false, reportCallIssue=false
"""Soft labels in Triton: a GEMM whose epilogue is the softmax, on the float32 accumulator.

One GEMM kernel with three epilogues. ``row``: a program holds whole rows of classes and writes
probabilities, one pass. ``stats``: a program holds one tile of classes and writes
E = exp2(t - k) with t the logits over temperature in base 2 and k = ceil(max t) of the row within
the tile, with k and the sum of E beside it; a second kernel multiplies by 2^(k - max k) / sum.
``logits``: the accumulator, scaled and shifted.

k is an *integer* per row and tile (as in Dao-AILab/quack, ``linear_cross_entropy.py``), so that
every later rescaling is by an exact power of two and E <= 1 never overflows.

Rows of the output are padded to a multiple of 16 elements and stored with their padding: with the
true class count as the mask, Triton could not prove alignment and would store one element at a
time. Rejected: recomputing the GEMM instead of storing E (faster only below about 400 features),
one program for thousands of classes (spills), atomics (order of sums).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from hellofmt_kernels import config
from hellofmt_kernels.launch import Launch
from hellofmt_kernels.tiles import table

if TYPE_CHECKING:
    from torch import Tensor

    from hellofmt_kernels.labels.reference import LabelOptions
    from hellofmt_kernels.tiles import LabelTile

__all__ = ["launch", "plan"]

_LOG2_E = math.log2(math.e)


@triton.jit
def _labels_fwd_kernel(
    x_ptr,  # (N, D)
    w_ptr,  # (C, D)
    bias_ptr,  # (C,) float32, or None
    y_ptr,  # (N, stride_yn): probabilities, E or logits
    k_ptr,  # (N, tiles) float32 for `stats`, else None
    s_ptr,  # (N, tiles) float32 for `stats`, else None
    N,
    C,
    D,
    stride_xn,
    stride_wc,
    stride_yn,
    acc_scale,
    bias_scale,
    EPILOGUE: tl.constexpr,
    IS_EVEN_D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # Programs of one class tile are neighbours and share it in the L2 cache.
    tile = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    classes = tile * BLOCK_C + tl.arange(0, BLOCK_C)
    # Repeating the last row costs less than a mask on every load of the loop.
    rows_in = tl.minimum(rows, N - 1)
    classes_in = tl.minimum(classes, C - 1)
    acc = tl.zeros((BLOCK_N, BLOCK_C), dtype=tl.float32)
    d = tl.arange(0, BLOCK_D)
    x_at = x_ptr + rows_in.to(tl.int64)[:, None] * stride_xn + d[None, :]
    w_at = w_ptr + classes_in.to(tl.int64)[None, :] * stride_wc + d[:, None]
    for first in range(0, D, BLOCK_D):
        if IS_EVEN_D:
            x = tl.load(x_at)
            w = tl.load(w_at)
        else:
            x = tl.load(x_at, mask=(d < D - first)[None, :], other=0.0)
            w = tl.load(w_at, mask=(d < D - first)[:, None], other=0.0)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
        x_at += BLOCK_D
        w_at += BLOCK_D
    t = acc * acc_scale
    if bias_ptr is not None:
        t += (tl.load(bias_ptr + classes_in) * bias_scale)[None, :]
    if EPILOGUE == "logits":
        y = t
    else:
        t = tl.where((classes < C)[None, :], t, float("-inf"))
        top = tl.max(t, axis=1)
        if EPILOGUE == "row":
            e = tl.exp2(t - top[:, None])
            y = e / tl.sum(e, axis=1)[:, None]
        else:
            # A tile without any probability (a bias of -inf) must not make -inf - -inf.
            k = tl.maximum(tl.ceil(top), -1e30)
            y = tl.exp2(t - k[:, None])
            at = rows.to(tl.int64) * tl.num_programs(1) + tile
            tl.store(k_ptr + at, k, mask=rows < N)
            tl.store(s_ptr + at, tl.sum(y, axis=1), mask=rows < N)
    y_at = y_ptr + rows.to(tl.int64)[:, None] * stride_yn + classes[None, :]
    mask = (rows[:, None] < N) & (classes[None, :] < stride_yn)
    tl.store(y_at, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _labels_normalise_kernel(
    y_ptr,  # (N, stride_yn), in place
    k_ptr,  # (N, tiles) float32
    s_ptr,  # (N, tiles) float32
    tiles,
    stride_yn,
    BLOCK_C: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    GROUP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    every = tl.arange(0, BLOCK_TILES)
    k = tl.load(k_ptr + row * tiles + every, mask=every < tiles, other=float("-inf"))
    s = tl.load(s_ptr + row * tiles + every, mask=every < tiles, other=0.0)
    top = tl.max(k, axis=0)
    total = tl.sum(s * tl.exp2(k - top), axis=0)
    mine = tl.program_id(1) * GROUP + tl.arange(0, GROUP)
    k_mine = tl.load(k_ptr + row * tiles + mine, mask=mine < tiles, other=float("-inf"))
    factor = tl.exp2(k_mine - top) / total
    classes = mine[:, None] * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    at = y_ptr + row * stride_yn + classes
    mask = classes < stride_yn
    y = tl.load(at, mask=mask, other=0.0).to(tl.float32) * factor[:, None]
    tl.store(at, y.to(y_ptr.dtype.element_ty), mask=mask)


def plan(
    x: Tensor, weight: Tensor, bias: Tensor | None, options: LabelOptions, tile: LabelTile
) -> tuple[Tensor, list[Launch]]:
    """Allocate the result and plan the launches that fill it: one, or two with statistics.

    The result is (N, padded row), see `hellofmt_kernels.config.padded_row`; the rest is as for
    ``launch``.
    """
    x, weight = (t if t.stride(1) == 1 else t.contiguous() for t in (x, weight))
    (n, d), c = x.shape, weight.shape[0]
    tiles = triton.cdiv(c, tile.block_c)
    out = x.new_empty((n, config.padded_row(c, "cuda")), dtype=options.dtype)
    k = s = None
    epilogue = "logits" if not options.is_softmax else "row" if tiles == 1 else "stats"
    if epilogue == "stats":
        k, s = x.new_empty((2, n, tiles), dtype=torch.float32).unbind(0)
    base = _LOG2_E / options.temperature if options.is_softmax else 1.0
    product = Launch(
        kernel=_labels_fwd_kernel,
        grid=(triton.cdiv(n, tile.block_n), tiles),
        arguments={
            "x_ptr": x,
            "w_ptr": weight,
            "bias_ptr": None if bias is None else bias.to(torch.float32).contiguous(),
            "y_ptr": out,
            "k_ptr": k,
            "s_ptr": s,
            "N": n,
            "C": c,
            "D": d,
            "stride_xn": x.stride(0),
            "stride_wc": weight.stride(0),
            "stride_yn": out.stride(0),
            "acc_scale": options.scale * base,
            "bias_scale": base,
        },
        constants={
            "EPILOGUE": epilogue,
            "IS_EVEN_D": d % tile.block_d == 0,
            # float32 has no tensor core of its own: three tf32 products keep its precision.
            "PRECISION": "tf32x3" if x.dtype == torch.float32 else "tf32",
            "BLOCK_N": tile.block_n,
            "BLOCK_C": tile.block_c,
            "BLOCK_D": tile.block_d,
        },
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    if k is None or s is None:
        return out, [product]
    return out, [product, _normalise(out, k, s, tile.block_c)]


def _normalise(out: Tensor, k: Tensor, s: Tensor, block_c: int) -> Launch:
    tiles = k.shape[1]
    group = min(triton.next_power_of_2(tiles), max(1, table().normalise_classes // block_c))
    return Launch(
        kernel=_labels_normalise_kernel,
        grid=(k.shape[0], triton.cdiv(tiles, group)),
        arguments={
            "y_ptr": out,
            "k_ptr": k,
            "s_ptr": s,
            "tiles": tiles,
            "stride_yn": out.stride(0),
        },
        constants={
            "BLOCK_C": block_c,
            "BLOCK_TILES": triton.next_power_of_2(tiles),
            "GROUP": group,
        },
        num_warps=4,
        num_stages=1,
    )


def launch(
    x: Tensor, weight: Tensor, bias: Tensor | None, options: LabelOptions, tile: LabelTile
) -> Tensor:
    """Compute what `hellofmt_kernels.labels.reference.soft_labels` defines, but in no float64.

    ``tile`` is the shape of a program, from `hellofmt_kernels.tiles.table`; N > 0.

    Returns:
        (N, C), a view of rows padded to a multiple of 16 elements.
    """
    out, launches = plan(x, weight, bias, options, tile)
    for one in launches:
        one.run()
    return out[:, : weight.shape[0]]
