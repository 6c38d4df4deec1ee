"""Columns of the index beyond the five that every index has: declared, checked, kept.

The names below have a meaning; any other begins with ``x_`` and means nothing to this package.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from hellofmt.archive.format.manifest import UNSET, Column, Images
from hellofmt.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

INDEX_COLUMNS: Final[dict[str, tuple[str, tuple[int, ...]]]] = {
    "size": ("U64", ()),
    "label": ("I32", ()),
    "height": ("U16", ()),
    "width": ("U16", ()),
    "sha256": ("U8", (32,)),
}
"""Dtype and shape of the columns of every index."""

DTYPES: Final = {"F32": "<f4", "I32": "<i4", "U8": "|u1", "U16": "<u2", "U64": "<u8"}
"""NumPy's name of each dtype, which ends with its bytes."""
ROW_BYTES: Final = 4096
"""Most bytes of all columns of one row."""
_KNOWN: Final[dict[str, tuple[str, int, int | None]]] = {
    # name: dtype, number of dimensions, length of the last one
    "weight": ("F32", 0, None),
    "source": ("U64", 1, None),
    "crop": ("I32", 2, 4),
    "labels": ("I32", 1, None),
}


def columns_of(images: Images) -> list[Column]:
    """Return the declared columns, sorted by name."""
    return [] if images.columns is UNSET else images.columns


def column_fault(column: Column, *, is_newer: bool) -> str:
    """Say what is wrong with the form of one column; empty if nothing is.

    A newer minor version may know further names.
    """
    if column.name not in _KNOWN:
        is_free = column.name.startswith("x_") or is_newer
        known = ", ".join(_KNOWN)
        return "" if is_free else f"`{column.name}`: expected {known} or a name that begins x_"
    dtype, dimensions, last = _KNOWN[column.name]
    shape = column.shape
    is_right = column.dtype == dtype and len(shape) == dimensions
    if is_right and (last is None or shape[-1] == last):
        return ""
    form = ["k"] * dimensions if last is None else [*["k"] * (dimensions - 1), str(last)]
    expected = f"{dtype} [{', '.join(form)}]"
    return f"`{column.name}`: expected {expected}, got {column.dtype} {shape}"


def row_bytes(columns: list[Column]) -> int:
    """Return the bytes that the columns take for each image."""
    return sum(math.prod(c.shape) * int(DTYPES[c.dtype][-1]) for c in columns)


def check_columns(columns: Mapping[str, NDArray[Any]], classes: int) -> None:
    """Refuse a value that a column, (N, ...) of its declared dtype, may not hold."""
    import numpy as np

    code, fault = "E_INDEX", ""
    for name, values in columns.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            code, fault = "E_TENSOR", f"tensor {name} holds a value that is not finite"
        elif name == "weight" and (values < 0).any():
            fault = "column weight holds a value below 0"
        elif name == "labels" and not ((values >= -1) & (values < classes)).all():
            fault = f"column labels; expected -1 to {classes - 1}"
        elif name == "crop" and ((values[..., :2] < 0).any() or (values[..., 2:] < 1).any()):
            fault = "column crop; expected top and left from 0, height and width from 1"
        if fault:
            raise SpecError.make(code, fault, member="__hello__/index")
