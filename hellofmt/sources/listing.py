"""What a source holds before any of its images is read, a few dozen bytes for each.

Names are one array of bytes and not strings: a million strings are 100 MB, and counting the
references to them would copy those pages into every worker.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from hellofmt.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from hellofmt.archive.format.classes import ClassLine

_SHOWN: Final = 5


@dataclass(frozen=True)
class Names:
    """Names of many files, grouped by the folder or the shard that they lie in.

    Attributes:
        folders: in order.
        starts: int64 (F + 1,), first row of each folder, and N.
        text: uint8, the names without their folders, one after another.
        ends: where each ends in ``text``, (N,), see ``ends_of``.
    """

    folders: tuple[str, ...] = ()
    starts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    text: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    ends: NDArray[np.uint32 | np.int64] = field(default_factory=lambda: np.zeros(0, np.uint32))

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self.ends)

    def folder(self, row: int) -> int:
        """Return which folder a row lies in."""
        # A tenth of the time of `np.searchsorted`, which every name would take.
        return bisect_right(self.starts, row) - 1

    def name(self, row: int) -> str:
        """Return the name of a row in its folder."""
        start = int(self.ends[row - 1]) if row else 0
        return os.fsdecode(self.text[start : int(self.ends[row])].tobytes())

    def path(self, row: int, separator: str = "/") -> str:
        """Return folder and name of a row."""
        return f"{self.folders[self.folder(row)]}{separator}{self.name(row)}"


def ends_of(lengths: NDArray[np.integer]) -> NDArray[np.uint32 | np.int64]:
    """Return where names of these lengths end: four bytes each below 4 GiB of names, else eight."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return ends.astype(np.uint32) if not len(ends) or ends[-1] < 1 << 32 else ends


class NamesBuilder:
    """Collects names, one folder after another."""

    def __init__(self) -> None:
        self._folders: list[str] = []
        self._starts: list[int] = []
        self._text = bytearray()
        self._lengths: list[NDArray[np.int64]] = []
        self._count = 0

    def add(self, folder: str, names: list[str]) -> None:
        """Add a folder with its files."""
        encoded = [os.fsencode(name) for name in names]
        self._folders.append(folder)
        self._starts.append(self._count)
        self._text += b"".join(encoded)
        self._lengths.append(np.array([len(name) for name in encoded], np.int64))
        self._count += len(encoded)

    def names(self) -> Names:
        """Return all of them."""
        lengths = np.concatenate(self._lengths) if self._lengths else np.zeros(0, np.int64)
        return Names(
            tuple(self._folders),
            np.array([*self._starts, self._count], np.int64),
            np.frombuffer(self._text, np.uint8),
            ends_of(lengths),
        )


@dataclass(frozen=True)
class Listing:
    """The images of a source, and its classes before they have labels.

    Attributes:
        name: of the data set, where nobody gives another.
        keys: the classes that it names; sorted by name, by code points, unless ``lines`` say more.
        lines: the classes in label order, where the source knows it; may be more than ``keys``.
        is_numbered: keys are labels, places in any class list, and not names.
        notes: what was skipped or taken otherwise than it looks, one sentence each.
        key_of: int32 (N,), place in ``keys`` of each image.
        names: of the images, where they are files or members of shards.
        spans: int64 (N, 2), first byte and number of bytes of each image, of members of shards.
        digest: of what was listed, the same on every machine: names below the source, and sizes or
            contents.
        times: digest of times of change, empty where there are none.
    """

    name: str
    keys: list[str]
    lines: list[ClassLine] | None = None
    is_numbered: bool = False
    notes: tuple[str, ...] = ()
    key_of: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    names: Names = field(default_factory=Names)
    spans: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    digest: str = ""
    times: str = ""


def some(keys: Iterable[str]) -> str:
    """The first few of many keys, fit for a message."""
    listed = list(keys)
    more = ", ..." if len(listed) > _SHOWN else ""
    return printable(", ".join(listed[:_SHOWN])) + more
