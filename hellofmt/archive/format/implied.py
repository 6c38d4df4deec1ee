"""What a manifest implies: name, dtype and shape of every tensor in a section.

Only the tensors of ``base`` are not implied: a digest fixes them, and their section states them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hellofmt.archive.format.columns import INDEX_COLUMNS, columns_of
from hellofmt.archive.format.fields import Storage
from hellofmt.archive.format.functions import section_owner
from hellofmt.archive.format.layout import section_member
from hellofmt.archive.format.manifest import UNSET, Manifest
from hellofmt.archive.format.tensors import StoredTensor, TensorKind, parse_tensors, stated_tensors
from hellofmt.errors import SpecError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hellofmt.archive.format.label_function import Adapter, Head

Matrix = tuple[list[int], Storage]
"""Rows and columns of a matrix, and how its values are stored."""

_STORAGE: Final[dict[Storage, str]] = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int8": "I8",
    "int4": "U8",
}


def adapter_matrices(adapter: Adapter) -> dict[str, Matrix]:
    """The factors in a section ``adapter``, by name of the tensor."""
    return {
        f"{target.param}::{side}": (shape, target.storage)
        for target in adapter.targets
        for side, shape in (("A", target.a), ("B", target.b))
    }


def head_matrices(head: Head, dim: int, classes: int) -> dict[str, Matrix]:
    """The matrices in a section ``head``: its start where that is stored, and its factors."""
    matrices: dict[str, Matrix] = {}
    if head.storage is not UNSET:
        if head.start == "stored":
            matrices["weight"] = [classes, dim], head.storage
        if head.a is not UNSET and head.b is not UNSET:
            matrices["weight::A"] = head.a, head.storage
            matrices["weight::B"] = head.b, head.storage
    return matrices


def matrix_tensors(matrices: Mapping[str, Matrix]) -> dict[str, TensorKind]:
    """The tensors that store matrices: each itself, and its row scales if quantised."""
    kinds: dict[str, TensorKind] = {}
    for name, ((rows, columns), storage) in matrices.items():
        width = -(-columns // 2) if storage == "int4" else columns
        kinds[name] = (_STORAGE[storage], (rows, width))
        if storage in ("int8", "int4"):
            kinds[f"{name}_scale"] = ("F32", (rows,))
    return kinds


def head_tensors(head: Head, dim: int, classes: int) -> dict[str, TensorKind]:
    """Every tensor in a section ``head``."""
    kinds: dict[str, TensorKind] = {"logit_scale": ("F32", (1,))}
    if head.bias:
        kinds["bias"] = ("F32", (classes,))
    return kinds | matrix_tensors(head_matrices(head, dim, classes))


def expected_tensors(manifest: Manifest, section: str) -> dict[str, TensorKind]:
    """Return name, dtype and shape of every tensor that a valid manifest implies for a section.

    None are implied for ``base``, whose tensors are fixed by a digest alone.
    """
    kind, function = section_owner(manifest, section)
    if function is not None and manifest.base is not UNSET:
        if kind == "adapter":
            return matrix_tensors(adapter_matrices(function.adapter))
        if kind == "head":
            return head_tensors(function.head, manifest.base.arch.embed_dim, manifest.classes)
        return {"logits": ("F32", (function.probes.count, manifest.classes))}
    images = manifest.images
    if section == "index" and images is not UNSET:
        columns = INDEX_COLUMNS | {c.name: (c.dtype, tuple(c.shape)) for c in columns_of(images)}
        return {name: (dtype, (images.count, *shape)) for name, (dtype, shape) in columns.items()}
    if section == "pixels" and images is not UNSET and images.shape is not UNSET:
        return {"pixels": ("U8", (images.count, *images.shape))}
    return {}


def section_tensors(data: bytes, manifest: Manifest, section: str) -> dict[str, StoredTensor]:
    """Parse a section of tensors as a valid manifest implies it; those of ``base`` as it states.

    Raises:
        LimitError: the header of ``base`` exceeds 1 MiB (E_LIMIT_TENSOR_HEADER).
        SpecError: as ``parse_tensors``; or the unused half of the last byte of an int4 row is not
            8, its one value, the number 0 (E_TENSOR).
    """
    is_stated = section == "base"
    kinds = stated_tensors(data, section) if is_stated else expected_tensors(manifest, section)
    tensors = parse_tensors(data, section, kinds)
    kind, function = section_owner(manifest, section)
    matrices: dict[str, Matrix] = {}
    if function is not None and kind == "adapter":
        matrices = adapter_matrices(function.adapter)
    elif function is not None and kind == "head" and manifest.base is not UNSET:
        matrices = head_matrices(function.head, manifest.base.arch.embed_dim, manifest.classes)
    for name, ((_, columns), storage) in matrices.items():
        is_odd = storage == "int4" and columns % 2
        if is_odd and (tensors[name].numpy()[:, -1] >> 4 != 8).any():
            text = (
                f"tensor {printable(name)}; expected 8 in the unused half of the last byte of a row"
            )
            raise SpecError.make("E_TENSOR", text, member=section_member(section))
    return tensors
