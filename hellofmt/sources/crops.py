"""Squares of images for networks: a crop of the original, or its middle, no larger than needed.

Every view of a real image goes through here, in workers and in the main process alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from PIL import Image

from hellofmt.archive.format.views import LARGEST_DEFAULT_VIEW
from hellofmt.errors import UserInputError, printable
from hellofmt.sources.content import is_misnamed
from hellofmt.sources.decode import MISNAMED, convert, open_image

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from hellofmt.sources.source import Source

    Box: TypeAlias = tuple[int, int, int, int]
    Arrange: TypeAlias = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]

_FILTERS: Final = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_SCALES: Final = (8, 4, 2, 1)
_LOOKED_AT: Final = 64
"""Images whose headers tell the size of a data set."""


def decode_crops(
    source: Source,
    row: int,
    boxes: Callable[[int, int], Sequence[Box]],
    size: int,
    interpolation: str = "bilinear",
    *,
    arrange: Arrange | None = None,
) -> NDArray[np.uint8]:
    """Read an image and cut crops of it as squares, resized with antialiasing: uint8 (n, S, S, 3).

    A JPEG is decoded at the smallest of the scales 1, 1/2, 1/4 and 1/8 (of its cosine transform) at
    which a crop is still as large as the square; crops are of the original all the same, and none
    depends on the others that are asked for. If the image cannot be read and the source leaves such
    images out, the next image of its class takes its place.

    ``boxes`` gives, from the height and width of the image, in pixels as stored, top, left, height
    and width of each crop. ``arrange`` moves the pixels (H, W, 3) before they are cut.
    """
    while True:
        try:
            return _crops(source, row, boxes, size, interpolation, arrange)
        except (UserInputError, PermissionError):
            # Not a disk or a server that fails, nor an archive that is damaged.
            if not source.skips_unreadable:
                raise
            source.leave_out(row)
            row = source.stand_in(row)


def decode_crop(
    source: Source,
    row: int,
    box: Callable[[int, int], Box],
    size: int,
    interpolation: str = "bilinear",
    *,
    arrange: Arrange | None = None,
) -> NDArray[np.uint8]:
    """Read an image and cut one crop of it, uint8 (size, size, 3); see ``decode_crops``."""
    crops = decode_crops(
        source, row, lambda h, w: [box(h, w)], size, interpolation, arrange=arrange
    )
    return crops[0]


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
        interpolation: as for ``decode_crops``.

    Returns:
        uint8 (size, size, 3); an image of this very size as it is.

    Raises:
        UserInputError: as ``decode_crops``.
        HelloError: as ``decode_crops``.
        OSError: as ``decode_crops``.

    Example:
        >>> from hellofmt.sources import open_source
        >>> decode_centre(open_source("photos"), 0, 8).shape
        (8, 8, 3)
    """

    def middle(height: int, width: int) -> Box:
        if height == width == size:
            return 0, 0, height, width
        side = max(1, round(min(height, width) * share))
        return (height - side) // 2, (width - side) // 2, side, side

    return decode_crop(source, row, middle, size, interpolation)


def sampled_squares(
    source: Source, size: int, most: int, *, interpolation: str = "bilinear"
) -> NDArray[np.uint8]:
    """Read some images, evenly spread, and cut the middle of each: uint8 (n, size, size, 3)."""
    count = min(most, len(source))
    rows = [number * len(source) // count for number in range(count)]
    return np.stack([decode_centre(source, row, size, interpolation=interpolation) for row in rows])


def sampled_sizes(source: Source) -> NDArray[np.int64]:
    """Return height and width of some images, evenly spread, from their headers: int64 (n, 2).

    Those that are unreadable and left out are not among them.
    """
    sizes: list[tuple[int, int]] = []
    for row in range(0, len(source), -(-len(source) // _LOOKED_AT)):
        try:
            data = source.read(row)
            if isinstance(data, np.ndarray):
                sizes.append(data.shape[:2])
                continue
            with open_image(data, source.name_of(row)) as image:
                sizes.append((image.height, image.width))
        except (UserInputError, PermissionError):
            if not source.skips_unreadable:
                raise
            source.leave_out(row)
    if not sizes:
        raise UserInputError.make("E_DATA", f"`{printable(source.name)}`: no image can be read")
    return np.array(sizes, np.int64)


def default_side(sizes: NDArray[np.int64]) -> int:
    """Return the side of views where nobody chose one: the median shorter side, at most 224."""
    return min(int(np.sort(sizes.min(1))[len(sizes) // 2]), LARGEST_DEFAULT_VIEW)


def _crops(
    source: Source,
    row: int,
    boxes: Callable[[int, int], Sequence[Box]],
    size: int,
    interpolation: str,
    arrange: Arrange | None,
) -> NDArray[np.uint8]:
    """The crops of this very image."""
    data, name = source.read(row), source.name_of(row)
    if isinstance(data, np.ndarray):
        data = data if arrange is None else arrange(data)
        image = Image.fromarray(data)
        wanted = boxes(image.height, image.width)
        source.note(row)
        return np.stack([_square(image, box, 1, size, interpolation) for box in wanted])
    with open_image(data, name) as stored:
        wanted = boxes(stored.height, stored.width)
        scales = [_scale(stored, box, size) for box in wanted]
        _shrink(stored, scales[0])
        image, kinds = convert(stored, name)
    # Several JPEG files in one, as cameras write them, are one.
    if is_misnamed(name, "jpeg" if stored.format == "MPO" else str(stored.format).lower()):
        kinds.append(MISNAMED)
    source.note(row, kinds)
    images = {scales[0]: image}
    for scale in set(scales) - images.keys():
        with open_image(data, name) as stored:
            _shrink(stored, scale)
            images[scale], _ = convert(stored, name)
    if arrange is not None:
        images = {
            scale: Image.fromarray(arrange(np.asarray(whole))) for scale, whole in images.items()
        }
    return np.stack(
        [
            _square(images[scale], box, scale, size, interpolation)
            for box, scale in zip(wanted, scales, strict=True)
        ]
    )


def _scale(image: Image.Image, box: Box, size: int) -> int:
    """How much smaller than stored a crop may be decoded."""
    if image.format != "JPEG":
        return 1
    side = max(1, min(box[2:]) // size)
    return next(scale for scale in _SCALES if scale <= side)


def _shrink(image: Image.Image, scale: int) -> None:
    if scale > 1:
        # Only a size is asked of it; colours are converted by our own rule.
        image.draft(None, (image.width // scale, image.height // scale))


def _square(
    image: Image.Image, box: Box, scale: int, size: int, interpolation: str
) -> NDArray[np.uint8]:
    """A crop of an image that was decoded at 1 / ``scale``, resized."""
    top, left, height, width = box
    # Cut whole pixels first: resizing part of an image looks beyond that part.
    y, x = top // scale, left // scale
    bottom, right = -(-(top + height) // scale), -(-(left + width) // scale)
    if image.size != (right - x, bottom - y):
        image = image.crop((x, y, right, bottom))
    up, out = top / scale - y, left / scale - x
    edges = (out, up, out + width / scale, up + height / scale)
    return np.asarray(image.resize((size, size), _FILTERS[interpolation], box=edges))
