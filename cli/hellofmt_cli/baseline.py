"""The baseline of random images: as many per class as the archive has, drawn from real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hellofmt import rng
from hellofmt.errors import UserInputError, printable
from hellofmt.sources import decode_centre
from hellofmt.student import SMALL_IMAGE_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hellofmt.archive import Archive
    from hellofmt.sources import Source


def random_images(
    source: Source, archive: Archive, seed: int, ipc: int | None = None
) -> list[tuple[NDArray[np.uint8], int]]:
    """Draw real images in the place of an archive's: pixels and label of each, by label."""
    index, side = archive.index, archive.manifest.views.size
    # With the border that `evaluate` cuts off, which small images go without.
    size = side if side <= SMALL_IMAGE_SIZE else side * 8 // 7
    wanted = np.bincount([] if index is None else index.label, minlength=len(source.classes))
    if ipc is not None:
        wanted[:] = ipc
    shuffled = rng.order(seed, 0, len(source))
    labels = source.labels[shuffled]
    chosen: list[tuple[NDArray[np.uint8], int]] = []
    for label, count in enumerate(wanted.tolist()):
        rows = shuffled[labels == label][:count]
        if len(rows) < count:
            raise UserInputError.make(
                "E_DATA",
                f"class `{printable(source.classes[label].key, 80)}` has {len(rows)} real images;"
                f" expected at least {count}, as many as are replaced",
            )
        chosen += [(decode_centre(source, row, size), label) for row in rows.tolist()]
    return chosen
