"""Images that are files of their own, named by a listing."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from hellofmt.archive.storage.local_files import open_to_read, read_file
from hellofmt.errors import UserInputError, printable
from hellofmt.sources.content import HEAD_BYTES
from hellofmt.sources.listing import NamesBuilder
from hellofmt.sources.source import Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hellofmt.sources.listing import Listing


class FileSource(Source):
    """Files of a folder, or of a data set of torchvision that names its files."""

    def path_of(self, row: int) -> str:
        """See ``Source.path_of``."""
        return self.name_of(row)

    def _read(self, row: int) -> bytes:
        path = self._names.path(row)
        try:
            return read_file(path)
        except FileNotFoundError:
            raise UserInputError.make(
                "E_DATA", f"`{printable(path)}` was listed and is no longer there"
            ) from None

    def _name_of(self, row: int) -> str:
        return self._names.path(row)


def list_files(listing: Listing, paths: Sequence[str]) -> Listing:
    """Return a listing with the files that somebody else listed, in their order."""
    builder = NamesBuilder()
    for folder, group in groupby(paths, lambda path: path.rpartition("/")[0]):
        builder.add(folder, [path.rpartition("/")[2] for path in group])
    stats = np.array(
        [(status.st_size, status.st_mtime_ns) for status in map(os.stat, paths)], np.int64
    )
    names = builder.names()
    # Folders above a file may be called otherwise on another machine.
    digest = hashlib.sha256(names.text.tobytes() + names.ends.tobytes() + stats[:, 0].tobytes())
    times = hashlib.sha256(stats[:, 1].tobytes())
    return replace(listing, names=names, digest=digest.hexdigest(), times=times.hexdigest())


def read_head(path: str) -> bytes:
    """The first ``HEAD_BYTES`` of a file."""
    fd = open_to_read(path)
    try:
        return os.read(fd, HEAD_BYTES)
    finally:
        os.close(fd)
