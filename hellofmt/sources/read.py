"""Real images by what a user types: the same words mean the same images for every command."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hellofmt.archive.format.limits import DEFAULT_LIMITS, Limits
from hellofmt.archive.read.file import Access
from hellofmt.archive.read.open import find_shards, open_archive
from hellofmt.archive.storage.source import is_url
from hellofmt.errors import UserInputError, did_you_mean, printable
from hellofmt.sources.archived import ArchiveSource, is_archive
from hellofmt.sources.files import FileSource
from hellofmt.sources.folder import list_folder
from hellofmt.sources.kept import kept_listing
from hellofmt.sources.shards import ShardSource, list_shards
from hellofmt.sources.source import check_classes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hellofmt.archive.format.classes import ClassLine
    from hellofmt.sources.source import Source

_LIBRARIES: Final = ("torchvision", "hf")
# A scheme of two letters or more, or a pattern that no shell has expanded; or nothing at all.
_NO_PATH: Final = re.compile(r"^$|^\w\w+:|[*?{}]")


def open_source(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    classes: Sequence[ClassLine] | None = None,
    skips_unreadable: bool = False,
    work: str | os.PathLike[str] | None = None,
) -> Source:
    """List the images of a source that networks are trained or measured on; decode none.

    Args:
        source: as for ``list_source``.
        classes: the classes in label order; see ``placed``.
        skips_unreadable: leave out images that cannot be read, instead of stopping at the first.
        work: folder that keeps the listing of a large source, for the next start.

    Returns:
        The images, with a note for each kind of thing that was skipped or dropped.

    Raises:
        UserInputError: as for ``list_source``; fewer than two classes, or one without an image
            (E_DATA).
        HelloError: as for ``list_source``.
        OSError: as for ``list_source``; or the work folder cannot be written.

    Example:
        >>> from hellofmt.sources import decode_centre
        >>> source = open_source("photos")
        >>> decode_centre(source, 0, 16).shape
        (16, 16, 3)
    """
    opened = list_source(source, classes, skips_unreadable=skips_unreadable, work=work)
    check_classes(opened.labels, opened.classes)
    return opened


def list_source(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    classes: Sequence[ClassLine] | None = None,
    *,
    skips_unreadable: bool = False,
    work: str | os.PathLike[str] | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Source:
    """List the images of a source, also of one that nothing can be trained on.

    Args:
        source: a folder with one folder per class (see ``folder``), a folder of Parquet files or
            ``hf:NAME[:SPLIT]`` (see ``huggingface``), one or more WebDataset shards or their URLs
            (see ``shards``), ``torchvision:NAME:ROOT[:SPLIT]``, or an archive.
        classes: the classes in label order; see ``placed``.
        skips_unreadable: leave out images that cannot be read.
        work: folder that keeps the listing of a large source.
        limits: of an archive.

    Returns:
        The images.

    Raises:
        UserInputError: the source, or a part of it, cannot be used (E_DATA, naming it); there is no
            such source (E_OPTION).
        HelloError: an archive is damaged, or a URL cannot be read.
        OSError: something is missing or cannot be read.

    Example:
        >>> source = list_source("photos")
        >>> len(source), source.classes[0].key
        (60, 'columns')
    """
    texts = [source] if isinstance(source, str | os.PathLike) else list(source)
    kept = None if work is None else Path(work)
    if len(texts) == 1:
        kind, colon, rest = str(texts[0]).partition(":")
        if colon and kind == "torchvision":
            # Loads torch, which files do not need.
            from hellofmt.sources.torchvision import open_torchvision

            return open_torchvision(rest, classes, skips_unreadable=skips_unreadable)
        if colon and kind == "hf":
            from hellofmt.sources.huggingface import open_hugging_face

            return open_hugging_face(rest, classes, skips_unreadable=skips_unreadable)
    paths = _paths(texts)
    if len(paths) == 1 and not is_url(paths[0]):
        if os.path.isdir(paths[0]):  # noqa: PTH112
            return _open_folder(Path(paths[0]), classes, kept, skips_unreadable=skips_unreadable)
        if is_archive(Path(paths[0])):
            file = open_archive(paths[0], limits=limits)
            return ArchiveSource(file, classes, skips_unreadable=skips_unreadable)
    for path in paths:
        if not is_url(path) and is_archive(Path(path)):
            raise UserInputError.make(
                "E_DATA",
                f"several sources, and `{printable(path)}` is an archive; expected it alone",
            )
    places = [path if is_url(path) else os.path.abspath(path) for path in paths]  # noqa: PTH100
    listing = kept_listing(
        kept,
        ["shards", *places, str(skips_unreadable)],
        lambda: list_shards(paths, skips_unreadable=skips_unreadable),
    )
    return ShardSource(listing, classes, skips_unreadable=skips_unreadable)


def _open_folder(
    root: Path, classes: Sequence[ClassLine] | None, work: Path | None, *, skips_unreadable: bool
) -> Source:
    """A folder of class folders, or of Parquet files."""
    if any(name.endswith(".parquet") for name in os.listdir(root)):  # noqa: PTH208
        from hellofmt.sources.huggingface import open_parquet

        return open_parquet(root, classes, skips_unreadable=skips_unreadable)
    listing = kept_listing(
        work,
        ["folder", os.path.abspath(root), str(skips_unreadable)],  # noqa: PTH100
        lambda: list_folder(root, skips_unreadable=skips_unreadable),
    )
    return FileSource(listing, classes, skips_unreadable=skips_unreadable)


def _paths(texts: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Paths that exist, each once, of one folder or of files; URLs are taken as they are."""
    paths: list[str] = []
    for text in [os.fspath(text) for text in texts]:
        is_there = bool(text) and os.path.lexists(text)
        if not is_there and is_url(text):
            found = find_shards(text, Access())
            paths += [found] if isinstance(found, str) else found
            continue
        if not is_there and _NO_PATH.search(text):
            kind, colon, _ = text.partition(":")
            raise UserInputError.make(
                "E_OPTION",
                f"`{printable(text)}`: no such file; expected a folder, an archive, every shard by"
                " its name or URL, or alone torchvision:NAME:ROOT or hf:NAME",
                advice=did_you_mean(kind, _LIBRARIES) if colon else "",
            )
        paths.append(text)
    if not paths:
        raise UserInputError.make("E_DATA", "no source; expected a folder, shards or an archive")
    local = [path for path in paths if not is_url(path)]
    modes = [os.stat(path).st_mode for path in local]  # noqa: PTH116
    if len(paths) > 1 and any(map(stat.S_ISDIR, modes)):
        raise UserInputError.make("E_DATA", "several sources; expected one folder, or shards")
    for path, mode in zip(local, modes, strict=True):
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise UserInputError.make(
                "E_DATA", f"`{printable(path)}`: neither a folder nor a regular file"
            )
    counts = Counter(path if is_url(path) else os.path.realpath(path) for path in paths)
    twice = [path for path, count in counts.items() if count > 1]
    if twice:
        raise UserInputError.make(
            "E_DATA", f"`{printable(twice[0])}` is one of the sources more than once"
        )
    return paths
