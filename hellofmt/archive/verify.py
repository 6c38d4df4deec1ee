"""Verifying a whole archive: everything that reading checks on demand, in file order, at once.

Images are read in large windows, so that the cost is that of hashing. They are held to the profile
of their codec and to the dimensions in the index without being decoded; ``pixels=True`` decodes
them too and gives one digest of all pixels, equal on every platform for PNG and packed archives.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from hellofmt.archive.layout import (
    BLOCK,
    TRAILER,
    ZIP_END,
    ZIP_TAIL,
    describe_header,
    header,
    padded,
    section_member,
)
from hellofmt.archive.limits import DEFAULT_LIMITS, Limits
from hellofmt.archive.manifest import UNSET
from hellofmt.archive.reader import (
    EarlierMembers,
    HelloFile,
    check_dimensions,
    check_image_digest,
    check_padding,
    check_section_digest,
    open_archive,
)
from hellofmt.errors import CorruptError, SpecError, UserInputError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from hellofmt.archive.index import Index

__all__ = ["VerifyReport", "verify_archive"]

_WINDOW_BYTES: Final = 8 << 20


@dataclass(frozen=True)
class VerifyReport:
    """What was verified.

    Attributes:
        id: identity of the file.
        content_id: identity of the content.
        checks: names of the checks that passed, in order.
        images: images that were read.
        bytes: length of the file.
        pixel_digest: ``sha256:...`` over the pixels of all images in order, if they were decoded.
    """

    id: str
    content_id: str
    checks: list[str] = field(default_factory=list[str])
    images: int = 0
    bytes: int = 0
    pixel_digest: str | None = None


def verify_archive(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    level: Literal["full", "fast"] = "full",
    expect: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    progress: Callable[[int, int], None] | None = None,
    pixels: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> VerifyReport:
    """Check every byte of an archive, or (``fast``) all but the images.

    Args:
        path: a ``.hello`` file, a URL, or the files of a sharded set; see ``open_archive``.
        level: ``full``; or ``fast``, which reads every section but no image.
        expect: the ``id`` it must have.
        limits: what to refuse for size.
        progress: called with images done and images in all.
        pixels: decode every image too.
        storage_options: of a URL, see ``open_archive``. No cache takes part.

    Returns:
        What was verified; a fault never comes back as a report.

    Raises:
        OSError: missing, a directory, not permitted.
        HelloError: the first fault in file order; see ``open_archive`` and ``HelloFile``.
        UserInputError: another level, or ``pixels`` without ``full`` (E_OPTION).
    """
    if level not in ("full", "fast") or (pixels and level == "fast"):
        raise UserInputError.make(
            "E_OPTION", f"`level`; expected full, or fast without `pixels`, got {level}"
        )
    with open_archive(
        path, expect=expect, limits=limits, storage_options=storage_options, cache_dir=""
    ) as file:
        digest = hashlib.sha256() if pixels else None
        pinned = ["expect"] if expect is not None else []
        if file.shards[0] is file:
            return _verify(file, level, pinned, progress, digest)
        return _verify_set(file, level, pinned, progress, digest)


def _verify_set(
    file: HelloFile,
    level: str,
    pinned: list[str],
    progress: Callable[[int, int], None] | None,
    digest: Any,
) -> VerifyReport:
    """Verify the index over all shards, then each of them."""
    done, total = 0, len(file)
    checks = [*pinned, "set"]
    _ = file.index

    def advance(row: int, _total: int) -> None:
        if progress is not None:
            progress(done + row, total)

    for number, shard in enumerate(file.shards):
        report = _verify(shard, level, [], advance, digest)
        done += report.images
        checks += [f"shard {number} {check}" for check in report.checks]
    return VerifyReport(
        id=file.id,
        content_id=file.content_id,
        checks=checks,
        images=done,
        bytes=file.size_bytes,
        pixel_digest=None if digest is None else f"sha256:{digest.hexdigest()}",
    )


def _verify(
    file: HelloFile,
    level: str,
    pinned: list[str],
    progress: Callable[[int, int], None] | None,
    digest: Any,
) -> VerifyReport:
    checks = ["manifest", "id", *pinned, "length", "headers"]
    index = file.index
    for name in file.section_sizes():
        # The index was read above, and pixels are read with the images.
        if name not in ("index", "pixels"):
            file.section(name)
        if name != "pixels":
            checks.append(f"section {name}")
    done = 0
    if level == "full":
        if index is not None:
            verify_images = _verify_packed if file.has_section("pixels") else _verify_files
            for row in verify_images(file, index):
                if digest is not None:
                    digest.update(file.decode_image(row).tobytes())
                done = row + 1
                if progress is not None:
                    progress(done, len(index))
            checks.append("images")
            if digest is not None:
                checks.append("pixels")
        _verify_end(file)
        checks += ["trailer", "no zip"]
    return VerifyReport(
        id=file.id,
        content_id=file.content_id,
        checks=checks,
        images=done,
        bytes=file.size_bytes,
        pixel_digest=None if digest is None else f"sha256:{digest.hexdigest()}",
    )


def _verify_files(file: HelloFile, index: Index) -> Iterator[int]:
    """Verify image after image; yields each row once it holds."""
    from hellofmt.archive.images import parse_image

    images = file.manifest.images
    codec = "" if images is UNSET else images.codec
    starts = (index.offset - BLOCK).tolist()
    sizes, heights, widths = index.size.tolist(), index.height.tolist(), index.width.tolist()
    ends = [start + BLOCK + padded(size) for start, size in zip(starts, sizes, strict=True)]
    window, base = memoryview(b""), 0
    last, total = 0, len(starts)
    for row in range(total):
        if row == last:
            base = starts[row]
            while last < total and (last == row or ends[last] - base <= _WINDOW_BYTES):
                last += 1
            window = memoryview(file.source.read(base, ends[last - 1] - base))
        at, size, name = starts[row] - base, sizes[row], file.image_name(row)
        block = bytes(window[at : at + BLOCK])
        data: bytes | memoryview = window[at + BLOCK : at + BLOCK + size]
        try:
            if block != header(name, size):
                raise describe_header(block, name, size, EarlierMembers(file, row))
            check_image_digest(data, index.sha256[row].tobytes(), name, starts[row] + BLOCK)
            check_padding(
                window[at + BLOCK + size : ends[row] - base], name, starts[row] + BLOCK + size
            )
        except (CorruptError, SpecError):
            if not file.source.is_remote:
                raise
            # It may have been an accident on the way.
            data = file.read_image(row)
        shape = parse_image(data, codec, member=name)
        # The limits hold too: these are the dimensions and the size that the index was judged by.
        check_dimensions(shape, heights[row], widths[row], name)
        yield row


def _verify_packed(file: HelloFile, index: Index) -> Iterator[int]:
    """Verify the pixels section and every row in it, without holding it in memory."""
    section = next(s for s in file.manifest.sections if s.name == "pixels")
    start, end = file.section_offset("pixels"), file.section_offset("pixels") + section.size
    first, size = int(index.offset[0]), int(index.size[0])
    whole = hashlib.sha256(file.source.read(start, first - start))
    step = max(1, _WINDOW_BYTES // size)
    for begin in range(0, len(index), step):
        rows = range(begin, min(begin + step, len(index)))
        place = first + begin * size, len(rows) * size

        def check(found: list[bytes], rows: range = rows) -> bytes:
            window = memoryview(found[0])
            for i, row in enumerate(rows):
                check_image_digest(
                    window[i * size : (i + 1) * size],
                    index.sha256[row].tobytes(),
                    file.image_name(row),
                    first + row * size,
                )
            return found[0]

        whole.update(file.checked([file.source.read(*place)], [place], check))
        yield from rows
    if first + len(index) * size != end:
        raise SpecError.make("E_TENSOR", "bytes after the pixels", member=section_member("pixels"))
    check_section_digest("sha256:" + whole.hexdigest(), section.digest, section_member("pixels"))


def _verify_end(file: HelloFile) -> None:
    """The two zero blocks, and no ZIP archive that ends where this file ends."""
    place = file.images_end, len(TRAILER)

    def check(found: list[bytes]) -> bytes:
        if found[0] != TRAILER:
            raise CorruptError.make(
                "E_TRAILING", "the last 1024 bytes; expected zeros", offset=file.images_end
            )
        return found[0]

    file.checked([file.source.read(*place)], [place], check)
    offset = find_zip_end(file.source)
    if offset is not None:
        raise SpecError.make(
            "E_CODEC",
            f"the end record of a ZIP archive; expected none in the last {ZIP_TAIL} bytes",
            member=member_at(file, offset),
            offset=offset,
        )


def find_zip_end(source: Any) -> int | None:
    """Offset of the last ZIP end record that ZIP readers would find, or None."""
    size = min(source.size, ZIP_TAIL)
    at = source.read(source.size - size, size).rfind(ZIP_END)
    return None if at < 0 else source.size - size + at


def member_at(file: HelloFile, offset: int) -> str:
    """Name of the member whose bytes lie at ``offset`` of the file."""
    name = "__hello__/manifest"
    for section in file.section_sizes():
        if file.section_offset(section) <= offset:
            name = section_member(section)
    index = file.index
    if index is not None and index.offset[0] <= offset:
        row = int((index.offset <= offset).sum()) - 1
        name = file.image_name(row)
    return name
