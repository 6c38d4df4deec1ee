"""Members of a file as bytes: sections in their stored form, and the first two members."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from hellofmt.archive.format.compress import compress
from hellofmt.archive.format.digest import sha256
from hellofmt.archive.format.layout import ID_MEMBER, MANIFEST_MEMBER, header, padded
from hellofmt.archive.format.manifest import Section
from hellofmt.archive.write.images import FLUSH_BYTES
from hellofmt.archive.write.whole_file import write_all

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["front_members", "member_parts", "stored_section", "write_parts"]


def stored_section(name: str, raw: bytes) -> tuple[Section, bytes]:
    """The manifest's entry for a section and its stored bytes, compressed where that pays."""
    packed = None if name in ("index", "base", "pixels") else compress(raw)
    if packed is None:
        return Section(digest=sha256(raw), encoding="none", name=name, size=len(raw)), raw
    section = Section(
        digest=sha256(packed),
        encoding="zstd",
        name=name,
        size=len(packed),
        raw_digest=sha256(raw),
        raw_size=len(raw),
    )
    return section, packed


def front_members(manifest: bytes) -> tuple[str, bytes]:
    """The id of a file with these manifest bytes, and its first two members."""
    digits = hashlib.sha256(manifest).hexdigest()
    parts = [
        *member_parts(MANIFEST_MEMBER, manifest),
        *member_parts(ID_MEMBER, f"{digits}\n".encode("ascii")),
    ]
    return f"sha256:{digits}", b"".join(parts)


def member_parts(name: str, data: bytes) -> tuple[bytes, bytes, bytes]:
    """Header, payload and padding of a member."""
    return header(name, len(data)), data, bytes(padded(len(data)) - len(data))


def write_parts(fd: int, parts: Sequence[bytes]) -> None:
    """Write ``parts`` from the start of a file, gathered into large writes."""
    at = 0
    waiting: list[bytes] = []
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting)) >= FLUSH_BYTES:
            gathered, waiting = b"".join(waiting), []
            write_all(fd, gathered, at)
            at += len(gathered)
    write_all(fd, b"".join(waiting), at)
