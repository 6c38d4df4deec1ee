"""The chosen images as an archive stores them: encoded in threads, decoded again to be measured.

JPEG is baseline 4:4:4. Networks read RGB, and at equal bytes whole colour at a lower quality is
nearer to the pixels than 4:2:0 at a higher one: 35.5 against 34.4 dB at 18 kB an image
(``benchmarks/results/stored-images.md``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from hellofmt.archive import DEFAULT_LIMITS, decode_image, encode_image
from hellofmt.archive.parallel import map_ordered
from hellofmt.errors import UserInputError
from hellofmt.sources import ArrayImages

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from hellofmt.archive.format.images import Codec
    from hellofmt.distillation.select import Selection
    from hellofmt.sources import Source

__all__ = ["check_quality", "encoded", "quality_of", "read_back"]

_DEFAULT_QUALITY: Final = {"jpeg": 85, "webp": 90}
"""ImageNet-1K at 50 images of 224 px per class then takes less than 1 GB."""
_MOST_READ_BACK: Final = 1024


def quality_of(codec: Codec, quality: int | None) -> int | None:
    """Return the quality that images are encoded at; None for PNG, which keeps every pixel."""
    return _DEFAULT_QUALITY.get(codec) if quality is None else quality


def check_quality(codec: Codec, quality: int | None) -> None:
    """Refuse a quality that means nothing.

    Raises:
        UserInputError: E_OPTION, a quality of PNG, or one that is not 1 to 100.
    """
    if quality is None:
        return
    if codec == "png":
        text = "PNG keeps every pixel and has no quality; expected none, or codec `jpeg` or `webp`"
        raise UserInputError.make("E_OPTION", text, argument="quality")
    if not 1 <= quality <= 100:
        raise UserInputError.make(
            "E_OPTION", f"expected 1 to 100, got {quality}", argument="quality"
        )


def encoded(pixels: Iterable[NDArray[np.uint8]], codec: Codec, quality: int | None) -> list[bytes]:
    """Encode images in threads.

    Args:
        pixels: uint8 (H, W, 3) each.
        codec: ``png``, ``jpeg`` (baseline, 4:4:4) or ``webp`` (lossy below quality 100).
        quality: as ``quality_of`` takes it.

    Returns:
        The files, in order.
    """
    used = quality_of(codec, quality) or 100

    def encode(image: NDArray[np.uint8]) -> bytes:
        return encode_image(image, codec, quality=used, subsampling="4:4:4")

    return list(map_ordered(encode, pixels))


def read_back(
    selection: Selection, source: Source, codec: Codec, quality: int | None
) -> ArrayImages:
    """Return chosen images as a reader of the archive sees them, at most 1,024 of them.

    Args:
        selection: chosen images.
        source: real images, for their classes and their name.
        codec: as for ``encoded``.
        quality: as for ``encoded``.

    Returns:
        The same images at every call, spread evenly over the classes.
    """
    count = len(selection.labels)
    rows = np.arange(min(count, _MOST_READ_BACK)) * count // min(count, _MOST_READ_BACK)
    files = encoded(selection.pixels[rows], codec, quality)
    pixels = [decode_image(data, codec, DEFAULT_LIMITS) for data in files]
    return ArrayImages(np.stack(pixels), selection.labels[rows], source.classes, source.name)
