"""Images of a remote archive, fetched before they are asked for, and each byte once.

Order and views are pure functions of (seed, epoch, index), so what the next batches need is known
long before they are drawn. ``announce`` says it; a few threads fetch it, first things first, while
the batch before is drawn and trained on; ``read`` waits for what is under way. What was fetched
goes to the cache folder, or, without one, to a ``Spool``.

The unit is a *page*: neighbouring rows of about 32 KiB, which cost less than a second request, or
one larger image. Pages never overlap and nothing between them is read, so no byte comes twice.

**Once** means: of one process, always, as long as the cache holds it. Of several processes, where
they share what was fetched: a data set and the workers forked from it, or all on one machine that
use one cache folder. They lock the page in a file (POSIX record locks, which end with their
process); who finds it locked waits until its bytes are there. It is no longer once where bytes are
refused by their digest (fetched again), where the cache is full or evicts, where a lock is held for
longer than a minute (nobody waits for a stopped process without end), for two data sets over one
archive in one process, and for spawned workers without a cache folder: they cannot reach the spool,
so each reads for itself, and the process that spawned them stops reading ahead.

Errors: a page that cannot be fetched ahead is none until somebody reads it. Then it is tried anew,
and what comes of that is raised there. A page with a damaged image harms only the rows that are
damaged. Threads are daemons that end when nothing is left to do, so neither Ctrl-C nor the end of
the interpreter waits for a server; a fork leaves them behind, and each process starts its own.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from hellofmt.archive.storage.local_files import lock_byte, unlock_byte
from hellofmt.archive.storage.source import close_with
from hellofmt.archive.storage.spool import Spool
from hellofmt.errors import CorruptError, SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hellofmt.archive.format.index import Index
    from hellofmt.archive.read.archive import Archive
    from hellofmt.archive.storage.cache import DigestCache

__all__ = ["ImageStream", "open_stream"]

_PAGE_BYTES: Final = 1 << 15
# What one thread fetches at a time: enough to be worth a round trip, and little enough that what
# is needed first does not share the line with much that is needed later.
_CHUNK_BYTES: Final = 1 << 18
_THREADS: Final = 8
_LOOK_SECONDS: Final = 0.01
_PATIENCE_SECONDS: Final = 60.0


def open_stream(file: Archive) -> ImageStream | None:
    """A stream of the images of ``file``; None if all of them are local, or there are none.

    Args:
        file: an open archive or set.

    Raises:
        HelloError: the index cannot be read.
    """
    index = file.index
    if index is None or not any(shard.source.is_remote for shard in file.shards):
        return None
    return ImageStream(file, index)


class _Store(Protocol):
    """Where fetched images are kept; their digest is checked at every ``get``."""

    #: Whether a copy of the stream in a process that was not forked has the same store.
    is_named: bool

    @property
    def lock_fd(self) -> int:
        """A file that all processes which share the store can lock; -1 if there is none."""
        ...

    @property
    def rows(self) -> int:
        """Rows that have a place, the first ones."""
        ...

    def has(self, row: int) -> bool: ...

    def get(self, row: int) -> bytes | None: ...

    def put(self, row: int, data: bytes) -> None: ...


class _Folder:
    """The cache folder, by row; ``Archive.read_images`` puts into it by itself."""

    is_named = True

    def __init__(self, cache: DigestCache, index: Index, archive_id: str) -> None:
        self._cache = cache
        self._index = index
        self.rows = len(index)
        self.lock_fd = -1
        path = Path(cache.folder) / "locks" / archive_id.removeprefix("sha256:")
        # A folder that may not be written to has no locks, and keeps nothing either.
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.lock_fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            close_with(self, self.lock_fd)

    def has(self, row: int) -> bool:
        return self._cache.has(self._index.sha256[row].tobytes(), int(self._index.size[row]))

    def get(self, row: int) -> bytes | None:
        return self._cache.get(self._index.sha256[row].tobytes(), int(self._index.size[row]))

    def put(self, row: int, data: bytes) -> None:
        pass


class _Unnamed(Spool):
    """A spool, whose own file is what is locked."""

    is_named = False

    @property
    def lock_fd(self) -> int:
        return self.fd


class _Desk:
    """What the threads of one process have before them.

    Attributes:
        changed: guards all of it; notified whenever pages are done.
        urgent: pages that somebody waits for, in order.
        queue: pages that will be needed, in order.
        busy: pages under way.
        failed: pages that could not be fetched, and why.
        settled: (P,) pages that need not be fetched ahead: they are here, or cannot be kept.
        threads: how many run.
    """

    def __init__(self, settled: NDArray[np.bool_]) -> None:
        self.changed = threading.Condition()
        self.urgent: dict[int, None] = {}
        self.queue: dict[int, None] = {}
        self.busy: set[int] = set()
        self.failed: dict[int, BaseException] = {}
        self.settled = settled
        self.threads = 0


class ImageStream:
    """Verified images of a remote archive by row; see the module.

    Usable from threads and forked workers at once. Pickles as its archive.
    """

    def __init__(self, file: Archive, index: Index) -> None:
        """Plan the pages of ``file``; nothing is fetched yet. Use ``open_stream``."""
        self._file = file
        self._index = index
        cache = file.cache
        self._store: _Store
        if cache is None:
            self._store = _Unnamed(index.size, index.sha256)
        else:
            self._store = _Folder(cache, index, file.id)
        count = len(index)
        starts = np.ones(count, bool)
        starts[1:] = np.diff(index.offset // _PAGE_BYTES) != 0
        # Offsets count within a shard.
        starts[np.cumsum([len(shard) for shard in file.shards])[:-1]] = True
        self._page_of: NDArray[np.int64] = np.cumsum(starts) - 1
        self._firsts: NDArray[np.int64] = np.append(np.flatnonzero(starts), count)
        totals = np.append(0, np.cumsum(index.size))
        self._bytes: NDArray[np.int64] = np.diff(totals[self._firsts])
        self._desks: dict[int, _Desk] = {}
        self._reads_ahead = True

    def __reduce__(self) -> tuple[object, ...]:
        # A copy in another process cannot reach the spool, and would fetch all of it again.
        self._reads_ahead = self._reads_ahead and self._store.is_named
        return ImageStream, (self._file, self._index)

    def _desk(self) -> _Desk:
        """The desk of this process: locks and threads do not survive a fork."""
        found = self._desks.get(os.getpid())
        if found is None:
            # What cannot be kept would be fetched twice.
            settled = self._firsts[1:] > self._store.rows
            found = self._desks.setdefault(os.getpid(), _Desk(settled))
        return found

    def announce(self, rows: NDArray[np.integer]) -> None:
        """Fetch ``rows`` in the background, in this order, instead of what was announced before.

        Returns at once and raises nothing: what goes wrong shows when the rows are read.

        Args:
            rows: (N,), each 0 <= row < len(file), also more than once.
        """
        if not self._reads_ahead:
            return
        desk = self._desk()
        pages = self._page_of[rows]
        with desk.changed:
            pages = pages[~desk.settled[pages]]
            done = desk.busy | desk.urgent.keys() | desk.failed.keys()
            desk.queue = {page: None for page in pages.tolist() if page not in done}
            self._start(desk)

    def read(self, rows: Sequence[int]) -> list[bytes]:
        """The stored bytes of many images, verified; see ``Archive.read_images``.

        Args:
            rows: each 0 <= row < len(file), in any order, also more than once.

        Returns:
            One file per row.

        Raises:
            HelloError: as ``Archive.read_images``.
            OSError: the file is gone, or access to it was withdrawn.
        """
        found: dict[int, bytes] = {}
        missing: list[int] = []
        for row in dict.fromkeys(rows):
            data = self._store.get(row)
            if data is None:
                missing.append(row)
            else:
                found[row] = data
        if missing:
            self._wait_for(dict.fromkeys(self._page_of[missing].tolist()))
        left: list[int] = []
        for row in missing:
            data = self._store.get(row)
            if data is None:
                left.append(row)
            else:
                found[row] = data
        # What cannot be kept, and what was damaged: here the error names the row that was asked.
        found.update(zip(left, self._file.read_images(left, exact=True), strict=True))
        return [found[row] for row in rows]

    def _wait_for(self, pages: dict[int, None]) -> None:
        """Return when no attempt to fetch ``pages`` is under way any more.

        Raises:
            HelloError: a page cannot be fetched.
            OSError: the file is gone.
        """
        desk = self._desk()
        with desk.changed:
            for page in pages:
                # An earlier failure is no answer to this read.
                desk.failed.pop(page, None)
                if page not in desk.busy and not desk.settled[page]:
                    desk.queue.pop(page, None)
                    desk.urgent[page] = None
            self._start(desk)
            try:
                while True:
                    for page in pages:
                        if page in desk.failed:
                            raise desk.failed.pop(page)
                    if not any(page in desk.busy or page in desk.urgent for page in pages):
                        return
                    desk.changed.wait()
            finally:
                for page in pages:
                    desk.urgent.pop(page, None)

    def _start(self, desk: _Desk) -> None:
        """Have enough threads for what is to be done; the caller holds the lock."""
        wanted = min(_THREADS, len(desk.urgent) + len(desk.queue))
        for _ in range(wanted - desk.threads):
            thread = threading.Thread(
                target=self._work, args=(desk,), name="hellofmt-stream", daemon=True
            )
            desk.threads += 1
            try:
                thread.start()
            except RuntimeError:
                # No more threads, or the interpreter is about to end: reading still works.
                desk.threads -= 1
                if not desk.threads:
                    desk.urgent.clear()
                    desk.queue.clear()
                return

    def _work(self, desk: _Desk) -> None:
        """What a thread does: chunk after chunk until none is left."""
        while True:
            with desk.changed:
                pages = self._take(desk)
                if not pages:
                    desk.threads -= 1
                    return
            error: BaseException | None = None
            try:
                self._fetch(pages)
            except (CorruptError, SpecError):
                # Whoever reads the damaged row is told; its neighbours are not to blame.
                pass
            except BaseException as fault:
                error = fault
            with desk.changed:
                desk.busy.difference_update(pages)
                if error is None:
                    desk.settled[pages] = True
                else:
                    desk.failed.update(dict.fromkeys(pages, error))
                    # What is needed later is announced again; until then the server has peace.
                    desk.queue.clear()
                desk.changed.notify_all()

    def _take(self, desk: _Desk) -> list[int]:
        """The next pages for one thread, moved to ``busy``; the caller holds the lock."""
        waiting = desk.urgent or desk.queue
        pages: list[int] = []
        total = 0
        while waiting:
            page = next(iter(waiting))
            total += int(self._bytes[page])
            if pages and total > _CHUNK_BYTES:
                break
            del waiting[page]
            pages.append(page)
        desk.busy.update(pages)
        return pages

    def _fetch(self, pages: Sequence[int]) -> None:
        """Bring pages into the store, those that another process fetches excepted.

        Raises:
            HelloError: they cannot be read, or one is damaged.
            OSError: the file is gone.
        """
        waiting = list(pages)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while waiting:
            mine = [page for page in waiting if self._lock(page)]
            locked = list(mine)
            if not mine and time.monotonic() > deadline:
                mine = waiting
            try:
                # Another process may have filled them before the lock was ours.
                rows = [row for page in mine for row in self._missing(page)]
                files = self._file.read_images(rows, exact=True) if rows else []
                for row, data in zip(rows, files, strict=True):
                    self._store.put(row, data)
            finally:
                for page in locked:
                    self._unlock(page)
            # Nobody waits while holding a lock, so processes cannot wait for each other.
            waiting = [page for page in waiting if page not in mine and self._missing(page)]
            if waiting:
                time.sleep(_LOOK_SECONDS)

    def _missing(self, page: int) -> list[int]:
        rows = range(int(self._firsts[page]), int(self._firsts[page + 1]))
        return [row for row in rows if not self._store.has(row)]

    def _lock(self, page: int) -> bool:
        """Whether no other process fetches this page; where nothing can be locked, none does."""
        return self._store.lock_fd < 0 or lock_byte(self._store.lock_fd, page)

    def _unlock(self, page: int) -> None:
        if self._store.lock_fd >= 0:
            unlock_byte(self._store.lock_fd, page)
