"""Fetching of remote images in the background, a few batches before they are drawn."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from hellofmt.archive.read.stream import ImageStream
    from hellofmt.loading.epoch_index import EpochIndex

#: Batches of a remote archive that are fetched before they are asked for.
READ_AHEAD = 8


def read_ahead(
    stream: ImageStream,
    shown: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.integer]],
    batches: Iterator[list[int]],
    part: Callable[[int, list[int]], list[int]] | None,
) -> Iterator[list[int]]:
    """Yield ``batches`` unchanged and fetch the images of the next ``READ_AHEAD`` meanwhile.

    ``shown`` maps rows and epochs of views to the rows of the archive that they show; ``part`` is
    that of ``HelloDataset.read_ahead``.
    """
    window: deque[tuple[list[int], NDArray[np.integer]]] = deque()

    def announce() -> None:
        # The batch that is drawn next comes first.
        stream.prefetch(np.concatenate([rows for _, rows in window]))

    for number, batch in enumerate(batches):
        mine = batch if part is None else part(number, batch)
        rows = np.array(mine, np.int64)
        epochs = np.array([cast("EpochIndex", index).epoch for index in mine], np.int64)
        window.append((batch, shown(rows, epochs)))
        if len(window) > READ_AHEAD:
            announce()
            yield window.popleft()[0]
    while window:
        announce()
        yield window.popleft()[0]
