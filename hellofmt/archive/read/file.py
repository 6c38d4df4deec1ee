"""Opening and reading an archive: every byte that is handed out was verified first.

The order of checks is fixed, so that one fault has one error: magic and length; the manifest's
header; its digest against the ``id`` member, then against what the caller expects; only then is it
parsed. From the manifest alone follow the offset of every section and the length of the file, which
are compared before anything else is read. Sections are read on demand, digest first, then
decompression, then the strict checks. Images are verified each time they are read, because a file
may change while it is open. Bytes that came over a network and fail are fetched once more, since an
accident on the way is likelier than a damaged file. Nothing but ``HelloError`` comes out, apart
from the ``OSError`` of opening the file.
"""

from __future__ import annotations

import bisect
import hashlib
import os
import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self

from hellofmt.archive.format.classes import Classes, parse_classes
from hellofmt.archive.format.compress import decompress
from hellofmt.archive.format.digest import content_id, sha256
from hellofmt.archive.format.layout import (
    BLOCK,
    ID_MEMBER,
    ID_SIZE,
    MAGIC,
    MANIFEST_MEMBER,
    TRAILER,
    describe_header,
    header,
    image_name,
    padded,
    section_member,
)
from hellofmt.archive.format.limits import (
    DEFAULT_LIMITS,
    MANIFEST_BYTES,
    SAFETENSORS_HEADER_BYTES,
    Limits,
    check_fixed,
    check_limit,
)
from hellofmt.archive.format.manifest import UNSET, Images, Manifest, Section
from hellofmt.archive.format.parse import parse_manifest
from hellofmt.archive.format.validate import check_manifest_limits
from hellofmt.archive.storage.source import LocalSource, display_name, is_url
from hellofmt.errors import (
    CorruptError,
    HelloIOError,
    NotHelloError,
    SpecError,
    TrustError,
    UserInputError,
    did_you_mean,
    printable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from hellofmt.archive.format.index import Index
    from hellofmt.archive.storage.cache import DigestCache
    from hellofmt.archive.storage.source import Source

__all__ = ["Access", "HelloFile", "open_archive"]

_SHORTEST: Final = 4 * BLOCK
# What a pattern of shards has and hardly any path.
_PATTERN: Final = re.compile(r"[*?\[{]")
# One read that holds the manifest and the small sections of most archives.
_HEAD_BYTES: Final = 1 << 16
# A remote archive whose metadata fits into this is fetched in one more request.
_REMOTE_HEAD_BYTES: Final = 2 << 20
# What is read in one piece before its digest is known: as much as the default limit of an image.
_WHOLE_BYTES: Final = 64 << 20
_WINDOW_BYTES: Final = 8 << 20
_TENSOR_SECTIONS: Final = frozenset({"index", "adapter", "head", "probes", "base", "pixels"})


def _no_options() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True)
class Access:
    """How the bytes of archives are reached: what opening one again needs besides its path.

    Attributes:
        storage_options: for the storage of a URL.
        cache_dir: folder for what comes over the network; empty for none.
    """

    storage_options: Mapping[str, Any] = field(default_factory=_no_options)
    cache_dir: str = ""

    def open(self, path: str | os.PathLike[str], expect: str | None, limits: Limits) -> HelloFile:
        """Open one archive; see ``open_archive``."""
        source: Source
        if is_url(path) or self.storage_options:
            from hellofmt.archive.storage.remote import open_source

            source = open_source(path, self.storage_options)
        else:
            source = LocalSource(path)
        try:
            return HelloFile(source, expect=expect, limits=limits, access=self)
        except BaseException:
            source.close()
            raise

    def cache(self, source: Source) -> DigestCache | None:
        """The cache in front of ``source``, if it is worth one."""
        if not (self.cache_dir and source.is_remote):
            return None
        from hellofmt.archive.storage.cache import DigestCache

        return DigestCache(self.cache_dir)

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy cannot be pickled.
        return Access, (dict(self.storage_options), self.cache_dir)


