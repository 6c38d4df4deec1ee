"""Whether networks compute in bfloat16: where nobody said so, by what the device multiplies with.

Torch runs bfloat16 everywhere, but a processor without instructions for it converts back and forth
and is slower than in float32; one with AMX is several times faster. AVX-512 BF16 alone was
slower too on the one such processor it was tried on (``benchmarks/bfloat16.py``, an Intel Xeon).
Which of these a machine is cannot be seen in a result, so whoever lets the device decide is told
what it decided, and why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Autocast", "autocast_on", "bfloat16_units"]


@dataclass(frozen=True)
class Autocast:
    """A decision.

    Attributes:
        is_mixed: towers in bfloat16 autocast; weights, losses and what is measured are float32.
        why: a few words after ``bfloat16:`` or ``float32:``.
    """

    is_mixed: bool
    why: str

    def __str__(self) -> str:
        """``float32: this CPU has no bfloat16 units that gain``."""
        return f"{'bfloat16' if self.is_mixed else 'float32'}: {self.why}"


def bfloat16_units(device: torch.device) -> str:
    """Name of what multiplies bfloat16 faster than float32 on ``device``; empty where none does."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            has_units = torch.cuda.is_bf16_supported(including_emulation=False)
        return "tensor cores" if has_units else ""
    # Torch 2.10 does not tell yet.
    ask: Any = getattr(torch.cpu, "get_capabilities", dict)
    known: Mapping[str, Any] = ask()
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return ""
    # On ARM torch's build decides as well, which it does not tell.
    return "AMX" if known.get("amx_bf16") else ""


def autocast_on(device: torch.device, mixed: bool | None) -> Autocast:
    """What is asked for; else bfloat16 where the device has units for it.

    Args:
        device: where the networks run.
        mixed: what the user wants; None lets the device decide.

    Returns:
        The decision.
    """
    if mixed is not None:
        return Autocast(mixed, "as asked for")
    units = bfloat16_units(device)
    name = "this CPU" if device.type == "cpu" else f"this {device.type} device"
    return Autocast(bool(units), f"{name} has {units or 'no bfloat16 units that gain'}")
