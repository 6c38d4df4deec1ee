"""Processes that read and decode ahead of the network, in an order that does not depend on them.

torch's ``DataLoader`` does it: its workers die with their parent, and their death is an error.

Threads were rejected: Pillow decodes without the interpreter's lock, but opening a file, drawing
crops and copying hold it, and the thread that feeds a GPU would wait for them.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from multiprocessing.util import get_temp_dir
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset

from hellofmt.archive.parallel import cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_MOST: Final = 16
_AHEAD: Final = 2
"""Tasks that wait for each worker."""
_SECONDS: Final = 300
"""Longest wait for a task before its worker counts as hung; a killed one is noticed at once."""

_Key = TypeVar("_Key")
_Made = TypeVar("_Made")


def default_workers() -> int:
    """Return how many workers suit this process: its cores but one, at most 16.

    The cores are divided among the processes that ``torchrun`` started here.
    """
    return max(0, min(cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1, _MOST))


@dataclass(frozen=True)
class _Failure:
    """An error on its way out of a worker; torch would keep its class and a text."""

    error: Exception


class _Tasks(Dataset[Any], Generic[_Key, _Made]):
    """A function as a data set, whose indices are its arguments."""

    def __init__(self, make: Callable[[_Key], _Made]) -> None:
        self._make = make

    def __getitem__(self, key: _Key) -> _Made | _Failure:
        try:
            return self._make(key)
        except Exception as error:
            return _Failure(error)


def _as_it_is(item: Any) -> Any:
    return item


def end_silently(_number: int) -> None:
    """Let a worker whose parent was interrupted end without the traceback of one of its threads.

    What its data set raises reaches the parent all the same. For ``worker_init_fn``.
    """

    def nothing(*_: object) -> None:
        pass

    sys.excepthook = nothing


def own_sockets() -> None:
    """Let this process remove the folder in which its workers will keep their sockets.

    Each would make one of its own in the folder for temporary files, and a worker that is ended
    with this process, as after Ctrl-C, removes nothing.
    """
    get_temp_dir()


def made(
    make: Callable[[_Key], _Made], keys: Iterable[_Key], *, workers: int = 0, pin: bool = False
) -> Iterator[_Made]:
    """Yield ``make(key)`` of every key, in their order, made ahead by worker processes.

    Args:
        make: makes tensors, or tuples of them, from a key; runs in the workers.
        keys: small values; taken one by one, at most ``2 * workers`` ahead.
        workers: number of processes; 0 makes everything here, when it is asked for.
        pin: copy the tensors to pinned memory, for a GPU.

    Yields:
        What was made.

    Raises:
        Exception: whatever ``make`` raised, at its place.
        RuntimeError: a worker was killed, or gave nothing for five minutes.
    """
    if not workers:
        yield from map(make, keys)
        return
    own_sockets()
    loader = DataLoader(
        _Tasks(make),
        sampler=cast("Any", keys),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        worker_init_fn=end_silently,
        prefetch_factor=_AHEAD,
        timeout=_SECONDS,
        pin_memory=pin,
        # Forked workers share the listing; elsewhere forking is unsafe or unknown.
        multiprocessing_context="fork" if sys.platform == "linux" else None,
        # The workers' seed would be drawn from the caller's generator.
        generator=torch.Generator(),
    )
    for item in loader:
        if isinstance(item, _Failure):
            raise item.error
        yield item
