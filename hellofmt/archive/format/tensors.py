"""Tensor sections: safetensors behind a stricter check than the library's own.

The library accepts duplicate names, unknown fields, NaN, dimensions beyond the data and hundreds of
thousands of empty tensors, and a file without a payload digest loads with most of its bits flipped.
So a section reaches it only after its digest matched and its header was read here: one JSON object
without duplicate keys, entries of exactly three fields, contiguous offsets, and names, dtypes and
shapes equal to those that the manifest implies. NumPy has no bfloat16; such tensors come out as
float32, which holds every one of their values.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from hellofmt.archive.format.digest import tensors_digest
from hellofmt.archive.format.limits import (
    SAFETENSORS_HEADER_BYTES,
    TENSORS_PER_SECTION,
    check_fixed,
)
from hellofmt.archive.format.manifest import UNSET, Adapter, Head, Manifest, Storage
from hellofmt.errors import SpecError, UserInputError, foreign_text, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

__all__ = [
    "StoredTensor",
    "TensorKind",
    "adapter_tensors",
    "expected_tensors",
    "head_tensors",
    "parse_tensor_header",
    "parse_tensors",
    "probe_tensors",
    "serialize_tensors",
    "validate_nibbles",
    "validate_values",
]

TensorKind = tuple[str, tuple[int, ...]]
"""Dtype as safetensors spells it, and shape."""

_DTYPES: Final[dict[str, tuple[str, str]]] = {
    # safetensors' spelling: (little-endian NumPy dtype of the bytes, safetensors' long name)
    "F32": ("<f4", "float32"),
    "F16": ("<f2", "float16"),
    "BF16": ("<u2", "bfloat16"),
    "I8": ("|i1", "int8"),
    "U8": ("|u1", "uint8"),
    "I32": ("<i4", "int32"),
    "U16": ("<u2", "uint16"),
    "U64": ("<u8", "uint64"),
}
_STORAGE: Final[dict[Storage, str]] = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int8": "I8",
    "int4": "U8",
}
BASE_DTYPES: Final = frozenset({"F32", "F16", "BF16"})
_FIELDS: Final = {"dtype", "shape", "data_offsets"}
_ITEM_BYTES: Final = {name: np.dtype(code).itemsize for name, (code, _) in _DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """One stored tensor.

    Attributes:
        dtype: ``F32``, ``F16``, ``BF16``, ``I8``, ``U8``, ``I32``, ``U16`` or ``U64``.
        shape: 1 to 5 dimensions, each >= 1.
        data: little-endian, row-major.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def from_numpy(cls, array: NDArray[Any]) -> StoredTensor:
        """Store the values of ``array`` unchanged.

        Args:
            array: float32, float16, int8, uint8, int32, uint16 or uint64, any layout.

        Returns:
            The tensor, with a copy of the data.

        Raises:
            UserInputError: the format does not store this dtype (E_DATA).
        """
        for name, (code, long_name) in _DTYPES.items():
            if array.dtype.name == long_name:
                data = np.ascontiguousarray(array, dtype=np.dtype(code)).tobytes()
                return cls(name, tuple(array.shape), data)
        raise UserInputError.make("E_DATA", f"the format stores no {array.dtype.name} tensors")

    def numpy(self) -> NDArray[Any]:
        """Return the values; BF16 as float32, which is exact.

        Returns:
            An array of ``shape``, which may share the stored bytes.
        """
        raw = np.frombuffer(self.data, np.dtype(_DTYPES[self.dtype][0]))
        if self.dtype == "BF16":
            raw = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return raw.reshape(self.shape)


