"""Write an archive atomically: the target is either untouched or complete.

Sizes are known before the first byte is written, so images go straight to their final offsets and
are read once. The manifest, which holds the digest of the index, is written last, into the space
left for it. All this happens in a temporary file in the target's directory, which gets its name
only after everything was read back. Any failure before that, including an interrupt, removes it.
Nothing about the machine enters the bytes: no time, user, path or host.

An image is checked and hashed before it is written. Finally the strict reader goes through the
complete file and makes every check of a full verification except the walk over the data of each
image, whose digest says that it is the image that was walked over. Threads check and write a few
windows at once, each at its own offset, and the disk is synced while the strict reader reads;
neither changes a byte, and both have ended before the file gets its name.
"""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hellofmt.archive.format.layout import ZIP_END, ZIP_TAIL
from hellofmt.archive.format.limits import DEFAULT_LIMITS, Limits
from hellofmt.archive.read.verify import verify_copy
from hellofmt.archive.write.plan import Plan
from hellofmt.archive.write.staged import published_together
from hellofmt.archive.write.whole_file import check_target
from hellofmt.errors import CorruptError, HelloIOError, SpecError, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from hellofmt.archive.write.draft import Draft


_logger = logging.getLogger(__name__)


def write_archive(
    target: str | os.PathLike[str],
    draft: Draft,
    *,
    force: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Write a ``Draft``; the same draft gives the same bytes.

    Args:
        target: path of the new file, in a directory that exists.
        draft: what to write.
        force: replace an existing file.
        limits: size limits, also for the reader that checks the result.
        progress: called with images written and images in all.

    Returns:
        The ``id`` of the archive, ``sha256:`` and 64 hex digits.

    Raises:
        UserInputError: the draft cannot be an archive, or an image is outside its codec's profile
            or changed while it was read (E_DATA, E_OPTION).
        LimitError: above ``limits``.
        HelloIOError: the target exists or is not a file (E_TARGET), the disk is full (E_NOSPACE),
            writing failed (E_WRITE); or the file is in place but its directory could not be
            synced (E_DURABILITY).
        OSError: an image cannot be read, or the directory cannot be written.
    """
    path = Path(target)
    check_target(path, force=force)
    plan = Plan(draft, limits)
    with published_together([path], force=force) as [staged]:
        staged.begin(
            partial(plan.write, progress=progress),
            partial(verify_written, target=path, limits=limits),
        )
    return staged.id


def verify_written(temporary: Path, archive_id: str, *, target: Path, limits: Limits) -> None:
    """Read the complete file before it gets its name; warn if it also passes for a ZIP file."""
    try:
        verify_copy(temporary, archive_id, limits)
    except (CorruptError, SpecError) as error:
        text = f"the file does not hold what was written to it: {error.code}: {error.message}"
        raise HelloIOError.make(
            "E_WRITE", text, member=error.member, offset=error.offset
        ) from error
    with temporary.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - ZIP_TAIL))
        if ZIP_END in file.read():
            _logger.warning(
                "`%s`: programs may take it for a ZIP file, whose last record begins with the "
                "bytes 50 4B 05 06 that stand near its end",
                printable(target),
            )
