"""Open an archive by a path, a URL, a pattern, or the files of a set."""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING, Any, Final

from hellofmt.archive.format.layout import MOST_SHARDS
from hellofmt.archive.format.limits import DEFAULT_LIMITS, Limits
from hellofmt.archive.read.file import Access
from hellofmt.archive.read.set import open_set
from hellofmt.archive.storage.source import display_name, is_url
from hellofmt.errors import UserInputError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hellofmt.archive.read.archive import Archive

# Characters of shard patterns, which hardly any path contains.
_PATTERN: Final = re.compile(r"[*?\[{]")


def open_archive(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    expect: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Archive:
    """Open an archive and verify its manifest, its length and the header of every section.

    The exact name of one file opens that file, even if it is a shard. A pattern or a list opens the
    files of a sharded data set as one, a ``HelloSet``: ``name-*-of-00016.hello``,
    ``name-{00000..00015}-of-00016.hello``, or the names in any order.

    Args:
        path: a ``.hello`` file; a URL that fsspec knows (``https://``, ``s3://``, ``hf://``), read
            by ranges; a pattern; or the files of a set.
        expect: the ``id`` it must have, ``sha256:`` and 64 hex digits: the only check that protects
            against deliberate changes.
        limits: size limits.
        storage_options: options that fsspec passes to the storage of a URL, such as credentials;
            for http(s) also ``timeout``, seconds for one read with all its retries (60).
        cache_dir: folder that keeps bytes from a URL, at most 16 GiB; None takes the environment's
            ``HELLOFMT_CACHE``; empty keeps nothing. Cached bytes are verified like all others.

    Returns:
        The open archive, a context manager.

    Raises:
        OSError: the file is missing, a directory, or not permitted.
        NotHelloError: it is not an archive (E_MAGIC), or has an unknown version or feature.
        CorruptError: it was changed, truncated or extended.
        SpecError: the format forbids its content.
        LimitError: it is above ``limits``.
        TrustError: its ``id`` is not ``expect`` (E_PIN).
        HelloIOError: reading failed.
        UserInputError: ``expect`` is not an id, or a package for the URL is missing (E_OPTION); or
            the files are not one complete set (E_DATA).

    Example:
        >>> import hellofmt
        >>> with hellofmt.open("photos.hello") as archive:
        ...     archive.manifest.dataset.name, len(archive)
        ('photos', 60)
    """
    from hellofmt.archive.storage.cache import CACHE_VARIABLE

    folder = os.environ.get(CACHE_VARIABLE, "") if cache_dir is None else os.fspath(cache_dir)
    access = Access(dict(storage_options or {}), folder)
    if isinstance(path, os.PathLike) or (isinstance(path, str) and not _PATTERN.search(path)):
        return access.open(path, expect, limits)
    shards = find_shards(path, access)
    if isinstance(shards, str):
        return access.open(shards, expect, limits)
    return open_set(shards, expect, limits, access)


_BRACES: Final = re.compile(r"(.*)\{([0-9]{1,9})\.\.([0-9]{1,9})\}([^{}]*)", re.DOTALL)


def find_shards(path: str | Sequence[str | os.PathLike[str]], access: Access) -> str | list[str]:
    """Resolve a pattern or a list to one file or several.

    A pattern has ``*``, ``?``, ``[...]`` or ``{00000..00015}``; in a URL only ``*`` and braces form
    one, and the literal name of a file is none.
    """
    if not isinstance(path, str):
        names = [os.fspath(name) for name in path]
        if not names:
            raise UserInputError.make("E_OPTION", "no files; expected those of a sharded data set")
        return names
    if not is_url(path) and os.path.lexists(path):
        return path
    braces = _BRACES.fullmatch(path)
    if braces is not None:
        return _expanded(path, *braces.groups())
    if is_url(path):
        return _listed(path, access) if "*" in path else path
    # Path.glob refuses absolute patterns.
    import glob

    names = sorted(glob.glob(path))  # noqa: PTH207
    if not names:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return names


def _expanded(path: str, before: str, low: str, high: str, after: str) -> list[str]:
    """Expand ``a-{00..03}-b``."""
    first, last = int(low), int(high)
    if len(low) != len(high) or not first <= last < first + MOST_SHARDS:
        text = f"`{printable(display_name(path))}`; expected digits like {{00000..00015}}"
        raise UserInputError.make("E_OPTION", text)
    return [f"{before}{number:0{len(low)}d}{after}" for number in range(first, last + 1)]


def _listed(path: str, access: Access) -> list[str]:
    """List the URLs that match a URL with ``*``."""
    from hellofmt.archive.storage.remote import list_urls

    names = list_urls(path, access.storage_options)
    if not names:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), display_name(path))
    return names
