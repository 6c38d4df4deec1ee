"""Which algorithm a shape gets: plain Python, no torch, no device. Its tile is in ``tiles``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hellofmt_kernels.tiles import table

__all__ = [
    "MIN_CAPABILITY",
    "Device",
    "LabelAlgorithm",
    "choose_labels",
    "choose_views",
    "padded_row",
    "view_taps",
]

LabelAlgorithm = Literal["reference", "row", "stats"]

#: Ampere: the first architecture with asynchronous copies and bfloat16 tensor cores.
MIN_CAPABILITY = (8, 0)

_FUSED_DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Device:
    """Facts of a device, none of them read while choosing; capability (0, 0) without CUDA."""

    kind: str
    capability: tuple[int, int] = (0, 0)
    has_triton: bool = False

    @property
    def is_fused(self) -> bool:
        """Whether the Triton kernels run here."""
        return self.kind == "cuda" and self.has_triton and self.capability >= MIN_CAPABILITY


def choose_labels(
    n: int, d: int, c: int, dtype: str, device: Device, out_dtype: str = "float32"
) -> LabelAlgorithm:
    """Choose the algorithm for (n, d) embeddings against c classes; dtypes by name.

    Returns:
        ``"reference"``: torch, the definition. ``"row"``: a whole row of classes in one program,
        one pass. ``"stats"``: tiles of classes with their row statistics, then a normalising pass.
    """
    is_supported = dtype in _FUSED_DTYPES and out_dtype in _FUSED_DTYPES
    if not device.is_fused or not is_supported or n == 0 or d == 0:
        return "reference"
    return "row" if c <= table().row_max_classes else "stats"


def choose_views(n: int, out_dtype: str, device: Device) -> Literal["reference", "fused"]:
    """Choose torch (``"reference"``) or one Triton kernel (``"fused"``) for n views."""
    is_fused = device.is_fused and out_dtype in _FUSED_DTYPES and n > 0
    return "fused" if is_fused else "reference"


def view_taps(extent: int, size: int, antialias: bool) -> int:
    """Count the source pixels that can reach one output pixel along an axis.

    The triangle filter is open on both sides and 2 max(n, S) / S source pixels wide, n the largest
    possible crop: 2 up to the output size, else ceil(2 extent / S).
    """
    return -(-2 * max(extent, size) // size) if antialias else 2


def padded_row(c: int, device_kind: str) -> int:
    """Count the elements from one output row to the next.

    On CUDA a multiple of 16: Triton knows the divisibility of a stride only in multiples of 16,
    and with 1000 classes in rows of 1000 a tile leaves in 66 narrow stores instead of 8 of 128
    bits.
    """
    return c if device_kind != "cuda" else -(-c // 16) * 16
