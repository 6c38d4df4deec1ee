"""File operations that differ between Linux, macOS and Windows.

Windows has no positioned reads, no locks that leave readers alone, no directories that can be
opened, and opens files as text unless told otherwise. It also refuses to remove a file that
somebody has open; elsewhere the lock on a temporary file serves that purpose.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hellofmt.errors import HelloIOError, shown_path, target_exists

if TYPE_CHECKING:
    from collections.abc import Generator

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# Python closes every descriptor at exec, so O_CLOEXEC is not needed.
_BINARY: Final[int] = getattr(os, "O_BINARY", 0)
_NO_WAIT: Final[int] = getattr(os, "O_NONBLOCK", 0)
_NO_FOLLOW: Final[int] = getattr(os, "O_NOFOLLOW", 0)
_DIRECTORY: Final[int] = getattr(os, "O_DIRECTORY", 0)

_TOKEN_BYTES: Final = 8
NAME_BYTES: Final = 255
"""Longest file name, in bytes, that every file system in use accepts."""

# Guards the file position, which all threads share.
_positioning: Final = threading.Lock()


def open_to_read(path: str | os.PathLike[str], *, follow: bool = True) -> int:
    """Open anything for reading, without waiting for the writer of a pipe."""
    return os.open(path, os.O_RDONLY | _BINARY | _NO_WAIT | (0 if follow else _NO_FOLLOW))


def open_regular(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Open a regular file; return its descriptor and its size in bytes."""
    fd = open_to_read(path)
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        return fd, status.st_size
    os.close(fd)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise HelloIOError.make("E_READ", f"not a regular file: {shown_path(path)}")


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Read a regular file, refusing pipes and devices; see ``open_regular``."""
    fd, _ = open_regular(path)
    with os.fdopen(fd, "rb") as stream:
        return stream.read()


def open_new(path: str | os.PathLike[str], mode: int = 0o666) -> int:
    """Create a file, whose name must be free, and open it for reading and writing."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY | _NO_FOLLOW, mode)


def read_at(fd: int, length: int, offset: int) -> bytes:
    """Read at most ``length`` bytes from ``offset``; empty at the end of the file."""
    if hasattr(os, "pread"):
        return os.pread(fd, length, offset)
    with _positioning:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, length)


def write_at(fd: int, data: bytes | memoryview, offset: int) -> int:
    """Write at ``offset``; return the number of bytes written, which may be fewer than given."""
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, offset)
    with _positioning:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, data)


def lock_file(fd: int) -> bool:
    """Lock a file for as long as it is open; False if another process holds it or locking fails.

    Without locks (Windows) the answer is True: a file in use cannot be removed there anyway.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_locked(path: str | os.PathLike[str]) -> bool:
    """Tell whether somebody holds the lock of a file; True if that cannot be determined."""
    try:
        # Over NFS an exclusive lock needs a writable descriptor.
        fd = os.open(path, os.O_RDWR | _BINARY | _NO_WAIT | _NO_FOLLOW)
    except OSError:
        return True
    try:
        return not lock_file(fd)
    finally:
        os.close(fd)


def lock_byte(fd: int, at: int) -> bool:
    """Lock one byte of a file among processes; True as well if the file system has no locks."""
    if fcntl is None:
        return True
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, at)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        # A file system without locks.
        pass
    return True


def unlock_byte(fd: int, at: int) -> None:
    """Undo ``lock_byte``."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.lockf(fd, fcntl.LOCK_UN, 1, at)


def free_bytes(folder: str | os.PathLike[str]) -> int:
    """Return how many bytes may still be written below a folder, which must exist."""
    return shutil.disk_usage(folder).free


