"""A file that is complete and verified before it has its name."""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from hellofmt.archive.parallel import beside
from hellofmt.archive.storage.local_files import temporary_path
from hellofmt.archive.write.whole_file import (
    close_file,
    create_temporary,
    publish,
    remove_stale,
    reopen_temporary,
    synchronise_directory,
    synchronise_file,
)
from hellofmt.errors import HelloIOError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

__all__ = ["Staged", "published_together"]


class Staged:
    """A complete file under a temporary name beside its target.

    It pickles: another process may write it, while this one lives, whose number is in the name.

    Attributes:
        path: the target.
        id: what was returned last by a function that writes.
    """

    def __init__(self, path: Path) -> None:
        """Choose a name, and remove files that killed writers left.

        Args:
            path: the target, which is not looked at.
        """
        self.path = path
        self.id = ""
        self._temporary = temporary_path(path)
        remove_stale(path)

    def begin(
        self, write: Callable[[int], str], verify: Callable[[Path, str], None] | None = None
    ) -> None:
        """Write the file and, with ``verify``, sync and verify it; on any failure it is removed.

        Args:
            write: fills an empty file, given its descriptor; returns the id.
            verify: reads the complete file, given its path and id; the disk is synced beside it.

        Raises:
            HelloIOError: its folder does not exist (E_TARGET), the disk is full (E_NOSPACE),
                writing failed (E_WRITE).
            HelloError: from ``write`` or ``verify``.
            OSError: access is denied.
        """
        self._fill(create_temporary, write, verify)

    def finish(self, write: Callable[[int], str], verify: Callable[[Path, str], None]) -> None:
        """Write the rest of a file that was written in part, sync and verify it.

        Raises:
            HelloError: as ``begin``.
            OSError: as ``begin``.
        """
        self._fill(reopen_temporary, write, verify)

    def _fill(
        self,
        opened: Callable[[Path], int],
        write: Callable[[int], str],
        verify: Callable[[Path, str], None] | None,
    ) -> None:
        fd = -1
        with self._named():
            try:
                fd = opened(self._temporary)
                self.id = write(fd)
                if verify is not None:
                    with beside(partial(synchronise_file, fd)):
                        verify(self._temporary, self.id)
                # Closed before the rename, because some file systems report a lost write only here.
                closing, fd = fd, -1
                close_file(closing)
            finally:
                if fd >= 0:
                    os.close(fd)

    def publish(self, *, force: bool) -> None:
        """Give the file its name.

        Raises:
            HelloIOError: another process created the target meanwhile (E_TARGET), the rename failed
                (E_WRITE); or the file is in place but its directory could not be synced
                (E_DURABILITY).
        """
        with self._named():
            publish(self._temporary, self.path, force)
        synchronise_directory(self.path)

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


@contextmanager
def published_together(paths: Sequence[Path], *, force: bool) -> Generator[list[Staged]]:
    """Files of one data set, which are written inside and get their names at the end.

    After an error no new file is left behind; one that replaced another stays, because the other is
    gone.

    Args:
        paths: the targets.
        force: replace existing files.

    Yields:
        The files to write, in the order of ``paths``.

    Raises:
        HelloIOError: see ``Staged.publish``.
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
