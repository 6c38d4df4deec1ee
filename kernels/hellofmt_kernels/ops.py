"""The operators as torch sees them: checked arguments, dispatch by device, fakes and gradients.

``torch.library.custom_op`` with the reference as the CPU kernel. ``triton_op`` was rejected: it is
traced and cannot choose an algorithm from sizes in Python. The functions here check once, in
Python, and raise ``ValueError`` or ``TypeError``; the registered operators behind them trust their
arguments.

Only what training needs has a gradient: x and the bias. A weight that requires one raises, because
a silently missing gradient would look like a model that does not learn.
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hellofmt_kernels import config, reference
from hellofmt_kernels.view_form import ViewForm
from hellofmt_kernels.view_row import VIEW_COLUMNS, validate_view_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hellofmt_kernels.config import LabelAlgorithm

__all__ = ["algorithm", "soft_label_kl", "soft_labels", "view_pair", "views"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_EPILOGUES = ("softmax", "logits")


_logger = logging.getLogger(__name__)


@functools.cache
def _has_triton() -> bool:
    try:
        importlib.import_module("triton")
    except ImportError:
        return False
    return True


@functools.cache
def _device(device: torch.device) -> config.Device:
    if device.type != "cuda" or not torch.cuda.is_available():
        return config.Device(device.type)
    found = config.Device("cuda", torch.cuda.get_device_capability(device), _has_triton())
    if not found.is_fused:
        _logger.warning(
            "%s: compute capability %d.%d, triton %s; the fused kernels need %d.%d and triton, "
            "so torch computes labels and views",
            device,
            *found.capability,
            "found" if found.has_triton else "missing",
            *config.MIN_CAPABILITY,
        )
    return found


def _padded(tensor: Tensor) -> Tensor:
    """The same values with rows as far apart as the kernels leave them."""
    stride = config.padded_row(tensor.shape[1], tensor.device.type)
    out = tensor.new_empty((tensor.shape[0], stride))[:, : tensor.shape[1]]
    return out.copy_(tensor)


def _fake_rows(like: Tensor, n: int, c: int, dtype: torch.dtype) -> Tensor:
    stride = config.padded_row(c, like.device.type)
    return like.new_empty_strided((n, c), (stride, 1), dtype=dtype)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def algorithm(
    n: int,
    d: int,
    c: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    out_dtype: torch.dtype | None = None,
) -> LabelAlgorithm:
    """Name of the algorithm that `soft_labels` takes for (n, d) embeddings and c classes.

    Args:
        n: rows.
        d: features.
        c: classes.
        device: where the tensors are.
        dtype: of the embeddings and the weight.
        out_dtype: of the labels; that of the embeddings if none.

    Returns:
        ``"reference"``, ``"row"`` or ``"stats"``, as `hellofmt_kernels.config.choose_labels` says.
    """
    names = _dtype_name(dtype), _dtype_name(dtype if out_dtype is None else out_dtype)
    return config.choose_labels(n, d, c, names[0], _device(torch.device(device)), names[1])


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _check_float(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in _FLOATS:
        msg = f"`{name}`: dtype {tensor.dtype}; expected float16, bfloat16, float32 or float64"
        raise TypeError(msg)


def _check_positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        msg = f"`{name}`: {value}; expected a finite number > 0"
        raise ValueError(msg)


def _check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        msg = f"`{name}`: on {tensor.device}; expected {device}, where `x` is"
        raise ValueError(msg)


def _check_matrix(name: str, tensor: Tensor, x: Tensor, shape: tuple[int, int], what: str) -> None:
    if tensor.ndim != 2 or _shape(tensor) != shape:
        msg = f"`{name}`: shape {_shape(tensor)}; expected {what} = {shape}"
        raise ValueError(msg)
    if tensor.dtype != x.dtype:
        msg = f"`{name}`: dtype {tensor.dtype}; expected {x.dtype}, as `x`"
        raise TypeError(msg)
    _check_device(name, tensor, x.device)


def _check_frozen(name: str, tensor: Tensor) -> None:
    if tensor.requires_grad and torch.is_grad_enabled():
        msg = (
            f"`{name}`: requires a gradient, which this operator does not give; "
            "expected a detached tensor"
        )
        raise ValueError(msg)


def _check_head(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: float,
    temperature: float,
    low_rank: tuple[Tensor, Tensor, float] | None,
) -> None:
    _check_float("x", x)
    if x.ndim != 2 or x.shape[1] == 0:
        msg = f"`x`: shape {_shape(x)}; expected (N, D) with D > 0"
        raise ValueError(msg)
    if weight.ndim != 2 or weight.shape[0] == 0:
        msg = f"`weight`: shape {_shape(weight)}; expected (C, D) with C > 0"
        raise ValueError(msg)
    classes, features = weight.shape[0], x.shape[1]
    _check_matrix("weight", weight, x, (classes, features), "(C, D)")
    _check_frozen("weight", weight)
    if bias is not None:
        _check_float("bias", bias)
        if _shape(bias) != (classes,):
            msg = f"`bias`: shape {_shape(bias)}; expected (C,) = {(classes,)}"
            raise ValueError(msg)
        _check_device("bias", bias, x.device)
    if low_rank is not None:
        a, b, factor = low_rank
        rank = a.shape[0] if a.ndim == 2 else 0
        if rank == 0:
            msg = f"`low_rank[0]`: shape {_shape(a)}; expected (R, D) with R > 0"
            raise ValueError(msg)
        _check_matrix("low_rank[0]", a, x, (rank, features), "(R, D)")
        _check_matrix("low_rank[1]", b, x, (classes, rank), "(C, R)")
        _check_frozen("low_rank[0]", a)
        _check_frozen("low_rank[1]", b)
        if not math.isfinite(factor):
            msg = f"`low_rank[2]`: {factor}; expected a finite number"
            raise ValueError(msg)
    if not math.isfinite(scale):
        msg = f"`scale`: {scale}; expected a finite number"
        raise ValueError(msg)
    _check_positive("temperature", temperature)


def soft_labels(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: float,
    temperature: float,
    out_dtype: torch.dtype | None = None,
    epilogue: str = "softmax",
    low_rank: tuple[Tensor, Tensor, float] | None = None,
) -> Tensor:
    """Soft labels of embeddings: softmax((scale * x W^T + b) / temperature).

    Equal to `hellofmt_kernels.reference.soft_labels`, which is what runs on a CPU: sums in float32
    (float64 for float64 input), one rounding, at the end. Gradients flow to x and to the bias.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64; N may be 0; CLIP's rows have unit length.
        weight: (C, D) of x's dtype and device; must not require a gradient.
        bias: (C,) of any floating dtype, or none; outside the scale.
        scale: dimensionless, finite; ``exp(logit_scale)`` of CLIP.
        temperature: dimensionless, finite, > 0; without effect on the logits.
        out_dtype: floating dtype of the result; x's if none. float16 flushes p < 6e-8 to 0,
            bfloat16 keeps them at 0.4 % per entry.
        epilogue: ``"softmax"``, or ``"logits"`` for scale * x W^T + b, before the temperature.
        low_rank: (A (R, D), B (C, R), s): use W + s * B A without merging it, or none.

    Returns:
        (N, C) in ``out_dtype``; softmax rows sum to 1 within 2**-8 in bfloat16, 2**-10 in
        float16, 1e-6 in float32. On a GPU rows may be padded: the result need not be contiguous.

    Raises:
        ValueError: shapes, devices or numbers do not fit; a weight or factor requires a gradient;
            an unknown epilogue.
        TypeError: a dtype is not floating point, or differs from x's.

    Example:
        >>> import torch
        >>> x, weight = torch.eye(2), torch.eye(3, 2)
        >>> soft_labels(x, weight, None, scale=1.0, temperature=0.1).argmax(dim=1)
        tensor([0, 1])
    """
    if epilogue not in _EPILOGUES:
        msg = f"`epilogue`: {epilogue!r}; expected 'softmax' or 'logits'"
        raise ValueError(msg)
    _check_head(x, weight, bias, scale, temperature, low_rank)
    dtype = x.dtype if out_dtype is None else out_dtype
    if dtype not in _FLOATS:
        msg = f"`out_dtype`: {dtype}; expected float16, bfloat16, float32 or float64"
        raise TypeError(msg)
    a, b, factor = (None, None, 0.0) if low_rank is None else low_rank
    is_softmax = epilogue == "softmax"
    return _soft_labels(
        x, weight, bias, a, b, float(factor), float(scale), float(temperature), dtype, is_softmax
    )


@torch.library.custom_op(
    "hellofmt_kernels::soft_labels",
    mutates_args=(),
    device_types="cpu",
    schema=(
        "(Tensor x, Tensor weight, Tensor? bias, Tensor? a, Tensor? b, float factor, "
        "float scale, float temperature, ScalarType dtype, bool is_softmax) -> Tensor"
    ),
)
def _soft_labels(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    factor: float,
    scale: float,
    temperature: float,
    dtype: torch.dtype,
    is_softmax: bool,
) -> Tensor:
    low_rank = None if a is None or b is None else (a, b, factor)
    epilogue = "softmax" if is_softmax else "logits"
    return reference.soft_labels(x, weight, bias, scale, temperature, dtype, epilogue, low_rank)


def _soft_labels_cuda(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    factor: float,
    scale: float,
    temperature: float,
    dtype: torch.dtype,
    is_softmax: bool,
) -> Tensor:
    low_rank = None if a is None or b is None else (a, b, factor)
    (n, d), c = x.shape, weight.shape[0]
    if algorithm(n, d, c, x.device, x.dtype, dtype) == "reference":
        epilogue = "softmax" if is_softmax else "logits"
        return _padded(
            reference.soft_labels(x, weight, bias, scale, temperature, dtype, epilogue, low_rank)
        )
    from hellofmt_kernels import soft_labels_triton

    capability = _device(x.device).capability
    with torch.cuda.device(x.device):
        return soft_labels_triton.launch(
            x,
            weight,
            bias,
            scale,
            temperature,
            dtype,
            is_softmax,
            low_rank,
            capability=capability,
        )


_soft_labels.register_kernel("cuda", _soft_labels_cuda)


@_soft_labels.register_fake
def _soft_labels_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    factor: float,
    scale: float,
    temperature: float,
    dtype: torch.dtype,
    is_softmax: bool,
) -> Tensor:
    return _fake_rows(x, x.shape[0], weight.shape[0], dtype)


def _soft_labels_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, weight, bias, a, b, factor, scale, temperature, _, is_softmax = inputs
    ctx.save_for_backward(weight, a, b, output if is_softmax else None)
    ctx.factor, ctx.scale = factor, scale
    ctx.temperature = temperature
    ctx.x_dtype = inputs[0].dtype
    ctx.bias_dtype = None if bias is None else bias.dtype


def _soft_labels_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight, a, b, p = ctx.saved_tensors
    dtype = torch.float64 if ctx.x_dtype == torch.float64 else torch.float32
    dz = grad.to(dtype)
    if p is not None:
        p = p.to(dtype)
        dz = p * (dz - (dz * p).sum(dim=1, keepdim=True)) / ctx.temperature
    dx = dbias = None
    if ctx.needs_input_grad[0]:
        dx = dz @ weight.to(dtype)
        if a is not None:
            dx = dx + ctx.factor * ((dz @ b.to(dtype)) @ a.to(dtype))
        dx = (ctx.scale * dx).to(ctx.x_dtype)
    if ctx.needs_input_grad[2]:
        dbias = dz.sum(dim=0).to(ctx.bias_dtype)
    return dx, None, dbias, None, None, None, None, None, None, None


_soft_labels.register_autograd(_soft_labels_backward, setup_context=_soft_labels_setup)


def soft_label_kl(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: float,
    temperature: float,
    student: Tensor,
    student_temperature: float = 1.0,
    low_rank: tuple[Tensor, Tensor, float] | None = None,
) -> Tensor:
    """Distillation loss per row: KL(soft labels || softmax(student / student_temperature)).

    The labels are those of `soft_labels` and never outlive the call; what is kept for the backward
    pass is the gradient. The customary factor ``student_temperature**2`` and the mean over the
    batch belong to the caller. Gradients flow to the student only.

    Args:
        x: (N, D) float16, bfloat16, float32 or float64 embeddings.
        weight: (C, D) of x's dtype and device.
        bias: (C,) of any floating dtype, or none; outside the scale.
        scale: dimensionless, finite.
        temperature: of the labels; dimensionless, finite, > 0.
        student: (N, C) logits of any floating dtype, on x's device.
        student_temperature: dimensionless, finite, > 0.
        low_rank: (A (R, D), B (C, R), s), as in `soft_labels`, or none.

    Returns:
        (N,) losses in nats, >= 0 up to rounding; float64 where x or the student is, else float32.

    Raises:
        ValueError: shapes, devices or numbers do not fit; anything but the student requires a
            gradient.
        TypeError: a dtype is not floating point, or the weight's differs from x's.

    Example:
        >>> import torch
        >>> x, weight = torch.eye(2), torch.eye(2)
        >>> soft_label_kl(x, weight, None, 1.0, 1.0, student=torch.eye(2))
        tensor([0., 0.])
    """
    _check_head(x, weight, bias, scale, temperature, low_rank)
    _check_frozen("x", x)
    if bias is not None:
        _check_frozen("bias", bias)
    _check_float("student", student)
    expected = (x.shape[0], weight.shape[0])
    if _shape(student) != expected:
        msg = f"`student`: shape {_shape(student)}; expected (N, C) = {expected}"
        raise ValueError(msg)
    _check_device("student", student, x.device)
    _check_positive("student_temperature", student_temperature)
    a, b, factor = (None, None, 0.0) if low_rank is None else low_rank
    needs_gradient = student.requires_grad and torch.is_grad_enabled()
    return _soft_label_kl(
        x,
        weight,
        bias,
        a,
        b,
        float(factor),
        float(scale),
        float(temperature),
        student,
        float(student_temperature),
        needs_gradient,
    )[0]


@torch.library.custom_op(
    "hellofmt_kernels::soft_label_kl",
    mutates_args=(),
    device_types="cpu",
    schema=(
        "(Tensor x, Tensor weight, Tensor? bias, Tensor? a, Tensor? b, float factor, "
        "float scale, float temperature, Tensor student, float student_temperature, "
        "bool needs_gradient) -> (Tensor, Tensor)"
    ),
)
def _soft_label_kl(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    factor: float,
    scale: float,
    temperature: float,
    student: Tensor,
    student_temperature: float,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor]:
    low_rank = None if a is None or b is None else (a, b, factor)
    loss, gradient = reference.soft_label_kl(
        x, weight, bias, scale, temperature, student, student_temperature, low_rank
    )
    return loss, gradient.to(student.dtype) if needs_gradient else student.new_empty((0, 0))


def _soft_label_kl_cuda(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    factor: float,
    scale: float,
    temperature: float,
    student: Tensor,
    student_temperature: float,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor]:
    low_rank = None if a is None or b is None else (a, b, factor)
    (n, d), c = x.shape, weight.shape[0]
    if algorithm(n, d, c, x.device, x.dtype, student.dtype) == "reference":
        loss, gradient = reference.soft_label_kl(
            x, weight, bias, scale, temperature, student, student_temperature, low_rank
        )
        if not needs_gradient:
            return loss, student.new_empty((0, 0))
        return loss, _padded(gradient.to(student.dtype))
    from hellofmt_kernels import soft_label_kl_triton

    capability = _device(x.device).capability
    with torch.cuda.device(x.device):
        return soft_label_kl_triton.launch(
            x,
            weight,
            bias,
            scale,
            temperature,
            student,
            student_temperature,
            needs_gradient,
            low_rank,
            capability=capability,
        )


_soft_label_kl.register_kernel("cuda", _soft_label_kl_cuda)


@_soft_label_kl.register_fake
def _soft_label_kl_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    factor: float,
    scale: float,
    temperature: float,
    student: Tensor,
    student_temperature: float,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor]:
    is_double = torch.float64 in (x.dtype, student.dtype)
    loss = x.new_empty((x.shape[0],), dtype=torch.float64 if is_double else torch.float32)
    if not needs_gradient:
        return loss, student.new_empty((0, 0))
    return loss, _fake_rows(student, student.shape[0], student.shape[1], student.dtype)


def _soft_label_kl_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])


def _soft_label_kl_backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    (gradient,) = ctx.saved_tensors
    student = None
    if ctx.needs_input_grad[8]:
        student = (grad_loss[:, None] * gradient).to(gradient.dtype)
    return None, None, None, None, None, None, None, None, student, None, None


_soft_label_kl.register_autograd(_soft_label_kl_backward, setup_context=_soft_label_kl_setup)


def views(
    images: Tensor,
    rows: Tensor,
    size: int,
    *,
    antialias: bool = True,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    out_dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Tensor:
    """Augmented views of resident images, (N, 3, S, S), one row of parameters each.

    Equal to torchvision's functional transforms of each sample in float32 (shuffle of patches,
    resized crop, flip, CutMix or MixUp with the partner's finished view, normalise) within 1e-4
    of the value range; `hellofmt_kernels.reference.views` has the exact definition. On one device a
    view has the same bits in every batch. No gradient.

    Args:
        images: (M, H, W, 3) uint8.
        rows: (N, 20) int32, one `ViewColumn` row per view; N may be 0. Rows on the CPU are checked
            and copied to the images' device; rows already on a GPU are trusted, because checking
            them would stall it. Check those with `validate_view_rows` where they are made.
        size: S > 0, pixels.
        antialias: as torchvision's flag; without effect where no crop is larger than S.
        mean: three numbers, subtracted from values in [0, 1]; 0 leaves them.
        std: three numbers > 0; 1 leaves the values.
        out_dtype: float16, bfloat16 or float32; float64 on the CPU.
        channels_last: memory format of the result, contiguous if false.

    Returns:
        (N, 3, S, S) in ``out_dtype``; in [0, 1] if mean is 0 and std is 1.

    Raises:
        ValueError: shapes, devices or numbers do not fit, or a row on the CPU does not fit the
            images.
        TypeError: images are not uint8, rows not int32, or ``out_dtype`` is not floating point.

    Example:
        >>> import torch
        >>> from hellofmt_kernels import WEIGHT_ONE, ViewColumn
        >>> images = torch.full((1, 4, 4, 3), 255, dtype=torch.uint8)
        >>> rows = torch.zeros(1, 20, dtype=torch.int32)
        >>> rows[0, ViewColumn.HEIGHT] = rows[0, ViewColumn.WIDTH] = 4
        >>> rows[0, ViewColumn.WEIGHT] = WEIGHT_ONE
        >>> views(images, rows, size=2)[0, 0]
        tensor([[1., 1.],
                [1., 1.]])
    """
    form = ViewForm(tuple(mean), tuple(std), out_dtype, channels_last)
    _check_views(images, rows, size)
    _check_form(form, "mean", "std", "out_dtype")
    return _views(images, rows, size, antialias, *_plain(form))


def view_pair(
    images: Tensor,
    rows: Tensor,
    size: int,
    first: ViewForm,
    second: ViewForm,
    *,
    antialias: bool = True,
) -> tuple[Tensor, Tensor]:
    """The same augmented views in two forms, made in one pass over the pixels.

    Equal to `views` once with each form: what a student is given, and what the encoder that labels
    it takes. Where one form is float64, the arithmetic of both is. No gradient.

    Args:
        images: (M, H, W, 3) uint8.
        rows: (N, 20) int32, as for `views`.
        size: S > 0, pixels.
        first: mean, std, dtype and memory format of the first result.
        second: of the second.
        antialias: as torchvision's flag; without effect where no crop is larger than S.

    Returns:
        Two (N, 3, S, S), one of each form.

    Raises:
        ValueError: shapes, devices or numbers do not fit, or a row on the CPU does not fit the
            images.
        TypeError: images are not uint8, rows not int32, or a dtype is not floating point.

    Example:
        >>> import torch
        >>> from hellofmt_kernels import WEIGHT_ONE, ViewColumn, ViewForm
        >>> images = torch.full((1, 4, 4, 3), 255, dtype=torch.uint8)
        >>> rows = torch.zeros(1, 20, dtype=torch.int32)
        >>> rows[0, ViewColumn.HEIGHT] = rows[0, ViewColumn.WIDTH] = 4
        >>> rows[0, ViewColumn.WEIGHT] = WEIGHT_ONE
        >>> half = ViewForm((0.5,) * 3, (0.25,) * 3, torch.float16)
        >>> student, encoder = view_pair(images, rows, 2, ViewForm(), half)
        >>> student[0, 0], encoder[0, 0]
        (tensor([[1., 1.],
                [1., 1.]]), tensor([[2., 2.],
                [2., 2.]], dtype=torch.float16))
    """
    _check_views(images, rows, size)
    _check_form(first, "first.mean", "first.std", "first.dtype")
    _check_form(second, "second.mean", "second.std", "second.dtype")
    return _view_pair(images, rows, size, antialias, *_plain(first), *_plain(second))


def _check_views(images: Tensor, rows: Tensor, size: int) -> None:
    if images.dtype != torch.uint8:
        msg = f"`images`: dtype {images.dtype}; expected torch.uint8"
        raise TypeError(msg)
    if images.ndim != 4 or images.shape[3] != 3 or images.shape[1] == 0 or images.shape[2] == 0:
        msg = f"`images`: shape {_shape(images)}; expected (M, H, W, 3), not empty"
        raise ValueError(msg)
    if rows.dtype != torch.int32:
        msg = f"`rows`: dtype {rows.dtype}; expected torch.int32"
        raise TypeError(msg)
    if rows.ndim != 2 or rows.shape[1] != VIEW_COLUMNS:
        msg = f"`rows`: shape {_shape(rows)}; expected (N, {VIEW_COLUMNS})"
        raise ValueError(msg)
    if rows.device != images.device and rows.device.type != "cpu":
        msg = f"`rows`: on {rows.device}; expected cpu or {images.device}, where `images` is"
        raise ValueError(msg)
    if size < 1:
        msg = f"`size`: {size} px; expected > 0"
        raise ValueError(msg)


def _check_form(form: ViewForm, mean: str, std: str, dtype: str) -> None:
    """Raise if a number or the dtype of a form is out of range, naming it as the caller does."""
    for name, values in ((mean, form.mean), (std, form.std)):
        if len(values) != 3 or not all(math.isfinite(value) for value in values):
            msg = f"`{name}`: {tuple(values)}; expected 3 finite numbers"
            raise ValueError(msg)
    if min(form.std) <= 0:
        msg = f"`{std}`: {tuple(form.std)}; expected 3 numbers > 0"
        raise ValueError(msg)
    if form.dtype not in _FLOATS:
        msg = f"`{dtype}`: {form.dtype}; expected float16, bfloat16, float32 or float64"
        raise TypeError(msg)


def _plain(form: ViewForm) -> tuple[list[float], list[float], torch.dtype, bool]:
    """A form as a schema can say it."""
    means, stds = [float(value) for value in form.mean], [float(value) for value in form.std]
    return means, stds, form.dtype, form.is_channels_last


def _check_rows(images: Tensor, rows: Tensor) -> None:
    count, height, width, _ = images.shape
    problems = validate_view_rows(rows, (count, height, width))
    if problems:
        msg = f"`rows`: {'; '.join(problems)}"
        raise ValueError(msg)


def _views_in_forms(
    images: Tensor, rows: Tensor, size: int, antialias: bool, forms: Sequence[ViewForm]
) -> list[Tensor]:
    """What both operators do on any device."""
    if rows.device.type == "cpu":
        _check_rows(images, rows)
        rows = rows.to(images.device, non_blocking=True)
    device, n = _device(images.device), rows.shape[0]
    if any(config.choose_views(n, _dtype_name(f.dtype), device) == "reference" for f in forms):
        return reference.views(images, rows, size, antialias, forms)
    from hellofmt_kernels import views_triton

    with torch.cuda.device(images.device):
        return views_triton.launch(images, rows, size, antialias, forms)


@torch.library.custom_op(
    "hellofmt_kernels::views",
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema=(
        "(Tensor images, Tensor rows, SymInt size, bool antialias, float[] mean, float[] std, "
        "ScalarType dtype, bool channels_last) -> Tensor"
    ),
)
def _views(
    images: Tensor,
    rows: Tensor,
    size: int,
    antialias: bool,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    form = ViewForm(tuple(mean), tuple(std), dtype, channels_last)
    return _views_in_forms(images, rows, size, antialias, [form])[0]


@_views.register_fake
def _views_fake(
    images: Tensor,
    rows: Tensor,
    size: int,
    antialias: bool,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    form = ViewForm(dtype=dtype, is_channels_last=channels_last)
    return form.empty(rows.shape[0], size, images.device)


# Two operators rather than one with a list of outputs: a schema can say a list of dtypes, but
# torch's own check of operators cannot read it.
@torch.library.custom_op(
    "hellofmt_kernels::view_pair",
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema=(
        "(Tensor images, Tensor rows, SymInt size, bool antialias, float[] mean, float[] std, "
        "ScalarType dtype, bool channels_last, float[] second_mean, float[] second_std, "
        "ScalarType second_dtype, bool second_channels_last) -> (Tensor, Tensor)"
    ),
)
def _view_pair(
    images: Tensor,
    rows: Tensor,
    size: int,
    antialias: bool,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
    second_mean: Sequence[float],
    second_std: Sequence[float],
    second_dtype: torch.dtype,
    second_channels_last: bool,
) -> tuple[Tensor, Tensor]:
    forms = (
        ViewForm(tuple(mean), tuple(std), dtype, channels_last),
        ViewForm(tuple(second_mean), tuple(second_std), second_dtype, second_channels_last),
    )
    first, second = _views_in_forms(images, rows, size, antialias, forms)
    return first, second


@_view_pair.register_fake
def _view_pair_fake(
    images: Tensor,
    rows: Tensor,
    size: int,
    antialias: bool,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
    second_mean: Sequence[float],
    second_std: Sequence[float],
    second_dtype: torch.dtype,
    second_channels_last: bool,
) -> tuple[Tensor, Tensor]:
    n, device = rows.shape[0], images.device
    first = ViewForm(dtype=dtype, is_channels_last=channels_last)
    second = ViewForm(dtype=second_dtype, is_channels_last=second_channels_last)
    return first.empty(n, size, device), second.empty(n, size, device)