def is_alive(pid: int) -> bool:
    """Tell whether a process of this machine has this id, as far as it can be asked safely."""
    if os.name == "nt":
        # On Windows signal 0 is CTRL+C. Answering no is safe: a file in use cannot be removed.
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def sync_file(fd: int) -> None:
    """Flush a file to the disk."""
    os.fsync(fd)
    # On macOS fsync stops at the drive's cache.
    if hasattr(fcntl, "F_FULLFSYNC"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # type: ignore[union-attr,attr-defined]


def sync_directory(folder: str | os.PathLike[str]) -> None:
    """Flush the names in a folder to the disk; does nothing where folders cannot be opened."""
    if not _DIRECTORY:
        return
    fd = os.open(folder, os.O_RDONLY | _DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _temporary_stem(target: Path, room: int) -> str:
    """Return the start of every temporary file name for ``target``: a dot and its name.

    So that ``room`` bytes can follow, a long name is cut and made unique by eight digits of its
    digest.
    """
    name = target.name
    raw = os.fsencode(name)
    if len(raw) + 1 + room <= NAME_BYTES:
        return f".{name}"
    kept = raw[: NAME_BYTES - room - 10].decode("utf-8", "ignore")
    return f".{kept}~{hashlib.sha256(raw).hexdigest()[:8]}"


def temporary_path(target: Path) -> Path:
    """Return a new name beside ``target``: hidden, with the process id, ending in ``.tmp``."""
    end = f".{os.getpid()}.{secrets.token_hex(_TOKEN_BYTES)}.tmp"
    return target.with_name(_temporary_stem(target, len(end)) + end)


def leftovers(target: Path) -> list[Path]:
    """Return the temporary paths for ``target`` whose processes no longer run."""
    # A long name is cut to leave room for the process id, which has 1 to 10 digits.
    digits = 2 * _TOKEN_BYTES
    stems = {re.escape(_temporary_stem(target, digits + 6 + more)) for more in range(1, 11)}
    form = re.compile(rf"(?:{'|'.join(stems)})\.([0-9]{{1,10}})\.[0-9a-f]{{{digits}}}\.tmp")
    found = [(path, form.fullmatch(path.name)) for path in target.parent.iterdir()]
    return [path for path, match in found if match is not None and not is_alive(int(match[1]))]


def write_small_file(
    path: str | os.PathLike[str], data: bytes, *, mode: int = 0o666, force: bool = False
) -> None:
    """Write a small file atomically: the name holds the old file, the new one or nothing.

    ``mode`` is the permissions before the umask; ``force`` replaces an existing file. An error
    names ``path``, and leaves nothing behind.
    """
    target = Path(path)
    if not force and os.path.lexists(target):
        raise target_exists(target)
    temporary = temporary_path(target)
    try:
        with os.fdopen(open_new(temporary, mode), "wb") as stream:
            stream.write(data)
            stream.flush()
            sync_file(stream.fileno())
        if force:
            temporary.replace(target)
        else:
            create_new(temporary, target)
    except OSError as error:
        # A failed write does not name the file.
        error.filename = os.fspath(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def create_new(temporary: Path, target: Path) -> None:
    """Give a complete file the free name ``target``; the name ``temporary`` may remain."""
    try:
        # Linking fails if the name exists; a rename would silently replace it.
        target.hardlink_to(temporary)
    except FileExistsError:
        raise target_exists(target) from None
    except OSError:
        # Without hard links, the check and the rename are two steps.
        if os.path.lexists(target):
            raise target_exists(target) from None
        temporary.rename(target)


@contextlib.contextmanager
def new_directory(directory: str | os.PathLike[str]) -> Generator[Path]:
    """Fill a directory that gets its name once complete; an error removes it.

    It is filled inside a directory of mode 0700, where no other user can plant a link; its own mode
    follows the umask. Leftovers of killed processes for the same name are removed first.
    """
    if len(os.fsencode(Path(directory).name)) > NAME_BYTES:
        # The temporary name is short enough, so only the rename would fail.
        text = os.strerror(errno.ENAMETOOLONG)
        raise OSError(errno.ENAMETOOLONG, text, os.fspath(directory))
    try:
        # Fails if the working directory is gone.
        target = Path(directory).absolute()
        if os.path.lexists(target):
            raise target_exists(Path(directory), can_replace=False)
        _remove_leftovers(target)
        private = temporary_path(target)
        private.mkdir(mode=0o700)
    except OSError as error:
        error.filename = os.fspath(directory)
        raise
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, private, ignore_errors=True)
        if fcntl is not None:
            lock = os.open(private, os.O_RDONLY | _DIRECTORY)
            stack.callback(os.close, lock)
            lock_file(lock)
        content = private / "content"
        content.mkdir()
        try:
            yield content
        except OSError as error:
            # A failed write does not name its file, another the one in here that will be gone.
            if error.errno and str(error.filename or private).startswith(str(private)):
                error.filename = os.fspath(directory)
            raise
        # A rename would replace an empty directory that has appeared meanwhile.
        if os.path.lexists(target):
            raise target_exists(Path(directory), can_replace=False)
        content.rename(target)


def _remove_leftovers(target: Path) -> None:
    """Remove private directories for ``target`` that killed processes left.

    A directory whose lock is held or cannot be queried belongs to another container or host.
    Without locks (Windows) they cannot be told apart, so all are left.
    """
    if fcntl is None:
        return
    with contextlib.suppress(OSError):
        for path in leftovers(target):
            # Follows no link and skips plain files.
            lock = os.open(path, os.O_RDONLY | _DIRECTORY | _NO_FOLLOW)
            try:
                is_free = lock_file(lock)
            finally:
                os.close(lock)
            if is_free:
                shutil.rmtree(path, ignore_errors=True)
