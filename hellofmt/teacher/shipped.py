"""A teacher that labels online: shipped as a network, the rival of every label that is stored.

RDED (Sun et al., CVPR 2024) stores no labels: its student asks the teacher at every step, so what
is shipped is the teacher. Whether a label function is worth its bytes is first of all a question
about this file: a network at 8 bits a value is the null hypothesis of every cleverer scheme. It is
therefore a real file, written and read like stored labels, a directory with

=======================  ===========================================================================
``labels.json``          ``form`` ``teacher``; ``network``, a name for ``build_student``,
                         ``classes`` C, its input rule (``size`` in pixels that views are resized
                         to, ``interpolation``, ``mean`` and ``std``), ``storage``, ``order``,
                         SHA-256 of the class keys joined by line ends
``teacher.safetensors``  the network's tensors by their names. ``float32``, ``float16``: as they
                         are, in that type. ``int8``: tensors of two or more dimensions as int8 with
                         one float32 scale per index of the first, ``NAME::scale``; the others, a
                         thousandth of a network, float16
=======================  ===========================================================================

A file can name only networks that ``build_student`` knows: none of the user's code, and no weights
that are downloaded. Counters of batches (``num_batches_tracked``) are left out: a frozen network
does not read them. So are tensors of integers, which such networks compute when they are built.
Rejected: scales per tensor (depthwise convolutions lose whole channels), pickles (they run code).
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from hellofmt.archive.format.canonical import decimal_string, decimal_value
from hellofmt.archive.storage.local_files import new_directory, read_file
from hellofmt.errors import UserInputError, foreign_text, printable
from hellofmt.loading.stored_labels import LABELS_SCHEMA, StoredLabels
from hellofmt.projector.quantise import dequantise, quantise
from hellofmt.student.networks import build_student
from hellofmt.teacher.network import Teacher
from hellofmt.teacher.rule import INTERPOLATIONS, InputRule

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from hellofmt.archive.format.manifest import Views

__all__ = [
    "TEACHER_STORAGES",
    "TeacherStorage",
    "label_source",
    "read_teacher",
    "write_teacher",
]

TeacherStorage = Literal["float32", "float16", "int8"]
TEACHER_STORAGES: Final[tuple[TeacherStorage, ...]] = ("float32", "float16", "int8")
"""Types of a teacher's stored values."""

_FACTS = "labels.json"
_TENSORS = "teacher.safetensors"
_SCALE = "::scale"


def _shapes(network: str, classes: int, size: int) -> dict[str, tuple[int, ...]]:
    """Stored tensors of a network by name, without making any."""
    with torch.device("meta"):
        state = build_student(network, classes, size).state_dict()
    return {name: tuple(t.shape) for name, t in state.items() if t.is_floating_point()}


def _is_quantised(shape: tuple[int, ...], storage: str) -> bool:
    return storage == "int8" and len(shape) >= 2 and math.prod(shape) > 0