def open_archive(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    expect: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> HelloFile:
    """Open an archive and verify its manifest, its length and the header of every section.

    The exact name of one file opens that file, also if it is a shard. A pattern or a list opens the
    files of a sharded data set as one, a ``HelloSet``: ``name-*-of-00016.hello``,
    ``name-{00000..00015}-of-00016.hello``, or the names in any order.

    Args:
        path: a ``.hello`` file; a URL that fsspec knows (``https://``, ``s3://``, ``hf://``), read
            by ranges; a pattern; or the files of a set.
        expect: the ``id`` it must have, ``sha256:`` and 64 hex digits: the one check that holds
            against people who change files on purpose.
        limits: what to refuse for size.
        storage_options: of a URL: what fsspec passes to its storage, such as credentials; for
            http(s) also ``timeout``, seconds for one read with all its retries (60).
        cache_dir: folder that keeps what came from a URL, at most 16 GiB; else the environment's
            ``HELLOFMT_CACHE``; empty for none. What it gives is verified like everything else.

    Returns:
        The open archive, a context manager.

    Raises:
        OSError: missing, a directory, not permitted.
        NotHelloError: not an archive (E_MAGIC), or of an unknown version or feature.
        CorruptError: changed, cut or extended.
        SpecError: content that the format forbids.
        LimitError: above ``limits``.
        TrustError: another ``id`` than ``expect`` (E_PIN).
        HelloIOError: reading failed.
        UserInputError: ``expect`` is not an id, a package for the URL is missing (E_OPTION); or
            the files are not one complete set (E_DATA).
    """
    from hellofmt.archive.storage.cache import CACHE_VARIABLE

    folder = os.environ.get(CACHE_VARIABLE, "") if cache_dir is None else os.fspath(cache_dir)
    access = Access(MappingProxyType(dict(storage_options or {})), folder)
    if isinstance(path, os.PathLike) or (isinstance(path, str) and not _PATTERN.search(path)):
        return access.open(path, expect, limits)
    from hellofmt.archive.read.set import find_shards, open_set

    shards = find_shards(path, access)
    if isinstance(shards, str):
        return access.open(shards, expect, limits)
    return open_set(shards, expect, limits, access)


class HelloFile:
    """An open archive: read-only, usable from threads and forked workers at once.

    Pickles as its path, id, limits and storage options; unpickling opens it again and refuses
    another id.

    Attributes:
        path: what it was opened by.
        id: ``sha256:...`` of the manifest, which fixes every byte of the file.
        manifest: what the archive says of itself.
        extras: free text under ``x_`` keys, never interpreted.
        limits: what it was opened with.
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
        """Run the checks of opening on ``source``; see ``open_archive``."""
        check_expect(expect)
        self._source = source
        self._access = access or Access()
        self._cache = self._access.cache(source)
        self.limits = limits
        self.path = source.name
        self.size_bytes = source.size
        try:
            self._open(expect)
        except (CorruptError, NotHelloError, SpecError):
            if not source.is_remote:
                raise
            source.forget()
            self._open(expect)
        self._index: Index | None = None
        self._classes: Classes | None = None
        self._pixels_start: int | None = None

    def _open(self, expect: str | None) -> None:
        """Read and check everything that stands before the first payload."""
        source = self._source
        self._head = source.read(0, min(source.size, _HEAD_BYTES))
        data = _read_manifest(self._head, source)
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
        self._offsets: dict[str, int] = {}
        self._sections: dict[str, Section] = {}
        at = BLOCK + padded(len(data)) + 2 * BLOCK
        for section in manifest.sections:
            self._sections[section.name] = section
            self._offsets[section.name] = at + BLOCK
            at += BLOCK + padded(section.size)
        self._images_start = at
        self._check_length(at)
        # Of a packed archive the pixels are what is read by range later.
        known, wanted = len(self._head), self._offsets.get("pixels", at)
        if source.is_remote and known < wanted <= _REMOTE_HEAD_BYTES:
            self._head += source.read(known, wanted - known)
        self._check_section_headers()

    def _check_length(self, images_start: int) -> None:
        """The length that the manifest implies is the length of the file.

        Raises:
            LimitError: E_LIMIT_FILE_BYTES.
            CorruptError: E_TRUNCATED, E_TRAILING.
        """
        images = self.manifest.images
        span = 0 if images is UNSET else images.span
        self.images_end = images_start + span
        wanted = self.images_end + len(TRAILER)
        check_limit(self.limits, "file_bytes", wanted)
        if self.size_bytes < wanted:
            raise CorruptError.make(
                "E_TRUNCATED",
                f"the file is cut; expected {wanted} bytes, got {self.size_bytes}",
                offset=self.size_bytes,
            )
        if self.size_bytes > wanted:
            raise CorruptError.make(
                "E_TRAILING",
                f"bytes after the end; expected {wanted} bytes, got {self.size_bytes}",
                offset=wanted,
            )

    def _check_section_headers(self) -> None:
        """Every section has its one header, and zeros behind its payload.

        Raises:
            SpecError: E_HEADER, E_NAME, E_ORDER, E_DUPLICATE.
            CorruptError: E_PADDING.
        """
        sections = self.manifest.sections
        ranges: list[tuple[int, int]] = []
        for section in sections:
            start = self._offsets[section.name]
            ranges.append((start - BLOCK, BLOCK))
            ranges.append((start + section.size, padded(section.size) - section.size))
        found = self._read_ranges(ranges)
        earlier = [MANIFEST_MEMBER, ID_MEMBER]
        for i, section in enumerate(sections):
            member = section_member(section.name)
            if found[2 * i] != header(member, section.size):
                raise describe_header(found[2 * i], member, section.size, frozenset(earlier))
            check_padding(found[2 * i + 1], member, ranges[2 * i + 1][0])
            earlier.append(member)

    def _read_ranges(self, ranges: list[tuple[int, int]]) -> list[bytes]:
        """Bytes of (offset, length) pairs, from the head where it holds them."""
        head = self._head
        outside = [(at, size) for at, size in ranges if size and at + size > len(head)]
        fetched = iter(self._source.read_ranges(outside)) if outside else iter(())
        return [
            head[at : at + size] if at + size <= len(head) or not size else next(fetched)
            for at, size in ranges
        ]

    @property
    def manifest_bytes(self) -> bytes:
        """The manifest as it is stored, with the keys of a newer version that this one ignores."""
        return self._manifest_bytes

    @property
    def content_id(self) -> str:
        """What stays equal when a file is only compressed anew; never a pin."""
        return content_id(self._manifest_bytes)

    @property
    def classes(self) -> Classes:
        """The classes, in label order; read and verified at first use.

        Raises:
            CorruptError: changed since it was written.
            SpecError: E_CLASSES.
        """
        if self._classes is None:
            self._classes = parse_classes(
                self._read_section(self._find_section("classes")), self.manifest.classes
            )
        return self._classes

    @property
    def index(self) -> Index | None:
        """The images, row by row; None without images; read and verified at first use.

        Raises:
            CorruptError: changed since it was written.
            SpecError: E_TENSOR, E_INDEX.
            LimitError: an image above the limits.
        """
        if self._index is None and self.manifest.images is not UNSET:
            from hellofmt.archive.format.index import parse_index

            start = self._images_start
            if self.manifest.images.layout == "packed":
                start = self.pixels_start
            raw = self._read_section(self._find_section("index"))
            self._index = parse_index(raw, self.manifest, start, self.limits)
        return self._index

    def __len__(self) -> int:
        """Number of images; 0 without."""
        return 0 if self.manifest.images is UNSET else self.manifest.images.count

    def __repr__(self) -> str:
        return f"<HelloFile {display_name(self.path)!r} {self.id[:19]}... {len(self)} images>"

    def has_section(self, name: str) -> bool:
        """Whether the archive has a section called ``name``."""
        return name in self._sections

    def section_sizes(self) -> dict[str, int]:
        """Stored bytes per section, in file order, without headers and padding."""
        return {section.name: section.size for section in self.manifest.sections}

    def section_offset(self, name: str) -> int:
        """Byte offset of a section's payload.

        Raises:
            UserInputError: no such section (E_OPTION).
        """
        self._find_section(name)
        return self._offsets[name]

    def _find_section(self, name: str) -> Section:
        section = self._sections.get(name)
        if section is None:
            raise UserInputError.make(
                "E_OPTION",
                f"the archive has no section {printable(name, 40)}; "
                f"it has {', '.join(self._sections)}",
                advice=did_you_mean(name, self._sections),
            )
        return section

    def section(self, name: str) -> bytes:
        """The raw bytes of a section: digest, compression and content checked.

        Args:
            name: one of ``section_sizes()``.

        Returns:
            Decompressed bytes.

        Raises:
            CorruptError: changed (E_DIGEST_INDEX), or a bad frame (E_ZSTD).
            SpecError: content that the format forbids (E_TENSOR, E_CLASSES, E_SCHEMA).
            UserInputError: no such section (E_OPTION).
        """
        raw = self._read_section(self._find_section(name))
        # Sections of a newer minor version are hashed and otherwise left alone.
        if name in _TENSOR_SECTIONS:
            self._parse_tensors(name, raw)
        elif name == "classes":
            parse_classes(raw, self.manifest.classes)
        elif name in ("card", "license"):
            _check_text(raw, section_member(name))
        return raw

    def _read_section(self, section: Section) -> bytes:
        """Raw bytes of a section whose digests hold."""
        member = section_member(section.name)
        stored = self._read_stored(section, member)
        if section.raw_size is UNSET or section.raw_digest is UNSET:
            return stored
        raw = decompress(stored, section.raw_size, member=member)
        check_section_digest(sha256(raw), section.raw_digest, member)
        return raw

    def _read_stored(self, section: Section, member: str) -> bytes:
        """Stored bytes of a section whose digest holds."""
        digest = bytes.fromhex(section.digest.removeprefix("sha256:"))
        if self._cache is not None:
            known = self._cache.get(digest, section.size)
            if known is not None:
                return known
        if section.size > _WHOLE_BYTES and not self._source.is_remote:
            # Hashed in windows first: a large section that was changed is refused in little memory.
            check_section_digest(self._hash_section(section), section.digest, member)
        ranges = [(self._offsets[section.name], section.size)]

        def check(found: list[bytes]) -> bytes:
            check_section_digest(sha256(found[0]), section.digest, member)
            return found[0]

        stored = self.checked(self._read_ranges(ranges), ranges, check)
        if self._cache is not None:
            self._cache.put(digest, stored)
        return stored

    def checked(
        self,
        found: list[bytes],
        ranges: list[tuple[int, int]],
        check: Callable[[list[bytes]], bytes],
    ) -> bytes:
        """What ``check`` makes of ``found``; remote bytes that it refuses are fetched once more.

        Args:
            found: the bytes of ``ranges``.
            ranges: (offset, length) pairs.
            check: gives the verified bytes or raises a ``CorruptError`` or ``SpecError``.

        Raises:
            CorruptError: refused.
            SpecError: refused.
            HelloIOError: refused, and the server shows that the file was replaced (E_READ); or
                reading failed.
        """
        source = self._source
        try:
            return check(found)
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
                f"{printable(display_name(self.path))} was replaced since it was opened, "
                f"{change}: {error}",
            ) from error

    def _hash_section(self, section: Section) -> str:
        """Digest of a section's stored bytes, a window at a time."""
        at, end = self._offsets[section.name], self._offsets[section.name] + section.size
        digest = hashlib.sha256()
        for start in range(at, end, _WINDOW_BYTES):
            digest.update(self._source.read(start, min(_WINDOW_BYTES, end - start)))
        return f"sha256:{digest.hexdigest()}"

    def _parse_tensors(self, name: str, raw: bytes) -> dict[str, Any]:
        from hellofmt.archive.format.tensors import (
            base_tensors_digest,
            expected_tensors,
            parse_tensors,
            validate_nibbles,
        )

        tensors = parse_tensors(raw, name, expected_tensors(self.manifest, name))
        problems = validate_nibbles(tensors, self.manifest, name)
        if problems:
            raise SpecError.make("E_TENSOR", problems[0], member=section_member(name))
        if name == "base" and self.manifest.base is not UNSET:
            digest = base_tensors_digest(tensors)
            if digest != self.manifest.base.tensors:
                raise SpecError.make(
                    "E_TENSOR",
                    f"digest of the tensors; expected {self.manifest.base.tensors}, got {digest}",
                    member=section_member(name),
                )
        return tensors

    def tensors(self, name: str) -> dict[str, NDArray[Any]]:
        """The tensors of a section as NumPy arrays; BF16 as float32, which is exact.

        Args:
            name: ``index``, ``adapter``, ``head``, ``probes``, ``base`` or ``pixels``.

        Returns:
            By name; arrays may be read-only.

        Raises:
            CorruptError: changed (E_DIGEST_INDEX), or a bad frame (E_ZSTD).
            SpecError: against the strict check (E_TENSOR).
            UserInputError: no such tensor section (E_OPTION).
        """
        section = self._find_section(name)
        if name not in _TENSOR_SECTIONS:
            raise UserInputError.make("E_OPTION", f"section {printable(name, 40)} has no tensors")
        tensors = self._parse_tensors(name, self._read_section(section))
        return {key: tensor.numpy() for key, tensor in tensors.items()}

    @property
    def pixels_start(self) -> int:
        """Byte offset of the first pixel of a packed archive.

        Raises:
            UserInputError: the archive is not packed (E_OPTION).
            SpecError: the header of the section is not the one implied (E_TENSOR).
        """
        if self._pixels_start is None:
            from hellofmt.archive.format.tensors import expected_tensors, parse_tensor_header

            section = self._find_section("pixels")
            at = self._offsets["pixels"]
            [head] = self._read_ranges([(at, min(section.size, 8))])
            length = int.from_bytes(head, "little")
            # No digest was checked yet, so a length beyond all bounds is damage, not a large file.
            if length > SAFETENSORS_HEADER_BYTES:
                raise SpecError.make(
                    "E_TENSOR", f"header of {length} bytes", member=section_member("pixels")
                )
            [head] = self._read_ranges([(at, min(section.size, 8 + length))])
            entries = parse_tensor_header(
                head, section.size, "pixels", expected_tensors(self.manifest, "pixels")
            )
            self._pixels_start = at + entries["pixels"][1]
        return self._pixels_start

    def _images_and_index(self, row: int) -> tuple[Images, Index]:
        images, index = self.manifest.images, self.index
        if images is UNSET or index is None:
            raise UserInputError.make("E_OPTION", "the archive has no images")
        if not 0 <= row < images.count:
            raise UserInputError.make(
                "E_OPTION", f"row; expected 0 to {images.count - 1}, got {row}"
            )
        return images, index

    def image_name(self, row: int) -> str:
        """Name of an image: its member name, or the one a file layout would give it.

        Args:
            row: 0 <= row < ``len(self)``.

        Returns:
            ``images/<label>/<number>.<extension>``.

        Raises:
            UserInputError: no such row (E_OPTION).
        """
        images, index = self._images_and_index(row)
        codec = "png" if images.codec == "raw" else images.codec
        shard = self.manifest.shard
        first, total = (0, images.count) if shard is UNSET else (shard.first, shard.total)
        label = int(index.label[row])
        return image_name(label, first + row, codec, self.manifest.classes, total)

    def read_image(self, row: int) -> bytes:
        """The stored bytes of an image, header, digest and padding verified.

        Args:
            row: 0 <= row < ``len(self)``.

        Returns:
            The file; of a packed archive its pixels, row by row.

        Raises:
            CorruptError: changed (E_DIGEST_MEMBER, E_PADDING).
            SpecError: not its header (E_HEADER, E_NAME, E_ORDER).
            HelloIOError: reading failed.
            UserInputError: no such row (E_OPTION).
        """
        return self.read_images([row])[0]

    def read_images(self, rows: Sequence[int], *, exact: bool = False) -> list[bytes]:
        """The stored bytes of many images, neighbours in one read; see ``read_image``.

        Args:
            rows: each 0 <= row < ``len(self)``, in any order, also more than once.
            exact: read nothing that lies between them, also where that would spare a request.

        Returns:
            One file per row.

        Raises:
            CorruptError: one changed (E_DIGEST_MEMBER, E_PADDING).
            SpecError: not its header (E_HEADER, E_NAME, E_ORDER).
            HelloIOError: reading failed.
            UserInputError: no such row (E_OPTION).
        """
        found: dict[int, bytes] = {}
        missing: dict[int, tuple[int, int]] = {}
        for row in map(int, rows):
            images, index = self._images_and_index(row)
            at, size = int(index.offset[row]), int(index.size[row])
            known = None
            if self._cache is not None and row not in found:
                known = self._cache.get(index.sha256[row].tobytes(), size)
            if known is not None:
                found[row] = known
            elif row not in found:
                packed = images.layout == "packed"
                missing[row] = (at, size) if packed else (at - BLOCK, BLOCK + padded(size))
        # Other sources than ours need to know the option only where it is asked for.
        options: dict[str, Any] = {"exact": True} if exact else {}
        blocks = self._source.read_ranges(list(missing.values()), **options)
        for (row, place), block in zip(missing.items(), blocks, strict=True):

            def check(found: list[bytes], row: int = row) -> bytes:
                return self.check_image(row, found[0])

            found[row] = self.checked([block], [place], check)
            if self._cache is not None:
                index = self._images_and_index(row)[1]
                self._cache.put(index.sha256[row].tobytes(), found[row])
        return [found[int(row)] for row in rows]

    def check_image(self, row: int, block: bytes) -> bytes:
        """The stored bytes of an image out of its member, header, digest and padding verified.

        Args:
            row: 0 <= row < ``len(self)``.
            block: the whole member; of a packed archive the pixels of the row.

        Returns:
            The file, or the pixels.

        Raises:
            CorruptError: changed (E_DIGEST_MEMBER, E_PADDING).
            SpecError: not its header (E_HEADER, E_NAME, E_ORDER).
            UserInputError: no such row (E_OPTION).
        """
        images, index = self._images_and_index(row)
        at, size = int(index.offset[row]), int(index.size[row])
        name = self.image_name(row)
        if images.layout == "packed":
            check_image_digest(block, index.sha256[row].tobytes(), name, at)
            return block
        if block[:BLOCK] != header(name, size):
            raise describe_header(block[:BLOCK], name, size, EarlierMembers(self, row))
        # What is refused is not copied first: it may be as large as the limit of an image.
        view = memoryview(block)[BLOCK:]
        check_image_digest(view[:size], index.sha256[row].tobytes(), name, at)
        check_padding(view[size:], name, at + size)
        return block[BLOCK : BLOCK + size]

    def decode_image(self, row: int) -> NDArray[np.uint8]:
        """The pixels of an image, verified before they are decoded.

        Args:
            row: 0 <= row < ``len(self)``.

        Returns:
            uint8 (H, W, 3) RGB; grey is replicated.

        Raises:
            CorruptError: changed, or cannot be decoded (E_DIGEST_MEMBER, E_IMAGE, E_PADDING).
            SpecError: outside the codec's profile, or of other dimensions than the index states.
            LimitError: above the limits.
            HelloIOError: reading failed.
            UserInputError: no such row (E_OPTION).
        """
        return self.decode_images([row])[0]

    def decode_images(self, rows: Sequence[int]) -> list[NDArray[np.uint8]]:
        """The pixels of many images, neighbours in one read; see ``decode_image``.

        Args:
            rows: each 0 <= row < ``len(self)``.

        Returns:
            uint8 (H, W, 3) RGB per row.

        Raises:
            HelloError: as ``decode_image``, for the first row that fails.
        """
        files = self.read_images(rows)
        return [self.decode_bytes(int(row), data) for row, data in zip(rows, files, strict=True)]

    def decode_bytes(self, row: int, data: bytes) -> NDArray[np.uint8]:
        """The pixels of an image whose bytes were read, and so verified, before.

        Args:
            row: 0 <= row < ``len(self)``.
            data: as ``read_image`` gives them.

        Returns:
            uint8 (H, W, 3) RGB; grey is replicated.

        Raises:
            HelloError: as ``decode_image``, but for reading.
        """
        import numpy as np

        from hellofmt.archive.format.images import decode_image, parse_image

        images, index = self._images_and_index(row)
        name = self.image_name(row)
        if images.shape is not UNSET:
            pixels = np.frombuffer(data, np.uint8).reshape(images.shape)
        else:
            shape = parse_image(data, images.codec, member=name)
            check_dimensions(shape, int(index.height[row]), int(index.width[row]), name)
            pixels = decode_image(data, images.codec, self.limits, member=name)
        return pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels

    @property
    def shards(self) -> Sequence[HelloFile]:
        """The files of a sharded set in order; of a single file, shard or not, itself."""
        return [self]

    @property
    def storage_options(self) -> Mapping[str, Any]:
        """What the storage of a URL was given."""
        return self._access.storage_options

    @property
    def source(self) -> Source:
        """Where the bytes come from, for ``verify_archive``."""
        return self._source

    @property
    def cache(self) -> DigestCache | None:
        """What keeps the bytes that came over a network; None for a local file, or without one."""
        return self._cache

    def close(self) -> None:
        """Close the file; reading afterwards is a ``HelloIOError``."""
        self._head = b""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.id, self.limits, self._access)


