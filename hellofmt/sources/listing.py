"""What a source holds before any of its images is decoded, and how its classes get their labels.

A folder, shards or an archive become one ``Listing``; ``Pictures`` are a listing whose classes have
their places. Labels and class lines come first and bytes when they are asked for, so that the
stages, which take arrays today, can become lazy without another reader.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from hellofmt.archive.format.classes import ClassLine, class_bytes
from hellofmt.archive.storage.local_files import read_file
from hellofmt.errors import UserInputError, printable
from hellofmt.sources.decode import decode_rgb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from hellofmt.archive.format.images import Codec

__all__ = ["Listing", "Picture", "Pictures", "placed", "some"]

_NUMBERED: Final = re.compile(r"([^0-9]*)([0-9]{1,9})")
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of a source.

    Attributes:
        key: its class, as the source calls it.
        name: of the image, for messages.
        codec: by content.
        source: path of a file where it is a string, else a function that reads the bytes.
        is_turned: whether a camera wrote an EXIF orientation, which is ignored.
    """

    key: str
    name: str
    codec: Codec
    source: str | Callable[[], bytes]
    is_turned: bool = False

    def read(self) -> bytes:
        """The encoded bytes."""
        return read_file(self.source) if isinstance(self.source, str) else self.source()


@dataclass(frozen=True)
class Listing:
    """The images of a source, and its classes before they have labels.

    Attributes:
        name: of the data set, where nobody gives another.
        pictures: in the order of the source.
        keys: the classes that it names; sorted by name, by code points, unless ``lines`` say more.
        lines: the classes in label order, where the source knows it; may be more than ``keys``.
        is_numbered: keys are labels, places in any class list, and not names.
        notes: what was skipped or taken otherwise than it looks, one sentence each.
    """

    name: str
    pictures: list[Picture]
    keys: list[str]
    lines: list[ClassLine] | None = None
    is_numbered: bool = False
    notes: list[str] = field(default_factory=list[str])


class Pictures:
    """Encoded images with labels; nothing is decoded before it is asked for.

    Attributes:
        name: of the data set.
        classes: one line per class, in label order; some may have no image.
        labels: int64 (N,), each in [0, number of classes).
        items: where the bytes are.
        notes: what was skipped or taken otherwise than it looks, one sentence each.
    """

    def __init__(self, listing: Listing, classes: Sequence[ClassLine] | None = None) -> None:
        """Give every class its place.

        Args:
            listing: of the source.
            classes: the classes in label order; None takes the source's own, see ``placed``.

        Raises:
            UserInputError: the classes do not match, or no archive could hold them (E_DATA).
        """
        lines, place, notes = placed(listing, classes)
        self.name = listing.name
        self.classes = tuple(lines)
        self.labels: NDArray[np.int64] = np.array(
            [place[picture.key] for picture in listing.pictures], np.int64
        )
        self.items = listing.pictures
        self.notes = (*listing.notes, *notes)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.items)

    def read(self, row: int) -> bytes:
        """The encoded bytes of an image.

        Raises:
            UserInputError: it changed since it was listed (E_DATA).
            HelloError: it is in an archive and damaged.
            OSError: it cannot be read.
        """
        return self.items[row].read()

    def decode(self, row: int, converted: Counter[str] | None = None) -> NDArray[np.uint8]:
        """An image as uint8 (H, W, 3) RGB; see ``decode_rgb``.

        Raises:
            UserInputError: it cannot be decoded, or has more than 8 bits per channel (E_DATA).
            HelloError: as for ``read``.
            OSError: as for ``read``.
        """
        return decode_rgb(self.read(row), self.items[row].name, converted)