def _stored(state: dict[str, Tensor], storage: TeacherStorage) -> dict[str, NDArray[Any]]:
    """The arrays of the file."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        values = tensor.detach().float().cpu().contiguous().numpy()
        if _is_quantised(values.shape, storage):
            # Before it is quantised: an infinite scale would hide it.
            _check_finite(name, values, storage)
            flat, scale = quantise(values.reshape(values.shape[0], -1), "int8")
            arrays[name], arrays[name + _SCALE] = flat.reshape(values.shape), scale
            continue
        # Too large a number is refused below; NumPy's warning of it would be a second message.
        with np.errstate(over="ignore"):
            arrays[name] = values.astype("<f4" if storage == "float32" else "<f2")
        _check_finite(name, arrays[name], storage)
    return arrays


def _check_finite(name: str, values: NDArray[Any], storage: str) -> None:
    if not bool(np.isfinite(values).all()):
        text = f"`{printable(name)}` of the teacher has values that {storage} cannot hold"
        raise UserInputError.make("E_TEACHER", f"{text}; expected finite ones")


def _order(classes: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(classes).encode("utf-8")).hexdigest()


def write_teacher(
    directory: str | os.PathLike[str],
    network: str,
    module: nn.Module,
    *,
    views: Views,
    classes: Sequence[str],
    storage: TeacherStorage = "float32",
) -> int:
    """Write a teacher as a source of labels.

    Args:
        directory: new; it gets its name when it is complete.
        network: what ``build_student`` built ``module`` by.
        module: the network, which takes images of the views' size, mean and std; or a ``Teacher``,
            whose own input rule is kept.
        views: of the data set.
        classes: keys in the order of the logits.
        storage: type of the values; see the module.

    Returns:
        Bytes written.

    Raises:
        UserInputError: E_OPTION, an unknown network or storage; E_TEACHER, ``module`` is not that
            network, has values that ``storage`` cannot hold, or only some of its outputs are used.
        HelloIOError: E_TARGET, the directory exists.
        OSError: it cannot be written.
    """
    if storage not in TEACHER_STORAGES:
        text = f"`storage`; expected {' or '.join(TEACHER_STORAGES)}, got {printable(storage)}"
        raise UserInputError.make("E_OPTION", text)
    # Not wrapped: that would freeze a network that its owner may go on training.
    rule = InputRule.of_views(views)
    if isinstance(module, Teacher):
        if module.columns is not None:
            text = "the teacher's outputs are chosen and reordered, which the files cannot say"
            raise UserInputError.make("E_TEACHER", f"{text}; expected one that uses all")
        rule, module = module.rule, module.network
    size = rule.size or views.size
    state: dict[str, Tensor] = module.state_dict()
    shapes = {name: tuple(t.shape) for name, t in state.items() if t.is_floating_point()}
    if shapes != _shapes(network, len(classes), size):
        text = f"the teacher is not a `{printable(network)}` for {len(classes)} classes"
        raise UserInputError.make("E_TEACHER", f"{text} and {size} pixels; expected one")
    facts = {
        "schema": LABELS_SCHEMA,
        "form": "teacher",
        "network": network,
        "classes": len(classes),
        "size": size,
        "interpolation": rule.interpolation,
        "mean": [decimal_string(value) for value in rule.mean],
        "std": [decimal_string(value) for value in rule.std],
        "storage": storage,
        "order": _order(classes),
    }
    data = save(_stored(state, storage))
    with new_directory(directory) as folder:
        (folder / _TENSORS).write_bytes(data)
        (folder / _FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="ascii")
        return sum(path.stat().st_size for path in folder.iterdir())


def _refuse(path: Path, fact: str) -> NoReturn:
    raise UserInputError.make("E_TEACHER", f"teacher `{printable(path)}`: {fact}")


def _facts_of(directory: Path) -> dict[str, Any]:
    """What ``labels.json`` says, of any form; empty if it says nothing."""
    try:
        found = json.loads(read_file(directory / _FACTS))
    except ValueError:
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _rule(path: Path, facts: dict[str, Any], size: int) -> InputRule:
    found: list[tuple[float, float, float]] = []
    for name in ("mean", "std"):
        try:
            values = [decimal_value(str(text)) for text in facts[name]]
        except (KeyError, TypeError, ValueError):
            values = []
        # What becomes 0 in float32 would divide by it.
        is_sound = len(values) == 3 and all(abs(value) < 1e9 for value in values)
        if not is_sound or (name == "std" and min(values) < 1e-9):
            _refuse(path / _FACTS, f"`{name}`; expected 3 decimals{' > 0' * (name == 'std')}")
        found.append((values[0], values[1], values[2]))
    # Files from before teachers had a rule do not say it, and took views of this size alone.
    interpolation = facts.get("interpolation", "bilinear")
    if interpolation not in INTERPOLATIONS:
        _refuse(path / _FACTS, f"`interpolation`; expected {', '.join(INTERPOLATIONS)}")
    mean, std = found
    return InputRule(mean, std, size, interpolation, source="as it was written")


def _read_tensors(
    path: Path, shapes: dict[str, tuple[int, ...]], storage: str
) -> dict[str, Tensor]:
    """The float tensors of the network, float32."""
    try:
        arrays = load(read_file(path))
    except SafetensorError as error:
        message = f"not a safetensors file: {foreign_text(error)}"
        raise UserInputError.make("E_TEACHER", f"teacher `{printable(path)}`: {message}") from error
    wanted: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if _is_quantised(shape, storage):
            wanted[name] = np.dtype("i1"), shape
            wanted[name + _SCALE] = np.dtype("<f4"), shape[:1]
        else:
            wanted[name] = np.dtype("<f4" if storage == "float32" else "<f2"), shape
    for name in sorted({*wanted, *arrays}):
        array = arrays.get(name)
        given = None if array is None else (array.dtype, array.shape)
        if given != wanted.get(name):
            said = "none" if given is None else f"{given[0]} {given[1]}"
            other = wanted.get(name)
            needed = "none" if other is None else f"{other[0]} {other[1]}"
            _refuse(path, f"tensor `{printable(name)}`; expected {needed}, got {said}")
    state: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        values, scale = arrays[name], arrays.get(name + _SCALE)
        if scale is not None:
            flat = values.reshape(shape[0], -1)
            values = dequantise(flat, scale, flat.shape[1], "int8").reshape(shape)
        state[name] = torch.from_numpy(values.astype(np.float32))
    return state


def read_teacher(
    directory: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    device: str | torch.device | None = None,
) -> Teacher:
    """Read what ``write_teacher`` wrote.

    Args:
        directory: as ``write_teacher`` left it.
        classes: keys of the data set; None does not compare them.
        device: where it labels; None is the CPU.

    Returns:
        From views (N, 3, S, S) in [0, 1] to logits (N, C), frozen. Values of ``int8`` and
        ``float16`` are computed with in float32.

    Raises:
        OSError: a file is missing or cannot be read.
        UserInputError: E_TEACHER, the files are damaged, do not fit each other, or are of other
            classes; E_OPTION, an unknown network.
    """
    path = Path(directory)
    facts = _facts_of(path)
    if facts.get("schema") != LABELS_SCHEMA or facts.get("form") != "teacher":
        _refuse(path / _FACTS, f"expected schema {LABELS_SCHEMA}, form teacher")
    network, storage = facts.get("network"), facts.get("storage")
    if not isinstance(network, str) or storage not in TEACHER_STORAGES:
        _refuse(path / _FACTS, f"expected `network` and `storage` {' or '.join(TEACHER_STORAGES)}")
    sizes = [facts.get("classes"), facts.get("size")]
    if not all(type(n) is int and 1 <= n <= 1 << 20 for n in sizes):
        _refuse(path / _FACTS, "`classes` and `size`; expected integers from 1 to 1048576")
    count, size = cast("list[int]", sizes)
    if classes is not None and (count, facts.get("order")) != (len(classes), _order(classes)):
        why = "the same number in another order" if count == len(classes) else f"{count}"
        _refuse(path, f"classes; expected the data set's {len(classes)}, got {why}")
    shapes = _shapes(network, count, size)
    rule = _rule(path, facts, size)
    # Read before the network is built: a file of a few bytes must not ask for gigabytes.
    state = _read_tensors(path / _TENSORS, shapes, cast("str", storage))
    module = build_student(network, count, size)
    module.load_state_dict(state, strict=False)
    return Teacher(module, rule).to(device)


def label_source(
    path: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    device: str | torch.device | None = None,
) -> StoredLabels | Teacher:
    """What lies at a path that labels come from: stored labels, or a teacher that makes them.

    Args:
        path: directory that ``write_labels`` or ``write_teacher`` left.
        classes: keys of the data set, which a teacher is compared with; None does not.
        device: of a teacher; None is the CPU.

    Returns:
        For ``HelloDataset(stored=...)`` or ``HelloDataset(label_function=...)``.

    Raises:
        OSError: a file is missing or cannot be read.
        UserInputError: E_DATA, neither of the two; E_TEACHER, E_OPTION: as ``read_teacher``.
    """
    where = Path(path)
    if where.is_file():
        text = f"labels `{printable(where)}`; expected a directory of labels or of a teacher"
        raise UserInputError.make("E_DATA", f"{text}, got a file")
    if _facts_of(where).get("form") == "teacher":
        return read_teacher(where, classes=classes, device=device)
    return StoredLabels(where)
