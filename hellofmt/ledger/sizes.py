"""Bytes of stored labels, in the forms that the field uses, of label functions and of teachers.

Counts are exact integers of bytes; those of a label function are whole sections of an archive, as
the writer makes them. Decimal and binary units differ by 7 % at a gigabyte, and published label
sizes mix them (572 "MB" and 110 "GB" for ImageNet-1K are MiB and GiB), so units are left to whoever
prints them.

C is the number of classes, D the features of an embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hellofmt.archive.format.implied import (
    adapter_matrices,
    head_matrices,
    head_tensors,
    matrix_tensors,
)
from hellofmt.archive.format.manifest import UNSET
from hellofmt.archive.format.tensors import tensors_size

if TYPE_CHECKING:
    from hellofmt.archive.format.fields import Storage
    from hellofmt.archive.format.label_function import Adapter, Head

VIEW_RECORD_BYTES: Final = 29
"""Bytes per stored label row that say which view it belongs to (crop, flip, mixing).

From published label files of ImageNet-1K (he-y/soft-label-pruning-for-dataset-distillation): 5.67,
28.33 and 113.33 GiB are 1.4 % above E * N * C * 2, which is about 29 bytes per record.
"""

PRUNING_RATIOS: Final = (40, 80, 200)
"""By how much pruned and quantised labels are smaller than full ones, as their authors name it.

Xiao and He, "Are Large-scale Soft Labels Necessary for Large-scale Dataset Distillation?" (NeurIPS
2024), ImageNet-1K. Their files are within 13 % of these ratios at 10, 50 and 200 images per class.
"""

_START: Final = frozenset({"weight", "weight_scale"})
_VALUE_BITS: Final = {"float32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "int4": 4}


def stored_label_bytes(images: int, classes: int, epochs: int) -> int:
    """Bytes of dense float16 labels, new ones in every epoch: ``2 * epochs * images * classes``."""
    return 2 * epochs * images * classes


def view_record_bytes(images: int, epochs: int) -> int:
    """Bytes that say which view each stored label belongs to: ``VIEW_RECORD_BYTES`` a row."""
    return epochs * images * VIEW_RECORD_BYTES


def top_k_label_bytes(images: int, classes: int, epochs: int, k: int) -> int:
    """Bytes of the k <= C largest entries as float16, each with an index of 1, 2 or 4 bytes."""
    index_bytes = 1 if classes <= 1 << 8 else 2 if classes <= 1 << 16 else 4
    return epochs * images * k * (2 + index_bytes)


def pruned_label_bytes(images: int, classes: int, epochs: int, ratio: int) -> int:
    """Bytes of pruned and quantised labels: full ones with their view records, over ``ratio``."""
    full = stored_label_bytes(images, classes, epochs) + view_record_bytes(images, epochs)
    return -(-full // ratio)


def adapter_bytes(adapter: Adapter) -> int:
    """Bytes of the section ``adapter``: values, row scales and header."""
    return tensors_size(matrix_tensors(adapter_matrices(adapter)))


def head_bytes(head: Head, dim: int, classes: int) -> int:
    """Bytes of the section ``head``, header included.

    A stored start beside factors is zeros, which an archive compresses: it is not counted.
    """
    kinds = head_tensors(head, dim, classes)
    if head.a is not UNSET:
        kinds = {name: kind for name, kind in kinds.items() if name not in _START}
    return tensors_size(kinds)


def probe_bytes(count: int, classes: int) -> int:
    """Bytes of the section ``probes``: float32 logits of ``count`` generated pictures."""
    return tensors_size({"logits": ("F32", (count, classes))})


def factor_values(adapter: Adapter | None, head: Head | None, dim: int, classes: int) -> int:
    """Number of trained values in the matrices of a label function of D = ``dim``.

    Low-rank factors of the tower and of the head, or the full head where that has no factors.
    ``logit_scale`` and ``bias`` are left out, as the literature counts.
    """
    matrices = {} if adapter is None else adapter_matrices(adapter)
    if head is not None:
        matrices |= head_matrices(head, dim, classes)
        if head.a is not UNSET:
            matrices.pop("weight", None)
    return sum(rows * columns for (rows, columns), _ in matrices.values())


def model_bytes(parameters: int, storage: Storage) -> int:
    """Bytes of a network's parameters, the rival that ships the teacher itself.

    Scales of a quantised network are left out, in the rival's favour.
    """
    return -(-parameters * _VALUE_BITS[storage] // 8)


def resnet18_parameters(classes: int) -> int:
    """Parameters of torchvision's ResNet-18, the field's usual teacher: 11,176,512 + 513 C."""
    return 11_176_512 + 513 * classes


def break_even_data_sets(base: int, teacher: int, payload: int) -> float | None:
    """Data sets that must share one base before it beats a teacher in each: ``b / (t - p)``.

    All in bytes; None where the payload alone is not smaller than the teacher.
    """
    return base / (teacher - payload) if teacher > payload else None
