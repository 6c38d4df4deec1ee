"""Verify a whole archive: make every check of reading, in file order.

Images are read in large windows, several at once; the error is still the first fault in file order.
Images are held to the profile of their codec and the dimensions in the index, and their compressed
data is walked to its end (``image_data``). ``pixels=True`` decodes them too and returns one digest
of all pixels, equal on every platform for PNG and packed archives.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from hellofmt.archive.format.layout import BLOCK, TRAILER, padded, section_member
from hellofmt.archive.format.limits import DEFAULT_LIMITS, Limits
from hellofmt.archive.format.manifest import UNSET
from hellofmt.archive.parallel import cut_windows, map_ordered
from hellofmt.archive.read.checks import check_dimensions, check_image_digest, check_section_digest
from hellofmt.archive.read.open import open_archive
from hellofmt.archive.read.set import HelloSet
from hellofmt.errors import CorruptError, HelloError, SpecError, UserInputError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from hellofmt.archive.format.index import Index
    from hellofmt.archive.read.archive import Archive

# Size of a window; one per thread and one ahead are in memory.
_WINDOW_BYTES: Final = 2 << 20


@dataclass(frozen=True)
class VerifyReport:
    """The result of a verification.

    Attributes:
        id: identity of the file.
        content_id: identity of the content.
        checks: names of the checks that passed, in order.
        images: number of images that were read.
        bytes: length of the file in bytes.
        pixel_digest: ``sha256:...`` over the pixels of all images in order, if they were decoded.

    Example:
        >>> import hellofmt
        >>> report = hellofmt.verify("photos.hello", pixels=True)
        >>> report.images, report.pixel_digest[:7]
        (60, 'sha256:')
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
        limits: size limits.
        progress: called with the number of images done and in all.
        pixels: decode every image too.
        storage_options: options for a URL, see ``open_archive``. No cache is used.

    Returns:
        A report of what was verified; every fault raises.

    Raises:
        OSError: missing, a directory, not permitted.
        HelloError: the first fault in file order; see ``open_archive`` and ``Archive``.
        UserInputError: unknown level, or ``pixels`` without ``full`` (E_OPTION).

    Example:
        >>> import hellofmt
        >>> hellofmt.verify("photos.hello").images
        60
    """
    if level not in ("full", "fast") or (pixels and level == "fast"):
        text = f"`level`; expected full, or fast without `pixels`, got {level}"
        raise UserInputError.make("E_OPTION", text)
    with open_archive(
        path, expect=expect, limits=limits, storage_options=storage_options, cache_dir=""
    ) as file:
        digest = hashlib.sha256() if pixels else None
        pinned = ["expect"] if expect is not None else []
        done, total = 0, len(file)

        def advance(row: int) -> None:
            if progress is not None:
                progress(done + row, total)

        if isinstance(file, HelloSet):
            checks = [*pinned, "set"]
            file.check_content()
            for number, shard in enumerate(file.shards):
                passed = _verify(shard, level, [], advance, digest)
                checks += [f"shard {number} {check}" for check in passed]
                done += len(shard)
        else:
            checks = _verify(file, level, pinned, advance, digest)
        return VerifyReport(
            id=file.id,
            content_id=file.content_id,
            checks=checks,
            images=total if level == "full" else 0,
            bytes=file.size_bytes,
            pixel_digest=None if digest is None else f"sha256:{digest.hexdigest()}",
        )


def verify_copy(path: str | os.PathLike[str], expect: str, limits: Limits) -> None:
    """Verify an archive whose images were walked over while they were written.

    Makes every check of ``verify_archive`` but for the profile of images that are files, whose
    digests say that they are those images.
    """
    with open_archive(path, expect=expect, limits=limits, cache_dir="") as file:
        _verify(file, "full", [], None, None, walks=False)


def _verify(
    file: Archive,
    level: str,
    pinned: list[str],
    advance: Callable[[int], None] | None,
    digest: Any,
    *,
    walks: bool = True,
) -> list[str]:
    """Verify one file; return the names of the checks that it passed."""
    import numpy as np

    checks = ["manifest", "id", *pinned, "length", "headers"]
    index = file.index
    for name in file.section_sizes():
        # The index was read above, and pixels are read with the images.
        if name not in ("index", "pixels"):
            file.section(name)
        if name != "pixels":
            checks.append(f"section {name}")
    if level == "fast":
        return checks
    if index is not None:
        is_packed = file.has_section("pixels")
        decodes = digest is not None
        rows = (
            _verify_packed(file, index)
            if is_packed
            else _verify_files(file, index, walks=walks, decodes=decodes)
        )
        with contextlib.closing(rows):
            for row in rows:
                if digest is not None:
                    digest.update(np.ascontiguousarray(file.decode_image(row)))
                if advance is not None:
                    advance(row + 1)
        checks.append("images")
        if digest is not None:
            checks.append("pixels")
    _verify_end(file)
    return [*checks, "trailer"]


def _verify_files(file: Archive, index: Index, *, walks: bool, decodes: bool) -> Generator[int]:
    """Verify image after image; yield each row once it is verified, for the caller to decode."""
    start, end = index.offset - BLOCK, index.offset + padded(index.size)

    def check(rows: range) -> range:
        try:
            _check_window(file, index, rows, end, walks=walks, decodes=decodes)
        except (CorruptError, SpecError) as error:
            # An image before the one that failed may be damaged, and is not decoded yet.
            if decodes:
                # Its frames hold the window.
                error.__traceback__ = None
                _check_window(file, index, rows, end, walks=walks, decodes=False)
            raise
        return rows

    def large(rows: range) -> bool:
        return int(end[rows[-1]] - start[rows[0]]) > _WINDOW_BYTES

    windows = map_ordered(check, cut_windows(start, end, _WINDOW_BYTES), alone=large)
    with contextlib.closing(windows):
        for rows in windows:
            yield from rows


def _check_window(
    file: Archive,
    index: Index,
    rows: range,
    end: NDArray[np.int64],
    *,
    walks: bool,
    decodes: bool,
) -> None:
    """Verify neighbouring images, which end at ``end``; the error is that of the first that fails.

    JPEG images that are decoded next are not walked over: their decoder refuses the same.
    """
    from hellofmt.archive.format.image_data import check_image_data
    from hellofmt.archive.format.images import parse_image

    images = file.manifest.images
    codec = "" if images is UNSET else images.codec
    base = int(index.offset[rows[0]]) - BLOCK
    window = file.source.read(base, int(end[rows[-1]]) - base)
    span = slice(rows.start, rows.stop)
    columns = (index.offset[span] - BLOCK, end[span], index.height[span], index.width[span])
    facts = zip(rows, *(column.tolist() for column in columns), strict=True)
    for row, at, stop, height, width in facts:
        data = _check_member(file, row, window[at - base : stop - base], at)
        if not walks:
            continue
        try:
            shape = parse_image(data, codec)
            # Limits need no check: the index was checked with the same dimensions and sizes.
            check_dimensions(shape, height, width, "")
            if not (decodes and codec == "jpeg"):
                check_image_data(data, codec, shape)
        except HelloError as error:
            # A name costs as much as the checks, so only a refused image gets one.
            error.member = error.member or file.image_name(row)
            raise


def _check_member(file: Archive, row: int, block: bytes, offset: int) -> bytes:
    """Return the image of a member that failed, if a second read verifies; else raise."""

    def check(blocks: list[bytes]) -> bytes:
        return file.check_image(row, blocks[0])

    return file.checked([block], [(offset, len(block))], check)


def _verify_packed(file: Archive, index: Index) -> Generator[int]:
    """Verify the pixels section and every row in it, without loading all of it."""
    section = next(s for s in file.manifest.sections if s.name == "pixels")
    start, end = file.section_offset("pixels"), file.section_offset("pixels") + section.size
    first, size = int(index.offset[0]), int(index.size[0])
    whole = hashlib.sha256(file.source.read(start, first - start))
    step = max(1, _WINDOW_BYTES // size)
    for begin in range(0, len(index), step):
        rows = range(begin, min(begin + step, len(index)))
        place = first + begin * size, len(rows) * size

        def check(blocks: list[bytes], rows: range = rows) -> bytes:
            window = memoryview(blocks[0])
            for i, row in enumerate(rows):
                check_image_digest(
                    window[i * size : (i + 1) * size],
                    index.sha256[row].tobytes(),
                    file.image_name(row),
                    first + row * size,
                )
            return blocks[0]

        whole.update(file.checked([file.source.read(*place)], [place], check))
        yield from rows
    if first + len(index) * size != end:
        raise SpecError.make("E_TENSOR", "bytes after the pixels", member=section_member("pixels"))
    check_section_digest("sha256:" + whole.hexdigest(), section.digest, section_member("pixels"))


def _verify_end(file: Archive) -> None:
    """Check the two final zero blocks."""
    place = file.images_end, len(TRAILER)

    def check(blocks: list[bytes]) -> bytes:
        if blocks[0] != TRAILER:
            text = "the last 1024 bytes; expected zeros"
            raise CorruptError.make("E_TRAILING", text, offset=file.images_end)
        return blocks[0]

    file.checked([file.source.read(*place)], [place], check)
