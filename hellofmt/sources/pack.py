"""Images that lie on disk, packed into an archive, with a label function or without.

Three kinds of source: a folder with one sub-folder per class (``ImageFolder``'s rule, and what RDED
and SRe2L write), WebDataset shards, and another archive. Bytes are kept exactly as they are; an
image outside its profile is refused by name, never silently re-encoded.
"""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from hellofmt.archive.format.layout import shard_path
from hellofmt.archive.format.limits import DEFAULT_LIMITS, IMAGE_SIDE, Limits
from hellofmt.archive.format.manifest import UNSET, Dataset
from hellofmt.archive.format.record import Record
from hellofmt.archive.format.views import Views, changed_views, default_views
from hellofmt.archive.write.draft import Draft, ImageSet, Texts
from hellofmt.archive.write.shards import write_shards
from hellofmt.archive.write.whole_file import check_target
from hellofmt.archive.write.writer import write_archive
from hellofmt.errors import LimitError, UserInputError, printable
from hellofmt.sources.archived import ArchiveSource
from hellofmt.sources.crops import default_side, sampled_sizes
from hellofmt.sources.label_functions import read_label_functions
from hellofmt.sources.listing import some
from hellofmt.sources.read import list_source
from hellofmt.sources.stored import StoredImages

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from typing import Literal

    from hellofmt.archive.format.classes import ClassLine
    from hellofmt.archive.format.images import Codec
    from hellofmt.archive.write.shards import Spread
    from hellofmt.sources.label_functions import LabelFunctions, Paths
    from hellofmt.sources.source import Source

_logger = logging.getLogger("hellofmt")
_NO_TEXTS: Final = Texts()


