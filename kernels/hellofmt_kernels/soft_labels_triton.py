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

Run times on a GPU are unmeasured.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import triton
import triton.language as tl

from hellofmt_kernels import config
from hellofmt_kernels.launch import Launch

__all__ = ["launch", "plan"]

_LOG2_E = math.log2(math.e)


@triton.jit
def _accumulate(
    acc,
    x_ptr,
    w_ptr,
    rows,
    classes,
    depth,
    stride_xn,
    stride_wc,
    BLOCK_D: tl.constexpr,
    IS_EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    d = tl.arange(0, BLOCK_D)
    x_at = x_ptr + rows.to(tl.int64)[:, None] * stride_xn + d[None, :]
    w_at = w_ptr + classes.to(tl.int64)[None, :] * stride_wc + d[:, None]
    for first in range(0, depth, BLOCK_D):
        if IS_EVEN:
            x = tl.load(x_at)
            w = tl.load(w_at)
        else:
            x = tl.load(x_at, mask=(d < depth - first)[None, :], other=0.0)
            w = tl.load(w_at, mask=(d < depth - first)[:, None], other=0.0)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
        x_at += BLOCK_D
        w_at += BLOCK_D
    return acc


@triton.jit
def _labels_fwd_kernel(
    x_ptr,  # (N, D)
    w_ptr,  # (C, D)
    bias_ptr,  # (C,) float32, or unused
    u_ptr,  # (N, R), s * x A^T, or unused
    b_ptr,  # (C, R), or unused
    y_ptr,  # (N, stride_yn): probabilities, E or logits
    k_ptr,  # (N, tiles) float32, of `stats`
    s_ptr,  # (N, tiles) float32, of `stats`
    N,
    C,
    D,
    R,
    stride_xn,
    stride_wc,
    stride_un,
    stride_bc,
    stride_yn,
    acc_scale,
    bias_scale,
    EPILOGUE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_LOW_RANK: tl.constexpr,
    IS_EVEN_D: tl.constexpr,
    IS_EVEN_R: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    # Programs of one class tile are neighbours and share it in the L2 cache.
    tile = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    classes = tile * BLOCK_C + tl.arange(0, BLOCK_C)
    # Repeating the last row costs less than a mask on every load of the loop.
    rows_in = tl.minimum(rows, N - 1)
    classes_in = tl.minimum(classes, C - 1)
    acc = tl.zeros((BLOCK_N, BLOCK_C), dtype=tl.float32)
    acc = _accumulate(
        acc,
        x_ptr,
        w_ptr,
        rows_in,
        classes_in,
        D,
        stride_xn,
        stride_wc,
        BLOCK_D,
        IS_EVEN_D,
        PRECISION,
    )
    if HAS_LOW_RANK:
        acc = _accumulate(
            acc,
            u_ptr,
            b_ptr,
            rows_in,
            classes_in,
            R,
            stride_un,
            stride_bc,
            BLOCK_R,
            IS_EVEN_R,
            PRECISION,
        )
    t = acc * acc_scale
    if HAS_BIAS:
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


def gemm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    low_rank: tuple[torch.Tensor, torch.Tensor] | None,
    out: torch.Tensor,
    stats: tuple[torch.Tensor, torch.Tensor] | None,
    acc_scale: float,
    bias_scale: float,
    epilogue: str,
    tile: config.LabelTile,
) -> Launch:
    """The GEMM with one of its epilogues, as a launch.

    Args:
        x: (N, D), rows contiguous.
        weight: (C, D), rows contiguous.
        bias: (C,) float32, contiguous, or none.
        low_rank: (s * x A^T (N, R), B (C, R)), rows contiguous, or none.
        out: (N, padded row), written with its padding.
        stats: two (N, tiles) float32, for ``epilogue="stats"``, or none.
        acc_scale: multiplies the accumulator.
        bias_scale: multiplies the bias.
        epilogue: ``"row"``, ``"stats"`` or ``"logits"``.
        tile: of the program.

    Returns:
        The launch; nothing has run.
    """
    (n, d), c = x.shape, weight.shape[0]
    u, b = (x, weight) if low_rank is None else low_rank
    r = u.shape[1]
    k, s = (out, out) if stats is None else stats
    block_r = min(tile.block_d, max(16, triton.next_power_of_2(r)))
    return Launch(
        kernel=_labels_fwd_kernel,
        grid=(triton.cdiv(n, tile.block_n), triton.cdiv(c, tile.block_c)),
        arguments={
            "x_ptr": x,
            "w_ptr": weight,
            "bias_ptr": x if bias is None else bias,
            "u_ptr": u,
            "b_ptr": b,
            "y_ptr": out,
            "k_ptr": k,
            "s_ptr": s,
            "N": n,
            "C": c,
            "D": d,
            "R": r,
            "stride_xn": x.stride(0),
            "stride_wc": weight.stride(0),
            "stride_un": u.stride(0),
            "stride_bc": b.stride(0),
            "stride_yn": out.stride(0),
            "acc_scale": acc_scale,
            "bias_scale": bias_scale,
        },
        constants={
            "EPILOGUE": epilogue,
            "HAS_BIAS": bias is not None,
            "HAS_LOW_RANK": low_rank is not None,
            "IS_EVEN_D": d % tile.block_d == 0,
            "IS_EVEN_R": r % block_r == 0,
            # float32 has no tensor core of its own: three tf32 products keep its precision.
            "PRECISION": "tf32x3" if x.dtype == torch.float32 else "tf32",
            "BLOCK_N": tile.block_n,
            "BLOCK_C": tile.block_c,
            "BLOCK_D": tile.block_d,
            "BLOCK_R": block_r,
        },
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def _rows_contiguous(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(1) == 1 else tensor.contiguous()


def operands(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    low_rank: tuple[torch.Tensor, torch.Tensor, float] | None,
) -> tuple[
    torch.Tensor,
    torch.Tensor,
    torch.Tensor | None,
    tuple[torch.Tensor, torch.Tensor] | None,
]:
    """Operands in the layout that the GEMM expects, with [x | s x A^T][W | B]^T for a low rank.

    The concatenation is along the summed dimension and never made: the kernel runs two loops.

    Args:
        x: (N, D).
        weight: (C, D).
        bias: (C,) of any floating dtype, or none.
        low_rank: (A, B, s), or none.

    Returns:
        x, weight, float32 bias or none, and (s * x A^T in x's dtype, B) or none.
    """
    factors = None
    if low_rank is not None:
        a, b, factor = low_rank
        inner = (x.to(torch.float32) @ a.to(torch.float32).T) * factor
        factors = (inner.to(x.dtype), _rows_contiguous(b))
    wide_bias = None if bias is None else bias.to(torch.float32).contiguous()
    return _rows_contiguous(x), _rows_contiguous(weight), wide_bias, factors


def plan(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    temperature: float,
    out: torch.Tensor,
    is_softmax: bool,
    low_rank: tuple[torch.Tensor, torch.Tensor, float] | None = None,
    tile: config.LabelTile | None = None,
    capability: tuple[int, int] = (9, 0),
) -> list[Launch]:
    """Launches that fill ``out`` with soft labels or logits.

    Args:
        x: (N, D) float16, bfloat16 or float32; N > 0.
        weight: (C, D) of x's dtype.
        bias: (C,) floating point, or none.
        scale: dimensionless.
        temperature: dimensionless, > 0.
        out: (N, padded row) of the output dtype, see `hellofmt_kernels.config.padded_row`.
        is_softmax: probabilities, else logits before the temperature.
        low_rank: (A, B, s), or none.
        tile: instead of the one the table gives.
        capability: of the device, for the table.

    Returns:
        One launch, or two: statistics, then normalisation.
    """
    x, weight, bias, factors = operands(x, weight, bias, low_rank)
    (n, d), c = x.shape, weight.shape[0]
    if tile is None:
        tile = config.choose_label_tile(n, d, c, x.element_size(), capability)
    if not is_softmax:
        return [gemm(x, weight, bias, factors, out, None, scale, 1.0, "logits", tile)]
    acc_scale, bias_scale = scale * _LOG2_E / temperature, _LOG2_E / temperature
    if tile.block_c >= c:
        return [gemm(x, weight, bias, factors, out, None, acc_scale, bias_scale, "row", tile)]
    tiles = triton.cdiv(c, tile.block_c)
    k, s = x.new_empty((2, n, tiles), dtype=torch.float32).unbind(0)
    first = gemm(x, weight, bias, factors, out, (k, s), acc_scale, bias_scale, "stats", tile)
    return [first, _normalise(out, k, s, tile.block_c)]


def _normalise(out: torch.Tensor, k: torch.Tensor, s: torch.Tensor, block_c: int) -> Launch:
    tiles = k.shape[1]
    group = min(triton.next_power_of_2(tiles), max(1, config.NORMALISE_CLASSES // block_c))
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


_measured: dict[tuple[object, ...], config.LabelTile] = {}


def _measured_tile(
    arguments: tuple[Any, ...], capability: tuple[int, int]
) -> config.LabelTile | None:
    """The fastest candidate on this device, measured once per shape; none where that is illegal."""
    x, weight, *_, out, is_softmax, _ = arguments
    if not x.is_cuda or torch.cuda.is_current_stream_capturing():
        return None
    (n, d), c = x.shape, weight.shape[0]
    # Batches of nearly one size share a measurement.
    key = (x.device, triton.next_power_of_2(n), d, c, x.dtype, out.dtype, is_softmax)
    if key not in _measured:

        def time_ms(tile: config.LabelTile) -> float:
            launches = plan(*arguments, tile=tile, capability=capability)
            return cast("float", triton.testing.do_bench(lambda: [one.run() for one in launches]))

        candidates = config.label_tile_candidates(n, d, c, x.element_size(), capability)
        _measured[key] = config.fastest(candidates, time_ms)
    return _measured[key]


def launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    temperature: float,
    out_dtype: torch.dtype,
    is_softmax: bool,
    low_rank: tuple[torch.Tensor, torch.Tensor, float] | None = None,
    tile: config.LabelTile | None = None,
    capability: tuple[int, int] = (9, 0),
) -> torch.Tensor:
    """Soft labels or logits of embeddings, as `reference.soft_labels` defines them.

    Args:
        x: (N, D) float16, bfloat16 or float32; N > 0.
        weight: (C, D) of x's dtype.
        bias: (C,) floating point, or none.
        scale: dimensionless.
        temperature: dimensionless, > 0.
        out_dtype: float16, bfloat16 or float32.
        is_softmax: probabilities, else logits before the temperature.
        low_rank: (A, B, s), or none.
        tile: instead of the one the table gives.
        capability: of the device, for the table.

    Returns:
        (N, C), a view of rows padded to a multiple of 16 elements.
    """
    n, c = x.shape[0], weight.shape[0]
    out = x.new_empty((n, config.padded_row(c, "cuda")), dtype=out_dtype)
    arguments = (x, weight, bias, scale, temperature, out, is_softmax, low_rank)
    if tile is None and config.is_autotuned():
        tile = _measured_tile(arguments, capability)
    for one in plan(*arguments, tile=tile, capability=capability):
        one.run()
    return out[:, :c]
