"""Real images by what a user types: the same words mean the same images for every command."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hellofmt.archive.format.limits import DEFAULT_LIMITS, Limits
from hellofmt.archive.read.open import open_archive
from hellofmt.errors import UserInputError, did_you_mean, printable
from hellofmt.sources.archived import is_archive, list_archive
from hellofmt.sources.arrays import decoded
from hellofmt.sources.folder import list_folder
from hellofmt.sources.listing import Pictures
from hellofmt.sources.shards import list_shards

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from hellofmt.archive.format.classes import ClassLine
    from hellofmt.sources.arrays import ArrayImages

__all__ = ["open_pictures", "read_source"]

_TORCHVISION: Final = "torchvision:"
# A scheme of two letters or more, or a pattern that no shell has expanded; or nothing at all.
_NO_PATH: Final = re.compile(r"^$|^\w\w+:|[*?{}]")


@contextmanager
def open_pictures(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    classes: Sequence[ClassLine] | None = None,
    *,
    limits: Limits = DEFAULT_LIMITS,
) -> Generator[Pictures]:
    """List the images of a source, without decoding one.

    Args:
        source: a folder with one folder per class (see ``folder``), one or more WebDataset shards
            (see ``shards``), or an archive.
        classes: the classes in label order; see ``placed``.
        limits: of an archive.

    Yields:
        The images; those of an archive can be read until the context ends.

    Raises:
        UserInputError: the source, or a part of it, cannot be used (E_DATA, naming it).
        HelloError: an archive is damaged.
        OSError: something is missing or cannot be read.
    """
    texts = [source] if isinstance(source, str | os.PathLike) else list(source)
    _check_kind(texts)
    paths = list(map(Path, texts))
    if not paths:
        raise UserInputError.make("E_DATA", "no source; expected a folder, shards or an archive")
    modes = [path.stat().st_mode for path in paths]
    if len(paths) == 1 and stat.S_ISDIR(modes[0]):
        yield Pictures(list_folder(paths[0]), classes)
        return
    if any(map(stat.S_ISDIR, modes)):
        raise UserInputError.make("E_DATA", "several sources; expected one folder, or shards")
    for path, mode in zip(paths, modes, strict=True):
        if not stat.S_ISREG(mode):
            raise UserInputError.make(
                "E_DATA", f"`{printable(path)}`: neither a folder nor a regular file"
            )
    twice = [str(path) for path, n in Counter(p.resolve() for p in paths).items() if n > 1]
    if twice:
        raise UserInputError.make(
            "E_DATA", f"`{printable(twice[0])}` is one of the sources more than once"
        )
    archives = [path for path in paths if is_archive(path)]
    if not archives:
        yield Pictures(list_shards(paths), classes)
        return
    if len(paths) > 1:
        raise UserInputError.make(
            "E_DATA",
            f"several sources, and `{printable(archives[0])}` is an archive; expected it alone",
        )
    with open_archive(paths[0], limits=limits) as file:
        yield Pictures(list_archive(file), classes)


def _check_kind(paths: Sequence[str | os.PathLike[str]]) -> None:
    """Refuse what is no path, and would be looked for as a file.

    Raises:
        UserInputError: E_OPTION.
    """
    for path in paths:
        text = os.fspath(path)
        if text and (Path(text).exists() or not _NO_PATH.search(text)):
            continue
        kind, colon, _ = text.partition(":")
        raise UserInputError.make(
            "E_OPTION",
            f"`{printable(text)}`: no such file; expected a folder, an archive, or every shard by"
            " its name on this machine; commands that train also take torchvision:NAME:ROOT, alone",
            advice=did_you_mean(kind, ["torchvision"]) if colon else "",
        )


def read_source(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    size: int | None = None,
    *,
    classes: Sequence[ClassLine] | None = None,
) -> ArrayImages:
    """Read all images of a source into memory.

    Args:
        source: as for ``open_pictures``, or ``torchvision:NAME:ROOT[:SPLIT]``.
        size: side in pixels that every image is resized and cropped to (bilinear, antialiased,
            centre); None needs images of one shape.
        classes: the classes in label order; see ``placed``.

    Returns:
        The images, with a note for each kind of thing that was skipped, converted or dropped.

    Raises:
        UserInputError: as for ``open_pictures``; fewer than two classes, a class without an image,
            an image that cannot be decoded, unequal shapes without ``size`` (E_DATA), a data set
            that torchvision has not (E_OPTION).
        HelloError: an archive is damaged.
        OSError: something is missing or cannot be read.
    """
    texts = [source] if isinstance(source, str | os.PathLike) else list(source)
    if len(texts) == 1 and str(texts[0]).startswith(_TORCHVISION):
        # Loads torch, which files do not need.
        from hellofmt.sources.torchvision import read_torchvision

        return read_torchvision(str(texts[0]).removeprefix(_TORCHVISION), size, classes=classes)
    with open_pictures(source, classes) as pictures:
        return decoded(pictures, size)
