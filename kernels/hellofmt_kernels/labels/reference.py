"""Soft labels in plain torch: the definition and the CPU path.

float64 stays float64; every other dtype is summed in float32, and only the result is rounded to the
output dtype. One product is rounded on the way: bfloat16 on a CPU, where torch multiplies three to
six times as fast as in float32 but returns x W^T in bfloat16. A cosine then moves by at most 2**-9
of itself, and the logits and their softmax are float32. Scaled logits are rounded nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hellofmt_kernels.device import accumulation_dtype

__all__ = ["LabelOptions", "soft_labels"]

#: Fewer classes than fill a vector register: torch's softmax then goes number by number along rows,
#: but down columns takes an eighth of the time.
_NARROW = 16

#: Logits finished at once, 1 MiB of float32, so that they stay in a core's own cache.
_BLOCK = 1 << 18


@dataclass(frozen=True)
class LabelOptions:
    """How a head turns products x W^T into labels; the operator takes these fields in this order.

    Attributes:
        scale: multiplies the products; dimensionless, finite; ``exp(logit_scale)`` of CLIP.
        temperature: divides the logits before the softmax; dimensionless, finite, > 0.
        dtype: dtype of the result. float16 flushes p < 6e-8 to 0, bfloat16 keeps them at 0.4 %
            per entry.
        is_softmax: return softmax((scale * x W^T + b) / temperature); if false, return the logits
            scale * x W^T + b, which the temperature does not touch.
    """

    scale: float
    temperature: float = 1.0
    dtype: torch.dtype = torch.float32
    is_softmax: bool = True


def soft_labels(x: Tensor, weight: Tensor, bias: Tensor | None, options: LabelOptions) -> Tensor:
    """Compute softmax((scale * x W^T + b) / temperature), or the logits before it, (N, C).

    Args:
        x: (N, D) floating point.
        weight: (C, D) of the same dtype.
        bias: (C,) floating point, or None; added after the scale.
        options: scale, temperature, result.
    """
    dtype = accumulation_dtype(x.dtype)
    # The temperature divides two numbers instead of N x C of them.
    divisor = options.temperature if options.is_softmax else 1.0
    scale, count = options.scale / divisor, len(weight)
    shift = x.new_zeros(count, dtype=dtype) if bias is None else bias.to(dtype) / divisor
    if options.is_softmax and count < _NARROW:
        z = torch.softmax(_logits(weight, x.T, shift[:, None], scale), dim=0)
        return z.T.to(options.dtype).contiguous()
    if not _is_rounded(x) or len(x) * count <= _BLOCK:
        return _finished(_logits(x, weight.T, shift, scale), options)
    products, step = torch.mm(x, weight.T), max(1, _BLOCK // count)
    labels = products.new_empty(products.shape, dtype=options.dtype)
    for first in range(0, len(x), step):
        z = torch.add(shift, products[first : first + step], alpha=scale)
        labels[first : first + step] = _finished(z, options)
    return labels


def _is_rounded(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and x.device.type == "cpu"


def _logits(a: Tensor, b: Tensor, shift: Tensor, scale: float) -> Tensor:
    if _is_rounded(a):
        return torch.add(shift, torch.mm(a, b), alpha=scale)
    return torch.addmm(shift, a.to(shift.dtype), b.to(shift.dtype), alpha=scale)


def _finished(z: Tensor, options: LabelOptions) -> Tensor:
    return (torch.softmax(z, dim=1) if options.is_softmax else z).to(options.dtype)
