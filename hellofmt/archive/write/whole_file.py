"""Make a file appear whole or not at all: temporary name, lock, sync, rename."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from hellofmt.archive.storage.local_files import (
    create_new,
    is_locked,
    leftovers,
    lock_file,
    open_new,
    sync_directory,
    sync_file,
)
from hellofmt.archive.storage.local_files import write_at as write_part
from hellofmt.errors import HelloIOError, printable, target_exists


def write_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset`` of a file.

    Raises:
        HelloIOError: writing failed (E_WRITE), or the disk is full (E_NOSPACE).
    """
    rest = memoryview(data)
    try:
        while rest:
            written = write_part(fd, rest, offset)
            offset += written
            rest = rest[written:]
    except OSError as error:
        raise write_error(error) from error


def write_error(error: OSError) -> HelloIOError:
    """Return the error for a failed write: E_NOSPACE if the disk is full, else E_WRITE."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return HelloIOError.make(
        "E_NOSPACE" if full else "E_WRITE", f"writing the archive failed: {error.strerror}"
    )


def check_target(target: str | os.PathLike[str], *, force: bool) -> None:
    """Refuse a target that ``write_archive`` would refuse, before there is anything to write.

    Args:
        target: path of the new archive.
        force: whether an existing file will be replaced.

    Raises:
        HelloIOError: the target exists, is not a file, or its directory does not exist (E_TARGET).
    """
    path = Path(target)
    shown = printable(path)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise _no_directory(path.parent) from None
        return
    except NotADirectoryError:
        raise HelloIOError.make("E_TARGET", f"{shown} is inside a file") from None
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise HelloIOError.make("E_TARGET", f"{shown} is not a regular file")
    if not force:
        raise target_exists(path)


def _no_directory(path: Path) -> HelloIOError:
    return HelloIOError.make(
        "E_TARGET", f"{printable(path)} is not a directory; expected an existing one"
    )


def remove_stale(path: Path) -> None:
    """Remove temporary files for ``path`` that killed writers left.

    A file whose lock is held belongs to a writer in another container or on another host.
    """
    # If the directory cannot be listed, creating the temporary file reports what is wrong with it.
    with contextlib.suppress(OSError):
        for temporary in leftovers(path):
            if not is_locked(temporary):
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)


def create_temporary(temporary: Path) -> int:
    """Create the temporary file, locked for as long as it is open.

    Raises:
        HelloIOError: the directory does not exist (E_TARGET), or the disk is full (E_NOSPACE).
        OSError: access is denied.
    """
    try:
        fd = open_new(temporary)
    except (FileNotFoundError, NotADirectoryError):
        raise _no_directory(temporary.parent) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise write_error(error) from error
        raise
    # Not every file system has locks; the process id in the name remains.
    lock_file(fd)
    return fd


def reopen_temporary(temporary: Path) -> int:
    """Open and lock a temporary file of this process once more.

    Raises:
        OSError: it is gone or cannot be opened.
    """
    fd = os.open(temporary, os.O_RDWR | getattr(os, "O_BINARY", 0) | os.O_CLOEXEC)
    lock_file(fd)
    return fd


def synchronise_file(fd: int) -> None:
    """Flush every byte of a file to the disk.

    Raises:
        HelloIOError: E_WRITE, E_NOSPACE.
    """
    try:
        sync_file(fd)
    except OSError as error:
        raise write_error(error) from error


def close_file(fd: int) -> None:
    """Close a file; some file systems report a lost write only here.

    Raises:
        HelloIOError: E_WRITE, E_NOSPACE.
    """
    try:
        os.close(fd)
    except OSError as error:
        raise write_error(error) from error


def publish(temporary: Path, path: Path, force: bool) -> None:
    """Give the verified file its name.

    Raises:
        HelloIOError: another process created the target meanwhile (E_TARGET), or the rename failed
            (E_WRITE).
    """
    try:
        if force:
            temporary.replace(path)
            return
        create_new(temporary, path)
    except OSError as error:
        raise write_error(error) from error
    # The target is complete; if the second name cannot be removed, the next writer removes it.
    with contextlib.suppress(OSError):
        temporary.unlink()


def synchronise_directory(path: Path) -> None:
    """Make the new name survive a power cut.

    Raises:
        HelloIOError: syncing failed (E_DURABILITY); the file is in place all the same.
    """
    try:
        sync_directory(path.parent)
    except OSError as error:
        raise HelloIOError.make(
            "E_DURABILITY",
            f"{printable(path)} is written, but its directory could not be synced: "
            f"{error.strerror}; durability unknown",
        ) from error
