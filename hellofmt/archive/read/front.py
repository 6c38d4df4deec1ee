"""Read the first members of a file: the manifest, and the ``id`` that must match it."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

from hellofmt.archive.format.layout import (
    BLOCK,
    ID_MEMBER,
    ID_SIZE,
    MAGIC,
    MANIFEST_MEMBER,
    describe_header,
    header,
    padded,
)
from hellofmt.archive.format.limits import MANIFEST_BYTES, check_fixed
from hellofmt.archive.read.checks import check_padding
from hellofmt.errors import CorruptError, NotHelloError, printable

if TYPE_CHECKING:
    from hellofmt.archive.storage.source import Source

_SHORTEST: Final = 4 * BLOCK


def read_manifest(head: bytes, source: Source) -> bytes:
    """Read the manifest's bytes and check them against the ``id`` member.

    ``head`` is the first bytes of the file, ``source`` the rest.
    """
    magic = head[: len(MAGIC)]
    if not magic or magic != MAGIC[: len(magic)]:
        what = f"got {printable(magic)}" if magic else "the file is empty"
        text = f"not a .hello archive; expected the file to begin with {MANIFEST_MEMBER}, {what}"
        raise NotHelloError.make("E_MAGIC", text)
    if source.size < _SHORTEST:
        text = f"the file is cut; the shortest archive has {_SHORTEST} bytes, got {source.size}"
        raise CorruptError.make("E_TRUNCATED", text, offset=source.size)
    block = head[:BLOCK]
    # The header is compared with its one form below, whatever the digits are.
    digits = block[124:135]
    size = int(digits, 8) if re.fullmatch(rb"[0-7]{11}", digits) else 0
    if block != header(MANIFEST_MEMBER, size):
        raise describe_header(block, MANIFEST_MEMBER, size)
    check_fixed("manifest", size, MANIFEST_BYTES, member=MANIFEST_MEMBER)
    id_at = BLOCK + padded(size)
    end = id_at + 2 * BLOCK
    if end > source.size:
        text = f"the file is cut; manifest and id need {end} bytes, got {source.size}"
        raise CorruptError.make("E_TRUNCATED", text, offset=source.size)
    if end > len(head):
        head = head + source.read(len(head), end - len(head))
    data = head[BLOCK : BLOCK + size]
    check_padding(head[BLOCK + size : id_at], MANIFEST_MEMBER, BLOCK + size)
    block = head[id_at : id_at + BLOCK]
    if block != header(ID_MEMBER, ID_SIZE):
        raise describe_header(block, ID_MEMBER, ID_SIZE)
    digest = hashlib.sha256(data).hexdigest()
    stored = head[id_at + BLOCK : id_at + BLOCK + ID_SIZE]
    if stored != f"{digest}\n".encode("ascii"):
        text = f"digest of the manifest; expected {printable(stored, 80)}, got {digest}"
        raise CorruptError.make("E_DIGEST_ROOT", text, member=MANIFEST_MEMBER)
    check_padding(head[id_at + BLOCK + ID_SIZE : end], ID_MEMBER, id_at + BLOCK + ID_SIZE)
    return data
