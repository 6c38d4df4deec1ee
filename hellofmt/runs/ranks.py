"""Run in several processes, as started by ``torchrun``.

Nothing here starts a process: ``torchrun`` does that, and torch.distributed moves the data. Without
them everything is rank 0 of 1. The batch of a step is the same *global* batch for any number of
processes; each takes a contiguous share of its rows, and gradients are summed with global
normalisers, so the result differs from one process only by the rounding of sums.

A process that dies is noticed at once: its connections close, and ``torchrun`` ends the others. One
that hangs is noticed in the messages of a step, or by its silence where others ``wait`` for it.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import torch
from torch import distributed

from hellofmt.errors import HelloError
from hellofmt.runs.watch import PATIENCE, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from numpy.typing import NDArray
    from torch.distributed.distributed_c10d import Store

_Fact = TypeVar("_Fact")

_MESSAGE_BYTES: Final = 1 << 26
"""Bytes of a large array sent at once: the pixels of a data set may not fit on a GPU."""


@dataclass(frozen=True)
class Place:
    """The place of a process among all: 0 <= rank < world."""

    rank: int
    world: int


def current() -> Place:
    """Return the place of this process in ``torch.distributed``; (0, 1) without it."""
    if distributed.is_available() and distributed.is_initialized():
        return Place(distributed.get_rank(), distributed.get_world_size())
    return Place(0, 1)


class InheritedPlace:
    """The place of this process, or, in a spawned worker, that of the process that started it.

    A spawned worker belongs to no group; whatever it is given by pickling brings the place along.
    """

    def __init__(self) -> None:
        """Start as rank 0 of 1."""
        self._parent = Place(0, 1)

    def __getstate__(self) -> dict[str, Place]:
        """Pickle the place of this process."""
        return {"_parent": self.current()}

    def current(self) -> Place:
        """Return the place; see the class."""
        place = current()
        return self._parent if place.world == 1 else place


def share(rows: int) -> slice:
    """Return this process's contiguous rows of a global batch; sizes differ by at most one."""
    place = current()
    return slice(rows * place.rank // place.world, rows * (place.rank + 1) // place.world)


_watch: Watch | None = None
"""Of the processes that ``joined`` joined; a group that somebody else made has none."""


@contextmanager
def _message() -> Generator[None]:
    """Around a message: where it takes too long, say whose fault that is."""
    start = time.monotonic()
    try:
        yield
    except RuntimeError as error:
        # A process that died breaks a connection much earlier, and is told by torchrun.
        if _watch is None or time.monotonic() - start < 0.9 * _watch.patience:
            raise
        blame = _watch.blame()
        if blame is None:
            raise
        raise blame from error


def sum_(tensor: torch.Tensor) -> torch.Tensor:
    """Replace ``tensor`` with its sum over all processes."""
    if current().world > 1:
        with _message():
            distributed.all_reduce(tensor)
    return tensor


def sum_rows_(array: NDArray[Any]) -> NDArray[Any]:
    """Replace ``array`` with its sum over all processes, and return it.

    If each process filled its rows and left zeros elsewhere, this gathers them without changing a
    bit: ``x + 0`` is ``x``.
    """
    if current().world > 1:
        flat = torch.from_numpy(array).view(-1)
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        for part in flat.split(max(1, _MESSAGE_BYTES // array.itemsize)):
            part.copy_(sum_(part.to(device)))
    return array


def union_(marks: NDArray[np.uint16]) -> None:
    """Set in ``marks``, contiguous and of one size everywhere, every bit that any process set."""
    if current().world > 1:
        wait()
        marks[:] = np.packbits(sum_rows_(np.unpackbits(marks.view(np.uint8))) > 0).view(np.uint16)


def holder(fact: bool) -> int | None:
    """Return the lowest rank whose ``fact`` is true, None if there is none."""
    (rank,) = holders(np.array([fact])).tolist()
    return None if rank < 0 else rank


def holders(facts: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return, for each of (N,) facts, the lowest rank where it is true, else -1: int64 (N,)."""
    world = current().world
    every: list[Any] = [facts] * world
    if world > 1:
        wait()
        distributed.all_gather_object(every, facts)
    said = np.stack(every)
    return np.where(said.any(axis=0), said.argmax(axis=0), -1)


def handed(call: Callable[[], _Fact], holder: int = 0) -> _Fact:
    """Return, in every process, what ``call`` returns in ``holder`` alone, or raise its error.

    It may take its time; what it returns is pickled, and is small.
    """
    place = current()
    if place.world == 1:
        return call()
    box: list[Any] = [None]
    if place.rank == holder:
        try:
            box = [(call(), None)]
        except (HelloError, OSError) as error:
            box = [(None, error)]
    wait()
    distributed.broadcast_object_list(box, src=holder)
    value, error = box[0]
    if error is not None:
        raise error
    return value


def hand_(data: NDArray[np.uint8], holder: int = 0) -> None:
    """Replace ``data``, contiguous and of one size everywhere, with that of one process."""
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    for part in torch.from_numpy(data).split(_MESSAGE_BYTES):
        message = part.to(device)
        distributed.broadcast(message, src=holder)
        part.copy_(message)


def leads_machine() -> bool:
    """Tell whether this is the first process of its machine, which writes there."""
    return current().world == 1 or os.environ.get("LOCAL_RANK", "0") == "0"


def is_unanimous(say: Callable[[], object]) -> bool:
    """Tell whether ``say`` returns the same in all processes; alone, it is not called."""
    world = current().world
    if world == 1:
        return True
    fact = say()
    wait()
    said: list[object] = [None] * world
    distributed.all_gather_object(said, fact)
    return all(other == fact for other in said)


@torch.no_grad()
def same_(tensors: Iterable[torch.Tensor]) -> None:
    """Replace every tensor with rank 0's."""
    if current().world == 1:
        return
    wait()
    for tensor in tensors:
        # Messages must be contiguous; a channels-last tensor is not.
        dense = tensor.contiguous()
        distributed.broadcast(dense, src=0)
        if dense is not tensor:
            tensor.copy_(dense)


def sum_gradients(trained: Sequence[torch.nn.Parameter], loss: torch.Tensor) -> torch.Tensor:
    """Sum gradients and this process's share of the loss over all processes in one message."""
    if current().world == 1:
        return loss
    with_gradient = [(p, p.grad) for p in trained if p.grad is not None]
    flat = torch.cat([loss.reshape(1), *(g.reshape(-1) for _, g in with_gradient)])
    sum_(flat)
    start = 1
    for parameter, gradient in with_gradient:
        parameter.grad = flat[start : start + gradient.numel()].view_as(gradient).clone()
        start += gradient.numel()
    return flat[0]


def wait() -> None:
    """Wait until every process gets here, however long one of them works."""
    if _watch is not None:
        _watch.wait()
    elif current().world > 1:
        distributed.barrier()


@contextmanager
def first_on_machine() -> Generator[None]:
    """Run the block in the first process of each machine, then in all others."""
    leads = leads_machine()
    if not leads:
        wait()
    yield
    if leads:
        wait()


@contextmanager
def joined(device: str = "cpu") -> Generator[Place]:
    """Join the processes that ``torchrun`` started, for the duration of the block.

    ``cpu`` talks over gloo, ``cuda`` over NCCL; outside ``torchrun`` the place is (0, 1).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or distributed.is_initialized():
        yield current()
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    global _watch
    backend = "nccl" if device.startswith("cuda") else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(seconds=PATIENCE))
    place = current()
    _watch = Watch(_store(), place.rank, place.world)
    try:
        yield place
    finally:
        _watch.close()
        _watch = None
        distributed.destroy_process_group()


def _store() -> Store:
    """A connection of its own to the store of ``torchrun``; a message may block the group's."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        host, port, is_master=False, wait_for_workers=False
    )
    # A restarted run finds what the one before left.
    run = (os.environ.get(f"TORCHELASTIC_{name}", "") for name in ("RUN_ID", "RESTART_COUNT"))
    return distributed.PrefixStore(  # pyright: ignore[reportPrivateImportUsage]
        f"hellofmt/{'/'.join(run)}", store
    )
