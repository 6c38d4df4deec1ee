"""Real images as every stage reads them: listed, labelled, and not decoded before they are needed.

A source knows how many images it has, their labels and their classes. The bytes of an image are
read when its row is asked for, as often as it is asked for, so memory does not grow with pixels.
Forked workers read one source at once: it shares no file position, and keeps arrays instead of an
object per image, so that reading does not copy its pages.

What is found out while images are decoded (converted, unreadable) is marked by row in memory that
forks share, and said once, when a command is done.
"""

from __future__ import annotations

import copy
import hashlib
import mmap
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

import numpy as np

from hellofmt.archive.format.classes import class_bytes
from hellofmt.errors import UserInputError, printable
from hellofmt.sources.decode import KINDS
from hellofmt.sources.notes import left_out
from hellofmt.sources.places import placed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Self

    from numpy.typing import NDArray

    from hellofmt.archive.format.classes import ClassLine
    from hellofmt.sources.listing import Listing

_KIND_BITS: Final = {kind: 1 << bit for bit, kind in enumerate(KINDS)}
_READ: Final = 1 << 14
_UNREADABLE: Final = 1 << 15


class Source(ABC):
    """Real images with labels, as ``open_source`` lists them.

    Attributes:
        name: name of the data set, for the manifest.
        classes: one line per class, in label order.
        notes: what the listing skipped or took otherwise than it looks, one sentence each.
        skips_unreadable: whether an image that cannot be read is left out, and not an error. Its
            row then shows the next readable image of its class.
    """

    def __init__(
        self,
        listing: Listing,
        classes: Sequence[ClassLine] | None = None,
        *,
        skips_unreadable: bool = False,
    ) -> None:
        """Give every class of a listing its place.

        Args:
            listing: what the source holds.
            classes: the classes in label order; None takes the source's own, see ``placed``.
            skips_unreadable: leave out what cannot be read.

        Raises:
            UserInputError: the classes do not match, or no archive could hold them (E_DATA).
        """
        lines, place, notes = placed(listing, classes)
        places = np.array([place[key] for key in listing.keys], np.int64)
        self.name = listing.name
        self.classes: tuple[ClassLine, ...] = tuple(lines)
        self._places, self._key_of = places, listing.key_of
        self.notes: tuple[str, ...] = (*listing.notes, *notes)
        self.skips_unreadable = skips_unreadable
        self._listing_digest, self._times = listing.digest, listing.times
        self._names, self._spans = listing.names, listing.spans
        self._rows: NDArray[np.uint32] | None = None
        # Forks write to the same pages; a copy sent to another process has its own.
        room = mmap.mmap(-1, max(1, 2 * len(self._key_of)))
        self._marks: NDArray[np.uint16] = np.frombuffer(room, np.uint16, len(self._key_of))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._key_of if self._rows is None else self._rows)

    @property
    def labels(self) -> NDArray[np.int64]:
        """All labels, int64 (N,), each in [0, number of classes); made anew at every call."""
        return self._places[self._key_of if self._rows is None else self._key_of[self._rows]]

    def labels_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the labels of some rows, int64 of their shape."""
        return self._places[self._key_of[rows if self._rows is None else self._rows[rows]]]

    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        """Return an image as it is stored: a PNG, JPEG or WebP file, or pixels (H, W, 3).

        Raises:
            UserInputError: it is gone, or changed since it was listed (E_DATA, naming it).
            HelloError: it is in an archive and damaged, or behind a URL and cannot be had.
            OSError: it cannot be read.
        """
        return self._read(self._listed(row))

    def name_of(self, row: int) -> str:
        """Return the name of an image, for messages: its path, or its place in a shard."""
        return self._name_of(self._listed(row))

    def path_of(self, row: int) -> str | None:
        """Return the path of an image that is a file of its own, else None."""
        return None

    def digest(self) -> str:
        """Return the SHA-256 of the listing, 64 hex digits; pixels of files do not count.

        Images that are files count by path, size and time of change, members of shards by those of
        the shard and by their place in it, images of an archive by its id, and images in memory by
        their values. Rows, labels and classes count too.
        """
        return hashlib.sha256(f"{self.portable_digest()} {self._times}".encode()).hexdigest()

    def portable_digest(self) -> str:
        """Return ``digest`` without times of change: the same for a copy on another machine."""
        digest = hashlib.sha256(self._listing_digest.encode())
        digest.update(class_bytes(self.classes))
        digest.update(np.ascontiguousarray(self.labels).data)
        if self._rows is not None:
            digest.update(np.ascontiguousarray(self._rows).data)
        return digest.hexdigest()

    def subset(self, rows: NDArray[np.int64]) -> Self:
        """Return a view of these rows, in this order, with the same classes; copies no image."""
        part = copy.copy(self)
        part._rows = np.asarray(rows if self._rows is None else self._rows[rows], np.uint32)  # noqa: SLF001
        return part

    def note(self, row: int, kinds: Iterable[str] = ()) -> None:
        """Mark an image as read, with what was changed, each one of ``KINDS``."""
        self._note(self._listed(row), kinds)

    def _note(self, row: int, kinds: Iterable[str]) -> None:
        """Mark an image by its row of the listing."""
        mark = _READ
        for kind in kinds:
            mark |= _KIND_BITS[kind]
        self._marks[row] |= mark

    def leave_out(self, row: int) -> None:
        """Mark an image as unreadable."""
        self._marks[self._listed(row)] |= _UNREADABLE

    @property
    def marks(self) -> NDArray[np.uint16]:
        """What was noted of each row of the listing, in bits; shared with forks and subsets."""
        return self._marks

    def unreadable(self) -> NDArray[np.bool_]:
        """Return which images turned out to be unreadable so far, in this process and its forks."""
        marks = self._marks if self._rows is None else self._marks[self._rows]
        return (marks & _UNREADABLE) != 0

    def stand_in(self, row: int) -> int:
        """Return the next row of the same class, in this order and round, that may be readable.

        Args:
            row: an unreadable image.

        Raises:
            UserInputError: the class has none left (E_DATA).
        """
        labels = self.labels
        label = labels[row]
        rest = np.flatnonzero((labels == label) & ~self.unreadable())
        if not rest.size:
            key = printable(self.classes[int(label)].key)
            raise UserInputError.make("E_DATA", f"no image of class `{key}` can be read")
        return int(rest[np.searchsorted(rest, row) % len(rest)])

    def conversion_notes(self) -> list[str]:
        """Say what was changed so far, here and in forks, and name what was left out.

        Returns:
            A sentence per kind of change, and one per image that is left out.
        """
        marks = self._marks if self._rows is None else self._marks[self._rows]
        read = int(np.count_nonzero(marks & _READ))
        total = f"{read:,} images" if read == len(marks) else f"{read:,} images read"
        counts = [(kind, int(np.count_nonzero(marks & bit))) for kind, bit in _KIND_BITS.items()]
        notes = [f"{number:,} of {total} {kind}" for kind, number in sorted(counts) if number]
        lost = [self.name_of(row) for row in np.flatnonzero(marks & _UNREADABLE).tolist()]
        return notes + left_out("images that cannot be read", lost)

    def _listed(self, row: int) -> int:
        """Return the row of the listing that a row of this view is."""
        return row if self._rows is None else int(self._rows[row])

    @abstractmethod
    def _read(self, row: int) -> bytes | NDArray[np.uint8]:
        """Read an image by its row of the listing."""

    @abstractmethod
    def _name_of(self, row: int) -> str:
        """Name an image by its row of the listing."""


def check_classes(labels: NDArray[np.int64], classes: Sequence[ClassLine]) -> None:
    """Check that images can be trained on and, in the end, be written with their classes."""
    count = len(classes)
    if count < 2:
        got = "none" if count == 0 else f"`{printable(classes[0].key, 80)}` alone"
        raise UserInputError.make(
            "E_DATA", f"training needs at least two classes; got {got}; expected a folder of each"
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < count:
        raise UserInputError.make(
            "E_DATA",
            f"labels: expected 0 to {count - 1}, got {labels.min()} to {labels.max()}",
        )
    empty = np.flatnonzero(np.bincount(labels, minlength=count) == 0)
    if empty.size:
        raise UserInputError.make(
            "E_DATA",
            f"class `{printable(classes[int(empty[0])].key)}` has no images, and so have"
            f" {empty.size:,} of {count:,} classes; expected at least one image of each",
        )
    class_bytes(classes)
