"""Signs of life between processes: whoever is waited for is alive, or is named.

A thread of each process counts up in the store that ``torchrun`` keeps. A process that works alone
for hours goes on counting; one that is stopped, or whose machine is gone, does not.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from hellofmt.errors import HelloIOError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

PATIENCE: Final = 540.0
"""Seconds without a sign of life, or in one message, after which a process counts as hung.

With what it takes to find out which one and to end it, a run ends within ten minutes.
"""

_BEAT: Final = 10.0
_LONGEST_PAUSE: Final = 0.25


class Watch:
    """The signs of life of all processes."""

    def __init__(self, store: Store, rank: int, world: int, *, patience: float = PATIENCE) -> None:
        """Begin to give signs of life over ``store``, a connection of its own."""
        self._store, self._rank, self._world = store, rank, world
        self.patience = patience
        self._beat = min(_BEAT, patience / 4)
        self._waits = 0
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._live, name="signs of life", daemon=True)
        self._thread.start()

    def _live(self) -> None:
        count = 0
        while True:
            count += 1
            try:
                self._store.set(f"beat/{self._rank}", str(count))
            except RuntimeError:
                # The store is gone, and with it whoever would look.
                return
            if self._end.wait(self._beat):
                return

    def close(self) -> None:
        """Give no more signs."""
        self._end.set()
        self._thread.join()

    def _silence(self, rank: int) -> float:
        """Seconds since another process last gave a sign that this one had not seen."""
        key, (last, since) = f"beat/{rank}", self._seen.get(rank, (b"", 0.0))
        now = self._store.get(key) if self._store.check([key]) else b""
        if now != last:
            self._seen[rank] = now, time.monotonic()
            return 0.0
        return time.monotonic() - since

    def wait(self) -> None:
        """Wait until every process gets here, however long it works."""
        self._waits += 1
        self._store.set(f"wait/{self._waits}/{self._rank}", "")
        missing = self._missing(f"wait/{self._waits}", None)
        if missing:
            minutes = f"{self.patience / 60:.3g} minutes"
            raise self._error(
                missing,
                f"gave no sign of life for {minutes}; it is stopped, or its machine is gone",
            )

    def blame(self) -> HelloIOError | None:
        """Say who is missing where the others gave up; every process calls it that gives up."""
        self._store.set(f"left/{self._rank}", "")
        missing = self._missing("left", 2 * self._beat)
        if not missing:
            return None
        minutes = f"{self.patience / 60:.3g} minutes"
        return self._error(missing, f"did not come to a step in {minutes}; it hangs")

    def _missing(self, place: str, seconds: float | None) -> list[int]:
        """Wait for all at ``place``; return those who stay away for too long, or are silent."""
        start, pause = time.monotonic(), 0.001
        pending = [rank for rank in range(self._world) if rank != self._rank]
        # Silence from before this wait does not count: nobody listened.
        self._seen = dict.fromkeys(pending, (b"", start))
        while True:
            pending = [rank for rank in pending if not self._store.check([f"{place}/{rank}"])]
            if not pending:
                return []
            if seconds is not None and time.monotonic() - start > seconds:
                return pending
            silent = [rank for rank in pending if self._silence(rank) > self.patience]
            if silent:
                return silent
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _error(self, ranks: list[int], fact: str) -> HelloIOError:
        named = " and ".join(map(str, ranks))
        return HelloIOError.make("E_TIMEOUT", f"rank {named} of {self._world} {fact}")
