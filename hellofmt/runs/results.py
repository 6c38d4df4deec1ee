"""Write results to files, whole or not at all, and digest the inputs that name them.

Files are safetensors: tensors, with small facts as JSON in the metadata. A file gets its name only
when it is complete (written under another name, synced, renamed), so a process killed at any point
leaves the previous file and at most one temporary file. Pickles were rejected: they run code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import nn

from hellofmt.archive.format.canonical import canonical
from hellofmt.archive.storage.local_files import write_small_file
from hellofmt.errors import UserInputError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class Result:
    """NumPy arrays and small JSON values of one file, by name."""

    tensors: Mapping[str, NDArray[Any]]
    facts: Mapping[str, Any]


@runtime_checkable
class Digested(Protocol):
    """Anything that knows its own digest, such as a source of images."""

    def digest(self) -> str:
        """Return what stands for its content."""
        ...


def _plain(value: object) -> Any:
    """Convert ``value`` to JSON, with arrays and networks as digests of their bytes."""
    if isinstance(value, float):
        # The shortest decimal that reads back; canonical JSON has no floats.
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
        # Before what knows its own digest: the entry of a base has a field of that name.
        return _plain(msgspec.to_builtins(value))
    if isinstance(value, Digested):
        return {"digest": value.digest()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        items = cast("dict[str, object]", value)
        return {str(key): _plain(item) for key, item in items.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("Sequence[object]", value)]
    raise TypeError(f"no digest of a {type(value).__name__}")


def digest_of(value: object) -> str:
    """Hash the canonical JSON of ``value`` with SHA-256: 64 hex digits.

    NumPy arrays and tensors count by type, shape and bytes, networks by their tensors and
    structure, sources of images by their own digest; a function or anything else is a TypeError.
    """
    return hashlib.sha256(canonical(_plain(value))).hexdigest()


def write_result(path: Path, result: Result) -> None:
    """Write ``result`` as one safetensors file."""
    # We write the file: on a full disk safetensors would raise its own error and leave half a file.
    # Not `ascontiguousarray`, which turns a scalar into a vector.
    tensors = {name: np.asarray(array, order="C") for name, array in result.tensors.items()}
    write_small_file(
        path, save(tensors, {"facts": json.dumps(dict(result.facts), sort_keys=True)}), force=True
    )


def read_result(path: Path) -> Result:
    """Read a file of ``write_result``."""
    try:
        with safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts = json.loads(file.metadata()["facts"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserInputError.make(
            "E_DATA", f"`{printable(path)}` is damaged; delete it, and it will be made again"
        ) from error
    return Result(tensors, facts)
