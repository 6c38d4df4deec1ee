"""Write a copy of an archive that remembers more: another record, another card, all else as it is.

Every byte but the manifest, its id and these two sections is copied as it stands, so images, label
function and identity of the content stay; the id is new. The copy is verified in full before it has
its name.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from hellofmt.archive.format.canonical import canonical
from hellofmt.archive.format.compress import stored_section
from hellofmt.archive.format.digest import set_id
from hellofmt.archive.format.layout import (
    BLOCK,
    TRAILER,
    front_members,
    member_parts,
    padded,
    section_member,
    shard_path,
)
from hellofmt.archive.format.limits import TEXT_BYTES, check_fixed
from hellofmt.archive.format.record import Record, record_bytes
from hellofmt.archive.read.verify import verify_archive
from hellofmt.archive.write.staged import published_together
from hellofmt.archive.write.whole_file import check_target, write_all
from hellofmt.errors import HelloIOError

if TYPE_CHECKING:
    import os

    from hellofmt.archive.read.archive import Archive

_AFTER: Final = {"record": ("card", "license", "pixels"), "card": ("license", "pixels")}
"""Sections that come after one that is put in."""
_WINDOW_BYTES: Final = 8 << 20


def check_amended_targets(archive: Archive, target: str | os.PathLike[str]) -> None:
    """Refuse targets that ``amend_archive`` would refuse, before there is a result to record."""
    for path in _targets(archive, target):
        try:
            check_target(path, force=False)
        except HelloIOError as error:
            # Nothing is replaced, so there is no way to ask for it.
            error.advice = ""
            raise


def amend_archive(
    archive: Archive,
    target: str | os.PathLike[str],
    *,
    record: Record,
    card: str | None = None,
) -> str:
    """Copy ``archive`` to ``target``, which must not exist, with another record; return its id.

    A set of shards gives the files ``NAME-00000-of-00016.hello``. Without ``card``, the archive's
    is kept. After an error nothing is left behind.
    """
    paths = _targets(archive, target)
    check_amended_targets(archive, target)
    texts = {"record": record_bytes(record)}
    if card is not None:
        texts["card"] = card.encode("utf-8")

    for name, raw in texts.items():
        check_fixed("text", len(raw), TEXT_BYTES[name], member=section_member(name))

    def verify(path: Path, expect: str) -> None:
        verify_archive(path, expect=expect, limits=archive.limits)

    with published_together(paths, force=False) as staged:
        for file, one in zip(archive.shards, staged, strict=True):
            one.begin(partial(_write, file, texts), verify)
    ids = [one.id for one in staged]
    return ids[0] if archive.shards[0] is archive else set_id(ids)


def _targets(archive: Archive, target: str | os.PathLike[str]) -> list[Path]:
    count = len(archive.shards)
    if archive.shards[0] is archive:
        return [Path(target)]
    return [shard_path(target, index, count) for index in range(count)]


def _write(file: Archive, texts: dict[str, bytes], fd: int) -> str:
    """Write the copy of one file; returns its id."""
    document: dict[str, Any] = json.loads(file.manifest_bytes)
    old = [entry for entry in document["sections"] if entry["name"] not in texts]
    stored: dict[str, bytes] = {}
    sections = list(old)
    for name, raw in texts.items():
        section, stored[name] = stored_section(name, raw)
        later = (i for i, entry in enumerate(sections) if entry["name"] in _AFTER[name])
        sections.insert(next(later, len(sections)), msgspec.to_builtins(section))
    document["sections"] = sections
    archive_id, front = front_members(canonical(document))
    at = _put(fd, front, 0)
    for entry in sections:
        name = entry["name"]
        if name in stored:
            at = _put(fd, b"".join(member_parts(section_member(name), stored[name])), at)
        else:
            start = file.section_offset(name) - BLOCK
            at = _copy(file, start, BLOCK + padded(entry["size"]), fd, at)
    images = document.get("images", {}).get("span", 0)
    at = _copy(file, file.images_end - images, images, fd, at)
    _put(fd, TRAILER, at)
    return archive_id


def _put(fd: int, data: bytes, at: int) -> int:
    write_all(fd, data, at)
    return at + len(data)


def _copy(file: Archive, start: int, size: int, fd: int, at: int) -> int:
    """Copy ``size`` bytes from ``start``; they are verified when the copy is read back."""
    for done in range(0, size, _WINDOW_BYTES):
        window = file.source.read(start + done, min(_WINDOW_BYTES, size - done))
        at = _put(fd, window, at)
    return at
