"""A teacher that labels online: shipped as a network, the rival of every stored label.

RDED (Sun et al., CVPR 2024) stores no labels: its student asks the teacher at every step, so the
teacher is shipped. A network at 8 bits a value is the null hypothesis of every cleverer scheme,
and so it is a real file, written and read like stored labels: a directory with

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
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn, cast

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from hellofmt.archive.storage.local_files import new_directory, read_file
from hellofmt.errors import UserInputError, foreign_text, printable
from hellofmt.loading.stored_labels import LABELS_SCHEMA, StoredLabels
from hellofmt.projector.quantise import dequantise, quantise
from hellofmt.student.networks import build_student
from hellofmt.teacher.network import Teacher
from hellofmt.teacher.rule import InputRule

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from hellofmt.archive.format.views import Views

TeacherStorage = Literal["float32", "float16", "int8"]
TEACHER_STORAGES: Final[tuple[TeacherStorage, ...]] = ("float32", "float16", "int8")
"""Types of a teacher's stored values."""

_FACTS: Final = "labels.json"
_TENSORS: Final = "teacher.safetensors"
_SCALE: Final = "::scale"
_Number = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]


class _Facts(msgspec.Struct, kw_only=True):
    """What ``labels.json`` says of a teacher; see the module."""

    schema: Literal["hello.labels/1"] = LABELS_SCHEMA
    form: Literal["teacher"] = "teacher"
    network: str
    classes: _Number
    size: _Number
    # Files from before teachers had a rule do not say it.
    interpolation: str = "bilinear"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    storage: TeacherStorage
    order: str


def _shapes(network: str, classes: int, size: int) -> dict[str, tuple[int, ...]]:
    """Stored tensors of a network by name, without making any."""
    with torch.device("meta"):
        return _floats(build_student(network, classes, size))


def _floats(network: nn.Module) -> dict[str, tuple[int, ...]]:
    state: dict[str, Tensor] = network.state_dict()
    return {name: tuple(t.shape) for name, t in state.items() if t.is_floating_point()}


def _is_quantised(shape: tuple[int, ...], storage: str) -> bool:
    return storage == "int8" and len(shape) >= 2 and math.prod(shape) > 0


def _stored(network: nn.Module, storage: TeacherStorage) -> dict[str, NDArray[Any]]:
    """The arrays of the file."""
    arrays: dict[str, NDArray[Any]] = {}
    state: dict[str, Tensor] = network.state_dict()
    for name in _floats(network):
        values = state[name].detach().float().cpu().contiguous().numpy()
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
        network: name that ``build_student`` built ``module`` by.
        module: the network, which takes images of the views' size, mean and std; or a ``Teacher``,
            whose own input rule is kept.
        views: of the data set.
        classes: keys in the order of the logits.
        storage: type of the values, ``float32``, ``float16`` or ``int8``.

    Returns:
        Bytes written.

    Raises:
        UserInputError: an unknown network or storage (E_OPTION); ``module`` is not that network,
            has values that ``storage`` cannot hold, or only some of its outputs are used
            (E_TEACHER).
        HelloIOError: the directory exists (E_TARGET).
        OSError: it cannot be written.

    Example:
        >>> import hellofmt
        >>> from hellofmt.archive import default_views
        >>> from hellofmt.teacher import build_network, read_teacher
        >>> network, keys = build_network("cnn", classes=3, size=16), ["rows", "columns", "grey"]
        >>> size = write_teacher("shipped", "cnn", network, views=default_views(16), classes=keys)
        >>> teacher = read_teacher("shipped", classes=keys)
        >>> dataset = hellofmt.HelloDataset("photos.hello", label_function=teacher)
        >>> dataset[0][1].shape
        torch.Size([3])
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
    if _floats(module) != _shapes(network, len(classes), size):
        text = f"the teacher is not a `{printable(network)}` for {len(classes)} classes"
        raise UserInputError.make("E_TEACHER", f"{text} and {size} pixels; expected one")
    facts = _Facts(
        network=network,
        classes=len(classes),
        size=size,
        interpolation=rule.interpolation,
        mean=rule.mean,
        std=rule.std,
        storage=storage,
        order=_order(classes),
    )
    data = save(_stored(module, storage))
    with new_directory(directory) as folder:
        (folder / _TENSORS).write_bytes(data)
        text = json.dumps(msgspec.to_builtins(facts), indent=2) + "\n"
        (folder / _FACTS).write_text(text, encoding="ascii")
        return sum(path.stat().st_size for path in folder.iterdir())


