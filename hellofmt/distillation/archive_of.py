"""The archive of a distillation: checked before the work, written after it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from hellofmt.archive import (
    DEFAULT_LIMITS,
    Draft,
    ImageItem,
    ImageSet,
    encode_image,
    generated_card,
    write_archive,
)
from hellofmt.archive.format.manifest import Dataset
from hellofmt.archive.storage.local_files import read_at
from hellofmt.archive.write.plan import Plan
from hellofmt.archive.write.whole_file import check_target, waiting_file, write_all
from hellofmt.distillation.select import check_selection
from hellofmt.distillation.stored_images import StoredImages, check_quality
from hellofmt.errors import naming

if TYPE_CHECKING:
    import os

    from hellofmt.archive.format.manifest import Views
    from hellofmt.archive.format.record import Record
    from hellofmt.distillation.selection import Selection
    from hellofmt.distillation.settings import DistillSettings
    from hellofmt.projector import Projector
    from hellofmt.sources import Source


def write_distilled(
    target: str | os.PathLike[str],
    selection: Selection | None,
    projector: Projector,
    source: Source,
    views: Views,
    settings: DistillSettings,
    record: Record | None = None,
    *,
    force: bool = False,
    workers: int = 0,
) -> str:
    """Write chosen images and the label function as one archive; see ``select_images``.

    The encoded images wait in a file beside the target that has no name, and not in memory.

    Args:
        target: path of the new archive.
        selection: chosen images, sorted by class; None writes the label function alone.
        projector: the fitted projector.
        source: real images, for the pixels that were chosen, their classes and their name.
        views: views that the projector was fitted for.
        settings: name, texts and number format.
        record: how it was made.
        force: replace an existing file.
        workers: number of processes that cut and encode images ahead.

    Returns:
        Id of the archive, ``sha256:...``.

    Raises:
        HelloIOError: the target exists (E_TARGET) or cannot be written.
        HelloError: what was written does not verify.
    """
    check_target(target, force=force)
    part, count = projector.part(settings.storage), 0
    draft = replace(_draft(source, views, settings), projector=part, record=record)
    if selection is not None:
        count = len(selection.labels)
        facts = msgspec.structs.replace(draft.dataset, ipc=count // len(source.classes))
        draft = replace(draft, dataset=facts)
    if draft.card is None and record is not None:
        card = generated_card(draft.dataset, source.classes, views, count, part.base, record)
        draft = replace(draft, card=card)
    if selection is None:
        return write_archive(target, draft, force=force)
    stored = StoredImages(selection, source, views, settings.codec, settings.quality)
    with waiting_file(target) as fd:
        items = _waiting(stored, fd, str(target), workers)
        images = ImageSet(settings.codec, items, order="value")
        return write_archive(target, replace(draft, images=images), force=force)


def _waiting(stored: StoredImages, fd: int, target: str, workers: int) -> list[ImageItem]:
    """Write images to a file, of which the items are parts."""
    items: list[ImageItem] = []
    end = 0
    for label, data in zip(stored.selection.labels, stored.files(workers=workers), strict=True):
        with naming(target):
            write_all(fd, data, end)
        items.append(ImageItem(int(label), partial(read_at, fd, len(data), end), len(data)))
        end += len(data)
    return items


def _draft(source: Source, views: Views, settings: DistillSettings) -> Draft:
    """What is known of the archive before anything is made."""
    texts = settings.texts
    facts = Dataset(
        name=settings.name_for(source),
        version=texts.version,
        license=texts.license or "NOASSERTION",
        method=texts.method or "hello",
        sources=list(texts.sources or (source.name,)),
    )
    return Draft(
        facts,
        classes=source.classes,
        views=views,
        card=texts.card,
        license=texts.license_text,
        extras=texts.extras,
    )


def check_settings(source: Source, views: Views, settings: DistillSettings) -> None:
    """Refuse what cannot be chosen or written, before anything is trained.

    Args:
        source: real images.
        views: how students will see the images.
        settings: choices of the distillation.

    Raises:
        UserInputError: the choice of images does not fit the source, or no archive can hold the
            classes, the views or a text (E_DATA, E_OPTION).
    """
    pixel = ImageItem(0, encode_image(np.zeros((1, 1), np.uint8), "png"))
    # An archive without a projector needs an image.
    images = ImageSet("png", [pixel])
    Plan(replace(_draft(source, views, settings), images=images), DEFAULT_LIMITS)
    check_quality(settings.codec, settings.quality)
    if settings.select is not None:
        check_selection(source, views, settings.select)
