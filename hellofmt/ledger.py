"""The ledger: bytes of an archive by part, and of every other way to keep the same labels.

A label function is only worth its bytes beside something, so this module counts both sides with the
same rules: **labels** are what a student would have read from disk (one row of C values per image
and epoch), **payload** is what an archive stores instead (the sections ``adapter``, ``head`` and
``probes``, headers and scales included). Images, index, class names and manifest are needed either
way and stand on neither side. The base is shown apart: a public encoder is shared by every data set
that uses it, a seeded one is generated, and an embedded one is charged to the archive. Whoever
doubts that a public encoder is free passes its bytes as ``base`` and reads the other column.

Counts are exact integers of bytes; only ratios are floats. Decimal and binary units differ by 7 %
at a gigabyte, and published label sizes mix them (572 "MB" and 110 "GB" for ImageNet-1K are MiB and
GiB), so this module returns bytes and leaves units to whoever prints them. No torch: ``hello
inspect`` prints these numbers at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Final

from hellofmt.archive.manifest import UNSET

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from hellofmt.archive import HelloFile
    from hellofmt.archive.manifest import Adapter, Head, Storage

__all__ = [
    "PAYLOAD_SECTIONS",
    "PRUNING_RATIOS",
    "VALUE_BITS",
    "VIEW_RECORD_BYTES",
    "Ledger",
    "adapter_bytes",
    "break_even_data_sets",
    "break_even_epochs",
    "factor_values",
    "head_bytes",
    "ledger_of",
    "matrix_bytes",
    "model_bytes",
    "probe_bytes",
    "pruned_label_bytes",
    "resnet18_parameters",
    "stored_label_bytes",
    "top_k_label_bytes",
    "view_record_bytes",
]

PAYLOAD_SECTIONS: Final = ("adapter", "head", "probes")
"""Sections that exist only to make labels."""

VALUE_BITS: Final[Mapping[Storage, int]] = {
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "int8": 8,
    "int4": 4,
}
"""Bits of one stored value."""

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

_DTYPES: Final[Mapping[Storage, str]] = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int8": "I8",
    "int4": "U8",
}
_SCALE_BYTES = 4
_QUANTISED: Final = ("int8", "int4")


def stored_label_bytes(images: int, classes: int, epochs: int, *, value_bytes: int = 2) -> int:
    """Bytes of dense soft labels: ``epochs * images * classes * value_bytes``.

    Args:
        images: N >= 0.
        classes: C >= 1.
        epochs: E >= 0; every epoch has new views and so new labels.
        value_bytes: 2 for float16, what the field stores.

    Returns:
        Bytes, without view records (see ``view_record_bytes``).
    """
    return epochs * images * classes * value_bytes


def view_record_bytes(images: int, epochs: int) -> int:
    """Bytes that say which view each stored label belongs to: ``VIEW_RECORD_BYTES`` a row."""
    return epochs * images * VIEW_RECORD_BYTES


def top_k_label_bytes(images: int, classes: int, epochs: int, k: int) -> int:
    """Bytes of the k largest entries: ``epochs * images * k * (2 + index bytes)``.

    Args:
        images: N >= 0.
        classes: C >= 1; up to 256 classes need a 1-byte index, up to 65,536 two, else four.
        epochs: E >= 0.
        k: kept entries, 1 <= k <= classes.

    Returns:
        Bytes: float16 values and indices, without view records.

    Raises:
        ValueError: k is out of range.
    """
    if not 1 <= k <= classes:
        raise ValueError(f"k: expected 1 <= k <= {classes}, got {k}")
    index_bytes = 1 if classes <= 1 << 8 else 2 if classes <= 1 << 16 else 4
    return epochs * images * k * (2 + index_bytes)


def pruned_label_bytes(images: int, classes: int, epochs: int, ratio: int) -> int:
    """Bytes of pruned and quantised labels: full ones with their view records, over ``ratio``.

    Args:
        images: N >= 0.
        classes: C >= 1.
        epochs: E >= 0.
        ratio: >= 1; ``PRUNING_RATIOS`` are the published ones.

    Returns:
        Bytes, rounded up.
    """
    full = stored_label_bytes(images, classes, epochs) + view_record_bytes(images, epochs)
    return -(-full // ratio)


def matrix_bytes(rows: int, columns: int, storage: Storage) -> int:
    """Bytes of one stored matrix: its values, and one F32 scale per row when quantised.

    A row of int4 values is padded to a whole byte.
    """
    row_bits = columns * VALUE_BITS[storage]
    scales = rows * _SCALE_BYTES if storage in _QUANTISED else 0
    return rows * -(-row_bits // 8) + scales


def model_bytes(parameters: int, storage: Storage) -> int:
    """Bytes of a network's parameters, the rival that ships the teacher itself.

    Scales of a quantised network are left out, in the rival's favour.
    """
    return -(-parameters * VALUE_BITS[storage] // 8)


def resnet18_parameters(classes: int) -> int:
    """Parameters of torchvision's ResNet-18, the field's usual teacher: 11,176,512 + 513 C."""
    return 11_176_512 + 513 * classes


def _matrix_tensors(
    name: str, shape: Sequence[int], storage: Storage
) -> list[tuple[str, str, list[int], int]]:
    """Name, dtype, stored shape and bytes of the tensors that store one matrix."""
    rows, columns = shape
    row_bytes = -(-columns * VALUE_BITS[storage] // 8)
    width = row_bytes if storage == "int4" else columns
    tensors = [(name, _DTYPES[storage], [rows, width], rows * row_bytes)]
    if storage in _QUANTISED:
        tensors.append((f"{name}_scale", "F32", [rows], rows * _SCALE_BYTES))
    return tensors


def _section_bytes(section: str, tensors: Iterable[tuple[str, str, list[int], int]]) -> int:
    """Bytes of a safetensors section, its JSON header written out to be measured, not its data."""
    header: dict[str, object] = {"__metadata__": {"schema": f"hello.{section}/1"}}
    end = 0
    # safetensors' order: wider values first, then by name.
    for name, dtype, shape, size in sorted(tensors, key=lambda t: (-t[3] // prod(t[2]), t[0])):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-text // 8) * 8 + end


def adapter_bytes(adapter: Adapter) -> int:
    """Bytes of the section ``adapter``: values, row scales and header, as the writer makes it."""
    tensors: list[tuple[str, str, list[int], int]] = []
    for target in adapter.targets:
        tensors += _matrix_tensors(f"{target.param}::A", target.a, target.storage)
        tensors += _matrix_tensors(f"{target.param}::B", target.b, target.storage)
    return _section_bytes("adapter", tensors)


def head_bytes(head: Head, dim: int, classes: int) -> int:
    """Bytes of the section ``head``, as the writer makes it.

    Args:
        head: the head; its factors, bias and storage decide.
        dim: D, features of an embedding.
        classes: C.

    Returns:
        Bytes, header included.
    """
    tensors = [("logit_scale", "F32", [1], 4)]
    if head.bias:
        tensors.append(("bias", "F32", [classes], 4 * classes))
    if head.start == "stored":
        tensors += _matrix_tensors("weight", (classes, dim), head.storage)
    if head.a is not UNSET and head.b is not UNSET:
        tensors += _matrix_tensors("weight::A", head.a, head.storage)
        tensors += _matrix_tensors("weight::B", head.b, head.storage)
    return _section_bytes("head", tensors)


def probe_bytes(count: int, classes: int) -> int:
    """Bytes of the section ``probes``: float32 logits of ``count`` generated pictures."""
    return _section_bytes("probes", [("logits", "F32", [count, classes], 4 * count * classes)])


def factor_values(adapter: Adapter | None, head: Head | None, dim: int, classes: int) -> int:
    """Number of trained values in the matrices of a label function.

    Low-rank factors of the tower and of the head, or the full head where that is what is stored.
    ``logit_scale`` and ``bias`` are left out, as the literature counts.

    Args:
        adapter: the deltas of the image tower, or None.
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


