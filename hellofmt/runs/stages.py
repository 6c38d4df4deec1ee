"""Keep finished stages: every result is one file, named by a digest of its inputs.

A distillation takes an hour of fitting and then seconds for everything else, so no finished stage
may run twice, and no result of other inputs may be used. The name of a stage's file contains the
digest of *all* its inputs: data, teacher, base, settings. So nothing needs to be invalidated;
changed inputs mean another file. A file gets its name only when it is complete, so its existence is
the only bookkeeping, and a process killed at any point leaves finished stages and at most one
temporary file.

A database or a log of stages was rejected: it could disagree with the files.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hellofmt.errors import UserInputError
from hellofmt.runs import ranks
from hellofmt.runs.cost import Meter, Show, StageCost
from hellofmt.runs.handed import handed_result
from hellofmt.runs.progress import remove_parts
from hellofmt.runs.results import Result, digest_of, read_result, write_result

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

_VERSION: Final = 3
"""Increase it when a stage computes something else from the same inputs."""

_DIGITS: Final = 20
"""Hex digits of a digest in a file name: 80 bits, short to read and safe from collisions."""


class Stages:
    """A folder of finished stages, or no folder at all.

    Under ``torchrun`` every process helps to make a result. Rank 0 writes it; whoever has it reads
    it for all, since the folder may be on another disk on each machine.

    Attributes:
        meter: cost of each stage, including stages that were finished earlier; the fact ``gflop``
            of a result is its work.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        *,
        say: Callable[[str], None] | None = None,
        show: Show = contextlib.nullcontext,
    ) -> None:
        """Use the folder ``root``, created with the first result; None keeps nothing.

        ``say`` is told of every result that is read; ``show`` makes the context around a stage.
        """
        if root is None and ranks.current().world > 1:
            raise UserInputError.make("E_OPTION", "several processes need a work folder, got none")
        self._root = None if root is None else Path(root)
        self._say = say
        self.meter = Meter(show)
        self._written: list[Path] = []

    @property
    def is_kept(self) -> bool:
        """Whether there is a folder; then inputs need a digest."""
        return self._root is not None

    def path(self, name: str, inputs: object) -> Path | None:
        """Return the path of the stage ``name`` for these inputs, or None without a folder."""
        if self._root is None:
            return None
        return self._root / f"{name}-{digest_of([_VERSION, inputs])[:_DIGITS]}.safetensors"

    def run(
        self, name: str, inputs: object, make: Callable[[Path | None], Result], *, keep: bool = True
    ) -> Result:
        """Return the result of a stage: read it if finished, else make it and, if told, keep it.

        ``inputs`` is everything that it depends on; see ``digest_of``. Every process calls
        ``make``, with the path of the file or None. Parts beside it, named as ``Progress`` does,
        are deleted afterwards.
        """
        path = self.path(name, inputs) if keep else None
        if path is None:
            return self._measured(name, make, None)
        self._written.append(path)
        holder = ranks.holder(path.exists())
        if holder is None:
            made = self._measured(name, make, path)
            cost = asdict(self.meter.costs.pop())

            def read() -> Result:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_result(path, replace(made, facts={**made.facts, "cost": cost}))
                return read_result(path)

            result = handed_result(read)
        else:
            if self._say is not None and ranks.current().rank == 0:
                self._say(f"{name}: finished earlier, read from {path.name}")
            result = handed_result(partial(read_result, path), holder)
        if ranks.leads_machine():
            remove_parts(path)
        if "cost" in result.facts:
            self.meter.costs.append(StageCost(**result.facts["cost"]))
        return result

    def _measured(
        self, name: str, make: Callable[[Path | None], Result], path: Path | None
    ) -> Result:
        with self.meter.stage(name):
            result = make(path)
        self.meter.set_gflop(result.facts.get("gflop"))
        return result

    def remove(self) -> None:
        """Delete the results that were used or made here, and the folder if it is then empty.

        The first process of each machine does so; nobody may need them any more.
        """
        if self._root is None or not ranks.leads_machine():
            return
        for path in self._written:
            path.unlink(missing_ok=True)
            remove_parts(path)
        # Other files there are not ours to delete.
        with contextlib.suppress(OSError):
            self._root.rmdir()
