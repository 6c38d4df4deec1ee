"""Epochs of rows that come without one, counted so that no view of a run is made twice.

A plain ``DataLoader`` never says which epoch it is in, and what is set in the parent process does
not reach persistent workers. So a row's epoch is ``set_epoch``'s value plus the number of times
that the row was served since, counted in memory that all workers share. A counter per row, not one
per pass, because a worker sees only its own batches and cannot tell where a pass begins.

Ranks share no memory, and which rank serves a row changes from pass to pass: alone, two ranks would
count the same numbers and show the same views again. So on W ranks, what rank r serves for the k-th
time (k = 0, 1, ...) is of epoch kW + r, which no other rank counts; of K views that come again, it
begins with view rK / W, for kW + r would not reach them all. After ``set_epoch`` the rows
are of that epoch on every rank, the same as on one; a row that is repeated meanwhile, to fill up
the ranks' batches, gets an epoch beyond 2**31 that nothing else has.

The counters need no lock. Within a pass a row is in one batch and a batch in one worker, so each
counter has one writer at a time, its store is one aligned word, and the next pass begins after the
batch has come back through a queue. A sampler that draws a row twice at once (with replacement) may
lose a count between two workers: one view repeats, nothing breaks. Workers fetch ahead, so a pass
that is abandoned has counted rows that nobody saw; where that matters, use ``HelloSampler``.
"""

from __future__ import annotations

import os
import warnings
from typing import Any, Final

import torch
from torch.utils.data import get_worker_info

from hellofmt.errors import UserInputError
from hellofmt.loading.arguments import whole
from hellofmt.loading.division import divider_of
from hellofmt.runs.ranks import InheritedPlace, Place

# Where the epochs of repeated rows begin: the upper half of all epochs.
_REPEATED: Final = 1 << 31


class EpochCounter:
    """How often each row of a dataset was served, in memory shared with its workers."""

    def __init__(self, rows: int) -> None:
        """Start at epoch 0, with so many rows."""
        # -1: `set_epoch` was never called.
        self._epoch = torch.full((1,), -1, dtype=torch.int64).share_memory_()
        self._served = torch.zeros(rows, dtype=torch.int32).share_memory_()
        self._process = os.getpid()
        self._inherited = InheritedPlace()
        self._has_warned = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore; a copy, unlike a worker, gets counters that its own workers share."""
        self.__dict__.update(state)
        self._epoch.share_memory_()
        self._served.share_memory_()

    def own(self) -> None:
        """Leave the counters to the process that forked or spawned this one, unless a worker.

        The workers of a process's loaders share its counters, but ranks must not: each goes
        through an epoch by itself.
        """
        if self._process != os.getpid() and get_worker_info() is None:
            self._process = os.getpid()
            self._epoch = self._epoch.clone().share_memory_()
            self._served = self._served.clone().share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Start counting from ``epoch``, 0 <= epoch < 2**32."""
        epoch = whole(epoch, "epoch", 0, 32)
        self.own()
        self._epoch.fill_(epoch)
        self._served.zero_()

    def epochs(
        self, rows: list[int], drawn: object, *, is_finite: bool = False, cycle: int | None = None
    ) -> list[int]:
        """Count rows, which may repeat, as served and return the epoch of each.

        ``drawn`` is the dataset, by which ``divider_of`` knows who divides its rows. Replayed
        labels are ``is_finite``: their epochs do not start over. After ``cycle`` epochs views come
        again.
        """
        told, place, served = int(self._epoch), self._inherited.current(), self._served.numpy()
        if place.world > 1 and told < 0 and is_finite:
            text = "stored labels on several ranks, of epochs that nobody names; expected a"
            text += " `HelloSampler`, or `set_epoch` before every pass"
            raise UserInputError.make("E_OPTION", text)
        epochs: list[int] = []
        for row in rows:
            times = int(served[row])
            served[row] += 1
            if place.world == 1:
                epochs.append(max(told, 0) + times)
            elif told < 0 and cycle is not None:
                epochs.append(times + place.rank * cycle // place.world)
            elif told < 0:
                epochs.append(times * place.world + place.rank)
            elif times == 0 or is_finite:
                epochs.append(told)
            else:
                repetition = (told * place.world + place.rank) * 64 + times
                epochs.append(_REPEATED + repetition % _REPEATED)
        if place.world > 1 and told >= 0 and not self._has_warned:
            total = int(served.sum())
            # Beyond an equal share, batches may be filled up.
            share = -(-served.size // place.world) + len(rows)
            if total > share and divider_of(drawn) is None:
                self._has_warned = True
                self._warn(total, told, place)
        return epochs

    def _warn(self, total: int, told: int, place: Place) -> None:
        """Say that this rank serves more of an epoch than its share, so that views come again."""
        text = (
            f"rank {place.rank} of {place.world} served {total} rows since set_epoch({told}),"
            f" more than its share of {len(self._served)}, so views come more than once: call"
            " set_epoch before every pass, and divide the rows among the ranks (HelloSampler,"
            " DistributedSampler)"
        )
        warnings.warn(text, UserWarning, stacklevel=3)
