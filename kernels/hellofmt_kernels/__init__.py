"""The label path as operators: each defined in torch, and fused in Triton for GPUs.

Two rooms, `labels` and `views`. In each, ``reference`` defines what the operator computes and is
also its CPU path, ``fused`` holds the Triton kernels, and ``ops`` checks arguments and registers
the operator with torch, so that it works under ``torch.compile`` and with fake tensors. ``config``
decides in plain Python which algorithm a shape gets. This package knows torch and triton and
nothing of hellofmt. It is internal: ``hellofmt`` is the public interface.

Kernels are compiled for a GPU without one (``make aot``) and run in Triton's interpreter;
``benchmarks/gpu.sh`` times them on one.

The function `views` hides the room of the same name as an attribute of this package:
``from hellofmt_kernels.views import row`` works, ``import hellofmt_kernels.views.row as row`` does
not.
"""

from __future__ import annotations

from hellofmt_kernels.labels.ops import algorithm, soft_labels
from hellofmt_kernels.labels.reference import LabelOptions
from hellofmt_kernels.views.ops import view_pair, views
from hellofmt_kernels.views.reference import ViewForm
from hellofmt_kernels.views.row import (
    MAX_SHUFFLE_FACTOR,
    VIEW_COLUMNS,
    WEIGHT_ONE,
    ViewColumn,
    validate_view_rows,
)

__all__ = [
    "MAX_SHUFFLE_FACTOR",
    "VIEW_COLUMNS",
    "WEIGHT_ONE",
    "LabelOptions",
    "ViewColumn",
    "ViewForm",
    "algorithm",
    "soft_labels",
    "validate_view_rows",
    "view_pair",
    "views",
]
