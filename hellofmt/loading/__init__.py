"""Archive to batches: views as pure functions of (seed, epoch, index), data sets and samplers."""

from __future__ import annotations

from hellofmt.loading.views import mixed_labels, normalise, plain_table, render, view_table

__all__ = ["mixed_labels", "normalise", "plain_table", "render", "view_table"]
