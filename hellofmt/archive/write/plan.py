"""Plan a file before its first byte is written, then write it in order."""

from __future__ import annotations

import contextlib
import hashlib
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import numpy as np

from hellofmt.archive.format.classes import class_bytes
from hellofmt.archive.format.columns import check_columns
from hellofmt.archive.format.compress import stored_section
from hellofmt.archive.format.digest import content_id
from hellofmt.archive.format.functions import FUNCTION_SECTIONS, section_order
from hellofmt.archive.format.images import ImageShape, decode_parsed, parse_png_header
from hellofmt.archive.format.implied import section_tensors
from hellofmt.archive.format.index import index_section
from hellofmt.archive.format.label_function import LabelFunction, Probes
from hellofmt.archive.format.layout import (
    BLOCK,
    ID_SIZE,
    TRAILER,
    front_members,
    header,
    image_name,
    member_parts,
    padded,
    section_member,
)
from hellofmt.archive.format.limits import Limits, check_limit
from hellofmt.archive.format.manifest import (
    UNSET,
    Column,
    Dataset,
    Images,
    Manifest,
    Producer,
    Section,
)
from hellofmt.archive.format.parse import manifest_bytes, parse_manifest
from hellofmt.archive.format.record import parse_record, record_bytes
from hellofmt.archive.format.tensors import (
    StoredTensor,
    serialize_tensors,
    tensor_header,
    tensors_size,
)
from hellofmt.archive.format.validate import check_manifest_limits
from hellofmt.archive.parallel import map_chunks
from hellofmt.archive.write.images import Found, write_images
from hellofmt.archive.write.measure import Row, measured
from hellofmt.archive.write.whole_file import FLUSH_BYTES, write_all
from hellofmt.errors import HelloError, SpecError, UserInputError, printable
from hellofmt.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from hellofmt.archive.format.manifest import Base, Shard
    from hellofmt.archive.format.tensors import TensorKind
    from hellofmt.archive.write.draft import Draft, ImageSet


_COLUMN_DTYPES: Final[dict[str, Literal["F32", "I32", "U8", "U64"]]] = {
    "float32": "F32",
    "int32": "I32",
    "uint8": "U8",
    "uint64": "U64",
}
# Pixels that a thread decodes at a time.
_CHUNK_BYTES: Final = 1 << 18


