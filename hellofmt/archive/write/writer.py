"""Writing an archive: the old file or the complete new one, never anything between.

Sizes are known before the first byte is written, so the images go straight to their places and are
read once; the manifest, which holds the digest of the index, follows last into the space left for
it. All of it happens in a temporary file in the target's directory, which gets its name only after
everything was read back. Whatever goes wrong before, including an interrupt, removes it. Nothing of
the machine enters the bytes: no time, user, path or host.

An image is read into the very buffer that is written, and judged there. Then its bytes are read
back from the file: these are what is hashed, and they are compared with the buffer, so the digest
in the index is that of the bytes a reader gets, and no image is hashed twice, which would cost as
much as all the rest. Last, the strict reader goes through the complete file and makes every check
of a full verification but the digest and the profile of each image. A few buffers are filled and
written at once by threads, each to its own place, and the disk is synchronised while the strict
reader reads; neither changes a byte, and both have ended before the file gets its name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
import threading
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import numpy as np

from hellofmt.archive.format.classes import ClassLine, class_bytes
from hellofmt.archive.format.compress import compress, decompress
from hellofmt.archive.format.digest import sha256
from hellofmt.archive.format.images import (
    Codec,
    ImageShape,
    check_image_limits,
    decode_image,
    parse_image,
    parse_png_header,
)
from hellofmt.archive.format.index import index_tensors
from hellofmt.archive.format.layout import (
    BLOCK,
    ID_MEMBER,
    ID_SIZE,
    MANIFEST_MEMBER,
    SECTION_ORDER,
    TRAILER,
    header,
    padded,
    section_member,
)
from hellofmt.archive.format.limits import DEFAULT_LIMITS, Limits, check_limit
from hellofmt.archive.format.manifest import (
    UNSET,
    Adapter,
    Base,
    Dataset,
    Head,
    Images,
    Manifest,
    Probes,
    Producer,
    Section,
    Shard,
    Views,
)
from hellofmt.archive.format.parse import manifest_bytes, parse_manifest
from hellofmt.archive.format.rows import cut_windows, image_headers, padded_rows
from hellofmt.archive.format.tensors import (
    StoredTensor,
    expected_tensors,
    parse_tensors,
    serialize_tensors,
    validate_nibbles,
)
from hellofmt.archive.format.validate import check_manifest_limits
from hellofmt.archive.parallel import beside, map_ordered
from hellofmt.archive.read.verify import verify_copy
from hellofmt.archive.storage.local_files import (
    create_new,
    is_alive,
    is_locked,
    lock_file,
    open_new,
    read_into_at,
    sync_directory,
    sync_file,
    temporary_path,
    temporary_stem,
    write_at,
)
from hellofmt.errors import (
    CorruptError,
    HelloError,
    HelloIOError,
    LimitError,
    SpecError,
    UserInputError,
    printable,
    target_exists,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["Draft", "ImageItem", "ImageSet", "ProjectorPart", "write_archive"]

# A few buffers of this size are filled at once; larger ones no longer gain anything.
_FLUSH_BYTES: Final = 2 << 20
_TOKEN_BYTES: Final = 8


@dataclass(frozen=True)
class ImageItem:
    """One image to pack.

    Attributes:
        label: its class, counted from 0.
        source: its bytes, the path of a file, or a function that gives the same bytes whenever it
            is called; it is called in the thread of the writer's caller.
    """

    label: int
    source: bytes | str | Path | Callable[[], bytes]


@dataclass(frozen=True)
class ImageSet:
    """The images to pack, in any order; they are sorted by label, otherwise kept in order.

    Attributes:
        codec: of every item.
        items: at least one.
        layout: ``files``, one member per image; ``packed``, the pixels of equally large PNG images
            in one section; ``auto``, whichever is smaller.
    """

    codec: Codec
    items: Sequence[ImageItem]
    layout: Literal["auto", "files", "packed"] = "auto"


@dataclass(frozen=True)
class ProjectorPart:
    """A label function to pack.

    Attributes:
        base: the encoder, pinned.
        adapter: the low-rank deltas, sorted by parameter.
        head: the linear head.
        adapter_tensors: ``<param>::A``, ``<param>::B`` and their scales.
        head_tensors: ``logit_scale`` and what ``head`` declares.
        probe_logits: float32 (P, C), logits of the first P probe pictures.
        base_tensors: the image tower, for a base of kind ``embedded``.
    """

    base: Base
    adapter: Adapter
    head: Head
    adapter_tensors: Mapping[str, StoredTensor]
    head_tensors: Mapping[str, StoredTensor]
    probe_logits: NDArray[np.float32]
    base_tensors: Mapping[str, StoredTensor] | None = None


def _no_extras() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True)
class Draft:
    """What becomes an archive: images, a label function, or both.

    Attributes:
        dataset: what it is; ``ipc`` is set from the images.
        classes: one line per class, in label order.
        views: what the labels were fitted for.
        images: the images, if any.
        projector: the label function, if any.
        card: Markdown for people.
        license: text of the licence.
        extras: free strings under ``x_`` keys.
        shard: which part of a sharded data set it is.
        producer: what wrote it; hellofmt and its version if absent.
    """

    dataset: Dataset
    classes: Sequence[ClassLine]
    views: Views
    images: ImageSet | None = None
    projector: ProjectorPart | None = None
    card: str | None = None
    license: str | None = None
    extras: Mapping[str, str] = field(default_factory=_no_extras)
    shard: Shard | None = None
    producer: Producer | None = None


def write_archive(
    target: str | os.PathLike[str],
    draft: Draft,
    *,
    force: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Write ``draft`` to ``target``; the same draft gives the same bytes.

    Args:
        target: path of the new file, in a directory that exists.
        draft: what to write.
        force: replace a file that is there.
        limits: also what the reader that checks the result refuses.
        progress: called with images written and images in all.

    Returns:
        The ``id`` of the archive, ``sha256:`` and 64 hex digits.

    Raises:
        UserInputError: the draft cannot be an archive, or an image is outside its codec's profile
            or changed while it was read (E_DATA, E_OPTION).
        LimitError: above ``limits``.
        HelloIOError: the target exists or is no file (E_TARGET), the disk is full (E_NOSPACE),
            writing failed (E_WRITE); or the file is in place but its directory could not be
            synchronised (E_DURABILITY).
        OSError: an image cannot be read, or the directory not be written.
    """
    path = Path(target)
    _check_target(path, force)
    _remove_stale(path)
    plan = _Plan(draft, limits)
    temporary = temporary_path(path, _TOKEN_BYTES)
    fd = -1
    try:
        fd = _create(temporary)
        archive_id = plan.write(fd, progress)
        with beside(partial(_synchronise, fd)):
            _verify_written(temporary, archive_id, plan, limits)
        # Closed before the rename, because some file systems report a lost write only here.
        closing, fd = fd, -1
        _close(closing)
        _publish(temporary, path, force)
    except BaseException:
        if fd >= 0:
            os.close(fd)
        temporary.unlink(missing_ok=True)
        raise
    _synchronise_directory(path)
    return archive_id


