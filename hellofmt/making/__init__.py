"""Making: the one engine that turns real images into batches for teachers, fits and choices."""

from __future__ import annotations

from hellofmt.making.squares import CentreSquares, CropSquares, Square, shown
from hellofmt.making.views import HardBatches, ViewBatch, ViewBatches

__all__ = [
    "CentreSquares",
    "CropSquares",
    "HardBatches",
    "Square",
    "ViewBatch",
    "ViewBatches",
    "shown",
]