def _refuse(path: Path, fact: str) -> NoReturn:
    raise UserInputError.make("E_TEACHER", f"teacher `{printable(path)}`: {fact}")


def _read_facts(path: Path) -> tuple[_Facts, InputRule]:
    try:
        # Numbers may be strings, as they were.
        facts = msgspec.json.decode(read_file(path), type=_Facts, strict=False)
        source = "as it was written"
        return facts, InputRule(
            facts.mean, facts.std, facts.size, facts.interpolation, None, source
        )
    except msgspec.MsgspecError as error:
        _refuse(path, foreign_text(error))
    except UserInputError as error:
        _refuse(path, error.message)


def _read_tensors(
    path: Path, shapes: dict[str, tuple[int, ...]], storage: str
) -> dict[str, Tensor]:
    """The float tensors of the network, float32."""
    try:
        arrays = load(read_file(path))
    except SafetensorError as error:
        _refuse(path, f"not a safetensors file: {foreign_text(error)}")
    expected: dict[str, str] = {}
    for name, shape in shapes.items():
        if _is_quantised(shape, storage):
            expected[name] = f"int8 {shape}"
            expected[name + _SCALE] = f"float32 {shape[:1]}"
        else:
            expected[name] = f"{'float32' if storage == 'float32' else 'float16'} {shape}"
    got = {name: f"{array.dtype} {array.shape}" for name, array in arrays.items()}
    for name in sorted({*expected, *got}):
        fits, is_there = expected.get(name, "none"), got.get(name, "none")
        if fits != is_there:
            _refuse(path, f"tensor `{printable(name)}`; expected {fits}, got {is_there}")
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
        UserInputError: the files are damaged, do not fit each other, or are of other classes
            (E_TEACHER); an unknown network (E_OPTION).
    """
    path = Path(directory)
    facts, rule = _read_facts(path / _FACTS)
    count = facts.classes
    if classes is not None and (count, facts.order) != (len(classes), _order(classes)):
        why = "the same number in another order" if count == len(classes) else f"{count}"
        _refuse(path, f"classes; expected the data set's {len(classes)}, got {why}")
    shapes = _shapes(facts.network, count, facts.size)
    # Read before the network is built: a file of a few bytes must not ask for gigabytes.
    state = _read_tensors(path / _TENSORS, shapes, facts.storage)
    module = build_student(facts.network, count, facts.size)
    module.load_state_dict(state, strict=False)
    return Teacher(module, rule).to(device)


def label_source(
    path: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    device: str | torch.device | None = None,
) -> StoredLabels | Teacher:
    """Open what labels come from: of ``write_labels``, or a teacher of ``write_teacher``.

    Args:
        path: directory that ``write_labels`` or ``write_teacher`` left.
        classes: keys of the data set, which a teacher's are compared with; None does not.
        device: of a teacher; None is the CPU.

    Returns:
        For ``HelloDataset(stored=...)`` or ``HelloDataset(label_function=...)``.

    Raises:
        OSError: a file is missing or cannot be read.
        UserInputError: neither of the two (E_DATA); E_TEACHER, E_OPTION: as ``read_teacher``.
    """
    where = Path(path)
    if where.is_file():
        text = f"labels `{printable(where)}`; expected a directory of labels or of a teacher"
        raise UserInputError.make("E_DATA", f"{text}, got a file")
    try:
        found: Any = json.loads(read_file(where / _FACTS))
    except ValueError:
        found = None
    if isinstance(found, dict) and cast("dict[str, Any]", found).get("form") == "teacher":
        return read_teacher(where, classes=classes, device=device)
    return StoredLabels(where)
