"""Squares of images for networks: a crop of the original, or its middle, no larger than needed.

Every view of a real image goes through here, in workers and in the main process alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from PIL import Image

from hellofmt.sources.decode import convert, open_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from hellofmt.sources.source import Source

    Box: TypeAlias = tuple[int, int, int, int]

__all__ = ["decode_centre", "decode_crop"]

_FILTERS: Final = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def decode_crop(
    source: Source,
    row: int,
    box: Callable[[int, int], Box],
    size: int,
    interpolation: str = "bilinear",
) -> NDArray[np.uint8]:
    """Read an image and cut a crop of it as a square, resized with antialiasing.

    A JPEG is decoded at the smallest of the scales 1, 1/2, 1/4 and 1/8 (of its cosine transform)
    at which the crop is still as large as the square; crops are of the original all the same.

    Args:
        source: real images.
        row: the image.
        box: from the height and width of the image, in pixels as stored, to top, left, height and
            width of the crop in the same pixels. It is called once, before pixels are decoded.
        size: side of the square in pixels.
        interpolation: ``nearest``, ``bilinear`` or ``bicubic``.

    Returns:
        uint8 (size, size, 3), perhaps not writable.

    Raises:
        UserInputError: the image cannot be decoded, or has more than 8 bits per channel (E_DATA,
            naming it).
        HelloError: it is in an archive and damaged.
        OSError: it cannot be read.
    """
    data, factor = source.read(row), 1
    if isinstance(data, np.ndarray):
        top, left, height, width = box(*data.shape[:2])
        image = Image.fromarray(data[top : top + height, left : left + width])
        top = left = 0
    else:
        name = source.name_of(row)
        with open_image(data, name) as stored:
            top, left, height, width = box(stored.height, stored.width)
            if stored.format == "JPEG":
                factor = next(f for f in (8, 4, 2, 1) if f <= max(1, min(height, width) // size))
                # Only a size is asked of it; colours are converted by our own rule.
                stored.draft(None, (stored.width // factor, stored.height // factor))
            image, kinds = convert(stored, name)
        if kinds:
            source.note(row, kinds)
    # Cut whole pixels first: resizing part of an image looks beyond that part.
    y, x = top // factor, left // factor
    bottom, right = -(-(top + height) // factor), -(-(left + width) // factor)
    if image.size != (right - x, bottom - y):
        image = image.crop((x, y, right, bottom))
    top, left = top / factor - y, left / factor - x
    edges = (left, top, left + width / factor, top + height / factor)
    return np.asarray(image.resize((size, size), _FILTERS[interpolation], box=edges))


def decode_centre(
    source: Source, row: int, size: int, *, share: float = 1.0, interpolation: str = "bilinear"
) -> NDArray[np.uint8]:
    """Read an image and cut its middle: a square of ``share`` of the shorter side.

    ``share`` 1 is the shorter side resized to ``size`` and the centre cropped; 7 / 8 is the rule of
    ImageNet's validation, which resizes to 256 and crops 224.

    Args:
        source: real images.
        row: the image.
        size: side of the square in pixels.
        share: of the shorter side that the square shows, in (0, 1].
        interpolation: as for ``decode_crop``.

    Returns:
        uint8 (size, size, 3), perhaps not writable; an image of this very size as it is.

    Raises:
        UserInputError: as ``decode_crop``.
        HelloError: as ``decode_crop``.
        OSError: as ``decode_crop``.
    """

    def middle(height: int, width: int) -> Box:
        if height == width == size:
            return 0, 0, height, width
        side = max(1, round(min(height, width) * share))
        return (height - side) // 2, (width - side) // 2, side, side

    return decode_crop(source, row, middle, size, interpolation)
