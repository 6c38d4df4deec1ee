"""Bytes of stored labels, in the forms that the field uses.

Counts are exact integers of bytes. Decimal and binary units differ by 7 % at a gigabyte, and
published label sizes mix them (572 "MB" and 110 "GB" for ImageNet-1K are MiB and GiB), so units are
left to whoever prints them.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "PRUNING_RATIOS",
    "VIEW_RECORD_BYTES",
    "break_even_epochs",
    "pruned_label_bytes",
    "stored_label_bytes",
    "top_k_label_bytes",
    "view_record_bytes",
]

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
