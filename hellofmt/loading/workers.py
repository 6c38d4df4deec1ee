"""DataLoader workers watched while they work, and ended when the work is over.

torch waits without end for a worker that was *stopped* (SIGSTOP, a debugger, a frozen container;
pytorch issue 21554) unless it has a timeout; with one of 120 seconds it takes that long to see that
a worker has left with exit code 0, for it looks only when the timeout is over. No timeout counts
while the memory of a finished batch is handed over, which a stopped worker never does. Afterwards
torch sends SIGTERM, which a stopped process keeps pending, and Python waits for it without end when
the program exits; only SIGKILL ends such a process.

So ``attentive`` lets torch look every second, and a thread of its own counts the seconds and kills
the workers of a batch that takes too long, which ends every way of waiting for them.

torch also tells of a killed worker at once, from its handler of SIGCHLD, which raises wherever the
main thread is. Between the system call that reaps a process and the line that keeps its status the
status would be lost: the process seems alive for ever, and Python lists it as a child until it
exits. So while ``attentive`` waits, the handler only notes what it would have raised, and the look,
at most a second later, raises it.
"""

from __future__ import annotations

import math
import multiprocessing
import signal
import threading
import time
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from multiprocessing.process import BaseProcess
    from types import FrameType

    from torch.utils.data import DataLoader

__all__ = ["TIMEOUT_SECONDS", "attentive", "no_worker_left"]

#: How long a batch may take before its worker is taken for stopped.
TIMEOUT_SECONDS = 120.0

# How often torch looks whether its workers are there.
_LOOK_SECONDS = 1.0

# How long the end of a killed process may take.
_END_SECONDS = 5.0

# How long after a broken connection the end of its worker may be noticed.
_NOTICE_SECONDS = 1.0

_END = object()


@contextmanager
def _noted_deaths() -> Generator[list[str]]:
    """Let torch's handler of SIGCHLD note what it would raise in the middle of what is done inside.

    Yields:
        What it said, oldest first.
    """
    heard: list[str] = []
    known = signal.getsignal(signal.SIGCHLD)
    if threading.current_thread() is not threading.main_thread() or not callable(known):
        yield heard
        return

    # A handler that the program had before torch's is still called, by torch's.
    def note(number: int, frame: FrameType | None) -> None:
        try:
            known(number, frame)
        except RuntimeError as error:
            heard.append(str(error).strip())

    while True:
        # The call itself runs a handler that is due.
        with suppress(RuntimeError):
            signal.signal(signal.SIGCHLD, note)
            break
    try:
        yield heard
    finally:
        signal.signal(signal.SIGCHLD, known)


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
        with _noted_deaths():
            left = [child for child in multiprocessing.active_children() if child not in before]
            for child in left:
                child.kill()
            for child in left:
                child.join(_END_SECONDS)


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
    before = set(multiprocessing.active_children())
    with no_worker_left():
        try:
            stream = iter(loader)
        finally:
            loader.timeout = known
        watch = _Watch(set(multiprocessing.active_children()) - before, timeout)
        watch.start()
        try:
            while (batch := _next(stream, watch)) is not _END:
                yield batch
        finally:
            watch.end()


def _next(stream: Iterator[Any], watch: _Watch) -> Any:
    """The next batch, or ``_END``."""
    watch.begin()
    try:
        with _noted_deaths() as heard:
            while True:
                try:
                    return next(stream, _END)
                except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
                    text = str(error)
                    if watch.has_killed:
                        text = f"a DataLoader worker gave nothing for {watch.patience:g} seconds"
                        raise RuntimeError(text) from None
                    # torch has no class for it; the iterator goes on where it stood.
                    if text.startswith("DataLoader timed out"):
                        continue
                    # What a worker raised arrives with this note.
                    if "in DataLoader worker process" in text or not watch.is_worker_gone():
                        raise
                    kept = text if isinstance(error, RuntimeError) else "its batch was not received"
                    reason = heard[0] if heard else kept
                    raise RuntimeError(f"a DataLoader worker is gone: {reason}") from error
    finally:
        watch.pause()


class _Watch(threading.Thread):
    """Kills the workers when the batch that is waited for takes too long."""

    def __init__(self, workers: set[BaseProcess], patience: float) -> None:
        super().__init__(name="hellofmt-watch", daemon=True)
        self.patience = patience
        self.has_killed = False
        self._workers = workers
        self._deadline = math.inf
        self._is_over = threading.Event()

    def begin(self) -> None:
        """A batch is waited for from now on."""
        self._deadline = time.monotonic() + self.patience

    def pause(self) -> None:
        """Nothing is waited for: the time of the training step does not count."""
        self._deadline = math.inf

    def is_worker_gone(self) -> bool:
        """Whether a worker has ended, or does so now."""
        return bool(wait([worker.sentinel for worker in self._workers], _NOTICE_SECONDS))

    def end(self) -> None:
        """Stop watching."""
        self._is_over.set()
        self.join()

    def run(self) -> None:
        """Look at the clock until ``end``."""
        while not self._is_over.wait(min(0.5, self.patience / 4)):
            if time.monotonic() > self._deadline:
                self.has_killed = True
                for worker in self._workers:
                    worker.kill()
                return
