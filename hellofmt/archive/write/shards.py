"""Write one draft as a set of shards.

Every shard names the content of the whole set, so no manifest is written before all images are. All
files are complete and verified under temporary names before the first of them gets its own. A
process that is killed then leaves the old set, the new one, or a mixture of both, which readers
refuse.
"""

from __future__ import annotations

import copy
import logging
import re
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hellofmt.archive.format.digest import set_id
from hellofmt.archive.format.layout import MOST_SHARDS, shard_path
from hellofmt.archive.format.limits import DEFAULT_LIMITS, Limits
from hellofmt.archive.format.manifest import Shard
from hellofmt.archive.write.plan import Plan
from hellofmt.archive.write.staged import Staged, published_together
from hellofmt.archive.write.whole_file import check_target
from hellofmt.archive.write.writer import verify_written
from hellofmt.errors import UserInputError, printable, target_exists

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable

    from hellofmt.archive.write.draft import Draft

    Spread = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]

_logger = logging.getLogger(__name__)
_UNKNOWN = "sha256:" + "0" * 64


def write_shards(
    target: str | os.PathLike[str],
    draft: Draft,
    count: int,
    *,
    force: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
    spread: Spread = map,
) -> str:
    """Write a ``Draft`` as ``count`` archives ``name-00000-of-00016.hello`` in one folder.

    If one cannot be written, none appears. With ``force`` shards of the same name that were one of
    another number of files are removed once all new ones have their names.

    Args:
        target: ``name.hello``, which itself is not written.
        draft: what to write, with at least ``count`` images.
        count: number of files, at least 2; they differ by at most one image.
        force: replace existing files.
        limits: limits of each file.
        progress: called with images written and images in all.
        say: takes a line on what was removed; None logs a warning.
        spread: calls a function with each of some values and yields what it returns in the order of
            the values, as ``map`` does; but it may do so in other processes or machines that see
            the images and the target, and must end once none of them is at work. It is called
            twice, first to write the images of each file. Function and values pickle if the draft
            does, and a call may be repeated if its process was killed.

    Returns:
        The id of the set.

    Raises:
        UserInputError: the draft cannot be written as archives (E_DATA), or has fewer images than
            files (E_OPTION).
        HelloIOError: a target or a shard of its name exists (E_TARGET) or cannot be written.
        HelloError: see ``write_archive``.
        OSError: an image cannot be read, or a directory cannot be written.
    """
    if draft.images is None:
        raise UserInputError.make("E_OPTION", "no images; expected images to divide among shards")
    total = len(draft.images.items)
    if not 2 <= count <= min(total, MOST_SHARDS):
        text = f"expected 2 to {total}, got {count}"
        raise UserInputError.make("E_OPTION", text, argument="shards")
    paths = [shard_path(target, index, count) for index in range(count)]
    others = _other_shards(Path(target), count)
    for path in paths:
        check_target(path, force=force)
    if others and not force:
        raise target_exists(others[0])
    whole = Plan(draft, limits, divided=True)
    firsts = [index * total // count for index in range(count + 1)]
    plans: list[Plan] = []
    for index, (first, end) in enumerate(pairwise(firsts)):
        plans.append(copy.copy(whole))
        shard = Shard(content_id=_UNKNOWN, count=count, first=first, index=index, total=total)
        plans[-1].narrow(shard, end)
    with published_together(paths, force=force) as staged:
        begun = spread(_begin, list(zip(staged, plans, strict=True)))
        plans = []
        for plan, end in zip(begun, firsts[1:], strict=True):
            plans.append(plan)
            if progress is not None:
                progress(end, total)
        content = whole.join(plans)
        work = [(*pair, content, limits) for pair in zip(staged, plans, strict=True)]
        ids = list(spread(_finish, work))
    for path in others:
        path.unlink(missing_ok=True)
    if others:
        text = f"removed {len(others)} shards of another number, `{printable(others[0])}` first"
        (say or _logger.warning)(text)
    return set_id(ids)


def _begin(work: tuple[Staged, Plan]) -> Plan:
    """Write the images of a shard; return its plan with what was found in them."""
    staged, plan = work

    def write(fd: int) -> str:
        plan.write_images(fd, None)
        # It has none before its front is written.
        return ""

    # A process that was killed at this very work may have left it.
    staged.discard()
    staged.begin(write)
    return plan


def _finish(work: tuple[Staged, Plan, str, Limits]) -> str:
    """Write the front of a shard and verify it; return its id."""
    staged, plan, content, limits = work
    staged.finish(
        partial(plan.write_front, whole=content),
        partial(verify_written, target=staged.path, limits=limits),
    )
    return staged.id


def _other_shards(target: Path, count: int) -> list[Path]:
    """Return the files that a pattern for this name would take for shards of the same set."""
    form = re.compile(
        rf"{re.escape(target.stem)}-[0-9]{{5}}-of-([0-9]{{5}}){re.escape(target.suffix)}"
    )
    paths = sorted(target.parent.iterdir()) if target.parent.is_dir() else []
    found = [(path, form.fullmatch(path.name)) for path in paths]
    return [path for path, match in found if match is not None and int(match[1]) != count]