def check_expect(expect: str | None) -> None:
    """Refuse a pin that is none.

    Raises:
        UserInputError: E_OPTION.
    """
    if expect is not None and re.fullmatch(r"sha256:[0-9a-f]{64}", expect) is None:
        raise UserInputError.make(
            "E_OPTION",
            f"expected sha256: and 64 hex digits, got {printable(expect, 80)}",
            argument="expect",
        )


class EarlierMembers:
    """The names of all members before an image, without making a list of a million."""

    def __init__(self, file: HelloFile, row: int) -> None:
        """Of ``file``, before image ``row``."""
        self._file = file
        self._row = row

    def __contains__(self, name: object) -> bool:
        """Whether a member of this name stands before the image."""
        sections = self._file.section_sizes()
        if name in (MANIFEST_MEMBER, ID_MEMBER, *(section_member(found) for found in sections)):
            return True
        # Rows are in the byte order of their names.
        rows = range(self._row)
        at = bisect.bisect_left(rows, str(name), key=self._file.image_name)
        return at < len(rows) and self._file.image_name(at) == name


def _reopen(path: str, archive_id: str, limits: Limits, access: Access) -> HelloFile:
    """What unpickling calls: the same archive or an error."""
    return access.open(path, archive_id, limits)


def _read_manifest(head: bytes, source: Source) -> bytes:
    """The manifest's bytes, matched by the ``id`` member.

    Args:
        head: the first bytes of the file.
        source: the rest.

    Raises:
        NotHelloError: E_MAGIC.
        CorruptError: E_TRUNCATED, E_PADDING, E_DIGEST_ROOT.
        SpecError: E_HEADER and its kin.
        LimitError: E_LIMIT_MANIFEST.
    """
    found = head[: len(MAGIC)]
    if not found or found != MAGIC[: len(found)]:
        what = f"got {printable(found)}" if found else "the file is empty"
        raise NotHelloError.make(
            "E_MAGIC",
            f"not a .hello archive; expected the file to begin with {MANIFEST_MEMBER}, {what}",
        )
    if source.size < _SHORTEST:
        raise CorruptError.make(
            "E_TRUNCATED",
            f"the file is cut; the shortest archive has {_SHORTEST} bytes, got {source.size}",
            offset=source.size,
        )
    block = head[:BLOCK]
    size = _stated_size(block)
    if block != header(MANIFEST_MEMBER, size):
        raise describe_header(block, MANIFEST_MEMBER, size, frozenset())
    check_fixed("manifest", size, MANIFEST_BYTES, member=MANIFEST_MEMBER)
    id_at = BLOCK + padded(size)
    end = id_at + 2 * BLOCK
    if end > source.size:
        raise CorruptError.make(
            "E_TRUNCATED",
            f"the file is cut; manifest and id need {end} bytes, got {source.size}",
            offset=source.size,
        )
    if end > len(head):
        head = head + source.read(len(head), end - len(head))
    data = head[BLOCK : BLOCK + size]
    check_padding(head[BLOCK + size : id_at], MANIFEST_MEMBER, BLOCK + size)
    block = head[id_at : id_at + BLOCK]
    if block != header(ID_MEMBER, ID_SIZE):
        raise describe_header(block, ID_MEMBER, ID_SIZE, frozenset({MANIFEST_MEMBER}))
    digits = hashlib.sha256(data).hexdigest().encode("ascii") + b"\n"
    stored = head[id_at + BLOCK : id_at + BLOCK + ID_SIZE]
    if stored != digits:
        raise CorruptError.make(
            "E_DIGEST_ROOT",
            f"digest of the manifest; expected {printable(stored, 80)}, "
            f"got {digits[:64].decode('ascii')}",
            member=MANIFEST_MEMBER,
        )
    check_padding(head[id_at + BLOCK + ID_SIZE : end], ID_MEMBER, id_at + BLOCK + ID_SIZE)
    return data


