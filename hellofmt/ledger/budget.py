"""How to spend a budget of bytes: how many images of each class, in which codec and quality.

A student gains about as much from each doubling of its images, and loses by what a codec takes from
them. The loss is measured where it counts, in labels: the *drift* of a way to store images is the
share of what labels tell that it costs, the mean KL of labels of views as stored from those before,
over the mean KL of their mean from these. Of all ways to fill a budget the best has the largest

    log(images per class) - LOSS * drift

so an image that drifts by d counts as ``exp(-LOSS * d)`` of an image. That the drift is a share
lets one constant serve sure labels and unsure ones: at WebP's quality 50 those of a network for
1,000 classes move by 0.36 nats, and those of a small label function for CIFAR-10 by 0.03. ``LOSS``
is the most that students lost, of few on one data set (``benchmarks/results/byte-budget.md``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final

import numpy as np

from hellofmt.archive.format.columns import DTYPES, INDEX_COLUMNS
from hellofmt.archive.format.images import encode_image
from hellofmt.archive.format.layout import BLOCK, padded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from hellofmt.archive.format.images import Codec

LOSS: Final = 4.0
"""How many images a drift of 1 costs, as a logarithm."""

WAYS: Final[tuple[tuple[Codec, int | None], ...]] = (
    ("png", None),
    *(("jpeg", quality) for quality in (20, 40, 60, 75, 85, 95)),
    *(("webp", quality) for quality in (10, 30, 50, 70, 85, 95, 100)),
)
"""Codecs and qualities that are tried; lossy ones between two of them are interpolated.

JPEG is 4:4:4. Images are as large as views: students lose far more by a smaller side.
"""

ROW_BYTES: Final = sum(
    int(DTYPES[dtype][-1]) * math.prod(shape) for dtype, shape in INDEX_COLUMNS.values()
)
"""Bytes of an image in the index."""


_MEASURED: Final[Mapping[int, tuple[str, tuple[float, ...], tuple[float, ...]]]] = {
    32: (
        "CIFAR-10",
        (0.419, 0.486, 0.58, 0.629, 0.682, 0.825, 0.162, 0.219, 0.27, 0.319, 0.441, 0.656, 1.514),
        (0.088, 0.049, 0.057, 0.004, 0.009, 0.003, 0.123, 0.06, 0.034, 0.027, 0.016, 0.008, 0.0),
    ),
    64: (
        "Tiny-ImageNet",
        (0.196, 0.267, 0.383, 0.436, 0.495, 0.659, 0.138, 0.209, 0.263, 0.313, 0.429, 0.616, 1.487),
        (0.029, 0.015, 0.03, 0.001, 0.003, 0.0, 0.053, 0.021, 0.013, 0.01, 0.006, 0.004, 0.0),
    ),
    224: (
        "ImageNet",
        (0.08, 0.127, 0.169, 0.224, 0.304, 0.542, 0.046, 0.076, 0.104, 0.132, 0.207, 0.366, 1.217),
        (0.215, 0.102, 0.077, 0.046, 0.026, 0.005, 0.336, 0.218, 0.126, 0.077, 0.043, 0.013, 0.0),
    ),
}
"""By side in pixels: what images, and of ``WAYS`` but PNG bytes per pixel of a file, and drift."""


@dataclass(frozen=True)
class Way:
    """One way to store images.

    Attributes:
        codec: ``png``, ``jpeg`` or ``webp``.
        quality: 1 to 100; None for PNG.
        size: bytes that one more image adds to an archive, in the mean: file, header, padding and
            its row of the index.
        drift: share of what labels tell that is lost, >= 0.
    """

    codec: Codec
    quality: int | None
    size: float
    drift: float


@dataclass(frozen=True)
class Spending:
    """What a budget is spent on: images per class, 0 if none fits, and how they are stored."""

    ipc: int
    way: Way


def file_bytes(size: int) -> int:
    """Bytes that an image file of ``size`` bytes takes among the members of an archive."""
    return BLOCK + padded(size)


def ways_of(pixels: NDArray[np.uint8]) -> Iterable[tuple[Codec, int | None, float, list[bytes]]]:
    """Encode sample images, uint8 (N, S, S, 3), in every way: codec, quality, ``Way.size``, files.

    PNG images of one size are packed as raw pixels, where that is smaller; as files they are larger
    than a lossless WebP.
    """
    for codec, quality in WAYS:
        if codec == "png":
            yield codec, quality, packed_bytes(pixels.shape[1]), []
            continue
        files = [
            encode_image(image, codec, quality=quality or 100, subsampling="4:4:4")
            for image in pixels
        ]
        yield codec, quality, sum(file_bytes(len(f)) for f in files) / len(files) + ROW_BYTES, files


def spend(room: float, classes: int, most: int, ways: Sequence[Way]) -> Spending:
    """Find the best way to spend ``room`` bytes on images, by the rule of this module.

    Every class gets the same number of images, at most ``most``, and of a lossy codec, whose ways
    come in ascending quality, the highest that fits. Of equals the one with less drift, then the
    smaller one.
    """
    tried = [
        Spending(ipc, way)
        for codec in _groups(ways)
        for ipc in range(1, min(most, int(room / classes / codec[0].size)) + 1)
        for way in (_filling(codec, room / classes / ipc),)
    ]
    least = min(ways, key=lambda way: way.size)
    return max(
        tried,
        key=lambda s: (math.log(s.ipc) - LOSS * s.way.drift, -s.way.drift, -s.way.size),
        default=Spending(0, least),
    )


def _groups(ways: Sequence[Way]) -> list[list[Way]]:
    """Ways among which quality may lie between two: those of one codec that lose something."""
    return [list(g) for _, g in groupby(ways, key=lambda w: (w.codec, w.quality in {None, 100}))]


def _filling(codec: Sequence[Way], size: float) -> Way:
    """The way between those of one codec whose images have ``size`` bytes, or the largest."""
    sizes = np.maximum.accumulate([way.size for way in codec])
    at = int(np.searchsorted(sizes, size, side="right")) - 1
    if at + 1 == len(codec):
        return codec[-1]
    low, high = codec[at], codec[at + 1]
    # Neither is None where there are two.
    first, last = low.quality or 0, high.quality or 0
    quality = first + math.floor((last - first) * (size - sizes[at]) / (sizes[at + 1] - sizes[at]))
    share = (quality - first) / (last - first)
    return Way(
        low.codec,
        quality,
        float(sizes[at] + share * (sizes[at + 1] - sizes[at])),
        low.drift + share * (high.drift - low.drift),
    )


def assumed_ways(side: int, ways: Sequence[Way] | None = None) -> tuple[list[Way], str]:
    """Ways for images of a side, with drifts once measured, and what these were measured on.

    ``ways`` are those of ``WAYS``, whose sizes are known; None takes bytes per pixel that were
    measured.
    """
    near = min(_MEASURED, key=lambda measured: abs(math.log(measured / side)))
    name, weights, drifts = _MEASURED[near]
    if ways is None:
        # Half a block of padding, in the mean; no file takes less than a block.
        sizes = [max(weight * side**2 + BLOCK / 2, BLOCK) + BLOCK + ROW_BYTES for weight in weights]
        sizes.insert(0, packed_bytes(side))
    else:
        sizes = [way.size for way in ways]
    drifts = (0.0, *drifts)
    found = [Way(*WAYS[k], sizes[k], drifts[k]) for k in range(len(WAYS))]
    return found, f"of {name} at {near} pixels"


def packed_bytes(side: int) -> float:
    """``Way.size`` of PNG images of one size, which lie in the archive as raw pixels."""
    return 3 * side**2 + ROW_BYTES
