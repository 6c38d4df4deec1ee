"""Read published class lists into class lines in label order.

Every data set comes with its own kind of list, and mistaking one kind for another gives names that
look right but are wrong: ``n01440764 tench`` read as a plain name is a class that no folder has. So
the whole file must match a known form, the form is reported, and any other file is refused.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, cast

from hellofmt.archive.format.classes import ClassLine, class_bytes
from hellofmt.archive.storage.local_files import read_file
from hellofmt.errors import UserInputError, printable

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

_ACCEPTED: Final = "expected one class a line in label order, `key TAB name[, synonym...]`"
_WORDNET: Final = re.compile(r"n[0-9]{8}")
_WORDNET_NAMED: Final = re.compile(r"(n[0-9]{8})[ ]+(?![0-9]+ )(\S.*)")
# Lines of other tables, without TAB or WordNet id: they start with an index, a quotation mark or a
# bracket, or have fields separated by commas without spaces.
_OTHER_TABLE: Final = re.compile(r"[0-9]+\s*[:,;= ]\s*\S.*|[\"'{}\[(].*|- .*|[^,]+(,\S[^,]*)+")
# First lines that name a column.
_HEADERS: Final = frozenset({"class", "classes", "class_name", "label", "labels", "name", "names"})
_NUMBERED: Final = re.compile(r"(\S.*?)\s+([0-9]{1,9})")


def read_class_lines(
    path: str | os.PathLike[str], *, say: Callable[[str], None] | None = None
) -> list[ClassLine]:
    """Read a class list in any of its published forms.

    ==========================================  ==============================================
    one class a line, in label order            key and names
    ==========================================  ==============================================
    ``key TAB name[, synonym...]`` or ``key``   as they are; a key alone is its own name
    ``n01440764 tench, Tinca tinca``            ``LOC_synset_mapping.txt``, ``synset_words.txt``
    ``n01440764``                               timm's synsets, ``wnids.txt``: no names
    ``tench`` or ``tench, Tinca tinca``         ``imagenet_classes.txt``: the line is the key
    ``tench 0``, ``tench TAB 0``                indices 0 to N - 1 in any order of the lines
    ==========================================  ==============================================

    and JSON: a list of names or of [id, name]; an object from index to name or to [id, name]
    (``imagenet_class_index.json``, whose ``_`` become spaces), from name to index, or from WordNet
    id to names, in the order of the file. Where plain names repeat (ImageNet has two cranes), the
    keys of those get their label: ``crane (134)``.

    Args:
        path: a UTF-8 file; byte order mark, CRLF and empty lines do not matter.
        say: called with one line that names the form.

    Returns:
        The classes; an archive can hold them.

    Raises:
        UserInputError: the file is not UTF-8, has no class, an unknown form, duplicate keys, or a
            line that an archive cannot hold (E_DATA).
        OSError: the file cannot be read.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("classes.txt").write_text("n01440764 tench, Tinca tinca", "utf-8")
        >>> read_class_lines("classes.txt")[0]
        ClassLine(key='n01440764', names=('tench', 'Tinca tinca'))
    """

    def refuse(problem: str) -> UserInputError:
        return UserInputError.make("E_DATA", f"class list `{printable(path)}`: {problem}")

    try:
        text = read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise refuse("not UTF-8") from None
    try:
        if text.lstrip()[:1] in ("{", "["):
            lines, form = _read_json(text)
        else:
            lines, form = _read_text([line.strip() for line in text.split("\n")])
        class_bytes(lines)
    except UserInputError as error:
        raise refuse(error.message) from None
    except (ValueError, RecursionError) as error:
        raise refuse(f"{printable(error)}; {_ACCEPTED}") from None
    if say is not None:
        say(f"class list `{printable(path)}`: {len(lines):,} classes, read as {form}")
    return lines


def _read_text(rows: list[str]) -> tuple[list[ClassLine], str]:
    """Return classes and form of a text; ValueError if the form is unknown."""
    rows = [row for row in rows if row]
    if not rows:
        raise ValueError("no class in it")
    comments = [row for row in rows if row.startswith("#")]
    if comments:
        raise ValueError(f"`{printable(comments[0], 80)}` is no class")
    numbered = _numbered(rows)
    if numbered is not None:
        return _plain(numbered, "name and index")
    if any("\t" in row for row in rows):
        for row in rows:
            if row.count("\t") > 1:
                raise ValueError(f"more than one TAB in `{printable(row, 80)}`")
        pairs = [row.partition("\t")[::2] for row in rows]
        return [_line(key, names) for key, names in pairs], "key TAB names"
    if all(map(_WORDNET.fullmatch, rows)):
        return [_line(row) for row in rows], "WordNet ids without names"
    named = [_WORDNET_NAMED.fullmatch(row) for row in rows]
    if all(named):
        lines = [_line(match[1], match[2]) for match in named if match]
        return lines, "WordNet id, blank, names"
    for row in rows:
        if _WORDNET.match(row):
            raise ValueError(f"`{printable(row, 80)}` begins with a WordNet id, in no known form")
    others = [row for row in rows if row.endswith((":", ","))]
    if rows[0].lower() in _HEADERS or all(map(_OTHER_TABLE.fullmatch, rows)):
        others = rows
    if others:
        raise ValueError(f"`{printable(others[0], 80)}` is no name")
    are_numbers = all(map(str.isdecimal, rows))
    return _plain(rows, "numbers without names" if are_numbers else "one name a line")


def _numbered(rows: list[str]) -> list[str] | None:
    """Names in the order of the index after each, if that is what the lines are; else None."""
    matches = [match for match in map(_NUMBERED.fullmatch, rows) if match is not None]
    table = {match[1]: int(match[2]) for match in matches}
    if not len(rows) == len(matches) == len(table) > 1:
        return None
    if sorted(table.values()) == list(range(1, len(table) + 1)):
        raise ValueError("the indices begin at 1; expected 0")
    if sorted(table.values()) != list(range(len(table))):
        return None
    return sorted(table, key=lambda name: table[name])


def _read_json(text: str) -> tuple[list[ClassLine], str]:
    """Return classes and form of a JSON document; ValueError if the form is unknown."""
    document: Any = json.loads(text, object_pairs_hook=_unique)
    if isinstance(document, dict):
        table = cast("dict[str, Any]", document)
        values = list(table.values())
        if values and all(type(value) is int for value in values):
            if sorted(values) != list(range(len(values))):
                raise ValueError(f"the indices are not 0 to {len(values) - 1}, each once")
            return _plain(sorted(table, key=lambda key: table[key]), "JSON, name to index")
        if not all(key.isascii() and key.isdigit() for key in table):
            if all(isinstance(value, str) for value in values):
                return [_line(*pair) for pair in table.items()], "JSON, id to names, in file order"
            raise ValueError("JSON of no known form")
        if sorted(map(int, table)) != list(range(len(table))):
            raise ValueError(f"the indices are not 0 to {len(table) - 1}, each once")
        rows = [table[key] for key in sorted(table, key=int)]
    else:
        rows = cast("list[Any]", document)
    if not rows:
        raise ValueError("no class in it")
    if all(isinstance(row, str) for row in rows):
        return _plain([row.strip() for row in rows], "JSON, names in label order")
    if all(
        isinstance(row, list) and list(map(type, cast("Any", row))) == [str, str] for row in rows
    ):
        lines = [_line(key, name.replace("_", " ")) for key, name in rows]
        return lines, "JSON, [id, name] in label order, `_` as a blank"
    raise ValueError("JSON of no known form")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object, whose keys must be unique."""
    if len(dict(pairs)) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"duplicate key `{printable(key, 80)}`")
    return dict(pairs)


def _line(key: str, names: str = "") -> ClassLine:
    key, names = key.strip(), names.strip()
    return ClassLine(key, tuple((names or key).split(", ")))


def _plain(names: Iterable[str], form: str) -> tuple[list[ClassLine], str]:
    """Make classes whose names are their keys; the label tells repeated names apart."""
    names = list(names)
    counts = Counter(names)
    lines = [
        ClassLine(f"{name} ({label})" if counts[name] > 1 else name, tuple(name.split(", ")))
        for label, name in enumerate(names)
    ]
    keys = [line.key for line in lines if line.key not in counts]
    if keys:
        form += f"; keys of repeated names got the label, such as `{printable(keys[0], 80)}`"
    return lines, form
