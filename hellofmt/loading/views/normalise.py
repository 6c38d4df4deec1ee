"""Normalisation of views for the student, by the manifest's ``views.mean`` and ``views.std``.

Labels are made of views in [0, 1], before this step.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from hellofmt.errors import UserInputError
from hellofmt_kernels import ViewForm

if TYPE_CHECKING:
    from torch import Tensor

    from hellofmt.archive.format.views import Views


def normalise(batch: Tensor, views: Views) -> Tensor:
    """Compute (batch - mean) / std of ``views``, per channel: what a student sees; see ``render``.

    Args:
        batch: (..., 3, S, S) floating point in [0, 1], any device.
        views: rules; mean and std are read.

    Returns:
        A new tensor of the same shape, dtype and device.
    """
    mean, std = _affine_on(batch, views)
    return (batch - mean) / std


def normalise_(batch: Tensor, views: Views) -> Tensor:
    """Normalise (..., 3, S, S) in [0, 1] in place: the same bits, without two new tensors."""
    mean, std = _affine_on(batch, views)
    return batch.sub_(mean).div_(std)


def student_form(views: Views, *, channels_last: bool = False) -> ViewForm:
    """State ``normalise`` as a form of float32 in which ``hellofmt_kernels`` draws views."""
    mean, std = _affine(tuple(views.mean), tuple(views.std))
    return ViewForm(tuple(mean), tuple(std), is_channels_last=channels_last)


def _affine_on(batch: Tensor, views: Views) -> tuple[Tensor, Tensor]:
    mean, std = _affine(tuple(views.mean), tuple(views.std))
    shape = (3, 1, 1)
    return (
        torch.tensor(mean, dtype=batch.dtype, device=batch.device).view(shape),
        torch.tensor(std, dtype=batch.dtype, device=batch.device).view(shape),
    )


@lru_cache(maxsize=64)
def _affine(mean: tuple[str, ...], std: tuple[str, ...]) -> tuple[list[float], list[float]]:
    values = [float(v) for v in std]
    if not all(v > 0 for v in values):
        text = f"`views.std` is out of range; expected numbers > 0, got {std}"
        raise UserInputError.make("E_OPTION", text)
    return [float(v) for v in mean], values
