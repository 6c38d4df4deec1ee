"""The classes section: one line per class, ``key TAB name[, synonym...]``.

Text rather than JSON, so that `grep` finds a class; ordered, so that the line number is the label.
A text head puts the first name into its prompts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hellofmt.errors import SpecError, UserInputError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

_MEMBER: Final = "__hello__/classes"
_LINE_BYTES: Final = 4096
# Control characters, and the two separators that many tools take for line ends.
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class ClassLine:
    """One class.

    Attributes:
        key: its identifier, a WordNet id or a name; unique.
        names: human names, at least one; the first goes into prompts.

    Example:
        >>> ClassLine("n01440764", ("tench", "Tinca tinca")).names[0]
        'tench'
    """

    key: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Classes:
    """Keys of an archive's classes, and names, at least one each; the position is the label."""

    keys: list[str]
    names: list[tuple[str, ...]]

    def __len__(self) -> int:
        """Number of classes."""
        return len(self.keys)

    def lines(self) -> list[ClassLine]:
        """The classes as a writer takes them."""
        return [ClassLine(*pair) for pair in zip(self.keys, self.names, strict=True)]


def class_bytes(lines: Sequence[ClassLine]) -> bytes:
    """Serialise the classes section: UTF-8, a line per class in label order."""
    seen: set[str] = set()
    out: list[str] = []
    for label, line in enumerate(lines):
        text = f"{line.key}\t{', '.join(line.names)}"
        problem = _line_problem(text, label, seen)
        if not problem and tuple(text.partition("\t")[2].split(", ")) != line.names:
            shown = printable(text, 80)
            problem = (
                f"class {label}: a name is missing or contains a comma and a space, in {shown}"
            )
        if problem:
            raise UserInputError.make("E_DATA", problem)
        out.append(text + "\n")
    return "".join(out).encode("utf-8")


def parse_classes(data: bytes, count: int) -> Classes:
    """Parse the raw classes section of ``count`` classes."""

    def fault(text: str) -> SpecError:
        return SpecError.make("E_CLASSES", text, member=_MEMBER)

    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise fault(f"not UTF-8 at byte {error.start}") from None
    if not text.endswith("\n"):
        raise fault("the last line has no line feed")
    lines = text[:-1].split("\n")
    if len(lines) != count:
        raise fault(f"{len(lines)} lines; expected {count}")
    seen: set[str] = set()
    keys: list[str] = []
    names: list[tuple[str, ...]] = []
    for label, line in enumerate(lines):
        problem = _line_problem(line, label, seen)
        if problem:
            raise fault(problem)
        key, _, rest = line.partition("\t")
        keys.append(key)
        names.append(tuple(rest.split(", ")))
    return Classes(keys, names)


def _line_problem(line: str, label: int, seen: set[str]) -> str:
    """What is wrong with a line, or an empty string; adds its key to ``seen``."""
    key, tab, rest = line.partition("\t")
    shown = printable(line, 80)
    try:
        size = len(line.encode("utf-8"))
    except UnicodeEncodeError:
        # File names that are not UTF-8 arrive as lone surrogates.
        return f"class {label}: not UTF-8: {shown}"
    if size > _LINE_BYTES:
        return f"class {label}: line of {size} bytes; expected at most {_LINE_BYTES}: {shown}"
    if not tab or not key:
        return f"class {label}: expected a key, a TAB and a name, got {shown}"
    if _CONTROL.search(key) or _CONTROL.search(rest):
        return f"class {label}: control character in {shown}"
    if any(name != name.strip(" ") or not name for name in rest.split(", ")):
        return f"class {label}: empty or padded name in {shown}"
    if key in seen:
        return f"class {label}: duplicate key {printable(key, 80)}"
    seen.add(key)
    return ""