def _stated_size(block: bytes) -> int:
    """The size in a header that is about to be compared with its one form; 0 if unreadable."""
    digits = block[124:135]
    return int(digits, 8) if re.fullmatch(rb"[0-7]{11}", digits) else 0


def check_padding(found: bytes | memoryview, member: str, offset: int) -> None:
    """Refuse padding that is not zero.

    Raises:
        CorruptError: E_PADDING.
    """
    if bytes(found).strip(b"\0"):
        raise CorruptError.make(
            "E_PADDING", "bytes after the payload; expected zeros", member=member, offset=offset
        )


def check_section_digest(found: str, wanted: str, member: str) -> None:
    """Refuse a section whose bytes changed.

    Raises:
        CorruptError: E_DIGEST_INDEX.
    """
    if found != wanted:
        raise CorruptError.make(
            "E_DIGEST_INDEX", f"digest differs; expected {wanted}, got {found}", member=member
        )


def check_image_digest(data: bytes | memoryview, wanted: bytes, name: str, offset: int) -> None:
    """Refuse an image whose bytes changed.

    Raises:
        CorruptError: E_DIGEST_MEMBER.
    """
    found = hashlib.sha256(data).digest()
    if found != wanted:
        raise CorruptError.make(
            "E_DIGEST_MEMBER",
            f"digest differs; expected {wanted.hex()}, got {found.hex()}",
            member=name,
            offset=offset,
        )


def check_dimensions(shape: Any, height: int, width: int, name: str) -> None:
    """Refuse an image of other dimensions than the index states.

    Raises:
        SpecError: E_INDEX.
    """
    if (shape.height, shape.width) != (height, width):
        raise SpecError.make(
            "E_INDEX",
            f"the image is {shape.height} x {shape.width} pixels; the index states "
            f"{height} x {width}",
            member=name,
        )


def _check_text(raw: bytes, member: str) -> None:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError.make(
            "E_SCHEMA", f"not UTF-8 at byte {error.start}", member=member
        ) from None
