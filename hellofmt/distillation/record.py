"""The record of a distillation: its facts as they stand in the archive."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from msgspec import UNSET, UnsetType

from hellofmt.archive.format.canonical import decimal_string
from hellofmt.archive.format.record import (
    ChosenImages,
    FittedFunction,
    Measured,
    Record,
    as_line,
    percent,
)
from hellofmt.distillation.selection import CROPS
from hellofmt.distillation.stored_images import quality_of
from hellofmt.runs.run_record import run_record
from hellofmt.sources.record import source_record
from hellofmt.teacher import device_of
from hellofmt.teacher.record import teacher_record

if TYPE_CHECKING:
    from hellofmt.distillation.fit import FitSettings
    from hellofmt.distillation.report import DistillReport
    from hellofmt.distillation.settings import DistillSettings
    from hellofmt.projector import Projector
    from hellofmt.sources import Source

_CHOSEN_BY: Final = {
    "random": "chance",
    "rded": "lowest loss of the teacher",
    "coverage": "coverage of the class",
    "balanced": "coverage of the class and of its hard images",
}
_LARGEST: Final = 1e9


def distillation_record(
    settings: DistillSettings,
    fit: FitSettings,
    report: DistillReport,
    projector: Projector,
    teacher: object,
    source: Source,
    measured: Source,
) -> Record:
    """Say how an archive was made; ``measured`` are the images that accuracies are of."""
    of = "training images" if measured is source else "held-out images"
    adapted, head = settings.projector, projector.head
    seeds = {"split": settings.seed, "projector": adapted.seed, "fit": fit.seed}
    if settings.select is not None:
        seeds["select"] = settings.select.seed
    targets = (adapted.targets,) if isinstance(adapted.targets, str) else adapted.targets
    function = FittedFunction(
        agreement=percent(report.fidelity.agreement),
        batch_size=fit.batch_size,
        bfloat16=fit.bfloat16,
        learning_rate=decimal_string(fit.learning_rate),
        loss=fit.loss,
        measured=Measured(percent(report.projector_accuracy), len(measured), of),
        name="default",
        parameters=report.trained,
        rank=adapted.rank,
        run=run_record(device_of(teacher), seeds, settings.command),
        source=source_record(source),
        steps=fit.steps,
        storage=settings.storage,
        targets=[as_line(rule) for rule in targets[:64]],
        teacher=teacher_record(
            teacher, Measured(percent(report.teacher_accuracy), len(measured), of)
        ),
        temperature=decimal_string(fit.temperature),
        views=report.fidelity.views,
        hard_weight=decimal_string(fit.hard_weight) if fit.loss == "mse_ce" else UNSET,
        head_rank=UNSET if head.delta is None else head.delta.a.shape[0],
        kl=_loss(report.fidelity.kl),
    )
    return Record(functions=[function], images=_images(settings))


def _loss(value: float) -> str | UnsetType:
    """A loss to four digits; nothing for one that is no number, as of a teacher with zeros."""
    if not math.isfinite(value) or abs(value) >= _LARGEST:
        return UNSET
    return decimal_string(float(f"{value:.4g}"))


def _images(settings: DistillSettings) -> ChosenImages | UnsetType:
    select = settings.select
    if select is None:
        return UNSET
    return ChosenImages(
        candidates=select.candidates,
        chosen_by=_CHOSEN_BY[select.method],
        codec=settings.codec,
        crops=CROPS if select.is_cropped else 1,
        factor=select.factor,
        ipc=select.ipc,
        quality=quality_of(settings.codec, settings.quality) or UNSET,
    )
