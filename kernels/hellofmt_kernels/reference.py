"""What every operator of this package computes, in plain torch: the definition and the CPU path.

Precision: float64 stays float64; every other dtype is computed in float32, and only the result is
rounded to the output dtype. A logit is never rounded to a narrower type, since at CLIP's scale of
100 one bfloat16 step of a logit is worth 18 % of a probability.

The functions are differentiable by torch itself, which is what the tests of the fused gradients
compare with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["logits", "soft_labels"]


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def logits(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: float,
    low_rank: tuple[Tensor, Tensor, float] | None = None,
) -> Tensor:
    """Logits of embeddings before the temperature: scale * x (W + s B A)^T + b.

    Args:
        x: (N, D) floating point.
        weight: (C, D) of the same dtype.
        bias: (C,) floating point, or none; outside the scale.
        scale: dimensionless, ``exp(logit_scale)`` of CLIP.
        low_rank: (A (R, D), B (C, R), s), the unmerged delta s * B A of the weight, or none.

    Returns:
        (N, C) float64 for float64 input, else float32.
    """
    dtype = _accumulation_dtype(x.dtype)
    rows = x.to(dtype)
    z = rows @ weight.to(dtype).T
    if low_rank is not None:
        a, b, factor = low_rank
        z = z + factor * ((rows @ a.to(dtype).T) @ b.to(dtype).T)
    z = scale * z
    return z if bias is None else z + bias.to(dtype)


def soft_labels(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: float,
    temperature: float,
    out_dtype: torch.dtype | None = None,
    epilogue: str = "softmax",
    low_rank: tuple[Tensor, Tensor, float] | None = None,
) -> Tensor:
    """Labels of embeddings: softmax((scale * x W^T + b) / temperature), or the logits before it.

    Args:
        x: (N, D) floating point.
        weight: (C, D) of the same dtype.
        bias: (C,) floating point, or none.
        scale: dimensionless.
        temperature: dimensionless, > 0; without effect on ``epilogue="logits"``.
        out_dtype: floating point; the dtype of x if none.
        epilogue: ``"softmax"`` or ``"logits"``.
        low_rank: as in `logits`.

    Returns:
        (N, C) in ``out_dtype``.
    """
    z = logits(x, weight, bias, scale, low_rank)
    if epilogue == "softmax":
        z = torch.softmax(z / temperature, dim=1)
    return z.to(x.dtype if out_dtype is None else out_dtype)
