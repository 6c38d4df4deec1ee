"""The real images that a data set is distilled from, as plain arrays.

Teacher, fit and selection all read the same object: uint8 pixels of one shape, labels, class lines.
Arrays rather than a lazy dataset, because every stage visits every image many times and the sets
this runs on by itself fit in memory.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from hellofmt import rng
from hellofmt.archive.format.classes import ClassLine, class_bytes
from hellofmt.errors import UserInputError, printable
from hellofmt.sources.decode import conversion_notes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hellofmt.sources.listing import Pictures

__all__ = ["ArrayImages", "Frames", "check_classes", "decoded", "stratified_split"]


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory.

    Attributes:
        pixels: uint8 (N, H, W, 3), RGB.
        labels: int64 (N,), each in [0, number of classes).
        classes: one line per class, in label order.
        name: of the data set, for the manifest.
        notes: what was changed while reading, one sentence each.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[ClassLine, ...]
    name: str = "images"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check shapes, labels and classes; see ``check_classes``.

        Raises:
            UserInputError: E_DATA, with what is wrong and what was expected.
        """
        if self.pixels.ndim != 4 or self.pixels.shape[3] != 3 or self.pixels.dtype != np.uint8:
            raise UserInputError.make(
                "E_DATA",
                "pixels: expected uint8 (N, H, W, 3),"
                f" got {self.pixels.dtype} {tuple(self.pixels.shape)}",
            )
        if self.labels.shape != (len(self.pixels),) or self.labels.dtype != np.int64:
            raise UserInputError.make(
                "E_DATA",
                f"labels: expected int64 ({len(self.pixels)},),"
                f" got {self.labels.dtype} {tuple(self.labels.shape)}",
            )
        check_classes(self.labels, self.classes)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def read(self, row: int) -> NDArray[np.uint8]:
        """The pixels of an image, uint8 (H, W, 3)."""
        return self.pixels[row]

    def name_of(self, row: int) -> str:
        """The name of an image, for messages."""
        return f"image {row} of {self.name}"

    def digest(self) -> str:
        """SHA-256 of pixels, labels and classes; see ``Source``."""
        digest = hashlib.sha256(repr((self.pixels.shape, self.classes)).encode())
        digest.update(np.ascontiguousarray(self.labels).data)
        digest.update(np.ascontiguousarray(self.pixels).data)
        return digest.hexdigest()

    def note(self, row: int, kinds: list[str]) -> None:
        """Nothing is changed when an image is read: it is an array of the right kind."""

    def conversion_notes(self) -> list[str]:
        """None; what was changed on the way into memory is in ``notes``."""
        return []

    def subset(self, rows: NDArray[np.int64]) -> ArrayImages:
        """The images of these rows, in this order, with the same classes.

        Raises:
            UserInputError: a class would be empty (E_DATA).
        """
        return ArrayImages(self.pixels[rows], self.labels[rows], self.classes, self.name)


