"""Probe pictures: generated inputs whose logits an archive stores.

They cost no bytes, and they reveal at once a base that differs in a way no shape shows: another
activation, another resize, swapped channels. A coarse grid of colours carries shape, per-pixel
noise carries fine detail, and the pictures are larger than the base's input, so that missing
antialiasing shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from hellofmt.rng import Stream, words

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GRID: Final = 8
_COLOURS: Final = _GRID * _GRID * 3


def probe_images(size: int, count: int) -> NDArray[np.uint8]:
    """Generate the first ``count`` probe pictures for a base of input side ``size``.

    A grid of 8 x 8 cells of ``ceil(2 size / 8)`` pixels; value = clamp(colour + noise, 0, 255),
    colour the top 8 bits of word ``(y div cell * 8 + x div cell) * 3 + c`` of the picture, noise
    the top 5 bits of word ``192 + (y w + x) * 3 + c`` minus 16.

    Returns: uint8 (count, h, w, 3), h = w = 8 ceil(2 size / 8).
    """
    cell = -(-2 * size // _GRID)
    side = _GRID * cell
    out = np.empty((count, side, side, 3), np.uint8)
    for p in range(count):
        drawn = words(0, 0, Stream.PROBES, p, _COLOURS + side * side * 3)
        colour = (drawn[:_COLOURS] >> np.uint64(56)).astype(np.int16).reshape(_GRID, _GRID, 3)
        noise = (drawn[_COLOURS:] >> np.uint64(59)).astype(np.int16).reshape(side, side, 3) - 16
        grid = colour.repeat(cell, axis=0).repeat(cell, axis=1)
        out[p] = np.clip(grid + noise, 0, 255).astype(np.uint8)
    return out
