"""What the operators ask of a tensor before they run: its device, dtype and shape."""

from __future__ import annotations

import functools
import importlib
import logging
import math

import torch
from torch import Tensor

from hellofmt_kernels import config

__all__ = [
    "FLOATS",
    "accumulation_dtype",
    "check_device",
    "check_finite",
    "check_float",
    "device_of",
    "dtype_name",
]

#: The dtypes that the operators compute with and return.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_logger = logging.getLogger(__name__)


@functools.cache
def _has_triton() -> bool:
    try:
        importlib.import_module("triton")
    except ImportError:
        return False
    return True


@functools.cache
def device_of(device: torch.device) -> config.Device:
    """Read the facts about a device that choose an algorithm.

    Warns once about a CUDA device that the fused kernels cannot use.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        return config.Device(device.type)
    facts = config.Device("cuda", torch.cuda.get_device_capability(device), _has_triton())
    if not facts.is_fused:
        _logger.warning(
            "%s: compute capability %d.%d, triton %s; the fused kernels need %d.%d and triton, "
            "so torch computes labels and views",
            device,
            *facts.capability,
            "installed" if facts.has_triton else "missing",
            *config.MIN_CAPABILITY,
        )
    return facts


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype without its prefix, such as ``"float16"``."""
    return str(dtype).removeprefix("torch.")


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that sums are kept in: float64 for float64, float32 for the others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_float(name: str, dtype: torch.dtype) -> None:
    """Raise `TypeError` unless ``dtype``, that of argument ``name``, is floating point."""
    if dtype not in FLOATS:
        msg = f"`{name}`: dtype {dtype}; expected float16, bfloat16, float32 or float64"
        raise TypeError(msg)


def check_finite(name: str, value: float, *, is_positive: bool = False) -> None:
    """Raise `ValueError` unless ``value`` is finite, and above 0 where ``is_positive``."""
    if not math.isfinite(value) or (is_positive and value <= 0):
        msg = f"`{name}`: {value}; expected a finite number{' > 0' if is_positive else ''}"
        raise ValueError(msg)


def check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    """Raise `ValueError` unless ``tensor`` lies on ``device``, where ``x`` is."""
    if tensor.device != device:
        msg = f"`{name}`: on {tensor.device}; expected {device}, where `x` is"
        raise ValueError(msg)
