"""Prefetch images of a remote archive, and fetch each byte only once.

Order and views are pure functions of (seed, epoch, index), so the images of the next batches are
known long before they are drawn. ``prefetch`` takes their rows; a few threads fetch them in that
order while the current batch is drawn and trained on; ``read`` waits for fetches in progress.
Fetched bytes go to the cache folder or, without one, to a ``Spool``.

The unit is a *page*: neighbouring rows of about 32 KiB, which cost less than a second request, or
one larger image. Pages never overlap and nothing between them is read, so no byte is fetched twice.

**Once** holds for a single process as long as the cache keeps the bytes. It holds for several
processes that share a store: a data set and the workers forked from it, or all processes on a
machine with one cache folder. They lock each page in a file (POSIX record locks, which end with
their process), and wait for pages that another process has locked. Bytes are fetched again if their
digest fails, if the cache is full or evicts them, if a lock is held for more than a minute (a
stopped process must not block others), by two data sets over one archive in one process, and by
spawned workers without a cache folder: these cannot reach the spool, so each reads for itself, and
the process that spawned them stops prefetching.

A failed prefetch raises nothing; the read that needs the page retries and raises. A damaged image
affects only its own row, not the rest of its page. Threads are daemons that end when idle, so
neither Ctrl-C nor interpreter exit waits for a server; a fork leaves them behind, and each process
starts new ones.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

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

_PAGE_BYTES: Final = 1 << 15
# Bytes that a thread fetches at a time: enough to be worth a round trip, but little enough that
# urgent pages do not share the line with many later ones.
_CHUNK_BYTES: Final = 1 << 18
_THREADS: Final = 8
_LOOK_SECONDS: Final = 0.01
_LOCK_SECONDS: Final = 60.0


def open_stream(file: Archive) -> ImageStream | None:
    """Open a stream of the images of an archive; None if it is local or has no images."""
    index = file.index
    if index is None or not any(shard.source.is_remote for shard in file.shards):
        return None
    return ImageStream(file, index)


class _Folder:
    """The cache folder, by row; ``Archive.read_images`` fills it. Answers as a ``Spool`` does."""

    is_named = True

    def __init__(self, cache: DigestCache, index: Index, archive_id: str) -> None:
        self._cache = cache
        self._index = index
        self.rows = len(index)
        self.lock_fd = -1
        path = Path(cache.folder) / "locks" / archive_id.removeprefix("sha256:")
        # A read-only folder has no locks, and keeps nothing either.
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


class _Tasks:
    """The pending work of one process's threads, guarded by ``changed``, which tells of done pages.

    Pages are ``urgent`` if a reader waits for them, else in the ``queue``, in order; ``busy`` while
    they are fetched; ``failed`` with an error; or ``settled`` (P,): here already, or impossible to
    keep.
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
        """Divide ``file`` into pages without fetching any. Use ``open_stream``."""
        self._file = file
        self._index = index
        self._store: Spool | _Folder
        if file.cache is None:
            self._store = Spool(index.size, index.sha256)
        else:
            self._store = _Folder(file.cache, index, file.id)
        count = len(index)
        starts = np.ones(count, bool)
        starts[1:] = np.diff(index.offset // _PAGE_BYTES) != 0
        # Offsets are relative to a shard.
        starts[np.cumsum([len(shard) for shard in file.shards])[:-1]] = True
        self._page_of: NDArray[np.int64] = np.cumsum(starts) - 1
        self._firsts: NDArray[np.int64] = np.append(np.flatnonzero(starts), count)
        totals = np.append(0, np.cumsum(index.size))
        self._bytes: NDArray[np.int64] = np.diff(totals[self._firsts])
        self._tasks_of: dict[int, _Tasks] = {}
        self._reads_ahead = True

    def __reduce__(self) -> tuple[object, ...]:
        # A copy in another process cannot reach the spool and would fetch everything again.
        self._reads_ahead = self._reads_ahead and self._store.is_named
        return ImageStream, (self._file, self._index)

    def _tasks(self) -> _Tasks:
        """The tasks of this process: locks and threads do not survive a fork."""
        tasks = self._tasks_of.get(os.getpid())
        if tasks is None:
            # Pages that cannot be kept would be fetched twice.
            settled = self._firsts[1:] > self._store.rows
            tasks = self._tasks_of.setdefault(os.getpid(), _Tasks(settled))
        return tasks

    def prefetch(self, rows: NDArray[np.integer]) -> None:
        """Prefetch ``rows`` in the background, in this order, instead of rows requested before.

        Returns at once and raises nothing; errors surface when the rows are read.
        """
        if not self._reads_ahead:
            return
        tasks = self._tasks()
        pages = self._page_of[rows]
        with tasks.changed:
            pages = pages[~tasks.settled[pages]]
            done = tasks.busy | tasks.urgent.keys() | tasks.failed.keys()
            tasks.queue = {page: None for page in pages.tolist() if page not in done}
            self._start(tasks)

    def read(self, rows: Sequence[int]) -> list[bytes]:
        """Read and verify the stored bytes of many images; see ``Archive.read_images``."""
        files = {row: self._store.get(row) for row in dict.fromkeys(rows)}
        missing = [row for row, data in files.items() if data is None]
        if missing:
            self._wait_for(dict.fromkeys(self._page_of[missing].tolist()))
        files |= {row: self._store.get(row) for row in missing}
        # Images that cannot be kept or are damaged; here the error names the requested row.
        left = [row for row in missing if files[row] is None]
        files |= dict(zip(left, self._file.read_images(left, exact=True), strict=True))
        return [cast("bytes", files[row]) for row in rows]

    def _wait_for(self, pages: dict[int, None]) -> None:
        """Wait until no fetch of ``pages`` is in progress; raise if one cannot be fetched."""
        tasks = self._tasks()
        with tasks.changed:
            for page in pages:
                # This read must not report an earlier failure.
                tasks.failed.pop(page, None)
                if page not in tasks.busy and not tasks.settled[page]:
                    tasks.queue.pop(page, None)
                    tasks.urgent[page] = None
            self._start(tasks)
            try:
                while True:
                    for page in pages:
                        if page in tasks.failed:
                            raise tasks.failed.pop(page)
                    if not any(page in tasks.busy or page in tasks.urgent for page in pages):
                        return
                    tasks.changed.wait()
            finally:
                for page in pages:
                    tasks.urgent.pop(page, None)

    def _start(self, tasks: _Tasks) -> None:
        """Start enough threads for the pending pages; the caller holds the lock."""
        count = min(_THREADS, len(tasks.urgent) + len(tasks.queue))
        for _ in range(count - tasks.threads):
            thread = threading.Thread(
                target=self._work, args=(tasks,), name="hellofmt-stream", daemon=True
            )
            tasks.threads += 1
            try:
                thread.start()
            except RuntimeError:
                # Out of threads, or the interpreter is exiting: reading still works.
                tasks.threads -= 1
                if not tasks.threads:
                    tasks.urgent.clear()
                    tasks.queue.clear()
                return

    def _work(self, tasks: _Tasks) -> None:
        """Fetch chunk after chunk until none is left; the body of a thread."""
        while True:
            with tasks.changed:
                pages = self._take(tasks)
                if not pages:
                    tasks.threads -= 1
                    return
            error: BaseException | None = None
            try:
                # Only the reader of a damaged row gets an error, not the readers of its neighbours.
                with contextlib.suppress(CorruptError, SpecError):
                    self._fetch(pages)
            except BaseException as fault:
                error = fault
            with tasks.changed:
                tasks.busy.difference_update(pages)
                if error is None:
                    tasks.settled[pages] = True
                else:
                    tasks.failed.update(dict.fromkeys(pages, error))
                    # Later pages will be requested again; until then, spare the server.
                    tasks.queue.clear()
                tasks.changed.notify_all()

    def _take(self, tasks: _Tasks) -> list[int]:
        """Move the next pages for one thread to ``busy``; the caller holds the lock."""
        waiting = tasks.urgent or tasks.queue
        pages: list[int] = []
        total = 0
        while waiting:
            page = next(iter(waiting))
            total += int(self._bytes[page])
            if pages and total > _CHUNK_BYTES:
                break
            del waiting[page]
            pages.append(page)
        tasks.busy.update(pages)
        return pages

    def _fetch(self, pages: Sequence[int]) -> None:
        """Fetch pages into the store, except those that another process is fetching."""
        waiting = list(pages)
        deadline = time.monotonic() + _LOCK_SECONDS
        while waiting:
            # Without a file to lock, each process fetches for itself.
            fd = self._store.lock_fd
            mine = [page for page in waiting if fd < 0 or lock_byte(fd, page)]
            locked = list(mine) if fd >= 0 else []
            if not mine and time.monotonic() > deadline:
                mine = waiting
            try:
                # Another process may have filled them before we got the lock.
                rows = [row for page in mine for row in self._missing(page)]
                files = self._file.read_images(rows, exact=True) if rows else []
                for row, data in zip(rows, files, strict=True):
                    self._store.put(row, data)
            finally:
                for page in locked:
                    unlock_byte(fd, page)
            # No process waits while holding a lock, so there are no deadlocks.
            waiting = [page for page in waiting if page not in mine and self._missing(page)]
            if waiting:
                time.sleep(_LOOK_SECONDS)

    def _missing(self, page: int) -> list[int]:
        rows = range(int(self._firsts[page]), int(self._firsts[page + 1]))
        return [row for row in rows if not self._store.has(row)]
