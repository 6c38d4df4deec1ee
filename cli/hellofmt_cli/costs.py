"""Costs of stages as a command reports them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hellofmt_cli.output import size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hellofmt.runs import StageCost


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def cost_documents(costs: Sequence[StageCost]) -> list[dict[str, Any]]:
    """Costs of stages for ``--json``."""
    return [
        {
            "stage": cost.stage,
            "seconds": round(cost.seconds, 3),
            "peak_bytes": cost.peak_bytes,
            "device_peak_bytes": cost.device_peak_bytes,
            "gflop": None if cost.gflop is None else float(f"{cost.gflop:.6g}"),
        }
        for cost in costs
    ]


def cost_lines(costs: Sequence[StageCost]) -> list[tuple[str, str]]:
    """Costs of stages for people, one line of seconds and work, one of memory."""
    texts = [
        f"{cost.stage} {duration(cost.seconds)}"
        + ("" if cost.gflop is None else f" and {cost.gflop:,.0f} GFLOP")
        for cost in costs
    ]
    peaks = [cost.peak_bytes for cost in costs if cost.peak_bytes is not None]
    memory = size(max(peaks)) if peaks else "not measured on this system"
    on_device = [c.device_peak_bytes for c in costs if c.device_peak_bytes is not None]
    if on_device:
        memory += f"; on the device {size(max(on_device))}"
    return [("cost", "; ".join(texts)), ("peak memory", memory)]
