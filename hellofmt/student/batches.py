"""Stream batches of views, of an archive or of images in memory, in one order.

Training counts steps, not epochs: ten images and a thousand images are compared at equal numbers of
gradient steps. A distilled set can be smaller than a batch, so batches are filled across passes:
position p of the endless stream is image ``order(epoch)[p mod N]`` of epoch ``p div N``. No batch
is short, and the schedule never depends on N. ``PassSampler`` gives that order to a plain
``DataLoader`` over a ``HelloDataset``; ``ArrayBatches`` does the same for images in memory: the
real data that teachers and projectors are fitted to, and the control that trains on all of it. Both
are pure functions of one seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import numpy as np
from torch.utils.data import DataLoader, Sampler

from hellofmt import rng
from hellofmt.loading import mixed_labels, normalise, render, view_table
from hellofmt.loading.epoch_index import EpochIndex

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from hellofmt.archive.format.manifest import Views
    from hellofmt.loading import HelloDataset
    from hellofmt.student.recipes import Recipe

__all__ = [
    "ArchiveBatches",
    "ArrayBatches",
    "Batch",
    "HardBatches",
    "PassSampler",
    "ViewBatch",
    "positions",
]

_BATCH_SECONDS: Final = 300
"""Longest wait for a batch before its worker counts as hung; a killed one is noticed at once."""

Batch: TypeAlias = "tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]"
"""``(images, targets)``, or ``(images, logits, hard labels)``."""


def positions(seed: int, n: int, first: int, count: int) -> NDArray[np.int64]:
    """Return rows and epochs of positions ``first .. first + count - 1`` of the endless stream.

    Args:
        seed: seed of the order.
        n: number of images, >= 1.
        first: first position.
        count: number of positions.

    Returns:
        int64 (count, 2): row, epoch.
    """
    place = np.arange(first, first + count, dtype=np.int64)
    epochs, within = np.divmod(place, n)
    rows = np.empty(count, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        rows[here] = rng.order(seed, int(epoch), n)[within[here]]
    return np.stack([rows, epochs], axis=1)


@dataclass(frozen=True)
class ViewBatch:
    """One batch of views with everything that a teacher, a projector or a student reads.

    Attributes:
        views: float32 (N, 3, S, S) in [0, 1], before any normalisation: the input of labels.
        images: the same views, normalised for the student.
        hard: float32 (N, C), hard labels mixed by area.
    """

    views: Tensor
    images: Tensor
    hard: Tensor


@dataclass(frozen=True)
class ArrayBatches:
    """Views of images in memory; batch k is a pure function of (seed, k).

    Attributes:
        pixels: uint8 (N, H, W, 3).
        labels: int64 (N,), each in [0, classes).
        classes: number of classes C.
        views: how to make a view.
        batch_size: views per batch, >= 1; may exceed N.
        seed: seed of order and views.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: int
    views: Views
    batch_size: int
    seed: int

    def batch(self, k: int, rows: slice | None = None) -> ViewBatch:
        """Make batch number k >= 0 or some of its rows, which do not depend on the division.

        Args:
            k: number of the batch.
            rows: which of its ``batch_size`` rows to make; None makes all.

        Returns:
            These rows of the batch.
        """
        n, height, width = self.pixels.shape[:3]
        place = positions(self.seed, n, k * self.batch_size, self.batch_size)
        if rows is not None:
            place = place[rows]
        table = view_table(
            self.views,
            seed=self.seed,
            epochs=place[:, 1],
            indices=place[:, 0],
            heights=np.full(n, height, np.int64),
            widths=np.full(n, width, np.int64),
            count=n,
        )
        images = cast("Sequence[NDArray[np.uint8]]", self.pixels)
        views = render(images, table, self.views)
        hard = mixed_labels(table, self.labels, self.classes, size=self.views.size)
        return ViewBatch(views, normalise(views, self.views), hard)

    def __iter__(self) -> Iterator[ViewBatch]:
        """Yield batches 0, 1, 2, ... without end."""
        k = 0
        while True:
            yield self.batch(k)
            k += 1


