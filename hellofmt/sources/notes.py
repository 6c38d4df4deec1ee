"""What a listing met beside plain images, said or refused as a whole and not one file a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from hellofmt.errors import UserInputError, printable
from hellofmt.sources.content import extension_of
from hellofmt.sources.listing import some

if TYPE_CHECKING:
    from collections.abc import Sequence

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
_KEPT: Final = 7


def is_hidden(name: str) -> bool:
    """Whether an entry is one that its owner does not see, and so is no part of a data set."""
    return name.startswith(".") or name in _HIDDEN


@dataclass
class Met:
    """How many entries of one kind were met, and the first few of them."""

    first: list[str] = field(default_factory=list[str])
    count: int = 0
    keeps_all: bool = False

    def add(self, name: str, count: int = 1) -> None:
        """Count one, or several beginning with this one."""
        if self.keeps_all or len(self.first) < _KEPT:
            self.first.append(name)
        self.count += count


def left_out(kind: str, names: Sequence[str]) -> list[str]:
    """Say how many of a kind are left out, and name each in a line of its own."""
    if not names:
        return []
    return [f"{kind}, left out: {len(names):,}", *(f"left out: `{printable(n)}`" for n in names)]


class Notes:
    """What a listing met, so that it is said or refused as a whole and not one file a run.

    Attributes:
        hidden: skipped with everything below them.
        sidecars: text and metadata beside the images.
        foreign: called an image, but of a kind that is not read; or of no known kind.
        deep: images in a folder of their class folder.
        twice: links to images of the source itself.
    """

    def __init__(self) -> None:
        self.hidden, self.sidecars, self.foreign = Met(), Met(), Met(keeps_all=True)
        self.deep, self.twice = Met(), Met()
        self._extensions = Counter[str]()
        # What the first of the foreign files is instead, where that is known.
        self._fact = ""

    def add_foreign(self, name: str, fact: str = "") -> None:
        """Count a file that is not an image, with what it is instead; see ``fact_of``."""
        if not self.foreign.count:
            self._fact = fact
        self.foreign.add(name)
        self._extensions[extension_of(name) or "no extension"] += 1

    def refuse_foreign(self) -> None:
        """Refuse what is no image that can be read."""
        if not self.foreign.count:
            return
        first, *rest = self.foreign.first
        text = f"`{printable(first)}` is not an image in PNG, JPEG or WebP{self._fact}"
        if rest:
            counts = ", ".join(f"{n:,} {kind}" for kind, n in sorted(self._extensions.items()))
            text += f", nor are {self.foreign.count - 1:,} more ({printable(counts)}): {some(rest)}"
        advice = f"convert or remove {'them' if rest else 'it'}"
        raise UserInputError.make("E_DATA", text, advice=advice)

    def lines(self) -> tuple[str, ...]:
        """The notes: one per kind, and one for each file that is left out."""
        kinds = [
            ("hidden entries skipped", self.hidden),
            ("files that are not images skipped", self.sidecars),
            ("images that lie deeper than their class folder", self.deep),
            ("links to images of the source itself, which count twice", self.twice),
        ]
        said = [
            f"{kind}: {met.count:,}, such as `{printable(met.first[0])}`"
            for kind, met in kinds
            if met.count
        ]
        foreign = left_out("files that are not images in PNG, JPEG or WebP", self.foreign.first)
        return (*said, *foreign)
