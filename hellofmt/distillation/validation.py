"""The validation part of a source: images that are measured on and never trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from hellofmt.sources import stratified_split

if TYPE_CHECKING:
    from hellofmt.sources import Source

_SHARE: Final = 20
_MOST: Final = 2_000
_PER_CLASS: Final = 4
_MOST_OF_MANY: Final = 20_000
_FEWEST_PER_CLASS: Final = 10


def split_validation(source: Source, *, seed: int = 0) -> tuple[Source, Source]:
    """Split off a validation part: 5 % of every class, at most 2,000 images in all, or 4 per class.

    Four per class, at most 20,000 in all, are what tells a teacher's order of many classes, so that
    no further images need be decoded to check it. The source comes twice if a class has fewer than
    10 images or would have none in the validation part.
    """
    smallest = int(np.bincount(source.labels).min())
    classes = len(source.classes)
    most = max(_MOST, min(_PER_CLASS * classes, _MOST_OF_MANY))
    count = max(min(len(source) // _SHARE, most), classes)
    # A class of ten can give one; rounding by class may otherwise leave one without any.
    if smallest < _FEWEST_PER_CLASS:
        return source, source
    rest, held_out = stratified_split(source.labels, count, seed=seed)
    if len(np.unique(source.labels[held_out])) < classes:
        return source, source
    return source.subset(rest), source.subset(held_out)
