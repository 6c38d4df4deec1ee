"""Global batches of an epoch, and the part of each that a rank reads.

Global batch b takes the positions [bG, (b + 1)G) of the epoch's order, with G = batch_size * world,
and only then is it cut into one contiguous part per rank. So the same G gives the same global
batches on any number of ranks, and a position in an epoch is one number, ``next_batch``. Splitting
ranks first, as torch's ``DistributedSampler`` does, makes the batches a function of the number of
ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hellofmt.runs.ranks import Place


@dataclass(frozen=True)
class GlobalBatches:
    """How the rows of an epoch fall into batches of ``batch_size`` rows per rank."""

    rows: int
    batch_size: int
    drop_last: bool

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.batch_size < 1:
            raise ValueError(f"`batch_size`: expected at least 1, got {self.batch_size}")
        if self.rows < 1:
            raise ValueError(f"`dataset`: expected at least 1 row, got {self.rows}")

    def size(self, world: int) -> int:
        """Return the rows of a global batch of so many ranks."""
        return self.batch_size * world

    def count(self, size: int) -> int:
        """Return the global batches of ``size`` rows in an epoch."""
        return self.rows // size if self.drop_last else -(-self.rows // size)

    def dropped(self, world: int) -> int:
        """Return the rows that an epoch leaves out, over all ranks."""
        return self.rows % self.size(world) if self.drop_last else 0

    def check(self, world: int) -> None:
        """Raise ValueError if ``drop_last`` leaves out the only batch."""
        if self.drop_last and self.rows < self.size(world):
            raise ValueError(
                f"`drop_last`: {self.rows} rows are fewer than one global batch; expected at"
                f" least {self.size(world)} ({self.batch_size} x {world} ranks)"
            )

    def part(self, batch: int, place: Place) -> tuple[list[int], list[bool]]:
        """Return the positions of a rank's batch in the epoch's order, and which are padding."""
        first = batch * self.size(place.world)
        here = min(self.size(place.world), self.rows - first)
        each = -(-here // place.world)
        mine = range(place.rank * each, (place.rank + 1) * each)
        is_padding = [i >= here for i in mine]
        positions = [
            (i - here) % self.rows if pad else first + i
            for i, pad in zip(mine, is_padding, strict=True)
        ]
        return positions, is_padding