def placed(
    listing: Listing, classes: Sequence[ClassLine] | None = None
) -> tuple[list[ClassLine], dict[str, int], list[str]]:
    """The classes in label order, the label of every key of a source, and what to say about it.

    With a class list, keys are looked up in it. If none is there and all are numbers, perhaps with
    one common prefix (``0``, ``00012``, ``new003``), they are places in the list; so are the labels
    of shards, always. Where the list itself has numbers for keys that differ from their places,
    such a number could mean either and is refused. Without a list, classes are numbered in the
    order of their names by code points, as torchvision's ``ImageFolder`` numbers them: of folders
    ``0`` to ``10``, the third class is ``10``, which is said. So are classes without an image.

    Args:
        listing: of the source.
        classes: the class list, if there is one.

    Returns:
        Class lines, label of each key, notes.

    Raises:
        UserInputError: a key is not in the list, a number is beyond it or ambiguous, or a class
            line cannot be stored in an archive (E_DATA).
    """
    keys, name, notes = listing.keys, printable(listing.name), list[str]()
    lines = listing.lines if classes is None else list(classes)
    numbers = [int(key) for key in keys] if listing.is_numbered else _numbers(keys)
    if lines is None:
        lines = [ClassLine(key, tuple(key.split(", "))) for key in sorted(keys)]
        notes += _order_notes(sorted(keys))
    # Whatever is done with the images, in the end an archive must be able to hold their classes.
    try:
        class_bytes(lines)
    except UserInputError as error:
        raise UserInputError.make("E_DATA", f"the classes of `{name}`: {error.message}") from None
    place = {line.key: label for label, line in enumerate(lines)}
    # macOS writes accents apart from their letters, which is the same text.
    composed = {_composed(key): label for key, label in place.items()}
    if len(composed) < len(place):
        twice = Counter(map(_composed, place)).most_common(1)[0][0]
        raise UserInputError.make(
            "E_DATA",
            f"the classes of `{name}`: two of them are `{printable(twice, 80)}`, with accents"
            " composed in one and apart in the other; expected other names",
        )
    place |= {key: composed[_composed(key)] for key in keys if _composed(key) in composed}
    unknown = [key for key in keys if key not in place]
    if listing.is_numbered or (len(unknown) == len(keys) and numbers is not None):
        numbers = numbers or []
        _check_places(name, numbers, lines)
        place = dict(zip(keys, numbers, strict=True))
        if classes is not None:
            first = lines[numbers[0]]
            notes.append(
                f"the classes of `{name}` are numbers, taken as places in the class list:"
                f" `{printable(keys[0], 80)}` is `{printable(first.key, 80)}`"
                f" ({printable(first.names[0], 80)})"
            )
    elif unknown:
        raise UserInputError.make(
            "E_DATA",
            f"{len(unknown):,} of {len(keys):,} classes of `{name}` are not in the class list of"
            f" {len(lines):,}: {some(unknown)}; expected {some(line.key for line in lines)}",
            advice=_alike(unknown, lines),
        )
    if len(lines) == 1:
        notes.append(f"all images are of one class, `{printable(lines[0].key, 80)}`")
    labels = {place[key] for key in keys}
    empty = [line.key for label, line in enumerate(lines) if label not in labels]
    if empty:
        notes.append(
            f"classes without an image: {len(empty):,} of {len(lines):,}, such as"
            f" `{printable(empty[0], 80)}`"
        )
    return lines, place, notes


def _alike(unknown: Sequence[str], lines: Sequence[ClassLine]) -> str:
    """Which key of the list a folder probably means: the same but for case, `_` and blanks."""
    plain = {re.sub(r"[\W_]+", "", line.key).casefold(): line.key for line in lines}
    for key in unknown:
        near = plain.get(re.sub(r"[\W_]+", "", key).casefold())
        if near is not None:
            return f"`{printable(key, 80)}` is like `{printable(near, 80)}`; rename one of them"
    return ""


def _composed(key: str) -> str:
    """A key in Unicode's normal form C."""
    return unicodedata.normalize("NFC", key)


def _order_notes(keys: list[str]) -> list[str]:
    """What to say where the order of names is not that of the numbers in them."""
    numbers = _numbers(keys) or []
    for key, number, expected in zip(keys, numbers, sorted(numbers), strict=False):
        if number != expected:
            text = "classes are numbered in the order of their names, as torchvision's ImageFolder"
            label = keys.index(key)
            return [f"{text} numbers them: label {label} is `{printable(key, 80)}`"]
    return []


def _check_places(name: str, numbers: list[int], lines: list[ClassLine]) -> None:
    """Refuse numbers that are no places in a class list, or may be meant as its keys."""
    if max(numbers, default=0) >= len(lines):
        raise UserInputError.make(
            "E_DATA",
            f"the classes of `{name}` are numbers up to {max(numbers)}, places in the class list;"
            f" expected less than {len(lines)}",
        )
    if not all(line.key.isdecimal() for line in lines):
        return
    for number in numbers:
        key = lines[number].key
        if int(key) != number:
            raise UserInputError.make(
                "E_DATA",
                f"class {number} of `{name}` is a number, and so are the keys of the class list,"
                f" where place {number} is `{printable(key, 80)}`: expected the keys of the list",
            )


def some(keys: Iterable[str]) -> str:
    """The first few of many keys, fit for a message."""
    listed = list(keys)
    more = ", ..." if len(listed) > _SHOWN else ""
    return printable(", ".join(listed[:_SHOWN])) + more


def _numbers(keys: Sequence[str]) -> list[int] | None:
    """The numbers in names like ``0``, ``00012`` or ``new003``, all of one prefix; else None."""
    matches = [match for match in map(_NUMBERED.fullmatch, keys) if match is not None]
    numbers = [int(match[2]) for match in matches]
    if len(matches) < len(keys) or len({match[1] for match in matches}) > 1:
        return None
    return numbers if len(set(numbers)) == len(numbers) else None
