"""Real images as every stage reads them: listed, labelled, and not decoded before they are needed.

A source knows how many images it has, their labels and their classes. The bytes of an image are
read when its row is asked for, as often as it is asked for, so memory does not grow with pixels. A
source is read by forked workers at once: it shares no file position and keeps no objects per image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hellofmt.archive.format.classes import ClassLine

__all__ = ["Source"]


class Source(Protocol):
    """Real images with labels.

    Attributes:
        name: name of the data set, for the manifest.
        classes: one line per class, in label order.
        labels: int64 (N,), each in [0, number of classes).
        notes: what the listing skipped or took otherwise than it looks, one sentence each.
    """

    @property
    def name(self) -> str:
        """Name of the data set."""
        ...

    @property
    def classes(self) -> tuple[ClassLine, ...]:
        """One line per class, in label order."""
        ...

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels, int64 (N,)."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the listing has to say, one sentence each."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        """Return an image as it is stored: a PNG, JPEG or WebP file, or pixels (H, W, 3).

        Raises:
            UserInputError: the image changed since it was listed (E_DATA, naming it).
            HelloError: it is in an archive and damaged.
            OSError: it cannot be read.
        """
        ...

    def name_of(self, row: int) -> str:
        """Return the name of an image, for messages: its path, or its place in a shard."""
        ...

    def digest(self) -> str:
        """Return the SHA-256 of the listing, 64 hex digits; rows and labels count, pixels do not.

        Images that are files count by path, size and time of change. Images in memory count by
        their values.
        """
        ...

    def subset(self, rows: NDArray[np.int64]) -> Source:
        """Return a view of these rows, in this order, with the same classes; copies no image."""
        ...

    def note(self, row: int, kinds: list[str]) -> None:
        """Keep what was changed when an image was decoded; any process, any number of times."""
        ...

    def conversion_notes(self) -> list[str]:
        """Return what was changed so far, by this process and its forks, one sentence per kind."""
        ...
