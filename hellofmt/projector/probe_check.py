"""Probe logits against stored ones: how far apart two machines may compute them.

Tolerances are constants here, never values of a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from hellofmt.errors import BaseModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Tolerance:
    """Largest difference of a logit on the cosine scale, for a kind of arithmetic."""

    largest: float
    arithmetic: str


def tolerance_of(device: torch.device, dtype: torch.dtype) -> Tolerance:
    """Return the tolerance of labels computed on ``device`` in ``dtype``.

    Measured on a 12-layer transformer against float64: float32 6e-8, bfloat16 1.5e-3. Worst of 30
    random towers (ViTs of 1 to 12 layers, ResNets) against float32: bfloat16 7e-3, float16 1.3e-3,
    with AMX or without, because rounded activations are what counts. The rest is room for other
    machines.
    """
    if dtype != torch.float32:
        return Tolerance(2e-2, str(dtype).removeprefix("torch."))
    if device.type == "cpu":
        return Tolerance(1e-4, "float32 on a CPU")
    if _is_tf32():
        return Tolerance(3e-3, "float32 on a GPU, TF32")
    return Tolerance(5e-4, "float32 on a GPU")


def _is_tf32() -> bool:
    """Whether a GPU may round float32 products to TF32; unknown counts as yes."""
    try:
        return bool(torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        # torch refuses to answer once its newer precision settings are in use.
        return True


def compare_probes(
    computed: NDArray[np.float32],
    stored: NDArray[np.float32],
    *,
    norms: NDArray[np.float64],
    scale: float,
    tolerance: Tolerance,
) -> None:
    """Compare probe logits (P, C) on the cosine scale (z - b) / (exp(scale) |W_c|).

    ``norms`` are the lengths of the head's rows, (C,), and ``scale`` is exp(logit scale).
    """
    if stored.shape != computed.shape:
        raise BaseModelError.make(
            "E_BASE_PROBES",
            f"probe logits have shape {stored.shape}; expected {computed.shape}",
        )
    # A row of zeros has no cosine: its logit is the bias, compared as it is.
    lengths = scale * np.where(norms > 1e-12, norms, 1.0 / scale)
    error = np.abs(computed.astype(np.float64) - stored.astype(np.float64)) / lengths
    worst = float(error.max())
    # Written so that NaN fails.
    if not worst <= tolerance.largest:
        probe, cls = (int(i) for i in np.unravel_index(int(error.argmax()), error.shape))
        raise BaseModelError.make(
            "E_BASE_PROBES",
            f"the label function computes other logits than its writer did: probe {probe}, "
            f"class {cls} differs by {worst:.2g} on the cosine scale; expected at most "
            f"{tolerance.largest:.0e} ({tolerance.arithmetic}); the usual causes are another "
            "activation (QuickGELU), resize, channel order or normalisation",
        )


def compare_labels(
    computed: NDArray[np.float32],
    stored: NDArray[np.float32],
    *,
    temperature: float,
    largest: float,
) -> None:
    """Compare labels (P, C) of the probes with the softmax of the stored logits over T.

    ``largest`` is the largest difference of a logit; that of a label is at most half of it over T.
    """
    z = stored.astype(np.float64) / temperature
    wanted = np.exp(z - z.max(axis=1, keepdims=True))
    wanted /= wanted.sum(axis=1, keepdims=True)
    worst = float(np.abs(computed - wanted).max())
    most = max(1e-5, largest / temperature)
    # Written so that NaN fails.
    if not worst <= most:
        raise BaseModelError.make(
            "E_BASE_PROBES",
            f"the labels of the probes at T = {temperature:g} differ from those of the stored "
            f"logits by {worst:.2g}; expected at most {most:.0e}",
        )
