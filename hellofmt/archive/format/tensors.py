"""Tensor sections: safetensors files whose header is computed and compared, never interpreted.

A safetensors header may hold duplicate names, unknown fields, NaN, dimensions beyond the data and
any order of its entries. Here it has one form, which follows from the names, dtypes and shapes that
the manifest implies, as a tar header follows from name and size; stock safetensors reads it. Only
section ``base``, whose tensors a digest fixes, states them itself; its header must be that one form
of what it states. NumPy has no bfloat16; such tensors come out as float32, which holds every one of
their values.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from hellofmt.archive.format.canonical import canonical
from hellofmt.archive.format.digest import tensors_digest
from hellofmt.archive.format.functions import section_owner
from hellofmt.archive.format.limits import SAFETENSORS_HEADER_BYTES, check_fixed
from hellofmt.archive.format.manifest import UNSET, Adapter, Head, Manifest, Storage
from hellofmt.errors import SpecError, UserInputError, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

__all__ = [
    "StoredTensor",
    "TensorKind",
    "adapter_tensors",
    "check_tensor_header",
    "expected_tensors",
    "head_tensors",
    "parse_tensors",
    "probe_tensors",
    "serialize_tensors",
    "tensor_header",
    "tensor_places",
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
_BASE_DTYPES: Final = ("F32", "F16", "BF16")
_TENSOR_NAME: Final = re.compile(r"[!-~]{1,512}")
ITEM_BYTES: Final = {name: np.dtype(code).itemsize for name, (code, _) in _DTYPES.items()}


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
    if head.storage is UNSET:
        return kinds
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
        section: one of tensors, such as ``index`` or ``head``.

    Returns:
        The tensors; None for ``base``, whose tensors are fixed by a digest alone.
    """
    kinds: dict[str, TensorKind] = {}
    if section == "base":
        return None
    kind, function = section_owner(manifest, section)
    if function is not None and manifest.base is not UNSET:
        if kind == "adapter":
            return adapter_tensors(function.adapter)
        if kind == "head":
            return head_tensors(function.head, manifest.base.arch.embed_dim, manifest.classes)
        return probe_tensors(function.probes.count, manifest.classes)
    if manifest.images is not UNSET:
        rows = manifest.images.count
        if section == "index":
            kinds["size"] = ("U64", (rows,))
            kinds["label"] = ("I32", (rows,))
            kinds["height"] = ("U16", (rows,))
            kinds["width"] = ("U16", (rows,))
            kinds["sha256"] = ("U8", (rows, 32))
            if manifest.images.columns is not UNSET:
                kinds |= {
                    column.name: (column.dtype, (rows, *column.shape))
                    for column in manifest.images.columns
                }
        elif section == "pixels" and manifest.images.shape is not UNSET:
            kinds["pixels"] = ("U8", (rows, *manifest.images.shape))
    return kinds


def tensor_places(kinds: Mapping[str, TensorKind]) -> dict[str, tuple[int, int]]:
    """Return first byte and end of every tensor within the data of a section, in file order.

    Tensors of wider values come first, then names in the order of their code points.
    """
    places: dict[str, tuple[int, int]] = {}
    at = 0
    for name, (dtype, shape) in sorted(kinds.items(), key=lambda k: (-ITEM_BYTES[k[1][0]], k[0])):
        end = at + math.prod(shape) * ITEM_BYTES[dtype]
        places[name] = (at, end)
        at = end
    return places


def tensor_header(kinds: Mapping[str, TensorKind]) -> bytes:
    """Build all that stands before the data of a section; a pure function of the tensors' kinds.

    Args:
        kinds: dtype and shape by name.

    Returns:
        Eight bytes of length and the JSON header in canonical form, padded with spaces so that the
        data begin at a multiple of eight.
    """
    entries = {
        name: {"data_offsets": place, "dtype": kinds[name][0], "shape": kinds[name][1]}
        for name, place in tensor_places(kinds).items()
    }
    text = canonical(entries)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def serialize_tensors(tensors: Mapping[str, StoredTensor]) -> bytes:
    """Serialise a tensor section: a safetensors file, of which the same tensors have only one."""
    kinds = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    data = [tensors[name].data for name in tensor_places(kinds)]
    return b"".join([tensor_header(kinds), *data])


