"""The label operator as torch sees it: checked arguments, dispatch by device, fake tensors.

``torch.library.custom_op`` infers the schema from the one function that computes on every device.
``triton_op`` was rejected: it is traced and cannot choose an algorithm from sizes in Python.
`soft_labels` checks once, in Python, and raises ``ValueError`` or ``TypeError``; the registered
operator behind it trusts its arguments.

The operator has no gradient, because labels are made without one. A tensor that requires one is
refused: a silently missing gradient would look like a model that does not learn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hellofmt_kernels import config
from hellofmt_kernels.device import check_device, check_finite, check_float, device_of, dtype_name
from hellofmt_kernels.labels import reference
from hellofmt_kernels.labels.reference import LabelOptions
from hellofmt_kernels.tiles import table

if TYPE_CHECKING:
    from hellofmt_kernels.config import LabelAlgorithm

__all__ = ["algorithm", "soft_labels"]


def algorithm(
    n: int,
    d: int,
    c: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype = torch.float32,
) -> LabelAlgorithm:
    """Name the algorithm that `soft_labels` takes for (n, d) embeddings and c classes.

    Args:
        n: number of rows.
        d: number of features.
        c: number of classes.
        device: device of the tensors.
        dtype: dtype of the embeddings and the weight.
        out_dtype: dtype of the labels.

    Returns:
        ``"reference"``, ``"row"`` or ``"stats"``, as `hellofmt_kernels.config.choose_labels` says.
    """
    names = dtype_name(dtype), dtype_name(out_dtype)
    return config.choose_labels(n, d, c, names[0], device_of(torch.device(device)), names[1])


def soft_labels(x: Tensor, weight: Tensor, bias: Tensor | None, options: LabelOptions) -> Tensor:
    """Compute soft labels of embeddings: softmax((scale * x W^T + b) / temperature).

    Equal to `hellofmt_kernels.labels.reference.soft_labels`, which is what runs on a CPU: sums in
    float32 (float64 for float64 input), one rounding at the end, and one of the products of
    bfloat16 on a CPU. No gradient.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64; N may be 0; CLIP's rows have unit length.
        weight: (C, D) of x's dtype and device.
        bias: (C,) of any floating dtype, or None; added after the scale.
        options: scale, temperature, and which result in which dtype.

    Returns:
        (N, C) in the dtype of the options; softmax rows sum to 1 within 2**-8 in bfloat16, 2**-10
        in float16, 1e-6 in float32. On a GPU rows may be padded: the result need not be contiguous.

    Raises:
        ValueError: shapes, devices or numbers do not fit, or a tensor requires a gradient.
        TypeError: a dtype is not floating point, or the weight's differs from x's.

    Example:
        >>> import torch
        >>> from hellofmt_kernels import LabelOptions
        >>> x, weight = torch.eye(2), torch.eye(3, 2)
        >>> soft_labels(x, weight, None, LabelOptions(scale=1.0, temperature=0.1)).argmax(dim=1)
        tensor([0, 1])
    """
    _check_head(x, weight, bias)
    check_finite("scale", options.scale)
    check_finite("temperature", options.temperature, is_positive=True)
    check_float("dtype", options.dtype)
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        # The registered operator would do the same, for the price of a small head again.
        return reference.soft_labels(x, weight, bias, options)
    return _soft_labels(
        x,
        weight,
        bias,
        float(options.scale),
        float(options.temperature),
        options.dtype,
        options.is_softmax,
    )


def _check_head(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_float("x", x.dtype)
    if x.ndim != 2 or x.shape[1] == 0:
        msg = f"`x`: shape {tuple(x.shape)}; expected (N, D) with D > 0"
        raise ValueError(msg)
    features = x.shape[1]
    if weight.ndim != 2 or weight.shape[0] == 0 or weight.shape[1] != features:
        msg = (
            f"`weight`: shape {tuple(weight.shape)}; expected (C, D) with C > 0, D = {features} as "
            "in `x`"
        )
        raise ValueError(msg)
    if weight.dtype != x.dtype:
        msg = f"`weight`: dtype {weight.dtype}; expected {x.dtype}, as `x`"
        raise TypeError(msg)
    check_device("weight", weight, x.device)
    if bias is not None:
        check_float("bias", bias.dtype)
        if bias.shape != weight.shape[:1]:
            msg = f"`bias`: shape {tuple(bias.shape)}; expected (C,) = {tuple(weight.shape[:1])}"
            raise ValueError(msg)
        check_device("bias", bias, x.device)
    if not torch.is_grad_enabled():
        return
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.requires_grad:
            msg = (
                f"`{name}`: requires a gradient, which this operator does not give; "
                "expected a detached tensor"
            )
            raise ValueError(msg)


def _empty(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Allocate a result, its rows as far apart as the kernels leave them."""
    stride = config.padded_row(weight.shape[0], x.device.type)
    return x.new_empty_strided((x.shape[0], weight.shape[0]), (stride, 1), dtype=dtype)


@torch.library.custom_op(
    "hellofmt_kernels::soft_labels", mutates_args=(), device_types=("cpu", "cuda")
)
def _soft_labels(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: float,
    temperature: float,
    dtype: torch.dtype,
    is_softmax: bool,
) -> Tensor:
    options = LabelOptions(scale, temperature, dtype, is_softmax)
    (n, d), c = x.shape, weight.shape[0]
    if algorithm(n, d, c, x.device, x.dtype, dtype) != "reference":
        from hellofmt_kernels.labels import fused

        with torch.cuda.device(x.device):
            tile = table().labels(n, c, x.element_size(), device_of(x.device).capability)
            return fused.launch(x, weight, bias, options, tile)
    labels = reference.soft_labels(x, weight, bias, options)
    if labels.device.type == "cpu":
        return labels
    return _empty(x, weight, dtype).copy_(labels)


@_soft_labels.register_fake
def _soft_labels_fake(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    return _empty(x, weight, LabelOptions(*options).dtype)
