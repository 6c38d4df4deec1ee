"""Threads for work that releases the interpreter lock: reading, hashing, writing, syncing.

Results come in the order of the items, and an error comes in place of its result, so threads change
the time and nothing else. No thread outlives its caller, whatever ends it, even a second interrupt:
a thread that wrote to a closed descriptor would write into whichever file got the number next.
Processes were rejected: sending images to them costs as much as hashing them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterable, Iterator
    from concurrent.futures import Future

    import numpy as np
    from numpy.typing import NDArray

Item = TypeVar("Item")
Result = TypeVar("Result")

# With more threads, everything waits for the interpreter lock.
_MOST_THREADS: Final = 4


def map_ordered(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    alone: Callable[[Item], bool] | None = None,
) -> Generator[Result]:
    """Yield ``work(item)`` for every item in order, computing some ahead in threads.

    A single item, or anything on a single core, runs in the caller's thread. Items are drawn there
    too, at most one per thread and one more ahead; ``alone`` tells of which none other may be held
    at the same time, because it is so large. Close the generator if you may leave early; it then
    waits for its threads.
    """
    threads = min(_MOST_THREADS, cores())
    drawn = iter(items)
    first = list(itertools.islice(drawn, 2))
    if threads < 2 or len(first) < 2:
        yield from map(work, itertools.chain(first, drawn))
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="hellofmt")
    pending: deque[Future[Result]] = deque()
    try:
        for item in itertools.chain(first, drawn):
            single = alone is not None and alone(item)
            while pending and (single or len(pending) > threads):
                yield _first(pending)
            pending.append(pool.submit(work, item))
            if single:
                yield _first(pending)
        while pending:
            yield _first(pending)
    finally:
        _join(pool, pending)


def map_chunks(
    work: Callable[[Item], Result], items: Iterable[Item], size: int
) -> Generator[Result]:
    """Do as ``map_ordered``, ``size`` items at a time: for work that is shorter than a handover."""
    drawn = iter(items)
    chunks = iter(lambda: list(itertools.islice(drawn, size)), [])
    with contextlib.closing(map_ordered(lambda chunk: list(map(work, chunk)), chunks)) as done:
        for results in done:
            yield from results


def cut_windows(start: NDArray[np.int64], end: NDArray[np.int64], most: int) -> Iterator[range]:
    """Cut consecutive rows into windows of at most ``most`` bytes, or of a single row.

    Row i takes the bytes from ``start[i]`` to ``end[i]``, where the next begins.
    """
    row = 0
    while row < len(start):
        after = int(end.searchsorted(start[row] + most, side="right"))
        yield range(row, max(after, row + 1))
        row = max(after, row + 1)


def _first(pending: deque[Future[Result]]) -> Result:
    """Return the first future's result; an interrupted wait leaves it pending."""
    result = pending[0].result()
    pending.popleft()
    return result


def cores() -> int:
    """Return the number of cores that this process may use, which macOS does not say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def beside(work: Callable[[], object]) -> Generator[None]:
    """Run ``work`` in a thread during the block; both have ended when the block exits."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="hellofmt")
    futures: list[Future[object]] = []
    try:
        futures.append(pool.submit(work))
        yield
        futures[0].result()
    finally:
        _join(pool, futures)


def _join(pool: ThreadPoolExecutor, futures: Collection[Future[Any]]) -> None:
    """Wait for the work of a pool; an interrupt is raised only afterwards.

    Waits for the futures before the threads: an interrupted ``Thread.join`` takes a running thread
    for a finished one (CPython 3.11).
    """
    interrupt: BaseException | None = None
    while True:
        try:
            pool.shutdown(wait=False, cancel_futures=True)
            wait([future for future in futures if not future.cancelled()])
            pool.shutdown()
            break
        except BaseException as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt
