"""What a fit will cost, measured on a few of its steps before it starts: seconds and operations."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import torch

from hellofmt.distillation.fit import batch_loss, fit_batches, lay_out
from hellofmt.runs import ranks
from hellofmt.runs.cost import gflop_of
from hellofmt.teacher.network import device_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from hellofmt.archive.format.manifest import Views
    from hellofmt.distillation.fit import FitSettings
    from hellofmt.projector import Projector
    from hellofmt.sources import ArrayImages

__all__ = ["fit_gflop", "predicted_seconds"]


def predicted_seconds(
    projector: Projector,
    teacher: Callable[[Tensor], Tensor],
    source: ArrayImages,
    views: Views,
    settings: FitSettings,
    *,
    measured: int = 3,
) -> float:
    """Seconds that a fit will take: the median of a few real steps, which change nothing.

    Args:
        projector: the projector to fit; its tensors stay, its gradients are cleared.
        teacher: views (N, 3, S, S) in [0, 1] to logits (N, C), without gradients.
        source: real images that the views are made of.
        views: how students will see the images.
        settings: loss, optimiser, steps.
        measured: number of steps to time, after one that warms up.

    Returns:
        Seconds for ``settings.steps`` steps.
    """
    batches = fit_batches(source, views, settings)
    lay_out(projector)
    is_cuda = device_of(projector).type == "cuda"
    times: list[float] = []
    for step in range(measured + 1):
        start = time.perf_counter()
        batch = batches.batch(step, ranks.share(settings.batch_size))
        batch_loss(projector, teacher, settings, batch).backward()
        if is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    projector.zero_grad(set_to_none=True)
    return settings.steps * sorted(times[1:])[measured // 2]


def fit_gflop(
    projector: Projector,
    teacher: Callable[[Tensor], Tensor],
    source: ArrayImages,
    views: Views,
    settings: FitSettings,
) -> float:
    """Work of a whole fit and its teacher in 1e9 operations, counted on one extra step.

    Args:
        projector: the projector to fit; its tensors stay, its gradients are cleared.
        teacher: views (N, 3, S, S) in [0, 1] to logits (N, C), without gradients.
        source: real images that the views are made of.
        views: how students will see the images.
        settings: loss, optimiser, steps.

    Returns:
        The work of ``settings.steps`` steps in all processes.
    """
    batches = fit_batches(source, views, settings)
    batch = batches.batch(0, ranks.share(settings.batch_size))
    step = partial(batch_loss, projector, teacher, settings, batch)
    share = gflop_of(step, backward=True)
    projector.zero_grad(set_to_none=True)
    whole = ranks.sum_(torch.tensor(share, device=device_of(projector)))
    return settings.steps * float(whole)
