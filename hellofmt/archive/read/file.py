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
from hellofmt.archive.format.manifest import UNSET
from hellofmt.archive.format.parse import parse_manifest
from hellofmt.archive.format.validate import check_manifest_limits
from hellofmt.archive.read.checks import check_expect, check_image_digest, check_padding
from hellofmt.archive.read.front import read_manifest
from hellofmt.archive.read.sections import StoredArchive
from hellofmt.archive.storage.source import LocalSource, display_name, is_url
from hellofmt.errors import CorruptError, NotHelloError, SpecError, TrustError, naming, printable

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from hellofmt.archive.format.index import Index
    from hellofmt.archive.storage.cache import DigestCache
    from hellofmt.archive.storage.source import Source

# One read that holds the manifest and the small sections of most archives.
_HEAD_BYTES: Final = 1 << 16
# Remote metadata up to this size is fetched in one more request.
_REMOTE_HEAD_BYTES: Final = 2 << 20


@dataclass(frozen=True)
class Access:
    """What it takes, besides the path, to open an archive again; no ``cache_dir`` keeps nothing."""

    storage_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
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


class HelloFile(StoredArchive):
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

    Example:
        >>> import hellofmt
        >>> with hellofmt.open("photos.hello") as file:
        ...     file.classes.keys, len(file)
        (['rows', 'columns', 'grey'], 60)
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
        self.cache = self._access.cache(source)
        self.storage_options = self._access.storage_options
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
        self._head = source.read(0, min(source.size, _HEAD_BYTES))
        data = read_manifest(self._head, source)
        self.id = sha256(data)
        if expect is not None and expect != self.id:
            name = printable(display_name(self.path))
            raise TrustError.make("E_PIN", f"id of {name}; expected {expect}, got {self.id}")
        self.manifest, extras = parse_manifest(data)
        self.extras = MappingProxyType(extras)
        self._manifest_bytes = data
        check_manifest_limits(self.manifest, self.limits)
        self._place_sections(BLOCK + padded(len(data)) + 2 * BLOCK)
        self._check_length()
        # The pixels of a packed archive are read by range later.
        known, needed = len(self._head), self._offsets.get("pixels", self._sections_end)
        if source.is_remote and known < needed <= _REMOTE_HEAD_BYTES:
            self._head += source.read(known, needed - known)
        self._check_section_headers()

    def _check_length(self) -> None:
        """Check that the file is as long as the manifest implies."""
        got, expected = self.size_bytes, self.images_end + len(TRAILER)
        check_limit(self.limits, "file_bytes", expected)
        if got != expected:
            code, what = ("E_TRUNCATED", "the file is cut")
            if got > expected:
                code, what = ("E_TRAILING", "bytes after the end")
            text = f"{what}; expected {expected} bytes, got {got}"
            raise CorruptError.make(code, text, offset=min(got, expected))

    @property
    def manifest_bytes(self) -> bytes:
        """See ``Archive.manifest_bytes``."""
        return self._manifest_bytes

    @property
    def content_id(self) -> str:
        """See ``Archive.content_id``."""
        return content_id(self._manifest_bytes)

    @property
    def classes(self) -> Classes:
        """See ``Archive.classes``."""
        if self._classes is None:
            self._classes = parse_classes(self._read_section("classes"), self.manifest.classes)
        return self._classes

    @property
    def index(self) -> Index | None:
        """See ``Archive.index``."""
        images = self.manifest.images
        if self._index is None and images is not UNSET:
            from hellofmt.archive.format.index import parse_index

            start = self.pixels_start if images.layout == "packed" else self._sections_end
            raw = self._read_section("index")
            self._index = parse_index(raw, self.manifest, start, self.limits)
        return self._index

    def __repr__(self) -> str:
        return f"<HelloFile {display_name(self.path)!r} {self.id[:19]}... {len(self)} images>"

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
        for row in dict.fromkeys(map(int, rows)):
            images, index = self.row_of(row)
            at, size = int(index.offset[row]), int(index.size[row])
            known = None
            if self.cache is not None:
                known = self.cache.get(index.sha256[row].tobytes(), size)
            if known is not None:
                files[row] = known
            else:
                packed = images.layout == "packed"
                missing[row] = (at, size) if packed else (at - BLOCK, BLOCK + padded(size))
        # A source other than ours need not know the option unless it is used.
        options: dict[str, Any] = {"exact": True} if exact else {}
        blocks = self._source.read_ranges(list(missing.values()), **options)
        for (row, place), block in zip(missing.items(), blocks, strict=True):

            def check(parts: list[bytes], row: int = row) -> bytes:
                return self.check_image(row, parts[0])

            files[row] = self.checked([block], [place], check)
            if self.cache is not None:
                index = self.row_of(row)[1]
                self.cache.put(index.sha256[row].tobytes(), files[row])
        return [files[int(row)] for row in rows]

    def check_image(self, row: int, block: bytes) -> bytes:
        """See ``Archive.check_image``."""
        images, index = self.row_of(row)
        at, size = int(index.offset[row]), int(index.size[row])
        name, digest = self.image_name(row), index.sha256[row].tobytes()
        if images.layout == "packed":
            check_image_digest(block, digest, name, at)
            return block
        if block[:BLOCK] != header(name, size):
            raise describe_header(block[:BLOCK], name, size)
        # Checked in place: a refused image, which may be very large, is never copied.
        view = memoryview(block)[BLOCK:]
        check_image_digest(view[:size], digest, name, at)
        check_padding(view[size:], name, at + size)
        return block[BLOCK : BLOCK + size]

    def close(self) -> None:
        """See ``Archive.close``."""
        self._head = b""
        self._source.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return self._access.open, (self.path, self.id, self.limits)
