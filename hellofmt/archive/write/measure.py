"""An image on its way into an archive: its size now, its bytes and its shape when they are due."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hellofmt.archive.format.images import ImageShape, check_image_limits, parse_image
from hellofmt.errors import HelloError, LimitError, UserInputError, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from hellofmt.archive.format.limits import Limits
    from hellofmt.archive.write.draft import ImageItem


@dataclass(slots=True)
class Row:
    """One image on its way into the archive; ``source`` is a path where it is a string."""

    label: int
    source: bytes | str | Callable[[], bytes]
    position: int
    size: int
    sha256: bytes | None

    def describe(self) -> str:
        """How errors name it: its place in the items, and its path if it has one."""
        where = f" ({printable(self.source)})" if isinstance(self.source, str) else ""
        return f"image {self.position}{where}"

    def read_head(self, length: int) -> bytes:
        """At most its first ``length`` bytes."""
        if isinstance(self.source, str):
            with Path(self.source).open("rb") as file:
                return file.read(length)
        return self.read()[:length]

    def read(self) -> bytes:
        """Its bytes, the same ones as when it was measured.

        Raises:
            UserInputError: E_DATA.
        """
        if isinstance(self.source, bytes):
            return self.source
        if isinstance(self.source, str):
            data = Path(self.source).read_bytes()
        else:
            data = self.source()
        if len(data) != self.size:
            raise self.changed()
        if self.sha256 is not None and hashlib.sha256(data).digest() != self.sha256:
            raise self.changed()
        return data

    def changed(self) -> UserInputError:
        """The error for bytes that are not those that were measured."""
        return UserInputError.make("E_DATA", f"{self.describe()} changed while it was packed")

    def parse(self, data: bytes | memoryview, codec: str, limits: Limits) -> ImageShape:
        """Hold its bytes to the profile of the codec and to the limits.

        Raises:
            UserInputError: E_DATA.
            LimitError: above a limit.
        """
        try:
            shape = parse_image(data, codec)
        except HelloError as error:
            raise UserInputError.make("E_DATA", f"{self.describe()}: {error}") from error
        self.check_limits(shape, len(data), limits)
        return shape

    def check_limits(self, shape: ImageShape, size: int, limits: Limits) -> None:
        """Refuse it above a limit, by name.

        Raises:
            LimitError: above a limit.
        """
        try:
            check_image_limits(shape, size, limits)
        except LimitError:
            # Only what is refused needs a name.
            check_image_limits(shape, size, limits, member=self.describe())
            raise


def measured(item: ImageItem, position: int) -> Row:
    """Size of an item without keeping its bytes; digest too where they had to be made.

    Raises:
        UserInputError: no regular file (E_DATA).
    """
    source = item.source
    if isinstance(source, bytes):
        return Row(item.label, source, position, len(source), None)
    if isinstance(source, str | Path):
        path = os.fspath(source)
        status = os.stat(path)  # noqa: PTH116 (time)
        row = Row(item.label, path, position, status.st_size, None)
        # A pipe would be waited for, and a device may never end.
        if not stat.S_ISREG(status.st_mode):
            raise UserInputError.make("E_DATA", f"{row.describe()} is no regular file")
        return row
    data = source()
    digest = hashlib.sha256(data).digest()
    return Row(item.label, source, position, len(data), digest)


def read_into(path: str, room: memoryview) -> int:
    """Read a file into ``room`` and count its bytes, up to one more than have room."""
    count = 0
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a Path a picture costs
        while count < len(room) and (more := file.readinto(room[count:])):
            count += more
        return count + len(file.read(1))
