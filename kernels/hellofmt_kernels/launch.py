"""One kernel launch as a value: planned in one place, run, compiled ahead of time or inspected.

The ``plan`` functions of the ``fused`` modules return launches; ``run`` makes the call on a device
and in the interpreter, ``tools/aot.py`` compiles the very same arguments without a device, so that
the budget is checked on the kernel that runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Launch"]


@dataclass(frozen=True)
class Launch:
    """A Triton kernel with everything its call needs; it is compiled for its constants."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, Any]:
        """Compiler options; fusion of a product and a sum is set, since its default is in flux."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": True,
        }

    def run(self) -> None:
        """Launch on the current device and stream; in the interpreter, run to the end."""
        self.kernel[self.grid](**self.arguments, **self.constants, **self.options)