def plan_images(draft: Draft, limits: Limits) -> tuple[Dataset, Literal["files", "packed"]]:
    """What shards of one data set must share, as all of its images decide it.

    Args:
        draft: the whole data set, with images.
        limits: of its archives.

    Returns:
        The data set with its ``ipc``, and the layout that ``auto`` means.

    Raises:
        UserInputError: the draft cannot be an archive (E_DATA, E_OPTION).
        LimitError: above ``limits``.
        OSError: an image cannot be read.
    """
    manifest = _Plan(draft, limits).manifest()
    packed = manifest.images is not UNSET and manifest.images.layout == "packed"
    return manifest.dataset, "packed" if packed else "files"


def _write_at(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset`` bytes of a file.

    Raises:
        HelloIOError: E_WRITE, E_NOSPACE.
    """
    rest = memoryview(data)
    try:
        while rest:
            written = write_at(fd, rest, offset)
            offset += written
            rest = rest[written:]
    except OSError as error:
        raise _write_error(error) from error


def _write_error(error: OSError) -> HelloIOError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return HelloIOError.make(
        "E_NOSPACE" if full else "E_WRITE", f"writing the archive failed: {error.strerror}"
    )


@dataclass(slots=True)
class _Row:
    """One image on its way into the archive; ``source`` is a path where it is a string."""

    label: int
    source: bytes | str | Callable[[], bytes]
    position: int
    size: int
    sha256: bytes | None

    def describe(self) -> str:
        """How errors name it: its place in the items, and its path if it has one."""
        where = f" ({printable(self.source)})" if isinstance(self.source, str) else ""
        return f"image {self.position}{where}"

    def read_head(self, length: int) -> bytes:
        """At most its first ``length`` bytes."""
        if isinstance(self.source, str):
            with Path(self.source).open("rb") as file:
                return file.read(length)
        return self.read()[:length]

    def read(self) -> bytes:
        """Its bytes, the same ones as when it was measured.

        Raises:
            UserInputError: E_DATA.
        """
        if isinstance(self.source, bytes):
            return self.source
        if isinstance(self.source, str):
            data = Path(self.source).read_bytes()
        else:
            data = self.source()
        if len(data) != self.size:
            raise self.changed()
        if self.sha256 is not None and hashlib.sha256(data).digest() != self.sha256:
            raise self.changed()
        return data

    def changed(self) -> UserInputError:
        """The error for bytes that are not those that were measured."""
        return UserInputError.make("E_DATA", f"{self.describe()} changed while it was packed")

    def parse(self, data: bytes | memoryview, codec: str, limits: Limits) -> ImageShape:
        """Hold its bytes to the profile of the codec and to the limits.

        Raises:
            UserInputError: E_DATA.
            LimitError: above a limit.
        """
        try:
            shape = parse_image(data, codec)
        except HelloError as error:
            raise UserInputError.make("E_DATA", f"{self.describe()}: {error}") from error
        self.check_limits(shape, len(data), limits)
        return shape

    def check_limits(self, shape: ImageShape, size: int, limits: Limits) -> None:
        """Refuse it above a limit, by name.

        Raises:
            LimitError: above a limit.
        """
        try:
            check_image_limits(shape, size, limits)
        except LimitError:
            # Only what is refused needs a name.
            check_image_limits(shape, size, limits, member=self.describe())
            raise


def _measure(item: ImageItem, position: int) -> _Row:
    """Size of an item without keeping its bytes; digest too where they had to be made.

    Raises:
        UserInputError: no regular file (E_DATA).
    """
    source = item.source
    if isinstance(source, bytes):
        return _Row(item.label, source, position, len(source), None)
    if isinstance(source, str | Path):
        path = os.fspath(source)
        status = os.stat(path)  # noqa: PTH116 (time)
        row = _Row(item.label, path, position, status.st_size, None)
        # A pipe would be waited for, and a device may never end.
        if not stat.S_ISREG(status.st_mode):
            raise UserInputError.make("E_DATA", f"{row.describe()} is no regular file")
        return row
    data = source()
    digest = hashlib.sha256(data).digest()
    return _Row(item.label, source, position, len(data), digest)


def _read_into(path: str, room: memoryview) -> int:
    """Read a file into ``room`` and count its bytes, up to one more than have room."""
    count = 0
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a Path a picture costs
        while count < len(room) and (more := file.readinto(room[count:])):
            count += more
        return count + len(file.read(1))


@dataclass(frozen=True)
class _Window:
    """Images that lie one after another in the file, filled and written at once.

    ``made`` holds the bytes of those whose source is a function of the caller.
    """

    start: int
    stop: int
    made: Mapping[int, bytes]


class _Buffers(threading.local):
    """Memory of one thread, for one window after another: fresh pages cost as much as a copy."""

    def __init__(self) -> None:
        self.meant = memoryview(bytearray(_FLUSH_BYTES))
        self.found = memoryview(bytearray(_FLUSH_BYTES))


class _ImageWriter:
    """Writes the members of all images to their places; windows may be written by several threads.

    Attributes:
        height, width: int64 (N,), filled while writing.
        sha256: uint8 (N, 32), filled while writing.
    """

    def __init__(
        self, fd: int, rows: Sequence[_Row], codec: str, offset: int, limits: Limits
    ) -> None:
        """For ``rows`` in order, the first header at ``offset`` of the file ``fd``."""
        self._fd = fd
        self._rows = rows
        self._codec = codec
        self._limits = limits
        self._buffers = _Buffers()
        self._size = np.array([row.size for row in rows], np.int64)
        self._label = np.array([row.label for row in rows], np.int64)
        members = BLOCK + padded_rows(self._size)
        self._end = offset + np.cumsum(members)
        self._start = self._end - members
        self.height, self.width = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        self.sha256 = np.zeros((len(rows), 32), np.uint8)

    def write(
        self, first: int, classes: int, total: int, progress: Callable[[int, int], None] | None
    ) -> int:
        """Write everything.

        Args:
            first: number of the first image over the whole data set.
            classes: number of classes.
            total: number of images of the whole data set.
            progress: see ``write_archive``.

        Returns:
            The byte after the last member.
        """

        def fill(window: _Window) -> _Window:
            span = slice(window.start, window.stop)
            headers = image_headers(
                self._label[span], first + span.start, self._size[span], self._codec, classes, total
            )
            self._fill(window, headers)
            return window

        done = map_ordered(fill, self._windows(), alone=self._is_large)
        with contextlib.closing(done):
            for window in done:
                if progress is not None:
                    for row in range(window.start, window.stop):
                        progress(row + 1, len(self._rows))
        return int(self._end[-1])

    def _windows(self) -> Iterator[_Window]:
        for start, stop in cut_windows(self._start, self._end, _FLUSH_BYTES):
            made = {
                row: self._rows[row].read()
                for row in range(start, stop)
                if not isinstance(self._rows[row].source, str)
            }
            yield _Window(start, stop, made)

    def _is_large(self, window: _Window) -> bool:
        return int(self._end[window.stop - 1] - self._start[window.start]) > _FLUSH_BYTES

    def _fill(self, window: _Window, headers: NDArray[np.uint8]) -> None:
        """Read, judge and write the images of a window; hash what the file then holds."""
        span = slice(window.start, window.stop)
        base = int(self._start[span.start])
        length = int(self._end[span.stop - 1]) - base
        large = length > _FLUSH_BYTES
        view = memoryview(bytearray(length)) if large else self._buffers.meant[:length]
        blocks = np.frombuffer(view, np.uint8).reshape(-1, BLOCK)
        starts = self._start[span] - base
        blocks[starts // BLOCK] = headers
        # Whatever the last block of an image is not filled with is padding.
        blocks[(self._end[span] - base) // BLOCK - 1] = 0
        places = [
            (at, at + self._rows[row].size)
            for row, at in enumerate((starts + BLOCK).tolist(), span.start)
        ]
        shapes: list[ImageShape] = []
        for row, (at, end) in enumerate(places, span.start):
            image, data = self._rows[row], view[at:end]
            if isinstance(image.source, str):
                if _read_into(image.source, data) != image.size:
                    raise image.changed()
            else:
                data[:] = window.made[row]
            shapes.append(image.parse(data, self._codec, self._limits))
        self.height[span] = [shape.height for shape in shapes]
        self.width[span] = [shape.width for shape in shapes]
        _write_at(self._fd, view, base)
        digests = b"".join(self._hash_written(view, base, places))
        self.sha256[span] = np.frombuffer(digests, np.uint8).reshape(-1, 32)

    def _hash_written(
        self, meant: memoryview, base: int, places: Sequence[tuple[int, int]]
    ) -> list[bytes]:
        """SHA-256 of images as the file now holds them.

        Args:
            meant: what was written.
            base: where.
            places: first byte and the byte after the last of each image within ``meant``; a single
                one where that is larger than a buffer.

        Raises:
            HelloIOError: the file holds anything else (E_WRITE).
        """
        if len(meant) <= _FLUSH_BYTES:
            found = self._read_back(meant, base)
            return [hashlib.sha256(found[start:end]).digest() for start, end in places]
        [(start, end)] = places
        digest = hashlib.sha256()
        for at in range(0, len(meant), _FLUSH_BYTES):
            found = self._read_back(meant[at : at + _FLUSH_BYTES], base + at)
            digest.update(found[max(0, start - at) : max(0, end - at)])
        return [digest.digest()]

    def _read_back(self, meant: memoryview, offset: int) -> memoryview:
        """What the file holds at ``offset``, which is ``meant``; until the thread's next call.

        Raises:
            HelloIOError: E_WRITE, E_NOSPACE.
        """
        found, count = self._buffers.found[: len(meant)], 0
        try:
            while count < len(found) and (
                more := read_into_at(self._fd, found[count:], offset + count)
            ):
                count += more
        except OSError as error:
            raise _write_error(error) from error
        # As numbers of eight bytes: views of bytes are compared one byte at a time.
        same = np.array_equal(np.frombuffer(found, np.uint64), np.frombuffer(meant, np.uint64))
        if count < len(found) or not same:
            raise HelloIOError.make(
                "E_WRITE", "the file does not hold what was written to it", offset=offset
            )
        return found


class _Plan:
    """Everything that is known before the first byte is written."""

    def __init__(self, draft: Draft, limits: Limits) -> None:
        self._draft = draft
        self._limits = limits
        self._rows: list[_Row] = []
        self._shape: ImageShape | None = None
        self._stored: dict[str, tuple[Section, bytes]] = {}
        self._store("classes", class_bytes(draft.classes))
        part = draft.projector
        if part is not None:
            probes = StoredTensor.from_numpy(part.probe_logits)
            self._store("adapter", serialize_tensors("adapter", part.adapter_tensors))
            self._store("head", serialize_tensors("head", part.head_tensors))
            self._store("probes", serialize_tensors("probes", {"logits": probes}))
            if part.base_tensors is not None:
                self._store("base", serialize_tensors("base", part.base_tensors))
        for name, text in (("card", draft.card), ("license", draft.license)):
            if text:
                self._store(name, _text_bytes(name, text))
        if draft.images is not None:
            self._measure_images(draft.images)
        self._check()

    def _store(self, name: str, raw: bytes) -> None:
        """Keep a section as it will be stored."""
        packed = None if name in ("index", "pixels") else compress(raw)
        if packed is None:
            section = Section(digest=sha256(raw), encoding="none", name=name, size=len(raw))
            self._stored[name] = section, raw
            return
        section = Section(
            digest=sha256(packed),
            encoding="zstd",
            name=name,
            size=len(packed),
            raw_digest=sha256(raw),
            raw_size=len(raw),
        )
        self._stored[name] = section, packed

    def _measure_images(self, images: ImageSet) -> None:
        """Size and order of the images, and whether they are packed."""
        if not images.items:
            raise UserInputError.make("E_DATA", "no images to pack; expected at least one")
        check_limit(self._limits, "images", len(images.items))
        classes = len(self._draft.classes)
        for position, item in enumerate(images.items):
            if not 0 <= item.label < classes:
                raise UserInputError.make(
                    "E_DATA",
                    f"image {position} has label {item.label}; expected 0 to {classes - 1}",
                )
            row = _measure(item, position)
            if row.size == 0:
                raise UserInputError.make("E_DATA", f"{row.describe()} is empty")
            if row.size > self._limits.image_bytes:
                check_limit(self._limits, "image_bytes", row.size, member=row.describe())
            self._rows.append(row)
        self._rows.sort(key=lambda row: row.label)
        if images.layout == "packed" and images.codec != "png":
            raise UserInputError.make(
                "E_OPTION",
                f"packed needs codec png, whose pixels are exact everywhere, got {images.codec}",
                argument="layout",
            )
        if images.layout != "files" and images.codec == "png":
            self._shape = self._packed_shape(images.layout)
        # The index has the same size whatever it holds, so the front can be measured now.
        blank = np.zeros(len(self._rows), np.int64)
        self._store_index(blank, blank, np.zeros((len(self._rows), 32), np.uint8))

    def _packed_shape(self, layout: str) -> ImageShape | None:
        """The one shape of all images, or None where they are not packed."""
        common: ImageShape | None = None
        for row in self._rows:
            try:
                shape = parse_png_header(row.read_head(33))
            except HelloError as error:
                raise UserInputError.make("E_DATA", f"{row.describe()}: {error}") from error
            # How many bytes it will take is not known yet.
            row.check_limits(shape, 0, self._limits)
            if common is not None and shape != common:
                if layout == "auto":
                    return None
                raise UserInputError.make(
                    "E_DATA",
                    f"{row.describe()} is {shape.height} x {shape.width} x {shape.channels}; "
                    f"expected {common.height} x {common.width} x {common.channels} to pack",
                )
            common = shape
        if common is None:
            return None
        pixels = common.height * common.width * common.channels * len(self._rows)
        # A packed archive has one header and the few bytes of one tensor header.
        packed_size = 2 * BLOCK + padded(pixels)
        files_size = sum(BLOCK + padded(row.size) for row in self._rows)
        return common if layout == "packed" or packed_size < files_size else None

    def _store_index(
        self, height: NDArray[Any], width: NDArray[Any], sha256s: NDArray[np.uint8]
    ) -> None:
        shape = self._shape
        if shape is None:
            size = np.array([row.size for row in self._rows], np.int64)
        else:
            one = shape.height * shape.width * shape.channels
            size = np.full(len(self._rows), one, np.int64)
        label = np.array([row.label for row in self._rows], np.int64)
        tensors = index_tensors(size, label, height, width, sha256s)
        self._store("index", serialize_tensors("index", tensors))

    def _images(self) -> Images:
        """The manifest's group for the images."""
        images, shape = self._draft.images, self._shape
        if shape is not None or images is None:
            dimensions = [] if shape is None else [shape.height, shape.width, shape.channels]
            return Images(
                codec="raw", count=len(self._rows), layout="packed", span=0, shape=dimensions
            )
        span = sum(BLOCK + padded(row.size) for row in self._rows)
        return Images(codec=images.codec, count=len(self._rows), layout="files", span=span)

    def _dataset(self) -> Dataset:
        """The data set with ``ipc`` as the images have it; a shard keeps that of the whole."""
        dataset = self._draft.dataset
        if self._draft.shard is not None:
            return dataset
        classes = len(self._draft.classes)
        counts = np.bincount([row.label for row in self._rows], minlength=classes)
        even = bool(self._rows) and bool((counts == counts[0]).all())
        return msgspec.structs.replace(dataset, ipc=int(counts[0]) if even else UNSET)

    def manifest(self) -> Manifest:
        """The manifest, of the length it will have once the index is known."""
        draft, part = self._draft, self._draft.projector
        ordered = [self._stored[name][0] for name in SECTION_ORDER if name in self._stored]
        return Manifest(
            classes=len(draft.classes),
            dataset=self._dataset(),
            hello="1.0",
            producer=draft.producer or Producer(name="hellofmt", version=_version()),
            requires=["images.packed"] if self._shape is not None else [],
            sections=ordered,
            views=draft.views,
            adapter=UNSET if part is None else part.adapter,
            base=UNSET if part is None else part.base,
            head=UNSET if part is None else part.head,
            images=self._images() if self._rows else UNSET,
            probes=UNSET if part is None else Probes(count=len(part.probe_logits)),
            shard=draft.shard or UNSET,
        )

    def _check(self) -> None:
        """Refuse early what the reader would refuse once everything is written.

        Raises:
            UserInputError: E_DATA.
            LimitError: above the limits.
        """
        if self._shape is not None:
            # The pixels are made while writing; the manifest is judged as if they were there.
            blank = Section(digest="sha256:" + "0" * 64, encoding="none", name="pixels", size=1)
            self._stored["pixels"] = blank, b""
        manifest = self.manifest()
        data = manifest_bytes(manifest, self._draft.extras)
        try:
            parse_manifest(data)
            for name in ("adapter", "head", "probes", "base"):
                if name in self._stored:
                    self._check_tensors(manifest, name)
        except SpecError as error:
            raise UserInputError.make("E_DATA", f"cannot be packed: {error}") from None
        check_manifest_limits(manifest, self._limits)

    def _check_tensors(self, manifest: Manifest, name: str) -> None:
        section, stored = self._stored[name]
        raw = stored
        if section.raw_size is not UNSET:
            raw = decompress(stored, section.raw_size, member=section_member(name))
        tensors = parse_tensors(raw, name, expected_tensors(manifest, name))
        problems = validate_nibbles(tensors, manifest, name)
        if problems:
            raise SpecError.make("E_TENSOR", problems[0], member=section_member(name))

    def write(self, fd: int, progress: Callable[[int, int], None] | None) -> str:
        """Write the archive.

        Args:
            fd: an empty file.
            progress: see ``write_archive``.

        Returns:
            Its id.
        """
        end = -1
        if self._shape is not None:
            self._pack_pixels(self._shape, progress)
        elif self._rows:
            end = self._write_images(fd, progress)
        data = manifest_bytes(self.manifest(), self._draft.extras)
        digits = hashlib.sha256(data).hexdigest()
        parts = [
            *_member(MANIFEST_MEMBER, data),
            *_member(ID_MEMBER, f"{digits}\n".encode("ascii")),
        ]
        for name in SECTION_ORDER:
            if name in self._stored:
                parts += _member(section_member(name), self._stored[name][1])
        if end < 0:
            parts.append(TRAILER)
        else:
            _write_at(fd, TRAILER, end)
        _write_parts(fd, parts)
        return f"sha256:{digits}"

    def _front_size(self) -> int:
        """Bytes before the first image."""
        data = manifest_bytes(self.manifest(), self._draft.extras)
        sizes = [len(data), ID_SIZE, *(len(stored) for _, stored in self._stored.values())]
        return sum(BLOCK + padded(size) for size in sizes)

    def _write_images(self, fd: int, progress: Callable[[int, int], None] | None) -> int:
        """Write every image to its place and store the index of them; the byte after the last."""
        images, shard = self._draft.images, self._draft.shard
        codec = "png" if images is None else images.codec
        first, total = (0, len(self._rows)) if shard is None else (shard.first, shard.total)
        writer = _ImageWriter(fd, self._rows, codec, self._front_size(), self._limits)
        end = writer.write(first, len(self._draft.classes), total, progress)
        self._store_index(writer.height, writer.width, writer.sha256)
        return end

    def _pack_pixels(self, packed: ImageShape, progress: Callable[[int, int], None] | None) -> None:
        """Store the pixels of every image, and the index of them."""
        count = len(self._rows)
        pixels = np.empty((count, packed.height, packed.width, packed.channels), np.uint8)
        digests = np.zeros((count, 32), np.uint8)
        for i, row in enumerate(self._rows):
            data = row.read()
            if row.parse(data, "png", self._limits) != packed:
                raise row.changed()
            try:
                pixels[i] = decode_image(data, "png", self._limits)
            except CorruptError as error:
                raise UserInputError.make("E_DATA", f"{row.describe()}: {error}") from None
            digests[i] = np.frombuffer(hashlib.sha256(pixels[i].data).digest(), np.uint8)
            if progress is not None:
                progress(i + 1, count)
        tensor = StoredTensor.from_numpy(pixels)
        self._store("pixels", serialize_tensors("pixels", {"pixels": tensor}))
        height = np.full(count, packed.height, np.int64)
        self._store_index(height, np.full(count, packed.width, np.int64), digests)

    def describe_member(self, member: str) -> str:
        """What the caller calls a member."""
        if not member.startswith("images/"):
            return f"`{member.removeprefix('__hello__/')}`"
        first = 0 if self._draft.shard is None else self._draft.shard.first
        return self._rows[int(Path(member).stem) - first].describe()


def _text_bytes(name: str, text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserInputError.make("E_DATA", f"`{name}` holds a lone surrogate") from None


def _version() -> str:
    # Not from the installer's records, which a program may be shipped without; and here, because
    # the package knows it only once it is imported.
    import hellofmt

    return hellofmt.__version__


def _member(name: str, data: bytes) -> tuple[bytes, bytes, bytes]:
    return header(name, len(data)), data, bytes(padded(len(data)) - len(data))


def _write_parts(fd: int, parts: Sequence[bytes]) -> None:
    """Write ``parts`` from the beginning of a file on, gathered into large writes."""
    at = 0
    waiting: list[bytes] = []
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting)) >= _FLUSH_BYTES:
            gathered, waiting = b"".join(waiting), []
            _write_at(fd, gathered, at)
            at += len(gathered)
    _write_at(fd, b"".join(waiting), at)


