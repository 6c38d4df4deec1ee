"""What a fit will cost, measured on a few of its steps before it starts: seconds and operations."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import torch

from hellofmt.distillation.fit import batch_loss, lay_out
from hellofmt.making import ViewBatch, ViewBatches
from hellofmt.runs import ranks
from hellofmt.runs.cost import gflop_of
from hellofmt.teacher.network import device_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from hellofmt.archive.format.manifest import Views
    from hellofmt.distillation.fit import FitSettings
    from hellofmt.projector import Projector
    from hellofmt.sources import Source

__all__ = ["fit_gflop", "predicted_seconds"]


def predicted_seconds(
    projector: Projector,
    teacher: Callable[[Tensor], Tensor],
    source: Source,
    views: Views,
    settings: FitSettings,
    *,
    measured: int = 3,
    workers: int = 0,
) -> float:
    """Seconds that a fit will take: the median of a few real steps, which change nothing.

    Args:
        projector: the projector to fit; its tensors stay, its gradients are cleared.
        teacher: views (N, 3, S, S) in [0, 1] to logits (N, C), without gradients.
        source: real images that the views are made of.
        views: how students will see the images.
        settings: loss, optimiser, steps.
        measured: number of steps to time, after one that warms up.
        workers: number of processes that decode images ahead.

    Returns:
        Seconds for ``settings.steps`` steps.
    """
    batches = ViewBatches(source, views, settings.batch_size, settings.seed)
    lay_out(projector)
    device = device_of(projector)
    times: list[float] = []
    start = time.perf_counter()
    for batch in batches.stream(
        rows=ranks.share(settings.batch_size), end=measured + 1, workers=workers, device=device
    ):
        batch_loss(projector, teacher, settings, batch).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        start = time.perf_counter()
    projector.zero_grad(set_to_none=True)
    return settings.steps * sorted(times[1:])[measured // 2]


def fit_gflop(
    projector: Projector,
    teacher: Callable[[Tensor], Tensor],
    size: int,
    settings: FitSettings,
) -> float:
    """Work of a whole fit and its teacher in 1e9 operations, counted on one step of blank views.

    Args:
        projector: the projector to fit; its tensors stay, its gradients are cleared.
        teacher: views (N, 3, S, S) in [0, 1] to logits (N, C), without gradients.
        size: side of the views in pixels.
        settings: loss, optimiser, steps.

    Returns:
        The work of ``settings.steps`` steps in all processes.
    """
    device, share = device_of(projector), ranks.share(settings.batch_size)
    rows = share.stop - share.start
    batch = ViewBatch(
        torch.zeros(rows, 3, size, size, device=device),
        torch.zeros(rows, 2, dtype=torch.int64, device=device),
        torch.ones(rows, device=device),
        settings.batch_size,
    )
    step = partial(batch_loss, projector, teacher, settings, batch)
    mine = gflop_of(step, backward=True)
    projector.zero_grad(set_to_none=True)
    whole = ranks.sum_(torch.tensor(mine, device=device))
    return settings.steps * float(whole)
