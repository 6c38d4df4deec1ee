"""Images of another archive, whose classes and labels it knows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hellofmt.archive.format.classes import ClassLine
from hellofmt.archive.format.manifest import UNSET
from hellofmt.errors import UserInputError, printable
from hellofmt.sources.listing import Listing
from hellofmt.sources.source import Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hellofmt.archive.read.archive import Archive

__all__ = ["ArchiveSource", "class_lines", "is_archive"]

_BEGIN = b"__hello__/manifest"


def is_archive(path: Path) -> bool:
    """Whether a file begins as an archive does."""
    with path.open("rb") as stream:
        return stream.read(len(_BEGIN)) == _BEGIN


class ArchiveSource(Source):
    """Images of an open archive; each is read, and so verified, when it is asked for.

    The archive is kept open as long as this lives.
    """

    def __init__(
        self,
        file: Archive,
        classes: Sequence[ClassLine] | None = None,
        *,
        skips_unreadable: bool = False,
    ) -> None:
        """See ``Source``.

        Raises:
            UserInputError: it has no images, or the classes do not match (E_DATA).
        """
        super().__init__(_listing(file), classes, skips_unreadable=skips_unreadable)
        self._file = file

    def _read(self, row: int) -> bytes | NDArray[np.uint8]:
        images = self._file.manifest.images
        if images is not UNSET and images.codec == "raw":
            return self._file.decode_image(row)
        return self._file.read_image(row)

    def _name_of(self, row: int) -> str:
        return f"{self._file.path}:{self._file.image_name(row)}"


def _listing(file: Archive) -> Listing:
    index = file.index
    if index is None:
        raise UserInputError.make("E_DATA", f"`{printable(file.path)}`: an archive without images")
    name = Path(file.path).name.split(".")[0] or "archive"
    key_of = np.asarray(index.label, np.int32)
    return Listing(name, file.classes.keys, class_lines(file), key_of=key_of, digest=file.id)


def class_lines(file: Archive) -> list[ClassLine]:
    """The classes of an archive, as a writer takes them."""
    classes = file.classes
    return [ClassLine(*pair) for pair in zip(classes.keys, classes.names, strict=True)]
