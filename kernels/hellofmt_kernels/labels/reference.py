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
    scale = options.scale / divisor
    shift = None if bias is None else bias.to(dtype) / divisor
    if x.dtype == torch.bfloat16 and x.device.type == "cpu":
        products = torch.mm(x, weight.T)
        shift = products.new_zeros(len(weight), dtype=dtype) if shift is None else shift
        rows = max(1, _BLOCK // len(weight))
        if len(x) <= rows:
            return _finished(torch.add(shift, products, alpha=scale), options)
        labels = products.new_empty(products.shape, dtype=options.dtype)
        for first in range(0, len(x), rows):
            z = torch.add(shift, products[first : first + rows], alpha=scale)
            labels[first : first + rows] = _finished(z, options)
        return labels
    x, weight = x.to(dtype), weight.to(dtype)
    if shift is None:
        return _finished(torch.mm(x, weight.T).mul_(scale), options)
    return _finished(torch.addmm(shift, x, weight.T, alpha=scale), options)


def _finished(z: Tensor, options: LabelOptions) -> Tensor:
    if options.is_softmax and z.shape[1] < _NARROW:
        z = torch.softmax(z.T, dim=0).T.contiguous()
    elif options.is_softmax:
        z = torch.softmax(z, dim=1)
    return z.to(options.dtype)
