"""The chosen images as an archive stores them: cut and encoded one at a time, ahead in workers.

Nothing holds all pixels: 50 images of 224 pixels of each class of ImageNet-1K are 7.5 GB.

JPEG is baseline 4:4:4. Networks read RGB, and at equal bytes whole colour at a lower quality is
nearer to the pixels than 4:2:0 at a higher one: 35.5 against 34.4 dB at 18 kB an image
(``benchmarks/results/stored-images.md``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from hellofmt.archive import DEFAULT_LIMITS, decode_image, encode_image
from hellofmt.archive.parallel import map_ordered
from hellofmt.distillation.selection import mosaics
from hellofmt.errors import UserInputError
from hellofmt.making import CropSquares
from hellofmt.runs.workers import made
from hellofmt.sources import ArrayImages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from hellofmt.archive.format.images import Codec
    from hellofmt.archive.format.views import Views
    from hellofmt.distillation.selection import Selection
    from hellofmt.sources import Source

_DEFAULT_QUALITY: Final = {"jpeg": 85, "webp": 90}
"""ImageNet-1K at 50 images of 224 px per class then takes less than 1 GB."""
_MOST_READ_BACK: Final = 1024


def quality_of(codec: Codec, quality: int | None) -> int | None:
    """Return the quality that images are encoded at; None for PNG, which keeps every pixel."""
    return _DEFAULT_QUALITY.get(codec) if quality is None else quality


def check_quality(codec: Codec, quality: int | None) -> None:
    """Refuse a quality that means nothing."""
    if quality is None:
        return
    if codec == "png":
        text = "PNG keeps every pixel and has no quality; expected none, or codec `jpeg` or `webp`"
        raise UserInputError.make("E_OPTION", text, argument="quality")
    if not 1 <= quality <= 100:
        raise UserInputError.make(
            "E_OPTION", f"expected 1 to 100, got {quality}", argument="quality"
        )


@dataclass(frozen=True)
class StoredImages:
    """The files of chosen images, each made when it is asked for.

    Attributes:
        selection: chosen images.
        source: the real images they were chosen from.
        views: size and interpolation are read.
        codec: ``png``, ``jpeg`` (baseline, 4:4:4) or ``webp`` (lossy below quality 100).
        quality: as ``quality_of`` takes it.
    """

    selection: Selection
    source: Source
    views: Views
    codec: Codec = "png"
    quality: int | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.selection.labels)

    def pixels(self, number: int) -> NDArray[np.uint8]:
        """Return one image as it is before it is encoded: uint8 (S, S, 3)."""
        chosen, views = self.selection, self.views
        side = views.size // math.isqrt(chosen.rows.shape[1])
        crops = np.column_stack([chosen.rows[number], chosen.crops[number]])
        cells = CropSquares(self.source, side, views.interpolation)(crops)
        return mosaics(cells.numpy()[None])[0]

    def file(self, number: int) -> bytes:
        """Return one image as a file."""
        return self._encoded(self.pixels(number))

    def _encoded(self, pixels: NDArray[np.uint8]) -> bytes:
        quality = quality_of(self.codec, self.quality) or 100
        return encode_image(pixels, self.codec, quality=quality, subsampling="4:4:4")

    def files(self, numbers: Iterable[int] | None = None, *, workers: int = 0) -> Iterator[bytes]:
        """Yield the files of ``numbers``, or all, in order; without workers, threads make them."""
        numbers = range(len(self)) if numbers is None else numbers
        return (
            made(self.file, numbers, workers=workers)
            if workers
            else map_ordered(self.file, numbers)
        )

    def read_back(self, *, workers: int = 0) -> tuple[ArrayImages, ArrayImages]:
        """Return images before they are encoded and as a reader sees them, at most 1,024.

        They are the same at every call, and spread evenly over the classes.
        """
        count = min(len(self), _MOST_READ_BACK)
        rows = np.arange(count) * len(self) // count
        before = np.stack(list(made(self.pixels, rows.tolist(), workers=workers)))
        files = map_ordered(self._encoded, before)
        after = np.stack([decode_image(data, self.codec, DEFAULT_LIMITS) for data in files])
        return unlabelled(before, self.source), unlabelled(after, self.source)


def unlabelled(pixels: NDArray[np.uint8], source: Source) -> ArrayImages:
    """Pixels as a source, of the two classes that it needs: there may be more than images."""
    labels = np.arange(len(pixels), dtype=np.int64) % 2
    return ArrayImages(pixels, labels, source.classes[:2], source.name)
