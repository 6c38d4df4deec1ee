"""The index: one row per image, as NumPy columns.

Columns, not objects: a million rows take 48 MB in five arrays that forked workers share. As many
Python objects would take ten times that, and would be copied page by page as reference counts
change. Offsets are not stored; they are summed from the sizes, and the total must equal the span
that the manifest states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from hellofmt.archive.format.columns import DTYPES, INDEX_COLUMNS, check_columns, columns_of
from hellofmt.archive.format.implied import expected_tensors
from hellofmt.archive.format.layout import BLOCK
from hellofmt.archive.format.limits import IMAGE_SIDE, Limits, check_fixed, check_limit
from hellofmt.archive.format.manifest import UNSET, Manifest
from hellofmt.archive.format.tensors import StoredTensor, check_tensor_header, serialize_tensors
from hellofmt.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_MEMBER: Final = "__hello__/index"
# Rows summed at a time, so that the sum needs little memory.
_CHUNK_ROWS: Final = 1 << 16


@dataclass(frozen=True)
class Index:
    """The images of an archive, row by row; all arrays are read-only.

    Attributes:
        size: int64 (N,), stored bytes.
        label: int64 (N,), class, non-decreasing.
        height: int32 (N,), pixels.
        width: int32 (N,), pixels.
        sha256: uint8 (N, 32), of the stored bytes.
        offset: int64 (N,), of the stored bytes in the file.
        columns: (N, ...), the further columns that the archive has, by name.
    """

    size: NDArray[np.int64]
    label: NDArray[np.int64]
    height: NDArray[np.int32]
    width: NDArray[np.int32]
    sha256: NDArray[np.uint8]
    offset: NDArray[np.int64]
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict[str, "NDArray[Any]"])

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.size)

    def all_columns(self) -> dict[str, NDArray[Any]]:
        """The columns of the section by name: all but ``offset``."""
        return {name: getattr(self, name) for name in INDEX_COLUMNS} | dict(self.columns)

    def numbers_in_class(self) -> NDArray[np.int64]:
        """Number every row within its class, from 0: int64 (N,)."""
        starts = np.searchsorted(self.label, self.label)
        numbers: NDArray[np.int64] = np.arange(len(self.label)) - starts
        return numbers


def index_section(columns: Mapping[str, NDArray[Any]]) -> bytes:
    """Serialise columns of N rows as the index section; all of ``INDEX_COLUMNS`` are there."""
    return serialize_tensors(
        {
            name: StoredTensor.from_numpy(
                values.astype(DTYPES[INDEX_COLUMNS[name][0]]) if name in INDEX_COLUMNS else values
            )
            for name, values in columns.items()
        }
    )


def parse_index(data: bytes, manifest: Manifest, start: int, limits: Limits) -> Index:
    """Parse the index section, whose digest is checked already.

    ``start`` is the byte offset of the first image header, or of the first pixel when packed.
    """
    images = manifest.images
    if images is UNSET:
        raise _fault("index without images")
    # Checks read the bytes in place; only a valid index is copied.
    columns = _columns(data, manifest)
    size, label, sha256 = columns["size"], columns["label"], columns["sha256"]
    height, width = columns["height"], columns["width"]
    check_labels(label, manifest)
    if int(size.min()) == 0:
        raise _fault(f"row {int(size.argmin())}: size 0")
    # Compared as unsigned, so that 2**63 and above cannot pass as negative.
    check_limit(limits, "image_bytes", int(size.max()), member=_MEMBER)
    size = size.view(np.int64)
    if int(min(height.min(), width.min())) == 0:
        raise _fault("a row has height or width 0")
    check_fixed("image_side", int(max(height.max(), width.max())), IMAGE_SIDE, member=_MEMBER)
    pixels = np.multiply(height, width, dtype=np.uint32)
    check_limit(limits, "image_pixels", int(pixels.max()), member=_MEMBER)
    del pixels
    further = {column.name: columns[column.name] for column in columns_of(images)}
    check_columns(further, manifest.classes)
    if images.shape is not UNSET:
        tall, wide, channels = images.shape
        one = tall * wide * channels
        if (height != tall).any() or (width != wide).any():
            raise _fault(f"packed rows; expected all {tall} x {wide} pixels")
        if (size != one).any():
            raise _fault(f"packed rows; expected all {one} bytes")
        offset = start + np.arange(images.count, dtype=np.int64) * one
    else:
        span = sum(
            int(_member_bytes(size[i : i + _CHUNK_ROWS]).sum())
            for i in range(0, len(size), _CHUNK_ROWS)
        )
        if span != images.span:
            raise _fault(f"images span {span} bytes; the manifest states {images.span}")
        offset = np.cumsum(_member_bytes(size))
        offset -= _member_bytes(size)
        offset += start + BLOCK
    index = Index(
        size=size.astype(np.int64),
        label=label.astype(np.int64),
        height=height.astype(np.int32),
        width=width.astype(np.int32),
        sha256=sha256,
        offset=offset,
        columns={name: values.copy() for name, values in further.items()},
    )
    fixed = (index.size, index.label, index.height, index.width, sha256, offset)
    for column in (*fixed, *index.columns.values()):
        column.flags.writeable = False
    return index


def _columns(data: bytes, manifest: Manifest) -> dict[str, NDArray[Any]]:
    """Return the columns as views of the section; a copy would be 48 MB for a million rows."""
    kinds = expected_tensors(manifest, "index")
    places = check_tensor_header(data, len(data), "index", kinds)
    return {
        name: np.frombuffer(data, DTYPES[dtype], math.prod(shape), places[name][0]).reshape(shape)
        for name, (dtype, shape) in kinds.items()
    }


def _member_bytes(size: NDArray[np.int64]) -> NDArray[np.int64]:
    """Header, payload and padding of each row; sizes are below 2**33, so nothing overflows."""
    blocks = size + (2 * BLOCK - 1)
    blocks //= BLOCK
    blocks *= BLOCK
    return blocks


def _fault(text: str) -> SpecError:
    return SpecError.make("E_INDEX", text, member=_MEMBER)


def check_labels(label: NDArray[np.integer], manifest: Manifest) -> None:
    """Refuse labels (N,) that are unsorted, out of range, or not counted by ``dataset.ipc``.

    A manifest states ``ipc`` exactly where all classes have the same number of images; it does not
    apply to a single shard.
    """
    if int(label[0]) < 0 or int(label.max()) >= manifest.classes:
        raise _fault(
            f"labels from {int(label.min())} to {int(label.max())}; "
            f"expected 0 to {manifest.classes - 1}"
        )
    if (label[1:] < label[:-1]).any():
        raise _fault("labels are not sorted")
    if manifest.shard is UNSET:
        ipc = manifest.dataset.ipc
        counts = np.bincount(label, minlength=manifest.classes)
        if ipc is UNSET and (counts == counts[0]).all():
            raise _fault(f"every class has {int(counts[0])} images; `ipc` is missing")
        if ipc is not UNSET and (counts != ipc).any():
            wrong = int((counts != ipc).argmax())
            raise _fault(f"class {wrong} has {int(counts[wrong])} images; `ipc` states {ipc}")