@dataclass(frozen=True)
class HardBatches:
    """Endless ``(images, hard labels)`` of batches in memory, to train a teacher.

    Attributes:
        batches: source of the batches.
        first: number of batches to skip at the start.
    """

    batches: ArrayBatches
    first: int = 0

    def after(self, steps: int) -> HardBatches:
        """Return the same batches without the first ``steps``, which are never made."""
        return replace(self, first=self.first + steps)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches ``first``, ``first + 1``, ..."""
        for k in count(self.first):
            batch = self.batches.batch(k)
            yield batch.images, batch.hard


class PassSampler(Sampler[list[int]]):
    """Sample full batches of rows across passes; for a ``DataLoader``'s ``batch_sampler``.

    Each index carries its epoch, so a row that occurs twice in a batch gets two views.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        *,
        batches: int,
        seed: int,
        first: int = 0,
        share: slice | None = None,
    ) -> None:
        """Choose the order.

        Args:
            rows: number of rows of the data set, >= 1.
            batch_size: rows per batch, >= 1; may exceed ``rows``.
            batches: number of batches.
            seed: seed of the order.
            first: number of batches to skip at the start.
            share: rows of every batch to yield; None yields all.

        Raises:
            ValueError: rows or batch_size < 1.
        """
        if rows < 1 or batch_size < 1:
            raise ValueError(
                f"rows and batch_size: expected at least 1, got {rows} and {batch_size}"
            )
        self._rows, self._batch_size = rows, batch_size
        self._batches, self._seed = batches, seed
        self._first, self._share = first, share

    def __len__(self) -> int:
        """Return the number of batches."""
        return max(0, self._batches - self._first)

    def places(self, k: int) -> NDArray[np.int64]:
        """Return rows and epochs of this share of batch k, counted from 0: int64 (B, 2)."""
        whole = positions(self._seed, self._rows, k * self._batch_size, self._batch_size)
        return whole if self._share is None else whole[self._share]

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches as lists of ``EpochIndex``."""
        for k in range(self._first, self._batches):
            yield [EpochIndex(row, epoch) for row, epoch in self.places(k).tolist()]


@dataclass(frozen=True)
class ArchiveBatches:
    """Batches of an archive for one recipe, through a plain ``DataLoader``.

    Attributes:
        dataset: data set with the ``labels`` that the recipe reads.
        recipe: determines the batch size, and whether hard labels accompany the logits.
        steps: number of batches.
        seed: seed of the order; the seed of the views is the data set's.
        workers: number of ``DataLoader`` workers.
        first: number of batches to skip at the start.
        share: rows of every batch to yield, this process's share under ``torchrun``; None yields
            all.
    """

    dataset: HelloDataset
    recipe: Recipe
    steps: int
    seed: int
    workers: int = 0
    first: int = 0
    share: slice | None = None

    def __post_init__(self) -> None:
        """Check that the data set provides what the recipe reads.

        Raises:
            ValueError: its labels are of another kind, or its items are dicts.
        """
        if self.dataset.as_dict is not None:
            raise ValueError("`as_dict` of the data set: expected None, got items that are dicts")
        if self.dataset.labels != self.recipe.labels:
            raise ValueError(
                f"labels: recipe `{self.recipe.name}` reads `{self.recipe.labels}`,"
                f" got a data set with `{self.dataset.labels}`"
            )

    def after(self, steps: int) -> ArchiveBatches:
        """Return the same batches without the first ``steps``, which are never made."""
        return replace(self, first=self.first + steps)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches ``first`` to ``steps``, the same at every call."""
        sampler = PassSampler(
            len(self.dataset),
            self.recipe.batch_size,
            batches=self.steps,
            seed=self.seed,
            first=self.first,
            share=self.share,
        )
        loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
            self.dataset,
            batch_sampler=sampler,
            num_workers=self.workers,
            timeout=_BATCH_SECONDS if self.workers else 0,
        )
        for k, (images, targets) in enumerate(loader, self.first):
            if self.recipe.loss == "mse_ce" and self.recipe.hard_weight:
                yield images, targets, self._hard(sampler.places(k))
            else:
                yield images, targets

    def _hard(self, places: NDArray[np.int64]) -> Tensor:
        # The table is a pure function of (seed, epoch, row), so it need not travel with the batch.
        table = self.dataset.table(places[:, 0], places[:, 1])
        classes, size = len(self.dataset.classes), self.dataset.views.size
        return mixed_labels(table, np.asarray(self.dataset.targets), classes, size=size)
