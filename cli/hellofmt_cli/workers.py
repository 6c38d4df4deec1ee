"""The end of a ``DataLoader`` worker, which torch tells in many lines and the user reads in one."""

from __future__ import annotations

import re
import shutil
import time
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from hellofmt.errors import HelloIOError, foreign_text
from hellofmt_cli.console import console

if TYPE_CHECKING:
    from collections.abc import Generator

_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 - where torch hands batches over
_FULL: Final = re.compile(r"shared memory|torch_\d+_\d+|No space left on device")
_GONE: Final = re.compile(r"DataLoader worker \(pid(?:\(s\))? .*?\)")
_GONE_SILENTLY: Final = "connection lost"
_LESS: Final = "pass {workers:0} or a smaller {batch_size}"
# How long after a broken connection torch may tell what became of its worker.
_NOTICE_SECONDS: Final = 5.0


def workers_for(count: int, wanted: int | None, *, worth: int = 4096) -> int:
    """How many workers make ``count`` views or images: as ``wanted``, else as suits the machine.

    Of fewer than ``worth`` none, since starting processes takes longer.
    """
    from hellofmt.runs import default_workers

    if wanted is None:
        wanted = default_workers() if count >= worth else 0
        console.detail(f"workers: {wanted}")
    return wanted


@contextmanager
def worker_ends_in_one_line(workers: int = 1) -> Generator[None]:
    """Around a loop over a loader with ``workers`` workers, or around loops over several.

    torch raises the end of a worker wherever the main thread is at that moment, so the whole loop
    has to be inside; what it raises after the loop is left to ``worker_error``.
    """
    try:
        with warnings.catch_warnings():
            # So many were asked for; that the machine has fewer cores changes no result.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        made = worker_error(_told(error)) if workers else None
        if made is None:
            raise
        raise made from error


def _told(error: Exception) -> str:
    """What torch says of it, which may come a moment after the connection to a worker breaks."""
    if isinstance(error, RuntimeError):
        # How it ended may stand in the error that led to this one.
        return f"{error} {error.__cause__ or ''}"
    try:
        time.sleep(_NOTICE_SECONDS)
    except RuntimeError as told:
        return str(told)
    return _GONE_SILENTLY


def worker_error(text: str) -> HelloIOError | None:
    """Say what torch's words about a worker mean; None where they are not about its end."""
    if text.startswith("DataLoader timed out"):
        fact = f"a DataLoader worker gave no batch in time ({foreign_text(RuntimeError(text))})"
        return HelloIOError.make("E_TIMEOUT", fact, advice=_LESS)
    is_gone = text == _GONE_SILENTLY or _GONE.search(text) is not None
    signal = re.search(r"killed by signal: (\w+(?: \w+)?)", text)
    # A full /dev/shm is an error in the worker, or kills it where it writes the page that lacks.
    is_full = " in DataLoader worker process " in text and _FULL.search(text) is not None
    if is_full or (signal is not None and signal[1] == "Bus error"):
        return HelloIOError.make(
            "E_NOSPACE",
            f"{_shared_memory()} is full; DataLoader workers hand their batches over in it",
            advice=f"enlarge it (docker run --shm-size=8g), or {_LESS}",
        )
    if not is_gone:
        return None
    if signal is not None:
        fact = f"a DataLoader worker was ended by the signal `{signal[1]}`"
        if signal[1] == "Killed":
            fact += "; the system kills processes when memory runs out"
        return HelloIOError.make("E_READ", fact, advice=_LESS)
    fact = "a DataLoader worker is gone; the system ends processes when memory or"
    advice = f"{_LESS}, or enlarge it (docker run --shm-size=8g)"
    return HelloIOError.make("E_READ", f"{fact} {_shared_memory()} runs out", advice=advice)


def _shared_memory() -> str:
    try:
        size = shutil.disk_usage(_SHARED_MEMORY).total / 1e6
    except OSError:
        return "the shared memory"
    return f"{_SHARED_MEMORY} ({size:,.0f} MB)"