def _matrix(name: str, shape: Iterable[int], storage: Storage) -> dict[str, TensorKind]:
    """Return the tensors that store one matrix: itself, and its row scales if quantised."""
    rows, columns = shape
    kinds: dict[str, TensorKind] = {}
    width = -(-columns // 2) if storage == "int4" else columns
    kinds[name] = (_STORAGE[storage], (rows, width))
    if storage in ("int8", "int4"):
        kinds[f"{name}_scale"] = ("F32", (rows,))
    return kinds


def adapter_tensors(adapter: Adapter) -> dict[str, TensorKind]:
    """Return name, dtype and shape of every tensor in the section ``adapter``."""
    kinds: dict[str, TensorKind] = {}
    for target in adapter.targets:
        kinds |= _matrix(f"{target.param}::A", target.a, target.storage)
        kinds |= _matrix(f"{target.param}::B", target.b, target.storage)
    return kinds


def head_tensors(head: Head, dim: int, classes: int) -> dict[str, TensorKind]:
    """Return name, dtype and shape of every tensor in the section ``head``.

    Args:
        head: the manifest's entry.
        dim: D, features of an embedding.
        classes: C.

    Returns:
        The tensors.
    """
    kinds: dict[str, TensorKind] = {"logit_scale": ("F32", (1,))}
    if head.bias:
        kinds["bias"] = ("F32", (classes,))
    if head.start == "stored":
        kinds |= _matrix("weight", (classes, dim), head.storage)
    if head.a is not UNSET and head.b is not UNSET:
        kinds |= _matrix("weight::A", head.a, head.storage)
        kinds |= _matrix("weight::B", head.b, head.storage)
    return kinds


def probe_tensors(count: int, classes: int) -> dict[str, TensorKind]:
    """Return name, dtype and shape of the one tensor in the section ``probes``."""
    return {"logits": ("F32", (count, classes))}


def expected_tensors(manifest: Manifest, section: str) -> dict[str, TensorKind] | None:
    """Return name, dtype and shape of every tensor that the manifest implies for a section.

    Args:
        manifest: a valid manifest that has the section.
        section: ``index``, ``adapter``, ``head``, ``probes``, ``pixels`` or ``base``.

    Returns:
        The tensors; None for ``base``, whose tensors are fixed by a digest alone.
    """
    kinds: dict[str, TensorKind] = {}
    if section == "base":
        return None
    if section == "adapter" and manifest.adapter is not UNSET:
        return adapter_tensors(manifest.adapter)
    if section == "head" and manifest.head is not UNSET and manifest.base is not UNSET:
        return head_tensors(manifest.head, manifest.base.arch.embed_dim, manifest.classes)
    if section == "probes" and manifest.probes is not UNSET:
        return probe_tensors(manifest.probes.count, manifest.classes)
    if manifest.images is not UNSET:
        rows = manifest.images.count
        if section == "index":
            kinds["size"] = ("U64", (rows,))
            kinds["label"] = ("I32", (rows,))
            kinds["height"] = ("U16", (rows,))
            kinds["width"] = ("U16", (rows,))
            kinds["sha256"] = ("U8", (rows, 32))
        elif section == "pixels" and manifest.images.shape is not UNSET:
            kinds["pixels"] = ("U8", (rows, *manifest.images.shape))
    return kinds


def serialize_tensors(section: str, tensors: Mapping[str, StoredTensor]) -> bytes:
    """Serialise a tensor section; the same tensors give the same bytes.

    Args:
        section: section name, which becomes the one metadata entry ``hello.<section>/1``.
        tensors: by name.

    Returns:
        A safetensors file, tensors in the library's order (dtype size, then name).
    """
    from safetensors import TensorSpec, serialize

    specs: dict[str, TensorSpec] = {}
    # The library takes raw addresses, so the arrays must outlive the call.
    arrays = {name: np.frombuffer(tensor.data, np.uint8) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        specs[name] = TensorSpec(
            dtype=_DTYPES[tensor.dtype][1],
            shape=list(tensor.shape),
            data_ptr=arrays[name].ctypes.data,
            data_len=len(tensor.data),
        )
    return bytes(serialize(specs, metadata={"schema": f"hello.{section}/1"}))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise _RefusedHeader("duplicate key")
    return entries


class _RefusedHeader(ValueError):
    """A header form that the strict check does not allow."""


def _integer(text: str) -> int:
    if len(text) > 16:
        raise _RefusedHeader(f"integer of {len(text)} digits")
    return int(text)


def _no_number(text: str) -> Any:
    raise _RefusedHeader(f"expected integers, got {printable(text, 40)}")


def parse_tensor_header(
    head: bytes, size: int, section: str, expected: Mapping[str, TensorKind] | None
) -> dict[str, tuple[TensorKind, int, int]]:
    """Parse the header of a tensor section.

    Args:
        head: the first bytes of the section, at least the whole header if the section has it.
        size: bytes of the whole section.
        section: its name.
        expected: what the manifest implies; None admits any names, but only floating dtypes.

    Returns:
        Per tensor, in file order: dtype and shape, first byte and end within the section.

    Raises:
        LimitError: the header exceeds 1 MiB (E_LIMIT_TENSOR_HEADER) or lists more than 4,096
            tensors (E_LIMIT_TENSORS).
        SpecError: a rule of the strict check is broken (E_TENSOR).
    """
    member = f"__hello__/{section}"

    def fault(text: str) -> SpecError:
        return SpecError.make("E_TENSOR", text, member=member)

    length = int.from_bytes(head[:8], "little")
    if len(head) >= 8:
        check_fixed("tensor_header", length, SAFETENSORS_HEADER_BYTES, member=member)
    if size < 8 or 8 + length > size or len(head) < 8 + length:
        raise fault(f"the header goes past the section of {size} bytes")
    text = head[8 : 8 + length]
    if text[:1] != b"{":
        raise fault("the header does not begin with a JSON object")
    body = text.rstrip(b" ")
    if body[-1:] != b"}":
        raise fault("the header is padded with something other than spaces")
    try:
        listed = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except _RefusedHeader as error:
        raise fault(f"header: {error}") from None
    except (ValueError, RecursionError):
        raise fault("the header is not JSON") from None
    metadata = {"schema": f"hello.{section}/1"}
    # A null is not absence.
    if listed.pop("__metadata__", metadata) != metadata:
        raise fault(f"metadata; expected only schema hello.{section}/1")
    check_fixed("tensors", len(listed), TENSORS_PER_SECTION, member=member)
    start = 8 + length
    entries: dict[str, tuple[TensorKind, int, int]] = {}
    for name, entry in listed.items():
        kind, end = _parse_entry(name, entry, start - 8 - length, fault)
        implied = expected.get(name) if expected is not None else kind
        if implied is None:
            raise fault(f"tensor {printable(name)} is not one the manifest implies")
        if implied != kind or (expected is None and kind[0] not in BASE_DTYPES):
            raise fault(
                f"tensor {printable(name)}; expected {_show(implied, base=expected is None)}, "
                f"got {_show(kind)}"
            )
        entries[name] = (kind, start, 8 + length + end)
        start = 8 + length + end
    missing = [name for name in expected or () if name not in entries]
    if missing:
        raise fault(f"tensor {printable(missing[0])} is missing ({len(missing)} in all)")
    if start != size:
        raise fault(f"the tensors end at byte {start}; expected {size}")
    return entries


def _show(kind: TensorKind, *, base: bool = False) -> str:
    if base:
        return "F32, F16 or BF16"
    return f"{printable(kind[0], 20)} {'x'.join(map(str, kind[1]))}"


def _parse_entry(name: str, entry: Any, start: int, fault: Any) -> tuple[TensorKind, int]:
    """Parse dtype, shape and end offset of a header entry whose data begin at ``start``.

    Raises:
        SpecError: E_TENSOR, built by ``fault``.
    """
    problem, size = "", 0
    if not (0 < len(name) <= 512 and name.isprintable()):
        problem = "expected a name of 1 to 512 printable characters"
    elif not isinstance(entry, dict) or set(entry) != _FIELDS:
        problem = "expected exactly dtype, shape and data_offsets"
    elif not isinstance(entry["dtype"], str) or entry["dtype"] not in _DTYPES:
        problem = f"dtype {printable(entry['dtype'], 20)} is not one the format stores"
    elif not _is_shape(entry["shape"]):
        problem = "expected 1 to 5 dimensions, each at least 1"
    else:
        size = math.prod(entry["shape"]) * _ITEM_BYTES[entry["dtype"]]
        # Compared as integers: True would equal 1.
        if entry["data_offsets"] != [start, start + size] or not _is_integers(
            entry["data_offsets"]
        ):
            problem = f"expected data from offset {start} to {start + size}"
    if problem:
        raise fault(f"tensor {printable(name)}: {problem}")
    return (entry["dtype"], tuple(entry["shape"])), start + size


def _is_integers(value: list[Any]) -> bool:
    return all(type(n) is int for n in value)


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, list) and 1 <= len(value) <= 5 and _is_integers(value) and min(value) >= 1
    )


