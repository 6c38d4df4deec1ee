"""From real images and a teacher to one archive: teacher, projector, images, file.

The order is the argument. The teacher is measured first, because everything imitates it. The
projector is fitted on the whole source but a validation part, so one fit serves every number of
images per class. Images are chosen last and cost seconds. Each stage is a function of its own; this
module only joins them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from hellofmt.archive.write.whole_file import check_target
from hellofmt.distillation.archive_of import check_settings, write_distilled
from hellofmt.distillation.budget import filled, planned
from hellofmt.distillation.fidelity import fidelity as measured_fidelity
from hellofmt.distillation.fit import FitSettings, default_steps
from hellofmt.distillation.record import distillation_record
from hellofmt.distillation.report import DistillReport
from hellofmt.distillation.settings import FitHooks
from hellofmt.distillation.stage_calls import (
    afforded_settings,
    checked_teacher,
    fitted_projector,
    keep_text_rows,
    selected_images,
)
from hellofmt.distillation.stored_images import StoredImages
from hellofmt.distillation.validation import split_validation
from hellofmt.runs import ranks
from hellofmt.runs.cost import network_gflop
from hellofmt.runs.stages import Stages
from hellofmt.teacher import device_of, teacher_accuracy

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from torch import Tensor

    from hellofmt.archive.format.record import Record
    from hellofmt.archive.format.views import Views
    from hellofmt.distillation.settings import DistillSettings
    from hellofmt.projector import LoadedBase
    from hellofmt.sources import Source


def distill(
    source: Source,
    target: str | os.PathLike[str],
    settings: DistillSettings,
    *,
    teacher: Callable[[Tensor], Tensor],
    base: LoadedBase,
    views: Views,
    held_out: Source | None = None,
    force: bool = False,
    work: str | os.PathLike[str] | Stages | None = None,
    hooks: FitHooks | None = None,
    workers: int = 0,
) -> DistillReport:
    """Distil real images into one archive.

    With a work folder, finished stages are kept there under the digest of their inputs, and a fit
    in progress keeps its state. Killed anywhere, the same call ends in the same file; with another
    ``select`` it takes the fit from there.

    Args:
        source: real images.
        target: path of the new archive.
        settings: what to adapt, fit, choose and write.
        teacher: views (N, 3, S, S) in [0, 1] to logits (N, C), for example a ``Teacher``; with a
            work folder, a module, whose tensors name it.
        base: frozen encoder that the label function adapts.
        views: how students will see the images.
        held_out: real images that are measured on and never trained on; None splits off a
            validation part of the source.
        force: replace an existing file.
        work: folder for finished stages; None keeps nothing.
        hooks: functions to call around the fit.
        workers: number of processes that decode images ahead.

    Returns:
        What was measured.

    Raises:
        UserInputError: the teacher is no better than chance or has its classes in another order, or
            the data or a setting cannot be used (E_TEACHER, E_DATA, E_OPTION).
        HelloIOError: the target exists or its folder does not (E_TARGET), checked before anything
            else, or it cannot be written.
        OSError: a stage cannot be written; finished ones stay.

    Example:
        A folder ``photos`` with a folder of pictures for each class, and ``clip``, a model as
        open_clip saves it:

        >>> import hellofmt
        >>> from hellofmt.archive import default_views
        >>> from hellofmt.distillation import DistillSettings, FitSettings, SelectSettings
        >>> from hellofmt.projector import load_base
        >>> from hellofmt.sources import open_source
        >>> from hellofmt.teacher import train_teacher
        >>> source = open_source("photos")
        >>> views = default_views(16)
        >>> settings = DistillSettings(SelectSettings(ipc=1), fit=FitSettings(steps=20))
        >>> report = hellofmt.distill(
        ...     source,
        ...     "distilled.hello",
        ...     settings,
        ...     teacher=train_teacher(source, views, steps=60, batch_size=32),
        ...     base=load_base("local-dir:clip"),
        ...     views=views,
        ... )
        >>> report.id == hellofmt.verify("distilled.hello").id
        True
        >>> dataset = hellofmt.HelloDataset("distilled.hello", base="local-dir:clip")
        >>> view, label = dataset[0]
        >>> view.shape, label.shape
        (torch.Size([3, 16, 16]), torch.Size([3]))
    """
    ranks.handed(partial(check_target, target, force=force))
    check_settings(source, views, settings)
    stages = work if isinstance(work, Stages) else Stages(work)
    hooks = FitHooks() if hooks is None else hooks
    if held_out is None:
        train, measured = split_validation(source, seed=settings.seed)
    else:
        train, measured = source, held_out
    fit = settings.fit
    if fit is None:
        steps = default_steps(len(train), FitSettings.batch_size)
        fit = FitSettings(steps=steps, seed=settings.seed)
    keep_text_rows(base, source, settings.projector.prompts, stages)
    # Also refuses what does not fit the base, before the hour of the fit.
    start = settings.projector.build(base, source)
    if settings.budget is not None:
        planned(source, views, settings, start)
    accuracy = checked_teacher(
        teacher, source, measured, views, stages, workers, bfloat16=fit.bfloat16
    )
    if hooks.on_teacher is not None:
        hooks.on_teacher(accuracy)
    fitted, fidelity = fitted_projector(
        train,
        views,
        teacher=teacher,
        base=base,
        projector=settings.projector,
        fit=fit,
        held_out=measured,
        start=start,
        stages=stages,
        hooks=hooks,
        workers=workers,
    )
    device = device_of(fitted)
    report = DistillReport("", accuracy, accuracy, fidelity, fitted.trained_count())

    def record(settings: DistillSettings) -> Record:
        return distillation_record(settings, fit, report, fitted, teacher, source, measured)

    if settings.budget is not None:
        settings = afforded_settings(source, views, settings, fitted, record, stages)
    chosen = None
    if settings.select is not None:
        chosen = selected_images(
            source, views, teacher, fitted, settings.select, stages, workers, bfloat16=fit.bfloat16
        )
    fitted = fitted.cpu()
    if chosen is not None and settings.budget is not None:
        fill = partial(
            filled,
            chosen,
            source,
            views,
            settings,
            fitted,
            record=record(settings),
            workers=workers,
        )
        with stages.meter.stage("budget"):
            settings = ranks.handed(fill)
    if hooks.after is not None:
        hooks.after(fitted, measured)
    with stages.meter.stage("accuracy"):
        logits = fitted.labeler(device).logits
        own = teacher_accuracy(logits, measured, views.size, workers=workers)
        stored = None
        if chosen is not None and settings.codec != "png":
            images = StoredImages(chosen, source, views, settings.codec, settings.quality)
            before, after = images.read_back(workers=workers)
            stored = measured_fidelity(
                logits, logits, after, views, original=before, workers=workers, device=device
            )
    stages.meter.set_gflop(network_gflop(fitted, views.size, len(measured)))
    report = replace(report, projector_accuracy=own, stored=stored, settings=settings)

    def write() -> str:
        with stages.meter.stage("write"):
            return write_distilled(
                target,
                chosen,
                fitted,
                source,
                views,
                settings,
                record(settings),
                force=force,
                workers=workers,
            )

    identity = ranks.handed(write)
    return replace(report, id=identity, costs=tuple(stages.meter.costs))
