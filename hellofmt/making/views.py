"""Batches of random views of real images, for teachers and projectors.

Batch k is a pure function of (seed, k): the same for any number of workers and processes, and after
a resume. A view is what students will see of the data set: a random crop, perhaps mirrored, perhaps
mixed with a partner. Workers read, shuffle patches, cut and resize, giving squares of 8 bits, which
are mixed where the network is, by the kernel that draws archives on a GPU.

The partner of a mixed view is another view of the same batch, drawn from the eight consecutive
positions around it, so that a view costs one decoded image. The order is shuffled, so a neighbour
is as random as any image. An archive draws its partners from the whole set instead
(``hellofmt.loading.views.table``): there a label must not depend on who else is in the batch. A
partner's patches are shuffled as for the view that it is itself, where an archive gives both one
permutation.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

import hellofmt_kernels
from hellofmt.loading.views.crops import rules_of
from hellofmt.loading.views.exact import beta_quantile
from hellofmt.loading.views.normalise import normalise
from hellofmt.loading.views.table import LAMBDA, MIX, PARTNER, ViewColumn, cut_boxes, mixing_words
from hellofmt.making.squares import ViewSquares
from hellofmt.rng import below, uniform
from hellofmt.runs.order import Order
from hellofmt.runs.workers import made
from hellofmt_kernels.views.row import VIEW_COLUMNS, WEIGHT_ONE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from hellofmt.archive.format.views import Views
    from hellofmt.sources.source import Source

_GROUP: Final = 8
"""Consecutive positions among which partners are drawn: the shares of processes rarely cut one."""
_PART: Final = 128
"""Views of one task of a worker."""
_BOX: Final = slice(ViewColumn.Y0, ViewColumn.X1 + 1)


@dataclass(frozen=True)
class ViewBatch:
    """One batch of views, or a part of one.

    Attributes:
        views: float32 (N, 3, S, S) in [0, 1], channels last, before any normalisation.
        labels: int64 (N, 2), classes of a view and of its partner; equal if it is not mixed.
        shares: float32 (N,), the share of the view that shows its own class.
        unmixed: views of the whole batch that show one image alone.
    """

    views: Tensor
    labels: Tensor
    shares: Tensor
    unmixed: int

    def hard(self, classes: int) -> Tensor:
        """Return hard labels mixed by area: float32 (N, ``classes``)."""
        hard = torch.zeros(len(self.shares), classes, device=self.shares.device)
        both = torch.stack([self.shares, 1 - self.shares], dim=1)
        return hard.scatter_add_(1, self.labels, both)


@dataclass(frozen=True)
class _Plan:
    """What a batch is made of.

    Attributes:
        places: int64 (M, 2), row and epoch of every square that is needed.
        table: int32 (N, 20), a row for each view, whose images are squares.
        unmixed: views of the whole batch that are not mixed.
    """

    places: NDArray[np.int64]
    table: NDArray[np.int32]
    unmixed: int


@dataclass(frozen=True)
class ViewBatches:
    """Endless batches of views of real images; there may be fewer images than ``batch_size``."""

    source: Source
    views: Views
    batch_size: int
    seed: int
    _order: Order = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Prepare the order."""
        object.__setattr__(self, "_order", Order(self.seed, len(self.source)))

    def batch(self, k: int, rows: slice | None = None) -> ViewBatch:
        """Make batch number k >= 0, or some of its rows, here and now, on the CPU."""
        return next(self.stream(k, rows))

    def stream(
        self,
        first: int = 0,
        rows: slice | None = None,
        *,
        end: int | None = None,
        workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> Iterator[ViewBatch]:
        """Yield batches ``first``, ``first + 1``, ... before ``end``, drawn on ``device``.

        ``rows`` says which of the ``batch_size`` rows to make, which do not depend on this; None
        makes all. ``workers`` processes decode ahead.
        """
        device = torch.device(device)
        numbers = count(first) if end is None else range(first, end)
        ahead: list[tuple[_Plan, int]] = []

        def parts() -> Iterator[NDArray[np.int64]]:
            for k in numbers:
                plan = self._plan(k, rows)
                cuts = range(0, len(plan.places), _PART)
                ahead.append((plan, len(cuts)))
                for at in cuts:
                    yield plan.places[at : at + _PART]

        squares = ViewSquares(self.source, self.views, self.seed)
        is_pinned = device.type == "cuda"
        stream = made(squares, parts(), workers=workers, pin=is_pinned and workers > 0)
        for part in stream:
            plan, size = ahead.pop(0)
            rest = islice(stream, size - 1)
            moved = [p.to(device, non_blocking=True) for p in (part, *rest)]
            yield self._batch(plan, moved[0] if size == 1 else torch.cat(moved))

    def _plan(self, k: int, rows: slice | None) -> _Plan:
        """Say which squares make these rows of batch ``k``, and how."""
        place = self._order.positions(k * self.batch_size, self.batch_size)
        size, rules = self.views.size, rules_of(self.views)
        at = np.arange(self.batch_size)
        table = np.zeros((self.batch_size, VIEW_COLUMNS), np.int64)
        for side in (ViewColumn.HEIGHT, ViewColumn.WIDTH):
            table[:, side] = table[:, side + ViewColumn.PARTNER_HEIGHT - ViewColumn.HEIGHT] = size
        table[:, ViewColumn.IMAGE] = table[:, ViewColumn.PARTNER_IMAGE] = at
        table[:, ViewColumn.WEIGHT] = WEIGHT_ONE
        table[:, ViewColumn.SHUFFLE] = 1
        word = mixing_words(rules, self.seed, place[:, 1], place[:, 0])
        unmixed = self.batch_size
        if word.shape[1]:
            start = at - at % _GROUP
            others = np.minimum(_GROUP, self.batch_size - start) - 1
            partner = start + (at - start + 1 + below(word[:, PARTNER], np.maximum(others, 1))) % (
                others + 1
            )
            is_mixed = (uniform(word[:, MIX]) < rules.probability) & (others > 0)
            share = beta_quantile(uniform(word[:, LAMBDA]), rules.alpha)
            if rules.mix == "cutmix":
                box = cut_boxes(rules, word, share)
                is_mixed &= box[:, 0] < box[:, 2]
                table[is_mixed, _BOX] = box[is_mixed]
            else:
                weight = np.rint(share * WEIGHT_ONE).astype(np.int64)
                is_mixed &= weight < WEIGHT_ONE
                table[is_mixed, ViewColumn.WEIGHT] = weight[is_mixed]
            table[is_mixed, ViewColumn.PARTNER_IMAGE] = partner[is_mixed]
            unmixed -= int(is_mixed.sum())
        if rows is not None:
            table = table[rows]
            pair = [ViewColumn.IMAGE, ViewColumn.PARTNER_IMAGE]
            needed = np.array(sorted(set(table[:, pair].ravel().tolist())), np.int64)
            table[:, pair] = np.searchsorted(needed, table[:, pair])
            place = place[needed]
        return _Plan(place, table.astype(np.int32), unmixed)

    def _batch(self, plan: _Plan, squares: Tensor) -> ViewBatch:
        """Draw what was planned."""
        table = plan.table
        box = table[:, _BOX].astype(np.float64)
        area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
        weight = table[:, ViewColumn.WEIGHT] / WEIGHT_ONE
        share = weight * (1.0 - area / float(self.views.size) ** 2)
        pair = table[:, [ViewColumn.IMAGE, ViewColumn.PARTNER_IMAGE]]
        labels = self.source.labels_of(plan.places[pair, 0])
        device = squares.device
        return ViewBatch(
            draw(squares, table, self.views.size),
            torch.from_numpy(labels).to(device, non_blocking=True),
            torch.from_numpy(share.astype(np.float32)).to(device, non_blocking=True),
            plan.unmixed,
        )


def draw(squares: Tensor, table: NDArray[np.int32], size: int) -> Tensor:
    """Mix squares, uint8 (M, S, S, 3), into views, float32 (N, 3, S, S) in [0, 1], channels last.

    The rows of ``table`` are those of ``hellofmt_kernels.views`` without crops, flips and shuffles.
    """
    if squares.device.type == "cuda":
        rows = torch.from_numpy(table)
        return hellofmt_kernels.views(squares, rows, size, channels_last=True)
    own = table[:, ViewColumn.IMAGE]
    mixed = np.flatnonzero(own != table[:, ViewColumn.PARTNER_IMAGE])
    places = table[mixed][:, [ViewColumn.PARTNER_IMAGE, *range(ViewColumn.Y0, ViewColumn.X1 + 1)]]
    weights = (table[mixed, ViewColumn.WEIGHT] / WEIGHT_ONE).tolist()
    mixes = list(zip(mixed.tolist(), places.tolist(), weights, strict=True))
    stored = squares.numpy()
    # A copy: partners are not mixed themselves. Boxes are cut before there are four bytes a value.
    cut = stored[own] if mixes or len(own) != len(stored) else stored
    for i, (j, y0, x0, y1, x1), _ in mixes:
        cut[i, y0:y1, x0:x1] = stored[j, y0:y1, x0:x1]
    views = torch.from_numpy(cut).float().div_(255)
    for i, (j, *_), weight in mixes:
        if weight < 1:
            views[i].mul_(weight).add_(squares[j].float().div_(255), alpha=1 - weight)
    return views.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class HardBatches:
    """``(images, hard labels)`` of real images, to train a teacher.

    ``steps`` batches, or endless, from number ``first`` on; of each the rows of ``share``, or all.
    """

    batches: ViewBatches
    steps: int | None = None
    first: int = 0
    share: slice | None = None
    workers: int = 0
    device: torch.device | str = "cpu"

    def after(self, steps: int) -> HardBatches:
        """Return the same batches without the first ``steps``, which are never made."""
        return replace(self, first=self.first + steps)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches ``first``, ``first + 1``, ..., normalised by the mean and std of the views.

        Labels are classes, int64 (N,), or mixed by area, float32 (N, C), if the views are mixed.
        """
        views, classes = self.batches.views, len(self.batches.source.classes)
        for batch in self.batches.stream(
            self.first, self.share, end=self.steps, workers=self.workers, device=self.device
        ):
            yield normalise(batch.views, views), batch.hard(classes)
