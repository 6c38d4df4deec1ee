"""Train a teacher of one's own on real images with hard labels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hellofmt.making import HardBatches, ViewBatches
from hellofmt.runs.run_record import run_record
from hellofmt.sources.record import source_record
from hellofmt.student.networks import build_student
from hellofmt.student.recipes import Recipe
from hellofmt.student.train import train_student
from hellofmt.teacher.network import Origin, Teacher
from hellofmt.teacher.rule import InputRule

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from hellofmt.archive.format.views import Views
    from hellofmt.sources import Source

TEACHER_RECIPE = Recipe(
    "teacher", "ce", learning_rate=3e-3, weight_decay=0.01, warmup=0.05, batch_size=128
)
"""AdamW with a cosine, for any number of steps; chosen on a validation part of the digits."""


def train_teacher(
    source: Source,
    views: Views,
    *,
    network: str = "cnn",
    steps: int = 600,
    batch_size: int = TEACHER_RECIPE.batch_size,
    seed: int = 0,
    workers: int = 0,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Teacher:
    """Train a teacher under the data set's own views.

    Args:
        source: training images.
        views: of the data set; mixed views have labels mixed by area.
        network: name for ``build_student``.
        steps: number of gradient steps.
        batch_size: views per step.
        seed: of weights, order and views.
        workers: number of processes that decode images ahead.
        on_step: called with the steps done and the loss.

    Returns:
        The teacher, frozen.

    Raises:
        UserInputError: unknown network (E_OPTION).
        ValueError: steps < 1, or the loss is not finite.

    Example:
        >>> import torch
        >>> from hellofmt.archive import default_views
        >>> from hellofmt.sources import open_source
        >>> teacher = train_teacher(open_source("photos"), default_views(16), steps=2, batch_size=8)
        >>> teacher(torch.rand(5, 3, 16, 16)).shape
        torch.Size([5, 3])
    """
    student = build_student(network, len(source.classes), views.size, seed=seed)
    stream = HardBatches(ViewBatches(source, views, batch_size, seed), steps, workers=workers)
    recipe = replace(TEACHER_RECIPE, batch_size=batch_size)
    train_student(student, stream, recipe, steps=steps, on_step=on_step)
    origin = Origin(
        "train_teacher",
        network,
        steps,
        trained=run_record("cpu", {"teacher": seed}),
        trained_on=source_record(source),
    )
    return Teacher(student, InputRule.of_views(views), origin=origin)
