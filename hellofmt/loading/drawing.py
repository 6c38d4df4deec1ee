"""Views of a dataset's images by row and epoch, drawn from images that are decoded once."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray

from hellofmt.archive.format.limits import check_limit
from hellofmt.errors import UserInputError
from hellofmt.loading.cache import PixelCache
from hellofmt.loading.images import ArchiveImages, UserImages
from hellofmt.loading.views.pixels import render
from hellofmt.loading.views.table import (
    SHOWN_COLUMNS,
    ViewColumn,
    mixed_labels,
    partners,
    plain_table,
    rows_shown,
    view_table,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from hellofmt.archive.format.views import Views
    from hellofmt.archive.read.archive import Archive
    from hellofmt.loading.epoch_index import EpochIndex

#: Batches of a remote archive that are fetched before they are asked for.
READ_AHEAD = 8


class DrawnViews:
    """The part of a ``HelloDataset`` that knows images and views, but no soft labels."""

    def __init__(
        self,
        file: Archive,
        images: ArchiveImages | UserImages,
        *,
        seed: int,
        is_augmented: bool,
        cache_bytes: int,
    ) -> None:
        self.file = file
        self.seed = seed
        self.is_augmented = is_augmented
        self.views: Views = file.manifest.views
        self.classes: list[str] = list(file.classes.keys)
        self.views_per_image: int | None = None
        self._images = images
        self._cache = PixelCache(images, cache_bytes)

    def __len__(self) -> int:
        """Return the number of images."""
        return self._images.heights.size

    @property
    def sizes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Heights and widths of the images, (N,) pixels; 0 until an image of ``images`` is read."""
        return self._images.heights, self._images.widths

    @property
    def targets(self) -> list[int]:
        """Hard label of every image.

        Raises:
            UserInputError: E_DATA, ``images`` has no ``targets`` or one is out of range.
        """
        return self._images.targets()

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """Return a stored image, from the cache if it is there.

        Args:
            row: 0 <= row < len(self).

        Returns:
            uint8 (H, W, 3), not to be written to.

        Raises:
            HelloError: the image cannot be read or decoded.
        """
        return self.pixels_of([row])[row]

    def pixels_of(self, rows: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
        """Return stored images by row, as ``pixels`` does; those not in the cache are read at once.

        Raises:
            HelloError: an image cannot be read or decoded.
        """
        return self._cache.read(rows)

    def table(
        self, rows: NDArray[np.integer], epochs: NDArray[np.integer] | int
    ) -> NDArray[np.int32]:
        """Make the view parameters of rows; reads images whose size is not known yet.

        Args:
            rows: (N,), each in 0..len(self) - 1.
            epochs: one epoch, or one per row.

        Returns:
            int32 (N, 20), see ``view_table``.
        """
        if self.views_per_image is not None:
            epochs = epochs % self.views_per_image
        sizes = self._images
        if isinstance(sizes, UserImages):
            needed = np.asarray(rows, np.int64)
            if self.is_augmented:
                other = partners(
                    self.views, seed=self.seed, epochs=epochs, indices=needed, count=len(self)
                )
                needed = np.concatenate([needed, other])
            for row in needed[sizes.heights[needed] == 0].tolist():
                self.pixels(row)
        if not self.is_augmented:
            return plain_table(rows, sizes.heights, sizes.widths)
        return view_table(
            self.views,
            seed=self.seed,
            epochs=epochs,
            indices=rows,
            heights=sizes.heights,
            widths=sizes.widths,
            count=len(self),
        )

    def read_ahead(
        self,
        batches: Iterator[list[int]],
        part: Callable[[int, list[int]], list[int]] | None = None,
    ) -> Iterator[list[int]]:
        """Yield the same batches while the images of the next 8 are fetched in the background.

        A ``HelloSampler`` passes its batches through here. Nothing is fetched for local archives
        and for ``images``. ``part`` maps the number of a batch and the batch, a list of
        ``EpochIndex``, to what this process draws of it; by default all.
        """
        images = self._images
        if isinstance(images, UserImages) or images.stream is None:
            yield from batches
            return
        stream, window = images.stream, deque[tuple[list[int], NDArray[np.integer]]]()

        def first() -> list[int]:
            # The batch that is drawn next comes first.
            stream.prefetch(np.concatenate([rows for _, rows in window]))
            return window.popleft()[0]

        for number, batch in enumerate(batches):
            mine = batch if part is None else part(number, batch)
            epochs = np.array([cast("EpochIndex", index).epoch for index in mine], np.int64)
            table = self.table(np.array(mine, np.int64), epochs)
            window.append((batch, images.rows_of(table[:, SHOWN_COLUMNS].ravel())))
            if len(window) > READ_AHEAD:
                yield first()
        while window:
            yield first()

    def draw(
        self, rows: NDArray[np.integer], epochs: NDArray[np.integer] | int
    ) -> tuple[Tensor, NDArray[np.int32]]:
        """Draw views as a labeler takes them, and return the parameters that say what they show.

        Args:
            rows: (N,), each in 0..len(self) - 1.
            epochs: one epoch, or one per row.

        Returns:
            float32 (N, 3, S, S) in [0, 1] on the CPU, not normalised, and int32 (N, 20).

        Raises:
            HelloError: an image cannot be read or decoded.
            LimitError: E_LIMIT_BATCH_PIXELS, so many views of this size are above the limits.
        """
        check_limit(self.file.limits, "batch_pixels", len(rows) * self.views.size**2)
        table = self.table(rows, epochs)
        return render(self.pixels_of(rows_shown(table)), table, self.views), table

    def hard_labels(self, table: NDArray[np.int32]) -> Tensor:
        """Return the hard labels of views.

        Args:
            table: (N, 20) as from ``table`` or ``draw``.

        Returns:
            int64 (N,) if views do not mix, else float32 (N, C): each class's share of the view.

        Raises:
            UserInputError: E_DATA, an image of ``images`` has no class.
        """
        labels = self._images.labels
        unknown = [row for row in rows_shown(table) if labels[row] < 0]
        if unknown:
            text = f"image {unknown[0]} has no class; expected items (image, class)"
            raise UserInputError.make("E_DATA", text + " for labels='hard'")
        if not self.is_augmented or self.views.mix == "none":
            return torch.from_numpy(labels[table[:, ViewColumn.IMAGE]])
        return mixed_labels(table, labels, len(self.classes), size=self.views.size)