def parse_tensors(
    data: bytes, section: str, expected: Mapping[str, TensorKind] | None
) -> dict[str, StoredTensor]:
    """Parse a tensor section and check all values.

    Args:
        data: the raw section, its digest already checked.
        section: its name.
        expected: see ``parse_tensor_header``.

    Returns:
        The tensors, in file order.

    Raises:
        LimitError: see ``parse_tensor_header``.
        SpecError: the section fails the strict check, or ``validate_values`` objects (E_TENSOR).
    """
    from safetensors import SafetensorError, deserialize

    entries = parse_tensor_header(data, len(data), section, expected)
    member = f"__hello__/{section}"
    tensors: dict[str, StoredTensor] = {}
    # The library refuses a file without tensors; an adapter without targets is one.
    if not entries:
        return tensors
    try:
        loaded = deserialize(data)
    except SafetensorError as error:
        raise SpecError.make("E_TENSOR", foreign_text(error), member=member) from None
    for name, fields in loaded:
        kind = entries.get(name)
        if kind is None or kind[0] != (fields["dtype"], tuple(fields["shape"])):
            raise SpecError.make(
                "E_TENSOR", f"tensor {printable(name)} reads differently in the safetensors library"
            )
        tensors[name] = StoredTensor(*kind[0], fields["data"])
    if section in ("adapter", "head", "probes", "base"):
        problems = validate_values(tensors)
        if problems:
            raise SpecError.make("E_TENSOR", problems[0], member=member)
    return tensors


