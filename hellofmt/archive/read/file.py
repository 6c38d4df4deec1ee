"""Open and read an archive; every byte is verified before it is returned.

The order of checks is fixed, so that one fault has one error: magic and length; the manifest's
header; its digest against the ``id`` member, then against the caller's pin; only then is it parsed.
The manifest alone determines the offset of every section and the length of the file, which are
checked before anything else is read. Sections are read on demand: digest first, then decompression,
then the strict checks. Images are verified at every read, because a file may change while it is
open. Remote bytes that fail are fetched once more, since a transmission error is likelier than a
damaged file. Every error is a ``HelloError``, except the ``OSError`` of opening the file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from hellofmt.archive.format.classes import Classes, parse_classes
from hellofmt.archive.format.digest import content_id, sha256
from hellofmt.archive.format.layout import (
    BLOCK,
    TRAILER,
    describe_header,
    header,
    image_name,
    padded,
)
from hellofmt.archive.format.limits import DEFAULT_LIMITS, Limits, check_limit
from hellofmt.archive.format.manifest import UNSET, Manifest
from hellofmt.archive.format.parse import parse_manifest
from hellofmt.archive.format.validate import check_manifest_limits
from hellofmt.archive.read.archive import Archive
from hellofmt.archive.read.checks import check_expect, check_image_digest, check_padding
from hellofmt.archive.read.front import read_manifest
from hellofmt.archive.read.sections import Sections
from hellofmt.archive.storage.source import LocalSource, display_name, is_url
from hellofmt.errors import (
    CorruptError,
    NotHelloError,
    SpecError,
    TrustError,
    naming,
    printable,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from hellofmt.archive.format.index import Index
    from hellofmt.archive.storage.cache import DigestCache
    from hellofmt.archive.storage.source import Source

__all__ = ["Access", "HelloFile"]
# One read that holds the manifest and the small sections of most archives.
_HEAD_BYTES: Final = 1 << 16
# Remote metadata up to this size is fetched in one more request.
_REMOTE_HEAD_BYTES: Final = 2 << 20


def _no_options() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True)
class Access:
    """What it takes, besides the path, to open an archive again.

    Attributes:
        storage_options: options for the storage of a URL.
        cache_dir: folder for bytes from the network; empty for none.
        keeps_open: whether a local file's descriptor is held, see ``LocalSource``.
    """

    storage_options: Mapping[str, Any] = field(default_factory=_no_options)
    cache_dir: str = ""
    keeps_open: bool = True

    def open(self, path: str | os.PathLike[str], expect: str | None, limits: Limits) -> HelloFile:
        """Open one archive; see ``open_archive``."""
        source: Source
        if is_url(path) or self.storage_options:
            from hellofmt.archive.storage.remote import open_source

            source = open_source(path, self.storage_options)
        else:
            source = LocalSource(path, keeps_open=self.keeps_open)
        try:
            return HelloFile(source, expect=expect, limits=limits, access=self)
        except BaseException:
            source.close()
            raise

    def cache(self, source: Source) -> DigestCache | None:
        """Return the cache for ``source``; None for a local file."""
        if not (self.cache_dir and source.is_remote):
            return None
        from hellofmt.archive.storage.cache import DigestCache

        return DigestCache(self.cache_dir)

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy cannot be pickled.
        return Access, (dict(self.storage_options), self.cache_dir, self.keeps_open)


class HelloFile(Archive):
    """An open archive: read-only, usable from threads and forked workers at once.

    Pickles as path, id, limits and storage options; unpickling opens it again and refuses a
    different id.

    Attributes:
        path: the path or URL that opened it.
        id: ``sha256:...`` of the manifest, which fixes every byte of the file.
        manifest: the archive's description of itself.
        extras: free text under ``x_`` keys, never interpreted.
        limits: limits it was opened with.
        size_bytes: length of the file.
    """

    def __init__(
        self,
        source: Source,
        *,
        expect: str | None = None,
        limits: Limits = DEFAULT_LIMITS,
        access: Access | None = None,
    ) -> None:
        """Check the front of ``source``; see ``open_archive``."""
        check_expect(expect)
        self._source = source
        self._access = access or Access()
        self._cache = self._access.cache(source)
        self.limits = limits
        self.path = source.name
        self.size_bytes = source.size
        with naming(display_name(source.name)):
            try:
                self._open(expect)
            except (CorruptError, NotHelloError, SpecError):
                if not source.is_remote:
                    raise
                source.forget()
                self._open(expect)
        self._index: Index | None = None
        self._classes: Classes | None = None

    def _open(self, expect: str | None) -> None:
        """Read and check everything before the first payload."""
        source = self._source
        head = source.read(0, min(source.size, _HEAD_BYTES))
        data = read_manifest(head, source)
        self.id = sha256(data)
        if expect is not None and expect != self.id:
            raise TrustError.make(
                "E_PIN",
                f"id of {printable(display_name(self.path))}; expected {expect}, got {self.id}",
            )
        manifest, extras = parse_manifest(data)
        self._manifest_bytes = data
        self.manifest: Manifest = manifest
        self.extras: Mapping[str, str] = MappingProxyType(extras)
        check_manifest_limits(manifest, self.limits)
        start = BLOCK + padded(len(data)) + 2 * BLOCK
        sections = Sections(source, self._cache, head, manifest, start)
        self._sections = sections
        self._check_length()
        # The pixels of a packed archive are read by range later.
        known, needed = len(head), sections.offsets.get("pixels", sections.end)
        if source.is_remote and known < needed <= _REMOTE_HEAD_BYTES:
            sections.head += source.read(known, needed - known)
        sections.check_headers()

    def _check_length(self) -> None:
        """Check that the file is as long as the manifest implies.

        Raises:
            LimitError: it is too large (E_LIMIT_FILE_BYTES).
            CorruptError: it is too short (E_TRUNCATED) or too long (E_TRAILING).
        """
        expected = self.images_end + len(TRAILER)
        check_limit(self.limits, "file_bytes", expected)
        if self.size_bytes < expected:
            raise CorruptError.make(
                "E_TRUNCATED",
                f"the file is cut; expected {expected} bytes, got {self.size_bytes}",
                offset=self.size_bytes,
            )
        if self.size_bytes > expected:
            raise CorruptError.make(
                "E_TRAILING",
                f"bytes after the end; expected {expected} bytes, got {self.size_bytes}",
                offset=expected,
            )

    @property
    def images_end(self) -> int:
        """Byte offset of the end of the last image."""
        images = self.manifest.images
        return self._sections.end + (0 if images is UNSET else images.span)

    @property
    def manifest_bytes(self) -> bytes:
        """The stored manifest, including keys of newer versions that this reader ignores."""
        return self._manifest_bytes

    @property
    def content_id(self) -> str:
        """Identity of the content, equal for files that differ only in compression; never a pin."""
        return content_id(self._manifest_bytes)

    @property
    def classes(self) -> Classes:
        """See ``Archive.classes``."""
        if self._classes is None:
            self._classes = parse_classes(
                self._sections.read(self._sections.find("classes")), self.manifest.classes
            )
        return self._classes

    @property
    def index(self) -> Index | None:
        """See ``Archive.index``."""
        if self._index is None and self.manifest.images is not UNSET:
            from hellofmt.archive.format.index import parse_index

            start = self._sections.end
            if self.manifest.images.layout == "packed":
                start = self.pixels_start
            raw = self._sections.read(self._sections.find("index"))
            self._index = parse_index(raw, self.manifest, start, self.limits)
        return self._index

    def __repr__(self) -> str:
        return f"<HelloFile {display_name(self.path)!r} {self.id[:19]}... {len(self)} images>"

    def has_section(self, name: str) -> bool:
        """Tell whether the archive has a section called ``name``."""
        return name in self._sections.by_name

    def section_sizes(self) -> dict[str, int]:
        """Return stored bytes per section, in file order, without headers and padding."""
        return {section.name: section.size for section in self.manifest.sections}

    def section(self, name: str) -> bytes:
        """See ``Archive.section``."""
        return self._sections.raw(name)

    def tensors(self, name: str) -> dict[str, NDArray[Any]]:
        """See ``Archive.tensors``."""
        return self._sections.tensors(name)

    @property
    def pixels_start(self) -> int:
        """See ``Archive.pixels_start``."""
        return self._sections.pixels_start

    def checked(
        self,
        blocks: list[bytes],
        ranges: list[tuple[int, int]],
        check: Callable[[list[bytes]], bytes],
    ) -> bytes:
        """See ``Archive.checked``."""
        return self._sections.checked(blocks, ranges, check)

    def section_offset(self, name: str) -> int:
        """See ``Archive.section_offset``."""
        self._sections.find(name)
        return self._sections.offsets[name]

    def image_name(self, row: int) -> str:
        """See ``Archive.image_name``."""
        images, index = self.row_of(row)
        codec = "png" if images.codec == "raw" else images.codec
        shard = self.manifest.shard
        first, total = (0, images.count) if shard is UNSET else (shard.first, shard.total)
        label = int(index.label[row])
        return image_name(label, first + row, codec, self.manifest.classes, total)

    def read_images(self, rows: Sequence[int], *, exact: bool = False) -> list[bytes]:
        """See ``Archive.read_images``."""
        files: dict[int, bytes] = {}
        missing: dict[int, tuple[int, int]] = {}
        for row in map(int, rows):
            images, index = self.row_of(row)
            at, size = int(index.offset[row]), int(index.size[row])
            known = None
            if self._cache is not None and row not in files:
                known = self._cache.get(index.sha256[row].tobytes(), size)
            if known is not None:
                files[row] = known
            elif row not in files:
                packed = images.layout == "packed"
                missing[row] = (at, size) if packed else (at - BLOCK, BLOCK + padded(size))
        # A source other than ours need not know the option unless it is used.
        options: dict[str, Any] = {"exact": True} if exact else {}
        blocks = self._source.read_ranges(list(missing.values()), **options)
        for (row, place), block in zip(missing.items(), blocks, strict=True):

            def check(parts: list[bytes], row: int = row) -> bytes:
                return self.check_image(row, parts[0])

            files[row] = self.checked([block], [place], check)
            if self._cache is not None:
                index = self.row_of(row)[1]
                self._cache.put(index.sha256[row].tobytes(), files[row])
        return [files[int(row)] for row in rows]

    def check_image(self, row: int, block: bytes) -> bytes:
        """See ``Archive.check_image``."""
        images, index = self.row_of(row)
        at, size = int(index.offset[row]), int(index.size[row])
        name = self.image_name(row)
        if images.layout == "packed":
            check_image_digest(block, index.sha256[row].tobytes(), name, at)
            return block
        if block[:BLOCK] != header(name, size):
            raise describe_header(block[:BLOCK], name, size)
        # Checked in place: a refused image, which may be very large, is never copied.
        view = memoryview(block)[BLOCK:]
        check_image_digest(view[:size], index.sha256[row].tobytes(), name, at)
        check_padding(view[size:], name, at + size)
        return block[BLOCK : BLOCK + size]

    @property
    def shards(self) -> Sequence[HelloFile]:
        """The files of a sharded set in order; a single file, shard or not, returns itself."""
        return [self]

    @property
    def storage_options(self) -> Mapping[str, Any]:
        """Options that were passed to the storage of a URL."""
        return self._access.storage_options

    @property
    def source(self) -> Source:
        """The source of the bytes, for ``verify_archive``."""
        return self._source

    @property
    def cache(self) -> DigestCache | None:
        """The cache of bytes from a network; None for a local file or without a cache."""
        return self._cache

    def close(self) -> None:
        """Close the file; reading afterwards is a ``HelloIOError``."""
        self._sections.head = b""
        self._source.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.id, self.limits, self._access)


def _reopen(path: str, archive_id: str, limits: Limits, access: Access) -> HelloFile:
    """Open the same archive again, or raise; unpickling calls this."""
    return access.open(path, archive_id, limits)
