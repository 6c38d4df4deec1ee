"""What an archive stores of the images of a source, found in one pass over them.

Without re-encoding an image is stored as it is, so the pass reads what tells its type. With it, an
image of another codec, outside the profile of its codec or larger than asked for is decoded and
encoded once, in threads, into a file without a name beside the archive. The writer reads it there.
Whatever is refused is refused by name, all of it at once.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
from PIL import Image

from hellofmt.archive.format.image_data import check_image_data
from hellofmt.archive.format.images import (
    ImageShape,
    check_image_limits,
    encode_image,
    parse_image,
)
from hellofmt.archive.format.limits import IMAGE_SIDE, check_fixed, check_limit
from hellofmt.archive.parallel import map_chunks
from hellofmt.archive.storage.local_files import read_at
from hellofmt.archive.write.draft import ImageItem
from hellofmt.archive.write.whole_file import waiting_file, write_all
from hellofmt.errors import HelloError, LimitError, UserInputError, naming, printable
from hellofmt.sources.content import HEAD_BYTES, codec_of, fact_of, has_orientation, is_misnamed
from hellofmt.sources.decode import GREY, MISNAMED, ORIENTED, SHRUNK, is_grey, open_image, to_rgb
from hellofmt.sources.files import read_head

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from numpy.typing import NDArray

    from hellofmt.archive.format.images import Codec
    from hellofmt.archive.format.limits import Limits
    from hellofmt.sources.source import Source


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was found out about one image.

    ``size`` counts the bytes to store, if they were seen, ``walked`` is their digest if they were
    walked over as well, and ``data`` has them if they are not the image's own. An unreadable image
    that is left out has neither these nor a refusal.
    """

    codec: Codec = "png"
    kinds: tuple[str, ...] = ()
    size: int | None = None
    walked: bytes | None = None
    data: bytes | None = None
    refusal: HelloError | None = None
    is_left_out: bool = False


class StoredImages:
    """The images of a source as a writer takes them; ``close`` deletes what was converted."""

    def __init__(
        self,
        images: Source,
        limits: Limits,
        target: Path,
        *,
        reencode: Codec | None,
        max_side: int | None,
    ) -> None:
        """Prepare to look at images.

        Whether unreadable images are skipped, the source says; such as can be read, but are outside
        their profile or above a limit, are refused all the same. Converted images wait beside the
        target to be written.
        """
        self.items: list[ImageItem] = []
        self.codecs: list[Codec] = []
        self._images, self._limits = images, limits
        self._reencode: Codec | None = reencode
        self._max_side = max_side
        # A thread takes so many at once: few where each takes long.
        self._chunk = 256 if reencode is None else 8
        self._target, self._fd, self._end = target, -1, 0
        self._stack = ExitStack()

    @property
    def has_converted(self) -> bool:
        """Whether images were converted, which only this process can read."""
        return self._fd >= 0

    def close(self) -> None:
        """Delete what was converted."""
        self._stack.close()

    def look(self, progress: Callable[[int, int], None] | None, say: Callable[[str], None]) -> None:
        """Look at every image, and convert those that must be."""
        images = self._images
        refusals: list[HelloError] = []
        with closing(self._seen(is_checked=images.skips_unreadable)) as seen:
            for row, one in enumerate(seen):
                if progress is not None:
                    progress(row + 1, len(images))
                if one.refusal is not None:
                    refusals.append(one.refusal)
                    continue
                if one.is_left_out:
                    images.leave_out(row)
                    continue
                images.note(row, one.kinds)
                self.codecs.append(one.codec)
                self.items.append(self._item(row, one))
        if refusals and self._reencode is None:
            self.refuse_all(say)
        self._refuse(refusals, say)

    def refuse_all(self, say: Callable[[str], None]) -> None:
        """Raise for all images that a writer refuses, once it has refused one."""
        if self._reencode is not None:
            # What it gets was checked here.
            return
        is_left_out = self._images.unreadable()
        with closing(self._seen(is_checked=True)) as seen:
            pairs = zip(seen, is_left_out, strict=True)
            found = [one.refusal for one, is_out in pairs if one.refusal and not is_out]
        self._refuse(found, say)

    def _seen(self, *, is_checked: bool) -> Generator[_Seen]:
        see = partial(self._see, is_checked=is_checked)
        return map_chunks(see, range(len(self._images)), self._chunk)

    def _refuse(self, refusals: list[HelloError], say: Callable[[str], None]) -> None:
        if not refusals:
            return
        others = [one for one in refusals if not isinstance(one, LimitError)]
        # A limit can be moved, so it is the last thing to report, and then the one that allows all:
        # by the length and the digits of what would raise it.
        first = (
            others[0] if others else max(refusals, key=lambda one: (len(one.advice), one.advice))
        )
        is_several = len(refusals) > 1
        if first.code == "E_LIMIT_IMAGE_SIDE":
            codec = "" if self._reencode else " with {reencode:CODEC}"
            first.advice = f"{{max_side:{IMAGE_SIDE}}}{codec} shrinks larger images"
        if self._reencode is None and any(_has_cause(one, "E_CODEC") for one in refusals):
            what = "what is outside its profile" if is_several else "it"
            first.advice = f"{{reencode}} converts {what}"
        if is_several:
            for refusal in refusals:
                say(f"refused: {refusal.code} {refusal.where}".rstrip() + f": {refusal.message}")
            counts = f"{len(refusals):,} of {len(self._images):,} images are refused"
            first.args = (f"{first.message}; {counts}",)
        raise first

    def _item(self, row: int, seen: _Seen) -> ImageItem:
        """Describe an image to the writer."""
        label, path = int(self._images.labels[row]), self._images.path_of(row)
        if seen.data is not None:
            if self._fd < 0:
                self._fd = self._stack.enter_context(waiting_file(self._target))
            at, size = self._end, len(seen.data)
            with naming(str(self._target)):
                write_all(self._fd, seen.data, at)
            self._end += size
            return ImageItem(label, partial(read_at, self._fd, size, at), size, seen.walked)
        if path is None:
            read = cast("Callable[[], bytes]", partial(self._images.read, row))
            return ImageItem(label, read, seen.size, seen.walked)
        # A file is named by the writer, which need not read it to know its size.
        return ImageItem(label, path, walked=seen.walked)

    def _see(self, row: int, *, is_checked: bool) -> _Seen:
        """Look at one image, and convert it if it must be. Runs in threads."""
        skips = self._images.skips_unreadable
        try:
            return self._looked_at(row, is_checked=is_checked)
        except (PermissionError, FileNotFoundError):
            if not skips:
                raise
            return _Seen(is_left_out=True)
        except LimitError as error:
            return _Seen(refusal=error)
        except UserInputError as error:
            if skips and (_has_cause(error, "E_IMAGE") or not self._is_decodable(row)):
                return _Seen(is_left_out=True)
            return _Seen(refusal=error)

    def _looked_at(self, row: int, *, is_checked: bool) -> _Seen:
        """Look at one image, and at all of its bytes if that is asked for."""
        images, path = self._images, self._images.path_of(row)
        name = path or images.name_of(row)
        if path is not None:
            size = os.stat(path).st_size  # noqa: PTH116 (time)
            check_limit(self._limits, "image_bytes", size, member=name)
        is_whole = is_checked or self._reencode is not None
        data = images.read(row) if path is None or is_whole else read_head(path)
        if not isinstance(data, bytes):
            # Of a packed archive.
            return self._converted(data, (), name)
        codec = _codec_of(data, name)
        kinds = (MISNAMED,) if is_misnamed(name, codec) else ()
        if codec == "jpeg" and has_orientation(data[:HEAD_BYTES]):
            kinds = (*kinds, ORIENTED)
        if self._reencode is None:
            if is_checked:
                self._check(data, codec, name)
            return _Seen(
                codec, kinds, None if path else len(data), _digest(data) if is_checked else None
            )
        if self._is_kept(data, codec):
            return _Seen(codec, kinds, len(data), _digest(data))
        # Only WebP has no grey.
        keeps_grey = self._reencode != "webp"
        return self._converted(*_decoded(data, codec, name, kinds, keeps_grey=keeps_grey), name)

    def _is_decodable(self, row: int) -> bool:
        """Tell whether an image that is refused can be read all the same."""
        name = self._images.name_of(row)
        try:
            data = self._images.read(row)
            if isinstance(data, bytes):
                _decoded(data, _codec_of(data, name), name, (), keeps_grey=True)
        except UserInputError:
            return False
        return True

    def _is_kept(self, data: bytes, codec: Codec) -> bool:
        """Tell whether an image can be stored as it is."""
        if codec != self._reencode:
            return False
        try:
            shape = parse_image(data, codec)
            if self._max_side is not None and max(shape[:2]) > self._max_side:
                return False
            check_image_limits(shape, len(data), self._limits)
            check_image_data(data, codec, shape)
        except HelloError:
            # Whether it can be converted, its decoder says.
            return False
        return True

    def _check(self, data: bytes, codec: Codec, name: str) -> None:
        """Check an image as a writer does."""
        try:
            shape = parse_image(data, codec)
            check_image_limits(shape, len(data), self._limits, member=name)
            check_image_data(data, codec, shape)
        except LimitError:
            raise
        except HelloError as error:
            raise _named(error, name) from error

    def _converted(self, pixels: NDArray[np.uint8], kinds: tuple[str, ...], name: str) -> _Seen:
        if self._max_side is not None and max(pixels.shape[:2]) > self._max_side:
            pixels, kinds = _shrunk(pixels, self._max_side), (*kinds, SHRUNK)
        check_fixed("image_side", max(pixels.shape[:2]), IMAGE_SIDE, member=name)
        codec: Codec = self._reencode or "png"
        try:
            data = encode_image(pixels, codec)
        except UserInputError as error:
            raise _named(error, name) from error
        self._check(data, codec, name)
        return _Seen(codec, kinds, len(data), _digest(data), data)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _codec_of(data: bytes, name: str) -> Codec:
    """Return the codec of an image."""
    codec = codec_of(data)
    if codec is None:
        text = f"`{printable(name)}` is not an image in PNG, JPEG or WebP{fact_of(data)}"
        raise UserInputError.make("E_DATA", text, advice="convert or remove it")
    return codec


