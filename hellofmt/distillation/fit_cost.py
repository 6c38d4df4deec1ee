"""What a fit costs in floating-point operations."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from hellofmt.distillation.fit import batch_loss
from hellofmt.making import ViewBatch
from hellofmt.runs import ranks
from hellofmt.runs.cost import gflop_of
from hellofmt.teacher.network import device_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from hellofmt.distillation.fit import FitSettings
    from hellofmt.projector import Projector


def fit_gflop(
    projector: Projector,
    teacher: Callable[[Tensor], Tensor],
    size: int,
    settings: FitSettings,
) -> float:
    """Work of a whole fit and its teacher in 1e9 operations.

    A step costs so much for each view, and so much in each process, which merges the deltas anew.
    Both follow from what steps of two and three blank views of ``size`` pixels cost. The
    projector's tensors stay, its gradients are cleared.
    """
    device = device_of(projector)

    def step(rows: int) -> float:
        batch = ViewBatch(
            torch.zeros(rows, 3, size, size, device=device),
            torch.zeros(rows, 2, dtype=torch.int64, device=device),
            torch.ones(rows, device=device),
            rows,
        )
        loss = partial(batch_loss, projector, teacher, settings, batch)
        return gflop_of(loss, backward=True)

    two, three = step(2), step(3)
    projector.zero_grad(set_to_none=True)
    view = three - two
    merging = two - 2 * view
    return settings.steps * (settings.batch_size * view + ranks.current().world * merging)
