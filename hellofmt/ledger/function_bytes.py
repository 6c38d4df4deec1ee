"""Bytes of a label function and of a teacher: whole sections of an archive, to the byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hellofmt.archive.format.manifest import UNSET
from hellofmt.archive.format.tensors import (
    adapter_tensors,
    head_tensors,
    probe_tensors,
    tensor_header,
    tensor_places,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hellofmt.archive.format.manifest import Adapter, Head, Storage
    from hellofmt.archive.format.tensors import TensorKind

__all__ = [
    "VALUE_BITS",
    "adapter_bytes",
    "break_even_data_sets",
    "factor_values",
    "head_bytes",
    "model_bytes",
    "probe_bytes",
    "resnet18_parameters",
]

VALUE_BITS: Final[Mapping[Storage, int]] = {
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "int8": 8,
    "int4": 4,
}
"""Bits of one stored value."""


def adapter_bytes(adapter: Adapter) -> int:
    """Bytes of the section ``adapter``: values, row scales and header, as the writer makes it."""
    return _section_bytes(adapter_tensors(adapter))


def head_bytes(head: Head, dim: int, classes: int) -> int:
    """Bytes of the section ``head``, as the writer makes it.

    Args:
        head: the manifest's entry.
        dim: D, features of an embedding.
        classes: C.

    Returns:
        Bytes, header included.
    """
    return _section_bytes(head_tensors(head, dim, classes))


def probe_bytes(count: int, classes: int) -> int:
    """Bytes of the section ``probes``: float32 logits of ``count`` generated pictures."""
    return _section_bytes(probe_tensors(count, classes))


def _section_bytes(kinds: Mapping[str, TensorKind]) -> int:
    """Bytes of a tensor section, header included."""
    return len(tensor_header(kinds)) + max(
        (end for _, end in tensor_places(kinds).values()), default=0
    )


def factor_values(adapter: Adapter | None, head: Head | None, dim: int, classes: int) -> int:
    """Number of trained values in the matrices of a label function.

    Low-rank factors of the tower and of the head, or the full head where that is what is stored.
    ``logit_scale`` and ``bias`` are left out, as the literature counts.

    Args:
        adapter: deltas of the image tower, or None.
        head: the head, or None.
        dim: D, features of an embedding.
        classes: C.

    Returns:
        Values; for RN50, rank 8 on the 3x3 convolutions and a rank 128 head at C = 1000: 816,856.
    """
    count = 0
    if adapter is not None:
        for target in adapter.targets:
            count += target.a[0] * target.a[1] + target.b[0] * target.b[1]
    if head is not None:
        if head.start == "stored":
            count += classes * dim
        if head.a is not UNSET and head.b is not UNSET:
            count += head.a[0] * head.a[1] + head.b[0] * head.b[1]
    return count


def model_bytes(parameters: int, storage: Storage) -> int:
    """Bytes of a network's parameters, the rival that ships the teacher itself.

    Scales of a quantised network are left out, in the rival's favour.
    """
    return -(-parameters * VALUE_BITS[storage] // 8)


def resnet18_parameters(classes: int) -> int:
    """Parameters of torchvision's ResNet-18, the field's usual teacher: 11,176,512 + 513 C."""
    return 11_176_512 + 513 * classes


def break_even_data_sets(base: int, teacher: int, payload: int) -> float | None:
    """Data sets that must share one base before it beats a teacher in each: ``b / (t - p)``.

    Args:
        base: bytes of the shared encoder.
        teacher: bytes of the teacher that each data set would ship instead.
        payload: bytes of the label function of one data set.

    Returns:
        Dimensionless, > 0; None where the payload alone is not smaller than the teacher.
    """
    return base / (teacher - payload) if teacher > payload else None
