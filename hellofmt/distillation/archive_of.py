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
from hellofmt.archive.format.layout import BLOCK
from hellofmt.archive.format.manifest import Dataset
from hellofmt.archive.storage.local_files import read_at
from hellofmt.archive.write.plan import Plan
from hellofmt.archive.write.whole_file import check_target, waiting_file, write_all
from hellofmt.distillation.select import check_selection
from hellofmt.distillation.stored_images import StoredImages, check_quality
from hellofmt.errors import UserInputError, naming

if TYPE_CHECKING:
    import os

    from hellofmt.archive.format.record import Record
    from hellofmt.archive.format.views import Views
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
        UserInputError: it would be larger than its budget (E_OPTION).
        HelloError: what was written does not verify.
    """
    check_target(target, force=force)
    count = 0 if selection is None else len(selection.labels)
    draft = _draft(source, views, settings, projector, count, record)
    if selection is None:
        return write_archive(target, draft, force=force)
    stored = StoredImages(selection, source, views, settings.codec, settings.quality)
    with waiting_file(target) as fd:
        items = _waiting(stored, fd, str(target), workers)
        images = ImageSet(settings.codec, items, order="value")
        draft = replace(draft, images=images)
        if settings.budget is not None:
            size = Plan(draft, DEFAULT_LIMITS).size_bytes
            if size > settings.budget:
                text = f"the archive would take {size:,} bytes; its budget is {settings.budget:,}"
                raise UserInputError.make("E_OPTION", text)
        return write_archive(target, draft, force=force)


def front_bytes(
    images: int,
    source: Source,
    views: Views,
    settings: DistillSettings,
    projector: Projector,
    record: Record | None = None,
) -> int:
    """Bytes of an archive that would be written of so many images, without their files."""
    draft = _draft(source, views, settings, projector, images, record)
    labels = np.repeat(np.arange(len(source.classes)), images // len(source.classes))
    # Images of one byte each, of a codec that is not packed.
    items = [ImageItem(int(label), b"x") for label in labels]
    draft = replace(draft, images=ImageSet("webp", items, order="value"))
    return Plan(draft, DEFAULT_LIMITS).size_bytes - images * 2 * BLOCK


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


def _draft(
    source: Source,
    views: Views,
    settings: DistillSettings,
    projector: Projector,
    images: int,
    record: Record | None,
) -> Draft:
    """The archive without the images, of which there will be so many."""
    part = projector.part(settings.storage)
    draft = replace(_facts(source, views, settings), projector=part, record=record)
    if images:
        facts = msgspec.structs.replace(draft.dataset, ipc=images // len(source.classes))
        draft = replace(draft, dataset=facts)
    if draft.card is None and record is not None:
        card = generated_card(draft.dataset, source.classes, views, images, part.base, record)
        draft = replace(draft, card=card)
    return draft


def _facts(source: Source, views: Views, settings: DistillSettings) -> Draft:
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
    """Refuse what cannot be chosen or written, before anything is trained."""
    pixel = ImageItem(0, encode_image(np.zeros((1, 1), np.uint8), "png"))
    # An archive without a projector needs an image.
    images = ImageSet("png", [pixel])
    Plan(replace(_facts(source, views, settings), images=images), DEFAULT_LIMITS)
    check_quality(settings.codec, settings.quality)
    select = settings.select
    if settings.budget is not None:
        if select is None or select.ipc or settings.codec != "png" or settings.quality is not None:
            text = "a budget chooses number, codec and quality of images; expected ipc 0, no others"
            raise UserInputError.make("E_OPTION", text)
        select = replace(select, ipc=1)
    if select is not None:
        check_selection(source, views, select)