class Plan:
    """Sizes, sections and layout of a file, known before its first byte is written."""

    def __init__(self, draft: Draft, limits: Limits, *, divided: bool = False) -> None:
        """Plan a file, or the data set whose files are planned by ``narrow``.

        Raises:
            UserInputError: the draft cannot be an archive (E_DATA, E_OPTION).
            LimitError: above ``limits``.
            OSError: an image cannot be read.
        """
        self._draft = draft
        self._limits = limits
        self._divided = divided
        self._end = -1
        # Height, width and digest of every image, once they are written.
        self.found: Found | None = None
        self._rows: list[Row] = []
        self._shape: ImageShape | None = None
        self._columns: dict[str, NDArray[Any]] = {}
        self._stored: dict[str, tuple[Section, bytes]] = {}
        self._store("classes", class_bytes(draft.classes))
        first = draft.projector
        self._parts = [] if first is None else [first, *draft.further]
        tensors: dict[str, bytes] = {}
        for part in self._parts:
            end = "" if part is first else f"_{part.name}"
            probes = {"logits": StoredTensor.from_numpy(part.probe_logits)}
            kinds = zip(
                FUNCTION_SECTIONS, (part.adapter_tensors, part.head_tensors, probes), strict=True
            )
            tensors |= {f"{kind}{end}": serialize_tensors(stored) for kind, stored in kinds}
        if first is not None and first.base_tensors is not None:
            tensors["base"] = serialize_tensors(first.base_tensors)
        for name, raw in tensors.items():
            self._store(name, raw)
        if draft.record is not None:
            self._store("record", record_bytes(draft.record))
        for name, text in (("card", draft.card), ("license", draft.license)):
            try:
                if text:
                    self._store(name, text.encode("utf-8"))
            except UnicodeEncodeError:
                text = f"`{name}` contains a lone surrogate"
                raise UserInputError.make("E_DATA", text) from None
        if draft.images is not None:
            self._measure_images(draft.images)
        self._check(tensors)

    def _store(self, name: str, raw: bytes) -> None:
        self._stored[name] = stored_section(name, raw)

    def _measure_images(self, images: ImageSet) -> None:
        """Determine size and order of the images, and whether they are packed."""
        if not images.items:
            raise UserInputError.make("E_DATA", "no images to pack; expected at least one")
        if not self._divided:
            check_limit(self._limits, "images", len(images.items))
        classes = len(self._draft.classes)
        for position, item in enumerate(images.items):
            if not 0 <= item.label < classes:
                text = f"image {position} has label {item.label}; expected 0 to {classes - 1}"
                raise UserInputError.make("E_DATA", text)
            row = measured(item, position)
            if row.size == 0:
                raise UserInputError.make("E_DATA", f"{row.describe()} is empty")
            if row.size > self._limits.image_bytes:
                check_limit(self._limits, "image_bytes", row.size, member=row.describe())
            self._rows.append(row)
        self._rows.sort(key=lambda row: row.label)
        self._columns = self._in_order(images)
        if images.layout == "packed" and images.codec != "png":
            text = f"packed needs codec png, whose pixels are exact everywhere, got {images.codec}"
            raise UserInputError.make("E_OPTION", text, argument="layout")
        if images.layout != "files" and images.codec == "png":
            self._shape = self._packed_shape(images.layout)
        self._store_blanks()

    def _store_blanks(self) -> None:
        """Store index and pixels of the right size, which is all that the front depends on."""
        count, shape = len(self._rows), self._shape
        blank = np.zeros(count, np.int64)
        self._store_index(blank, blank, np.zeros((count, 32), np.uint8))
        if shape is not None:
            size = tensors_size(self._pixel_kinds(shape))
            self._store_pixels("sha256:" + "0" * 64, size)

    def _pixel_kinds(self, shape: ImageShape) -> dict[str, TensorKind]:
        return {"pixels": ("U8", (len(self._rows), *shape))}

    def _store_pixels(self, digest: str, size: int) -> None:
        """Keep the manifest's entry; the pixels themselves are written with the images."""
        section = Section(digest=digest, encoding="none", name="pixels", size=size)
        self._stored["pixels"] = section, b""

    def narrow(self, shard: Shard, end: int) -> None:
        """Make the plan of a data set, a copy of it, that of one file: rows ``shard.first`` to end.

        Copies share what all files store. The ``content_id`` is not known yet.

        Raises:
            LimitError: the file would be above the limits.
        """
        draft, images, rows = self._draft, self._draft.images, slice(shard.first, end)
        if images is not None:
            # A shard may be written by another process, which needs its own rows alone.
            images = replace(images, items=(), columns={})
        dataset, extras = self._dataset(), dict(draft.extras)
        self._draft = replace(draft, dataset=dataset, extras=extras, images=images, shard=shard)
        self._rows = self._rows[rows]
        self._columns = {name: values[rows] for name, values in self._columns.items()}
        self._stored = dict(self._stored)
        self._store_blanks()
        check_limit(self._limits, "images", len(self._rows))
        check_manifest_limits(self.manifest(), self._limits)

    def join(self, parts: Sequence[Plan]) -> str:
        """Take over what all files of the data set, in order, found in their images.

        Returns:
            The content_id of the data set.
        """
        columns = [part.found for part in parts if part.found is not None]
        height, width, digests = (np.concatenate(column) for column in zip(*columns, strict=True))
        self._store_index(height, width, digests)
        return content_id(manifest_bytes(self.manifest(), self._draft.extras))

    def _in_order(self, images: ImageSet) -> dict[str, NDArray[Any]]:
        """Return the further columns in the order of the rows."""
        position = [row.position for row in self._rows]
        ordered: dict[str, NDArray[Any]] = {}
        for name, values in sorted(images.columns.items()):
            dtype = np.asarray(values).dtype
            if dtype.name not in _COLUMN_DTYPES or len(values) != len(position):
                text = (
                    f"column {printable(name)}: expected {len(position)} rows of "
                    f"{', '.join(_COLUMN_DTYPES)}, got {len(values)} of {dtype.name}"
                )
                raise UserInputError.make("E_DATA", text)
            ordered[name] = np.asarray(values)[position]
        return ordered

    def _packed_shape(self, layout: str) -> ImageShape | None:
        """Return the common shape of all images, or None if they are not packed."""
        common: ImageShape | None = None
        for row in self._rows:
            try:
                shape = parse_png_header(row.read_head(33))
            except HelloError as error:
                raise UserInputError.make("E_DATA", f"{row.describe()}: {error}") from error
            # Its size in bytes is not known yet.
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
        # A packed archive has one header and the few bytes of one tensor header.
        packed_size = 2 * BLOCK + padded(math.prod(common) * len(self._rows))
        files_size = sum(BLOCK + padded(row.size) for row in self._rows)
        return common if layout == "packed" or packed_size < files_size else None

    def _store_index(
        self, height: NDArray[Any], width: NDArray[Any], sha256s: NDArray[np.uint8]
    ) -> None:
        size = np.array([row.size for row in self._rows], np.int64)
        if self._shape is not None:
            size[:] = math.prod(self._shape)
        label = np.array([row.label for row in self._rows], np.int64)
        found = {"size": size, "label": label, "height": height, "width": width, "sha256": sha256s}
        self._store("index", index_section({**found, **self._columns}))

    def _images(self, images: ImageSet) -> Images:
        """Build the manifest's group `images`."""
        shape = self._shape
        columns = [
            Column(dtype=_COLUMN_DTYPES[v.dtype.name], name=name, shape=list(v.shape[1:]))
            for name, v in self._columns.items()
        ]
        about: dict[str, Any] = {"count": len(self._rows), "columns": columns or UNSET}
        if images.order is not None:
            about["order"] = images.order
        if shape is not None:
            return Images(codec="raw", layout="packed", span=0, shape=list(shape), **about)
        span = sum(BLOCK + padded(row.size) for row in self._rows)
        return Images(codec=images.codec, layout="files", span=span, **about)

    def _dataset(self) -> Dataset:
        """Return the data set with ``ipc`` from the images; a shard keeps that of the whole set."""
        dataset = self._draft.dataset
        if self._draft.shard is not None:
            return dataset
        classes = len(self._draft.classes)
        counts = np.bincount([row.label for row in self._rows], minlength=classes)
        even = bool(self._rows) and bool((counts == counts[0]).all())
        return msgspec.structs.replace(dataset, ipc=int(counts[0]) if even else UNSET)

    def _base(self) -> Base:
        """Return the one base of all label functions, with its text tower if one needs it."""
        bases = [part.base for part in self._parts]
        other = next((base for base in bases if base.digest != bases[0].digest), None)
        if other is not None:
            digests = f"{bases[0].digest} and {other.digest}"
            text = f"label functions of one archive have one base; got {digests}"
            raise UserInputError.make("E_DATA", text)
        return next((base for base in bases if base.text is not UNSET), bases[0])

    def manifest(self) -> Manifest:
        """Build the manifest; its length is final even before the index is known."""
        draft = self._draft
        functions = [
            LabelFunction(
                adapter=part.adapter,
                head=part.head,
                name=part.name,
                probes=Probes(count=len(part.probe_logits)),
                task="classification",
            )
            for part in self._parts
        ]
        manifest = Manifest(
            classes=len(draft.classes),
            dataset=self._dataset(),
            hello="1.0",
            producer=draft.producer or Producer(name="hellofmt", version=VERSION),
            requires=["images.packed"] if self._shape is not None else [],
            sections=[],
            views=draft.views,
            base=self._base() if functions else UNSET,
            functions=functions or UNSET,
            images=self._images(draft.images) if draft.images is not None else UNSET,
            label_function=draft.label_function or UNSET,
            shard=draft.shard or UNSET,
        )
        ordered = [self._stored[name][0] for name in self._names(manifest)]
        return msgspec.structs.replace(manifest, sections=ordered)

    def _names(self, manifest: Manifest) -> list[str]:
        """Return the sections that are stored, in file order."""
        return [name for name in section_order(manifest) if name in self._stored]

    def _check(self, tensors: Mapping[str, bytes]) -> None:
        """Refuse early what the reader would refuse in the finished file."""
        manifest = self.manifest()
        data = manifest_bytes(manifest, self._draft.extras)
        try:
            parse_manifest(data)
            check_columns(self._columns, manifest.classes)
            if self._draft.record is not None:
                parse_record(record_bytes(self._draft.record))
            for name, raw in tensors.items():
                section_tensors(raw, manifest, name)
        except SpecError as error:
            raise UserInputError.make("E_DATA", f"cannot be packed: {error}") from None
        if not self._divided:
            check_manifest_limits(manifest, self._limits)

    def write(self, fd: int, progress: Callable[[int, int], None] | None) -> str:
        """Write the archive into an empty file; return its id."""
        self.write_images(fd, progress)
        return self.write_front(fd)

    def write_images(self, fd: int, progress: Callable[[int, int], None] | None) -> None:
        """Write the images in place, which leaves room for the front of the file."""
        if self._shape is not None:
            self._write_pixels(fd, self._shape, progress)
        elif self._draft.images is not None:
            self._write_files(fd, self._draft.images, progress)

    def write_front(self, fd: int, whole: str | None = None) -> str:
        """Write all but the images; return the id of the archive.

        ``whole`` is the content_id of the data set of which this is a shard; None keeps the
        draft's.
        """
        if whole is not None and self._draft.shard is not None:
            shard = msgspec.structs.replace(self._draft.shard, content_id=whole)
            self._draft = replace(self._draft, shard=shard)
        manifest = self.manifest()
        data = manifest_bytes(manifest, self._draft.extras)
        archive_id, front = front_members(data)
        parts = [front]
        for name in self._names(manifest):
            if name != "pixels":
                parts += member_parts(section_member(name), self._stored[name][1])
        at = 0
        for part in parts:
            write_all(fd, part, at)
            at += len(part)
        write_all(fd, TRAILER, max(self._end, at))
        return archive_id

    @property
    def size_bytes(self) -> int:
        """Bytes of the file."""
        if self._shape is not None:
            images = BLOCK + padded(self._stored["pixels"][0].size)
        else:
            images = sum(BLOCK + padded(row.size) for row in self._rows)
        return self._front_size() + images + len(TRAILER)

    def _front_size(self) -> int:
        """Return the number of bytes before the first image, or before the pixels."""
        data = manifest_bytes(self.manifest(), self._draft.extras)
        sizes = [len(data), ID_SIZE]
        sizes += [len(stored) for name, (_, stored) in self._stored.items() if name != "pixels"]
        return sum(BLOCK + padded(size) for size in sizes)

    def _write_files(
        self, fd: int, images: ImageSet, progress: Callable[[int, int], None] | None
    ) -> None:
        """Write every image in place and store their index."""
        shard, classes = self._draft.shard, len(self._draft.classes)
        first, total = (0, len(self._rows)) if shard is None else (shard.first, shard.total)

        def name_of(number: int) -> str:
            label = self._rows[number].label
            return image_name(label, first + number, images.codec, classes, total)

        self._end, self.found = write_images(
            fd, self._rows, name_of, images.codec, self._front_size(), self._limits, progress
        )
        self._store_index(*self.found)

    def _write_pixels(
        self, fd: int, shape: ImageShape, progress: Callable[[int, int], None] | None
    ) -> None:
        """Write the pixels of every image in place, and store their index."""
        count = len(self._rows)
        digests = np.zeros((count, 32), np.uint8)
        front, size = tensor_header(self._pixel_kinds(shape)), self._stored["pixels"][0].size
        whole, at = hashlib.sha256(front), self._front_size()
        waiting = bytearray(header(section_member("pixels"), size) + front)
        self._end = at + BLOCK + padded(size)

        def decoded(pair: tuple[Row, bytes]) -> tuple[bytes, bytes]:
            row, data = pair
            if row.check(data, "png", self._limits)[0] != shape:
                raise row.changed()
            pixels = decode_parsed(data, "png", shape).tobytes()
            return pixels, hashlib.sha256(pixels).digest()

        # Read in this thread: what a caller's function is allowed to expect.
        read = ((row, row.read()) for row in self._rows)
        chunk = max(1, _CHUNK_BYTES // math.prod(shape))
        with contextlib.closing(map_chunks(decoded, read, chunk)) as done:
            for i, (pixels, digest) in enumerate(done):
                digests[i] = np.frombuffer(digest, np.uint8)
                whole.update(pixels)
                waiting += pixels
                if len(waiting) >= FLUSH_BYTES:
                    write_all(fd, waiting, at)
                    at += len(waiting)
                    waiting.clear()
                if progress is not None:
                    progress(i + 1, count)
        write_all(fd, bytes(waiting) + bytes(padded(size) - size), at)
        self._store_pixels(f"sha256:{whole.hexdigest()}", size)
        height, width = (np.full(count, side, np.int64) for side in shape[:2])
        self.found = height, width, digests
        self._store_index(*self.found)
