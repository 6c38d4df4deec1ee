"""A file that is complete and verified before it has its name.

It has a temporary name, a lock for as long as it is open, and is synced before it is renamed.
"""

from __future__ import annotations

import contextlib
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hellofmt.archive.parallel import beside
from hellofmt.archive.storage.local_files import (
    create_new,
    is_locked,
    leftovers,
    lock_file,
    open_new,
    sync_directory,
    sync_file,
    temporary_path,
)
from hellofmt.archive.write.whole_file import is_full, no_directory, writing
from hellofmt.errors import HelloIOError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path


class Staged:
    """A complete file under a temporary name beside its target; ``id`` is what a writer returned.

    It pickles: another process may write it, while this one lives, whose number is in the name.
    """

    def __init__(self, path: Path) -> None:
        """Choose a name, and remove files that killed writers left; the target is not looked at.

        A file whose lock is held belongs to a writer in another container or on another host.
        """
        self.path = path
        self.id = ""
        self._temporary = temporary_path(path)
        # If the directory cannot be listed, creating the file reports what is wrong with it.
        with contextlib.suppress(OSError):
            for stale in leftovers(path):
                if not is_locked(stale):
                    with contextlib.suppress(OSError):
                        stale.unlink(missing_ok=True)

    def begin(
        self, write: Callable[[int], str], verify: Callable[[Path, str], None] | None = None
    ) -> None:
        """Write the file and, with ``verify``, sync and verify it; on any failure it is removed.

        ``write`` fills an empty file, given its descriptor, and returns the id. ``verify`` reads
        the complete file, given its path and id, while the disk is synced.
        """
        self._fill(create_temporary, write, verify)

    def finish(self, write: Callable[[int], str], verify: Callable[[Path, str], None]) -> None:
        """Write the rest of a file that was begun, sync and verify it; see ``begin``."""
        self._fill(_reopened, write, verify)

    def _fill(
        self,
        opened: Callable[[Path], int],
        write: Callable[[int], str],
        verify: Callable[[Path, str], None] | None,
    ) -> None:
        fd = -1

        def sync() -> None:
            with writing():
                sync_file(fd)

        with self._named():
            try:
                fd = opened(self._temporary)
                # Not every file system has locks; the process id in the name remains.
                lock_file(fd)
                self.id = write(fd)
                if verify is not None:
                    with beside(sync):
                        verify(self._temporary, self.id)
                # Closed before the rename, because some file systems report a lost write only here.
                closing, fd = fd, -1
                with writing():
                    os.close(closing)
            finally:
                if fd >= 0:
                    os.close(fd)

    def publish(self, *, force: bool) -> None:
        """Give the file its name."""
        with self._named(), writing():
            if force:
                self._temporary.replace(self.path)
            else:
                create_new(self._temporary, self.path)
                # If the second name cannot be removed, the next writer removes it.
                with contextlib.suppress(OSError):
                    self.discard()

    def discard(self) -> None:
        """Remove the file."""
        self._temporary.unlink(missing_ok=True)

    @contextmanager
    def _named(self) -> Generator[None]:
        """Remove the file after an error, which is named after the target.

        The temporary file is nobody's concern.
        """
        try:
            yield
        except BaseException as error:
            self.discard()
            if isinstance(error, HelloIOError) and error.code in ("E_WRITE", "E_NOSPACE"):
                error.file = os.fspath(self.path)
            elif isinstance(error, OSError) and str(error.filename) == str(self._temporary):
                error.filename = os.fspath(self.path)
            raise


def create_temporary(path: Path) -> int:
    """Create a temporary file; its folder may be missing (E_TARGET), the disk full (E_NOSPACE)."""
    try:
        return open_new(path)
    except (FileNotFoundError, NotADirectoryError):
        raise no_directory(path.parent) from None
    except OSError as error:
        if not is_full(error):
            raise
        with writing():
            raise


def _reopened(path: Path) -> int:
    return os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0) | os.O_CLOEXEC)


@contextmanager
def published_together(paths: Sequence[Path], *, force: bool) -> Generator[list[Staged]]:
    """Files for ``paths``, which are written inside and get their names at the end.

    After an error no new file is left behind; one that replaced another stays, because the other is
    gone.
    """
    taken = [path for path in paths if os.path.lexists(path)]
    staged: list[Staged] = []
    published: list[Path] = []
    try:
        staged.extend(map(Staged, paths))
        yield staged
        for one in staged:
            one.publish(force=force)
            published.append(one.path)
    except BaseException:
        for one in staged:
            one.discard()
        for path in published:
            if path not in taken:
                path.unlink(missing_ok=True)
        raise
    try:
        # The new names are to survive a power cut.
        sync_directory(paths[0].parent)
    except OSError as error:
        text = (
            f"{printable(paths[0])} is written, but its directory could not be synced: "
            f"{error.strerror}; durability unknown"
        )
        raise HelloIOError.make("E_DURABILITY", text) from error
