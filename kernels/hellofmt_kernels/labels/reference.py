"""Soft labels in plain torch: the definition and the CPU path.

Precision: float64 stays float64; every other dtype is computed in float32, and only the result is
rounded to the output dtype. A logit is never rounded to a narrower type, since at CLIP's scale of
100 one bfloat16 step of a logit is worth 18 % of a probability.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hellofmt_kernels.device import accumulation_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from hellofmt_kernels.labels.options import LabelOptions

__all__ = ["soft_labels"]


def soft_labels(x: Tensor, weight: Tensor, bias: Tensor | None, options: LabelOptions) -> Tensor:
    """Labels of embeddings: softmax((scale * x W^T + b) / temperature), or the logits before it.

    Args:
        x: (N, D) floating point.
        weight: (C, D) of the same dtype.
        bias: (C,) floating point, or None; added after the scale.
        options: scale, temperature, result.

    Returns:
        (N, C) in the dtype of the options.
    """
    dtype = accumulation_dtype(x.dtype)
    x, weight = x.to(dtype), weight.to(dtype)
    # The temperature divides two numbers instead of N x C of them.
    divisor = options.temperature if options.is_softmax else 1.0
    scale = options.scale / divisor
    if bias is None:
        z = (x @ weight.T).mul_(scale)
    else:
        z = torch.addmm(bias.to(dtype) / divisor, x, weight.T, alpha=scale)
    if options.is_softmax:
        z = torch.softmax(z, dim=1)
    return z.to(options.dtype)
