"""What a listing met beside plain images, said or refused as a whole and not one file a run."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Final

from hellofmt.errors import UserInputError, printable
from hellofmt.sources.content import CODECS, codec_of, has_orientation
from hellofmt.sources.listing import Picture, some

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Notes", "extension_of", "is_hidden"]

# Written by operating systems and file servers into every folder they touch.
_HIDDEN: Final = frozenset(
    {
        "__MACOSX",
        "Icon\r",
        "@eaDir",
        "#recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
    }
)


def is_hidden(name: str) -> bool:
    """Whether an entry is one that its owner does not see, and so is no part of a data set."""
    return name.startswith(".") or name in _HIDDEN


class Notes:
    """What a listing met, so that it is said or refused as a whole and not one file a run."""

    def __init__(self) -> None:
        self.hidden: list[str] = []
        self.sidecars: list[str] = []
        self.foreign: list[str] = []
        self.misnamed: list[str] = []
        self.deep: list[str] = []
        self.twice: list[str] = []
        # What the first of the foreign files is instead, where that is known.
        self._fact = ""

    def picture(
        self, key: str, name: str, extension: str, head: bytes, source: str | Callable[[], bytes]
    ) -> list[Picture]:
        """The picture of a file that is called an image; none, but kept to be refused, if it isn't.

        Args:
            key: its class.
            name: of the file, for messages.
            extension: of the file, lower case.
            head: its first ``HEAD_BYTES``.
            source: where its bytes are.
        """
        codec = codec_of(head)
        if codec is None:
            if not self.foreign:
                self._fact = _fact(head)
            self.foreign.append(name)
            return []
        if CODECS.get(extension) != codec:
            self.misnamed.append(f"{name} ({codec})")
        is_turned = codec == "jpeg" and has_orientation(head)
        return [Picture(key, name, codec, source, is_turned)]

    def refuse_foreign(self) -> None:
        """Refuse what is no image that can be read.

        Raises:
            UserInputError: E_DATA, with the number of files by extension and the first names.
        """
        if not self.foreign:
            return
        first, *rest = self.foreign
        text = f"`{printable(first)}` is not an image in PNG, JPEG or WebP{self._fact}"
        if rest:
            kinds = Counter(extension_of(name) or "no extension" for name in self.foreign)
            counts = ", ".join(f"{number:,} {kind}" for kind, number in sorted(kinds.items()))
            text += f", nor are {len(rest):,} more ({printable(counts)}): {some(rest)}"
        advice = f"convert or remove {'them' if rest else 'it'}"
        raise UserInputError.make("E_DATA", text, advice=advice)

    def lines(self) -> list[str]:
        """The notes, one per kind."""
        kinds = [
            ("hidden entries skipped", self.hidden),
            ("files that are not images skipped", self.sidecars),
            ("images of another type than their names say, read by content", self.misnamed),
            ("images that lie deeper than their class folder", self.deep),
            ("links to images of the source itself, which count twice", self.twice),
        ]
        return [
            f"{kind}: {len(names):,}, such as `{printable(names[0])}`"
            for kind, names in kinds
            if names
        ]


def _fact(head: bytes) -> str:
    """What the first bytes of a file that is called an image say of it."""
    if not head:
        return " but empty"
    if head.startswith(b"version https://git-lfs"):
        return " but a git-LFS pointer (`git lfs pull`)"
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return " but a web page"
    return ""


def extension_of(name: str) -> str:
    """``jpg`` of ``a/b.JPG``; empty for a name without one."""
    # A path object for each of a million files would be most of the time of a listing.
    stem, dot, extension = os.path.basename(name).rpartition(".")  # noqa: PTH119
    return extension.lower() if stem and dot else ""
