"""Tensor sections: safetensors files whose header is computed and compared, never interpreted.

A safetensors header may hold duplicate names, unknown fields, NaN, dimensions beyond the data and
any order of its entries. Here it has one form, which follows from the names, dtypes and shapes of
the tensors, as a tar header follows from name and size; stock safetensors reads it. The manifest
implies them (``implied.py``). Only section ``base``, whose tensors a digest fixes, states them
itself; its header must be that one form of what it states. NumPy has no bfloat16; such tensors come
out as float32, which holds every one of their values.
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
from hellofmt.archive.format.layout import section_member
from hellofmt.archive.format.limits import SAFETENSORS_HEADER_BYTES, check_fixed
from hellofmt.errors import SpecError, UserInputError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

TensorKind = tuple[str, tuple[int, ...]]
"""Dtype as safetensors spells it, and shape."""

# Little-endian NumPy dtype of the bytes, by the dtype as safetensors spells it.
_CODES: Final = {
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I8": "|i1",
    "U8": "|u1",
    "I32": "<i4",
    "U16": "<u2",
    "U64": "<u8",
}
# What arrays of NumPy are stored as. BF16 is not among them: to store the array of a library that
# adds a bfloat16 as <u2 would convert its values, not keep their bits.
_STORED_AS: Final = {np.dtype(code).name: name for name, code in _CODES.items() if name != "BF16"}
_BASE_DTYPES: Final = ("F32", "F16", "BF16")
_TENSOR_NAME: Final = re.compile(r"[!-~]{1,512}")
_ITEM_BYTES: Final = {name: np.dtype(code).itemsize for name, code in _CODES.items()}


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
        """Store a copy of the values; UserInputError (E_DATA) for a dtype that no section has."""
        name = _STORED_AS.get(array.dtype.name)
        if name is None:
            text = f"array of {array.dtype.name}; expected {', '.join(_STORED_AS)}"
            raise UserInputError.make("E_DATA", text)
        data = np.ascontiguousarray(array, dtype=_CODES[name]).tobytes()
        return cls(name, tuple(array.shape), data)

    def numpy(self) -> NDArray[Any]:
        """Return the values, which may share the stored bytes; BF16 as float32, which is exact."""
        raw = np.frombuffer(self.data, _CODES[self.dtype])
        if self.dtype == "BF16":
            raw = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return raw.reshape(self.shape)


def tensor_places(kinds: Mapping[str, TensorKind]) -> dict[str, tuple[int, int]]:
    """Return first byte and end of every tensor within the data of a section, in file order.

    Tensors of wider values come first, then names in the order of their code points.
    """
    places: dict[str, tuple[int, int]] = {}
    at = 0
    for name, (dtype, shape) in sorted(kinds.items(), key=lambda k: (-_ITEM_BYTES[k[1][0]], k[0])):
        end = at + math.prod(shape) * _ITEM_BYTES[dtype]
        places[name] = (at, end)
        at = end
    return places


def tensor_header(kinds: Mapping[str, TensorKind]) -> bytes:
    """Build all that stands before the data of a section.

    Eight bytes of length and the JSON header in canonical form, padded with spaces so that the data
    begin at a multiple of eight.
    """
    entries = {
        name: {"data_offsets": place, "dtype": kinds[name][0], "shape": kinds[name][1]}
        for name, place in tensor_places(kinds).items()
    }
    text = canonical(entries)
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def tensors_size(kinds: Mapping[str, TensorKind]) -> int:
    """Return the bytes of a section of tensors: header and data."""
    data = sum(math.prod(shape) * _ITEM_BYTES[dtype] for dtype, shape in kinds.values())
    return len(tensor_header(kinds)) + data


def serialize_tensors(tensors: Mapping[str, StoredTensor]) -> bytes:
    """Serialise a tensor section: a safetensors file, of which the same tensors have only one."""
    kinds = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    data = [tensors[name].data for name in tensor_places(kinds)]
    return b"".join([tensor_header(kinds), *data])


def check_tensor_header(
    head: bytes, size: int, section: str, kinds: Mapping[str, TensorKind]
) -> dict[str, tuple[int, int]]:
    """Compare the header of a tensor section of ``size`` bytes with the only one it may have.

    ``head`` has at least as many bytes as ``tensor_header(kinds)``, if the section has them.
    Returns first byte and end of every tensor within the section, in file order.

    Raises:
        SpecError: it differs, or the section ends elsewhere (E_TENSOR).
    """
    member = section_member(section)
    expected = tensor_header(kinds)
    start = len(expected)
    if head[:start] != expected:
        # Where the texts differ says more than their lengths, which stand first.
        pairs = enumerate(zip(head[8:], expected[8:], strict=False), 8)
        at = next((i for i, (a, b) in pairs if a != b), min(len(head), start))
        text = (
            f"the header differs at byte {at} from the one that the manifest implies; expected "
            f"{printable(expected[at : at + 40].decode('latin-1'))}, got "
            f"{printable(head[at : at + 40].decode('latin-1')) or 'the end of the section'}"
        )
        raise SpecError.make("E_TENSOR", text, member=member)
    places = {name: (start + a, start + b) for name, (a, b) in tensor_places(kinds).items()}
    end = tensors_size(kinds)
    if end != size:
        text = f"the tensors end at byte {end}; the section has {size}"
        raise SpecError.make("E_TENSOR", text, member=member)
    return places


def stated_tensors(data: bytes, section: str) -> dict[str, TensorKind]:
    """Read dtypes and shapes from a header that ``parse_tensors`` compares with its one form.

    Raises:
        LimitError: the header exceeds 1 MiB (E_LIMIT_TENSOR_HEADER).
        SpecError: it is not JSON, or states a tensor that no base has (E_TENSOR).
    """
    member = section_member(section)
    length = int.from_bytes(data[:8], "little")
    check_fixed("tensor_header", length, SAFETENSORS_HEADER_BYTES, member=member)
    try:
        kinds: dict[str, TensorKind] = {
            name: (entry["dtype"], tuple(entry["shape"]))
            for name, entry in dict(json.loads(data[8 : 8 + length])).items()
        }
    except (ValueError, TypeError, KeyError, RecursionError):
        text = "the header is not a JSON object of tensors"
        raise SpecError.make("E_TENSOR", text, member=member) from None
    for name, (dtype, shape) in kinds.items():
        is_shape = 1 <= len(shape) <= 5 and all(type(n) is int and n >= 1 for n in shape)
        if not (is_shape and dtype in _BASE_DTYPES and _TENSOR_NAME.fullmatch(name)):
            text = (
                f"tensor {printable(name)}; expected F32, F16 or BF16, 1 to 5 dimensions and a "
                "name of 1 to 512 ASCII characters without spaces"
            )
            raise SpecError.make("E_TENSOR", text, member=member)
    return kinds


def parse_tensors(
    data: bytes, section: str, kinds: Mapping[str, TensorKind]
) -> dict[str, StoredTensor]:
    """Parse a tensor section and check all values; the tensors come in file order.

    Raises:
        SpecError: the header is not that of ``kinds``, or ``validate_values`` objects (E_TENSOR).
    """
    places = check_tensor_header(data, len(data), section, kinds)
    tensors = {
        name: StoredTensor(*kinds[name], data[start:end]) for name, (start, end) in places.items()
    }
    if section not in ("index", "pixels"):
        problems = validate_values(tensors)
        if problems:
            raise SpecError.make("E_TENSOR", problems[0], member=section_member(section))
    return tensors


def validate_values(tensors: Mapping[str, StoredTensor]) -> list[str]:
    """List tensors with values that a projector may not have, a line each.

    NaN or infinity, a row scale that is not above 0, or an integer outside the symmetric range of
    its storage.
    """
    problems: list[str] = []
    for name, tensor in tensors.items():
        values = tensor.numpy()
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            problems.append(f"tensor {printable(name)} holds a value that is not finite")
        elif name.endswith("_scale") and name != "logit_scale" and not (values > 0).all():
            problems.append(f"tensor {printable(name)}; expected scales above 0")
        elif tensor.dtype == "I8" and (values == -128).any():
            problems.append(f"tensor {printable(name)}; expected int8 values from -127 to 127")
        elif tensor.dtype == "U8" and not ((values & 15 > 0) & (values > 15)).all():
            problems.append(f"tensor {printable(name)}; expected int4 values from -7 to 7")
    return problems


def base_tensors_digest(tensors: Mapping[str, StoredTensor]) -> str:
    """Compute the digest that the manifest of an embedded base pins, all tensors as float32."""
    return tensors_digest(
        (name, "F32", tensor.shape, tensor.numpy().astype("<f4").tobytes())
        for name, tensor in tensors.items()
    )