def break_even_epochs(payload: int, images: int, classes: int) -> int | None:
    """First number of epochs whose stored float16 labels are larger than the payload.

    Args:
        payload: bytes of the label function.
        images: N.
        classes: C.

    Returns:
        Epochs >= 1, or None where there are no images and so never any labels.
    """
    per_epoch = stored_label_bytes(images, classes, 1)
    return payload // per_epoch + 1 if per_epoch else None


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


@dataclass(frozen=True)
class Ledger:
    """Bytes of one archive, by part.

    Attributes:
        total: bytes of the file.
        images: number of images N.
        classes: number of classes C.
        pixels: stored bytes of the images, without headers and padding.
        sections: stored bytes of each section, by name.
        values: trained values (``factor_values``), 0 without a label function.
    """

    total: int
    images: int
    classes: int
    pixels: int
    sections: Mapping[str, int] = field(default_factory=dict[str, int])
    values: int = 0

    @property
    def payload(self) -> int:
        """Bytes of the label function: sections ``adapter``, ``head`` and ``probes``."""
        return sum(self.sections.get(name, 0) for name in PAYLOAD_SECTIONS)

    @property
    def base(self) -> int:
        """Bytes of an embedded base, 0 for a seeded or a public one."""
        return self.sections.get("base", 0)

    @property
    def framing(self) -> int:
        """Everything else: manifest, id, member headers, padding and trailer."""
        in_sections = sum(size for name, size in self.sections.items() if name != "pixels")
        return self.total - self.pixels - in_sections

    def labels(self, epochs: int) -> int:
        """Bytes of the float16 labels that the payload replaces, over ``epochs`` epochs."""
        return stored_label_bytes(self.images, self.classes, epochs)

    def ratio(self, epochs: int, base: int = 0) -> float | None:
        """Payload over stored labels; None where there would be no labels.

        Args:
            epochs: E of the stored labels.
            base: bytes of the encoder, to charge it to this one archive.

        Returns:
            Dimensionless.
        """
        labels = self.labels(epochs)
        return (self.payload + base) / labels if labels else None

    def break_even(self, base: int = 0) -> int | None:
        """First number of epochs whose stored labels outweigh payload and ``base`` (None: never).

        Args:
            base: bytes of the encoder, to charge it to this one archive.

        Returns:
            Epochs >= 1, or None without images.
        """
        return break_even_epochs(self.payload + base, self.images, self.classes)

    def parts(self) -> dict[str, int]:
        """Bytes by part; the values add up to ``total``.

        Keys: ``pixels``, ``label function``, ``base`` if embedded, ``index and classes``,
        ``texts`` (card and licence) if any, ``framing``.
        """
        parts = {"pixels": self.pixels, "label function": self.payload}
        if self.base:
            parts["base"] = self.base
        parts["index and classes"] = self.sections.get("index", 0) + self.sections.get("classes", 0)
        known = {*PAYLOAD_SECTIONS, "base", "index", "classes", "pixels"}
        other = sum(size for name, size in self.sections.items() if name not in known)
        if other:
            parts["texts"] = other
        parts["framing"] = self.framing
        return parts


def ledger_of(file: HelloFile) -> Ledger:
    """The ledger of an open archive.

    Args:
        file: an open archive; its index is read if it has images.

    Returns:
        The ledger.

    Raises:
        HelloError: the index is damaged.
    """
    manifest = file.manifest
    sections = dict(file.section_sizes())
    index = file.index
    if "pixels" in sections:
        pixels = sections["pixels"]
    else:
        pixels = int(index.size.sum()) if index is not None else 0
    dim = manifest.base.arch.embed_dim if manifest.base is not UNSET else 0
    adapter = manifest.adapter if manifest.adapter is not UNSET else None
    head = manifest.head if manifest.head is not UNSET else None
    return Ledger(
        total=file.size_bytes,
        images=len(file),
        classes=manifest.classes,
        pixels=pixels,
        sections=sections,
        values=factor_values(adapter, head, dim, manifest.classes),
    )