def pack_archive(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None,
    target: str | os.PathLike[str],
    *,
    projector: Paths | None = None,
    belongs_to: str | os.PathLike[str] | None = None,
    ordered: bool = False,
    classes: Sequence[ClassLine] | None = None,
    views: Views | Mapping[str, Any] | None = None,
    texts: Texts = _NO_TEXTS,
    reencode: Literal["png", "jpeg", "webp"] | None = None,
    max_side: int | None = None,
    skips_unreadable: bool = False,
    layout: Literal["auto", "files", "packed"] = "auto",
    shards: int | None = None,
    force: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
    spread: Spread = map,
) -> str:
    """Pack images into an archive; what it gets is verified before it has its name.

    What counts as an image is said in ``sources.folder`` and ``sources.shards``, and how classes
    get their labels in ``sources.listing.placed``; both are the same for everything that reads
    images. One class is enough for an archive; training needs two.

    Args:
        source: an image folder, a ``.hello`` archive, or one or more WebDataset shards (``.tar``);
            None packs the label functions of ``projector`` alone.
        target: the archive to write.
        projector: an archive whose label functions are copied; its classes and views are taken
            over. Or several of one base and one class list, each alone or in a pair after a new
            name for its one function. The first function is the default.
        belongs_to: instead of ``projector``, the archive with the label functions for the images,
            which stay there; its classes and views are taken over, and its id.
        ordered: the images of a class come in order of value, files by name: the first k are the
            choice for k. An archive says so itself.
        classes: the classes in label order; those of the source may be fewer.
        views: how views are made; the projector's, else those of an archive of images, else
            ``default_views`` for the median shorter side of the images, at most 224. A mapping
            changes only the fields it names.
        texts: what the archive says of itself. Without them the name is the source's, license,
            method and sources are those of an archive of images, else (but for the license) of the
            projector, else ``NOASSERTION``, ``unknown`` and none.
        reencode: convert images of another codec or outside the profile; quality 95 for JPEG.
        max_side: with ``reencode``, shrink images with a longer side to this many pixels.
        skips_unreadable: leave out what is no image or cannot be read in full, naming each, instead
            of refusing it; every image is read once more.
        layout: ``files``, ``packed`` (one array, for tiny images of one size) or the smaller.
        shards: spread the images over so many files, ``name-00000-of-00016.hello`` beside the
            target, which itself is not written.
        force: replace an existing target.
        limits: of the archive.
        progress: called with images done and in all: of converting or checking, if asked for, then
            of writing.
        say: called with a line for each kind of thing that was skipped, converted or dropped, and
            for each of several images that are refused; by default these are warnings of the logger
            ``hellofmt``.
        spread: writes shards in other processes, see ``write_shards``; for images that are stored
            as they are.

    Returns:
        The ``sha256:...`` id; with ``shards`` that of the set.

    Raises:
        UserInputError: the source has no images or mixed codecs or something that is no image, its
            classes do not match or no archive could hold them, a shard is damaged, an image is
            outside its profile (E_DATA, naming it); an archive of ``projector`` has no label
            function (E_OPTION), or does not go with the first one or with the images (E_DATA).
        CorruptError: the projector's archive, or the one that images are taken from, is damaged.
        LimitError: above the limits.
        HelloIOError: the target exists (E_TARGET) or cannot be written.
        OSError: a source is missing or cannot be read.

    Example:
        >>> import hellofmt
        >>> identity = hellofmt.pack("photos", "packed.hello")
        >>> identity == hellofmt.verify("packed.hello").id
        True
    """
    if max_side is not None and (reencode is None or not 1 <= max_side <= IMAGE_SIDE):
        text = f"expected 1 to {IMAGE_SIDE}, and a codec to reencode to, got {max_side}"
        raise UserInputError.make("E_OPTION", text, argument="max_side")
    say = say or _logger.warning
    if projector is not None and belongs_to is not None:
        text = "names what stays in another file; expected none beside a projector"
        raise UserInputError.make("E_OPTION", text, argument="belongs_to")
    found = belongs_to if projector is None else projector
    known = None if found is None else read_label_functions(found, limits, say)
    lines = None if classes is None else list(classes)
    if known is not None:
        _check_same_classes(lines, known.lines)
        lines = known.lines
    parts = [] if known is None or projector is None else known.parts
    draft_of = partial(
        Draft,
        projector=parts[0] if parts else None,
        further=parts[1:],
        card=texts.card,
        license=texts.license_text,
        extras=texts.extras,
        record=Record(functions=known.records) if parts and known and known.records else None,
        label_function=None if known is None or parts else known.id,
    )
    if source is None:
        if known is None or projector is None:
            raise UserInputError.make("E_OPTION", "expected images or a projector to pack")
        if shards is not None:
            raise UserInputError.make("E_OPTION", "no images to divide", argument="shards")
        dataset = _dataset(texts, known.dataset.name, None, known.dataset)
        draft = draft_of(dataset, known.lines, _settled(views, known.views))
        return write_archive(target, draft, force=force, limits=limits, progress=progress)
    if spread is not map and (reencode is not None or shards is None):
        text = "expected shards of images that are stored as they are"
        raise UserInputError.make("E_OPTION", text, argument="spread")
    images = list_source(source, lines, skips_unreadable=skips_unreadable, limits=limits)
    for note in images.notes:
        say(note)
    for index in range(shards or 1):
        # Before an hour of work rather than after it.
        path = target if shards is None else shard_path(target, index, shards)
        check_target(path, force=force)
    stored = StoredImages(images, limits, Path(target), reencode=reencode, max_side=max_side)
    with closing(stored):
        # Where images are neither converted nor checked it takes no time that is worth a count.
        stored.look(progress if reencode is not None or skips_unreadable else None, say)
        _check_left(images, say)
        if spread is not map and stored.has_converted:
            text = "images of a packed archive are encoded here; expected an archive of image files"
            raise UserInputError.make("E_OPTION", text, argument="spread")
        try:
            start = views if isinstance(views, Views) else _start_views(images, known, max_side)
        except UserInputError:
            stored.refuse_all(say)
            raise
        made_of = ImageSet(reencode or _one_codec(stored.codecs), stored.items, layout)
        own = images.manifest.dataset if isinstance(images, ArchiveSource) else None
        dataset = _dataset(texts, images.name, own, None if known is None else known.dataset)
        draft = draft_of(dataset, images.classes, _settled(views, start))
        if isinstance(images, ArchiveSource):
            made_of = replace(made_of, columns=images.columns())
            ordered = ordered or images.is_ordered
            draft = _taken_over(images, draft, known, reencode is None, say)
        draft = replace(draft, images=replace(made_of, order="value" if ordered else None))
        try:
            write: Callable[..., str] = write_archive
            if shards is not None:
                write = partial(write_shards, count=shards, say=say, spread=spread)
            made = write(target, draft, force=force, limits=limits, progress=progress)
        except (UserInputError, LimitError) as error:
            # Of one image, perhaps; then of all that are like it.
            if error.code == "E_DATA" or error.code.startswith("E_LIMIT_IMAGE_"):
                stored.refuse_all(say)
            raise
    for note in images.conversion_notes():
        say(note)
    return made


