"""What lies on the disk of one process, for all: every machine may have a disk of its own.

Who reads a file may be another process than who wrote it, on another machine. So whoever has the
file reads it, and the others get it as messages; where several have it, the lowest rank counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hellofmt.archive.storage.local_files import write_small_file
from hellofmt.runs import ranks
from hellofmt.runs.results import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray


def handed_result(make: Callable[[], Result], holder: int = 0) -> Result:
    """Return, in every process, what ``make`` returns in ``holder`` alone, or raise its error."""
    if ranks.current().world == 1:
        return make()
    mine: list[Result] = []

    def outline() -> tuple[dict[str, tuple[str, tuple[int, ...]]], Mapping[str, Any]]:
        mine.append(make())
        return {n: (a.dtype.str, a.shape) for n, a in mine[0].tensors.items()}, mine[0].facts

    forms, facts = ranks.handed(outline, holder)
    tensors: dict[str, NDArray[Any]] = {}
    for name, (dtype, shape) in forms.items():
        array = np.ascontiguousarray(mine[0].tensors[name]) if mine else np.empty(shape, dtype)
        # Of bytes, since a message knows few types; in parts, since pixels may be many.
        ranks.hand_(array.reshape(-1).view(np.uint8), holder)
        tensors[name] = array.reshape(shape)
    return Result(tensors, facts)


def hand_folder(folder: Path, last: str) -> None:
    """Copy the files of a finished folder, which has no folders, to every machine that lacks it.

    ``last`` is the file that is written last: where it is, the folder is finished.
    """
    is_here = (folder / last).exists()
    holder = ranks.holder(is_here)
    if holder is None or ranks.current().world == 1:
        return

    def names() -> list[str]:
        found = sorted(path.name for path in folder.iterdir() if path.is_file())
        return sorted(found, key=lambda name: name == last)

    for name in ranks.handed(names, holder):
        data = ranks.handed((folder / name).read_bytes, holder)
        if ranks.leads_machine() and not is_here:
            folder.mkdir(parents=True, exist_ok=True)
            write_small_file(folder / name, data, force=True)
    ranks.wait()
