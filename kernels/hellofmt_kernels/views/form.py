"""How finished views leave `views`: normalised for whom, in which dtype and memory format.

A view is made once and read by two networks that normalise it differently, the student and the
encoder that labels it. The resampling is the work; a form is one more multiplication, addition and
store per value, so both leave in the one pass over the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ViewForm"]


@dataclass(frozen=True)
class ViewForm:
    """One output of `views`: (view - mean) / std per channel, rounded to a dtype.

    Attributes:
        mean: three finite numbers, subtracted from values in [0, 1].
        std: three finite numbers > 0; divide the difference.
        dtype: float16, bfloat16 or float32; float64 on the CPU.
        is_channels_last: memory format, contiguous if false.
    """

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    dtype: torch.dtype = torch.float32
    is_channels_last: bool = False

    def empty(self, n: int, size: int, device: torch.device | str) -> Tensor:
        """Memory for n views of this form, (n, 3, size, size), not written."""
        memory_format = torch.channels_last if self.is_channels_last else torch.contiguous_format
        shape = (n, 3, size, size)
        return torch.empty(shape, dtype=self.dtype, device=device, memory_format=memory_format)
