# pyright: basic, reportArgumentType=false, reportOperatorIssue=false
"""Distillation loss in Triton: the statistics GEMM, then one program per row of the student.

The GEMM of ``soft_labels_triton`` leaves E = exp2(t - k) and its row sums; the row program turns
them into p and log p on the fly, reads the student's logits, and writes the loss and, if it is
wanted, the gradient (q - p) / student_temperature. The labels themselves are never stored, and E
is scratch memory for a few hundred rows at a time, so that it stays in the L2 cache.

E is kept in float16 for half-precision embeddings, 8 times finer than bfloat16 at the top; what
it flushes is below 6e-8 of the largest probability of the row's tile. Up to 8,192 classes a
program holds its row; above, it reads the student twice, as
``fla-org/flash-linear-attention``, ``fla/modules/fused_kl_div.py``, does.

Rejected: a loss that recomputes the teacher's GEMM instead of reading E (twice the arithmetic to
save memory that is already small), and overwriting the student's logits with their gradient.

Run times on a GPU are unmeasured.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from hellofmt_kernels import config
from hellofmt_kernels.launch import Launch
from hellofmt_kernels.soft_labels_triton import gemm, operands

__all__ = ["launch", "plan"]

_LOG2_E = math.log2(math.e)


@triton.jit
def _kl_tile(e_at, k_row_ptr, u, classes, mask, k_top, log2_total, u_shift, BLOCK_C: tl.constexpr):
    """Sum of p * (log2 p - log2 q), p and q of one tile of classes."""
    e = tl.load(e_at, mask=mask, other=0.0).to(tl.float32)
    k = tl.load(k_row_ptr + classes // BLOCK_C, mask=mask, other=0.0)
    # A class without probability has no information to lose, and 0 * -inf is not a number.
    has_p = e > 0.0
    log2_p = tl.log2(tl.where(has_p, e, 1.0)) + (k - k_top - log2_total)
    log2_q = u - u_shift
    p = tl.where(has_p, tl.exp2(log2_p), 0.0)
    terms = tl.where(has_p, p * (log2_p - tl.where(has_p, log2_q, 0.0)), 0.0)
    return tl.sum(terms, axis=0), p, tl.exp2(log2_q)


@triton.jit
def _label_kl_kernel(
    e_ptr,  # (rows, stride_en)
    k_ptr,  # (rows, tiles) float32
    s_ptr,  # (rows, tiles) float32
    student_ptr,  # (rows, C)
    loss_ptr,  # (rows,) float32
    gradient_ptr,  # (rows, C), or unused
    C,
    tiles,
    stride_en,
    stride_sn,
    stride_gn,
    student_scale,
    gradient_scale,
    HAS_GRADIENT: tl.constexpr,
    IS_ONE_STEP: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    every = tl.arange(0, BLOCK_TILES)
    k = tl.load(k_ptr + row * tiles + every, mask=every < tiles, other=float("-inf"))
    s = tl.load(s_ptr + row * tiles + every, mask=every < tiles, other=0.0)
    k_top = tl.max(k, axis=0)
    log2_total = tl.log2(tl.sum(s * tl.exp2(k - k_top), axis=0))
    k_row_ptr = k_ptr + row * tiles
    student_row_ptr = student_ptr + row * stride_sn
    gradient_row_ptr = gradient_ptr + row * stride_gn
    at = tl.arange(0, BLOCK)
    if IS_ONE_STEP:
        mask = at < C
        u = tl.load(student_row_ptr + at, mask=mask, other=float("-inf")).to(tl.float32)
        u *= student_scale
        top = tl.max(u, axis=0)
        u_shift = top + tl.log2(tl.sum(tl.exp2(u - top), axis=0))
        loss, p, q = _kl_tile(
            e_ptr + row * stride_en + at,
            k_row_ptr,
            u,
            at,
            mask,
            k_top,
            log2_total,
            u_shift,
            BLOCK_C,
        )
        if HAS_GRADIENT:
            gradient = (q - p) * gradient_scale
            tl.store(
                gradient_row_ptr + at,
                gradient.to(gradient_ptr.dtype.element_ty),
                mask=at < stride_gn,
            )
    else:
        # Every lane keeps its own maximum, so that a step needs no reduction over the program.
        # It starts finite, so that a lane without any class makes no -inf - -inf.
        tops = tl.full((BLOCK,), -1e30, tl.float32)
        totals = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, C, BLOCK):
            mask = first + at < C
            u = tl.load(student_row_ptr + first + at, mask=mask, other=float("-inf"))
            u = u.to(tl.float32) * student_scale
            risen = tl.maximum(tops, u)
            totals = totals * tl.exp2(tops - risen) + tl.exp2(u - risen)
            tops = risen
        top = tl.max(tops, axis=0)
        u_shift = top + tl.log2(tl.sum(totals * tl.exp2(tops - top), axis=0))
        loss = 0.0
        for first in range(0, C, BLOCK):
            classes = first + at
            mask = classes < C
            u = tl.load(student_row_ptr + classes, mask=mask, other=float("-inf")).to(tl.float32)
            part, p, q = _kl_tile(
                e_ptr + row * stride_en + classes,
                k_row_ptr,
                u * student_scale,
                classes,
                mask,
                k_top,
                log2_total,
                u_shift,
                BLOCK_C,
            )
            loss += part
            if HAS_GRADIENT:
                gradient = (q - p) * gradient_scale
                gradient = gradient.to(gradient_ptr.dtype.element_ty)
                tl.store(gradient_row_ptr + classes, gradient, mask=classes < stride_gn)
    # From base 2 to nats.
    tl.store(loss_ptr + row, loss * 0.6931471805599453)


def plan(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    temperature: float,
    student: torch.Tensor,
    student_temperature: float,
    loss: torch.Tensor,
    gradient: torch.Tensor | None,
    low_rank: tuple[torch.Tensor, torch.Tensor, float] | None = None,
    tile: config.LabelTile | None = None,
    rows: int | None = None,
    capability: tuple[int, int] = (9, 0),
) -> list[Launch]:
    """Launches that fill ``loss`` and ``gradient``.

    Args:
        x: (N, D) float16, bfloat16 or float32; N > 0.
        weight: (C, D) of x's dtype.
        bias: (C,) floating point, or none.
        scale: dimensionless.
        temperature: of the labels; dimensionless, > 0.
        student: (N, C) logits.
        student_temperature: dimensionless, > 0.
        loss: (N,) float32.
        gradient: (N, padded row) of the student's dtype, or none.
        low_rank: (A, B, s), or none.
        tile: of the GEMM, instead of the one the table gives.
        rows: handled at once, instead of the table's number.
        capability: of the device, for the table.

    Returns:
        Two launches for every ``rows`` rows, which share their scratch memory.
    """
    x, weight, bias, factors = operands(x, weight, bias, low_rank)
    student = student if student.stride(1) == 1 else student.contiguous()
    (n, d), c = x.shape, weight.shape[0]
    if tile is None:
        tile = config.choose_label_tile(n, d, c, x.element_size(), capability)
    e_dtype = torch.float32 if x.dtype == torch.float32 else torch.float16
    if rows is None:
        rows = config.choose_kl_rows(n, c, e_dtype.itemsize)
    tiles = triton.cdiv(c, tile.block_c)
    scratch = x.new_empty((rows, config.padded_row(c, "cuda")), dtype=e_dtype)
    stats = x.new_empty((2, rows, tiles), dtype=torch.float32)
    block, num_warps = config.choose_kl_block(c)
    acc_scale, bias_scale = scale * _LOG2_E / temperature, _LOG2_E / temperature
    launches: list[Launch] = []
    for first in range(0, n, rows):
        part = slice(first, min(n, first + rows))
        some = None if factors is None else (factors[0][part], factors[1])
        one = gemm(
            x[part],
            weight,
            bias,
            some,
            scratch,
            (stats[0], stats[1]),
            acc_scale,
            bias_scale,
            "stats",
            tile,
        )
        wanted = loss if gradient is None else gradient[part]
        two = Launch(
            kernel=_label_kl_kernel,
            grid=(part.stop - part.start,),
            arguments={
                "e_ptr": scratch,
                "k_ptr": stats[0],
                "s_ptr": stats[1],
                "student_ptr": student[part],
                "loss_ptr": loss[part],
                "gradient_ptr": wanted,
                "C": c,
                "tiles": tiles,
                "stride_en": scratch.stride(0),
                "stride_sn": student.stride(0),
                "stride_gn": 0 if gradient is None else gradient.stride(0),
                "student_scale": _LOG2_E / student_temperature,
                "gradient_scale": 1.0 / student_temperature,
            },
            constants={
                "HAS_GRADIENT": gradient is not None,
                "IS_ONE_STEP": block >= c,
                "BLOCK_C": tile.block_c,
                "BLOCK_TILES": triton.next_power_of_2(tiles),
                "BLOCK": block,
            },
            num_warps=num_warps,
            num_stages=1,
        )
        launches += (one, two)
    return launches


def launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    temperature: float,
    student: torch.Tensor,
    student_temperature: float,
    needs_gradient: bool,
    low_rank: tuple[torch.Tensor, torch.Tensor, float] | None = None,
    tile: config.LabelTile | None = None,
    rows: int | None = None,
    capability: tuple[int, int] = (9, 0),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss per row and its gradient, as `reference.soft_label_kl` defines them.

    Args:
        x: (N, D) float16, bfloat16 or float32; N > 0.
        weight: (C, D) of x's dtype.
        bias: (C,) floating point, or none.
        scale: dimensionless.
        temperature: of the labels; dimensionless, > 0.
        student: (N, C) float16, bfloat16 or float32 logits.
        student_temperature: dimensionless, > 0.
        needs_gradient: compute the gradient too.
        low_rank: (A, B, s), or none.
        tile: of the GEMM, instead of the one the table gives.
        rows: handled at once, instead of the table's number.
        capability: of the device, for the table.

    Returns:
        (N,) float32 losses in nats, and (N, C) gradients of the student's dtype, a view of padded
        rows, or (0, 0).
    """
    n, c = student.shape
    loss = x.new_empty((n,), dtype=torch.float32)
    gradient = student.new_empty((n, config.padded_row(c, "cuda"))) if needs_gradient else None
    arguments = (x, weight, bias, scale, temperature, student, student_temperature, loss, gradient)
    for one in plan(*arguments, low_rank, tile=tile, rows=rows, capability=capability):
        one.run()
    return loss, student.new_empty((0, 0)) if gradient is None else gradient[:, :c]
