"""Images of another archive, whose classes and labels it knows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hellofmt.archive.format.manifest import UNSET
from hellofmt.errors import UserInputError, printable
from hellofmt.sources.listing import Listing
from hellofmt.sources.source import Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hellofmt.archive.format.classes import ClassLine
    from hellofmt.archive.format.manifest import Manifest
    from hellofmt.archive.format.record import Record
    from hellofmt.archive.read.archive import Archive

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
        """See ``Source``."""
        super().__init__(_listing(file), classes, skips_unreadable=skips_unreadable)
        self._file = file

    @property
    def manifest(self) -> Manifest:
        """The manifest of the archive."""
        return self._file.manifest

    @property
    def record(self) -> Record | None:
        """How the archive was made."""
        return self._file.record

    @property
    def is_ordered(self) -> bool:
        """Whether the images of a class lie in order of value."""
        images = self._file.manifest.images
        return images is not UNSET and images.order == "value"

    @property
    def has_own_classes(self) -> bool:
        """Whether the classes and their order are those of the archive."""
        return list(self.classes) == self._file.classes.lines()

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the further columns of the index, classes in ``labels`` renumbered."""
        index = self._file.index
        found = {} if index is None else dict(index.columns)
        if "labels" in found:
            place = {line.key: label for label, line in enumerate(self.classes)}
            new = [place.get(key, -1) for key in self._file.classes.keys]
            # The last entry is that of -1, no class.
            found["labels"] = np.array([*new, -1], np.int32)[found["labels"]]
        return found

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
    return Listing(name, file.classes.keys, file.classes.lines(), key_of=key_of, digest=file.id)
