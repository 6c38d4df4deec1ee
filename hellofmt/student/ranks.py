"""Several processes of one run, as ``torchrun`` starts them.

Nothing here starts a process or moves data by itself: ``torchrun`` is the engine the field runs,
and torch.distributed does the rest. Without it everything is rank 0 of 1. The batch of a step is
the same *global* batch whatever the number of processes; each takes a contiguous share of its rows,
and gradients are summed with the global normalisers, so that the result differs from one process
only by the rounding of sums.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import distributed

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["Place", "agreed", "current", "joined", "share", "sum_", "wait"]


@dataclass(frozen=True)
class Place:
    """Which process this is.

    Attributes:
        rank: 0 <= rank < world.
        world: number of processes.
    """

    rank: int
    world: int


def current() -> Place:
    """This process among those of ``torch.distributed``; (0, 1) without it."""
    if distributed.is_available() and distributed.is_initialized():
        return Place(distributed.get_rank(), distributed.get_world_size())
    return Place(0, 1)


def share(rows: int) -> slice:
    """The contiguous rows of a global batch that this process works on; sizes differ by one."""
    place = current()
    return slice(rows * place.rank // place.world, rows * (place.rank + 1) // place.world)


def sum_(tensor: torch.Tensor) -> torch.Tensor:
    """Replace ``tensor`` by its sum over all processes."""
    if current().world > 1:
        distributed.all_reduce(tensor)
    return tensor


def agreed(fact: bool) -> bool:
    """What rank 0 says; a file seen by one process may not be visible to another yet."""
    if current().world == 1:
        return fact
    box: list[object] = [fact]
    distributed.broadcast_object_list(box, src=0)
    return bool(box[0])


def wait() -> None:
    """Wait until every process has come here."""
    if current().world > 1:
        distributed.barrier()


@contextmanager
def joined(device: str = "cpu") -> Generator[Place]:
    """Join the processes that ``torchrun`` started, for the length of the block.

    Args:
        device: ``cpu`` talks over gloo, ``cuda`` over NCCL.

    Yields:
        This process's place; (0, 1) outside ``torchrun``.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or distributed.is_initialized():
        yield current()
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield current()
    finally:
        distributed.destroy_process_group()
