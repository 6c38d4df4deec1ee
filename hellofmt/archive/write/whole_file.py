"""Write to a new file, whose name must be free or may be replaced."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hellofmt.archive.storage.local_files import write_at
from hellofmt.errors import HelloIOError, naming, printable, target_exists

if TYPE_CHECKING:
    from collections.abc import Generator

# Parts are gathered into writes of this size, and images into a few buffers of it that are filled
# at once; larger ones gain nothing.
FLUSH_BYTES = 2 << 20


@contextmanager
def writing() -> Generator[None]:
    """Turn a failure of the system into E_NOSPACE if the disk is full, else E_WRITE."""
    try:
        yield
    except OSError as error:
        code = "E_NOSPACE" if is_full(error) else "E_WRITE"
        text = f"writing the archive failed: {error.strerror}"
        raise HelloIOError.make(code, text) from error


def is_full(error: OSError) -> bool:
    """Whether there is no room on the disk."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def write_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset`` of a file."""
    rest = memoryview(data)
    with writing():
        while rest:
            written = write_at(fd, rest, offset)
            offset += written
            rest = rest[written:]


@contextmanager
def waiting_file(target: str | os.PathLike[str]) -> Generator[int]:
    """Open a file without a name beside a target, for what waits to be written there."""
    with naming(str(target)), writing():
        file = tempfile.TemporaryFile(dir=Path(target).parent, buffering=0)  # noqa: SIM115
    with file:
        yield file.fileno()


def check_target(target: str | os.PathLike[str], *, force: bool) -> None:
    """Refuse a target that ``write_archive`` would refuse, before there is anything to write."""
    path = Path(target)
    shown = printable(path)
    if path.parent.is_dir() and not os.access(path.parent, os.W_OK | os.X_OK):
        text = f"no file can be made in {printable(path.parent)}; expected a directory to write to"
        raise HelloIOError.make("E_TARGET", text)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise no_directory(path.parent) from None
        return
    except NotADirectoryError:
        raise HelloIOError.make("E_TARGET", f"{shown} is inside a file") from None
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise HelloIOError.make("E_TARGET", f"{shown} is not a regular file")
    if not force:
        raise target_exists(path)


def no_directory(path: Path) -> HelloIOError:
    """Return the error for a directory that does not exist."""
    text = f"{printable(path)} is not a directory; expected an existing one"
    return HelloIOError.make("E_TARGET", text)