def _check_left(images: Source, say: Callable[[str], None]) -> None:
    """Refuse to pack nothing, and say which classes lose all of their images."""
    left = images.labels[~images.unreadable()]
    if not left.size:
        text = f"`{printable(images.name)}`: no image can be read"
        raise UserInputError.make("E_DATA", text)
    lost = np.setdiff1d(images.labels, left)
    if lost.size:
        keys = some(images.classes[label].key for label in lost.tolist())
        say(f"classes of which no image can be read: {lost.size:,}: {keys}")


def _start_views(images: Source, known: LabelFunctions | None, max_side: int | None) -> Views:
    """Views of the label function, else of the archive that is read, else what suits the images."""
    if known is not None:
        return known.views
    if isinstance(images, ArchiveSource):
        return images.manifest.views
    sizes = sampled_sizes(images)
    if max_side is not None:
        sizes = np.rint(sizes * np.minimum(1.0, max_side / sizes.max(1, keepdims=True)))
    return default_views(default_side(sizes.clip(1).astype(np.int64)))


def _settled(views: Views | Mapping[str, Any] | None, start: Views) -> Views:
    """The views that the user wants, or ``start`` with the changes that the user wants."""
    return views if isinstance(views, Views) else changed_views(start, views or {})


def _dataset(texts: Texts, name: str, own: Dataset | None, projectors: Dataset | None) -> Dataset:
    """What the user says, else the archive of the images, else that of the projector."""
    known = own or projectors
    sources = [] if known is None else known.sources
    return Dataset(
        name=texts.name or name,
        version=texts.version,
        license=texts.license or ("NOASSERTION" if own is None else own.license),
        method=texts.method or ("unknown" if known is None else known.method),
        sources=list(sources if texts.sources is None else texts.sources),
    )


def _taken_over(
    images: ArchiveSource,
    draft: Draft,
    known: LabelFunctions | None,
    is_kept: bool,
    say: Callable[[str], None],
) -> Draft:
    """The draft with what else its images bring from their archive; says what stays behind."""
    for left in _left_out(images, draft):
        say(f"{left} of the archive that is read is left out")
    owner = _label_function_of(images, known, say)
    draft = replace(draft, label_function=draft.label_function or owner)
    return replace(draft, record=_record_of(images, draft, is_kept, say))


def _left_out(images: ArchiveSource, draft: Draft) -> list[str]:
    """What an archive has beside its images, and a draft of them has not."""
    names = {section.name for section in images.manifest.sections}
    parts = {
        "the label function": images.manifest.functions is not UNSET and draft.projector is None,
        "the card": "card" in names and draft.card is None,
        "the text of the licence": "license" in names and draft.license is None,
    }
    return [part for part, is_left_out in parts.items() if is_left_out]


def _record_of(
    images: ArchiveSource, draft: Draft, is_kept: bool, say: Callable[[str], None]
) -> Record | None:
    """The record of a draft, with how its images were chosen where they stay as they are."""
    old = images.record
    if old is None:
        return draft.record
    if old.results is not UNSET:
        say("recorded results of students are left out: they are of the archive that is read")
    if not is_kept or old.images is UNSET:
        return draft.record
    return msgspec.structs.replace(draft.record or Record(), images=old.images)


def _label_function_of(
    images: ArchiveSource, known: LabelFunctions | None, say: Callable[[str], None]
) -> str | None:
    """The id of the label function that the images of an archive belong to, if it stays theirs."""
    own = images.manifest.label_function
    if own is UNSET:
        return None
    if known is not None:
        if known.id != own:
            raise UserInputError.make(
                "E_DATA",
                f"the images belong to the label function of archive {own}; got {known.id}",
            )
        return None
    if images.has_own_classes:
        return own
    say(f"the classes change, so the label function of archive {own} is no longer named")
    return None


def _check_same_classes(given: list[ClassLine] | None, known: list[ClassLine]) -> None:
    """A class list beside a projector must be the projector's: its rows are what it labels."""
    if given is None or [line.key for line in given] == [line.key for line in known]:
        return
    raise UserInputError.make(
        "E_DATA",
        f"the class list is not the projector's; expected {len(known)} classes beginning "
        f"{some(line.key for line in known)}, got {len(given)} beginning "
        f"{some(line.key for line in given)}",
    )


def _one_codec(codecs: Sequence[Codec]) -> Codec:
    """The codec that all images have."""
    found = Counter(codecs)
    if len(found) > 1:
        counts = [f"{number} {codec}" for codec, number in sorted(found.items())]
        raise UserInputError.make(
            "E_DATA",
            f"an archive has one codec, the source has {', '.join(counts)}; "
            "`--reencode` converts them",
        )
    return codecs[0]
