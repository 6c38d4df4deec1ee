"""The label path as operators: each defined in torch, and fused in Triton for GPUs.

``reference`` defines what an operator is and is also its CPU path; ``ops`` registers it with torch,
so that it works under ``torch.compile``, with fake tensors and with autograd; ``config`` decides in
plain Python which algorithm a shape gets; ``*_triton`` hold the kernels. This package knows torch
and triton and nothing of hellofmt. It is internal: ``hellofmt`` is the public interface.

Kernels are compiled for a GPU without one (``python -m hellofmt_kernels.aot``) and run in Triton's
interpreter, but **no kernel has been timed on a GPU**: run times there are unmeasured.
"""

from __future__ import annotations

from hellofmt_kernels.ops import algorithm, soft_label_kl, soft_labels, view_pair, views
from hellofmt_kernels.view_form import ViewForm
from hellofmt_kernels.view_row import (
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
    "ViewColumn",
    "ViewForm",
    "algorithm",
    "soft_label_kl",
    "soft_labels",
    "validate_view_rows",
    "view_pair",
    "views",
]