def validate_values(tensors: Mapping[str, StoredTensor]) -> list[str]:
    """List tensors with values that a projector may not have.

    Args:
        tensors: by name.

    Returns:
        One line per tensor with NaN or infinity, a row scale that is not above 0, or an integer
        outside the symmetric range of its storage.
    """
    problems: list[str] = []
    for name, tensor in tensors.items():
        raw = np.frombuffer(tensor.data, np.dtype(_DTYPES[tensor.dtype][0]))
        if tensor.dtype == "BF16":
            bad = bool(((raw & np.uint16(0x7F80)) == np.uint16(0x7F80)).any())
        elif tensor.dtype in ("F32", "F16"):
            bad = not bool(np.isfinite(raw).all())
        else:
            bad = False
        if bad:
            problems.append(f"tensor {printable(name)} holds a value that is not finite")
        elif name.endswith("_scale") and name != "logit_scale" and not bool((raw > 0).all()):
            problems.append(f"tensor {printable(name)}; expected scales above 0")
        elif tensor.dtype == "I8" and bool((raw == -128).any()):
            problems.append(f"tensor {printable(name)}; expected int8 values from -127 to 127")
        elif tensor.dtype == "U8" and not bool(((raw & 15) > 0).all() and (raw > 15).all()):
            problems.append(f"tensor {printable(name)}; expected int4 values from -7 to 7")
    return problems


def validate_nibbles(
    tensors: Mapping[str, StoredTensor], manifest: Manifest, section: str
) -> list[str]:
    """Check the unused half of the last byte of int4 rows, which must have its one value.

    Args:
        tensors: tensors of the section, from ``parse_tensors``.
        manifest: a valid manifest that has the section.
        section: its name.

    Returns:
        One line per matrix, of an odd number of columns, where it is not 8 (the value 0).
    """
    columns: dict[str, int] = {}
    if section == "adapter" and manifest.adapter is not UNSET:
        for target in manifest.adapter.targets:
            if target.storage == "int4":
                columns[f"{target.param}::A"] = target.a[1]
                columns[f"{target.param}::B"] = target.b[1]
    elif section == "head" and manifest.head is not UNSET and manifest.base is not UNSET:
        head = manifest.head
        if head.storage == "int4":
            columns["weight"] = manifest.base.arch.embed_dim
        if head.storage == "int4" and head.a is not UNSET and head.b is not UNSET:
            columns["weight::A"], columns["weight::B"] = head.a[1], head.b[1]
    return [
        f"tensor {printable(name)}; expected 8 in the unused half of the last byte of a row"
        for name, count in columns.items()
        if count % 2 and name in tensors and (tensors[name].numpy()[:, -1] >> 4 != 8).any()
    ]


def base_tensors_digest(tensors: Mapping[str, StoredTensor]) -> str:
    """Compute the digest that the manifest of an embedded base pins, all tensors as float32.

    Args:
        tensors: the image tower, floating dtypes.

    Returns:
        ``sha256:`` and 64 hex digits.
    """
    return tensors_digest(
        (name, "F32", tensor.shape, tensor.numpy().astype("<f4").tobytes())
        for name, tensor in tensors.items()
    )
