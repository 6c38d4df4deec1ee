"""Stream batches of an archive, filled across passes.

``PassSampler`` gives the order of ``Order``, so that ten images and a thousand images are compared
at equal numbers of gradient steps: on a CPU to a plain ``DataLoader`` over a ``HelloDataset``, on a
GPU to what ``HelloLoader`` makes its batches with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from torch.utils.data import DataLoader, Sampler

from hellofmt.loading import mixed_labels
from hellofmt.loading.epoch_index import EpochIndex
from hellofmt.runs.order import Order
from hellofmt.runs.workers import end_silently, own_sockets

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from hellofmt.loading import HelloDataset
    from hellofmt.loading.batch_maker import BatchMaker
    from hellofmt.student.recipes import Recipe

_BATCH_SECONDS: Final = 300
"""Longest wait for a batch before its worker counts as hung; a killed one is noticed at once."""

Batch: TypeAlias = "tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]"
"""``(images, targets)``, or ``(images, logits, hard labels)``."""


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
        """Choose the order of ``batches`` batches, whose size may exceed the number of rows.

        The ``first`` are skipped; ``share`` are the rows of every batch to yield, None all.
        """
        if rows < 1 or batch_size < 1:
            raise ValueError(
                f"rows and batch_size: expected at least 1, got {rows} and {batch_size}"
            )
        self._order, self._batch_size = Order(seed, rows), batch_size
        self._batches = batches
        self._first, self._share = first, share

    def __len__(self) -> int:
        """Return the number of batches."""
        return max(0, self._batches - self._first)

    def places(self, k: int) -> NDArray[np.int64]:
        """Return rows and epochs of this share of batch k, counted from 0: int64 (B, 2)."""
        whole = self._order.positions(k * self._batch_size, self._batch_size)
        return whole if self._share is None else whole[self._share]

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches as lists of ``EpochIndex``."""
        for k in range(self._first, self._batches):
            yield [EpochIndex(row, epoch) for row, epoch in self.places(k).tolist()]


@dataclass(frozen=True)
class ArchiveBatches:
    """Batches of an archive for one recipe: the same ones, wherever they are made.

    ``steps`` batches from number ``first`` on in an order by ``seed``; of each the rows of
    ``share``, or all. ``maker`` makes them in this process; without one a ``DataLoader`` with
    ``workers`` does.
    """

    dataset: HelloDataset
    recipe: Recipe
    steps: int
    seed: int
    workers: int = 0
    first: int = 0
    share: slice | None = None
    maker: BatchMaker | None = None

    def __post_init__(self) -> None:
        """Check that the data set provides what the recipe reads."""
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
        made: Iterable[Sequence[Tensor]]
        if self.maker is not None:
            made = self.maker.batches(sampler)
        else:
            if self.workers:
                own_sockets()
            made = DataLoader(
                self.dataset,
                batch_sampler=sampler,
                num_workers=self.workers,
                worker_init_fn=end_silently,
                timeout=_BATCH_SECONDS if self.workers else 0,
            )
        for k, (images, targets) in enumerate(made, self.first):
            if self.recipe.loss == "mse_ce" and self.recipe.hard_weight:
                yield images, targets, self._hard(sampler.places(k))
            else:
                yield images, targets

    def _hard(self, places: NDArray[np.int64]) -> Tensor:
        # The table is a pure function of (seed, epoch, row), so it need not travel with the batch.
        table = self.dataset.table(places[:, 0], places[:, 1])
        classes, size = len(self.dataset.classes), self.dataset.views.size
        return mixed_labels(table, np.asarray(self.dataset.targets), classes, size=size)
