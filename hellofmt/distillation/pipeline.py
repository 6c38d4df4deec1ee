"""From real images and a teacher to one archive: teacher, projector, images, file.

The order is the argument. The teacher is measured first, because everything imitates it. The
projector is fitted on the whole source, so one fit serves every number of images per class. Images
are chosen last and cost seconds. Each stage is a function of its own; this module only joins them
and says in the manifest what was done.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hellofmt.archive import (
    Draft,
    ImageItem,
    ImageSet,
    encode_image,
    write_archive,
)
from hellofmt.archive.manifest import Dataset
from hellofmt.distillation.fit import Fidelity, FitSettings, fit_projector
from hellofmt.distillation.select import Selection, SelectSettings, select_images
from hellofmt.distillation.teacher import check_teacher, teacher_accuracy
from hellofmt.errors import HelloIOError, printable
from hellofmt.projector import Projector

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from torch import Tensor

    from hellofmt.archive.manifest import Storage, Views
    from hellofmt.distillation.sources import ArrayImages
    from hellofmt.projector import LoadedBase

__all__ = ["DistillReport", "distill", "write_distilled"]


@dataclass(frozen=True)
class DistillReport:
    """What a distillation measured.

    Attributes:
        id: of the archive.
        teacher_accuracy: top-1 of the teacher on held-out (else source) images, percent.
        projector_accuracy: top-1 of the label function on the same images, percent.
        fidelity: labels against the teacher's on views that were not trained on.
        trained: values that the fit moved.
    """

    id: str
    teacher_accuracy: float
    projector_accuracy: float
    fidelity: Fidelity
    trained: int


def write_distilled(
    target: str | os.PathLike[str],
    selection: Selection,
    projector: Projector,
    source: ArrayImages,
    views: Views,
    *,
    name: str,
    license_name: str = "unknown",
    storage: Storage = "float16",
    card: str | None = None,
    force: bool = False,
) -> str:
    """Write the chosen images and the label function as one archive.

    Args:
        target: path of the new archive.
        selection: chosen images, sorted by class.
        projector: fitted.
        source: gives the classes and the name of the source.
        views: what the projector was fitted for.
        name: of the data set.
        license_name: of the images.
        storage: of the deltas and of a stored head.
        card: Markdown text for people.
        force: replace an existing file.

    Returns:
        Id of the archive, ``sha256:...``.

    Raises:
        HelloIOError: the target exists (E_TARGET) or cannot be written.
        HelloError: what was written does not verify.
    """
    items = [
        ImageItem(int(label), encode_image(pixels, "png"))
        for pixels, label in zip(selection.pixels, selection.labels, strict=True)
    ]
    draft = Draft(
        dataset=Dataset(
            name=name,
            version="1.0.0",
            license=license_name,
            method="hello",
            sources=[source.name],
            ipc=len(selection.labels) // len(source.classes),
        ),
        classes=source.classes,
        views=views,
        images=ImageSet("png", items),
        projector=projector.part(storage),
        card=card,
    )
    return write_archive(target, draft, force=force)


def distill(
    source: ArrayImages,
    target: str | os.PathLike[str],
    *,
    teacher: Callable[[Tensor], Tensor],
    base: LoadedBase,
    views: Views,
    ipc: int,
    factor: int = 1,
    rank: int = 8,
    start: str = "text",
    temperature: float = 4.0,
    storage: Storage = "float16",
    fit: FitSettings | None = None,
    select: SelectSettings | None = None,
    held_out: ArrayImages | None = None,
    name: str | None = None,
    license_name: str = "unknown",
    seed: int = 0,
    force: bool = False,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> DistillReport:
    """Distil real images into one archive.

    Args:
        source: real images.
        target: path of the new archive.
        teacher: views (N, 3, S, S) in [0, 1] to logits (N, C), for example a ``Teacher``.
        base: frozen encoder that the label function adapts.
        views: how students will see the images.
        ipc: images per class.
        factor: cells per side of a stored image.
        rank: of the deltas.
        start: of the head, ``"text"`` or ``"stored"``.
        temperature: default T of the labels.
        storage: of the deltas and of a stored head.
        fit: how the projector is fitted; None takes the defaults and ``seed``.
        select: how images are chosen; None takes RDED's way with ``ipc``, ``factor``, ``seed``.
        held_out: real images that are measured on and never trained on.
        name: of the data set; None derives it from the source.
        license_name: of the images.
        seed: of everything without a seed of its own.
        force: replace an existing file.
        on_step: called after each step of the fit.

    Returns:
        What was measured.

    Raises:
        UserInputError: the teacher is no better than chance, or the data or a setting cannot be
            used.
        HelloIOError: the target exists (E_TARGET) or cannot be written.
    """
    # Before hours of work rather than after; the writer checks again.
    if not force and Path(target).exists():
        raise HelloIOError.make("E_TARGET", f"`{printable(target)}` exists; `force` replaces it")
    measured = source if held_out is None else held_out
    accuracy = check_teacher(teacher, measured, views.size)
    projector = Projector.build(
        base,
        source.classes,
        targets="all",
        rank=rank,
        start=start,
        temperature=temperature,
        seed=seed,
    )
    fidelity = fit_projector(
        projector,
        teacher,
        source,
        views,
        FitSettings(seed=seed) if fit is None else fit,
        held_out=held_out,
        on_step=on_step,
    )
    chosen = select_images(
        source,
        teacher,
        views,
        SelectSettings(ipc, factor, seed=seed) if select is None else select,
    )
    identity = write_distilled(
        target,
        chosen,
        projector,
        source,
        views,
        name=name or f"{source.name}-ipc{ipc}",
        license_name=license_name,
        storage=storage,
        force=force,
    )
    return DistillReport(
        id=identity,
        teacher_accuracy=accuracy,
        projector_accuracy=teacher_accuracy(projector.labeler().logits, measured, views.size),
        fidelity=fidelity,
        trained=projector.trained_count(),
    )