def check_tensor_header(
    head: bytes, size: int, section: str, kinds: Mapping[str, TensorKind]
) -> dict[str, tuple[int, int]]:
    """Compare the header of a tensor section with the only one it may have.

    Args:
        head: the first bytes of the section, at least as many as ``tensor_header(kinds)`` has if
            the section has them.
        size: bytes of the whole section.
        section: its name.
        kinds: dtype and shape of its tensors.

    Returns:
        First byte and end of every tensor within the section, in file order.

    Raises:
        SpecError: it differs, or the section ends elsewhere (E_TENSOR).
    """
    expected = tensor_header(kinds)
    start = len(expected)
    if head[:start] != expected:
        # Where the texts differ says more than their lengths, which stand first.
        pairs = enumerate(zip(head[8:], expected[8:], strict=False), 8)
        at = next((i for i, (a, b) in pairs if a != b), min(len(head), start))
        raise SpecError.make(
            "E_TENSOR",
            f"the header differs at byte {at} from the one that the manifest implies; expected "
            f"{printable(expected[at : at + 40].decode('latin-1'))}, got "
            f"{printable(head[at : at + 40].decode('latin-1')) or 'the end of the section'}",
            member=f"__hello__/{section}",
        )
    places = {name: (start + a, start + b) for name, (a, b) in tensor_places(kinds).items()}
    end = max((end for _, end in places.values()), default=start)
    if end != size:
        raise SpecError.make(
            "E_TENSOR",
            f"the tensors end at byte {end}; the section has {size}",
            member=f"__hello__/{section}",
        )
    return places


def _stated_kinds(data: bytes, section: str) -> dict[str, TensorKind]:
    """Read dtypes and shapes from a header that will be compared with its one form.

    Raises:
        LimitError: the header exceeds 1 MiB (E_LIMIT_TENSOR_HEADER).
        SpecError: it is not JSON, or states a tensor that no base has (E_TENSOR).
    """
    member = f"__hello__/{section}"
    length = int.from_bytes(data[:8], "little")
    check_fixed("tensor_header", length, SAFETENSORS_HEADER_BYTES, member=member)
    try:
        kinds: dict[str, TensorKind] = {
            name: (entry["dtype"], tuple(entry["shape"]))
            for name, entry in dict(json.loads(data[8 : 8 + length])).items()
        }
    except (ValueError, TypeError, KeyError, RecursionError):
        raise SpecError.make(
            "E_TENSOR", "the header is not a JSON object of tensors", member=member
        ) from None
    for name, (dtype, shape) in kinds.items():
        is_shape = 1 <= len(shape) <= 5 and all(type(n) is int and n >= 1 for n in shape)
        if not (is_shape and dtype in _BASE_DTYPES and _TENSOR_NAME.fullmatch(name)):
            raise SpecError.make(
                "E_TENSOR",
                f"tensor {printable(name)}; expected F32, F16 or BF16, 1 to 5 dimensions and a "
                "name of 1 to 512 ASCII characters without spaces",
                member=member,
            )
    return kinds


def parse_tensors(
    data: bytes, section: str, expected: Mapping[str, TensorKind] | None
) -> dict[str, StoredTensor]:
    """Parse a tensor section and check all values.

    Args:
        data: the raw section, its digest already checked.
        section: its name.
        expected: dtype and shape by name, which the manifest implies; None for section ``base``,
            where the header states them.

    Returns:
        The tensors, in file order.

    Raises:
        LimitError: the header of ``base`` exceeds 1 MiB (E_LIMIT_TENSOR_HEADER).
        SpecError: the header is not the one expected, or ``validate_values`` objects (E_TENSOR).
    """
    kinds = _stated_kinds(data, section) if expected is None else expected
    places = check_tensor_header(data, len(data), section, kinds)
    tensors = {
        name: StoredTensor(*kinds[name], data[start:end]) for name, (start, end) in places.items()
    }
    if section not in ("index", "pixels"):
        problems = validate_values(tensors)
        if problems:
            raise SpecError.make("E_TENSOR", problems[0], member=f"__hello__/{section}")
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
    kind, function = section_owner(manifest, section)
    if function is None:
        return []
    if kind == "adapter":
        for target in function.adapter.targets:
            if target.storage == "int4":
                columns[f"{target.param}::A"] = target.a[1]
                columns[f"{target.param}::B"] = target.b[1]
    elif kind == "head" and manifest.base is not UNSET:
        head = function.head
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
