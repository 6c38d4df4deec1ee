"""Which part of an image a view shows: the rules of ``Views`` as numbers, and the crops they draw.

``crops_of`` draws for images whose sizes are known, ``CropDraws`` for images whose size is learnt
when the file is opened; both give the same integers, on every machine. The words that are used are
listed in ``hellofmt.loading.views.table``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, cast

import numpy as np

from hellofmt.errors import UserInputError
from hellofmt.loading.views.exact import MAX_BETA, exp, log
from hellofmt.rng import Stream, below, uniform, words
from hellofmt_kernels.views.row import MAX_SHUFFLE_FACTOR

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hellofmt.archive.format.manifest import UnsetType
    from hellofmt.archive.format.views import Views

_TRIES = 10
_FLIP, _TOP, _LEFT, PERMUTATION, _FIRST_TRY = 0, 1, 2, 3, 4
VIEW_WORDS = _FIRST_TRY + 2 * _TRIES
"""Words of one view: flip, place, permutation, and two for each try of a crop."""


@dataclass(frozen=True)
class ViewRules:
    """Decimals of ``Views`` as numbers, checked; by the names there."""

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: float
    mix: str
    alpha: float
    probability: float
    shuffle: int


@lru_cache(maxsize=64)
def _rules(
    size: int,
    scale: tuple[str, ...],
    ratio: tuple[str, ...],
    flip: str,
    mix: tuple[str, str | UnsetType, str | UnsetType],
    shuffle: int,
) -> ViewRules:
    rules = ViewRules(
        size=size,
        scale=(float(scale[0]), float(scale[1])),
        ratio=(float(ratio[0]), float(ratio[1])),
        flip=float(flip),
        mix=mix[0],
        alpha=float(mix[1] or "1.0"),
        probability=float(mix[2] or "0.0"),
        shuffle=shuffle,
    )
    problems = [
        (0 < rules.scale[0] <= rules.scale[1] <= 1, "crop_scale", "0 < low <= high <= 1", scale),
        (
            0 < rules.ratio[0] <= rules.ratio[1] <= 1e4,
            "crop_ratio",
            "0 < low <= high <= 10000",
            ratio,
        ),
        (0 <= rules.flip <= 1, "flip", "a probability", flip),
        (0 <= rules.probability <= 1, "mix_probability", "a probability", mix[2]),
        (
            rules.mix == "none" or 0 < rules.alpha <= MAX_BETA,
            "mix_alpha",
            f"0 < alpha <= {MAX_BETA:g}",
            mix[1],
        ),
        (shuffle <= MAX_SHUFFLE_FACTOR, "shuffle", f"at most {MAX_SHUFFLE_FACTOR}", shuffle),
        # Columns are int32, and a view of this side has more values than a tensor may.
        (size <= 1 << 15, "size", "at most 32768 px", size),
    ]
    for is_good, name, expected, value in problems:
        if not is_good:
            text = f"`views.{name}` is out of range; expected {expected}, got {value}"
            raise UserInputError.make("E_OPTION", text)
    return rules


def rules_of(views: Views) -> ViewRules:
    """Return the rules of ``views`` as numbers."""
    mix = (views.mix, views.mix_alpha, views.mix_probability)
    scale, ratio = tuple(views.crop_scale), tuple(views.crop_ratio)
    return _rules(views.size, scale, ratio, views.flip, mix, views.shuffle)


def epoch_words(
    seed: int, epochs: NDArray[np.int64], stream: Stream, rows: NDArray[np.int64], count: int
) -> NDArray[np.uint64]:
    """Draw (N, count) words; rows of a batch may be of different epochs."""
    if epochs.size and (epochs == epochs[0]).all():
        return words(seed, int(epochs[0]), stream, rows, count)
    out = np.empty((rows.size, count), np.uint64)
    for epoch in sorted(set(epochs.tolist())):
        at = epochs == epoch
        out[at] = words(seed, epoch, stream, rows[at], count)
    return out


def crops_of(
    rules: ViewRules,
    word: NDArray[np.uint64],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Choose crops: (N, 5) top, left, height, width, flip."""
    u = uniform(word)
    tries_area, tries_ratio = u[:, _FIRST_TRY::2], u[:, _FIRST_TRY + 1 :: 2]
    low, high = rules.scale
    area = (heights * widths).astype(np.float64)[:, None] * (low + tries_area * (high - low))
    bounds = log(np.array(rules.ratio))
    ratio = exp(bounds[0] + tries_ratio * (bounds[1] - bounds[0]))
    try_w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    try_h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (try_w > 0) & (try_w <= widths[:, None]) & (try_h > 0) & (try_h <= heights[:, None])
    first = fits.argmax(axis=1)
    at = np.arange(heights.size)
    # The central fallback is the whole image, or its largest part of the nearest allowed ratio.
    shape = widths / heights
    fallback_h = np.where(shape < rules.ratio[0], np.rint(widths / rules.ratio[0]), heights)
    fallback_w = np.where(shape > rules.ratio[1], np.rint(heights * rules.ratio[1]), widths)
    has_fit = fits.any(axis=1)
    # A rounded side of an extreme ratio may be 0.
    h = np.where(has_fit, try_h[at, first], np.clip(fallback_h, 1, heights)).astype(np.int64)
    w = np.where(has_fit, try_w[at, first], np.clip(fallback_w, 1, widths)).astype(np.int64)
    free_h, free_w = heights - h, widths - w
    top = np.where(has_fit, below(word[:, _TOP], free_h + 1), free_h // 2)
    left = np.where(has_fit, below(word[:, _LEFT], free_w + 1), free_w // 2)
    flip = u[:, _FLIP] < rules.flip
    return np.stack([top, left, h, w, flip.astype(np.int64)], axis=1)


class CropDraws:
    """Crops of a batch of views, each drawn when the size of its image is known.

    Attributes:
        flips: bool (N,), whether the view is mirrored.
        shuffles: factor and permutation number of the patch shuffle of each view.
        words: uint64 (N, VIEW_WORDS), the words of each view.
    """

    def __init__(
        self, views: Views, *, seed: int, epochs: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> None:
        """Draw the words of the views (seed, epoch, row); epochs and rows are int64 (N,)."""
        rules = rules_of(views)
        self.words = epoch_words(seed, epochs, Stream.VIEWS, rows, VIEW_WORDS)
        u = uniform(self.words)
        self.flips = u[:, _FLIP] < rules.flip
        numbers = below(self.words[:, PERMUTATION], math.factorial(rules.shuffle) ** 2)
        self.shuffles = [(rules.shuffle, number) for number in numbers.tolist()]
        low, high = rules.scale
        bounds = log(np.array(rules.ratio))
        shares = low + u[:, _FIRST_TRY::2] * (high - low)
        ratios = exp(bounds[0] + u[:, _FIRST_TRY + 1 :: 2] * (bounds[1] - bounds[0]))
        self._shares = cast("list[list[float]]", shares.tolist())
        self._ratios = cast("list[list[float]]", ratios.tolist())
        self._words = cast("list[list[int]]", self.words[:, _TOP : _LEFT + 1].tolist())
        self._bounds = rules.ratio

    def box(self, i: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return the crop of view ``i``: top, left, height and width in pixels."""
        pixels = float(height * width)
        # `math.sqrt`, `round` and NumPy's `sqrt`, `rint` round alike: correctly, and half to even.
        for share, ratio in zip(self._shares[i], self._ratios[i], strict=True):
            area = pixels * share
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = (
                    word * (free + 1) >> 64
                    for word, free in zip(self._words[i], (height - h, width - w), strict=True)
                )
                return top, left, h, w
        low, high = self._bounds
        shape = width / height
        h = min(max(round(width / low), 1), height) if shape < low else height
        w = min(max(round(height * high), 1), width) if shape > high else width
        return (height - h) // 2, (width - w) // 2, h, w
