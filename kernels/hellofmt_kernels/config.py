"""Which algorithm a shape gets, and with which tile: plain Python, no torch, no device.

The tables are fixed rather than autotuned: tuning costs minutes, times a GPU that others may be
using and is illegal while a CUDA graph is captured. The numbers come from ahead-of-time
compilation (registers, spills, shared memory), not from run times, which are unmeasured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "MIN_CAPABILITY",
    "NORMALISE_CLASSES",
    "ROW_MAX_CLASSES",
    "Device",
    "LabelAlgorithm",
    "LabelTile",
    "ViewTile",
    "choose_label_tile",
    "choose_labels",
    "choose_view_tile",
    "choose_views",
    "padded_row",
    "shared_bytes",
    "view_taps",
]

LabelAlgorithm = Literal["reference", "row", "stats"]

#: Ampere: the first architecture with asynchronous copies and bfloat16 tensor cores.
MIN_CAPABILITY = (8, 0)

#: Up to this many classes one program holds whole rows of logits in registers.
ROW_MAX_CLASSES = 256

#: Classes that one program of the normalising pass rescales.
NORMALISE_CLASSES = 4096

#: Shared memory that one program may use, bytes, by compute capability (CUDA C++ programming
#: guide, technical specifications per compute capability: 99, 163 and 227 KiB).
_SHARED_BYTES = {(8, 0): 166912, (8, 7): 166912, (9, 0): 232448, (10, 0): 232448}
_SHARED_BYTES_OTHERS = 101376

_FUSED_DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Device:
    """What a choice may depend on: facts of a device, none of them read while choosing.

    Attributes:
        kind: torch's device type, ``"cpu"`` or ``"cuda"``.
        capability: CUDA compute capability (major, minor); (0, 0) without CUDA.
        has_triton: Triton can be imported.
    """

    kind: str
    capability: tuple[int, int] = (0, 0)
    has_triton: bool = False

    @property
    def is_fused(self) -> bool:
        """The Triton kernels can run here."""
        return self.kind == "cuda" and self.has_triton and self.capability >= MIN_CAPABILITY


@dataclass(frozen=True)
class LabelTile:
    """Shape of one program of the label GEMM.

    Attributes:
        block_n: rows.
        block_c: classes.
        block_d: features per step of the sum.
        num_warps: warps of 32 threads.
        num_stages: steps whose operands are in shared memory at once.
    """

    block_n: int
    block_c: int
    block_d: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class ViewTile:
    """Shape of one program of `views`.

    Attributes:
        block_y: rows of output pixels.
        block_x: columns of output pixels.
        num_warps: warps of 32 threads.
    """

    block_y: int
    block_x: int
    num_warps: int


def choose_labels(
    n: int, d: int, c: int, dtype: str, device: Device, out_dtype: str = "float32"
) -> LabelAlgorithm:
    """Algorithm for (n, d) embeddings against c classes.

    Args:
        n: number of rows.
        d: number of features.
        c: number of classes.
        dtype: name of the operands' dtype, such as ``"float16"``.
        device: where the tensors are.
        out_dtype: name of the result's dtype.

    Returns:
        ``"reference"``: torch, the definition. ``"row"``: a whole row of classes in one program,
        one pass. ``"stats"``: tiles of classes with their row statistics, then a normalising pass.
    """
    is_supported = dtype in _FUSED_DTYPES and out_dtype in _FUSED_DTYPES
    if not device.is_fused or not is_supported or n == 0 or d == 0:
        return "reference"
    return "row" if c <= ROW_MAX_CLASSES else "stats"


def choose_views(n: int, out_dtype: str, device: Device) -> Literal["reference", "fused"]:
    """Algorithm for n views.

    Args:
        n: number of views.
        out_dtype: name of the result's dtype.
        device: where the images are.

    Returns:
        ``"reference"``: torch. ``"fused"``: one Triton kernel.
    """
    is_fused = device.is_fused and out_dtype in _FUSED_DTYPES and n > 0
    return "fused" if is_fused else "reference"


def shared_bytes(tile: LabelTile, itemsize: int) -> int:
    """Shared memory of the operands of a tile.

    Args:
        tile: shape of the program.
        itemsize: bytes per operand element.

    Returns:
        Bytes; the compiler adds little for its own conversions.
    """
    return tile.num_stages * (tile.block_n + tile.block_c) * tile.block_d * itemsize


def _next_power_of_two(value: int) -> int:
    return 1 << max(0, value - 1).bit_length()


def choose_label_tile(n: int, c: int, itemsize: int, capability: tuple[int, int]) -> LabelTile:
    """The table's tile for a shape.

    Registers and spills behind the choice are those of ahead-of-time compilation: on sm_80 the
    128 x 256 tile of the statistics spills at 255 registers, so only sm_90 and newer use it.
    Fewer than 64 rows per tile would give up Hopper's warp-group products.

    Args:
        n: number of rows.
        c: number of classes.
        itemsize: bytes per operand element.
        capability: CUDA compute capability.

    Returns:
        A tile that fits in the device's shared memory.
    """
    is_hopper = capability >= (9, 0)
    block_c = max(16, _next_power_of_two(c))
    if itemsize == 4:
        # tf32x3 keeps three products of every operand in registers, so that wide tiles spill.
        if c <= 128:
            return LabelTile(64, block_c, 32, 4 if is_hopper or block_c < 128 else 8, 2)
        if c <= ROW_MAX_CLASSES:
            return LabelTile(32, 256, 32, 8, 2)
        return LabelTile(64, 128, 32, 4, 2) if is_hopper else LabelTile(64, 64, 32, 4, 3)
    shared = _SHARED_BYTES.get(capability, _SHARED_BYTES_OTHERS)
    if c <= ROW_MAX_CLASSES:
        tile = LabelTile(64, block_c, 64, 4 if is_hopper or block_c < 256 else 8, 3)
        if shared_bytes(tile, itemsize) > shared:
            tile = LabelTile(64, block_c, 32, tile.num_warps, 2)
        return tile
    if n <= 64:
        return LabelTile(64, 128, 64, 4, 3)
    if is_hopper and c >= 8192 and n >= 512:
        # Above ten waves of programs the wider tile reads a quarter less of both operands.
        tile = LabelTile(128, 256, 64, 8, 3)
        return tile if shared_bytes(tile, itemsize) <= shared else LabelTile(64, 128, 64, 4, 3)
    return LabelTile(128, 128, 64, 8, 3)


def view_taps(extent: int, size: int, antialias: bool) -> int:
    """Source pixels that can reach one output pixel along an axis.

    The triangle filter is open on both sides and 2 max(n, S) / S source pixels wide.

    Args:
        extent: side of the stored image, pixels; the largest possible crop n.
        size: S, output pixels.
        antialias: widen the filter where the crop is larger than the output.

    Returns:
        2 up to the output size, else ceil(2 extent / S).
    """
    return -(-2 * max(extent, size) // size) if antialias else 2


def choose_view_tile(size: int) -> ViewTile:
    """Tile of output pixels of one program of `views`.

    Four warps leave eight neighbouring pixels to a thread, which shares the arithmetic of their
    rows and columns: eight warps compile to half as many instructions again per value.

    Args:
        size: S, output pixels.

    Returns:
        Tile of at most 32 x 32.
    """
    side = min(32, max(16, _next_power_of_two(size)))
    return ViewTile(side, side, 4)


def padded_row(c: int, device_kind: str) -> int:
    """Elements from one output row to the next.

    On CUDA a multiple of 16: Triton knows the divisibility of a stride only in multiples of 16,
    and with 1000 classes in rows of 1000 a tile leaves in 66 narrow stores instead of 8 of 128
    bits.
    """
    return c if device_kind != "cuda" else -(-c // 16) * 16
