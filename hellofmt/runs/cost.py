"""Measure the cost of a stage: seconds, memory, and floating-point work.

Seconds and memory belong to the process that *finished* a stage: a resumed fit counts from where it
resumed. Memory is the peak resident size of the process up to the end of the stage (the system's
high-water mark, which cannot be reset), so only the first demanding stage shows its own; on CUDA
the largest allocation within the stage is recorded as well.

Work is counted, not timed: one step runs under PyTorch's flop counter, and the result is multiplied
by the number of steps. That counts convolutions, matrix products and attention, two operations per
multiply-add, forward and backward, but not resampling, normalisation, softmax and the optimiser.
For a batch divided among processes, the whole batch counts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

try:
    import resource
except ImportError:  # Windows
    resource = None

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import Tensor


Show = Callable[[str], AbstractContextManager[object]]
"""Shows what is being done, by the name of a stage, for as long as it is entered."""


@dataclass(frozen=True)
class StageCost:
    """The cost of one stage.

    Attributes:
        stage: name of the stage.
        seconds: wall time.
        peak_bytes: largest resident size of the process until the stage ended; None on Windows.
        device_peak_bytes: largest CUDA allocation within the stage; None without CUDA.
        gflop: 1e9 floating-point operations, counted as the module says; None if not counted.
    """

    stage: str
    seconds: float
    peak_bytes: int | None
    device_peak_bytes: int | None = None
    gflop: float | None = None


def gflop_of(function: Callable[[], Tensor], *, backward: bool = False) -> float:
    """Count the work of one call, and of the gradients of its sum, in 1e9 operations."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        result = function().sum()
        if backward:
            torch.autograd.backward(result)
    return counter.get_total_flops() / 1e9


def network_gflop(network: nn.Module, size: int, views: int, *, backward: bool = False) -> float:
    """Count a network's work on views of side ``size`` in 1e9 operations, by running one."""
    device = next((t.device for t in network.parameters()), torch.device("cpu"))
    view = torch.zeros(1, 3, size, size, device=device)
    modes = {module: module.training for module in network.modules()}
    # In training mode batch norm updates its statistics, and it refuses a single value.
    network.eval()
    try:
        with torch.set_grad_enabled(backward):
            return views * gflop_of(lambda: network(view), backward=backward)
    finally:
        network.zero_grad(set_to_none=True)
        for module, mode in modes.items():
            module.training = mode


def _peak_bytes() -> int | None:
    if resource is None:
        return None
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Meter:
    """Collects the cost of stages, in the order in which they end."""

    def __init__(self, show: Show = nullcontext) -> None:
        """Start without stages; ``show`` makes the context that is entered around each."""
        self._show = show
        self.costs: list[StageCost] = []

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Measure the block; a block that raises is not recorded."""
        is_cuda = torch.cuda.is_available()
        if is_cuda:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        with self._show(name):
            yield
        device_peak = None
        if is_cuda:
            torch.cuda.synchronize()
            device_peak = torch.cuda.max_memory_allocated()
        seconds = time.perf_counter() - start
        self.costs.append(StageCost(name, seconds, _peak_bytes(), device_peak))

    def set_gflop(self, gflop: float | None) -> None:
        """Set the work of the last stage."""
        self.costs[-1] = replace(self.costs[-1], gflop=gflop)
