"""Memory for drawing that each thread reuses from batch to batch."""

from __future__ import annotations

import math
import threading
import weakref
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

#: Floats of one intermediate, 512 KiB: it stays in a core's own cache.
CHUNK = 1 << 17


class _Buffers(threading.local):
    """Memory of one thread; fresh pages would cost as much as the arithmetic on them."""

    def __init__(self) -> None:
        super().__init__()
        self.scratch: dict[str, NDArray[np.float32]] = {}
        self.batch = np.empty(0, np.float32)
        self.lent: weakref.ref[NDArray[np.float32]] | None = None


_buffers = _Buffers()


def new_batch(shape: tuple[int, ...]) -> Tensor:
    """Make a float32 tensor, in the memory of the last one if no tensor uses that any more."""
    size = math.prod(shape)
    if _buffers.lent is not None and _buffers.lent() is not None:
        return torch.empty(shape, dtype=torch.float32)
    if not size <= _buffers.batch.size <= 2 * size:
        _buffers.batch = np.empty(size, np.float32)
    # A new array object each time: the tensor's storage holds it for as long as it lives.
    array = _buffers.batch[:size].reshape(shape)
    _buffers.lent = weakref.ref(array)
    return torch.from_numpy(array)


def scratch(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return memory of this thread for the step ``name``.

    It holds numbers of earlier steps, about 0 to 1: what lies beyond a crop is multiplied too,
    though never read, and denormal numbers would be slow.
    """
    known = _buffers.scratch
    size = math.prod(shape)
    if name not in known or known[name].size < size:
        known[name] = np.zeros(max(size, CHUNK), np.float32)
    return known[name][:size].reshape(shape)
