"""Listing the images of another archive, whose classes and labels it knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hellofmt.archive.format.classes import ClassLine
from hellofmt.archive.format.images import encode_image
from hellofmt.archive.format.manifest import UNSET
from hellofmt.errors import UserInputError, printable
from hellofmt.sources.listing import Listing, Picture

if TYPE_CHECKING:
    from hellofmt.archive.format.images import Codec
    from hellofmt.archive.read.archive import Archive

__all__ = ["class_lines", "is_archive", "list_archive"]

_BEGIN = b"__hello__/manifest"


def is_archive(path: Path) -> bool:
    """Whether a file begins as an archive does."""
    with path.open("rb") as stream:
        return stream.read(len(_BEGIN)) == _BEGIN


def list_archive(file: Archive) -> Listing:
    """List the images of an open archive; each is read, and so verified, when it is asked for.

    Args:
        file: the archive; it must stay open as long as its pictures are read.

    Returns:
        The listing, with the classes of the archive.

    Raises:
        UserInputError: it has no images (E_DATA).
    """
    images, index = file.manifest.images, file.index
    if images is UNSET or index is None:
        raise UserInputError.make("E_DATA", f"`{printable(file.path)}`: an archive without images")
    keys = file.classes.keys
    codec: Codec = "png" if images.codec == "raw" else images.codec
    pictures = [
        Picture(
            keys[label],
            f"{file.path}:{file.image_name(row)}",
            codec,
            _ArchiveImage(file, row, is_packed=images.codec == "raw"),
        )
        for row, label in enumerate(index.label.tolist())
    ]
    name = Path(file.path).name.split(".")[0] or "archive"
    return Listing(name, pictures, keys, class_lines(file))


def class_lines(file: Archive) -> list[ClassLine]:
    """The classes of an archive, as a writer takes them."""
    classes = file.classes
    return [ClassLine(*pair) for pair in zip(classes.keys, classes.names, strict=True)]


@dataclass(frozen=True)
class _ArchiveImage:
    """An image of another archive."""

    file: Archive
    row: int
    is_packed: bool

    def __call__(self) -> bytes:
        """The stored bytes; of a packed archive its pixels as PNG."""
        if self.is_packed:
            return encode_image(self.file.decode_image(self.row), "png")
        return self.file.read_image(self.row)
