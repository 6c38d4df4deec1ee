"""Options of the label operator: which function of the logits it returns, in which dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["LabelOptions"]


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
