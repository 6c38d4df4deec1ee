"""Images in memory, and how rows of any source are split."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from hellofmt import rng
from hellofmt.errors import UserInputError
from hellofmt.sources.listing import Listing
from hellofmt.sources.source import Source, check_classes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hellofmt.archive.format.classes import ClassLine


class ArrayImages(Source):
    """Images in memory, uint8 (N, H, W, 3) RGB; a subset shares the pixels.

    Example:
        >>> import numpy as np
        >>> from hellofmt.archive import ClassLine
        >>> pixels, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 0, 1, 1])
        >>> classes = [ClassLine("cat", ("cat",)), ClassLine("dog", ("dog",))]
        >>> len(ArrayImages(pixels, labels, classes))
        4
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        labels: NDArray[np.int64],
        classes: Sequence[ClassLine],
        name: str = "images",
        notes: Sequence[str] = (),
    ) -> None:
        """Check shapes, labels and classes.

        Args:
            pixels: uint8 (N, H, W, 3), RGB.
            labels: int64 (N,), each in [0, number of classes).
            classes: one line per class, in label order.
            name: of the data set, for the manifest.
            notes: what was changed while reading, one sentence each.

        Raises:
            UserInputError: E_DATA, with what is wrong and what was expected; see also
                ``check_classes``.
        """
        if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8:
            raise UserInputError.make(
                "E_DATA",
                f"pixels: expected uint8 (N, H, W, 3), got {pixels.dtype} {tuple(pixels.shape)}",
            )
        if labels.shape != (len(pixels),) or labels.dtype != np.int64:
            raise UserInputError.make(
                "E_DATA",
                f"labels: expected int64 ({len(pixels)},), got {labels.dtype}"
                f" {tuple(labels.shape)}",
            )
        check_classes(labels, classes)
        listing = Listing(
            name,
            [line.key for line in classes],
            list(classes),
            notes=tuple(notes),
            key_of=labels.astype(np.int32),
            digest=_digest(pixels),
        )
        super().__init__(listing)
        self._pixels = pixels

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """All of them, uint8 (N, H, W, 3); a subset copies its own."""
        return self._pixels if self._rows is None else self._pixels[self._rows]

    def _read(self, row: int) -> NDArray[np.uint8]:
        return self._pixels[row]

    def _name_of(self, row: int) -> str:
        return f"image {row} of {self.name}"


def _digest(pixels: NDArray[np.uint8]) -> str:
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


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

    Example:
        >>> import numpy as np
        >>> rest, held_out = stratified_split(np.array([0, 0, 0, 0, 1, 1]), 3, seed=0)
        >>> len(rest), len(held_out)
        (3, 3)
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
    # One sort for all classes: a pass over the labels for each would take minutes for thousands.
    # Of one number each, of which the class is the upper bits: in half the time of two keys.
    # In place, as a million rows are eight megabytes an array.
    bits = np.uint64(len(counts).bit_length())
    keys >>= bits
    upper = labels.astype(np.uint64)
    upper <<= np.uint64(64) - bits
    keys |= upper
    del upper
    order = np.argsort(keys, kind="stable")
    # The first ``quota`` of each class.
    first = np.cumsum(counts) - counts - (np.cumsum(quota) - quota)
    is_out = np.zeros(n, bool)
    is_out[order[np.repeat(first, quota) + np.arange(held_out)]] = True
    return np.flatnonzero(~is_out).astype(np.int64), np.flatnonzero(is_out).astype(np.int64)
