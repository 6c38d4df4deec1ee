"""DataLoader workers watched while they work, and ended when the work is over.

torch tells at once when a worker was killed. With ``timeout=0`` it waits without end for one that
was *stopped* (SIGSTOP, a debugger, a frozen container; pytorch issue 21554); with a timeout of 120
seconds it takes that long to see that one has left with exit code 0, for it looks only when the
timeout is over. Afterwards it sends SIGTERM, which a stopped process keeps pending, and Python
waits for it without end when the program exits; only SIGKILL ends such a process.

So ``attentive`` lets torch look every few seconds, counts the seconds itself, and kills what is
left.
"""

from __future__ import annotations

import multiprocessing
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from torch.utils.data import DataLoader

__all__ = ["TIMEOUT_SECONDS", "attentive", "no_worker_left"]

#: How long a batch may take before its worker is taken for stopped.
TIMEOUT_SECONDS = 120.0

# How often torch looks whether its workers are there.
_LOOK_SECONDS = 5.0


@contextmanager
def no_worker_left() -> Generator[None]:
    """Kill, at the end, every child process that was started inside and is still there.

    Yields:
        Nothing.
    """
    before = set(multiprocessing.active_children())
    try:
        yield
    finally:
        while True:
            # torch watches the deaths of its workers and would tell of these, too, at any point.
            with suppress(RuntimeError):
                left = [child for child in multiprocessing.active_children() if child not in before]
                for child in left:
                    child.kill()
                    child.join()
                if not left:
                    break


def attentive(loader: DataLoader[Any], *, timeout: float = TIMEOUT_SECONDS) -> Iterator[Any]:
    """One pass over a loader, in which a worker that is gone is an error within seconds.

    ::

        for images, labels in attentive(DataLoader(dataset, batch_size=128, num_workers=4)):
            ...

    Not for persistent workers, which it would end with the pass.

    Args:
        loader: its own ``timeout`` is not used.
        timeout: seconds, > 0, that a batch may take.

    Yields:
        The loader's batches.

    Raises:
        RuntimeError: a worker was killed, has left, or gave nothing for ``timeout`` seconds.
        HelloError: what a worker raised, with its type, code and member.
        ValueError: the loader has persistent workers.
    """
    if loader.persistent_workers:
        raise ValueError("`loader`: expected workers that end with the pass, got persistent ones")
    if not loader.num_workers:
        yield from loader
        return
    known, loader.timeout = loader.timeout, min(_LOOK_SECONDS, timeout)
    with no_worker_left():
        try:
            stream = iter(loader)
        finally:
            loader.timeout = known
        since = time.monotonic()
        while True:
            try:
                batch = next(stream)
            except StopIteration:
                return
            except RuntimeError as error:
                # torch has no class for it; the iterator goes on where it stood.
                if not str(error).startswith("DataLoader timed out"):
                    raise
                if time.monotonic() - since >= timeout:
                    text = f"a DataLoader worker gave nothing for {timeout:g} seconds"
                    raise RuntimeError(text) from None
                continue
            except (ConnectionError, EOFError, FileNotFoundError) as error:
                # What a worker raised arrives with this note; anything else is the worker's end,
                # met while the memory of a finished batch was being handed over.
                if "in DataLoader worker process" in str(error):
                    raise
                text = "a DataLoader worker is gone; its batch could not be received"
                raise RuntimeError(text) from error
            yield batch
            since = time.monotonic()