def _named(error: HelloError, name: str) -> UserInputError:
    text = error.message if isinstance(error, UserInputError) else str(error)
    return UserInputError.make("E_DATA", f"`{printable(name)}`: {text}")


def _has_cause(error: HelloError, code: str) -> bool:
    return isinstance(error.__cause__, HelloError) and error.__cause__.code == code


def _decoded(
    data: bytes, codec: Codec, name: str, kinds: tuple[str, ...], *, keeps_grey: bool
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Decode an image to be encoded again, and count what is changed."""
    counted = Counter(kinds)
    with open_image(data, name) as image:
        if codec == "jpeg":
            shape = ImageShape(image.height, image.width, len(image.getbands()))
            try:
                # Pillow fills with grey what a scan lacks.
                check_image_data(data, codec, shape)
            except HelloError as error:
                raise _named(error, name) from error
        pixels = to_rgb(image, name, counted)
    if keeps_grey and is_grey(counted):
        # One channel holds it as it is, so nothing was changed.
        pixels = pixels[..., :1]
        counted -= Counter(GREY)
    return pixels, tuple(counted)


def _shrunk(pixels: NDArray[np.uint8], most: int) -> NDArray[np.uint8]:
    """Resample to a longest side of ``most`` pixels, with antialiasing."""
    scale = most / max(pixels.shape[:2])
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    made = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    return made.reshape(height, width, pixels.shape[2])
