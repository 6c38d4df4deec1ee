"""Read the sections of one file: digest first, then decompression, then the strict checks."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from hellofmt.archive.format.classes import parse_classes
from hellofmt.archive.format.compress import decompress
from hellofmt.archive.format.digest import sha256
from hellofmt.archive.format.functions import section_owner
from hellofmt.archive.format.layout import BLOCK, describe_header, header, padded, section_member
from hellofmt.archive.format.manifest import UNSET, Section
from hellofmt.archive.format.record import parse_record
from hellofmt.archive.read.archive import Archive
from hellofmt.archive.read.checks import check_padding, check_section_digest
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

    from hellofmt.archive.storage.source import Source

# Largest read before the digest is known: as much as the default limit of an image.
_WHOLE_BYTES: Final = 64 << 20
_WINDOW_BYTES: Final = 8 << 20


class StoredArchive(Archive):
    """One file: where its sections lie, and their verified contents."""

    _source: Source
    # Bytes from the start of the file, kept in memory.
    _head: bytes

    def _place_sections(self, start: int) -> None:
        """Compute the offset of every section from byte ``start`` on."""
        self._pixels_start: int | None = None
        self._by_name: dict[str, Section] = {}
        self._offsets: dict[str, int] = {}
        for section in self.manifest.sections:
            self._by_name[section.name] = section
            self._offsets[section.name] = start + BLOCK
            start += BLOCK + padded(section.size)
        self._sections_end = start

    def _check_section_headers(self) -> None:
        """Check that every section has its one header, and zeros after its payload."""
        sections = self.manifest.sections
        ranges: list[tuple[int, int]] = []
        for section in sections:
            start = self._offsets[section.name]
            ranges.append((start - BLOCK, BLOCK))
            ranges.append((start + section.size, padded(section.size) - section.size))
        blocks = self._read_ranges(ranges)
        for i, section in enumerate(sections):
            member = section_member(section.name)
            if blocks[2 * i] != header(member, section.size):
                raise describe_header(blocks[2 * i], member, section.size)
            check_padding(blocks[2 * i + 1], member, ranges[2 * i + 1][0])

    def _read_ranges(self, ranges: list[tuple[int, int]]) -> list[bytes]:
        """Read (offset, length) pairs, from the head if it contains them."""
        head = self._head
        outside = [(at, size) for at, size in ranges if size and at + size > len(head)]
        fetched = iter(self._source.read_ranges(outside)) if outside else iter(())
        return [
            head[at : at + size] if at + size <= len(head) or not size else next(fetched)
            for at, size in ranges
        ]

    def _find(self, name: str) -> Section:
        if name not in self._by_name:
            text = (
                f"the archive has no section {printable(name, 40)}; "
                f"it has {', '.join(self._by_name)}"
            )
            raise UserInputError.make("E_OPTION", text, advice=did_you_mean(name, self._by_name))
        return self._by_name[name]

    @property
    def source(self) -> Source:
        """See ``Archive.source``."""
        return self._source

    def has_section(self, name: str) -> bool:
        """See ``Archive.has_section``."""
        return name in self._by_name

    def section_sizes(self) -> dict[str, int]:
        """See ``Archive.section_sizes``."""
        return {section.name: section.size for section in self.manifest.sections}

    def section_offset(self, name: str) -> int:
        """See ``Archive.section_offset``."""
        self._find(name)
        return self._offsets[name]

    @property
    def images_end(self) -> int:
        """See ``Archive.images_end``."""
        images = self.manifest.images
        return self._sections_end + (0 if images is UNSET else images.span)

    def section(self, name: str) -> bytes:
        """See ``Archive.section``."""
        raw, member = self._read_section(name), section_member(name)
        # Unknown sections of a newer minor version are only hashed.
        if self._has_tensors(name):
            self._parse_tensors(name, raw)
        elif name == "classes":
            parse_classes(raw, self.manifest.classes)
        elif name == "record":
            parse_record(raw, newer=self.manifest.is_newer)
        elif name in ("card", "license"):
            try:
                raw.decode("utf-8")
            except UnicodeDecodeError as error:
                text = f"not UTF-8 at byte {error.start}"
                raise SpecError.make("E_SCHEMA", text, member=member) from None
        return raw

    def _read_section(self, name: str) -> bytes:
        """Return the raw bytes of a section after checking its digests."""
        section, member = self._find(name), section_member(name)
        stored = self._read_stored(section, member)
        if section.raw_size is UNSET or section.raw_digest is UNSET:
            return stored
        raw = decompress(stored, section.raw_size, member=member)
        check_section_digest(sha256(raw), section.raw_digest, member)
        return raw

    def _read_stored(self, section: Section, member: str) -> bytes:
        """Return the stored bytes of a section after checking their digest."""
        digest = bytes.fromhex(section.digest.removeprefix("sha256:"))
        if self.cache is not None:
            known = self.cache.get(digest, section.size)
            if known is not None:
                return known
        start, end = self._offsets[section.name], self._offsets[section.name] + section.size
        if section.size > _WHOLE_BYTES and not self._source.is_remote:
            # Hashed in windows first, so refusing a large, changed section takes little memory.
            whole = hashlib.sha256()
            for at in range(start, end, _WINDOW_BYTES):
                whole.update(self._source.read(at, min(_WINDOW_BYTES, end - at)))
            check_section_digest(f"sha256:{whole.hexdigest()}", section.digest, member)

        def check(blocks: list[bytes]) -> bytes:
            check_section_digest(sha256(blocks[0]), section.digest, member)
            return blocks[0]

        ranges = [(start, section.size)]
        stored = self.checked(self._read_ranges(ranges), ranges, check)
        if self.cache is not None:
            self.cache.put(digest, stored)
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
                f"{printable(display_name(source.name))} was replaced since it was opened, "
                f"{change}: {error}",
            ) from error

    def _has_tensors(self, name: str) -> bool:
        is_shared = name in ("index", "base", "pixels")
        return is_shared or section_owner(self.manifest, name)[1] is not None

    def _parse_tensors(self, name: str, raw: bytes) -> dict[str, Any]:
        from hellofmt.archive.format.implied import section_tensors
        from hellofmt.archive.format.tensors import base_tensors_digest

        tensors, base = section_tensors(raw, self.manifest, name), self.manifest.base
        if name == "base" and base is not UNSET:
            digest = base_tensors_digest(tensors)
            if digest != base.tensors:
                text = f"digest of the tensors; expected {base.tensors}, got {digest}"
                raise SpecError.make("E_TENSOR", text, member=section_member(name))
        return tensors

    def tensors(self, name: str) -> dict[str, NDArray[Any]]:
        """See ``Archive.tensors``."""
        self._find(name)
        if not self._has_tensors(name):
            raise UserInputError.make("E_OPTION", f"section {printable(name, 40)} has no tensors")
        tensors = self._parse_tensors(name, self._read_section(name))
        return {key: tensor.numpy() for key, tensor in tensors.items()}

    @property
    def pixels_start(self) -> int:
        """See ``Archive.pixels_start``."""
        if self._pixels_start is None:
            from hellofmt.archive.format.implied import expected_tensors
            from hellofmt.archive.format.tensors import check_tensor_header, tensor_header

            section, at = self._find("pixels"), self._offsets["pixels"]
            kinds = expected_tensors(self.manifest, "pixels")
            length = min(section.size, len(tensor_header(kinds)))
            [head] = self._read_ranges([(at, length)])
            places = check_tensor_header(head, section.size, "pixels", kinds)
            self._pixels_start = at + places["pixels"][0]
        return self._pixels_start
