"""Stages that survive a kill: every finished result is one file, named by what it was made from.

A distillation is an hour of fitting followed by seconds of everything else, so what is finished
must not be made twice, and what was made from other inputs must never be used. A stage's file
carries in its name the digest of *all* its inputs: data, teacher, base, settings. There is nothing
to invalidate, then; changed inputs are another file. A file appears under its name only when it is
complete (written beside, synced, renamed), so its existence is the whole bookkeeping, and a process
killed anywhere leaves finished stages and at most one temporary file.

Files are safetensors: tensors, and small facts as JSON in the metadata. Rejected: a database or a
log of stages (a second truth beside the files), pickles (they run code).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import nn

from hellofmt.archive.manifest import canonical
from hellofmt.distillation import ranks
from hellofmt.errors import UserInputError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["Result", "Stages", "digest_of", "read_result", "write_file", "write_result"]

_VERSION: Final = 1
"""Raised when a stage makes something else of the same inputs."""

_DIGITS: Final = 20
"""Hex digits of a digest in a file name: 80 bits, far from a collision and short to read."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a stage made.

    Attributes:
        tensors: NumPy arrays by name.
        facts: small JSON values by name.
    """

    tensors: Mapping[str, NDArray[Any]]
    facts: Mapping[str, Any]


def _plain(value: object) -> Any:
    """``value`` as JSON, arrays and networks replaced by digests of their bytes."""
    if isinstance(value, float):
        # The shortest decimal that reads back; the canonical JSON of manifests has no floats.
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | str):
        return {"none": True} if value is None else value
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous().numpy()
    if isinstance(value, np.ndarray):
        array = np.asarray(cast("NDArray[Any]", value), order="C")
        digest = hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()
        return {"dtype": str(array.dtype), "shape": list(array.shape), "sha256": digest}
    if isinstance(value, nn.Module):
        state = {name: _plain(tensor) for name, tensor in value.state_dict().items()}
        kind = type(value)
        return {"module": f"{kind.__module__}.{kind.__qualname__}", "text": repr(value), **state}
    if isinstance(value, msgspec.Struct):
        return _plain(msgspec.to_builtins(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        items = cast("dict[str, object]", value)
        return {str(key): _plain(item) for key, item in items.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("Sequence[object]", value)]
    raise TypeError(f"no digest of a {type(value).__name__}")


def digest_of(value: object) -> str:
    """Hex SHA-256 over the canonical JSON of ``value``.

    Args:
        value: numbers, strings, None, lists, dicts, data classes, msgspec structs; NumPy arrays and
            tensors count by type, shape and bytes, networks by their tensors and structure.

    Returns:
        64 hex digits.

    Raises:
        TypeError: anything else, such as a bare function.
    """
    return hashlib.sha256(canonical(_plain(value))).hexdigest()


def write_file(path: Path, data: bytes) -> None:
    """Write a whole file or none; an existing one is replaced.

    Raises:
        OSError: it cannot be written, for instance because the disk is full; nothing is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_result(path: Path, result: Result) -> None:
    """Write ``result`` as one safetensors file.

    Raises:
        OSError: it cannot be written; nothing is left.
    """
    # Serialised here and written by us: safetensors would turn a full disk into an error of its
    # own and leave half a file.
    # Not `ascontiguousarray`, which turns a number into a vector of one.
    tensors = {name: np.asarray(array, order="C") for name, array in result.tensors.items()}
    write_file(path, save(tensors, {"facts": json.dumps(dict(result.facts), sort_keys=True)}))


def read_result(path: Path) -> Result:
    """Read what ``write_result`` wrote.

    Raises:
        UserInputError: damaged (E_DATA).
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        facts = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["facts"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserInputError.make(
            "E_DATA", f"`{printable(path)}` is damaged; delete it, and it is made again"
        ) from error
    return Result(tensors, facts)


class Stages:
    """A folder of finished stages, or no folder at all.

    Under ``torchrun`` rank 0 makes and writes; the others wait and read, so the folder must be on
    a disk that all of them see.
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

    def run(
        self, name: str, inputs: object, make: Callable[[], Result], *, by_all: bool = False
    ) -> Result:
        """The result of a stage: read if it is finished, else made and kept.

        Args:
            name: of the stage.
            inputs: everything the result depends on; see ``digest_of``.
            make: makes it.
            by_all: every process takes part in making it; else rank 0 alone does.

        Returns:
            The result, the same whether it was made now or earlier.
        """
        path = self.path(name, inputs)
        if path is None:
            return make()
        self._written.append(path)
        place = ranks.current()
        if ranks.agreed(path.exists()):
            if self._say is not None and place.rank == 0:
                self._say(f"{name}: finished earlier, read from {path.name}")
        else:
            result = make() if by_all or place.rank == 0 else None
            if result is not None and place.rank == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_result(path, result)
            ranks.wait()
        return read_result(path)

    def remove(self) -> None:
        """Delete the results that were used or made here, and the folder if that empties it."""
        if self._root is None or ranks.current().rank != 0:
            return
        for path in self._written:
            path.unlink(missing_ok=True)
        # Whatever else lies there is not ours to delete.
        with contextlib.suppress(OSError):
            self._root.rmdir()
