"""Rows that several processes make in units, kept on the way: a restart repeats seconds.

The units are the same for any number of processes, and so are the rows. What a process has made
since it last wrote goes into a file of its own, named by the digest of the stage; at a restart,
with as many processes or others, each reads those on its disk and the missing units are divided.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from hellofmt.runs import ranks
from hellofmt.runs.results import Result, read_result, write_result

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_SECONDS: Final = 20.0
_UNITS: Final = ".units"


class Progress:
    """Arrays that are filled unit by unit, by all processes.

    Every process must construct it, go through its ``units`` and call ``whole``.

    Attributes:
        units: the slices of rows that this process has to make, ascending.
    """

    def __init__(
        self, arrays: Mapping[str, NDArray[Any]], size: int, path: Path | None = None
    ) -> None:
        """Read what earlier processes made of ``arrays``: zeros of equal length, to be filled.

        ``size`` is the rows of a unit; parts are kept beside ``path``, the file of the stage's
        result.
        """
        self._arrays, self._size, self._path = arrays, size, path
        self._rows = len(next(iter(arrays.values())))
        is_here = np.zeros(-(-self._rows // size), bool)
        if path is not None:
            for part in _parts(path):
                result = read_result(part)
                units = result.tensors[_UNITS]
                at = np.concatenate([np.arange(*self._slice(u).indices(self._rows)) for u in units])
                for name, array in arrays.items():
                    array[at] = result.tensors[name]
                is_here[units] = True
        holders = ranks.holders(is_here)
        # Rows are summed at the end: those that others have as well are theirs.
        for unit in np.flatnonzero(is_here & (holders != ranks.current().rank)).tolist():
            for array in arrays.values():
                array[self._slice(unit)] = 0
        todo = np.flatnonzero(holders < 0)
        self._todo: list[int] = todo[ranks.share(len(todo))].tolist()
        self._unwritten: list[int] = []
        self._written = time.monotonic()

    def _slice(self, unit: int) -> slice:
        return slice(int(unit) * self._size, min((int(unit) + 1) * self._size, self._rows))

    @property
    def units(self) -> list[slice]:
        """Rows of the units that are this process's to make."""
        return [self._slice(unit) for unit in self._todo]

    def filled(self) -> Iterator[slice]:
        """Yield the rows of each unit; when the next is asked for, they have been filled."""
        for unit in self._todo:
            yield self._slice(unit)
            self._unwritten.append(unit)
            if time.monotonic() - self._written > _SECONDS:
                self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        units, self._unwritten = self._unwritten, []
        tensors = {
            name: np.concatenate([array[self._slice(u)] for u in units])
            for name, array in self._arrays.items()
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # No two processes make the same unit.
        part = self._path.with_suffix(f".part-{units[0]}")
        write_result(part, Result({**tensors, _UNITS: np.array(units, np.int64)}, {}))
        self._written = time.monotonic()

    def whole(self) -> dict[str, NDArray[Any]]:
        """Return all rows of all processes, filled in the arrays given."""
        ranks.wait()
        return {name: ranks.sum_rows_(array) for name, array in self._arrays.items()}


def _parts(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}.part-*"))


def remove_parts(path: Path) -> None:
    """Delete what was kept on the way to the result ``path``."""
    for part in _parts(path):
        part.unlink(missing_ok=True)
