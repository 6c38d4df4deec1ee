"""Write one draft as a set of shards."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from hellofmt.archive.format.digest import set_id
from hellofmt.archive.format.layout import MOST_SHARDS, shard_path
from hellofmt.archive.format.limits import DEFAULT_LIMITS, Limits
from hellofmt.archive.format.manifest import Shard
from hellofmt.errors import UserInputError, target_exists

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hellofmt.archive.write.draft import Draft

__all__ = ["write_shards"]


def write_shards(
    target: str | os.PathLike[str],
    draft: Draft,
    count: int,
    *,
    force: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Write ``draft`` as ``count`` archives ``name-00000-of-00016.hello`` in one folder.

    Each file appears complete or not at all. If one cannot be written, those already written are
    removed, unless they replaced others.

    Args:
        target: ``name.hello``, which itself is not written.
        draft: what to write, with at least ``count`` images.
        count: number of files; they differ by at most one image.
        force: replace existing files.
        limits: limits of each file.
        progress: called with images written and images in all.

    Returns:
        The id of the set.

    Raises:
        UserInputError: the draft cannot be written as archives (E_DATA), or has fewer images than
            files (E_OPTION).
        HelloIOError: a target exists (E_TARGET) or cannot be written.
        HelloError: see ``write_archive``.
        OSError: an image cannot be read, or a directory cannot be written.
    """
    from hellofmt.archive.write.plan import plan_images
    from hellofmt.archive.write.writer import write_archive

    whole = draft.images
    if whole is None:
        raise UserInputError.make("E_OPTION", "no images; expected images to divide among shards")
    total = len(whole.items)
    if not 1 <= count <= min(total, MOST_SHARDS):
        text = f"expected 1 to {total}, got {count}"
        raise UserInputError.make("E_OPTION", text, argument="shards")
    paths = [shard_path(target, index, count) for index in range(count)]
    taken = [path for path in paths if os.path.lexists(path)]
    if taken and not force:
        raise target_exists(taken[0])
    order = sorted(range(total), key=lambda i: whole.items[i].label)
    dataset, layout = plan_images(draft, limits)
    draft = replace(draft, dataset=dataset)
    ids: list[str] = []
    written: list[Path] = []
    try:
        for index, path in enumerate(paths):
            first, end = index * total // count, (index + 1) * total // count
            rows = order[first:end]
            images = replace(
                whole,
                items=[whole.items[i] for i in rows],
                layout=layout,
                columns={name: values[rows] for name, values in whole.columns.items()},
            )
            shard = Shard(count=count, first=first, index=index, total=total)
            part = replace(draft, images=images, shard=shard)
            ids.append(write_archive(path, part, force=force, limits=limits, progress=None))
            if path not in taken:
                written.append(path)
            if progress is not None:
                progress(end, total)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return set_id(ids)
