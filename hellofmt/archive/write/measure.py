"""Measure an image to be packed: its size now, its bytes and shape when it is written."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hellofmt.archive.format.image_data import check_image_data
from hellofmt.archive.format.images import ImageShape, check_image_limits, parse_image
from hellofmt.errors import HelloError, LimitError, UserInputError, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from hellofmt.archive.format.limits import Limits
    from hellofmt.archive.write.draft import ImageItem


@dataclass(slots=True)
class Row:
    """One image to be packed; a ``source`` that is a string is a path."""

    label: int
    source: bytes | str | Callable[[], bytes]
    position: int
    size: int
    sha256: bytes | None
    is_walked: bool = False

    def describe(self) -> str:
        """Return its name in errors: its position among the items, and its path if it has one."""
        where = f" ({printable(self.source)})" if isinstance(self.source, str) else ""
        return f"image {self.position}{where}"

    def read_head(self, length: int) -> bytes:
        """Read at most its first ``length`` bytes."""
        if isinstance(self.source, str):
            with Path(self.source).open("rb") as file:
                return file.read(length)
        return self.read()[:length]

    def read(self) -> bytes:
        """Read its bytes, as many as were measured."""
        if isinstance(self.source, str):
            with open(self.source, "rb") as file:  # noqa: PTH123 - a Path a picture costs
                # It may have grown, perhaps without end.
                data = file.read(self.size + 1)
        else:
            data = self.source if isinstance(self.source, bytes) else self.source()
        if len(data) != self.size:
            raise self.changed()
        return data

    def changed(self) -> UserInputError:
        """Return the error for bytes that differ from those measured."""
        return UserInputError.make("E_DATA", f"{self.describe()} changed while it was packed")

    def check(self, data: bytes, codec: str, limits: Limits) -> tuple[ImageShape, bytes]:
        """Check its bytes as full verification does, and against the limits; hash them."""
        digest = hashlib.sha256(data).digest()
        if self.sha256 not in (None, digest):
            raise self.changed()
        try:
            shape = parse_image(data, codec)
            self.check_limits(shape, len(data), limits)
            if not self.is_walked:
                check_image_data(data, codec, shape)
        except LimitError:
            raise
        except HelloError as error:
            raise UserInputError.make("E_DATA", f"{self.describe()}: {error}") from error
        return shape, digest

    def check_limits(self, shape: ImageShape, size: int, limits: Limits) -> None:
        """Refuse an image above a limit, and name it."""
        try:
            check_image_limits(shape, size, limits)
        except LimitError:
            # Only a refused image needs a name.
            check_image_limits(shape, size, limits, member=self.describe())
            raise


def measured(item: ImageItem, position: int) -> Row:
    """Measure an item, a regular file, but keep no bytes; hash them if they had to be made."""
    source, known = item.source, (item.walked, item.walked is not None)
    if isinstance(source, bytes):
        return Row(item.label, source, position, len(source), *known)
    if isinstance(source, str | Path):
        path = os.fspath(source)
        status = os.stat(path)  # noqa: PTH116 (time)
        row = Row(item.label, path, position, status.st_size, *known)
        # Reading a pipe would block, and a device may never end.
        if not stat.S_ISREG(status.st_mode):
            raise UserInputError.make("E_DATA", f"{row.describe()} is not a regular file")
        return row
    if item.size is not None:
        return Row(item.label, source, position, item.size, *known)
    data = source()
    digest = hashlib.sha256(data).digest()
    return Row(item.label, source, position, len(data), digest, known[1])
