"""Stages that survive a kill: every finished result is one file, named by what it was made from.

A distillation is an hour of fitting followed by seconds of everything else, so what is finished
must not be made twice, and what was made from other inputs must never be used. A stage's file
carries in its name the digest of *all* its inputs: data, teacher, base, settings. There is nothing
to invalidate, then; changed inputs are another file. A file appears under its name only when it is
complete, so its existence is the whole bookkeeping, and a process killed anywhere leaves finished
stages and at most one temporary file.

Rejected: a database or a log of stages (a second truth beside the files).
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hellofmt.errors import UserInputError
from hellofmt.runs import ranks
from hellofmt.runs.cost import Meter, StageCost
from hellofmt.runs.results import Result, digest_of, read_result, write_result

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

__all__ = ["Stages"]

_VERSION: Final = 1
"""Raised when a stage makes something else of the same inputs."""

_DIGITS: Final = 20
"""Hex digits of a digest in a file name: 80 bits, far from a collision and short to read."""


class Stages:
    """A folder of finished stages, or no folder at all.

    Under ``torchrun`` every process takes part in making a result; rank 0 writes, and all of them
    read, so the folder must be on a disk that all of them see.

    Attributes:
        meter: what each stage cost, also of one that was finished earlier; a result's fact
            ``gflop`` is its work.
    """

    def __init__(
        self, root: str | os.PathLike[str] | None, *, say: Callable[[str], None] | None = None
    ) -> None:
        """Use the folder ``root``, which is created at the first result; None keeps nothing.

        Raises:
            UserInputError: None under several processes, which could not share a result (E_OPTION).
        """
        if root is None and ranks.current().world > 1:
            raise UserInputError.make(
                "E_OPTION", "several processes need a work folder that all of them see; got none"
            )
        self._root = None if root is None else Path(root)
        self._say = say
        self.meter = Meter()
        self._written: list[Path] = []

    @property
    def is_kept(self) -> bool:
        """Whether there is a folder, so that inputs need a digest."""
        return self._root is not None

    def path(self, name: str, inputs: object) -> Path | None:
        """Where the stage ``name`` of these inputs is kept, or None without a folder."""
        if self._root is None:
            return None
        return self._root / f"{name}-{digest_of([_VERSION, inputs])[:_DIGITS]}.safetensors"

    def run(self, name: str, inputs: object, make: Callable[[], Result]) -> Result:
        """The result of a stage: read if it is finished, else made and kept.

        Args:
            name: of the stage.
            inputs: everything the result depends on; see ``digest_of``.
            make: makes it; called by every process.

        Returns:
            The result, the same whether it was made now or earlier.
        """
        path = self.path(name, inputs)
        if path is None:
            return self._measured(name, make)
        self._written.append(path)
        place = ranks.current()
        if ranks.agreed(path.exists()):
            if self._say is not None and place.rank == 0:
                self._say(f"{name}: finished earlier, read from {path.name}")
        else:
            result = self._measured(name, make)
            if place.rank == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
                cost = self.meter.costs[-1].facts()
                write_result(path, replace(result, facts={**result.facts, "cost": cost}))
            self.meter.costs.pop()
            ranks.wait()
        result = read_result(path)
        if "cost" in result.facts:
            self.meter.costs.append(StageCost.from_facts(result.facts["cost"]))
        return result

    def _measured(self, name: str, make: Callable[[], Result]) -> Result:
        with self.meter.stage(name):
            result = make()
        self.meter.set_gflop(result.facts.get("gflop"))
        return result

    def remove(self) -> None:
        """Delete the results that were used or made here, and the folder if that empties it."""
        if self._root is None or ranks.current().rank != 0:
            return
        for path in self._written:
            path.unlink(missing_ok=True)
        # Whatever else lies there is not ours to delete.
        with contextlib.suppress(OSError):
            self._root.rmdir()
