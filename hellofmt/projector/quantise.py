"""Matrices at 32, 16, 8 or 4 bits per value, with one float32 scale per row below 16.

Scales are per row because the rows of a balanced low-rank factor differ in size by orders of
magnitude: with ``B A = U S V^T``, the factors ``B' = U sqrt(S)`` and ``A' = sqrt(S) V^T`` share the
singular values evenly, so that neither side's rounding dominates. There is no zero point: factors
are centred, and 0 stays 0. Rejected: scales per tensor (small singular directions vanish at 8
bits), scales per group (more bytes than they save at ranks this small).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hellofmt.archive.format.tensors import StoredTensor
from hellofmt.errors import UserInputError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from hellofmt.archive.format.fields import Storage

_LEVELS = {"int8": 127, "int4": 7}
_FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def balance(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Share the singular values of B A evenly: B' = U sqrt(S), A' = sqrt(S) V^T, in float32.

    Computed in float64 from QR of the two factors, without forming the product. Beyond the rank of
    the product, columns of B' and rows of A' are zero. A product of zero comes back unchanged,
    because two zero factors could never be trained again.
    """
    if not bool(b.any()) or not bool(a.any()):
        return b, a
    q_b, r_b = torch.linalg.qr(b.detach().double().cpu())
    q_a, r_a = torch.linalg.qr(a.detach().double().cpu().T)
    u, s, vt = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    root = s.sqrt()
    rank = s.numel()
    balanced_b = torch.zeros(b.shape, dtype=torch.float64)
    balanced_a = torch.zeros(a.shape, dtype=torch.float64)
    balanced_b[:, :rank] = (q_b @ u) * root
    balanced_a[:rank, :] = root[:, None] * (vt @ q_a.T)
    return balanced_b.float(), balanced_a.float()


def quantise(
    matrix: NDArray[np.float32], storage: Storage
) -> tuple[NDArray[np.int8] | NDArray[np.uint8], NDArray[np.float32]]:
    """Find integers q and scales with ``matrix[i, j]`` about ``q[i, j] * scale[i]``.

    ``scale[i] = max_j |matrix[i, j]| / L``, L = 127 (int8) or 7 (int4), so that every entry is
    within ``scale[i] / 2`` of its value (and a relative 2**-22); a row of zeros has scale 1.

    Returns:
        int8 (rows, columns) in -127..127; or uint8 (rows, ceil(columns / 2)), two values per byte,
        low nibble first, each value + 8, the padding nibble 8. And float32 (rows,), all > 0.
    """
    levels = _LEVELS[storage]
    top = np.abs(matrix).max(axis=1).astype(np.float64)
    # A row below the smallest normal float would get a scale that rounds to zero.
    scale = np.where(top > 1e-35, top / levels, 1.0).astype(np.float32)
    q = np.rint(matrix.astype(np.float64) / scale[:, None].astype(np.float64))
    q = np.clip(q, -levels, levels).astype(np.int8)
    if storage == "int8":
        return q, scale
    nibbles = (q + 8).astype(np.uint8)
    if nibbles.shape[1] % 2:
        nibbles = np.pad(nibbles, ((0, 0), (0, 1)), constant_values=8)
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4), scale


def dequantise(
    values: NDArray[Any], scale: NDArray[np.float32] | None, columns: int, storage: Storage
) -> NDArray[np.float32]:
    """Return the float32 matrix of ``columns`` that floats, or values of `quantise`, stand for."""
    if scale is None:
        return values.astype(np.float32)
    if storage == "int4":
        low, high = values & 15, values >> 4
        values = np.stack([low, high], axis=-1).reshape(values.shape[0], -1)[:, :columns]
        values = values.astype(np.int8) - np.int8(8)
    # What overflows is refused where the weight is whole.
    with np.errstate(over="ignore"):
        return values.astype(np.float32) * scale[:, None]


def write_matrix(name: str, matrix: Tensor, storage: Storage) -> dict[str, StoredTensor]:
    """Store a matrix as tensor ``name``, and ``name_scale`` if quantised."""
    values = matrix.detach().to("cpu", torch.float32).contiguous()
    if storage in _LEVELS:
        _check_finite(name, values, storage)
        q, scale = quantise(values.numpy(), storage)
        return {
            name: StoredTensor.from_numpy(q),
            f"{name}_scale": StoredTensor.from_numpy(scale),
        }
    cast = values.to(_FLOATS[storage])
    _check_finite(name, cast, storage)
    if storage == "bfloat16":
        data = cast.view(torch.int16).numpy().astype("<i2", copy=False).tobytes()
        return {name: StoredTensor(dtype="BF16", shape=tuple(cast.shape), data=data)}
    return {name: StoredTensor.from_numpy(cast.numpy())}


def write_factors(param: str, b: Tensor, a: Tensor, storage: Storage) -> dict[str, StoredTensor]:
    """Store both factors of a delta, ``<param>::A`` and ``<param>::B``; balanced below 16 bits."""
    _check_finite(f"{param}::A", a, storage)
    _check_finite(f"{param}::B", b, storage)
    if storage in _LEVELS:
        b, a = balance(b, a)
    return write_matrix(f"{param}::A", a, storage) | write_matrix(f"{param}::B", b, storage)


def _check_finite(name: str, values: Tensor, storage: str) -> None:
    if not bool(values.isfinite().all()):
        raise UserInputError.make(
            "E_OPTION",
            f"`{printable(name)}` has values that {storage} cannot hold; expected finite values "
            "(the fit diverged, or needs storage float32)",
        )


def read_matrix(
    tensors: Mapping[str, NDArray[Any]], name: str, columns: int, storage: Storage
) -> Tensor:
    """Dequantise a matrix of a section to float32, as a copy; bfloat16 comes as float32."""
    scale = tensors[f"{name}_scale"] if storage in _LEVELS else None
    return torch.from_numpy(dequantise(tensors[name], scale, columns, storage).copy())
