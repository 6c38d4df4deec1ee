"""Read the sections of one file: digest first, then decompression, then the strict checks."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from hellofmt.archive.format.classes import parse_classes
from hellofmt.archive.format.compress import decompress
from hellofmt.archive.format.digest import sha256
from hellofmt.archive.format.functions import section_owner
from hellofmt.archive.format.layout import BLOCK, describe_header, header, padded, section_member
from hellofmt.archive.format.manifest import UNSET, Manifest, Section
from hellofmt.archive.format.record import parse_record
from hellofmt.archive.read.checks import check_padding, check_section_digest, check_text
from hellofmt.archive.storage.source import display_name
from hellofmt.errors import (
    CorruptError,
    HelloIOError,
    SpecError,
    UserInputError,
    did_you_mean,
    printable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from hellofmt.archive.storage.cache import DigestCache
    from hellofmt.archive.storage.source import Source

__all__ = ["Sections"]

# Largest read before the digest is known: as much as the default limit of an image.
_WHOLE_BYTES: Final = 64 << 20
_WINDOW_BYTES: Final = 8 << 20


class Sections:
    """Offsets of the sections of one file, and their verified contents.

    Attributes:
        head: bytes from the start of the file, kept in memory.
        by_name: the manifest's entry for each section.
        offsets: byte offset of each payload.
        end: byte offset of the end of the last section.
    """

    def __init__(
        self, source: Source, cache: DigestCache | None, head: bytes, manifest: Manifest, start: int
    ) -> None:
        """Compute the offsets of the sections of ``manifest`` from byte ``start`` on."""
        self._source, self._cache = source, cache
        self._manifest = manifest
        self._pixels_start: int | None = None
        self.head = head
        self.by_name: dict[str, Section] = {}
        self.offsets: dict[str, int] = {}
        self.end = start
        for section in manifest.sections:
            self.by_name[section.name] = section
            self.offsets[section.name] = self.end + BLOCK
            self.end += BLOCK + padded(section.size)

    def check_headers(self) -> None:
        """Check that every section has its one header, and zeros after its payload.

        Raises:
            SpecError: a header is wrong (E_HEADER).
            CorruptError: padding is not zero (E_PADDING).
        """
        sections = self._manifest.sections
        ranges: list[tuple[int, int]] = []
        for section in sections:
            start = self.offsets[section.name]
            ranges.append((start - BLOCK, BLOCK))
            ranges.append((start + section.size, padded(section.size) - section.size))
        blocks = self.read_ranges(ranges)
        for i, section in enumerate(sections):
            member = section_member(section.name)
            if blocks[2 * i] != header(member, section.size):
                raise describe_header(blocks[2 * i], member, section.size)
            check_padding(blocks[2 * i + 1], member, ranges[2 * i + 1][0])

    def read_ranges(self, ranges: list[tuple[int, int]]) -> list[bytes]:
        """Read (offset, length) pairs, from the head if it contains them."""
        head = self.head
        outside = [(at, size) for at, size in ranges if size and at + size > len(head)]
        fetched = iter(self._source.read_ranges(outside)) if outside else iter(())
        return [
            head[at : at + size] if at + size <= len(head) or not size else next(fetched)
            for at, size in ranges
        ]

    def find(self, name: str) -> Section:
        """Return the manifest's entry for a section.

        Raises:
            UserInputError: there is no such section (E_OPTION).
        """
        section = self.by_name.get(name)
        if section is None:
            raise UserInputError.make(
                "E_OPTION",
                f"the archive has no section {printable(name, 40)}; "
                f"it has {', '.join(self.by_name)}",
                advice=did_you_mean(name, self.by_name),
            )
        return section

    def raw(self, name: str) -> bytes:
        """See ``Archive.section``."""
        raw = self.read(self.find(name))
        # Unknown sections of a newer minor version are only hashed.
        if self._has_tensors(name):
            self._parse_tensors(name, raw)
        elif name == "classes":
            parse_classes(raw, self._manifest.classes)
        elif name == "record":
            parse_record(raw, newer=self._manifest.is_newer)
        elif name in ("card", "license"):
            check_text(raw, section_member(name))
        return raw

    def read(self, section: Section) -> bytes:
        """Return the raw bytes of a section after checking its digests."""
        member = section_member(section.name)
        stored = self._read_stored(section, member)
        if section.raw_size is UNSET or section.raw_digest is UNSET:
            return stored
        raw = decompress(stored, section.raw_size, member=member)
        check_section_digest(sha256(raw), section.raw_digest, member)
        return raw

    def _read_stored(self, section: Section, member: str) -> bytes:
        """Return the stored bytes of a section after checking its digest."""
        digest = bytes.fromhex(section.digest.removeprefix("sha256:"))
        if self._cache is not None:
            known = self._cache.get(digest, section.size)
            if known is not None:
                return known
        if section.size > _WHOLE_BYTES and not self._source.is_remote:
            # Hashed in windows first, so refusing a large, changed section takes little memory.
            check_section_digest(self._hash_section(section), section.digest, member)
        ranges = [(self.offsets[section.name], section.size)]

        def check(blocks: list[bytes]) -> bytes:
            check_section_digest(sha256(blocks[0]), section.digest, member)
            return blocks[0]

        stored = self.checked(self.read_ranges(ranges), ranges, check)
        if self._cache is not None:
            self._cache.put(digest, stored)
        return stored

    def checked(
        self,
        blocks: list[bytes],
        ranges: list[tuple[int, int]],
        check: Callable[[list[bytes]], bytes],
    ) -> bytes:
        """See ``Archive.checked``."""
        source = self._source
        try:
            return check(blocks)
        except (CorruptError, SpecError):
            if not source.is_remote:
                raise
        source.forget()
        try:
            return check(source.read_ranges(ranges))
        except (CorruptError, SpecError) as error:
            change = source.describe_change()
            if not change:
                raise
            raise HelloIOError.make(
                "E_READ",
                f"{printable(display_name(self._source.name))} was replaced since it was opened, "
                f"{change}: {error}",
            ) from error

    def _hash_section(self, section: Section) -> str:
        """Hash a section's stored bytes, one window at a time."""
        at, end = self.offsets[section.name], self.offsets[section.name] + section.size
        digest = hashlib.sha256()
        for start in range(at, end, _WINDOW_BYTES):
            digest.update(self._source.read(start, min(_WINDOW_BYTES, end - start)))
        return f"sha256:{digest.hexdigest()}"

    def _has_tensors(self, name: str) -> bool:
        is_shared = name in ("index", "base", "pixels")
        return is_shared or section_owner(self._manifest, name)[1] is not None

    def _parse_tensors(self, name: str, raw: bytes) -> dict[str, Any]:
        from hellofmt.archive.format.tensors import (
            base_tensors_digest,
            expected_tensors,
            parse_tensors,
            validate_nibbles,
        )

        tensors = parse_tensors(raw, name, expected_tensors(self._manifest, name))
        problems = validate_nibbles(tensors, self._manifest, name)
        if problems:
            raise SpecError.make("E_TENSOR", problems[0], member=section_member(name))
        if name == "base" and self._manifest.base is not UNSET:
            digest = base_tensors_digest(tensors)
            if digest != self._manifest.base.tensors:
                raise SpecError.make(
                    "E_TENSOR",
                    f"digest of the tensors; expected {self._manifest.base.tensors}, got {digest}",
                    member=section_member(name),
                )
        return tensors

    def tensors(self, name: str) -> dict[str, NDArray[Any]]:
        """See ``Archive.tensors``."""
        section = self.find(name)
        if not self._has_tensors(name):
            raise UserInputError.make("E_OPTION", f"section {printable(name, 40)} has no tensors")
        tensors = self._parse_tensors(name, self.read(section))
        return {key: tensor.numpy() for key, tensor in tensors.items()}

    @property
    def pixels_start(self) -> int:
        """See ``Archive.pixels_start``."""
        if self._pixels_start is None:
            from hellofmt.archive.format.tensors import (
                check_tensor_header,
                expected_tensors,
                tensor_header,
            )

            section = self.find("pixels")
            at = self.offsets["pixels"]
            kinds = expected_tensors(self._manifest, "pixels") or {}
            length = min(section.size, len(tensor_header(kinds)))
            [head] = self.read_ranges([(at, length)])
            places = check_tensor_header(head, section.size, "pixels", kinds)
            self._pixels_start = at + places["pixels"][0]
        return self._pixels_start
