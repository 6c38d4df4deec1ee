"""The ``source`` argument of what reads archives: a path, a URL, shards or an open archive."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

from hellofmt.archive.format.limits import DEFAULT_LIMITS, Limits
from hellofmt.archive.read.archive import Archive
from hellofmt.archive.read.open import open_archive
from hellofmt.errors import TrustError, UserInputError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def opened(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Archive,
    expect: str | None,
    storage_options: Mapping[str, Any] | None,
    cache_dir: str | os.PathLike[str] | None,
    limits: Limits | None = None,
) -> Archive:
    """Open ``source`` unless it is an open archive; see ``open_archive`` for the arguments."""
    if not isinstance(source, Archive):
        _check_source(source)
        return open_archive(
            source,
            expect=expect,
            limits=limits or DEFAULT_LIMITS,
            storage_options=storage_options,
            cache_dir=cache_dir,
        )
    if any(option is not None for option in (storage_options, cache_dir, limits)):
        text = "`storage_options`, `cache_dir`, `limits`; expected none: the archive is open"
        raise UserInputError.make("E_OPTION", text)
    if expect is not None and source.id != expect:
        raise TrustError.make("E_PIN", f"id of the archive; expected {expect}, got {source.id}")
    return source


def _check_source(source: object) -> None:
    """Raise E_OPTION unless ``source`` may name an archive, and say what to pass instead."""
    dataset = getattr(source, "dataset", None)
    for owner, name in ((source, "`.file`"), (dataset, "`.dataset.file`")):
        if not isinstance(getattr(owner, "file", None), Archive):
            continue
        text = f"`source` is a {type(source).__name__}; expected an archive: pass its path, or"
        raise UserInputError.make("E_OPTION", f"{text} its {name}")
    if isinstance(source, (str, os.PathLike)):
        if os.path.isdir(cast("str", source)):  # noqa: PTH112 - a URL is no Path
            text = f"`source` is a folder: {printable(source)}; expected an archive"
            raise UserInputError.make("E_OPTION", text + ": `hello pack FOLDER` makes one")
        return
    items = cast("Sequence[object]", source) if isinstance(source, (list, tuple)) else ()
    if not items or not all(isinstance(item, (str, os.PathLike)) for item in items):
        text = "`source`; expected the path of an archive, the paths of its shards or an open"
        raise UserInputError.make("E_OPTION", f"{text} archive, got {type(source).__name__}")
