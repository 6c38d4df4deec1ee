"""Bytes of the container: headers, names, padding, order of members.

An archive is a strict subset of USTAR, so every tar tool lists it. It is not read the way tar
readers read: the header of a member is a pure function of its name and size, both known beforehand,
so the 512 bytes are *computed* and compared. No header is ever interpreted, so no two tools can
read one file differently. Offsets are not stored either: they follow from the sizes, so holes and
overlaps cannot be expressed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from hellofmt.errors import SpecError, printable

if TYPE_CHECKING:
    import os

    import numpy as np
    from numpy.typing import NDArray


_Size = TypeVar("_Size", int, "NDArray[np.int64]")

BLOCK: Final = 512
"""Bytes of a header; payloads are padded with zeros to a multiple of it."""
MANIFEST_MEMBER: Final = "__hello__/manifest"
ID_MEMBER: Final = "__hello__/id"
MAGIC: Final = MANIFEST_MEMBER.encode("ascii")
"""The first 18 bytes of every archive."""
ID_SIZE: Final = 65
"""64 lower-case hexadecimal digits and a line feed."""
TRAILER: Final = bytes(2 * BLOCK)
"""The end of the file: exactly two zero blocks."""
SECTION_ORDER: Final = (
    "index",
    "classes",
    "adapter",
    "head",
    "probes",
    "base",
    "record",
    "card",
    "license",
    "pixels",
)
"""Every section of version 1.0, in file order; see ``functions.section_order`` for others."""
EXTENSIONS: Final = {"png": "png", "jpeg": "jpg", "webp": "webp"}
"""File name extension of each codec."""
ZIP_END: Final = b"PK\5\6"
"""Signature of a ZIP archive's end record."""
ZIP_TAIL: Final = 65_557
"""Bytes at the end in which ZIP readers look for ``ZIP_END``: a record, its longest comment."""

_MAX_SIZE: Final = (1 << 33) - 1
_FIXED: Final = b"0000644\0000000000\0000000000\0"
_MTIME: Final = b"00000000000\0"
_TAIL: Final = b"0" + bytes(100) + b"ustar\00000" + bytes(247)
# Sum of every byte but name and size digits; the checksum field itself counts as eight spaces.
_BASE_SUM: Final = sum(_FIXED) + sum(_MTIME) + 8 * 0x20 + sum(_TAIL)


def padded(size: _Size) -> _Size:
    """Round a size in bytes, or an array of them, up to a multiple of 512."""
    return -(-size // BLOCK) * BLOCK


def header(name: str, size: int) -> bytes:
    """Build the USTAR header of a member: a regular file, mode 644, owner 0, time 0."""
    if not (0 < len(name) < 100 and name.isascii() and name.isprintable()):
        text = f"member name; expected 1 to 99 ASCII characters, got {printable(name)}"
        raise SpecError.make("E_HEADER", text)
    if not 0 <= size <= _MAX_SIZE:
        text = f"member size; expected at most {_MAX_SIZE} bytes, got {size}"
        raise SpecError.make("E_HEADER", text, member=name)
    raw = name.encode("ascii")
    digits = b"%011o\0" % size
    checksum = b"%06o\0 " % (_BASE_SUM + sum(raw) + sum(digits))
    return b"".join((raw, bytes(100 - len(raw)), _FIXED, digits, _MTIME, checksum, _TAIL))


def member_parts(name: str, data: bytes) -> tuple[bytes, bytes, bytes]:
    """Return header, payload and padding of a member."""
    return header(name, len(data)), data, bytes(padded(len(data)) - len(data))


def front_members(manifest: bytes) -> tuple[str, bytes]:
    """Return the id of a file with these manifest bytes, and its first two members."""
    digits = hashlib.sha256(manifest).hexdigest()
    last = member_parts(ID_MEMBER, f"{digits}\n".encode("ascii"))
    return f"sha256:{digits}", b"".join((*member_parts(MANIFEST_MEMBER, manifest), *last))


def describe_header(block: bytes, name: str, size: int) -> SpecError:
    """Return the error for a block that is not ``header(name, size)``.

    E_HEADER, not raised; it shows the actual name or size if they can be read.
    """
    try:
        other, other_size = block[:100].rstrip(b"\0").decode("ascii"), int(block[124:135], 8)
        is_canonical = header(other, other_size) == block
    except (ValueError, SpecError):
        # Only words the error; the header is refused already.
        other, other_size, is_canonical = "", 0, False
    if not is_canonical:
        at = next(
            (i for i, (a, b) in enumerate(zip(block, header(name, size), strict=False)) if a != b),
            len(block),
        )
        fact = f"not the canonical header of this member; differs at byte {at}"
    elif other == name:
        fact = f"size in the header; expected {size}, got {other_size}"
    else:
        fact = f"expected this member, got {printable(other)}"
    return SpecError.make("E_HEADER", fact, member=name)


MOST_SHARDS: Final = 99_999
"""Most shards of a data set: their names have five digits."""


def shard_path(target: str | os.PathLike[str], index: int, count: int) -> Path:
    """``name-00003-of-00016.hello`` of ``name.hello``.

    Example:
        >>> shard_path("photos.hello", 3, 16).name
        'photos-00003-of-00016.hello'
    """
    path = Path(target)
    return path.with_name(f"{path.stem}-{index:05d}-of-{count:05d}{path.suffix}")


def section_member(section: str) -> str:
    """Return the member name of a section."""
    return f"__hello__/{section}"


def image_name(label: int, number: int, codec: str, classes: int, total: int) -> str:
    """Return the member name of an image: ``images/<label>/<number>.<extension>``.

    ``number`` counts the rows of the whole data set, which has ``total``. Numbers are padded, so
    sorting the names by bytes gives the order of the rows.
    """
    label_width = max(4, len(str(classes - 1)))
    number_width = max(6, len(str(total - 1)))
    return f"images/{label:0{label_width}d}/{number:0{number_width}d}.{EXTENSIONS[codec]}"
