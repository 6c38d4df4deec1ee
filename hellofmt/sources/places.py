"""Which label each class of a source gets: by its own class list, or the order of its names."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING, Final

from hellofmt.archive.format.classes import ClassLine, class_bytes
from hellofmt.errors import UserInputError, printable
from hellofmt.sources.listing import some

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hellofmt.sources.listing import Listing

_NUMBERED: Final = re.compile(r"([^0-9]*)([0-9]{1,9})")
# A synset of WordNet is a name, whatever number it holds.
_SYNSET: Final = re.compile(r"n[0-9]{8}")


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


def _numbers(keys: Sequence[str]) -> list[int] | None:
    """The numbers in names like ``0``, ``00012`` or ``new003``, all of one prefix; else None."""
    matches = [match for match in map(_NUMBERED.fullmatch, keys) if match is not None]
    numbers = [int(match[2]) for match in matches]
    if len(matches) < len(keys) or len({match[1] for match in matches}) > 1:
        return None
    if all(map(_SYNSET.fullmatch, keys)):
        return None
    return numbers if len(set(numbers)) == len(numbers) else None