def _check_target(path: Path, force: bool) -> None:
    """Refuse early a target that cannot be written.

    Raises:
        HelloIOError: E_TARGET.
    """
    shown = printable(path)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise HelloIOError.make("E_TARGET", f"{shown} is inside a file") from None
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise HelloIOError.make("E_TARGET", f"{shown} is no regular file")
    if not force:
        raise target_exists(path)


def _remove_stale(path: Path) -> None:
    """Remove temporary files for ``path`` that writers left which no longer run."""
    # A long name is cut to leave room for the process's id, which has from 1 to 10 digits.
    stems = {temporary_stem(path, digits + 22) for digits in range(1, 11)}
    either = "|".join(map(re.escape, stems))
    form = re.compile(f"(?:{either})" + r"\.([0-9]{1,10})\.[0-9a-f]{16}\.tmp")
    try:
        names = [entry.name for entry in path.parent.iterdir() if form.fullmatch(entry.name)]
    except OSError:
        # Creating the temporary file says what is wrong with the directory.
        return
    for name in names:
        match = form.fullmatch(name)
        if match is not None and not is_alive(int(match[1])):
            _remove_unlocked(path.with_name(name))


def _remove_unlocked(temporary: Path) -> None:
    """Remove a file unless its writer, in another container or on another host, holds its lock."""
    if not is_locked(temporary):
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _create(temporary: Path) -> int:
    """Create the temporary file, locked for as long as it is open.

    Raises:
        HelloIOError: E_TARGET, E_NOSPACE.
        OSError: not permitted.
    """
    try:
        fd = open_new(temporary)
    except (FileNotFoundError, NotADirectoryError):
        raise HelloIOError.make(
            "E_TARGET", f"{printable(temporary.parent)} is no directory; expected one that exists"
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _write_error(error) from error
        raise
    # Not every file system has locks; the process id in the name still tells.
    lock_file(fd)
    return fd


def _synchronise(fd: int) -> None:
    try:
        sync_file(fd)
    except OSError as error:
        raise _write_error(error) from error


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError as error:
        raise _write_error(error) from error


def _verify_written(temporary: Path, archive_id: str, plan: _Plan, limits: Limits) -> None:
    """Read the complete file before it gets its name.

    Raises:
        UserInputError: an image or a text ends in a ZIP archive (E_DATA).
        HelloError: what was written is not what was meant.
    """
    try:
        verify_copy(temporary, archive_id, limits)
    except SpecError as error:
        # Every image was held to its profile before, so this is the end record of a ZIP archive.
        if error.code == "E_CODEC":
            what = plan.describe_member(error.member)
            raise UserInputError.make("E_DATA", f"{what}: {error}") from None
        raise


def _publish(temporary: Path, path: Path, force: bool) -> None:
    """Give the verified file its name.

    Raises:
        HelloIOError: somebody else made the target meanwhile (E_TARGET), or E_WRITE.
    """
    try:
        if force:
            temporary.replace(path)
            return
        create_new(temporary, path)
    except OSError as error:
        raise _write_error(error) from error
    # The target is complete; a second name that cannot be removed is what the next writer removes.
    with contextlib.suppress(OSError):
        temporary.unlink()


def _synchronise_directory(path: Path) -> None:
    """Make the new name survive a power cut.

    Raises:
        HelloIOError: E_DURABILITY; the file is in place all the same.
    """
    try:
        sync_directory(path.parent)
    except OSError as error:
        raise HelloIOError.make(
            "E_DURABILITY",
            f"{printable(path)} is written, but its directory could not be synchronised: "
            f"{error.strerror}; durability unknown",
        ) from error
