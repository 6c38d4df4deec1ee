"""Which algorithm a shape gets, and with which tile: plain Python, no torch, no device.

The tables are fixed rather than autotuned: tuning costs minutes, times a GPU that others may be
using and is illegal while a CUDA graph is captured. The numbers come from ahead-of-time
compilation (registers, spills, shared memory), not from run times, which are unmeasured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["MIN_CAPABILITY", "Device", "LabelAlgorithm", "choose_labels", "padded_row"]

LabelAlgorithm = Literal["reference", "row", "stats"]

#: Ampere: the first architecture with asynchronous copies and bfloat16 tensor cores.
MIN_CAPABILITY = (8, 0)

#: Up to this many classes one program holds whole rows of logits in registers.
ROW_MAX_CLASSES = 256

_ROW_DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Device:
    """What a choice may depend on: facts of a device, none of them read while choosing.

    Attributes:
        kind: torch's device type, ``"cpu"`` or ``"cuda"``.
        capability: CUDA compute capability (major, minor); (0, 0) without CUDA.
        has_triton: Triton can be imported.
    """

    kind: str
    capability: tuple[int, int] = (0, 0)
    has_triton: bool = False

    @property
    def is_fused(self) -> bool:
        """The Triton kernels can run here."""
        return self.kind == "cuda" and self.has_triton and self.capability >= MIN_CAPABILITY


def choose_labels(n: int, d: int, c: int, dtype: str, device: Device) -> LabelAlgorithm:
    """Algorithm for (n, d) embeddings against c classes.

    Args:
        n: rows.
        d: features.
        c: classes.
        dtype: name of the operands' dtype, such as ``"float16"``.
        device: where the tensors are.

    Returns:
        ``"reference"``: torch, the definition. ``"row"``: a whole row of classes in one program,
        one pass. ``"stats"``: tiles of classes with their row statistics, then a normalising pass.
    """
    if not device.is_fused or dtype not in _ROW_DTYPES or n == 0 or d == 0:
        return "reference"
    return "row" if c <= ROW_MAX_CLASSES else "stats"


def padded_row(c: int, device_kind: str) -> int:
    """Elements from one output row to the next.

    On CUDA a multiple of 16: Triton knows the divisibility of a stride only in multiples of 16,
    and with 1000 classes in rows of 1000 a tile leaves in 66 narrow stores instead of 8 of 128
    bits.
    """
    return c if device_kind != "cuda" else -(-c // 16) * 16
