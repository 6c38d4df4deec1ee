"""The index: one row per image, as NumPy columns.

Columns, not objects: a million rows are 48 MB in five arrays that forked workers share, while as
many Python objects would be ten times that and be copied page by page as their reference counts
change. Offsets are not stored; they are summed from the sizes, and the sum must give the span that
the manifest states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hellofmt.archive.layout import BLOCK
from hellofmt.archive.limits import IMAGE_SIDE, Limits, check_fixed, check_limit
from hellofmt.archive.manifest import UNSET, Manifest
from hellofmt.archive.tensors import StoredTensor, expected_tensors, parse_tensors
from hellofmt.errors import SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Index", "index_tensors", "parse_index"]

_MEMBER = "__hello__/index"


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
    """

    size: NDArray[np.int64]
    label: NDArray[np.int64]
    height: NDArray[np.int32]
    width: NDArray[np.int32]
    sha256: NDArray[np.uint8]
    offset: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.size)


def index_tensors(
    size: NDArray[Any],
    label: NDArray[Any],
    height: NDArray[Any],
    width: NDArray[Any],
    sha256: NDArray[np.uint8],
) -> dict[str, StoredTensor]:
    """The tensors of the index section.

    Args:
        size: (N,) stored bytes.
        label: (N,) classes.
        height: (N,) pixels.
        width: (N,) pixels.
        sha256: (N, 32).

    Returns:
        By name.
    """
    return {
        "size": StoredTensor.from_numpy(size.astype(np.uint64)),
        "label": StoredTensor.from_numpy(label.astype(np.int32)),
        "height": StoredTensor.from_numpy(height.astype(np.uint16)),
        "width": StoredTensor.from_numpy(width.astype(np.uint16)),
        "sha256": StoredTensor.from_numpy(sha256),
    }


def parse_index(data: bytes, manifest: Manifest, start: int, limits: Limits) -> Index:
    """Narrow the bytes of the index section to its rows.

    Args:
        data: the raw section, its digest already checked.
        manifest: a valid manifest with images.
        start: byte offset of the first image header, or of the first pixel when packed.
        limits: the reader's limits.

    Returns:
        The index.

    Raises:
        LimitError: an image above a limit (E_LIMIT_IMAGE_BYTES, _IMAGE_SIDE, _IMAGE_PIXELS).
        SpecError: against the strict check (E_TENSOR), or rows that contradict each other or the
            manifest (E_INDEX).
    """

    def fault(text: str) -> SpecError:
        return SpecError.make("E_INDEX", text, member=_MEMBER)

    images = manifest.images
    if images is UNSET:
        raise fault("index without images")
    tensors = parse_tensors(data, "index", expected_tensors(manifest, "index"))
    raw_size = tensors["size"].numpy()
    label = tensors["label"].numpy().astype(np.int64)
    height = tensors["height"].numpy().astype(np.int32)
    width = tensors["width"].numpy().astype(np.int32)
    sha256 = tensors["sha256"].numpy()
    _check_labels(label, manifest, fault)
    if int(raw_size.min()) == 0:
        raise fault(f"row {int(raw_size.argmin())}: size 0")
    # Compared as unsigned, so that 2**63 and above cannot pass as negative.
    check_limit(limits, "image_bytes", int(raw_size.max()), member=_MEMBER)
    size = raw_size.astype(np.int64)
    if int(min(height.min(), width.min())) == 0:
        raise fault("a row has height or width 0")
    check_fixed("image_side", int(max(height.max(), width.max())), IMAGE_SIDE, member=_MEMBER)
    pixels = height.astype(np.int64) * width
    check_limit(limits, "image_pixels", int(pixels.max()), member=_MEMBER)
    if images.shape is not UNSET:
        rows, columns, channels = images.shape
        if (height != rows).any() or (width != columns).any():
            raise fault(f"packed rows; expected all {rows} x {columns} pixels")
        if (size != rows * columns * channels).any():
            raise fault(f"packed rows; expected all {rows * columns * channels} bytes")
        offset = start + np.arange(images.count, dtype=np.int64) * (rows * columns * channels)
    else:
        # Sizes are below 2**33 and rows below 2**24, so the sum stays far below 2**63.
        step = BLOCK + (size + (BLOCK - 1)) // BLOCK * BLOCK
        ends = np.cumsum(step)
        if int(ends[-1]) != images.span:
            raise fault(f"images span {int(ends[-1])} bytes; the manifest states {images.span}")
        offset = start + ends - step + BLOCK
    for column in (size, label, height, width, sha256, offset):
        column.flags.writeable = False
    return Index(size, label, height, width, sha256, offset)


def _check_labels(label: NDArray[np.int64], manifest: Manifest, fault: Any) -> None:
    """Labels are sorted classes, and as many per class as ``dataset.ipc`` states."""
    if int(label[0]) < 0 or int(label.max()) >= manifest.classes:
        raise fault(
            f"labels from {int(label.min())} to {int(label.max())}; "
            f"expected 0 to {manifest.classes - 1}"
        )
    if (label[1:] < label[:-1]).any():
        raise fault("labels are not sorted")
    ipc = manifest.dataset.ipc
    if ipc is not UNSET and manifest.shard is UNSET:
        counts = np.bincount(label, minlength=manifest.classes)
        if (counts != ipc).any():
            wrong = int((counts != ipc).argmax())
            raise fault(f"class {wrong} has {int(counts[wrong])} images; `ipc` states {ipc}")