def check_classes(labels: NDArray[np.int64], classes: Sequence[ClassLine]) -> None:
    """Check that images can be trained on and, in the end, be written with their classes.

    Args:
        labels: int64 (N,).
        classes: one line per class, in label order.

    Raises:
        UserInputError: fewer than two classes, a label out of range, a class without an image, or a
            class line that no archive can hold (E_DATA).
    """
    count = len(classes)
    if count < 2:
        got = "none" if count == 0 else f"`{printable(classes[0].key, 80)}` alone"
        raise UserInputError.make(
            "E_DATA", f"training needs at least two classes; got {got}; expected a folder of each"
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < count:
        raise UserInputError.make(
            "E_DATA",
            f"labels: expected 0 to {count - 1}, got {labels.min()} to {labels.max()}",
        )
    empty = np.flatnonzero(np.bincount(labels, minlength=count) == 0)
    if empty.size:
        raise UserInputError.make(
            "E_DATA",
            f"class `{printable(classes[int(empty[0])].key)}` has no images, and so have"
            f" {empty.size:,} of {count:,} classes; expected at least one image of each",
        )
    class_bytes(classes)


@dataclass
class Frames:
    """An array of pixels that is filled image by image, so that there is only one copy.

    Attributes:
        count: images in all.
        size: side in pixels that every image is resized and cropped to; None keeps the first's.
        converted: what was changed; see ``to_rgb``.
    """

    count: int
    size: int | None
    converted: Counter[str] = field(default_factory=Counter[str])
    _pixels: NDArray[np.uint8] | None = None
    _filled: int = 0

    def add(self, image: NDArray[np.uint8], name: object) -> None:
        """Add one image, uint8 (H, W, 3).

        Raises:
            UserInputError: it has another shape than the first, and there is no size (E_DATA).
        """
        image = _square(image, self.size)
        if self._pixels is None:
            self._pixels = np.empty((self.count, *image.shape), np.uint8)
        height, width = self._pixels.shape[1:3]
        if image.shape != (height, width, 3):
            raise UserInputError.make(
                "E_DATA",
                f"`{printable(name)}` is {image.shape[1]} x {image.shape[0]} pixels, others are"
                f" {width} x {height}",
                advice="pass {size}",
            )
        self._pixels[self._filled] = image
        self._filled += 1

    def images(
        self,
        labels: NDArray[np.int64],
        classes: Sequence[ClassLine],
        name: str,
        notes: Sequence[str] = (),
    ) -> ArrayImages:
        """All of them, with the notes about them."""
        pixels = np.empty((0, 1, 1, 3), np.uint8) if self._pixels is None else self._pixels
        said = (*notes, *conversion_notes(self.converted, self.count))
        return ArrayImages(pixels, labels, tuple(classes), name, said)


def decoded(pictures: Pictures, size: int | None = None) -> ArrayImages:
    """Decode all images of a source.

    Args:
        pictures: listed.
        size: as for ``read_source``.

    Returns:
        The images.

    Raises:
        UserInputError: see ``check_classes`` and ``decode_rgb``, or unequal shapes without ``size``
            (E_DATA).
        HelloError: an archive is damaged.
        OSError: an image cannot be read.
    """
    # What is refused in the end is refused before an hour of decoding.
    check_classes(pictures.labels, pictures.classes)
    frames = Frames(len(pictures), size)
    for row, picture in enumerate(pictures.items):
        frames.add(pictures.decode(row, frames.converted), picture.name)
    return frames.images(pictures.labels, pictures.classes, pictures.name, pictures.notes)


def _square(image: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    """Pixels; with ``size``, the shorter side resized to it and the centre cropped."""
    height, width = image.shape[:2]
    if size is None or (height, width) == (size, size):
        return image
    scale = size / min(height, width)
    width, height = (max(size, round(side * scale)) for side in (width, height))
    rgb = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(rgb.crop((left, top, left + size, top + size)))


def stratified_split(
    labels: NDArray[np.int64], held_out: int, *, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split rows so that every class keeps its share: ``(rest, held out)``, both ascending.

    Each class gives ``held_out * its share`` rows, rounded by largest remainder (ties to the lower
    class), chosen by the counter generator.

    Args:
        labels: int64 (N,).
        held_out: rows of the second part, 0 <= held_out <= N.
        seed: of the choice.

    Returns:
        Two int64 arrays of rows.

    Raises:
        ValueError: ``held_out`` is out of range.
    """
    n = len(labels)
    if not 0 <= held_out <= n:
        raise ValueError(f"held_out: expected 0 to {n}, got {held_out}")
    counts = np.bincount(labels)
    # Integers only: the split is part of every published number and may not hang on a rounding.
    quota, remainder = np.divmod(counts * held_out, max(n, 1))
    short = held_out - int(quota.sum())
    quota[np.argsort(-remainder, kind="stable")[:short]] += 1
    keys = rng.words(seed, 0, rng.Stream.SELECTION, 0, n)
    chosen: list[NDArray[np.int64]] = []
    for label, take in enumerate(quota):
        rows = np.flatnonzero(labels == label)
        chosen.append(rows[np.argsort(keys[rows], kind="stable")[:take]])
    out = np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)
    return np.setdiff1d(np.arange(n), out).astype(np.int64), out.astype(np.int64)
